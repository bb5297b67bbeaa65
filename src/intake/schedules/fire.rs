//! Making runs: when a time has come, and when a person asks for one.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::record::Record;
use super::{Kept, Plan};
use crate::clock;
use crate::diag::printable;
use crate::domain::{Job, JobId, JobName, JobState, Run, Timestamp};
use crate::fault;
use crate::intake::accept::{Examiner, Verdict};
use crate::intake::admit::{Applicant, Ending};
use crate::intake::blocking::blocking;
use crate::intake::claim::Claim;
use crate::intake::copy::is_swapped;
use crate::intake::dir::Dir;
use crate::intake::handle::{Order, Refusal};
use crate::intake::known::Known;
use crate::intake::made::Making;
use crate::intake::round::Round;
use crate::intake::worker::{Intake, RETRY};
use crate::intake::{Error, failed};
use crate::schedule::{Look, Missed, Overlap};
use crate::store::folder::JobFolder;

/// Schedules fired between two looks: at 10 to 20 ms each, some seconds of work.
const BATCH_MAX: usize = 500;

/// So many runs of one schedule may wait for those before them: whoever comes later comes for nothing.
const WAITING_MAX: usize = 100;

/// A schedule may have no time left.
const NEVER: Timestamp = Timestamp::from_millis(u64::MAX);

/// A run that is to be made.
#[derive(Debug)]
struct Firing {
    file: String,
    /// None: a person asks for it.
    due: Option<Timestamp>,
    name: JobName,
    after: Option<JobId>,
    may_wait: bool,
}

impl Intake {
    /// Makes the runs whose time has come.
    pub(in crate::intake) async fn fire_due(
        &mut self,
        examiner: &Examiner,
        round: &mut Round,
    ) -> Result<(), Error> {
        let now = self.clock.now();
        let due = self.schedules.due(now);
        if !due.is_empty() {
            let jobs = self.store.jobs().await.map_err(Error::Store)?;
            let mut known = Known::of(&jobs);
            for file in due.iter().take(BATCH_MAX) {
                if examiner.stop.is_cancelled() {
                    return Ok(());
                }
                match self.fire(examiner, file, (&jobs, &mut known), round).await {
                    Ok(()) => {}
                    Err(Error::Io { .. }) if examiner.stop.is_cancelled() => return Ok(()),
                    Err(error @ Error::Io { .. }) => {
                        self.recover_due = true;
                        self.schedules.postpone(file, self.clock.now() + RETRY, true);
                        round.trouble(error, RETRY);
                    }
                    Err(error @ Error::Store(_)) => return Err(error),
                }
            }
        }
        round.blocked += self.schedules.blocked();
        let next = self.schedules.next();
        round.sooner(next.map(|next| self.clock.until(next)));
        Ok(())
    }

    /// Decides about the times of one schedule that have passed, and makes the run that one of them gets.
    async fn fire(
        &mut self,
        examiner: &Examiner,
        file: &str,
        (jobs, known): (&[JobState], &mut Known),
        round: &mut Round,
    ) -> Result<(), Error> {
        let now = self.clock.now();
        let Some(kept) = self.schedules.kept.get_mut(file) else { return Ok(()) };
        let Some(plan) = kept.plan.clone() else { return Ok(()) };
        let has_waited = kept.retry.take().is_some_and(|retry| !retry.is_blocked);
        let earlier = unfinished(jobs, file);
        if kept.record.due.is_none() {
            let look = kept.look(&plan, self.attended.moment(kept.next, now));
            kept.decided(look, overlap(plan.schedule.overlap, &earlier));
        }
        let record = kept.record.clone();
        self.schedules.write(record.clone(), now).await?;
        let Some(due) = record.due else { return Ok(()) };
        fault::point("schedule-decided");
        let after = earlier.iter().map(|state| state.job.id).max();
        let firing = Firing {
            file: file.to_owned(),
            due: Some(due),
            name: run_name(&plan.name, &plan.schedule.calendar.stamp(due)),
            after: after.filter(|_| plan.schedule.overlap == Overlap::Queue),
            may_wait: round.may_bring_more(file.as_ref(), &self.deferred),
        };
        match self.make_run(examiner, &firing, known).await?.1 {
            Ending::Job => fault::point("schedule-fired"),
            Ending::Rejected { .. } => {}
            ending @ (Ending::WaitsForData { .. } | Ending::WaitsForFineTune { .. }) => {
                let at = self.clock.now() + self.settings.settle;
                self.schedules.postpone(file, at, false);
                if !has_waited {
                    info!(schedule = %printable(file), run = %firing.name, awaited = ending.awaited(), "a run waits: its data are still being written");
                }
                return Ok(());
            }
            Ending::Kept | Ending::Gone | Ending::Changed => {
                self.schedules.postpone(file, self.clock.now() + self.settings.settle, false);
                return Ok(());
            }
        }
        let Some(kept) = self.schedules.kept.get_mut(file) else { return Ok(()) };
        // From here on it holds, written or not: what the store has is known at the next start.
        kept.record.due = None;
        kept.is_unwritten = true;
        kept.look_ahead(&plan);
        let record = kept.record.clone();
        self.schedules.write(record, self.clock.now()).await?;
        fault::point("schedule-recorded");
        Ok(())
    }

