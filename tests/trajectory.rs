//! Recordings: what is written is read back, by this program and by the readers people use; kills,
//! full disks and lost directories.
#![cfg(feature = "hdf5")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use umaserve::trajectory::{
    FrameData, Header, Provenance, RecordMessage, RecordNoticeKind, RecordedEvent, Recorder,
    RecorderSettings, Trajectory, TrajectoryError, cli, repair,
};

/// Set in a child process: the directory to record into.
const CHILD: &str = "UMASERVE_TEST_RECORD_INTO";

const ELEMENTS: [u8; 6] = [1, 6, 8, 14, 29, 118];

fn header(atoms: usize, periodic: [bool; 3], has_stress: bool) -> Header {
    Header {
        species: (0..atoms).map(|i| ELEMENTS[i % 5]).collect(),
        masses: (0..atoms)
            .map(|i| [1.008, 12.011, 15.999, 28.085, 63.546][i % 5])
            .collect(),
        periodic,
        has_stress,
        timestep_fs: 0.5,
        provenance: Provenance {
            version: "0.1.0".to_owned(),
            checkpoint: "nano-1p2.pt".to_owned(),
            checkpoint_digest: "ab12".to_owned(),
            task: "omol".to_owned(),
            charge: -1,
            spin: 2,
            method: "langevin".to_owned(),
            parameters: vec![
                ("friction_per_fs".to_owned(), "0.01".to_owned()),
                ("temperature_kelvin".to_owned(), "300".to_owned()),
            ],
            seed: u64::MAX,
            precision: "f32".to_owned(),
            device: "cpu".to_owned(),
        },
    }
}

/// A frame made from its number alone, so that a reader can check any frame.
fn frame(atoms: usize, index: u64, cell: [[f64; 3]; 3], has_stress: bool) -> FrameData {
    let number = |i: usize, k: usize, salt: u64| {
        let mixed = (index * 1_000_003 + (3 * i + k) as u64 * 7919 + salt * 104_729)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed >> 40) as f64 / (1u64 << 24) as f64 - 0.5
    };
    let vectors = |salt: u64, scale: f64| -> Vec<[f64; 3]> {
        (0..atoms)
            .map(|i| [0, 1, 2].map(|k| scale * number(i, k, salt)))
            .collect()
    };
    FrameData {
        step: 10 * index,
        time_fs: 5.0 * index as f64,
        positions: vectors(1, 20.0),
        velocities: vectors(2, 0.1),
        forces: vectors(3, 4.0),
        energy_ev: -1000.0 * atoms as f64 + number(0, 0, 4),
        kinetic_ev: 1.0 + number(0, 0, 5),
        temperature_kelvin: 300.0 + number(0, 0, 6),
        stress: has_stress.then(|| {
            let s = [0, 1, 2, 3, 4, 5].map(|k| 0.01 * number(k, 0, 7));
            [[s[0], s[5], s[4]], [s[5], s[1], s[3]], [s[4], s[3], s[2]]]
        }),
        cell,
    }
}

fn rounded(mut frame: FrameData) -> FrameData {
    for values in [
        &mut frame.positions,
        &mut frame.velocities,
        &mut frame.forces,
    ] {
        for x in values.as_flattened_mut() {
            *x = f64::from(*x as f32);
        }
    }
    frame
}

fn start(directory: &Path) -> Recorder {
    Recorder::start(RecorderSettings {
        flush_interval: Duration::from_millis(20),
        ..RecorderSettings::new(directory)
    })
    .expect("recorder starts")
}

/// Polls until `done`; fails instead of hanging.
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "waiting for: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The kinds of systems a recording may hold.
struct Case {
    label: &'static str,
    atoms: usize,
    periodic: [bool; 3],
    cell: [[f64; 3]; 3],
    has_stress: bool,
    frames: u64,
}

const CASES: [Case; 4] = [
    Case {
        label: "molecule",
        atoms: 9,
        periodic: [false; 3],
        cell: [[0.0; 3]; 3],
        has_stress: false,
        frames: 700,
    },
    Case {
        label: "triclinic",
        atoms: 24,
        periodic: [true; 3],
        cell: [[9.0, 0.0, 0.0], [-2.0, 8.5, 0.0], [1.0, 0.5, 10.0]],
        has_stress: true,
        frames: 300,
    },
    Case {
        label: "slab",
        atoms: 1000,
        periodic: [true, true, false],
        cell: [[12.0, 0.0, 0.0], [0.0, 13.0, 0.0], [0.0, 0.0, 30.0]],
        has_stress: true,
        frames: 70,
    },
    Case {
        label: "atom",
        atoms: 1,
        periodic: [false; 3],
        cell: [[0.0; 3]; 3],
        has_stress: false,
        frames: 1,
    },
];

