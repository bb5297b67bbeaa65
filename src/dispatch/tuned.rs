//! The models that fine-tunes of batchd's own make: what `job:<name>` stands for when a request is about to be sent.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::dispatch::failure::Result;
use crate::domain::record::JournalLine;
use crate::domain::{Job, JobId, JobStatus, QueueName, TunedModel};
use crate::store::{self, Journal, Store};

/// What a model's name begins with that is the name of a fine-tune's job.
const PREFIX: &str = "job:";

/// What a fine-tune has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tuned {
    /// The name of its model.
    Model(String),
    /// Why there is none: a sentence for people.
    Failed(String),
    /// It has not ended yet.
    Open,
}

/// Remembers what was found: fine-tunes that have ended don't change.
#[derive(Debug, Default)]
pub(super) struct TunedModels(BTreeMap<JobId, Tuned>);

impl TunedModels {
    /// What `model` stands for in a request of `job`; none if it stands for itself.
    pub(super) async fn find(&mut self, store: &dyn Store, job: &Job, model: &str) -> Result<Option<Tuned>> {
        let Some(name) = model.strip_prefix(PREFIX) else { return Ok(None) };
        let maker = match job.settings.models.get(name) {
            Some(TunedModel::Named(model)) => return Ok(Some(Tuned::Model(model.clone()))),
            Some(TunedModel::Of(maker)) => *maker,
            None => return Ok(None),
        };
        if let Some(known) = self.0.get(&maker) {
            return Ok(Some(known.clone()));
        }
        let tuned = match come_to(store, maker).await? {
            Tuned::Failed(why) => Tuned::Failed(format!("the fine-tune `{name}` made no model: {why}")),
            tuned @ (Tuned::Model(_) | Tuned::Open) => tuned,
        };
        if tuned != Tuned::Open {
            self.0.insert(maker, tuned.clone());
        }
        Ok(Some(tuned))
    }
}

/// The queue by whose name the limits of `queue` are configured: that of the model it really asks, as far as that is
/// known.
pub(super) async fn limits_name(store: &dyn Store, queue: &QueueName) -> Result<QueueName> {
    let Some(model) = queue.model().filter(|model| model.starts_with(PREFIX)) else {
        return Ok(queue.clone());
    };
    let jobs = store.jobs().await?;
    let user = jobs.iter().find(|state| state.may_send() && state.job.queues.contains(queue));
    let Some(user) = user else { return Ok(queue.clone()) };
    match TunedModels::default().find(store, &user.job, model).await? {
        Some(Tuned::Model(model)) => Ok(QueueName::new(queue.provider(), Some(&model))),
        Some(Tuned::Failed(_) | Tuned::Open) | None => Ok(queue.clone()),
    }
}

async fn come_to(store: &dyn Store, maker: JobId) -> Result<Tuned> {
    let state = match store.job(maker).await {
        Ok(state) => state,
        Err(store::Error::NoSuchJob(_)) => {
            return Ok(Tuned::Failed("its job is not there any more".to_owned()));
        }
        Err(error) => return Err(error.into()),
    };
    if !state.status.is_final() && state.counts.open() > 0 {
        return Ok(Tuned::Open);
    }
    let journal = match store.journal(maker) {
        Ok(journal) => journal,
        Err(error @ store::Error::Closed(_)) => return Err(error.into()),
        Err(error) => return Ok(Tuned::Failed(format!("its record can't be read: {error}"))),
    };
    let record = tokio::task::spawn_blocking(move || first_record(journal)).await;
    let record = record.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    Ok(match record {
        Ok(Some(line)) => told_by(&line),
        Ok(None) => Tuned::Failed(without_record(&state.status)),
        Err(error) => Tuned::Failed(format!("its record can't be read: {error}")),
    })
}

/// The one record of a fine-tune, as it is published. Its length is bounded by the largest reply.
fn first_record(journal: Box<dyn Journal>) -> std::io::Result<Option<Vec<u8>>> {
    let mut journal = BufReader::new(journal);
    let mut line = Vec::new();
    while journal.read_until(b'\n', &mut line)? > 0 {
        if let Some(record) = JournalLine::parse(line.trim_ascii_end()) {
            return Ok(Some(record.published()));
        }
        line.clear();
    }
    Ok(None)
}

