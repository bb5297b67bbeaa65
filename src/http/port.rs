//! Health and metrics over TCP, for those who can't reach the socket: no commands, and no jobs.
//!
//! # Invariants
//!
//! - Every request names us by a name of ours: a web page whose own name was made to point at this machine reads
//!   nothing here (421).
//! - Where there is a token, `/metrics` is for those who have it. The health checks are for everybody, since what asks
//!   them (a load balancer, a container's host) often can't be given a token; they say a word, and no name or number.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::connections::{self, Bounds};
use super::routes::{Failure, not_found};
use super::vitals::{self, Vitals};

/// A scrape takes milliseconds; who has not read his answer by then does not want it.
const BOUNDS: Bounds = Bounds { connections: 64, whole: Some(Duration::from_secs(15)) };

/// A listener that is bound and not served yet.
#[derive(Debug)]
pub struct Port {
    listener: TcpListener,
    gate: Arc<Gate>,
}

/// Who is let in.
#[derive(Debug)]
struct Gate {
    /// Of the token. Hashes are compared in constant time, and have one length.
    token: Option<blake3::Hash>,
    /// In lower case.
    hosts: BTreeSet<String>,
}

impl Port {
    /// Listens. `hosts`: names, in lower case, by which it may be asked beside `localhost` and its address. Needs a
    /// tokio runtime.
    pub fn open(listen: SocketAddr, token: Option<&SecretString>, hosts: &[String]) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let gate = Gate {
            token: token.map(|token| blake3::hash(token.expose_secret().as_bytes())),
            hosts: hosts.iter().cloned().collect(),
        };
        Ok(Self { listener: TcpListener::from_std(listener)?, gate: Arc::new(gate) })
    }

    /// Where it listens: a port that was left to the system has its number here.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `stop`.
    pub async fn serve(self, vitals: Vitals, stop: CancellationToken) {
        let Self { listener, gate } = self;
        let routes = vitals::router(vitals).fallback(not_found);
        let welcome = |stream: &tokio::net::TcpStream| {
            // The address that the client has used; without one it has gone already.
            let address = stream.local_addr().map(|address| address.ip()).ok();
            routes.clone().layer(from_fn_with_state((Arc::clone(&gate), address), guard))
        };
        connections::serve(listener, BOUNDS, welcome, stop).await;
    }
}

async fn guard(
    State((gate, address)): State<(Arc<Gate>, Option<IpAddr>)>,
    request: Request,
    next: Next,
) -> Response {
    if !hosts_of(&request).is_some_and(|hosts| hosts.iter().all(|host| gate.is_ours(host, address))) {
        let message = "this is not the host that the request names: see `[http] hosts`".to_owned();
        return Failure { status: StatusCode::MISDIRECTED_REQUEST, code: "wrong_host", message }
            .into_response();
    }
    if request.uri().path() == "/metrics" && !gate.has_token(request.headers()) {
        let message = "this needs the token: `Authorization: Bearer …`".to_owned();
        let failure = Failure { status: StatusCode::UNAUTHORIZED, code: "unauthorized", message };
        return ([(WWW_AUTHENTICATE, "Bearer")], failure).into_response();
    }
    next.run(request).await
}

impl Gate {
    /// Whether this is a name of ours. An address is, where the client has used it: for that it need not be guessed
    /// which ones this machine has.
    fn is_ours(&self, host: &str, address: Option<IpAddr>) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        if self.hosts.contains(&host) {
            return true;
        }
        match host.parse::<IpAddr>() {
            Ok(named) => {
                let named = named.to_canonical();
                named.is_loopback() || address.is_some_and(|address| address.to_canonical() == named)
            }
            Err(_) => host == "localhost",
        }
    }

    fn has_token(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let given = headers.get(AUTHORIZATION).and_then(|given| given.to_str().ok());
        let given = given.and_then(|given| given.split_once(' '));
        given.is_some_and(|(scheme, given)| {
            scheme.eq_ignore_ascii_case("bearer") && blake3::hash(given.trim().as_bytes()) == *token
        })
    }
}

/// The hosts that a request names; none if it names none, or in a way that can be taken for two.
fn hosts_of(request: &Request) -> Option<Vec<&str>> {
    let mut named = request.headers().get_all(HOST).iter();
    let (Some(host), None) = (named.next(), named.next()) else { return None };
    let host = without_port(host.to_str().ok()?)?;
    // Where the whole url stands in the first line, it counts, too.
    let target = request.uri().authority().map(|authority| without_port(authority.as_str()));
    match target {
        Some(target) => Some(vec![host, target?]),
        None => Some(vec![host]),
    }
}

