//! Dispatch: from requests that are open to settlements. The one place that sends, waits and retries (P4).
//!
//! One [`queue`] dispatcher for each `provider/model` owns its `limits`, which the configuration says, and a `lane` for
//! each site of the provider, which knows what was learnt there. A `gate` before each provider bounds all of its
//! queues together; one before each site closes when that refuses the key or the quota is used up. The [`Fleet`] starts
//! a dispatcher for every queue that has work.

mod attempt;
mod breaker;
mod bucket;
mod budget;
mod choice;
mod ending;
mod estimate;
mod failure;
mod flex;
mod gate;
mod known;
mod lane;
mod limits;
mod live;
mod memory;
mod prepare;
mod queue;
mod spread;
mod stock;
mod tuned;
mod tuning;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use self::attempt::Parts;
use self::budget::Budget;
use self::ending::Endings;
use self::failure::guarded;
use self::gate::Gate;
use self::known::KnownModel;
use self::lane::{Lane, Site};
use self::live::Gates;
use self::memory::{Memory, SAVE_EVERY};
use self::queue::{Dispatcher, Extras};
use self::tuning::Watches;
use crate::clock::{Clock, Seed};
use crate::config;
use crate::control::{Board, QueuePause};
use crate::domain::{JobId, JobState, JobStatus, PauseReason, QueueName, RetryPolicy};
use crate::metrics::Metrics;
use crate::provider::Provider;
use crate::pulse::Roll;
use crate::store::Store;

pub use self::failure::{Error, Result};
pub use self::live::{Answered, Handle, QueueReport};

/// The fleet looks at the store when there is news; without any, this seldom.
const LOOK: Duration = Duration::from_hours(1);

/// What dispatch must know of the configuration.
#[derive(Debug)]
pub struct Settings {
    pub providers: Vec<ProviderSettings>,
    pub retry: RetryPolicy,
    /// How long attempts in flight may take after the stop.
    pub grace: Duration,
}

/// A provider, and how fast it may be asked.
#[derive(Debug)]
pub struct ProviderSettings {
    /// Where it is asked: at least one. Files and fine-tunes are at the first.
    pub sites: Vec<SiteSettings>,
    /// Its part of the configuration: bounds and limits.
    pub config: config::Provider,
}

/// One url and key of a provider.
#[derive(Clone, Debug)]
pub struct SiteSettings {
    pub provider: Provider,
    /// Its share of the requests, beside those of the others: at least 1.
    pub weight: u32,
}

impl ProviderSettings {
    /// A provider that is asked at one place.
    pub fn with_one_site(provider: Provider, config: config::Provider) -> Self {
        Self { sites: vec![SiteSettings { provider, weight: 1 }], config }
    }
}

/// How a dispatcher is told to end.
#[derive(Clone, Debug)]
struct Stop {
    /// Nothing more is sent.
    work: CancellationToken,
    /// What is in flight is abandoned.
    hurry: CancellationToken,
    /// Says how long what is in flight may take after `work`.
    live: Handle,
}

impl Stop {
    /// Returns when nothing is waited for any more.
    async fn cut(&self) {
        self.work.cancelled().await;
        tokio::select! { biased;
            () = self.hurry.cancelled() => {}
            () = tokio::time::sleep(self.live.settings().grace) => {}
        }
    }
}

/// All dispatchers.
#[derive(Debug)]
pub struct Fleet {
    live: Handle,
    store: Arc<dyn Store>,
    board: Board,
    clock: Clock,
    seed: Seed,
    metrics: Metrics,
    endings: Arc<Endings>,
    running: JoinSet<(QueueName, Result<()>)>,
    queues: BTreeSet<QueueName>,
    /// Queues whose provider is not configured, so that each is told of once.
    orphans: BTreeMap<QueueName, QueuePause>,
    /// Fine-tunes on their way to an end that were made due for it.
    hurried: BTreeSet<JobId>,
    memory: Memory,
    roll: Roll,
}

impl Fleet {
    pub fn new(settings: Settings, store: Arc<dyn Store>, board: Board, clock: Clock, seed: Seed) -> Self {
        Self {
            live: Handle::new(settings),
            store,
            board,
            clock,
            seed,
            metrics: Metrics::default(),
            endings: Arc::default(),
            running: JoinSet::new(),
            queues: BTreeSet::new(),
            orphans: BTreeMap::new(),
            hurried: BTreeSet::new(),
            memory: Memory::default(),
            roll: Roll::default(),
        }
    }

