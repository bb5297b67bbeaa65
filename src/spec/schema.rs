//! What a TOML spec may say: every key, its type and its range, and which keys fit together.

use std::time::Duration;

use chrono_tz::Tz;
use toml::de::DeTable;

use crate::diag::{self, Diagnostic, Report};
use crate::domain::{Endpoint, JobName, JobSettings, Kind, OnUncertain, Order, RetryPolicy, Timestamp};
use crate::reading::problem::shown;
use crate::schedule::{self, Calendar, CatchUp, Overlap, Schedule};
use crate::spec::document::{Document, Placed, Section, meant, quoted};
use crate::spec::params;
use crate::spec::template::Templates;
use crate::spec::work::Work;
use crate::spec::{ProviderFacts, Settings, tuning_table};

/// A run that begins more than a day after its time is no run of that time.
const JITTER_MAX: Duration = Duration::from_hours(24);

/// A spec as its text says it.
#[derive(Debug)]
pub(super) struct Spec<'s> {
    pub(super) kind: Kind,
    pub(super) name: Option<JobName>,
    pub(super) provider: &'s ProviderFacts,
    pub(super) strict: bool,
    pub(super) settings: JobSettings,
    pub(super) schedule: Option<Schedule>,
    /// As JSON.
    pub(super) model: Option<String>,
    /// The byte where the model at the top stands.
    pub(super) model_at: Option<usize>,
    /// Names with their JSON text, in the order of the file.
    pub(super) parameters: Vec<(String, String)>,
    pub(super) work: Work,
    pub(super) templates: Templates,
}

/// Reads a spec. None: it was refused, and the report says why.
pub(super) fn read<'s>(
    document: &Document<'_>,
    settings: &'s Settings,
    now: Timestamp,
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
    let reader = Reader { document, report, templates: Templates::new(settings.max_line) };
    reader.spec(table.get_ref(), settings, now)
}

/// Reads the parts of a spec and reports what is wrong with each.
pub(super) struct Reader<'d, 'r> {
    pub(super) document: &'d Document<'d>,
    pub(super) report: &'r mut Report,
    pub(super) templates: Templates,
}

