//! What a start finds: jobs' folders are the truth, and the index is brought level with them.
//!
//! # Operation, for each job that has not ended
//!
//! 1. A job that can't be read is shown as held and otherwise left alone ([`lost`]).
//! 2. The journal is read on from where the index had taken it in, or wholly if the index does not know the
//!    job, and [mended](super::mend): what a kill or a power cut left in it is kept aside and taken out. Up to where
//!    the index had taken it in, it had been synced: so a shorter one has lost answers. That, and damage that no crash
//!    explains, holds the job, which then sends nothing.
//! 3. Records beyond what the index acknowledged are settled again: they were paid for.
//! 4. Intents say how many attempts open requests have used up, and which may have been in flight: what becomes
//!    of those is decided in [`uncertain`]. They are mended as the journal is. Where damage may have made them forget an
//!    attempt, the job is held: going on by itself it could pay more often than it may.
//! 5. What is open and what is settled must be all there is; else, and where the index can't be understood, the
//!    job is indexed anew from its files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::domain::range::{BLOCK, Bits};
use crate::domain::record::JournalLine;
use crate::domain::{Counts, Job, JobId, JobStatus, LineEntry};
use crate::fault;
use crate::pulse::Member;
use crate::store::embedded::index::{Change, Index, broken, damaged};
use crate::store::embedded::intents::{Last, Said};
use crate::store::embedded::keys::{self, Row};
use crate::store::embedded::log::Log;
use crate::store::embedded::mend::Scan;
use crate::store::embedded::open::Open;
use crate::store::embedded::ranges::range_change;
use crate::store::embedded::state::State;
use crate::store::embedded::{lost, uncertain};
use crate::store::folder::{JobFolder, failed};
use crate::store::{Error, Result};

/// What a person can do about a journal that has lost answers, and about intents.
const ASK_AGAIN: &str = "stop batchd, put a sound copy back and run `batchd rebuild`, \
                         or let `batchd retry` ask again for what is missing";
const GO_ON: &str = "`batchd retry` goes on, and may pay again for what was in flight";

/// Brings every job below `state/jobs` into the index, and drops from it what has no folder any more.
pub(super) fn all(index: &mut Index, state: &Path, member: &Member) -> Result<()> {
    let jobs = state.join("jobs");
    let mut ids: BTreeSet<JobId> = BTreeSet::new();
    for entry in fs::read_dir(&jobs).map_err(failed("read folder", &jobs))? {
        let entry = entry.map_err(failed("read folder", &jobs))?;
        ids.extend(entry.file_name().to_str().and_then(|name| name.parse::<JobId>().ok()));
    }
    for id in &ids {
        one(index, &JobFolder::new(state, *id), *id, member)?;
    }
    for id in index.rows()? {
        if !ids.contains(&id) {
            tracing::warn!(job = %id, "the folder of a job is gone; the index forgets the job");
            index.clear(id)?;
        }
    }
    index.flush()
}

fn one(index: &mut Index, folder: &JobFolder, id: JobId, member: &Member) -> Result<()> {
    member.answer();
    match attempt(index, folder, id, member) {
        Err(Error::Damaged { path, what }) => {
            tracing::warn!(job = %id, path = %path.display(), what, "the index of a job is built anew");
        }
        done => return done,
    }
    index.clear(id)?;
    match attempt(index, folder, id, member) {
        // Not the index's fault, then.
        Err(Error::Damaged { path, what }) => {
            let what = format!("{} is damaged: {what}", path.display());
            show_lost(index, folder, lost::job_of(folder, id), &what);
            Ok(())
        }
        done => done,
    }
}

