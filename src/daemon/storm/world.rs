//! One run: the process with its workers, the outside that acts on it, and what is left in the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::ground::{Ground, Life, Pulse};
use super::plan::{Act, Plan, Verb, Weather};
use super::process::{Process, TIMEOUT, publish, settings};
use super::wire::{Book, Exchange, Line, Moment, SENT_MAX, Wire};
use crate::clock::{Clock, Seed};
use crate::control::{Board, Control, Folders};
use crate::dispatch::{Fleet, Settings};
use crate::domain::{JobState, JobStatus, RequestId, Timestamp};
use crate::simulate::{Entry, Payments};
use crate::store::Store;
use crate::upkeep::Upkeep;

/// What came of a job is judged at the end.
const KEEP_STATE: Duration = Duration::from_hours(1_000_000);

/// Under a clear sky everything ends within this: all requests one after another take half of it.
const PATIENCE: Duration = Duration::from_mins(15);

/// Tasks that are dropped pass on their end to those that they own, level by level.
const LEVELS: usize = 1_000;

/// What a run left.
#[derive(Debug)]
pub(super) struct Story {
    pub(super) plan: Plan,
    pub(super) exchanges: Vec<Exchange>,
    pub(super) commands: Vec<Command>,
    pub(super) lives: Vec<LifeSpan>,
    /// When the sky was clear and everything was told to go on.
    pub(super) cleared: Option<Moment>,
    /// Of every job that was put, in the order of their numbers.
    pub(super) states: Vec<JobState>,
    pub(super) journals: Vec<Vec<u8>>,
    /// What the servers billed, by the fingerprint of the body.
    pub(super) payments: BTreeMap<RequestId, Payments>,
    /// Of each provider, in the order of the plan.
    pub(super) ledgers: Vec<Vec<Entry>>,
    /// What went wrong while it ran.
    pub(super) troubles: Vec<String>,
    pub(super) trace: Vec<String>,
}

impl Story {
    /// Whether requests were sent until nobody answered any more.
    pub(super) fn is_endless(&self) -> bool {
        self.exchanges.len() > SENT_MAX
    }
}

/// A command that was carried out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command {
    pub(super) at: Moment,
    pub(super) verb: Verb,
    pub(super) job: crate::domain::JobId,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct LifeSpan {
    pub(super) begun: Moment,
    /// When it was told to stop.
    pub(super) stopped: Option<Moment>,
    /// When a second signal came.
    pub(super) hurried: Option<Moment>,
    pub(super) ended: Option<Moment>,
    pub(super) died: bool,
}

#[derive(Debug)]
struct World {
    seed: u64,
    plan: Plan,
    clock: Clock,
    book: Arc<Book>,
    ground: Arc<Ground>,
    wires: Vec<Arc<Wire>>,
    put: Vec<usize>,
    process: Option<Process>,
    lives: Vec<LifeSpan>,
    cleared: Option<Moment>,
    commands: Vec<Command>,
    troubles: Vec<String>,
}

/// Lives through the storm that `seed` means.
pub(super) async fn run(seed: u64) -> Story {
    let mut world = World::new(seed);
    let begun = tokio::time::Instant::now();
    world.start().await;
    for (at, act) in world.plan.acts.clone() {
        sleep_until(begun + at).await;
        world.carry_out(act).await;
    }
    world.clear_up().await;
    world.into_story().await
}

impl World {
    fn new(seed: u64) -> Self {
        let plan = Plan::new(seed);
        let clock = Clock::simulated(Timestamp::from_millis(1_000_000));
        let book = Arc::new(Book::new());
        let wires = plan.providers.iter().map(|p| Arc::new(Wire::of(p, seed, &book))).collect();
        Self {
            ground: Arc::new(Ground::new(clock.clone())),
            seed,
            plan,
            clock,
            book,
            wires,
            put: Vec::new(),
            process: None,
            lives: Vec::new(),
            cleared: None,
            commands: Vec::new(),
            troubles: Vec::new(),
        }
    }

