//! The loop of intake: look, take in what is ready, sleep until something may have changed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use tokio::select;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::accept::{Examiner, Peek, Validate, Verdict};
use super::admit::{Applicant, Ending};
use super::blocking::blocking;
use super::dir::Dir;
use super::handle::Order;
use super::known::Known;
use super::lookout::{Lookout, Seen, make_folders};
use super::name::safe_name;
use super::recover::Unmended;
use super::round::{Failures, Round, Told};
use super::scan::{Candidate, Remark, Scan, Scanner, Why};
use super::schedules::{Attended, Schedules};
use super::watch::{self, Watch};
use super::{Error, Handle, Settings};
use crate::bell::Listener;
use crate::clock::{self, Clock, Seed};
use crate::diag::printable;
use crate::domain::Timestamp;
use crate::provider::Catalogue;
use crate::spec;
use crate::store::Store;

/// After a hint, since what is dropped comes as a burst of events; and the shortest `rescan`.
const DEBOUNCE: Duration = Duration::from_millis(200);

/// After a failure of our own: soon enough that freed disk space is noticed within 15 s.
pub(super) const RETRY: Duration = Duration::from_secs(5);

/// The worker.
#[derive(Debug)]
pub struct Intake {
    pub(super) settings: Settings,
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Clock,
    pub(super) rng: Rng,
    pub(super) validate: Validate,
    pub(super) peek: Peek,
    /// Knows the providers' models; none: nobody asks.
    pub(super) catalogue: Option<Arc<Catalogue>>,
    hints: Arc<Notify>,
    /// Locked by one blocking thread at a time, while it looks.
    lookout: Arc<Mutex<Lookout>>,
    /// Hears who asks for a look.
    calls: Listener,
    /// Hears who asks for a run.
    orders: mpsc::Receiver<Order>,
    handle: Handle,
    pub(super) schedules: Schedules,
    /// When it was built.
    pub(super) started: Timestamp,
    pub(super) attended: Attended,
    failures: Failures,
    told: Told,
    /// Specs that wait for their data, and of which the log knows.
    waiting: BTreeSet<OsString>,
    /// Specs that wait for fine-tunes which nobody knows yet, and how many jobs there had been when each was judged.
    pub(super) deferred: BTreeMap<OsString, u64>,
    /// Jobs accepted since the start.
    accepted: u64,
    /// Something half done may lie in the state folder.
    pub(super) recover_due: bool,
    /// Why what claimed an accepted job could not be removed, in this round.
    pub(super) left: Option<Error>,
}

impl Intake {
    pub fn new(settings: Settings, store: Arc<dyn Store>, clock: Clock, seed: Seed) -> Self {
        let hints = Arc::new(Notify::new());
        let lookout = Lookout {
            jobs: settings.jobs.clone(),
            scanner: Scanner::new(settings.settle),
            watch: settings
                .watch
                .then(|| Watch::new(settings.jobs.clone(), Arc::clone(&hints), watch::begin)),
            unmended: Unmended::default(),
            was_mounted: false,
        };
        let (handle, orders) = Handle::new();
        Self {
            schedules: Schedules::new(&settings.state),
            started: clock.now(),
            attended: Attended::new(clock.now()),
            settings,
            store,
            clock,
            rng: seed.derive("intake"),
            validate: spec::read,
            peek: spec::read_schedule,
            hints,
            lookout: Arc::new(Mutex::new(lookout)),
            calls: handle.calls.listen(),
            orders,
            handle,
            failures: Failures::default(),
            told: Told::default(),
            waiting: BTreeSet::new(),
            deferred: BTreeMap::new(),
            accepted: 0,
            catalogue: None,
            recover_due: true,
            left: None,
        }
    }

