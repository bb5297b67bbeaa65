//! The steps of a fine-tune that ask the provider.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::{Attempt, Flow, MEMO_BYTES, Missing, ROOM_WAIT, verdict};
use crate::diag::printable;
use crate::dispatch::attempt::EndedKind;
use crate::dispatch::failure::Result;
use crate::domain::tuning::{Creation, Step, Thing};
use crate::domain::{Failure, Outcome, RecordError, Settlement, Timestamp, TuningApi, TuningData};
use crate::fault;
use crate::provider::{RemoteFile, RemoteTuning, SINGLE_UPLOAD_BYTES_MAX, TuningMark, Upload, refused_with};

/// The metadata member by which a job is known again. Its value is our job's id.
pub(super) const MARK: &str = "batchd_job";

/// What files are uploaded for.
const PURPOSE: &str = "fine-tune";

/// So far may the provider's clock be behind ours, where a job is known by the time of its creation alone.
const CLOCK_SKEW: Duration = Duration::from_mins(5);

impl Attempt<'_> {
    pub(super) async fn upload(&mut self, thing: Thing) -> Result<Flow> {
        let upload = match self.upload_of(thing).await {
            Ok(upload) => upload,
            Err(why) => return Ok(ControlFlow::Break(self.discard(None, "invalid_input", why))),
        };
        let before = match self.begin(thing).await? {
            ControlFlow::Continue(before) => before,
            ControlFlow::Break(settlement) => return Ok(ControlFlow::Break(settlement)),
        };
        let provider = &self.parts.provider;
        let progress = |_| ();
        let call = async {
            if upload.length > SINGLE_UPLOAD_BYTES_MAX {
                provider.upload_in_parts(&upload, &progress).await
            } else {
                provider.upload(&upload, &progress).await
            }
        };
        let uploaded = self.ask(call).await;
        fault::point("tuning-created");
        match uploaded {
            Ok(file) => {
                let (id, name) = (printable(&file.id), &upload.name);
                tracing::info!(request = %self.id, remote = %id, name, bytes = upload.length, "uploaded");
                self.made(thing, file.id).await
            }
            Err(missing) => self.not_made(thing, before, missing).await,
        }
    }

    pub(super) async fn create_job(&mut self) -> Result<Flow> {
        let body = self.body();
        let before = match self.begin(Thing::Job).await? {
            ControlFlow::Continue(before) => before,
            ControlFlow::Break(settlement) => return Ok(ControlFlow::Break(settlement)),
        };
        let created = self.ask(self.parts.provider.create_fine_tune(self.plan.api, body)).await;
        fault::point("tuning-created");
        match created {
            Ok(job) => {
                tracing::info!(request = %self.id, remote = printable(&job.id), "a fine-tune is created at the provider");
                let flow = self.made(Thing::Job, job.id.clone()).await?;
                Ok(if flow.is_continue() { ControlFlow::Break(self.judge(job)) } else { flow })
            }
            Err(missing) => self.not_made(Thing::Job, before, missing).await,
        }
    }

    /// Makes it durable that `thing` is about to be created. Gives what was known of it before, or what becomes of
    /// the request if it must not be created.
    async fn begin(&mut self, thing: Thing) -> Result<ControlFlow<Settlement, Creation>> {
        if self.used > 0 && !self.policy.allows_another(self.used) {
            return Ok(ControlFlow::Break(self.exhausted(thing)));
        }
        if let Some(due) = self.watch.not_before.filter(|due| *due > self.parts.clock.now()) {
            return Ok(ControlFlow::Break(Settlement::Snooze { due, attempts: self.used }));
        }
        // Its id could be lost, and with it what was paid for.
        if self.parts.store.shortage().is_some() {
            self.kind = EndedKind::Blocked;
            return Ok(ControlFlow::Break(Settlement::Release));
        }
        if self.parts.store.fits(MEMO_BYTES).is_err() {
            self.kind = EndedKind::Blocked;
            return Ok(ControlFlow::Break(self.snooze(ROOM_WAIT)));
        }
        fault::point("tuning-beginning");
        let before = self.watch.progress.begin(thing, self.parts.clock.now());
        if !self.save().await? {
            self.watch.progress.take_back(thing, before);
            self.watch.is_unsaved = false;
            return Ok(ControlFlow::Break(self.snooze(ROOM_WAIT)));
        }
        fault::point("tuning-creating");
        Ok(ControlFlow::Continue(before))
    }

    /// The id is durable before anything else is done. Where there is no room for it, it is kept in memory.
    async fn made(&mut self, thing: Thing, id: String) -> Result<Flow> {
        self.watch.progress.made(thing, id);
        self.step_done();
        if !self.save().await? {
            return Ok(ControlFlow::Break(self.snooze(ROOM_WAIT)));
        }
        fault::point("tuning-noted");
        Ok(ControlFlow::Continue(()))
    }

    async fn not_made(&mut self, thing: Thing, before: Creation, missing: Missing) -> Result<Flow> {
        let Missing::Saw(outcome) = missing else { return Ok(ControlFlow::Break(Settlement::Release)) };
        match open_end(*outcome) {
            Ok((failure, may_repeat)) => {
                let error = printable(&failure.message);
                tracing::warn!(request = %self.id, thing = thing.as_str(), error = %error, "a creation was not answered; it is looked for at the provider");
                self.used = if may_repeat { self.used + 1 } else { self.policy.max_attempts.max(self.used) };
                let wait = self.policy.delay(self.used, failure.retry_after, self.dice);
                self.watch.not_before = Some(self.parts.clock.now() + wait);
                self.watch.failure = Some(failure);
                Ok(ControlFlow::Continue(()))
            }
            Err(outcome) => {
                self.watch.progress.take_back(thing, before);
                let settlement = self.judge_refusal(thing, outcome);
                if !matches!(settlement, Settlement::Discard(_)) {
                    // Without room for it there is a look more, and nothing is lost.
                    let kind = self.kind;
                    self.save().await?;
                    self.kind = kind;
                }
                Ok(ControlFlow::Break(settlement))
            }
        }
    }

    pub(super) async fn find(&mut self, thing: Thing) -> Result<Flow> {
        let found = match thing {
            Thing::Job => self.find_job().await,
            Thing::Training | Thing::Validation => self.find_file(thing).await,
        };
        fault::point("tuning-looked");
        match found {
            Ok(Some(id)) => {
                self.watch.trouble = 0;
                tracing::info!(request = %self.id, thing = thing.as_str(), remote = printable(&id), "found at the provider");
                self.made(thing, id).await
            }
            Ok(None) => {
                self.watch.trouble = 0;
                self.watch.progress.missed(thing);
                let looks_on = self.watch.progress.next(self.plan, self.wish()) == Step::Find(thing);
                let wait = self.watch.progress.wait_before_look(thing);
                Ok(if looks_on { ControlFlow::Break(self.snooze(wait)) } else { ControlFlow::Continue(()) })
            }
            Err(missing) => Ok(self.not_looked(thing, missing)),
        }
    }

    /// A look that could not be made says nothing about what is there.
    fn not_looked(&mut self, thing: Thing, missing: Missing) -> Flow {
        let is_blind = |outcome: &Outcome| matches!(outcome, Outcome::Refused(_) | Outcome::Unanswerable(_));
        match missing {
            Missing::Saw(outcome) if is_blind(&outcome) && thing == Thing::Job => {
                ControlFlow::Break(self.uncertain(&outcome))
            }
            // A second file does no harm; and an end does not wait for what may lie there to be deleted.
            Missing::Saw(outcome) if is_blind(&outcome) || self.is_to_end() && thing != Thing::Job => {
                let error = verdict::words(&outcome);
                tracing::warn!(request = %self.id, thing = thing.as_str(), error, "the provider does not say which files it has");
                self.watch.progress.give_up_looking(thing);
                ControlFlow::Continue(())
            }
            missing @ (Missing::Saw(_) | Missing::GivenUp) => ControlFlow::Break(self.later(missing)),
        }
    }

    async fn find_file(&mut self, thing: Thing) -> Result<Option<String>, Missing> {
        let name = self.name_of(thing);
        let found: Option<RemoteFile> = self.ask(self.parts.provider.find_file(&name, PURPOSE)).await?;
        Ok(found.map(|file| file.id))
    }

    async fn find_job(&mut self) -> Result<Option<String>, Missing> {
        let (provider, api) = (&self.parts.provider, self.plan.api);
        let value = self.id.job.to_string();
        let training = self.watch.progress.id_of(Thing::Training).map(str::to_owned);
        let is_ours = matches!(self.plan.training, TuningData::Local { .. });
        // There is no mark on it, but the file that others may use, too, and the time.
        let shared = training.as_deref().filter(|_| !is_ours && api == TuningApi::Legacy);
        let found: Option<RemoteTuning> = if let Some(file) = shared {
            let since = self.sent_at().as_millis().saturating_sub(millis(CLOCK_SKEW));
            let since = Timestamp::from_millis(since);
            self.ask(provider.find_fine_tune_since(api, file, self.plan.model(), since)).await?
        } else {
            let training_file = training.as_deref().filter(|_| is_ours);
            let mark = TuningMark { metadata: (MARK, &value), training_file };
            self.ask(provider.find_fine_tune(api, &mark)).await?
        };
        Ok(found.map(|job| job.id))
    }

    /// When the job was first sent.
    fn sent_at(&self) -> Timestamp {
        match self.watch.progress.of(Thing::Job) {
            Creation::Sent { at, .. } => *at,
            Creation::Unsent | Creation::There { .. } => self.parts.clock.now(),
        }
    }

    pub(super) async fn await_file(&mut self, thing: Thing) -> Flow {
        let id = self.watch.progress.id_of(thing).unwrap_or_default().to_owned();
        let asked = self.ask(self.parts.provider.file(&id)).await;
        fault::point("tuning-awaited");
        match asked {
            Ok(file) => self.judge_file(thing, &file),
            // It may not show files, or has none of this id: the creation of the job judges it.
            Err(Missing::Saw(outcome))
                if matches!(*outcome, Outcome::Refused(_) | Outcome::Unanswerable(_)) =>
            {
                self.watch.progress.ready(thing);
                self.step_done();
                ControlFlow::Continue(())
            }
            Err(missing) => ControlFlow::Break(self.later(missing)),
        }
    }

    pub(super) async fn poll(&mut self) -> Flow {
        let id = self.watch.progress.id_of(Thing::Job).unwrap_or_default().to_owned();
        let asked = self.ask(self.parts.provider.fine_tune(self.plan.api, &id)).await;
        fault::point("tuning-polled");
        ControlFlow::Break(match asked {
            Ok(job) => self.judge(job),
            Err(Missing::Saw(outcome)) if matches!(refused_with(&outcome), Some(404 | 410)) => {
                self.not_found()
            }
            Err(missing) => self.later(missing),
        })
    }

    pub(super) async fn cancel(&mut self) -> Flow {
        let id = self.watch.progress.id_of(Thing::Job).unwrap_or_default().to_owned();
        fault::point("tuning-cancelling");
        let asked = self.ask(self.parts.provider.cancel_fine_tune(self.plan.api, &id)).await;
        fault::point("tuning-cancelled");
        let is_heard = match &asked {
            Ok(_) => true,
            // It has ended already, or can't be ended: how it stands is asked next.
            Err(Missing::Saw(outcome)) => matches!(**outcome, Outcome::Refused(_) | Outcome::Unanswerable(_)),
            Err(Missing::GivenUp) => false,
        };
        if is_heard {
            self.watch.progress.ask_to_end(true);
            self.watch.since = Instant::now();
            self.watch.asked_at = Some(Instant::now());
        }
        match asked {
            Ok(job) => ControlFlow::Break(self.judge(job)),
            Err(_) if is_heard => ControlFlow::Continue(()),
            Err(missing) => ControlFlow::Break(self.later(missing)),
        }
    }

    /// The body of the job's creation.
    fn body(&self) -> Bytes {
        let mut body = self.plan.body.clone();
        for (member, thing) in [("training_file", Thing::Training), ("validation_file", Thing::Validation)] {
            if let Some(id) = thing.data(self.plan).and_then(|_| self.watch.progress.id_of(thing)) {
                body.insert(member.to_owned(), Value::from(id));
            }
        }
        if self.plan.api == TuningApi::Jobs {
            let metadata = body.entry("metadata").or_insert(Value::Null);
            if !metadata.is_object() {
                *metadata = Value::Object(Map::new());
            }
            if let Some(metadata) = metadata.as_object_mut() {
                metadata.insert(MARK.to_owned(), Value::from(self.id.job.to_string()));
            }
        }
        Value::Object(body).to_string().into()
    }

    /// The name under which a file is uploaded.
    fn name_of(&self, thing: Thing) -> String {
        thing.upload_name(self.plan, self.id.job).unwrap_or_default()
    }

    /// The file on our side. The error is a sentence for people.
    async fn upload_of(&self, thing: Thing) -> Result<Upload, String> {
        let (Some(TuningData::Local { file, bytes, .. }), Some(folder)) =
            (thing.data(self.plan), self.parts.store.folder(self.id.job))
        else {
            return Err(format!("there is no {} to upload", thing.as_str()));
        };
        let file = open(&folder.join(file)).await;
        let file = file.map_err(|error| format!("the {} can't be read any more: {error}", thing.as_str()))?;
        let name = self.name_of(thing);
        Ok(Upload {
            name,
            purpose: PURPOSE.to_owned(),
            file: Arc::new(file),
            length: *bytes,
            expires_after: None,
        })
    }
}

async fn open(path: &Path) -> std::io::Result<std::fs::File> {
    Ok(tokio::fs::File::open(path).await?.into_std().await)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Why it is not known whether a creation was carried out, and whether it may be repeated if it is not found; the
/// outcome itself if it is known that it was not.
///
/// A server that answers with an error may have done the work before, so any failure but one of the connection is
/// looked into: that costs a question, and not looking may cost a second fine-tune.
fn open_end(outcome: Outcome) -> Result<(Failure, bool), Outcome> {
    match outcome {
        Outcome::Failed(failure) if failure.maybe_paid || failure.response.is_some() => Ok((failure, true)),
        Outcome::Unanswerable(RecordError { message, .. }) => Ok((
            Failure { code: "unanswerable", message, retry_after: None, maybe_paid: true, response: None },
            false,
        )),
        Outcome::Answered(_)
        | Outcome::Refused(_)
        | Outcome::Throttled { .. }
        | Outcome::Failed(_)
        | Outcome::Blocked(_) => Err(outcome),
    }
}
