//! What is gathered over the lines of a file, and what it comes to.

use crate::diag::{Diagnostic, Report};
use crate::reading::json::{self, Member};
use crate::reading::objects::{Object, Visited};
use crate::reading::problem::{Spot, Syntax, shown};
use crate::training::chat::Chats;
use crate::training::fingerprints::{Fingerprints, fingerprint};
use crate::training::message::Look;
use crate::training::pairs::Pairs;
use crate::training::tokens::{Tokenizer, context_of, encoding_for};
use crate::training::{EXAMPLES_MIN, Expected, Figures, Format, Rules, epochs_for, preferences};

/// Examples that are advised to begin with, where there must be [`EXAMPLES_MIN`].
const ADVISED: u64 = 50;

/// Checks lines and counts.
#[derive(Debug)]
pub(super) struct Survey<'r> {
    file: &'r str,
    rules: &'r Rules<'r>,
    tokenizer: Tokenizer,
    context: Option<u32>,
    /// With the line that told it.
    format: Option<(Format, u32)>,
    /// It is not the file that is meant: nothing more is said of its lines.
    refused: bool,
    fingerprints: Fingerprints,
    pairs: Pairs,
    chats: Chats,
    cut: Tally,
    examples: u64,
    tokens: u64,
    longest: u64,
    /// Tokens of one epoch.
    trained: u64,
    rough: bool,
}

/// Lines of which the same is to be said.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    count: u64,
    first: u32,
}

/// Where the words about a whole file go.
#[derive(Debug)]
pub(super) struct Findings<'f> {
    pub(super) file: &'f str,
    pub(super) report: &'f mut Report,
}

impl Findings<'_> {
    pub(super) fn error(&mut self, line: u32, message: impl Into<String>, hint: &str) {
        self.push(Diagnostic::error(self.file, line, 0, message), hint);
    }

    pub(super) fn warning(&mut self, line: u32, message: impl Into<String>, hint: &str) {
        self.push(Diagnostic::warning(self.file, line, 0, message), hint);
    }

    pub(super) fn note(&mut self, line: u32, message: impl Into<String>) {
        self.push(Diagnostic::note(self.file, line, 0, message), "");
    }

    fn push(&mut self, found: Diagnostic, hint: &str) {
        self.report.push(if hint.is_empty() { found } else { found.hint(hint) });
    }
}

impl Tally {
    pub(super) const fn note(&mut self, is_so: bool, line: u32) {
        if is_so {
            if self.count == 0 {
                self.first = line;
            }
            self.count += 1;
        }
    }

    pub(super) const fn first(self) -> u32 {
        self.first
    }

    pub(super) fn tell(self, findings: &mut Findings<'_>, one: &str, many: &str) {
        if let Some(message) = self.words(one, many) {
            findings.note(self.first, message);
        }
    }

    pub(super) fn warn(self, findings: &mut Findings<'_>, one: &str, many: &str) {
        if let Some(message) = self.words(one, many) {
            findings.warning(self.first, message, "");
        }
    }

    fn words(self, one: &str, many: &str) -> Option<String> {
        match self.count {
            0 => None,
            1 => Some(format!("this example {one}")),
            count => Some(format!("this example and {} more {many}", count - 1)),
        }
    }
}

impl<'r> Survey<'r> {
    pub(super) fn new(file: &'r str, rules: &'r Rules<'r>) -> Self {
        Self {
            file,
            rules,
            tokenizer: encoding_for(rules.model),
            context: context_of(rules.model),
            format: None,
            refused: false,
            fingerprints: Fingerprints::default(),
            pairs: Pairs::default(),
            chats: Chats::default(),
            cut: Tally::default(),
            examples: 0,
            tokens: 0,
            longest: 0,
            trained: 0,
            rough: false,
        }
    }

    pub(super) fn take(&mut self, object: Object<'_>, report: &mut Report) -> Visited {
        if self.refused {
            return Ok(());
        }
        let (text, line) = (object.text, object.number);
        let members = json::members(text).map_err(|error| Syntax::new(text, &error))?;
        let mut look = Look::new(text, self.tokenizer);
        if let Some((later, _)) = json::duplicate(&members) {
            look.error(later.value, format!("duplicate key {}", shown(&later.key)));
        } else {
            self.example(&mut look, &members, line);
        }
        let spot = Spot { file: self.file, line, text: Some(text) };
        report.extend(look.problems.drain(..).map(|problem| problem.at(spot)));
        Ok(())
    }

    fn example<'t>(&mut self, look: &mut Look<'t>, members: &[Member<'t>], line: u32) {
        let Some(found) = format_of(members) else {
            self.refuse_unknown(look, members);
            return;
        };
        let (format, told_by) = *self.format.get_or_insert((found, line));
        if !self.rules.expected.takes(format) {
            self.refused = true;
            let message = format!("this is a {format}, expected {}", wanted(self.rules.expected));
            look.whole(message).hint = hint_for(format, self.rules.expected, self.file);
            return;
        }
        if found != format {
            look.whole(format!("this is a {found}, expected a {format} as on line {told_by}"));
            return;
        }
        self.examples += 1;
        let whole = fingerprint(&[look.text().trim()]);
        let fingerprint = match format {
            Format::Pairs => self.pairs.take(look, members, line),
            Format::Chat => {
                self.chats.take(look, members, line, self.rules.expected);
                Some(whole)
            }
            Format::Preferences => {
                preferences::take(look, members);
                Some(whole)
            }
        };
        let trained = self.context.map_or(look.tokens, |context| look.tokens.min(u64::from(context)));
        self.cut.note(trained < look.tokens, line);
        self.tokens += look.tokens;
        self.trained += trained;
        self.longest = self.longest.max(look.tokens);
        self.rough |= look.rough;
        let Some(fingerprint) = fingerprint else { return };
        self.fingerprints.push(fingerprint, line);
        if let Some(same) = self.rules.training.and_then(|training| training.line_of(fingerprint)) {
            look.warning(
                look.text(),
                format!("this example is in the training file, too, on its line {same}"),
            )
            .hint = Some("what was trained on says nothing about what was learned".to_owned());
        }
    }

