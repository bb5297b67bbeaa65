//! What must hold of every spec, every data file and every line, whatever bytes they are made of: for
//! `crate::fuzzing`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::Path;

use rustix::fs::MemfdFlags;
use serde_json::Value;

use crate::diag::{Diagnostic, Report};
use crate::domain::{Job, JobId, Kind, LineEntry, QueueName, Request, Timestamp};
use crate::schedule::Calendar;
use crate::spec::rows::{self, DataForm};
use crate::spec::template::Templates;
use crate::spec::{
    Checked, Error, Form, ProviderFacts, Scheduled, Settings, Sinks, Source, custom_id, parse_fine_tune,
    parse_line, read, read_schedule,
};

/// Small, so that short inputs reach it.
const MAX_LINE: u64 = 4 * 1024;

/// Reads `spec` under the name `display`, one with a schedule as a run of it. What it says of it, accepted or not.
pub(crate) fn spec(display: &str, spec: &[u8], folder: &Path) -> Report {
    let settings = settings();
    match read_as(source(display, spec, folder), &settings, spec) {
        Ok(report) => report,
        Err(Error::Scheduled) => match read_schedule(&source(display, spec, folder), &settings) {
            Ok(scheduled) => {
                let Scheduled { schedule, findings, .. } = scheduled.expect("it was said to have a schedule");
                assert!(!findings.has_errors(), "accepted in spite of\n{findings}");
                assert!(schedule.calendar.after(Timestamp::default()).is_some());
                let run = Source { is_run: true, ..source(display, spec, folder) };
                read_as(run, &settings, spec).expect("a run is read to its end")
            }
            Err(Error::Rejected(report)) => report,
            Err(error) => unreachable!("{error}"),
        },
        Err(error) => unreachable!("nothing need rest, and memory is no disk: {error}"),
    }
}

fn settings() -> Settings {
    let provider = |name: &str, strict| ProviderFacts { name: name.to_owned(), strict };
    Settings {
        providers: vec![provider("openai", false), provider("local", true)],
        max_line: MAX_LINE,
        input_dirs: Vec::new(),
        zone: chrono_tz::UTC,
    }
}

fn source(display: &str, spec: &[u8], folder: &Path) -> Source {
    Source {
        form: Form::of(display).expect("targets name specs"),
        file: in_memory(spec).expect("memory can be written"),
        display: display.to_owned(),
        folder: folder.to_owned(),
        rest: None,
        now: Timestamp::from_millis(0),
        is_run: false,
    }
}

/// What is said of it, or why it was not read to its end.
fn read_as(source: Source, settings: &Settings, spec: &[u8]) -> Result<Report, Error> {
    let form = source.form;
    let (mut index, mut input) = (Vec::new(), Vec::new());
    match read(source, settings, Sinks { index: &mut index, input: &mut input, data: &mut io::sink() }) {
        Ok(checked) => {
            assert!(!checked.findings.has_errors(), "accepted in spite of\n{}", checked.findings);
            assert_eq!(input.is_empty(), form == Form::Jsonl, "a JSONL spec alone is its own input");
            accepted(&checked, &index, if form == Form::Jsonl { spec } else { &input });
            Ok(checked.findings)
        }
        Err(Error::Rejected(report)) => {
            assert!(report.has_errors(), "refused without a reason");
            Ok(report)
        }
        Err(error) => Err(error),
    }
}

