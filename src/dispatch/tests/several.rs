//! A provider with several endpoints under the paused clock: how its requests spread, and who goes on when one of them
//! is out.

use tokio::time::sleep;

use super::*;
use crate::domain::{FineTune, Kind, QueueName, TuningApi, TuningData};
use crate::provider::Transport;
use crate::simulate::{Faults, LimitsTold};

/// A world whose provider has several endpoints, a server each.
struct Several {
    world: World,
    servers: Vec<Arc<Engine>>,
}

impl Several {
    fn new(servers: Vec<Server>, concurrency: u32) -> Self {
        Self::weighted(servers, concurrency, &[])
    }

    fn weighted(servers: Vec<Server>, concurrency: u32, weights: &[u32]) -> Self {
        let engine = |(seed, server)| Arc::new(Engine::new(server, Seed::fixed(seed)).unwrap());
        let servers: Vec<Arc<Engine>> = (1..).zip(servers).map(engine).collect();
        let transport = |server: &Arc<Engine>| {
            Arc::new(SimulatedTransport::new(Arc::clone(server))) as Arc<dyn Transport>
        };
        let transports = servers.iter().map(transport).collect();
        let mut provider = testing::with_endpoints(transports, Duration::from_mins(10), slots(concurrency));
        for (site, weight) in provider.sites.iter_mut().zip(weights) {
            site.weight = *weight;
        }
        for (endpoint, weight) in provider.config.endpoints.iter_mut().zip(weights) {
            endpoint.weight = *weight;
        }
        Self { world: World::of(1, Arc::clone(&servers[0]), provider), servers }
    }

    /// How many requests have come to each server.
    fn asked(&self) -> Vec<u64> {
        self.servers.iter().map(|server| server.summary().requests).collect()
    }

    fn change(&self, server: usize, changes: Changes) {
        self.servers[server].change(changes, Instant::now());
    }

    /// Endpoints that are out, as the only queue shows them.
    fn out(&self) -> Vec<String> {
        self.world.live.queues().into_values().flat_map(|queue| queue.out).collect()
    }

    async fn completed(&self, job: &Job) -> u32 {
        self.world.store.job(job.id).await.unwrap().counts.completed
    }

    /// Runs one job to its end: all of it is answered, and paid for once.
    async fn finish(&mut self, total: u32) -> Duration {
        let job = self.world.put(1, &["m"], total).await;
        let started = Instant::now();
        let took = self.world.finish(&job).await - started;
        self.world.assert_one_record_each(&job);
        assert_eq!(self.completed(&job).await, total);
        took
    }

    /// Runs while `script` runs on a job of `total`, and until that is answered.
    async fn while_it_runs(&mut self, total: u32, script: impl AsyncFnOnce(&Self, &Job)) {
        let job = self.world.put(1, &["m"], total).await;
        let running = self.world.start();
        script(self, &job).await;
        until_settled(&*self.world.store, job.id, total).await;
        self.world.stop.cancel();
        running.await.unwrap().unwrap();
        self.world.assert_one_record_each(&job);
        assert_eq!(self.completed(&job).await, total);
        let paid: u64 = self.servers.iter().map(|server| server.summary().paid).sum();
        assert_eq!(paid, u64::from(total));
    }
}

/// A job of the queue of all that may lack a model: a fine-tune, or one of `total` image requests.
async fn put_without_model(world: &World, number: u8, total: u32, plan: Option<&FineTune>) -> Job {
    let kind = if plan.is_some() { Kind::FineTune } else { Kind::Images };
    let job =
        Job { kind, queues: vec![QueueName::new("p", None)], ..conformance::job(number, 5, &[], total) };
    let line = |n: u32| {
        let image = serde_json::json!({
            "custom_id": format!("{number}-{n}"), "method": "POST", "url": "/v1/images/generations",
            "body": {"prompt": "a cat"},
        });
        let line = plan.map_or_else(|| image.to_string(), |plan| serde_json::to_string(plan).unwrap());
        (0, Bytes::from(line))
    };
    world.store.put_job(job.clone(), Input::Inline((0..total).map(line).collect())).await.unwrap();
    job
}

