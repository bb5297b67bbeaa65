//! Schedules: specs with `[schedule]`. They stay in the jobs folder, like files in cron.d, and intake makes a job of
//! them whenever their time comes.
//!
//! # Operation
//!
//! A spec that has come to rest is looked into where it lies ([`peek`]). One with a schedule is kept ([`keep`]): its
//! text and what was decided about its times are durable ([`record`]), so that a restart, or a version in which
//! something is wrong, goes on with the last good one. What was read once is read again when it has changed. After
//! every look what is due is fired ([`fire`]): the run's spec is made of the kept text in the folder of a new job,
//! and from there on it is a spec like any other.
//!
//! # Invariants
//!
//! - A time is decided about once, and gets one run at most. That it is to get one is written down before the run
//!   is made, and goes out after the store has it. [`Run::due`](crate::domain::Run::due) is durable with the job
//!   itself: a crash between the two is healed when the records are loaded.
//! - Nothing is fired of a file that was not looked at since the start, or that is not there: what a person has
//!   changed or taken away meanwhile counts.
//! - Only a look that saw the jobs folder can say that a schedule was taken away, and only two of them, `settle`
//!   apart: there are editors that take the old file away before they put the new one there.

mod attended;
mod fire;
mod keep;
mod peek;
mod record;
mod report;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::fs::FileType;

pub(super) use self::attended::Attended;
use self::record::{Record, Shelf};
use super::accept::Peek;
use super::dir::{Dir, Stamp};
use super::handle::Refusal;
use super::scan::Scan;
use super::{Error, FOLDER_SPEC, INPUTS, REJECTED, failed};
use crate::domain::{JobName, JobState, Kind, Timestamp};
use crate::schedule::Schedule;
use crate::spec::{self, Form, Scheduled, Source};

/// What a good version of a schedule's spec says.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the names of its runs begin with.
    pub name: JobName,
    pub kind: Kind,
    pub schedule: Schedule,
}

impl From<Scheduled> for Plan {
    fn from(scheduled: Scheduled) -> Self {
        Self { name: scheduled.name, kind: scheduled.kind, schedule: scheduled.schedule }
    }
}

/// A schedule as others see it.
#[derive(Clone, Debug)]
pub struct ScheduleStatus {
    /// The name of its file or folder in the jobs folder.
    pub file: String,
    /// Of its last good version; none if the configuration refuses that by now.
    pub plan: Option<Plan>,
    /// What is wrong with the version that lies there.
    pub problem: Option<String>,
}

/// Every schedule there is.
#[derive(Debug)]
pub(super) struct Schedules {
    shelf: Shelf,
    /// By the name in the jobs folder. At most as many as a look can see.
    kept: BTreeMap<String, Kept>,
    is_loaded: bool,
    /// What others see of them has changed.
    is_news: bool,
}

/// One of them.
#[derive(Debug)]
struct Kept {
    record: Record,
    /// Of the last good text; none if that is lost, or the configuration refuses it by now.
    plan: Option<Plan>,
    sight: Sight,
    /// Since when it is looked after: times before that passed while nobody could make their runs.
    since: Timestamp,
    problem: Option<String>,
    /// What was decided about its times is not written down yet.
    is_unwritten: bool,
    /// When its times are looked at again; none: at once.
    next: Option<Timestamp>,
    retry: Option<Retry>,
}

/// A run that could not be made is made later.
#[derive(Clone, Copy, Debug)]
struct Retry {
    at: Timestamp,
    /// It is our trouble, not that of the run's data.
    is_blocked: bool,
}

/// What was last seen of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    /// It is there, and was not looked into yet.
    Unread,
    Read(Stamp),
    /// It is not there, since this look.
    Missing(Timestamp),
    /// Nor are the folders that batchd made beside it: its file system may not be mounted.
    Out,
}

impl Kept {
    const fn new(record: Record, since: Timestamp) -> Self {
        Self {
            record,
            plan: None,
            sight: Sight::Unread,
            since,
            problem: None,
            is_unwritten: false,
            next: None,
            retry: None,
        }
    }

