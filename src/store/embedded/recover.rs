//! What a start finds: jobs' folders are the truth, and the index is brought level with them.
//!
//! # Operation, for each job that has not ended
//!
//! 1. The journal is read on from where the index had taken it in, or wholly if the index does not know the
//!    job. A torn end is cut off and kept beside it as `results.torn.<n>`; damage in the middle is no trace of
//!    a crash, so the job is held and sends nothing.
//! 2. Records beyond what the index acknowledged are settled again: they were paid for.
//! 3. Intents say how many attempts open requests have used up, and which may have been in flight: what becomes
//!    of those is decided in [`uncertain`].
//! 4. What is open and what is settled must be all there is; else the job is indexed anew from its files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::disk::File;
use crate::domain::range::{BLOCK, Bits};
use crate::domain::record::JournalLine;
use crate::domain::{Counts, Job, JobId, JobStatus, LineEntry, Timestamp};
use crate::fault;
use crate::store::embedded::index::{Change, Index, broken, damaged, range_change};
use crate::store::embedded::intents::{self, Last, Said};
use crate::store::embedded::keys::{self, Row};
use crate::store::embedded::state::State;
use crate::store::embedded::uncertain;
use crate::store::folder::{JobFolder, failed, sync_parent};
use crate::store::{Error, Result};

/// Brings every job below `state/jobs` into the index.
pub(super) fn all(index: &mut Index, state: &Path) -> Result<()> {
    let jobs = state.join("jobs");
    let mut ids: Vec<JobId> = Vec::new();
    for entry in fs::read_dir(&jobs).map_err(failed("read folder", &jobs))? {
        let entry = entry.map_err(failed("read folder", &jobs))?;
        ids.extend(entry.file_name().to_str().and_then(|name| name.parse::<JobId>().ok()));
    }
    ids.sort_unstable();
    for id in ids {
        let folder = JobFolder::new(state, id);
        match State::read(&folder) {
            // Never accepted: intake puts the file back.
            Ok(None) => {}
            Ok(Some(state)) => one(index, &folder, state)?,
            Err(error @ Error::Damaged { .. }) => {
                tracing::error!(job = %id, error = %error, "a job's state can't be read; it is left alone");
            }
            Err(error) => return Err(error),
        }
    }
    index.flush()
}

fn one(index: &mut Index, folder: &JobFolder, state: State) -> Result<()> {
    let State { job, status, finished_at, counts } = state;
    if status.is_final() {
        let counts = counts.unwrap_or_else(|| Counts { total: job.total, ..Counts::default() });
        if index.tree().contains_key(keys::job(job.id)).map_err(broken)? {
            index.clear(job.id)?;
        }
        index.load_ended(job, status, counts, finished_at);
        return Ok(());
    }
    let row = match known(index, folder, job.id)? {
        Some(row) => row,
        None => put(index, folder, &job)?,
    };
    level(index, folder, &job, status.clone(), row)?;
    if !index.entry(job.id)?.adds_up() {
        tracing::warn!(job = %job.id, "the index of a job does not add up; it is built anew");
        let row = put(index, folder, &job)?;
        level(index, folder, &job, status, row)?;
    }
    Ok(())
}

/// Brings the index of one job from `row` on level with its journal and its intents.
fn level(index: &mut Index, folder: &JobFolder, job: &Job, status: JobStatus, mut row: Row) -> Result<()> {
    let scanned = scan_journal(&folder.journal(), row.acknowledged, job.total)?;
    let status = match scanned.damaged_at {
        // A job on its way to its end sends nothing as it is, and must not come back from it.
        Some(offset) if status.may_send() || matches!(status, JobStatus::Paused { .. }) => {
            let why = format!("the journal results.log is damaged at byte {offset}");
            tracing::error!(job = %job.id, why, "a job is held");
            // Before the index has taken in what lies behind the damage, and the next start sees none.
            hold(folder, job, why)?
        }
        Some(_) | None => status,
    };
    row.acknowledged = scanned.end;
    let mut open = settle_again(index, job, &mut row, &scanned.records)?;
    fault::point("recover-settled-again");
    let mut said = read_intents(folder, &open)?;
    let mut status = status;
    let is_held = matches!(status, JobStatus::Held { .. });
    // A held job may be sent from again, so what it had in flight counts. Nothing is written behind fresh damage.
    let may_go_on = status.may_send() || is_held || matches!(status, JobStatus::Paused { .. });
    if may_go_on && scanned.damaged_at.is_none() {
        // Held before the decision is written down: the next start would find nothing to decide about, and send.
        if !is_held && let Some(why) = uncertain::why_held(job, &said.last) {
            tracing::error!(job = %job.id, why, "a job is held");
            status = hold(folder, job, why)?;
        }
        let resolved = uncertain::resolve(folder, job, &mut said.last)?;
        row.acknowledged = journal_length(folder)?;
        open = settle_again(index, job, &mut row, &resolved.failed)?;
        said.maybe_paid += resolved.lost;
    }
    row.maybe_paid_twice = row.maybe_paid_twice.max(said.maybe_paid);
    apply_intents(index, job, open, said.last)?;
    index.apply(vec![(keys::job(job.id), Some(row.encode()))])?;
    fault::point("recover-job-done");
    index.load(job.clone(), status, row)
}

