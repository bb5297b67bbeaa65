//! Every law shown failing: a run in which all hold, and one thing in it changed.

use std::borrow::Cow;
use std::time::Duration;

use super::*;
use crate::domain::{JobId, OnUncertain, Order, Record, RequestId, Response};
use crate::simulate::{Entry, Fault, KeyMark, Outcome};

const SECOND: u64 = 1_000_000;

fn hash(text: &str) -> blake3::Hash {
    blake3::hash(text.as_bytes())
}

/// A request that came at `at_us` and was answered half a second later.
fn entry(sequence: u64, body: &str, at_us: u64) -> Entry {
    Entry {
        sequence,
        at_us,
        endpoint: Cow::Borrowed("/completions"),
        fingerprint: Some(hash(body)),
        custom_id: None,
        key: Some(KeyMark::of("key")),
        model: Some("m".to_owned()),
        outcome: Outcome::Ok,
        paid: true,
        effect: None,
        object: None,
        in_flight: 1,
        request_id: format!("req_{sequence}"),
        retry_after_ms: None,
        left_us: Some(at_us + SECOND / 2),
        answer: Some(hash(&format!("answer {sequence}"))),
    }
}

/// One that was in flight when its asker died.
fn cut_off(sequence: u64, body: &str, at_us: u64, stop: &Stop) -> Entry {
    Entry { left_us: Some(stop.from_us), answer: None, ..entry(sequence, body, at_us) }
}

fn line(custom_id: &str, sequence: u64) -> Line {
    Line {
        id: format!("batch_req_{custom_id}"),
        custom_id: custom_id.to_owned(),
        request_id: Some(format!("req_{sequence}")),
        answer: Some(hash(&format!("answer {sequence}"))),
        error: None,
    }
}

const fn stop(kind: StopKind, at_us: u64) -> Stop {
    Stop { kind, from_us: at_us, to_us: at_us + SECOND / 10, in_flight: 1 }
}

fn job() -> JobEvidence {
    let asked = ["a", "b", "c"].map(|id| Asked { custom_id: id.to_owned(), body: Some(hash(id)) });
    let output = vec![line("a", 1), line("b", 2), line("c", 4)];
    let results = Results { output, errors: Vec::new(), maybe_paid_twice: Some(1) };
    JobEvidence {
        name: "job".to_owned(),
        asked: asked.into(),
        results: Some(results),
        ..JobEvidence::default()
    }
}

/// `a` and `b` are answered, `c` is in flight at a kill and sent again.
fn run() -> Evidence {
    let kill = stop(StopKind::Kill, 10 * SECOND);
    Evidence {
        jobs: vec![job()],
        ledger: vec![
            entry(1, "a", SECOND),
            entry(2, "b", SECOND),
            cut_off(3, "c", 10 * SECOND - 1, &kill),
            entry(4, "c", 11 * SECOND),
        ],
        stops: vec![kill],
        concurrency: Some(2),
        published: vec![SeenFile {
            path: "output.jsonl".to_owned(),
            first: hash("x"),
            last: Some(hash("x")),
        }],
        dropped: vec![DroppedFile {
            name: "job.jsonl".to_owned(),
            ends: vec![FileEnd::Job("job".to_owned())],
        }],
        growths: vec![Growth { what: "descriptors".to_owned(), before: 10, after: 12, allowed: 2 }],
        rebuilt: vec![Rebuilt { what: "job".to_owned(), live: "x".to_owned(), rebuilt: "x".to_owned() }],
        ..Evidence::default()
    }
}

fn output(evidence: &mut Evidence) -> &mut Vec<Line> {
    &mut evidence.jobs[0].results.as_mut().unwrap().output
}

/// The laws that the run breaks after a change.
fn broken_by(change: impl FnOnce(&mut Evidence)) -> Vec<Law> {
    let mut evidence = run();
    change(&mut evidence);
    let violations = check(&evidence).expect_err("a law is broken");
    let mut laws: Vec<Law> = violations.iter().map(|violation| violation.law).collect();
    laws.dedup();
    laws
}

