//! A Slurm of its own: munged, slurmctld and slurmd in a temporary directory, on free ports, on
//! this host or in network namespaces; ended by process id.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Set where a test must not be skipped for want of Slurm, namespaces or what checks scripts.
pub const REQUIRED: &str = "UMASERVE_TEST_SLURM";

/// Debian has the daemons where a user's PATH does not look.
fn path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin:/sbin")
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", path());
    // A job must not see that its test is one.
    for (name, _) in std::env::vars() {
        if name.starts_with("SLURM") || name.starts_with("OMPI_") || name.starts_with("UMASERVE_") {
            command.env_remove(name);
        }
    }
    command
}

fn there(program: &str) -> bool {
    let found = |directory: &str| Path::new(directory).join(program).is_file();
    path().split(':').any(found)
}

fn run(command: &mut Command) -> Output {
    let output = command.output();
    output.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

#[track_caller]
fn good(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Waits until `look` has an answer.
#[track_caller]
pub fn wait_for<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = look() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Why there can be no Slurm here, if there cannot.
pub fn missing() -> Option<String> {
    let programs = [
        "munged",
        "slurmctld",
        "slurmd",
        "sbatch",
        "srun",
        "scontrol",
    ];
    let absent: Vec<&str> = programs.into_iter().filter(|p| !there(p)).collect();
    if absent.is_empty() {
        return None;
    }
    let absent = absent.join(", ");
    Some(format!(
        "not installed: {absent} (tools/setup.sh tests does)"
    ))
}

/// Why there can be no network namespaces here, if there cannot.
pub fn no_namespaces() -> Option<String> {
    let euid = good(Command::new("id").arg("-u"));
    if euid != "0" {
        return Some("network namespaces need root".into());
    }
    if !there("ip") || !there("nsenter") || !there("unshare") {
        return Some("ip (iproute2), nsenter or unshare (util-linux) is not installed".into());
    }
    let name = format!("uma{}t", std::process::id());
    let made = run(command("ip").args(["netns", "add", &name]));
    if !made.status.success() {
        let error = String::from_utf8_lossy(&made.stderr).trim().to_owned();
        return Some(format!("no network namespaces here: {error}"));
    }
    good(command("ip").args(["netns", "del", &name]));
    None
}

/// Two hosts with addresses of their own: network namespaces on one bridge.
struct Network {
    bridge: String,
    hosts: Vec<String>,
}

impl Network {
    const HERE: &str = "10.213.97.1";

    fn address(host: usize) -> String {
        format!("10.213.97.{}", 11 + host)
    }

    fn new(hosts: usize) -> Network {
        let id = std::process::id();
        let ip = |arguments: &str| good(command("ip").args(arguments.split(' ')));
        let network = Network {
            bridge: format!("uma{id}b"),
            hosts: (0..hosts).map(|k| format!("uma{id}n{k}")).collect(),
        };
        let bridge = &network.bridge;
        ip(&format!("link add {bridge} type bridge"));
        ip(&format!("addr add {}/24 dev {bridge}", Network::HERE));
        ip(&format!("link set {bridge} up"));
        for (k, host) in network.hosts.iter().enumerate() {
            let address = Network::address(k);
            ip(&format!("netns add {host}"));
            ip(&format!(
                "link add uma{id}v{k} type veth peer name eth0 netns {host}"
            ));
            ip(&format!("link set uma{id}v{k} master {bridge} up"));
            ip(&format!("-n {host} addr add {address}/24 dev eth0"));
            ip(&format!("-n {host} link set eth0 up"));
            ip(&format!("-n {host} link set lo up"));
        }
        network
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in &self.hosts {
            run(command("ip").args(["netns", "del", host]));
        }
        run(command("ip").args(["link", "del", &self.bridge]));
    }
}

/// A running Slurm.
pub struct Cluster {
    directory: TempDir,
    daemons: Vec<(&'static str, Child)>,
    network: Option<Network>,
}

impl Cluster {
    /// One node, this host, with so many GPUs that are none.
    pub fn here(gpus: usize) -> Cluster {
        Cluster::start(None, gpus)
    }

    /// Two nodes with addresses of their own, in network namespaces.
    pub fn two_nodes() -> Cluster {
        Cluster::start(Some(Network::new(2)), 0)
    }

    fn start(network: Option<Network>, gpus: usize) -> Cluster {
        let directory = TempDir::new().unwrap();
        let mut cluster = Cluster {
            directory,
            daemons: Vec::new(),
            network,
        };
        cluster.configure(gpus);
        let at = |name: &str| cluster.path(name).display().to_string();
        let mut munged = command("munged");
        munged.arg("--foreground").args([
            format!("--key-file={}", at("munge.key")),
            format!("--socket={}", at("munge.socket")),
            format!("--pid-file={}", at("munged.pid")),
            format!("--seed-file={}", at("munge.seed")),
        ]);
        cluster.daemon("munged", munged);
        let socket = cluster.path("munge.socket");
        wait_for("munged", Duration::from_secs(60), || {
            socket.exists().then_some(())
        });
        let mut controller = cluster.command("slurmctld");
        controller.arg("-D");
        cluster.daemon("slurmctld", controller);
        for (name, host) in cluster.nodes() {
            let mut slurmd = match &host {
                None => cluster.command("slurmd"),
                Some(namespace) => {
                    // Only network and host name are the node's own; `ip netns exec` would hide
                    // /sys as well.
                    let mut inside = cluster.command("nsenter");
                    inside.arg(format!("--net=/run/netns/{namespace}"));
                    inside.args(["unshare", "--uts", "sh", "-c"]);
                    inside.args([
                        "hostname \"$1\" && shift && exec \"$@\"",
                        "sh",
                        &name,
                        "slurmd",
                    ]);
                    inside
                }
            };
            slurmd.args(["-D", "-N", &name]);
            cluster.daemon("slurmd", slurmd);
        }
        let count = cluster.nodes().len().to_string();
        wait_for("nodes of the Slurm", Duration::from_secs(60), || {
            cluster.assert_alive();
            let idle = run(cluster
                .command("sinfo")
                .args(["-h", "-t", "idle", "-o", "%D"]));
            (String::from_utf8_lossy(&idle.stdout).trim() == count).then_some(())
        });
        cluster
    }

    /// Names of the nodes, and the namespaces that they are in.
    fn nodes(&self) -> Vec<(String, Option<String>)> {
        match &self.network {
            None => vec![(host_name(), None)],
            Some(network) => {
                let hosts = network.hosts.iter().enumerate();
                hosts
                    .map(|(k, host)| (format!("node{k}"), Some(host.clone())))
                    .collect()
            }
        }
    }

    fn configure(&self, gpus: usize) {
        let write = |name: &str, text: String| std::fs::write(self.path(name), text).unwrap();
        let here = self.directory.path().display();
        let key: Vec<u8> = (0..128).map(|k: u8| k.wrapping_mul(37)).collect();
        std::fs::write(self.path("munge.key"), key).unwrap();
        good(Command::new("chmod").arg("600").arg(self.path("munge.key")));
        // munged does not trust a directory that its group may write to.
        good(Command::new("chmod").arg("755").arg(self.directory.path()));
        for directory in ["state", "spool", "tmp"] {
            std::fs::create_dir(self.path(directory)).unwrap();
        }
        let ports = ports(3);
        let controller = match &self.network {
            None => "127.0.0.1",
            Some(_) => Network::HERE,
        };
        let mut text = format!(
            "ClusterName=test\n\
             SlurmctldHost={host}({controller})\n\
             SlurmctldPort={ctld}\n\
             SlurmUser={user}\nSlurmdUser={user}\n\
             AuthType=auth/munge\nCredType=cred/munge\n\
             # A job that is queued again waits for so long; 120 s by default.\n\
             AuthInfo=socket={here}/munge.socket,cred_expire=5\n\
             StateSaveLocation={here}/state\n\
             SlurmdSpoolDir={here}/spool/%n\n\
             # PMIx keeps its files there; nodes must not share it.\n\
             TmpFS={here}/tmp/%n\n\
             SlurmctldPidFile={here}/slurmctld.pid\nSlurmdPidFile={here}/slurmd-%n.pid\n\
             SlurmctldLogFile={here}/slurmctld.log\nSlurmdLogFile={here}/slurmd-%n.log\n\
             # No systemd, no cgroups.\n\
             ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n\
             JobAcctGatherType=jobacct_gather/none\n\
             AccountingStorageType=accounting_storage/none\n\
             SwitchType=switch/none\nMpiDefault=none\nReturnToService=2\n\
             SchedulerType=sched/builtin\n\
             SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=1\n\
             SelectType=select/cons_tres\nSelectTypeParameters=CR_Core\n\
             # Nodes claim more cores than this machine has.\n\
             SlurmdParameters=config_overrides\nKillWait=30\n\
             GresTypes=gpu\n",
            host = host_name(),
            ctld = ports[0],
            user = good(Command::new("id").arg("-un")),
        );
        let gres = match gpus {
            0 => String::new(),
            n => format!(" Gres=gpu:{n}"),
        };
        for (k, (name, namespace)) in self.nodes().into_iter().enumerate() {
            std::fs::create_dir(self.path("spool").join(&name)).unwrap();
            std::fs::create_dir(self.path("tmp").join(&name)).unwrap();
            let address = match namespace {
                None => "127.0.0.1".to_owned(),
                Some(_) => Network::address(k),
            };
            let port = ports[1 + k];
            text += &format!(
                "NodeName={name} NodeAddr={address} NodeHostname={name} Port={port} CPUs=4{gres}\n"
            );
        }
        text += "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n";
        write("slurm.conf", text);
        // With version 1 named, slurmd does not look whether there are cgroups.
        write("cgroup.conf", "CgroupPlugin=cgroup/v1\n".into());
        let devices = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random"];
        let gres: String = devices[..gpus]
            .iter()
            .map(|device| format!("Name=gpu File={device}\n"))
            .collect();
        write("gres.conf", gres);
    }

    fn daemon(&mut self, name: &'static str, mut command: Command) {
        let log = std::fs::File::create(self.path(&format!("{name}{}.out", self.daemons.len())));
        let log = log.unwrap();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = command.spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        self.daemons.push((name, child));
    }

    fn assert_alive(&mut self) {
        for k in 0..self.daemons.len() {
            let (name, child) = &mut self.daemons[k];
            if let Some(status) = child.try_wait().unwrap() {
                let name = *name;
                let logs: Vec<String> = std::fs::read_dir(self.directory.path())
                    .unwrap()
                    .map(|entry| entry.unwrap().path())
                    .filter(|p| p.extension().is_some_and(|e| e == "out" || e == "log"))
                    .map(|p| format!("{}:\n{}", p.display(), read(&p)))
                    .collect();
                panic!("{name} has ended with {status}\n{}", logs.join("\n"));
            }
        }
    }

    /// A file of the cluster.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command that speaks to this Slurm.
    pub fn command(&self, program: &str) -> Command {
        let mut command = command(program);
        command.env("SLURM_CONF", self.path("slurm.conf"));
        command.current_dir(self.directory.path());
        command
    }

    /// Submits `script` with options of sbatch and arguments of its own.
    #[track_caller]
    pub fn submit(&self, options: &[&str], script: &Path, arguments: &[&str]) -> Job<'_> {
        let mut sbatch = self.command("sbatch");
        sbatch
            .arg("--parsable")
            .args(options)
            .arg(script)
            .args(arguments);
        Job {
            cluster: self,
            id: good(&mut sbatch),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Jobs first: they are children of slurmd's children and would outlive it.
        run(self
            .command("scancel")
            .args(["--signal=KILL", "--full", "--user"])
            .arg(user_name()));
        run(self.command("scancel").arg("--user").arg(user_name()));
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            let queue = run(self.command("squeue").arg("-h"));
            if queue.stdout.trim_ascii().is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        while let Some((_, mut child)) = self.daemons.pop() {
            run(Command::new("kill").arg(child.id().to_string()));
            let deadline = Instant::now() + Duration::from_secs(5);
            while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A submitted job.
pub struct Job<'a> {
    cluster: &'a Cluster,
    pub id: String,
}

impl Job<'_> {
    /// A field of `scontrol show job`, such as `JobState`.
    pub fn field(&self, name: &str) -> String {
        let mut show = self.cluster.command("scontrol");
        let text = good(show.args(["show", "job", "--oneliner", &self.id]));
        let field = text
            .split(' ')
            .find_map(|f| f.strip_prefix(&format!("{name}=")));
        field
            .unwrap_or_else(|| panic!("no {name} in {text}"))
            .to_owned()
    }

    /// Sends a signal as `scancel` does.
    pub fn cancel(&self, options: &[&str]) {
        let mut scancel = self.cluster.command("scancel");
        good(scancel.args(options).arg(&self.id));
    }

    /// Everything that the job has printed.
    pub fn output(&self) -> String {
        read(&self.cluster.path(&format!("umaserve-{}.out", self.id)))
    }

    /// Waits for something about the job; its output is shown when it does not come.
    #[track_caller]
    pub fn wait_for<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            if let Some(answer) = look() {
                return answer;
            }
            if Instant::now() > deadline {
                let state = self.field("JobState");
                panic!("{what}: not in time, job is {state}\n{}", self.output());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    #[track_caller]
    pub fn wait_for_state(&self, state: &str) {
        self.wait_for(&format!("state {state}"), || {
            (self.field("JobState") == state).then_some(())
        });
    }
}

/// Free ports that the system gives to nobody who lets it choose: the daemons bind them later.
fn ports(count: usize) -> Vec<u16> {
    let chosen_by_the_system = read(Path::new("/proc/sys/net/ipv4/ip_local_port_range"));
    let first = chosen_by_the_system.split_whitespace().next();
    let first: u16 = first.and_then(|text| text.parse().ok()).unwrap_or(32768);
    // Other processes with this test look elsewhere.
    let begin = 10_000 + (std::process::id() % 1_000) as u16 * 10;
    let free = |port: &u16| TcpListener::bind(("0.0.0.0", *port)).is_ok();
    let ports: Vec<u16> = (begin..first).filter(free).take(count).collect();
    assert_eq!(ports.len(), count, "no free ports from {begin} to {first}");
    ports
}

pub fn read(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&text).into_owned()
}

fn host_name() -> String {
    let name = good(&mut Command::new("hostname"));
    // Slurm's names end at the first dot.
    name.split('.').next().unwrap_or(&name).to_owned()
}

fn user_name() -> String {
    good(Command::new("id").arg("-un"))
}
