//! The checks that pairs go through, in their order.

use std::collections::BTreeSet;
use std::{fmt, mem};

use crate::diag::Diagnostic;
use crate::reading::problem::shown;
use crate::training::affixes::Affixes;
use crate::training::fingerprints::fingerprint;
use crate::training::pairs::{
    ADVISED, AFFIX_MAX, CHARS_MAX, COMPLETION_PREFIX_MAX, PROMPT_PREFIX_MAX, Task, cases, shouts,
};
use crate::training::prepare::{Pair, Person, Stop};

/// Separators to add, the shortest first. The first stands on a line, which a prompt of many lines would hide it in.
const SEPARATORS: [&str; 6] =
    [" ->", "\n\n###\n\n", "\n\n===\n\n", "\n\n---\n\n", "\n\n===>\n\n", "\n\n--->\n\n"];
const LAST_SEPARATOR: &str = "\n\n### =>\n\n";

/// Endings to add.
const ENDINGS: [&str; 9] = ["\n", ".", " END", "***", "+++", "&&&", "$$$", "@@@", "%%%"];
const LAST_ENDING: &str = " [END]";

/// Pairs on their way.
pub struct Preparation<'p> {
    file: &'p str,
    person: &'p mut dyn Person,
    pairs: Vec<Pair>,
    task: Task,
    changed: bool,
}

impl fmt::Debug for Preparation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Preparation")
            .field("file", &self.file)
            .field("task", &self.task)
            .finish_non_exhaustive()
    }
}

/// Pairs that can be trained on.
#[derive(Debug)]
pub struct Prepared {
    pub pairs: Vec<Pair>,
    pub task: Task,
    pub separator: Option<String>,
    pub ending: Option<String>,
    /// They are not those that were read.
    pub changed: bool,
}

/// The half of a pair that a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Prompts,
    Completions,
}

impl Column {
    const BOTH: [Self; 2] = [Self::Prompts, Self::Completions];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Prompts => "prompts",
            Self::Completions => "completions",
        }
    }

    fn of(self, pair: &Pair) -> &str {
        match self {
            Self::Prompts => &pair.prompt,
            Self::Completions => &pair.completion,
        }
    }

    const fn of_mut(self, pair: &mut Pair) -> &mut String {
        match self {
            Self::Prompts => &mut pair.prompt,
            Self::Completions => &mut pair.completion,
        }
    }
}

impl<'p> Preparation<'p> {
    /// Begins with what both outputs need: how many pairs there are, none without a completion, what they are for.
    pub fn begin(file: &'p str, pairs: Vec<Pair>, person: &'p mut dyn Person) -> Result<Self, Stop> {
        let mut preparation = Self { file, person, pairs, task: Task::Conditional, changed: false };
        preparation.tell_if_few();
        preparation.drop_empty()?;
        preparation.tell_task();
        Ok(preparation)
    }

    /// Goes on to pairs for the first generation of models.
    pub fn into_pairs(mut self) -> Result<Prepared, Stop> {
        // Before anything is asked: no answer would help.
        self.refuse_equal()?;
        self.propose_without_duplicates()?;
        self.propose_without_long()?;
        for column in Column::BOTH {
            self.propose_lower_case(column)?;
        }
        self.propose_separator()?;
        self.propose_without_prefix(Column::Prompts, PROMPT_PREFIX_MAX)?;
        self.propose_without_prefix(Column::Completions, COMPLETION_PREFIX_MAX)?;
        self.propose_ending()?;
        self.propose_spaces()?;
        // What was equal but for its case, or but for a pair that was left out, is so now.
        self.refuse_equal()?;
        Ok(self.finish())
    }

    /// Goes on to what conversations are made of.
    pub fn into_talk(mut self, system: Option<String>) -> Result<(super::Talk, Vec<Pair>), Stop> {
        self.propose_without_duplicates()?;
        let talk = super::Talk::of(&mut self.pairs, system, self.file, self.person)?;
        Ok((talk, self.pairs))
    }

    fn finish(self) -> Prepared {
        let (prompts, completions) = (self.affixes(Column::Prompts), self.affixes(Column::Completions));
        let has_prompts = self.task != Task::OpenEnded;
        Prepared {
            separator: prompts.separator().filter(|_| has_prompts).map(str::to_owned),
            ending: completions.ending().map(str::to_owned),
            pairs: self.pairs,
            task: self.task,
            changed: self.changed,
        }
    }

    fn note(&mut self, line: u32, message: impl Into<String>) {
        self.person.tell(Diagnostic::note(self.file, line, 0, message));
    }

    fn warn(&mut self, line: u32, message: impl Into<String>) {
        self.person.tell(Diagnostic::warning(self.file, line, 0, message));
    }

    fn affixes(&self, column: Column) -> Affixes {
        let mut affixes = Affixes::default();
        for pair in &self.pairs {
            affixes.take(column.of(pair));
        }
        affixes
    }

