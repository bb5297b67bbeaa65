//! Reload (SIGHUP): the configuration is read again, and what can change under running jobs changes.
//!
//! # Operation
//!
//! A task of its own reads the file and the keys to the providers, so that a disk that hangs keeps nobody else from
//! stopping. What is wrong in any way changes nothing. What is good is taken over as far as it can be
//! ([`difference`](super::difference)); the log names the keys that hold from now on, and those that need a restart.
//! Either way the pauses end and the jobs folder is looked at, as it is after a start.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::build;
use super::difference::{Difference, take_over};
use super::systemd::Systemd;
use crate::clock::Clock;
use crate::config::{self, Config, Keys, Loaded};
use crate::control::Board;
use crate::diag::{Report, Severity};
use crate::dispatch;
use crate::intake;
use crate::metrics::Metrics;
use crate::telemetry;

/// See the module's words.
#[derive(Debug)]
pub(super) struct Reloader {
    /// The file of the start. None was found then: the well-known places are looked through again.
    path: Option<PathBuf>,
    /// The configuration that runs: as it was read, but for what needs a restart.
    running: Config,
    parts: Parts,
    asked: Arc<Notify>,
}

/// What a reload reaches.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) fleet: dispatch::Handle,
    pub(super) intake: intake::Handle,
    pub(super) board: Board,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) systemd: Systemd,
}

impl Reloader {
    /// `loaded` is what the parts were built from. Whoever notifies `asked` gets a reload that begins after it.
    pub(super) fn new(loaded: Loaded, parts: Parts, asked: Arc<Notify>) -> Self {
        Self { path: loaded.path, running: loaded.config, parts, asked }
    }

    /// Reloads whenever it is asked to, until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let asked = Arc::clone(&self.asked);
        // Stopping goes first, also before what a slow disk holds up.
        tokio::select! { biased;
            () = stop.cancelled() => {}
            () = async {
                loop {
                    asked.notified().await;
                    let _told = self.parts.systemd.reload();
                    self.reload().await;
                }
            } => {}
        }
    }

    /// One reload, from the first look at the file to the last word in the log. Says whether the file was good.
    async fn reload(&mut self) -> bool {
        let path = self.path.clone();
        let load = move || config::load(path.as_deref(), Keys::Required);
        let loaded = tokio::task::spawn_blocking(load).await;
        let is_good = match loaded {
            Ok(Ok(loaded)) => {
                self.apply(loaded);
                true
            }
            Ok(Err(report)) => {
                refuse(&report);
                false
            }
            Err(error) => {
                tracing::error!(%error, "the configuration could not be read; the one that runs stays");
                false
            }
        };
        self.parts.metrics.reloaded(is_good, self.parts.clock.now());
        self.parts.board.resume();
        self.parts.intake.wake();
        is_good
    }

    fn apply(&mut self, loaded: Loaded) {
        warn_of(&loaded.warnings);
        let difference = take_over(&mut self.running, loaded.config);
        build::change(&self.running, &self.parts.fleet, &self.parts.intake);
        // First: the new level may be one that does not let it through.
        tell(&difference);
        if let Err(error) = telemetry::set_filter(&self.running.log.level) {
            tracing::error!(error, "the level of the log could not be changed");
        }
    }
}

fn tell(difference: &Difference) {
    if difference.is_empty() {
        tracing::info!("the configuration was read again: nothing has changed");
        return;
    }
    if difference.applied.is_empty() {
        tracing::info!("the configuration was read again: nothing that is new in it can hold now");
    } else {
        tracing::info!(
            keys = difference.applied.join(", "),
            "the configuration was read again: these keys hold from now on"
        );
    }
    if !difference.needs_restart.is_empty() {
        tracing::warn!(
            keys = difference.needs_restart.join(", "),
            "these keys of the configuration hold after a restart"
        );
    }
}

/// Every problem of a configuration, each with its place.
fn refuse(report: &Report) {
    tracing::error!(
        errors = report.errors(),
        "the configuration is wrong: nothing of it holds, the one that runs stays"
    );
    let errors = report.diagnostics().iter().filter(|found| found.severity == Severity::Error);
    let mut shown = 0;
    for found in errors {
        let (error, hint) = (format!("{}: error: {}", found.place, found.message), found.hint.as_deref());
        tracing::error!(error, hint, "a problem of the configuration");
        shown += 1;
    }
    if report.errors() > shown {
        tracing::error!(more = report.errors() - shown, "and more problems of the configuration");
    }
}

