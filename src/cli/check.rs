//! `batchd check`: validates job specs as the daemon would, and says what they would do. Sends nothing.

use std::path::Path;
use std::{io, iter, mem};

use serde::Serialize;

use super::args::CheckArgs;
use super::report::Printer;
use super::spec_file::SpecFile;
use super::{Done, Exit, Failure, load_config};
use crate::clock::Clock;
use crate::config::Keys;
use crate::daemon;
use crate::diag::{Diagnostic, Report, printable};
use crate::domain::JobName;
use crate::spec::{self, Checked, Sinks, Source, TuningFacts};
use crate::training::Figures;

/// What is said about one spec, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Verdict {
    file: String,
    accepted: bool,
    /// What it would do.
    #[serde(flatten)]
    plan: Option<Plan>,
    errors: u64,
    warnings: u64,
    notes: u64,
    findings: Vec<Diagnostic>,
}

/// What an accepted spec would do.
#[derive(Debug, Serialize)]
struct Plan {
    name: String,
    kind: String,
    requests: u32,
    queues: Vec<QueueShare>,
    /// Jobs whose models its requests use: it waits for them to end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    waits_for: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fine_tune: Option<TuningFacts>,
}

#[derive(Debug, Serialize)]
struct QueueShare {
    queue: String,
    requests: u32,
}

pub(super) fn run(args: &CheckArgs, config: Option<&Path>, printer: &mut Printer<'_>) -> Done {
    let loaded = load_config(config, Keys::Ignored)?;
    let settings = daemon::spec_settings(&loaded.config);
    let mut verdicts = Vec::new();
    for file in &args.files {
        let (verdict, findings) = judge(file, &settings)?;
        printer.findings(&findings);
        if !args.json
            && let Some(plan) = &verdict.plan
        {
            printer.data(&plan.to_text(&verdict.file))?;
        }
        verdicts.push(verdict);
    }
    if args.json {
        printer.json(&verdicts)?;
    }
    let all_accepted = verdicts.iter().all(|verdict| verdict.accepted);
    Ok(if all_accepted { Exit::Done } else { Exit::Rejected })
}

fn judge(file: &Path, settings: &spec::Settings) -> Result<(Verdict, Report), Failure> {
    let (plan, findings) = match read(file, settings) {
        Ok((plan, findings)) => (Some(plan), findings),
        Err(spec::Error::Rejected(findings)) => (None, findings),
        Err(error @ (spec::Error::Unsettled { .. } | spec::Error::Scheduled | spec::Error::Sink(_))) => {
            return Err(Failure::new(Exit::Internal, error.to_string()));
        }
    };
    let verdict = Verdict {
        file: file.display().to_string(),
        accepted: plan.is_some(),
        plan,
        errors: findings.errors(),
        warnings: findings.warnings(),
        notes: findings.notes(),
        findings: findings.diagnostics().to_vec(),
    };
    Ok((verdict, findings))
}

fn read(file: &Path, settings: &spec::Settings) -> Result<(Plan, Report), spec::Error> {
    let rejected = |finding: Diagnostic| spec::Error::Rejected(finding.into());
    let spec = SpecFile::open(file).map_err(rejected)?;
    let (display, dropped_folder) = (spec.display.clone(), spec.dropped_folder);
    let source = Source {
        form: spec.form,
        file: spec.file,
        display: spec.display,
        folder: spec.folder,
        rest: None,
        now: Clock::System.now(),
        is_run: false,
    };
    let sinks = Sinks { index: &mut io::sink(), input: &mut io::sink(), data: &mut io::sink() };
    let mut checked = spec::read(source, settings, sinks)?;
    // As the daemon names the job of a dropped folder whose spec has no name of its own: `.` doesn't hold it.
    let nameless = matches!(display.rsplit('/').nth(1), Some("" | "." | ".."));
    if let Some(folder) = dropped_folder.filter(|_| nameless && checked.name.as_str() == "job") {
        checked.name = folder.parse::<JobName>().map_err(|error| {
            let message = format!("the folder can't give its name to the job: {error}");
            let hint = "rename the folder, or write a `name` into the spec";
            rejected(Diagnostic::error(&display, 0, 0, message).hint(hint))
        })?;
    }
    let findings = mem::take(&mut checked.findings);
    Ok((Plan::of(&checked), findings))
}

