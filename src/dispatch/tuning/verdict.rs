//! What a fine-tune ends as: its record, out of what the provider said.

use std::ops::ControlFlow;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{Attempt, Flow};
use crate::diag::printable;
use crate::domain::attempt::{History, decide};
use crate::domain::tuning::{Thing, poll_wait};
use crate::domain::{JobStatus, Outcome, Record, RecordError, Response, Settlement, TuningApi, TuningData};
use crate::provider::{RemoteFile, RemoteTuning, TuningStatus};

/// A job that is not found is looked for so often in all, so far apart, before it is held to be gone: servers that
/// store in several places lose sight of what is there for moments.
const GONE_LOOKS: u32 = 4;
const GONE_WAIT: Duration = Duration::from_secs(10);

/// A file that does not become ready is used all the same after this long: some servers never say that it is, and
/// the creation of the job judges it again. One that is said to be worked on is waited for longer: to take in a large
/// one takes some servers many minutes.
const FILE_PATIENCE: Duration = Duration::from_mins(2);
const FILE_WORK_PATIENCE: Duration = Duration::from_hours(1);

/// A creation that is refused because a file is not ready yet is tried again so often, after 1, 2, 4 and 8 seconds.
const EARLY_MAX: u32 = 4;

/// A provider that was asked to end a job, and has not, is asked again after this long.
const ASK_AGAIN: Duration = Duration::from_mins(1);

/// What a server calls a file that it has, one that it works on, and one that is of no use.
const FILE_THERE: &str = "uploaded";
const FILE_AT_WORK: [&str; 5] = ["pending", "running", "processing", "notrunning", "in_progress"];
const FILE_USELESS: [&str; 5] = ["error", "failed", "deleted", "deleting", "canceled"];

