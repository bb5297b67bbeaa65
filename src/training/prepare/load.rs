//! Reads rows of prompts and completions from the forms in which people keep them.

use std::borrow::Cow;
use std::io::Read;

use serde_json::value::RawValue;

use crate::diag::{Diagnostic, Report};
use crate::reading::json::{self, Member};
use crate::reading::lines::Lines;
use crate::reading::objects;
use crate::reading::problem::{Problem, Spot, Syntax, shown, what};
use crate::reading::{records, texts as text_lines};
use crate::training::FILE_BYTES_MAX;
use crate::training::prepare::Pair;
use crate::training::tap::Tap;

/// How a file is read, by its ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Csv,
    Tsv,
    /// A completion a line.
    Txt,
    /// An object a line, or an array of objects; both are found under either ending.
    Json,
}

/// What was read.
#[derive(Debug)]
pub enum Loaded {
    Pairs {
        pairs: Vec<Pair>,
        /// What had to be mended, for the person.
        told: Vec<Diagnostic>,
        /// The file is such as would be written, so far: objects a line with the two keys alone.
        is_plain: bool,
    },
    /// Conversations or preferences, which need no preparation.
    Examples,
}

/// A row: its fields by name, in the order of the file.
type Fields<'a> = Vec<(Cow<'a, str>, Cow<'a, str>)>;

/// Gathers rows, and remembers what is odd about their columns.
#[derive(Debug)]
struct Gathered<'f> {
    file: &'f str,
    pairs: Vec<Pair>,
    rows: u64,
    /// Names that had to be lower-cased, and those that are left out: each with the line it was first seen on.
    renamed: Vec<(String, u32)>,
    extra: Vec<(String, u32)>,
    /// The first object is no pair but something that is trained on as it is.
    is_examples: bool,
}

/// Names that are remembered; a file with more of them is not told of all.
const NAMES_MAX: usize = 20;

impl Form {
    /// By the ending of a file's name. The error says what to do.
    pub fn of(file: &str) -> Result<Self, Diagnostic> {
        let name = file.to_lowercase();
        let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
        match ending {
            "csv" => Ok(Self::Csv),
            "tsv" => Ok(Self::Tsv),
            "txt" => Ok(Self::Txt),
            "json" | "jsonl" => Ok(Self::Json),
            "xlsx" | "xls" | "ods" => {
                Err(Diagnostic::error(file, 0, 0, "a spreadsheet, which can't be read")
                    .hint("save it as CSV, in UTF-8"))
            }
            _ => Err(Diagnostic::error(file, 0, 0, "its name does not say how to read it")
                .hint("expected `.csv`, `.tsv`, `.txt`, `.json` or `.jsonl`")),
        }
    }
}

/// Reads the whole of `input`, whose lines (and records) have at most `line_max` bytes.
pub fn load(input: impl Read, file: &str, form: Form, line_max: u64) -> Result<Loaded, Report> {
    let mut report = Report::default();
    let mut tap = Tap::new(input, None, FILE_BYTES_MAX);
    let mut gathered = Gathered {
        file,
        pairs: Vec::new(),
        rows: 0,
        renamed: Vec::new(),
        extra: Vec::new(),
        is_examples: false,
    };
    let mut is_lines = false;
    match form {
        Form::Csv => tables(&mut tap, b',', line_max, &mut gathered, &mut report),
        Form::Tsv => tables(&mut tap, b'\t', line_max, &mut gathered, &mut report),
        Form::Txt => texts(&mut tap, line_max, &mut gathered, &mut report),
        Form::Json => is_lines = json(&mut tap, line_max, &mut gathered, &mut report),
    }
    if tap.is_over() {
        let message = format!("the file has more than {} MiB", FILE_BYTES_MAX / (1024 * 1024));
        report.push(Diagnostic::error(file, 0, 0, message));
    }
    if gathered.is_examples {
        return Ok(Loaded::Examples);
    }
    if gathered.rows == 0 && !report.has_errors() {
        report.push(Diagnostic::error(file, 0, 0, "the file holds no rows"));
    }
    if report.has_errors() {
        report.sort();
        return Err(report);
    }
    let told = gathered.told();
    let is_plain = is_lines && told.is_empty();
    Ok(Loaded::Pairs { pairs: gathered.pairs, told, is_plain })
}