/// Makes `held` the job's status; durable when it returns.
fn hold(folder: &JobFolder, job: &Job, why: String) -> Result<JobStatus> {
    let status = JobStatus::Held { why };
    State { job: job.clone(), status: status.clone(), finished_at: None, counts: None }.write(folder)?;
    Ok(status)
}

fn journal_length(folder: &JobFolder) -> Result<u64> {
    let journal = folder.journal();
    Ok(journal.metadata().map_err(failed("look at", &journal))?.len())
}

fn read_intents(folder: &JobFolder, open: &Open) -> Result<Said> {
    let path = folder.intents();
    let Ok(file) = fs::File::open(&path) else { return Ok(Said::default()) };
    intents::read(file, |number| open.contains(number)).map_err(failed("read", &path))
}

/// The job's row, if the index knows the job and has not run ahead of its journal.
fn known(index: &mut Index, folder: &JobFolder, id: JobId) -> Result<Option<Row>> {
    let Some(value) = index.tree().get(keys::job(id)).map_err(broken)? else { return Ok(None) };
    let row = Row::decode(&value).ok_or_else(|| damaged("a job's row"))?;
    let journal = folder.journal();
    let length = journal.metadata().map_or(0, |metadata| metadata.len());
    Ok((row.acknowledged <= length).then_some(row))
}

/// Indexes a job from its line index: every request fresh. The row is written last.
pub(super) fn put(index: &mut Index, folder: &JobFolder, job: &Job) -> Result<Row> {
    index.clear(job.id)?;
    let path = folder.index();
    let mut lines = BufReader::new(fs::File::open(&path).map_err(failed("open", &path))?);
    let mut entry = [0; LineEntry::SIZE];
    let mut block: BTreeMap<u16, Bits> = BTreeMap::new();
    for number in 0..job.total {
        lines.read_exact(&mut entry).map_err(failed("read", &path))?;
        block.entry(LineEntry::decode(&entry).queue).or_default().insert(number % BLOCK);
        if number % BLOCK == BLOCK - 1 || number + 1 == job.total {
            let changes = std::mem::take(&mut block).into_iter();
            let changes =
                changes.map(|(queue, bits)| range_change((keys::range(job.id, queue, number / BLOCK), bits)));
            index.apply(changes.collect())?;
            fault::point("store-job-half-indexed");
        }
    }
    index.apply(vec![(keys::job(job.id), Some(Row::default().encode()))])?;
    Ok(Row::default())
}

/// What a journal held beyond an offset.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scanned {
    /// Index and success of each record, the first of each index.
    pub(super) records: BTreeMap<u32, bool>,
    /// Where the valid part ends.
    pub(super) end: u64,
    pub(super) damaged_at: Option<u64>,
}

/// Reads the journal from `start`, cuts a torn end off and syncs what is left.
pub(super) fn scan_journal(path: &Path, start: u64, total: u32) -> Result<Scanned> {
    let file = File::append_private(path).map_err(failed("open", path))?;
    let mut reader = BufReader::new(file.inner());
    reader.seek(SeekFrom::Start(start)).map_err(failed("read", path))?;
    let mut scanned = Scanned { records: BTreeMap::new(), end: start, damaged_at: None };
    let mut line = Vec::new();
    let mut offset = start;
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(failed("read", path))?;
        if read == 0 {
            break;
        }
        let parsed =
            line.strip_suffix(b"\n").and_then(JournalLine::parse).filter(|parsed| parsed.index < total);
        offset += read as u64;
        let Some(parsed) = parsed else { continue };
        if scanned.end + (read as u64) < offset {
            scanned.damaged_at.get_or_insert(scanned.end);
        }
        // Those behind the damage were paid for, too.
        scanned.records.entry(parsed.index).or_insert_with(|| parsed.is_success());
        scanned.end = offset;
    }
    // Also behind damage: the next record must not be glued to half a line.
    if scanned.end < offset {
        keep_aside(path, scanned.end)?;
        file.cut(scanned.end).map_err(failed("cut", path))?;
        fault::point("recover-torn-cut");
    }
    file.sync_data().map_err(failed("sync", path))?;
    Ok(scanned)
}

