//! The session state machine against docs/protocol.md: no sockets, no clock, a toy potential.

#[path = "session/bench.rs"]
mod bench;
#[path = "session/edits.rs"]
mod edits;
#[path = "session/flow.rs"]
mod flow;
#[path = "session/parameters.rs"]
mod parameters;
#[path = "session/random.rs"]
mod random;
#[path = "session/simulation.rs"]
mod simulation;
#[path = "session/worker.rs"]
mod worker;
