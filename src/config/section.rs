//! Reads typed values out of one table of a TOML file and notes every problem with its place.
//!
//! A value that is absent, or wrong and therefore reported, reads as its default, so that one pass finds
//! all problems of a file. Keys that nobody asked for are unknown: [`Section::finish`] reports them.

use std::cell::RefCell;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diag::{Diagnostic, Report, line_and_column, nearest, printable};

/// A file being read and what is wrong with it so far.
#[derive(Debug)]
pub(super) struct Document<'a> {
    /// As the person knows the file.
    pub(super) file: &'a str,
    pub(super) text: &'a str,
    report: RefCell<Report>,
}

/// A value and the byte at which it begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found<T> {
    pub(super) value: T,
    pub(super) at: usize,
}

/// One table. `table` is none where the file doesn't have it: every value is then its default.
#[derive(Debug)]
pub(super) struct Section<'a> {
    document: &'a Document<'a>,
    /// As a person writes it, `[intake]`; empty for the top of the file.
    header: String,
    at: usize,
    table: Option<&'a DeTable<'a>>,
    asked: Vec<&'static str>,
}

impl<'a> Document<'a> {
    pub(super) fn new(file: &'a str, text: &'a str) -> Self {
        Self { file, text, report: RefCell::default() }
    }

    /// Line and column of a byte; zeros, which mean the whole file, for none.
    pub(super) fn place(&self, at: Option<usize>) -> (u32, u32) {
        at.map_or((0, 0), |at| line_and_column(self.text.as_bytes(), at))
    }

    pub(super) fn error(&self, at: Option<usize>, message: impl Into<String>) -> Diagnostic {
        let (line, column) = self.place(at);
        Diagnostic::error(self.file, line, column, message)
    }

    pub(super) fn warning(&self, at: Option<usize>, message: impl Into<String>) -> Diagnostic {
        let (line, column) = self.place(at);
        Diagnostic::warning(self.file, line, column, message)
    }

    pub(super) fn push(&self, diagnostic: Diagnostic) {
        self.report.borrow_mut().push(diagnostic);
    }

    pub(super) fn into_report(self) -> Report {
        let mut report = self.report.into_inner();
        report.sort();
        report
    }
}

impl<'a> Section<'a> {
    /// The top of the file; `None` reads as a file without a line.
    pub(super) fn top(document: &'a Document<'a>, table: Option<&'a DeTable<'a>>) -> Self {
        Self { document, header: String::new(), at: 0, table, asked: Vec::new() }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Where the table begins, if the file has it.
    pub(super) fn at(&self) -> Option<usize> {
        self.table.map(|_| self.at)
    }

    pub(super) fn text(&mut self, key: &'static str) -> Option<Found<&'a str>> {
        let value = self.value(key)?;
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(key, value, "a string");
            return None;
        };
        Some(Found { value: text, at: value.span().start })
    }

    pub(super) fn texts(&mut self, key: &'static str) -> Vec<Found<&'a str>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(key, value, "an array of strings");
            return Vec::new();
        };
        let mut texts = Vec::new();
        for element in array {
            match element.get_ref().as_str() {
                Some(text) => texts.push(Found { value: text, at: element.span().start }),
                None => self.wrong_type(key, element, "an array of strings"),
            }
        }
        texts
    }

