//! What can be set, at the start ([`Settings`]) and while the server runs ([`Changes`]).

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName};
use secrecy::{ExposeSecret, SecretString};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::answer::CREATED;
use super::fate::Fate;
use super::fault::Faults;
use super::hint::Hints;
use super::latency::Latency;
use super::ledger::KeyMark;
use super::mishap::Mishaps;
use super::refusal::Refusal;
use super::script::Script;
use crate::domain::Timestamp;

/// Well above the longest JSONL line that batchd takes by default (16 MiB).
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// OpenAI's bound.
const FILE_BYTES_MAX: usize = 512 * 1024 * 1024;

/// A setting's text was not understood: what was found, and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ParseError(pub(super) String);

/// How the stand-in server behaves. The default answers everything at once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen; port 0 takes a free one. Default `127.0.0.1:8089`.
    pub listen: SocketAddr,
    /// Time an answer takes once it has a slot. Default none.
    pub latency: Latency,
    /// Added to the latency by the fault `slow`; how long the bytes of the fault `drip` take, and how long `stall` pauses.
    /// Default 30 s.
    pub slow: Duration,
    /// Requests that are worked on at a time; 0 counts as 1. Default unlimited.
    pub capacity: Option<u32>,
    /// What becomes of requests above the capacity. Default [`WhenFull::Queue`].
    pub when_full: WhenFull,
    /// Requests admitted in a minute; 0 counts as 1. Default unlimited.
    pub requests_per_minute: Option<u32>,
    /// Tokens admitted in a minute, prompt and output bound together; 0 counts as 1. Default unlimited.
    pub tokens_per_minute: Option<u64>,
    /// How much of both limits may be used at one moment after a rest; at least one request gets
    /// through. Default 1 s worth.
    pub burst: Duration,
    /// Whether every key has limits and a capacity of its own, instead of all together. Default off.
    pub limits_per_key: bool,
    /// Default [`LimitsTold::All`].
    pub limits_told: LimitsTold,
    /// Default none.
    pub faults: Faults,
    /// What the fault 429 says about coming back. Default: every second one says 1 s.
    pub hints: Hints,
    /// What happens when, from the start of the server. Default nothing.
    pub script: Script,
    /// Default [`Auth::Open`].
    pub auth: Auth,
    /// The models there are, beside those that fine-tunes make; a request for another one is a 404. Default empty:
    /// a built-in list is listed, and every model is known.
    pub models: Vec<String>,
    /// Only listed models are known, also without a list of one's own. Default off.
    pub strict_models: bool,
    /// Answers until the quota is used up and every request gets `insufficient_quota`. Default never.
    pub quota_after: Option<u64>,
    /// Where a request doesn't say by `response_format`. Default [`ImageForm::Base64`].
    pub images: ImageForm,
    /// Largest request body in bytes; a larger one is a 413. Default 64 MiB.
    pub body_bytes_max: usize,
    /// Largest file that may be uploaded, in bytes. Default 512 MiB.
    pub file_bytes_max: usize,
    /// Time from a file's upload until it is processed. Default 500 ms.
    pub file_processing_time: Duration,
    /// Time from a fine-tune's creation to its success. Default 4 s.
    pub fine_tune_time: Duration,
    /// What becomes of fine-tunes whose suffix doesn't decide (see [`Fate`]). Default: they succeed.
    pub fate: Option<Fate>,
    /// What the first requests of a kind meet. Default nothing.
    pub mishaps: Mishaps,
    /// The date at the start of the server, for `created_at` and the like. Default 2026-01-01, so that runs repeat.
    pub epoch: Timestamp,
    pub ledger: LedgerSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8089)),
            latency: Latency::ZERO,
            slow: Duration::from_secs(30),
            capacity: None,
            when_full: WhenFull::Queue,
            requests_per_minute: None,
            tokens_per_minute: None,
            burst: Duration::from_secs(1),
            limits_per_key: false,
            limits_told: LimitsTold::All,
            faults: Faults::none(),
            hints: Hints::default(),
            script: Script::default(),
            auth: Auth::Open,
            models: Vec::new(),
            strict_models: false,
            quota_after: None,
            images: ImageForm::Base64,
            body_bytes_max: BODY_BYTES_MAX,
            file_bytes_max: FILE_BYTES_MAX,
            file_processing_time: Duration::from_millis(500),
            fine_tune_time: Duration::from_secs(4),
            fate: None,
            mishaps: Mishaps::default(),
            epoch: Timestamp::from_millis(CREATED * 1000),
            ledger: LedgerSettings::default(),
        }
    }
}

/// What the ledger keeps. Totals are counted always.
#[derive(Clone, Debug)]
pub struct LedgerSettings {
    /// Keep entries and count payments by fingerprint; off for benchmarks. Default on.
    pub on: bool,
    /// Entries kept in full, about 200 bytes each; later ones are counted only. Default 100,000.
    pub entries_max: usize,
    /// Fingerprints told apart, about 60 bytes each; requests with later ones are counted as
    /// `untracked`. Default 2,000,000.
    pub fingerprints_max: usize,
    /// A file to which every entry is appended as a JSON line before its reply begins. Default none.
    pub file: Option<PathBuf>,
}

impl Default for LedgerSettings {
    fn default() -> Self {
        Self { on: true, entries_max: 100_000, fingerprints_max: 2_000_000, file: None }
    }
}

/// Who is let in. A key comes as `Authorization: Bearer KEY` or, as Azure has it, `api-key: KEY`.
#[derive(Clone, Debug, Default)]
pub enum Auth {
    /// Everybody, with or without a key.
    #[default]
    Open,
    /// Everybody who sends a key.
    AnyKey,
    /// Only this key.
    Key(SecretString),
}

