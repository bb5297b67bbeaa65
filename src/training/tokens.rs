//! How many tokens a text has, and how many of them a model is trained on.
//!
//! The vocabularies are inside the program; only those that models with a fine-tuning interface use are, since each
//! costs 1 to 4 MB: `o200k_base`, `cl100k_base`, and `r50k_base` for the first generation. Each is loaded when first
//! used (0.1 to 0.2 s, about 50 MB of memory) and stays.

use serde::Serialize;
use tiktoken_rs::{cl100k_base_singleton, o200k_base_singleton, r50k_base_singleton};

/// Longer texts are counted in pieces: the tokenizer panics when its regular expression runs out of stack, as a
/// megabyte of blanks makes it do. A cut changes the count by a token, at most.
const PIECE_BYTES_MAX: usize = 16 * 1024;

/// What a text of an unknown vocabulary is reckoned at: near enough for Latin script.
const BYTES_A_TOKEN: u64 = 4;

/// A way to cut texts into tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    O200kBase,
    Cl100kBase,
    R50kBase,
    /// The vocabulary is not known: a token for every four bytes.
    Bytes,
}

/// How a model's tokens are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tokenizer {
    pub encoding: Encoding,
    /// Whether the model is known to use this very encoding; else counts are estimates.
    pub exact: bool,
}

/// By the beginnings of model names; the first that fits holds. A beginning that does not end in `.` is followed by
/// `-` or by nothing.
const ENCODINGS: [(&str, Encoding, bool); 24] = [
    ("gpt-4o", Encoding::O200kBase, true),
    ("chatgpt-4o", Encoding::O200kBase, true),
    ("gpt-4.1", Encoding::O200kBase, true),
    ("gpt-4.5", Encoding::O200kBase, true),
    ("gpt-5", Encoding::O200kBase, true),
    ("gpt-5.", Encoding::O200kBase, true),
    ("gpt-oss", Encoding::O200kBase, true),
    ("o1", Encoding::O200kBase, true),
    ("o3", Encoding::O200kBase, true),
    ("o4", Encoding::O200kBase, true),
    ("gpt-4", Encoding::Cl100kBase, true),
    ("gpt-3.5", Encoding::Cl100kBase, true),
    ("gpt-35", Encoding::Cl100kBase, true),
    ("davinci-002", Encoding::Cl100kBase, true),
    ("babbage-002", Encoding::Cl100kBase, true),
    ("text-embedding", Encoding::Cl100kBase, true),
    // These two have p50k_base, which counts runs of blanks differently, and can't be fine-tuned.
    ("text-davinci-002", Encoding::R50kBase, false),
    ("text-davinci-003", Encoding::R50kBase, false),
    ("davinci", Encoding::R50kBase, true),
    ("curie", Encoding::R50kBase, true),
    ("babbage", Encoding::R50kBase, true),
    ("ada", Encoding::R50kBase, true),
    ("text", Encoding::R50kBase, true),
    ("code", Encoding::R50kBase, false),
];

/// Tokens of an example that are trained on; what is beyond is cut off.
const CONTEXTS: [(&str, u32); 12] = [
    ("gpt-4o", 65_536),
    ("gpt-4.1", 65_536),
    ("gpt-3.5-turbo-0613", 4_096),
    ("gpt-35-turbo-0613", 4_096),
    ("gpt-3.5", 16_385),
    ("gpt-35", 16_385),
    ("davinci-002", 16_384),
    ("babbage-002", 16_384),
    ("davinci", 2_048),
    ("curie", 2_048),
    ("babbage", 2_048),
    ("ada", 2_048),
];

/// How the tokens of `model` are counted. A fine-tuned model counts as its base does: by the vocabulary's own table of
/// prefixes `ft:gpt-4.1…` would be taken for a `gpt-4`.
pub fn encoding_for(model: &str) -> Tokenizer {
    let base = base_of(model);
    let known = ENCODINGS.iter().find(|(begin, ..)| begins(&base, begin));
    match known {
        Some((_, encoding, exact)) => Tokenizer { encoding: *encoding, exact: *exact },
        // Newer than this table.
        None if base.starts_with("gpt-") => Tokenizer { encoding: Encoding::O200kBase, exact: false },
        None => Tokenizer { encoding: Encoding::Bytes, exact: false },
    }
}

/// How many tokens of an example `model` is trained on; none if that is not known.
pub fn context_of(model: &str) -> Option<u32> {
    let base = base_of(model);
    CONTEXTS.iter().find(|(begin, _)| begins(&base, begin)).map(|(_, tokens)| *tokens)
}

/// `ft:gpt-4o-mini:org::id`, `curie:ft-org:name` and `openai/gpt-4o` without what is around the base model's name.
fn base_of(model: &str) -> String {
    let name = model.strip_prefix("ft:").unwrap_or(model);
    let name = name.split(':').next().unwrap_or(name);
    name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase()
}

fn begins(name: &str, begin: &str) -> bool {
    let rest = name.strip_prefix(begin);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-') || begin.ends_with('.'))
}

