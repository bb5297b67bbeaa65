//! `batchd cancel`, `pause`, `resume` and `retry`: each is answered when its effect is durable (P6).

use std::path::Path;

use super::args::JobArgs;
use super::client::Client;
use super::report::{Printer, status};
use super::{Done, Exit, block_on, load_config};
use crate::config::Keys;

/// What is to be done with a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Cancel,
    Pause,
    Resume,
    Retry,
}

impl Verb {
    /// As the control API's paths name it.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Retry => "retry",
        }
    }
}

pub(super) fn run(verb: Verb, args: &JobArgs, config: Option<&Path>, printer: &mut Printer<'_>) -> Done {
    let loaded = load_config(config, Keys::Ignored)?;
    let job = block_on(async { Client::new(&loaded.config)?.steer(&args.job, verb.as_str()).await })?;
    if args.json {
        printer.json(&job)?;
    } else {
        printer.note(&format!("{} is {}", job.name, status(&job)));
        if let Some(message) = &job.message {
            printer.note(message);
        }
    }
    Ok(Exit::Done)
}
