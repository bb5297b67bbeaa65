//! `/fine-tunes`: the legacy interface, as servers keep it alive that OpenAI has closed.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::inspection::LineKind;
use super::job_request::suffix;
use super::members::Members;
use super::metrics::Extent;
use super::models::{Base, Tuned, slug};
use super::page::with;
use super::run::{Api, Course, Event, Failure, Run, Status};
use super::shelf::{Calendar, Shelf};
use crate::simulate::fate::Fate;
use crate::simulate::refusal::Refusal;

const SUFFIX_LENGTH_MAX: usize = 40;
const MODEL: &str = "curie";
const EPOCHS: u64 = 4;
/// Beyond all reason already.
const EPOCHS_MAX: u64 = 100;
const BATCH_SIZE_MAX: u64 = 256;
const PROMPT_LOSS_WEIGHT: f64 = 0.01;

/// A fine-tune that is to be.
#[derive(Clone, Debug)]
pub(in crate::simulate) struct NewFineTune {
    training_file: String,
    validation_file: Option<String>,
    model: String,
    n_epochs: u64,
    batch_size: Option<u64>,
    learning_rate_multiplier: Option<f64>,
    prompt_loss_weight: f64,
    /// Those of a classification that were given, under their names.
    classification: Map<String, Value>,
    suffix: Option<String>,
}

#[derive(Debug)]
pub(super) struct FineTune {
    id: String,
    new: NewFineTune,
    base: Base,
    /// What it is called while it waits: servers differ.
    waiting: &'static str,
    batch_size: u64,
    learning_rate_multiplier: f64,
    training_file: Value,
    validation_file: Option<Value>,
    run: Run,
    /// The model and the file that it has brought.
    outcome: Option<(String, Value)>,
}

/// All fine-tunes, oldest first.
#[derive(Debug, Default)]
pub(super) struct FineTunes(Vec<FineTune>);

impl NewFineTune {
    pub(super) fn read(body: &[u8]) -> Result<Self, Refusal> {
        let mut members = Members::of_body(body)?;
        let new = Self {
            training_file: members.required_text("training_file")?.into_owned(),
            validation_file: members.text("validation_file")?.map(Into::into),
            model: members.text("model")?.map_or_else(|| MODEL.to_owned(), Into::into),
            n_epochs: members.integer("n_epochs", 1, EPOCHS_MAX)?.unwrap_or(EPOCHS),
            batch_size: members.integer("batch_size", 1, BATCH_SIZE_MAX)?,
            learning_rate_multiplier: members.number(
                "learning_rate_multiplier",
                f64::MIN_POSITIVE,
                f64::MAX,
            )?,
            prompt_loss_weight: members
                .number("prompt_loss_weight", 0.0, f64::MAX)?
                .unwrap_or(PROMPT_LOSS_WEIGHT),
            classification: Map::new(),
            suffix: suffix(&mut members, SUFFIX_LENGTH_MAX)?,
        };
        let new = Self { classification: classification(&mut members, &new)?, ..new };
        members.end()?;
        Ok(new)
    }
}

