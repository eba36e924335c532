//! The front of the real program: the token, the connection file, `connect` and `status`, doors
//! other than a port.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use super::*;

fn read(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn output(arguments: &[&str]) -> Output {
    umaserve(arguments).output().unwrap()
}

fn said(arguments: &[&str]) -> String {
    let output = output(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_connection_file_leads_to_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("job/connection.json");
    let file = path.display().to_string();
    let mut command = umaserve(&arguments(&["--connection-file", &file]));
    command
        .env("SLURM_JOB_ID", "4711")
        .env("SLURM_SUBMIT_HOST", "login1")
        .env("USER", "ada");
    let mut program = Program::start(command);
    // What a job prints lands in a file that everybody can read.
    assert!(program.token.is_empty(), "{}", program.text);
    assert!(
        program.text.contains("umaserve connect"),
        "{}",
        program.text
    );
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let found = read(&path);
    let port: u16 = program.address.rsplit(':').next().unwrap().parse().unwrap();
    assert_eq!(found["port"], port);
    assert_eq!(found["job_id"], "4711");
    assert_eq!(found["url"], format!("http://127.0.0.1:{port}/"));
    assert_eq!(found["pid"], program.child.id());
    assert_eq!(found["state"], "ready");
    assert_eq!(found["ranks"][0]["device"], "cpu");
    let host = found["host"].as_str().unwrap();
    let token = found["token"].as_str().unwrap();
    assert_eq!(token.len(), 43);
    let line = format!("ssh -N -J ada@login1 -L {port}:127.0.0.1:{port} ada@{host}");
    assert!(program.text.contains(&line), "{}", program.text);

    let text = said(&["connect", &file]);
    assert!(text.contains(&line), "{text}");
    assert!(
        text.contains(&format!("http://127.0.0.1:{port}/#token={token}")),
        "{text}"
    );
    assert_eq!(said(&["connect", &file, "--print-token"]).trim(), token);
    let json = said(&[
        "connect",
        &file,
        "--json",
        "--local-port",
        "9000",
        "--login",
        "gate",
    ]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["ssh"][2], "ada@gate");
    assert_eq!(json["ssh"][4], format!("9000:127.0.0.1:{port}"));

    program.token = token.to_owned();
    let mut viewer = program.viewer();
    viewer.run(5);
    let text = said(&["status", directory.path().join("job").to_str().unwrap()]);
    for part in ["job 4711: ready", "sessions 1 of 256", "UMA-S-1.2.1", "0  "] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let status = said(&["status", &file, "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert!(status["steps"].as_u64().unwrap() >= 6, "{status}");
    assert!(status["frames"].as_u64().unwrap() >= 6, "{status}");
    let metrics = program.get("/metrics");
    for part in [
        "umaserve_forward_seconds_count",
        "umaserve_batch_edges_bucket{le=\"64.0\"} ",
    ] {
        assert!(metrics.contains(part), "{metrics}");
    }
    let busy = "umaserve_worker_busy_seconds_total{rank=\"0\"} ";
    let busy = metrics
        .lines()
        .find_map(|line| line.strip_prefix(busy))
        .unwrap();
    assert!(busy.parse::<f64>().unwrap() > 0.0);

    signal("INT", program.child.id());
    assert_eq!(program.wait().code(), Some(0));
    assert_eq!(read(&path)["state"], "stopped");
    for command in ["connect", "status"] {
        let output = output(&[command, &file]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && text.contains("was stopped"),
            "{text}"
        );
    }
    // A server that was killed has said nothing.
    let mut gone = read(&path);
    gone["state"] = "ready".into();
    gone["heartbeat"] = (gone["heartbeat"].as_f64().unwrap() - 100.0).into();
    std::fs::write(&path, gone.to_string()).unwrap();
    let output = output(&["status", &file]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("has not been heard of for 10"), "{text}");
}

#[test]
fn the_same_job_keeps_its_token_and_its_port() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("connection.json");
    let file = path.display().to_string();
    let start = |job: &str| {
        let mut command = umaserve(&arguments(&["--connection-file", &file]));
        command.env("SLURM_JOB_ID", job);
        Program::start(command)
    };
    let start_twice = || {
        let first = start("1");
        let before = read(&path);
        drop(first); // killed
        let second = start("1");
        (before, second, read(&path))
    };
    let (mut before, mut second, mut after) = start_twice();
    if after["port"] != before["port"] {
        // Somebody else may have been given it in between.
        (before, second, after) = start_twice();
    }
    assert_eq!(
        (&after["token"], &after["port"]),
        (&before["token"], &before["port"])
    );
    assert_ne!(after["pid"], before["pid"]);
    second.token = after["token"].as_str().unwrap().to_owned();
    assert_eq!(second.health()["status"], "ok");
    drop(second);
    let third = start("2");
    assert_ne!(read(&path)["token"], before["token"]);
    drop(third);
}

#[test]
fn the_token_is_in_no_log() {
    let secret = "a-secret-that-nobody-may-see-0123456789";
    let mut command = umaserve(&arguments(&["--show-token", "never"]));
    command
        .env("UMASERVE_TOKEN", secret)
        .env("RUST_LOG", "trace")
        .env("WS_DEBUG", "1")
        .stderr(Stdio::piped());
    let mut program = Program::start(command);
    let mut errors = program.child.stderr.take().unwrap();
    let log = std::thread::spawn(move || {
        let mut text = String::new();
        errors.read_to_string(&mut text).map(|_| text)
    });
    program.token = secret.to_owned();
    program.viewer().run(3); // in the address of the upgrade
    program.get("/serve/health"); // in a header
    let ask = |request: &str| {
        let mut stream = TcpStream::connect(&program.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    let end = "HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
    for (request, status) in [
        (format!("GET /serve/health?token={secret} {end}\r\n"), 200),
        (
            format!("GET /uma/stats {end}Cookie: umaserve_token={secret}\r\n\r\n"),
            200,
        ),
        (format!("GET /nowhere?token={secret} {end}\r\n"), 404),
        (format!("GET /?token={secret} {end}\r\n"), 200),
        // Nearly right, refused, broken.
        (format!("GET /ws?token={secret}x {end}\r\n"), 401),
        (
            format!("GET /serve/health?token={secret}&a=\u{7f} {end}\r\n"),
            400,
        ),
        (
            format!("POST /uma/reset?token={secret} {end}Origin: http://evil.example\r\n\r\n"),
            403,
        ),
    ] {
        let answer = ask(&request);
        let expected = format!("HTTP/1.1 {status}");
        assert!(answer.starts_with(&expected), "{request}: {answer}");
    }
    signal("INT", program.child.id());
    assert_eq!(program.wait().code(), Some(0));
    let log = log.join().unwrap().unwrap();
    assert!(log.contains("a request was not let in"), "{log}");
    assert!(log.lines().count() > 30, "{log}");
    assert!(!log.contains("a-secret-that"), "{log}");
    assert!(!program.text.contains(secret), "{}", program.text);
}

#[test]
fn the_token_is_printed_where_nobody_else_reads_it() {
    let program = Program::start(umaserve(&arguments(&[])));
    assert_eq!(program.token.len(), 43, "{}", program.text);
    assert!(program.text.contains("#token="), "{}", program.text);
    drop(program);
    let arguments_of_interface = ["serve", "--model", MODEL, "--bind-interface", "lo"];
    let program = Program::start(umaserve(&arguments_of_interface));
    assert!(
        program.address.starts_with("127.0.0.1:"),
        "{}",
        program.address
    );
    assert_eq!(program.health()["status"], "ok");
    drop(program);
    let open = Program::start(umaserve(&arguments(&["--no-auth"])));
    assert!(open.token.is_empty());
    assert_eq!(open.health()["status"], "ok");
}

#[test]
fn a_prefix_may_name_host_and_port() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.json");
    let prefix = "/node/{host}/{port}";
    let name = file.display().to_string();
    let more = ["--path-prefix", prefix, "--connection-file", &name];
    let program = Program::start(umaserve(&arguments(&more)));
    let found = read(&file);
    let expected = format!(
        "/node/{}/{}",
        found["host"].as_str().unwrap(),
        found["port"]
    );
    assert_eq!(found["path_prefix"], expected);
    assert!(
        program.text.contains(&format!("{expected}/ws")),
        "{}",
        program.text
    );
    let health = program.get(&format!("{expected}/serve/health"));
    assert!(health.contains("\"ok\""), "{health}");
    assert!(said(&["status", &name]).contains("ready"));
}

#[test]
fn a_unix_socket_and_tls_are_found_by_the_commands() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let (socket, file) = (at("u.sock"), at("c.json"));
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--model", MODEL, "--unix-socket", &socket]);
    command.args(["--connection-file", &file]);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let wait_ready = |child: &mut Child| {
        let deadline = Instant::now() + PATIENCE;
        while !std::fs::read_to_string(&file).is_ok_and(|text| text.contains("\"ready\"")) {
            assert!(child.try_wait().unwrap().is_none(), "it has ended");
            assert!(Instant::now() < deadline, "not ready");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait_ready(&mut child);
    let text = said(&["status", &file]);
    assert!(
        text.contains("sessions 0 of 256") && !text.contains("as of"),
        "{text}"
    );
    let tunnel = said(&["connect", &file]);
    assert!(tunnel.contains(&format!("-L 8000:{socket}")), "{tunnel}");
    signal("INT", child.id());
    assert!(child.wait().unwrap().success());
    assert!(!Path::new(&socket).exists());
    std::fs::remove_file(&file).unwrap();

    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(at("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(at("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let mut command = umaserve(&arguments(&["--connection-file", &file]));
    command.args(["--tls-cert", &at("cert.pem"), "--tls-key", &at("key.pem")]);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    wait_ready(&mut child);
    let text = said(&["status", &file]);
    assert!(
        text.contains("sessions 0 of 256") && !text.contains("as of"),
        "{text}"
    );
    assert!(said(&["connect", &file]).contains("https://127.0.0.1:"));
    signal("INT", child.id());
    assert!(child.wait().unwrap().success());
}

#[test]
fn settings_come_from_the_environment_and_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("umaserve.toml");
    std::fs::write(&file, "max-sessions = 7\nmax-atoms = 50\nno-auth = true\n").unwrap();
    let name = file.display().to_string();
    let mut command = umaserve(&arguments(&["--config", &name]));
    command
        .env("UMASERVE_MAX_ATOMS", "60")
        .env("UMASERVE_TASK", "omat");
    let program = Program::start(command);
    assert!(
        program.text.contains("7 sessions, 60 atoms"),
        "{}",
        program.text
    );
    assert_eq!(program.health()["task"], "omat");
    assert_eq!(program.health()["max_sessions"], 7);
    std::fs::write(&file, "max-session = 7\n").unwrap();
    let text = refused(&["serve", "--model", MODEL, "--config", &name]);
    assert!(text.contains("is max-sessions meant?"), "{text}");
}
