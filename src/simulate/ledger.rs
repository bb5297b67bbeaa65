//! The ledger: what was asked, what became of it, and what was paid for.
//!
//! # Invariants
//!
//! - A request is in the ledger before its fault is chosen, and its line is in the file before the
//!   first byte of its reply.
//! - A request is paid for when an answer was produced, also if its reply was then dropped, cut or
//!   replaced by garbage: that is what a provider bills.
//! - Memory is bounded by [`LedgerSettings`]; the totals are right beyond it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::fault::Fault;
use super::mishap::Act;
use super::objects::Effect;
use super::settings::LedgerSettings;

/// A path or a custom id longer than this is cut, so that entries stay small.
const TEXT_BYTES_MAX: usize = 256;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Ok,
    /// By the API's rules or a limit; with the error's code or, where the API has none, a name.
    Refused(&'static str),
    Fault(Fault),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Refused(name) => write!(f, "refused:{name}"),
            Self::Fault(fault) => write!(f, "fault:{fault}"),
        }
    }
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// From 1, in the order of arrival, since the start of the server.
    pub sequence: u64,
    /// Microseconds since the start of the server.
    pub at_us: u64,
    /// The path without `/v1`.
    pub endpoint: Cow<'static, str>,
    /// BLAKE3 of the body; none without a body.
    #[serde(serialize_with = "hex")]
    pub fingerprint: Option<blake3::Hash>,
    /// `metadata.custom_id` of the body, else its `user`.
    pub custom_id: Option<String>,
    /// The key that it came with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyMark>,
    /// The model that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    pub outcome: Outcome,
    /// An answer was produced, and billed.
    pub paid: bool,
    /// What has changed by it, of files and fine-tunes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<Act>,
    /// The id of what was made, changed or deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// Requests in the server when this one had arrived, itself included.
    pub in_flight: u64,
    /// The `x-request-id` of its reply.
    pub request_id: String,
    /// How long it was told to stay away, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// Microseconds since the start of the server when it left: when its reply began, or when its asker was
    /// gone. None while it is in the server, and in the ledger's file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_us: Option<u64>,
    /// BLAKE3 of the reply's body, the white space around it aside, if a whole reply was sent. None as `left_us` is.
    #[serde(serialize_with = "hex", skip_serializing_if = "Option::is_none")]
    pub answer: Option<blake3::Hash>,
}

#[expect(clippy::ref_option, reason = "serde calls it with a reference to the member")]
fn hex<S: Serializer>(hash: &Option<blake3::Hash>, serializer: S) -> Result<S::Ok, S::Error> {
    match hash {
        Some(hash) => serializer.serialize_some(hash.to_hex().as_str()),
        None => serializer.serialize_none(),
    }
}

/// Tells a key from others without telling it: the beginning of its BLAKE3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyMark(u32);

impl KeyMark {
    pub fn of(key: &str) -> Self {
        Self(blake3::hash(key.as_bytes()).as_bytes().first_chunk().copied().map_or(0, u32::from_be_bytes))
    }
}

impl Serialize for KeyMark {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:08x}", self.0))
    }
}

/// How often one body was sent and paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Payments {
    pub requests: u64,
    pub paid: u64,
}

/// The totals.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// All requests but those to `/_sim/` and the looks.
    pub requests: u64,
    /// Requests that only look at files, models and fine-tunes. They have no entries.
    pub looks: u64,
    /// Requests that were paid for.
    pub paid: u64,
    /// Bodies that were paid for more than once.
    pub paid_twice: u64,
    /// Payments beyond the first of each body.
    pub paid_again: u64,
    /// Different bodies.
    pub distinct: u64,
    /// Different bodies that were paid for.
    pub distinct_paid: u64,
    pub max_in_flight: u64,
    pub by_outcome: BTreeMap<String, u64>,
    /// How often something was done to files, uploads, models and fine-tunes, whether or not its reply arrived: by
    /// [`Act`].
    pub effects: BTreeMap<String, u64>,
    /// Requests whose body is not told apart any more: the four counts above leave them out.
    pub untracked: u64,
    /// Entries that were not kept in full.
    pub dropped_entries: u64,
    /// Entries that could not be written to the ledger's file.
    pub unwritten: u64,
}

/// A request that has arrived and is not yet decided about.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) at_us: u64,
    pub(super) endpoint: Cow<'static, str>,
    pub(super) fingerprint: Option<blake3::Hash>,
    pub(super) custom_id: Option<String>,
    pub(super) key: Option<KeyMark>,
    pub(super) model: Option<String>,
    pub(super) in_flight: u64,
}

