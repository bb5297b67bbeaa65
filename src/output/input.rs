//! The requests of a job, read again where its results need them: the name of one that was never
//! answered, the endpoint and provider of one whose answer may hold images.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::Error;
use super::journal::Reader;
use crate::domain::tuning::Progress;
use crate::domain::{Endpoint, FineTune, Job, Kind, QueueName, Request, RequestId};
use crate::pulse::{Member, Roll};
use crate::spec;
use crate::store::Store;

/// Reads a job's input from blocking code.
#[derive(Clone, Debug)]
pub(super) struct Input {
    job: Job,
    store: Arc<dyn Store>,
    /// The store's verbs are asynchronous; on a blocking thread they are waited for.
    runtime: Handle,
    stop: CancellationToken,
    roll: Roll,
}

impl Input {
    /// Must be called within the runtime. The methods must be called outside it, on a blocking thread.
    /// A `stop` ends reading with [`Error::Interrupted`].
    pub(super) fn new(job: Job, store: Arc<dyn Store>, stop: CancellationToken) -> Self {
        Self { job, store, runtime: Handle::current(), stop, roll: Roll::default() }
    }

    /// With a roll that work on this job's results is to join.
    pub(super) fn with_roll(self, roll: Roll) -> Self {
        Self { roll, ..self }
    }

    /// Puts a thread that works on this job's results on the roll.
    pub(super) fn at_work(&self) -> Member {
        self.roll.join_at_work(format!("the results of {}", self.job.name))
    }

    pub(super) const fn job(&self) -> &Job {
        &self.job
    }

    pub(super) fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }

    /// The job's records. With each of them that is read, `member` answers the roll call.
    pub(super) fn journal(&self, member: &Arc<Member>) -> Result<Reader, Error> {
        Ok(Reader::open(self.store(), self.job.id, self.stop.clone())?.with_member(Arc::clone(member)))
    }

    /// The user's name for a request. A line that can't be read any more is named by its number.
    pub(super) fn custom_id(&self, index: u32) -> Result<String, Error> {
        let (request, number) = self.request(index)?;
        Ok(request.map_or_else(|| format!("line-{number}"), |request| request.custom_id))
    }

    /// Whether answers of this job may hold images at all.
    pub(super) const fn may_ask_for_images(job: &Job) -> bool {
        matches!(job.kind, Kind::Images | Kind::Requests)
    }

    /// Whether a request asked for images.
    pub(super) fn asks_for_images(&self, index: u32) -> Result<bool, Error> {
        match self.job.kind {
            Kind::Images => Ok(true),
            Kind::Requests => {
                Ok(self.request(index)?.0.is_some_and(|request| request.endpoint == Endpoint::Images))
            }
            Kind::Completions
            | Kind::Chat
            | Kind::Embeddings
            | Kind::Responses
            | Kind::Moderations
            | Kind::FineTune => Ok(false),
        }
    }

    /// The name of the provider that a request goes to.
    pub(super) fn provider(&self, index: u32) -> Result<Option<&str>, Error> {
        let entry = self.store.entry(self.id(index)).map_err(Error::Store)?;
        Ok(self.job.queues.get(usize::from(entry.queue)).map(QueueName::provider))
    }

    /// What the one request of a fine-tune asks for; none if it can't be read any more.
    pub(super) fn plan(&self) -> Result<Option<FineTune>, Error> {
        let line = self.runtime.block_on(self.store.line(self.id(0))).map_err(Error::Store)?;
        Ok(serde_json::from_slice(&line.bytes).ok())
    }

    /// How far that came at the provider; none if nothing is known.
    pub(super) fn progress(&self, plan: &FineTune) -> Result<Option<Progress>, Error> {
        let memo = self.runtime.block_on(self.store.memo(self.id(0))).map_err(Error::Store)?;
        Ok(memo.and_then(|memo| Progress::read(&memo, plan)))
    }

    fn request(&self, index: u32) -> Result<(Option<Request>, u32), Error> {
        if self.stop.is_cancelled() {
            return Err(Error::Interrupted);
        }
        let line = self.runtime.block_on(self.store.line(self.id(index))).map_err(Error::Store)?;
        Ok((spec::parse_line(&self.job, &line.bytes, line.number).ok(), line.number))
    }

    const fn id(&self, index: u32) -> RequestId {
        RequestId { job: self.job.id, index }
    }
}
