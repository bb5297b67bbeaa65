//! I/O faults: the n-th act on the disk fails, for every n of a small job from its drop to its results.
//!
//! # Operation
//!
//! A daemon's parts run in process over a real store and the simulated provider, under the paused clock. A life without
//! faults counts the acts; then each act fails in a life of its own, in one of several ways. What may follow is that
//! everything goes on by itself, or that a part ends with an error, as which the daemon exits with 74. A second life
//! without faults then brings the job to its end. Nothing may be lost, nothing may stand twice, and nothing may be paid for
//! more than once but what was in flight or not yet written when the first life ended.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Seed};
use crate::config::{Concurrency, Limits};
use crate::control::Board;
use crate::disk::Act;
use crate::disk::probe::{self, Probe, Verdict};
use crate::disk::recorder::folder;
use crate::dispatch::{self, Fleet, testing};
use crate::domain::RetryPolicy;
use crate::intake::{self, Intake};
use crate::output::{self, Output};
use crate::simulate::laws::{self, Evidence, JobEvidence, Results};
use crate::simulate::{self, Engine, SimulatedTransport};
use crate::spec;
use crate::store::Store;
use crate::store::embedded::EmbeddedStore;
use crate::store::folder::make_private_dir;

const REQUESTS: u32 = 6;

/// Longer than every wait that a fault leads to.
const PATIENCE: Duration = Duration::from_mins(1);

/// The paused clock would run ahead while the store's threads work: it goes so far in each [`BEAT`].
const STRIDE: Duration = Duration::from_millis(50);
const BEAT: Duration = Duration::from_millis(1);

/// How an act fails.
#[derive(Clone, Copy, Debug)]
struct Fault {
    error: io::ErrorKind,
    /// Every later act fails, too.
    stays: bool,
}

const FAULTS: [Fault; 4] = [
    Fault { error: io::ErrorKind::StorageFull, stays: false },
    Fault { error: io::ErrorKind::Other, stays: false },
    Fault { error: io::ErrorKind::Other, stays: true },
    Fault { error: io::ErrorKind::StorageFull, stays: true },
];

/// Counts acts, and lets one of them fail.
#[derive(Debug)]
struct Nth {
    seen: AtomicU64,
    fails: Option<(u64, Fault)>,
}

impl Probe for Nth {
    fn before(&self, act: &Act<'_>) -> Verdict {
        let number = self.seen.fetch_add(1, Ordering::Relaxed) + 1;
        match self.fails {
            Some((at, fault)) if number == at || (fault.stays && number > at) => {
                let error = fault.error.into();
                if let Act::Append { bytes, .. } = act {
                    Verdict::Tear(bytes.len() / 2, error)
                } else {
                    Verdict::Refuse(error)
                }
            }
            _ => Verdict::Go,
        }
    }

    fn after(&self, _: &Act<'_>) {}
}

/// How a life ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Done,
    /// With an error that the daemon exits with.
    Failed(String),
    /// It waits for the disk, and would for ever.
    Waiting,
}

/// Lives through the fault of one act. Answers how the first life ended, and how many acts it had.
fn live_through(fails: Option<(u64, Fault)>) -> (End, u64) {
    let root = folder();
    let input = (0..REQUESTS).map(|index| line(index) + "\n").collect::<String>();
    fs::create_dir(root.path().join("jobs")).unwrap();
    fs::write(root.path().join("jobs/small.jsonl"), &input).unwrap();
    let latency = simulate::Latency::fixed(Duration::from_millis(20));
    let settings = simulate::Settings { latency, ..simulate::Settings::default() };
    let engine = Arc::new(Engine::new(settings, Seed::fixed(1)).unwrap());
    let probe = Arc::new(Nth { seen: AtomicU64::new(0), fails });
    let first = {
        let _installed = probe::install(root.path(), Arc::clone(&probe) as Arc<dyn Probe>);
        live(root.path(), &engine)
    };
    let end = if first == End::Done { End::Done } else { live(root.path(), &engine) };
    assert_eq!(end, End::Done, "the next start does not bring it to its end; the first: {first:?}");
    judge(root.path(), &input, &engine, &first);
    (first, probe.seen.load(Ordering::Relaxed))
}

fn live(root: &Path, engine: &Arc<Engine>) -> End {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        tokio::select! { biased;
            end = live_on(root, engine) => end,
            () = pace() => unreachable!("time does not end"),
        }
    })
}

