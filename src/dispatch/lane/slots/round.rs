//! A round: as many answers as it takes to say how long they take while so many are in flight.
//!
//! An answer takes longer the more is written in it. So that a round of long answers does not look like a crowd, what
//! the number of tokens explains is taken out, as far as it explains anything: for each answer the time counts that one
//! of the usual length would have taken.

use tokio::time::Instant;

/// However much they differ, so many answers for each slot are enough, and so many in all.
const ANSWERS_EACH: f64 = 4.0;
const ANSWERS_MAX: f64 = 256.0;

/// And not before so many.
const ANSWERS_MIN: usize = 8;

/// Answers by which the usual length follows, and those before it explains anything.
const USUAL_AMONG: f64 = 256.0;
const USUAL_MIN: f64 = 16.0;

/// The length of an answer explains no more than all but this share of its time.
const LEFT_MIN: f64 = 0.02;

/// See the module's words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    /// Answers before this were asked for under other conditions.
    from: Instant,
    last: Instant,
    /// Requests times seconds in flight since `from`.
    area: f64,
    /// Answers that are not counted: who begins hears the short ones first.
    skip: usize,
    count: f64,
    sum: f64,
    squares: f64,
}

/// What a round says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// On the average.
    pub(super) in_flight: f64,
    /// Seconds, for an answer of the usual length.
    pub(super) latency: f64,
    /// The standard error of the latency, as a share of it.
    pub(super) error: f64,
}

impl Round {
    /// One that begins at `from`, which may be still to come.
    pub(super) fn new(from: Instant, now: Instant) -> Self {
        Self { from, last: from.max(now), area: 0.0, skip: 0, count: 0.0, sum: 0.0, squares: 0.0 }
    }

    /// The first one of all, for `slots` that were free before.
    pub(super) fn first(slots: usize, now: Instant) -> Self {
        Self { skip: slots, ..Self::new(now, now) }
    }

    /// So many were in flight until now.
    pub(super) fn pass(&mut self, in_flight: usize, now: Instant) {
        self.area += as_number(in_flight) * now.saturating_duration_since(self.last).as_secs_f64();
        self.last = self.last.max(now);
    }

    pub(super) fn add(&mut self, latency: f64, now: Instant) {
        if self.skip > 0 {
            self.skip -= 1;
            (self.from, self.last, self.area) = (now, now, 0.0);
        } else if now >= self.from {
            self.count += 1.0;
            self.sum += latency;
            self.squares += latency * latency;
        }
    }

    /// What it says, if it is over: of a lane of `slots`, with an error of at most `error`.
    pub(super) fn seen(&self, slots: usize, error: f64) -> Option<Seen> {
        let time = self.last.saturating_duration_since(self.from).as_secs_f64();
        let least = as_number(slots.max(ANSWERS_MIN));
        if self.count < least || time <= 0.0 {
            return None;
        }
        let is_enough = self.count >= f64::max(least, f64::min(least * ANSWERS_EACH, ANSWERS_MAX));
        let mean = self.sum / self.count;
        let variance = (self.squares / self.count - mean * mean).max(0.0);
        let seen = Seen {
            in_flight: self.area / time,
            latency: mean,
            error: (variance / self.count).sqrt() / mean.max(f64::MIN_POSITIVE),
        };
        (seen.error <= error || is_enough).then_some(seen)
    }
}

/// How long an answer takes by its length: a straight line through the last few hundred.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lengths {
    /// Tokens, of an answer of the usual length.
    usual: f64,
    count: f64,
    tokens: f64,
    latency: f64,
    variance: f64,
    covariance: f64,
}

impl Lengths {
    /// The time that an answer of the usual length would have taken.
    pub(super) fn usual(&mut self, latency: f64, tokens: Option<u64>) -> f64 {
        let Some(tokens) = tokens else { return latency };
        #[expect(clippy::cast_precision_loss, reason = "no answer has so many tokens")]
        let tokens = tokens as f64;
        self.count = (self.count + 1.0).min(USUAL_AMONG);
        let share = self.count.recip();
        let (longer, later) = (tokens - self.tokens, latency - self.latency);
        self.tokens += longer * share;
        self.latency += later * share;
        self.variance += (longer * (tokens - self.tokens) - self.variance) * share;
        self.covariance += (later * (tokens - self.tokens) - self.covariance) * share;
        (latency - self.each() * (tokens - self.usual)).max(latency * LEFT_MIN)
    }

    /// Takes what came lately for the usual length. Returns the time that such an answer takes beside one of the length
    /// that was usual before.
    pub(super) fn follow(&mut self) -> f64 {
        let before = self.latency + self.each() * (self.usual - self.tokens);
        self.usual = self.tokens;
        if self.latency > 0.0 { self.latency / before.max(self.latency * LEFT_MIN) } else { 1.0 }
    }

    /// Seconds for each token; 0 where the length explains nothing.
    fn each(&self) -> f64 {
        if self.count < USUAL_MIN || self.variance <= f64::EPSILON {
            return 0.0;
        }
        // A server that hurries with long answers does not exist.
        (self.covariance / self.variance).max(0.0)
    }
}

#[expect(clippy::cast_precision_loss, reason = "slots are counted in thousands")]
pub(super) const fn as_number(slots: usize) -> f64 {
    slots as f64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_the_length_explains_is_taken_out_and_no_more() {
        let (mut lengths, mut dice) = (Lengths::default(), fastrand::Rng::with_seed(1));
        for _ in 0..500 {
            let tokens = dice.u64(100..1_000);
            #[expect(clippy::cast_precision_loss, reason = "small")]
            lengths.usual(0.5 + 0.01 * tokens as f64, Some(tokens));
        }
        lengths.follow();
        let [short, long] = [(2.5, 200), (9.5, 900)].map(|(took, tokens)| lengths.usual(took, Some(tokens)));
        assert!((short - long).abs() < 0.1 && (5.0..7.0).contains(&short), "{short} {long}");
        let crowded = lengths.usual(9.0, Some(200));
        assert!(crowded > 11.0, "{crowded}");
        // From 550 tokens to 5,500.
        (0..1_500).for_each(|_| _ = lengths.usual(55.5, Some(5_500)));
        let longer = lengths.follow();
        assert!((8.5..9.5).contains(&longer), "{longer}");
        let mut even = Lengths::default();
        (0..500).for_each(|_| assert!((even.usual(2.0, Some(dice.u64(1..1_000))) - 2.0).abs() < 1e-9));
        assert!((even.usual(3.0, None) - 3.0).abs() < f64::EPSILON);
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_ends_when_enough_is_known() {
        let now = Instant::now();
        let mut round = Round::new(now + Duration::from_secs(1), now);
        round.pass(4, now + Duration::from_secs(1));
        round.add(9.0, now);
        for second in 2..=9 {
            assert!(round.seen(4, 0.06).is_none());
            let now = now + Duration::from_secs(second);
            round.pass(4, now);
            round.add(2.0, now);
        }
        let seen = round.seen(4, 0.06).unwrap();
        assert!((seen.in_flight - 4.0).abs() < 1e-9 && (seen.latency - 2.0).abs() < 1e-9, "{seen:?}");
        round.add(4.0, now + Duration::from_secs(9));
        assert!(round.seen(4, 0.06).is_none(), "they differ");
    }
}
