//! Speaks to the running daemon over its Unix socket.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Exit, Failure};
use crate::config::Config;
use crate::control::JobReport;
use crate::http::{ScheduleReport, Upcoming};

/// A command waits for a few syncs of the disk; a daemon that takes longer than this is stuck.
const TIMEOUT: Duration = Duration::from_mins(1);

/// For those who name a job that there is not.
const NAMES: &str = "`batchd list` shows the jobs; of one that ended long ago (`[storage] keep_state`) only the results are kept";
const SCHEDULES: &str = "`batchd schedule list` shows the schedules";

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
        self.call(Method::GET, &["jobs"], None).await
    }

    /// Every schedule, by its file.
    pub(super) async fn schedules(&self) -> Result<Vec<ScheduleReport>, Failure> {
        self.call(Method::GET, &["schedules"], None).await
    }

    /// The next `count` times over all schedules.
    pub(super) async fn upcoming(&self, count: u64) -> Result<Vec<Upcoming>, Failure> {
        self.call(Method::GET, &["schedules", "next"], Some(("n", count))).await
    }

    /// Makes a run of a schedule; the answer is its job.
    pub(super) async fn run_schedule(&self, schedule: &str) -> Result<JobReport, Failure> {
        let path = ["schedules", named(schedule, "schedule", SCHEDULES)?, "run"];
        self.call(Method::POST, &path, None).await
    }

    pub(super) async fn show(&self, job: &str) -> Result<JobReport, Failure> {
        self.call(Method::GET, &["jobs", named(job, "job", NAMES)?], None).await
    }

    /// Carries out `verb` on a job; the answer is the job after it.
    pub(super) async fn steer(&self, job: &str, verb: &str) -> Result<JobReport, Failure> {
        self.call(Method::POST, &["jobs", named(job, "job", NAMES)?, verb], None).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: Option<(&str, u64)>,
    ) -> Result<T, Failure> {
        let mut url = Url::parse("http://batchd").expect("our own url is one");
        url.path_segments_mut().expect("an http url has a path").extend(path);
        if let Some((key, value)) = query {
            url.query_pairs_mut().append_pair(key, &value.to_string());
        }
        let reply = self.http.request(method, url).send().await.map_err(|error| self.unreachable(&error))?;
        let status = reply.status();
        let body = reply.bytes().await.map_err(|error| self.unreachable(&error))?;
        if !status.is_success() {
            return Err(refused(status, &body, path));
        }
        serde_json::from_slice(&body).map_err(|error| {
            let message = format!("the daemon's answer is not understood: {error}");
            Failure::new(Exit::Internal, message).hint("is it of another version than this command?")
        })
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let mut root: &(dyn Error + 'static) = error;
        while let Some(source) = root.source() {
            root = source;
        }
        let message = format!("no daemon answers on `{}`: {root}", self.socket.display());
        Failure::new(Exit::Unreachable, message).hint(remedy(root))
    }
}

/// What a person can do about a socket on which nobody answers.
fn remedy(root: &(dyn Error + 'static)) -> &'static str {
    match root.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::PermissionDenied) => {
            "only the user who runs the daemon, and the group of `[control] group`, may speak to it"
        }
        _ => "start one with `batchd run`, or name its configuration with `--config`",
    }
}

/// A name that a url can hold as one segment of its path.
fn named<'n>(name: &'n str, what: &str, hint: &str) -> Result<&'n str, Failure> {
    if matches!(name, "" | "." | "..") {
        return Err(Failure::new(Exit::Usage, format!("no {what} is called `{name}`")).hint(hint));
    }
    Ok(name)
}