/// What was decided about a request.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) outcome: Outcome,
    pub(super) paid: bool,
    pub(super) effect: Option<Effect>,
    pub(super) request_id: String,
    pub(super) retry_after_ms: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Ledger {
    settings: LedgerSettings,
    file: Option<File>,
    /// Never reset: it makes ids unique.
    sequence: u64,
    summary: Summary,
    by_outcome: BTreeMap<Outcome, u64>,
    entries: Vec<Entry>,
    payments: BTreeMap<[u8; 32], Payments>,
}

impl Ledger {
    pub(super) fn open(settings: LedgerSettings) -> io::Result<Self> {
        let open = |path: &PathBuf| {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let named = |error: io::Error| {
                io::Error::new(error.kind(), format!("open the ledger file `{}`: {error}", path.display()))
            };
            file.map_err(named)
        };
        let file = settings.file.as_ref().filter(|_| settings.on).map(open).transpose()?;
        Ok(Self {
            settings,
            file,
            sequence: 0,
            summary: Summary::default(),
            by_outcome: BTreeMap::new(),
            entries: Vec::new(),
            payments: BTreeMap::new(),
        })
    }

    /// Records that a request has come. Its number is its own.
    pub(super) fn arrive(&mut self, arrival: &Arrival) -> u64 {
        self.sequence += 1;
        self.summary.requests += 1;
        self.summary.max_in_flight = self.summary.max_in_flight.max(arrival.in_flight);
        self.sequence
    }

    /// Records that a request has come that changes nothing and costs nothing. Its number is its own.
    pub(super) fn look(&mut self, arrival: &Arrival) -> u64 {
        self.sequence += 1;
        self.summary.looks += 1;
        self.summary.max_in_flight = self.summary.max_in_flight.max(arrival.in_flight);
        self.sequence
    }

    /// Records what became of it.
    pub(super) fn settle(&mut self, sequence: u64, arrival: Arrival, verdict: Verdict) {
        let Verdict { outcome, paid, effect, request_id, retry_after_ms } = verdict;
        *self.by_outcome.entry(outcome).or_default() += 1;
        self.summary.paid += u64::from(paid);
        let (effect, object) = effect.map(|Effect { act, object }| (act, object)).unzip();
        if let Some(act) = effect {
            *self.summary.effects.entry(act.to_string()).or_default() += 1;
        }
        if !self.settings.on {
            return;
        }
        if let Some(fingerprint) = arrival.fingerprint {
            self.track(fingerprint, paid);
        }
        let Arrival { at_us, endpoint, fingerprint, custom_id, key, model, in_flight } = arrival;
        let entry = Entry {
            sequence,
            at_us,
            endpoint,
            fingerprint,
            custom_id,
            key,
            model,
            outcome,
            paid,
            effect,
            object,
            in_flight,
            request_id,
            retry_after_ms,
            left_us: None,
            answer: None,
        };
        if let Some(file) = &mut self.file
            && let Err(error) = append(file, &entry)
        {
            self.summary.unwritten += 1;
            tracing::error!(%error, "the simulator's ledger file can't be written");
        }
        if self.entries.len() < self.settings.entries_max {
            self.entries.push(entry);
        } else {
            self.summary.dropped_entries += 1;
        }
    }

    /// Records that a request has left, with the hash of the reply it took along.
    pub(super) fn leave(&mut self, sequence: u64, left_us: u64, answer: Option<blake3::Hash>) {
        let found = self.entries.binary_search_by_key(&sequence, |entry| entry.sequence);
        if let Some(entry) = found.ok().and_then(|place| self.entries.get_mut(place)) {
            entry.left_us = Some(left_us);
            entry.answer = answer;
        }
    }

    /// Whether entries are kept.
    pub(super) fn is_on(&self) -> bool {
        self.settings.on
    }

    fn track(&mut self, fingerprint: blake3::Hash, paid: bool) {
        let key = *fingerprint.as_bytes();
        let summary = &mut self.summary;
        if !self.payments.contains_key(&key) {
            if self.payments.len() >= self.settings.fingerprints_max {
                summary.untracked += 1;
                return;
            }
            summary.distinct += 1;
        }
        let payments = self.payments.entry(key).or_default();
        payments.requests += 1;
        if paid {
            payments.paid += 1;
            summary.distinct_paid += u64::from(payments.paid == 1);
            summary.paid_twice += u64::from(payments.paid == 2);
            summary.paid_again += u64::from(payments.paid >= 2);
        }
    }