    /// Whether times of it can get runs.
    const fn is_in_force(&self) -> bool {
        matches!(self.sight, Sight::Read(_)) && self.plan.is_some()
    }

    /// When there is something to do about its times; none: not as it stands.
    fn waits_until(&self) -> Option<Timestamp> {
        let at_once = Timestamp::from_millis(0);
        let next = if self.is_unwritten || self.record.due.is_some() { None } else { self.next };
        let at = self.retry.map_or_else(|| next.unwrap_or(at_once), |retry| retry.at);
        self.is_in_force().then_some(at)
    }

    /// What the store knows is true, however far the record came: a run that was made is not made again.
    fn heal(&mut self, jobs: &[JobState]) {
        let runs = jobs.iter().filter_map(|state| state.job.run.as_ref());
        let made = runs.filter(|run| run.spec == self.record.file).filter_map(|run| run.due);
        if let Some(newest) = made.max() {
            self.record.last = self.record.last.max(newest);
            self.record.due = self.record.due.filter(|due| newest < *due);
        }
    }
}

impl Schedules {
    pub(super) fn new(state: &Path) -> Self {
        Self { shelf: Shelf::below(state), kept: BTreeMap::new(), is_loaded: false, is_news: false }
    }

    /// Lets every file be looked into again: they may be judged by other settings now.
    pub(super) fn doubt(&mut self) {
        for kept in self.kept.values_mut() {
            if matches!(kept.sight, Sight::Read(_)) {
                kept.sight = Sight::Unread;
            }
        }
    }

    pub(super) const fn is_loaded(&self) -> bool {
        self.is_loaded
    }

    /// By the name of its file, or its own.
    fn find(&self, named: &str) -> Result<&Kept, Refusal> {
        let is_there = |kept: &&Kept| matches!(kept.sight, Sight::Unread | Sight::Read(_));
        if let Some(kept) = self.kept.get(named).filter(is_there) {
            return Ok(kept);
        }
        let is_named = |kept: &&Kept| kept.plan.as_ref().is_some_and(|plan| plan.name.as_str() == named);
        let found: Vec<&Kept> = self.kept.values().filter(is_there).filter(is_named).collect();
        match found.as_slice() {
            [kept] => Ok(kept),
            [] => Err(Refusal::Unknown(named.to_owned())),
            several => {
                let files = several.iter().map(|kept| format!("`{}`", kept.record.file)).collect();
                Err(Refusal::Ambiguous { name: named.to_owned(), files })
            }
        }
    }

    /// The schedules about whose times there is something to do at `now`: who has waited longest goes first.
    fn due(&self, now: Timestamp) -> Vec<String> {
        let due = self.kept.values().filter_map(|kept| Some((kept.waits_until()?, &kept.record.file)));
        let mut due: Vec<_> = due.filter(|(at, _)| *at <= now).collect();
        due.sort_unstable();
        due.into_iter().map(|(_, file)| file.clone()).collect()
    }

    /// Whether times have passed about which nothing was decided yet.
    pub(super) fn is_behind(&self, now: Timestamp) -> bool {
        self.next().is_some_and(|next| next <= now)
    }

    /// When there is something to do the next time.
    fn next(&self) -> Option<Timestamp> {
        self.kept.values().filter_map(Kept::waits_until).min()
    }

    /// How many can't go on because of trouble of ours.
    fn blocked(&self) -> usize {
        let retries = self.kept.values().filter(|kept| kept.is_in_force()).filter_map(|kept| kept.retry);
        retries.filter(|retry| retry.is_blocked).count()
    }

    /// A run that can't be made now is made at `at`.
    fn postpone(&mut self, file: &str, at: Timestamp, is_blocked: bool) {
        if let Some(kept) = self.kept.get_mut(file) {
            kept.retry = Some(Retry { at, is_blocked });
        }
    }

