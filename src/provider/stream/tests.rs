//! Whole bodies, cut into events as servers cut them, come out as they were.

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

const MIB: u64 = 1 << 20;
const CHAT: Endpoint = Endpoint::ChatCompletions;
const COMPLETIONS: Endpoint = Endpoint::Completions;

/// How an exchange ends in which the body was handed over.
fn ended(well: bool) -> Result<HttpReply, TransportError> {
    if well {
        Ok(HttpReply { status: 200, headers: HeaderMap::new(), body: Bytes::new() })
    } else {
        Err(TransportError::Cut("reset".to_owned()))
    }
}

/// What comes of a body in pieces of `piece_bytes`.
fn came(
    endpoint: Endpoint,
    choices: u64,
    body: &[u8],
    piece_bytes: usize,
    exchanged: Result<HttpReply, TransportError>,
) -> Came {
    let mut receiving = Receiving::new(endpoint, choices, MIB);
    assert!(receiving.begins(200, &HeaderMap::new()));
    body.chunks(piece_bytes).find(|piece| receiving.take(piece).is_break());
    receiving.finish(exchanged)
}

/// The body that is made of a stream of one choice; what is none shows as why.
fn assembled(endpoint: Endpoint, body: &str) -> String {
    match came(endpoint, 1, body.as_bytes(), 7, ended(true)) {
        Came::Reply(reply) => String::from_utf8(reply.body.to_vec()).unwrap(),
        other @ (Came::Error(_) | Came::Senseless(..) | Came::Broken(..)) => {
            format!("{:?}", other.classify(endpoint, Timestamp::from_millis(0)).outcome)
        }
    }
}

fn events(chunks: &[&str]) -> String {
    chunks.iter().flat_map(|chunk| ["data: ", chunk, "\n\n"]).collect()
}

