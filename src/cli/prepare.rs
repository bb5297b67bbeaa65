//! `batchd prepare`: makes a training file of pairs, or says what is wrong with one of conversations.

use std::fs::File;
use std::io::{self, BufReader, IsTerminal};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::args::{PrepareArgs, Target};
use super::prepare_output::{Draft, Names};
use super::prepare_person::{Answers, Desk, Proposed};
use super::prepare_spec::{CHAT_MODEL, PAIRS_MODEL, Proposal};
use super::report::Printer;
use super::{Done, Exit, Failure, load_config};
use crate::config::Keys;
use crate::diag::{Diagnostic, Report};
use crate::training::prepare::{
    self, Classes, Form, Loaded, Pair, Person, Preparation, Prepared, Stop, Task,
};
use crate::training::{self, Expected, Figures, Format, Rules};

/// What came of it, as `--json` prints it.
#[derive(Debug, Default, Serialize)]
struct Verdict {
    file: String,
    /// There is something that can be trained on.
    accepted: bool,
    /// Of what was written, or of the file itself where nothing had to be.
    figures: Option<Figures>,
    task: Option<Task>,
    separator: Option<String>,
    ending: Option<String>,
    classes: Option<Classes>,
    /// The files, training data first; none if the file can be used as it is.
    written: Vec<String>,
    /// A job spec for a fine-tune with them.
    spec: Option<String>,
    proposed: Vec<Proposed>,
    errors: u64,
    warnings: u64,
    notes: u64,
    findings: Vec<Diagnostic>,
}

/// Why nothing was prepared.
enum End {
    /// The data can't be used, and it was told why.
    Refused,
    Failed(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What is asked for, all in one place.
struct Work<'a> {
    args: &'a PrepareArgs,
    /// As it stands in findings.
    file: &'a str,
    /// Bytes.
    line_max: u64,
}

pub(super) fn run(args: &PrepareArgs, config: Option<&Path>, printer: &mut Printer<'_>) -> Done {
    let stdin = io::stdin().lock();
    let answers = if args.yes {
        Answers::Yes
    } else if stdin.is_terminal() && printer.err_is_terminal {
        Answers::Terminal(Box::new(stdin))
    } else {
        Answers::Nobody
    };
    run_with(args, config, answers, printer)
}

fn run_with(
    args: &PrepareArgs,
    config: Option<&Path>,
    answers: Answers<'_>,
    printer: &mut Printer<'_>,
) -> Done {
    if args.system.is_some() && args.to != Target::Chat {
        return Err(Failure::new(Exit::Usage, "`--system` goes with `--to chat` alone"));
    }
    let line_max = load_config(config, Keys::Ignored)?.config.intake.max_line;
    let file = args.file.to_string_lossy();
    let work = Work { args, file: &file, line_max };
    let mut desk = Desk::new(answers, printer);
    let mut verdict = match work.run(&mut desk) {
        Ok(verdict) => verdict,
        Err(End::Refused) => Verdict::default(),
        Err(End::Failed(failure)) => return Err(failure),
    };
    verdict.file = file.into_owned();
    let (report, proposed) = desk.into_findings();
    verdict.proposed = proposed;
    (verdict.errors, verdict.warnings, verdict.notes) = (report.errors(), report.warnings(), report.notes());
    verdict.findings = report.diagnostics().to_vec();
    if args.json {
        printer.json(&verdict)?;
    } else if let Some(spec) = &verdict.spec {
        printer.data(spec)?;
    }
    Ok(if verdict.accepted { Exit::Done } else { Exit::Rejected })
}

impl Work<'_> {
    fn run(&self, desk: &mut Desk<'_, '_>) -> Result<Verdict, End> {
        let form = Form::of(self.file).map_err(|found| refuse(desk, &found.into()))?;
        let input = self.open(desk)?;
        let loaded = prepare::load(input, self.file, form, self.line_max);
        match loaded.map_err(|report| refuse(desk, &report))? {
            Loaded::Examples => self.judge(desk),
            Loaded::Pairs { pairs, told, is_plain } => {
                let names = Names::free(&self.args.file, self.args.output.as_deref())?;
                for found in told {
                    desk.tell(found);
                }
                let preparation = Preparation::begin(self.file, pairs, desk);
                let preparation = match preparation {
                    Ok(preparation) => preparation,
                    Err(stop) => return Err(stopped(desk, &stop)),
                };
                match self.args.to {
                    Target::Chat => {
                        let talk = preparation.into_talk(self.args.system.clone());
                        let (talk, pairs) = talk.map_err(|stop| stopped(desk, &stop))?;
                        self.write_chat(desk, &names, &talk, &pairs)
                    }
                    Target::Pairs => {
                        let prepared = preparation.into_pairs().map_err(|stop| stopped(desk, &stop))?;
                        self.write_pairs(desk, &names, prepared, is_plain)
                    }
                }
            }
        }
    }

