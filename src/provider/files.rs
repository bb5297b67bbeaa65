//! The provider's files: up, down, listed, deleted.
//!
//! # Invariants
//!
//! - A file goes up and comes down in pieces: memory does not grow with it (P5), and the time-out counts from the
//!   last piece that moved.
//! - The content of a file may be handed out by another host. The key doesn't go there, it must be a public one, and
//!   https never falls to http.

use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, LOCATION};
use serde_json::value::RawValue;
use url::Url;

use crate::domain::{Outcome, Timestamp};
use crate::provider::ask::{Called, Effect, Object, Raw};
use crate::provider::classify::unanswerable;
use crate::provider::download::{DownloadError, REDIRECTS_MAX, reach};
use crate::provider::list::{Page, with_query};
use crate::provider::multipart::{Form, Range};
use crate::provider::{HttpReply, HttpRequest, Provider, Sink, Transfer};

/// What OpenAI takes as one upload: 512 MB, in the smaller reading of the word.
pub const SINGLE_UPLOAD_BYTES_MAX: u64 = 512_000_000;

/// Files asked for at a time. OpenAI would give 10,000, but other servers have less patience.
const PAGE_ITEMS: u32 = 1000;

const PATH: &str = "/files";

/// A file on this side that is to go up.
#[derive(Clone, Debug)]
pub struct Upload {
    /// What it is to be called there.
    pub name: String,
    /// `fine-tune`, `batch`, …
    pub purpose: String,
    pub file: Arc<File>,
    /// In bytes. A file that is shorter when it is read breaks the upload off; what it grew by is not sent.
    pub length: u64,
    /// From its creation on; the provider's own choice if there is none.
    pub expires_after: Option<Duration>,
}

/// A file as the provider describes it. Only the id is certain.
#[derive(Clone, Debug)]
pub struct RemoteFile {
    pub id: String,
    /// Empty where the provider doesn't say.
    pub filename: String,
    pub bytes: Option<u64>,
    pub created_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    /// Empty where the provider doesn't say.
    pub purpose: String,
    /// `uploaded`, `processed`, `error`, … Deprecated, and absent at many servers.
    pub status: Option<String>,
    /// Why it is of no use, where `status` says so.
    pub status_details: Option<String>,
    /// The whole object, on one line.
    pub raw: Box<RawValue>,
}

impl Object for RemoteFile {
    const LACKS: &'static str = "it lacks the `id` of a file";

    fn read(text: &str) -> Option<Self> {
        let file = Raw::of(text)?;
        Some(Self {
            filename: file.text("filename").unwrap_or_default(),
            bytes: file.members.number("bytes"),
            created_at: file.members.time("created_at"),
            expires_at: file.members.time("expires_at"),
            purpose: file.text("purpose").unwrap_or_default(),
            status: file.text("status"),
            status_details: file.text("status_details"),
            id: file.id,
            raw: file.json,
        })
    }

    fn id(&self) -> Option<&str> {
        Some(&self.id)
    }
}

/// Which files to list, and in what order.
#[derive(Clone, Debug, Default)]
pub struct FileQuery {
    pub purpose: Option<String>,
    /// Files on a page; the provider's own choice if there is none.
    pub limit: Option<u32>,
    pub order: ListOrder,
    /// The last id of the page before.
    pub after: Option<String>,
}

/// By the time of creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListOrder {
    #[default]
    NewestFirst,
    OldestFirst,
}

impl Provider {
    /// Uploads a file in one request. `progress` is told how many of its bytes are gone.
    ///
    /// # Errors
    ///
    /// What stood in the way; if it may have arrived all the same, the failure is `maybe_paid`, and
    /// [`Provider::find_file`] tells.
    pub async fn upload(&self, upload: &Upload, progress: &(dyn Fn(u64) + Sync)) -> Called<RemoteFile> {
        let mut form = self.form(upload).field("purpose", &upload.purpose);
        if let Some(after) = upload.expires_after {
            form = form
                .field("expires_after[anchor]", "created_at")
                .field("expires_after[seconds]", &after.as_secs().to_string());
        }
        let range = Range { file: Arc::clone(&upload.file), offset: 0, length: upload.length };
        let mut request = self.request(Method::POST, self.api.resource(PATH));
        request.headers.insert(CONTENT_TYPE, form.content_type());
        request.body = form.with_file("file", &upload.name, range);
        self.transfer(request, progress, Effect::Creates).await
    }

    /// Sends a file, or a part of one, and gets an object back.
    pub(super) async fn transfer<T: Object>(
        &self,
        request: HttpRequest,
        progress: &(dyn Fn(u64) + Sync),
        effect: Effect,
    ) -> Called<T> {
        let result = self.transport.transfer(request, Transfer { sink: None, progress }).await;
        let reply = self.judge(result, effect)?;
        self.object(&reply, effect)
    }

