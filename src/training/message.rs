//! A line of a training file as it is looked into, and the messages of a conversation.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::diag::nearest;
use crate::reading::json::{self, Member};
use crate::reading::problem::{Problem, shown, what};
use crate::training::tokens::Tokenizer;

const KEYS: [&str; 7] = ["role", "content", "name", "tool_calls", "tool_call_id", "function_call", "weight"];

const ROLES: [(&str, Role); 6] = [
    ("system", Role::System),
    ("developer", Role::System),
    ("user", Role::User),
    ("assistant", Role::Assistant),
    ("tool", Role::Tool),
    // Before there were tools.
    ("function", Role::Tool),
];

/// What every message costs beside its words, and what every conversation does: they are put between marks.
const TOKENS_A_MESSAGE: u64 = 3;
const TOKENS_A_REPLY: u64 = 3;

/// Who speaks, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    System,
    User,
    Assistant,
    Tool,
}

/// One line, and what was found in it.
#[derive(Debug)]
pub(super) struct Look<'t> {
    text: &'t str,
    tokenizer: Tokenizer,
    pub(super) problems: Vec<Problem>,
    /// Of the example.
    pub(super) tokens: u64,
    /// Not all of the tokens could be counted as the provider does.
    pub(super) rough: bool,
}

/// The messages of a conversation.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Conversation {
    pub(super) has_system: bool,
    pub(super) has_user: bool,
    pub(super) assistants: usize,
    /// Those of the assistant whose weight is not 0.
    pub(super) weighed: usize,
    pub(super) ends_with_assistant: bool,
}

