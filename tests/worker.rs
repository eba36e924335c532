//! What a worker makes of a shard.

mod common;

use common::LennardJones;
use common::jobs::{at_rest, shard};
use common::link::Script;
use common::viewer::cluster;
use umaserve::comm::{Outcome, SessionId, Shard, Task};
use umaserve::dynamics::{Method, State, begin_step, end_step};
use umaserve::neighbors::NeighborList;
use umaserve::potential::{EdgeGradients, EvaluationError, Potential, evaluate};
use umaserve::system::System;
use umaserve::worker::run;

const MAX_EDGES: usize = 100_000;

const LANGEVIN: Method = Method::Langevin {
    timestep_fs: 0.5,
    temperature_kelvin: 300.0,
    friction: 0.02,
};

fn potential() -> LennardJones {
    LennardJones::default()
}

fn mixed_jobs() -> Vec<(Task, State)> {
    let bfgs = Method::Bfgs {
        max_step_angstrom: 0.1,
    };
    let known = {
        let mut state = at_rest(cluster(9, 3));
        let answer = evaluate(&potential(), &[&state.system], MAX_EDGES);
        state.evaluation = Some(answer[0].clone().unwrap());
        state
    };
    vec![
        (Task::Evaluate, at_rest(cluster(4, 0))),
        (Task::Step(LANGEVIN), at_rest(cluster(12, 1))),
        (Task::Step(bfgs), at_rest(cluster(6, 2))),
        (Task::Step(LANGEVIN), known),
    ]
}

#[test]
fn a_step_is_begin_evaluate_end() {
    let state = at_rest(cluster(12, 1));
    let mut expected = state.clone();
    let forces_at = |state: &State| {
        let answer = evaluate(&potential(), &[&state.system], MAX_EDGES);
        answer[0].clone().unwrap()
    };
    expected.evaluation = Some(forces_at(&expected));
    begin_step(&LANGEVIN, &mut expected).unwrap();
    let evaluation = forces_at(&expected);
    end_step(&LANGEVIN, &mut expected, evaluation).unwrap();

    let outcomes = run(
        &shard(1, [(Task::Step(LANGEVIN), state)]),
        &potential(),
        MAX_EDGES,
    );
    assert_eq!(outcomes[0].result, Ok(expected));
}

#[test]
fn an_evaluation_changes_nothing_but_the_evaluation() {
    let state = at_rest(cluster(5, 0));
    let outcomes = run(
        &shard(1, [(Task::Evaluate, state.clone())]),
        &potential(),
        MAX_EDGES,
    );
    let answer = outcomes[0].result.clone().unwrap();
    let direct = evaluate(&potential(), &[&state.system], MAX_EDGES);
    assert_eq!(answer.evaluation, Some(direct[0].clone().unwrap()));
    let rest = State {
        evaluation: None,
        ..answer
    };
    assert_eq!(rest, state);
}

#[test]
fn jobs_in_a_batch_have_the_outcomes_of_jobs_alone() {
    let jobs = mixed_jobs();
    let together = run(&shard(1, jobs.clone()), &potential(), MAX_EDGES);
    for (k, (task, state)) in jobs.into_iter().enumerate() {
        let alone = run(&shard(1, [(task, state)]), &potential(), MAX_EDGES);
        assert_eq!(together[k].session, SessionId(k as u64));
        assert_eq!(together[k].serial, 10 + k as u64);
        assert_eq!(together[k].result, alone[0].result);
        assert_eq!(together[k].edges, alone[0].edges);
    }
}

#[test]
fn outcomes_tell_the_edges_of_the_last_evaluation() {
    let near = cluster(4, 0);
    let mut far = near.clone();
    for (atom, position) in far.positions.iter_mut().enumerate() {
        position[0] += 100.0 * atom as f64;
    }
    let jobs = [near, far].map(|system| (Task::Evaluate, at_rest(system)));
    let outcomes = run(&shard(1, jobs), &potential(), MAX_EDGES);
    assert_eq!(outcomes[0].edges, 12, "four atoms, all within the cutoff");
    assert_eq!(outcomes[1].edges, 0);
}

fn errors(outcomes: &[Outcome]) -> Vec<Option<&str>> {
    let results = outcomes.iter().map(|outcome| &outcome.result);
    results
        .map(|result| result.as_ref().err().map(String::as_str))
        .collect()
}

