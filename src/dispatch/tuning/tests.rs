//! Fine-tunes under the paused clock, from their data to their model, against the stand-in provider without sockets.

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
use url::Url;

use crate::clock::{Clock, Seed};
use crate::config;
use crate::control::Board;
use crate::dispatch::{Fleet, ProviderSettings, Result, Settings};
use crate::domain::record::JournalLine;
use crate::domain::tuning::{Progress, Thing};
use crate::domain::{
    FineTune, Job, JobSettings, JobStatus, Kind, PauseReason, QueueName, RequestId, RetryPolicy, Timestamp,
    TunedModel, TuningApi, TuningData,
};
use crate::provider::{self, HttpReply, HttpRequest, Provider, Transport, TransportError};
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
        let url = Url::parse("http://127.0.0.1/v1").unwrap();
        let timeout = Duration::from_mins(1);
        let settings = provider::Settings {
            name: "p".to_owned(),
            base_url: url.clone(),
            api_key: Some("sk-test".into()),
            timeout,
            max_reply: 1 << 20,
        };
        let model = |name: &str, slots| config::ModelLimits {
            name: name.to_owned(),
            concurrency: Some(config::Concurrency::Fixed(slots)),
            requests_per_minute: None,
            tokens_per_minute: None,
        };
        let config = config::Provider {
            name: "p".to_owned(),
            base_url: url,
            api_key: None,
            timeout,
            concurrency: 256,
            max_reply: 1 << 20,
            strict: false,
            limits: config::Limits {
                concurrency: config::Concurrency::Fixed(8),
                ..config::Limits::default()
            },
            models: vec![model("ft:*", 2)],
        };
        let provider =
            Provider::new(settings, Arc::new(self.transport.clone())).with_clock(self.clock.clone());
        let settings = Settings {
            providers: vec![ProviderSettings { provider, config }],
            retry: self.retry,
            grace: Duration::from_secs(30),
        };
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

