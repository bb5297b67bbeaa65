//! The course of one fine-tune: what happens when, from its creation to its end.
//!
//! # Operation
//!
//! A run has a script: steps with the time that each takes place, counted in the time that the run was not paused.
//! Nothing waits: whoever asks first says what time it is, and [`Run::advance`] plays what is due, each step at its
//! own time. So the same questions at the same times see the same run, on a paused clock as on a real one.

use std::collections::VecDeque;
use std::time::Duration;

use super::metrics::{Extent, Metrics, part};
use crate::simulate::fate::Fate;

/// When, as parts of the whole time: files are validated, the run starts, the first and the last step are done.
const VALIDATED: f64 = 0.1;
const STARTED: f64 = 0.2;
const TRAINED: f64 = 0.9;
/// When a [`Fate`] strikes, and when an odd status is over.
const STRUCK: f64 = 0.55;
const EVEN_AGAIN: f64 = 0.75;
/// OpenAI keeps the models of the last epochs.
const CHECKPOINTS_MAX: u64 = 3;

/// Which interface a fine-tune was made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    /// `/fine_tuning/jobs`.
    Jobs,
    /// `/fine-tunes`.
    Legacy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Validating,
    Queued,
    Running,
    /// One that stands in no document.
    Odd,
    Paused,
    Succeeded,
    Failed,
    Cancelled,
}

impl Status {
    pub(super) const fn has_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) param: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Info,
    Warn,
    Error,
}

impl Level {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    pub(super) at: Duration,
    pub(super) level: Level,
    pub(super) message: String,
    pub(super) metrics: Option<Metrics>,
}

/// A model as it was after one epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Checkpoint {
    pub(super) at: Duration,
    pub(super) metrics: Metrics,
}

/// What a run is made of.
#[derive(Clone, Debug)]
pub(super) struct Course {
    pub(super) api: Api,
    pub(super) extent: Extent,
    /// What validation finds wrong.
    pub(super) verdict: Option<Failure>,
    pub(super) fate: Option<Fate>,
    /// From creation to success.
    pub(super) time: Duration,
}

#[derive(Clone, Debug)]
enum Step {
    Enter(Status, &'static str),
    Measure(u64),
    /// The end of an epoch, from 1.
    EndEpoch(u64),
    Fail(Failure),
    Cancel,
    Vanish,
    Succeed,
}

/// A fine-tune under way, or over. Times are counted from the start of the server.
#[derive(Debug)]
pub(super) struct Run {
    api: Api,
    extent: Extent,
    created: Duration,
    /// Time spent paused.
    held: Duration,
    paused_at: Option<(Duration, Status)>,
    ahead: VecDeque<(Duration, Step)>,
    status: Status,
    updated: Duration,
    finished: Option<Duration>,
    failure: Option<Failure>,
    /// Oldest first.
    events: Vec<Event>,
    checkpoints: Vec<Checkpoint>,
    has_vanished: bool,
}

impl Run {
    pub(super) fn begin(course: &Course, at: Duration) -> Self {
        Self {
            api: course.api,
            extent: course.extent,
            created: at,
            held: Duration::ZERO,
            paused_at: None,
            ahead: script(course),
            status: Status::Validating,
            updated: at,
            finished: None,
            failure: None,
            events: Vec::new(),
            checkpoints: Vec::new(),
            has_vanished: false,
        }
    }

    /// Plays what is due at `now`; says when the run succeeded, if that was among it.
    pub(super) fn advance(&mut self, now: Duration) -> Option<Duration> {
        while self.paused_at.is_none() {
            let due = self.created + self.held + self.ahead.front()?.0;
            if due > now {
                return None;
            }
            let (_, step) = self.ahead.pop_front()?;
            if self.take(step, due) {
                return Some(due);
            }
        }
        None
    }

    /// One step. True if it was success.
    fn take(&mut self, step: Step, at: Duration) -> bool {
        self.updated = at;
        match step {
            Step::Enter(status, message) => {
                self.status = status;
                if !message.is_empty() {
                    self.say(at, message.to_owned());
                }
            }
            Step::Measure(step) => {
                let metrics = self.extent.at(step);
                let (steps, loss) = (self.extent.steps(), metrics.train_loss);
                let message = format!("Step {step}/{steps}: training loss={loss:.2}");
                self.note(at, Level::Info, message, Some(metrics));
            }
            Step::EndEpoch(epoch) => self.end_epoch(epoch, at),
            Step::Fail(failure) => {
                self.note(at, Level::Error, failure.message.clone(), None);
                self.failure = Some(failure);
                self.end(Status::Failed, at);
            }
            Step::Cancel => self.cancel(at),
            Step::Vanish => self.has_vanished = true,
            Step::Succeed => {
                self.end(Status::Succeeded, at);
                return true;
            }
        }
        false
    }

