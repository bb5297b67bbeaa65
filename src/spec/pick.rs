//! Picks the members that we look at out of a JSON object, in one pass and without holding the others.
//!
//! Duplicates among them are noted rather than overwritten: what we check must be what the server reads.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::reading::problem::{Syntax, what};

/// A value and where it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    pub(super) raw: &'a RawValue,
    /// Byte in the text that was picked from.
    pub(super) offset: usize,
}

/// The members of an object that were asked for, in the order of the keys.
#[derive(Debug)]
pub(super) struct Picked<'a> {
    pub(super) fields: Vec<Option<Field<'a>>>,
    /// The first member whose key was picked before: its key's number and its value.
    pub(super) duplicate: Option<(usize, Field<'a>)>,
    /// The first member that was not asked for.
    pub(super) other: Option<(Cow<'a, str>, Field<'a>)>,
    /// How many were not asked for.
    pub(super) others: u32,
}

impl<'a> Picked<'a> {
    /// The member named by the key with this number.
    pub(super) fn get(&self, number: usize) -> Option<Field<'a>> {
        self.fields.get(number).copied().flatten()
    }
}

impl<'a> Field<'a> {
    pub(super) fn text(&self) -> &'a str {
        self.raw.get()
    }

    /// The value if it is a string; the error says where it is none.
    pub(super) fn string(&self) -> Result<Cow<'a, str>, NoString> {
        #[derive(serde::Deserialize)]
        #[serde(transparent)]
        struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
        match serde_json::from_str::<Text<'a>>(self.text()) {
            Ok(Text(text)) => Ok(text),
            // A lone surrogate: skipped over when the object was read, but no text.
            Err(_) if self.text().starts_with('"') => Err(NoString("no valid string")),
            Err(_) => Err(NoString(what(self.text()))),
        }
    }
}

/// What stands where a string was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoString(pub(super) &'static str);

/// Picks the members named by `keys` out of the JSON object that `text` is.
pub(super) fn pick<'a, K: AsRef<str>>(text: &'a str, keys: &[K]) -> Result<Picked<'a>, Syntax> {
    let begin = text.trim_start_matches([' ', '\t', '\r', '\n']);
    if begin.starts_with(['[', '"', 't', 'f', 'n', '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']) {
        let message = format!("expected a JSON object, found {}", what(begin));
        let offset = text.len() - begin.len();
        // `nonsense` begins as `null` does: only what is JSON is named as what it is.
        if let Err(error) = serde_json::from_str::<&RawValue>(text) {
            return Err(Syntax::new(text, &error));
        }
        return Err(Syntax { offset, message, hint: None, cut: false });
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let picked = deserializer
        .deserialize_map(Pick { keys, start: text.as_ptr().addr() })
        .and_then(|picked| deserializer.end().map(|()| picked));
    picked.map_err(|error| Syntax::new(text, &error))
}

struct Pick<'k, K> {
    keys: &'k [K],
    start: usize,
}

/// A key borrowed from the text where it has no escapes.
#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de, K: AsRef<str>> Visitor<'de> for Pick<'_, K> {
    type Value = Picked<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut picked =
            Picked { fields: vec![None; self.keys.len()], duplicate: None, other: None, others: 0 };
        while let Some((Key(key), raw)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
            let field = Field { raw, offset: raw.get().as_ptr().addr() - self.start };
            let number = self.keys.iter().position(|wanted| wanted.as_ref() == key);
            match number.and_then(|number| Some((number, picked.fields.get_mut(number)?))) {
                Some((_, place @ None)) => *place = Some(field),
                Some((number, Some(_))) => {
                    picked.duplicate.get_or_insert((number, field));
                }
                None => {
                    picked.others = picked.others.saturating_add(1);
                    picked.other.get_or_insert((key, field));
                }
            }
        }
        Ok(picked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 2] = ["a", "b"];

    #[test]
    fn members_are_picked_in_the_order_of_the_keys() {
        let text = r#" {"x": 0, "b": [1, 2], "\u0061": "é\n", "y": 1} "#;
        let picked = pick(text, &KEYS).unwrap();
        let (a, b) = (picked.get(0).unwrap(), picked.get(1).unwrap());
        assert_eq!((a.string().unwrap().as_ref(), b.text(), b.offset), ("é\n", "[1, 2]", 15));
        assert_eq!((picked.others, picked.other.unwrap().0.as_ref()), (2, "x"));
        assert_eq!(b.string(), Err(NoString("an array")));
    }

    #[test]
    fn a_duplicate_is_noted_however_it_is_written() {
        let picked = pick(r#"{"a": 1, "\u0061": 2}"#, &KEYS).unwrap();
        assert_eq!(picked.fields[0].unwrap().text(), "1");
        let (number, later) = picked.duplicate.unwrap();
        assert_eq!((number, later.text()), (0, "2"));
    }

    #[test]
    fn only_one_whole_object_is_read() {
        for (text, message) in [
            ("[1]", "expected a JSON object, found an array"),
            ("\"x\"", "expected a JSON object, found a string"),
            ("null", "expected a JSON object, found null"),
            ("nonsense", "invalid JSON: expected ident"),
            ("hello", "invalid JSON: expected value"),
            ("{} {}", "invalid JSON: trailing characters"),
        ] {
            assert_eq!(pick(text, &KEYS).unwrap_err().message, message, "{text}");
        }
    }

    #[test]
    fn a_lone_surrogate_is_no_string() {
        let picked = pick(r#"{"a": "\ud800"}"#, &KEYS).unwrap();
        assert_eq!(picked.fields[0].unwrap().string(), Err(NoString("no valid string")));
    }
}
