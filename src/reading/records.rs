//! The records of a CSV file, with the lines that they begin on.
//!
//! The `csv` crate reads what it can of a broken file. Here a quote that is never closed, text behind a closed quote
//! and a record of another width than the header's are problems of the file: each could make one row of two.

use std::io::{self, Read};

use crate::diag::{Diagnostic, Report};
use crate::reading::objects::{self, Visited};
use crate::reading::problem::{Problem, Spot, shown};

/// What a table is read by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules<'f> {
    /// As it stands in diagnostics.
    pub(crate) file: &'f str,
    /// Between two fields: `,` or a tab.
    pub(crate) delimiter: u8,
    /// Bytes of a record.
    pub(crate) max: u64,
}

/// One record and the names of its fields, of which there are as many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    pub(crate) header: &'a csv::StringRecord,
    pub(crate) fields: &'a csv::StringRecord,
}

/// What is called for each record, with the line that it begins on.
pub(crate) type EachRecord<'v> = &'v mut dyn FnMut(Record<'_>, u32, &mut Report) -> Visited;

/// Calls `visit` for every record of `input` behind the header.
pub(crate) fn each(input: impl Read, rules: Rules<'_>, report: &mut Report, visit: EachRecord<'_>) {
    let Rules { file, delimiter, max } = rules;
    let input = input.chain(CSV_END);
    let input = Bounded { input, since: 0, max, begin: 0, held: Vec::new(), held_offset: 0 };
    let mut reader =
        csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).has_headers(false).from_reader(input);
    let mut header: Option<csv::StringRecord> = None;
    let mut record = csv::ByteRecord::new();
    // The line of the last record if it holds a NUL byte, and whether it holds nothing else.
    let mut nul: Option<(u32, bool)> = None;
    loop {
        let (begin, begin_byte) = (reader.position().line(), reader.position().byte());
        (reader.get_mut().since, reader.get_mut().begin) = (0, begin_byte);
        match reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                report.push(unreadable_record(&error, file, begin));
                return;
            }
        }
        let line = begins_at(&reader, &record);
        let raw = Raw { bytes: reader.get_ref().raw(reader.position().byte()), line: begin };
        // Something follows it: it is not what we put at the end.
        if let Some((line, _)) = nul.take() {
            report.push(Diagnostic::error(file, line, 0, "a NUL byte: the file is no text"));
        }
        let fields = match csv::StringRecord::from_byte_record(std::mem::take(&mut record)) {
            Ok(fields) => fields,
            Err(error) => {
                let message = format!("invalid UTF-8 in field {}", error.utf8_error().field() + 1);
                let valid = std::str::from_utf8(raw.bytes).map_or_else(|error| error.valid_up_to(), str::len);
                report.push(raw.error(valid, file, message).hint("save the file as UTF-8"));
                continue;
            }
        };
        if let Some(at) = raw.behind_quote(delimiter) {
            let message = "text behind the double quote that ends a field".to_owned();
            report.push(raw.error(at, file, message).hint(QUOTE_HINT));
            continue;
        }
        if fields.iter().any(|field| field.contains('\0')) {
            nul = Some((line, fields == *["\0"].as_slice()));
        } else if let Some(header) = &header {
            if fields.len() == header.len() {
                let visited = visit(Record { header, fields: &fields }, line, report);
                if let Err(syntax) = visited {
                    report.push(Problem::from(syntax).at(Spot { file, line, text: None }));
                }
            } else {
                let message = format!("{} fields, expected {} as the header has", fields.len(), header.len());
                let hint = "a field that holds a comma, a quote or a line end stands in double quotes";
                report.push(Diagnostic::error(file, line, 0, message).hint(hint));
            }
        } else {
            let Some(named) = checked_header(fields, file, line, report) else { return };
            header = Some(named);
        }
    }
    if let Some((line, false)) = nul {
        let message = "a double quote of this record is not closed: it goes on to the end of the file";
        report.push(Diagnostic::error(file, line, 0, message).hint(QUOTE_HINT));
    }
}

const QUOTE_HINT: &str =
    "a field with a quote in it stands in double quotes, and the quote is written as `\"\"`";

/// What is put behind the bytes of a CSV file: a record of its own, unless a quote before it was never closed.
/// The `csv` crate takes such a quote to be closed by the file's end.
const CSV_END: &[u8] = b"\n\0";

/// Ends in an error rather than in a record without bound, as a quote that is never closed would make one.
struct Bounded<R> {
    input: R,
    /// Bytes read since the last record began.
    since: u64,
    max: u64,
    /// The byte in the file where the record that is being read begins.
    begin: u64,
    /// What was read from that byte on.
    held: Vec<u8>,
    /// The byte in the file where `held` begins.
    held_offset: u64,
}

