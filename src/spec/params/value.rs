//! Checks one value of a body against its [`Shape`].
//!
//! # Invariants
//! Every text handed in is a slice of the body, so that a finding's place is the distance of two pointers.
//! Values are looked at as text: a string is decoded and a number parsed only where its shape has a bound.
//!
//! # What it does not do
//! It says nothing about text that is no JSON: whoever read the body has refused that already.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::Finding;
use super::table::{self, Keys, Map, Object, Shape, Size, Text};
use super::words::{Path, cut, expected, one_of, range, shown};
use crate::diag;
use crate::reading::json::{self, Member};

/// Findings of one body that are told: a report shows no more, and looking on would cost for nothing.
const FINDINGS_MAX: usize = diag::Report::SHOWN_MAX;

/// Unknown names of one body that are compared with the known ones, so that a body of a million
/// made-up members costs no more than a large one.
const COMPARED_MAX: usize = 32;

/// A name longer than this is no slip of the finger.
const NAME_BYTES_MAX: usize = 64;

/// The findings of one body on their way out.
pub(super) struct Checker<'a> {
    body: &'a str,
    found: &'a mut dyn FnMut(Finding),
    told: usize,
    compared: usize,
    /// The hint of a finding that brings none of its own.
    pub(super) hint: Option<&'a str>,
    /// The model that asks for what is checked now.
    pub(super) model: Option<&'a str>,
}

impl<'a> Checker<'a> {
    pub(super) fn new(body: &'a str, found: &'a mut dyn FnMut(Finding)) -> Self {
        Self { body, found, told: 0, compared: 0, hint: None, model: None }
    }

    /// Findings so far.
    pub(super) const fn told(&self) -> usize {
        self.told
    }

    /// Nothing more would be told.
    pub(super) const fn is_full(&self) -> bool {
        self.told >= FINDINGS_MAX
    }

    /// `place` is a slice of the body (else the body's start is told).
    pub(super) fn tell(&mut self, place: &str, message: String, hint: Option<String>) {
        if self.is_full() {
            return;
        }
        self.told += 1;
        let distance = place.as_ptr().addr().wrapping_sub(self.body.as_ptr().addr());
        let offset = if distance <= self.body.len() { distance } else { 0 };
        let hint = hint.or_else(|| self.hint.map(str::to_owned));
        (self.found)(Finding { offset, message, hint });
    }

    pub(super) fn value(&mut self, path: Path<'_>, shape: &Shape, text: &str) {
        if self.is_full() {
            return;
        }
        if !has_type_of(shape, text, false) {
            return self.unexpected(path, shape, text, None);
        }
        match shape {
            Shape::Any | Shape::Null | Shape::Boolean => {}
            Shape::Integer { min, max } => self.integer(path, shape, text, (*min, *max)),
            Shape::Number { min, max } => {
                let value: f64 = text.parse().unwrap_or(f64::NAN);
                if !(min.is_none_or(|min| value >= min) && max.is_none_or(|max| value <= max)) {
                    self.unexpected(path, shape, text, None);
                }
            }
            Shape::String(rule) => self.string(path, shape, text, rule),
            Shape::Size(size) => {
                if !is_size(&decoded(text), size) {
                    self.unexpected(path, shape, text, None);
                }
            }
            Shape::Array { items_min, items_max, items } => {
                self.array(path, text, items, (*items_min, *items_max));
            }
            Shape::Map(map) => self.map(path, text, map),
            Shape::Object(object) => self.object(path, text, object),
            Shape::Tagged { tag, cases } => self.tagged(path, text, tag, cases),
            Shape::Either { of } => {
                let fits = |deep| of.iter().find(move |shape| has_type_of(shape, text, deep));
                if let Some(shape) = fits(true).or_else(|| fits(false)) {
                    self.value(path, shape, text);
                }
            }
            Shape::Named { name } => self.value(path, table::shape(name), text),
        }
    }

