//! Fine-tunes at the provider, over both interfaces: today's jobs, and the fine-tunes of 2023.
//!
//! Both are read into one [`RemoteTuning`]. Servers differ in everything but the id, so all else may be absent, and a
//! healthy fine-tune may carry an `error` of nulls: it has failed only when its `status` says so.

use std::ops::ControlFlow;

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::domain::{Timestamp, TuningApi};
use crate::provider::Provider;
use crate::provider::ask::{Called, Effect, Object, Raw, one_line};
use crate::provider::classify::unanswerable;
use crate::provider::closed::not_the_key;
use crate::provider::json::Members;
use crate::provider::list::{Walked, with_query};

/// Asked for at a time: what every server allows.
const PAGE_ITEMS: &str = "100";

/// A fine-tune as the provider describes it. Only the id is certain.
#[derive(Clone, Debug)]
pub struct RemoteTuning {
    pub id: String,
    pub status: TuningStatus,
    /// The base model.
    pub model: Option<String>,
    /// What it made, once it has succeeded.
    pub fine_tuned_model: Option<String>,
    pub trained_tokens: Option<u64>,
    /// Why it failed, where the provider says so.
    pub error: Option<TuningError>,
    /// Ids.
    pub result_files: Vec<String>,
    /// Id.
    pub training_file: Option<String>,
    pub created_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// When it may be done, where the provider says so.
    pub estimated_finish: Option<Timestamp>,
    /// The whole object, on one line.
    pub raw: Box<RawValue>,
}

/// Where a fine-tune stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TuningStatus {
    /// Accepted, checked or queued.
    Pending,
    /// At work, or stopped for a while.
    Running,
    Succeeded,
    Failed,
    Cancelled,
    /// A word that nobody knows yet; empty where the provider says none.
    Unknown(String),
}

/// Why a fine-tune failed, in the provider's words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TuningError {
    /// May be empty, as may be the others.
    pub code: String,
    pub message: String,
    pub param: Option<String>,
}

/// One thing that happened to a fine-tune.
#[derive(Clone, Debug)]
pub struct TuningEvent {
    pub id: Option<String>,
    pub created_at: Option<Timestamp>,
    /// `info`, `warn` or `error`, as far as the provider says.
    pub level: String,
    pub message: String,
    /// The whole object, on one line.
    pub raw: Box<RawValue>,
}

/// How to know a fine-tune again whose id was lost with a reply.
#[derive(Clone, Copy, Debug)]
pub struct TuningMark<'a> {
    /// A pair that was put into its metadata. The legacy interface has none, and some servers drop it.
    pub metadata: (&'a str, &'a str),
    /// The id of its training file, only if that was uploaded for it alone: by a file that others may use, too, their
    /// fine-tunes would be taken for it.
    pub training_file: Option<&'a str>,
}

impl TuningStatus {
    /// Reads a provider's word.
    pub fn parse(word: &str) -> Self {
        let plain: String = word.chars().filter(char::is_ascii_alphabetic).collect();
        match plain.to_ascii_lowercase().as_str() {
            // The 2023 documents say `created`, the server of then said `pending`; `notRunning` is Azure's.
            "pending" | "created" | "validatingfiles" | "validating" | "queued" | "notrunning"
            | "notstarted" | "submitted" => Self::Pending,
            "running" | "inprogress" | "pausing" | "paused" | "resuming" | "cancelling" | "canceling" => {
                Self::Running
            }
            "succeeded" | "successed" | "success" | "completed" => Self::Succeeded,
            "failed" => Self::Failed,
            "cancelled" | "canceled" => Self::Cancelled,
            _ => Self::Unknown(word.to_owned()),
        }
    }

    /// Whether it stays so.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

impl RemoteTuning {
    /// Reads an object that was kept; none if it is no fine-tune.
    pub fn from_json(text: &str) -> Option<Self> {
        Self::read(text)
    }

    /// The events that the object holds, as legacy ones do, oldest first, each on one line.
    pub fn events(&self) -> Vec<Box<RawValue>> {
        let members = Members::of(self.raw.get()).unwrap_or_default();
        let events = members.get("events").and_then(|text| serde_json::from_str::<Vec<&RawValue>>(text).ok());
        events.unwrap_or_default().into_iter().map(ToOwned::to_owned).collect()
    }

    /// The value of `key` in its metadata.
    pub fn metadata(&self, key: &str) -> Option<String> {
        Members::of(self.raw.get())?.object("metadata")?.string(key).map(std::borrow::Cow::into_owned)
    }

