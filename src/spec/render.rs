//! A TOML spec: its rows are rendered into batch lines, once, when the spec is read.
//!
//! Each rendered line goes through the same checks as a line of a JSONL spec; what is found stands at the row
//! that the line was made of.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

use crate::diag::{Diagnostic, Place, Report, Severity};
use crate::domain::{JobName, QueueName};
use crate::reading::objects;
use crate::reading::problem::{Problem, Spot, shown};
use crate::spec::document::{Document, Placed, quoted};
use crate::spec::files::{Files, Found, Written};
use crate::spec::fine_tune::Reading;
use crate::spec::ids::Visit;
use crate::spec::index::Index;
use crate::spec::jsonl::check_parameters;
use crate::spec::line::{self, Rules};
use crate::spec::requests::{Rendered, Requests};
use crate::spec::rows::DataForm;
use crate::spec::schema::{self, Spec};
use crate::spec::work::Work;
use crate::spec::{Checked, Error, Rest, Settings, Sinks, Source, name};

/// A larger spec is refused before it is parsed: TOML takes seventy times its size in memory.
const SPEC_BYTES_MAX: u64 = 1024 * 1024;
/// A piece of work large enough that a write costs nothing.
const BUFFER: usize = 64 * 1024;
/// Different findings about parameters that are told apart in a job whose lines are all made alike.
const FINDINGS_MAX: usize = 256;

/// See [`spec::read`](crate::spec::read).
pub(super) fn read(source: &Source, settings: &Settings, sinks: &mut Sinks<'_>) -> Result<Checked, Error> {
    let mut report = Report::default();
    let Some(text) = text(source, &mut report) else { return Err(rejected(report)) };
    let document = &Document::new(&source.display, text.strip_prefix('\u{feff}').unwrap_or(&text));
    let spec = schema::read(document, settings, source.now, &mut report);
    let name = named(spec.as_ref(), source, &mut report);
    let (Some(spec), Some(name)) = (spec, name) else { return Err(rejected(report)) };
    if spec.schedule.is_some() && !source.is_run {
        // Only one in which nothing is wrong is to be kept.
        return Err(if report.has_errors() { rejected(report) } else { Error::Scheduled });
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(text.as_bytes());
    if let Work::FineTune(tuning) = &spec.work {
        let reading = Reading { source, settings, document, spec: &spec, tuning, name };
        return reading.read(hasher, sinks, report);
    }
    let files = Files::new(&source.folder, &settings.input_dirs);
    let found = found(&spec, &files, document, &mut report);
    if report.has_errors() {
        return Err(rejected(report));
    }
    let before = rested(source.rest, &files, found.iter().map(|(found, _)| found))?;
    let requests = Requests { spec: &spec, document, files, found, max_line: settings.max_line };
    let mut writer = LineWriter::new(&mut *sinks.input, &spec);
    let mut index = Index::new(&mut *sinks.index, &spec.provider.name);
    requests.each(Some(&mut hasher), &mut report, &mut |rendered, report| {
        writer.take(rendered, &mut index, settings.max_line, report);
    });
    let again = &mut |wanted: &[u32], visit: Visit<'_>| requests.ids(wanted, visit);
    let indexed = index.finish(&mut report, again).map_err(Error::Sink)?;
    writer.finish().map_err(Error::Sink)?;
    is_unchanged(source.rest, &requests.files, requests.found.iter().map(|(found, _)| found), &before)?;
    if report.has_errors() {
        return Err(rejected(report));
    }
    report.sort();
    Ok(Checked {
        kind: spec.kind,
        name,
        ending: None,
        settings: spec.settings.clone(),
        queue_places: places(indexed.queue_places, &indexed.queues, &spec, document),
        queues: indexed.queues,
        queue_totals: indexed.queue_totals,
        total: indexed.total,
        content_hash: hasher.finalize().to_hex().to_string(),
        strict: spec.strict,
        fine_tune: None,
        findings: report,
    })
}

/// When each data file was last written; an error if one must rest yet.
pub(super) fn rested<'f>(
    rest: Option<Rest>,
    files: &Files,
    found: impl IntoIterator<Item = &'f Found>,
) -> Result<Vec<Option<Written>>, Error> {
    let mut all = Vec::new();
    for found in found {
        let written = files.written(found);
        if let (Some(rest), Some(written)) = (rest, written)
            && !rest.is_over(written.at)
        {
            return Err(Error::Unsettled { data: found.display.clone() });
        }
        all.push(written);
    }
    Ok(all)
}

