//! JSON objects with the places of their members, duplicates included.
//!
//! serde keeps the last of two equal keys and forgets where a value stood. What a person is told about
//! a line needs both, so checks read objects through [`members`]; values stay raw text.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// One `"key": value` of an object, in the order of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    pub key: Cow<'a, str>,
    /// The value's own JSON text.
    pub value: &'a str,
    /// Byte offset of the value in the text that was read.
    pub offset: usize,
}

/// The members of the JSON object that `text` is.
pub fn members(text: &str) -> Result<Vec<Member<'_>>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let members = deserializer.deserialize_map(Members { start: text.as_ptr().addr() })?;
    deserializer.end()?;
    Ok(members)
}

/// The first member whose key stands in `members` before it, with that earlier member.
pub fn duplicate<'m, 'a>(members: &'m [Member<'a>]) -> Option<(&'m Member<'a>, &'m Member<'a>)> {
    members.iter().enumerate().find_map(|(at, later)| {
        let earlier = members.get(..at)?.iter().find(|earlier| earlier.key == later.key)?;
        Some((later, earlier))
    })
}

/// The column (characters, from 1) of byte `offset` in a line.
pub fn column(line: &str, offset: usize) -> u32 {
    let before = line.char_indices().take_while(|(at, _)| *at < offset).count();
    u32::try_from(before).map_or(u32::MAX, |before| before.saturating_add(1))
}

struct Members {
    start: usize,
}

/// A key borrowed from the text where it has no escapes, so that long ones cost nothing.
#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Visitor<'de> for Members {
    type Value = Vec<Member<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some((Key(key), value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
            let value = value.get();
            let offset = value.as_ptr().addr() - self.start;
            members.push(Member { key, value, offset });
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_keep_their_order_their_places_and_duplicates() {
        let text = r#"{"a": 1, "b\n": {"x": [2]}, "a": "é"}"#;
        let found = members(text).unwrap();
        let seen: Vec<_> = found.iter().map(|m| (m.key.as_ref(), m.value, m.offset)).collect();
        assert_eq!(seen, [("a", "1", 6), ("b\n", "{\"x\": [2]}", 16), ("a", "\"é\"", 33)]);
        let (later, earlier) = duplicate(&found).unwrap();
        assert_eq!((later.value, earlier.value), ("\"é\"", "1"));
    }

    #[test]
    fn only_one_whole_object_is_read() {
        for bad in ["", "[]", "1", "{} x", "{\"a\":}", "{\"a\":1"] {
            assert!(members(bad).is_err(), "{bad}");
        }
        assert!(members(" {} ").unwrap().is_empty());
    }

    #[test]
    fn columns_count_characters() {
        assert_eq!(column("éé{", 4), 3);
        assert_eq!(column("abc", 0), 1);
    }
}