    /// Makes a run of the kept text, as far as it comes.
    async fn make_run(
        &mut self,
        examiner: &Examiner,
        firing: &Firing,
        known: &mut Known,
    ) -> Result<(JobId, Ending), Error> {
        let now = self.clock.now();
        // It waits for all that sort before that one: were it among them, it would wait for itself.
        let id = match firing.after {
            Some(after) => clock::job_id_behind(after, now, &mut self.rng),
            None => clock::job_id(now, &mut self.rng),
        };
        let Some(kept) = self.schedules.kept.get(&firing.file) else { return Ok((id, Ending::Gone)) };
        let examiner = Examiner { now, due: firing.due, ..examiner.clone() };
        let stop = examiner.stop.clone();
        let (text, dropped) = (self.schedules.shelf.text(&kept.record), kept.record.dropped);
        let (file, name) = (firing.file.clone(), firing.name.clone());
        let verdict = blocking(move || {
            let making = Making { file: &file, dropped, run: &name, text: &text };
            let job = JobFolder::new(&examiner.state, id);
            match Claim::make(&examiner.jobs, job, &making) {
                Ok(claim) => examiner.judge(Box::new(claim)),
                // Its folder is gone, or another stands there: the next look says so.
                Err(Error::Io { source, .. }) if is_swapped(&source) => Ok(Verdict::Gone),
                Err(error) => Err(error),
            }
        });
        let ending = match verdict.await? {
            Verdict::Valid { claim, checked } => {
                let run = Run { spec: firing.file.clone(), due: firing.due, after: firing.after };
                let run = Some((firing.name.clone(), run));
                let applicant =
                    Applicant { id, claim: *claim, checked: *checked, may_wait: firing.may_wait, run };
                self.admit(applicant, known, &stop).await?
            }
            Verdict::Rejected { name, report } => Ending::Rejected { name, report },
            Verdict::Waits { data } => Ending::WaitsForData { data },
            Verdict::Changed => Ending::Changed,
            Verdict::Gone => Ending::Gone,
        };
        if let Ending::Rejected { name, report } = &ending {
            let (errors, first) = (report.errors(), report.first_error().map(ToString::to_string));
            let schedule = printable(&firing.file);
            warn!(%schedule, rejected_as = %name, errors, first, "the run of a schedule was rejected: it goes on with its next time");
        }
        Ok((id, ending))
    }

    /// Does what somebody asks for over the handle. An error is the store's.
    pub(in crate::intake) async fn carry_out(
        &mut self,
        order: Order,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let Order { schedule, reply } = order;
        let answer = match self.run_now(&schedule, stop).await {
            Ok(answer) => answer,
            Err(error @ Error::Io { .. }) => {
                self.recover_due = true;
                Err(Refusal::Trouble(printable(&error.to_string())))
            }
            Err(error @ Error::Store(_)) => {
                drop(reply.send(Err(Refusal::Trouble(error.to_string()))));
                return Err(error);
            }
        };
        // The next look sees to it, and tells of it.
        self.left = None;
        // Whoever asked may have gone: the run stands.
        drop(reply.send(answer));
        Ok(())
    }

