//! A fine-tune as it was accepted: the one request of a job of kind `fine_tune`.
//!
//! # Format
//!
//! The one line of such a job's input is a [`FineTune`] as JSON.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::id::JobId;

/// Leaves room for the rest of a name within the 255 bytes that file systems take.
const STEM_LENGTH_MAX: usize = 100;

/// Which of the two interfaces for fine-tunes is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TuningApi {
    /// `/v1/fine_tuning/jobs`
    #[default]
    Jobs,
    /// `/v1/fine-tunes`, which OpenAI closed in January 2024.
    Legacy,
}

impl TuningApi {
    pub const ALL: [Self; 2] = [Self::Jobs, Self::Legacy];

    /// As a spec's `api` names it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Jobs => "jobs",
            Self::Legacy => "legacy",
        }
    }

    /// The path below a provider's `base_url`, with its leading slash and without `/v1`.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Jobs => "/fine_tuning/jobs",
            Self::Legacy => "/fine-tunes",
        }
    }
}

/// What is asked for, all but the ids of files that must be uploaded first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FineTune {
    pub custom_id: String,
    pub api: TuningApi,
    pub training: TuningData,
    pub validation: Option<TuningData>,
    /// The body of the create call without its files: `model`, `suffix`, hyperparameters and the rest.
    pub body: Map<String, Value>,
    /// What batchd uploaded is deleted at the provider once the fine-tune has ended.
    pub delete_uploads: bool,
}

impl FineTune {
    /// The base model; empty where the server has a default.
    pub fn model(&self) -> &str {
        self.body.get("model").and_then(Value::as_str).unwrap_or_default()
    }
}

/// Data of a fine-tune.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TuningData {
    /// A copy in the job's own folder.
    Local {
        /// Its name there.
        file: String,
        /// The user's name for it, without its ending.
        stem: String,
        /// Its length.
        bytes: u64,
    },
    /// A file that lies at the provider already, and stays there.
    Uploaded { id: String },
}

impl TuningData {
    /// What the copy of the training data is called in the job's folder.
    pub const TRAINING: &str = "training.jsonl";
    /// What that of the validation data is.
    pub const VALIDATION: &str = "validation.jsonl";

    /// The name of what is uploaded: that of no other job's uploads, so that it can be found again. What servers disagree
    /// about in the file names of forms (quotes, backslashes, letters beyond ASCII) is no part of it, nor does it grow
    /// too long to be kept. `role` tells the two files of one fine-tune apart.
    pub fn upload_name(stem: &str, role: &str, job: JobId) -> String {
        let plain = |letter: char| {
            let is_plain = letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_');
            if is_plain { letter } else { '_' }
        };
        let stem: String = stem.chars().take(STEM_LENGTH_MAX).map(plain).collect();
        format!("{stem}{role}-{job}.jsonl")
    }
}

/// The model that `job:<name>` stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TunedModel {
    /// What this fine-tune makes, once it has succeeded.
    Of(JobId),
    /// What it had made when the job was accepted.
    Named(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_one_line_that_is_read_back() {
        let line = concat!(
            r#"{"custom_id":"support","api":"legacy","#,
            r#""training":{"file":"training.jsonl","stem":"train","bytes":12},"validation":{"id":"file-1"},"#,
            r#""body":{"model":"curie","n_epochs":4},"delete_uploads":false}"#
        );
        let plan: FineTune = serde_json::from_str(line).unwrap();
        assert_eq!((plan.api, plan.model()), (TuningApi::Legacy, "curie"));
        assert_eq!(plan.validation, Some(TuningData::Uploaded { id: "file-1".to_owned() }));
        assert_eq!(serde_json::to_string(&plan).unwrap(), line);
    }

    #[test]
    fn uploads_of_two_jobs_never_share_a_name() {
        let [a, b] = [1, 2].map(|n| TuningData::upload_name("train", "", JobId::from_bytes([n; 16])));
        assert_eq!(a, "train-01010101-0101-0101-0101-010101010101.jsonl");
        assert_ne!(a, b);
    }

    #[test]
    fn no_server_reads_an_uploads_name_otherwise_than_it_was_sent() {
        let odd = format!("a \"b\" ü\\c%22{}", "x".repeat(1_000));
        let name = TuningData::upload_name(&odd, "", JobId::from_bytes([1; 16]));
        assert!(name.starts_with("a__b____c_22x") && name.len() < 255, "{name}");
    }
}
