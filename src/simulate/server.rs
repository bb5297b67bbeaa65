//! The engine on a TCP socket: HTTP by axum, and the faults that HTTP doesn't have.
//!
//! # Operation
//!
//! Every connection is a line with a [`Breaker`]. To drop a reply, the handler trips the breaker of
//! its own connection: the next write fails, axum closes the connection, and as no lingering is set the
//! kernel resets it. A cut reply sends its head with the whole length (a stream's says none) and half of the body
//! first; one that drips or stalls counts as in flight until its last byte. While a script says that the server is
//! down, nobody listens.
//!
//! When the server is told to stop, requests that wait for their time, or for drops, are answered at once, so that
//! nothing that was paid for is lost to a rehearsal's end.

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::connect_info::ConnectInfo;
use axum::extract::{self, State};
use axum::http::header::{CONTENT_LENGTH, HOST};
use axum::http::{HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::call::Request;
use super::engine::Engine;
use super::line::{self, Breaker, Lines};
use super::reply::{Delivery, Reply};
use super::settings::Settings;
use crate::clock::Seed;

/// Pieces of a reply that drips: enough of them to be a trickle.
const DROPS_MAX: usize = 100;
/// How long a stopping server waits for askers that don't take their replies.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// A bound stand-in server. Nothing is answered until [`Server::run`].
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    engine: Arc<Engine>,
}

impl Server {
    /// Binds the address and opens the ledger. Must be called within a tokio runtime.
    pub fn bind(settings: Settings, seed: Seed) -> io::Result<Self> {
        let listen = settings.listen;
        let named = |error: io::Error| io::Error::new(error.kind(), format!("listen on {listen}: {error}"));
        let listener = line::listen(listen).map_err(named)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address, engine: Arc::new(Engine::new(settings, seed)?) })
    }

    /// Where it listens; with port 0 in the settings, the port that was found.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What stands behind it: the ledger, and changes at run time.
    pub fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.engine)
    }

    /// Serves until `stop`; then answers what has come and closes. Ends at the latest 5 s after `stop`,
    /// and leaves those who have not taken their reply by then.
    pub async fn run(self, stop: CancellationToken) -> io::Result<()> {
        let lines = Lines::new(self.listener, self.address, self.engine.door());
        let script = Arc::clone(&self.engine);
        let shared = Shared { engine: self.engine, address: self.address.to_string(), stop: stop.clone() };
        let router = Router::new().fallback(answer).with_state(Arc::new(shared));
        let service = router.into_make_service_with_connect_info::<Breaker>();
        let server =
            axum::serve(lines, service).with_graceful_shutdown(stop.clone().cancelled_owned()).into_future();
        tokio::select! {
            // In this order, so that a server that has ended says how.
            biased;
            ended = server => ended,
            () = script.follow_script() => Ok(()),
            () = grace(stop) => Ok(()),
        }
    }
}

async fn grace(stop: CancellationToken) {
    stop.cancelled().await;
    sleep(STOP_GRACE).await;
}

/// What every request needs.
#[derive(Debug)]
struct Shared {
    engine: Arc<Engine>,
    address: String,
    stop: CancellationToken,
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(breaker): ConnectInfo<Breaker>,
    request: extract::Request,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let mut asked = Request {
        method: &head.method,
        path: head.uri.path(),
        query: head.uri.query(),
        headers: &head.headers,
        body: &[],
        authority: head.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or(&shared.address),
    };
    let Ok(body) = read(body, shared.engine.body_bytes_max(&asked)).await else {
        // The asker is gone before the request was whole: no one asked anything.
        return StatusCode::BAD_REQUEST.into_response();
    };
    asked.body = body.as_deref().unwrap_or_default();
    let mut reply = match &body {
        Some(_) => shared.engine.take(&asked, Instant::now()),
        None => shared.engine.refuse_large(&asked, Instant::now()),
    };
    if !reply.delay.is_zero() {
        tokio::select! {
            // In this order, so that a stopping server waits no more.
            biased;
            () = shared.stop.cancelled() => {}
            () = sleep(reply.delay) => {}
        }
    }
    if matches!(reply.delivery, Delivery::Dripped(_) | Delivery::Stalled(_)) {
        return drip(reply, shared.stop.clone());
    }
    reply.begin();
    deliver(reply, &breaker)
}

