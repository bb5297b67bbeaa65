//! `/fine_tuning/jobs`: today's interface to fine-tunes.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::job_request::{Hyperparameters, NewJob};
use super::metrics::Extent;
use super::models::{Base, Models, Tuned, slug};
use super::page::{self, Page};
use super::run::{Api, Checkpoint, Course, Event, Failure, Run, Status};
use super::shelf::{Calendar, Shelf};
use crate::simulate::fate::Fate;
use crate::simulate::refusal::Refusal;

/// With fewer, validation fails.
const EXAMPLES_LEAST: u64 = 10;
/// Letters of a job's id that end the name of its model.
const MODEL_ID_LENGTH: usize = 8;

/// How a healthy job's `error` looks: servers differ.
#[derive(Clone, Copy, Debug)]
enum NoError {
    Null,
    Empty,
    Nulls,
}

/// Which jobs are asked for.
#[derive(Debug)]
pub(in crate::simulate) struct JobQuery {
    page: Page,
    /// Pairs that a job's metadata must have; none for jobs that have no metadata at all.
    metadata: Option<Vec<(String, String)>>,
}

/// One job.
#[derive(Debug)]
pub(super) struct Job {
    id: String,
    new: NewJob,
    base: Base,
    seed: u64,
    no_error: NoError,
    hyperparameters: Hyperparameters,
    tokens: u64,
    run: Run,
    /// The model and the file that it has brought.
    outcome: Option<(String, String)>,
}

/// All jobs, oldest first.
#[derive(Debug, Default)]
pub(super) struct Jobs(Vec<Job>);

impl JobQuery {
    pub(super) fn read(query: &str) -> Result<Self, Refusal> {
        let page = Page::read(query, 20, 100)?;
        let pairs = url::form_urlencoded::parse(query.as_bytes()).filter_map(|(key, value)| {
            let key = key.strip_prefix("metadata[")?.strip_suffix(']')?.to_owned();
            Some((key, value.into_owned()))
        });
        let wants_none = page::member(query, "metadata").as_deref() == Some("null");
        Ok(Self { page, metadata: if wants_none { None } else { Some(pairs.collect()) } })
    }

    fn wants(&self, job: &Job) -> bool {
        let metadata = &job.new.metadata;
        match &self.metadata {
            None => metadata.is_empty(),
            Some(pairs) => pairs.iter().all(|(key, value)| metadata.get(key).is_some_and(|is| is == value)),
        }
    }
}

impl Job {
    fn new(new: &NewJob, shelf: &mut Shelf, at: Duration) -> Result<Self, Refusal> {
        let base = shelf.models.base(Api::Jobs, &new.model)?;
        let kind = new.method.line_kind(base.is_chat);
        let training = shelf.training_data(&new.training_file, "training_file", at)?;
        let found = training.inspection.clone().unwrap_or_default();
        let mut verdict = flawed("training", "training_file", found.flaw_as(kind));
        if verdict.is_none() && found.examples < EXAMPLES_LEAST {
            let message = format!(
                "Training file has {} example(s), but must have at least {EXAMPLES_LEAST} examples",
                found.examples
            );
            verdict = Some(Failure { code: "invalid_n_examples", message, param: Some("training_file") });
        }
        if let Some(id) = &new.validation_file {
            let validation = shelf.training_data(id, "validation_file", at)?;
            let flaw = validation.inspection.as_ref().and_then(|found| found.flaw_as(kind));
            verdict = verdict.or_else(|| flawed("validation", "validation_file", flaw));
        }
        let hyperparameters = new.hyperparameters.resolved(found.examples);
        let epochs = hyperparameters.n_epochs.or(1);
        let batch_size = hyperparameters.batch_size.or(1);
        let extent = Extent::new(found.examples, batch_size, epochs, new.validation_file.is_some());
        let fate = new.suffix.as_deref().and_then(Fate::of_suffix).or(shelf.rules.fate);
        let time = shelf.rules.fine_tune_time;
        let mut run = Run::begin(&Course { api: Api::Jobs, extent, verdict, fate, time }, at);
        let id = shelf.id("ftjob-");
        run.say(at, format!("Created fine-tuning job: {id}"));
        run.say(at, format!("Validating training file: {}", new.training_file));
        let no_error = match shelf.dice.u8(0..3) {
            0 => NoError::Null,
            1 => NoError::Empty,
            _ => NoError::Nulls,
        };
        let chosen = u64::from(shelf.dice.u32(0..=2_147_483_647));
        let seed = new.seed.unwrap_or(chosen);
        let tokens = found.tokens.saturating_mul(epochs);
        Ok(Self { id, new: new.clone(), base, seed, no_error, hyperparameters, tokens, run, outcome: None })
    }

