//! What must hold of every reply, whatever its status, headers and body: for `crate::fuzzing`.

use std::time::Duration;

use bytes::Bytes;
use chrono::NaiveDateTime;
use reqwest::header::{DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::domain::attempt::{History, Settlement, decide};
use crate::domain::record::{JournalLine, text_of};
use crate::domain::{Endpoint, JobId, Outcome, PauseReason, RequestId, RetryPolicy, Timestamp};
use crate::provider::ask::Object;
use crate::provider::azure::Places;
use crate::provider::classify::classify;
use crate::provider::retry_after::{rate_headers, retry_after};
use crate::provider::{
    HttpReply, Listed, Model, RateHeaders, RemoteFile, RemoteTuning, TuningEvent, TuningStatus, ask, list,
};

/// Sun, 06 Nov 1994 08:49:37 GMT, the date of RFC 9110's examples.
const NOW: Timestamp = Timestamp::from_millis(784_111_777_000);

const DAY: Duration = Duration::from_hours(24);

/// Longest word or message of an error: 2 KiB, the character that crosses them, and `…`; some are put into a
/// sentence.
const WORDS_BYTES_MAX: usize = 2048 + 256;

/// 64 KiB of an error's body are kept; written as a JSON string, a byte may take six.
const BODY_BYTES_MAX: usize = 6 * 64 * 1024 + 2;

/// A reply written as HTTP/1 has it, roughly: the status, a header a line, an empty line, the body.
fn reply_of(text: &[u8]) -> HttpReply {
    let mut headers = HeaderMap::new();
    let mut rest = text;
    let mut line = || {
        let end = memchr::memchr(b'\n', rest);
        let (line, behind) = rest.split_at_checked(end.map_or(rest.len(), |end| end + 1))?;
        rest = behind;
        Some(line.trim_ascii_end())
    };
    let status = line().and_then(|line| std::str::from_utf8(line).ok()?.parse().ok());
    while let Some(line) = line().filter(|line| !line.is_empty()) {
        let Some(colon) = memchr::memchr(b':', line) else { continue };
        let Some((name, value)) = line.split_at_checked(colon) else { continue };
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    // HTTP has no other statuses.
    let status = status.filter(|status| (100..=999).contains(status)).unwrap_or(200);
    HttpReply { status, headers, body: Bytes::copy_from_slice(rest) }
}

/// A stream of events, and what is made of it.
pub(crate) fn stream(body: &[u8]) {
    crate::provider::stream::fuzz::stream(body);
}

/// Every reply has an outcome, and what is decided about it leaves one line or a wait that makes sense.
pub(crate) fn reply(text: &[u8]) {
    let reply = reply_of(text);
    for endpoint in Endpoint::ALL {
        let read = classify(endpoint, &reply, NOW);
        rates_are_bounded(&read.rate);
        let answered = matches!(read.outcome, Outcome::Answered(_));
        assert!(answered || read.usage.is_none(), "only an answer says what it cost");
        outcome_is_sane(&read.outcome, reply.status);
        for attempt in [1, 6] {
            settlement_is_sane(&read.outcome, attempt);
        }
    }
}

fn rates_are_bounded(rate: &RateHeaders) {
    for reset in [rate.reset_requests, rate.reset_tokens].into_iter().flatten() {
        assert!(reset <= DAY);
    }
}

fn outcome_is_sane(outcome: &Outcome, status: u16) {
    let is_success = (200..300).contains(&status);
    let (words, wait, kept) = match outcome {
        Outcome::Answered(response) => {
            assert!(is_success && response.status_code == status);
            assert!(response.body.get().starts_with('{'), "an answer is an object");
            (vec![], None, None)
        }
        Outcome::Refused(response) => {
            assert!(!is_success && response.status_code == status, "a refused 2xx would read as an answer");
            (vec![], None, Some(response))
        }
        Outcome::Unanswerable(error) => (vec![&error.code, &error.message], None, None),
        Outcome::Throttled { code, retry_after, .. } => (vec![code], *retry_after, None),
        Outcome::Failed(failure) => (vec![&failure.message], failure.retry_after, failure.response.as_ref()),
        Outcome::Blocked(blocked) => {
            // One that is given back keeps nothing of its reply.
            let kept = blocked.response.as_ref().filter(|_| blocked.reason == PauseReason::Model);
            (vec![&blocked.message], blocked.retry_after, kept)
        }
    };
    for words in words {
        assert!(words.len() <= WORDS_BYTES_MAX && !words.contains('\n'), "{words}");
    }
    assert!(wait.is_none_or(|wait| !wait.is_zero() && wait <= DAY), "{wait:?}");
    assert!(kept.is_none_or(|kept| kept.body.get().len() <= BODY_BYTES_MAX));
}

fn settlement_is_sane(outcome: &Outcome, attempt: u32) {
    let history = History {
        request: RequestId { job: JobId::from_bytes([1; 16]), index: 7 },
        custom_id: "a".to_owned(),
        attempt,
        model_has_answered: false,
    };
    let answered = matches!(outcome, Outcome::Answered(_));
    let policy = RetryPolicy::default();
    match decide(outcome.clone(), history, &policy, NOW, 0.5) {
        Settlement::Complete(record) | Settlement::Discard(record) => {
            assert_eq!(record.is_success(), answered, "only an answer belongs in output.jsonl");
            assert!(record.response.is_some() != record.error.is_some());
            let line = record.to_journal_line(attempt);
            let (line, end) = line.split_at(line.len() - 1);
            assert!(end == b"\n" && !line.contains(&b'\n'), "a record is one line");
            let parsed = JournalLine::parse(line).expect("a record is read back");
            assert_eq!((parsed.index, parsed.attempt, parsed.is_success()), (7, attempt, answered));
            assert_eq!(parsed.published(), record.to_line());
        }
        Settlement::Retry { due, attempts, .. } => {
            assert!(!answered && attempts <= attempt);
            assert!(due >= NOW && due.since(NOW) <= DAY + DAY / 10, "due at {due}");
        }
        Settlement::Snooze { .. } => unreachable!("an exchange goes on nowhere else"),
        Settlement::Release => assert!(matches!(outcome, Outcome::Blocked(_))),
    }
}

/// Reads up to three lines as the values of `Retry-After`, `retry-after-ms` and `Date`.
pub(crate) fn hint(lines: &[u8]) {
    let mut headers = HeaderMap::new();
    let names = [RETRY_AFTER, HeaderName::from_static("retry-after-ms"), DATE];
    for (name, line) in names.into_iter().zip(lines.split(|byte| *byte == b'\n')) {
        if let Ok(value) = HeaderValue::from_bytes(line)
            && !line.is_empty()
        {
            headers.insert(name, value);
        }
    }
    let wait = retry_after(&headers, NOW);
    assert!(wait.is_none_or(|wait| !wait.is_zero() && wait <= DAY), "{wait:?}");
    let later = retry_after(&headers, NOW + Duration::from_secs(1));
    assert!(later.unwrap_or_default() <= wait.unwrap_or_default(), "a later reading waits longer");
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if headers.len() == 1
        && let Some(hint) = text(&RETRY_AFTER)
    {
        assert!(
            expected(hint).is_none_or(|expected| expected == wait.unwrap_or_default()),
            "{hint}: {wait:?}"
        );
    }
    if let Some(value) = headers.get(RETRY_AFTER).cloned() {
        let names = ["x-ratelimit-reset-requests", "x-ratelimit-reset-tokens", "x-ratelimit-limit-tokens"];
        let limits = names.map(|name| (HeaderName::from_static(name), value.clone()));
        rates_are_bounded(&rate_headers(&limits.into_iter().collect()));
    }
}

/// What a hint in one of the two forms of RFC 9110 means, zero for no wait; none of any other.
fn expected(hint: &str) -> Option<Duration> {
    if let Ok(seconds) = hint.parse::<u32>() {
        let meant = if seconds <= 365 * 86_400 { seconds } else { 0 };
        return (!hint.starts_with('+')).then(|| Duration::from_secs(meant.into()).min(DAY));
    }
    let date = NaiveDateTime::parse_from_str(hint, "%a, %d %b %Y %H:%M:%S GMT").ok()?.and_utc();
    // How the format writes it back tells the form of the RFC from what chrono takes beside it.
    let is_exact = date.format("%a, %d %b %Y %H:%M:%S GMT").to_string() == hint;
    let millis = u64::try_from(date.timestamp_millis()).ok().filter(|_| is_exact)?;
    Some(Timestamp::from_millis(millis).since(NOW).min(DAY))
}

/// Reads `text` as everything that lies at a provider, alone and in a list. Gives the names that it has for files.
pub(crate) fn objects(text: &[u8]) -> Vec<String> {
    let text = text_of(text);
    let files = each(&text, |file: &RemoteFile| &file.raw);
    let tunings = each(&text, |tuning: &RemoteTuning| &tuning.raw);
    let models = each(&text, |model: &Model| &model.raw);
    let events = each(&text, |event: &TuningEvent| &event.raw);
    tunings.iter().for_each(tuning_is_sane);
    let times = files.iter().flat_map(|file| [file.created_at, file.expires_at]);
    let times = times.chain(tunings.iter().flat_map(|tuning| [tuning.created_at, tuning.finished_at]));
    let times = times.chain(models.iter().map(|model| model.created));
    for time in times.chain(events.iter().map(|event| event.created_at)).flatten() {
        assert!(!time.to_string().is_empty(), "every time can be shown");
    }
    let listed: Listed = models.iter().map(|model| model.id.clone()).collect();
    for model in &models {
        assert!(listed.contains(&model.id));
        assert!(model.shutdown_date.is_none_or(|date| !date.to_string().is_empty()));
    }
    let near = listed.nearest(&text);
    assert!(near.len() <= 3 && near.iter().all(|name| models.iter().any(|model| model.id == *name)));
    files.into_iter().map(|file| file.filename).collect()
}

/// The object that `text` is, and those in the list that it is.
fn each<T: Object>(text: &str, raw: impl Fn(&T) -> &RawValue) -> Vec<T> {
    let mut found = Vec::new();
    if let Some(object) = T::read(text) {
        let kept = raw(&object).get();
        assert!(kept.starts_with('{') && !kept.contains(['\n', '\r']), "an object is kept on one line");
        if let (Ok(kept), Ok(text)) =
            (serde_json::from_str::<Value>(kept), serde_json::from_str::<Value>(text))
        {
            assert_eq!(kept, text, "and as it came");
        }
        let again = T::read(kept).expect("what is kept can be read again");
        assert_eq!((again.id(), raw(&again).get()), (object.id(), kept));
        found.push(object);
    }
    if let Some(page) = list::read::<T>(text) {
        let last = page.items.last().and_then(Object::id);
        assert!(
            last.is_none_or(|last| page.last_id.as_deref() == Some(last)),
            "a list goes on behind its last"
        );
        found.extend(page.items);
    }
    found.iter().filter_map(Object::id).for_each(url_is_below);
    found
}

/// Whatever an id is, asking for it asks for nothing else.
fn url_is_below(id: &str) {
    let base = "https://api.example.com/v1".parse().expect("it is a url");
    let Ok(path) = ask::object_path("/files", id, "/content") else {
        return assert!(matches!(id, "" | "." | ".."), "`{id}` can be asked for");
    };
    let url = Places::new(&base, None).resource(&path);
    let segments: Vec<&str> = url.path_segments().expect("it has a path").collect();
    assert!(matches!(segments.as_slice(), ["v1", "files", _, "content"]), "{url}");
    assert!(url.host_str() == base.host_str() && url.query().is_none() && url.fragment().is_none(), "{url}");
}

fn tuning_is_sane(tuning: &RemoteTuning) {
    if let TuningStatus::Unknown(word) = &tuning.status {
        assert_eq!(TuningStatus::parse(word), tuning.status);
    }
    assert!(!tuning.id.is_empty() && tuning.result_files.iter().all(|id| !id.is_empty()));
    if let Some(error) = &tuning.error {
        assert!(!(error.code.is_empty() && error.message.is_empty() && error.param.is_none()));
    }
    for event in tuning.events() {
        assert!(!event.get().contains(['\n', '\r']), "an event is one line: {event}");
    }
}
