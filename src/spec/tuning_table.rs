//! What `[fine_tune]` may say: the parameters of both interfaces with their ranges, and where each goes in the body of
//! the create call.

use serde_json::Value;
use toml::Spanned;
use toml::de::DeValue;

use crate::diag::Report;
use crate::domain::TuningApi;
use crate::spec::document::{Document, type_of};

/// A pair of it is batchd's own: the fine-tune is found again by it.
pub(super) const OWN_METADATA: &str = "batchd_job";
/// The API takes sixteen.
const METADATA_PAIRS_MAX: usize = 15;
const METADATA_KEY_CHARS_MAX: usize = 64;
const METADATA_VALUE_CHARS_MAX: usize = 512;
const INTEGRATIONS_MAX: usize = 5;

/// How a model is trained by `/fine_tuning/jobs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Method {
    #[default]
    Supervised,
    Dpo,
    Reinforcement,
}

impl Method {
    pub(super) const WORDS: [(&'static str, Self); 3] =
        [("supervised", Self::Supervised), ("dpo", Self::Dpo), ("reinforcement", Self::Reinforcement)];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Supervised => "supervised",
            Self::Dpo => "dpo",
            Self::Reinforcement => "reinforcement",
        }
    }
}

/// Where a parameter stands in the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At its top.
    Body,
    /// `method.<type>`; of this method alone.
    Method(Method),
    /// `method.<type>.hyperparameters`; none = of every method.
    Hyperparameters(Option<Method>),
}

/// What a parameter's value may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Takes {
    /// So many characters.
    Text {
        most: usize,
    },
    Truth,
    Whole {
        least: i64,
        most: i64,
    },
    AutoOrWhole {
        least: i64,
        most: i64,
    },
    /// More than zero.
    Positive,
    AutoOrPositive,
    /// More than zero, and at most so much.
    AutoOrUpTo(f64),
    NotNegative,
    Positives,
    Word(&'static [&'static str]),
    Table,
    Integrations,
    Metadata,
}

/// A parameter of one of the interfaces.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    pub(super) place: Place,
    pub(super) takes: Takes,
}

const fn parameter(name: &'static str, place: Place, takes: Takes) -> Parameter {
    Parameter { name, place, takes }
}

const ANY: i64 = i64::MAX;
const REINFORCEMENT: Option<Method> = Some(Method::Reinforcement);
const EFFORTS: &[&str] = &["default", "low", "medium", "high"];

/// Of `/v1/fine_tuning/jobs`; `model`, the files, `method` and `hyperparameters` aside.
const JOBS: &[Parameter] = &[
    parameter("suffix", Place::Body, Takes::Text { most: 64 }),
    parameter("seed", Place::Body, Takes::Whole { least: 0, most: 2_147_483_647 }),
    parameter("integrations", Place::Body, Takes::Integrations),
    parameter("metadata", Place::Body, Takes::Metadata),
    parameter("n_epochs", Place::Hyperparameters(None), Takes::AutoOrWhole { least: 1, most: 50 }),
    parameter("batch_size", Place::Hyperparameters(None), Takes::AutoOrWhole { least: 1, most: 256 }),
    parameter("learning_rate_multiplier", Place::Hyperparameters(None), Takes::AutoOrPositive),
    parameter("beta", Place::Hyperparameters(Some(Method::Dpo)), Takes::AutoOrUpTo(2.0)),
    parameter("reasoning_effort", Place::Hyperparameters(REINFORCEMENT), Takes::Word(EFFORTS)),
    parameter("compute_multiplier", Place::Hyperparameters(REINFORCEMENT), Takes::AutoOrPositive),
    parameter(
        "eval_interval",
        Place::Hyperparameters(REINFORCEMENT),
        Takes::AutoOrWhole { least: 1, most: ANY },
    ),
    parameter(
        "eval_samples",
        Place::Hyperparameters(REINFORCEMENT),
        Takes::AutoOrWhole { least: 1, most: ANY },
    ),
    parameter("grader", Place::Method(Method::Reinforcement), Takes::Table),
    parameter("response_format", Place::Method(Method::Reinforcement), Takes::Table),
];

