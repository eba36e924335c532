# Renders the Open OnDemand app as the portal does, and prints what it becomes as JSON.
# Usage: ruby ondemand.rb DIRECTORY_OF_THE_APP GPUS
require "erb"
require "json"
require "ostruct"
require "yaml"

app, gpus = ARGV
form = YAML.safe_load(File.read("#{app}/form.yml"))
manifest = YAML.safe_load(File.read("#{app}/manifest.yml"))
fields = form["form"]
# What a user has typed; a quote must not end up in a shell.
typed = {
  "directory" => "my runs/it's",
  "model" => "/models/uma $(touch /tmp/no).pt",
  "bc_num_hours" => "8",
  "nodes" => "2",
  "gpus" => gpus,
  "workers" => "3",
  "cpus" => "4",
}
unknown = form["attributes"].keys - fields
raise "attributes that are not in the form: #{unknown}" unless unknown.empty?
raise "fields without a value: #{typed.keys - fields}" unless (typed.keys - fields).empty?

render = lambda do |file, values|
  # submit.yml.erb and view.html.erb see the fields by name, templates see `context`.
  scope = OpenStruct.new(values.merge("context" => OpenStruct.new(values)))
  ERB.new(File.read("#{app}/#{file}"), trim_mode: "-").result(scope.instance_eval { binding })
end
connection = { "host" => "node7", "port" => 4711, "password" => "secret", "directory" => "/home/a/<b>" }
puts JSON.generate(
  "manifest" => manifest,
  "submit" => YAML.safe_load(render.call("submit.yml.erb", typed)),
  "view" => render.call("view.html.erb", connection),
  "before" => render.call("template/before.sh.erb", typed),
  "script" => render.call("template/script.sh.erb", typed),
  "after" => File.read("#{app}/template/after.sh"),
)