    /// Looks up the models of new jobs in `catalogue`.
    #[must_use]
    pub fn with_catalogue(mut self, catalogue: Arc<Catalogue>) -> Self {
        self.catalogue = Some(catalogue);
        self
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Takes in specs until `stop`. Ends early only if the folders can't be made or the store fails.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Error> {
        loop {
            let settings = self.settings.clone();
            let wait = match blocking(move || make_folders(&settings)).await {
                Ok(()) => break,
                Err(error) if error.is_passing() => self.note_trouble(error),
                Err(error) => return Err(error),
            };
            if !self.rest(wait, &stop).await? {
                return Ok(());
            }
        }
        loop {
            let wait = self.step(&stop).await?;
            if !self.rest(wait, &stop).await? {
                return Ok(());
            }
        }
    }

    /// Says that there is nothing to look through yet.
    fn note_trouble(&mut self, error: Error) -> Duration {
        let heard = self.calls.mark_seen();
        let mut round = Round::new(RETRY);
        round.trouble(error, RETRY);
        self.publish(&round, heard);
        round.wait
    }

    /// Sleeps until the next look; false when it is time to stop.
    async fn rest(&mut self, wait: Duration, stop: &CancellationToken) -> Result<bool, Error> {
        let mut due = Instant::now() + wait;
        loop {
            // To stop goes first, then who waits for an answer. A hint comes before the timer that it moves.
            select! {
                biased;
                () = stop.cancelled() => return Ok(false),
                () = self.calls.changed() => return Ok(true),
                Some(order) = self.orders.recv() => self.carry_out(order, stop).await?,
                () = self.hints.notified() => due = due.min(Instant::now() + DEBOUNCE),
                () = sleep_until(due) => return Ok(true),
            }
        }
    }

    /// Looks once and takes in what is ready. Answers how long the next look may wait.
    async fn step(&mut self, stop: &CancellationToken) -> Result<Duration, Error> {
        let heard = self.calls.mark_seen();
        if let Some(Settings { rescan, settle, spec, jobs: _, results: _, state: _, watch: _ }) =
            self.handle.changed_settings()
        {
            self.settings = Settings { rescan, settle, spec, ..self.settings.clone() };
            self.schedules.doubt();
        }
        let mut round = Round::new(self.settings.rescan.max(DEBOUNCE));
        let mut has_looked = false;
        match self.look_after_loading().await {
            Ok(Seen { jobs, scan, unmended }) => {
                round.blocked += unmended.len();
                if let Some(error) = unmended.into_iter().next() {
                    round.trouble(error, RETRY);
                }
                self.take_in(jobs, scan, &mut round, stop).await?;
                has_looked = true;
            }
            Err(error) => round.trouble(error, self.settings.rescan.min(RETRY)),
        }
        round.left(self.left.take(), RETRY);
        let now = self.clock.now();
        // What comes while the jobs folder is away can't be made.
        self.attended.round_ended(has_looked && self.schedules.is_behind(now), now);
        self.publish(&round, heard);
        Ok(round.wait)
    }

    async fn look_after_loading(&mut self) -> Result<Seen, Error> {
        if !self.schedules.is_loaded() {
            self.load_schedules().await?;
        }
        self.look().await
    }

    async fn look(&mut self) -> Result<Seen, Error> {
        let (now, recover, state) = (self.clock.now(), self.recover_due, self.settings.state.clone());
        let (lookout, settle) = (Arc::clone(&self.lookout), self.settings.settle);
        let seen = blocking(move || {
            let mut lookout = lookout.lock().unwrap_or_else(PoisonError::into_inner);
            lookout.scanner.set_settle(settle);
            lookout.look(now, recover.then_some(state.as_path()))
        })
        .await;
        self.recover_due &= seen.as_ref().map_or(true, |seen| !seen.unmended.is_empty());
        seen
    }

    async fn take_in(
        &mut self,
        jobs: Arc<Dir>,
        mut scan: Scan,
        round: &mut Round,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        self.tell(std::mem::take(&mut scan.remarks));
        let examiner = self.examiner(jobs, stop);
        self.look_for_schedules(&examiner, &mut scan, round).await?;
        round.begin(&scan);
        self.deferred.retain(|name, _| round.is_unjudged(name));
        let ready = self.failures.sift(scan, round, self.clock.now());
        if !ready.is_empty() {
            let mut known = Known::of(&self.store.jobs().await.map_err(Error::Store)?);
            for candidate in ready {
                if stop.is_cancelled() {
                    round.pending += 1;
                } else {
                    self.take_in_one(&examiner, candidate, &mut known, round).await?;
                }
            }
        }
        self.fire_due(&examiner, round).await
    }

