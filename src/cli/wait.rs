//! `batchd submit --wait`: follows placed specs until each has become a job that is done, or was rejected.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::client::Client;
use super::progress::Progress;
use super::report::{Printer, status};
use super::submit::Placed;
use super::{Exit, Failure, block_on};
use crate::config::Config;
use crate::control::JobReport;
use crate::domain::JobId;
use crate::intake::{REJECTED, REPORT, is_numbered};

/// Often enough for a person, seldom enough for the daemon.
const POLL: Duration = Duration::from_millis(250);

/// What was there before the first spec was placed, so that what comes of ours can be told from it.
#[derive(Debug)]
pub(super) struct Watch {
    client: Client,
    rejected_dir: PathBuf,
    known_jobs: BTreeSet<JobId>,
    known_reports: BTreeSet<String>,
}

impl Watch {
    /// Needs a daemon that answers.
    pub(super) fn begin(config: &Config) -> Result<Self, Failure> {
        let jobs = block_on(async { Client::new(config)?.list().await })?;
        let rejected_dir = config.jobs_dir().join(REJECTED);
        Ok(Self {
            // A client of its own: the first one's connections ended with its runtime.
            client: Client::new(config)?,
            known_jobs: jobs.iter().map(|job| job.id).collect(),
            known_reports: reports(&rejected_dir)?,
            rejected_dir,
        })
    }

