//! `umaserve supervise`: starts a server again when it fails, inside the allocation that it has.
//!
//! Under MPI the loss of one rank ends all of them. This process stays, starts them again, and the
//! server goes on from its states (`--resume`). It is the only one that gets signals from the batch
//! system and passes them on: SIGUSR1 for "keep everything and end", because `mpirun` and `srun`
//! hand that through to the ranks, while they answer SIGTERM by killing them a second later.

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::cli::SuperviseArgs;

/// Exit code of a server that wants to be started again by the batch system.
const RESUMABLE: i32 = 75;
/// Exit code of a server, or of this process, after too many faults.
const FAULT: u8 = 70;
/// Longest pause before a start.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How soon after SIGTERM the rest of the process group is killed.
const GRACE: Duration = Duration::from_secs(5);
/// How often the child is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Runs the command until it ends in good order. Answers the exit code.
///
/// # Errors
/// The command cannot be started, or signals cannot be watched.
pub fn run(args: &SuperviseArgs) -> Result<u8, String> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1])
        .map_err(|error| format!("cannot watch for signals: {error}"))?;
    let (sender, arrived) = channel();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if sender.send(signal).is_err() {
                    return;
                }
            }
        })
        .map_err(|error| format!("cannot start a thread: {error}"))?;
    let mut restarts = 0u64;
    let mut in_a_row = 0;
    loop {
        let begun = Instant::now();
        let mut child = start(args, restarts)?;
        let (status, told) = attend(&mut child, &arrived)?;
        let name = describe(status);
        match (status.code(), told) {
            (Some(0), _) => return Ok(0),
            (Some(RESUMABLE), _) => {
                tracing::info!("the server has kept its sessions, to be started again");
                return Ok(RESUMABLE as u8);
            }
            // It cannot start like this, however often it tries.
            (Some(code @ (1 | 2)), _) => return Ok(code as u8),
            // Killed by the very signal, before it could hear it.
            (code, Some(told))
                if told != SIGINT
                    && (status.signal() == Some(SIGUSR1) || code == Some(128 + SIGUSR1)) =>
            {
                return Ok(RESUMABLE as u8);
            }
            (_, Some(_)) => {
                tracing::error!("the server has not ended in good order: {name}");
                return Ok(FAULT);
            }
            (_, None) => {}
        }
        if begun.elapsed() >= Duration::from_secs(args.steady_seconds) {
            in_a_row = 0;
        }
        if in_a_row >= args.restarts {
            tracing::error!(in_a_row, "giving up: {name}");
            return Ok(FAULT);
        }
        let pause = pause_before(in_a_row);
        in_a_row += 1;
        restarts += 1;
        tracing::error!(?pause, restarts, "the server is started again: {name}");
        match arrived.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => {}
            // Nothing runs; the states on disk are what there is to resume.
            Ok(SIGUSR1 | SIGTERM) => return Ok(RESUMABLE as u8),
            Ok(_) | Err(RecvTimeoutError::Disconnected) => return Ok(0),
        }
    }
}

/// 0.2 s, 0.5 s, then 1 s, 2 s, 4 s, ...
fn pause_before(failures: u32) -> Duration {
    match failures {
        0 => Duration::from_millis(200),
        1 => Duration::from_millis(500),
        n => Duration::from_secs(1 << (n - 2).min(5)).min(LONGEST_PAUSE),
    }
}

fn start(args: &SuperviseArgs, restarts: u64) -> Result<Child, String> {
    let (program, arguments) = args.command.split_first().ok_or("no command")?;
    Command::new(program)
        .args(arguments)
        .env("UMASERVE_RESTARTS", restarts.to_string())
        // What it leaves behind can be ended with it.
        .process_group(0)
        .spawn()
        .map_err(|error| format!("cannot start {}: {error}", program.to_string_lossy()))
}

/// Waits for the child and passes signals on; the last one, if there was any.
fn attend(child: &mut Child, arrived: &Receiver<i32>) -> Result<(ExitStatus, Option<i32>), String> {
    let mut told = None;
    let mut kill_at: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            // Ranks whose launcher was killed.
            signal(child, Signal::KILL, true);
            return Ok((status, told));
        }
        if kill_at.is_some_and(|at| Instant::now() >= at) {
            signal(child, Signal::KILL, true);
        }
        match arrived.recv_timeout(LOOK) {
            Ok(_) if told.is_some_and(|old| old != SIGUSR1) => {
                tracing::warn!("second signal: ending the server");
                signal(child, Signal::TERM, true);
                kill_at.get_or_insert(Instant::now() + GRACE);
            }
            Ok(SIGINT) => {
                told = Some(SIGINT);
                signal(child, Signal::INT, false);
            }
            // SIGTERM after SIGUSR1 is the batch system's next step: the drain is under way.
            Ok(number) if told.is_some() => told = Some(number),
            Ok(number) => {
                tracing::info!("the server is asked to keep its sessions");
                told = Some(if number == SIGTERM { SIGTERM } else { SIGUSR1 });
                signal(child, Signal::USR1, false);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK),
        }
    }
}

fn signal(child: &Child, signal: Signal, group: bool) {
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else {
        return;
    };
    // Nobody is left to hear it: that is fine.
    let _ = match group {
        true => kill_process_group(pid, signal),
        false => rustix::process::kill_process(pid, signal),
    };
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(70), _) => "a lost or hung rank, or a failed device (exit code 70)".into(),
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "an unknown end".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_limit() {
        let pauses: Vec<u64> = (0..12)
            .map(|n| pause_before(n).as_millis() as u64)
            .collect();
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(pauses[..5], [200, 500, 1000, 2000, 4000]);
        assert_eq!(pauses[11], 30_000);
    }
}
