//! What a refusal says about coming back, in all the forms that servers have for it: `none,1s,date:30s,garbage`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use axum::http::header::{DATE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use chrono::{DateTime, Utc};
use fastrand::Rng;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::reply::whole_millis;
use super::settings::ParseError;
use crate::domain::Timestamp;

pub(super) const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const EXPECTED: &str = "expected `none`, a time like `1s`, `seconds:1s`, `ms:500ms`, `date:30s`, `garbage`, `negative` or `1e18`";

/// One refusal's words about coming back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hint {
    #[default]
    None,
    /// `Retry-After` in whole seconds and `retry-after-ms`, as OpenAI has it. Both are rounded up, as are all of
    /// these: who waits as told is let in.
    Both(Duration),
    /// `Retry-After` in whole seconds.
    Seconds(Duration),
    /// `retry-after-ms`.
    Millis(Duration),
    /// `Retry-After` as a date, so long after the reply's `Date`.
    Date(Duration),
    /// `Retry-After: soon`.
    Garbage,
    /// `Retry-After: -5`.
    Negative,
    /// `Retry-After: 1000000000000000000`.
    Endless,
}

impl Hint {
    /// How long it tells to stay away. None where it tells nothing that anybody could obey.
    pub(super) fn wait(self) -> Option<Duration> {
        match self {
            Self::Both(wait) | Self::Millis(wait) => Some(wait),
            Self::Seconds(wait) | Self::Date(wait) => Some(Duration::from_secs(whole_seconds(wait))),
            Self::None | Self::Garbage | Self::Negative | Self::Endless => None,
        }
    }

    /// Puts it into the head of a reply that is sent at `date`.
    pub(super) fn write(self, headers: &mut HeaderMap, date: Timestamp) {
        let seconds = |wait| HeaderValue::from(whole_seconds(wait));
        let (hint, millis) = match self {
            Self::None => (None, None),
            Self::Both(wait) => (Some(seconds(wait)), Some(whole_millis(wait))),
            Self::Seconds(wait) => (Some(seconds(wait)), None),
            Self::Millis(wait) => (None, Some(whole_millis(wait))),
            Self::Date(wait) => {
                headers.extend(http_date(date).map(|today| (DATE, today)));
                (http_date(date + Duration::from_secs(whole_seconds(wait))), None)
            }
            Self::Garbage => (Some(HeaderValue::from_static("soon")), None),
            Self::Negative => (Some(HeaderValue::from_static("-5")), None),
            Self::Endless => (Some(HeaderValue::from_static("1000000000000000000")), None),
        };
        headers.extend(hint.map(|hint| (RETRY_AFTER, hint)));
        headers.extend(millis.map(|millis| (RETRY_AFTER_MS, HeaderValue::from(millis))));
    }
}

fn whole_seconds(wait: Duration) -> u64 {
    whole_millis(wait).div_ceil(1000)
}

/// None for a date that the calendar doesn't have.
fn http_date(date: Timestamp) -> Option<HeaderValue> {
    let date = DateTime::<Utc>::from_timestamp(i64::try_from(date.as_secs()).ok()?, 0)?;
    HeaderValue::from_str(&date.format("%a, %d %b %Y %H:%M:%S GMT").to_string()).ok()
}

impl FromStr for Hint {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let time = |time: &str| {
            humantime::parse_duration(time.trim())
                .map_err(|error| ParseError(format!("found `{text}` ({error}), {EXPECTED}")))
        };
        match (text, text.split_once(':')) {
            ("none", _) => Ok(Self::None),
            ("garbage", _) => Ok(Self::Garbage),
            ("negative", _) => Ok(Self::Negative),
            ("1e18", _) => Ok(Self::Endless),
            (_, Some(("seconds", wait))) => time(wait).map(Self::Seconds),
            (_, Some(("ms", wait))) => time(wait).map(Self::Millis),
            (_, Some(("date", wait))) => time(wait).map(Self::Date),
            _ => time(text).map(Self::Both),
        }
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |wait: &Duration| humantime::format_duration(*wait);
        match self {
            Self::None => f.write_str("none"),
            Self::Both(wait) => write!(f, "{}", time(wait)),
            Self::Seconds(wait) => write!(f, "seconds:{}", time(wait)),
            Self::Millis(wait) => write!(f, "ms:{}", time(wait)),
            Self::Date(wait) => write!(f, "date:{}", time(wait)),
            Self::Garbage => f.write_str("garbage"),
            Self::Negative => f.write_str("negative"),
            Self::Endless => f.write_str("1e18"),
        }
    }
}

