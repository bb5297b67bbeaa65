//! A JSONL spec: every line is a request, and the file itself is the job's input.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use crate::diag::{Diagnostic, Place, Report, Severity};
use crate::domain::{JobSettings, Kind};
use crate::reading::lines::{Hashing, Lines};
use crate::reading::objects::{self, Object};
use crate::reading::problem::{Problem, Spot};
use crate::spec::ids::Visit;
use crate::spec::index::Index;
use crate::spec::line::{self, Body, Parsed, Rules};
use crate::spec::{Checked, Error, Settings, Sinks, Source, name, params};

/// Parameters of a longer body are not looked at: it is data, and the server judges it.
pub(super) const CHECKED_BODY_BYTES_MAX: usize = 1024 * 1024;

/// See [`spec::read`](crate::spec::read).
pub(super) fn read(mut source: Source, settings: &Settings, sinks: &mut Sinks<'_>) -> Result<Checked, Error> {
    let mut report = Report::default();
    let ending = name::ending(&source.display);
    let job_name = name::of_file(&source.display, &mut report);
    let Some(provider) = settings.providers.first() else {
        report.push(Diagnostic::error(&source.display, 0, 0, "no provider is configured"));
        return Err(Error::Rejected(report));
    };
    let mut index = Index::new(&mut *sinks.index, &provider.name);
    let mut hasher = blake3::Hasher::new();
    if let Err(error) = source.file.seek(SeekFrom::Start(0)) {
        report.push(objects::unreadable(&source.display, &error));
        return Err(Error::Rejected(report));
    }
    let mut lines = Lines::new(Hashing { input: &source.file, hasher: &mut hasher }, settings.max_line);
    let file = source.display.as_str();
    objects::each(&mut lines, file, &mut report, &mut |object, report| {
        let spot = Spot { file, line: object.number, text: Some(object.text) };
        let rules = Rules { ending, number: object.number, has_model: false };
        let request = line::read(object.text, rules, &mut |problem| report.push(problem.at(spot)))?;
        if let Some(request) = request {
            check_parameters(&request, provider.strict, &mut |problem| report.push(problem.at(spot)));
            let place = (object.offset, object.text.len(), object.number);
            index.push(&request, object.number, place, spot, report);
        } else if let Some((id, _)) = line::id_of_refused(object.text) {
            index.note_id(&id, object.number);
        }
        Ok(())
    });
    if index.total() == 0 && !report.has_errors() {
        let found = Diagnostic::error(file, 0, 0, "the file holds no request");
        report.push(found.hint("expected one JSON object a line"));
    }
    let again =
        |wanted: &[u32], visit: Visit<'_>| read_ids(&source, settings.max_line, ending, wanted, visit);
    let indexed = index.finish(&mut report, &mut { again }).map_err(Error::Sink)?;
    report.sort();
    let Some(name) = job_name.filter(|_| !report.has_errors()) else { return Err(Error::Rejected(report)) };
    Ok(Checked {
        kind: Kind::Requests,
        name,
        ending,
        settings: JobSettings::default(),
        queues: indexed.queues,
        queue_totals: indexed.queue_totals,
        queue_places: indexed.queue_places,
        total: indexed.total,
        content_hash: hasher.finalize().to_hex().to_string(),
        strict: provider.strict,
        fine_tune: None,
        findings: report,
    })
}

/// Tells what the API would say about the request's parameters: warnings, or errors if `strict`.
pub(super) fn check_parameters(request: &Parsed<'_>, strict: bool, found: &mut dyn FnMut(Problem)) {
    let body = request.body.text();
    if body.len() > CHECKED_BODY_BYTES_MAX {
        return;
    }
    let whole = matches!(request.body, Body::Whole(_));
    params::check(request.endpoint, body, &mut |finding| {
        // Of a body that we cut, places are not those of the line.
        let offset = request.body_offset + if whole { finding.offset } else { 0 };
        let severity = if strict { Severity::Error } else { Severity::Warning };
        let (message, hint) = (finding.message, finding.hint);
        found(Problem { severity, offset: Some(offset), message, hint });
    });
}