    fn open(&self, desk: &mut Desk<'_, '_>) -> Result<BufReader<File>, End> {
        let path = &self.args.file;
        // A pipe would be waited for, and can't be read twice.
        let opened = match path.metadata() {
            Ok(metadata) if metadata.is_file() => File::open(path),
            Ok(_) => Err(io::Error::other("it is no regular file")),
            Err(error) => Err(error),
        };
        opened.map(BufReader::new).map_err(|error| {
            let found = Diagnostic::error(self.file, 0, 0, format!("can't be opened: {error}"));
            refuse(desk, &found.into())
        })
    }

    fn rules<'r>(&self, expected: Expected, model: &'r str) -> Rules<'r> {
        // The legacy interface has a default, the other chooses.
        let epochs = (expected == Expected::Pairs).then_some(4);
        // What we write ourselves is not held to the bound of lines that are read.
        Rules { expected, model, epochs, line_max: self.line_max.saturating_mul(8), training: None }
    }

    /// Checks a file that is one of examples already, and changes nothing.
    fn judge(&self, desk: &mut Desk<'_, '_>) -> Result<Verdict, End> {
        let input = self.open(desk)?;
        let rules = Rules { line_max: self.line_max, ..self.rules(Expected::Any, CHAT_MODEL) };
        let checked = training::check(input, self.file, &rules, None)
            .map_err(|error| Failure::new(Exit::Internal, format!("the check can't be made: {error}")))?;
        desk.tell_all(&checked.report);
        let Some(figures) = checked.figures.filter(|_| !checked.report.has_errors()) else {
            return Ok(Verdict::default());
        };
        desk.note(&format!("{}: {}; nothing to prepare", self.file, in_words(&figures)));
        let spec = self.proposal(&self.args.file).to_toml(figures.format);
        Ok(Verdict { accepted: true, figures: Some(figures), spec: Some(spec), ..Verdict::default() })
    }

    fn write_chat(
        &self,
        desk: &mut Desk<'_, '_>,
        names: &Names,
        talk: &prepare::Talk,
        pairs: &[Pair],
    ) -> Result<Verdict, End> {
        let lines = pairs.iter().map(|pair| talk.to_line(pair));
        let (draft, checked) = Draft::write(&names.whole, lines, &self.rules(Expected::Chat, CHAT_MODEL))?;
        desk.tell_all(&checked.report);
        let figures = checked.figures.filter(|_| !checked.report.has_errors());
        let Some(figures) = figures else { return Ok(Verdict::default()) };
        let written = draft.publish()?;
        desk.note(&format!("wrote {}: {}", written.display(), in_words(&figures)));
        Ok(Verdict {
            accepted: true,
            spec: Some(self.proposal(&written).to_toml(Format::Chat)),
            figures: Some(figures),
            written: shown([written]),
            ..Verdict::default()
        })
    }

    fn write_pairs(
        &self,
        desk: &mut Desk<'_, '_>,
        names: &Names,
        prepared: Prepared,
        is_plain: bool,
    ) -> Result<Verdict, End> {
        let Prepared { pairs, task, separator, ending, changed } = prepared;
        let classes = (task == Task::Classification).then(|| Classes::of(&pairs));
        let mut verdict = Verdict { task: Some(task), separator, ending, classes, ..Verdict::default() };
        let split = match prepare::split(&pairs).filter(|_| task == Task::Classification) {
            Some(split) => {
                let (training, validation) = (split.training.len(), split.validation.len());
                let proposal =
                    format!("split them into {training} pairs to train on and {validation} to validate by");
                let agreed = desk.agrees(&proposal);
                agreed.map_err(|error| desk.unanswered(&error))?.then_some(split)
            }
            None => None,
        };
        let rules = self.rules(Expected::Pairs, PAIRS_MODEL);
        let parts = match &split {
            Some(split) => vec![(&names.training, &split.training), (&names.validation, &split.validation)],
            None => vec![(&names.whole, &pairs)],
        };
        let must_write = changed || split.is_some() || self.args.output.is_some() || !is_plain;
        if !must_write && let Some(figures) = self.usable_as_it_is(desk, &rules)? {
            desk.note(&format!("{}: {}; it can be used as it is", self.file, in_words(&figures)));
            let path = &self.args.file;
            verdict.spec = Some(Proposal { ..self.proposal_of(path, None, &verdict) }.to_toml(Format::Pairs));
            return Ok(Verdict { accepted: true, figures: Some(figures), ..verdict });
        }
        let mut drafts = Vec::new();
        for (number, (name, pairs)) in parts.into_iter().enumerate() {
            let fingerprints = training::Fingerprints::default();
            let rules = Rules { training: (number > 0).then_some(&fingerprints), ..rules };
            let (draft, checked) = Draft::write(name, pairs.iter().map(Pair::to_line), &rules)?;
            if checked.report.has_errors() {
                return Err(refuse(desk, &checked.report));
            }
            drafts.push((draft, checked.figures));
        }
        let mut written = Vec::new();
        for (draft, figures) in drafts {
            let name = draft.publish()?;
            let words = figures.as_ref().map(in_words).unwrap_or_default();
            desk.note(&format!("wrote {}: {words}", name.display()));
            verdict.figures = verdict.figures.or(figures);
            written.push(name);
        }
        if let Some(training) = written.first() {
            let proposal = self.proposal_of(training, written.get(1), &verdict);
            verdict.spec = Some(proposal.to_toml(Format::Pairs));
        }
        Ok(Verdict { accepted: true, written: shown(written), ..verdict })
    }

    /// The figures of a file of pairs in which nothing has to be changed, if a server will take it byte for byte.
    fn usable_as_it_is(&self, desk: &mut Desk<'_, '_>, rules: &Rules<'_>) -> Result<Option<Figures>, End> {
        if self.args.file.extension().is_none_or(|ending| ending != "jsonl") {
            return Ok(None);
        }
        let checked = training::check(self.open(desk)?, self.file, rules, None)
            .map_err(|error| Failure::new(Exit::Internal, format!("the check can't be made: {error}")))?;
        Ok(checked.figures.filter(|_| !checked.report.has_errors()))
    }

    fn proposal<'w>(&'w self, training: &'w Path) -> Proposal<'w> {
        let input = &self.args.file;
        Proposal { input, training, validation: None, classes: None, separator: None, ending: None }
    }

    fn proposal_of<'w>(
        &'w self,
        training: &'w Path,
        validation: Option<&'w PathBuf>,
        verdict: &'w Verdict,
    ) -> Proposal<'w> {
        Proposal {
            validation: validation.map(PathBuf::as_path),
            classes: verdict.classes.as_ref(),
            separator: verdict.separator.as_deref(),
            ending: verdict.ending.as_deref(),
            ..self.proposal(training)
        }
    }
}

