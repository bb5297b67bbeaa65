//! A results file on its way: written under a temporary name, and under its own once it is whole and synced.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::Error;
use crate::disk::{self, File};
use crate::store::folder::{failed, publish, temporary_name};

/// One write of a results file.
const BUFFER_BYTES: usize = 256 << 10;

/// So much is written before it is synced. Without that the disk would have all of a large file to write in the one
/// `fsync` at its end, and nobody could tell that from one that does not come back.
pub(super) const PIECE_BYTES: u64 = 64 << 20;

/// A file that is being written under its temporary name.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    temporary: Temporary,
    file: BufWriter<File>,
    /// Bytes of lines since the last sync.
    unsynced: u64,
    /// Why a write by [`Write`] failed: who writes so may not tell.
    failed: Option<io::Error>,
}

/// Is removed with this, so that what could not be published does not fill the disk. Once it has its name it is gone.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        drop(disk::remove_file(&self.0));
    }
}

impl Target {
    pub(super) fn create(path: PathBuf) -> Result<Self, Error> {
        let temporary = Temporary(temporary_name(&path));
        let at = &temporary.0;
        let file = File::create(at).map_err(failed("create", at)).map_err(Error::Files)?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(Self { path, temporary, file, unsynced: 0, failed: None })
    }

    pub(super) fn write_line(&mut self, line: &[u8]) -> Result<(), Error> {
        let written = self.file.write_all(line).and_then(|()| self.file.write_all(b"\n"));
        self.unsynced += line.len() as u64;
        let is_piece = self.unsynced >= PIECE_BYTES;
        let written = if is_piece { written.and_then(|()| self.sync()) } else { written };
        written.map_err(failed("write", &self.temporary.0)).map_err(Error::Files)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.unsynced = 0;
        self.file.flush()?;
        self.file.get_ref().sync_data()
    }

    /// Whether everything written by [`Write`] has arrived in the file, and where that can be read.
    pub(super) fn arrived(&mut self) -> Result<&Path, Error> {
        let arrived = self.failed.take().map_or(Ok(()), Err).and_then(|()| self.file.flush());
        arrived.map_err(failed("write", &self.temporary.0)).map_err(Error::Files)?;
        Ok(&self.temporary.0)
    }

    pub(super) fn publish(self) -> Result<(), Error> {
        let Self { path, temporary, file, unsynced: _, failed: _ } = self;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error);
        let file = file.map_err(failed("write", &temporary.0)).map_err(Error::Files)?;
        publish(&file, &temporary.0, &path).map_err(Error::Files)
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes).map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                self.failed = Some(error);
            }
            kind.into()
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::disk::Act;
    use crate::disk::probe::{Probe, Verdict, install};

    /// Knows how much is written and not synced, and the most that ever was.
    #[derive(Debug, Default)]
    struct Unsynced {
        now: AtomicU64,
        most: AtomicU64,
    }

    impl Probe for Unsynced {
        fn before(&self, _: &Act<'_>) -> Verdict {
            Verdict::Go
        }

        fn after(&self, act: &Act<'_>) {
            if let Act::Append { bytes, .. } = act {
                let bytes = bytes.len() as u64;
                let now = self.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
                self.most.fetch_max(now, Ordering::Relaxed);
            } else if let Act::Sync { .. } = act {
                self.now.store(0, Ordering::Relaxed);
            }
        }
    }

    #[test]
    fn no_sync_has_more_than_a_piece_to_write_however_large_the_file_is() {
        let folder = tempfile::tempdir().unwrap();
        let seen = Arc::new(Unsynced::default());
        let _installed = install(folder.path(), Arc::<Unsynced>::clone(&seen));
        let mut target = Target::create(folder.path().join("output.jsonl")).unwrap();
        let line = vec![b'x'; 4 << 20];
        let lines = 2 * PIECE_BYTES / line.len() as u64 + 1;
        for _ in 0..lines {
            target.write_line(&line).unwrap();
        }
        target.publish().unwrap();
        let most = seen.most.load(Ordering::Relaxed);
        assert!(most <= PIECE_BYTES + line.len() as u64, "{most}");
        assert_eq!(seen.now.load(Ordering::Relaxed), 0, "all of it is synced in the end");
    }
}
