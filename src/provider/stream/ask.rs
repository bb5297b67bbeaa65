//! Asking for a stream: which requests can be streamed, and what is added to their bodies.

use serde_json::value::RawValue;

use crate::domain::{Endpoint, Request};
use crate::reading::json::{Member, members};

const STREAM: &str = "stream";
const OPTIONS: &str = "stream_options";
const INCLUDE_USAGE: &str = "include_usage";

/// A request that is to be streamed.
#[derive(Debug)]
pub(in crate::provider) struct Question {
    /// What is sent: the request's own, byte for byte, and the members that ask for a stream.
    pub(in crate::provider) body: String,
    /// How many choices a whole answer has.
    pub(in crate::provider) choices: u64,
}

/// How `request` is asked for as a stream; none for one that has to be answered in one piece: of other endpoints,
/// with `best_of` (what is best is known at the end) or with sound (whose form is another one in a stream).
pub(in crate::provider) fn question(request: &Request) -> Option<Question> {
    let text = request.body.get();
    let members = members(text).ok()?;
    let find = |name: &str| members.iter().rev().find(|member| member.key == name).map(|member| member.value);
    let number = |name: &str| find(name)?.parse::<u64>().ok();
    let prompts = match request.endpoint {
        Endpoint::ChatCompletions if find("audio").is_none_or(|audio| audio == "null") => 1,
        Endpoint::Completions if number("best_of").is_none_or(|best_of| best_of <= 1) => {
            prompts(find("prompt"))
        }
        Endpoint::ChatCompletions
        | Endpoint::Completions
        | Endpoint::Embeddings
        | Endpoint::Responses
        | Endpoint::Moderations
        | Endpoint::Images => return None,
    };
    let choices = number("n").unwrap_or(1).max(1).saturating_mul(prompts);
    Some(Question { body: asking(text, &members), choices })
}

/// How many prompts there are: a string or an array of tokens is one.
fn prompts(prompt: Option<&str>) -> u64 {
    let many: Vec<&RawValue> =
        prompt.and_then(|prompt| serde_json::from_str(prompt).ok()).unwrap_or_default();
    let are_prompts = many.first().is_some_and(|first| first.get().starts_with(['"', '[']));
    if are_prompts { u64::try_from(many.len()).unwrap_or(u64::MAX) } else { 1 }
}

/// `text` with the members that ask for a stream.
fn asking(text: &str, members: &[Member<'_>]) -> String {
    let mut edited = Edited { text, done: 0, out: String::with_capacity(text.len() + 64) };
    for member in members {
        match &*member.key {
            STREAM => edited.replace(member, "true"),
            OPTIONS => edited.replace(member, &with_usage(member.value)),
            _ => {}
        }
    }
    let lacks = |name: &str| !members.iter().any(|member| member.key == name);
    let mut more = Vec::new();
    if lacks(STREAM) {
        more.push(format!("\"{STREAM}\":true"));
    }
    if lacks(OPTIONS) {
        more.push(format!("\"{OPTIONS}\":{}", with_usage("{}")));
    }
    edited.end(members.is_empty(), &more)
}

/// The options of a stream, asking for usage too.
fn with_usage(options: &str) -> String {
    let Some(members) = members(options).ok().filter(|_| options.starts_with('{')) else {
        return with_usage("{}");
    };
    let mut edited = Edited { text: options, done: 0, out: String::new() };
    let mut is_there = false;
    for member in members.iter().filter(|member| member.key == INCLUDE_USAGE) {
        is_there = true;
        edited.replace(member, "true");
    }
    let more = [format!("\"{INCLUDE_USAGE}\":true")];
    edited.end(members.is_empty(), if is_there { &[] } else { &more })
}

/// The text of an object, some of whose values are others.
struct Edited<'a> {
    text: &'a str,
    /// How far it is copied.
    done: usize,
    out: String,
}

