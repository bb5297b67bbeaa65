//! What a start makes of requests that were in flight when the process died.

use std::fs;

use super::EmbeddedStore;
use super::tests::{World, crash};
use crate::domain::{JobId, JobStatus, OnUncertain};
use crate::store::Store;
use crate::store::conformance::{self, NOW, lease, put};
use crate::store::folder::{JobFolder, temporary_name};

/// Leases everything there is, begins it, and crashes.
async fn crash_in_flight(world: &World) -> Vec<(u32, u32)> {
    let store = world.open();
    let leases = lease(&store, "m", 9, NOW).await;
    for lease in &leases {
        store.begin(lease).unwrap();
    }
    crash(store).await;
    leases.iter().map(|lease| (lease.request.index, lease.attempt)).collect()
}

async fn put_uncertain(world: &World, on_uncertain: Option<OnUncertain>) -> JobId {
    let mut job = conformance::job(1, 5, &["m"], 2);
    job.settings.on_uncertain = on_uncertain;
    let store = world.open();
    put(&store, &job).await;
    crash(store).await;
    job.id
}

/// The records of a job that were written for requests whose end nobody knows.
fn uncertain_records(store: &EmbeddedStore, id: JobId) -> Vec<(String, String)> {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut store.journal(id).unwrap(), &mut text).unwrap();
    let record = |line: &str| {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        let word = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        (word(&record["custom_id"]), word(&record["error"]["code"]))
    };
    text.lines().map(record).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_request_that_is_uncertain_is_sent_once_more_and_then_fails() {
    let world = World::new();
    let id = put_uncertain(&world, None).await;
    assert_eq!(crash_in_flight(&world).await, [(0, 1), (1, 1)]);
    // Starts without a sending in between change nothing.
    for _ in 0..2 {
        let store = world.open();
        let counts = store.job(id).await.unwrap().counts;
        assert_eq!((counts.open(), counts.maybe_paid_twice), (2, 2));
        crash(store).await;
    }
    assert_eq!(crash_in_flight(&world).await, [(0, 2), (1, 2)]);
    for _ in 0..2 {
        let store = world.open();
        assert!(lease(&store, "m", 9, NOW).await.is_empty());
        let counts = store.job(id).await.unwrap().counts;
        assert_eq!((counts.failed, counts.open(), counts.maybe_paid_twice), (2, 0, 2));
        let uncertain = |n: u32| (format!("line-{n}"), "uncertain".to_owned());
        assert_eq!(uncertain_records(&store, id), [uncertain(1), uncertain(2)]);
        crash(store).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn uncertain_requests_may_wait_for_a_person() {
    let world = World::new();
    let id = put_uncertain(&world, Some(OnUncertain::Hold)).await;
    crash_in_flight(&world).await;
    for _ in 0..2 {
        let store = world.open();
        let status = store.job(id).await.unwrap().status;
        assert!(matches!(&status, JobStatus::Held { why } if why.starts_with("2 requests")), "{status:?}");
        assert!(lease(&store, "m", 9, NOW).await.is_empty());
        crash(store).await;
    }
    let store = world.open();
    store.set_status(id, JobStatus::InProgress, NOW).await.unwrap();
    assert_eq!(lease(&store, "m", 9, NOW).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_start_that_dies_before_it_has_held_a_job_sends_nothing_at_the_next() {
    let world = World::new();
    let id = put_uncertain(&world, Some(OnUncertain::Hold)).await;
    crash_in_flight(&world).await;
    // Where the job's status is written first: nothing can be put there.
    let temporary = temporary_name(&JobFolder::new(world.dir.path(), id).state());
    fs::create_dir(&temporary).unwrap();
    assert!(EmbeddedStore::open(world.dir.path()).is_err());
    fs::remove_dir(&temporary).unwrap();
    let store = world.open();
    assert!(matches!(store.job(id).await.unwrap().status, JobStatus::Held { .. }));
    assert!(lease(&store, "m", 9, NOW).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn uncertain_requests_may_fail_at_once() {
    let world = World::new();
    let id = put_uncertain(&world, Some(OnUncertain::Fail)).await;
    crash_in_flight(&world).await;
    let store = world.open();
    let counts = store.job(id).await.unwrap().counts;
    assert_eq!((counts.failed, counts.maybe_paid_twice), (2, 0));
    assert_eq!(uncertain_records(&store, id).len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_a_held_job_had_in_flight_is_sent_once_more_at_most_too() {
    let world = World::new();
    let id = put_uncertain(&world, None).await;
    let store = world.open();
    for lease in lease(&store, "m", 9, NOW).await {
        store.begin(&lease).unwrap();
    }
    store.set_status(id, JobStatus::Held { why: "x".to_owned() }, NOW).await.unwrap();
    crash(store).await;

    let store = world.open();
    let state = store.job(id).await.unwrap();
    assert_eq!((state.status, state.counts.maybe_paid_twice), (JobStatus::Held { why: "x".to_owned() }, 2));
    store.set_status(id, JobStatus::InProgress, NOW).await.unwrap();
    crash(store).await;
    assert_eq!(crash_in_flight(&world).await, [(0, 2), (1, 2)]);
    assert_eq!(world.open().job(id).await.unwrap().counts.failed, 2);
}
