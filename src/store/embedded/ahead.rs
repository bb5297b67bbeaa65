//! Room for sled: what it writes next finds its place, and it is not opened on a full disk.
//!
//! sled 0.34 is of no use after its first failed write until the process restarts, and an opening that runs out of
//! room can leave it unopenable. It writes into its one file, `db`, and a snapshot when it opens. So room is reserved
//! behind the end of `db` before each change; while there is none, changes wait in memory. They are in the journals
//! and intents already.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::disk::{self, File};
use crate::store::folder::failed;
use crate::store::{Error, Result};

/// What sled may take between two looks, or that part of the file system if that is less. Twice as much is reserved,
/// so that it is done seldom. sled writes whole segments of 512 KiB.
const AHEAD: u64 = 8 << 20;
const AHEAD_PART: u64 = 32;

/// An opening takes room for a snapshot and for the log to grow: so much, or that part of the file system if that is
/// less, beside twice the newest snapshot.
const OPEN: u64 = 64 << 20;
const OPEN_PART: u64 = 16;

/// A snapshot is a new file, and one is set aside at worst.
const OPEN_FILES: u64 = 8;

/// Blocks that `stat` counts in.
const BLOCK_BYTES: u64 = 512;

/// sled's file, as we see it from outside.
#[derive(Debug)]
pub(super) struct Ahead {
    path: PathBuf,
    file: File,
    /// What sled may take between two looks.
    bytes: u64,
    /// Whether the file system can reserve, as far as is known.
    reserves: bool,
}

impl Ahead {
    /// `path` is sled's `db`.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::append_private(path).map_err(failed("open", path))?;
        let total = disk::space(path).map_err(failed("look at", path))?.total;
        Ok(Self { path: path.to_owned(), file, bytes: AHEAD.min(total / AHEAD_PART), reserves: true })
    }

    /// Makes what sled has written durable: its own `flush` does not.
    pub(super) fn sync(&self) -> std::io::Result<()> {
        self.file.sync_data()
    }

    /// Sees to it that sled's next writes, and `more` bytes, have room. Costs one `fstat` where they have.
    pub(super) fn reserve(&mut self, more: u64) -> Result<()> {
        if !self.reserves {
            return self.look(more);
        }
        let path = &self.path;
        let metadata = self.file.inner().metadata().map_err(failed("look at", path))?;
        // sled cuts its file now and then, and our room with it: so the file itself is asked, each time.
        let ahead = metadata.blocks().saturating_mul(BLOCK_BYTES).saturating_sub(metadata.len());
        if ahead >= self.bytes + more {
            return Ok(());
        }
        match self.file.reserve(metadata.len(), self.step(more)) {
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
                self.reserves = false;
                self.look(more)
            }
            reserved => reserved.map_err(failed("reserve room in", path)),
        }
    }

    /// How many bytes [`Ahead::reserve`] takes at once.
    pub(super) const fn step(&self, more: u64) -> u64 {
        2 * self.bytes + more
    }

    /// Where nothing can be reserved: whether it is free at least.
    fn look(&self, more: u64) -> Result<()> {
        let path = &self.path;
        let space = disk::space(path).map_err(failed("look at", path))?;
        if space.free >= self.bytes + more {
            return Ok(());
        }
        Err(failed("find room for", path)(std::io::ErrorKind::StorageFull.into()))
    }
}

/// Why sled's folder at `path` must not be opened now, if so.
pub(super) fn why_not_open(path: &Path) -> Option<String> {
    // A folder that is not there yet is made on the file system above it.
    let on = path.ancestors().find(|folder| folder.is_dir())?;
    let space = disk::space(on).ok()?;
    let needed = OPEN.min(space.total / OPEN_PART) + 2 * newest_snapshot(path);
    let enough = space.free >= needed && space.files >= OPEN_FILES;
    (!enough).then(|| {
        let [free, needed] = [space.free, needed].map(|bytes| bytesize::ByteSize::b(bytes).display().iec());
        let path = path.display();
        if space.files < OPEN_FILES {
            let files = space.files;
            format!(
                "{path} is opened when {OPEN_FILES} more files can be made; now it is {files}: remove some"
            )
        } else {
            format!("{path} is opened when {needed} are free; now it is {free}: free some space")
        }
    })
}

fn newest_snapshot(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    let snapshots =
        entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("snap."));
    snapshots.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).max().unwrap_or(0)
}

/// For a start that finds no room.
pub(super) fn refuse_if_full(path: &Path) -> Result<()> {
    why_not_open(path).map_or(Ok(()), |why| Err(Error::Full(why)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_sled_writes_next_has_its_place_even_after_sled_cut_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let mut ahead = Ahead::open(&path).unwrap();
        let taken = || fs::metadata(&path).unwrap().blocks() * BLOCK_BYTES;
        for _ in 0..2 {
            ahead.reserve(0).unwrap();
            assert!(taken() >= ahead.bytes, "{}", taken());
            assert_eq!(fs::metadata(&path).unwrap().len() % 4096, 0, "its length stays");
            let theirs = fs::OpenOptions::new().append(true).open(&path).unwrap();
            (&theirs).write_all(&[1; 4096]).unwrap();
            theirs.set_len(4096).unwrap();
        }
    }
}
