//! What a TOML spec may say: every key, its type and its range, and which keys fit together.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use crate::diag::{Diagnostic, Report};
use crate::domain::{JobName, JobSettings, Kind, OnUncertain, Order};
use crate::spec::document::{Document, Placed, Section, meant, quoted, type_of};
use crate::spec::problem::shown;
use crate::spec::template::{TemplateId, Templates};
use crate::spec::{ProviderFacts, Settings, cron};

/// A spec as its text says it.
#[derive(Debug)]
pub(super) struct Spec<'s> {
    pub(super) kind: Kind,
    pub(super) name: Option<JobName>,
    pub(super) provider: &'s ProviderFacts,
    pub(super) strict: bool,
    pub(super) settings: JobSettings,
    pub(super) model: Option<String>,
    /// Names with their JSON text, in the order of the file.
    pub(super) parameters: Vec<(String, String)>,
    pub(super) work: Work,
    pub(super) templates: Templates,
}

/// Where a job's requests come from.
#[derive(Debug)]
pub(super) enum Work {
    /// Rows of data, and what is made of each.
    Rows { path: Placed<String>, custom_id: Option<TemplateId>, content: Content },
    /// A file of batch lines.
    Lines { path: Placed<String> },
    /// Requests written out in the spec.
    Inline(Vec<Inline>),
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

/// Reads a spec. None: it was refused, and the report says why.
pub(super) fn read<'s>(
    document: Document<'_>,
    settings: &'s Settings,
    report: &mut Report,
) -> Option<Spec<'s>> {
    let (table, errors) = DeTable::parse_recoverable(document.text);
    for error in &errors {
        let offset = error.span().map_or(0, |span| span.start);
        report.push(document.error(offset, format!("invalid TOML: {}", error.message().replace('\n', ", "))));
    }
    if !errors.is_empty() {
        return None;
    }
    let reader = Reader { document, report, templates: Templates::new() };
    reader.spec(table.get_ref(), settings)
}

struct Reader<'d, 'r> {
    document: Document<'d>,
    report: &'r mut Report,
    templates: Templates,
}

