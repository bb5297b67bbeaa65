//! From a reply to an [`Outcome`]: whether the request is answered, refused, to come later, or to be tried
//! again.
//!
//! # Operation
//!
//! What an error means is looked up in [`ROWS`], a table: the first row that matches holds. `error.code`
//! goes before `error.type`, and both before the status, because one status can mean "wait a second" and
//! "your money is used up". `x-should-retry` then has its say: `false` turns every retry into a refusal,
//! `true` retries what only its status condemned. Neither frees a blocked key.

use std::ops::RangeInclusive;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use crate::domain::record::text_of;
use crate::domain::{
    Blocked, Endpoint, Failure, Outcome, PauseReason, RecordError, Response, Shortage, Timestamp,
};
use crate::provider::answer::{self, Body};
use crate::provider::error_body::ErrorBody;
use crate::provider::json::Members;
use crate::provider::retry_after::{rate_headers, retry_after};
use crate::provider::{HttpReply, Reply, TransportError};

/// What becomes of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Refused,
    Throttled(Shortage),
    Failed { maybe_paid: bool },
    Blocked(PauseReason),
}

const REFUSED: Class = Class::Refused;
const RATE: Class = Class::Throttled(Shortage::Requests);
const FULL: Class = Class::Throttled(Shortage::Capacity);
const LATER: Class = Class::Throttled(Shortage::Unknown);
const FAILED: Class = Class::Failed { maybe_paid: false };
const MAYBE_PAID: Class = Class::Failed { maybe_paid: true };
const QUOTA: Class = Class::Blocked(PauseReason::Quota);
const AUTH: Class = Class::Blocked(PauseReason::Auth);
const MODEL: Class = Class::Blocked(PauseReason::Model);

