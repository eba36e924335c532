//! The ready queue: what holds for every sequence of events, and fairness on a simulated clock.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::collection::vec;
use proptest::prelude::*;
use umaserve::comm::{Job, Outcome, SessionId, Task};
use umaserve::dynamics::{Method, State};
use umaserve::scheduler::{Dispatch, SHARDS_PER_WORKER, Scheduler};
use umaserve::system::System;

fn job(session: u64, serial: u64, atoms: usize) -> Job {
    Job {
        session: SessionId(session),
        serial,
        task: Task::Step(Method::VelocityVerlet { timestep_fs: 1.0 }),
        state: State {
            system: System {
                numbers: vec![1; atoms],
                positions: vec![[0.0; 3]; atoms],
                ..System::default()
            },
            ..State::default()
        },
    }
}

fn outcome(job: &Job, edges: u64) -> Outcome {
    Outcome {
        session: job.session,
        serial: job.serial,
        result: Ok(job.state.clone()),
        edges,
    }
}

fn outcomes_of(dispatch: &Dispatch, edges: impl Fn(&Job) -> u64) -> Vec<Outcome> {
    let jobs = dispatch.shard.jobs.iter();
    jobs.map(|job| outcome(job, edges(job))).collect()
}

/// What can happen to a scheduler.
#[derive(Clone, Debug)]
enum Step {
    Push { session: u64, atoms: usize },
    Dispatch,
    Finish { pick: usize, edges: u64 },
    Close { session: u64 },
    Lose { worker: usize },
    Suspend { worker: usize },
    Restore { worker: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..12u64, 0..60usize).prop_map(|(session, atoms)| Step::Push { session, atoms }),
        4 => Just(Step::Dispatch),
        4 => (any::<usize>(), 0..5000u64).prop_map(|(pick, edges)| Step::Finish { pick, edges }),
        1 => (0..12u64).prop_map(|session| Step::Close { session }),
        1 => (0..4usize).prop_map(|worker| Step::Lose { worker }),
        1 => (0..4usize).prop_map(|worker| Step::Suspend { worker }),
        2 => (0..4usize).prop_map(|worker| Step::Restore { worker }),
    ]
}

const WORKERS: usize = 4;

/// Worker and jobs of every shard sent, in order.
type Log = Vec<(usize, Vec<(SessionId, u64)>)>;

