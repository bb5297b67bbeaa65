//! What is kept of schedules below `state/schedules/`, so that they outlive the daemon and a broken file.
//!
//! # Format
//!
//! Two files each, called as the schedule's file or folder in the jobs folder:
//!
//! | file | holds |
//! |---|---|
//! | `NAME.toml` | the last version of its spec in which nothing was wrong |
//! | `NAME.json` | what was decided about its times: [`Record`]. Written last, so its presence means *kept* |
//!
//! After a crash between the two the text is newer than the record. That is seen by what both say of the times, and
//! is an edit like any other.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::diag::printable;
use crate::domain::Timestamp;
use crate::intake::claim::Dropped;
use crate::intake::name::safe_name;
use crate::intake::remove::remove_file;
use crate::intake::{Error, failed};
use crate::schedule::{CatchUp, Overlap, Schedule};
use crate::store::folder;

const RECORD: &str = ".json";
const TEXT: &str = ".toml";

/// Leaves room in a 255-byte name for the endings, and for those of a file that is being written.
const NAME_BYTES_MAX: usize = 200;

/// What is durable of a schedule beside its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Its name in the jobs folder.
    pub(super) file: String,
    pub(super) dropped: Dropped,
    pub(super) first_seen: Timestamp,
    pub(super) rule: Rule,
    /// Every time up to this one has been decided about.
    pub(super) last: Timestamp,
    /// A time that is to get a run, until that is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) due: Option<Timestamp>,
    /// The name in `rejected/` of the report on the version that lies in the jobs folder, if that is broken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) report: Option<String>,
}

/// What the `[schedule]` of a spec says: if it changes, times that have passed were those of another schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rule {
    cron: String,
    timezone: String,
    catch_up: bool,
    queue: bool,
    jitter: Duration,
}

impl From<&Schedule> for Rule {
    fn from(schedule: &Schedule) -> Self {
        Self {
            cron: schedule.calendar.text().to_owned(),
            timezone: schedule.calendar.zone().name().to_owned(),
            catch_up: schedule.catch_up == CatchUp::Once,
            queue: schedule.overlap == Overlap::Queue,
            jitter: schedule.jitter,
        }
    }
}

/// The folder `state/schedules/`.
#[derive(Clone, Debug)]
pub(super) struct Shelf(PathBuf);

impl Shelf {
    pub(super) fn below(state: &Path) -> Self {
        Self(state.join("schedules"))
    }

    /// Makes the folder, and reads every record in it. One that can't be read is told of and left aside.
    pub(super) fn load(&self) -> Result<Vec<Record>, Error> {
        folder::make_private_dir(&self.0)?;
        let mut records = Vec::new();
        let mut others = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(failed("read", &self.0))? {
            let path = entry.map_err(failed("read", &self.0))?.path();
            let is_record = path.extension().is_some_and(|ending| ending == "json");
            match is_record.then(|| self.read(&path)) {
                Some(Ok(record)) => records.push(record),
                Some(Err(error)) => {
                    let path = printable(&path.display().to_string());
                    warn!(%path, %error, "the record of a schedule can't be read: the schedule begins anew");
                }
                None => others.push(path),
            }
        }
        // What a crash left of a schedule that was not kept yet, or not any more.
        for path in others {
            if !records.iter().any(|record| self.text(&record.file) == path) {
                remove_file(&path)?;
            }
        }
        Ok(records)
    }

    fn read(&self, path: &Path) -> io::Result<Record> {
        let record: Record = serde_json::from_slice(&fs::read(path)?)?;
        let is_own = self.path(&record.file, RECORD) == path;
        if is_own { Ok(record) } else { Err(io::Error::other("it is that of another schedule")) }
    }

    /// Where the last good version of a schedule's spec is.
    pub(super) fn text(&self, file: &str) -> PathBuf {
        self.path(file, TEXT)
    }

    pub(super) fn write_text(&self, file: &str, text: &str) -> Result<(), Error> {
        Ok(folder::write_atomic(&self.text(file), text.as_bytes())?)
    }

