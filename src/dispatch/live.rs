//! What others hold of a running fleet: they change its settings, and see its queues.
//!
//! Gates are changed at once, for all queues of their provider. The limits of a queue belong to its dispatcher, which
//! hears the bell and takes the new ones over between two requests. What is in flight keeps what it began with.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::time::Instant;

use crate::bell::{Bell, Listener};
use crate::config;
use crate::diag::printable;
use crate::dispatch::failure::Result;
use crate::dispatch::gate::Gate;
use crate::dispatch::lane::Lane;
use crate::dispatch::queue::Dispatcher;
use crate::dispatch::{ProviderSettings, Settings};
use crate::domain::{QueueName, Settlement};

/// The rate is that of so many seconds.
const MINUTE: usize = 60;

/// What others hold of a running fleet. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    settings: Mutex<Arc<Settings>>,
    /// Rings when `settings` has changed.
    changed: Bell,
    /// One a provider: those that a fleet begins with are all that it ever has.
    gates: BTreeMap<String, Gates>,
    queues: Mutex<BTreeMap<QueueName, Arc<Mutex<QueueReport>>>>,
    pace: Mutex<Pace>,
}

/// What stands before a provider. All of them ring one bell.
#[derive(Debug)]
pub(super) struct Gates {
    /// How many may be inside, over all sites.
    pub(super) all: Arc<Gate>,
    /// One a site, in their order.
    pub(super) sites: Vec<Arc<Gate>>,
    pub(super) bell: Bell,
}

impl Gates {
    fn new(provider: &ProviderSettings) -> Self {
        let bell = Bell::default();
        let all = Gate::new(provider.config.concurrency as usize, bell.clone());
        let sites = provider.sites.iter().map(|_| Gate::new(usize::MAX, bell.clone())).collect();
        Self { all, sites, bell }
    }
}

/// A queue that has a dispatcher.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueReport {
    /// Requests that may be in flight, as configured; where it is `auto`, at most.
    pub concurrency_max: usize,
    /// How many may be in flight now: as many as were found where it is `auto`, and fewer than configured where the
    /// server refuses for lack of room.
    pub concurrency: usize,
    /// The one in force, configured or learnt. None = unlimited.
    pub requests_per_minute: Option<u32>,
    /// The same.
    pub tokens_per_minute: Option<u64>,
    /// What the server was found to admit in a minute, or says that it does. None = nothing is known.
    pub learnt_requests_per_minute: Option<u64>,
    /// The same.
    pub learnt_tokens_per_minute: Option<u64>,
    /// Requests that are sent, or of which it is being written what came of them.
    pub in_flight: usize,
    /// Until when nothing is sent, since every endpoint that is open said to come later.
    pub held_until: Option<Instant>,
    /// How many endpoints of the provider get nothing but a try now and then.
    pub endpoints_out: usize,
    /// Which these are, and why, where the provider has others.
    pub out: Vec<String>,
}

/// How many requests the providers have judged, whatever the verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// Since the start.
    pub total: u64,
    pub last_minute: u64,
}

impl Handle {
    pub(super) fn new(settings: Settings) -> Self {
        let gates = settings.providers.iter().map(|p| (p.config.name.clone(), Gates::new(p))).collect();
        Self(Arc::new(Shared {
            settings: Mutex::new(Arc::new(settings)),
            changed: Bell::default(),
            gates,
            queues: Mutex::default(),
            pace: Mutex::new(Pace::new(Instant::now())),
        }))
    }

    /// Those that hold.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&lock(&self.0.settings))
    }

    /// Lets `settings` hold from now on, for jobs that run, too. They name the providers of the old ones: none comes
    /// and none goes, nor does an endpoint. One whose key has [changed](crate::provider::Provider::change), which comes
    /// first, is tried again at once.
    pub fn change(&self, settings: Settings) {
        let now = Instant::now();
        let before = std::mem::replace(&mut *lock(&self.0.settings), Arc::new(settings));
        for new in &self.settings().providers {
            let (Some(gates), Some(old)) = (self.gates(&new.config.name), before.provider(&new.config.name))
            else {
                continue;
            };
            gates.all.set_slots(new.config.concurrency as usize);
            let (new, old) = (new.config.sites(), old.config.sites());
            for (gate, (new, old)) in gates.sites.iter().zip(new.iter().zip(&old)) {
                // Some are let in by a header.
                if key(new) != key(old) || new.headers != old.headers {
                    gate.renew(now);
                }
            }
        }
        self.0.changed.ring();
    }

    /// The queues that have something to do, or had a while ago.
    pub fn queues(&self) -> BTreeMap<QueueName, QueueReport> {
        let queues = lock(&self.0.queues);
        queues.iter().map(|(queue, report)| (queue.clone(), lock(report).clone())).collect()
    }

    pub fn answered(&self) -> Answered {
        lock(&self.0.pace).answered(Instant::now())
    }

    pub(super) fn count_answer(&self) {
        lock(&self.0.pace).count(Instant::now());
    }

    /// Ticks when the settings have changed.
    pub(super) fn changes(&self) -> Listener {
        self.0.changed.listen()
    }

    pub(super) fn gates(&self, provider: &str) -> Option<&Gates> {
        self.0.gates.get(provider)
    }

    /// Shows a queue from now on.
    pub(super) fn show(&self, queue: &QueueName) -> Shown {
        let report = Arc::default();
        lock(&self.0.queues).insert(queue.clone(), Arc::clone(&report));
        Shown { handle: self.clone(), queue: queue.clone(), report }
    }
}

impl QueueReport {
    /// How long the queue still holds still, as of now.
    pub fn hold(&self) -> Duration {
        self.held_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }
}

