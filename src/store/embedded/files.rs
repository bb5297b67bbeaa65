//! The files of one job: making its folder whole, and keeping it open while it runs.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use crate::disk;
use crate::domain::{Kind, LineEntry};
use crate::fault;
use crate::store::embedded::log::Log;
use crate::store::embedded::state::State;
use crate::store::folder::{JobFolder, create_private, failed, sync_dir};
use crate::store::{Error, Input, Result};

/// What a record is expected to take before the job's own say so: a long answer, and an image in base64.
const ANSWER_BYTES: u64 = 64 << 10;
const IMAGE_BYTES: u64 = 4 << 20;

/// The open files of one job.
#[derive(Debug)]
pub(super) struct JobFiles {
    pub(super) input: Arc<File>,
    pub(super) index: File,
    pub(super) journal: Log,
    pub(super) intents: Log,
    /// The sync thread is told of intents that are not durable.
    begun: AtomicBool,
}

impl JobFiles {
    /// Nobody reads or appends, and every record is durable: closing the files forgets nothing.
    pub(super) fn is_at_rest(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1
    }

    /// Gives back the room that was reserved for answers; for a job that has none in flight.
    pub(super) fn give_back(&self) {
        self.journal.give_back();
        self.intents.give_back();
    }

    pub(super) fn open(folder: &JobFolder) -> Result<Self> {
        let open = |path: PathBuf| File::open(&path).map_err(failed("open", &path));
        let makes_images = State::read(folder)?.is_some_and(|state| state.job.kind == Kind::Images);
        let expected = if makes_images { IMAGE_BYTES } else { ANSWER_BYTES };
        Ok(Self {
            input: Arc::new(open(folder.input())?),
            index: open(folder.index())?,
            journal: Log::open(folder.journal())?.expecting(expected),
            intents: Log::open(folder.intents())?,
            begun: AtomicBool::new(false),
        })
    }

    /// Whether the sync thread is to be told of an intent that was just written: once for all of a moment.
    pub(super) fn is_first_begun(&self) -> bool {
        !self.begun.swap(true, Ordering::AcqRel)
    }

    /// Before intents are synced: what is written from now on may miss that sync, and is told anew.
    pub(super) fn heed_begun(&self) {
        self.begun.store(false, Ordering::Release);
    }
}

/// The bytes of a line of the input. A damaged entry may name 4 GiB: memory is taken only for what is there.
pub(super) fn line_at(input: &File, entry: LineEntry) -> io::Result<Bytes> {
    if entry.offset + u64::from(entry.length) > input.metadata()?.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut bytes = vec![0; entry.length as usize];
    input.read_exact_at(&mut bytes, entry.offset).map(|()| Bytes::from(bytes))
}

/// Device and inode of a folder: which one it is, whatever is mounted over it.
pub(super) fn identity(folder: &Path) -> Result<(u64, u64)> {
    let metadata = std::fs::metadata(folder).map_err(failed("look at", folder))?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Makes a job's folder whole; `state.json` comes last and makes the job count.
pub(super) fn prepare(folder: &JobFolder, state: &State, input: Input) -> Result<()> {
    if let Input::Inline(lines) = input {
        folder.create()?;
        write_inline(folder, &lines)?;
    }
    let logs = [folder.journal(), folder.intents()];
    let [journal, intents] = &logs;
    // The journal is also `output.partial.jsonl`, for whoever may read results; here the folder keeps others out.
    let made = disk::File::create_readable(journal).map_err(failed("create", journal));
    let made = made.and_then(|_| create_private(intents)).map(drop);
    let synced = made.and_then(|()| sync_dir(folder.path()));
    fault::point("store-job-prepared");
    synced.and_then(|()| state.write(folder)).map_err(|error| {
        // As it was before, unless the job counts already: then whoever asked must not believe that it does not.
        if !error.is_full() || folder.state().exists() {
            return error;
        }
        for path in &logs {
            drop(disk::remove_file(path));
        }
        Error::Full(error.to_string())
    })
}

fn write_inline(folder: &JobFolder, lines: &[(u16, Bytes)]) -> Result<()> {
    let (input_path, index_path) = (folder.input(), folder.index());
    let (mut input, mut index) = (Vec::new(), Vec::new());
    for (line, (queue, bytes)) in (1..).zip(lines) {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        index.extend(LineEntry { offset: input.len() as u64, length, queue: *queue, line }.encode());
        input.extend_from_slice(bytes);
        input.push(b'\n');
    }
    for (path, bytes) in [(input_path, input), (index_path, index)] {
        let mut file = create_private(&path)?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed("write", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_leads_out_of_the_input_is_an_error() {
        let mut input = tempfile::tempfile().unwrap();
        input.write_all(b"one\n\ntwo").unwrap();
        let line = |offset, length| line_at(&input, LineEntry { offset, length, queue: 0, line: 1 });
        assert_eq!(line(5, 3).unwrap(), "two");
        assert_eq!(line(4, 0).unwrap(), "");
        for (offset, length) in [(5, 4), (0, u32::MAX), (9, 0), ((1 << 48) - 1, 1)] {
            let error = line(offset, length).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{offset} {length}");
        }
    }
}
