//! What texts begin and end with in common: separators behind prompts, endings of completions.

/// Separators that people put behind prompts, those that hold others first.
const SEPARATORS: [&str; 14] = [
    "\n\n### =>\n\n",
    "\n\n--->\n\n",
    "\n\n===>\n\n",
    "\n\n###\n\n",
    "\n\n===\n\n",
    "\n\n---\n\n",
    " ->",
    "->",
    " =>",
    "=>",
    "###",
    "===",
    "---",
    "\n",
];

/// Endings that people put behind completions. Words made of `END` are looked for apart.
const ENDINGS: [&str; 11] =
    [" [END]", "[END]", "***", "+++", "&&&", "$$$", "@@@", "%%%", "###", "<|endoftext|>", "\n"];

/// What all texts of a column have in common so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Affixes {
    /// The first text; what is in common are its first and last bytes.
    first: Option<String>,
    prefix: usize,
    suffix: usize,
    differ: bool,
}

impl Affixes {
    pub(super) fn take(&mut self, text: &str) {
        let Some(first) = &self.first else {
            (self.prefix, self.suffix) = (text.len(), text.len());
            self.first = Some(text.to_owned());
            return;
        };
        self.differ |= first != text;
        let (prefix, suffix) = (self.prefix(), self.suffix());
        let same = |pairs: &mut dyn Iterator<Item = (char, char)>| -> usize {
            pairs.take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
        };
        let prefix = same(&mut prefix.chars().zip(text.chars()));
        let suffix = same(&mut suffix.chars().rev().zip(text.chars().rev()));
        (self.prefix, self.suffix) = (prefix, suffix);
    }

    /// What all texts begin with.
    pub(super) fn prefix(&self) -> &str {
        self.first.as_deref().unwrap_or_default().get(..self.prefix).unwrap_or_default()
    }

    /// What all texts end with.
    pub(super) fn suffix(&self) -> &str {
        let first = self.first.as_deref().unwrap_or_default();
        first.get(first.len() - self.suffix..).unwrap_or_default()
    }

    /// Whether there are texts and all are the same.
    pub(super) const fn all_equal(&self) -> bool {
        self.first.is_some() && !self.differ
    }

    /// What stands behind all prompts. Where they are all equal, only what is known as a separator counts as one.
    pub(super) fn separator(&self) -> Option<&str> {
        self.known_separator().or_else(|| self.common_end())
    }

    pub(super) fn known_separator(&self) -> Option<&str> {
        end_of(self.suffix(), &SEPARATORS)
    }

    /// What all completions end with, in the same way.
    pub(super) fn ending(&self) -> Option<&str> {
        self.known_ending().or_else(|| end_of(self.suffix(), &["."])).or_else(|| self.common_end())
    }

    /// An ending that is no part of what is said, as a full stop is.
    pub(super) fn known_ending(&self) -> Option<&str> {
        let suffix = self.suffix();
        let bare = suffix.trim_end_matches("END");
        if bare.len() < suffix.len() {
            return suffix.get(bare.trim_end().len()..);
        }
        end_of(suffix, &ENDINGS)
    }

    fn common_end(&self) -> Option<&str> {
        Some(self.suffix()).filter(|suffix| self.differ && !suffix.is_empty())
    }
}

/// The first of `known` that `text` ends with.
fn end_of<'t>(text: &'t str, known: &[&str]) -> Option<&'t str> {
    let known = known.iter().find(|known| text.ends_with(**known))?;
    text.get(text.len() - known.len()..)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str]) -> Affixes {
        let mut affixes = Affixes::default();
        for text in texts {
            affixes.take(text);
        }
        affixes
    }

    #[test]
    fn what_texts_have_in_common_is_cut_between_characters() {
        let affixes = of(&["äb-é", "ä-xé", "äé"]);
        assert_eq!((affixes.prefix(), affixes.suffix()), ("ä", "é"));
        // é and è share their first byte, ż and Ż their last one.
        let affixes = of(&["éż", "èżŻ"]);
        assert_eq!((affixes.prefix(), affixes.suffix()), ("", ""));
        let affixes = of(&["aa", "a", "aaa"]);
        assert_eq!((affixes.prefix(), affixes.suffix(), affixes.all_equal()), ("a", "a", false));
        assert!(!of(&[]).all_equal() && of(&["x", "x"]).all_equal());
    }

    #[test]
    fn separators_are_recognised() {
        for (prompts, separator) in [
            (&["1+1=?->", "1+1=?->"][..], Some("->")),
            (&["one ->", "two ->"], Some(" ->")),
            (&["a\n\n###\n\n", "b\n\n###\n\n"], Some("\n\n###\n\n")),
            (&["1+1=?", "2+2=?"], Some("=?")),
            (&["same", "same"], None),
            (&["one", "two"], None),
            (&[], None),
        ] {
            assert_eq!(of(prompts).separator(), separator, "{prompts:?}");
        }
    }

    #[test]
    fn endings_are_recognised() {
        for (completions, ending) in [
            (&["4\nENDEND", "4\nENDEND"][..], Some("\nENDEND")),
            (&[" one END", " two END"], Some(" END")),
            (&[" one\n", " two\n"], Some("\n")),
            (&[" yes.", " no."], Some(".")),
            (&[" one [END]", " two [END]"], Some(" [END]")),
            (&[" one;;", " two;;"], Some(";;")),
            (&[" yes", " yes"], None),
            (&[" yes", " no"], None),
        ] {
            assert_eq!(of(completions).ending(), ending, "{completions:?}");
        }
    }
}
