//! The status report (SIGUSR1): what the daemon is at, in the log, for whoever has no other way to ask.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::control::{Board, Control, JobReport};
use crate::diag::printable;
use crate::dispatch;
use crate::domain::{JobId, JobState, QueueName};
use crate::store::Store;

/// Jobs, and queues, that have a line of their own: the log must not be flooded.
const SHOWN_MAX: usize = 20;

/// See the module's words.
#[derive(Debug)]
pub(super) struct Reporter {
    store: Arc<dyn Store>,
    control: Control,
    board: Board,
    fleet: dispatch::Handle,
    started: Instant,
    /// Requests of each job that were settled before the start.
    settled_before: BTreeMap<JobId, u64>,
    asked: Arc<Notify>,
}

impl Reporter {
    /// `before`: the jobs at the start. Whoever notifies `asked` gets a report.
    pub(super) fn new(
        store: Arc<dyn Store>,
        (control, board): (Control, Board),
        fleet: dispatch::Handle,
        before: &[JobState],
        asked: Arc<Notify>,
    ) -> Self {
        let settled = before.iter().map(|state| (state.job.id, u64::from(state.counts.settled())));
        let (started, settled_before) = (Instant::now(), settled.collect());
        Self { store, control, board, fleet, started, settled_before, asked }
    }

    /// Reports whenever it is asked to, until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        // Stopping goes first, also before a store that doesn't answer.
        tokio::select! { biased;
            () = stop.cancelled() => {}
            () = async {
                loop {
                    self.asked.notified().await;
                    self.report().await;
                }
            } => {}
        }
    }

    async fn report(&self) {
        let (jobs, reports, depths) =
            match (self.store.jobs().await, self.control.list().await, self.store.queues().await) {
                (Ok(jobs), Ok(reports), Ok(depths)) => (jobs, reports, depths),
                (jobs, reports, depths) => {
                    let error = jobs.err().map(|error| error.to_string());
                    let error = error.or_else(|| reports.err().map(|error| error.to_string()));
                    let error = error.or_else(|| depths.err().map(|error| error.to_string()));
                    tracing::error!(error, "the store can't say how things stand");
                    return;
                }
            };
        self.tell_of_all(&jobs, &reports);
        let is_open = |report: &&JobReport| report.finished_at.is_none();
        let (shown, more) = first(reports.iter().filter(is_open));
        for report in shown {
            tell_of_job(report);
        }
        if more > 0 {
            tracing::info!(more, "and more jobs are open");
        }
        let ready = depths.into_iter().map(|depth| (depth.queue, depth.ready)).collect();
        self.tell_of_queues(&ready);
    }

    fn tell_of_all(&self, jobs: &[JobState], reports: &[JobReport]) {
        let mut by_status: BTreeMap<&str, usize> = BTreeMap::new();
        for report in reports {
            *by_status.entry(&report.status).or_default() += 1;
        }
        let by_status: Vec<String> =
            by_status.into_iter().map(|(status, jobs)| format!("{status} {jobs}")).collect();
        let in_flight: usize = self.fleet.queues().values().map(|queue| queue.in_flight).sum();
        let waiting: u64 = jobs.iter().map(|state| u64::from(state.waiting)).sum();
        let settled: u64 = jobs.iter().map(|state| self.settled_since_start(state)).sum();
        tracing::info!(
            uptime_s = self.started.elapsed().as_secs(),
            jobs = by_status.join(", "),
            in_flight,
            waiting,
            settled,
            answered_last_minute = self.fleet.answered().last_minute,
            disk = self.store.shortage().as_deref().map(printable),
            "status"
        );
    }

    fn settled_since_start(&self, state: &JobState) -> u64 {
        let before = self.settled_before.get(&state.job.id).copied().unwrap_or_default();
        u64::from(state.counts.settled()).saturating_sub(before)
    }

    /// `ready`: how many requests of each queue could be sent.
    fn tell_of_queues(&self, ready: &BTreeMap<QueueName, u64>) {
        let (queues, pauses) = (self.fleet.queues(), self.board.pauses());
        let now = Instant::now();
        let names: BTreeSet<&QueueName> = queues.keys().chain(pauses.keys()).collect();
        let (shown, more) = first(names.into_iter());
        for name in shown {
            let queue = queues.get(name).cloned().unwrap_or_default();
            let pause = pauses.get(name);
            tracing::info!(
                queue = %name,
                in_flight = queue.in_flight,
                ready = ready.get(name).copied().unwrap_or_default(),
                concurrency = queue.concurrency,
                concurrency_max = queue.concurrency_max,
                requests_per_minute = queue.requests_per_minute,
                tokens_per_minute = queue.tokens_per_minute,
                learnt_requests_per_minute = queue.learnt_requests_per_minute,
                learnt_tokens_per_minute = queue.learnt_tokens_per_minute,
                held_s = queue.held_until.map(|until| until.saturating_duration_since(now).as_secs()),
                out = (!queue.out.is_empty()).then(|| printable(&queue.out.join("; "))),
                paused = pause.map(|pause| pause.reason.as_str()),
                error = pause.map(|pause| printable(&pause.message)),
                "status of a queue"
            );
        }
        if more > 0 {
            tracing::info!(more, "and more queues");
        }
    }
}

fn tell_of_job(report: &JobReport) {
    tracing::info!(
        job = %report.id,
        name = printable(&report.name),
        status = report.status,
        reason = report.reason.as_deref().map(printable),
        error = report.message.as_deref().map(printable),
        total = report.counts.total,
        completed = report.counts.completed,
        failed = report.counts.failed,
        in_flight = report.in_flight,
        waiting = report.waiting,
        "status of a job"
    );
}

/// The first of them, and how many there are beside these.
fn first<T>(mut all: impl Iterator<Item = T>) -> (Vec<T>, usize) {
    (all.by_ref().take(SHOWN_MAX).collect(), all.count())
}
