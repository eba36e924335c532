//! What a worker does, with every atom on a spring to the origin.

use umaserve::comm::{Job, Outcome, Task};
use umaserve::dynamics;
use umaserve::system::{Evaluation, System};

/// Spring constant, eV/Angstrom^2.
const SPRING: f64 = 2.0;

pub fn harmonic_energy(positions: &[[f64; 3]]) -> f64 {
    positions
        .iter()
        .flatten()
        .map(|x| 0.5 * SPRING * x * x)
        .sum()
}

pub fn harmonic_force(position: [f64; 3]) -> [f64; 3] {
    position.map(|x| -SPRING * x)
}

fn evaluate(system: &System) -> Evaluation {
    Evaluation {
        energy: harmonic_energy(&system.positions),
        forces: system
            .positions
            .iter()
            .map(|&p| harmonic_force(p))
            .collect(),
        stress: system.cell.is_periodic().then_some([[0.01; 3]; 3]),
    }
}

/// What a worker does.
pub fn solve(job: Job) -> Outcome {
    let mut state = job.state;
    let result = match job.task {
        Task::Evaluate => {
            state.evaluation = Some(evaluate(&state.system));
            Ok(state)
        }
        Task::Step(method) => (|| {
            if state.evaluation.is_none() {
                state.evaluation = Some(evaluate(&state.system));
            }
            dynamics::begin_step(&method, &mut state).map_err(|e| e.to_string())?;
            let evaluation = evaluate(&state.system);
            dynamics::end_step(&method, &mut state, evaluation).map_err(|e| e.to_string())?;
            Ok(state)
        })(),
    };
    Outcome {
        session: job.session,
        serial: job.serial,
        result,
        edges: 0,
    }
}
