//! What a lane has sent lately, and what the server made of it.
//!
//! Each request has a number, in the order of sending. Replies come in any order, and a refusal comes much earlier
//! than an answer; so who wants to know how many of a stretch were refused looks here, in the order of sending, and
//! takes what was not refused for a while for admitted.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Entries kept: some seconds' worth of the fastest lane, an hour's of a slow one.
const KEPT: usize = 2048;

/// How far back [`Log::suspicion`] looks.
const LOOK_BACK: usize = 256;

/// How much more than usual is refused where a limit is reached: suddenly, or as the lane comes near it.
const EXCESSES: [f64; 2] = [0.3, 0.03];

/// No share of refusals is told apart from a limit that is below this one.
const USUAL_MIN: f64 = 0.002;
const USUAL_MAX: f64 = 0.25;

/// What is taken for usual until it is known, and how many requests that is worth.
const USUAL_FIRST: f64 = 0.01;
const USUAL_FIRST_AMONG: f64 = 32.0;

/// A shorter span between two refusals measures nothing but jitter.
const SPAN_MIN: f64 = 0.02;

/// Chance may refuse this much more than usual for a while.
const USUAL_SPREAD: f64 = 2.0;

/// By how many requests the usual share is known at the most.
const USUAL_AMONG: f64 = 256.0;

/// A stretch that is longer than so many usual gaps without a request was not full of them.
const GAPS: f64 = 4.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No reply yet.
    Open,
    Admitted,
    Refused,
    /// It failed: it says nothing of limits.
    Lost,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Instant,
    tokens: u64,
    /// Counted for all before it.
    tokens_before: u64,
    verdict: Verdict,
    /// It was sent so slowly that no limit was near.
    is_slow: bool,
}

/// Requests, and what they were counted as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) requests: u64,
    pub(super) tokens: u64,
}

/// See the module's words.
#[derive(Debug)]
pub(super) struct Log {
    /// The number of the oldest that is kept.
    first: u64,
    entries: VecDeque<Sent>,
    /// Counted for all that were ever sent.
    tokens: u64,
    /// The first that does not count in `usual` yet.
    uncounted: u64,
    /// The share that is refused though no limit is reached.
    usual: f64,
    /// By how many requests that is known.
    usual_among: f64,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            first: 0,
            entries: VecDeque::new(),
            tokens: 0,
            uncounted: 0,
            usual: USUAL_FIRST,
            usual_among: USUAL_FIRST_AMONG,
        }
    }
}

impl Log {
    /// The number that the next one will have.
    pub(super) fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Notes a request that is being sent; its number.
    pub(super) fn add(&mut self, tokens: u64, is_slow: bool, now: Instant) -> u64 {
        let (number, tokens_before, verdict) = (self.next(), self.tokens, Verdict::Open);
        self.entries.push_back(Sent { at: now, tokens, tokens_before, verdict, is_slow });
        self.tokens = self.tokens.saturating_add(tokens);
        if self.entries.len() > KEPT {
            self.entries.pop_front();
            self.first += 1;
        }
        number
    }

    pub(super) fn end(&mut self, number: u64, verdict: Verdict) {
        let place = number.checked_sub(self.first).and_then(|place| usize::try_from(place).ok());
        if let Some(entry) = place.and_then(|place| self.entries.get_mut(place)) {
            entry.verdict = verdict;
        }
    }

    /// How many are sent in a second, lately.
    pub(super) fn per_second(&self, now: Instant) -> f64 {
        let lately = self.entries.iter().rev().take(LOOK_BACK);
        let (oldest, count) = lately.fold((now, 0.0), |(_, count), entry| (entry.at, count + 1.0));
        count / now.saturating_duration_since(oldest).as_secs_f64().max(1.0)
    }

    /// Counts what was refused, and what was not, of all that was sent before `settled` and from number `from` on. Not
    /// as the replies come, since refusals come first.
    pub(super) fn count(&mut self, from: u64, settled: Instant) {
        self.uncounted = self.uncounted.max(from).max(self.first);
        while let Some(entry) = self.get(self.uncounted).copied().filter(|entry| entry.at <= settled) {
            self.uncounted += 1;
            let refused = match entry.verdict {
                Verdict::Refused => 1.0,
                Verdict::Admitted | Verdict::Open => 0.0,
                Verdict::Lost => continue,
            };
            if entry.is_slow {
                self.usual_among = (self.usual_among + 1.0).min(USUAL_AMONG);
                self.usual += (refused - self.usual) / self.usual_among;
            }
        }
    }