fn in_memory(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("spec", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

/// The index of an accepted job leads to its lines, and each is the request that was accepted.
fn accepted(checked: &Checked, index: &[u8], input: &[u8]) {
    let job = Job {
        id: JobId::from_bytes([1; 16]),
        name: checked.name.clone(),
        kind: checked.kind,
        ending: checked.ending,
        spec_file: String::new(),
        accepted_at: Timestamp::default(),
        total: checked.total,
        queues: checked.queues.clone(),
        content_hash: checked.content_hash.clone(),
        settings: checked.settings.clone(),
        run: None,
    };
    assert!(job.total > 0 && job.queues.len() <= Job::QUEUES_MAX);
    assert_eq!(index.len(), job.total as usize * LineEntry::SIZE);
    if job.kind == Kind::FineTune {
        let plan =
            parse_fine_tune(&job, input.strip_suffix(b"\n").expect("a line"), 1).expect("it is a plan");
        assert_eq!((plan.custom_id.as_str(), job.total), (job.name.as_str(), 1));
        return;
    }
    let mut totals = vec![0; job.queues.len()];
    let mut ids = BTreeSet::new();
    let mut end = 0;
    for entry in index.as_chunks().0.iter().map(LineEntry::decode) {
        assert!(entry.offset >= end, "lines stand in their order");
        end = entry.offset + u64::from(entry.length);
        let request = read_again(&job, entry, input);
        let queue = usize::from(entry.queue);
        let named = QueueName::new("openai", request.model.as_deref());
        let local = QueueName::new("local", request.model.as_deref());
        assert!(job.queues.get(queue).is_some_and(|queue| *queue == named || *queue == local));
        totals.iter_mut().skip(queue).take(1).for_each(|total| *total += 1);
        assert!(ids.insert(request.custom_id), "every custom_id stands once");
    }
    assert_eq!(totals, checked.queue_totals);
}

fn read_again(job: &Job, entry: LineEntry, input: &[u8]) -> Request {
    let start = usize::try_from(entry.offset).expect("inputs are small");
    let line = input.get(start..start + entry.length as usize).expect("a line stands in its input");
    assert!(line.len() as u64 <= MAX_LINE && !line.contains(&b'\n'));
    let request = parse_line(job, line, entry.line).expect("what was accepted can be sent");
    assert_eq!(custom_id(job, line, entry.line).as_ref(), Ok(&request.custom_id));
    assert!(!request.custom_id.is_empty());
    let body = request.body.get();
    assert!(body.starts_with('{') && !body.contains('\n'), "a body is an object on one line: {body}");
    // What serde_json makes no value of (deep nesting, numbers beyond a float) is the server's to judge.
    if let (Ok(line), Ok(body)) = (serde_json::from_slice(line), serde_json::from_str(body)) {
        same(&line, &body, &request);
    }
    request
}

/// What is sent is what was written, save `metadata` where the endpoint has none.
fn same(line: &Value, body: &Value, request: &Request) {
    let written = line.get("body");
    let named = line.get("custom_id").or_else(|| line.pointer("/metadata/custom_id"));
    if let Some(named) = named {
        assert_eq!(named.as_str(), Some(request.custom_id.as_str()));
    }
    let mut expected = written.unwrap_or(line).clone();
    if let (None, None, Some(members)) = (written, body.get("metadata"), expected.as_object_mut()) {
        members.remove("metadata");
    }
    assert_eq!(*body, expected);
}

/// Reads `data` as a data file with this name and makes a text of each row. What it says of it.
pub(crate) fn rows(display: &str, data: &[u8]) -> Report {
    let mut templates = Templates::new(MAX_LINE);
    let template =
        templates.add("prompt", "{{ id }}{% if meta %}{{ meta.a }}{% endif %}: {{ text | upper }}");
    let template = template.expect("the template is a good one");
    let names = templates.variables();
    let form = DataForm::of(display).expect("targets name data files");
    let mut report = Report::default();
    let mut last = 0;
    let lines = 1 + memchr::memchr_iter(b'\n', data).count();
    rows::each(form, data, (display, MAX_LINE), &mut report, &mut |row, line, _| {
        assert!(last < line || (form == DataForm::Csv && last == line), "row on line {line} after {last}");
        assert!(line as usize <= lines, "row on line {line} of {lines}");
        last = line;
        let fields = row.fields(&names)?;
        let keys = || row.keys();
        match templates.render(template, &fields, &keys) {
            Ok(text) => assert!(text.len() as u64 <= MAX_LINE && text.contains(": ")),
            Err(failed) => assert!(!failed.always, "{}", failed.message),
        }
        Ok(())
    });
    report
}

/// What is wrong with `expression` as the `cron` of a schedule, as a diagnostic of a file that is it. Its times come
/// in their order.
pub(crate) fn schedule(expression: &str) -> Option<Diagnostic> {
    for zone in [chrono_tz::UTC, chrono_tz::Europe::Berlin, chrono_tz::Pacific::Apia] {
        let calendar = match Calendar::parse(expression, zone) {
            Ok(calendar) => calendar,
            Err(why) => return Some(Diagnostic::error("cron", 0, 0, why)),
        };
        // In summer time, before a day that is left out, at the end of time.
        for millis in [0, 1_325_200_000_000, 1_792_800_000_000, u64::MAX] {
            let mut at = Timestamp::from_millis(millis);
            for _ in 0..4 {
                let Some(next) = calendar.after(at) else { break };
                assert!(next > at, "{next} after {at}");
                at = next;
            }
        }
    }
    None
}
