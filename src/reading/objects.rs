//! Goes over a JSONL file: tells its lines apart, and knows the shapes that people take for JSONL.
//!
//! Blank lines, `\r\n` and a byte order mark are passed over. A JSON array or pretty-printed JSON is
//! named once as what it is, instead of line by line as what it is not.

use std::io::Read;

use crate::diag::{Diagnostic, Report};
use crate::reading::lines::{Line, Lines};
use crate::reading::problem::{Problem, Spot, Syntax};

/// A line that holds something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Object<'a> {
    pub(crate) text: &'a str,
    /// Byte of `text` in the file.
    pub(crate) offset: u64,
    pub(crate) number: u32,
}

/// What a visitor makes of a line: an error says that it is no JSON object.
pub(crate) type Visited = Result<(), Syntax>;

/// Calls `visit` for every line of `lines` that holds text, and reports what can't be one.
pub(crate) fn each<R: Read>(
    lines: &mut Lines<R>,
    file: &str,
    report: &mut Report,
    visit: &mut dyn FnMut(Object<'_>, &mut Report) -> Visited,
) {
    walk(
        lines,
        Walk { file, exact: false, spread: None, spread_reported: false, first: true },
        report,
        visit,
    );
}

/// As [`each`], for files that others read who pass over nothing: a blank line and a byte order mark are problems.
pub(crate) fn each_exactly<R: Read>(
    lines: &mut Lines<R>,
    file: &str,
    report: &mut Report,
    visit: &mut dyn FnMut(Object<'_>, &mut Report) -> Visited,
) {
    walk(lines, Walk { file, exact: true, spread: None, spread_reported: false, first: true }, report, visit);
}

fn walk<R: Read>(
    lines: &mut Lines<R>,
    mut walk: Walk<'_>,
    report: &mut Report,
    visit: &mut dyn FnMut(Object<'_>, &mut Report) -> Visited,
) {
    loop {
        match lines.next() {
            Ok(Some(line)) => {
                if walk.line(&line, report, visit).is_break() {
                    return;
                }
            }
            Ok(None) => break,
            Err(error) => {
                report.push(unreadable(walk.file, &error));
                return;
            }
        }
    }
    walk.end(report);
}

pub(crate) fn unreadable(file: &str, error: &std::io::Error) -> Diagnostic {
    Diagnostic::error(file, 0, 0, format!("the file can't be read: {error}"))
}

/// The text of a line, or what is wrong with its bytes.
pub(crate) fn text<'a>(line: &Line<'a>, max_hint: &str) -> Result<&'a str, Problem> {
    if let Some(length) = line.too_long {
        let message = if line.endless {
            format!(
                "the line has more than {length} bytes, which is over the bound; what follows was not read"
            )
        } else {
            format!("the line has {length} bytes, which is over the bound")
        };
        let problem = Problem::error(0, message);
        return Err(Problem { offset: None, ..problem }.hint(max_hint));
    }
    std::str::from_utf8(line.bytes).map_err(|error| {
        let byte = line.bytes.get(error.valid_up_to()).copied().unwrap_or_default();
        Problem::error(error.valid_up_to(), format!("invalid UTF-8: byte 0x{byte:02x}"))
            .hint("save the file as UTF-8")
    })
}

/// What to do about a line over the bound.
pub(crate) const MAX_LINE_HINT: &str = "raise `max_line` in `[intake]` of the config if it must be so long";

struct Walk<'w> {
    file: &'w str,
    /// Nothing is passed over.
    exact: bool,
    /// A value that began on an earlier line and goes on.
    spread: Option<Spread>,
    spread_reported: bool,
    /// No line with text came yet.
    first: bool,
}

