//! Viewers without sockets: they speak to the engine as the server does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{Receiver, channel, error::TryRecvError};
use umaserve::comm::SessionId;
use umaserve::engine::{EngineHandle, Event};
use umaserve::session::{
    ClientMessage, Content, Delta, Edit, Frame, Goodbye, Notice, Owner, Payload, RawParameters,
    ServerMessage, SessionState, Start, Ticket,
};
use umaserve::system::System;

const PATIENCE: Duration = Duration::from_secs(60);

pub struct Viewer {
    pub id: SessionId,
    engine: EngineHandle,
    messages: Receiver<ServerMessage>,
    pub seq: u64,
    pub last_seen: u64,
}

/// What a viewer hears next.
#[derive(Debug)]
pub enum Heard {
    Frame(Box<Frame>),
    Notice(Notice),
    /// Where the session stands.
    State(Box<SessionState>),
    /// The socket would be closed, for this reason.
    Goodbye(Goodbye),
    /// The engine has let the connection go.
    End,
}

impl Heard {
    #[track_caller]
    pub fn frame(self) -> Frame {
        match self {
            Heard::Frame(frame) => *frame,
            other => panic!("a frame was expected, not {other:?}"),
        }
    }

    #[track_caller]
    pub fn notice(self) -> Notice {
        match self {
            Heard::Notice(notice) => notice,
            other => panic!("a notice was expected, not {other:?}"),
        }
    }
}

impl Viewer {
    pub fn connect(engine: &EngineHandle, id: u64) -> Viewer {
        Viewer::with_queue(engine, id, 64)
    }

    pub fn with_queue(engine: &EngineHandle, id: u64, queue: usize) -> Viewer {
        Viewer::with_owner(engine, id, queue, Arc::default())
    }

    /// One who has come with the token of this owner.
    pub fn with_owner(engine: &EngineHandle, id: u64, queue: usize, owner: Arc<Owner>) -> Viewer {
        let id = SessionId(id);
        let (to_viewer, messages) = channel(queue);
        engine.tell(Event::Connected {
            id,
            to_viewer,
            owner,
        });
        Viewer {
            id,
            engine: engine.clone(),
            messages,
            seq: 0,
            last_seen: 0,
        }
    }

    pub fn say(&mut self, payload: Payload) {
        self.tell(ClientMessage {
            payload,
            ..ClientMessage::default()
        });
    }

    /// With the counters filled in.
    fn tell(&mut self, message: ClientMessage) {
        self.seq += 1;
        let message = ClientMessage {
            seq: self.seq,
            ack: Some(self.last_seen),
            user_interaction_count: Some(self.seq),
            ..message
        };
        let id = self.id;
        let message = Box::new(message);
        self.engine.tell(Event::Message { id, message });
    }

    /// Asks for a session that outlives this connection, or for an earlier one.
    pub fn attach(&mut self, key: &str) {
        self.attach_after(key, 0);
    }

    /// The same, having seen messages up to `seen`.
    pub fn attach_after(&mut self, key: &str, seen: u64) {
        self.last_seen = seen;
        self.tell(ClientMessage {
            attach: Some(key.to_owned()),
            ..ClientMessage::default()
        });
    }

    pub fn detach(&mut self, detached: bool) {
        self.tell(ClientMessage {
            detached: Some(detached),
            ..ClientMessage::default()
        });
    }

    pub fn end_session(&mut self) {
        self.tell(ClientMessage {
            end_session: true,
            ..ClientMessage::default()
        });
    }

    /// A full snapshot.
    pub fn upload(&mut self, system: &System) {
        let message = upload_message(system);
        self.tell(message);
    }

    pub fn start_md(&mut self, temperature: f64) {
        self.start(0, temperature);
    }

    pub fn start_relaxation(&mut self) {
        self.start(1, 0.0);
    }

    fn start(&mut self, simulation_type: i32, temperature: f64) {
        self.say(Payload::Start(Start {
            simulation_type,
            parameters: Some(RawParameters {
                temperature,
                timestep_fs: 0.5,
                friction: 0.02,
                max_step: 0.05,
                ..RawParameters::default()
            }),
        }));
    }

    pub fn stop(&mut self) {
        self.say(Payload::Stop);
    }

    /// The next message; acknowledged. That the session waits for this viewer tells only how its
    /// thread is scheduled.
    pub fn hear(&mut self) -> Heard {
        loop {
            match self.hear_any() {
                Heard::Notice(notice) if notice.message == "WAITING_FOR_ACK" => {}
                heard => return heard,
            }
        }
    }

