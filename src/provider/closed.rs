//! Providers that fine-tune no more: how such a refusal is known, and what a person is told.

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

/// What a refusal speaks of that is about what was asked for, not about the endpoint.
const OBJECTS: [&str; 3] = ["model", "file", "deployment"];

impl Provider {
    /// A sentence for a person, if `response`, to the creation of a fine-tune, says that the provider does not
    /// fine-tune, or no more: what was refused, and who still does.
    pub fn why_no_fine_tuning(&self, api: TuningApi, response: &Response) -> Option<String> {
        let body = ErrorBody::of(response);
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
            "`{}` refused `{}` with {}{words}; {advice}",
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
        && let Some(response) = &blocked.response
        && is_closed(response.status_code, &ErrorBody::of(response))
    {
        return Outcome::Refused(response.clone());
    }
    outcome
}

fn is_closed(status: u16, body: &ErrorBody) -> bool {
    let said = format!("{} {}", body.message, body.code.replace('_', " ")).to_lowercase();
    let speaks_of = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let closes = speaks_of(&["fine-tun", "fine tun", "finetun"]) && speaks_of(&CLOSING);
    match status {
        405 | 410 | 501 => true,
        403 => closes,
        400 => closes && !speaks_of(&OBJECTS),
        404 => closes || !speaks_of(&OBJECTS),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::testing::provider_at;

    fn why(api: TuningApi, status: u16, body: &str) -> Option<String> {
        let response = Response::new(status, String::new(), body.as_bytes());
        provider_at("http://h/v1").why_no_fine_tuning(api, &response)
    }

    #[test]
    fn who_is_refused_reads_what_was_refused_since_when_and_who_still_does_it() {
        let body = r#"{"error":{"message":"Fine-tuning is no longer available","code":"forbidden"}}"#;
        insta::assert_snapshot!(why(TuningApi::Jobs, 403, body).unwrap(), @"`test` refused `/fine_tuning/jobs` with 403: Fine-tuning is no longer available; OpenAI closes its fine-tuning (to new organisations since 2026-05-07, to those without recent use of a fine-tuned model since 2026-07-02, to everybody from 2027-01-06); Azure OpenAI and compatible servers still have it");
        insta::assert_snapshot!(why(TuningApi::Legacy, 404, "Not Found").unwrap(), @r#"`test` refused `/fine-tunes` with 404: Not Found; OpenAI ended this interface on 2024-01-04, and `api = "jobs"` took its place; some compatible servers still have it"#);
        insta::assert_snapshot!(why(TuningApi::Legacy, 405, "").unwrap(), @r#"`test` refused `/fine-tunes` with 405; OpenAI ended this interface on 2024-01-04, and `api = "jobs"` took its place; some compatible servers still have it"#);
    }

    #[test]
    fn refusals_of_a_model_a_file_or_a_key_are_other_refusals() {
        for (status, body, expected) in [
            (404, r#"{"error":{"message":"Invalid URL (POST /v1/fine-tunes)"}}"#, true),
            (404, r#"{"detail":"Not Found"}"#, true),
            (404, "", true),
            (410, "", true),
            (501, r#"{"error":{"type":"not_supported_error","message":"no"}}"#, true),
            (403, r#"{"error":{"message":"Forbidden","code":"fine_tuning_disabled"}}"#, true),
            (400, r#"{"error":{"message":"Fine-tuning is not available for your organization"}}"#, true),
            (404, r#"{"error":{"message":"The model `m` does not exist","code":"model_not_found"}}"#, false),
            (404, r#"{"error":{"message":"No such File object: file-1"}}"#, false),
            (400, r#"{"error":{"message":"Model m is not available for fine-tuning"}}"#, false),
            (400, r#"{"error":{"message":"invalid n_epochs"}}"#, false),
            (403, r#"{"error":{"message":"IP not authorised"}}"#, false),
            (401, r#"{"error":{"message":"fine-tuning is closed"}}"#, false),
            (429, "", false),
            (500, "", false),
        ] {
            assert_eq!(why(TuningApi::Jobs, status, body).is_some(), expected, "{status} {body}");
        }
    }
}