    async fn carry_out(&mut self, act: Act) {
        self.look_after();
        match act {
            Act::Put(job) => {
                self.put.push(job);
                let plan = &self.plan.jobs[job];
                self.book.tell(format_args!("job {} is put", plan.number));
                let job = plan.job(self.clock.now());
                self.outside().put_job(job, plan.input()).await.unwrap();
            }
            Act::Change(provider, weather) => self.wires[provider].change(weather),
            Act::Command(verb, job) => self.command(verb, job).await,
            Act::Die { down } => {
                self.die().await;
                sleep(down).await;
                self.start().await;
            }
            Act::Stop { hurry, kill, down } => {
                self.stop(hurry, kill).await;
                sleep(down).await;
                self.start().await;
            }
        }
    }

    async fn start(&mut self) {
        let uncertain = self.ground.restart().await;
        for state in self.ground.memory.jobs().await.unwrap() {
            if matches!(state.status, JobStatus::Held { .. }) {
                self.book.tell(format_args!("{} is held", state.job.name));
            }
        }
        let life = self.lives.len();
        let begun = self.book.tell(format_args!("life {life} begins; uncertain: {}", uncertain.len()));
        self.lives.push(LifeSpan { begun, stopped: None, hurried: None, ended: None, died: false });
        let seed = Seed::fixed(self.seed ^ (life as u64) << 32);
        let pulse = Arc::new(Pulse::default());
        let delay = self.plan.store_delay_max_ms;
        let store: Arc<dyn Store> = Arc::new(Life::new(
            Arc::clone(&self.ground),
            Arc::clone(&pulse),
            seed.derive("storm/store"),
            delay,
        ));
        let lines =
            self.wires.iter().map(|wire| Line { wire: Arc::clone(wire), life, pulse: Arc::clone(&pulse) });
        let providers = self.plan.providers.iter().zip(lines).map(|(p, line)| settings(p, line, &self.clock));
        let settings =
            Settings { providers: providers.collect(), retry: self.plan.retry, grace: self.plan.grace };
        let board = Board::default();
        let control = Control::new(
            Arc::new(self.outside()),
            board.clone(),
            self.clock.clone(),
            Folders::below("nowhere"),
        );
        let [work, hurry, rest] = [(); 3].map(|()| CancellationToken::new());
        let (mut fleet, mut others) = (JoinSet::new(), JoinSet::new());
        let dispatch = Fleet::new(settings, Arc::clone(&store), board, self.clock.clone(), seed);
        fleet.spawn(dispatch.run(work.clone(), hurry.clone()));
        others.spawn(Upkeep::new(Arc::clone(&store), self.clock.clone(), KEEP_STATE).run(rest.clone()));
        others.spawn(publish(store, self.clock.clone(), rest.clone()));
        self.process = Some(Process { pulse, control, work, hurry, rest, fleet, others });
    }

    fn outside(&self) -> Life {
        Life::outside(Arc::clone(&self.ground), Seed::fixed(self.seed).derive("storm/outside"))
    }

    /// Nothing that runs ends by itself.
    fn look_after(&mut self) {
        let Some(process) = &mut self.process else { return };
        let fleet = process.fleet.try_join_next().map(|ended| format!("{ended:?}"));
        let ended = fleet.or_else(|| process.others.try_join_next().map(|ended| format!("{ended:?}")));
        if let Some(ended) = ended {
            self.trouble(format_args!("a worker ended by itself: {ended}"));
        }
    }

    fn trouble(&mut self, what: impl std::fmt::Display) {
        self.book.tell(format_args!("TROUBLE: {what}"));
        self.troubles.push(what.to_string());
    }

    async fn command(&mut self, verb: Verb, job: usize) {
        let Some(process) = &self.process else { return };
        let plan = &self.plan.jobs[job];
        let name = format!("job-{}", plan.number);
        let Ok(state) = self.ground.memory.job(plan.id()).await else { return };
        // Asking failed requests again makes a new job of files, which there are none of here.
        if state.status.is_final() {
            return;
        }
        let done = match verb {
            Verb::Pause => process.control.pause(&name).await,
            Verb::Resume => process.control.resume(&name).await,
            Verb::Retry => process.control.retry(&name).await,
            Verb::Cancel => process.control.cancel(&name).await,
        };
        let refused = done.err().map(|error| format!(": {error}")).unwrap_or_default();
        let at = self.book.tell(format_args!("{verb:?} {name}{refused}"));
        if refused.is_empty() {
            self.commands.push(Command { at, verb, job: plan.id() });
        }
    }