/// Borrowed where it has no escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'t> Look<'t> {
    pub(super) const fn new(text: &'t str, tokenizer: Tokenizer) -> Self {
        Self { text, tokenizer, problems: Vec::new(), tokens: 0, rough: false }
    }

    /// A problem with `part`, which is a piece of the line.
    pub(super) fn error(&mut self, part: &str, message: impl Into<String>) -> &mut Problem {
        let problem = Problem::error(self.offset(part), message);
        self.push(problem)
    }

    pub(super) fn warning(&mut self, part: &str, message: impl Into<String>) -> &mut Problem {
        let problem = Problem::warning(self.offset(part), message);
        self.push(problem)
    }

    /// A problem with the line as a whole.
    pub(super) fn whole(&mut self, message: impl Into<String>) -> &mut Problem {
        self.push(Problem { offset: None, ..Problem::error(0, message) })
    }

    pub(super) const fn text(&self) -> &'t str {
        self.text
    }

    fn push(&mut self, problem: Problem) -> &mut Problem {
        self.problems.push(problem);
        self.problems.last_mut().expect("one was pushed")
    }

    fn offset(&self, part: &str) -> usize {
        part.as_ptr().addr().saturating_sub(self.text.as_ptr().addr()).min(self.text.len())
    }

    pub(super) fn count(&mut self, text: &str) {
        self.tokens += self.tokenizer.count(text);
    }

    /// Counts what the provider writes in a form of its own.
    pub(super) fn count_roughly(&mut self, json: &str) {
        self.count(json);
        self.rough = true;
    }

    /// The members of the object that `raw` is.
    pub(super) fn members(&mut self, raw: &'t str, name: &str) -> Option<Vec<Member<'t>>> {
        let Ok(members) = json::members(raw) else {
            self.error(raw, format!("{name} is {}, expected an object", what(raw)));
            return None;
        };
        if let Some((later, _)) = json::duplicate(&members) {
            let message = format!("duplicate key {}", shown(&later.key));
            self.error(later.value, message);
            return None;
        }
        Some(members)
    }

    pub(super) fn elements(&mut self, raw: &'t str, name: &str) -> Option<Vec<&'t str>> {
        if let Ok(elements) = serde_json::from_str::<Vec<&RawValue>>(raw) {
            return Some(elements.into_iter().map(RawValue::get).collect());
        }
        self.error(raw, format!("{name} is {}, expected an array", what(raw)));
        None
    }

    pub(super) fn string(&mut self, raw: &'t str, name: &str) -> Option<Cow<'t, str>> {
        if let Ok(Text(text)) = serde_json::from_str(raw) {
            return Some(text);
        }
        let message = if raw.starts_with('"') {
            format!("{name} has an escape that stands for no character")
        } else {
            format!("{name} is {}, expected a string", what(raw))
        };
        self.error(raw, message);
        None
    }

    /// The conversation that the array `raw` is; none if it is not known who says what in it.
    pub(super) fn conversation(&mut self, raw: &'t str, name: &str) -> Option<Conversation> {
        let elements = self.elements(raw, name)?;
        if elements.is_empty() {
            self.error(raw, format!("{name} is empty"));
            return None;
        }
        let mut conversation = Conversation::default();
        let mut all_known = true;
        for (number, element) in (1..).zip(elements) {
            let role = self.message(element, number, &mut conversation);
            all_known &= role.is_some();
            conversation.ends_with_assistant = role == Some(Role::Assistant);
        }
        self.tokens += TOKENS_A_REPLY;
        all_known.then_some(conversation)
    }

    fn message(&mut self, raw: &'t str, number: usize, conversation: &mut Conversation) -> Option<Role> {
        let members = self.members(raw, &format!("message {number}"))?;
        let role = self.role(raw, &members, number);
        self.tokens += TOKENS_A_MESSAGE;
        let mut weight = None;
        for Member { key, value, .. } in &members {
            match key.as_ref() {
                "name" => {
                    if let Some(name) = self.string(value, &format!("`name` of message {number}")) {
                        self.count(&name);
                        self.tokens += 1;
                    }
                }
                "tool_calls" | "function_call" if *value != "null" => self.count_roughly(value),
                "weight" => weight = Some(self.weight(value, role, number)),
                key if !KEYS.contains(&key) => {
                    let problem =
                        self.warning(value, format!("unknown key {} in message {number}", shown(key)));
                    problem.hint = nearest(key, KEYS).map(|known| format!("did you mean `{known}`?"));
                }
                _ => {}
            }
        }
        self.content(raw, &members, number);
        match role {
            Some(Role::System) => conversation.has_system = true,
            Some(Role::User) => conversation.has_user = true,
            Some(Role::Assistant) => {
                conversation.assistants += 1;
                conversation.weighed += usize::from(weight != Some(false));
            }
            Some(Role::Tool) | None => {}
        }
        role
    }

    fn role(&mut self, raw: &'t str, members: &[Member<'t>], number: usize) -> Option<Role> {
        let Some(member) = member(members, "role") else {
            self.error(raw, format!("message {number} has no `role`"));
            return None;
        };
        let word = self.string(member.value, &format!("`role` of message {number}"))?;
        self.count(&word);
        let known = ROLES.iter().find(|(name, _)| *name == word);
        if known.is_none() {
            let hint = nearest(&word, ROLES.map(|(name, _)| name)).map_or_else(
                || "expected `system`, `developer`, `user`, `assistant` or `tool`".to_owned(),
                |near| format!("did you mean `{near}`?"),
            );
            let problem =
                self.error(member.value, format!("unknown role {} of message {number}", shown(&word)));
            problem.hint = Some(hint);
        }
        known.map(|(_, role)| *role)
    }

    /// Whether the message is trained on.
    fn weight(&mut self, raw: &'t str, role: Option<Role>, number: usize) -> bool {
        if !matches!(raw, "0" | "1") {
            self.error(raw, format!("`weight` of message {number} is {}, expected 0 or 1", shown(raw)));
        } else if !matches!(role, Some(Role::Assistant) | None) {
            self.error(raw, format!("`weight` of message {number}, which is not the assistant's")).hint =
                Some("only what the assistant says is trained on: take it out".to_owned());
        }
        raw != "0"
    }

    /// What is said must be there, unless something is called instead.
    fn content(&mut self, raw: &'t str, members: &[Member<'t>], number: usize) {
        let calls = |key| member(members, key).is_some_and(|member| !matches!(member.value, "null" | "[]"));
        let is_call = calls("tool_calls") || calls("function_call");
        let name = format!("`content` of message {number}");
        let content = member(members, "content").map(|member| member.value);
        match content {
            None | Some("null") if is_call => {}
            None => {
                self.error(raw, format!("message {number} has no `content`"));
            }
            Some(value) if value.starts_with('[') => {
                for part in self.elements(value, &name).unwrap_or_default() {
                    self.part(part, number);
                }
                if value.trim_matches(['[', ']', ' ']).is_empty() && !is_call {
                    self.error(value, format!("{name} is empty"));
                }
            }
            Some(value) => {
                let Some(text) = self.string(value, &name) else { return };
                self.count(&text);
                if text.is_empty() && !is_call {
                    self.error(value, format!("{name} is empty"));
                }
            }
        }
    }

    /// A part of what is said: text, or a picture or sound, whose tokens nobody can tell from here.
    fn part(&mut self, raw: &'t str, number: usize) {
        let name = format!("a part of message {number}");
        let Some(members) = self.members(raw, &name) else { return };
        if member(&members, "type").is_none() {
            self.error(raw, format!("{name} has no `type`"));
        }
        match member(&members, "text") {
            Some(text) => {
                if let Some(text) = self.string(text.value, &format!("`text` of {name}")) {
                    self.count(&text);
                }
            }
            None => self.rough = true,
        }
    }
}

/// The member called `key`.
pub(super) fn member<'m, 't>(members: &'m [Member<'t>], key: &str) -> Option<&'m Member<'t>> {
    members.iter().find(|member| member.key == key)
}
