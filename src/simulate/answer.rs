//! Answers: functions of the endpoint and the body, in the shapes of OpenAI's document.
//!
//! Only the `id` differs between two answers to the same body, as it must.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fastrand::Rng;
use serde::Serialize;
use serde_json::json;

use super::image;
use super::question::{Form, Question, tokens};
use super::settings::ImageForm;
use crate::domain::Endpoint;

/// When everything here was "created": a constant, so that answers repeat (2026-01-01T00:00:00Z).
pub(super) const CREATED: u64 = 1_767_225_600;
/// An answer repeats no more of a prompt than this.
const ECHO_BYTES_MAX: usize = 1024;
const CATEGORIES: [&str; 13] = [
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
];

/// What an answer needs beside its question.
#[derive(Debug)]
pub(super) struct Context<'a> {
    /// BLAKE3 of the body.
    pub(super) fingerprint: blake3::Hash,
    /// Different for every request: makes the `id` unique.
    pub(super) sequence: u64,
    /// Where a question leaves it open.
    pub(super) images: ImageForm,
    /// Host and port of this server, for urls.
    pub(super) authority: &'a str,
}

/// The body of a 200.
pub(super) fn write(question: &Question<'_>, context: &Context<'_>) -> Vec<u8> {
    match question.endpoint {
        Endpoint::ChatCompletions => chat(question, context),
        Endpoint::Completions => completion(question, context),
        Endpoint::Embeddings => embeddings(question),
        Endpoint::Responses => response(question, context),
        Endpoint::Moderations => moderation(question, context),
        Endpoint::Images => images(question, context),
    }
}

impl Context<'_> {
    fn id(&self, prefix: &str) -> String {
        let hash = self.fingerprint.to_hex();
        format!("{prefix}sim{:.16}{:08x}", hash.as_str(), self.sequence)
    }
}

/// One choice's text, what it costs and whether it ran into its bound.
struct Said {
    text: String,
    tokens: u64,
    is_cut: bool,
}

impl Said {
    const fn finish_reason(&self) -> &'static str {
        if self.is_cut { "length" } else { "stop" }
    }
}

/// `[<hash>] <text>`; further choices are told apart as `[<hash>.1]`.
fn say(question: &Question<'_>, context: &Context<'_>, text: &str, choice: u64) -> Said {
    let hash = context.fingerprint.to_hex();
    let echo = cut(text, ECHO_BYTES_MAX);
    let mark =
        if choice == 0 { format!("{:.8}", hash.as_str()) } else { format!("{:.8}.{choice}", hash.as_str()) };
    let mut text = match question.form {
        Form::Json => json!({ "sim": mark, "echo": echo }).to_string(),
        Form::Text | Form::Floats { .. } | Form::Base64 { .. } | Form::Image(_) => format!("[{mark}] {echo}"),
    };
    let bound = question.max_output_tokens.map(|tokens| tokens.saturating_mul(4));
    let bound = bound.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(usize::MAX);
    let is_cut = text.len() > bound;
    text.truncate(cut(&text, bound).len());
    Said { tokens: tokens(text.len()), text, is_cut }
}

fn cut(text: &str, bytes_max: usize) -> &str {
    text.split_at_checked(text.floor_char_boundary(bytes_max)).map_or(text, |(head, _)| head)
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the API's names")]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

impl Usage {
    const fn new(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }
}

#[derive(Serialize)]
struct Completion<'a, C> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<C>,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<&'static str>,
    system_fingerprint: &'static str,
}