/// Plays the steps against a model that knows where every job is, and returns the shards.
fn play(budget: u64, steps: &[Step]) -> Result<Log, TestCaseError> {
    let mut scheduler = Scheduler::new(WORKERS, budget);
    let mut log = Vec::new();
    let mut serial = 0;
    // The model: queued jobs, jobs out by shard, workers alive.
    let mut queued: HashMap<SessionId, u64> = HashMap::new();
    let mut out: Vec<Dispatch> = Vec::new();
    let mut alive = [true; WORKERS];
    let mut suspended = [false; WORKERS];

    let take = |scheduler: &mut Scheduler,
                queued: &mut HashMap<SessionId, u64>,
                out: &mut Vec<Dispatch>,
                alive: &[bool; WORKERS],
                log: &mut Vec<_>|
     -> Result<(), TestCaseError> {
        while let Some(dispatch) = scheduler.next_dispatch() {
            prop_assert!(alive[dispatch.worker], "a shard for a lost worker");
            prop_assert!(!dispatch.shard.jobs.is_empty());
            prop_assert!(
                dispatch.cost_edges <= budget || dispatch.shard.jobs.len() == 1,
                "{} edges in a shard of {} jobs, the budget is {budget}",
                dispatch.cost_edges,
                dispatch.shard.jobs.len()
            );
            for job in &dispatch.shard.jobs {
                prop_assert_eq!(queued.remove(&job.session), Some(job.serial));
            }
            let names = dispatch.shard.jobs.iter();
            log.push((
                dispatch.worker,
                names.map(|job| (job.session, job.serial)).collect(),
            ));
            out.push(dispatch);
            for worker in 0..WORKERS {
                let has = out.iter().filter(|d| d.worker == worker).count();
                prop_assert!(has <= SHARDS_PER_WORKER, "worker {worker} has {has} shards");
            }
        }
        Ok(())
    };

    for step in steps {
        match *step {
            Step::Push { session, atoms } => {
                serial += 1;
                scheduler.push(job(session, serial, atoms));
                queued.insert(SessionId(session), serial);
            }
            Step::Dispatch => take(&mut scheduler, &mut queued, &mut out, &alive, &mut log)?,
            Step::Finish { pick, edges } => {
                if !out.is_empty() {
                    // A worker answers in order.
                    let worker = out[pick % out.len()].worker;
                    let first = out.iter().position(|d| d.worker == worker).unwrap();
                    let done = out.remove(first);
                    let outcomes = outcomes_of(&done, |_| edges);
                    prop_assert!(scheduler.complete(done.worker, done.shard.id, &outcomes));
                    prop_assert!(!scheduler.complete(done.worker, done.shard.id, &outcomes));
                }
            }
            Step::Close { session } => {
                scheduler.remove(SessionId(session));
                queued.remove(&SessionId(session));
            }
            Step::Restore { worker } => {
                // A lost worker does not come back.
                alive[worker] |= std::mem::take(&mut suspended[worker]);
                scheduler.restore_worker(worker);
            }
            Step::Lose { worker } | Step::Suspend { worker } => {
                let given_up = match *step {
                    Step::Suspend { .. } => {
                        suspended[worker] |= alive[worker];
                        scheduler.suspend_worker(worker)
                    }
                    _ => {
                        suspended[worker] = false;
                        scheduler.lose_worker(worker)
                    }
                };
                alive[worker] = false;
                let lost: Vec<Dispatch> = out.extract_if(.., |d| d.worker == worker).collect();
                let abandoned: BTreeSet<_> =
                    given_up.iter().map(|j| (j.session, j.serial)).collect();
                for job in lost.iter().flat_map(|d| &d.shard.jobs) {
                    if !abandoned.contains(&(job.session, job.serial)) {
                        // The newest job of a session counts.
                        let serial = queued.entry(job.session).or_insert(job.serial);
                        *serial = job.serial.max(*serial);
                    }
                }
                // Jobs of closed sessions are dropped: the queue tells which.
                queued.retain(|session, serial| {
                    let back = scheduler.queued_job(*session);
                    back.is_some_and(|job| job.serial == *serial)
                });
            }
        }
        prop_assert_eq!(scheduler.queued(), queued.len());
        prop_assert_eq!(scheduler.shards_out(), out.len());
        let left = (0..WORKERS).filter(|&w| alive[w] || suspended[w]).count();
        prop_assert_eq!(scheduler.workers_left(), left);
    }

    // With a worker left, everything that is queued leaves and comes back.
    if alive.contains(&true) {
        let mut rounds = 0;
        loop {
            take(&mut scheduler, &mut queued, &mut out, &alive, &mut log)?;
            if out.is_empty() {
                break;
            }
            let done = out.remove(0);
            let outcomes = outcomes_of(&done, |_| 10);
            prop_assert!(scheduler.complete(done.worker, done.shard.id, &outcomes));
            rounds += 1;
            prop_assert!(rounds < 200, "jobs remain: {queued:?}");
        }
        prop_assert!(queued.is_empty(), "never dispatched: {queued:?}");
        prop_assert_eq!(scheduler.queued(), 0);
    } else {
        prop_assert!(scheduler.next_dispatch().is_none());
        let mut drained: Vec<_> = scheduler.drain().iter().map(|j| j.session).collect();
        drained.sort();
        let mut expected: Vec<_> = queued.into_keys().collect();
        expected.sort();
        prop_assert_eq!(drained, expected);
    }
    Ok(log)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn budget_places_and_jobs_are_kept_in_any_order_of_events(
        budget in 1..8000u64, steps in vec(step(), 0..120)
    ) {
        let first = play(budget, &steps)?;
        prop_assert_eq!(first, play(budget, &steps)?, "the same events gave other shards");
    }

    /// A ready job is overtaken by each other session for at most about its own cost.
    #[test]
    fn a_ready_job_waits_for_a_bounded_amount_of_work(
        edges in vec(1..4000u64, 2..12), workers in 1..4usize, budget in 100..3000u64
    ) {
        let run = simulate(workers, budget, &edges, 400_000.0, 0.0);
        let total: u64 = edges.iter().sum();
        for (session, &own) in edges.iter().enumerate() {
            let bound = (edges.len() as u64 * own + total) as f64
                + (2 * workers) as f64 * (budget.max(*edges.iter().max().unwrap()) as f64)
                // The first jobs are estimated from their atoms.
                + run.warm_up;
            let worst = run.longest_wait[&SessionId(session as u64)];
            prop_assert!(worst <= bound, "session of {own} edges waited {worst} > {bound}");
        }
    }
}

