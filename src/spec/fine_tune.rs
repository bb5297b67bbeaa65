//! A spec of kind `fine_tune`: its data is checked and copied in one pass, and its plan becomes the one line of the
//! job's input.

use std::io::{self, Seek};
use std::path::Path;

use serde::Serialize;

use crate::diag::{Diagnostic, Place, Report};
use crate::domain::{FineTune, Job, JobName, Kind, LineEntry, QueueName, TuningApi, TuningData};
use crate::reading::lines::Hashing;
use crate::reading::problem::shown;
use crate::spec::document::{Document, Placed};
use crate::spec::files::{Files, Found};
use crate::spec::render::{is_unchanged, rejected, rested};
use crate::spec::requests::written;
use crate::spec::rows::DataForm;
use crate::spec::schema::Spec;
use crate::spec::tuning::Tuning;
use crate::spec::{Checked, Error, INPUT, Settings, Sinks, Source};
use crate::training::{self, FILE_BYTES_MAX, Figures, Fingerprints, Rules};

/// What is known of an accepted fine-tune.
#[derive(Clone, Debug, Serialize)]
pub struct TuningFacts {
    pub api: TuningApi,
    /// The base model.
    pub model: String,
    /// None: the data lies at the provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<Figures>,
}

/// Whether what stands where a path could is the id of an uploaded file.
pub fn is_file_id(text: &str) -> bool {
    // Names of data files have an ending, ids don't.
    text.starts_with("file-") && !text.contains(['.', '/'])
}

/// Reads the line of an accepted fine-tune's input again, when its turn comes.
///
/// An error means that the line is not the one that was accepted.
pub fn parse_fine_tune(job: &Job, line: &[u8], number: u32) -> Result<FineTune, Diagnostic> {
    if job.kind != Kind::FineTune {
        return Err(Diagnostic::error(INPUT, number, 0, format!("kind `{}` has no fine-tunes", job.kind)));
    }
    serde_json::from_slice(line)
        .map_err(|error| Diagnostic::error(INPUT, number, 0, format!("no plan of a fine-tune: {error}")))
}

/// A spec in whose own text nothing is wrong.
pub(super) struct Reading<'r> {
    pub(super) source: &'r Source,
    pub(super) settings: &'r Settings,
    pub(super) document: &'r Document<'r>,
    pub(super) spec: &'r Spec<'r>,
    pub(super) tuning: &'r Tuning,
    pub(super) name: JobName,
}

/// One of the two files of data.
struct Data {
    /// What its copy is called.
    copy: &'static str,
    /// The path or the id.
    named: String,
    /// None: it lies at the provider.
    found: Option<Found>,
}

/// What a pass over a file of data found.
struct Passed {
    data: TuningData,
    figures: Option<Figures>,
    fingerprints: Option<Fingerprints>,
}

/// What the passes over both files share.
struct Pass<'p, 's> {
    files: &'p Files,
    hasher: &'p mut blake3::Hasher,
    sinks: &'p mut Sinks<'s>,
    report: &'p mut Report,
}

