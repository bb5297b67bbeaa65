//! A record: one result line, in the shape of OpenAI's batch output and error files.
//!
//! # Format
//!
//! The published line has exactly the members `id`, `custom_id`, `response`, `error`:
//!
//! ```json
//! {"id":"batch_req_<job>_0","custom_id":"a","response":{"status_code":200,"request_id":"req_1","body":{}},"error":null}
//! ```
//!
//! The journal's line is the same with three members more at its end, so that publishing is cutting:
//!
//! ```json
//! {"id":…,"error":null,"index":0,"attempt":1,"crc":"c0ffee12"}
//! ```
//!
//! `crc` is the CRC-32C, as eight hex digits, of every byte of the line before `,"crc":`.

use std::borrow::Cow;

use memchr::memmem;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::id::RequestId;

/// What a journal's line usually has beside its body and its `custom_id`, so that it is allocated once.
const FRAME_BYTES: usize = 320;

/// What the server answered.
#[derive(Clone, Debug, Serialize)]
pub struct Response {
    pub status_code: u16,
    /// The provider's `x-request-id`; empty where it sends none.
    pub request_id: String,
    /// The body as one line of JSON; a body that is no JSON stands here as a string.
    pub body: Box<RawValue>,
}

impl Response {
    /// Keeps `body` byte for byte, save white space that would break the line.
    pub fn new(status_code: u16, request_id: String, body: &[u8]) -> Self {
        Self { status_code, request_id, body: one_line(body) }
    }

    pub const fn is_success(&self) -> bool {
        matches!(self.status_code, 200..300)
    }
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordError {
    /// A word for programs: `cancelled`, `expired`, `timeout`, `connection_error`, …
    pub code: String,
    /// A sentence for people.
    pub message: String,
}

/// The one line in which a request ends.
#[derive(Clone, Debug)]
pub struct Record {
    pub request: RequestId,
    pub custom_id: String,
    pub response: Option<Response>,
    pub error: Option<RecordError>,
}

#[derive(Serialize)]
struct Published<'a> {
    id: String,
    custom_id: &'a str,
    response: &'a Option<Response>,
    error: &'a Option<RecordError>,
}

impl Record {
    /// Belongs in `output.jsonl`: no error and a 2xx, never only one of both.
    pub fn is_success(&self) -> bool {
        self.error.is_none() && self.response.as_ref().is_some_and(Response::is_success)
    }

    /// The published line, without its line end.
    pub fn to_line(&self) -> Vec<u8> {
        let published = Published {
            id: format!("batch_req_{}", self.request),
            custom_id: &self.custom_id,
            response: &self.response,
            error: &self.error,
        };
        let body = self.response.as_ref().map_or(0, |response| response.body.get().len());
        let mut line = Vec::with_capacity(body + self.custom_id.len() + FRAME_BYTES);
        serde_json::to_writer(&mut line, &published).expect("strings, numbers and valid raw JSON serialise");
        line
    }

    /// The journal's line, with its line end. `attempt` counts from 1; 0 for a record without one.
    pub fn to_journal_line(&self, attempt: u32) -> Vec<u8> {
        let mut line = self.to_line();
        line.pop(); // the closing brace, which comes back behind our own members
        line.extend_from_slice(format!(",\"index\":{},\"attempt\":{attempt}", self.request.index).as_bytes());
        let crc = crc32c::crc32c(&line);
        line.extend_from_slice(format!(",\"crc\":\"{crc:08x}\"}}\n").as_bytes());
        line
    }
}

/// A journal line taken apart, without reading its JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalLine<'a> {
    pub index: u32,
    pub attempt: u32,
    /// The published line without its closing brace.
    stem: &'a [u8],
}

/// What stands around a record's parts as [`Record::to_line`] writes them. No text of a string can look like it: there
/// every quote has a backslash before it.
const RESPONSE: &[u8] = b",\"response\":{\"status_code\":";
const BODY: &[u8] = b",\"body\":";
const ERROR: &[u8] = b"},\"error\":";
const NO_ERROR: &[u8] = b",\"error\":null";

