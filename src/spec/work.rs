//! Where a TOML spec's requests come from: `[input]` and its templates, `[[requests]]`, or `[fine_tune]`.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeArray, DeValue};

use crate::diag::{Diagnostic, Severity};
use crate::domain::Kind;
use crate::spec::document::{Placed, Section, type_of};
use crate::spec::now::names_now;
use crate::spec::rows::DataForm;
use crate::spec::schema::Reader;
use crate::spec::template::{Invalid, TemplateId};
use crate::spec::tuning::Tuning;

/// Where a job's requests come from.
#[derive(Debug)]
pub(super) enum Work {
    /// Rows of data, and what is made of each.
    Rows {
        path: Placed<String>,
        custom_id: Option<TemplateId>,
        content: Content,
    },
    /// A file of batch lines.
    Lines {
        path: Placed<String>,
    },
    /// Requests written out in the spec.
    Inline(Vec<Inline>),
    FineTune(Box<Tuning>),
}

/// The member of the body that a row is made into.
#[derive(Debug)]
pub(super) struct Content {
    /// `prompt`, `input` or `messages`.
    pub(super) key: &'static str,
    /// None: the row of a `.txt` is it.
    pub(super) pieces: Option<Vec<Piece>>,
}

/// JSON text with holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Json(String),
    /// Rendered, then written as a JSON string.
    Template(TemplateId),
}

/// One of `[[requests]]`.
#[derive(Debug)]
pub(super) struct Inline {
    pub(super) line: u32,
    pub(super) custom_id: Option<String>,
    pub(super) members: Vec<(String, String)>,
}

