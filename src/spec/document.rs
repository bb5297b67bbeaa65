//! A TOML text whose keys are taken one by one, so that what is left over is known to be unknown.
//!
//! Unlike serde, which ends at the first problem, a [`Section`] reports every wrong type and every unknown
//! key with its place.

use std::ops::{Range, RangeBounds};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diag::{self, Diagnostic, Report};
use crate::reading::json;
use crate::reading::problem::shown;

/// The text of a spec and the name that a person knows it by.
#[derive(Debug)]
pub(super) struct Document<'d> {
    pub(super) file: &'d str,
    pub(super) text: &'d str,
    /// Bytes of the line ends, so that a spec of many lines and problems is not counted through for each.
    line_ends: Vec<usize>,
}

impl<'d> Document<'d> {
    pub(super) fn new(file: &'d str, text: &'d str) -> Self {
        Self { file, text, line_ends: memchr::memchr_iter(b'\n', text.as_bytes()).collect() }
    }

    /// The line of a byte, from 1.
    pub(super) fn line(&self, offset: usize) -> u32 {
        let before = self.line_ends.partition_point(|end| *end < offset);
        u32::try_from(before).map_or(u32::MAX, |before| before.saturating_add(1))
    }

    /// Line and column of a byte, from 1.
    pub(super) fn place(&self, offset: usize) -> (u32, u32) {
        let before = self.line_ends.partition_point(|end| *end < offset);
        let start = before.checked_sub(1).and_then(|last| self.line_ends.get(last)).map_or(0, |end| end + 1);
        let line = self.text.get(start..).unwrap_or_default();
        (self.line(offset), json::column(line, offset.saturating_sub(start)))
    }

    pub(super) fn error(&self, offset: usize, message: impl Into<String>) -> Diagnostic {
        let (line, column) = self.place(offset);
        Diagnostic::error(self.file, line, column, message)
    }

    /// The JSON text of a TOML value, numbers as TOML means them.
    pub(super) fn json(&self, value: &Spanned<DeValue<'_>>, report: &mut Report) -> Option<String> {
        let mut json = String::new();
        let no_template = &mut |text: &str, _: Range<usize>, json: &mut String| json.push_str(&quoted(text));
        self.write_json(value, &mut json, no_template, report)?;
        Some(json)
    }

    /// Writes a value as JSON, its strings by `string`. None: it has no JSON form, which was reported.
    pub(super) fn write_json(
        &self,
        value: &Spanned<DeValue<'_>>,
        json: &mut String,
        string: &mut dyn FnMut(&str, Range<usize>, &mut String),
        report: &mut Report,
    ) -> Option<()> {
        let at = value.span().start;
        match value.get_ref() {
            DeValue::String(text) => string(text, value.span(), json),
            DeValue::Boolean(truth) => json.push_str(if *truth { "true" } else { "false" }),
            DeValue::Integer(integer) => {
                let Ok(number) = i64::from_str_radix(integer.as_str(), integer.radix()) else {
                    report.push(self.error(at, format!("{} is too large a number", shown(integer.as_str()))));
                    return None;
                };
                json.push_str(&number.to_string());
            }
            DeValue::Float(float) => {
                let written = float.as_str();
                // As it is written where JSON writes it so too: `1.10` may be a price.
                if serde_json::from_str::<serde_json::Number>(written).is_ok() {
                    json.push_str(written);
                    return Some(());
                }
                let number = written.parse().ok().and_then(serde_json::Number::from_f64);
                let Some(number) = number else {
                    let message = format!("{} has no form in JSON", shown(written));
                    report.push(self.error(at, message));
                    return None;
                };
                json.push_str(&number.to_string());
            }
            DeValue::Datetime(_) => {
                report.push(self.error(at, "JSON has no dates").hint("put it in double quotes"));
                return None;
            }
            DeValue::Array(array) => {
                json.push('[');
                for (number, item) in array.iter().enumerate() {
                    if number > 0 {
                        json.push(',');
                    }
                    self.write_json(item, json, string, report)?;
                }
                json.push(']');
            }
            DeValue::Table(table) => {
                json.push('{');
                for (number, (key, item)) in table.iter().enumerate() {
                    if number > 0 {
                        json.push(',');
                    }
                    json.push_str(&quoted(key.get_ref()));
                    json.push(':');
                    self.write_json(item, json, string, report)?;
                }
                json.push('}');
            }
        }
        Some(())
    }
}

/// A text as a JSON string.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A value and the byte where it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) offset: usize,
}

/// One table of a document.
#[derive(Debug)]
pub(super) struct Section<'d, 'i> {
    document: &'d Document<'d>,
    /// As messages call it: `[input]`, or nothing for the top.
    name: &'static str,
    table: &'d DeTable<'i>,
    pub(super) offset: usize,
    known: Vec<&'static str>,
}

impl<'d, 'i> Section<'d, 'i> {
    pub(super) const fn new(
        document: &'d Document<'d>,
        name: &'static str,
        table: &'d DeTable<'i>,
        offset: usize,
    ) -> Self {
        Self { document, name, table, offset, known: Vec::new() }
    }

    /// The value of `key`, which is known from now on.
    pub(super) fn take(&mut self, key: &'static str) -> Option<&'d Spanned<DeValue<'i>>> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.table.get(key)
    }

    /// Where `key` itself stands.
    pub(super) fn key_offset(&self, key: &str) -> usize {
        self.table.get_key_value(key).map_or(self.offset, |(key, _)| key.span().start)
    }

    pub(super) fn string(&mut self, key: &'static str, report: &mut Report) -> Option<Placed<String>> {
        let value = self.take(key)?;
        match value.get_ref().as_str() {
            Some(text) => Some(Placed { value: text.to_owned(), offset: value.span().start }),
            None => self.wrong(key, value, "a string", report),
        }
    }

