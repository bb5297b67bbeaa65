//! One attempt: intent, exchange, decision, settlement.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::control::QueuePause;
use crate::diag::printable;
use crate::dispatch::breaker::Failing;
use crate::dispatch::budget::Budget;
use crate::dispatch::ending::Endings;
use crate::dispatch::estimate::Estimate;
use crate::dispatch::failure::Result;
use crate::dispatch::gate::Felt;
use crate::dispatch::known::KnownModel;
use crate::dispatch::lane::{Places, Site};
use crate::dispatch::live::Handle;
use crate::dispatch::tuning::Watches;
use crate::domain::attempt::{History, decide};
use crate::domain::{
    Failure, Outcome, PauseReason, Record, RecordError, Request, RequestId, RetryPolicy, Settlement,
    Shortage, Timestamp,
};
use crate::fault;
use crate::metrics::{AttemptEnd, QueueMeter, Settled};
use crate::provider::{Provider, RateHeaders, Reply, Usage};
use crate::store::{Lease, Store};

/// What all attempts of a queue share.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) store: Arc<dyn Store>,
    /// The first site of the provider, where files and fine-tunes are.
    pub(super) provider: Provider,
    pub(super) clock: Clock,
    pub(super) meter: QueueMeter,
    /// The settings of the fleet, and what it shows.
    pub(super) live: Handle,
    /// Says when requests in flight are given up because their job ends.
    pub(super) endings: Arc<Endings>,
    pub(super) model: KnownModel,
    /// What is remembered of the fine-tunes that run at the provider.
    pub(super) watches: Watches,
    /// How soon what has failed may be sent again.
    pub(super) budget: Budget,
    /// Nothing more is begun; what is in flight may finish.
    pub(super) stopping: CancellationToken,
}

/// A request, or a fine-tune, whose turn has come.
#[derive(Debug)]
pub(super) struct Prepared<W> {
    pub(super) lease: Lease,
    pub(super) work: W,
    pub(super) policy: RetryPolicy,
    pub(super) estimate: Estimate,
    /// Uniform in `0.0..1.0`: spreads its retries.
    pub(super) dice: f64,
    /// Where it is sent.
    pub(super) site: Arc<Site>,
    pub(super) places: Places,
    /// Its number among those sent in its lane.
    pub(super) number: u64,
}

/// What an attempt tells its dispatcher when it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) kind: EndedKind,
    /// What it was counted as, and what it used.
    pub(super) estimate: Estimate,
    pub(super) usage: Option<Usage>,
    /// How often it asked the server.
    pub(super) exchanges: u32,
    /// The index of its lane.
    pub(super) lane: usize,
    /// Where it is to be asked again, and better elsewhere.
    pub(super) failed: Option<RequestId>,
    /// Its number among those sent in its lane.
    pub(super) number: u64,
    /// None where nothing came back, and for fine-tunes.
    pub(super) exchange: Option<Exchange>,
    /// Whether it was answered: a refusal is written sooner than an answer.
    pub(super) is_answer: bool,
}

/// What an exchange that brought a reply shows of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exchange {
    pub(super) sent_at: Instant,
    pub(super) answered_at: Instant,
    pub(super) rate: RateHeaders,
}