    /// An empty form for a part of `upload`.
    pub(super) fn form(&self, upload: &Upload) -> Form {
        Form::new(&format!("{} {} {}", upload.name, upload.length, self.clock.now()))
    }

    pub async fn file(&self, id: &str) -> Called<RemoteFile> {
        self.get(self.object_url(PATH, id, "")?).await
    }

    /// A page of the list of files.
    pub async fn files(&self, query: &FileQuery) -> Called<Page<RemoteFile>> {
        self.page(self.list_url(query)).await
    }

    /// Every file, page by page. A list that has no end ends in an error.
    pub async fn all_files(&self, query: &FileQuery) -> Called<Vec<RemoteFile>> {
        let mut files = Vec::new();
        let walked = self.walk(self.list_url(query), |file| {
            files.push(file);
            ControlFlow::<()>::Continue(())
        });
        walked.await?.found("files")?;
        Ok(files)
    }

    /// Looks for a file by its name and purpose; the newest, if there are more of them.
    pub async fn find_file(&self, name: &str, purpose: &str) -> Called<Option<RemoteFile>> {
        let query =
            FileQuery { purpose: Some(purpose.to_owned()), limit: Some(PAGE_ITEMS), ..FileQuery::default() };
        let walked = self.walk(self.list_url(&query), |file: RemoteFile| {
            // A server that doesn't know the query lists files of every purpose; one that says none means ours.
            let fits = file.filename == name && (file.purpose == purpose || file.purpose.is_empty());
            if fits { ControlFlow::Break(file) } else { ControlFlow::Continue(()) }
        });
        walked.await?.found("files")
    }

    pub async fn delete_file(&self, id: &str) -> Called<()> {
        let url = self.object_url(PATH, id, "")?;
        self.ask(Method::DELETE, url, None, Effect::Idempotent).await.map(drop)
    }

    /// Writes the content of a file into `sink` as it comes, at most `max` bytes, and says how many it was. After an
    /// error `sink` may hold a part of it.
    pub async fn file_content(
        &self,
        id: &str,
        sink: &mut (dyn Write + Send),
        max: u64,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Called<u64> {
        let mut url = self.object_url(PATH, id, "/content")?;
        let written = AtomicU64::new(0);
        let counted = |bytes| {
            written.store(bytes, Ordering::Relaxed);
            progress(bytes);
        };
        for _ in 0..=REDIRECTS_MAX {
            let mut request = self.request(Method::GET, url.clone());
            request.reach = reach(&url, &self.settings.base_url).map_err(|error| not_followed(&error))?;
            let transfer = Transfer { sink: Some(Sink { write: &mut *sink, max }), progress: &counted };
            let result = self.transport.transfer(request, transfer).await;
            if let Some(next) = target(&url, result.as_ref().ok()).map_err(|error| not_followed(&error))? {
                url = next;
                continue;
            }
            self.judge(result, Effect::Idempotent)?;
            return Ok(written.load(Ordering::Relaxed));
        }
        Err(not_followed(&DownloadError::Refused(format!("more than {REDIRECTS_MAX} redirects"))).into())
    }

    fn list_url(&self, query: &FileQuery) -> Url {
        let order = match query.order {
            ListOrder::NewestFirst => "desc",
            ListOrder::OldestFirst => "asc",
        };
        let limit = query.limit.map(|limit| limit.to_string());
        let members = [
            ("purpose", query.purpose.as_deref()),
            ("limit", limit.as_deref()),
            ("order", Some(order)),
            ("after", query.after.as_deref()),
        ];
        members
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .fold(self.api.resource(PATH), |url, (name, value)| with_query(url, name, value))
    }
}

/// Where `reply`, from `url`, sends us; none if it is no redirect.
fn target(url: &Url, reply: Option<&HttpReply>) -> Result<Option<Url>, DownloadError> {
    let Some(reply) = reply.filter(|reply| matches!(reply.status, 301 | 302 | 303 | 307 | 308)) else {
        return Ok(None);
    };
    let refused = |why: &str| DownloadError::Refused(why.to_owned());
    let location = reply.headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| refused("a redirect without a target"))?;
    let next = url.join(location).map_err(|error| refused(&error.to_string()))?;
    if url.scheme() == "https" && next.scheme() != "https" {
        return Err(refused("it redirects from https to http"));
    }
    Ok(Some(next))
}

fn not_followed(error: &DownloadError) -> Outcome {
    unanswerable("redirect_refused", error.to_string())
}
