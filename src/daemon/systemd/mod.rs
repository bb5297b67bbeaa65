//! What systemd, or whoever supervises the daemon by its protocol, is told of it.
//!
//! # Operation
//!
//! - *Starting.* What the daemon does, and more time for it: again and again while the recovery comes on (it answers
//!   the [roll call](crate::pulse)) or nothing but room on the disk is waited for. One that hangs gets none.
//! - *Running.* `READY=1` once the state is recovered, the control socket is bound and the workers run. Then a line
//!   about the jobs whenever it has changed, at most every [`REFRESH`]; while nothing happens nobody wakes up for it.
//! - *Watchdog.* At half its interval the roll is called, and `WATCHDOG=1` is sent when all have answered: the fleet,
//!   every dispatcher, both threads of the store, and the results writer; also each thread that works on a job's
//!   results, which may take long and must come on. If one does not, none is sent and the log says who; if it answers
//!   after all, it goes on. Intake and upkeep are not called: nothing that was paid for waits for them, what intake reads may
//!   lie on a disk of somebody else's, and to be killed costs requests in flight.
//! - *Reload.* `RELOADING=1` with the time of it, as systemd orders them, and `READY=1` when it is over.
//! - *Stopping.* `STOPPING=1`, and time for all of the grace.
//!
//! All of it comes from the main task of the main process, as `NotifyAccess=main` asks. Without a `$NOTIFY_SOCKET`
//! there is nothing of it.

mod socket;
mod status;

use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::socket::{AGAIN, Sent, Socket};
use self::status::Pace;
use crate::bell::Bell;
use crate::clock;
use crate::config::Supervisor;
use crate::control::{Board, Control, JobReport};
use crate::diag::printable;
use crate::pulse::Roll;
use crate::store::Store;

/// How often a start asks for more time.
const EXTEND_EVERY: Duration = Duration::from_secs(10);

/// How much it asks for each time: so long may one step of a recovery take, such as sled's opening.
const EXTENSION: Duration = Duration::from_mins(2);

/// What a stop may take beyond the grace, for results that are being written and for the store.
const AFTER_GRACE: Duration = Duration::from_mins(1);

/// However short a watchdog's interval is said to be.
const PING_EVERY_MIN: Duration = Duration::from_millis(10);

/// Two lines about the jobs are at least this far apart.
const REFRESH: Duration = Duration::from_secs(3);

/// The first line must not keep a stop waiting.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// See the module's words. Its clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Systemd(Option<Arc<Manager>>);

/// What the lines about the jobs are made of.
#[derive(Clone, Debug)]
pub(super) struct News {
    pub(super) control: Control,
    pub(super) store: Arc<dyn Store>,
    pub(super) board: Board,
}

#[derive(Debug)]
struct Manager {
    socket: Socket,
    watchdog: Option<Duration>,
    roll: Roll,
    stage: Mutex<Stage>,
    /// Rung when the next stage begins.
    turned: Bell,
    /// The last line that was told.
    told: Mutex<String>,
}

#[derive(Clone, Debug)]
enum Stage {
    Starting,
    Running(News),
    Stopping(News),
}

