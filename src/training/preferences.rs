//! Lines of preferences, for direct preference optimisation (DPO): what was asked, the answer that is preferred and
//! the one that is not.

use crate::reading::json::Member;
use crate::reading::problem::shown;
use crate::training::chat;
use crate::training::message::{Look, member};

const KEYS: [&str; 3] = ["input", "preferred_output", "non_preferred_output"];

pub(super) fn take<'t>(look: &mut Look<'t>, members: &[Member<'t>]) {
    for Member { key, value, .. } in members {
        if !KEYS.contains(&key.as_ref()) {
            look.warning(value, format!("unknown key {}", shown(key)));
        }
    }
    if let Some(input) = required(look, members, "input")
        && let Some(members) = look.members(input, "`input`")
    {
        chat::extras(look, &members, false);
        if let Some(messages) = required(look, &members, "messages") {
            look.conversation(messages, "`messages`");
        }
    }
    let preferred = answer(look, members, "preferred_output");
    let other = answer(look, members, "non_preferred_output");
    if let (Some(preferred), Some(other)) = (preferred, other)
        && value(preferred) == value(other)
    {
        look.error(other, "both outputs are the same: there is nothing to prefer");
    }
}

/// The one message that an output is.
fn answer<'t>(look: &mut Look<'t>, members: &[Member<'t>], key: &str) -> Option<&'t str> {
    let raw = required(look, members, key)?;
    let conversation = look.conversation(raw, &format!("`{key}`"))?;
    let count = look.elements(raw, key).map_or(0, |elements| elements.len());
    if count != 1 || conversation.assistants != 1 {
        look.error(raw, format!("`{key}` has {count} messages, expected exactly one of the assistant"))
            .hint = (count == 1).then(|| "its `role` must be `assistant`".to_owned());
    }
    Some(raw)
}

fn required<'t>(look: &mut Look<'t>, members: &[Member<'t>], key: &str) -> Option<&'t str> {
    let found = member(members, key).map(|member| member.value);
    if found.is_none() {
        look.whole(format!("missing `{key}`"));
    }
    found
}

/// The same answer may be written with other blanks and escapes.
fn value(raw: &str) -> Option<serde_json::Value> {
    serde_json::from_str(raw).ok()
}
