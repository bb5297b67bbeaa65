//! What users, dispatch and servers do, by chance.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::promises::{Dropped, Promises};
use crate::bell::Listener;
use crate::clock::{Clock, Seed};
use crate::disk::{self, File, recorder::Recorder};
use crate::domain::{JobState, JobStatus, OnUncertain, PauseReason, QueueName, Settlement};
use crate::intake::{self, Handle, Intake};
use crate::output::{self, Output};
use crate::spec;
use crate::store::conformance;
use crate::store::embedded::EmbeddedStore;
use crate::store::folder::make_private_dir;
use crate::store::{self, Input, Lease, Store};

/// Jobs of one world.
const JOBS_MAX: usize = 4;

/// Requests that are in flight at a time.
const IN_FLIGHT_MAX: usize = 5;

/// A life that lasts longer hangs.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);

/// What a life that hangs is reported with.
pub(super) const HANGS: &str = "nothing goes on any more";

/// How long verbs may take to answer when the power is off.
const AFTERGLOW: Duration = Duration::from_millis(200);

/// One life: from a start until the power is cut, or all is done.
pub(super) struct Actor<'w> {
    root: PathBuf,
    recorder: &'w Recorder,
    promises: &'w mut Promises,
    rng: Rng,
    seed: Seed,
    pub(super) patience: Duration,
}

/// What runs while the power is on.
struct Running {
    store: Arc<EmbeddedStore>,
    progress: Listener,
    intake: Handle,
    in_flight: Vec<Lease>,
}

/// The power is off.
struct Off;

type Result<T = ()> = std::result::Result<T, Off>;

impl<'w> Actor<'w> {
    pub(super) fn new(root: &Path, recorder: &'w Recorder, promises: &'w mut Promises, seed: Seed) -> Self {
        Self {
            root: root.to_owned(),
            recorder,
            promises,
            rng: seed.derive("actor"),
            seed,
            patience: PATIENCE,
        }
    }

    /// Lives until the power is cut; where it never is, until every job has ended.
    pub(super) async fn live(mut self, to_the_end: bool) {
        let state = self.root.join("state");
        let opened = make_private_dir(&state).and_then(|()| EmbeddedStore::open(&state));
        let Ok(store) = self.checked(opened) else { return };
        let store = Arc::new(store);
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let intake = Intake::new(self.intake_settings(), Arc::clone(&store) as _, Clock::System, self.seed);
        let handle = intake.handle();
        let mut settings = output::Settings::new(self.root.join("results"));
        (settings.look_every, settings.retry_every) = (Duration::from_millis(5), Duration::from_millis(5));
        let (none, nothing) = (BTreeMap::new(), BTreeMap::new());
        let output = Output::new(settings, Arc::clone(&store) as _, none, nothing, Clock::System);
        let (first, second) = (stop.clone(), stop.clone());
        tasks.spawn(async move { intake.run(first).await.map_err(|error| error.to_string()) });
        tasks.spawn(async move { output.run(second).await.map_err(|error| error.to_string()) });
        let progress = store.progress();
        let mut running =
            Running { store: Arc::clone(&store), progress, intake: handle, in_flight: Vec::new() };
        let recorder = self.recorder;
        let power = async {
            recorder.until_off().await;
            // What was done before is still heard of; a store without a disk may keep its caller waiting.
            tokio::time::sleep(AFTERGLOW).await;
        };
        tokio::select! { biased;
            // Off is the end of most lives.
            lived = timeout(self.patience, self.act(&mut running, to_the_end)) => {
                assert!(lived.is_ok(), "{HANGS}: {:?}", store.jobs().await);
            }
            () = power => {}
        }
        stop.cancel();
        while let Some(ended) = tasks.join_next().await {
            let ended = ended.unwrap();
            assert!(ended.is_ok() || self.recorder.is_off(), "a worker failed: {ended:?}");
        }
        let closed = store.close().await;
        assert!(closed.is_ok() || self.recorder.is_off(), "{closed:?}");
    }

    async fn act(&mut self, running: &mut Running, to_the_end: bool) -> Result {
        let states = self.checked(running.store.jobs().await)?;
        self.promises.judge_recovery(&self.root, &states);
        self.look(running).await?;
        running.intake.look().await;
        // A life whose cut comes late, or never, does its duty in the end.
        let steps = self.rng.usize(..if to_the_end { 20 } else { 80 });
        for _ in 0..steps {
            self.step(running).await?;
            self.look(running).await?;
        }
        self.finish(running).await
    }

