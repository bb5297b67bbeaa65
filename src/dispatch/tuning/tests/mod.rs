//! Fine-tunes under the paused clock, from their data to their model, against the stand-in provider without sockets.

mod course;
mod endings;
mod lost;
mod users;

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Seed};
use crate::config;
use crate::control::Board;
use crate::dispatch::{Fleet, Result, Settings, testing};
use crate::domain::record::JournalLine;
use crate::domain::tuning::{Progress, Thing};
use crate::domain::{
    FineTune, Job, JobSettings, JobStatus, Kind, PauseReason, QueueName, RequestId, RetryPolicy, Timestamp,
    TunedModel, TuningApi, TuningData,
};
use crate::provider::{HttpReply, HttpRequest, Transport, TransportError};
use crate::simulate::{
    Act, Auth, Change, Changes, Engine, Fate, Fault, Latency, Mishaps, Settings as Server, SimulatedTransport,
};
use crate::store::conformance::{self, until_settled};
use crate::store::memory::MemoryStore;
use crate::store::{Input, Store};

const CHAT: &str = r#"{"messages":[{"role":"user","content":"1+1"},{"role":"assistant","content":"2"}]}"#;
const PAIR: &str = r#"{"prompt":"1+1=?->","completion":" 4\nENDEND"}"#;
const CLOCK: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// What stands before the stand-in: answers a request itself, or lets it pass.
type Twist = Box<dyn FnMut(&HttpRequest) -> Option<HttpReply> + Send>;

#[derive(Clone)]
struct Twisted {
    server: SimulatedTransport,
    twist: Arc<Mutex<Twist>>,
    /// Method and path of what was asked.
    asked: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl std::fmt::Debug for Twisted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Twisted")
    }
}

impl Transport for Twisted {
    fn exchange(&self, request: HttpRequest) -> BoxFuture<'_, Result<HttpReply, TransportError>> {
        let line = format!("{} {}", request.method, request.url.path());
        self.asked.lock().unwrap().push((Instant::now(), line));
        match (self.twist.lock().unwrap())(&request) {
            Some(reply) => Box::pin(async { Ok(reply) }),
            None => self.server.exchange(request),
        }
    }
}

fn reply(status: u16, body: &Value) -> HttpReply {
    HttpReply { status, headers: HeaderMap::new(), body: Bytes::from(body.to_string()) }
}

fn refusal(status: u16, message: &str) -> HttpReply {
    reply(status, &json!({"error": {"message": message, "type": "invalid_request_error", "code": null}}))
}

/// A store, a server and a fleet between them that can be killed.
struct World {
    store: Arc<dyn Store>,
    folders: TempDir,
    server: Arc<Engine>,
    transport: Twisted,
    board: Board,
    clock: Clock,
    seed: u64,
    retry: RetryPolicy,
    stop: CancellationToken,
    running: Option<JoinHandle<Result<()>>>,
}

fn server() -> Server {
    Server { latency: Latency::fixed(Duration::from_millis(50)), epoch: CLOCK, ..Server::default() }
}

impl World {
    fn new(server: Server) -> Self {
        Self::seeded(1, server)
    }

    fn seeded(seed: u64, server: Server) -> Self {
        let folders = tempfile::tempdir().unwrap();
        let server = Arc::new(Engine::new(server, Seed::fixed(seed)).unwrap());
        let transport = Twisted {
            server: SimulatedTransport::new(Arc::clone(&server)),
            twist: Arc::new(Mutex::new(Box::new(|_| None))),
            asked: Arc::default(),
        };
        Self {
            store: Arc::new(MemoryStore::with_folders(folders.path().to_owned())),
            folders,
            server,
            transport,
            board: Board::default(),
            clock: Clock::simulated(CLOCK),
            seed,
            retry: RetryPolicy::default(),
            stop: CancellationToken::new(),
            running: None,
        }
    }

    fn twist(&self, twist: impl FnMut(&HttpRequest) -> Option<HttpReply> + Send + 'static) {
        *self.transport.twist.lock().unwrap() = Box::new(twist);
    }

