//! The command line, completed from the environment and a file.
//!
//! Every option of `umaserve serve` can also be set by `UMASERVE_<OPTION>` and by a line of the
//! file of `--config`. The command line comes first, then the environment, then the file, then the
//! default; so the same names, values and messages hold everywhere.

use std::ffi::OsString;
use std::path::Path;

use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory as _, FromArgMatches as _};

use super::ConfigError;
use crate::cli::Cli;

/// Subcommands whose options the environment may set.
const WITH_ENVIRONMENT: [&str; 2] = ["serve", "predict"];

/// What the user has typed, or that only text was asked for.
#[derive(Debug)]
pub enum Typed {
    /// The arguments.
    Cli(Box<Cli>),
    /// What clap has to say: help, version, or what is wrong.
    Said(clap::Error),
}

/// Reads the arguments of this program, completed from environment and file.
///
/// # Errors
/// The file of `--config` cannot be used.
pub fn command_line(arguments: impl IntoIterator<Item = OsString>) -> Result<Typed, ConfigError> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let command = command();
    // Once to find the file, whose values become defaults.
    let file = match command.clone().try_get_matches_from(&arguments) {
        Ok(matches) => config_file(&matches),
        // A value of the file may be what is missing, so only the second answer counts.
        Err(_) => None,
    };
    let command = match &file {
        Some(path) => with_file(command, Path::new(path))?,
        None => command,
    };
    let parsed = command
        .try_get_matches_from(&arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    Ok(match parsed {
        Ok(cli) => Typed::Cli(Box::new(cli)),
        Err(error) => Typed::Said(error),
    })
}

/// The command with the names of the environment.
fn command() -> Command {
    let mut command = Cli::command();
    for name in WITH_ENVIRONMENT {
        command = command.mut_subcommand(name, |sub| {
            sub.mut_args(|arg| match arg.get_long() {
                Some(long) if is_setting(&arg) => {
                    let variable = variable(long);
                    arg.env(variable).hide_env_values(true)
                }
                _ => arg,
            })
        });
    }
    command
}

/// The environment variable of an option.
pub fn variable(long: &str) -> String {
    format!("UMASERVE_{}", long.replace('-', "_").to_uppercase())
}

fn is_setting(arg: &Arg) -> bool {
    matches!(
        arg.get_action(),
        ArgAction::Set | ArgAction::Append | ArgAction::SetTrue
    )
}

fn config_file(matches: &ArgMatches) -> Option<String> {
    let (name, matches) = matches.subcommand()?;
    let path = (name == "serve").then(|| matches.get_one::<std::path::PathBuf>("config"));
    path.flatten()
        .map(|path| path.to_string_lossy().into_owned())
}

