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
use super::hint::Hint;
use super::ledger::{Arrival, KeyMark, Ledger, Outcome, Verdict};
use super::limits::{KeyLimits, Limits};
use super::mishap::Act;
use super::objects::{self, Objects};
use super::pace::{self, PaceMeter};
use super::question::Question;
use super::refusal::Refusal;
use super::reply::{request_id, whole_millis};
use super::script::{Conditions, Trouble};
use super::settings::{Auth, Change, Changes, Settings};
use super::timeline::Timeline;
use crate::clock::Seed;

/// What changes from request to request.
pub(super) struct State {
    instance: u32,
    pub(super) settings: Settings,
    limits: KeyLimits,
    timeline: Timeline,
    fault_dice: Rng,
    latency_dice: Rng,
    /// Faults and latencies of what `objects` answers.
    object_dice: Rng,
    objects: Objects,
    pub(super) ledger: Ledger,
    pub(super) pace: PaceMeter,
    /// Paid ones, since the start.
    answers: u64,
}

/// A request that is let in.
pub(super) struct Work {
    pub(super) fault: Option<Fault>,
    pub(super) delay: Duration,
    /// How long the bytes of the reply take, or its second half.
    pub(super) drips: Duration,
    /// What a fault that refuses says about coming back.
    pub(super) hint: Hint,
    /// Of a call that was carried out.
    pub(super) done: Option<objects::Answer>,
}

