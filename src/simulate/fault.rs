//! Faults by name, and how likely each is: `500=0.02,cut=0.005`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use fastrand::Rng;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::settings::ParseError;
use crate::diag;

/// What goes wrong with a request that was fit to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// 408, without a word, as proxies say it.
    RequestTimeout,
    /// 409 `conflict`.
    Conflict,
    /// 429 `rate_limit_exceeded`; what it says about coming back is drawn from [`Settings::hints`](super::Settings::hints).
    RateLimit,
    /// 500 `server_error`.
    ServerError,
    /// 502 with the HTML page of a gateway, as these come in reality.
    BadGateway,
    /// 503 `server_is_overloaded`.
    Overloaded,
    /// 504 with the HTML page of a gateway.
    GatewayTimeout,
    /// The request is read, then the connection is reset; nothing is done.
    Reset,
    /// The work is done, then the connection is reset before the first byte of the reply.
    Drop,
    /// The work is done, then the connection breaks in the middle of the body.
    Cut,
    /// 200 with an HTML page, as captive portals answer.
    Garbage,
    /// 200 with an empty body.
    Empty,
    /// The whole answer, [`Settings::slow`](super::Settings::slow) later.
    Slow,
    /// The whole answer, whose bytes trickle for as long as [`Settings::slow`](super::Settings::slow).
    Drip,
    /// The whole answer, whose second half comes [`Settings::slow`](super::Settings::slow) after the first.
    Stall,
    /// 200 with the first half of the body, as if it were all: of a stream, whole events.
    Half,
    /// 200 with an error in the place of the answer: in a stream, after its first half.
    Error,
}

impl Fault {
    pub const ALL: [Self; 17] = [
        Self::RequestTimeout,
        Self::Conflict,
        Self::RateLimit,
        Self::ServerError,
        Self::BadGateway,
        Self::Overloaded,
        Self::GatewayTimeout,
        Self::Reset,
        Self::Drop,
        Self::Cut,
        Self::Garbage,
        Self::Empty,
        Self::Slow,
        Self::Drip,
        Self::Stall,
        Self::Half,
        Self::Error,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RequestTimeout => "408",
            Self::Conflict => "409",
            Self::RateLimit => "429",
            Self::ServerError => "500",
            Self::BadGateway => "502",
            Self::Overloaded => "503",
            Self::GatewayTimeout => "504",
            Self::Reset => "reset",
            Self::Drop => "drop",
            Self::Cut => "cut",
            Self::Garbage => "garbage",
            Self::Empty => "empty",
            Self::Slow => "slow",
            Self::Drip => "drip",
            Self::Stall => "stall",
            Self::Half => "half",
            Self::Error => "error",
        }
    }

    /// The fault of this name.
    pub(super) fn named(name: &str) -> Result<Self, ParseError> {
        Self::ALL.into_iter().find(|fault| fault.as_str() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str);
            let hint = diag::nearest(name, names).map_or_else(
                || format!("expected one of {}", names.join(", ")),
                |near| format!("did you mean `{near}`?"),
            );
            ParseError(format!("unknown fault `{name}`, {hint}"))
        })
    }

    /// Whether the work is done all the same: the provider bills an answer, keeps a file, starts a fine-tune.
    pub const fn has_effect(self) -> bool {
        match self {
            Self::RequestTimeout
            | Self::Conflict
            | Self::RateLimit
            | Self::ServerError
            | Self::BadGateway
            | Self::Overloaded
            | Self::GatewayTimeout
            | Self::Reset => false,
            Self::Drop
            | Self::Cut
            | Self::Garbage
            | Self::Empty
            | Self::Slow
            | Self::Drip
            | Self::Stall
            | Self::Half
            | Self::Error => true,
        }
    }

    /// Whether the whole answer arrives all the same, however late.
    pub const fn is_answered(self) -> bool {
        matches!(self, Self::Slow | Self::Drip | Self::Stall)
    }

    /// Whether it says that the server has too much to do, which it says at once.
    pub(super) const fn is_refusal(self) -> bool {
        matches!(self, Self::RateLimit | Self::Overloaded)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The probability of each fault; together at most 1. A request meets one fault or none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults(Vec<(Fault, f64)>);

impl Faults {
    /// No faults at all.
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// Checks that every probability lies in `0.0..=1.0` and that they add up to at most 1.
    pub fn new(chances: impl IntoIterator<Item = (Fault, f64)>) -> Result<Self, ParseError> {
        let mut faults: Vec<(Fault, f64)> = Vec::new();
        for (fault, chance) in chances {
            if !(0.0..=1.0).contains(&chance) {
                return Err(ParseError(format!(
                    "the probability of `{fault}` is {chance}, expected 0 to 1 (0.02 = 2 %)"
                )));
            }
            if faults.iter().any(|(known, _)| *known == fault) {
                return Err(ParseError(format!("fault `{fault}` is given twice")));
            }
            faults.push((fault, chance));
        }
        let sum: f64 = faults.iter().map(|(_, chance)| chance).sum();
        // Ten times 0.1 is a little more than 1 in binary.
        if sum > 1.0 + 1e-9 {
            return Err(ParseError(format!("the probabilities add up to {sum}, expected at most 1")));
        }
        // The order decides which draw means which fault: it must not depend on how they were written.
        faults.sort_by_key(|(fault, _)| *fault);
        Ok(Self(faults))
    }

    /// One draw, whatever the probabilities: the n-th request meets the n-th draw.
    pub(super) fn draw(&self, dice: &mut Rng) -> Option<Fault> {
        let mut left = dice.f64();
        for (fault, chance) in &self.0 {
            if left < *chance {
                return Some(*fault);
            }
            left -= chance;
        }
        None
    }
}

impl FromStr for Faults {
    type Err = ParseError;

    /// `NAME=PROBABILITY` separated by commas; an empty text means no faults.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let chances: Result<Vec<_>, _> = parts.map(parse_chance).collect();
        Self::new(chances?)
    }
}

