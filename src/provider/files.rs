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
use crate::provider::list::{Page, Walked, with_query};
use crate::provider::multipart::{Form, Range};
use crate::provider::{HttpReply, HttpRequest, Provider, Sink, Transfer};

/// What OpenAI takes as one upload: 512 MB, in the smaller reading of the word.
pub const SINGLE_UPLOAD_BYTES_MAX: u64 = 512_000_000;

/// Files asked for at a time. OpenAI would give 10,000; this is what every server allows.
const PAGE_ITEMS: u32 = 100;

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

/// What could be read of a list of files.
#[derive(Clone, Debug)]
pub struct AllFiles {
    pub files: Vec<RemoteFile>,
    /// False if the provider has more of them, and no way to them or too many pages.
    pub is_whole: bool,
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
        let mut request = self.request(Method::POST, self.access().api.resource(PATH));
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

    /// Every file, page by page, as far as the list can be read.
    pub async fn all_files(&self, query: &FileQuery) -> Called<AllFiles> {
        let mut files = Vec::new();
        let walked = self.walk(self.list_url(query), |file| {
            files.push(file);
            ControlFlow::<()>::Continue(())
        });
        let is_whole = walked.await? == Walked::Whole;
        Ok(AllFiles { files, is_whole })
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
            request.reach = reach(&url, std::iter::once(&self.access().settings.base_url))
                .map_err(|error| not_followed(&error))?;
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
            .fold(self.access().api.resource(PATH), |url, (name, value)| with_query(url, name, value))
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::provider::refused_with;
    use crate::provider::testing::{CANARY, Listener, http, provider};

    fn upload(content: &[u8], expires_after: Option<Duration>) -> Upload {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Upload {
            name: "train.jsonl".to_owned(),
            purpose: "fine-tune".to_owned(),
            file: Arc::new(file),
            length: u64::try_from(content.len()).unwrap(),
            expires_after,
        }
    }

    const FILE: &str = r#"{
        "id": "file-1", "object": "file", "bytes": 6, "created_at": 1700000000, "expires_at": 1700003600,
        "filename": "train.jsonl", "purpose": "fine-tune", "status": "error", "status_details": "bad line", "new": 1
    }"#;

