//! The JSON Schema of TOML specs (draft 2020-12), for editors that complete and check while somebody writes.
//!
//! # What it does not do
//! - It is no second judge: what ties keys to each other, to files and to the configuration only `batchd check` knows.

use serde_json::{Map, Value, json};

use crate::domain::{Endpoint, Kind, RetryPolicy, TuningApi};
use crate::spec::params;

use crate::spec::tuning_table::{self, Method, Takes};
use crate::spec::work::content_key;

/// As humantime reads it.
const DURATION: &str = r"^\s*([0-9]+\s*[A-Za-zµ]+\s*)+$";

/// The JSON Schema of a TOML spec.
pub fn schema() -> Value {
    let mut defs = params::schema::shapes();
    for endpoint in Endpoint::ALL {
        defs.insert(name_of(endpoint), params::schema::of(endpoint));
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "batchd job spec",
        "description": "A job of batchd. `batchd check FILE` says whether it would be accepted.",
        "type": "object",
        "required": ["kind"],
        "properties": top(),
        "additionalProperties": false,
        "allOf": Kind::ALL.map(of_kind),
        "$defs": defs,
    })
}

fn top() -> Value {
    json!({
        "kind": {
            "description": "What is asked for.",
            "enum": Kind::ALL.map(Kind::as_str),
        },
        "name": {
            "description": "The name of the results folder. Default: the file's name without its ending.",
            "type": "string", "minLength": 1, "pattern": "^[^/\\p{Cc}]+$",
        },
        "provider": { "description": "Default: the configuration's first.", "type": "string" },
        "model": {
            "description": "Of every request that names none; `job:NAME` is what that fine-tune makes.",
            "type": "string", "pattern": r"\S",
        },
        "strict": {
            "description": "A parameter value that the API would refuse is an error, not a warning.",
            "type": "boolean",
        },
        "priority": {
            "description": "Jobs of a higher one get more of what their queue may send. Default 5.",
            "type": "integer", "minimum": 0, "maximum": 9,
        },
        "deadline": duration("From the acceptance; what is unfinished then is recorded as expired."),
        "on_uncertain": {
            "description": "What becomes of a request that was in flight at a crash, and may have been paid for. \
                            Default `retry`, once.",
            "enum": ["retry", "hold", "fail"],
        },
        "stream": {
            "description": "Ask for the answers as streams, and put them together: for chat and completions. \
                            Default: the provider's.",
            "type": "boolean",
        },
        "parameters": {
            "description": "Merged into every request body; the request's own members win.",
            "type": "object",
        },
        "input": input(),
        "requests": {
            "description": "Requests written out here; all members but `custom_id` go into the body.",
            "type": "array", "items": { "type": "object" },
        },
        "output": table(&json!({
            "order": { "description": "Of the lines of output.jsonl. Default `input`.", "enum": ["input", "completion"] },
        })),
        "retry": table(&json!({
            "max_attempts": {
                "type": "integer",
                "minimum": RetryPolicy::ATTEMPTS.start(), "maximum": RetryPolicy::ATTEMPTS.end(),
            },
            "base_delay": duration("The longest wait after the first attempt."),
            "max_delay": duration("The longest wait that batchd chooses itself; `Retry-After` may be longer."),
        })),
        "schedule": schedule(),
        "fine_tune": fine_tune(),
    })
}

fn input() -> Value {
    let mut input = table(&json!({
        "file": { "description": "A .jsonl, .csv or .txt, or a glob. Paths begin at the spec.", "type": "string" },
        "custom_id": { "description": "A template. Default: `row-<n>`.", "type": "string" },
        "prompt": { "type": ["string", "array"] },
        "input": { "type": ["string", "array"] },
        "messages": { "type": "array" },
    }));
    if let Some(members) = input.as_object_mut() {
        members.insert(
            "description".to_owned(),
            "Rows of data; `{{ field }}` stands for a field of the row.".into(),
        );
        members.insert("required".to_owned(), json!(["file"]));
    }
    input
}

fn schedule() -> Value {
    let mut schedule = table(&json!({
        "cron": {
            "description": "minute hour day month weekday, or with seconds before them, or `@daily` and the like.",
            "type": "string",
        },
        "timezone": { "description": "An IANA name. Default: the machine's.", "type": "string" },
        "catch_up": { "description": "What of times when no daemon ran. Default `skip`.", "enum": ["once", "skip"] },
        "overlap": { "description": "What if the last run has not ended. Default `skip`.", "enum": ["skip", "queue"] },
        "jitter": duration("Runs begin up to so much later."),
    }));
    if let Some(members) = schedule.as_object_mut() {
        members.insert("required".to_owned(), json!(["cron"]));
    }
    schedule
}