impl<R> Bounded<R> {
    /// What stands in the file from the begin of the record up to `end`.
    fn raw(&self, end: u64) -> &[u8] {
        let at = |offset: u64| usize::try_from(offset.checked_sub(self.held_offset)?).ok();
        let range = at(self.begin).zip(at(end));
        range.and_then(|(begin, end)| self.held.get(begin..end)).unwrap_or_default()
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.since > self.max {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the record is over the bound"));
        }
        let count = self.input.read(buffer)?;
        let gone = usize::try_from(self.begin.saturating_sub(self.held_offset)).unwrap_or(usize::MAX);
        let gone = gone.min(self.held.len());
        self.held.drain(..gone);
        self.held_offset += gone as u64;
        self.since += count as u64;
        self.held.extend_from_slice(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// What a record is made of, and the line on which its bytes begin.
struct Raw<'r> {
    bytes: &'r [u8],
    line: u64,
}

impl Raw<'_> {
    /// A problem with the byte `at`.
    fn error(&self, at: usize, file: &str, message: String) -> Diagnostic {
        let before = self.bytes.get(..at).unwrap_or(self.bytes);
        let start = memchr::memrchr(b'\n', before).map_or(0, |end| end + 1);
        let line = self.line + memchr::memchr_iter(b'\n', before).count() as u64;
        let text = before.get(start..).unwrap_or_default();
        let text = if line == 1 { text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text) } else { text };
        let column = String::from_utf8_lossy(text).chars().count() + 1;
        let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Diagnostic::error(file, number(line), number(column as u64), message)
    }

    /// What stands directly behind the double quote that ends a field, if that is not the field's end. The `csv`
    /// crate would put it into the field, and a stray quote would so make one row of two.
    fn behind_quote(&self, delimiter: u8) -> Option<usize> {
        memchr::memchr(b'"', self.bytes)?;
        let find = |byte, from| Some(from + memchr::memchr(byte, self.bytes.get(from..)?)?);
        let is = |at, bytes: &[u8]| self.bytes.get(at).is_some_and(|byte| bytes.contains(byte));
        let marked = self.bytes.starts_with(b"\xef\xbb\xbf");
        let mut at = if marked { 3 } else { 0 };
        // Of what ended the record before.
        while is(at, b"\r\n") {
            at += 1;
        }
        loop {
            if is(at, b"\"") {
                at = find(b'"', at + 1)? + 1;
                while is(at, b"\"") {
                    at = find(b'"', at + 1)? + 1;
                }
                if at < self.bytes.len() && !is(at, &[delimiter, b'\r', b'\n']) {
                    return Some(at);
                }
            }
            at = find(delimiter, at)? + 1;
        }
    }
}

/// The line on which the record that was just read begins. The reader's own number is that of the last
/// record's end: blank lines, and the second half of `\r\n`, still lie between.
fn begins_at<R: Read>(reader: &csv::Reader<Bounded<R>>, record: &csv::ByteRecord) -> u32 {
    let position = reader.position();
    let last = reader.get_ref().raw(position.byte()).last();
    let within = memchr::memchr_iter(b'\n', record.as_slice()).count() as u64;
    let line = position.line().saturating_sub(within + u64::from(last == Some(&b'\n')));
    u32::try_from(line).unwrap_or(u32::MAX)
}

fn checked_header(
    fields: csv::StringRecord,
    file: &str,
    line: u32,
    report: &mut Report,
) -> Option<csv::StringRecord> {
    let mut names: Vec<&str> = fields.iter().collect();
    names.sort_unstable();
    let twice = names.windows(2).find_map(|pair| match pair {
        [a, b] if a == b => Some(*a),
        _ => None,
    });
    if let Some(twice) = twice {
        let message = format!("the header names {} twice", shown(twice));
        report.push(Diagnostic::error(file, line, 0, message).hint("templates could not tell the two apart"));
        return None;
    }
    Some(fields)
}

fn unreadable_record(error: &csv::Error, file: &str, begin: u64) -> Diagnostic {
    let line = u32::try_from(begin).unwrap_or(u32::MAX);
    let csv::ErrorKind::Io(error) = error.kind() else {
        return Diagnostic::error(file, line, 0, format!("invalid CSV: {error}"));
    };
    if error.kind() != io::ErrorKind::FileTooLarge {
        return objects::unreadable(file, error);
    }
    Diagnostic::error(file, line, 0, "a record that is longer than the bound")
        .hint("a double quote may not be closed; `max_line` in `[intake]` of the config is the bound")
}