/// What a simulation on a simulated clock has shown; times in edges of device time.
struct Run {
    /// Device time used by each session's jobs after the warm-up.
    used: BTreeMap<SessionId, f64>,
    /// Longest time from ready to outcome.
    longest_wait: BTreeMap<SessionId, f64>,
    /// Mean time from ready to outcome.
    mean_wait: BTreeMap<SessionId, f64>,
    /// Time before which nothing is counted.
    warm_up: f64,
}

/// Sessions of the given sizes that are ready again `pause` after every outcome; a shard takes
/// as long as it has edges.
fn simulate(workers: usize, budget: u64, edges: &[u64], duration: f64, pause: f64) -> Run {
    let mut scheduler = Scheduler::new(workers, budget);
    let mut now = 0.0;
    let mut ready: Vec<(f64, u64)> = (0..edges.len() as u64).map(|s| (0.0, s)).collect();
    let mut since: HashMap<SessionId, f64> = HashMap::new();
    let mut on_worker: Vec<Vec<Dispatch>> = vec![Vec::new(); workers];
    let mut ends: Vec<f64> = vec![f64::INFINITY; workers];
    let warm_up = 4.0 * edges.iter().sum::<u64>() as f64;
    let mut run = Run {
        used: BTreeMap::new(),
        longest_wait: BTreeMap::new(),
        mean_wait: BTreeMap::new(),
        warm_up,
    };
    let mut waits: BTreeMap<SessionId, (f64, f64)> = BTreeMap::new();
    let cost = |job: &Job| edges[job.session.0 as usize];
    let time =
        |dispatch: &Dispatch| dispatch.shard.jobs.iter().map(cost).sum::<u64>().max(1) as f64;
    while now < duration {
        ready.sort_by(|a, b| a.partial_cmp(b).unwrap());
        while let Some(&(at, session)) = ready.first()
            && at <= now
        {
            ready.remove(0);
            // Few atoms, so that the first estimate is not larger than the truth by much.
            scheduler.push(job(session, 0, 2));
            since.insert(SessionId(session), at);
        }
        while let Some(dispatch) = scheduler.next_dispatch() {
            let worker = dispatch.worker;
            if on_worker[worker].is_empty() {
                ends[worker] = now + time(&dispatch);
            }
            on_worker[worker].push(dispatch);
        }
        let worker = (0..workers)
            .min_by(|&a, &b| ends[a].total_cmp(&ends[b]))
            .unwrap();
        let next_ready = ready.first().map_or(f64::INFINITY, |r| r.0);
        if next_ready < ends[worker] {
            now = next_ready;
            continue;
        }
        now = ends[worker];
        assert!(now.is_finite(), "nothing runs and nothing is ready");
        let done = on_worker[worker].remove(0);
        scheduler.complete(worker, done.shard.id, &outcomes_of(&done, cost));
        ends[worker] = on_worker[worker]
            .first()
            .map_or(f64::INFINITY, |next| now + time(next));
        for job in &done.shard.jobs {
            let wait = now - since[&job.session];
            if since[&job.session] >= warm_up {
                *run.used.entry(job.session).or_default() += cost(job) as f64;
                let worst = run.longest_wait.entry(job.session).or_default();
                *worst = worst.max(wait);
                let (sum, count) = waits.entry(job.session).or_default();
                *sum += wait;
                *count += 1.0;
            } else {
                run.longest_wait.entry(job.session).or_default();
            }
            ready.push((now + pause, job.session.0));
        }
    }
    for (session, (sum, count)) in waits {
        run.mean_wait.insert(session, sum / count);
    }
    run
}

