//! The jobs there are already: which names are taken, and which content ran before.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use super::name::NUMBERS_MAX;
use crate::domain::{Job, JobName, JobState};

/// Names and contents of all jobs in the store.
#[derive(Debug, Default)]
pub(super) struct Known {
    names: BTreeSet<JobName>,
    contents: BTreeMap<String, JobName>,
}

impl Known {
    pub(super) fn of(jobs: &[JobState]) -> Self {
        let mut known = Self::default();
        for state in jobs {
            known.add(&state.job);
        }
        known
    }

    pub(super) fn add(&mut self, job: &Job) {
        self.names.insert(job.name.clone());
        self.contents.insert(job.content_hash.clone(), job.name.clone());
    }

    /// The newest job that had the same content.
    pub(super) fn same_content(&self, content_hash: &str) -> Option<&JobName> {
        self.contents.get(content_hash)
    }

    /// `wanted`, or the first `wanted-2`, `-3`, … that neither a job nor anything in the results folder has.
    pub(super) async fn free_name(&self, wanted: &JobName, results: &Path) -> io::Result<JobName> {
        for number in 1..NUMBERS_MAX {
            let name = wanted.numbered(number);
            if self.names.contains(&name) {
                continue;
            }
            match tokio::fs::symlink_metadata(results.join(name.as_str())).await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(name),
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> JobName {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn names_of_jobs_and_of_results_are_taken() {
        let results = tempfile::tempdir().unwrap();
        let mut known = Known::default();
        known.names.insert(name("news"));
        known.names.insert(name("news-3"));
        std::fs::create_dir(results.path().join("news-2")).unwrap();
        std::os::unix::fs::symlink("nowhere", results.path().join("news-4")).unwrap();
        let free = known.free_name(&name("news"), results.path()).await.unwrap();
        assert_eq!(free.as_str(), "news-5");
        let free = known.free_name(&name("other"), &results.path().join("missing")).await.unwrap();
        assert_eq!(free.as_str(), "other");
    }
}