/// Copies the torn end of a journal to `results.torn.<n>` beside it.
fn keep_aside(path: &Path, from: u64) -> Result<()> {
    let mut names = (1..=u32::MAX).map(|n| path.with_file_name(format!("results.torn.{n}")));
    let aside: PathBuf = names.find(|aside| !aside.exists()).unwrap_or_else(|| path.with_extension("torn"));
    let mut source = fs::File::open(path).map_err(failed("open", path))?;
    source.seek(SeekFrom::Start(from)).map_err(failed("read", path))?;
    let mut copy = File::create(&aside).map_err(failed("create", &aside))?;
    std::io::copy(&mut source, &mut copy).map_err(failed("write", &aside))?;
    copy.sync_all().map_err(failed("sync", &aside))?;
    fault::point("recover-torn-kept");
    tracing::warn!(path = %aside.display(), "the torn end of a journal is kept aside");
    sync_parent(&aside)
}

/// The requests that are open after records beyond the acknowledged length are settled again.
fn settle_again(index: &mut Index, job: &Job, row: &mut Row, records: &BTreeMap<u32, bool>) -> Result<Open> {
    let mut open = Open::read(index, job.id)?;
    let mut changes = Vec::new();
    for (&number, &success) in records {
        if success {
            row.completed += 1;
        } else {
            row.failed += 1;
        }
        changes.extend(open.take(job.id, number));
    }
    changes.extend(open.changed(job.id));
    index.apply(changes)?;
    Ok(open)
}

/// Gives open requests the attempts that their intents tell of.
fn apply_intents(index: &mut Index, job: &Job, mut open: Open, last: BTreeMap<u32, Last>) -> Result<()> {
    // Moves first, in pairs, since the size of a batch is even: a request between two keys would be lost.
    let (mut changes, mut arrivals): (Vec<Change>, Vec<Change>) = (Vec::new(), Vec::new());
    for (number, last) in last {
        let Some((attempts, due)) = last.ended else { continue };
        let Some(queue) = open.queue_of(number) else { continue };
        let arrival = (keys::waiting(job.id, queue, due, number), Some(attempts.to_be_bytes().to_vec()));
        match open.take(job.id, number) {
            Some(departure) => changes.extend([departure, arrival]),
            None => arrivals.push(arrival),
        }
    }
    changes.extend(arrivals);
    changes.extend(open.changed(job.id));
    index.apply(changes)
}

/// What the index holds as open of one job, while it is recovered: a bit or a few bytes a request.
#[derive(Clone, Debug, Default)]
struct Open {
    /// By block and queue.
    fresh: BTreeMap<(u32, u16), Bits>,
    waiting: BTreeMap<u32, (u16, Timestamp)>,
    touched: BTreeSet<(u32, u16)>,
}

impl Open {
    fn read(index: &Index, id: JobId) -> Result<Self> {
        let mut open = Self::default();
        for item in index.tree().range(keys::all_ranges(id)) {
            let (key, value) = item.map_err(broken)?;
            let parsed = keys::parse_range(&key).zip(Bits::decode(&value));
            let ((queue, block), bits) = parsed.ok_or_else(|| damaged("a range"))?;
            open.fresh.insert((block, queue), bits);
        }
        for item in index.tree().range(keys::all_waiting(id)).keys() {
            let (queue, due, number) =
                keys::parse_waiting(&item.map_err(broken)?).ok_or_else(|| damaged("a waiting key"))?;
            open.waiting.insert(number, (queue, due));
        }
        Ok(open)
    }

    fn contains(&self, number: u32) -> bool {
        self.queue_of(number).is_some()
    }

    fn queue_of(&self, number: u32) -> Option<u16> {
        let waiting = self.waiting.get(&number).map(|(queue, _)| *queue);
        waiting.or_else(|| self.fresh_place(number).map(|(_, queue)| queue))
    }

    fn fresh_place(&self, number: u32) -> Option<(u32, u16)> {
        let block = number / BLOCK;
        let mut places = self.fresh.range((block, 0)..=(block, u16::MAX));
        places.find(|(_, bits)| bits.contains(number % BLOCK)).map(|(place, _)| *place)
    }

    /// Takes a request out; a waiting one's key is the change to make. A recovery that was killed may have
    /// left it in both places.
    fn take(&mut self, id: JobId, number: u32) -> Option<Change> {
        if let Some(place) = self.fresh_place(number) {
            if let Some(bits) = self.fresh.get_mut(&place) {
                bits.remove(number % BLOCK);
            }
            self.touched.insert(place);
        }
        let (queue, due) = self.waiting.remove(&number)?;
        Some((keys::waiting(id, queue, due, number), None))
    }

    /// The ranges that requests were taken out of.
    fn changed(&mut self, id: JobId) -> Vec<Change> {
        let touched = std::mem::take(&mut self.touched).into_iter();
        let change = |(block, queue)| {
            let bits = self.fresh.get(&(block, queue)).cloned().unwrap_or_default();
            range_change((keys::range(id, queue, block), bits))
        };
        touched.map(change).collect()
    }
}