fn fine_tune() -> Value {
    let mut properties = Map::new();
    for parameter in TuningApi::ALL.into_iter().flat_map(tuning_table::parameters) {
        let takes = taken(parameter.takes);
        let both = properties.remove(parameter.name).filter(|other| *other != takes);
        let takes = match both {
            Some(other) => json!({ "anyOf": [other, takes] }),
            None => takes,
        };
        properties.insert(parameter.name.to_owned(), takes);
    }
    let file = |what: &str| json!({ "description": what, "type": "string" });
    let methods = Method::WORDS.map(|(word, _)| word);
    let of_method = json!({ "type": "object", "properties": { "type": { "enum": methods } } });
    properties.extend([
        ("api".to_owned(), json!({ "enum": TuningApi::ALL.map(TuningApi::as_str) })),
        ("training_file".to_owned(), file("A path, or the id of an uploaded file.")),
        ("validation_file".to_owned(), file("A path, or the id of an uploaded file.")),
        ("delete_uploads".to_owned(), json!({ "type": "boolean" })),
        ("method".to_owned(), json!({ "anyOf": [{ "enum": methods }, of_method] })),
        ("hyperparameters".to_owned(), json!({ "type": "object" })),
    ]);
    json!({
        "type": "object",
        "required": ["training_file"],
        "properties": properties,
        "additionalProperties": false,
    })
}

fn taken(takes: Takes) -> Value {
    let auto = |other: Value| json!({ "anyOf": [{ "const": "auto" }, other] });
    let positive = || json!({ "type": "number", "exclusiveMinimum": 0 });
    let whole = |least: i64, most: i64| {
        if most == i64::MAX {
            json!({ "type": "integer", "minimum": least })
        } else {
            json!({ "type": "integer", "minimum": least, "maximum": most })
        }
    };
    match takes {
        Takes::Text { most: usize::MAX } => json!({ "type": "string", "minLength": 1 }),
        Takes::Text { most } => json!({ "type": "string", "minLength": 1, "maxLength": most }),
        Takes::Truth => json!({ "type": "boolean" }),
        Takes::Whole { least, most } => whole(least, most),
        Takes::AutoOrWhole { least, most } => auto(whole(least, most)),
        Takes::Positive => positive(),
        Takes::AutoOrPositive => auto(positive()),
        Takes::AutoOrUpTo(most) => auto(json!({ "type": "number", "exclusiveMinimum": 0, "maximum": most })),
        Takes::NotNegative => json!({ "type": "number", "minimum": 0 }),
        Takes::Positives => json!({ "type": "array", "minItems": 1, "items": positive() }),
        Takes::Word(words) => json!({ "enum": words }),
        Takes::Table => json!({ "type": "object" }),
        Takes::Integrations => json!({ "type": "array", "items": { "type": "object" } }),
        Takes::Metadata => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
    }
}

/// What a kind asks for beside what all do.
fn of_kind(kind: Kind) -> Value {
    let mut then = Map::new();
    if kind == Kind::FineTune {
        then.insert("required".to_owned(), json!(["fine_tune"]));
        then.insert(
            "properties".to_owned(),
            json!({ "parameters": false, "input": false, "requests": false }),
        );
    } else {
        let of = kind
            .endpoint()
            .map(|endpoint| json!({ "$ref": format!("{}{}", params::schema::SHAPES, name_of(endpoint)) }));
        let mut properties = Map::from_iter([("fine_tune".to_owned(), Value::Bool(false))]);
        if let Some(parameters) = of {
            properties.insert("requests".to_owned(), json!({ "items": parameters }));
            properties.insert("parameters".to_owned(), parameters);
        }
        let others = ["prompt", "input", "messages"].into_iter().filter(|key| content_key(kind) != Some(key));
        let others: Map<String, Value> = others.map(|key| (key.to_owned(), Value::Bool(false))).collect();
        properties.insert("input".to_owned(), json!({ "properties": others }));
        then.insert("oneOf".to_owned(), json!([{ "required": ["input"] }, { "required": ["requests"] }]));
        then.insert("properties".to_owned(), properties.into());
    }
    json!({ "if": { "properties": { "kind": { "const": kind.as_str() } } }, "then": then })
}