/// What a row looks for beside the status. Case does not count, families aside.
#[derive(Clone, Copy, Debug)]
enum Mark {
    Code(&'static str),
    /// What the code begins with: a family of codes.
    CodeStart(&'static str),
    Type(&'static str),
    /// Words that the message holds, all of them.
    Words(&'static [&'static str]),
    None,
}

/// One line of the table.
#[derive(Debug)]
struct Row {
    status: RangeInclusive<u16>,
    mark: Mark,
    class: Class,
}

const ANY: RangeInclusive<u16> = 200..=999;

const fn row(status: RangeInclusive<u16>, mark: Mark, class: Class) -> Row {
    Row { status, mark, class }
}

const fn code(code: &'static str, class: Class) -> Row {
    row(ANY, Mark::Code(code), class)
}

const fn status(status: u16, class: Class) -> Row {
    row(status..=status, Mark::None, class)
}

const fn words(status: u16, words: &'static [&'static str], class: Class) -> Row {
    row(status..=status, Mark::Words(words), class)
}

/// Every error that means more than its status says, then the statuses. Sources: OpenAI's error-code page
/// of 2026 and its SDK; what else is named is the server that was seen to say so.
static ROWS: &[Row] = &[
    // Exceptions from the codes below: these will never succeed, whatever their code promises.
    words(429, &["request too large"], REFUSED), // the limit is smaller than the request
    words(500, &["context size has been exceeded"], REFUSED), // llama.cpp
    // Codes.
    code("insufficient_quota", QUOTA),
    code("credit_balance_exhausted", QUOTA),
    code("organization_spend_limit_exceeded", QUOTA),
    code("project_spend_limit_exceeded", QUOTA),
    code("organization_usage_limit_exceeded", QUOTA),
    code("billing_hard_limit_reached", QUOTA), // with status 400
    code("billing_not_active", QUOTA),
    code("invalid_api_key", AUTH),
    code("unsupported_country_region_territory", AUTH),
    code("model_not_found", MODEL),    // with 404, 403, 400
    code("DeploymentNotFound", MODEL), // Azure
    code("context_length_exceeded", REFUSED),
    code("content_policy_violation", REFUSED),
    code("content_filter", REFUSED), // Azure
    code("moderation_blocked", REFUSED),
    // The next six also stand in a 200 of /responses whose status is `failed`.
    code("invalid_prompt", REFUSED),
    code("bio_policy", REFUSED),
    code("data_residency_mismatch", REFUSED),
    row(200..=499, Mark::CodeStart("invalid_image"), REFUSED),
    row(200..=499, Mark::CodeStart("image_"), REFUSED),
    code("rate_limit_exceeded", RATE),
    code("slow_down", FULL),
    code("server_is_overloaded", FULL),
    code("server_overloaded", FULL),
    // Types.
    row(ANY, Mark::Type("insufficient_quota"), QUOTA),
    row(ANY, Mark::Type("budget_exceeded"), QUOTA), // LiteLLM
    row(ANY, Mark::Type("no_db_connection"), AUTH), // LiteLLM, 400: a key it can't look up
    row(ANY, Mark::Code("no_db_connection"), AUTH), // the same, in other releases
    row(ANY, Mark::Type("exceed_context_size_error"), REFUSED), // llama.cpp
    row(ANY, Mark::Type("not_supported_error"), REFUSED), // llama.cpp
    row(ANY, Mark::Type("service_unavailable_error"), FULL),
    row(200..=200, Mark::Code("server_error"), MAYBE_PAID), // /responses, which began and failed
    // A server that can still say that it failed normally bills nothing; a proxy's own 500 (below) knows nothing.
    row(500..=500, Mark::Type("server_error"), FAILED),
    row(500..=500, Mark::Type("internal_server_error"), FAILED), // LiteLLM
    row(500..=500, Mark::Type("InternalServerError"), FAILED),   // vLLM
    row(500..=500, Mark::Type("api_error"), FAILED),             // Ollama
    // Messages that narrow a status.
    words(400, &["invalid model name"], MODEL),          // LiteLLM
    words(403, &["flagged"], REFUSED),                   // OpenRouter: the prompt, not the key
    words(404, &["model", "supported in the"], REFUSED), // OpenAI: this model, but not at this endpoint
    words(404, &["model", "supported in v1"], REFUSED),  // OpenAI: the same
    words(404, &["model", "not exist"], MODEL),          // OpenAI, vLLM
    words(404, &["model", "not found"], MODEL),          // Ollama, llama.cpp
    // Statuses.
    row(300..=399, Mark::None, REFUSED), // followed, a redirect would send prompt and key elsewhere
    status(401, AUTH),
    status(402, QUOTA),
    status(403, AUTH),
    status(408, MAYBE_PAID),
    status(409, FAILED),
    status(425, FAILED),
    status(429, LATER),
    status(499, MAYBE_PAID), // Ollama, nginx: the server believes that we hung up
    row(400..=499, Mark::None, REFUSED),
    status(501, REFUSED),
    status(503, FULL), // overloaded, or llama.cpp still loading its model
    status(529, FULL), // overloaded, in Anthropic's words
    row(500..=599, Mark::None, MAYBE_PAID),
];

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Under what name servers say which request this was, ours first.
const REQUEST_IDS: [HeaderName; 3] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("apim-request-id"),
    HeaderName::from_static("x-litellm-call-id"),
];

/// A longer id is no id.
const REQUEST_ID_BYTES_MAX: usize = 256;

/// What is kept of an error's body: a proxy's page, a thousand times over, must not fill the disk.
const ERROR_BODY_BYTES_MAX: usize = 64 * 1024;

/// Reads a whole reply to a request to `endpoint`.
pub(super) fn classify(endpoint: Endpoint, reply: &HttpReply, now: Timestamp) -> Reply {
    let rate = rate_headers(&reply.headers);
    let text = text_of(&reply.body);
    let is_success = (200..300).contains(&reply.status);
    let (outcome, usage) = match is_success.then(|| answer::read(endpoint, &text)) {
        Some(Body::Answer(usage)) => (Outcome::Answered(response(reply, &reply.body)), usage),
        Some(Body::Invalid(why)) => (senseless(reply.status, why), None),
        Some(Body::Error) => (error_in_success(reply, &text, now), None),
        None => (error(reply, &text, now), None),
    };
    Reply { outcome, usage, rate }
}

