//! A TOML spec with a schedule: its text is read to the end, its data only by its runs.

use crate::diag::{Diagnostic, Report};
use crate::reading::problem::shown;
use crate::spec::document::{Document, Placed};
use crate::spec::files::Files;
use crate::spec::render::{named, rejected, text};
use crate::spec::rows::DataForm;
use crate::spec::schema::{self, Spec};
use crate::spec::work::Work;
use crate::spec::{Error, Scheduled, Settings, Source, is_file_id};

/// See [`spec::read_schedule`](crate::spec::read_schedule).
pub(super) fn read(source: &Source, settings: &Settings) -> Result<Option<Scheduled>, Error> {
    let mut report = Report::default();
    let Some(text) = text(source, &mut report) else { return Err(rejected(report)) };
    let document = &Document::new(&source.display, text.strip_prefix('\u{feff}').unwrap_or(&text));
    let spec = schema::read(document, settings, source.now, &mut report);
    let name = named(spec.as_ref(), source, &mut report);
    if let Some(spec) = spec.as_ref().filter(|spec| spec.schedule.is_some()) {
        check_paths(spec, &Files::new(&source.folder, &settings.input_dirs), document, &mut report);
    }
    let (Some(spec), Some(name), false) = (spec, name, report.has_errors()) else {
        return Err(rejected(report));
    };
    report.sort();
    let kind = spec.kind;
    Ok(spec.schedule.map(|schedule| Scheduled { name, kind, schedule, text, findings: report }))
}

