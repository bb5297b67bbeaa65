//! Logs: where they go, in what form, and how much of them.
//!
//! Text for a person on a terminal, JSON for everything else. Text from outside (names of files, words of a
//! provider) can't forge a line or drive a terminal: JSON escapes control characters by its grammar, and in
//! the text form every value goes through [`printable`].
//!
//! # Field names
//!
//! `job`, `request`, `custom_id`, `attempt`, `queue`, `outcome`, `elapsed_ms`, `error`. Never bodies, never keys.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::sync::Arc;

use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{self, FormatFields, Writer};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::diag::printable;

/// The levels there are, from silent to loud.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

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
    /// For a command that shows something else on its terminal.
    File(Arc<File>),
}

impl Sink {
    fn is_terminal(&self) -> bool {
        match self {
            Self::Stderr => io::stderr().is_terminal(),
            Self::File(_) => false,
        }
    }

    fn into_writer(self) -> BoxMakeWriter {
        match self {
            Self::Stderr => BoxMakeWriter::new(io::stderr),
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
    let filter = parse_filter(filter)?;
    let terminal = sink.is_terminal();
    let text = format == Format::Text || (format == Format::Auto && terminal);
    let layer = tracing_subscriber::fmt::layer().with_writer(sink.into_writer()).with_ansi(terminal);
    let registry = tracing_subscriber::registry().with(filter);
    let started = if text {
        registry.with(layer.fmt_fields(text_fields())).try_init()
    } else {
        registry.with(layer.json().flatten_event(true)).try_init()
    };
    // The one failure there is means that logging has started already.
    started.or(Ok(()))
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
    EnvFilter::builder().parse(word).map_err(|error| format!("`{}`: {error}", printable(filter)))
}

/// The message, then `name=value` for each field, all on one line whatever the values hold.
fn text_fields() -> impl for<'w> FormatFields<'w> + Send + Sync + 'static {
    format::debug_fn(|writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug| {
        let value = printable(&format!("{value:?}"));
        if field.name() == "message" { writer.write_str(&value) } else { write!(writer, "{field}={value}") }
    })
    .delimited(" ")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
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
    fn starting_twice_changes_nothing() {
        assert_eq!(init("error", Format::Json, Sink::Stderr), Ok(()));
        assert_eq!(init("error", Format::Text, Sink::Stderr), Ok(()));
        assert!(init("loud", Format::Auto, Sink::Stderr).is_err());
    }
}
