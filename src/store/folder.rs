//! A job's folder below `state/jobs/`, and how files are put there so that a power cut can't tear them.
//!
//! # Format
//!
//! | file | holds |
//! |---|---|
//! | `claim.json` | while a spec is being accepted: where it came from, so that a crash can put it back |
//! | `spec/` | a TOML spec as `job.toml`, or the folder that was dropped |
//! | `input.jsonl` | the requests, one a line; immutable. Of a JSONL job it is the dropped file itself |
//! | `lines.idx` | 16 bytes a request ([`LineEntry`](crate::domain::LineEntry)) |
//! | `state.json` | the job and its status; written last, so its presence means *accepted* |
//! | `intents.log` | what was about to be sent, and attempts that ended without a record |
//! | `results.log` | the journal |
//! | `memo-<n>.json` | what the next attempt of request `n` must know of the last one: how far a fine-tune has come |
//! | `training.jsonl`, `validation.jsonl` | the data of a fine-tune, as it was accepted |
//! | `results.torn.<n>`, `intents.torn.<n>` | what a crash tore off one of the logs, for a person to look at |
//!
//! A folder `<JobId>.removed` is what is left of one of a job that was removed. No job is called so.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::disk::{self, File};
use crate::domain::JobId;
use crate::store::{Error, Result};

/// In the folder of a spec that asks failed requests again: the id of the job in which they failed.
pub const ORIGIN: &str = "again-of";
/// In the same folder: those requests.
pub const AGAIN: &str = "requests.jsonl";

/// The ending of a job's folder once the job was removed.
const REMOVED: &str = "removed";

/// The paths of one job's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobFolder(PathBuf);

impl JobFolder {
    /// The folder of job `id` below `state` (`<root>/state`).
    pub fn new(state: &Path, id: JobId) -> Self {
        Self(state.join("jobs").join(id.to_string()))
    }

    pub const fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn claim(&self) -> PathBuf {
        self.0.join("claim.json")
    }

    pub fn spec(&self) -> PathBuf {
        self.0.join("spec")
    }

    pub fn input(&self) -> PathBuf {
        self.0.join("input.jsonl")
    }

    pub fn index(&self) -> PathBuf {
        self.0.join("lines.idx")
    }

    pub fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    pub fn intents(&self) -> PathBuf {
        self.0.join("intents.log")
    }

    pub fn journal(&self) -> PathBuf {
        self.0.join("results.log")
    }

    pub fn memo(&self, index: u32) -> PathBuf {
        self.0.join(format!("memo-{index}.json"))
    }

    /// The name that the folder has from when the job was removed until its files are.
    pub fn removed(&self) -> PathBuf {
        self.0.with_added_extension(REMOVED)
    }

    /// Whether a folder is one that [`JobFolder::removed`] names.
    pub fn is_removed(path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str());
        let id = name.and_then(|name| name.strip_suffix(REMOVED)?.strip_suffix('.'));
        id.is_some_and(|id| id.parse::<JobId>().is_ok())
    }

    /// Whether the job was accepted once, although its `state.json` is missing: then its requests may have been sent
    /// and paid for, and its spec must not run anew as if they had not.
    ///
    /// While a spec is being accepted its claim is there, and nothing is in the two logs.
    pub fn was_accepted(&self) -> Result<bool> {
        let length = |path: &Path| match std::fs::metadata(path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("look at", path)(error)),
        };
        let wrote = length(&self.journal())? > Some(0) || length(&self.intents())? > Some(0);
        let has_requests = length(&self.input())?.is_some() || length(&self.index())?.is_some();
        Ok(wrote || (has_requests && length(&self.claim())?.is_none()))
    }

    /// Makes the folder, only for us (0700), and syncs the folder it is in.
    pub fn create(&self) -> Result<()> {
        make_private_dir(&self.0)?;
        sync_parent(&self.0)
    }
}

/// Turns an I/O error into one that says which act on which path failed. Costs nothing where there is none.
pub fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { act, path: path.to_owned(), source }
}

/// Makes a folder with mode 0700, and those above it; one that is there stays as it is.
pub fn make_private_dir(path: &Path) -> Result<()> {
    disk::make_private_dir(path).map_err(failed("create folder", path))
}

/// Opens a new private file (0600) for writing; it must not be there yet.
pub fn create_private(path: &Path) -> Result<File> {
    File::create_private(path).map_err(failed("create", path))
}

/// Syncs a folder, which makes the names in it durable.
pub fn sync_dir(path: &Path) -> Result<()> {
    disk::sync_dir(path).map_err(failed("sync folder", path))
}

/// Syncs the folder that `path` is in.
pub fn sync_parent(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), sync_dir)
}

/// Replaces `path` by `bytes` as one step: temporary name, fsync, rename, fsync of the folder. After a
/// power cut the file holds the old bytes or the new, never a mixture. What could not be finished is removed, so that
/// a disk that was full is not left fuller.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary_name(path);
    let mut file = File::create(&temporary).map_err(failed("create", &temporary))?;
    let written = file.write_all(bytes).map_err(failed("write", &temporary));
    written.and_then(|()| publish(&file, &temporary, path)).inspect_err(|_| {
        // It is not there if it has its name already.
        drop(disk::remove_file(&temporary));
    })
}

/// Gives a fully written `file` at `temporary` its name `path`: fsync, rename, fsync of the folder.
pub fn publish(file: &File, temporary: &Path, path: &Path) -> Result<()> {
    file.sync_all().map_err(failed("sync", temporary))?;
    disk::rename(temporary, path).map_err(failed("rename into place", path))?;
    sync_parent(path)
}

/// The name under which `path` is written before it is whole: `.<name>.tmp` beside it.
pub fn temporary_name(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn atomic_writes_replace_the_whole_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        write_atomic(&path, b"a longer first text").unwrap();
        write_atomic(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn errors_name_the_act_and_the_path() {
        let error = write_atomic(Path::new("/proc/none/x"), b"").unwrap_err();
        assert!(error.to_string().starts_with("create /proc/none/.x.tmp: "), "{error}");
    }

    #[test]
    fn a_job_without_its_state_was_accepted_if_anything_was_sent_or_its_claim_is_over() {
        let table: [(&[(&str, &str)], bool); 8] = [
            (&[], false),
            (&[("claim.json", "{}"), ("input.jsonl", "x"), ("lines.idx", "x")], false),
            (&[("claim.json", "{}"), ("input.jsonl", "x"), ("intents.log", ""), ("results.log", "")], false),
            (&[("claim.json", "{}"), ("intents.log", "send"), ("results.log", "")], true),
            (&[("claim.json", "{}"), ("results.log", "{")], true),
            (&[("input.jsonl", "x"), ("lines.idx", "x"), ("intents.log", ""), ("results.log", "")], true),
            (&[("lines.idx", "x")], true),
            (&[(".claim.json.tmp", "{")], false),
        ];
        for (files, accepted) in table {
            let dir = tempfile::tempdir().unwrap();
            for (name, text) in files {
                fs::write(dir.path().join(name), text).unwrap();
            }
            assert_eq!(JobFolder::at(dir.path().to_owned()).was_accepted().unwrap(), accepted, "{files:?}");
        }
    }
}
