//! An append-only file of lines, shared by the tasks that write it and the thread that syncs it.
//!
//! # Invariants
//!
//! - Appends are whole lines, in one order. A failed append leaves no half line behind: it is cut off then, or, if
//!   that fails as well, before the next one.
//! - What is below [`Log::durable`] has been `fdatasync`ed. Readers of a journal end there.
//! - A failed sync is never tried again as if nothing had happened: the kernel may have dropped what it could not
//!   write, and would report success. The next [`Log::sync`] writes everything since the last good one again, at its
//!   place and with the same bytes, and syncs it through a new descriptor. What can't be read back whole is
//!   [`Error::Damaged`].

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{self, File};
use crate::domain::record::JournalLine;
use crate::store::embedded::intents::Intent;
use crate::store::folder::failed;
use crate::store::{Error, Result};

/// Of a mean that follows the largest: it forgets half of a large record within so many times 0.7.
const FORGET: u64 = 64;

#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    /// The lock makes an append and what the caller does with it one step.
    end: Mutex<End>,
    durable: AtomicU64,
}

#[derive(Debug)]
struct End {
    file: Arc<File>,
    /// Bytes of whole lines written.
    length: u64,
    /// Half a line may lie behind `length`.
    is_torn: bool,
    /// A sync has failed: what is not durable may be gone with the kernel's next breath.
    is_doubtful: bool,
    /// Up to here there is room on the disk; none where the file system does not reserve.
    reserved: Option<u64>,
    /// The largest line of late.
    expected: u64,
}