/// Tells what was found.
fn refuse(desk: &mut Desk<'_, '_>, found: &Report) -> End {
    desk.tell_all(found);
    End::Refused
}

fn stopped(desk: &Desk<'_, '_>, stop: &Stop) -> End {
    match stop {
        Stop::Refused => End::Refused,
        Stop::Unanswered(error) => End::Failed(desk.unanswered(error)),
    }
}

fn in_words(figures: &Figures) -> String {
    let (kind, about) = match figures.format {
        Format::Pairs => ("pairs", if figures.tokens_estimated { "about " } else { "" }),
        Format::Chat => ("chat examples", if figures.tokens_estimated { "about " } else { "" }),
        Format::Preferences => ("DPO examples", if figures.tokens_estimated { "about " } else { "" }),
    };
    format!("{} {kind}, {about}{} tokens", figures.examples, figures.tokens)
}

fn shown(paths: impl IntoIterator<Item = PathBuf>) -> Vec<String> {
    paths.into_iter().map(|path| path.to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cli::client::tests::Daemon;
    use crate::cli::report::tests::{Printed, printed};

    /// A folder of its own, and a configuration that asks nothing of the surroundings.
    struct Bench(Daemon);

    impl Bench {
        fn new() -> Self {
            Self(Daemon::absent())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.folder.path().join(name)
        }

        fn put(&self, name: &str, text: &str) -> String {
            fs::write(self.path(name), text).unwrap();
            self.path(name).to_str().unwrap().to_owned()
        }

        fn get(&self, name: &str) -> String {
            fs::read_to_string(self.path(name)).unwrap()
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.0.folder.path()).unwrap();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.retain(|name| name != "batchd.toml");
            names.sort();
            names
        }

        /// Answers what is asked with these lines, as if on a terminal.
        fn answered(&self, file: &str, to: Target, answers: &str) -> Printed {
            let args = PrepareArgs {
                file: PathBuf::from(file),
                output: None,
                yes: false,
                to,
                system: None,
                json: false,
            };
            let config = self.path("batchd.toml");
            let printed = printed(|printer| {
                let answers = Answers::Terminal(Box::new(answers.as_bytes()));
                let done = run_with(&args, Some(&config), answers, printer);
                done.unwrap_or_else(|failure| printer.failure(failure))
            });
            let folder = self.0.folder.path().to_str().unwrap();
            let shown = |text: String| text.replace(folder, "DIR");
            Printed { exit: printed.exit, out: shown(printed.out), err: shown(printed.err) }
        }
    }

    fn table(rows: usize, completion: impl Fn(usize) -> String) -> String {
        let row = |number: usize| format!("question {number},{}\n", completion(number));
        "prompt,completion\n".to_owned() + &(0..rows).map(row).collect::<String>()
    }

    #[test]
    fn answers_decide_what_is_done() {
        let bench = Bench::new();
        let file = bench.put("data.csv", &table(100, |number| format!("answer {number}")));
        let printed = bench.answered(&file, Target::Pairs, "\nperhaps\nNo\nn\nyes\n");
        assert_eq!(printed.exit, Exit::Done);
        insta::assert_snapshot!(printed.err, @r##"advised: add the separator ` ->` to all prompts? [Y/n] advised: take `answer` off, with which all completions begin? [Y/n] advised: take `answer` off, with which all completions begin? [Y/n] advised: add the ending `\n` to all completions? [Y/n] advised: put a space before 100 of the completions, with which words begin? [Y/n] wrote DIR/data_prepared.jsonl: 100 pairs, 500 tokens"##);
        insta::assert_snapshot!(printed.out, @r##"
        # Use the model with prompts that end with " ->".
        kind = "fine_tune"
        model = "curie"

        [fine_tune]
        api = "legacy"
        training_file = "data_prepared.jsonl"
        # With api = "jobs", babbage-002 and davinci-002 take this file, too. For a chat model:
        # batchd prepare "DIR/data.csv" --to chat
        "##);
        let written = bench.get("data_prepared.jsonl");
        assert_eq!(written.lines().count(), 100);
        assert_eq!(written.lines().next().unwrap(), r#"{"prompt":"question 0 ->","completion":" answer 0"}"#);
        assert_eq!(bench.names(), ["data.csv", "data_prepared.jsonl"]);
    }

    #[test]
    fn nothing_is_written_when_the_answers_end() {
        let bench = Bench::new();
        let file = bench.put("data.csv", &table(100, |number| format!("answer {number}")));
        let printed = bench.answered(&file, Target::Pairs, "y\n");
        assert_eq!(printed.exit, Exit::Usage);
        assert!(printed.err.ends_with("error: no answer: nothing was written\n"), "{}", printed.err);
        let printed = bench.answered(&file, Target::Pairs, &"what\n".repeat(9));
        assert_eq!(printed.exit, Exit::Usage);
        assert_eq!(bench.names(), ["data.csv"]);
    }

    #[test]
    fn nobody_at_hand_means_nothing_is_guessed() {
        let bench = Bench::new();
        let file = bench.put("data.csv", &table(100, |number| format!("answer {number}")));
        let printed = bench.0.batchd(&["prepare", &file]);
        assert_eq!((printed.exit, printed.out.as_str()), (Exit::Usage, ""));
        assert_eq!(
            printed.err,
            "error: nobody can be asked, at first whether to add the separator ` ->` to all prompts\n  hint: `--yes` \
             does all that is advised; or run it on a terminal\n"
        );
        assert_eq!(bench.names(), ["data.csv"]);
    }

    #[test]
    fn classes_are_split_and_the_spec_measures_them() {
        let bench = Bench::new();
        let file = bench.put("data.csv", &table(100, |number| ["yes", "no", "yes"][number % 3].to_owned()));
        let printed = bench.0.batchd(&["prepare", "--yes", &file]);
        assert_eq!(printed.exit, Exit::Done);
        insta::assert_snapshot!(printed.err, @r##"
        DIR/data.csv: note: 2 different completions in 100 pairs: a model is trained to tell classes apart, best with one word for each
        advised: add the separator ` ->` to all prompts: done
        advised: put a space before 100 of the completions, with which words begin: done
        advised: split them into 80 pairs to train on and 20 to validate by: done
        wrote DIR/data_prepared_train.jsonl: 80 pairs, 320 tokens
        wrote DIR/data_prepared_valid.jsonl: 20 pairs, 80 tokens
        "##);
        insta::assert_snapshot!(printed.out, @r##"
        # Use the model with prompts that end with " ->".
        kind = "fine_tune"
        model = "curie"

        [fine_tune]
        api = "legacy"
        training_file = "data_prepared_train.jsonl"
        validation_file = "data_prepared_valid.jsonl"
        compute_classification_metrics = true
        classification_positive_class = " yes"
        # With api = "jobs", babbage-002 and davinci-002 take this file, too. For a chat model:
        # batchd prepare "DIR/data.csv" --to chat
        "##);
        assert_eq!(bench.get("data_prepared_train.jsonl").lines().count(), 80);
        assert_eq!(bench.get("data_prepared_valid.jsonl").lines().count(), 20);
    }

    #[test]
    fn conversations_are_written_with_their_system_message() {
        let bench = Bench::new();
        let file = bench.put("data.csv", &table(100, |number| format!("answer {number}")));
        let out = bench.path("chat.jsonl");
        let args = ["prepare", &file, "--to", "chat", "--system", "Be brief.", "-o", out.to_str().unwrap()];
        let printed = bench.0.batchd(&args);
        assert_eq!(printed.exit, Exit::Done, "{}", printed.err);
        insta::assert_snapshot!(printed.out, @r##"
        kind = "fine_tune"
        model = "gpt-4.1-mini-2025-04-14"

        [fine_tune]
        training_file = "chat.jsonl"
        "##);
        assert_eq!(
            bench.get("chat.jsonl").lines().next().unwrap(),
            r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"question 0"},{"role":"assistant","content":"answer 0"}]}"#
        );
        let few = bench.put("few.csv", &table(9, |number| format!("answer {number}")));
        let printed = bench.0.batchd(&["prepare", &few, "--to", "chat"]);
        assert_eq!(printed.exit, Exit::Rejected);
        assert!(printed.err.contains("error: 9 examples, expected at least 10"), "{}", printed.err);
        assert_eq!(bench.names(), ["chat.jsonl", "data.csv", "few.csv"]);
        let printed = bench.0.batchd(&["prepare", &few, "--system", "x"]);
        assert_eq!(printed.exit, Exit::Usage);
    }

    #[test]
    fn nothing_is_ever_overwritten() {
        for taken in ["data_prepared.jsonl", "data_prepared_train.jsonl", "data_prepared_valid.jsonl"] {
            let bench = Bench::new();
            let file = bench.put("data.csv", &table(100, |number| format!("answer {number}")));
            bench.put(taken, "mine");
            let printed = bench.0.batchd(&["prepare", "--yes", &file]);
            assert_eq!(printed.exit, Exit::Usage);
            assert_eq!(
                printed.err,
                format!(
                    "error: `DIR/{taken}` is there already, and is not overwritten\n  hint: name another file with \
                     `-o`, or take this one away\n"
                )
            );
            assert_eq!((bench.get(taken), bench.names().len()), ("mine".to_owned(), 2));
        }
    }

    #[test]
    fn file_that_is_good_is_left_alone() {
        let line =
            |number: usize| format!("{{\"prompt\":\"{number} ->\",\"completion\":\" it {number} END\"}}\n");
        let text: String = (0..100).map(line).collect();
        let bench = Bench::new();
        let file = bench.put("good.jsonl", &text);
        let printed = bench.0.batchd(&["prepare", &file]);
        assert_eq!((printed.exit, bench.names()), (Exit::Done, vec!["good.jsonl".to_owned()]));
        assert!(printed.err.contains("it can be used as it is"), "{}", printed.err);
        // What servers don't pass over is mended.
        for bad in ["\u{feff}", "\n"] {
            let bench = Bench::new();
            let file = bench.put("good.jsonl", &format!("{bad}{text}"));
            let printed = bench.0.batchd(&["prepare", &file]);
            assert_eq!(printed.exit, Exit::Done, "{}", printed.err);
            assert_eq!(bench.get("good_prepared.jsonl"), text);
        }
    }

    #[test]
    fn examples_of_today_are_checked_and_not_changed() {
        let line = |number: usize| {
            format!(
                r#"{{"messages":[{{"role":"system","content":"s"}},{{"role":"user","content":"{number}"}},{{"role":"assistant","content":"a"}}]}}"#
            ) + "\n"
        };
        let bench = Bench::new();
        let file = bench.put("chat.jsonl", &(0..50).map(line).collect::<String>());
        let printed = bench.0.batchd(&["prepare", &file]);
        assert_eq!((printed.exit, bench.names()), (Exit::Done, vec!["chat.jsonl".to_owned()]));
        assert_eq!(printed.err, "DIR/chat.jsonl: 50 chat examples, 900 tokens; nothing to prepare\n");
        let file = bench.put("bad.jsonl", "{\"messages\":[]}\n");
        let printed = bench.0.batchd(&["prepare", &file]);
        assert_eq!((printed.exit, printed.out.as_str()), (Exit::Rejected, ""));
        assert!(printed.err.contains("DIR/bad.jsonl:1:13: error: `messages` is empty\n"), "{}", printed.err);
    }

    #[test]
    fn what_can_not_be_read_is_rejected() {
        let bench = Bench::new();
        let sheet = bench.put("data.xlsx", "");
        let missing = bench.path("none.csv").to_str().unwrap().to_owned();
        let folder = bench.path("folder.csv");
        fs::create_dir(&folder).unwrap();
        let folder = folder.to_str().unwrap().to_owned();
        for (file, expected) in [
            (
                sheet,
                "DIR/data.xlsx: error: a spreadsheet, which can't be read\n  hint: save it as CSV, in UTF-8\n",
            ),
            (missing, "DIR/none.csv: error: can't be opened: No such file or directory (os error 2)\n"),
            (folder, "DIR/folder.csv: error: can't be opened: it is no regular file\n"),
        ] {
            let printed = bench.0.batchd(&["prepare", "--yes", &file]);
            assert_eq!((printed.exit, printed.err.as_str()), (Exit::Rejected, expected));
        }
    }

    #[test]
    fn verdict_has_a_form_for_programs() {
        let bench = Bench::new();
        let sample = "{\"prompt\":\"1+1=?->\",\"completion\":\"4\\nENDEND\"}\n".repeat(2);
        let file = bench.put("seed.jsonl", &sample);
        let printed = bench.0.batchd(&["prepare", "--yes", "--json", &file]);
        assert_eq!(printed.exit, Exit::Rejected);
        let verdict: serde_json::Value = serde_json::from_str(&printed.out).unwrap();
        assert_eq!((&verdict["accepted"], &verdict["errors"]), (&false.into(), &2.into()));
        let file = bench.put("data.csv", &table(100, |number| format!("answer {number}")));
        let printed = bench.0.batchd(&["prepare", "--yes", "--json", &file]);
        assert_eq!(printed.exit, Exit::Done);
        insta::assert_snapshot!(printed.out, @r##"
        {
          "file": "DIR/data.csv",
          "accepted": true,
          "figures": {
            "format": "pairs",
            "examples": 100,
            "tokens": 500,
            "tokens_estimated": false,
            "longest": 5,
            "context": 2048,
            "cut": 0,
            "epochs": 4,
            "epochs_guessed": false,
            "billed_tokens": 2000,
            "separator": " ->",
            "ending": "\n"
          },
          "task": "conditional",
          "separator": " ->",
          "ending": "\n",
          "classes": null,
          "written": [
            "DIR/data_prepared.jsonl"
          ],
          "spec": "# Use the model with prompts that end with \" ->\".\n# Use the model with stop = [\"\\n\"].\nkind = \"fine_tune\"\nmodel = \"curie\"\n\n[fine_tune]\napi = \"legacy\"\ntraining_file = \"data_prepared.jsonl\"\n# With api = \"jobs\", babbage-002 and davinci-002 take this file, too. For a chat model:\n# batchd prepare \"DIR/data.csv\" --to chat\n",
          "proposed": [
            {
              "proposal": "add the separator ` ->` to all prompts",
              "done": true
            },
            {
              "proposal": "take `answer` off, with which all completions begin",
              "done": true
            },
            {
              "proposal": "add the ending `\n` to all completions",
              "done": true
            }
          ],
          "errors": 0,
          "warnings": 0,
          "notes": 0,
          "findings": []
        }
        "##);
    }
}
