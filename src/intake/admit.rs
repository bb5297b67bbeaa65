//! From a valid spec to a job: what its models stand for is found, it gets its name, and the store takes it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::blocking::blocking;
use super::claim::Claim;
use super::known::Known;
use super::models::{self, Found, Makers};
use super::worker::Intake;
use super::{Error, failed};
use crate::diag::{Report, Severity, printable};
use crate::domain::{Job, JobId, JobName, Run};
use crate::fault;
use crate::spec::Checked;
use crate::store::{self, Input};

/// A valid spec that is about to become a job.
#[derive(Debug)]
pub(super) struct Applicant {
    pub(super) id: JobId,
    pub(super) claim: Claim,
    pub(super) checked: Checked,
    /// A fine-tune that nobody knows may be among the specs that are still to be read.
    pub(super) may_wait: bool,
    /// Of a run: what it is called, and whose it is.
    pub(super) run: Option<(JobName, Run)>,
}

/// What became of something in the jobs folder. But for jobs, what was rejected and what is gone it is where it was.
#[derive(Debug)]
pub(super) enum Ending {
    Job,
    /// It has a schedule, and stays where it is.
    Kept,
    /// It lies in `rejected/` under this name.
    Rejected {
        name: String,
        report: Report,
    },
    /// Somebody else took it, or removed it.
    Gone,
    /// It was written to while we looked.
    Changed,
    /// This data of it is being written.
    WaitsForData {
        data: String,
    },
    /// This fine-tune may be among the specs that are still to be read.
    WaitsForFineTune {
        fine_tune: JobName,
    },
}

impl Intake {
    /// Makes a job of a valid spec.
    pub(super) async fn admit(
        &mut self,
        mut applicant: Applicant,
        known: &mut Known,
        stop: &CancellationToken,
    ) -> Result<Ending, Error> {
        // The fine-tunes that are found must be there until the job that waits for them is.
        let _hold = self.store.hold();
        match self.find_makers(&applicant.checked).await {
            Ok(Found::All(models)) => applicant.checked.settings.models = models,
            Ok(Found::Unknown { first, .. }) if applicant.may_wait => {
                blocking(move || applicant.claim.put_back()).await?;
                return Ok(Ending::WaitsForFineTune { fine_tune: first });
            }
            Ok(Found::Unfit(report) | Found::Unknown { report, .. }) => {
                return reject(applicant.claim, report).await;
            }
            Err(error @ Error::Store(_)) => return Err(error),
            Err(error) => {
                blocking(move || applicant.claim.put_back()).await?;
                return Err(error);
            }
        }
        if let Some(catalogue) = &self.catalogue {
            // To stop goes first: without an answer nothing is said about the models.
            let doubts = tokio::select! { biased;
                () = stop.cancelled() => Report::default(),
                doubts = models::doubts(&applicant.checked, catalogue) => doubts,
            };
            // Seconds may have passed since the spec was read.
            let (changed, claim) = blocking(move || (applicant.claim.is_changed(), applicant.claim)).await;
            applicant.claim = claim;
            if changed? {
                blocking(move || applicant.claim.put_back()).await?;
                return Ok(Ending::Changed);
            }
            if doubts.has_errors() {
                return reject(applicant.claim, doubts).await;
            }
            applicant.checked.findings.absorb(doubts);
        }
        self.accept(applicant, known).await?;
        Ok(Ending::Job)
    }

    async fn find_makers(&self, checked: &Checked) -> Result<Found, Error> {
        if checked.jobs_used().next().is_none() {
            return Ok(Found::All(BTreeMap::new()));
        }
        let jobs = self.store.jobs().await.map_err(Error::Store)?;
        let (store, results, checked) =
            (Arc::clone(&self.store), self.settings.results.clone(), checked.clone());
        blocking(move || Makers { jobs, store: &*store, results }.find(&checked)).await
    }

    /// Names the job and gives it to the store. From the store's answer on it exists, and nothing here fails any more.
    async fn accept(&mut self, applicant: Applicant, known: &mut Known) -> Result<(), Error> {
        let Applicant { id, claim, checked, run, .. } = applicant;
        let (wanted, run) = run.map_or((checked.name, None), |(name, run)| (name, Some(run)));
        let name = match known.free_name(&wanted, &self.settings.results).await {
            Ok(name) => name,
            Err(error) => {
                blocking(move || claim.put_back()).await?;
                return Err(failed("look through", &self.settings.results)(error));
            }
        };
        let file = claim.note.name.clone();
        let findings = checked.findings;
        let job = Job {
            id,
            name,
            kind: checked.kind,
            ending: checked.ending,
            spec_file: file.clone(),
            accepted_at: self.clock.now(),
            total: checked.total,
            queues: checked.queues,
            content_hash: checked.content_hash,
            settings: checked.settings,
            run,
        };
        fault::point("intake-putting");
        if let Err(error) = self.store.put_job(job.clone(), Input::Spooled).await {
            return Err(blocking(move || not_taken(claim, error)).await);
        }
        fault::point("intake-put");
        if job.run.is_none()
            && let Some(earlier) = known.same_content(&job.content_hash)
        {
            info!(job = %id, %earlier, file = %printable(&file), "the same content was dropped before: it runs again");
        }
        // Notes may quote what the user's data say, which belongs in no log: `batchd check` shows them.
        for finding in findings.diagnostics().iter().filter(|finding| finding.severity != Severity::Note) {
            warn!(job = %id, file = %printable(&file), %finding, "job spec has a doubtful place");
        }
        info!(job = %id, name = %job.name, file = %printable(&file), requests = job.total, "job accepted");
        known.add(&job);
        if let Err(error) = blocking(move || claim.settle()).await {
            // What failed would be tried again, and there would be two of it.
            warn!(job = %id, %error, "a job is accepted, and what claimed its spec is left; it is removed later");
            self.recover_due = true;
            self.left = Some(error);
        }
        Ok(())
    }
}

async fn reject(claim: Claim, report: Report) -> Result<Ending, Error> {
    let (name, report) = blocking(move || (claim.reject(&report), report)).await;
    Ok(Ending::Rejected { name: name?, report })
}

/// What is to be done about a job that the store did not take. A disk without room lets the spec go back, as long as
/// nothing says that the job was accepted. Else a failed store says nothing certain about what is on disk: the claim
/// stays for the next start to judge.
fn not_taken(claim: Claim, error: store::Error) -> Error {
    let is_absent = claim.job.state().try_exists().is_ok_and(|exists| !exists);
    if matches!(error, store::Error::Io { .. } | store::Error::Full(_)) && is_absent {
        return claim.put_back().err().unwrap_or_else(|| error.into());
    }
    Error::Store(error)
}
