//! The daemon: builds the workers from the configuration, runs them, and ends them in order.
//!
//! # Operation
//!
//! Nothing new is taken in first, then nothing more is sent; what is in flight may finish within the grace;
//! results that are whole are written; then the store is closed. A second signal skips the waiting.
//!
//! Signals ask for a stop, a reload or a report. The last two have tasks of their own, and keep nobody from stopping.

mod build;
mod difference;
#[cfg(test)]
mod faulty;
mod idle;
#[cfg(test)]
mod pacing;
#[cfg(test)]
mod power;
mod reload;
mod report;
mod signals;
#[cfg(test)]
mod storm;
mod systemd;
mod tasks;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use self::build::{provider, spec_settings};

use self::build::Workers;
use self::idle::Watch;
use self::reload::Reloader;
use self::report::Reporter;
use self::signals::{Signal, Signals};
use self::systemd::{News, Systemd};
use self::tasks::{Failed, Tasks};
use crate::clock::{Clock, Seed};
use crate::config::{self, Config, Supervisor};
use crate::control::JobReport;
use crate::dispatch;
use crate::domain::JobState;
use crate::http::Health;
use crate::metrics::Metrics;
use crate::pulse::Roll;
use crate::store::embedded::Claimed;
use crate::store::{self, Store};

/// How often a start looks whether the disk that was full has room now.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(1);

/// How a daemon is to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// End when nothing can progress without a person.
    pub until_idle: bool,
    /// Who is told how it is.
    pub supervisor: Supervisor,
}

/// How a daemon's run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Everything is done, and every request that was settled has its answer.
    Done,
    /// Everything is done, but some requests failed.
    SomeFailed,
    /// A signal asked it to stop, and it stopped in order.
    StoppedBySignal,
    /// What is left waits for a person.
    Stuck(Stuck),
    /// A second signal cut the drain short.
    Interrupted,
}

/// What waits for a person.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stuck {
    /// Paused and held jobs.
    pub jobs: Vec<JobReport>,
    /// Why specs in the jobs folder can't be taken in, if some can't.
    pub intake: Option<String>,
}

/// Why a daemon could not run, or had to stop.
#[derive(Debug, Error)]
pub enum Error {
    #[error("another daemon{} holds `{}`", pid.map_or_else(String::new, |pid| format!(" (pid {pid})")), root.display())]
    AlreadyRunning { pid: Option<u32>, root: PathBuf },
    #[error(transparent)]
    State(store::Error),
    #[error("{0}")]
    Internal(String),
}

/// Runs the daemon in the foreground until it is done, told to stop, or can't go on.
pub async fn run(loaded: config::Loaded, options: RunOptions) -> Result<Ending, Error> {
    let roll = Roll::default();
    let systemd = Systemd::new(&options.supervisor, roll.clone());
    // The end first: there is nothing to tell after it.
    tokio::select! { biased;
        ended = Box::pin(serve(loaded, options.until_idle, &roll, systemd.clone())) => ended,
        never = systemd.attend() => match never {},
    }
}

