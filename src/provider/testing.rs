//! A server for tests: real sockets, one fixed reply a connection.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use secrecy::SecretString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::provider::{Custom, HttpTransport, Provider, Settings, Waits};

/// Listens on a port of its own until dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    _server: JoinSet<()>,
}

impl Listener {
    /// Every connection gets the next of `replies` (the last one again and again), then an end.
    pub(crate) async fn with_replies(replies: Vec<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let mut server = JoinSet::new();
        server.spawn(async move {
            for at in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                let reply = replies.get(at).or_else(|| replies.last()).cloned().unwrap_or_default();
                let head = read_request(&mut stream).await;
                seen.lock().unwrap().push(head);
                // The client may have gone already; that is its test's business.
                drop(stream.write_all(&reply).await);
                drop(stream.shutdown().await);
            }
        });
        Self { address, requests, _server: server }
    }

    pub(crate) async fn new(reply: &[u8]) -> Self {
        Self::with_replies(vec![reply.to_vec()]).await
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What was asked, heads and bodies as they came.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// What was asked for: methods and paths.
    pub(crate) fn first_lines(&self) -> Vec<String> {
        self.requests().iter().map(|asked| asked.lines().next().unwrap().to_owned()).collect()
    }
}

/// Reads one whole request: its head, and as many bytes as that announces.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer).await.unwrap();
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        if read == 0 {
            return text;
        }
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let announced = head
                .lines()
                .filter_map(|line| {
                    line.to_ascii_lowercase().strip_prefix("content-length:").map(str::to_owned)
                })
                .find_map(|value| value.trim().parse().ok())
                .unwrap_or(0);
            if body.len() >= announced {
                return text;
            }
        }
    }
}

/// The key of [`provider`].
pub(super) const CANARY: &str = "sk-CANARY-0123456789";

/// A provider that asks `server`.
pub(super) fn provider(server: &Listener) -> Provider {
    provider_at(&format!("http://{}/v1", server.address()))
}

impl Settings {
    /// Of a server without a key.
    pub(super) fn at(base_url: &str) -> Self {
        Self {
            name: "test".to_owned(),
            base_url: base_url.parse().unwrap(),
            api_key: None,
            custom: Custom::default(),
            timeout: Duration::from_mins(1),
            waits: Waits::default(),
            max_reply: 64 * 1024,
            flex_timeout: Duration::from_mins(15),
            stream: false,
        }
    }
}

pub(super) fn provider_at(base_url: &str) -> Provider {
    let settings = Settings { api_key: Some(SecretString::from(CANARY)), ..Settings::at(base_url) };
    thread_local! {
        // Reading the machine's certificates takes a while. A test has its thread, so its connections are its own.
        static TRANSPORT: Arc<HttpTransport> = Arc::new(HttpTransport::new().unwrap());
    }
    Provider::new(settings, TRANSPORT.with(Arc::clone))
}

/// A whole reply. `headers` end in a line end each. Says that the connection ends with it: who were to ask again over
/// it before he has seen its end would lose his request.
pub(crate) fn http(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{headers}connection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}
