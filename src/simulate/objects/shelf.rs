//! What files, models and fine-tunes share: the calendar, the rules, ids, and the files and models themselves.

use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use super::files::{File, Files};
use super::models::Models;
use crate::domain::Timestamp;
use crate::simulate::fate::Fate;
use crate::simulate::refusal::Refusal;

/// Letters and digits of an id behind its prefix, as OpenAI has them.
const ID_LENGTH: usize = 24;

#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) calendar: Calendar,
    pub(super) rules: Rules,
    pub(super) dice: Rng,
    pub(super) files: Files,
    pub(super) models: Models,
}

/// From the server's own time to the dates in its replies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Calendar {
    pub(super) started: Instant,
    pub(super) epoch: Timestamp,
}

/// The part of the settings that matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) fine_tune_time: Duration,
    pub(super) file_processing_time: Duration,
    pub(super) fate: Option<Fate>,
}

impl Calendar {
    /// Time since the start of the server.
    pub(super) fn at(self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    /// Seconds since 1970, as the API writes all times.
    pub(super) fn unix(self, at: Duration) -> u64 {
        (self.epoch + at).as_secs()
    }
}

impl Shelf {
    /// A new id: the prefix and letters that nobody can foretell, but the same for the same seed.
    pub(super) fn id(&mut self, prefix: &str) -> String {
        let letters = (0..ID_LENGTH).map(|_| self.dice.alphanumeric());
        letters.fold(prefix.to_owned(), |mut id, letter| {
            id.push(letter);
            id
        })
    }

    /// A file that a fine-tune may be made from; `param` is the parameter that names it.
    pub(super) fn training_data(
        &self,
        id: &str,
        param: &'static str,
        at: Duration,
    ) -> Result<&File, Refusal> {
        let file = self.files.find(id, at).ok_or_else(|| Refusal::no_training_file(id, param))?;
        if file.purpose != "fine-tune" {
            return Err(Refusal::wrong_purpose(id, file.purpose, param));
        }
        if at < file.ready {
            return Err(Refusal::file_not_ready(id, param));
        }
        Ok(file)
    }

    /// Puts down what a fine-tune has brought; the id of its file.
    pub(super) fn add_results(&mut self, filename: String, content: String, at: Duration) -> String {
        let id = self.id("file-");
        self.files.add(File {
            id: id.clone(),
            filename,
            purpose: "fine-tune-results",
            content: content.into(),
            created: at,
            expires: None,
            ready: at,
            inspection: None,
        });
        id
    }
}
