//! `batchd watch`: follows one job until it is done, or all that are at work until somebody has seen enough.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::args::WatchArgs;
use super::client::Client;
use super::progress::Progress;
use super::report::Printer;
use super::{Done, Exit, Failure, block_on, load_config, show};
use crate::config::Keys;
use crate::control::JobReport;
use crate::domain::JobId;

/// Often enough for a person, seldom enough for the daemon.
const POLL: Duration = Duration::from_millis(500);

pub(super) fn run(args: &WatchArgs, config: Option<&Path>, printer: &mut Printer<'_>) -> Done {
    let loaded = load_config(config, Keys::Ignored)?;
    let ended = block_on(async {
        let client = Client::new(&loaded.config)?;
        let mut screen =
            Screen { as_json: args.json, progress: Progress::new(printer), seen: BTreeMap::new() };
        match &args.job {
            Some(job) => follow_one(&client, job, &mut screen, printer).await,
            None => follow_all(&client, &mut screen, printer).await,
        }
    })?;
    if !args.json {
        show::print(&ended, &loaded.config, printer)?;
    }
    Ok(if ended.status == "completed" && ended.counts.failed == 0 { Exit::Done } else { Exit::SomeFailed })
}

/// Answers the job as it ended.
async fn follow_one(
    client: &Client,
    job: &str,
    screen: &mut Screen,
    printer: &mut Printer<'_>,
) -> Result<JobReport, Failure> {
    let mut job = client.show(job).await?;
    loop {
        screen.update(&job, printer)?;
        if job.finished_at.is_some() {
            return Ok(job);
        }
        tokio::time::sleep(POLL).await;
        // By its id: another of its name may come meanwhile.
        job = client.show(&job.id.to_string()).await?;
    }
}

/// Ends only with the daemon.
async fn follow_all(
    client: &Client,
    screen: &mut Screen,
    printer: &mut Printer<'_>,
) -> Result<JobReport, Failure> {
    let mut is_first = true;
    loop {
        for job in client.list().await? {
            // What had ended before anybody looked is no news.
            if is_first && job.finished_at.is_some() {
                screen.seen.insert(job.id, job);
            } else {
                screen.update(&job, printer)?;
            }
        }
        is_first = false;
        tokio::time::sleep(POLL).await;
    }
}

/// What the person sees.
struct Screen {
    as_json: bool,
    progress: Progress,
    seen: BTreeMap<JobId, JobReport>,
}

impl Screen {
    /// Shows a job if there is something new about it.
    fn update(&mut self, job: &JobReport, printer: &mut Printer<'_>) -> Result<(), Failure> {
        if self.seen.get(&job.id) == Some(job) {
            return Ok(());
        }
        self.seen.insert(job.id, job.clone());
        if self.as_json {
            return printer.json_line(job);
        }
        self.progress.update([job], printer);
        if job.finished_at.is_some() {
            self.progress.end(job, printer);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::Exit;
    use crate::cli::client::tests::Daemon;
    use crate::control::JobReport;
    use crate::domain::JobStatus;

    #[test]
    fn a_job_that_has_ended_is_shown_as_it_ended() {
        let daemon = Daemon::present();
        daemon.jobs.add("news", JobStatus::Completed);
        daemon.jobs.add("old", JobStatus::Cancelled);
        let printed = daemon.batchd(&["watch", "news"]);
        assert_eq!((printed.exit, printed.err.as_str()), (Exit::Done, "news: completed, 3 of 3\n"));
        assert!(printed.out.contains("requests  3 of 3 completed"), "{}", printed.out);
        assert_eq!(daemon.batchd(&["watch", "old"]).exit, Exit::SomeFailed);
    }

    #[test]
    fn as_json_each_news_is_a_line() {
        let daemon = Daemon::present();
        daemon.jobs.add("news", JobStatus::Completed);
        let printed = daemon.batchd(&["watch", "news", "--json"]);
        let lines: Vec<JobReport> =
            printed.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), lines[0].name.as_str(), printed.err.as_str()), (1, "news", ""));
    }

    #[test]
    fn a_name_that_nobody_knows_and_a_daemon_that_is_not_there_end_it() {
        assert_eq!(Daemon::present().batchd(&["watch", "none"]).exit, Exit::Usage);
        assert_eq!(Daemon::absent().batchd(&["watch"]).exit, Exit::Unreachable);
    }
}
