//! How fast a lane may go: what is learnt of the server's rates, and holding still when told to.
//!
//! # Operation
//!
//! Requests and tokens have a [`Rate`](rate) each. It is what the server says in its headers ([`told`]); where it says
//! nothing, what it was found to admit before it refused ([`found`]); and until something is known a quick, but steady
//! rise, so that a server is not met by all slots at once.
//!
//! A refusal makes its own request wait for as long as the server says, in the store. Whether it also concerns the
//! others is judged by all that was sent lately ([`sent`]): where more is refused than chance explains the lane holds
//! still until the time that the server named ([`hold`]), and goes on a little below the rate that was admitted. As
//! long as nothing at all is served, every refusal holds the lane.
//!
//! # What it does not do
//!
//! A server that is short of room is left to [`slots`](super::slots); only where it serves nothing any more its hint
//! holds the lane, too. One that doesn't say what it is short of is taken to count requests, or tokens, where its
//! headers say that those are used up: a server that is full admits a steady rate as well, as long as its answers take
//! the same time, and where they don't the rate is soon tried again.

mod found;
mod hold;
mod ramp;
mod rate;
mod sent;
mod told;

use std::time::Duration;

use tokio::time::Instant;

use self::hold::Hold;
use self::ramp::Ramp;
use self::rate::{Rate, amount};
use self::sent::{Amount, Log, Verdict};
use self::told::{Header, lacks_tokens};
use crate::dispatch::attempt::{Ended, EndedKind, Exchange};
use crate::domain::{QueueName, Shortage};
use crate::provider::RateHeaders;

/// So many replies in a row that say *later* for lack of room mean that every further request would be refused too.
pub(super) const HOLD_AFTER: u32 = 5;

/// A queue whose limits are learnt and change is told of this often.
const TELL_EVERY: Duration = Duration::from_mins(1);

/// A reply says *later* within this, or the request was let in: for as long as no refusal was seen, and its bounds.
const REFUSAL: Duration = Duration::from_millis(100);
const GRACE_MIN: Duration = Duration::from_millis(25);
const GRACE_MAX: Duration = Duration::from_secs(2);

/// Chance may look like a limit once in this time, in seconds.
const FALSE_ALARM: f64 = 60.0;

/// The least odds, as a logarithm, from which on refusals are no chance.
const NO_CHANCE_MIN: f64 = 4.5;

/// A rate that was measured badly may be cut again. Refusals that outlast so many cuts are none of a limit.
const IN_VAIN: u32 = 3;

/// How far back the rate that was admitted is measured, at most.
const MEASURE: Duration = Duration::from_mins(1);

/// A rate by which so many requests were admitted is sure; fewer than these are no rate at all.
const MEASURED: u64 = 50;
const MEASURABLE: u64 = 8;

/// A cut that is made while the lane goes beyond what it knows, and measured by fewer, leaves this share of the rate.
const PROBE_LOSS: f64 = 0.8;

/// See the module's words.
#[derive(Debug)]
pub(in crate::dispatch) struct Pace {
    queue: QueueName,
    log: Log,
    /// None as soon as anything is known, or nothing is to be feared.
    ramp: Option<Ramp>,
    requests: Rate,
    tokens: Rate,
    hold: Hold,
    /// The first request that was sent after the rate was cut last: what came before says nothing of the new one.
    cut_at: u64,
    cut: Option<Cut>,
    /// Cuts in a row that were followed by refusals even while the lane went slowly.
    cuts_in_vain: u32,
    /// The first request that was sent after the last hold.
    held_at: u64,
    /// Since when the server has admitted what it could.
    measured_from: Option<Instant>,
    /// How long a refusal takes.
    refusal: Duration,
    full_in_a_row: u32,
    told_hold_at: Option<Instant>,
    told_rate_at: Option<Instant>,
}

/// How the rate was cut, to do it better when more is known.
#[derive(Clone, Copy, Debug)]
struct Cut {
    of_tokens: bool,
    /// The first request that counts.
    from: u64,
    since: Option<Instant>,
    made_at: Instant,
    until: Instant,
    /// Per second.
    before: Option<f64>,
    was_probing: bool,
    /// Something was served though the server had said that nothing would be.
    is_refuted: bool,
}

