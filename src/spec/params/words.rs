//! How findings name a place, what was found there, and what was expected.

use std::fmt::{self, Write as _};

use super::table::{self, Shape, Size, Text};

/// Characters of a found value or key that a message shows.
const SHOWN_CHARS_MAX: usize = 40;

/// Where a value stands below the body: `messages[0].content`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Member(&'a str),
    Item(usize),
}

impl<'a> Path<'a> {
    pub(super) const fn top(name: &'a str) -> Self {
        Self { parent: None, step: Step::Member(name) }
    }

    pub(super) const fn member(&'a self, name: &'a str) -> Self {
        Self { parent: Some(self), step: Step::Member(name) }
    }

    pub(super) const fn item(&'a self, index: usize) -> Self {
        Self { parent: Some(self), step: Step::Item(index) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match (self.step, self.parent) {
            (Step::Member(name), None) => f.write_str(&cut(name)),
            (Step::Member(name), Some(_)) => write!(f, ".{}", cut(name)),
            (Step::Item(index), _) => write!(f, "[{index}]"),
        }
    }
}

/// A value's JSON text as a message shows it: scalars as they are, others by their type.
pub(super) fn shown(text: &str) -> String {
    match text.as_bytes().first() {
        Some(b'[') => "an array".to_owned(),
        Some(b'{') => "an object".to_owned(),
        _ => cut(text),
    }
}

/// Text for a message, no longer than [`SHOWN_CHARS_MAX`].
pub(super) fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// What the shape asks for, as a phrase: a number from 0 to 2.
pub(super) fn expected(shape: &Shape) -> String {
    match shape {
        Shape::Any => "any value".to_owned(),
        Shape::Null => "null".to_owned(),
        Shape::Boolean => "true or false".to_owned(),
        Shape::Integer { min, max } => bounded("an integer", min.as_ref(), max.as_ref()),
        Shape::Number { min, max } => bounded("a number", min.as_ref(), max.as_ref()),
        Shape::String(text) => expected_text(text),
        Shape::Size(size) => expected_size(size),
        Shape::Array { items, .. } => format!("an array{}", plural(items)),
        Shape::Map(_) | Shape::Object(_) | Shape::Tagged { .. } => "an object".to_owned(),
        Shape::Either { of } => {
            let mut all: Vec<String> = of.iter().map(expected).collect();
            let last = all.pop().unwrap_or_default();
            if all.is_empty() { last } else { format!("{} or {last}", all.join(", ")) }
        }
        Shape::Named { name } => expected(table::shape(name)),
    }
}

/// `1 to 4`, `at most 16`, `at least 1`: without bounds `any number`.
pub(super) fn range<T: fmt::Display>(min: Option<T>, max: Option<T>) -> String {
    match (min, max) {
        (Some(min), Some(max)) => format!("{min} to {max}"),
        (Some(min), None) => format!("at least {min}"),
        (None, Some(max)) => format!("at most {max}"),
        (None, None) => "any number".to_owned(),
    }
}

pub(super) fn one_of<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let mut out = "one of ".to_owned();
    for (at, word) in words.into_iter().enumerate() {
        let comma = if at == 0 { "" } else { ", " };
        write!(out, "{comma}`{word}`").expect("a String takes every text");
    }
    out
}

fn bounded<T: fmt::Display + PartialEq>(noun: &str, min: Option<&T>, max: Option<&T>) -> String {
    match (min, max) {
        (Some(min), Some(max)) if min == max => min.to_string(),
        (Some(min), Some(max)) => format!("{noun} from {min} to {max}"),
        (None, None) => noun.to_owned(),
        (min, max) => format!("{noun} of {}", range(min, max)),
    }
}

fn expected_text(text: &Text) -> String {
    if !text.one_of.is_empty() {
        return one_of(text.one_of.iter().map(String::as_str));
    }
    match (text.chars_min, text.chars_max) {
        (None, None) => "a string".to_owned(),
        (Some(1), None) => "a string that is not empty".to_owned(),
        (min, max) => format!("a string of {} characters", range(min, max)),
    }
}

fn expected_size(size: &Size) -> String {
    let mut out = "`auto` or `WIDTHxHEIGHT` in pixels".to_owned();
    let mut add = |text: String| out.push_str(&text);
    if let Some(step) = size.step {
        add(format!(", both multiples of {step}"));
    }
    if let Some(ratio) = size.ratio_max {
        add(format!(", no side over {ratio} times the other"));
    }
    if let (Some(long), Some(short)) = (size.long_max, size.short_max) {
        add(format!(", at most {long}x{short}"));
    }
    out
}

/// The items of an array, where one word can say them.
fn plural(items: &Shape) -> &'static str {
    match items {
        Shape::String(_) => " of strings",
        Shape::Integer { .. } => " of integers",
        Shape::Array { .. } => " of arrays",
        Shape::Object(_) | Shape::Tagged { .. } => " of objects",
        Shape::Named { name } => plural(table::shape(name)),
        Shape::Any
        | Shape::Null
        | Shape::Boolean
        | Shape::Number { .. }
        | Shape::Size(_)
        | Shape::Map(_)
        | Shape::Either { .. } => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_as_code_does() {
        let messages = Path::top("messages");
        let first = messages.item(0);
        let content = first.member("content");
        assert_eq!(content.item(2).to_string(), "messages[0].content[2]");
    }

    #[test]
    fn long_values_are_cut_and_large_ones_named() {
        assert_eq!(shown("[1,2]"), "an array");
        assert_eq!(shown("\"é\""), "\"é\"");
        assert_eq!(shown(&"é".repeat(100)), format!("{}…", "é".repeat(40)));
    }

    #[test]
    fn expectations_are_phrases() {
        let shape = |text: &str| toml::from_str::<Shape>(text).unwrap();
        for (text, phrase) in [
            ("type = \"integer\"\nmin = 1", "an integer of at least 1"),
            ("type = \"integer\"\nmin = 1\nmax = 1", "1"),
            ("type = \"number\"\nmin = -2\nmax = 2", "a number from -2 to 2"),
            ("type = \"string\"\nchars_max = 64", "a string of at most 64 characters"),
            ("type = \"string\"\none_of = [\"a\", \"b\"]", "one of `a`, `b`"),
            (
                "type = \"either\"\nof = [{type = \"string\"}, {type = \"array\", items = {type = \"string\"}}]",
                "a string or an array of strings",
            ),
        ] {
            assert_eq!(expected(&shape(text)), phrase);
        }
    }
}