#[test]
fn a_run_in_which_all_laws_hold_is_reported_in_figures() {
    let report = check(&run()).unwrap();
    assert_eq!((report.jobs, report.requests, report.lines), (1, 3, 3));
    assert_eq!((report.sent, report.paid), (4, 4));
    assert_eq!((report.kills(), report.repeats(), report.repeats_max(), report.in_flight()), (1, 1, 1, 1));
    assert_eq!((report.payments_max, report.in_flight_max), (2, 2));
    assert_eq!((report.lost, report.duplicates, report.drains_with_repeats()), (0, 0, 0));
    let mut both = report.clone();
    both.add(&report);
    assert_eq!((both.kills(), both.repeats(), both.requests), (2, 2, 6));
    assert!(both.to_string().contains("repeats per crash, most      1.00, 1"), "{both}");
}

#[test]
fn l1_request_without_a_line_is_lost() {
    let lost = |evidence: &mut Evidence| {
        evidence.ledger.pop();
        output(evidence).pop();
    };
    assert_eq!(broken_by(lost), [Law::L1]);
    assert_eq!(broken_by(|evidence| evidence.jobs[0].results = None), [Law::L1]);
}

#[test]
fn a_job_on_its_way_need_not_have_results() {
    let mut evidence = run();
    evidence.jobs[0].results = None;
    evidence.jobs[0].is_running = true;
    assert_eq!(check(&evidence).unwrap().lines, 0);
}

#[test]
fn l2_second_line_and_changed_file_are_seen() {
    let twice = |evidence: &mut Evidence| {
        let line =
            Line { id: "another".to_owned(), request_id: None, error: Some("x".to_owned()), ..line("a", 1) };
        evidence.jobs[0].results.as_mut().unwrap().errors.push(line);
    };
    assert_eq!(broken_by(twice), [Law::L2]);
    assert_eq!(broken_by(|evidence| output(evidence)[1].id = "batch_req_a".to_owned()), [Law::L2]);
    let unknown = |evidence: &mut Evidence| evidence.jobs[0].asked[0].custom_id = "z".to_owned();
    assert!(broken_by(unknown).contains(&Law::L2));
    assert_eq!(broken_by(|evidence| evidence.published[0].last = Some(hash("y"))), [Law::L2]);
    assert_eq!(broken_by(|evidence| evidence.published[0].last = None), [Law::L2]);
}

#[test]
fn l3_third_payment_by_crashes_is_one_too_many() {
    let third = |evidence: &mut Evidence| {
        let second = stop(StopKind::Kill, 20 * SECOND);
        evidence.ledger[3] = cut_off(4, "c", 20 * SECOND - 1, &second);
        evidence.ledger.push(entry(5, "c", 21 * SECOND));
        evidence.stops.push(second);
        output(evidence)[2] = line("c", 5);
    };
    assert_eq!(broken_by(third), [Law::L3]);
    let power_cuts = |evidence: &mut Evidence| {
        third(evidence);
        evidence.stops.iter_mut().for_each(|stop| stop.kind = StopKind::PowerCut);
    };
    let mut evidence = run();
    power_cuts(&mut evidence);
    assert_eq!(check(&evidence).unwrap().payments_max, 3, "a power cut may take the note along");
}

#[test]
fn l3_spoilt_replies_are_no_crash_s_repeats() {
    let mut evidence = run();
    let spoilt = Entry { outcome: Outcome::Fault(Fault::Cut), answer: None, ..entry(1, "a", SECOND) };
    evidence.ledger.splice(0..1, [spoilt, entry(5, "a", 2 * SECOND)]);
    output(&mut evidence)[0] = line("a", 5);
    evidence.jobs[0].results.as_mut().unwrap().maybe_paid_twice = Some(2);
    let report = check(&evidence).unwrap();
    assert_eq!((report.spoilt, report.payments_max, report.repeats()), (1, 2, 1));
    evidence.jobs[0].results.as_mut().unwrap().maybe_paid_twice = Some(1);
    assert_eq!(check(&evidence).unwrap_err()[0].law, Law::L3, "the summary must admit it");
}

