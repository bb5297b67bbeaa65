//! The members of a JSON object that somebody sent, found by name and left unread.
//!
//! Replies are judged by a few members, but hold long texts and vectors that nobody here needs. A member
//! that stands twice counts as its last, as most parsers have it: an odd reply is still a reply.

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::domain::Timestamp;
use crate::reading::look::Look;

/// The members of an object, unread.
#[derive(Debug, Default)]
pub(super) struct Members<'a>(Vec<(Cow<'a, str>, Look<'a>)>);

impl<'a> Members<'a> {
    /// None unless `text` is a whole JSON object.
    pub(super) fn of(text: &'a str) -> Option<Self> {
        serde_json::from_str::<&RawValue>(text).ok().and_then(Self::of_valid)
    }

    /// None unless `value` is an object.
    pub(super) fn of_valid(value: impl Into<Look<'a>>) -> Option<Self> {
        Some(Self(value.into().members()?.collect()))
    }

    /// A member, if it is there and not null.
    fn look(&self, name: &str) -> Option<Look<'a>> {
        let (_, value) = self.0.iter().rev().find(|(key, _)| key == name)?;
        Some(*value).filter(|value| value.text() != "null")
    }

    /// The JSON text of a member; none if it is absent or null.
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        self.look(name).map(Look::text)
    }

    /// A member that is a string.
    pub(super) fn string(&self, name: &str) -> Option<Cow<'a, str>> {
        self.look(name)?.string()
    }

    /// A member that is an object.
    pub(super) fn object(&self, name: &str) -> Option<Self> {
        Self::of_valid(self.look(name)?)
    }

    /// A member that is an array of nothing but objects.
    pub(super) fn objects(&self, name: &str) -> Option<Vec<Self>> {
        self.look(name)?.items()?.map(Self::of_valid).collect()
    }

    /// A member that is a number, cut to a whole one; none below zero.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        let text = self.get(name)?;
        let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
        rest.bytes().all(|byte| byte.is_ascii_digit()).then(|| whole.parse().ok())?
    }

    /// A member that is a point in time: seconds since 1970, whole or not.
    pub(super) fn time(&self, name: &str) -> Option<Timestamp> {
        self.number(name).map(|seconds| Timestamp::from_millis(seconds.saturating_mul(1000)))
    }

    /// A member that is true or false.
    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.get(name)?.parse().ok()
    }

    /// The ids in a member: an array of them, or of objects that have one, or a single one.
    pub(super) fn ids(&self, name: &str) -> Vec<String> {
        let Some(value) = self.look(name) else { return Vec::new() };
        let items = value.items().into_iter().flatten().chain([value]);
        items
            .filter_map(|item| item.string().or_else(|| Self::of_valid(item)?.string("id")))
            .map(Cow::into_owned)
            .collect()
    }

    /// Whether a member begins with one of `marks`: `{` an object, `[` an array, `"` a string.
    pub(super) fn begins(&self, name: &str, marks: &[char]) -> bool {
        self.get(name).is_some_and(|text| text.starts_with(marks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_by_name_and_the_last_of_two_counts() {
        let members =
            Members::of(r#"{"a": 1, "b": null, "c\n": "x\ty", "a": {"d": []}, "e": "plain"}"#).unwrap();
        assert_eq!(members.get("a"), Some(r#"{"d": []}"#));
        assert!(members.begins("a", &['{']) && members.object("a").unwrap().begins("d", &['[']));
        assert_eq!((members.get("b"), members.get("z")), (None, None));
        assert_eq!(members.string("c\n").unwrap(), "x\ty");
        assert_eq!(members.string("e").unwrap(), "plain");
        assert_eq!(members.string("a"), None);
    }

    #[test]
    fn what_is_no_whole_object_has_no_members() {
        for text in
            ["", "[]", "1", "\"a\"", "{\"a\":1", "{\"a\":1}}", "{\"a\":1} x", "<html>", "{\"a\":nope}"]
        {
            assert!(Members::of(text).is_none(), "{text}");
        }
    }

    #[test]
    fn numbers_times_flags_and_ids_are_read_in_every_spelling() {
        let members = Members::of(concat!(
            r#"{"a":12,"b":12.75,"c":-1,"d":"12","e":1e3,"t":true,"f":false,"s":"x","#,
            r#""strings":["x","y\u0041"],"objects":[{"id":"x"},{"no":1},3],"object":{"id":"x"}}"#
        ))
        .unwrap();
        assert_eq!(
            ["a", "b", "c", "d", "e", "z"].map(|name| members.number(name)),
            [Some(12), Some(12), None, None, None, None]
        );
        assert_eq!(members.time("b"), Some(Timestamp::from_millis(12_000)));
        assert_eq!(["t", "f", "s"].map(|name| members.flag(name)), [Some(true), Some(false), None]);
        assert_eq!(members.ids("strings"), ["x", "yA"]);
        assert_eq!(["objects", "object", "s"].map(|name| members.ids(name)), [["x"], ["x"], ["x"]]);
        assert!(members.ids("a").is_empty() && members.ids("z").is_empty());
    }

    #[test]
    fn arrays_of_objects_hold_nothing_else() {
        let members = Members::of(r#"{"a":[{"x":1},{}],"b":[{},1],"c":[],"d":{}}"#).unwrap();
        assert_eq!(members.objects("a").map(|items| items.len()), Some(2));
        assert_eq!(members.objects("c").map(|items| items.len()), Some(0));
        assert!(members.objects("b").is_none() && members.objects("d").is_none());
    }
}
