//! Lines of prompts and completions, as the first generation of models was trained.
//!
//! Each line is checked alone, and what the lines have in common is judged behind the last: a model learns from the
//! separator where the answer begins, and from the ending where it is to stop.

use std::borrow::Cow;

use serde::Serialize;

use crate::reading::json::Member;
use crate::reading::problem::shown;
use crate::training::affixes::Affixes;
use crate::training::fingerprints::{Fingerprints, fingerprint};
use crate::training::message::Look;
use crate::training::survey::{Findings, Tally};

/// A few hundred pairs are advised.
pub(super) const ADVISED: u64 = 100;
/// Characters of a pair that surely has more tokens than the first generation takes.
pub(super) const CHARS_MAX: usize = 10_000;
/// Characters; longer ones are tokens paid for in vain.
pub(super) const AFFIX_MAX: usize = 10;
pub(super) const PROMPT_PREFIX_MAX: usize = 12;
pub(super) const COMPLETION_PREFIX_MAX: usize = 4;

/// What is gathered over a whole file of pairs.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    count: u64,
    prompts: Column,
    completions: Column,
    distinct: Fingerprints,
    extra: Tally,
    extra_key: Option<String>,
    unspaced: Tally,
    over: Tally,
}

#[derive(Debug, Default)]
struct Column {
    affixes: Affixes,
    filled: bool,
    upper: u64,
    lower: u64,
}

/// What pairs train a model for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// All prompts are empty: the model is to write without being asked.
    OpenEnded,
    /// Few completions, each many times.
    Classification,
    Conditional,
}

impl Task {
    pub(super) const fn of(pairs: u64, has_prompts: bool, distinct_completions: u64) -> Self {
        if !has_prompts {
            Self::OpenEnded
        } else if distinct_completions.saturating_mul(3) < pairs {
            Self::Classification
        } else {
            Self::Conditional
        }
    }
}

impl Column {
    fn take(&mut self, text: &str) {
        self.affixes.take(text);
        self.filled |= !text.is_empty();
        let (upper, lower) = cases(text);
        self.upper += upper;
        self.lower += lower;
    }

    /// Whether it is better lower-cased, going by what is not the `mark` that ends each of its texts.
    fn shouts(&self, mark: &str, texts: u64) -> bool {
        let (upper, lower) = cases(mark);
        shouts(self.upper.saturating_sub(upper * texts), self.lower.saturating_sub(lower * texts))
    }
}

/// How many letters of a text are upper case, and how many lower case.
pub(super) fn cases(text: &str) -> (u64, u64) {
    text.chars().fold((0, 0), |(upper, lower), c| {
        (upper + u64::from(c.is_uppercase()), lower + u64::from(c.is_lowercase()))
    })
}

/// Whether a column with so many letters of each case is better lower-cased.
pub(super) const fn shouts(upper: u64, lower: u64) -> bool {
    upper * 2 > lower
}

impl Pairs {
    /// Takes a line; its fingerprint, if it is a pair.
    pub(super) fn take<'t>(&mut self, look: &mut Look<'t>, members: &[Member<'t>], line: u32) -> Option<u64> {
        let prompt = column(look, members, "prompt");
        let completion = column(look, members, "completion");
        for Member { key, .. } in members {
            let is_extra = !["prompt", "completion"].contains(&key.to_lowercase().as_str());
            self.extra.note(is_extra, line);
            if is_extra && self.extra_key.is_none() {
                self.extra_key = Some(shown(key));
            }
        }
        let (prompt, completion) = (prompt?, completion?);
        self.count += 1;
        self.prompts.take(&prompt);
        self.completions.take(&completion);
        self.distinct.push(fingerprint(&[&completion]), line);
        self.unspaced.note(!completion.starts_with(char::is_whitespace), line);
        self.over.note(prompt.chars().count() + completion.chars().count() > CHARS_MAX, line);
        look.count(&prompt);
        look.count(&completion);
        Some(fingerprint(&[&prompt, &completion]))
    }

    pub(super) fn separator(&self) -> Option<&str> {
        self.prompts.affixes.separator().filter(|_| self.prompts.filled)
    }

    pub(super) fn ending(&self) -> Option<&str> {
        self.completions.affixes.ending()
    }

