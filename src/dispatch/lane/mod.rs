//! A lane: a queue at one site of its provider, with what is learnt there.
//!
//! A site is one url and one key (`[[providers.endpoints]]`; most providers have one). What the configuration says
//! bounds the queue as a whole ([`crate::dispatch::limits`]); what a server says, and how it bears what it gets, holds
//! for the site that said it: [`pace`] knows how fast it may be asked, [`slots`] how much at once.

pub(super) mod pace;
pub(super) mod slots;

use std::sync::Arc;

use tokio::time::Instant;

use crate::config;
use crate::control::QueuePause;
use crate::dispatch::attempt::Ended;
use crate::dispatch::gate::{Gate, Inside, Refused};
use crate::dispatch::lane::pace::Pace;
use crate::dispatch::lane::slots::Slots;
use crate::dispatch::memory::Learnt;
use crate::domain::{QueueName, Timestamp};
use crate::provider::Provider;

/// See the module's words.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) site: Arc<Site>,
    pub(super) pace: Pace,
    pub(super) slots: Slots,
    /// Its share of the requests, beside those of the others.
    pub(super) weight: u32,
    /// Turns that it has coming; below zero where it got more than its share for a moment.
    pub(super) credit: f64,
    /// The log says that it is out.
    pub(super) is_told_out: bool,
}

/// What the attempts in a lane share.
#[derive(Debug)]
pub(super) struct Site {
    /// Its place among the provider's.
    pub(super) index: usize,
    /// How a person is told of it; none where the provider has no other.
    pub(super) label: Option<String>,
    pub(super) provider: Provider,
    /// Closes for a refused key, a used-up quota and a server that is down: for all queues at this site.
    pub(super) gate: Arc<Gate>,
    /// Closes for a model that has gone from this site: for this queue alone.
    pub(super) model_gate: Arc<Gate>,
}

/// The places that a request in flight takes.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) at: Arc<Site>,
    pub(super) site: Inside,
    pub(super) model: Inside,
    /// One of those that all queues of the provider have together.
    _provider: Inside,
}

impl Site {
    /// These words, and of which site they are where the provider has several.
    pub(super) fn told(&self, words: &str) -> String {
        self.label.as_ref().map_or_else(|| words.to_owned(), |label| format!("{label}: {words}"))
    }
}

impl Places {
    /// The server has judged the request itself: whatever it said, key, quota and model are good.
    pub(super) fn passed(&self) {
        self.site.passed();
        self.model.passed();
    }
}

impl Lane {
    pub(super) fn new(queue: &QueueName, site: Site, limits: &config::Limits, now: Instant) -> Self {
        let name = site.provider.name().to_owned();
        debug_assert_eq!(name, queue.provider(), "a lane leads to its queue's provider");
        Self {
            site: Arc::new(site),
            pace: Pace::new(queue.clone()),
            slots: Slots::new(limits, now),
            weight: 1,
            credit: 0.0,
            is_told_out: false,
        }
    }

    /// Why nobody may enter now, places aside.
    pub(super) fn refusal(&self, now: Instant) -> Option<Refused> {
        self.site.gate.refusal(now).or_else(|| self.site.model_gate.refusal(now))
    }

    /// Why a gate of it is closed, if one is.
    pub(super) fn pause(&self) -> Option<QueuePause> {
        self.site.gate.pause().or_else(|| self.site.model_gate.pause())
    }

    /// What a person is told of it if a gate of it is closed and others may still be open.
    pub(super) fn out(&self) -> Option<String> {
        self.site.label.as_ref()?;
        let pause = self.pause()?;
        // The message says itself of which site it is.
        Some(format!("{}: {}", pause.reason.as_str(), pause.message))
    }

    /// How many more may be in flight.
    pub(super) fn free(&self) -> usize {
        self.slots.allowed().saturating_sub(self.slots.in_flight())
    }

    pub(super) const fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }

    /// Its part of what the lanes of the queue bear together.
    #[expect(clippy::cast_precision_loss, reason = "slots are counted in thousands")]
    pub(super) fn share(&self) -> f64 {
        self.slots.allowed().max(1) as f64 * f64::from(self.weight.max(1))
    }

    /// Takes the places that a request needs. One that is taken and left again rings the gate's bell, so the gate
    /// that may be full goes first, and only when the others are known to be open: else a dispatcher would wake
    /// itself for ever.
    pub(super) fn enter(&self, provider: &Arc<Gate>, now: Instant) -> Result<Places, Refused> {
        if let Some(refused) = self.refusal(now) {
            return Err(refused);
        }
        let provider = provider.enter(now)?;
        let (site, model) = (self.site.gate.enter(now)?, self.site.model_gate.enter(now)?);
        Ok(Places { at: Arc::clone(&self.site), site, model, _provider: provider })
    }

    /// Counts a request that is being sent; its number in the lane.
    pub(super) fn spend(&mut self, tokens: u64, now: Instant) -> u64 {
        self.slots.on_sent(now);
        self.pace.spend(tokens, now)
    }

    /// Learns from an attempt that has ended.
    pub(super) fn on_ended(&mut self, ended: &Ended, now: Instant) {
        self.pace.on_ended(ended, now);
        self.slots.on_ended(ended, now);
    }

    /// What is worth remembering of it; None if nothing is.
    pub(super) fn learnt(&self, at: Timestamp) -> Option<Learnt> {
        let (requests_per_minute, tokens_per_minute) = self.pace.learnt();
        let learnt = Learnt { requests_per_minute, tokens_per_minute, concurrency: self.slots.learnt(), at };
        (!learnt.is_nothing()).then_some(learnt)
    }

    /// Begins with what was learnt another time.
    pub(super) fn begin_with(&mut self, learnt: Learnt, now: Instant) {
        self.pace.begin_with(learnt.requests_per_minute, learnt.tokens_per_minute);
        if let Some(concurrency) = learnt.concurrency {
            self.slots.begin_with(concurrency, now);
        }
    }

    pub(super) fn resume(&mut self, now: Instant) {
        self.pace.resume(now);
        self.site.gate.resume(now);
        self.site.model_gate.resume(now);
    }
}
