//! What a seed means: the providers, the jobs, and everything that will happen to them, with its time.

use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use serde_json::json;
use uuid::Uuid;

use crate::clock::Seed;
use crate::domain::{Job, JobId, JobSettings, OnUncertain, QueueName, RequestId, RetryPolicy, Timestamp};
use crate::store::{Input, conformance};

/// The storm's longest length; after it the sky clears.
const STORM_S: u64 = 240;

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) providers: Vec<ProviderPlan>,
    pub(super) jobs: Vec<JobPlan>,
    pub(super) retry: RetryPolicy,
    pub(super) grace: Duration,
    pub(super) store_delay_max_ms: u64,
    /// In the order of time.
    pub(super) acts: Vec<(Duration, Act)>,
}

#[derive(Debug)]
pub(super) struct ProviderPlan {
    pub(super) name: &'static str,
    /// Requests in flight over all its queues.
    pub(super) bound: u32,
    /// Requests in flight of one queue.
    pub(super) slots: u32,
    pub(super) requests_per_minute: Option<u32>,
    /// What the server itself lets through, which batchd does not know.
    pub(super) admits_per_minute: Option<u32>,
    pub(super) latency: (Duration, Duration),
}

#[derive(Debug)]
pub(super) struct JobPlan {
    pub(super) number: u8,
    pub(super) total: u32,
    pub(super) queues: Vec<QueueName>,
    pub(super) settings: JobSettings,
}

/// Something that happens from outside.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    Put(usize),
    Change(usize, Weather),
    Command(Verb, usize),
    /// The process dies as it stands, and is started again after so long.
    Die {
        down: Duration,
    },
    /// It is stopped in order. After `hurry` a second signal comes, after `kill` it is killed.
    Stop {
        hurry: Option<Duration>,
        kill: Option<Duration>,
        down: Duration,
    },
}

/// What a person does to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Pause,
    Resume,
    Retry,
    Cancel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weather {
    Fair,
    /// Every fault now and then.
    Flaky,
    /// Most requests are told to come later, some much later.
    Throttled,
    KeyRefused,
    QuotaOut,
    /// Nobody can connect.
    Down,
}

impl Plan {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Seed::fixed(seed).derive("storm/plan");
        let dice = &mut dice;
        let providers: Vec<_> =
            ["east", "west"].iter().take(dice.usize(1..=2)).map(|name| provider(name, dice)).collect();
        let queues: Vec<QueueName> = providers
            .iter()
            .flat_map(|p| ["a", "b"].map(|model| QueueName::new(p.name, Some(model))))
            .collect();
        let jobs: Vec<_> = (1..=dice.u8(1..=3)).map(|number| job(number, &queues, dice)).collect();
        let base_delay = Duration::from_millis(dice.u64(0..=2_000));
        let retry =
            RetryPolicy { max_attempts: dice.u32(1..=6), base_delay, max_delay: Duration::from_mins(1) };
        let acts = acts(providers.len(), jobs.len(), dice);
        Self {
            providers,
            jobs,
            retry,
            grace: Duration::from_secs(dice.u64(0..=30)),
            store_delay_max_ms: if dice.bool() { 0 } else { dice.u64(1..=4) },
            acts,
        }
    }
}

fn provider(name: &'static str, dice: &mut Rng) -> ProviderPlan {
    let least = Duration::from_millis(dice.u64(0..=20) * 50);
    // Where both are the same, many things happen at one time.
    let most = if dice.bool() { least } else { least + Duration::from_millis(dice.u64(0..=4_000)) };
    ProviderPlan {
        name,
        bound: dice.u32(1..=8),
        slots: dice.u32(1..=6),
        requests_per_minute: (dice.u32(0..4) == 0).then(|| dice.u32(20..=200)),
        admits_per_minute: (dice.u32(0..4) == 0).then(|| dice.u32(20..=200)),
        latency: (least, most),
    }
}

fn job(number: u8, queues: &[QueueName], dice: &mut Rng) -> JobPlan {
    let mut queues = queues.to_vec();
    dice.shuffle(&mut queues);
    queues.truncate(dice.usize(1..=queues.len()));
    let on_uncertain = match dice.u32(0..4) {
        0 => Some(OnUncertain::Hold),
        1 => Some(OnUncertain::Fail),
        2 => Some(OnUncertain::Retry),
        _ => None,
    };
    let deadline = (dice.u32(0..4) == 0).then(|| Duration::from_secs(dice.u64(5..=120)));
    let settings = JobSettings { priority: dice.u8(0..=9), deadline, on_uncertain, ..JobSettings::default() };
    JobPlan { number, total: dice.u32(1..=24), queues, settings }
}

