//! Between the wire types generated from `proto/session.proto` and the words of the session.
//!
//! Nothing is judged here: lengths and numbers arrive at the session as they were sent, and
//! "absent" stays apart from "zero" wherever the protocol tells them apart.

use bytes::Bytes;
use prost::Message as _;

use crate::session::{
    ClientMessage, Content, Delta, Edit, Frame, Payload, RawParameters, ServerMessage, Start,
    Ticket,
};

/// The generated types.
pub mod proto {
    #![allow(missing_docs)]
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

/// Writes one message as the bytes of a binary frame.
pub fn encode(message: &ServerMessage) -> Bytes {
    let payload = match &message.content {
        Content::Frame(frame) => WireResult::Frame(frame_of(frame)),
        Content::Notice(notice) => WireResult::Notice(WireNotice {
            message: Some(notice.message.clone()),
            simulation_stopped: notice.simulation_stopped.then_some(true),
        }),
    };
    let result = proto::ServerResult {
        seq: message.seq,
        client_seq: Some(message.client_seq),
        user_interaction_count: message.user_interaction_count,
        sim_step: message.sim_step,
        schema_version: SCHEMA_VERSION,
        payload: Some(payload),
    };
    result.encode_to_vec().into()
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