/// Length of `,"crc":"xxxxxxxx"}`.
const CRC_TAIL: usize = 18;

impl<'a> JournalLine<'a> {
    /// Takes a line without its line end; none if it is torn or damaged.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let split = line.len().checked_sub(CRC_TAIL)?;
        let (covered, tail) = line.split_at_checked(split)?;
        let hex = tail.strip_prefix(b",\"crc\":\"")?.strip_suffix(b"\"}")?;
        let crc = u32::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?;
        if crc != crc32c::crc32c(covered) {
            return None;
        }
        let (rest, attempt) = split_number(covered, b",\"attempt\":")?;
        let (stem, index) = split_number(rest, b",\"index\":")?;
        Some(Self { index, attempt, stem })
    }

    /// Whether the record belongs in `output.jsonl`, as [`Record::is_success`] says.
    pub fn is_success(&self) -> bool {
        self.stem.ends_with(NO_ERROR) && matches!(self.response(), Some((200..300, _)))
    }

    /// The JSON of the response's body; none if there is no response.
    pub fn body(&self) -> Option<&'a str> {
        let (_, rest) = self.response()?;
        let rest = rest.get(memmem::find(rest, BODY)? + BODY.len()..)?;
        let end = memmem::rfind(rest, ERROR)?;
        std::str::from_utf8(rest.get(..end)?).ok()
    }

    /// The response's status, and what follows it.
    fn response(&self) -> Option<(u16, &'a [u8])> {
        let at = memmem::find(self.stem, RESPONSE)? + RESPONSE.len();
        let rest = self.stem.get(at..)?;
        let (status, rest) = rest.split_at_checked(rest.iter().position(|byte| !byte.is_ascii_digit())?)?;
        Some((std::str::from_utf8(status).ok()?.parse().ok()?, rest))
    }

    /// The published line, without its line end.
    pub fn published(&self) -> Vec<u8> {
        let mut line = Vec::with_capacity(self.stem.len() + 1);
        line.extend_from_slice(self.stem);
        line.push(b'}');
        line
    }
}

/// Splits `…<label><digits>` into what stands before the label and the number.
fn split_number<'a>(text: &'a [u8], label: &[u8]) -> Option<(&'a [u8], u32)> {
    let digits = text.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let (rest, number) = text.split_at_checked(text.len() - digits)?;
    let number = std::str::from_utf8(number).ok()?.parse().ok()?;
    Some((rest.strip_suffix(label)?, number))
}

/// `body` as text; what is no UTF-8 is replaced. Nearly all bodies are whole, and seeing that is many times
/// faster than looking for the parts that are not.
pub fn text_of(body: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(body).map_or_else(|_| String::from_utf8_lossy(body), Cow::Borrowed)
}

/// `body` as JSON on one line; as a JSON string if it is no JSON (a proxy's HTML, plain text).
fn one_line(body: &[u8]) -> Box<RawValue> {
    let text = text_of(body);
    let text = text.trim_ascii();
    let compact = if memchr::memchr2(b'\n', b'\r', text.as_bytes()).is_some() {
        without_line_breaks(text)
    } else {
        text.to_owned()
    };
    RawValue::from_string(compact)
        .unwrap_or_else(|_| serde_json::value::to_raw_value(text).expect("a string serialises"))
}