/// Reads the ids of the lines `wanted` again.
fn read_ids(source: &Source, max_line: u64, ending: Option<Kind>, wanted: &[u32], visit: Visit<'_>) {
    let mut file: &File = &source.file;
    if wanted.is_empty() || file.seek(SeekFrom::Start(0)).is_err() {
        return;
    }
    let mut lines = Lines::new(file, max_line);
    let mut left = wanted.iter().copied().peekable();
    while let (Some(number), Ok(Some(line))) = (left.peek().copied(), lines.next()) {
        if line.number != number {
            continue;
        }
        left.next();
        let Ok(text) = std::str::from_utf8(line.bytes) else { continue };
        let object = Object { text, offset: line.offset, number };
        let rules = Rules { ending, number, has_model: true };
        let read = line::read(object.text, rules, &mut |_| {}).ok().flatten();
        let id = read.map(|request| (request.custom_id.to_string(), request.custom_id_offset));
        let id = id.or_else(|| line::id_of_refused(text).map(|(id, offset)| (id, Some(offset))));
        if let Some((id, offset)) = id {
            let column = offset.map_or(0, |offset| crate::reading::json::column(text, offset));
            let place = Place { file: source.display.clone(), line: number, column };
            visit(number, &id, place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::domain::{Endpoint, Job};
    use crate::spec::trial::{Trial, jsonl};

    fn batch(id: &str, model: &str) -> String {
        format!(
            r#"{{"custom_id": "{id}", "method": "POST", "url": "/v1/chat/completions", "body": {{"model": "{model}", "messages": [{{"role": "user", "content": "x"}}]}}}}"#
        )
    }

    #[test]
    fn both_forms_are_told_apart_line_by_line() {
        let text = format!(
            "\u{feff}{}\r\n\r\n{}\n{}\n   \n{}",
            batch("a", "m1"),
            r#"{"model": "m2", "input": "x", "metadata": {"custom_id": "b", "row": 1}, "z": 1.50}"#,
            r#" {"model": "m1", "messages": [{"role": "user", "content": "x"}], "metadata": {"custom_id": "c"}} "#,
            r#"{"metadata":{"row_id": 1},"model":"m2","prompt":"é"}"#,
        );
        let accepted = jsonl("mixed.jsonl", text).unwrap();
        let seen: Vec<_> =
            accepted.requests.iter().map(|r| (r.custom_id.as_str(), r.endpoint, r.body.get())).collect();
        assert_eq!(
            seen,
            [
                (
                    "a",
                    Endpoint::ChatCompletions,
                    r#"{"model": "m1", "messages": [{"role": "user", "content": "x"}]}"#
                ),
                ("b", Endpoint::Embeddings, r#"{"model": "m2", "input": "x", "z": 1.50}"#),
                (
                    "c",
                    Endpoint::ChatCompletions,
                    r#"{"model": "m1", "messages": [{"role": "user", "content": "x"}], "metadata": {"custom_id": "c"}}"#
                ),
                ("line-6", Endpoint::Completions, r#"{"model":"m2","prompt":"é"}"#),
            ]
        );
        let lines: Vec<_> = accepted.entries.iter().map(|entry| (entry.line, entry.queue)).collect();
        assert_eq!(lines, [(1, 0), (3, 1), (4, 0), (6, 1)]);
        let checked = accepted.checked;
        assert_eq!((checked.kind, checked.name.as_str(), checked.ending), (Kind::Requests, "mixed", None));
        assert_eq!(
            checked.queues.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["openai/m1", "openai/m2"]
        );
        assert_eq!(checked.queue_totals, [2, 2]);
        assert!(checked.findings.is_empty(), "{}", checked.findings);
    }

    #[test]
    fn the_ending_decides_where_a_body_is_ambiguous() {
        for (name, body, endpoint) in [
            ("a.images.jsonl", r#"{"prompt": "a cat"}"#, Endpoint::Images),
            ("a.jsonl", r#"{"model": "m", "prompt": "a cat"}"#, Endpoint::Completions),
            ("a.responses.jsonl", r#"{"model": "m", "input": "x"}"#, Endpoint::Responses),
            ("a.moderations.jsonl", r#"{"input": "x"}"#, Endpoint::Moderations),
            ("a.embeddings.jsonl", r#"{"model": "m", "input": "x"}"#, Endpoint::Embeddings),
            (
                "a.chat.jsonl",
                r#"{"model": "m", "messages": [{"role": "user", "content": "x"}], "prompt": 1}"#,
                Endpoint::ChatCompletions,
            ),
            (
                "a.images.jsonl",
                r#"{"model": "m", "messages": [{"role": "user", "content": "x"}]}"#,
                Endpoint::ChatCompletions,
            ),
        ] {
            let accepted = jsonl(name, body).unwrap();
            assert_eq!(accepted.requests[0].endpoint, endpoint, "{name} {body}");
            assert_eq!(accepted.checked.name.as_str(), "a");
        }
    }

    #[test]
    fn metadata_goes_where_the_endpoint_has_none() {
        for (body, rest) in [
            (r#"{"metadata": {"custom_id":"x"}, "input": 1, "model":"m"}"#, r#"{"input": 1, "model":"m"}"#),
            (
                r#"{"input": 1 , "metadata" : {"custom_id":"x"} , "model":"m"}"#,
                r#"{"input": 1 , "model":"m"}"#,
            ),
            (
                r#"{"input": 1, "model":"m" , "meta\u0064ata": {"custom_id":"x"} }"#,
                r#"{"input": 1, "model":"m"  }"#,
            ),
        ] {
            let accepted = jsonl("a.jsonl", body).unwrap();
            assert_eq!(accepted.requests[0].body.get(), rest);
            assert_eq!(accepted.requests[0].custom_id, "x");
        }
    }

    #[test]
    fn what_can_be_no_request_is_refused_with_its_place() {
        let good = r#""custom_id":"a","url":"/v1/chat/completions""#;
        for (line, expected) in [
            (r#"{"custom_id":"a","#.to_owned(), "a.jsonl:1:17: error: invalid JSON: EOF while parsing"),
            (r#"{"custom_id":"a" "b"}"#.to_owned(), "a.jsonl:1:18: error: invalid JSON: expected `,` or `}`"),
            ("hello".to_owned(), "a.jsonl:1:1: error: invalid JSON: expected value"),
            ("7".to_owned(), "a.jsonl:1:1: error: expected a JSON object, found a number"),
            (
                r#"{"url":"/v1/embeddings","body":{"model":"m"}}"#.to_owned(),
                "a.jsonl:1:1: error: missing `custom_id`",
            ),
            (r#"{"custom_id":"a","body":{}}"#.to_owned(), "a.jsonl:1:1: error: missing `url`"),
            (format!("{{{good}}}"), "a.jsonl:1:1: error: missing `body`"),
            (
                format!(r#"{{{good},"body":[]}}"#),
                "a.jsonl:1:54: error: `body` is an array, expected an object",
            ),
            (
                format!(r#"{{{good},"method":"GET","body":{{"model":"m"}}}}"#),
                "1:56: error: method `GET`, expected `POST`",
            ),
            (
                format!(r#"{{{good},"body":{{"model":"m","stream":true}}}}"#),
                "1:76: error: `stream` is true, but a batch has no one to stream to\n  hint: remove it; to have batchd stream,",
            ),
            (format!(r#"{{{good},"body":{{"messages":[]}}}}"#), "1:54: error: missing `model`"),
            (format!(r#"{{{good},"body":{{"model":7}}}}"#), "1:63: error: `model` is a number"),
            (format!(r#"{{{good},"body":{{"model":""}}}}"#), "1:63: error: `model` is empty"),
            (
                format!(r#"{{{good},"body":{{"model":"job:"}}}}"#),
                "1:63: error: model `job:` names no fine-tune: the name is empty",
            ),
            (
                format!(r#"{{{good},"body":{{"model":"m","model":"n"}}}}"#),
                "1:75: error: duplicate key `model`",
            ),
            (format!(r#"{{{good},"body":{{"model":"m"}},"url":"/v1/x"}}"#), "error: duplicate key `url`"),
            (
                r#"{"custom_id":7,"url":"/v1/embeddings","body":{"model":"m"}}"#.to_owned(),
                "1:14: error: `custom_id` is a number",
            ),
            (
                r#"{"custom_id":"","url":"/v1/embeddings","body":{"model":"m"}}"#.to_owned(),
                "1:14: error: `custom_id` is empty",
            ),
            (batch(&"x".repeat(513), "m"), "`custom_id` has 513 bytes, at most 512"),
            (batch("a", &"x".repeat(513)), "`model` has 513 bytes, at most 512"),
            (
                r#"{"custom_id":"a","url":"/v1/chat","body":{"model":"m"}}"#.to_owned(),
                "1:24: error: unknown url `/v1/chat`",
            ),
            (r#"{"custom_id":"a","url":7,"body":{"model":"m"}}"#.to_owned(), "error: `url` is a number"),
            (r#"{"model":"m","text":"x"}"#.to_owned(), "1:1: error: not a request: found `text`"),
            (r#"{"model":"m","input":"x","messages":[]}"#.to_owned(), "the endpoint is not clear"),
            (
                r#"{"model":"m","input":"x","metadata":{"custom_id":1}}"#.to_owned(),
                "1:50: error: `custom_id` is a number",
            ),
            (
                r#"{"id":"batch_req_1","custom_id":"a","response":{},"error":null}"#.to_owned(),
                "a line of results",
            ),
            ("{\"model\":\"m\",\"input\":\"a\0b\"}".to_owned(), "1:24: error: invalid JSON: a NUL byte"),
            ("x".repeat(20_000), "a.jsonl:1: error: the line has 20000 bytes"),
        ] {
            let report = jsonl("a.jsonl", format!("{line}\n")).unwrap_err();
            assert!(report.contains(expected), "{line}\n{report}");
            assert_eq!(report.matches("error:").count(), 1, "{line}\n{report}");
        }
    }

    #[test]
    fn hints_say_what_to_do() {
        let url = |url: &str| format!(r#"{{"custom_id":"a","url":"{url}","body":{{"model":"m"}}}}"#);
        for (line, hint) in [
            (url("/v1/chat/completion"), "did you mean `/v1/chat/completions`?"),
            (url("https://api.openai.com/v1/embeddings"), "write the path alone, `/v1/embeddings`"),
            (url("/v1/fine_tuning/jobs"), "fine-tunes are TOML jobs"),
            (url("/v1/images/edits"), "image edits need files"),
            ("{'model': 'm'}".to_owned(), "json.dumps"),
            (r#"{"model":"m","prompt":"","stream":true}"#.to_owned(), "remove it; to have batchd stream"),
            (r#"{"model":"m","input":"","stream":true}"#.to_owned(), "hint: remove it\n"),
            (r#"{"model": "m", "inp"#.to_owned(), "the file looks cut off"),
            (r#"{"prompt":"x ->","completion":" y"}"#.to_owned(), "fine-tuning training file"),
            (
                r#"{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}]}"#
                    .to_owned(),
                "fine-tuning training file",
            ),
        ] {
            let report = jsonl("a.jsonl", &line).unwrap_err();
            assert!(report.contains(hint), "{line}\n{report}");
        }
    }

    #[test]
    fn a_duplicate_names_both_lines() {
        let text =
            [batch("a", "m"), String::new(), batch("b", "m"), batch("a", "m"), batch("a", "m")].join("\n");
        let report = jsonl("a.jsonl", text).unwrap_err();
        assert!(
            report.contains("a.jsonl:4:15: error: duplicate custom_id `a`, first used on line 1"),
            "{report}"
        );
        assert!(
            report.contains("a.jsonl:5:15: error: duplicate custom_id `a`, first used on line 1"),
            "{report}"
        );
        let bare = concat!(
            r#"{"model":"m","input":"x"}"#,
            "\n",
            r#"{"model":"m","input":"x","metadata":{"custom_id":"line-1"}}"#
        );
        let report = jsonl("a.jsonl", bare).unwrap_err();
        assert!(
            report.contains("a.jsonl:2:50: error: duplicate custom_id `line-1`, first used on line 1"),
            "{report}"
        );
    }

    #[test]
    fn a_duplicate_on_a_line_with_another_fault_is_told_too() {
        let faulty = batch("a", "m").replace("/v1/chat/completions", "/v1/chat");
        let report = jsonl("a.jsonl", [batch("a", "m"), faulty].join("\n")).unwrap_err();
        assert!(report.contains("unknown url"), "{report}");
        assert!(
            report.contains("a.jsonl:2:15: error: duplicate custom_id `a`, first used on line 1"),
            "{report}"
        );
    }

    #[test]
    fn all_problems_are_reported_and_the_first_twenty_shown() {
        let mut text = String::new();
        for number in 0..30 {
            writeln!(text, "{}", batch("", &format!("m{number}"))).unwrap();
        }
        let report = jsonl("a.jsonl", text).unwrap_err();
        assert_eq!(report.matches("error: `custom_id` is empty").count(), 20);
        assert!(report.ends_with("and 10 more errors\n"), "{report}");
    }

    #[test]
    fn pretty_printed_json_is_named_once() {
        let pretty = r#"{
  "custom_id": "a",
  "url": "/v1/chat/completions",
  "body": {
    "model": "m",
    "messages": [
      {"role": "user", "content": "{"}
    ]
  }
}
"#;
        let report = jsonl("a.jsonl", pretty.repeat(40)).unwrap_err();
        assert_eq!(report.matches("error:").count(), 1, "{report}");
        assert!(
            report.contains("a.jsonl:1:1: error: pretty-printed JSON") && report.contains("jq -c"),
            "{report}"
        );
        let mixed = format!("{}\n{pretty}{}\nnonsense\n", batch("x", "m"), batch("y", "m"));
        let report = jsonl("a.jsonl", mixed).unwrap_err();
        assert!(report.contains("a.jsonl:2:1: error: pretty-printed JSON"), "{report}");
        assert!(report.contains("a.jsonl:13:2: error: invalid JSON"), "{report}");
        assert_eq!(report.matches("error:").count(), 2, "{report}");
        let array = format!("[\n{},\n{}\n]\n", batch("a", "m"), batch("b", "m"));
        let report = jsonl("a.jsonl", array).unwrap_err();
        assert!(report.starts_with("a.jsonl:1:1: error: a JSON array"), "{report}");
        assert_eq!(report.matches("error:").count(), 1, "{report}");
    }

    #[test]
    fn a_cut_line_among_whole_ones_is_that_lines_error_alone() {
        let cut = r#"{"custom_id": "b", "url": "/v1/chat/completions", "body": {"model": "m""#;
        let text = format!("{}\n{cut}\n{}\n", batch("a", "m"), batch("c", "m"));
        let report = jsonl("a.jsonl", text).unwrap_err();
        assert!(report.starts_with("a.jsonl:2:71: error: invalid JSON: EOF"), "{report}");
        assert_eq!(report.matches("error:").count(), 1, "{report}");
    }

    #[test]
    fn files_that_are_no_text_are_refused() {
        let report = jsonl("a.jsonl", b"\xff\xfe{\0}\0\n\0").unwrap_err();
        assert!(report.starts_with("a.jsonl:1:1: error: the file is UTF-16"), "{report}");
        let report = jsonl("a.jsonl", "{\"a\": \"é\u{0}\"}\n".as_bytes()).unwrap_err();
        assert!(report.contains("a NUL byte"), "{report}");
        let mut bytes = batch("é", "m").into_bytes();
        bytes.extend(b"\n{\"model\": \"\xc3\xa9\xff\"}\n");
        let report = jsonl("a.jsonl", bytes).unwrap_err();
        assert!(report.starts_with("a.jsonl:2:13: error: invalid UTF-8: byte 0xff"), "{report}");
        for empty in ["", "\n\r\n  \n", "\u{feff}"] {
            let report = jsonl("a.jsonl", empty).unwrap_err();
            assert!(report.starts_with("a.jsonl: error: the file holds no request"), "{report}");
        }
    }

    #[test]
    fn members_beside_the_body_are_a_warning() {
        let line = r#"{"custom_id":"a","url":"/v1/embeddings","modle":1,"body":{"model":"m"}}"#;
        let findings = jsonl("a.jsonl", line).unwrap().checked.findings;
        let text = findings.to_string();
        assert!(text.starts_with("a.jsonl:1:49: warning: unknown member `modle` beside `body`"), "{text}");
    }

    #[test]
    fn more_models_than_queues_are_allowed_are_refused_once() {
        let mut text = String::new();
        for number in 0..Job::QUEUES_MAX + 5 {
            writeln!(text, "{}", batch(&number.to_string(), &format!("m{number}"))).unwrap();
        }
        let report = jsonl("a.jsonl", text).unwrap_err();
        assert!(report.starts_with("a.jsonl:1001: error: more than 1000 different models"), "{report}");
        assert_eq!(report.matches("error:").count(), 1);
    }

    #[test]
    fn nothing_long_is_held_in_a_report() {
        let long = "x".repeat(15_000);
        let text = format!(r#"{{"custom_id":"a","url":"{long}","body":{{"{long}":1}}}}"#);
        let mut trial = Trial::new();
        trial.settings.max_line = 1 << 20;
        let report = trial.with("a.jsonl", text).refused("a.jsonl");
        assert!(report.len() < 1000, "{report}");
    }

    #[test]
    fn the_hash_is_that_of_the_bytes() {
        let text = format!("{}\r\n", batch("a", "m"));
        let accepted = jsonl("a.jsonl", &text).unwrap();
        assert_eq!(accepted.checked.content_hash, blake3::hash(text.as_bytes()).to_hex().to_string());
    }
}