fn name_of(endpoint: Endpoint) -> String {
    format!("parameters of {}", endpoint.path()).replace(['/', ' '], "_")
}

fn duration(what: &str) -> Value {
    json!({ "description": format!("{what} Like `90s`, `10m` or `6h`."), "type": "string", "pattern": DURATION })
}

fn table(properties: &Value) -> Value {
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use jsonschema::Validator;

    use super::*;
    use crate::spec::trial::Trial;

    fn validator() -> Validator {
        jsonschema::draft202012::new(&schema()).unwrap()
    }

    fn json_of(toml: &str) -> Value {
        serde_json::to_value(toml::from_str::<toml::Table>(toml).unwrap()).unwrap()
    }

    fn keys(schema: &Value, place: &str) -> BTreeSet<String> {
        schema.pointer(place).unwrap().as_object().unwrap().keys().cloned().collect()
    }

    /// What the reader says it knows, of a table with a key that nobody has.
    fn known(spec: &str) -> BTreeSet<String> {
        let told = Trial::new().with("a.toml", spec).read("a.toml").unwrap_err();
        let list = told.split("known are ").nth(1).unwrap_or_else(|| panic!("{told}"));
        list.lines().next().unwrap().split(", ").map(|key| key.trim_matches('`').to_owned()).collect()
    }

    #[test]
    fn it_has_the_keys_that_the_reader_knows() {
        let schema = schema();
        let head = "kind = 'chat'\nmodel = 'm'\n[input]\nfile = 'a.jsonl'\nmessages = [{ role = 'user', content = 'x' }]\n";
        let odd = "qqqqqqqqqqqq = 1\n";
        assert_eq!(keys(&schema, "/properties"), known(&format!("{odd}{head}")));
        assert_eq!(keys(&schema, "/properties/input/properties"), known(&format!("{head}{odd}")));
        for (name, before) in [("output", ""), ("retry", ""), ("schedule", "cron = '@daily'\n")] {
            let spec = format!("{head}[{name}]\n{before}{odd}");
            assert_eq!(keys(&schema, &format!("/properties/{name}/properties")), known(&spec), "{name}");
        }
        let tuning = keys(&schema, "/properties/fine_tune/properties");
        assert!(tuning.iter().all(|key| tuning_table::takes(key)), "{tuning:?}");
        for name in tuning_table::OWN.iter().chain(&tuning_table::TABLES) {
            assert!(tuning.contains(*name), "{name}");
        }
    }

    #[test]
    fn the_samples_hold_to_it() {
        let validator = validator();
        let mut samples = 0;
        for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|ending| ending == "toml") {
                samples += 1;
                let json = json_of(&fs::read_to_string(&path).unwrap());
                let errors: Vec<String> =
                    validator.iter_errors(&json).map(|error| error.to_string()).collect();
                assert!(errors.is_empty(), "{}: {errors:?}", path.display());
            }
        }
        assert!(samples > 5, "{samples}");
    }

    #[test]
    fn what_the_reader_refuses_it_refuses() {
        let validator = validator();
        let rows = "[input]\nfile = 'a.csv'\nprompt = 'x'\n";
        assert!(validator.is_valid(&json_of(&format!("kind = 'completions'\nmodel = 'm'\n{rows}"))));
        for spec in [
            String::new(),
            "kind = 'poems'".to_owned(),
            "kind = 'chat'\nmodel = 'm'".to_owned(),
            format!("kind = 'chat'\nmodel = 'm'\n{rows}"),
            format!("kind = 'completions'\nmodle = 'm'\n{rows}"),
            format!("kind = 'completions'\npriority = 10\n{rows}"),
            format!("kind = 'completions'\ndeadline = 6\n{rows}"),
            format!("kind = 'completions'\n[parameters]\ntemperature = 3\n{rows}"),
            format!("kind = 'completions'\n[[requests]]\nprompt = 'a'\n{rows}"),
            format!("kind = 'fine_tune'\n{rows}"),
            "kind = 'fine_tune'\n[fine_tune]\ntraining_file = 'a.jsonl'\nn_epochs = 0".to_owned(),
        ] {
            assert!(!validator.is_valid(&json_of(&spec)), "{spec}");
        }
    }
}
