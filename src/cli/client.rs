//! Speaks to the running daemon over its Unix socket.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Exit, Failure};
use crate::config::Config;
use crate::control::JobReport;

/// A command waits for a few syncs of the disk; a daemon that takes longer than this is stuck.
const TIMEOUT: Duration = Duration::from_mins(1);

/// A connection to the daemon that a configuration names.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    socket: PathBuf,
}

/// An error as the daemon words it.
#[derive(Debug, Deserialize)]
struct Refusal {
    error: Reason,
}

#[derive(Debug, Deserialize)]
struct Reason {
    message: String,
}

impl Client {
    pub(super) fn new(config: &Config) -> Result<Self, Failure> {
        let socket: &Path = &config.control.socket;
        let http = reqwest::Client::builder()
            .unix_socket(socket)
            .no_proxy()
            .timeout(TIMEOUT)
            .build()
            .map_err(|error| Failure::new(Exit::Internal, format!("can't make a client: {error}")))?;
        Ok(Self { http, socket: socket.to_owned() })
    }

    /// Every job, in the order of acceptance.
    pub(super) async fn list(&self) -> Result<Vec<JobReport>, Failure> {
        self.call(Method::GET, &[]).await
    }

    pub(super) async fn show(&self, job: &str) -> Result<JobReport, Failure> {
        self.call(Method::GET, &[named(job)?]).await
    }

    /// Carries out `verb` on a job; the answer is the job after it.
    pub(super) async fn steer(&self, job: &str, verb: &str) -> Result<JobReport, Failure> {
        self.call(Method::POST, &[named(job)?, verb]).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &[&str]) -> Result<T, Failure> {
        let mut url = Url::parse("http://batchd/jobs").expect("our own url is one");
        url.path_segments_mut().expect("an http url has a path").extend(path);
        let reply = self.http.request(method, url).send().await.map_err(|error| self.unreachable(&error))?;
        let status = reply.status();
        let body = reply.bytes().await.map_err(|error| self.unreachable(&error))?;
        if !status.is_success() {
            return Err(refused(status, &body));
        }
        serde_json::from_slice(&body).map_err(|error| {
            let message = format!("the daemon's answer is not understood: {error}");
            Failure::new(Exit::Internal, message).hint("is it of another version than this command?")
        })
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let mut root: &dyn Error = error;
        while let Some(source) = root.source() {
            root = source;
        }
        let message = format!("no daemon answers on `{}`: {root}", self.socket.display());
        let hint = "start one with `batchd run`, or name its configuration with `--config`";
        Failure::new(Exit::Unreachable, message).hint(hint)
    }
}

/// A name that a url can hold as one segment of its path.
fn named(job: &str) -> Result<&str, Failure> {
    if matches!(job, "" | "." | "..") {
        return Err(Failure::new(Exit::Usage, format!("no job is called `{job}`")));
    }
    Ok(job)
}

fn refused(status: StatusCode, body: &[u8]) -> Failure {
    let message = serde_json::from_slice::<Refusal>(body)
        .map_or_else(|_| format!("the daemon answered {status}"), |refusal| refusal.error.message);
    let exit = match status {
        StatusCode::NOT_FOUND => Exit::Usage,
        StatusCode::CONFLICT => Exit::SomeFailed,
        StatusCode::SERVICE_UNAVAILABLE => Exit::StateIo,
        _ => Exit::Internal,
    };
    Failure::new(exit, message)
}