impl Case {
    fn header(&self) -> Header {
        header(self.atoms, self.periodic, self.has_stress)
    }

    fn frame(&self, index: u64) -> FrameData {
        frame(self.atoms, index, self.cell, self.has_stress)
    }

    fn record(&self, recorder: &Recorder, key: u64) {
        send(
            recorder,
            RecordMessage::Open {
                key,
                label: self.label.to_owned(),
                header: self.header(),
            },
        );
        for index in 0..self.frames {
            let frame = self.frame(index);
            send(recorder, RecordMessage::Frame { key, frame });
            if index == self.frames / 2 {
                send(
                    recorder,
                    RecordMessage::Event {
                        key,
                        step: 10 * index,
                        text: "moved atom 3, Δ = 0.5 Å".to_owned(),
                    },
                );
            }
        }
    }
}

fn send(recorder: &Recorder, message: RecordMessage) {
    recorder.send(message).expect("taken");
}

fn record_cases(directory: &Path) -> Vec<PathBuf> {
    let recorder = start(directory);
    for (key, case) in CASES.iter().enumerate() {
        case.record(&recorder, key as u64);
    }
    let status = recorder.finish();
    let total: u64 = CASES.iter().map(|c| c.frames).sum();
    assert_eq!(status.frames_written, total);
    assert_eq!(status.frames_safe, total);
    assert_eq!(status.frames_dropped, 0, "{status:?}");
    assert_eq!(status.last_error, None);
    CASES
        .iter()
        .map(|case| directory.join(format!("{}.h5", case.label)))
        .collect()
}

#[test]
fn a_recording_reads_back_as_it_was_sent() {
    let directory = tempfile::tempdir().expect("temporary directory");
    for (case, path) in CASES.iter().zip(record_cases(directory.path())) {
        let trajectory = Trajectory::open(&path).expect("opens");
        assert_eq!(trajectory.header(), &case.header());
        assert!(!trajectory.is_unfinished());
        let frames = trajectory
            .frames(0..trajectory.len())
            .expect("frames are readable");
        let sent: Vec<FrameData> = (0..case.frames).map(|i| rounded(case.frame(i))).collect();
        assert!(frames == sent, "{}: frames differ", case.label);
        assert_eq!(
            trajectory.events().expect("events are readable"),
            [RecordedEvent {
                step: 10 * (case.frames / 2),
                text: "moved atom 3, Δ = 0.5 Å".to_owned(),
            }]
        );
        let error = trajectory.frames(0..trajectory.len() + 1).unwrap_err();
        assert!(error.to_string().contains("frames 0.."), "{error}");
        let left: Vec<_> = std::fs::read_dir(directory.path())
            .expect("directory")
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.contains("journal"))
            .collect();
        assert!(left.is_empty(), "journals left behind: {left:?}");
    }
}

