//! The configuration: what the user may set ([`Config`]), where it is found and how it is checked ([`load()`]).
//!
//! Workers never see [`Config`]: `daemon::build` fills each one's own small `Settings` from it.

mod ca_file;
mod endpoint;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod headers;
mod http;
mod load;
mod provider;
mod schema;
mod section;
#[expect(clippy::ref_option, clippy::trivially_copy_pass_by_ref, reason = "serde hands over references")]
mod shown;
mod supervisor;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use chrono_tz::Tz;
use reqwest::header::HeaderMap;
use secrecy::SecretString;
use serde::Serialize;
use url::Url;

use crate::domain::{QueueName, RetryPolicy};

pub use crate::telemetry::Format as LogFormat;
pub use ca_file::CaFile;
pub use headers::Headers;
pub use load::{Keys, Loaded, journal_stream, load, sample};
pub use supervisor::Supervisor;

/// Everything that can be set, with relative paths made absolute and secrets read.
///
/// Serialised it is the file that sets it so, without the secrets: `batchd config` prints that.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// The folder with `jobs/`, `results/` and `state/`.
    #[serde(serialize_with = "shown::path")]
    pub root: PathBuf,
    pub intake: Intake,
    /// At least one; the first is the default.
    pub providers: Vec<Provider>,
    #[serde(serialize_with = "shown::retry")]
    pub retry: RetryPolicy,
    pub shutdown: Shutdown,
    pub log: Log,
    pub control: Control,
    pub http: Http,
    pub storage: Storage,
    /// The machine's time zone: `$TZ`, else what the system is set to, else UTC.
    #[serde(skip)]
    pub zone: Tz,
}

/// `[intake]`
#[derive(Clone, Debug, Serialize)]
pub struct Intake {
    /// How often the jobs folder is looked through, whatever events say. Default 5s.
    #[serde(serialize_with = "shown::duration")]
    pub rescan: Duration,
    /// How long a file's size and mtime must rest before it is read. Default 1s.
    #[serde(serialize_with = "shown::duration")]
    pub settle: Duration,
    /// Folders beside the jobs folder from which specs may name data files. Default none.
    #[serde(serialize_with = "shown::paths")]
    pub input_dirs: Vec<PathBuf>,
    /// Longest line of a JSONL file, in bytes. Default 16MiB.
    #[serde(serialize_with = "shown::size")]
    pub max_line: u64,
}

/// `[[providers]]`
#[derive(Clone, Debug, Serialize)]
pub struct Provider {
    /// Letters, digits, `-`, `_`, `.`: it stands in queue names.
    pub name: String,
    /// Without a trailing slash; `/chat/completions` and the like are added to it.
    #[serde(serialize_with = "shown::url")]
    pub base_url: Url,
    /// Read from `api_key_env` or `api_key_file`; none = no key is sent.
    #[serde(skip)]
    pub api_key: Option<SecretString>,
    /// Where it was, or would have been, read.
    pub api_key_env: Option<String>,
    #[serde(serialize_with = "shown::path_if_any")]
    pub api_key_file: Option<PathBuf>,
    /// Azure's `api-version`; where the url names no deployment, requests then go to the one that their model names.
    pub api_version: Option<String>,
    /// `headers` and `headers_env`: what goes along with every request.
    #[serde(flatten)]
    pub headers: Headers,
    /// Certificates to trust beside the system's.
    pub ca_file: Option<CaFile>,
    /// `[[providers.endpoints]]`: where it is asked in place of `base_url`. None = there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// For one whole exchange. Default 10m: a shorter one buys answers twice.
    #[serde(serialize_with = "shown::duration")]
    pub timeout: Duration,
    /// Until the connection stands, TLS included. Default 10s.
    #[serde(serialize_with = "shown::duration")]
    pub connect_timeout: Duration,
    /// Until the reply begins. None = `timeout` alone.
    #[serde(serialize_with = "shown::duration_if_any")]
    pub first_byte_timeout: Option<Duration>,
    /// Between two pieces of the reply. None = `timeout` alone.
    #[serde(serialize_with = "shown::duration_if_any")]
    pub idle_timeout: Option<Duration>,
    /// Bound over all queues of this provider. Default 256.
    pub concurrency: u32,
    /// Largest reply that is read, in bytes. Default 64MiB.
    #[serde(serialize_with = "shown::size")]
    pub max_reply: u64,
    /// For one whole exchange of a request with `service_tier` `flex`, its first byte included; `timeout` where that is
    /// longer. Default 15m.
    #[serde(serialize_with = "shown::duration")]
    pub flex_timeout: Duration,
    /// When less than this is left to a job's deadline, its flex requests are sent in the ordinary tier. None = never.
    #[serde(serialize_with = "shown::duration_if_any")]
    pub flex_fallback: Option<Duration>,
    /// A parameter value that the API would refuse is an error, not a warning. Default false.
    pub strict: bool,
    /// Answers to chat and completions come as streams, where the job leaves it open. Default false.
    pub stream: bool,
    /// `[providers.limits]`
    pub limits: Limits,
    /// `[[providers.models]]`: the first whose name matches replaces members of `limits`.
    pub models: Vec<ModelLimits>,
}