/// `host` or `host:port`, an IPv6 address in brackets; none for anything else.
fn without_port(text: &str) -> Option<&str> {
    let (host, rest) = match text.strip_prefix('[') {
        Some(text) => text.split_once(']')?,
        None => text.find(':').map_or((text, ""), |colon| text.split_at(colon)),
    };
    let port = if rest.is_empty() { "0" } else { rest.strip_prefix(':')? };
    (!host.is_empty() && port.chars().all(|c| c.is_ascii_digit())).then_some(host)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::control::tests::Jobs;
    use crate::domain::JobStatus;
    use crate::http::vitals::tests::vitals;

    const TOKEN: &str = "t-5f1d0a77c2";

    /// Asks as `text` has it, word for word; the whole reply.
    async fn ask(address: SocketAddr, text: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut reply = String::new();
        // Who has said enough may be hung up on before he has said all.
        drop(stream.read_to_string(&mut reply).await);
        reply
    }

    /// Serves while `talk` runs.
    async fn served<T>(token: Option<&str>, hosts: &[&str], talk: impl AsyncFnOnce(SocketAddr) -> T) -> T {
        let token = token.map(SecretString::from);
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let port = Port::open("127.0.0.1:0".parse().unwrap(), token.as_ref(), &hosts).unwrap();
        let address = port.address().unwrap();
        let jobs = Arc::new(Jobs::default());
        jobs.add("a", JobStatus::InProgress);
        let stop = CancellationToken::new();
        let talked = async {
            let talked = talk(address).await;
            stop.cancel();
            talked
        };
        tokio::join!(port.serve(vitals(&jobs), stop.clone()), talked).1
    }

    fn status(reply: &str) -> &str {
        reply.split(' ').nth(1).unwrap_or("none")
    }

    #[tokio::test]
    async fn only_health_and_metrics_are_here() {
        served(None, &[], async |address| {
            for (request, expected) in [
                ("GET /healthz", "200"),
                ("GET /readyz", "200"),
                ("GET /metrics", "200"),
                ("HEAD /metrics", "200"),
                ("POST /metrics", "405"),
                ("GET /", "404"),
                ("GET /health", "404"),
                ("GET /jobs", "404"),
                ("GET /jobs/a", "404"),
                ("POST /jobs/a/cancel", "404"),
            ] {
                let reply = ask(address, &format!("{request} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
                assert_eq!(status(&reply), expected, "{request}: {reply}");
                assert_eq!(
                    reply.contains("content-type: text/plain; version=0.0.4"),
                    request.contains("T /metrics") && expected == "200" || request.starts_with("HEAD")
                );
            }
        })
        .await;
    }

    #[tokio::test]
    async fn every_request_names_a_host_of_ours() {
        served(None, &["metrics.example"], async |address| {
            let port = address.port();
            for (host, expected) in [
                ("Host: localhost\r\n", "200"),
                ("Host: LOCALHOST.:80\r\n", "200"),
                ("Host: [::1]:9464\r\n", "200"),
                (&*format!("Host: 127.0.0.1:{port}\r\n"), "200"),
                ("Host: Metrics.Example:9464\r\n", "200"),
                ("Host: evil.example\r\n", "421"),
                ("Host: localhost.evil.example\r\n", "421"),
                ("Host: evil.example:80@localhost\r\n", "421"),
                ("Host: 10.0.0.1\r\n", "421"),
                ("Host: \r\n", "421"),
                ("", "421"),
                ("Host: localhost\r\nHost: evil.example\r\n", "421"),
            ] {
                for path in ["/healthz", "/readyz", "/metrics", "/none"] {
                    let reply = ask(address, &format!("GET {path} HTTP/1.1\r\n{host}\r\n")).await;
                    let expected = if path == "/none" && expected == "200" { "404" } else { expected };
                    assert_eq!(status(&reply), expected, "{path} {host}: {reply}");
                }
            }
            let absolute = "GET http://evil.example/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
            assert_eq!(status(&ask(address, absolute).await), "421");
        })
        .await;
    }

    #[tokio::test]
    async fn metrics_want_the_token_and_health_checks_do_not() {
        served(Some(TOKEN), &[], async |address| {
            for (header, expected) in [
                (format!("Authorization: Bearer {TOKEN}\r\n"), "200"),
                (format!("authorization: bearer  {TOKEN} \r\n"), "200"),
                (String::new(), "401"),
                ("Authorization: Bearer \r\n".to_owned(), "401"),
                ("Authorization: Bearer t-5f1d0a77c\r\n".to_owned(), "401"),
                (format!("Authorization: Bearer {TOKEN}x\r\n"), "401"),
                (format!("Authorization: Basic {TOKEN}\r\n"), "401"),
                (format!("Authorization: {TOKEN}\r\n"), "401"),
                (format!("Cookie: token={TOKEN}\r\n"), "401"),
            ] {
                let reply =
                    ask(address, &format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{header}\r\n")).await;
                assert_eq!(status(&reply), expected, "{header}: {reply}");
                assert_eq!(reply.contains("www-authenticate: Bearer"), expected == "401");
                assert_eq!(reply.contains("batchd_jobs"), expected == "200");
            }
            for path in ["/healthz", "/readyz"] {
                let reply = ask(address, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
                assert_eq!(status(&reply), "200", "{reply}");
            }
        })
        .await;
    }

    #[tokio::test]
    async fn clients_that_stall_keep_nobody_out() {
        served(None, &[], async |address| {
            let mut stalled = Vec::new();
            for _ in 0..BOUNDS.connections * 2 {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(b"GET /metrics HT").await.unwrap();
                stalled.push(stream);
            }
            let reply = ask(address, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
            assert_eq!(status(&reply), "200");
            // The first ones made room.
            let mut rest = Vec::new();
            drop(stalled.remove(0).read_to_end(&mut rest).await);
            assert!(rest.is_empty());
        })
        .await;
    }

    #[tokio::test]
    async fn a_head_without_an_end_is_refused() {
        served(None, &[], async |address| {
            let head = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(64 << 10));
            let reply = ask(address, &head).await;
            assert!(matches!(status(&reply), "431" | "none"), "{reply}");
            let many = "X: y\r\n".repeat(1000);
            let reply =
                ask(address, &format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{many}\r\n")).await;
            assert!(matches!(status(&reply), "431" | "none"), "{reply}");
        })
        .await;
    }

    #[test]
    fn ports_are_taken_off_and_nonsense_is_no_host() {
        for (text, expected) in [
            ("a", Some("a")),
            ("a:1", Some("a")),
            ("a:", Some("a")),
            ("[::1]", Some("::1")),
            ("[::1]:9", Some("::1")),
            ("::1", None),
            ("a:b", None),
            ("a:1:2", None),
            ("[::1", None),
            ("[::1]x", None),
            (":1", None),
            ("", None),
        ] {
            assert_eq!(without_port(text), expected, "{text}");
        }
    }
}