/// What it means that there is no whole reply.
pub(super) fn classify_transport(error: &TransportError) -> Outcome {
    let (code, maybe_paid) = match error {
        TransportError::Connect(_) | TransportError::NotPublic(_) => ("connection_error", false),
        TransportError::Timeout(_) => ("timeout", true),
        TransportError::Lost(_) => ("connection_lost", true),
        TransportError::Cut(_) => ("truncated", true),
        TransportError::File(_) => ("file_error", false),
        TransportError::TooLarge(_) => return unanswerable("too_large", error.to_string()),
    };
    Outcome::Failed(Failure {
        code,
        message: error.to_string(),
        retry_after: None,
        maybe_paid,
        response: None,
    })
}

/// Reads a reply that was to bring something else than an answer, and didn't: an error status, or a 2xx that
/// lacks what it must hold, as `lacks` says.
pub(super) fn classify_failure(reply: &HttpReply, lacks: &'static str, now: Timestamp) -> Outcome {
    let text = text_of(&reply.body);
    if !(200..300).contains(&reply.status) {
        return error(reply, &text, now);
    }
    let has_error = Members::of(&text).is_some_and(|members| members.get("error").is_some());
    if has_error { error_in_success(reply, &text, now) } else { senseless(reply.status, lacks) }
}

/// What a reply means that asks to come later, where the work may have been done all the same: a front that has lost
/// the server behind it says just that.
pub(super) fn unsure(reply: &HttpReply, code: &str, retry_after: Option<Duration>) -> Outcome {
    let kept = reply.body.get(..ERROR_BODY_BYTES_MAX).unwrap_or(&reply.body);
    Outcome::Failed(Failure {
        code: "server_error",
        message: format!("the server answered {}: {code}", reply.status),
        retry_after,
        maybe_paid: true,
        response: Some(response(reply, kept)),
    })
}

/// A reply with an error status.
fn error(reply: &HttpReply, text: &str, now: Timestamp) -> Outcome {
    let error = ErrorBody::read(text);
    let retry_after = retry_after(&reply.headers, now);
    let kept = reply.body.get(..ERROR_BODY_BYTES_MAX).unwrap_or(&reply.body);
    let response = response(reply, kept);
    match class_of(reply.status, &error, &reply.headers) {
        Class::Refused => Outcome::Refused(response),
        Class::Throttled(short_of) => {
            Outcome::Throttled { code: error.name(reply.status), retry_after, short_of }
        }
        Class::Failed { maybe_paid } => Outcome::Failed(Failure {
            code: "server_error",
            message: format!("the server answered {}: {}", reply.status, error.message),
            retry_after,
            maybe_paid,
            response: Some(response),
        }),
        Class::Blocked(reason) => {
            Outcome::Blocked(Blocked { reason, message: error.message, retry_after, response })
        }
    }
}

/// A 2xx that holds an error. Its response must never stand in a record: there it would read as an answer.
fn error_in_success(reply: &HttpReply, text: &str, now: Timestamp) -> Outcome {
    let error = ErrorBody::read(text);
    // OpenRouter and others put the status that they should have sent into the code.
    let meant = error.code.parse().ok().filter(|status| (400..600).contains(status));
    let retry_after = retry_after(&reply.headers, now);
    match class_of(meant.unwrap_or(reply.status), &error, &reply.headers) {
        Class::Throttled(short_of) => {
            Outcome::Throttled { code: error.name(reply.status), retry_after, short_of }
        }
        Class::Blocked(reason @ (PauseReason::Quota | PauseReason::Auth)) => Outcome::Blocked(Blocked {
            reason,
            message: error.message,
            retry_after,
            response: response(reply, &reply.body),
        }),
        Class::Refused | Class::Blocked(_) => unanswerable(&error.name(reply.status), error.message),
        Class::Failed { .. } => senseless(reply.status, &format!("it holds an error: {}", error.message)),
    }
}

/// Looks an error up. A 2xx without a row of its own is a failed attempt.
fn class_of(status: u16, error: &ErrorBody, headers: &HeaderMap) -> Class {
    let found = ROWS.iter().find(|row| row.matches(status, error));
    let class = found.map_or(if status < 300 { MAYBE_PAID } else { REFUSED }, |row| row.class);
    let by_status_alone = found.is_none_or(|row| matches!(row.mark, Mark::None));
    match (class, headers.get(SHOULD_RETRY).map(HeaderValue::as_bytes)) {
        (Class::Throttled(_) | Class::Failed { .. }, Some(b"false")) => REFUSED,
        (Class::Refused, Some(b"true")) if by_status_alone => FAILED,
        _ => class,
    }
}

