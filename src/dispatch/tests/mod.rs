//! Dispatch under the paused clock, against the stand-in provider without sockets: minutes of traffic in
//! milliseconds, and one seed gives one run.

mod learning;
mod outage;
mod several;
mod sharing;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::{Concurrency, Limits};
use crate::domain::{Job, JobStatus, Timestamp};
use crate::simulate::{
    Auth, Change, Changes, Engine, Entry, Latency, Settings as Server, SimulatedTransport,
};
use crate::store::conformance::{self, journal_indexes, until_settled};
use crate::store::memory::MemoryStore;
use crate::store::{Input, Store};

/// A store, a server and a fleet between them.
struct World {
    store: Arc<dyn Store>,
    server: Arc<Engine>,
    board: Board,
    clock: Clock,
    stop: CancellationToken,
    hurry: CancellationToken,
    fleet: Option<Fleet>,
    live: Handle,
}

impl World {
    fn new(seed: u64, server: Server, limits: Limits) -> Self {
        Self::with(seed, server, limits, 256)
    }

    /// `bound` is that of the provider over all its queues.
    fn with(seed: u64, server: Server, limits: Limits, bound: u32) -> Self {
        let server = Arc::new(Engine::new(server, Seed::fixed(seed)).unwrap());
        let transport = Arc::new(SimulatedTransport::new(Arc::clone(&server)));
        let mut provider = testing::provider(transport, Duration::from_mins(10), limits);
        provider.config.concurrency = bound;
        Self::of(seed, server, provider)
    }

    /// `server` is the first of the provider's.
    fn of(seed: u64, server: Arc<Engine>, mut provider: ProviderSettings) -> Self {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let clock = Clock::simulated(Timestamp::from_millis(1_000_000));
        for site in &mut provider.sites {
            site.provider = site.provider.clone().with_clock(clock.clone());
        }
        let settings = Settings {
            providers: vec![provider],
            retry: RetryPolicy::default(),
            grace: Duration::from_secs(30),
        };
        let board = Board::default();
        let fleet = Fleet::new(settings, Arc::clone(&store), board.clone(), clock.clone(), Seed::fixed(seed));
        let (stop, hurry) = (CancellationToken::new(), CancellationToken::new());
        let live = fleet.handle();
        Self { store, server, board, clock, stop, hurry, fleet: Some(fleet), live }
    }

    /// A job of chat requests that alternate between `models`.
    async fn put(&self, number: u8, models: &[&str], total: u32) -> Job {
        self.put_job(conformance::job(number, 5, models, total)).await
    }