    fn start(&mut self) {
        let slots = config::Concurrency::Fixed;
        let limits = config::Limits { concurrency: slots(8), ..config::Limits::default() };
        let mut provider =
            testing::provider(Arc::new(self.transport.clone()), Duration::from_mins(1), limits);
        provider.sites[0].provider = provider.sites[0].provider.clone().with_clock(self.clock.clone());
        provider.config.models.push(config::ModelLimits {
            name: "ft:*".to_owned(),
            concurrency: Some(slots(2)),
            requests_per_minute: None,
            tokens_per_minute: None,
        });
        let settings =
            Settings { providers: vec![provider], retry: self.retry, grace: Duration::from_secs(30) };
        let (store, board, clock) = (Arc::clone(&self.store), self.board.clone(), self.clock.clone());
        let fleet = Fleet::new(settings, store, board, clock, Seed::fixed(self.seed));
        self.stop = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "the test awaits it")]
        let running = tokio::spawn(fleet.run(self.stop.clone(), CancellationToken::new()));
        self.running = Some(running);
    }

    async fn end(&mut self) {
        self.stop.cancel();
        self.running.take().unwrap().await.unwrap().unwrap();
    }

    /// Kills the fleet, and starts another on what was durable: the input and the memo.
    async fn crash(&mut self, job: &Job) {
        let running = self.running.take().unwrap();
        running.abort();
        drop(running.await);
        let memo = self.store.memo(request(job)).await.unwrap();
        let line = self.store.line(request(job)).await.unwrap().bytes;
        let status = self.store.job(job.id).await.unwrap().status;
        self.store = Arc::new(MemoryStore::with_folders(self.folders.path().to_owned()));
        self.store.put_job(job.clone(), Input::Inline(vec![(0, line)])).await.unwrap();
        self.store.set_status(job.id, status, self.clock.now()).await.unwrap();
        if let Some(memo) = memo {
            self.store.write_memo(request(job), memo).await.unwrap();
        }
        self.start();
    }

    async fn put(&self, number: u8, plan: &FineTune) -> Job {
        let mut job = Job { kind: Kind::FineTune, ..conformance::job(number, 5, &["-"], 1) };
        job.queues = vec![QueueName::new("p", None)];
        let folder = self.folders.path().join(job.id.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        for data in [Some(&plan.training), plan.validation.as_ref()].into_iter().flatten() {
            if let TuningData::Local { file, bytes, .. } = data {
                let content = lines(plan.api);
                assert_eq!(*bytes, content.len() as u64);
                std::fs::write(folder.join(file), content).unwrap();
            }
        }
        let line = Bytes::from(serde_json::to_vec(plan).unwrap());
        self.store.put_job(job.clone(), Input::Inline(vec![(0, line)])).await.unwrap();
        job
    }

    /// Runs a fine-tune to its end.
    async fn finish(&mut self, plan: &FineTune) -> Told {
        let job = self.put(1, plan).await;
        self.start();
        until_settled(&*self.store, job.id, 1).await;
        self.end().await;
        self.told(&job)
    }

    fn told(&self, job: &Job) -> Told {
        let mut text = String::new();
        self.store.journal(job.id).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line = JournalLine::parse(text.trim_end().as_bytes()).unwrap();
        Told { is_success: line.is_success(), record: serde_json::from_slice(&line.published()).unwrap() }
    }

    async fn set(&self, job: &Job, status: JobStatus) {
        self.store.set_status(job.id, status, self.clock.now()).await.unwrap();
    }

    /// How often something was done at the server.
    fn effects(&self) -> BTreeMap<String, u64> {
        self.server.summary().effects
    }

    fn done(&self, act: Act) -> u64 {
        self.effects().get(&act.to_string()).copied().unwrap_or(0)
    }

    fn asked(&self, begins: &str) -> usize {
        self.transport.asked.lock().unwrap().iter().filter(|(_, line)| line.starts_with(begins)).count()
    }

    async fn memo(&self, job: &Job, plan: &FineTune) -> Progress {
        Progress::read(&self.store.memo(request(job)).await.unwrap().unwrap(), plan).unwrap()
    }
}

/// What a record says.
#[derive(Debug)]
struct Told {
    is_success: bool,
    record: Value,
}

impl Told {
    fn object(&self) -> &Value {
        &self.record["response"]["body"]
    }

    fn code(&self) -> &str {
        self.record["error"]["code"].as_str().unwrap_or_default()
    }

    fn message(&self) -> &str {
        self.record["error"]["message"].as_str().unwrap_or_default()
    }
}

const fn request(job: &Job) -> RequestId {
    RequestId { job: job.id, index: 0 }
}

fn lines(api: TuningApi) -> String {
    let line = match api {
        TuningApi::Jobs => CHAT,
        TuningApi::Legacy => PAIR,
    };
    format!("{line}\n").repeat(10)
}

fn local(api: TuningApi, file: &str) -> TuningData {
    TuningData::Local { file: format!("{file}.jsonl"), stem: file.to_owned(), bytes: lines(api).len() as u64 }
}

fn plan(api: TuningApi) -> FineTune {
    let model = match api {
        TuningApi::Jobs => "gpt-4.1-mini",
        TuningApi::Legacy => "curie",
    };
    FineTune {
        custom_id: "support".to_owned(),
        api,
        training: local(api, "training"),
        validation: None,
        body: Map::from_iter([("model".to_owned(), json!(model))]),
        delete_uploads: false,
    }
}

fn is_list(request: &HttpRequest, path: &str) -> bool {
    request.method == Method::GET && request.url.path() == format!("/v1{path}")
}

fn posts(request: &HttpRequest, path: &str) -> bool {
    request.method == Method::POST && request.url.path() == path
}

/// Does at the server what is asked for; its reply is lost.
fn carry_out(server: &Engine, request: &HttpRequest) {
    let request = crate::simulate::Request {
        method: &request.method,
        path: request.url.path(),
        query: None,
        headers: &request.headers,
        body: &request.body.to_bytes().unwrap(),
        authority: "127.0.0.1",
    };
    server.take(&request, Instant::now());
}

/// A file that the user uploaded, for several fine-tunes.
fn upload(world: &World, api: TuningApi) -> String {
    let mut body = b"--x\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n".to_vec();
    body.extend(b"--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"mine.jsonl\"\r\n\r\n");
    body.extend(lines(api).as_bytes());
    body.extend(b"\r\n--x--\r\n");
    post(world, "/v1/files", "multipart/form-data; boundary=x", &body)
}

fn post(world: &World, path: &str, content_type: &'static str, body: &[u8]) -> String {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", content_type.parse().unwrap());
    let request = crate::simulate::Request {
        method: &Method::POST,
        path,
        query: None,
        headers: &headers,
        body,
        authority: "127.0.0.1",
    };
    let reply = world.server.take(&request, Instant::now());
    let object: Value = serde_json::from_slice(&reply.body).unwrap();
    object["id"].as_str().unwrap_or_else(|| panic!("{object}")).to_owned()
}
