//! What was learnt of the providers, kept over restarts: `state/learnt.json`.
//!
//! # Format
//!
//! `{"version": 1, "lanes": {"openai/gpt-4o-mini": {"requests_per_minute": 3000.0, "concurrency": 48, "at": 1767225600000}}}`:
//! a lane is a queue, with its endpoint where the provider has several; what is not known is left out; `at` is when it
//! was last in force, in milliseconds since 1970.
//!
//! # What it does not do
//!
//! Nothing depends on it: a file that is missing, damaged or old only means that the limits are learnt again. So it is
//! written now and then and at the end, and a disk that doesn't take it is no error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::dispatch::lane::Lane;
use crate::dispatch::queue::Dispatcher;
use crate::domain::{QueueName, Timestamp};
use crate::store::folder;

/// The file's name in the state folder.
const NAME: &str = "learnt.json";

const VERSION: u32 = 1;

/// Contracts change, and keys: what was learnt before this is forgotten.
const KEPT: Duration = Duration::from_hours(7 * 24);

/// How often what is learnt is written, at most.
pub(super) const SAVE_EVERY: Duration = Duration::from_mins(1);

/// How often a queue notes what it has learnt.
const REMEMBER_EVERY: Duration = Duration::from_secs(1);

/// What was learnt in a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Learnt {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) requests_per_minute: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tokens_per_minute: Option<f64>,
    /// How many requests in flight are best, where that is looked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) concurrency: Option<usize>,
    pub(super) at: Timestamp,
}

impl Learnt {
    pub(super) const fn is_nothing(&self) -> bool {
        self.requests_per_minute.is_none() && self.tokens_per_minute.is_none() && self.concurrency.is_none()
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Text {
    version: u32,
    lanes: BTreeMap<String, Learnt>,
}

/// See the module's words. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// None: only as long as the process lives.
    path: Option<PathBuf>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    lanes: BTreeMap<String, Learnt>,
    has_changed: bool,
}

impl Memory {
    /// What is known at `now` in the state folder `state`.
    pub(super) fn open(state: &Path, now: Timestamp) -> Self {
        let path = state.join(NAME);
        let lanes = read(&path, now).unwrap_or_else(|message| {
            tracing::warn!(path = %path.display(), error = message, "what was learnt of limits is learnt again");
            BTreeMap::new()
        });
        let known = Mutex::new(Known { lanes, has_changed: false });
        Self(Arc::new(Inner { path: Some(path), known }))
    }

    pub(super) fn of(&self, lane: &str) -> Option<Learnt> {
        self.lock().lanes.get(lane).copied()
    }

    pub(super) fn learn(&self, lane: &str, learnt: Learnt) {
        let mut known = self.lock();
        if let Some(before) = known.lanes.get_mut(lane) {
            *before = learnt;
        } else {
            known.lanes.insert(lane.to_owned(), learnt);
        }
        known.has_changed = true;
    }

    /// Writes what has changed. Blocks.
    pub(super) fn save(&self, now: Timestamp) {
        let Some(path) = &self.0.path else { return };
        let text = {
            let mut known = self.lock();
            if !std::mem::take(&mut known.has_changed) {
                return;
            }
            known.lanes.retain(|_, learnt| is_recent(learnt, now));
            serde_json::to_vec(&Text { version: VERSION, lanes: known.lanes.clone() })
        };
        let written = text.map_err(|error| error.to_string());
        let written =
            written.and_then(|text| folder::write_atomic(path, &text).map_err(|error| error.to_string()));
        if let Err(error) = written {
            tracing::debug!(error, "what was learnt of limits is not written");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // An entry is replaced as a whole.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dispatcher {
    /// Begins with what is known of its lanes.
    pub(super) fn recall(&mut self) {
        for lane in &mut self.lanes {
            if let Some(learnt) = self.memory.of(&name(&self.queue, lane)) {
                lane.begin_with(learnt, Instant::now());
            }
        }
    }

    /// Notes what is known of its lanes, now and then.
    pub(super) fn remember(&mut self, now: Instant) {
        if now < self.remember_at {
            return;
        }
        self.remember_at = now + REMEMBER_EVERY;
        let at = self.parts.clock.now();
        for lane in &self.lanes {
            if let Some(learnt) = lane.learnt(at) {
                self.memory.learn(&name(&self.queue, lane), learnt);
            }
        }
    }
}

fn name(queue: &QueueName, lane: &Lane) -> String {
    match &lane.site.label {
        Some(endpoint) => format!("{queue}, {endpoint}"),
        None => queue.to_string(),
    }
}

fn read(path: &Path, now: Timestamp) -> Result<BTreeMap<String, Learnt>, String> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.to_string()),
    };
    let text: Text = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    if text.version != VERSION {
        return Err(format!("version {} is not known; expected {VERSION}", text.version));
    }
    Ok(text.lanes.into_iter().filter(|(_, learnt)| is_recent(learnt, now)).collect())
}

fn is_recent(learnt: &Learnt, now: Timestamp) -> bool {
    now.since(learnt.at) <= KEPT
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_767_225_600_000);

    fn learnt(requests_per_minute: f64, at: Timestamp) -> Learnt {
        Learnt { requests_per_minute: Some(requests_per_minute), at, ..Learnt::default() }
    }

    #[test]
    fn what_was_learnt_is_known_after_a_restart_for_a_week() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::open(dir.path(), NOW);
        assert_eq!(memory.of("x/m"), None);
        memory.save(NOW);
        assert!(!dir.path().join(NAME).exists(), "nothing was learnt");
        memory.learn("x/m", learnt(60.0, NOW));
        memory.learn("x/m", Learnt { concurrency: Some(7), ..learnt(3_000.0, NOW) });
        memory.learn("x/old", learnt(5.0, NOW));
        memory.save(NOW);
        let again = Memory::open(dir.path(), NOW + KEPT);
        assert_eq!(again.of("x/m"), memory.of("x/m"));
        assert_eq!(again.of("x/m").unwrap().concurrency, Some(7));
        let later = NOW + KEPT + Duration::from_secs(1);
        assert_eq!(Memory::open(dir.path(), later).of("x/m"), None);
        again.learn("x/m", learnt(60.0, later));
        again.save(later);
        let text = std::fs::read_to_string(dir.path().join(NAME)).unwrap();
        assert!(text.contains("x/m") && !text.contains("x/old"), "{text}");
    }

    #[test]
    fn a_file_that_says_nothing_sensible_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        for text in ["", "{", "[]", r#"{"version": 9, "lanes": {}}"#, r#"{"version": 1, "lanes": 3}"#] {
            std::fs::write(&path, text).unwrap();
            let memory = Memory::open(dir.path(), NOW);
            assert_eq!(memory.of("x/m"), None, "{text}");
            memory.learn("x/m", learnt(1.0, NOW));
            memory.save(NOW);
            assert_eq!(Memory::open(dir.path(), NOW).of("x/m"), Some(learnt(1.0, NOW)));
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let memory = Memory::open(dir.path(), NOW);
        memory.learn("x/m", learnt(1.0, NOW));
        memory.save(NOW);
        assert_eq!(memory.of("x/m"), Some(learnt(1.0, NOW)), "what can't be written is known all the same");
    }
}