    /// A job of chat requests that alternate between its queues' models.
    async fn put_job(&self, job: Job) -> Job {
        let number = job.id.as_bytes()[0];
        let line = |index: u32| {
            let at = index as usize % job.queues.len();
            let line = serde_json::json!({
                "custom_id": format!("{number}-{index}"),
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": job.queues[at].model(),
                    "max_tokens": 10,
                    "user": format!("{number}-{index}"),
                    "messages": [{"role": "user", "content": format!("{number} {index}")}],
                },
            });
            (u16::try_from(at).unwrap(), Bytes::from(line.to_string()))
        };
        self.store.put_job(job.clone(), Input::Inline((0..job.total).map(line).collect())).await.unwrap();
        job
    }

    fn start(&mut self) -> JoinHandle<Result<()>> {
        let fleet = self.fleet.take().unwrap();
        #[expect(clippy::disallowed_methods, reason = "the test awaits it")]
        tokio::spawn(fleet.run(self.stop.clone(), self.hurry.clone()))
    }

    /// Reloads: what `change` does to the provider's part of the configuration and to the policy holds from now on.
    fn reload(&self, change: impl FnOnce(&mut config::Provider, &mut RetryPolicy)) {
        let running = self.live.settings();
        let [ProviderSettings { sites, config }] = running.providers.as_slice() else { unreachable!() };
        let (mut config, mut retry) = (config.clone(), running.retry);
        change(&mut config, &mut retry);
        let mut sites = sites.clone();
        for (running, site) in sites.iter_mut().zip(config.sites()) {
            running.weight = site.weight;
            running.provider.change(&crate::provider::Settings {
                name: config.name.clone(),
                base_url: site.url,
                api_key: site.api_key,
                custom: crate::provider::Custom::default(),
                timeout: config.timeout,
                waits: crate::provider::Waits::default(),
                max_reply: config.max_reply,
                flex_timeout: config.flex_timeout,
                stream: config.stream,
            });
        }
        let providers = vec![ProviderSettings { sites, config }];
        self.live.change(Settings { providers, retry, grace: running.grace });
    }

    /// The most that were in flight at once among what was sent from now on, until `time` has passed.
    async fn most_in_flight(&self, time: Duration) -> u64 {
        let end = Instant::now() + time;
        let mut most = 0;
        while Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
            most = most.max(self.server.in_flight());
        }
        most
    }

    /// Runs one job to its end and stops.
    async fn finish(&mut self, job: &Job) -> Instant {
        let running = self.start();
        until_settled(&*self.store, job.id, job.total).await;
        let ended = Instant::now();
        self.stop.cancel();
        running.await.unwrap().unwrap();
        ended
    }

    /// Every request of the job has exactly one record.
    fn assert_one_record_each(&self, job: &Job) {
        let mut indexes = journal_indexes(&*self.store, job.id);
        indexes.sort_unstable();
        assert!(indexes.into_iter().eq(0..job.total));
    }

    fn paid(&self) -> Vec<Entry> {
        self.server.entries().into_iter().filter(|entry| entry.paid).collect()
    }
}

fn slots(slots: u32) -> Limits {
    Limits { concurrency: Concurrency::Fixed(slots), ..Limits::default() }
}

fn answering_in(millis: u64) -> Server {
    Server { latency: Latency::fixed(Duration::from_millis(millis)), ..Server::default() }
}

fn sick(faults: &str) -> Server {
    Server { faults: faults.parse().unwrap(), ..answering_in(20) }
}

/// Whether two runs were the same, request by request.
fn trace(world: &World) -> Vec<(u64, Option<blake3::Hash>, String)> {
    let entries = world.server.entries().into_iter();
    entries.map(|entry| (entry.at_us, entry.fingerprint, entry.outcome.to_string())).collect()
}

#[tokio::test(start_paused = true)]
async fn every_request_ends_in_one_record_whatever_the_server_does() {
    for seed in 0..20 {
        let faults = "429=0.1,500=0.1,503=0.05,drop=0.05,cut=0.05,garbage=0.05,empty=0.05";
        let mut world = World::new(seed, sick(faults), slots(16));
        let job = world.put(1, &["a", "b"], 200).await;
        world.finish(&job).await;
        world.assert_one_record_each(&job);
        let state = world.store.job(job.id).await.unwrap();
        assert_eq!((state.leased, state.waiting, state.counts.open()), (0, 0, 0), "seed {seed}");
    }
}

#[test]
fn one_seed_gives_one_run() {
    // A runtime each: timers are rounded from the moment a runtime began.
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let mut world = World::new(7, sick("429=0.2,500=0.2,drop=0.1"), slots(8));
            let job = world.put(1, &["m"], 100).await;
            world.finish(&job).await;
            trace(&world)
        })
    };
    let (first, second) = (run(), run());
    assert!(first.len() > 100);
    let differing = first.iter().zip(&second).position(|(a, b)| a != b);
    assert_eq!(differing.map(|at| (at, &first[at - 1..], &second[at - 1..])), None);
}

#[tokio::test(start_paused = true)]
async fn a_healthy_server_is_asked_once_for_each_request_with_all_slots_in_use() {
    let mut world = World::new(1, answering_in(100), slots(8));
    let job = world.put(1, &["m"], 400).await;
    let started = Instant::now();
    let ended = world.finish(&job).await;
    let summary = world.server.summary();
    assert_eq!((summary.requests, summary.paid_twice, summary.max_in_flight), (400, 0, 8));
    let took = (ended - started).as_secs_f64();
    assert!(
        (5.0..7.0).contains(&took),
        "400 requests of 0.1 s on 8 slots took {took} s, and the start is slow"
    );
}

