//! A look into a JSON object without reading it: its members' names, and their values as raw text.
//!
//! Replies are judged by a few members, but hold long texts and vectors that nobody here needs. A member
//! that stands twice counts as its last, as most parsers have it: an odd reply is still a reply.

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::spec::json::{Member, members};

/// The members of an object, unread.
#[derive(Debug, Default)]
pub(super) struct Members<'a>(Vec<Member<'a>>);

impl<'a> Members<'a> {
    /// None unless `text` is a whole JSON object.
    pub(super) fn of(text: &'a str) -> Option<Self> {
        members(text).ok().map(Self)
    }

    /// The JSON text of a member; none if it is absent or null.
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        let member = self.0.iter().rev().find(|member| member.key == name)?;
        Some(member.value).filter(|text| *text != "null")
    }

    /// A member that is a string.
    pub(super) fn string(&self, name: &str) -> Option<Cow<'a, str>> {
        string(self.get(name)?)
    }

    /// A member that is an object.
    pub(super) fn object(&self, name: &str) -> Option<Self> {
        Self::of(self.get(name)?)
    }

    /// A member that is an array of nothing but objects.
    pub(super) fn objects(&self, name: &str) -> Option<Vec<Self>> {
        let items: Vec<&RawValue> = serde_json::from_str(self.get(name)?).ok()?;
        items.into_iter().map(|item| Self::of(item.get())).collect()
    }

    /// Whether a member begins with one of `marks`: `{` an object, `[` an array, `"` a string.
    pub(super) fn begins(&self, name: &str, marks: &[char]) -> bool {
        self.get(name).is_some_and(|text| text.starts_with(marks))
    }
}

/// The string that `text` is.
pub(super) fn string(text: &str) -> Option<Cow<'_, str>> {
    let plain = text.strip_prefix('"')?.strip_suffix('"')?;
    if plain.contains('\\') {
        serde_json::from_str(text).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(plain))
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
    fn arrays_of_objects_hold_nothing_else() {
        let members = Members::of(r#"{"a":[{"x":1},{}],"b":[{},1],"c":[],"d":{}}"#).unwrap();
        assert_eq!(members.objects("a").map(|items| items.len()), Some(2));
        assert_eq!(members.objects("c").map(|items| items.len()), Some(0));
        assert!(members.objects("b").is_none() && members.objects("d").is_none());
    }
}
