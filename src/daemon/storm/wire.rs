//! The providers as the storm has them, and the book of everything that happens.
//!
//! Behind each wire stands the stand-in provider; before it, troubles of the way to it. The book notes every
//! exchange, what was really said in it and when: the laws are judged by the book, not by what batchd believes.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::future::BoxFuture;
use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::ground::Pulse;
use super::plan::{self, ProviderPlan, Weather};
use crate::clock::Seed;
use crate::domain::{QueueName, RequestId};
use crate::provider::{HttpReply, HttpRequest, Transport, TransportError};
use crate::simulate::{Change, Changes, Engine, Faults, Latency, Settings, SimulatedTransport};

/// What the flaky weather brings, of each kind the simulator knows.
const FLAKY: &str = "429=0.1,500=0.08,502=0.03,503=0.04,drop=0.05,cut=0.04,garbage=0.03,empty=0.03,slow=0.03";

/// No storm sends half as much.
pub(super) const SENT_MAX: usize = 10_000;

/// What an exchange came to, as it really was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Answer,
    /// To this request, for good.
    Refusal,
    /// Not executed; come later.
    Later(Option<Duration>),
    /// Not executed.
    Failed,
    /// Nothing was sent. Counts as an attempt, unless it was a try whether the server is there.
    Unreached,
    /// The key or the quota is refused.
    Blocked,
    /// Nobody can tell from it whether the work was done.
    Unsure,
    /// batchd hung up.
    GivenUp,
    /// The process died.
    Died,
}

impl Said {
    /// Whether the request may have been executed though no answer came of it.
    pub(super) const fn is_lost(self) -> bool {
        matches!(self, Self::GivenUp | Self::Died)
    }
}

/// One request that was sent.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    pub(super) request: RequestId,
    pub(super) queue: QueueName,
    pub(super) life: usize,
    pub(super) sent: Moment,
    pub(super) ended: Option<(Moment, Said)>,
    pub(super) fingerprint: blake3::Hash,
}

/// When something happened; the number tells apart what happens at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment {
    pub(super) at: Duration,
    pub(super) number: usize,
}

/// Everything that happened.
#[derive(Debug)]
pub(super) struct Book {
    started: Instant,
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    exchanges: Vec<Exchange>,
    lines: Vec<String>,
    open: usize,
}

impl Book {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), pages: Mutex::default() }
    }

    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Adds a line to the trace.
    pub(super) fn tell(&self, what: impl fmt::Display) -> Moment {
        self.pages.lock().unwrap().tell(self.now(), what)
    }

    /// How many exchanges are in flight.
    pub(super) fn open(&self) -> usize {
        self.pages.lock().unwrap().open
    }

    fn is_full(&self) -> bool {
        self.pages.lock().unwrap().exchanges.len() > SENT_MAX
    }

    pub(super) fn exchanges(&self) -> Vec<Exchange> {
        self.pages.lock().unwrap().exchanges.clone()
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.pages.lock().unwrap().lines.clone()
    }

    fn send(&self, request: RequestId, queue: QueueName, life: usize, fingerprint: blake3::Hash) -> usize {
        let mut pages = self.pages.lock().unwrap();
        let name = plan::custom_id(request);
        let sent = pages.tell(self.now(), format_args!("life {life} sends {name} to {queue}"));
        pages.open += 1;
        pages.exchanges.push(Exchange { request, queue, life, sent, ended: None, fingerprint });
        pages.exchanges.len() - 1
    }

    fn end(&self, number: usize, said: Said) {
        let mut pages = self.pages.lock().unwrap();
        let name = plan::custom_id(pages.exchanges[number].request);
        let ended = pages.tell(self.now(), format_args!("{name}: {said:?}"));
        pages.open -= 1;
        pages.exchanges[number].ended = Some((ended, said));
    }
}

impl Pages {
    fn tell(&mut self, at: Duration, what: impl fmt::Display) -> Moment {
        self.lines.push(format!("{:>11} µs  {what}", at.as_micros()));
        Moment { at, number: self.lines.len() }
    }
}

/// The way to one provider.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) engine: Arc<Engine>,
    transport: SimulatedTransport,
    provider: String,
    book: Arc<Book>,
    sky: Mutex<(Weather, Rng)>,
}

impl Wire {
    /// The provider of the plan as it is, and the way to it.
    pub(super) fn of(plan: &ProviderPlan, seed: u64, book: &Arc<Book>) -> Self {
        let (least, most) = plan.latency;
        let server = Settings {
            latency: Latency::between(least, most),
            requests_per_minute: plan.admits_per_minute,
            ..Settings::default()
        };
        let seed = Seed::fixed(seed ^ u64::from(plan.name.as_bytes()[0]) << 56);
        let engine = Engine::new(server, seed).unwrap();
        Self::new(plan.name, engine, Arc::clone(book), seed.derive("storm/wire"))
    }

