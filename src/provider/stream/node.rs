//! JSON values that grow: what servers send of an answer, piece by piece, put together again.
//!
//! # Operation
//!
//! Values are kept as the text they came in, and texts are joined as texts: `"ab"` and `"cd"` become `"abcd"` without
//! being unescaped, so that a number keeps its digits and a surrogate pair that two pieces share is whole again. A
//! value is only taken apart where a later one falls into it.
//!
//! # Invariants
//!
//! - Everything that is kept is paid for out of a [`Room`] (P5).
//! - Values are taken apart at most [`DEPTH_MAX`] deep; what lies deeper stays text.

use std::fmt::Write as _;

use serde_json::value::RawValue;

use crate::reading::json::{Member, members};

/// Deeper than any member of an answer that comes in pieces (`tool_calls[].function.arguments` is at 3), and far from
/// what a stack holds.
const DEPTH_MAX: usize = 8;

/// More than any answer has: each is looked for one by one.
const PARTS_MAX: usize = 1024;

/// What a value costs beside its text: its place in memory.
const NODE_BYTES: usize = 64;

/// Strings in a delta that stand there once, or again and again, but never in pieces.
const WHOLE: [&str; 6] = ["id", "type", "role", "name", "format", "index"];

/// Why something can't be joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// There is no room for it.
    TooLarge,
    /// An object or an array has too many parts.
    TooMany,
    /// It is no JSON object.
    NoObject,
}

/// How many bytes may still be kept.
#[derive(Debug)]
pub(super) struct Room {
    left: usize,
}

impl Room {
    pub(super) const fn new(bytes_max: usize) -> Self {
        Self { left: bytes_max }
    }

    pub(super) fn take(&mut self, bytes: usize) -> Result<(), Unfit> {
        self.left = self.left.checked_sub(bytes).ok_or(Unfit::TooLarge)?;
        Ok(())
    }

    const fn give(&mut self, bytes: usize) {
        self.left = self.left.saturating_add(bytes);
    }
}

/// How what comes later is joined to what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Join {
    /// It takes its place; objects are joined member by member.
    Replace,
    /// Arrays are continued; all else is as above.
    Extend,
    /// Arrays and strings are continued: a delta.
    Append,
}

/// A value.
#[derive(Debug)]
pub(super) enum Node {
    /// Its JSON text.
    Text(String),
    Object(Object),
    /// Of parts that are told apart by their `index`.
    List(Vec<Object>),
}

/// The members of an object, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Object(Vec<(String, Node)>);

/// Whether a value says nothing that one before it, or a later one, might not say better.
pub(super) fn says_nothing(text: &str) -> bool {
    let is_empty = |brackets| inside(text, brackets) == Some("");
    matches!(text, "null" | "\"\"") || is_empty(['[', ']']) || is_empty(['{', '}'])
}

/// What stands between the brackets.
fn inside(text: &str, [open, close]: [char; 2]) -> Option<&str> {
    Some(text.strip_prefix(open)?.strip_suffix(close)?.trim_ascii())
}

