//! From a lease to work that can be sent: its line is read, and models that fine-tunes made get their names.

use crate::dispatch::estimate::Estimate;
use crate::dispatch::failure::Result;
use crate::dispatch::flex;
use crate::dispatch::queue::Dispatcher;
use crate::dispatch::tuned::{self, Tuned};
use crate::domain::{
    FineTune, Job, JobId, JobStatus, Kind, PauseReason, Record, RecordError, Request, RetryPolicy,
    Settlement, Timestamp,
};
use crate::spec;
use crate::store::{self, Lease, Line};

/// A job that can't be put back to wait, because the disk is full, is looked at again after this long.
const RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// The next to be sent.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) lease: Lease,
    pub(super) work: Work,
    pub(super) policy: RetryPolicy,
    pub(super) estimate: Estimate,
    /// See [`flex::falls_back_at`].
    pub(super) falls_back_at: Option<Timestamp>,
}

#[derive(Debug)]
pub(super) enum Work {
    Request(Request),
    FineTune(Box<FineTune>),
}

impl Work {
    /// As the job's lines have it; empty if there is none.
    fn model(&self) -> &str {
        match self {
            Self::Request(request) => request.model.as_deref().unwrap_or_default(),
            Self::FineTune(plan) => plan.model(),
        }
    }

    fn with_model(self, model: String) -> Self {
        match self {
            Self::Request(mut request) => {
                request.body = tuned::with_model(&request.body, &model);
                request.model = Some(model);
                Self::Request(request)
            }
            Self::FineTune(mut plan) => {
                plan.body.insert("model".to_owned(), model.into());
                Self::FineTune(plan)
            }
        }
    }

    fn into_custom_id(self) -> String {
        match self {
            Self::Request(request) => request.custom_id,
            Self::FineTune(plan) => plan.custom_id,
        }
    }
}

/// What a line says.
enum Said {
    Work(Work),
    /// A fine-tune whose model it asks has not ended.
    Early,
    Unsendable {
        custom_id: String,
        error: RecordError,
    },
}

impl Dispatcher {
    /// Reads the next ready request. One that can't be sent fails alone.
    pub(super) async fn prepare(&mut self) -> Result<Option<Next>> {
        while let Some(lease) = self.ready.pop_front() {
            let line = self.parts.store.line(lease.request).await?;
            let state = self.job(lease.request.job).await?;
            let job = &state.job;
            match self.said(job, &state.status, &line).await? {
                Said::Work(work) => {
                    let estimate = match &work {
                        Work::Request(request) => self.estimator.estimate(request),
                        Work::FineTune(_) => Estimate::default(),
                    };
                    let falls_back_at = match &work {
                        Work::Request(request) => flex::falls_back_at(job, request, self.flex_fallback),
                        Work::FineTune(_) => None,
                    };
                    let policy = job.settings.retry.over(self.retry);
                    return Ok(Some(Next { lease, work, policy, estimate, falls_back_at }));
                }
                Said::Early => self.put_back(lease).await?,
                Said::Unsendable { custom_id, error } => {
                    let error = Some(error);
                    let record = Record { request: lease.request, custom_id, response: None, error };
                    self.parts.settle(lease, Settlement::Discard(record)).await?;
                }
            }
        }
        Ok(None)
    }

    async fn said(&mut self, job: &Job, status: &JobStatus, line: &Line) -> Result<Said> {
        let read = match job.kind {
            Kind::FineTune => spec::parse_fine_tune(job, &line.bytes, line.number)
                .map(|plan| Work::FineTune(Box::new(plan))),
            Kind::Completions
            | Kind::Chat
            | Kind::Images
            | Kind::Embeddings
            | Kind::Responses
            | Kind::Moderations
            | Kind::Requests => spec::parse_line(job, &line.bytes, line.number).map(Work::Request),
        };
        let work = match read {
            Ok(work) => work,
            Err(diagnostic) => {
                tracing::error!(job = %job.id, error = %diagnostic, "an accepted line can't be read any more");
                let error = RecordError { code: "invalid_input".to_owned(), message: diagnostic.to_string() };
                return Ok(Said::Unsendable { custom_id: format!("line-{}", line.number), error });
            }
        };
        let tuned = self.tuned.find(&*self.parts.store, job, work.model()).await?;
        Ok(match tuned {
            None => Said::Work(work),
            // Also where it is to end: by its model a job may be known whose id was lost.
            Some(Tuned::Model(model)) => Said::Work(work.with_model(model)),
            // A fine-tune that is to end creates nothing, and needs no model.
            Some(_) if *status != JobStatus::InProgress => Said::Work(work),
            Some(Tuned::Open) => Said::Early,
            Some(Tuned::Failed(message)) => {
                let error = RecordError { code: "fine_tune_failed".to_owned(), message };
                Said::Unsendable { custom_id: work.into_custom_id(), error }
            }
        })
    }

    /// Somebody has set a job going whose model is still being made: it waits again.
    async fn put_back(&mut self, lease: Lease) -> Result<()> {
        let id: JobId = lease.request.job;
        let waiting = JobStatus::Paused { reason: PauseReason::FineTune };
        let now = self.parts.clock.now();
        self.is_early = true;
        let settlement = match self.parts.store.set_status(id, waiting, now).await {
            // It may have come to its end meanwhile.
            Ok(_) | Err(store::Error::Transition { .. }) => Settlement::Release,
            Err(error) if error.is_full() => {
                Settlement::Snooze { due: now + RETRY, attempts: lease.attempt.saturating_sub(1) }
            }
            Err(error) => return Err(error.into()),
        };
        self.parts.settle(lease, settlement).await?;
        Ok(())
    }
}
