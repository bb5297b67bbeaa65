//! Templates: a row's fields go into texts as they are.
//!
//! An unknown variable is an error, never an empty text: a prompt with a hole in it costs as much as a whole
//! one. What a template may do is bounded, as specs come from whoever may write into the jobs folder.

use std::collections::BTreeSet;
use std::{fmt, io};

use chrono::DateTime;
use chrono_tz::Tz;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value, context};

use crate::diag;
use crate::reading::problem::shown;
use crate::spec::now::{self, BadFormat, Now};

/// Instructions that one rendering may use up; a plain insertion takes three.
const FUEL: u64 = 1_000_000;

/// Enough to try a template without a row.
const TRIAL_FUEL: u64 = 10_000;

/// The kernel takes no longer path.
const FILE_NAME_BYTES_MAX: u64 = 4096;

const FIELD_HINT: &str = "a field is inserted as `{{ name }}`";
const FORMAT_HINT: &str = "formats are those of strftime, as in `{{ now | date('%Y-%m-%d') }}`";
const FILE_NAME_HINT: &str = "as in `{{ now | date('%Y-%m-%d') }}`; two braces themselves are `{{ \"{{\" }}`";

/// The templates of one spec.
pub(super) struct Templates {
    environment: Environment<'static>,
    /// Takes what a row would have for empty.
    trial: Environment<'static>,
    /// What each belongs to, for messages.
    labels: Vec<&'static str>,
    /// The fields that they name.
    variables: BTreeSet<String>,
    /// Longest text that one may make, in bytes.
    max: u64,
}

impl fmt::Debug for Templates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Templates").field("labels", &self.labels).finish_non_exhaustive()
    }
}

/// A template's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TemplateId(usize);

/// Why a text is no template.
#[derive(Debug)]
pub(super) struct Invalid {
    pub(super) message: String,
    pub(super) hint: &'static str,
    /// Lines of the text before the one that is wrong.
    pub(super) lines_before: usize,
}

/// Why a template gave no text for a row.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) message: String,
    pub(super) hint: Option<String>,
    /// It would fail for every row.
    pub(super) always: bool,
}

impl Templates {
    pub(super) fn new(max: u64) -> Self {
        let mut environment = plain();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        let mut trial = plain();
        trial.set_undefined_behavior(UndefinedBehavior::Chainable);
        trial.set_fuel(Some(TRIAL_FUEL));
        Self { environment, trial, labels: Vec::new(), variables: BTreeSet::new(), max }
    }

    /// From now on templates know `now`.
    pub(super) fn set_now(&mut self, now: DateTime<Tz>) {
        let now = Value::from_object(Now(now));
        self.trial.add_global("now", now.clone());
        self.environment.add_global("now", now);
    }

    /// Takes a template that belongs to `label`, a key of the spec.
    pub(super) fn add(&mut self, label: &'static str, source: &str) -> Result<TemplateId, Invalid> {
        let id = TemplateId(self.labels.len());
        self.environment
            .add_template_owned(id.0.to_string(), source.to_owned())
            .map_err(|error| invalid(label, source, &error))?;
        self.labels.push(label);
        if let Ok(template) = self.environment.get_template(&id.0.to_string()) {
            self.variables.extend(template.undeclared_variables(false));
        }
        // Data may come at night, when nobody is there to read what is wrong with the template.
        match self.try_out(source) {
            Err(error) if fails_always(&error) => Err(invalid(label, source, &error)),
            Ok(()) | Err(_) => Ok(id),
        }
    }

    /// Renders a template without a row.
    fn try_out(&self, source: &str) -> Result<(), minijinja::Error> {
        let mut text = Capped { bytes: Vec::new(), left: self.max };
        self.trial.template_from_str(source)?.render_captured_to(context! {}, &mut text)?;
        Ok(())
    }

