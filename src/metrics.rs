//! What the service counts and measures, for Prometheus.
//!
//! Whoever does something counts it here: engine, server, recorder. A count is an atomic addition;
//! what would take longer (the recorder's own counters) is fetched when somebody asks, by
//! [`Metrics::before_reading`]. Names and meanings are in docs/operations.md.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// One label with its value.
type Label = [(&'static str, String); 1];

/// Seconds, as Prometheus counts them.
type Seconds = Counter<f64, AtomicU64>;

/// Fetches what others count.
type Refresh = Box<dyn Fn(&Metrics) + Send + Sync>;

/// First words of the notices that are counted by their own name.
const NOTICES: &[&str] = &[
    "ACK_CLEARED",
    "CALCULATOR_NOT_SUPPORTED",
    "COMPUTE_ERROR",
    "IDLE_WAITING_FOR_GEOMETRY",
    "PROTO_VIOLATION",
    "RATE_LIMITED",
    "RECORDING_FAILED",
    "RECORDING_RESUMED",
    "SERVER_DRAINING",
    "SIMULATION_STOPPED",
    "STRUCTURE_CHANGED",
    "WAITING_FOR_ACK",
];

/// All counters, gauges and histograms of the service.
pub struct Metrics {
    registry: Registry,
    refresh: OnceLock<Refresh>,

    /// Sessions now.
    pub sessions: Gauge,
    /// Connections now, WebSockets and others.
    pub connections: Gauge,
    /// Jobs that wait for a worker now.
    pub queued_jobs: Gauge,
    /// Workers that take shards now.
    pub workers: Gauge,
    /// Messages that viewers have not acknowledged, all sessions together.
    pub unacked: Gauge,
    /// The same of the session that is furthest behind.
    pub unacked_most: Gauge,

    /// Simulation steps and evaluations done.
    pub jobs: Counter,
    /// Of these, failed.
    pub failed_jobs: Counter,
    /// Frames handed to the viewers' queues.
    pub frames: Counter,
    notices: Family<Label, Counter>,
    /// Messages read from viewers.
    pub messages: Counter,
    /// Bytes of these.
    pub message_bytes: Counter,

    /// Structures in one batch.
    pub batch_structures: Histogram,
    /// Directed edges in one batch.
    pub batch_edges: Histogram,
    /// Time of a batch on a worker, as rank 0 sees it: forward, backward, integrator, transfer.
    pub forward_seconds: Histogram,
    /// Time of a job from the moment it is ready to the moment its outcome is there: the wait for
    /// a place in a batch, and the batch.
    pub step_seconds: Histogram,
    busy: Family<Label, Seconds>,

    /// Frames that no crash can take away any more.
    pub recorded_frames: Gauge,
    /// Frames given up by the recorder.
    pub recorded_frames_dropped: Gauge,
    /// Bytes of recordings on disk.
    pub recorded_bytes: Gauge,
    /// Whether recording failed the last time: 0 or 1.
    pub recording_failing: Gauge,

    /// How often ranks or job were started again.
    pub restarts: Gauge,
    auth_failures: Family<Label, Counter>,
    refusals: Family<Label, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("umaserve");
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The program", Info::new(version));
        macro_rules! add {
            ($name:literal, $help:literal, $metric:expr) => {{
                let metric = $metric;
                registry.register($name, $help, metric.clone());
                metric
            }};
            ($name:literal, $unit:expr, $help:literal, $metric:expr) => {{
                let metric = $metric;
                registry.register_with_unit($name, $help, $unit, metric.clone());
                metric
            }};
        }
        let gauge = Gauge::<i64, AtomicI64>::default;
        let counter = Counter::<u64, AtomicU64>::default;
        let powers = |first: f64, count: i32| {
            let bounds: Vec<f64> = (0..count).map(|k| first * 2f64.powi(k)).collect();
            move || Histogram::new(bounds.iter().copied())
        };
        let times = powers(1e-4, 18); // 0.1 ms to 13 s
        Metrics {
            refresh: OnceLock::new(),
            sessions: add!("sessions", "Sessions now", gauge()),
            connections: add!("connections", "HTTP and WebSocket connections now", gauge()),
            queued_jobs: add!("queued_jobs", "Jobs waiting for a worker now", gauge()),
            workers: add!("workers", "Workers that take batches now", gauge()),
            unacked: add!(
                "unacked_messages",
                "Messages not acknowledged by viewers, all sessions together",
                gauge()
            ),
            unacked_most: add!(
                "unacked_messages_most",
                "Messages not acknowledged by the viewer that is furthest behind",
                gauge()
            ),
            jobs: add!("jobs", "Simulation steps and evaluations done", counter()),
            failed_jobs: add!("failed_jobs", "Jobs that failed", counter()),
            frames: add!("frames", "Frames sent to viewers", counter()),
            notices: add!(
                "notices",
                "Notices sent to viewers, by kind",
                Family::default()
            ),
            messages: add!("messages", "Messages read from viewers", counter()),
            message_bytes: add!(
                "messages_received",
                Unit::Bytes,
                "Bytes of messages read from viewers",
                counter()
            ),
            batch_structures: add!(
                "batch_structures",
                "Structures evaluated in one batch",
                powers(1.0, 10)()
            ),
            batch_edges: add!(
                "batch_edges",
                "Directed edges evaluated in one batch",
                powers(64.0, 18)()
            ),
            forward_seconds: add!(
                "forward",
                Unit::Seconds,
                "Time of a batch on a worker, seen from rank 0",
                times()
            ),
            step_seconds: add!(
                "step",
                Unit::Seconds,
                "Time of a job from ready to done, waiting included",
                times()
            ),
            busy: add!(
                "worker_busy",
                Unit::Seconds,
                "Time in which a rank had a batch in hand; its rate is the busy share",
                Family::default()
            ),
            recorded_frames: add!("recorded_frames", "Frames safe on disk", gauge()),
            recorded_frames_dropped: add!(
                "recorded_frames_dropped",
                "Frames that the recorder had to give up",
                gauge()
            ),
            recorded_bytes: add!(
                "recorded",
                Unit::Bytes,
                "Bytes of recordings on disk",
                gauge()
            ),
            recording_failing: add!(
                "recording_failing",
                "Whether the last attempt to write a recording failed",
                gauge()
            ),
            restarts: add!(
                "restarts",
                "How often the ranks or the job were started again",
                gauge()
            ),
            auth_failures: add!(
                "auth_failures",
                "Requests without a right token or from a wrong origin, by reason",
                Family::default()
            ),
            refusals: add!(
                "refusals",
                "Requests and messages beyond a limit, by limit",
                Family::default()
            ),
            registry,
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// What to do before every reading, for example to fetch counters that others keep. The first
    /// call counts.
    pub fn before_reading(&self, refresh: impl Fn(&Metrics) + Send + Sync + 'static) {
        // A second one would be a mistake of the caller that harms nothing.
        let _ = self.refresh.set(Box::new(refresh));
    }

    /// Fetches what [`Metrics::before_reading`] says.
    pub fn refresh(&self) {
        if let Some(refresh) = self.refresh.get() {
            refresh(self);
        }
    }

    /// Everything in the text format of OpenMetrics, which Prometheus reads.
    pub fn text(&self) -> String {
        self.refresh();
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// Counts a notice by its first word.
    pub fn count_notice(&self, message: &str) {
        let word = message.split([':', ' ']).next().unwrap_or_default();
        let kind = NOTICES.iter().find(|&&kind| kind == word);
        let label = [("kind", (*kind.unwrap_or(&"OTHER")).to_owned())];
        self.notices.get_or_create(&label).inc();
    }

    /// Counts a request that was not let in.
    pub fn count_auth_failure(&self, reason: &'static str) {
        self.auth_failures
            .get_or_create(&[("reason", reason.to_owned())])
            .inc();
    }

    /// Requests that were not let in, all reasons together.
    pub fn auth_failures(&self) -> u64 {
        ["missing", "wrong", "too_many", "origin", "host"]
            .into_iter()
            .filter_map(|reason| self.auth_failures.get(&[("reason", reason.to_owned())]))
            .map(|counter| counter.get())
            .sum()
    }

    /// Counts something beyond a limit.
    pub fn count_refusal(&self, limit: &'static str) {
        self.refusals
            .get_or_create(&[("limit", limit.to_owned())])
            .inc();
    }

    /// Time in which this rank had a batch in hand.
    pub fn add_busy(&self, rank: usize, time: Duration) {
        self.busy
            .get_or_create(&[("rank", rank.to_string())])
            .inc_by(time.as_secs_f64());
    }

    /// Seconds in which this rank had a batch in hand so far.
    pub fn busy_seconds(&self, rank: usize) -> f64 {
        self.busy
            .get(&[("rank", rank.to_string())])
            .map_or(0.0, |seconds| seconds.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_what_was_counted() {
        let metrics = Metrics::default();
        metrics.jobs.inc_by(3);
        metrics.count_notice("PROTO_VIOLATION: natoms = 7");
        metrics.count_notice("<script>");
        metrics.count_auth_failure("wrong");
        metrics.add_busy(2, Duration::from_millis(1500));
        metrics.batch_edges.observe(100.0);
        metrics.forward_seconds.observe(0.003);
        metrics.before_reading(|metrics| {
            metrics.recorded_bytes.set(4096);
        });
        let text = metrics.text();
        for line in [
            "umaserve_jobs_total 3",
            "umaserve_notices_total{kind=\"PROTO_VIOLATION\"} 1",
            "umaserve_notices_total{kind=\"OTHER\"} 1",
            "umaserve_auth_failures_total{reason=\"wrong\"} 1",
            "umaserve_worker_busy_seconds_total{rank=\"2\"} 1.5",
            "umaserve_batch_edges_bucket{le=\"64.0\"} 0",
            "umaserve_batch_edges_bucket{le=\"128.0\"} 1",
            "umaserve_forward_seconds_count 1",
            "umaserve_recorded_bytes 4096",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert_eq!(metrics.auth_failures(), 1);
        assert_eq!(
            (metrics.busy_seconds(2), metrics.busy_seconds(1)),
            (1.5, 0.0)
        );
    }
}