    #[tokio::test]
    async fn an_upload_is_a_form_with_its_purpose_first() {
        let server = Listener::new(&http("200 OK", "", FILE)).await;
        let moved = Mutex::new(Vec::new());
        let upload = upload(b"{\"a\"}\n", Some(Duration::from_hours(1)));
        let progress = |bytes| moved.lock().unwrap().push(bytes);
        let file = provider(&server).upload(&upload, &progress).await.unwrap();
        assert_eq!(
            (file.id.as_str(), file.bytes, file.status.as_deref()),
            ("file-1", Some(6), Some("error"))
        );
        assert_eq!(file.created_at, Some(Timestamp::from_millis(1_700_000_000_000)));
        assert_eq!(file.expires_at, Some(Timestamp::from_millis(1_700_003_600_000)));
        assert_eq!(file.status_details.as_deref(), Some("bad line"));
        assert!(!file.raw.get().contains('\n') && file.raw.get().contains(r#""new": 1"#), "{}", file.raw);
        assert_eq!(moved.into_inner().unwrap().last(), Some(&6));
        let sent = server.requests().pop().unwrap();
        assert!(sent.starts_with("POST /v1/files HTTP/1.1\r\n"), "{sent}");
        assert!(sent.contains("content-type: multipart/form-data; boundary=batchd"), "{sent}");
        let marks = [
            "name=\"purpose\"\r\n\r\nfine-tune\r\n",
            "name=\"expires_after[anchor]\"\r\n\r\ncreated_at\r\n",
            "name=\"expires_after[seconds]\"\r\n\r\n3600\r\n",
            "name=\"file\"; filename=\"train.jsonl\"\r\nContent-Type: application/octet-stream\r\n\r\n{\"a\"}\n\r\n",
        ];
        let found: Vec<usize> = marks.iter().map(|mark| sent.find(mark).expect(mark)).collect();
        assert!(found.is_sorted(), "{sent}");
    }

    #[tokio::test]
    async fn a_lost_upload_may_have_arrived_and_one_whose_file_shrank_has_not() {
        let server = Listener::new(b"").await;
        let error = *provider(&server).upload(&upload(b"abc", None), &|_| {}).await.unwrap_err();
        assert!(matches!(&error, Outcome::Failed(failure) if failure.maybe_paid), "{error:?}");
        let shrunk = Upload { length: 4, ..upload(b"abc", None) };
        let error = *provider(&server).upload(&shrunk, &|_| {}).await.unwrap_err();
        let Outcome::Failed(failure) = error else { panic!("{error:?}") };
        assert_eq!((failure.code, failure.maybe_paid), ("file_error", false));
    }

    #[test]
    fn files_are_read_however_little_a_server_says() {
        let bare = RemoteFile::read(r#"{"id":"file-1","bytes":null,"status":null,"purpose":7}"#).unwrap();
        assert_eq!((bare.bytes, bare.status, bare.purpose.as_str()), (None, None, ""));
        for text in ["{}", r#"{"id":7}"#, r#"{"id":""}"#, "[]", ""] {
            assert!(RemoteFile::read(text).is_none(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_file_is_found_by_name_and_purpose_over_all_pages() {
        let pages = [
            r#"{"data":[{"id":"1","filename":"x","purpose":"fine-tune"},{"id":"2","filename":"y","purpose":"batch"}],"has_more":true}"#,
            r#"{"data":[{"id":"3","filename":"y","purpose":"fine-tune"},{"id":"4","filename":"y"}],"has_more":false}"#,
        ];
        let replies = || pages.iter().map(|page| http("200 OK", "", page)).collect();
        let server = Listener::with_replies(replies()).await;
        let found = provider(&server).find_file("y", "fine-tune").await.unwrap();
        assert_eq!(found.map(|file| file.id).as_deref(), Some("3"));
        let asked = server.requests();
        let first = "GET /v1/files?purpose=fine-tune&limit=100&order=desc HTTP";
        assert!(asked[0].starts_with(first) && asked[1].contains("&after=2 HTTP"), "{asked:?}");
        let server = Listener::with_replies(replies()).await;
        assert!(provider(&server).find_file("z", "fine-tune").await.unwrap().is_none());
        let server = Listener::new(&http("404 Not Found", "", "")).await;
        let error = provider(&server).find_file("z", "fine-tune").await.unwrap_err();
        assert_eq!(refused_with(&error), Some(404));
    }

    #[tokio::test]
    async fn half_a_list_does_not_prove_that_a_file_is_absent() {
        let page = r#"{"data":[{"id":"1","filename":"x","purpose":"batch"}],"has_more":true}"#;
        let server = Listener::new(&http("200 OK", "", page)).await;
        let error = *provider(&server).find_file("y", "batch").await.unwrap_err();
        assert!(matches!(error, Outcome::Unanswerable(_)), "{error:?}");
        assert_eq!(server.requests().len(), 2);
    }

    #[tokio::test]
    async fn files_are_listed_shown_and_deleted() {
        let list = format!(r#"{{"data":[{FILE}],"has_more":false}}"#);
        let replies = [&list, &list, FILE, r#"{"id":"file-1","deleted":true}"#];
        let server = Listener::with_replies(replies.map(|reply| http("200 OK", "", reply)).into()).await;
        let provider = provider(&server);
        let query = FileQuery {
            purpose: Some("batch".to_owned()),
            limit: Some(3),
            order: ListOrder::OldestFirst,
            after: Some("file-0".to_owned()),
        };
        let page = provider.files(&query).await.unwrap();
        assert_eq!((page.items.len(), page.has_more), (1, Some(false)));
        assert_eq!(page.last_id.as_deref(), Some("file-1"));
        let all = provider.all_files(&FileQuery::default()).await.unwrap();
        assert_eq!((all.files.len(), all.is_whole), (1, true));
        assert_eq!(provider.file("file-1").await.unwrap().filename, "train.jsonl");
        provider.delete_file("file-1").await.unwrap();
        assert_eq!(
            server.first_lines(),
            [
                "GET /v1/files?purpose=batch&limit=3&order=asc&after=file-0 HTTP/1.1",
                "GET /v1/files?order=desc HTTP/1.1",
                "GET /v1/files/file-1 HTTP/1.1",
                "DELETE /v1/files/file-1 HTTP/1.1",
            ]
        );
    }

    async fn content(server: &Listener, max: u64) -> (Called<u64>, Vec<u8>) {
        let mut content = Vec::new();
        let result = provider(server).file_content("file-1", &mut content, max, &|_| {}).await;
        (result, content)
    }

    #[tokio::test]
    async fn content_arrives_up_to_its_bound() {
        let server = Listener::new(&http("200 OK", "", "0123456789")).await;
        let (result, bytes) = content(&server, 10).await;
        assert_eq!((result.unwrap(), &bytes[..]), (10, &b"0123456789"[..]));
        assert_eq!(server.first_lines(), ["GET /v1/files/file-1/content HTTP/1.1"]);
        let (result, _) = content(&server, 9).await;
        let error = *result.unwrap_err();
        assert!(matches!(&error, Outcome::Unanswerable(error) if error.code == "too_large"), "{error:?}");
    }

    #[tokio::test]
    async fn content_may_lie_on_another_port_which_gets_no_key() {
        let store = Listener::new(&http("200 OK", "", "abc")).await;
        let there = format!("location: http://{}/blob?sig=1\r\n", store.address());
        let server = Listener::new(&http("302 Found", &there, "")).await;
        let (result, bytes) = content(&server, 10).await;
        assert_eq!((result.unwrap(), &bytes[..]), (3, &b"abc"[..]));
        assert!(server.requests()[0].contains(CANARY));
        let sent = store.requests().pop().unwrap();
        assert!(sent.starts_with("GET /blob?sig=1 HTTP/1.1\r\n") && !sent.contains("CANARY"), "{sent}");
    }

    #[tokio::test]
    async fn redirects_that_lead_inside_or_round_in_circles_are_refused() {
        let inside = Listener::new(&http("200 OK", "", "secret")).await;
        let port = inside.address().port();
        for (target, asked) in [
            (format!("http://localhost:{port}/"), 1), // a name that is not the provider's, and not public
            ("file:///etc/passwd".to_owned(), 1),
            ("http://[".to_owned(), 1),
            ("http://user:password@127.0.0.1/".to_owned(), 1),
            ("/v1/files/file-1/content".to_owned(), 4),
        ] {
            let server = Listener::new(&http("307 Go", &format!("location: {target}\r\n"), "")).await;
            let (result, bytes) = content(&server, 10).await;
            assert!(result.is_err() && bytes.is_empty(), "{target}: {result:?}");
            assert_eq!(server.requests().len(), asked, "{target}");
        }
        assert_eq!(inside.requests().len(), 0);
        let url = "https://a/x".parse().unwrap();
        let headers = [(LOCATION, "http://a/y".parse().unwrap())].into_iter().collect();
        let reply = HttpReply { status: 302, headers, body: bytes::Bytes::new() };
        assert!(target(&url, Some(&reply)).is_err());
    }
}
