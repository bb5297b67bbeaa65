//! What is wrong with one line, before it is known under which name a person knows the line's file.

use crate::diag::{Diagnostic, Severity};
use crate::reading::json;

/// Values in messages are cut to this: a report must stay small whatever the file holds.
const SHOWN_CHARS_MAX: usize = 80;

/// A finding about a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) severity: Severity,
    /// Byte in the line; none = the line as a whole.
    pub(crate) offset: Option<usize>,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

/// The text is no JSON object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Syntax {
    pub(crate) offset: usize,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    /// The text ends before the object does.
    pub(crate) cut: bool,
}

/// A line as a person finds it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot<'a> {
    pub(crate) file: &'a str,
    pub(crate) line: u32,
    /// What columns are counted in; none where the text was made by us.
    pub(crate) text: Option<&'a str>,
}

impl Problem {
    pub(crate) fn error(offset: usize, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, offset: Some(offset), message: message.into(), hint: None }
    }

    pub(crate) fn warning(offset: usize, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(offset, message) }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn at(self, spot: Spot<'_>) -> Diagnostic {
        let column = match (self.offset, spot.text) {
            (Some(offset), Some(text)) => json::column(text, offset),
            _ => 0,
        };
        let mut diagnostic = Diagnostic::error(spot.file, spot.line, column, self.message);
        diagnostic.severity = self.severity;
        diagnostic.hint = self.hint;
        diagnostic
    }
}

impl From<Syntax> for Problem {
    fn from(syntax: Syntax) -> Self {
        Self { hint: syntax.hint, ..Self::error(syntax.offset, syntax.message) }
    }
}

impl Syntax {
    /// From serde's error about one line of text.
    pub(crate) fn new(text: &str, error: &serde_json::Error) -> Self {
        let mut offset = error.column().saturating_sub(1);
        // Of a control character within a string serde_json gives the byte before.
        let next = text.as_bytes().get(offset + 1).copied();
        if error.to_string().starts_with("control character") && next.is_some_and(|byte| byte < b' ') {
            offset += 1;
        }
        if text.as_bytes().get(offset) == Some(&0) {
            return Self {
                offset,
                message: "invalid JSON: a NUL byte".to_owned(),
                hint: Some("the file is no text, or was damaged on its way".to_owned()),
                cut: false,
            };
        }
        let full = error.to_string();
        let message = full.split_once(" at line ").map_or(full.as_str(), |(message, _)| message);
        let python = text.trim_start().starts_with("{'");
        let hint = "this looks like a printed Python dict: write it with json.dumps";
        Self {
            offset,
            message: format!("invalid JSON: {message}"),
            hint: python.then(|| hint.to_owned()),
            cut: error.is_eof(),
        }
    }
}

/// A value from a file as it stands in a message.
pub(crate) fn shown(text: &str) -> String {
    let mut cut: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    format!("`{cut}`")
}

/// What kind of thing a JSON text is, for messages.
pub(crate) fn what(json: &str) -> &'static str {
    match json.trim_start().as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        Some(b'-' | b'0'..=b'9') => "a number",
        _ => "no JSON",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_cut() {
        assert_eq!(shown("é"), "`é`");
        assert!(shown(&"x".repeat(1 << 20)).len() < 100);
    }

    #[test]
    fn syntax_errors_stand_at_their_byte() {
        let syntax = |text: &str| Syntax::new(text, &json::members(text).unwrap_err());
        let cut = syntax(r#"{"a": {"b": 1"#);
        assert!(cut.cut && cut.message.contains("EOF"), "{cut:?}");
        assert_eq!(syntax(r#"{"a": tru}"#).offset, 9);
        assert_eq!(syntax(r#"{"é": 1,}"#).offset, 9);
        assert!(syntax("{'a': 1}").hint.unwrap().contains("json.dumps"));
        let nul = syntax("{\"a\": \"x\0y\"}");
        assert_eq!((nul.offset, nul.message.as_str()), (8, "invalid JSON: a NUL byte"));
    }

    #[test]
    fn columns_are_counted_only_in_the_text_that_the_person_wrote() {
        let spot = Spot { file: "a.jsonl", line: 3, text: Some("é{") };
        assert_eq!(Problem::error(2, "bad").at(spot).to_string(), "a.jsonl:3:2: error: bad");
        let spot = Spot { text: None, ..spot };
        assert_eq!(Problem::warning(2, "odd").at(spot).to_string(), "a.jsonl:3: warning: odd");
    }
}
