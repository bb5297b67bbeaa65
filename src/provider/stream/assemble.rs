//! From the chunks of a stream to the body that the server would have sent without one.
//!
//! # Operation
//!
//! What a chunk says at its top (`id`, `model`, `usage`, what servers add) holds as the last one said it that said
//! anything: Azure's first chunk has an empty `model`, usage comes last, some repeat it in every chunk. Choices are told
//! apart by their `index`. Of a choice, arrays are continued (log probabilities, token ids), the rest holds as it was said
//! last; of its `delta`, strings are continued too, whatever they are called, but for those that name things.
//!
//! Members stand in OpenAI's order: what it doesn't have comes behind, in the order of its coming.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::node::{Join, Node, Object, Room, Unfit, says_nothing, write_key};
use crate::domain::Endpoint;
use crate::reading::json::{Member, members};

/// Members of a whole answer before and behind its choices, and of their parts.
const TOP: [&str; 4] = ["id", "object", "created", "model"];
const BEHIND: [&str; 3] = ["usage", "service_tier", "system_fingerprint"];
const MESSAGE: [&str; 6] = ["role", "content", "tool_calls", "function_call", "refusal", "annotations"];
const BESIDE_MESSAGE: [&str; 2] = ["logprobs", "finish_reason"];

/// Padding against listeners, which is no part of an answer.
const PADDING: &str = "obfuscation";

/// What a choice costs beside its members.
const CHOICE_BYTES: usize = 128;

/// What has been said so far.
#[derive(Debug)]
pub(super) struct Assembly {
    is_chat: bool,
    top: Object,
    choices: BTreeMap<u64, Choice>,
    room: Room,
}

#[derive(Debug, Default)]
struct Choice {
    /// The message, or an object that holds the `text` alone.
    said: Object,
    /// What stands beside it.
    beside: Object,
}

impl Assembly {
    /// For an answer of `endpoint`, which is chat or completions, of at most `bytes_max`.
    pub(super) fn new(endpoint: Endpoint, bytes_max: usize) -> Self {
        Self {
            is_chat: endpoint == Endpoint::ChatCompletions,
            top: Object::default(),
            choices: BTreeMap::new(),
            room: Room::new(bytes_max),
        }
    }

    /// Takes a chunk in.
    ///
    /// # Errors
    ///
    /// A part of it is no JSON object where it must be one, or the answer gets too large; what is there then is not to
    /// be used.
    pub(super) fn add(&mut self, chunk: &[Member<'_>]) -> Result<(), Unfit> {
        for member in chunk {
            match &*member.key {
                "choices" => self.add_choices(member.value)?,
                "object" | PADDING => {}
                _ => self.top.join_member(member, Join::Replace, &mut self.room)?,
            }
        }
        Ok(())
    }

    fn add_choices(&mut self, text: &str) -> Result<(), Unfit> {
        // `null` stands for none.
        let choices: Vec<&RawValue> = serde_json::from_str(text).unwrap_or_default();
        for (position, choice) in (0..).zip(choices) {
            let members = members(choice.get()).map_err(|_| Unfit::NoObject)?;
            let index = find(&members, "index").and_then(|text| text.parse().ok()).unwrap_or(position);
            self.add_choice(index, &members)?;
        }
        Ok(())
    }

    fn add_choice(&mut self, index: u64, members: &[Member<'_>]) -> Result<(), Unfit> {
        let room = &mut self.room;
        if !self.choices.contains_key(&index) {
            room.take(CHOICE_BYTES)?;
        }
        let choice = self.choices.entry(index).or_default();
        // Some servers put the whole message into one chunk; others repeat in each what they have said so far.
        let delta = if find(members, "delta").is_some() { "delta" } else { "message" };
        for member in members {
            match &*member.key {
                "index" => {}
                "text" if !self.is_chat => choice.said.join_member(member, Join::Append, room)?,
                key if self.is_chat && key == delta => {
                    if !says_nothing(member.value) {
                        choice.said.join(member.value, Join::Append, room)?;
                    }
                }
                "delta" | "message" if self.is_chat => {}
                _ => choice.beside.join_member(member, Join::Extend, room)?,
            }
        }
        Ok(())
    }

    /// Whether `expected` choices are there, and each says why it ended.
    pub(super) fn is_finished(&self, expected: u64) -> bool {
        let count = u64::try_from(self.choices.len()).unwrap_or(u64::MAX);
        let has_ended =
            |choice: &Choice| choice.beside.text("finish_reason").is_some_and(|why| !says_nothing(why));
        count > 0 && count >= expected && self.choices.values().all(has_ended)
    }

    /// The body; none if it is larger than `bytes_max`.
    pub(super) fn into_body(mut self, bytes_max: usize) -> Option<String> {
        // It is null in all chunks but the one that brings it, which some servers don't send.
        if self.top.text("usage").is_none() && matches!(self.top.get("usage"), Some(Node::Text(_))) {
            self.top.remove("usage");
        }
        let object = if self.is_chat { "\"chat.completion\"" } else { "\"text_completion\"" };
        self.top.insert("object", Node::Text(object.to_owned()));
        let behind = self.top.split(&TOP);
        let mut body = String::new();
        self.top.write(&TOP, &mut body);
        body.pop();
        write_key(1, "choices", &mut body);
        body.push('[');
        for (at, (index, choice)) in self.choices.into_iter().enumerate() {
            if at > 0 {
                body.push(',');
            }
            choice.write(index, self.is_chat, &mut body);
        }
        body.push(']');
        behind.write_behind(&BEHIND, &mut body);
        body.push('}');
        (body.len() <= bytes_max).then_some(body)
    }
}

impl Choice {
    fn write(mut self, index: u64, is_chat: bool, body: &mut String) {
        let index = index.to_string();
        if is_chat {
            body.push_str("{\"index\":");
            body.push_str(&index);
            body.push_str(",\"message\":");
            self.complete_message();
            self.said.write(&MESSAGE, body);
        } else {
            body.push_str("{\"text\":");
            body.push_str(self.said.text("text").unwrap_or("\"\""));
            body.push_str(",\"index\":");
            body.push_str(&index);
        }
        self.beside.write_behind(&BESIDE_MESSAGE, body);
        body.push('}');
    }

    /// What a whole message always has, and deltas need not.
    fn complete_message(&mut self) {
        let said = &mut self.said;
        if said.text("role").is_none() {
            said.remove("role");
            said.insert("role", Node::Text("\"assistant\"".to_owned()));
        }
        let mut calls = false;
        if let Some(Node::List(list)) = said.get_mut("tool_calls") {
            calls = !list.is_empty();
            for call in list {
                call.remove("index");
            }
        }
        // Many begin every message with an empty text, which none has that calls tools.
        if said.text("content").is_none_or(|text| text == "\"\"" && calls) {
            said.remove("content");
            said.insert("content", Node::Text("null".to_owned()));
        }
    }
}

fn find<'a>(members: &[Member<'a>], name: &str) -> Option<&'a str> {
    members.iter().find(|member| member.key == name).map(|member| member.value)
}