impl<'d> Reader<'d, '_> {
    fn spec<'s>(
        mut self,
        table: &'d DeTable<'d>,
        settings: &'s Settings,
        now: Timestamp,
    ) -> Option<Spec<'s>> {
        let mut top = Section::new(self.document, "", table, 0);
        let kind = self.kind(&mut top);
        let name = top.string("name", self.report).and_then(|name| self.name(&name));
        let provider = self.provider(&mut top, settings);
        let model = top.string("model", self.report);
        let strict = top.boolean("strict", self.report).unwrap_or(false);
        let schedule = self.schedule(&mut top, settings.zone);
        let zone = schedule.as_ref().map_or(settings.zone, |schedule| schedule.calendar.zone());
        if let Some(now) = schedule::local(now, zone) {
            self.templates.set_now(now);
        }
        let mut settings = self.settings(&mut top);
        settings.stream = self.stream(&mut top, kind);
        let mut parameters = self.parameters(&mut top);
        let work = self.work(&mut top, kind, model.as_ref());
        top.finish_with(self.report, |key| {
            if kind == Some(Kind::FineTune) && tuning_table::takes(key) {
                return Some(format!("put `{key}` under `[fine_tune]`"));
            }
            let endpoint = kind.and_then(Kind::endpoint)?;
            let hint = || format!("`{key}` is a parameter of the request: put it under `[parameters]`");
            params::takes(endpoint, key).then(hint)
        });
        if let Some(model) = &model {
            self.model(model);
            if parameters.iter().any(|(name, _)| name == "model") {
                let found = self.document.error(model.offset, "`model` stands here and in `[parameters]`");
                self.report.push(found.hint("leave this one"));
            }
        }
        let model_at = model.as_ref().map(|model| model.offset);
        let named = parameters.iter().position(|(name, _)| name == "model").map(|at| parameters.remove(at).1);
        let model = model.map(|model| quoted(&model.value)).or(named);
        // One of a wrong type has been reported as that.
        self.model_is_there(kind?, model.is_some() || table.contains_key("model"), work.as_ref());
        Some(Spec {
            kind: kind?,
            name,
            strict: strict || provider?.strict,
            provider: provider?,
            settings,
            schedule,
            model,
            model_at,
            parameters,
            work: work?,
            templates: self.templates,
        })
    }

    pub(super) fn error(&mut self, offset: usize, message: impl Into<String>, hint: &str) {
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
            let near =
                if named.value.len() <= 64 { diag::nearest(&named.value, names.clone()) } else { None };
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

    fn stream(&mut self, top: &mut Section<'_, '_>, kind: Option<Kind>) -> Option<bool> {
        let stream = top.boolean("stream", self.report)?;
        let endpoint = kind.and_then(Kind::endpoint);
        let can_stream = kind.is_none()
            || kind == Some(Kind::Requests)
            || matches!(endpoint, Some(Endpoint::ChatCompletions | Endpoint::Completions));
        if stream && !can_stream {
            self.error(
                top.key_offset("stream"),
                "`stream` is true, but only answers to `chat` and `completions` can come as streams",
                "remove `stream`",
            );
        }
        Some(stream)
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
            let attempts = RetryPolicy::ATTEMPTS;
            let expected = format!("an integer from {} to {}", attempts.start(), attempts.end());
            settings.retry.max_attempts = retry.integer("max_attempts", attempts, &expected, self.report);
            settings.retry.base_delay = retry.duration("base_delay", self.report);
            settings.retry.max_delay = retry.duration("max_delay", self.report);
            let delays = [
                ("base_delay", settings.retry.base_delay, RetryPolicy::BASE_DELAY),
                ("max_delay", settings.retry.max_delay, RetryPolicy::MAX_DELAY),
            ];
            for (key, delay, bounds) in delays {
                let Some(delay) = delay.filter(|delay| !bounds.contains(delay)) else { continue };
                let [delay, least, most] =
                    [delay, *bounds.start(), *bounds.end()].map(humantime::format_duration);
                let message = format!("`{key}` is `{delay}`, expected `{least}` to `{most}`");
                self.error(retry.key_offset(key), message, "");
            }
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

    pub(super) fn members(&mut self, section: &Section<'_, '_>) -> Vec<(String, String)> {
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

    /// None also of one that is wrong: it has been reported.
    fn schedule(&mut self, top: &mut Section<'_, '_>, machine: Tz) -> Option<Schedule> {
        let mut section = top.section("schedule", "[schedule]", self.report)?;
        let zone = self.zone(&mut section, machine);
        let calendar = self.calendar(&mut section, zone);
        let words = [CatchUp::Skip, CatchUp::Once].map(|word| (word.as_str(), word));
        let catch_up = section.word("catch_up", &words, self.report).unwrap_or_default();
        let words = [Overlap::Skip, Overlap::Queue].map(|word| (word.as_str(), word));
        let overlap = section.word("overlap", &words, self.report).unwrap_or_default();
        let jitter = section.duration("jitter", self.report).unwrap_or_default();
        if jitter > JITTER_MAX {
            let [jitter, most] = [jitter, JITTER_MAX].map(humantime::format_duration);
            let message = format!("`jitter` is `{jitter}`, expected `0s` to `{most}`");
            self.error(section.key_offset("jitter"), message, "");
        }
        section.finish(self.report);
        Some(Schedule { calendar: calendar?, catch_up, overlap, jitter })
    }

    fn calendar(&mut self, section: &mut Section<'_, '_>, zone: Tz) -> Option<Calendar> {
        let Some(text) = section.string("cron", self.report) else {
            if section.take("cron").is_none() {
                self.error(section.offset, "missing `cron` in [schedule]", "");
            }
            return None;
        };
        let refused = |why| format!("bad cron expression {}: {why}", shown(&text.value));
        match Calendar::parse(&text.value, zone) {
            Ok(calendar) => Some(calendar),
            Err(why) => {
                self.error(text.offset, refused(why), "minute hour day month weekday, like `0 2 * * 1-5`");
                None
            }
        }
    }

    fn zone(&mut self, section: &mut Section<'_, '_>, machine: Tz) -> Tz {
        let Some(zone) = section.string("timezone", self.report) else { return machine };
        if let Ok(zone) = zone.value.parse() {
            return zone;
        }
        let names = chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name());
        let hint = if zone.value.len() <= 64 {
            meant(&zone.value, names, &["names like `Europe/Berlin` and `UTC`".to_owned()])
        } else {
            String::new()
        };
        self.error(zone.offset, format!("unknown time zone {}", shown(&zone.value)), &hint);
        machine
    }
}
