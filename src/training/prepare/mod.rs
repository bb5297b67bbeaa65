//! Makes a training file of the data that people have.
//!
//! # Operation
//!
//! [`load()`] reads rows of any form. [`Preparation`] then takes the pairs through the checks that the provider's own
//! tool had, in its order: what must be is done and told, what is advised is proposed to a [`Person`], and each check
//! sees what the ones before it left. At the end the pairs are written as they are, as conversations, or, where
//! completions are classes, split into data to train on and data to validate by.
//!
//! | check | what becomes of it |
//! |---|---|
//! | fewer than 100 pairs | told |
//! | columns `prompt` and `completion` in another case, or others beside them | mended |
//! | a completion is empty | the pair is left out |
//! | what kind of training it is | told |
//! | a pair stands twice, or has more than 10,000 characters | leaving out is proposed |
//! | much is upper case | lower case is proposed |
//! | prompts end with no common separator | one is proposed |
//! | prompts, or completions, begin alike at length | leaving that out is proposed |
//! | completions have no common ending | one is proposed |
//! | a completion does not begin with a space | one is proposed |
//! | all prompts, or all completions, are equal | refused |

mod load;
mod split;
mod steps;
mod talk;

use std::io;

use serde::Serialize;

use crate::diag::Diagnostic;

pub use self::load::{Form, Loaded, load};
pub use self::split::{Classes, Split, split};
pub use self::steps::{Preparation, Prepared};
pub use self::talk::Talk;
pub use crate::training::pairs::Task;

/// One example of the classic form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pair {
    pub prompt: String,
    pub completion: String,
    /// Where it begins in the file that it was read from.
    #[serde(skip)]
    pub line: u32,
}

impl Pair {
    /// The line of a training file that it is, without its end.
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("texts serialise")
    }
}

/// Who is told what was found, and decides what is done about it.
pub trait Person {
    fn tell(&mut self, found: Diagnostic);

    /// Whether to do what `proposal` says: `add the separator …`. An error ends the preparation.
    fn agrees(&mut self, proposal: &str) -> io::Result<bool>;
}

/// Why nothing was prepared.
#[derive(Debug)]
pub enum Stop {
    /// The data can't be used; the person was told why.
    Refused,
    /// The person could not be asked.
    Unanswered(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Unanswered(error)
    }
}

#[cfg(test)]
mod tests;
