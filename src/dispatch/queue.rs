//! One dispatcher: the task that owns a queue's limits and sends its requests.
//!
//! # Operation
//!
//! It keeps a few leased requests ready, sends the next one as soon as limits and gates let it, and sleeps
//! until something changes: an attempt ends, the store has news, a limit or a retry falls due. Waiting
//! requests are in the store, never in a timer here, so nothing is lost at a restart.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::control::{Board, QueuePause};
use crate::dispatch::Stop;
use crate::dispatch::attempt::{self, Ended, Parts, Prepared};
use crate::dispatch::choice::{Blocked, Chosen};
use crate::dispatch::estimate::Estimator;
use crate::dispatch::failure::{Error, Result, guarded};
use crate::dispatch::flex;
use crate::dispatch::gate::Gate;
use crate::dispatch::lane::Lane;
use crate::dispatch::limits::Limits;
use crate::dispatch::live::Shown;
use crate::dispatch::memory::Memory;
use crate::dispatch::prepare::{Next, Work};
use crate::dispatch::spread::FailedAt;
use crate::dispatch::tuned::TunedModels;
use crate::dispatch::tuning;
use crate::domain::{JobId, JobState, QueueName, RetryPolicy, Timestamp};
use crate::fault;
use crate::pulse::Member;
use crate::store::Lease;

/// A dispatcher without work ends after this long. Until then it remembers that its model has answered.
const LINGER: Duration = Duration::from_mins(10);

/// See the module's words.
#[derive(Debug)]
pub(super) struct Dispatcher {
    pub(super) queue: QueueName,
    pub(super) parts: Arc<Parts>,
    /// The queue by whose name its limits are configured.
    pub(super) limits_name: QueueName,
    pub(super) limits: Limits,
    /// At least one.
    pub(super) lanes: Vec<Lane>,
    /// How many may be inside the provider, over all its queues.
    pub(super) provider_gate: Arc<Gate>,
    pub(super) shown: Shown,
    pub(super) retry: RetryPolicy,
    /// See [`config::Provider::flex_fallback`].
    pub(super) flex_fallback: Option<Duration>,
    pub(super) board: Board,
    /// As it was last shown there.
    pub(super) paused: Option<QueuePause>,
    pub(super) memory: Memory,
    /// When what was learnt is next noted there.
    pub(super) remember_at: Instant,
    pub(super) rng: Rng,
    pub(super) estimator: Estimator,
    /// What is known of the models that fine-tunes have made.
    pub(super) tuned: TunedModels,
    /// Leased, not yet sent.
    pub(super) ready: VecDeque<Lease>,
    /// The next to be sent, read and estimated.
    pub(super) next: Option<Next>,
    /// What waits for the one lane that it may take while others pass, the first first. See [`super::stock`].
    pub(super) aside: VecDeque<Next>,
    running: JoinSet<Result<Ended>>,
    /// What is known of the jobs in `ready`.
    pub(super) jobs: BTreeMap<JobId, Arc<JobState>>,
    /// The jobs that had something to send at the last news.
    pub(super) rivals: BTreeSet<JobId>,
    /// When the store's first waiting request falls due.
    pub(super) next_due: Option<Timestamp>,
    /// The store had nothing more the last time it was asked.
    pub(super) dry: bool,
    /// Where requests have failed that are tried again.
    pub(super) failed_at: FailedAt,
    /// Its model had no name yet when its limits were looked up: another dispatcher takes its place.
    pub(super) is_early: bool,
    /// Its place on the roll, for its own loop and nothing else.
    member: Arc<Member>,
}

/// What a dispatcher needs beside what its attempts do.
#[derive(Debug)]
pub(super) struct Extras {
    pub(super) lanes: Vec<Lane>,
    pub(super) provider_gate: Arc<Gate>,
    pub(super) board: Board,
    pub(super) memory: Memory,
    pub(super) rng: Rng,
    pub(super) member: Member,
}