#[test]
fn mdanalysis_ase_and_pyh5md_read_the_same_numbers() {
    let Ok(python) = std::env::var("UMASERVE_PYTHON") else {
        println!("skipped: UMASERVE_PYTHON names no Python with tests/python/requirements.txt");
        return;
    };
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut arguments = Vec::new();
    for (case, path) in CASES.iter().zip(record_cases(directory.path())) {
        let header = case.header();
        let frames: Vec<serde_json::Value> = (0..case.frames)
            .map(|index| {
                let f = case.frame(index);
                serde_json::json!({
                    "step": f.step, "time_fs": f.time_fs, "positions": f.positions,
                    "velocities": f.velocities, "forces": f.forces, "energy_ev": f.energy_ev,
                    "kinetic_ev": f.kinetic_ev, "temperature_kelvin": f.temperature_kelvin,
                    "stress": f.stress, "cell": f.cell,
                })
            })
            .collect();
        let expected = serde_json::json!({
            "species": header.species, "masses": header.masses, "periodic": header.periodic,
            "events": [[10 * (case.frames / 2), "moved atom 3, Δ = 0.5 Å"]],
            "provenance": {
                "version": "0.1.0", "checkpoint": "nano-1p2.pt", "checkpoint_digest": "ab12",
                "task": "omol", "charge": -1, "spin": 2, "method": "langevin",
                "seed": u64::MAX, "precision": "f32", "device": "cpu", "timestep_fs": 0.5,
            },
            "frames": frames,
        });
        let json = path.with_extension("json");
        std::fs::write(&json, expected.to_string()).expect("written");
        arguments.extend([json, path]);
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/read_trajectory.py");
    let output = Command::new(&python)
        .arg(script)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("UMASERVE_PYTHON={python}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for reader in [
        "layout",
        "mdanalysis",
        "ase_through_znh5md",
        "through_pyh5md",
    ] {
        assert_eq!(
            text.matches(reader).count(),
            CASES.len(),
            "{reader}: {text}"
        );
    }
}

#[test]
fn a_taken_name_gets_a_number_and_nothing_is_overwritten() {
    let directory = tempfile::tempdir().expect("temporary directory");
    std::fs::write(directory.path().join("run_1.h5"), "precious").expect("written");
    let recorder = start(directory.path());
    for atoms in [3, 4] {
        // A change of the atoms is a new file of the same label.
        send(
            &recorder,
            RecordMessage::Open {
                key: 1,
                label: "../run/1".to_owned(),
                header: header(atoms, [false; 3], false),
            },
        );
        let frame = frame(atoms, 0, [[0.0; 3]; 3], false);
        send(&recorder, RecordMessage::Frame { key: 1, frame });
    }
    send(&recorder, RecordMessage::Close { key: 1, step: None });
    wait_until("both files closed", || {
        recorder.status().frames_written == 2
    });
    let notices = recorder.take_notices();
    let status = recorder.finish();
    assert_eq!((status.open_files, status.frames_dropped), (0, 0));
    let kinds: Vec<_> = notices.into_iter().map(|n| n.kind).collect();
    let path = |name: &str| directory.path().join(name);
    let opened = |path| RecordNoticeKind::Opened { path };
    let closed = |path| RecordNoticeKind::Closed { path, frames: 1 };
    let first = path("run_1-2.h5");
    let second = path("run_1-3.h5");
    assert_eq!(
        kinds[..3],
        [
            opened(first.clone()),
            closed(first.clone()),
            opened(second.clone())
        ]
    );
    for (path, atoms) in [(first, 3), (second, 4)] {
        let trajectory = Trajectory::open(&path).expect("opens");
        assert_eq!(
            (trajectory.len(), trajectory.header().species.len()),
            (1, atoms)
        );
    }
    let untouched = std::fs::read(path("run_1.h5")).expect("still there");
    assert_eq!(untouched, b"precious");
}

#[test]
fn a_running_recording_can_be_read_but_not_repaired() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let recorder = start(directory.path());
    CASES[1].record(&recorder, 0);
    wait_until("frames in the file", || {
        recorder.status().frames_written >= 256
    });
    let path = directory.path().join("triclinic.h5");
    let trajectory = Trajectory::open(&path).expect("opens while it is written");
    assert!(trajectory.is_unfinished());
    assert_eq!(trajectory.len(), 256, "two whole batches of 128 frames");
    let frames = trajectory.frames(255..256).expect("readable");
    assert!(frames == [rounded(CASES[1].frame(255))]);
    let error = repair(&path).unwrap_err().to_string();
    assert!(error.contains("a running umaserve is recording"), "{error}");
    assert!(error.contains("triclinic.h5"), "{error}");
    drop(trajectory);
    drop(recorder);
    assert_eq!(Trajectory::open(&path).expect("opens").len(), 300);
    let report = repair(&path).expect("nothing to do");
    assert!(!report.changed);
    assert_eq!((report.frames, report.frames_from_journal), (300, 0));
}

#[test]
fn a_run_without_frames_leaves_no_file() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let recorder = start(directory.path());
    for key in [1, 2] {
        let open = RecordMessage::Open {
            key,
            label: "stopped-at-once".to_owned(),
            header: header(3, [false; 3], false),
        };
        send(&recorder, open);
        let event = RecordMessage::Event {
            key,
            step: 0,
            text: "edit".to_owned(),
        };
        send(&recorder, event);
    }
    let frame = frame(3, 0, [[0.0; 3]; 3], false);
    send(&recorder, RecordMessage::Frame { key: 2, frame });
    send(&recorder, RecordMessage::Close { key: 1, step: None });
    recorder.finish();
    let left: Vec<String> = std::fs::read_dir(directory.path())
        .expect("directory")
        .map(|entry| entry.expect("entry").file_name().display().to_string())
        .collect();
    assert_eq!(left, ["stopped-at-once-2.h5"]);
}

