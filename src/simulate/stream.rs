//! Answers as streams of events, as OpenAI sends them: for each choice its role, its text in pieces and why it ended, then
//! what it all cost, if that was asked for, then `[DONE]`.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::member::integer;
use super::refusal::Refusal;
use crate::domain::Endpoint;
use crate::reading::json::members;

/// A piece of text, in bytes; about as much as a few tokens.
const PIECE_BYTES: usize = 16;

/// What stands before the data of an event, and behind.
const DATA: &str = "data: ";
const END: &str = "\n\n";

/// What an answer of chat says that it is, and what its chunks say.
const CHAT: &str = "\"chat.completion\"";
const CHAT_CHUNK: &str = "\"chat.completion.chunk\"";

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stream {
    /// `stream_options.include_usage`.
    pub(super) with_usage: bool,
}

impl Stream {
    /// What a body asks for by these members; none for an answer in one piece.
    ///
    /// # Errors
    ///
    /// The answer can't be streamed, or the members don't belong together.
    pub(super) fn read(
        endpoint: Endpoint,
        stream: Option<bool>,
        options: Option<&RawValue>,
        best_of: Option<&RawValue>,
    ) -> Result<Option<Self>, Refusal> {
        #[derive(Deserialize)]
        struct Options {
            include_usage: Option<bool>,
        }
        let options = options.map(RawValue::get).filter(|options| *options != "null");
        if stream != Some(true) {
            return options.map_or(Ok(None), |_| Err(Refusal::stream_options_without_stream()));
        }
        // Which is best is known at the end.
        let can_stream = match endpoint {
            Endpoint::ChatCompletions => true,
            Endpoint::Completions => integer(best_of, "best_of", 0, 20)?.is_none_or(|best_of| best_of <= 1),
            Endpoint::Embeddings | Endpoint::Responses | Endpoint::Moderations | Endpoint::Images => false,
        };
        if !can_stream {
            return Err(Refusal::unsupported_stream());
        }
        let Some(options) = options else { return Ok(Some(Self { with_usage: false })) };
        let options: Options = serde_json::from_str(options)
            .map_err(|_| Refusal::invalid_type("stream_options", "an object", options))?;
        Ok(Some(Self { with_usage: options.include_usage == Some(true) }))
    }

    /// `answer` as events; it is one of chat or of completions, written here.
    pub(super) fn write(self, answer: &[u8]) -> Bytes {
        let text = str::from_utf8(answer).unwrap_or_default();
        let members = members(text).unwrap_or_default();
        let mut events = Events { head: String::new(), text: String::new(), with_usage: self.with_usage };
        let (mut choices, mut usage, mut is_chat) = (Vec::new(), "null", false);
        for member in members {
            let value = match &*member.key {
                "choices" => {
                    choices = serde_json::from_str::<Vec<Value>>(member.value).unwrap_or_default();
                    continue;
                }
                "usage" => {
                    usage = member.value;
                    continue;
                }
                "object" if member.value == CHAT => {
                    is_chat = true;
                    CHAT_CHUNK
                }
                _ => member.value,
            };
            events.head.extend(["\"", &*member.key, "\":", value, ","]);
        }
        for choice in &choices {
            if is_chat {
                events.message(choice);
            } else {
                events.text(choice);
            }
        }
        if self.with_usage {
            events.push("[]", usage);
        }
        events.text.extend([DATA, "[DONE]", END]);
        events.text.into()
    }
}

/// Where about the first half of the bytes of a stream ends, with a whole event.
pub(super) fn first_half(events: &[u8]) -> usize {
    let half = events.get(..events.len() / 2).unwrap_or_default();
    memchr::memmem::rfind(half, END.as_bytes()).map_or(0, |at| at + END.len())
}

/// One event more.
pub(super) fn with_event(events: &Bytes, data: &[u8]) -> Bytes {
    [events, DATA.as_bytes(), data, END.as_bytes()].concat().into()
}

struct Events {
    /// What stands in every chunk.
    head: String,
    text: String,
    with_usage: bool,
}

