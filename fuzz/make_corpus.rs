//! Writes the kept corpus: one small example of everything that the readers know.
//! `cargo run --profile corpus --bin make_corpus` in `fuzz/` (a profile of its own: without coverage
//! there is no fuzzing engine to link).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use prost::Message;
use umaserve::comm::wire::{encode_outcomes, encode_shard};
use umaserve::comm::{Job, Outcome, SessionId, Shard, Task};
use umaserve::dynamics::{History, Method, State};
use umaserve::server::convert::proto::{
    ClientAction, IntDelta, Periodicity, SimulationParams, UserInteractionSparse, Vec3Delta,
    client_action::{Payload, Start, Stop},
    user_interaction_sparse::{FullUpdateFlag, Mat3},
};
use umaserve::system::{Cell, Evaluation, System};

fn main() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let save = |target: &str, name: &str, bytes: &[u8]| {
        let directory = here.join("corpus").join(target);
        std::fs::create_dir_all(&directory).expect("the directory of the corpus");
        std::fs::write(directory.join(name), bytes).expect("a file of the corpus");
    };
    for (name, bytes) in conversations() {
        save("client_messages", name, &bytes);
    }
    for (name, bytes) in rank_messages() {
        save("rank_messages", name, &bytes);
    }
    let data = here.join("../tests/data");
    for name in ["ase.extxyz", "ase-plain.xyz"] {
        let text = std::fs::read(data.join(name)).expect("a structure file of the tests");
        save("extended_xyz", name, &text);
    }
    save("extended_xyz", "values", VALUES.as_bytes());

    let file = File::open(data.join("nano-esen.pt")).expect("a checkpoint of the tests");
    let mut archive = zip::ZipArchive::new(file).expect("a zip archive");
    let mut program = vec![1]; // the pickle program of an archive
    archive
        .by_name("nano-esen/data.pkl")
        .expect("a pickle program")
        .read_to_end(&mut program)
        .expect("its bytes");
    save("checkpoint", "program", &program);
    save(
        "checkpoint",
        "small_program",
        b"\x01\x80\x02}q\x00(X\x05\x00\x00\x00modelq\x01K\x01u.",
    );
    let mut whole = vec![0]; // a whole file
    whole.extend(small_archive());
    save("checkpoint", "archive", &whole);
}

const VALUES: &str = r#"2
Lattice="1 0 0 0 2 0 0 0 3.5" Properties=species:S:1:pos:R:3:tags:I:2:name:S:1:fixed:L:1 pbc="T F T" charge=-1 spin=2 task=omat empty="" quoted="a \"b\" c" list=[1, 2, 3] vector="1.5 2.5" flag=T json=_JSON [1] bare
H 0.0 1e-3 -5E+2 1 2 one T
Og .5 5. 0 3 4 two F
"#;

fn small_archive() -> Vec<u8> {
    use std::io::{Cursor, Write};
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Stored)
        .with_alignment(64);
    let entries: [(&str, &[u8]); 3] = [
        ("m/data.pkl", b"\x80\x02}q\x00."),
        ("m/byteorder", b"little"),
        ("m/data/0", &[0; 64]),
    ];
    for (name, bytes) in entries {
        zip.start_file(name, options).expect("a new entry");
        zip.write_all(bytes).expect("memory");
    }
    zip.finish().expect("memory").into_inner()
}