#[test]
fn frames_that_do_not_fit_are_refused_by_name() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let recorder = start(directory.path());
    let open = |label: &str, header| RecordMessage::Open {
        key: 5,
        label: label.to_owned(),
        header,
    };
    send(&recorder, open("empty", Header::default()));
    send(&recorder, open("fine", header(3, [false; 3], false)));
    for atoms in [3, 2, 3] {
        let frame = frame(atoms, 0, [[0.0; 3]; 3], false);
        send(&recorder, RecordMessage::Frame { key: 5, frame });
    }
    let stray = frame(3, 0, [[0.0; 3]; 3], false);
    send(
        &recorder,
        RecordMessage::Frame {
            key: 6,
            frame: stray,
        },
    );
    wait_until("all frames seen", || recorder.status().frames_dropped == 2);
    let errors: Vec<String> = recorder
        .take_notices()
        .into_iter()
        .filter_map(|n| match n.kind {
            RecordNoticeKind::Failed { error } => Some(error),
            _ => None,
        })
        .collect();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors[0].contains("at least one atom"), "{errors:?}");
    assert!(errors[1].contains("2 positions"), "{errors:?}");
    let status = recorder.finish();
    assert_eq!((status.frames_written, status.frames_dropped), (2, 2));
}

#[test]
fn info_and_export_say_what_was_recorded() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let paths = record_cases(directory.path());
    let text = cli::info(&paths[1]).expect("summary");
    for part in [
        "complete",
        "formula              C5H5Cu4O5Si5",
        "frames               300",
        "steps                0 to 2990",
        "time                 0 to 1495 fs",
        "9.0000 8.7321 10.0623 Angstrom",
        "periodic yes yes yes",
        "nano-1p2.pt (ab12)",
        "omol, charge -1, spin 2",
        "friction_per_fs    0.01",
        "seed                 18446744073709551615",
        "step 1500          moved atom 3",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }

    let output = directory.path().join("out.extxyz");
    let said = cli::export(&paths[1], &output, 7).expect("exported");
    assert!(said.contains("43 of 300 frames"), "{said}");
    let file = BufReader::new(std::fs::File::open(&output).expect("written"));
    let frames = umaserve::structure_file::read_frames(file, "out.extxyz", 1000);
    let mut read = 0;
    for (frame, index) in frames.zip((0..).step_by(7)) {
        let frame = frame.expect("a good frame");
        let sent = rounded(CASES[1].frame(index));
        assert_eq!(frame.system.positions, sent.positions);
        assert_eq!(frame.system.numbers, CASES[1].header().species);
        assert_eq!(frame.system.cell.vectors, sent.cell);
        assert_eq!(frame.system.charge, -1);
        assert_eq!(frame.energy, Some(sent.energy_ev));
        assert_eq!(frame.forces, Some(sent.forces));
        assert_eq!(frame.stress, sent.stress);
        let momenta = frame
            .array("momenta")
            .and_then(|a| a.vectors())
            .expect("momenta");
        let mass = CASES[1].header().masses[1];
        assert_eq!(momenta[1], sent.velocities[1].map(|v| v * mass));
        read += 1;
    }
    assert_eq!(read, 43);

    for (output, stride) in [(&output, 0), (&paths[1], 1)] {
        assert!(cli::export(&paths[1], output, stride).is_err());
    }
    assert_eq!(Trajectory::open(&paths[1]).expect("untouched").len(), 300);
    let said = cli::repair(&paths[1]).expect("fine");
    assert!(said.ends_with("nothing to repair, 300 frames"), "{said}");
}

#[test]
fn foreign_and_damaged_files_are_refused_and_left_as_they_are() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("x.h5");
    let missing = Trajectory::open(&path).unwrap_err().to_string();
    assert!(missing.contains("x.h5"), "{missing}");
    std::fs::write(
        &path,
        "not HDF5, but long enough to hold a superblock of it",
    )
    .expect("written");
    assert!(
        repair(&path)
            .unwrap_err()
            .to_string()
            .contains("not an HDF5 file")
    );

    let foreign = hdf5::File::with_options()
        .with_fapl(|p| p.libver_v110())
        .create(&path)
        .expect("created");
    foreign.create_group("particles").expect("created");
    drop(foreign);
    let before = std::fs::read(&path).expect("readable");
    for error in [Trajectory::open(&path).err(), repair(&path).err()] {
        let error = error.expect("refused").to_string();
        assert!(error.contains("not a recording of umaserve"), "{error}");
    }
    assert!(std::fs::read(&path).expect("readable") == before);

    let whole = std::fs::read(&record_cases(directory.path())[0]).expect("readable");
    for share in [0, 1, 10, 50, 90, 99] {
        std::fs::write(&path, &whole[..whole.len() * share / 100]).expect("written");
        let _ = Trajectory::open(&path).map(|t| t.frames(0..t.len()));
        if let Ok(report) = repair(&path) {
            check_prefix(&CASES[0], &path, report.frames);
        }
    }
}

