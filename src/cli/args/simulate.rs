//! The options of `batchd simulate`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::value_parser;

use crate::simulate::{Fate, Faults, Hints, ImageForm, Latency, LimitsTold, Mishaps, WhenFull};

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(in crate::cli) struct SimulateArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8089")]
    pub(in crate::cli) listen: SocketAddr,

    /// How long an answer takes: `20ms`, or between two times: `5ms..60ms` [default: 0s]
    #[arg(long, value_name = "TIME")]
    pub(in crate::cli) latency: Option<Latency>,

    /// Requests that are worked on at a time [default: unlimited]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(in crate::cli) capacity: Option<u32>,

    /// What becomes of requests above the capacity: `queue` (they wait), `503` or `429` [default: queue]
    #[arg(long, value_name = "WHAT")]
    pub(in crate::cli) when_full: Option<WhenFull>,

    /// Requests admitted in a minute [default: unlimited]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(in crate::cli) requests_per_minute: Option<u32>,

    /// Tokens admitted in a minute, prompt and output together [default: unlimited]
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub(in crate::cli) tokens_per_minute: Option<u64>,

    /// How much of both limits may be used at one moment after a rest [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(in crate::cli) burst: Option<Duration>,

    /// Every key has limits and a capacity of its own, instead of all together
    #[arg(long)]
    pub(in crate::cli) limits_per_key: bool,

    /// What is told of the limits: `headers` (`x-ratelimit-*`), `hints` (when to come back, on refusals), `all` of this
    /// or `nothing` [default: all]
    #[arg(long, value_name = "WHAT")]
    pub(in crate::cli) limits_told: Option<LimitsTold>,

    /// Faults and how likely each is, like `500=0.02,cut=0.005`; of 408, 409, 429, 500, 502, 503, 504, reset (once the
    /// request is read), drop (once it is answered), cut, garbage, empty, slow, drip, stall (for a while,
    /// in the middle), half (as if it were all), error (with 200, or in the middle of a stream)
    #[arg(long, value_name = "FAULTS")]
    pub(in crate::cli) faults: Option<Faults>,

    /// What the fault 429 says about coming back, each as likely as the others: `none`, `1s` (as OpenAI says it),
    /// `seconds:1s`, `ms:500ms`, `date:30s`, `garbage`, `negative`, `1e18` [default: none,1s]
    #[arg(long, value_name = "FORMS")]
    pub(in crate::cli) hints: Option<Hints>,

    /// What happens when: outages and other limits, as a TOML file says it. The head of a file: `[[events]]`, below it
    /// `at = "60s"`, `for = "10m"` and `what = "down"` (or 401, quota, model, a fault) or a setting like `capacity = 8`
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) script: Option<PathBuf>,

    /// What the fault `slow` adds to the latency, how long `drip` takes and `stall` stands still [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(in crate::cli) slow: Option<Duration>,

    /// Decides which requests meet a fault: the same seed, the same faults
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(in crate::cli) seed: u64,

    /// Let in only who sends this key [default: everybody]
    #[arg(long, value_name = "KEY", conflicts_with = "any_key")]
    pub(in crate::cli) key: Option<String>,

    /// Let in everybody who sends a key
    #[arg(long)]
    pub(in crate::cli) any_key: bool,

    /// A model that there is; may be given more than once [default: every model is known]
    #[arg(long = "model", value_name = "MODEL")]
    pub(in crate::cli) models: Vec<String>,

    /// Know only the models that are listed: those of `--model`, else a built-in list, and what fine-tunes make
    #[arg(long)]
    pub(in crate::cli) strict_models: bool,

    /// How long an uploaded file is `uploaded` before it is `processed` [default: 500ms]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(in crate::cli) file_processing_time: Option<Duration>,

    /// The largest file that may be uploaded, like `100MB` [default: `512MiB`]
    #[arg(long, value_name = "SIZE")]
    pub(in crate::cli) file_size_max: Option<ByteSize>,

    /// How long a fine-tune takes, from its creation to its success [default: 4s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(in crate::cli) fine_tune_time: Option<Duration>,

    /// What becomes of fine-tunes half-way: `fail`, `cancel` (by somebody else), `vanish` (404 from then on) or `odd`
    /// (a status that nobody knows, then success). A fine-tune whose suffix contains `sim-fail`, `sim-cancel`,
    /// `sim-vanish` or `sim-odd` decides for itself [default: they succeed]
    #[arg(long, value_name = "WHAT")]
    pub(in crate::cli) fate: Option<Fate>,

    /// What the first requests of a kind meet, once each, like `upload=drop,create=cut`: a fault of `--faults` under
    /// upload, begin, part, complete, abandon (an upload), create, cancel, pause, resume (a fine-tune), delete,
    /// `delete_model`, show, list or content
    #[arg(long, value_name = "MISHAPS")]
    pub(in crate::cli) mishaps: Option<Mishaps>,

    /// Answers until the quota is used up [default: never]
    #[arg(long, value_name = "N")]
    pub(in crate::cli) quota_after: Option<u64>,

    /// How images are answered where a request doesn't say: `b64_json` or `url` [default: `b64_json`]
    #[arg(long, value_name = "FORM")]
    pub(in crate::cli) images: Option<ImageForm>,

    /// Append what was asked and paid for to this file, a JSON line a request
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) ledger: Option<PathBuf>,

    /// Keep no ledger but its totals, for measuring
    #[arg(long, conflicts_with = "ledger")]
    pub(in crate::cli) no_ledger: bool,

    /// Print the data as JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}
