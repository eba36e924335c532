//! The link of a worker, without an engine behind it.

use std::sync::Arc;
use umaserve::comm::{Link, Outcome, Shard};

/// Hands out shards and notes what the worker says.
pub struct Script {
    shards: std::vec::IntoIter<Shard>,
    before: Box<dyn FnMut(u64)>,
    ready: bool,
    /// `answer ID`, `unfit: REASON`, `fit`, and `beside ID` for a shard taken while others are in hand.
    pub said: Vec<String>,
    /// The outcomes of the answered shards, in the order of the answers.
    pub answers: Vec<Vec<Outcome>>,
}

impl Script {
    /// One shard after the other.
    pub fn new(shards: impl IntoIterator<Item = Shard>) -> Script {
        Script {
            shards: shards.into_iter().collect::<Vec<_>>().into_iter(),
            before: Box::new(|_| ()),
            ready: false,
            said: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// All shards ready at once.
    pub fn ready(self) -> Script {
        Script {
            ready: true,
            ..self
        }
    }

    /// Does something before the worker gets a shard.
    pub fn before(self, before: impl FnMut(u64) + 'static) -> Script {
        Script {
            before: Box::new(before),
            ..self
        }
    }
}

impl Link for Script {
    fn take(&mut self) -> Option<Arc<Shard>> {
        let shard = self.shards.next()?;
        (self.before)(shard.id);
        Some(Arc::new(shard))
    }

    fn try_take(&mut self) -> Option<Arc<Shard>> {
        if !self.ready {
            return None;
        }
        let shard = self.take()?;
        self.said.push(format!("beside {}", shard.id));
        Some(shard)
    }

    fn answer(&mut self, shard: u64, outcomes: Vec<Outcome>) {
        self.said.push(format!("answer {shard}"));
        self.answers.push(outcomes);
    }

    fn tell_unfit(&mut self, reason: &str) {
        self.said.push(format!("unfit: {reason}"));
    }

    fn tell_fit(&mut self) {
        self.said.push("fit".into());
    }
}