#[test]
fn a_session_100_times_smaller_gets_its_half_of_the_device() {
    let run = simulate(1, 1000, &[20, 2000], 4e6, 0.0);
    let small = run.used[&SessionId(0)];
    let large = run.used[&SessionId(1)];
    let share = small / (small + large);
    assert!((0.45..0.55).contains(&share), "share {share}");
}

#[test]
fn a_large_session_is_not_starved_by_many_small_ones() {
    let mut edges = vec![20; 50];
    edges.push(2000);
    let run = simulate(1, 400, &edges, 4e6, 0.0);
    let total: f64 = run.used.values().sum();
    let share = run.used[&SessionId(50)] / total;
    let fair = 1.0 / 51.0;
    assert!(share > 0.7 * fair, "share {share}, fair would be {fair}");
    let small = run.used[&SessionId(0)] / total;
    assert!(small > 0.7 * fair, "share {small}, fair would be {fair}");
}

#[test]
fn equal_sessions_make_equal_progress() {
    let run = simulate(2, 300, &[100; 20], 1e6, 0.0);
    let least = run.used.values().copied().fold(f64::INFINITY, f64::min);
    let most = run.used.values().copied().fold(0.0, f64::max);
    assert!(least > 0.9 * most, "{least} to {most}");
}

#[test]
fn a_large_session_does_not_delay_small_ones_where_another_worker_is_free() {
    let run = simulate(2, 1000, &[20, 20, 20, 100_000], 4e6, 5.0);
    for session in 0..3 {
        let worst = run.longest_wait[&SessionId(session)];
        assert!(
            worst <= 120.0,
            "session {session} waited {worst} edges of time"
        );
    }
    let large = run.used[&SessionId(3)];
    assert!(
        large > 0.9 * (4e6 - run.warm_up - 2e5),
        "large one got {large}"
    );
}

#[test]
fn an_interactive_session_beside_md_sessions_waits_for_two_shards_at_most() {
    // Eight busy sessions, and one that computes now and then.
    let mut scheduler = Scheduler::new(1, 200);
    for session in 0..8 {
        scheduler.push(job(session, 1, 10));
    }
    let first = scheduler.next_dispatch().unwrap();
    let second = scheduler.next_dispatch().unwrap();
    assert!(scheduler.next_dispatch().is_none());
    scheduler.push(job(99, 1, 3));
    let costs = |_: &Job| 90;
    assert!(scheduler.complete(0, first.shard.id, &outcomes_of(&first, costs)));
    for done in &first.shard.jobs {
        scheduler.push(job(done.session.0, 2, 10));
    }
    let third = scheduler.next_dispatch().unwrap();
    assert!(
        third
            .shard
            .jobs
            .iter()
            .any(|job| job.session == SessionId(99))
    );
    assert!(scheduler.complete(0, second.shard.id, &outcomes_of(&second, costs)));
}

#[test]
fn an_answer_that_somebody_waits_for_goes_before_steps_but_is_charged_in_full() {
    let mut scheduler = Scheduler::new(1, 90);
    scheduler.push(job(0, 1, 10));
    let in_hand = scheduler.next_dispatch().unwrap();
    for session in 1..4 {
        scheduler.push(job(session, 1, 10));
    }
    let reply = Job {
        task: Task::Evaluate,
        ..job(9, 1, 10)
    };
    scheduler.push(reply.clone());
    let second = scheduler.next_dispatch().unwrap();
    let is_reply = |dispatch: &Dispatch| dispatch.shard.jobs == std::slice::from_ref(&reply);
    assert!(is_reply(&second), "the last to come, the first to go");
    // Its session has had its share and now comes after the others.
    let mut order = Vec::new();
    let mut ahead = vec![in_hand, second];
    while !ahead.is_empty() {
        let done = ahead.remove(0);
        scheduler.complete(0, done.shard.id, &outcomes_of(&done, |_| 90));
        if is_reply(&done) {
            scheduler.push(job(9, 2, 10));
        }
        while let Some(next) = scheduler.next_dispatch() {
            order.extend(next.shard.jobs.iter().map(|job| job.session.0));
            ahead.push(next);
        }
    }
    assert_eq!(order, [1, 2, 3, 9]);
}

