//! What must hold of everything that is read from outside, whatever its bytes: one function for each of the
//! fuzzers in `fuzz/`, which `cargo test` runs over their corpus, too.
//!
//! A function panics if its promise is broken. Each module keeps its checks beside the code they look into (its
//! `fuzz.rs`), so that nothing has to be public for them; here they get their names and what all share: a
//! problem that a person is told of stands inside the text it speaks about.

use std::fs;
use std::path::Path;

use crate::diag::{Diagnostic, Report};
use crate::{config, output, provider, spec, store, training};

/// The folder whose `inputs/` a spec may name: the samples'.
const JOBS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/jobs");

/// Bytes of one message or hint. Whatever a file holds, a report of it can be read.
const WORDS_BYTES_MAX: usize = 4 * 1024;

/// A target: its name and what it runs.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 15] = [
    ("config", config),
    ("data_rows", data_rows),
    ("error_reply", error_reply),
    ("index_rows", index_rows),
    ("intents", intents),
    ("journal", journal),
    ("jsonl_spec", jsonl_spec),
    ("line_index", line_index),
    ("prepared_pairs", prepared_pairs),
    ("remote_objects", remote_objects),
    ("retry_after", retry_after),
    ("schedule", schedule),
    ("streamed_answer", streamed_answer),
    ("toml_spec", toml_spec),
    ("training_file", training_file),
];

/// A configuration, with its durations and sizes: what is accepted is within its bounds.
pub fn config(data: &[u8]) {
    // A file that is no UTF-8 is refused before.
    let Ok(text) = std::str::from_utf8(data) else { return };
    assert_readable(&config::fuzz::configuration("batchd.toml", text), "batchd.toml", data);
}

/// A data file, read as each of the forms there are.
pub fn data_rows(data: &[u8]) {
    for file in ["rows.csv", "rows.jsonl", "rows.txt"] {
        assert_readable(&spec::fuzz::rows(file, data), file, data);
    }
}

/// A reply with any status, headers and body: its outcome, and what is decided about it.
pub fn error_reply(data: &[u8]) {
    provider::fuzz::reply(data);
}

/// Keys and values of the store's index.
pub fn index_rows(data: &[u8]) {
    store::embedded::fuzz::index_rows(data);
}

/// An intents log, as recovery reads it.
pub fn intents(data: &[u8]) {
    store::embedded::fuzz::intents(data);
}

/// A journal, as recovery reads it, and as results are then made of it.
pub fn journal(data: &[u8]) {
    let (recovered, records) = store::embedded::fuzz::journal(data);
    output::fuzz::journal(recovered, store::embedded::fuzz::TOTAL, &records);
}

/// A JSONL spec under some of the names that decide what its lines mean: what is accepted is read again as the
/// same request, and sent as it was written.
pub fn jsonl_spec(data: &[u8]) {
    for file in ["spec.jsonl", "spec.chat.jsonl", "spec.responses.jsonl", "spec.images.jsonl"] {
        assert_readable(&spec::fuzz::spec(file, data, Path::new(JOBS)), file, data);
    }
}

/// A line index and the input that it leads into.
pub fn line_index(data: &[u8]) {
    store::embedded::fuzz::line_index(data);
}

/// Data as people have them, in each of the forms there are: what is made of them can be trained on.
pub fn prepared_pairs(data: &[u8]) {
    for (file, report) in training::fuzz::prepared(data) {
        assert_readable(&report, file, data);
    }
}

/// A reply that describes files, models, fine-tunes or events, one or a list of them: they are kept as they came, and
/// what is downloaded lies where it belongs.
pub fn remote_objects(data: &[u8]) {
    output::fuzz::names(&provider::fuzz::objects(data));
}

/// `Retry-After` and its kin.
pub fn retry_after(data: &[u8]) {
    provider::fuzz::hint(data);
}

