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
use crate::domain::{JobName, Timestamp};
use crate::schedule::Schedule;
use crate::spec::{self, Checked, Scheduled, Sinks, Source, TuningFacts};
use crate::training::Figures;

/// Next times that are told of a schedule.
const TIMES_SHOWN: usize = 3;

/// What is said about one spec, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Verdict {
    file: String,
    accepted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<Timetable>,
    /// What it would do; of one with a schedule, what a run at this moment would.
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

/// When a spec with a schedule runs.
#[derive(Debug, Serialize)]
struct Timetable {
    /// What the names of its runs begin with.
    name: String,
    kind: String,
    cron: String,
    timezone: String,
    /// Its next times, on the clocks of the zone.
    next: Vec<String>,
    catch_up: &'static str,
    overlap: &'static str,
    jitter: String,
}

/// What is known of a spec in which nothing is wrong that its data could not put right.
struct Judged {
    schedule: Option<Timetable>,
    plan: Option<Plan>,
    findings: Report,
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
        if !args.json {
            printer.data(&verdict.to_text())?;
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
    let (accepted, judged) = match read(file, settings, Clock::System.now()) {
        Ok(judged) => (true, judged),
        Err(spec::Error::Rejected(findings)) => (false, Judged { schedule: None, plan: None, findings }),
        Err(error @ (spec::Error::Unsettled { .. } | spec::Error::Scheduled | spec::Error::Sink(_))) => {
            return Err(Failure::new(Exit::Internal, error.to_string()));
        }
    };
    let Judged { schedule, plan, findings } = judged;
    let verdict = Verdict {
        file: file.display().to_string(),
        accepted,
        schedule,
        plan,
        errors: findings.errors(),
        warnings: findings.warnings(),
        notes: findings.notes(),
        findings: findings.diagnostics().to_vec(),
    };
    Ok((verdict, findings))
}

fn read(file: &Path, settings: &spec::Settings, now: Timestamp) -> Result<Judged, spec::Error> {
    let spec = SpecFile::open(file).map_err(|finding| spec::Error::Rejected(finding.into()))?;
    let source = |is_run| {
        let file = spec.file.try_clone().map_err(spec::Error::Sink)?;
        let (display, folder) = (spec.display.clone(), spec.folder.clone());
        Ok(Source { form: spec.form, file, display, folder, rest: None, now, is_run })
    };
    let read = |source| {
        let sinks = Sinks { index: &mut io::sink(), input: &mut io::sink(), data: &mut io::sink() };
        let mut checked = spec::read(source, settings, sinks)?;
        checked.name = named(&spec, checked.name)?;
        let findings = mem::take(&mut checked.findings);
        Ok((Plan::of(&checked), findings))
    };
    match read(source(false)?) {
        Ok((plan, findings)) => return Ok(Judged { schedule: None, plan: Some(plan), findings }),
        Err(spec::Error::Scheduled) => {}
        Err(error) => return Err(error),
    }
    let Some(scheduled) = spec::read_schedule(&source(true)?, settings)? else {
        return Err(spec::Error::Scheduled);
    };
    let schedule = Some(Timetable::of(&scheduled, &named(&spec, scheduled.name.clone())?, now));
    match read(source(true)?) {
        Ok((plan, findings)) => Ok(Judged { schedule, plan: Some(plan), findings }),
        // Its data may come before its time does.
        Err(spec::Error::Rejected(findings)) => {
            Ok(Judged { schedule, plan: None, findings: findings.into_warnings() })
        }
        Err(error) => Err(error),
    }
}

/// As the daemon names the job of a dropped folder whose spec has no name of its own: `.` doesn't hold it.
fn named(spec: &SpecFile, name: JobName) -> Result<JobName, spec::Error> {
    let nameless = matches!(spec.display.rsplit('/').nth(1), Some("" | "." | ".."));
    let Some(folder) = spec.dropped_folder.as_ref().filter(|_| nameless && name.as_str() == "job") else {
        return Ok(name);
    };
    folder.parse().map_err(|error| {
        let message = format!("the folder can't give its name to the job: {error}");
        let hint = "rename the folder, or write a `name` into the spec";
        spec::Error::Rejected(Diagnostic::error(&spec.display, 0, 0, message).hint(hint).into())
    })
}

impl Verdict {
    /// Nothing of one that is refused: its findings are told.
    fn to_text(&self) -> String {
        let file = printable(&self.file);
        match (&self.schedule, &self.plan) {
            (None, None) => String::new(),
            (None, Some(plan)) => plan.to_text(&file),
            (Some(schedule), plan) => {
                let lead = format!("{file}, if run now");
                let plan = plan.as_ref().map(|plan| plan.to_text(&lead));
                let plan = plan.unwrap_or_else(|| format!("{lead}: rejected, for what is warned of\n"));
                schedule.to_text(&file) + &plan
            }
        }
    }
}

impl Timetable {
    fn of(scheduled: &Scheduled, name: &JobName, now: Timestamp) -> Self {
        let Schedule { calendar, catch_up, overlap, jitter } = &scheduled.schedule;
        let times = iter::successors(calendar.after(now), |time| calendar.after(*time));
        Self {
            name: name.to_string(),
            kind: scheduled.kind.to_string(),
            cron: calendar.text().to_owned(),
            timezone: calendar.zone().to_string(),
            next: times.take(TIMES_SHOWN).map(|time| calendar.shown(time)).collect(),
            catch_up: catch_up.as_str(),
            overlap: overlap.as_str(),
            jitter: humantime::format_duration(*jitter).to_string(),
        }
    }

