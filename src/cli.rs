//! The command line as it is typed. `config` turns it into checked settings.

use clap::{Parser, Subcommand};

/// Run, watch and steer simulations with UMA, Meta's machine-learned interatomic potential.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {}
