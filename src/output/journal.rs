//! Reading a job's journal: from front to back, or in the order of the input.
//!
//! # Operation
//!
//! The journal is in the order of completion. [`Reader::index`] goes over it once and notes where the
//! record of each request begins, 8 bytes a request. [`Reader::in_order`] then takes requests in chunks:
//! the records of a chunk are read in the order in which they lie, always forwards, and handed out in
//! the order of the input. A journal that is nearly in order is so read nearly as a stream, and one in
//! no order at all costs no more than one short read a record.

use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Error;
use crate::domain::JobId;
use crate::domain::record::JournalLine;
use crate::pulse::Member;
use crate::store::folder::{JobFolder, failed};
use crate::store::{self, Journal, Store};

/// One read of the journal. Small enough that a read for one stray record wastes little.
const BUFFER_BYTES: usize = 32 << 10;
/// Records held at once while their order is changed; one record may be larger by itself.
const CHUNK_BYTES: usize = 8 << 20;
/// Bounds the memory of a chunk of tiny records: 24 bytes a request.
const CHUNK_REQUESTS: usize = 65_536;
/// A request without a record.
const ABSENT: u64 = u64::MAX;

/// An open journal.
pub(super) struct Reader {
    inner: BufReader<Box<dyn Journal>>,
    /// Where the next byte is read.
    position: u64,
    /// For messages.
    path: PathBuf,
    stop: CancellationToken,
    /// Answers with each record: reading comes on.
    member: Arc<Member>,
}

/// How a scan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scanned {
    /// Offset behind the last line that was read.
    pub(super) end: u64,
    /// Whole lines that are no records.
    pub(super) damaged: u64,
}

/// Where the records of a run of requests begin in the journal.
#[derive(Debug)]
pub(super) struct Index {
    /// The first of the requests.
    base: u32,
    offsets: Vec<u64>,
    /// Further records of requests that had one; the first one counts.
    pub(super) duplicates: u64,
    /// Lines of the whole journal that are no records.
    pub(super) damaged: u64,
}

impl Reader {
    /// A `stop` ends every reading with [`Error::Interrupted`].
    pub(super) fn open(store: &dyn Store, job: JobId, stop: CancellationToken) -> Result<Self, Error> {
        let journal = store.journal(job).map_err(Error::Store)?;
        let path =
            store.folder(job).map_or_else(|| PathBuf::from("journal"), |at| JobFolder::at(at).journal());
        Ok(Self::over(journal, path, stop))
    }

    /// `path` is what messages call the journal.
    pub(super) fn over(journal: Box<dyn Journal>, path: PathBuf, stop: CancellationToken) -> Self {
        let inner = BufReader::with_capacity(BUFFER_BYTES, journal);
        Self { inner, position: 0, path, stop, member: Arc::default() }
    }

    /// With somebody who is to answer the roll call as long as reading comes on.
    pub(super) fn with_member(self, member: Arc<Member>) -> Self {
        Self { member, ..self }
    }

    /// Bytes of it that can be read.
    pub(super) fn length(&mut self) -> Result<u64, Error> {
        let ends = [SeekFrom::End(0), SeekFrom::Start(self.position)];
        let [end, _] = ends.map(|end| self.inner.seek(end));
        end.map_err(failed("seek in", &self.path)).map_err(Error::Files)
    }

