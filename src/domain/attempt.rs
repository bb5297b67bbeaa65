//! From what an attempt saw ([`Outcome`]) to what becomes of its request ([`Settlement`]).
//!
//! [`decide`] is the one place where money is decided about. It is pure: the same outcome, history
//! and policy give the same settlement, and `dispatch` only carries it out.

use std::time::Duration;

use super::id::RequestId;
use super::job::PauseReason;
use super::record::{Record, RecordError, Response};
use super::retry::RetryPolicy;
use super::time::Timestamp;

/// What one attempt saw.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A 2xx that holds what its endpoint must return.
    Answered(Response),
    /// The provider refused this request, and would refuse it again.
    Refused(Response),
    /// A reply came that is no answer, and asking again would bring none: too large to keep, or a
    /// success status around a refusal.
    Unanswerable(RecordError),
    /// Told to come later; certainly not executed. Uses up no attempt.
    Throttled {
        /// The provider's code or type, for the log.
        code: String,
        retry_after: Option<Duration>,
        short_of: Shortage,
    },
    /// Something went wrong that may go right the next time.
    Failed(Failure),
    /// Not the request is refused but the key, the quota or the model: the queue must stop.
    Blocked(Blocked),
}

/// What a server has too little of that asks to come later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Requests in a span of time.
    Requests,
    /// Tokens in a span of time.
    Tokens,
    /// Room: it works on as much as it can, whatever the rate.
    Capacity,
    /// It doesn't say.
    Unknown,
}

/// A transient failure.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Goes into the record's `error.code` if it was the last attempt and nothing was answered.
    pub code: &'static str,
    pub message: String,
    pub retry_after: Option<Duration>,
    /// The provider may have done, and billed, the work: a reply was lost, cut or senseless.
    pub maybe_paid: bool,
    /// The reply, if there was one with an error status.
    pub response: Option<Response>,
}

/// A refusal that concerns more than one request.
#[derive(Clone, Debug)]
pub struct Blocked {
    pub reason: PauseReason,
    /// The provider's words, cut to a line.
    pub message: String,
    pub retry_after: Option<Duration>,
    /// None where no reply came to be: the server shows a certificate that can't be trusted.
    pub response: Option<Response>,
}

impl Blocked {
    /// For people: the status, where there was one, and the provider's words.
    pub fn words(&self) -> String {
        match &self.response {
            Some(response) => format!("{}: {}", response.status_code, self.message),
            None => self.message.clone(),
        }
    }
}

/// What `decide` must know of the request and its queue.
#[derive(Clone, Debug)]
pub struct History {
    pub request: RequestId,
    pub custom_id: String,
    /// Number of the attempt that saw the outcome, from 1.
    pub attempt: u32,
    /// Whether this queue's model has answered since the start: a 404 then is no typing mistake.
    pub model_has_answered: bool,
}

/// What becomes of a request after an attempt.
#[derive(Clone, Debug)]
pub enum Settlement {
    /// Ends in `output.jsonl`.
    Complete(Record),
    /// Ends in `errors.jsonl`.
    Discard(Record),
    /// Waits in the store until `due`.
    Retry {
        due: Timestamp,
        /// Attempts used up so far.
        attempts: u32,
        /// This attempt may have been paid for.
        maybe_paid: bool,
    },
    /// Looks again at `due`, at what goes on elsewhere: no failure. A restart makes it due at once.
    Snooze {
        due: Timestamp,
        /// Attempts used up so far.
        attempts: u32,
    },
    /// Goes back into the queue at once, as if never leased.
    Release,
}

/// Decides what becomes of a request. `dice` is uniform in `0.0..1.0` and spreads the retries.
pub fn decide(
    outcome: Outcome,
    history: History,
    policy: &RetryPolicy,
    now: Timestamp,
    dice: f64,
) -> Settlement {
    match outcome {
        Outcome::Answered(response) => Settlement::Complete(history.into_record(Some(response), None)),
        Outcome::Refused(response) => Settlement::Discard(history.into_record(Some(response), None)),
        Outcome::Unanswerable(error) => Settlement::Discard(history.into_record(None, Some(error))),
        Outcome::Throttled { retry_after, .. } => {
            // Without a hint the first bound holds, however often it was throttled: the queue's
            // own pacing slows down, and the request has done nothing wrong.
            let wait = policy.delay(1, retry_after, dice).max(floor(policy, retry_after));
            Settlement::Retry {
                due: now + wait,
                attempts: history.attempt.saturating_sub(1),
                maybe_paid: false,
            }
        }
        Outcome::Failed(failure) if policy.allows_another(history.attempt) => Settlement::Retry {
            due: now + policy.delay(history.attempt, failure.retry_after, dice),
            attempts: history.attempt,
            maybe_paid: failure.maybe_paid,
        },
        Outcome::Failed(failure) => {
            let error = RecordError {
                code: failure.code.to_owned(),
                message: format!(
                    "{} (attempt {} of {})",
                    failure.message, history.attempt, policy.max_attempts
                ),
            };
            match failure.response {
                Some(response) if !response.is_success() => {
                    Settlement::Discard(history.into_record(Some(response), None))
                }
                // A 2xx that holds no answer must not read as one.
                Some(_) | None => Settlement::Discard(history.into_record(None, Some(error))),
            }
        }
        Outcome::Blocked(Blocked { reason: PauseReason::Model, response: Some(response), .. })
            if !history.model_has_answered =>
        {
            Settlement::Discard(history.into_record(Some(response), None))
        }
        Outcome::Blocked(_) => Settlement::Release,
    }
}

