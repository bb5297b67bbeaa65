//! How the daemon is: health, readiness, metrics.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::routes::wrong_method;
use crate::control::{Board, Control, JobReport, QueuePause};
use crate::disk;
use crate::dispatch;
use crate::domain::QueueName;
use crate::metrics::{self, Disk, Format, InForce, Metrics, Process, Snapshot, Waiting};
use crate::store::{QueueDepth, Store};

/// A store that has not answered by then does not count as one that works.
const STORE_ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Every status of a job, so that one that no job has is a zero rather than a gap.
const STATUSES: [&str; 9] = [
    "in_progress",
    "paused",
    "held",
    "cancelling",
    "finalizing",
    "completed",
    "failed",
    "cancelled",
    "expired",
];

/// Where the daemon stands in its life. Its clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<Phase>>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Starting,
    Running,
    Stopping,
    /// A worker has ended that should not have.
    Broken {
        worker: &'static str,
    },
}

impl Health {
    pub fn running(&self) {
        *self.lock() = Phase::Running;
    }

    /// What is in flight may finish. Broken stays broken.
    pub fn stopping(&self) {
        let mut phase = self.lock();
        if !matches!(*phase, Phase::Broken { .. }) {
            *phase = Phase::Stopping;
        }
    }

    pub fn broken(&self, worker: &'static str) {
        *self.lock() = Phase::Broken { worker };
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All that is looked at to say how the daemon is.
#[derive(Clone, Debug)]
pub struct Vitals {
    pub control: Control,
    pub store: Arc<dyn Store>,
    pub board: Board,
    pub fleet: dispatch::Handle,
    pub metrics: Metrics,
    pub health: Health,
    /// The folder of which the disk is looked at.
    pub state: PathBuf,
}

/// Why no work is taken. The words are the same for everybody, so they name nothing of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unready {
    code: &'static str,
    reason: &'static str,
}

/// The paths that programs ask.
pub(super) fn router(vitals: Vitals) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .method_not_allowed_fallback(wrong_method)
        .with_state(vitals)
}

/// `/health`, which also says what went wrong last: in the provider's words, so for those alone who may see jobs.
pub(super) fn health_router(metrics: Metrics) -> Router {
    Router::new().route("/health", get(health)).method_not_allowed_fallback(wrong_method).with_state(metrics)
}

