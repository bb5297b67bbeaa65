//! Logs: where they go, in what form, and how much of them.
//!
//! Text for a person on a terminal, JSON for everything else. Text from outside (names of files, words of a
//! provider) can't forge a line or drive a terminal: JSON escapes control characters by its grammar, and in
//! the text form every value goes through [`printable`].
//!
//! Where stderr is systemd's journal, every line begins with its priority, `<3>` for an error to `<7>` for debug and
//! trace, so that `journalctl -p warning` works: see sd-daemon(3).
//!
//! # Field names
//!
//! `job`, `request`, `custom_id`, `attempt`, `queue`, `outcome`, `elapsed_ms`, `error`. Of a configuration: `keys`,
//! `place`, `problem`, `hint`. Of a panic: `thread`, `place`, `backtrace`. Of the status report: `name`, `status`,
//! `reason`, `total`, `completed`, `failed`, `in_flight`, `waiting`, `concurrency`, `concurrency_max`,
//! `requests_per_minute`, `tokens_per_minute`, `learnt_…` of both, `held_s`, `uptime_s`. Never bodies, never keys to a
//! provider.

mod ending;
mod panics;

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};

use tracing::field::Field;
use tracing::{Level, Metadata};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{self, FormatFields, Writer};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

pub use self::panics::log_panics;

use self::ending::Ending;
use crate::diag::printable;

/// The levels there are, from silent to loud.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Changes how much is logged, once logging has started. There is one log, so there is one of these.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text on a terminal, JSON otherwise.
    Auto,
    Text,
    Json,
}

/// Where log lines go.
#[derive(Clone, Debug)]
pub enum Sink {
    Stderr,
    /// Stderr, which systemd reads: see [`is_journal`].
    Journal,
    /// For a command that shows something else on its terminal.
    File(Arc<File>),
}

impl Sink {
    fn is_terminal(&self) -> bool {
        match self {
            Self::Stderr => io::stderr().is_terminal(),
            Self::Journal | Self::File(_) => false,
        }
    }

    fn into_writer(self) -> BoxMakeWriter {
        match self {
            Self::Stderr => BoxMakeWriter::new(io::stderr),
            Self::Journal => BoxMakeWriter::new(Prioritised(io::stderr)),
            Self::File(file) => BoxMakeWriter::new(file),
        }
    }
}

/// Starts logging for the whole process. Once it has started, further calls change nothing.
///
/// # Errors
///
/// `filter` is neither a level nor a tracing filter; the text says what is wrong with it.
pub fn init(filter: &str, format: Format, sink: Sink) -> Result<(), String> {
    let (filter, handle) = reload::Layer::new(parse_filter(filter)?);
    let terminal = sink.is_terminal();
    let text = format == Format::Text || (format == Format::Auto && terminal);
    let layer = tracing_subscriber::fmt::layer().with_writer(sink.into_writer()).with_ansi(terminal);
    let registry = tracing_subscriber::registry().with(filter);
    let started = if text {
        registry.with(layer.fmt_fields(text_fields())).with(Ending).try_init()
    } else {
        registry.with(layer.json().flatten_event(true)).with(Ending).try_init()
    };
    // The one failure there is means that logging has started already.
    if started.is_ok() {
        FILTER.get_or_init(|| handle);
    }
    Ok(())
}

/// Lets through what `filter` says from now on. Without an [`init`] before there is nothing to change.
///
/// # Errors
///
/// `filter` is neither a level nor a tracing filter; the text says what is wrong with it.
pub fn set_filter(filter: &str) -> Result<(), String> {
    let filter = parse_filter(filter)?;
    match FILTER.get() {
        Some(handle) => handle.reload(filter).map_err(|error| error.to_string()),
        None => Ok(()),
    }
}

/// Whether stderr is the stream that systemd names in `$JOURNAL_STREAM`, as `<device>:<inode>`: a process whose stderr
/// was led elsewhere inherits the variable all the same.
pub fn is_journal(named: &str) -> bool {
    rustix::fs::fstat(io::stderr().as_fd()).is_ok_and(|stat| is_stream(named, stat.st_dev, stat.st_ino))
}

