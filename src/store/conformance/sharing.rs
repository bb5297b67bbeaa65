//! How the jobs of a queue share it.

use std::time::Duration;

use crate::domain::{JobStatus, PauseReason};
use crate::store::conformance::{NOW, answer, job, later, lease, put, queue, until_settled};
use crate::store::{Lease, Store};

/// How many of the leases are those of the job with this number.
fn count(leases: &[Lease], number: u8) -> usize {
    leases.iter().filter(|lease| *lease.request.job.as_bytes() == [number; 16]).count()
}

pub(super) async fn jobs_share_a_queue_by_their_weights(store: &dyn Store) {
    put(store, &job(1, 5, &["m"], 100)).await;
    put(store, &job(2, 5, &["m"], 3)).await;
    put(store, &job(3, 9, &["m"], 2)).await;
    let leased = lease(store, "m", 10, NOW).await;
    assert_eq!([1, 2, 3].map(|n| count(&leased, n)), [5, 3, 2]);
    put(store, &job(4, 9, &["m"], 100)).await;
    let leased = lease(store, "m", 51, NOW).await;
    assert_eq!([1, 4].map(|n| count(&leased, n)), [3, 48], "four steps of priority are 16 times as much");
}

pub(super) async fn a_job_that_comes_late_gets_its_share_at_once(store: &dyn Store) {
    put(store, &job(1, 5, &["m"], 500)).await;
    assert_eq!(lease(store, "m", 100, NOW).await.len(), 100);
    put(store, &job(2, 5, &["m"], 50)).await;
    let leased = lease(store, "m", 16, NOW).await;
    assert_eq!([1, 2].map(|n| count(&leased, n)), [8, 8]);
    let turns = leased.chunk_by(|a, b| a.request.job == b.request.job);
    assert_eq!(turns.map(<[Lease]>::len).collect::<Vec<_>>(), [4; 4], "neighbours stay neighbours");
}

pub(super) async fn a_deadline_that_nears_lifts_its_job(store: &dyn Store) {
    put(store, &job(1, 5, &["m"], 100)).await;
    let mut urgent = job(2, 5, &["m"], 100);
    urgent.settings.deadline = Some(Duration::from_secs(1_000));
    put(store, &urgent).await;
    let at = |seconds| NOW + Duration::from_secs(seconds);
    let leased = lease(store, "m", 8, at(0)).await;
    assert_eq!([1, 2].map(|n| count(&leased, n)), [4, 4]);
    let leased = lease(store, "m", 10, at(450)).await;
    assert_eq!([1, 2].map(|n| count(&leased, n)), [2, 8], "it needs twice the time that is left");
    let leased = lease(store, "m", 8, at(1_000)).await;
    assert_eq!([1, 2].map(|n| count(&leased, n)), [4, 4], "it is over");
}

pub(super) async fn retries_that_are_due_starve_no_other_job(store: &dyn Store) {
    put(store, &job(1, 5, &["m"], 50)).await;
    for failed in lease(store, "m", 20, NOW).await {
        store.settle(failed, later(1, 1)).await.unwrap();
    }
    put(store, &job(2, 5, &["m"], 50)).await;
    let leased = lease(store, "m", 20, NOW + Duration::from_secs(1)).await;
    assert_eq!([1, 2].map(|n| count(&leased, n)), [10, 10]);
    let retries = leased.iter().filter(|lease| lease.attempt == 2).count();
    assert_eq!(retries, 10, "they go first in their own job");
}

pub(super) async fn rivals_are_the_jobs_that_have_something_to_send(store: &dyn Store) {
    let jobs = [job(1, 5, &["m", "n"], 2), job(2, 5, &["m"], 1), job(3, 5, &["n"], 1)];
    for job in &jobs {
        put(store, job).await;
    }
    let [first, second, third] = jobs.map(|job| job.id);
    let rivals = async |model| store.rivals(&queue(model)).await.unwrap();
    assert_eq!((rivals("m").await, rivals("n").await), (vec![first, second], vec![first, third]));
    let leased = lease(store, "m", 2, NOW).await;
    assert_eq!(rivals("m").await, [first, second], "what is leased may come back");
    for lease in leased {
        let settlement = answer(&lease);
        store.settle(lease, settlement).await.unwrap();
    }
    until_settled(store, second, 1).await;
    assert_eq!(
        rivals("m").await,
        [first],
        "its other requests are for another queue, but nobody looks so closely"
    );
    let paused = JobStatus::Paused { reason: PauseReason::User };
    store.set_status(first, paused, NOW).await.unwrap();
    assert_eq!((rivals("m").await, rivals("n").await), (vec![], vec![third]));
}
