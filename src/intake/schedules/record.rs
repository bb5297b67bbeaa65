//! What is kept of schedules below `state/schedules/`, so that they outlive the daemon and a broken file.
//!
//! # Format
//!
//! Two files each, called as the schedule's file or folder in the jobs folder:
//!
//! | file | holds |
//! |---|---|
//! | `NAME.HASH.toml` | the last version of its spec in which nothing was wrong; `HASH`: the first digits of its own |
//! | `NAME.json` | what was decided about its times, and which text they are of: [`Record`] |
//!
//! The record is written last, in one step, so that text and rule change together: a text that no record names does
//! not count, whether a crash left it or a disk that took one file and refused the other.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use crate::diag::printable;
use crate::domain::Timestamp;
use crate::intake::claim::Dropped;
use crate::intake::name::safe_name;
use crate::intake::remove::remove_file;
use crate::intake::{Error, failed};
use crate::schedule::{CatchUp, Overlap, Schedule};
use crate::store::folder;

const RECORD: &str = ".json";

/// Of a text's hash, in its name: two versions of one spec are told apart.
const HASH_DIGITS: usize = 16;

/// Leaves room in a 255-byte name for hash and endings, and for those of a file that is being written.
const NAME_BYTES_MAX: usize = 200;

/// What is durable of a schedule beside its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Its name in the jobs folder.
    pub(super) file: String,
    pub(super) dropped: Dropped,
    pub(super) first_seen: Timestamp,
    /// The BLAKE3 of its text.
    pub(super) text: String,
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
        // What is left of a version that was not kept yet, or not any more.
        for path in others {
            if !records.iter().any(|record| self.text(record) == path) {
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
    pub(super) fn text(&self, record: &Record) -> PathBuf {
        let hash = record.text.get(..HASH_DIGITS).unwrap_or(&record.text);
        self.path(&record.file, &format!(".{hash}.toml"))
    }

    /// Reads the text that a record names; none if it is not there any more, or is another.
    pub(super) fn read_text(&self, record: &Record) -> Result<Option<String>, Error> {
        let path = self.text(record);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text).filter(|text| hash(text) == record.text)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                Ok(None)
            }
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// Writes the text that `record` names. It counts once the record does.
    pub(super) fn write_text(&self, record: &Record, text: &str) -> Result<(), Error> {
        Ok(folder::write_atomic(&self.text(record), text.as_bytes())?)
    }

    /// Removes the text of a version that has been replaced. What can't be removed goes at the next start.
    pub(super) fn remove_text(&self, record: &Record) {
        if let Err(error) = remove_file(&self.text(record)) {
            debug!(%error, "the text of a schedule that was changed is left");
        }
    }

    pub(super) fn write(&self, record: &Record) -> Result<(), Error> {
        let path = self.path(&record.file, RECORD);
        let text = serde_json::to_vec(record).map_err(io::Error::from).map_err(failed("write", &path))?;
        Ok(folder::write_atomic(&path, &text)?)
    }

    /// A schedule is over.
    pub(super) fn remove(&self, record: &Record) -> Result<(), Error> {
        remove_file(&self.path(&record.file, RECORD))?;
        remove_file(&self.text(record))?;
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

/// What a record says of a text.
pub(super) fn hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::intake::schedules) fn record(file: &str) -> Record {
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
            text: hash(file),
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
            shelf.write_text(&record(name), name).unwrap();
            shelf.write(&record(name)).unwrap();
        }
        let mut files: Vec<String> = shelf.load().unwrap().into_iter().map(|record| record.file).collect();
        files.sort();
        let mut expected = names.map(str::to_owned);
        expected.sort();
        assert_eq!(files, expected);
        for name in names {
            assert_eq!(shelf.read_text(&record(name)).unwrap().unwrap(), name);
            shelf.remove(&record(name)).unwrap();
        }
        assert_eq!(fs::read_dir(state.path().join("schedules")).unwrap().count(), 0);
    }

    #[test]
    fn what_a_crash_left_is_removed_and_what_is_damaged_begins_anew() {
        let state = tempfile::tempdir().unwrap();
        let shelf = Shelf::below(state.path());
        shelf.load().unwrap();
        shelf.write_text(&record("a.toml"), "a.toml").unwrap();
        shelf.write(&record("a.toml")).unwrap();
        let edited = Record { text: hash("edited"), ..record("a.toml") };
        shelf.write_text(&edited, "edited").unwrap();
        shelf.write_text(&record("b.toml"), "no record yet").unwrap();
        let folder = state.path().join("schedules");
        fs::write(folder.join(".c.toml.json.tmp"), "{").unwrap();
        fs::write(folder.join("d.toml.json"), "{").unwrap();
        fs::write(folder.join("e.toml.json"), serde_json::to_vec(&record("f.toml")).unwrap()).unwrap();
        assert_eq!(shelf.load().unwrap(), [record("a.toml")]);
        let left = |record: &Record| shelf.text(record).exists();
        assert!(left(&record("a.toml")) && !left(&edited) && !left(&record("b.toml")));
        assert!(!folder.join(".c.toml.json.tmp").exists());
        // Another's text under its name is not its text.
        fs::write(shelf.text(&record("a.toml")), "torn").unwrap();
        assert_eq!(shelf.read_text(&record("a.toml")).unwrap(), None);
        fs::remove_file(shelf.text(&record("a.toml"))).unwrap();
        assert_eq!(shelf.read_text(&record("a.toml")).unwrap(), None);
    }

    #[test]
    fn records_of_this_version_can_be_read_by_the_next() {
        let text = r#"{"file":"a.toml","dropped":"toml","first_seen":1,"text":"af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262","rule":{"cron":"0 2 * * *","timezone":"UTC","catch_up":true,"queue":false,"jitter":{"secs":5,"nanos":0}},"last":1}"#;
        let record = Record { text: hash(""), ..record("a.toml") };
        assert_eq!(serde_json::from_str::<Record>(text).unwrap(), record);
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
    }
}
