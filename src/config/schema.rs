//! Every key of the configuration: its default, its range, and what else must be true of it
//! ([`provider`] and [`http`] have those of `[[providers]]` and `[http]`).
//!
//! `config/batchd.toml` says the same to people; a test holds the two together.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeTable;

use super::load::KeyReader;
use super::section::{Document, Found, Section};
use super::{http, provider};
use crate::config::{Config, Control, Intake, Log, LogFormat, Shutdown, Storage};
use crate::diag::printable;
use crate::domain::RetryPolicy;
use crate::telemetry;

/// `sun_path` holds 108 bytes on Linux, its final NUL included.
const SOCKET_BYTES_MAX: usize = 107;

pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
pub(super) const HOUR: Duration = Duration::from_hours(1);
pub(super) const DAY: Duration = Duration::from_hours(24);
/// As humantime counts years: a message says `10years`.
const TEN_YEARS: Duration = Duration::from_hours(10 * 8_766);
pub(super) const KIB: u64 = 1024;
pub(super) const MIB: u64 = 1024 * KIB;
pub(super) const GIB: u64 = 1024 * MIB;

/// Reads the whole file; its problems are in the document afterwards. `folder`: what relative paths start from.
pub(super) fn read<'a>(
    document: &'a Document<'a>,
    table: &'a DeTable<'a>,
    folder: &Path,
    keys: &KeyReader<'_>,
) -> Config {
    let mut top = Section::top(document, Some(table));
    let paths = Paths { document, folder };
    let root = paths.one(top.text("root")).unwrap_or_else(|| folder.join("batchd-data"));
    let config = Config {
        intake: intake(&mut top, &paths),
        providers: provider::read_all(document, &mut top, &paths, keys),
        retry: retry(document, &mut top),
        shutdown: shutdown(&mut top),
        log: log(document, &mut top),
        control: control(document, &mut top, &paths, &root),
        http: http::read(document, &mut top, &paths, keys),
        storage: storage(&mut top),
        zone: keys.zone(),
        root,
    };
    top.finish(|_| None);
    config
}

/// Makes paths absolute.
pub(super) struct Paths<'a> {
    document: &'a Document<'a>,
    folder: &'a Path,
}

impl Paths<'_> {
    pub(super) fn one(&self, found: Option<Found<&str>>) -> Option<PathBuf> {
        let found = found?;
        if found.value.is_empty() || found.value.contains('\0') {
            let message = format!("expected a path, found `{}`", printable(found.value));
            self.document.push(self.document.error(Some(found.at), message));
            return None;
        }
        // By its parts: `.` is left out.
        Some(self.folder.join(found.value).components().collect())
    }
}

fn intake(top: &mut Section<'_>, paths: &Paths<'_>) -> Intake {
    let mut section = top.section("intake", "[intake]");
    let intake = Intake {
        rescan: section.duration("rescan", Duration::from_secs(5), 10 * MILLISECOND..=HOUR),
        settle: section.duration("settle", Duration::from_secs(1), Duration::ZERO..=HOUR),
        input_dirs: section.texts("input_dirs").into_iter().filter_map(|dir| paths.one(Some(dir))).collect(),
        max_line: section.size("max_line", 16 * MIB, KIB..=GIB),
    };
    section.finish(|_| None);
    intake
}

fn retry(document: &Document<'_>, top: &mut Section<'_>) -> RetryPolicy {
    let default = RetryPolicy::default();
    let mut section = top.section("retry", "[retry]");
    let attempts = u64::from(*RetryPolicy::ATTEMPTS.start())..=u64::from(*RetryPolicy::ATTEMPTS.end());
    let attempts = section.number("max_attempts", attempts).and_then(|n| u32::try_from(n).ok());
    let policy = RetryPolicy {
        max_attempts: attempts.unwrap_or(default.max_attempts),
        base_delay: section.duration("base_delay", default.base_delay, RetryPolicy::BASE_DELAY),
        max_delay: section.duration("max_delay", default.max_delay, RetryPolicy::MAX_DELAY),
    };
    if policy.max_delay < policy.base_delay {
        let (base, max) = (policy.base_delay, policy.max_delay);
        let shown = humantime::format_duration;
        let message = format!("`max_delay` is `{}`, less than `base_delay`, `{}`", shown(max), shown(base));
        document.push(document.error(section.at(), message));
    }
    section.finish(|_| None);
    policy
}

fn shutdown(top: &mut Section<'_>) -> Shutdown {
    let mut section = top.section("shutdown", "[shutdown]");
    let grace = section.duration("grace", Duration::from_secs(30), Duration::ZERO..=HOUR);
    section.finish(|_| None);
    Shutdown { grace }
}

fn log(document: &Document<'_>, top: &mut Section<'_>) -> Log {
    let mut section = top.section("log", "[log]");
    let level = section.text("level");
    if let Some(level) = level
        && let Err(message) = telemetry::check_filter(level.value)
    {
        document.push(document.error(Some(level.at), message));
    }
    let format = section.text("format").map_or(LogFormat::Auto, |format| match format.value {
        "auto" => LogFormat::Auto,
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        other => {
            let message = format!("`format` must be `auto`, `text` or `json`, found `{}`", printable(other));
            document.push(document.error(Some(format.at), message));
            LogFormat::Auto
        }
    });
    section.finish(|_| None);
    Log { level: level.map_or_else(|| "info".to_owned(), |level| level.value.to_owned()), format }
}

fn control(document: &Document<'_>, top: &mut Section<'_>, paths: &Paths<'_>, root: &Path) -> Control {
    let mut section = top.section("control", "[control]");
    let given = section.text("socket");
    let at = given.map(|given| given.at);
    let socket = paths.one(given).unwrap_or_else(|| root.join("batchd.sock"));
    let bytes = socket.as_os_str().len();
    if bytes > SOCKET_BYTES_MAX {
        let path = printable(&socket.to_string_lossy());
        let message =
            format!("the socket's path `{path}` is {bytes} bytes long: at most {SOCKET_BYTES_MAX} work");
        let hint = "set `[control] socket` to a shorter path";
        document.push(document.error(at, message).hint(hint));
    }
    let group = section.text("group");
    if let Some(group) = group.filter(|group| !is_group_name(group.value)) {
        let message = format!("expected the name of a group, found `{}`", printable(group.value));
        document.push(document.error(Some(group.at), message));
    }
    section.finish(|_| None);
    Control { socket, group: group.map(|group| group.value.to_owned()) }
}

/// Whether the system may have a group of this name; whether it has one shows when the socket is made.
fn is_group_name(text: &str) -> bool {
    !text.is_empty()
        && !text.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, ':' | ','))
}

fn storage(top: &mut Section<'_>) -> Storage {
    let mut section = top.section("storage", "[storage]");
    let min_free = section.size_if_given("min_free", 0..=1024 * GIB);
    let keep_state = section.duration("keep_state", 7 * DAY, Duration::ZERO..=TEN_YEARS);
    section.finish(|_| None);
    Storage { min_free, keep_state }
}