#[test]
fn an_unwritable_directory_is_named_at_the_start() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let file = directory.path().join("file");
    std::fs::write(&file, "").expect("written");
    let error = Recorder::start(RecorderSettings::new(file.join("runs"))).unwrap_err();
    assert!(matches!(error, TrajectoryError::File { .. }));
    assert!(error.to_string().contains("file/runs"), "{error}");
}

#[test]
fn a_lost_directory_drops_frames_and_recording_resumes_when_it_is_back() {
    let parent = tempfile::tempdir().expect("temporary directory");
    let directory = parent.path().join("runs");
    let recorder = start(&directory);
    std::fs::remove_dir_all(&directory).expect("removed");
    std::fs::write(&directory, "in the way").expect("written");
    let case = &CASES[0];
    send(
        &recorder,
        RecordMessage::Open {
            key: 0,
            label: case.label.to_owned(),
            header: case.header(),
        },
    );
    for index in 0..5 {
        let frame = case.frame(index);
        send(&recorder, RecordMessage::Frame { key: 0, frame });
    }
    wait_until("drops", || recorder.status().frames_dropped == 5);
    let notices = recorder.take_notices();
    assert!(
        matches!(&notices[0].kind, RecordNoticeKind::Failed { error } if error.contains("runs")),
        "{notices:?}"
    );
    std::fs::remove_file(&directory).expect("removed");
    let mut notices = Vec::new();
    wait_until("recovery", || {
        notices.extend(recorder.take_notices());
        notices
            .iter()
            .any(|n| n.kind == RecordNoticeKind::Recovered { frames_dropped: 5 })
    });
    let frame = case.frame(5);
    send(&recorder, RecordMessage::Frame { key: 0, frame });
    recorder.finish();
    let trajectory = Trajectory::open(&directory.join("molecule.h5")).expect("opens");
    let frames = trajectory.frames(0..1).expect("readable");
    assert!(frames == [rounded(case.frame(5))]);
    let events = trajectory.events().expect("readable");
    assert!(
        events[0].text.starts_with("5 frames were dropped"),
        "{events:?}"
    );
}

/// Re-runs test `name` of this binary with `CHILD` set, under an optional shell preamble.
fn child(name: &str, directory: &Path, preamble: Option<&str>) -> Command {
    let binary = std::env::current_exe().expect("test binary");
    let mut command = match preamble {
        None => Command::new(binary),
        Some(preamble) => {
            let mut shell = Command::new("sh");
            shell
                .arg("-c")
                .arg(format!("{preamble}; exec \"$0\" \"$@\""))
                .arg(binary);
            shell
        }
    };
    command
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, directory);
    command
}

