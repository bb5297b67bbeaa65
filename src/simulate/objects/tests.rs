//! Everything that is played, asked for as over the wire, on a paused clock.

use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, Method};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::time::{Instant, advance};

use crate::clock::Seed;
use crate::simulate::{Delivery, Engine, Fate, Reply, Request, Settings};

const CHAT: &str = r#"{"messages":[{"role":"user","content":"1+1"},{"role":"assistant","content":"2"}]}"#;
const PAIR: &str = r#"{"prompt":"1+1=?->","completion":" 4\nENDEND"}"#;

/// A server and its only asker.
struct Stage(Engine);

impl Stage {
    fn new(settings: Settings) -> Self {
        Self(Engine::new(settings, Seed::fixed(1)).unwrap())
    }

    fn send(&self, method: &Method, path: &str, content_type: &str, body: &[u8]) -> Reply {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let content_type = HeaderValue::from_str(content_type).unwrap();
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, content_type)]);
        let request = Request { method, path, query, headers: &headers, body, authority: "127.0.0.1:1" };
        self.0.take(&request, Instant::now())
    }

    fn ask(&self, method: &Method, path: &str, body: &str) -> (u16, Value) {
        let reply = self.send(method, path, "application/json", body.as_bytes());
        (reply.status, serde_json::from_slice(&reply.body).unwrap_or_default())
    }

    fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask(&Method::GET, path, "");
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let (status, body) = self.ask(&Method::POST, path, &body.to_string());
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    fn form(&self, path: &str, fields: &[(&str, &str)], file: Option<(&str, &str, &[u8])>) -> (u16, Value) {
        let reply = self.send_form(path, fields, file);
        (reply.status, serde_json::from_slice(&reply.body).unwrap_or_default())
    }

    fn send_form(&self, path: &str, fields: &[(&str, &str)], file: Option<(&str, &str, &[u8])>) -> Reply {
        let mut body = Vec::new();
        if let Some((name, filename, content)) = file {
            let head = format!("name=\"{name}\"; filename=\"{filename}\"");
            body.extend(format!("--x\r\nContent-Disposition: form-data; {head}\r\n\r\n").as_bytes());
            body.extend(content);
            body.extend(b"\r\n");
        }
        for (name, value) in fields {
            let head = format!("Content-Disposition: form-data; name=\"{name}\"");
            body.extend(format!("--x\r\n{head}\r\n\r\n{value}\r\n").as_bytes());
        }
        body.extend(b"--x--\r\n");
        self.send(&Method::POST, path, "multipart/form-data; boundary=x", &body)
    }

    /// The id of a new file.
    fn upload(&self, purpose: &str, content: &str) -> String {
        let file = Some(("file", "training.jsonl", content.as_bytes()));
        let (status, file) = self.form("/v1/files", &[("purpose", purpose)], file);
        assert_eq!(status, 200, "{file}");
        file["id"].as_str().unwrap().to_owned()
    }

    /// The id of a processed training file.
    async fn training_file(&self, line: &str, lines: usize) -> String {
        let id = self.upload("fine-tune", &format!("{line}\n").repeat(lines));
        advance(Duration::from_millis(500)).await;
        id
    }

    fn effect(&self, act: &str) -> u64 {
        self.0.summary().effects.get(act).copied().unwrap_or_default()
    }
}

