//! An append-only file of lines, shared by the tasks that write it and the thread that syncs it.
//!
//! # Invariants
//!
//! - Appends are whole lines, in one order. A failed append leaves no half line behind.
//! - What is below [`Log::durable`] has been `fdatasync`ed. Readers of a journal end there.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::disk::File;
use crate::store::Result;
use crate::store::folder::failed;

#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines written. The lock makes an append and what the caller does with it one step.
    length: Mutex<u64>,
    durable: AtomicU64,
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
        Ok(Self { path, file, length: Mutex::new(length), durable: AtomicU64::new(length) })
    }

    /// Appends a whole line and hands the log's new length to `then` before anybody else can append.
    pub(super) fn append(&self, line: &[u8], then: impl FnOnce(u64)) -> Result<()> {
        let mut length = self.length.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = (&self.file).write_all(line) {
            // A disk that fills up takes a part of the line; the next one must not be glued to it.
            self.file.cut(*length).map_err(failed("cut a half line off", &self.path))?;
            return Err(failed("append to", &self.path)(error));
        }
        *length += line.len() as u64;
        then(*length);
        Ok(())
    }

    /// Makes everything appended so far durable.
    pub(super) fn sync(&self) -> Result<()> {
        let length = *self.length.lock().unwrap_or_else(PoisonError::into_inner);
        self.file.sync_data().map_err(failed("sync", &self.path))?;
        self.durable.fetch_max(length, Ordering::AcqRel);
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
