//! `umaserve connect` and `umaserve status`: find a running server by its connection file.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::cli::{ConnectArgs, StatusArgs};
use crate::connection::{Connection, STALE};
use crate::server::client::{Target, get};

/// How long a server may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where a server may have left its file, if the user does not say.
const PLACES: &[&str] = &["connection.json", "runs/connection.json"];

/// Prints, or opens, what is needed to reach a server; with `--tunnel` keeps the tunnel open.
///
/// # Errors
/// There is no server, in words for the user.
pub fn connect(args: &ConnectArgs) -> Result<String, String> {
    let (connection, from) = find(args.file.as_deref())?;
    if args.print_token {
        return match connection.token {
            Some(token) => Ok(token),
            None => Err(format!("{from}: this server asks for no token")),
        };
    }
    if !connection.is_alive() && !args.even_if_gone {
        return Err(gone(&connection, &from));
    }
    // A file that was fetched from another machine knows the way by which it came.
    let login = args
        .login
        .clone()
        .or_else(|| remote(&from).map(|(host, _)| host));
    let login = login.as_deref();
    let local_port = args.local_port.unwrap_or_else(|| connection.local_port());
    let here = !args.tunnel && remote(&from).is_none() && is_this_host(&connection);
    let page = match here && connection.port > 0 {
        true => connection.page(None, true),
        false => connection.page(Some(local_port), true),
    };
    let tunnel = connection.tunnel(local_port, login);
    if args.json {
        let answer = serde_json::json!({
            "url": page,
            "ssh": tunnel,
            "state": connection.state,
            "token": connection.token,
            "host": connection.host,
            "port": connection.port,
        });
        return Ok(answer.to_string());
    }
    let mut text = summary(&connection);
    let _ = writeln!(text, "tunnel   ssh {}", shell(&tunnel));
    let _ = writeln!(text, "open     {page}");
    if args.open {
        // Before the tunnel, which lasts: the browser tries again by itself.
        open::that_detached(&page)
            .map_err(|error| format!("no browser could be opened: {error}"))?;
    }
    if args.tunnel {
        eprint!("{text}");
        let status = Command::new("ssh")
            .args(&tunnel)
            .status()
            .map_err(|error| format!("ssh: {error}"))?;
        return match status.success() {
            true => Ok(String::new()),
            false => Err(format!("ssh has ended: {status}")),
        };
    }
    Ok(text)
}

/// How a server is: asked directly where it can be reached, else from its file.
///
/// # Errors
/// There is no server, in words for the user.
pub fn status(args: &StatusArgs) -> Result<String, String> {
    let (connection, from) = find(args.file.as_deref())?;
    let asked = match remote(&from) {
        None => ask(&connection),
        Some(_) => Err("on another machine".into()),
    };
    let (numbers, note) = match asked {
        Ok(numbers) => (numbers, String::new()),
        Err(_) if !connection.is_alive() => return Err(gone(&connection, &from)),
        Err(reason) => {
            let age = connection.age().as_secs();
            let note = format!("as of {age} s ago, from {from} (the server itself: {reason})\n");
            (connection.status.clone(), note)
        }
    };
    match args.json {
        true => Ok(numbers.to_string()),
        false => Ok(summary(&connection) + &table(&numbers) + &note),
    }
}

fn ask(connection: &Connection) -> Result<Value, String> {
    let certificate = match &connection.certificate {
        None => None,
        Some(text) => Some(STANDARD.decode(text).map_err(|error| error.to_string())?),
    };
    let target = match (&connection.unix_socket, connection.port) {
        (Some(path), 0) => Target::Unix(path.clone()),
        (_, port) => Target::Tcp {
            host: connection.listen.clone(),
            port,
            certificate,
        },
    };
    if !is_this_host(connection) && connection.listen.starts_with("127.") {
        return Err(format!(
            "listens on a loopback address of {}",
            connection.host
        ));
    }
    let path = format!("{}/serve/status", connection.path_prefix);
    let (status, body) = get(&target, &path, connection.token.as_deref(), PATIENCE)?;
    match status {
        200 => serde_json::from_str(&body).map_err(|error| error.to_string()),
        _ => Err(format!("answers {status}: {}", body.trim())),
    }
}

/// The file to use: the one named, or the first that is there.
fn find(file: Option<&str>) -> Result<(Connection, String), String> {
    if let Some(file) = file {
        if let Some((host, path)) = remote(file) {
            return Ok((fetch(&host, &path)?, file.to_owned()));
        }
        let path = Path::new(file);
        let path = match path.is_dir() {
            true => path.join("connection.json"),
            false => path.to_owned(),
        };
        return Ok((Connection::read(&path)?, path.display().to_string()));
    }
    let found: Vec<&str> = PLACES
        .iter()
        .copied()
        .filter(|place| Path::new(place).is_file())
        .collect();
    match found[..] {
        [first, ..] => Ok((Connection::read(Path::new(first))?, first.to_owned())),
        [] => Err(format!(
            "name the connection file (umaserve serve --connection-file): there is no {} here",
            PLACES.join(" nor ")
        )),
    }
}

/// Host and path of `[USER@]HOST:PATH`, if it is one and no file of that name is here.
fn remote(file: &str) -> Option<(String, String)> {
    let (host, path) = file.split_once(':')?;
    let is_remote = !host.is_empty() && !host.contains('/') && !Path::new(file).exists();
    (is_remote && !host.starts_with('-')).then(|| (host.to_owned(), path.to_owned()))
}

