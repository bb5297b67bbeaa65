//! Every check of the preparation, and that what it lets through is taken by the checks of training files.

use std::fmt::Write as _;
use std::io;

use proptest::prelude::*;

use super::*;
use crate::diag::Report;
use crate::training::{self, Expected, Rules};

const LINE_MAX: u64 = 1 << 16;

/// Says the same, or what the script says, and notes down all that it is told and asked.
#[derive(Debug, Default)]
struct Scripted {
    refuses: &'static [&'static str],
    coins: Vec<bool>,
    said: String,
}

impl Person for Scripted {
    fn tell(&mut self, found: Diagnostic) {
        writeln!(self.said, "{found}").unwrap();
    }

    fn agrees(&mut self, proposal: &str) -> io::Result<bool> {
        writeln!(self.said, "{proposal}?").unwrap();
        if let Some(coin) = self.coins.pop() {
            return Ok(coin);
        }
        Ok(!self.refuses.iter().any(|word| proposal.contains(word)))
    }
}

fn pairs(texts: impl IntoIterator<Item = (String, String)>) -> Vec<Pair> {
    (1..).zip(texts).map(|(line, (prompt, completion))| Pair { prompt, completion, line }).collect()
}

/// A hundred pairs by their numbers.
fn hundred(prompt: impl Fn(usize) -> String, completion: impl Fn(usize) -> String) -> Vec<Pair> {
    pairs((0..100).map(|number| (prompt(number), completion(number))))
}

fn good_prompt(number: usize) -> String {
    format!("{number} and so on ->")
}

fn good_completion(number: usize) -> String {
    format!(" {number} it is END")
}

fn prepared(pairs: Vec<Pair>, person: &mut Scripted) -> Result<Prepared, Stop> {
    Preparation::begin("t.csv", pairs, person)?.into_pairs()
}

/// What is said while everything is agreed to, and the first pair of the outcome.
fn said(pairs: Vec<Pair>) -> (String, Option<(String, String)>) {
    let mut person = Scripted::default();
    let done = prepared(pairs, &mut person).ok();
    let first = done.and_then(|done| done.pairs.into_iter().next());
    (person.said, first.map(|pair| (pair.prompt, pair.completion)))
}

fn errors_of(lines: &str, expected: Expected) -> String {
    let rules = Rules { expected, model: "", epochs: None, line_max: 1 << 20, training: None };
    let checked = training::check(lines.as_bytes(), "out.jsonl", &rules, None).unwrap();
    if checked.report.has_errors() { checked.report.to_string() } else { String::new() }
}

