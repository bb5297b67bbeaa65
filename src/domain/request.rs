//! What a user asks for: the kinds of jobs, the endpoints they use, and one request.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// `kind` of a TOML spec; of a JSONL job it is [`Kind::Requests`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Completions,
    Chat,
    Images,
    Embeddings,
    Responses,
    Moderations,
    Requests,
    FineTune,
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::Completions,
        Self::Chat,
        Self::Images,
        Self::Embeddings,
        Self::Responses,
        Self::Moderations,
        Self::Requests,
        Self::FineTune,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completions => "completions",
            Self::Chat => "chat",
            Self::Images => "images",
            Self::Embeddings => "embeddings",
            Self::Responses => "responses",
            Self::Moderations => "moderations",
            Self::Requests => "requests",
            Self::FineTune => "fine_tune",
        }
    }

    /// The endpoint that every request of such a job goes to; none where each line names its own.
    pub const fn endpoint(self) -> Option<Endpoint> {
        match self {
            Self::Completions => Some(Endpoint::Completions),
            Self::Chat => Some(Endpoint::ChatCompletions),
            Self::Images => Some(Endpoint::Images),
            Self::Embeddings => Some(Endpoint::Embeddings),
            Self::Responses => Some(Endpoint::Responses),
            Self::Moderations => Some(Endpoint::Moderations),
            Self::Requests | Self::FineTune => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An endpoint that takes one JSON body and gives one JSON answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    ChatCompletions,
    Completions,
    Embeddings,
    Responses,
    Moderations,
    Images,
}

/// The text is no url that batchd can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownEndpoint;

impl Endpoint {
    pub const ALL: [Self; 6] = [
        Self::ChatCompletions,
        Self::Completions,
        Self::Embeddings,
        Self::Responses,
        Self::Moderations,
        Self::Images,
    ];

    /// The path below a provider's `base_url`, with its leading slash and without `/v1`.
    pub const fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/chat/completions",
            Self::Completions => "/completions",
            Self::Embeddings => "/embeddings",
            Self::Responses => "/responses",
            Self::Moderations => "/moderations",
            Self::Images => "/images/generations",
        }
    }

    /// As a batch line's `url` names it.
    pub const fn url(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
            Self::Responses => "/v1/responses",
            Self::Moderations => "/v1/moderations",
            Self::Images => "/v1/images/generations",
        }
    }

    /// Whether a request without a `model` is still a whole request (the server has a default).
    pub const fn model_is_optional(self) -> bool {
        matches!(self, Self::Moderations | Self::Images)
    }
}

impl FromStr for Endpoint {
    type Err = UnknownEndpoint;

    /// Takes a batch line's `url`; the `/v1` may be missing, as Azure writes it.
    fn from_str(url: &str) -> Result<Self, Self::Err> {
        let path = url.strip_prefix("/v1").unwrap_or(url);
        Self::ALL.into_iter().find(|e| e.path() == path).ok_or(UnknownEndpoint)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url())
    }
}

/// One unit of work, as it is about to be sent.
#[derive(Clone, Debug)]
pub struct Request {
    /// The user's own name for it, unique within the job.
    pub custom_id: String,
    pub endpoint: Endpoint,
    pub model: Option<String>,
    /// Whether its answer is to come as a stream; none leaves it to the provider.
    pub stream: Option<bool>,
    /// The JSON object to send, byte for byte.
    pub body: Box<RawValue>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_with_and_without_v1() {
        for endpoint in Endpoint::ALL {
            assert_eq!(endpoint.url().parse(), Ok(endpoint));
            assert_eq!(endpoint.path().parse(), Ok(endpoint));
        }
        for bad in ["", "/v1", "/v1/files", "v1/chat/completions", "/v1/chat/completions/"] {
            assert_eq!(bad.parse::<Endpoint>(), Err(UnknownEndpoint), "{bad}");
        }
    }
}
