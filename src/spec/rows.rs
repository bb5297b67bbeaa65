//! The rows of a data file: objects of a `.jsonl`, records of a `.csv`, lines of a `.txt`.

use std::io::{self, Read};

use minijinja::Value;

use crate::diag::{Diagnostic, Report};
use crate::spec::json;
use crate::spec::lines::Lines;
use crate::spec::objects::{self, Object, Visited};
use crate::spec::pick::pick;
use crate::spec::problem::{Problem, Spot, Syntax, shown};

/// How a data file is read, by its ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DataForm {
    Jsonl,
    Csv,
    Txt,
}

impl DataForm {
    pub(super) fn of(path: &str) -> Option<Self> {
        match path.rsplit_once('.')?.1 {
            "jsonl" => Some(Self::Jsonl),
            "csv" => Some(Self::Csv),
            "txt" => Some(Self::Txt),
            _ => None,
        }
    }
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub(super) enum Row<'a> {
    Object(&'a str),
    Record { header: &'a csv::StringRecord, fields: &'a csv::StringRecord },
    Text(&'a str),
}

impl Row<'_> {
    /// The fields named by `variables` that the row has, as templates see them.
    pub(super) fn fields(&self, variables: &[String]) -> Result<Value, Syntax> {
        match self {
            Self::Text(text) => Ok(Value::from_iter([("text", Value::from(*text))])),
            Self::Record { header, fields } => {
                let pairs = header.iter().zip(fields.iter());
                let used = pairs.filter(|(name, _)| variables.iter().any(|variable| variable == name));
                Ok(used.map(|(name, field)| (name, Value::from(field))).collect())
            }
            Self::Object(text) => {
                let picked = pick(text, variables)?;
                if let Some((number, later)) = picked.duplicate {
                    let key = variables.get(number).map(String::as_str).unwrap_or_default();
                    let message = format!("duplicate key {}", shown(key));
                    return Err(Syntax { offset: later.offset, message, hint: None, cut: false });
                }
                let mut values = Vec::new();
                for (name, field) in variables.iter().zip(&picked.fields) {
                    let Some(field) = field else { continue };
                    let value = if let Ok(text) = field.string() {
                        Value::from(text.as_ref())
                    } else if let Some(integer) = long_integer(field.text()) {
                        integer
                    } else {
                        serde_json::from_str(field.text()).map_err(|error| Syntax {
                            offset: field.offset,
                            message: format!("the value of {} can't be read: {error}", shown(name)),
                            hint: None,
                            cut: false,
                        })?
                    };
                    values.push((name.as_str(), value));
                }
                Ok(values.into_iter().collect())
            }
        }
    }

    /// The names of its fields.
    pub(super) fn keys(&self) -> Vec<String> {
        match self {
            Self::Text(_) => vec!["text".to_owned()],
            Self::Record { header, .. } => header.iter().map(str::to_owned).collect(),
            Self::Object(text) => json::members(text)
                .map(|members| members.into_iter().map(|member| member.key.into_owned()).collect())
                .unwrap_or_default(),
        }
    }
}

/// An integer of more than 64 bits with all its digits: read as JSON it would be rounded, and two ids become one.
fn long_integer(json: &str) -> Option<Value> {
    let digits = json.strip_prefix('-').unwrap_or(json);
    let is_long = digits.len() > 18 && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_long.then(|| json.parse::<i128>().map_or_else(|_| Value::from(json), Value::from))
}

/// What is called for each row, with the line that it begins on.
pub(super) type EachRow<'v> = &'v mut dyn FnMut(Row<'_>, u32, &mut Report) -> Visited;

/// Calls `visit` for every row of `input`.
pub(super) fn each(
    form: DataForm,
    input: impl Read,
    (file, max): (&str, u64),
    report: &mut Report,
    visit: EachRow<'_>,
) {
    match form {
        DataForm::Jsonl => {
            let mut lines = Lines::new(input, max);
            objects::each(&mut lines, file, report, &mut |object: Object<'_>, report| {
                visit(Row::Object(object.text), object.number, report)
            });
        }
        DataForm::Txt => texts(input, (file, max), report, visit),
        DataForm::Csv => records(input, (file, max), report, visit),
    }
}

fn texts(input: impl Read, (file, max): (&str, u64), report: &mut Report, visit: EachRow<'_>) {
    let mut lines = Lines::new(input, max);
    loop {
        let line = match lines.next() {
            Ok(Some(line)) => line,
            Ok(None) => return,
            Err(error) => return report.push(objects::unreadable(file, &error)),
        };
        match objects::text(&line, objects::MAX_LINE_HINT) {
            Ok(text) if text.trim().is_empty() => {}
            Ok(text) if text.contains('\0') => {
                report.push(Diagnostic::error(file, line.number, 0, "a NUL byte: the file is no text"));
            }
            Ok(text) => push_syntax(visit(Row::Text(text), line.number, report), file, line.number, report),
            Err(problem) => {
                let shown = String::from_utf8_lossy(line.bytes);
                report.push(problem.at(Spot { file, line: line.number, text: Some(&shown) }));
            }
        }
    }
}

fn push_syntax(visited: Visited, file: &str, line: u32, report: &mut Report) {
    if let Err(syntax) = visited {
        report.push(Problem::from(syntax).at(Spot { file, line, text: None }));
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
    fn behind_quote(&self) -> Option<usize> {
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
                if at < self.bytes.len() && !is(at, b",\r\n") {
                    return Some(at);
                }
            }
            at = find(b',', at)? + 1;
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

fn records(input: impl Read, (file, max): (&str, u64), report: &mut Report, visit: EachRow<'_>) {
    let input = input.chain(CSV_END);
    let input = Bounded { input, since: 0, max, begin: 0, held: Vec::new(), held_offset: 0 };
    let mut reader = csv::ReaderBuilder::new().flexible(true).has_headers(false).from_reader(input);
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
        if let Some(at) = raw.behind_quote() {
            let message = "text behind the double quote that ends a field".to_owned();
            report.push(raw.error(at, file, message).hint(QUOTE_HINT));
            continue;
        }
        if fields.iter().any(|field| field.contains('\0')) {
            nul = Some((line, fields == *["\0"].as_slice()));
        } else if let Some(header) = &header {
            if fields.len() == header.len() {
                let row = Row::Record { header, fields: &fields };
                push_syntax(visit(row, line, report), file, line, report);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(path: &str, text: &[u8]) -> (Vec<(String, u32)>, String) {
        let mut report = Report::default();
        let mut seen = Vec::new();
        let names: Vec<String> = ["text", "id"].map(str::to_owned).into();
        each(DataForm::of(path).unwrap(), text, (path, 100_000), &mut report, &mut |row, line, _| {
            let fields = row.fields(&names)?;
            let field = |name| fields.get_attr(name).unwrap_or_default();
            seen.push((format!("{}={}", field("id"), field("text")), line));
            Ok(())
        });
        (seen, report.to_string())
    }

    fn seen(path: &str, text: &[u8]) -> Vec<(String, u32)> {
        let (seen, report) = rows(path, text);
        assert_eq!(report, "", "{path}");
        seen
    }

    fn row(text: &str, line: u32) -> (String, u32) {
        (text.to_owned(), line)
    }

    #[test]
    fn csv_fields_hold_quotes_commas_and_line_ends() {
        let text = "\u{feff}id,text\r\n1,\"a, \"\"b\"\"\r\nc\"\r\n\r\n2,plain\r\n3,last";
        let expected = [row("1=a, \"b\"\r\nc", 2), row("2=plain", 5), row("3=last", 6)];
        assert_eq!(seen("a.csv", text.as_bytes()), expected);
        let unix = "id,text\n1,\"a\nb\"\n\n2,plain\n3,x\n";
        assert_eq!(seen("a.csv", unix.as_bytes()), [row("1=a\nb", 2), row("2=plain", 5), row("3=x", 6)]);
    }

    #[test]
    fn csv_quotes_within_a_field_that_begins_without_one_are_text() {
        let text = "id,text\n1,a \"b\" c\n2, \"x\"y\n3,\"\"\n\"4\",\"\"\"\"\n";
        assert_eq!(
            seen("a.csv", text.as_bytes()),
            [row("1=a \"b\" c", 2), row("2= \"x\"y", 3), row("3=", 4), row("4=\"", 5)]
        );
    }

    #[test]
    fn what_is_wrong_in_a_csv_is_named_with_its_line() {
        for (text, expected) in [
            (&b"id,text\n1,a,b\n2,x\n3\n"[..], "a.csv:2: error: 3 fields, expected 2 as the header has"),
            (b"id,text\n1,a\n3\n", "a.csv:3: error: 1 fields, expected 2"),
            (b"id,text\n1,\xff\n", "a.csv:2:3: error: invalid UTF-8 in field 2"),
            (b"\xef\xbb\xbf\xff,text\n1,a\n", "a.csv:1:1: error: invalid UTF-8 in field 1"),
            (
                b"id,text\r\n\r\n1,\"\xc3\xa9\r\n\"\"\xc3\xa9\xe9\"\r\n",
                "a.csv:4:4: error: invalid UTF-8 in field 2",
            ),
            (b"id,text\r\n1,\"a\" b\r\n", "a.csv:2:6: error: text behind the double quote that ends a field"),
            (b"id,text\n1,\"a\n2,\"b\"\n3,c\n", "a.csv:3:4: error: text behind the double quote"),
            (b"\xef\xbb\xbf\"id\"x,text\n", "a.csv:1:5: error: text behind the double quote"),
            (b"id,text\n1,a\0\n", "a.csv:2: error: a NUL byte"),
            (b"id,id\n1,a\n", "a.csv:1: error: the header names `id` twice"),
        ] {
            let report = rows("a.csv", text).1;
            assert!(report.contains(expected), "{report}");
        }
        for (text, line) in [
            (&b"id,text\n1,a\n2,\"b\n3,c\n"[..], 3),
            (b"id,text\n1,\"", 2),
            (b"id,text\r\n1,\"a\r\n\r\n2,b\r\n", 2),
            (b"id,\"text\n1,a\n", 1),
        ] {
            let (seen, report) = rows("a.csv", text);
            assert!(report.starts_with(&format!("a.csv:{line}: error: a double quote")), "{report}");
            assert!(seen.len() <= 1, "{seen:?}");
        }
        for text in [&b"id,text\n\0\n"[..], b"id,text\n\0", b"id,text\n\0\n1,a\n"] {
            assert!(rows("a.csv", text).1.starts_with("a.csv:2: error: a NUL byte"));
        }
        let mut open = b"id,text\n1,a\n2,\"".to_vec();
        open.extend(vec![b'x'; 300_000]);
        let report = rows("a.csv", &open).1;
        assert!(report.contains("a.csv:3: error: a record that is longer than the bound"), "{report}");
    }

    #[test]
    fn texts_are_lines() {
        assert_eq!(
            seen("a.txt", b"one\r\n\n two\nthree"),
            [row("=one", 1), row("= two", 3), row("=three", 4)]
        );
        let report = rows("a.txt", b"ok\n\xff\n").1;
        assert!(report.contains("a.txt:2:1: error: invalid UTF-8: byte 0xff"), "{report}");
    }

    #[test]
    fn objects_are_lines_too() {
        let text = br#"{"id": 7, "text": "a"}

{"text": "b", "id": "x", "other": [1]}
"#;
        assert_eq!(seen("a.jsonl", text), [row("7=a", 1), row("x=b", 3)]);
        let long = "1".repeat(40);
        for number in
            ["12345678901234567890123", "-9223372036854775809", "18446744073709551616", long.as_str()]
        {
            let text = format!("{{\"id\": {number}, \"text\": {{\"b\": 1, \"a\": [2]}}}}\n");
            let expected = format!("{number}={{\"b\": 1, \"a\": [2]}}");
            assert_eq!(seen("a.jsonl", text.as_bytes()), [(expected, 1)]);
        }
        for (text, expected) in [
            (&b"{\"id\": 1, \"id\": 2}\n"[..], "a.jsonl:1:17: error: duplicate key `id`"),
            (b"{\"id\": 1\n", "a.jsonl:1:8: error: invalid JSON"),
            (b"[1]\n", "a.jsonl:1:1: error: a JSON array"),
            (b"7\n", "a.jsonl:1:1: error: expected a JSON object, found a number"),
        ] {
            let report = rows("a.jsonl", text).1;
            assert!(report.contains(expected), "{report}");
        }
    }
}
