//! The limits of one queue: slots, requests/min, tokens/min, and holding still when told to.
//!
//! All of them belong to one task, so there is nothing to lock. Finding the right concurrency by watching
//! replies, and learning limits from headers, have their place here.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::{self, Concurrency};
use crate::dispatch::attempt::{Ended, EndedKind};
use crate::dispatch::bucket::Bucket;
use crate::dispatch::estimate::Estimate;
use crate::dispatch::live::QueueReport;
use crate::domain::QueueName;

/// Slots of a queue whose concurrency is to be found.
const AUTO_SLOTS: u32 = 64;

/// After so many replies in a row that say *later* the whole queue holds still for as long as the last one
/// asked: a few may be chance, so many mean that every further request would be refused too. It then goes on
/// with one request at a time, and with twice as many after each that is served.
const HOLD_AFTER: u32 = 5;

/// A throttled queue is told of this often: enough to see why nothing happens, and no flood.
const TELL_EVERY: Duration = Duration::from_mins(1);

/// How long the queue holds still where the server doesn't say.
const HOLD_DEFAULT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Limits {
    queue: QueueName,
    /// As they were configured.
    given: config::Limits,
    slots: usize,
    /// Fewer than `slots` after the queue was told to hold still: it begins with one and doubles.
    allowed: usize,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    throttled_in_a_row: u32,
    hold_until: Option<Instant>,
    told_at: Option<Instant>,
}

impl Limits {
    pub(super) fn new(queue: QueueName, limits: &config::Limits, now: Instant) -> Self {
        let slots = slots(limits);
        Self {
            queue,
            given: *limits,
            slots,
            allowed: slots,
            requests: limits.requests_per_minute.map(|n| Bucket::per_minute(u64::from(n), now)),
            tokens: limits.tokens_per_minute.map(|n| Bucket::per_minute(n, now)),
            throttled_in_a_row: 0,
            hold_until: None,
            told_at: None,
        }
    }

    /// Other limits from now on. What is in flight is not counted anew; a queue that was told to come later goes on
    /// as carefully as before.
    pub(super) fn change(&mut self, limits: &config::Limits, now: Instant) {
        let was_held = self.allowed < self.slots;
        self.given = *limits;
        self.slots = slots(limits);
        self.allowed = if was_held { self.allowed.min(self.slots) } else { self.slots };
        set_rate(&mut self.requests, limits.requests_per_minute.map(u64::from), now);
        set_rate(&mut self.tokens, limits.tokens_per_minute, now);
    }

    /// How many requests may be in flight.
    pub(super) const fn allowed(&self) -> usize {
        self.allowed
    }

    /// The limits in force.
    pub(super) fn report(&self) -> QueueReport {
        let config::Limits { requests_per_minute, tokens_per_minute, .. } = self.given;
        let (slots, allowed) = (self.slots, self.allowed);
        QueueReport { slots, allowed, requests_per_minute, tokens_per_minute, in_flight: 0 }
    }

    /// Whether a request may have to wait for more than a slot.
    pub(super) const fn is_paced(&self) -> bool {
        self.requests.is_some() || self.tokens.is_some()
    }

    /// Whether it matters how many tokens a request is counted as.
    pub(super) const fn counts_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    /// When a request counted as `tokens` may be sent; not later than `now` if at once.
    pub(super) fn ready_at(&mut self, tokens: u64, now: Instant) -> Instant {
        let requests = self.requests.as_mut().map_or(now, |bucket| bucket.ready_at(1, now));
        let tokens = self.tokens.as_mut().map_or(now, |bucket| bucket.ready_at(tokens, now));
        requests.max(tokens).max(self.hold_until.unwrap_or(now))
    }

    /// Counts a request that is being sent.
    pub(super) fn spend(&mut self, tokens: u64, now: Instant) {
        if let Some(bucket) = &mut self.requests {
            bucket.spend(1, now);
        }
        if let Some(bucket) = &mut self.tokens {
            bucket.spend(tokens, now);
        }
    }

    /// Says in the log that the queue is throttled, at most once in [`TELL_EVERY`].
    fn tell_of_hold(&mut self, until: Instant, now: Instant) {
        if self.told_at.is_none_or(|told| now.duration_since(told) >= TELL_EVERY) {
            self.told_at = Some(now);
            let wait_ms = u64::try_from(until.duration_since(now).as_millis()).unwrap_or(u64::MAX);
            tracing::info!(queue = %self.queue, wait_ms, "the provider asks to come later; the queue holds still");
        }
    }

    /// Learns from an attempt that has ended.
    pub(super) fn on_ended(&mut self, ended: &Ended, now: Instant) {
        // What was sent before tokens were limited was not counted.
        let was_counted = ended.estimate != Estimate::default();
        if let (Some(bucket), Some(usage), true) = (&mut self.tokens, ended.usage, was_counted) {
            bucket.correct(ended.estimate.total(), ended.estimate.corrected(usage));
        }
        if let Some(bucket) = &mut self.requests {
            // One was counted when it was sent.
            bucket.spend(u64::from(ended.exchanges.saturating_sub(1)), now);
        }
        match ended.kind {
            EndedKind::Served | EndedKind::Waiting => {
                self.throttled_in_a_row = 0;
                self.allowed = (self.allowed * 2).min(self.slots);
            }
            EndedKind::Throttled { retry_after, .. } => {
                self.throttled_in_a_row += 1;
                let recovering = self.allowed < self.slots;
                if recovering || self.throttled_in_a_row >= HOLD_AFTER {
                    let until = now + retry_after.unwrap_or(HOLD_DEFAULT);
                    self.hold_until = Some(self.hold_until.unwrap_or(until).max(until));
                    self.allowed = 1;
                    self.tell_of_hold(until, now);
                }
            }
            EndedKind::Failed | EndedKind::Blocked => {}
        }
    }
}

