//! The thread that makes journals and intents durable.
//!
//! # Operation
//!
//! It takes all records that were appended since it last looked, syncs each journal they are in once, and passes them
//! on to the index. A sync costs about the same whatever it carries, so the more there is to do, the cheaper each
//! record gets. A sync that fails is tried until it succeeds ([`Log::sync`] says how), and the records wait so long:
//! they were received. Where what was appended is gone from memory, too, the store is closed.
//!
//! It answers the [roll call](crate::pulse) while it waits and between two syncs, and while it tries again and again
//! what a full disk refuses: each of them shows that it comes round. In a sync it does not. A disk that takes longer
//! for one than the watchdog waits is to trip it: nothing can be settled meanwhile, and only a person or a
//! restart elsewhere can help.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::domain::JobId;
use crate::fault;
use crate::pulse::Member;
use crate::store::embedded::files::JobFiles;
use crate::store::embedded::index::Settled;
use crate::store::embedded::log::Log;
use crate::store::embedded::room::TRY_EVERY;
use crate::store::embedded::threads::{Command, Shared};
use crate::store::{Error, Result};

/// Records one sync takes at most: bounds its memory and how long it keeps the next ones waiting.
const SYNC_MAX: usize = 4096;

/// How long the first record waits for others before it is synced. A sync costs the same for one record as for
/// hundreds, and sled as much again for what follows from it; no slot waits for it.
const GATHER: Duration = Duration::from_millis(10);

/// A record that was appended to its journal.
#[derive(Debug)]
pub(super) enum Note {
    Appended {
        files: Arc<JobFiles>,
        settled: Settled,
    },
    /// Intents were written.
    Begun {
        job: JobId,
        files: Arc<JobFiles>,
    },
    Close {
        reply: oneshot::Sender<Result<()>>,
    },
}

/// Runs the sync thread until the store is closed or dropped.
pub(super) fn run(
    shared: &Shared,
    notes: &mut mpsc::Receiver<Note>,
    commands: &mpsc::Sender<Command>,
    member: &Member,
    runtime: &Handle,
) {
    let mut batch = Vec::new();
    while let Some(first) = runtime.block_on(next(notes, member)) {
        pause(GATHER);
        let mut jobs: BTreeMap<JobId, Arc<JobFiles>> = BTreeMap::new();
        let mut closing = None;
        let mut next = Some(first);
        while let Some(note) = next {
            match note {
                Note::Begun { job, files } => drop(jobs.entry(job).or_insert(files)),
                Note::Appended { files, settled } => {
                    jobs.entry(settled.request.job).or_insert(files);
                    batch.push(settled);
                }
                Note::Close { reply } => closing = Some(reply),
            }
            next = if batch.len() < SYNC_MAX && closing.is_none() { notes.try_recv().ok() } else { None };
        }
        fault::point("store-journal-syncing");
        let began = Instant::now();
        if let Err(error) = jobs.values().try_for_each(|files| sync_job(shared, files, member)) {
            // What they held does not count, and nothing goes on.
            tracing::error!(error = %error, "a journal can't be made durable; nothing more is sent");
            shared.close(&error.to_string());
            return;
        }
        if !jobs.is_empty() {
            shared.metrics.committed(began.elapsed());
        }
        fault::point("store-journal-synced");
        let settled = std::mem::take(&mut batch);
        let sent =
            if settled.is_empty() { Ok(()) } else { commands.blocking_send(Command::Settled(settled)) };
        let closed = closing.map(|reply| commands.blocking_send(Command::Close { reply }));
        if sent.is_err() || closed.is_some() {
            return;
        }
    }
}

/// The next note; none if there will be none any more.
async fn next(notes: &mut mpsc::Receiver<Note>, member: &Member) -> Option<Note> {
    loop {
        member.answer();
        // Notes first, since they end the wait.
        tokio::select! { biased;
            note = notes.recv() => return note,
            () = member.called() => {}
        }
    }
}

/// Makes a job's intents and records durable. The intents first: what is known to have been sent never lags what is
/// known of its end.
fn sync_job(shared: &Shared, files: &JobFiles, member: &Member) -> Result<()> {
    files.heed_begun();
    make_durable(shared, &files.intents, member)?;
    make_durable(shared, &files.journal, member)
}

/// Syncs a log, until it is synced: what is in it was received, and does not count before. Gives up if what was
/// appended is gone, or the store is to be closed.
fn make_durable(shared: &Shared, log: &Log, member: &Member) -> Result<()> {
    member.answer();
    let Err(mut error) = log.sync() else { return Ok(()) };
    let unwritten = shared.room.unwritten();
    loop {
        tracing::error!(%error, "answers are received and can't be made durable; they are written again");
        shared.room.failed(&error, 0);
        member.answer();
        match log.sync() {
            Ok(()) => {
                unwritten.written();
                return Ok(());
            }
            Err(Error::Damaged { path, what }) => return Err(Error::Damaged { path, what }),
            Err(again) if shared.is_stopping.load(Ordering::Acquire) => return Err(again),
            Err(again) => error = again,
        }
        pause(TRY_EVERY);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "time itself is meant, on a thread that has nothing else to do"
)]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::store::Store;
    use crate::store::conformance::{NOW, job, lease, put};
    use crate::store::embedded::tests::World;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn intents_become_durable_though_no_answer_comes() {
        let world = World::new();
        let store = world.open();
        let job = job(1, 2, &["m"], 1);
        put(&store, &job).await;
        let files = store.files(job.id).unwrap();
        for lease in lease(&store, "m", 2, NOW).await {
            let before = files.intents.durable();
            store.begin(&lease).unwrap();
            let intents = fs::read(world.folder(&job).intents()).unwrap();
            while files.intents.durable() == before {
                tokio::task::yield_now().await;
            }
            assert_eq!(files.intents.durable(), intents.len() as u64);
        }
        store.close().await.unwrap();
    }
}
