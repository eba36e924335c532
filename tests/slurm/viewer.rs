//! A viewer with an identity, and what it has seen.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::time::Duration;

use prost::Message as _;
use serde_json::Value;
use tungstenite::{Message, WebSocket};
use umaserve::server::convert::proto::{
    ClientAction, IntDelta, ServerResult, SimulationParams, UserInteractionSparse, Vec3Delta,
    client_action::{Attach, Payload, Start, Stop},
    server_result::{self, Frame, SessionState},
    user_interaction_sparse::FullUpdateFlag,
};

/// Ethanol, Angstrom.
const NUMBERS: [u32; 9] = [6, 6, 8, 1, 1, 1, 1, 1, 1];
const POSITIONS: [[f64; 3]; 9] = [
    [1.168, -0.398, 0.0],
    [0.0, 0.555, 0.0],
    [-1.190, -0.198, 0.0],
    [-1.946, 0.382, 0.0],
    [2.110, 0.151, 0.0],
    [1.130, -1.035, 0.886],
    [1.130, -1.035, -0.886],
    [0.038, 1.192, 0.890],
    [0.038, 1.192, -0.890],
];

/// Everything of a frame that dynamics has made, bit for bit.
pub type Bits = Vec<u64>;

/// Frames by the step that they show.
pub type Frames = BTreeMap<u64, Bits>;

pub struct Viewer {
    socket: WebSocket<TcpStream>,
    seq: u64,
    last_heard: u64,
    pub state: SessionState,
}

/// What a viewer hears.
pub enum Heard {
    Frame(u64, Bits),
    Notice(String),
    Closed,
}

impl Viewer {
    /// Connects as a connection file says, to a session or to a new one (""). By the address: the
    /// names of the test's nodes are in no directory.
    pub fn attach(connection: &Value, session: &str, last_heard: u64) -> Viewer {
        let text = |name: &str| connection[name].as_str().unwrap_or_default().to_owned();
        let address = format!("{}:{}", text("listen"), connection["port"]);
        let stream = TcpStream::connect(&address)
            .unwrap_or_else(|error| panic!("{address}: {error} ({connection})"));
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let url = format!("ws://{address}/ws?token={}", text("token"));
        let (socket, _) = tungstenite::client(url, stream).unwrap();
        let mut viewer = Viewer {
            socket,
            seq: 0,
            last_heard,
            state: SessionState::default(),
        };
        let attach = Attach {
            session_id: session.to_owned(),
        };
        viewer.send(ClientAction {
            ack: (last_heard > 0).then_some(last_heard),
            attach: Some(attach),
            ..ClientAction::default()
        });
        loop {
            let result = viewer.read().expect("an answer to attach");
            if let Some(server_result::Payload::SessionState(state)) = result.payload {
                // The counters of the session go on where they were.
                viewer.seq = viewer.seq.max(result.client_seq.unwrap_or(0));
                viewer.state = state;
                return viewer;
            }
        }
    }

    fn send(&mut self, action: ClientAction) {
        self.seq += 1;
        let action = ClientAction {
            seq: self.seq,
            schema_version: 1,
            ..action
        };
        // A server that is going away is noticed when reading.
        let _ = self
            .socket
            .send(Message::Binary(action.encode_to_vec().into()));
    }

    fn say(&mut self, payload: Payload) {
        self.send(ClientAction {
            payload: Some(payload),
            ..ClientAction::default()
        });
    }

    fn read(&mut self) -> Option<ServerResult> {
        loop {
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => {
                    let result = ServerResult::decode(bytes).unwrap();
                    self.last_heard = self.last_heard.max(result.seq);
                    self.send(ClientAction {
                        ack: Some(result.seq),
                        ..ClientAction::default()
                    });
                    return Some(result);
                }
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The number of the last message, for a later attach.
    pub fn last_heard(&self) -> u64 {
        self.last_heard
    }

    pub fn hear(&mut self) -> Heard {
        loop {
            let Some(result) = self.read() else {
                return Heard::Closed;
            };
            match result.payload {
                Some(server_result::Payload::Frame(frame)) => {
                    return Heard::Frame(result.sim_step.unwrap_or(0), bits(&frame));
                }
                Some(server_result::Payload::Notice(notice)) => {
                    return Heard::Notice(notice.message.unwrap_or_default());
                }
                _ => {}
            }
        }
    }

    /// Uploads ethanol and starts Langevin dynamics, recorded.
    pub fn start(&mut self, seed: u64, label: &str) {
        self.say(Payload::UserInteraction(UserInteractionSparse {
            natoms: 9,
            atomic_numbers: Some(IntDelta {
                indices: (0..9).collect(),
                values: NUMBERS.to_vec(),
            }),
            positions: Some(Vec3Delta {
                indices: (0..9).collect(),
                coords: POSITIONS.concat(),
            }),
            full_update_flag: Some(FullUpdateFlag::FullUpdate(true)),
            ..UserInteractionSparse::default()
        }));
        match self.hear() {
            Heard::Frame(0, _) => {}
            Heard::Frame(step, _) => panic!("step {step} before the start"),
            Heard::Notice(notice) => panic!("{notice}"),
            Heard::Closed => panic!("closed"),
        }
        self.say(Payload::Start(Start {
            simulation_type: 0,
            simulation_params: Some(SimulationParams {
                calculator: "uma".into(),
                temperature: 300.0,
                timestep_fs: 0.5,
                friction: 0.02,
                frame_interval_ms: Some(0),
                seed: Some(seed),
                record: Some(true),
                record_label: Some(label.into()),
                ..SimulationParams::default()
            }),
        }));
    }

    /// Collects frames up to this step; a step that was seen before has to look the same.
    #[track_caller]
    pub fn collect(&mut self, frames: &mut Frames, last: u64) {
        loop {
            match self.hear() {
                Heard::Frame(step, bits) => {
                    add(frames, step, bits);
                    if step >= last {
                        return;
                    }
                }
                Heard::Notice(notice) => assert!(
                    notice.starts_with("WAITING_FOR_ACK"),
                    "unexpected notice {notice:?}"
                ),
                Heard::Closed => panic!("closed after {:?} of {last} steps", frames.keys().last()),
            }
        }
    }

    /// Collects frames until the server closes the socket; the notices on the way.
    pub fn collect_to_the_end(&mut self, frames: &mut Frames) -> Vec<String> {
        let mut notices = Vec::new();
        loop {
            match self.hear() {
                Heard::Frame(step, bits) => add(frames, step, bits),
                Heard::Notice(notice) => notices.push(notice),
                Heard::Closed => return notices,
            }
        }
    }

    /// Stops the simulation and ends the session.
    pub fn end(mut self, frames: &mut Frames) {
        self.say(Payload::Stop(Stop {}));
        self.send(ClientAction {
            end_session: Some(true),
            ..ClientAction::default()
        });
        self.collect_to_the_end(frames);
    }
}

fn add(frames: &mut Frames, step: u64, bits: Bits) {
    if let Some(before) = frames.insert(step, bits.clone()) {
        assert_eq!(before, bits, "step {step} was done again differently");
    }
}

fn bits(frame: &Frame) -> Bits {
    let arrays = [&frame.positions, &frame.velocities, &frame.forces];
    let numbers = arrays.into_iter().flatten().chain(&frame.energy);
    numbers.map(|x| x.to_bits()).collect()
}