impl Object {
    pub(super) fn get(&self, name: &str) -> Option<&Node> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, node)| node)
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Node> {
        self.0.iter_mut().find(|(known, _)| known == name).map(|(_, node)| node)
    }

    /// The text of a member that is neither absent nor null, nor taken apart.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Node::Text(text) => Some(text.as_str()).filter(|text| *text != "null"),
            Node::Object(_) | Node::List(_) => None,
        }
    }

    /// Joins the object that `text` is.
    pub(super) fn join(&mut self, text: &str, join: Join, room: &mut Room) -> Result<(), Unfit> {
        self.join_at(text, join, 1, room)
    }

    fn join_at(&mut self, text: &str, join: Join, depth: usize, room: &mut Room) -> Result<(), Unfit> {
        members(text)
            .map_err(|_| Unfit::NoObject)?
            .iter()
            .try_for_each(|member| self.member(member, join, depth, room))
    }

    /// Joins one member.
    pub(super) fn join_member(
        &mut self,
        member: &Member<'_>,
        join: Join,
        room: &mut Room,
    ) -> Result<(), Unfit> {
        self.member(member, join, 1, room)
    }

    fn member(
        &mut self,
        member: &Member<'_>,
        join: Join,
        depth: usize,
        room: &mut Room,
    ) -> Result<(), Unfit> {
        if let Some((name, node)) = self.0.iter_mut().find(|(known, _)| *known == member.key) {
            return node.join(name, member.value, join, depth, room);
        }
        if self.0.len() == PARTS_MAX {
            return Err(Unfit::TooMany);
        }
        room.take(member.key.len() + NODE_BYTES)?;
        let node = Node::new(&member.key, member.value, join, depth, room)?;
        self.0.push((member.key.clone().into_owned(), node));
        Ok(())
    }

    /// Takes a member out.
    pub(super) fn remove(&mut self, name: &str) -> Option<Node> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(at).1)
    }

    /// Puts a member in that is not there.
    pub(super) fn insert(&mut self, name: &str, node: Node) {
        self.0.push((name.to_owned(), node));
    }

    /// The members that are not called so, apart from it.
    pub(super) fn split(&mut self, kept: &[&str]) -> Self {
        let all = std::mem::take(&mut self.0);
        let (kept, others) = all.into_iter().partition(|(name, _)| kept.contains(&name.as_str()));
        self.0 = kept;
        Self(others)
    }

    /// Writes it with the members of `first` before all others.
    pub(super) fn write(&self, first: &[&str], out: &mut String) {
        out.push('{');
        self.write_members(first, 0, out);
        out.push('}');
    }

    /// Writes its members behind those of another object.
    pub(super) fn write_behind(&self, first: &[&str], out: &mut String) {
        self.write_members(first, 1, out);
    }

    fn write_members(&self, first: &[&str], before: usize, out: &mut String) {
        let known = first.iter().filter_map(|name| Some((*name, self.get(name)?)));
        let others = self.0.iter().map(|(name, node)| (name.as_str(), node));
        let others = others.filter(|(name, _)| !first.contains(name));
        for (at, (name, node)) in (before..).zip(known.chain(others)) {
            write_key(at, name, out);
            node.write(out);
        }
    }
}

/// Writes `"name":`, with a comma before it unless it is the first.
pub(super) fn write_key(at: usize, name: &str, out: &mut String) {
    if at > 0 {
        out.push(',');
    }
    let name = serde_json::Value::from(name);
    write!(out, "{name}:").expect("a string takes everything");
}

impl Node {
    fn new(key: &str, text: &str, join: Join, depth: usize, room: &mut Room) -> Result<Self, Unfit> {
        if join == Join::Append
            && depth < DEPTH_MAX
            && text.starts_with('[')
            && let Some(parts) = indexed(key, text)
        {
            let mut list = Vec::new();
            join_parts(&mut list, &parts, depth, room)?;
            return Ok(Self::List(list));
        }
        room.take(text.len())?;
        Ok(Self::Text(text.to_owned()))
    }

    /// Joins `later`, which is not the first to be called `key`.
    fn join(
        &mut self,
        key: &str,
        later: &str,
        join: Join,
        depth: usize,
        room: &mut Room,
    ) -> Result<(), Unfit> {
        if says_nothing(later) {
            return Ok(());
        }
        match self {
            Self::Object(object) if later.starts_with('{') => {
                return object.join_at(later, join, depth + 1, room);
            }
            Self::List(list) if later.starts_with('[') => {
                let parts = indexed(key, later).unwrap_or_default();
                return join_parts(list, &parts, depth, room);
            }
            Self::Text(text) if !says_nothing(text) => match (first(text), first(later), join) {
                (b'{', b'{', _) if depth < DEPTH_MAX => {
                    let mut object = Object::default();
                    object.join_at(text, join, depth + 1, room)?;
                    object.join_at(later, join, depth + 1, room)?;
                    room.give(text.len());
                    *self = Self::Object(object);
                    return Ok(());
                }
                (b'[', b'[', Join::Extend | Join::Append) => return splice(text, ",", later, room),
                (b'"', b'"', Join::Append) if WHOLE.contains(&key) => return Ok(()),
                (b'"', b'"', Join::Append) => return splice(text, "", later, room),
                _ => {}
            },
            Self::Text(_) | Self::Object(_) | Self::List(_) => {}
        }
        if let Self::Text(text) = self {
            room.give(text.len());
        }
        *self = Self::new(key, later, join, depth, room)?;
        Ok(())
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Text(text) => out.push_str(text),
            Self::Object(object) => object.write(&[], out),
            Self::List(list) => {
                out.push('[');
                for (at, part) in list.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    part.write(&[], out);
                }
                out.push(']');
            }
        }
    }
}

