//! Fine-tunes: one attempt goes as far as it gets before it must wait for the provider.
//!
//! # Operation
//!
//! An attempt asks [`Progress`] for the next step, makes its exchange, notes what came of it, and goes on so until
//! there is nothing to do but to look again later: then it settles with a snooze, and holds no slot meanwhile. What a
//! crash must not take along is in the request's memo. Times, and what was told, are in memory ([`Watch`]): a new
//! process begins to ask often again.
//!
//! # Invariants
//!
//! - Nothing is created at the provider before it is durable that it will be, nor if its id may find no room on the
//!   disk. A lost reply, or a crash, is followed by looks ([`steps`]).
//! - Once the job is there nothing but the provider's own word, or its disappearance, ends it as failed. That it can't
//!   be asked, or says what nobody knows, is waited out.
//! - An intent of the [store](crate::store::Store::begin) is never written: it would make the request uncertain after
//!   a crash, and by the memo more is known.
//!
//! # What it does not do
//!
//! It doesn't delete what was uploaded, nor fetch what the fine-tune made: that is the output's.

mod steps;
mod verdict;
mod watch;

use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::dispatch::attempt::{Ended, EndedKind, Parts, Prepared};
use crate::dispatch::failure::Result;
use crate::dispatch::lane::Places;
use crate::domain::tuning::{Progress, Step, Thing, Wish};
use crate::domain::{Failure, FineTune, JobStatus, Outcome, RequestId, RetryPolicy, Settlement};
use crate::fault;
use crate::metrics::AttemptEnd;
use crate::provider::Called;
use crate::store::Lease;

use self::watch::Watch;
pub(super) use self::watch::Watches;

/// How the waits grow while the provider gives no answer. It is not the job's own policy, which bounds attempts that
/// cost something: these go on until there is an answer.
const TROUBLE: RetryPolicy = RetryPolicy {
    max_attempts: u32::MAX,
    base_delay: Duration::from_secs(1),
    max_delay: Duration::from_mins(1),
};

/// So long at least is a server left alone that gave no answer.
const TROUBLE_FLOOR: Duration = Duration::from_millis(500);

/// When a memo is tried again for which there was no room, where the store doesn't say when there is.
const ROOM_WAIT: Duration = Duration::from_secs(5);

/// What a memo takes at the most: three ids.
const MEMO_BYTES: u64 = 4096;

/// What follows a step: the next one, or what becomes of the request.
type Flow = ControlFlow<Settlement>;

/// Why a step has no answer.
#[derive(Debug)]
enum Missing {
    Saw(Box<Outcome>),
    /// The job is on its way to its end, and the grace is over.
    GivenUp,
}

/// See the module's words.
struct Attempt<'a> {
    parts: &'a Parts,
    id: RequestId,
    plan: &'a FineTune,
    policy: RetryPolicy,
    dice: f64,
    places: &'a Places,
    given_up: CancellationToken,
    /// The job's, when it was last looked at.
    status: JobStatus,
    watch: Watch,
    /// Attempts that the step at hand has used up.
    used: u32,
    exchanges: u32,
    kind: EndedKind,
}

/// Goes as far as it gets, and settles. After an error, which is the store's, nothing may be sent.
pub(super) async fn run(parts: Arc<Parts>, prepared: Prepared<FineTune>) -> Result<Ended> {
    let Prepared { lease, work: plan, policy, estimate, dice, site, places, number } = prepared;
    let watch = match parts.watches.take(lease.request) {
        Some(watch) => watch,
        None => Watch::new(load(&parts, &lease, &plan).await?),
    };
    let mut attempt = Attempt {
        parts: &parts,
        id: lease.request,
        plan: &plan,
        policy,
        dice,
        places: &places,
        given_up: parts.endings.of(lease.request.job),
        status: JobStatus::InProgress,
        watch,
        used: lease.attempt.saturating_sub(1),
        exchanges: 0,
        kind: EndedKind::Served,
    };
    let settlement = Box::pin(attempt.advance()).await?;
    let Attempt { watch, exchanges, kind, .. } = attempt;
    let has_ended = matches!(settlement, Settlement::Complete(_) | Settlement::Discard(_));
    if !has_ended {
        parts.watches.put(lease.request, watch);
    }
    let kind = if kind == EndedKind::Served && !has_ended { EndedKind::Waiting } else { kind };
    parts.settle(lease, settlement).await?;
    fault::point("tuning-settled");
    Ok(Ended { kind, estimate, exchanges, number, ..Ended::in_lane(site.index) })
}

/// How far an earlier process came.
async fn load(parts: &Parts, lease: &Lease, plan: &FineTune) -> Result<Progress> {
    let Some(memo) = parts.store.memo(lease.request).await? else { return Ok(Progress::new(plan)) };
    if let Some(progress) = Progress::read(&memo, plan) {
        return Ok(progress);
    }
    tracing::warn!(request = %lease.request, "the memo of a fine-tune can't be read; the provider is asked what is there");
    let accepted_at = parts.store.job(lease.request.job).await?.job.accepted_at;
    Ok(Progress::lost(plan, accepted_at))
}

