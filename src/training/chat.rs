//! Lines of conversations: `{"messages": […], "tools": […], "parallel_tool_calls": false}`.

use crate::diag::nearest;
use crate::reading::json::Member;
use crate::reading::problem::{shown, what};
use crate::training::Expected;
use crate::training::message::{Look, member};
use crate::training::survey::{Findings, Tally};

const KEYS: [&str; 4] = ["messages", "tools", "parallel_tool_calls", "functions"];

/// What is said once about a whole file of conversations.
#[derive(Clone, Debug, Default)]
pub(super) struct Chats {
    without_system: Tally,
    without_user: Tally,
}

impl Chats {
    pub(super) fn take<'t>(
        &mut self,
        look: &mut Look<'t>,
        members: &[Member<'t>],
        line: u32,
        expected: Expected,
    ) {
        let is_prompt = expected == Expected::Prompts;
        extras(look, members, is_prompt);
        let Some(messages) = member(members, "messages") else { return };
        let Some(conversation) = look.conversation(messages.value, "`messages`") else { return };
        self.without_system.note(!conversation.has_system, line);
        self.without_user.note(!conversation.has_user, line);
        if is_prompt {
            return;
        }
        if conversation.assistants == 0 {
            look.error(messages.value, "no message of the assistant: there is nothing to learn");
        } else if conversation.weighed == 0 {
            look.error(messages.value, "`weight` is 0 for every message of the assistant");
        } else if !conversation.ends_with_assistant {
            look.warning(messages.value, "the last message is not the assistant's: it is not trained on");
        }
    }

    pub(super) fn finish(&self, findings: &mut Findings<'_>) {
        self.without_system.tell(findings, "has no system message", "have no system message");
        self.without_user.tell(findings, "has no user message", "have no user message");
    }
}

/// The members beside the messages.
pub(super) fn extras(look: &mut Look<'_>, members: &[Member<'_>], may_be_any: bool) {
    for Member { key, value, .. } in members {
        let wrong = match key.as_ref() {
            "tools" | "functions" => (!value.starts_with('[')).then_some("an array"),
            "parallel_tool_calls" => (!matches!(*value, "true" | "false")).then_some("a boolean"),
            _ => None,
        };
        if let Some(expected) = wrong {
            look.error(value, format!("`{key}` is {}, expected {expected}", what(value)));
        } else if matches!(key.as_ref(), "tools" | "functions") && *value != "[]" {
            look.count_roughly(value);
        } else if !may_be_any && !KEYS.contains(&key.as_ref()) {
            let near = nearest(key, KEYS).map(|known| format!("did you mean `{known}`?"));
            look.warning(value, format!("unknown key {}", shown(key))).hint = near;
        }
    }
}
