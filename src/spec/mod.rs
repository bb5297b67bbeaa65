//! Job specs: from the file that a user drops to validated requests.
//!
//! [`read`] goes over a whole spec, streaming, before anything of it is sent: it reports every problem
//! with its place ([`Report`]), and writes the job's line index (and, for TOML specs, the rendered
//! requests) as it goes. [`parse_line`] reads one request again when its turn comes.

mod bare;
mod document;
mod files;
mod fine_tune;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod ids;
mod index;
mod jsonl;
mod line;
mod name;
mod now;
mod outline;
pub mod params;
mod pick;
mod render;
mod requests;
mod rows;
mod scheduled;
mod schema;
mod template;
#[cfg(test)]
mod trial;
mod tuning;
mod tuning_table;
mod url;
mod work;

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use chrono_tz::Tz;

use crate::diag::{Diagnostic, Place, Report, Severity};
use crate::domain::{Job, JobName, JobSettings, Kind, QueueName, Request, Timestamp};
use crate::reading::problem::{Problem, Spot};
use crate::schedule::Schedule;

pub use self::fine_tune::{TuningFacts, is_file_id, parse_fine_tune};
pub use self::outline::schema;

/// What an accepted job's input is called in diagnostics.
const INPUT: &str = "input.jsonl";

/// What must be known of the configuration to judge a spec.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Not empty; the first is the default.
    pub providers: Vec<ProviderFacts>,
    /// Longest JSONL line in bytes.
    pub max_line: u64,
    /// Folders beside the spec's own from which data files may be named.
    pub input_dirs: Vec<PathBuf>,
    /// The zone of schedules that name none, and of `now` in specs without one: the machine's.
    pub zone: Tz,
}

#[derive(Clone, Debug)]
pub struct ProviderFacts {
    pub name: String,
    /// Findings about parameters are errors.
    pub strict: bool,
}

/// A spec to read.
#[derive(Debug)]
pub struct Source {
    pub form: Form,
    /// The spec file itself, opened by the caller without following links.
    pub file: File,
    /// How the person knows it; stands in every diagnostic, and its endings decide on name and kind.
    pub display: String,
    /// The folder that relative paths of a TOML spec are opened beneath: the jobs folder or a dropped folder.
    pub folder: PathBuf,
    /// How long data files must have rested; none reads them as they are.
    pub rest: Option<Rest>,
    /// What `now` means in templates and names of files: the time of acceptance, or the one that a run is made for.
    pub now: Timestamp,
    /// It is a run of its schedule. Else a spec that has one is not read: [`Error::Scheduled`].
    pub is_run: bool,
}

/// How long data files must have rested: who wrote to one a moment ago may not be done.
#[derive(Clone, Copy, Debug)]
pub struct Rest {
    pub settle: Duration,
    pub now: Timestamp,
}

impl Rest {
    /// Whether a file that was last written at `written` may be read. A time in the future says nothing: another
    /// machine's clock wrote it.
    const fn is_over(&self, written: Timestamp) -> bool {
        written.as_millis() > self.now.as_millis()
            || self.now.since(written).as_millis() >= self.settle.as_millis()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Jsonl,
    Toml,
}

impl Form {
    /// By the file's ending; none for a file that is no spec.
    pub fn of(file_name: &str) -> Option<Self> {
        match file_name.rsplit_once('.') {
            Some((_, "jsonl")) => Some(Self::Jsonl),
            Some((_, "toml")) => Some(Self::Toml),
            _ => None,
        }
    }
}

/// Where [`read`] writes.
pub struct Sinks<'a> {
    /// Encoded [`LineEntry`](crate::domain::LineEntry)s, in request order.
    pub index: &'a mut dyn Write,
    /// The requests of a TOML spec as batch lines. A JSONL spec is its own input: nothing is written.
    pub input: &'a mut dyn Write,
    /// The data of a fine-tune.
    pub data: &'a mut dyn Copies,
}

/// Takes copies of data files, one after the other.
pub trait Copies {
    /// Begins the copy `name`: what is written from now on is in it.
    fn begin(&mut self, name: &str) -> io::Result<&mut dyn Write>;
}

/// Nothing is kept.
impl Copies for io::Sink {
    fn begin(&mut self, _: &str) -> io::Result<&mut dyn Write> {
        Ok(self)
    }
}

impl fmt::Debug for Sinks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sinks")
    }
}

/// A spec without errors.
#[derive(Clone, Debug)]
pub struct Checked {
    pub kind: Kind,
    /// The spec's `name`, else from the file's name.
    pub name: JobName,
    /// See [`Job::ending`].
    pub ending: Option<Kind>,
    pub settings: JobSettings,
    pub queues: Vec<QueueName>,
    /// Requests of each queue, in the order of `queues`.
    pub queue_totals: Vec<u32>,
    /// Where the model of each queue is first named.
    pub queue_places: Vec<Place>,
    pub total: u32,
    /// BLAKE3 in hex over the spec and every byte of its data.
    pub content_hash: String,
    /// The spec or its provider is strict: what a person should know of is an error.
    pub strict: bool,
    /// Of kind `fine_tune`.
    pub fine_tune: Option<Box<TuningFacts>>,
    /// Warnings and notes only.
    pub findings: Report,
}

