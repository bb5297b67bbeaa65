//! Diagnostics: what is wrong with a file that a person wrote, where, and what to do about it.
//!
//! ```text
//! news.jsonl:3:14: error: unknown url `/v1/chat`
//!   hint: did you mean `/v1/chat/completions`?
//! ```

use std::fmt;

use serde::Serialize;

/// Errors refuse a file; warnings don't. A note tells what is worth knowing about a file in which nothing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Error,
    Warning,
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// A place in a file. Lines and columns count from 1; 0 = the whole file, or the whole line.
/// A column counts characters, not bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// As the person knows the file: relative to the jobs folder, or as given on the command line.
    pub file: String,
    pub line: u32,
    pub column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.file))?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
            if self.column > 0 {
                write!(f, ":{}", self.column)?;
            }
        }
        Ok(())
    }
}

/// Line and column of the byte `at`, from 1; a column counts characters.
pub fn line_and_column(text: &[u8], at: usize) -> (u32, u32) {
    let before = text.get(..at).unwrap_or(text);
    let line = 1 + memchr::memchr_iter(b'\n', before).count();
    let start = memchr::memrchr(b'\n', before).map_or(0, |end| end + 1);
    let column = 1 + String::from_utf8_lossy(before.get(start..).unwrap_or_default()).chars().count();
    (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    pub severity: Severity,
    #[serde(flatten)]
    pub place: Place,
    /// A lower-case phrase with values in backticks and no full stop: what was found and what was expected.
    pub message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Diagnostic {
    pub fn error(file: &str, line: u32, column: u32, message: impl Into<String>) -> Self {
        let place = Place { file: file.to_owned(), line, column };
        Self { severity: Severity::Error, place, message: message.into(), hint: None }
    }

    pub fn warning(file: &str, line: u32, column: u32, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(file, line, column, message) }
    }

    pub fn note(file: &str, line: u32, column: u32, message: impl Into<String>) -> Self {
        Self { severity: Severity::Note, ..Self::error(file, line, column, message) }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, self.severity, printable(&self.message))?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {}", printable(hint))?;
        }
        Ok(())
    }
}

/// All findings about one file: the first [`Report::SHOWN_MAX`] of each severity are kept, the rest counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    diagnostics: Vec<Diagnostic>,
    errors: u64,
    warnings: u64,
    notes: u64,
}

impl Report {
    pub const SHOWN_MAX: usize = 20;

    pub fn push(&mut self, diagnostic: Diagnostic) {
        let count = match diagnostic.severity {
            Severity::Error => &mut self.errors,
            Severity::Warning => &mut self.warnings,
            Severity::Note => &mut self.notes,
        };
        *count += 1;
        if *count <= Self::SHOWN_MAX as u64 {
            self.diagnostics.push(diagnostic);
        }
    }

    pub fn extend(&mut self, diagnostics: impl IntoIterator<Item = Diagnostic>) {
        diagnostics.into_iter().for_each(|d| self.push(d));
    }

    /// Takes over all that `other` found.
    pub fn absorb(&mut self, other: Self) {
        let kept = |severity| other.diagnostics.iter().filter(|d| d.severity == severity).count() as u64;
        let beyond = [
            other.errors - kept(Severity::Error),
            other.warnings - kept(Severity::Warning),
            other.notes - kept(Severity::Note),
        ];
        self.extend(other.diagnostics);
        for (count, beyond) in [&mut self.errors, &mut self.warnings, &mut self.notes].into_iter().zip(beyond)
        {
            *count += beyond;
        }
    }

    /// The same findings, none of which refuses anything.
    #[must_use]
    pub fn into_warnings(self) -> Self {
        let mut report = Self::default();
        let warnings = self.errors + self.warnings;
        report.extend(self.diagnostics.into_iter().map(|found| match found.severity {
            Severity::Error => Diagnostic { severity: Severity::Warning, ..found },
            Severity::Warning | Severity::Note => found,
        }));
        Self { warnings, notes: self.notes, ..report }
    }

    /// Orders what is kept by place. Checks that end late (duplicates) then stand where they belong.
    pub fn sort(&mut self) {
        self.diagnostics.sort_by(|a, b| a.place.cmp(&b.place).then(a.severity.cmp(&b.severity)));
    }

    pub const fn has_errors(&self) -> bool {
        self.errors > 0
    }

    pub const fn is_empty(&self) -> bool {
        self.errors == 0 && self.warnings == 0 && self.notes == 0
    }

    pub const fn errors(&self) -> u64 {
        self.errors
    }

    pub const fn warnings(&self) -> u64 {
        self.warnings
    }

    pub const fn notes(&self) -> u64 {
        self.notes
    }

    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// The first of what makes it a refusal, in the order of the report.
    pub fn first_error(&self) -> Option<&Diagnostic> {
        self.diagnostics.iter().find(|diagnostic| diagnostic.severity == Severity::Error)
    }
}