impl<'d> Reader<'d, '_> {
    /// None: it was refused, and the report says why.
    pub(super) fn work(
        &mut self,
        top: &mut Section<'d, 'd>,
        kind: Option<Kind>,
        model: Option<&Placed<String>>,
    ) -> Option<Work> {
        if kind == Some(Kind::FineTune) {
            return self.tuning(top, model).map(|tuning| Work::FineTune(Box::new(tuning)));
        }
        let input = top.section("input", "[input]", self.report);
        let requests = top.take("requests");
        if top.take("fine_tune").is_some() {
            let at = top.key_offset("fine_tune");
            self.error(at, "`[fine_tune]` fits kind `fine_tune` alone", "");
        }
        let kind = kind?;
        match (input, requests) {
            (Some(_), Some(_)) => {
                let hint = "rows of data and requests written out are two jobs";
                self.error(top.key_offset("requests"), "both `[input]` and `[[requests]]`", hint);
                None
            }
            (None, None) => {
                let found = Diagnostic::error(self.document.file, 0, 0, "no requests");
                let hint = "write `[input]` with a `file`, or `[[requests]]`";
                self.report.push(found.hint(hint));
                None
            }
            (Some(input), None) => self.input(input, kind),
            (None, Some(requests)) => self.requests(requests, kind, top),
        }
    }

    fn input(&mut self, mut input: Section<'d, 'd>, kind: Kind) -> Option<Work> {
        let path = input.string("file", self.report).map(|path| self.file_name("file", path));
        if input.take("file").is_none() {
            self.error(input.offset, "missing `file` in [input]", "a .jsonl, .csv or .txt, or a glob");
        }
        let custom_id = input.string("custom_id", self.report);
        let own = content_key(kind);
        let mut content = None;
        for key in ["prompt", "input", "messages"] {
            let Some(value) = input.take(key) else { continue };
            if own == Some(key) {
                content = Some(value);
            } else {
                let hint = own.map_or_else(
                    || "the lines of the file are whole requests".to_owned(),
                    |own| format!("kind `{kind}` takes `{own}`"),
                );
                let at = input.key_offset(key);
                self.error(at, format!("`{key}` does not fit kind `{kind}`"), &hint);
            }
        }
        let offset = input.offset;
        input.finish(self.report);
        let Some(key) = own else {
            if let Some(custom_id) = custom_id {
                let hint = "the lines of the file have their own";
                self.error(custom_id.offset, format!("`custom_id` does not fit kind `{kind}`"), hint);
            }
            return Some(Work::Lines { path: path?? });
        };
        let custom_id = match custom_id {
            Some(text) => Some(self.template("custom_id", &text.value, text.offset)?),
            None => None,
        };
        let pieces = match content {
            Some(value) => Some(self.pieces(key, value)?),
            None => None,
        };
        let path = path??;
        let rows_are_texts = DataForm::of(&path.value) == Some(DataForm::Txt);
        if pieces.is_none() && (key == "messages" || !rows_are_texts) {
            let hint = if key == "messages" {
                "write `messages = [{ role = \"user\", content = \"{{ text }}\" }]`".to_owned()
            } else {
                format!("write `{key} = \"{{{{ text }}}}\"` with the name of a field")
            };
            self.error(offset, format!("missing `{key}` in [input]"), &hint);
            return None;
        }
        Some(Work::Rows { path, custom_id, content: Content { key, pieces } })
    }

    fn template(&mut self, label: &'static str, text: &str, offset: usize) -> Option<TemplateId> {
        let added = self.templates.add(label, text);
        added.map_err(|invalid| self.invalid(invalid, offset)).ok()
    }

    /// The name of a file, which is a template if it has a `{{`. None: it was refused, and the report says why.
    pub(super) fn file_name(&mut self, key: &'static str, path: Placed<String>) -> Option<Placed<String>> {
        if !path.value.contains("{{") {
            return Some(path);
        }
        let name = self.templates.file_name(key, &path.value);
        let value = name.map_err(|invalid| self.invalid(invalid, path.offset)).ok()?;
        Some(Placed { value, ..path })
    }

    fn invalid(&mut self, invalid: Invalid, offset: usize) {
        let (line, column) = self.document.place(offset);
        let lines = u32::try_from(invalid.lines_before).unwrap_or(0);
        // A line end right after three quotes is no part of the text.
        let written = self.document.text.get(offset..).unwrap_or_default();
        let inside = written.strip_prefix("\"\"\"").or_else(|| written.strip_prefix("'''"));
        let skipped = inside.is_some_and(|inside| inside.starts_with(['\n', '\r']));
        let (line, column) = match lines + u32::from(skipped) {
            0 => (line, column),
            lines => (line.saturating_add(lines), 0),
        };
        let found = Diagnostic::error(self.document.file, line, column, invalid.message);
        self.report.push(found.hint(invalid.hint));
    }

    /// A value as JSON whose strings are templates.
    fn pieces(&mut self, key: &'static str, value: &Spanned<DeValue<'_>>) -> Option<Vec<Piece>> {
        let fits = match key {
            "messages" => value.get_ref().is_array(),
            _ => value.get_ref().is_str() || value.get_ref().is_array(),
        };
        if !fits {
            let expected = if key == "messages" { "an array of tables" } else { "a string" };
            let message = format!("`{key}` is {}, expected {expected}", type_of(value.get_ref()));
            self.error(value.span().start, message, "");
            return None;
        }
        // Strings are told apart from the JSON around them by a character that JSON never holds raw.
        let mut texts: Vec<(String, Range<usize>)> = Vec::new();
        let mut json = String::new();
        self.document.write_json(
            value,
            &mut json,
            &mut |text, span, json| {
                texts.push((text.to_owned(), span));
                json.push('\0');
            },
            self.report,
        )?;
        let mut pieces = Vec::new();
        let mut texts = texts.into_iter();
        for (number, between) in json.split('\0').enumerate() {
            if number > 0 {
                let (text, span) = texts.next()?;
                let id = self.template(key, &text, span.start)?;
                pieces.push(Piece::Template(id));
            }
            if !between.is_empty() {
                pieces.push(Piece::Json(between.to_owned()));
            }
        }
        Some(pieces)
    }

    fn requests(
        &mut self,
        requests: &'d Spanned<DeValue<'d>>,
        kind: Kind,
        top: &Section<'_, '_>,
    ) -> Option<Work> {
        let at = top.key_offset("requests");
        if kind == Kind::Requests {
            let hint = "for requests written out here, say which kind they are: `kind = \"chat\"`";
            self.error(at, "kind `requests` takes a file of batch lines", hint);
            return None;
        }
        let array =
            requests.get_ref().as_array().filter(|array| array.iter().all(|item| item.get_ref().is_table()));
        let Some(array) = array else {
            self.error(at, "`requests` is no array of tables", "write each request as `[[requests]]`");
            return None;
        };
        if array.is_empty() {
            self.error(at, "`requests` is empty", "");
        }
        Some(Work::Inline(self.inline(array)))
    }

    fn inline(&mut self, array: &'d DeArray<'d>) -> Vec<Inline> {
        if let Some(at) = array.iter().find_map(|item| place_of(item, &names_now)) {
            let message =
                "`{{ now }}` in `[[requests]]` is sent as it stands: what is written out is no template";
            let found = Diagnostic { severity: Severity::Warning, ..self.document.error(at, message) };
            self.report
                .push(found.hint("templates are those of `[input]`, whose rows may be a file of one line"));
        }
        let mut inline = Vec::new();
        for item in array {
            let Some(table) = item.get_ref().as_table() else { continue };
            let mut section = Section::new(self.document, "[[requests]]", table, item.span().start);
            let custom_id = section.string("custom_id", self.report).map(|id| id.value);
            let mut members = self.members(&section);
            members.retain(|(key, _)| key != "custom_id");
            let line = self.document.line(item.span().start);
            inline.push(Inline { line, custom_id, members });
        }
        inline
    }
}

/// Where the first text begins that `is_sought`.
fn place_of(value: &Spanned<DeValue<'_>>, is_sought: &dyn Fn(&str) -> bool) -> Option<usize> {
    match value.get_ref() {
        DeValue::String(text) => is_sought(text).then(|| value.span().start),
        DeValue::Array(array) => array.iter().find_map(|item| place_of(item, is_sought)),
        DeValue::Table(table) => table.iter().find_map(|(_, item)| place_of(item, is_sought)),
        DeValue::Boolean(_) | DeValue::Integer(_) | DeValue::Float(_) | DeValue::Datetime(_) => None,
    }
}

/// The member of a body that rows are made into.
pub(super) const fn content_key(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Completions | Kind::Images => Some("prompt"),
        Kind::Chat => Some("messages"),
        Kind::Embeddings | Kind::Responses | Kind::Moderations => Some("input"),
        Kind::Requests | Kind::FineTune => None,
    }
}