#[tokio::test(start_paused = true)]
async fn a_provider_bounds_all_of_its_queues_together() {
    let mut world = World::with(1, answering_in(100), slots(8), 10);
    let job = world.put(1, &["a", "b", "c"], 300).await;
    world.finish(&job).await;
    assert_eq!(world.server.summary().max_in_flight, 10);
}

#[tokio::test(start_paused = true)]
async fn requests_per_minute_are_used_and_never_exceeded() {
    let server = Server { requests_per_minute: Some(600), ..answering_in(50) };
    let limits = Limits { requests_per_minute: Some(600), ..slots(64) };
    let mut world = World::new(1, server, limits);
    let job = world.put(1, &["m"], 600).await;
    let started = Instant::now();
    let ended = world.finish(&job).await;
    assert_eq!(world.server.summary().requests, 600, "nothing was refused");
    let took = (ended - started).as_secs_f64();
    assert!((59.0..61.0).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn tokens_per_minute_are_never_exceeded() {
    let server = Server { tokens_per_minute: Some(6_000), ..answering_in(50) };
    let limits = Limits { tokens_per_minute: Some(6_000), ..slots(64) };
    let mut world = World::new(1, server, limits);
    let job = world.put(1, &["m"], 200).await;
    let started = Instant::now();
    let ended = world.finish(&job).await;
    assert_eq!(world.server.summary().by_outcome.get("ok"), Some(&200));
    assert_eq!(world.server.summary().requests, 200, "nothing was refused");
    let took = (ended - started).as_secs_f64();
    assert!((20.0..30.0).contains(&took), "200 requests of about 12 tokens took {took} s");
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_stops_the_queue_and_fails_nothing() {
    let server = Server { auth: Auth::Key("another".into()), ..answering_in(20) };
    let mut world = World::new(1, server, slots(8));
    let job = world.put(1, &["m"], 500).await;
    let running = world.start();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let asked = world.server.summary().requests;
    assert!((1..=8 + 5).contains(&asked), "{asked}");
    let pauses = world.board.pauses();
    assert_eq!(pauses.values().map(|pause| pause.reason).collect::<Vec<_>>(), [PauseReason::Auth]);
    assert_eq!(world.store.job(job.id).await.unwrap().counts.settled(), 0);

    // The key is made right; a person says so; the queue goes on.
    world.server.change(Changes { key: Change::Clear, ..Changes::default() }, Instant::now());
    world.board.resume();
    until_settled(&*world.store, job.id, job.total).await;
    world.stop.cancel();
    running.await.unwrap().unwrap();
    world.assert_one_record_each(&job);
    assert_eq!(world.store.job(job.id).await.unwrap().counts.completed, 500);
    assert!(world.board.pauses().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_used_up_quota_is_tried_now_and_then_and_goes_on_by_itself() {
    let mut world = World::new(1, Server { quota_after: Some(20), ..answering_in(20) }, slots(4));
    let job = world.put(1, &["m"], 50).await;
    let running = world.start();
    tokio::time::sleep(Duration::from_mins(30)).await;
    let summary = world.server.summary();
    assert_eq!(summary.paid, 20);
    assert!(summary.requests < 20 + 4 + 10, "{summary:?}");
    world.server.change(Changes { quota_after: Change::Clear, ..Changes::default() }, Instant::now());
    until_settled(&*world.store, job.id, job.total).await;
    world.stop.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(world.store.job(job.id).await.unwrap().counts.completed, 50);
}

#[tokio::test(start_paused = true)]
async fn a_model_that_never_was_fails_its_requests_alone() {
    let server = Server { models: vec!["known".to_owned()], ..answering_in(20) };
    let mut world = World::new(1, server, slots(4));
    let job = world.put(1, &["known", "typo"], 20).await;
    world.finish(&job).await;
    let counts = world.store.job(job.id).await.unwrap().counts;
    assert_eq!((counts.completed, counts.failed), (10, 10));
    assert_eq!(world.server.summary().requests, 20, "a missing model is asked for once a request");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_job_sends_nothing_more_and_keeps_what_was_in_flight() {
    let mut world = World::new(1, answering_in(1_000), slots(4));
    let job = world.put(1, &["m"], 100).await;
    let running = world.start();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    world.store.set_status(job.id, JobStatus::Cancelling, world.clock.now()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.server.summary().requests, 8);
    let state = world.store.job(job.id).await.unwrap();
    assert_eq!((state.counts.completed, state.leased), (8, 0));
    world.stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_paused_job_goes_on_where_it_stood() {
    let mut world = World::new(1, answering_in(100), slots(4));
    let job = world.put(1, &["m"], 40).await;
    let running = world.start();
    tokio::time::sleep(Duration::from_millis(250)).await;
    let paused = JobStatus::Paused { reason: PauseReason::User };
    world.store.set_status(job.id, paused, world.clock.now()).await.unwrap();
    tokio::time::sleep(Duration::from_mins(1)).await;
    let sent = world.server.summary().requests;
    assert!((4..=12).contains(&sent), "{sent}");
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(world.server.summary().requests, sent);
    world.store.set_status(job.id, JobStatus::InProgress, world.clock.now()).await.unwrap();
    until_settled(&*world.store, job.id, job.total).await;
    world.stop.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(world.server.summary().requests, 40);
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_what_is_in_flight_finish_and_repeats_nothing() {
    let mut world = World::new(1, answering_in(1_000), slots(4));
    let job = world.put(1, &["m"], 20).await;
    let running = world.start();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    world.stop.cancel();
    running.await.unwrap().unwrap();
    let state = world.store.job(job.id).await.unwrap();
    assert_eq!((state.counts.completed, state.leased, state.waiting), (12, 0, 0));
    assert_eq!(world.server.summary().requests, 12);
}

#[tokio::test(start_paused = true)]
async fn hurry_abandons_what_is_in_flight() {
    let mut world = World::new(1, answering_in(60_000), slots(4));
    world.put(1, &["m"], 20).await;
    let running = world.start();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let stopped_at = Instant::now();
    world.stop.cancel();
    world.hurry.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(Instant::now(), stopped_at);
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_waited_for() {
    let server = Server { requests_per_minute: Some(60), ..answering_in(10) };
    let mut world = World::new(1, server, slots(32));
    let job = world.put(1, &["m"], 90).await;
    world.finish(&job).await;
    world.assert_one_record_each(&job);
    assert_eq!(world.store.job(job.id).await.unwrap().counts.completed, 90, "being throttled fails nothing");
    let summary = world.server.summary();
    assert!(summary.requests < 90 * 6, "{summary:?}");
    assert_eq!(summary.paid_twice, 0);
}

#[tokio::test(start_paused = true)]
async fn permanent_refusals_are_not_retried() {
    let mut world = World::new(1, answering_in(10), slots(4));
    let job = conformance::job(1, 5, &["m"], 3);
    let line = |index: u32| {
        let body = format!(r#"{{"model":"m","messages":[],"user":"{index}"}}"#);
        let url = "/v1/chat/completions";
        (0, Bytes::from(format!(r#"{{"custom_id":"{index}","method":"POST","url":"{url}","body":{body}}}"#)))
    };
    world.store.put_job(job.clone(), Input::Inline((0..3).map(line).collect())).await.unwrap();
    world.finish(&job).await;
    assert_eq!(world.server.summary().requests, 3);
    assert_eq!(world.store.job(job.id).await.unwrap().counts.failed, 3);
    assert!(world.paid().is_empty());
}

#[tokio::test(start_paused = true)]
async fn answers_belong_to_their_requests() {
    let mut world = World::new(3, sick("500=0.2,drop=0.1"), slots(16));
    let job = world.put(1, &["m"], 100).await;
    world.finish(&job).await;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut world.store.journal(job.id).unwrap(), &mut text).unwrap();
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        let custom_id = record["custom_id"].as_str().unwrap();
        let (_, index) = custom_id.split_once('-').unwrap();
        if record["error"].is_null() && record["response"]["status_code"] == 200 {
            let answer = record["response"]["body"]["choices"][0]["message"]["content"].as_str().unwrap();
            assert!(answer.ends_with(&format!("1 {index}")), "{custom_id}: {answer}");
        }
        assert!(seen.insert(custom_id.to_owned()));
    }
    assert_eq!(seen.len(), 100);
}

#[tokio::test(start_paused = true)]
async fn other_slots_hold_at_once_for_a_job_that_runs() {
    let mut world = World::with(1, answering_in(100), slots(8), 256);
    let job = world.put(1, &["m"], 1_000).await;
    let running = world.start();
    let second = Duration::from_millis(400);
    tokio::time::sleep(Duration::from_secs(4)).await; // the start is slow
    assert_eq!(world.most_in_flight(second).await, 8);

    world.reload(|provider, _| provider.limits = slots(2));
    tokio::time::sleep(Duration::from_millis(100)).await; // what was in flight may finish
    assert_eq!(world.most_in_flight(second).await, 2);
    let leased = world.store.job(job.id).await.unwrap().leased;
    assert!(leased <= 4, "{leased} are leased, and others may have more urgent ones");
    world.reload(|provider, _| provider.limits = slots(16));
    assert_eq!(world.most_in_flight(second).await, 16);
    let queue = QueueName::new("p", Some("m"));
    let report = &world.live.queues()[&queue];
    assert_eq!((report.concurrency_max, report.concurrency, report.in_flight), (16, 16, 16));

    // The provider's own bound, and what is said of one model.
    world.reload(|provider, _| provider.concurrency = 3);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.most_in_flight(second).await, 3);
    world.reload(|provider, _| provider.concurrency = 256);
    assert_eq!(world.most_in_flight(second).await, 16);
    let model = |name: &str, slots| config::ModelLimits {
        name: name.to_owned(),
        concurrency: Some(Concurrency::Fixed(slots)),
        requests_per_minute: None,
        tokens_per_minute: None,
    };
    world.reload(|provider, _| provider.models = vec![model("x*", 1), model("m*", 5)]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.most_in_flight(second).await, 5);
    world.reload(|provider, _| *provider = config::Provider { models: Vec::new(), ..provider.clone() });

    until_settled(&*world.store, job.id, job.total).await;
    world.stop.cancel();
    running.await.unwrap().unwrap();
    world.assert_one_record_each(&job);
    assert_eq!(world.server.summary().requests, 1_000, "each was sent once");
    assert!(world.live.queues().is_empty());
    assert_eq!(world.live.answered().total, 1_000);
}

#[tokio::test(start_paused = true)]
async fn leases_for_slots_that_are_gone_go_back_at_once() {
    let mut world = World::with(1, answering_in(100), slots(64), 256);
    let job = world.put(1, &["m"], 20_000).await;
    let running = world.start();
    tokio::time::sleep(Duration::from_secs(15)).await; // the start is slow
    assert!(world.store.job(job.id).await.unwrap().leased > 64);
    world.reload(|provider, _| provider.limits = slots(1));
    tokio::time::sleep(Duration::from_millis(150)).await; // what was in flight may finish
    let leased = world.store.job(job.id).await.unwrap().leased;
    assert!(leased <= 3, "{leased} are leased, and others may have more urgent ones");
    world.stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn other_rates_hold_at_once_without_a_burst() {
    let mut world = World::new(1, answering_in(10), slots(64));
    world.put(1, &["m"], 2_500).await;
    let running = world.start();
    let mut before = 0;
    for (requests, tokens, most) in [
        (Some(600), None, 10 * 10 + 2),
        (Some(60), None, 10 + 2),
        (Some(6_000), None, 100 * 10 + 11),
        // Each request counts as some 12 tokens.
        (None, Some(6_000), 10 * 6_000 / 60 / 10),
        (Some(600), Some(600_000), 10 * 10 + 2),
    ] {
        world.reload(|provider, _| {
            let limits = &mut provider.limits;
            (limits.requests_per_minute, limits.tokens_per_minute) = (requests, tokens);
        });
        // What is in flight now was sent under the old ones.
        let sent = || world.server.summary().requests + world.server.in_flight();
        tokio::task::yield_now().await;
        before = before.max(sent());
        tokio::time::sleep(Duration::from_secs(10)).await;
        let now = sent();
        assert!((most / 3..=most).contains(&(now - before)), "{} at {requests:?} {tokens:?}", now - before);
        before = now;
    }
    world.stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn another_retry_policy_holds_for_what_is_sent_from_now_on() {
    let mut world = World::new(1, sick("500=1"), slots(1));
    let job = world.put(1, &["m"], 3).await;
    world.reload(|_, retry| *retry = RetryPolicy { max_attempts: 1000, ..*retry });
    let running = world.start();
    tokio::time::sleep(Duration::from_mins(20)).await;
    assert_eq!(world.store.job(job.id).await.unwrap().counts.settled(), 0);
    world.reload(|_, retry| *retry = RetryPolicy { max_attempts: 1, ..*retry });
    tokio::time::sleep(Duration::from_mins(3)).await;
    let counts = world.store.job(job.id).await.unwrap().counts;
    assert_eq!((counts.failed, counts.open()), (3, 0));
    world.stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_key_is_rotated_under_a_job_that_runs_and_nothing_is_lost() {
    let key = |key: &str| Change::Set(key.to_owned().into());
    let server = Server { auth: Auth::Key("sk-test".into()), ..answering_in(100) };
    let mut world = World::new(1, server, slots(8));
    let job = world.put(1, &["a", "b"], 2_000).await;
    let running = world.start();
    for round in 0..3 {
        tokio::time::sleep(Duration::from_millis(1_050)).await;
        let next = format!("sk-{round}");
        world.server.change(Changes { key: key(&next), ..Changes::default() }, Instant::now());
        // In the first round nobody is refused before the reload; in the others the gate has closed, and for longer
        // each time a try with the old key is refused.
        tokio::time::sleep(Duration::from_mins(2 * round)).await;
        assert_eq!(world.board.pauses().is_empty(), round == 0);
        let refused = world.server.summary().requests - world.paid().len() as u64;
        world.reload(|provider, _| provider.api_key = Some(next.into()));
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(world.board.pauses(), BTreeMap::new(), "round {round}");
        let late = world.server.summary().requests - world.paid().len() as u64 - refused;
        assert!(late <= 16, "{late} were refused after the reload");
    }
    until_settled(&*world.store, job.id, job.total).await;
    world.stop.cancel();
    running.await.unwrap().unwrap();
    world.assert_one_record_each(&job);
    assert_eq!(world.store.job(job.id).await.unwrap().counts.completed, 2_000);
    assert_eq!((world.paid().len(), world.server.summary().paid_twice), (2_000, 0));
}

#[tokio::test(start_paused = true)]
async fn settings_that_change_in_every_instant_lose_and_repeat_nothing() {
    let mut world = World::new(1, sick("429=0.1"), slots(8));
    let job = world.put(1, &["a", "b"], 1_500).await;
    let running = world.start();
    let mut dice = Seed::fixed(3).derive("reloads");
    while world.store.job(job.id).await.unwrap().counts.open() > 0 {
        world.reload(|provider, _| {
            provider.limits = slots(dice.u32(1..40));
            provider.limits.requests_per_minute = dice.bool().then(|| dice.u32(1_000..90_000));
            provider.limits.tokens_per_minute = dice.bool().then(|| dice.u64(100_000..9_000_000));
            provider.concurrency = dice.u32(1..40);
            provider.api_key = Some(format!("sk-{}", dice.u8(0..3)).into());
        });
        tokio::time::sleep(Duration::from_millis(dice.u64(0..40))).await;
    }
    world.stop.cancel();
    running.await.unwrap().unwrap();
    world.assert_one_record_each(&job);
    assert_eq!((world.paid().len(), world.server.summary().paid_twice), (1_500, 0));
}
