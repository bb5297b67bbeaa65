//! One dispatcher: the task that owns a queue's limits and sends its requests.
//!
//! # Operation
//!
//! It keeps a few leased requests ready, sends the next one as soon as limits and gates let it, and sleeps
//! until something changes: an attempt ends, the store has news, a limit or a retry falls due. Waiting
//! requests are in the store, never in a timer here, so nothing is lost at a restart.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::control::Board;
use crate::dispatch::attempt::{self, Ended, Parts, Prepared};
use crate::dispatch::estimate::{self, Estimate};
use crate::dispatch::gate::{Inside, Refused};
use crate::dispatch::limits::Limits;
use crate::domain::{JobId, JobState, QueueName, Record, RecordError, RetryPolicy, Settlement, Timestamp};
use crate::spec;
use crate::store::{self, Lease};

/// Leases kept ready beyond the free slots, so that a slot never waits for the store. As many as there are
/// slots, at most this many.
const READY_MAX: usize = 256;

/// A dispatcher without work ends after this long. Until then it remembers that its model has answered.
const LINGER: Duration = Duration::from_mins(10);

/// How a dispatcher is told to end.
#[derive(Clone, Debug)]
pub(super) struct Stop {
    /// Nothing more is sent.
    pub(super) work: CancellationToken,
    /// What is in flight is abandoned.
    pub(super) hurry: CancellationToken,
    /// So long may what is in flight take after `work`.
    pub(super) grace: Duration,
}

/// See the module's words.
#[derive(Debug)]
pub(super) struct Dispatcher {
    pub(super) queue: QueueName,
    pub(super) parts: Arc<Parts>,
    pub(super) limits: Limits,
    pub(super) retry: RetryPolicy,
    pub(super) board: Board,
    pub(super) rng: Rng,
    /// Leased, not yet sent.
    ready: VecDeque<Lease>,
    /// The next to be sent, read and estimated.
    next: Option<Next>,
    running: JoinSet<store::Result<Ended>>,
    /// What is known of the jobs in `ready`.
    jobs: BTreeMap<JobId, JobState>,
    /// When the store's first waiting request falls due.
    next_due: Option<Timestamp>,
    /// The store had nothing more the last time it was asked.
    dry: bool,
}

#[derive(Debug)]
struct Next {
    lease: Lease,
    request: crate::domain::Request,
    policy: RetryPolicy,
    estimate: Estimate,
}

/// What the loop waits for besides attempts and news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blocked {
    /// Only for an attempt to end or news.
    No,
    /// Until a time.
    Until(Instant),
}

impl Dispatcher {
    pub(super) fn new(
        queue: QueueName,
        parts: Arc<Parts>,
        limits: &config::Limits,
        retry: RetryPolicy,
        (board, rng): (Board, Rng),
    ) -> Self {
        Self {
            queue,
            parts,
            limits: Limits::new(limits, Instant::now()),
            retry,
            board,
            rng,
            ready: VecDeque::new(),
            next: None,
            running: JoinSet::new(),
            jobs: BTreeMap::new(),
            next_due: None,
            dry: false,
        }
    }

    /// Sends the queue's requests until `stop`, or until there has been nothing to do for a while. What is
    /// in flight at `stop` may take until `grace` has passed.
    pub(super) async fn run(mut self, stop: Stop) -> store::Result<()> {
        let ended = self.serve(&stop.work).await;
        self.board.clear(&self.queue);
        self.give_back().await?;
        self.drain(&stop).await?;
        ended
    }

    async fn serve(&mut self, stop: &CancellationToken) -> store::Result<()> {
        let mut news = self.parts.store.changes();
        let mut resumed = self.board.resumed();
        let mut provider_gate = self.parts.provider_gate.changed();
        let mut model_gate = self.parts.model_gate.changed();
        let mut idle_since = Instant::now();
        loop {
            for seen in [&mut news, &mut provider_gate, &mut model_gate] {
                seen.mark_unchanged();
            }
            let blocked = self.advance().await?;
            self.show_pause();
            if !(self.running.is_empty() && self.ready.is_empty() && self.next.is_none() && self.dry) {
                idle_since = Instant::now();
            } else if idle_since.elapsed() >= LINGER {
                return Ok(());
            }
            let wake = self.wake_at(blocked, idle_since);
            // Stopping comes first; then what frees slots; news and timers can wait for it.
            tokio::select! { biased;
                () = stop.cancelled() => return Ok(()),
                Some(ended) = self.running.join_next() => self.on_ended(ended)?,
                ticked = news.changed() => self.on_news(ticked).await?,
                _ = resumed.changed() => self.on_resume(),
                _ = provider_gate.changed() => {}
                _ = model_gate.changed() => {}
                () = sleep_until(wake) => self.dry = false,
            }
            while let Some(ended) = self.running.try_join_next() {
                self.on_ended(ended)?;
            }
        }
    }

