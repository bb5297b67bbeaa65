//! What the stand-in server keeps: files, uploads, models and fine-tunes of both interfaces, in memory.
//!
//! # Operation
//!
//! A request is read into a [`Call`] outside the lock; [`Objects::carry_out`] first plays everything that is due by
//! then and answers next, so time passes only when somebody asks. Ids, and where servers differ (`pending` or
//! `created`, how a healthy job's `error` looks), come from the seed and the order of the calls.
//!
//! # What it does not do
//!
//! A file that is deleted while a fine-tune uses it stays in use. Nothing is ever billed. Checkpoints exist in lists
//! and as models, not as objects that can be shared. Events are not streamed.

mod call;
mod files;
mod fine_tunes;
mod inspection;
mod job_request;
mod jobs;
mod members;
mod metrics;
mod models;
mod multipart;
mod page;
mod refusals;
mod run;
mod shelf;
#[cfg(test)]
mod tests;
mod uploads;

use std::fmt;

use axum::http::HeaderValue;
use axum::http::header::CONTENT_DISPOSITION;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::Instant;

use self::fine_tunes::FineTunes;
use self::jobs::Jobs;
use self::models::Models;
use self::shelf::{Calendar, Rules, Shelf};
use self::uploads::Uploads;
use super::answer;
use super::mishap::Act;
use super::refusal::Refusal;
use super::reply::Reply;
use super::settings::Settings;
use crate::clock::Seed;
use crate::domain::Endpoint;

pub(super) use self::call::Call;

/// All there is.
pub(super) struct Objects {
    shelf: Shelf,
    uploads: Uploads,
    jobs: Jobs,
    fine_tunes: FineTunes,
}

/// What a call that was carried out has brought.
#[derive(Debug)]
pub(super) struct Answer {
    body: Body,
    /// What has changed by it.
    pub(super) effect: Option<Effect>,
}

#[derive(Debug)]
enum Body {
    Object(Value),
    Content(Bytes),
}

/// A change, and what was made or changed.
#[derive(Clone, Debug)]
pub(super) struct Effect {
    pub(super) act: Act,
    pub(super) object: String,
}

impl Answer {
    pub(super) fn reply(&self) -> Reply {
        match &self.body {
            Body::Object(object) => Reply::json(200, answer::to_json(object)),
            Body::Content(content) => {
                let mut reply = Reply::new(200, "application/octet-stream", content.clone());
                reply.headers.insert(CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
                reply
            }
        }
    }
}

impl Objects {
    pub(super) fn new(settings: &Settings, seed: Seed, started: Instant) -> Self {
        let rules = Rules {
            fine_tune_time: settings.fine_tune_time,
            file_processing_time: settings.file_processing_time,
            fate: settings.fate,
        };
        let shelf = Shelf {
            calendar: Calendar { started, epoch: settings.epoch },
            rules,
            dice: seed.derive("simulate/objects"),
            files: files::Files::default(),
            models: Models::new(settings.models.clone(), settings.strict_models),
        };
        Self { shelf, uploads: Uploads::default(), jobs: Jobs::default(), fine_tunes: FineTunes::default() }
    }

    /// Whether a request may be answered with this model.
    pub(super) fn admit(&mut self, endpoint: Endpoint, model: &str, now: Instant) -> Result<(), Refusal> {
        self.advance(now);
        self.shelf.models.admit(endpoint, model)
    }

    /// Takes over what settings say of fine-tunes that are created from now on.
    pub(super) fn follow(&mut self, settings: &Settings) {
        let rules = &mut self.shelf.rules;
        (rules.fate, rules.fine_tune_time) = (settings.fate, settings.fine_tune_time);
    }

    /// Carries a call out, effect included.
    pub(super) fn carry_out(&mut self, call: &Call, now: Instant) -> Result<Answer, Refusal> {
        self.advance(now);
        if let Call::FileContent(id) = call {
            let content = self.file(id, now)?.content.clone();
            return Ok(Answer { body: Body::Content(content), effect: None });
        }
        let object = self.object(call, now)?;
        let act = call.act();
        let effect = (!matches!(act, Act::Show | Act::List | Act::Content)).then(|| {
            // A part is told by its upload's id, everything else by its own.
            let id = object.get("upload_id").or_else(|| object.get("id")).and_then(Value::as_str);
            Effect { act, object: id.unwrap_or_default().to_owned() }
        });
        Ok(Answer { body: Body::Object(object), effect })
    }

    fn object(&mut self, call: &Call, now: Instant) -> Result<Value, Refusal> {
        let Self { shelf, uploads, jobs, fine_tunes } = self;
        let calendar = shelf.calendar;
        let at = calendar.at(now);
        match call {
            Call::ListModels => Ok(shelf.models.list(calendar)),
            Call::Model(id) => shelf.models.show(id, calendar),
            Call::DeleteModel(id) => shelf.models.delete(id),
            Call::ListFiles(query) => shelf.files.list(query, calendar, at),
            Call::CreateFile(new) => Ok(shelf.add_file(new, at).object(calendar, at)),
            Call::File(id) | Call::FileContent(id) => Ok(self.file(id, now)?.object(calendar, at)),
            Call::DeleteFile(id) => {
                self.file(id, now)?;
                self.shelf.files.delete(id);
                Ok(json!({ "id": id, "object": "file", "deleted": true }))
            }
            Call::CreateUpload(new) => Ok(uploads.begin(new, shelf, at)),
            Call::AddPart(id, content) => uploads.add_part(id, content, shelf, at),
            Call::CompleteUpload(id, parts) => uploads.complete(id, parts, shelf, at),
            Call::CancelUpload(id) => uploads.cancel(id, calendar, at),
            Call::ListJobs(query) => jobs.list(query, calendar),
            Call::CreateJob(new) => jobs.create(new, shelf, at),
            Call::Job(id) => jobs.show(id, calendar),
            Call::CancelJob(id) => jobs.cancel(id, calendar, at),
            Call::PauseJob(id) => jobs.pause(id, calendar, at),
            Call::ResumeJob(id) => jobs.resume(id, calendar, at),
            Call::JobEvents(id, page) => jobs.events(id, page, calendar),
            Call::JobCheckpoints(id, page) => jobs.checkpoints(id, page, calendar),
            Call::ListFineTunes => Ok(fine_tunes.list(calendar)),
            Call::CreateFineTune(new) => fine_tunes.create(new, shelf, at),
            Call::FineTune(id) => fine_tunes.show(id, calendar),
            Call::CancelFineTune(id) => fine_tunes.cancel(id, calendar, at),
            Call::FineTuneEvents(id) => fine_tunes.events(id, calendar),
        }
    }

    fn file(&self, id: &str, now: Instant) -> Result<&files::File, Refusal> {
        let at = self.shelf.calendar.at(now);
        self.shelf.files.find(id, at).ok_or_else(|| Refusal::no_such("File", id))
    }

    /// Plays what is due.
    fn advance(&mut self, now: Instant) {
        let at = self.shelf.calendar.at(now);
        self.shelf.files.expire(at);
        self.jobs.advance(&mut self.shelf, at);
        self.fine_tunes.advance(&mut self.shelf, at);
    }
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Objects").field("jobs", &self.jobs).finish_non_exhaustive()
    }
}
