//! Who gets in, and when: requests and tokens per minute, and slots.
//!
//! Slots are kept as the times at which they become free. As every answer's time is known when it is
//! let in, a queue needs no waiting tasks: the next request simply begins when the next slot is free.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use super::bucket::Bucket;
use super::ledger::KeyMark;
use super::refusal::{Refusal, go_duration};
use super::settings::WhenFull;

/// A longer latency counts as this: as good as never, and far from the end of the clock.
const LATENCY_MAX: Duration = Duration::from_hours(24 * 365);
/// Keys that have limits of their own, where each has.
const KEYS_MAX: usize = 1_000;

/// The limits of each key, or of all together.
#[derive(Debug)]
pub(super) struct KeyLimits {
    is_per_key: bool,
    /// Unused: what a key begins with.
    fresh: Limits,
    keys: BTreeMap<Option<KeyMark>, Limits>,
}

#[derive(Clone, Debug)]
pub(super) struct Limits {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    capacity: Option<usize>,
    when_full: WhenFull,
    /// When each taken slot becomes free; with a capacity, never more of them than slots, but for a
    /// while after it was lowered.
    busy: BinaryHeap<Reverse<Instant>>,
}

impl KeyLimits {
    pub(super) fn new(is_per_key: bool, fresh: Limits) -> Self {
        Self { is_per_key, fresh, keys: BTreeMap::new() }
    }

    /// Those that hold for this key. Keys beyond [`KEYS_MAX`] share one's.
    pub(super) fn of(&mut self, key: Option<KeyMark>) -> &mut Limits {
        let is_known = self.keys.contains_key(&key) || self.keys.len() < KEYS_MAX;
        let key = key.filter(|_| self.is_per_key && is_known);
        self.keys.entry(key).or_insert_with(|| self.fresh.clone())
    }

    /// Changes those of every key.
    pub(super) fn change(&mut self, change: impl Fn(&mut Limits)) {
        change(&mut self.fresh);
        self.keys.values_mut().for_each(change);
    }
}

impl Limits {
    pub(super) fn new() -> Self {
        Self {
            requests: None,
            tokens: None,
            capacity: None,
            when_full: WhenFull::Queue,
            busy: BinaryHeap::new(),
        }
    }

    pub(super) fn set_requests(&mut self, per_minute: Option<u32>, burst: Duration, now: Instant) {
        self.requests = per_minute.map(|limit| Bucket::new(u64::from(limit), burst, now));
    }

    pub(super) fn set_tokens(&mut self, per_minute: Option<u64>, burst: Duration, now: Instant) {
        self.tokens = per_minute.map(|limit| Bucket::new(limit, burst, now));
    }

    pub(super) fn set_capacity(&mut self, capacity: Option<u32>, when_full: WhenFull) {
        self.capacity = capacity.map(|slots| usize::try_from(slots.max(1)).unwrap_or(usize::MAX));
        self.when_full = when_full;
    }

    /// Lets one request of `cost` tokens in, or takes nothing and says why not.
    pub(super) fn admit(&mut self, model: &str, cost: u64, now: Instant) -> Result<(), Refusal> {
        if let Some(bucket) = &mut self.requests {
            let wait = bucket.wait(1, now);
            if !wait.is_zero() {
                return Err(Refusal::requests_per_minute(model, bucket.limit(), wait));
            }
        }
        if let Some(bucket) = &mut self.tokens {
            if cost > bucket.limit() {
                return Err(Refusal::larger_than_limit(model, bucket.limit(), cost));
            }
            let wait = bucket.wait(cost, now);
            if !wait.is_zero() {
                return Err(Refusal::tokens_per_minute(model, bucket.limit(), cost, wait));
            }
        }
        if let Some(free_at) = self.next_free(now) {
            match self.when_full {
                WhenFull::Queue => {}
                WhenFull::Overloaded => return Err(Refusal::overloaded()),
                WhenFull::SlowDown => return Err(Refusal::slow_down(free_at - now)),
            }
        }
        if let Some(bucket) = &mut self.requests {
            bucket.take(1);
        }
        if let Some(bucket) = &mut self.tokens {
            bucket.take(cost);
        }
        Ok(())
    }

    /// Takes a slot for `latency` as soon as there is one; says when the work is done.
    pub(super) fn occupy(&mut self, latency: Duration, now: Instant) -> Instant {
        let latency = latency.min(LATENCY_MAX);
        let Some(capacity) = self.capacity else { return now + latency };
        let mut begin = now;
        while self.busy.len() >= capacity {
            let Some(Reverse(free_at)) = self.busy.pop() else { break };
            begin = begin.max(free_at);
        }
        self.busy.push(Reverse(begin + latency));
        begin + latency
    }