fn refused(status: StatusCode, body: &[u8], path: &[&str]) -> Failure {
    let message = serde_json::from_slice::<Refusal>(body)
        .map_or_else(|_| format!("the daemon answered {status}"), |refusal| refusal.error.message);
    let exit = match status {
        StatusCode::NOT_FOUND => Exit::Usage,
        StatusCode::FORBIDDEN => Exit::Unreachable,
        StatusCode::CONFLICT => Exit::SomeFailed,
        StatusCode::UNPROCESSABLE_ENTITY => Exit::Rejected,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::INSUFFICIENT_STORAGE => Exit::StateIo,
        _ => Exit::Internal,
    };
    let failure = Failure::new(exit, message);
    match status {
        StatusCode::NOT_FOUND if path.starts_with(&["schedules"]) => failure.hint(SCHEDULES),
        StatusCode::NOT_FOUND => failure.hint(NAMES),
        _ => failure,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::ffi::OsString;
    use std::fs;
    use std::sync::Arc;
    use std::thread::{Builder, JoinHandle};

    use tempfile::TempDir;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::cli::report::tests::{Printed, batchd};
    use crate::control::tests::{Jobs, control};
    use crate::domain::{JobStatus, PauseReason};
    use crate::http;
    use crate::http::vitals::tests::vitals;
    use crate::intake;

    /// A root, its configuration, and something that answers commands about `jobs` as a daemon would.
    pub(in crate::cli) struct Daemon {
        pub(in crate::cli) folder: TempDir,
        pub(in crate::cli) jobs: Arc<Jobs>,
        stop: CancellationToken,
        thread: Option<JoinHandle<()>>,
    }

    impl Daemon {
        /// Nobody answers yet.
        pub(in crate::cli) fn absent() -> Self {
            // Below /tmp whatever $TMPDIR says: a socket's path has to be short.
            let folder = tempfile::tempdir_in("/tmp").unwrap();
            fs::write(folder.path().join("batchd.toml"), "root = \"root\"\n[control]\nsocket = \"s\"\n")
                .unwrap();
            Self { folder, jobs: Arc::default(), stop: CancellationToken::new(), thread: None }
        }

        pub(in crate::cli) fn present() -> Self {
            let mut daemon = Self::absent();
            let (jobs, stop) = (Arc::clone(&daemon.jobs), daemon.stop.clone());
            let path = daemon.folder.path().join("s");
            let (ready, bound) = std::sync::mpsc::channel();
            let serve = move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let listener = http::bind(&path, None).unwrap();
                    ready.send(()).unwrap();
                    http::serve(listener, control(&jobs), intake::Handle::default(), vitals(&jobs), stop)
                        .await;
                });
            };
            daemon.thread = Some(Builder::new().name("daemon".to_owned()).spawn(serve).unwrap());
            bound.recv().unwrap();
            daemon
        }

        pub(in crate::cli) fn config(&self) -> OsString {
            self.folder.path().join("batchd.toml").into()
        }

        /// Runs `batchd --config … <args>`, the folder's random name made `DIR` in what is printed.
        pub(in crate::cli) fn batchd(&self, args: &[&str]) -> Printed {
            rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
            let config = ["--config".into(), self.config()];
            let printed = batchd(config.into_iter().chain(args.iter().map(OsString::from)));
            let folder = self.folder.path().to_string_lossy().into_owned();
            let shown = |text: String| text.replace(&folder, "DIR");
            Printed { exit: printed.exit, out: shown(printed.out), err: shown(printed.err) }
        }
    }

    impl Drop for Daemon {
        fn drop(&mut self) {
            self.stop.cancel();
            if let Some(thread) = self.thread.take() {
                thread.join().unwrap();
            }
        }
    }

    #[test]
    fn commands_without_a_daemon_name_the_socket() {
        let daemon = Daemon::absent();
        for args in [&["list"][..], &["show", "a"], &["cancel", "a"], &["retry", "a", "--json"]] {
            let printed = daemon.batchd(args);
            assert_eq!((printed.exit, printed.out.as_str()), (Exit::Unreachable, ""), "{args:?}");
            assert_eq!(
                printed.err,
                "error: no daemon answers on `DIR/s`: No such file or directory (os error 2)\n  hint: start one \
                 with `batchd run`, or name its configuration with `--config`\n",
                "{args:?}"
            );
        }
    }

    #[test]
    fn jobs_are_listed_shown_and_steered() {
        let daemon = Daemon::present();
        assert_eq!(daemon.batchd(&["list"]).err, "no jobs yet: drop job specs into DIR/root/jobs\n");
        assert_eq!(daemon.batchd(&["list", "--json"]).out, "[]\n");
        daemon.jobs.add("news", JobStatus::InProgress);
        daemon.jobs.add("a/b".replace('/', " ").as_str(), JobStatus::Paused { reason: PauseReason::Quota });
        daemon.jobs.add("50%", JobStatus::Completed);

        let listed = daemon.batchd(&["list"]);
        assert_eq!((listed.exit, listed.err.as_str()), (Exit::Done, ""));
        insta::assert_snapshot!(listed.out, @r#"
        NAME  STATUS          COMPLETED  FAILED  TOTAL  KIND  ACCEPTED
        news  in_progress     1          0       3      chat  1970-01-01T00:00:01.000Z
        a b   paused (quota)  1          0       3      chat  1970-01-01T00:00:02.000Z
        50%   completed       3          0       3      chat  1970-01-01T00:00:03.000Z
        "#);
        let shown = daemon.batchd(&["show", "news"]);
        assert_eq!((shown.exit, shown.err.as_str()), (Exit::Done, ""));
        insta::assert_snapshot!(shown.out, @r#"
        name      news
        id        00000000-03e8-7533-81f5-e89995bf60b9
        kind      chat
        status    in_progress
        requests  1 of 3 completed, 1 in flight, 1 waiting for another attempt
        queues    openai/m
        priority  5
        spec      news.toml
        accepted  1970-01-01T00:00:01.000Z
        results   DIR/root/results/news
        "#);

        let listed: Vec<JobReport> = serde_json::from_str(&daemon.batchd(&["list", "--json"]).out).unwrap();
        let resumed: JobReport =
            serde_json::from_str(&daemon.batchd(&["resume", "a b", "--json"]).out).unwrap();
        assert_eq!((resumed.id, resumed.status.as_str()), (listed[1].id, "in_progress"));
        let cancelled = daemon.batchd(&["cancel", &listed[0].id.to_string()]);
        assert_eq!((cancelled.exit, cancelled.err.as_str()), (Exit::Done, "news is cancelling\n"));
    }

    #[test]
    fn refusals_are_told_in_the_daemons_words() {
        let daemon = Daemon::present();
        daemon.jobs.add("50%", JobStatus::Completed);
        let missing = |job| format!("error: no job is called `{job}`\n  hint: {NAMES}\n");
        let completed = "error: job `50%` is completed: it can't be paused\n".to_owned();
        let table = [
            (["pause", "50%"], Exit::SomeFailed, completed),
            (["show", "none"], Exit::Usage, missing("none")),
            (["show", "../health"], Exit::Usage, missing("../health")),
            (["show", ".."], Exit::Usage, missing("..")),
        ];
        for (args, exit, said) in table {
            let printed = daemon.batchd(&args);
            assert_eq!((printed.exit, printed.err), (exit, said), "{args:?}");
        }
        daemon.jobs.close_now();
        let printed = daemon.batchd(&["list"]);
        assert_eq!(
            (printed.exit, printed.err.as_str()),
            (Exit::StateIo, "error: the store is closed: it was closed\n")
        );
    }

    #[test]
    fn hint_on_a_silent_socket_fits_why_it_is_silent() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        assert_eq!(
            remedy(&denied),
            "only the user who runs the daemon, and the group of `[control] group`, may speak to it"
        );
        let missing = io::Error::from(io::ErrorKind::NotFound);
        assert!(remedy(&missing).starts_with("start one with `batchd run`"));
    }
}