#[test]
fn openai_s_stream_is_the_body_it_would_have_sent() {
    let head = r#""id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-4.1","service_tier":"default","system_fingerprint":"fp_1""#;
    let chunk = |rest: &str| format!("data: {{{head},{rest}}}\n\n");
    let stream = [
        chunk(
            r#""choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"aK3""#,
        ),
        chunk(
            r#""choices":[{"index":0,"delta":{"content":"Say \"h"},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"x""#,
        ),
        chunk(
            r#""choices":[{"index":0,"delta":{"content":"i\" \ud83d"},"logprobs":null,"finish_reason":null}],"usage":null"#,
        ),
        chunk(
            r#""choices":[{"index":0,"delta":{"content":"\ude00é\n"},"logprobs":null,"finish_reason":null}],"usage":null"#,
        ),
        chunk(r#""choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null"#),
        chunk(
            r#""choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13,"prompt_tokens_details":{"cached_tokens":0}}"#,
        ),
        "data: [DONE]\n\n".to_owned(),
    ];
    let expected = concat!(
        r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"gpt-4.1","choices":[{"index":0,"#,
        r#""message":{"role":"assistant","content":"Say \"hi\" \ud83d\ude00é\n","refusal":null},"#,
        r#""logprobs":null,"finish_reason":"stop"}],"#,
        r#""usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13,"prompt_tokens_details":{"cached_tokens":0}},"#,
        r#""service_tier":"default","system_fingerprint":"fp_1"}"#
    );
    assert_eq!(assembled(CHAT, &stream.concat()), expected);
}

/// The one choice of a stream of chat whose chunks have these members beside its index.
fn choice(chunks: &[&str]) -> String {
    let chunks: Vec<String> =
        chunks.iter().map(|chunk| format!(r#"{{"id":"a","choices":[{{"index":0,{chunk}}}]}}"#)).collect();
    let mut chunks: Vec<&str> = chunks.iter().map(String::as_str).collect();
    chunks.push("[DONE]");
    let body = assembled(CHAT, &events(&chunks));
    let choice =
        body.strip_prefix(r#"{"id":"a","object":"chat.completion","choices":[{"index":0,"message":"#);
    choice.and_then(|choice| choice.strip_suffix("}]}")).unwrap_or(&body).to_owned()
}

#[test]
fn calls_of_tools_are_put_together_by_their_index() {
    for (chunks, expected) in [
        // OpenAI.
        (
            vec![
                r#""delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"c1","type":"function","function":{"name":"f","arguments":""}}]}"#,
                r#""delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\""}}]}"#,
                r#""delta":{"tool_calls":[{"index":1,"id":"c2","type":"function","function":{"name":"g","arguments":""}}]}"#,
                r#""delta":{"tool_calls":[{"index":1,"function":{"arguments":"{}"}},{"index":0,"function":{"arguments":":1}"}}]}"#,
                r#""delta":{},"finish_reason":"tool_calls""#,
            ],
            r#"{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}},{"id":"c2","type":"function","function":{"name":"g","arguments":"{}"}}]},"finish_reason":"tool_calls""#,
        ),
        // An empty text before them; id, type and name again in each piece, the id another (vLLM).
        (
            vec![
                r#""delta":{"role":"assistant","content":""}"#,
                r#""delta":{"tool_calls":[{"index":0,"id":"c1","type":"function","function":{"name":"f"}}]}"#,
                r#""delta":{"tool_calls":[{"index":0,"id":"c1","type":"function","function":{"name":"f","arguments":"{"}}]}"#,
                r#""delta":{"tool_calls":[{"index":0,"id":"c9","type":"function","function":{"name":null,"arguments":"}"}}]}"#,
            ],
            r#"{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}}]}"#,
        ),
        // Ollama: each whole, all with the index 0.
        (
            vec![
                r#""delta":{"role":"assistant","content":"","tool_calls":[{"id":"c1","index":0,"type":"function","function":{"name":"f","arguments":"{}"}}]},"finish_reason":null"#,
                r#""delta":{"role":"assistant","content":"","tool_calls":[{"id":"c2","index":0,"type":"function","function":{"name":"f","arguments":"[]"}}]},"finish_reason":null"#,
            ],
            r#"{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}},{"id":"c2","type":"function","function":{"name":"f","arguments":"[]"}}]},"finish_reason":null"#,
        ),
        // Without any index.
        (
            vec![
                r#""delta":{"tool_calls":[{"id":"c1","function":{"name":"f","arguments":"{"}}]}"#,
                r#""delta":{"tool_calls":[{"function":{"arguments":"}"}}]}"#,
                r#""delta":{"tool_calls":[{"function":{"name":"g","arguments":"{}"}}]}"#,
            ],
            r#"{"role":"assistant","content":null,"tool_calls":[{"id":"c1","function":{"name":"f","arguments":"{}"}},{"function":{"name":"g","arguments":"{}"}}]}"#,
        ),
        // Their older form.
        (
            vec![
                r#""delta":{"role":"assistant","content":null,"function_call":{"name":"f","arguments":""}}"#,
                r#""delta":{"function_call":{"arguments":"{\"a\":"}}"#,
                r#""delta":{"function_call":{"arguments":"1}"}}"#,
                r#""delta":{},"finish_reason":"function_call""#,
            ],
            r#"{"role":"assistant","content":null,"function_call":{"name":"f","arguments":"{\"a\":1}"}},"finish_reason":"function_call""#,
        ),
    ] {
        assert_eq!(choice(&chunks), expected);
    }
}

#[test]
fn what_servers_add_is_kept_as_they_would_have_sent_it() {
    for (chunks, expected) in [
        // Thoughts, and a role that is repeated.
        (
            vec![
                r#""delta":{"role":"assistant","content":null,"reasoning_content":""}"#,
                r#""delta":{"role":"assistant","content":null,"reasoning_content":"Let "}"#,
                r#""delta":{"role":"","content":null,"reasoning_content":"me."}"#,
                r#""delta":{"content":"4","reasoning_content":null}"#,
            ],
            r#"{"role":"assistant","content":"4","reasoning_content":"Let me."}"#,
        ),
        // Parts with an index and types of their own.
        (
            vec![
                r#""delta":{"content":"","reasoning_details":[{"type":"reasoning.text","text":"a","index":0,"format":"x"}]}"#,
                r#""delta":{"content":"","reasoning_details":[{"type":"reasoning.text","text":"b","index":0,"format":"x"}]}"#,
            ],
            r#"{"role":"assistant","content":"","reasoning_details":[{"type":"reasoning.text","text":"ab","index":0,"format":"x"}]}"#,
        ),
        // Parts without one.
        (
            vec![
                r#""delta":{"content":"a","annotations":[{"type":"url_citation"}]}"#,
                r#""delta":{"annotations":[{"type":"url_citation"}, {"type":"file"}]}"#,
            ],
            r#"{"role":"assistant","content":"a","annotations":[{"type":"url_citation"},{"type":"url_citation"}, {"type":"file"}]}"#,
        ),
        // A refusal, and log probabilities with every digit.
        (
            vec![
                r#""delta":{"content":"","refusal":"I "},"logprobs":{"content":null,"refusal":[{"token":"I","logprob":-0.10000000000000000001}]}"#,
                r#""delta":{"refusal":"can't"},"logprobs":{"content":null,"refusal":[{"token":"c","logprob":-1e-7}]},"finish_reason":null"#,
                r#""delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":null"#,
            ],
            r#"{"role":"assistant","content":"","refusal":"I can't"},"logprobs":{"content":null,"refusal":[{"token":"I","logprob":-0.10000000000000000001},{"token":"c","logprob":-1e-7}]},"finish_reason":"stop","stop_reason":null"#,
        ),
        // vLLM's token ids come in pieces, Azure's findings as they stand.
        (
            vec![
                r#""delta":{"content":"a"},"token_ids":[1,2],"content_filter_results":{"hate":{"filtered":false}}"#,
                r#""delta":{"content":"b"},"token_ids":[3],"content_filter_results":{}"#,
                r#""delta":{},"finish_reason":"stop","token_ids":[],"content_filter_results":{"hate":{"filtered":true,"severity":"low"}}"#,
            ],
            r#"{"role":"assistant","content":"ab"},"finish_reason":"stop","token_ids":[1,2,3],"content_filter_results":{"hate":{"filtered":true,"severity":"low"}}"#,
        ),
        // The whole message again in every chunk, and one that comes without deltas.
        (
            vec![
                r#""delta":{"content":"a"},"message":{"content":"a"}"#,
                r#""delta":{"content":"b"},"message":{"content":"ab"}"#,
            ],
            r#"{"role":"assistant","content":"ab"}"#,
        ),
        (
            vec![r#""message":{"role":"assistant","content":"ab"},"finish_reason":"stop""#],
            r#"{"role":"assistant","content":"ab"},"finish_reason":"stop""#,
        ),
        (
            vec![r#""delta":null,"finish_reason":"length""#],
            r#"{"role":"assistant","content":null},"finish_reason":"length""#,
        ),
    ] {
        assert_eq!(choice(&chunks), expected);
    }
}

#[test]
fn what_stands_at_the_top_holds_as_the_last_that_said_something() {
    // Azure begins with a chunk that has no choice.
    let azure = events(&[
        r#"{"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0,"content_filter_results":{}}]}"#,
        r#"{"choices":[{"index":0,"delta":{"content":"4"},"finish_reason":null}],"created":7,"id":"a","model":"m","object":"chat.completion.chunk","prompt_filter_results":[]}"#,
        r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"created":7,"id":"a","model":"m","usage":null}"#,
        "[DONE]",
    ]);
    assert_eq!(
        assembled(CHAT, &azure),
        r#"{"id":"a","object":"chat.completion","created":7,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"4"},"finish_reason":"stop"}],"prompt_filter_results":[{"prompt_index":0,"content_filter_results":{}}]}"#
    );
    // llama.cpp's timings and vLLM's usage stand in every chunk; Groq's own member comes in two parts.
    let others = events(&[
        r#"{"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":1,"completion_tokens":1},"timings":{"predicted_n":1},"x_groq":{"id":"r"}}"#,
        r#"{"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2},"timings":{"predicted_n":2}}"#,
        r#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2},"timings":{"predicted_n":2},"x_groq":{"usage":{"t":0.5}}}"#,
        "[DONE]",
    ]);
    assert_eq!(
        assembled(CHAT, &others),
        r#"{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"ab"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2},"timings":{"predicted_n":2},"x_groq":{"id":"r","usage":{"t":0.5}}}"#
    );
}

#[test]
fn completions_have_texts_and_log_probabilities_in_four_arrays() {
    let stream = events(&[
        r#"{"id":"c","object":"text_completion","choices":[{"text":" a","index":1,"logprobs":{"tokens":[" a"],"token_logprobs":[-0.5],"top_logprobs":[{" a":-0.5}],"text_offset":[3]},"finish_reason":null}]}"#,
        r#"{"id":"c","object":"text_completion","choices":[{"text":"x","index":0,"logprobs":null,"finish_reason":null}]}"#,
        r#"{"id":"c","object":"text_completion","choices":[{"text":"b","index":1,"logprobs":{"tokens":["b"],"token_logprobs":[null],"top_logprobs":[null],"text_offset":[5]},"finish_reason":"stop"}]}"#,
        r#"{"id":"c","object":"text_completion","choices":[{"text":"","index":0,"logprobs":null,"finish_reason":"length"}],"usage":null}"#,
        r#"{"id":"c","object":"text_completion","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":3}}"#,
        "[DONE]",
    ]);
    assert_eq!(
        assembled(COMPLETIONS, &stream),
        concat!(
            r#"{"id":"c","object":"text_completion","choices":[{"text":"x","index":0,"logprobs":null,"finish_reason":"length"},"#,
            r#"{"text":" ab","index":1,"logprobs":{"tokens":[" a","b"],"token_logprobs":[-0.5,null],"top_logprobs":[{" a":-0.5},null],"text_offset":[3,5]},"finish_reason":"stop"}],"#,
            r#""usage":{"prompt_tokens":1,"completion_tokens":3}}"#
        )
    );
}

const A: &str = r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#;
const END: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;

fn outcome(body: &str, exchanged: Result<HttpReply, TransportError>) -> Outcome {
    came(CHAT, 1, body.as_bytes(), 5, exchanged).classify(CHAT, Timestamp::from_millis(0)).outcome
}

#[test]
fn a_cut_stream_is_a_failed_attempt_and_a_whole_one_an_answer_however_it_ends() {
    for (body, is_answer) in [
        (events(&[A, END, "[DONE]"]), true),
        (events(&[A, END]), true),
        // Ollama gives no reason at times; whoever says `[DONE]` is done.
        (events(&[A, "[DONE]"]), true),
        (events(&[A]), false),
        (String::new(), false),
        (": only a comment\n\n".to_owned(), false),
        (events(&["[DONE]"]), false),
        (events(&[r#"{"choices":[]}"#, "[DONE]"]), false),
        (format!("{}data: {}", events(&[A]), END.split_at(20).0), false),
    ] {
        for exchanged in [ended(true), ended(false)] {
            let outcome = outcome(&body, exchanged);
            assert_eq!(matches!(outcome, Outcome::Answered(_)), is_answer, "{body}: {outcome:?}");
            if let Outcome::Failed(failure) = &outcome {
                assert!(failure.maybe_paid && failure.response.is_none(), "{failure:?}");
            } else {
                assert!(is_answer, "{outcome:?}");
            }
        }
    }
    let Outcome::Failed(failure) = outcome(&events(&[A]), ended(true)) else { panic!() };
    assert_eq!(
        (failure.code, failure.message.as_str()),
        ("truncated", "the reply was cut short: the stream ended before the answer did")
    );
    // The last empty line is often forgotten, but counts only where the body ended well.
    let open = format!("{}data: [DONE]", events(&[A]));
    assert!(matches!(outcome(&open, ended(true)), Outcome::Answered(_)));
    assert!(matches!(outcome(&open, ended(false)), Outcome::Failed(_)));
}

#[test]
fn half_of_the_choices_is_half_an_answer() {
    let stream = events(&[A, END]);
    for (choices, is_answer) in [(1, true), (2, false)] {
        let came = came(CHAT, choices, stream.as_bytes(), 100, ended(true));
        assert_eq!(matches!(came, Came::Reply(_)), is_answer);
    }
    let second = r#"{"choices":[{"index":1,"delta":{"content":"b"},"finish_reason":null}]}"#;
    assert!(matches!(
        came(CHAT, 2, events(&[A, second, END]).as_bytes(), 100, ended(true)),
        Came::Broken(..)
    ));
}

#[test]
fn an_error_in_a_stream_is_never_an_answer() {
    let vllm = r#"{"object":"error","message":"engine died","type":"InternalServerError","code":500}"#;
    let openrouter = r#"{"error":{"code":502,"message":"upstream"},"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]}"#;
    let limit = r#"{"error":{"code":"rate_limit_exceeded","message":"slow"}}"#;
    let refused = r#"{"error":{"code":"context_length_exceeded","message":"too long"}}"#;
    for (body, expected) in [
        (events(&[A, vllm, "[DONE]"]), "Failed"),
        (events(&[A, END, openrouter, "[DONE]"]), "Failed"),
        (events(&[limit, "[DONE]"]), "Throttled"),
        (events(&[A, refused]), "Unanswerable"),
        (
            format!(
                "event: error\ndata: {{\"message\":\"no\",\"code\":\"insufficient_quota\"}}\n\n{}",
                events(&[END, "[DONE]"])
            ),
            "Blocked",
        ),
        (format!("{}error: {{\"code\":500,\"message\":\"slot\"}}\n\n", events(&[A, END])), "Failed"),
        (format!("event: error\ndata: it broke\n\n{}", events(&["[DONE]"])), "Failed"),
        (events(&[A, "not json", END, "[DONE]"]), "Failed"),
    ] {
        let outcome = outcome(&body, ended(true));
        assert!(format!("{outcome:?}").starts_with(expected), "{body}: {outcome:?}");
    }
    // A member that is null is none.
    let null = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"error":null}"#;
    assert!(matches!(outcome(&events(&[A, null]), ended(true)), Outcome::Answered(_)));
}

#[test]
fn servers_that_do_not_stream_are_read_as_ever() {
    let json =
        r#"{"choices":[{"message":{"content":"4"}}],"usage":{"prompt_tokens":9,"completion_tokens":1}}"#;
    let page = "<html>Log in</html>";
    for (body, expected) in
        [(json, "Answered"), (&format!("\r\n {json}"), "Answered"), (page, "Failed"), ("  ", "Failed")]
    {
        let outcome = outcome(body, ended(true));
        assert!(format!("{outcome:?}").starts_with(expected), "{body}: {outcome:?}");
        assert!(matches!(self::outcome(body, ended(false)), Outcome::Failed(_)));
    }
    // An error status has its body in the reply, as the transport collects it.
    let mut receiving = Receiving::new(CHAT, 1, MIB);
    assert!(!receiving.begins(429, &HeaderMap::new()));
    let refused = HttpReply { status: 429, headers: HeaderMap::new(), body: Bytes::from_static(b"{}") };
    assert!(
        matches!(receiving.finish(Ok(refused)), Came::Reply(reply) if reply.status == 429 && reply.body == "{}")
    );
}

#[test]
fn no_stream_makes_more_than_its_bound() {
    let feed = |bytes_max: u64, chunk: &str, times: usize| {
        let mut receiving = Receiving::new(CHAT, 1, bytes_max);
        receiving.begins(200, &HeaderMap::new());
        let broke = (0..times).any(|_| receiving.take(events(&[chunk]).as_bytes()).is_break());
        let came = if broke { receiving.finish(ended(true)) } else { receiving.finish(ended(false)) };
        matches!(came, Came::Broken(TransportError::TooLarge(_), _))
    };
    let usage = r#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2},"model":"m"}"#;
    assert!(!feed(1000, usage, 1000), "what is said again takes no room");
    let growing = r#"{"choices":[{"index":0,"delta":{"content":"aaaaaaaaaa"}}]}"#;
    assert!(!feed(1000, growing, 50) && feed(1000, growing, 100));
    let call = r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"function":{"name":"f"}}]}}]}"#;
    assert!(feed(10_000, call, 1000));
    let logprobs = r#"{"choices":[{"index":0,"logprobs":{"content":[{}]},"delta":{}}]}"#;
    assert!(feed(1000, logprobs, 1000));
    // One that comes as plain JSON, and one event.
    assert!(feed(1000, &"a".repeat(1000), 1));
    let mut receiving = Receiving::new(CHAT, 1, 10);
    receiving.begins(200, &HeaderMap::new());
    assert!(receiving.take(b"{\"a\":").is_continue() && receiving.take(b"\"aaaa\"}").is_break());
    // Too many parts of one kind, and objects in objects.
    let mut indexes = 0..;
    let mut receiving = Receiving::new(CHAT, 1, MIB);
    receiving.begins(200, &HeaderMap::new());
    let mut call = || {
        let index: u32 = indexes.next().unwrap();
        events(&[&format!(r#"{{"choices":[{{"index":0,"delta":{{"tool_calls":[{{"index":{index}}}]}}}}]}}"#)])
    };
    assert!((0..2000).any(|_| receiving.take(call().as_bytes()).is_break()));
    assert!(matches!(receiving.finish(ended(true)), Came::Senseless(..)));
    let deep = format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    let deep =
        format!(r#"{{"x":{deep},"choices":[{{"index":0,"delta":{{"x":{deep}}},"finish_reason":"stop"}}]}}"#);
    assert!(assembled(CHAT, &events(&[&deep, &deep, "[DONE]"])).len() > 10_000);
}

/// An ordinary body of chat.
fn chat_body() -> impl Strategy<Value = Value> {
    let text = || "([a-z ]|\\PC|\n|\"|\\\\){0,12}";
    let call = (text(), text()).prop_map(|(id, arguments)| {
        json!({"id": format!("call_{id}"), "type": "function", "function": {"name": "f", "arguments": arguments}})
    });
    let logprob = (text(), -9.0..0.0).prop_map(
        |(token, logprob)| json!({"token": token, "logprob": logprob, "bytes": null, "top_logprobs": []}),
    );
    let choice = (text(), vec(call, 0..3), proptest::option::of(text()), vec(logprob, 0..4), any::<bool>());
    let choice = choice.prop_map(|(content, calls, thoughts, logprobs, says_why)| {
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if !calls.is_empty() {
            message["content"] = Value::Null;
            message["tool_calls"] = calls.into();
        }
        if let Some(thoughts) = thoughts {
            message["reasoning_content"] = thoughts.into();
        }
        let logprobs =
            if logprobs.is_empty() { Value::Null } else { json!({"content": logprobs, "refusal": null}) };
        let why = if says_why { json!("stop") } else { Value::Null };
        json!({"message": message, "logprobs": logprobs, "finish_reason": why})
    });
    body(choice, "chat.completion")
}

/// An ordinary body of completions.
fn text_body() -> impl Strategy<Value = Value> {
    let text = "([a-z ]|\\PC|\n|\"|\\\\){0,12}";
    let choice = (text, vec((text, 0_u32..99), 0..4)).prop_map(|(text, tokens)| {
        let logprobs = if tokens.is_empty() {
            Value::Null
        } else {
            let (tokens, numbers): (Vec<_>, Vec<_>) = tokens.into_iter().unzip();
            json!({"tokens": tokens, "token_logprobs": numbers, "text_offset": numbers, "top_logprobs": null})
        };
        json!({"text": text, "logprobs": logprobs, "finish_reason": "length"})
    });
    body(choice, "text_completion")
}

fn body(choice: impl Strategy<Value = Value>, object: &'static str) -> impl Strategy<Value = Value> {
    (vec(choice, 1..4), proptest::option::of(0_u64..1000), any::<bool>()).prop_map(
        move |(mut choices, usage, has_more)| {
            for (index, choice) in choices.iter_mut().enumerate() {
                choice["index"] = index.into();
            }
            let mut body =
                json!({"id": "x-1", "object": object, "created": 1.5, "model": "m", "choices": choices});
            if let Some(tokens) = usage {
                body["usage"] = json!({"prompt_tokens": tokens, "completion_tokens": 2, "details": {"a": 0}});
            }
            if has_more {
                body["timings"] = json!({"n": [1, 2]});
                body["system_fingerprint"] = json!("fp");
            }
            body
        },
    )
}

/// Cuts values as a server would that writes a token at a time: says where the next cut is.
struct Cuts<'a>(std::iter::Cycle<std::slice::Iter<'a, usize>>);

impl Cuts<'_> {
    fn next(&mut self, left: usize) -> usize {
        self.0.next().map_or(left, |cut| (1 + cut % 4).min(left))
    }

    fn text(&mut self, text: &Value) -> Vec<Value> {
        let characters: Vec<char> = text.as_str().unwrap().chars().collect();
        let mut rest = characters.as_slice();
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(self.next(rest.len()));
            pieces.push(piece.iter().collect::<String>().into());
            rest = behind;
        }
        pieces
    }
}

/// The deltas of one choice of chat, or its texts.
fn deltas(choice: &Value, cuts: &mut Cuts<'_>) -> Vec<Value> {
    let message = &choice["message"];
    if message.is_null() {
        let texts = cuts.text(&choice["text"]).into_iter();
        return texts.chain([json!("")]).map(|text| json!({"text": text})).collect();
    }
    let content = if message["content"].is_null() { Value::Null } else { json!("") };
    let mut deltas = vec![json!({"role": "assistant", "content": content, "refusal": null})];
    if let Some(thoughts) = message.get("reasoning_content") {
        deltas.push(json!({"reasoning_content": ""}));
        deltas.extend(cuts.text(thoughts).into_iter().map(|text| json!({"reasoning_content": text})));
    }
    if !message["content"].is_null() {
        deltas.extend(cuts.text(&message["content"]).into_iter().map(|text| json!({"content": text})));
    }
    for (index, call) in message["tool_calls"].as_array().into_iter().flatten().enumerate() {
        let function = json!({"name": "f", "arguments": ""});
        let begin = json!({"index": index, "id": call["id"], "type": "function", "function": function});
        deltas.push(json!({"tool_calls": [begin]}));
        let pieces = cuts.text(&call["function"]["arguments"]).into_iter();
        deltas.extend(
            pieces.map(|text| json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})),
        );
    }
    deltas.push(json!({}));
    deltas.into_iter().map(|delta| json!({"delta": delta})).collect()
}

/// Spreads the arrays of log probabilities over the chunks of a choice.
fn spread(logprobs: &Value, chunks: &mut [Value], cuts: &mut Cuts<'_>) {
    let Some(arrays) = logprobs.as_object() else { return };
    let length = arrays.values().filter_map(Value::as_array).map(Vec::len).max().unwrap_or(0);
    let (mut done, last) = (0, chunks.len() - 1);
    for (at, chunk) in chunks.iter_mut().enumerate() {
        let count = if at == last { length - done } else { cuts.next(length - done) };
        let part = |array: &Value| array.as_array().map_or(Value::Null, |all| all[done..done + count].into());
        let part: Map<String, Value> =
            arrays.iter().map(|(name, array)| (name.clone(), part(array))).collect();
        chunk["logprobs"] = part.into();
        done += count;
    }
}

/// `body` as the chunks of a stream: those of its choices by turns, then what stands beside them.
fn chunks(body: &Value, cuts: &mut Cuts<'_>) -> Vec<Value> {
    let mut head = body.clone();
    let rest: Map<String, Value> = ["usage", "timings"]
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), head.as_object_mut()?.remove(*name)?)))
        .collect();
    head["object"] = "chunk".into();
    let with = |choices: Value| {
        let mut chunk = head.clone();
        chunk["choices"] = choices;
        chunk["usage"] = Value::Null;
        chunk
    };
    let mut columns: Vec<std::vec::IntoIter<Value>> = Vec::new();
    for choice in body["choices"].as_array().unwrap() {
        let mut column = deltas(choice, cuts);
        let last = column.len() - 1;
        for (at, chunk) in column.iter_mut().enumerate() {
            chunk["index"] = choice["index"].clone();
            chunk["logprobs"] = Value::Null;
            chunk["finish_reason"] = if at == last { choice["finish_reason"].clone() } else { Value::Null };
        }
        spread(&choice["logprobs"], &mut column, cuts);
        columns.push(column.into_iter());
    }
    let mut all = Vec::new();
    while columns.iter().any(|column| column.len() > 0) {
        for column in &mut columns {
            let count = cuts.next(column.len());
            all.extend(column.take(count).map(|chunk| with(json!([chunk]))));
        }
    }
    let mut last = with(json!([]));
    last.as_object_mut().unwrap().extend(rest);
    all.push(last);
    all
}

