//! Which request is which command, and which error is which status.

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;

use super::schedules;
use crate::control::{self, Control, JobReport};
use crate::intake;
use crate::store;

/// No request has a body yet; none that comes may be large.
const BODY_BYTES_MAX: usize = 64 * 1024;

pub(super) fn router(control: Control, intake: intake::Handle) -> Router {
    Router::new()
        .route("/jobs", get(list))
        .route("/jobs/{job}", get(show))
        .route("/jobs/{job}/cancel", post(cancel))
        .route("/jobs/{job}/pause", post(pause))
        .route("/jobs/{job}/resume", post(resume))
        .route("/jobs/{job}/retry", post(retry))
        .with_state(control.clone())
        .merge(schedules::routes(control, intake))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// Why there is no answer.
pub(super) struct Failure {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl From<control::Error> for Failure {
    fn from(error: control::Error) -> Self {
        let (status, code) = match &error {
            control::Error::NoSuchJob(_) | control::Error::Store(store::Error::NoSuchJob(_)) => {
                (StatusCode::NOT_FOUND, "no_such_job")
            }
            control::Error::WrongStatus { .. }
            | control::Error::Held { .. }
            | control::Error::Waits { .. }
            | control::Error::AskedBefore { .. }
            | control::Error::Store(store::Error::Transition { .. } | store::Error::Stale(_)) => {
                (StatusCode::CONFLICT, "wrong_status")
            }
            control::Error::Store(store::Error::Full(_)) => (StatusCode::INSUFFICIENT_STORAGE, "no_room"),
            control::Error::Store(
                store::Error::Io { .. }
                | store::Error::Damaged { .. }
                | store::Error::Locked { .. }
                | store::Error::Closed(_),
            ) => (StatusCode::SERVICE_UNAVAILABLE, "store_closed"),
        };
        Self { status, code, message: error.to_string() }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = json!({ "error": { "message": self.message, "code": self.code } });
        (self.status, Json(body)).into_response()
    }
}

pub(super) type Answer<T> = Result<Json<T>, Failure>;

async fn list(State(control): State<Control>) -> Answer<Vec<JobReport>> {
    Ok(Json(control.list().await?))
}

async fn show(State(control): State<Control>, Path(job): Path<String>) -> Answer<JobReport> {
    Ok(Json(control.show(&job).await?))
}

async fn cancel(State(control): State<Control>, Path(job): Path<String>) -> Answer<JobReport> {
    Ok(Json(control.cancel(&job).await?))
}

async fn pause(State(control): State<Control>, Path(job): Path<String>) -> Answer<JobReport> {
    Ok(Json(control.pause(&job).await?))
}

async fn resume(State(control): State<Control>, Path(job): Path<String>) -> Answer<JobReport> {
    Ok(Json(control.resume(&job).await?))
}

async fn retry(State(control): State<Control>, Path(job): Path<String>) -> Answer<JobReport> {
    Ok(Json(control.retry(&job).await?))
}

pub(super) async fn not_found() -> Failure {
    let message = "there is nothing at this path".to_owned();
    Failure { status: StatusCode::NOT_FOUND, code: "not_found", message }
}

pub(super) async fn wrong_method() -> Failure {
    let message = "this path takes another method".to_owned();
    Failure { status: StatusCode::METHOD_NOT_ALLOWED, code: "wrong_method", message }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::control::tests::{Jobs, control};
    use crate::domain::JobStatus;
    use crate::http;
    use crate::http::vitals::tests::vitals;

    /// Serves `jobs`, sends each request, and gives back each status and body.
    async fn exchange(jobs: Arc<Jobs>, requests: &[&str]) -> Vec<(u16, serde_json::Value)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("batchd.sock");
        let listener = http::bind(&path, None).unwrap();
        let stop = CancellationToken::new();
        let talk = async {
            let mut answers = Vec::new();
            for request in requests {
                let mut stream = UnixStream::connect(&path).await.unwrap();
                let head = format!("{request} HTTP/1.1\r\nHost: batchd\r\nConnection: close\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                let mut reply = String::new();
                stream.read_to_string(&mut reply).await.unwrap();
                let (head, body) = reply.split_once("\r\n\r\n").unwrap();
                let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                answers.push((status, serde_json::from_str(body).unwrap()));
            }
            stop.cancel();
            answers
        };
        let intake = intake::Handle::default();
        let served = http::serve(listener, control(&jobs), intake, vitals(&jobs), stop.clone());
        let ((), answers) = tokio::join!(served, talk);
        assert!(!path.exists(), "the socket is taken away at the end");
        answers
    }

    #[tokio::test]
    async fn commands_are_answered_with_the_job_after_them() {
        let jobs = Arc::new(Jobs::default());
        let id = jobs.add("a b", JobStatus::InProgress);
        let answers = exchange(
            Arc::clone(&jobs),
            &[
                "GET /health",
                "POST /jobs/a%20b/pause",
                "GET /jobs",
                &format!("POST /jobs/{id}/resume"),
                "POST /jobs/a%20b/retry",
                "POST /jobs/a%20b/cancel",
                "GET /jobs/a%20b",
            ],
        )
        .await;
        assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
        assert_eq!(answers[0].1["status"], "ok");
        assert_eq!((&answers[1].1["status"], &answers[1].1["reason"]), (&json!("paused"), &json!("user")));
        assert_eq!(answers[2].1, json!([answers[1].1]));
        assert_eq!(answers[3].1["status"], "in_progress");
        assert_eq!(answers[4].1["status"], "in_progress");
        assert_eq!(answers[5].1, answers[6].1);
        assert_eq!(
            answers[6].1,
            json!({
                "name": "a b", "id": id.to_string(), "kind": "chat", "status": "cancelling",
                "counts": { "total": 3, "completed": 1, "failed": 0, "maybe_paid_twice": 0 },
                "in_flight": 1, "leased": 1, "waiting": 1, "priority": 5, "queues": ["openai/m"],
                "spec_file": "a b.toml", "accepted_at": "1970-01-01T00:00:01.000Z",
            })
        );
    }

    #[tokio::test]
    async fn errors_say_what_is_wrong_in_json() {
        let jobs = Arc::new(Jobs::default());
        jobs.add("done", JobStatus::Completed);
        let requests = [
            "GET /jobs/none",
            "POST /jobs/done/pause",
            "GET /jobs/done/pause",
            "GET /nowhere",
            "GET /schedules/a/run",
            "POST /schedules/a/run",
        ];
        let answers = exchange(Arc::clone(&jobs), &requests).await;
        let expected = [
            (404, "no job is called `none`", "no_such_job"),
            (409, "job `done` is completed: it can't be paused", "wrong_status"),
            (405, "this path takes another method", "wrong_method"),
            (404, "there is nothing at this path", "not_found"),
            (405, "this path takes another method", "wrong_method"),
            (503, "the daemon is stopping", "stopping"),
        ];
        for ((status, body), (expected, message, code)) in answers.into_iter().zip(expected) {
            assert_eq!(status, expected);
            assert_eq!(body, json!({ "error": { "message": message, "code": code } }));
        }
        jobs.close_now();
        let answers = exchange(jobs, &["GET /jobs"]).await;
        assert_eq!(answers[0].0, 503);
        assert_eq!(answers[0].1["error"]["code"], "store_closed");
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_holds_its_connection_does_not_hold_the_stop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("batchd.sock");
        let listener = http::bind(&path, None).unwrap();
        let stop = CancellationToken::new();
        let jobs = Arc::new(Jobs::default());
        let mut stuck = UnixStream::connect(&path).await.unwrap();
        stuck.write_all(b"GET /jobs HTTP/1.1\r\n").await.unwrap();
        stop.cancel();
        http::serve(listener, control(&jobs), intake::Handle::default(), vitals(&jobs), stop).await;
        assert!(!path.exists());
    }
}
