//! Closing the store: everything that was settled becomes durable, and the threads end.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc::error::SendError;
use tokio::sync::oneshot;

use crate::store::embedded::EmbeddedStore;
use crate::store::embedded::log::Log;
use crate::store::embedded::sync::Note;
use crate::store::embedded::threads::Command;
use crate::store::{Error, Result};

impl EmbeddedStore {
    /// See [`Store::close`](crate::store::Store::close).
    pub(super) async fn shut(&self) -> Result<()> {
        let was_open = self.check_open();
        self.shared.is_stopping.store(true, Ordering::Release);
        let (reply, answer) = oneshot::channel();
        // Told of it even when an error has closed the store: both threads wait for something to do till then,
        // and a sync thread that has failed passes nothing on.
        let noted = self.notes.send(Note::Close { reply }).await;
        if let Err(SendError(Note::Close { reply })) = noted {
            drop(self.commands.send(Command::Close { reply }).await);
        }
        let answered = if let Ok(answered) = answer.await {
            answered
        } else {
            // It failed with this in its hands.
            let (reply, answer) = oneshot::channel();
            drop(self.commands.send(Command::Close { reply }).await);
            answer.await.unwrap_or_else(|_| Err(self.shared.refusal()))
        };
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let files = std::mem::take(&mut *self.files.lock().unwrap_or_else(PoisonError::into_inner));
        let ended = tokio::task::spawn_blocking(move || {
            let joined = threads.into_iter().all(|thread| thread.join().is_ok());
            // An error that ended them may have left what is appended and not synced.
            let logs = files.values().flat_map(|files| [&files.intents, &files.journal]);
            let synced = logs.map(Log::sync).fold(Ok(()), Result::and);
            for files in files.values() {
                files.give_back();
            }
            if joined { synced } else { Err(Error::Closed("a thread of it panicked".to_owned())) }
        });
        let ended = ended.await.unwrap_or_else(|error| Err(Error::Closed(error.to_string())));
        match self.shared.room.lost() {
            0 => was_open.and(answered).and(ended),
            lost => Err(Error::Full(format!(
                "the disk did not take what came of {lost} requests before the end: it is lost, and they may be asked again"
            ))),
        }
    }
}