/// Those chunks as the bytes of a body.
fn written(chunks: &[Value], line_end: &str, keeps_alive: bool) -> String {
    let mut body = if keeps_alive { format!("\u{feff}: hello{line_end}{line_end}") } else { String::new() };
    for chunk in chunks {
        let text = if keeps_alive { serde_json::to_string_pretty(chunk).unwrap() } else { chunk.to_string() };
        for line in text.split('\n') {
            body.extend(["data: ", line, line_end]);
        }
        body += line_end;
        if keeps_alive {
            body.extend([": keep-alive", line_end, line_end]);
        }
    }
    body + "data: [DONE]" + line_end + line_end
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_body_cut_into_a_stream_is_that_body_again(
        (endpoint, body) in prop_oneof![
            chat_body().prop_map(|body| (CHAT, body)),
            text_body().prop_map(|body| (COMPLETIONS, body)),
        ],
        sizes in vec(0_usize..100, 1..9),
        line_end in prop_oneof![Just("\n"), Just("\r\n"), Just("\r")],
        keeps_alive in any::<bool>(),
        piece_bytes in 1_usize..200,
    ) {
        let mut cuts = Cuts(sizes.iter().cycle());
        let stream = written(&chunks(&body, &mut cuts), line_end, keeps_alive);
        let choices = body["choices"].as_array().unwrap().len() as u64;
        let came = came(endpoint, choices, stream.as_bytes(), piece_bytes, ended(true));
        let Came::Reply(reply) = came else { panic!("{came:?}: {stream}") };
        // Both are read from text, which makes of a number what it can.
        let [found, body] = [&reply.body[..], body.to_string().as_bytes()].map(|text| serde_json::from_slice::<Value>(text).unwrap());
        prop_assert_eq!(found, body, "{}", stream);
        prop_assert!(!reply.body.contains(&b'\n') || keeps_alive);
    }
}