/// What no data can put right about the paths that the spec names.
fn check_paths(spec: &Spec<'_>, files: &Files, document: &Document<'_>, report: &mut Report) {
    let jsonl = "expected .jsonl";
    let paths = match &spec.work {
        Work::Rows { path, .. } => vec![("file", path, "expected .jsonl, .csv or .txt")],
        Work::Lines { path } => vec![("file", path, jsonl)],
        Work::FineTune(tuning) => {
            let validation = tuning.validation.iter().map(|path| ("validation_file", path, jsonl));
            let local = |(_, path, _): &(&str, &Placed<String>, &str)| !is_file_id(&path.value);
            std::iter::once(("training_file", &tuning.training, jsonl))
                .chain(validation)
                .filter(local)
                .collect()
        }
        Work::Inline(_) => Vec::new(),
    };
    for (key, Placed { value, offset }, expected) in paths {
        let form = DataForm::of(value);
        let fits = form.is_some() && (expected != jsonl || form == Some(DataForm::Jsonl));
        // What a glob matches has endings of its own.
        let found = if let Err(refused) = files.allows(value) {
            Diagnostic {
                hint: refused.hint,
                ..document.error(*offset, format!("`{key}`: {}", refused.message))
            }
        } else if !fits && !value.contains(['*', '?', '[']) {
            document
                .error(*offset, format!("`{key}`: {} is no kind of data file that fits", shown(value)))
                .hint(expected)
        } else {
            continue;
        };
        report.push(found);
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use chrono::DateTime;

    use super::*;
    use crate::domain::{Kind, Timestamp};
    use crate::schedule::{CatchUp, Overlap};
    use crate::spec::trial::{Accepted, Trial};
    use crate::spec::{self, Sinks};

    const SCHEDULE: &str = "[schedule]\ncron = '0 2 * * *'\ntimezone = 'Asia/Shanghai'\n";
    const HEAD: &str = "kind = 'completions'\nmodel = 'm'\n";

    /// 02:00 on the 22nd in Shanghai.
    fn now() -> Timestamp {
        let now = DateTime::parse_from_rfc3339("2026-11-21T18:00:00Z").unwrap();
        Timestamp::from_millis(now.timestamp_millis().try_into().unwrap())
    }

    fn read(text: &str) -> Result<Option<Scheduled>, String> {
        let trial = Trial::new().with("nightly.toml", text);
        spec::read_schedule(&trial.source("nightly.toml"), &trial.settings).map_err(|error| match error {
            Error::Rejected(report) => report.to_string(),
            error @ (Error::Unsettled { .. } | Error::Scheduled | Error::Sink(_)) => panic!("{error}"),
        })
    }

    fn prompts(accepted: &Accepted) -> Vec<String> {
        accepted.requests.iter().map(|request| request.body.get().to_owned()).collect()
    }

    #[test]
    fn schedule_is_read_without_a_look_at_the_data() {
        let rows = "[input]\nfile = 'in/{{ now | date(\"%Y\") }}/*.csv'\nprompt = '{{ text }}'\n";
        let policies = "catch_up = 'once'\noverlap = 'queue'\njitter = '24h'\n";
        let text = format!("{HEAD}{SCHEDULE}{policies}{rows}");
        let scheduled = read(&text).unwrap().unwrap();
        assert_eq!((scheduled.name.as_str(), scheduled.kind), ("nightly", Kind::Completions));
        assert_eq!((&scheduled.text, scheduled.findings.is_empty()), (&text, true));
        let schedule = scheduled.schedule;
        assert_eq!((schedule.catch_up, schedule.overlap), (CatchUp::Once, Overlap::Queue));
        let next = schedule.calendar.after(now()).unwrap();
        assert_eq!(schedule.calendar.shown(next), "2026-11-23T02:00:00+08:00");
        assert!(read(&format!("{HEAD}{rows}")).unwrap().is_none());
        let tuning = "kind = 'fine_tune'\nmodel = 'm'\n[fine_tune]\ntraining_file = 'file-1'\n";
        let tuning = format!("{tuning}validation_file = '{{{{ now }}}}.jsonl'\n{SCHEDULE}");
        assert_eq!(read(&tuning).unwrap().unwrap().kind, Kind::FineTune);
    }

    #[test]
    fn spec_with_a_schedule_is_read_by_its_runs_alone() {
        let text = format!("{HEAD}[[requests]]\nprompt = '{{{{ now }}}}'\n{SCHEDULE}");
        let trial = Trial::new().with("nightly.toml", text);
        let sinks = Sinks { index: &mut io::sink(), input: &mut io::sink(), data: &mut io::sink() };
        let read = spec::read(trial.source("nightly.toml"), &trial.settings, sinks);
        assert!(matches!(read, Err(Error::Scheduled)));
        // What is written out is no template.
        let accepted = trial.run("nightly.toml", now()).unwrap();
        assert_eq!(prompts(&accepted), [r#"{"model":"m","prompt":"{{ now }}"}"#]);
    }

    #[test]
    fn now_in_what_is_written_out_is_warned_about_once_and_at_its_place() {
        let warned = |prompt: &str| {
            let text =
                format!("{HEAD}[[requests]]\nprompt = 'a'\n[[requests]]\nprompt = {prompt}\n{SCHEDULE}");
            let scheduled = read(&text).unwrap().unwrap();
            assert_eq!(scheduled.findings.warnings(), scheduled.findings.diagnostics().len() as u64);
            scheduled.findings.to_string()
        };
        let warning = "nightly.toml:6:10: warning: `{{ now }}` in `[[requests]]` is sent as it stands: what is written \
                       out is no template\n  hint: templates are those of `[input]`, whose rows may be a file of one \
                       line\n";
        assert_eq!(warned("'It is {{ now }}, {{ now }}'"), warning);
        assert_eq!(warned("'{{- now | date(\"%F\") }}'"), warning);
        assert_eq!(warned("['b', '{{now}}']"), warning.replace(":6:10:", ":6:16:"));
        for literal in ["'{{ knowledge }} {{ nowhere }}'", "'now {{'", "'{{ a.now }}'"] {
            assert_eq!(warned(literal), "", "{literal}");
        }
    }

    #[test]
    fn now_is_the_time_of_the_run_on_the_clocks_of_its_zone() {
        let rows = "[input]\nfile = 'in/{{ now | date(\"%Y-%m-%d\", days=-1) }}.jsonl'\n\
                    custom_id = '{{ now | date(\"%d\") }}-{{ id }}'\nprompt = '{{ now }} {{ id }}'\n";
        let trial = Trial::new()
            .with("in/2026-11-20.jsonl", "{\"id\": 0}\n")
            .with("in/2026-11-21.jsonl", "{\"id\": 1}\n")
            .with("nightly.toml", format!("{HEAD}{rows}{SCHEDULE}"))
            .with("plain.toml", format!("{HEAD}{rows}"));
        let accepted = trial.run("nightly.toml", now()).unwrap();
        assert_eq!(accepted.requests[0].custom_id, "22-1");
        assert_eq!(prompts(&accepted), [r#"{"model":"m","prompt":"2026-11-22T02:00:00+08:00 1"}"#]);
        // Without a schedule, of the machine's.
        let accepted = trial.run("plain.toml", now()).unwrap();
        assert_eq!(prompts(&accepted), [r#"{"model":"m","prompt":"2026-11-21T18:00:00+00:00 0"}"#]);
    }

    #[test]
    fn field_called_now_goes_before_it() {
        let rows = "[input]\nfile = 'a.csv'\nprompt = '{{ now }}'\n";
        let trial = Trial::new().with("a.csv", "now\nnever\n");
        let trial = trial.with("nightly.toml", format!("{HEAD}{rows}{SCHEDULE}"));
        let accepted = trial.run("nightly.toml", now()).unwrap();
        assert_eq!(prompts(&accepted), [r#"{"model":"m","prompt":"never"}"#]);
        let rows = rows.replace("now }}", "now | date(\"%Y\") }}");
        let trial = trial.with("nightly.toml", format!("{HEAD}{rows}{SCHEDULE}"));
        assert_eq!(
            trial.run("nightly.toml", now()).unwrap_err(),
            "a.csv:2: error: the template in `prompt` failed: the filter `date` writes `now` alone, and no field of a \
             row\n"
        );
    }

    #[test]
    fn file_of_a_fine_tune_may_be_that_of_a_day() {
        let text = "kind = 'fine_tune'\nmodel = 'm'\n[fine_tune]\n\
                    training_file = '{{ now | date(\"%m%d\") }}.jsonl'\n";
        let chats = (0..10).fold(String::new(), |chats, n| {
            let user = format!(r#"{{"role":"user","content":"What is {n}?"}}"#);
            chats
                + &format!(r#"{{"messages":[{user},{{"role":"assistant","content":"It is {n}."}}]}}"#)
                + "\n"
        });
        let trial = Trial::new().with("1122.jsonl", chats).with("nightly.toml", format!("{text}{SCHEDULE}"));
        let accepted = trial.run("nightly.toml", now()).unwrap();
        assert_eq!(accepted.copies.0.len(), 1);
    }

    /// What is said of `file` and `prompt` as they are written on lines 7 and 8.
    fn refused(file: &str, prompt: &str) -> String {
        read(&format!("{HEAD}{SCHEDULE}[input]\nfile = {file}\nprompt = {prompt}\n")).unwrap_err()
    }

    #[test]
    fn what_is_wrong_with_a_template_is_told_at_its_place() {
        let unknown = "as in `{{ now | date('%Y-%m-%d') }}`; two braces themselves are `{{ \"{{\" }}`";
        let format = "formats are those of strftime, as in `{{ now | date('%Y-%m-%d') }}`";
        let field = "a field is inserted as `{{ name }}`";
        let unclosed = "unclosed `{{`: unexpected end of input, expected end of variable block";
        for (file, prompt, expected, hint) in [
            (
                "'{{ day }}.csv'",
                "''",
                "7:8: error: unknown variable `day` in `file`: there is only `now`".to_owned(),
                unknown,
            ),
            (
                "'{{ now | date(\"%Q\") }}.csv'",
                "''",
                "7:8: error: invalid template in `file`: `%Q` is no format of a date".to_owned(),
                format,
            ),
            ("'{{ now.csv'", "''", format!("7:8: error: invalid template in `file`: {unclosed}"), unknown),
            (
                "'a.csv'",
                "'{{ text }} {{ now | date(\"%\") }}'",
                "8:10: error: invalid template in `prompt`: `%` is no format of a date".to_owned(),
                format,
            ),
            (
                "'a.csv'",
                "'''\n\n{{ text | uper }}'''",
                "10: error: invalid template in `prompt`: filter uper is unknown".to_owned(),
                field,
            ),
        ] {
            assert_eq!(refused(file, prompt), format!("nightly.toml:{expected}\n  hint: {hint}\n"));
        }
    }

    #[test]
    fn path_that_no_data_can_put_right_is_refused_at_once() {
        let allowed =
            "data files lie beside the spec, below it, or below one of `[intake] input_dirs` of the config";
        for (file, expected, hint) in [
            ("'{{ \"..\" }}/a.csv'", "`../a.csv` leads out of its folder by `..`", allowed),
            ("'/{{ \"etc\" }}/a.csv'", "`/etc/a.csv` is not allowed", allowed),
            ("'{{ \"\" }}'", "the path is empty", allowed),
            ("'a.tsv'", "`a.tsv` is no kind of data file that fits", "expected .jsonl, .csv or .txt"),
        ] {
            let expected = format!("nightly.toml:7:8: error: `file`: {expected}\n  hint: {hint}\n");
            assert_eq!(refused(file, "''"), expected);
        }
        let tuning = "kind = 'fine_tune'\nmodel = 'm'\n[fine_tune]\ntraining_file = 'a.csv'\n";
        let report = read(&format!("{tuning}{SCHEDULE}")).unwrap_err();
        assert!(
            report.starts_with("nightly.toml:4:17: error: `training_file`: `a.csv` is no kind"),
            "{report}"
        );
    }

    #[test]
    fn jitter_is_a_day_at_most() {
        let late = format!("{HEAD}{SCHEDULE}jitter = '25h'\n[[requests]]\nprompt = 'a'\n");
        assert_eq!(
            read(&late).unwrap_err(),
            "nightly.toml:6:1: error: `jitter` is `1day 1h`, expected `0s` to `1day`\n"
        );
    }

    #[test]
    fn braces_of_a_name_can_be_written() {
        let spec = |name: &str| format!("{HEAD}[input]\nfile = '{name}'\nprompt = '{{{{ text }}}}'\n");
        let trial = Trial::new()
            .with("{{a}}.csv", "text\nx\n")
            .with("{%a}.csv", "text\ny\n")
            .with("a.toml", spec("{{ \"{{\" }}a}}.csv"))
            .with("b.toml", spec("{%a}.csv"));
        assert_eq!(prompts(&trial.read("a.toml").unwrap()), [r#"{"model":"m","prompt":"x"}"#]);
        assert_eq!(prompts(&trial.read("b.toml").unwrap()), [r#"{"model":"m","prompt":"y"}"#]);
    }
}