/// A throttled request without a hint waits at least half the base delay, so that a full-jitter draw
/// near zero does not turn a refusing server into a busy loop.
fn floor(policy: &RetryPolicy, retry_after: Option<Duration>) -> Duration {
    if retry_after.is_some() { Duration::ZERO } else { policy.base_delay / 2 }
}

impl History {
    fn into_record(self, response: Option<Response>, error: Option<RecordError>) -> Record {
        Record { request: self.request, custom_id: self.custom_id, response, error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::JobId;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn history(attempt: u32) -> History {
        History {
            request: RequestId { job: JobId::from_bytes([1; 16]), index: 0 },
            custom_id: "a".to_owned(),
            attempt,
            model_has_answered: false,
        }
    }

    fn settle(outcome: Outcome, history: History) -> Settlement {
        decide(outcome, history, &RetryPolicy::default(), NOW, 0.5)
    }

    fn failure(response: Option<Response>) -> Outcome {
        Outcome::Failed(Failure {
            code: "timeout",
            message: "no answer within 10m".to_owned(),
            retry_after: None,
            maybe_paid: true,
            response,
        })
    }

    fn response(status: u16) -> Response {
        Response::new(status, String::new(), b"{}")
    }

    fn blocked(reason: PauseReason) -> Outcome {
        Outcome::Blocked(Blocked {
            reason,
            message: String::new(),
            retry_after: None,
            response: Some(response(404)),
        })
    }

    #[test]
    fn answers_complete_and_refusals_discard_with_their_response() {
        let Settlement::Complete(record) = settle(Outcome::Answered(response(200)), history(1)) else {
            panic!("an answer completes")
        };
        assert!(record.is_success());
        let Settlement::Discard(record) = settle(Outcome::Refused(response(400)), history(1)) else {
            panic!("a refusal discards")
        };
        assert!(record.error.is_none() && record.response.is_some_and(|r| r.status_code == 400));
    }

    #[test]
    fn what_can_never_be_answered_is_recorded_with_its_error_at_once() {
        let error = RecordError { code: "too_large".to_owned(), message: String::new() };
        let Settlement::Discard(record) = settle(Outcome::Unanswerable(error), history(1)) else {
            panic!("it is discarded")
        };
        assert!(record.response.is_none() && record.error.is_some_and(|error| error.code == "too_large"));
    }

    #[test]
    fn throttling_uses_up_no_attempt_however_often() {
        let outcome = Outcome::Throttled {
            code: "rate_limit_exceeded".to_owned(),
            retry_after: None,
            short_of: Shortage::Requests,
        };
        for attempt in [1, 6, 100] {
            let Settlement::Retry { due, attempts, maybe_paid: false } =
                settle(outcome.clone(), history(attempt))
            else {
                panic!("a throttled request waits")
            };
            assert_eq!(attempts, attempt - 1);
            assert!(due.since(NOW) >= Duration::from_millis(500));
        }
    }

    #[test]
    fn retry_after_is_obeyed() {
        let hint = Duration::from_mins(5);
        let outcome =
            Outcome::Throttled { code: String::new(), retry_after: Some(hint), short_of: Shortage::Unknown };
        let Settlement::Retry { due, .. } = settle(outcome, history(1)) else { panic!("waits") };
        assert!(due >= NOW + hint);
    }

    #[test]
    fn failures_are_retried_up_to_max_attempts_and_then_recorded() {
        let Settlement::Retry { attempts: 5, maybe_paid: true, .. } = settle(failure(None), history(5))
        else {
            panic!("one attempt is left")
        };
        let Settlement::Discard(record) = settle(failure(None), history(6)) else { panic!("none is left") };
        assert_eq!(record.error.unwrap().code, "timeout");
        let Settlement::Discard(record) = settle(failure(Some(response(500))), history(6)) else { panic!() };
        assert_eq!(record.response.unwrap().status_code, 500);
        let Settlement::Discard(record) = settle(failure(Some(response(200))), history(6)) else { panic!() };
        assert!(record.response.is_none() && record.error.is_some());
    }

    #[test]
    fn a_blocked_key_gives_the_request_back() {
        for reason in [PauseReason::Auth, PauseReason::Quota, PauseReason::Outage] {
            assert!(matches!(settle(blocked(reason), history(6)), Settlement::Release));
        }
    }

    #[test]
    fn an_unknown_model_fails_its_requests_until_it_has_answered_once() {
        assert!(matches!(settle(blocked(PauseReason::Model), history(1)), Settlement::Discard(_)));
        let worked = History { model_has_answered: true, ..history(1) };
        assert!(matches!(settle(blocked(PauseReason::Model), worked), Settlement::Release));
    }
}