    fn hear_any(&mut self) -> Heard {
        let deadline = Instant::now() + PATIENCE;
        let message = loop {
            match self.messages.try_recv() {
                Ok(message) => break message,
                Err(TryRecvError::Disconnected) => return Heard::End,
                Err(TryRecvError::Empty) => {
                    assert!(Instant::now() < deadline, "nothing heard for {PATIENCE:?}");
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        };
        self.last_seen = self.last_seen.max(message.seq);
        if message.seq % 5 == 0 {
            self.say(Payload::None);
        }
        match message.content {
            Content::Frame(frame) => Heard::Frame(Box::new((*frame).clone())),
            Content::Notice(notice) => Heard::Notice(notice),
            Content::State(state) => Heard::State(state),
            Content::Goodbye(reason) => Heard::Goodbye(reason),
        }
    }

    /// Drops frames until the session says where it stands.
    pub fn hear_state(&mut self) -> SessionState {
        loop {
            match self.hear() {
                Heard::Frame(_) => {}
                Heard::State(state) => return *state,
                other => panic!("a state was expected, not {other:?}"),
            }
        }
    }

    /// Drops frames until a notice comes.
    pub fn hear_notice(&mut self) -> Notice {
        loop {
            match self.hear() {
                Heard::Frame(_) => {}
                other => return other.notice(),
            }
        }
    }

    pub fn disconnect(self) {
        let id = self.id;
        let place = Ticket::default();
        self.engine.tell(Event::Disconnected { id, place });
    }
}

/// A full snapshot.
pub fn upload_message(system: &System) -> ClientMessage {
    let indices: Vec<u32> = (0..system.len() as u32).collect();
    let cell = system.cell.is_periodic();
    ClientMessage {
        payload: Payload::Edit(Edit {
            natoms: system.len() as u32,
            atomic_numbers: Delta {
                indices: indices.clone(),
                values: system.numbers.iter().map(|&z| u32::from(z)).collect(),
            },
            positions: Delta {
                indices,
                values: system.positions.as_flattened().to_vec(),
            },
            cell: cell.then(|| system.cell.vectors.as_flattened().to_vec()),
            full_update: Some(true),
            ..Edit::default()
        }),
        ..ClientMessage::default()
    }
}

/// Numbers of a trajectory, bit for bit.
pub type Trace = Vec<u64>;

/// Uploads, runs so many frames of MD or relaxation, stops; returns all numbers seen.
pub fn trajectory(viewer: &mut Viewer, system: &System, relax: bool, frames: usize) -> Trace {
    viewer.upload(system);
    let mut trace = bits(&viewer.hear().frame());
    match relax {
        true => viewer.start_relaxation(),
        false => viewer.start_md(300.0),
    }
    for _ in 0..frames {
        trace.extend(bits(&viewer.hear().frame()));
    }
    viewer.stop();
    assert_eq!(viewer.hear_notice().message, "SIMULATION_STOPPED");
    trace
}

fn bits(frame: &Frame) -> Trace {
    [&frame.positions, &frame.velocities, &frame.forces]
        .into_iter()
        .flat_map(|rows| rows.as_flattened())
        .chain([&frame.energy])
        .map(|x| x.to_bits())
        .collect()
}

/// A cluster of atoms of several elements near each other's best distance; every `n` and
/// `variant` gives another one.
pub fn cluster(n: usize, variant: usize) -> System {
    let mut positions = Vec::new();
    let mut numbers = Vec::new();
    let side = (n as f64).cbrt().ceil() as usize;
    for atom in 0..n {
        let site = [atom % side, atom / side % side, atom / side / side];
        let shift = |k: usize| (((atom * 7 + k * 3 + variant * 5) % 11) as f64 - 5.0) * 0.02;
        positions.push([0, 1, 2].map(|k| site[k] as f64 * 2.1 + shift(k)));
        numbers.push([6, 1, 8, 7][(atom + variant) % 4]);
    }
    System {
        numbers,
        positions,
        task: "omol".into(),
        ..System::default()
    }
}

/// Several sessions at once: small and larger ones, MD and relaxation, interleaved. The same
/// numbers have to come out whoever computes them.
pub fn mixed_sessions(engine: &EngineHandle, frames: usize) -> Vec<Trace> {
    let viewers: Vec<_> = (0..6usize)
        .map(|k| {
            let engine = engine.clone();
            std::thread::spawn(move || {
                let mut viewer = Viewer::connect(&engine, k as u64 + 1);
                let system = cluster(3 + 7 * k, k);
                let trace = trajectory(&mut viewer, &system, k % 3 == 2, frames);
                viewer.disconnect();
                trace
            })
        })
        .collect();
    viewers
        .into_iter()
        .map(|viewer| viewer.join().unwrap())
        .collect()
}
