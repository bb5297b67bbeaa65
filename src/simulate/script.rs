//! What happens when: a server's bad hours, written down so that one command repeats them.
//!
//! # Format
//!
//! ```toml
//! [[events]]
//! at = "60s"              # since the server's start, or since the script was set at run time
//! for = "10m"             # without it: for good
//! what = "down"           # connections are refused, and those there are are reset
//!
//! [[events]]
//! at = "12m"
//! for = "30s"
//! what = "429"            # or 401, quota, model, or any fault of `--faults`: met by every question
//! retry_after = "date:20s"    # for 429 and 503; a form of `--hints`
//!
//! [[events]]
//! at = "15m"
//! for = "5m"
//! requests_per_minute = 1500  # also tokens_per_minute, capacity, when_full, latency, faults
//! ```
//!
//! Where events overlap, the one that stands last in the file decides, setting by setting. When an event ends, what
//! it had set is again as it is without it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::fault::{Fault, Faults};
use super::hint::Hint;
use super::latency::Latency;
use super::settings::{ParseError, WhenFull};
use crate::diag::{self, Diagnostic};

/// See the module's words. The default has no events.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    pub events: Vec<Event>,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Event {
    /// Since the server's start, or since the script was set.
    pub at: Duration,
    /// None: for good.
    pub lasts: Option<Duration>,
    pub what: Option<Trouble>,
    /// Of the faults 429 and 503.
    pub retry_after: Hint,
    pub conditions: Conditions,
}

/// What meets every question while it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nobody listens.
    Down,
    /// 401 `invalid_api_key`, for files and fine-tunes as well.
    Key,
    /// 429 `insufficient_quota`.
    Quota,
    /// 404 `model_not_found`.
    Model,
    Fault(Fault),
}

/// The settings that an event can change; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conditions {
    pub requests_per_minute: Option<u32>,
    pub tokens_per_minute: Option<u64>,
    pub capacity: Option<u32>,
    pub when_full: Option<WhenFull>,
    pub latency: Option<Latency>,
    pub faults: Option<Faults>,
}

impl Script {
    /// Reads the text of `file`; the finding has its place.
    pub fn parse(file: &str, text: &str) -> Result<Self, Box<Diagnostic>> {
        toml::from_str(text).map_err(|error| {
            let at = error.span().map(|span| span.start);
            let (line, column) = at.map_or((0, 0), |at| diag::line_and_column(text.as_bytes(), at));
            Box::new(Diagnostic::error(file, line, column, error.message()))
        })
    }
}

impl Event {
    /// Whether it goes on, so long after the script's beginning.
    pub(super) fn is_on(&self, time: Duration) -> bool {
        self.at <= time && self.end().is_none_or(|end| time < end)
    }

    /// When it ends.
    pub(super) fn end(&self) -> Option<Duration> {
        self.lasts.map(|lasts| self.at.saturating_add(lasts))
    }
}

impl Trouble {
    const WORDS: [(&'static str, Self); 4] =
        [("down", Self::Down), ("401", Self::Key), ("quota", Self::Quota), ("model", Self::Model)];
}

impl FromStr for Trouble {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some((_, trouble)) = Self::WORDS.into_iter().find(|(word, _)| *word == text) {
            return Ok(trouble);
        }
        let names = Self::WORDS.into_iter().map(|(word, _)| word);
        let names: Vec<&str> = names.chain(Fault::ALL.map(Fault::as_str)).collect();
        Fault::named(text).map(Self::Fault).map_err(|_| {
            let expected = names.join(", ");
            let near = diag::nearest(text, names).map(|near| format!("did you mean `{near}`?"));
            let hint = near.unwrap_or_else(|| format!("expected one of {expected}"));
            ParseError(format!("found `{text}`, {hint}"))
        })
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault) => fault.fmt(f),
            Self::Down => f.write_str("down"),
            Self::Key => f.write_str("401"),
            Self::Quota => f.write_str("quota"),
            Self::Model => f.write_str("model"),
        }
    }
}

impl<'de> Deserialize<'de> for Trouble {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A time as people write it.
struct Time(Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map(Self).map_err(|error| {
            serde::de::Error::custom(format!("found `{text}` ({error}), expected a time like `90s`"))
        })
    }
}

