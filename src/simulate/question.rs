//! From a request body to what must be known to answer it.
//!
//! A body is read once into borrowed slices, and then only the members that matter are looked into:
//! a 1 MiB prompt is scanned, never copied. Unknown members are accepted, as compatible servers do.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::member::{Text, boolean, integer, number, string, unsupported};
use super::refusal::Refusal;
use super::settings::ImageForm;
use super::stream::Stream;
use crate::domain::Endpoint;

/// Choices of one answer, prompts times `n`: bounds the size of an answer.
const CHOICES_MAX: u64 = 2048;
/// OpenAI's default for `/v1/completions`.
const COMPLETION_TOKENS: u64 = 16;
/// OpenAI's largest model has 3072.
const DIMENSIONS_MAX: u64 = 4096;
const ROLES: [&str; 6] = ["developer", "system", "user", "assistant", "tool", "function"];

/// A valid request.
#[derive(Debug)]
pub(super) struct Question<'a> {
    pub(super) endpoint: Endpoint,
    /// As given; none only where the endpoint has a default.
    pub(super) model: Option<Cow<'a, str>>,
    /// The prompts or inputs; of chat and responses the one text to echo.
    pub(super) texts: Vec<Cow<'a, str>>,
    /// Of everything the user sent: bytes / 4, rounded up, at least 1.
    pub(super) input_tokens: u64,
    /// Choices for each text.
    pub(super) n: u64,
    /// Bound of each choice, if the body has one.
    pub(super) max_output_tokens: Option<u64>,
    pub(super) form: Form,
    /// The answer is to be streamed.
    pub(super) stream: Option<Stream>,
    /// From `metadata.custom_id` or `user`.
    pub(super) custom_id: Option<Cow<'a, str>>,
    /// What a response must repeat, as it stood in the body.
    pub(super) repeated: Repeated<'a>,
}

/// How the answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    /// The text is a JSON object.
    Json,
    Floats {
        dimensions: usize,
    },
    Base64 {
        dimensions: usize,
    },
    Image(Option<ImageForm>),
}

/// Members of `/v1/responses` that come back in its answer.
#[derive(Debug, Default)]
pub(super) struct Repeated<'a> {
    pub(super) instructions: Option<&'a RawValue>,
    pub(super) metadata: Option<&'a RawValue>,
    pub(super) temperature: Option<&'a RawValue>,
    pub(super) top_p: Option<&'a RawValue>,
}

impl Question<'_> {
    /// The model, or the API's default for the endpoints that have one.
    pub(super) fn model(&self) -> &str {
        match (&self.model, self.endpoint) {
            (Some(model), _) => model,
            (None, Endpoint::Moderations) => "omni-moderation-latest",
            (None, _) => "gpt-image-2",
        }
    }

    /// What the request counts against tokens per minute: its prompt and the bound of its output.
    pub(super) fn cost(&self) -> u64 {
        let default = if self.endpoint == Endpoint::Completions { COMPLETION_TOKENS } else { 0 };
        let each = self.max_output_tokens.unwrap_or(default);
        let choices = self.n.saturating_mul(u64::try_from(self.texts.len()).unwrap_or(u64::MAX));
        self.input_tokens.saturating_add(each.saturating_mul(choices))
    }
}

/// The members that matter, of all endpoints; null counts as absent.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    messages: Option<&'a RawValue>,
    prompt: Option<&'a RawValue>,
    input: Option<&'a RawValue>,
    n: Option<&'a RawValue>,
    max_tokens: Option<&'a RawValue>,
    max_completion_tokens: Option<&'a RawValue>,
    max_output_tokens: Option<&'a RawValue>,
    stream: Option<&'a RawValue>,
    stream_options: Option<&'a RawValue>,
    best_of: Option<&'a RawValue>,
    response_format: Option<&'a RawValue>,
    encoding_format: Option<&'a RawValue>,
    dimensions: Option<&'a RawValue>,
    instructions: Option<&'a RawValue>,
    temperature: Option<&'a RawValue>,
    top_p: Option<&'a RawValue>,
    presence_penalty: Option<&'a RawValue>,
    frequency_penalty: Option<&'a RawValue>,
    metadata: Option<&'a RawValue>,
    user: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Option<&'a RawValue>,
    content: Option<&'a RawValue>,
}

/// An element of an array of content; only its text matters here.
#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow)]
    text: Option<Text<'a>>,
}