    /// Says what is to be said of the whole file. `has_context`: pairs that are too long were told by their tokens.
    pub(super) fn finish(&mut self, findings: &mut Findings<'_>, has_context: bool, is_validation: bool) {
        if self.count == 0 {
            return;
        }
        self.distinct.sort();
        let task = Task::of(self.count, self.prompts.filled, self.distinct.distinct());
        if let Some(key) = &self.extra_key {
            let message = format!("unknown key {key}, expected `prompt` and `completion` alone");
            findings.warning(self.extra.first(), message, &prepare_hint(findings.file, "takes it out"));
        }
        if !has_context {
            let end = "more than 10000 characters, which few models take";
            self.over.warn(findings, &format!("has {end}"), &format!("have {end}"));
        }
        if is_validation {
            return;
        }
        if self.count < ADVISED {
            findings.note(0, format!("{} pairs; a few hundred are advised", self.count));
        }
        self.columns(findings, task);
        self.unspaced.warn(
            findings,
            "has a completion that does not begin with a space",
            "have completions that do not begin with a space",
        );
    }

    fn columns(&self, findings: &mut Findings<'_>, task: Task) {
        let (prompts, completions) = (&self.prompts.affixes, &self.completions.affixes);
        let separator = self.separator().filter(|_| task != Task::OpenEnded);
        let ending = self.ending();
        let columns = [("prompts", &self.prompts, separator), ("completions", &self.completions, ending)];
        for (name, column, mark) in columns {
            if column.shouts(mark.unwrap_or_default(), self.count) {
                findings.note(0, format!("more than a third of the letters of the {name} are upper case"));
            }
        }
        // An error may be told in the log, where what the data say has no place: notes are not.
        if self.count == 1 {
            findings.error(0, "a single pair, expected many that differ", "");
        } else {
            if completions.all_equal() {
                let hint = "the model would learn to say this whatever it is asked";
                findings.error(0, "all completions are equal", hint);
                findings.note(0, format!("each completion is {}", shown(completions.prefix())));
            }
            if prompts.all_equal() && task != Task::OpenEnded {
                let hint = "leave prompts empty where the model is to write without being asked";
                findings.error(0, "all prompts are equal", hint);
                findings.note(0, format!("each prompt is {}", shown(prompts.prefix())));
            }
        }
        let hint = prepare_hint(findings.file, "adds one");
        if separator.is_none() && task != Task::OpenEnded {
            findings.warning(0, "the prompts end with no common separator", &hint);
        }
        if ending.is_none() && task == Task::Conditional {
            findings.warning(0, "the completions have no common ending to stop at", &hint);
        }
        self.beginnings(findings);
        let said = match (separator, ending) {
            (Some(separator), Some(ending)) => {
                format!("prompts end with {}, completions with {}", shown(separator), shown(ending))
            }
            (Some(separator), None) => format!("prompts end with {}", shown(separator)),
            (None, Some(ending)) => format!("completions end with {}", shown(ending)),
            (None, None) => return,
        };
        findings.note(0, format!("{said}: use the model with the same separator and `stop`"));
    }

    fn beginnings(&self, findings: &mut Findings<'_>) {
        let long = [
            ("prompts", "begin", self.prompts.affixes.prefix(), PROMPT_PREFIX_MAX),
            ("completions", "begin", self.completions.affixes.prefix(), COMPLETION_PREFIX_MAX),
            ("prompts", "end", self.separator().unwrap_or_default(), AFFIX_MAX),
            ("completions", "end", self.ending().unwrap_or_default(), AFFIX_MAX),
        ];
        let all_equal =
            |name| if name == "prompts" { &self.prompts } else { &self.completions }.affixes.all_equal();
        for (name, act, text, max) in long {
            if text.chars().count() > max && !all_equal(name) {
                let message = format!("all {name} {act} with {}: each word of it costs tokens", shown(text));
                findings.note(0, message);
            }
        }
    }
}

/// The text of a pair's `key`; none if it can't be taken.
fn column<'t>(look: &mut Look<'t>, members: &[Member<'t>], key: &str) -> Option<Cow<'t, str>> {
    let mut named = members.iter().filter(|member| member.key.to_lowercase() == key);
    let Some(member) = named.next() else {
        look.whole(format!("missing `{key}`"));
        return None;
    };
    if let Some(second) = named.next() {
        look.error(second.value, format!("`{key}` twice"));
        return None;
    }
    if member.key != key {
        look.error(member.value, format!("key {}, expected `{key}`", shown(&member.key))).hint =
            Some("`batchd prepare FILE` writes keys as they must be".to_owned());
    }
    let text = look.string(member.value, &format!("`{key}`"))?;
    if text.is_empty() && key == "completion" {
        look.error(member.value, "`completion` is empty");
        return None;
    }
    Some(text)
}

fn prepare_hint(file: &str, act: &str) -> String {
    format!("`batchd prepare {file}` {act}")
}
