//! The same for the index, for jobs that come and change, and for a start.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn index_waits_for_room_and_takes_in_then_what_was_settled() {
    let world = World::of(4).await;
    let mut leases = world.begin(3).await;
    world.take_what_is_reserved_for_sled();
    world.disk.fill("sled/db");
    world.settle(leases.remove(0)).await;
    let retry = Settlement::Retry { due: NOW, attempts: 1, maybe_paid: false };
    world.store.settle(leases.remove(0), retry).await.unwrap();
    world.settle(leases.remove(0)).await;
    world.until_short().await;
    let state = world.store.job(world.job.id).await.unwrap();
    assert_eq!((state.counts.settled(), state.waiting, state.leased), (0, 0, 3));
    assert!(matches!(put_again(&world).await, Err(Error::Full(_))));
    world.disk.mend();
    until_settled(&world.store, world.job.id, 2).await;
    let leased = world.until_leased().await.pop().unwrap();
    assert_eq!((leased.request.index, leased.attempt), (1, 2), "what waits goes first");
    world.store.settle(leased, Settlement::Release).await.unwrap();
    world.check(vec![0, 2]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_waits_for_a_sync_when_the_index_fails_is_synced_by_the_close() {
    let world = World::of(1).await;
    put_again(&world).await.unwrap();
    let mut leases = world.begin(2).await;
    let (second, first) = (leases.pop().unwrap(), leases.pop().unwrap());
    assert_ne!(first.request.job, second.request.job);
    let files = world.store.files(second.request.job).unwrap();
    world.disk.break_syncs("results.log");
    world.settle(first).await;
    world.until_short().await;
    // The sync thread is busy with the first.
    world.settle(second).await;
    let (reply, answer) = oneshot::channel();
    world.store.commands.send(Command::Close { reply }).await.unwrap();
    answer.await.unwrap().unwrap();
    world.disk.mend();
    world.store.close().await.unwrap_err();
    assert_ne!(files.journal.durable(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn index_without_room_does_not_go_on_and_stop_in_turn() {
    let world = World::of(2).await;
    let lease = world.begin(1).await.pop().unwrap();
    world.take_what_is_reserved_for_sled();
    world.disk.fill("sled/db");
    // Enough above the floor for the slack and the ballast, and not for sled.
    world.disk.says(Space { free: 130 << 20, ..ROOMY });
    world.settle(lease).await;
    world.until_short().await;
    let changes = world.store.changes();
    let end = Instant::now() + TRY_EVERY * 5;
    while Instant::now() < end {
        assert!(conformance::lease(&world.store, "m", 1, NOW).await.is_empty());
    }
    assert!(!changes.has_changed(), "it said that it goes on");
    world.disk.mend();
    world.check(vec![0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn job_that_is_too_large_for_the_disk_stops_no_other() {
    let world = World::of(1).await;
    world.disk.fill("sled/db");
    let large = conformance::job(2, 5, &["m"], 4_000_000);
    let put = world.store.put_job(large, crate::store::Input::Inline(Vec::new())).await;
    assert!(matches!(put, Err(Error::Full(_))), "{put:?}");
    assert_eq!(world.store.shortage(), None);
    let lease = world.begin(1).await.pop().unwrap();
    world.settle(lease).await;
    world.check(vec![0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn status_that_can_not_be_written_is_not_taken() {
    let world = World::of(2).await;
    let paused = JobStatus::Paused { reason: PauseReason::User };
    for (full, to) in [(".state.json.tmp", paused), (".state.json.tmp", JobStatus::Cancelled)] {
        world.disk.fill(full);
        let refused = world.store.set_status(world.job.id, to.clone(), NOW).await;
        assert!(matches!(refused, Err(Error::Full(_))), "{refused:?}");
        assert_eq!(world.status().await, JobStatus::InProgress);
        world.disk.mend();
        let leased = world.until_leased().await.pop().unwrap();
        world.store.settle(leased, Settlement::Release).await.unwrap();
        let taken = world.store.set_status(world.job.id, to.clone(), NOW).await.unwrap();
        assert_eq!(taken.status, to);
        if !to.is_final() {
            world.store.set_status(world.job.id, JobStatus::InProgress, NOW).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn job_is_accepted_whole_or_not_at_all_wherever_the_disk_fills_up() {
    let world = World::of(1).await;
    let other = conformance::job(2, 5, &["m"], 2);
    let mut refused = 0;
    for acts in 0.. {
        world.disk.fill_after(acts);
        let put = put_again(&world).await;
        world.disk.mend();
        while world.store.shortage().is_some() {
            let leased = world.until_leased().await.pop().unwrap();
            world.store.settle(leased, Settlement::Release).await.unwrap();
        }
        let Err(error) = put else { break };
        assert!(error.is_full(), "{error}");
        let folder = world.dir.path().join("jobs").join(other.id.to_string());
        assert!(!folder.join("state.json").exists(), "after {acts} acts");
        // Whoever wrote its input puts it aside; here that is the store.
        if folder.exists() {
            fs::remove_dir_all(&folder).unwrap();
        }
        refused += 1;
    }
    assert!(refused > 5, "{refused}");
    assert_eq!(world.store.job(other.id).await.unwrap().counts.total, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_is_opened_on_a_full_disk() {
    let World { disk, _installed, store, dir, job, roll } = World::of(2).await;
    store.close().await.unwrap();
    drop(store);
    disk.says(Space { free: 1 << 20, ..ROOMY });
    let claimed = Claimed::take(dir.path()).unwrap();
    let before = files_of_sled(dir.path());
    let error = claimed.open(None, &roll).unwrap_err();
    assert!(error.is_full() && error.to_string().contains("are free; now it is 1.0 MiB"), "{error}");
    assert_eq!(files_of_sled(dir.path()), before);
    disk.mend();
    let store = claimed.open(None, &roll).unwrap();
    assert_eq!(store.jobs().await.unwrap()[0].job.id, job.id);
    assert!(dir.path().join("ballast").exists());
}

/// Names of sled's files, and their sizes.
fn files_of_sled(state: &std::path::Path) -> Vec<(String, u64)> {
    let entries = fs::read_dir(state.join("sled")).unwrap().map(Result::unwrap);
    let mut files: Vec<_> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len()))
        .collect();
    files.sort();
    files
}