    fn tell_if_few(&mut self) {
        let count = self.pairs.len();
        if (count as u64) < ADVISED {
            let plural = if count == 1 { "" } else { "s" };
            self.note(0, format!("{count} pair{plural}; a few hundred are advised"));
        }
    }

    fn drop_empty(&mut self) -> Result<(), Stop> {
        let mut empty = self.pairs.iter().filter(|pair| pair.completion.is_empty());
        let Some(line) = empty.next().map(|pair| pair.line) else { return Ok(()) };
        let count = 1 + empty.count();
        self.pairs.retain(|pair| !pair.completion.is_empty());
        self.changed = true;
        let plural = if count == 1 { "" } else { "s" };
        self.note(line, format!("{count} row{plural} without a completion left out"));
        if self.pairs.is_empty() {
            let found = Diagnostic::error(self.file, 0, 0, "no row has a completion");
            self.person.tell(found.hint("what the model is to say belongs into `completion`"));
            return Err(Stop::Refused);
        }
        Ok(())
    }

    fn tell_task(&mut self) {
        let classes: BTreeSet<&str> = self.pairs.iter().map(|pair| pair.completion.as_str()).collect();
        let (count, classes) = (self.pairs.len(), classes.len());
        let has_prompts = self.pairs.iter().any(|pair| !pair.prompt.is_empty());
        self.task = Task::of(count as u64, has_prompts, classes as u64);
        match self.task {
            Task::OpenEnded => self.note(0, "all prompts are empty: a model is trained to write without being asked"),
            Task::Classification => self.note(
                0,
                format!(
                    "{classes} different completions in {count} pairs: a model is trained to tell classes apart, \
                     best with one word for each"
                ),
            ),
            Task::Conditional => {}
        }
    }

