//! Refusals in OpenAI's words: status, type, code, param, message.

use std::borrow::Cow;
use std::time::Duration;

use serde::Serialize;

use super::hint::Hint;

const INVALID_REQUEST: &str = "invalid_request_error";

/// A request that gets no answer.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) status: u16,
    /// Stands in the ledger as `refused:<name>`; the code wherever the API has one.
    pub(super) name: &'static str,
    /// What it says about coming back.
    pub(super) hint: Hint,
    /// For 405: the method that is taken.
    pub(super) allow: Option<&'static str>,
    error: Box<Error>,
}

/// The error object, exactly in OpenAI's shape.
#[derive(Clone, Debug, Serialize)]
struct Error {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<Cow<'static, str>>,
    code: Option<&'static str>,
}

impl Refusal {
    /// The body to send.
    pub(super) fn body(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Body<'a> {
            error: &'a Error,
        }
        serde_json::to_vec(&Body { error: &self.error }).expect("strings always serialise")
    }

    pub(super) fn new(status: u16, name: &'static str, message: String) -> Self {
        let error = Error { message, kind: INVALID_REQUEST, param: None, code: Some(name) };
        Self { status, name, hint: Hint::None, allow: None, error: Box::new(error) }
    }

    pub(super) fn kind(mut self, kind: &'static str) -> Self {
        self.error.kind = kind;
        self
    }

    pub(super) fn without_code(mut self) -> Self {
        self.error.code = None;
        self
    }

    pub(super) fn param(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.error.param = Some(param.into());
        self
    }

    /// The same, and what it says about coming back only if it may.
    pub(super) fn hinting(self, may: bool) -> Self {
        Self { hint: if may { self.hint } else { Hint::None }, ..self }
    }

    fn after(self, wait: Duration) -> Self {
        Self { hint: Hint::Both(wait), ..self }
    }

    pub(super) fn missing_key() -> Self {
        let message = "You didn't provide an API key. You need to provide your API key in an Authorization \
                       header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).";
        Self::new(401, "missing_api_key", message.to_owned()).without_code()
    }

    pub(super) fn wrong_key() -> Self {
        let message = "Incorrect API key provided. You can choose the key of this stand-in server when you \
                       start it.";
        Self::new(401, "invalid_api_key", message.to_owned())
    }

    pub(super) fn unknown_url(method: &str, path: &str) -> Self {
        Self::new(404, "unknown_url", format!("Invalid URL ({method} {path})")).without_code()
    }

    pub(super) fn wrong_method(method: &str, path: &str, allow: &'static str) -> Self {
        let message = format!("Not allowed to {method} on {path}. (HINT: Perhaps you meant to use {allow}?)");
        Self { allow: Some(allow), ..Self::new(405, "method_not_supported", message) }
    }

    pub(super) fn model_not_found(model: &str) -> Self {
        let message = format!("The model `{model}` does not exist or you do not have access to it.");
        Self::new(404, "model_not_found", message)
    }

    pub(super) fn bad_json(error: &serde_json::Error) -> Self {
        let message = format!(
            "We could not parse the JSON body of your request: {error}. The OpenAI API expects a JSON payload."
        );
        Self::new(400, "bad_json", message).without_code()
    }

    pub(super) fn no_object() -> Self {
        let message = "The body of your request is not a JSON object. The OpenAI API expects a JSON payload.";
        Self::new(400, "bad_json", message.to_owned()).without_code()
    }

    /// Of `POST /_sim/faults`.
    pub(super) fn bad_changes(error: &serde_json::Error) -> Self {
        Self::new(400, "invalid_changes", format!("These are no changes that can be made: {error}."))
    }

    /// Of `GET /_sim/ledger?fingerprint=`.
    pub(super) fn bad_fingerprint() -> Self {
        let message = "Invalid 'fingerprint': expected the 64 hex digits of a body's BLAKE3.".to_owned();
        Self::invalid_value("fingerprint", message)
    }

    pub(super) fn body_too_large(bytes_max: usize) -> Self {
        let message = format!("The body of your request is larger than {bytes_max} bytes.");
        Self::new(413, "request_too_large", message)
    }

    pub(super) fn missing_model() -> Self {
        Self::new(400, "missing_required_parameter", "you must provide a model parameter".to_owned())
            .param("model")
    }

    pub(super) fn missing(param: impl Into<Cow<'static, str>>) -> Self {
        let param = param.into();
        let message = format!("Missing required parameter: '{param}'.");
        Self::new(400, "missing_required_parameter", message).param(param)
    }

    pub(super) fn invalid_type(param: impl Into<Cow<'static, str>>, expected: &str, found: &str) -> Self {
        let param = param.into();
        let message =
            format!("Invalid type for '{param}': expected {expected}, but got {} instead.", json_type(found));
        Self::new(400, "invalid_type", message).param(param)
    }

    pub(super) fn invalid_value(param: impl Into<Cow<'static, str>>, message: String) -> Self {
        Self::new(400, "invalid_value", message).param(param)
    }

    pub(super) fn stream_options_without_stream() -> Self {
        let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
        Self::invalid_value("stream_options", message.to_owned())
    }

    pub(super) fn unsupported_stream() -> Self {
        let message = "Unsupported value: 'stream' does not support true for this request.";
        Self::new(400, "unsupported_value", message.to_owned()).param("stream")
    }

    pub(super) fn quota() -> Self {
        let message = "You exceeded your current quota, please check your plan and billing details. For more \
                       information on this error, read the docs: \
                       https://platform.openai.com/docs/guides/error-codes/api-errors.";
        Self::new(429, "insufficient_quota", message.to_owned()).kind("insufficient_quota")
    }

    pub(super) fn requests_per_minute(model: &str, limit: u64, wait: Duration) -> Self {
        let wait_text = go_duration(wait);
        let message = format!(
            "Rate limit reached for {model} in organization org-sim on requests per min (RPM): Limit {limit}, \
             Used {limit}, Requested 1. Please try again in {wait_text}."
        );
        Self::new(429, "rate_limit_exceeded", message).kind("requests").after(wait)
    }

    pub(super) fn tokens_per_minute(model: &str, limit: u64, cost: u64, wait: Duration) -> Self {
        let wait_text = go_duration(wait);
        let message = format!(
            "Rate limit reached for {model} in organization org-sim on tokens per min (TPM): Limit {limit}, \
             Requested {cost}. Please try again in {wait_text}."
        );
        Self::new(429, "rate_limit_exceeded", message).kind("tokens").after(wait)
    }

    /// More than a whole minute's tokens: no waiting helps.
    pub(super) fn larger_than_limit(model: &str, limit: u64, cost: u64) -> Self {
        let message = format!(
            "Request too large for {model} in organization org-sim on tokens per min (TPM): Limit {limit}, \
             Requested {cost}. The input or output tokens must be reduced in order to run successfully."
        );
        Self::new(429, "rate_limit_exceeded", message).kind("tokens")
    }

    pub(super) fn overloaded() -> Self {
        let message = "The server is currently overloaded with other requests. Sorry about that! You can \
                       retry your request.";
        Self::new(503, "server_is_overloaded", message.to_owned()).kind("service_unavailable_error")
    }

    pub(super) fn slow_down(wait: Duration) -> Self {
        let message = "Too many requests are worked on at a time. Please slow down.";
        Self::new(429, "slow_down", message.to_owned()).kind("rate_limit_error").after(wait)
    }

    /// A 429 out of the blue: the fault.
    pub(super) fn rate_limit() -> Self {
        Self::new(429, "rate_limit_exceeded", "Rate limit reached for requests.".to_owned()).kind("requests")
    }

    pub(super) fn request_timeout() -> Self {
        Self::new(408, "request_timeout", "Request timed out.".to_owned()).kind("timeout").without_code()
    }

    pub(super) fn conflict() -> Self {
        let message = "The resource was updated by another process. Please try your request again.";
        Self::new(409, "conflict", message.to_owned())
    }

    pub(super) fn server_error() -> Self {
        let message = "The server had an error while processing your request. Sorry about that!";
        Self::new(500, "server_error", message.to_owned()).kind("server_error").without_code()
    }
}

