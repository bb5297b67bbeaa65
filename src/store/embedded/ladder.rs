//! Opening sled without being bitten: a kill while it opens, or a full disk, can leave it unopenable.
//!
//! # Operation
//!
//! Each rung is tried only if the one before failed, by an error or a panic:
//!
//! 1. Half-written snapshots (`snap.*.generating`) are removed: sled would take one for the newest and
//!    refuse to open for ever.
//! 2. All snapshots are set aside; sled then reads its whole log again.
//! 3. The database is set aside and a new one begun. The index is then rebuilt from the jobs' folders, which
//!    hold everything that cost money.
//!
//! What is set aside lies in `state/corrupt/sled`, for a person to look at. It replaces what lay there before, so
//! that copies never pile up.
//!
//! A disk that is full climbs no rung: nothing is opened on one, and an opening that runs out of room is tried again
//! when there is some ([`Error::is_full`]).
//!
//! After creation its files and folders are synced, which sled itself does not do.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::disk::{self, File};
use crate::fault;
use crate::store::embedded::ahead::{self, Ahead};
use crate::store::folder::{failed, make_private_dir, sync_dir, sync_parent};
use crate::store::{Error, Result};

/// Enough for the ranges of tens of millions of requests; sled takes 1 GiB by default.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;

/// How often, and how far apart, a database of this process that is still closing is tried: 10 s in all.
const LOCK_TRIES: u32 = 500;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// sled, open, with our own handle to sync its file by.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) db: sled::Db,
    /// `db` within the database's folder: sled's `flush` never calls fsync on Linux, so we do.
    pub(super) file: Ahead,
    /// Nothing of an earlier database is left in it: every job must be indexed anew.
    pub(super) fresh: bool,
}

/// Opens the database at `path`, whatever state a crash left it in.
pub(super) fn open(path: &Path, corrupt: &Path) -> Result<Opened> {
    ahead::refuse_if_full(path)?;
    let existed = path.join("db").exists();
    make_private_dir(path)?;
    remove_half_written_snapshots(path)?;
    fault::point("recover-index-opening");
    let first = match guarded_open(path) {
        Ok(db) => return finish(db, path, !existed),
        Err(why) => why.unless_full(path)?,
    };
    tracing::warn!(error = first, "sled did not open; setting its snapshots aside");
    let aside = make_room(corrupt)?;
    move_aside(path, &aside, |name| name.starts_with("snap."))?;
    let second = match guarded_open(path) {
        Ok(db) => return finish(db, path, false),
        Err(why) => why.unless_full(path)?,
    };
    tracing::error!(
        error = second,
        "sled can't be opened; setting it aside and rebuilding the index from the job folders"
    );
    move_aside(path, &aside, |_| true)?;
    fault::point("recover-index-set-aside");
    let db = match guarded_open(path) {
        Ok(db) => db,
        Err(why) => return Err(Error::Damaged { path: path.to_owned(), what: why.unless_full(path)? }),
    };
    finish(db, path, true)
}

/// Why sled did not open.
#[derive(Debug)]
enum NotOpened {
    Full(std::io::Error),
    Broken(String),
}

impl NotOpened {
    fn unless_full(self, path: &Path) -> Result<String> {
        match self {
            Self::Full(error) => Err(failed("open", path)(error)),
            Self::Broken(why) => Ok(why),
        }
    }
}

fn guarded_open(path: &Path) -> Result<sled::Db, NotOpened> {
    let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
    let mut tries = 0;
    loop {
        // sled asserts on what it reads; a panic here must not take the daemon down.
        match catch_unwind(AssertUnwindSafe(|| config.open())) {
            Ok(Ok(db)) => return Ok(db),
            Ok(Err(error)) if is_still_closing(&error) && tries < LOCK_TRIES => tries += 1,
            Ok(Err(sled::Error::Io(error))) if disk::is_full(&error) => return Err(NotOpened::Full(error)),
            // sled panics on a disk that fills up while it opens, too.
            Ok(Err(_)) | Err(_) if ahead::why_not_open(path).is_some() => {
                return Err(NotOpened::Full(std::io::ErrorKind::StorageFull.into()));
            }
            Ok(Err(error)) => return Err(NotOpened::Broken(error.to_string())),
            Err(_) => return Err(NotOpened::Broken("sled panicked while opening".to_owned())),
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "a file lock gives no event to wait on; this runs before any task"
        )]
        std::thread::sleep(LOCK_PAUSE);
    }
}

/// Nobody but us may hold sled's lock, for we hold our own: it is a database of this process whose last
/// thread has not ended yet. Setting that aside would throw a sound index away.
fn is_still_closing(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(io) if io.to_string().contains("could not acquire lock"))
}

