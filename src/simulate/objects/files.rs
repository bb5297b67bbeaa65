//! Files: uploaded, processed after a while, listed, read and deleted.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::inspection::Inspection;
use super::multipart::Form;
use super::page::{self, Page, with};
use super::shelf::{Calendar, Shelf};
use crate::simulate::call::Request;
use crate::simulate::refusal::Refusal;

/// For which a file may be uploaded.
const PURPOSES: [&str; 6] = ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"];
/// OpenAI's bound for a batch's input.
const BATCH_BYTES_MAX: usize = 200_000_000;
/// How long a batch's input lives where nothing else is said: 30 days.
const BATCH_LIFE: Duration = Duration::from_hours(24 * 30);
const EXPIRES_AFTER_S_LEAST: u64 = 3_600;
const EXPIRES_AFTER_S_MOST: u64 = 2_592_000;
const FILES_LISTED_MAX: usize = 10_000;

/// A file that is to be.
#[derive(Debug)]
pub(in crate::simulate) struct NewFile {
    filename: String,
    purpose: &'static str,
    content: Bytes,
    life: Option<Duration>,
    /// Only of training data.
    inspection: Option<Inspection>,
}

/// Which files are asked for.
#[derive(Debug)]
pub(in crate::simulate) struct FileQuery {
    purpose: Option<String>,
    page: Page,
}

/// A file. Times are counted from the start of the server.
#[derive(Clone, Debug)]
pub(super) struct File {
    pub(super) id: String,
    pub(super) filename: String,
    pub(super) purpose: &'static str,
    pub(super) content: Bytes,
    pub(super) created: Duration,
    pub(super) expires: Option<Duration>,
    /// When it is processed.
    pub(super) ready: Duration,
    pub(super) inspection: Option<Inspection>,
}

/// All files, oldest first.
#[derive(Debug, Default)]
pub(super) struct Files(Vec<File>);

impl NewFile {
    /// Reads the form of `POST /files`.
    pub(super) fn read(request: &Request<'_>, bytes_max: usize) -> Result<Self, Refusal> {
        let mut form = Form::read(request.headers, request.body, &["file"])?;
        let purpose = form.take_text("purpose").ok_or_else(|| Refusal::missing_property("purpose"))?;
        let file = form.take_file("file").ok_or_else(|| Refusal::missing_property("file"))?;
        let life = match (form.take_text("expires_after[anchor]"), form.take_text("expires_after[seconds]")) {
            (None, None) => None,
            (anchor, seconds) => Some(life(anchor.as_deref(), seconds.and_then(|text| text.parse().ok()))?),
        };
        form.end()?;
        Self::new(&purpose, file.filename.unwrap_or_default(), file.content, life, bytes_max)
    }

    /// Checks a file as a whole, however it came.
    pub(super) fn new(
        purpose: &str,
        filename: String,
        content: Bytes,
        life: Option<Duration>,
        bytes_max: usize,
    ) -> Result<Self, Refusal> {
        let purpose = known_purpose(purpose)?;
        let bytes_max = if purpose == "batch" { bytes_max.min(BATCH_BYTES_MAX) } else { bytes_max };
        if content.len() > bytes_max {
            return Err(Refusal::file_too_large());
        }
        let is_training_data = purpose == "fine-tune";
        if is_training_data && !filename.to_ascii_lowercase().ends_with(".jsonl") {
            return Err(Refusal::not_jsonl(&filename));
        }
        let inspection = is_training_data.then(|| Inspection::of(&content));
        Ok(Self { filename, purpose, content, life, inspection })
    }
}

/// The purpose, if it is one.
pub(super) fn known_purpose(purpose: &str) -> Result<&'static str, Refusal> {
    let known = PURPOSES.into_iter().find(|known| *known == purpose);
    known.ok_or_else(|| Refusal::bad_purpose(purpose, &PURPOSES))
}

/// From `expires_after` to how long a file lives.
pub(super) fn life(anchor: Option<&str>, seconds: Option<u64>) -> Result<Duration, Refusal> {
    if anchor != Some("created_at") {
        let message = "Invalid value for 'expires_after.anchor': expected 'created_at'.".to_owned();
        return Err(Refusal::invalid_value("expires_after.anchor", message));
    }
    let seconds = seconds.filter(|seconds| (EXPIRES_AFTER_S_LEAST..=EXPIRES_AFTER_S_MOST).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| {
        let message = format!(
            "Invalid 'expires_after.seconds': expected a value from {EXPIRES_AFTER_S_LEAST} to \
             {EXPIRES_AFTER_S_MOST}."
        );
        Refusal::invalid_value("expires_after.seconds", message)
    })
}

impl FileQuery {
    pub(super) fn read(query: &str) -> Result<Self, Refusal> {
        let page = Page::read(query, FILES_LISTED_MAX, FILES_LISTED_MAX)?;
        Ok(Self { purpose: page::member(query, "purpose"), page })
    }
}

impl File {
    pub(super) fn object(&self, calendar: Calendar, at: Duration) -> Value {
        let flaw = self.inspection.as_ref().and_then(|found| found.flaw.as_deref());
        let (status, details) = match flaw {
            _ if at < self.ready => ("uploaded", None),
            None => ("processed", None),
            Some(flaw) => ("error", Some(format!("Invalid file format. {flaw}"))),
        };
        let object = json!({
            "id": self.id,
            "object": "file",
            "bytes": self.content.len(),
            "created_at": calendar.unix(self.created),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": status,
            "status_details": details,
        });
        let expires = self.expires.map(|expires| ("expires_at", json!(calendar.unix(expires))));
        with(object, expires)
    }
}

impl Files {
    pub(super) fn add(&mut self, file: File) {
        self.0.push(file);
    }

    /// A file that has not expired.
    pub(super) fn find(&self, id: &str, at: Duration) -> Option<&File> {
        self.0.iter().find(|file| file.id == id && file.expires.is_none_or(|expires| at < expires))
    }

    pub(super) fn delete(&mut self, id: &str) {
        self.0.retain(|file| file.id != id);
    }

    /// Drops what has expired.
    pub(super) fn expire(&mut self, at: Duration) {
        self.0.retain(|file| file.expires.is_none_or(|expires| at < expires));
    }

    /// A page of those that `query` asks for.
    pub(super) fn list(&self, query: &FileQuery, calendar: Calendar, at: Duration) -> Result<Value, Refusal> {
        let wanted = |file: &&File| query.purpose.as_deref().is_none_or(|purpose| purpose == file.purpose);
        let (files, has_more) = if query.page.is_ascending {
            query.page.of(self.0.iter().filter(wanted), |file| &file.id)?
        } else {
            query.page.of(self.0.iter().rev().filter(wanted), |file| &file.id)?
        };
        let data: Vec<Value> = files.into_iter().map(|file| file.object(calendar, at)).collect();
        Ok(page::reply(&data, has_more))
    }
}

impl Shelf {
    /// Puts a new file down.
    pub(super) fn add_file(&mut self, new: &NewFile, at: Duration) -> File {
        let default_life = (new.purpose == "batch").then_some(BATCH_LIFE);
        let file = File {
            id: self.id("file-"),
            filename: new.filename.clone(),
            purpose: new.purpose,
            content: new.content.clone(),
            created: at,
            expires: new.life.or(default_life).map(|life| at + life),
            ready: at + self.rules.file_processing_time,
            inspection: new.inspection.clone(),
        };
        self.files.add(file.clone());
        file
    }
}