#[test]
fn a_full_disk_is_reported_and_never_stops_the_program() {
    let name = "a_full_disk_is_reported_and_never_stops_the_program";
    let case = &CASES[1];
    if let Some(directory) = std::env::var_os(CHILD) {
        let recorder = start(Path::new(&directory));
        let open = RecordMessage::Open {
            key: 0,
            label: case.label.to_owned(),
            header: case.header(),
        };
        send(&recorder, open);
        for index in 0..4000 {
            let frame = case.frame(index);
            send(&recorder, RecordMessage::Frame { key: 0, frame });
        }
        wait_until("drops", || recorder.status().frames_dropped > 1000);
        let failed = recorder
            .take_notices()
            .into_iter()
            .any(|n| matches!(n.kind, RecordNoticeKind::Failed { .. }));
        assert!(failed);
        let status = recorder.finish();
        assert!(status.last_error.is_some(), "{status:?}");
        assert!(status.frames_written >= 128, "{status:?}");
        assert_eq!(
            status.frames_safe + status.frames_dropped,
            4000,
            "{status:?}"
        );
        println!("safe {}", status.frames_safe);
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    // No file may grow beyond this (the unit is 512 or 1,024 bytes); writing more is an error
    // as on a full disk.
    let limit = "ulimit -f 1200; trap '' XFSZ";
    let output = child(name, directory.path(), Some(limit))
        .output()
        .expect("child runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let safe: u64 = text
        .lines()
        .find_map(|line| line.rsplit_once("safe ")?.1.parse().ok())
        .expect("the child says how many frames are safe");
    let path = directory.path().join("triclinic.h5");
    let report = repair(&path).expect("repairable");
    assert!(report.frames >= safe, "{report:?}, {safe} safe");
    check_prefix(case, &path, report.frames);
}

/// The file must open plainly and hold exactly the first `frames` frames.
fn check_prefix(case: &Case, path: &Path, frames: u64) {
    let trajectory = Trajectory::open(path).expect("opens plainly");
    assert!(!trajectory.is_unfinished());
    assert_eq!(trajectory.len() as u64, frames);
    for (index, read) in (0..).zip(trajectory.frames(0..trajectory.len()).expect("readable")) {
        assert!(read == rounded(case.frame(index)), "frame {index} differs");
    }
}

#[test]
fn a_killed_recording_is_repaired_up_to_the_last_flush() {
    let name = "a_killed_recording_is_repaired_up_to_the_last_flush";
    if let Some(directory) = std::env::var_os(CHILD) {
        record_until_killed(Path::new(&directory));
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut random = 12_345_u64;
    let mut rounds_with_frames = 0;
    let mut from_journal = 0;
    let mut unfinished = 0;
    for round in 0..24 {
        let into = directory.path().join(round.to_string());
        let mut process = child(name, &into, None)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("child starts");
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        // Which recording has how many frames that are safe.
        let mut said = lines.map_while(Result::ok).filter_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["safe", key, frames] => {
                    Some((key.parse::<usize>().ok()?, frames.parse::<u64>().ok()?))
                }
                _ => None,
            }
        });
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let mut safe = [0; CASES.len()];
        // Some rounds are killed around the creation of the files, most in the middle of it all:
        // after so many words of frames that are safe, so that a busy machine gets there too.
        if round % 6 != 0 {
            let mut words = 1 + (random >> 33) % 12;
            while words > 0 {
                let (key, frames) = said.next().expect("the child records");
                safe[key] = frames;
                words -= u64::from(frames > 0);
            }
        }
        std::thread::sleep(Duration::from_micros(random >> 47));
        process.kill().expect("killed");
        process.wait().expect("gone");
        for (key, frames) in said {
            safe[key] = frames;
        }
        for (case, safe) in CASES.iter().zip(safe) {
            let path = into.join(format!("{}.h5", case.label));
            let report = match repair(&path) {
                Ok(report) => report,
                Err(error) => {
                    assert_eq!(safe, 0, "{error}, but {safe} frames were safe");
                    continue;
                }
            };
            assert!(report.frames >= safe, "{report:?}, {safe} were safe");
            check_prefix(case, &path, report.frames);
            rounds_with_frames += u32::from(report.frames > 0);
            from_journal += report.frames_from_journal;
            unfinished += u32::from(report.changed);
            let again = repair(&path).expect("repairable again");
            assert!(!again.changed, "{again:?}");
            assert_eq!(again.frames, report.frames);
        }
    }
    println!(
        "{unfinished} files repaired, {rounds_with_frames} with frames, {from_journal} frames from journals"
    );
    assert!(rounds_with_frames >= 20, "{rounds_with_frames}");
    assert!(from_journal > 0, "the journal was never needed");
}

/// Records all cases, printing after each look at the status how many frames are safe, until killed.
fn record_until_killed(directory: &Path) {
    let recorders: Vec<Recorder> = CASES
        .iter()
        .map(|case| {
            let recorder = Recorder::start(RecorderSettings {
                flush_interval: Duration::from_millis(5),
                ..RecorderSettings::new(directory)
            })
            .expect("recorder starts");
            let open = RecordMessage::Open {
                key: 0,
                label: case.label.to_owned(),
                header: case.header(),
            };
            send(&recorder, open);
            recorder
        })
        .collect();
    let mut out = std::io::stdout();
    // The file would be large after a minute; the parent kills long before.
    for index in 0..100_000 {
        for (key, (case, recorder)) in CASES.iter().zip(&recorders).enumerate() {
            let frame = case.frame(index);
            send(recorder, RecordMessage::Frame { key: 0, frame });
            let safe = recorder.status().frames_safe;
            if writeln!(out, "safe {key} {safe}")
                .and_then(|()| out.flush())
                .is_err()
            {
                return;
            }
        }
    }
}
