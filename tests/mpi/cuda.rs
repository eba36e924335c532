//! A rank whose CUDA device fails in mid run: over the kernels compiled for the host.

use super::*;
use crate::common::device::illegal_address;
use crate::common::goldens::{checkpoint, golden, options};
use crate::common::viewer::trajectory;
use umaserve::backend::cuda::device::Device;
use umaserve::backend::cuda::host::HostDevice;
use umaserve::comm::{Outcome, Shard};
use umaserve::potential::Potential;
use umaserve::potential::uma::{Precision, UmaPotential};
use umaserve::worker::{PotentialSource, serve_reviving};

/// The role of the ranks.
pub const FAILS: &str = "cuda-fails";

/// Sessions, and frames of each: enough of them for the rank to come back before the end.
const SESSIONS: u64 = 4;
const STEPS: usize = 40;

fn potential_on(device: &Arc<HostDevice>) -> Result<Arc<dyn Potential>, String> {
    if (**device).unhealthy().is_some() {
        device.recreate().map_err(|error| error.to_string())?;
    }
    let options = options(Precision::Tf32);
    let potential = UmaPotential::on_cuda(checkpoint("1p2"), options, device.clone())?;
    Ok(Arc::new(potential))
}

/// Small molecules in motion, each of them a little different.
pub fn sessions(engine: &EngineHandle) -> Vec<Trace> {
    let viewers: Vec<_> = (0..SESSIONS)
        .map(|k| {
            let engine = engine.clone();
            std::thread::spawn(move || {
                let mut viewer = Viewer::connect(&engine, k + 1);
                let mut water = golden("water");
                water.positions[1][0] += 0.05 * k as f64;
                let trace = trajectory(&mut viewer, &water, false, STEPS);
                viewer.disconnect();
                trace
            })
        })
        .collect();
    let traces = viewers.into_iter().map(|viewer| viewer.join().unwrap());
    traces.collect()
}

/// Passes everything on, makes the device fail once and counts what is answered.
struct Striking<'a> {
    link: &'a mut dyn Link,
    device: Arc<HostDevice>,
    /// Shards until the device fails.
    left: Option<usize>,
    /// Answered until the device failed, and since it came back.
    answered: [usize; 2],
    said: Vec<String>,
}

impl Striking<'_> {
    fn strike(&mut self) {
        match self.left {
            Some(0) => {
                self.left = None;
                self.device.fail_next_launch(illegal_address());
            }
            Some(more) => self.left = Some(more - 1),
            None => {}
        }
    }
}

impl Link for Striking<'_> {
    fn take(&mut self) -> Option<Arc<Shard>> {
        let shard = self.link.take()?;
        self.strike();
        Some(shard)
    }

    fn try_take(&mut self) -> Option<Arc<Shard>> {
        let shard = self.link.try_take()?;
        self.strike();
        Some(shard)
    }

    fn answer(&mut self, shard: u64, outcomes: Vec<Outcome>) {
        for outcome in &outcomes {
            assert!(outcome.result.is_ok(), "{:?}", outcome.result);
        }
        self.answered[usize::from(self.said.len() == 2)] += 1;
        self.link.answer(shard, outcomes);
    }

    fn tell_unfit(&mut self, reason: &str) {
        self.said.push(format!("unfit ({reason})"));
        self.link.tell_unfit(reason);
    }

    fn tell_fit(&mut self) {
        self.said.push("fit".into());
        self.link.tell_fit();
    }
}

/// A worker rank; `fails`: its device does, before its third shard. What it said and answered.
pub fn serve(link: &mut dyn Link, fails: bool) -> Option<String> {
    let device = Arc::new(HostDevice::default());
    let of_source = device.clone();
    let potential = potential_on(&device).unwrap();
    let source = PotentialSource {
        create: Box::new(move || potential_on(&of_source)),
        probe: golden("water"),
    };
    let mut link = Striking {
        link,
        device,
        left: fails.then_some(2),
        answered: [0; 2],
        said: Vec::new(),
    };
    let reason = serve_reviving(&mut link, potential, &source, MAX_EDGES);
    assert_eq!(reason, None, "it does not give up");
    println!(
        "\n{ANSWER}{} {}; answered {:?}",
        if fails { 1 } else { 2 },
        link.said.join(", "),
        link.answered
    );
    None
}

#[test]
fn a_rank_whose_cuda_device_fails_comes_back_and_nothing_is_lost() {
    let potential = potential_on(&Arc::new(HostDevice::default())).unwrap();
    let undisturbed = in_threads(1, potential, sessions);
    let (output, answers) = job(3, FAILS);
    assert!(output.status.success(), "{output:?}");
    let answer = |rank: usize| {
        let found = answers.iter().find(|(of, _)| *of == rank);
        &found.unwrap_or_else(|| panic!("rank {rank}: {output:?}")).1
    };
    // Sessions go on as if nothing had happened: the shards in hand are done by the other rank.
    assert_eq!(*answer(0), undisturbed);
    let (said, answered) = answer(1).split_once("; answered ").unwrap();
    assert!(said.starts_with("unfit ("), "{said}");
    assert!(said.ends_with(", fit"), "{said}");
    assert!(said.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{said}");
    let counts = |answered: &str| -> Vec<usize> {
        let numbers = answered.trim_matches(['[', ']']).split(", ");
        numbers.map(|number| number.parse().unwrap()).collect()
    };
    let of_failed = counts(answered);
    assert!(of_failed[0] > 0, "before it failed: {answered}");
    assert!(of_failed[1] > 0, "after it came back: {answered}");
    let (said, answered) = answer(2).split_once("; answered ").unwrap();
    assert_eq!(said, "", "the other rank's device works");
    assert!(counts(answered)[0] > 0, "{answered}");
}
