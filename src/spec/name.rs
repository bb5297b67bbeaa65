//! What names say: a spec's file the job's name and what bare bodies in it mean, a model the job that makes it.

use crate::diag::{Diagnostic, Report};
use crate::domain::{InvalidName, JobName, Kind};

/// The kind whose ending stands before `.jsonl` or `.toml`: `bare.chat.jsonl` → chat.
pub(super) fn ending(display: &str) -> Option<Kind> {
    let (_, ending) = stem(display).rsplit_once('.')?;
    Kind::ALL.into_iter().filter(|kind| kind.endpoint().is_some()).find(|kind| kind.as_str() == ending)
}

/// The job's name by its file, or by the folder that was dropped with a `job.toml` in it.
pub(super) fn of_file(display: &str, report: &mut Report) -> Option<JobName> {
    let stem = stem(display);
    let stem = match ending(display).and_then(|_| stem.rsplit_once('.')) {
        Some((name, _)) => name,
        None => stem,
    };
    match stem.parse() {
        Ok(name) => Some(name),
        Err(error) => {
            let message = format!("the file's name gives no name for the job: {error}");
            report.push(Diagnostic::error(display, 0, 0, message).hint("rename the file"));
            None
        }
    }
}

/// The fine-tune's job whose model `model` stands for, if it is written as `job:<name>`.
pub(super) fn job_of_model(model: &str) -> Option<Result<JobName, InvalidName>> {
    model.strip_prefix("job:").map(str::parse)
}

fn stem(display: &str) -> &str {
    let (folder, file) = display.rsplit_once('/').unwrap_or(("", display));
    let stem = file.strip_suffix(".jsonl").or_else(|| file.strip_suffix(".toml")).unwrap_or(file);
    let parent = folder.rsplit('/').next().unwrap_or_default();
    if file == "job.toml" && !matches!(parent, "" | "." | "..") { parent } else { stem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_drops_the_endings() {
        for (display, name, kind) in [
            ("bare.chat.jsonl", "bare", Some(Kind::Chat)),
            ("a/b/pictures.images.jsonl", "pictures", Some(Kind::Images)),
            ("x.toml", "x", None),
            ("x.v2.jsonl", "x.v2", None),
            ("x.chat.chat.jsonl", "x.chat", Some(Kind::Chat)),
            ("chat.jsonl", "chat", None),
            ("x.fine_tune.jsonl", "x.fine_tune", None),
            ("news/job.toml", "news", None),
            ("./job.toml", "job", None),
        ] {
            let mut report = Report::default();
            assert_eq!(of_file(display, &mut report).unwrap().as_str(), name, "{display}");
            assert_eq!(ending(display), kind, "{display}");
        }
    }

    #[test]
    fn a_name_that_can_be_no_folder_is_refused() {
        let mut report = Report::default();
        assert!(of_file("-rf.jsonl", &mut report).is_none());
        assert!(report.to_string().contains("rename the file"), "{report}");
    }
}
