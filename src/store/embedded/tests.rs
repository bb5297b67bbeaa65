//! The embedded store against the suite of all stores, and what only it can break: its files.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::{Content, EmbeddedStore, ladder};
use crate::disk::Act;
use crate::disk::probe::{self, Probe, Verdict};
use crate::domain::{Job, JobId, JobStatus, Settlement};
use crate::store::conformance::{self, NOW, answer, failure, journal_indexes, lease, put, until_settled};
use crate::store::folder::JobFolder;
use crate::store::{Error, Store};

/// A store in a folder that lives as long as it.
#[derive(Debug)]
pub(super) struct World {
    pub(super) dir: TempDir,
}

impl World {
    pub(super) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(super) fn open(&self) -> EmbeddedStore {
        EmbeddedStore::open(self.dir.path()).unwrap()
    }

    pub(super) fn state(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn folder(&self, job: &Job) -> JobFolder {
        JobFolder::new(self.state(), job.id)
    }

    pub(super) fn content(&self) -> Content {
        Content::read(self.state()).unwrap()
    }

    /// The index by itself: sled, of which the last thread of another handle may still hold the lock for a moment.
    pub(super) fn sled(&self) -> sled::Db {
        ladder::open(&self.state().join("sled"), &self.state().join("corrupt")).unwrap().db
    }

    pub(super) fn remove_index(&self) {
        fs::remove_dir_all(self.state().join("sled")).unwrap();
    }

    pub(super) fn journal(&self, id: JobId) -> std::path::PathBuf {
        self.dir.path().join("jobs").join(id.to_string()).join("results.log")
    }
}

/// Leases `n` requests and answers them.
pub(super) async fn answer_some(store: &EmbeddedStore, n: usize) {
    for lease in lease(store, "m", n, NOW).await {
        let settlement = answer(&lease);
        store.settle(lease, settlement).await.unwrap();
    }
}

/// A job of which `n` of `total` requests are answered, closed in order.
pub(super) async fn answered(n: u32, total: u32) -> (World, Job) {
    let world = World::new();
    let job = conformance::job(1, 5, &["m"], total);
    let store = world.open();
    put(&store, &job).await;
    answer_some(&store, n as usize).await;
    until_settled(&store, job.id, n).await;
    store.close().await.unwrap();
    drop(store);
    (world, job)
}

/// Drops the store as a crash would: leases open, the index not flushed.
pub(super) async fn crash(store: EmbeddedStore) {
    let threads = std::mem::take(&mut *store.threads.lock().unwrap());
    drop(store);
    tokio::task::spawn_blocking(|| threads.into_iter().for_each(|thread| thread.join().unwrap()))
        .await
        .unwrap();
}

/// A copy of a state without its index.
pub(super) fn files_alone(state: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for job in fs::read_dir(state.join("jobs")).unwrap() {
        let job = job.unwrap();
        let folder = copy.path().join("jobs").join(job.file_name());
        fs::create_dir_all(&folder).unwrap();
        for file in fs::read_dir(job.path()).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), folder.join(file.file_name())).unwrap();
        }
    }
    copy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn behaves_as_a_store() {
    let worlds = std::sync::Mutex::new(Vec::new());
    conformance::exercise(async || {
        let world = World::new();
        let store = Arc::new(world.open());
        worlds.lock().unwrap().push(world);
        store as Arc<dyn Store>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn second_owner_is_refused() {
    let world = World::new();
    let _first = world.open();
    assert!(matches!(EmbeddedStore::open(world.dir.path()), Err(Error::Locked { pid: Some(_), .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn settled_requests_stay_settled_over_a_restart() {
    let world = World::new();
    let job = conformance::job(1, 5, &["m"], 3000);
    let store = world.open();
    put(&store, &job).await;
    answer_some(&store, 1500).await;
    for lease in lease(&store, "m", 10, NOW).await {
        let settlement = failure(&lease);
        store.settle(lease, settlement).await.unwrap();
    }
    until_settled(&store, job.id, 1510).await;
    store.close().await.unwrap();
    drop(store);

    let store = world.open();
    let state = store.job(job.id).await.unwrap();
    assert_eq!((state.counts.completed, state.counts.failed, state.leased), (1500, 10, 0));
    let left = lease(&store, "m", 9999, NOW).await;
    assert!(left.iter().map(|lease| lease.request.index).eq(1510..3000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_crash_voids_leases_and_keeps_attempts() {
    let world = World::new();
    let job = conformance::job(1, 5, &["m"], 4);
    let store = world.open();
    put(&store, &job).await;
    let mut leases = lease(&store, "m", 3, NOW).await;
    for lease in &leases {
        store.begin(lease).unwrap();
    }
    let retried = leases.remove(0);
    store.settle(retried, Settlement::Retry { due: NOW, attempts: 2, maybe_paid: false }).await.unwrap();
    crash(store).await;

    let store = world.open();
    let leases = lease(&store, "m", 9, NOW).await;
    let mut seen: Vec<_> = leases.iter().map(|lease| (lease.request.index, lease.attempt)).collect();
    seen.sort_unstable();
    assert_eq!(seen, [(0, 3), (1, 2), (2, 2), (3, 1)], "in flight counts as an attempt, fresh does not");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_lost_index_is_rebuilt_from_the_files() {
    let world = World::new();
    let job = conformance::job(1, 5, &["m"], 2500);
    let store = world.open();
    put(&store, &job).await;
    answer_some(&store, 1200).await;
    let retried = lease(&store, "m", 1, NOW).await.remove(0);
    store.begin(&retried).unwrap();
    store.settle(retried, Settlement::Retry { due: NOW, attempts: 1, maybe_paid: false }).await.unwrap();
    until_settled(&store, job.id, 1200).await;
    store.close().await.unwrap();
    drop(store);
    fs::remove_dir_all(world.dir.path().join("sled")).unwrap();

    let store = world.open();
    let state = store.job(job.id).await.unwrap();
    assert_eq!((state.counts.completed, state.waiting), (1200, 1));
    let left = lease(&store, "m", 9999, NOW).await;
    assert_eq!((left[0].request.index, left[0].attempt), (1200, 2));
    assert!(left[1..].iter().map(|lease| lease.request.index).eq(1201..2500));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn records_beyond_the_acknowledged_length_are_settled_again() {
    let (world, job) = answered(4, 10).await;
    // An answer whose index update was lost: it is in the journal alone.
    let request = crate::domain::RequestId { job: job.id, index: 7 };
    let forged = crate::store::Lease { request, attempt: 1, epoch: 0 };
    let Settlement::Complete(record) = answer(&forged) else { panic!("an answer completes") };
    let mut journal = OpenOptions::new().append(true).open(world.journal(job.id)).unwrap();
    journal.write_all(&record.to_journal_line(1)).unwrap();

    let store = world.open();
    assert_eq!(store.job(job.id).await.unwrap().counts.completed, 5);
    let left = lease(&store, "m", 99, NOW).await;
    assert!(left.iter().map(|lease| lease.request.index).eq([4, 5, 6, 8, 9]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_torn_end_is_cut_off_and_kept_aside() {
    let (world, job) = answered(2, 5).await;
    let mut journal = OpenOptions::new().append(true).open(world.journal(job.id)).unwrap();
    journal.write_all(b"{\"id\":\"batch_req_torn").unwrap();

    let store = world.open();
    let aside = world.journal(job.id).with_file_name("results.torn.1");
    assert_eq!(fs::read(aside).unwrap(), b"{\"id\":\"batch_req_torn");
    answer_some(&store, 99).await;
    until_settled(&store, job.id, 5).await;
    assert_eq!(journal_indexes(&store, job.id), [0, 1, 2, 3, 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn damage_in_the_middle_holds_the_job_and_sends_nothing() {
    let world = World::new();
    let job = conformance::job(1, 5, &["m"], 5);
    let store = world.open();
    put(&store, &job).await;
    answer_some(&store, 3).await;
    until_settled(&store, job.id, 3).await;
    store.close().await.unwrap();
    drop(store);
    let path = world.journal(job.id);
    let mut bytes = fs::read(&path).unwrap();
    bytes[10] ^= 0x40;
    fs::write(&path, bytes).unwrap();
    fs::remove_dir_all(world.dir.path().join("sled")).unwrap();

    let store = world.open();
    let state = store.job(job.id).await.unwrap();
    assert!(matches!(state.status, JobStatus::Held { why } if why.contains("byte 0")));
    assert!(lease(&store, "m", 9, NOW).await.is_empty());
    store.close().await.unwrap();
    drop(store);

    // Over a restart, and when a person lets it go on: the answers behind the damage are not asked for again.
    let store = world.open();
    let state = store.job(job.id).await.unwrap();
    assert!(matches!(state.status, JobStatus::Held { .. }));
    assert_eq!(state.counts.completed, 2);
    store.set_status(job.id, JobStatus::InProgress, NOW).await.unwrap();
    let left = lease(&store, "m", 9, NOW).await;
    assert!(left.iter().map(|lease| lease.request.index).eq([0, 3, 4]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_request_that_the_index_lost_is_found_again() {
    let world = World::new();
    let job = conformance::job(1, 5, &["m"], 300);
    let store = world.open();
    put(&store, &job).await;
    answer_some(&store, 2).await;
    let retried = lease(&store, "m", 1, NOW).await.remove(0);
    store.begin(&retried).unwrap();
    store.settle(retried, Settlement::Retry { due: NOW, attempts: 1, maybe_paid: false }).await.unwrap();
    until_settled(&store, job.id, 2).await;
    store.close().await.unwrap();
    drop(store);
    {
        let db = world.sled();
        let tree = db.open_tree("queue").unwrap();
        tree.remove(super::keys::waiting(job.id, 0, NOW, 2)).unwrap().unwrap();
        db.flush().unwrap();
    }

    let store = world.open();
    let state = store.job(job.id).await.unwrap();
    assert_eq!((state.counts.completed, state.waiting), (2, 1));
    let left = lease(&store, "m", 999, NOW).await;
    assert_eq!((left.len(), left[0].request.index, left[0].attempt), (298, 2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn statuses_and_counts_of_ended_jobs_survive() {
    let world = World::new();
    let (first, second) = (conformance::job(1, 5, &["m"], 2), conformance::job(2, 5, &["m"], 2));
    let store = world.open();
    put(&store, &first).await;
    put(&store, &second).await;
    store.set_status(first.id, JobStatus::Cancelling, NOW).await.unwrap();
    store.set_status(first.id, JobStatus::Cancelled, NOW).await.unwrap();
    store.set_status(second.id, JobStatus::Held { why: "x".to_owned() }, NOW).await.unwrap();
    crash(store).await;

    let store = world.open();
    let states = store.jobs().await.unwrap();
    assert_eq!((states[0].status.clone(), states[0].counts.failed), (JobStatus::Cancelled, 2));
    assert_eq!(states[0].finished_at, Some(NOW));
    assert_eq!(states[1].status, JobStatus::Held { why: "x".to_owned() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_store_that_failed_can_be_closed() {
    let world = World::new();
    let store = world.open();
    store.shared.close("the disk is full");
    let closed = tokio::time::timeout(Duration::from_secs(30), store.close()).await;
    assert!(matches!(closed.expect("closing ends"), Err(Error::Closed(why)) if why == "the disk is full"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn answers_that_come_in_after_the_store_failed_are_kept() {
    let world = World::new();
    let job = conformance::job(1, 5, &["m"], 3);
    let store = world.open();
    put(&store, &job).await;
    let mut leases = lease(&store, "m", 2, NOW).await;
    let (second, first) = (leases.pop().unwrap(), leases.pop().unwrap());
    store.begin(&first).unwrap();
    store.shared.close("the index (sled) failed");
    assert!(matches!(store.begin(&second), Err(Error::Closed(_))), "nothing more is sent");
    let settlement = answer(&first);
    assert!(matches!(store.settle(first, settlement).await, Err(Error::Closed(_))));
    assert!(store.close().await.is_err());
    drop(store);

    let store = world.open();
    assert_eq!(store.job(job.id).await.unwrap().counts.completed, 1);
    assert_eq!(journal_indexes(&store, job.id), [0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_released_attempt_is_not_uncertain_after_a_crash() {
    let world = World::new();
    let job = conformance::job(1, 5, &["m"], 2);
    let store = world.open();
    put(&store, &job).await;
    for lease in lease(&store, "m", 2, NOW).await {
        if lease.request.index == 0 {
            store.begin(&lease).unwrap();
        }
        store.settle(lease, Settlement::Release).await.unwrap();
    }
    crash(store).await;

    let store = world.open();
    let leases = lease(&store, "m", 9, NOW).await;
    let seen: Vec<_> = leases.iter().map(|lease| (lease.request.index, lease.attempt)).collect();
    assert_eq!(seen, [(0, 1), (1, 1)], "a refused key uses up no attempt");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn more_jobs_than_files_stay_open_for_keep_every_record() {
    let world = World::new();
    let store = world.open();
    let jobs: Vec<_> = (0..super::OPEN_JOBS_MAX + 20)
        .map(|n| {
            let mut job = conformance::job(u8::try_from(n % 200).unwrap(), 5, &["m"], 2);
            job.id = JobId::from_bytes([u8::try_from(n).unwrap(); 16]);
            job
        })
        .collect();
    for job in &jobs {
        put(&store, job).await;
    }
    for _ in 0..2 {
        // One request of each job: their files are opened in turn, and closed in between.
        let leases = lease(&store, "m", jobs.len(), NOW).await;
        assert_eq!(leases.len(), jobs.len());
        for lease in leases {
            let settlement = answer(&lease);
            store.settle(lease, settlement).await.unwrap();
        }
    }
    for job in &jobs {
        until_settled(&store, job.id, 2).await;
        assert_eq!(journal_indexes(&store, job.id), [0, 1]);
    }
    // Those that were in use when the bound was reached are closed by the next job that opens its own.
    let last = conformance::job(201, 5, &["m"], 1);
    put(&store, &last).await;
    store.line(crate::domain::RequestId { job: last.id, index: 0 }).await.unwrap();
    assert!(store.files.lock().unwrap().len() <= super::OPEN_JOBS_MAX);
}

/// Refuses to sync journals.
#[derive(Debug)]
struct NoSync;

impl Probe for NoSync {
    fn before(&self, act: &Act<'_>) -> Verdict {
        let is_journal = matches!(act, Act::Sync { path, .. } if path.ends_with("results.log"));
        if is_journal { Verdict::Refuse(std::io::Error::other("no disk")) } else { Verdict::Go }
    }

    fn after(&self, _: &Act<'_>) {}
}

/// The sync thread failed with the order to close in its hands, the index thread never heard of it, and closing
/// waited for it for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn closing_ends_though_the_last_records_cannot_be_synced() {
    let world = World::new();
    let store = world.open();
    put(&store, &conformance::job(1, 5, &["m"], 2)).await;
    let _installed = probe::install(world.dir.path(), Arc::new(NoSync));
    answer_some(&store, 2).await;
    let closed = tokio::time::timeout(Duration::from_mins(1), store.close()).await;
    closed.expect("closing ends").unwrap_err();
}