    /// Sends what may be sent now.
    async fn advance(&mut self) -> store::Result<Blocked> {
        loop {
            if self.running.len() >= self.limits.allowed() {
                return Ok(Blocked::No);
            }
            self.fill().await?;
            if self.next.is_none() {
                self.next = self.prepare().await?;
            }
            let Some(next) = &self.next else { return Ok(Blocked::No) };
            let now = Instant::now();
            let ready_at = self.limits.ready_at(next.estimate.total(), now);
            if ready_at > now {
                return Ok(Blocked::Until(ready_at));
            }
            match self.enter(now) {
                Ok(inside) => self.send(inside, now),
                Err(Refused::Full | Refused::Closed(None)) => return Ok(Blocked::No),
                Err(Refused::Closed(Some(until))) => return Ok(Blocked::Until(until)),
            }
        }
    }

    /// Leases more if few are ready.
    async fn fill(&mut self) -> store::Result<()> {
        let free = self.limits.allowed().saturating_sub(self.running.len());
        let spare = if self.limits.is_paced() { 1 } else { self.limits.allowed().min(READY_MAX) };
        let have = self.ready.len() + usize::from(self.next.is_some());
        if self.dry || have * 2 > spare || self.is_closed() {
            return Ok(());
        }
        let want = (free + spare).min(READY_MAX) - have.min(READY_MAX);
        let now = self.parts.clock.now();
        let leased = self.parts.store.lease(&self.queue, want.max(1), now).await?;
        self.dry = leased.leases.len() < want.max(1);
        self.next_due = leased.next_due;
        for lease in &leased.leases {
            let id = lease.request.job;
            if !self.jobs.contains_key(&id) {
                self.jobs.insert(id, self.parts.store.job(id).await?);
            }
        }
        self.ready.extend(leased.leases);
        Ok(())
    }

    /// Reads the next ready request. One whose line can't be read any more fails alone.
    async fn prepare(&mut self) -> store::Result<Option<Next>> {
        while let Some(lease) = self.ready.pop_front() {
            let line = self.parts.store.line(lease.request).await?;
            let Some(state) = self.jobs.get(&lease.request.job) else { continue };
            match spec::parse_line(&state.job, &line.bytes, line.number) {
                Ok(request) => {
                    let estimate = estimate::of(&request);
                    let policy = state.job.settings.retry.over(self.retry);
                    return Ok(Some(Next { lease, request, policy, estimate }));
                }
                Err(diagnostic) => {
                    tracing::error!(request = %lease.request, error = %diagnostic, "an accepted line can't be read any more");
                    let error =
                        RecordError { code: "invalid_input".to_owned(), message: diagnostic.to_string() };
                    let custom_id = format!("line-{}", line.number);
                    let record =
                        Record { request: lease.request, custom_id, response: None, error: Some(error) };
                    self.parts.store.settle(lease, Settlement::Discard(record)).await?;
                }
            }
        }
        Ok(None)
    }

    fn enter(&self, now: Instant) -> Result<[Inside; 2], Refused> {
        let model = self.parts.model_gate.enter(now)?;
        let provider = self.parts.provider_gate.enter(now)?;
        Ok([provider, model])
    }

    fn is_closed(&self) -> bool {
        self.parts.provider_gate.pause().is_some() && !self.ready.is_empty()
    }

    fn send(&mut self, inside: [Inside; 2], now: Instant) {
        let Some(Next { lease, request, policy, estimate }) = self.next.take() else { return };
        self.limits.spend(estimate.total(), now);
        let prepared = Prepared { lease, request, policy, estimate, dice: self.rng.f64(), inside };
        self.running.spawn(attempt::run(Arc::clone(&self.parts), prepared));
    }