#[test]
fn what_is_wrong_with_a_job_is_its_own_error() {
    let good = || (Task::Step(LANGEVIN), at_rest(cluster(8, 0)));
    let mut unknown_element = at_rest(cluster(4, 0));
    unknown_element.system.numbers[2] = 92;
    let mut hot = at_rest(cluster(4, 0));
    hot.velocities[1] = [1e6, 0.0, 0.0];
    // So close that the step would fling the atoms apart.
    let mut collided = at_rest(cluster(4, 0));
    collided.system.positions[1] = collided.system.positions[0].map(|x| x + 0.01);
    let mut short = at_rest(cluster(4, 0));
    short.velocities.pop();
    let mut not_a_number = at_rest(cluster(4, 0));
    not_a_number.system.positions[0][1] = f64::NAN;
    let crowded = at_rest(cluster(60, 0));

    let jobs = [
        good(),
        (Task::Step(LANGEVIN), unknown_element),
        (Task::Step(LANGEVIN), hot),
        (Task::Step(LANGEVIN), collided),
        (Task::Step(LANGEVIN), short),
        (Task::Evaluate, not_a_number),
        (Task::Evaluate, crowded),
        good(),
    ];
    let outcomes = run(&shard(1, jobs), &potential(), 500);
    let errors = errors(&outcomes);
    assert_eq!(errors[0], None);
    assert!(
        errors[1].unwrap().contains("atomic number 92"),
        "{errors:?}"
    );
    assert!(errors[2].unwrap().contains("instability"), "{errors:?}");
    assert!(errors[3].is_some(), "{errors:?}");
    assert!(
        errors[4].unwrap().contains("3 velocities for 4 atoms"),
        "{errors:?}"
    );
    assert!(errors[5].unwrap().contains("not finite"), "{errors:?}");
    assert!(errors[6].unwrap().contains("limit of 500"), "{errors:?}");
    assert_eq!(errors[7], None);
    assert_eq!(outcomes[0].result, outcomes[7].result);
}

/// Panics for uranium.
struct Fragile(LennardJones);

impl Potential for Fragile {
    fn cutoff_angstrom(&self) -> f64 {
        self.0.cutoff_angstrom()
    }

    fn max_neighbors(&self) -> usize {
        self.0.max_neighbors()
    }

    fn check(&self, _: &System) -> Result<(), EvaluationError> {
        Ok(())
    }

    fn edge_gradients(
        &self,
        batch: &[(&System, &NeighborList)],
    ) -> Vec<Result<EdgeGradients, EvaluationError>> {
        let elements = batch.iter().flat_map(|(system, _)| &system.numbers);
        assert!(elements.copied().all(|z| z != 92), "uranium is too heavy");
        self.0.edge_gradients(batch)
    }
}

#[test]
fn a_panic_of_the_potential_costs_only_the_job_that_causes_it() {
    let mut uranium = at_rest(cluster(4, 0));
    uranium.system.numbers[0] = 92;
    let good = (Task::Step(LANGEVIN), at_rest(cluster(8, 0)));
    let jobs = [good.clone(), (Task::Evaluate, uranium), good.clone()];
    let outcomes = run(&shard(1, jobs), &Fragile(potential()), MAX_EDGES);
    let alone = run(&shard(1, [good]), &potential(), MAX_EDGES);
    assert!(
        errors(&outcomes)[1]
            .unwrap()
            .contains("uranium is too heavy")
    );
    assert_eq!(outcomes[0].result, alone[0].result);
    assert_eq!(outcomes[2].result, alone[0].result);
    assert_eq!(outcomes[2].edges, alone[0].edges);
}

#[test]
fn an_empty_shard_has_no_outcomes() {
    assert!(run(&shard(1, []), &potential(), MAX_EDGES).is_empty());
}

/// A potential whose device fails after some evaluations, and one that takes its place.
struct Breaking {
    left: std::sync::atomic::AtomicI64,
    /// Added to every energy: a device that computes other numbers.
    shift: f64,
}

impl Potential for Breaking {
    fn cutoff_angstrom(&self) -> f64 {
        potential().cutoff_angstrom()
    }

    fn max_neighbors(&self) -> usize {
        potential().max_neighbors()
    }

    fn check(&self, system: &System) -> Result<(), EvaluationError> {
        potential().check(system)
    }

    fn edge_gradients(
        &self,
        batch: &[(&System, &NeighborList)],
    ) -> Vec<Result<EdgeGradients, EvaluationError>> {
        if self.left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) <= 0 {
            let failed = || Err(EvaluationError::Device("fell off the bus".into()));
            return batch.iter().map(|_| failed()).collect();
        }
        let mut answers = potential().edge_gradients(batch);
        for answer in answers.iter_mut().flatten() {
            answer.energy += self.shift;
        }
        answers
    }
}

#[test]
fn a_worker_whose_device_fails_says_so_and_comes_back_with_the_same_numbers() {
    use std::sync::Arc;
    use umaserve::worker::{PotentialSource, serve_reviving};
    let device = |left: i64, shift: f64| -> Arc<dyn Potential> {
        let left = left.into();
        Arc::new(Breaking { left, shift })
    };
    let shards = || {
        let shard = |id| Shard {
            id,
            ..shard(1, mixed_jobs())
        };
        (1..=3).map(shard)
    };
    // One evaluation for the probe; a shard takes two.
    let made = std::sync::atomic::AtomicU32::new(0);
    let source = PotentialSource {
        create: Box::new(move || {
            match made.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => Err("the driver is not back yet".into()),
                // Computes, but not what it did before.
                1 => Ok(device(100, 1e-9)),
                _ => Ok(device(100, 0.0)),
            }
        }),
        probe: cluster(2, 0),
    };
    let mut link = Script::new(shards());
    let reason = serve_reviving(&mut link, device(4, 0.0), &source, MAX_EDGES);
    assert_eq!(reason, None, "no more shards");
    assert_eq!(
        link.said,
        ["answer 1", "unfit: fell off the bus", "fit", "answer 3"],
        "the shard in hand is not answered"
    );
    let expected = run(&shards().next().unwrap(), &potential(), MAX_EDGES);
    assert_eq!(link.answers, [expected.clone(), expected]);
}