#[test]
fn good_pairs_stay_as_they_are() {
    let good = hundred(good_prompt, good_completion);
    let mut person = Scripted::default();
    let done = prepared(good.clone(), &mut person).unwrap();
    assert_eq!((person.said.as_str(), &done.pairs, done.changed), ("", &good, false));
    assert_eq!((done.separator.as_deref(), done.ending.as_deref()), (Some(" ->"), Some(" END")));
    assert_eq!(done.task, Task::Conditional);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of every check")]
fn each_check_says_and_does_what_it_is_for() {
    let good = || hundred(good_prompt, good_completion);
    let with = |prompt: &str, completion: &str| {
        let mut all = good();
        all.push(Pair { prompt: prompt.to_owned(), completion: completion.to_owned(), line: 101 });
        all
    };
    let long = "x".repeat(10_000);
    for (pairs, expected, first) in [
        (good().into_iter().take(99).collect(), "t.csv: note: 99 pairs; a few hundred are advised\n", None),
        (with("p ->", ""), "t.csv:101: note: 1 row without a completion left out\n", None),
        (
            with("7 and so on ->", " 7 it is END"),
            "leave out 1 pair found above already (first on line 101)?\n",
            None,
        ),
        (
            with(&format!("{long} ->"), " c END"),
            "leave out 1 pair of more than 10000 characters, which few models take (first on line 101)?\n",
            None,
        ),
        (
            hundred(|n| format!("{n} LOUD ->"), good_completion),
            "put the prompts into lower case, since much is in upper case?\n",
            Some(("0 loud ->", " 0 it is END")),
        ),
        (
            hundred(good_prompt, |n| format!(" {n} LOUD END")),
            "put the completions into lower case, since much is in upper case?\n",
            Some(("0 and so on ->", " 0 loud end")),
        ),
        (
            hundred(|n| format!("what {n}"), good_completion),
            "add the separator ` ->` to all prompts?\n",
            Some(("what 0 ->", " 0 it is END")),
        ),
        (
            hundred(|n| format!("what\n{n}"), good_completion),
            "add the separator `\n\n###\n\n` to all prompts?\n",
            Some(("what\n0\n\n###\n\n", " 0 it is END")),
        ),
        (
            hundred(|n| format!("### what\n-> {n}"), good_completion),
            "add the separator `\n\n###\n\n` to all prompts?\n",
            Some(("### what\n-> 0\n\n###\n\n", " 0 it is END")),
        ),
        (
            hundred(|n| format!("{n} is the question:"), good_completion),
            "t.csv: warning: all prompts end with ` is the question:`: each word of it costs tokens\n",
            None,
        ),
        (
            with("a -> b ->", " c END"),
            "t.csv:101: warning: 1 of the prompts have ` ->` inside, too, not only at the end\n",
            None,
        ),
        (
            hundred(|n| format!("Answer this question: {n} ->"), good_completion),
            "take `Answer this question:` off, with which all prompts begin?\n",
            Some(("0 ->", " 0 it is END")),
        ),
        (
            hundred(good_prompt, |n| format!(" It is {n} END")),
            "take ` It is` off, with which all completions begin?\n",
            Some(("0 and so on ->", " 0 END")),
        ),
        (
            hundred(good_prompt, |n| format!(" it {n}")),
            "add the ending `\n` to all completions?\n",
            Some(("0 and so on ->", " it 0\n")),
        ),
        (
            hundred(good_prompt, |n| format!(" {n}\n. b {n}")),
            "add the ending ` END` to all completions?\n",
            Some(("0 and so on ->", " 0\n. b 0 END")),
        ),
        (
            hundred(good_prompt, |n| format!("{n} END")),
            "put a space before 100 of the completions, with which words begin?\n",
            Some(("0 and so on ->", " 0 END")),
        ),
    ] {
        let (said, done) = said(pairs);
        assert_eq!(said, expected);
        let expected = first.unwrap_or(("0 and so on ->", " 0 it is END"));
        let done = done.unwrap();
        if !done.0.contains("question:") {
            assert_eq!((done.0.as_str(), done.1.as_str()), expected, "{said}");
        }
    }
}

#[test]
fn what_is_advised_is_left_when_it_is_refused() {
    let texts = || hundred(|n| format!("WHAT {n}"), |n| format!("IT {n}"));
    let mut person = Scripted { refuses: &[""], ..Scripted::default() };
    let done = prepared(texts(), &mut person).unwrap();
    assert_eq!((&done.pairs, done.changed), (&texts(), false));
    insta::assert_snapshot!(person.said, @"
    put the prompts into lower case, since much is in upper case?
    put the completions into lower case, since much is in upper case?
    add the separator ` ->` to all prompts?
    add the ending `
    ` to all completions?
    put a space before 100 of the completions, with which words begin?
    ");
}

#[test]
fn tasks_are_told_and_spared_what_they_do_not_need() {
    let (open, first) = said(hundred(|_| String::new(), |n| format!("{n} long texts")));
    assert_eq!(
        open,
        "t.csv: note: all prompts are empty: a model is trained to write without being asked\nput a space before \
         100 of the completions, with which words begin?\n"
    );
    assert_eq!(first.unwrap().1, " 0 long texts");
    let (classes, _) = said(hundred(good_prompt, |n| format!(" {}", ["yes", "no"][n % 2])));
    assert_eq!(
        classes,
        "t.csv: note: 2 different completions in 100 pairs: a model is trained to tell classes apart, best with one \
         word for each\n"
    );
}

#[test]
fn what_teaches_nothing_is_refused_before_anything_is_asked() {
    let equal_completions = hundred(|n| format!("WHAT {n}"), |_| "SAME".to_owned());
    let equal_prompts = hundred(|_| "same".to_owned(), |n| format!("it {n}"));
    let empty = hundred(good_prompt, |_| String::new());
    let single = pairs([("a".to_owned(), "b".to_owned())]);
    for (pairs, expected) in [
        (
            equal_completions,
            "t.csv: error: all completions are equal: `SAME`\n  hint: the model would learn to say",
        ),
        (equal_prompts, "t.csv: error: all prompts are equal: `same`\n  hint: leave them empty"),
        (empty, "t.csv: error: no row has a completion\n"),
        (single, "t.csv: error: a single pair, expected many that differ\n"),
    ] {
        let mut person = Scripted::default();
        assert!(matches!(prepared(pairs, &mut person), Err(Stop::Refused)));
        assert!(person.said.contains(expected), "{}", person.said);
        assert!(!person.said.contains('?'), "{}", person.said);
    }
    // Equal once they are in lower case.
    let shouted = hundred(good_prompt, |n| if n == 0 { " YES".to_owned() } else { " yEs".to_owned() });
    let mut person = Scripted::default();
    assert!(matches!(prepared(shouted, &mut person), Err(Stop::Refused)));
    assert!(person.said.ends_with("all completions are equal: ` yes`\n  hint: the model would learn to say this whatever it is asked\n"), "{}", person.said);
}

#[test]
fn sample_of_two_equal_pairs_is_refused_with_its_marks() {
    let (said, _) = said(pairs([("1+1=?->", "4\nENDEND"); 2].map(|(p, c)| (p.to_owned(), c.to_owned()))));
    insta::assert_snapshot!(said, @r"
    t.csv: note: 2 pairs; a few hundred are advised
    t.csv: note: the prompts end with `->`
    t.csv: note: the completions end with `\nENDEND`
    t.csv: error: all prompts are equal: `1+1=?->`
      hint: leave them empty if the model is to write without being asked
    t.csv: error: all completions are equal: `4\nENDEND`
      hint: the model would learn to say this whatever it is asked
    ");
}

#[test]
fn classes_are_split_the_same_way_each_time_and_none_is_lost() {
    let many = hundred(good_prompt, |n| format!(" {}", ["yes", "no", "yes"][n % 3]));
    assert_eq!(Classes::of(&many), Classes::Positive(" yes".to_owned()));
    let done = split(&many).unwrap();
    assert_eq!((done.training.len(), done.validation.len()), (80, 20));
    let again = split(&many).unwrap();
    assert_eq!((&done.training, &done.validation), (&again.training, &again.validation));
    let lines = |pairs: &[Pair]| pairs.iter().map(|pair| pair.line).collect::<Vec<_>>();
    assert!(lines(&done.training).is_sorted() && lines(&done.validation).is_sorted());
    let mut all = [lines(&done.training), lines(&done.validation)].concat();
    all.sort_unstable();
    assert_eq!(all, lines(&many));
    // Not the last ones: data often come in an order.
    assert_ne!(lines(&done.validation), (81..=100).collect::<Vec<_>>());
    let large = pairs((0..8_000).map(|n| (good_prompt(n), format!(" {}", n % 3))));
    assert_eq!(split(&large).unwrap().validation.len(), 1_000);
    assert_eq!(Classes::of(&large), Classes::Many(3));
    // The one pair of a class must not be kept back.
    let rare: Vec<Pair> = (0..50)
        .filter_map(|rare| {
            let of = hundred(good_prompt, |n| if n == rare { " b".to_owned() } else { " a".to_owned() });
            split(&of)
                .map(|split| split.training.into_iter().any(|pair| pair.completion == " b"))
                .filter(|kept| !kept)
                .map(|_| of)
        })
        .flatten()
        .collect();
    assert_eq!(rare, []);
    assert!(split(&many[..1]).is_none());
}

/// Prompts and completions, what was told, and whether the file is plain.
type Rows = (Vec<(String, String)>, String, bool);

fn loaded(file: &str, bytes: impl AsRef<[u8]>) -> Result<Rows, String> {
    match load(bytes.as_ref(), file, Form::of(file).unwrap(), LINE_MAX)
        .map_err(|report| report.to_string())?
    {
        Loaded::Pairs { pairs, told, is_plain } => {
            let texts = pairs.into_iter().map(|pair| (pair.prompt, pair.completion)).collect();
            let mut report = Report::default();
            report.extend(told);
            Ok((texts, report.to_string(), is_plain))
        }
        Loaded::Examples => Ok((Vec::new(), "examples".to_owned(), false)),
    }
}

#[test]
fn rows_are_read_from_every_form() {
    let one = || vec![("a, b".to_owned(), "c".to_owned())];
    for (file, text, told, is_plain) in [
        ("a.csv", "prompt,completion\n\"a, b\",c\n", "", false),
        ("a.CSV", "\u{feff}completion,prompt\r\nc,\"a, b\"\r\n", "", false),
        ("a.tsv", "prompt\tcompletion\na, b\tc\n", "", false),
        ("a.jsonl", "{\"prompt\":\"a, b\",\"completion\":\"c\"}\n", "", true),
        ("a.json", "{\"prompt\":\"a, b\",\"completion\":\"c\"}\n", "", true),
        ("a.json", " [\n{\"prompt\":\"a, b\",\"completion\":\"c\"}\n]\n", "", false),
        ("a.jsonl", "\u{feff}[{\"prompt\":\"a, b\",\"completion\":\"c\"}]", "", false),
        (
            "a.csv",
            "Prompt,COMPLETION,id\n\"a, b\",c,7\n",
            "a.csv:2: note: `Prompt` becomes `prompt`\na.csv:2: note: `COMPLETION` becomes `completion`\na.csv:2: note: `id` is left out\n",
            false,
        ),
        (
            "a.jsonl",
            "{\"id\":{},\"prompt\":\"a, b\",\"completion\":\"c\"}",
            "a.jsonl:1: note: `id` is left out\n",
            false,
        ),
    ] {
        assert_eq!(loaded(file, text).unwrap(), (one(), told.to_owned(), is_plain), "{file} {text}");
    }
    let values = "{\"prompt\":7.50,\"completion\":true}\n\n{\"prompt\":null,\"completion\":\"\"}";
    let expected = [("7.50", "true"), ("", "")].map(|(p, c)| (p.to_owned(), c.to_owned()));
    assert_eq!(loaded("a.jsonl", values).unwrap().0, expected);
    let expected = [("", "one"), ("", ""), ("", " two")].map(|(p, c)| (p.to_owned(), c.to_owned()));
    assert_eq!(loaded("a.txt", "one\r\n\n two\n").unwrap().0, expected);
    for line in [r#"{"messages":[]}"#, r#"{"input":{},"preferred_output":[]}"#] {
        assert_eq!(loaded("a.jsonl", line).unwrap().1, "examples");
    }
}

#[test]
fn bad_input_is_an_error_with_its_place() {
    let long = format!("{{\"prompt\":\"{}\",\"completion\":\"c\"}}", "x".repeat(1 << 16));
    for (file, bytes, expected) in [
        ("a.csv", &b""[..], "a.csv: error: the file holds no rows\n"),
        ("a.txt", b"", "a.txt: error: the file holds no rows\n"),
        ("a.json", b"", "a.json: error: the file holds no rows\n"),
        ("a.json", b"[]", "a.json: error: the file holds no rows\n"),
        ("a.csv", b"prompt,completion\na,b,c\n", "a.csv:2: error: 3 fields, expected 2 as the header has\n"),
        ("a.tsv", b"prompt\tcompletion\na\n", "a.tsv:2: error: 1 fields, expected 2 as the header has\n"),
        (
            "a.tsv",
            b"prompt\tcompletion\na\t\"b\"c\n",
            "a.tsv:2:6: error: text behind the double quote that ends a field\n",
        ),
        (
            "a.csv",
            b"text,label\na,b\n",
            "a.csv:2: error: missing `prompt`, found `text`, `label`\n  hint: name the two columns `prompt` and `completion`; `prompt` may be empty\n",
        ),
        ("a.csv", b"prompt,Prompt,completion\na,b,c\n", "a.csv:2: error: `prompt` twice"),
        ("a.csv", b"prompt,completion\na,\xff\n", "a.csv:2:3: error: invalid UTF-8 in field 2\n"),
        ("a.txt", b"ok\n\xff\n", "a.txt:2:1: error: invalid UTF-8: byte 0xff\n"),
        ("a.txt", b"a\0b\n", "a.txt:1: error: a NUL byte: the file is no text\n"),
        ("a.jsonl", b"\xff\xfe{", "a.jsonl:1:1: error: the file is UTF-16, expected UTF-8\n"),
        ("a.jsonl", b"{\"prompt\":\"a\"}\n", "a.jsonl:1: error: missing `completion`\n"),
        (
            "a.jsonl",
            b"{\"prompt\":\"a\",\"completion\":[]}\n",
            "a.jsonl:1:28: error: `completion` is an array, expected text\n",
        ),
        (
            "a.jsonl",
            b"{\"prompt\":\"\\ud800\",\"completion\":\"\"}\n",
            "a.jsonl:1:11: error: `prompt` has an escape that stands for no character\n",
        ),
        (
            "a.jsonl",
            b"{\"prompt\":\"a\",\"prompt\":\"a\"}\n",
            "a.jsonl:1:24: error: duplicate key `prompt`\n",
        ),
        ("a.jsonl", b"{\"prompt\":\n", "a.jsonl:1:10: error: invalid JSON: EOF"),
        ("a.json", b"{\n \"prompt\": \"a\"\n}\n", "a.json:1:1: error: pretty-printed JSON"),
        (
            "a.json",
            b"[\n {\"prompt\":\"a\",\"completion\":\"b\"},\n 7\n]",
            "a.json:3: error: a number, expected an object\n",
        ),
        ("a.json", b"[\n {\"prompt\":\"a\",\"completion\":\"b\"},\n]", "a.json:3:1: error: invalid JSON: "),
        ("a.json", b"[\n \"\xff\"]", "a.json:2: error: invalid UTF-8\n"),
        ("a.jsonl", long.as_bytes(), "a.jsonl:1: error: the line has 65"),
    ] {
        let report = loaded(file, bytes).unwrap_err();
        assert!(report.starts_with(expected) || report.contains(expected), "{file}\n{report}");
    }
    for (file, expected) in [
        ("a.xlsx", "a.xlsx: error: a spreadsheet, which can't be read\n  hint: save it as CSV, in UTF-8"),
        (
            "a",
            "a: error: its name does not say how to read it\n  hint: expected `.csv`, `.tsv`, `.txt`, `.json` or `.jsonl`",
        ),
        ("a.pdf", "a.pdf: error: its name does not say"),
    ] {
        assert!(Form::of(file).unwrap_err().to_string().starts_with(expected));
    }
}

fn talk(pairs: Vec<Pair>, system: Option<&str>) -> (String, Result<Vec<String>, Stop>) {
    let mut person = Scripted::default();
    let lines = Preparation::begin("t.csv", pairs, &mut person)
        .and_then(|preparation| preparation.into_talk(system.map(str::to_owned)))
        .map(|(talk, pairs)| pairs.iter().map(|pair| talk.to_line(pair)).collect());
    (person.said, lines)
}

#[test]
fn conversations_are_made_of_pairs_without_their_marks() {
    let (said, lines) = talk(
        hundred(|n| format!("what {n}\n\n###\n\n"), |n| format!("  it {n}.\n END")),
        Some("Be \"brief\"."),
    );
    assert_eq!(
        said,
        "t.csv: note: the separator `\\n\\n###\\n\\n` is taken off\nt.csv: note: the ending `\\n END` is taken off\n"
    );
    assert_eq!(
        lines.unwrap()[0],
        r#"{"messages":[{"role":"system","content":"Be \"brief\"."},{"role":"user","content":"what 0"},{"role":"assistant","content":" it 0."}]}"#
    );
    // What all end with by chance is part of what is said.
    let (said, lines) = talk(hundred(|n| format!("what is {n}?"), |n| format!("it is {n}.")), None);
    assert_eq!(said, "");
    assert_eq!(
        lines.unwrap()[99],
        r#"{"messages":[{"role":"user","content":"what is 99?"},{"role":"assistant","content":"it is 99."}]}"#
    );
}

#[test]
fn conversations_need_a_question_and_an_answer() {
    let (said, lines) =
        talk(hundred(|n| if n == 7 { " ->".to_owned() } else { good_prompt(n) }, good_completion), None);
    assert!(
        said.ends_with("t.csv:8: note: 1 of the pairs ask or answer nothing, and are left out\n"),
        "{said}"
    );
    assert_eq!(lines.unwrap().len(), 99);
    let (said, lines) = talk(hundred(|_| String::new(), good_completion), None);
    assert!(matches!(lines, Err(Stop::Refused)));
    assert!(said.ends_with("t.csv: error: no pair has both a prompt and a completion\n  hint: a conversation needs something that is asked\n"), "{said}");
}

/// Texts in which marks, cases and blanks are likely.
fn texts() -> impl Strategy<Value = Vec<(String, String)>> {
    let word = || {
        prop::sample::select(vec![
            "",
            " ",
            "a",
            "B",
            "END",
            " ->",
            "\n",
            ".",
            "###",
            "é",
            "The best ",
            "x y",
            "0",
        ])
    };
    let text = move || prop::collection::vec(word(), 0..5).prop_map(|words| words.concat());
    prop::collection::vec((text(), text()), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_prepared_passes_the_checks(texts in texts(), coins in prop::collection::vec(any::<bool>(), 0..8)) {
        let mut person = Scripted { coins, ..Scripted::default() };
        if let Ok(done) = prepared(pairs(texts.clone()), &mut person) {
            let lines: String = done.pairs.iter().map(|pair| pair.to_line() + "\n").collect();
            prop_assert_eq!(errors_of(&lines, Expected::Pairs), "");
            if let Some(split) = split(&done.pairs) {
                let lines: String = split.training.iter().map(|pair| pair.to_line() + "\n").collect();
                prop_assert_eq!(errors_of(&lines, Expected::Pairs), "");
            }
        }
        if let (_, Ok(lines)) = talk(pairs(texts), Some("s")) && lines.len() >= 10 {
            prop_assert_eq!(errors_of(&(lines.join("\n") + "\n"), Expected::Chat), "");
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), head in prop::sample::select(vec!["", "prompt,completion\n", "prompt\tcompletion\n", "[", "{\"prompt\":\"", "\u{feff}"])) {
        let bytes = [head.as_bytes(), &bytes].concat();
        for form in [Form::Csv, Form::Tsv, Form::Txt, Form::Json] {
            if let Ok(Loaded::Pairs { pairs, .. }) = load(bytes.as_slice(), "t", form, LINE_MAX) {
                drop(prepared(pairs, &mut Scripted::default()));
            }
        }
    }
}
