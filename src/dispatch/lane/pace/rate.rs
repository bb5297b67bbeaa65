//! One rate of a lane, of requests or of tokens: what is known of it, and the bucket that keeps to it.

use std::time::Duration;

use tokio::time::Instant;

use crate::dispatch::bucket::Bucket;
use crate::dispatch::lane::pace::found::{Found, Usage};
use crate::dispatch::lane::pace::told::{Header, News, Told};

/// How fast the average cost follows: the last few dozen requests.
const COST_WEIGHT: f64 = 1.0 / 32.0;

/// See the module's words.
#[derive(Debug)]
pub(super) struct Rate {
    told: Told,
    found: Option<Found>,
    bucket: Option<Bucket>,
    usage: Usage,
    /// Of a request, on the average.
    cost: f64,
}

impl Rate {
    pub(super) fn new() -> Self {
        Self { told: Told::default(), found: None, bucket: None, usage: Usage::default(), cost: 1.0 }
    }

    /// What is known of the limit, per second; nothing of how much of it is left.
    pub(super) fn limit(&self) -> Option<f64> {
        least(self.told.per_second(), self.found.map(|found| found.rate()))
    }

    pub(super) fn has_found(&self) -> bool {
        self.found.is_some()
    }

    /// Whether no limit is near, and what is refused is refused by chance.
    pub(super) fn is_slow(&self) -> bool {
        self.found.map_or_else(|| self.told.per_second().is_some(), |found| found.is_slow())
    }

    /// Whether the lane goes faster than it is known to be admitted.
    pub(super) fn is_probing(&self) -> bool {
        self.found.is_some_and(|found| found.is_probing())
    }

    /// The request whose reply told last what is left.
    pub(super) fn level_of(&self) -> Option<u64> {
        self.told.level_of()
    }

    /// Whether a refusal is no news after what the headers told. `since` as in [`Rate::ready_at`].
    pub(super) fn is_used_up(&self, since: Option<f64>, now: Instant) -> bool {
        self.told.is_used_up(since, now)
    }

    pub(super) fn cost(&self) -> f64 {
        self.cost
    }

    /// When `cost` may be spent; not later than `now` if at once. `since` was spent after the request of
    /// [`Rate::level_of`].
    pub(super) fn ready_at(&mut self, cost: u64, since: Option<f64>, now: Instant) -> Instant {
        let told = self.told.rate(since, self.cost, now);
        let Some(rate) = least(told, self.found.map(|found| found.rate())) else {
            self.bucket = None;
            return now;
        };
        match &mut self.bucket {
            Some(bucket) => bucket.set_per_second(rate, now),
            None => self.bucket = Some(Bucket::per_second(rate, now)),
        }
        self.bucket.as_mut().map_or(now, |bucket| bucket.ready_at(cost, now))
    }

    /// Counts a request that is being sent.
    pub(super) fn spend(&mut self, cost: u64, now: Instant) {
        if let Some(bucket) = &mut self.bucket {
            bucket.spend(cost, now);
        }
        self.cost += (amount(cost) - self.cost) * COST_WEIGHT;
        let rate = self.limit().unwrap_or(f64::INFINITY);
        let time = self.usage.spend(amount(cost), rate, now);
        if let Some(found) = &mut self.found {
            found.advance(time, self.cost);
            // The server's own word is enough from here on.
            if self.told.per_second().is_some_and(|told| found.rate() >= told) {
                self.found = None;
            }
        }
    }

    /// What an attempt really used.
    pub(super) fn correct(&mut self, estimated: u64, used: u64) {
        if let Some(bucket) = &mut self.bucket {
            bucket.correct(estimated, used);
        }
    }

    /// Hears the headers of the reply to request `number`; whether they tell of another limit than before.
    pub(super) fn hear(&mut self, header: Header, number: u64, sent_at: Instant) -> bool {
        match self.told.hear(header, number, sent_at) {
            News::None => false,
            News::Limit => {
                // Whatever was found was under another limit, or a guess.
                self.found = None;
                true
            }
            News::Withdrawn => true,
            News::Gone(before) => {
                self.found = self.found.or_else(|| Some(Found::known(before, self.cost)));
                true
            }
        }
    }

    /// The server admits no more than `per_second`, which may be a guess.
    pub(super) fn cut(&mut self, per_second: f64, is_guess: bool) {
        self.found = Some(Found::cut_to(per_second, is_guess, self.cost));
    }

    /// What is worth remembering, per second.
    pub(super) fn learnt(&self) -> Option<f64> {
        least(self.told.per_second(), self.found.map(|found| found.kept()))
    }

    /// Begins with what was learnt another time, per second.
    pub(super) fn begin_with(&mut self, learnt: f64) {
        self.found = Some(Found::known(learnt, self.cost));
    }

    /// How long a lane of this rate may be without a request and still be in use.
    pub(super) fn pause(&self) -> Duration {
        let gap = self.limit().map_or(0.0, |limit| 4.0 * self.cost / limit);
        Duration::from_secs_f64(gap.clamp(1.0, 3600.0))
    }
}

fn least(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[expect(clippy::cast_precision_loss, reason = "no request costs beyond 2^52 tokens")]
pub(super) const fn amount(cost: u64) -> f64 {
    cost as f64
}