impl Log {
    /// Opens the log, empty if it is not there yet. Its whole content counts as durable: whoever recovers
    /// it has synced it. A torn last line is ended, so that the next one is not glued to it.
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        let file = File::append_private(&path).map_err(failed("open", &path))?;
        let mut length = file.inner().metadata().map_err(failed("look at", &path))?.len();
        let mut last = *b"\n";
        if let Some(at) = length.checked_sub(1) {
            file.inner().read_exact_at(&mut last, at).map_err(failed("read", &path))?;
        }
        if last != *b"\n" {
            // What a crash tore must not take the next line with it.
            (&file).write_all(b"\n").map_err(failed("append to", &path))?;
            length += 1;
        }
        let end = End {
            file: Arc::new(file),
            length,
            is_torn: false,
            is_doubtful: false,
            reserved: Some(length),
            expected: 0,
        };
        Ok(Self { path, end: Mutex::new(end), durable: AtomicU64::new(length) })
    }

    /// As a start for what is learnt: so many bytes may a line have.
    pub(super) fn expecting(mut self, bytes: u64) -> Self {
        self.end.get_mut().unwrap_or_else(PoisonError::into_inner).expected = bytes;
        self
    }

    /// Appends a whole line and hands the log's new length to `then` before anybody else can append. After an error
    /// nothing of the line is there, and it may be appended again.
    pub(super) fn append(&self, line: &[u8], then: impl FnOnce(u64)) -> Result<()> {
        let mut end = self.lock();
        end.mend().map_err(failed("cut a half line off", &self.path))?;
        if let Err(error) = (&*end.file).write_all(line) {
            // A disk that fills up takes a part of the line; the next one must not be glued to it.
            end.is_torn = true;
            drop(end.mend());
            return Err(failed("append to", &self.path)(error));
        }
        let bytes = line.len() as u64;
        end.length += bytes;
        end.expected = bytes.max(end.expected - end.expected / FORGET);
        then(end.length);
        Ok(())
    }

    /// Bytes that a line to come may have: the most of late.
    pub(super) fn expected(&self) -> u64 {
        self.lock().expected
    }

    /// Sees to it that the next `bytes` that are appended have room on the disk; takes `step` bytes of it at once if
    /// it can. Says whether that is sure: not every file system can reserve.
    pub(super) fn reserve(&self, bytes: u64, step: u64) -> Result<bool> {
        let mut end = self.lock();
        let Some(reserved) = end.reserved else { return Ok(false) };
        let needed = end.length + bytes;
        if needed <= reserved {
            return Ok(true);
        }
        let from = reserved.max(end.length);
        let (least, most) = (needed - from, step.max(needed - from));
        let taken = match end.file.reserve(from, most) {
            Err(error) if disk::is_full(&error) && most > least => {
                end.file.reserve(from, least).map(|()| least)
            }
            done => done.map(|()| most),
        };
        match taken {
            Ok(taken) => end.reserved = Some(from + taken),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => end.reserved = None,
            Err(error) => return Err(failed("reserve room in", &self.path)(error)),
        }
        Ok(end.reserved.is_some())
    }

    /// Gives back the room that was reserved and not used.
    pub(super) fn give_back(&self) {
        let mut end = self.lock();
        let length = end.length;
        if end.reserved.is_some_and(|reserved| reserved > length) {
            // A half line goes with it. If it can't be cut, no more than its room is lost.
            end.is_torn = end.file.cut(length).is_err() && end.is_torn;
            end.reserved = Some(length);
        }
    }

    /// Makes everything appended so far durable. After an error it may be called again, see the invariants.
    pub(super) fn sync(&self) -> Result<()> {
        let (file, length, is_doubtful) = {
            let end = self.lock();
            (Arc::clone(&end.file), end.length, end.is_doubtful)
        };
        if self.durable() == length {
            return Ok(());
        }
        if is_doubtful {
            return self.sync_anew();
        }
        if length <= self.durable() {
            return Ok(());
        }
        if let Err(error) = file.sync_data() {
            self.lock().is_doubtful = true;
            return Err(failed("sync", &self.path)(error));
        }
        self.durable.fetch_max(length, Ordering::AcqRel);
        Ok(())
    }

    /// Writes what is not durable again. Whoever appends waits for it.
    fn sync_anew(&self) -> Result<()> {
        let mut end = self.lock();
        // Before it is written again: what goes wrong from now on is told to this descriptor.
        let fresh = File::append_private(&self.path).map_err(failed("open", &self.path))?;
        let mut offset = self.durable();
        let file = fs::File::open(&self.path).map_err(failed("open", &self.path))?;
        let mut lines = BufReader::new(Reader { file, position: offset, end: end.length });
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).map_err(failed("read", &self.path))? > 0 {
            if !is_whole(&line) {
                let what = format!("a sync failed, and what was appended at byte {offset} is gone");
                return Err(Error::Damaged { path: self.path.clone(), what });
            }
            disk::overwrite(&self.path, offset, &line).map_err(failed("write again", &self.path))?;
            offset += line.len() as u64;
            line.clear();
        }
        fresh.sync_data().map_err(failed("sync", &self.path))?;
        end.file = Arc::new(fresh);
        end.is_doubtful = false;
        self.durable.fetch_max(end.length, Ordering::AcqRel);
        Ok(())
    }

    pub(super) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// A reader over what is durable now.
    pub(super) fn reader(&self) -> Result<Reader> {
        let file = fs::File::open(&self.path).map_err(failed("open", &self.path))?;
        Ok(Reader { file, position: 0, end: self.durable() })
    }

    fn lock(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl End {
    /// Cuts half a line off, if there is one; the room reserved behind it goes with it.
    fn mend(&mut self) -> io::Result<()> {
        if self.is_torn {
            self.file.cut(self.length)?;
            self.is_torn = false;
            self.reserved = self.reserved.map(|_| self.length);
        }
        Ok(())
    }
}

/// Whether a line is as it was appended: journals and intents carry checksums.
fn is_whole(line: &[u8]) -> bool {
    line.strip_suffix(b"\n")
        .is_some_and(|line| JournalLine::parse(line).is_some() || Intent::parse(line).is_some())
}

/// Reads a log up to a fixed end.
#[derive(Debug)]
pub(super) struct Reader {
    file: fs::File,
    position: u64,
    end: u64,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let Some(buffer) = buffer.get_mut(..wanted) else { return Ok(0) };
        let read = self.file.read_at(buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Reader {
    fn seek(&mut self, target: SeekFrom) -> io::Result<u64> {
        let position = match target {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.end.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_end_at_what_is_durable() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path().join("log")).unwrap();
        let mut end = 0;
        log.append(b"one\n", |length| end = length).unwrap();
        assert_eq!((end, log.durable()), (4, 0));
        log.sync().unwrap();
        log.append(b"two\n", |_| ()).unwrap();
        let mut text = String::new();
        let mut reader = log.reader().unwrap();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one\n");
        assert_eq!(reader.seek(SeekFrom::End(-2)).unwrap(), 2);
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one\ne\n");
    }

    #[test]
    fn reopening_goes_on_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        Log::open(path.clone()).unwrap().append(b"one\n", |_| ()).unwrap();
        let log = Log::open(path.clone()).unwrap();
        assert_eq!(log.durable(), 4);
        log.append(b"two\n", |length| assert_eq!(length, 8)).unwrap();
        assert_eq!(fs::read(path).unwrap(), b"one\ntwo\n");
    }

    #[test]
    fn a_line_behind_a_torn_one_stands_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "send 1").unwrap();
        let log = Log::open(path.clone()).unwrap();
        log.append(b"two\n", |length| assert_eq!(length, 11)).unwrap();
        assert_eq!(fs::read(path).unwrap(), b"send 1\ntwo\n");
    }
}
