//! The bounded queue between the engine and the writer thread.
//!
//! It is bounded by bytes, not by messages: a frame of ten atoms and one of a million must not
//! count the same. Frames and events may be refused; Open and Close are few and always taken, so a
//! full queue never loses the end of a file.

use std::collections::VecDeque;
use std::mem::size_of;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{FrameData, RecordMessage, TrajectoryError};

/// Messages on their way to the writer.
#[derive(Debug)]
pub(super) struct Queue {
    limit_bytes: usize,
    inner: Mutex<Inner>,
    filled: Condvar,
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    messages: VecDeque<RecordMessage>,
    bytes: usize,
    closed: bool,
    /// Frames refused per session since the writer last asked.
    refused: Vec<(u64, u64)>,
}

/// What the writer gets.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one lives at a time; boxing would allocate for every frame"
)]
pub(super) enum Received {
    /// The next message.
    Message(RecordMessage),
    /// Nothing came before the deadline.
    Nothing,
    /// The sender is gone and everything was handed out.
    Closed,
}

impl Queue {
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            inner: Mutex::new(Inner::default()),
            filled: Condvar::new(),
            emptied: Condvar::new(),
        }
    }

    /// Appends a message, waiting at most `timeout` for room if it is a frame or an event.
    pub(super) fn push(
        &self,
        message: RecordMessage,
        timeout: Duration,
    ) -> Result<(), TrajectoryError> {
        let bytes = message_bytes(&message);
        let frame_of = match &message {
            RecordMessage::Frame { key, .. } => Some(*key),
            _ => None,
        };
        let mut inner = self.lock();
        let start = Instant::now();
        // An empty queue takes anything, so that a frame larger than the limit can pass.
        while bytes > 0
            && !inner.closed
            && inner.bytes > 0
            && inner.bytes + bytes > self.limit_bytes
        {
            let Some(left) = timeout.checked_sub(start.elapsed()) else {
                if let Some(key) = frame_of {
                    match inner.refused.iter_mut().find(|(k, _)| *k == key) {
                        Some((_, count)) => *count += 1,
                        None => inner.refused.push((key, 1)),
                    }
                }
                return Err(TrajectoryError::Full {
                    waited_ms: timeout.as_millis() as u64,
                    queued_bytes: inner.bytes,
                });
            };
            inner = self
                .emptied
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        if inner.closed {
            return Err(TrajectoryError::Stopped);
        }
        inner.bytes += bytes;
        inner.messages.push_back(message);
        drop(inner);
        self.filled.notify_one();
        Ok(())
    }

    /// Takes the next message, waiting until `deadline`.
    pub(super) fn pop(&self, deadline: Instant) -> Received {
        let mut inner = self.lock();
        loop {
            if let Some(message) = inner.messages.pop_front() {
                inner.bytes -= message_bytes(&message);
                drop(inner);
                self.emptied.notify_all();
                return Received::Message(message);
            }
            if inner.closed {
                return Received::Closed;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Received::Nothing;
            };
            inner = self
                .filled
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Takes the counts of refused frames, as (session, frames).
    pub(super) fn take_refused(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.lock().refused)
    }

    /// Lets the writer end once the queue is empty; later messages are refused.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
        self.emptied.notify_all();
    }

    /// Bytes waiting.
    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    // A panic of the other side leaves plain data behind, so a poisoned lock is still usable.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn message_bytes(message: &RecordMessage) -> usize {
    match message {
        RecordMessage::Frame { frame, .. } => {
            let vectors = frame.positions.len() + frame.velocities.len() + frame.forces.len();
            size_of::<FrameData>() + vectors * size_of::<[f64; 3]>()
        }
        RecordMessage::Event { text, .. } => size_of::<RecordMessage>() + text.len(),
        RecordMessage::Open { .. }
        | RecordMessage::Resume { .. }
        | RecordMessage::Flush { .. }
        | RecordMessage::Close { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(atoms: usize) -> RecordMessage {
        RecordMessage::Frame {
            key: 7,
            frame: FrameData {
                positions: vec![[0.0; 3]; atoms],
                ..FrameData::default()
            },
        }
    }

    #[test]
    fn a_full_queue_refuses_frames_and_counts_them() {
        let queue = Queue::new(10_000);
        let timeout = Duration::from_millis(5);
        let mut taken = 0;
        while queue.push(frame(100), timeout).is_ok() {
            taken += 1;
        }
        assert!((2..=4).contains(&taken), "{taken} frames of 2,400 bytes");
        assert!(matches!(
            queue.push(frame(100), timeout),
            Err(TrajectoryError::Full { .. })
        ));
        let event = RecordMessage::Event {
            key: 7,
            step: 0,
            text: "x".repeat(10_000),
        };
        assert!(matches!(
            queue.push(event, timeout),
            Err(TrajectoryError::Full { .. })
        ));
        assert_eq!(queue.take_refused(), vec![(7, 2)], "frames only");
        queue
            .push(RecordMessage::Close { key: 7, step: None }, timeout)
            .expect("the end of a file is never refused");
        assert!(matches!(queue.pop(Instant::now()), Received::Message(_)));
        queue.push(frame(100), timeout).expect("room again");
    }

    #[test]
    fn an_empty_queue_takes_a_frame_larger_than_its_limit() {
        let queue = Queue::new(10);
        queue.push(frame(1000), Duration::ZERO).expect("taken");
        assert!(queue.push(frame(1), Duration::ZERO).is_err());
    }

    #[test]
    fn a_closed_queue_hands_out_what_it_holds() {
        let queue = Queue::new(1 << 20);
        queue.push(frame(1), Duration::ZERO).expect("taken");
        queue.close();
        assert_eq!(
            queue.push(frame(1), Duration::ZERO),
            Err(TrajectoryError::Stopped)
        );
        assert!(matches!(queue.pop(Instant::now()), Received::Message(_)));
        assert!(matches!(queue.pop(Instant::now()), Received::Closed));
        assert_eq!(queue.bytes(), 0);
    }
}