#[tokio::test(start_paused = true)]
async fn a_fine_tune_goes_from_its_data_to_its_model_over_both_interfaces() {
    for api in TuningApi::ALL {
        let mut world = World::new(server());
        let plan = FineTune { validation: Some(local(api, "validation")), ..plan(api) };
        let started = Instant::now();
        let told = world.finish(&plan).await;
        assert!(told.is_success, "{told:?}");
        assert_eq!(
            (&told.object()["status"], &told.record["custom_id"]),
            (&json!("succeeded"), &json!("support"))
        );
        assert!(told.object()["fine_tuned_model"].is_string(), "{told:?}");
        assert_eq!((world.done(Act::Upload), world.done(Act::Create), world.done(Act::Cancel)), (2, 1, 0));
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        let polls = world.asked(&format!("GET /v1{}/", api.path()));
        assert!((4..=10).contains(&polls), "{polls} polls of a job of 4 s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_fine_tune_is_polled_ever_more_seldom_and_holds_no_slot() {
    let mut world = World::new(Server { fine_tune_time: Duration::from_hours(5), ..server() });
    let job = world.put(1, &plan(TuningApi::Jobs)).await;
    world.start();
    sleep(Duration::from_hours(4)).await;
    let state = world.store.job(job.id).await.unwrap();
    assert_eq!((state.leased, state.waiting, state.counts.settled()), (0, 1, 0));
    until_settled(&*world.store, job.id, 1).await;
    world.end().await;
    let polls = world.asked("GET /v1/fine_tuning/jobs/");
    assert!((300..=420).contains(&polls), "{polls} polls in five hours");
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_never_makes_a_second_file_or_job() {
    for api in TuningApi::ALL {
        for act in [Act::Upload, Act::Create, Act::List, Act::Show] {
            for fault in Fault::ALL {
                let mishaps = Mishaps::new([(act, fault), (Act::List, Fault::ServerError)]);
                let mut world = World::new(Server { mishaps, ..server() });
                let told = world.finish(&plan(api)).await;
                assert!(told.is_success, "{act}={fault}: {told:?}");
                assert_eq!((world.done(Act::Upload), world.done(Act::Create)), (1, 1), "{act}={fault}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_moment_it_makes_one_file_and_one_job() {
    for seed in 0..60 {
        let api = TuningApi::ALL[usize::try_from(seed % 2).unwrap()];
        let faults = "500=0.1,502=0.1,drop=0.1,cut=0.05,429=0.05".parse().unwrap();
        let latency = Latency::between(Duration::from_millis(50), Duration::from_secs(1));
        let mut world = World::seeded(seed, Server { latency, faults, ..server() });
        world.retry.max_attempts = 50;
        let mut rng = Seed::fixed(seed).derive("kills");
        let job = world.put(1, &plan(api)).await;
        world.start();
        for _ in 0..6 {
            sleep(Duration::from_millis(rng.u64(..2_500))).await;
            if world.store.job(job.id).await.unwrap().counts.open() > 0 {
                world.crash(&job).await;
            }
        }
        until_settled(&*world.store, job.id, 1).await;
        world.end().await;
        assert!(world.told(&job).is_success);
        assert_eq!((world.done(Act::Upload), world.done(Act::Create)), (1, 1), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_the_step_in_flight_and_begins_no_other() {
    let latency = Latency::fixed(Duration::from_secs(4));
    let mut world = World::new(Server { latency, ..server() });
    let job = world.put(1, &plan(TuningApi::Jobs)).await;
    world.start();
    sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    world.end().await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!((world.asked("POST"), world.asked("GET")), (1, 0));
    world.start();
    until_settled(&*world.store, job.id, 1).await;
    world.end().await;
    assert!(world.told(&job).is_success);
    assert_eq!((world.done(Act::Upload), world.done(Act::Create)), (1, 1));
    assert_eq!(world.asked("POST"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_fine_tune_is_ended_at_the_provider_before_it_is_recorded() {
    for (api, status, code) in [
        (TuningApi::Jobs, JobStatus::Cancelling, "cancelled"),
        (TuningApi::Legacy, JobStatus::Cancelling, "cancelled"),
        (TuningApi::Jobs, JobStatus::Expiring, "expired"),
    ] {
        let mut world = World::new(Server { fine_tune_time: Duration::from_hours(9), ..server() });
        let job = world.put(1, &plan(api)).await;
        world.start();
        sleep(Duration::from_hours(1)).await;
        world.set(&job, status).await;
        let asked = Instant::now();
        until_settled(&*world.store, job.id, 1).await;
        assert!(asked.elapsed() < Duration::from_secs(5), "the next poll was not waited for");
        let told = world.told(&job);
        assert_eq!((told.code(), &told.object()["status"]), (code, &json!("cancelled")), "{told:?}");
        assert_eq!((world.done(Act::Create), world.done(Act::Cancel)), (1, 1));
        world.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_ends_before_anything_runs_creates_nothing_any_more() {
    let mut world = World::new(Server { file_processing_time: Duration::from_mins(1), ..server() });
    let plan = plan(TuningApi::Jobs);
    let job = world.put(1, &plan).await;
    world.start();
    sleep(Duration::from_secs(20)).await;
    world.set(&job, JobStatus::Cancelling).await;
    until_settled(&*world.store, job.id, 1).await;
    world.end().await;
    let told = world.told(&job);
    assert_eq!((told.code(), told.record["response"].is_null()), ("cancelled", true), "{told:?}");
    assert_eq!((world.done(Act::Upload), world.done(Act::Create)), (1, 0));
    assert_eq!(world.memo(&job, &plan).await.uploads(&plan).count(), 1, "it can be deleted");
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_between_creation_and_reply_finds_the_job_and_ends_it() {
    // The reply to the creation comes after the grace.
    let mishaps = Mishaps::new([(Act::Create, Fault::Slow)]);
    let slow = Duration::from_mins(50);
    let mut world = World::new(Server { mishaps, slow, fine_tune_time: Duration::from_hours(9), ..server() });
    let job = world.put(1, &plan(TuningApi::Jobs)).await;
    world.start();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(world.done(Act::Create), 1);
    world.set(&job, JobStatus::Cancelling).await;
    until_settled(&*world.store, job.id, 1).await;
    world.end().await;
    assert_eq!(world.told(&job).code(), "cancelled");
    assert_eq!((world.done(Act::Create), world.done(Act::Cancel)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_cannot_be_reached_is_asked_to_cancel_until_it_is() {
    let mut world = World::new(Server { fine_tune_time: Duration::from_hours(9), ..server() });
    let job = world.put(1, &plan(TuningApi::Jobs)).await;
    world.start();
    sleep(Duration::from_mins(1)).await;
    world.twist(|_| Some(refusal(503, "away")));
    world.set(&job, JobStatus::Cancelling).await;
    sleep(Duration::from_hours(1)).await;
    assert_eq!(world.store.job(job.id).await.unwrap().counts.open(), 1);
    world.twist(|_| None);
    until_settled(&*world.store, job.id, 1).await;
    assert_eq!((world.told(&job).code(), world.done(Act::Cancel)), ("cancelled", 1));
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_does_not_end_what_it_was_asked_to_is_asked_again() {
    let mut world = World::new(Server { fine_tune_time: Duration::from_hours(9), ..server() });
    let job = world.put(1, &plan(TuningApi::Jobs)).await;
    world.start();
    sleep(Duration::from_mins(10)).await;
    let mut is_deaf = true;
    world.twist(move |request| {
        let is_ignored = request.url.path().ends_with("/cancel") && std::mem::take(&mut is_deaf);
        is_ignored.then(|| refusal(400, "not now"))
    });
    world.set(&job, JobStatus::Cancelling).await;
    let asked = Instant::now();
    until_settled(&*world.store, job.id, 1).await;
    assert!(asked.elapsed() < Duration::from_mins(3), "{:?}", asked.elapsed());
    assert_eq!((world.told(&job).code(), world.done(Act::Cancel)), ("cancelled", 1));
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_while_it_is_asked_how_it_stands_does_not_wait_for_the_next_poll() {
    let slow = Latency::fixed(Duration::from_secs(5));
    let mut world = World::new(Server { latency: slow, fine_tune_time: Duration::from_hours(9), ..server() });
    let job = world.put(1, &plan(TuningApi::Jobs)).await;
    world.start();
    sleep(Duration::from_hours(1)).await;
    while world.store.job(job.id).await.unwrap().leased == 0 {
        sleep(Duration::from_secs(1)).await;
    }
    world.set(&job, JobStatus::Cancelling).await;
    let asked = Instant::now();
    until_settled(&*world.store, job.id, 1).await;
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_success_that_comes_before_the_cancellation_is_one() {
    let mut world = World::new(server());
    let job = world.put(1, &plan(TuningApi::Jobs)).await;
    world.start();
    while world.done(Act::Create) == 0 {
        sleep(Duration::from_millis(100)).await;
    }
    // It is paused while it ends, and cancelled after that.
    world.set(&job, JobStatus::Paused { reason: PauseReason::User }).await;
    sleep(Duration::from_mins(1)).await;
    world.set(&job, JobStatus::Cancelling).await;
    until_settled(&*world.store, job.id, 1).await;
    world.end().await;
    assert!(world.told(&job).is_success);
    assert_eq!(world.done(Act::Cancel), 0);
}

#[tokio::test(start_paused = true)]
async fn what_the_provider_says_of_the_end_is_told() {
    for (api, fate, code, words) in [
        (TuningApi::Jobs, Fate::Fail, "", ""),
        (TuningApi::Legacy, Fate::Fail, "fine_tune_failed", ""),
        (TuningApi::Jobs, Fate::Cancel, "cancelled", "not by batchd"),
        (TuningApi::Jobs, Fate::Vanish, "vanished", "has vanished"),
        (TuningApi::Legacy, Fate::Vanish, "vanished", "has vanished"),
    ] {
        let mut world = World::new(Server { fate: Some(fate), ..server() });
        let told = world.finish(&plan(api)).await;
        assert!(!told.is_success, "{told:?}");
        assert_eq!(told.record["response"]["status_code"], 200, "the last object is kept: {told:?}");
        assert!(told.message().contains(words), "{told:?}");
        if (api, fate) == (TuningApi::Jobs, Fate::Fail) {
            let error = &told.object()["error"];
            assert_eq!(
                (json!(told.code()), json!(told.message())),
                (error["code"].clone(), error["message"].clone())
            );
        } else {
            assert_eq!(told.code(), code, "{told:?}");
        }
        assert_eq!(world.done(Act::Create), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_status_nobody_knows_is_watched_on() {
    let mut world = World::new(Server { fate: Some(Fate::Odd), ..server() });
    assert!(world.finish(&plan(TuningApi::Jobs)).await.is_success);
}

#[tokio::test(start_paused = true)]
async fn polls_that_fail_never_fail_the_fine_tune() {
    let mut world = World::new(Server { fine_tune_time: Duration::from_hours(3), ..server() });
    let job = world.put(1, &plan(TuningApi::Jobs)).await;
    world.start();
    sleep(Duration::from_mins(1)).await;
    // Every answer that is none, half an hour each.
    for (status, body) in
        [(500, "{}"), (429, "{}"), (404, ""), (200, "<html>"), (200, "{}"), (400, "{}"), (405, "")]
    {
        world.twist(move |_| {
            Some(HttpReply { status, headers: HeaderMap::new(), body: Bytes::from_static(body.as_bytes()) })
        });
        let span = if status == 404 { 20 } else { 900 };
        sleep(Duration::from_secs(span)).await;
        world.twist(|_| None);
        sleep(Duration::from_mins(2)).await;
        assert_eq!(world.store.job(job.id).await.unwrap().counts.open(), 1, "{status} {body}");
    }
    // A key that is refused for a while pauses the queue.
    let key = Change::Set("another".into());
    world.server.change(Changes { key, ..Changes::default() }, Instant::now());
    sleep(Duration::from_mins(10)).await;
    assert_eq!(world.board.pauses().len(), 1);
    world.server.change(Changes { key: Change::Clear, ..Changes::default() }, Instant::now());
    world.board.resume();
    until_settled(&*world.store, job.id, 1).await;
    world.end().await;
    assert!(world.told(&job).is_success);
    assert_eq!((world.done(Act::Upload), world.done(Act::Create)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_at_the_start_pauses_and_fails_nothing() {
    let mut world = World::new(Server { auth: Auth::Key("another".into()), ..server() });
    let job = world.put(1, &plan(TuningApi::Jobs)).await;
    world.start();
    sleep(Duration::from_hours(2)).await;
    assert_eq!(
        world.board.pauses().values().map(|pause| pause.reason).collect::<Vec<_>>(),
        [PauseReason::Auth]
    );
    world.server.change(Changes { key: Change::Clear, ..Changes::default() }, Instant::now());
    world.board.resume();
    until_settled(&*world.store, job.id, 1).await;
    world.end().await;
    assert!(world.told(&job).is_success);
    assert_eq!((world.done(Act::Upload), world.done(Act::Create)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_does_not_wait_for_a_provider_that_refuses_the_key() {
    // Nothing is there yet; and then something runs, and the key is good again before the gate would have tried it.
    for runs in [false, true] {
        let world = Server { fine_tune_time: Duration::from_hours(9), ..server() };
        let mut world = World::new(world);
        let job = world.put(1, &plan(TuningApi::Jobs)).await;
        let shut = |_: &HttpRequest| Some(refusal(401, "Incorrect API key provided."));
        if !runs {
            world.twist(shut);
        }
        world.start();
        sleep(Duration::from_mins(1)).await;
        world.twist(shut);
        sleep(Duration::from_hours(2)).await;
        assert_eq!(world.board.pauses().len(), 1);
        if runs {
            world.twist(|_| None);
        }
        let asked = (Instant::now(), world.asked(""));
        world.set(&job, JobStatus::Cancelling).await;
        until_settled(&*world.store, job.id, 1).await;
        assert!(asked.0.elapsed() < Duration::from_secs(5), "{:?}", asked.0.elapsed());
        assert_eq!(world.told(&job).code(), "cancelled");
        assert_eq!(
            (world.done(Act::Cancel), world.asked("") - asked.1),
            (u64::from(runs), usize::from(runs))
        );
        world.end().await;
    }
}

fn is_list(request: &HttpRequest, path: &str) -> bool {
    request.method == Method::GET && request.url.path() == format!("/v1{path}")
}

#[tokio::test(start_paused = true)]
async fn where_the_provider_lists_nothing_a_lost_job_is_not_asked_for_again() {
    for (api, words) in [(TuningApi::Jobs, "batchd_job"), (TuningApi::Legacy, "training file `file-")] {
        let mishaps = Mishaps::new([(Act::Create, Fault::Drop)]);
        let mut world = World::new(Server { mishaps, ..server() });
        world.twist(move |request| is_list(request, api.path()).then(|| refusal(405, "no such method")));
        let told = world.finish(&plan(api)).await;
        assert_eq!((told.code(), world.done(Act::Create)), ("uncertain", 1), "{told:?}");
        for words in [words, "batchd retry", "`p`", "405"] {
            assert!(told.message().contains(words), "{told:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_provider_lists_no_files_a_lost_one_is_sent_again() {
    let mishaps = Mishaps::new([(Act::Upload, Fault::Drop)]);
    let mut world = World::new(Server { mishaps, ..server() });
    world.twist(|request| is_list(request, "/files").then(|| refusal(404, "no such path")));
    assert!(world.finish(&plan(TuningApi::Jobs)).await.is_success);
    assert_eq!((world.done(Act::Upload), world.done(Act::Create)), (2, 1));
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

#[tokio::test(start_paused = true)]
async fn what_was_done_behind_an_error_is_found_however_late_it_shows() {
    for path in ["/files", "/fine_tuning/jobs"] {
        for status in [408, 409, 500, 502, 503, 529] {
            let mut world = World::new(server());
            let engine = Arc::clone(&world.server);
            let (mut is_done, mut looks) = (false, 0);
            world.twist(move |request| {
                if posts(request, &format!("/v1{path}")) && !is_done {
                    is_done = true;
                    carry_out(&engine, request);
                    let error = json!({"message": "sorry", "type": "server_error", "code": null});
                    return Some(reply(status, &json!({ "error": error })));
                }
                looks += i32::from(is_list(request, path));
                let is_hidden = is_list(request, path) && looks < 3;
                is_hidden.then(|| reply(200, &json!({"object": "list", "data": [], "has_more": false})))
            });
            let told = world.finish(&plan(TuningApi::Jobs)).await;
            assert!(told.is_success, "{status}: {told:?}");
            assert_eq!((world.done(Act::Upload), world.done(Act::Create)), (1, 1), "{path}: {status}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_creation_is_not_repeated_before_the_provider_wants_it() {
    for status in [429, 502, 503] {
        let mut world = World::new(server());
        let mut is_refused = false;
        world.twist(move |request| {
            let refuses = posts(request, "/v1/fine_tuning/jobs") && !is_refused;
            is_refused |= refuses;
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static("100"))]);
            refuses.then(|| HttpReply { status, headers, body: Bytes::new() })
        });
        assert!(world.finish(&plan(TuningApi::Jobs)).await.is_success);
        let asked = world.transport.asked.lock().unwrap();
        let mut tries = asked.iter().filter(|(_, line)| line == "POST /v1/fine_tuning/jobs");
        let [(first, _), (second, _)] = [tries.next().unwrap(), tries.next().unwrap()];
        assert!(second.duration_since(*first) >= Duration::from_secs(100), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_never_becomes_ready_is_used_in_the_end() {
    for (word, minutes) in [("uploaded", 2..5), ("running", 60..65)] {
        let mut world = World::new(Server { file_processing_time: Duration::ZERO, ..server() });
        world.twist(move |request| {
            let shows = request.method == Method::GET && request.url.path().starts_with("/v1/files/");
            shows.then(|| reply(200, &json!({"id": "file-1", "status": word})))
        });
        let started = Instant::now();
        assert!(world.finish(&plan(TuningApi::Jobs)).await.is_success);
        assert!(minutes.contains(&(started.elapsed().as_secs() / 60)), "{word}: {:?}", started.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_shown_is_used_and_one_that_is_broken_is_not() {
    let shows_file =
        |request: &HttpRequest| request.method == Method::GET && request.url.path().starts_with("/v1/files/");
    let mut world = World::new(Server { file_processing_time: Duration::ZERO, ..server() });
    world.twist(move |request| shows_file(request).then(|| refusal(404, "no such path")));
    assert!(world.finish(&plan(TuningApi::Jobs)).await.is_success);

    let mut world = World::new(server());
    let broken = json!({"id": "file-1", "status": "error", "status_details": "line 3 is no JSON"});
    world.twist(move |request| shows_file(request).then(|| reply(200, &broken)));
    let told = world.finish(&plan(TuningApi::Jobs)).await;
    assert_eq!(told.code(), "invalid_file");
    assert!(told.message().ends_with("line 3 is no JSON"), "{told:?}");
    assert_eq!(world.done(Act::Create), 0);
}

#[tokio::test(start_paused = true)]
async fn a_creation_that_comes_too_early_for_its_file_is_tried_again() {
    for (refusals, is_success) in [(3, true), (9, false)] {
        let mut world = World::new(server());
        let mut left = refusals;
        world.twist(move |request| {
            let creates = posts(request, "/v1/fine_tuning/jobs");
            left -= i32::from(creates);
            (creates && left >= 0).then(|| refusal(400, "Cannot find file file-1"))
        });
        let told = world.finish(&plan(TuningApi::Jobs)).await;
        assert_eq!(told.is_success, is_success, "{told:?}");
        assert_eq!(world.done(Act::Create), u64::from(is_success));
        assert!(
            is_success || told.record["response"]["status_code"] == 400 && told.record["error"].is_null()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_creation_is_told_with_what_it_means() {
    let mut world = World::new(server());
    let mut unknown = plan(TuningApi::Jobs);
    unknown.body.insert("model".to_owned(), json!("no-such-model"));
    world.twist(|request| {
        let creates = posts(request, "/v1/fine_tuning/jobs");
        creates.then(|| refusal(404, "The model `no-such-model` does not exist"))
    });
    let told = world.finish(&unknown).await;
    assert_eq!((&told.record["response"]["status_code"], told.code()), (&json!(404), ""), "{told:?}");

    for (api, status) in [(TuningApi::Jobs, 403), (TuningApi::Legacy, 404)] {
        let mut world = World::new(server());
        world.twist(move |request| {
            let creates = posts(request, &format!("/v1{}", api.path()));
            creates.then(|| refusal(status, "Fine-tuning is no longer available"))
        });
        let told = world.finish(&plan(api)).await;
        assert_eq!(told.code(), "fine_tuning_unavailable", "{told:?}");
        assert!(told.message().contains("Fine-tuning is no longer available"), "{told:?}");
        assert_eq!(told.record["response"]["status_code"], status);
        assert!(world.board.pauses().is_empty());
    }

    let mut world = World::new(server());
    world.twist(|request| request.url.path().starts_with("/v1/files").then(|| refusal(404, "Not Found")));
    let told = world.finish(&plan(TuningApi::Jobs)).await;
    assert_eq!(told.code(), "files_unavailable", "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn attempts_are_bounded_and_each_step_begins_anew() {
    // Three attempts each; the upload takes two of them, the creation all.
    let mut world = World::new(server());
    world.retry.max_attempts = 3;
    let (mut uploads, creations) = (0, Arc::new(Mutex::new(0)));
    let counted = Arc::clone(&creations);
    world.twist(move |request| {
        let (is_upload, is_creation) = (posts(request, "/v1/files"), posts(request, "/v1/fine_tuning/jobs"));
        uploads += i32::from(is_upload);
        *counted.lock().unwrap() += i32::from(is_creation);
        let fails = is_upload && uploads < 3 || is_creation;
        fails.then(|| refusal(500, "sorry"))
    });
    let told = world.finish(&plan(TuningApi::Jobs)).await;
    assert_eq!(*creations.lock().unwrap(), 3);
    assert_eq!((told.code(), told.is_success), ("server_error", false), "{told:?}");
    assert!(told.message().contains("(attempt 3 of 3)"), "{told:?}");
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

#[tokio::test(start_paused = true)]
async fn a_lost_legacy_job_of_a_shared_file_is_known_by_its_time() {
    let mut world = World::new(server());
    let id = upload(&world, TuningApi::Legacy);
    // Somebody else's of the same file, long ago.
    let other = format!(r#"{{"training_file":"{id}","model":"curie"}}"#);
    sleep(Duration::from_secs(5)).await;
    let others = post(&world, "/v1/fine-tunes", "application/json", other.as_bytes());
    sleep(Duration::from_hours(1)).await;
    let mishaps = Mishaps::new([(Act::Create, Fault::Drop)]);
    world.server.change(Changes { mishaps: Some(mishaps), ..Changes::default() }, Instant::now());
    let shared = FineTune { training: TuningData::Uploaded { id }, ..plan(TuningApi::Legacy) };
    let told = world.finish(&shared).await;
    assert!(told.is_success, "{told:?}");
    assert_ne!(told.object()["id"], others);
    assert_eq!((world.done(Act::Upload), world.done(Act::Create)), (1, 2), "one of each is somebody else's");
}

#[tokio::test(start_paused = true)]
async fn somebody_elses_job_of_a_shared_file_is_not_taken_for_a_lost_one() {
    let mut world = World::new(server());
    let id = upload(&world, TuningApi::Jobs);
    let other = format!(r#"{{"training_file":"{id}","model":"gpt-4.1-mini"}}"#);
    sleep(Duration::from_secs(5)).await;
    let others = post(&world, "/v1/fine_tuning/jobs", "application/json", other.as_bytes());
    let mut is_lost = false;
    world.twist(move |request| {
        let loses = posts(request, "/v1/fine_tuning/jobs") && !is_lost;
        is_lost |= loses;
        loses.then(|| refusal(502, "sorry"))
    });
    let shared = FineTune { training: TuningData::Uploaded { id }, ..plan(TuningApi::Jobs) };
    let told = world.finish(&shared).await;
    assert!(told.is_success, "{told:?}");
    assert_ne!(told.object()["id"], others);
    assert_eq!(world.done(Act::Create), 2, "one is somebody else's");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_job_that_is_known_by_its_model_is_found_by_the_models_real_name() {
    let mishaps = Mishaps::new([(Act::Create, Fault::Slow)]);
    let slow = Duration::from_mins(50);
    let mut world = World::new(Server { mishaps, slow, fine_tune_time: Duration::from_hours(9), ..server() });
    let training = TuningData::Uploaded { id: upload(&world, TuningApi::Legacy) };
    let mut plan = FineTune { training, ..plan(TuningApi::Legacy) };
    plan.body.insert("model".to_owned(), "job:tuned".into());
    let models = [("tuned".to_owned(), TunedModel::Named("curie".to_owned()))].into();
    let mut job = conformance::job(1, 5, &["m"], 1);
    (job.kind, job.queues) = (Kind::FineTune, vec![QueueName::new("p", None)]);
    job.settings.models = models;
    let line = Bytes::from(serde_json::to_vec(&plan).unwrap());
    world.store.put_job(job.clone(), Input::Inline(vec![(0, line)])).await.unwrap();
    world.start();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(world.done(Act::Create), 1);
    world.set(&job, JobStatus::Cancelling).await;
    until_settled(&*world.store, job.id, 1).await;
    world.end().await;
    assert_eq!((world.told(&job).code(), world.done(Act::Cancel)), ("cancelled", 1));
}

/// Puts a chat job that uses the model of `maker`.
async fn put_user(world: &World, maker: &Job, requests: u32) -> Job {
    let models = [("tuned".to_owned(), TunedModel::Of(maker.id))].into();
    let job = conformance::job(2, 5, &["job:tuned"], requests);
    let job = Job { settings: JobSettings { models, ..job.settings.clone() }, ..job };
    let line = |n: u32| {
        let body = r#"{"model":"job:tuned","messages":[{"role":"user","content":"hi"}]}"#;
        let line =
            format!(r#"{{"custom_id":"{n}","method":"POST","url":"/v1/chat/completions","body":{body}}}"#);
        (0, Bytes::from(line))
    };
    world.store.put_job(job.clone(), Input::Inline((0..requests).map(line).collect())).await.unwrap();
    job
}

#[tokio::test(start_paused = true)]
async fn a_job_that_uses_a_fine_tunes_model_asks_for_it_by_its_real_name_and_limits() {
    let mut world = World::new(Server { latency: Latency::fixed(Duration::from_millis(500)), ..server() });
    let maker = world.put(1, &plan(TuningApi::Jobs)).await;
    let user = put_user(&world, &maker, 10).await;
    let waiting = JobStatus::Paused { reason: PauseReason::FineTune };
    assert_eq!(world.store.job(user.id).await.unwrap().status, waiting);
    world.start();
    // Somebody can't wait: it is put back.
    world.set(&user, JobStatus::InProgress).await;
    sleep(Duration::from_secs(1)).await;
    let state = world.store.job(user.id).await.unwrap();
    assert_eq!((state.status, state.leased, state.counts.open()), (waiting, 0, 10));

    until_settled(&*world.store, maker.id, 1).await;
    let model = world.told(&maker).object()["fine_tuned_model"].as_str().unwrap().to_owned();
    world.set(&user, JobStatus::InProgress).await;
    let bodies: Arc<Mutex<Vec<Bytes>>> = Arc::default();
    let seen = Arc::clone(&bodies);
    world.twist(move |request| {
        seen.lock().unwrap().push(request.body.to_bytes().unwrap());
        None
    });
    until_settled(&*world.store, user.id, 10).await;
    world.end().await;
    let expected = format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"hi"}}]}}"#);
    assert_eq!(*bodies.lock().unwrap(), vec![Bytes::from(expected); 10]);
    assert_eq!(world.store.job(user.id).await.unwrap().counts.completed, 10);
    assert_eq!(world.server.summary().max_in_flight, 2, "the limits are those of `ft:*`");
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_fine_tune_failed_tells_why_with_every_request() {
    let mut world = World::new(Server { fate: Some(Fate::Fail), ..server() });
    let maker = world.put(1, &plan(TuningApi::Jobs)).await;
    let user = put_user(&world, &maker, 3).await;
    world.start();
    until_settled(&*world.store, maker.id, 1).await;
    let why = world.told(&maker).message().to_owned();
    world.set(&user, JobStatus::InProgress).await;
    until_settled(&*world.store, user.id, 3).await;
    world.end().await;
    let mut text = String::new();
    world.store.journal(user.id).unwrap().read_to_string(&mut text).unwrap();
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 3);
    for record in &records {
        assert_eq!(record["error"]["code"], "fine_tune_failed", "{record}");
        let message = record["error"]["message"].as_str().unwrap();
        assert!(message.contains("`tuned`") && message.contains(&why), "{message}");
    }
    assert!(world.server.entries().iter().all(|entry| !entry.paid));
}

#[tokio::test(start_paused = true)]
async fn a_memo_that_cannot_be_read_is_made_good_by_looking() {
    for api in TuningApi::ALL {
        let mut world = World::new(server());
        let plan = plan(api);
        let job = world.put(1, &plan).await;
        world.start();
        while world.done(Act::Create) == 0 {
            sleep(Duration::from_millis(100)).await;
        }
        sleep(Duration::from_millis(500)).await;
        world.store.write_memo(request(&job), Bytes::from_static(b"{\"job\":")).await.unwrap();
        world.crash(&job).await;
        until_settled(&*world.store, job.id, 1).await;
        world.end().await;
        assert!(world.told(&job).is_success);
        assert_eq!((world.done(Act::Upload), world.done(Act::Create)), (1, 1));
        assert!(world.memo(&job, &plan).await.id_of(Thing::Job).is_some());
    }
}
