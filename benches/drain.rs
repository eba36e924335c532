//! How long a server with many recorded sessions takes from SIGUSR1 to its end, with everything on
//! disk, and from its next start until every session has a frame again.
//!
//! `cargo bench --bench drain -- [SESSIONS] [ATOMS]`, default 64 sessions of 1,000 atoms.

#[allow(dead_code)]
#[path = "../tests/faults/program.rs"]
mod program;

use std::time::Instant;

use program::{Program, Viewer, files, serve};

fn main() {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|word| word.parse().ok());
    let sessions: usize = numbers.next().unwrap_or(64);
    let atoms: usize = numbers.next().unwrap_or(1_000);
    let place = tempfile::tempdir().expect("temporary directory");
    let directory = place.path().display().to_string();
    let options = ["--record", &directory, "--resume", &directory].map(str::to_owned);

    let mut program = Program::start(serve(&options));
    let viewers = each(sessions, |k| {
        let mut viewer = program.viewer();
        let key = viewer.attach("").session_id;
        let (numbers, positions) = grid(atoms);
        viewer.begin_with(&numbers, &positions, &format!("run{k}"));
        viewer.hear_frames(2);
        (viewer, key)
    });
    let keys: Vec<String> = viewers.iter().map(|(_, key)| key.clone()).collect();
    // They go on hearing, as viewers do.
    let listeners: Vec<_> = viewers
        .into_iter()
        .map(|(mut viewer, _)| std::thread::spawn(move || viewer.hear_end()))
        .collect();
    let begun = Instant::now();
    program.signal("USR1");
    let code = program.wait();
    let drained = begun.elapsed();
    assert_eq!(code, Some(75));
    for listener in listeners {
        listener.join().expect("a viewer");
    }
    assert_eq!(files(place.path(), ".state").len(), sessions);
    assert_eq!(files(place.path(), ".h5").len(), sessions);
    assert_eq!(files(place.path(), ".journal").len(), 0);

    let begun = Instant::now();
    let mut program = Program::start(serve(&options));
    let listening = begun.elapsed();
    each(sessions, |k| {
        let mut viewer: Viewer = program.viewer();
        let state = viewer.attach(&keys[k]);
        assert!(state.resumed && state.running, "session {k}");
        viewer.hear_frames(1);
    });
    let resumed = begun.elapsed();
    program.signal("INT");
    program.wait();
    println!("sessions  atoms  drain s  next server listens s  all sessions have a frame s");
    println!(
        "{sessions:>8}  {atoms:>5}  {:>7.2}  {:>21.2}  {:>27.2}",
        drained.as_secs_f64(),
        listening.as_secs_f64(),
        resumed.as_secs_f64()
    );
}

/// Does something for every session at the same time.
fn each<T: Send>(sessions: usize, act: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let act = &act;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..sessions).map(|k| scope.spawn(move || act(k))).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|done| done.expect("a session")).collect()
    })
}

/// Argon on a cubic grid of 4 Angstrom: 18 neighbours within the cutoff.
fn grid(atoms: usize) -> (Vec<u32>, Vec<f64>) {
    let side = (atoms as f64).cbrt().ceil() as usize;
    let site = |atom: usize| [atom % side, atom / side % side, atom / side / side];
    let positions = (0..atoms).flat_map(|atom| site(atom).map(|x| 4.0 * x as f64));
    (vec![18; atoms], positions.collect())
}