    fn refuse_unknown<'t>(&mut self, look: &mut Look<'t>, members: &[Member<'t>]) {
        // The first line decides what the file is, and what it is not.
        self.refused = self.format.is_none();
        let has = |key: &str| members.iter().any(|member| member.key == key);
        if has("custom_id") && has("body") {
            let hint = "this looks like a file of requests: submit it as a job";
            look.whole("this is a request, not an example").hint = Some(hint.to_owned());
            return;
        }
        let keys: Vec<String> = members.iter().take(5).map(|member| shown(&member.key)).collect();
        let found = if keys.is_empty() { "no keys".to_owned() } else { keys.join(", ") };
        look.whole(format!("not an example: found {found}, expected {}", wanted(self.rules.expected)));
    }

    /// Says what is to be said of the whole file.
    pub(super) fn finish(mut self, report: &mut Report) -> (Option<Figures>, Fingerprints) {
        self.fingerprints.sort();
        let Some((format, _)) = self.format.filter(|_| !self.refused) else {
            if !report.has_errors() {
                report.push(Diagnostic::error(self.file, 0, 0, "the file holds no example"));
            }
            return (None, self.fingerprints);
        };
        let mut findings = Findings { file: self.file, report };
        for (line, first) in self.fingerprints.duplicates() {
            findings.warning(line, format!("the same example as on line {first}"), "");
        }
        if let Some(context) = self.context {
            let end = format!("more than the {context} tokens that are trained on: the rest is cut off");
            self.cut.warn(&mut findings, &format!("has {end}"), &format!("have {end}"));
        }
        let is_validation = self.rules.training.is_some();
        let has_minimum = format != Format::Pairs || self.rules.expected == Expected::PairsOrChat;
        if has_minimum && !is_validation && self.examples < EXAMPLES_MIN {
            let plural = if self.examples == 1 { "" } else { "s" };
            let message = format!("{} example{plural}, expected at least {EXAMPLES_MIN}", self.examples);
            findings.error(0, message, "");
        } else if has_minimum && !is_validation && self.examples < ADVISED {
            let message = format!("{} examples; {ADVISED} to 100 are advised to begin with", self.examples);
            findings.note(0, message);
        }
        match format {
            Format::Pairs => self.pairs.finish(&mut findings, self.context.is_some(), is_validation),
            Format::Chat => self.chats.finish(&mut findings),
            Format::Preferences => {}
        }
        (Some(self.figures(format)), self.fingerprints)
    }

    fn figures(&self, format: Format) -> Figures {
        let epochs = self.rules.epochs.unwrap_or_else(|| epochs_for(self.examples));
        let is_pairs = format == Format::Pairs;
        Figures {
            format,
            examples: self.examples,
            tokens: self.tokens,
            tokens_estimated: self.rough || !self.tokenizer.exact,
            longest: self.longest,
            context: self.context,
            cut: self.cut.count,
            epochs,
            epochs_guessed: self.rules.epochs.is_none(),
            billed_tokens: self.trained.saturating_mul(u64::from(epochs)),
            separator: self.pairs.separator().filter(|_| is_pairs).map(str::to_owned),
            ending: self.pairs.ending().filter(|_| is_pairs).map(str::to_owned),
        }
    }
}

/// What a line is by its keys.
fn format_of(members: &[Member<'_>]) -> Option<Format> {
    let has = |key: &str| members.iter().any(|member| member.key == key);
    let has_any_case = |key: &str| members.iter().any(|member| member.key.to_lowercase() == key);
    if has("custom_id") && has("body") {
        None
    } else if has("messages") {
        Some(Format::Chat)
    } else if has("preferred_output") || has("non_preferred_output") {
        Some(Format::Preferences)
    } else if has_any_case("completion") || has_any_case("prompt") {
        Some(Format::Pairs)
    } else {
        None
    }
}

const fn wanted(expected: Expected) -> &'static str {
    match expected {
        Expected::Pairs => "`{\"prompt\": …, \"completion\": …}`",
        Expected::Chat | Expected::Prompts => "`{\"messages\": […]}`",
        Expected::PairsOrChat => "`{\"prompt\": …, \"completion\": …}` or `{\"messages\": […]}`",
        Expected::Preferences => {
            "`{\"input\": {\"messages\": […]}, \"preferred_output\": […], \"non_preferred_output\": […]}`"
        }
        Expected::Any => "`{\"messages\": […]}` or `{\"prompt\": …, \"completion\": …}`",
    }
}

fn hint_for(found: Format, expected: Expected, file: &str) -> Option<String> {
    match (found, expected) {
        (Format::Pairs, Expected::Chat | Expected::Prompts) => {
            Some(format!("`batchd prepare {file} --to chat` makes conversations of pairs"))
        }
        (Format::Chat, Expected::Pairs) => {
            Some("the legacy interface knows no conversations: take `api = \"jobs\"`".to_owned())
        }
        (Format::Chat, Expected::Preferences) => {
            Some("a method other than dpo takes conversations".to_owned())
        }
        (Format::Preferences, _) => Some("this is what the method dpo takes".to_owned()),
        _ => None,
    }
}
