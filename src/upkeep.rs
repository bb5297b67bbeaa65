//! Upkeep: what must happen when time has passed, whether or not anything else does.
//!
//! Now: jobs whose deadline has passed begin to expire. Pruning finished state has its place here.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::domain::{JobState, JobStatus, Timestamp};
use crate::store::{self, Store};

/// How long a job that could not be sent to its end, because the disk is full, waits for the next try.
const RETRY: Duration = Duration::from_secs(1);

/// See the module's words.
#[derive(Debug)]
pub struct Upkeep {
    store: Arc<dyn Store>,
    clock: Clock,
}

impl Upkeep {
    pub fn new(store: Arc<dyn Store>, clock: Clock) -> Self {
        Self { store, clock }
    }

    /// Runs until `stop`. An error is the store's.
    pub async fn run(self, stop: CancellationToken) -> store::Result<()> {
        let mut news = self.store.changes();
        while !stop.is_cancelled() {
            news.mark_seen();
            let next = self.expire().await?;
            let due = async {
                match next {
                    Some(due) => tokio::time::sleep(self.clock.until(due)).await,
                    None => std::future::pending().await,
                }
            };
            // Stopping first; news may bring an earlier deadline, so it goes before the timer.
            tokio::select! { biased;
                () = stop.cancelled() => {}
                () = news.changed() => {}
                () = due => {}
            }
        }
        Ok(())
    }

    /// Sends jobs past their deadline to their end; says when the next one is due.
    async fn expire(&self) -> store::Result<Option<Timestamp>> {
        let now = self.clock.now();
        let mut next = None;
        for state in self.store.jobs().await? {
            let Some(due) = state.job.expires_at().filter(|_| may_expire(&state)) else { continue };
            if due > now {
                next = Some(next.map_or(due, |next: Timestamp| next.min(due)));
                continue;
            }
            tracing::info!(job = %state.job.id, name = %state.job.name, open = state.counts.open(), "the job's deadline has passed");
            match self.store.set_status(state.job.id, JobStatus::Expiring, now).await {
                // It ended, or was cancelled, in the meantime.
                Ok(_) | Err(store::Error::Transition { .. }) => {}
                // Nothing of it is sent meanwhile. The store ticks when there is room; a quota may not.
                Err(error) if error.is_full() => {
                    let again = now + RETRY;
                    next = Some(next.map_or(again, |next| next.min(again)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(next)
    }
}

/// A job on its way to an end is not sent to another, nor one whose requests are all settled.
fn may_expire(state: &JobState) -> bool {
    let open =
        matches!(state.status, JobStatus::InProgress | JobStatus::Paused { .. } | JobStatus::Held { .. });
    open && state.counts.open() > 0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::JobSettings;
    use crate::store::conformance;
    use crate::store::memory::MemoryStore;

    #[tokio::test(start_paused = true)]
    async fn jobs_expire_at_their_deadline_and_not_before() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let clock = Clock::simulated(conformance::NOW);
        let mut job = conformance::job(1, 5, &["m"], 2);
        job.settings = JobSettings { deadline: Some(Duration::from_hours(6)), ..job.settings };
        conformance::put(&*store, &job).await;
        let stop = CancellationToken::new();
        let upkeep = Upkeep::new(Arc::clone(&store), clock);
        let watched = async {
            tokio::time::sleep(Duration::from_hours(6) - Duration::from_secs(1)).await;
            assert_eq!(store.job(job.id).await.unwrap().status, JobStatus::InProgress);
            let mut news = store.changes();
            news.changed().await;
            assert_eq!(store.job(job.id).await.unwrap().status, JobStatus::Expiring);
            stop.cancel();
        };
        let (ran, ()) = tokio::join!(upkeep.run(stop.clone()), watched);
        ran.unwrap();
    }
}