fn chat(question: &Question<'_>, context: &Context<'_>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Choice {
        index: u64,
        message: Message,
        logprobs: Option<()>,
        finish_reason: &'static str,
    }
    #[derive(Serialize)]
    struct Message {
        role: &'static str,
        content: String,
        refusal: Option<()>,
        /// No delta has them as long as there are none.
        #[serde(skip_serializing_if = "Option::is_none")]
        annotations: Option<[(); 0]>,
    }
    let annotations = question.stream.is_none().then_some([]);
    let mut output_tokens = 0;
    let text = question.texts.first().map_or("", |text| text);
    let choices = (0..question.n).map(|index| {
        let said = say(question, context, text, index);
        output_tokens += said.tokens;
        let finish_reason = said.finish_reason();
        let message = Message { role: "assistant", content: said.text, refusal: None, annotations };
        Choice { index, message, logprobs: None, finish_reason }
    });
    let choices = choices.collect();
    to_json(&Completion {
        id: context.id("chatcmpl-"),
        object: "chat.completion",
        created: CREATED,
        model: question.model(),
        choices,
        usage: Usage::new(question.input_tokens, output_tokens),
        service_tier: Some("default"),
        system_fingerprint: "fp_sim",
    })
}

fn completion(question: &Question<'_>, context: &Context<'_>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Choice {
        text: String,
        index: u64,
        logprobs: Option<()>,
        finish_reason: &'static str,
    }
    let mut output_tokens = 0;
    let mut choices = Vec::new();
    let pairs = question.texts.iter().flat_map(|text| (0..question.n).map(move |choice| (text, choice)));
    for (index, (text, choice)) in (0..).zip(pairs) {
        let said = say(question, context, text, choice);
        output_tokens += said.tokens;
        let finish_reason = said.finish_reason();
        choices.push(Choice { text: said.text, index, logprobs: None, finish_reason });
    }
    to_json(&Completion {
        id: context.id("cmpl-"),
        object: "text_completion",
        created: CREATED,
        model: question.model(),
        choices,
        usage: Usage::new(question.input_tokens, output_tokens),
        service_tier: None,
        system_fingerprint: "fp_sim",
    })
}

fn embeddings(question: &Question<'_>) -> Vec<u8> {
    #[derive(Serialize)]
    struct List<'a> {
        object: &'static str,
        data: Vec<Item>,
        model: &'a str,
        usage: EmbeddingUsage,
    }
    #[derive(Serialize)]
    struct Item {
        object: &'static str,
        index: u64,
        embedding: Vector,
    }
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Vector {
        Floats(Vec<f32>),
        Base64(String),
    }
    #[derive(Serialize)]
    struct EmbeddingUsage {
        prompt_tokens: u64,
        total_tokens: u64,
    }
    let embed = |text: &str| match question.form {
        Form::Base64 { dimensions } => {
            let bytes: Vec<u8> = vector(text, dimensions).into_iter().flat_map(f32::to_le_bytes).collect();
            Vector::Base64(STANDARD.encode(bytes))
        }
        Form::Floats { dimensions } => Vector::Floats(vector(text, dimensions)),
        Form::Text | Form::Json | Form::Image(_) => Vector::Floats(Vec::new()),
    };
    let data = (0..).zip(&question.texts);
    let data = data.map(|(index, text)| Item { object: "embedding", index, embedding: embed(text) });
    let tokens = question.input_tokens;
    to_json(&List {
        object: "list",
        data: data.collect(),
        model: question.model(),
        usage: EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens },
    })
}

/// A vector of length 1 that depends on the text alone.
fn vector(text: &str, dimensions: usize) -> Vec<f32> {
    let mut dice = Rng::with_seed(first_word(blake3::hash(text.as_bytes())));
    let mut vector: Vec<f32> = (0..dimensions).map(|_| dice.f32() - 0.5).collect();
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        for x in &mut vector {
            *x /= length;
        }
    }
    vector
}

fn first_word(hash: blake3::Hash) -> u64 {
    hash.as_bytes().first_chunk().copied().map_or(0, u64::from_le_bytes)
}