/// `[[providers.endpoints]]`: what it leaves out is the provider's.
#[derive(Clone, Debug, Serialize)]
pub struct Endpoint {
    #[serde(serialize_with = "shown::url_if_any")]
    pub url: Option<Url>,
    /// Read from `api_key_env` or `api_key_file`.
    #[serde(skip)]
    pub api_key: Option<SecretString>,
    pub api_key_env: Option<String>,
    #[serde(serialize_with = "shown::path_if_any")]
    pub api_key_file: Option<PathBuf>,
    pub api_version: Option<String>,
    /// They replace the provider's of the same names.
    #[serde(flatten)]
    pub headers: Headers,
    /// Its share of the requests beside the others'. Default 1.
    pub weight: u32,
}

/// One place where a provider is asked: all that an endpoint, or a provider without any, says.
#[derive(Clone, Debug)]
pub struct Site {
    pub url: Url,
    pub api_key: Option<SecretString>,
    pub api_version: Option<String>,
    pub headers: HeaderMap,
    pub weight: u32,
}

/// Limits of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    #[serde(flatten)]
    pub concurrency: Concurrency,
    /// None = unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Prompt and output together. None = unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { concurrency: Concurrency::Fixed(64), requests_per_minute: None, tokens_per_minute: None }
    }
}

/// How many requests of a queue may be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concurrency {
    Fixed(u32),
    /// Found by watching latency and refusals, within these: `1 <= min <= max`.
    Auto {
        min: u32,
        max: u32,
    },
}

/// `[[providers.models]]`: members given here replace those of the provider's limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelLimits {
    /// A model's name, or a glob like `gpt-4.1*`.
    pub name: String,
    #[serde(flatten)]
    pub concurrency: Option<Concurrency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
}

/// `[shutdown]`
#[derive(Clone, Debug, Serialize)]
pub struct Shutdown {
    /// How long requests in flight may take to finish after SIGTERM. Default 30s.
    #[serde(serialize_with = "shown::duration")]
    pub grace: Duration,
}

/// `[log]`
#[derive(Clone, Debug, Serialize)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a tracing filter. Default `info`.
    pub level: String,
    #[serde(serialize_with = "shown::format")]
    pub format: LogFormat,
}

/// `[control]`
#[derive(Clone, Debug, Serialize)]
pub struct Control {
    /// The Unix socket that the commands speak to. Default `<root>/batchd.sock`.
    #[serde(serialize_with = "shown::path")]
    pub socket: PathBuf,
    /// The group whose members may speak to it, too. None = only its owner.
    pub group: Option<String>,
}

/// `[http]`
#[derive(Clone, Debug, Default, Serialize)]
pub struct Http {
    /// Where health and metrics are to be had over TCP. None = nowhere.
    pub listen: Option<SocketAddr>,
    /// Read from `token_env` or `token_file`: what `/metrics` asks for over TCP. None = nothing.
    #[serde(skip)]
    pub token: Option<SecretString>,
    /// Where it was, or would have been, read.
    pub token_env: Option<String>,
    #[serde(serialize_with = "shown::path_if_any")]
    pub token_file: Option<PathBuf>,
    /// Names, in lower case, by which it may be asked beside this machine's own.
    pub hosts: Vec<String>,
}

/// `[storage]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Storage {
    /// So many bytes of the file system that `state/` is on stay free: below it nothing is sent. None = 1GiB, or a
    /// twentieth of the file system if that is less.
    #[serde(serialize_with = "shown::size_if_any")]
    pub min_free: Option<u64>,
    /// How long the state of a job is kept once it has ended. Its results stay. Default 7d.
    #[serde(serialize_with = "shown::duration")]
    pub keep_state: Duration,
}

impl Config {
    pub fn jobs_dir(&self) -> PathBuf {
        self.root.join("jobs")
    }

    pub fn results_dir(&self) -> PathBuf {
        self.root.join("results")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.root.join("state")
    }

    pub fn provider(&self, name: &str) -> Option<&Provider> {
        self.providers.iter().find(|p| p.name == name)
    }
}

impl Provider {
    /// The limits of one of this provider's queues.
    pub fn limits_of(&self, queue: &QueueName) -> Limits {
        let model = queue.model().unwrap_or("-");
        let matches = |m: &&ModelLimits| glob::Pattern::new(&m.name).is_ok_and(|p| p.matches(model));
        let Some(over) = self.models.iter().find(matches) else { return self.limits };
        Limits {
            concurrency: over.concurrency.unwrap_or(self.limits.concurrency),
            requests_per_minute: over.requests_per_minute.or(self.limits.requests_per_minute),
            tokens_per_minute: over.tokens_per_minute.or(self.limits.tokens_per_minute),
        }
    }
}
