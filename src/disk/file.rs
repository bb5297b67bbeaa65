//! A file that is written by appending, and whose every change goes through the seam.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use crate::disk::{Act, carry_out};

/// Every write lands at the end: no file of batchd is changed in the middle. ([`overwrite`] writes there what is
/// there already.)
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    file: fs::File,
}

impl File {
    /// A new file, readable as the umask has it; one that is there is emptied.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = carry_out(Act::Create { path }, || fs::File::create(path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// A new file that others can read, as the umask has it, but not write. [`io::ErrorKind::AlreadyExists`] if it is
    /// there.
    pub fn create_readable(path: &Path) -> io::Result<Self> {
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
        Ok(Self { path: path.to_owned(), file: carry_out(Act::Create { path }, open)? })
    }

    /// A new file that only we can read (0600). [`io::ErrorKind::AlreadyExists`] if it is there.
    pub fn create_private(path: &Path) -> io::Result<Self> {
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        Ok(Self { path: path.to_owned(), file: carry_out(Act::Create { path }, open)? })
    }

    /// Opens a file for reading and appending; makes it (0600) if it is not there.
    pub fn append_private(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).append(true);
        let file = match options.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                carry_out(Act::Create { path }, || options.create(true).mode(0o600).open(path))?
            }
            opened => opened?,
        };
        Ok(Self { path: path.to_owned(), file })
    }

    /// A file that the caller has opened, empty or at its end.
    pub const fn adopt(path: PathBuf, file: fs::File) -> Self {
        Self { path, file }
    }

    /// The file itself, for reading.
    pub const fn inner(&self) -> &fs::File {
        &self.file
    }

    /// Makes the content durable, and the length with it (`fdatasync`).
    pub fn sync_data(&self) -> io::Result<()> {
        carry_out(self.sync_act(), || self.file.sync_data())
    }

    /// Makes content and metadata durable (`fsync`).
    pub fn sync_all(&self) -> io::Result<()> {
        carry_out(self.sync_act(), || self.file.sync_all())
    }

    fn sync_act(&self) -> Act<'_> {
        Act::Sync { path: &self.path, file: &self.file }
    }

    /// Drops what is beyond `length` bytes, and the room reserved there.
    pub fn cut(&self, length: u64) -> io::Result<()> {
        let act = Act::Cut { path: &self.path, file: &self.file, length };
        carry_out(act, || self.file.set_len(length))
    }

    /// Takes room on the disk for `bytes` from `offset` on; the length stays. Bytes appended there then can't fail for
    /// want of space. [`io::ErrorKind::Unsupported`] where the file system has no such thing.
    pub fn reserve(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let act = Act::Reserve { path: &self.path, bytes };
        carry_out(act, || {
            rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, offset, bytes).map_err(Into::into)
        })
    }
}

/// Writes over a place of a file what was appended there before, so that the kernel takes it for unwritten and the
/// next sync carries it out anew: after a failed sync it would not. The content stays what it was at every moment.
pub fn overwrite(path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let act = Act::Overwrite { path, file: &file, offset, bytes };
    carry_out(act, || file.write_all_at(bytes, offset))
}

impl Write for &File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let act = Act::Append { path: &self.path, file: &self.file, bytes };
        carry_out(act, || (&self.file).write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