    fn is_marked(&self, mark: &TuningMark<'_>) -> Option<Likeness> {
        let (key, value) = mark.metadata;
        match self.metadata(key) {
            Some(found) => (found == value).then_some(Likeness::Certain),
            None => (mark.training_file? == self.training_file.as_deref()?).then_some(Likeness::ByFile),
        }
    }
}

enum Likeness {
    Certain,
    ByFile,
}

impl Object for RemoteTuning {
    const LACKS: &'static str = "it lacks the `id` of a fine-tune";

    fn read(text: &str) -> Option<Self> {
        let tuning = Raw::of(text)?;
        let members = &tuning.members;
        let status = TuningStatus::parse(&tuning.text("status").unwrap_or_default());
        let first = |name| members.ids(name).into_iter().next();
        Some(Self {
            model: tuning.text("model"),
            fine_tuned_model: tuning.text("fine_tuned_model"),
            trained_tokens: members.number("trained_tokens"),
            error: error(members).or_else(|| last_words(members).filter(|_| status == TuningStatus::Failed)),
            result_files: members.ids("result_files"),
            training_file: first("training_file").or_else(|| first("training_files")),
            created_at: members.time("created_at"),
            finished_at: members.time("finished_at"),
            estimated_finish: members.time("estimated_finish"),
            status,
            id: tuning.id,
            raw: tuning.json,
        })
    }

    fn id(&self) -> Option<&str> {
        Some(&self.id)
    }
}

/// What `error` says, if it says anything.
fn error(members: &Members<'_>) -> Option<TuningError> {
    if let Some(message) = members.string("error").filter(|text| !text.is_empty()) {
        return Some(TuningError { message: message.into_owned(), ..TuningError::default() });
    }
    let error = members.object("error")?;
    let text = |name| error.string(name).map(std::borrow::Cow::into_owned).filter(|text| !text.is_empty());
    let found = TuningError {
        code: text("code").unwrap_or_default(),
        message: text("message").unwrap_or_default(),
        param: text("param"),
    };
    (found != TuningError::default()).then_some(found)
}

/// Why a legacy fine-tune failed stands in the last of its events that is an error.
fn last_words(members: &Members<'_>) -> Option<TuningError> {
    let events = members.objects("events")?;
    let is_error = |event: &&Members<'_>| event.string("level").is_some_and(|level| level == "error");
    let message = events.iter().rev().find(is_error)?.string("message")?.into_owned();
    Some(TuningError { message, ..TuningError::default() })
}

impl Object for TuningEvent {
    const LACKS: &'static str = "it is no event";

    fn read(text: &str) -> Option<Self> {
        let members = Members::of(text)?;
        let text_of = |name| members.string(name).map(std::borrow::Cow::into_owned);
        Some(Self {
            id: text_of("id"),
            created_at: members.time("created_at"),
            level: text_of("level").unwrap_or_default(),
            message: text_of("message").unwrap_or_default(),
            raw: one_line(text),
        })
    }

    fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }
}

impl Provider {
    /// Begins a fine-tune. `body` is JSON as the interface has it.
    ///
    /// # Errors
    ///
    /// What stood in the way; if it may have begun all the same, the failure is `maybe_paid`, and
    /// [`Provider::find_fine_tune`] tells. A refusal because the provider fine-tunes no more is
    /// [`Outcome::Refused`](crate::domain::Outcome::Refused), also where its status is that of a refused key:
    /// [`Provider::why_no_fine_tuning`] words it.
    pub async fn create_fine_tune(&self, api: TuningApi, body: Bytes) -> Called<RemoteTuning> {
        let url = self.access().api.resource(api.path());
        self.post(url, Some(body), Effect::Creates).await.map_err(|outcome| not_the_key(*outcome).into())
    }

    pub async fn fine_tune(&self, api: TuningApi, id: &str) -> Called<RemoteTuning> {
        self.get(self.object_url(api.path(), id, "")?).await
    }

    /// Asks the provider to end a fine-tune; the object tells whether it has. One that has ended is refused.
    pub async fn cancel_fine_tune(&self, api: TuningApi, id: &str) -> Called<RemoteTuning> {
        self.post(self.object_url(api.path(), id, "/cancel")?, None, Effect::Idempotent).await
    }