    /// Hands every sound record from `offset` on to `each`, with its place, until `each` says `false`.
    pub(super) fn scan(
        &mut self,
        offset: u64,
        mut each: impl FnMut(JournalLine<'_>, Range<u64>) -> Result<bool, Error>,
    ) -> Result<Scanned, Error> {
        self.seek(offset)?;
        let mut scanned = Scanned { end: offset, damaged: 0 };
        let mut line = Vec::new();
        while self.read_line(&mut line)? {
            let place = scanned.end..self.position;
            scanned.end = self.position;
            match JournalLine::parse(&line) {
                Some(record) if each(record, place)? => {}
                Some(_) => break,
                None => scanned.damaged += 1,
            }
            line.clear();
        }
        Ok(scanned)
    }

    /// Finds the records of `count` requests from `base` on.
    pub(super) fn index(&mut self, base: u32, count: u32) -> Result<Index, Error> {
        let mut offsets = vec![ABSENT; count as usize];
        let mut duplicates = 0;
        let scanned = self.scan(0, |record, place| {
            let slot = record.index.checked_sub(base).and_then(|at| offsets.get_mut(at as usize));
            match slot {
                Some(slot) if *slot == ABSENT => *slot = place.start,
                Some(_) => duplicates += 1,
                None => {}
            }
            Ok(true)
        })?;
        Ok(Index { base, offsets, duplicates, damaged: scanned.damaged })
    }

    /// Hands the record of each indexed request to `each`, in the order of the input; none where there is none.
    pub(super) fn in_order(
        &mut self,
        index: &Index,
        mut each: impl FnMut(u32, Option<JournalLine<'_>>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut chunk = Chunk::default();
        let mut rest = index.offsets.as_slice();
        let mut request = index.base;
        let mut size = CHUNK_REQUESTS;
        while !rest.is_empty() {
            let (now, later) = rest.split_at_checked(size).unwrap_or((rest, &[]));
            if !self.fill(&mut chunk, now)? {
                size = (now.len() / 2).max(1);
                continue;
            }
            for span in &chunk.spans {
                let line = chunk.bytes.get(span.clone()).filter(|line| !line.is_empty());
                let record = match line {
                    Some(line) => Some(JournalLine::parse(line).ok_or_else(|| self.damaged())?),
                    None => None,
                };
                // Those without a record are not read.
                self.member.answer();
                each(request, record)?;
                request = request.saturating_add(1);
            }
            rest = later;
            let average = chunk.bytes.len().div_ceil(now.len()).max(1);
            // Half of what fits on average, so that larger records rarely make a chunk be read twice.
            size = (CHUNK_BYTES / 2 / average).clamp(1, CHUNK_REQUESTS);
        }
        Ok(())
    }

    /// Reads the records at `offsets`. Says `false` if they are more bytes than a chunk may have.
    fn fill(&mut self, chunk: &mut Chunk, offsets: &[u64]) -> Result<bool, Error> {
        chunk.clear(offsets.len());
        let present = offsets.iter().enumerate().filter(|(_, offset)| **offset != ABSENT);
        chunk.reading.extend(present.map(|(at, offset)| (*offset, at)));
        chunk.reading.sort_unstable();
        for (offset, at) in &chunk.reading {
            if chunk.bytes.len() > CHUNK_BYTES {
                return Ok(false);
            }
            self.seek(*offset)?;
            let start = chunk.bytes.len();
            if !self.read_line(&mut chunk.bytes)? {
                return Err(self.damaged());
            }
            if let Some(span) = chunk.spans.get_mut(*at) {
                *span = start..chunk.bytes.len();
            }
        }
        Ok(true)
    }

    /// Appends the next line without its line end; `false` if there is no whole line. How long a line can
    /// be is bounded where it was written, by the largest reply.
    fn read_line(&mut self, line: &mut Vec<u8>) -> Result<bool, Error> {
        if self.stop.is_cancelled() {
            return Err(Error::Interrupted);
        }
        self.member.answer();
        let read =
            self.inner.read_until(b'\n', line).map_err(failed("read", &self.path)).map_err(Error::Files)?;
        self.position = self.position.saturating_add(read as u64);
        Ok(line.pop_if(|last| *last == b'\n').is_some())
    }

    /// Moves to `offset`; what is in the buffer stays there, so that a short way costs no read.
    fn seek(&mut self, offset: u64) -> Result<(), Error> {
        let by = i128::from(offset) - i128::from(self.position);
        if by != 0 {
            let by = i64::try_from(by).map_err(|_| self.damaged())?;
            self.inner.seek_relative(by).map_err(failed("seek in", &self.path)).map_err(Error::Files)?;
            self.position = offset;
        }
        Ok(())
    }

    fn damaged(&self) -> Error {
        let what = "a record that was read before can't be read again".to_owned();
        Error::Store(store::Error::Damaged { path: self.path.clone(), what })
    }
}

/// The records of some consecutive requests. Reused, so that a long job allocates no more than a short one.
#[derive(Default)]
struct Chunk {
    /// Offset in the journal and place in the chunk, in the order of reading.
    reading: Vec<(u64, usize)>,
    bytes: Vec<u8>,
    /// Where in `bytes` each request's record stands; empty for one without.
    spans: Vec<Range<usize>>,
}

impl Chunk {
    fn clear(&mut self, requests: usize) {
        self.reading.clear();
        self.bytes.clear();
        self.bytes.shrink_to(2 * CHUNK_BYTES);
        self.spans.clear();
        self.spans.resize(requests, 0..0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::fake::{FakeStore, JOB, answer, job};

    fn open(store: &FakeStore) -> Reader {
        Reader::open(store, JOB, CancellationToken::new()).unwrap()
    }

    fn read(store: &FakeStore, base: u32, count: u32) -> (Vec<Option<u32>>, u64) {
        let mut reader = open(store);
        let index = reader.index(base, count).unwrap();
        let mut seen = Vec::new();
        let mut next = base;
        reader
            .in_order(&index, |request, record| {
                assert_eq!(request, next);
                next += 1;
                seen.push(record.map(|record| record.index));
                Ok(())
            })
            .unwrap();
        (seen, index.duplicates)
    }

    #[test]
    fn records_come_in_input_order_whatever_the_journal_does() {
        let store = FakeStore::new(job(5));
        for index in [4, 0, 3, 1] {
            store.append(&answer(index, "a"));
        }
        assert_eq!(read(&store, 0, 5).0, [Some(0), Some(1), None, Some(3), Some(4)]);
        assert_eq!(read(&store, 3, 2).0, [Some(3), Some(4)]);
    }

    #[test]
    fn damaged_and_torn_lines_are_no_records() {
        let store = FakeStore::new(job(3));
        store.append(&answer(0, "a"));
        store.append_bytes(b"{\"id\":\"half\n\0\0\0\n\n");
        store.append(&answer(1, "b"));
        let torn = answer(2, "c").to_journal_line(1);
        store.append_bytes(&torn[..torn.len() - 1]);
        assert_eq!(read(&store, 0, 3).0, [Some(0), Some(1), None]);
        assert_eq!(open(&store).index(0, 3).unwrap().damaged, 3);
    }

    #[test]
    fn the_first_of_two_records_counts() {
        let store = FakeStore::new(job(1));
        store.append(&answer(0, "first"));
        store.append(&answer(0, "second"));
        let (seen, duplicates) = read(&store, 0, 1);
        assert_eq!((seen, duplicates), (vec![Some(0)], 1));
    }

    #[test]
    fn chunks_shrink_to_what_memory_allows() {
        let store = FakeStore::new(job(40));
        let large = "x".repeat(1 << 20);
        for index in (0..40).rev() {
            store.append(&answer(index, &large));
        }
        assert_eq!(read(&store, 0, 40).0, (0..40).map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn a_scan_goes_on_where_it_stopped() {
        let store = FakeStore::new(job(3));
        (0..3).for_each(|index| store.append(&answer(index, "a")));
        let mut seen = Vec::new();
        let stopped = open(&store)
            .scan(0, |record, _| {
                seen.push(record.index);
                Ok(false)
            })
            .unwrap();
        open(&store)
            .scan(stopped.end, |record, _| {
                seen.push(record.index);
                Ok(true)
            })
            .unwrap();
        assert_eq!(seen, [0, 1, 2]);
    }
}
