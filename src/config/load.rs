//! Finds, reads and checks the configuration file.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::diag::Report;

/// A configuration and where it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// None: no file was found, the defaults hold.
    pub path: Option<PathBuf>,
    pub warnings: Report,
}

/// Finds the configuration (`explicit`, else `$BATCHD_CONFIG`, else the well-known places) and checks all of it.
pub fn load(explicit: Option<&Path>) -> Result<Loaded, Report> {
    let _ = explicit;
    Err(Report::default())
}

/// The commented sample, `config/batchd.toml`.
pub const fn sample() -> &'static str {
    ""
}