/// What is odd about a configuration that holds.
pub(super) fn warn_of(warnings: &Report) {
    for warning in warnings.diagnostics() {
        let (place, problem, hint) = (&warning.place, &warning.message, warning.hint.as_deref());
        tracing::warn!(%place, problem, hint, "configuration is odd");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use secrecy::ExposeSecret;
    use tempfile::TempDir;

    use super::*;
    use crate::clock::Seed;
    use crate::control::QueuePause;
    use crate::dispatch::Fleet;
    use crate::domain::{PauseReason, QueueName, RetryPolicy, Timestamp};
    use crate::metrics::Reload;
    use crate::store::conformance::NOW;
    use crate::store::memory::MemoryStore;

    const TEXT: &str =
        "[[providers]]\nname = \"x\"\nbase_url = \"http://127.0.0.1:9/v1\"\napi_key_file = \"key\"\n";

    struct World {
        folder: TempDir,
        reloader: Reloader,
        fleet: dispatch::Handle,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("key"), "sk-1").unwrap();
            let path = folder.path().join("batchd.toml");
            fs::write(&path, TEXT).unwrap();
            let loaded = config::load(Some(&path), Keys::Required).unwrap();
            let config = loaded.config.providers[0].clone();
            let provider = build::provider(&config).unwrap();
            let settings = dispatch::Settings {
                providers: vec![dispatch::ProviderSettings::with_one_site(provider, config)],
                retry: RetryPolicy::default(),
                grace: loaded.config.shutdown.grace,
            };
            let (board, clock) = (Board::default(), Clock::simulated(NOW));
            let store = Arc::new(MemoryStore::default());
            let fleet = Fleet::new(settings, store, board.clone(), clock.clone(), Seed::fixed(1)).handle();
            let (intake, metrics, systemd) =
                (intake::Handle::default(), Metrics::default(), Systemd::default());
            let parts = Parts { fleet: fleet.clone(), intake, board, clock, metrics, systemd };
            Self { folder, reloader: Reloader::new(loaded, parts, Arc::default()), fleet }
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.folder.path().join(name), text).unwrap();
        }

        /// The key that runs, its limit of requests, and the attempts of the policy.
        fn running(&self) -> (String, Option<u32>, u32) {
            let settings = self.fleet.settings();
            let provider = &settings.providers[0].config;
            let key = provider.api_key.as_ref().unwrap().expose_secret().to_owned();
            (key, provider.limits.requests_per_minute, settings.retry.max_attempts)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_good_file_holds_and_a_bad_one_changes_nothing_at_all() {
        let mut world = World::new();
        let before = ("sk-1".to_owned(), None, 6);
        assert!(world.reloader.reload().await);
        assert_eq!(world.running(), before);

        let changed =
            format!("{TEXT}[providers.limits]\nrequests_per_minute = 7\n[retry]\nmax_attempts = 2\n");
        world.write("key", "sk-2");
        for bad in [changed.replace('7', "0"), changed.replace("[retry]", "[retry"), "\u{0}".to_owned()] {
            world.write("batchd.toml", &bad);
            assert!(!world.reloader.reload().await);
            assert_eq!(world.running(), before, "{bad}");
        }
        world.write("batchd.toml", &changed);
        fs::rename(world.folder.path().join("key"), world.folder.path().join("gone")).unwrap();
        assert!(!world.reloader.reload().await, "a key that can't be read is a problem like others");
        assert_eq!(world.running(), before);

        fs::rename(world.folder.path().join("gone"), world.folder.path().join("key")).unwrap();
        assert!(world.reloader.reload().await);
        assert_eq!(world.running(), ("sk-2".to_owned(), Some(7), 2));
        world.write("batchd.toml", TEXT);
        assert!(world.reloader.reload().await);
        assert_eq!(world.running(), ("sk-2".to_owned(), None, 6));
        fs::remove_file(world.folder.path().join("batchd.toml")).unwrap();
        assert!(!world.reloader.reload().await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reload_ends_pauses_and_looks_at_the_jobs_folder_whatever_the_file_holds() {
        let mut world = World::new();
        let mut taken_at = Timestamp::default();
        for (text, is_good) in [(TEXT, true), ("rot = 1", false)] {
            world.write("batchd.toml", text);
            let queue = QueueName::new("x", None);
            let pause = QueuePause { reason: PauseReason::Auth, message: String::new(), since: NOW };
            world.reloader.parts.board.pause(&queue, pause);
            let resumed = world.reloader.parts.board.resumed();
            tokio::time::advance(Duration::from_secs(1)).await;
            world.reloader.reload().await;
            assert!(world.reloader.parts.board.pauses().is_empty() && resumed.has_changed());
            taken_at = if is_good { world.reloader.parts.clock.now() } else { taken_at };
            assert_eq!(world.reloader.parts.metrics.last_reload(), Reload { is_good, taken_at });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_before_it_runs_is_done_once_and_a_stop_ends_it() {
        let world = World::new();
        let (asked, board) = (Arc::clone(&world.reloader.asked), world.reloader.parts.board.clone());
        let metrics = world.reloader.parts.metrics.clone();
        asked.notify_one();
        asked.notify_one();
        let stop = CancellationToken::new();
        let mut resumed = board.resumed();
        tokio::join!(world.reloader.run(stop.clone()), async {
            resumed.changed().await;
            stop.cancel();
        });
        assert!(metrics.last_reload().taken_at > Timestamp::default());
        assert!(!resumed.has_changed());
    }
}