async fn serve(
    loaded: config::Loaded,
    until_idle: bool,
    roll: &Roll,
    systemd: Systemd,
) -> Result<Ending, Error> {
    let mut signals =
        Signals::listen().map_err(|error| Error::Internal(format!("listen to signals: {error}")))?;
    reload::warn_of(&loaded.warnings);
    let outside = Outside { asked: Asked::default(), systemd };
    let config = &loaded.config;
    let clock = Clock::System;
    let metrics = Metrics::new(clock.now());
    let Some(store) = open_store(config, (&metrics, roll), &mut signals, &outside).await? else {
        return Ok(Ending::StoppedBySignal);
    };
    let before = store.jobs().await.map_err(Error::State)?;
    let mut workers =
        build::workers(config, Arc::clone(&store), clock, Seed::from_entropy(), (&metrics, roll))
            .map_err(Error::Internal)?;
    if until_idle {
        // What became of them is the exit code.
        workers.upkeep = workers.upkeep.sparing_what_ends_now();
    }
    tracing::info!(root = %config.root.display(), jobs = before.iter().filter(|job| !job.status.is_final()).count(), "batchd is running");
    let mut daemon = Daemon::start(workers, store, before, loaded, outside);
    let ending = daemon.serve(&mut signals, until_idle).await;
    let drained = daemon.stop(&mut signals).await;
    match (ending, drained) {
        (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        (Ok(_), Ok(Drain::CutShort)) => Ok(Ending::Interrupted),
        (Ok(ending), Ok(Drain::Whole)) => Ok(ending),
    }
}

/// Opens the store, as soon as its disk has room for that. None if a signal came first.
async fn open_store(
    config: &Config,
    (metrics, roll): (&Metrics, &Roll),
    signals: &mut Signals,
    outside: &Outside,
) -> Result<Option<Arc<dyn Store>>, Error> {
    let (state, min_free) = (config.state_dir(), config.storage.min_free);
    store::folder::make_private_dir(&state).map_err(Error::State)?;
    let claimed = Claimed::take(&state).map_err(|error| not_opened(error, config))?;
    let claimed = Arc::new(claimed.with_metrics(metrics.clone()));
    let mut is_told = false;
    outside.systemd.starting("recovering");
    loop {
        let (claimed, roll) = (Arc::clone(&claimed), roll.clone());
        let opened = tokio::task::spawn_blocking(move || claimed.open(min_free, &roll)).await;
        match opened.map_err(|error| Error::Internal(format!("opening the store failed: {error}")))? {
            Ok(store) => return Ok(Some(Arc::new(store))),
            Err(error) if error.is_full() && !is_told => {
                tracing::warn!(%error, "the disk is full: batchd starts when there is room");
                outside.systemd.starting(&format!("waiting for room on the disk: {error}"));
                is_told = true;
            }
            Err(error) if error.is_full() => {}
            Err(error) => return Err(not_opened(error, config)),
        }
        tokio::select! { biased;
            signal = signals.next() => match signal {
                Signal::Stop => return Ok(None),
                // As soon as there is something that can change.
                Signal::Reload => outside.asked.reload.notify_one(),
                Signal::Report => tracing::info!("status: batchd starts when the disk has room"),
            },
            () = tokio::time::sleep(LOOK_FOR_ROOM) => {}
        }
    }
}

fn not_opened(error: store::Error, config: &Config) -> Error {
    if let store::Error::Locked { pid, .. } = error {
        return Error::AlreadyRunning { pid, root: config.root.clone() };
    }
    Error::State(error)
}

/// Rebuilds the queue from the job folders, while no daemon runs. The jobs as they came back.
pub fn rebuild(config: &Config) -> Result<Vec<JobReport>, Error> {
    let states = store::embedded::rebuild(&config.state_dir()).map_err(|error| not_opened(error, config))?;
    Ok(states.iter().map(JobReport::of).collect())
}

/// How the drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    Whole,
    CutShort,
}

/// What signals have asked for. Asked again before it is begun, it is done once.
#[derive(Debug, Default)]
struct Asked {
    reload: Arc<Notify>,
    report: Arc<Notify>,
}

/// What comes in by signals, and what goes out to a service manager.
#[derive(Debug)]
struct Outside {
    asked: Asked,
    systemd: Systemd,
}

/// The running workers, in the order in which they are stopped.
struct Daemon {
    tasks: Tasks,
    outside: Outside,
    fleet: dispatch::Handle,
    watch: Watch,
    store: Arc<dyn Store>,
    health: Health,
    /// Stops intake and dispatch.
    stop_work: CancellationToken,
    /// Abandons what is in flight.
    hurry: CancellationToken,
    /// Stops what must outlive dispatch: results, and the answers to commands.
    stop_rest: CancellationToken,
}