impl Dispatcher {
    pub(super) fn new(queue: QueueName, parts: Arc<Parts>, limits_name: QueueName, extras: Extras) -> Self {
        let Extras { lanes, provider_gate, board, memory, rng, member } = extras;
        Self {
            // Those that hold are taken over where it begins to serve.
            limits: Limits::new(&config::Limits::default(), Instant::now()),
            lanes,
            provider_gate,
            limits_name,
            shown: parts.live.show(&queue),
            queue,
            parts,
            retry: RetryPolicy::default(),
            flex_fallback: None,
            board,
            paused: None,
            memory,
            remember_at: Instant::now(),
            rng,
            estimator: Estimator::default(),
            tuned: TunedModels::default(),
            ready: VecDeque::new(),
            next: None,
            aside: VecDeque::new(),
            running: JoinSet::new(),
            jobs: BTreeMap::new(),
            rivals: BTreeSet::new(),
            next_due: None,
            dry: false,
            failed_at: FailedAt::default(),
            is_early: false,
            member: Arc::new(member),
        }
    }

    /// Sends the queue's requests until `stop`, or until there has been nothing to do for a while. What is
    /// in flight at `stop` may take until `grace` has passed.
    pub(super) async fn run(mut self, stop: Stop) -> Result<()> {
        let name = format!("the dispatcher of {}", self.queue);
        let cut = stop.cut().shared();
        // It may be settling what a full disk does not take.
        let ended = tokio::select! { biased;
            ended = guarded(&name, self.serve(&stop.work)) => ended,
            () = cut.clone() => Ok(()),
        };
        if ended.is_err() {
            stop.work.cancel(); // it is the store's error, or a bug: no queue may send any more
        }
        self.board.clear(&self.queue);
        // Each whatever became of the one before: what is in flight may be paid for already.
        let given_back = self.give_back().await;
        let drained = self.drain(cut).await;
        ended.and(given_back).and(drained)
    }

    async fn serve(&mut self, stop: &CancellationToken) -> Result<()> {
        let mut news = self.parts.store.changes();
        let mut resumed = self.board.resumed();
        let mut gates = self.provider_gate.changed();
        let mut settings = self.parts.live.changes();
        self.on_settings().await?;
        self.recall();
        let mut idle_since = Instant::now();
        let (member, store) = (Arc::clone(&self.member), Arc::clone(&self.parts.store));
        loop {
            member.answer();
            // Not the news, which has to be acted on: a tick that came while an attempt ended still counts.
            gates.mark_seen();
            // What can't be sent is settled here, and that waits, perhaps for hours, until the disk takes it.
            let blocked = member.excused(self.advance(), || store.shortage().is_some()).await?;
            if self.is_early && self.running.is_empty() {
                return Ok(());
            }
            self.show_pause();
            self.show();
            let is_idle = blocked == Blocked::Nothing && self.running.is_empty();
            if !(is_idle && self.dry) {
                idle_since = Instant::now();
            } else if idle_since.elapsed() >= LINGER {
                return Ok(());
            }
            let wake = wake_at(blocked, idle_since);
            // Stopping comes first; then news and settings, since a cancelled job must not be sent from, nor more
            // than is allowed, while attempts end without a pause; then what frees slots. Timers can wait for it.
            tokio::select! { biased;
                () = stop.cancelled() => return Ok(()),
                () = news.changed() => self.on_news().await?,
                () = settings.changed() => self.on_settings().await?,
                Some(ended) = self.running.join_next() => self.on_ended(ended)?,
                () = resumed.changed() => self.on_resume(),
                () = gates.changed() => {}
                () = member.called() => {}
                () = sleep_until(wake) => self.dry = false,
            }
            while let Some(ended) = self.running.try_join_next() {
                self.on_ended(ended)?;
            }
        }
    }