    /// What others see, if that has changed.
    pub(super) fn news(&mut self) -> Option<Vec<ScheduleStatus>> {
        std::mem::take(&mut self.is_news).then(|| self.kept.values().map(Kept::status).collect())
    }

    /// Takes what has not changed since it was read out of a scan. Answers which schedules the scan did not see.
    fn see(&mut self, scan: &mut Scan) -> Vec<String> {
        let ready = scan.ready.iter().map(|candidate| &candidate.name);
        let seen: BTreeSet<&OsString> = ready.chain(&scan.settling).collect();
        let mut unseen = Vec::new();
        for (name, kept) in &mut self.kept {
            if seen.contains(&OsString::from(name)) {
                kept.appears();
            } else {
                unseen.push(name.clone());
            }
        }
        scan.ready.retain(|candidate| {
            let kept = candidate.name.to_str().and_then(|name| self.kept.get(name));
            kept.is_none_or(|kept| kept.sight != Sight::Read(candidate.stamp))
        });
        unseen
    }
}

impl Kept {
    const fn appears(&mut self) {
        match self.sight {
            Sight::Missing(_) | Sight::Out => self.sight = Sight::Unread,
            Sight::Unread | Sight::Read(_) => {}
        }
    }

    /// Answers whether it is over.
    fn vanishes(&mut self, settle: Duration, now: Timestamp) -> bool {
        match self.sight {
            Sight::Missing(since) => return now < since || now.since(since) >= settle,
            Sight::Unread | Sight::Read(_) | Sight::Out => self.sight = Sight::Missing(now),
        }
        false
    }

    fn status(&self) -> ScheduleStatus {
        ScheduleStatus {
            file: self.record.file.clone(),
            plan: self.plan.clone(),
            problem: self.problem.clone(),
        }
    }
}

/// Those of `names` that are not in the jobs folder; none if the folder is not that in which they were. Blocks.
fn missing(jobs: &Dir, names: Vec<String>) -> Option<Vec<String>> {
    let missing: Vec<String> = names.into_iter().filter(|name| !lies_there(jobs, OsStr::new(name))).collect();
    (missing.is_empty() || has_our_folders(jobs)).then_some(missing)
}

/// Whether there is a spec of this name, in whatever state. What can't be looked at may be there.
fn lies_there(jobs: &Dir, name: &OsStr) -> bool {
    let look = || -> io::Result<bool> {
        match jobs.stat(name)? {
            Some(entry) if entry.kind == FileType::Directory => {
                Ok(jobs.below(name)?.stat(OsStr::new(FOLDER_SPEC))?.is_some())
            }
            entry => Ok(entry.is_some()),
        }
    };
    look().unwrap_or(true)
}

/// Whether one of the folders is there that were made at the start: an empty folder may be one on which nothing is
/// mounted.
fn has_our_folders(jobs: &Dir) -> bool {
    [INPUTS, REJECTED].iter().any(|name| jobs.stat(OsStr::new(name)).is_ok_and(|entry| entry.is_some()))
}

/// Reads what was kept of all schedules. Blocks.
fn load(shelf: &Shelf, settings: &spec::Settings, peek: Peek, since: Timestamp) -> Result<Vec<Kept>, Error> {
    let mut all = Vec::new();
    for record in shelf.load()? {
        let path = shelf.text(&record);
        let is_whole = shelf.read_text(&record)?.is_some();
        let mut kept = Kept::new(record, since);
        if is_whole {
            let source = Source {
                form: Form::Toml,
                file: std::fs::File::open(&path).map_err(failed("open", &path))?,
                display: peek::display(&kept.record.file, kept.record.dropped),
                folder: std::path::PathBuf::new(),
                rest: None,
                now: since,
                is_run: false,
            };
            // What the configuration refuses by now is told when the file is looked into.
            kept.plan = peek(&source, settings).ok().flatten().map(Plan::from);
        }
        all.push(kept);
    }
    Ok(all)
}
