//! What others hold of a running intake: they see what it sees, and can ask it to look, or for a schedule's run.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use super::Settings;
use super::schedules::ScheduleStatus;
use crate::bell::{Bell, Listener};
use crate::diag::Report;
use crate::domain::JobId;

/// Orders that wait to be taken up; who comes later waits to be heard.
const ORDERS_MAX: usize = 16;

/// So much of a report stands in the answer to an order; the rest is in `rejected/`.
const REPORT_LINES_MAX: usize = 6;

/// What the last look at the jobs folder left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Looks so far, with all that they brought taken in. 0: nobody knows yet what lies there.
    pub looks: u64,
    /// Specs that will be read yet: still settling, or more than one look takes in.
    pub pending: usize,
    /// Specs that can't be taken in for now because of `trouble`; they are tried again.
    pub blocked: usize,
    /// What stands in the way, in words.
    pub trouble: Option<String>,
    /// The last [`Handle::wake`] that was heard before the look began.
    pub(super) heard: u64,
}

impl Status {
    /// Everything that could be taken in at the time of the look has been. What is `blocked`, or a folder that
    /// could not be looked at (`trouble`), is not waited for.
    pub const fn is_idle(&self) -> bool {
        self.looks > 0 && self.pending == 0
    }
}

/// Somebody asks for a run of a schedule, named as it or as its file.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) schedule: String,
    pub(super) reply: oneshot::Sender<Result<JobId, Refusal>>,
}

/// Why a run that somebody asked for was not made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error("no schedule is called `{0}`")]
    Unknown(String),
    #[error("more than one schedule is called `{name}`: name the file of one, {}", files.join(", "))]
    Ambiguous { name: String, files: Vec<String> },
    #[error("the spec of the schedule `{file}` is broken, and there is no good version of it")]
    Broken { file: String },
    /// The run's spec lies in `rejected/` under this name.
    #[error("the run was rejected, see `rejected/{name}`:\n{}", beginning(report))]
    Rejected { name: String, report: Report },
    #[error("`{data}` is still being written: try again when it is whole")]
    Unsettled { data: String },
    /// Our own files can't be written.
    #[error("{0}")]
    Trouble(String),
    #[error("the daemon is stopping")]
    Stopping,
}

fn beginning(report: &Report) -> String {
    let text = report.to_string();
    let mut lines: Vec<&str> = text.lines().collect();
    if lines.len() > REPORT_LINES_MAX {
        lines.truncate(REPORT_LINES_MAX);
        lines.push("…");
    }
    lines.join("\n")
}

/// What others hold of a running intake. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    orders: mpsc::Sender<Order>,
    pub(super) calls: Bell,
    seen: Arc<Mutex<Seen>>,
    /// Rings whenever `seen` has changed.
    changed: Bell,
}

#[derive(Debug, Default)]
struct Seen {
    status: Status,
    schedules: Arc<[ScheduleStatus]>,
    /// No look will follow.
    has_ended: bool,
    /// Those that hold from the next look on, if they have changed.
    settings: Option<Settings>,
}

impl Default for Handle {
    /// That of no intake.
    fn default() -> Self {
        Self::new().0
    }
}

impl Handle {
    /// With what the intake hears of it.
    pub(super) fn new() -> (Self, mpsc::Receiver<Order>) {
        let (orders, heard) = mpsc::channel(ORDERS_MAX);
        (Self { orders, calls: Bell::default(), seen: Arc::default(), changed: Bell::default() }, heard)
    }

    /// Every schedule as the last look left it, by its file.
    pub fn schedules(&self) -> Arc<[ScheduleStatus]> {
        Arc::clone(&self.lock().schedules)
    }

    /// Whether what has this name in the jobs folder is a schedule, or may be one, as far as is known.
    pub fn may_be_scheduled(&self, file: &str) -> bool {
        let seen = self.lock();
        let is_known = seen.status.looks > 0 && seen.status.trouble.is_none();
        !is_known || seen.schedules.iter().any(|schedule| schedule.file == file)
    }

    /// Makes a run of a schedule now, whatever its times and its other runs: durable when it returns. `schedule` is its
    /// name or that of its file.
    ///
    /// # Errors
    ///
    /// Why no run was made.
    pub async fn run_schedule(&self, schedule: &str) -> Result<JobId, Refusal> {
        let (reply, answer) = oneshot::channel();
        let order = Order { schedule: schedule.to_owned(), reply };
        self.orders.send(order).await.map_err(|_| Refusal::Stopping)?;
        answer.await.unwrap_or(Err(Refusal::Stopping))
    }

    /// Asks for a look at the folder now.
    pub fn wake(&self) {
        self.calls.ring();
    }

    /// Lets `settings` hold from now on, and looks at once. The folders stay those it began with.
    pub fn change(&self, settings: Settings) {
        self.lock().settings = Some(settings);
        self.wake();
    }

    /// What [`Handle::change`] has brought since the last call.
    pub(super) fn changed_settings(&self) -> Option<Settings> {
        self.lock().settings.take()
    }

    /// The outcome of the last look.
    pub fn status(&self) -> Status {
        self.lock().status.clone()
    }

    /// Ticks after every look.
    pub fn changes(&self) -> Listener {
        self.changed.listen()
    }

    /// The outcome of a look that began after this call: what was dropped before it is in it. The last one
    /// known, if intake has ended.
    pub async fn look(&self) -> Status {
        let call = self.calls.ring();
        self.until(|status| status.heard >= call).await
    }

    /// The outcome of the first look that `fits`, the last one included; the last one known, if intake has ended.
    pub(super) async fn until(&self, fits: impl Fn(&Status) -> bool) -> Status {
        let mut changes = self.changes();
        loop {
            let (status, has_ended) = {
                let seen = self.lock();
                (seen.status.clone(), seen.has_ended)
            };
            if has_ended || fits(&status) {
                return status;
            }
            changes.changed().await;
        }
    }

    /// Tells everyone what a look left.
    pub(super) fn publish(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.lock().status);
        self.changed.ring();
    }

    pub(super) fn show(&self, schedules: Vec<ScheduleStatus>) {
        self.lock().schedules = schedules.into();
    }

    /// Nobody need wait for another look.
    pub(super) fn end(&self) {
        self.lock().has_ended = true;
        self.changed.ring();
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