/// Reads a connection file on another machine.
fn fetch(host: &str, path: &str) -> Result<Connection, String> {
    let output = Command::new("ssh")
        .args([host, "cat", "--", &quote(path)])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("ssh {host}: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "{host}:{path} cannot be read through ssh: {}",
            output.status
        ));
    }
    Connection::parse(&String::from_utf8_lossy(&output.stdout))
        .map_err(|reason| format!("{host}:{path}: {reason}"))
}

fn gone(connection: &Connection, from: &str) -> String {
    let Connection { host, state, .. } = connection;
    let age = connection.age().as_secs();
    match state.as_str() {
        "stopped" => format!("{from}: this server was stopped {age} s ago"),
        "failed" => format!("{from}: this server failed {age} s ago"),
        _ => format!(
            "{from}: the server on {host} has not been heard of for {age} s (more than {} s): \
             killed, or its host is gone",
            STALE.as_secs()
        ),
    }
}

fn summary(connection: &Connection) -> String {
    let job = match &connection.job_id {
        Some(job) => format!(", job {job}"),
        None => String::new(),
    };
    format!(
        "umaserve {} on {}{job}: {}\n",
        connection.version, connection.host, connection.state
    )
}

fn table(numbers: &Value) -> String {
    let text = |name: &str| match &numbers[name] {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    };
    let mut lines = String::new();
    for (name, value) in [
        ("state", text("state")),
        (
            "model",
            format!("{} (task {})", text("model"), text("task")),
        ),
        (
            "up",
            format!(
                "{}, {} restarts",
                time(&numbers["uptime_s"]),
                text("restarts")
            ),
        ),
        (
            "sessions",
            format!("{} of {}", text("sessions"), text("max_sessions")),
        ),
        ("queue", format!("{} jobs", text("queued_jobs"))),
        (
            "steps",
            format!("{} ({} per second)", text("steps"), text("steps_per_s")),
        ),
        ("recorded", bytes(&numbers["bytes_recorded"])),
    ] {
        let _ = writeln!(lines, "{name:<9}{value}");
    }
    let _ = writeln!(lines, "{:>5}  {:20}  {:>6}  device", "rank", "host", "busy");
    for rank in numbers["ranks"].as_array().into_iter().flatten() {
        let busy = match rank["alive"].as_bool() {
            Some(false) => "lost".to_owned(),
            _ => format!("{:.0} %", 100.0 * rank["busy"].as_f64().unwrap_or(0.0)),
        };
        let _ = writeln!(
            lines,
            "{:>5}  {:20}  {busy:>6}  {}",
            rank["rank"].to_string(),
            rank["host"].as_str().unwrap_or("-"),
            rank["device"].as_str().unwrap_or("-"),
        );
    }
    lines
}

/// Seconds in the words of a clock.
fn time(seconds: &Value) -> String {
    let Some(s) = seconds.as_f64().map(|s| s as u64) else {
        return "-".into();
    };
    match (s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, min, s) => format!("{min} min {s} s"),
        (0, h, min, _) => format!("{h} h {min} min"),
        (d, h, ..) => format!("{d} d {h} h"),
    }
}

fn bytes(number: &Value) -> String {
    let Some(bytes) = number.as_f64() else {
        return "-".into();
    };
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes / unit),
        None => format!("{bytes:.0} bytes"),
    }
}

fn is_this_host(connection: &Connection) -> bool {
    connection.host == crate::config::host_name()
}

/// Words of a command for a shell to read.
fn shell(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| quote(word)).collect();
    words.join(" ")
}

fn quote(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./-_".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_here_and_there_are_told_apart() {
        let there = |text| remote(text);
        assert_eq!(there("runs/connection.json"), None);
        assert_eq!(
            there("ada@login1:runs/c.json"),
            Some(("ada@login1".into(), "runs/c.json".into()))
        );
        assert_eq!(there("./a:b"), None);
        assert_eq!(there("-oProxyCommand=x:y"), None);
    }

    #[test]
    fn words_reach_a_shell_as_they_are() {
        assert_eq!(quote("me@host"), "me@host");
        assert_eq!(quote("8000:[fd00::7]:1"), "'8000:[fd00::7]:1'");
        assert_eq!(quote("a b'c"), r"'a b'\''c'");
        assert_eq!(quote("$(x)"), "'$(x)'");
        assert_eq!(quote(""), "''");
    }

    #[test]
    fn times_and_sizes_are_those_of_people() {
        let of = |f: fn(&Value) -> String, number: f64| f(&serde_json::json!(number));
        assert_eq!(of(time, 42.0), "42 s");
        assert_eq!(of(time, 3599.0), "59 min 59 s");
        assert_eq!(of(time, 90_000.0), "1 d 1 h");
        assert_eq!(of(bytes, 999.0), "999 bytes");
        assert_eq!(of(bytes, 12_345_678.0), "12.3 MB");
        assert_eq!(time(&Value::Null), "-");
    }

    #[test]
    fn the_table_shows_every_rank() {
        let numbers = serde_json::json!({
            "state": "ready", "sessions": 3, "max_sessions": 256, "steps_per_s": 12.5,
            "ranks": [
                {"rank": 0, "host": "n1", "device": "serves", "alive": true, "busy": 0.0},
                {"rank": 1, "host": "n2", "device": "cpu", "alive": true, "busy": 0.834},
                {"rank": 2, "host": "n2", "device": "cpu", "alive": false, "busy": 0.0},
            ],
        });
        let text = table(&numbers);
        assert!(text.contains("3 of 256"), "{text}");
        assert!(
            text.contains("83 %  cpu") && text.contains("lost  cpu"),
            "{text}"
        );
    }
}