/// An error if a data file that must rest was written to since: whatever was found in it, it is another by now.
pub(super) fn is_unchanged<'f>(
    rest: Option<Rest>,
    files: &Files,
    found: impl IntoIterator<Item = &'f Found>,
    before: &[Option<Written>],
) -> Result<(), Error> {
    for (number, found) in found.into_iter().enumerate() {
        if rest.is_some() && before.get(number) != Some(&files.written(found)) {
            return Err(Error::Unsettled { data: found.display.clone() });
        }
    }
    Ok(())
}

/// With its findings in the order of the file, whatever the order in which its keys are looked at.
pub(super) fn rejected(mut report: Report) -> Error {
    report.sort();
    Error::Rejected(report)
}

/// The spec's `name`, else that of its file.
pub(super) fn named(spec: Option<&Spec<'_>>, source: &Source, report: &mut Report) -> Option<JobName> {
    let own = spec.and_then(|spec| spec.name.clone());
    own.or_else(|| name::of_file(&source.display, report))
}

/// The spec's text, if it is small enough and UTF-8.
pub(super) fn text(source: &Source, report: &mut Report) -> Option<String> {
    let mut bytes = Vec::new();
    let mut file: &File = &source.file;
    let read =
        file.seek(SeekFrom::Start(0)).and_then(|_| file.take(SPEC_BYTES_MAX + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        report.push(objects::unreadable(&source.display, &error));
        return None;
    }
    if bytes.len() as u64 > SPEC_BYTES_MAX {
        let found = Diagnostic::error(&source.display, 0, 0, "the spec is larger than 1 MiB");
        report.push(found.hint("put the data into a file of its own and name it in `[input]`"));
        return None;
    }
    match String::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes());
            let found = Document::new(&source.display, &text).error(valid, "invalid UTF-8");
            report.push(found.hint("save the file as UTF-8"));
            None
        }
    }
}

/// The spec's data files with how each is read.
fn found(
    spec: &Spec<'_>,
    files: &Files,
    document: &Document<'_>,
    report: &mut Report,
) -> Vec<(Found, DataForm)> {
    let (path, lines) = match &spec.work {
        Work::Rows { path, .. } => (path, false),
        Work::Lines { path } => (path, true),
        Work::Inline(_) | Work::FineTune(_) => return Vec::new(),
    };
    let Placed { value, offset } = path;
    let found = match files.find(value) {
        Ok(found) => found,
        Err(refused) => {
            let mut error = document.error(*offset, format!("`file`: {}", refused.message));
            error.hint = refused.hint;
            report.push(error);
            return Vec::new();
        }
    };
    let mut forms = Vec::new();
    for file in found {
        match DataForm::of(&file.display) {
            Some(form) if !lines || form == DataForm::Jsonl => forms.push((file, form)),
            Some(_) => {
                let message = format!("{} is no .jsonl, as kind `requests` needs", shown(&file.display));
                report.push(document.error(*offset, message));
            }
            None => {
                let message = format!("{} is no kind of data file that is known", shown(&file.display));
                report.push(document.error(*offset, message).hint("expected .jsonl, .csv or .txt"));
            }
        }
    }
    forms
}

/// Where each queue's model is named: in the spec, if it is the model at its top.
fn places(
    mut places: Vec<Place>,
    queues: &[QueueName],
    spec: &Spec<'_>,
    document: &Document<'_>,
) -> Vec<Place> {
    let named = spec.model.as_deref().and_then(|json| serde_json::from_str::<String>(json).ok());
    if let (Some(named), Some(at)) = (named, spec.model_at)
        && let Some(number) = queues.iter().position(|queue| queue.model() == Some(named.as_str()))
        && let Some(place) = places.get_mut(number)
    {
        let (line, column) = document.place(at);
        *place = Place { file: document.file.to_owned(), line, column };
    }
    places
}

