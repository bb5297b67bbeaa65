//! `state.json`: a job and its status, replaced as a whole. Its presence means that the job is accepted.

use std::ffi::OsStr;
use std::fs;

use serde::{Deserialize, Serialize};

use crate::domain::{Counts, Job, JobStatus, Timestamp};
use crate::fault;
use crate::store::folder::{JobFolder, failed, write_atomic};
use crate::store::{Error, Result};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) job: Job,
    #[serde(flatten)]
    pub(super) status: JobStatus,
    #[serde(default)]
    pub(super) finished_at: Option<Timestamp>,
    /// Of a job that has ended: nothing else has to be read to list it.
    #[serde(default)]
    pub(super) counts: Option<Counts>,
}

impl State {
    /// None if there is none. [`Error::Damaged`] if it can't be understood, or is another job's.
    pub(super) fn read(folder: &JobFolder) -> Result<Option<Self>> {
        let path = folder.state();
        if !path.try_exists().map_err(failed("look at", &path))? {
            return Ok(None);
        }
        let bytes = fs::read(&path).map_err(failed("read", &path))?;
        let damaged = |what| Error::Damaged { path: path.clone(), what };
        let state: Self = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if folder.path().file_name() != Some(OsStr::new(&state.job.id.to_string())) {
            return Err(damaged(format!("it is that of job {}", state.job.id)));
        }
        Ok(Some(state))
    }

    /// Durable when it returns.
    pub(super) fn write(&self, folder: &JobFolder) -> Result<()> {
        let bytes =
            serde_json::to_vec_pretty(self).expect("a job's state has only strings, numbers and lists");
        write_atomic(&folder.state(), &bytes)?;
        fault::point("store-state-written");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::PauseReason;
    use crate::store::conformance;

    #[test]
    fn every_status_survives() {
        let dir = tempfile::tempdir().unwrap();
        let folder = JobFolder::new(dir.path(), conformance::job(1, 5, &["m"], 3).id);
        folder.create().unwrap();
        assert_eq!(State::read(&folder).unwrap(), None);
        let statuses = [
            JobStatus::InProgress,
            JobStatus::Paused { reason: PauseReason::User },
            JobStatus::Held { why: "x".to_owned() },
            JobStatus::Expiring,
            JobStatus::Completed,
        ];
        for status in statuses {
            let job = conformance::job(1, 5, &["m"], 3);
            let state = State { job, status, finished_at: Some(conformance::NOW), counts: None };
            state.write(&folder).unwrap();
            assert_eq!(State::read(&folder).unwrap(), Some(state));
        }
    }

    #[test]
    fn what_is_no_state_or_another_jobs_is_told_apart_from_none() {
        let dir = tempfile::tempdir().unwrap();
        let job = conformance::job(1, 5, &["m"], 3);
        let folder = JobFolder::new(dir.path(), job.id);
        folder.create().unwrap();
        let other = conformance::job(2, 5, &["m"], 3);
        let other = State { job: other, status: JobStatus::InProgress, finished_at: None, counts: None };
        for bytes in [Vec::new(), vec![0; 700], b"{\"job\":{".to_vec(), serde_json::to_vec(&other).unwrap()] {
            fs::write(folder.state(), bytes).unwrap();
            assert!(matches!(State::read(&folder), Err(Error::Damaged { .. })));
        }
    }
}