    /// A member whose key nothing in the table has: told only where it looks like a slip.
    pub(super) fn unknown<'k>(
        &mut self,
        member: &Member<'_>,
        parent: Option<&Path<'_>>,
        known: impl Iterator<Item = &'k str>,
    ) {
        let key = member.key.as_ref();
        if self.compared >= COMPARED_MAX || key.len() > NAME_BYTES_MAX || table::is_of_servers(key) {
            return;
        }
        self.compared += 1;
        // Words of quite another length are never near: this spares most of the comparing.
        let bound = key.len().div_ceil(3);
        let candidates = known.filter(|name| name.len().abs_diff(key.len()) <= bound);
        if let Some(near) = diag::nearest(key, candidates) {
            let path = parent.map_or_else(|| Path::top(key), |parent| parent.member(key));
            self.tell(
                key_place(member),
                format!("unknown parameter `{path}`"),
                Some(format!("did you mean `{near}`?")),
            );
        }
    }

    /// Tells the first key that stands twice.
    pub(super) fn duplicate(&mut self, parent: Option<&Path<'_>>, members: &[Member<'_>]) {
        const FEW: usize = 32;
        let twice = if members.len() <= FEW {
            json::duplicate(members)
        } else {
            let mut seen = BTreeMap::new();
            members.iter().find_map(|later| Some((later, seen.insert(later.key.as_ref(), later)?)))
        };
        if let Some((later, earlier)) = twice {
            let path = parent.map_or_else(|| Path::top(&later.key), |parent| parent.member(&later.key));
            let hint = "servers differ in which of the two they take: leave one".to_owned();
            let first = shown(earlier.value);
            self.tell(
                key_place(later),
                format!("duplicate key `{path}`, first given as {first}"),
                Some(hint),
            );
        }
    }

    fn unexpected(&mut self, path: Path<'_>, shape: &Shape, text: &str, hint: Option<String>) {
        let what = expected(shape);
        let with = self.model.map(|model| format!(" with `{}`", cut(model))).unwrap_or_default();
        self.tell(text, format!("`{path}` is {}, expected {what}{with}", shown(text)), hint);
    }

    fn integer(&mut self, path: Path<'_>, shape: &Shape, text: &str, (min, max): (Option<i64>, Option<i64>)) {
        match text.parse::<i64>() {
            Ok(value) if min.is_none_or(|min| value >= min) && max.is_none_or(|max| value <= max) => {}
            Err(_) if text.contains(['.', 'e', 'E']) => {
                let hint = "write it without a fraction or an exponent".to_owned();
                self.unexpected(path, shape, text, Some(hint));
            }
            Ok(_) | Err(_) => self.unexpected(path, shape, text, None),
        }
    }

    fn string(&mut self, path: Path<'_>, shape: &Shape, text: &str, rule: &Text) {
        if !rule.one_of.is_empty() {
            let value = decoded(text);
            if !rule.one_of.iter().any(|word| *word == value) {
                let hint = did_you_mean(&value, rule.one_of.iter().map(String::as_str));
                self.unexpected(path, shape, text, hint);
            }
            return;
        }
        let (min, max) = (rule.chars_min, rule.chars_max);
        // No text has more characters than its JSON has bytes: most need no decoding.
        if min.is_some_and(|min| min > 0) || max.is_some_and(|max| text.len() > max) {
            let chars = decoded(text).chars().count();
            if min.is_some_and(|min| chars < min) || max.is_some_and(|max| chars > max) {
                let with = self.model.map(|model| format!(" with `{}`", cut(model))).unwrap_or_default();
                let message = format!("`{path}` has {chars} characters, expected {}{with}", range(min, max));
                return self.tell(text, message, None);
            }
        }
        if rule.word && !decoded(text).bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        {
            let message = format!("`{path}` is {}, expected only letters, digits, `_` and `-`", shown(text));
            self.tell(text, message, None);
        }
    }

    fn array(
        &mut self,
        path: Path<'_>,
        text: &str,
        items: &Shape,
        (min, max): (Option<usize>, Option<usize>),
    ) {
        let count = each_item(text, &mut |index, item| self.value(path.item(index), items, item));
        if let Some(count) = count
            && (min.is_some_and(|min| count < min) || max.is_some_and(|max| count > max))
        {
            self.tell(text, format!("`{path}` has {count} items, expected {}", range(min, max)), None);
        }
    }

    fn map(&mut self, path: Path<'_>, text: &str, map: &Map) {
        let Ok(members) = json::members(text) else { return };
        self.duplicate(Some(&path), &members);
        if let Some(max) = map.pairs_max.filter(|max| members.len() > *max) {
            let message = format!("`{path}` has {} pairs, expected at most {max}", members.len());
            self.tell(text, message, None);
        }
        for member in &members {
            let key = member.key.as_ref();
            let chars = key.chars().count();
            if let Some(max) = map.key_chars_max.filter(|max| chars > *max) {
                let message =
                    format!("key `{}` of `{path}` has {chars} characters, expected at most {max}", cut(key));
                self.tell(key_place(member), message, None);
            }
            if matches!(map.keys, Some(Keys::Integer)) && key.parse::<i64>().is_err() {
                let message = format!("key `{}` of `{path}` is no integer", cut(key));
                self.tell(key_place(member), message, None);
            }
            self.value(path.member(key), &map.values, member.value);
        }
    }

    fn object(&mut self, path: Path<'_>, text: &str, object: &Object) {
        if object.members.is_empty() {
            return;
        }
        let Ok(members) = json::members(text) else { return };
        self.duplicate(Some(&path), &members);
        for member in &members {
            match object.members.get(member.key.as_ref()) {
                Some(shape) => self.value(path.member(&member.key), shape, member.value),
                None => self.unknown(member, Some(&path), object.members.keys().map(String::as_str)),
            }
        }
        let has = |name: &String| members.iter().any(|member| member.key == name.as_str());
        for name in object.required.iter().filter(|name| !has(name)) {
            self.tell(text, format!("`{}` is missing", path.member(name)), None);
        }
        let given = |name: &String| members.iter().any(|m| m.key == name.as_str() && m.value != "null");
        if !object.any_of.is_empty() && !object.any_of.iter().any(given) {
            let names = one_of(object.any_of.iter().map(String::as_str));
            self.tell(text, format!("`{path}` has no value, expected {names}"), None);
        }
    }

    fn tagged(&mut self, path: Path<'_>, text: &str, tag: &str, cases: &BTreeMap<String, String>) {
        let Ok(members) = json::members(text) else { return };
        let names = || one_of(cases.keys().map(String::as_str));
        let Some(member) = members.iter().rev().find(|member| member.key == tag) else {
            return self.tell(text, format!("`{}` is missing, expected {}", path.member(tag), names()), None);
        };
        let value = decoded(member.value);
        if let Some(case) = cases.get(value.as_ref()).filter(|_| member.value.starts_with('"')) {
            self.value(path, table::shape(case), text);
        } else {
            let message = format!("`{}` is {}, expected {}", path.member(tag), shown(member.value), names());
            let hint = did_you_mean(&value, cases.keys().map(String::as_str));
            self.tell(member.value, message, hint);
        }
    }
}