/// Of `/v1/fine-tunes`; `model` and the files aside.
const LEGACY: &[Parameter] = &[
    parameter("n_epochs", Place::Body, Takes::Whole { least: 1, most: ANY }),
    parameter("batch_size", Place::Body, Takes::Whole { least: 1, most: 256 }),
    parameter("learning_rate_multiplier", Place::Body, Takes::Positive),
    parameter("prompt_loss_weight", Place::Body, Takes::NotNegative),
    parameter("compute_classification_metrics", Place::Body, Takes::Truth),
    parameter("classification_n_classes", Place::Body, Takes::Whole { least: 2, most: ANY }),
    parameter("classification_positive_class", Place::Body, Takes::Text { most: usize::MAX }),
    parameter("classification_betas", Place::Body, Takes::Positives),
    parameter("suffix", Place::Body, Takes::Text { most: 40 }),
];

/// Keys of `[fine_tune]` that no interface has, or that are looked at by themselves.
pub(super) const OWN: [&str; 4] = ["api", "training_file", "validation_file", "delete_uploads"];
/// See [`JOBS`].
pub(super) const TABLES: [&str; 2] = ["method", "hyperparameters"];

pub(super) const fn parameters(api: TuningApi) -> &'static [Parameter] {
    match api {
        TuningApi::Jobs => JOBS,
        TuningApi::Legacy => LEGACY,
    }
}

/// Whether `[fine_tune]` has such a key.
pub(super) fn takes(key: &str) -> bool {
    OWN.contains(&key)
        || TABLES.contains(&key)
        || TuningApi::ALL.into_iter().flat_map(parameters).any(|parameter| parameter.name == key)
}

/// What to do about a parameter that only the other interface has.
pub(super) fn hint_of_other(name: &str, api: TuningApi) -> String {
    match api {
        TuningApi::Jobs => "today's interface has nothing in its place: leave it out, or write \
                            `api = \"legacy\"` for a server that still has `/v1/fine-tunes`"
            .to_owned(),
        TuningApi::Legacy if TABLES.contains(&name) => {
            "write hyperparameters directly into `[fine_tune]`, or `api = \"jobs\"`".to_owned()
        }
        TuningApi::Legacy => "leave it out, or write `api = \"jobs\"`".to_owned(),
    }
}

impl Parameter {
    /// The value as JSON; none if it is not what the parameter takes, which was reported.
    pub(super) fn read(
        &self,
        value: &Spanned<DeValue<'_>>,
        document: &Document<'_>,
        report: &mut Report,
    ) -> Option<Value> {
        let json: Value = serde_json::from_str(&document.json(value, report)?).ok()?;
        let Some(wrong) = self.takes.wrong(&json) else { return Some(json) };
        let found = match &json {
            Value::Number(number) => number.to_string(),
            Value::String(text)
                if text.chars().count() <= 20 && !matches!(self.takes, Takes::Text { .. }) =>
            {
                format!("`{text}`")
            }
            Value::String(text) if matches!(self.takes, Takes::Text { .. }) => {
                format!("a text of {} characters", text.chars().count())
            }
            Value::Null | Value::Bool(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
                type_of(value.get_ref()).to_owned()
            }
        };
        let (at, message) = match wrong {
            Wrong::Value(expected) => {
                (value.span().start, format!("`{}` is {found}, expected {expected}", self.name))
            }
            Wrong::Within(message) => (value.span().start, format!("`{}`: {message}", self.name)),
        };
        report.push(document.error(at, message));
        None
    }
}

/// Why a value does not fit.
#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    /// What would have.
    Value(String),
    /// What is wrong with a part of it.
    Within(String),
}