    /// What was sent after `number`; none if that is not known any more.
    pub(super) fn after(&self, number: u64) -> Option<Amount> {
        let entry = self.get(number)?;
        let tokens = self.tokens - entry.tokens_before.saturating_add(entry.tokens).min(self.tokens);
        Some(Amount { requests: self.next() - number - 1, tokens })
    }

    /// Whether anything from number `from` on was let in; what was sent before `settled` and has no reply was.
    pub(super) fn has_admitted(&self, from: u64, settled: Instant) -> bool {
        self.from(from).any(|entry| match entry.verdict {
            Verdict::Admitted => true,
            Verdict::Open => entry.at <= settled,
            Verdict::Refused | Verdict::Lost => false,
        })
    }

    /// How strongly what was sent from number `from` on speaks for a limit that is reached, against chance that refuses
    /// no more than it does anyway: the logarithm of the odds, counted from the best beginning (a CUSUM test, for each
    /// excess). What was sent before `settled` and has no reply is admitted.
    pub(super) fn suspicion(&self, from: u64, settled: Instant) -> f64 {
        let usual = (self.usual * USUAL_SPREAD).clamp(USUAL_MIN, USUAL_MAX);
        let from = from.max(self.next().saturating_sub(LOOK_BACK as u64));
        let sums = EXCESSES.map(|excess| {
            let limited = usual + excess;
            let (refused, admitted) = ((limited / usual).ln(), ((1.0 - limited) / (1.0 - usual)).ln());
            self.from(from).fold(0.0, |sum: f64, entry| {
                let odds = match entry.verdict {
                    Verdict::Refused => refused,
                    Verdict::Admitted => admitted,
                    Verdict::Open if entry.at <= settled => admitted,
                    Verdict::Open | Verdict::Lost => 0.0,
                };
                (sum + odds).max(0.0)
            })
        });
        sums.into_iter().fold(0.0, f64::max)
    }

    /// What was admitted from `since` on, or from the end of the last lull after it, and when that begins. A lull is
    /// longer than `pause`, and than some of the gaps before it.
    pub(super) fn admitted(&self, since: Option<Instant>, pause: Duration) -> Option<(Amount, Instant)> {
        let newest = self.entries.back()?;
        let (mut amount, mut begins, mut met) = (Amount::default(), newest.at, 0.0);
        for entry in self.entries.iter().rev() {
            if let Some(since) = since.filter(|since| entry.at < *since) {
                return Some((amount, since));
            }
            let gap = begins.saturating_duration_since(entry.at);
            let usual = newest.at.saturating_duration_since(begins).as_secs_f64() / f64::max(met, 1.0);
            if met >= 1.0 && gap > pause && gap.as_secs_f64() > GAPS * usual {
                break;
            }
            if matches!(entry.verdict, Verdict::Admitted | Verdict::Open) {
                amount.requests += 1;
                amount.tokens = amount.tokens.saturating_add(entry.tokens);
            }
            (begins, met) = (entry.at, met + 1.0);
        }
        Some((amount, begins))
    }

    /// How much the server admits in a second at the least and at the most, by what it admitted between refusals of
    /// those sent from number `from` on: it had nothing left at both ends. `of` is the amount that counts; by `slack`
    /// it may be wrong.
    pub(super) fn between_refusals(
        &self,
        from: u64,
        slack: f64,
        of: impl Fn(Amount) -> f64,
    ) -> Option<(f64, f64)> {
        let mut refusals: Vec<(Instant, Amount)> = Vec::new();
        let mut so_far = Amount::default();
        for entry in self.from(from) {
            match entry.verdict {
                Verdict::Refused => refusals.push((entry.at, so_far)),
                Verdict::Admitted | Verdict::Open => {
                    so_far.requests += 1;
                    so_far.tokens = so_far.tokens.saturating_add(entry.tokens);
                }
                Verdict::Lost => {}
            }
        }
        let (last, total) = refusals.pop()?;
        let spans = refusals.into_iter().filter(|(at, _)| *at < last);
        let mut rates = spans.map(|(at, before)| {
            let (admitted, span) = (of(total) - of(before), (last - at).as_secs_f64());
            let least = if span < SPAN_MIN { 0.0 } else { (admitted - slack).max(0.0) / span };
            (least, (admitted + slack) / span)
        });
        let (first, most) = rates.next()?;
        Some((rates.map(|(least, _)| least).fold(first, f64::max), most))
    }

    fn get(&self, number: u64) -> Option<&Sent> {
        self.entries.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    fn from(&self, number: u64) -> impl Iterator<Item = &Sent> {
        let skipped = usize::try_from(number.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.entries.iter().skip(skipped)
    }
}
