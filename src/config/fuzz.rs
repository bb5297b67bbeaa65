//! What must hold of every configuration, whatever its text: for `crate::fuzzing`.

use std::path::PathBuf;
use std::time::Duration;

use super::load::{Keys, Surroundings};
use crate::diag::Report;
use crate::domain::QueueName;

/// Reads `text` as the configuration `display`, in an empty environment. What it says of it, accepted or not.
pub(crate) fn configuration(display: &str, text: &str) -> Report {
    let surroundings =
        Surroundings { variable: &|_| None, folder: PathBuf::from("/nowhere"), etc: PathBuf::new() };
    let loaded = match surroundings.check(display, text, None, Keys::Ignored) {
        Ok(loaded) => loaded,
        Err(report) => {
            assert!(report.has_errors(), "refused without a reason");
            return report;
        }
    };
    let config = loaded.config;
    assert!(!loaded.warnings.has_errors() && config.root.is_absolute());
    assert!(config.retry.max_attempts > 0 && config.retry.base_delay <= config.retry.max_delay);
    assert!(config.intake.max_line >= 1024 && config.intake.rescan > Duration::ZERO);
    assert!(!config.providers.is_empty());
    for provider in &config.providers {
        assert_eq!(config.provider(&provider.name).map(|found| &found.name), Some(&provider.name));
        assert!(provider.timeout > Duration::ZERO && provider.concurrency > 0);
        let limits = provider.limits_of(&QueueName::new(provider.name.as_str(), Some("gpt-4.1-mini")));
        assert!(limits.requests_per_minute != Some(0) && limits.tokens_per_minute != Some(0));
    }
    loaded.warnings
}