    /// Everything stops where it stands.
    async fn die(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        process.pulse.stop();
        let ended = self.book.tell(format_args!("it dies with {} in flight", self.book.open()));
        if let Some(life) = self.lives.last_mut() {
            (life.ended, life.died) = (Some(ended), true);
        }
        process.fleet.shutdown().await;
        process.others.shutdown().await;
        self.settle_down().await;
    }

    /// As the daemon stops at a signal; a second one comes after `hurry`, and SIGKILL after `kill`.
    async fn stop(&mut self, hurry: Option<Duration>, kill: Option<Duration>) {
        let Some(process) = &mut self.process else { return };
        let stopped = self.book.tell("it is told to stop");
        process.work.cancel();
        let life = self.lives.len() - 1;
        self.lives[life].stopped = Some(stopped);
        let never = Duration::from_hours(24);
        let mut hurried = None;
        let ended = {
            let second_signal = async {
                sleep(hurry.unwrap_or(never)).await;
                process.hurry.cancel();
                hurried = Some(self.book.tell("it is told to hurry"));
                std::future::pending::<()>().await;
            };
            tokio::select! { biased; // a kill waits for nothing
                () = sleep(kill.unwrap_or(never)) => None,
                ended = process.fleet.join_next() => ended,
                () = second_signal => None,
            }
        };
        self.lives[life].hurried = hurried;
        match ended {
            None if kill.is_some() => return self.die().await,
            Some(Ok(Ok(()))) => {}
            ended => self.trouble(format_args!("the fleet did not stop: {ended:?}")),
        }
        let Some(mut process) = self.process.take() else { return };
        process.rest.cancel();
        while let Some(ended) = process.others.join_next().await {
            if !matches!(ended, Ok(Ok(()))) {
                self.trouble(format_args!("a worker failed: {ended:?}"));
            }
        }
        process.pulse.stop();
        self.settle_down().await;
        self.lives[life].ended = Some(self.book.tell("it has stopped"));
    }

    /// Waits until the last task of a process is gone.
    async fn settle_down(&mut self) {
        for _ in 0..LEVELS {
            if self.book.open() == 0 {
                return;
            }
            yield_now().await;
        }
        self.trouble("a task outlives its process");
    }

    /// The sky clears, the person lets everything go on, and it has to end.
    async fn clear_up(&mut self) {
        self.book.tell("the sky clears");
        for wire in &self.wires {
            wire.change(Weather::Fair);
        }
        // Whatever was on its way under the old sky has come back before the bells ring: a try that is refused
        // behind them would wait for itself.
        sleep(TIMEOUT * 2).await;
        for at in 0..self.put.len() {
            let job = self.put[at];
            let Ok(state) = self.ground.memory.job(self.plan.jobs[job].id()).await else { continue };
            let is_held = matches!(state.status, JobStatus::Held { .. });
            self.command(if is_held { Verb::Retry } else { Verb::Resume }, job).await;
        }
        self.cleared = Some(self.book.tell("everything may go on"));
        let ground = Arc::clone(&self.ground);
        let all_ended = async {
            let memory = &ground.memory;
            let mut news = memory.changes();
            while !memory.jobs().await.unwrap().iter().all(|state| state.status.is_final()) {
                news.changed().await;
            }
        };
        if timeout(PATIENCE, all_ended).await.is_err() {
            self.trouble("jobs did not end under a clear sky");
        }
        self.look_after();
        self.stop(None, None).await;
    }

    async fn into_story(self) -> Story {
        let states = self.ground.memory.jobs().await.unwrap();
        let exchanges = self.book.exchanges();
        for state in &states {
            self.book.tell(format_args!("{}: {} {:?}", state.job.name, state.status, state.counts));
        }
        let journals = states.iter().map(|state| {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut self.ground.memory.journal(state.job.id).unwrap(), &mut bytes)
                .unwrap();
            bytes
        });
        let payments = exchanges.iter().map(|exchange| {
            let at = self.plan.providers.iter().position(|p| p.name == exchange.queue.provider()).unwrap();
            (exchange.request, self.wires[at].engine.payments(exchange.fingerprint))
        });
        Story {
            journals: journals.collect(),
            ledgers: self.wires.iter().map(|wire| wire.engine.entries()).collect(),
            payments: payments.collect(),
            trace: self.book.lines(),
            exchanges,
            states,
            plan: self.plan,
            commands: self.commands,
            lives: self.lives,
            cleared: self.cleared,
            troubles: self.troubles,
        }
    }
}
