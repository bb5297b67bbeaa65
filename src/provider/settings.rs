//! What is told of a provider at the start, and again when the configuration is read again.

use std::fmt;
use std::time::Duration;

use reqwest::header::HeaderMap;
use secrecy::SecretString;
use url::Url;

/// One endpoint of a provider, as the configuration has it.
#[derive(Clone)]
pub struct Settings {
    pub name: String,
    pub base_url: Url,
    pub api_key: Option<SecretString>,
    pub custom: Custom,
    /// For one whole exchange, connect to last byte.
    pub timeout: Duration,
    pub waits: Waits,
    /// Largest reply body in bytes.
    pub max_reply: u64,
    /// In place of a shorter `timeout` for requests of the [flex tier](crate::provider::is_flex).
    pub flex_timeout: Duration,
    /// Chat and completions are asked for as streams, where the request leaves it open.
    pub stream: bool,
}

/// How long the parts of an exchange may take, within the time-out for all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// DNS, TCP and TLS together. Nothing was sent when it ends.
    pub connect: Duration,
    /// From the beginning until the reply begins; none = no bound of its own.
    pub first_byte: Option<Duration>,
    /// Between two pieces of the reply; none = no bound of its own.
    pub idle: Option<Duration>,
}

impl Default for Waits {
    fn default() -> Self {
        // A server that is up answers a handshake far sooner than this, however busy its models are.
        Self { connect: Duration::from_secs(10), first_byte: None, idle: None }
    }
}

/// How an endpoint differs from OpenAI's own.
#[derive(Clone, Debug, Default)]
pub struct Custom {
    /// Azure's: a part of every url, and often the deployment is one, too.
    pub api_version: Option<String>,
    /// What goes along with every request to it; what is marked sensitive is a secret.
    pub headers: HeaderMap,
    /// Where else the same provider is: images may lie there, too.
    pub siblings: Vec<Url>,
}

impl fmt::Debug for Settings {
    /// Without what a url can hide: user, password and query.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base_url = format!("{}{}", self.base_url.origin().ascii_serialization(), self.base_url.path());
        f.debug_struct("Settings")
            .field("name", &self.name)
            .field("base_url", &base_url)
            .field("api_key", &self.api_key)
            .field("api_version", &self.custom.api_version)
            .field("headers", &self.custom.headers)
            .field("timeout", &self.timeout)
            .field("waits", &self.waits)
            .field("max_reply", &self.max_reply)
            .field("flex_timeout", &self.flex_timeout)
            .field("stream", &self.stream)
            .finish()
    }
}