impl Events {
    fn push(&mut self, choices: &str, usage: &str) {
        self.text.extend([DATA, "{", &self.head, "\"choices\":", choices]);
        if self.with_usage {
            self.text.extend([",\"usage\":", usage]);
        }
        self.text.extend(["}", END]);
    }

    fn choice(&mut self, whole: &Value, name: &str, said: &Value, finish_reason: &Value) {
        let index = whole.get("index");
        let choice = json!([{"index": index, name: said, "logprobs": null, "finish_reason": finish_reason}]);
        self.push(&choice.to_string(), "null");
    }

    fn message(&mut self, whole: &Value) {
        let begin = json!({"role": "assistant", "content": "", "refusal": null});
        self.choice(whole, "delta", &begin, &Value::Null);
        for piece in pieces(whole.pointer("/message/content")) {
            self.choice(whole, "delta", &json!({"content": piece}), &Value::Null);
        }
        self.choice(whole, "delta", &json!({}), &json!(whole.get("finish_reason")));
    }

    fn text(&mut self, whole: &Value) {
        for piece in pieces(whole.get("text")) {
            self.choice(whole, "text", &piece.into(), &Value::Null);
        }
        self.choice(whole, "text", &"".into(), &json!(whole.get("finish_reason")));
    }
}

fn pieces(text: Option<&Value>) -> impl Iterator<Item = &str> {
    let mut rest = text.and_then(Value::as_str).unwrap_or_default();
    std::iter::from_fn(move || {
        let (piece, behind) = rest.split_at_checked(rest.floor_char_boundary(PIECE_BYTES))?;
        rest = behind;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use serde_json::value::RawValue;
    use tokio::time::Instant;
    use url::Url;

    use super::*;
    use crate::clock::Seed;
    use crate::domain::{self, Endpoint};
    use crate::provider::{self, Provider};
    use crate::simulate::{Engine, Latency, Settings, SimulatedTransport};

    fn client(settings: Settings) -> (Provider, Arc<Engine>) {
        let engine = Arc::new(Engine::new(settings, Seed::fixed(1)).unwrap());
        let settings = provider::Settings {
            name: "sim".to_owned(),
            base_url: Url::parse("http://sim.invalid/v1").unwrap(),
            api_key: None,
            custom: provider::Custom::default(),
            timeout: Duration::from_mins(10),
            waits: provider::Waits::default(),
            max_reply: 1 << 20,
            flex_timeout: Duration::from_mins(15),
            stream: true,
        };
        (Provider::new(settings, Arc::new(SimulatedTransport::new(Arc::clone(&engine)))), engine)
    }

    async fn ask(provider: &Provider, stream: bool, endpoint: Endpoint, body: &Value) -> domain::Outcome {
        let body = RawValue::from_string(body.to_string()).unwrap();
        let stream = Some(stream);
        let custom_id = "a".to_owned();
        provider.call(&domain::Request { custom_id, endpoint, model: None, stream, body }).await.outcome
    }

    fn chat(text: &str) -> Value {
        json!({"model": "m", "messages": [{"role": "user", "content": text}]})
    }

    #[tokio::test(start_paused = true)]
    async fn batchd_s_own_client_makes_the_answer_of_a_stream_that_it_gets_without() {
        let (provider, engine) = client(Settings::default());
        let text = "a text — in more than one piece, \"quoted\"\n".repeat(3);
        for (endpoint, body) in [
            (Endpoint::ChatCompletions, chat(&text)),
            (
                Endpoint::ChatCompletions,
                json!({"model": "m", "n": 3, "messages": [{"role": "user", "content": ""}]}),
            ),
            (Endpoint::Completions, json!({"model": "m", "prompt": [text, "b"], "n": 2, "max_tokens": 20})),
            (Endpoint::Completions, json!({"model": "m", "prompt": "c", "best_of": 2})),
        ] {
            let mut bodies = Vec::new();
            for stream in [false, true] {
                let domain::Outcome::Answered(answer) = ask(&provider, stream, endpoint, &body).await else {
                    panic!()
                };
                let hash = blake3::hash(answer.body.get().as_bytes());
                assert_eq!(
                    engine.entries().last().unwrap().answer,
                    Some(hash),
                    "the ledger knows what was meant"
                );
                let mut answer: Value = serde_json::from_str(answer.body.get()).unwrap();
                // The one tells two askings apart, the other is not in a delta.
                answer["id"].take();
                for choice in answer["choices"].as_array_mut().unwrap() {
                    choice["message"].as_object_mut().and_then(|message| message.remove("annotations"));
                    // The marks tell the bodies that were sent apart.
                    for text in ["/message/content", "/text"] {
                        if let Some(text) = choice.pointer_mut(text).filter(|text| text.is_string()) {
                            *text = text.as_str().unwrap().split_once(']').unwrap().1.into();
                        }
                    }
                }
                bodies.push(answer);
            }
            assert_eq!(bodies[0], bodies[1], "{body}");
        }
        assert_eq!((engine.summary().requests, engine.summary().paid), (8, 8));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_takes_the_time_that_its_answer_takes_and_may_break_or_stand_still() {
        let latency = Latency::fixed(Duration::from_secs(100));
        let (provider, _) = client(Settings { latency, ..Settings::default() });
        let started = Instant::now();
        let outcome = ask(&provider, true, Endpoint::ChatCompletions, &chat("x")).await;
        assert!(matches!(outcome, domain::Outcome::Answered(_)));
        assert_eq!(started.elapsed(), Duration::from_secs(100));
        for (fault, code) in [
            ("cut", "truncated"),
            ("drop", "connection_lost"),
            ("stall", "timeout"),
            ("half", "truncated"),
            ("error", "invalid_answer"),
        ] {
            let faults = format!("{fault}=1").parse().unwrap();
            let slow = Duration::from_mins(5);
            let (provider, engine) = client(Settings { latency, slow, faults, ..Settings::default() });
            let started = Instant::now();
            let outcome = ask(&provider, true, Endpoint::ChatCompletions, &chat("x")).await;
            let domain::Outcome::Failed(failure) = outcome else { panic!("{fault}: {outcome:?}") };
            assert_eq!((failure.code, failure.maybe_paid, engine.summary().paid), (code, true, 1), "{fault}");
            // What stands still is noticed after two minutes, not when it goes on.
            let took = Duration::from_secs(if fault == "stall" { 220 } else { 100 });
            assert_eq!(started.elapsed(), took, "{fault}");
        }
        for fault in ["slow", "drip", "stall"] {
            let faults = format!("{fault}=1").parse().unwrap();
            let slow = Duration::from_secs(100);
            let (provider, engine) = client(Settings { latency, slow, faults, ..Settings::default() });
            let outcome = ask(&provider, true, Endpoint::ChatCompletions, &chat("x")).await;
            assert!(matches!(outcome, domain::Outcome::Answered(_)), "{fault}: {outcome:?}");
            assert!(engine.entries()[0].answer.is_some());
        }
    }

    #[test]
    fn events_are_openai_s() {
        let answer = json!({
            "id": "a", "object": "chat.completion", "created": 1, "model": "m", "system_fingerprint": "f",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "0123456789abcdef—"}, "logprobs": null, "finish_reason": "stop"}],
            "usage": {"total_tokens": 3},
        });
        let text = |with_usage| {
            String::from_utf8(Stream { with_usage }.write(answer.to_string().as_bytes()).to_vec()).unwrap()
        };
        let events = |text: &str| -> Vec<Value> {
            let events = text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
            events.filter_map(|event| serde_json::from_str(event).ok()).collect()
        };
        let (plain, counted) = (text(false), text(true));
        assert!(plain.ends_with("\n\ndata: [DONE]\n\n") && !plain.contains("usage"), "{plain}");
        let deltas: Vec<Value> =
            events(&plain).iter().map(|chunk| chunk["choices"][0]["delta"].clone()).collect();
        assert_eq!(
            json!(deltas),
            json!([{"role": "assistant", "content": "", "refusal": null}, {"content": "0123456789abcdef"}, {"content": "—"}, {}])
        );
        let counted = events(&counted);
        let last = counted.last().unwrap();
        assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &json!({"total_tokens": 3})));
        assert!(counted[0]["usage"].is_null() && counted[0]["object"] == "chat.completion.chunk");
        assert_eq!(counted[3]["choices"][0]["finish_reason"], "stop");
    }
}