    fn to_text(&self, file: &str) -> String {
        let (cron, name) = (printable(&self.cron), printable(&self.name));
        let jitter = Some(&self.jitter).filter(|jitter| *jitter != "0s");
        let jitter = jitter.map_or_else(String::new, |jitter| format!(", each up to {jitter} later"));
        let lines = [
            format!("{file}: schedule `{cron}` ({}), jobs `{name}-<time>` ({})", self.timezone, self.kind),
            format!("  next at {}{jitter}", self.next.join(", ")),
            format!("  catch_up `{}`, overlap `{}`", self.catch_up, self.overlap),
        ];
        lines.join("\n") + "\n"
    }
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

    fn to_text(&self, lead: &str) -> String {
        let plural = if self.requests == 1 { "" } else { "s" };
        let name = printable(&self.name);
        let first = format!("{lead}: job `{name}` ({}), {} request{plural}", self.kind, self.requests);
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
            Plan::of(&checked).to_text("news.jsonl"),
            "news.jsonl: job `news` (requests), 1203 requests\n       1200 to openai/gpt-4.1\n          3 to \
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
    fn spec_with_a_schedule_says_when_it_runs_and_what_a_run_would_do() {
        let daemon = Daemon::absent();
        let path = |name: &str| daemon.folder.path().join(name);
        let spec = "kind = 'moderations'\n[schedule]\ncron = '0 2 29 2 *'\ntimezone = 'Asia/Shanghai'\n\
                    catch_up = 'once'\njitter = '10m'\n";
        let rows = "[input]\nfile = 'in/{{ now | date(\"%Y\") }}-*.txt'\n";
        fs::write(path("rare.toml"), format!("{spec}{rows}")).unwrap();
        let digits = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "9");
        let check = |json: bool| {
            let name = path("rare.toml");
            let args = ["check", name.to_str().unwrap(), "--json"];
            daemon.batchd(&args[..if json { 3 } else { 2 }])
        };
        let printed = check(false);
        assert_eq!(printed.exit, Exit::Done);
        insta::assert_snapshot!(digits(&printed.out), @r"
        DIR/rare.toml: schedule `9 9 99 9 *` (Asia/Shanghai), jobs `rare-<time>` (moderations)
          next at 9999-99-99T99:99:99+99:99, 9999-99-99T99:99:99+99:99, 9999-99-99T99:99:99+99:99, each up to 99m later
          catch_up `once`, overlap `skip`
        DIR/rare.toml, if run now: rejected, for what is warned of
        ");
        insta::assert_snapshot!(digits(&printed.err), @r"
        DIR/rare.toml:9:9: warning: `file`: no file matches `in/9999-*.txt`
          hint: data files lie beside the spec, below it, or below one of `[intake] input_dirs` of the config
        ");
        fs::create_dir(path("in")).unwrap();
        // Whatever the year is when this is run.
        for year in 2020..2100 {
            fs::write(path(&format!("in/{year}-a.txt")), "x\ny\n").unwrap();
        }
        let printed = check(true);
        assert_eq!((printed.exit, printed.err.as_str()), (Exit::Done, ""));
        insta::assert_snapshot!(digits(&printed.out), @r#"
        [
          {
            "file": "DIR/rare.toml",
            "accepted": true,
            "schedule": {
              "name": "rare",
              "kind": "moderations",
              "cron": "9 9 99 9 *",
              "timezone": "Asia/Shanghai",
              "next": [
                "9999-99-99T99:99:99+99:99",
                "9999-99-99T99:99:99+99:99",
                "9999-99-99T99:99:99+99:99"
              ],
              "catch_up": "once",
              "overlap": "skip",
              "jitter": "99m"
            },
            "name": "rare",
            "kind": "moderations",
            "requests": 9,
            "queues": [
              {
                "queue": "openai/-",
                "requests": 9
              }
            ],
            "errors": 9,
            "warnings": 9,
            "notes": 9,
            "findings": []
          }
        ]
        "#);
    }

    #[test]
    fn broken_schedule_is_rejected_with_all_that_is_wrong() {
        let daemon = Daemon::absent();
        let path = daemon.folder.path().join("bad.toml");
        let spec =
            "kind = 'moderations'\n[schedule]\ncron = '5/10 * * * *'\n[input]\nfile = '{{ day }}.txt'\n";
        fs::write(&path, spec).unwrap();
        let printed = daemon.batchd(&["check", path.to_str().unwrap()]);
        assert_eq!((printed.exit, printed.out.as_str()), (Exit::Rejected, ""));
        insta::assert_snapshot!(printed.err, @r#"
        DIR/bad.toml:3:8: error: bad cron expression `5/10 * * * *`: `5/10` is no minute: a step follows `*` or a range, as in `5-59/…`
          hint: minute hour day month weekday, like `0 2 * * 1-5`
        DIR/bad.toml:5:8: error: unknown variable `day` in `file`: there is only `now`
          hint: as in `{{ now | date('%Y-%m-%d') }}`; two braces themselves are `{{ "{{" }}`
        "#);
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
