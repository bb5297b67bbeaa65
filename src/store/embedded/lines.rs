//! Reading a job's input: one line, by its entry in the line index.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::domain::{LineEntry, RequestId};
use crate::store::embedded::EmbeddedStore;
use crate::store::embedded::files::{JobFiles, line_at};
use crate::store::folder::failed;
use crate::store::{Error, Line, Result};

/// Lines up to this size are read where they are asked for; the page cache has them or soon will. Longer
/// ones are read by a blocking task.
const INLINE_READ_MAX: u32 = 64 * 1024;

impl EmbeddedStore {
    pub(super) fn read_entry(&self, files: &JobFiles, request: RequestId) -> Result<LineEntry> {
        let mut bytes = [0; LineEntry::SIZE];
        let offset = u64::from(request.index) * LineEntry::SIZE as u64;
        match files.index.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(LineEntry::decode(&bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(Error::Stale(request)),
            Err(error) => Err(failed("read", &self.job_folder(request.job).index())(error)),
        }
    }

    pub(super) async fn read_line(&self, request: RequestId) -> Result<Line> {
        let files = self.files(request.job)?;
        let entry = self.read_entry(&files, request)?;
        let read = {
            let input = Arc::clone(&files.input);
            move || line_at(&input, entry)
        };
        let bytes = if entry.length <= INLINE_READ_MAX {
            read()
        } else {
            tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
        };
        match bytes {
            Ok(bytes) => Ok(Line { bytes, number: entry.line }),
            Err(error) => Err(failed("read", &self.job_folder(request.job).input())(error)),
        }
    }
}
