//! The embedded store against damage to its files: it holds a job at most, and no other one.

use std::fs;
use std::path::Path;

use super::EmbeddedStore;
use super::tests::{World, answer_some, answered, crash, files_alone};
use crate::domain::record::JournalLine;
use crate::domain::{Job, JobId, JobStatus, OnUncertain, Settlement, Timestamp};
use crate::store::conformance::{self, NOW, journal_indexes, lease, put, until_settled};
use crate::store::folder::JobFolder;
use crate::store::{Error, Store};

/// A page that a power cut lost.
const LOST: [u8; 4096] = [0; 4096];

fn job(number: u8, total: u32) -> Job {
    conformance::job(number, 5, &["m"], total)
}

/// How a job stands at the next start, and whether anything of it can be leased.
async fn next_start(world: &World, id: JobId) -> (JobStatus, u32, usize) {
    let store = world.open();
    let state = store.job(id).await.unwrap();
    let leased = lease(&store, "m", 99, NOW).await.len();
    crash(store).await;
    (state.status, state.counts.completed, leased)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_job_that_can_not_be_read_is_shown_as_held_and_nothing_can_be_done_with_it() {
    type Spoil = (&'static str, fn(&JobFolder));
    let spoils: [Spoil; 8] = [
        ("state.json can't be read", |job| fs::write(job.state(), "{\"job\":").unwrap()),
        ("state.json can't be read", |job| fs::write(job.state(), "").unwrap()),
        ("state.json can't be read", |job| fs::write(job.state(), [0; 900]).unwrap()),
        ("state.json is missing", |job| fs::remove_file(job.state()).unwrap()),
        ("state.json is missing", |job| {
            fs::remove_file(job.state()).unwrap();
            fs::write(job.claim(), "{\"name\":\"news.jsonl\"}").unwrap();
        }),
        ("input.jsonl is missing", |job| fs::remove_file(job.input()).unwrap()),
        ("lines.idx has 16 bytes, and not 80", |job| fs::write(job.index(), [0; 16]).unwrap()),
        ("lines.idx is damaged: request 0 is in queue 65535 of 1", |job| {
            fs::write(job.index(), [0xff; 80]).unwrap();
            fs::remove_dir_all(job.path().ancestors().nth(2).unwrap().join("sled")).unwrap();
        }),
    ];
    for (expected, spoil) in spoils {
        let (world, job) = answered(3, 5).await;
        let folder = world.folder(&job);
        spoil(&folder);
        let before = files_alone(world.state());
        for _ in 0..2 {
            let store = world.open();
            let state = store.job(job.id).await.unwrap();
            let JobStatus::Held { why } = &state.status else { panic!("{expected}: {state:?}") };
            assert!(why.contains(expected) && why.contains("drop the spec again"), "{why}");
            assert_eq!((state.counts.open() > 0, state.leased), (state.counts.total > 3, 0));
            assert!(lease(&store, "m", 9, NOW).await.is_empty());
            for status in [JobStatus::InProgress, JobStatus::Cancelling, JobStatus::Cancelled] {
                let refused = store.set_status(job.id, status, NOW).await;
                assert!(matches!(refused, Err(Error::Transition { from: "held", .. })), "{refused:?}");
            }
            // Others go on beside it.
            let number = fs::read_dir(world.state().join("jobs")).unwrap().count();
            let other = self::job(u8::try_from(number + 1).unwrap(), 1);
            put(&store, &other).await;
            answer_some(&store, 1).await;
            until_settled(&store, other.id, 1).await;
            store.close().await.unwrap();
        }
        for file in fs::read_dir(before.path().join("jobs").join(job.id.to_string())).unwrap() {
            let file = file.unwrap();
            let after = fs::read(folder.path().join(file.file_name())).unwrap();
            assert_eq!(after, fs::read(file.path()).unwrap(), "{expected}: {:?}", file.file_name());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_was_in_flight_of_a_job_that_is_ending_fails_as_uncertain_once() {
    for to in [JobStatus::Cancelling, JobStatus::Expiring] {
        let world = World::new();
        let mut job = job(1, 4);
        job.settings.on_uncertain = Some(OnUncertain::Retry);
        let store = world.open();
        put(&store, &job).await;
        answer_some(&store, 1).await;
        for lease in lease(&store, "m", 2, NOW).await {
            store.begin(&lease).unwrap();
        }
        store.set_status(job.id, to.clone(), NOW).await.unwrap();
        crash(store).await;
        for _ in 0..2 {
            let store = world.open();
            let state = store.job(job.id).await.unwrap();
            assert_eq!(
                (state.status, state.counts.failed, state.counts.maybe_paid_twice),
                (to.clone(), 2, 0)
            );
            assert_eq!(journal_indexes(&store, job.id), [0, 1, 2]);
            crash(store).await;
        }
        let journal = fs::read_to_string(world.folder(&job).journal()).unwrap();
        assert_eq!(journal.matches("\"code\":\"uncertain\"").count(), 2, "{journal}");
    }
}

/// Puts bytes before the `line`-th line of a file, which loses `eats` bytes there.
fn insert_before(path: &Path, line: usize, bytes: &[u8], eats: usize) {
    let text = fs::read(path).unwrap();
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let at: usize = lines[..line].iter().map(|line| line.len()).sum();
    fs::write(path, [&text[..at], bytes, &text[at + eats..]].concat()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn records_behind_a_page_that_a_power_cut_lost_stay() {
    let (world, job) = answered(3, 5).await;
    let journal = world.folder(&job).journal();
    // The second record is lost, and the first bytes of the third page are the end of its line.
    insert_before(&journal, 1, &LOST, 60);
    world.remove_index();
    let (status, completed, leased) = next_start(&world, job.id).await;
    assert_eq!((status, completed, leased), (JobStatus::InProgress, 2, 3), "one was lost, and is sent again");
    let text = fs::read(&journal).unwrap();
    let records: Vec<u32> =
        text.split(|b| *b == b'\n').filter_map(JournalLine::parse).map(|r| r.index).collect();
    assert_eq!((records, text.contains(&0)), (vec![0, 2], false));
    assert!(fs::read(journal.with_file_name("results.torn.1")).unwrap().len() > LOST.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_journal_that_has_lost_what_was_synced_holds_the_job() {
    type Spoil = (&'static str, fn(&Path));
    let spoils: [Spoil; 3] = [
        ("has lost answers: it was", |journal| {
            let text = fs::read(journal).unwrap();
            fs::write(journal, &text[..text.len() / 2]).unwrap();
        }),
        ("has lost answers: it was", |journal| fs::remove_file(journal).unwrap()),
        ("is damaged at byte 0", |journal| {
            // Another one lies in its place: the index knows nothing of it.
            let text = [b"x", fs::read(journal).unwrap().as_slice()].concat();
            fs::write(journal, text).unwrap();
        }),
    ];
    for (why, spoil) in spoils {
        let (world, job) = answered(3, 5).await;
        spoil(&world.folder(&job).journal());
        for _ in 0..2 {
            let (status, _, leased) = next_start(&world, job.id).await;
            assert!(matches!(&status, JobStatus::Held { why: is } if is.contains(why)), "{why}: {status:?}");
            assert_eq!(leased, 0);
        }
    }
}

/// A job of which every request was sent once and then refused for a while.
async fn refused() -> (World, Job) {
    let world = World::new();
    let job = job(1, 3);
    let store = world.open();
    put(&store, &job).await;
    for lease in lease(&store, "m", 3, NOW).await {
        store.begin(&lease).unwrap();
        store.settle(lease, Settlement::Retry { due: NOW, attempts: 1, maybe_paid: false }).await.unwrap();
    }
    store.close().await.unwrap();
    drop(store);
    (world, job)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn intents_that_may_have_forgotten_a_sending_hold_the_job_until_a_person_decides() {
    let spoils: [fn(&Path); 2] =
        [|intents| insert_before(intents, 2, b"x", 1), |intents| fs::remove_file(intents).unwrap()];
    for spoil in spoils {
        let (world, job) = refused().await;
        spoil(&world.folder(&job).intents());
        for _ in 0..2 {
            let (status, _, leased) = next_start(&world, job.id).await;
            assert!(matches!(&status, JobStatus::Held { why } if why.contains("intents.log")), "{status:?}");
            assert_eq!(leased, 0);
        }
        let store = world.open();
        store.set_status(job.id, JobStatus::InProgress, NOW).await.unwrap();
        crash(store).await;
        assert_eq!(next_start(&world, job.id).await, (JobStatus::InProgress, 0, 3), "asked once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn intents_that_a_crash_tore_are_mended_and_the_job_goes_on() {
    let spoils: [fn(&Path); 2] = [
        |intents| {
            let mut text = fs::read(intents).unwrap();
            text.extend_from_slice(b"send 1");
            fs::write(intents, text).unwrap();
        },
        |intents| insert_before(intents, 3, &LOST, 2),
    ];
    for spoil in spoils {
        let (world, job) = refused().await;
        let intents = world.folder(&job).intents();
        spoil(&intents);
        assert_eq!(next_start(&world, job.id).await, (JobStatus::InProgress, 0, 3));
        assert!(intents.with_file_name("intents.torn.1").exists());
        assert_eq!(next_start(&world, job.id).await, (JobStatus::InProgress, 0, 3));
        assert!(!intents.with_file_name("intents.torn.2").exists());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_retry_by_a_person_outlives_a_crash_and_a_rebuild() {
    let world = World::new();
    let job = job(1, 3);
    let store = world.open();
    put(&store, &job).await;
    for lease in lease(&store, "m", 3, NOW).await {
        store.begin(&lease).unwrap();
        let due = Timestamp::from_millis(u64::MAX);
        store.settle(lease, Settlement::Retry { due, attempts: 4, maybe_paid: true }).await.unwrap();
    }
    store.retry_now(job.id).await.unwrap();
    crash(store).await;
    for _ in 0..2 {
        let store: EmbeddedStore = world.open();
        assert_eq!(store.job(job.id).await.unwrap().counts.maybe_paid_twice, 3);
        let leases = lease(&store, "m", 9, NOW).await;
        assert!(leases.iter().map(|lease| lease.attempt).eq([5, 5, 5]));
        crash(store).await;
        world.remove_index();
    }
}