    fn end_epoch(&mut self, epoch: u64, at: Duration) {
        let step = epoch * self.extent.steps_per_epoch;
        match self.api {
            Api::Legacy => self.say(at, format!("Completed epoch {epoch}/{}", self.extent.epochs)),
            Api::Jobs if epoch + CHECKPOINTS_MAX > self.extent.epochs => {
                self.checkpoints.push(Checkpoint { at, metrics: self.extent.at(step) });
                self.say(at, format!("Checkpoint created at step {step}"));
            }
            Api::Jobs => {}
        }
    }

    fn end(&mut self, status: Status, at: Duration) {
        self.status = status;
        self.updated = at;
        self.finished = Some(at);
        self.paused_at = None;
        self.ahead.clear();
    }

    /// Ends a run that has not ended.
    pub(super) fn cancel(&mut self, at: Duration) {
        let message = match self.api {
            Api::Jobs => "The job was cancelled",
            Api::Legacy => "Fine-tune cancelled",
        };
        self.note(at, Level::Warn, message.to_owned(), None);
        self.end(Status::Cancelled, at);
    }

    /// Stops the clock of a run; false if it has ended or is paused.
    pub(super) fn pause(&mut self, at: Duration) -> bool {
        if self.status.has_ended() || self.paused_at.is_some() {
            return false;
        }
        self.paused_at = Some((at, self.status));
        self.status = Status::Paused;
        self.updated = at;
        self.say(at, "The job was paused".to_owned());
        true
    }

    /// Lets it go on; false if it is not paused.
    pub(super) fn resume(&mut self, at: Duration) -> bool {
        let Some((since, status)) = self.paused_at.take() else { return false };
        self.held += at.saturating_sub(since);
        self.status = status;
        self.updated = at;
        self.say(at, "The job was resumed".to_owned());
        true
    }

    pub(super) fn say(&mut self, at: Duration, message: String) {
        self.note(at, Level::Info, message, None);
    }

    fn note(&mut self, at: Duration, level: Level, message: String, metrics: Option<Metrics>) {
        self.events.push(Event { at, level, message, metrics });
    }

    pub(super) fn status(&self) -> Status {
        self.status
    }

    pub(super) fn extent(&self) -> Extent {
        self.extent
    }

    pub(super) fn created(&self) -> Duration {
        self.created
    }

    pub(super) fn updated(&self) -> Duration {
        self.updated
    }

    pub(super) fn finished(&self) -> Option<Duration> {
        self.finished
    }

    /// When it will have ended, as far as that can be told.
    pub(super) fn expected_end(&self) -> Option<Duration> {
        let (last, _) = self.ahead.back()?;
        (self.status == Status::Running).then(|| self.created + self.held + *last)
    }

    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Oldest first.
    pub(super) fn events(&self) -> &[Event] {
        &self.events
    }

    /// Oldest first.
    pub(super) fn checkpoints(&self) -> &[Checkpoint] {
        &self.checkpoints
    }