impl Attempt<'_> {
    /// What the job's own words mean for the request.
    pub(super) fn judge(&mut self, remote: RemoteTuning) -> Settlement {
        self.watch.trouble = 0;
        self.watch.gone = None;
        let response = Some(response(&remote.raw));
        let settlement = match &remote.status {
            TuningStatus::Succeeded => {
                tracing::info!(request = %self.id, remote = printable(&remote.id), model = remote.fine_tuned_model.as_deref().map(printable), "a fine-tune has succeeded");
                return Settlement::Complete(self.record(response, None));
            }
            TuningStatus::Failed => {
                let said = remote.error.unwrap_or_default();
                let or = |text: String, other: &str| if text.is_empty() { other.to_owned() } else { text };
                let code = or(said.code, "fine_tune_failed");
                let message = or(said.message, "the fine-tune failed, and the provider does not say why");
                tracing::warn!(request = %self.id, remote = printable(&remote.id), code, error = printable(&message), "a fine-tune has failed");
                self.discard(response, &code, message)
            }
            TuningStatus::Cancelled if self.is_to_end() => {
                let (code, message) = self.own_end();
                self.discard(response, code, message.to_owned())
            }
            TuningStatus::Cancelled => {
                let message = "the fine-tune was cancelled at the provider, and not by batchd; `batchd retry` begins it anew";
                self.discard(response, "cancelled", message.to_owned())
            }
            TuningStatus::Pending | TuningStatus::Running => self.watch_on(),
            TuningStatus::Unknown(word) => {
                if self.watch.is_news(word) {
                    tracing::warn!(request = %self.id, remote = printable(&remote.id), status = printable(word), "a fine-tune has a status that batchd does not know; it is watched on");
                }
                self.watch_on()
            }
        };
        self.watch.last = Some(remote.raw);
        settlement
    }

    fn watch_on(&mut self) -> Settlement {
        if self.watch.asked_at.is_some_and(|asked| asked.elapsed() >= ASK_AGAIN) {
            self.watch.progress.ask_to_end(false);
        }
        self.snooze(poll_wait(self.watch.since.elapsed(), self.dice))
    }

    /// The provider says that it has no such job.
    pub(super) fn not_found(&mut self) -> Settlement {
        let (since, looks) = self.watch.gone.unwrap_or_else(|| (Instant::now(), 0));
        self.watch.gone = Some((since, looks + 1));
        if looks + 1 < GONE_LOOKS || since.elapsed() < GONE_WAIT * (GONE_LOOKS - 1) {
            return self.snooze(GONE_WAIT);
        }
        let response = self.watch.last.as_deref().map(response);
        if self.is_to_end() {
            let (code, message) = self.own_end();
            return self.discard(response, code, message.to_owned());
        }
        let id = self.watch.progress.id_of(Thing::Job).unwrap_or_default();
        let message = format!(
            "the fine-tune `{}` has vanished: `{}` had it, and does not know it any more; `batchd retry` begins it anew",
            printable(id),
            self.parts.provider.name()
        );
        self.discard(response, "vanished", message)
    }

    /// Whether a file can be used.
    pub(super) fn judge_file(&mut self, thing: Thing, file: &RemoteFile) -> Flow {
        self.watch.trouble = 0;
        let status = file.status.as_deref().unwrap_or_default().to_ascii_lowercase();
        if FILE_USELESS.contains(&status.as_str()) {
            let details = file.status_details.as_deref().unwrap_or("the provider does not say why");
            let message = format!("the {} can't be used: {details}", thing.as_str());
            return ControlFlow::Break(self.discard(Some(response(&file.raw)), "invalid_file", message));
        }
        let waited = self.watch.since.elapsed();
        let patience = match status.as_str() {
            FILE_THERE => FILE_PATIENCE,
            word if FILE_AT_WORK.contains(&word) => FILE_WORK_PATIENCE,
            _ => Duration::ZERO,
        };
        if waited < patience {
            return ControlFlow::Break(self.snooze(poll_wait(waited, self.dice)));
        }
        self.watch.progress.ready(thing);
        self.step_done();
        ControlFlow::Continue(())
    }

    /// A creation that has certainly come to nothing.
    pub(super) fn judge_refusal(&mut self, thing: Thing, outcome: Outcome) -> Settlement {
        if let Outcome::Refused(refusal) = &outcome {
            if thing == Thing::Job && self.is_early(refusal) {
                self.watch.early += 1;
                return self.snooze(Duration::from_secs(1 << (self.watch.early - 1)));
            }
            if let Some((code, message)) = self.why_refused(thing, refusal) {
                return self.discard(Some(refusal.clone()), code, message);
            }
        }
        let history = History {
            request: self.id,
            custom_id: self.plan.custom_id.clone(),
            attempt: self.used + 1,
            model_has_answered: false,
        };
        decide(outcome, history, &self.policy, self.parts.clock.now(), self.dice)
    }

    /// Whether it is refused because a file that batchd has just uploaded is not there yet for everybody.
    fn is_early(&self, refusal: &Response) -> bool {
        let is_ours = |thing: Thing| matches!(thing.data(self.plan), Some(TuningData::Local { .. }));
        let words = refusal.body.get().to_ascii_lowercase();
        let says = |phrases: &[&str]| phrases.iter().any(|phrase| words.contains(phrase));
        matches!(refusal.status_code, 400 | 404 | 409 | 422)
            && (is_ours(Thing::Training) || is_ours(Thing::Validation))
            && self.watch.early < EARLY_MAX
            && words.contains("file")
            && says(&[
                "not ready",
                "cannot find",
                "can't find",
                "could not find",
                "not found",
                "does not exist",
                "no such",
                "not processed",
                "been processed",
                "being processed",
                "still processing",
            ])
    }

    /// What a refusal means, where its own words don't say it.
    fn why_refused(&self, thing: Thing, refusal: &Response) -> Option<(&'static str, String)> {
        if thing == Thing::Job {
            let sentence = self.parts.provider.why_no_fine_tuning(self.plan.api, refusal)?;
            return Some(("fine_tuning_unavailable", sentence));
        }
        let status = refusal.status_code;
        let message = format!(
            "`{}` takes no files (`/files` answered {status}), and a fine-tune needs its {} there",
            self.parts.provider.name(),
            thing.as_str()
        );
        matches!(status, 404 | 405 | 501).then_some(("files_unavailable", message))
    }

    /// All attempts are used up, and the last one left it open what came of it; no look has found it.
    pub(super) fn exhausted(&mut self, thing: Thing) -> Settlement {
        let failure = self.watch.failure.take();
        let (code, why) = failure.map_or_else(
            || ("unanswered", format!("the creation of the {} was not answered", thing.as_str())),
            |failure| (failure.code, failure.message),
        );
        let message = format!("{why} (attempt {} of {})", self.used, self.policy.max_attempts);
        self.discard(None, code, message)
    }

    /// Whether the job runs can't be said: it is never created again on the chance.
    pub(super) fn uncertain(&mut self, why: &Outcome) -> Settlement {
        let name = self.parts.provider.name();
        let by = match self.plan.api {
            TuningApi::Jobs => {
                format!("by the value `{}` of `{}` in its metadata", self.id.job, super::steps::MARK)
            }
            TuningApi::Legacy => {
                let file = self.watch.progress.id_of(Thing::Training).unwrap_or_default();
                format!("by its training file `{}`", printable(file))
            }
        };
        let message = format!(
            "a fine-tune may run at `{name}` or not: the reply to its creation was lost, and `{name}` does not say what \
             runs there ({}); look for it there {by}, and if there is none `batchd retry` asks for it again",
            words(why)
        );
        self.discard(None, "uncertain", message)
    }

    /// The job ends, and there is nothing to end at the provider.
    pub(super) fn end_of_nothing(&self) -> Settlement {
        let (code, message) = self.own_end();
        self.discard(None, code, message.to_owned())
    }

    /// Why it ends, if it ends by our own will.
    fn own_end(&self) -> (&'static str, &'static str) {
        if self.status == JobStatus::Expiring {
            ("expired", "the job's deadline passed before its fine-tune had ended")
        } else {
            ("cancelled", "the job was cancelled before its fine-tune had ended")
        }
    }

    pub(super) fn discard(&self, response: Option<Response>, code: &str, message: String) -> Settlement {
        let error = RecordError { code: code.to_owned(), message };
        Settlement::Discard(self.record(response, Some(error)))
    }

    fn record(&self, response: Option<Response>, error: Option<RecordError>) -> Record {
        Record { request: self.id, custom_id: self.plan.custom_id.clone(), response, error }
    }
}

/// The last object, as the answer that it is.
fn response(object: &RawValue) -> Response {
    Response::new(200, String::new(), object.get().as_bytes())
}

/// What was seen, on a line.
pub(super) fn words(outcome: &Outcome) -> String {
    let text = match outcome {
        Outcome::Answered(response) | Outcome::Refused(response) => {
            format!("it answered {}", response.status_code)
        }
        Outcome::Unanswerable(error) => error.message.clone(),
        Outcome::Throttled { code, .. } => format!("it asks to come later: {code}"),
        Outcome::Failed(failure) => failure.message.clone(),
        Outcome::Blocked(blocked) => blocked.words(),
    };
    printable(&text)
}