impl Settings {
    pub(super) fn provider(&self, name: &str) -> Option<&ProviderSettings> {
        self.providers.iter().find(|provider| provider.config.name == name)
    }
}

fn key(site: &config::Site) -> Option<&str> {
    site.api_key.as_ref().map(ExposeSecret::expose_secret)
}

/// A queue's place in what a fleet shows; it is gone when this is dropped.
#[derive(Debug)]
pub(super) struct Shown {
    handle: Handle,
    queue: QueueName,
    report: Arc<Mutex<QueueReport>>,
}

impl Shown {
    pub(super) fn set(&self, report: QueueReport) {
        *lock(&self.report) = report;
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let mut queues = lock(&self.handle.0.queues);
        // Another dispatcher may have taken its place.
        if queues.get(&self.queue).is_some_and(|report| Arc::ptr_eq(report, &self.report)) {
            queues.remove(&self.queue);
        }
    }
}

impl Dispatcher {
    /// Takes over the settings that hold now.
    pub(super) async fn on_settings(&mut self) -> Result<()> {
        let settings = self.parts.live.settings();
        self.retry = settings.retry;
        if let Some(provider) = settings.provider(self.queue.provider()) {
            self.flex_fallback = provider.config.flex_fallback;
            let (limits, now) = (provider.config.limits_of(&self.limits_name), Instant::now());
            self.limits.change(&limits, now);
            for (lane, site) in self.lanes.iter_mut().zip(&provider.sites) {
                lane.slots.change(&limits, now);
                lane.weight = site.weight;
            }
        }
        self.prepare_anew();
        // Who takes his time now must not sit on what others may have to send first.
        while self.ready.len() > self.spare() {
            let Some(lease) = self.ready.pop_back() else { break };
            self.parts.store.settle(lease, Settlement::Release).await?;
            self.dry = false;
        }
        Ok(())
    }

    /// Shows on the board whether the queue is paused.
    pub(super) fn show_pause(&mut self) {
        self.tell_of_lanes();
        // One that is open is enough to go on.
        let pauses: Option<Vec<_>> = self.lanes.iter().map(Lane::pause).collect();
        if let Some(pause) = pauses.and_then(|pauses| pauses.into_iter().next()) {
            self.board.pause(&self.queue, pause.clone());
            self.paused = Some(pause);
            return;
        }
        self.board.clear(&self.queue);
        if let Some(before) = self.paused.take() {
            let paused_s = self.parts.clock.now().since(before.since).as_secs();
            let reason = before.reason.as_str();
            tracing::info!(queue = %self.queue, reason, paused_s, "the queue goes on");
        }
    }

    /// Says in the log which lanes are out, and which are asked again, where there are several.
    fn tell_of_lanes(&mut self) {
        for lane in &mut self.lanes {
            let out = lane.out();
            if out.is_some() == lane.is_told_out {
                continue;
            }
            lane.is_told_out = out.is_some();
            let (queue, endpoint) = (&self.queue, lane.site.label.as_deref());
            if let Some(error) = out.as_deref().map(printable) {
                tracing::warn!(%queue, endpoint, error, "the queue does without an endpoint");
            } else {
                tracing::info!(%queue, endpoint, "the endpoint is asked again");
            }
        }
    }

    /// Lets others see how the queue stands.
    pub(super) fn show(&self) {
        let now = Instant::now();
        let report = self.report(now);
        let held_until = report.held_until.map(|until| self.parts.clock.now() + until.duration_since(now));
        self.board.hold(&self.queue, held_until);
        self.shown.set(report);
    }
}

/// Counts what comes by the second, for as long as the rate looks back.
#[derive(Debug)]
struct Pace {
    began: Instant,
    total: u64,
    /// By second, over and over.
    counts: [u32; MINUTE],
    /// The second that was counted last.
    last: u64,
}

impl Pace {
    const fn new(began: Instant) -> Self {
        Self { began, total: 0, counts: [0; MINUTE], last: 0 }
    }

    fn count(&mut self, now: Instant) {
        self.move_to(now);
        self.total += 1;
        if let Some(count) = self.counts.get_mut(place(self.last)) {
            *count += 1;
        }
    }

    fn answered(&mut self, now: Instant) -> Answered {
        self.move_to(now);
        Answered { total: self.total, last_minute: self.counts.iter().copied().map(u64::from).sum() }
    }

    /// Forgets the seconds that have passed out of sight.
    fn move_to(&mut self, now: Instant) {
        let second = now.saturating_duration_since(self.began).as_secs();
        let passed = second.saturating_sub(self.last).min(MINUTE as u64);
        for ago in 0..passed {
            if let Some(count) = self.counts.get_mut(place(second - ago)) {
                *count = 0;
            }
        }
        self.last = self.last.max(second);
    }
}

/// Where a second is counted.
fn place(second: u64) -> usize {
    usize::try_from(second % MINUTE as u64).unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is held is replaced as a whole, or counts.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_that_of_the_last_minute() {
        let mut pace = Pace::new(Instant::now());
        for _ in 0..90 {
            pace.count(Instant::now());
            pace.count(Instant::now());
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!(pace.answered(Instant::now()), Answered { total: 180, last_minute: 118 });
        advance(Duration::from_secs(40)).await;
        assert_eq!(pace.answered(Instant::now()).last_minute, 38);
        advance(Duration::from_hours(9)).await;
        assert_eq!(pace.answered(Instant::now()), Answered { total: 180, last_minute: 0 });
        pace.count(Instant::now());
        assert_eq!(pace.answered(Instant::now()), Answered { total: 181, last_minute: 1 });
    }
}
