//! Holding still: nothing is sent before the time that the server has named.
//!
//! A hold stands against a request, the newest that was refused. One that was sent after it and is served proves that
//! the hold is not needed, or not any more. When it is over by time a single request goes ahead; the others follow when
//! that is answered, or when it would have been refused by now: a refusal comes at once, an answer may take minutes.

use std::time::Duration;

use tokio::time::Instant;

/// The first hold where the server doesn't say for how long; the next ones, as long as nothing is served, are twice
/// as long each.
const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_mins(1);

/// See the module's words.
#[derive(Debug, Default)]
pub(super) struct Hold {
    until: Option<Instant>,
    /// The newest request that was refused.
    refused: Option<u64>,
    /// The newest request that was served.
    served: Option<u64>,
    scout: Scout,
    /// Holds without a hint since something was served.
    blind: u32,
}

/// Who goes ahead after a hold.
#[derive(Clone, Copy, Debug, Default)]
enum Scout {
    #[default]
    None,
    Due,
    Out(u64, Instant),
}

impl Hold {
    /// Whether nothing that was sent after the newest refused one was served.
    pub(super) fn is_unproven(&self) -> bool {
        self.served.is_none_or(|served| self.refused.is_some_and(|refused| served < refused))
    }

    /// When one may be sent. `grace`: who is not refused for so long is let in.
    pub(super) fn ready_at(&self, grace: Duration, now: Instant) -> Instant {
        match self.scout {
            Scout::None => now,
            Scout::Due => self.until.unwrap_or(now),
            Scout::Out(_, at) => at + grace,
        }
        .max(now)
    }

    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Until when nobody is sent, not even one ahead.
    pub(super) fn stands_until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now && matches!(self.scout, Scout::Due))
    }

    pub(super) fn sent(&mut self, number: u64, now: Instant) {
        self.scout = match self.scout {
            Scout::Due => Scout::Out(number, now),
            Scout::Out(..) | Scout::None => Scout::None,
        };
        self.until = None;
    }

    /// Request `number` was refused; the newest that was is the one that counts.
    pub(super) fn refused(&mut self, number: u64) {
        self.refused = self.refused.max(Some(number));
    }

    /// Nothing more is sent until the server's hint, or for a while; until when.
    pub(super) fn hold(&mut self, hint: Option<Duration>, now: Instant) -> Instant {
        let (None, Some(until), Scout::Due) = (hint, self.until, self.scout) else {
            return self.lengthen(hint, now);
        };
        // It is the same story: nobody was sent since.
        until
    }

    fn lengthen(&mut self, hint: Option<Duration>, now: Instant) -> Instant {
        let wait = hint.unwrap_or_else(|| {
            let wait = FIRST.saturating_mul(1 << self.blind.min(16)).min(LONGEST);
            self.blind += 1;
            wait
        });
        let until = self.until.map_or(now + wait, |until| until.max(now + wait));
        (self.until, self.scout) = (Some(until), Scout::Due);
        until
    }

    /// Nobody waits any more: a person says so. One goes ahead.
    pub(super) fn end(&mut self, now: Instant) {
        self.until = self.until.map(|until| until.min(now));
    }

    /// Request `number` was served. Whether that ended a hold.
    pub(super) fn served(&mut self, number: u64) -> bool {
        self.served = self.served.max(Some(number));
        if self.is_unproven() {
            return false;
        }
        self.blind = 0;
        let held = matches!(self.scout, Scout::Due);
        let is_scout = matches!(self.scout, Scout::Out(scout, _) if number >= scout);
        if held || is_scout {
            (self.scout, self.until) = (Scout::None, None);
        }
        held
    }
}
