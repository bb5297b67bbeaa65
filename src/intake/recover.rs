//! At start: finishes or undoes what a crash left half done between the jobs folder and the store.
//!
//! Every step here may itself be cut short; the next run goes on from there. A job's folder that makes no
//! sense is left as it is, with a warning: a person's only copy of a spec may lie in it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tracing::{info, warn};

use super::claim::{Claim, Note};
use super::dir::Dir;
use super::{Error, failed, reject};
use crate::diag::printable;
use crate::disk;
use crate::domain::JobId;
use crate::store::folder::{self, JobFolder};

/// What could not be finished or undone.
#[derive(Debug, Default)]
pub(super) struct Unmended {
    /// About which the log was told.
    told: BTreeSet<JobId>,
    /// Of the last run, what may work the next time, and why it did not.
    pub(super) later: Vec<Error>,
}

impl Unmended {
    fn add(&mut self, id: JobId, error: Error) {
        if self.told.insert(id) {
            warn!(job = %id, %error, "a half-done intake could not be undone");
        }
        if !error.is_lasting() {
            self.later.push(error);
        }
    }
}

/// Goes through `state/jobs/`. Nothing else may make jobs' folders there meanwhile.
pub(super) fn recover(jobs: &Arc<Dir>, state: &Path, unmended: &mut Unmended) -> Result<(), Error> {
    unmended.later.clear();
    reject::publish_reports(jobs).map_err(failed("read", jobs.path()))?;
    let folders = state.join("jobs");
    let entries = match fs::read_dir(&folders) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("read", &folders)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed("read", &folders))?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<JobId>().ok()) else {
            continue;
        };
        // One folder that can't be mended must not keep the others, or the daemon, from going on.
        if let Err(error) = mend(jobs, JobFolder::at(entry.path())) {
            unmended.add(id, error);
        }
    }
    Ok(())
}

fn mend(jobs: &Arc<Dir>, job: JobFolder) -> Result<(), Error> {
    let accepted = exists(&job.state())?;
    if !accepted && job.was_accepted()? {
        // The store shows it as held. Put back, it would run, and be paid for, anew.
        return Ok(());
    }
    let claim = job.claim();
    let note = match fs::read(&claim) {
        Ok(text) => serde_json::from_slice::<Note>(&text).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound && accepted => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return remove_unused(&job),
        Err(error) => Err(error),
    };
    let note = note.map_err(failed("read", &claim))?;
    let name = note.name.clone();
    let claim = Claim::resume(jobs, job, note);
    if accepted {
        return claim.settle();
    }
    let is_made = claim.is_made();
    claim.put_back()?;
    if is_made {
        info!(schedule = %printable(&name), "a run that was interrupted while it was made is made again");
        return Ok(());
    }
    info!(file = %printable(&name), "a spec whose intake was interrupted waits in the jobs folder again");
    Ok(())
}

/// A folder from before its claim was written holds nothing but, perhaps, the unfinished note.
fn remove_unused(job: &JobFolder) -> Result<(), Error> {
    let temporary = folder::temporary_name(&job.claim());
    match disk::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &temporary)(error));
        }
        _ => {}
    }
    disk::remove_dir(job.path()).map_err(failed("remove", job.path()))
}

fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(failed("look at", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::{Diagnostic, Report};
    use crate::intake::claim::{Dropped, Taken};
    use crate::intake::fixture::{Root, id, names};
    use crate::intake::scan::Candidate;

    /// Recovers twice: what a crash in between would do must change nothing.
    fn recover_twice(root: &Root) {
        for _ in 0..2 {
            recover(&root.dir(), &root.settings.state, &mut Unmended::default()).unwrap();
        }
    }

    fn claim(root: &Root, name: &str, dropped: Dropped) -> Claim {
        let candidate = Candidate::now(&root.dir(), name, dropped);
        let job = JobFolder::new(&root.settings.state, id(1));
        match Claim::take(&root.dir(), job, name, (&candidate, dropped)).unwrap() {
            Taken::Claimed(claim) => *claim,
            other @ (Taken::Gone | Taken::Changed) => panic!("{other:?}"),
        }
    }

    fn job(root: &Root) -> JobFolder {
        let job = JobFolder::new(&root.settings.state, id(1));
        job.create().unwrap();
        job
    }

    fn note(name: &str) -> String {
        format!(r#"{{"name":"{name}","dropped":"jsonl","how":"moved"}}"#)
    }

    #[test]
    fn a_death_before_the_rename_leaves_the_spec_where_it_is() {
        let steps: [fn(&JobFolder); 3] = [
            |_| {},
            |job| fs::write(folder::temporary_name(&job.claim()), "{").unwrap(),
            |job| fs::write(job.claim(), note("a.jsonl")).unwrap(),
        ];
        for (step, prepare) in steps.iter().enumerate() {
            let root = Root::new();
            root.drop_file("a.jsonl", "one");
            prepare(&job(&root));
            recover_twice(&root);
            assert_eq!(
                (root.waiting(), root.job_folders().len()),
                (vec!["a.jsonl".into()], 0),
                "step {step}"
            );
        }
    }

    #[test]
    fn a_death_between_claim_and_acceptance_puts_the_spec_back() {
        let steps: [fn(&JobFolder); 5] = [
            |_| {},
            |job| fs::write(job.index(), "half an ind").unwrap(),
            |job| [job.journal(), job.intents()].map(|log| fs::write(log, "").unwrap()).into_iter().collect(),
            |job| fs::write(folder::temporary_name(&job.state()), "{").unwrap(),
            |job| fs::write(folder::temporary_name(&job.claim()), "{").unwrap(),
        ];
        for (name, dropped) in
            [("a.jsonl", Dropped::Jsonl), ("b.toml", Dropped::Toml), ("c", Dropped::Folder)]
        {
            for (step, prepare) in steps.iter().enumerate() {
                let root = Root::new();
                let path = root.drop_file(if name == "c" { "c/job.toml" } else { name }, "one");
                let claim = claim(&root, name, dropped);
                prepare(&claim.job);
                if dropped != Dropped::Jsonl {
                    fs::write(claim.job.input(), "half a li").unwrap();
                }
                assert!(!path.exists());
                recover_twice(&root);
                assert_eq!(fs::read_to_string(&path).unwrap(), "one", "{name} at step {step}");
                assert!(root.job_folders().is_empty(), "{name} at step {step}");
            }
        }
    }

    #[test]
    fn a_death_after_acceptance_keeps_the_job_and_ends_the_claim() {
        let root = Root::new();
        root.drop_file("a.jsonl", "one");
        let claim = claim(&root, "a.jsonl", Dropped::Jsonl);
        fs::write(claim.job.state(), "{}").unwrap();
        recover_twice(&root);
        assert!(root.waiting().is_empty());
        assert_eq!(names(claim.job.path()), ["input.jsonl", "state.json"]);
    }

    #[test]
    fn a_death_while_putting_back_or_rejecting_loses_nothing() {
        let root = Root::new();
        let path = root.drop_file("a.jsonl", "one");
        let claim = claim(&root, "a.jsonl", Dropped::Jsonl);
        fs::rename(claim.job.input(), &path).unwrap();
        recover_twice(&root);
        assert_eq!((root.waiting(), root.job_folders().len()), (vec!["a.jsonl".into()], 0));

        let report: Report = Diagnostic::error("a.jsonl", 1, 1, "bad").into();
        let rejected = root.settings.jobs.join("rejected");
        let claim = self::claim(&root, "a.jsonl", Dropped::Jsonl);
        fs::write(rejected.join(".a.jsonl.errors.txt.tmp"), report.to_string()).unwrap();
        fs::rename(claim.job.input(), rejected.join("a.jsonl")).unwrap();
        recover_twice(&root);
        assert_eq!(root.rejected(), ["a.jsonl", "a.jsonl.errors.txt"]);
        assert!(root.waiting().is_empty() && root.job_folders().is_empty());
    }

    #[test]
    fn a_spec_that_was_copied_runs_once_wherever_the_crash_came() {
        for (accepted, renamed) in [(false, true), (false, false), (true, true), (true, false)] {
            let root = Root::new();
            let path = root.drop_file("a.jsonl", "one");
            fs::hard_link(&path, root.temp.path().join("other")).unwrap();
            let claim = claim(&root, "a.jsonl", Dropped::Jsonl);
            let hidden = root.settings.jobs.join(format!(".taken-{}", id(1)));
            assert!(claim.job.input().exists() && hidden.exists());
            match (accepted, renamed) {
                (true, _) => fs::write(claim.job.state(), "{}").unwrap(),
                (false, true) => {}
                (false, false) => fs::rename(&hidden, &path).unwrap(),
            }
            if accepted && !renamed {
                fs::remove_file(&hidden).unwrap();
            }
            recover_twice(&root);
            let waiting: &[&str] = if accepted { &[] } else { &["a.jsonl"] };
            assert_eq!(root.waiting(), waiting);
            assert_eq!(claim.job.input().exists(), accepted);
            assert!(!claim.job.claim().exists());
        }
    }

    #[test]
    fn a_spec_of_which_something_was_sent_is_not_put_back_without_its_state() {
        let root = Root::new();
        root.drop_file("a.jsonl", "one");
        let claim = claim(&root, "a.jsonl", Dropped::Jsonl);
        fs::write(claim.job.intents(), "send 0 1 ").unwrap();
        recover_twice(&root);
        assert!(root.waiting().is_empty());
        assert_eq!(names(claim.job.path()), ["claim.json", "input.jsonl", "intents.log"]);
    }

    #[test]
    fn a_folder_that_makes_no_sense_is_left_alone() {
        let root = Root::new();
        let strange = job(&root);
        fs::write(strange.input(), "perhaps somebody's only copy").unwrap();
        let damaged = JobFolder::new(&root.settings.state, id(2));
        damaged.create().unwrap();
        fs::write(damaged.claim(), "not json").unwrap();
        fs::create_dir(root.settings.state.join("jobs/not-a-job")).unwrap();
        recover_twice(&root);
        assert!(strange.input().exists() && damaged.claim().exists());
        assert!(root.settings.state.join("jobs/not-a-job").exists());
    }
}
