//! Chooses the role of this process and starts it.

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use umaserve::cli::{Command, LogFormat, TrajectoryCommand};
use umaserve::config::{self, Environment, LogConfig, Typed};
use umaserve::potential::uma::describe::describe;
use umaserve::predict::{PredictOptions, predict_file};
use umaserve::{compute, connect, serve, supervise, trajectory};

fn main() -> ExitCode {
    let cli = match config::command_line(std::env::args_os()) {
        Ok(Typed::Cli(cli)) => cli,
        Ok(Typed::Said(said)) => said.exit(),
        Err(error) => {
            eprintln!("umaserve: {error}");
            return ExitCode::FAILURE;
        }
    };
    let environment = Environment::read();
    let done: Result<u8, String> = match &cli.command {
        Command::Serve(args) => {
            config::serve(args, &environment)
                .map_err(text)
                .and_then(|config| {
                    log(&config::log(args.log, &environment))?;
                    serve::run(&config).map(serve::Exit::code)
                })
        }
        Command::Connect(args) => connect::connect(args).map(|text| print(&text)).map(|()| 0),
        Command::Status(args) => connect::status(args).map(|text| print(&text)).map(|()| 0),
        Command::Supervise(args) => {
            log(&config::log(LogFormat::Text, &environment)).and_then(|()| supervise::run(args))
        }
        Command::Predict(args) => config::predict(args, &environment)
            .map_err(text)
            .and_then(|config| predict(&config).map(|()| 0)),
        Command::Model(args) => compute::open_checkpoint(args.file.as_deref())
            .map(|checkpoint| print!("{}", describe(&checkpoint)))
            .map(|()| 0),
        Command::Selfcheck(args) => config::selfcheck(args, &environment)
            .map_err(text)
            .and_then(|config| compute::selfcheck(&config))
            .map(|()| 0),
        Command::Trajectory(command) => match command {
            TrajectoryCommand::Info { file } => trajectory::cli::info(file),
            TrajectoryCommand::Export {
                file,
                output,
                stride,
            } => trajectory::cli::export(file, output, *stride),
            TrajectoryCommand::Repair { file } => trajectory::cli::repair(file),
        }
        .map(|report| println!("{}", report.trim_end()))
        .map(|()| 0)
        .map_err(text),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(reason) => {
            serve::say(&reason);
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) {
    if !text.is_empty() {
        println!("{}", text.trim_end());
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn predict(config: &config::PredictConfig) -> Result<(), String> {
    let checkpoint = compute::open_checkpoint(config.model.path.as_deref())?;
    let potential = serve::potential(&config.model, &checkpoint)?;
    let options = PredictOptions {
        default_task: Some(serve::default_task(
            config.model.task.as_deref(),
            &checkpoint,
        )?),
        ..PredictOptions::default()
    };
    let summary =
        predict_file(&*potential, &config.input, &config.output, &options).map_err(text)?;
    println!(
        "{}: {} frames, {} atoms",
        config.output.display(),
        summary.frames,
        summary.atoms
    );
    Ok(())
}

/// Log lines go to standard error; standard output is for results.
fn log(config: &LogConfig) -> Result<(), String> {
    let filter = EnvFilter::try_new(&config.directives)
        .map_err(|error| format!("RUST_LOG {:?}: {error}", config.directives))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match config.format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}