/// An event as it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    at: Time,
    #[serde(rename = "for")]
    lasts: Option<Time>,
    what: Option<Trouble>,
    retry_after: Option<Hint>,
    requests_per_minute: Option<u32>,
    tokens_per_minute: Option<u64>,
    capacity: Option<u32>,
    when_full: Option<WhenFull>,
    latency: Option<Latency>,
    faults: Option<Faults>,
}

impl TryFrom<Written> for Event {
    type Error = ParseError;

    fn try_from(written: Written) -> Result<Self, ParseError> {
        let Written { at, lasts, what, retry_after, .. } = written;
        let conditions = Conditions {
            requests_per_minute: written.requests_per_minute,
            tokens_per_minute: written.tokens_per_minute,
            capacity: written.capacity,
            when_full: written.when_full,
            latency: written.latency,
            faults: written.faults,
        };
        let is_hinting = matches!(what, Some(Trouble::Fault(fault)) if fault.is_refusal());
        let problem = if what.is_none() && conditions == Conditions::default() {
            "nothing happens in this event, expected `what` or a setting like `capacity`"
        } else if retry_after.is_some() && !is_hinting {
            "`retry_after` needs `what = \"429\"` or `what = \"503\"`"
        } else if what == Some(Trouble::Down) && lasts.is_none() {
            "a server that is down needs `for`: nobody could tell it to come back"
        } else {
            let lasts = lasts.map(|Time(lasts)| lasts);
            return Ok(Self {
                at: at.0,
                lasts,
                what,
                retry_after: retry_after.unwrap_or_default(),
                conditions,
            });
        };
        Err(ParseError(problem.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Script, String> {
        Script::parse("bad.toml", text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_script_is_read_as_it_is_written() {
        let text = r#"
            [[events]]
            at = "60s"
            for = "10m"
            what = "down"

            [[events]]
            at = "12m"
            what = "429"
            retry_after = "date:20s"

            [[events]]
            at = "0s"
            requests_per_minute = 1500
            latency = "5ms..60ms"
            faults = "500=0.5"
        "#;
        let script = parse(text).unwrap();
        let [down, refused, limit] = script.events.as_slice() else { panic!("{script:?}") };
        assert_eq!((down.what, down.end()), (Some(Trouble::Down), Some(Duration::from_mins(11))));
        assert_eq!(refused.what, Some(Trouble::Fault(Fault::RateLimit)));
        assert_eq!((refused.retry_after.to_string().as_str(), refused.lasts), ("date:20s", None));
        assert_eq!(limit.conditions.requests_per_minute, Some(1_500));
        assert_eq!((limit.what, &limit.conditions.capacity), (None, &None));
        assert_eq!(parse("events = []").unwrap(), Script::default());
    }

    #[test]
    fn a_wrong_script_is_refused_with_its_place() {
        let event = |lines: &str| parse(&format!("[[events]]\nat = \"1s\"\n{lines}\n")).unwrap_err();
        assert_eq!(event("what = \"dwon\""), "bad.toml:3:8: error: found `dwon`, did you mean `down`?");
        assert!(event("what = \"zebra\"").contains("expected one of down, 401, quota, model, 408"));
        assert!(event("for = \"soon\"").starts_with("bad.toml:3:7: error: found `soon` ("));
        assert!(event("capcity = 8").starts_with("bad.toml:3:1: error: unknown field `capcity`"));
        assert!(event("capacity = -8").starts_with("bad.toml:3:12: error: "));
        assert!(event("faults = \"500=2\"").starts_with("bad.toml:3:10: error: the probability of `500`"));
        assert!(event("").starts_with("bad.toml:1:1: error: nothing happens"));
        assert!(event("what = \"down\"").starts_with("bad.toml:1:1: error: a server that is down needs"));
        assert!(event("what = \"500\"\nretry_after = \"1s\"").contains("needs `what = \"429\"`"));
        assert!(parse("[[events]]\nwhat = \"401\"").unwrap_err().contains("missing field `at`"));
        assert!(parse("[[events]").unwrap_err().starts_with("bad.toml:1:"));
    }
}