/// Reads a body, or says what OpenAI would say about it.
pub(super) fn read(endpoint: Endpoint, body: &[u8]) -> Result<Question<'_>, Refusal> {
    // An array would pass as an object whose members are written in order.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(Refusal::no_object());
    }
    let body: Body<'_> = serde_json::from_slice(body).map_err(|error| Refusal::bad_json(&error))?;
    let stream = boolean(body.stream, "stream")?;
    let stream = Stream::read(endpoint, stream, body.stream_options, body.best_of)?;
    let model = string(body.model, "model")?;
    if model.is_none() && !endpoint.model_is_optional() {
        return Err(Refusal::missing_model());
    }
    number(body.temperature, "temperature", 0.0, 2.0)?;
    number(body.top_p, "top_p", 0.0, 1.0)?;
    number(body.presence_penalty, "presence_penalty", -2.0, 2.0)?;
    number(body.frequency_penalty, "frequency_penalty", -2.0, 2.0)?;
    let (texts, input_bytes) = match endpoint {
        Endpoint::ChatCompletions => one(conversation(body.messages, "messages")?),
        Endpoint::Responses if starts_with(body.input, '[') => one(conversation(body.input, "input")?),
        Endpoint::Responses => inputs(body.input, "input", false)?,
        Endpoint::Completions => inputs(body.prompt, "prompt", true)?,
        Endpoint::Embeddings => inputs(body.input, "input", true)?,
        Endpoint::Moderations => moderated(body.input)?,
        Endpoint::Images => inputs(body.prompt, "prompt", false)?,
    };
    let input_bytes = input_bytes + body.instructions.map_or(0, |raw| raw.get().len());
    let n = choices(endpoint, body.n, texts.len())?;
    Ok(Question {
        endpoint,
        model,
        texts,
        input_tokens: tokens(input_bytes).max(1),
        n,
        max_output_tokens: output_bound(endpoint, &body)?,
        form: form(endpoint, &body)?,
        stream,
        custom_id: custom_id(&body),
        repeated: Repeated {
            instructions: body.instructions,
            metadata: body.metadata,
            temperature: body.temperature,
            top_p: body.top_p,
        },
    })
}

/// Bytes / 4, rounded up.
pub(super) fn tokens(bytes: usize) -> u64 {
    u64::try_from(bytes.div_ceil(4)).unwrap_or(u64::MAX)
}

type Texts<'a> = (Vec<Cow<'a, str>>, usize);

