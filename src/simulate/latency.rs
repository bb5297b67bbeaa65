//! How long an answer takes: `20ms`, or uniformly between two bounds: `5ms..60ms`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use fastrand::Rng;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::settings::ParseError;

/// Time from the arrival of a request (or from its slot's becoming free) to its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    least: Duration,
    most: Duration,
}

impl Latency {
    pub const ZERO: Self = Self::fixed(Duration::ZERO);

    pub const fn fixed(latency: Duration) -> Self {
        Self { least: latency, most: latency }
    }

    /// Uniform between the two, whichever comes first.
    pub fn between(a: Duration, b: Duration) -> Self {
        Self { least: a.min(b), most: a.max(b) }
    }

    /// What it is on the average.
    #[cfg(test)]
    pub(crate) fn mean(self) -> Duration {
        (self.least + self.most) / 2
    }

    pub(super) fn draw(self, dice: &mut Rng) -> Duration {
        if self.least == self.most {
            self.least
        } else {
            self.least + self.most.saturating_sub(self.least).mul_f64(dice.f64())
        }
    }
}

impl FromStr for Latency {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (least, most) = text.split_once("..").unwrap_or((text, text));
        let bound = |part: &str| {
            let expected = "expected a time like `20ms` or two like `5ms..60ms`";
            humantime::parse_duration(part.trim())
                .map_err(|error| ParseError(format!("found `{text}` ({error}), {expected}")))
        };
        let (least, most) = (bound(least)?, bound(most)?);
        if least > most {
            return Err(ParseError(format!("found `{text}`, expected the smaller time first")));
        }
        Ok(Self { least, most })
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.least).fmt(f)?;
        if self.least != self.most {
            write!(f, "..{}", humantime::format_duration(self.most))?;
        }
        Ok(())
    }
}

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Latency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Seed;

    #[test]
    fn is_one_time_or_a_range() {
        assert_eq!("20ms".parse(), Ok(Latency::fixed(Duration::from_millis(20))));
        let range: Latency = "5ms..1s".parse().unwrap();
        assert_eq!(range.to_string(), "5ms..1s");
        let mut dice = Seed::fixed(1).derive("latency");
        for _ in 0..100 {
            let drawn = range.draw(&mut dice);
            assert!(drawn >= Duration::from_millis(5) && drawn <= Duration::from_secs(1));
        }
        for bad in ["", "20", "2s..1s", "..", "1s..x"] {
            assert!(bad.parse::<Latency>().is_err(), "{bad}");
        }
    }
}