impl Auth {
    /// Whether a key must be sent.
    pub(super) const fn is_closed(&self) -> bool {
        matches!(self, Self::AnyKey | Self::Key(_))
    }

    /// Whether who sends these headers is let in.
    pub(super) fn admit(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let expected = match self {
            Self::Open => return Ok(()),
            Self::AnyKey => None,
            Self::Key(key) => Some(key.expose_secret()),
        };
        match (Self::given(headers), expected) {
            (None, _) => Err(Refusal::missing_key()),
            (Some(given), Some(expected)) if given != expected => Err(Refusal::wrong_key()),
            (Some(_), _) => Ok(()),
        }
    }

    /// Which key was sent.
    pub(super) fn mark(headers: &HeaderMap) -> Option<KeyMark> {
        Self::given(headers).map(KeyMark::of)
    }

    fn given(headers: &HeaderMap) -> Option<&str> {
        const API_KEY: HeaderName = HeaderName::from_static("api-key");
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = text(AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        bearer.or_else(|| text(API_KEY)).map(str::trim).filter(|key| !key.is_empty())
    }
}

/// What becomes of a request that finds every slot taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// It waits for a slot, first come first served.
    #[default]
    Queue,
    /// 503 `server_is_overloaded`.
    Overloaded,
    /// 429 `slow_down`.
    SlowDown,
}

/// What replies tell of the limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LimitsTold {
    #[default]
    All,
    /// `x-ratelimit-*` on answers and refusals.
    Headers,
    /// When to come back, on refusals.
    Hints,
    Nothing,
}

impl LimitsTold {
    pub(super) const fn by_headers(self) -> bool {
        matches!(self, Self::All | Self::Headers)
    }

    pub(super) const fn by_hints(self) -> bool {
        matches!(self, Self::All | Self::Hints)
    }
}

/// How images are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageForm {
    #[default]
    Base64,
    /// A url below `/_sim/images/` of the same server.
    Url,
}

/// Makes an enum of plain words readable and printable, in settings and in JSON alike.
macro_rules! words {
    ($name:ident { $($word:literal => $variant:ident),+ $(,)? }) => {
        impl FromStr for $name {
            type Err = ParseError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(ParseError(format!("found `{text}`, expected one of {}", [$($word),+].join(", ")))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $word,)+
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(super) use words;

words!(WhenFull { "queue" => Queue, "503" => Overloaded, "429" => SlowDown });
words!(LimitsTold { "all" => All, "headers" => Headers, "hints" => Hints, "nothing" => Nothing });
words!(ImageForm { "b64_json" => Base64, "url" => Url });

/// What becomes of one setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change<T> {
    #[default]
    Keep,
    /// In JSON: `null`.
    Clear,
    Set(T),
}

impl<T> Change<T> {
    pub(super) fn apply(self, setting: &mut Option<T>) {
        match self {
            Self::Keep => {}
            Self::Clear => *setting = None,
            Self::Set(value) => *setting = Some(value),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Change<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(deserializer)?.map_or(Self::Clear, Self::Set))
    }
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Change<SecretString>, D::Error> {
    Ok(match Change::<String>::deserialize(deserializer)? {
        Change::Keep => Change::Keep,
        Change::Clear => Change::Clear,
        Change::Set(key) => Change::Set(key.into()),
    })
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map(Some).map_err(D::Error::custom)
}

/// Changes to a running server; what is absent stays as it is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Changes {
    pub faults: Option<Faults>,
    pub hints: Option<Hints>,
    /// Instead of the one that runs; its times count from the change.
    pub script: Option<Script>,
    pub limits_told: Option<LimitsTold>,
    /// Instead of those that have not been met yet.
    pub mishaps: Option<Mishaps>,
    /// Of fine-tunes that are created from now on.
    pub fate: Change<Fate>,
    /// Of fine-tunes that are created from now on.
    #[serde(deserialize_with = "time")]
    pub fine_tune_time: Option<Duration>,
    pub latency: Option<Latency>,
    /// Slots taken now stay taken until their answers are due.
    pub capacity: Change<u32>,
    pub when_full: Option<WhenFull>,
    /// A changed limit begins with a full burst.
    pub requests_per_minute: Change<u32>,
    /// A changed limit begins with a full burst.
    pub tokens_per_minute: Change<u64>,
    /// The only key let in; cleared, everybody is.
    #[serde(deserialize_with = "secret")]
    pub key: Change<SecretString>,
    /// Counted from the start of the server.
    pub quota_after: Change<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_null_and_given_settings_are_told_apart() {
        let changes: Changes =
            serde_json::from_str(r#"{"capacity":null,"requests_per_minute":60,"faults":"cut=0.5"}"#).unwrap();
        assert_eq!(changes.capacity, Change::Clear);
        assert_eq!(changes.requests_per_minute, Change::Set(60));
        assert_eq!(changes.tokens_per_minute, Change::Keep);
        assert_eq!(changes.faults.unwrap().to_string(), "cut=0.5");
        assert!(serde_json::from_str::<Changes>(r#"{"capcity":1}"#).is_err());
    }

    #[test]
    fn words_survive_their_text_form() {
        for word in ["queue", "503", "429"] {
            assert_eq!(word.parse::<WhenFull>().unwrap().to_string(), word);
        }
        let error = "png".parse::<ImageForm>().unwrap_err().to_string();
        assert_eq!(error, "found `png`, expected one of b64_json, url");
    }
}