/// A whole body; none if it is larger than the bound. One that came in one piece is not copied.
async fn read(body: Body, bytes_max: usize) -> Result<Option<Bytes>, axum::Error> {
    let mut pieces = body.into_data_stream();
    let first = pieces.next().await.transpose()?.unwrap_or_default();
    let mut whole = None;
    while let Some(piece) = pieces.next().await.transpose()? {
        let whole = whole.get_or_insert_with(|| BytesMut::from(first.as_ref()));
        if whole.len() + piece.len() > bytes_max {
            return Ok(None);
        }
        whole.extend_from_slice(&piece);
    }
    let whole = whole.map_or(first, BytesMut::freeze);
    Ok(Some(whole).filter(|body| body.len() <= bytes_max))
}

fn deliver(reply: Reply, breaker: &Breaker) -> Response<Body> {
    let length = announced(&reply);
    let body = match reply.delivery {
        Delivery::Whole | Delivery::Dripped(_) | Delivery::Stalled(_) => Body::from(reply.body),
        Delivery::Dropped => {
            breaker.trip();
            Body::empty()
        }
        Delivery::Cut => half(&reply.body, breaker.clone()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *response.headers_mut() = reply.headers;
    if let Some(length) = length.filter(|_| reply.delivery == Delivery::Cut) {
        response.headers_mut().insert(CONTENT_LENGTH, length);
    }
    response
}

/// The whole reply, a few bytes at a time, or in two halves. It is in flight until the last of them.
fn drip(mut reply: Reply, stop: CancellationToken) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *response.headers_mut() = mem::take(&mut reply.headers);
    if let Some(length) = announced(&reply) {
        response.headers_mut().insert(CONTENT_LENGTH, length);
    }
    let length = reply.body.len();
    let (bytes, wait, first) = match reply.delivery {
        Delivery::Dripped(time) => {
            let bytes = length.div_ceil(DROPS_MAX).max(1);
            let wait = time / u32::try_from(length.div_ceil(bytes)).unwrap_or(u32::MAX).max(1);
            (bytes, wait, wait)
        }
        Delivery::Stalled(time) => (length.div_ceil(2).max(1), time, Duration::ZERO),
        Delivery::Whole | Delivery::Dropped | Delivery::Cut => return response,
    };
    let drops = Drops { reply, bytes, wait, sent: 0, due: Instant::now() + first, stop };
    *response.body_mut() = Body::from_stream(stream::unfold(drops, Drops::next));
    response
}

/// A reply on its way, drop by drop.
struct Drops {
    reply: Reply,
    /// Of each drop.
    bytes: usize,
    /// Between two of them.
    wait: Duration,
    sent: usize,
    /// Of the next one. Each has its own time: a timer's milliseconds would add up.
    due: Instant,
    stop: CancellationToken,
}

impl Drops {
    async fn next(mut self) -> Option<(io::Result<Bytes>, Self)> {
        let (length, begin) = (self.reply.body.len(), self.sent);
        if begin >= length {
            return None;
        }
        tokio::select! {
            // In this order, so that a stopping server waits no more.
            biased;
            () = self.stop.cancelled() => {}
            () = sleep_until(self.due) => {}
        }
        self.due += self.wait;
        self.sent = length.min(begin + self.bytes);
        if self.sent == length {
            // Nobody asks for more than the promised length, so this can't wait until then.
            self.reply.begin();
        }
        Some((Ok(self.reply.body.slice(begin..self.sent)), self))
    }
}

/// The length that the head says.
fn announced(reply: &Reply) -> Option<HeaderValue> {
    (!reply.is_stream()).then(|| HeaderValue::from(reply.body.len()))
}

/// The first half, and once that is on its way an error.
fn half(body: &Bytes, breaker: Breaker) -> Body {
    let mut first = Some(body.slice(..body.len() / 2));
    let mut has_waited = false;
    Body::from_stream(stream::poll_fn(move |context| {
        if let Some(chunk) = first.take() {
            return Poll::Ready(Some(Ok(chunk)));
        }
        // A body that pauses makes the connection flush what it has; one that fails at once would
        // take its first half with it.
        if !has_waited {
            has_waited = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        breaker.trip();
        Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::ConnectionReset))))
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::task::{JoinSet, yield_now};

    use super::*;
    use crate::simulate::{Changes, ImageForm, Latency, Script};

    /// A server that runs until `stop`, and a client that asks it.
    struct Rehearsal {
        engine: Arc<Engine>,
        base: String,
        client: reqwest::Client,
        stop: CancellationToken,
        running: JoinSet<io::Result<()>>,
    }

    fn rehearse(settings: Settings) -> Rehearsal {
        // Fails where another test was first, which is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
        let settings = Settings { listen: ([127, 0, 0, 1], 0).into(), ..settings };
        let server = Server::bind(settings, Seed::fixed(1)).unwrap();
        let (engine, base) = (server.engine(), format!("http://{}", server.address()));
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(server.run(stop.clone()));
        let client = reqwest::Client::builder().no_proxy().retry(reqwest::retry::never()).build().unwrap();
        Rehearsal { engine, base, client, stop, running }
    }

    impl Rehearsal {
        async fn ask(&self, text: &str) -> reqwest::Result<reqwest::Response> {
            let body = json!({"model": "m", "prompt": text});
            self.client.post(format!("{}/v1/completions", self.base)).json(&body).send().await
        }

        async fn end(mut self) {
            self.stop.cancel();
            self.running.join_next().await.unwrap().unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn answers_over_http_and_ends_when_told() {
        let rehearsal = rehearse(Settings { requests_per_minute: Some(60), ..Settings::default() });
        let reply = rehearsal.ask("hi").await.unwrap();
        assert_eq!(reply.status(), 200);
        assert_eq!(reply.headers()["content-type"], "application/json");
        assert_eq!(reply.headers()["x-ratelimit-limit-requests"], "60");
        let answer: Value = reply.json().await.unwrap();
        assert!(answer["choices"][0]["text"].as_str().unwrap().ends_with("] hi"));
        let refused = rehearsal.ask("hi").await.unwrap();
        assert_eq!(refused.status(), 429);
        assert!(refused.headers().contains_key("retry-after"));
        let ledger = rehearsal.client.get(format!("{}/_sim/ledger", rehearsal.base)).send().await.unwrap();
        let ledger: Value = ledger.json().await.unwrap();
        assert_eq!((&ledger["requests"], &ledger["paid"]), (&json!(2), &json!(1)));
        rehearsal.end().await;
    }

    #[tokio::test]
    async fn a_file_may_be_larger_than_a_question_and_comes_back_whole() {
        let rehearsal = rehearse(Settings { body_bytes_max: 1_000, ..Settings::default() });
        let content = "{}\n".repeat(100_000);
        let purpose = "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n";
        let file = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.jsonl\"\r\n\r\n";
        let files = format!("{}/v1/files", rehearsal.base);
        let request = rehearsal
            .client
            .post(&files)
            .header("content-type", "multipart/form-data; boundary=b")
            .body(format!("{purpose}{file}{content}\r\n--b--\r\n"));
        let created: Value = request.send().await.unwrap().json().await.unwrap();
        let id = created["id"].as_str().unwrap();
        let back = rehearsal.client.get(format!("{files}/{id}/content")).send().await.unwrap();
        assert_eq!(back.text().await.unwrap(), content);
        assert_eq!(rehearsal.engine.summary().effects["upload"], 1);
        rehearsal.end().await;
    }

    #[tokio::test]
    async fn a_dropped_reply_is_a_reset_after_the_request_was_paid_for() {
        let rehearsal = rehearse(Settings { faults: "drop=1".parse().unwrap(), ..Settings::default() });
        let error = rehearsal.ask("hi").await.unwrap_err();
        assert!(error.is_request() && !error.is_connect() && !error.is_timeout(), "{error:?}");
        let summary = rehearsal.engine.summary();
        assert_eq!((summary.requests, summary.paid), (1, 1));
        rehearsal
            .engine
            .change(Changes { faults: Some("".parse().unwrap()), ..Changes::default() }, Instant::now());
        assert_eq!(rehearsal.ask("hi").await.unwrap().status(), 200, "other connections live on");
        rehearsal.end().await;
    }

    #[tokio::test]
    async fn a_dropped_reply_sends_not_one_byte() {
        let rehearsal = rehearse(Settings { faults: "drop=1".parse().unwrap(), ..Settings::default() });
        let mut stream = TcpStream::connect(rehearsal.base.trim_start_matches("http://")).await.unwrap();
        let body = "{\"input\":\"x\"}";
        let head =
            format!("POST /v1/moderations HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        let mut received = Vec::new();
        let end = stream.read_to_end(&mut received).await;
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(received.is_empty());
        rehearsal.end().await;
    }

    #[tokio::test]
    async fn a_cut_reply_promises_more_than_it_sends() {
        let rehearsal = rehearse(Settings { faults: "cut=1".parse().unwrap(), ..Settings::default() });
        let mut reply = rehearsal.ask("hi").await.unwrap();
        assert_eq!(reply.status(), 200);
        let promised = reply.content_length().unwrap();
        let half = reply.chunk().await.unwrap().expect("the first half arrives");
        assert_eq!(half.len(), usize::try_from(promised / 2).unwrap());
        assert!(half.starts_with(b"{\"id\":\"cmpl-"));
        assert!(reply.chunk().await.is_err());
        assert_eq!(rehearsal.engine.summary().paid, 1);
        rehearsal.end().await;
    }

    #[tokio::test]
    async fn a_reset_is_met_once_the_request_is_read_and_costs_nothing() {
        let rehearsal = rehearse(Settings { faults: "reset=1".parse().unwrap(), ..Settings::default() });
        let error = rehearsal.ask("hi").await.unwrap_err();
        assert!(error.is_request() && !error.is_connect() && !error.is_timeout(), "{error:?}");
        let summary = rehearsal.engine.summary();
        assert_eq!((summary.requests, summary.paid), (1, 0));
        rehearsal.end().await;
    }

    #[tokio::test]
    async fn a_dripping_reply_comes_in_drops_and_is_in_flight_until_the_last() {
        let slow = Duration::from_millis(200);
        let settings = Settings { faults: "drip=1".parse().unwrap(), slow, ..Settings::default() };
        let rehearsal = rehearse(settings);
        let (started, mut reply) = (Instant::now(), rehearsal.ask("hi").await.unwrap());
        let (mut body, mut drops) = (Vec::new(), 0);
        while let Some(drop) = reply.chunk().await.unwrap() {
            body.extend_from_slice(&drop);
            drops += 1;
        }
        assert!(drops > 1 && started.elapsed() >= slow, "{drops}");
        assert!(serde_json::from_slice::<Value>(&body).is_ok());
        let entries = rehearsal.engine.entries();
        assert_eq!((entries[0].answer, entries[0].paid), (Some(blake3::hash(&body)), true));
        assert!(u128::from(entries[0].left_us.unwrap() - entries[0].at_us) >= slow.as_micros());
        rehearsal.end().await;
    }

    impl Rehearsal {
        async fn ask_for_stream(&self) -> reqwest::Response {
            let body = json!({"model": "m", "prompt": "words", "stream": true});
            self.client.post(format!("{}/v1/completions", self.base)).json(&body).send().await.unwrap()
        }
    }

    #[tokio::test]
    async fn a_stream_ends_as_its_fault_says() {
        for (fault, end) in [
            ("500=0", Ok("data: [DONE]\n\n")),
            ("cut=1", Err(())),
            ("half=1", Ok("\"text\":\"[8a487f67] words\"}]}\n\n")),
            ("error=1", Ok("\"type\":\"server_error\",\"param\":null,\"code\":null}}\n\n")),
        ] {
            let rehearsal = rehearse(Settings { faults: fault.parse().unwrap(), ..Settings::default() });
            let reply = rehearsal.ask_for_stream().await;
            assert_eq!(reply.headers()["content-type"], "text/event-stream; charset=utf-8");
            let found = reply.text().await.map_err(drop);
            let ends = match (&found, end) {
                (Ok(body), Ok(end)) => body.starts_with("data: {\"id\":") && body.ends_with(end),
                (found, end) => found.is_err() && end.is_err(),
            };
            assert!(ends, "{fault}: {found:?}");
            assert_eq!(rehearsal.engine.summary().paid, 1);
            rehearsal.end().await;
        }
    }

    #[tokio::test]
    async fn a_stream_that_stalls_has_come_half_way_and_a_stopping_server_sends_the_rest() {
        let slow = Duration::from_hours(1);
        let faults = "stall=1".parse().unwrap();
        let rehearsal = rehearse(Settings { slow, faults, ..Settings::default() });
        let mut reply = rehearsal.ask_for_stream().await;
        assert_eq!(reply.content_length(), None);
        let mut body = reply.chunk().await.unwrap().unwrap().to_vec();
        assert!(body.starts_with(b"data: {"));
        assert_eq!(rehearsal.engine.in_flight(), 1);
        rehearsal.stop.cancel();
        while let Some(rest) = reply.chunk().await.unwrap() {
            body.extend_from_slice(&rest);
        }
        assert!(body.ends_with(b"data: [DONE]\n\n"));
        assert!(rehearsal.engine.entries()[0].answer.is_some());
        rehearsal.end().await;
    }

    fn down_for(lasts: &str) -> Changes {
        let script = format!("[[events]]\nat = \"0s\"\nfor = \"{lasts}\"\nwhat = \"down\"\n");
        Changes { script: Some(Script::parse("down", &script).unwrap()), ..Changes::default() }
    }

    #[tokio::test]
    async fn a_server_that_is_down_resets_who_is_there_and_refuses_who_comes() {
        let latency = Latency::fixed(Duration::from_hours(1));
        let rehearsal = rehearse(Settings { latency, ..Settings::default() });
        let engine = Arc::clone(&rehearsal.engine);
        let fall = async {
            while engine.in_flight() == 0 {
                yield_now().await;
            }
            engine.change(down_for("1h"), Instant::now());
        };
        let (lost, ()) = tokio::join!(rehearsal.ask("hi"), fall);
        let lost = lost.unwrap_err();
        assert!(lost.is_request() && !lost.is_connect(), "{lost:?}");
        let mut refused = rehearsal.ask("hi").await.unwrap_err();
        while !refused.is_connect() {
            // The listener closes at the same time as the connections.
            refused = rehearsal.ask("hi").await.unwrap_err();
        }
        let back =
            Changes { latency: Some(Latency::ZERO), script: Some(Script::default()), ..Changes::default() };
        engine.change(back, Instant::now());
        while rehearsal.ask("hi").await.is_err() {
            yield_now().await;
        }
        rehearsal.end().await;
    }

    #[tokio::test]
    async fn images_by_url_can_be_downloaded() {
        let rehearsal = rehearse(Settings { images: ImageForm::Url, ..Settings::default() });
        let url = format!("{}/images/generations", rehearsal.base);
        let reply = rehearsal.client.post(url).json(&json!({"prompt": "a cat"})).send().await.unwrap();
        let answer: Value = reply.json().await.unwrap();
        let picture = rehearsal.client.get(answer["data"][0]["url"].as_str().unwrap()).send().await.unwrap();
        assert_eq!(picture.headers()["content-type"], "image/png");
        assert!(picture.bytes().await.unwrap().starts_with(b"\x89PNG"));
        assert_eq!(rehearsal.engine.summary().requests, 1, "a download asks no model");
        rehearsal.end().await;
    }

    #[tokio::test]
    async fn bodies_over_the_bound_are_refused() {
        let rehearsal = rehearse(Settings { body_bytes_max: 100, ..Settings::default() });
        assert_eq!(rehearsal.ask("hi").await.unwrap().status(), 200);
        assert_eq!(rehearsal.ask(&"x".repeat(100)).await.unwrap().status(), 413);
        assert_eq!(rehearsal.engine.summary().by_outcome["refused:request_too_large"], 1);
        rehearsal.end().await;
    }

    #[tokio::test]
    async fn a_large_body_arrives_whole() {
        let rehearsal = rehearse(Settings::default());
        let text = "x".repeat(1_000_000);
        let body = json!({"model": "m", "prompt": text}).to_string();
        assert_eq!(rehearsal.ask(&text).await.unwrap().status(), 200);
        assert_eq!(rehearsal.engine.payments(blake3::hash(body.as_bytes())).paid, 1);
        rehearsal.end().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopping_server_waits_for_no_one_for_ever() {
        let rehearsal = rehearse(Settings::default());
        let mut stream = TcpStream::connect(rehearsal.base.trim_start_matches("http://")).await.unwrap();
        let whole = "GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n";
        let half = "POST /v1/moderations HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{";
        stream.write_all(format!("{whole}{half}").as_bytes()).await.unwrap();
        stream.read_u8().await.expect("the whole request is answered, so the half one is waited for");
        let stopped_at = Instant::now();
        rehearsal.end().await;
        assert!(stopped_at.elapsed() >= STOP_GRACE);
    }

    #[tokio::test]
    async fn a_stopping_server_answers_those_who_wait() {
        let latency = Latency::fixed(Duration::from_hours(1));
        let rehearsal = rehearse(Settings { latency, ..Settings::default() });
        let engine = Arc::clone(&rehearsal.engine);
        let stop = rehearsal.stop.clone();
        let stop_once_asked = async move {
            while engine.summary().requests == 0 {
                yield_now().await;
            }
            stop.cancel();
        };
        let (reply, ()) = tokio::join!(rehearsal.ask("hi"), stop_once_asked);
        assert_eq!(reply.unwrap().status(), 200);
        rehearsal.end().await;
    }

    #[tokio::test]
    async fn a_taken_address_is_named() {
        let first = Server::bind(
            Settings { listen: ([127, 0, 0, 1], 0).into(), ..Settings::default() },
            Seed::fixed(1),
        )
        .unwrap();
        let error = Server::bind(Settings { listen: first.address(), ..Settings::default() }, Seed::fixed(1))
            .unwrap_err();
        assert!(error.to_string().contains(&first.address().to_string()), "{error}");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