impl Takes {
    fn wrong(self, json: &Value) -> Option<Wrong> {
        let number = json.as_f64();
        let is_auto = json.as_str() == Some("auto");
        let (fits, expected) = match self {
            Self::Text { most } => {
                let fits = |text: &str| !text.is_empty() && text.chars().count() <= most;
                let most = if most == usize::MAX { "or more".to_owned() } else { format!("to {most}") };
                (json.as_str().is_some_and(fits), format!("a text of 1 {most} characters"))
            }
            Self::Truth => (json.is_boolean(), "true or false".to_owned()),
            Self::Whole { least, most } => (is_whole(json, least, most), whole(least, most)),
            Self::AutoOrWhole { least, most } => {
                (is_auto || is_whole(json, least, most), format!("`\"auto\"` or {}", whole(least, most)))
            }
            Self::Positive => (number.is_some_and(|n| n > 0.0), "a number above 0".to_owned()),
            Self::AutoOrPositive => {
                (is_auto || number.is_some_and(|n| n > 0.0), "`\"auto\"` or a number above 0".to_owned())
            }
            Self::AutoOrUpTo(most) => {
                let fits = number.is_some_and(|n| n > 0.0 && n <= most);
                (is_auto || fits, format!("`\"auto\"` or a number above 0, at most {most}"))
            }
            Self::NotNegative => {
                (number.is_some_and(|n| n >= 0.0), "a number that is not negative".to_owned())
            }
            Self::Positives => {
                let all = |numbers: &Vec<Value>| {
                    !numbers.is_empty() && numbers.iter().all(|n| n.as_f64().is_some_and(|n| n > 0.0))
                };
                (json.as_array().is_some_and(all), "an array of numbers above 0".to_owned())
            }
            Self::Word(words) => {
                let all: Vec<String> = words.iter().map(|word| format!("`\"{word}\"`")).collect();
                let fits = json.as_str().is_some_and(|text| words.contains(&text));
                (fits, format!("one of {}", all.join(", ")))
            }
            Self::Table => (json.is_object(), "a table".to_owned()),
            Self::Integrations => return wrong_integrations(json),
            Self::Metadata => return wrong_metadata(json),
        };
        (!fits).then_some(Wrong::Value(expected))
    }
}

fn is_whole(json: &Value, least: i64, most: i64) -> bool {
    json.as_i64().is_some_and(|number| (least..=most).contains(&number))
}

fn whole(least: i64, most: i64) -> String {
    if most == ANY {
        format!("an integer from {least}")
    } else {
        format!("an integer from {least} to {most}")
    }
}

fn wrong_integrations(json: &Value) -> Option<Wrong> {
    let Some(integrations) = json.as_array().filter(|all| all.iter().all(Value::is_object)) else {
        return Some(Wrong::Value("an array of tables".to_owned()));
    };
    if integrations.len() > INTEGRATIONS_MAX {
        let message = format!("{} integrations, at most {INTEGRATIONS_MAX} are allowed", integrations.len());
        return Some(Wrong::Within(message));
    }
    integrations.iter().find_map(|integration| {
        let message = match integration.get("type").and_then(Value::as_str) {
            None => "an integration lacks its `type`",
            Some("wandb") if integration.pointer("/wandb/project").is_none_or(|name| !name.is_string()) => {
                "an integration of type `wandb` lacks the `project` in its `wandb`"
            }
            Some(_) => return None,
        };
        Some(Wrong::Within(message.to_owned()))
    })
}