/// What a JSON text is, by its first byte.
fn json_type(raw: &str) -> &'static str {
    match raw.as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'[') => "an array",
        Some(b'{') => "an object",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ if raw.contains(['.', 'e', 'E']) => "a decimal number",
        _ => "an integer",
    }
}

/// As Go prints durations, which is how OpenAI writes `x-ratelimit-reset-*`: `12ms`, `1s`, `6m0s`, `1h0m0s`.
/// Rounded up to a whole millisecond.
pub(super) fn go_duration(time: Duration) -> String {
    let millis = time.as_nanos().div_ceil(1_000_000);
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, millis) = (millis / 60_000, millis % 60_000);
    let fraction = format!(".{:03}", millis % 1000);
    let seconds = format!("{}{}s", millis / 1000, fraction.trim_end_matches('0').trim_end_matches('.'));
    match (minutes / 60, minutes % 60) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_writes_them() {
        let written = |millis| go_duration(Duration::from_millis(millis));
        assert_eq!(written(0), "0ms");
        assert_eq!(written(547), "547ms");
        assert_eq!(written(1_000), "1s");
        assert_eq!(written(172_800), "2m52.8s");
        assert_eq!(written(360_000), "6m0s");
        assert_eq!(written(3_600_000), "1h0m0s");
        assert_eq!(go_duration(Duration::from_nanos(1)), "1ms");
    }

    #[test]
    fn bodies_have_exactly_the_four_members() {
        let body: serde_json::Value = serde_json::from_slice(&Refusal::wrong_key().body()).unwrap();
        let keys: Vec<&String> = body["error"].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["code", "message", "param", "type"]);
        assert_eq!(body["error"]["code"], "invalid_api_key");
        let body: serde_json::Value = serde_json::from_slice(&Refusal::missing("input").body()).unwrap();
        assert_eq!(body["error"]["param"], "input");
    }
}