    pub(super) fn examiner(&self, jobs: Arc<Dir>, stop: &CancellationToken) -> Examiner {
        Examiner {
            jobs,
            state: self.settings.state.clone(),
            spec: Arc::new(self.settings.spec.clone()),
            settle: self.settings.settle,
            now: self.clock.now(),
            due: None,
            validate: self.validate,
            peek: self.peek,
            stop: stop.clone(),
            store: Arc::clone(&self.store),
        }
    }

    /// What lies there for nothing, and what can't be looked at: each name once.
    fn tell(&mut self, remarks: Vec<Remark>) {
        for Remark { name, why } in self.told.news(remarks) {
            let name = printable(&safe_name(&name));
            match why {
                Why::PassedOver(why) => info!(%name, why, "no job spec: passed over"),
                Why::Closed(error) => warn!(%name, %error, "can't be looked at: it is tried again"),
            }
        }
    }

    async fn take_in_one(
        &mut self,
        examiner: &Examiner,
        candidate: Candidate,
        known: &mut Known,
        round: &mut Round,
    ) -> Result<(), Error> {
        let name = candidate.name.clone();
        let ending = match self.keep(examiner, &candidate).await {
            Ok(None) => self.make_job(examiner, candidate, known, round).await,
            Ok(Some(ending)) => Ok(ending),
            Err(error) => Err(error),
        };
        match ending {
            Ok(ending) => self.note(ending, &name, round),
            Err(Error::Io { .. }) if examiner.stop.is_cancelled() => round.pending += 1,
            Err(error @ Error::Io { .. }) => {
                self.recover_due = true;
                self.failures.add(name, self.clock.now() + RETRY);
                round.blocked += 1;
                round.trouble(error, RETRY);
            }
            Err(error @ Error::Store(_)) => return Err(error),
        }
        Ok(())
    }

    async fn make_job(
        &mut self,
        examiner: &Examiner,
        candidate: Candidate,
        known: &mut Known,
        round: &Round,
    ) -> Result<Ending, Error> {
        let id = clock::job_id(self.clock.now(), &mut self.rng);
        let name = candidate.name.clone();
        let job = Examiner { now: self.clock.now(), ..examiner.clone() };
        Ok(match blocking(move || job.examine(&candidate, id)).await? {
            Verdict::Valid { claim, checked } => {
                // What it waits for may itself have waited for one that is a job now.
                let is_news = self.deferred.get(&name).is_some_and(|before| *before < self.accepted);
                let may_wait = is_news || round.may_bring_more(&name, &self.deferred);
                let applicant = Applicant { id, claim: *claim, checked: *checked, may_wait, run: None };
                return self.admit(applicant, known, &examiner.stop).await;
            }
            Verdict::Rejected { name, report } => Ending::Rejected { name, report },
            Verdict::Changed => Ending::Changed,
            Verdict::Waits { data } => Ending::WaitsForData { data },
            Verdict::Gone => Ending::Gone,
        })
    }

    /// What came of a spec, for the log and for the rest of the round.
    fn note(&mut self, ending: Ending, name: &OsStr, round: &mut Round) {
        let file = printable(&safe_name(name));
        let (waited, was_deferred) = (self.waiting.remove(name), self.deferred.remove(name).is_some());
        match ending {
            Ending::Job => {
                self.accepted += 1;
                return round.judged(name);
            }
            Ending::Gone | Ending::Kept => return round.judged(name),
            Ending::Rejected { name: rejected_as, report } => {
                let (errors, first) = (report.errors(), report.first_error().map(ToString::to_string));
                warn!(%file, %rejected_as, errors, first, "job spec rejected");
                return round.judged(name);
            }
            Ending::Changed => {}
            Ending::WaitsForData { data } => {
                if !waited {
                    info!(%file, %data, "job spec waits: its data is still being written");
                }
                self.waiting.insert(name.to_owned());
            }
            Ending::WaitsForFineTune { fine_tune } => {
                if !was_deferred {
                    info!(%file, %fine_tune, "job spec waits: the fine-tune may be among the specs to be read yet");
                }
                self.deferred.insert(name.to_owned(), self.accepted);
            }
        }
        round.pending += 1;
        round.sooner(Some(self.settings.settle));
    }

