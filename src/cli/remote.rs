//! What the commands that speak to a provider share: which one, how often they ask, and how its errors read.
//!
//! # What it does not do
//!
//! It repeats no call that creates something: only a person knows whether the first one was wanted twice.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use super::{Exit, Failure, load_config};
use crate::config::Keys;
use crate::daemon;
use crate::diag::nearest;
use crate::domain::{Outcome, PauseReason};
use crate::provider::{Called, Provider, words_of};

/// Tries beyond the first.
const RETRIES: u32 = 2;

/// Before the second try; twice as long before the third.
const WAIT: Duration = Duration::from_millis(250);

/// A person waits: a provider that wants more than this is asked another time.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The provider called `name`, else the configuration's first.
pub(super) fn provider(config: Option<&Path>, name: Option<&str>) -> Result<Provider, Failure> {
    let loaded = load_config(config, Keys::Required)?;
    let providers = &loaded.config.providers;
    let found = match name {
        Some(name) => providers.iter().find(|provider| provider.name == name),
        None => providers.first(),
    };
    let names = || providers.iter().map(|provider| provider.name.as_str());
    let found = found.ok_or_else(|| {
        let wanted = name.unwrap_or_default();
        let hint = nearest(wanted, names()).map_or_else(
            || format!("the configuration has `{}`", names().collect::<Vec<_>>().join("`, `")),
            |name| format!("did you mean `{name}`?"),
        );
        Failure::new(Exit::Usage, format!("no provider is called `{wanted}`")).hint(hint)
    })?;
    daemon::provider(found).map_err(|error| Failure::new(Exit::Internal, error))
}

/// Asks for something that costs nothing to ask for twice, and tries again what may pass.
pub(super) async fn patiently<T>(mut call: impl AsyncFnMut() -> Called<T>) -> Called<T> {
    let mut wait = WAIT;
    for _ in 0..RETRIES {
        match call().await {
            Err(outcome) => match pause(&outcome, wait) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(outcome),
            },
            answered => return answered,
        }
        wait *= 2;
    }
    call().await
}

/// How long to wait before trying again, `unasked` unless the provider says; none if it is not worth it.
fn pause(outcome: &Outcome, unasked: Duration) -> Option<Duration> {
    let hint = match outcome {
        Outcome::Throttled { retry_after, .. } => *retry_after,
        Outcome::Failed(failure) if failure.code != FILE_ERROR => failure.retry_after,
        Outcome::Answered(_)
        | Outcome::Refused(_)
        | Outcome::Unanswerable(_)
        | Outcome::Failed(_)
        | Outcome::Blocked(_) => return None,
    };
    Some(hint.unwrap_or(unasked)).filter(|pause| *pause <= WAIT_MAX)
}

/// The code of what went wrong on this side of the line.
const FILE_ERROR: &str = "file_error";

/// How a call that failed looks from outside.
pub(super) fn failure(provider: &Provider, outcome: &Outcome) -> Failure {
    let name = provider.name();
    match outcome {
        Outcome::Refused(response) | Outcome::Answered(response) => {
            let message =
                said(format!("`{name}` refused with {}", response.status_code), &words_of(response));
            Failure::new(Exit::SomeFailed, message)
        }
        Outcome::Unanswerable(error) => {
            Failure::new(Exit::SomeFailed, said(format!("`{name}`"), &error.message))
        }
        Outcome::Throttled { code, retry_after, .. } => {
            let mut message = format!("`{name}` is too busy ({code})");
            if let Some(wait) = retry_after {
                let wait = humantime::format_duration(Duration::from_secs(wait.as_secs().max(1)));
                write!(message, " and wants to be left alone for {wait}").expect("a string takes everything");
            }
            Failure::new(Exit::SomeFailed, message)
        }
        Outcome::Failed(failure) if failure.code == FILE_ERROR => {
            Failure::new(Exit::StateIo, failure.message.clone())
        }
        Outcome::Failed(failure) if failure.response.is_some() => {
            Failure::new(Exit::Unreachable, said(format!("`{name}` fails"), &failure.message))
        }
        Outcome::Failed(failure) => {
            Failure::new(Exit::Unreachable, said(format!("`{name}` can't be reached"), &failure.message))
        }
        Outcome::Blocked(blocked) => {
            let Some(response) = &blocked.response else {
                return Failure::new(
                    Exit::Unreachable,
                    said(format!("`{name}` can't be trusted"), &blocked.message),
                );
            };
            let (what, hint) = match blocked.reason {
                PauseReason::Quota => ("says that the quota is used up", None),
                PauseReason::Auth
                | PauseReason::Model
                | PauseReason::Disk
                | PauseReason::FineTune
                | PauseReason::Outage
                | PauseReason::Overlap
                | PauseReason::User => {
                    ("refused the key", Some("`api_key_env` or `api_key_file` of the provider names it"))
                }
            };
            let message = said(format!("`{name}` {what} ({})", response.status_code), &blocked.message);
            let failure = Failure::new(Exit::SomeFailed, message);
            hint.into_iter().fold(failure, Failure::hint)
        }
    }
}