impl Tokenizer {
    pub fn count(self, text: &str) -> u64 {
        let vocabulary = match self.encoding {
            Encoding::O200kBase => o200k_base_singleton(),
            Encoding::Cl100kBase => cl100k_base_singleton(),
            Encoding::R50kBase => r50k_base_singleton(),
            Encoding::Bytes => return (text.len() as u64).div_ceil(BYTES_A_TOKEN),
        };
        let mut count = 0;
        let mut rest = text;
        while !rest.is_empty() {
            let (piece, next) = split(rest);
            count += vocabulary.count_ordinary(piece) as u64;
            rest = next;
        }
        count
    }
}

/// A piece that can be counted and the rest, cut before a blank where there is one: there a token begins anyway.
fn split(text: &str) -> (&str, &str) {
    if text.len() <= PIECE_BYTES_MAX {
        return (text, "");
    }
    let (piece, _) = text.split_at(text.floor_char_boundary(PIECE_BYTES_MAX));
    let blank = piece.rfind(' ').filter(|at| *at > 0);
    text.split_at(blank.unwrap_or(piece.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn models_have_the_encoding_of_their_base() {
        use Encoding::{Bytes, Cl100kBase, O200kBase, R50kBase};
        for (model, encoding, exact) in [
            ("gpt-4o-mini-2024-07-18", O200kBase, true),
            ("ft:gpt-4o-mini:openai::7p4lURel", O200kBase, true),
            ("ft:gpt-4.1-nano-2025-04-14:org:name:id", O200kBase, true),
            ("ft:gpt-4-0613:org::id", Cl100kBase, true),
            ("ft:gpt-3.5-turbo-0125:org::id:ckpt-step-10", Cl100kBase, true),
            ("gpt-5.6-sol", O200kBase, true),
            ("openai/gpt-5", O200kBase, true),
            ("o4-mini", O200kBase, true),
            ("gpt-oss-20b", O200kBase, true),
            ("gpt-6.2-sol", O200kBase, false),
            ("gpt-35-turbo", Cl100kBase, true),
            ("davinci-002", Cl100kBase, true),
            ("ft:babbage-002:org::id", Cl100kBase, true),
            ("curie", R50kBase, true),
            ("ada:ft-org:suffix-2022-02-15-04-21-04", R50kBase, true),
            ("text-curie-001", R50kBase, true),
            ("text-davinci-003", R50kBase, false),
            ("adapter", Bytes, false),
            ("qwen3-8b", Bytes, false),
            ("", Bytes, false),
        ] {
            assert_eq!(encoding_for(model), Tokenizer { encoding, exact }, "{model}");
        }
    }

    #[test]
    fn training_context_is_that_of_the_base() {
        for (model, tokens) in [
            ("gpt-3.5-turbo-0613", Some(4_096)),
            ("gpt-3.5-turbo-1106", Some(16_385)),
            ("ft:gpt-4.1-mini-2025-04-14:org::id", Some(65_536)),
            ("gpt-4o", Some(65_536)),
            ("davinci-002", Some(16_384)),
            ("curie:ft-org:x", Some(2_048)),
            ("gpt-6-sol", None),
        ] {
            assert_eq!(context_of(model), tokens, "{model}");
        }
    }

    #[test]
    fn counts_are_those_of_the_vocabularies() {
        let count = |model: &str, text: &str| encoding_for(model).count(text);
        assert_eq!(count("gpt-4o", "tiktoken is great!"), 6);
        assert_eq!(count("gpt-4", "tiktoken is great!"), 6);
        assert_eq!(count("gpt-4", "小猫喝啤酒"), 11);
        assert_eq!(count("curie", "hello world"), 2);
        assert_eq!(count("qwen3", "hello world"), 3);
        assert_eq!(count("gpt-4o", ""), 0);
    }

    #[test]
    fn long_texts_are_counted_in_pieces_and_come_to_the_same() {
        let text = "It pays to count before one pays.\n".repeat(3_000);
        for model in ["gpt-4o", "gpt-4", "curie"] {
            let tokenizer = encoding_for(model);
            let one = tokenizer.count("It pays to count before one pays.\n");
            assert_eq!(tokenizer.count(&text), one * 3_000, "{model}");
        }
    }

    #[test]
    fn runs_of_one_character_neither_panic_nor_stall() {
        for run in [" ", "\n", "a", "A", "é", "小", "7", "!", "\u{301}", "\r\n \t"] {
            // As many blanks as the tokenizer itself would panic at; other runs are only slow.
            let bytes = if run == " " { 2_000_000 } else { 100_000 };
            let text = run.repeat(bytes / run.len());
            for model in ["gpt-4o", "gpt-4", "curie"] {
                assert!(encoding_for(model).count(&text) > 0, "{model} {run:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}|[ \n\ta-zA-Z]{0,200}") {
            for model in ["gpt-4o", "gpt-4", "curie", "other"] {
                encoding_for(model).count(&text);
            }
        }
    }
}
