//! Names and identities: jobs, requests, queues. Parsed once into types that cannot be wrong.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

/// Identity of an accepted job: a `UUIDv7`, so that jobs sort by the time they were accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(Uuid);

impl JobId {
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for JobId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// One request of one job. `index` counts the job's requests from 0 in input order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    pub job: JobId,
    pub index: u32,
}

impl fmt::Display for RequestId {
    /// The form that stands in a record's `id`, without its `batch_req_` prefix.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.job, self.index)
    }
}

/// Why a text is no job name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidName {
    #[error("the name is empty")]
    Empty,
    #[error("the name is longer than {} bytes", JobName::BYTES_MAX)]
    TooLong,
    #[error("the name holds {0:?}, which a folder name can't or shouldn't hold")]
    Character(char),
    #[error("the name begins with `{0}`")]
    Start(char),
}

/// A job's name: the name of its results folder. No slash, no control character, no leading dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobName(String);

impl JobName {
    /// Leaves room in a 255-byte file name for a `-<number>` and our own endings.
    pub const BYTES_MAX: usize = 200;

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name with `-<number>` behind it from 2 on, cut where it would become too long.
    #[must_use]
    pub fn numbered(&self, number: u32) -> Self {
        if number < 2 {
            return self.clone();
        }
        let suffix = format!("-{number}");
        let room = Self::BYTES_MAX.saturating_sub(suffix.len());
        let stem = self.0.get(..self.0.floor_char_boundary(room)).unwrap_or_default();
        Self(format!("{stem}{suffix}"))
    }
}

impl FromStr for JobName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(InvalidName::Empty);
        }
        if text.len() > Self::BYTES_MAX {
            return Err(InvalidName::TooLong);
        }
        let bad = |c: &char| *c == '/' || *c == '\\' || c.is_control() || is_bidi_control(*c);
        if let Some(bad) = text.chars().find(bad) {
            return Err(InvalidName::Character(bad));
        }
        match text.chars().next() {
            Some(first @ ('.' | '-')) => Err(InvalidName::Start(first)),
            _ => Ok(Self(text.to_owned())),
        }
    }
}

/// Characters that make a terminal show a name in another order than it is stored.
const fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl TryFrom<String> for JobName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<JobName> for String {
    fn from(name: JobName) -> Self {
        name.0
    }
}

impl fmt::Display for JobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Requests that share limits: `provider/model`, or `provider/-` for requests without a model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct QueueName {
    provider: String,
    model: Option<String>,
}

impl QueueName {
    /// A provider's name holds no slash (checked where configs are), so the text form is unambiguous.
    pub fn new(provider: impl Into<String>, model: Option<&str>) -> Self {
        Self { provider: provider.into(), model: model.filter(|m| *m != "-").map(str::to_owned) }
    }

    pub fn provider(&self) -> &str {
        &self.provider
    }

    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.provider, self.model.as_deref().unwrap_or("-"))
    }
}

impl From<String> for QueueName {
    fn from(text: String) -> Self {
        match text.split_once('/') {
            Some((provider, model)) => Self::new(provider, Some(model)),
            None => Self::new(text, None),
        }
    }
}

impl From<QueueName> for String {
    fn from(queue: QueueName) -> Self {
        queue.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_numbered_name_is_no_longer_than_a_name_may_be() {
        let long: JobName = "é".repeat(100).parse().unwrap();
        assert_eq!(long.numbered(1), long);
        assert_eq!(long.numbered(12).as_str(), format!("{}-12", "é".repeat(98)));
        assert!(long.numbered(u32::MAX).as_str().parse::<JobName>().is_ok());
    }

    #[test]
    fn job_names_are_safe_folder_names() {
        for good in ["nightly", "bare.v2", "über 3", "a-b_c", "x.jsonl"] {
            assert_eq!(good.parse::<JobName>().unwrap().as_str(), good);
        }
        let long = "x".repeat(JobName::BYTES_MAX + 1);
        for bad in ["", "a/b", "..", ".hidden", "-rf", "a\nb", "a\0", "a\u{202e}b", long.as_str()] {
            assert!(bad.parse::<JobName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn queue_names_survive_their_text_form() {
        for text in ["openai/gpt-4.1-mini", "openai/-", "local/org/model:free"] {
            assert_eq!(QueueName::from(text.to_owned()).to_string(), text);
        }
        assert_eq!(QueueName::new("p", Some("m/x")).model(), Some("m/x"));
        assert_eq!(QueueName::from("openai/-".to_owned()).model(), None);
    }
}