impl Edited<'_> {
    fn replace(&mut self, member: &Member<'_>, value: &str) {
        self.out.push_str(self.text.get(self.done..member.offset).unwrap_or_default());
        self.out.push_str(value);
        self.done = member.offset + member.value.len();
    }

    /// The object with `more` members at its end.
    fn end(mut self, is_empty: bool, more: &[String]) -> String {
        self.out.push_str(self.text.get(self.done..).unwrap_or_default());
        let Some(close) = self.out.rfind('}').filter(|_| !more.is_empty()) else { return self.out };
        let behind = self.out.split_off(close);
        if !is_empty {
            self.out.push(',');
        }
        self.out.push_str(&more.join(","));
        self.out.push_str(&behind);
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(endpoint: Endpoint, body: &str) -> Option<(String, u64)> {
        let body = RawValue::from_string(body.to_owned()).unwrap();
        let request = Request { custom_id: "a".to_owned(), endpoint, model: None, stream: None, body };
        question(&request).map(|question| (question.body, question.choices))
    }

    #[test]
    fn what_asks_for_a_stream_is_added_and_all_else_stays_byte_for_byte() {
        for (body, expected) in [
            (
                r#"{"model":"m",  "seed":12345678901234567890.0 }"#,
                r#"{"model":"m",  "seed":12345678901234567890.0 ,"stream":true,"stream_options":{"include_usage":true}}"#,
            ),
            ("{}", r#"{"stream":true,"stream_options":{"include_usage":true}}"#),
            ("{ }", r#"{ "stream":true,"stream_options":{"include_usage":true}}"#),
            (
                r#"{"stream" : false , "a":"}"}"#,
                r#"{"stream" : true , "a":"}","stream_options":{"include_usage":true}}"#,
            ),
            (
                r#"{"stream_options": {"include_obfuscation":false, "x":[ 1 ]},"stream":null}"#,
                r#"{"stream_options": {"include_obfuscation":false, "x":[ 1 ],"include_usage":true},"stream":true}"#,
            ),
            (
                r#"{"stream_options":{"include_usage":false,"x":1}}"#,
                r#"{"stream_options":{"include_usage":true,"x":1},"stream":true}"#,
            ),
            (r#"{"stream_options":null}"#, r#"{"stream_options":{"include_usage":true},"stream":true}"#),
            (r#"{"stream_options":{}}"#, r#"{"stream_options":{"include_usage":true},"stream":true}"#),
            (r#"{"stream_options":[]}"#, r#"{"stream_options":{"include_usage":true},"stream":true}"#),
        ] {
            assert_eq!(asked(Endpoint::ChatCompletions, body), Some((expected.to_owned(), 1)), "{body}");
            serde_json::from_str::<serde_json::Value>(expected).unwrap();
        }
    }

    #[test]
    fn what_has_to_be_answered_in_one_piece_is_not_streamed() {
        for (endpoint, body, choices) in [
            (Endpoint::ChatCompletions, r#"{"n":3}"#, Some(3)),
            (Endpoint::ChatCompletions, r#"{"n":null,"audio":null,"best_of":5}"#, Some(1)),
            (Endpoint::ChatCompletions, r#"{"audio":{"format":"wav"}}"#, None),
            (Endpoint::Completions, r#"{"prompt":"a"}"#, Some(1)),
            (Endpoint::Completions, r#"{"prompt":[1,2,3],"n":2}"#, Some(2)),
            (Endpoint::Completions, r#"{"prompt":["a","b"],"n":2,"best_of":1}"#, Some(4)),
            (Endpoint::Completions, r#"{"prompt":[[1],[2],[3]],"best_of":null}"#, Some(3)),
            (Endpoint::Completions, r#"{"prompt":"a","best_of":2}"#, None),
            (Endpoint::Embeddings, "{}", None),
            (Endpoint::Responses, "{}", None),
            (Endpoint::Moderations, "{}", None),
            (Endpoint::Images, "{}", None),
        ] {
            assert_eq!(asked(endpoint, body).map(|(_, choices)| choices), choices, "{endpoint}: {body}");
        }
    }
}