    pub(super) fn boolean(&mut self, key: &'static str, report: &mut Report) -> Option<bool> {
        let value = self.take(key)?;
        let truth = value.get_ref().as_bool();
        if truth.is_none() { self.wrong(key, value, "true or false", report) } else { truth }
    }

    pub(super) fn integer(
        &mut self,
        key: &'static str,
        range: impl RangeBounds<u32>,
        expected: &str,
        report: &mut Report,
    ) -> Option<u32> {
        let value = self.take(key)?;
        let Some(integer) = value.get_ref().as_integer() else {
            return self.wrong(key, value, expected, report);
        };
        let number = u32::from_str_radix(integer.as_str(), integer.radix()).ok();
        if let Some(number) = number.filter(|number| range.contains(number)) {
            return Some(number);
        }
        let message = format!("`{key}` is {}, expected {expected}", integer.as_str());
        report.push(self.document.error(value.span().start, message));
        None
    }

    /// A duration like `6h`.
    pub(super) fn duration(&mut self, key: &'static str, report: &mut Report) -> Option<Duration> {
        const EXPECTED: &str = "a duration like `\"90s\"`, `\"10m\"` or `\"6h\"`";
        let value = self.take(key)?;
        let Some(text) = value.get_ref().as_str() else {
            return self.wrong(key, value, EXPECTED, report);
        };
        match humantime::parse_duration(text) {
            Ok(duration) => Some(duration),
            Err(error) => {
                let message = format!("`{key}` is {}, expected {EXPECTED}: {error}", shown(text));
                report.push(self.document.error(value.span().start, message));
                None
            }
        }
    }

    /// One of some words.
    pub(super) fn word<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&'static str, T)],
        report: &mut Report,
    ) -> Option<T> {
        let text = self.string(key, report)?;
        if let Some((_, meant)) = words.iter().find(|(word, _)| *word == text.value) {
            return Some(*meant);
        }
        let all: Vec<String> = words.iter().map(|(word, _)| format!("`\"{word}\"`")).collect();
        let found = self.document.error(text.offset, format!("unknown {key} {}", shown(&text.value)));
        report.push(found.hint(meant(&text.value, words.iter().map(|(word, _)| *word), &all)));
        None
    }

    pub(super) fn section(
        &mut self,
        key: &'static str,
        name: &'static str,
        report: &mut Report,
    ) -> Option<Self> {
        let value = self.take(key)?;
        match value.get_ref().as_table() {
            Some(table) => Some(Section::new(self.document, name, table, value.span().start)),
            None => self.wrong(key, value, "a table", report),
        }
    }

    /// Every member, for tables whose keys are free.
    pub(super) fn members(&self) -> impl Iterator<Item = (&'d str, &'d Spanned<DeValue<'i>>)> + use<'d, 'i> {
        self.table.iter().map(|(key, value)| (key.get_ref().as_ref(), value))
    }

    /// Reports the keys that nobody took.
    pub(super) fn finish(self, report: &mut Report) {
        self.finish_with(report, |_| None);
    }

    /// Reports the keys that nobody took; `hint` knows some of them from elsewhere.
    pub(super) fn finish_with(self, report: &mut Report, hint: impl Fn(&str) -> Option<String>) {
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if self.known.contains(&name) {
                continue;
            }
            let place = if self.name.is_empty() { String::new() } else { format!(" in {}", self.name) };
            let found = self.document.error(key.span().start, format!("unknown key {}{place}", shown(name)));
            let all: Vec<String> = self.known.iter().map(|key| format!("`{key}`")).collect();
            let hint = hint(name).unwrap_or_else(|| meant(name, self.known.iter().copied(), &all));
            report.push(found.hint(hint));
        }
    }

    fn wrong<T>(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        expected: &str,
        report: &mut Report,
    ) -> Option<T> {
        let message = format!("`{key}` is {}, expected {expected}", type_of(value.get_ref()));
        report.push(self.document.error(value.span().start, message));
        None
    }
}

/// "did you mean", or all that is known.
pub(super) fn meant(found: &str, words: impl IntoIterator<Item = &'static str>, all: &[String]) -> String {
    let near = if found.len() <= 64 { diag::nearest(found, words) } else { None };
    near.map_or_else(|| format!("known are {}", all.join(", ")), |near| format!("did you mean `{near}`?"))
}

pub(super) const fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters() {
        let document = Document::new("a.toml", "é = 1\nb = 2\r\n\nlast");
        let places: Vec<_> = [0, 2, 6, 7, 11, 13, 14, 15, 99].map(|offset| document.place(offset)).into();
        assert_eq!(places, [(1, 1), (1, 2), (1, 6), (2, 1), (2, 5), (2, 7), (3, 1), (4, 1), (4, 5)]);
    }

    #[test]
    fn numbers_keep_what_toml_means_by_them() {
        let text = "a = [0, 1_000, 0x10, -5, 0.5, 1e3, 1.10, +1_0.50, -0.0]\nb = { \"c d\" = \"\\n\" }\nc = 99999999999999999999\n";
        let document = Document::new("a.toml", text);
        let (table, errors) = DeTable::parse_recoverable(text);
        assert!(errors.is_empty(), "{errors:?}");
        let mut report = Report::default();
        let mut json = |key: &str| document.json(table.get_ref().get(key).unwrap(), &mut report);
        assert_eq!(json("a").unwrap(), "[0,1000,16,-5,0.5,1e3,1.10,10.5,-0.0]");
        assert_eq!(json("b").unwrap(), r#"{"c d":"\n"}"#);
        assert_eq!(json("c"), None);
        assert!(
            report.to_string().starts_with("a.toml:3:5: error: `99999999999999999999` is too large"),
            "{report}"
        );
    }
}
