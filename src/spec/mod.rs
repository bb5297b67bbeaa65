//! Job specs: from the file that a user drops to validated requests.
//!
//! [`read`] goes over a whole spec, streaming, before anything of it is sent: it reports every problem
//! with its place ([`Report`]), and writes the job's line index (and, for TOML specs, the rendered
//! requests) as it goes. [`parse_line`] reads one request again when its turn comes.

mod cron;
mod document;
mod files;
mod ids;
mod index;
pub mod json;
mod jsonl;
mod line;
mod lines;
mod name;
mod objects;
pub mod params;
mod pick;
mod problem;
mod render;
mod rows;
mod schema;
mod template;
#[cfg(test)]
mod trial;

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use crate::diag::{Diagnostic, Report, Severity};
use crate::domain::{Job, JobName, JobSettings, Kind, QueueName, Request};
use crate::spec::problem::{Problem, Spot};

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
    pub total: u32,
    /// BLAKE3 in hex over the spec and every byte of its data.
    pub content_hash: String,
    /// Warnings only.
    pub findings: Report,
}

/// Why a spec was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The spec is refused; the report has at least one error.
    #[error("{0}")]
    Rejected(Report),
    /// A sink failed: nothing is said about the spec.
    #[error("write the job's files: {0}")]
    Sink(#[source] std::io::Error),
}

/// Validates a whole spec and writes what a job needs of it.
pub fn read(source: Source, settings: &Settings, mut sinks: Sinks<'_>) -> Result<Checked, Error> {
    match source.form {
        Form::Jsonl => jsonl::read(source, settings, &mut sinks),
        Form::Toml => render::read(&source, settings, &mut sinks),
    }
}

/// Reads one line of an accepted job's input again, when its turn comes. Line `number` as in the file.
///
/// An error means that the line is not the one that was accepted.
pub fn parse_line(job: &Job, line: &[u8], number: u32) -> Result<Request, Diagnostic> {
    parsed(job, line, number).map(line::Parsed::into_request)
}

/// The `custom_id` of one line of an accepted job's input, without the rest of it.
pub fn custom_id(job: &Job, line: &[u8], number: u32) -> Result<String, Diagnostic> {
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
