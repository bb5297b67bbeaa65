//! The decision about one request: whether it is let in, what goes wrong with it, what it changes.
//!
//! # Operation
//!
//! The order of the checks is OpenAI's: key, path and method, body, model, quota, limits. What passes
//! them meets the dice: the n-th request that passes meets the n-th draw of faults, whatever the
//! latency, so that one seed and one order of requests give one run.
//!
//! Requests to files, models and fine-tunes have dice of their own, so that how often a client polls changes nothing
//! for the rest, and no limits. Their effect takes place with the decision: what is lost after it is lost for the
//! asker alone.

use std::io;
use std::time::Duration;

use axum::http::HeaderMap;
use fastrand::Rng;
use tokio::time::Instant;

use super::call::{Call, Request};
use super::fault::Fault;
use super::ledger::{Arrival, Ledger, Outcome, Verdict};
use super::limits::Limits;
use super::mishap::Act;
use super::objects::{self, Objects};
use super::question::Question;
use super::refusal::Refusal;
use super::reply::{request_id, whole_millis};
use super::settings::{Auth, Change, Changes, Settings};
use crate::clock::Seed;

/// What the fault `429` says about coming back, where it says it.
const FAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// What changes from request to request.
pub(super) struct State {
    instance: u32,
    pub(super) settings: Settings,
    limits: Limits,
    fault_dice: Rng,
    latency_dice: Rng,
    /// Faults and latencies of what `objects` answers.
    object_dice: Rng,
    objects: Objects,
    pub(super) ledger: Ledger,
    /// Paid ones, since the start.
    answers: u64,
}

/// A request that is let in.
pub(super) struct Work {
    pub(super) fault: Option<Fault>,
    pub(super) delay: Duration,
    /// What a fault 429 says about coming back, if by the dice it says it.
    pub(super) retry_after: Option<Duration>,
    /// Of a call that was carried out.
    pub(super) done: Option<objects::Answer>,
}

/// What becomes of a request.
pub(super) struct Decision {
    pub(super) sequence: u64,
    pub(super) verdict: Result<Work, Refusal>,
    pub(super) rate_headers: HeaderMap,
}

impl State {
    /// Fails only if the ledger's file can't be opened.
    pub(super) fn new(settings: Settings, seed: Seed, instance: u32, started: Instant) -> io::Result<Self> {
        let mut limits = Limits::new();
        limits.set_requests(settings.requests_per_minute, settings.burst, started);
        limits.set_tokens(settings.tokens_per_minute, settings.burst, started);
        limits.set_capacity(settings.capacity, settings.when_full);
        Ok(Self {
            instance,
            limits,
            fault_dice: seed.derive("simulate/faults"),
            latency_dice: seed.derive("simulate/latency"),
            object_dice: seed.derive("simulate/object faults"),
            objects: Objects::new(&settings, seed, started),
            ledger: Ledger::open(settings.ledger.clone())?,
            answers: 0,
            settings,
        })
    }

    /// Decides about one request, and records it.
    pub(super) fn decide(
        &mut self,
        request: &Request<'_>,
        call: &Result<Call<'_>, Refusal>,
        arrival: Arrival,
        now: Instant,
    ) -> Decision {
        let is_look = matches!(call, Ok(Call::Object(call)) if call.act().is_look());
        let sequence = if is_look { self.ledger.look(&arrival) } else { self.ledger.arrive(&arrival) };
        let verdict = self.judge(request, call, now);
        let is_question = matches!(call, Ok(Call::Ask(_)));
        let (outcome, paid, retry_after) = match &verdict {
            Err(refusal) => (Outcome::Refused(refusal.name), false, refusal.retry_after),
            Ok(Work { fault: Some(fault), retry_after, .. }) => {
                (Outcome::Fault(*fault), is_question && fault.has_effect(), *retry_after)
            }
            Ok(Work { fault: None, .. }) => (Outcome::Ok, is_question, None),
        };
        self.answers += u64::from(paid);
        let done = verdict.as_ref().ok().and_then(|work| work.done.as_ref());
        let effect = done.and_then(|done| done.effect.clone());
        let request_id = request_id(self.instance, sequence);
        let retry_after_ms = retry_after.map(whole_millis);
        let entry = Verdict { outcome, paid, effect, request_id, retry_after_ms };
        if !is_look {
            self.ledger.settle(sequence, arrival, entry);
        }
        let mut rate_headers = HeaderMap::new();
        if is_question {
            self.limits.write_headers(&mut rate_headers);
        }
        Decision { sequence, verdict, rate_headers }
    }

