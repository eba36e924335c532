//! Compilers side by side.

use std::error::Error;
use std::sync::Mutex;

/// Does all jobs, as many at a time as cargo allows; the errors of all together.
pub fn run<J: Send>(
    jobs: impl Iterator<Item = J> + Send,
    work: impl Fn(J) -> Result<(), String> + Sync,
) -> Result<(), Box<dyn Error>> {
    let waiting = Mutex::new(jobs);
    let errors = Mutex::new(Vec::new());
    let threads: usize = std::env::var("NUM_JOBS")?.parse()?;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().expect("no panics").next();
                    let Some(job) = next else { break };
                    if let Err(error) = work(job) {
                        errors.lock().expect("no panics").push(error);
                    }
                }
            });
        }
    });
    let errors = errors.into_inner()?;
    match errors.is_empty() {
        true => Ok(()),
        false => Err(errors.join("\n").into()),
    }
}
