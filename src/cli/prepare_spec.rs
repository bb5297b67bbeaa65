//! The job spec that `batchd prepare` proposes for what it has written.

use std::path::Path;

use toml::Value;

use crate::training::Format;
use crate::training::prepare::Classes;

/// Cheap, and with a fine-tuning interface.
pub(super) const CHAT_MODEL: &str = "gpt-4.1-mini-2025-04-14";
/// The default of the legacy interface.
pub(super) const PAIRS_MODEL: &str = "curie";

/// What is trained on.
#[derive(Debug)]
pub(super) struct Proposal<'a> {
    /// The file that was prepared, for the other command that there is.
    pub(super) input: &'a Path,
    pub(super) training: &'a Path,
    pub(super) validation: Option<&'a Path>,
    pub(super) classes: Option<&'a Classes>,
    pub(super) separator: Option<&'a str>,
    pub(super) ending: Option<&'a str>,
}

impl Proposal<'_> {
    pub(super) fn to_toml(&self, format: Format) -> String {
        match format {
            Format::Pairs => self.pairs(),
            Format::Chat => self.jobs(""),
            Format::Preferences => self.jobs("method = { type = \"dpo\" }\n"),
        }
    }

    fn jobs(&self, parameters: &str) -> String {
        let training = file_name(self.training);
        format!(
            "kind = \"fine_tune\"\nmodel = \"{CHAT_MODEL}\"\n\n[fine_tune]\ntraining_file = {training}\n{parameters}"
        )
    }

    fn pairs(&self) -> String {
        let mut lines = Vec::new();
        if let Some(separator) = self.separator {
            lines.push(format!("# Use the model with prompts that end with {}.", in_comment(separator)));
        }
        if let Some(ending) = self.ending {
            lines.push(format!("# Use the model with stop = [{}].", in_comment(ending)));
        }
        lines.push(format!(
            "kind = \"fine_tune\"\nmodel = \"{PAIRS_MODEL}\"\n\n[fine_tune]\napi = \"legacy\""
        ));
        lines.push(format!("training_file = {}", file_name(self.training)));
        if let Some(validation) = self.validation {
            lines.push(format!("validation_file = {}", file_name(validation)));
            lines.push("compute_classification_metrics = true".to_owned());
        }
        match self.classes.filter(|_| self.validation.is_some()) {
            Some(Classes::Many(count)) => lines.push(format!("classification_n_classes = {count}")),
            Some(Classes::Positive(class)) => {
                lines.push(format!("classification_positive_class = {}", quoted(class)));
            }
            None => {}
        }
        let input = in_comment(&self.input.to_string_lossy());
        lines.push(
            "# With api = \"jobs\", babbage-002 and davinci-002 take this file, too. For a chat model:"
                .to_owned(),
        );
        lines.push(format!("# batchd prepare {input} --to chat"));
        lines.join("\n") + "\n"
    }
}

/// Specs name data from the folder that they lie in.
fn file_name(path: &Path) -> String {
    quoted(&path.file_name().unwrap_or_default().to_string_lossy())
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// On one line whatever it holds.
fn in_comment(text: &str) -> String {
    format!("\"{}\"", text.escape_debug())
}