fn one((text, bytes): (Cow<'_, str>, usize)) -> Texts<'_> {
    (vec![text], bytes)
}

fn starts_with(raw: Option<&RawValue>, first: char) -> bool {
    raw.is_some_and(|raw| raw.get().starts_with(first))
}

/// The last user text (else the last text) of a list of messages, and the bytes of all of them.
fn conversation<'a>(
    raw: Option<&'a RawValue>,
    param: &'static str,
) -> Result<(Cow<'a, str>, usize), Refusal> {
    let raw = raw.ok_or_else(|| Refusal::missing(param))?.get();
    let expected = "an array of objects";
    let messages: Vec<&RawValue> =
        serde_json::from_str(raw).map_err(|_| Refusal::invalid_type(param, expected, raw))?;
    if messages.is_empty() {
        let message = format!("Invalid '{param}': empty array. Expected an array with minimum length 1.");
        return Err(Refusal::invalid_value(param, message));
    }
    let mut bytes = 0;
    let (mut last, mut last_of_user) = (Cow::Borrowed(""), None);
    for (index, raw) in messages.iter().enumerate() {
        let raw = raw.get();
        let place = || format!("{param}[{index}]");
        let object = raw.starts_with('{').then(|| serde_json::from_str::<Message<'_>>(raw));
        let Some(Ok(message)) = object else {
            return Err(Refusal::invalid_type(place(), "an object", raw));
        };
        let role = match message.role.map(|role| serde_json::from_str::<Text<'_>>(role.get())) {
            Some(Ok(Text(role))) if ROLES.contains(&&*role) => role,
            // Items of a response that are no messages (results of tools, say) have no role.
            None if param == "input" => continue,
            _ => {
                let message = format!("Invalid value for '{}.role': expected one of {ROLES:?}.", place());
                return Err(Refusal::invalid_value(format!("{}.role", place()), message));
            }
        };
        let Some(content) = message.content else { continue };
        let text = content_text(content.get()).ok_or_else(|| {
            Refusal::invalid_type(format!("{}.content", place()), "a string", content.get())
        })?;
        bytes += text.len();
        if role == "user" {
            last_of_user = Some(text);
        } else {
            last = text;
        }
    }
    Ok((last_of_user.unwrap_or(last), bytes))
}

/// The text of a string, or of an array's parts one after the other.
fn content_text(raw: &str) -> Option<Cow<'_, str>> {
    if raw.starts_with('[') {
        let parts: Vec<Part<'_>> = serde_json::from_str(raw).ok()?;
        let texts: Vec<&str> = parts.iter().filter_map(|part| Some(&*part.text.as_ref()?.0)).collect();
        return Some(Cow::Owned(texts.join("\n")));
    }
    serde_json::from_str::<Text<'_>>(raw).ok().map(|text| text.0)
}

/// A string; with `lists` also an array of strings, of tokens, or of arrays of tokens.
fn inputs<'a>(raw: Option<&'a RawValue>, param: &'static str, lists: bool) -> Result<Texts<'a>, Refusal> {
    let raw = raw.ok_or_else(|| Refusal::missing(param))?.get();
    let expected = if lists { "a string or an array of strings or integers" } else { "a string" };
    let wrong = || Refusal::invalid_type(param, expected, raw);
    if !raw.starts_with('[') {
        let Text(text) = serde_json::from_str(raw).map_err(|_| wrong())?;
        let bytes = text.len();
        return Ok((vec![text], bytes));
    }
    if !lists {
        return Err(wrong());
    }
    let items: Vec<&RawValue> = serde_json::from_str(raw).map_err(|_| wrong())?;
    let Some(first) = items.first() else {
        let message = format!("Invalid '{param}': empty array. Expected an array with minimum length 1.");
        return Err(Refusal::invalid_value(param, message));
    };
    match first.get().as_bytes().first() {
        Some(b'"') => {
            let texts: Result<Vec<Text<'_>>, _> =
                items.iter().map(|i| serde_json::from_str(i.get())).collect();
            let texts: Vec<Cow<'_, str>> = texts.map_err(|_| wrong())?.into_iter().map(|t| t.0).collect();
            let bytes = texts.iter().map(|text| text.len()).sum();
            Ok((texts, bytes))
        }
        Some(b'[') => {
            let mut count = 0;
            for item in &items {
                let tokens: Vec<u32> = serde_json::from_str(item.get()).map_err(|_| wrong())?;
                count += tokens.len();
            }
            let texts = items.iter().map(|item| Cow::Borrowed(item.get())).collect();
            Ok((texts, count.saturating_mul(4)))
        }
        _ => {
            let tokens: Vec<u32> = serde_json::from_str(raw).map_err(|_| wrong())?;
            Ok((vec![Cow::Borrowed(raw)], tokens.len().saturating_mul(4)))
        }
    }
}

/// As [`inputs`], or one input made of parts (text and images).
fn moderated(raw: Option<&RawValue>) -> Result<Texts<'_>, Refusal> {
    let parts = raw
        .map(RawValue::get)
        .filter(|raw| raw.strip_prefix('[').is_some_and(|rest| rest.trim_ascii_start().starts_with('{')));
    match parts.and_then(content_text) {
        Some(text) => {
            let bytes = text.len();
            Ok((vec![text], bytes))
        }
        None => inputs(raw, "input", true),
    }
}

fn choices(endpoint: Endpoint, n: Option<&RawValue>, texts: usize) -> Result<u64, Refusal> {
    let most = match endpoint {
        Endpoint::ChatCompletions | Endpoint::Completions => 128,
        Endpoint::Images => 10,
        Endpoint::Embeddings | Endpoint::Responses | Endpoint::Moderations => 1,
    };
    let n = integer(n, "n", 1, most)?.unwrap_or(1);
    let texts = u64::try_from(texts).unwrap_or(u64::MAX);
    if n.saturating_mul(texts) > CHOICES_MAX {
        let message =
            format!("Invalid request: {texts} inputs times {n} choices are more than {CHOICES_MAX}.");
        return Err(Refusal::invalid_value("n", message));
    }
    Ok(n)
}

fn output_bound(endpoint: Endpoint, body: &Body<'_>) -> Result<Option<u64>, Refusal> {
    let bound = |raw, param| integer(raw, param, 1, u64::MAX);
    match endpoint {
        Endpoint::ChatCompletions => {
            let current = bound(body.max_completion_tokens, "max_completion_tokens")?;
            Ok(current.or(bound(body.max_tokens, "max_tokens")?))
        }
        Endpoint::Completions => integer(body.max_tokens, "max_tokens", 0, u64::MAX),
        Endpoint::Responses => bound(body.max_output_tokens, "max_output_tokens"),
        Endpoint::Embeddings | Endpoint::Moderations | Endpoint::Images => Ok(None),
    }
}