fn first(text: &str) -> u8 {
    text.bytes().next().unwrap_or_default()
}

/// Puts `later` behind what stands in `text`, inside its brackets or quotes.
fn splice(text: &mut String, between: &str, later: &str, room: &mut Room) -> Result<(), Unfit> {
    let (Some(close), Some(later)) = (text.pop(), later.get(1..)) else { return Ok(()) };
    room.take(between.len() + later.len())?;
    debug_assert!(later.ends_with(close), "both are of one kind");
    text.push_str(between);
    text.push_str(later);
    Ok(())
}

/// The parts of an array that are told apart by their `index`; none of any other array. Calls of tools are such
/// whether they have one or not.
fn indexed<'a>(key: &str, text: &'a str) -> Option<Vec<Vec<Member<'a>>>> {
    let parts: Vec<&RawValue> = serde_json::from_str(text).ok()?;
    let parts: Vec<_> = parts.into_iter().map(|part| members(part.get()).ok()).collect::<Option<_>>()?;
    let has_index = |part: &Vec<Member<'_>>| part.iter().any(|member| member.key == "index");
    (key == "tool_calls" || parts.first().is_some_and(has_index)).then_some(parts)
}

fn join_parts(
    list: &mut Vec<Object>,
    parts: &[Vec<Member<'_>>],
    depth: usize,
    room: &mut Room,
) -> Result<(), Unfit> {
    for part in parts {
        let at = place(list, part).unwrap_or(list.len());
        if at == PARTS_MAX {
            return Err(Unfit::TooMany);
        }
        if at == list.len() {
            room.take(NODE_BYTES)?;
            list.push(Object::default());
        }
        let Some(object) = list.get_mut(at) else { continue };
        part.iter().try_for_each(|member| object.member(member, Join::Append, depth + 1, room))?;
    }
    Ok(())
}

/// Which of `list` a part goes on with; none if it begins one.
fn place(list: &[Object], part: &[Member<'_>]) -> Option<usize> {
    let value = |name: &str| {
        part.iter()
            .find(|member| member.key == name)
            .map(|member| member.value)
            .filter(|text| !says_nothing(text))
    };
    let with = |name: &'static str, value: &str| {
        list.iter().rposition(|known| known.text(name).is_some_and(|known| known == value))
    };
    let (index, id) = (value("index"), value("id"));
    // Ollama gave all calls the index 0 for a while, each whole; vLLM gave each piece of one call another id.
    let begins = value("function").is_some_and(names_function);
    let at = match (index, id) {
        (Some(index), _) => with("index", index)?,
        (None, Some(id)) => return with("id", id),
        // Without either it goes on with the last, unless it has a name of its own.
        (None, None) => return if begins { None } else { list.len().checked_sub(1) },
    };
    let known = list.get(at)?.text("id");
    let is_other = id.is_some_and(|id| known.is_some_and(|known| known != id));
    (!(begins && is_other)).then_some(at)
}

fn names_function(function: &str) -> bool {
    let members = members(function).unwrap_or_default();
    members.iter().any(|member| member.key == "name" && !says_nothing(member.value))
}
