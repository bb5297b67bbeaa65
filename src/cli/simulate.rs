//! `batchd simulate`: the stand-in server in the foreground. It runs until a signal ends the process.

use std::fs;
use std::path::Path;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::args::SimulateArgs;
use super::report::Printer;
use super::{Done, Exit, Failure, block_on};
use crate::clock::{Clock, Seed};
use crate::simulate::{Auth, LedgerSettings, Script, Server, Settings};

pub(super) fn run(args: SimulateArgs, printer: &mut Printer<'_>) -> Done {
    let seed = Seed::fixed(args.seed);
    let json = args.json;
    let script = args.script.as_deref().map(read_script).transpose()?.unwrap_or_default();
    let settings = Settings { script, ..settings(args) };
    block_on(async {
        let failed = |error| Failure::new(Exit::Unreachable, format!("can't serve: {error}"));
        let server = Server::bind(settings, seed).map_err(failed)?;
        let address = server.address();
        let base_url = format!("http://{address}/v1");
        if json {
            printer
                .json(&json!({ "base_url": base_url, "ledger": format!("http://{address}/_sim/ledger") }))?;
        } else {
            printer.data(&format!("{base_url}\n"))?;
            printer.note(&format!("what was paid for: http://{address}/_sim/ledger"));
        }
        server.run(CancellationToken::new()).await.map_err(failed)?;
        Ok(Exit::Done)
    })
}

fn read_script(path: &Path) -> Result<Script, Failure> {
    let name = path.display().to_string();
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::new(Exit::Usage, format!("can't read the script `{name}`: {error}")))?;
    Script::parse(&name, &text).map_err(|finding| Failure::Findings(Exit::Rejected, (*finding).into()))
}

/// What is not given keeps the server's own default.
fn settings(args: SimulateArgs) -> Settings {
    let default = Settings::default();
    let auth = match args.key {
        Some(key) => Auth::Key(key.into()),
        None if args.any_key => Auth::AnyKey,
        None => Auth::Open,
    };
    Settings {
        listen: args.listen,
        latency: args.latency.unwrap_or(default.latency),
        slow: args.slow.unwrap_or(default.slow),
        capacity: args.capacity,
        when_full: args.when_full.unwrap_or(default.when_full),
        requests_per_minute: args.requests_per_minute,
        tokens_per_minute: args.tokens_per_minute,
        burst: args.burst.unwrap_or(default.burst),
        limits_per_key: args.limits_per_key,
        limits_told: args.limits_told.unwrap_or(default.limits_told),
        faults: args.faults.unwrap_or(default.faults),
        hints: args.hints.unwrap_or(default.hints),
        auth,
        models: args.models,
        quota_after: args.quota_after,
        images: args.images.unwrap_or(default.images),
        strict_models: args.strict_models,
        file_bytes_max: args
            .file_size_max
            .map_or(default.file_bytes_max, |size| usize::try_from(size.as_u64()).unwrap_or(usize::MAX)),
        file_processing_time: args.file_processing_time.unwrap_or(default.file_processing_time),
        fine_tune_time: args.fine_tune_time.unwrap_or(default.fine_tune_time),
        fate: args.fate,
        mishaps: args.mishaps.unwrap_or_default(),
        epoch: Clock::System.now(),
        ledger: LedgerSettings { on: !args.no_ledger, file: args.ledger, ..default.ledger },
        ..default
    }
}