#[test]
fn idle_workers_share_what_is_ready() {
    let mut scheduler = Scheduler::new(3, 1_000_000);
    for session in 0..9 {
        scheduler.push(job(session, 1, 10));
    }
    let shards: Vec<_> = std::iter::from_fn(|| scheduler.next_dispatch()).collect();
    let mut sizes: Vec<_> = shards
        .iter()
        .map(|d| (d.worker, d.shard.jobs.len()))
        .collect();
    sizes.sort();
    assert_eq!(sizes, [(0, 3), (1, 3), (2, 3)]);
}

#[test]
fn a_newer_job_replaces_the_queued_one_of_its_session() {
    let mut scheduler = Scheduler::new(1, 1000);
    scheduler.push(job(1, 1, 3));
    scheduler.push(job(1, 2, 3));
    let shard = scheduler.next_dispatch().unwrap().shard;
    assert_eq!(shard.jobs.len(), 1);
    assert_eq!(shard.jobs[0].serial, 2);
    assert!(scheduler.next_dispatch().is_none());
}

#[test]
fn jobs_of_a_lost_worker_go_to_another_one_before_younger_jobs() {
    let mut scheduler = Scheduler::new(2, 6);
    for session in 0..4 {
        scheduler.push(job(session, 1, 3));
    }
    let shards: Vec<_> = std::iter::from_fn(|| scheduler.next_dispatch()).collect();
    assert_eq!(
        shards.len(),
        4,
        "one job of six edges per shard, four places"
    );
    let lost: BTreeSet<_> = shards
        .iter()
        .filter(|d| d.worker == 0)
        .flat_map(|d| d.shard.jobs.iter().map(|job| job.session))
        .collect();
    scheduler.push(job(7, 1, 3));
    assert!(scheduler.lose_worker(0).is_empty());
    assert_eq!(scheduler.workers_alive(), 1);
    let mut order = Vec::new();
    let mut in_hand: Vec<_> = shards.into_iter().filter(|d| d.worker == 1).collect();
    while !in_hand.is_empty() {
        let done = in_hand.remove(0);
        scheduler.complete(1, done.shard.id, &outcomes_of(&done, |_| 6));
        while let Some(dispatch) = scheduler.next_dispatch() {
            assert_eq!(dispatch.worker, 1);
            order.extend(dispatch.shard.jobs.iter().map(|job| job.session));
            in_hand.push(dispatch);
        }
    }
    assert_eq!(order.len(), 3);
    assert_eq!(order[..2].iter().copied().collect::<BTreeSet<_>>(), lost);
    assert_eq!(order[2], SessionId(7));
}

#[test]
fn a_job_that_kills_workers_is_given_up_before_it_has_killed_them_all() {
    let mut scheduler = Scheduler::new(3, 1000);
    scheduler.push(job(1, 1, 3));
    let mut losses = 0;
    let given_up = loop {
        let dispatch = scheduler
            .next_dispatch()
            .expect("the job goes to another worker");
        losses += 1;
        let given_up = scheduler.lose_worker(dispatch.worker);
        if !given_up.is_empty() {
            break given_up;
        }
    };
    assert_eq!((losses, given_up.len()), (2, 1));
    assert_eq!(given_up[0].session, SessionId(1));
    assert_eq!(scheduler.workers_alive(), 1);
}

#[test]
fn costs_follow_the_last_outcome_and_the_number_of_atoms() {
    let mut scheduler = Scheduler::new(1, 1000);
    assert_eq!(
        scheduler.cost_edges(&job(1, 1, 3)),
        6,
        "three atoms, six ordered pairs"
    );
    scheduler.push(job(1, 1, 3));
    let dispatch = scheduler.next_dispatch().unwrap();
    scheduler.complete(0, dispatch.shard.id, &outcomes_of(&dispatch, |_| 300));
    assert_eq!(scheduler.cost_edges(&job(1, 2, 3)), 300);
    assert_eq!(scheduler.cost_edges(&job(1, 2, 6)), 600);
    assert_eq!(scheduler.cost_edges(&job(2, 1, 0)), 1, "nothing is free");
}