impl From<Diagnostic> for Report {
    fn from(diagnostic: Diagnostic) -> Self {
        let mut report = Self::default();
        report.push(diagnostic);
        report
    }
}

impl fmt::Display for Report {
    /// One diagnostic a line (hints below theirs), then `and N more errors`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in &self.diagnostics {
            writeln!(f, "{diagnostic}")?;
        }
        for (count, word) in [(self.errors, "error"), (self.warnings, "warning"), (self.notes, "note")] {
            let more = count.saturating_sub(Self::SHOWN_MAX as u64);
            if more > 0 {
                writeln!(f, "and {more} more {word}{}", if more == 1 { "" } else { "s" })?;
            }
        }
        Ok(())
    }
}

/// Text from outside on one line of a terminal or log: control and bidi characters are escaped, and what is
/// longer than 2 KiB is cut.
pub fn printable(text: &str) -> String {
    const BYTES_MAX: usize = 2048;
    let mut out = String::with_capacity(text.len().min(BYTES_MAX));
    for c in text.chars() {
        if out.len() >= BYTES_MAX {
            out.push('…');
            break;
        }
        if is_hidden(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Characters that change what a terminal shows, or show nothing.
pub fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The candidate nearest to `found`, if one is near enough to be meant: for "did you mean".
pub fn nearest<'a>(found: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let bound = found.chars().count().div_ceil(3);
    candidates
        .into_iter()
        .map(|candidate| (distance(found, candidate), candidate))
        .filter(|(distance, _)| *distance <= bound)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edits (insert, delete, replace) between two words, letters' case aside.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, y) in row.iter_mut().skip(1).zip(&b) {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = *cell;
            left = replaced.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_file_line_column_then_hint() {
        let found = Diagnostic::error("a.jsonl", 3, 14, "unknown url `/v1/chat`").hint("see the README");
        assert_eq!(found.to_string(), "a.jsonl:3:14: error: unknown url `/v1/chat`\n  hint: see the README");
        assert_eq!(Diagnostic::warning("a\n", 0, 0, "x").to_string(), "a\\n: warning: x");
    }

    #[test]
    fn shows_the_first_twenty_and_counts_the_rest() {
        let mut report = Report::default();
        report.extend((1..=25).map(|line| Diagnostic::error("a", line, 1, "bad")));
        let text = report.to_string();
        assert_eq!(text.lines().count(), 21);
        assert!(text.ends_with("and 5 more errors\n"), "{text}");
        assert_eq!(report.errors(), 25);
        report.extend((1..=21).map(|line| Diagnostic::note("a", line, 0, "odd")));
        assert!(
            report.to_string().ends_with("a:20: note: odd\nand 5 more errors\nand 1 more note\n"),
            "{report}"
        );
        assert_eq!((report.errors(), report.notes()), (25, 21));
    }

    #[test]
    fn what_one_report_takes_over_from_another_is_counted_whole() {
        let many = |count| {
            let mut report = Report::default();
            report.extend((1..=count).map(|line| Diagnostic::warning("a", line, 1, "odd")));
            report
        };
        let mut report = many(3);
        report.absorb(many(25));
        assert_eq!((report.errors(), report.warnings(), report.diagnostics().len()), (0, 28, 20));
        let mut report = Report::default();
        report.absorb(many(25));
        assert_eq!(report, many(25));
    }

    #[test]
    fn errors_that_refuse_nothing_are_warnings() {
        let mut report = Report::default();
        report.extend((1..=25).map(|line| Diagnostic::error("a", line, 1, "bad")));
        report.push(Diagnostic::warning("a", 30, 0, "odd"));
        report.push(Diagnostic::note("a", 31, 0, "so"));
        let report = report.into_warnings();
        assert_eq!((report.errors(), report.warnings(), report.notes()), (0, 26, 1));
        let text = report.to_string();
        assert!(
            text.starts_with("a:1:1: warning: bad\n") && text.ends_with("note: so\nand 6 more warnings\n"),
            "{text}"
        );
    }

    #[test]
    fn a_refusal_is_known_by_its_first_error() {
        let mut report = Report::default();
        report.push(Diagnostic::warning("a.jsonl", 1, 0, "odd"));
        assert_eq!(report.first_error(), None);
        report.push(Diagnostic::error("a.jsonl", 2, 0, "bad"));
        report.push(Diagnostic::error("a.jsonl", 3, 0, "worse"));
        assert_eq!(report.first_error().unwrap().message, "bad");
    }

    #[test]
    fn escapes_what_a_terminal_would_obey() {
        assert_eq!(printable("a\u{1b}[31m\n\u{202e}é"), "a\\u{1b}[31m\\n\\u{202e}é");
        assert!(printable(&"x".repeat(10_000)).len() < 2100);
    }

    #[test]
    fn suggests_only_what_is_near() {
        let keys = ["model", "messages", "max_tokens"];
        assert_eq!(nearest("modle", keys), Some("model"));
        assert_eq!(nearest("Max_Token", keys), Some("max_tokens"));
        assert_eq!(nearest("zebra", keys), None);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