async fn live_on(root: &Path, engine: &Arc<Engine>) -> End {
    let state = root.join("state");
    let store = match make_private_dir(&state).and_then(|()| EmbeddedStore::open(&state)) {
        Ok(store) => Arc::new(store),
        Err(error) => return End::Failed(error.to_string()),
    };
    let clock = Clock::simulated(Clock::System.now());
    let (stop, hurry, rest) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let mut workers: JoinSet<Result<(), String>> = JoinSet::new();
    let intake = Intake::new(intake_settings(root), Arc::clone(&store) as _, clock.clone(), Seed::fixed(2));
    let fleet = Fleet::new(
        fleet_settings(engine),
        Arc::clone(&store) as _,
        Board::default(),
        clock.clone(),
        Seed::fixed(3),
    );
    let output_settings = output::Settings::new(root.join("results"));
    let output =
        Output::new(output_settings, Arc::clone(&store) as _, BTreeMap::new(), BTreeMap::new(), clock);
    let (first, second, third, cut) = (stop.clone(), stop.clone(), rest.clone(), hurry.clone());
    workers.spawn(async move { intake.run(first).await.map_err(|error| error.to_string()) });
    workers.spawn(async move { fleet.run(second, cut).await.map_err(|error| error.to_string()) });
    workers.spawn(async move { output.run(third).await.map_err(|error| error.to_string()) });
    let end = tokio::select! { biased;
        ended = workers.join_next() => End::Failed(format!("{ended:?}")),
        done = timeout(PATIENCE, until_done(&*store)) => done.unwrap_or(End::Waiting),
    };
    stop.cancel();
    hurry.cancel();
    rest.cancel();
    let closed = async {
        while workers.join_next().await.is_some() {}
        store.close().await
    };
    let closed = timeout(PATIENCE, closed).await;
    match closed.unwrap_or_else(|_| panic!("it does not stop: {end:?}")) {
        Err(error) if end == End::Done => End::Failed(error.to_string()),
        Ok(()) | Err(_) => end,
    }
}

/// Blocking work holds the paused clock.
async fn pace() {
    #[expect(clippy::disallowed_methods, reason = "time itself is meant: that of the store's own threads")]
    let beat = || std::thread::sleep(BEAT);
    loop {
        tokio::task::spawn_blocking(beat).await.unwrap();
        tokio::time::sleep(STRIDE).await;
    }
}

async fn until_done(store: &dyn Store) -> End {
    let mut changes = store.changes();
    loop {
        match store.jobs().await {
            Ok(states) if !states.is_empty() && states.iter().all(|state| state.status.is_final()) => {
                return End::Done;
            }
            Ok(_) => changes.changed().await,
            Err(error) => return End::Failed(error.to_string()),
        }
    }
}

/// Every request has its line, and was paid for once, or twice if the first life ended in between.
fn judge(root: &Path, input: &str, engine: &Engine, first: &End) {
    let results = root.join("results/small");
    let read = |name: &str| fs::read_to_string(results.join(name)).unwrap_or_default();
    let mut job = JobEvidence::of_batch_lines("small", input).unwrap();
    job.results = Some(Results::read(&read("output.jsonl"), &read("errors.jsonl"), &|_| None).unwrap());
    let bodies: Vec<_> = job.asked.iter().filter_map(|asked| asked.body).collect();
    if let Err(violations) = laws::check(&Evidence { jobs: vec![job], ..Evidence::default() }) {
        panic!("{violations:?}; the first life: {first:?}");
    }
    assert!(results.join("summary.json").exists());
    let folders = fs::read_dir(root.join("results")).unwrap().count();
    assert_eq!(folders, 1, "one drop became {folders} jobs");
    for body in bodies {
        let paid = engine.payments(body).paid;
        let most = if *first == End::Done { 1 } else { 2 };
        assert!((1..=most).contains(&paid), "a request was paid for {paid} times; the first life: {first:?}");
    }
}

fn line(index: u32) -> String {
    let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{index}"}}]}}"#);
    format!(r#"{{"custom_id":"c{index}","method":"POST","url":"/v1/chat/completions","body":{body}}}"#)
}

fn intake_settings(root: &Path) -> intake::Settings {
    let facts = spec::ProviderFacts { name: "p".to_owned(), strict: false };
    intake::Settings {
        jobs: root.join("jobs"),
        results: root.join("results"),
        state: root.join("state"),
        rescan: Duration::from_secs(5),
        settle: Duration::ZERO,
        watch: false,
        spec: spec::Settings {
            providers: vec![facts],
            max_line: 1 << 20,
            input_dirs: Vec::new(),
            zone: chrono_tz::UTC,
        },
    }
}

fn fleet_settings(engine: &Arc<Engine>) -> dispatch::Settings {
    let limits =
        Limits { concurrency: Concurrency::Fixed(3), requests_per_minute: None, tokens_per_minute: None };
    let (transport, timeout) = (SimulatedTransport::new(Arc::clone(engine)), Duration::from_mins(10));
    let mut provider = testing::provider(Arc::new(transport), timeout, limits);
    provider.config.concurrency = 3;
    dispatch::Settings { providers: vec![provider], retry: RetryPolicy::default(), grace: timeout }
}

#[cfg(test)]
mod tests;
