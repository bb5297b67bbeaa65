//! What training data looks like to the server that is to learn from it: examples, tokens, and the first flaw.
//!
//! Deliberately an own and shallow reading: it stands for a server that batchd doesn't know.

use serde_json::Value;

use crate::simulate::question::tokens;

const ROLES: [&str; 6] = ["developer", "system", "user", "assistant", "tool", "function"];

/// What the lines of a file must be, by the interface and method that use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineKind {
    /// `messages`, the assistant among them.
    Chat,
    /// `prompt` and `completion`.
    Pair,
    /// `input`, `preferred_output` and `non_preferred_output`.
    Preference,
    /// `messages` for a grader: whoever speaks last.
    Graded,
}

/// What was found in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Inspection {
    pub(super) examples: u64,
    /// Bytes / 4.
    pub(super) tokens: u64,
    /// Why it is no JSONL at all.
    pub(super) flaw: Option<String>,
    flaws: [Option<String>; 4],
}

impl Inspection {
    pub(super) fn of(content: &[u8]) -> Self {
        let mut found = Self { tokens: tokens(content.len()), ..Self::default() };
        let lines = content.strip_suffix(b"\n").unwrap_or(content);
        if lines.is_empty() {
            found.flaw = Some("The file is empty.".to_owned());
            return found;
        }
        for (index, line) in lines.split(|byte| *byte == b'\n').enumerate() {
            let number = index + 1;
            let Ok(line @ Value::Object(_)) = serde_json::from_slice(line) else {
                found.flaw = Some(format!(
                    "Expected file to have JSONL format, where every line is a valid JSON dictionary. Line \
                     {number} is not a dictionary."
                ));
                return found;
            };
            found.examples += 1;
            let kinds = [LineKind::Chat, LineKind::Pair, LineKind::Preference, LineKind::Graded];
            for (flaw, kind) in found.flaws.iter_mut().zip(kinds) {
                if flaw.is_none() {
                    *flaw = check(&line, kind).err().map(|what| format!("Line {number}: {what}."));
                }
            }
        }
        found
    }

    /// The first thing that is wrong with the file as lines of this kind.
    pub(super) fn flaw_as(&self, kind: LineKind) -> Option<&str> {
        let [chat, pair, preference, graded] = &self.flaws;
        let flaw = match kind {
            LineKind::Chat => chat,
            LineKind::Pair => pair,
            LineKind::Preference => preference,
            LineKind::Graded => graded,
        };
        self.flaw.as_deref().or(flaw.as_deref())
    }
}

fn check(line: &Value, kind: LineKind) -> Result<(), String> {
    match kind {
        LineKind::Chat => {
            let messages = messages(&line["messages"], "messages")?;
            if !messages.iter().any(|message| message["role"] == "assistant") {
                return Err("there is no message of the assistant to learn from".to_owned());
            }
            Ok(())
        }
        LineKind::Pair => {
            for name in ["prompt", "completion"] {
                if !line[name].is_string() {
                    return Err(format!("missing '{name}' key"));
                }
            }
            Ok(())
        }
        LineKind::Preference => {
            messages(line.pointer("/input/messages").unwrap_or(&Value::Null), "input.messages")?;
            for name in ["preferred_output", "non_preferred_output"] {
                if !matches!(messages(&line[name], name)?, [message] if message["role"] == "assistant") {
                    return Err(format!("'{name}' is not one message of the assistant"));
                }
            }
            Ok(())
        }
        LineKind::Graded => messages(&line["messages"], "messages").map(|_| ()),
    }
}

fn messages<'a>(value: &'a Value, name: &str) -> Result<&'a [Value], String> {
    let messages = value.as_array().filter(|messages| !messages.is_empty());
    let messages = messages.ok_or_else(|| format!("missing or empty '{name}' key"))?;
    for message in messages {
        let role = message["role"].as_str().unwrap_or_default();
        if !ROLES.contains(&role) {
            return Err(format!("'{name}' holds a message of the unknown role '{role}'"));
        }
        let calls = ["tool_calls", "function_call"].iter().any(|name| !message[*name].is_null());
        let content = &message["content"];
        if !calls && !content.is_array() && content.as_str().is_none_or(str::is_empty) {
            return Err(format!("'{name}' holds a message without content"));
        }
        let weight = &message["weight"];
        if !weight.is_null() && (role != "assistant" || !matches!(weight.as_u64(), Some(0 | 1))) {
            return Err("only messages of the assistant have a weight, 0 or 1".to_owned());
        }
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &str = r#"{"messages":[{"role":"user","content":"1+1"},{"role":"assistant","content":"2"}]}"#;
    const PAIR: &str = r#"{"prompt":"1+1=?->","completion":"4\nENDEND"}"#;
    const PREFERENCE: &str = r#"{"input":{"messages":[{"role":"user","content":"hi"}]},"preferred_output":[{"role":"assistant","content":"a"}],"non_preferred_output":[{"role":"assistant","content":"b"}]}"#;

    #[test]
    fn each_kind_of_line_passes_as_itself_alone() {
        for (line, kind) in
            [(CHAT, LineKind::Chat), (PAIR, LineKind::Pair), (PREFERENCE, LineKind::Preference)]
        {
            let found = Inspection::of(format!("{line}\n{line}\n").as_bytes());
            assert_eq!((found.examples, found.flaw_as(kind)), (2, None));
            for other in [LineKind::Chat, LineKind::Pair, LineKind::Preference] {
                assert_eq!(found.flaw_as(other).is_none(), other == kind, "{line} as {other:?}");
            }
        }
    }

    #[test]
    fn flaws_name_their_line() {
        let bad = |line: &str, kind| {
            Inspection::of(format!("{CHAT}\n{line}").as_bytes()).flaw_as(kind).map(str::to_owned)
        };
        let not_json = bad("{\"messages\":", LineKind::Chat).unwrap();
        assert!(not_json.contains("Line 2 is not a dictionary"), "{not_json}");
        assert!(bad(&format!("\n{CHAT}"), LineKind::Chat).is_some(), "a blank line");
        assert!(bad("[1]", LineKind::Chat).is_some());
        for line in [
            r#"{"messages":[]}"#,
            r#"{"messages":[{"role":"user","content":"x"}]}"#,
            r#"{"messages":[{"role":"robot","content":"x"}]}"#,
            r#"{"messages":[{"role":"assistant","content":""}]}"#,
            r#"{"messages":[{"role":"assistant","content":"x","weight":2}]}"#,
        ] {
            assert!(bad(line, LineKind::Chat).unwrap().starts_with("Line 2: "), "{line}");
        }
        let graded = r#"{"messages":[{"role":"user","content":"x"}]}"#;
        assert_eq!(bad(graded, LineKind::Graded), None);
        assert!(Inspection::of(b"").flaw.is_some());
        assert!(Inspection::of(b"\xef\xbb\xbf{}").flaw.is_some(), "a byte order mark");
    }
}