fn without_record(status: &JobStatus) -> String {
    match status {
        JobStatus::Cancelled => "it was cancelled".to_owned(),
        JobStatus::Expired => "its deadline passed".to_owned(),
        JobStatus::Failed { why } => why.clone(),
        JobStatus::InProgress
        | JobStatus::Paused { .. }
        | JobStatus::Held { .. }
        | JobStatus::Cancelling
        | JobStatus::Expiring
        | JobStatus::Finalizing
        | JobStatus::Completed => "it has no record".to_owned(),
    }
}

#[derive(Deserialize)]
struct Line {
    response: Option<Reply>,
    error: Option<Words>,
}

#[derive(Deserialize)]
struct Reply {
    status_code: u16,
    body: Body,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Body {
    Object {
        #[serde(default)]
        fine_tuned_model: Option<String>,
        #[serde(default)]
        error: Option<serde_json::Value>,
    },
    Other(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct Words {
    message: String,
}

/// What the record of a fine-tune says.
fn told_by(record: &[u8]) -> Tuned {
    let Ok(line) = serde_json::from_slice::<Line>(record) else {
        return Tuned::Failed("its record can't be read".to_owned());
    };
    if let Some(error) = line.error {
        return Tuned::Failed(error.message);
    }
    let (status, model, error) = match line.response {
        Some(Reply { status_code, body: Body::Object { fine_tuned_model, error } }) => {
            (status_code, fine_tuned_model, error)
        }
        Some(Reply { status_code, body: Body::Other(_) }) => (status_code, None, None),
        None => (0, None, None),
    };
    match model.filter(|model| !model.is_empty() && (200..300).contains(&status)) {
        Some(model) => Tuned::Model(model),
        None if (200..300).contains(&status) => {
            Tuned::Failed("it succeeded, and the provider names no model".to_owned())
        }
        None => {
            let words =
                error.as_ref().and_then(|error| error.get("message")).and_then(serde_json::Value::as_str);
            let words = words.map(|words| format!(": {words}")).unwrap_or_default();
            Tuned::Failed(format!("the provider refused it with {status}{words}"))
        }
    }
}

/// `body` with another `model`; every other byte stays.
pub(super) fn with_model(body: &RawValue, model: &str) -> Box<RawValue> {
    let text = body.get();
    let spans = spans_of_model(text);
    let name = serde_json::Value::from(model).to_string();
    let mut out = String::with_capacity(text.len() + name.len());
    let mut from = 0;
    for span in spans {
        out.push_str(text.get(from..span.start).unwrap_or_default());
        out.push_str(&name);
        from = span.end;
    }
    out.push_str(text.get(from..).unwrap_or_default());
    RawValue::from_string(out).unwrap_or_else(|_| body.to_owned())
}

/// Where the values of `model` stand: one, as the line was checked; but what is sent must not depend on that.
fn spans_of_model(text: &str) -> Vec<Range<usize>> {
    struct Spans {
        start: usize,
    }
    impl<'de> Visitor<'de> for Spans {
        type Value = Vec<Range<usize>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut spans = Vec::new();
            while let Some((key, value)) = map.next_entry::<String, &'de RawValue>()? {
                if key == "model" {
                    let start = value.get().as_ptr().addr() - self.start;
                    spans.push(start..start + value.get().len());
                }
            }
            Ok(spans)
        }
    }
    let spans = Spans { start: text.as_ptr().addr() };
    serde_json::Deserializer::from_str(text).deserialize_map(spans).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::domain::{JobSettings, Kind, Record, RecordError, RequestId, Response, Settlement};
    use crate::store::memory::MemoryStore;
    use crate::store::{Input, conformance};

    #[test]
    fn only_the_model_is_replaced_and_every_other_byte_stays() {
        for (body, expected) in [
            (r#"{"model":"job:x","n":1.0e5}"#, r#"{"model":"ft:\"a\"","n":1.0e5}"#),
            (
                r#"{ "a": {"model":"job:x"},  "mod\u0065l" :"job:x" }"#,
                r#"{ "a": {"model":"job:x"},  "mod\u0065l" :"ft:\"a\"" }"#,
            ),
            (r#"{"model":"job:x","model":"job:x"}"#, r#"{"model":"ft:\"a\"","model":"ft:\"a\""}"#),
            (r#"{"n":[1]}"#, r#"{"n":[1]}"#),
        ] {
            let body = RawValue::from_string(body.to_owned()).unwrap();
            assert_eq!(with_model(&body, "ft:\"a\"").get(), expected);
        }
    }

    struct World {
        store: Arc<dyn Store>,
        maker: Job,
        user: Job,
    }

    impl World {
        async fn new() -> Self {
            let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
            let maker = Job { kind: Kind::FineTune, ..conformance::job(1, 5, &["-"], 1) };
            store.put_job(maker.clone(), Input::Inline(vec![(0, Bytes::from_static(b"{}"))])).await.unwrap();
            let models = [
                ("x".to_owned(), TunedModel::Of(maker.id)),
                ("y".to_owned(), TunedModel::Named("n".to_owned())),
            ];
            let settings = JobSettings { models: models.into(), ..JobSettings::default() };
            let user = Job { settings, ..conformance::job(2, 5, &["job:x"], 1) };
            Self { store, maker, user }
        }

        async fn settle(&self, response: Option<serde_json::Value>, error: Option<&str>) {
            let lease = conformance::lease(&*self.store, "-", 1, conformance::NOW).await.pop().unwrap();
            let record = Record {
                request: RequestId { job: self.maker.id, index: 0 },
                custom_id: "x".to_owned(),
                response: response.map(|body| Response::new(200, String::new(), body.to_string().as_bytes())),
                error: error.map(|message| RecordError { code: "c".to_owned(), message: message.to_owned() }),
            };
            self.store.settle(lease, Settlement::Discard(record)).await.unwrap();
        }

        async fn found(&self, model: &str) -> Option<Tuned> {
            TunedModels::default().find(&*self.store, &self.user, model).await.unwrap()
        }
    }

    fn failed(why: &str) -> Tuned {
        Tuned::Failed(format!("the fine-tune `x` made no model: {why}"))
    }

    #[tokio::test]
    async fn a_model_is_what_the_record_of_its_fine_tune_says() {
        let world = World::new().await;
        assert_eq!(world.found("gpt").await, None);
        assert_eq!(world.found("job:other").await, None);
        assert_eq!(world.found("job:y").await, Some(Tuned::Model("n".to_owned())));
        let mut known = TunedModels::default();
        let open = known.find(&*world.store, &world.user, "job:x").await.unwrap();
        assert_eq!(open, Some(Tuned::Open));
        world.settle(Some(json!({"id": "ftjob-1", "fine_tuned_model": "ft:m", "error": {}})), None).await;
        let ended = known.find(&*world.store, &world.user, "job:x").await.unwrap();
        assert_eq!(ended, Some(Tuned::Model("ft:m".to_owned())), "what is open is looked at again");
        assert_eq!(world.found("job:x").await, Some(Tuned::Model("ft:m".to_owned())));
        world
            .store
            .put_job(world.user.clone(), Input::Inline(vec![(0, Bytes::from_static(b"{}"))]))
            .await
            .unwrap();
        let in_progress = JobStatus::InProgress;
        world.store.set_status(world.user.id, in_progress, conformance::NOW).await.unwrap();
        let queue = conformance::queue("job:x");
        assert_eq!(limits_name(&*world.store, &queue).await.unwrap(), conformance::queue("ft:m"));
        assert_eq!(
            limits_name(&*world.store, &conformance::queue("m")).await.unwrap(),
            conformance::queue("m")
        );
    }

    #[tokio::test]
    async fn without_a_model_the_reason_is_told() {
        let object = json!({"id": "ftjob-1", "status": "failed", "fine_tuned_model": null});
        let world = World::new().await;
        world.settle(Some(object.clone()), Some("the file is empty")).await;
        assert_eq!(world.found("job:x").await, Some(failed("the file is empty")));
        let world = World::new().await;
        world.settle(Some(object), None).await;
        assert_eq!(world.found("job:x").await, Some(failed("it succeeded, and the provider names no model")));
        let world = World::new().await;
        world.store.set_status(world.maker.id, JobStatus::Cancelled, conformance::NOW).await.unwrap();
        assert_eq!(world.found("job:x").await, Some(failed("it was cancelled")));
        let mut world = World::new().await;
        world.user.settings.models.insert("x".to_owned(), TunedModel::Of(JobId::from_bytes([9; 16])));
        assert_eq!(world.found("job:x").await, Some(failed("its job is not there any more")));
    }
}
