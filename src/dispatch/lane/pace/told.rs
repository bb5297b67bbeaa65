//! What a server says of one of its limits in `x-ratelimit-*`, and how full its bucket is by now.
//!
//! # What the headers mean
//!
//! `limit` is for a minute nearly everywhere; where `reset`, the time until all of it is there again, is longer than a
//! minute, it is for a longer one (a day), and says nothing of how fast one may go. `remaining` counts for the moment
//! when the request was let in. Its answer may take many seconds, so what came to the bucket since then, and what was
//! sent since then, is reckoned in. A bucket that holds little more than one request is never full or empty: such a
//! server is asked a little more slowly than it says instead, so that no jitter makes a request come too early.

use std::time::Duration;

use tokio::time::Instant;

use crate::dispatch::lane::pace::rate::amount;
use crate::provider::RateHeaders;

/// All of a minute's limit is there again after a minute; more is rounding.
const RESET_MAX: Duration = Duration::from_secs(90);

/// What exceeds this in a minute is no limit.
const LIMIT_MAX: u64 = 1_000_000_000_000;

/// Where less than this share of the bucket is left the lane slows down, in proportion, so that others who use the same
/// key, and the jitter of the way, find something in it.
const LOW: f64 = 0.25;

/// However little is left, the lane goes on at this share of the limit: the headers may be wrong.
const SLOWEST: f64 = 0.1;

/// A bucket that holds fewer requests than this is too small to be steered by.
const STEERABLE: f64 = 8.0;

/// How fast a server is asked whose bucket is too small to be steered by, or not known.
const CAUTION: f64 = 0.985;

/// So many replies in a row without the header mean that the limit is not told any more.
const MISSING_MAX: u32 = 50;

/// One limit's three headers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Header {
    pub(super) limit: Option<u64>,
    pub(super) remaining: Option<u64>,
    pub(super) reset: Option<Duration>,
}

/// What changed by a reply.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum News {
    None,
    /// A limit that was not known, or another one.
    Limit,
    /// The limit is not told any more, and was this, per second.
    Gone(f64),
    /// What was taken for a minute's limit is a longer one's.
    Withdrawn,
}

/// See the module's words.
#[derive(Debug, Default)]
pub(super) struct Told {
    limit: Option<Limit>,
    /// The newest request whose reply was heard.
    newest: Option<u64>,
    missing: u32,
}

#[derive(Clone, Copy, Debug)]
struct Limit {
    /// As the header says it.
    amount: u64,
    per_second: f64,
    /// The most that was seen, or is reckoned, to be in the bucket.
    capacity: f64,
    level: Option<Level>,
}

/// How full the bucket was when request `number` was let in.
#[derive(Clone, Copy, Debug)]
struct Level {
    number: u64,
    at: Instant,
    remaining: f64,
    reset: Option<Duration>,
}

impl Told {
    /// Per second, whatever is left.
    pub(super) fn per_second(&self) -> Option<f64> {
        self.limit.map(|limit| limit.per_second)
    }

    /// The request whose reply told last what is left.
    pub(super) fn level_of(&self) -> Option<u64> {
        self.limit.and_then(|limit| limit.level).map(|level| level.number)
    }

    /// Whether nothing may be left by now, as far as the headers tell, and a refusal is no news. `since` as in
    /// [`Told::rate`].
    pub(super) fn is_used_up(&self, since: Option<f64>, now: Instant) -> bool {
        let (Some(level), Some(since)) = (self.limit.and_then(|limit| limit.level), since) else {
            return false;
        };
        let is_reset = |reset: Duration| now.saturating_duration_since(level.at) >= reset;
        level.remaining <= since && !level.reset.is_some_and(is_reset)
    }

    /// Hears the reply to request `number`, which was sent at `sent_at`. One that is older than what was heard last
    /// says nothing new.
    pub(super) fn hear(&mut self, header: Header, number: u64, sent_at: Instant) -> News {
        if self.newest.is_some_and(|newest| number < newest) {
            return News::None;
        }
        self.newest = Some(number);
        let Some(amount) = header.limit.filter(|limit| (1..LIMIT_MAX).contains(limit)) else {
            self.missing += 1;
            let gone = self.missing >= MISSING_MAX;
            let limit = if gone { self.limit.take() } else { None };
            return limit.map_or(News::None, |limit| News::Gone(limit.per_second));
        };
        self.missing = 0;
        if header.reset.is_some_and(|reset| reset > RESET_MAX) {
            return self.limit.take().map_or(News::None, |_| News::Withdrawn);
        }
        let per_second = amount_of(amount) / 60.0;
        let is_known = self.limit.is_some_and(|limit| limit.amount == amount);
        let mut limit = self.limit.filter(|_| is_known).unwrap_or(Limit {
            amount,
            per_second,
            capacity: 0.0,
            level: None,
        });
        if let Some(remaining) = header.remaining {
            let remaining = amount_of(remaining).min(amount_of(amount));
            let refill = header.reset.map_or(0.0, |reset| reset.as_secs_f64() * per_second);
            let capacity = (remaining + refill.max(1.0)).min(amount_of(amount));
            limit.capacity = limit.capacity.max(capacity);
            limit.level = Some(Level { number, at: sent_at, remaining, reset: header.reset });
        }
        self.limit = Some(limit);
        if is_known { News::None } else { News::Limit }
    }

    /// How fast the lane may go, per second. `since` was sent after the request of [`Told::level_of`], and a request
    /// costs `cost` on the average.
    pub(super) fn rate(&self, since: Option<f64>, cost: f64, now: Instant) -> Option<f64> {
        let limit = self.limit?;
        if limit.capacity < STEERABLE * cost {
            return Some(limit.per_second * CAUTION);
        }
        let (Some(level), Some(since)) = (limit.level, since) else { return Some(limit.per_second) };
        let age = now.saturating_duration_since(level.at).as_secs_f64();
        let mut left = level.remaining + age * limit.per_second;
        if level.reset.is_some_and(|reset| age >= reset.as_secs_f64()) {
            left = left.max(limit.capacity);
        }
        let left = (left - since).min(limit.capacity);
        let by_level = left / (limit.capacity * LOW);
        // A window that begins anew as a whole may be used up to its end.
        let by_window = level.reset.map_or(0.0, |reset| {
            let rest = reset.as_secs_f64() - age;
            if rest > 0.0 { (level.remaining - since) / rest / limit.per_second } else { 0.0 }
        });
        Some(limit.per_second * by_level.max(by_window).clamp(SLOWEST, 1.0))
    }
}

#[expect(clippy::cast_precision_loss, reason = "bounded far below 2^52")]
fn amount_of(count: u64) -> f64 {
    count.min(LIMIT_MAX) as f64
}

/// Whether a server that doesn't say what it is short of says that it is short of tokens.
pub(super) fn lacks_tokens(rate: RateHeaders) -> bool {
    let share = |remaining: Option<u64>, limit: Option<u64>| {
        Some(amount(remaining?) / amount(limit.filter(|limit| *limit > 0)?))
    };
    match (
        share(rate.remaining_tokens, rate.limit_tokens),
        share(rate.remaining_requests, rate.limit_requests),
    ) {
        (Some(tokens), Some(requests)) => tokens < requests,
        (Some(tokens), None) => tokens < 0.05,
        (None, _) => false,
    }
}
