//! One run of a scenario.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use serde_json::json;
use tokio::runtime::Builder;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::quiet::Quiet;
use super::scenario::{JobPlan, Scenario};
use crate::clock::{Clock, Seed};
use crate::control::Board;
use crate::dispatch::{Fleet, Settings, testing};
use crate::domain::{JobState, RetryPolicy};
use crate::simulate::{Engine, Entry, SimulatedTransport};
use crate::store::{Input, Store, conformance};

/// A run that takes longer has come to a standstill.
const PATIENCE: Duration = Duration::from_hours(6);

/// For one exchange.
const TIMEOUT: Duration = Duration::from_mins(10);

/// What a run left.
#[derive(Debug)]
pub(super) struct Ran {
    /// What the server was asked, in order.
    pub(super) entries: Vec<Entry>,
    /// In the order of the scenario.
    pub(super) states: Vec<JobState>,
    pub(super) most_in_flight: u64,
}

/// How the user calls a line: what the server's ledger knows it by.
pub(super) fn custom_id(job: usize, line: u32) -> String {
    format!("{job}/{line}")
}

/// Runs it on a runtime of its own: timers are rounded from the moment a runtime began.
pub(super) fn run(scenario: &Scenario) -> Ran {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(Box::pin(run_now(scenario)))
}

async fn run_now(scenario: &Scenario) -> Ran {
    let seed = Seed::fixed(scenario.seed);
    let engine = Arc::new(Engine::new(scenario.settings(), seed).unwrap());
    let transport = Arc::new(SimulatedTransport::new(Arc::clone(&engine)));
    let settings = Settings {
        providers: vec![testing::provider(transport, TIMEOUT, scenario.client.limits())],
        retry: RetryPolicy::default(),
        grace: Duration::from_mins(1),
    };
    let store = Arc::new(Quiet::default());
    let clock = Clock::simulated(conformance::NOW);
    let fleet = Fleet::new(settings, Arc::clone(&store) as Arc<dyn Store>, Board::default(), clock, seed);
    let (work, began) = (CancellationToken::new(), Instant::now());
    let script = async {
        let changes = async {
            for change in &scenario.changes {
                sleep_until(began + change.at).await;
                engine.change(change.server.clone(), Instant::now());
            }
        };
        let jobs = async {
            let mut dice = seed.derive("pacing/prompts");
            let mut plans: Vec<(usize, &JobPlan)> = scenario.jobs.iter().enumerate().collect();
            plans.sort_by_key(|(_, plan)| plan.at);
            for (number, plan) in plans {
                sleep_until(began + plan.at).await;
                put(&*store, number, plan, &mut dice).await;
            }
            until_done(&*store, scenario).await;
        };
        tokio::select! { () = jobs => {}, () = async { changes.await; std::future::pending().await } => {} }
        work.cancel();
    };
    let all = async { tokio::join!(fleet.run(work.clone(), CancellationToken::new()), script) };
    let (ended, ()) = timeout(PATIENCE, all).await.expect("the run comes to its end");
    ended.unwrap();
    let mut states = store.jobs().await.unwrap();
    states.sort_by_key(|state| state.job.id);
    Ran { entries: engine.entries(), states, most_in_flight: engine.summary().max_in_flight }
}

async fn put(store: &dyn Store, number: usize, plan: &JobPlan, dice: &mut Rng) {
    let job = conformance::job(u8::try_from(number).unwrap(), plan.priority, &["m"], plan.lines);
    let lines = (0..plan.lines).map(|line| {
        let id = custom_id(number, line);
        let [least, most] = plan.prompt_bytes;
        let prompt = "x".repeat(dice.u32(least..=most) as usize);
        let mut body = json!({"model": "m", "user": id, "messages": [{"role": "user", "content": prompt}]});
        if let Some(tokens) = plan.max_tokens {
            body["max_tokens"] = tokens.into();
        }
        let line = json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body});
        (0, Bytes::from(line.to_string()))
    });
    store.put_job(job, Input::Inline(lines.collect())).await.unwrap();
}

async fn until_done(store: &dyn Store, scenario: &Scenario) {
    let total: u32 = scenario.jobs.iter().map(|plan| plan.lines).sum();
    let mut news = store.changes();
    loop {
        news.mark_seen();
        let jobs = store.jobs().await.unwrap();
        if jobs.iter().map(|state| state.counts.settled()).sum::<u32>() >= total {
            return;
        }
        news.changed().await;
    }
}