fn finish(db: sled::Db, path: &Path, fresh: bool) -> Result<Opened> {
    for name in ["conf", "db"] {
        let file = path.join(name);
        opened(&file)?.sync_all().map_err(failed("sync", &file))?;
    }
    let blobs = path.join("blobs");
    if blobs.is_dir() {
        sync_dir(&blobs)?;
    }
    sync_dir(path)?;
    sync_parent(path)?;
    let file = Ahead::open(&path.join("db"))?;
    fault::point("recover-index-opened");
    Ok(Opened { db, file, fresh })
}

fn opened(path: &Path) -> Result<File> {
    let file = fs::File::open(path).map_err(failed("open", path))?;
    Ok(File::adopt(path.to_owned(), file))
}

fn remove_half_written_snapshots(path: &Path) -> Result<()> {
    for name in names(path)? {
        if name.starts_with("snap.") && name.ends_with(".generating") {
            let file = path.join(name);
            disk::remove_file(&file).map_err(failed("remove", &file))?;
        }
    }
    sync_dir(path)
}

/// Sets the whole database aside, so that the next opening begins a new one. Nobody may have it open.
pub(super) fn set_aside(path: &Path, corrupt: &Path) -> Result<()> {
    if path.is_dir() {
        let aside = make_room(corrupt)?;
        move_aside(path, &aside, |_| true)?;
    }
    Ok(())
}

/// The folder for what is set aside, empty.
fn make_room(corrupt: &Path) -> Result<PathBuf> {
    let aside = corrupt.join("sled");
    if aside.is_dir() {
        disk::remove_dir_all(&aside).map_err(failed("remove", &aside))?;
    }
    make_private_dir(&aside)?;
    sync_dir(corrupt)?;
    Ok(aside)
}

/// Moves what `matches` out of the database's folder into `aside`.
fn move_aside(path: &Path, aside: &Path, matches: impl Fn(&str) -> bool) -> Result<()> {
    for name in names(path)?.into_iter().filter(|name| matches(name)) {
        let (from, to) = (path.join(&name), aside.join(&name));
        disk::rename(&from, &to).map_err(failed("set aside", &from))?;
    }
    sync_dir(aside)?;
    sync_dir(path)
}

fn names(path: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(path).map_err(failed("read folder", path))?;
    let names = entries.map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()));
    names.collect::<Result<_, _>>().map_err(failed("read folder", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(path: &Path) {
        let opened = open(path, &path.with_extension("corrupt")).unwrap();
        for n in 0..1000u32 {
            opened.db.insert(n.to_be_bytes(), vec![7; 64]).unwrap();
        }
        opened.db.flush().unwrap();
        drop(opened);
    }

    fn kept(path: &Path) -> (usize, bool) {
        let opened = open(path, &path.with_extension("corrupt")).unwrap();
        (opened.db.len(), opened.fresh)
    }

    #[test]
    fn a_half_written_snapshot_is_removed_and_nothing_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sled");
        filled(&path);
        fs::write(path.join("snap.ffffffffffffffff.generating"), b"torn").unwrap();
        assert_eq!(kept(&path), (1000, false));
    }

    #[test]
    fn damaged_snapshots_are_set_aside_and_the_log_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sled");
        filled(&path);
        drop(guarded_open(&path).unwrap()); // a second opening writes a snapshot
        let snapshots: Vec<_> =
            names(&path).unwrap().into_iter().filter(|name| name.starts_with("snap.")).collect();
        assert!(!snapshots.is_empty());
        for name in snapshots {
            fs::write(path.join(name), b"damaged").unwrap();
        }
        assert_eq!(kept(&path), (1000, false));
        assert_eq!(fs::read_dir(dir.path().join("sled.corrupt")).unwrap().count(), 1);
    }

    #[test]
    fn what_will_not_open_is_set_aside_and_a_new_database_begun() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sled");
        for _ in 0..2 {
            filled(&path);
            fs::remove_file(path.join("db")).unwrap();
            fs::create_dir(path.join("db")).unwrap();
            assert_eq!(kept(&path), (0, true));
            assert!(dir.path().join("sled.corrupt/sled/db").is_dir());
            assert_eq!(fs::read_dir(dir.path().join("sled.corrupt")).unwrap().count(), 1, "one is kept");
        }
    }

    #[test]
    fn a_new_database_says_that_it_is_fresh() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(kept(&dir.path().join("sled")), (0, true));
        assert_eq!(kept(&dir.path().join("sled")), (0, false));
    }
}