impl Gathered<'_> {
    /// Takes a row. What is missing is empty; a column must be there.
    fn take(&mut self, fields: Fields<'_>, line: u32, report: &mut Report) {
        self.rows += 1;
        let mut pair = Pair { prompt: String::new(), completion: String::new(), line };
        let mut seen = (false, false);
        for (name, text) in fields {
            let lower = name.to_lowercase();
            let (slot, seen) = match lower.as_str() {
                "prompt" => (&mut pair.prompt, &mut seen.0),
                "completion" => (&mut pair.completion, &mut seen.1),
                _ => {
                    remember(&mut self.extra, &name, line);
                    continue;
                }
            };
            if *seen {
                let message = format!("`{lower}` twice: upper and lower case are not told apart");
                report.push(Diagnostic::error(self.file, line, 0, message));
                return;
            }
            *seen = true;
            if lower != name {
                remember(&mut self.renamed, &name, line);
            }
            text.as_ref().clone_into(slot);
        }
        for (is_there, name) in [(seen.0, "prompt"), (seen.1, "completion")] {
            if !is_there {
                let extra: Vec<String> = self.extra.iter().take(5).map(|(name, _)| shown(name)).collect();
                let found =
                    if extra.is_empty() { String::new() } else { format!(", found {}", extra.join(", ")) };
                let message = format!("missing `{name}`{found}");
                let hint = "name the two columns `prompt` and `completion`; `prompt` may be empty";
                report.push(Diagnostic::error(self.file, line, 0, message).hint(hint));
                return;
            }
        }
        self.pairs.push(pair);
    }

    fn told(&self) -> Vec<Diagnostic> {
        let note = |line: &u32, message| Diagnostic::note(self.file, *line, 0, message);
        let renamed = self.renamed.iter().map(|(name, line)| {
            let message = format!("{} becomes `{}`", shown(name), name.to_lowercase());
            note(line, message)
        });
        let extra = self.extra.iter().map(|(name, line)| note(line, format!("{} is left out", shown(name))));
        renamed.chain(extra).collect()
    }
}

fn remember(names: &mut Vec<(String, u32)>, name: &str, line: u32) {
    if names.len() < NAMES_MAX && !names.iter().any(|(known, _)| known == name) {
        names.push((name.to_owned(), line));
    }
}

fn tables(input: impl Read, delimiter: u8, max: u64, gathered: &mut Gathered<'_>, report: &mut Report) {
    let rules = records::Rules { file: gathered.file, delimiter, max };
    records::each(input, rules, report, &mut |record, line, report| {
        let fields = record.header.iter().zip(record.fields.iter());
        gathered.take(fields.map(|(name, text)| (name.into(), text.into())).collect(), line, report);
        Ok(())
    });
}

fn texts(input: impl Read, max: u64, gathered: &mut Gathered<'_>, report: &mut Report) {
    text_lines::each(input, (gathered.file, max), report, &mut |text, line, report| {
        let fields = vec![("prompt".into(), "".into()), ("completion".into(), text.into())];
        gathered.take(fields, line, report);
    });
}

/// Whether it is lines and not an array.
fn json(mut input: impl Read, max: u64, gathered: &mut Gathered<'_>, report: &mut Report) -> bool {
    // An array can begin behind blanks and a byte order mark; what was read of it is read again.
    let mut begin = Vec::new();
    if let Err(error) = (&mut input).take(1024).read_to_end(&mut begin) {
        report.push(objects::unreadable(gathered.file, &error));
        return true;
    }
    let text = begin.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&begin).trim_ascii_start();
    let is_array = text.starts_with(b"[");
    let input = begin.as_slice().chain(input);
    if is_array {
        array(input, gathered, report);
    } else {
        object_lines(input, max, gathered, report);
    }
    !is_array
}