impl Attempt<'_> {
    async fn advance(&mut self) -> Result<Settlement> {
        if self.watch.is_unsaved && !self.save().await? {
            return Ok(Settlement::Release);
        }
        loop {
            // The step in flight was finished; the next one is that of the next process.
            if self.exchanges > 0 && self.parts.stopping.is_cancelled() {
                return Ok(self.snooze(Duration::ZERO));
            }
            let Some(wish) = self.look_at_job().await? else { return Ok(Settlement::Release) };
            let step = self.watch.progress.next(self.plan, wish);
            // A cancellation that comes meanwhile does not wait for the next poll: the fleet sees to it.
            if let ControlFlow::Break(settlement) = self.take(step).await? {
                return Ok(settlement);
            }
        }
    }

    async fn take(&mut self, step: Step) -> Result<Flow> {
        match step {
            Step::Create(Thing::Job) => self.create_job().await,
            Step::Create(file) => self.upload(file).await,
            Step::Find(thing) => self.find(thing).await,
            Step::Await(file) => Ok(self.await_file(file).await),
            Step::Poll => Ok(self.poll().await),
            Step::Cancel => Ok(self.cancel().await),
            Step::Rest => Ok(ControlFlow::Break(self.end_of_nothing())),
        }
    }

    /// What is wanted of it now; none if nothing may be sent.
    async fn look_at_job(&mut self) -> Result<Option<Wish>> {
        let state = self.parts.store.job(self.id.job).await?;
        let may_send = state.may_send();
        self.status = state.status;
        Ok(may_send.then(|| self.wish()))
    }

    const fn wish(&self) -> Wish {
        if self.is_to_end() { Wish::End } else { Wish::Run }
    }

    const fn is_to_end(&self) -> bool {
        matches!(self.status, JobStatus::Cancelling | JobStatus::Expiring)
    }

    /// Makes an exchange, and lets gates and limits learn from it. One that ends what runs at the provider is not
    /// given up. A panic is as a lost reply: it must not end what may be paid for.
    async fn ask<T>(&mut self, call: impl Future<Output = Called<T>> + Send) -> Result<T, Missing> {
        self.exchanges += 1;
        let _in_flight = self.parts.meter.in_flight();
        let is_to_end = self.is_to_end();
        let given_up =
            async { if is_to_end { std::future::pending().await } else { self.given_up.cancelled().await } };
        // An answer that is there counts, however late.
        let called = tokio::select! { biased;
            called = Box::pin(AssertUnwindSafe(call).catch_unwind()) => called,
            () = given_up => {
                tracing::warn!(request = %self.id, "given up in flight: its job ends, and the grace is over");
                self.parts.meter.ended(AttemptEnd::Abandoned);
                return Err(Missing::GivenUp);
            }
        };
        let outcome = match called {
            Ok(Ok(answer)) => {
                self.places.passed();
                self.parts.meter.ended(AttemptEnd::Answered);
                self.kind = EndedKind::Served;
                return Ok(answer);
            }
            Ok(Err(outcome)) => outcome,
            Err(_) => {
                tracing::error!(request = %self.id, "an exchange panicked; please report it");
                Box::new(Outcome::Failed(Failure {
                    code: "internal_error",
                    message: "batchd failed while it handled an exchange; please report it".to_owned(),
                    retry_after: None,
                    maybe_paid: true,
                    response: None,
                }))
            }
        };
        self.kind = self.parts.notice(&outcome, self.places, self.parts.clock.now());
        Err(Missing::Saw(outcome))
    }

    /// Writes the memo; says whether there was room for it.
    async fn save(&mut self) -> Result<bool> {
        let memo = self.watch.progress.to_memo();
        let written = self.parts.store.write_memo(self.id, memo.into()).await;
        self.watch.is_unsaved = written.is_err();
        match written {
            Ok(()) => Ok(true),
            Err(error) if error.is_full() => {
                self.kind = EndedKind::Blocked;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The step is done: what comes next begins anew.
    fn step_done(&mut self) {
        self.used = 0;
        self.watch.since = Instant::now();
        self.watch.failure = None;
        self.watch.not_before = None;
    }

    /// Looks again after `wait`, which is no failure.
    fn snooze(&self, wait: Duration) -> Settlement {
        Settlement::Snooze { due: self.parts.clock.now() + wait, attempts: self.used }
    }

    /// The provider gave no answer to a question that costs nothing: it is asked again until it does.
    fn later(&mut self, missing: Missing) -> Settlement {
        let Missing::Saw(outcome) = missing else { return Settlement::Release };
        let retry_after = match &*outcome {
            Outcome::Throttled { retry_after, .. } => *retry_after,
            Outcome::Failed(failure) => failure.retry_after,
            // The gate lets it through again when the time has come.
            Outcome::Blocked(_) => return Settlement::Release,
            Outcome::Answered(_) | Outcome::Refused(_) | Outcome::Unanswerable(_) => None,
        };
        self.watch.trouble = self.watch.trouble.saturating_add(1);
        if self.watch.trouble == 1 {
            let error = verdict::words(&outcome);
            tracing::warn!(request = %self.id, custom_id = %self.plan.custom_id, error, "the provider does not say how a fine-tune stands; it is asked on");
        }
        self.snooze(TROUBLE.delay(self.watch.trouble, retry_after, self.dice).max(TROUBLE_FLOOR))
    }
}

#[cfg(test)]
mod tests;
