//! The embedded store on a disk that fills up or breaks under it, at each place where it writes: nothing that was
//! received is lost or settled twice, and it goes on by itself.

mod index;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use futures_util::poll;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::room::TRY_EVERY;
use super::tests::crash;
use super::threads::Command;
use super::{Claimed, EmbeddedStore};
use crate::disk::Space;
use crate::disk::probe::Installed;
use crate::disk::scarce::{ROOMY, Scarce};
use crate::domain::{Job, JobStatus, PauseReason, Settlement};
use crate::pulse::Roll;
use crate::store::conformance::{self, NOW, answer, journal_indexes, lease, put, until_settled};
use crate::store::{Error, Lease, Store};

/// A store on a disk that can be filled.
struct World {
    disk: Arc<Scarce>,
    _installed: Installed,
    store: EmbeddedStore,
    job: Job,
    dir: TempDir,
    roll: Roll,
}

impl World {
    /// With a job of so many requests.
    async fn of(total: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (disk, installed) = Scarce::under(dir.path());
        let roll = Roll::default();
        let store = Claimed::take(dir.path()).unwrap().open(Some(1 << 20), &roll).unwrap();
        let job = conformance::job(1, 5, &["m"], total);
        put(&store, &job).await;
        Self { disk, _installed: installed, store, job, dir, roll }
    }

    /// Leases and begins so many requests.
    async fn begin(&self, count: usize) -> Vec<Lease> {
        let leases = lease(&self.store, "m", count, NOW).await;
        assert_eq!(leases.len(), count);
        for lease in &leases {
            self.store.begin(lease).unwrap();
        }
        leases
    }

    /// Its next writes have no room then.
    fn take_what_is_reserved_for_sled(&self) {
        let db = fs::OpenOptions::new().write(true).open(self.dir.path().join("sled/db")).unwrap();
        db.set_len(db.metadata().unwrap().len()).unwrap();
    }

    async fn settle(&self, lease: Lease) {
        let settlement = answer(&lease);
        self.store.settle(lease, settlement).await.unwrap();
    }

    /// Waits until there is something to lease; it must come by a tick.
    async fn until_leased(&self) -> Vec<Lease> {
        let mut changes = self.store.changes();
        loop {
            let leases = lease(&self.store, "m", 1, NOW).await;
            if !leases.is_empty() {
                assert_eq!(self.store.shortage(), None);
                return leases;
            }
            let ticked = timeout(Duration::from_mins(1), changes.changed()).await;
            assert!(ticked.is_ok(), "it does not go on by itself: {:?}", self.store.shortage());
        }
    }

    /// Waits until it has noticed that there is no room.
    async fn until_short(&self) {
        while self.store.shortage().is_none() {
            lease(&self.store, "m", 0, NOW).await;
        }
    }

    async fn status(&self) -> JobStatus {
        self.store.job(self.job.id).await.unwrap().status
    }