    fn object(&self, calendar: Calendar) -> Value {
        let (run, new) = (&self.run, &self.new);
        let unix = |at: Duration| calendar.unix(at);
        let status = status_word(run.status());
        let error = match (run.failure(), self.no_error) {
            (Some(failure), _) => {
                json!({ "code": failure.code, "message": failure.message, "param": failure.param })
            }
            (None, NoError::Null) => Value::Null,
            (None, NoError::Empty) => json!({}),
            (None, NoError::Nulls) => json!({ "code": null, "message": null, "param": null }),
        };
        // Until the files are validated nothing has been chosen.
        let hyperparameters =
            if run.status() == Status::Validating { new.hyperparameters } else { self.hyperparameters };
        let (model, results) = self.outcome.clone().unzip();
        let trained_tokens = model.is_some().then_some(self.tokens);
        json!({
            "id": self.id,
            "object": "fine_tuning.job",
            "created_at": unix(run.created()),
            "finished_at": run.finished().map(unix),
            "estimated_finish": run.expected_end().map(unix),
            "model": self.base.id,
            "fine_tuned_model": model,
            "organization_id": "org-sim",
            "status": status,
            "hyperparameters": hyperparameters.object(),
            "method": new.method.object(hyperparameters),
            "training_file": new.training_file,
            "validation_file": new.validation_file,
            "result_files": Vec::from_iter(results),
            "trained_tokens": trained_tokens,
            "seed": self.seed,
            "error": error,
            "integrations": new.integrations,
            "metadata": new.metadata,
        })
    }

    /// Brings the model and the results.
    fn succeed(&mut self, shelf: &mut Shelf, at: Duration) {
        let csv = STANDARD.encode(self.run.extent().csv(Api::Jobs));
        let file = shelf.add_results("step_metrics.csv".to_owned(), csv, at);
        let id = self.model_name();
        shelf.models.add(Tuned { id: id.clone(), base: self.base.clone(), api: Api::Jobs, created: at });
        self.run.say(at, format!("New fine-tuned model created: {id}"));
        self.run.say(at, "The job has successfully completed".to_owned());
        self.outcome = Some((id, file));
    }

    fn model_name(&self) -> String {
        let suffix = self.new.suffix.as_deref().map(slug).unwrap_or_default();
        let short: String = self.key().chars().take(MODEL_ID_LENGTH).collect();
        Models::name_today(&self.base, &suffix, &short)
    }

    /// Its id without the prefix.
    fn key(&self) -> &str {
        self.id.trim_start_matches("ftjob-")
    }

    fn event(&self, number: usize, event: &Event, calendar: Calendar) -> Value {
        let kind = if event.metrics.is_some() { "metrics" } else { "message" };
        json!({
            "id": self.event_id(number),
            "object": "fine_tuning.job.event",
            "created_at": calendar.unix(event.at),
            "level": event.level.as_str(),
            "message": event.message,
            "type": kind,
            "data": event.metrics.map_or_else(|| json!({}), |metrics| metrics.object()),
        })
    }

    fn event_id(&self, number: usize) -> String {
        format!("ftevent-{}{number:06}", self.key())
    }

    fn checkpoints(&self, calendar: Calendar) -> Vec<(String, Value)> {
        let model = self.model_name();
        let newest_first = self.run.checkpoints().iter().rev();
        let object = |checkpoint: &Checkpoint| {
            let step = checkpoint.metrics.step;
            let id = format!("ftckpt_{}{step:06}", self.key());
            let object = json!({
                "id": id,
                "object": "fine_tuning.job.checkpoint",
                "created_at": calendar.unix(checkpoint.at),
                "fine_tuned_model_checkpoint": format!("{model}:ckpt-step-{step}"),
                "step_number": step,
                "metrics": checkpoint.metrics.object(),
                "fine_tuning_job_id": self.id,
            });
            (id, object)
        };
        newest_first.map(object).collect()
    }
}

impl Jobs {
    pub(super) fn create(&mut self, new: &NewJob, shelf: &mut Shelf, at: Duration) -> Result<Value, Refusal> {
        let job = Job::new(new, shelf, at)?;
        let object = job.object(shelf.calendar);
        self.0.push(job);
        Ok(object)
    }