impl Systemd {
    /// Who is to be told, if anybody. Everybody on the `roll` has to be alive.
    pub(super) fn new(supervisor: &Supervisor, roll: Roll) -> Self {
        let Some(name) = &supervisor.socket else { return Self(None) };
        let socket = match Socket::to(name) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(socket = %printable(&name.to_string_lossy()), %error, "NOTIFY_SOCKET is of no use; nobody is told how the daemon is");
                return Self(None);
            }
        };
        Self(Some(Arc::new(Manager {
            socket,
            watchdog: supervisor.watchdog,
            roll,
            stage: Mutex::new(Stage::Starting),
            turned: Bell::default(),
            told: Mutex::default(),
        })))
    }

    /// What a start does now.
    pub(super) fn starting(&self, what: &str) {
        if let Some(manager) = &self.0 {
            manager.socket.insist(format!("STATUS={}\n{}", printable(what), extend(EXTENSION)));
        }
    }

    /// The start is over: the daemon serves.
    pub(super) fn ready(&self, news: News) {
        if let Some(manager) = &self.0 {
            manager.socket.insist("READY=1\nSTATUS=running".to_owned());
            manager.turn(Stage::Running(news));
        }
    }

    /// A reload begins; it is over when what comes back is dropped.
    pub(super) fn reload(&self) -> Reload {
        if let Some(manager) = &self.0 {
            // In one datagram: systemd takes a `READY=1` from before this time for none after it.
            let now = clock::since_boot().as_micros();
            manager.while_running(|| format!("RELOADING=1\nMONOTONIC_USEC={now}\nSTATUS=reloading"));
        }
        Reload(self.clone())
    }

    /// The drain begins, which may take `grace`.
    pub(super) async fn stopping(&self, grace: Duration) {
        let Some(manager) = &self.0 else { return };
        let Some(news) = manager.news() else { return };
        let line = match timeout(LOOK_MAX, news.jobs()).await {
            Ok(Some(jobs)) => status::stopping(&jobs),
            Ok(None) | Err(_) => "stopping".to_owned(),
        };
        let time = extend(grace.saturating_add(AFTER_GRACE));
        // The stage first: nothing is ready any more behind this.
        manager.turn(Stage::Stopping(news));
        manager.socket.insist(format!("STOPPING=1\nSTATUS={line}\n{time}"));
        *manager.told() = line;
    }

    /// Tells what has to be told all along. For the main task, beside what it does.
    pub(super) async fn attend(&self) -> Infallible {
        let Some(manager) = &self.0 else { return pending().await };
        // None of them ends; each is polled whenever the task is.
        tokio::select! { biased;
            never = manager.socket.send_again() => never,
            never = manager.extend() => never,
            never = manager.watch() => never,
            never = manager.follow() => never,
        }
    }
}

/// A reload that is under way.
#[derive(Debug)]
#[must_use = "the reload is over when it is dropped"]
pub(super) struct Reload(Systemd);

impl Drop for Reload {
    fn drop(&mut self) {
        if let Some(manager) = &self.0.0 {
            let told = manager.told().clone();
            let line = if told.is_empty() { "running" } else { &told };
            manager.while_running(|| format!("READY=1\nSTATUS={line}"));
        }
    }
}

impl News {
    /// None if the store has failed, which ends the daemon.
    async fn jobs(&self) -> Option<Vec<JobReport>> {
        self.control.list().await.ok()
    }
}

impl Manager {
    /// Asks for more time while the start comes on.
    async fn extend(&self) -> Infallible {
        let mut turned = self.turned.listen();
        let mut is_told = false;
        while self.is_starting() {
            let call = self.roll.call();
            // The end of the start first: it needs no more time.
            tokio::select! { biased;
                () = turned.changed() => continue,
                () = sleep(EXTEND_EVERY) => {}
            }
            let missing = self.roll.missing(call);
            if missing.is_empty() {
                self.socket.send(&extend(EXTENSION));
                is_told = false;
            } else if !is_told {
                tracing::warn!(
                    missing = missing.join(", "),
                    "the start does not come on; no more time is asked for"
                );
                is_told = true;
            }
        }
        pending().await
    }

