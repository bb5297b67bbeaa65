//! The limits that a queue is configured with: requests in flight, requests/min, tokens/min. They bound all of its
//! lanes together, and nothing that is learnt of a server goes beyond them.
//!
//! All of them belong to one task, so there is nothing to lock.

use tokio::time::Instant;

use crate::config;
use crate::dispatch::attempt::Ended;
use crate::dispatch::bucket::Bucket;
use crate::dispatch::estimate::Estimate;
use crate::dispatch::lane::slots;

/// See the module's words.
#[derive(Debug)]
pub(super) struct Limits {
    /// As they were configured.
    given: config::Limits,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

impl Limits {
    pub(super) fn new(limits: &config::Limits, now: Instant) -> Self {
        Self {
            given: *limits,
            requests: limits.requests_per_minute.map(|n| Bucket::per_minute(u64::from(n), now)),
            tokens: limits.tokens_per_minute.map(|n| Bucket::per_minute(n, now)),
        }
    }

    /// Other limits from now on. What is in flight is not counted anew.
    pub(super) fn change(&mut self, limits: &config::Limits, now: Instant) {
        self.given = *limits;
        set_rate(&mut self.requests, limits.requests_per_minute.map(u64::from), now);
        set_rate(&mut self.tokens, limits.tokens_per_minute, now);
    }

    /// As they were configured.
    pub(super) const fn given(&self) -> &config::Limits {
        &self.given
    }

    /// How many requests may be in flight.
    pub(super) fn slots(&self) -> usize {
        slots::most(&self.given)
    }

    /// Whether a request may have to wait for more than a slot.
    pub(super) const fn is_paced(&self) -> bool {
        self.requests.is_some() || self.tokens.is_some()
    }

    /// When a request counted as `tokens` may be sent; not later than `now` if at once.
    pub(super) fn ready_at(&mut self, tokens: u64, now: Instant) -> Instant {
        let requests = self.requests.as_mut().map_or(now, |bucket| bucket.ready_at(1, now));
        let tokens = self.tokens.as_mut().map_or(now, |bucket| bucket.ready_at(tokens, now));
        requests.max(tokens)
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

    /// Counts what an attempt that has ended really used.
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
    }
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
    use std::time::Duration;

    use serde_json::value::RawValue;

    use super::*;
    use crate::config::Concurrency;
    use crate::dispatch::estimate::Estimator;
    use crate::domain::{Endpoint, Request};
    use crate::provider::Usage;

    #[tokio::test(start_paused = true)]
    async fn tokens_are_corrected_by_what_was_used() {
        let now = Instant::now();
        let mut limits = Limits::new(&of(64, None, Some(6_000)), now);
        let body = RawValue::from_string(format!("\"{}\"", "x".repeat(4_000))).unwrap();
        let endpoint = Endpoint::Embeddings;
        let request = Request { custom_id: String::new(), endpoint, model: None, stream: None, body };
        let estimate = Estimator::default().estimate(&request);
        limits.spend(estimate.total(), now);
        assert!(limits.ready_at(1, now) > now + Duration::from_secs(9));
        let usage = Some(Usage { input_tokens: 5, output_tokens: 0 });
        limits.on_ended(&Ended { estimate, usage, ..Ended::in_lane(0) }, now);
        assert!(limits.ready_at(1, now) <= now + Duration::from_secs(1));
    }

    fn of(slots: u32, requests: Option<u32>, tokens: Option<u64>) -> config::Limits {
        let concurrency = Concurrency::Fixed(slots);
        config::Limits { concurrency, requests_per_minute: requests, tokens_per_minute: tokens }
    }

    #[tokio::test(start_paused = true)]
    async fn other_limits_hold_at_once() {
        let now = Instant::now();
        let mut limits = Limits::new(&of(4, None, None), now);
        limits.change(&of(9, Some(60), None), now);
        assert_eq!((limits.slots(), limits.is_paced()), (9, true));
        limits.spend(1, now);
        assert_eq!(limits.ready_at(1, now), now + Duration::from_secs(1));
        limits.change(&of(2, None, Some(60)), now);
        assert_eq!((limits.slots(), limits.is_paced()), (2, true));
        assert_eq!(limits.ready_at(1, now), now, "requests are not counted any more");
        limits.change(&of(8, None, None), now);
        assert_eq!((limits.slots(), limits.is_paced()), (8, false));
    }

    #[tokio::test(start_paused = true)]
    async fn answers_to_what_was_not_counted_make_no_debt() {
        let now = Instant::now();
        let mut limits = Limits::new(&of(64, None, None), now);
        limits.change(&of(64, None, Some(6_000)), now);
        let usage = Some(Usage { input_tokens: 50_000, output_tokens: 5_000 });
        (0..64).for_each(|_| limits.on_ended(&Ended { usage, ..Ended::in_lane(0) }, now));
        assert_eq!(limits.ready_at(1, now), now);
    }
}
