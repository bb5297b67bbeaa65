//! What a 2xx must hold to be an answer, endpoint by endpoint, and what it says it cost.
//!
//! Only what is required is looked at; all else may be absent, null or of another type, because servers
//! differ and an answer that was paid for must not be thrown away for an odd member.

use serde_json::value::RawValue;

use crate::domain::Endpoint;
use crate::provider::Usage;
use crate::provider::json::Members;
use crate::reading::look::Look;

/// What a body turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// What the endpoint must return.
    Answer(Option<Usage>),
    /// No answer, but an error that says why.
    Error,
    /// Neither; why not.
    Invalid(&'static str),
}

/// Reads the body of a 2xx from `endpoint`, as records keep it: what is no JSON is a string.
pub(super) fn read(endpoint: Endpoint, body: &RawValue) -> Body {
    let Some(members) = Members::of_valid(body) else {
        return Body::Invalid(if body.get() == "\"\"" { "it is empty" } else { "it is no JSON object" });
    };
    // A response that failed has all that a response must have, and its error.
    if endpoint == Endpoint::Responses && members.string("status").is_some_and(|status| status == "failed") {
        return Body::Error;
    }
    match missing(endpoint, &members) {
        None => Body::Answer(usage(&members)),
        Some(_) if members.get("error").is_some() => Body::Error,
        Some(missing) => Body::Invalid(missing),
    }
}

/// What `endpoint` must return and `members` lack.
fn missing(endpoint: Endpoint, members: &Members<'_>) -> Option<&'static str> {
    let every = |name: &str, holds: &dyn Fn(&Members<'_>) -> bool| {
        members.objects(name).is_some_and(|items| !items.is_empty() && items.iter().all(holds))
    };
    let holds_text = |item: &Members<'_>, name| {
        item.begins(name, &['"']) && item.get(name).is_some_and(|text| text != "\"\"")
    };
    let (found, otherwise) = match endpoint {
        Endpoint::ChatCompletions => (
            every("choices", &|choice| choice.begins("message", &['{'])),
            "it lacks `choices`, each with a `message`",
        ),
        Endpoint::Completions => (
            every("choices", &|choice| choice.begins("text", &['"'])),
            "it lacks `choices`, each with a `text`",
        ),
        Endpoint::Embeddings => (
            every("data", &|item| item.begins("embedding", &['[', '"'])),
            "it lacks `data`, each with an `embedding`",
        ),
        Endpoint::Images => (
            every("data", &|item| holds_text(item, "b64_json") || holds_text(item, "url")),
            "it lacks `data`, each with a `b64_json` or a `url`",
        ),
        Endpoint::Moderations => (every("results", &|_| true), "it lacks `results`"),
        Endpoint::Responses => (
            members.begins("status", &['"']) && members.begins("output", &['[']),
            "it lacks `status` and `output`",
        ),
    };
    (!found).then_some(otherwise)
}

/// What the body of an answer says it cost. Not every server says so, and some in an odd way.
pub(crate) fn usage_of(body: Look<'_>) -> Option<Usage> {
    usage(&Members::of_valid(body)?)
}