    /// Tells everyone what the look left, and the log when trouble begins and ends. It lasts while there are
    /// specs that it blocks, also over looks at which they were not tried.
    fn publish(&mut self, round: &Round, heard: u64) {
        let before = self.handle.status().trouble;
        let now = round.trouble.as_ref().map(|error| printable(&error.to_string()));
        let now = now.or_else(|| before.clone().filter(|_| round.blocked > 0));
        match (&before, &now) {
            (None, Some(error)) => {
                error!(%error, blocked = round.blocked, "job specs can't be taken in; they are tried again");
            }
            (Some(_), None) => info!("job specs can be taken in again"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        if let Some(news) = self.schedules.news() {
            self.handle.show(news);
        }
        self.handle.publish(|status| {
            status.looks += 1;
            status.pending = round.pending;
            status.blocked = round.blocked;
            status.trouble = now;
            status.heard = heard;
        });
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.handle.end();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::intake::Status;
    use crate::intake::fixture::{Root, Running, names};

    #[tokio::test(start_paused = true)]
    async fn what_is_dropped_becomes_jobs_with_names_of_their_own() {
        let root = Root::new();
        fs::create_dir(root.settings.results.join("a")).unwrap();
        root.drop_file("a.jsonl", "one");
        root.drop_file("a.toml", "two");
        root.drop_file("bad.jsonl", "bad");
        root.drop_file("news/job.toml", "three");
        let intake = Running::over(root);
        intake.idle().await;
        assert_eq!(intake.store.job_names(), ["a-2", "a-3", "news"]);
        intake.root.drop_file("a.jsonl", "one");
        intake.idle().await;
        assert_eq!(intake.store.job_names(), ["a-2", "a-3", "a-4", "news"], "the same content runs again");
        let files: Vec<_> = intake.store.accepted().into_iter().map(|job| job.spec_file).collect();
        assert!(files.contains(&"a.toml".to_owned()) && files.contains(&"news".to_owned()), "{files:?}");
        let (root, ended) = intake.end().await;
        ended.unwrap();
        assert!(root.waiting().is_empty());
        assert_eq!(root.rejected(), ["bad.jsonl", "bad.jsonl.errors.txt"]);
        assert!(root.job_folders().iter().all(|job| job.state().exists() && !job.claim().exists()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_settling_file_is_pending_and_not_forgotten() {
        let intake = Running::over(Root::new());
        assert!(intake.handle.look().await.is_idle());
        intake.root.drop_file("a.jsonl", "one");
        let status = intake.handle.look().await;
        assert_eq!((status.pending, status.is_idle()), (1, false));
        intake.idle().await;
        assert_eq!(intake.store.job_names(), ["a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_spec_waits_for_data_that_is_still_written() {
        // A slow export was cut in the middle: its last write was a moment ago, but nobody wrote while it was read.
        let mut root = Root::new();
        let provider = spec::ProviderFacts { name: "p".to_owned(), strict: false };
        root.settings.spec.providers = vec![provider];
        let spec = "kind = 'completions'\nmodel = 'm'\n[input]\nfile = 'inputs/*.txt'\n";
        root.drop_file("a.toml", spec);
        let data = root.drop_file("inputs/b.txt", "one\n");
        root.drop_file("inputs/a.txt", "another\n");
        let write = |text: &str, at: Timestamp| {
            fs::write(&data, text).unwrap();
            let millis = i64::try_from(at.as_millis()).unwrap();
            let (tv_sec, tv_nsec) = (millis / 1000, millis % 1000 * 1_000_000);
            let time = rustix::fs::Timespec { tv_sec, tv_nsec };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(rustix::fs::CWD, &data, &times, rustix::fs::AtFlags::empty()).unwrap();
        };
        let mut intake = Running::reading(root, spec::read);
        let clock = intake.clock.clone();
        // Each look finds that it was written a moment before.
        for lines in 1..5 {
            write(&"one\n".repeat(lines), clock.now());
            tokio::time::sleep(Duration::from_millis(900)).await;
            let status = intake.handle.look().await;
            assert_eq!((status.pending, intake.store.accepted().len()), (1, 0), "{status:?}");
        }
        intake.idle().await;
        let accepted = intake.store.accepted();
        assert_eq!((accepted.len(), accepted[0].total), (1, 5));
        assert!(intake.tasks.try_join_next().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_idle_before_the_first_look() {
        assert!(!Status::default().is_idle());
    }

    #[tokio::test(start_paused = true)]
    async fn without_hints_the_rescan_finds_what_is_new() {
        let intake = Running::over(Root::new());
        intake.idle().await;
        let mut changes = intake.store.changes();
        let before = Instant::now();
        intake.root.drop_file("a.jsonl", "one");
        changes.changed().await;
        assert!(before.elapsed() <= Duration::from_secs(7), "{:?}", before.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn other_settings_hold_from_the_next_look_on() {
        let mut root = Root::new();
        root.settings.settle = Duration::from_mins(20);
        root.settings.rescan = Duration::from_mins(30);
        root.drop_file("a.jsonl", "one");
        let settings = root.settings.clone();
        let intake = Running::over(root);
        assert_eq!(intake.handle.look().await.pending, 1);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(intake.store.accepted().is_empty());
        let (settle, rescan) = (Duration::from_secs(2), Duration::from_secs(1));
        // The folders stay, whatever it says of them.
        intake.handle.change(Settings { settle, rescan, jobs: "nowhere".into(), ..settings });
        intake.handle.until(|status| status.pending == 0 && status.looks > 1).await;
        assert_eq!(intake.store.job_names(), ["a"]);
        intake.root.drop_file("b.jsonl", "one");
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(intake.store.job_names(), ["a", "b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_of_two_thousand_files_is_taken_in_whole() {
        let root = Root::new();
        for number in 0..2000 {
            root.drop_file(&format!("{number}.jsonl"), &format!("{number}"));
        }
        let intake = Running::over(root);
        intake.idle().await;
        assert_eq!(intake.store.accepted().len(), 2000);
        let mut names = intake.store.job_names();
        names.dedup();
        assert_eq!(names.len(), 2000);
        assert!(intake.root.waiting().is_empty() && intake.root.rejected().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_spec_that_meets_a_full_disk_is_tried_again_and_blocks_no_other() {
        let root = Root::new();
        let path = root.drop_file("a.jsonl", "full");
        root.drop_file("b.jsonl", "one");
        let intake = Running::over(root);
        let status = intake.handle.until(|status| status.blocked == 1).await;
        assert!(status.trouble.unwrap().contains("write the job's files"), "told in words");
        assert_eq!(intake.store.job_names(), ["b"]);
        fs::write(&path, "one").unwrap();
        let is_well = |s: &Status| s.blocked == 0 && s.trouble.is_none() && s.pending == 0;
        intake.handle.until(is_well).await;
        assert_eq!(intake.store.job_names(), ["a", "b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_jobs_folder_that_is_swapped_goes_on_and_one_that_vanishes_is_waited_for() {
        let intake = Running::over(Root::new());
        intake.idle().await;
        let (jobs, old) = (intake.root.settings.jobs.clone(), intake.root.temp.path().join("old"));
        fs::rename(&jobs, &old).unwrap();
        let status = intake.handle.look().await;
        assert!(status.trouble.unwrap().starts_with("open the jobs folder"), "told in words");
        assert!(!jobs.exists(), "it may be a file system that is not mounted: nothing is made there");
        fs::create_dir(&jobs).unwrap();
        fs::write(jobs.join("a.jsonl"), "one").unwrap();
        fs::write(jobs.join("b.jsonl"), "bad").unwrap();
        intake.idle().await;
        assert_eq!(intake.store.job_names(), ["a"]);
        assert_eq!(names(&jobs.join("rejected")), ["b.jsonl", "b.jsonl.errors.txt"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_fails_ends_intake_and_the_next_start_puts_the_spec_back() {
        let root = Root::new();
        root.drop_file("a.jsonl", "one");
        let mut intake = Running::over(root);
        *intake.store.broken.lock().unwrap() = true;
        let ended = intake.tasks.join_next().await.unwrap().unwrap();
        assert!(matches!(ended, Err(Error::Store(_))), "{ended:?}");
        assert!(intake.root.waiting().is_empty(), "nobody knows whether the store has it");

        let intake = Running::over(intake.root);
        intake.idle().await;
        assert_eq!(intake.store.job_names(), ["a"]);
        assert_eq!(intake.root.job_folders().len(), 1);
    }

    #[tokio::test]
    async fn a_hint_brings_the_look_forward() {
        let mut root = Root::new();
        root.settings.watch = true;
        root.settings.rescan = Duration::from_hours(1);
        root.settings.settle = Duration::from_millis(20);
        let intake = Running::over(root);
        intake.handle.look().await;
        let mut changes = intake.store.changes();
        intake.root.drop_file("a.jsonl", "one");
        tokio::time::timeout(Duration::from_mins(1), changes.changed()).await.unwrap();
        assert_eq!(intake.store.job_names(), ["a"]);
    }

    #[tokio::test]
    async fn a_jobs_folder_that_is_swapped_is_watched_again() {
        let mut root = Root::new();
        root.settings.watch = true;
        root.settings.rescan = Duration::from_hours(1);
        root.settings.settle = Duration::from_millis(20);
        let jobs = root.settings.jobs.clone();
        let aside = |number: usize| jobs.with_file_name(format!("aside-{number}"));
        let intake = Running::over(root);
        for number in 0..4 {
            intake.handle.look().await;
            match number {
                0 => fs::remove_dir_all(&jobs).unwrap(),
                _ => fs::rename(&jobs, aside(number)).unwrap(),
            }
            match number {
                // Back in its place, a link to another folder, or a new one.
                1 => fs::rename(aside(number), &jobs).unwrap(),
                2 => {
                    fs::create_dir(aside(number + 10)).unwrap();
                    std::os::unix::fs::symlink(aside(number + 10), &jobs).unwrap();
                }
                _ => fs::create_dir(&jobs).unwrap(),
            }
            intake.handle.look().await;
            let mut changes = intake.store.changes();
            // No look comes by itself: only a hint can bring it.
            intake.root.drop_file(&format!("{number}.jsonl"), "one");
            tokio::time::timeout(Duration::from_mins(1), changes.changed()).await.unwrap();
            assert_eq!(intake.store.accepted().len(), number + 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_spec_that_fails_is_not_tried_again_at_once() {
        let root = Root::new();
        let path = root.drop_file("a.jsonl", "full");
        let intake = Running::over(root);
        intake.handle.until(|status| status.blocked == 1).await;
        let failed = Instant::now();
        let changed = || fs::metadata(&path).map(|file| (file.ctime(), file.ctime_nsec())).unwrap();
        let after_first = changed();
        while changed() == after_first {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let status = intake.handle.look().await;
            assert_eq!((status.blocked, status.pending), (1, 0), "after {:?}", failed.elapsed());
            assert!(status.trouble.is_some());
        }
        assert!(failed.elapsed() >= RETRY, "{:?}", failed.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_before_the_first_look_takes_nothing() {
        let root = Root::new();
        root.drop_file("a.jsonl", "one");
        let (root, ended) = Running::over(root).end().await;
        ended.unwrap();
        assert_eq!(root.waiting(), ["a.jsonl"]);
    }
}
