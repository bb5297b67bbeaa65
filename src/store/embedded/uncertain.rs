//! Requests that were in flight when the process died: they may have been paid for, and nobody knows.
//!
//! What becomes of them is the job's `on_uncertain`: sent again, but once more at most (`retry`); left until a
//! person decides (`hold`); or failed (`fail`). A request that is uncertain again after its one repeat is failed
//! as `uncertain`, so that no request is paid for more than twice by crashes.
//!
//! # Invariants
//!
//! - What is decided is durable before it takes effect: records in the journal, and a `lost` line in the
//!   intents for each request that may be sent again. So a kill in the middle decides the same anew.
//! - A job that is to be held is held before: a kill in between leaves it held.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::domain::{Job, LineEntry, OnUncertain, Record, RecordError, RequestId};
use crate::fault;
use crate::spec;
use crate::store::Result;
use crate::store::embedded::intents::{Intent, Last};
use crate::store::embedded::log::Log;
use crate::store::folder::{JobFolder, failed};

/// What was decided.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    /// Requests that failed, as the journal's records say them: index and success.
    pub(super) failed: BTreeMap<u32, bool>,
    /// Requests that may be sent again.
    pub(super) lost: u32,
}

/// Why the job is to be held, if it is, as long as nothing is decided about `last`.
pub(super) fn why_held(job: &Job, last: &BTreeMap<u32, Last>) -> Option<String> {
    let uncertain = last.values().filter(|last| last.sent.is_some()).count();
    let holds = uncertain > 0 && job.settings.on_uncertain == Some(OnUncertain::Hold);
    let why = "requests were in flight when batchd died, and may have been paid for";
    holds.then(|| format!("{uncertain} {why}; `batchd retry` sends them again, `batchd cancel` does not"))
}

/// Decides about every request of `last` that has a begun attempt without an end. Those of a job that `ends`, because
/// it was cancelled or its deadline has passed, fail: nothing of it is sent again, and `cancelled` would say that nothing
/// was paid.
pub(super) fn resolve(
    folder: &JobFolder,
    job: &Job,
    ends: bool,
    last: &mut BTreeMap<u32, Last>,
) -> Result<Resolved> {
    if last.values().all(|last| last.sent.is_none()) {
        return Ok(Resolved::default());
    }
    let policy = if ends { OnUncertain::Fail } else { job.settings.on_uncertain.unwrap_or_default() };
    let (mut resolved, mut lost) = (Resolved::default(), Vec::new());
    let journal = Log::open(folder.journal())?;
    for (&index, last) in last.iter_mut() {
        let Some(attempt) = last.sent else { continue };
        let fails = match policy {
            OnUncertain::Retry => last.lost > 0,
            OnUncertain::Hold => false,
            OnUncertain::Fail => true,
        };
        if fails {
            let record = uncertain(folder, job, index, attempt)?;
            journal.append(&record.to_journal_line(attempt), |_| ())?;
            fault::point("recover-uncertain-failed");
            resolved.failed.insert(index, false);
        } else {
            lost.extend(Intent::Lost { index, attempt }.to_line());
            resolved.lost += 1;
            last.lose(attempt);
        }
    }
    if !resolved.failed.is_empty() {
        journal.sync()?;
    }
    if resolved.lost > 0 {
        let intents = Log::open(folder.intents())?;
        intents.append(&lost, |_| ())?;
        intents.sync()?;
    }
    fault::point("recover-uncertain-resolved");
    Ok(resolved)
}

fn uncertain(folder: &JobFolder, job: &Job, index: u32, attempt: u32) -> Result<Record> {
    let message = format!(
        "batchd died while attempt {attempt} was in flight: it may have been paid for, and is not sent again"
    );
    Ok(Record {
        request: RequestId { job: job.id, index },
        custom_id: custom_id(folder, job, index)?,
        response: None,
        error: Some(RecordError { code: "uncertain".to_owned(), message }),
    })
}

fn custom_id(folder: &JobFolder, job: &Job, index: u32) -> Result<String> {
    let mut entry = [0; LineEntry::SIZE];
    let path = folder.index();
    let place = u64::from(index) * LineEntry::SIZE as u64;
    File::open(&path)
        .and_then(|file| file.read_exact_at(&mut entry, place))
        .map_err(failed("read", &path))?;
    let entry = LineEntry::decode(&entry);
    let mut line = vec![0; entry.length as usize];
    let path = folder.input();
    File::open(&path)
        .and_then(|file| file.read_exact_at(&mut line, entry.offset))
        .map_err(failed("read", &path))?;
    // A line that can't be read any more still needs its record.
    Ok(spec::custom_id(job, &line, entry.line).unwrap_or_else(|_| format!("line-{}", entry.line)))
}
