//! From a reply to an [`Outcome`]: whether the request is answered, refused, to come later, or to be tried
//! again.
//!
//! # Operation
//!
//! What an error means is looked up in a table ([`outcomes`](super::outcomes)). `x-should-retry` then has its say:
//! `false` turns every retry into a refusal, `true` retries what only its status condemned. Neither frees a blocked
//! key.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use crate::domain::record::text_of;
use crate::domain::{Blocked, Endpoint, Failure, Outcome, PauseReason, RecordError, Response, Timestamp};
use crate::provider::answer::{self, Body};
use crate::provider::error_body::ErrorBody;
use crate::provider::json::Members;
use crate::provider::outcomes::{Class, FAILED, Meaning, REFUSED, look_up};
use crate::provider::retry_after::{rate_headers, retry_after};
use crate::provider::{HttpReply, Reply, TransportError};

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
    let (outcome, usage) = if (200..300).contains(&reply.status) {
        // Its body is gone over once here; all that is looked up in it is found from there.
        let response = response(reply, &reply.body);
        match answer::read(endpoint, &response.body) {
            Body::Answer(usage) => (Outcome::Answered(response), usage),
            Body::Invalid(why) => (senseless(reply.status, why), None),
            Body::Error => (classify_event(reply, now), None),
        }
    } else {
        (error(reply, &text_of(&reply.body), now), None)
    };
    Reply { outcome, usage, rate }
}

/// Reads a 2xx that holds an error, and nothing that was to be an answer.
pub(super) fn classify_event(reply: &HttpReply, now: Timestamp) -> Outcome {
    error_in_success(reply, &text_of(&reply.body), now)
}

/// What it means that there is no whole reply.
pub(super) fn classify_transport(error: &TransportError) -> Outcome {
    let (code, maybe_paid) = match error {
        TransportError::Connect(_) | TransportError::NotPublic(_) => ("connection_error", false),
        TransportError::Timeout(_) | TransportError::Silent(_) | TransportError::Stalled(_) => {
            ("timeout", true)
        }
        TransportError::Lost(_) => ("connection_lost", true),
        TransportError::Cut(_) => ("truncated", true),
        TransportError::File(_) => ("file_error", false),
        TransportError::TooLarge(_) => return unanswerable("too_large", error.to_string()),
        TransportError::Certificate(_) => {
            return Outcome::Blocked(Blocked {
                reason: PauseReason::Outage,
                message: error.to_string(),
                retry_after: None,
                response: None,
            });
        }
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
        Class::Blocked(reason) => Outcome::Blocked(Blocked {
            reason,
            message: error.message,
            retry_after,
            response: Some(response),
        }),
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
            response: Some(response(reply, &reply.body)),
        }),
        Class::Refused | Class::Blocked(_) => unanswerable(&error.name(reply.status), error.message),
        Class::Failed { .. } => senseless(reply.status, &format!("it holds an error: {}", error.message)),
    }
}

/// What the table says, and then `x-should-retry`.
fn class_of(status: u16, error: &ErrorBody, headers: &HeaderMap) -> Class {
    let Meaning { class, by_status_alone } = look_up(status, error);
    match (class, headers.get(SHOULD_RETRY).map(HeaderValue::as_bytes)) {
        (Class::Throttled(_) | Class::Failed { .. }, Some(b"false")) => REFUSED,
        (Class::Refused, Some(b"true")) if by_status_alone => FAILED,
        _ => class,
    }
}

/// A 2xx from which nothing can be made. It was most likely paid for, and may be right the next time.
pub(super) fn senseless(status: u16, why: &str) -> Outcome {
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
    use crate::provider::outcomes::{AUTH, LATER, MAYBE_PAID, QUOTA, REQUESTS};

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
            Outcome::Throttled { short_of, .. } => Some(Class::Throttled(*short_of)),
            Outcome::Failed(failure) => Some(Class::Failed { maybe_paid: failure.maybe_paid }),
            Outcome::Blocked(blocked) => Some(Class::Blocked(blocked.reason)),
            Outcome::Answered(_) | Outcome::Unanswerable(_) => None,
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
            (429, "", "true", LATER),
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
            (r#""rate_limit_exceeded""#, REQUESTS),
            ("429", LATER),
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
        assert_eq!(class(&outcome), Some(REQUESTS));
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
            (TransportError::Silent(Duration::from_mins(10)), ("timeout", true)),
            (TransportError::Stalled(Duration::from_mins(10)), ("timeout", true)),
            (TransportError::Lost("reset".to_owned()), ("connection_lost", true)),
            (TransportError::Cut("end".to_owned()), ("truncated", true)),
        ] {
            let Outcome::Failed(failure) = classify_transport(&error) else { panic!("{error:?}") };
            assert_eq!((failure.code, failure.maybe_paid), expected);
        }
        assert!(matches!(classify_transport(&TransportError::TooLarge(1)), Outcome::Unanswerable(_)));
        let Outcome::Blocked(blocked) = classify_transport(&TransportError::Certificate("old".to_owned()))
        else {
            panic!("no request can mend a certificate")
        };
        assert_eq!((blocked.reason, blocked.response.is_none()), (PauseReason::Outage, true));
    }
}