fn plan() -> FineTune {
    FineTune {
        custom_id: "support".to_owned(),
        api: TuningApi::Jobs,
        training: TuningData::Uploaded { id: "file-none".to_owned() },
        validation: None,
        body: [("model".to_owned(), "gpt-4.1-mini".into())].into_iter().collect(),
        delete_uploads: false,
    }
}

fn another_key(millis: u64) -> Server {
    Server { auth: Auth::Key("another".into()), ..answering_in(millis) }
}

fn let_in_all() -> Changes {
    Changes { key: Change::Clear, ..Changes::default() }
}

#[tokio::test(start_paused = true)]
async fn equal_endpoints_get_equal_parts_and_weights_hold() {
    for (concurrency, weights, expected) in
        [(8, [1, 1], [200, 200]), (8, [3, 1], [300, 100]), (1, [3, 1], [300, 100]), (2, [9, 1], [360, 40])]
    {
        let mut several = Several::weighted(vec![answering_in(20), answering_in(20)], concurrency, &weights);
        several.finish(400).await;
        for (asked, expected) in several.asked().into_iter().zip(expected) {
            assert!(asked.abs_diff(expected) <= 10, "{:?} of {weights:?}", several.asked());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slower_endpoint_gets_fewer() {
    let mut several = Several::new(vec![answering_in(20), answering_in(80)], 16);
    several.finish(1_000).await;
    let asked = several.asked();
    assert!((720..=880).contains(&asked[0]), "{asked:?}: four times as many as the other");
}

#[tokio::test(start_paused = true)]
async fn other_weights_hold_at_once() {
    let mut several = Several::new(vec![answering_in(20), answering_in(20)], 4);
    several
        .while_it_runs(1_000, async |several, _| {
            sleep(Duration::from_secs(1)).await;
            let before = several.asked();
            several.world.reload(|provider, _| provider.endpoints[1].weight = 3);
            sleep(Duration::from_secs(1)).await;
            let now = several.asked();
            let [first, second] = [now[0] - before[0], now[1] - before[1]];
            assert!(second.abs_diff(3 * first) <= 10, "{first} {second}");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn the_limits_in_force_are_those_of_the_endpoints_that_are_open() {
    let limited = |server| Server {
        requests_per_minute: Some(600),
        limits_told: LimitsTold::Headers,
        limits_per_key: true,
        ..server
    };
    let mut several = Several::new(vec![limited(answering_in(2_000)), limited(another_key(2_000))], 8);
    several
        .while_it_runs(1_600, async |several, _| {
            let shown = || {
                let report = several.world.live.queues().into_values().next().unwrap();
                (report.requests_per_minute, report.concurrency, report.endpoints_out)
            };
            sleep(Duration::from_secs(10)).await;
            assert_eq!(shown(), (Some(600), 8, 1));
            several.change(1, let_in_all());
            sleep(Duration::from_mins(5)).await;
            assert_eq!(shown(), (Some(1_200), 8, 0));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_hold_is_shown_while_no_open_endpoint_takes_anything() {
    let later = |hint: &str| Server {
        faults: "429=1".parse().unwrap(),
        hints: hint.parse().unwrap(),
        ..answering_in(100)
    };
    let mut several = Several::new(vec![later("seconds:30s"), later("seconds:90s")], 4);
    several
        .while_it_runs(20, async |several, _| {
            let hold = || several.world.live.queues().into_values().next().unwrap().hold();
            sleep(Duration::from_secs(10)).await;
            assert!((Duration::from_secs(19)..=Duration::from_secs(20)).contains(&hold()), "{:?}", hold());
            for server in [0, 1] {
                several.change(server, Changes { faults: Some(Faults::default()), ..Changes::default() });
            }
            sleep(Duration::from_secs(25)).await;
            assert_eq!(hold(), Duration::ZERO);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_whose_key_is_refused_is_out_until_it_is_let_in() {
    let mut several = Several::new(vec![answering_in(2_000), another_key(2_000)], 8);
    several
        .while_it_runs(1_600, async |several, _| {
            sleep(Duration::from_secs(10)).await;
            let refused = several.asked()[1];
            assert!((1..=8).contains(&refused), "{refused}");
            assert_eq!(several.world.board.pauses(), BTreeMap::new(), "the other one goes on");
            let out = several.out();
            assert!(out[0].starts_with("auth: endpoint 2 (127.0.0.1:2): 401: "), "{out:?}");
            assert_eq!(out.len(), 1);
            assert!(several.asked()[0] > 20);

            // It is tried now and then, with one request.
            sleep(Duration::from_mins(2)).await;
            assert_eq!(several.asked()[1], refused + 1);
            several.change(1, let_in_all());
            sleep(Duration::from_mins(3)).await;
            assert_eq!(several.out(), [""; 0]);
            let before = several.asked();
            sleep(Duration::from_mins(1)).await;
            let now = several.asked();
            assert!(
                now[1] - before[1] > 50 && (now[1] - before[1]).abs_diff(now[0] - before[0]) < 20,
                "{before:?} {now:?}"
            );
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_without_quota_leaves_the_rest_to_the_others() {
    let without = Server { quota_after: Some(20), ..answering_in(20) };
    let mut several = Several::new(vec![without, answering_in(20), answering_in(20)], 6);
    several.finish(600).await;
    let asked = several.asked();
    assert!((21..=26).contains(&asked[0]), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_paused_when_all_of_its_endpoints_are_out_and_goes_on_with_any() {
    let mut several = Several::new(vec![another_key(20), another_key(20)], 8);
    several
        .while_it_runs(500, async |several, job| {
            sleep(Duration::from_secs(5)).await;
            let pauses: Vec<_> = several.world.board.pauses().into_values().collect();
            assert!(pauses[0].message.starts_with("endpoint 1 (127.0.0.1:1): 401: "), "{pauses:?}");
            assert_eq!((several.out().len(), several.completed(job).await), (2, 0));
            assert!(several.asked().iter().sum::<u64>() <= 8 + 5);
            several.change(1, let_in_all());
            several.world.board.resume();
            sleep(Duration::from_secs(3)).await;
            assert_eq!(several.world.board.pauses(), BTreeMap::new());
        })
        .await;
    assert_eq!(several.servers[0].summary().paid, 0);
}

#[tokio::test(start_paused = true)]
async fn another_key_lets_its_own_endpoint_alone_try_again() {
    let mut several = Several::new(vec![another_key(20), another_key(20), answering_in(200)], 4);
    several
        .while_it_runs(400, async |several, _| {
            sleep(Duration::from_secs(5)).await;
            let before = several.asked();
            assert_eq!(several.out().len(), 2);
            let key = Change::Set("sk-new".to_owned().into());
            several.change(1, Changes { key, ..Changes::default() });
            several.world.reload(|provider, _| {
                provider.endpoints[1].api_key = Some("sk-new".into());
            });
            sleep(Duration::from_secs(5)).await;
            assert_eq!(several.asked()[0], before[0]);
            assert!(several.asked()[1] > before[1] + 100, "{before:?} {:?}", several.asked());
            let out = several.out();
            assert!(out.len() == 1 && out[0].contains("endpoint 1 "), "{out:?}");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_model_that_one_endpoint_lacks_is_asked_of_the_others_from_the_first_request_on() {
    let without = Server { models: vec!["other".to_owned()], ..answering_in(1) };
    // The one that has it takes its time: the other has said no before anything was answered.
    let mut several = Several::new(vec![without, answering_in(500)], 8);
    several.finish(100).await;
    let asked = several.asked();
    assert!((1..=8).contains(&asked[0]), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_model_that_no_endpoint_has_fails_its_requests() {
    let without = || Server { models: vec!["other".to_owned()], ..answering_in(20) };
    let mut several = Several::new(vec![without(), without()], 4);
    let job = several.world.put(1, &["m"], 50).await;
    several.world.finish(&job).await;
    several.world.assert_one_record_each(&job);
    assert_eq!(several.world.store.job(job.id).await.unwrap().counts.failed, 50);
}

#[tokio::test(start_paused = true)]
async fn what_failed_at_one_endpoint_is_tried_at_another() {
    let mut several = Several::new(vec![answering_in(20), sick("500=1")], 4);
    several.world.reload(|_, retry| *retry = RetryPolicy { max_attempts: 2, ..*retry });
    several.finish(200).await;
    assert!(several.asked()[1] < 40, "it is down, and left out: {:?}", several.asked());
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_down_is_named_and_comes_back_by_itself() {
    let mut several = Several::new(vec![answering_in(500), sick("500=1")], 4);
    several
        .while_it_runs(1_500, async |several, _| {
            sleep(Duration::from_secs(30)).await;
            let out = several.out();
            assert!(out.len() == 1 && out[0].starts_with("outage: endpoint 2 (127.0.0.1:2): "), "{out:?}");
            assert_eq!(several.world.board.pauses(), BTreeMap::new());
            let faults = Some("".parse().unwrap());
            several.change(1, Changes { faults, ..Changes::default() });
            sleep(Duration::from_mins(2)).await;
            assert_eq!(several.out(), [""; 0]);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_asks_to_come_later_holds_nobody_else() {
    let slow = Server { requests_per_minute: Some(6), ..answering_in(20) };
    let mut several = Several::new(vec![slow, answering_in(20)], 4);
    let took = several.finish(600).await;
    assert!(took < Duration::from_mins(1), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn others_pass_fine_tunes_that_wait_for_the_first_endpoint_and_none_of_them_is_lost() {
    // Those of the second round are more than may step aside.
    for fine_tunes in [3, 70] {
        let mut several = Several::new(vec![another_key(20), answering_in(20)], 4);
        let first = put_without_model(&several.world, 1, 20, None).await;
        let running = several.world.start();
        until_settled(&*several.world.store, first.id, 20).await;
        assert_eq!(several.out().len(), 1, "the key of the first one is refused");
        let mut jobs = Vec::new();
        for number in 0..fine_tunes {
            jobs.push(put_without_model(&several.world, 100 + number, 1, Some(&plan())).await);
        }
        sleep(Duration::from_secs(1)).await;
        let images = put_without_model(&several.world, 2, 40, None).await;
        sleep(Duration::from_secs(5)).await;
        if fine_tunes == 3 {
            assert_eq!(several.completed(&images).await, 40);
        }
        several.change(0, let_in_all());
        let let_in = Instant::now();
        jobs.push(images);
        for job in &jobs {
            until_settled(&*several.world.store, job.id, job.total).await;
            several.world.assert_one_record_each(job);
        }
        assert!(let_in.elapsed() < Duration::from_mins(2), "{:?}", let_in.elapsed());
        several.world.stop.cancel();
        running.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_fine_tune_that_stepped_aside_goes_back_when_its_job_is_paused_and_is_the_first_where_it_may_go() {
    // Six a minute at the first endpoint, for which the images compete.
    let slow = Server { requests_per_minute: Some(6), ..answering_in(20) };
    let mut several = Several::new(vec![slow, answering_in(200)], 2);
    let images = put_without_model(&several.world, 1, 2_000, None).await;
    let running = several.world.start();
    sleep(Duration::from_secs(15)).await;
    let store = Arc::clone(&several.world.store);
    let tuned = put_without_model(&several.world, 2, 1, Some(&plan())).await;
    let put = Instant::now();
    sleep(Duration::from_millis(300)).await;
    assert_eq!(store.job(tuned.id).await.unwrap().counts.open(), 1);
    let now = several.world.clock.now();
    store.set_status(tuned.id, JobStatus::Paused { reason: PauseReason::User }, now).await.unwrap();
    sleep(Duration::from_millis(300)).await;
    assert_eq!(store.job(tuned.id).await.unwrap().leased, 0);
    store.set_status(tuned.id, JobStatus::InProgress, now).await.unwrap();
    until_settled(&*store, tuned.id, 1).await;
    assert!(put.elapsed() < Duration::from_secs(30), "{:?}", put.elapsed());
    assert!(several.completed(&images).await < 2_000);
    several.world.stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_request_ends_in_one_record_whatever_the_endpoints_do() {
    for seed in 0..5 {
        let faults = ["429=0.2,500=0.1,drop=0.05", "503=0.2,cut=0.05,garbage=0.05", ""];
        let servers = faults.map(|faults| if faults.is_empty() { another_key(20) } else { sick(faults) });
        let mut several = Several::weighted(servers.into(), 8, &[1 + seed % 3, 2, 1]);
        let job = several.world.put(1, &["a", "b"], 300).await;
        several.world.finish(&job).await;
        several.world.assert_one_record_each(&job);
        let state = several.world.store.job(job.id).await.unwrap();
        assert_eq!((state.leased, state.waiting, state.counts.open()), (0, 0, 0), "seed {seed}");
    }
}
