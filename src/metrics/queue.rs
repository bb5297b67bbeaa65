//! What is counted of one queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;

use crate::diag::printable;
use crate::domain::{Outcome, Timestamp};
use crate::metrics::{Counters, LastError, Metrics, Settled};

/// From an embedding to an answer that thinks for minutes.
const ANSWER_SECONDS: [f64; 14] =
    [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0];

/// So much of a provider's words is kept of an error.
const MESSAGE_CHARS_MAX: usize = 300;

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttemptEnd {
    Answered,
    /// The provider judged the request, and won't have it.
    Refused,
    /// A reply came that is no answer, and asking again would bring none.
    Unanswerable,
    /// Told to come later (429).
    Throttled,
    /// Time-outs, lost connections, 5xx.
    Failed,
    /// Not the request was refused but the key, the quota or the model.
    Blocked,
    /// Given up in flight, since its job ends.
    Abandoned,
}

impl AttemptEnd {
    const ALL: [Self; 7] = [
        Self::Answered,
        Self::Refused,
        Self::Unanswerable,
        Self::Throttled,
        Self::Failed,
        Self::Blocked,
        Self::Abandoned,
    ];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Unanswerable => "unanswerable",
            Self::Throttled => "throttled",
            Self::Failed => "failed",
            Self::Blocked => "blocked",
            Self::Abandoned => "abandoned",
        }
    }

    const fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Answered(_) => Self::Answered,
            Outcome::Refused(_) => Self::Refused,
            Outcome::Unanswerable(_) => Self::Unanswerable,
            Outcome::Throttled { .. } => Self::Throttled,
            Outcome::Failed(_) => Self::Failed,
            Outcome::Blocked(_) => Self::Blocked,
        }
    }
}

/// The cells of one label.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) attempts: Counters<AttemptEnd>,
    pub(super) answers: Histogram,
    pub(super) input_tokens: AtomicU64,
    pub(super) output_tokens: AtomicU64,
    pub(super) in_flight: AtomicU64,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            attempts: Counters::new(AttemptEnd::ALL),
            answers: Histogram::new(ANSWER_SECONDS),
            input_tokens: AtomicU64::default(),
            output_tokens: AtomicU64::default(),
            in_flight: AtomicU64::default(),
        }
    }
}

/// Counts what happens in one queue. Its clones count together.
#[derive(Clone, Debug)]
pub struct QueueMeter {
    metrics: Metrics,
    label: Arc<str>,
    queue: Arc<Queue>,
}

impl QueueMeter {
    pub(super) const fn new(metrics: Metrics, label: Arc<str>, queue: Arc<Queue>) -> Self {
        Self { metrics, label, queue }
    }

    /// The value of the label `queue`.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Counts a request as in flight, until the value is dropped.
    pub fn in_flight(&self) -> InFlight {
        self.queue.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(&self.queue))
    }

    /// Counts an attempt by what was seen; what went wrong is remembered.
    pub fn saw(&self, outcome: &Outcome, now: Timestamp) {
        self.ended(AttemptEnd::of(outcome));
        let (reason, message) = match outcome {
            Outcome::Failed(failure) => (failure.code, &failure.message),
            Outcome::Blocked(blocked) => (blocked.reason.as_str(), &blocked.message),
            Outcome::Answered(_)
            | Outcome::Refused(_)
            | Outcome::Unanswerable(_)
            | Outcome::Throttled { .. } => return,
        };
        let message = printable(message).chars().take(MESSAGE_CHARS_MAX).collect();
        self.metrics.failed(LastError { at: now, queue: self.label.to_string(), reason, message });
    }

    /// Counts an attempt of which nothing was seen, or no more than that.
    pub fn ended(&self, how: AttemptEnd) {
        self.queue.attempts.add(how, 1);
    }

    /// Notes how long an answer took, from the request's first byte to the reply's last.
    pub fn answered_in(&self, took: Duration) {
        self.queue.answers.observe(took.as_secs_f64());
    }

    /// Counts tokens, as the provider's `usage` has them.
    pub fn used(&self, input: u64, output: u64) {
        self.queue.input_tokens.fetch_add(input, Ordering::Relaxed);
        self.queue.output_tokens.fetch_add(output, Ordering::Relaxed);
    }

    /// Counts a request that has got its one line.
    pub fn settled(&self, how: Settled) {
        self.metrics.settled(how, 1);
    }
}

/// A request in flight.
#[derive(Debug)]
pub struct InFlight(Arc<Queue>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Failure, QueueName, Shortage};

    #[test]
    fn the_last_error_is_kept_in_its_words_and_on_one_line() {
        let metrics = Metrics::default();
        let meter = metrics.queue(&QueueName::new("p", Some("m")));
        assert_eq!(metrics.last_error(), None);
        let short_of = Shortage::Unknown;
        meter.saw(
            &Outcome::Throttled { code: "x".to_owned(), retry_after: None, short_of },
            Timestamp::default(),
        );
        assert_eq!(metrics.last_error(), None, "it is no error to be told to come later");
        let at = Timestamp::from_millis(5000);
        let failure = Failure {
            code: "timeout",
            message: format!("a\n{}", "b".repeat(1000)),
            retry_after: None,
            maybe_paid: true,
            response: None,
        };
        meter.saw(&Outcome::Failed(failure), at);
        let last = metrics.last_error().unwrap();
        assert_eq!((last.at, last.queue.as_str(), last.reason), (at, "p/m", "timeout"));
        assert!(last.message.starts_with("a\\nb") && last.message.len() == MESSAGE_CHARS_MAX);
    }

    #[test]
    fn what_is_in_flight_is_so_until_it_is_dropped() {
        let metrics = Metrics::default();
        let meter = metrics.queue(&QueueName::new("p", None));
        let count = || meter.queue.in_flight.load(Ordering::Relaxed);
        let (first, second) = (meter.in_flight(), meter.clone().in_flight());
        assert_eq!(count(), 2);
        drop(first);
        drop(second);
        assert_eq!(count(), 0);
    }
}