impl Row {
    fn matches(&self, status: u16, error: &ErrorBody) -> bool {
        self.status.contains(&status)
            && match self.mark {
                Mark::Code(code) => error.code.eq_ignore_ascii_case(code),
                Mark::CodeStart(start) => error.code.starts_with(start),
                Mark::Type(kind) => error.kind.eq_ignore_ascii_case(kind),
                Mark::Words(words) => {
                    let message = error.message.to_ascii_lowercase();
                    words.iter().all(|word| message.contains(word))
                }
                Mark::None => true,
            }
    }
}

/// A 2xx from which nothing can be made. It was most likely paid for, and may be right the next time.
fn senseless(status: u16, why: &str) -> Outcome {
    Outcome::Failed(Failure {
        code: "invalid_answer",
        message: format!("the server answered {status} but gave no answer: {why}"),
        retry_after: None,
        maybe_paid: true,
        response: None,
    })
}

pub(super) fn unanswerable(code: &str, message: String) -> Outcome {
    Outcome::Unanswerable(RecordError { code: code.to_owned(), message })
}

fn response(reply: &HttpReply, body: &[u8]) -> Response {
    Response::new(reply.status, request_id(reply).to_owned(), body)
}

/// What the server calls this exchange; empty where it doesn't say.
pub(super) fn request_id(reply: &HttpReply) -> &str {
    let id = REQUEST_IDS.iter().find_map(|name| reply.headers.get(name)?.to_str().ok());
    id.filter(|id| id.len() <= REQUEST_ID_BYTES_MAX).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;

    /// Whatever it is short of.
    const THROTTLED: Class = LATER;

    fn reply(status: u16, body: &str) -> HttpReply {
        HttpReply { status, headers: HeaderMap::new(), body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    fn outcome(reply: &HttpReply) -> Outcome {
        classify(Endpoint::ChatCompletions, reply, Timestamp::from_millis(0)).outcome
    }

    fn with_header(mut reply: HttpReply, name: &'static str, value: &'static str) -> HttpReply {
        reply.headers.insert(name, HeaderValue::from_static(value));
        reply
    }

    /// The class that an outcome came from.
    fn class(outcome: &Outcome) -> Option<Class> {
        match outcome {
            Outcome::Refused(_) => Some(REFUSED),
            Outcome::Throttled { .. } => Some(THROTTLED),
            Outcome::Failed(failure) => Some(Class::Failed { maybe_paid: failure.maybe_paid }),
            Outcome::Blocked(blocked) => Some(Class::Blocked(blocked.reason)),
            Outcome::Answered(_) | Outcome::Unanswerable(_) => None,
        }
    }

    /// Replies as the servers send them, and what each means. Every row of the table has one here.
    const REPLIES: &[(u16, &str, Class)] = &[
        // OpenAI
        (
            400,
            r#"{"error":{"message":"Unknown parameter","type":"invalid_request_error","param":"x","code":"unknown_parameter"}}"#,
            REFUSED,
        ),
        (
            400,
            r#"{"error":{"message":"too long","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
            REFUSED,
        ),
        (
            400,
            r#"{"error":{"message":"no","type":"image_generation_user_error","code":"content_policy_violation"}}"#,
            REFUSED,
        ),
        (
            400,
            r#"{"error":{"message":"no","type":"image_generation_user_error","code":"moderation_blocked"}}"#,
            REFUSED,
        ),
        (400, r#"{"error":{"message":"no","code":"invalid_prompt"}}"#, REFUSED),
        (400, r#"{"error":{"message":"no","code":"bio_policy"}}"#, REFUSED),
        (400, r#"{"error":{"message":"no","code":"data_residency_mismatch"}}"#, REFUSED),
        (400, r#"{"error":{"message":"no","code":"invalid_image_format"}}"#, REFUSED),
        (400, r#"{"error":{"message":"no","code":"image_too_large"}}"#, REFUSED),
        (
            400,
            r#"{"error":{"message":"limit","type":"invalid_request_error","code":"billing_hard_limit_reached"}}"#,
            QUOTA,
        ),
        (
            401,
            r#"{"error":{"message":"Incorrect API key provided","type":"invalid_request_error","code":"invalid_api_key"}}"#,
            AUTH,
        ),
        (
            401,
            r#"{"error":{"message":"You must be a member of an organization","type":"invalid_request_error","code":null}}"#,
            AUTH,
        ),
        (
            403,
            r#"{"error":{"message":"Country not supported","code":"unsupported_country_region_territory"}}"#,
            AUTH,
        ),
        (
            403,
            r#"{"error":{"message":"Project `p` does not have access to model `m`","code":"model_not_found"}}"#,
            MODEL,
        ),
        (
            404,
            r#"{"error":{"message":"The model `m` does not exist","type":"invalid_request_error","code":"model_not_found"}}"#,
            MODEL,
        ),
        (
            404,
            r#"{"error":{"message":"The model `m` does not exist or you do not have access to it.","code":null}}"#,
            MODEL,
        ),
        (
            404,
            r#"{"error":{"message":"This is a chat model and not supported in the v1/completions endpoint.","param":"model","code":null}}"#,
            REFUSED,
        ),
        (
            404,
            r#"{"error":{"message":"This model is only supported in v1/responses and not in v1/chat/completions.","code":null}}"#,
            REFUSED,
        ),
        (
            404,
            r#"{"error":{"message":"No such File object: file-1","type":"invalid_request_error","param":"id","code":null}}"#,
            REFUSED,
        ),
        (408, r#"{"error":{"message":"timeout","code":"timeout"}}"#, MAYBE_PAID),
        (409, r#"{"error":{"message":"conflict"}}"#, FAILED),
        (413, "", REFUSED),
        (422, r#"{"error":{"message":"no"}}"#, REFUSED),
        (425, "", FAILED),
        (
            429,
            r#"{"error":{"message":"Rate limit reached","type":"tokens","param":null,"code":"rate_limit_exceeded"}}"#,
            THROTTLED,
        ),
        (
            429,
            r#"{"error":{"message":"Request too large for m on tokens per min (TPM): Limit 10, Requested 12.","type":"tokens","code":"rate_limit_exceeded"}}"#,
            REFUSED,
        ),
        (
            429,
            r#"{"error":{"message":"traffic rose too fast","type":"rate_limit_error","code":"slow_down"}}"#,
            THROTTLED,
        ),
        (429, r#"{"error":{"message":"Resource unavailable"}}"#, THROTTLED),
        (
            429,
            r#"{"error":{"message":"no money","type":"insufficient_quota","code":"insufficient_quota"}}"#,
            QUOTA,
        ),
        (429, r#"{"error":{"message":"no money","type":"insufficient_quota","code":null}}"#, QUOTA),
        (429, r#"{"error":{"message":"no money","type":"x","code":"credit_balance_exhausted"}}"#, QUOTA),
        (
            429,
            r#"{"error":{"message":"no money","type":"x","code":"organization_spend_limit_exceeded"}}"#,
            QUOTA,
        ),
        (429, r#"{"error":{"message":"no money","type":"x","code":"project_spend_limit_exceeded"}}"#, QUOTA),
        (
            429,
            r#"{"error":{"message":"no money","type":"x","code":"organization_usage_limit_exceeded"}}"#,
            QUOTA,
        ),
        (
            429,
            r#"{"error":{"message":"no money","type":"billing_not_active","code":"billing_not_active"}}"#,
            QUOTA,
        ),
        (
            500,
            r#"{"error":{"message":"The server had an error","type":"server_error","param":null,"code":null}}"#,
            FAILED,
        ),
        (
            503,
            r#"{"error":{"message":"overloaded","type":"service_unavailable_error","code":"server_is_overloaded"}}"#,
            THROTTLED,
        ),
        (
            500,
            r#"{"error":{"message":"overloaded","type":"service_unavailable_error","code":null}}"#,
            THROTTLED,
        ),
        (
            500,
            r#"{"error":{"message":"overloaded","type":"server_error","code":"server_overloaded"}}"#,
            THROTTLED,
        ),
        (503, "Service Unavailable", THROTTLED),
        // other vendors, proxies
        (302, "", REFUSED),
        (
            402,
            r#"{"error":{"message":"Insufficient Balance","type":"unknown_error","code":"invalid_request_error"}}"#,
            QUOTA,
        ),
        (403, r#"{"error":{"message":"Your input was flagged","code":403}}"#, REFUSED),
        (403, "<html>Forbidden</html>", AUTH),
        (404, "<html>404 page not found</html>", REFUSED),
        (404, r#"{"detail":"Not Found"}"#, REFUSED),
        (418, "", REFUSED),
        (500, "Internal Server Error", MAYBE_PAID),
        (502, "<html>Bad Gateway</html>", MAYBE_PAID),
        (504, "", MAYBE_PAID),
        (520, "", MAYBE_PAID),
        (529, r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#, THROTTLED),
        (600, "", REFUSED),
        // vLLM
        (
            400,
            r#"{"error":{"message":"maximum context length is 8","type":"BadRequestError","param":"input_tokens","code":400}}"#,
            REFUSED,
        ),
        (
            400,
            r#"{"object":"error","message":"no","type":"BadRequestError","param":null,"code":400}"#,
            REFUSED,
        ),
        (401, r#"{"error":"Unauthorized"}"#, AUTH),
        (
            404,
            r#"{"object":"error","message":"The model `m` does not exist.","type":"NotFoundError","code":404}"#,
            MODEL,
        ),
        (500, r#"{"error":{"message":"","type":"InternalServerError","param":null,"code":500}}"#, FAILED),
        // llama.cpp
        (503, r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#, THROTTLED),
        (
            400,
            r#"{"error":{"code":400,"message":"exceeds","type":"exceed_context_size_error","n_prompt_tokens":9,"n_ctx":8}}"#,
            REFUSED,
        ),
        (
            500,
            r#"{"error":{"code":500,"message":"Context size has been exceeded.","type":"server_error"}}"#,
            REFUSED,
        ),
        (501, r#"{"error":{"code":501,"message":"no embeddings","type":"not_supported_error"}}"#, REFUSED),
        (501, "", REFUSED),
        // Ollama
        (
            404,
            r#"{"error":{"message":"model \"m\" not found, try pulling it first","type":"not_found_error","param":null,"code":null}}"#,
            MODEL,
        ),
        (499, "", MAYBE_PAID),
        (500, r#"{"error":{"message":"runner died","type":"api_error","param":null,"code":null}}"#, FAILED),
        (
            503,
            r#"{"error":{"message":"server busy, please try again.  maximum pending requests exceeded","type":"api_error","code":null}}"#,
            THROTTLED,
        ),
        // LiteLLM
        (
            400,
            r#"{"error":{"message":"/chat/completions: Invalid model name passed in model=m","type":"None","code":"400"}}"#,
            MODEL,
        ),
        (
            400,
            r#"{"error":{"message":"Budget has been exceeded!","type":"budget_exceeded","code":"400"}}"#,
            QUOTA,
        ),
        (400, r#"{"error":{"message":"No connected db.","type":"no_db_connection","code":"400"}}"#, AUTH),
        (400, r#"{"error":{"message":"No connected db.","type":"x","code":"no_db_connection"}}"#, AUTH),
        (
            400,
            r#"{"error":{"message":"litellm.ContextWindowExceededError: …","type":"invalid_request_error","code":"400"}}"#,
            REFUSED,
        ),
        (
            429,
            r#"{"error":{"message":"litellm.RateLimitError: …","type":"throttling_error","param":null,"code":"429"}}"#,
            THROTTLED,
        ),
        (
            500,
            r#"{"error":{"message":"Connection error","type":"internal_server_error","code":"500"}}"#,
            FAILED,
        ),
        // Azure
        (429, r#"{"error":{"code":"429","message":"Please retry after 86400 seconds."}}"#, THROTTLED),
        (404, r#"{"error":{"code":"404","message":"Resource not found"}}"#, REFUSED),
        (
            404,
            r#"{"error":{"code":"DeploymentNotFound","message":"The API deployment does not exist."}}"#,
            MODEL,
        ),
        (
            400,
            r#"{"error":{"code":"OperationNotSupported","message":"The operation does not work with the model"}}"#,
            REFUSED,
        ),
        (
            400,
            r#"{"error":{"code":"content_filter","message":"filtered","innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#,
            REFUSED,
        ),
        (400, r#"{"errors":{"data":[{"code":"model_not_found","message":"no"}],"object":"list"}}"#, MODEL),
    ];

    #[test]
    fn every_reply_has_its_class() {
        for (status, body, expected) in REPLIES {
            assert_eq!(class(&outcome(&reply(*status, body))), Some(*expected), "{status} {body}");
        }
    }

    #[test]
    fn every_row_of_the_table_is_there_for_a_reply() {
        let in_200 = (200, r#"{"error":{"code":"server_error","message":"x"}}"#);
        let used = |row: &Row| {
            REPLIES.iter().map(|(status, body, _)| (*status, *body)).chain([in_200]).any(|(status, body)| {
                let error = ErrorBody::read(body);
                ROWS.iter()
                    .find(|row| row.matches(status, &error))
                    .is_some_and(|found| std::ptr::eq(found, row))
            })
        };
        for row in ROWS {
            assert!(used(row), "no reply needs {row:?}");
        }
    }

    #[test]
    fn x_should_retry_forbids_and_forces_but_frees_no_blocked_key() {
        let known = r#"{"error":{"code":"context_length_exceeded"}}"#;
        let quota = r#"{"error":{"code":"insufficient_quota"}}"#;
        for (status, body, should_retry, expected) in [
            (500, "", "false", REFUSED),
            (429, "", "false", REFUSED),
            (401, "", "false", AUTH),
            (429, quota, "false", QUOTA),
            (429, quota, "true", QUOTA),
            (401, "", "true", AUTH),
            (418, "", "true", FAILED),
            (400, "", "true", FAILED),
            (400, known, "true", REFUSED),
            (429, "", "true", THROTTLED),
            (400, "", "maybe", REFUSED),
        ] {
            let reply = with_header(reply(status, body), "x-should-retry", should_retry);
            assert_eq!(class(&outcome(&reply)), Some(expected), "{status} {body} {should_retry}");
        }
    }

    #[test]
    fn hints_and_words_reach_the_outcome() {
        let hint = Some(Duration::from_secs(7));
        let throttled = with_header(reply(429, r#"{"error":{"code":"slow_down"}}"#), "retry-after", "7");
        let Outcome::Throttled { code, retry_after, .. } = outcome(&throttled) else { panic!() };
        assert_eq!((code.as_str(), retry_after), ("slow_down", hint));
        let failed = with_header(reply(502, "bad\ngateway"), "retry-after", "7");
        let Outcome::Failed(failure) = outcome(&failed) else { panic!() };
        assert_eq!(
            (failure.message.as_str(), failure.retry_after),
            ("the server answered 502: bad\\ngateway", hint)
        );
        assert_eq!(failure.response.unwrap().status_code, 502);
        let quota = with_header(
            reply(429, r#"{"error":{"code":"insufficient_quota","message":"pay"}}"#),
            "retry-after",
            "7",
        );
        let Outcome::Blocked(blocked) = outcome(&quota) else { panic!() };
        assert_eq!((blocked.message.as_str(), blocked.retry_after), ("pay", hint));
    }

    #[test]
    fn a_success_without_an_answer_is_a_failed_attempt_that_may_have_cost() {
        for body in ["", "<html>", "{}", r#"{"choices":[]}"#, r#"{"choices":[{"message":{}}]"#] {
            let Outcome::Failed(failure) = outcome(&reply(200, body)) else { panic!("{body}") };
            assert_eq!((failure.code, failure.maybe_paid), ("invalid_answer", true), "{body}");
            assert!(failure.response.is_none(), "a 2xx in a record reads as an answer");
        }
        assert!(matches!(outcome(&reply(204, "")), Outcome::Failed(_)));
        assert!(matches!(outcome(&reply(201, r#"{"choices":[{"message":{}}]}"#)), Outcome::Answered(_)));
    }

    #[test]
    fn an_error_within_a_success_is_judged_by_its_code() {
        let error = |code: &str| reply(200, &format!(r#"{{"error":{{"code":{code},"message":"m"}}}}"#));
        for (code, expected) in [
            (r#""rate_limit_exceeded""#, THROTTLED),
            ("429", THROTTLED),
            ("\"insufficient_quota\"", QUOTA),
            ("401", AUTH),
            ("402", QUOTA),
            ("502", MAYBE_PAID),
            ("500", MAYBE_PAID),
            (r#""server_error""#, MAYBE_PAID),
            (r#""something_new""#, MAYBE_PAID),
            ("null", MAYBE_PAID),
            ("1301", MAYBE_PAID),
        ] {
            assert_eq!(class(&outcome(&error(code))), Some(expected), "{code}");
        }
        for (code, name) in [
            (r#""invalid_prompt""#, "invalid_prompt"),
            (r#""model_not_found""#, "model_not_found"),
            ("400", "200"),
        ] {
            let Outcome::Unanswerable(error) = outcome(&error(code)) else { panic!("{code}") };
            assert_eq!((error.code.as_str(), error.message.as_str()), (name, "m"));
        }
        let failed = reply(
            200,
            r#"{"status":"failed","output":[],"error":{"code":"rate_limit_exceeded","message":"m"}}"#,
        );
        let outcome = classify(Endpoint::Responses, &failed, Timestamp::from_millis(0)).outcome;
        assert_eq!(class(&outcome), Some(THROTTLED));
    }

    #[test]
    fn bodies_that_are_not_utf8_are_read_all_the_same() {
        let mut answer = br#"{"choices":[{"message":{"content":"a"}}]}"#.to_vec();
        let at = answer.iter().rposition(|byte| *byte == b'a').unwrap();
        answer[at] = 0xff;
        let reply = HttpReply { status: 200, headers: HeaderMap::new(), body: answer.into() };
        assert!(matches!(outcome(&reply), Outcome::Answered(_)), "a paid answer is lost for one bad byte");
    }

    #[test]
    fn huge_error_pages_are_cut_and_huge_answers_are_not() {
        let Outcome::Failed(failure) = outcome(&reply(502, &"x".repeat(1_000_000))) else { panic!() };
        assert_eq!(failure.response.unwrap().body.get().len(), ERROR_BODY_BYTES_MAX + 2);
        let answer = format!(r#"{{"choices":[{{"message":{{"content":"{}"}}}}]}}"#, "x".repeat(1_000_000));
        let Outcome::Answered(response) = outcome(&reply(200, &answer)) else { panic!() };
        assert_eq!(response.body.get(), answer);
    }

    #[test]
    fn the_servers_own_name_for_a_request_is_kept() {
        let id = |reply: HttpReply| {
            let Outcome::Refused(response) = outcome(&reply) else { panic!() };
            response.request_id
        };
        assert_eq!(id(reply(400, "")), "");
        let litellm = with_header(reply(400, ""), "x-litellm-call-id", "call-1");
        assert_eq!(id(litellm.clone()), "call-1");
        assert_eq!(id(with_header(litellm, "x-request-id", "req_1")), "req_1");
    }

    #[test]
    fn without_a_whole_reply_it_counts_how_far_the_request_came() {
        for (error, expected) in [
            (TransportError::Connect("refused".to_owned()), ("connection_error", false)),
            (TransportError::NotPublic("h".to_owned()), ("connection_error", false)),
            (TransportError::Timeout(Duration::from_mins(10)), ("timeout", true)),
            (TransportError::Lost("reset".to_owned()), ("connection_lost", true)),
            (TransportError::Cut("end".to_owned()), ("truncated", true)),
        ] {
            let Outcome::Failed(failure) = classify_transport(&error) else { panic!("{error:?}") };
            assert_eq!((failure.code, failure.maybe_paid), expected);
        }
        assert!(matches!(classify_transport(&TransportError::TooLarge(1)), Outcome::Unanswerable(_)));
    }
}
