//! A look into JSON text that is known to be valid: the members of an object and the items of an array, as text.
//!
//! `serde_json` has gone over every byte of a [`RawValue`] once, number by number and escape by escape. A reply of
//! vectors is megabytes of digits, and going over them again for each look would cost more than sending the request
//! did. Here values are passed over by their quotes and brackets alone.
//!
//! # Invariants
//!
//! - Text that is not valid after all gives parts without sense, but neither panics nor loops.

use std::borrow::Cow;

use memchr::{memchr2, memchr3};
use serde_json::value::RawValue;

/// A JSON value that is known to be valid, without white space around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look<'a>(&'a str);

/// The parts of an object or array that are still to come.
struct Parts<'a>(&'a str);

impl<'a> From<&'a RawValue> for Look<'a> {
    fn from(value: &'a RawValue) -> Self {
        Self(value.get())
    }
}

impl<'a> Look<'a> {
    /// The body of a record that batchd wrote, and whose checksum holds.
    pub(crate) const fn of_record(body: &'a str) -> Self {
        Self(body)
    }

    pub(crate) const fn text(self) -> &'a str {
        self.0
    }

    /// The members in their order, duplicates included; none unless it is an object.
    pub(crate) fn members(self) -> Option<impl Iterator<Item = (Cow<'a, str>, Self)>> {
        let mut parts = Parts(self.0.strip_prefix('{')?);
        Some(std::iter::from_fn(move || Some((unquoted(parts.next()?.0), parts.next()?))))
    }

    /// The items in their order; none unless it is an array.
    pub(crate) fn items(self) -> Option<impl Iterator<Item = Self>> {
        Some(Parts(self.0.strip_prefix('[')?))
    }

    /// The string that it is; none if it is none.
    pub(crate) fn string(self) -> Option<Cow<'a, str>> {
        self.0.starts_with('"').then(|| unquoted(self.0))
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Look<'a>;

    /// The keys of an object are parts of it as well as their values.
    fn next(&mut self) -> Option<Look<'a>> {
        let between = |c: char| matches!(c, ',' | ':' | ' ' | '\n' | '\r' | '\t');
        let text = self.0.trim_start_matches(between);
        let (value, rest) = text.split_at_checked(length(text.as_bytes()))?;
        self.0 = rest;
        (!value.is_empty()).then_some(Look(value))
    }
}

/// Bytes of the value at the start of `text`; zero if there is none, but the end of what it would be part of.
fn length(text: &[u8]) -> usize {
    match text.first() {
        Some(b'"') => 1 + string_length(text.get(1..).unwrap_or_default()),
        Some(b'{') => nested_length(text, b'{', b'}'),
        Some(b'[') => nested_length(text, b'[', b']'),
        Some(_) => {
            let ends = |byte: &u8| matches!(byte, b',' | b']' | b'}' | b' ' | b'\n' | b'\r' | b'\t');
            text.iter().position(ends).unwrap_or(text.len())
        }
        None => 0,
    }
}

/// Bytes of an object or array. Brackets of the other kind are balanced in between, and need no look.
fn nested_length(text: &[u8], open: u8, close: u8) -> usize {
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(found) = text.get(at..).and_then(|rest| memchr3(b'"', open, close, rest)) {
        at += found + 1;
        match text.get(at - 1) {
            Some(b'"') => at += string_length(text.get(at..).unwrap_or_default()),
            Some(byte) if *byte == open => depth += 1,
            _ => depth = depth.saturating_sub(1),
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// Bytes of the rest of a string whose opening quote stands before `text`, with its closing quote.
fn string_length(text: &[u8]) -> usize {
    let mut at = 0;
    while let Some(found) = text.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found + 1;
        if text.get(at - 1) == Some(&b'"') {
            return at;
        }
        at += 1; // what is escaped
    }
    text.len()
}

/// The text of a string. One that names half a character (`"\ud800"`) is valid JSON and no text: it stays as written.
fn unquoted(text: &str) -> Cow<'_, str> {
    let plain = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    if memchr::memchr(b'\\', plain.as_bytes()).is_none() {
        return Cow::Borrowed(plain);
    }
    serde_json::from_str(text).map_or(Cow::Borrowed(plain), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn valid(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    /// What serde reads, put together from looks alone.
    fn read(look: Look<'_>) -> Value {
        if let Some(members) = look.members() {
            Value::Object(members.map(|(key, value)| (key.into_owned(), read(value))).collect())
        } else if let Some(items) = look.items() {
            items.map(read).collect()
        } else if let Some(text) = look.string() {
            Value::String(text.into_owned())
        } else {
            serde_json::from_str(look.text()).unwrap()
        }
    }

    #[test]
    fn parts_are_found_whatever_stands_in_strings_and_between() {
        let text =
            "{ \"a\\\"}\" : [ 1.5e-3,{},[ ],\"]\\\\\" ,null ] ,\r\n\t\"b\":\"{[\\u0022\",\"a\\\"}\":-0 }";
        let raw = valid(text);
        let members: Vec<_> = Look::from(&*raw).members().unwrap().collect();
        let seen: Vec<_> = members.iter().map(|(key, value)| (key.as_ref(), value.text())).collect();
        assert_eq!(
            seen,
            [("a\"}", "[ 1.5e-3,{},[ ],\"]\\\\\" ,null ]"), ("b", "\"{[\\u0022\""), ("a\"}", "-0")]
        );
        let items: Vec<_> = members[0].1.items().unwrap().map(Look::text).collect();
        assert_eq!(items, ["1.5e-3", "{}", "[ ]", "\"]\\\\\"", "null"]);
        assert_eq!(members[1].1.string().unwrap(), "{[\"");
        for (text, is_object, is_array) in [("{}", true, false), ("[]", false, true), ("\"\"", false, false)]
        {
            let raw = valid(text);
            let look = Look::from(&*raw);
            assert_eq!(look.members().map(Iterator::count), is_object.then_some(0), "{text}");
            assert_eq!(look.items().map(Iterator::count), is_array.then_some(0), "{text}");
        }
        assert_eq!(Look::from(&*valid(r#""\ud800""#)).string().unwrap(), r"\ud800");
    }

    fn json() -> impl Strategy<Value = Value> {
        let text = r#"[a-z"\\{}\[\],:\n é]{0,6}"#;
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f32>().prop_map(Value::from),
            text.prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((text, inner), 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn looks_see_what_serde_reads(value in json(), is_pretty in any::<bool>()) {
            let text = if is_pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let raw = valid(&text.unwrap());
            prop_assert_eq!(read(Look::from(&*raw)), value);
        }

        #[test]
        fn text_that_is_not_valid_after_all_comes_to_an_end(text in r#"[\[\]{}",:\\a1é ]{0,40}"#) {
            let look = Look(&text);
            let members = look.members().map_or(0, Iterator::count);
            prop_assert!(members + look.items().map_or(0, Iterator::count) <= text.len());
        }
    }
}
