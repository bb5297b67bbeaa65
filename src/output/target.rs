//! A results file on its way: written under a temporary name, and under its own once it is whole and synced.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::Error;
use crate::disk::{self, File};
use crate::store::folder::{failed, publish, temporary_name};

/// One write of a results file.
const BUFFER_BYTES: usize = 256 << 10;

/// A file that is being written under its temporary name.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    temporary: Temporary,
    file: BufWriter<File>,
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
        Ok(Self { path, temporary, file: BufWriter::with_capacity(BUFFER_BYTES, file), failed: None })
    }

    pub(super) fn write_line(&mut self, line: &[u8]) -> Result<(), Error> {
        let written = self.file.write_all(line).and_then(|()| self.file.write_all(b"\n"));
        written.map_err(failed("write", &self.temporary.0)).map_err(Error::Files)
    }

    /// Whether everything written by [`Write`] has arrived in the file, and where that can be read.
    pub(super) fn arrived(&mut self) -> Result<&Path, Error> {
        let arrived = self.failed.take().map_or(Ok(()), Err).and_then(|()| self.file.flush());
        arrived.map_err(failed("write", &self.temporary.0)).map_err(Error::Files)?;
        Ok(&self.temporary.0)
    }

    pub(super) fn publish(self) -> Result<(), Error> {
        let Self { path, temporary, file, failed: _ } = self;
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