/// Checks made requests and writes them as batch lines.
struct LineWriter<'w> {
    sink: BufWriter<&'w mut dyn Write>,
    strict: bool,
    offset: u64,
    number: u32,
    line: String,
    /// What was said about parameters: as all bodies are made alike, once is enough.
    told: BTreeSet<String>,
    failed: Option<io::Error>,
}

impl<'w> LineWriter<'w> {
    fn new(sink: &'w mut dyn Write, spec: &Spec<'_>) -> Self {
        Self {
            sink: BufWriter::with_capacity(BUFFER, sink),
            strict: spec.strict,
            offset: 0,
            number: 0,
            line: String::new(),
            told: BTreeSet::new(),
            failed: None,
        }
    }

    fn take(&mut self, rendered: Rendered<'_>, index: &mut Index<'_>, max: u64, report: &mut Report) {
        let Rendered { ordinal, custom_id, endpoint, body, spot } = rendered;
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        line.push_str("{\"custom_id\":");
        line.push_str(&quoted(custom_id));
        line.push_str(",\"method\":\"POST\",\"url\":\"");
        line.push_str(endpoint.url());
        line.push_str("\",\"body\":");
        line.push_str(body);
        line.push('}');
        self.number = self.number.saturating_add(1);
        let whole = Spot { text: None, ..spot };
        if line.len() as u64 > max {
            let message = format!("the request has {} bytes, which is over the bound", line.len());
            report.push(Diagnostic::error(spot.file, spot.line, 0, message).hint(objects::MAX_LINE_HINT));
        } else {
            self.check(&line, (ordinal, whole), index, report);
        }
        line.push('\n');
        if !report.has_errors() && self.failed.is_none() {
            self.failed = self.sink.write_all(line.as_bytes()).err();
        }
        self.offset += line.len() as u64;
        self.line = line;
    }