    /// When the next slot becomes free, if all are taken now.
    fn next_free(&mut self, now: Instant) -> Option<Instant> {
        while self.busy.peek().is_some_and(|Reverse(free_at)| *free_at <= now) {
            self.busy.pop();
        }
        let is_full = self.capacity.is_some_and(|capacity| self.busy.len() >= capacity);
        self.busy.peek().filter(|_| is_full).map(|Reverse(free_at)| *free_at)
    }

    /// `x-ratelimit-*` as OpenAI writes them; none where there is no limit. `remaining` is what would
    /// be let in at this moment, which a short burst keeps far below the limit.
    pub(super) fn write_headers(&self, headers: &mut HeaderMap) {
        const REQUESTS: [&str; 3] =
            ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
        const TOKENS: [&str; 3] =
            ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];
        for (names, bucket) in [(REQUESTS, &self.requests), (TOKENS, &self.tokens)] {
            let Some(bucket) = bucket else { continue };
            let [limit, remaining, reset] = names.map(HeaderName::from_static);
            headers.insert(limit, HeaderValue::from(bucket.limit()));
            headers.insert(remaining, HeaderValue::from(bucket.remaining()));
            if let Ok(value) = HeaderValue::from_str(&go_duration(bucket.reset())) {
                headers.insert(reset, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::Hint;

    const SECOND: Duration = Duration::from_secs(1);

    fn limits(capacity: u32, when_full: WhenFull) -> Limits {
        let mut limits = Limits::new();
        limits.set_capacity(Some(capacity), when_full);
        limits
    }

    #[test]
    fn a_queue_of_two_slots_answers_two_at_a_time() {
        let now = Instant::now();
        let mut limits = limits(2, WhenFull::Queue);
        let ready: Vec<u64> = (0..5)
            .map(|_| {
                limits.admit("m", 0, now).unwrap();
                (limits.occupy(SECOND, now) - now).as_secs()
            })
            .collect();
        assert_eq!(ready, [1, 1, 2, 2, 3]);
    }

    #[test]
    fn a_full_server_refuses_until_a_slot_is_free() {
        let now = Instant::now();
        let mut limits = limits(1, WhenFull::SlowDown);
        limits.admit("m", 0, now).unwrap();
        limits.occupy(SECOND, now);
        let refusal = limits.admit("m", 0, now).unwrap_err();
        assert_eq!((refusal.status, refusal.hint), (429, Hint::Both(SECOND)));
        limits.when_full = WhenFull::Overloaded;
        assert_eq!(limits.admit("m", 0, now).unwrap_err().status, 503);
        assert!(limits.admit("m", 0, now + SECOND).is_ok());
    }

    #[test]
    fn a_lowered_capacity_holds_once_the_slots_are_free() {
        let now = Instant::now();
        let mut limits = limits(3, WhenFull::Queue);
        for _ in 0..3 {
            limits.occupy(SECOND, now);
        }
        limits.set_capacity(Some(1), WhenFull::Queue);
        let ready: Vec<u64> = (0..2).map(|_| (limits.occupy(SECOND, now) - now).as_secs()).collect();
        assert_eq!(ready, [2, 3]);
    }

    #[test]
    fn an_endless_latency_is_as_good_as_never() {
        let now = Instant::now();
        let mut limits = limits(1, WhenFull::Queue);
        limits.occupy(Duration::MAX, now);
        assert_eq!(limits.occupy(Duration::MAX, now) - now, LATENCY_MAX * 2);
    }

    #[test]
    fn a_refusal_takes_nothing() {
        let now = Instant::now();
        let mut limits = Limits::new();
        limits.set_requests(Some(60), Duration::from_secs(10), now);
        limits.set_tokens(Some(60), SECOND, now);
        limits.admit("m", 1, now).unwrap();
        for _ in 0..20 {
            assert_eq!(limits.admit("m", 1, now).unwrap_err().status, 429);
        }
        assert_eq!(limits.requests.as_ref().unwrap().remaining(), 9);
        let refusal = limits.admit("m", 61, now).unwrap_err();
        assert!(refusal.hint == Hint::None, "no waiting helps what is larger than a minute");
    }

    #[tokio::test(start_paused = true)]
    async fn keys_share_limits_or_have_their_own() {
        let now = Instant::now();
        let mut fresh = Limits::new();
        fresh.set_requests(Some(60), SECOND, now);
        let keys = [None, Some(KeyMark::of("a")), Some(KeyMark::of("b"))];
        let admitted = |is_per_key| {
            let mut limits = KeyLimits::new(is_per_key, fresh.clone());
            let admitted = keys.map(|key| limits.of(key).admit("m", 1, now).is_ok());
            limits.change(|limits| limits.set_requests(None, SECOND, now));
            assert!(keys.iter().all(|key| limits.of(*key).admit("m", 1, now).is_ok()));
            admitted
        };
        assert_eq!((admitted(true), admitted(false)), ([true; 3], [true, false, false]));
    }
}