/// What becomes of a request.
pub(super) struct Decision {
    pub(super) sequence: u64,
    pub(super) verdict: Result<Work, Refusal>,
    /// What the reply says about coming back.
    pub(super) hint: Hint,
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
            limits: KeyLimits::new(settings.limits_per_key, limits),
            timeline: Timeline::new(settings.script.clone(), &settings, started),
            fault_dice: seed.derive("simulate/faults"),
            latency_dice: seed.derive("simulate/latency"),
            object_dice: seed.derive("simulate/object faults"),
            objects: Objects::new(&settings, seed, started),
            ledger: Ledger::open(settings.ledger.clone())?,
            pace: PaceMeter::default(),
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
        self.follow(now);
        let is_look = matches!(call, Ok(Call::Object(call)) if call.act().is_look());
        let sequence = if is_look { self.ledger.look(&arrival) } else { self.ledger.arrive(&arrival) };
        let key = arrival.key;
        let verdict = self.judge(request, call, key, now);
        let is_question = matches!(call, Ok(Call::Ask(_)));
        let (outcome, paid, hint) = match &verdict {
            Err(refusal) => (Outcome::Refused(refusal.name), false, refusal.hint),
            Ok(Work { fault: Some(fault), hint, .. }) => {
                (Outcome::Fault(*fault), is_question && fault.has_effect(), *hint)
            }
            Ok(Work { fault: None, .. }) => (Outcome::Ok, is_question, Hint::None),
        };
        if let Ok(Call::Ask(question)) = call {
            let lane = (key, blake3::hash(question.model().as_bytes()));
            let told = hint.wait().map(|wait| (now, wait));
            let asked = pace::Asked { lane, outcome, in_flight: arrival.in_flight, told };
            self.pace.count(&asked, arrival.at_us, now);
        }
        self.answers += u64::from(paid);
        let done = verdict.as_ref().ok().and_then(|work| work.done.as_ref());
        let effect = done.and_then(|done| done.effect.clone());
        let request_id = request_id(self.instance, sequence);
        let retry_after_ms = hint.wait().map(whole_millis);
        let entry = Verdict { outcome, paid, effect, request_id, retry_after_ms };
        if !is_look {
            self.ledger.settle(sequence, arrival, entry);
        }
        let mut rate_headers = HeaderMap::new();
        if is_question && self.settings.limits_told.by_headers() {
            self.limits.of(key).write_headers(&mut rate_headers);
        }
        Decision { sequence, verdict, hint, rate_headers }
    }

    fn judge(
        &mut self,
        request: &Request<'_>,
        call: &Result<Call<'_>, Refusal>,
        key: Option<KeyMark>,
        now: Instant,
    ) -> Result<Work, Refusal> {
        self.settings.auth.admit(request.headers)?;
        if self.trouble(now) == Some(Trouble::Key) {
            return Err(Refusal::wrong_key());
        }
        match call.as_ref().map_err(Refusal::clone)? {
            Call::Ask(question) => self.admit(question, key, now),
            Call::Object(call) => self.carry_out(call, now),
        }
    }

    /// Lets a question in, or says why not.
    fn admit(
        &mut self,
        question: &Question<'_>,
        key: Option<KeyMark>,
        now: Instant,
    ) -> Result<Work, Refusal> {
        if let Some(model) = &question.model {
            self.objects.admit(question.endpoint, model, now)?;
        }
        self.check_quota(now)?;
        let trouble = self.timeline.now(now);
        let scripted = match trouble.map(|now| now.trouble) {
            Some(Trouble::Model) => return Err(Refusal::model_not_found(question.model())),
            // Who has come in spite of all had a connection when it went down.
            Some(Trouble::Down) => Some(Fault::Reset),
            Some(Trouble::Fault(fault)) => Some(fault),
            Some(Trouble::Key | Trouble::Quota) | None => None,
        };
        // A server that is too busy says so at once, and works on nothing; nor does one that resets.
        let is_at_once = |fault: Fault| fault.is_refusal() || fault == Fault::Reset;
        if let Some(fault) = scripted.filter(|fault| is_at_once(*fault)) {
            let hint = trouble.map_or(Hint::None, |now| now.hint);
            return Ok(Work {
                fault: Some(fault),
                delay: Duration::ZERO,
                drips: Duration::ZERO,
                hint,
                done: None,
            });
        }
        let limits = self.limits.of(key);
        let admitted = limits.admit(question.model(), question.cost(), now);
        admitted.map_err(|refusal| refusal.hinting(self.settings.limits_told.by_hints()))?;
        let fault = scripted.or_else(|| self.settings.faults.draw(&mut self.fault_dice));
        let hint = self.settings.hints.draw(&mut self.fault_dice);
        let latency = self.settings.latency.draw(&mut self.latency_dice);
        let (slow, drips) = extra(&self.settings, fault);
        // Half of the time of a stream passes before its first word.
        let (latency, drips) = match fault {
            None if question.stream.is_some() => (latency.saturating_sub(latency / 2), latency / 2),
            _ => (latency, drips),
        };
        let delay = match fault {
            Some(fault) if is_at_once(fault) => Duration::ZERO,
            _ => (limits.occupy(latency.saturating_add(slow).saturating_add(drips), now) - now)
                .saturating_sub(drips),
        };
        Ok(Work { fault, delay, drips, hint: hint_of(fault, hint), done: None })
    }

    /// What becomes of a call to what is kept; its effect takes place here, unless it meets a fault that spares it.
    fn carry_out(&mut self, call: &objects::Call, now: Instant) -> Result<Work, Refusal> {
        let act = call.act();
        if act == Act::Create {
            self.check_quota(now)?;
        }
        // Drawn in any case: the n-th of these requests meets the n-th draw.
        let drawn = self.settings.faults.draw(&mut self.object_dice);
        let hint = self.settings.hints.draw(&mut self.object_dice);
        let latency = self.settings.latency.draw(&mut self.object_dice);
        let fault = self.settings.mishaps.meet(act).or(drawn);
        let is_done = fault.is_none_or(Fault::has_effect);
        let done = if is_done { Some(self.objects.carry_out(call, now)?) } else { None };
        let (slow, drips) = extra(&self.settings, fault);
        let delay = match fault {
            Some(fault) if fault.is_refusal() => Duration::ZERO,
            _ => latency.saturating_add(slow),
        };
        Ok(Work { fault, delay, drips, hint: hint_of(fault, hint), done })
    }

    fn check_quota(&self, now: Instant) -> Result<(), Refusal> {
        let is_used_up = self.settings.quota_after.is_some_and(|answers| self.answers >= answers);
        if is_used_up || self.trouble(now) == Some(Trouble::Quota) {
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
        let base = self.timeline.base();
        if changes.faults.is_some() {
            base.faults = changes.faults;
        }
        base.latency = changes.latency.or(base.latency);
        base.when_full = changes.when_full.or(base.when_full);
        changes.capacity.apply(&mut base.capacity);
        changes.requests_per_minute.apply(&mut base.requests_per_minute);
        changes.tokens_per_minute.apply(&mut base.tokens_per_minute);
        self.timeline.touch(now);
        if let Some(script) = changes.script {
            self.timeline.begin(script, now);
        }
        let settings = &mut self.settings;
        settings.hints = changes.hints.unwrap_or_else(|| settings.hints.clone());
        settings.limits_told = changes.limits_told.unwrap_or(settings.limits_told);
        if let Some(mishaps) = changes.mishaps {
            settings.mishaps = mishaps;
        }
        changes.fate.apply(&mut settings.fate);
        settings.fine_tune_time = changes.fine_tune_time.unwrap_or(settings.fine_tune_time);
        self.objects.follow(settings);
        match changes.key {
            Change::Keep => {}
            Change::Clear => settings.auth = Auth::Open,
            Change::Set(key) => settings.auth = Auth::Key(key),
        }
        changes.quota_after.apply(&mut settings.quota_after);
        self.follow(now);
    }

    /// Brings the settings to where the script stands.
    pub(super) fn follow(&mut self, now: Instant) {
        let Some(conditions) = self.timeline.follow(now) else { return };
        let Conditions { requests_per_minute, tokens_per_minute, capacity, when_full, latency, faults } =
            conditions;
        let settings = &mut self.settings;
        settings.faults = faults.unwrap_or_default();
        settings.latency = latency.unwrap_or(settings.latency);
        let burst = settings.burst;
        if requests_per_minute != settings.requests_per_minute {
            settings.requests_per_minute = requests_per_minute;
            self.limits.change(|limits| limits.set_requests(requests_per_minute, burst, now));
        }
        if tokens_per_minute != settings.tokens_per_minute {
            settings.tokens_per_minute = tokens_per_minute;
            self.limits.change(|limits| limits.set_tokens(tokens_per_minute, burst, now));
        }
        (settings.capacity, settings.when_full) = (capacity, when_full.unwrap_or(settings.when_full));
        let (capacity, when_full) = (settings.capacity, settings.when_full);
        self.limits.change(|limits| limits.set_capacity(capacity, when_full));
    }

    /// When [`State::follow`] has something to do.
    pub(super) const fn next_turn(&self) -> Option<Instant> {
        self.timeline.next()
    }

    /// What the script has for everybody now.
    pub(super) fn trouble(&self, now: Instant) -> Option<Trouble> {
        self.timeline.now(now).map(|now| now.trouble)
    }

    /// When the server goes down within `within`, if it does.
    pub(super) fn next_down(&self, now: Instant, within: Duration) -> Option<Instant> {
        self.timeline.next_down(now, within)
    }
}

/// What a fault adds to the latency, and how long its bytes take then.
fn extra(settings: &Settings, fault: Option<Fault>) -> (Duration, Duration) {
    match fault {
        Some(Fault::Slow) => (settings.slow, Duration::ZERO),
        Some(Fault::Drip | Fault::Stall) => (Duration::ZERO, settings.slow),
        _ => (Duration::ZERO, Duration::ZERO),
    }
}

/// What the fault `429` says about coming back.
fn hint_of(fault: Option<Fault>, hint: Hint) -> Hint {
    if fault == Some(Fault::RateLimit) { hint } else { Hint::None }
}