    /// Sends what may be sent now.
    async fn advance(&mut self) -> Result<Blocked> {
        loop {
            if let Some(blocked) = self.all_closed(Instant::now()) {
                // It may take long, and who cancels or waits for idleness must not wait for our leases.
                self.give_back().await?;
                return Ok(blocked);
            }
            if self.running.len() >= self.allowed() {
                return Ok(Blocked::Full);
            }
            let aside = match self.aside.pop_front() {
                Some(first) => match self.send_or_keep(first) {
                    Ok(()) => continue,
                    Err((first, blocked)) => {
                        self.aside.push_front(first);
                        blocked
                    }
                },
                None => Blocked::Nothing,
            };
            self.fill().await?;
            let next = match self.next.take() {
                Some(next) => next,
                None => match self.prepare().await? {
                    Some(next) => next,
                    None => return Ok(aside.or(self.until_due())),
                },
            };
            match self.send_or_keep(next) {
                Ok(()) => {}
                Err((next, _)) if self.may_step_aside(&next) => self.aside.push_back(next),
                Err((next, blocked)) => {
                    self.next = Some(next);
                    return Ok(aside.or(blocked));
                }
            }
        }
    }

    /// Sends `next`, or gives it back with what it must wait for.
    #[expect(clippy::result_large_err, reason = "it is moved as often where it is sent")]
    fn send_or_keep(&mut self, next: Next) -> std::result::Result<(), (Next, Blocked)> {
        let now = Instant::now();
        match self.choose(&next, now) {
            Ok(chosen) => {
                self.send(next, chosen, now);
                Ok(())
            }
            Err(blocked) => Err((next, blocked)),
        }
    }

    fn send(&mut self, next: Next, chosen: Chosen, now: Instant) {
        let Next { lease, work, policy, estimate, falls_back_at } = next;
        let Chosen { lane, places } = chosen;
        let Some(lane) = self.lanes.get_mut(lane) else { return };
        fault::point("dispatch-sending");
        self.limits.spend(estimate.total(), now);
        let number = lane.spend(estimate.total(), now);
        let (parts, site, dice) = (Arc::clone(&self.parts), Arc::clone(&lane.site), self.rng.f64());
        match work {
            Work::Request(work) => {
                let work = flex::as_sent(work, falls_back_at, self.parts.clock.now());
                let prepared = Prepared { lease, work, policy, estimate, dice, site, places, number };
                self.running.spawn(attempt::run(parts, prepared))
            }
            Work::FineTune(plan) => {
                let prepared = Prepared { lease, work: *plan, policy, estimate, dice, site, places, number };
                self.running.spawn(tuning::run(parts, prepared))
            }
        };
    }

    fn on_ended(&mut self, ended: std::result::Result<Result<Ended>, tokio::task::JoinError>) -> Result<()> {
        let ended = ended.map_err(|error| Error::panicked("an attempt", error))??;
        let now = Instant::now();
        self.limits.on_ended(&ended, now);
        if let Some(usage) = ended.usage {
            self.estimator.learn(ended.estimate, usage);
        }
        if let Some(lane) = self.lanes.get_mut(ended.lane) {
            lane.on_ended(&ended, now);
        }
        self.remember(now);
        if let Some(failed) = ended.failed.filter(|_| self.lanes.len() > 1) {
            self.failed_at.remember(failed, ended.lane);
        }
        if ended.kind == attempt::EndedKind::Served {
            self.parts.live.count_answer();
        }
        self.show();
        // Whatever was not served is in the store again, waiting or open.
        if ended.kind != attempt::EndedKind::Served {
            self.dry = false;
        }
        Ok(())
    }

    pub(super) fn in_flight(&self) -> usize {
        self.running.len()
    }

    fn on_resume(&mut self) {
        self.dry = false;
        let now = Instant::now();
        self.lanes.iter_mut().for_each(|lane| lane.resume(now));
    }

