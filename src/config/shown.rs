//! How values are written in a configuration file: the other way round of what [`section`](super::section) reads.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use url::Url;

use super::schema::{GIB, KIB, MIB};
use crate::config::{Concurrency, LogFormat};
use crate::domain::RetryPolicy;

const TIB: u64 = 1024 * GIB;

/// As the keys that set it.
impl Serialize for Concurrency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut keys = serializer.serialize_struct("Concurrency", 3)?;
        match self {
            Self::Fixed(slots) => keys.serialize_field("concurrency", slots)?,
            Self::Auto { min, max } => {
                keys.serialize_field("concurrency", "auto")?;
                keys.serialize_field("min", min)?;
                keys.serialize_field("max", max)?;
            }
        }
        keys.end()
    }
}

pub(super) fn duration<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*value))
}

pub(super) fn duration_if_any<S: Serializer>(
    value: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => duration(value, serializer),
        None => serializer.serialize_none(),
    }
}

/// In the largest unit that leaves nothing over.
pub(super) fn size<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    let units = [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
    let unit = units.into_iter().find(|(unit, _)| *bytes > 0 && bytes.is_multiple_of(*unit));
    let (unit, name) = unit.unwrap_or((1, "B"));
    serializer.collect_str(&format_args!("{}{name}", bytes / unit))
}

pub(super) fn size_if_any<S: Serializer>(bytes: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    match bytes {
        Some(bytes) => size(bytes, serializer),
        None => serializer.serialize_none(),
    }
}

/// What is not UTF-8 in it (only the current folder's part can be) is replaced.
pub(super) fn path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

pub(super) fn path_if_any<S: Serializer>(given: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match given {
        Some(given) => path(given, serializer),
        None => serializer.serialize_none(),
    }
}

pub(super) fn paths<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}

pub(super) fn url<S: Serializer>(url: &Url, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(url.as_str())
}

pub(super) fn url_if_any<S: Serializer>(given: &Option<Url>, serializer: S) -> Result<S::Ok, S::Error> {
    match given {
        Some(given) => url(given, serializer),
        None => serializer.serialize_none(),
    }
}

pub(super) fn format<S: Serializer>(format: &LogFormat, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match format {
        LogFormat::Auto => "auto",
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    })
}

/// As in `[retry]`; in the state of a job it is written otherwise.
pub(super) fn retry<S: Serializer>(policy: &RetryPolicy, serializer: S) -> Result<S::Ok, S::Error> {
    struct Written(Duration);

    impl Serialize for Written {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            duration(&self.0, serializer)
        }
    }

    let RetryPolicy { max_attempts, base_delay, max_delay } = policy;
    let mut table = serializer.serialize_struct("retry", 3)?;
    table.serialize_field("max_attempts", max_attempts)?;
    table.serialize_field("base_delay", &Written(*base_delay))?;
    table.serialize_field("max_delay", &Written(*max_delay))?;
    table.end()
}
