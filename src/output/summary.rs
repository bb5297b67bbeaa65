//! `summary.json`: what became of a job, in a file that is written last.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::{JobId, JobState, JobStatus, Kind, Timestamp};

/// What `summary.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub id: JobId,
    pub name: String,
    /// `completed`, `cancelled` or `expired`. A job is completed even if requests of it failed.
    pub status: String,
    pub kind: Kind,
    pub counts: LineCounts,
    pub tokens: Tokens,
    /// In US dollars; none = unknown.
    pub cost_usd: Option<f64>,
    /// Requests of which more than one attempt may have been paid for.
    pub maybe_paid_twice: u32,
    /// RFC 3339.
    pub accepted_at: String,
    /// RFC 3339.
    pub finished_at: String,
    pub elapsed_seconds: f64,
    /// Only where the answers held images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<ImageCounts>,
    /// Only of a fine-tune.
    #[serde(flatten)]
    pub tuning: TuningSummary,
    /// What lies beside the summary.
    pub files: Vec<String>,
}

/// What came of a fine-tune; what is not known, or not so, is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TuningSummary {
    /// What to use as `model` from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fine_tuned_model: Option<String>,
    /// What the provider bills.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_tokens: Option<u64>,
    /// Why there is no model, in the provider's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What lies at the provider and could not be had: ids of files, and `events.jsonl`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_files: Vec<String>,
    /// Ids of uploads that the spec wanted deleted and that could not be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_uploads: Vec<String>,
}

/// Lines of the two files of results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineCounts {
    pub total: u32,
    /// Lines of `output.jsonl`.
    pub completed: u32,
    /// Lines of `errors.jsonl`.
    pub failed: u32,
}

/// Tokens that the provider counted, as far as its answers say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    pub input: u64,
    pub output: u64,
    pub total: u64,
}

impl Tokens {
    pub(super) fn add(&mut self, input: u64, output: u64) {
        self.input = self.input.saturating_add(input);
        self.output = self.output.saturating_add(output);
        self.total = self.input.saturating_add(self.output);
    }
}

/// Images that the answers named or held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageCounts {
    /// Are files below `images/`.
    pub written: u64,
    /// Could not be downloaded or decoded: their records keep what the provider sent.
    pub failed_downloads: u64,
}

/// What publishing counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) lines: LineCounts,
    pub(super) tokens: Tokens,
    pub(super) images: ImageCounts,
    /// Lines of the journal for a request that had one already.
    pub(super) duplicates: u64,
    /// Requests without a record.
    pub(super) unanswered: u32,
}

impl Summary {
    pub(super) fn new(state: &JobState, end: &JobStatus, tally: &Tally, now: Timestamp) -> Self {
        let job = &state.job;
        let images = (tally.images != ImageCounts::default()).then_some(tally.images);
        Self {
            id: job.id,
            name: job.name.to_string(),
            status: end.as_str().to_owned(),
            kind: job.kind,
            counts: tally.lines,
            tokens: tally.tokens,
            cost_usd: None,
            maybe_paid_twice: state.counts.maybe_paid_twice,
            accepted_at: job.accepted_at.to_string(),
            finished_at: now.to_string(),
            elapsed_seconds: seconds(now.since(job.accepted_at)),
            images,
            tuning: TuningSummary::default(),
            files: Vec::new(),
        }
    }

    /// Whether both tell the same, the time of the telling aside.
    pub(super) fn tells_the_same(&self, other: &Self) -> bool {
        let timeless =
            |summary: &Self| Self { finished_at: String::new(), elapsed_seconds: 0.0, ..summary.clone() };
        timeless(self) == timeless(other)
    }

    /// Pretty-printed, with a line end.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("strings and numbers serialise");
        bytes.push(b'\n');
        bytes
    }
}

/// To the millisecond, as the times beside it.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_have_three_places_at_most() {
        for (milliseconds, written) in [(1_390, "1.39"), (284_237, "284.237"), (0, "0.0"), (2_500, "2.5")] {
            let json = serde_json::to_string(&seconds(Duration::from_millis(milliseconds))).unwrap();
            assert_eq!(json, written);
        }
    }
}