impl Pace {
    pub(super) fn new(queue: QueueName) -> Self {
        Self {
            queue,
            log: Log::default(),
            ramp: Some(Ramp::default()),
            requests: Rate::new(),
            tokens: Rate::new(),
            hold: Hold::default(),
            cut_at: 0,
            cut: None,
            cuts_in_vain: 0,
            held_at: 0,
            measured_from: None,
            refusal: REFUSAL,
            full_in_a_row: 0,
            told_hold_at: None,
            told_rate_at: None,
        }
    }

    /// Whether a request may have to wait for more than a slot.
    pub(in crate::dispatch) fn is_paced(&self) -> bool {
        let (requests, tokens) = self.limits();
        self.ramp.is_some() || requests.is_some() || tokens.is_some() || self.hold.until().is_some()
    }

    /// What is known of the server's limits, per minute: requests, and tokens.
    pub(in crate::dispatch) fn limits(&self) -> (Option<f64>, Option<f64>) {
        let per_minute = |rate: &Rate| rate.limit().map(|limit| limit * 60.0);
        (per_minute(&self.requests), per_minute(&self.tokens))
    }

    /// What is worth remembering of the server's limits, per minute: requests, and tokens.
    pub(super) fn learnt(&self) -> (Option<f64>, Option<f64>) {
        let per_minute = |rate: &Rate| rate.learnt().map(|learnt| learnt * 60.0);
        (per_minute(&self.requests), per_minute(&self.tokens))
    }

    /// Begins with what was learnt another time.
    pub(super) fn begin_with(&mut self, requests_per_minute: Option<f64>, tokens_per_minute: Option<f64>) {
        for (rate, learnt) in
            [(&mut self.requests, requests_per_minute), (&mut self.tokens, tokens_per_minute)]
        {
            if let Some(learnt) = learnt.filter(|learnt| learnt.is_finite() && *learnt > 0.0) {
                rate.begin_with(learnt / 60.0);
                self.ramp = None;
            }
        }
    }

    /// Until when nothing is sent, since the server asked for that.
    pub(in crate::dispatch) fn held_until(&self, now: Instant) -> Option<Instant> {
        self.hold.stands_until(now)
    }

    /// Ends a hold because a person says so; the refused requests themselves still wait for their time.
    pub(super) fn resume(&mut self, now: Instant) {
        self.hold.end(now);
    }

    /// When a request counted as `tokens` may be sent; not later than `now` if at once.
    pub(in crate::dispatch) fn ready_at(&mut self, tokens: u64, now: Instant) -> Instant {
        let (requests, used) = (self.sent_since_told(false), self.sent_since_told(true));
        let held = self.hold.ready_at(self.grace(), now);
        let held = held.max(self.ramp.as_mut().map_or(now, |ramp| ramp.ready_at(now)));
        held.max(self.requests.ready_at(1, requests, now)).max(self.tokens.ready_at(tokens, used, now))
    }

    /// Counts a request that is being sent; its number.
    pub(super) fn spend(&mut self, tokens: u64, now: Instant) -> u64 {
        let is_slow = self.requests.is_slow() || self.tokens.is_slow();
        if !(is_slow && self.has_found()) {
            let settled = now.checked_sub(self.grace()).unwrap_or(now);
            self.log.count(self.cut_at, settled);
        }
        let number = self.log.add(tokens, is_slow, now);
        self.hold.sent(number, now);
        if let Some(ramp) = &mut self.ramp {
            ramp.sent();
        }
        self.requests.spend(1, now);
        self.tokens.spend(tokens, now);
        number
    }