impl Plan {
    fn of(checked: &Checked) -> Self {
        let shares = checked.queues.iter().zip(&checked.queue_totals);
        Self {
            name: checked.name.to_string(),
            kind: checked.kind.to_string(),
            requests: checked.total,
            queues: shares
                .map(|(queue, requests)| QueueShare { queue: queue.to_string(), requests: *requests })
                .collect(),
            waits_for: checked.jobs_used().map(|(name, _)| name.to_string()).collect(),
            fine_tune: checked.fine_tune.as_deref().cloned(),
        }
    }

    fn to_text(&self, file: &str) -> String {
        let plural = if self.requests == 1 { "" } else { "s" };
        let (file, name) = (printable(file), printable(&self.name));
        let first = format!("{file}: job `{name}` ({}), {} request{plural}", self.kind, self.requests);
        let share = |share: &QueueShare| format!("  {:>9} to {}", share.requests, printable(&share.queue));
        let waits =
            |name: &String| format!("  waits for the fine-tune `{}` and uses its model", printable(name));
        let lines =
            iter::once(first).chain(self.queues.iter().map(share)).chain(self.waits_for.iter().map(waits));
        let lines: Vec<String> = lines.chain(self.fine_tune.iter().flat_map(tuning_lines)).collect();
        lines.join("\n") + "\n"
    }
}

