//! What a scenario file says.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::config::{Concurrency, Limits};
use crate::simulate::{Changes, Faults, Latency, LimitsTold, Settings, WhenFull};

/// A file below `scenarios/`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scenario {
    /// In a sentence.
    pub(super) story: String,
    #[serde(default = "one")]
    pub(super) seed: u64,
    pub(super) server: Server,
    /// What becomes of the server, in the order of time.
    #[serde(default)]
    pub(super) changes: Vec<ChangeAt>,
    pub(super) client: Client,
    pub(super) jobs: Vec<JobPlan>,
    pub(super) expected: Expected,
}

/// The server at its start; what is absent is without bound.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Server {
    pub(super) latency: Latency,
    pub(super) capacity: Option<u32>,
    #[serde(default)]
    pub(super) when_full: WhenFull,
    pub(super) requests_per_minute: Option<u32>,
    pub(super) tokens_per_minute: Option<u64>,
    #[serde(default = "second", deserialize_with = "duration")]
    pub(super) burst: Duration,
    #[serde(default)]
    pub(super) limits_told: LimitsTold,
    pub(super) faults: Option<Faults>,
}

/// A change as `/_sim/faults` takes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangeAt {
    #[serde(deserialize_with = "duration")]
    pub(super) at: Duration,
    pub(super) server: Changes,
}

/// How batchd is configured.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Client {
    pub(super) concurrency: Slots,
    /// Bounds of `auto`.
    #[serde(default = "least")]
    pub(super) min: u32,
    #[serde(default = "most")]
    pub(super) max: u32,
    pub(super) requests_per_minute: Option<u32>,
    pub(super) tokens_per_minute: Option<u64>,
}

/// A number, or the word `auto`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Slots {
    Fixed(u32),
    Word(Word),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Word {
    Auto,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct JobPlan {
    pub(super) lines: u32,
    /// When it is dropped.
    #[serde(default, deserialize_with = "duration")]
    pub(super) at: Duration,
    #[serde(default = "five")]
    pub(super) priority: u8,
    /// Bytes of each prompt, evenly spread.
    #[serde(default = "few")]
    pub(super) prompt_bytes: [u32; 2],
    pub(super) max_tokens: Option<u32>,
    #[serde(default)]
    pub(super) expected: ExpectedOfJob,
}

/// From and to, both included.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Range(pub(super) f64, pub(super) f64);

/// Each range is that of the member of the same name in `measure::Measured`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Expected {
    pub(super) use_percent: Option<Range>,
    pub(super) refused_percent: Option<Range>,
    pub(super) makespan_seconds: Option<Range>,
    /// Beside that of the same run with the given concurrency.
    pub(super) makespan_ratio: Option<Ratio>,
    pub(super) median_latency_ratio: Option<Range>,
    pub(super) p99_latency_ratio: Option<Range>,
    pub(super) full_rate_seconds: Option<Range>,
    pub(super) settled_seconds: Option<Range>,
    pub(super) followed_seconds: Option<Range>,
    pub(super) most_in_flight: Option<Range>,
    pub(super) upstream_ratio: Option<Range>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ratio {
    pub(super) concurrency: u32,
    pub(super) range: Range,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ExpectedOfJob {
    /// From its being dropped to its last answer.
    pub(super) makespan_seconds: Option<Range>,
    /// The same beside what it takes when it is alone.
    pub(super) alone_ratio: Option<Range>,
}

impl Scenario {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    /// As the server begins.
    pub(super) fn settings(&self) -> Settings {
        let server = self.server.clone();
        Settings {
            latency: server.latency,
            capacity: server.capacity,
            when_full: server.when_full,
            requests_per_minute: server.requests_per_minute,
            tokens_per_minute: server.tokens_per_minute,
            burst: server.burst,
            limits_told: server.limits_told,
            faults: server.faults.unwrap_or_default(),
            ..Settings::default()
        }
    }
}

impl Client {
    pub(super) fn limits(&self) -> Limits {
        let concurrency = match self.concurrency {
            Slots::Fixed(slots) => Concurrency::Fixed(slots),
            Slots::Word(Word::Auto) => Concurrency::Auto { min: self.min, max: self.max },
        };
        Limits {
            concurrency,
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
        }
    }
}

impl Range {
    pub(super) fn holds(self, value: f64) -> bool {
        (self.0..=self.1).contains(&value)
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(serde::de::Error::custom)
}

const fn one() -> u64 {
    1
}

const fn least() -> u32 {
    1
}

const fn most() -> u32 {
    256
}

const fn five() -> u8 {
    5
}

const fn second() -> Duration {
    Duration::from_secs(1)
}

const fn few() -> [u32; 2] {
    [40, 40]
}