    pub fn handle(&self) -> Handle {
        self.live.clone()
    }

    /// Counts there what happens.
    #[must_use]
    pub fn with_metrics(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// Keeps what is learnt of the providers in the folder `state`, and goes on from what is known there.
    #[must_use]
    pub fn with_memory(self, state: &Path) -> Self {
        Self { memory: Memory::open(state, self.clock.now()), ..self }
    }

    /// With a roll whose calls the fleet and its dispatchers answer.
    #[must_use]
    pub fn with_roll(self, roll: Roll) -> Self {
        Self { roll, ..self }
    }

    /// Runs until `stop` and then until what is in flight has ended, also after an error.
    /// `hurry` then abandons it at once.
    pub async fn run(mut self, work: CancellationToken, hurry: CancellationToken) -> Result<()> {
        // A child, since a failure of ours must not look like an order to the other workers to end.
        let stop = Stop { work: work.child_token(), hurry, live: self.live.clone() };
        let mut news = self.store.changes();
        let mut resumed = self.board.resumed();
        let mut settings = self.live.changes();
        let mut result = Ok(());
        let member = self.roll.join("the fleet");
        let mut save_at = Instant::now() + SAVE_EVERY;
        while result.is_ok() && !stop.work.is_cancelled() {
            member.answer();
            news.mark_seen();
            let wake = match guarded("the fleet", self.look(&stop)).await {
                Ok(wake) => wake,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            };
            // Stopping first; a dispatcher that ended may be needed again, which the next round sees.
            tokio::select! { biased;
                () = stop.work.cancelled() => {}
                Some(ended) = self.running.join_next() => result = self.on_ended(ended),
                () = sleep_until(wake) => {}
                () = sleep_until(save_at) => {
                    self.save_memory().await;
                    save_at = Instant::now() + SAVE_EVERY;
                }
                () = news.changed() => {}
                () = resumed.changed() => {}
                () = settings.changed() => {}
                () = member.called() => {}
            }
        }
        // One queue's failure is the store's or a bug, and stops all.
        stop.work.cancel();
        // What is in flight may take its time.
        while let Some(ended) = member.excused(self.running.join_next(), || true).await {
            let ended = self.on_ended(ended);
            result = result.and(ended);
        }
        member.excused(self.save_memory(), || true).await;
        result
    }

    async fn save_memory(&self) {
        let (memory, now) = (self.memory.clone(), self.clock.now());
        // What it could not do it has said itself.
        drop(tokio::task::spawn_blocking(move || memory.save(now)).await);
    }

    /// Sees to it that what may be sent is sent, and that what may not is given up. Says when to look again.
    async fn look(&mut self, stop: &Stop) -> Result<Instant> {
        self.start_missing(stop).await?;
        let jobs = self.store.open_jobs().await?;
        self.hurry_ends(&jobs).await?;
        let now = Instant::now();
        Ok(self.endings.look(&jobs, self.live.settings().grace, now).unwrap_or(now + LOOK))
    }

    /// What runs at a provider is ended there at once, and not when its next poll is due, nor when a gate that was
    /// closed before lets one try: what never came to the provider has nothing to wait for.
    async fn hurry_ends(&mut self, jobs: &[JobState]) -> Result<()> {
        let ends = |state: &&JobState| matches!(state.status, JobStatus::Cancelling | JobStatus::Expiring);
        let ending = jobs.iter().filter(ends).filter(|state| state.may_send());
        let before = std::mem::take(&mut self.hurried);
        for state in ending {
            let id = state.job.id;
            if before.contains(&id) {
                self.hurried.insert(id);
            } else if state.leased == 0 {
                match self.store.retry_now(id).await {
                    Ok(()) => {}
                    // The next look tries again; at the latest it polls when its time has come.
                    Err(error) if error.is_full() => continue,
                    Err(error) => return Err(error.into()),
                }
                self.hurried.insert(id);
                let providers = state.job.queues.iter().map(QueueName::provider);
                for gates in providers.filter_map(|provider| self.live.gates(provider)) {
                    gates.sites.iter().for_each(|gate| gate.resume(Instant::now()));
                }
            }
        }
        Ok(())
    }

    /// Starts a dispatcher for every queue that has work and none.
    async fn start_missing(&mut self, stop: &Stop) -> Result<()> {
        for depth in self.store.queues().await? {
            if self.queues.contains(&depth.queue) {
                continue;
            }
            match self.dispatcher(&depth.queue, stop).await? {
                Some(dispatcher) => {
                    let (queue, stop) = (depth.queue.clone(), stop.clone());
                    self.queues.insert(depth.queue);
                    self.running.spawn(async move { (queue, dispatcher.run(stop).await) });
                }
                None => self.orphan(&depth.queue),
            }
        }
        Ok(())
    }

    async fn dispatcher(&self, queue: &QueueName, stop: &Stop) -> Result<Option<Dispatcher>> {
        let settings = self.live.settings();
        let (Some(settings), Some(gates)) =
            (settings.provider(queue.provider()), self.live.gates(queue.provider()))
        else {
            return Ok(None);
        };
        let Some(first) = settings.sites.first() else { return Ok(None) };
        let parts = Parts {
            store: Arc::clone(&self.store),
            provider: first.provider.clone(),
            clock: self.clock.clone(),
            meter: self.metrics.queue(queue),
            live: self.live.clone(),
            endings: Arc::clone(&self.endings),
            model: self.model(queue, settings).await?,
            watches: Watches::default(),
            budget: Budget::new(Instant::now()),
            stopping: stop.work.clone(),
        };
        let limits_name = tuned::limits_name(&*self.store, queue).await?;
        let extras = Extras {
            lanes: lanes(queue, settings, gates),
            provider_gate: Arc::clone(&gates.all),
            board: self.board.clone(),
            memory: self.memory.clone(),
            rng: self.seed.derive(&format!("dispatch/{queue}")),
            member: self.roll.join(format!("the dispatcher of {queue}")),
        };
        Ok(Some(Dispatcher::new(queue.clone(), Arc::new(parts), limits_name, extras)))
    }

    /// What an earlier process has seen answered is waited for, and no mistake.
    async fn model(&self, queue: &QueueName, settings: &ProviderSettings) -> Result<KnownModel> {
        let model = KnownModel::new(u32::try_from(settings.sites.len()).unwrap_or(u32::MAX));
        let has_answered =
            |state: &JobState| state.counts.completed > 0 && state.job.queues.as_slice() == [queue.clone()];
        let is_known = self.store.open_jobs().await?.iter().any(has_answered);
        Ok(if is_known { model.known() } else { model })
    }

    /// Its job was accepted under another configuration: it waits until the provider is back.
    fn orphan(&mut self, queue: &QueueName) {
        if !self.orphans.contains_key(queue) {
            let message = format!("provider `{}` is not in the config any more", queue.provider());
            tracing::error!(queue = %queue, error = message, "requests can't be sent");
            let pause = QueuePause { reason: PauseReason::Auth, message, since: self.clock.now() };
            self.orphans.insert(queue.clone(), pause);
        }
        // Each time, since a resume takes it off the board.
        if let Some(pause) = self.orphans.get(queue) {
            self.board.pause(queue, pause.clone());
        }
    }

    fn on_ended(
        &mut self,
        ended: std::result::Result<(QueueName, Result<()>), tokio::task::JoinError>,
    ) -> Result<()> {
        match ended {
            Ok((queue, result)) => {
                self.queues.remove(&queue);
                result
            }
            Err(error) => Err(Error::panicked("a dispatcher", error)),
        }
    }
}

/// One for each site; the limits that hold are taken over where the dispatcher begins to serve.
fn lanes(queue: &QueueName, settings: &ProviderSettings, gates: &Gates) -> Vec<Lane> {
    let (limits, now) = (config::Limits::default(), Instant::now());
    let sites = settings.sites.iter().zip(&gates.sites).enumerate();
    sites
        .map(|(index, (site, gate))| {
            let (provider, gate) = (site.provider.clone(), Arc::clone(gate));
            let label = (settings.sites.len() > 1).then(|| label(index, &provider));
            let model_gate = Gate::new(usize::MAX, gates.bell.clone());
            Lane::new(queue, Site { index, label, provider, gate, model_gate }, &limits, now)
        })
        .collect()
}

/// How a person is told of one of several sites: there may be several keys at one address.
fn label(index: usize, provider: &Provider) -> String {
    format!("endpoint {} ({})", index + 1, provider.authority())
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
