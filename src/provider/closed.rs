//! Providers that fine-tune no more: how such a refusal is known, and what a person is told.

use crate::domain::record::text_of;
use crate::domain::{Outcome, Response, TuningApi};
use crate::provider::Provider;
use crate::provider::error_body::ErrorBody;

/// Words of those who close something.
const CLOSING: [&str; 11] = [
    "no longer",
    "not available",
    "unavailable",
    "not supported",
    "deprecat",
    "disabled",
    "closed",
    "discontinued",
    "not eligible",
    "sunset",
    "retired",
];

/// What a 404 speaks of that is about the request, not about the endpoint.
const OBJECTS: [&str; 3] = ["model", "file", "deployment"];

impl Provider {
    /// A sentence for a person, if `response`, to the creation of a fine-tune, says that the provider does not
    /// fine-tune, or no more: what was refused, and who still does.
    pub fn why_no_fine_tuning(&self, api: TuningApi, response: &Response) -> Option<String> {
        let body = ErrorBody::read(&body_text(response));
        if !is_closed(response.status_code, &body) {
            return None;
        }
        let words = if body.message.is_empty() { String::new() } else { format!(": {}", body.message) };
        let advice = match api {
            TuningApi::Jobs => {
                "OpenAI closes its fine-tuning (to new organisations since 2026-05-07, to those without recent use of \
                 a fine-tuned model since 2026-07-02, to everybody from 2027-01-06); Azure OpenAI and compatible \
                 servers still have it"
            }
            TuningApi::Legacy => {
                "OpenAI ended this interface on 2024-01-04, and `api = \"jobs\"` took its place; some compatible \
                 servers still have it"
            }
        };
        Some(format!(
            "`{}` refused `{}` with {}{words} ({advice})",
            self.name(),
            api.path(),
            response.status_code
        ))
    }
}

/// A refusal to fine-tune is none of the key, even where it has the status of one: the queue's other requests may
/// go on.
pub(super) fn not_the_key(outcome: Outcome) -> Outcome {
    if let Outcome::Blocked(blocked) = &outcome
        && is_closed(blocked.response.status_code, &ErrorBody::read(&body_text(&blocked.response)))
    {
        return Outcome::Refused(blocked.response.clone());
    }
    outcome
}

fn is_closed(status: u16, body: &ErrorBody) -> bool {
    let message = body.message.to_lowercase();
    let speaks_of = |words: &[&str]| words.iter().any(|word| message.contains(word));
    let speaks_of_tuning = speaks_of(&["fine-tun", "fine tun", "finetun", "training"]);
    match status {
        405 | 410 | 501 => true,
        404 => {
            speaks_of_tuning && speaks_of(&CLOSING) || !speaks_of(&OBJECTS) && body.code != "model_not_found"
        }
        400 | 403 => speaks_of_tuning && speaks_of(&CLOSING),
        _ => false,
    }
}

/// The body as the server wrote it; what is no JSON stands in a record as a string.
fn body_text(response: &Response) -> String {
    let json = response.body.get();
    serde_json::from_str::<String>(json).unwrap_or_else(|_| text_of(json.as_bytes()).into_owned())
}
