//! A session on the bench: a clock that is turned by hand, a worker with a harmonic potential.

use std::sync::Arc;
use std::time::{Duration, Instant};

use umaserve::comm::{Job, SessionId, Task};
use umaserve::session::{
    ClientMessage, Content, Delta, Edit, Frame, Payload, RawParameters, ServerMessage, Session,
    SessionSettings, Start,
};

use crate::worker::solve;

pub struct Bench {
    pub session: Session,
    pub now: Instant,
    /// Acknowledges what is taken.
    pub auto_ack: bool,
    output: Vec<ServerMessage>,
}

pub fn settings() -> SessionSettings {
    SessionSettings {
        max_atoms: 50,
        tasks: vec!["omol".into(), "omat".into()],
        ..SessionSettings::default()
    }
}

impl Bench {
    pub fn new() -> Self {
        Self::with_settings(settings())
    }

    pub fn with_settings(settings: SessionSettings) -> Self {
        let now = Instant::now();
        Bench {
            session: Session::new(SessionId(1), Arc::new(settings), now),
            now,
            auto_ack: true,
            output: Vec::new(),
        }
    }

    /// With water uploaded, its idle frame taken.
    pub fn with_molecule() -> Self {
        let mut b = Self::new();
        b.send(upload(&water()));
        b.run_idle();
        b.take();
        b
    }

    /// The same with this ack, and none sent by itself.
    pub fn with_molecule_acked(ack: u64) -> Self {
        let mut b = Self::new();
        b.auto_ack = false;
        b.send(upload(&water()).ack(ack));
        b.run_idle();
        b.take_now();
        b
    }

    pub fn send(&mut self, message: Message) {
        self.session.receive(message.0, self.now);
    }

    pub fn finish(&mut self, job: Job) {
        self.session.complete(solve(job), self.now);
    }

    /// Evaluates until every edit is answered.
    pub fn run_idle(&mut self) {
        while !self.session.is_running()
            && let Some(job) = self.session.next_job(self.now)
        {
            assert_eq!(job.task, Task::Evaluate);
            self.finish(job);
        }
    }

    /// The next step, after pacing; none if the session waits for something else.
    pub fn try_step(&mut self) -> Option<Job> {
        self.now += Duration::from_millis(20);
        self.session.next_job(self.now)
    }

    pub fn next_step(&mut self) -> Job {
        let job = self.try_step().expect("a step");
        assert!(matches!(job.task, Task::Step(_)));
        job
    }

    pub fn step(&mut self) {
        let job = self.next_step();
        self.finish(job);
    }

    pub fn wait(&mut self, time: Duration) {
        self.now += time;
        self.session.tick(self.now);
    }

    /// Everything said so far; acknowledged if `auto_ack`.
    pub fn take(&mut self) -> Vec<ServerMessage> {
        let output = self.take_now();
        if let Some(last) = output.last().filter(|_| self.auto_ack) {
            self.send(message().ack(last.seq));
        }
        output
    }

    pub fn take_now(&mut self) -> Vec<ServerMessage> {
        self.output.extend(self.session.take_output());
        std::mem::take(&mut self.output)
    }

    pub fn take_now_one(&mut self) -> ServerMessage {
        let output = self.take_now();
        assert_eq!(output.len(), 1, "{output:#?}");
        output.into_iter().next().unwrap()
    }

    pub fn take_one(&mut self) -> ServerMessage {
        let [one] = self.take_array();
        one
    }

    pub fn take_array<const N: usize>(&mut self) -> [ServerMessage; N] {
        let output = self.take();
        output
            .try_into()
            .unwrap_or_else(|got| panic!("expected {N} messages, got {got:#?}"))
    }
}

pub struct Message(pub ClientMessage);

impl Message {
    pub fn seq(mut self, seq: u64) -> Self {
        self.0.seq = seq;
        self
    }
    pub fn ack(mut self, ack: u64) -> Self {
        self.0.ack = Some(ack);
        self
    }
    pub fn count(mut self, count: u64) -> Self {
        self.0.user_interaction_count = Some(count);
        self
    }
    pub fn sim_step(mut self, step: u64) -> Self {
        self.0.sim_step = Some(step);
        self
    }
    pub fn copy(&self) -> Self {
        let payload = match &self.0.payload {
            Payload::None => Payload::None,
            Payload::Edit(e) => Payload::Edit(e.clone()),
            Payload::Start(s) => Payload::Start(s.clone()),
            Payload::Stop => Payload::Stop,
        };
        message_of(payload)
    }
    pub fn into_edit(self) -> Edit {
        match self.0.payload {
            Payload::Edit(edit) => edit,
            other => panic!("{other:?}"),
        }
    }
}

pub fn message_of(payload: Payload) -> Message {
    Message(ClientMessage {
        payload,
        ..ClientMessage::default()
    })
}

pub fn message() -> Message {
    message_of(Payload::None)
}

pub fn edit(edit: Edit) -> Message {
    message_of(Payload::Edit(edit))
}

pub fn stop() -> Message {
    message_of(Payload::Stop)
}

pub fn start(simulation_type: i32, parameters: Option<RawParameters>) -> Message {
    message_of(Payload::Start(Start {
        simulation_type,
        parameters,
    }))
}

/// Langevin at 300 K, 0.5 fs.
pub fn start_md() -> Message {
    let parameters = RawParameters {
        calculator: "uma".into(),
        temperature: 300.0,
        timestep_fs: 0.5,
        friction: 0.5,
        ..RawParameters::default()
    };
    start(0, Some(parameters))
}

pub fn sparse() -> Edit {
    Edit {
        full_update: Some(false),
        ..Edit::default()
    }
}

pub fn full(natoms: u32) -> Edit {
    Edit {
        natoms,
        full_update: Some(true),
        ..Edit::default()
    }
}

pub fn move_atom(index: u32, to: [f64; 3]) -> Edit {
    Edit {
        positions: Delta {
            indices: vec![index],
            values: to.to_vec(),
        },
        ..sparse()
    }
}

pub fn vectors(values: &[[f64; 3]]) -> Delta<f64> {
    Delta {
        indices: (0..values.len() as u32).collect(),
        values: values.concat(),
    }
}

pub fn numbers(values: &[u32]) -> Delta<u32> {
    Delta {
        indices: (0..values.len() as u32).collect(),
        values: values.to_vec(),
    }
}

pub fn cube(edge: f64) -> Vec<f64> {
    vec![edge, 0.0, 0.0, 0.0, edge, 0.0, 0.0, 0.0, edge]
}

pub fn water() -> (Vec<u32>, Vec<[f64; 3]>) {
    let positions = vec![
        [0.0, 0.0, 0.119],
        [0.0, 0.763, -0.477],
        [0.0, -0.763, -0.477],
    ];
    (vec![8, 1, 1], positions)
}

pub fn upload((z, positions): &(Vec<u32>, Vec<[f64; 3]>)) -> Message {
    edit(Edit {
        atomic_numbers: numbers(z),
        positions: vectors(positions),
        ..full(z.len() as u32)
    })
}

pub fn frame(message: &ServerMessage) -> &Frame {
    match &message.content {
        Content::Frame(frame) => frame,
        other => panic!("{other:?}"),
    }
}

pub fn notice(message: &ServerMessage) -> (&str, bool) {
    match &message.content {
        Content::Notice(notice) => (&notice.message, notice.simulation_stopped),
        other => panic!("{other:?}"),
    }
}