    pub(super) fn summary(&self) -> Summary {
        let by_outcome = self.by_outcome.iter().map(|(outcome, count)| (outcome.to_string(), *count));
        Summary { by_outcome: by_outcome.collect(), ..self.summary.clone() }
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn payments(&self, fingerprint: blake3::Hash) -> Payments {
        self.payments.get(fingerprint.as_bytes()).copied().unwrap_or_default()
    }

    /// Forgets all but the numbering and the file.
    pub(super) fn reset(&mut self) {
        self.summary = Summary::default();
        self.by_outcome.clear();
        self.entries.clear();
        self.payments.clear();
    }
}

/// One write, so that lines of several servers on one file don't mix.
fn append(file: &mut File, entry: &Entry) -> io::Result<()> {
    let mut line = serde_json::to_vec(entry)?;
    line.push(b'\n');
    file.write_all(&line)
}

impl Arrival {
    /// Cuts what a stranger may have made long.
    pub(super) fn text(text: &str) -> String {
        text.get(..text.floor_char_boundary(TEXT_BYTES_MAX)).unwrap_or(text).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(body: &str) -> Arrival {
        Arrival {
            at_us: 1,
            endpoint: Cow::Borrowed("/embeddings"),
            fingerprint: Some(blake3::hash(body.as_bytes())),
            custom_id: None,
            key: None,
            model: None,
            in_flight: 1,
        }
    }

    fn record(ledger: &mut Ledger, body: &str, outcome: Outcome, paid: bool) {
        let arrival = arrival(body);
        let sequence = ledger.arrive(&arrival);
        let request_id = format!("req_{sequence}");
        ledger.settle(
            sequence,
            arrival,
            Verdict { outcome, paid, effect: None, request_id, retry_after_ms: None },
        );
    }

    #[test]
    fn counts_who_paid_twice() {
        let mut ledger = Ledger::open(LedgerSettings::default()).unwrap();
        record(&mut ledger, "a", Outcome::Refused("slow_down"), false);
        record(&mut ledger, "a", Outcome::Fault(Fault::Cut), true);
        record(&mut ledger, "a", Outcome::Ok, true);
        record(&mut ledger, "a", Outcome::Ok, true);
        record(&mut ledger, "b", Outcome::Ok, true);
        record(&mut ledger, "c", Outcome::Fault(Fault::ServerError), false);
        let summary = ledger.summary();
        assert_eq!((summary.requests, summary.paid), (6, 4));
        assert_eq!((summary.paid_twice, summary.paid_again), (1, 2));
        assert_eq!((summary.distinct, summary.distinct_paid), (3, 2));
        assert_eq!(ledger.payments(blake3::hash(b"a")), Payments { requests: 4, paid: 3 });
        let outcomes: Vec<(&str, u64)> = summary.by_outcome.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        assert_eq!(outcomes, [("fault:500", 1), ("fault:cut", 1), ("ok", 3), ("refused:slow_down", 1)]);
        ledger.reset();
        assert_eq!(ledger.summary(), Summary::default());
        assert_eq!(ledger.arrive(&arrival("a")), 7, "numbers are never given twice");
    }

    #[test]
    fn looks_are_counted_apart() {
        let mut ledger = Ledger::open(LedgerSettings::default()).unwrap();
        assert_eq!(ledger.look(&arrival("")), 1);
        record(&mut ledger, "a", Outcome::Ok, true);
        let summary = ledger.summary();
        assert_eq!((summary.looks, summary.requests, ledger.entries().len()), (1, 1, 1));
        assert_eq!(ledger.entries()[0].sequence, 2);
    }

    #[test]
    fn memory_is_bounded_and_totals_stay_right() {
        let settings = LedgerSettings { entries_max: 2, fingerprints_max: 1, ..LedgerSettings::default() };
        let mut ledger = Ledger::open(settings).unwrap();
        for body in ["a", "b", "a"] {
            record(&mut ledger, body, Outcome::Ok, true);
        }
        let summary = ledger.summary();
        assert_eq!((summary.requests, summary.paid, summary.paid_twice), (3, 3, 1));
        assert_eq!((summary.untracked, summary.dropped_entries), (1, 1));
        assert_eq!((ledger.entries().len(), ledger.payments.len()), (2, 1));
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = Some(folder.path().join("missing/ledger.jsonl"));
        let error = Ledger::open(LedgerSettings { file, ..LedgerSettings::default() }).unwrap_err();
        assert!(error.to_string().contains("missing/ledger.jsonl"), "{error}");
    }

    #[test]
    fn the_file_has_a_line_for_each_request() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        let settings = LedgerSettings { file: Some(path.clone()), ..LedgerSettings::default() };
        let mut ledger = Ledger::open(settings).unwrap();
        record(&mut ledger, "a", Outcome::Ok, true);
        record(&mut ledger, "b", Outcome::Fault(Fault::Drop), true);
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1]["outcome"], "fault:drop");
        assert_eq!(lines[1]["fingerprint"], blake3::hash(b"b").to_hex().as_str());
        assert_eq!(lines[1]["sequence"], 2);
    }
}
