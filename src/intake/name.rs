//! Names of dropped files, made so that they can be shown, and numbered where they are taken.

use std::ffi::OsStr;
use std::fmt::Write;

use crate::diag::is_hidden;
use crate::spec::Form;

/// How many numbers are tried before we give up on finding a free name.
pub(super) const NUMBERS_MAX: u32 = 100_000;

/// Leaves room in a 255-byte name for a number and for `.NAME.errors.txt.tmp`.
const NAME_BYTES_MAX: usize = 230;

/// `name` with a number before its endings, so that it means the same: `a.chat.jsonl`, `a-2.chat.jsonl`.
pub fn numbered(name: &str, number: u32) -> String {
    let (stem, endings) = split_endings(name);
    if number < 2 { name.to_owned() } else { format!("{stem}-{number}{endings}") }
}

/// Whether `found` is `name`, or that with a number.
pub fn is_numbered(found: &str, name: &str) -> bool {
    let (stem, endings) = split_endings(name);
    let between = found.strip_prefix(stem).and_then(|rest| rest.strip_suffix(endings));
    let is_number = |text: &str| text.strip_prefix('-').is_some_and(|number| number.parse::<u32>().is_ok());
    between.is_some_and(|between| between.is_empty() || is_number(between))
}

/// The name of a spec up to its first dot, and the rest; a folder's name has no endings.
fn split_endings(name: &str) -> (&str, &str) {
    let dot = name.find('.').filter(|_| Form::of(name).is_some());
    name.split_at(dot.unwrap_or(name.len()))
}

/// A name that a terminal, a log and a person can bear: what is not UTF-8 and control characters are
/// percent-encoded, and it is no longer than [`NAME_BYTES_MAX`] (its ending stays).
pub(super) fn safe_name(name: &OsStr) -> String {
    let mut safe = String::new();
    for chunk in name.as_encoded_bytes().utf8_chunks() {
        for character in chunk.valid().chars() {
            if is_hidden(character) {
                escape(&mut safe, character.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                safe.push(character);
            }
        }
        escape(&mut safe, chunk.invalid());
    }
    if safe.len() > NAME_BYTES_MAX {
        let ending =
            Form::of(&safe).and_then(|_| safe.rfind('.')).map_or(String::new(), |dot| safe.split_off(dot));
        safe.truncate(safe.floor_char_boundary(NAME_BYTES_MAX - ending.len()));
        safe.push_str(&ending);
    }
    safe
}

fn escape(to: &mut String, bytes: &[u8]) {
    for byte in bytes {
        write!(to, "%{byte:02X}").expect("a String can be written to");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn unusual_names_become_names_that_can_be_shown() {
        let long = format!("{}é.jsonl", "x".repeat(223));
        let cut = format!("{}.jsonl", "x".repeat(223));
        let table: [(&[u8], &str); 6] = [
            (b"plain name.jsonl", "plain name.jsonl"),
            (b"a\nb.jsonl", "a%0Ab.jsonl"),
            (b"\xff\xfe.jsonl", "%FF%FE.jsonl"),
            ("\u{202e}x\u{1b}[31m".as_bytes(), "%E2%80%AEx%1B[31m"),
            ("über.toml".as_bytes(), "über.toml"),
            (long.as_bytes(), &cut),
        ];
        for (name, expected) in table {
            assert_eq!(safe_name(OsStr::from_bytes(name)), expected);
        }
    }

    #[test]
    fn a_numbered_name_means_the_same() {
        let table = [
            ("a.jsonl", "a-2.jsonl"),
            ("a.chat.jsonl", "a-2.chat.jsonl"),
            ("a.v1.toml", "a-2.v1.toml"),
            ("v1.2", "v1.2-2"),
            ("folder", "folder-2"),
        ];
        for (name, second) in table {
            assert_eq!((numbered(name, 1), numbered(name, 2)), (name.to_owned(), second.to_owned()));
            assert!(is_numbered(name, name) && is_numbered(second, name), "{name}");
            assert!(!is_numbered(name, second), "{name}");
        }
        for other in ["ab.jsonl", "a-b.jsonl", "a.toml", "a-.jsonl", "a-2.chat.jsonl", "a"] {
            assert!(!is_numbered(other, "a.jsonl"), "{other}");
        }
    }
}
