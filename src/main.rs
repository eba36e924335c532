//! Chooses the role of this process and starts it.

use clap::Parser;

fn main() {
    let cli = umaserve::cli::Cli::parse();
    match cli.command {}
}
