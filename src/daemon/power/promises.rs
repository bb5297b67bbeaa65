//! What was acknowledged, and whether it was kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::{Figures, job_folder};
use crate::domain::record::JournalLine;
use crate::domain::{JobId, JobState, JobStatus, OnUncertain, RequestId};
use crate::simulate::laws::{self, Evidence, JobEvidence, Results};
use crate::store::Store;
use crate::store::folder::JobFolder;

/// A job that somebody was told of.
#[derive(Debug)]
struct Promised {
    name: String,
    on_uncertain: OnUncertain,
    input: Vec<u8>,
    /// The last status that was seen, and one that was asked for since, answered or not.
    status: JobStatus,
    asked: Option<JobStatus>,
    removal: Removal,
    /// Published files by their path below the root, once the job had ended.
    published: BTreeMap<PathBuf, Vec<u8>>,
}

/// Whether the state of a job was to be removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Removal {
    #[default]
    Not,
    /// It may be there, whole, or be gone.
    Asked,
    Done,
}

/// A spec that somebody dropped.
#[derive(Debug)]
pub(super) struct Dropped {
    pub(super) text: String,
    /// It is to become a job; else it is to be rejected.
    pub(super) is_sound: bool,
    pub(super) is_durable: bool,
}

/// What happened to one request.
#[derive(Debug, Default)]
struct Sent {
    begins: u64,
    /// Why it may be begun once more: the last begin ended without a durable record.
    may_begin: u64,
    /// It was begun and nobody was told how that ended.
    in_flight: bool,
    /// How often a cut left it as one that was begun.
    uncertain: u64,
    /// Its record was appended and is not known to be durable.
    settled: bool,
}

/// See the module's words.
#[derive(Debug, Default)]
pub(super) struct Promises {
    jobs: BTreeMap<JobId, Promised>,
    /// Journal lines that a reader has shown.
    records: BTreeMap<RequestId, Vec<u8>>,
    sent: BTreeMap<RequestId, Sent>,
    /// Lines of intents logs that a cut left, and that no later one may take.
    intents: BTreeMap<JobId, BTreeSet<Vec<u8>>>,
    /// Dropped specs by the name of their job.
    pub(super) dropped: BTreeMap<String, Dropped>,
    /// Jobs put so far, whatever came of them.
    pub(super) put: u8,
    forgotten: u64,
    pub(super) held: u64,
}

