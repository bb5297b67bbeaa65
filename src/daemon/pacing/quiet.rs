//! The store of a run: that in memory, which rings when the embedded store's bell would.
//!
//! That in memory rings for each request, and whoever hears it looks through all of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::bell::{Bell, Listener};
use crate::domain::{
    Job, JobId, JobState, JobStatus, LineEntry, QueueName, RequestId, Settlement, Timestamp,
};
use crate::store::memory::MemoryStore;
use crate::store::{Hold, Input, Journal, Lease, Leased, Line, QueueDepth, Result, Store};

/// See the module's words.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    memory: MemoryStore,
    news: Bell,
    counts: Mutex<BTreeMap<JobId, Count>>,
}

/// What that in memory would count anew each time.
#[derive(Debug, Default)]
struct Count {
    open: u32,
    leased: u32,
}

impl Quiet {
    /// What rings always.
    fn rung<'a, T: Send + 'a>(&'a self, verb: BoxFuture<'a, Result<T>>) -> BoxFuture<'a, Result<T>> {
        async move {
            let done = verb.await;
            self.news.ring();
            done
        }
        .boxed()
    }
}

impl Store for Quiet {
    fn put_job(&self, job: Job, input: Input) -> BoxFuture<'_, Result<()>> {
        let count = Count { open: job.total, leased: 0 };
        self.counts.lock().unwrap().insert(job.id, count);
        self.rung(self.memory.put_job(job, input))
    }

    fn jobs(&self) -> BoxFuture<'_, Result<Vec<JobState>>> {
        self.memory.jobs()
    }

    fn job(&self, id: JobId) -> BoxFuture<'_, Result<JobState>> {
        self.memory.job(id)
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<QueueDepth>>> {
        self.memory.queues()
    }

    fn lease<'a>(
        &'a self,
        queue: &'a QueueName,
        max: usize,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Leased>> {
        async move {
            let leased = self.memory.lease(queue, max, now).await?;
            let mut counts = self.counts.lock().unwrap();
            for lease in &leased.leases {
                counts.entry(lease.request.job).or_default().leased += 1;
            }
            drop(counts);
            Ok(leased)
        }
        .boxed()
    }

    fn line(&self, request: RequestId) -> BoxFuture<'_, Result<Line>> {
        self.memory.line(request)
    }

    fn begin(&self, lease: &Lease) -> Result<()> {
        self.memory.begin(lease)
    }

    fn settle(&self, lease: Lease, settlement: Settlement) -> BoxFuture<'_, Result<()>> {
        async move {
            let id = lease.request.job;
            let is_record = matches!(settlement, Settlement::Complete(_) | Settlement::Discard(_));
            self.memory.settle(lease, settlement).await?;
            let mut counts = self.counts.lock().unwrap();
            let count = counts.entry(id).or_default();
            count.leased -= 1;
            count.open -= u32::from(is_record);
            let is_news = if is_record { count.open == 0 } else { count.leased == 0 };
            drop(counts);
            if is_news {
                self.news.ring();
            }
            Ok(())
        }
        .boxed()
    }

    fn write_memo(&self, request: RequestId, memo: Bytes) -> BoxFuture<'_, Result<()>> {
        self.memory.write_memo(request, memo)
    }

    fn memo(&self, request: RequestId) -> BoxFuture<'_, Result<Option<Bytes>>> {
        self.memory.memo(request)
    }

    fn set_status(&self, job: JobId, status: JobStatus, now: Timestamp) -> BoxFuture<'_, Result<JobState>> {
        self.rung(self.memory.set_status(job, status, now))
    }

    fn remove(&self, job: JobId) -> BoxFuture<'_, Result<bool>> {
        self.rung(self.memory.remove(job))
    }

    fn hold(&self) -> Hold {
        self.memory.hold()
    }

    fn retry_now(&self, job: JobId) -> BoxFuture<'_, Result<()>> {
        self.rung(self.memory.retry_now(job))
    }

    fn journal(&self, job: JobId) -> Result<Box<dyn Journal>> {
        self.memory.journal(job)
    }

    fn entry(&self, request: RequestId) -> Result<LineEntry> {
        self.memory.entry(request)
    }

    fn folder(&self, job: JobId) -> Option<PathBuf> {
        self.memory.folder(job)
    }

    fn changes(&self) -> Listener {
        self.news.listen()
    }

    fn progress(&self) -> Listener {
        self.memory.progress()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.memory.close()
    }
}
