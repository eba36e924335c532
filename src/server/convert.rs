//! Between the wire types generated from `proto/session.proto` and the words of the session.
//!
//! Nothing is judged here: lengths and numbers arrive at the session as they were sent, and
//! "absent" stays apart from "zero" wherever the protocol tells them apart.

use bytes::Bytes;
use prost::Message as _;

use crate::session::{
    ClientMessage, Content, Delta, Edit, Frame, Payload, RawParameters, ServerMessage,
    SessionState, Start, Ticket,
};

/// The generated types.
pub mod proto {
    #![allow(missing_docs, clippy::large_enum_variant)]
    include!(concat!(env!("OUT_DIR"), "/fairchem.session.rs"));
}

use proto::client_action::Payload as WirePayload;
use proto::server_result::{Notice as WireNotice, Payload as WireResult};
use proto::user_interaction_sparse::FullUpdateFlag;

/// The version of the protocol that every message names.
const SCHEMA_VERSION: u32 = 1;

/// Reads one binary frame. An empty frame is a message with all defaults.
///
/// # Errors
/// The bytes are no `ClientAction`.
pub fn decode(bytes: Bytes) -> Result<ClientMessage, prost::DecodeError> {
    let action = proto::ClientAction::decode(bytes)?;
    Ok(ClientMessage {
        seq: action.seq,
        ack: action.ack,
        user_interaction_count: action.user_interaction_count,
        sim_step: action.sim_step,
        payload: match action.payload {
            None => Payload::None,
            Some(WirePayload::UserInteraction(edit)) => Payload::Edit(edit_of(edit)),
            Some(WirePayload::Start(start)) => Payload::Start(Start {
                simulation_type: start.simulation_type,
                parameters: start.simulation_params.map(parameters_of),
            }),
            Some(WirePayload::Stop(_)) => Payload::Stop,
        },
        attach: action.attach.map(|attach| attach.session_id),
        detached: action.detached,
        end_session: action.end_session.unwrap_or(false),
        ticket: Ticket::default(),
    })
}

fn edit_of(edit: proto::UserInteractionSparse) -> Edit {
    let vectors = |delta: Option<proto::Vec3Delta>| {
        let delta = delta.unwrap_or_default();
        Delta {
            indices: delta.indices,
            values: delta.coords,
        }
    };
    let numbers = edit.atomic_numbers.unwrap_or_default();
    Edit {
        natoms: edit.natoms,
        atomic_numbers: Delta {
            indices: numbers.indices,
            values: numbers.values,
        },
        positions: vectors(edit.positions),
        velocities: vectors(edit.velocities),
        cell: edit.cell.map(|cell| cell.m),
        full_update: edit
            .full_update_flag
            .map(|FullUpdateFlag::FullUpdate(full)| full),
        charge: edit.charge,
        spin: edit.spin_multiplicity,
        task: edit.task,
        periodic: edit.periodicity.map(|p| [p.a, p.b, p.c]),
    }
}

fn parameters_of(raw: proto::SimulationParams) -> RawParameters {
    RawParameters {
        calculator: raw.calculator,
        temperature: raw.temperature,
        timestep_fs: raw.timestep_fs,
        friction: raw.friction,
        fmax: raw.fmax,
        max_step: raw.max_step,
        integrator: raw.integrator,
        seed: raw.seed,
        steps_per_frame: raw.steps_per_frame,
        frame_interval_ms: raw.frame_interval_ms,
        record: raw.record,
        record_label: raw.record_label,
    }
}

/// Writes one message as the bytes of a binary frame. A goodbye has no payload: it closes the
/// socket instead.
pub fn encode(message: &ServerMessage) -> Bytes {
    let payload = match &message.content {
        Content::Frame(frame) => Some(WireResult::Frame(frame_of(frame))),
        Content::Notice(notice) => Some(WireResult::Notice(WireNotice {
            message: Some(notice.message.clone()),
            simulation_stopped: notice.simulation_stopped.then_some(true),
        })),
        Content::State(state) => Some(WireResult::SessionState(state_of(state))),
        Content::Goodbye(_) => None,
    };
    let result = proto::ServerResult {
        seq: message.seq,
        client_seq: Some(message.client_seq),
        user_interaction_count: message.user_interaction_count,
        sim_step: message.sim_step,
        schema_version: SCHEMA_VERSION,
        payload,
    };
    result.encode_to_vec().into()
}

fn state_of(state: &SessionState) -> proto::server_result::SessionState {
    let system = &state.system;
    let mut frame = frame_of(&state.frame);
    if !state.evaluated {
        frame.energy = None;
        frame.fmax = None;
    }
    let [a, b, c] = system.cell.periodic;
    proto::server_result::SessionState {
        session_id: state.key.digits(),
        resumed: state.resumed,
        reconnect_seconds: u32::try_from(state.reconnect.as_secs()).unwrap_or(u32::MAX),
        detached: state.detached,
        running: state.running,
        simulation_type: state.simulation_type,
        parameters: Some(wire_parameters(&state.parameters)),
        atomic_numbers: system.numbers.iter().map(|&z| u32::from(z)).collect(),
        frame: Some(frame),
        periodicity: Some(proto::Periodicity { a, b, c }),
        charge: system.charge,
        spin_multiplicity: u32::try_from(system.spin).unwrap_or(0),
        task: system.task.clone(),
        recording: state.recording.clone(),
    }
}

fn wire_parameters(raw: &RawParameters) -> proto::SimulationParams {
    proto::SimulationParams {
        calculator: raw.calculator.clone(),
        temperature: raw.temperature,
        timestep_fs: raw.timestep_fs,
        friction: raw.friction,
        fmax: raw.fmax,
        max_step: raw.max_step,
        optimizer: String::new(),
        integrator: raw.integrator,
        // It restarts the random numbers: a viewer that sends the parameters back must not.
        seed: None,
        steps_per_frame: raw.steps_per_frame,
        frame_interval_ms: raw.frame_interval_ms,
        record: raw.record,
        record_label: raw.record_label.clone(),
    }
}

fn frame_of(frame: &Frame) -> proto::server_result::Frame {
    let matrix = |m: &[[f64; 3]; 3]| proto::Mat3 {
        m: m.as_flattened().to_vec(),
    };
    proto::server_result::Frame {
        positions: frame.positions.as_flattened().to_vec(),
        velocities: frame.velocities.as_flattened().to_vec(),
        forces: frame.forces.as_flattened().to_vec(),
        cell: frame.cell.as_ref().map(matrix),
        stress: frame.stress.as_ref().map(matrix),
        energy: Some(frame.energy),
        temperature: frame.temperature,
        kinetic: frame.kinetic,
        time_fs: frame.time_fs,
        fmax: Some(frame.fmax),
    }
}