    /// Lets attempts finish until `cut`, then abandons them: they were sent, so they are uncertain.
    async fn drain(&mut self, cut: impl Future<Output = ()>) -> Result<()> {
        tokio::pin!(cut);
        let mut failed = None;
        loop {
            // What has ended is counted before anything is abandoned.
            self.member.answer();
            tokio::select! { biased;
                ended = self.running.join_next() => {
                    let Some(ended) = ended else { break };
                    let error = self.on_ended(ended).err();
                    failed = failed.or(error);
                }
                () = &mut cut => break,
                () = self.member.called() => {}
            }
        }
        if !self.running.is_empty() {
            let abandoned = self.running.len();
            tracing::warn!(queue = %self.queue, abandoned, "requests in flight are abandoned");
            self.running.shutdown().await;
        }
        failed.map_or(Ok(()), Err)
    }
}

fn wake_at(blocked: Blocked, idle_since: Instant) -> Instant {
    let now = Instant::now();
    let wake = match blocked {
        // What falls due meanwhile can't be sent either.
        Blocked::Nothing | Blocked::Full => now + LINGER,
        Blocked::Until(until) => until,
    };
    wake.min((idle_since + LINGER).max(now))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use futures_util::future::BoxFuture;
    use serde_json::Value;
    use tokio::task::yield_now;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::clock::{Clock, Seed};
    use crate::disk::scarce::Scarce;
    use crate::dispatch::{Fleet, ProviderSettings, Settings};
    use crate::domain::{Job, JobStatus, PauseReason};
    use crate::provider::{self, HttpReply, HttpRequest, Provider, Transport, TransportError};
    use crate::pulse::Roll;
    use crate::store::embedded::{Claimed, EmbeddedStore};
    use crate::store::memory::MemoryStore;
    use crate::store::{self, Input, Store, conformance};

    /// A server that does what a request's input says: `<status> <seconds it takes>`, and then always `200 0`.
    #[derive(Debug, Default)]
    struct Obedient {
        asked: Mutex<Vec<String>>,
    }

    impl Obedient {
        /// Answers to come, or that came, of this input.
        fn asked(&self, input: &str) -> usize {
            self.asked.lock().unwrap().iter().filter(|asked| *asked == input).count()
        }
    }

    impl Transport for Obedient {
        fn exchange(&self, request: HttpRequest) -> BoxFuture<'_, Result<HttpReply, TransportError>> {
            let body: Value = serde_json::from_slice(&request.body.to_bytes().unwrap()).unwrap();
            let input = body["input"].as_str().unwrap().to_owned();
            self.asked.lock().unwrap().push(input.clone());
            let (status, seconds) = input.split_once(' ').unwrap();
            let is_first = self.asked(&input) == 1 || input.starts_with("401");
            let (status, seconds) =
                if is_first { (status.parse().unwrap(), seconds.parse().unwrap()) } else { (200, 0) };
            Box::pin(async move {
                sleep(Duration::from_secs(seconds)).await;
                let body = if status == 200 {
                    r#"{"id":"m","model":"m","results":[{}]}"#
                } else {
                    r#"{"error":{"message":"no"}}"#
                };
                let headers = reqwest::header::HeaderMap::new();
                Ok(HttpReply { status, headers, body: Bytes::from_static(body.as_bytes()) })
            })
        }
    }

    struct World {
        store: Arc<dyn Store>,
        server: Arc<Obedient>,
        board: Board,
        work: CancellationToken,
        hurry: CancellationToken,
        roll: Roll,
    }

    impl World {
        fn new() -> Self {
            let store = Arc::new(MemoryStore::default()) as Arc<dyn Store>;
            let (work, hurry) = (CancellationToken::new(), CancellationToken::new());
            let (board, roll) = (Board::default(), Roll::default());
            Self { store, server: Arc::default(), board, work, hurry, roll }
        }

        /// Queues `p/<model>` of at most `slots` requests in flight each.
        fn fleet(&self, slots: u32, together: u32) -> impl Future<Output = Result<()>> + use<> {
            let url: url::Url = "http://127.0.0.1:1/v1".parse().unwrap();
            let settings = provider::Settings {
                name: "p".to_owned(),
                base_url: url.clone(),
                api_key: None,
                custom: provider::Custom::default(),
                timeout: Duration::from_hours(9),
                waits: provider::Waits::default(),
                max_reply: 1 << 20,
                flex_timeout: Duration::from_hours(9),
                stream: false,
            };
            let limits = config::Limits {
                concurrency: config::Concurrency::Fixed(slots),
                ..config::Limits::default()
            };
            let config = config::Provider {
                name: "p".to_owned(),
                base_url: url,
                api_key: None,
                api_key_env: None,
                api_key_file: None,
                api_version: None,
                headers: config::Headers::default(),
                ca_file: None,
                endpoints: Vec::new(),
                timeout: settings.timeout,
                connect_timeout: Duration::from_secs(10),
                first_byte_timeout: None,
                idle_timeout: None,
                concurrency: together,
                max_reply: settings.max_reply,
                flex_timeout: settings.flex_timeout,
                flex_fallback: None,
                strict: false,
                stream: false,
                limits,
                models: Vec::new(),
            };
            let provider = Provider::new(settings, Arc::clone(&self.server) as Arc<dyn Transport>);
            let settings = Settings {
                providers: vec![ProviderSettings::with_one_site(provider, config)],
                retry: RetryPolicy::default(),
                grace: Duration::from_mins(1),
            };
            let (store, board) = (Arc::clone(&self.store), self.board.clone());
            let clock = Clock::simulated(conformance::NOW);
            Fleet::new(settings, store, board, clock, Seed::fixed(1))
                .with_roll(self.roll.clone())
                .run(self.work.clone(), self.hurry.clone())
        }

        /// Runs the fleet while `script` runs, and then to its end.
        async fn run(&self, slots: u32, script: impl Future<Output = ()>) {
            let script = async {
                script.await;
                self.work.cancel();
            };
            let (ended, ()) = tokio::join!(self.fleet(slots, 256), script);
            ended.unwrap();
        }

        async fn put(&self, number: u8, inputs: &[&str]) -> Job {
            let job = conformance::job(number, 5, &["m"], u32::try_from(inputs.len()).unwrap());
            let line = |(index, input): (usize, &&str)| {
                let line = format!(
                    r#"{{"custom_id":"{index}","method":"POST","url":"/v1/moderations","body":{{"model":"m","input":"{input}"}}}}"#
                );
                (0, Bytes::from(line))
            };
            let lines = inputs.iter().enumerate().map(line).collect();
            self.store.put_job(job.clone(), Input::Inline(lines)).await.unwrap();
            job
        }

        async fn state(&self, job: &Job) -> JobState {
            self.store.job(job.id).await.unwrap()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn news_that_come_while_an_attempt_ends_are_acted_on() {
        let world = World::new();
        // The reply and the pause come in the same instant; the request after it is leased already.
        let job = world.put(1, &["200 5", "200 6"]).await;
        world
            .run(1, async {
                sleep(Duration::from_secs(5)).await;
                let paused = JobStatus::Paused { reason: PauseReason::User };
                world.store.set_status(job.id, paused, conformance::NOW).await.unwrap();
                sleep(Duration::from_mins(1)).await;
                assert_eq!(world.server.asked("200 6"), 0);
                assert_eq!(world.state(&job).await.leased, 0);
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_retry_that_falls_due_while_all_slots_are_taken_waits_for_one() {
        let world = World::new();
        let job = world.put(1, &["500 0", "200 100", "200 101"]).await;
        world
            .run(2, async {
                sleep(Duration::from_secs(99)).await;
                assert_eq!(world.server.asked("500 0"), 1);
                sleep(Duration::from_secs(3)).await;
                assert_eq!(world.state(&job).await.counts.completed, 3);
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_gate_leaves_nothing_leased_and_lets_one_try_at_a_time() {
        let world = World::new();
        let job = world.put(1, &["401 1", "401 2", "401 3", "401 4", "401 5"]).await;
        let tries = || world.server.asked.lock().unwrap().len();
        world
            .run(2, async {
                sleep(Duration::from_secs(30)).await;
                assert_eq!((tries(), world.state(&job).await.leased), (2, 0));
                assert_eq!(world.board.pauses().len(), 1);
                sleep(Duration::from_mins(1)).await;
                assert_eq!((tries(), world.state(&job).await.leased), (3, 0));
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_flight_when_the_store_fails_may_finish() {
        let world = World::new();
        world.put(1, &["200 5", "200 9"]).await;
        let close = async {
            sleep(Duration::from_secs(1)).await;
            world.store.close().await.unwrap();
        };
        let started = Instant::now();
        let (ended, ()) = tokio::join!(world.fleet(2, 256), close);
        assert!(matches!(ended, Err(Error::Store(store::Error::Closed(_)))));
        assert_eq!(started.elapsed(), Duration::from_secs(9), "the second was waited for");
        assert!(!world.work.is_cancelled(), "the other workers were not told to end");
    }

    #[tokio::test(start_paused = true)]
    async fn fleet_and_dispatchers_answer_whatever_they_wait_for() {
        let world = World::new();
        let answers = async || {
            let (called, call) = (Instant::now(), world.roll.call());
            let missing = world.roll.missing(call);
            let answered = timeout(Duration::from_hours(1), world.roll.answered(call)).await;
            answered.unwrap_or_else(|_| panic!("no answer from {:?}", world.roll.missing(call)));
            assert_eq!(called.elapsed(), Duration::ZERO);
            missing
        };
        world.put(1, &["200 100", "200 101"]).await;
        world
            .run(1, async {
                sleep(Duration::from_secs(1)).await;
                assert_eq!(answers().await, ["the fleet", "the dispatcher of p/m"], "all slots are taken");
                sleep(Duration::from_mins(5)).await;
                assert_eq!(answers().await.len(), 2, "nothing is to do");
                world.put(2, &["401 1"]).await;
                sleep(Duration::from_secs(5)).await;
                assert_eq!(answers().await.len(), 2, "the key is refused");
                sleep(LINGER).await;
                world.put(3, &["200 50"]).await;
                world.board.resume();
                sleep(Duration::from_secs(1)).await;
                world.work.cancel();
                sleep(Duration::from_secs(1)).await;
                assert_eq!(answers().await.len(), 2, "what is in flight may finish");
            })
            .await;
        let call = world.roll.call();
        assert_eq!(world.roll.missing(call), [""; 0], "they have left");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn dispatcher_that_waits_for_a_full_disk_answers() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, _installed) = Scarce::under(dir.path());
        let mut world = World::new();
        world.store = Claimed::take(dir.path()).unwrap().open(Some(0), &world.roll).map(Arc::new).unwrap();
        // Unsent, and to be written down by the dispatcher itself.
        let job = world.put(1, &["\""]).await;
        disk.fill("results.log");
        let script = async {
            while world.store.shortage().is_none() {
                yield_now().await;
            }
            for _ in 0..3 {
                let call = world.roll.call();
                let answered = timeout(Duration::from_mins(1), world.roll.answered(call)).await;
                assert!(answered.is_ok(), "no answer from {:?}", world.roll.missing(call));
                assert!(world.store.shortage().is_some());
            }
            disk.mend();
            conformance::until_settled(&*world.store, job.id, 1).await;
        };
        world.run(1, script).await;
        world.store.close().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_stop_waits_for_a_disk_that_takes_nothing_no_longer_than_for_requests() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, _installed) = Scarce::under(dir.path());
        let mut world = World::new();
        world.store = Arc::new(EmbeddedStore::open(dir.path()).unwrap());
        // A line that can't be read any more: it fails unsent, and that has to be written down.
        world.put(1, &["\""]).await;
        disk.fill("results.log");
        let stop = async {
            while world.store.shortage().is_none() {
                yield_now().await;
            }
            world.work.cancel();
            world.hurry.cancel();
        };
        let stopped = async { tokio::join!(world.fleet(1, 1), stop).0 };
        timeout(Duration::from_secs(9), stopped).await.expect("it ends").unwrap();
        let error = world.store.close().await.unwrap_err();
        assert!(error.to_string().contains("what came of 1 requests"), "{error}");
    }
}