impl Reading<'_> {
    /// See [`spec::read`](crate::spec::read). `hasher` has seen the spec's text.
    pub(super) fn read(
        self,
        mut hasher: blake3::Hasher,
        sinks: &mut Sinks<'_>,
        mut report: Report,
    ) -> Result<Checked, Error> {
        let files = Files::new(&self.source.folder, &self.settings.input_dirs);
        let training = self.find("training_file", TuningData::TRAINING, &self.tuning.training, &files);
        let validation = self.tuning.validation.as_ref();
        let validation =
            validation.map(|given| self.find("validation_file", TuningData::VALIDATION, given, &files));
        let mut data = Vec::new();
        for found in std::iter::once(training).chain(validation) {
            match found {
                Ok(found) => data.push(found),
                Err(refused) => report.push(refused),
            }
        }
        if report.has_errors() {
            return Err(rejected(report));
        }
        let found = || data.iter().filter_map(|data| data.found.as_ref());
        let before = rested(self.source.rest, &files, found())?;
        let mut passed: Vec<Passed> = Vec::new();
        for data in &data {
            let training = passed.first().and_then(|training| training.fingerprints.as_ref());
            let mut pass = Pass { files: &files, hasher: &mut hasher, sinks, report: &mut report };
            passed.push(self.pass(data, training, &mut pass)?);
        }
        is_unchanged(self.source.rest, &files, found(), &before)?;
        report.sort();
        if report.has_errors() {
            return Err(Error::Rejected(report));
        }
        self.finish(passed, &hasher, sinks, report).map_err(Error::Sink)
    }

    /// What one of the two keys names.
    fn find(
        &self,
        key: &'static str,
        copy: &'static str,
        given: &Placed<String>,
        files: &Files,
    ) -> Result<Data, Diagnostic> {
        let path = given.value.as_str();
        if is_file_id(path) {
            return Ok(Data { copy, named: path.to_owned(), found: None });
        }
        let error = |message: String, hint: Option<String>| Diagnostic {
            hint,
            ..self.document.error(given.offset, format!("`{key}`: {message}"))
        };
        let found = files.find(path).map_err(|refused| error(refused.message, refused.hint))?;
        let [found] = found.as_slice() else {
            let message = format!("{} matches {} files, expected one", shown(path), found.len());
            return Err(error(message, Some("join them: `cat PART… > train.jsonl`".to_owned())));
        };
        if DataForm::of(&found.display) != Some(DataForm::Jsonl) {
            let message = format!("{} is no .jsonl", shown(path));
            return Err(error(message, Some("`batchd prepare FILE` makes one of it".to_owned())));
        }
        Ok(Data { copy, named: path.to_owned(), found: Some(found.clone()) })
    }

    /// Checks a file of data and copies it. What is wrong with it goes into the report.
    fn pass(
        &self,
        data: &Data,
        training: Option<&Fingerprints>,
        pass: &mut Pass<'_, '_>,
    ) -> Result<Passed, Error> {
        let Some(found) = &data.found else {
            let data = TuningData::Uploaded { id: data.named.clone() };
            return Ok(Passed { data, figures: None, fingerprints: None });
        };
        let path = Path::new(&found.display);
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        let mut passed = Passed {
            data: TuningData::Local { file: data.copy.to_owned(), stem, bytes: 0 },
            figures: None,
            fingerprints: None,
        };
        let file = match pass.files.open(found) {
            Ok(file) => file,
            Err(refused) => {
                let error = Diagnostic::error(&found.display, 0, 0, refused.message);
                pass.report.push(Diagnostic { hint: refused.hint, ..error });
                return Ok(passed);
            }
        };
        // One that is refused by its size need not be read through and copied first.
        if let Some(size) =
            file.metadata().ok().map(|metadata| metadata.len()).filter(|s| *s > FILE_BYTES_MAX)
        {
            let message = format!("the file has {size} bytes, at most {FILE_BYTES_MAX} are taken");
            let error = Diagnostic::error(&found.display, 0, 0, message);
            pass.report.push(error.hint("take fewer examples: good ones count for more"));
            return Ok(passed);
        }
        let begun = written(&file);
        let rules = Rules {
            expected: self.tuning.expected,
            model: self.model(),
            epochs: self.tuning.epochs,
            line_max: self.settings.max_line,
            training,
        };
        let copy = pass.sinks.data.begin(data.copy).map_err(Error::Sink)?;
        let input = Hashing { input: &file, hasher: &mut *pass.hasher };
        let checked = training::check(input, &found.display, &rules, Some(copy)).map_err(Error::Sink)?;
        pass.report.absorb(checked.report);
        if begun.is_none() || begun != written(&file) {
            let error = Diagnostic::error(&found.display, 0, 0, "the file was written to while it was read");
            pass.report.push(error.hint("drop the spec once its data is whole"));
        }
        if let TuningData::Local { bytes, .. } = &mut passed.data {
            *bytes = (&file).stream_position().unwrap_or_default();
        }
        Ok(Passed { figures: checked.figures, fingerprints: Some(checked.fingerprints), ..passed })
    }

    fn model(&self) -> &str {
        self.tuning.body.get("model").and_then(serde_json::Value::as_str).unwrap_or_default()
    }

    /// Writes the one line and its entry in the index.
    fn finish(
        self,
        passed: Vec<Passed>,
        hasher: &blake3::Hasher,
        sinks: &mut Sinks<'_>,
        findings: Report,
    ) -> io::Result<Checked> {
        let mut passed = passed.into_iter();
        let training = passed.next().expect("a spec without training data was refused");
        let (validation, validation_figures) = match passed.next() {
            Some(passed) => (Some(passed.data), passed.figures),
            None => (None, None),
        };
        let Tuning { api, body, delete_uploads, .. } = self.tuning;
        let plan = FineTune {
            custom_id: self.name.to_string(),
            api: *api,
            training: training.data,
            validation,
            body: body.clone(),
            delete_uploads: *delete_uploads,
        };
        let mut line = serde_json::to_vec(&plan)?;
        let length = u32::try_from(line.len()).unwrap_or(u32::MAX);
        line.push(b'\n');
        sinks.input.write_all(&line)?;
        sinks.index.write_all(&LineEntry { offset: 0, length, queue: 0, line: 1 }.encode())?;
        let (line, column) = self.spec.model_at.map_or((0, 0), |at| self.document.place(at));
        let place = Place { file: self.document.file.to_owned(), line, column };
        let facts = TuningFacts {
            api: *api,
            model: plan.model().to_owned(),
            training: training.figures,
            validation: validation_figures,
        };
        Ok(Checked {
            kind: Kind::FineTune,
            name: self.name,
            ending: None,
            settings: self.spec.settings.clone(),
            queues: vec![QueueName::new(self.spec.provider.name.as_str(), None)],
            queue_totals: vec![1],
            queue_places: vec![place],
            total: 1,
            content_hash: hasher.finalize().to_hex().to_string(),
            strict: self.spec.strict,
            fine_tune: Some(Box::new(facts)),
            findings,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use serde_json::json;

    use super::*;
    use crate::spec::trial::{self, Trial};

    /// So many good examples, different from those of another `seed`.
    fn chats(count: u32, seed: &str) -> String {
        (0..count).fold(String::new(), |mut lines, n| {
            let user = json!({"role": "user", "content": format!("What is {seed} {n}?")});
            let assistant = json!({"role": "assistant", "content": format!("It is {n}.")});
            let system = json!({"role": "system", "content": "You are brief."});
            writeln!(lines, "{}", json!({"messages": [system, user, assistant]})).unwrap();
            lines
        })
    }

    fn pairs(count: u32) -> String {
        (0..count).fold(String::new(), |mut lines, n| {
            let pair = json!({"prompt": format!("{n}+1=? ->"), "completion": format!(" {}\n", n + 1)});
            writeln!(lines, "{pair}").unwrap();
            lines
        })
    }

    const JOBS: &str = r#"
kind = "fine_tune"
name = "support"
model = "gpt-4.1-mini"
[fine_tune]
training_file = "inputs/train.jsonl"
validation_file = "valid.jsonl"
suffix = "support"
seed = 42
n_epochs = 3
learning_rate_multiplier = "auto"
metadata = { team = "a" }
delete_uploads = true
"#;

    #[test]
    fn a_fine_tune_is_one_line_beside_the_copies_of_its_data() {
        let (train, valid) = (chats(60, "train"), chats(10, "valid"));
        let trial = Trial::new();
        let trial =
            trial.with("tune.toml", JOBS).with("inputs/train.jsonl", &train).with("valid.jsonl", &valid);
        let accepted = trial.read("tune.toml").unwrap();
        let plan = accepted.fine_tune.unwrap();
        assert_eq!(
            (plan.custom_id.as_str(), plan.api, plan.delete_uploads),
            ("support", TuningApi::Jobs, true)
        );
        let local = |file: &str, stem: &str, data: &str| TuningData::Local {
            file: file.to_owned(),
            stem: stem.to_owned(),
            bytes: data.len() as u64,
        };
        assert_eq!(plan.training, local("training.jsonl", "train", &train));
        assert_eq!(plan.validation, Some(local("validation.jsonl", "valid", &valid)));
        let copies =
            accepted.copies.0.into_iter().map(|(name, bytes)| (name, String::from_utf8(bytes).unwrap()));
        let expected = [("training.jsonl".to_owned(), train), ("validation.jsonl".to_owned(), valid)];
        assert_eq!(copies.collect::<Vec<_>>(), expected);
        let body = json!({
            "model": "gpt-4.1-mini",
            "suffix": "support",
            "seed": 42,
            "metadata": {"team": "a"},
            "method": {
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 3, "learning_rate_multiplier": "auto"}},
            },
        });
        assert_eq!(serde_json::Value::Object(plan.body), body);
        let checked = accepted.checked;
        assert_eq!((checked.kind, checked.name.as_str(), checked.total), (Kind::FineTune, "support", 1));
        assert_eq!(checked.queues, [QueueName::new("openai", None)]);
        assert_eq!(checked.queue_places[0].to_string(), "tune.toml:4:9");
        let facts = checked.fine_tune.unwrap();
        let training = facts.training.unwrap();
        assert_eq!((training.examples, training.epochs, training.epochs_guessed), (60, 3, false));
        assert_eq!(training.billed_tokens, training.tokens * 3);
        assert_eq!(facts.validation.unwrap().examples, 10);
        assert_eq!(facts.model, "gpt-4.1-mini");
    }

    #[test]
    fn the_legacy_interface_has_its_own_parameters_and_a_default_model() {
        let spec = r#"
kind = "fine_tune"
[fine_tune]
api = "legacy"
training_file = "train.jsonl"
validation_file = "file-abc123"
n_epochs = 4
batch_size = 8
learning_rate_multiplier = 0.1
prompt_loss_weight = 0.01
compute_classification_metrics = true
classification_n_classes = 2
classification_positive_class = " 2"
classification_betas = [0.5, 1, 1.5]
suffix = "sums"
"#;
        let trial = Trial::new().with("sums.toml", spec).with("train.jsonl", pairs(120));
        let plan = trial.read("sums.toml").unwrap().fine_tune.unwrap();
        assert_eq!((plan.custom_id.as_str(), plan.api, plan.model()), ("sums", TuningApi::Legacy, "curie"));
        assert_eq!(plan.validation, Some(TuningData::Uploaded { id: "file-abc123".to_owned() }));
        let body = json!({
            "model": "curie", "n_epochs": 4, "batch_size": 8, "learning_rate_multiplier": 0.1,
            "prompt_loss_weight": 0.01, "compute_classification_metrics": true, "classification_n_classes": 2,
            "classification_positive_class": " 2", "classification_betas": [0.5, 1, 1.5], "suffix": "sums",
        });
        assert_eq!(serde_json::Value::Object(plan.body), body);
    }

    #[test]
    fn the_legacy_interface_trains_four_epochs_unless_it_is_told_otherwise() {
        for (line, epochs) in [("", 4), ("n_epochs = 2\n", 2)] {
            let spec =
                format!("kind = 'fine_tune'\n[fine_tune]\napi = 'legacy'\ntraining_file = 'a.jsonl'\n{line}");
            let trial = Trial::new().with("a.toml", spec).with("a.jsonl", pairs(120));
            let facts = trial.read("a.toml").unwrap().checked.fine_tune.unwrap();
            let training = facts.training.unwrap();
            assert_eq!((training.epochs, training.epochs_guessed), (epochs, false));
            assert_eq!(training.billed_tokens, training.tokens * u64::from(epochs));
        }
    }

    #[test]
    fn data_at_the_provider_is_not_looked_for_here() {
        let spec =
            "kind = 'fine_tune'\nmodel = 'm'\nprovider = 'local'\n[fine_tune]\ntraining_file = 'file-1'\n";
        let accepted = Trial::new().with("a.toml", spec).read("a.toml").unwrap();
        let plan = accepted.fine_tune.unwrap();
        assert_eq!(plan.training, TuningData::Uploaded { id: "file-1".to_owned() });
        assert_eq!(serde_json::Value::Object(plan.body), json!({"model": "m"}));
        assert!(accepted.copies.0.is_empty() && accepted.checked.findings.is_empty());
        assert_eq!(accepted.checked.queues, [QueueName::new("local", None)]);
        assert!(is_file_id("file-abc_D-1") && !is_file_id("file-a.jsonl") && !is_file_id("file-a/b"));
    }

    #[test]
    fn what_is_wrong_with_the_data_rejects_the_spec_at_its_line() {
        let spec = "kind = 'fine_tune'\nmodel = 'm'\n[fine_tune]\ntraining_file = 'train.jsonl'\nvalidation_file = 'v.jsonl'\n";
        let broken = chats(12, "a").replacen("assistant", "robot", 1);
        let trial = Trial::new().with("a.toml", spec).with("train.jsonl", &broken).with("v.jsonl", "{\n");
        let report = trial.refused("a.toml");
        assert!(report.contains("train.jsonl:1:") && report.contains("`robot`"), "{report}");
        assert!(report.contains("v.jsonl:1:"), "both are looked at: {report}");

        let trial = trial.with("train.jsonl", pairs(12)).with("v.jsonl", chats(10, "v"));
        let report = trial.refused("a.toml");
        assert!(report.contains("train.jsonl:1: error: "), "pairs are no conversations: {report}");
    }

    #[test]
    fn warnings_and_notes_about_the_data_are_findings() {
        let spec = "kind = 'fine_tune'\nmodel = 'm'\n[fine_tune]\ntraining_file = 'train.jsonl'\n";
        let twice = chats(12, "a").repeat(2);
        let findings = Trial::new().with("a.toml", spec).with("train.jsonl", twice).read("a.toml").unwrap();
        let findings = findings.checked.findings;
        assert!(findings.warnings() > 0 && findings.notes() > 0, "{findings}");
    }

    #[test]
    fn a_file_over_the_bound_is_refused_before_it_is_read() {
        let spec = "kind = 'fine_tune'\nmodel = 'm'\n[fine_tune]\ntraining_file = 'train.jsonl'\n";
        let trial = Trial::new().with("a.toml", spec).with("train.jsonl", "");
        let data = std::fs::OpenOptions::new().write(true).open(trial.path().join("train.jsonl")).unwrap();
        data.set_len(FILE_BYTES_MAX + 1).unwrap();
        let report = trial.refused("a.toml");
        assert!(report.starts_with("train.jsonl: error: the file has 536870913 bytes, at most"), "{report}");
    }

    #[test]
    fn the_hash_covers_both_files() {
        let hash = |train: &str, valid: &str| {
            let trial = Trial::new().with("tune.toml", JOBS);
            let trial =
                trial.with("inputs/train.jsonl", chats(60, train)).with("valid.jsonl", chats(10, valid));
            trial.read("tune.toml").unwrap().checked.content_hash
        };
        assert_eq!(hash("a", "b"), hash("a", "b"));
        assert_ne!(hash("a", "b"), hash("c", "b"));
        assert_ne!(hash("a", "b"), hash("a", "c"));
    }

    #[test]
    fn a_copy_that_can_not_be_written_says_nothing_about_the_spec() {
        struct Full;
        impl io::Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        impl crate::spec::Copies for Full {
            fn begin(&mut self, _: &str) -> io::Result<&mut dyn io::Write> {
                Ok(self)
            }
        }
        let trial = Trial::new().with("tune.toml", JOBS);
        let trial = trial.with("inputs/train.jsonl", chats(60, "a")).with("valid.jsonl", chats(10, "b"));
        let (mut index, mut input) = (Vec::new(), Vec::new());
        let sinks = Sinks { index: &mut index, input: &mut input, data: &mut Full };
        let read = crate::spec::read(trial.source("tune.toml"), &trial.settings, sinks);
        assert!(
            matches!(&read, Err(Error::Sink(error)) if error.kind() == io::ErrorKind::StorageFull),
            "{read:?}"
        );
    }

    #[test]
    fn a_line_that_is_not_the_accepted_one_is_no_plan() {
        let spec = "kind = 'fine_tune'\nmodel = 'm'\n[fine_tune]\ntraining_file = 'file-1'\n";
        let accepted = Trial::new().with("a.toml", spec).read("a.toml").unwrap();
        let mut job = trial::job(&accepted.checked);
        let line = accepted.input.trim_end().as_bytes();
        assert!(parse_fine_tune(&job, line, 1).is_ok());
        assert!(
            parse_fine_tune(&job, &line[..10], 1)
                .unwrap_err()
                .to_string()
                .starts_with("input.jsonl:1: error: ")
        );
        assert!(crate::spec::parse_line(&job, line, 1).is_err(), "it is no request");
        job.kind = Kind::Chat;
        assert!(parse_fine_tune(&job, line, 1).is_err());
    }
}
