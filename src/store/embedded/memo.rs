//! Memos: what the next attempt of a request must know of the last one, in a small file of the job's folder.

use std::fs;
use std::io;

use bytes::Bytes;

use crate::domain::RequestId;
use crate::fault;
use crate::store::embedded::EmbeddedStore;
use crate::store::folder::{failed, write_atomic};
use crate::store::{Error, Result};

impl EmbeddedStore {
    /// See [`Store::write_memo`](crate::store::Store::write_memo).
    pub(super) async fn keep_memo(&self, request: RequestId, memo: Bytes) -> Result<()> {
        self.check_open()?;
        let folder = self.job_folder(request.job);
        if !folder.path().is_dir() {
            return Err(Error::NoSuchJob(request.job));
        }
        let path = folder.memo(request.index);
        let written = tokio::task::spawn_blocking(move || write_atomic(&path, &memo)).await;
        let written = written.unwrap_or_else(|error| Err(Error::Closed(error.to_string())));
        fault::point("store-memo-written");
        match written {
            Err(error) if error.is_full() => {
                self.shared.room.failed(&error, 0);
                Err(Error::Full(error.to_string()))
            }
            written => written,
        }
    }

    /// See [`Store::memo`](crate::store::Store::memo).
    pub(super) async fn kept_memo(&self, request: RequestId) -> Result<Option<Bytes>> {
        self.check_open()?;
        let folder = self.job_folder(request.job);
        if !folder.path().is_dir() {
            return Err(Error::NoSuchJob(request.job));
        }
        let path = folder.memo(request.index);
        let read = tokio::task::spawn_blocking(move || match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        });
        read.await.unwrap_or_else(|error| Err(Error::Closed(error.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::Settlement;
    use crate::store::Store;
    use crate::store::conformance::{NOW, job, lease, put, queue};

    #[tokio::test]
    async fn memos_outlive_a_restart_and_what_was_snoozed_is_due_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let job = job(1, 5, &["m"], 1);
        let request = RequestId { job: job.id, index: 0 };
        {
            let store = EmbeddedStore::open(dir.path()).unwrap();
            put(&store, &job).await;
            let snoozed = lease(&store, "m", 1, NOW).await.pop().unwrap();
            store.write_memo(request, Bytes::from_static(b"{}")).await.unwrap();
            let due = NOW + Duration::from_mins(1);
            store.settle(snoozed, Settlement::Snooze { due, attempts: 0 }).await.unwrap();
            assert_eq!(store.lease(&queue("m"), 1, NOW).await.unwrap().next_due, Some(due));
            store.close().await.unwrap();
        }
        let store = EmbeddedStore::open(dir.path()).unwrap();
        assert_eq!(store.memo(request).await.unwrap().unwrap(), "{}");
        let lease = lease(&store, "m", 1, NOW).await.pop().unwrap();
        assert_eq!(lease.attempt, 1);
        assert_eq!(store.job(job.id).await.unwrap().counts.maybe_paid_twice, 0);
    }
}
