//! What goes back: status, head, body, when and how.

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::header::{ALLOW, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use tokio::time::Instant;

use super::refusal::Refusal;
use super::stream::{self, Stream};

/// What a gateway sends when what is behind it doesn't answer.
const BAD_GATEWAY: &[u8] = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n\
    <center><h1>502 Bad Gateway</h1></center>\r\n</body>\r\n</html>\r\n";
/// What it sends when that takes too long.
const GATEWAY_TIMEOUT: &[u8] = b"<html>\r\n<head><title>504 Gateway Time-out</title></head>\r\n<body>\r\n\
    <center><h1>504 Gateway Time-out</h1></center>\r\n</body>\r\n</html>\r\n";

/// What to send, when and how. The request counts as in flight until this is dropped.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// From the request's arrival to the reply's first byte, the wait for a slot included.
    pub delay: Duration,
    pub delivery: Delivery,
    /// Of the answer in one piece that a stream means; none of all that is no stream.
    pub(super) meant: Option<blake3::Hash>,
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
    /// All of it, the bytes of the body spread evenly over this time.
    Dripped(Duration),
    /// All of it, half of the body so much later than the first half.
    Stalled(Duration),
}

/// Who is in the server, and who has left it since that was last asked.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    count: AtomicU64,
    left: Mutex<Vec<Departure>>,
}

/// A request that has left.
#[derive(Debug)]
pub(super) struct Departure {
    pub(super) sequence: u64,
    pub(super) at: Instant,
    /// Of the reply's body, the white space around it aside; none if no whole reply was sent.
    pub(super) answer: Option<blake3::Hash>,
}

impl Traffic {
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Those who have left since the last call.
    pub(super) fn departures(&self) -> Vec<Departure> {
        mem::take(&mut *self.left.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Counts a request until it is dropped, and then notes that it has left.
#[derive(Debug)]
pub(super) struct InFlight {
    traffic: Arc<Traffic>,
    /// None for a request whose leaving interests nobody.
    sequence: Option<u64>,
    answer: Option<blake3::Hash>,
}

impl InFlight {
    /// Also says how many there are now, this one included.
    pub(super) fn enter(traffic: &Arc<Traffic>) -> (Self, u64) {
        let before = traffic.count.fetch_add(1, Ordering::Relaxed);
        (Self { traffic: Arc::clone(traffic), sequence: None, answer: None }, before + 1)
    }

    /// From now on its leaving is noted under this number.
    pub(super) fn note(&mut self, sequence: u64) {
        self.sequence = Some(sequence);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.traffic.count.fetch_sub(1, Ordering::Relaxed);
        if let Some(sequence) = self.sequence {
            let departure = Departure { sequence, at: Instant::now(), answer: self.answer };
            self.traffic.left.lock().unwrap_or_else(PoisonError::into_inner).push(departure);
        }
    }
}

/// The id of the reply to the request with this number.
pub(super) fn request_id(instance: u32, sequence: u64) -> String {
    format!("req_{instance:08x}{sequence:012x}")
}

/// As the head says it: rounded up, so that who waits as told is let in.
pub(super) fn whole_millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
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
            meant: None,
            in_flight: None,
        }
    }

    pub(super) fn json(status: u16, body: impl Into<Bytes>) -> Self {
        Self::new(status, "application/json", body)
    }

    /// An answer as a stream of events.
    pub(super) fn streamed(stream: Stream, answer: &[u8]) -> Self {
        let mut reply = Self::new(200, "text/event-stream; charset=utf-8", stream.write(answer));
        reply.meant = Some(blake3::hash(answer.trim_ascii()));
        reply
    }

    /// The first half of it, as if it were all.
    pub(super) fn halved(mut self) -> Self {
        let half = if self.is_stream() { stream::first_half(&self.body) } else { self.body.len() / 2 };
        self.body.truncate(half);
        self.meant = None;
        self
    }

    /// An error in its place or, in a stream, in the place of its second half.
    pub(super) fn failed(mut self) -> Self {
        let error = Refusal::server_error().body();
        self.body = if self.is_stream() {
            let half = stream::first_half(&self.body);
            stream::with_event(&self.body.slice(..half), &error)
        } else {
            error.into()
        };
        self.meant = None;
        self
    }

    /// Whether it comes as events, and nobody knows its length before its end.
    pub(super) const fn is_stream(&self) -> bool {
        self.meant.is_some()
    }

    /// A gateway's HTML page.
    pub(super) fn page(status: u16) -> Self {
        Self::new(status, "text/html", if status == 504 { GATEWAY_TIMEOUT } else { BAD_GATEWAY })
    }

    /// Without what it says about coming back, which depends on the date.
    pub(super) fn refused(refusal: &Refusal) -> Self {
        let mut reply = Self::json(refusal.status, refusal.body());
        if let Some(method) = refusal.allow {
            reply.headers.insert(ALLOW, HeaderValue::from_static(method));
        }
        reply
    }

    /// To be called when the reply begins, or when one that drips or stalls has ended: what its asker gets whole is known by its
    /// hash.
    pub(super) fn begin(&mut self) {
        if let Some(in_flight) = &mut self.in_flight
            && in_flight.sequence.is_some()
            && matches!(self.delivery, Delivery::Whole | Delivery::Dripped(_) | Delivery::Stalled(_))
        {
            in_flight.answer = self.meant.or_else(|| Some(blake3::hash(self.body.trim_ascii())));
        }
    }

    /// Adds what OpenAI puts on every reply.
    pub(super) fn sign(&mut self, instance: u32, sequence: u64) {
        const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
        const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");
        const VERSION: HeaderName = HeaderName::from_static("openai-version");
        let id = HeaderValue::from_str(&request_id(instance, sequence));
        self.headers.insert(REQUEST_ID, id.expect("hex digits are a valid header"));
        let millis = u64::try_from(self.delay.as_millis()).unwrap_or(u64::MAX);
        self.headers.insert(PROCESSING_MS, HeaderValue::from(millis));
        self.headers.insert(VERSION, HeaderValue::from_static("2020-10-01"));
    }
}
