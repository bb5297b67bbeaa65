//! Providers: OpenAI and every server that speaks its API.
//!
//! [`Provider::call`] is one exchange for one request: no retry, no redirect, the reply capped and
//! timed out as a whole (P4, P5). `transport` moves bytes, `openai` knows URLs and keys, `classify`
//! turns a reply into an [`Outcome`], `answer` says what a 200 of each endpoint must hold.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use reqwest::header::HeaderMap;
use secrecy::SecretString;
use thiserror::Error;
use url::Url;

use crate::domain::Outcome;

/// One provider's part of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    pub name: String,
    pub base_url: Url,
    pub api_key: Option<SecretString>,
    /// For one whole exchange, connect to last byte.
    pub timeout: Duration,
    /// Largest reply body in bytes.
    pub max_reply: u64,
}

/// One HTTP request, whole.
#[derive(Clone, Debug)]
pub struct HttpRequest {
    pub method: reqwest::Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub timeout: Duration,
    pub max_reply: u64,
}

/// One HTTP reply, whole.
#[derive(Clone, Debug)]
pub struct HttpReply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why there is no whole reply. A kind per reaction.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The request certainly never reached the server: DNS, refused, TLS, connect time-out.
    #[error("can't connect: {0}")]
    Connect(String),
    /// No whole reply within the time-out. The request may have been executed.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// The connection broke after the request was on its way.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// The reply stopped in its middle. It was executed.
    #[error("the reply was cut short: {0}")]
    Cut(String),
    /// The reply is larger than the bound.
    #[error("the reply is larger than {0} bytes")]
    TooLarge(u64),
}

/// Moves one request and its reply. A trait, so that tests and simulations need no sockets.
pub trait Transport: Send + Sync + fmt::Debug {
    fn exchange(&self, request: HttpRequest) -> BoxFuture<'_, Result<HttpReply, TransportError>>;
}

/// What a call brought back.
#[derive(Debug)]
pub struct Reply {
    pub outcome: Outcome,
    /// What the answer says it cost; none without an answer or where the server doesn't say.
    pub usage: Option<Usage>,
    pub rate: RateHeaders,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub input_tokens: u64,
    pub output_tokens: u64,
}

/// `x-ratelimit-*` as far as the server sends them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateHeaders {
    pub limit_requests: Option<u64>,
    pub remaining_requests: Option<u64>,
    pub reset_requests: Option<Duration>,
    pub limit_tokens: Option<u64>,
    pub remaining_tokens: Option<u64>,
    pub reset_tokens: Option<Duration>,
}

/// One provider, ready to be called.
#[derive(Clone, Debug)]
pub struct Provider {
    settings: Arc<Settings>,
    transport: Arc<dyn Transport>,
}

impl Provider {
    pub fn new(settings: Settings, transport: Arc<dyn Transport>) -> Self {
        Self { settings: Arc::new(settings), transport }
    }

    pub fn name(&self) -> &str {
        &self.settings.name
    }

    pub fn transport(&self) -> &dyn Transport {
        self.transport.as_ref()
    }
}