impl Daemon {
    /// `loaded` is what the workers were built from, `before` the jobs that the store had.
    fn start(
        workers: Workers,
        store: Arc<dyn Store>,
        before: Vec<JobState>,
        loaded: config::Loaded,
        outside: Outside,
    ) -> Self {
        let Workers { intake, fleet, output, upkeep, control, socket, port, vitals, board } = workers;
        let (stop_work, hurry, stop_rest) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let mut tasks = Tasks::default();
        let parts = reload::Parts {
            fleet: fleet.handle(),
            intake: intake.handle(),
            board: board.clone(),
            clock: Clock::System,
            metrics: vitals.metrics.clone(),
            systemd: outside.systemd.clone(),
        };
        let reloader = Reloader::new(loaded, parts, Arc::clone(&outside.asked.reload));
        let stop = stop_work.clone();
        tasks.spawn("reload", async move {
            reloader.run(stop).await;
            Ok(())
        });
        let shown = (control.clone(), board.clone());
        let news = News { control: control.clone(), store: Arc::clone(&store), board: board.clone() };
        let live = fleet.handle();
        let asked = Arc::clone(&outside.asked.report);
        let reporter = Reporter::new(Arc::clone(&store), shown, live.clone(), &before, asked);
        let stop = stop_rest.clone();
        tasks.spawn("report", async move {
            reporter.run(stop).await;
            Ok(())
        });
        let handle = intake.handle();
        let watch = Watch::new(control.clone(), board, handle.clone(), Arc::clone(&store), before);
        let stop = stop_work.clone();
        tasks.spawn("intake", async move { intake.run(stop).await.map_err(Failed::from) });
        let (stop, cut) = (stop_work.clone(), hurry.clone());
        tasks.spawn("dispatch", async move { fleet.run(stop, cut).await.map_err(Failed::from) });
        let stop = stop_work.clone();
        tasks.spawn("upkeep", async move { upkeep.run(stop).await.map_err(Failed::from) });
        let stop = stop_rest.clone();
        tasks.spawn("output", async move { output.run(stop).await.map_err(Failed::from) });
        let stop = stop_rest.clone();
        let health = vitals.health.clone();
        if let Some(port) = port {
            let (vitals, stop) = (vitals.clone(), stop.clone());
            tasks.spawn("port", async move {
                port.serve(vitals, stop).await;
                Ok(())
            });
        }
        tasks.spawn("control", async move {
            crate::http::serve(socket, control, handle, vitals, stop).await;
            Ok(())
        });
        health.running();
        outside.systemd.ready(news);
        Self { tasks, outside, fleet: live, watch, store, health, stop_work, hurry, stop_rest }
    }

    /// Runs until a signal, idleness, or a worker's end.
    async fn serve(&mut self, signals: &mut Signals, until_idle: bool) -> Result<Ending, Error> {
        loop {
            // A failed worker first: nothing else matters then. A signal before idleness, so that the
            // exit code tells of it.
            tokio::select! { biased;
                (name, ended) = self.tasks.next() => {
                    self.health.broken(name);
                    return Err(error_of(name, ended));
                }
                signal = signals.next() => match signal {
                    Signal::Stop => {
                        tracing::info!("stopping: what is in flight may finish");
                        return Ok(Ending::StoppedBySignal);
                    }
                    Signal::Reload => self.outside.asked.reload.notify_one(),
                    Signal::Report => self.outside.asked.report.notify_one(),
                },
                ending = self.watch.idle(), if until_idle => return ending.map_err(Error::State),
            }
        }
    }

    /// Ends the workers in order.
    async fn stop(mut self, signals: &mut Signals) -> Result<Drain, Error> {
        self.health.stopping();
        self.stop_work.cancel();
        self.outside.systemd.stopping(self.fleet.settings().grace).await;
        let mut drain = Drain::Whole;
        let mut result = Ok(());
        while self.tasks.is_running(&["intake", "dispatch", "upkeep", "reload"]) {
            tokio::select! { biased;
                (name, ended) = self.tasks.next() => result = result.and_then(|()| check(name, ended)),
                signal = signals.next() => match signal {
                    Signal::Stop => {
                        tracing::warn!("stopping at once: requests in flight are abandoned");
                        drain = Drain::CutShort;
                        self.hurry.cancel();
                    }
                    Signal::Reload => tracing::info!("stopping: the configuration is read at the next start"),
                    Signal::Report => self.outside.asked.report.notify_one(),
                },
            }
        }
        self.stop_rest.cancel();
        while self.tasks.is_running(&["output", "control", "port", "report"]) {
            let (name, ended) = self.tasks.next().await;
            result = result.and_then(|()| check(name, ended));
        }
        let closed = self.store.close().await.map_err(Error::State);
        result.and(closed).map(|()| drain)
    }
}

fn check(name: &'static str, ended: Result<(), Failed>) -> Result<(), Error> {
    match ended {
        Ok(()) => Ok(()),
        Err(failed) => Err(error_of(name, Err(failed))),
    }
}

/// A worker that ends by itself has failed, whatever it says.
fn error_of(name: &'static str, ended: Result<(), Failed>) -> Error {
    match ended {
        Ok(()) => Error::Internal(format!("the {name} worker ended without being told to")),
        Err(Failed::Store(error)) => Error::State(error),
        Err(Failed::Other(why)) => Error::Internal(format!("the {name} worker failed: {why}")),
    }
}