impl Promises {
    /// Notes what a store shows: what is seen there is promised.
    pub(super) fn look(&mut self, root: &Path, store: &dyn Store, states: &[JobState]) {
        for state in states {
            let id = state.job.id;
            let seen = self.jobs.contains_key(&id);
            let input = || fs::read(job_folder(root, id).join("input.jsonl")).unwrap();
            let promised = self.jobs.entry(id).or_insert_with(|| Promised {
                name: state.job.name.to_string(),
                on_uncertain: state.job.settings.on_uncertain.unwrap_or_default(),
                input: input(),
                status: state.status.clone(),
                asked: None,
                removal: Removal::Not,
                published: BTreeMap::new(),
            });
            assert!(seen || self.dropped.is_empty() || !promised.input.is_empty());
            promised.status = state.status.clone();
            if state.status.is_final() {
                if promised.published.is_empty() {
                    promised.published = files(&root.join("results").join(&promised.name), root);
                }
            } else if let Ok(mut journal) = store.journal(id) {
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut journal, &mut bytes).unwrap();
                for (index, line) in records(&bytes) {
                    let request = RequestId { job: id, index };
                    let first = self.records.entry(request).or_insert_with(|| line.clone());
                    assert!(*first == line, "{request} has two records");
                }
            }
        }
    }

    /// A status was asked for: from here on the job may have either.
    pub(super) fn ask(&mut self, id: JobId, status: JobStatus) {
        if let Some(promised) = self.jobs.get_mut(&id) {
            promised.asked = Some(status);
        }
    }

    /// A status was answered for.
    pub(super) fn answered(&mut self, id: JobId, status: JobStatus) {
        if let Some(promised) = self.jobs.get_mut(&id) {
            (promised.status, promised.asked) = (status, None);
        }
    }

    /// An ended job is about to be removed.
    pub(super) fn ask_removal(&mut self, id: JobId) {
        self.jobs.get_mut(&id).unwrap().removal = Removal::Asked;
    }

    /// It was removed, or stayed.
    pub(super) fn answered_removal(&mut self, id: JobId, is_removed: bool) {
        self.jobs.get_mut(&id).unwrap().removal = if is_removed { Removal::Done } else { Removal::Not };
    }

    /// A request is about to be sent. Panics where it must not be.
    pub(super) fn begin(&mut self, request: RequestId) {
        assert!(!self.records.contains_key(&request), "{request} has a durable record and is sent again");
        let promised = &self.jobs[&request.job];
        let sent = self.sent.entry(request).or_default();
        assert!(sent.begins == sent.may_begin, "{request} is sent again for no reason: {sent:?}");
        let most = match promised.on_uncertain {
            OnUncertain::Retry => 1,
            OnUncertain::Fail => 0,
            OnUncertain::Hold => u64::MAX,
        };
        assert!(sent.uncertain <= most, "{request} was left in flight too often and is sent again: {sent:?}");
        sent.begins += 1;
        sent.in_flight = true;
    }

    /// It was decided what becomes of a begun request: it may be sent again, unless that is a record.
    pub(super) fn settle(&mut self, request: RequestId, is_record: bool) {
        let sent = self.sent.get_mut(&request).unwrap();
        sent.in_flight = false;
        sent.settled = is_record;
        if !is_record {
            sent.may_begin = sent.begins;
        }
    }

    /// Holds what a cut left against what was promised.
    pub(super) fn judge_image(&mut self, root: &Path) {
        for (name, dropped) in &self.dropped {
            dropped.judge_rejected(name, root);
        }
        for (id, promised) in &self.jobs {
            let folder = job_folder(root, *id);
            promised.judge_published(root);
            match promised.removal {
                Removal::Done => {
                    assert!(!folder.exists(), "job {} is back", promised.name);
                    continue;
                }
                Removal::Asked if !folder.exists() => continue,
                Removal::Asked | Removal::Not => {}
            }
            assert!(folder.join("state.json").exists(), "job {} is lost", promised.name);
            let input = fs::read(folder.join("input.jsonl")).unwrap_or_default();
            assert!(input == promised.input, "the input of {} has changed", promised.name);
            let journal = fs::read(folder.join("results.log")).unwrap_or_default();
            let kept: BTreeMap<u32, Vec<u8>> = records(&journal).collect();
            for (request, line) in self.records.range(range_of(*id)) {
                assert!(kept.get(&request.index) == Some(line), "the record of {request} is lost");
            }
            // What one cut left is what the next start went by.
            for (index, line) in &kept {
                self.records.entry(RequestId { job: *id, index: *index }).or_insert_with(|| line.clone());
            }
            let intents = fs::read(folder.join("intents.log")).unwrap_or_default();
            let begun = begun(&intents);
            let intents: BTreeSet<Vec<u8>> = sound_intents(&intents).map(<[u8]>::to_vec).collect();
            let before = self.intents.entry(*id).or_default();
            assert!(before.is_subset(&intents), "intents of {} that a cut had left are lost", promised.name);
            *before = intents;
            for (request, sent) in self.sent.range_mut(range_of(*id)) {
                if kept.contains_key(&request.index) || !(sent.in_flight || sent.settled) {
                    continue;
                }
                (sent.in_flight, sent.settled, sent.may_begin) = (false, false, sent.begins);
                if begun.contains(&request.index) {
                    sent.uncertain += 1;
                } else {
                    self.forgotten += 1;
                }
            }
        }
    }

    /// Removes what a job that was put without intake, and never accepted, left: nobody else would.
    pub(super) fn sweep(root: &Path) {
        for folder in fs::read_dir(root.join("state/jobs")).into_iter().flatten() {
            let folder = folder.unwrap().path();
            let is_removed = JobFolder::is_removed(&folder);
            if !is_removed && !folder.join("claim.json").exists() && !folder.join("state.json").exists() {
                fs::remove_dir_all(folder).unwrap();
            }
        }
    }

    /// Holds what a recovery found against what was promised.
    pub(super) fn judge_recovery(&mut self, root: &Path, states: &[JobState]) {
        let found: BTreeMap<JobId, &JobState> = states.iter().map(|state| (state.job.id, state)).collect();
        let left = fs::read_dir(root.join("state/jobs")).unwrap().map(|entry| entry.unwrap().path());
        let left: Vec<PathBuf> = left.filter(|path| JobFolder::is_removed(path)).collect();
        assert!(left.is_empty(), "nobody removes what is left of removed jobs: {left:?}");
        for (id, promised) in &mut self.jobs {
            if promised.removal != Removal::Not && !found.contains_key(id) {
                promised.removal = Removal::Done;
                continue;
            }
            assert!(promised.removal != Removal::Done, "job {} is back", promised.name);
            promised.removal = Removal::Not;
            let state = found.get(id).unwrap_or_else(|| panic!("job {} is lost", promised.name));
            let may = |from: &JobStatus| leads_to(from, &state.status);
            let is_kept = may(&promised.status) || promised.asked.as_ref().is_some_and(may);
            assert!(is_kept, "{} was {} and is {}", promised.name, promised.status, state.status);
            let durable = self.records.range(range_of(*id)).count();
            let settled = state.counts.settled() as usize;
            assert!(settled >= durable, "{}: {durable} records, {settled} settled", promised.name);
        }
    }

    /// Holds the end of a world against its beginning: every job has ended.
    pub(super) fn judge_end(&self, root: &Path) {
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let mut evidence = Evidence::default();
        for (id, promised) in &self.jobs {
            let name = &promised.name;
            promised.judge_published(root);
            assert!(promised.status.is_final(), "{name} is {}", promised.status);
            let folder = root.join("results").join(name);
            let (output, errors) = (read(&folder.join("output.jsonl")), read(&folder.join("errors.jsonl")));
            let mut job =
                JobEvidence::of_batch_lines(name, str::from_utf8(&promised.input).unwrap()).unwrap();
            job.results = Some(Results::read(&output, &errors, &|_| None).unwrap());
            evidence.jobs.push(job);
            let published: BTreeSet<&str> = output.lines().chain(errors.lines()).collect();
            for (request, line) in self.records.range(range_of(*id)) {
                let line = JournalLine::parse(line.strip_suffix(b"\n").unwrap()).unwrap().published();
                assert!(
                    published.contains(str::from_utf8(&line).unwrap()),
                    "{request} is not in the results"
                );
            }
            if promised.removal == Removal::Done {
                continue;
            }
            let journal = fs::read(job_folder(root, *id).join("results.log")).unwrap();
            let mut seen = BTreeSet::new();
            for (index, _) in records(&journal) {
                assert!(seen.insert(index), "{name}: request {index} has two records");
            }
        }
        for (name, dropped) in &self.dropped {
            let same = self.jobs.values().filter(|promised| promised.name.starts_with(name.as_str()));
            let same = same.filter(|promised| promised.input == dropped.text.as_bytes()).count();
            let rejected = root.join("jobs/rejected").join(format!("{name}.jsonl"));
            let aside = usize::from(dropped.judge_rejected(name, root));
            let (jobs_due, aside_due) = if dropped.is_sound { (1, 0) } else { (0, 1) };
            let is_due = (same, aside) == (jobs_due, aside_due);
            // A cut may tear what was not durable, so that it is none any more.
            assert!(
                is_due || (!dropped.is_durable && same == 0),
                "{name}.jsonl became {same} jobs and lies {aside} times in rejected/"
            );
            assert!(aside == 0 || report_of(&rejected).is_some(), "{name}.jsonl was rejected without a word");
        }
        if let Err(violations) = laws::check(&evidence) {
            panic!("{}", violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
        }
    }

    pub(super) fn figures(&self) -> Figures {
        Figures {
            jobs: self.jobs.len() as u64,
            records: self.records.len() as u64,
            begins: self.sent.values().map(|sent| sent.begins).sum(),
            begins_max: self.sent.values().map(|sent| sent.begins).max().unwrap_or(0),
            forgotten: self.forgotten,
            held: self.held,
            ..Figures::default()
        }
    }
}

