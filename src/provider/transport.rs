//! One HTTP exchange over real sockets: no retry, no redirect, a time-out for the whole of it and for its parts, the
//! reply capped.
//!
//! # Invariants
//!
//! - At most one request goes out for one [`Transport::exchange`] (P4). reqwest's own retry is off; hyper
//!   may open a second connection only where nothing was written to the first.
//! - A reply is never larger than `max_reply` bytes *after* decompression (P5).
//! - Files are read as they are sent and written as they come: a transfer's memory does not grow with them. Its
//!   time-out begins anew whenever a piece has moved.
//! - No error holds a url or a header: both can carry secrets.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use reqwest::header::{CONTENT_LENGTH, HeaderValue};
use reqwest::{Certificate, Client, ClientBuilder, Response, redirect, retry};
use tokio::time::{Instant, timeout};
use url::{Host, Url};

use crate::provider::address::{PublicOnly, names_no_closed_address};
use crate::provider::body::{Motion, unwritable};
use crate::provider::breakage::{before_reply, root_cause};
use crate::provider::{
    HttpBody, HttpReply, HttpRequest, Reach, Receiver, Sink, Transfer, Transport, TransportError, Waits,
};

/// Shorter than the 5 s after which uvicorn (vLLM, LiteLLM) and Node close an idle connection: a request
/// written into a connection that is just being closed is lost, and may have been paid for.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Idle connections kept for one host: enough for the widest concurrency anyone sets, so that none of them
/// is made anew for each request, and still a bound.
const POOL_IDLE_MAX: usize = 1024;

/// A dead HTTP/2 connection would hold its requests for their whole time-out, which is minutes.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(30);

/// A set of clients for each bound on connecting, which is a client's own. That many providers with bounds of their
/// own, or reloads that change one, keep theirs; then all are made anew, as they are wanted.
const CLIENTS_MAX: usize = 8;

/// How long the end of a reply is waited for of which nothing more is needed: it lies right behind, and with it the
/// connection can serve again.
const END_WAIT: Duration = Duration::from_millis(250);

/// The transport over reqwest. Providers that trust the same certificates may share one: connections are pooled by
/// origin.
pub struct HttpTransport {
    /// Certificates that are trusted beside the system's.
    own: Vec<Certificate>,
    clients: Mutex<BTreeMap<Duration, Arc<Clients>>>,
}

/// Those that connect within the same time.
struct Clients {
    /// For this machine itself; a proxy of the environment would be another machine.
    direct: Client,
    /// For all else, through the proxy that the environment names, if any.
    outward: Client,
    /// Connects to public addresses only, so never through a proxy, which would resolve names by itself.
    public: Client,
}

impl HttpTransport {
    /// Reads the system's root certificates and proxy settings.
    ///
    /// # Errors
    ///
    /// The TLS or proxy settings of the machine can't be used. A machine without any root certificate is no
    /// error: plain http works there, and https fails to connect.
    pub fn new() -> Result<Self, reqwest::Error> {
        Self::trusting(b"")
    }

    /// Trusts the certificates of the PEM bundle `pem`, too, for the servers that the operator chose.
    ///
    /// # Errors
    ///
    /// As [`HttpTransport::new`]; and `pem` holds what is no certificate.
    pub fn trusting(pem: &[u8]) -> Result<Self, reqwest::Error> {
        install_crypto();
        let own = Certificate::from_pem_bundle(pem)?;
        let usual = Waits::default().connect;
        let clients = BTreeMap::from([(usual, Arc::new(Clients::new(usual, &own)?))]);
        Ok(Self { own, clients: Mutex::new(clients) })
    }

    fn clients(&self, connect: Duration) -> Result<Arc<Clients>, TransportError> {
        let mut all = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&connect) {
            return Ok(Arc::clone(known));
        }
        if all.len() >= CLIENTS_MAX {
            all.clear();
        }
        let made =
            Clients::new(connect, &self.own).map_err(|error| TransportError::Connect(root_cause(&error)))?;
        Ok(Arc::clone(all.entry(connect).or_insert_with(|| Arc::new(made))))
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpReply, TransportError> {
        let (max, Waits { first_byte, idle, .. }) = (request.max_reply, request.waits);
        let begun = self.begin(request, None);
        let mut response = within(first_byte, begun).await.map_err(TransportError::Silent)??;
        let body = read_body(&mut response, max, idle).await?;
        Ok(reply(&mut response, body))
    }

    /// Moves a file and tells `motion` of it.
    async fn carry(
        &self,
        request: HttpRequest,
        sink: Option<Sink<'_>>,
        motion: &Arc<Motion>,
    ) -> Result<HttpReply, TransportError> {
        let max = request.max_reply;
        let mut response = self.begin(request, Some(Arc::clone(motion))).await?;
        let body = match sink.filter(|_| response.status().is_success()) {
            Some(sink) => {
                pour(&mut response, sink, motion).await?;
                Bytes::new()
            }
            None => read_body(&mut response, max, None).await?,
        };
        Ok(reply(&mut response, body))
    }

