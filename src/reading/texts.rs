//! Reads a file of plain text, line by line.

use std::io::Read;

use crate::diag::{Diagnostic, Report};
use crate::reading::lines::Lines;
use crate::reading::objects;
use crate::reading::problem::Spot;

/// Calls `visit` with every line of `input` and its number, blank ones too, and reports those that are no text. `max` is
/// the longest line in bytes.
pub(crate) fn each(
    input: impl Read,
    (file, max): (&str, u64),
    report: &mut Report,
    visit: &mut dyn FnMut(&str, u32, &mut Report),
) {
    let mut lines = Lines::new(input, max);
    loop {
        let line = match lines.next() {
            Ok(Some(line)) => line,
            Ok(None) => return,
            Err(error) => return report.push(objects::unreadable(file, &error)),
        };
        match objects::text(&line, objects::MAX_LINE_HINT) {
            Ok(text) if text.contains('\0') => {
                report.push(Diagnostic::error(file, line.number, 0, "a NUL byte: the file is no text"));
            }
            Ok(text) => visit(text, line.number, report),
            Err(problem) => {
                let shown = String::from_utf8_lossy(line.bytes);
                report.push(problem.at(Spot { file, line: line.number, text: Some(&shown) }));
            }
        }
    }
}