    /// The name of a file that belongs to `label`: a template without a row.
    pub(super) fn file_name(&self, label: &str, source: &str) -> Result<String, Invalid> {
        let invalid = |error: &minijinja::Error| {
            let hint = if is_bad_format(error) { FORMAT_HINT } else { FILE_NAME_HINT };
            Invalid { hint, ..invalid(label, source, error) }
        };
        let template = self.environment.template_from_str(source).map_err(|error| invalid(&error))?;
        let names: BTreeSet<String> = template.undeclared_variables(false).into_iter().collect();
        if let Some(unknown) = names.iter().find(|name| !self.is_global(name)) {
            let message = format!("unknown variable {} in `{label}`: there is only `now`", shown(unknown));
            return Err(Invalid { message, hint: FILE_NAME_HINT, lines_before: 0 });
        }
        let mut text = Capped { bytes: Vec::new(), left: FILE_NAME_BYTES_MAX };
        template.render_captured_to(context! {}, &mut text).map_err(|error| invalid(&error))?;
        Ok(String::from_utf8_lossy(&text.bytes).into_owned())
    }

    fn is_global(&self, name: &str) -> bool {
        self.environment.globals().any(|(global, _)| global == name)
    }

    /// The names of fields that any template uses.
    pub(super) fn variables(&self) -> Vec<String> {
        self.variables.iter().cloned().collect()
    }

    /// The template's text for a row. `keys` gives the names of all the row's fields, for a hint.
    pub(super) fn render(
        &self,
        id: TemplateId,
        row: &Value,
        keys: &dyn Fn() -> Vec<String>,
    ) -> Result<String, Failed> {
        let label = self.labels.get(id.0).copied().unwrap_or_default();
        let template = self.environment.get_template(&id.0.to_string());
        let mut text = Capped { bytes: Vec::new(), left: self.max };
        let rendered = template.and_then(|template| template.render_captured_to(row, &mut text).map(drop));
        let rendered = rendered.and_then(|()| {
            String::from_utf8(text.bytes)
                .map_err(|_| minijinja::Error::new(ErrorKind::WriteFailure, "the text is not UTF-8"))
        });
        rendered.map_err(|error| {
            let kind = error.kind();
            if kind == ErrorKind::UndefinedError {
                return self.undefined(id, label, row, keys);
            }
            let always = fails_always(&error);
            let detail = if kind == ErrorKind::WriteFailure {
                format!("it makes more than {} bytes", self.max)
            } else if kind == ErrorKind::OutOfFuel {
                "it runs for too long".to_owned()
            } else {
                error.detail().map_or_else(|| kind.to_string(), str::to_owned)
            };
            Failed { message: format!("the template in `{label}` failed: {detail}"), hint: None, always }
        })
    }

    /// Which variable it was.
    fn undefined(&self, id: TemplateId, label: &str, row: &Value, keys: &dyn Fn() -> Vec<String>) -> Failed {
        let names = self.environment.get_template(&id.0.to_string());
        let names: BTreeSet<String> = names
            .map(|template| template.undeclared_variables(true).into_iter().collect())
            .unwrap_or_default();
        let missing = names.iter().filter(|name| !self.is_global(name)).find(|name| {
            let mut value = row.clone();
            !name.split('.').all(|step| {
                value = value.get_attr(step).unwrap_or_default();
                !value.is_undefined()
            })
        });
        let Some(missing) = missing else {
            let message = format!("the template in `{label}` uses a value that the row does not have");
            return Failed { message, hint: None, always: false };
        };
        let keys = keys();
        let near = if missing.len() <= 64 {
            diag::nearest(missing, keys.iter().map(String::as_str).filter(|key| key.len() <= 64))
        } else {
            None
        };
        let hint = near.map_or_else(
            || {
                let some: Vec<String> = keys.iter().take(20).map(|key| shown(key)).collect();
                format!("the row has {}", some.join(", "))
            },
            |near| format!("did you mean `{near}`?"),
        );
        let message = format!("unknown variable {} in `{label}`", shown(missing));
        Failed { message, hint: Some(hint), always: false }
    }
}

/// What templates of every kind have.
fn plain() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_keep_trailing_newline(true);
    now::add_filter(&mut environment);
    environment.set_formatter(|out, _, value| {
        // As the row has them, rather than as Python would print them.
        let as_json =
            matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Map | ValueKind::Seq);
        let written = if let Some(text) = value.as_str() {
            out.write_str(text)
        } else if as_json {
            let json = serde_json::to_string(value);
            out.write_str(
                &json
                    .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?,
            )
        } else {
            write!(out, "{value}")
        };
        written.map_err(minijinja::Error::from)
    });
    environment
}