    /// Hands a reply over as it comes.
    async fn hand_over(
        &self,
        request: HttpRequest,
        receiver: &mut dyn Receiver,
    ) -> Result<HttpReply, TransportError> {
        let (max, Waits { first_byte, idle, .. }) = (request.max_reply, request.waits);
        let begun = self.begin(request, None);
        let mut response = within(first_byte, begun).await.map_err(TransportError::Silent)??;
        if !receiver.begins(response.status().as_u16(), response.headers()) {
            let body = read_body(&mut response, max, idle).await?;
            return Ok(reply(&mut response, body));
        }
        // Servers send the head at once, and the first word when they have one.
        let mut piece = next_chunk(&mut response).await?;
        while let Some(bytes) = piece {
            if receiver.take(&bytes).is_break() {
                let rest = async { while let Ok(Some(_)) = response.chunk().await {} };
                drop(timeout(END_WAIT, rest).await);
                break;
            }
            piece = next_within(&mut response, idle).await?;
        }
        Ok(reply(&mut response, Bytes::new()))
    }

    /// Sends, until the head of the reply is there.
    async fn begin(
        &self,
        request: HttpRequest,
        motion: Option<Arc<Motion>>,
    ) -> Result<Response, TransportError> {
        let host = request.url.host();
        if request.reach == Reach::Public && !names_no_closed_address(host.as_ref()) {
            return Err(TransportError::NotPublic(host.map(|host| host.to_string()).unwrap_or_default()));
        }
        let connect = request.waits.connect;
        let clients = self.clients(connect)?;
        let client = clients.client_for(&request);
        let mut outgoing = reqwest::Request::new(request.method, request.url);
        *outgoing.headers_mut() = request.headers;
        match request.body {
            HttpBody::Bytes(bytes) if bytes.is_empty() => {}
            HttpBody::Bytes(bytes) => *outgoing.body_mut() = Some(bytes.into()),
            HttpBody::Parts(_) => {
                // Without it a stream would go out in chunks, which many servers refuse for files.
                let length = HeaderValue::from(request.body.length());
                outgoing.headers_mut().insert(CONTENT_LENGTH, length);
                *outgoing.body_mut() = Some(reqwest::Body::wrap_stream(request.body.into_stream(motion)));
            }
        }
        client.execute(outgoing).await.map_err(|error| before_reply(&error, connect))
    }
}

impl Clients {
    /// `own`: certificates that are trusted beside the system's, for the servers that the operator chose.
    fn new(connect: Duration, own: &[Certificate]) -> Result<Self, reqwest::Error> {
        let rootless = client(connect).build().is_err();
        let client = |own: &[Certificate]| {
            let (client, own) = (client(connect), own.iter().cloned());
            if rootless { client.tls_certs_only(own) } else { client.tls_certs_merge(own) }
        };
        Ok(Self {
            direct: client(own).no_proxy().build()?,
            public: client(&[]).no_proxy().dns_resolver(PublicOnly).build()?,
            outward: client(own).build()?,
        })
    }

    fn client_for(&self, request: &HttpRequest) -> &Client {
        match request.reach {
            Reach::Public => &self.public,
            Reach::Anywhere if is_loopback(&request.url) => &self.direct,
            Reach::Anywhere => &self.outward,
        }
    }
}

impl fmt::Debug for HttpTransport {
    /// Not the clients: a proxy's password is in them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpTransport").finish_non_exhaustive()
    }
}

impl Transport for HttpTransport {
    fn exchange(&self, request: HttpRequest) -> BoxFuture<'_, Result<HttpReply, TransportError>> {
        let total = request.timeout;
        Box::pin(async move {
            // Ours, not reqwest's: it covers connect to last byte, so that a server that drips bytes ends
            // too.
            timeout(total, self.send(request)).await.unwrap_or(Err(TransportError::Timeout(total)))
        })
    }

    fn receive<'a>(
        &'a self,
        request: HttpRequest,
        receiver: &'a mut dyn Receiver,
    ) -> BoxFuture<'a, Result<HttpReply, TransportError>> {
        let total = request.timeout;
        Box::pin(async move {
            timeout(total, self.hand_over(request, receiver))
                .await
                .unwrap_or(Err(TransportError::Timeout(total)))
        })
    }

    fn transfer<'a>(
        &'a self,
        request: HttpRequest,
        transfer: Transfer<'a>,
    ) -> BoxFuture<'a, Result<HttpReply, TransportError>> {
        let still_max = request.timeout;
        Box::pin(async move {
            let motion = Arc::new(Motion::default());
            let mut carried = pin!(self.carry(request, transfer.sink, &motion));
            let mut stalled = pin!(tokio::time::sleep(still_max));
            loop {
                tokio::select! {
                    biased; // a reply that is there counts, however late; what moves puts the end off
                    reply = &mut carried => {
                        (transfer.progress)(motion.bytes());
                        return reply;
                    }
                    () = motion.moved() => {
                        (transfer.progress)(motion.bytes());
                        stalled.as_mut().reset(Instant::now() + still_max);
                    }
                    () = &mut stalled => return Err(TransportError::Timeout(still_max)),
                }
            }
        })
    }
}