fn wrong_metadata(json: &Value) -> Option<Wrong> {
    let Some(pairs) = json.as_object() else { return Some(Wrong::Value("a table of strings".to_owned())) };
    if pairs.len() > METADATA_PAIRS_MAX {
        let message = format!(
            "{} pairs, at most {METADATA_PAIRS_MAX} are allowed: the API takes {}, and batchd adds one",
            pairs.len(),
            METADATA_PAIRS_MAX + 1
        );
        return Some(Wrong::Within(message));
    }
    pairs.iter().find_map(|(key, value)| {
        let shown = crate::reading::problem::shown(key);
        let value = value.as_str().map(|text| text.chars().count());
        let message = match value {
            _ if key == OWN_METADATA => format!("{shown} is batchd's own: call yours by another name"),
            _ if key.is_empty() => "a key is empty".to_owned(),
            _ if key.chars().count() > METADATA_KEY_CHARS_MAX => {
                format!("the key {shown} has more than {METADATA_KEY_CHARS_MAX} characters")
            }
            None => format!("the value of {shown} is no string: put it in double quotes"),
            Some(chars) if chars > METADATA_VALUE_CHARS_MAX => {
                format!("the value of {shown} has {chars} characters, at most {METADATA_VALUE_CHARS_MAX}")
            }
            Some(_) => return None,
        };
        Some(Wrong::Within(message))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_taken_within_their_ranges_alone() {
        let table = [
            (
                Takes::Text { most: 3 },
                vec![json!("a"), json!("äöü")],
                vec![json!(""), json!("abcd"), json!(1)],
            ),
            (
                Takes::Whole { least: 0, most: 9 },
                vec![json!(0), json!(9)],
                vec![json!(-1), json!(10), json!(1.0)],
            ),
            (
                Takes::AutoOrWhole { least: 1, most: ANY },
                vec![json!("auto"), json!(1), json!(i64::MAX)],
                vec![json!("Auto"), json!(0), json!("3"), json!(null)],
            ),
            (Takes::Positive, vec![json!(0.1), json!(2)], vec![json!(0), json!(-0.1), json!("auto")]),
            (Takes::AutoOrPositive, vec![json!("auto"), json!(0.1)], vec![json!(0.0), json!(true)]),
            (Takes::AutoOrUpTo(2.0), vec![json!("auto"), json!(2), json!(0.01)], vec![json!(2.1), json!(0)]),
            (Takes::NotNegative, vec![json!(0), json!(0.01)], vec![json!(-1)]),
            (Takes::Positives, vec![json!([0.5, 1])], vec![json!([]), json!([0]), json!(1)]),
            (Takes::Word(EFFORTS), vec![json!("low")], vec![json!("lowest"), json!(1)]),
            (Takes::Truth, vec![json!(false)], vec![json!("false"), json!(0)]),
            (Takes::Table, vec![json!({})], vec![json!([]), json!("x")]),
            (
                Takes::Integrations,
                vec![
                    json!([]),
                    json!([{"type": "wandb", "wandb": {"project": "p"}}]),
                    json!([{"type": "new"}]),
                ],
                vec![
                    json!({}),
                    json!(["wandb"]),
                    json!([{}]),
                    json!([{"type": "wandb"}]),
                    json!([{"type": "x"}, {"type": "x"}, {"type": "x"}, {"type": "x"}, {"type": "x"}, {"type": "x"}]),
                ],
            ),
            (
                Takes::Metadata,
                vec![json!({}), json!({"a": "b"})],
                vec![
                    json!([]),
                    json!({"a": 1}),
                    json!({"": "a"}),
                    json!({"batchd_job": "mine"}),
                    json!({"a": "x".repeat(513)}),
                    Value::Object([("x".repeat(65), json!("a"))].into_iter().collect()),
                    Value::Object((0..16).map(|n| (n.to_string(), json!("a"))).collect()),
                ],
            ),
        ];
        for (takes, good, bad) in table {
            for json in good {
                assert_eq!(takes.wrong(&json), None, "{takes:?} {json}");
            }
            for json in bad {
                assert!(takes.wrong(&json).is_some(), "{takes:?} {json}");
            }
        }
    }

    #[test]
    fn every_key_of_the_table_is_known_by_its_name() {
        for key in ["api", "method", "beta", "prompt_loss_weight", "suffix", "grader"] {
            assert!(takes(key), "{key}");
        }
        assert!(!takes("model") && !takes("hyperparams"));
    }
}
