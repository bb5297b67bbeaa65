//! Training data for fine-tunes: whether a file is what the provider takes, and what training on it comes to.
//!
//! [`check`] reads a file to its end, line by line: errors would make the provider refuse it, warnings cost quality or
//! money, notes are worth knowing. Memory is bounded: a line, and 16 bytes for each of the first two million examples,
//! by which equal ones are found.
//!
//! # Formats
//!
//! ```text
//! {"prompt": "1+1=? ->", "completion": " 2\n"}                                       pairs
//! {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", …}]}         chat
//! {"input": {"messages": […]}, "preferred_output": […], "non_preferred_output": […]}  preferences
//! ```
//!
//! The first line says which of them a file has; all others must be the same.

mod affixes;
mod chat;
mod fingerprints;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod message;
mod pairs;
mod preferences;
pub mod prepare;
mod survey;
mod tap;
mod tokens;

use std::fmt;
use std::io::{self, Read, Write};

use serde::Serialize;

use crate::diag::{Diagnostic, Report};
use crate::reading::lines::Lines;
use crate::reading::objects;

use self::survey::Survey;
use self::tap::Tap;

pub use self::fingerprints::Fingerprints;
pub use self::tokens::{Encoding, Tokenizer, context_of, encoding_for};

/// Bytes of a training file that providers take.
pub const FILE_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Examples below which the `/fine_tuning/jobs` interface refuses a file.
const EXAMPLES_MIN: u64 = 10;

/// What a line of a training file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A prompt and its completion.
    Pairs,
    /// A conversation.
    Chat,
    /// A conversation with an answer that is preferred to another (DPO).
    Preferences,
}

impl fmt::Display for Format {
    /// As in "line 1 is a …".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pairs => "prompt/completion pair",
            Self::Chat => "chat example",
            Self::Preferences => "DPO example",
        })
    }
}

/// What a fine-tune takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The legacy interface.
    Pairs,
    /// `/fine_tuning/jobs`, method supervised.
    Chat,
    /// The same for `davinci-002` and `babbage-002`.
    PairsOrChat,
    /// Method dpo.
    Preferences,
    /// Method reinforcement: conversations that end where the model is to answer, with whatever its grader reads.
    Prompts,
    /// Whatever the file is, to look at it.
    Any,
}

impl Expected {
    /// What supervised training of `model` by `/fine_tuning/jobs` takes.
    pub fn supervised(model: &str) -> Self {
        let base = model.strip_prefix("ft:").unwrap_or(model);
        if ["davinci-002", "babbage-002"].iter().any(|old| base.starts_with(old)) {
            Self::PairsOrChat
        } else {
            Self::Chat
        }
    }

    const fn takes(self, format: Format) -> bool {
        match self {
            Self::Pairs => matches!(format, Format::Pairs),
            Self::Chat | Self::Prompts => matches!(format, Format::Chat),
            Self::PairsOrChat => matches!(format, Format::Pairs | Format::Chat),
            Self::Preferences => matches!(format, Format::Preferences),
            Self::Any => true,
        }
    }
}

/// What a file is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    pub expected: Expected,
    /// The base model, for token counts; empty where there is none yet.
    pub model: &'a str,
    /// As the spec says; none = the provider's choice, which is guessed.
    pub epochs: Option<u32>,
    /// Bytes.
    pub line_max: u64,
    /// Those of the training file, to check a validation file against them.
    pub training: Option<&'a Fingerprints>,
}

/// What is known of a file after its last line.
#[derive(Debug)]
pub struct Checked {
    /// In the order of the file. What has errors must not be uploaded.
    pub report: Report,
    /// None if no line could be read as an example.
    pub figures: Option<Figures>,
    /// For the check of the validation file.
    pub fingerprints: Fingerprints,
}

/// What training on a file comes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Figures {
    pub format: Format,
    pub examples: u64,
    /// Of all examples, once.
    pub tokens: u64,
    /// The model's vocabulary is not known, or there are tools or images, which are counted roughly.
    pub tokens_estimated: bool,
    /// Tokens of the longest example.
    pub longest: u64,
    /// Tokens of an example that are trained on; none = not known for this model.
    pub context: Option<u32>,
    /// Examples that are longer, and cut there.
    pub cut: u64,
    pub epochs: u32,
    /// The spec does not say how many epochs.
    pub epochs_guessed: bool,
    /// What is paid for: the tokens of each example, as far as they are trained on, in each epoch.
    pub billed_tokens: u64,
    /// What every prompt of a file of pairs ends with, if it is recognised.
    pub separator: Option<String>,
    /// What every completion of a file of pairs ends with, if it is recognised.
    pub ending: Option<String>,
}

/// Checks a whole file, called `file` in what is found. Every byte that is read goes into `copy`, too: it is the whole
/// file if nothing is an error.
///
/// Fails only if `copy` can't be written; a file that can't be read is a finding.
pub fn check(
    input: impl Read,
    file: &str,
    rules: &Rules<'_>,
    copy: Option<&mut dyn Write>,
) -> io::Result<Checked> {
    let mut tap = Tap::new(input, copy, FILE_BYTES_MAX);
    let mut report = Report::default();
    let mut survey = Survey::new(file, rules);
    let mut lines = Lines::new(&mut tap, rules.line_max);
    objects::each_exactly(&mut lines, file, &mut report, &mut |object, report| survey.take(object, report));
    if let Some(error) = tap.failed() {
        return Err(error);
    }
    if tap.is_over() {
        let message = format!("the file has more than {} MiB", FILE_BYTES_MAX / (1024 * 1024));
        report.push(
            Diagnostic::error(file, 0, 0, message).hint("take fewer examples: good ones count for more"),
        );
    }
    let (figures, fingerprints) = survey.finish(&mut report);
    report.sort();
    Ok(Checked { report, figures, fingerprints })
}

/// How many epochs a provider is likely to choose for so many examples.
fn epochs_for(examples: u64) -> u32 {
    const USUAL: u64 = 3;
    let epochs = if examples * USUAL < 100 {
        (100 / examples.max(1)).min(25)
    } else if examples * USUAL > 25_000 {
        (25_000 / examples).max(1)
    } else {
        USUAL
    };
    u32::try_from(epochs).unwrap_or(1)
}

#[cfg(test)]
mod tests;