/// [`Error::Damaged`] if the index does not fit the files.
fn attempt(index: &mut Index, folder: &JobFolder, id: JobId, member: &Member) -> Result<()> {
    let State { job, status, finished_at, counts } = match State::read(folder) {
        Ok(Some(state)) => state,
        Ok(None) => {
            // Else it was never accepted: intake puts the file back.
            if folder.was_accepted()? {
                show_lost(index, folder, lost::job_of(folder, id), "state.json is missing");
            }
            return Ok(());
        }
        Err(Error::Damaged { what, .. }) => {
            let what = format!("state.json can't be read ({what})");
            show_lost(index, folder, lost::job_of(folder, id), &what);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    if status.is_final() {
        let counts = counts.unwrap_or_else(|| Counts { total: job.total, ..Counts::default() });
        if index.has_keys(id)? {
            index.clear(id)?;
        }
        index.load_ended(job, status, counts, finished_at);
        return Ok(());
    }
    if let Some(what) = lost::missing_input(folder, &job)? {
        show_lost(index, folder, job, &what);
        return Ok(());
    }
    Recovery { index, folder, job: &job, status, member }.run()?;
    if index.entry(id)?.adds_up() {
        return Ok(());
    }
    Err(Error::Damaged { path: "state/sled".into(), what: "it does not add up".to_owned() })
}

fn show_lost(index: &mut Index, folder: &JobFolder, job: Job, what: &str) {
    let why = lost::why(folder, what);
    tracing::error!(job = %job.id, why, "a job can't be read; it is shown as held");
    let counts = lost::counts_of(folder, job.total);
    index.load_lost(job, why, counts);
}

/// How far the index had taken a job's journal in.
enum Known {
    Not,
    Row(Row),
    /// And the journal is shorter now.
    Shorter(Row),
}

/// The recovery of one job that has not ended.
struct Recovery<'a> {
    index: &'a mut Index,
    folder: &'a JobFolder,
    job: &'a Job,
    status: JobStatus,
    /// Answers with every line that is read.
    member: &'a Member,
}

impl Recovery<'_> {
    /// Brings the index level with the job's journal and its intents.
    fn run(mut self) -> Result<()> {
        let known = self.known()?;
        let (mut row, synced) = match known {
            // Nothing taken in says nothing: so begins a job, and so an index that is being built anew.
            Known::Row(row) => (row, Some(row.acknowledged).filter(|synced| *synced > 0)),
            Known::Not => (put(self.index, self.folder, self.job, self.member)?, None),
            Known::Shorter(row) => {
                let synced = row.acknowledged;
                self.hold(&format!(
                    "the journal results.log has lost answers: it was {synced} bytes long; {ASK_AGAIN}"
                ))?;
                (put(self.index, self.folder, self.job, self.member)?, None)
            }
        };
        let records = self.read_journal(synced)?;
        let mut open = self.settle_again(&mut row, &records)?;
        fault::point("recover-settled-again");
        let mut said = self.read_intents(&open)?;
        // Held before the decision is written down: the next start would find nothing to decide about, and send.
        if let Some(why) = uncertain::why_held(self.job, &said.last) {
            self.hold(&why)?;
        }
        // What will never be sent again has only its one line left.
        let ends = !may_go_on(&self.status);
        let resolved = uncertain::resolve(self.folder, self.job, ends, &mut said.last)?;
        row.acknowledged = self.journal_length()?;
        open = if resolved.failed.is_empty() { open } else { self.settle_again(&mut row, &resolved.failed)? };
        row.maybe_paid_twice = row.maybe_paid_twice.max(said.maybe_paid + resolved.lost);
        self.apply_intents(open, said.last)?;
        self.index.apply(vec![(keys::job(self.job.id), Some(row.encode()))])?;
        fault::point("recover-job-done");
        self.index.load(self.job.clone(), self.status, row)
    }

    fn known(&self) -> Result<Known> {
        let Some(value) = self.index.tree().get(keys::job(self.job.id)).map_err(broken)? else {
            return Ok(Known::Not);
        };
        let row = Row::decode(&value).ok_or_else(|| damaged("a job's row"))?;
        if self.journal_length()? < row.acknowledged {
            return Ok(Known::Shorter(row));
        }
        Ok(if self.ends_a_line(row.acknowledged)? { Known::Row(row) } else { Known::Not })
    }

    /// Whether so many bytes of the journal are whole lines; if not, it is not the journal that the index knows.
    fn ends_a_line(&self, length: u64) -> Result<bool> {
        let Some(last) = length.checked_sub(1) else { return Ok(true) };
        let path = self.folder.journal();
        let mut byte = [0];
        let file = fs::File::open(&path).map_err(failed("open", &path))?;
        file.read_exact_at(&mut byte, last).map_err(failed("read", &path))?;
        Ok(byte == *b"\n")
    }

    /// Zero if there is none.
    fn journal_length(&self) -> Result<u64> {
        let path = self.folder.journal();
        match path.metadata() {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(failed("look at", &path)(error)),
        }
    }

    /// Holds the job, if it could send: durable when it returns. One that is held stays so for its first reason; one
    /// on its way to its end sends nothing as it is, and must not come back from it.
    fn hold(&mut self, why: &str) -> Result<()> {
        if matches!(self.status, JobStatus::InProgress | JobStatus::Paused { .. }) {
            tracing::error!(job = %self.job.id, why, "a job is held");
            self.status = JobStatus::Held { why: why.to_owned() };
            let (job, status) = (self.job.clone(), self.status.clone());
            State { job, status, finished_at: None, counts: None }.write(self.folder)?;
        }
        Ok(())
    }

    /// Mends the journal. Index and success of each record beyond `synced`, the first of each index.
    fn read_journal(&mut self, synced: Option<u64>) -> Result<BTreeMap<u32, bool>> {
        let path = self.folder.journal();
        self.make_if_missing(&path, &format!("the journal results.log is missing; {ASK_AGAIN}"))?;
        let (records, scan) = scan_journal(&path, synced, self.job.total, self.member)?;
        if let Some(offset) = scan.damaged_at {
            // Before the index has taken in what lies behind the damage, and the next start sees none.
            self.hold(&format!("the journal results.log is damaged at byte {offset}; {ASK_AGAIN}"))?;
        }
        scan.mend(&path)?;
        Ok(records)
    }

    /// Mends the intents.
    fn read_intents(&mut self, open: &Open) -> Result<Said> {
        let path = self.folder.intents();
        self.make_if_missing(
            &path,
            &format!("intents.log is missing: how often requests were sent is not known; {GO_ON}"),
        )?;
        let mut said = Said::default();
        let scan = Scan::read(&path, None, |line| {
            self.member.answer();
            said.take(line, |number| open.contains(number))
        })?;
        if let Some(offset) = scan.damaged_at {
            let what = "how often requests were sent is not known for sure";
            self.hold(&format!("intents.log is damaged at byte {offset}: {what}; {GO_ON}"))?;
            // A person decides about it once, and not at every start.
            scan.take_out_damage(&path)?;
        } else if !scan.is_whole() {
            scan.mend(&path)?;
        }
        Ok(said)
    }

    fn make_if_missing(&mut self, path: &Path, why: &str) -> Result<()> {
        if !path.try_exists().map_err(failed("look at", path))? {
            self.hold(why)?;
            Log::open(path.to_owned())?;
        }
        Ok(())
    }

    /// The requests that are open after records beyond the acknowledged length are settled again.
    fn settle_again(&mut self, row: &mut Row, records: &BTreeMap<u32, bool>) -> Result<Open> {
        let mut open = Open::read(self.index, self.job.id)?;
        let mut changes = Vec::new();
        for (&number, &success) in records {
            if success {
                row.completed += 1;
            } else {
                row.failed += 1;
            }
            changes.extend(open.take(self.job.id, number));
        }
        changes.extend(open.changed(self.job.id));
        self.index.apply(changes)?;
        Ok(open)
    }

    /// Gives open requests the attempts that their intents tell of.
    fn apply_intents(&mut self, mut open: Open, last: BTreeMap<u32, Last>) -> Result<()> {
        let id = self.job.id;
        // Moves first, in pairs, since the size of a batch is even: a request between two keys would be lost.
        let (mut changes, mut arrivals): (Vec<Change>, Vec<Change>) = (Vec::new(), Vec::new());
        for (number, last) in last {
            let Some((attempts, due)) = last.ended else { continue };
            let Some(queue) = open.queue_of(number) else { continue };
            let arrival = (keys::waiting(id, queue, due, number), Some(attempts.to_be_bytes().to_vec()));
            match open.take(id, number) {
                Some(departure) => changes.extend([departure, arrival]),
                None => arrivals.push(arrival),
            }
        }
        changes.extend(arrivals);
        changes.extend(open.changed(id));
        self.index.apply(changes)
    }
}