    async fn run_now(
        &mut self,
        named: &str,
        stop: &CancellationToken,
    ) -> Result<Result<JobId, Refusal>, Error> {
        let kept = match self.schedules.find(named) {
            Ok(kept) => kept,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let file = kept.record.file.clone();
        let Some(plan) = kept.plan.clone() else { return Ok(Err(Refusal::Broken { file })) };
        let path = self.settings.jobs.clone();
        let jobs = blocking(move || Dir::open(&path).map_err(failed("open the jobs folder", &path))).await?;
        let examiner = self.examiner(Arc::new(jobs), stop);
        let now = self.clock.now();
        let name = run_name(&plan.name, &plan.schedule.calendar.stamp(now));
        let firing = Firing { file, due: None, name, after: None, may_wait: false };
        let mut known = Known::of(&self.store.jobs().await.map_err(Error::Store)?);
        Ok(match self.make_run(&examiner, &firing, &mut known).await? {
            (id, Ending::Job) => Ok(id),
            (_, Ending::Rejected { name, report }) => Err(Refusal::Rejected { name, report }),
            (_, Ending::WaitsForData { data }) => Err(Refusal::Unsettled { data }),
            (_, Ending::Kept | Ending::Gone | Ending::Changed | Ending::WaitsForFineTune { .. }) => {
                Err(Refusal::Unknown(named.to_owned()))
            }
        })
    }
}

/// What becomes of a time because of the runs before it.
enum Before {
    Free,
    /// This run has not ended.
    Open(JobName),
    /// So many wait already.
    Full(usize),
}

fn overlap(overlap: Overlap, earlier: &[&JobState]) -> Before {
    let waiting = earlier.iter().filter(|state| state.status.is_waiting()).count();
    match (overlap, earlier.last()) {
        (Overlap::Skip, Some(state)) => Before::Open(state.job.name.clone()),
        (Overlap::Queue, Some(_)) if waiting >= WAITING_MAX => Before::Full(waiting),
        (Overlap::Queue, Some(_)) | (_, None) => Before::Free,
    }
}

impl Kept {
    /// Finds out when its times are to be looked at again.
    fn look_ahead(&mut self, plan: &Plan) {
        let next = plan.schedule.calendar.after(self.record.last);
        let begin = next.map(|next| plan.schedule.begin(&self.record.file, next));
        self.next = Some(begin.unwrap_or(NEVER));
    }

    fn look(&self, plan: &Plan, now: Timestamp) -> Look {
        plan.schedule.look(&self.record.file, self.record.last, self.since, now)
    }

    /// Takes over what a look has found, to be written down.
    fn decided(&mut self, look: Look, before: Before) {
        let Look { run, missed, last, next } = look;
        let schedule = printable(&self.record.file);
        if let Some(Missed { count, more, first, last }) = missed {
            // What is done about them: the run of the last time, or nothing.
            let run = run.map(|run| run.to_string());
            warn!(%schedule, count, more, %first, %last, run, "times of a schedule have passed without a run");
        }
        let due = match (run, before) {
            (Some(due), Before::Open(run)) => {
                info!(%schedule, %due, %run, "no run: the one before it has not ended");
                None
            }
            (Some(due), Before::Full(waiting)) => {
                warn!(%schedule, %due, waiting, "no run: too many wait for the one before them");
                None
            }
            (run, _) => run,
        };
        self.is_unwritten |= last != self.record.last;
        self.record = Record { last, due, ..self.record.clone() };
        self.next = Some(next.unwrap_or(NEVER));
    }
}

impl Ending {
    /// What a run waits for.
    fn awaited(&self) -> String {
        match self {
            Self::WaitsForData { data } => data.clone(),
            Self::WaitsForFineTune { fine_tune } => fine_tune.to_string(),
            Self::Job | Self::Kept | Self::Rejected { .. } | Self::Gone | Self::Changed => String::new(),
        }
    }
}

/// The runs of a schedule that have not ended, in the order of acceptance.
fn unfinished<'j>(jobs: &'j [JobState], file: &str) -> Vec<&'j JobState> {
    let is_ours = |job: &Job| job.run.as_ref().is_some_and(|run| run.spec == file);
    jobs.iter().filter(|state| is_ours(&state.job) && !state.status.is_final()).collect()
}

/// `nightly-20261122T020000`; a name for which that is too long is cut.
fn run_name(schedule: &JobName, stamp: &str) -> JobName {
    let room = JobName::BYTES_MAX.saturating_sub(stamp.len() + 1);
    let name = schedule.as_str();
    let stem = name.get(..name.floor_char_boundary(room)).unwrap_or_default();
    format!("{stem}-{stamp}").parse().expect("the start of a name and a stamp are one")
}