fn slots(limits: &config::Limits) -> usize {
    let slots = match limits.concurrency {
        Concurrency::Fixed(slots) => slots.max(1),
        Concurrency::Auto => AUTO_SLOTS,
    };
    slots as usize
}

fn set_rate(bucket: &mut Option<Bucket>, amount: Option<u64>, now: Instant) {
    match (&mut *bucket, amount) {
        (Some(bucket), Some(amount)) => bucket.set_rate(amount, now),
        (None, Some(amount)) => *bucket = Some(Bucket::per_minute(amount, now)),
        (_, None) => *bucket = None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::dispatch::estimate;
    use crate::domain::{Endpoint, Request, Shortage};
    use crate::provider::Usage;

    fn ended(kind: EndedKind) -> Ended {
        Ended { kind, estimate: Estimate::default(), usage: None, exchanges: 1 }
    }

    fn throttled_for(retry_after: Duration) -> Ended {
        let short_of = Shortage::Requests;
        ended(EndedKind::Throttled { retry_after: Some(retry_after), short_of })
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_holds_still_only_after_several_refusals_in_a_row() {
        let mut limits = Limits::new(QueueName::new("p", None), &config::Limits::default(), Instant::now());
        let now = Instant::now();
        let throttled = throttled_for(Duration::from_secs(7));
        for _ in 0..3 {
            (0..HOLD_AFTER - 1).for_each(|_| limits.on_ended(&throttled, now));
            limits.on_ended(&ended(EndedKind::Served), now);
        }
        assert_eq!(limits.ready_at(1, now), now);
        (0..HOLD_AFTER).for_each(|_| limits.on_ended(&throttled, now));
        assert_eq!(limits.ready_at(1, now), now + Duration::from_secs(7));
        assert_eq!(limits.allowed(), 1);
        let served: Vec<usize> = (0..7)
            .map(|_| {
                limits.on_ended(&ended(EndedKind::Served), now);
                limits.allowed()
            })
            .collect();
        assert_eq!(served, [2, 4, 8, 16, 32, 64, 64]);
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_are_corrected_by_what_was_used() {
        let config = config::Limits { tokens_per_minute: Some(6_000), ..config::Limits::default() };
        let mut limits = Limits::new(QueueName::new("p", None), &config, Instant::now());
        let now = Instant::now();
        let body = RawValue::from_string(format!("\"{}\"", "x".repeat(4_000))).unwrap();
        let endpoint = Endpoint::Embeddings;
        let estimate = estimate::of(&Request { custom_id: String::new(), endpoint, model: None, body });
        limits.spend(estimate.total(), now);
        assert!(limits.ready_at(1, now) > now + Duration::from_secs(9));
        let usage = Some(Usage { input_tokens: 5, output_tokens: 0 });
        limits.on_ended(&Ended { kind: EndedKind::Served, estimate, usage, exchanges: 1 }, now);
        assert!(limits.ready_at(1, now) <= now + Duration::from_secs(1));
    }

    fn of(slots: u32, requests: Option<u32>, tokens: Option<u64>) -> config::Limits {
        let concurrency = Concurrency::Fixed(slots);
        config::Limits { concurrency, requests_per_minute: requests, tokens_per_minute: tokens }
    }

    #[tokio::test(start_paused = true)]
    async fn other_limits_hold_at_once_and_a_throttled_queue_stays_careful() {
        let now = Instant::now();
        let mut limits = Limits::new(QueueName::new("p", None), &of(4, None, None), now);
        limits.change(&of(9, Some(60), None), now);
        assert_eq!((limits.allowed(), limits.is_paced(), limits.counts_tokens()), (9, true, false));
        limits.spend(1, now);
        assert_eq!(limits.ready_at(1, now), now + Duration::from_secs(1));
        limits.change(&of(2, None, Some(60)), now);
        assert_eq!((limits.allowed(), limits.is_paced(), limits.counts_tokens()), (2, true, true));
        assert_eq!(limits.ready_at(1, now), now, "requests are not counted any more");
        limits.change(&of(8, None, None), now);
        assert_eq!((limits.allowed(), limits.is_paced()), (8, false));

        let throttled = throttled_for(Duration::from_secs(7));
        (0..HOLD_AFTER).for_each(|_| limits.on_ended(&throttled, now));
        limits.change(&of(64, None, None), now);
        assert_eq!((limits.allowed(), limits.ready_at(1, now)), (1, now + Duration::from_secs(7)));
        limits.on_ended(&ended(EndedKind::Served), now);
        limits.on_ended(&ended(EndedKind::Served), now);
        assert_eq!(limits.allowed(), 4);
        limits.change(&of(3, None, None), now);
        assert_eq!(limits.allowed(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_to_what_was_not_counted_make_no_debt() {
        let now = Instant::now();
        let mut limits = Limits::new(QueueName::new("p", None), &of(64, None, None), now);
        limits.change(&of(64, None, Some(6_000)), now);
        let usage = Some(Usage { input_tokens: 50_000, output_tokens: 5_000 });
        (0..64).for_each(|_| limits.on_ended(&Ended { usage, ..ended(EndedKind::Served) }, now));
        assert_eq!(limits.ready_at(1, now), now);
    }
}