impl Dropped {
    /// Whether it lies in `rejected/`; then it is as it was dropped. A report is whole and beside what it is about.
    fn judge_rejected(&self, name: &str, root: &Path) -> bool {
        let rejected = root.join("jobs/rejected").join(format!("{name}.jsonl"));
        let text = fs::read_to_string(&rejected).ok();
        if let Some(report) = report_of(&rejected) {
            let is_whole = report.starts_with(name) && report.ends_with('\n') && !report.contains('\0');
            assert!(is_whole, "the report on {name}.jsonl is torn: {report:?}");
            assert!(text.is_some(), "there is a report on {name}.jsonl, which is not there");
        }
        assert!(
            !self.is_durable || text.as_ref().is_none_or(|text| *text == self.text),
            "{name}.jsonl has changed in rejected/"
        );
        text.is_some()
    }
}

fn report_of(rejected: &Path) -> Option<String> {
    let report = rejected.with_extension("jsonl.errors.txt");
    fs::read(report).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

impl Promised {
    fn judge_published(&self, root: &Path) {
        for (path, bytes) in &self.published {
            let now = fs::read(root.join(path)).ok();
            assert!(now.as_ref() == Some(bytes), "{} was published and has changed", path.display());
        }
    }
}

/// Whether a job may have come from one status to another by what batchd does of itself.
fn leads_to(from: &JobStatus, to: &JobStatus) -> bool {
    let ends = matches!(to, JobStatus::Finalizing | JobStatus::Completed);
    match from {
        JobStatus::InProgress => ends || matches!(to, JobStatus::InProgress | JobStatus::Held { .. }),
        JobStatus::Paused { .. } => ends || matches!(to, JobStatus::Paused { .. } | JobStatus::Held { .. }),
        JobStatus::Held { .. } => ends || matches!(to, JobStatus::Held { .. }),
        JobStatus::Finalizing => ends,
        // One that was cancelled while its results were being written is completed: nothing of it was open.
        JobStatus::Cancelling => ends || matches!(to, JobStatus::Cancelling | JobStatus::Cancelled),
        JobStatus::Expiring => matches!(to, JobStatus::Expiring | JobStatus::Expired),
        JobStatus::Completed | JobStatus::Failed { .. } | JobStatus::Cancelled | JobStatus::Expired => {
            from == to
        }
    }
}

const fn range_of(job: JobId) -> std::ops::RangeInclusive<RequestId> {
    RequestId { job, index: 0 }..=RequestId { job, index: u32::MAX }
}

/// The sound lines of a journal.
fn records(journal: &[u8]) -> impl Iterator<Item = (u32, Vec<u8>)> {
    let whole = journal.split_inclusive(|byte| *byte == b'\n');
    whole.filter_map(|line| Some((JournalLine::parse(line.strip_suffix(b"\n")?)?.index, line.to_vec())))
}

/// The requests that an intents log says were begun, with nothing said about how that ended.
fn begun(log: &[u8]) -> BTreeSet<u32> {
    let mut begun = BTreeSet::new();
    for text in sound_intents(log) {
        let words: Vec<&str> = str::from_utf8(text).unwrap().split_ascii_whitespace().collect();
        let index = words[1].parse().unwrap();
        if words[0] == "send" {
            begun.insert(index)
        } else {
            begun.remove(&index)
        };
    }
    begun
}

/// The sound lines of an intents log, without their checksums.
fn sound_intents(log: &[u8]) -> impl Iterator<Item = &[u8]> {
    let whole = log.split_inclusive(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\n"));
    whole.filter_map(|line| {
        let (text, crc) = line.len().checked_sub(8).map(|at| line.split_at(at))?;
        (format!("{:08x}", crc32c::crc32c(text)).as_bytes() == crc).then_some(text)
    })
}

/// The files of a results folder, by their path below the root.
fn files(folder: &Path, root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap())).collect()
}