/// Whether a value's JSON type is one that the shape has; of an array, `deep` asks of its first item, too.
fn has_type_of(shape: &Shape, text: &str, deep: bool) -> bool {
    let first = text.as_bytes().first().copied().unwrap_or(b' ');
    match shape {
        Shape::Any => true,
        Shape::Null => first == b'n',
        Shape::Boolean => matches!(first, b't' | b'f'),
        Shape::Integer { .. } | Shape::Number { .. } => matches!(first, b'-' | b'0'..=b'9'),
        Shape::String(_) | Shape::Size(_) => first == b'"',
        Shape::Map(_) | Shape::Object(_) | Shape::Tagged { .. } => first == b'{',
        Shape::Array { items, .. } => {
            let inner = || text.get(1..).unwrap_or_default().trim_ascii_start();
            first == b'[' && (!deep || inner().starts_with(']') || has_type_of(items, inner(), true))
        }
        Shape::Either { of } => of.iter().any(|shape| has_type_of(shape, text, deep)),
        Shape::Named { name } => has_type_of(table::shape(name), text, deep),
    }
}

/// A JSON string's text. What cannot be decoded (half a surrogate pair) is taken as it stands.
pub(super) fn decoded(text: &str) -> Cow<'_, str> {
    let raw = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    if raw.contains('\\') {
        serde_json::from_str(text).map_or(Cow::Borrowed(raw), Cow::Owned)
    } else {
        raw.into()
    }
}