fn conversations() -> Vec<(&'static str, Vec<u8>)> {
    let upload = UserInteractionSparse {
        natoms: 3,
        atomic_numbers: Some(IntDelta {
            indices: vec![0, 1, 2],
            values: vec![8, 1, 1],
        }),
        positions: Some(Vec3Delta {
            indices: vec![0, 1, 2],
            coords: vec![0.0, 0.0, 0.12, 0.0, 0.76, -0.47, 0.0, -0.76, -0.47],
        }),
        velocities: Some(Vec3Delta {
            indices: vec![1],
            coords: vec![0.01, 0.0, 0.0],
        }),
        cell: Some(Mat3 {
            m: vec![9.0, 0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 9.0],
        }),
        full_update_flag: Some(FullUpdateFlag::FullUpdate(true)),
        charge: Some(0),
        spin_multiplicity: Some(1),
        task: Some("omol".into()),
        periodicity: Some(Periodicity {
            a: true,
            b: true,
            c: false,
        }),
    };
    let drag = UserInteractionSparse {
        positions: Some(Vec3Delta {
            indices: vec![2],
            coords: vec![0.0, -0.8, -0.5],
        }),
        full_update_flag: Some(FullUpdateFlag::FullUpdate(false)),
        ..UserInteractionSparse::default()
    };
    let start = |simulation_type, integrator| {
        Payload::Start(Start {
            simulation_type,
            simulation_params: Some(SimulationParams {
                calculator: "uma".into(),
                temperature: 300.0,
                timestep_fs: 0.5,
                friction: 0.02,
                max_step: 0.05,
                integrator: Some(integrator),
                seed: Some(7),
                steps_per_frame: Some(2),
                frame_interval_ms: Some(0),
                record: Some(true),
                record_label: Some("water".into()),
                ..SimulationParams::default()
            }),
        })
    };
    let upload = Payload::UserInteraction(upload);
    let drag = Payload::UserInteraction(drag);
    let mut all = vec![
        (
            "dynamics",
            vec![
                upload.clone(),
                start(0, 2),
                drag.clone(),
                Payload::Stop(Stop {}),
            ],
        ),
        ("drag", vec![upload.clone(), drag.clone(), drag]),
    ];
    for (name, integrator) in [("bfgs", 3), ("lbfgs", 4), ("fire", 5)] {
        all.push((name, vec![upload.clone(), start(1, integrator)]));
    }
    all.into_iter()
        .map(|(name, payloads)| {
            let mut bytes = Vec::new();
            for (seq, payload) in (1..).zip(payloads) {
                let action = ClientAction {
                    seq,
                    ack: Some(seq - 1),
                    user_interaction_count: Some(seq),
                    sim_step: Some(0),
                    schema_version: 1,
                    payload: Some(payload),
                    ..ClientAction::default()
                };
                let message = action.encode_to_vec();
                bytes.extend((message.len() as u16).to_le_bytes());
                bytes.extend(message);
            }
            (name, bytes)
        })
        .collect()
}

fn rank_messages() -> Vec<(&'static str, Vec<u8>)> {
    let vectors = vec![[0.5, -1.5, 2.0]; 2];
    let state = |history| State {
        system: System {
            numbers: vec![1, 8],
            positions: vectors.clone(),
            cell: Cell {
                vectors: [[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]],
                periodic: [true, false, true],
            },
            charge: -1,
            spin: 2,
            task: "omol".into(),
        },
        velocities: vectors.clone(),
        evaluation: Some(Evaluation {
            energy: -2.5,
            forces: vectors.clone(),
            stress: Some([[0.1; 3]; 3]),
        }),
        history,
        step: 7,
        seed: 11,
    };
    let histories = [
        History::None,
        History::Bfgs {
            hessian: vec![1.0; 36],
            positions: vectors.clone(),
            forces: vectors.clone(),
        },
        History::Lbfgs {
            steps: vec![vec![0.1; 6]],
            changes: vec![vec![0.2; 6]],
            positions: vectors.clone(),
            forces: vectors.clone(),
        },
        History::Fire {
            velocities: vectors.clone(),
            dt: 0.1,
            alpha: 0.1,
            steps_uphill_free: 3,
        },
    ];
    let tasks = [
        Task::Evaluate,
        Task::Step(Method::VelocityVerlet { timestep_fs: 0.5 }),
        Task::Step(Method::Langevin {
            timestep_fs: 0.5,
            temperature_kelvin: 300.0,
            friction: 0.02,
        }),
        Task::Step(Method::Fire {
            max_step_angstrom: 0.2,
        }),
    ];
    let jobs = (1..)
        .zip(tasks.into_iter().zip(histories))
        .map(|(serial, (task, history))| Job {
            session: SessionId(serial),
            serial,
            task,
            state: state(history),
        });
    let shard = Shard {
        id: 5,
        jobs: jobs.collect(),
    };
    let mut outcomes: Vec<Outcome> = (1..)
        .zip(&shard.jobs)
        .map(|(serial, job)| Outcome {
            session: SessionId(serial),
            serial,
            result: Ok(job.state.clone()),
            edges: 42,
        })
        .collect();
    outcomes.push(Outcome {
        session: SessionId(9),
        serial: 9,
        result: Err("two atoms are at the same place".into()),
        edges: 0,
    });
    vec![
        ("shard", encode_shard(&shard)),
        (
            "empty_shard",
            encode_shard(&Shard {
                id: 1,
                jobs: Vec::new(),
            }),
        ),
        ("outcomes", encode_outcomes(5, &outcomes)),
    ]
}
