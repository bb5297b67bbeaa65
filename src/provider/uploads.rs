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
        self.send_in_parts(upload, PART_BYTES_MAX, progress).await
    }

    async fn send_in_parts(
        &self,
        upload: &Upload,
        part_bytes: u64,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Called<RemoteFile> {
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
            self.post(self.access().api.resource(PATH), Some(json(&beginning)), Effect::Idempotent).await?;
        let file = self.send_parts(&id, upload, part_bytes, progress).await;
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
        part_bytes: u64,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Called<RemoteFile> {
        let url = self.object_url(PATH, id, "/parts")?;
        let mut parts = Vec::new();
        let mut offset = 0;
        while offset < upload.length {
            let length = part_bytes.min(upload.length - offset);
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

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::provider::refused_with;
    use crate::provider::testing::{Listener, http, provider};

    /// A file of `length` bytes that takes no room: zeros, and an `x` at its end.
    fn upload(length: u64) -> Upload {
        let mut file = tempfile::tempfile().unwrap();
        file.seek(SeekFrom::Start(length - 1)).unwrap();
        file.write_all(b"x").unwrap();
        Upload {
            name: "big.jsonl".to_owned(),
            purpose: "fine-tune".to_owned(),
            file: Arc::new(file),
            length,
            expires_after: None,
        }
    }

    async fn server(replies: &[(&str, &str)]) -> Listener {
        Listener::with_replies(replies.iter().map(|(status, body)| http(status, "", body)).collect()).await
    }

    #[tokio::test]
    async fn a_file_goes_up_in_parts_that_become_one_file() {
        let server = server(&[
            ("200 OK", r#"{"id":"upload_1","status":"pending"}"#),
            ("200 OK", r#"{"id":"part_1"}"#),
            ("200 OK", r#"{"id":"part_2"}"#),
            ("200 OK", r#"{"id":"upload_1","status":"completed","file":{"id":"file-1"}}"#),
        ])
        .await;
        let moved = Mutex::new(Vec::new());
        let mut upload = upload(10);
        upload.expires_after = Some(Duration::from_hours(1));
        let progress = |bytes| moved.lock().unwrap().push(bytes);
        let file = provider(&server).send_in_parts(&upload, 7, &progress).await;
        assert_eq!(file.unwrap().id, "file-1");
        let moved = moved.into_inner().unwrap();
        assert!(moved.is_sorted() && moved.contains(&7) && moved.last() == Some(&10), "{moved:?}");
        assert_eq!(
            server.first_lines(),
            [
                "POST /v1/uploads HTTP/1.1",
                "POST /v1/uploads/upload_1/parts HTTP/1.1",
                "POST /v1/uploads/upload_1/parts HTTP/1.1",
                "POST /v1/uploads/upload_1/complete HTTP/1.1",
            ]
        );
        let [begin, first, second, complete] = &server.requests()[..] else { panic!("four were asked") };
        let body = concat!(
            r#"{"filename":"big.jsonl","purpose":"fine-tune","bytes":10,"mime_type":"text/jsonl","#,
            r#""expires_after":{"anchor":"created_at","seconds":3600}}"#
        );
        assert!(begin.ends_with(body), "{begin}");
        assert!(first.contains("name=\"data\"; filename=\"big.jsonl\"\r\n"), "{first}");
        assert!(first.contains("\r\n\r\n\0\0\0\0\0\0\0\r\n--"), "{first}");
        assert!(second.contains("\r\n\r\n\0\0x\r\n--"), "{second}");
        assert!(complete.ends_with(r#"{"part_ids":["part_1","part_2"]}"#), "{complete}");
    }

    #[tokio::test]
    async fn an_upload_whose_part_fails_is_cancelled_and_says_why_it_failed() {
        let server = server(&[
            ("200 OK", r#"{"id":"upload_1"}"#),
            ("400 Bad Request", r#"{"error":{"message":"no more"}}"#),
            ("500 Oops", ""),
        ])
        .await;
        let error = provider(&server).upload_in_parts(&upload(3), &|_| {}).await.unwrap_err();
        assert_eq!(refused_with(&error), Some(400));
        assert_eq!(server.first_lines().last().unwrap(), "POST /v1/uploads/upload_1/cancel HTTP/1.1");
    }

    #[tokio::test]
    async fn a_provider_without_uploads_refuses_and_a_file_over_the_bound_is_not_begun() {
        let server = server(&[("404 Not Found", "")]).await;
        let error = provider(&server).upload_in_parts(&upload(3), &|_| {}).await.unwrap_err();
        assert_eq!((refused_with(&error), server.requests().len()), (Some(404), 1));
        let huge = Upload { length: UPLOAD_BYTES_MAX + 1, ..upload(1) };
        provider(&server).upload_in_parts(&huge, &|_| {}).await.unwrap_err();
        assert_eq!(server.requests().len(), 1);
    }
}
