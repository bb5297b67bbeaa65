//! Flex near a deadline: what may take long, and may find no room for hours, is sent in the ordinary tier in the end.

use std::borrow::Cow;
use std::time::Duration;

use crate::domain::{Job, Request, Timestamp};
use crate::provider::{in_default_tier, is_flex};

/// From when on a request of `job` is sent in the ordinary tier, if it asks for flex: when less than `left` remains to
/// the job's deadline. None = never.
pub(super) fn falls_back_at(job: &Job, request: &Request, left: Option<Duration>) -> Option<Timestamp> {
    let (left, end) = (left?, job.expires_at()?);
    let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    is_flex(&request.body).then(|| Timestamp::from_millis(end.as_millis().saturating_sub(left)))
}

/// The request as it is sent `now`.
pub(super) fn as_sent(mut request: Request, falls_back_at: Option<Timestamp>, now: Timestamp) -> Request {
    if falls_back_at.is_some_and(|at| now >= at)
        && let Cow::Owned(body) = in_default_tier(&request.body)
    {
        tracing::debug!(custom_id = request.custom_id, "sent in the ordinary tier: the deadline is near");
        request.body = body;
    }
    request
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;
    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use serde_json::value::RawValue;
    use tokio::time::sleep;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::clock::{Clock, Seed};
    use crate::config;
    use crate::control::Board;
    use crate::dispatch::{Fleet, Settings, testing};
    use crate::domain::{Endpoint, RetryPolicy};
    use crate::provider::{HttpReply, HttpRequest, Transport, TransportError};
    use crate::store::conformance::{self, NOW, until_settled};
    use crate::store::memory::MemoryStore;
    use crate::store::{Input, Store};

    const FLEX: &str = r#"{"model":"m","input": "x","service_tier":"flex"}"#;

    #[test]
    fn only_flex_falls_back_and_only_near_a_deadline() {
        let after = |seconds| NOW + Duration::from_secs(seconds);
        let of = |body: &str, deadline: Option<u64>, left: Option<u64>| {
            let mut job = conformance::job(1, 5, &["m"], 1);
            job.settings.deadline = deadline.map(Duration::from_secs);
            let body = RawValue::from_string(body.to_owned()).unwrap();
            let (custom_id, endpoint) = ("a".to_owned(), Endpoint::ChatCompletions);
            let request = Request { custom_id, endpoint, model: None, stream: None, body };
            falls_back_at(&job, &request, left.map(Duration::from_secs))
        };
        assert_eq!(of(FLEX, Some(100), Some(30)), Some(after(70)));
        assert_eq!(of(FLEX, Some(100), Some(u64::MAX)), Some(Timestamp::default()), "at once");
        assert_eq!(of(FLEX, None, Some(30)), None);
        assert_eq!(of(FLEX, Some(100), None), None);
        assert_eq!(of("{}", Some(100), Some(30)), None);
    }

    /// Answers after a while, and keeps what it was asked.
    #[derive(Debug)]
    struct Slow {
        asked: Mutex<Vec<Bytes>>,
        takes: Duration,
    }

    impl Transport for Slow {
        fn exchange(&self, request: HttpRequest) -> BoxFuture<'_, Result<HttpReply, TransportError>> {
            self.asked.lock().unwrap().push(request.body.to_bytes().unwrap());
            async move {
                if self.takes > request.timeout {
                    sleep(request.timeout).await;
                    return Err(TransportError::Timeout(request.timeout));
                }
                sleep(self.takes).await;
                let body = Bytes::from_static(br#"{"id":"m","model":"m","results":[{}]}"#);
                Ok(HttpReply { status: 200, headers: reqwest::header::HeaderMap::new(), body })
            }
            .boxed()
        }
    }

    /// What of a job of one request is sent within an hour, the job's last, and how many were answered. `takes`: how
    /// long an answer does.
    async fn sent(body: &str, takes: Duration, fallback: Option<Duration>) -> (Vec<Bytes>, u32) {
        let transport = Arc::new(Slow { asked: Mutex::default(), takes });
        let limits = config::Limits::default();
        let mut provider = testing::provider(Arc::clone(&transport) as _, Duration::from_mins(10), limits);
        provider.config.flex_fallback = fallback;
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let mut job = conformance::job(1, 5, &["m"], 1);
        job.settings.deadline = Some(Duration::from_hours(1));
        let line = format!(r#"{{"custom_id":"a","method":"POST","url":"/v1/moderations","body":{body}}}"#);
        store.put_job(job.clone(), Input::Inline(vec![(0, Bytes::from(line))])).await.unwrap();
        let retry = RetryPolicy { max_attempts: 9, ..RetryPolicy::default() };
        let settings = Settings { providers: vec![provider], retry, grace: Duration::ZERO };
        let clock = Clock::simulated(NOW);
        let fleet = Fleet::new(settings, Arc::clone(&store), Board::default(), clock, Seed::fixed(1));
        let stop = CancellationToken::new();
        let hour = async {
            tokio::select! { biased;
                () = until_settled(&*store, job.id, 1) => {}
                () = sleep(Duration::from_hours(1)) => {}
            }
            stop.cancel();
        };
        let (ended, ()) = tokio::join!(fleet.run(stop.clone(), CancellationToken::new()), hour);
        ended.unwrap();
        let completed = store.job(job.id).await.unwrap().counts.completed;
        (transport.asked.lock().unwrap().clone(), completed)
    }

    #[tokio::test(start_paused = true)]
    async fn flex_may_take_longer_than_others() {
        let takes = Duration::from_mins(14);
        assert_eq!(sent(FLEX, takes, None).await, (vec![Bytes::from_static(FLEX.as_bytes())], 1));
        let (asked, completed) = sent(&FLEX.replace("flex", "auto"), takes, None).await;
        assert!(asked.len() > 3 && completed == 0, "it was cut off after ten minutes, {} times", asked.len());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_sent_near_the_deadline_asks_for_the_ordinary_tier() {
        let takes = Duration::from_mins(16);
        let fallback = Some(Duration::from_mins(25));
        let (asked, _) = sent(FLEX, takes, fallback).await;
        let ordinary = FLEX.replace("flex", "default");
        assert_eq!(asked[..3], [FLEX, FLEX, FLEX].map(|body| Bytes::from_static(body.as_bytes())));
        assert!(asked.len() > 3 && asked[3..].iter().all(|body| body == ordinary.as_bytes()), "{asked:?}");
        let (asked, _) = sent(FLEX, takes, None).await;
        assert!(asked.iter().all(|body| body == FLEX.as_bytes()));
    }
}
