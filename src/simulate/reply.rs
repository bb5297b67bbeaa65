//! What goes back: status, head, body, when and how.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;

use super::refusal::Refusal;

/// What a gateway sends when what is behind it doesn't answer.
const PAGE: &[u8] = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n\
    <center><h1>502 Bad Gateway</h1></center>\r\n</body>\r\n</html>\r\n";
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// What to send, when and how. The request counts as in flight until this is dropped.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// From the request's arrival to the reply's first byte, the wait for a slot included.
    pub delay: Duration,
    pub delivery: Delivery,
    /// None for `/_sim/`, which is no part of the traffic.
    pub(super) in_flight: Option<InFlight>,
}

/// What of a reply reaches the asker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    Whole,
    /// Nothing: the connection is reset.
    Dropped,
    /// The head and the first half of the body, then the connection is reset.
    Cut,
}

/// Counts a request until it is dropped.
#[derive(Debug)]
pub(super) struct InFlight(Arc<AtomicU64>);

impl InFlight {
    /// Also says how many there are now, this one included.
    pub(super) fn enter(count: &Arc<AtomicU64>) -> (Self, u64) {
        let before = count.fetch_add(1, Ordering::Relaxed);
        (Self(Arc::clone(count)), before + 1)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Reply {
    pub(super) fn new(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        // Room for what an answer carries, so that the map is allocated once.
        let mut headers = HeaderMap::with_capacity(12);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        Self {
            status,
            headers,
            body: body.into(),
            delay: Duration::ZERO,
            delivery: Delivery::Whole,
            in_flight: None,
        }
    }

    pub(super) fn json(status: u16, body: impl Into<Bytes>) -> Self {
        Self::new(status, "application/json", body)
    }

    /// A gateway's HTML page.
    pub(super) fn page(status: u16) -> Self {
        Self::new(status, "text/html", PAGE)
    }

    /// With `Retry-After` in whole seconds and `retry-after-ms`, both rounded up: who waits as told
    /// is let in.
    pub(super) fn refused(refusal: &Refusal) -> Self {
        let mut reply = Self::json(refusal.status, refusal.body());
        if let Some(wait) = refusal.retry_after {
            let millis = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
            reply.headers.insert(RETRY_AFTER, HeaderValue::from(millis.div_ceil(1000)));
            reply.headers.insert(RETRY_AFTER_MS, HeaderValue::from(millis));
        }
        if let Some(method) = refusal.allow {
            reply.headers.insert(ALLOW, HeaderValue::from_static(method));
        }
        reply
    }

    /// Adds what OpenAI puts on every reply.
    pub(super) fn sign(&mut self, instance: u32, sequence: u64) {
        const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
        const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");
        const VERSION: HeaderName = HeaderName::from_static("openai-version");
        let id = HeaderValue::from_str(&format!("req_{instance:08x}{sequence:012x}"));
        self.headers.insert(REQUEST_ID, id.expect("hex digits are a valid header"));
        let millis = u64::try_from(self.delay.as_millis()).unwrap_or(u64::MAX);
        self.headers.insert(PROCESSING_MS, HeaderValue::from(millis));
        self.headers.insert(VERSION, HeaderValue::from_static("2020-10-01"));
    }
}
