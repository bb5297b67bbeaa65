//! How a fine-tune ends that doesn't simply succeed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::settings::{ParseError, words};

/// What becomes of a fine-tune when about half of its time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It fails, with an error.
    Fail,
    /// It is cancelled, by somebody else.
    Cancel,
    /// It can't be found any more.
    Vanish,
    /// It goes through a status that nobody knows, and succeeds.
    Odd,
}

words!(Fate { "fail" => Fail, "cancel" => Cancel, "vanish" => Vanish, "odd" => Odd });

impl Fate {
    /// A suffix that contains `sim-fail`, `sim-cancel`, `sim-vanish` or `sim-odd` decides for its fine-tune.
    pub(super) fn of_suffix(suffix: &str) -> Option<Self> {
        let fates = [Self::Fail, Self::Cancel, Self::Vanish, Self::Odd];
        fates.into_iter().find(|fate| suffix.contains(&format!("sim-{fate}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_a_suffix_decide() {
        assert_eq!(Fate::of_suffix("demo-sim-vanish"), Some(Fate::Vanish));
        assert_eq!(Fate::of_suffix("sim-odd"), Some(Fate::Odd));
        assert_eq!(Fate::of_suffix("similar"), None);
    }
}
