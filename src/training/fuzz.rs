//! What must hold of every training file, and of everything that one is made of, whatever its bytes: for
//! `crate::fuzzing`.

use std::collections::BTreeSet;
use std::io;

use crate::diag::{Diagnostic, Report};
use crate::training::prepare::{self, Form, Loaded, Pair, Person, Preparation, Stop};
use crate::training::{Checked, EXAMPLES_MIN, Expected, Rules, check};

/// Small, so that short inputs reach it.
const LINE_MAX: u64 = 4 * 1024;

/// What is prepared is longer than what was read, by no more than this.
const PREPARED_LINE_MAX: u64 = 8 * LINE_MAX;

/// With the models whose tokens are counted. One has no vocabulary that is known.
const EXPECTED: [(Expected, &str); 6] = [
    (Expected::Pairs, "curie"),
    (Expected::Chat, "gpt-4o-mini"),
    (Expected::PairsOrChat, "babbage-002"),
    (Expected::Preferences, "gpt-4o"),
    (Expected::Prompts, "some-model"),
    (Expected::Any, ""),
];

/// Agrees to everything or to nothing, and keeps what it is told.
struct Resolute {
    agrees: bool,
    told: Report,
}

impl Person for Resolute {
    fn tell(&mut self, found: Diagnostic) {
        self.told.push(found);
    }

    fn agrees(&mut self, proposal: &str) -> io::Result<bool> {
        assert!(!proposal.contains('\0'), "it is asked on a terminal: {proposal}");
        Ok(self.agrees)
    }
}

/// Checks `data` as each kind of training file. What is said of it.
pub(crate) fn file(file: &str, data: &[u8]) -> Vec<Report> {
    EXPECTED.map(|expected| judged(file, data, expected)).into()
}

fn judged(file: &str, data: &[u8], (expected, model): (Expected, &str)) -> Report {
    let rules = Rules { expected, model, epochs: None, line_max: LINE_MAX, training: None };
    let mut copy = Vec::new();
    let Checked { report, figures, fingerprints } =
        check(data, file, &rules, Some(&mut copy)).expect("memory takes everything");
    assert!(data.starts_with(&copy), "what is copied is what is read");
    if report.has_errors() {
        return report;
    }
    assert_eq!(copy, data, "what is accepted is copied whole");
    let figures = figures.expect("what is accepted holds examples");
    let lines = memchr::memchr_iter(b'\n', data).count() as u64;
    assert!((1..=lines + 1).contains(&figures.examples), "{} examples", figures.examples);
    assert!(expected == Expected::Any || figures.examples >= EXAMPLES_MIN || expected == Expected::Pairs);
    assert!(figures.longest <= figures.tokens && figures.cut <= figures.examples);
    assert!(figures.epochs > 0 && figures.billed_tokens <= figures.tokens * u64::from(figures.epochs));
    // Held against itself every example is one that was trained on.
    let rules = Rules { training: Some(&fingerprints), ..rules };
    let again = check(data, file, &rules, None).expect("nothing is written").report;
    assert!(!again.has_errors() && again.warnings() >= figures.examples, "{again}");
    report
}

/// Reads `data` in every form and prepares what it holds. What is said of it, with the name of the file that it is
/// said about.
pub(crate) fn prepared(data: &[u8]) -> Vec<(&'static str, Report)> {
    let mut said = Vec::new();
    for file in ["pairs.csv", "pairs.tsv", "pairs.txt", "pairs.json"] {
        let form = Form::of(file).expect("targets name data files");
        match prepare::load(data, file, form, LINE_MAX) {
            Err(report) => {
                assert!(report.has_errors(), "refused without a reason");
                said.push((file, report));
            }
            Ok(Loaded::Examples) => assert_eq!(form, Form::Json),
            Ok(Loaded::Pairs { pairs, told, is_plain }) => {
                assert!(!pairs.is_empty() && pairs.is_sorted_by_key(|pair| pair.line));
                assert!(!is_plain || told.is_empty() && form == Form::Json);
                let mut report = Report::default();
                report.extend(told);
                said.push((file, report));
                for agrees in [true, false] {
                    let mut person = Resolute { agrees, told: Report::default() };
                    into_pairs(file, pairs.clone(), &mut person);
                    into_talk(file, pairs.clone(), &mut person);
                    said.push((file, person.told));
                }
            }
        }
    }
    said
}

/// What pairs become is a training file, and reads as what was made.
fn into_pairs(file: &str, pairs: Vec<Pair>, person: &mut Resolute) {
    let prepared = Preparation::begin(file, pairs, &mut *person).and_then(Preparation::into_pairs);
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(Stop::Refused) => return assert!(person.told.has_errors(), "refused without a reason"),
        Err(Stop::Unanswered(error)) => unreachable!("it answers everything: {error}"),
    };
    let lines: String = prepared.pairs.iter().map(|pair| pair.to_line() + "\n").collect();
    is_accepted(&lines, Expected::Pairs);
    let texts = |pairs: &[Pair]| -> Vec<(String, String)> {
        pairs.iter().map(|pair| (pair.prompt.clone(), pair.completion.clone())).collect()
    };
    match prepare::load(lines.as_bytes(), "pairs.jsonl", Form::Json, PREPARED_LINE_MAX) {
        Ok(Loaded::Pairs { pairs, is_plain: true, .. }) => assert_eq!(texts(&pairs), texts(&prepared.pairs)),
        other => unreachable!("what is written is plain: {other:?}"),
    }
    let ends_with = |text: &str, mark: Option<&String>| mark.is_none_or(|mark| text.ends_with(mark.as_str()));
    assert!(prepared.pairs.iter().all(|pair| ends_with(&pair.prompt, prepared.separator.as_ref())));
    assert!(prepared.pairs.iter().all(|pair| ends_with(&pair.completion, prepared.ending.as_ref())));
    if let Some(split) = prepare::split(&prepared.pairs) {
        let parts: BTreeSet<_> = texts(&split.training).into_iter().chain(texts(&split.validation)).collect();
        assert_eq!(parts, texts(&prepared.pairs).into_iter().collect());
        assert_eq!(split.training.len() + split.validation.len(), prepared.pairs.len());
    }
}

fn into_talk(file: &str, pairs: Vec<Pair>, person: &mut Resolute) {
    let before = person.told.errors();
    let talk = Preparation::begin(file, pairs, &mut *person)
        .and_then(|preparation| preparation.into_talk(Some("Be brief.".to_owned())));
    match talk {
        Ok((talk, pairs)) => {
            let lines: String = pairs.iter().map(|pair| talk.to_line(pair) + "\n").collect();
            // Too few of them is all that may be wrong with them.
            let enough = usize::try_from(EXAMPLES_MIN).expect("it is a small number");
            is_accepted(&lines.repeat(enough), Expected::Chat);
        }
        Err(Stop::Refused) => assert!(person.told.errors() > before, "refused without a reason"),
        Err(Stop::Unanswered(error)) => unreachable!("it answers everything: {error}"),
    }
}

fn is_accepted(lines: &str, expected: Expected) {
    let rules = Rules { expected, model: "", epochs: None, line_max: PREPARED_LINE_MAX, training: None };
    let checked = check(lines.as_bytes(), "prepared.jsonl", &rules, None).expect("nothing is written");
    assert!(!checked.report.has_errors(), "{}\n{lines}", checked.report);
}
