//! The thread that makes journals durable.
//!
//! # Operation
//!
//! It takes all records that were appended since it last looked, syncs each journal they are in once, and passes them
//! on to the index. A sync costs about the same whatever it carries, so the more there is to do, the cheaper each
//! record gets. A sync that fails is tried until it succeeds ([`Log::sync`] says how), and the records wait so long:
//! they were received. Where what was appended is gone from memory, too, the store is closed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::domain::JobId;
use crate::fault;
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
    Appended { journal: Arc<Log>, settled: Settled },
    Close { reply: oneshot::Sender<Result<()>> },
}

/// Runs the sync thread until the store is closed or dropped.
pub(super) fn run(shared: &Shared, notes: &mut mpsc::Receiver<Note>, commands: &mpsc::Sender<Command>) {
    let mut batch = Vec::new();
    while let Some(first) = notes.blocking_recv() {
        pause(GATHER);
        let mut journals: BTreeMap<JobId, Arc<Log>> = BTreeMap::new();
        let mut closing = None;
        let mut next = Some(first);
        while let Some(note) = next {
            match note {
                Note::Appended { journal, settled } => {
                    journals.entry(settled.request.job).or_insert(journal);
                    batch.push(settled);
                }
                Note::Close { reply } => closing = Some(reply),
            }
            next = if batch.len() < SYNC_MAX && closing.is_none() { notes.try_recv().ok() } else { None };
        }
        fault::point("store-journal-syncing");
        if let Err(error) = journals.values().try_for_each(|journal| make_durable(shared, journal)) {
            // What they held does not count, and nothing goes on.
            tracing::error!(error = %error, "a journal can't be made durable; nothing more is sent");
            shared.close(&error.to_string());
            return;
        }
        fault::point("store-journal-synced");
        let sent = commands.blocking_send(Command::Settled(std::mem::take(&mut batch)));
        let closed = closing.map(|reply| commands.blocking_send(Command::Close { reply }));
        if sent.is_err() || closed.is_some() {
            return;
        }
    }
}

/// Syncs a journal, until it is synced: what is in it was received, and does not count before. Gives up if what was
/// appended is gone, or the store is to be closed.
fn make_durable(shared: &Shared, journal: &Log) -> Result<()> {
    let Err(mut error) = journal.sync() else { return Ok(()) };
    let unwritten = shared.room.unwritten();
    loop {
        tracing::error!(%error, "answers are received and can't be made durable; they are written again");
        shared.room.failed(&error, 0);
        match journal.sync() {
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