impl Checked {
    /// The jobs whose models its requests use (`model = "job:<name>"`), each with the place where it is first named.
    pub fn jobs_used(&self) -> impl Iterator<Item = (JobName, &Place)> {
        let base = self.fine_tune.as_ref().map(|fine_tune| fine_tune.model.as_str());
        let named = self.queues.iter().zip(&self.queue_places);
        named.filter_map(move |(queue, place)| {
            Some((name::job_of_model(queue.model().or(base)?)?.ok()?, place))
        })
    }
}

/// A spec with a schedule.
#[derive(Clone, Debug)]
pub struct Scheduled {
    /// What the names of its runs begin with.
    pub name: JobName,
    pub kind: Kind,
    pub schedule: Schedule,
    /// The spec as it was read.
    pub text: String,
    /// Warnings and notes only.
    pub findings: Report,
}

/// Why a spec was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The spec is refused; the report has at least one error.
    #[error("{0}")]
    Rejected(Report),
    /// A data file is still being written, or was while it was read ([`Source::rest`]): nothing is said yet.
    #[error("`{data}` is still being written")]
    Unsettled { data: String },
    /// It has a schedule: it is not to be run at once ([`read_schedule`]).
    #[error("the spec has a schedule")]
    Scheduled,
    /// A sink failed: nothing is said about the spec.
    #[error("write the job's files: {0}")]
    Sink(#[source] io::Error),
}

/// Validates a whole spec and writes what a job needs of it.
pub fn read(source: Source, settings: &Settings, mut sinks: Sinks<'_>) -> Result<Checked, Error> {
    match source.form {
        Form::Jsonl => jsonl::read(source, settings, &mut sinks),
        Form::Toml => render::read(&source, settings, &mut sinks),
    }
}

/// Looks whether a TOML spec has a schedule, and reads its text to the end. Its data is read by its runs: it may not be
/// there yet.
///
/// # Errors
///
/// [`Error::Rejected`]: every problem of the spec's text.
pub fn read_schedule(source: &Source, settings: &Settings) -> Result<Option<Scheduled>, Error> {
    match source.form {
        Form::Jsonl => Ok(None),
        Form::Toml => scheduled::read(source, settings),
    }
}

/// Reads one line of an accepted job's input again, when its turn comes; that of a fine-tune is read by
/// [`parse_fine_tune`]. Line `number` as in the file.
///
/// An error means that the line is not the one that was accepted.
pub fn parse_line(job: &Job, line: &[u8], number: u32) -> Result<Request, Diagnostic> {
    parsed(job, line, number).map(|parsed| parsed.into_request(job.settings.stream))
}

/// The `custom_id` of one line of an accepted job's input, without the rest of it.
pub fn custom_id(job: &Job, line: &[u8], number: u32) -> Result<String, Diagnostic> {
    if job.kind == Kind::FineTune {
        return parse_fine_tune(job, line, number).map(|fine_tune| fine_tune.custom_id);
    }
    parsed(job, line, number).map(|parsed| parsed.custom_id.into_owned())
}

