//! From a lease to what becomes of it: begun, settled, given back. What must be written for it is written, however
//! long the disk does not take it.
//!
//! # Invariants
//!
//! - An attempt is begun only if there is room for its answer ([`room`](super::room)).
//! - What an attempt brought home is given up only with the process: an answer was paid for, and the end of an attempt
//!   that is not written down would be forgotten by a crash. Its slot stays taken until then.

use std::sync::Arc;

use tokio::time::sleep;

use crate::domain::{JobId, Record, RequestId, Settlement, Timestamp};
use crate::fault;
use crate::store::embedded::EmbeddedStore;
use crate::store::embedded::files::JobFiles;
use crate::store::embedded::index::Settled;
use crate::store::embedded::intents::Intent;
use crate::store::embedded::room::TRY_EVERY;
use crate::store::embedded::sync::Note;
use crate::store::embedded::threads::Command;
use crate::store::{Error, Lease, Result};

/// Room that journals take at once: an append costs no system call for it, and a job holds little that it won't use.
const JOURNAL_STEP: u64 = 1 << 20;
const INTENTS_STEP: u64 = 64 << 10;

/// An attempt's two lines in the intents, at the longest.
const INTENT_BYTES: u64 = 128;

impl EmbeddedStore {
    /// See [`Store::begin`](crate::store::Store::begin).
    pub(super) fn begin_lease(&self, lease: &Lease) -> Result<()> {
        let files = self.files(lease.request.job)?;
        if let Some(why) = self.shared.room.look() {
            return Err(Error::Full(why));
        }
        let begun = self.shared.leases.begin(lease)?;
        self.prepare_answer(&files, lease, begun).inspect_err(|_| self.shared.leases.take_back(lease))
    }

    /// Takes room for the answers in flight, so many of this job, and writes the intent.
    fn prepare_answer(&self, files: &Arc<JobFiles>, lease: &Lease, begun: u32) -> Result<()> {
        let room = &self.shared.room;
        let [answers, intents] = [files.journal.expected(), INTENT_BYTES].map(|each| u64::from(begun) * each);
        let intent = Intent::Send { index: lease.request.index, attempt: lease.attempt };
        let is_sure = (|| {
            let is_sure = files.journal.reserve(answers, JOURNAL_STEP)?;
            files.intents.reserve(intents, INTENTS_STEP)?;
            Ok(is_sure)
        })();
        let refuse = |error: Error| {
            room.failed(&error, answers + intents);
            Error::Full(error.to_string())
        };
        if !is_sure.map_err(refuse)? {
            room.fits(answers + intents).map_err(refuse)?;
        }
        files.intents.append(&intent.to_line(), |_| ()).map_err(refuse)?;
        self.tell_begun(lease.request.job, files);
        fault::point("store-intent-written");
        Ok(())
    }

    /// See [`Store::settle`](crate::store::Store::settle).
    pub(super) async fn settle_lease(&self, lease: Lease, settlement: Settlement) -> Result<()> {
        match settlement {
            Settlement::Complete(record) => self.record(&lease, &record, true).await,
            Settlement::Discard(record) => self.record(&lease, &record, false).await,
            Settlement::Retry { due, attempts, maybe_paid } => {
                self.wait(&lease, [due; 2], attempts, maybe_paid).await
            }
            // The intents say when a start makes it due.
            Settlement::Snooze { due, attempts } => {
                self.wait(&lease, [due, Timestamp::default()], attempts, false).await
            }
            Settlement::Release => self.release(&lease).await,
        }
    }

    /// Lets a request wait until `due`; after a restart, until `due_at_start`.
    async fn wait(
        &self,
        lease: &Lease,
        [due, due_at_start]: [Timestamp; 2],
        attempts: u32,
        maybe_paid: bool,
    ) -> Result<()> {
        let request = lease.request;
        let files = self.files_in_the_end(request).await?;
        let held = self.shared.leases.take(lease)?;
        let intent = Intent::Ended { index: request.index, attempts, due: due_at_start, maybe_paid };
        self.note(&files, request, intent).await;
        fault::point("store-ended-written");
        self.ask(|reply| Command::Wait { request, held, due, attempts, maybe_paid, reply }).await
    }