    /// Refuses what teaches nothing.
    fn refuse_equal(&mut self) -> Result<(), Stop> {
        let mut found = Vec::new();
        let (prompts, completions) = (self.affixes(Column::Prompts), self.affixes(Column::Completions));
        match self.pairs.len() {
            0 => found.push(("no pair is left".to_owned(), "")),
            1 => found.push(("a single pair, expected many that differ".to_owned(), "")),
            _ => {
                if prompts.all_equal() && self.task != Task::OpenEnded {
                    let message = format!("all prompts are equal: {}", shown(prompts.prefix()));
                    found.push((message, "leave them empty if the model is to write without being asked"));
                }
                if completions.all_equal() {
                    let message = format!("all completions are equal: {}", shown(completions.prefix()));
                    found.push((message, "the model would learn to say this whatever it is asked"));
                }
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        for (what, mark) in [("prompts", prompts.separator()), ("completions", completions.ending())] {
            if let Some(mark) = mark {
                self.note(0, format!("the {what} end with {}", shown(mark)));
            }
        }
        for (message, hint) in found {
            let diagnostic = Diagnostic::error(self.file, 0, 0, message);
            self.person.tell(if hint.is_empty() { diagnostic } else { diagnostic.hint(hint) });
        }
        Err(Stop::Refused)
    }

    /// Proposes something, and does it to each pair if it is wanted.
    fn propose(&mut self, proposal: &str, act: impl Fn(&mut Pair)) -> Result<(), Stop> {
        if self.person.agrees(proposal)? {
            self.pairs.iter_mut().for_each(act);
            self.changed = true;
        }
        Ok(())
    }

    /// Proposes to leave out the pairs that `is_bad` names; `what` they are.
    fn propose_without(&mut self, is_bad: &[bool], what: &str) -> Result<(), Stop> {
        let mut bad = self.pairs.iter().zip(is_bad).filter(|(_, bad)| **bad);
        let Some((first, _)) = bad.next() else { return Ok(()) };
        let (line, count) = (first.line, 1 + bad.count());
        let plural = if count == 1 { "" } else { "s" };
        let proposal = format!("leave out {count} pair{plural} {what} (first on line {line})");
        if self.person.agrees(&proposal)? {
            let kept = mem::take(&mut self.pairs).into_iter().zip(is_bad).filter(|(_, bad)| !**bad);
            self.pairs = kept.map(|(pair, _)| pair).collect();
            self.changed = true;
        }
        Ok(())
    }

    fn propose_without_duplicates(&mut self) -> Result<(), Stop> {
        let mut seen = BTreeSet::new();
        let parts = self.pairs.iter().map(|pair| fingerprint(&[&pair.prompt, &pair.completion]));
        let is_duplicate: Vec<bool> = parts.map(|part| !seen.insert(part)).collect();
        self.propose_without(&is_duplicate, "found above already")
    }

    fn propose_without_long(&mut self) -> Result<(), Stop> {
        if self.task == Task::OpenEnded {
            return Ok(());
        }
        let length = |pair: &Pair| pair.prompt.chars().count() + pair.completion.chars().count();
        let is_long: Vec<bool> = self.pairs.iter().map(|pair| length(pair) > CHARS_MAX).collect();
        self.propose_without(&is_long, &format!("of more than {CHARS_MAX} characters, which few models take"))
    }

    fn propose_lower_case(&mut self, column: Column) -> Result<(), Stop> {
        let affixes = self.affixes(column);
        let mark = if column == Column::Prompts { affixes.separator() } else { affixes.ending() };
        let mark = mark.unwrap_or_default().len();
        let (mut upper, mut lower) = (0, 0);
        for pair in &self.pairs {
            let text = column.of(pair);
            let of_text = cases(text.get(..text.len() - mark).unwrap_or_default());
            (upper, lower) = (upper + of_text.0, lower + of_text.1);
        }
        if !shouts(upper, lower) {
            return Ok(());
        }
        let proposal = format!("put the {} into lower case, since much is in upper case", column.as_str());
        self.propose(&proposal, |pair| {
            let text = column.of_mut(pair);
            *text = text.to_lowercase();
        })
    }

    fn propose_separator(&mut self) -> Result<(), Stop> {
        let affixes = self.affixes(Column::Prompts);
        if self.task == Task::OpenEnded || affixes.all_equal() {
            return Ok(());
        }
        if let Some(separator) = affixes.separator() {
            self.judge_mark(Column::Prompts, separator);
            return Ok(());
        }
        let has_lines = self.pairs.iter().any(|pair| pair.prompt.contains('\n'));
        let is_free = |mark: &str| !self.pairs.iter().any(|pair| pair.prompt.contains(mark));
        let mut fit = SEPARATORS.iter().skip(usize::from(has_lines)).filter(|mark| is_free(mark));
        let separator = fit.next().copied().unwrap_or(LAST_SEPARATOR);
        let proposal = format!("add the separator `{separator}` to all prompts");
        self.propose(&proposal, |pair| pair.prompt.push_str(separator))
    }

    fn propose_ending(&mut self) -> Result<(), Stop> {
        let affixes = self.affixes(Column::Completions);
        if self.task != Task::Conditional || affixes.all_equal() {
            return Ok(());
        }
        if let Some(ending) = affixes.ending() {
            self.judge_mark(Column::Completions, ending);
            return Ok(());
        }
        let is_free = |mark: &str| !self.pairs.iter().any(|pair| pair.completion.contains(mark));
        let ending = ENDINGS.into_iter().find(|mark| is_free(mark)).unwrap_or(LAST_ENDING);
        let proposal = format!("add the ending `{ending}` to all completions");
        self.propose(&proposal, |pair| pair.completion.push_str(ending))
    }

    /// Says what is wrong with a separator or an ending that is there.
    fn judge_mark(&mut self, column: Column, mark: &str) {
        let name = column.as_str();
        if mark.chars().count() > AFFIX_MAX {
            self.warn(0, format!("all {name} end with {}: each word of it costs tokens", shown(mark)));
        }
        let inside =
            |pair: &&Pair| column.of(pair).strip_suffix(mark).is_some_and(|text| text.contains(mark));
        let first = self.pairs.iter().find(inside).map(|pair| pair.line);
        if let Some(line) = first {
            let count = self.pairs.iter().filter(inside).count();
            let message =
                format!("{count} of the {name} have {} inside, too, not only at the end", shown(mark));
            self.warn(line, message);
        }
    }

    fn propose_without_prefix(&mut self, column: Column, max: usize) -> Result<(), Stop> {
        if column == Column::Prompts && self.task == Task::OpenEnded {
            return Ok(());
        }
        let affixes = self.affixes(column);
        // Cut behind a whole word: what is left must read as it did.
        let prefix = affixes.prefix();
        let prefix = prefix.rfind(char::is_whitespace).and_then(|at| prefix.get(..at)).unwrap_or_default();
        let least = prefix.len() + affixes.suffix().len();
        let has_more = self.pairs.iter().all(|pair| column.of(pair).len() > least);
        if prefix.chars().count() <= max || affixes.all_equal() || !has_more {
            return Ok(());
        }
        let proposal = format!("take {} off, with which all {} begin", shown(prefix), column.as_str());
        self.propose(&proposal, |pair| {
            let text = column.of_mut(pair);
            // The blank behind it stays with completions, which are to begin with one.
            let rest = text.strip_prefix(prefix).unwrap_or(text);
            *text = if column == Column::Prompts { rest.trim_start() } else { rest }.to_owned();
        })
    }

    fn propose_spaces(&mut self) -> Result<(), Stop> {
        let is_bare = |pair: &Pair| !pair.completion.starts_with(char::is_whitespace);
        let count = self.pairs.iter().filter(|pair| is_bare(pair)).count();
        if count == 0 {
            return Ok(());
        }
        let proposal = format!("put a space before {count} of the completions, with which words begin");
        self.propose(&proposal, |pair| {
            if is_bare(pair) {
                pair.completion.insert(0, ' ');
            }
        })
    }
}