#[test]
fn l3_more_repeats_than_slots_and_repeats_by_a_drain_are_seen() {
    assert!(broken_by(|evidence| evidence.concurrency = Some(0)).contains(&Law::L3));
    assert_eq!(broken_by(|evidence| evidence.stops[0].kind = StopKind::Drain), [Law::L3]);
}

#[test]
fn l3_held_and_failed_requests_are_not_paid_for_again() {
    for policy in [OnUncertain::Hold, OnUncertain::Fail] {
        assert_eq!(broken_by(|evidence| evidence.jobs[0].on_uncertain = policy), [Law::L3]);
    }
}

#[test]
fn l3_payment_that_nobody_asked_for_is_seen() {
    assert_eq!(broken_by(|evidence| evidence.ledger.push(entry(9, "z", 12 * SECOND))), [Law::L3]);
}

#[test]
fn l4_answer_that_was_there_long_before_the_kill_stays() {
    // `a` was answered, and yet it is asked again after the kill.
    let replaced = |evidence: &mut Evidence| {
        evidence.ledger.push(entry(5, "a", 12 * SECOND));
        evidence.jobs[0].results.as_mut().unwrap().maybe_paid_twice = Some(2);
        output(evidence)[0] = line("a", 5);
    };
    assert_eq!(broken_by(replaced), [Law::L4]);
    let mut evidence = run();
    replaced(&mut evidence);
    evidence.kept_within = Duration::from_secs(9);
    assert_eq!(check(&evidence).unwrap().repeats(), 2, "just before the kill it may be lost");
    let after_a_drain = |evidence: &mut Evidence| {
        evidence.kept_within = Duration::from_secs(9);
        evidence.stops[0].kind = StopKind::Drain;
        evidence.ledger[2] = entry(3, "c", 9 * SECOND);
    };
    assert_eq!(broken_by(after_a_drain), [Law::L4], "a drain keeps what has come");
}

#[test]
fn l5_line_holds_what_was_answered_to_its_own_question() {
    assert_eq!(broken_by(|evidence| output(evidence)[0].answer = Some(hash("other"))), [Law::L5]);
    let swapped = |evidence: &mut Evidence| {
        output(evidence)[0].request_id = Some("req_2".to_owned());
        output(evidence)[1].request_id = Some("req_1".to_owned());
    };
    assert_eq!(broken_by(swapped), [Law::L5]);
    let invented = |evidence: &mut Evidence| output(evidence)[0].request_id = Some("req_99".to_owned());
    assert_eq!(broken_by(invented), [Law::L5, Law::L4]);
    let shared = |evidence: &mut Evidence| {
        let line = Line { id: "x".to_owned(), custom_id: "d".to_owned(), ..line("a", 1) };
        evidence.jobs[0].asked.push(Asked { custom_id: "d".to_owned(), body: Some(hash("a")) });
        output(evidence).push(line);
    };
    assert_eq!(broken_by(shared), [Law::L5]);
    assert_eq!(broken_by(|evidence| evidence.ledger[0].answer = None), [Law::L5]);
    let refused = |evidence: &mut Evidence| evidence.ledger[0].outcome = Outcome::Refused("bad_json");
    assert_eq!(broken_by(refused), [Law::L5]);
    let empty = |evidence: &mut Evidence| {
        evidence.ledger.remove(0);
        output(evidence)[0].request_id = None;
    };
    assert_eq!(broken_by(empty), [Law::L5]);
}

#[test]
fn l6_lane_that_goes_on_after_a_wrong_key_is_seen() {
    let refused = |count: u64| {
        move |evidence: &mut Evidence| {
            for number in 0..count {
                let refusal = Entry {
                    outcome: Outcome::Refused("invalid_api_key"),
                    paid: false,
                    left_us: Some(20 * SECOND + number),
                    ..entry(10 + number, "a", 20 * SECOND + number)
                };
                evidence.ledger.push(refusal);
            }
        }
    };
    assert_eq!(broken_by(refused(8)), [Law::L6]);
    let mut evidence = run();
    refused(7)(&mut evidence);
    check(&evidence).unwrap();
}