    /// Everything that was settled is there once, now and after a restart.
    async fn check(self, mut settled: Vec<u32>) {
        let count = u32::try_from(settled.len()).unwrap();
        until_settled(&self.store, self.job.id, count).await;
        let counts = self.store.job(self.job.id).await.unwrap().counts;
        assert_eq!(counts.settled(), count);
        self.store.close().await.unwrap();
        drop(self.store);
        let store = EmbeddedStore::open(self.dir.path()).unwrap();
        let mut found = journal_indexes(&store, self.job.id);
        found.sort_unstable();
        settled.sort_unstable();
        assert_eq!(found, settled);
        assert_eq!(store.job(self.job.id).await.unwrap().counts, counts);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn threads_answer_while_the_disk_takes_nothing_for_hours() {
    let world = World::of(2).await;
    let [lease] = <[Lease; 1]>::try_from(world.begin(1).await).unwrap();
    world.disk.break_syncs("results.log");
    world.settle(lease).await;
    world.until_short().await;
    for _ in 0..3 {
        let call = world.roll.call();
        let answered = timeout(Duration::from_mins(1), world.roll.answered(call)).await;
        assert!(answered.is_ok(), "no answer from {:?}", world.roll.missing(call));
        assert!(world.store.shortage().is_some());
    }
    world.disk.mend();
    world.check(vec![0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn idle_threads_answer_and_leave_at_the_end() {
    let world = World::of(1).await;
    let call = world.roll.call();
    timeout(Duration::from_mins(1), world.roll.answered(call)).await.unwrap();
    world.store.close().await.unwrap();
    let call = world.roll.call();
    assert_eq!(world.roll.missing(call), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn below_the_floor_nothing_is_leased_or_begun_until_there_is_more_than_it() {
    let world = World::of(4).await;
    let [first, second] = <[Lease; 2]>::try_from(lease(&world.store, "m", 2, NOW).await).unwrap();
    world.store.begin(&first).unwrap();
    for scarce in [Space { free: (1 << 20) - 1, ..ROOMY }, Space { files: 3, ..ROOMY }] {
        world.disk.says(scarce);
        world.until_short().await;
        assert!(lease(&world.store, "m", 1, NOW).await.is_empty());
        assert!(matches!(world.store.begin(&second), Err(Error::Full(_))));
        assert!(matches!(world.store.fits(0), Err(Error::Full(_))));
        let why = world.store.shortage().unwrap();
        assert!(why.contains(world.dir.path().to_str().unwrap()) && why.contains("must stay free"), "{why}");
        world.disk.says(ROOMY);
        let [leased] = <[Lease; 1]>::try_from(world.until_leased().await).unwrap();
        world.store.settle(leased, Settlement::Release).await.unwrap();
    }
    // What can wait leaves the floor.
    world.disk.says(Space { free: 3 << 20, ..ROOMY });
    world.store.fits(2 << 20).unwrap();
    assert!(matches!(world.store.fits((2 << 20) + 1), Err(Error::Full(_))));
    // What is in flight is settled whatever the disk says.
    world.disk.says(Space { free: 0, ..ROOMY });
    world.settle(first).await;
    world.until_short().await;
    world.store.begin(&second).unwrap_err();
    world.store.settle(second, Settlement::Release).await.unwrap();
    assert!(matches!(put_again(&world).await, Err(Error::Full(_))));
    world.disk.says(ROOMY);
    world.check(vec![0]).await;
}

async fn put_again(world: &World) -> Result<(), Error> {
    let job = conformance::job(2, 5, &["m"], 2);
    let lines = (0..2).map(|_| (0, "{}".into())).collect();
    world.store.put_job(job, crate::store::Input::Inline(lines)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn answer_that_can_not_be_written_is_kept_and_written_once_there_is_room() {
    let world = World::of(4).await;
    let mut leases = world.begin(3).await;
    let third = leases.pop().unwrap();
    for is_stuck in [false, true] {
        world.disk.fill("results.log");
        if is_stuck {
            world.disk.stick(); // and the half line can't be cut off
        }
        let failed = world.disk.failed();
        let settling = world.settle(leases.remove(0));
        tokio::pin!(settling);
        assert!(poll!(&mut settling).is_pending());
        assert!(world.disk.failed() > failed);
        assert!(world.store.shortage().unwrap().contains("results.log"));
        assert!(lease(&world.store, "m", 1, NOW).await.is_empty());
        world.disk.mend();
        settling.await;
        let leased = world.until_leased().await.pop().unwrap();
        world.store.settle(leased, Settlement::Release).await.unwrap();
    }
    world.settle(third).await;
    world.check(vec![0, 1, 2]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn answer_that_is_given_up_unwritten_makes_the_close_fail() {
    let world = World::of(1).await;
    let lease = world.begin(1).await.pop().unwrap();
    world.disk.fill("results.log");
    {
        let settling = world.settle(lease);
        tokio::pin!(settling);
        assert!(poll!(&mut settling).is_pending());
    }
    let error = world.store.close().await.unwrap_err();
    assert!(error.to_string().contains("what came of 1 requests"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn end_of_an_attempt_is_never_forgotten() {
    let world = World::of(2).await;
    let lease = world.begin(1).await.pop().unwrap();
    world.disk.fill("intents.log");
    let retry = Settlement::Retry { due: NOW, attempts: 1, maybe_paid: true };
    {
        let settling = world.store.settle(lease, retry);
        tokio::pin!(settling);
        assert!(poll!(&mut settling).is_pending());
        world.disk.mend();
        settling.await.unwrap();
    }
    let World { store, dir, job, .. } = world;
    crash(store).await;
    let store = EmbeddedStore::open(dir.path()).unwrap();
    let leases = conformance::lease(&store, "m", 9, NOW).await;
    let mut seen: Vec<_> = leases.iter().map(|lease| (lease.request.index, lease.attempt)).collect();
    seen.sort_unstable();
    assert_eq!(seen, [(0, 2), (1, 1)]);
    assert_eq!(store.job(job.id).await.unwrap().counts.maybe_paid_twice, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn request_without_room_for_its_answer_or_its_intent_is_not_begun() {
    for full in ["results.log", "intents.log"] {
        let world = World::of(2).await;
        let intents = world.dir.path().join(format!("jobs/{}/intents.log", world.job.id));
        let lease = lease(&world.store, "m", 1, NOW).await.pop().unwrap();
        world.disk.fill(full);
        assert!(matches!(world.store.begin(&lease), Err(Error::Full(_))), "{full}");
        assert_eq!(fs::read(&intents).unwrap(), b"", "{full}: not sent, and no attempt used");
        world.store.settle(lease, Settlement::Release).await.unwrap();
        world.disk.mend();
        let lease = world.until_leased().await.pop().unwrap();
        assert_eq!((lease.request.index, lease.attempt), (0, 1), "{full}");
        world.store.begin(&lease).unwrap();
        world.settle(lease).await;
        world.check(vec![0]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_was_not_sent_goes_back_even_if_its_job_can_not_be_read_any_more() {
    let world = World::of(1).await;
    let lease = lease(&world.store, "m", 1, NOW).await.pop().unwrap();
    fs::remove_file(world.dir.path().join(format!("jobs/{}/input.jsonl", world.job.id))).unwrap();
    assert!(matches!(world.store.line(lease.request).await, Err(Error::Io { .. })));
    let released = world.store.settle(lease, Settlement::Release);
    timeout(Duration::from_secs(5), released).await.expect("else the daemon could not be stopped").unwrap();
    assert_eq!((world.store.shortage(), world.store.job(world.job.id).await.unwrap().leased), (None, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn where_nothing_can_be_reserved_what_is_free_counts() {
    let world = World::of(2).await;
    world.disk.forget_reservations();
    let [first, second] = <[Lease; 2]>::try_from(lease(&world.store, "m", 2, NOW).await).unwrap();
    world.store.begin(&first).unwrap();
    // Above the floor, but not by what two answers may take.
    world.disk.says(Space { free: (1 << 20) + (100 << 10), ..ROOMY });
    assert!(matches!(world.store.begin(&second), Err(Error::Full(_))));
    assert!(world.store.shortage().is_some(), "else it would be leased again at once, and again");
    world.store.settle(second, Settlement::Release).await.unwrap();
    world.settle(first).await;
    world.disk.says(ROOMY);
    let leased = world.until_leased().await.pop().unwrap();
    world.store.begin(&leased).unwrap();
    world.settle(leased).await;
    world.check(vec![0, 1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn records_whose_sync_fails_count_when_they_are_written_again_and_synced() {
    let world = World::of(3).await;
    let mut leases = world.begin(2).await;
    world.settle(leases.remove(0)).await;
    until_settled(&world.store, world.job.id, 1).await;
    world.disk.break_syncs("results.log");
    world.settle(leases.remove(0)).await;
    world.until_short().await;
    assert!(world.store.shortage().unwrap().contains("sync"));
    assert_eq!(world.store.job(world.job.id).await.unwrap().counts.settled(), 1);
    assert_eq!(journal_indexes(&world.store, world.job.id).len(), 1);
    world.disk.mend();
    until_settled(&world.store, world.job.id, 2).await;
    assert!(world.disk.overwritten() > 0, "a second sync alone could say that it is there when it is not");
    let leased = world.until_leased().await.pop().unwrap();
    world.store.settle(leased, Settlement::Release).await.unwrap();
    world.check(vec![0, 1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_gone_after_a_failed_sync_closes_the_store() {
    let world = World::of(2).await;
    let lease = world.begin(1).await.pop().unwrap();
    let journal = world.dir.path().join(format!("jobs/{}/results.log", world.job.id));
    world.disk.break_syncs("results.log");
    world.settle(lease).await;
    world.until_short().await;
    let length = fs::metadata(&journal).unwrap().len();
    let error = loop {
        // Each time anew: a try that had read the lines before writes them back.
        fs::write(&journal, vec![0; usize::try_from(length).unwrap()]).unwrap();
        match world.store.jobs().await {
            Err(error) => break error,
            Ok(_) => tokio::task::yield_now().await,
        }
    };
    assert!(error.to_string().contains("is gone"), "{error}");
}