    pub(super) fn has_vanished(&self) -> bool {
        self.has_vanished
    }
}

fn script(course: &Course) -> VecDeque<(Duration, Step)> {
    let Course { api, extent, time, .. } = *course;
    let (validated, queued, started) = match api {
        Api::Jobs => {
            ("Files validated, moving job to queued state", Status::Queued, "Fine-tuning job started")
        }
        Api::Legacy => ("Fine-tune enqueued. Queue number: 0", Status::Queued, "Fine-tune started"),
    };
    let mut steps = Vec::new();
    if let Some(failure) = &course.verdict {
        steps.push((VALIDATED, Step::Fail(failure.clone())));
    } else {
        steps.push((VALIDATED, Step::Enter(queued, validated)));
        steps.push((STARTED, Step::Enter(Status::Running, started)));
        let trained = |done: f64| STARTED + (TRAINED - STARTED) * done;
        if api == Api::Jobs {
            let total = extent.steps();
            steps.extend(extent.reported().map(|step| (trained(part(step, total)), Step::Measure(step))));
        }
        let epochs = extent.epochs;
        steps.extend((1..=epochs).map(|epoch| (trained(part(epoch, epochs)), Step::EndEpoch(epoch))));
        steps.push((1.0, Step::Succeed));
        if let Some(fate) = course.fate {
            strike(&mut steps, fate);
        }
    }
    // Stable: an epoch ends after its last step.
    steps.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    steps.into_iter().map(|(when, step)| (time.mul_f64(when), step)).collect()
}

fn strike(steps: &mut Vec<(f64, Step)>, fate: Fate) {
    if fate == Fate::Odd {
        steps.push((STRUCK, Step::Enter(Status::Odd, "")));
        steps.push((EVEN_AGAIN, Step::Enter(Status::Running, "")));
        return;
    }
    steps.retain(|(when, _)| *when < STRUCK);
    let blow = match fate {
        Fate::Fail | Fate::Odd => Step::Fail(Failure {
            code: "server_error",
            message: "The job failed due to an internal error.".to_owned(),
            param: None,
        }),
        Fate::Cancel => Step::Cancel,
        Fate::Vanish => Step::Vanish,
    };
    steps.push((STRUCK, blow));
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn run(api: Api, fate: Option<Fate>) -> Run {
        let extent = Extent::new(10, 1, 4, false);
        Run::begin(&Course { api, extent, verdict: None, fate, time: SECOND * 100 }, SECOND)
    }

    fn statuses(run: &mut Run) -> Vec<Status> {
        let mut seen = vec![run.status()];
        for second in 1..=200 {
            run.advance(SECOND * second);
            if seen.last() != Some(&run.status()) {
                seen.push(run.status());
            }
        }
        seen
    }

    #[test]
    fn a_run_goes_its_way_whenever_it_is_looked_at() {
        let mut watched = run(Api::Jobs, None);
        assert_eq!(
            statuses(&mut watched),
            [Status::Validating, Status::Queued, Status::Running, Status::Succeeded]
        );
        let mut forgotten = run(Api::Jobs, None);
        assert_eq!(forgotten.advance(SECOND * 1000), Some(SECOND * 101));
        assert_eq!((watched.events(), watched.checkpoints()), (forgotten.events(), forgotten.checkpoints()));
        assert_eq!(watched.finished(), Some(SECOND * 101));
        let steps: Vec<u64> =
            watched.checkpoints().iter().map(|checkpoint| checkpoint.metrics.step).collect();
        assert_eq!(steps, [20, 30, 40], "the last three epochs of four");
        assert!(watched.events().is_sorted_by_key(|event| event.at));
    }

    #[test]
    fn time_stands_still_in_a_pause() {
        let mut run = run(Api::Jobs, None);
        run.advance(SECOND * 31);
        assert!(run.pause(SECOND * 31) && !run.pause(SECOND * 32));
        assert_eq!(run.advance(SECOND * 5_000), None);
        assert_eq!(run.status(), Status::Paused);
        assert!(run.resume(SECOND * 1_031) && !run.resume(SECOND * 1_032));
        assert_eq!(run.status(), Status::Running);
        assert_eq!(run.advance(SECOND * 5_000), Some(SECOND * 1_101));
        assert!(!run.pause(SECOND * 5_000));
    }

    #[test]
    fn fates_strike_in_the_middle() {
        let end = |fate| {
            let mut run = run(Api::Legacy, Some(fate));
            let seen = statuses(&mut run);
            (seen.last().copied(), run.has_vanished(), seen.contains(&Status::Odd))
        };
        assert_eq!(end(Fate::Fail), (Some(Status::Failed), false, false));
        assert_eq!(end(Fate::Cancel), (Some(Status::Cancelled), false, false));
        assert_eq!(end(Fate::Vanish), (Some(Status::Running), true, false));
        assert_eq!(end(Fate::Odd), (Some(Status::Succeeded), false, true));
    }

    #[test]
    fn what_validation_finds_ends_a_run_before_it_starts() {
        let failure = Failure {
            code: "invalid_n_examples",
            message: "too few".to_owned(),
            param: Some("training_file"),
        };
        let course = Course {
            api: Api::Jobs,
            extent: Extent::new(2, 1, 1, false),
            verdict: Some(failure.clone()),
            fate: Some(Fate::Odd),
            time: SECOND * 100,
        };
        let mut run = Run::begin(&course, Duration::ZERO);
        assert_eq!(statuses(&mut run), [Status::Validating, Status::Failed]);
        assert_eq!((run.failure(), run.finished()), (Some(&failure), Some(SECOND * 10)));
    }

    #[test]
    fn a_cancelled_run_stays_cancelled() {
        let mut run = run(Api::Jobs, None);
        run.pause(SECOND * 2);
        run.cancel(SECOND * 3);
        assert_eq!(run.advance(SECOND * 500), None);
        assert_eq!((run.status(), run.finished()), (Status::Cancelled, Some(SECOND * 3)));
    }
}