fn is_stream(named: &str, device: u64, inode: u64) -> bool {
    let Some((its_device, its_inode)) = named.split_once(':') else { return false };
    its_device.parse() == Ok(device) && its_inode.parse() == Ok(inode)
}

/// Whether [`init`] would take `filter`.
///
/// # Errors
///
/// What is wrong with it.
pub fn check_filter(filter: &str) -> Result<(), String> {
    parse_filter(filter).map(drop)
}

fn parse_filter(filter: &str) -> Result<EnvFilter, String> {
    let word = filter.trim();
    // A lone word that is no level would be taken for the name of a module, and silence all others.
    let lone = word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if lone && !LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word)) {
        return Err(format!(
            "`{}` is no log level: expected one of {}, or a filter like `info,batchd::dispatch=debug`",
            printable(filter),
            LEVELS.join(", "),
        ));
    }
    // The libraries have so many lines of these levels that batchd's own could not be found among them.
    let is_detailed = ["debug", "trace"].iter().any(|level| level.eq_ignore_ascii_case(word));
    let directives = if is_detailed { format!("info,batchd={word}") } else { word.to_owned() };
    EnvFilter::builder().parse(directives).map_err(|error| format!("`{}`: {error}", printable(filter)))
}

/// The message, then `name=value` for each field, all on one line whatever the values hold.
fn text_fields() -> impl for<'w> FormatFields<'w> + Send + Sync + 'static {
    format::debug_fn(|writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug| {
        let value = printable(&format!("{value:?}"));
        if field.name() == "message" { writer.write_str(&value) } else { write!(writer, "{field}={value}") }
    })
    .delimited(" ")
}

/// Puts the priority of an event before each of its lines.
struct Prioritised<M>(M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Prioritised<M> {
    type Writer = Prefixed<M::Writer>;

    /// For what has no level of its own.
    fn make_writer(&'a self) -> Self::Writer {
        Prefixed { prefix: prefix(Level::INFO), inner: self.0.make_writer(), begins: true }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        Prefixed { prefix: prefix(*metadata.level()), inner: self.0.make_writer_for(metadata), begins: true }
    }
}

/// As syslog numbers them. What is never to be acted on is all debug there.
const fn prefix(level: Level) -> &'static [u8] {
    match level {
        Level::ERROR => b"<3>",
        Level::WARN => b"<4>",
        Level::INFO => b"<6>",
        Level::DEBUG | Level::TRACE => b"<7>",
    }
}

struct Prefixed<W> {
    prefix: &'static [u8],
    inner: W,
    /// What comes next begins a line.
    begins: bool,
}

