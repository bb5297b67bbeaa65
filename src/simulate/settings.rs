//! What can be set, at the start ([`Settings`]) and while the server runs ([`Changes`]).

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::fault::Faults;
use super::latency::Latency;

/// Well above the longest JSONL line that batchd takes by default (16 MiB).
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

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
    /// Added to the latency by the fault `slow`. Default 30 s.
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
    /// Default none.
    pub faults: Faults,
    /// Default [`Auth::Open`].
    pub auth: Auth,
    /// The models there are; a request for another one is a 404. Default empty: every model is known.
    pub models: Vec<String>,
    /// Answers until the quota is used up and every request gets `insufficient_quota`. Default never.
    pub quota_after: Option<u64>,
    /// Where a request doesn't say by `response_format`. Default [`ImageForm::Base64`].
    pub images: ImageForm,
    /// Largest request body in bytes; a larger one is a 413. Default 64 MiB.
    pub body_bytes_max: usize,
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
            faults: Faults::none(),
            auth: Auth::Open,
            models: Vec::new(),
            quota_after: None,
            images: ImageForm::Base64,
            body_bytes_max: BODY_BYTES_MAX,
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

words!(WhenFull { "queue" => Queue, "503" => Overloaded, "429" => SlowDown });
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

/// Changes to a running server; what is absent stays as it is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Changes {
    pub faults: Option<Faults>,
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