fn classification(members: &mut Members<'_>, new: &NewFineTune) -> Result<Map<String, Value>, Refusal> {
    let mut found = Map::new();
    let wants_metrics = members.boolean("compute_classification_metrics")?;
    let classes = members.integer("classification_n_classes", 2, u64::from(u32::MAX))?;
    let positive = members.text("classification_positive_class")?;
    let betas =
        match members.raw("classification_betas") {
            None => None,
            Some(raw) => Some(serde_json::from_str::<Vec<f64>>(raw.get()).map_err(|_| {
                Refusal::invalid_type("classification_betas", "an array of numbers", raw.get())
            })?),
        };
    if wants_metrics == Some(true) {
        let wrong =
            |message: &str| Refusal::invalid_value("compute_classification_metrics", message.to_owned());
        if new.validation_file.is_none() {
            return Err(wrong("Classification metrics need a 'validation_file'."));
        }
        if classes.is_none() && positive.is_none() {
            return Err(wrong(
                "Classification metrics need 'classification_n_classes' or 'classification_positive_class'.",
            ));
        }
    }
    if betas.is_some() && positive.is_none() {
        let message = "'classification_betas' need a 'classification_positive_class'.".to_owned();
        return Err(Refusal::invalid_value("classification_betas", message));
    }
    let given = [
        ("compute_classification_metrics", wants_metrics.map(|wants| json!(wants))),
        ("classification_n_classes", classes.map(|classes| json!(classes))),
        ("classification_positive_class", positive.map(|positive| json!(positive))),
        ("classification_betas", betas.map(|betas| json!(betas))),
    ];
    found.extend(given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    Ok(found)
}

impl FineTune {
    fn new(new: &NewFineTune, shelf: &mut Shelf, at: Duration) -> Result<Self, Refusal> {
        let base = shelf.models.base(Api::Legacy, &new.model)?;
        let training = shelf.training_data(&new.training_file, "training_file", at)?;
        let found = training.inspection.clone().unwrap_or_default();
        let training_file = training.object(shelf.calendar, at);
        let mut verdict = flawed("training", "training_file", found.flaw_as(LineKind::Pair));
        let mut validation_file = None;
        if let Some(id) = &new.validation_file {
            let validation = shelf.training_data(id, "validation_file", at)?;
            validation_file = Some(validation.object(shelf.calendar, at));
            let flaw = validation.inspection.as_ref().and_then(|found| found.flaw_as(LineKind::Pair));
            verdict = verdict.or_else(|| flawed("validation", "validation_file", flaw));
        }
        // About 0.2 % of the examples, as OpenAI chose it.
        let batch_size = new.batch_size.unwrap_or_else(|| (found.examples / 500).clamp(1, BATCH_SIZE_MAX));
        let learning_rate_multiplier = new.learning_rate_multiplier.unwrap_or(match batch_size {
            0..=15 => 0.05,
            16..=127 => 0.1,
            _ => 0.2,
        });
        let extent = Extent::new(found.examples, batch_size, new.n_epochs, validation_file.is_some());
        let fate = new.suffix.as_deref().and_then(Fate::of_suffix).or(shelf.rules.fate);
        let time = shelf.rules.fine_tune_time;
        let mut run = Run::begin(&Course { api: Api::Legacy, extent, verdict, fate, time }, at);
        let id = shelf.id("ft-");
        run.say(at, format!("Created fine-tune: {id}"));
        run.say(at, "Fine-tune costs $0.00".to_owned());
        let waiting = if shelf.dice.bool() { "pending" } else { "created" };
        Ok(Self {
            id,
            new: new.clone(),
            base,
            waiting,
            batch_size,
            learning_rate_multiplier,
            training_file,
            validation_file,
            run,
            outcome: None,
        })
    }

    /// Without events, as it stands in a list.
    fn object(&self, calendar: Calendar) -> Value {
        let (run, new) = (&self.run, &self.new);
        let hyperparams = json!({
            "n_epochs": new.n_epochs,
            "batch_size": self.batch_size,
            "prompt_loss_weight": new.prompt_loss_weight,
            "learning_rate_multiplier": self.learning_rate_multiplier,
        });
        let hyperparams = with(hyperparams, new.classification.clone());
        let (model, results) = self.outcome.clone().unzip();
        json!({
            "id": self.id,
            "object": "fine-tune",
            "created_at": calendar.unix(run.created()),
            "updated_at": calendar.unix(run.updated()),
            "model": self.base.id,
            "fine_tuned_model": model,
            "organization_id": "org-sim",
            "status": self.status_word(),
            "hyperparams": hyperparams,
            "training_files": [self.training_file],
            "validation_files": Vec::from_iter(&self.validation_file),
            "result_files": Vec::from_iter(results),
        })
    }

    fn with_events(&self, calendar: Calendar) -> Value {
        with(self.object(calendar), [("events", Value::Array(self.events(calendar)))])
    }

    /// Oldest first.
    fn events(&self, calendar: Calendar) -> Vec<Value> {
        let object = |event: &Event| {
            json!({
                "object": "fine-tune-event",
                "created_at": calendar.unix(event.at),
                "level": event.level.as_str(),
                "message": event.message,
            })
        };
        self.run.events().iter().map(object).collect()
    }

    fn status_word(&self) -> &'static str {
        match self.run.status() {
            Status::Validating | Status::Queued | Status::Paused => self.waiting,
            Status::Running => "running",
            Status::Odd => "uploading",
            Status::Succeeded => "succeeded",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
        }
    }

    /// Brings the model and the results.
    fn succeed(&mut self, shelf: &mut Shelf, at: Duration) {
        let suffix = self.new.suffix.as_deref().map(slug);
        let name = shelf.models.name_legacy(&self.base, suffix.as_deref(), shelf.calendar.unix(at));
        shelf.models.add(Tuned { id: name.clone(), base: self.base.clone(), api: Api::Legacy, created: at });
        self.run.say(at, format!("Uploaded model: {name}"));
        let csv = self.run.extent().csv(Api::Legacy);
        let id = shelf.add_results("compiled_results.csv".to_owned(), csv, at);
        self.run.say(at, format!("Uploaded result file: {id}"));
        self.run.say(at, "Fine-tune succeeded".to_owned());
        let file = shelf.files.find(&id, at).map(|file| file.object(shelf.calendar, at));
        self.outcome = Some((name, file.unwrap_or_default()));
    }
}