    /// Looks for a fine-tune whose id was lost with a reply. One whose metadata say so goes before one that is known
    /// by its file alone, and of those the newest.
    pub async fn find_fine_tune(
        &self,
        api: TuningApi,
        mark: &TuningMark<'_>,
    ) -> Called<Option<RemoteTuning>> {
        let url = self.access().api.resource(api.path());
        let url = match api {
            TuningApi::Jobs => with_query(url, "limit", PAGE_ITEMS),
            TuningApi::Legacy => url,
        };
        let mut by_file = None;
        let walked = self.walk(url, |tuning: RemoteTuning| match tuning.is_marked(mark) {
            Some(Likeness::Certain) => ControlFlow::Break(tuning),
            Some(Likeness::ByFile) => {
                by_file.get_or_insert(tuning);
                ControlFlow::Continue(())
            }
            None => ControlFlow::Continue(()),
        });
        match walked.await?.found("fine-tunes") {
            Ok(None) => Ok(by_file),
            Err(_) if by_file.is_some() => Ok(by_file),
            found => found,
        }
    }

    /// Looks for a fine-tune whose id was lost with a reply, and that bears no mark: it was created at `since` or
    /// later, from this file and for this base model.
    ///
    /// # Errors
    ///
    /// What stood in the way; also if there are several, of which one can't be told from the other.
    pub async fn find_fine_tune_since(
        &self,
        api: TuningApi,
        training_file: &str,
        model: &str,
        since: Timestamp,
    ) -> Called<Option<RemoteTuning>> {
        let mut found = Vec::new();
        let walked = self.walk(self.access().api.resource(api.path()), |tuning: RemoteTuning| {
            let is_new = tuning.created_at.is_none_or(|created| created >= since);
            // It may be named with its date: `gpt-4o-mini-2024-07-18`.
            let is_of_model = tuning.model.as_deref().is_none_or(|known| known.starts_with(model));
            if is_new && is_of_model && tuning.training_file.as_deref() == Some(training_file) {
                found.push(tuning);
            }
            if found.len() > 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match walked.await? {
            Walked::Stopped(()) => {
                let message = format!("it has several fine-tunes of the file `{training_file}`");
                Err(Box::new(unanswerable("ambiguous", message)))
            }
            walked @ (Walked::Whole | Walked::Cut) => walked.found("fine-tunes").map(|_| found.pop()),
        }
    }

    /// What happened to a fine-tune, the oldest first; of a very long list the newest ten thousand.
    pub async fn fine_tune_events(&self, api: TuningApi, id: &str) -> Called<Vec<TuningEvent>> {
        let url = self.object_url(api.path(), id, "/events")?;
        let url = match api {
            TuningApi::Jobs => with_query(url, "limit", PAGE_ITEMS),
            TuningApi::Legacy => url,
        };
        let mut events: Vec<TuningEvent> = Vec::new();
        let walked = self.walk(url, |event| {
            events.push(event);
            ControlFlow::<()>::Continue(())
        });
        walked.await?; // half of the events are better than none
        let times =
            events.first().map(|event| event.created_at).zip(events.last().map(|event| event.created_at));
        let is_newest_first = match api {
            TuningApi::Jobs => times.is_none_or(|(first, last)| first >= last),
            TuningApi::Legacy => times.is_some_and(|(first, last)| first > last),
        };
        if is_newest_first {
            events.reverse();
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Outcome;
    use crate::provider::refused_with;
    use crate::provider::testing::{Listener, http, provider};

    /// As OpenAI's own examples have it: a healthy job with an `error`.
    const JOB: &str = r#"{"object":"fine_tuning.job","id":"ftjob-1","model":"gpt-4o-mini","created_at":1721764800,"finished_at":null,"estimated_finish":1721765800,"fine_tuned_model":null,"result_files":["file-9"],"status":"queued","validation_file":null,"training_file":"file-1","trained_tokens":null,"error":{},"metadata":{"batchd_job":"j1"}}"#;

    const LEGACY: &str = r#"{"id":"ft-1","object":"fine-tune","model":"curie","created_at":1614807352,"fine_tuned_model":"curie:ft-a-2021-03-03","status":"succeeded","training_files":[{"id":"file-1","object":"file"}],"validation_files":[],"result_files":[{"id":"file-9"}],"events":[]}"#;

    fn tuning(json: &str) -> RemoteTuning {
        RemoteTuning::read(json).unwrap()
    }

    #[test]
    fn both_interfaces_are_read_into_one() {
        let job = tuning(JOB);
        assert_eq!((job.id.as_str(), &job.status), ("ftjob-1", &TuningStatus::Pending));
        assert_eq!((job.training_file.as_deref(), job.result_files), (Some("file-1"), vec!["file-9".into()]));
        assert_eq!(job.estimated_finish, Some(Timestamp::from_millis(1_721_765_800_000)));
        assert_eq!((job.error, job.trained_tokens, job.finished_at), (None, None, None));
        assert_eq!(job.raw.get(), JOB);
        let job = tuning(JOB);
        assert_eq!((job.metadata("batchd_job").as_deref(), job.metadata("x")), (Some("j1"), None));
        let legacy = tuning(LEGACY);
        assert_eq!(legacy.fine_tuned_model.as_deref(), Some("curie:ft-a-2021-03-03"));
        assert_eq!(legacy.status, TuningStatus::Succeeded);
        assert_eq!(
            (legacy.training_file.as_deref(), legacy.result_files),
            (Some("file-1"), vec!["file-9".into()])
        );
        assert_eq!(tuning(r#"{"id":"x"}"#).status, TuningStatus::Unknown(String::new()));
    }

    #[test]
    fn only_the_status_says_that_a_fine_tune_has_failed() {
        let (running, failed) = (TuningStatus::Running, TuningStatus::Failed);
        for (members, status, message) in [
            (r#""status":"running","error":null"#, &running, None),
            (r#""status":"running","error":{"code":null,"message":null,"param":null}"#, &running, None),
            (r#""status":"running","error":{"code":"","message":""}"#, &running, None),
            (r#""status":"running","error":{"message":"odd"}"#, &running, Some("odd")),
            (r#""status":"failed","error":{"code":"c","message":"bad","param":"p"}"#, &failed, Some("bad")),
            (r#""status":"failed","error":"bad""#, &failed, Some("bad")),
            (r#""status":"failed""#, &failed, None),
            (
                r#""status":"failed","events":[{"level":"error","message":"a"},{"level":"error","message":"b"},{"level":"info","message":"c"}]"#,
                &failed,
                Some("b"),
            ),
            (r#""status":"running","events":[{"level":"error","message":"a"}]"#, &running, None),
        ] {
            let tuning = tuning(&format!(r#"{{"id":"x",{members}}}"#));
            assert_eq!(&tuning.status, status, "{members}");
            assert_eq!(tuning.error.map(|error| error.message).as_deref(), message, "{members}");
        }
    }

    #[test]
    fn every_servers_word_for_a_status_is_known() {
        for (words, status) in [
            (&["pending", "created", "validating_files", "queued", "notRunning"][..], TuningStatus::Pending),
            (&["running", "pausing", "paused", "RUNNING", "cancelling"], TuningStatus::Running),
            (&["succeeded", "Succeeded"], TuningStatus::Succeeded),
            (&["failed"], TuningStatus::Failed),
            (&["cancelled", "canceled"], TuningStatus::Cancelled),
        ] {
            for word in words {
                assert_eq!(TuningStatus::parse(word), status, "{word}");
            }
        }
        assert_eq!(TuningStatus::parse("dreaming"), TuningStatus::Unknown("dreaming".to_owned()));
        assert!(!TuningStatus::parse("dreaming").is_final() && TuningStatus::parse("canceled").is_final());
    }

    #[tokio::test]
    async fn fine_tunes_are_created_looked_at_and_cancelled_at_both_interfaces() {
        for (api, path) in [(TuningApi::Jobs, "fine_tuning/jobs"), (TuningApi::Legacy, "fine-tunes")] {
            let server = Listener::new(&http("200 OK", "", JOB)).await;
            let provider = provider(&server);
            let body = Bytes::from_static(br#"{"model":"m"}"#);
            assert_eq!(provider.create_fine_tune(api, body).await.unwrap().id, "ftjob-1");
            provider.fine_tune(api, "ftjob-1").await.unwrap();
            provider.cancel_fine_tune(api, "ftjob-1").await.unwrap();
            assert!(server.requests()[0].ends_with(r#"{"model":"m"}"#));
            assert_eq!(
                server.first_lines(),
                [
                    format!("POST /v1/{path} HTTP/1.1"),
                    format!("GET /v1/{path}/ftjob-1 HTTP/1.1"),
                    format!("POST /v1/{path}/ftjob-1/cancel HTTP/1.1"),
                ]
            );
        }
    }

    #[tokio::test]
    async fn errors_while_looking_never_may_have_cost_and_those_while_creating_may() {
        let server = Listener::new(b"").await;
        let provider = provider(&server);
        let looked = *provider.fine_tune(TuningApi::Jobs, "x").await.unwrap_err();
        assert!(matches!(&looked, Outcome::Failed(failure) if !failure.maybe_paid), "{looked:?}");
        let created = *provider.create_fine_tune(TuningApi::Jobs, Bytes::new()).await.unwrap_err();
        assert!(matches!(&created, Outcome::Failed(failure) if failure.maybe_paid), "{created:?}");
    }

    const MARK: TuningMark<'_> = TuningMark { metadata: ("batchd_job", "j1"), training_file: Some("file-1") };

    async fn server(pages: &[&str]) -> Listener {
        Listener::with_replies(pages.iter().map(|page| http("200 OK", "", page)).collect()).await
    }

    async fn find(api: TuningApi, pages: &[&str], mark: TuningMark<'_>) -> Called<Option<String>> {
        let server = server(pages).await;
        let found = provider(&server).find_fine_tune(api, &mark).await;
        let path = if api == TuningApi::Jobs { "fine_tuning/jobs?limit=100" } else { "fine-tunes" };
        assert_eq!(server.first_lines()[0], format!("GET /v1/{path} HTTP/1.1"));
        found.map(|found| found.map(|tuning| tuning.id))
    }

    #[tokio::test]
    async fn a_lost_fine_tune_is_found_by_its_metadata_before_its_file() {
        let by_file = r#"{"data":[{"id":"a","training_file":"file-1","metadata":{}},{"id":"b","training_file":"file-1","metadata":{"batchd_job":"other"}}],"has_more":true}"#;
        let certain = r#"{"data":[{"id":"c","training_file":"file-2","metadata":{"batchd_job":"j1"}}],"has_more":false}"#;
        let none = r#"{"data":[{"id":"d","training_file":"file-2"}],"has_more":false}"#;
        let jobs = TuningApi::Jobs;
        assert_eq!(find(jobs, &[by_file, certain], MARK).await.unwrap().as_deref(), Some("c"));
        assert_eq!(find(jobs, &[by_file, none], MARK).await.unwrap().as_deref(), Some("a"));
        assert_eq!(find(jobs, &[none], MARK).await.unwrap(), None);
        let shared = TuningMark { training_file: None, ..MARK };
        assert_eq!(find(jobs, &[by_file, none], shared).await.unwrap(), None);
        let cut = r#"{"data":[{"id":"d"}],"has_more":true}"#;
        assert!(find(jobs, &[cut], MARK).await.is_err(), "half a list proves nothing");
    }

    #[tokio::test]
    async fn a_lost_legacy_fine_tune_is_found_by_its_file() {
        let list = format!(r#"{{"object":"list","data":[{{"id":"ft-0","training_files":[]}},{LEGACY}]}}"#);
        assert_eq!(find(TuningApi::Legacy, &[&list], MARK).await.unwrap().as_deref(), Some("ft-1"));
    }

    async fn events(api: TuningApi, pages: &[&str]) -> Vec<String> {
        let server = server(pages).await;
        let events = provider(&server).fine_tune_events(api, "x").await.unwrap();
        events.into_iter().map(|event| event.message).collect()
    }

    #[tokio::test]
    async fn events_come_oldest_first_whatever_order_a_server_has() {
        let newest = r#"{"data":[{"id":"4","created_at":9,"message":"d"},{"id":"3","created_at":8,"message":"c"}],"has_more":true}"#;
        let older = r#"{"data":[{"id":"2","created_at":8,"message":"b"},{"id":"1","created_at":8,"message":"a"}],"has_more":false}"#;
        assert_eq!(events(TuningApi::Jobs, &[newest, older]).await, ["a", "b", "c", "d"]);
        let together = r#"{"data":[{"created_at":8,"message":"b"},{"created_at":8,"message":"a"}]}"#;
        assert_eq!(events(TuningApi::Jobs, &[together]).await, ["a", "b"]);
        assert_eq!(events(TuningApi::Legacy, &[together]).await, ["b", "a"]);
        let oldest = r#"{"data":[{"created_at":8,"message":"a"},{"created_at":9,"message":"b"}]}"#;
        assert_eq!(events(TuningApi::Jobs, &[oldest]).await, ["a", "b"]);
        assert_eq!(events(TuningApi::Legacy, &[r#"{"data":[]}"#]).await, [""; 0]);
        let endless = r#"{"data":[{"id":"1","message":"a"}],"has_more":true}"#;
        assert_eq!(events(TuningApi::Jobs, &[endless]).await, ["a"]);
    }

    #[tokio::test]
    async fn a_provider_that_fine_tunes_no_more_refuses_the_request_and_not_the_key() {
        let create = async |message: &str| {
            let body = format!(r#"{{"error":{{"message":"{message}","code":null}}}}"#);
            let server = Listener::new(&http("403 Forbidden", "", &body)).await;
            provider(&server).create_fine_tune(TuningApi::Jobs, Bytes::new()).await.unwrap_err()
        };
        let closed = create("Fine-tuning is no longer available to your organization").await;
        assert_eq!(refused_with(&closed), Some(403));
        let key = *create("IP not allowed").await;
        assert!(matches!(key, Outcome::Blocked(_)), "{key:?}");
    }
}