fn response(question: &Question<'_>, context: &Context<'_>) -> Vec<u8> {
    let said = say(question, context, question.texts.first().map_or("", |text| text), 0);
    let status = if said.is_cut { "incomplete" } else { "completed" };
    let repeated = &question.repeated;
    to_json(&json!({
        "id": context.id("resp_"),
        "object": "response",
        "created_at": CREATED,
        "completed_at": CREATED,
        "status": status,
        "background": false,
        "error": null,
        "incomplete_details": said.is_cut.then(|| json!({ "reason": "max_output_tokens" })),
        "instructions": repeated.instructions,
        "max_output_tokens": question.max_output_tokens,
        "model": question.model(),
        "output": [{
            "id": context.id("msg_"),
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [{ "type": "output_text", "text": said.text, "annotations": [], "logprobs": [] }],
        }],
        "parallel_tool_calls": true,
        "previous_response_id": null,
        "reasoning": { "effort": null, "summary": null },
        "service_tier": "default",
        "store": false,
        "temperature": repeated.temperature.map_or_else(|| json!(1.0), |raw| json!(raw)),
        "text": { "format": { "type": "text" } },
        "tool_choice": "auto",
        "tools": [],
        "top_p": repeated.top_p.map_or_else(|| json!(1.0), |raw| json!(raw)),
        "truncation": "disabled",
        "usage": {
            "input_tokens": question.input_tokens,
            "input_tokens_details": { "cache_write_tokens": 0, "cached_tokens": 0 },
            "output_tokens": said.tokens,
            "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": question.input_tokens + said.tokens,
        },
        "metadata": repeated.metadata.map_or_else(|| json!({}), |raw| json!(raw)),
    }))
}

fn moderation(question: &Question<'_>, context: &Context<'_>) -> Vec<u8> {
    let results = question.texts.iter().map(|text| {
        // Harmless, with scores that depend on the text alone.
        let mut dice = Rng::with_seed(first_word(blake3::hash(text.as_bytes())));
        let each = |value: &mut dyn FnMut() -> serde_json::Value| -> serde_json::Value {
            CATEGORIES.iter().map(|category| ((*category).to_owned(), value())).collect()
        };
        json!({
            "flagged": false,
            "categories": each(&mut || json!(false)),
            "category_scores": each(&mut || json!(dice.f32() / 100.0)),
            "category_applied_input_types": each(&mut || json!(["text"])),
        })
    });
    let results: Vec<_> = results.collect();
    to_json(&json!({ "id": context.id("modr-"), "model": question.model(), "results": results }))
}

fn images(question: &Question<'_>, context: &Context<'_>) -> Vec<u8> {
    let prompt = question.texts.first().map_or("", |text| text);
    let form = match question.form {
        Form::Image(form) => form.unwrap_or(context.images),
        Form::Text | Form::Json | Form::Floats { .. } | Form::Base64 { .. } => context.images,
    };
    let pictures = (0..question.n).map(|choice| {
        let seed = blake3::Hasher::new().update(&choice.to_le_bytes()).update(prompt.as_bytes()).finalize();
        match form {
            ImageForm::Base64 => json!({ "b64_json": STANDARD.encode(image::png(*seed.as_bytes())) }),
            ImageForm::Url => {
                json!({ "url": format!("http://{}/_sim/images/{}.png", context.authority, seed.to_hex()) })
            }
        }
    });
    let pictures: Vec<_> = pictures.collect();
    let (input, output) = (question.input_tokens, question.n);
    to_json(&json!({
        "created": CREATED,
        "data": pictures,
        "background": "opaque",
        "output_format": "png",
        "quality": "low",
        "size": "8x8",
        "usage": {
            "input_tokens": input,
            "input_tokens_details": { "text_tokens": input, "image_tokens": 0 },
            "output_tokens": output,
            "total_tokens": input + output,
        },
    }))
}