    /// Learns from an attempt that has ended.
    pub(super) fn on_ended(&mut self, ended: &Ended, now: Instant) {
        if let Some(usage) = ended.usage {
            self.tokens.correct(ended.estimate.total(), ended.estimate.corrected(usage));
        }
        if let Some(exchange) = &ended.exchange {
            self.hear(exchange, ended.number, now);
        }
        match ended.kind {
            EndedKind::Served | EndedKind::Waiting => self.on_served(ended.number, now),
            EndedKind::Throttled { retry_after, short_of } => {
                self.log.end(ended.number, Verdict::Refused);
                if let Some(exchange) = &ended.exchange {
                    let took = exchange.answered_at.saturating_duration_since(exchange.sent_at);
                    self.refusal = (self.refusal * 7 + took.min(GRACE_MAX)) / 8;
                }
                match short_of {
                    Shortage::Capacity => self.on_full(ended.number, retry_after, now),
                    Shortage::Requests => self.on_refused(ended.number, retry_after, false, now),
                    Shortage::Tokens => self.on_refused(ended.number, retry_after, true, now),
                    Shortage::Unknown => {
                        let of_tokens = ended.exchange.is_some_and(|exchange| lacks_tokens(exchange.rate));
                        self.on_refused(ended.number, retry_after, of_tokens, now);
                    }
                }
            }
            EndedKind::Failed | EndedKind::Blocked => self.log.end(ended.number, Verdict::Lost),
        }
    }

    fn hear(&mut self, exchange: &Exchange, number: u64, now: Instant) {
        let RateHeaders {
            limit_requests,
            remaining_requests,
            reset_requests,
            limit_tokens,
            remaining_tokens,
            reset_tokens,
        } = exchange.rate;
        let requests = Header { limit: limit_requests, remaining: remaining_requests, reset: reset_requests };
        let tokens = Header { limit: limit_tokens, remaining: remaining_tokens, reset: reset_tokens };
        let is_new = self.requests.hear(requests, number, exchange.sent_at);
        if self.tokens.hear(tokens, number, exchange.sent_at) || is_new {
            self.tell_of_rate("the provider's replies tell its limits", now);
        }
    }

    fn on_served(&mut self, number: u64, now: Instant) {
        self.log.end(number, Verdict::Admitted);
        self.full_in_a_row = 0;
        if let Some(ramp) = &mut self.ramp {
            ramp.served();
        }
        let is_known = self.limits() != (None, None);
        self.ramp = self.ramp.filter(|ramp| !is_known && !ramp.is_over());
        if self.hold.served(number) {
            // The server admits again, and earlier than it said.
            self.measured_from = Some(now);
            if let Some(cut) = self.cut.as_mut().filter(|cut| now < cut.made_at + MEASURE) {
                cut.until = cut.until.min(now);
                cut.is_refuted = true;
                self.apply_cut();
            }
        }
    }

    fn on_full(&mut self, number: u64, hint: Option<Duration>, now: Instant) {
        self.full_in_a_row += 1;
        let was_unproven = self.hold.is_unproven();
        self.hold.refused(number);
        if was_unproven || self.full_in_a_row >= HOLD_AFTER {
            self.hold(hint, now);
        }
    }

    fn on_refused(&mut self, number: u64, hint: Option<Duration>, of_tokens: bool, now: Instant) {
        let settled = now.checked_sub(self.grace()).unwrap_or(now);
        let was_unproven = !self.log.has_admitted(self.held_at, settled);
        self.hold.refused(number);
        if number < self.cut_at {
            // It was on its way when the rate was cut: the same story, better known.
            if self.hold.is_unproven() {
                let until = self.hold(hint, now);
                if let Some(cut) = &mut self.cut {
                    cut.until = cut.until.max(until);
                }
                self.measured_from = Some(until);
            }
            self.apply_cut();
            return;
        }
        let is_no_news = self.rate(of_tokens).is_used_up(self.sent_since_told(of_tokens), now);
        if was_unproven || is_no_news {
            let until = self.hold(hint, now);
            self.measured_from = Some(until);
            return;
        }
        let suspicion = self.log.suspicion(self.cut_at, settled);
        let was_probing = self.rate(of_tokens).is_probing();
        if suspicion >= self.log.per_second(now).mul_add(FALSE_ALARM, 1.0).ln().max(NO_CHANCE_MIN) {
            let is_slow = self.has_found() && self.rate(of_tokens).is_slow();
            self.cuts_in_vain = if is_slow { self.cuts_in_vain + 1 } else { 0 };
            if !is_slow || self.cuts_in_vain >= IN_VAIN {
                self.log.count(self.cut_at, now);
            }
            let since = [self.measured_from, now.checked_sub(MEASURE)].into_iter().flatten().max();
            let (from, before) = (self.cut_at, self.rate(of_tokens).limit());
            let until = self.hold(hint, now);
            let (made_at, is_refuted) = (now, false);
            self.cut = Some(Cut { of_tokens, from, since, made_at, until, before, was_probing, is_refuted });
            (self.cut_at, self.measured_from) = (self.log.next(), Some(until));
            self.apply_cut();
            self.tell_of_rate("the provider refuses more; the queue goes on as fast as it admits", now);
        }
    }

