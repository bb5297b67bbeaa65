//! `state.json`: a job and its status, replaced as a whole. Its presence means that the job is accepted.

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
    /// None if the job was never accepted.
    pub(super) fn read(folder: &JobFolder) -> Result<Option<Self>> {
        let path = folder.state();
        if !path.try_exists().map_err(failed("look at", &path))? {
            return Ok(None);
        }
        let bytes = fs::read(&path).map_err(failed("read", &path))?;
        let state = serde_json::from_slice(&bytes);
        state.map(Some).map_err(|error| Error::Damaged { path, what: error.to_string() })
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
        let folder = JobFolder::at(dir.path().to_owned());
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
}
