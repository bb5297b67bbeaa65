//! The embedded store against damage to its index: it heals, and is what the files say.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::index::Index;
use super::leases::Leases;
use super::room::Room;
use super::tests::{World, answer_some, files_alone};
use super::threads::{Command, IndexThread, Shared};
use super::{Content, keys, rebuild, recover, start};
use crate::bell::Bell;
use crate::domain::{Job, JobStatus, PauseReason, Settlement, Timestamp};
use crate::pulse::{Member, Roll};
use crate::store::conformance::{self, NOW, lease, put, queue, until_settled};
use crate::store::{Error, Hold, Store};

fn job(number: u8, total: u32) -> Job {
    conformance::job(number, 5, &["m"], total)
}

/// A state with a job in every stage: answered, waiting, fresh, paused, ended. Orderly closed.
async fn eventful() -> (World, [Job; 3]) {
    let world = World::new();
    let jobs = [job(1, 2500), job(2, 30), job(3, 5)];
    let store = world.open();
    put(&store, &jobs[0]).await;
    answer_some(&store, 1200).await;
    for (n, lease) in (0..).zip(lease(&store, "m", 40, NOW).await) {
        store.begin(&lease).unwrap();
        let due = Timestamp::from_millis(NOW.as_millis() + 1000 * n);
        store.settle(lease, Settlement::Retry { due, attempts: 1, maybe_paid: n % 2 == 0 }).await.unwrap();
    }
    store.set_status(jobs[0].id, JobStatus::Paused { reason: PauseReason::User }, NOW).await.unwrap();
    put(&store, &jobs[1]).await;
    answer_some(&store, 10).await;
    put(&store, &jobs[2]).await;
    store.set_status(jobs[2].id, JobStatus::Cancelling, NOW).await.unwrap();
    store.set_status(jobs[2].id, JobStatus::Cancelled, NOW).await.unwrap();
    until_settled(&store, jobs[0].id, 1200).await;
    until_settled(&store, jobs[1].id, 10).await;
    store.close().await.unwrap();
    drop(store);
    (world, jobs)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn whatever_becomes_of_sled_a_start_has_the_same_index() {
    type Damage = (&'static str, Box<dyn Fn(&Path)>);
    let garbage = |path: &Path| {
        let length = usize::try_from(fs::metadata(path).unwrap().len()).unwrap();
        let noise = (0..length).map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()[2]);
        fs::write(path, noise.collect::<Vec<u8>>()).unwrap();
    };
    let truncate = |path: &Path, part: u64| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() * part / 8).unwrap();
    };
    let spoil = |path: &Path, from: usize, to: usize| {
        let mut bytes = fs::read(path).unwrap();
        let eighth = bytes.len() / 8;
        bytes[eighth * from..eighth * to].fill(0x5a);
        fs::write(path, bytes).unwrap();
    };
    let snapshots = |sled: &Path| -> Vec<_> {
        let names = fs::read_dir(sled).unwrap().map(|entry| entry.unwrap().path());
        names.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("snap.")).collect()
    };
    let damages: Vec<Damage> = vec![
        ("nothing", Box::new(|_| {})),
        (
            "a half-written snapshot",
            Box::new(|sled| fs::write(sled.join("snap.00000000000fffff.generating"), b"half").unwrap()),
        ),
        (
            "no snapshots",
            Box::new(move |sled| snapshots(sled).iter().for_each(|path| fs::remove_file(path).unwrap())),
        ),
        (
            "garbage for snapshots",
            Box::new(move |sled| snapshots(sled).iter().for_each(|path| garbage(path))),
        ),
        ("an empty database", Box::new(move |sled| truncate(&sled.join("db"), 0))),
        ("an eighth of it", Box::new(move |sled| truncate(&sled.join("db"), 1))),
        ("a half of it", Box::new(move |sled| truncate(&sled.join("db"), 4))),
        ("its most", Box::new(move |sled| truncate(&sled.join("db"), 7))),
        ("garbage for a database", Box::new(move |sled| garbage(&sled.join("db")))),
        ("a spoilt begin", Box::new(move |sled| spoil(&sled.join("db"), 0, 1))),
        ("a spoilt middle", Box::new(move |sled| spoil(&sled.join("db"), 3, 5))),
        ("a spoilt end", Box::new(move |sled| spoil(&sled.join("db"), 7, 8))),
        ("no database", Box::new(|sled| fs::remove_file(sled.join("db")).unwrap())),
        ("garbage for a configuration", Box::new(|sled| fs::write(sled.join("conf"), b"???").unwrap())),
        ("no configuration", Box::new(|sled| fs::remove_file(sled.join("conf")).unwrap())),
        ("nothing at all", Box::new(|sled| fs::remove_dir_all(sled).unwrap())),
    ];
    let (world, _) = eventful().await;
    let expected = world.content();
    for (what, damage) in damages {
        damage(&world.state().join("sled"));
        assert_eq!(world.content(), expected, "{what}");
        assert_eq!(world.content(), expected, "{what}, at the next start");
    }
    assert_eq!(
        fs::read_dir(world.state().join("corrupt")).unwrap().count(),
        1,
        "of what was set aside one is kept"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_can_not_be_understood_is_built_anew_for_its_job_alone() {
    type Item<'a> = (&'static str, Vec<u8>, Option<&'a [u8]>);
    let (world, [first, second, _]) = eventful().await;
    let expected = world.content();
    let id = first.id;
    let far = Timestamp::from_millis(u64::MAX);
    let damages: [Item<'_>; 8] = [
        ("a row", keys::job(id), Some(b"short")),
        ("no row", keys::job(id), None),
        ("a range", keys::range(id, 0, 1), Some(&[9, 9, 9])),
        ("no range", keys::range(id, 0, 2), None),
        ("a range of no queue", keys::range(id, 7, 0), Some(&[0, 1, 0])),
        ("a request that is settled", keys::range(id, 0, 0), Some(&[0, 1, 0])),
        ("a waiting value", keys::waiting(id, 0, NOW, 1200), Some(b"x")),
        ("a waiting key", keys::waiting(id, 0, far, 99_999), Some(&[0, 0, 0, 1])),
    ];
    for (what, key, value) in damages {
        {
            let db = world.sled();
            let tree = db.open_tree("queue").unwrap();
            match value {
                Some(value) => tree.insert(key, value).unwrap(),
                None => tree.remove(key).unwrap(),
            };
            // The other job's row is one that a new index would not have.
            let row = keys::Row {
                maybe_paid_twice: 77,
                ..keys::Row::decode(&tree.get(keys::job(second.id)).unwrap().unwrap()).unwrap()
            };
            tree.insert(keys::job(second.id), row.encode()).unwrap();
            db.flush().unwrap();
        }
        let index = start::index(world.state(), &Member::default()).unwrap();
        assert_eq!(
            index.entry(second.id).unwrap().counts().maybe_paid_twice,
            77,
            "{what}: it was left alone"
        );
        drop(index);
        rebuild(world.state()).unwrap();
        assert_eq!(world.content(), expected, "{what}");
    }
}

pub(super) fn thread(index: Index, world: &World) -> IndexThread {
    let shared = Shared {
        state: world.state().to_owned(),
        leases: Leases::default(),
        room: Room::new(world.state(), Some(0), Bell::default()),
        changed: Bell::default(),
        progress: Bell::default(),
        hold: Hold::default(),
        closed: OnceLock::new(),
        is_stopping: AtomicBool::new(false),
        metrics: crate::metrics::Metrics::default(),
    };
    IndexThread::new(Arc::new(shared), index, Member::default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn damage_found_while_running_closes_the_store_and_the_next_start_heals() {
    let (world, [_, second, _]) = eventful().await;
    let expected = world.content();
    let index = start::index(world.state(), &Member::default()).unwrap();
    index.tree().insert(keys::range(second.id, 0, 0), b"???").unwrap();
    let thread = thread(index, &world);
    let shared = Arc::clone(&thread.shared);
    let (commands, queue_of_commands) = mpsc::channel(1);
    let runtime = Handle::current();
    let running = tokio::task::spawn_blocking(move || thread.run(queue_of_commands, &runtime));
    let (reply, answer) = oneshot::channel();
    commands.send(Command::Lease { queue: queue("m"), max: 1, now: NOW, reply }).await.unwrap();
    let error = answer.await.unwrap().unwrap_err().to_string();
    assert_eq!(error, "state/sled is damaged: a range can't be read; stop batchd and run `batchd rebuild`");
    running.await.unwrap();
    assert_eq!(shared.closed.get(), Some(&error));
    assert_eq!(world.content(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_a_crash_left_of_an_ended_job_goes_at_the_next_start() {
    let (world, [.., ended]) = eventful().await;
    let expected = world.content();
    let index = start::index(world.state(), &Member::default()).unwrap();
    index.tree().insert(keys::range(ended.id, 0, 0), &[0, 1, 0]).unwrap();
    index.tree().flush().unwrap();
    drop(index);
    assert_eq!(world.content(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn recovery_that_comes_on_answers_the_roll_call() {
    let (world, [job, ..]) = eventful().await;
    let (roll, folder) = (Roll::default(), world.folder(&job));
    let member = roll.join("the recovery");
    let answers = |what: &str, step: &mut dyn FnMut()| {
        let call = roll.call();
        step();
        assert_eq!(roll.missing(call), [""; 0], "{what}");
    };
    let mut index = None;
    answers("all jobs", &mut || index = Some(start::index(world.state(), &member).unwrap()));
    let mut index = index.unwrap();
    answers("a journal", &mut || {
        drop(recover::scan_journal(&folder.journal(), None, 2500, &member).unwrap());
    });
    answers("a line index", &mut || {
        recover::put(&mut index, &folder, &job, &member).unwrap();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_job_whose_folder_is_gone_is_forgotten() {
    let (world, [first, ..]) = eventful().await;
    let folder = world.folder(&first);
    let elsewhere = world.state().join("elsewhere");
    fs::rename(folder.path(), &elsewhere).unwrap();
    let without = world.content();
    assert_eq!(start::index(world.state(), &Member::default()).unwrap().rows().unwrap().len(), 1);
    fs::rename(&elsewhere, folder.path()).unwrap();
    let with = world.content();
    assert_ne!(with, without);
    let copy = files_alone(world.state());
    assert_eq!(Content::read(copy.path()).unwrap(), with, "and taken in again with its folder");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_end_that_can_not_be_written_down_leaves_the_index_as_it_is() {
    let (world, [_, second, _]) = eventful().await;
    let mut thread = thread(start::index(world.state(), &Member::default()).unwrap(), &world);
    let before = Content::of(&thread.index).unwrap();
    let temporary = crate::store::folder::temporary_name(&world.folder(&second).state());
    fs::create_dir(&temporary).unwrap();
    assert!(matches!(thread.set_status(second.id, JobStatus::Cancelled, NOW), Err(Error::Full(_))));
    assert_eq!(Content::of(&thread.index).unwrap(), before);
    fs::remove_dir(&temporary).unwrap();
    let ended = thread.set_status(second.id, JobStatus::Cancelled, NOW).unwrap();
    assert_eq!((ended.counts.completed, ended.counts.failed, ended.finished_at), (10, 20, Some(NOW)));
}