    /// Sets the rate to what was admitted, as far as that is known by now.
    fn apply_cut(&mut self) {
        let Some(cut) = self.cut else { return };
        let of =
            |amount_of: Amount| amount(if cut.of_tokens { amount_of.tokens } else { amount_of.requests });
        let (pause, cost) = {
            let rate = self.rate(cut.of_tokens);
            (rate.pause(), rate.cost())
        };
        let Some((admitted, since)) = self.log.admitted(cut.since, pause) else { return };
        if cut.before.is_none() && admitted.requests < MEASURABLE {
            self.ramp = Some(Ramp::again());
            return;
        }
        // A limit of an hour or a day says nothing of how fast one may go in it.
        let span = cut.until.min(cut.made_at + MEASURE).saturating_duration_since(since).as_secs_f64();
        let mut peak = of(admitted) / span.max(1e-3);
        let is_measured = admitted.requests >= MEASURED;
        // At the beginning the server gives what it has saved up, and where it refuses by chance it names times that
        // mean nothing: what it admits between refusals, when it has nothing left, is more to the point.
        if let Some((least, most)) = self.log.between_refusals(cut.from, 2.0 * cost, of) {
            peak = peak.min(most).max(least);
        }
        if let Some(before) = cut.before {
            let least = if cut.was_probing && !is_measured { before * PROBE_LOSS } else { 0.0 };
            peak = peak.min(before).max(least);
        }
        let is_guess = cut.before.is_none() || (cut.is_refuted && !is_measured);
        if cut.of_tokens { self.tokens.cut(peak, is_guess) } else { self.requests.cut(peak, is_guess) }
    }

    /// What was sent after the request whose reply told last what is left.
    fn sent_since_told(&self, of_tokens: bool) -> Option<f64> {
        let after = self.log.after(self.rate(of_tokens).level_of()?)?;
        Some(amount(if of_tokens { after.tokens } else { after.requests }))
    }

    fn has_found(&self) -> bool {
        self.requests.has_found() || self.tokens.has_found()
    }

    fn rate(&self, of_tokens: bool) -> &Rate {
        if of_tokens { &self.tokens } else { &self.requests }
    }

    fn grace(&self) -> Duration {
        (self.refusal * 2).clamp(GRACE_MIN, GRACE_MAX)
    }

    fn hold(&mut self, hint: Option<Duration>, now: Instant) -> Instant {
        let until = self.hold.hold(hint, now);
        self.held_at = self.log.next();
        if until.duration_since(now) >= Duration::from_secs(1) && is_due(&mut self.told_hold_at, now) {
            let wait_ms = u64::try_from(until.duration_since(now).as_millis()).unwrap_or(u64::MAX);
            tracing::info!(queue = %self.queue, wait_ms, "the provider asks to come later; the queue holds still");
        }
        until
    }

    fn tell_of_rate(&mut self, message: &'static str, now: Instant) {
        if is_due(&mut self.told_rate_at, now) {
            let (requests_per_minute, tokens_per_minute) = self.limits();
            tracing::info!(
                queue = %self.queue,
                requests_per_minute = requests_per_minute.map(f64::round),
                tokens_per_minute = tokens_per_minute.map(f64::round),
                message
            );
        }
    }
}

/// Whether something is to be told again.
fn is_due(told_at: &mut Option<Instant>, now: Instant) -> bool {
    let is_due = told_at.is_none_or(|told| now.duration_since(told) >= TELL_EVERY);
    if is_due {
        *told_at = Some(now);
    }
    is_due
}

#[cfg(test)]
mod tests;