fn parsed<'a>(job: &Job, line: &'a [u8], number: u32) -> Result<line::Parsed<'a>, Diagnostic> {
    let text = std::str::from_utf8(line)
        .map_err(|_| Diagnostic::error(INPUT, number, 0, "the line is no longer UTF-8"))?;
    let spot = Spot { file: INPUT, line: number, text: Some(text) };
    let rules = line::Rules { ending: job.ending, number, has_model: false };
    let mut first = None;
    let parsed = line::read(text, rules, &mut |problem| {
        if problem.severity == Severity::Error {
            first.get_or_insert(problem);
        }
    });
    match parsed {
        Ok(Some(parsed)) => Ok(parsed),
        Ok(None) => Err(first.unwrap_or_else(|| Problem::error(0, "no request")).at(spot)),
        Err(syntax) => Err(Problem::from(syntax).at(spot)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::spec::trial::{self, Trial};

    /// Values that members may have, right and wrong ones.
    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(json!("m")),
            Just(json!("")),
            Just(json!(null)),
            Just(json!(7)),
            Just(json!(true)),
            Just(json!([{"role": "user", "content": "\u{e9}\n\"}{"}])),
            Just(json!({"custom_id": "own", "k": "v"})),
            Just(json!({"custom_id": 1})),
            Just(json!("/v1/embeddings")),
            Just(json!("/chat/completions")),
            Just(json!("POST")),
        ]
    }

    fn members(keys: &'static [&'static str]) -> impl Strategy<Value = serde_json::Map<String, Value>> {
        prop::collection::vec((prop::sample::select(keys), value()), 0..6)
            .prop_map(|members| members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    const BODY: &[&str] = &["model", "messages", "input", "prompt", "metadata", "stream", "x"];

    /// Lines of both forms, most of them nearly right.
    fn line() -> impl Strategy<Value = Value> {
        let envelope = (members(&["custom_id", "method", "url", "extra"]), members(BODY), any::<bool>());
        prop_oneof![
            members(BODY).prop_map(Value::Object),
            envelope.prop_map(|(mut envelope, mut body, complete)| {
                if complete {
                    envelope.insert("custom_id".to_owned(), json!("id"));
                    envelope.insert("url".to_owned(), json!("/v1/completions"));
                    body.insert("model".to_owned(), json!("m"));
                }
                envelope.insert("body".to_owned(), Value::Object(body));
                Value::Object(envelope)
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_sent_as_it_was_written(
            line in line(),
            pretty: bool,
            ending in prop::sample::select(vec!["a", "a.chat", "a.images", "a.responses"]),
        ) {
            let text = if pretty {
                serde_json::to_string_pretty(&line).unwrap().replace('\n', " \t")
            } else {
                line.to_string()
            };
            if let Ok(accepted) = trial::jsonl(&format!("{ending}.jsonl"), &text) {
                let [request] = accepted.requests.as_slice() else { panic!("one line, one request") };
                let written = line.get("body").unwrap_or(&line);
                let named = line.get("custom_id").or_else(|| line.pointer("/metadata/custom_id"));
                prop_assert_eq!(&request.custom_id, named.and_then(Value::as_str).unwrap_or("line-1"));
                let mut sent: Value = serde_json::from_str(request.body.get()).unwrap();
                if line.get("body").is_none() && sent.get("metadata").is_none()
                    && let Some(metadata) = written.get("metadata") {
                    sent["metadata"] = metadata.clone();
                }
                prop_assert_eq!(&sent, written);
                prop_assert_eq!(request.model.as_deref(), written.get("model").and_then(Value::as_str));
                prop_assert!(text.contains(request.body.get()) || line.get("body").is_none());
            }
        }

        #[test]
        fn no_bytes_make_it_panic(
            bytes in prop::collection::vec(prop::sample::select(b"{}[]\",:\\ \n\r\tax1\0\xff\xef=#.".as_slice()), 0..60),
            name in prop::sample::select(vec!["a.jsonl", "a.toml", "rows.toml"]),
        ) {
            let rows = "kind = \"completions\"\nmodel = \"m\"\n[input]\nfile = \"d.*\"\nprompt = \"{{ text }}\"\n";
            let trial = Trial::new().with("rows.toml", rows).with("d.csv", &bytes).with("d.jsonl", &bytes);
            let trial = if name == "rows.toml" { trial } else { trial.with(name, &bytes) };
            if let Err(report) = trial.read(name) {
                prop_assert!(report.contains("error: "));
            }
        }
    }

    #[test]
    fn a_full_disk_says_nothing_about_the_spec() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let line = r#"{"custom_id":"a","url":"/v1/embeddings","body":{"model":"m","input":"x"}}"#;
        let spec = "kind = \"chat\"\nmodel = \"m\"\n[[requests]]\nmessages = []\n";
        let trial = Trial::new().with("a.jsonl", line).with("a.toml", spec);
        for name in ["a.jsonl", "a.toml"] {
            for full_index in [true, false] {
                let (mut full, mut fine) = (Full, Vec::new());
                let data = &mut io::sink();
                let sinks = if full_index {
                    Sinks { index: &mut full, input: &mut fine, data }
                } else {
                    Sinks { index: &mut fine, input: &mut full, data }
                };
                let read = read(trial.source(name), &trial.settings, sinks);
                // A JSONL spec is its own input.
                let fails = full_index || name == "a.toml";
                assert_eq!(matches!(read, Err(Error::Sink(_))), fails, "{name}");
            }
        }
    }

    #[test]
    fn a_line_that_is_not_the_accepted_one_is_no_request() {
        let line = br#"{"custom_id":"a","url":"/v1/embeddings","body":{"model":"m","input":"x"}}"#;
        let accepted = trial::jsonl("a.jsonl", line).unwrap();
        let job = trial::job(&accepted.checked);
        assert_eq!(custom_id(&job, line, 1).unwrap(), "a");
        assert_eq!(parse_line(&job, line, 1).unwrap().model.as_deref(), Some("m"));
        let error = parse_line(&job, &line[..20], 7).unwrap_err().to_string();
        assert!(error.starts_with("input.jsonl:7:20: error: invalid JSON"), "{error}");
        assert!(parse_line(&job, b"\xff", 1).is_err());
    }
}