    async fn step(&mut self, running: &mut Running) -> Result {
        match self.rng.u8(..20) {
            0..2 => self.drop_spec(running).await,
            2 => self.put_job(running).await,
            3..8 => self.lease(running).await,
            8..15 => self.settle(running).await,
            15 => self.change_status(running).await,
            16 => self.remove(running).await,
            _ => self.wait(running).await,
        }
    }

    /// Brings every job to its end.
    async fn finish(&mut self, running: &mut Running) -> Result {
        running.intake.look().await;
        loop {
            let states = self.look(running).await?;
            if states.iter().all(|state| state.status.is_final()) {
                return Ok(());
            }
            for state in states {
                if matches!(state.status, JobStatus::Paused { .. } | JobStatus::Held { .. }) {
                    self.set_status(running, &state, JobStatus::InProgress).await?;
                }
            }
            self.lease(running).await?;
            while !running.in_flight.is_empty() {
                self.settle(running).await?;
            }
            let changed = running.store.changes();
            let (mut progress, mut changes) = (running.progress.clone(), changed);
            let waited = async {
                tokio::select! { biased;
                    () = progress.changed() => {}
                    () = changes.changed() => {}
                    () = tokio::time::sleep(Duration::from_millis(20)) => {}
                }
            };
            waited.await;
        }
    }

    /// Takes what the store shows for promised.
    async fn look(&mut self, running: &Running) -> Result<Vec<JobState>> {
        let states = self.checked(running.store.jobs().await)?;
        self.promises.look(&self.root, &*running.store, &states);
        Ok(states)
    }

    async fn drop_spec(&mut self, running: &Running) -> Result {
        let number = self.promises.dropped.len();
        if number >= JOBS_MAX {
            return self.wait_for_intake(running).await;
        }
        let name = format!("spec-{number}");
        let is_sound = self.rng.u8(..4) > 0;
        let count = self.rng.u32(1..6);
        let text = if is_sound {
            (0..count).map(|index| line(&name, index) + "\n").collect::<String>()
        } else {
            "{\"no\": \"request\"}\n".to_owned()
        };
        let path = self.root.join("jobs").join(format!("{name}.jsonl"));
        let way = self.rng.u8(..4);
        // Before the drop, so that one which the cut lets live is known.
        let dropped = Dropped { text: text.clone(), is_sound, is_durable: false };
        self.promises.dropped.insert(name.clone(), dropped);
        match way {
            0 => {
                // It has another name, so it is copied rather than moved.
                let mine = self.root.join(format!("{name}.mine"));
                fs::write(&mine, &text).unwrap();
                fs::hard_link(&mine, &path).unwrap();
            }
            1 => fs::write(&path, &text).unwrap(),
            _ => {
                let temporary = path.with_extension("tmp");
                let written = File::create(&temporary).and_then(|mut file| file.write_all(text.as_bytes()));
                self.checked(written.and_then(|()| disk::rename(&temporary, &path)))?;
            }
        }
        let dropped = self.promises.dropped.get_mut(&name).unwrap();
        dropped.is_durable = way < 2 && !self.recorder.is_off();
        self.wait_for_intake(running).await
    }

    async fn wait_for_intake(&self, running: &Running) -> Result {
        running.intake.look().await;
        if self.recorder.is_off() { Err(Off) } else { Ok(()) }
    }

    async fn put_job(&mut self, running: &Running) -> Result {
        let states = self.checked(running.store.jobs().await)?;
        if states.len() >= JOBS_MAX {
            return Ok(());
        }
        self.promises.put += 1;
        let number = self.promises.put;
        let mut job = conformance::job(number, 5, &["m"], self.rng.u32(1..6));
        if number.is_multiple_of(2) {
            job.settings.on_uncertain = Some(OnUncertain::Fail);
        }
        let lines = (0..job.total).map(|index| (0, Bytes::from(line(job.name.as_str(), index))));
        self.checked(running.store.put_job(job.clone(), Input::Inline(lines.collect())).await)
    }

