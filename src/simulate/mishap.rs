//! What goes wrong exactly once: `upload=drop,create=cut` is for the first upload and the first create.
//!
//! Where [`Faults`](super::Faults) leave it to the dice, a test that wants one reply lost says so here.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::fault::Fault;
use super::settings::{ParseError, words};

/// What a request to files, uploads, models or fine-tunes does. Those that change something are
/// [effects](super::Summary::effects) in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// `POST /files`.
    Upload,
    /// `POST /uploads`: a file that comes in parts.
    Begin,
    /// A part of it.
    Part,
    /// The parts become a file.
    Complete,
    /// They never will.
    Abandon,
    /// A fine-tune of either interface.
    Create,
    /// Of a fine-tune.
    Cancel,
    Pause,
    Resume,
    /// Of a file.
    Delete,
    DeleteModel,
    /// One object.
    Show,
    /// Several, events and checkpoints included.
    List,
    /// The content of a file.
    Content,
}

impl Act {
    /// Whether it changes nothing.
    pub(super) const fn is_look(self) -> bool {
        matches!(self, Self::Show | Self::List | Self::Content)
    }
}

words!(Act {
    "upload" => Upload,
    "begin" => Begin,
    "part" => Part,
    "complete" => Complete,
    "abandon" => Abandon,
    "create" => Create,
    "cancel" => Cancel,
    "pause" => Pause,
    "resume" => Resume,
    "delete" => Delete,
    "delete_model" => DeleteModel,
    "show" => Show,
    "list" => List,
    "content" => Content,
});

/// Faults that are met in this order, each once, by the first request of its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mishaps(Vec<(Act, Fault)>);

impl Mishaps {
    pub fn new(mishaps: impl IntoIterator<Item = (Act, Fault)>) -> Self {
        Self(mishaps.into_iter().collect())
    }

    /// What a request of this kind meets now.
    pub(super) fn meet(&mut self, act: Act) -> Option<Fault> {
        let place = self.0.iter().position(|(kind, _)| *kind == act)?;
        Some(self.0.remove(place).1)
    }
}

impl FromStr for Mishaps {
    type Err = ParseError;

    /// `ACT=FAULT` separated by commas; an empty text means none.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let mishap = |part: &str| {
            let wrong = || ParseError(format!("found `{part}`, expected `ACT=FAULT` like `upload=drop`"));
            let (act, fault) = part.split_once('=').ok_or_else(wrong)?;
            Ok((act.trim().parse()?, Fault::named(fault.trim())?))
        };
        parts.map(mishap).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Mishaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (act, fault)) in self.0.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            write!(f, "{comma}{act}={fault}")?;
        }
        Ok(())
    }
}

impl Serialize for Mishaps {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mishaps {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mishap_is_met_once_and_by_its_own_kind() {
        let text = "upload=drop,create=cut,upload=500";
        let mut mishaps: Mishaps = text.parse().unwrap();
        assert_eq!(mishaps.to_string(), text);
        assert_eq!(mishaps.meet(Act::Show), None);
        assert_eq!(mishaps.meet(Act::Upload), Some(Fault::Drop));
        assert_eq!(mishaps.meet(Act::Upload), Some(Fault::ServerError));
        assert_eq!(mishaps.meet(Act::Upload), None);
        assert_eq!(mishaps.meet(Act::Create), Some(Fault::Cut));
        assert_eq!(mishaps, Mishaps::default());
        for bad in ["upload", "upload=lost", "send=drop"] {
            assert!(bad.parse::<Mishaps>().is_err(), "{bad}");
        }
    }
}