/// Index and success of each record of a journal beyond `synced`, the first of each index.
pub(super) fn scan_journal(
    path: &Path,
    synced: Option<u64>,
    total: u32,
    member: &Member,
) -> Result<(BTreeMap<u32, bool>, Scan)> {
    let mut records = BTreeMap::new();
    let scan = Scan::read(path, synced, |line| {
        member.answer();
        let record = JournalLine::parse(line).filter(|record| record.index < total);
        if let Some(record) = record {
            // Those behind damage were paid for, too.
            records.entry(record.index).or_insert_with(|| record.is_success());
        }
        record.is_some()
    })?;
    Ok((records, scan))
}

/// Whether requests of such a job may be sent again, at once or when a person says so.
const fn may_go_on(status: &JobStatus) -> bool {
    matches!(status, JobStatus::InProgress | JobStatus::Paused { .. } | JobStatus::Held { .. })
}

/// Indexes a job from its line index: every request fresh. The row is written last. `member` answers with every block:
/// a job of millions of requests over many queues may take long.
pub(super) fn put(index: &mut Index, folder: &JobFolder, job: &Job, member: &Member) -> Result<Row> {
    index.clear(job.id)?;
    let path = folder.index();
    let mut lines = BufReader::new(fs::File::open(&path).map_err(failed("open", &path))?);
    let mut entry = [0; LineEntry::SIZE];
    let mut block: BTreeMap<u16, Bits> = BTreeMap::new();
    for number in 0..job.total {
        lines.read_exact(&mut entry).map_err(failed("read", &path))?;
        let queue = LineEntry::decode(&entry).queue;
        if usize::from(queue) >= job.queues.len() {
            let what = format!("request {number} is in queue {queue} of {}", job.queues.len());
            return Err(Error::Damaged { path, what });
        }
        block.entry(queue).or_default().insert(number % BLOCK);
        if number % BLOCK == BLOCK - 1 || number + 1 == job.total {
            let changes = std::mem::take(&mut block).into_iter();
            let changes =
                changes.map(|(queue, bits)| range_change((keys::range(job.id, queue, number / BLOCK), bits)));
            index.apply(changes.collect())?;
            member.answer();
            fault::point("store-job-half-indexed");
        }
    }
    index.apply(vec![(keys::job(job.id), Some(Row::default().encode()))])?;
    Ok(Row::default())
}