impl<'d> Reader<'d, '_> {
    fn spec<'s>(mut self, table: &'d DeTable<'d>, settings: &'s Settings) -> Option<Spec<'s>> {
        let mut top = Section::new(self.document, "", table, 0);
        let kind = self.kind(&mut top);
        let name = top.string("name", self.report).and_then(|name| self.name(&name));
        let provider = self.provider(&mut top, settings);
        let model = top.string("model", self.report);
        let strict = top.boolean("strict", self.report).unwrap_or(false);
        let settings = self.settings(&mut top);
        let mut parameters = self.parameters(&mut top);
        let work = self.work(&mut top, kind);
        self.schedule(&mut top);
        self.fine_tune(&mut top, kind);
        top.finish(self.report);
        if let Some(model) = &model {
            self.model(model);
            if parameters.iter().any(|(name, _)| name == "model") {
                let found = self.document.error(model.offset, "`model` stands here and in `[parameters]`");
                self.report.push(found.hint("leave this one"));
            }
        }
        let named = parameters.iter().position(|(name, _)| name == "model").map(|at| parameters.remove(at).1);
        let model = model.map(|model| quoted(&model.value)).or(named);
        self.model_is_there(kind?, model.is_some(), work.as_ref());
        Some(Spec {
            kind: kind?,
            name,
            strict: strict || provider?.strict,
            provider: provider?,
            settings,
            model,
            parameters,
            work: work?,
            templates: self.templates,
        })
    }

    fn error(&mut self, offset: usize, message: impl Into<String>, hint: &str) {
        let found = self.document.error(offset, message);
        self.report.push(if hint.is_empty() { found } else { found.hint(hint) });
    }

    fn kind(&mut self, top: &mut Section<'_, '_>) -> Option<Kind> {
        let words = Kind::ALL.map(|kind| (kind.as_str(), kind));
        if top.take("kind").is_none() {
            let all: Vec<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
            let found = Diagnostic::error(self.document.file, 0, 0, "missing `kind`");
            self.report.push(found.hint(format!("one of {}", all.join(", "))));
            return None;
        }
        top.word("kind", &words, self.report)
    }

    fn name(&mut self, name: &Placed<String>) -> Option<JobName> {
        match name.value.parse() {
            Ok(name) => Some(name),
            Err(error) => {
                self.error(name.offset, format!("`name` is {}: {error}", shown(&name.value)), "");
                None
            }
        }
    }

    fn provider<'s>(
        &mut self,
        top: &mut Section<'_, '_>,
        settings: &'s Settings,
    ) -> Option<&'s ProviderFacts> {
        let Some(named) = top.string("provider", self.report) else {
            let first = settings.providers.first();
            if first.is_none() {
                self.report.push(Diagnostic::error(self.document.file, 0, 0, "no provider is configured"));
            }
            return first;
        };
        let found = settings.providers.iter().find(|provider| provider.name == named.value);
        if found.is_none() {
            let names = settings.providers.iter().map(|provider| provider.name.as_str());
            let near = crate::diag::nearest(named.value.get(..64).unwrap_or(&named.value), names.clone());
            let hint = near.map_or_else(
                || {
                    format!(
                        "the config has {}",
                        names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
                    )
                },
                |near| format!("did you mean `{near}`?"),
            );
            self.error(named.offset, format!("unknown provider {}", shown(&named.value)), &hint);
        }
        found
    }

    fn settings(&mut self, top: &mut Section<'_, '_>) -> JobSettings {
        let mut settings = JobSettings::default();
        if let Some(priority) = top.integer("priority", 0..=9, "an integer from 0 to 9", self.report) {
            settings.priority = u8::try_from(priority).unwrap_or(settings.priority);
        }
        settings.deadline = top.duration("deadline", self.report);
        if settings.deadline.is_some_and(|deadline| deadline.is_zero()) {
            self.error(top.key_offset("deadline"), "`deadline` is zero", "leave it out for none");
        }
        let words = [("retry", OnUncertain::Retry), ("hold", OnUncertain::Hold), ("fail", OnUncertain::Fail)];
        settings.on_uncertain = top.word("on_uncertain", &words, self.report);
        if let Some(mut output) = top.section("output", "[output]", self.report) {
            let words = [("input", Order::Input), ("completion", Order::Completion)];
            settings.order = output.word("order", &words, self.report).unwrap_or_default();
            output.finish(self.report);
        }
        if let Some(mut retry) = top.section("retry", "[retry]", self.report) {
            let attempts = retry.integer("max_attempts", 1..=100, "an integer from 1 to 100", self.report);
            settings.retry.max_attempts = attempts;
            settings.retry.base_delay = retry.duration("base_delay", self.report);
            settings.retry.max_delay = retry.duration("max_delay", self.report);
            if let (Some(base), Some(max)) = (settings.retry.base_delay, settings.retry.max_delay)
                && base > max
            {
                self.error(retry.key_offset("base_delay"), "`base_delay` is longer than `max_delay`", "");
            }
            retry.finish(self.report);
        }
        settings
    }

    fn parameters(&mut self, top: &mut Section<'_, '_>) -> Vec<(String, String)> {
        let Some(section) = top.section("parameters", "[parameters]", self.report) else { return Vec::new() };
        self.members(&section)
    }

    fn members(&mut self, section: &Section<'_, '_>) -> Vec<(String, String)> {
        let mut members = Vec::new();
        for (key, value) in section.members() {
            if let Some(json) = self.document.json(value, self.report) {
                members.push((key.to_owned(), json));
            }
        }
        members
    }

    fn model(&mut self, model: &Placed<String>) {
        if model.value.trim().is_empty() {
            self.error(model.offset, "`model` is empty", "");
        } else if model.value.starts_with("job:") {
            let message = "a `model` made by another job is not supported by this version yet";
            self.error(model.offset, message, "write the name of the model itself");
        }
    }

    fn model_is_there(&mut self, kind: Kind, has_model: bool, work: Option<&Work>) {
        let needed = kind.endpoint().is_some_and(|endpoint| !endpoint.model_is_optional());
        let rows = matches!(work, Some(Work::Rows { .. }));
        if needed && rows && !has_model {
            let message = format!("missing `model`, which kind `{kind}` needs");
            self.report
                .push(Diagnostic::error(self.document.file, 0, 0, message).hint("write `model = \"…\"`"));
        }
    }

    fn work(&mut self, top: &mut Section<'d, 'd>, kind: Option<Kind>) -> Option<Work> {
        let input = top.section("input", "[input]", self.report);
        let requests = top.take("requests");
        let kind = kind?;
        if kind == Kind::FineTune {
            for key in ["input", "requests"] {
                if top.take(key).is_some() {
                    self.error(top.key_offset(key), format!("kind `fine_tune` takes no `{key}`"), "");
                }
            }
            return None;
        }
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
        let path = input.string("file", self.report);
        if input.take("file").is_none() {
            self.error(input.offset, "missing `file` in [input]", "a .jsonl, .csv or .txt, or a glob");
        }
        let custom_id = input.string("custom_id", self.report);
        let texts = ["prompt", "input", "messages"].map(|key| (key, input.take(key)));
        let offset_of = |key| input.key_offset(key);
        let offsets = ["custom_id", "prompt", "input", "messages"].map(|key| (key, offset_of(key)));
        let own = content_key(kind);
        for (key, value) in &texts {
            if value.is_some() && own != Some(*key) {
                let at = offsets.iter().find(|(name, _)| name == key).map_or(0, |(_, at)| *at);
                let hint = own.map_or_else(
                    || "the lines of the file are whole requests".to_owned(),
                    |own| format!("kind `{kind}` takes `{own}`"),
                );
                self.error(at, format!("`{key}` does not fit kind `{kind}`"), &hint);
            }
        }
        input.finish(self.report);
        let Some(key) = own else {
            if let Some(custom_id) = custom_id {
                let hint = "the lines of the file have their own";
                self.error(custom_id.offset, format!("`custom_id` does not fit kind `{kind}`"), hint);
            }
            return Some(Work::Lines { path: path? });
        };
        let custom_id = match custom_id {
            Some(text) => Some(self.template("custom_id", &text.value, text.offset)?),
            None => None,
        };
        let value = texts.iter().find(|(name, _)| *name == key).and_then(|(_, value)| *value);
        let pieces = match value {
            Some(value) => Some(self.pieces(key, value)?),
            None => None,
        };
        let path = path?;
        if pieces.is_none() && (key == "messages" || !path.value.to_ascii_lowercase().ends_with(".txt")) {
            let hint = if key == "messages" {
                "write `messages = [{ role = \"user\", content = \"{{ text }}\" }]`".to_owned()
            } else {
                format!("write `{key} = \"{{{{ text }}}}\"` with the name of a field")
            };
            self.error(input_offset(&offsets, key), format!("missing `{key}` in [input]"), &hint);
            return None;
        }
        Some(Work::Rows { path, custom_id, content: Content { key, pieces } })
    }

    fn template(&mut self, label: &'static str, text: &str, offset: usize) -> Option<TemplateId> {
        match self.templates.add(label, text) {
            Ok(id) => Some(id),
            Err(invalid) => {
                let (line, column) = self.document.place(offset);
                let lines = u32::try_from(invalid.lines_before).unwrap_or(0);
                // A line end right after three quotes is no part of the text.
                let skipped =
                    self.document.text.get(offset + 3..).is_some_and(|rest| rest.starts_with(['\n', '\r']));
                let (line, column) = match lines {
                    0 => (line, column),
                    _ => (line + lines + u32::from(skipped), 0),
                };
                let found = Diagnostic::error(self.document.file, line, column, invalid.message);
                self.report.push(found.hint("a field is inserted as `{{ name }}`"));
                None
            }
        }
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
        let mut inline = Vec::new();
        for item in array {
            let Some(table) = item.get_ref().as_table() else { continue };
            let mut section = Section::new(self.document, "[[requests]]", table, item.span().start);
            let custom_id = section.string("custom_id", self.report).map(|id| id.value);
            let mut members = self.members(&section);
            members.retain(|(key, _)| key != "custom_id");
            let (line, _) = self.document.place(item.span().start);
            inline.push(Inline { line, custom_id, members });
        }
        inline
    }

    fn schedule(&mut self, top: &mut Section<'_, '_>) {
        let Some(mut schedule) = top.section("schedule", "[schedule]", self.report) else { return };
        match schedule.string("cron", self.report) {
            Some(text) => {
                if let Err(why) = cron::check(&text.value) {
                    let message = format!("bad cron expression {}: {why}", shown(&text.value));
                    self.error(text.offset, message, "minute hour day month weekday, like `0 2 * * 1-5`");
                }
            }
            None if schedule.take("cron").is_none() => {
                self.error(schedule.offset, "missing `cron` in [schedule]", "");
            }
            None => {}
        }
        if let Some(zone) = schedule.string("timezone", self.report)
            && zone.value.parse::<chrono_tz::Tz>().is_err()
        {
            let names = chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name());
            let hint = if zone.value.len() <= 64 {
                meant(&zone.value, names, &["names like `Europe/Berlin` and `UTC`".to_owned()])
            } else {
                String::new()
            };
            self.error(zone.offset, format!("unknown time zone {}", shown(&zone.value)), &hint);
        }
        schedule.string("catch_up", self.report);
        let at = top.key_offset("schedule");
        schedule.finish(self.report);
        self.error(
            at,
            "`[schedule]` is not supported by this version yet",
            "drop the spec without it to run it once",
        );
    }

    fn fine_tune(&mut self, top: &mut Section<'_, '_>, kind: Option<Kind>) {
        let section = top.section("fine_tune", "[fine_tune]", self.report);
        if kind == Some(Kind::FineTune) {
            let at = top.key_offset("kind");
            match section {
                None => self.error(
                    at,
                    "missing `[fine_tune]`",
                    "it holds `training_file` and the API's parameters",
                ),
                Some(mut section) => {
                    section.string("training_file", self.report);
                    if section.take("training_file").is_none() {
                        self.error(section.offset, "missing `training_file` in [fine_tune]", "");
                    }
                }
            }
            self.error(at, "kind `fine_tune` is not supported by this version yet", "");
        } else if section.is_some() {
            let at = top.key_offset("fine_tune");
            self.error(at, "`[fine_tune]` fits kind `fine_tune` alone", "");
        }
    }
}

fn input_offset(offsets: &[(&str, usize)], key: &str) -> usize {
    offsets.iter().find(|(name, _)| *name == key).map_or(0, |(_, offset)| *offset)
}

/// The member of a body that rows are made into.
const fn content_key(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Completions | Kind::Images => Some("prompt"),
        Kind::Chat => Some("messages"),
        Kind::Embeddings | Kind::Responses | Kind::Moderations => Some("input"),
        Kind::Requests | Kind::FineTune => None,
    }
}