    /// Pings the watchdog, as long as all are alive.
    async fn watch(&self) -> Infallible {
        let Some(interval) = self.watchdog else { return pending().await };
        let mut turned = self.turned.listen();
        while self.is_starting() {
            turned.changed().await;
        }
        let every = (interval / 2).max(PING_EVERY_MIN);
        loop {
            let (called, call) = (Instant::now(), self.roll.call());
            let mut is_told = false;
            // Told twice before the watchdog bites: what it kills can say nothing any more.
            while timeout(every / 2, self.roll.answered(call)).await.is_err() {
                let missing = self.roll.missing(call).join(", ");
                let waited_ms = u64::try_from(called.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::error!(missing, waited_ms, "no sign of life: the watchdog is not pinged");
                is_told = true;
            }
            if is_told {
                tracing::warn!("all give signs of life again: the watchdog is pinged");
            }
            while self.socket.send("WATCHDOG=1") == Sent::Full {
                sleep(AGAIN.min(every / 4)).await;
            }
            sleep_until(called + every).await;
        }
    }

    /// Tells of the jobs when something has changed.
    async fn follow(&self) -> Infallible {
        let mut turned = self.turned.listen();
        let news = loop {
            if let Some(news) = self.news() {
                break news;
            }
            turned.changed().await;
        };
        let (mut changes, mut progress) = (news.store.changes(), news.store.progress());
        let mut pauses = news.board.changes();
        let mut pace = Pace::default();
        loop {
            for heard in [&mut turned, &mut changes, &mut progress, &mut pauses] {
                heard.mark_seen();
            }
            let looked = Instant::now();
            let rate = self.look(&news, &mut pace, looked).await;
            if rate.is_none_or(|rate| rate <= 0.0) {
                // All lead to the same look.
                tokio::select! { biased;
                    () = turned.changed() => {}
                    () = changes.changed() => {}
                    () = progress.changed() => {}
                    () = pauses.changed() => {}
                }
            }
            sleep_until(looked + REFRESH).await;
        }
    }

    /// Tells of the jobs, if what is to be told has changed. How fast they run now.
    async fn look(&self, news: &News, pace: &mut Pace, now: Instant) -> Option<f64> {
        let jobs = news.jobs().await?;
        let rate = pace.look(&jobs, now);
        let line = match &*self.stage() {
            Stage::Stopping(_) => status::stopping(&jobs),
            Stage::Starting | Stage::Running(_) => status::running(&jobs, rate),
        };
        if *self.told() != line && self.socket.send(&format!("STATUS={line}")) == Sent::Taken {
            *self.told() = line;
        }
        rate
    }

    /// Tells this unless the daemon stops, and before it says that it does.
    fn while_running(&self, lines: impl FnOnce() -> String) {
        let stage = self.stage();
        if matches!(&*stage, Stage::Running(_)) {
            self.socket.insist(lines());
        }
    }

    fn turn(&self, stage: Stage) {
        *self.stage() = stage;
        self.turned.ring();
    }

    fn is_starting(&self) -> bool {
        matches!(&*self.stage(), Stage::Starting)
    }

    /// None while it starts.
    fn news(&self) -> Option<News> {
        match &*self.stage() {
            Stage::Starting => None,
            Stage::Running(news) | Stage::Stopping(news) => Some(news.clone()),
        }
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, String> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn extend(time: Duration) -> String {
    format!("EXTEND_TIMEOUT_USEC={}", time.as_micros())
}

#[cfg(test)]
mod tests {

    use futures_util::FutureExt;

    use super::socket::tests::Manager as Heard;
    use super::*;
    use crate::clock::Clock;
    use crate::control::{Folders, QueuePause};
    use crate::domain::PauseReason;
    use crate::store::Lease;
    use crate::store::conformance::{self, NOW, lease, put, queue};
    use crate::store::memory::MemoryStore;

    const WATCHDOG: Duration = Duration::from_mins(1);

    struct World {
        heard: Heard,
        roll: Roll,
        systemd: Systemd,
        news: News,
    }

    impl World {
        fn new() -> Self {
            let (heard, roll) = (Heard::new(), Roll::default());
            let supervisor = Supervisor { socket: Some(heard.path().into()), watchdog: Some(WATCHDOG) };
            let systemd = Systemd::new(&supervisor, roll.clone());
            let (store, board): (Arc<dyn Store>, Board) =
                (Arc::new(MemoryStore::default()), Board::default());
            let clock = Clock::simulated(NOW);
            let control = Control::new(Arc::clone(&store), board.clone(), clock, Folders::below("nowhere"));
            Self { heard, roll, systemd, news: News { control, store, board } }
        }

        /// Lets time pass while the daemon attends to its manager. What was told meanwhile.
        async fn pass(&self, time: Duration) -> Vec<String> {
            let mut told = Vec::new();
            let end = Instant::now() + time;
            let reads = async {
                while Instant::now() < end {
                    sleep_until(end.min(Instant::now() + Duration::from_secs(1))).await;
                    told.extend(self.heard.all());
                }
            };
            tokio::select! { biased;
                never = self.systemd.attend() => match never {},
                () = reads => told,
            }
        }

        async fn ready(&self) {
            self.systemd.ready(self.news.clone());
            assert_eq!(self.heard.all(), ["READY=1\nSTATUS=running"]);
            let told = self.pass(Duration::from_millis(1)).await;
            assert_eq!(told, ["WATCHDOG=1", "STATUS=idle: no jobs"]);
        }

        async fn put(&self, requests: u32) {
            put(&*self.news.store, &conformance::job(1, 5, &["m"], requests)).await;
        }

        /// Answers so many requests.
        async fn answer(&self, count: usize) {
            for lease in lease(&*self.news.store, "m", count, NOW).await {
                self.settle(lease).await;
            }
        }

        async fn settle(&self, lease: Lease) {
            let settlement = conformance::answer(&lease);
            self.news.store.settle(lease, settlement).await.unwrap();
        }
    }

    fn statuses(told: &[String]) -> Vec<&str> {
        told.iter().filter_map(|lines| lines.strip_prefix("STATUS=")).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn start_that_comes_on_is_given_time_and_one_that_hangs_is_not() {
        let world = World::new();
        world.systemd.starting("recovering");
        assert_eq!(world.heard.all(), ["STATUS=recovering\nEXTEND_TIMEOUT_USEC=120000000"]);
        let recovery = world.roll.join("the recovery");
        let reads = async {
            for _ in 0..60 {
                sleep(Duration::from_secs(1)).await;
                recovery.answer();
            }
        };
        let told = tokio::select! { biased;
            told = world.pass(Duration::from_secs(59)) => told,
            () = reads => panic!("it reads for longer"),
        };
        assert_eq!(told, ["EXTEND_TIMEOUT_USEC=120000000"; 5]);

        assert_eq!(world.pass(Duration::from_hours(1)).await, [""; 0], "it hangs");

        drop(recovery);
        world.systemd.starting("waiting for room on the disk: /x is\nfull");
        let told = world.heard.all();
        assert_eq!(
            told,
            ["STATUS=waiting for room on the disk: /x is\\nfull\nEXTEND_TIMEOUT_USEC=120000000"]
        );
        let told = world.pass(Duration::from_hours(1)).await;
        assert_eq!(told.len(), 360, "a full disk may take for ever");
        world.ready().await;
        assert!(!world.pass(Duration::from_hours(1)).await.iter().any(|lines| lines.contains("EXTEND")));
    }

    #[tokio::test(start_paused = true)]
    async fn watchdog_is_pinged_twice_an_interval_and_not_before_it_is_ready() {
        let world = World::new();
        assert!(!world.pass(WATCHDOG * 3).await.iter().any(|lines| lines.contains("WATCHDOG")));
        world.ready().await;
        // The watch begins anew each time it is attended to: at once, and then twice a minute.
        assert_eq!(world.pass(WATCHDOG * 9 + Duration::from_secs(59)).await, ["WATCHDOG=1"; 20]);
    }

    #[tokio::test(start_paused = true)]
    async fn hung_worker_stops_the_pings_until_it_answers_again() {
        let world = World::new();
        world.ready().await;
        let hung = world.roll.join("the fleet");
        let alive = world.roll.join("the results writer");
        let answers = async {
            loop {
                alive.answer();
                alive.called().await;
            }
        };
        let hangs = async {
            let told = world.pass(WATCHDOG * 60).await;
            assert_eq!(told, [""; 0]);
            let both = async {
                sleep(WATCHDOG).await;
                hung.answer();
                pending::<Infallible>().await
            };
            tokio::select! { biased;
                told = world.pass(WATCHDOG + Duration::from_secs(1)) => assert_eq!(told, ["WATCHDOG=1"]),
                never = both => match never {},
            }
        };
        tokio::select! { biased;
            () = hangs => {}
            never = answers => never,
        }
        drop((hung, alive));
        assert_eq!(
            world.pass(Duration::from_secs(59)).await,
            ["WATCHDOG=1"; 2],
            "who has left is not missed"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn line_about_the_jobs_is_told_when_it_changes_and_not_too_often() {
        let world = World::new();
        world.ready().await;
        world.put(1000).await;
        let works = async {
            for _ in 0..600 {
                sleep(Duration::from_millis(100)).await;
                world.answer(1).await;
            }
            pending::<Infallible>().await
        };
        let told = tokio::select! { biased;
            told = world.pass(Duration::from_mins(1)) => told,
            never = works => match never {},
        };
        let lines = statuses(&told);
        assert!((20..=22).contains(&lines.len()), "{lines:#?}");
        assert_eq!(lines[0], "running 1 job, 0/1000");
        assert!(lines[lines.len() - 1].ends_with("/1000, 10.0 requests/s"), "{lines:#?}");
        let settled = world.news.jobs().await.unwrap()[0].counts.settled();

        let told = world.pass(Duration::from_hours(1)).await;
        let lines = statuses(&told);
        assert_eq!(
            lines,
            [format!("running 1 job, {settled}/1000")],
            "nothing happens: no rate, and then silence"
        );

        let pause = QueuePause { reason: PauseReason::Quota, message: "no money".to_owned(), since: NOW };
        world.news.board.pause(&queue("m"), pause);
        let told = world.pass(Duration::from_secs(10)).await;
        assert_eq!(statuses(&told), [format!("running 0 jobs, {settled}/1000; 1 paused: quota")]);
    }

    #[tokio::test(start_paused = true)]
    async fn reload_is_told_with_its_time_and_ends_with_what_was_told_before() {
        let world = World::new();
        world.ready().await;
        let before = clock::since_boot().as_micros();
        let reload = world.systemd.reload();
        let told = world.heard.next().unwrap();
        let lines: Vec<&str> = told.lines().collect();
        let ["RELOADING=1", time, "STATUS=reloading"] = lines[..] else { panic!("{told}") };
        let time: u128 = time.strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!((before..=clock::since_boot().as_micros()).contains(&time));
        assert_eq!(world.heard.next(), None);
        drop(reload);
        assert_eq!(world.heard.all(), ["READY=1\nSTATUS=idle: no jobs"]);

        let reload = world.systemd.reload();
        world.heard.all();
        world.systemd.stopping(Duration::ZERO).await;
        assert_eq!(world.heard.all().len(), 1);
        drop(reload);
        drop(world.systemd.reload());
        assert_eq!(world.heard.all(), [""; 0], "what stops is not ready any more");
    }

    #[tokio::test(start_paused = true)]
    async fn stop_is_told_with_what_is_in_flight_and_gets_time_for_all_of_the_grace() {
        let world = World::new();
        world.ready().await;
        world.put(10).await;
        let leases = lease(&*world.news.store, "m", 3, NOW).await;
        world.systemd.stopping(Duration::from_mins(10)).await;
        let told = world.heard.all();
        assert_eq!(
            told,
            ["STOPPING=1\nSTATUS=stopping: 3 requests in flight\nEXTEND_TIMEOUT_USEC=660000000"]
        );
        for lease in leases {
            world.settle(lease).await;
        }
        let told = world.pass(Duration::from_secs(10)).await;
        assert_eq!(statuses(&told), ["stopping: nothing is in flight"]);
        let pings = told.iter().filter(|lines| *lines == "WATCHDOG=1").count();
        assert_eq!(pings, 1, "the watchdog watches to the end");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_manager_nothing_is_told_and_nobody_is_called() {
        for socket in [None, Some("no path".into())] {
            let roll = Roll::default();
            let systemd = Systemd::new(&Supervisor { socket, watchdog: Some(WATCHDOG) }, roll.clone());
            let member = roll.join("one");
            systemd.starting("recovering");
            systemd.ready(World::new().news);
            drop(systemd.reload());
            systemd.stopping(Duration::ZERO).await;
            assert!(timeout(Duration::from_hours(1), systemd.attend()).await.is_err());
            assert_eq!(member.called().now_or_never(), None);
        }
    }
}