/// A cron expression.
pub fn schedule(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(problem) = spec::fuzz::schedule(&text) {
        assert_readable(&problem.into(), "cron", data);
    }
}

/// An answer that comes as a stream of events.
pub fn streamed_answer(data: &[u8]) {
    provider::fuzz::stream(data);
}

/// A TOML spec, with the samples' data files beside it.
pub fn toml_spec(data: &[u8]) {
    let report = spec::fuzz::spec("spec.toml", data, Path::new(JOBS));
    assert_readable(&report, "spec.toml", data);
}

/// A file of training data, as each kind of fine-tune takes it.
pub fn training_file(data: &[u8]) {
    let file = "train.jsonl";
    for report in training::fuzz::file(file, data) {
        assert_readable(&report, file, data);
    }
}

/// A person finds every problem where it is said to be, and can read what is said.
fn assert_readable(report: &Report, file: &str, text: &[u8]) {
    assert!(report.diagnostics().len() <= 2 * Report::SHOWN_MAX);
    for problem in report.diagnostics() {
        let lines = 1 + usize::from(problem.hint.is_some());
        assert_eq!(problem.to_string().lines().count(), lines, "{problem}");
        let words = problem.message.len().max(problem.hint.as_ref().map_or(0, String::len));
        assert!(!problem.message.is_empty() && words <= WORDS_BYTES_MAX, "{words} bytes: {problem}");
        if problem.place.file == file {
            assert_within(problem, text);
        } else {
            let data = fs::read(Path::new(JOBS).join(&problem.place.file));
            assert_within(problem, &data.expect("a file that is spoken about is there"));
        }
    }
}