/// Drops line ends and the indentation behind them. Within valid JSON a bare line end is never part
/// of a string (there it is written `\n`), so nothing but white space is lost.
fn without_line_breaks(text: &str) -> String {
    text.split(['\n', '\r']).map(str::trim_ascii).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::JobId;

    fn record(custom_id: &str, body: &[u8]) -> Record {
        Record {
            request: RequestId { job: JobId::from_bytes([7; 16]), index: 3 },
            custom_id: custom_id.to_owned(),
            response: Some(Response::new(200, "req_1".to_owned(), body)),
            error: None,
        }
    }

    #[test]
    fn published_line_has_exactly_the_four_members() {
        let line = record("a", br#"{"x": 1.0e5}"#).to_line();
        assert_eq!(
            String::from_utf8(line).unwrap(),
            "{\"id\":\"batch_req_07070707-0707-0707-0707-070707070707_3\",\"custom_id\":\"a\",\
             \"response\":{\"status_code\":200,\"request_id\":\"req_1\",\"body\":{\"x\": 1.0e5}},\"error\":null}"
        );
    }

    #[test]
    fn pretty_printed_bodies_become_one_line_and_keep_their_numbers() {
        let body = Response::new(
            200,
            String::new(),
            b"{\n  \"a\": 12345678901234567890.10,\r\n  \"b\": \"x\\ny  z\"\n}\n",
        );
        assert_eq!(body.body.get(), "{\"a\": 12345678901234567890.10,\"b\": \"x\\ny  z\"}");
        // Many readers take a bare carriage return for the end of a line.
        let old = Response::new(200, String::new(), b"{\r  \"a\":\r 1}");
        assert_eq!(old.body.get(), "{\"a\":1}");
    }

    #[test]
    fn bodies_that_are_no_json_become_strings() {
        let body = Response::new(502, String::new(), b"<html>\nbad \xff gateway</html>");
        assert_eq!(body.body.get(), "\"<html>\\nbad \u{fffd} gateway</html>\"");
        assert_eq!(Response::new(502, String::new(), b"").body.get(), "\"\"");
    }

    #[test]
    fn a_line_tells_whether_it_is_a_success_and_what_was_answered() {
        let odd = br#"{"a":"},\"error\":null","response":{"status_code":500,"body":1},"error":null}"#;
        let error =
            |code: &str| Some(RecordError { code: code.to_owned(), message: r#","error":null"#.to_owned() });
        let response = |status| Some(Response::new(status, "\",\"body\":2".to_owned(), odd));
        let body = std::str::from_utf8(odd).unwrap();
        for (response, error, expected) in [
            (response(200), None, (true, Some(body))),
            (response(299), None, (true, Some(body))),
            (response(300), None, (false, Some(body))),
            (response(20), None, (false, Some(body))),
            (response(200), error(r#"},"error":null"#), (false, Some(body))),
            (None, error("timeout"), (false, None)),
            (None, None, (false, None)),
        ] {
            let custom_id = r#"","response":{"status_code":200,"body":3},"error":null"#.to_owned();
            let record = Record { custom_id, response, error, ..record("", b"") };
            let line = record.to_journal_line(1);
            let parsed = JournalLine::parse(line.strip_suffix(b"\n").unwrap()).unwrap();
            assert_eq!((parsed.is_success(), parsed.body()), expected, "{record:?}");
            assert_eq!(parsed.is_success(), record.is_success(), "{record:?}");
        }
    }

    proptest! {
        #[test]
        fn journal_lines_give_back_what_was_published(custom_id in ".*", text in ".*", attempt in 0..9u32) {
            let body = serde_json::json!({ "text": text }).to_string();
            let record = record(&custom_id, body.as_bytes());
            let line = record.to_journal_line(attempt);
            let line = line.strip_suffix(b"\n").unwrap();
            prop_assert!(!line.contains(&b'\n'));
            let parsed = JournalLine::parse(line).unwrap();
            prop_assert_eq!((parsed.index, parsed.attempt), (3, attempt));
            prop_assert_eq!(parsed.published(), record.to_line());
            prop_assert!(parsed.is_success());
            prop_assert_eq!(parsed.body(), Some(body.as_str()));
            serde_json::from_slice::<serde_json::Value>(line).unwrap();
        }

        #[test]
        fn damaged_journal_lines_are_refused(at in 0usize..200, flip in 1u8..=255) {
            let mut line = record("a", b"{}").to_journal_line(1);
            line.pop();
            let at = at % line.len();
            line[at] ^= flip;
            // A flip may only turn a hex digit into the same digit in capitals.
            let same = JournalLine::parse(&line).is_some();
            prop_assert!(!same || line[at].is_ascii_uppercase());
        }

        #[test]
        fn torn_journal_lines_are_refused(keep in 0usize..200) {
            let line = record("a", b"{}").to_journal_line(1);
            let keep = keep % (line.len() - 1);
            prop_assert!(JournalLine::parse(&line[..keep]).is_none());
        }
    }
}