/// `usage` under the names of the older or of the newer endpoints. Embeddings have no output.
fn usage(members: &Members<'_>) -> Option<Usage> {
    let usage = members.object("usage")?;
    let count = |older, newer| usage.get(older).or_else(|| usage.get(newer))?.parse().ok();
    Some(Usage {
        input_tokens: count("prompt_tokens", "input_tokens")?,
        output_tokens: count("completion_tokens", "output_tokens").unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Response;

    fn judged(endpoint: Endpoint, body: &str) -> Body {
        read(endpoint, &Response::new(200, String::new(), body.as_bytes()).body)
    }

    const CHAT: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"4"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}"#;

    const fn usage_of(input_tokens: u64, output_tokens: u64) -> Body {
        Body::Answer(Some(Usage { input_tokens, output_tokens }))
    }

    #[test]
    fn an_answer_holds_what_its_endpoint_must_return() {
        for (endpoint, body, expected) in [
            (Endpoint::ChatCompletions, CHAT, usage_of(9, 1)),
            (
                Endpoint::ChatCompletions,
                r#"{"choices":[{"message":{"content":null,"tool_calls":[]}}]}"#,
                Body::Answer(None),
            ),
            (
                Endpoint::ChatCompletions,
                r#"{"choices":[{"message":{}}],"usage":null,"error":null}"#,
                Body::Answer(None),
            ),
            (Endpoint::ChatCompletions, r#"{"choices":[{"message":{}}],"usage":"many"}"#, Body::Answer(None)),
            (Endpoint::ChatCompletions, r#"{"choices":[],"choices":[{"message":{}}]}"#, Body::Answer(None)),
            (Endpoint::Completions, r#"{"choices":[{"text":""},{"text":"b"}]}"#, Body::Answer(None)),
            (
                Endpoint::Embeddings,
                r#"{"data":[{"embedding":[0.1]}],"usage":{"prompt_tokens":5,"total_tokens":5}}"#,
                usage_of(5, 0),
            ),
            (Endpoint::Embeddings, r#"{"data":[{"embedding":"AAAA"}]}"#, Body::Answer(None)),
            (
                Endpoint::Responses,
                r#"{"status":"completed","output":[],"error":null,"usage":{"input_tokens":3,"output_tokens":4}}"#,
                usage_of(3, 4),
            ),
            (Endpoint::Responses, r#"{"status":"incomplete","output":[{}]}"#, Body::Answer(None)),
            (Endpoint::Moderations, r#"{"results":[{"flagged":false}]}"#, Body::Answer(None)),
            (Endpoint::Images, r#"{"data":[{"b64_json":"AAAA","url":null}]}"#, Body::Answer(None)),
            (Endpoint::Images, r#" {"data":[{"url":"https://x/y.png"}]}"#, Body::Answer(None)),
        ] {
            assert_eq!(judged(endpoint, body), expected, "{endpoint}: {body}");
        }
    }

    #[test]
    fn what_lacks_it_is_none() {
        for (endpoint, body) in [
            (Endpoint::ChatCompletions, ""),
            (Endpoint::ChatCompletions, "  \n"),
            (Endpoint::ChatCompletions, "null"),
            (Endpoint::ChatCompletions, "[]"),
            (Endpoint::ChatCompletions, "{}"),
            (Endpoint::ChatCompletions, "<html>Log in to the Wi-Fi</html>"),
            (Endpoint::ChatCompletions, CHAT.strip_suffix('}').unwrap()),
            (Endpoint::ChatCompletions, r#"{"choices":[]}"#),
            (Endpoint::ChatCompletions, r#"{"choices":null}"#),
            (Endpoint::ChatCompletions, r#"{"choices":{"message":{}}}"#),
            (Endpoint::ChatCompletions, r#"{"choices":[{"message":null}]}"#),
            (Endpoint::ChatCompletions, r#"{"choices":[{"message":{}},{"delta":{}}]}"#),
            (Endpoint::ChatCompletions, r#"{"choices":[{"text":"a"}]}"#),
            (Endpoint::Completions, r#"{"choices":[{"text":null}]}"#),
            (Endpoint::Completions, r#"{"choices":[{"message":{}}]}"#),
            (Endpoint::Embeddings, r#"{"data":[]}"#),
            (Endpoint::Embeddings, r#"{"data":[{"embedding":{}}]}"#),
            (Endpoint::Responses, r#"{"output":[]}"#),
            (Endpoint::Responses, r#"{"status":"completed"}"#),
            (Endpoint::Responses, r#"{"status":"completed","output":{}}"#),
            (Endpoint::Moderations, r#"{"results":[]}"#),
            (Endpoint::Images, r#"{"data":[{"revised_prompt":"x"}]}"#),
            (Endpoint::Images, r#"{"data":[{"url":"https://x"},{"b64_json":null}]}"#),
            (Endpoint::Images, r#"{"data":[{"url":"","b64_json":""}]}"#),
            (Endpoint::Images, r#"{"created":1}"#),
        ] {
            assert!(matches!(judged(endpoint, body), Body::Invalid(_)), "{endpoint}: {body}");
        }
    }

    #[test]
    fn an_error_in_place_of_an_answer_is_an_error() {
        for (endpoint, body) in [
            (Endpoint::ChatCompletions, r#"{"error":{"code":502,"message":"upstream died"}}"#),
            (Endpoint::ChatCompletions, r#"{"choices":[],"error":"overloaded"}"#),
            (
                Endpoint::Responses,
                r#"{"status":"failed","output":[],"error":{"code":"server_error","message":"x"}}"#,
            ),
        ] {
            assert_eq!(judged(endpoint, body), Body::Error, "{body}");
        }
        // An answer with an error beside it was paid for and is kept.
        let both = r#"{"choices":[{"message":{}}],"error":{"message":"cut by a filter"}}"#;
        assert_eq!(judged(Endpoint::ChatCompletions, both), Body::Answer(None));
    }
}
