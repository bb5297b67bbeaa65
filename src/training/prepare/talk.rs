//! Conversations made of pairs.

use serde::Serialize;

use crate::diag::Diagnostic;
use crate::training::affixes::Affixes;
use crate::training::prepare::{Pair, Person, Stop};

/// How pairs become conversations: what models needed to see where a prompt and a completion end is taken off, since
/// conversations have marks of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Talk {
    /// What every conversation begins with, as the system's message.
    pub system: Option<String>,
    separator: String,
    ending: String,
}

impl Talk {
    /// Finds the marks of `pairs`, and leaves out those that would be empty without them.
    pub fn of(
        pairs: &mut Vec<Pair>,
        system: Option<String>,
        file: &str,
        person: &mut dyn Person,
    ) -> Result<Self, Stop> {
        let (mut prompts, mut completions) = (Affixes::default(), Affixes::default());
        for pair in pairs.iter() {
            prompts.take(&pair.prompt);
            completions.take(&pair.completion);
        }
        let owned = |mark: Option<&str>| mark.unwrap_or_default().to_owned();
        let (separator, ending) = (owned(prompts.known_separator()), owned(completions.known_ending()));
        let talk = Self { system, separator, ending };
        for (what, mark) in [("separator", &talk.separator), ("ending", &talk.ending)] {
            if !mark.is_empty() {
                person.tell(Diagnostic::note(file, 0, 0, format!("the {what} `{mark}` is taken off")));
            }
        }
        let is_mute = |pair: &Pair| {
            let (user, assistant) = talk.parts(pair);
            user.trim().is_empty() || assistant.trim().is_empty()
        };
        let mute = pairs.iter().filter(|pair| is_mute(pair));
        if let (count @ 1.., Some(first)) = (mute.clone().count(), mute.clone().next()) {
            let message = format!("{count} of the pairs ask or answer nothing, and are left out");
            person.tell(Diagnostic::note(file, first.line, 0, message));
            pairs.retain(|pair| !is_mute(pair));
        }
        if pairs.is_empty() {
            let found = Diagnostic::error(file, 0, 0, "no pair has both a prompt and a completion");
            person.tell(found.hint("a conversation needs something that is asked"));
            return Err(Stop::Refused);
        }
        Ok(talk)
    }

    /// The line of a training file that `pair` becomes, without its end.
    pub fn to_line(&self, pair: &Pair) -> String {
        let (user, assistant) = self.parts(pair);
        let system = self.system.iter().map(|content| Message { role: "system", content });
        let said =
            [Message { role: "user", content: user }, Message { role: "assistant", content: assistant }];
        let conversation = Conversation { messages: system.chain(said).collect() };
        serde_json::to_string(&conversation).expect("texts serialise")
    }

    /// What is asked and what is answered.
    fn parts<'p>(&self, pair: &'p Pair) -> (&'p str, &'p str) {
        let without = |text: &'p str, mark: &str| match text.strip_suffix(mark) {
            // The blank lines around a mark are part of it.
            Some(text) if !mark.is_empty() => text.trim_end(),
            _ => text,
        };
        let answer = without(&pair.completion, &self.ending);
        (without(&pair.prompt, &self.separator), answer.strip_prefix(' ').unwrap_or(answer))
    }
}

#[derive(Serialize)]
struct Conversation<'p> {
    messages: Vec<Message<'p>>,
}

#[derive(Serialize)]
struct Message<'p> {
    role: &'static str,
    content: &'p str,
}