    pub(super) fn write(&self, record: &Record) -> Result<(), Error> {
        let path = self.path(&record.file, RECORD);
        let text = serde_json::to_vec(record).map_err(io::Error::from).map_err(failed("write", &path))?;
        Ok(folder::write_atomic(&path, &text)?)
    }

    /// A schedule is over.
    pub(super) fn remove(&self, file: &str) -> Result<(), Error> {
        remove_file(&self.path(file, RECORD))?;
        remove_file(&self.text(file))?;
        Ok(folder::sync_dir(&self.0)?)
    }

    /// A name in the jobs folder ends neither in `~`, nor is it changed where it can be shown: no two are one here.
    fn path(&self, file: &str, ending: &str) -> PathBuf {
        let safe = safe_name(file.as_ref());
        if safe == file && safe.len() <= NAME_BYTES_MAX {
            return self.0.join(safe + ending);
        }
        let hash = blake3::hash(file.as_bytes()).to_hex();
        let start = safe.get(..safe.floor_char_boundary(NAME_BYTES_MAX - hash.len())).unwrap_or_default();
        self.0.join(format!("{start}-{hash}~{ending}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(file: &str) -> Record {
        let rule = Rule {
            cron: "0 2 * * *".to_owned(),
            timezone: "UTC".to_owned(),
            catch_up: true,
            queue: false,
            jitter: Duration::from_secs(5),
        };
        let at = Timestamp::from_millis(1);
        Record {
            file: file.to_owned(),
            dropped: Dropped::Toml,
            first_seen: at,
            rule,
            last: at,
            due: None,
            report: None,
        }
    }

    #[test]
    fn names_that_look_alike_are_kept_apart() {
        let state = tempfile::tempdir().unwrap();
        let shelf = Shelf::below(state.path());
        shelf.load().unwrap();
        let long = "x".repeat(249);
        let names =
            ["a.toml", "a", "a\u{202e}.toml", "a%E2%80%AE.toml", &format!("{long}1"), &format!("{long}2")];
        for name in names {
            shelf.write_text(name, name).unwrap();
            shelf.write(&record(name)).unwrap();
        }
        let mut files: Vec<String> = shelf.load().unwrap().into_iter().map(|record| record.file).collect();
        files.sort();
        let mut expected = names.map(str::to_owned);
        expected.sort();
        assert_eq!(files, expected);
        for name in names {
            assert_eq!(fs::read_to_string(shelf.text(name)).unwrap(), name);
            shelf.remove(name).unwrap();
        }
        assert_eq!(fs::read_dir(state.path().join("schedules")).unwrap().count(), 0);
    }

    #[test]
    fn what_a_crash_left_is_removed_and_what_is_damaged_begins_anew() {
        let state = tempfile::tempdir().unwrap();
        let shelf = Shelf::below(state.path());
        shelf.load().unwrap();
        shelf.write_text("a.toml", "text").unwrap();
        shelf.write(&record("a.toml")).unwrap();
        shelf.write_text("b.toml", "no record yet").unwrap();
        let folder = state.path().join("schedules");
        fs::write(folder.join(".c.toml.json.tmp"), "{").unwrap();
        fs::write(folder.join("d.toml.json"), "{").unwrap();
        fs::write(folder.join("e.toml.json"), serde_json::to_vec(&record("f.toml")).unwrap()).unwrap();
        assert_eq!(shelf.load().unwrap(), [record("a.toml")]);
        assert!(shelf.text("a.toml").exists() && !shelf.text("b.toml").exists());
        assert!(!folder.join(".c.toml.json.tmp").exists());
    }

    #[test]
    fn records_of_this_version_can_be_read_by_the_next() {
        let text = r#"{"file":"a.toml","dropped":"toml","first_seen":1,"rule":{"cron":"0 2 * * *","timezone":"UTC","catch_up":true,"queue":false,"jitter":{"secs":5,"nanos":0}},"last":1}"#;
        assert_eq!(serde_json::from_str::<Record>(text).unwrap(), record("a.toml"));
        assert_eq!(serde_json::to_string(&record("a.toml")).unwrap(), text);
    }
}