    /// The strings of the table `key`, each with its name.
    pub(super) fn texts_by_name(&mut self, key: &'static str) -> Vec<(Found<&'a str>, Found<&'a str>)> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(key, value, "a table of strings, like `{ \"X-Name\" = \"value\" }`");
            return Vec::new();
        };
        let mut texts = Vec::new();
        for (name, value) in table {
            let name = Found { value: name.get_ref().as_ref(), at: name.span().start };
            match value.get_ref().as_str() {
                Some(text) => texts.push((name, Found { value: text, at: value.span().start })),
                None => self.wrong_type(name.value, value, "a string"),
            }
        }
        texts
    }

    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> bool {
        let Some(value) = self.value(key) else { return default };
        value.get_ref().as_bool().unwrap_or_else(|| {
            self.wrong_type(key, value, "`true` or `false`");
            default
        })
    }

    pub(super) fn number(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.value(key)?;
        let Some(integer) = value.get_ref().as_integer() else {
            self.wrong_type(key, value, "a whole number");
            return None;
        };
        // What is no u64 is negative or beyond every range.
        let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        self.within(key, number, &range, u64::to_string, (value.span().start, integer))
    }

    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        self.duration_if_given(key, range).unwrap_or(default)
    }

    /// None if it is not there, or wrong.
    pub(super) fn duration_if_given(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let value = self.value(key)?;
        let text = value.get_ref().as_str();
        let Some((text, duration)) = text.and_then(|t| humantime::parse_duration(t).ok().map(|d| (t, d)))
        else {
            self.wrong_type(key, value, "a duration like `100ms`, `3s`, `10m` or `6h`");
            return None;
        };
        let shown = |duration: &Duration| humantime::format_duration(*duration).to_string();
        self.within(key, Some(duration), &range, shown, (value.span().start, text))
    }

    /// In bytes.
    pub(super) fn size(&mut self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        self.size_if_given(key, range).unwrap_or(default)
    }

    /// In bytes; none if it is not there, or wrong.
    pub(super) fn size_if_given(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.value(key)?;
        let text = value.get_ref().as_str();
        let Some((text, size)) = text.and_then(|t| t.parse::<ByteSize>().ok().map(|size| (t, size))) else {
            self.wrong_type(key, value, "a size like `64KiB` or `16MiB`");
            return None;
        };
        let shown = |bytes: &u64| ByteSize::b(*bytes).display().iec().to_string().replace(".0 ", "");
        self.within(key, Some(size.as_u64()), &range, shown, (value.span().start, text))
    }

    /// The value as it is, for keys that take more than one type.
    pub(super) fn value(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        self.table?.get(key)
    }

    /// The table `key`, which people write as `header`.
    pub(super) fn section(&mut self, key: &'static str, header: &str) -> Self {
        let value = self.value(key);
        let table = value.and_then(|value| value.get_ref().as_table());
        if let (Some(value), None) = (value, table) {
            self.wrong_type(key, value, &format!("a table, `{header}`"));
        }
        self.inner(header, value, table)
    }

    /// The array of tables `key`, each of which people write as `header`. None if the file has no such key.
    pub(super) fn sections(&mut self, key: &'static str, header: &str) -> Option<Vec<Self>> {
        let value = self.value(key)?;
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(key, value, &format!("an array of tables, `{header}`"));
            return Some(Vec::new());
        };
        let mut sections = Vec::new();
        for element in array {
            match element.get_ref().as_table() {
                Some(table) => sections.push(self.inner(header, Some(element), Some(table))),
                None => self.wrong_type(key, element, &format!("an array of tables, `{header}`")),
            }
        }
        Some(sections)
    }

    /// Reports the keys that nobody asked for; `advice` may know more about one than its likely spelling.
    pub(super) fn finish(self, advice: impl Fn(&str) -> Option<&'static str>) {
        for key in self.table.into_iter().flat_map(|table| table.keys()) {
            let name: &str = key.get_ref();
            if self.asked.contains(&name) {
                continue;
            }
            let whose = if self.header.is_empty() { String::new() } else { format!(" in `{}`", self.header) };
            let message = format!("unknown key `{}`{whose}", printable(name));
            let near = || nearest(name, self.asked.iter().copied()).map(|n| format!("did you mean `{n}`?"));
            let hint = advice(name)
                .map(str::to_owned)
                .or_else(near)
                .unwrap_or_else(|| format!("known keys: {}", self.asked.join(", ")));
            self.document.push(self.document.error(Some(key.span().start), message).hint(hint));
        }
    }

    pub(super) fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, expected: &str) {
        let found = match value.get_ref() {
            DeValue::String(text) => format!("\"{}\"", printable(text)),
            DeValue::Integer(integer) => integer.to_string(),
            DeValue::Float(float) => float.to_string(),
            DeValue::Boolean(flag) => flag.to_string(),
            DeValue::Datetime(time) => time.to_string(),
            DeValue::Array(_) => "an array".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
        };
        let message = format!("`{key}` must be {expected}, found `{found}`");
        self.document.push(self.document.error(Some(value.span().start), message));
    }

    fn inner(
        &self,
        header: &str,
        value: Option<&'a Spanned<DeValue<'a>>>,
        table: Option<&'a DeTable<'a>>,
    ) -> Self {
        let at = value.map_or(0, |value| value.span().start);
        Self { document: self.document, header: header.to_owned(), at, table, asked: Vec::new() }
    }

    /// The number if it is there and within the range; else it is reported as it was `written`.
    fn within<T: PartialOrd>(
        &self,
        key: &str,
        number: Option<T>,
        range: &RangeInclusive<T>,
        shown: impl Fn(&T) -> String,
        (at, written): (usize, impl fmt::Display),
    ) -> Option<T> {
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            let (least, most) = (shown(range.start()), shown(range.end()));
            let message = format!("`{key}` must be from `{least}` to `{most}`, found `{written}`");
            self.document.push(self.document.error(Some(at), message));
        }
        number
    }
}