    fn check(
        &mut self,
        line: &str,
        (ordinal, spot): (u32, Spot<'_>),
        index: &mut Index<'_>,
        report: &mut Report,
    ) {
        let rules = Rules { number: self.number, ..Rules::default() };
        let request = match line::read(line, rules, &mut |problem| report.push(problem.at(spot))) {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(syntax) => return report.push(Problem::from(syntax).at(spot)),
        };
        let told = &mut self.told;
        check_parameters(&request, self.strict, &mut |problem| {
            let known = told.contains(&problem.message);
            if known && problem.severity == Severity::Warning {
                return;
            }
            if told.len() < FINDINGS_MAX {
                told.insert(problem.message.clone());
            }
            report.push(problem.at(spot));
        });
        index.push(&request, ordinal, (self.offset, line.len(), self.number), spot, report);
    }

    fn finish(mut self) -> io::Result<()> {
        match self.failed.take() {
            Some(error) => Err(error),
            None => self.sink.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::time::Duration;

    use super::*;
    use crate::domain::{Kind, OnUncertain, Order};
    use crate::spec::trial::Trial;

    /// Grows the data file while what was made of it is written.
    struct Growing(File);

    impl Write for Growing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write_all(b"one more\n")?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn data_that_is_written_to_while_it_is_read_is_refused() {
        let spec = "kind = 'completions'\nmodel = 'm'\n[input]\nfile = 'a.txt'\n";
        let trial = Trial::new().with("job.toml", spec).with("a.txt", "a row\n".repeat(10_000));
        let data = OpenOptions::new().append(true).open(trial.path().join("a.txt")).unwrap();
        let (mut index, mut input) = (Vec::new(), Growing(data));
        let sinks = &mut Sinks { index: &mut index, input: &mut input, data: &mut io::sink() };
        let error = read(&trial.source("job.toml"), &trial.settings, sinks).unwrap_err().to_string();
        assert!(error.starts_with("a.txt: error: the file was written to while it was read"), "{error}");
    }

    fn bodies(trial: &Trial, spec: &str) -> Vec<(String, String)> {
        let accepted = trial.read(spec).unwrap();
        accepted.requests.into_iter().map(|r| (r.custom_id, r.body.get().to_owned())).collect()
    }

    fn owned<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
        pairs.map(|(id, body)| (id.to_owned(), body.to_owned())).to_vec()
    }

    const CHAT: &str = r#"
kind = "chat"
name = "nightly"
model = "m"
priority = 9
deadline = "6h"
on_uncertain = "hold"

[parameters]
temperature = 0
top_p = 0.5
stop = ["a", "b"]

[input]
file = "inputs/articles.jsonl"
custom_id = "{{ id }}"
messages = [
  { role = "system", content = "Be brief." },
  { role = "user", content = "{{ text }}" },
]

[output]
order = "completion"

[retry]
max_attempts = 3
base_delay = "500ms"
"#;

    #[test]
    fn rows_become_batch_lines() {
        let trial = Trial::new().with("a.toml", CHAT).with(
            "inputs/articles.jsonl",
            "{\"id\": 1, \"text\": \"say \\\"é\\\"\"}\n\n{\"id\": \"b\", \"text\": \"<x>\", \"more\": []}\n",
        );
        let accepted = trial.read("a.toml").unwrap();
        let head = r#"{"model":"m","temperature":0,"top_p":0.5,"stop":["a","b"],"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"#;
        let line = |id: &str, text: &str| {
            format!(
                r#"{{"custom_id":"{id}","method":"POST","url":"/v1/chat/completions","body":{head}{text}}}]}}}}"#
            )
        };
        assert_eq!(accepted.input, format!("{}\n{}\n", line("1", r#""say \"é\"""#), line("b", "\"<x>\"")));
        let checked = accepted.checked;
        assert_eq!((checked.kind, checked.name.as_str(), checked.ending), (Kind::Chat, "nightly", None));
        assert_eq!((checked.settings.priority, checked.settings.order), (9, Order::Completion));
        assert_eq!(checked.settings.deadline, Some(Duration::from_hours(6)));
        assert_eq!(checked.settings.on_uncertain, Some(OnUncertain::Hold));
        assert_eq!(checked.settings.retry.max_attempts, Some(3));
        assert_eq!(checked.settings.retry.base_delay, Some(Duration::from_millis(500)));
        assert_eq!(checked.queues.iter().map(ToString::to_string).collect::<Vec<_>>(), ["openai/m"]);
    }

    #[test]
    fn texts_records_and_globs_are_rows_too() {
        let prompt = "kind = \"completions\"\nmodel = \"m\"\n[input]\nfile = \"in/*.txt\"\n";
        let trial = Trial::new()
            .with("t.toml", prompt)
            .with("in/b.txt", "three\r\n")
            .with("in/a.txt", "one\n\ntwo")
            .with("c.toml", "kind = \"images\"\nprovider = \"local\"\n[input]\nfile = \"c.csv\"\ncustom_id = \"{{name}}\"\nprompt = \"A {{ what }}\\n\"\n")
            .with("c.csv", "name,what\nx,\"cat, \"\"wild\"\"\nred\"\n")
            .with("e.toml", "kind = \"embeddings\"\nmodel = \"m\"\n[input]\nfile = \"in/b.txt\"\ninput = [\"{{ text }}\", \"x\"]\n");
        assert_eq!(
            bodies(&trial, "t.toml"),
            owned([
                ("row-1", r#"{"model":"m","prompt":"one"}"#),
                ("row-2", r#"{"model":"m","prompt":"two"}"#),
                ("row-3", r#"{"model":"m","prompt":"three"}"#),
            ])
        );
        assert_eq!(bodies(&trial, "c.toml"), owned([("x", r#"{"prompt":"A cat, \"wild\"\nred\n"}"#)]));
        assert_eq!(bodies(&trial, "e.toml"), owned([("row-1", r#"{"model":"m","input":["three","x"]}"#)]));
        assert_eq!(trial.read("c.toml").unwrap().checked.queues[0].to_string(), "local/-");
    }

    #[test]
    fn requests_written_out_keep_their_own_members() {
        let spec = r#"
kind = "chat"
model = "m"
parameters = { temperature = 1e0, seed = 0x10, user = "u" }
[[requests]]
custom_id = "a"
messages = [{ role = "user", content = "{{ as it is }}" }]
temperature = 0.1
[[requests]]
model = "n"
messages = []
"#;
        let trial = Trial::new().with("a.toml", spec);
        assert_eq!(
            bodies(&trial, "a.toml"),
            owned([
                (
                    "a",
                    r#"{"model":"m","seed":16,"user":"u","messages":[{"role":"user","content":"{{ as it is }}"}],"temperature":0.1}"#
                ),
                ("request-2", r#"{"model":"n","temperature":1e0,"seed":16,"user":"u","messages":[]}"#),
            ])
        );
    }

    #[test]
    fn a_file_of_batch_lines_runs_with_the_jobs_settings() {
        let lines = concat!(
            r#"{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"x","messages":[],"n":2}}"#,
            "\n\n",
            r#"{"input":"t","metadata":{"k":"v"}}"#,
            "\n",
        );
        let plain = "kind = \"requests\"\npriority = 1\n[input]\nfile = \"l.jsonl\"\n";
        let more =
            "kind = \"requests\"\nmodel = \"m\"\nparameters = { n = 1 }\n[input]\nfile = \"l.jsonl\"\n";
        let trial = Trial::new().with("l.jsonl", lines).with("p.toml", plain).with("m.toml", more);
        let report = trial.refused("p.toml");
        assert!(report.contains("l.jsonl:3:1: error: missing `model`"), "{report}");
        assert_eq!(
            bodies(&trial, "m.toml"),
            owned([
                ("a", r#"{"model":"x","messages":[],"n":2}"#),
                ("line-3", r#"{"model":"m","n":1,"input":"t"}"#),
            ])
        );
    }

    #[test]
    fn what_is_wrong_in_a_spec_is_named_with_its_place() {
        let rows = "[input]\nfile = \"r.jsonl\"\n";
        let chat = "kind = \"chat\"\nmodel = \"m\"\n";
        let messages = "messages = [{ role = \"user\", content = \"{{ text }}\" }]\n";
        for (spec, expected) in [
            (format!("{chat}priorty = 3\n{rows}{messages}"), "a.toml:3:1: error: unknown key `priorty`\n  hint: did you mean `priority`?"),
            (format!("{chat}zzz = 3\n{rows}{messages}"), "unknown key `zzz`\n  hint: known are `kind`, `name`, "),
            (format!("{chat}max_tokens = 3\n{rows}{messages}"), "a.toml:3:1: error: unknown key `max_tokens`\n  hint: `max_tokens` is a parameter of the request: put it under `[parameters]`"),
            (format!("{chat}priority = 10\n{rows}{messages}"), "a.toml:3:12: error: `priority` is 10, expected an integer from 0 to 9"),
            (format!("{chat}priority = \"5\"\n{rows}{messages}"), "a.toml:3:12: error: `priority` is a string"),
            (format!("{chat}deadline = \"soon\"\n{rows}{messages}"), "a.toml:3:12: error: `deadline` is `soon`, expected a duration"),
            (format!("{chat}provider = \"opneai\"\n{rows}{messages}"), "unknown provider `opneai`\n  hint: did you mean `openai`?"),
            (format!("{chat}name = \"a/b\"\n{rows}{messages}"), "a.toml:3:8: error: `name` is `a/b`"),
            (format!("{chat}on_uncertain = \"maybe\"\n{rows}{messages}"), "unknown on_uncertain `maybe`"),
            (format!("{chat}{rows}{messages}[output]\norder = \"inptu\"\n"), "did you mean `input`?"),
            (format!("{chat}{rows}{messages}[retry]\nmax_attempts = 0\n"), "a.toml:7:16: error: `max_attempts` is 0"),
            (format!("{chat}{rows}{messages}[retry]\nbase_delay = \"0s\"\n"), "a.toml:7:1: error: `base_delay` is `0s`, expected `1ms` to `1h`"),
            (format!("{chat}{rows}{messages}[retry]\nmax_attempts = 1001\n"), "`max_attempts` is 1001, expected an integer from 1 to 1000"),
            ("kind = \"chta\"\n".to_owned(), "a.toml:1:8: error: unknown kind `chta`\n  hint: did you mean `chat`?"),
            ("name = \"x\"\n".to_owned(), "a.toml: error: missing `kind`"),
            (chat.to_owned(), "a.toml: error: no requests"),
            (format!("{chat}{rows}prompt = \"x\"\n{messages}"), "a.toml:5:1: error: `prompt` does not fit kind `chat`\n  hint: kind `chat` takes `messages`"),
            (format!("{chat}{rows}"), "missing `messages` in [input]"),
            (format!("{chat}{rows}messages = \"x\"\n"), "a.toml:5:12: error: `messages` is a string, expected an array of tables"),
            (format!("kind = \"chat\"\n{rows}{messages}"), "a.toml: error: missing `model`, which kind `chat` needs"),
            (format!("{chat}{rows}{messages}[[requests]]\nx = 1\n"), "both `[input]` and `[[requests]]`"),
            (format!("{chat}[input]\nfile = \"none.jsonl\"\n{messages}"), "a.toml:4:8: error: `file`: there is no file `none.jsonl`"),
            (format!("{chat}[input]\nfile = \"*.jsnl\"\n{messages}"), "no file matches `*.jsnl`"),
            (format!("{chat}[input]\nfile = \"../r.jsonl\"\n{messages}"), "leads out of its folder"),
            (format!("{chat}[input]\nfile = \"a.toml\"\n{messages}"), "no kind of data file"),
            (format!("{chat}[input]\nfile = \"empty.jsonl\"\n{messages}"), "empty.jsonl: error: the file has no rows"),
            (format!("{chat}{rows}messages = [{{ role = \"user\", content = \"{{{{ text\" }}]\n"), "a.toml:5:40: error: invalid template in `messages`: unclosed `{{`"),
            (format!("{chat}{rows}custom_id = \"\"\"\n{{{{ a\"\"\"\n{messages}"), "a.toml:6: error: invalid template in `custom_id`: unclosed `{{`"),
            (format!("{chat}{rows}custom_id = \"\"\"\nx\n{{{{ a\"\"\"\n{messages}"), "a.toml:7: error: invalid template in `custom_id`: unclosed `{{`"),
            (format!("{chat}{rows}messages = [{{ role = \"user\", content = \"{{{{ txt }}}}\" }}]\n"), "r.jsonl:1: error: unknown variable `txt` in `messages`\n  hint: did you mean `text`?"),
            (format!("{chat}{rows}{messages}custom_id = \"same\"\n"), "r.jsonl:2: error: duplicate custom_id `same`, first used on line 1"),
            (format!("{chat}{rows}{messages}custom_id = \"{{{{ empty }}}}\"\n"), "r.jsonl:1: error: `custom_id` is empty"),
            (format!("{chat}when = 2026-01-01\n{rows}{messages}"), "unknown key `when`"),
            (format!("{chat}parameters = {{ a = 2026-01-01 }}\n{rows}{messages}"), "a.toml:3:20: error: JSON has no dates"),
            (format!("{chat}parameters = {{ a = nan }}\n{rows}{messages}"), "`nan` has no form in JSON"),
            (format!("{chat}parameters = {{ stream = true }}\n{rows}{messages}"), "r.jsonl:1: error: `stream` is true"),
            (format!("{chat}stream = \"yes\"\n{rows}{messages}"), "a.toml:3:10: error: `stream` is a string, expected true or false"),
            ("kind = \"embeddings\"\nmodel = \"m\"\nstream = true\n[[requests]]\ninput = \"a\"\n".to_owned(), "a.toml:3:1: error: `stream` is true, but only answers to `chat` and `completions` can come as streams\n  hint: remove `stream`"),
            ("kind = chat\n".to_owned(), "a.toml:1:8: error: invalid TOML: "),
            ("kind = \"chat\"\nkind = \"images\"\n".to_owned(), "a.toml:2:1: error: invalid TOML: duplicate key"),
            (format!("{chat}{rows}{messages}[schedule]\ncron = \"0 2 * *\"\ntimezone = \"Asia/Shangai\"\n"), "a.toml:7:8: error: bad cron expression `0 2 * *`: 4 fields"),
            (format!("{chat}{rows}{messages}[schedule]\ncron = \"0 2 * * *\"\ntimezone = \"Asia/Shangai\"\n"), "unknown time zone `Asia/Shangai`\n  hint: did you mean `Asia/Shanghai`?"),
            ("kind = \"chat\"\nmodel = \"job:a/b\"\n[[requests]]\nmessages = []\n".to_owned(), "model `job:a/b` names no fine-tune: the name holds '/'"),
            ("kind = \"chat\"\nmodel = \"m\"\n[[requests]]\ncustom_id = 1\n".to_owned(), "a.toml:4:13: error: `custom_id` is an integer, expected a string"),
            ("kind = \"chat\"\nmodel = \"m\"\n[[requests]]\ncustom_id = \"a\"\n[[requests]]\ncustom_id = \"a\"\n".to_owned(), "a.toml:5: error: duplicate custom_id `a`, first used on line 3"),
        ] {
            let trial = Trial::new()
                .with("a.toml", &spec)
                .with("empty.jsonl", "\n")
                .with("r.jsonl", "{\"text\": \"x\", \"empty\": \"\"}\n{\"text\": \"y\", \"empty\": \"\"}\n");
            let report = trial.refused("a.toml");
            assert!(report.contains(expected), "{spec}\n{report}");
        }
    }

    #[test]
    fn all_problems_of_a_spec_are_told_at_once_in_the_order_of_its_lines() {
        let spec =
            "kind = \"chat\"\nmodel = 7\nfoobar = 1\nname = 2\n[input]\nfile = \"none.txt\"\nmessages = []\n";
        let report = Trial::new().with("a.toml", spec).refused("a.toml");
        let errors: Vec<&str> = report.lines().filter(|line| line.contains("error")).collect();
        let expected = [
            "a.toml:2:9: error: `model` is an integer",
            "a.toml:3:1: error: unknown key `foobar`",
            "a.toml:4:8: error: `name` is an integer",
            "a.toml:6:8: error: `file`: there is no file",
        ];
        for (number, expected) in expected.iter().enumerate() {
            assert!(errors[number].starts_with(expected), "{report}");
        }
        assert_eq!(report.matches("`kind`").count(), 1, "a known key is named once: {report}");
    }

    #[test]
    fn a_spec_over_its_bound_is_not_parsed() {
        let spec = format!("kind = \"chat\"\n# {}", "x".repeat(1 << 20));
        let report = Trial::new().with("a.toml", spec).refused("a.toml");
        assert!(report.starts_with("a.toml: error: the spec is larger than 1 MiB"), "{report}");
        let report = Trial::new().with("a.toml", b"kind = \"\xff\"\n").refused("a.toml");
        assert!(report.starts_with("a.toml:1:9: error: invalid UTF-8"), "{report}");
    }

    #[test]
    fn a_request_over_the_bound_is_refused_at_its_row() {
        let spec = "kind = \"completions\"\nmodel = \"m\"\n[input]\nfile = \"a.txt\"\nprompt = \"{{ text * 16380 }}\"\n";
        let trial = Trial::new().with("a.toml", spec).with("a.txt", "x\nlong\n");
        let report = trial.refused("a.toml");
        assert!(report.starts_with("a.txt:1: error: the request has"), "{report}");
        assert!(
            report.contains("a.txt:2: error: the template in `prompt` failed: it makes more than"),
            "{report}"
        );
    }

    #[test]
    fn the_hash_covers_the_data() {
        let spec = "kind = \"completions\"\nmodel = \"m\"\n[input]\nfile = \"a.txt\"\n";
        let hash = |text: &str| {
            let trial = Trial::new().with("a.toml", spec).with("a.txt", text);
            trial.read("a.toml").unwrap().checked.content_hash
        };
        assert_eq!(hash("x\n"), hash("x\n"));
        assert_ne!(hash("x\n"), hash("x\ny\n"));
    }
}