async fn health(State(metrics): State<Metrics>) -> Json<Value> {
    let last_error = metrics.last_error().map(|error| {
        json!({
            "at": error.at.to_string(), "queue": error.queue, "reason": error.reason, "message": error.message,
        })
    });
    Json(json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION"), "last_error": last_error }))
}

async fn healthz(State(vitals): State<Vitals>) -> Response {
    let phase = *vitals.health.lock();
    if let Phase::Broken { worker } = phase {
        let reason = format!("the {worker} worker has ended");
        let body = json!({ "status": "broken", "code": "worker_ended", "reason": reason });
        return (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response();
    }
    Json(json!({ "status": "ok" })).into_response()
}

async fn readyz(State(vitals): State<Vitals>) -> Response {
    match vitals.readiness().await {
        Ok(()) => Json(json!({ "status": "ready" })).into_response(),
        Err(Unready { code, reason }) => {
            let body = json!({ "status": "unready", "code": code, "reason": reason });
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

async fn metrics(State(vitals): State<Vitals>, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let format = Format::accepted(accept);
    let text = metrics::encode(&vitals.metrics, vitals.snapshot().await, format);
    ([(CONTENT_TYPE, format.content_type())], text).into_response()
}

impl Vitals {
    async fn readiness(&self) -> Result<(), Unready> {
        let unready = |code, reason| Err(Unready { code, reason });
        let phase = *self.health.lock();
        match phase {
            Phase::Running => {}
            Phase::Starting => return unready("starting", "the daemon is starting"),
            Phase::Stopping => {
                return unready("stopping", "the daemon is stopping: what is in flight may finish");
            }
            Phase::Broken { .. } => return unready("broken", "a worker of the daemon has ended"),
        }
        match timeout(STORE_ANSWERS_WITHIN, self.store.queues()).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return unready("store_closed", "the store is closed after an error: see the log"),
            Err(_) => return unready("store_silent", "the store does not answer"),
        }
        if self.store.shortage().is_some() {
            return unready("no_room", "the disk has no room: sending goes on by itself when it has");
        }
        Ok(())
    }

    /// What store, board and system say now. Of a store that is closed, or hangs, nothing is known.
    async fn snapshot(&self) -> Snapshot {
        let looked = async { tokio::join!(self.control.list(), self.store.queues()) };
        let (jobs, depths) = match timeout(STORE_ANSWERS_WITHIN, looked).await {
            Ok((jobs, depths)) => (jobs.ok(), depths.unwrap_or_default()),
            Err(_) => (None, Vec::new()),
        };
        let (state, has_room) = (self.state.clone(), self.store.shortage().is_none());
        let system = tokio::task::spawn_blocking(move || (disk::space(&state), Process::read()));
        let (space, process) =
            system.await.map_or((None, None), |(space, process)| (space.ok(), process.ok()));
        let jobs = jobs.unwrap_or_default();
        let pauses = self.board.pauses();
        Snapshot {
            waiting: waiting(&jobs, &depths, &pauses),
            maybe_paid_twice: jobs.iter().map(|job| u64::from(job.counts.maybe_paid_twice)).sum(),
            jobs: by_status(&jobs),
            depths: depths.into_iter().map(|depth| (depth.queue, depth.ready)).collect(),
            limits: self
                .fleet
                .queues()
                .into_iter()
                .map(|(queue, report)| (queue, in_force(&report)))
                .collect(),
            paused: pauses.into_iter().map(|(queue, pause)| (queue, pause.reason)).collect(),
            disk: space.map(|space| Disk { free: (space.free != u64::MAX).then_some(space.free), has_room }),
            process,
        }
    }
}

fn in_force(report: &dispatch::QueueReport) -> InForce {
    InForce {
        concurrency: report.concurrency,
        requests_per_minute: report.requests_per_minute.map(u64::from),
        tokens_per_minute: report.tokens_per_minute,
        hold: report.hold(),
        endpoints_out: report.endpoints_out,
    }
}

fn by_status(jobs: &[JobReport]) -> BTreeMap<String, u64> {
    let mut count: BTreeMap<String, u64> = STATUSES.iter().map(|status| ((*status).to_owned(), 0)).collect();
    for job in jobs {
        *count.entry(job.status.clone()).or_default() += 1;
    }
    count
}

/// What the requests of running and paused jobs wait for; those of jobs that end wait for nothing.
fn waiting(jobs: &[JobReport], depths: &[QueueDepth], pauses: &BTreeMap<QueueName, QueuePause>) -> Waiting {
    let mut sum = Waiting::default();
    let in_paused = depths.iter().filter(|depth| pauses.contains_key(&depth.queue));
    let mut in_paused: u64 = in_paused.map(|depth| depth.ready).sum();
    let is_stopped = |job: &JobReport| {
        job.queues
            .iter()
            .filter_map(|queue| pauses.get(queue))
            .any(|pause| job.reason.as_deref() == Some(pause.reason.as_str()))
    };
    for job in jobs {
        let rest = u64::from(job.counts.open().saturating_sub(job.in_flight));
        let retry = u64::from(job.waiting).min(rest);
        match job.status.as_str() {
            "paused" | "held" => {
                sum.paused += rest;
                if is_stopped(job) {
                    in_paused = in_paused.saturating_sub(rest);
                }
            }
            "in_progress" => {
                sum.retry += retry;
                sum.limit += rest - retry;
            }
            _ => {}
        }
    }
    // A job goes on as long as one of its queues does: what it has in the others is paused all the same.
    let of_limit = in_paused.min(sum.limit);
    let of_retry = (in_paused - of_limit).min(sum.retry);
    let Waiting { limit, retry, paused } = sum;
    Waiting { limit: limit - of_limit, retry: retry - of_retry, paused: paused + of_limit + of_retry }
}

#[cfg(test)]
pub(crate) mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    use super::*;
    use crate::clock::{Clock, Seed};
    use crate::control::tests;
    use crate::control::tests::Jobs;
    use crate::dispatch::Fleet;
    use crate::domain::{JobStatus, PauseReason, RetryPolicy, Timestamp};

    /// The vitals of a daemon that runs, over `jobs`.
    pub(crate) fn vitals(jobs: &Arc<Jobs>) -> Vitals {
        let health = Health::default();
        health.running();
        let (store, board) = (Arc::clone(jobs) as Arc<dyn Store>, Board::default());
        let settings = dispatch::Settings {
            providers: Vec::new(),
            retry: RetryPolicy::default(),
            grace: Duration::ZERO,
        };
        let fleet =
            Fleet::new(settings, Arc::clone(&store), board.clone(), Clock::System, Seed::fixed(1)).handle();
        Vitals {
            control: tests::control(jobs),
            store,
            board,
            fleet,
            metrics: Metrics::new(Clock::System.now()),
            health,
            state: PathBuf::from("/"),
        }
    }

    async fn get(vitals: &Vitals, path: &str) -> (u16, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = TowerToHyperService::new(router(vitals.clone())).call(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn code(vitals: &Vitals, path: &str) -> (u16, Value) {
        let (status, body) = get(vitals, path).await;
        (status, serde_json::from_str::<Value>(&body).unwrap()["code"].take())
    }

    #[tokio::test]
    async fn readiness_ends_with_the_run_the_store_and_the_room() {
        let jobs = Arc::new(Jobs::default());
        let vitals = Vitals { health: Health::default(), ..vitals(&jobs) };
        assert_eq!(code(&vitals, "/readyz").await, (503, json!("starting")));
        vitals.health.running();
        assert_eq!(get(&vitals, "/readyz").await, (200, r#"{"status":"ready"}"#.to_owned()));
        jobs.fill("full");
        assert_eq!(code(&vitals, "/readyz").await, (503, json!("no_room")));
        jobs.close_now();
        assert_eq!(code(&vitals, "/readyz").await, (503, json!("store_closed")));
        assert_eq!(code(&vitals, "/healthz").await, (200, Value::Null), "it runs all the same");
        vitals.health.stopping();
        assert_eq!(code(&vitals, "/readyz").await, (503, json!("stopping")));
        assert_eq!(code(&vitals, "/healthz").await, (200, Value::Null));
    }

    #[tokio::test]
    async fn a_worker_that_has_ended_is_told_also_while_the_rest_stops() {
        let vitals = vitals(&Arc::default());
        vitals.health.broken("dispatch");
        vitals.health.stopping();
        assert_eq!(code(&vitals, "/healthz").await, (503, json!("worker_ended")));
        assert_eq!(code(&vitals, "/readyz").await, (503, json!("broken")));
    }

    #[tokio::test]
    async fn jobs_and_what_they_wait_for_are_counted_as_they_are_listed() {
        let jobs = Arc::new(Jobs::default());
        // Three requests each: one answered, one waits for its next attempt, one is in flight.
        jobs.add("runs", JobStatus::InProgress);
        jobs.add("rests", JobStatus::Paused { reason: PauseReason::User });
        jobs.add("done", JobStatus::Completed);
        let vitals = vitals(&jobs);
        let (_, text) = get(&vitals, "/metrics").await;
        for (reason, count) in [("retry", 1), ("paused", 1), ("limit", 0)] {
            let line = format!("batchd_requests_waiting{{reason=\"{reason}\"}} {count}\n");
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
        // The job goes on, since it may have other queues; what it has in this one does not.
        let queue = QueueName::new("openai", Some("m"));
        let pause =
            QueuePause { reason: PauseReason::Quota, message: "m".to_owned(), since: Timestamp::default() };
        vitals.board.pause(&queue, pause);
        let (status, text) = get(&vitals, "/metrics").await;
        assert_eq!(status, 200);
        for line in [
            "batchd_jobs{status=\"in_progress\"} 1",
            "batchd_jobs{status=\"paused\"} 1",
            "batchd_jobs{status=\"completed\"} 1",
            "batchd_jobs{status=\"failed\"} 0",
            "batchd_requests_waiting{reason=\"retry\"} 0",
            "batchd_requests_waiting{reason=\"paused\"} 2",
            "batchd_requests_waiting{reason=\"limit\"} 0",
            "batchd_queue_paused{queue=\"openai/m\",reason=\"quota\"} 1",
            "batchd_disk_has_room 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        jobs.close_now();
        let (status, text) = get(&vitals, "/metrics").await;
        assert!(status == 200 && text.contains("batchd_build_info"), "what was counted is still told");
    }
}