fn form(endpoint: Endpoint, body: &Body<'_>) -> Result<Form, Refusal> {
    match endpoint {
        Endpoint::ChatCompletions => {
            #[derive(Deserialize)]
            struct Format<'a> {
                #[serde(rename = "type", borrow)]
                kind: Cow<'a, str>,
            }
            let Some(raw) = body.response_format else { return Ok(Form::Text) };
            let format: Format<'_> = serde_json::from_str(raw.get())
                .map_err(|_| Refusal::invalid_type("response_format", "an object with a type", raw.get()))?;
            Ok(if format.kind == "text" { Form::Text } else { Form::Json })
        }
        Endpoint::Embeddings => {
            let large =
                starts_with(body.model, '"') && body.model.is_some_and(|m| m.get().contains("3-large"));
            let default = if large { 3072 } else { 1536 };
            let dimensions = integer(body.dimensions, "dimensions", 1, DIMENSIONS_MAX)?;
            let dimensions = dimensions.and_then(|d| usize::try_from(d).ok()).unwrap_or(default);
            match string(body.encoding_format, "encoding_format")?.as_deref() {
                None | Some("float") => Ok(Form::Floats { dimensions }),
                Some("base64") => Ok(Form::Base64 { dimensions }),
                Some(other) => Err(unsupported("encoding_format", other, "float, base64")),
            }
        }
        Endpoint::Images => match string(body.response_format, "response_format")?.as_deref() {
            None => Ok(Form::Image(None)),
            Some(word) => match word.parse() {
                Ok(form) => Ok(Form::Image(Some(form))),
                Err(_) => Err(unsupported("response_format", word, "url, b64_json")),
            },
        },
        Endpoint::Completions | Endpoint::Responses | Endpoint::Moderations => Ok(Form::Text),
    }
}