/// Makes ring the process's TLS provider. Called by [`HttpTransport::new`]; reqwest panics without one.
pub fn install_crypto() {
    // The second caller is told that there is one already, which is what it wanted.
    drop(rustls::crypto::ring::default_provider().install_default());
}

fn client(connect: Duration) -> ClientBuilder {
    Client::builder()
        .redirect(redirect::Policy::none())
        .retry(retry::never())
        .referer(false)
        .connect_timeout(connect)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .pool_max_idle_per_host(POOL_IDLE_MAX)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(HTTP2_PING_INTERVAL)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// What comes of `future`, or the bound that it went beyond.
async fn within<T>(bound: Option<Duration>, future: impl Future<Output = T>) -> Result<T, Duration> {
    match bound {
        Some(bound) => timeout(bound, future).await.map_err(|_| bound),
        None => Ok(future.await),
    }
}

/// Reads to the end, or to `max` bytes, with at most `idle` between two pieces. Most replies come in one piece, which
/// is then not copied.
async fn read_body(
    response: &mut Response,
    max: u64,
    idle: Option<Duration>,
) -> Result<Bytes, TransportError> {
    let fits = |bytes: usize| u64::try_from(bytes).is_ok_and(|bytes| bytes <= max);
    let too_large = Err(TransportError::TooLarge(max));
    if response.content_length().is_some_and(|announced| announced > max) {
        return too_large;
    }
    let Some(first) = next_within(response, idle).await? else { return Ok(Bytes::new()) };
    if !fits(first.len()) {
        return too_large;
    }
    let Some(second) = next_within(response, idle).await? else { return Ok(first) };
    let mut body = BytesMut::from(first);
    let mut chunk = Some(second);
    while let Some(bytes) = chunk {
        if !fits(body.len() + bytes.len()) {
            return too_large;
        }
        body.extend_from_slice(&bytes);
        chunk = next_within(response, idle).await?;
    }
    Ok(body.freeze())
}

/// Writes the body of a reply into `sink`, piece by piece.
async fn pour(response: &mut Response, sink: Sink<'_>, motion: &Motion) -> Result<(), TransportError> {
    if response.content_length().is_some_and(|announced| announced > sink.max) {
        return Err(TransportError::TooLarge(sink.max));
    }
    let mut left = sink.max;
    while let Some(piece) = next_chunk(response).await? {
        let bytes = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        left = left.checked_sub(bytes).ok_or(TransportError::TooLarge(sink.max))?;
        sink.write.write_all(&piece).map_err(|error| unwritable(&error))?;
        motion.add(bytes);
    }
    Ok(())
}

fn reply(response: &mut Response, body: Bytes) -> HttpReply {
    let headers = std::mem::take(response.headers_mut());
    HttpReply { status: response.status().as_u16(), headers, body }
}

async fn next_chunk(response: &mut Response) -> Result<Option<Bytes>, TransportError> {
    response.chunk().await.map_err(|error| TransportError::Cut(root_cause(&error)))
}

async fn next_within(
    response: &mut Response,
    idle: Option<Duration>,
) -> Result<Option<Bytes>, TransportError> {
    within(idle, next_chunk(response)).await.map_err(TransportError::Stalled)?
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::net::SocketAddr;
    use std::ops::ControlFlow;
    use std::sync::atomic::{AtomicU64, Ordering};

    use reqwest::header::HeaderMap;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinSet;

    use super::*;
    use crate::provider::Part;
    use crate::provider::testing::Listener;

    fn request(address: SocketAddr, max_reply: u64, timeout: Duration) -> HttpRequest {
        HttpRequest {
            method: reqwest::Method::POST,
            url: format!("http://{address}/v1/chat/completions?secret=sk-query").parse().unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::from_static(b"{}").into(),
            timeout,
            waits: Waits::default(),
            max_reply,
            reach: Reach::Anywhere,
        }
    }

    /// One exchange with a server that answers every connection with `reply` and hangs up.
    async fn exchange(reply: &[u8], max_reply: u64) -> (Result<HttpReply, TransportError>, usize) {
        let server = Listener::new(reply).await;
        let transport = HttpTransport::new().unwrap();
        let result = transport.exchange(request(server.address(), max_reply, Duration::from_mins(1))).await;
        (result, server.requests().len())
    }

    #[tokio::test]
    async fn a_whole_reply_arrives_with_its_status_headers_and_body() {
        let (result, _) =
            exchange(b"HTTP/1.1 429 Slow\r\nretry-after: 3\r\ncontent-length: 2\r\n\r\n{}", 100).await;
        let reply = result.unwrap();
        assert_eq!(
            (reply.status, &reply.headers["retry-after"], &reply.body[..]),
            (429, &"3".parse().unwrap(), &b"{}"[..])
        );
    }

    #[tokio::test]
    async fn redirects_are_replies_and_are_not_followed() {
        let other = Listener::new(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let reply =
            format!("HTTP/1.1 307 Go\r\nlocation: http://{}/\r\ncontent-length: 0\r\n\r\n", other.address());
        let (result, requests) = exchange(reply.as_bytes(), 100).await;
        assert_eq!((result.unwrap().status, requests, other.requests().len()), (307, 1, 0));
    }

    #[tokio::test]
    async fn a_refused_connection_never_reached_the_server() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let transport = HttpTransport::new().unwrap();
        let error = transport.exchange(request(address, 100, Duration::from_mins(1))).await.unwrap_err();
        let TransportError::Connect(text) = &error else { panic!("{error:?}") };
        assert!(text.contains("refused") && !format!("{error:?}").contains("sk-query"), "{error:?}");
    }

    #[tokio::test]
    async fn a_name_nobody_knows_never_reached_a_server() {
        let mut request = request("127.0.0.1:9".parse().unwrap(), 100, Duration::from_mins(1));
        request.url = "http://no-such-host.invalid/".parse().unwrap();
        let error = HttpTransport::new().unwrap().exchange(request).await.unwrap_err();
        assert!(matches!(error, TransportError::Connect(_)), "{error:?}");
    }

    #[tokio::test]
    async fn a_hang_up_before_any_reply_is_lost_and_not_sent_again() {
        let (result, requests) = exchange(b"", 100).await;
        let error = result.unwrap_err();
        assert!(matches!(error, TransportError::Lost(_)), "{error:?}");
        assert!(!error.to_string().contains("sk-query"));
        assert_eq!(requests, 1, "a request that may have been executed was sent again");
    }

    #[tokio::test]
    async fn a_reply_that_is_no_http_is_lost() {
        let (result, _) = exchange(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 100).await;
        assert!(matches!(result, Err(TransportError::Lost(_))), "{result:?}");
    }

    #[tokio::test]
    async fn replies_cut_in_their_middle_are_cut() {
        for reply in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"choices\":"[..],
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n",
        ] {
            let (result, requests) = exchange(reply, 1000).await;
            assert!(matches!(result, Err(TransportError::Cut(_))), "{result:?}");
            assert_eq!(requests, 1);
        }
    }

    #[tokio::test]
    async fn replies_over_the_bound_are_refused_announced_or_not() {
        let announced = b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n01234567890";
        let chunked =
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\n012345\r\n5\r\n67890\r\n0\r\n\r\n";
        for reply in [&announced[..], chunked] {
            let (result, _) = exchange(reply, 10).await;
            assert!(matches!(result, Err(TransportError::TooLarge(10))), "{result:?}");
            let (result, _) = exchange(reply, 11).await;
            assert_eq!(&result.unwrap().body[..], b"01234567890");
        }
    }

    #[tokio::test]
    async fn the_bound_counts_decompressed_bytes() {
        // gzip of 100,000 zero bytes
        let zipped: Vec<u8> =
            base64::Engine::decode(&base64::engine::general_purpose::STANDARD, GZIPPED_ZEROS).unwrap();
        let mut reply =
            format!("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n", zipped.len())
                .into_bytes();
        reply.extend_from_slice(&zipped);
        let (result, _) = exchange(&reply, 99_999).await;
        assert!(matches!(result, Err(TransportError::TooLarge(99_999))), "{result:?}");
        let (result, _) = exchange(&reply, 100_000).await;
        assert_eq!(result.unwrap().body.len(), 100_000);
    }

    const GZIPPED_ZEROS: &str = "H4sIAAAAAAACA+3BMQEAAADCoPVPbQ0PoAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAIBXA32VEdSghgEA";

    // Real time: under a paused clock the time-out would jump ahead of the sockets.
    #[tokio::test]
    async fn a_server_that_drips_bytes_for_ever_ends_at_the_time_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            drip(&mut stream).await;
        });
        let transport = HttpTransport::new().unwrap();
        let timeout = Duration::from_millis(100);
        let error = transport.exchange(request(address, 1_000_000, timeout)).await.unwrap_err();
        assert!(matches!(error, TransportError::Timeout(t) if t == timeout), "{error:?}");
        assert_eq!(error.to_string(), "no answer within 100ms");
    }

    /// A byte now and then, for ever.
    async fn drip(stream: &mut TcpStream) {
        let mut sent = [0; 1024];
        assert!(stream.read(&mut sent).await.unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await.unwrap();
        while stream.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// An exchange with a server that reads the request, sends `begun` and then says nothing more.
    async fn stalled(begun: &'static [u8], waits: Waits, timeout: Duration) -> TransportError {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let request = HttpRequest { waits, ..request(listener.local_addr().unwrap(), 1_000, timeout) };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
            stream.write_all(begun).await.unwrap();
            std::future::pending::<()>().await;
        });
        HttpTransport::new().unwrap().exchange(request).await.unwrap_err()
    }

    // Real time, as above: each bound is the only one that can end it.
    #[tokio::test]
    async fn a_stall_ends_at_the_bound_of_its_part_and_says_which() {
        let (short, long) = (Duration::from_millis(100), Duration::from_mins(10));
        let bounds = Waits { connect: long, first_byte: Some(long), idle: Some(long) };
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"choices\":";

        let silent = Waits { first_byte: Some(short), ..bounds };
        let error = stalled(b"", silent, long).await;
        assert!(matches!(error, TransportError::Silent(_)), "{error:?}");
        assert_eq!(error.to_string(), "no reply began within 100ms");

        let idle = Waits { idle: Some(short), ..bounds };
        let error = stalled(head, idle, long).await;
        assert!(matches!(error, TransportError::Stalled(_)), "{error:?}");
        assert_eq!(error.to_string(), "the reply stopped: nothing more came for 100ms");

        for begun in [&b""[..], head] {
            let error = stalled(begun, bounds, short).await;
            assert!(matches!(error, TransportError::Timeout(_)), "{error:?}");
            assert_eq!(error.to_string(), "no answer within 100ms");
        }
    }

    #[tokio::test]
    async fn a_connection_that_does_not_come_about_ends_at_its_bound_and_nothing_was_sent() {
        // It takes the connection and then says nothing of TLS.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut request = request(listener.local_addr().unwrap(), 1, Duration::from_mins(10));
        request.url.set_scheme("https").unwrap();
        request.waits.connect = Duration::from_millis(100);
        let error = HttpTransport::new().unwrap().exchange(request).await.unwrap_err();
        assert!(matches!(error, TransportError::Connect(_)), "{error:?}");
        assert_eq!(error.to_string(), "can't connect: no connection within 100ms");
    }

    #[tokio::test]
    async fn clients_are_kept_by_their_bound_on_connecting_and_bounded() {
        let transport = HttpTransport::new().unwrap();
        let clients = |millis| transport.clients(Duration::from_millis(millis)).unwrap();
        assert!(Arc::ptr_eq(&clients(1), &clients(1)));
        for millis in 0..20 {
            clients(millis);
            assert!(transport.clients.lock().unwrap().len() <= CLIENTS_MAX);
        }
    }

    /// A certificate that its owner signed himself for this machine, and its key: nobody trusts it.
    const UNTRUSTED: &str = "MIIBmzCCAUGgAwIBAgIUHmULCgFODqdDkre3WVJMgmFTpt4wCgYIKoZIzj0EAwIwFDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzAxNTEyMFoYDzIxMjYxMDMwMDE1MTIwWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASN9xdmPPHgnnIXN1oE0CGoIsd/yUnA5VVL7f0oPVVs7PoIdWCOmZ7b9rzjXKT6xE14M8TbnE5WosVWRtP7Yv4fo28wbTAdBgNVHQ4EFgQUVGQ9jvikZzmCRjTHvxweYOziLbowHwYDVR0jBBgwFoAUVGQ9jvikZzmCRjTHvxweYOziLbowDwYDVR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZIzj0EAwIDSAAwRQIhANGrRjIgd2nIvFwUAShyA2qyrtMFN5B6skN/B46JSME5AiASTcDYAvJTzNBtS8hsx+Dl6WzMqgOclPqSX8lal58KrQ==";
    const UNTRUSTED_KEY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgq+93l6qHJ5AOPhyeax/Z66T7UlD7GiPFztIh0KQRwEKhRANCAASN9xdmPPHgnnIXN1oE0CGoIsd/yUnA5VVL7f0oPVVs7PoIdWCOmZ7b9rzjXKT6xE14M8TbnE5WosVWRtP7Yv4f";

    fn untrusted() -> rustls::ServerConfig {
        install_crypto();
        let der = |text| base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(der(UNTRUSTED_KEY));
        rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![der(UNTRUSTED).into()], key.into())
            .unwrap()
    }

    #[tokio::test]
    async fn a_certificate_that_nobody_trusts_is_told_from_a_server_that_is_down() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut request = request(listener.local_addr().unwrap(), 1, Duration::from_mins(1));
        request.url.set_scheme("https").unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn_blocking(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut tls = rustls::ServerConnection::new(Arc::new(untrusted())).unwrap();
            // It ends with the client's refusal.
            tls.complete_io(&mut stream).unwrap_err();
        });
        let error = HttpTransport::new().unwrap().exchange(request).await.unwrap_err();
        assert!(matches!(error, TransportError::Certificate(_)), "{error:?}");
        tasks.join_next().await.unwrap().unwrap();
    }

    /// Asks a server whose certificate is by the authority of `ca.pem`, trusting `pem` beside the system's.
    async fn ask_trusting(pem: &[u8]) -> Result<HttpReply, TransportError> {
        use std::io::Read;

        use rustls::pki_types::pem::PemObject;
        install_crypto();
        let certificate = include_bytes!("../../tests/certificates/server.pem");
        let certificate = rustls::pki_types::CertificateDer::from_pem_slice(certificate).unwrap();
        let key = include_bytes!("../../tests/certificates/server.key");
        let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(key).unwrap();
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        let config = Arc::new(config.with_single_cert(vec![certificate], key).unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut request = request(listener.local_addr().unwrap(), 100, Duration::from_mins(1));
        request.url.set_scheme("https").unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn_blocking(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut tls = rustls::ServerConnection::new(config).unwrap();
            if tls.complete_io(&mut socket).is_ok() {
                let mut stream = rustls::Stream::new(&mut tls, &mut socket);
                assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
            }
        });
        let reply = HttpTransport::trusting(pem).unwrap().exchange(request).await;
        tasks.join_next().await.unwrap().unwrap();
        reply
    }

    #[tokio::test]
    async fn an_authority_of_ones_own_is_trusted_where_it_is_named() {
        let reply = ask_trusting(include_bytes!("../../tests/certificates/ca.pem")).await.unwrap();
        assert_eq!((reply.status, &reply.body[..]), (200, &b"{}"[..]));
        for others in [&b""[..], include_bytes!("../../tests/certificates/other-ca.pem")] {
            let error = ask_trusting(others).await.unwrap_err();
            assert!(matches!(error, TransportError::Certificate(_)), "{error:?}");
        }
        assert!(
            HttpTransport::trusting(b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").is_err()
        );
    }

    fn file(content: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Arc::new(file)
    }

    /// A request whose body is `length` bytes of a file between brackets.
    fn upload(address: SocketAddr, content: &[u8], length: u64) -> HttpRequest {
        let parts = [
            Part::Bytes(Bytes::from_static(b"<")),
            Part::File { file: file(content), offset: 0, length },
            Part::Bytes(Bytes::from_static(b">")),
        ];
        HttpRequest { body: HttpBody::Parts(parts.into()), ..request(address, 100, Duration::from_mins(1)) }
    }

    /// Carries out a transfer; gives what came of it, what went into the sink, and the last progress.
    async fn transfer(
        request: HttpRequest,
        max: Option<u64>,
    ) -> (Result<HttpReply, TransportError>, Vec<u8>, u64) {
        let (mut sunk, last) = (Vec::new(), AtomicU64::new(0));
        let progress = |bytes| last.store(bytes, Ordering::Relaxed);
        let sink = max.map(|max| Sink { write: &mut sunk, max });
        let transfer = Transfer { sink, progress: &progress };
        let result = HttpTransport::new().unwrap().transfer(request, transfer).await;
        (result, sunk, last.into_inner())
    }

    #[tokio::test]
    async fn a_file_goes_up_with_its_length_and_byte_for_byte() {
        let server = Listener::new(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
        let content = "0123456789".repeat(40_000);
        let (result, _, moved) = transfer(upload(server.address(), content.as_bytes(), 400_000), None).await;
        assert_eq!((&result.unwrap().body[..], moved), (&b"{}"[..], 400_000));
        let sent = server.requests().pop().unwrap();
        assert!(sent.contains("content-length: 400002\r\n") && !sent.contains("chunked"));
        assert!(sent.ends_with(&format!("\r\n\r\n<{content}>")));
    }

    #[tokio::test]
    async fn a_server_that_refuses_a_file_before_it_has_all_of_it_is_heard() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let content = vec![b'x'; 8_000_000]; // more than the sockets between us hold
        let request = upload(listener.local_addr().unwrap(), &content, 8_000_000);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
            stream.write_all(b"HTTP/1.1 413 No\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
            std::future::pending::<()>().await;
        });
        let (result, ..) = transfer(request, None).await;
        assert_eq!(result.unwrap().status, 413);
    }

    #[tokio::test]
    async fn a_file_that_became_shorter_breaks_the_upload_off() {
        let server = Listener::new(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
        let (result, ..) = transfer(upload(server.address(), b"0123", 5), None).await;
        let error = result.unwrap_err();
        assert!(matches!(error, TransportError::File(_)), "{error:?}");
        assert_eq!(error.to_string(), "the file can't be read: it has become shorter");
    }

    #[tokio::test]
    async fn a_file_comes_down_into_its_sink_and_an_error_into_the_reply() {
        let get = |server: &Listener| request(server.address(), 4, Duration::from_mins(1));
        let server = Listener::new(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789").await;
        let (result, sunk, moved) = transfer(get(&server), Some(10)).await;
        assert_eq!((result.unwrap().body.len(), &sunk[..], moved), (0, &b"0123456789"[..], 10));
        let (result, sunk, _) = transfer(get(&server), Some(9)).await;
        assert!(matches!(result, Err(TransportError::TooLarge(9))) && sunk.is_empty(), "{result:?}");
        let server = Listener::new(b"HTTP/1.1 404 No\r\ncontent-length: 4\r\n\r\ngone").await;
        let (result, sunk, _) = transfer(get(&server), Some(9)).await;
        assert_eq!((&result.unwrap().body[..], sunk.len()), (&b"gone"[..], 0));
    }

    #[tokio::test]
    async fn a_file_cut_in_its_middle_or_that_nobody_takes_is_an_error() {
        let cut = Listener::new(b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n0123456789").await;
        let get = request(cut.address(), 4, Duration::from_mins(1));
        let (result, ..) = transfer(get.clone(), Some(100)).await;
        assert!(matches!(result, Err(TransportError::Cut(_))), "{result:?}");
        let sink = Sink { write: &mut &mut [0; 3][..], max: 100 };
        let transport = HttpTransport::new().unwrap();
        let result = transport.transfer(get, Transfer { sink: Some(sink), progress: &|_| {} }).await;
        assert!(matches!(result, Err(TransportError::File(_))), "{result:?}");
    }

    // Real time, as above: nothing here waits for longer than the time-out.
    #[tokio::test]
    async fn a_transfer_may_take_any_time_while_it_moves_and_ends_when_it_stalls() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let timeout = Duration::from_millis(600);
        let request = request(listener.local_addr().unwrap(), 100, timeout);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n").await.unwrap();
            for _ in 0..10 {
                tokio::time::sleep(timeout / 8).await;
                stream.write_all(b" ").await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        let (result, sunk, _) = transfer(request, Some(100)).await;
        assert!(matches!(result, Err(TransportError::Timeout(t)) if t == timeout), "{result:?}");
        assert_eq!(sunk.len(), 10, "it took longer than the time-out, but moved");
    }

    /// Collects a body, up to a byte that it has enough with.
    #[derive(Default)]
    struct Collector {
        body: Vec<u8>,
        enough: Option<u8>,
    }

    impl Receiver for Collector {
        fn begins(&mut self, status: u16, _: &HeaderMap) -> bool {
            status == 200
        }

        fn take(&mut self, piece: &[u8]) -> ControlFlow<()> {
            self.body.extend_from_slice(piece);
            match self.enough {
                Some(byte) if piece.contains(&byte) => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        }
    }

    /// Sends each of `pieces` after the wait before it, on the first connection, and then hangs up or waits for ever.
    async fn dripping(pieces: &[(Duration, &'static str)], hangs_up: bool) -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pieces = pieces.to_vec();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
            for (wait, piece) in pieces {
                tokio::time::sleep(wait).await;
                stream.write_all(piece.as_bytes()).await.unwrap();
            }
            if !hangs_up {
                std::future::pending::<()>().await;
            }
        });
        (address, tasks)
    }

    const HEAD: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

    // Real time, as above: nothing here waits for longer than the time-out.
    #[tokio::test]
    async fn a_reply_that_is_handed_over_may_be_slow_to_begin_but_then_must_move() {
        let still_max = Duration::from_millis(300);
        let slow = [(Duration::ZERO, HEAD), (2 * still_max, "1\r\na\r\n")];
        let moving = [(still_max / 4, "1\r\nb\r\n"); 6];
        let (address, _tasks) = dripping(&[&slow[..], &moving].concat(), false).await;
        let mut collector = Collector::default();
        let mut request = request(address, 100, Duration::from_mins(1));
        request.waits.idle = Some(still_max);
        let result = HttpTransport::new().unwrap().receive(request, &mut collector).await;
        assert!(matches!(result, Err(TransportError::Stalled(t)) if t == still_max), "{result:?}");
        assert_eq!(collector.body, b"abbbbbb");
    }

    #[tokio::test]
    async fn a_reply_that_is_handed_over_ends_at_the_time_out_however_it_moves() {
        let total = Duration::from_millis(300);
        let (address, _tasks) =
            dripping(&[(Duration::ZERO, HEAD), (Duration::ZERO, "1\r\na\r\n")], false).await;
        let request = request(address, 100, total);
        let result = HttpTransport::new().unwrap().receive(request, &mut Collector::default()).await;
        assert!(matches!(result, Err(TransportError::Timeout(t)) if t == total), "{result:?}");
    }

    #[tokio::test]
    async fn a_reply_that_is_handed_over_ends_whole_or_cut_and_without_what_nobody_needs() {
        let now = Duration::ZERO;
        for (pieces, enough, expected) in [
            (vec![(now, HEAD), (now, "2\r\nab\r\n0\r\n\r\n")], None, Some("ab")),
            (vec![(now, HEAD), (now, "2\r\nab\r\n")], None, None),
            // Whether it goes on, ends or breaks behind that.
            (vec![(now, HEAD), (now, "2\r\nab\r\n"), (now, "2\r\ncd\r\n0\r\n\r\n")], Some(b'b'), Some("ab")),
            (vec![(now, HEAD), (now, "2\r\nab\r\n")], Some(b'b'), Some("ab")),
        ] {
            let (address, _tasks) = dripping(&pieces, true).await;
            let mut collector = Collector { enough, ..Collector::default() };
            let request = request(address, 100, Duration::from_mins(1));
            let result = HttpTransport::new().unwrap().receive(request, &mut collector).await;
            match expected {
                Some(expected) => {
                    assert_eq!(result.unwrap().status, 200);
                    assert!(collector.body.starts_with(expected.as_bytes()), "{:?}", collector.body);
                }
                None => assert!(matches!(result, Err(TransportError::Cut(_))), "{result:?}"),
            }
        }
        // An error stands in the reply, within its bound.
        let server = Listener::new(b"HTTP/1.1 429 Slow\r\ncontent-length: 2\r\n\r\n{}").await;
        let mut collector = Collector::default();
        let request = request(server.address(), 2, Duration::from_mins(1));
        let reply = HttpTransport::new().unwrap().receive(request, &mut collector).await.unwrap();
        assert_eq!((reply.status, &reply.body[..], &collector.body[..]), (429, &b"{}"[..], &b""[..]));
    }

    #[tokio::test]
    async fn the_public_client_connects_to_no_private_name() {
        let server = Listener::new(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let mut request = request(server.address(), 100, Duration::from_mins(1));
        request.url = format!("http://localhost:{}/", server.address().port()).parse().unwrap();
        request.reach = Reach::Public;
        let transport = HttpTransport::new().unwrap();
        let error = transport.exchange(request.clone()).await.unwrap_err();
        assert!(matches!(&error, TransportError::NotPublic(name) if name == "localhost"), "{error:?}");
        request.url.set_host(Some("127.0.0.1")).unwrap();
        let error = transport.exchange(request).await.unwrap_err();
        assert!(matches!(&error, TransportError::NotPublic(name) if name == "127.0.0.1"), "{error:?}");
        assert_eq!(server.requests().len(), 0);
    }

    #[test]
    fn neither_this_machine_nor_a_url_from_a_reply_is_asked_through_a_proxy() {
        let clients = HttpTransport::new().unwrap().clients(Waits::default().connect).unwrap();
        let mut request = request("127.0.0.1:1".parse().unwrap(), 1, Duration::from_secs(1));
        assert!(std::ptr::eq(clients.client_for(&request), &raw const clients.direct));
        request.url = "https://api.openai.com/v1".parse().unwrap();
        assert!(std::ptr::eq(clients.client_for(&request), &raw const clients.outward));
        request.reach = Reach::Public;
        assert!(std::ptr::eq(clients.client_for(&request), &raw const clients.public));
    }

    #[tokio::test]
    async fn a_server_that_speaks_no_tls_was_never_reached() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut request = request(listener.local_addr().unwrap(), 1, Duration::from_mins(1));
        request.url.set_scheme("https").unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        });
        let error = HttpTransport::new().unwrap().exchange(request).await.unwrap_err();
        assert!(matches!(error, TransportError::Connect(_)), "{error:?}");
    }

    #[tokio::test]
    async fn a_connection_serves_one_request_after_another() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let request = request(listener.local_addr().unwrap(), 100, Duration::from_mins(1));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // The only connection that is ever accepted.
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut sent = [0; 4096];
            while stream.read(&mut sent).await.unwrap() > 0 {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
            }
        });
        let transport = HttpTransport::new().unwrap();
        for _ in 0..3 {
            assert_eq!(transport.exchange(request.clone()).await.unwrap().status, 200);
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (url, expected) in [
            ("http://127.0.0.1:1", true),
            ("http://127.9.9.9", true),
            ("http://[::1]:8000/v1", true),
            ("http://localhost/", true),
            ("http://sim.localhost/", true),
            ("http://10.0.0.1", false),
            ("http://localhost.example.com", false),
            ("https://api.openai.com/v1", false),
        ] {
            assert_eq!(is_loopback(&url.parse().unwrap()), expected, "{url}");
        }
    }
}
