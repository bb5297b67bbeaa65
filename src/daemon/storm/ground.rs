//! What outlives the process: the store in memory, which is the model of the verbs, and what a restart makes of it.
//!
//! # Operation
//!
//! Each life of the process has a [`Life`] of its own over one [`Ground`]. It answers late, as a store with
//! threads and a disk does, so that other tasks come in between; once it is dead it answers nobody. A restart
//! does what the recovery of the embedded store does: leases are void, what was begun and has no end is uncertain,
//! and the job's `on_uncertain` says what becomes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::sleep;

use crate::bell::{Bell, Listener};
use crate::clock::Clock;
use crate::domain::{
    Job, JobId, JobState, JobStatus, LineEntry, OnUncertain, QueueName, Record, RecordError, RequestId,
    Settlement, Timestamp,
};
use crate::store::memory::MemoryStore;
use crate::store::{Error, Hold, Input, Journal, Lease, Leased, Line, QueueDepth, Result, Store};

/// No life of a storm asks a fifth as often.
const VERBS_MAX: u64 = 100_000;

/// See the module's words.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) memory: MemoryStore,
    clock: Clock,
    /// Rings when the embedded store's would: not for each request, as that of the memory does.
    news: Bell,
    held: Mutex<BTreeMap<RequestId, Held>>,
    /// Requests of which a restart lost an attempt.
    lost: Mutex<BTreeSet<RequestId>>,
}

/// A lease, and what the job's intents would say of its attempt.
#[derive(Debug)]
struct Held {
    attempt: u32,
    epoch: u64,
    begun: bool,
    /// Written down, but not carried out yet.
    ended: Option<Settlement>,
}

impl Ground {
    pub(super) fn new(clock: Clock) -> Self {
        let (memory, news) = (MemoryStore::default(), Bell::default());
        Self { memory, clock, news, held: Mutex::default(), lost: Mutex::default() }
    }

    async fn settle(&self, lease: Lease, settlement: Settlement) -> Result<()> {
        let (id, is_record) = (lease.request.job, is_record(&settlement));
        self.memory.settle(lease, settlement).await?;
        let state = self.memory.job(id).await?;
        let is_still = state.leased == 0;
        let is_news =
            if is_record { state.counts.open() == 0 || (is_still && !state.may_send()) } else { is_still };
        if is_news {
            self.news.ring();
        }
        Ok(())
    }

    /// What rings always.
    async fn rung<T>(&self, verb: BoxFuture<'_, Result<T>>) -> Result<T> {
        let done = verb.await;
        self.news.ring();
        done
    }

    /// Voids every lease and decides about what was in flight. Says which requests that was.
    pub(super) async fn restart(&self) -> Vec<RequestId> {
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        let mut uncertain = Vec::new();
        for (request, held) in held {
            let JobState { job, status, .. } = self.memory.job(request.job).await.unwrap();
            if status.is_final() {
                continue;
            }
            let goes_on =
                job.may_send(&status) || matches!(status, JobStatus::Paused { .. } | JobStatus::Held { .. });
            let settlement = match held.ended {
                Some(ended) => ended,
                None if !held.begun || !goes_on => Settlement::Release,
                None => {
                    uncertain.push(request);
                    self.decide(&job, &status, request, held.attempt).await
                }
            };
            let lease = Lease { request, attempt: held.attempt, epoch: held.epoch };
            self.memory.settle(lease, settlement).await.unwrap();
        }
        uncertain
    }

    async fn decide(&self, job: &Job, status: &JobStatus, request: RequestId, attempt: u32) -> Settlement {
        let policy = job.settings.on_uncertain.unwrap_or_default();
        if policy == OnUncertain::Hold && !matches!(status, JobStatus::Held { .. }) {
            let held = JobStatus::Held { why: "the process died".to_owned() };
            self.memory.set_status(job.id, held, self.clock.now()).await.unwrap();
        }
        let is_first = self.lost.lock().unwrap().insert(request);
        let fails = match policy {
            OnUncertain::Retry => !is_first,
            OnUncertain::Hold => false,
            OnUncertain::Fail => true,
        };
        if !fails {
            return Settlement::Retry { due: Timestamp::default(), attempts: attempt, maybe_paid: true };
        }
        let error = RecordError { code: "uncertain".to_owned(), message: String::new() };
        let custom_id = super::plan::custom_id(request);
        Settlement::Discard(Record { request, custom_id, response: None, error: Some(error) })
    }
}

const fn is_record(settlement: &Settlement) -> bool {
    matches!(settlement, Settlement::Complete(_) | Settlement::Discard(_))
}

/// Whether the process lives. Its store and its connections share one.
#[derive(Debug, Default)]
pub(super) struct Pulse(AtomicBool);