fn said(what: String, words: &str) -> String {
    if words.is_empty() { what } else { format!("{what}: {words}") }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::ffi::OsString;
    use std::fs;
    use std::path::PathBuf;

    use tempfile::TempDir;
    use tokio::runtime::Runtime;

    use super::*;
    use crate::cli::report::tests::{Printed, batchd};
    use crate::provider::testing::{Listener, http};

    /// A provider that gives fixed replies, one after the other, the last one again and again; and a folder with a
    /// configuration that names it.
    pub(in crate::cli) struct Script {
        pub(in crate::cli) folder: TempDir,
        listener: Listener,
        _runtime: Runtime,
    }

    impl Script {
        pub(in crate::cli) fn new(replies: &[(&str, &str)]) -> Self {
            Self::of_bytes(replies.iter().map(|(status, body)| http(status, "", body)).collect())
        }

        pub(in crate::cli) fn of_bytes(replies: Vec<Vec<u8>>) -> Self {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let listener = runtime.block_on(Listener::with_replies(replies));
            let folder = tempfile::tempdir().unwrap();
            let provider = |name: &str, address: &str| {
                format!("[[providers]]\nname = \"{name}\"\nbase_url = \"http://{address}/v1\"\n")
            };
            let config =
                provider("local", &listener.address().to_string()) + &provider("away", "127.0.0.1:9");
            fs::write(folder.path().join("batchd.toml"), config).unwrap();
            Self { folder, listener, _runtime: runtime }
        }

        /// Runs a command; in what it prints, `DIR` stands for the folder.
        pub(in crate::cli) fn batchd(&self, args: &[&str]) -> Printed {
            let config = self.path("batchd.toml").into_os_string();
            let args = ["--config".into(), config].into_iter().chain(args.iter().map(OsString::from));
            let printed = batchd(args.collect::<Vec<OsString>>());
            let folder = self.folder.path().to_str().unwrap();
            Printed {
                out: printed.out.replace(folder, "DIR"),
                err: printed.err.replace(folder, "DIR"),
                ..printed
            }
        }

        pub(in crate::cli) fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        /// A file with this content; answers its path.
        pub(in crate::cli) fn file(&self, name: &str, content: &str) -> String {
            fs::write(self.path(name), content).unwrap();
            self.path(name).to_str().unwrap().to_owned()
        }

        /// Methods and paths of what was asked.
        pub(in crate::cli) fn asked(&self) -> Vec<String> {
            self.listener.first_lines()
        }

        pub(in crate::cli) fn requests(&self) -> Vec<String> {
            self.listener.requests()
        }
    }

    #[test]
    fn providers_are_known_by_their_names() {
        let script = Script::new(&[("200 OK", r#"{"data":[]}"#)]);
        let printed = script.batchd(&["models", "--provider", "locl"]);
        assert_eq!((printed.exit, printed.out.as_str()), (Exit::Usage, ""));
        assert_eq!(printed.err, "error: no provider is called `locl`\n  hint: did you mean `local`?\n");
        let printed = script.batchd(&["models", "--provider", "zebra"]);
        assert_eq!(
            printed.err,
            "error: no provider is called `zebra`\n  hint: the configuration has `local`, `away`\n"
        );
        assert_eq!(script.batchd(&["models"]).exit, Exit::Done);
        assert_eq!(script.asked().len(), 1);
    }

    #[test]
    fn what_may_pass_is_tried_three_times_in_all() {
        let script = Script::new(&[("503 Busy", ""), ("500 Oops", ""), ("200 OK", r#"{"data":[]}"#)]);
        assert_eq!(script.batchd(&["models"]).exit, Exit::Done);
        assert_eq!(script.asked().len(), 3);
        let script = Script::of_bytes(vec![Vec::new()]);
        let printed = script.batchd(&["models"]);
        assert_eq!(printed.exit, Exit::Unreachable);
        assert!(
            printed.err.starts_with("error: `local` can't be reached: the connection was lost"),
            "{printed:?}"
        );
        assert_eq!(script.asked().len(), 3);
    }

    #[test]
    fn every_end_has_its_exit_and_its_words() {
        let error = |message: &str| format!(r#"{{"error":{{"message":"{message}"}}}}"#);
        for (status, body, exit, said) in [
            (
                "404 No",
                error("none\\u0007"),
                Exit::SomeFailed,
                "error: `local` refused with 404: none\\u{7}\n",
            ),
            ("404 No", String::new(), Exit::SomeFailed, "error: `local` refused with 404\n"),
            (
                "401 No",
                error("bad key"),
                Exit::SomeFailed,
                "error: `local` refused the key (401): bad key\n  hint: `api_key_env` or `api_key_file` of the provider \
                 names it\n",
            ),
            (
                "402 No",
                error("pay"),
                Exit::SomeFailed,
                "error: `local` says that the quota is used up (402): pay\n",
            ),
            (
                "200 OK",
                error("odd"),
                Exit::Unreachable,
                "error: `local` can't be reached: the server answered 200 but gave no answer: it holds an error: odd\n",
            ),
            (
                "500 Oops",
                error("odd"),
                Exit::Unreachable,
                "error: `local` fails: the server answered 500: odd\n",
            ),
        ] {
            let script = Script::new(&[(status, &body)]);
            let printed = script.batchd(&["files", "list"]);
            assert_eq!(
                (printed.exit, printed.err.as_str(), printed.out.as_str()),
                (exit, said, ""),
                "{status}"
            );
        }
        let script = Script::of_bytes(vec![http("429 Slow", "retry-after: 60\r\n", &error("rate limit"))]);
        let printed = script.batchd(&["files", "list"]);
        assert_eq!(printed.err, "error: `local` is too busy (429) and wants to be left alone for 1m\n");
        assert_eq!((printed.exit, script.asked().len()), (Exit::SomeFailed, 1));
    }

    #[test]
    fn a_key_that_is_missing_is_a_config_error() {
        let script = Script::new(&[("200 OK", "")]);
        script.file(
            "batchd.toml",
            "[[providers]]\nname = \"a\"\nbase_url = \"http://127.0.0.1:9\"\napi_key_file = \"none\"\n",
        );
        assert_eq!(script.batchd(&["models"]).exit, Exit::BadConfig);
    }
}
