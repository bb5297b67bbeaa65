//! The line that `systemctl status` shows: what runs, how far it is, how fast, and what stands still.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::control::JobReport;
use crate::domain::JobId;

/// Between two looks that are further apart than this lies mostly idleness: they tell no rate.
const RATE_OVER_MAX: Duration = Duration::from_secs(15);

/// Less would be shown as 0.0.
const RATE_SHOWN_MIN: f64 = 0.05;

/// How many requests are settled in a second, between one look and the next.
#[derive(Debug, Default)]
pub(super) struct Pace {
    last: Option<(Instant, BTreeMap<JobId, u32>)>,
}

impl Pace {
    /// Takes a look. None if the last one is too long ago to say.
    pub(super) fn look(&mut self, jobs: &[JobReport], now: Instant) -> Option<f64> {
        let settled: BTreeMap<JobId, u32> = jobs.iter().map(|job| (job.id, job.counts.settled())).collect();
        let (then, before) = self.last.replace((now, settled))?;
        let elapsed = now.duration_since(then);
        if elapsed.is_zero() || elapsed > RATE_OVER_MAX {
            return None;
        }
        // A job that was pruned takes nothing away from those that run.
        let since = |job: &JobReport| {
            let before = before.get(&job.id).copied().unwrap_or_default();
            u64::from(job.counts.settled().saturating_sub(before))
        };
        let settled: u64 = jobs.iter().map(since).sum();
        #[expect(clippy::cast_precision_loss, reason = "requests in some seconds, shown with one decimal")]
        let settled = settled as f64;
        Some(settled / elapsed.as_secs_f64())
    }
}

/// `running 3 jobs, 1842/10000, 25.3 requests/s; 2 paused: quota`; the fraction counts the requests of all jobs
/// that have not ended.
pub(super) fn running(jobs: &[JobReport], rate: Option<f64>) -> String {
    let (mut at_work, mut settled, mut total) = (0_usize, 0_u64, 0_u64);
    let mut still: BTreeMap<String, usize> = BTreeMap::new();
    for job in jobs.iter().filter(|job| is_open(job)) {
        settled += u64::from(job.counts.settled());
        total += u64::from(job.counts.total);
        match job.status.as_str() {
            "paused" => {
                let why = job.reason.as_deref().unwrap_or("?");
                *still.entry(format!("paused: {why}")).or_default() += 1;
            }
            // Why is a sentence, and stands where the job is shown.
            "held" => *still.entry("held".to_owned()).or_default() += 1,
            _ => at_work += 1,
        }
    }
    if at_work == 0 && still.is_empty() {
        return "idle: no jobs".to_owned();
    }
    let jobs = if at_work == 1 { "job" } else { "jobs" };
    let rate = rate.filter(|rate| *rate >= RATE_SHOWN_MIN);
    let rate = rate.map_or_else(String::new, |rate| format!(", {rate:.1} requests/s"));
    let mut parts = vec![format!("running {at_work} {jobs}, {settled}/{total}{rate}")];
    parts.extend(still.into_iter().map(|(what, count)| format!("{count} {what}")));
    parts.join("; ")
}

/// `stopping: 3 requests in flight`.
pub(super) fn stopping(jobs: &[JobReport]) -> String {
    let in_flight: u64 = jobs.iter().map(|job| u64::from(job.in_flight)).sum();
    match in_flight {
        0 => "stopping: nothing is in flight".to_owned(),
        1 => "stopping: 1 request in flight".to_owned(),
        some => format!("stopping: {some} requests in flight"),
    }
}

fn is_open(job: &JobReport) -> bool {
    !matches!(job.status.as_str(), "completed" | "failed" | "cancelled" | "expired")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Counts, JobState, JobStatus, PauseReason};
    use crate::store::conformance;

    fn job(number: u8, status: JobStatus, [completed, failed, total]: [u32; 3], leased: u32) -> JobReport {
        let job = conformance::job(number, 5, &["m"], total);
        let counts = Counts { total, completed, failed, maybe_paid_twice: 0 };
        JobReport::of(&JobState { job, status, counts, leased, waiting: 0, finished_at: None })
    }

    #[test]
    fn line_says_what_runs_and_what_stands_still_and_why() {
        let paused = |reason| JobStatus::Paused { reason };
        let held = JobStatus::Held { why: "intents.log is damaged\nat byte 7".to_owned() };
        let jobs = [
            job(1, JobStatus::InProgress, [1800, 2, 9000], 4),
            job(2, JobStatus::Finalizing, [40, 0, 40], 0),
            job(3, paused(PauseReason::Quota), [0, 0, 500], 0),
            job(4, paused(PauseReason::Quota), [0, 0, 400], 0),
            job(5, paused(PauseReason::User), [0, 0, 50], 0),
            job(6, held, [0, 0, 10], 0),
            job(7, JobStatus::Completed, [777, 0, 777], 0),
        ];
        let table = [
            (&jobs[..0], Some(3.0), "idle: no jobs"),
            (&jobs[6..], None, "idle: no jobs"),
            (&jobs[..1], Some(25.34), "running 1 job, 1802/9000, 25.3 requests/s"),
            (&jobs[..2], Some(0.04), "running 2 jobs, 1842/9040"),
            (&jobs[2..4], None, "running 0 jobs, 0/900; 2 paused: quota"),
            (&jobs[..], None, "running 2 jobs, 1842/10000; 1 held; 2 paused: quota; 1 paused: user"),
        ];
        for (jobs, rate, line) in table {
            assert_eq!(running(jobs, rate), line);
        }
        assert_eq!(stopping(&jobs), "stopping: 4 requests in flight");
        assert_eq!(stopping(&jobs[1..]), "stopping: nothing is in flight");
    }

    #[tokio::test(start_paused = true)]
    async fn rate_counts_what_was_settled_between_two_looks() {
        let mut pace = Pace::default();
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let jobs = |one, other| {
            [
                job(1, JobStatus::InProgress, [one, 0, 900], 0),
                job(2, JobStatus::InProgress, [0, other, 900], 0),
            ]
        };
        assert_eq!(pace.look(&jobs(100, 0), at(0)), None, "nobody knows since when");
        assert_eq!(pace.look(&jobs(140, 10), at(5)), Some(10.0));
        assert_eq!(pace.look(&jobs(140, 10), at(5)), None, "no time has passed");
        assert_eq!(pace.look(&jobs(141, 10)[..1], at(7)), Some(0.5), "one was pruned");
        assert_eq!(pace.look(&jobs(150, 10), at(3600)), None, "it was idle in between");
    }
}
