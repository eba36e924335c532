//! What recording costs: `cargo bench --bench recording`.
//!
//! For each size: the frames per second that the writer sustains, the size on disk beside the
//! plain numbers (positions, velocities and forces as f32, once), and, at 100 frames per second,
//! the share of a processor that the writer takes and the share of the run that `send` holds up
//! the caller.

use std::f64::consts::TAU;
use std::time::{Duration, Instant};

use umaserve::trajectory::{
    FrameData, Header, Provenance, RecordMessage, Recorder, RecorderSettings,
};

const FRAMES_PER_SECOND: u32 = 100;
const PACED: Duration = Duration::from_secs(3);

fn main() {
    println!(
        "{:>7} {:>12} {:>10} {:>14} {:>14} {:>14}",
        "atoms", "frames/s", "MB/s", "disk/plain", "writer share", "send share"
    );
    for atoms in [3, 24, 192, 1000, 10_000] {
        let frames = (2_000_000 / atoms).clamp(200, 50_000);
        let fast = sustained(atoms, frames);
        let (writer, send) = paced(atoms);
        println!(
            "{atoms:>7} {:>12.0} {:>10.1} {:>14.2} {:>13.3}% {:>13.4}%",
            fast.frames_per_second,
            fast.frames_per_second * (36 * atoms) as f64 / 1e6,
            fast.disk_per_plain,
            100.0 * writer,
            100.0 * send,
        );
    }
}

struct Sustained {
    frames_per_second: f64,
    disk_per_plain: f64,
}

fn sustained(atoms: usize, frames: usize) -> Sustained {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut settings = RecorderSettings::new(directory.path());
    settings.send_timeout = Duration::from_secs(60);
    let recorder = Recorder::start(settings).expect("recorder starts");
    open(&recorder, atoms);
    // Made before the clock starts, and few enough to stay in the cache of nobody.
    let pool: Vec<FrameData> = (0..64).map(|i| frame(atoms, i)).collect();
    let start = Instant::now();
    for index in 0..frames {
        let frame = pool[index % pool.len()].clone();
        let message = RecordMessage::Frame { key: 0, frame };
        recorder.send(message).expect("taken");
    }
    let status = recorder.finish();
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!(status.frames_written, frames as u64, "{status:?}");
    let path = directory.path().join("bench.h5");
    let bytes = std::fs::metadata(path).expect("written").len() as f64;
    Sustained {
        frames_per_second: frames as f64 / seconds,
        disk_per_plain: bytes / (36 * atoms * frames) as f64,
    }
}

/// Shares of the run time at a fixed rate: (writer thread busy, caller held up in `send`).
fn paced(atoms: usize) -> (f64, f64) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let recorder = Recorder::start(RecorderSettings::new(directory.path())).expect("starts");
    open(&recorder, atoms);
    let start = Instant::now();
    let mut sending = Duration::ZERO;
    let mut index = 0;
    while start.elapsed() < PACED {
        let frame = frame(atoms, index as usize);
        let begin = Instant::now();
        let message = RecordMessage::Frame { key: 0, frame };
        recorder.send(message).expect("taken");
        sending += begin.elapsed();
        index += 1;
        let next = start + Duration::from_secs(1) / FRAMES_PER_SECOND * index;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let seconds = start.elapsed().as_secs_f64();
    let status = recorder.finish();
    (
        status.busy_seconds / seconds,
        sending.as_secs_f64() / seconds,
    )
}

fn open(recorder: &Recorder, atoms: usize) {
    let header = Header {
        species: (0..atoms).map(|i| [8, 1, 1][i % 3]).collect(),
        masses: (0..atoms).map(|i| [15.999, 1.008, 1.008][i % 3]).collect(),
        periodic: [true; 3],
        has_stress: true,
        timestep_fs: 0.5,
        provenance: Provenance::default(),
    };
    let message = RecordMessage::Open {
        key: 0,
        label: "bench".to_owned(),
        header,
    };
    recorder.send(message).expect("taken");
}

/// Atoms that oscillate about places on a grid, each with its own frequency and phase: as smooth
/// in time as molecular dynamics, with mantissas as full.
fn frame(atoms: usize, index: usize) -> FrameData {
    let side = (atoms as f64).cbrt().ceil();
    let time = 0.5 * index as f64;
    let mut positions = Vec::with_capacity(atoms);
    let mut velocities = Vec::with_capacity(atoms);
    let mut forces = Vec::with_capacity(atoms);
    for i in 0..atoms {
        let place = [
            i as f64 % side,
            (i as f64 / side).floor() % side,
            (i as f64 / side / side).floor(),
        ];
        let wave = [0, 1, 2].map(|k| {
            let seed = ((3 * i + k) as f64 * 0.618_033_988_749_895).fract();
            let omega = TAU / (9.0 + 30.0 * seed);
            (omega, (omega * time + TAU * 7.0 * seed).sin_cos())
        });
        positions.push([0, 1, 2].map(|k| 2.2 * place[k] + 0.13 * wave[k].1.0));
        velocities.push(wave.map(|(omega, (_, cos))| 1.3 * omega * cos));
        forces.push(wave.map(|(omega, (sin, _))| -16.0 * omega * omega * sin));
    }
    FrameData {
        step: index as u64,
        time_fs: time,
        positions,
        velocities,
        forces,
        energy_ev: -470.0 * atoms as f64 + time.sin(),
        kinetic_ev: 0.04 * atoms as f64 + time.cos(),
        temperature_kelvin: 300.0 + 10.0 * time.sin(),
        stress: Some([[1e-3 * time.sin(); 3]; 3]),
        cell: [[30.0, 0.0, 0.0], [0.0, 30.0, 0.0], [0.0, 0.0, 30.0]],
    }
}