pub(super) fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and finite numbers always serialise")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::simulate::question;

    fn answer(endpoint: Endpoint, body: &Value, sequence: u64) -> Value {
        let body = body.to_string();
        let question = question::read(endpoint, body.as_bytes()).unwrap();
        let context = Context {
            fingerprint: blake3::hash(body.as_bytes()),
            sequence,
            images: ImageForm::Base64,
            authority: "127.0.0.1:1",
        };
        serde_json::from_slice(&write(&question, &context)).unwrap()
    }

    fn mark(body: &Value) -> String {
        blake3::hash(body.to_string().as_bytes()).to_hex().get(..8).unwrap().to_owned()
    }

    #[test]
    fn the_same_body_gets_the_same_answer_under_another_id() {
        let bodies = [
            (
                Endpoint::ChatCompletions,
                json!({"model": "m", "messages": [{"role": "user", "content": "x"}]}),
            ),
            (Endpoint::Completions, json!({"model": "m", "prompt": "x"})),
            (Endpoint::Embeddings, json!({"model": "m", "input": "x"})),
            (Endpoint::Moderations, json!({"input": "x"})),
            (Endpoint::Images, json!({"prompt": "x"})),
        ];
        for (endpoint, body) in bodies {
            let (mut first, mut second) = (answer(endpoint, &body, 1), answer(endpoint, &body, 2));
            if let Some(id) = first.get("id") {
                assert_ne!(id, &second["id"]);
                first["id"] = Value::Null;
                second["id"] = Value::Null;
            }
            assert_eq!(first, second, "{endpoint}");
        }
    }

    const WORDS: &[&str] =
        &["x", "é\\n", "user", "json_object", "url", "b64_json", "base64", "3-large", "[", "\u{1f600}"];
    const KEYS: &[&str] = &[
        "model",
        "messages",
        "prompt",
        "input",
        "n",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "response_format",
        "encoding_format",
        "dimensions",
        "instructions",
        "metadata",
        "user",
        "role",
        "content",
        "type",
        "text",
        "custom_id",
    ];

    /// A body of members that matter with values that may not.
    fn bodies() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (0..200_i64).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            prop::sample::select(WORDS).prop_map(Value::from),
        ];
        let value = leaf.prop_recursive(3, 24, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(prop::sample::select(KEYS), inner, 0..4)
                    .prop_map(|members| members.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
            ]
        });
        let members = prop::collection::btree_map(prop::sample::select(KEYS), value, 0..8);
        (members, "[a-z]{0,9}").prop_map(|(members, text)| {
            let mut body: serde_json::Map<_, _> =
                members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            // Otherwise hardly a body would be valid.
            let filled = [
                ("model", json!("m")),
                ("prompt", json!(text)),
                ("input", json!([text])),
                ("messages", json!([{"role": "user", "content": text}])),
            ];
            for (key, value) in filled {
                body.entry(key).or_insert(value);
            }
            Value::Object(body).to_string()
        })
    }

    proptest! {
        #[test]
        fn every_body_is_answered_or_refused_in_json(body in bodies(), junk in any::<Vec<u8>>()) {
            for endpoint in Endpoint::ALL {
                for body in [body.as_bytes(), &junk] {
                    let written = match question::read(endpoint, body) {
                        Ok(question) => {
                            question.cost();
                            let fingerprint = blake3::hash(body);
                            let context = Context { fingerprint, sequence: 1, images: ImageForm::Url, authority: "a" };
                            write(&question, &context)
                        }
                        Err(refusal) => refusal.body(),
                    };
                    prop_assert!(serde_json::from_slice::<Value>(&written).is_ok());
                }
            }
        }
    }

    #[test]
    fn chat_echoes_its_text_in_n_choices() {
        let body = json!({"model": "m", "n": 2, "messages": [{"role": "user", "content": "Grüße"}]});
        let answer = answer(Endpoint::ChatCompletions, &body, 1);
        let mark = mark(&body);
        assert_eq!(answer["choices"][0]["message"]["content"], format!("[{mark}] Grüße"));
        assert_eq!(answer["choices"][1]["message"]["content"], format!("[{mark}.1] Grüße"));
        assert_eq!(answer["usage"], json!({"prompt_tokens": 2, "completion_tokens": 10, "total_tokens": 12}));
    }

    #[test]
    fn completions_are_flattened_prompt_by_prompt() {
        let body = json!({"model": "m", "prompt": ["a", "b"], "n": 2});
        let answer = answer(Endpoint::Completions, &body, 1);
        let mark = mark(&body);
        let texts: Vec<&str> =
            answer["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
        let first =
            [format!("[{mark}] a"), format!("[{mark}.1] a"), format!("[{mark}] b"), format!("[{mark}.1] b")];
        assert_eq!(texts, first);
        assert_eq!(answer["choices"][3]["index"], 3);
    }

    #[test]
    fn an_output_bound_cuts_at_a_character() {
        let body = json!({"model": "m", "prompt": "ééééé", "max_tokens": 4});
        let answer = answer(Endpoint::Completions, &body, 1);
        // 11 bytes of mark leave 5 of 16: two é of two bytes.
        assert_eq!(answer["choices"][0]["text"], format!("[{}] éé", mark(&body)));
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        assert_eq!(answer["usage"]["completion_tokens"], 4);
    }

    #[test]
    fn json_mode_answers_json() {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_object"}});
        let answer = answer(Endpoint::ChatCompletions, &body, 1);
        let content: Value =
            serde_json::from_str(answer["choices"][0]["message"]["content"].as_str().unwrap()).unwrap();
        assert_eq!(content, json!({"sim": mark(&body), "echo": "x"}));
    }

    #[test]
    fn embeddings_are_unit_vectors_and_the_same_in_base64() {
        let floats =
            answer(Endpoint::Embeddings, &json!({"model": "m", "input": ["a", "b"], "dimensions": 8}), 1);
        let floats: Vec<f32> = serde_json::from_value(floats["data"][1]["embedding"].clone()).unwrap();
        assert!((floats.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
        let body = json!({"model": "m", "input": "b", "dimensions": 8, "encoding_format": "base64"});
        let text = answer(Endpoint::Embeddings, &body, 1);
        let bytes = STANDARD.decode(text["data"][0]["embedding"].as_str().unwrap()).unwrap();
        let decoded: Vec<f32> = bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(decoded, floats);
        let large =
            answer(Endpoint::Embeddings, &json!({"model": "text-embedding-3-large", "input": "a"}), 1);
        assert_eq!(large["data"][0]["embedding"].as_array().unwrap().len(), 3072);
    }

    #[test]
    fn responses_repeat_what_was_set_and_say_when_they_were_cut() {
        let body = json!({"model": "m", "input": "x", "metadata": {"k": "v"}, "temperature": 0.5, "instructions": "be brief"});
        let whole = answer(Endpoint::Responses, &body, 1);
        assert_eq!(whole["status"], "completed");
        assert_eq!(whole["output"][0]["content"][0]["text"], format!("[{}] x", mark(&body)));
        assert_eq!((&whole["metadata"]["k"], &whole["temperature"]), (&json!("v"), &json!(0.5)));
        assert_eq!(whole["instructions"], "be brief");
        // The official clients call an answer without either of them malformed.
        let details = json!({"cache_write_tokens": 0, "cached_tokens": 0});
        assert_eq!(whole["usage"]["input_tokens_details"], details);
        let cut =
            answer(Endpoint::Responses, &json!({"model": "m", "input": "x", "max_output_tokens": 1}), 1);
        assert_eq!(
            (&cut["status"], &cut["incomplete_details"]["reason"]),
            (&json!("incomplete"), &json!("max_output_tokens"))
        );
    }

    #[test]
    fn moderations_and_images_answer_each_input() {
        let answer_to = |endpoint, body| answer(endpoint, &body, 1);
        let results = answer_to(Endpoint::Moderations, json!({"input": ["a", "b"]}));
        assert_eq!(results["results"].as_array().unwrap().len(), 2);
        assert_eq!(results["results"][0]["categories"].as_object().unwrap().len(), CATEGORIES.len());
        let pictures = answer_to(Endpoint::Images, json!({"prompt": "p", "n": 2}));
        let picture =
            |index: usize| STANDARD.decode(pictures["data"][index]["b64_json"].as_str().unwrap()).unwrap();
        assert!(picture(0).starts_with(b"\x89PNG"));
        assert_ne!(picture(0), picture(1));
        let urls = answer_to(Endpoint::Images, json!({"prompt": "p", "response_format": "url"}));
        assert!(urls["data"][0]["url"].as_str().unwrap().starts_with("http://127.0.0.1:1/_sim/images/"));
    }
}