impl Pulse {
    pub(super) fn stop(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_dead(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// The dead do nothing more.
    pub(super) async fn check(&self) {
        if self.is_dead() {
            pending::<()>().await;
        }
    }
}

/// The store as one life of the process sees it.
#[derive(Debug)]
pub(super) struct Life {
    ground: Arc<Ground>,
    pulse: Arc<Pulse>,
    dice: Mutex<Rng>,
    verbs: AtomicU64,
    /// A verb takes up to so many milliseconds, twice.
    delay_max_ms: u64,
}

impl Life {
    pub(super) fn new(ground: Arc<Ground>, pulse: Arc<Pulse>, dice: Rng, delay_max_ms: u64) -> Self {
        Self { ground, pulse, dice: Mutex::new(dice), verbs: AtomicU64::new(0), delay_max_ms }
    }

    /// As a person's commands see it, who is outside: at once.
    pub(super) fn outside(ground: Arc<Ground>, dice: Rng) -> Self {
        Self::new(ground, Arc::default(), dice, 0)
    }

    async fn dawdle(&self) {
        if self.verbs.fetch_add(1, Ordering::Relaxed) > VERBS_MAX {
            // Whoever asks without end gets no answer, so that time goes on and the run ends.
            pending::<()>().await;
        }
        let millis = self.dice.lock().unwrap().u64(0..=self.delay_max_ms);
        if millis > 0 {
            sleep(Duration::from_millis(millis)).await;
        }
        self.pulse.check().await;
    }

    /// Carries out a verb, late, and answers later.
    fn late<'a, T: Send + 'a>(
        &'a self,
        verb: impl FnOnce(&'a Ground) -> BoxFuture<'a, Result<T>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T>> {
        async move {
            self.dawdle().await;
            let done = verb(&self.ground).await;
            self.dawdle().await;
            done
        }
        .boxed()
    }

    async fn settle_lease(&self, lease: Lease, settlement: Settlement) -> Result<()> {
        self.pulse.check().await;
        let (request, epoch) = (lease.request, lease.epoch);
        let is_record = is_record(&settlement);
        {
            let mut held = self.ground.held.lock().unwrap();
            match held.get_mut(&request) {
                Some(held) if held.epoch == epoch && held.ended.is_none() => {
                    held.ended = (!is_record).then(|| settlement.clone());
                }
                Some(_) | None => return Err(Error::Stale(request)),
            }
            if is_record {
                held.remove(&request);
            }
        }
        if is_record {
            // It is in the journal at once; the answer may be late.
            let settled = self.ground.settle(lease, settlement).await;
            self.dawdle().await;
            return settled;
        }
        self.dawdle().await;
        self.ground.held.lock().unwrap().remove(&request);
        let settled = self.ground.settle(lease, settlement).await;
        self.dawdle().await;
        settled
    }
}

impl Store for Life {
    fn put_job(&self, job: Job, input: Input) -> BoxFuture<'_, Result<()>> {
        self.late(|ground| ground.rung(ground.memory.put_job(job, input)).boxed())
    }

    fn jobs(&self) -> BoxFuture<'_, Result<Vec<JobState>>> {
        self.late(|ground| ground.memory.jobs())
    }

    fn job(&self, id: JobId) -> BoxFuture<'_, Result<JobState>> {
        self.late(move |ground| ground.memory.job(id))
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<QueueDepth>>> {
        self.late(|ground| ground.memory.queues())
    }

    fn lease<'a>(
        &'a self,
        queue: &'a QueueName,
        max: usize,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Leased>> {
        self.late(move |ground| {
            async move {
                let leased = ground.memory.lease(queue, max, now).await?;
                let mut held = ground.held.lock().unwrap();
                for Lease { request, attempt, epoch } in &leased.leases {
                    let (attempt, epoch) = (*attempt, *epoch);
                    held.insert(*request, Held { attempt, epoch, begun: false, ended: None });
                }
                drop(held);
                Ok(leased)
            }
            .boxed()
        })
    }

    fn line(&self, request: RequestId) -> BoxFuture<'_, Result<Line>> {
        self.late(move |ground| ground.memory.line(request))
    }

    fn begin(&self, lease: &Lease) -> Result<()> {
        if self.pulse.is_dead() {
            return Err(Error::Closed("the process is dead".to_owned()));
        }
        match self.ground.held.lock().unwrap().get_mut(&lease.request) {
            Some(held) if held.epoch == lease.epoch => held.begun = true,
            Some(_) | None => return Err(Error::Stale(lease.request)),
        }
        self.ground.memory.begin(lease)
    }

    fn settle(&self, lease: Lease, settlement: Settlement) -> BoxFuture<'_, Result<()>> {
        self.settle_lease(lease, settlement).boxed()
    }

    fn write_memo(&self, request: RequestId, memo: Bytes) -> BoxFuture<'_, Result<()>> {
        self.late(move |ground| ground.memory.write_memo(request, memo))
    }

    fn memo(&self, request: RequestId) -> BoxFuture<'_, Result<Option<Bytes>>> {
        self.late(move |ground| ground.memory.memo(request))
    }

    fn set_status(&self, job: JobId, status: JobStatus, now: Timestamp) -> BoxFuture<'_, Result<JobState>> {
        self.late(move |ground| ground.rung(ground.memory.set_status(job, status, now)).boxed())
    }

    fn remove(&self, job: JobId) -> BoxFuture<'_, Result<bool>> {
        self.late(move |ground| ground.memory.remove(job))
    }

    fn hold(&self) -> Hold {
        self.ground.memory.hold()
    }

    fn retry_now(&self, job: JobId) -> BoxFuture<'_, Result<()>> {
        self.late(move |ground| ground.rung(ground.memory.retry_now(job)).boxed())
    }

    fn journal(&self, job: JobId) -> Result<Box<dyn Journal>> {
        self.ground.memory.journal(job)
    }

    fn entry(&self, request: RequestId) -> Result<LineEntry> {
        self.ground.memory.entry(request)
    }

    fn folder(&self, _: JobId) -> Option<PathBuf> {
        None
    }

    fn changes(&self) -> Listener {
        self.ground.news.listen()
    }

    fn progress(&self) -> Listener {
        self.ground.memory.progress()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.late(|_| async { Ok(()) }.boxed())
    }
}