impl FineTunes {
    pub(super) fn create(
        &mut self,
        new: &NewFineTune,
        shelf: &mut Shelf,
        at: Duration,
    ) -> Result<Value, Refusal> {
        let fine_tune = FineTune::new(new, shelf, at)?;
        let object = fine_tune.with_events(shelf.calendar);
        self.0.push(fine_tune);
        Ok(object)
    }

    /// Plays what is due.
    pub(super) fn advance(&mut self, shelf: &mut Shelf, now: Duration) {
        for fine_tune in &mut self.0 {
            if let Some(at) = fine_tune.run.advance(now) {
                fine_tune.succeed(shelf, at);
            }
        }
    }

    /// All of them, oldest first: this interface has no pages.
    pub(super) fn list(&self, calendar: Calendar) -> Value {
        let present = self.0.iter().filter(|fine_tune| !fine_tune.run.has_vanished());
        let data: Vec<Value> = present.map(|fine_tune| fine_tune.object(calendar)).collect();
        json!({ "object": "list", "data": data })
    }

    pub(super) fn show(&self, id: &str, calendar: Calendar) -> Result<Value, Refusal> {
        self.find(id).map(|fine_tune| fine_tune.with_events(calendar))
    }

    pub(super) fn events(&self, id: &str, calendar: Calendar) -> Result<Value, Refusal> {
        Ok(json!({ "object": "list", "data": self.find(id)?.events(calendar) }))
    }

    pub(super) fn cancel(&mut self, id: &str, calendar: Calendar, at: Duration) -> Result<Value, Refusal> {
        let fine_tune =
            self.0.iter_mut().find(|fine_tune| fine_tune.id == id && !fine_tune.run.has_vanished());
        let fine_tune = fine_tune.ok_or_else(|| Refusal::no_fine_tune(id))?;
        if fine_tune.run.status().has_ended() {
            return Err(Refusal::wrong_status("Fine-tune", id, fine_tune.status_word()));
        }
        fine_tune.run.cancel(at);
        Ok(fine_tune.with_events(calendar))
    }

    fn find(&self, id: &str) -> Result<&FineTune, Refusal> {
        let found = self.0.iter().find(|fine_tune| fine_tune.id == id && !fine_tune.run.has_vanished());
        found.ok_or_else(|| Refusal::no_fine_tune(id))
    }
}

fn flawed(which: &str, param: &'static str, flaw: Option<&str>) -> Option<Failure> {
    flaw.map(|flaw| Failure {
        code: "invalid_file",
        message: format!("Fine-tune failed. The {which} file is invalid. {flaw}"),
        param: Some(param),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(more: &Value) -> Result<NewFineTune, Refusal> {
        let mut body = json!({"training_file": "file-1"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        NewFineTune::read(body.to_string().as_bytes())
    }

    #[test]
    fn what_is_not_given_is_what_the_api_says() {
        let new = read(&json!({"batch_size": null, "suffix": null})).unwrap();
        assert_eq!((new.model.as_str(), new.n_epochs, new.batch_size), ("curie", 4, None));
        assert!((new.prompt_loss_weight - 0.01).abs() < f64::EPSILON);
        let full = json!({
            "validation_file": "file-2", "model": "ada", "n_epochs": 2, "batch_size": 3,
            "learning_rate_multiplier": 0.1, "prompt_loss_weight": 0.2, "suffix": "s",
            "compute_classification_metrics": true, "classification_n_classes": 2,
            "classification_positive_class": " yes", "classification_betas": [0.5, 1]
        });
        assert_eq!(read(&full).unwrap().classification.len(), 4);
    }

    #[test]
    fn what_is_out_of_range_or_unknown_is_refused_by_name() {
        for (more, param) in [
            (json!({"training_file": null}), "training_file"),
            (json!({"n_epochs": 0}), "n_epochs"),
            (json!({"learning_rate_multiplier": -1}), "learning_rate_multiplier"),
            (json!({"suffix": "x".repeat(41)}), "suffix"),
            (json!({"compute_classification_metrics": true}), "compute_classification_metrics"),
            (
                json!({"compute_classification_metrics": true, "validation_file": "file-2"}),
                "compute_classification_metrics",
            ),
            (json!({"classification_betas": [1]}), "classification_betas"),
            (json!({"metadata": {}}), "metadata"),
        ] {
            let refusal = read(&more).unwrap_err();
            let body: Value = serde_json::from_slice(&refusal.body()).unwrap();
            assert_eq!((refusal.status, body["error"]["param"].as_str()), (400, Some(param)), "{more}");
        }
    }
}