    fn on_ended(&mut self, ended: Result<store::Result<Ended>, tokio::task::JoinError>) -> store::Result<()> {
        let ended =
            ended.map_err(|error| store::Error::Closed(format!("an attempt's task failed: {error}")))??;
        self.limits.on_ended(&ended, Instant::now());
        // Whatever was not served is in the store again, waiting or open.
        if ended.kind != attempt::EndedKind::Served {
            self.dry = false;
        }
        Ok(())
    }

    /// Jobs may have come, gone or changed: what must not be sent any more goes back.
    async fn on_news(&mut self, ticked: Result<(), watch::error::RecvError>) -> store::Result<()> {
        if ticked.is_err() {
            return Err(store::Error::Closed("the store has gone".to_owned()));
        }
        self.dry = false;
        let mut jobs = BTreeMap::new();
        for id in std::mem::take(&mut self.jobs).into_keys() {
            if self
                .next
                .iter()
                .map(|next| &next.lease)
                .chain(&self.ready)
                .any(|lease| lease.request.job == id)
            {
                jobs.insert(id, self.parts.store.job(id).await?);
            }
        }
        self.jobs = jobs;
        let may_send = |id| self.jobs.get(&id).is_some_and(|state| state.status.may_send());
        let (keep, back): (Vec<Lease>, Vec<Lease>) =
            std::mem::take(&mut self.ready).into_iter().partition(|lease| may_send(lease.request.job));
        let next = self.next.take_if(|next| !may_send(next.lease.request.job));
        self.ready = keep.into();
        for lease in back.into_iter().chain(next.map(|next| next.lease)) {
            self.parts.store.settle(lease, Settlement::Release).await?;
        }
        Ok(())
    }

    fn on_resume(&mut self) {
        self.dry = false;
        let now = Instant::now();
        self.parts.provider_gate.resume(now);
        self.parts.model_gate.resume(now);
    }

    /// Shows on the board whether the queue is paused.
    fn show_pause(&self) {
        match self.parts.provider_gate.pause().or_else(|| self.parts.model_gate.pause()) {
            Some(pause) => self.board.pause(&self.queue, pause),
            None => self.board.clear(&self.queue),
        }
    }

    fn wake_at(&self, blocked: Blocked, idle_since: Instant) -> Instant {
        let now = Instant::now();
        // With no free slot, or others ready, what falls due has to wait for them anyway.
        let free = self.running.len() < self.limits.allowed();
        let due = self.next_due.filter(|_| free && self.ready.is_empty() && self.next.is_none());
        let due = due.map(|due| now + self.parts.clock.until(due));
        let limit = match blocked {
            Blocked::No => None,
            Blocked::Until(until) => Some(until),
        };
        [due, limit].into_iter().flatten().min().unwrap_or(now + LINGER).min((idle_since + LINGER).max(now))
    }

    /// Gives back what was leased and not sent.
    async fn give_back(&mut self) -> store::Result<()> {
        let next = self.next.take().map(|next| next.lease);
        for lease in std::mem::take(&mut self.ready).into_iter().chain(next) {
            self.parts.store.settle(lease, Settlement::Release).await?;
        }
        Ok(())
    }

    /// Lets attempts finish within the grace, then abandons them: they were sent, so they are uncertain.
    async fn drain(&mut self, stop: &Stop) -> store::Result<()> {
        let deadline = Instant::now() + stop.grace;
        let mut failed = None;
        loop {
            // What has ended is counted before anything is abandoned.
            tokio::select! { biased;
                ended = self.running.join_next() => {
                    let Some(ended) = ended else { break };
                    let error = self.on_ended(ended).err();
                    failed = failed.or(error);
                }
                () = stop.hurry.cancelled() => break,
                () = sleep_until(deadline) => break,
            }
        }
        if !self.running.is_empty() {
            let abandoned = self.running.len();
            tracing::warn!(queue = %self.queue, abandoned, "requests in flight are abandoned");
            self.running.shutdown().await;
        }
        failed.map_or(Ok(()), Err)
    }
}