fn object_lines(input: impl Read, max: u64, gathered: &mut Gathered<'_>, report: &mut Report) {
    let file = gathered.file;
    let mut lines = Lines::new(input, max);
    objects::each(&mut lines, file, report, &mut |object, report| {
        if gathered.is_examples {
            return Ok(());
        }
        let members = json::members(object.text).map_err(|error| Syntax::new(object.text, &error))?;
        if gathered.rows == 0 && is_example(&members) {
            gathered.is_examples = true;
            return Ok(());
        }
        match fields(&members) {
            Ok(fields) => gathered.take(fields, object.number, report),
            Err(problem) => {
                let spot = Spot { file, line: object.number, text: Some(object.text) };
                report.push(problem.at(spot));
                gathered.rows += 1;
            }
        }
        Ok(())
    });
}

fn array(mut input: impl Read, gathered: &mut Gathered<'_>, report: &mut Report) {
    let file = gathered.file;
    let mut bytes = Vec::new();
    if let Err(error) = input.read_to_end(&mut bytes) {
        return report.push(objects::unreadable(file, &error));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let line = line_at(bytes, error.valid_up_to());
            let found = Diagnostic::error(file, line, 0, "invalid UTF-8");
            return report.push(found.hint("save the file as UTF-8"));
        }
    };
    let elements: Vec<&RawValue> = match serde_json::from_str(text) {
        Ok(elements) => elements,
        Err(error) => {
            let full = error.to_string();
            let message = full.split_once(" at line ").map_or(full.as_str(), |(message, _)| message);
            let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
            let (line, column) = (number(error.line()), number(error.column()));
            return report.push(Diagnostic::error(file, line, column, format!("invalid JSON: {message}")));
        }
    };
    let mut place = (0, 1);
    for element in elements {
        let element = element.get();
        let at = element.as_ptr().addr() - text.as_ptr().addr();
        let between = bytes.get(place.0..at).unwrap_or_default();
        place = (at, line_at(between, between.len()).saturating_add(place.1 - 1));
        let members = json::members(element);
        let Ok(members) = members else {
            let message = format!("{}, expected an object", what(element));
            report.push(Diagnostic::error(file, place.1, 0, message));
            continue;
        };
        match fields(&members) {
            Ok(fields) => gathered.take(fields, place.1, report),
            Err(problem) => report.push(problem.at(Spot { file, line: place.1, text: None })),
        }
    }
}

/// The line on which the byte `at` stands.
fn line_at(bytes: &[u8], at: usize) -> u32 {
    let before = bytes.get(..at).unwrap_or(bytes);
    u32::try_from(memchr::memchr_iter(b'\n', before).count())
        .map_or(u32::MAX, |lines| lines.saturating_add(1))
}

/// Whether it is an example of one of the formats that are trained on as they are.
fn is_example(members: &[Member<'_>]) -> bool {
    let keys = ["messages", "preferred_output", "non_preferred_output"];
    members.iter().any(|member| keys.contains(&member.key.as_ref()))
}

/// All values as text: numbers and booleans as they are written, null as nothing.
fn fields<'a>(members: &[Member<'a>]) -> Result<Fields<'a>, Problem> {
    if let Some((later, _)) = json::duplicate(members) {
        return Err(Problem::error(later.offset, format!("duplicate key {}", shown(&later.key))));
    }
    let field = |member: &Member<'a>| {
        let is_wanted = ["prompt", "completion"].contains(&member.key.to_lowercase().as_str());
        let text = match member.value.as_bytes().first() {
            // Left out anyway, whatever it is.
            _ if !is_wanted => "".into(),
            Some(b'"') => {
                let text = serde_json::from_str::<String>(member.value).map_err(|_| {
                    let message =
                        format!("{} has an escape that stands for no character", shown(&member.key));
                    Problem::error(member.offset, message)
                })?;
                text.into()
            }
            Some(b'n') => "".into(),
            Some(b'{' | b'[') | None => {
                let message = format!("{} is {}, expected text", shown(&member.key), what(member.value));
                return Err(Problem::error(member.offset, message));
            }
            Some(_) => member.value.into(),
        };
        Ok((member.key.clone(), text))
    };
    members.iter().map(field).collect()
}
