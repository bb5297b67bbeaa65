//! The process while it runs: what it holds, how it is configured, and its stand-in for `output`.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::ground::Pulse;
use super::plan::ProviderPlan;
use super::wire::Line;
use crate::clock::Clock;
use crate::config::{self, Concurrency, Limits};
use crate::control::Control;
use crate::dispatch::{self, ProviderSettings};
use crate::domain::{JobState, JobStatus};
use crate::provider::{self, Provider};
use crate::store::{self, Store};

/// Above every grace, and below `Settings::slow` of the simulator: its slow replies come too late.
pub(super) const TIMEOUT: Duration = Duration::from_secs(20);

/// A process and its workers.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pulse: Arc<Pulse>,
    pub(super) control: Control,
    pub(super) work: CancellationToken,
    pub(super) hurry: CancellationToken,
    pub(super) rest: CancellationToken,
    pub(super) fleet: JoinSet<Result<(), dispatch::Error>>,
    pub(super) others: JoinSet<store::Result<()>>,
}

/// Ends jobs as `output` does, without writing files.
pub(super) async fn publish(
    store: Arc<dyn Store>,
    clock: Clock,
    stop: CancellationToken,
) -> store::Result<()> {
    let mut news = store.changes();
    loop {
        news.mark_seen();
        for state in store.jobs().await? {
            match end_job(&*store, &state, &clock).await {
                // It moved on in the meantime, and there is news of it.
                Ok(()) | Err(store::Error::Transition { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        tokio::select! { biased; // to stop goes first
            () = stop.cancelled() => return Ok(()),
            () = news.changed() => {}
        }
    }
}

async fn end_job(store: &dyn Store, state: &JobState, clock: &Clock) -> store::Result<()> {
    let (id, leased, open) = (state.job.id, state.leased, state.counts.open());
    match state.status {
        JobStatus::Cancelling if leased == 0 => {
            store.set_status(id, JobStatus::Cancelled, clock.now()).await?;
        }
        JobStatus::Expiring if leased == 0 => {
            store.set_status(id, JobStatus::Expired, clock.now()).await?;
        }
        JobStatus::InProgress | JobStatus::Paused { .. } | JobStatus::Finalizing if open == 0 => {
            store.set_status(id, JobStatus::Finalizing, clock.now()).await?;
            sleep(Duration::from_millis(5)).await;
            store.set_status(id, JobStatus::Completed, clock.now()).await?;
        }
        JobStatus::InProgress
        | JobStatus::Paused { .. }
        | JobStatus::Finalizing
        | JobStatus::Cancelling
        | JobStatus::Expiring
        | JobStatus::Held { .. }
        | JobStatus::Completed
        | JobStatus::Failed { .. }
        | JobStatus::Cancelled
        | JobStatus::Expired => {}
    }
    Ok(())
}

pub(super) fn settings(plan: &ProviderPlan, line: Line, clock: &Clock) -> ProviderSettings {
    let base_url = Url::parse("http://127.0.0.1/v1").unwrap();
    let settings = provider::Settings {
        name: plan.name.to_owned(),
        base_url: base_url.clone(),
        api_key: Some("sk-test".into()),
        custom: provider::Custom::default(),
        timeout: TIMEOUT,
        waits: provider::Waits::default(),
        max_reply: 1 << 20,
        flex_timeout: TIMEOUT,
        stream: false,
    };
    let config = config::Provider {
        name: plan.name.to_owned(),
        base_url,
        api_key: None,
        api_key_env: None,
        api_key_file: None,
        api_version: None,
        headers: config::Headers::default(),
        ca_file: None,
        endpoints: Vec::new(),
        timeout: TIMEOUT,
        connect_timeout: Duration::from_secs(10),
        first_byte_timeout: None,
        idle_timeout: None,
        concurrency: plan.bound,
        max_reply: settings.max_reply,
        flex_timeout: TIMEOUT,
        flex_fallback: None,
        strict: false,
        stream: false,
        limits: Limits {
            concurrency: Concurrency::Fixed(plan.slots),
            requests_per_minute: plan.requests_per_minute,
            tokens_per_minute: None,
        },
        models: Vec::new(),
    };
    ProviderSettings::with_one_site(Provider::new(settings, Arc::new(line)).with_clock(clock.clone()), config)
}