#[test]
fn l6_lane_that_tries_too_often_while_it_is_refused_is_seen() {
    let tried = |every: u64| {
        move |evidence: &mut Evidence| {
            for number in 0..60 {
                let at_us = 20 * SECOND + number * every;
                let outcome = Outcome::Refused("insufficient_quota");
                let left_us = Some(at_us);
                let refusal = Entry { outcome, paid: false, left_us, ..entry(10 + number, "a", at_us) };
                evidence.ledger.push(refusal);
            }
        }
    };
    assert_eq!(broken_by(tried(4 * SECOND)), [Law::L6]);
    let mut evidence = run();
    tried(5 * SECOND)(&mut evidence);
    check(&evidence).unwrap();
    // More often, but one in three is let in.
    let mut evidence = run();
    evidence.jobs[0].results.as_mut().unwrap().maybe_paid_twice = Some(2);
    tried(SECOND)(&mut evidence);
    for refusal in evidence.ledger.iter_mut().skip(4).step_by(3) {
        refusal.paid = true;
        refusal.outcome = Outcome::Fault(Fault::Empty);
    }
    check(&evidence).unwrap();
    // Another key is another lane.
    let mut evidence = run();
    tried(4 * SECOND)(&mut evidence);
    for refusal in evidence.ledger.iter_mut().skip(4).step_by(2) {
        refusal.key = Some(KeyMark::of("another key"));
    }
    check(&evidence).unwrap();
}

#[test]
fn l7_lane_that_is_asked_on_though_it_was_told_to_wait_is_seen() {
    let told = |evidence: &mut Evidence| {
        evidence.on_its_way = Some(Duration::from_millis(50));
        let outcome = Outcome::Refused("rate_limit_exceeded");
        let left_us = Some(SECOND);
        let refusal = Entry {
            outcome,
            paid: false,
            left_us,
            answer: None,
            retry_after_ms: Some(8_000),
            ..entry(5, "b", SECOND)
        };
        evidence.ledger.insert(0, refusal);
    };
    let mut evidence = run();
    told(&mut evidence);
    evidence.ledger[2].at_us = 9 * SECOND;
    check(&evidence).unwrap();
    let asked_on = |at_us: u64| {
        move |evidence: &mut Evidence| {
            told(evidence);
            evidence.ledger[2].at_us = 9 * SECOND;
            evidence.ledger[1].at_us = at_us;
        }
    };
    assert_eq!(broken_by(asked_on(SECOND + 60_000)), [Law::L7]);
    assert_eq!(broken_by(asked_on(9 * SECOND - 2_000)), [Law::L7]);
    for change in [
        |evidence: &mut Evidence| evidence.on_its_way = None,
        |evidence: &mut Evidence| evidence.on_its_way = Some(Duration::from_secs(7)),
        |evidence: &mut Evidence| evidence.ledger[1].model = Some("another".to_owned()),
        |evidence: &mut Evidence| evidence.ledger[1].key = None,
        |evidence: &mut Evidence| evidence.stops.insert(0, stop(StopKind::Drain, 2 * SECOND)),
    ] {
        let mut evidence = run();
        asked_on(5 * SECOND)(&mut evidence);
        change(&mut evidence);
        check(&evidence).unwrap();
    }
}

#[test]
fn l7_who_comes_back_too_soon_or_in_a_crowd_is_seen() {
    let told = |next_at_us: u64| {
        move |evidence: &mut Evidence| {
            let told = Entry {
                outcome: Outcome::Fault(Fault::RateLimit),
                paid: false,
                retry_after_ms: Some(1000),
                left_us: Some(SECOND),
                ..entry(1, "a", SECOND)
            };
            evidence.ledger.splice(0..1, [told, entry(5, "a", next_at_us)]);
            output(evidence)[0] = line("a", 5);
        }
    };
    assert_eq!(broken_by(told(2 * SECOND - 2000)), [Law::L7]);
    let mut evidence = run();
    told(2 * SECOND - 1)(&mut evidence);
    check(&evidence).unwrap();
    assert_eq!(broken_by(|evidence| evidence.concurrency = Some(1)), [Law::L7]);
}

