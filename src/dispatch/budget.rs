//! The retry budget of a queue: how many failed attempts may be made up for in how much time.
//!
//! # Operation
//!
//! Everything that is sent earns a tenth of a retry, time earns a little, and a reserve is there from the start. A
//! failure's retry takes one; where there is none left it comes later, by the time that earns it. So a server that fails
//! one request in twenty sees no difference, and one that fails every second is not asked twice as much for it. Nothing
//! fails for want of a budget: the wait that it adds is bounded. Throttled requests are none of its business, since their
//! pace is the server's own.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Retries earned by each request that is sent.
const SHARE: f64 = 0.1;

/// Retries there are at the start, and at most.
const RESERVE: f64 = 20.0;

/// Retries that each second earns: of a job's last requests, when nothing else is sent any more, sixty are tried again
/// in a minute. It is more than the reserve makes in ten minutes, which would leave a hundred waiting for an hour.
const FLOOR: f64 = 1.0;

/// How long it counts what is sent, to know how fast retries are earned.
const SPAN: Duration = Duration::from_secs(10);

/// The longest wait that it adds to a retry's own.
const WAIT_MAX: Duration = Duration::from_mins(5);

/// See the module's words.
#[derive(Debug)]
pub(super) struct Budget(Mutex<Purse>);

#[derive(Debug)]
struct Purse {
    /// Below nothing where retries have been put off that are yet to be earned.
    credit: f64,
    counted_at: Instant,
    /// What was sent in this span of time and in the one before.
    sent: [f64; 2],
    span_began: Instant,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self(Mutex::new(Purse { credit: RESERVE, counted_at: now, sent: [0.0; 2], span_began: now }))
    }

    /// A request is being sent, the first time or again.
    pub(super) fn sent(&self, now: Instant) {
        self.with(now, |purse| {
            let [this_span, _] = &mut purse.sent;
            *this_span += 1.0;
            purse.earn(SHARE);
        });
    }

    /// Takes a retry, and says by how much it has to come later.
    pub(super) fn take(&self, now: Instant) -> Duration {
        self.with(now, |purse| {
            let rate = purse.rate();
            purse.credit = (purse.credit - 1.0).max(-WAIT_MAX.as_secs_f64() * rate);
            Duration::from_secs_f64((-purse.credit).max(0.0) / rate).min(WAIT_MAX)
        })
    }

    fn with<T>(&self, now: Instant, change: impl FnOnce(&mut Purse) -> T) -> T {
        let mut purse = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(purse.counted_at);
        purse.earn(passed.as_secs_f64() * FLOOR);
        purse.counted_at = now;
        purse.turn(now);
        change(&mut purse)
    }
}

impl Purse {
    /// Retries that are earned in a second.
    fn rate(&self) -> f64 {
        let [this_span, last_span] = self.sent;
        FLOOR + SHARE * this_span.max(last_span) / SPAN.as_secs_f64()
    }

    fn turn(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.span_began);
        if passed >= SPAN {
            let [this_span, _] = self.sent;
            self.sent = [0.0, if passed < SPAN * 2 { this_span } else { 0.0 }];
            self.span_began = now;
        }
    }

    fn earn(&mut self, retries: f64) {
        self.credit = (self.credit + retries).min(RESERVE);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_failure_in_ten_waits_for_nothing() {
        let budget = Budget::new(Instant::now());
        for request in 0..1_000 {
            budget.sent(Instant::now());
            if request % 10 == 9 {
                assert_eq!(budget.take(Instant::now()), Duration::ZERO, "{request}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_reserve_retries_come_one_a_second() {
        let budget = Budget::new(Instant::now());
        let waits: Vec<u64> = (0..25).map(|_| budget.take(Instant::now()).as_secs()).collect();
        assert_eq!((waits[..20].iter().max(), &waits[20..]), (Some(&0), &[1, 2, 3, 4, 5][..]));
        advance(Duration::from_secs(5)).await;
        assert_eq!(budget.take(Instant::now()), Duration::from_secs(1), "what was put off has been earned");
    }

    #[tokio::test(start_paused = true)]
    async fn the_more_is_sent_the_sooner_they_come() {
        let budget = Budget::new(Instant::now());
        for _ in 0..20 {
            // 100 a second, of which a fifth fails.
            for request in 0..100 {
                budget.sent(Instant::now());
                if request % 5 == 0 {
                    budget.take(Instant::now());
                }
            }
            advance(Duration::from_secs(1)).await;
        }
        // 400 were taken; 200 came by what was sent, and 40 by the reserve and the seconds. 11 a second are earned.
        let wait = budget.take(Instant::now()).as_secs_f64();
        assert!((13.0..16.0).contains(&wait), "{wait}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_retry_is_put_off_for_long_however_many_fail() {
        let budget = Budget::new(Instant::now());
        let longest = (0..100_000).map(|_| budget.take(Instant::now())).max();
        assert_eq!(longest, Some(WAIT_MAX));
        advance(WAIT_MAX).await;
        assert_eq!(budget.take(Instant::now()), Duration::from_secs(1), "a bad hour is not held against it");
    }

    #[tokio::test(start_paused = true)]
    async fn good_times_are_saved_up_no_further_than_the_reserve() {
        let budget = Budget::new(Instant::now());
        (0..10_000).for_each(|_| budget.sent(Instant::now()));
        advance(Duration::from_hours(9)).await;
        let free = (0..100).filter(|_| budget.take(Instant::now()).is_zero()).count();
        assert_eq!(free, 20);
    }
}
