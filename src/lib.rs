//! umaserve: run, watch and steer simulations with UMA on a cluster.
//!
//! The modules in reading order: the words of the field ([`units`], [`system`], [`neighbors`],
//! [`dynamics`], [`structure_file`]), the network ([`so3`], [`nn`], [`backend`], [`potential`],
//! [`selfcheck`]), the service ([`session`], [`comm`], [`placement`], [`scheduler`], [`worker`],
//! [`engine`], [`server`], [`trajectory`], [`recording`], [`metrics`], [`connection`]), and what the
//! user types ([`cli`], [`config`]) and gets ([`compute`], [`serve`], [`predict`]).

pub mod dynamics;
pub mod neighbors;
pub mod structure_file;
pub mod system;
pub mod units;

pub mod backend;
pub mod nn;
pub mod potential;
pub mod predict;
pub mod selfcheck;
pub mod so3;

pub mod comm;
pub mod connection;
pub mod engine;
pub mod metrics;
pub mod placement;
pub mod recording;
pub mod resume;
pub mod scheduler;
pub mod server;
pub mod session;
pub mod trajectory;
pub mod worker;

pub mod cli;
pub mod compute;
pub mod config;
pub mod connect;
pub mod serve;
pub mod supervise;
