//! What OpenAI says about files, uploads, models and fine-tunes that it refuses.

use std::borrow::Cow;

use crate::simulate::refusal::Refusal;

impl Refusal {
    pub(super) fn bad_form(what: &str) -> Self {
        let message = format!("We could not parse the multipart form data of your request: {what}.");
        Self::new(400, "bad_form", message).without_code()
    }

    pub(super) fn unknown_parameter(param: impl Into<Cow<'static, str>>) -> Self {
        let param = param.into();
        Self::new(400, "unknown_parameter", format!("Unknown parameter: '{param}'.")).param(param)
    }

    /// Of a form: a member that must be there.
    pub(super) fn missing_property(name: &str) -> Self {
        Self::new(400, "missing_property", format!("'{name}' is a required property")).without_code()
    }

    pub(super) fn bad_purpose(found: &str, purposes: &[&str]) -> Self {
        let known: Vec<String> = purposes.iter().map(|purpose| format!("'{purpose}'")).collect();
        let message = format!("'{found}' is not one of [{}] - 'purpose'", known.join(", "));
        Self::new(400, "bad_purpose", message).without_code()
    }

    pub(in crate::simulate) fn file_too_large() -> Self {
        Self::new(400, "file_too_large", "File is too large.".to_owned()).without_code()
    }

    pub(super) fn not_jsonl(filename: &str) -> Self {
        let message =
            format!("Invalid file format for Fine-Tuning API. Must be .jsonl, but got '{filename}'.");
        Self::new(400, "not_jsonl", message).without_code()
    }

    /// There is no file or upload of this id.
    pub(super) fn no_such(what: &str, id: &str) -> Self {
        Self::new(404, "not_found", format!("No such {what} object: {id}")).without_code().param("id")
    }

    /// What has ended, or has not begun, can't be changed like this.
    pub(super) fn wrong_status(what: &str, id: &str, status: &str) -> Self {
        let message = format!("{what} {id} has the status '{status}', which does not allow this.");
        Self::new(400, "wrong_status", message).without_code()
    }

    pub(super) fn no_part(part: &str, upload: &str) -> Self {
        let message = format!("Part {part} is no part of upload {upload}, or is named twice.");
        Self::invalid_value("part_ids", message)
    }

    pub(super) fn wrong_bytes(expected: u64, found: usize) -> Self {
        let message = format!("The upload was said to have {expected} bytes, but its parts have {found}.");
        Self::invalid_value("bytes", message)
    }

    pub(super) fn no_fine_tune(id: &str) -> Self {
        Self::new(404, "fine_tune_not_found", format!("Could not find fine tune: {id}")).param("fine_tune_id")
    }

    pub(super) fn no_training_file(id: &str, param: &'static str) -> Self {
        let name = if param == "training_file" { "invalid_training_file" } else { "invalid_validation_file" };
        Self::new(400, name, format!("invalid {param}: {id}")).param(param)
    }

    pub(super) fn wrong_purpose(id: &str, purpose: &str, param: &'static str) -> Self {
        let message = format!("Invalid file purpose: {id} has '{purpose}', expected 'fine-tune'.");
        Self::new(400, "invalid_file_purpose", message).param(param)
    }

    pub(super) fn file_not_ready(id: &str, param: &'static str) -> Self {
        let message = format!(
            "File '{id}' is still being processed and is not ready to be used for fine-tuning. Please try \
             again later."
        );
        Self::new(400, "file_not_ready", message).without_code().param(param)
    }

    pub(super) fn not_tunable(model: &str) -> Self {
        let message = format!("Model {model} is not available for fine-tuning or does not exist.");
        Self::new(400, "model_not_available", message).param("model")
    }

    pub(super) fn not_your_model(model: &str) -> Self {
        let message = format!("You have insufficient permissions to delete the model '{model}'.");
        Self::new(403, "insufficient_permissions", message).without_code()
    }

    pub(super) fn chat_model() -> Self {
        let message = "This is a chat model and not supported in the v1/completions endpoint. Did you mean to \
                       use v1/chat/completions?";
        Self::new(404, "chat_model", message.to_owned()).without_code().param("model")
    }

    pub(super) fn no_chat_model() -> Self {
        let message = "This is not a chat model and thus not supported in the v1/chat/completions endpoint. Did \
                       you mean to use v1/completions?";
        Self::new(404, "no_chat_model", message.to_owned()).without_code().param("model")
    }
}