    /// Fills in what became of each, and says how that is to be seen as a whole.
    pub(super) async fn until_final(
        mut self,
        placed: &mut [Placed],
        printer: &mut Printer<'_>,
    ) -> Result<Exit, Failure> {
        let mut progress = Progress::new(printer);
        loop {
            let jobs = self.client.list().await?;
            for one in placed.iter_mut() {
                self.look_for(one, &jobs)?;
            }
            progress.update(placed.iter().filter_map(|one| one.job.as_ref()), printer);
            if placed.iter().all(is_over) {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        progress.finish();
        Ok(exit_of(placed))
    }

    fn look_for(&mut self, placed: &mut Placed, jobs: &[JobReport]) -> Result<(), Failure> {
        if is_over(placed) {
            return Ok(());
        }
        if let Some(ours) = &placed.job {
            placed.job = jobs.iter().find(|job| job.id == ours.id).cloned();
            return Ok(());
        }
        // Specs of one name become jobs in the order in which they were placed.
        let new = |job: &&JobReport| job.spec_file == placed.name && !self.known_jobs.contains(&job.id);
        if let Some(job) = jobs.iter().find(new) {
            self.known_jobs.insert(job.id);
            placed.job = Some(job.clone());
            return Ok(());
        }
        let reports = reports(&self.rejected_dir)?;
        let new =
            |report: &&String| is_report_on(report, &placed.name) && !self.known_reports.contains(*report);
        if let Some(report) = reports.iter().find(new) {
            let path = self.rejected_dir.join(report);
            placed.rejected = Some(fs::read_to_string(&path).map_err(|error| cant_read(&path, &error))?);
            self.known_reports.insert(report.clone());
        }
        Ok(())
    }
}

/// Prints what became of each: jobs as a table, rejections as the daemon worded them.
pub(super) fn print(placed: &[Placed], config: &Config, printer: &mut Printer<'_>) -> Result<(), Failure> {
    for one in placed {
        if let Some(text) = &one.rejected {
            printer.rejection(text);
        } else if one.has_schedule {
            printer.note(&scheduled(one));
        }
    }
    let jobs: Vec<&JobReport> = placed.iter().filter_map(|one| one.job.as_ref()).collect();
    if jobs.is_empty() {
        return Ok(());
    }
    let results = config.results_dir();
    let row = |job: &JobReport| {
        let counts = &job.counts;
        let [completed, failed, total] =
            [counts.completed, counts.failed, counts.total].map(|count| count.to_string());
        let folder = results.join(&job.name).display().to_string();
        [job.name.clone(), status(job), completed, failed, total, folder]
    };
    let header = ["NAME", "STATUS", "COMPLETED", "FAILED", "TOTAL", "RESULTS"];
    printer.table(header, jobs.into_iter().map(row))
}

/// What is said of a spec that stays in the jobs folder.
pub(super) fn scheduled(placed: &Placed) -> String {
    format!("{} has a schedule: it runs when its time comes", placed.name)
}

fn is_over(placed: &Placed) -> bool {
    let is_final = |job: &JobReport| job.finished_at.is_some();
    placed.has_schedule || placed.rejected.is_some() || placed.job.as_ref().is_some_and(is_final)
}

fn exit_of(placed: &[Placed]) -> Exit {
    let failed = |job: &JobReport| job.status != "completed" || job.counts.failed > 0;
    if placed.iter().any(|one| one.rejected.is_some()) {
        Exit::Rejected
    } else if placed.iter().filter_map(|one| one.job.as_ref()).any(failed) {
        Exit::SomeFailed
    } else {
        Exit::Done
    }
}

/// The names of the reports on rejected specs.
fn reports(rejected_dir: &Path) -> Result<BTreeSet<String>, Failure> {
    let entries = match fs::read_dir(rejected_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(cant_read(rejected_dir, &error)),
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| name.ends_with(REPORT)).collect())
}

/// Whether a report is on the spec that was placed as `name`; a number is added where the name was taken.
fn is_report_on(report: &str, name: &str) -> bool {
    report.strip_suffix(REPORT).is_some_and(|rejected| is_numbered(rejected, name))
}

fn cant_read(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::StateIo, format!("can't read `{}`: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client::tests::Daemon;
    use crate::cli::report::tests::printed;
    use crate::domain::JobStatus;

    fn placed(name: &str) -> Placed {
        let path = PathBuf::from("jobs").join(name);
        Placed {
            file: name.to_owned(),
            path,
            name: name.to_owned(),
            has_schedule: false,
            job: None,
            rejected: None,
        }
    }

    /// Waits for specs that were placed under these names, after `happens`.
    fn waited(daemon: &Daemon, names: &[&str], happens: impl FnOnce()) -> (Vec<Placed>, Exit) {
        rustls::crypto::ring::default_provider().install_default().unwrap_or_default();
        let config = crate::config::load(Some(daemon.config().as_ref()), crate::config::Keys::Ignored);
        let watch = Watch::begin(&config.unwrap().config).unwrap();
        happens();
        let mut placed: Vec<Placed> = names.iter().map(|name| placed(name)).collect();
        let printed = printed(|printer| block_on(watch.until_final(&mut placed, printer)).unwrap());
        (placed, printed.exit)
    }

    #[test]
    fn waits_for_the_job_that_came_of_the_spec_and_not_for_an_older_one() {
        let daemon = Daemon::present();
        let old = daemon.jobs.add("news", JobStatus::InProgress);
        let mut new = Vec::new();
        let (placed, exit) = waited(&daemon, &["news.toml", "news.toml"], || {
            new.push(daemon.jobs.add("news", JobStatus::Completed));
            new.push(daemon.jobs.add("news", JobStatus::Completed));
        });
        let waited: Vec<JobId> = placed.iter().map(|one| one.job.as_ref().unwrap().id).collect();
        assert_eq!((waited, exit), (new.clone(), Exit::Done));
        assert!(!new.contains(&old));
    }

    #[test]
    fn worst_end_decides_the_exit() {
        let daemon = Daemon::present();
        let rejected = daemon.folder.path().join("root/jobs/rejected");
        fs::create_dir_all(&rejected).unwrap();
        fs::write(rejected.join("bad.toml.errors.txt"), "an older one").unwrap();
        let (placed, exit) = waited(&daemon, &["news.toml", "bad.toml"], || {
            daemon.jobs.add("news", JobStatus::Cancelled);
            fs::write(rejected.join("bad-2.toml.errors.txt"), "bad.toml:1:1: error: x").unwrap();
        });
        assert_eq!(placed[1].rejected.as_deref(), Some("bad.toml:1:1: error: x"));
        assert_eq!(exit, Exit::Rejected);
        let (_, exit) = waited(&daemon, &["more.toml"], || {
            daemon.jobs.add("more", JobStatus::Cancelled);
        });
        assert_eq!(exit, Exit::SomeFailed);
    }

    #[test]
    fn reports_are_known_by_the_spec_they_are_about() {
        let table = [
            ("a.toml.errors.txt", "a.toml", true),
            ("a-2.toml.errors.txt", "a.toml", true),
            ("a-b.toml.errors.txt", "a.toml", false),
            ("ab.toml.errors.txt", "a.toml", false),
            ("a.toml", "a.toml", false),
            ("folder-3.errors.txt", "folder", true),
            ("x-2.chat.jsonl.errors.txt", "x.chat.jsonl", true),
        ];
        for (report, name, expected) in table {
            assert_eq!(is_report_on(report, name), expected, "{report} on {name}");
        }
    }
}
