//! How far jobs are, while a person waits: bars on a terminal, a line for every change of status elsewhere.

use std::collections::BTreeMap;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::report::{Printer, status};
use crate::control::JobReport;
use crate::diag::printable;
use crate::domain::JobId;

/// More bars than this fill a terminal; the jobs beyond have none.
const BARS_MAX: usize = 20;

/// Shows jobs on stderr.
#[derive(Debug)]
pub(super) struct Progress {
    bars: MultiProgress,
    shown: BTreeMap<JobId, Shown>,
}

#[derive(Debug)]
struct Shown {
    bar: ProgressBar,
    status: String,
}

impl Progress {
    pub(super) fn new(printer: &Printer<'_>) -> Self {
        let target =
            if printer.err_is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bars: MultiProgress::with_draw_target(target), shown: BTreeMap::new() }
    }

    /// Shows where `jobs` are now.
    pub(super) fn update<'a>(
        &mut self,
        jobs: impl IntoIterator<Item = &'a JobReport>,
        printer: &mut Printer<'_>,
    ) {
        for job in jobs {
            let status = status(job);
            let is_new = !self.shown.contains_key(&job.id);
            let room = self.shown.len() < BARS_MAX;
            let bars = &self.bars;
            let shown = self.shown.entry(job.id).or_insert_with(|| {
                let bar = if room { bars.add(bar_of(job)) } else { ProgressBar::hidden() };
                Shown { bar, status: String::new() }
            });
            shown.bar.set_position(u64::from(job.counts.settled()));
            shown.bar.set_message(printable(&status));
            if !printer.err_is_terminal && (is_new || shown.status != status) {
                let counts = &job.counts;
                printer.note(&format!("{}: {status}, {} of {}", job.name, counts.settled(), counts.total));
            }
            shown.status = status;
        }
    }

    /// Takes the bar of a job that has ended away, and on a terminal leaves a line in its place.
    pub(super) fn end(&mut self, job: &JobReport, printer: &Printer<'_>) {
        let Some(shown) = self.shown.remove(&job.id) else { return };
        shown.bar.finish_and_clear();
        self.bars.remove(&shown.bar);
        if printer.err_is_terminal {
            let counts = &job.counts;
            let line = format!("{}: {}, {} of {}", job.name, shown.status, counts.settled(), counts.total);
            // Without a terminal any more there is nobody to tell.
            self.bars.println(printable(&line)).unwrap_or_default();
        }
    }

    /// Takes the bars away: a table of how it ended comes in their place.
    pub(super) fn finish(self) {
        for shown in self.shown.into_values() {
            shown.bar.finish_and_clear();
        }
    }
}

/// A bar for a file on its way, shown to people alone; of a file whose length is not known, only how much has moved.
pub(super) fn bar_of_bytes(name: &str, length: Option<u64>, printer: &Printer<'_>) -> ProgressBar {
    if !printer.err_is_terminal {
        return ProgressBar::hidden();
    }
    let template = match length {
        Some(_) => "{prefix:<24!} {bar:30} {bytes:>10}/{total_bytes:<10} {bytes_per_sec}, {eta} left",
        None => "{prefix:<24!} {bytes:>10} {bytes_per_sec}",
    };
    let style = ProgressStyle::with_template(template).expect("our own template is one");
    let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr());
    bar.with_style(style).with_prefix(printable(name))
}

fn bar_of(job: &JobReport) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:<24!} {bar:30} {pos:>7}/{len:<7} {msg}")
        .expect("our own template is one");
    ProgressBar::new(u64::from(job.counts.total)).with_style(style).with_prefix(printable(&job.name))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cli::Exit;
    use crate::cli::report::tests::printed;
    use crate::control::tests::{Jobs, control};
    use crate::domain::JobStatus;

    #[tokio::test]
    async fn elsewhere_than_on_a_terminal_a_line_tells_each_change_of_status() {
        let jobs = Arc::new(Jobs::default());
        jobs.add("news", JobStatus::InProgress);
        jobs.add("old", JobStatus::Completed);
        let control = control(&jobs);
        let before = control.list().await.unwrap();
        control.cancel("news").await.unwrap();
        let after = control.list().await.unwrap();
        let printed = printed(|printer| {
            let mut progress = Progress::new(printer);
            for jobs in [&before, &before, &after, &after] {
                progress.update(jobs, printer);
            }
            progress.finish();
            Exit::Done
        });
        assert_eq!(printed.out, "");
        assert_eq!(
            printed.err,
            "news: in_progress, 1 of 3\nold: completed, 3 of 3\nnews: cancelling, 1 of 3\n"
        );
    }
}