/// The command with the values of the file as its defaults.
fn with_file(command: Command, path: &Path) -> Result<Command, ConfigError> {
    let fail =
        |reason: String| ConfigError::Invalid(format!("--config {}: {reason}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| fail(error.to_string().trim_end().to_owned()))?;
    let mut defaults: Vec<(String, Vec<String>)> = Vec::new();
    for (key, value) in table {
        let serve = command.find_subcommand("serve").into_iter();
        let known: Vec<&Arg> = serve
            .flat_map(Command::get_arguments)
            .filter(|arg| is_setting(arg) && arg.get_long().is_some_and(|long| long != "config"))
            .collect();
        let long = key.replace('_', "-");
        let Some(arg) = known.iter().find(|arg| arg.get_long() == Some(&long)) else {
            let near = known
                .iter()
                .filter_map(|arg| arg.get_long())
                .filter(|name| name.starts_with(&long) || long.starts_with(name))
                .min_by_key(|name| name.len().abs_diff(long.len()));
            let near = near.map_or(String::new(), |name| format!("; is {name} meant?"));
            return Err(fail(format!("{key} is no option of umaserve serve{near}")));
        };
        let values = match value {
            toml::Value::Array(values) if matches!(arg.get_action(), ArgAction::Append) => values,
            value => vec![value],
        };
        let values: Option<Vec<String>> = values
            .into_iter()
            .map(|value| match value {
                toml::Value::String(text) => Some(text),
                toml::Value::Integer(number) => Some(number.to_string()),
                toml::Value::Float(number) => Some(number.to_string()),
                toml::Value::Boolean(flag) => Some(flag.to_string()),
                _ => None,
            })
            .collect();
        let values =
            values.ok_or_else(|| fail(format!("{key}: a text or a number is expected")))?;
        if matches!(arg.get_action(), ArgAction::SetTrue)
            && !matches!(values[..], [ref value] if value == "true" || value == "false")
        {
            return Err(fail(format!("{key}: true or false is expected")));
        }
        defaults.push((arg.get_id().to_string(), values));
    }
    Ok(command.mut_subcommand("serve", |mut serve| {
        for (id, values) in defaults {
            serve = serve.mut_arg(id, |arg| arg.default_values(values));
        }
        serve
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Command as Chosen, ServeArgs};

    fn serve(arguments: &[&str], file: &str) -> Result<ServeArgs, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("umaserve.toml");
        std::fs::write(&path, file).unwrap();
        let mut all: Vec<OsString> = vec!["umaserve".into(), "serve".into()];
        all.extend(["--config".into(), path.into_os_string()]);
        all.extend(arguments.iter().map(OsString::from));
        match command_line(all).map_err(|error| error.to_string())? {
            Typed::Said(error) => Err(error.to_string()),
            Typed::Cli(cli) => match cli.command {
                Chosen::Serve(args) => Ok(*args),
                other => panic!("{other:?}"),
            },
        }
    }

    #[test]
    fn a_file_sets_what_the_command_line_does_not() {
        let file = "max-atoms = 77\nmax_sessions = 5\nno-auth = true\nallow-origin = \
                    [\"https://a.example\", \"https://b.example\"]\nbind = \"127.0.0.1:1\"\n\
                    precision = \"f64\"\n";
        let args = serve(&["--max-atoms", "78"], file).unwrap();
        assert_eq!((args.max_atoms, args.max_sessions), (78, 5));
        assert!(args.door.no_auth);
        assert_eq!(args.door.allow_origin.len(), 2);
        assert_eq!(args.door.bind.as_deref(), Some("127.0.0.1:1"));
        assert_eq!(args.model.precision, Some(crate::cli::Precision::F64));
        // A value of the file does not contradict one of the command line.
        let args = serve(&["--bind-interface", "ib0"], file).unwrap();
        assert_eq!(args.door.bind_interface.as_deref(), Some("ib0"));
    }

    #[test]
    fn what_a_file_cannot_say_is_told_by_name() {
        for (file, reason) in [
            (
                "max-atom = 1",
                "max-atom is no option of umaserve serve; is max-atoms meant?",
            ),
            ("config = \"x\"", "config is no option"),
            ("max-atoms = \"many\"", "--max-atoms"),
            ("no-auth = 3", "no-auth: true or false"),
            ("[serve]\nmax-atoms = 1", "serve is no option"),
            ("max-atoms 3", "line 1"),
        ] {
            let error = serve(&[], file).unwrap_err();
            assert!(error.contains(reason), "{file:?}: {error}");
        }
    }

    #[test]
    fn every_option_has_a_variable_of_its_own() {
        let command = command();
        let serve = command.find_subcommand("serve").unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for arg in serve.get_arguments().filter(|arg| is_setting(arg)) {
            let name = arg.get_env().expect("a variable").to_owned();
            assert!(seen.insert(name.clone()), "{name:?}");
        }
        assert!(seen.contains(&OsString::from("UMASERVE_MAX_ATOMS")));
        // The token itself is no option: others could see it in the list of processes.
        assert!(!seen.contains(&OsString::from("UMASERVE_TOKEN")));
    }
}
