//! The lines of a file of any length, one at a time in a reused buffer of bounded size.

use std::io::{self, BufRead, BufReader, Read};

/// One read of the file; also what BLAKE3 hashes at once, which is fast only over large pieces.
const CHUNK: usize = 128 * 1024;

/// How much of a line over the bound is passed over to find its end. A file with holes may have no end at all: it
/// takes no room, and hours to read.
const PASSED_OVER_MAX: u64 = 16 * 1024 * 1024;

/// Reads lines and keeps count of where it is.
pub(crate) struct Lines<R> {
    input: BufReader<R>,
    line: Vec<u8>,
    /// Bytes.
    max: u64,
    offset: u64,
    number: u32,
    /// A line had no end within reach: nothing more is read.
    endless: bool,
}

/// A line without its line end (`\n` or `\r\n`).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    pub(crate) bytes: &'a [u8],
    /// Of its first byte in the file.
    pub(crate) offset: u64,
    /// From 1, blank lines counted.
    pub(crate) number: u32,
    /// Whether a line end follows.
    pub(crate) ended: bool,
    /// Its length if that is over the bound: `bytes` then is only how it begins.
    pub(crate) too_long: Option<u64>,
    /// It is longer still than `too_long` says, and the last one that is looked at.
    pub(crate) endless: bool,
}

impl<R: Read> Lines<R> {
    pub(crate) fn new(input: R, max: u64) -> Self {
        let input = BufReader::with_capacity(CHUNK, input);
        // A line index keeps lengths in 32 bits.
        let max = max.min(u64::from(u32::MAX));
        Self { input, line: Vec::new(), max, offset: 0, number: 0, endless: false }
    }

    /// The next line; a UTF-8 byte order mark before the first one is left out.
    pub(crate) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        let start = self.offset;
        let mut length: u64 = 0;
        let mut ended = false;
        while !ended && !self.endless {
            let chunk = self.input.fill_buf()?;
            if chunk.is_empty() {
                break;
            }
            let end = memchr::memchr(b'\n', chunk);
            let text = chunk.get(..end.unwrap_or(chunk.len())).unwrap_or(chunk);
            // One byte more than the bound: it may be the `\r` of the line end.
            let room = (self.max + 1).saturating_sub(length);
            let kept = usize::try_from(room).map_or(text.len(), |room| room.min(text.len()));
            self.line.extend_from_slice(text.get(..kept).unwrap_or(text));
            length += text.len() as u64;
            ended = end.is_some();
            let taken = text.len() + usize::from(ended);
            self.input.consume(taken);
            self.endless = !ended && length > self.max + PASSED_OVER_MAX;
        }
        if length == 0 && !ended {
            return Ok(None);
        }
        self.offset += length + u64::from(ended);
        self.number = self.number.saturating_add(1);
        let mut bytes = self.line.as_slice();
        let mut offset = start;
        if let Some(rest) = bytes.strip_suffix(b"\r").filter(|_| ended && bytes.len() as u64 == length) {
            bytes = rest;
            length -= 1;
        }
        if let Some(rest) = bytes.strip_prefix(b"\xef\xbb\xbf").filter(|_| self.number == 1) {
            bytes = rest;
            offset += 3;
            length -= 3;
        }
        let too_long = (length > self.max).then_some(length);
        Ok(Some(Line { bytes, offset, number: self.number, ended, too_long, endless: self.endless }))
    }
}

/// Hashes what is read through it.
pub(crate) struct Hashing<'h, R> {
    pub(crate) input: R,
    pub(crate) hasher: &'h mut blake3::Hasher,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &[u8], max: u64) -> Vec<(String, u64, u32, bool, Option<u64>)> {
        let mut lines = Lines::new(text, max);
        let mut seen = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            let text = String::from_utf8_lossy(line.bytes).into_owned();
            seen.push((text, line.offset, line.number, line.ended, line.too_long));
        }
        seen
    }

    #[test]
    fn lines_have_their_places_whatever_ends_them() {
        let text = b"\xef\xbb\xbfa\r\n\r\n\nb\rc\nlast";
        let expected = [("a", 3, 1, true), ("", 6, 2, true), ("", 8, 3, true), ("b\rc", 9, 4, true)];
        let mut expected: Vec<_> =
            expected.map(|(t, o, n, e)| (t.to_owned(), o, n, e, None)).into_iter().collect();
        expected.push(("last".to_owned(), 13, 5, false, None));
        assert_eq!(all(text, 100), expected);
        assert!(all(b"", 100).is_empty());
    }

    #[test]
    fn a_line_over_the_bound_is_not_held() {
        let mut text = vec![b'x'; 3 * CHUNK];
        text.extend_from_slice(b"\n1234567890\r\n12345678901\nend");
        let seen = all(&text, 10);
        assert_eq!(seen.len(), 4);
        assert_eq!((seen[0].0.len(), seen[0].4), (11, Some(3 * CHUNK as u64)));
        assert_eq!((seen[1].0.as_str(), seen[1].4), ("1234567890", None));
        assert_eq!(seen[2].4, Some(11));
        assert_eq!((seen[3].0.as_str(), seen[3].1), ("end", text.len() as u64 - 3));
    }

    #[test]
    fn a_line_without_end_is_given_up() {
        let endless = io::repeat(b'x').chain(&b"\nnext"[..]);
        let mut lines = Lines::new(endless, 10);
        let line = lines.next().unwrap().unwrap();
        assert!(line.endless && !line.ended && line.too_long > Some(PASSED_OVER_MAX), "{line:?}");
        assert_eq!(lines.next().unwrap(), None);
    }

    #[test]
    fn hashing_changes_nothing_that_is_read() {
        let mut hasher = blake3::Hasher::new();
        let mut text = String::new();
        Hashing { input: &b"some text"[..], hasher: &mut hasher }.read_to_string(&mut text).unwrap();
        assert_eq!(text, "some text");
        assert_eq!(hasher.finalize(), blake3::hash(b"some text"));
    }
}