fn ids(list: &Value) -> Vec<&str> {
    list["data"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect()
}

fn refusal((status, body): &(u16, Value)) -> (u16, &str, Option<&str>) {
    let error = &body["error"];
    (*status, error["message"].as_str().unwrap(), error["code"].as_str())
}

mod files {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_file_is_processed_after_a_while_and_comes_back_byte_for_byte() {
        let stage = Stage::new(Settings::default());
        let content = b"\x00\r\n--y not the end\xff";
        let fields = [("expires_after[anchor]", "created_at"), ("expires_after[seconds]", "3600")];
        let fields = [fields.as_slice(), &[("purpose", "user_data")]].concat();
        let (status, file) = stage.form("/v1/files", &fields, Some(("file", "a b.bin", content)));
        let expected = json!({"id": file["id"], "object": "file", "bytes": content.len(), "created_at": 1_767_225_600,
            "expires_at": 1_767_229_200, "filename": "a b.bin", "purpose": "user_data", "status": "uploaded",
            "status_details": null});
        assert_eq!((status, &file), (200, &expected));
        let path = format!("/v1/files/{}", file["id"].as_str().unwrap());
        advance(Duration::from_millis(499)).await;
        assert_eq!(stage.get(&path)["status"], "uploaded");
        advance(Duration::from_millis(1)).await;
        assert_eq!(stage.get(&path)["status"], "processed");
        let reply = stage.send(&Method::GET, &format!("{path}/content"), "", b"");
        assert_eq!((reply.status, &reply.body[..]), (200, content.as_slice()));
        advance(Duration::from_hours(1)).await;
        assert_eq!(stage.ask(&Method::GET, &path, "").0, 404, "it has expired");
    }

    #[tokio::test(start_paused = true)]
    async fn training_data_that_is_no_jsonl_ends_as_error() {
        let stage = Stage::new(Settings::default());
        let id = stage.upload("fine-tune", &format!("{CHAT}\nnot json\n"));
        advance(Duration::from_secs(1)).await;
        let file = stage.get(&format!("/v1/files/{id}"));
        assert_eq!(file["status"], "error");
        assert!(file["status_details"].as_str().unwrap().contains("Line 2"), "{file}");
        let body = json!({"model": "gpt-4o-mini", "training_file": id});
        let job = stage.post("/v1/fine_tuning/jobs", &body);
        advance(Duration::from_secs(4)).await;
        let job = stage.get(&format!("/v1/fine_tuning/jobs/{}", job["id"].as_str().unwrap()));
        assert_eq!(
            (&job["status"], &job["error"]["code"]),
            (&json!("failed"), &json!("invalid_training_file"))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn files_are_listed_by_page_purpose_and_order() {
        let stage = Stage::new(Settings::default());
        let training: Vec<String> = (0..5).map(|_| stage.upload("fine-tune", CHAT)).collect();
        let other = stage.upload("batch", "{}");
        assert_eq!(ids(&stage.get("/v1/files"))[0], other, "newest first");
        let mut seen = Vec::new();
        let mut path = "/v1/files?purpose=fine-tune&limit=2".to_owned();
        loop {
            let page = stage.get(&path);
            assert_eq!(page["first_id"].as_str(), ids(&page).first().copied());
            seen.extend(ids(&page).into_iter().map(str::to_owned));
            if page["has_more"] == false {
                break;
            }
            path = format!("/v1/files?purpose=fine-tune&limit=2&after={}", page["last_id"].as_str().unwrap());
        }
        assert!(seen.iter().eq(training.iter().rev()));
        let ascending = stage.get("/v1/files?order=asc&limit=5");
        assert!(ids(&ascending).into_iter().eq(&training));
        assert_eq!(stage.get("/v1/files?purpose=vision")["data"], json!([]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deleted_file_is_gone() {
        let stage = Stage::new(Settings::default());
        let path = format!("/v1/files/{}", stage.upload("batch", "{}"));
        let (status, deleted) = stage.ask(&Method::DELETE, &path, "");
        assert_eq!((status, &deleted["object"], &deleted["deleted"]), (200, &json!("file"), &json!(true)));
        for (method, path) in
            [(Method::GET, path.clone()), (Method::DELETE, path.clone()), (Method::GET, path + "/content")]
        {
            let gone = stage.ask(&method, &path, "");
            assert_eq!((refusal(&gone).0, gone.1["error"]["param"].as_str()), (404, Some("id")));
        }
        assert_eq!((stage.effect("upload"), stage.effect("delete")), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn bad_uploads_are_refused_as_openai_refuses_them() {
        let stage = Stage::new(Settings { file_bytes_max: 10, body_bytes_max: 10, ..Settings::default() });
        let file = Some(("file", "a.jsonl", b"{}".as_slice()));
        let refused = |fields: &[(&str, &str)], file| stage.form("/v1/files", fields, file);
        let purpose = [("purpose", "fine-tune")];
        let no_file = refused(&purpose, None);
        assert_eq!(refusal(&no_file), (400, "'file' is a required property", None));
        let no_purpose = refused(&[], file);
        assert_eq!(refusal(&no_purpose), (400, "'purpose' is a required property", None));
        let bad = refused(&[("purpose", "search")], file);
        assert!(refusal(&bad).1.starts_with("'search' is not one of ['assistants', "));
        let large = refused(&purpose, Some(("file", "a.jsonl", b"{\"a\":\"12345\"}".as_slice())));
        assert_eq!(refusal(&large), (400, "File is too large.", None));
        let huge = vec![b' '; 2 * 1024 * 1024];
        let unread = refused(&purpose, Some(("file", "a.jsonl", &huge)));
        assert_eq!(refusal(&unread), (400, "File is too large.", None));
        let suffix = refused(&purpose, Some(("file", "a.csv", b"{}".as_slice())));
        assert!(refusal(&suffix).1.contains(".jsonl"));
        let brief = [("expires_after[anchor]", "created_at"), ("expires_after[seconds]", "60"), purpose[0]];
        assert_eq!(refused(&brief, file).1["error"]["param"], "expires_after.seconds");
        assert_eq!(refused(&[purpose[0], ("extra", "1")], file).1["error"]["code"], "unknown_parameter");
        assert_eq!(stage.ask(&Method::POST, "/v1/files", "{}").0, 400, "no form");
        assert_eq!(stage.ask(&Method::PUT, "/v1/files", "{}").0, 405);
        assert!(stage.0.summary().effects.is_empty());
    }
}

mod uploads {
    use super::*;

    fn begin(stage: &Stage, bytes: usize) -> String {
        let body = json!({"filename": "big.jsonl", "purpose": "fine-tune", "bytes": bytes, "mime_type": "text/jsonl"});
        let upload = stage.post("/v1/uploads", &body);
        assert_eq!((&upload["object"], &upload["status"]), (&json!("upload"), &json!("pending")));
        upload["id"].as_str().unwrap().to_owned()
    }

    fn part(stage: &Stage, id: &str, content: &[u8]) -> (u16, Value) {
        stage.form(&format!("/v1/uploads/{id}/parts"), &[], Some(("data", "part", content)))
    }

    #[tokio::test(start_paused = true)]
    async fn parts_become_a_file_in_the_order_that_is_asked_for() {
        let stage = Stage::new(Settings::default());
        let whole = format!("{CHAT}\n");
        let (head, tail) = whole.as_bytes().split_at(20);
        let id = begin(&stage, whole.len());
        let (_, second) = part(&stage, &id, tail);
        let (status, first) = part(&stage, &id, head);
        assert_eq!(
            (status, &first["object"], first["upload_id"].as_str()),
            (200, &json!("upload.part"), Some(&*id))
        );
        let complete = json!({"part_ids": [first["id"], second["id"]], "md5": "0"});
        let upload = stage.post(&format!("/v1/uploads/{id}/complete"), &complete);
        assert_eq!((&upload["status"], &upload["file"]["bytes"]), (&json!("completed"), &json!(whole.len())));
        let file = upload["file"]["id"].as_str().unwrap();
        let content = stage.send(&Method::GET, &format!("/v1/files/{file}/content"), "", b"");
        assert_eq!(content.body, whole);
        let again = stage.ask(&Method::POST, &format!("/v1/uploads/{id}/complete"), &complete.to_string());
        assert_eq!(again.0, 400, "it is complete");
        assert_eq!((stage.effect("begin"), stage.effect("part"), stage.effect("complete")), (1, 2, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_add_up_is_no_file() {
        let stage = Stage::new(Settings::default());
        let id = begin(&stage, 4);
        let (_, one) = part(&stage, &id, b"{}");
        let complete = |parts: Value| {
            let body = json!({"part_ids": parts}).to_string();
            stage.ask(&Method::POST, &format!("/v1/uploads/{id}/complete"), &body).0
        };
        assert_eq!(complete(json!([one["id"]])), 400, "too few bytes");
        assert_eq!(complete(json!([one["id"], one["id"]])), 400, "a part twice");
        assert_eq!(complete(json!(["part_x"])), 400);
        assert_eq!(part(&stage, &id, b"123").0, 400, "more than was said");
        assert_eq!(part(&stage, "upload_x", b"1").0, 404);
        let cancelled = stage.post(&format!("/v1/uploads/{id}/cancel"), &json!({}));
        assert_eq!(cancelled["status"], "cancelled");
        assert_eq!((stage.effect("abandon"), stage.effect("cancel")), (1, 0), "that is for fine-tunes");
        assert_eq!(part(&stage, &id, b"{}").0, 400);
        let late = begin(&stage, 4);
        advance(Duration::from_hours(1)).await;
        assert_eq!(part(&stage, &late, b"{}").0, 400, "it has expired");
        assert_eq!(stage.get("/v1/files")["data"], json!([]));
    }
}

mod jobs {
    use super::*;

    const JOBS: &str = "/v1/fine_tuning/jobs";

    async fn create(stage: &Stage, more: &Value) -> String {
        let mut body = json!({"model": "gpt-4o-mini", "training_file": stage.training_file(CHAT, 12).await});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let job = stage.post(JOBS, &body);
        format!("{JOBS}/{}", job["id"].as_str().unwrap())
    }

    /// The statuses that a poll every 10 ms sees, until the job has ended or is gone.
    async fn watch(stage: &Stage, path: &str) -> Vec<String> {
        let mut seen: Vec<String> = Vec::new();
        for _ in 0..500 {
            let (status, job) = stage.ask(&Method::GET, path, "");
            let word = if status == 200 { job["status"].as_str().unwrap() } else { "gone" };
            if seen.last().is_none_or(|last| last != word) {
                seen.push(word.to_owned());
            }
            if ["succeeded", "failed", "cancelled", "gone"].contains(&word) {
                break;
            }
            advance(Duration::from_millis(10)).await;
        }
        seen
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_goes_from_its_files_to_a_model_that_chats() {
        let stage = Stage::new(Settings { strict_models: true, ..Settings::default() });
        let method = json!({"type": "supervised", "supervised": {"hyperparameters":
            {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": "auto"}}});
        let path = create(&stage, &json!({"suffix": "My Model", "method": method, "seed": 5})).await;
        let job = stage.get(&path);
        assert_eq!((&job["model"], &job["seed"]), (&json!("gpt-4o-mini-2024-07-18"), &json!(5)));
        assert_eq!((&job["method"], &job["finished_at"]), (&method, &Value::Null));
        let started = Instant::now();
        assert_eq!(watch(&stage, &path).await, ["validating_files", "queued", "running", "succeeded"]);
        assert_eq!(started.elapsed(), Duration::from_secs(4));
        let job = stage.get(&path);
        assert_eq!(
            job["hyperparameters"],
            json!({"n_epochs": 2, "batch_size": 1, "learning_rate_multiplier": 1.8})
        );
        assert_eq!(job["finished_at"].as_u64(), Some(1_767_225_604));
        assert!(job["trained_tokens"].as_u64().unwrap() > 0);
        let model = job["fine_tuned_model"].as_str().unwrap();
        assert!(model.starts_with("ft:gpt-4o-mini-2024-07-18:sim:my-model:"), "{model}");
        assert!(ids(&stage.get("/v1/models")).contains(&model));
        let chat = json!({"model": model, "messages": [{"role": "user", "content": "1+1"}]}).to_string();
        assert_eq!(stage.ask(&Method::POST, "/v1/chat/completions", &chat).0, 200);
        let prompt = json!({"model": model, "prompt": "x"}).to_string();
        assert!(refusal(&stage.ask(&Method::POST, "/v1/completions", &prompt)).1.contains("chat model"));
        let (_, deleted) = stage.ask(&Method::DELETE, &format!("/v1/models/{model}"), "");
        assert_eq!(deleted, json!({"id": model, "object": "model", "deleted": true}));
        assert_eq!(stage.ask(&Method::POST, "/v1/chat/completions", &chat).0, 404);
        assert_eq!((stage.effect("delete_model"), stage.effect("delete")), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn results_are_a_table_in_base64_of_their_own_purpose() {
        let stage = Stage::new(Settings::default());
        let path = create(&stage, &json!({})).await;
        assert_eq!(stage.get(&path)["result_files"], json!([]));
        advance(Duration::from_secs(4)).await;
        let file = stage.get(&path)["result_files"][0].as_str().unwrap().to_owned();
        assert_eq!(stage.get(&format!("/v1/files/{file}"))["purpose"], "fine-tune-results");
        let content = stage.send(&Method::GET, &format!("/v1/files/{file}/content"), "", b"").body;
        let table = String::from_utf8(STANDARD.decode(&content).unwrap()).unwrap();
        assert!(table.starts_with("step,train_loss,train_accuracy,"), "{table}");
        assert_eq!(
            (stage.effect("upload"), stage.effect("create")),
            (1, 1),
            "what it made is nobody's effect"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn events_are_paged_newest_first_without_gap() {
        let stage = Stage::new(Settings::default());
        let path = create(&stage, &json!({})).await;
        advance(Duration::from_secs(4)).await;
        let mut seen: Vec<Value> = Vec::new();
        let mut query = "?limit=7".to_owned();
        loop {
            let page = stage.get(&format!("{path}/events{query}"));
            seen.extend(page["data"].as_array().unwrap().iter().cloned());
            if page["has_more"] == false {
                break;
            }
            query = format!("?limit=7&after={}", seen.last().unwrap()["id"].as_str().unwrap());
        }
        assert!(seen.is_sorted_by(|a, b| a["created_at"].as_u64() >= b["created_at"].as_u64()));
        let messages: Vec<&str> = seen.iter().rev().map(|event| event["message"].as_str().unwrap()).collect();
        assert!(messages[0].starts_with("Created fine-tuning job: ftjob-"));
        assert_eq!(messages.last().copied(), Some("The job has successfully completed"));
        let metrics = seen.iter().find(|event| event["type"] == "metrics").unwrap();
        assert!(metrics["data"]["train_loss"].is_f64(), "{metrics}");
        let checkpoints = stage.get(&format!("{path}/checkpoints?limit=2"));
        assert_eq!((ids(&checkpoints).len(), &checkpoints["has_more"]), (2, &json!(true)));
        let newest = &checkpoints["data"][0];
        let model = stage.get(&path)["fine_tuned_model"].as_str().unwrap().to_owned();
        assert_eq!(
            newest["fine_tuned_model_checkpoint"],
            format!("{model}:ckpt-step-{}", newest["step_number"])
        );
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_are_found_by_their_metadata() {
        let stage = Stage::new(Settings::default());
        let one = create(&stage, &json!({"metadata": {"batchd_job": "a", "k": "v"}})).await;
        create(&stage, &json!({"metadata": {"batchd_job": "b"}})).await;
        let bare = create(&stage, &json!({})).await;
        let found = |query: &str| -> Vec<String> {
            let list = stage.get(&format!("{JOBS}?{query}"));
            assert_eq!(list["has_more"], false);
            ids(&list).into_iter().map(|id| format!("{JOBS}/{id}")).collect()
        };
        assert_eq!(found("metadata[batchd_job]=a"), [&*one]);
        assert_eq!(found("metadata%5Bbatchd_job%5D=a&metadata%5Bk%5D=v"), [one]);
        assert_eq!(found("metadata%5Bbatchd_job%5D=b&metadata%5Bk%5D=v"), [""; 0]);
        assert_eq!(found("metadata=null"), [bare]);
        let page = stage.get(&format!("{JOBS}?limit=2"));
        assert_eq!((ids(&page).len(), &page["has_more"]), (2, &json!(true)));
        let last = stage.get(&format!("{JOBS}?limit=2&after={}", ids(&page)[1]));
        assert_eq!((ids(&last).len(), &last["has_more"]), (1, &json!(false)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_job_waits_and_a_cancelled_one_stays() {
        let stage = Stage::new(Settings::default());
        let path = create(&stage, &json!({})).await;
        assert_eq!(stage.post(&format!("{path}/pause"), &json!({}))["status"], "paused");
        advance(Duration::from_hours(1)).await;
        assert_eq!(stage.get(&path)["status"], "paused");
        assert_eq!(stage.post(&format!("{path}/resume"), &json!({}))["status"], "validating_files");
        advance(Duration::from_secs(2)).await;
        assert_eq!(stage.post(&format!("{path}/cancel"), &json!({}))["status"], "cancelled");
        advance(Duration::from_secs(9)).await;
        let job = stage.get(&path);
        assert_eq!((&job["status"], &job["fine_tuned_model"]), (&json!("cancelled"), &Value::Null));
        for act in ["cancel", "pause", "resume"] {
            let refused = stage.ask(&Method::POST, &format!("{path}/{act}"), "");
            assert!(refusal(&refused).1.contains("'cancelled'") && refused.0 == 400, "{act}");
        }
        assert_eq!((stage.effect("cancel"), stage.effect("pause"), stage.effect("resume")), (1, 1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn suffixes_and_settings_decide_how_a_job_ends() {
        let stage = Stage::new(Settings { fate: Some(Fate::Fail), ..Settings::default() });
        let ends = async |suffix: &str| {
            let path = create(&stage, &json!({"suffix": suffix})).await;
            let seen = watch(&stage, &path).await;
            (seen.last().unwrap().clone(), stage.ask(&Method::GET, &path, "").1)
        };
        let (status, job) = ends("plain").await;
        assert_eq!((status.as_str(), &job["error"]["code"]), ("failed", &json!("server_error")));
        assert_eq!(ends("sim-fail").await.0, "failed");
        let (status, job) = ends("my-sim-cancel").await;
        assert_eq!((status.as_str(), &job["fine_tuned_model"]), ("cancelled", &Value::Null));
        assert_eq!(stage.effect("cancel"), 0, "it was somebody else");
        let (status, refused) = ends("sim-vanish").await;
        assert_eq!((status.as_str(), &refused["error"]["code"]), ("gone", &json!("fine_tune_not_found")));
        assert_eq!(ids(&stage.get(JOBS)).len(), 3, "nor does a list show it");
        let path = create(&stage, &json!({"suffix": "sim-odd"})).await;
        let seen = watch(&stage, &path).await;
        assert_eq!(seen, ["validating_files", "queued", "running", "optimizing", "running", "succeeded"]);
    }

    #[tokio::test(start_paused = true)]
    async fn validation_fails_for_too_few_examples_or_bad_lines() {
        let stage = Stage::new(Settings::default());
        let few = stage.training_file(CHAT, 9).await;
        let pairs = stage.training_file(PAIR, 12).await;
        let good = stage.training_file(CHAT, 12).await;
        let end = async |model: &str, training: &str, validation: Option<&str>| {
            let body = json!({"model": model, "training_file": training, "validation_file": validation});
            let path = format!("{JOBS}/{}", stage.post(JOBS, &body)["id"].as_str().unwrap());
            watch(&stage, &path).await;
            let job = stage.get(&path);
            (job["status"].as_str().unwrap().to_owned(), job["error"].clone())
        };
        let (status, error) = end("gpt-4o-mini", &few, None).await;
        assert_eq!((status.as_str(), &error["code"]), ("failed", &json!("invalid_n_examples")));
        let (_, error) = end("gpt-4o-mini", &pairs, None).await;
        assert_eq!(
            (&error["code"], &error["param"]),
            (&json!("invalid_training_file"), &json!("training_file"))
        );
        assert!(error["message"].as_str().unwrap().contains("Line 1"), "{error}");
        let (_, error) = end("gpt-4o-mini", &good, Some(&pairs)).await;
        assert_eq!(error["param"], "validation_file");
        assert_eq!(
            end("babbage-002", &pairs, None).await.0,
            "succeeded",
            "a model that completes learns pairs"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_can_not_be_tuned_is_refused() {
        let stage = Stage::new(Settings::default());
        let file = stage.training_file(CHAT, 12).await;
        let batch = stage.upload("batch", "{}");
        advance(Duration::from_secs(1)).await;
        let fresh = stage.upload("fine-tune", CHAT);
        let refused = |model: &str, file: &str| {
            let body = json!({"model": model, "training_file": file}).to_string();
            let (status, body) = stage.ask(&Method::POST, JOBS, &body);
            let error = &body["error"];
            (status, error["code"].as_str().unwrap_or_default().to_owned(), error["param"].clone())
        };
        assert_eq!(refused("gpt-x", &file), (404, "model_not_found".to_owned(), Value::Null));
        assert_eq!(refused("gpt-image-2", &file), (400, "model_not_available".to_owned(), json!("model")));
        assert_eq!(refused("curie", &file).1, "model_not_available", "a base of the legacy interface");
        let param = json!("training_file");
        assert_eq!(
            refused("gpt-4o-mini", "file-x"),
            (400, "invalid_training_file".to_owned(), param.clone())
        );
        assert_eq!(refused("gpt-4o-mini", &batch), (400, "invalid_file_purpose".to_owned(), param.clone()));
        assert_eq!(refused("gpt-4o-mini", &fresh), (400, String::new(), param), "not yet processed");
        assert_eq!(stage.ask(&Method::GET, &format!("{JOBS}/ftjob-x"), "").0, 404);
        assert_eq!(stage.effect("create"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn healthy_jobs_show_every_form_of_no_error() {
        let stage = Stage::new(Settings::default());
        for _ in 0..20 {
            create(&stage, &json!({})).await;
        }
        let list = stage.get(JOBS);
        let errors = list["data"].as_array().unwrap().iter().map(|job| job["error"].to_string());
        let mut errors: Vec<String> = errors.collect();
        errors.sort();
        errors.dedup();
        assert_eq!(errors, ["null", "{\"code\":null,\"message\":null,\"param\":null}", "{}"]);
    }
}

mod legacy {
    use super::*;

    const FINE_TUNES: &str = "/v1/fine-tunes";

    async fn create(stage: &Stage, more: &Value) -> String {
        let mut body = json!({"training_file": stage.training_file(PAIR, 2).await});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let fine_tune = stage.post(FINE_TUNES, &body);
        format!("{FINE_TUNES}/{}", fine_tune["id"].as_str().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_fine_tune_goes_from_its_file_to_a_model_that_completes() {
        let stage = Stage::new(Settings { strict_models: true, ..Settings::default() });
        let path = create(&stage, &json!({"suffix": "Sums", "n_epochs": 2})).await;
        let fresh = stage.get(&path);
        assert!(["pending", "created"].contains(&fresh["status"].as_str().unwrap()));
        let expected = json!({"n_epochs": 2, "batch_size": 1, "prompt_loss_weight": 0.01,
            "learning_rate_multiplier": 0.05});
        assert_eq!(fresh["hyperparams"], expected);
        assert_eq!(fresh["training_files"][0]["purpose"], "fine-tune");
        advance(Duration::from_secs(2)).await;
        assert_eq!(stage.get(&path)["status"], "running");
        advance(Duration::from_secs(2)).await;
        let done = stage.get(&path);
        assert_eq!((&done["status"], &done["model"]), (&json!("succeeded"), &json!("curie")));
        let model = done["fine_tuned_model"].as_str().unwrap();
        assert_eq!(model, "curie:ft-sim:sums-2026-01-01-00-00-04");
        let result = done["result_files"][0]["id"].as_str().unwrap();
        let table = stage.send(&Method::GET, &format!("/v1/files/{result}/content"), "", b"").body;
        assert!(table.starts_with(b"step,elapsed_tokens,"), "plain, not base64");
        let events = stage.get(&format!("{path}/events"));
        assert_eq!(events["data"], done["events"]);
        let last = events["data"].as_array().unwrap().last().unwrap();
        assert_eq!(last["message"], "Fine-tune succeeded");
        let prompt = json!({"model": model, "prompt": "1+1=?->"}).to_string();
        assert_eq!(stage.ask(&Method::POST, "/v1/completions", &prompt).0, 200);
        let chat = json!({"model": model, "messages": [{"role": "user", "content": "1+1"}]}).to_string();
        assert_eq!(stage.ask(&Method::POST, "/v1/chat/completions", &chat).0, 404);
        let again = create(&stage, &json!({"model": model})).await;
        advance(Duration::from_secs(4)).await;
        let again = stage.get(&again)["fine_tuned_model"].as_str().unwrap().to_owned();
        assert!(again.starts_with("curie:ft-sim-2026-"), "a tuned model can be tuned again: {again}");
    }

    #[tokio::test(start_paused = true)]
    async fn two_models_of_one_second_have_two_names() {
        let stage = Stage::new(Settings { file_processing_time: Duration::ZERO, ..Settings::default() });
        let file = stage.upload("fine-tune", PAIR);
        for _ in 0..2 {
            stage.post(FINE_TUNES, &json!({"training_file": file, "suffix": "a"}));
        }
        advance(Duration::from_secs(4)).await;
        let list = stage.get(FINE_TUNES);
        let models: Vec<&Value> =
            list["data"].as_array().unwrap().iter().map(|item| &item["fine_tuned_model"]).collect();
        assert!(models.len() == 2 && models[0] != models[1] && models[0].is_string(), "{models:?}");
        assert!(list["data"][0].get("events").is_none(), "a list is brief");
        assert_eq!(list["data"][0]["training_files"][0]["id"], *file);
    }

    #[tokio::test(start_paused = true)]
    async fn both_words_for_waiting_are_used() {
        let stage = Stage::new(Settings::default());
        for _ in 0..10 {
            create(&stage, &json!({})).await;
        }
        let stage = Stage::new(Settings { file_processing_time: Duration::ZERO, ..Settings::default() });
        let file = stage.upload("fine-tune", PAIR);
        let words =
            (0..10).map(|_| stage.post(FINE_TUNES, &json!({"training_file": file}))["status"].to_string());
        let mut words: Vec<String> = words.collect();
        words.sort();
        words.dedup();
        assert_eq!(words, ["\"created\"", "\"pending\""]);
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_cancels_and_fates_are_those_of_jobs() {
        let stage = Stage::new(Settings::default());
        let path = create(&stage, &json!({})).await;
        let cancelled = stage.post(&format!("{path}/cancel"), &json!({}));
        assert_eq!(cancelled["status"], "cancelled");
        assert_eq!(stage.ask(&Method::POST, &format!("{path}/cancel"), "").0, 400);
        for (suffix, expected) in
            [("sim-fail", "failed"), ("sim-cancel", "cancelled"), ("sim-odd", "succeeded")]
        {
            let path = create(&stage, &json!({"suffix": suffix})).await;
            advance(Duration::from_secs(4)).await;
            assert_eq!(stage.get(&path)["status"], expected);
        }
        let path = create(&stage, &json!({"suffix": "sim-vanish"})).await;
        advance(Duration::from_secs(4)).await;
        assert_eq!(stage.ask(&Method::GET, &path, "").0, 404);
        let refused = |body: Value| stage.ask(&Method::POST, FINE_TUNES, &body.to_string());
        assert_eq!(refusal(&refused(json!({"training_file": "file-x"}))).2, Some("invalid_training_file"));
        let file = stage.training_file(CHAT, 2).await;
        let modern = refused(json!({"training_file": file, "model": "gpt-4o-mini"}));
        assert_eq!(refusal(&modern).2, Some("model_not_available"));
        let bad = stage.post(FINE_TUNES, &json!({"training_file": file}));
        advance(Duration::from_secs(4)).await;
        let bad = stage.get(&format!("{FINE_TUNES}/{}", bad["id"].as_str().unwrap()));
        assert_eq!(bad["status"], "failed", "chat lines are no pairs");
        assert_eq!(stage.ask(&Method::GET, &format!("{path}/events?stream=true"), "").0, 400);
    }
}

mod models {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn any_model_is_known_unless_only_listed_ones_are() {
        let lenient = Stage::new(Settings::default());
        let body = json!({"model": "my-own", "messages": [{"role": "user", "content": "x"}]}).to_string();
        assert_eq!(lenient.ask(&Method::POST, "/v1/chat/completions", &body).0, 200);
        assert_eq!(lenient.get("/v1/models/my-own")["id"], "my-own");
        let strict = Stage::new(Settings { strict_models: true, ..Settings::default() });
        let refused = strict.ask(&Method::POST, "/v1/chat/completions", &body);
        assert_eq!((refused.0, refusal(&refused).2), (404, Some("model_not_found")));
        assert_eq!(strict.ask(&Method::GET, "/v1/models/my-own", "").0, 404);
        let list = strict.get("/v1/models");
        let dated =
            list["data"].as_array().unwrap().iter().filter(|model| model["shutdown_date"].is_string());
        assert_eq!(dated.count(), 1);
        assert_eq!(strict.get("/v1/models/gpt-4o-mini")["shutdown_date"], "2027-01-14");
        let own = Stage::new(Settings { models: vec!["my-own".to_owned()], ..Settings::default() });
        assert_eq!(ids(&own.get("/v1/models")), ["my-own"]);
        assert_eq!(own.ask(&Method::DELETE, "/v1/models/my-own", "").0, 403);
        assert_eq!(own.ask(&Method::DELETE, "/v1/models/other", "").0, 404);
        let file = own.training_file(CHAT, 10).await;
        own.post("/v1/fine_tuning/jobs", &json!({"model": "my-own", "training_file": file}));
    }
}

mod mishaps {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_a_lost_reply_has_made_is_found_in_the_list() {
        let mishaps = "upload=drop,create=drop,create=cut,cancel=drop,begin=garbage".parse().unwrap();
        let stage = Stage::new(Settings { mishaps, ..Settings::default() });
        let lines = format!("{CHAT}\n").repeat(10);
        let file = Some(("file", "a-JOB.jsonl", lines.as_bytes()));
        let lost = stage.send_form("/v1/files", &[("purpose", "fine-tune")], file);
        assert_eq!((lost.delivery, lost.body.len()), (Delivery::Dropped, 0));
        advance(Duration::from_secs(1)).await;
        let files = stage.get("/v1/files?purpose=fine-tune");
        assert_eq!(files["data"][0]["filename"], "a-JOB.jsonl");
        let body =
            json!({"model": "gpt-4o-mini", "training_file": ids(&files)[0], "metadata": {"batchd_job": "j"}});
        let lost = stage.send(
            &Method::POST,
            "/v1/fine_tuning/jobs",
            "application/json",
            body.to_string().as_bytes(),
        );
        assert_eq!(lost.delivery, Delivery::Dropped);
        let jobs = stage.get("/v1/fine_tuning/jobs?metadata[batchd_job]=j");
        assert_eq!(ids(&jobs).len(), 1);
        let pairs = stage.training_file(PAIR, 2).await;
        let body = json!({"training_file": pairs}).to_string();
        let cut = stage.send(&Method::POST, "/v1/fine-tunes", "application/json", body.as_bytes());
        assert_eq!(cut.delivery, Delivery::Cut);
        let fine_tunes = stage.get("/v1/fine-tunes");
        assert_eq!(fine_tunes["data"][0]["training_files"][0]["id"], *pairs);
        let cancel = format!("/v1/fine_tuning/jobs/{}/cancel", ids(&jobs)[0]);
        assert_eq!(stage.send(&Method::POST, &cancel, "", b"").delivery, Delivery::Dropped);
        assert_eq!(stage.get(cancel.trim_end_matches("/cancel"))["status"], "cancelled");
        assert_eq!((stage.effect("upload"), stage.effect("create"), stage.effect("cancel")), (2, 2, 1));
        let entries = stage.0.entries();
        let made: Vec<&str> = entries.iter().filter_map(|entry| entry.object.as_deref()).collect();
        assert_eq!(made[..2], [ids(&files)[0], ids(&jobs)[0]]);
        assert_eq!(entries[0].outcome.to_string(), "fault:drop");
        assert_eq!(stage.0.summary().paid, 0, "no answer was given");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusing_fault_has_no_effect() {
        let mishaps = "upload=500,create=429,create=503".parse().unwrap();
        let stage = Stage::new(Settings { mishaps, ..Settings::default() });
        let file = Some(("file", "a.jsonl", PAIR.as_bytes()));
        assert_eq!(stage.form("/v1/files", &[("purpose", "fine-tune")], file).0, 500);
        assert_eq!(stage.get("/v1/files")["data"], json!([]));
        let body = json!({"training_file": stage.training_file(PAIR, 1).await});
        assert_eq!(stage.ask(&Method::POST, "/v1/fine-tunes", &body.to_string()).0, 429);
        assert_eq!(stage.ask(&Method::POST, "/v1/fine-tunes", &body.to_string()).0, 503);
        stage.post("/v1/fine-tunes", &body);
        assert_eq!((stage.effect("upload"), stage.effect("create")), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn faults_latency_quota_and_keys_hold_here_too() {
        let settings = Settings {
            faults: "500=1".parse().unwrap(),
            latency: "20ms".parse().unwrap(),
            quota_after: Some(0),
            ..Settings::default()
        };
        let stage = Stage::new(settings);
        let reply = stage.send(&Method::GET, "/v1/files", "", b"");
        assert_eq!((reply.status, reply.delay), (500, Duration::from_millis(20)));
        let body = json!({"training_file": "file-x"}).to_string();
        assert_eq!(
            stage.ask(&Method::POST, "/v1/fine-tunes", &body).1["error"]["code"],
            "insufficient_quota"
        );
        stage.ask(&Method::POST, "/_sim/faults", r#"{"faults":"","key":"sk","mishaps":"list=502"}"#);
        assert_eq!(stage.ask(&Method::GET, "/v1/files", "").0, 401);
        stage.ask(&Method::POST, "/_sim/faults", r#"{"key":null}"#);
        assert_eq!(stage.ask(&Method::GET, "/v1/files", "").0, 502, "who is not let in meets nothing");
        assert_eq!(stage.ask(&Method::GET, "/v1/files", "").0, 200);
    }

    #[tokio::test(start_paused = true)]
    async fn polls_leave_the_dice_of_answers_alone() {
        let faults = || Settings { faults: "500=0.5".parse().unwrap(), ..Settings::default() };
        let (quiet, busy) = (Stage::new(faults()), Stage::new(faults()));
        let body = json!({"model": "m", "prompt": "x"}).to_string();
        for _ in 0..50 {
            busy.ask(&Method::GET, "/v1/files", "");
            let [a, b] = [&quiet, &busy].map(|stage| stage.ask(&Method::POST, "/v1/completions", &body).0);
            assert_eq!(a, b);
        }
    }
}