#[test]
fn l8_file_that_vanished_or_was_taken_twice_is_seen() {
    assert_eq!(broken_by(|evidence| evidence.dropped[0].ends.clear()), [Law::L8]);
    assert_eq!(broken_by(|evidence| evidence.dropped[0].ends.push(FileEnd::Rejected)), [Law::L8]);
}

#[test]
fn l9_lines_out_of_order_are_seen_unless_the_job_wants_them_so() {
    assert_eq!(broken_by(|evidence| output(evidence).swap(0, 1)), [Law::L9]);
    let mut evidence = run();
    output(&mut evidence).swap(0, 1);
    evidence.jobs[0].order = Order::Completion;
    check(&evidence).unwrap();
}

#[test]
fn l10_leaks_are_seen() {
    let leak = Leak { secret: "the key".to_owned(), place: "err-0".to_owned() };
    assert_eq!(broken_by(|evidence| evidence.leaks.push(leak)), [Law::L10]);
    assert_eq!(broken_by(|evidence| evidence.growths[0].after = 13), [Law::L10]);
}

#[test]
fn l11_index_that_differs_from_the_files_is_seen() {
    assert_eq!(broken_by(|evidence| evidence.rebuilt[0].rebuilt = "y".to_owned()), [Law::L11]);
}

#[test]
fn jobs_and_results_are_read_from_their_files() {
    let body = r#"{"model":"m","prompt":"x"}"#;
    let input = format!(
        "{{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{body}}}\n\n"
    );
    let job = JobEvidence::of_batch_lines("job", &input).unwrap();
    assert_eq!(job.asked, [Asked { custom_id: "a".to_owned(), body: Some(hash(body)) }]);

    let output = "{\"id\":\"batch_req_1\",\"custom_id\":\"a\",\"response\":{\"status_code\":200,\"request_id\":\"req_1\",\
        \"body\":{\"data\":[{\"file\":\"images/a-1.png\"},{\"file\":\"images/gone.png\"}]}},\"error\":null}\n";
    let errors = "{\"id\":\"batch_req_2\",\"custom_id\":\"b\",\"response\":null,\"error\":{\"code\":\"timeout\",\"message\":\"\"}}\n";
    let image = |name: &str| (name == "images/a-1.png").then(|| b"abc".to_vec());
    let results = Results::read(output, errors, &image).unwrap();
    let answer = hash(r#"{"data":[{"b64_json":"YWJj"},{"file":"images/gone.png"}]}"#);
    assert_eq!(
        (results.output[0].request_id.as_deref(), results.output[0].answer),
        (Some("req_1"), Some(answer))
    );
    assert_eq!((results.errors[0].error.as_deref(), results.errors[0].answer), (Some("timeout"), None));

    // A page and an empty reply are kept as strings; a reply that is JSON may not be.
    let kept = |body: &[u8]| {
        let response = Response::new(502, "req_2".to_owned(), body);
        let request = RequestId { job: JobId::from_bytes([7; 16]), index: 0 };
        let record = Record { request, custom_id: "b".to_owned(), response: Some(response), error: None };
        let line = String::from_utf8(record.to_line()).unwrap();
        Results::read("", &line, &image).unwrap().errors[0].answer
    };
    assert_eq!(kept(b"<html>\r\n\"bad\"</html>\r\n"), Some(hash("<html>\r\n\"bad\"</html>")));
    assert_eq!(kept(b""), Some(hash("")));
    assert_eq!(kept(b"{\"x\": 1.0}\n"), Some(hash("{\"x\": 1.0}")));
    assert_ne!(kept(b"\"{}\""), Some(hash("{}")));
    assert!(Results::read("{\"id\":", "", &image).is_err(), "a torn line is no line");
}