    /// Plays what is due.
    pub(super) fn advance(&mut self, shelf: &mut Shelf, now: Duration) {
        for job in &mut self.0 {
            if let Some(at) = job.run.advance(now) {
                job.succeed(shelf, at);
            }
        }
    }

    /// Newest first.
    pub(super) fn list(&self, query: &JobQuery, calendar: Calendar) -> Result<Value, Refusal> {
        let wanted = self.0.iter().rev().filter(|job| !job.run.has_vanished() && query.wants(job));
        let (jobs, has_more) = query.page.of(wanted, |job| &job.id)?;
        let data: Vec<Value> = jobs.into_iter().map(|job| job.object(calendar)).collect();
        Ok(json!({ "object": "list", "data": data, "has_more": has_more }))
    }

    pub(super) fn show(&self, id: &str, calendar: Calendar) -> Result<Value, Refusal> {
        self.find(id).map(|job| job.object(calendar))
    }

    pub(super) fn cancel(&mut self, id: &str, calendar: Calendar, at: Duration) -> Result<Value, Refusal> {
        self.change(id, calendar, |run| {
            let may = !run.status().has_ended();
            if may {
                run.cancel(at);
            }
            may
        })
    }

    pub(super) fn pause(&mut self, id: &str, calendar: Calendar, at: Duration) -> Result<Value, Refusal> {
        self.change(id, calendar, |run| run.pause(at))
    }

    pub(super) fn resume(&mut self, id: &str, calendar: Calendar, at: Duration) -> Result<Value, Refusal> {
        self.change(id, calendar, |run| run.resume(at))
    }

    /// Newest first.
    pub(super) fn events(&self, id: &str, page: &Page, calendar: Calendar) -> Result<Value, Refusal> {
        let job = self.find(id)?;
        let events = job.run.events().iter().enumerate();
        let events: Vec<(String, Value)> = events
            .rev()
            .map(|(number, event)| (job.event_id(number), job.event(number, event, calendar)))
            .collect();
        let (data, has_more) = page.of(events.iter(), |(id, _)| id)?;
        let data: Vec<&Value> = data.into_iter().map(|(_, event)| event).collect();
        Ok(json!({ "object": "list", "data": data, "has_more": has_more }))
    }

    /// Newest first.
    pub(super) fn checkpoints(&self, id: &str, page: &Page, calendar: Calendar) -> Result<Value, Refusal> {
        let checkpoints = self.find(id)?.checkpoints(calendar);
        let (data, has_more) = page.of(checkpoints.iter(), |(id, _)| id)?;
        let data: Vec<Value> = data.into_iter().map(|(_, checkpoint)| checkpoint.clone()).collect();
        Ok(page::reply(&data, has_more))
    }

    fn change(
        &mut self,
        id: &str,
        calendar: Calendar,
        act: impl FnOnce(&mut Run) -> bool,
    ) -> Result<Value, Refusal> {
        let job = self.0.iter_mut().find(|job| job.id == id && !job.run.has_vanished());
        let job = job.ok_or_else(|| Refusal::no_fine_tune(id))?;
        if act(&mut job.run) {
            return Ok(job.object(calendar));
        }
        Err(Refusal::wrong_status("Fine-tuning job", id, status_word(job.run.status())))
    }

    fn find(&self, id: &str) -> Result<&Job, Refusal> {
        let job = self.0.iter().find(|job| job.id == id && !job.run.has_vanished());
        job.ok_or_else(|| Refusal::no_fine_tune(id))
    }
}

/// What validation says of a file with this flaw.
fn flawed(which: &str, param: &'static str, flaw: Option<&str>) -> Option<Failure> {
    let code = if param == "training_file" { "invalid_training_file" } else { "invalid_validation_file" };
    flaw.map(|flaw| Failure {
        code,
        message: format!("The job failed due to an invalid {which} file. Invalid file format. {flaw}"),
        param: Some(param),
    })
}

const fn status_word(status: Status) -> &'static str {
    match status {
        Status::Validating => "validating_files",
        Status::Queued => "queued",
        Status::Running => "running",
        Status::Odd => "optimizing",
        Status::Paused => "paused",
        Status::Succeeded => "succeeded",
        Status::Failed => "failed",
        Status::Cancelled => "cancelled",
    }
}
