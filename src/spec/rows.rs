//! The rows of a data file: objects of a `.jsonl`, records of a `.csv`, lines of a `.txt`.

use std::io::Read;

use minijinja::Value;

use crate::diag::Report;
use crate::reading::json;
use crate::reading::lines::Lines;
use crate::reading::objects::{self, Object, Visited};
use crate::reading::problem::{Problem, Spot, Syntax, shown};
use crate::reading::records::{self, Record};
use crate::reading::texts;
use crate::spec::pick::pick;

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
    Record(Record<'a>),
    Text(&'a str),
}

impl Row<'_> {
    /// The fields named by `variables` that the row has, as templates see them.
    pub(super) fn fields(&self, variables: &[String]) -> Result<Value, Syntax> {
        match self {
            Self::Text(text) => Ok(Value::from_iter([("text", Value::from(*text))])),
            Self::Record(Record { header, fields }) => {
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
            Self::Record(record) => record.header.iter().map(str::to_owned).collect(),
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
        DataForm::Txt => texts::each(input, (file, max), report, &mut |text, line, report| {
            if !text.trim().is_empty() {
                push_syntax(visit(Row::Text(text), line, report), file, line, report);
            }
        }),
        DataForm::Csv => {
            let rules = records::Rules { file, delimiter: b',', max };
            records::each(input, rules, report, &mut |record, line, report| {
                visit(Row::Record(record), line, report)
            });
        }
    }
}

fn push_syntax(visited: Visited, file: &str, line: u32, report: &mut Report) {
    if let Err(syntax) = visited {
        report.push(Problem::from(syntax).at(Spot { file, line, text: None }));
    }
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