fn acts(providers: usize, jobs: usize, dice: &mut Rng) -> Vec<(Duration, Act)> {
    let length = dice.u64(10..=STORM_S);
    let mut acts = Vec::new();
    // In whole tenths of a second, so that they meet replies and timers.
    let when = |dice: &mut Rng, within: u64| Duration::from_millis(dice.u64(0..within * 10) * 100);
    for job in 0..jobs {
        let within = if job == 0 { 1 } else { length / 2 };
        acts.push((when(dice, within), Act::Put(job)));
    }
    for provider in 0..providers {
        for _ in 0..dice.u32(0..5) {
            let weather = match dice.u32(0..9) {
                0..4 => Weather::Flaky,
                4 | 5 => Weather::Throttled,
                6 => Weather::KeyRefused,
                7 => Weather::QuotaOut,
                _ => Weather::Down,
            };
            let begins = when(dice, length);
            acts.push((begins, Act::Change(provider, weather)));
            acts.push((begins + when(dice, 90), Act::Change(provider, Weather::Fair)));
        }
    }
    for _ in 0..dice.u32(0..8) {
        let verb = match dice.u32(0..10) {
            0..3 => Verb::Pause,
            3..6 => Verb::Resume,
            6..9 => Verb::Retry,
            _ => Verb::Cancel,
        };
        acts.push((when(dice, length), Act::Command(verb, dice.usize(0..jobs))));
    }
    // Some storms are a few stops, some a crash loop while most requests are in flight.
    let is_loop = dice.u32(0..3) == 0;
    for _ in 0..dice.u32(if is_loop { 3..9 } else { 0..4 }) {
        let within = if is_loop || dice.bool() { 10 } else { length };
        let down = Duration::from_millis(dice.u64(0..=if is_loop { 500 } else { 20_000 }));
        acts.push((when(dice, within), if dice.bool() { Act::Die { down } } else { stop(down, dice) }));
    }
    acts.sort_by_key(|(at, _)| *at);
    acts
}

fn stop(down: Duration, dice: &mut Rng) -> Act {
    let after = |dice: &mut Rng| Duration::from_millis(dice.u64(0..=50) * 100);
    let (hurry, kill) = (dice.u32(0..4) == 0, dice.u32(0..4) == 0);
    Act::Stop { hurry: hurry.then(|| after(dice)), kill: kill.then(|| after(dice)), down }
}

impl JobPlan {
    pub(super) fn id(&self) -> JobId {
        job_id(self.number)
    }

    pub(super) fn job(&self, accepted_at: Timestamp) -> Job {
        Job {
            accepted_at,
            queues: self.queues.clone(),
            settings: self.settings.clone(),
            ..conformance::job(self.number, 5, &[], self.total)
        }
    }

    /// Its lines: chat requests that say who they are, and a few that no server takes.
    pub(super) fn input(&self) -> Input {
        let line = |index: u32| {
            let queue = index as usize % self.queues.len();
            let id = custom_id(RequestId { job: self.id(), index });
            let messages =
                if is_hopeless(index) { json!([]) } else { json!([{"role": "user", "content": id}]) };
            let model = self.queues[queue].model();
            let body = json!({"model": model, "user": id, "max_tokens": 10, "messages": messages});
            let line =
                json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body});
            (u16::try_from(queue).unwrap(), Bytes::from(line.to_string()))
        };
        Input::Inline((0..self.total).map(line).collect())
    }
}

/// Whether the request can't be answered.
pub(super) const fn is_hopeless(index: u32) -> bool {
    index % 16 == 9
}

fn job_id(number: u8) -> JobId {
    JobId::from_uuid(Uuid::from_bytes([number; 16]))
}

/// `<number of the job>-<index>`
pub(super) fn custom_id(request: RequestId) -> String {
    let number = request.job.to_string();
    let number = u8::from_str_radix(number.get(..2).unwrap(), 16).unwrap();
    format!("{number}-{}", request.index)
}

pub(super) fn request_id(custom_id: &str) -> RequestId {
    let (number, index) = custom_id.split_once('-').unwrap();
    RequestId { job: job_id(number.parse().unwrap()), index: index.parse().unwrap() }
}