    fn new(provider: &str, engine: Engine, book: Arc<Book>, dice: Rng) -> Self {
        let engine = Arc::new(engine);
        let transport = SimulatedTransport::new(Arc::clone(&engine));
        Self {
            engine,
            transport,
            provider: provider.to_owned(),
            book,
            sky: Mutex::new((Weather::Fair, dice)),
        }
    }

    pub(super) fn change(&self, weather: Weather) {
        self.book.tell(format_args!("{} has {weather:?}", self.provider));
        self.sky.lock().unwrap().0 = weather;
        let faults: Faults = if weather == Weather::Flaky { FLAKY.parse().unwrap() } else { Faults::none() };
        let key = if weather == Weather::KeyRefused { Change::Set("another".into()) } else { Change::Clear };
        let quota_after = if weather == Weather::QuotaOut { Change::Set(0) } else { Change::Clear };
        let changes = Changes { faults: Some(faults), key, quota_after, ..Changes::default() };
        self.engine.change(changes, Instant::now());
    }

    /// A trouble of the way, if the request meets one: then the provider never sees it.
    fn trouble(&self) -> Option<Trouble> {
        let (weather, dice) = &mut *self.sky.lock().unwrap();
        // The same number of draws in every weather.
        let (chance, kind, seconds) = (dice.f64(), dice.u32(0..3), dice.u64(1..=90));
        match weather {
            Weather::Down => Some(Trouble::Unreachable),
            Weather::Throttled if chance < 0.6 => Some(Trouble::Later(seconds)),
            Weather::Flaky if chance < 0.1 => Some(match kind {
                0 => Trouble::Unreachable,
                1 => Trouble::Status(409),
                _ => Trouble::Status(408),
            }),
            Weather::Fair | Weather::Flaky | Weather::Throttled | Weather::KeyRefused | Weather::QuotaOut => {
                None
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Trouble {
    Unreachable,
    /// 429 with a `Retry-After` of so many seconds.
    Later(u64),
    Status(u16),
}

impl Trouble {
    fn reply(self) -> Result<HttpReply, TransportError> {
        let mut headers = HeaderMap::new();
        let status = match self {
            Self::Unreachable => return Err(TransportError::Connect("no route".to_owned())),
            Self::Later(seconds) => {
                headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
                429
            }
            Self::Status(status) => status,
        };
        let body = Bytes::from_static(br#"{"error":{"message":"not now"}}"#);
        Ok(HttpReply { status, headers, body })
    }
}

/// A wire as one life of the process holds it.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) wire: Arc<Wire>,
    pub(super) life: usize,
    pub(super) pulse: Arc<Pulse>,
}

#[derive(Deserialize)]
struct Body<'a> {
    model: &'a str,
    user: &'a str,
}

impl Transport for Line {
    fn exchange(&self, request: HttpRequest) -> BoxFuture<'_, Result<HttpReply, TransportError>> {
        Box::pin(async move {
            self.pulse.check().await;
            let body = request.body.to_bytes().unwrap();
            let Body { model, user } = serde_json::from_slice(&body).unwrap();
            if self.wire.book.is_full() {
                // Nobody who sends without end is answered, so that time goes on and the run ends.
                std::future::pending::<()>().await;
            }
            let queue = QueueName::new(&self.wire.provider, Some(model));
            let fingerprint = blake3::hash(&body);
            let number = self.wire.book.send(plan::request_id(user), queue, self.life, fingerprint);
            let mut call = Call { line: self, number, said: None };
            let reply = if let Some(trouble) = self.wire.trouble() {
                sleep(Duration::from_millis(20)).await;
                trouble.reply()
            } else {
                self.wire.transport.exchange(request).await
            };
            self.pulse.check().await;
            call.said = Some(read(&reply));
            reply
        })
    }
}

/// An exchange in flight.
struct Call<'a> {
    line: &'a Line,
    number: usize,
    said: Option<Said>,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let unsaid = if self.line.pulse.is_dead() { Said::Died } else { Said::GivenUp };
        self.line.wire.book.end(self.number, self.said.unwrap_or(unsaid));
    }
}

/// What a reply means, read apart from batchd's own reading.
fn read(reply: &Result<HttpReply, TransportError>) -> Said {
    let reply = match reply {
        Ok(reply) => reply,
        Err(TransportError::Connect(_)) => return Said::Unreached,
        Err(_) => return Said::Unsure,
    };
    let has = |word: &[u8]| memchr::memmem::find(&reply.body, word).is_some();
    match reply.status {
        200 if has(b"\"choices\"") => Said::Answer,
        401 => Said::Blocked,
        429 if has(b"insufficient_quota") => Said::Blocked,
        429 | 503 => Said::Later(retry_after(&reply.headers)),
        409 | 500 => Said::Failed,
        200 | 408 | 502 => Said::Unsure,
        _ => Said::Refusal,
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.parse().ok();
    number("retry-after-ms")
        .map(Duration::from_millis)
        .or_else(|| number("retry-after").map(Duration::from_secs))
}
