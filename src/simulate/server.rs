//! The engine on a TCP socket: HTTP by axum, and the faults that HTTP doesn't have.
//!
//! # Operation
//!
//! Every connection is a [`Line`] with a [`Breaker`]. To drop a reply, the handler trips the breaker of
//! its own connection: the next write fails, axum closes the connection, and as no lingering is set the
//! kernel resets it. A cut reply sends its head with the whole length and half of the body first.
//!
//! When the server is told to stop, requests that wait for their time are answered at once, so that
//! nothing that was paid for is lost to a rehearsal's end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{self, State};
use axum::http::header::{CONTENT_LENGTH, HOST};
use axum::http::{HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use axum::serve::{IncomingStream, Listener};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::call::Request;
use super::engine::Engine;
use super::reply::{Delivery, Reply};
use super::settings::Settings;
use crate::clock::Seed;

/// Connections that may wait to be accepted: a crowd of workers comes at once.
const BACKLOG: u32 = 4096;
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
        let bind = || -> io::Result<TcpListener> {
            let socket = if listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.set_reuseaddr(true)?;
            socket.bind(listen)?;
            socket.listen(BACKLOG)
        };
        let named = |error: io::Error| io::Error::new(error.kind(), format!("listen on {listen}: {error}"));
        let listener = bind().map_err(named)?;
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
        let shared = Shared { engine: self.engine, address: self.address.to_string(), stop: stop.clone() };
        let router = Router::new().fallback(answer).with_state(Arc::new(shared));
        let service = router.into_make_service_with_connect_info::<Breaker>();
        let server = axum::serve(Lines(self.listener), service)
            .with_graceful_shutdown(stop.clone().cancelled_owned())
            .into_future();
        tokio::select! {
            // In this order, so that a server that has ended says how.
            biased;
            ended = server => ended,
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
    let length = reply.body.len();
    let body = match reply.delivery {
        Delivery::Whole => Body::from(reply.body),
        Delivery::Dropped => {
            breaker.trip();
            Body::empty()
        }
        Delivery::Cut => half(&reply.body, breaker.clone()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *response.headers_mut() = reply.headers;
    if reply.delivery == Delivery::Cut {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
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

/// Accepts connections as [`Line`]s.
#[derive(Debug)]
struct Lines(TcpListener);

impl Listener for Lines {
    type Io = Line;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Line, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.0).await;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps its delay");
        }
        (Line { stream, breaker: Breaker::default() }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Breaks its connection when tripped.
#[derive(Clone, Debug, Default)]
struct Breaker(Arc<AtomicBool>);

impl Breaker {
    fn trip(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_tripped(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Connected<IncomingStream<'_, Lines>> for Breaker {
    fn connect_info(stream: IncomingStream<'_, Lines>) -> Self {
        stream.io().breaker.clone()
    }
}

/// A connection that can be broken.
#[derive(Debug)]
struct Line {
    stream: TcpStream,
    breaker: Breaker,
}

impl Line {
    fn check(&self) -> io::Result<()> {
        if self.breaker.is_tripped() { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.breaker.is_tripped()
            && let Err(error) = self.stream.set_zero_linger()
        {
            tracing::debug!(%error, "a connection is closed, not reset");
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::{JoinSet, yield_now};

    use super::*;
    use crate::simulate::{Changes, ImageForm, Latency};

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