impl Walk<'_> {
    fn line(
        &mut self,
        line: &Line<'_>,
        report: &mut Report,
        visit: &mut dyn FnMut(Object<'_>, &mut Report) -> Visited,
    ) -> std::ops::ControlFlow<()> {
        use std::ops::ControlFlow::{Break, Continue};
        if line.number == 1 && (line.bytes.starts_with(b"\xff\xfe") || line.bytes.starts_with(b"\xfe\xff")) {
            let found = Diagnostic::error(self.file, 1, 1, "the file is UTF-16, expected UTF-8");
            report.push(found.hint("save it as UTF-8"));
            return Break(());
        }
        if self.exact && line.number == 1 && line.offset > 0 {
            let found = "a byte order mark, expected the first object";
            report.push(Diagnostic::error(self.file, 1, 1, found).hint("save the file as UTF-8 without BOM"));
        }
        let text = match text(line, MAX_LINE_HINT) {
            Ok(text) => text,
            Err(problem) => {
                self.settle(report);
                self.first = false;
                let shown = String::from_utf8_lossy(line.bytes);
                report.push(problem.at(self.spot(line.number, &shown)));
                return Continue(());
            }
        };
        if text.trim_ascii().is_empty() {
            if self.exact {
                let found = "a blank line, expected an object";
                report.push(Diagnostic::error(self.file, line.number, 0, found).hint("take it out"));
            }
            return Continue(());
        }
        if self.first && text.trim_ascii_start().starts_with('[') {
            let hint = "write one object a line: `jq -c '.[]' FILE > FILE.jsonl`";
            let found =
                Diagnostic::error(self.file, line.number, 1, "a JSON array, expected one object a line");
            report.push(found.hint(hint));
            return Break(());
        }
        self.first = false;
        if let Some(spread) = &mut self.spread {
            match spread.feed(text) {
                Fed::Inside => return Continue(()),
                Fed::Closed => {
                    self.report_spread(report);
                    return Continue(());
                }
                Fed::Other => self.settle(report),
            }
        }
        let object = Object { text, offset: line.offset, number: line.number };
        if let Err(mut syntax) = visit(object, report) {
            if syntax.cut && line.ended {
                self.spread = Spread::begin(text, line.number, syntax.clone());
                if self.spread.is_some() {
                    return Continue(());
                }
            }
            if syntax.cut && !line.ended {
                syntax.hint.get_or_insert_with(|| {
                    "the last line is unfinished: the file looks cut off while it was written or copied"
                        .to_owned()
                });
            }
            report.push(Problem::from(syntax).at(self.spot(line.number, text)));
        }
        Continue(())
    }

    fn spot<'s>(&'s self, line: u32, text: &'s str) -> Spot<'s> {
        Spot { file: self.file, line, text: Some(text) }
    }

    /// What looked spread over lines was a broken line.
    fn settle(&mut self, report: &mut Report) {
        let Some(spread) = self.spread.take() else { return };
        if spread.lines > 1 {
            self.spread = Some(spread);
            self.report_spread(report);
        } else {
            report.push(spread.error(self.file));
        }
    }

    fn report_spread(&mut self, report: &mut Report) {
        let Some(spread) = self.spread.take() else { return };
        if self.spread_reported {
            return;
        }
        self.spread_reported = true;
        let found = "pretty-printed JSON: one object over many lines, expected one object a line";
        let hint = "write it without line breaks: `jq -c . FILE > FILE.jsonl`";
        report.push(Diagnostic::error(self.file, spread.line, 1, found).hint(hint));
    }

    fn end(&mut self, report: &mut Report) {
        self.settle(report);
    }
}

/// Follows the brackets of a value that goes on over line ends.
struct Spread {
    line: u32,
    lines: u32,
    depth: i64,
    syntax: Syntax,
    column: u32,
}

enum Fed {
    Inside,
    Closed,
    /// The line doesn't go on with the value.
    Other,
}

impl Spread {
    /// None if the line ends within a string, as no pretty-printed one does.
    fn begin(text: &str, line: u32, syntax: Syntax) -> Option<Self> {
        let column = crate::reading::json::column(text, syntax.offset);
        let mut spread = Self { line, lines: 1, depth: 0, syntax, column };
        (spread.brackets(text)? > 0).then_some(spread)
    }

    fn feed(&mut self, text: &str) -> Fed {
        let indented = text.starts_with([' ', '\t']);
        let bare = matches!(text.trim_ascii(), "{" | "[" | "{}" | "[]");
        let goes_on = indented || bare || text.starts_with(['"', '}', ']', ',']);
        if !goes_on {
            return Fed::Other;
        }
        match self.brackets(text) {
            None => Fed::Other,
            Some(depth) => {
                self.lines = self.lines.saturating_add(1);
                if depth > 0 { Fed::Inside } else { Fed::Closed }
            }
        }
    }

    /// The depth after `text`; none if it ends within a string.
    fn brackets(&mut self, text: &str) -> Option<i64> {
        let mut in_string = false;
        let mut escaped = false;
        for byte in text.bytes() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                b'{' | b'[' if !in_string => self.depth += 1,
                b'}' | b']' if !in_string => self.depth -= 1,
                _ => {}
            }
        }
        (!in_string).then_some(self.depth)
    }

    fn error(self, file: &str) -> Diagnostic {
        let mut diagnostic = Diagnostic::error(file, self.line, self.column, self.syntax.message);
        diagnostic.hint = self.syntax.hint;
        diagnostic
    }
}