impl<W: Write> Write for Prefixed<W> {
    /// All of `bytes` in one piece, so that lines of other threads don't come between.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut whole = Vec::with_capacity(bytes.len() + 2 * self.prefix.len());
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.begins {
                whole.extend_from_slice(self.prefix);
            }
            whole.extend_from_slice(line);
            self.begins = line.ends_with(b"\n");
        }
        self.inner.write_all(&whole)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Debug, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn text_values_can_not_forge_lines_or_drive_a_terminal() {
        let shared = Shared::default();
        let writer = shared.clone();
        let layer = tracing_subscriber::fmt::layer()
            .without_time()
            .with_target(false)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .fmt_fields(text_fields());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let name = "a\n2026 ERROR forged \u{1b}[31m \u{202e}x";
            tracing::info!(job = %name, custom_id = name, attempt = 2, "job accepted");
        });
        let line = String::from_utf8(shared.0.lock().unwrap().clone()).unwrap();
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        assert!(!line.contains('\u{1b}') && !line.contains('\u{202e}'), "{line}");
        assert!(
            line.starts_with(
                " INFO job accepted job=a\\n2026 ERROR forged \\u{1b}[31m \\u{202e}x custom_id="
            ),
            "{line}"
        );
        assert!(line.ends_with(" attempt=2\n"), "{line}");
    }

    #[test]
    fn filters_are_levels_or_directives() {
        for good in ["info", "WARN", "off", " debug ", "info,batchd::dispatch=debug", "batchd=trace"] {
            assert_eq!(check_filter(good), Ok(()), "{good}");
        }
        for bad in ["", "loud", "info,batchd=loud", "a=b=c"] {
            assert!(check_filter(bad).is_err(), "{bad}");
        }
        assert_eq!(
            check_filter("loud").unwrap_err(),
            "`loud` is no log level: expected one of off, error, warn, info, debug, trace, or a filter like \
             `info,batchd::dispatch=debug`"
        );
    }

    #[test]
    fn a_lone_level_of_detail_is_of_batchds_own_lines() {
        let filter = |text: &str| parse_filter(text).unwrap().to_string();
        for level in ["debug", "trace"] {
            assert_eq!(filter(level), format!("batchd={level},info"));
            assert_eq!(filter(&level.to_uppercase()), filter(level));
        }
        for other in ["warn", "debug,hyper_util=trace"] {
            assert!(!filter(other).contains("batchd"), "{other}");
        }
    }

    #[test]
    fn starting_twice_changes_nothing() {
        assert_eq!(init("error", Format::Json, Sink::Stderr), Ok(()));
        assert_eq!(init("error", Format::Text, Sink::Stderr), Ok(()));
        assert!(init("loud", Format::Auto, Sink::Stderr).is_err());
        assert_eq!(set_filter("error,batchd=off"), Ok(()));
        assert!(set_filter("loud").is_err());
        assert_eq!(FILTER.get().unwrap().with_current(ToString::to_string).unwrap(), "batchd=off,error");
        assert_eq!(set_filter("error"), Ok(()));
    }

    /// What four events look like on their way to the journal.
    fn in_the_journal(is_text: bool) -> String {
        let shared = Shared::default();
        let writer = shared.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(Prioritised(move || writer.clone()));
        let events = || {
            tracing::error!(error = "two\nlines", "bad");
            tracing::warn!("odd");
            tracing::info!("news");
            tracing::debug!("detail");
            tracing::trace!("all");
        };
        if is_text {
            let layer = layer.with_ansi(false).fmt_fields(text_fields());
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), events);
        } else {
            let layer = layer.json().flatten_event(true);
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), events);
        }
        String::from_utf8(shared.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn every_line_in_the_journal_begins_with_its_priority() {
        for is_text in [true, false] {
            let log = in_the_journal(is_text);
            let lines: Vec<&str> = log.lines().collect();
            assert_eq!(lines.len(), 5, "{log}");
            let begin = if is_text { "" } else { "{\"timestamp\"" };
            for (line, priority) in lines.iter().zip(["<3>", "<4>", "<6>", "<7>", "<7>"]) {
                assert!(line.starts_with(&format!("{priority}{begin}")), "{line}");
                assert_eq!(line.matches('<').count(), 1, "{line}");
            }
        }
    }

    #[test]
    fn each_physical_line_has_its_priority_in_whatever_pieces_it_comes() {
        let mut prefixed = Prefixed { prefix: b"<4>", inner: Vec::new(), begins: true };
        for piece in ["a", "b\n", "c\n\nd", "\n"] {
            prefixed.write_all(piece.as_bytes()).unwrap();
        }
        assert_eq!(String::from_utf8(prefixed.inner).unwrap(), "<4>ab\n<4>c\n<4>\n<4>d\n");
    }

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        for (named, expected) in [
            ("8:1234", true),
            ("8:1235", false),
            ("9:1234", false),
            ("1234:8", false),
            ("8:1234:5", false),
            ("8", false),
            ("", false),
            ("-8:1234", false),
        ] {
            assert_eq!(is_stream(named, 8, 1234), expected, "{named}");
        }
        let stat = rustix::fs::fstat(io::stderr().as_fd()).unwrap();
        assert!(is_journal(&format!("{}:{}", stat.st_dev, stat.st_ino)));
        assert!(!is_journal(&format!("{}:{}", stat.st_dev, stat.st_ino + 1)));
    }
}