    async fn lease(&mut self, running: &mut Running) -> Result {
        let room = IN_FLIGHT_MAX - running.in_flight.len();
        let queue = QueueName::new("p", Some("m"));
        let max = self.rng.usize(..=room);
        let leased = self.checked(running.store.lease(&queue, max, Clock::System.now()).await)?;
        // Whatever was durable when they were given out has been shown by then.
        self.look(running).await?;
        for lease in leased.leases {
            self.promises.begin(lease.request);
            self.checked(running.store.begin(&lease))?;
            running.in_flight.push(lease);
        }
        Ok(())
    }

    async fn settle(&mut self, running: &mut Running) -> Result {
        if running.in_flight.is_empty() {
            return Ok(());
        }
        let lease = running.in_flight.swap_remove(self.rng.usize(..running.in_flight.len()));
        let request = lease.request;
        let settlement = match self.rng.u8(..8) {
            0 => conformance::failure(&lease),
            1 => Settlement::Retry {
                due: Clock::System.now(),
                attempts: lease.attempt,
                maybe_paid: self.rng.bool(),
            },
            2 => Settlement::Release,
            _ => conformance::answer(&lease),
        };
        let is_record = matches!(settlement, Settlement::Complete(_) | Settlement::Discard(_));
        let settled = running.store.settle(lease, settlement).await;
        if settled.is_ok() {
            self.promises.settle(request, is_record);
        }
        self.checked(settled)
    }

    async fn change_status(&mut self, running: &Running) -> Result {
        let states = self.checked(running.store.jobs().await)?;
        if states.is_empty() {
            return Ok(());
        }
        let state = &states[self.rng.usize(..states.len())];
        let status = match self.rng.u8(..8) {
            0 => JobStatus::Cancelling,
            1..4 => JobStatus::Paused { reason: PauseReason::User },
            _ => JobStatus::InProgress,
        };
        self.set_status(running, state, status).await
    }

    async fn set_status(&mut self, running: &Running, state: &JobState, status: JobStatus) -> Result {
        let id = state.job.id;
        self.promises.held += u64::from(matches!(state.status, JobStatus::Held { .. }));
        self.promises.ask(id, status.clone());
        match running.store.set_status(id, status, Clock::System.now()).await {
            Ok(state) => self.promises.answered(id, state.status),
            // It came to its end meanwhile.
            Err(store::Error::Transition { .. }) => {}
            failed => drop(self.checked(failed)?),
        }
        Ok(())
    }

    /// Removes one of the jobs that have ended.
    async fn remove(&mut self, running: &Running) -> Result {
        let mut states = self.look(running).await?;
        states.retain(|state| state.status.is_final());
        if states.is_empty() {
            return Ok(());
        }
        let id = states[self.rng.usize(..states.len())].job.id;
        self.promises.ask_removal(id);
        let is_removed = self.checked(running.store.remove(id).await)?;
        self.promises.answered_removal(id, is_removed);
        Ok(())
    }

    /// Waits until something has become durable, or a moment.
    async fn wait(&mut self, running: &mut Running) -> Result {
        let brief = Duration::from_millis(self.rng.u64(1..30));
        drop(timeout(brief, running.progress.changed()).await);
        if self.recorder.is_off() { Err(Off) } else { Ok(()) }
    }

    /// An error is lawful once the power is off, and only then.
    fn checked<T, E: std::fmt::Debug>(&self, result: std::result::Result<T, E>) -> Result<T> {
        match result {
            _ if self.recorder.is_off() => Err(Off),
            Ok(value) => Ok(value),
            Err(error) => panic!("failed while the power was on: {error:?}"),
        }
    }

    fn intake_settings(&self) -> intake::Settings {
        let facts = spec::ProviderFacts { name: "p".to_owned(), strict: false };
        intake::Settings {
            jobs: self.root.join("jobs"),
            results: self.root.join("results"),
            state: self.root.join("state"),
            rescan: PATIENCE,
            settle: Duration::ZERO,
            watch: false,
            spec: spec::Settings {
                providers: vec![facts],
                max_line: 1 << 20,
                input_dirs: Vec::new(),
                zone: chrono_tz::UTC,
            },
        }
    }
}

/// A batch line whose `custom_id` is what the conformance suite's records have.
fn line(job: &str, index: u32) -> String {
    let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{job} {index}"}}]}}"#);
    format!(r#"{{"custom_id":"c{index}","method":"POST","url":"/v1/chat/completions","body":{body}}}"#)
}