fn parse_chance(part: &str) -> Result<(Fault, f64), ParseError> {
    let wrong = || ParseError(format!("found `{part}`, expected `NAME=PROBABILITY` like `500=0.02`"));
    let (name, chance) = part.split_once('=').ok_or_else(wrong)?;
    Ok((Fault::named(name.trim())?, chance.trim().parse().map_err(|_| wrong())?))
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (fault, chance)) in self.0.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            write!(f, "{comma}{fault}={chance}")?;
        }
        Ok(())
    }
}

impl Serialize for Faults {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Faults {
    /// The text form, or an object of names and probabilities.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Object(BTreeMap<String, f64>),
        }
        let faults = match Form::deserialize(deserializer)? {
            Form::Text(text) => text.parse(),
            Form::Object(chances) => chances
                .into_iter()
                .map(|(name, chance)| Ok((Fault::named(&name)?, chance)))
                .collect::<Result<Vec<_>, ParseError>>()
                .and_then(Self::new),
        };
        faults.map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Seed;

    #[test]
    fn a_spec_survives_its_text_form() {
        let faults: Faults = " 500=0.02, cut=0.005 ,".parse().unwrap();
        assert_eq!(faults.to_string(), "500=0.02,cut=0.005");
        assert_eq!("".parse(), Ok(Faults::none()));
        let all: Vec<String> = Fault::ALL.iter().map(|f| format!("{f}=0.05")).collect();
        let object: Faults = serde_json::from_str(r#"{"cut": 0.005, "500": 0.02}"#).unwrap();
        assert_eq!(object, faults);
        assert_eq!(all.join(",").parse::<Faults>().unwrap().to_string(), all.join(","));
    }

    #[test]
    fn a_bad_spec_says_what_was_expected() {
        let error = |text: &str| text.parse::<Faults>().unwrap_err().to_string();
        assert_eq!(error("500"), "found `500`, expected `NAME=PROBABILITY` like `500=0.02`");
        assert_eq!(error("garbge=0.1"), "unknown fault `garbge`, did you mean `garbage`?");
        assert!(error("zebra=0.1").contains("expected one of 408, 409"));
        assert!(error("cut=1.5").contains("expected 0 to 1"));
        assert!(error("cut=NaN").contains("expected 0 to 1"));
        assert!(error("cut=0.6,drop=0.6").contains("at most 1"));
        assert!(error("cut=0.1,cut=0.1").contains("twice"));
    }

    #[test]
    fn draws_follow_the_seed_and_the_probabilities_whatever_their_order() {
        let draw = |text: &str| -> Vec<Option<Fault>> {
            let faults: Faults = text.parse().unwrap();
            let mut dice = Seed::fixed(7).derive("faults");
            (0..10_000).map(|_| faults.draw(&mut dice)).collect()
        };
        let drawn = draw("500=0.2,cut=0.1");
        assert_eq!(drawn, draw("cut=0.1,500=0.2"));
        let count = |fault| drawn.iter().filter(|drawn| **drawn == fault).count();
        assert!((1_900..2_100).contains(&count(Some(Fault::ServerError))));
        assert!((900..1_100).contains(&count(Some(Fault::Cut))));
        assert_eq!(count(Some(Fault::Drop)), 0);
        assert!(draw("drop=1").iter().all(|drawn| *drawn == Some(Fault::Drop)));
    }
}