impl Ended {
    /// One that was served and of which nothing else is known.
    pub(super) fn in_lane(lane: usize) -> Self {
        let (kind, estimate) = (EndedKind::Served, Estimate::default());
        Self {
            kind,
            estimate,
            usage: None,
            exchanges: 1,
            lane,
            failed: None,
            number: 0,
            exchange: None,
            is_answer: true,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndedKind {
    /// The server took the request and judged it, whatever the verdict.
    Served,
    /// The server answered, and is to be asked again later.
    Waiting,
    /// The server asked to come later.
    Throttled { retry_after: Option<Duration>, short_of: Shortage },
    /// A transient failure.
    Failed,
    /// The gate has closed, or the disk has no room: nothing was judged.
    Blocked,
}

/// Makes one attempt and settles it. After an error, which is the store's, nothing may be sent.
pub(super) async fn run(parts: Arc<Parts>, prepared: Prepared<Request>) -> Result<Ended> {
    let Prepared { lease, work: request, policy, estimate, dice, site, places, number } = prepared;
    let unserved =
        Ended { kind: EndedKind::Failed, estimate, number, is_answer: false, ..Ended::in_lane(site.index) };
    match parts.store.begin(&lease) {
        Ok(()) => {}
        // There may be no room for its answer: it waits in the store, which leases nothing until there is.
        Err(error) if error.is_full() => {
            parts.store.settle(lease, Settlement::Release).await?;
            return Ok(Ended { kind: EndedKind::Blocked, exchanges: 0, ..unserved });
        }
        Err(error) => return Err(error.into()),
    }
    let given_up = parts.endings.of(lease.request.job);
    let in_flight = parts.meter.in_flight();
    let sent_at = Instant::now();
    parts.budget.sent(sent_at);
    let call = async {
        fault::point("dispatch-calling");
        site.provider.call(&request).await
    };
    // An answer that is there counts, however late.
    let called = tokio::select! { biased;
        called = AssertUnwindSafe(call).catch_unwind() => called,
        () = given_up.cancelled() => {
            tracing::warn!(request = %lease.request, "given up in flight: its job ends, and the grace is over");
            parts.meter.ended(AttemptEnd::Abandoned);
            // The job records it at its end, with all the others that were not answered.
            parts.store.settle(lease, Settlement::Release).await?;
            return Ok(unserved);
        }
    };
    drop(in_flight);
    fault::point("dispatch-answered");
    let now = parts.clock.now();
    let exchange = |rate| Exchange { sent_at, answered_at: Instant::now(), rate };
    let Ok(Reply { outcome, usage, rate }) = called else {
        parts.fail_for_panic(lease, request.custom_id).await?;
        return Ok(unserved);
    };
    let is_answer = matches!(outcome, Outcome::Answered(_));
    if is_answer {
        parts.meter.answered_in(sent_at.elapsed());
    }
    if let Some(usage) = usage {
        parts.meter.used(usage.input_tokens, usage.output_tokens);
    }
    let exchange = exchange(rate);
    let kind = parts.notice(&outcome, &places, now);
    log(&lease, &request, &outcome, site.label.as_deref());
    let failed = matches!(kind, EndedKind::Failed | EndedKind::Throttled { .. }).then_some(lease.request);
    let history = History {
        request: lease.request,
        custom_id: request.custom_id,
        attempt: lease.attempt,
        model_has_answered: parts.model.may_exist(),
    };
    let settlement = match &outcome {
        // It only tried whether the server is there, and never came to it: that is no attempt of the request.
        Outcome::Failed(_) if kind == EndedKind::Blocked => Settlement::Release,
        Outcome::Failed(_) => parts.within_budget(decide(outcome, history, &policy, now, dice)),
        Outcome::Answered(_)
        | Outcome::Refused(_)
        | Outcome::Unanswerable(_)
        | Outcome::Throttled { .. }
        | Outcome::Blocked(_) => decide(outcome, history, &policy, now, dice),
    };
    parts.settle(lease, settlement).await?;
    fault::point("dispatch-settled");
    drop(places);
    Ok(Ended { kind, usage, failed, exchange: Some(exchange), is_answer, ..unserved })
}

impl Parts {
    /// Settles what an attempt leaves, and counts what has ended.
    pub(super) async fn settle(&self, lease: Lease, settlement: Settlement) -> Result<()> {
        let ended = match settlement {
            Settlement::Complete(_) => Some(Settled::Completed),
            Settlement::Discard(_) => Some(Settled::Failed),
            Settlement::Retry { .. } | Settlement::Snooze { .. } | Settlement::Release => None,
        };
        self.store.settle(lease, settlement).await?;
        if let Some(ended) = ended {
            self.meter.settled(ended);
        }
        Ok(())
    }

    /// Fails a request whose attempt has panicked: it may have been sent, and would panic again.
    async fn fail_for_panic(&self, lease: Lease, custom_id: String) -> Result<()> {
        let request = lease.request;
        tracing::error!(%request, custom_id = printable(&custom_id), "an attempt panicked; its request fails");
        let message = "batchd failed while it handled this request; please report it".to_owned();
        let error = Some(RecordError { code: "internal_error".to_owned(), message });
        self.meter.ended(AttemptEnd::Failed);
        self.settle(lease, Settlement::Discard(Record { request, custom_id, response: None, error })).await
    }

    /// Puts a failure's retry off where too many have failed.
    fn within_budget(&self, settlement: Settlement) -> Settlement {
        match settlement {
            Settlement::Retry { due, attempts, maybe_paid } => {
                let due = due + self.budget.take(Instant::now());
                Settlement::Retry { due, attempts, maybe_paid }
            }
            Settlement::Complete(_)
            | Settlement::Discard(_)
            | Settlement::Snooze { .. }
            | Settlement::Release => settlement,
        }
    }

    /// Counts a failure for the site's gate, unless it says nothing of the server.
    fn notice_failure(&self, failure: &Failure, places: &Places, now: Timestamp) -> EndedKind {
        let failing = match failure.code {
            "connection_error" => Failing::Unreached,
            // Ours.
            "file_error" | "internal_error" => return EndedKind::Failed,
            _ if failure.response.as_ref().is_some_and(|response| response.status_code < 500) => {
                places.site.heard();
                return EndedKind::Failed;
            }
            _ => Failing::Broken,
        };
        match places.site.failed(failing, &places.at.told(&failure.message), now, Instant::now()) {
            Felt::Tried if failing == Failing::Unreached => EndedKind::Blocked,
            Felt::Counted | Felt::Tried => EndedKind::Failed,
            Felt::Down => {
                let status = failure.response.as_ref().map(|response| response.status_code);
                tracing::error!(
                    provider = self.provider.name(),
                    endpoint = places.at.label,
                    reason = PauseReason::Outage.as_str(),
                    status,
                    error = printable(&failure.message),
                    "the server is down; nothing more is sent to it but a try now and then"
                );
                EndedKind::Failed
            }
        }
    }

    /// Counts what was seen, and opens and closes gates by it.
    pub(super) fn notice(&self, outcome: &Outcome, places: &Places, now: Timestamp) -> EndedKind {
        self.meter.saw(outcome, now);
        match outcome {
            Outcome::Answered(_) => {
                self.model.answered(places.at.index);
                places.passed();
                EndedKind::Served
            }
            Outcome::Refused(_) | Outcome::Unanswerable(_) => {
                places.passed();
                EndedKind::Served
            }
            Outcome::Throttled { retry_after, short_of, .. } => {
                places.site.heard();
                EndedKind::Throttled { retry_after: *retry_after, short_of: *short_of }
            }
            Outcome::Failed(failure) => self.notice_failure(failure, places, now),
            Outcome::Blocked(blocked) => {
                if blocked.reason == PauseReason::Model {
                    self.model.is_lacked(places.at.index);
                }
                let place = match blocked.reason {
                    PauseReason::Model if !self.model.may_exist() => {
                        places.passed();
                        return EndedKind::Served;
                    }
                    PauseReason::Model => {
                        places.site.passed();
                        &places.model
                    }
                    PauseReason::Auth
                    | PauseReason::Quota
                    | PauseReason::Disk
                    | PauseReason::FineTune
                    | PauseReason::Outage
                    | PauseReason::Overlap
                    | PauseReason::User => &places.site,
                };
                let status = blocked.response.as_ref().map(|response| response.status_code);
                let pause = QueuePause {
                    reason: blocked.reason,
                    message: places.at.told(&blocked.words()),
                    since: now,
                };
                if place.refused(pause, blocked.retry_after, Instant::now()) {
                    tracing::error!(
                        provider = self.provider.name(),
                        endpoint = places.at.label,
                        reason = blocked.reason.as_str(),
                        status,
                        error = printable(&blocked.message),
                        "the provider refuses; nothing more is sent to it but a try now and then"
                    );
                }
                EndedKind::Blocked
            }
        }
    }
}

/// `endpoint`: which one was asked, where there are several.
fn log(lease: &Lease, request: &Request, outcome: &Outcome, endpoint: Option<&str>) {
    let (request_id, custom_id, attempt) = (lease.request, &request.custom_id, lease.attempt);
    match outcome {
        Outcome::Answered(response) => {
            tracing::trace!(request = %request_id, custom_id, attempt, endpoint, status = response.status_code, "answered");
        }
        Outcome::Refused(response) => {
            tracing::debug!(request = %request_id, custom_id, attempt, endpoint, status = response.status_code, "refused");
        }
        Outcome::Unanswerable(error) => {
            tracing::debug!(request = %request_id, custom_id, attempt, endpoint, code = error.code, "unanswerable");
        }
        Outcome::Throttled { code, retry_after, short_of } => {
            tracing::debug!(request = %request_id, custom_id, attempt, endpoint, code, ?retry_after, ?short_of, "told to come later");
        }
        Outcome::Failed(failure) => {
            let (code, error) = (failure.code, printable(&failure.message));
            tracing::debug!(request = %request_id, custom_id, attempt, endpoint, code, error, "failed");
        }
        Outcome::Blocked(blocked) => {
            tracing::debug!(request = %request_id, custom_id, attempt, endpoint, reason = blocked.reason.as_str(), "blocked");
        }
    }
}