fn invalid(label: &str, source: &str, error: &minijinja::Error) -> Invalid {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let open = source.matches("{{").count() > source.matches("}}").count();
    let unclosed = if open { "unclosed `{{`: " } else { "" };
    Invalid {
        message: format!("invalid template in `{label}`: {unclosed}{detail}"),
        hint: if is_bad_format(error) { FORMAT_HINT } else { FIELD_HINT },
        lines_before: error.line().unwrap_or(1).saturating_sub(1),
    }
}

/// Whether a template that fails so would fail for every row.
fn fails_always(error: &minijinja::Error) -> bool {
    let unknown = [ErrorKind::UnknownFilter, ErrorKind::UnknownTest, ErrorKind::UnknownFunction];
    unknown.contains(&error.kind()) || is_bad_format(error)
}

fn is_bad_format(error: &minijinja::Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<BadFormat>)
}

/// A text that fails to grow over its bound.
struct Capped {
    bytes: Vec<u8>,
    left: u64,
}

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or(io::ErrorKind::FileTooLarge)?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, row: &serde_json::Value) -> Result<String, Failed> {
        let mut templates = Templates::new(1000);
        let id = templates.add("prompt", source).unwrap();
        let keys = || row.as_object().unwrap().keys().cloned().collect();
        templates.render(id, &Value::from_serialize(row), &keys)
    }

    #[test]
    fn fields_go_in_as_they_are() {
        let row = serde_json::json!({
            "t": "<b>\"é\"\n{{ x }}", "n": 7, "f": 0.5, "yes": true, "none": null, "o": {"a": [1, "x", null]}
        });
        for (source, expected) in [
            ("{{ t }}", "<b>\"é\"\n{{ x }}"),
            ("{{ n }} {{ f }} {{ yes }} {{ none }}", "7 0.5 true null"),
            ("{{ o }} {{ o.a[1] }}", r#"{"a":[1,"x",null]} x"#),
            ("a\n", "a\n"),
            ("{{ t | length }}{% if missing is defined %}!{% endif %}", "14"),
            ("no template", "no template"),
        ] {
            assert_eq!(render(source, &row).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn an_unknown_variable_is_named_with_what_may_be_meant() {
        let row = serde_json::json!({"title": "x", "meta": {"lang": "de"}});
        let failed = render("{{ titel }}", &row).unwrap_err();
        assert_eq!(failed.message, "unknown variable `titel` in `prompt`");
        assert_eq!(failed.hint.unwrap(), "did you mean `title`?");
        let failed = render("{{ title }} {{ meta.year }}", &row).unwrap_err();
        assert_eq!(failed.message, "unknown variable `meta.year` in `prompt`");
        let failed = render("{% for i in range(2) %}{{ zebra }}{% endfor %}", &row).unwrap_err();
        assert_eq!(failed.message, "unknown variable `zebra` in `prompt`");
        assert!(failed.hint.unwrap().starts_with("the row has `meta`, `title`"));
    }

    #[test]
    fn what_is_not_closed_is_no_template() {
        let invalid = Templates::new(1000).add("prompt", "one\ntwo {{ a").unwrap_err();
        assert!(invalid.message.contains("unclosed `{{`"), "{}", invalid.message);
        assert_eq!(invalid.lines_before, 1);
        assert!(Templates::new(1000).add("prompt", "{% if a %}").is_err());
    }

    #[test]
    fn a_template_can_neither_run_for_ever_nor_read_files() {
        let row = serde_json::json!({"a": 1});
        let endless = "{% for i in range(10000) %}{% for j in range(10000) %}{{ a }}{% endfor %}{% endfor %}";
        assert!(
            render(&endless.replace("{{ a }}", ""), &row).unwrap_err().message.contains("runs for too long")
        );
        assert!(render(endless, &row).unwrap_err().message.contains("makes more than 1000 bytes"));
        assert!(Templates::new(1000).add("prompt", "{% include '/etc/passwd' %}").is_err());
        assert!(render("{% if a %}{{ a | nothing }}{% endif %}", &row).unwrap_err().always);
    }
}