    fn judge(
        &mut self,
        request: &Request<'_>,
        call: &Result<Call<'_>, Refusal>,
        now: Instant,
    ) -> Result<Work, Refusal> {
        self.settings.auth.admit(request.headers)?;
        match call.as_ref().map_err(Refusal::clone)? {
            Call::Ask(question) => self.admit(question, now),
            Call::Object(call) => self.carry_out(call, now),
        }
    }

    /// Lets a question in, or says why not.
    fn admit(&mut self, question: &Question<'_>, now: Instant) -> Result<Work, Refusal> {
        if let Some(model) = &question.model {
            self.objects.admit(question.endpoint, model, now)?;
        }
        self.check_quota()?;
        self.limits.admit(question.model(), question.cost(), now)?;
        let fault = self.settings.faults.draw(&mut self.fault_dice);
        let gives_hint = self.fault_dice.bool();
        let latency = self.settings.latency.draw(&mut self.latency_dice);
        let delay = match fault {
            // A server that is too busy says so at once, and works on nothing.
            Some(Fault::RateLimit | Fault::Overloaded) => Duration::ZERO,
            Some(Fault::Slow) => self.limits.occupy(latency.saturating_add(self.settings.slow), now) - now,
            _ => self.limits.occupy(latency, now) - now,
        };
        Ok(Work { fault, delay, retry_after: hint(fault, gives_hint), done: None })
    }

    /// What becomes of a call to what is kept; its effect takes place here, unless it meets a fault that spares it.
    fn carry_out(&mut self, call: &objects::Call, now: Instant) -> Result<Work, Refusal> {
        let act = call.act();
        if act == Act::Create {
            self.check_quota()?;
        }
        // Drawn in any case: the n-th of these requests meets the n-th draw.
        let drawn = self.settings.faults.draw(&mut self.object_dice);
        let gives_hint = self.object_dice.bool();
        let latency = self.settings.latency.draw(&mut self.object_dice);
        let fault = self.settings.mishaps.meet(act).or(drawn);
        let is_done = fault.is_none_or(Fault::has_effect);
        let done = if is_done { Some(self.objects.carry_out(call, now)?) } else { None };
        let delay = match fault {
            Some(Fault::RateLimit | Fault::Overloaded) => Duration::ZERO,
            Some(Fault::Slow) => latency.saturating_add(self.settings.slow),
            _ => latency,
        };
        Ok(Work { fault, delay, retry_after: hint(fault, gives_hint), done })
    }

    fn check_quota(&self) -> Result<(), Refusal> {
        if self.settings.quota_after.is_some_and(|answers| self.answers >= answers) {
            return Err(Refusal::quota());
        }
        Ok(())
    }

    /// Records a request that is refused unread; its number.
    pub(super) fn refuse(&mut self, arrival: Arrival, refusal: &Refusal) -> u64 {
        let sequence = self.ledger.arrive(&arrival);
        let outcome = Outcome::Refused(refusal.name);
        let request_id = request_id(self.instance, sequence);
        let verdict = Verdict { outcome, paid: false, effect: None, request_id, retry_after_ms: None };
        self.ledger.settle(sequence, arrival, verdict);
        sequence
    }

    /// Changes settings from `now` on.
    pub(super) fn change(&mut self, changes: Changes, now: Instant) {
        let settings = &mut self.settings;
        if let Some(faults) = changes.faults {
            settings.faults = faults;
        }
        if let Some(mishaps) = changes.mishaps {
            settings.mishaps = mishaps;
        }
        if changes.fate != Change::Keep {
            changes.fate.apply(&mut settings.fate);
            self.objects.set_fate(settings.fate);
        }
        if let Some(latency) = changes.latency {
            settings.latency = latency;
        }
        match changes.key {
            Change::Keep => {}
            Change::Clear => settings.auth = Auth::Open,
            Change::Set(key) => settings.auth = Auth::Key(key),
        }
        changes.quota_after.apply(&mut settings.quota_after);
        if changes.requests_per_minute != Change::Keep {
            changes.requests_per_minute.apply(&mut settings.requests_per_minute);
            self.limits.set_requests(settings.requests_per_minute, settings.burst, now);
        }
        if changes.tokens_per_minute != Change::Keep {
            changes.tokens_per_minute.apply(&mut settings.tokens_per_minute);
            self.limits.set_tokens(settings.tokens_per_minute, settings.burst, now);
        }
        changes.capacity.apply(&mut settings.capacity);
        settings.when_full = changes.when_full.unwrap_or(settings.when_full);
        self.limits.set_capacity(settings.capacity, settings.when_full);
    }
}

/// What the fault `429` says about coming back.
fn hint(fault: Option<Fault>, gives_hint: bool) -> Option<Duration> {
    (gives_hint && fault == Some(Fault::RateLimit)).then_some(FAULT_RETRY_AFTER)
}
