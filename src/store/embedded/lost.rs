//! Jobs that can't be read any more: shown as held, so that they are missed by nobody, and never sent from.
//!
//! What was accepted once may have been sent and paid for. So a job whose `state.json` is damaged or missing, or whose
//! input is, is neither forgotten nor begun anew: it is listed as held with what is still known of it, nothing can be
//! done with it, and its folder is left as it is for a person to look at.

use std::collections::BTreeSet;
use std::fs;

use serde::Deserialize;

use crate::domain::record::JournalLine;
use crate::domain::{Counts, Job, JobId, JobName, JobSettings, Kind, LineEntry, Timestamp};
use crate::store::Result;
use crate::store::embedded::mend::Scan;
use crate::store::folder::{JobFolder, failed};

/// What intake and people write, as far as it names the job.
#[derive(Debug, Deserialize)]
struct Named {
    name: String,
}

/// What is missing of an accepted job's input, if anything is.
pub(super) fn missing_input(folder: &JobFolder, job: &Job) -> Result<Option<String>> {
    let expected = u64::from(job.total) * LineEntry::SIZE as u64;
    for (path, name, wanted) in
        [(folder.input(), "input.jsonl", None), (folder.index(), "lines.idx", Some(expected))]
    {
        let length = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Some(format!("{name} is missing")));
            }
            Err(error) => return Err(failed("look at", &path)(error)),
        };
        if let Some(wanted) = wanted.filter(|wanted| *wanted != length) {
            return Ok(Some(format!("{name} has {length} bytes, and not {wanted}")));
        }
    }
    Ok(None)
}

/// What is known of a job whose state is not.
pub(super) fn job_of(folder: &JobFolder, id: JobId) -> Job {
    let spec_file =
        fs::read(folder.claim()).ok().and_then(|text| serde_json::from_slice::<Named>(&text).ok());
    let spec_file = spec_file.map(|claim| claim.name).unwrap_or_default();
    let spec = fs::read_to_string(folder.spec().join("job.toml")).ok();
    let name = spec.and_then(|text| toml::from_str::<Named>(&text).ok()).map(|spec| spec.name);
    // A file's name up to its first dot, as far as intake would have named the job by it.
    let name = name.as_deref().or_else(|| spec_file.split('.').next()).and_then(|name| name.parse().ok());
    let requests = fs::metadata(folder.index()).map_or(0, |metadata| metadata.len() / LineEntry::SIZE as u64);
    Job {
        id,
        name: name.unwrap_or_else(|| id_as_name(id)),
        kind: Kind::Requests,
        ending: None,
        spec_file,
        accepted_at: accepted_at(id),
        total: u32::try_from(requests).unwrap_or(Job::REQUESTS_MAX),
        queues: Vec::new(),
        content_hash: String::new(),
        settings: JobSettings::default(),
        run: None,
    }
}

/// What its journal says of a job, as far as it can be read; changes nothing.
pub(super) fn counts_of(folder: &JobFolder, total: u32) -> Counts {
    let mut counts = Counts { total, ..Counts::default() };
    let mut seen = BTreeSet::new();
    let scan = Scan::read(&folder.journal(), None, |line| {
        let record = JournalLine::parse(line).filter(|record| record.index < total);
        if let Some(record) = record.filter(|record| seen.insert(record.index)) {
            if record.is_success() {
                counts.completed += 1;
            } else {
                counts.failed += 1;
            }
        }
        record.is_some()
    });
    drop(scan);
    counts
}

/// Why the job is held, and what a person can do.
pub(super) fn why(folder: &JobFolder, what: &str) -> String {
    format!(
        "{what}; nothing is sent. Stop batchd and put a sound copy back into `{}`, or move that folder away and drop \
         the spec again, which asks for every request anew; answers that came are in its results.log",
        folder.path().display()
    )
}

fn id_as_name(id: JobId) -> JobName {
    id.to_string().parse().expect("hexadecimal digits and hyphens make a name")
}

/// A job's id begins with the time of its acceptance, in milliseconds.
fn accepted_at(id: JobId) -> Timestamp {
    let millis = id.as_bytes().iter().take(6).fold(0, |millis, byte| millis << 8 | u64::from(*byte));
    Timestamp::from_millis(millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance;

    #[test]
    fn a_job_is_named_by_what_is_left_of_it() {
        let id: JobId = "0199f3c2-5e00-7000-8000-000000000001".parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let folder = JobFolder::new(dir.path(), id);
        fs::create_dir_all(folder.spec()).unwrap();
        let job = job_of(&folder, id);
        assert_eq!((job.name.as_str(), job.total), (id.to_string().as_str(), 0));
        assert_eq!(job.accepted_at.as_millis(), 0x0199_f3c2_5e00);

        fs::write(folder.claim(), r#"{"name":"news.chat.jsonl","dropped":"jsonl","how":"moved"}"#).unwrap();
        fs::write(folder.index(), [0; 48]).unwrap();
        let job = job_of(&folder, id);
        assert_eq!((job.name.as_str(), job.spec_file.as_str(), job.total), ("news", "news.chat.jsonl", 3));

        fs::write(folder.spec().join("job.toml"), "kind = 'chat'\nname = 'nightly'\n").unwrap();
        assert_eq!(job_of(&folder, id).name.as_str(), "nightly");
        fs::write(folder.spec().join("job.toml"), "name = '../x'").unwrap();
        assert_eq!(job_of(&folder, id).name.as_str(), id.to_string());
    }

    #[test]
    fn an_input_that_is_missing_or_short_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let job = conformance::job(1, 5, &["m"], 2);
        let folder = JobFolder::new(dir.path(), job.id);
        folder.create().unwrap();
        assert_eq!(missing_input(&folder, &job).unwrap().unwrap(), "input.jsonl is missing");
        fs::write(folder.input(), "").unwrap();
        assert_eq!(missing_input(&folder, &job).unwrap().unwrap(), "lines.idx is missing");
        fs::write(folder.index(), [0; 31]).unwrap();
        assert_eq!(missing_input(&folder, &job).unwrap().unwrap(), "lines.idx has 31 bytes, and not 32");
        fs::write(folder.index(), [0; 32]).unwrap();
        assert_eq!(missing_input(&folder, &job).unwrap(), None);
    }
}