    /// What was not sent left nothing to write, and goes back whatever the disk does: a stop must not wait for it.
    async fn release(&self, lease: &Lease) -> Result<()> {
        let request = lease.request;
        let held = self.shared.leases.take(lease)?;
        if held.sent {
            // It was refused, unpaid: a crash must not take it for one that was in flight.
            let files = self.files_in_the_end(request).await?;
            let intent = Intent::Back { index: request.index, attempt: held.attempt };
            self.note(&files, request, intent).await;
        }
        self.ask(|reply| Command::Release { request, held, reply }).await
    }

    /// The job's files, as soon as they can be opened: they were when it was sent.
    async fn files_in_the_end(&self, request: RequestId) -> Result<Arc<JobFiles>> {
        let mut opened = Err(Error::NoSuchJob(request.job));
        let open = || match self.files_even_if_closed(request.job) {
            Err(error @ Error::Io { .. }) => Err(error),
            done => {
                opened = done;
                Ok(())
            }
        };
        self.until_written(request, 0, open).await;
        opened
    }

    async fn note(&self, files: &Arc<JobFiles>, request: RequestId, intent: Intent) {
        let line = intent.to_line();
        self.until_written(request, line.len(), || files.intents.append(&line, |_| ())).await;
        self.tell_begun(request.job, files);
    }

    /// Lets intents become durable soon. Nobody waits for it: so a power cut, unlike the death of the process, may take
    /// those of the last moments along.
    fn tell_begun(&self, job: JobId, files: &Arc<JobFiles>) {
        if files.is_first_begun() {
            let told = self.notes.try_send(Note::Begun { job, files: Arc::clone(files) });
            if told.is_err() {
                // Thousands of records are on their way; the next intent tells of this one.
                files.heed_begun();
            }
        }
    }

    async fn record(&self, lease: &Lease, record: &Record, success: bool) -> Result<()> {
        let request = lease.request;
        // What an attempt brings home is kept even by a store that an error has closed: it was paid for.
        let files = self.files_in_the_end(request).await?;
        // Room for the note first: once the record is in the journal nothing may keep it from being counted.
        let room = self.notes.reserve().await.ok().filter(|_| self.check_open().is_ok());
        let held = self.shared.leases.take(lease)?;
        let line = record.to_journal_line(held.attempt);
        let Some(room) = room else {
            // The next start settles it. Blocks, but nothing goes on any more.
            self.until_written(request, line.len(), || files.journal.append(&line, |_| ())).await;
            self.until_written(request, line.len(), || files.journal.sync()).await;
            return Err(self.shared.refusal());
        };
        let mut room = Some(room);
        let append = || {
            // Appended and noted as one step: so the notes of a job stand in the order of its journal, and what
            // the index acknowledges has no gap in it.
            files.journal.append(&line, |journal_end| {
                if let Some(room) = room.take() {
                    let settled = Settled { request, held, success, journal_end };
                    room.send(Note::Appended { files: Arc::clone(&files), settled });
                }
            })
        };
        self.until_written(request, line.len(), append).await;
        fault::point("store-journal-appended");
        Ok(())
    }

    /// Writes until it is written. Nothing is sent meanwhile.
    async fn until_written(&self, request: RequestId, bytes: usize, mut write: impl FnMut() -> Result<()>) {
        let Err(mut error) = write() else { return };
        let unwritten = self.shared.room.unwritten();
        tracing::error!(%request, %error, "what came of a request can't be written; it is kept and tried again");
        loop {
            if !self.shared.room.failed(&error, bytes as u64) {
                sleep(TRY_EVERY).await;
            }
            match write() {
                Ok(()) => break,
                Err(again) => error = again,
            }
        }
        unwritten.written();
        tracing::info!(%request, "what came of a request is written now");
    }
}
