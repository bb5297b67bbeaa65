//! Files above what one upload may hold: sent in parts (`/uploads`), then put together by the provider.
//!
//! # What it does not do
//!
//! Nothing is sent a second time: a part that fails ends the upload, and what had arrived is thrown away there.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde::Serialize;

use crate::provider::Provider;
use crate::provider::ask::{Called, Effect, Object, Raw};
use crate::provider::classify::unanswerable;
use crate::provider::files::{RemoteFile, Upload};
use crate::provider::multipart::Range;

/// What the provider takes as one part: 64 MB, in the smaller reading of the word.
pub const PART_BYTES_MAX: u64 = 64_000_000;

/// What the provider takes in parts: 8 GB, in the larger reading, so that nothing is refused here that would be taken.
pub const UPLOAD_BYTES_MAX: u64 = 8 << 30;

const PATH: &str = "/uploads";

#[derive(Serialize)]
struct Beginning<'a> {
    filename: &'a str,
    purpose: &'a str,
    bytes: u64,
    mime_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_after: Option<Expiry>,
}

#[derive(Serialize)]
struct Expiry {
    anchor: &'static str,
    seconds: u64,
}

#[derive(Serialize)]
struct Completion<'a> {
    part_ids: &'a [String],
}

fn json(body: &impl Serialize) -> Bytes {
    serde_json::to_vec(body).expect("strings and numbers serialise").into()
}

/// An upload that is begun, or a part of it: its id is all that is needed.
struct Begun(String);

impl Object for Begun {
    const LACKS: &'static str = "it lacks the `id` of an upload or a part";

    fn read(text: &str) -> Option<Self> {
        Raw::of(text).map(|upload| Self(upload.id))
    }

    fn id(&self) -> Option<&str> {
        Some(&self.0)
    }
}

/// An upload that is complete: the file it became.
struct Completed(RemoteFile);

impl Object for Completed {
    const LACKS: &'static str = "it lacks the `file` that the upload became";

    fn read(text: &str) -> Option<Self> {
        RemoteFile::read(Raw::of(text)?.members.get("file")?).map(Self)
    }

    fn id(&self) -> Option<&str> {
        Some(&self.0.id)
    }
}

impl Provider {
    /// Uploads a file of up to 8 GB in parts. `progress` is told how many of its bytes are gone.
    ///
    /// # Errors
    ///
    /// What stood in the way. A provider without `/uploads` refuses with 404, 405 or 501.
    pub async fn upload_in_parts(
        &self,
        upload: &Upload,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Called<RemoteFile> {
        if upload.length > UPLOAD_BYTES_MAX {
            let message = format!("the file has {} bytes, more than the 8 GB of an upload", upload.length);
            return Err(Box::new(unanswerable("too_large", message)));
        }
        let beginning = Beginning {
            filename: &upload.name,
            purpose: &upload.purpose,
            bytes: upload.length,
            mime_type: mime_type(&upload.name),
            expires_after: upload
                .expires_after
                .map(|after| Expiry { anchor: "created_at", seconds: after.as_secs() }),
        };
        let Begun(id) =
            self.post(self.api.resource(PATH), Some(json(&beginning)), Effect::Idempotent).await?;
        let file = self.send_parts(&id, upload, progress).await;
        if file.is_err() {
            // It would go away by itself after an hour; why it failed is what counts.
            let url = self.object_url(PATH, &id, "/cancel")?;
            drop(self.ask(Method::POST, url, None, Effect::Idempotent).await);
        }
        file
    }

    async fn send_parts(
        &self,
        id: &str,
        upload: &Upload,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Called<RemoteFile> {
        let url = self.object_url(PATH, id, "/parts")?;
        let mut parts = Vec::new();
        let mut offset = 0;
        while offset < upload.length {
            let length = PART_BYTES_MAX.min(upload.length - offset);
            let form = self.form(upload);
            let mut request = self.request(Method::POST, url.clone());
            request.headers.insert(CONTENT_TYPE, form.content_type());
            let range = Range { file: Arc::clone(&upload.file), offset, length };
            request.body = form.with_file("data", &upload.name, range);
            let Begun(part) =
                self.transfer(request, &|bytes| progress(offset + bytes), Effect::Idempotent).await?;
            parts.push(part);
            offset += length;
        }
        let body = json(&Completion { part_ids: &parts });
        let url = self.object_url(PATH, id, "/complete")?;
        let Completed(file) = self.post(url, Some(body), Effect::Creates).await?;
        Ok(file)
    }
}

/// The provider takes a file in parts only if its type fits its purpose.
fn mime_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase()).as_deref() {
        Some("jsonl") => "text/jsonl",
        Some("json") => "application/json",
        Some("csv") => "text/csv",
        Some("txt") => "text/plain",
        Some("md") => "text/markdown",
        Some("pdf") => "application/pdf",
        Some(_) | None => "application/octet-stream",
    }
}