/// What the user calls the request, as far as the body tells.
fn custom_id<'a>(body: &Body<'a>) -> Option<Cow<'a, str>> {
    #[derive(Deserialize)]
    struct Metadata<'a> {
        #[serde(borrow)]
        custom_id: Option<Text<'a>>,
    }
    let metadata = body.metadata.and_then(|raw| serde_json::from_str::<Metadata<'_>>(raw.get()).ok());
    let custom_id = metadata.and_then(|metadata| metadata.custom_id);
    let user = || body.user.and_then(|raw| serde_json::from_str::<Text<'_>>(raw.get()).ok());
    custom_id.or_else(user).map(|text| text.0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn refusal(endpoint: Endpoint, body: &Value) -> Value {
        let body = body.to_string();
        let refusal = read(endpoint, body.as_bytes()).unwrap_err();
        assert_eq!(refusal.status, 400);
        serde_json::from_slice::<Value>(&refusal.body()).unwrap()["error"].take()
    }

    fn texts(endpoint: Endpoint, body: &Value) -> Vec<String> {
        let body = body.to_string();
        let question = read(endpoint, body.as_bytes()).unwrap();
        question.texts.into_iter().map(Cow::into_owned).collect()
    }

    #[test]
    fn the_last_user_text_is_echoed() {
        let messages = json!([
            {"role": "system", "content": "brief"},
            {"role": "user", "content": "first"},
            {"role": "user", "content": [{"type": "text", "text": "a \"b\""}, {"type": "image_url", "image_url": {"url": "x"}}]},
            {"role": "assistant", "content": null},
        ]);
        let chat = json!({"model": "m", "messages": messages});
        assert_eq!(texts(Endpoint::ChatCompletions, &chat), ["a \"b\""]);
        let items = json!([{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}, {"type": "function_call_output", "output": "1"}]);
        assert_eq!(texts(Endpoint::Responses, &json!({"model": "m", "input": items})), ["hi"]);
        assert_eq!(texts(Endpoint::Responses, &json!({"model": "m", "input": "plain"})), ["plain"]);
        let parts = json!({"input": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]});
        assert_eq!(texts(Endpoint::Moderations, &parts), ["one\ntwo"]);
    }

    #[test]
    fn prompts_come_in_four_forms() {
        let prompts = |prompt: Value| texts(Endpoint::Completions, &json!({"model": "m", "prompt": prompt}));
        assert_eq!(prompts(json!("a")), ["a"]);
        assert_eq!(prompts(json!(["a", "b"])), ["a", "b"]);
        assert_eq!(prompts(json!([1, 2])), ["[1,2]"]);
        assert_eq!(prompts(json!([[1], [2, 3]])), ["[1]", "[2,3]"]);
    }

    #[test]
    fn tokens_are_a_quarter_of_the_bytes_and_cost_includes_the_output_bound() {
        let body = json!({"model": "m", "prompt": ["12345678", "1"], "n": 3, "max_tokens": 10}).to_string();
        let question = read(Endpoint::Completions, body.as_bytes()).unwrap();
        assert_eq!((question.input_tokens, question.n), (3, 3));
        assert_eq!(question.cost(), 3 + 10 * 3 * 2);
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "12345678"}]}).to_string();
        assert_eq!(read(Endpoint::ChatCompletions, body.as_bytes()).unwrap().cost(), 2);
        let body = json!({"model": "m", "input": [1, 2, 3]}).to_string();
        assert_eq!(read(Endpoint::Embeddings, body.as_bytes()).unwrap().input_tokens, 3);
    }

    #[test]
    fn custom_ids_are_found_in_metadata_and_user() {
        let id = |body: Value| {
            let body = body.to_string();
            read(Endpoint::Images, body.as_bytes()).unwrap().custom_id.map(Cow::into_owned)
        };
        assert_eq!(
            id(json!({"prompt": "p", "metadata": {"custom_id": "a"}, "user": "b"})).as_deref(),
            Some("a")
        );
        assert_eq!(id(json!({"prompt": "p", "user": "b"})).as_deref(), Some("b"));
        assert_eq!(id(json!({"prompt": "p", "metadata": 5})), None);
    }

    #[test]
    fn bad_bodies_are_refused_with_their_parameter() {
        let messages = json!([{"role": "user", "content": "x"}]);
        let with = |name: &str, value: Value| {
            let mut body = json!({"model": "m", "messages": messages});
            body[name] = value;
            let error = refusal(Endpoint::ChatCompletions, &body);
            (
                error["param"].as_str().unwrap_or("").to_owned(),
                error["code"].as_str().unwrap_or("").to_owned(),
            )
        };
        let cases = [
            ("model", json!(null), "model", "missing_required_parameter"),
            ("model", json!(5), "model", "invalid_type"),
            ("messages", json!(null), "messages", "missing_required_parameter"),
            ("messages", json!("x"), "messages", "invalid_type"),
            ("messages", json!([]), "messages", "invalid_value"),
            ("messages", json!(["x"]), "messages[0]", "invalid_type"),
            ("messages", json!([{"role": "boss", "content": "x"}]), "messages[0].role", "invalid_value"),
            ("messages", json!([{"content": "x"}]), "messages[0].role", "invalid_value"),
            ("messages", json!([{"role": "user", "content": 5}]), "messages[0].content", "invalid_type"),
            ("stream_options", json!({}), "stream_options", "invalid_value"),
            ("stream", json!("yes"), "stream", "invalid_type"),
            ("n", json!(0), "n", "invalid_value"),
            ("n", json!(129), "n", "invalid_value"),
            ("n", json!(1.5), "n", "invalid_type"),
            ("temperature", json!(2.1), "temperature", "invalid_value"),
            ("temperature", json!("hot"), "temperature", "invalid_type"),
            ("max_tokens", json!(-1), "max_tokens", "invalid_value"),
            ("response_format", json!("json"), "response_format", "invalid_type"),
        ];
        for (name, value, param, code) in cases {
            assert_eq!(with(name, value.clone()), (param.to_owned(), code.to_owned()), "{name} = {value}");
        }
        for (endpoint, missing) in [
            (Endpoint::Completions, "prompt"),
            (Endpoint::Embeddings, "input"),
            (Endpoint::Responses, "input"),
            (Endpoint::Moderations, "input"),
            (Endpoint::Images, "prompt"),
        ] {
            assert_eq!(refusal(endpoint, &json!({"model": "m"}))["param"], missing);
        }
    }

    #[test]
    fn what_is_no_json_object_is_refused() {
        for bad in ["", "{", "[1]", "null", "\"x\"", "{\"model\":\"a\",\"model\":\"b\"}", "{\"a\":\"\u{0}\"}"]
        {
            let refusal = read(Endpoint::ChatCompletions, bad.as_bytes()).unwrap_err();
            assert_eq!((refusal.status, refusal.name), (400, "bad_json"), "{bad}");
        }
        assert_eq!(read(Endpoint::Embeddings, b"{\"input\":\"\xff\"}").unwrap_err().name, "bad_json");
    }

    #[test]
    fn answers_are_bounded_by_their_number_of_choices() {
        let prompts: Vec<&str> = vec!["x"; 100];
        let error = refusal(Endpoint::Completions, &json!({"model": "m", "prompt": prompts, "n": 128}));
        assert_eq!(error["param"], "n");
    }
}