/// What a fine-tune would be trained on, and what would be paid for.
fn tuning_lines(tuning: &TuningFacts) -> Vec<String> {
    let interface = tuning.api.path();
    let mut lines = vec![format!("  fine-tune of `{}` by /v1{interface}", printable(&tuning.model))];
    let size = |figures: &Figures| {
        let about = if figures.tokens_estimated { "about " } else { "" };
        format!("{} examples, {about}{} tokens", figures.examples, figures.tokens)
    };
    if let Some(figures) = &tuning.training {
        let guessed = if figures.epochs_guessed { "probably " } else { "" };
        let plural = if figures.epochs == 1 { "" } else { "s" };
        lines.push(format!(
            "  trained on {}; {guessed}{} epoch{plural}: about {} tokens to pay for",
            size(figures),
            figures.epochs,
            figures.billed_tokens
        ));
    }
    lines.extend(tuning.validation.as_ref().map(|figures| format!("  validated on {}", size(figures))));
    lines
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cli::client::tests::Daemon;
    use crate::domain::QueueName;

    #[test]
    fn plan_says_what_a_spec_would_do() {
        let checked = Checked {
            kind: crate::domain::Kind::Requests,
            name: "news".parse().unwrap(),
            ending: None,
            settings: crate::domain::JobSettings::default(),
            queues: vec![QueueName::new("openai", Some("gpt-4.1")), QueueName::new("openai", None)],
            queue_totals: vec![1200, 3],
            queue_places: Vec::new(),
            total: 1203,
            content_hash: String::new(),
            strict: false,
            fine_tune: None,
            findings: Report::default(),
        };
        assert_eq!(
            Plan::of(&checked).to_text("in\n/news.jsonl"),
            "in\\n/news.jsonl: job `news` (requests), 1203 requests\n       1200 to openai/gpt-4.1\n          3 to \
             openai/-\n"
        );
    }

    #[test]
    fn plan_of_a_fine_tune_says_what_it_would_be_trained_on() {
        let daemon = Daemon::absent();
        let path = |name: &str| daemon.folder.path().join(name);
        let chat = |n| {
            format!(
                r#"{{"messages":[{{"role":"system","content":"Add."}},{{"role":"user","content":"{n}+1"}},{{"role":"assistant","content":"{}"}}]}}"#,
                n + 1
            )
        };
        let chats = |range: std::ops::Range<u32>| range.map(|n| chat(n) + "\n").collect::<String>();
        fs::write(path("train.jsonl"), chats(0..60)).unwrap();
        fs::write(path("valid.jsonl"), chats(100..110)).unwrap();
        let spec = "kind = 'fine_tune'\nmodel = 'gpt-4.1-mini'\n[fine_tune]\ntraining_file = 'train.jsonl'\n";
        fs::write(path("sums.toml"), format!("{spec}validation_file = 'valid.jsonl'\nn_epochs = 2\n"))
            .unwrap();
        let printed = daemon.batchd(&["check", path("sums.toml").to_str().unwrap()]);
        assert_eq!((printed.exit, printed.err.as_str()), (Exit::Done, ""));
        insta::assert_snapshot!(printed.out, @r"
        DIR/sums.toml: job `sums` (fine_tune), 1 request
                  1 to openai/-
          fine-tune of `gpt-4.1-mini` by /v1/fine_tuning/jobs
          trained on 60 examples, 1260 tokens; 2 epochs: about 2520 tokens to pay for
          validated on 10 examples, 210 tokens
        ");
        let uses = "kind = 'moderations'\nmodel = 'job:sums'\n[[requests]]\ninput = 'x'\n";
        fs::write(path("uses.toml"), uses).unwrap();
        let printed = daemon.batchd(&["check", path("uses.toml").to_str().unwrap()]);
        assert_eq!((printed.exit, printed.err.as_str()), (Exit::Done, ""));
        insta::assert_snapshot!(printed.out, @r"
        DIR/uses.toml: job `uses` (moderations), 1 request
                  1 to openai/job:sums
          waits for the fine-tune `sums` and uses its model
        ");
    }

    #[test]
    fn what_is_no_spec_is_rejected_beside_the_others() {
        let daemon = Daemon::absent();
        let path = |name: &str| daemon.folder.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("data.csv"), "").unwrap();
        std::os::unix::fs::symlink("data.csv", path("link.toml")).unwrap();
        fs::create_dir(path("folder")).unwrap();
        let files = ["none.jsonl", "link.toml", "data.csv", "folder"].map(path);
        let args: Vec<&str> = ["check"].into_iter().chain(files.iter().map(String::as_str)).collect();
        let printed = daemon.batchd(&args);
        assert_eq!((printed.exit, printed.out.as_str()), (Exit::Rejected, ""));
        insta::assert_snapshot!(printed.err, @r#"
        DIR/none.jsonl: error: can't be opened: No such file or directory (os error 2)
        DIR/link.toml: error: can't be opened: it is a symbolic link
        DIR/data.csv: error: this is no job spec by its name
          hint: specs end in `.jsonl` or `.toml`
        DIR/folder/job.toml: error: can't be opened: No such file or directory (os error 2)
        "#);
        let printed = daemon.batchd(&["check", "--json", &files[0]]);
        assert_eq!(printed.exit, Exit::Rejected);
        insta::assert_snapshot!(printed.out, @r#"
        [
          {
            "file": "DIR/none.jsonl",
            "accepted": false,
            "errors": 1,
            "warnings": 0,
            "notes": 0,
            "findings": [
              {
                "severity": "error",
                "file": "DIR/none.jsonl",
                "line": 0,
                "column": 0,
                "message": "can't be opened: No such file or directory (os error 2)"
              }
            ]
          }
        ]
        "#);
    }

    #[test]
    fn folder_gives_its_name_unless_the_spec_has_one() {
        let daemon = Daemon::absent();
        let folder = daemon.folder.path().join("news");
        let check = |name: &str, end: &str| {
            let spec = format!("{name}kind = 'moderations'\n[[requests]]\ninput = 'x'\n");
            fs::create_dir_all(folder.join("below")).unwrap();
            fs::write(folder.join("job.toml"), spec).unwrap();
            daemon.batchd(&["check", &format!("{}{end}", folder.display())]).out
        };
        for end in ["", "/", "/.", "/below/.."] {
            let (named, nameless) = (check("name = 'mine'\n", end), check("", end));
            assert!(named.contains("job `mine` "), "{end}: {named}");
            assert!(nameless.contains("job `news` "), "{end}: {nameless}");
        }
        let named = check("name = 'job'\n", "");
        assert!(named.contains("job `job` "), "{named}");
    }

    #[test]
    fn bad_configuration_is_told_before_anything_else() {
        let daemon = Daemon::absent();
        fs::write(daemon.config(), "rot = 1\n").unwrap();
        let printed = daemon.batchd(&["check", "none.jsonl"]);
        assert_eq!((printed.exit, printed.out.as_str()), (Exit::BadConfig, ""));
        assert_eq!(
            printed.err,
            "DIR/batchd.toml:1:1: error: unknown key `rot`\n  hint: did you mean `root`?\n"
        );
    }
}