fn did_you_mean<'a>(found: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    if found.len() > NAME_BYTES_MAX {
        return None;
    }
    diag::nearest(found, known).map(|near| format!("did you mean `{near}`?"))
}

/// The key's own place, or its value's where an escape made the key a text of its own.
fn key_place<'m>(member: &'m Member<'_>) -> &'m str {
    match &member.key {
        Cow::Borrowed(key) => key,
        Cow::Owned(_) => member.value,
    }
}

/// `WIDTHxHEIGHT` within the bounds, or `auto`.
fn is_size(text: &str, size: &Size) -> bool {
    if text == "auto" {
        return true;
    }
    let Some((width, height)) = text.split_once('x') else { return false };
    let pixels = |text: &str| text.parse::<u32>().ok().filter(|n| *n > 0 && !text.starts_with('+'));
    let (Some(width), Some(height)) = (pixels(width), pixels(height)) else { return false };
    let (long, short) = (width.max(height), width.min(height));
    size.step.is_none_or(|step| long.is_multiple_of(step) && short.is_multiple_of(step))
        && size.ratio_max.is_none_or(|ratio| long <= short.saturating_mul(ratio))
        && size.long_max.is_none_or(|max| long <= max)
        && size.short_max.is_none_or(|max| short <= max)
}

/// Calls for each item of the JSON array that `text` is and counts them; none if it is no array.
/// One item is held at a time: an array of a million numbers costs no memory.
fn each_item<'t>(text: &'t str, item: &mut dyn FnMut(usize, &'t str)) -> Option<usize> {
    struct Items<'f, 't>(&'f mut dyn FnMut(usize, &'t str));

    impl<'t> Visitor<'t> for Items<'_, 't> {
        type Value = usize;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON array")
        }

        fn visit_seq<A: SeqAccess<'t>>(self, mut items: A) -> Result<usize, A::Error> {
            let mut count = 0;
            while let Some(value) = items.next_element::<&'t RawValue>()? {
                (self.0)(count, value.get());
                count += 1;
            }
            Ok(count)
        }
    }

    serde_json::Deserializer::from_str(text).deserialize_seq(Items(item)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_two_edges_within_bounds() {
        let bounds = Size { step: Some(16), ratio_max: Some(3), long_max: Some(3840), short_max: Some(2160) };
        for good in ["auto", "1024x1024", "3840x2160", "2160x3840", "16x48"] {
            assert!(is_size(good, &bounds), "{good}");
        }
        for bad in [
            "",
            "x",
            "1024",
            "1024x",
            "0x0",
            "+16x16",
            "16x-16",
            "1025x1024",
            "16x64",
            "4096x2048",
            "3840x2176",
        ] {
            assert!(!is_size(bad, &bounds), "{bad}");
        }
    }

    #[test]
    fn items_are_handed_over_with_their_text() {
        let mut seen = Vec::new();
        let count = each_item(r#"[ 1, "a,b" ,[2] ]"#, &mut |index, item| seen.push((index, item)));
        assert_eq!(count, Some(3));
        assert_eq!(seen, [(0, "1"), (1, "\"a,b\""), (2, "[2]")]);
        assert_eq!(each_item("{}", &mut |_, _| {}), None);
    }

    #[test]
    fn an_array_is_told_apart_by_its_first_item() {
        let strings = Shape::Array {
            items_min: None,
            items_max: None,
            items: Box::new(Shape::String(Text::default())),
        };
        assert!(has_type_of(&strings, "[ \"a\"]", true));
        assert!(has_type_of(&strings, "[ ]", true));
        assert!(!has_type_of(&strings, "[1]", true));
        assert!(has_type_of(&strings, "[1]", false));
    }

    #[test]
    fn strings_are_decoded_as_far_as_they_can_be() {
        assert_eq!(decoded(r#""a\u00e9""#), "aé");
        assert_eq!(decoded(r#""\ud800""#), r"\ud800");
        assert_eq!(decoded("12"), "12");
    }
}
