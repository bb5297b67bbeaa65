//! A token bucket: so much a minute, spent in advance never, and no burst at the start.

use std::time::Duration;

use tokio::time::Instant;

/// How much may be spent at once, as a share of the rate: a tenth of a second's worth evens out the timer's
/// grain and is far below any window that providers count in.
const BURST: Duration = Duration::from_millis(100);

/// See the module's words. What costs more than the burst is let through when the bucket is full and leaves
/// a debt, so that a large request waits its share and no longer.
#[derive(Debug)]
pub(super) struct Bucket {
    per_second: f64,
    capacity: f64,
    level: f64,
    filled_at: Instant,
}

impl Bucket {
    pub(super) fn per_minute(amount: u64, now: Instant) -> Self {
        Self::per_second(a_second(amount), now)
    }

    /// `rate`: more than 0.
    pub(super) fn per_second(rate: f64, now: Instant) -> Self {
        let capacity = capacity(rate);
        Self { per_second: rate, capacity, level: capacity, filled_at: now }
    }

    /// Another rate from now on. What is in the bucket stays, as far as it holds it, and so does a debt, as far as a
    /// minute pays it: a higher rate is no reason for a burst, and a lower one none to wait for hours.
    pub(super) fn set_rate(&mut self, amount: u64, now: Instant) {
        self.set_per_second(a_second(amount), now);
    }

    /// The same, of a rate that is more than 0.
    pub(super) fn set_per_second(&mut self, rate: f64, now: Instant) {
        self.fill(now);
        self.per_second = rate;
        self.capacity = capacity(self.per_second);
        self.level = self.level.clamp(-self.per_second * 60.0, self.capacity);
    }

    /// When `cost` may be spent; not later than `now` if at once.
    pub(super) fn ready_at(&mut self, cost: u64, now: Instant) -> Instant {
        self.fill(now);
        let missing = self.charge(cost).min(self.capacity) - self.level;
        if missing <= 0.0 { now } else { now + Duration::from_secs_f64(missing / self.per_second) }
    }

    pub(super) fn spend(&mut self, cost: u64, now: Instant) {
        self.fill(now);
        self.level -= self.charge(cost);
    }

    /// Replaces an estimate by what was really used. However wrong many estimates were, a minute makes up for it.
    pub(super) fn correct(&mut self, estimated: u64, used: u64) {
        let level = self.level + self.charge(estimated) - self.charge(used);
        self.level = level.clamp(-self.per_second * 60.0, self.capacity);
    }

    /// A request that asks for more than a minute holds is refused by the provider: it must not keep the
    /// others waiting for hours, whatever bound its author wrote into it.
    fn charge(&self, cost: u64) -> f64 {
        amount(cost).min(self.per_second * 60.0)
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.level = (self.level + elapsed * self.per_second).min(self.capacity);
        self.filled_at = now;
    }
}

#[expect(clippy::cast_precision_loss, reason = "no provider counts beyond 2^52 a minute")]
fn a_second(a_minute: u64) -> f64 {
    a_minute.max(1) as f64 / 60.0
}

fn capacity(per_second: f64) -> f64 {
    (per_second * BURST.as_secs_f64()).max(1.0)
}

#[expect(clippy::cast_precision_loss, reason = "no request costs beyond 2^52 tokens")]
const fn amount(cost: u64) -> f64 {
    cost as f64
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep_until};

    use super::*;

    /// Spends `cost` as often as the bucket lets within `span`.
    async fn spent(bucket: &mut Bucket, cost: u64, span: Duration) -> u64 {
        let end = Instant::now() + span;
        let mut times = 0;
        loop {
            let ready = bucket.ready_at(cost, Instant::now());
            if ready >= end {
                return times;
            }
            sleep_until(ready).await;
            // A timer may fire a grain early; what counts is that it is ready then.
            if bucket.ready_at(cost, Instant::now()) <= Instant::now() {
                bucket.spend(cost, Instant::now());
                times += 1;
            } else {
                advance(Duration::from_millis(1)).await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn allows_its_rate_and_hardly_a_burst() {
        for rate in [60, 600, 3_000] {
            let mut bucket = Bucket::per_minute(rate, Instant::now());
            let times = spent(&mut bucket, 1, Duration::from_mins(1)).await;
            assert!((rate * 99 / 100..=rate + rate / 600 + 1).contains(&times), "{times} of {rate}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cost_above_the_burst_passes_and_leaves_a_debt() {
        let mut bucket = Bucket::per_minute(6_000, Instant::now());
        assert_eq!(bucket.ready_at(1_000, Instant::now()), Instant::now());
        bucket.spend(1_000, Instant::now());
        let wait = bucket.ready_at(10, Instant::now()) - Instant::now();
        assert!((9.9..10.1).contains(&wait.as_secs_f64()), "{wait:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_cost_keeps_the_others_waiting_for_more_than_a_minute() {
        for rate in [1, 6_000, u64::MAX] {
            let mut bucket = Bucket::per_minute(rate, Instant::now());
            bucket.spend(u64::MAX, Instant::now());
            assert!(
                bucket.ready_at(1, Instant::now()) <= Instant::now() + Duration::from_secs(121),
                "{rate}"
            );
            bucket.correct(u64::MAX, 0);
            assert_eq!(bucket.ready_at(1, Instant::now()), Instant::now());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn corrections_give_back_and_take_away() {
        let mut bucket = Bucket::per_minute(60_000, Instant::now());
        bucket.spend(1_100, Instant::now());
        bucket.correct(1_100, 50);
        assert_eq!(bucket.ready_at(1, Instant::now()), Instant::now());
        bucket.correct(0, 1_000);
        assert!(bucket.ready_at(1, Instant::now()) > Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn another_rate_holds_at_once_and_neither_bursts_nor_waits_for_ever() {
        let span = Duration::from_secs(10);
        let mut bucket = Bucket::per_minute(6_000, Instant::now());
        assert!((990..=1_010).contains(&spent(&mut bucket, 1, span).await));
        for (rate, most) in [(600, 101), (60, 11), (60_000, 10_011)] {
            bucket.set_rate(rate, Instant::now());
            let times = spent(&mut bucket, 1, span).await;
            assert!(((most - 1) * 98 / 100..=most).contains(&times), "{times} at {rate} a minute");
        }
        // A bucket that was full holds no more than the new one.
        advance(Duration::from_mins(1)).await;
        bucket.set_rate(60, Instant::now());
        bucket.spend(1, Instant::now());
        assert!(bucket.ready_at(1, Instant::now()) > Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn a_debt_is_paid_at_the_new_rate_within_a_minute() {
        let mut bucket = Bucket::per_minute(60_000, Instant::now());
        bucket.spend(30_000, Instant::now());
        let wait = |bucket: &mut Bucket| (bucket.ready_at(1, Instant::now()) - Instant::now()).as_secs();
        assert_eq!(wait(&mut bucket), 29);
        bucket.set_rate(120_000, Instant::now());
        assert_eq!(wait(&mut bucket), 14);
        bucket.set_rate(60, Instant::now());
        assert_eq!(wait(&mut bucket), 61);
    }
}