/// The place of a problem lies in the text, its end included.
fn assert_within(problem: &Diagnostic, text: &[u8]) {
    let (line, column) = (problem.place.line as usize, problem.place.column as usize);
    let Some(before) = line.checked_sub(1) else {
        return assert_eq!(column, 0, "a column of no line: {problem}");
    };
    let line = text.split(|byte| *byte == b'\n').nth(before);
    let line = String::from_utf8_lossy(line.unwrap_or_else(|| unreachable!("no such line: {problem}")));
    assert!(column <= line.chars().count() + 1, "no such column: {problem}");
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;
    use std::path::PathBuf;

    use fastrand::Rng;

    use super::*;

    /// Inputs of a run of mutations, over the whole corpus of a target.
    const MUTANTS: usize = 600;

    /// A longer one is no seed but something left over from a run.
    const SEED_BYTES_MAX: usize = 4096;

    /// A published crate does not hold `fuzz/`, and has nothing to run.
    fn fuzz() -> Option<PathBuf> {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        fuzz.is_dir().then_some(fuzz)
    }

    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let Some(fuzz) = fuzz() else { return Vec::new() };
        let folder = fuzz.join("corpus").join(target);
        let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
            .expect("every target has seeds")
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort_unstable();
        let seeds: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
        assert!(seeds.len() >= 3, "{target} has {} seeds", seeds.len());
        let small = |(path, seed): (&PathBuf, &Vec<u8>)| seed.len() > SEED_BYTES_MAX && path.is_file();
        assert!(!paths.iter().zip(&seeds).any(small), "a seed of {target} is too large");
        seeds
    }

    /// What libFuzzer does, in short: flips, splices, cuts and repeats, up to four of them.
    fn mutant(corpus: &[Vec<u8>], random: &mut Rng) -> Vec<u8> {
        let mut bytes = corpus[random.usize(..corpus.len())].clone();
        for _ in 0..random.usize(1..=4) {
            let at = random.usize(..=bytes.len());
            let end = random.usize(at..=bytes.len().min(at + 64));
            match random.u8(..6) {
                0 => bytes.truncate(at),
                1 => drop(bytes.drain(at..end)),
                2 => {
                    let piece = bytes[at..end].to_vec();
                    let to = random.usize(..=bytes.len());
                    bytes.splice(to..to, piece);
                }
                3 => {
                    let other = &corpus[random.usize(..corpus.len())];
                    bytes.truncate(at);
                    bytes.extend(&other[random.usize(..=other.len())..]);
                }
                4 => {
                    let odd = *random.choice(b"\0\n\r\"'\\{}[],:=-+09 eE\xff\xef\xbb\xbf").unwrap();
                    bytes.insert(at, odd);
                }
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << random.u8(..8);
                    }
                }
            }
        }
        bytes
    }

    fn run((name, target): Target, input: &[u8]) {
        let holds = catch_unwind(|| target(input)).is_ok();
        assert!(holds, "`{name}` does not hold for b\"{}\"", input.escape_ascii());
    }

    /// Runs the corpus of a target and mutants of it, the same ones each time.
    fn hold(name: &str, mutants: usize) {
        let target = *TARGETS.iter().find(|(known, _)| *known == name).expect("it is a target");
        let corpus = corpus(name);
        for seed in &corpus {
            run(target, seed);
        }
        run(target, b"");
        let mut random = Rng::with_seed(2026);
        if !corpus.is_empty() {
            (0..mutants).for_each(|_| run(target, &mutant(&corpus, &mut random)));
        }
    }

    #[test]
    fn configurations_hold() {
        hold("config", MUTANTS);
    }

    #[test]
    fn data_rows_hold() {
        hold("data_rows", MUTANTS);
    }

    #[test]
    fn error_replies_hold() {
        hold("error_reply", MUTANTS);
    }

    #[test]
    fn rows_of_the_index_hold() {
        hold("index_rows", MUTANTS);
    }

    #[test]
    fn intents_hold() {
        hold("intents", MUTANTS);
    }

    #[test]
    fn journals_hold() {
        hold("journal", MUTANTS);
    }

    #[test]
    fn jsonl_specs_hold() {
        hold("jsonl_spec", MUTANTS);
    }

    #[test]
    fn line_indexes_hold() {
        hold("line_index", MUTANTS);
    }

    #[test]
    fn prepared_pairs_hold() {
        hold("prepared_pairs", MUTANTS);
    }

    #[test]
    fn remote_objects_hold() {
        hold("remote_objects", MUTANTS);
    }

    #[test]
    fn retry_hints_hold() {
        hold("retry_after", MUTANTS);
    }

    #[test]
    fn schedules_hold() {
        hold("schedule", MUTANTS);
    }

    #[test]
    fn streamed_answers_hold() {
        hold("streamed_answer", MUTANTS);
    }

    #[test]
    fn toml_specs_hold() {
        hold("toml_spec", MUTANTS);
    }

    #[test]
    fn training_files_hold() {
        hold("training_file", MUTANTS);
    }

    #[test]
    fn every_target_has_a_fuzzer_and_every_fuzzer_a_target() {
        let Some(fuzz) = fuzz() else { return };
        let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
        let mut fuzzers: Vec<&str> =
            manifest.lines().filter_map(|line| line.strip_prefix("name = ")).collect();
        fuzzers.remove(0); // the package's own
        let names: Vec<String> = TARGETS.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        assert_eq!(fuzzers, names);
        for (name, _) in TARGETS {
            let source = fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs"))).unwrap();
            assert!(source.contains(&format!("batchd::fuzzing::{name}(data)")), "{source}");
        }
    }

    #[test]
    fn a_problem_outside_its_text_is_noticed() {
        let outside = |line, column| {
            let problem = Diagnostic::error("a", line, column, "bad");
            catch_unwind(|| assert_readable(&problem.into(), "a", "\u{e9}\nbc".as_bytes())).is_err()
        };
        for (line, column) in [(0, 0), (1, 0), (1, 2), (2, 3)] {
            assert!(!outside(line, column), "{line}:{column}");
        }
        for (line, column) in [(0, 1), (1, 3), (2, 4), (3, 0)] {
            assert!(outside(line, column), "{line}:{column}");
        }
    }
}
