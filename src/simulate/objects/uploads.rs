//! Uploads: a file that comes in parts.
//!
//! # What it does not do
//!
//! `md5` of `complete` is taken unchecked.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};

use super::files::{File, NewFile, known_purpose, life};
use super::members::Members;
use super::multipart::Form;
use super::shelf::{Calendar, Shelf};
use crate::simulate::call::Request;
use crate::simulate::refusal::Refusal;

/// How long parts are waited for.
const LIFE: Duration = Duration::from_hours(1);
/// Of a whole upload: 8 GB.
const BYTES_MAX: u64 = 8 * 1024 * 1024 * 1024;
/// Of one part: 64 MB.
const PART_BYTES_MAX: usize = 64 * 1024 * 1024;

/// An upload that is to be.
#[derive(Clone, Debug)]
pub(in crate::simulate) struct NewUpload {
    filename: String,
    purpose: &'static str,
    bytes: u64,
    life: Option<Duration>,
}

#[derive(Debug)]
struct Part {
    id: String,
    content: Bytes,
}

#[derive(Debug)]
enum State {
    Pending,
    Completed(Box<File>),
    Cancelled,
}

#[derive(Debug)]
pub(super) struct Upload {
    id: String,
    created: Duration,
    plan: NewUpload,
    parts: Vec<Part>,
    state: State,
}

#[derive(Debug, Default)]
pub(super) struct Uploads(Vec<Upload>);

impl NewUpload {
    /// Reads the body of `POST /uploads`.
    pub(super) fn read(body: &[u8]) -> Result<Self, Refusal> {
        let mut members = Members::of_body(body)?;
        let filename = members.required_text("filename")?.into_owned();
        let purpose = known_purpose(&members.required_text("purpose")?)?;
        let bytes = members.integer("bytes", 1, BYTES_MAX)?.ok_or_else(|| members.missing("bytes"))?;
        members.required_text("mime_type")?;
        let life = match members.object("expires_after")? {
            None => None,
            Some(mut after) => {
                let (anchor, seconds) = (after.text("anchor")?, after.integer("seconds", 0, u64::MAX)?);
                after.end()?;
                Some(life(anchor.as_deref(), seconds)?)
            }
        };
        members.end()?;
        Ok(Self { filename, purpose, bytes, life })
    }
}

/// Reads the form of a part.
pub(super) fn read_part(request: &Request<'_>) -> Result<Bytes, Refusal> {
    let mut form = Form::read(request.headers, request.body, &["data"])?;
    let data = form.take_file("data").ok_or_else(|| Refusal::missing_property("data"))?.content;
    form.end()?;
    if data.len() > PART_BYTES_MAX {
        return Err(Refusal::file_too_large());
    }
    Ok(data)
}

/// Reads the body of `complete`: the parts in their order.
pub(super) fn read_complete(body: &[u8]) -> Result<Vec<String>, Refusal> {
    let mut members = Members::of_body(body)?;
    let raw = members.raw("part_ids").ok_or_else(|| members.missing("part_ids"))?;
    let ids = serde_json::from_str(raw.get())
        .map_err(|_| Refusal::invalid_type("part_ids", "an array of strings", raw.get()))?;
    members.text("md5")?;
    members.end()?;
    Ok(ids)
}

impl Upload {
    fn object(&self, calendar: Calendar, at: Duration) -> Value {
        let expires = self.created + LIFE;
        let (status, file) = match &self.state {
            State::Pending if at >= expires => ("expired", None),
            State::Pending => ("pending", None),
            State::Completed(file) => ("completed", Some(file.object(calendar, at))),
            State::Cancelled => ("cancelled", None),
        };
        json!({
            "id": self.id,
            "object": "upload",
            "bytes": self.plan.bytes,
            "created_at": calendar.unix(self.created),
            "expires_at": calendar.unix(expires),
            "filename": self.plan.filename,
            "purpose": self.plan.purpose,
            "status": status,
            "file": file,
        })
    }

    fn received(&self) -> u64 {
        self.parts.iter().map(|part| u64::try_from(part.content.len()).unwrap_or(u64::MAX)).sum()
    }

    /// The whole, if `ids` name parts whose bytes are as many as was said.
    fn assemble(&self, ids: &[String]) -> Result<Bytes, Refusal> {
        let mut whole = BytesMut::new();
        for (index, id) in ids.iter().enumerate() {
            let is_repeated = ids.iter().take(index).any(|earlier| earlier == id);
            let part = self.parts.iter().find(|part| part.id == *id && !is_repeated);
            let part = part.ok_or_else(|| Refusal::no_part(id, &self.id))?;
            whole.extend_from_slice(&part.content);
        }
        if u64::try_from(whole.len()).ok() != Some(self.plan.bytes) {
            return Err(Refusal::wrong_bytes(self.plan.bytes, whole.len()));
        }
        Ok(whole.freeze())
    }
}

impl Uploads {
    pub(super) fn begin(&mut self, plan: &NewUpload, shelf: &mut Shelf, at: Duration) -> Value {
        let (id, plan) = (shelf.id("upload_"), plan.clone());
        let upload = Upload { id, created: at, plan, parts: Vec::new(), state: State::Pending };
        let object = upload.object(shelf.calendar, at);
        self.0.push(upload);
        object
    }

    pub(super) fn add_part(
        &mut self,
        id: &str,
        content: &Bytes,
        shelf: &mut Shelf,
        at: Duration,
    ) -> Result<Value, Refusal> {
        let upload = self.pending(id, at)?;
        let bytes = upload.received().saturating_add(u64::try_from(content.len()).unwrap_or(u64::MAX));
        if bytes > upload.plan.bytes {
            return Err(Refusal::file_too_large());
        }
        let part = shelf.id("part_");
        upload.parts.push(Part { id: part.clone(), content: content.clone() });
        let created_at = shelf.calendar.unix(at);
        Ok(json!({ "id": part, "object": "upload.part", "created_at": created_at, "upload_id": id }))
    }

    pub(super) fn complete(
        &mut self,
        id: &str,
        parts: &[String],
        shelf: &mut Shelf,
        at: Duration,
    ) -> Result<Value, Refusal> {
        let upload = self.pending(id, at)?;
        let content = upload.assemble(parts)?;
        let NewUpload { filename, purpose, life, .. } = &upload.plan;
        let new = NewFile::new(purpose, filename.clone(), content, *life, usize::MAX)?;
        upload.state = State::Completed(Box::new(shelf.add_file(&new, at)));
        upload.parts.clear();
        Ok(upload.object(shelf.calendar, at))
    }

    pub(super) fn cancel(&mut self, id: &str, calendar: Calendar, at: Duration) -> Result<Value, Refusal> {
        let upload = self.pending(id, at)?;
        upload.state = State::Cancelled;
        upload.parts.clear();
        Ok(upload.object(calendar, at))
    }

    fn pending(&mut self, id: &str, at: Duration) -> Result<&mut Upload, Refusal> {
        let upload = self.0.iter_mut().find(|upload| upload.id == id);
        let upload = upload.ok_or_else(|| Refusal::no_such("Upload", id))?;
        let status = match &upload.state {
            State::Pending if at < upload.created + LIFE => return Ok(upload),
            State::Pending => "expired",
            State::Completed(_) => "completed",
            State::Cancelled => "cancelled",
        };
        Err(Refusal::wrong_status("Upload", id, status))
    }
}
