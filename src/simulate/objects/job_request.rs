//! The body of `POST /fine_tuning/jobs`: its parameters, their types and ranges.

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::inspection::LineKind;
use super::members::{Auto, Members};
use super::page::with;
use crate::simulate::refusal::Refusal;

const SUFFIX_LENGTH_MAX: usize = 64;
const SEED_MAX: u64 = 2_147_483_647;
const EPOCHS_MAX: u64 = 50;
const BATCH_SIZE_MAX: u64 = 256;
const BETA_MAX: f64 = 2.0;
const INTEGRATIONS_MAX: usize = 5;
const METADATA_PAIRS_MAX: usize = 16;
const METADATA_KEY_LENGTH_MAX: usize = 64;
const METADATA_VALUE_LENGTH_MAX: usize = 512;

/// A job that is to be.
#[derive(Clone, Debug)]
pub(in crate::simulate) struct NewJob {
    pub(super) model: String,
    pub(super) training_file: String,
    pub(super) validation_file: Option<String>,
    pub(super) suffix: Option<String>,
    pub(super) seed: Option<u64>,
    pub(super) method: Method,
    pub(super) hyperparameters: Hyperparameters,
    pub(super) integrations: Value,
    pub(super) metadata: Map<String, Value>,
}

#[derive(Clone, Debug)]
pub(super) enum Method {
    Supervised,
    Preference {
        beta: Auto<f64>,
    },
    Reinforcement {
        grader: Value,
        /// Those that only this method has, as they came.
        rest: Map<String, Value>,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Hyperparameters {
    pub(super) n_epochs: Auto<u64>,
    pub(super) batch_size: Auto<u64>,
    pub(super) learning_rate_multiplier: Auto<f64>,
}

impl NewJob {
    pub(super) fn read(body: &[u8]) -> Result<Self, Refusal> {
        let mut members = Members::of_body(body)?;
        let model = members.required_text("model")?.into_owned();
        let training_file = members.required_text("training_file")?.into_owned();
        let validation_file = members.text("validation_file")?.map(Into::into);
        let suffix = suffix(&mut members, SUFFIX_LENGTH_MAX)?;
        let seed = members.integer("seed", 0, SEED_MAX)?;
        let (method, hyperparameters) = method(&mut members)?;
        let integrations = integrations(members.raw("integrations"))?;
        let metadata = metadata(&mut members)?;
        members.end()?;
        Ok(Self {
            model,
            training_file,
            validation_file,
            suffix,
            seed,
            method,
            hyperparameters,
            integrations,
            metadata,
        })
    }
}

impl Method {
    pub(super) const fn line_kind(&self, is_chat: bool) -> LineKind {
        match self {
            Self::Supervised if is_chat => LineKind::Chat,
            Self::Supervised => LineKind::Pair,
            Self::Preference { .. } => LineKind::Preference,
            Self::Reinforcement { .. } => LineKind::Graded,
        }
    }

    /// As a job shows it.
    pub(super) fn object(&self, hyperparameters: Hyperparameters) -> Value {
        let shown = hyperparameters.object();
        match self {
            Self::Supervised => json!({ "type": "supervised", "supervised": { "hyperparameters": shown } }),
            Self::Preference { beta } => {
                let shown = with(shown, [("beta", json!(beta))]);
                json!({ "type": "dpo", "dpo": { "hyperparameters": shown } })
            }
            Self::Reinforcement { grader, rest } => {
                let method = json!({ "grader": grader, "hyperparameters": with(shown, rest.clone()) });
                json!({ "type": "reinforcement", "reinforcement": method })
            }
        }
    }
}

impl Hyperparameters {
    const AUTO: Self =
        Self { n_epochs: Auto::Auto, batch_size: Auto::Auto, learning_rate_multiplier: Auto::Auto };

    fn take(members: &mut Members<'_>) -> Result<Self, Refusal> {
        Ok(Self {
            n_epochs: members.auto_integer("n_epochs", 1, EPOCHS_MAX)?,
            batch_size: members.auto_integer("batch_size", 1, BATCH_SIZE_MAX)?,
            learning_rate_multiplier: members.auto_number("learning_rate_multiplier", f64::MAX)?,
        })
    }

    pub(super) fn object(self) -> Value {
        json!({
            "n_epochs": self.n_epochs,
            "batch_size": self.batch_size,
            "learning_rate_multiplier": self.learning_rate_multiplier,
        })
    }

    /// With what the server chooses for so many examples.
    pub(super) fn resolved(self, examples: u64) -> Self {
        // OpenAI's cookbook: three epochs, more for few examples, fewer for many.
        let epochs = match examples {
            0..=33 => (100 / examples.max(4)).clamp(1, 25),
            34..=8_333 => 3,
            _ => (25_000 / examples).max(1),
        };
        let batch_size = (examples / 500).clamp(1, BATCH_SIZE_MAX);
        Self {
            n_epochs: Auto::Given(self.n_epochs.or(epochs)),
            batch_size: Auto::Given(self.batch_size.or(batch_size)),
            learning_rate_multiplier: Auto::Given(self.learning_rate_multiplier.or(1.8)),
        }
    }
}

/// `suffix`, of 1 to `most` characters.
pub(super) fn suffix(members: &mut Members<'_>, most: usize) -> Result<Option<String>, Refusal> {
    let suffix = members.text("suffix")?;
    if let Some(suffix) = &suffix
        && !(1..=most).contains(&suffix.chars().count())
    {
        let message = format!("Invalid 'suffix': expected a string of 1 to {most} characters.");
        return Err(Refusal::invalid_value("suffix", message));
    }
    Ok(suffix.map(Into::into))
}

fn method(members: &mut Members<'_>) -> Result<(Method, Hyperparameters), Refusal> {
    let old = members.object("hyperparameters")?;
    let Some(mut method) = members.object("method")? else {
        let hyperparameters = read(old)?;
        return Ok((Method::Supervised, hyperparameters));
    };
    if old.is_some() {
        let message = "'hyperparameters' is deprecated and can't be given together with 'method'.".to_owned();
        return Err(Refusal::invalid_value("hyperparameters", message));
    }
    let kind = method.required_text("type")?;
    let mut own = match &*kind {
        "supervised" | "dpo" | "reinforcement" => method.object(&kind)?,
        other => {
            let message = format!(
                "Invalid value: '{other}'. Supported values are: 'supervised', 'dpo', and 'reinforcement'."
            );
            return Err(Refusal::invalid_value("method.type", message));
        }
    };
    let mut hyperparameters = match &mut own {
        Some(own) => own.object("hyperparameters")?,
        None => None,
    };
    let found = match &*kind {
        "supervised" => Method::Supervised,
        "dpo" => {
            let beta = hyperparameters.as_mut().map(|members| members.auto_number("beta", BETA_MAX));
            Method::Preference { beta: beta.transpose()?.unwrap_or(Auto::Auto) }
        }
        _ => reinforcement(own.as_mut(), hyperparameters.as_mut())?,
    };
    let hyperparameters = read(hyperparameters)?;
    if let Some(own) = own {
        own.end()?;
    }
    method.end()?;
    Ok((found, hyperparameters))
}

fn reinforcement(
    own: Option<&mut Members<'_>>,
    hyperparameters: Option<&mut Members<'_>>,
) -> Result<Method, Refusal> {
    const OWN: [&str; 4] = ["compute_multiplier", "eval_interval", "eval_samples", "reasoning_effort"];
    let grader = own.and_then(|own| own.value("grader")).filter(Value::is_object);
    let grader = grader.ok_or_else(|| Refusal::missing("method.reinforcement.grader"))?;
    let mut rest = Map::new();
    if let Some(hyperparameters) = hyperparameters {
        let found = OWN.into_iter().filter_map(|name| Some((name.to_owned(), hyperparameters.value(name)?)));
        rest.extend(found);
    }
    Ok(Method::Reinforcement { grader, rest })
}

fn read(hyperparameters: Option<Members<'_>>) -> Result<Hyperparameters, Refusal> {
    let Some(mut members) = hyperparameters else { return Ok(Hyperparameters::AUTO) };
    let hyperparameters = Hyperparameters::take(&mut members)?;
    members.end()?;
    Ok(hyperparameters)
}

fn integrations(raw: Option<&RawValue>) -> Result<Value, Refusal> {
    let Some(raw) = raw else { return Ok(Value::Array(Vec::new())) };
    let wrong = |message: &str| Refusal::invalid_value("integrations", message.to_owned());
    let list: Vec<Value> = serde_json::from_str(raw.get())
        .map_err(|_| Refusal::invalid_type("integrations", "an array of objects", raw.get()))?;
    if list.len() > INTEGRATIONS_MAX {
        return Err(wrong("Invalid 'integrations': expected at most 5."));
    }
    let is_known = |item: &Value| {
        item["type"] == "wandb" && item.pointer("/wandb/project").is_some_and(Value::is_string)
    };
    if !list.iter().all(is_known) {
        return Err(wrong("Invalid 'integrations': expected 'wandb' with its 'project'."));
    }
    Ok(Value::Array(list))
}

fn metadata(members: &mut Members<'_>) -> Result<Map<String, Value>, Refusal> {
    let Some(raw) = members.raw("metadata") else { return Ok(Map::new()) };
    let found: Map<String, Value> = serde_json::from_str(raw.get())
        .map_err(|_| Refusal::invalid_type("metadata", "an object", raw.get()))?;
    let fits = |(key, value): (&String, &Value)| {
        key.chars().count() <= METADATA_KEY_LENGTH_MAX
            && value.as_str().is_some_and(|value| value.chars().count() <= METADATA_VALUE_LENGTH_MAX)
    };
    if found.len() > METADATA_PAIRS_MAX || !found.iter().all(fits) {
        let message = "Invalid 'metadata': expected at most 16 strings of at most 512 characters, each under a \
                       name of at most 64.";
        return Err(Refusal::invalid_value("metadata", message.to_owned()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(more: &Value) -> Result<NewJob, Refusal> {
        let mut body = json!({"model": "gpt-4o-mini", "training_file": "file-1"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        NewJob::read(body.to_string().as_bytes())
    }

    #[test]
    fn every_parameter_is_taken() {
        let more = json!({
            "validation_file": "file-2", "suffix": "s", "seed": 7, "metadata": {"batchd_job": "x"},
            "integrations": [{"type": "wandb", "wandb": {"project": "p", "tags": ["t"]}}],
            "method": {"type": "dpo", "dpo": {"hyperparameters":
                {"beta": 0.1, "n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5}}},
        });
        let job = read(&more).unwrap();
        assert_eq!(job.method.object(job.hyperparameters), more["method"]);
        assert_eq!((job.seed, &job.metadata["batchd_job"]), (Some(7), &json!("x")));
        let graded = json!({"method": {"type": "reinforcement", "reinforcement":
            {"grader": {"type": "string_check"}, "hyperparameters": {"eval_samples": 3, "n_epochs": 1}}}});
        let job = read(&graded).unwrap();
        let shown = job.method.object(job.hyperparameters);
        assert_eq!(shown["reinforcement"]["hyperparameters"]["eval_samples"], 3);
        let old = read(&json!({"hyperparameters": {"n_epochs": 3}, "suffix": null})).unwrap();
        assert_eq!((old.hyperparameters.n_epochs, old.suffix), (Auto::Given(3), None));
    }

    #[test]
    fn what_is_out_of_range_or_unknown_is_refused_by_name() {
        let supervised = |hyperparameters: Value| json!({"method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}});
        for (more, param) in [
            (json!({"model": null}), "model"),
            (json!({"training_file": 1}), "training_file"),
            (json!({"suffix": ""}), "suffix"),
            (json!({"suffix": "x".repeat(65)}), "suffix"),
            (json!({"seed": 2_147_483_648_u64}), "seed"),
            (json!({"n_epochs": 3}), "n_epochs"),
            (json!({"method": {"type": "magic"}}), "method.type"),
            (json!({"method": {"type": "dpo", "supervised": {}}}), "method.supervised"),
            (json!({"method": {"type": "reinforcement"}}), "method.reinforcement.grader"),
            (json!({"method": {"type": "dpo"}, "hyperparameters": {}}), "hyperparameters"),
            (supervised(json!({"n_epochs": 51})), "method.supervised.hyperparameters.n_epochs"),
            (supervised(json!({"batch_size": 0})), "method.supervised.hyperparameters.batch_size"),
            (
                supervised(json!({"learning_rate_multiplier": 0})),
                "method.supervised.hyperparameters.learning_rate_multiplier",
            ),
            (supervised(json!({"beta": 0.1})), "method.supervised.hyperparameters.beta"),
            (json!({"integrations": [{"type": "other"}]}), "integrations"),
            (json!({"metadata": {"a": 1}}), "metadata"),
        ] {
            let refusal = read(&more).unwrap_err();
            let body: Value = serde_json::from_slice(&refusal.body()).unwrap();
            assert_eq!((refusal.status, body["error"]["param"].as_str()), (400, Some(param)), "{more}");
        }
    }

    #[test]
    fn the_server_chooses_more_epochs_for_fewer_examples() {
        let epochs = |examples| match Hyperparameters::AUTO.resolved(examples).n_epochs {
            Auto::Given(epochs) => epochs,
            Auto::Auto => unreachable!(),
        };
        assert_eq!([4, 10, 33, 34, 100, 20_000].map(epochs), [25, 10, 3, 3, 3, 1]);
    }
}