impl<'de> Deserialize<'de> for Hint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// What refusals by the fault `429` say, each of these as likely as the others. A form that is to be more likely is
/// given more often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hints(Vec<Hint>);

impl Default for Hints {
    /// Every second one says `1s`.
    fn default() -> Self {
        Self(vec![Hint::None, Hint::Both(Duration::from_secs(1))])
    }
}

impl Hints {
    /// One draw, however many forms there are.
    pub(super) fn draw(&self, dice: &mut Rng) -> Hint {
        let place = dice.usize(..self.0.len().max(1));
        self.0.get(place).copied().unwrap_or_default()
    }
}

impl FromStr for Hints {
    type Err = ParseError;

    /// Forms separated by commas.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let forms: Vec<Hint> = text.split(',').map(|form| form.trim().parse()).collect::<Result<_, _>>()?;
        Ok(Self(forms))
    }
}

impl fmt::Display for Hints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, hint) in self.0.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            write!(f, "{comma}{hint}")?;
        }
        Ok(())
    }
}

impl Serialize for Hints {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hints {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Seed;

    const FORMS: &str = "none,1s,seconds:2s,ms:500ms,date:30s,garbage,negative,1e18";

    #[test]
    fn forms_survive_their_text() {
        assert_eq!(FORMS.parse::<Hints>().unwrap().to_string(), FORMS);
        assert_eq!(Hints::default().to_string(), "none,1s");
        for bad in ["", "soon", "ms:", "ms:-1s", "date:tomorrow", "none,,1s", "1e19"] {
            let error = bad.parse::<Hints>().unwrap_err().to_string();
            assert!(error.contains(EXPECTED), "{bad}: {error}");
        }
    }

    #[test]
    fn each_form_has_its_headers_and_binds_whom_it_can() {
        let date = Timestamp::from_millis(1_767_225_600_900);
        let said = |form: &str| {
            let (mut headers, hint) = (HeaderMap::new(), form.parse::<Hint>().unwrap());
            hint.write(&mut headers, date);
            let text = |name| headers.get(name).map_or("", |value: &HeaderValue| value.to_str().unwrap());
            let said = [&RETRY_AFTER, &RETRY_AFTER_MS, &DATE].map(|name| text(name).to_owned());
            (said.join("|"), hint.wait().map(|wait| wait.as_millis()))
        };
        let expected = [
            ("none", "||", None),
            ("1200ms", "2|1200|", Some(1_200)),
            ("seconds:1200ms", "2||", Some(2_000)),
            ("ms:1us", "|1|", Some(0)),
            ("date:90s", "Thu, 01 Jan 2026 00:01:30 GMT||Thu, 01 Jan 2026 00:00:00 GMT", Some(90_000)),
            ("garbage", "soon||", None),
            ("negative", "-5||", None),
            ("1e18", "1000000000000000000||", None),
        ];
        for (form, headers, wait) in expected {
            assert_eq!(said(form), (headers.to_owned(), wait), "{form}");
        }
    }

    #[test]
    fn every_form_is_drawn_about_as_often_as_the_others() {
        let (hints, mut dice) = (FORMS.parse::<Hints>().unwrap(), Seed::fixed(1).derive("hints"));
        let drawn: Vec<Hint> = (0..8_000).map(|_| hints.draw(&mut dice)).collect();
        for form in &hints.0 {
            let count = drawn.iter().filter(|hint| *hint == form).count();
            assert!((800..1_200).contains(&count), "{form}: {count}");
        }
    }
}
