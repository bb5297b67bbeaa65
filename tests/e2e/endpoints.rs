//! A provider that is asked at several places, through a proxy, and behind an authority of its own.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::process::{Daemon, bare_command, eventually};
use crate::world::{Setup, World, chat_lines, sorted_ids};

/// A stand-in server as a process of its own, at this address.
fn simulate(folder: &tempfile::TempDir, address: &str) -> Daemon {
    let mut command = bare_command();
    command.args(["simulate", "--json", "--listen", address]);
    Daemon::spawn(command, ["out", "err"].map(|name| folder.path().join(name)))
}

/// Where it listens.
fn address_of(server: &Daemon) -> String {
    let base_url = eventually("its address", || {
        let said: serde_json::Value = serde_json::from_str(&server.printed()).ok()?;
        Some(said["base_url"].as_str()?.to_owned())
    });
    base_url.strip_prefix("http://").unwrap().strip_suffix("/v1").unwrap().to_owned()
}

#[test]
fn an_endpoint_that_is_killed_and_comes_back_costs_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let server = simulate(&folder, "127.0.0.1:0");
    let address = address_of(&server);
    let provider =
        format!("[[providers.endpoints]]\n[[providers.endpoints]]\nbase_url = \"http://{address}/v1\"\n");
    let world =
        World::with(&Setup { provider, log_level: "info,batchd::dispatch=trace", ..Setup::default() });
    // How many answers the log says that the second has given.
    let answered = |log: &str| {
        let second = format!("endpoint 2 ({address})");
        let is_answer = |line: &&str| line.contains("\"answered\"") && line.contains(&second);
        log.lines().filter(is_answer).count()
    };
    let daemon = world.start();
    world.drop("first.jsonl", chat_lines(400));
    eventually("both are asked", || {
        (answered(&daemon.log()) > 10 && world.ledger().requests > 10).then_some(())
    });
    server.kill();
    world.wait_for_status("first", "completed");
    let before = answered(&daemon.log());

    let server = simulate(&folder, &address);
    assert_eq!(address_of(&server), address);
    // As whoever has repaired it would: it would be tried by itself as well, a while later.
    daemon.signal(Signal::HUP);
    eventually("a reload", || daemon.log().contains("was read again").then_some(()));
    world.drop("second.jsonl", chat_lines(400));
    world.wait_for_status("second", "completed");
    let after = answered(&daemon.log());
    assert!(after > before + 10, "{before} {after}");
    assert_eq!(daemon.stop().code, Some(0));
    for job in ["first", "second"] {
        let results = world.results(job);
        assert_eq!(results.outcome(), ("completed".to_owned(), 400, 400, 0), "{job}");
        assert_eq!(results.custom_ids(), sorted_ids(400));
        assert!(!results.text("output.jsonl").contains("endpoint"), "records say nothing of it");
    }
}

/// Takes everything that is sent to it as a proxy, answers in the place of the servers, and keeps what it was asked.
struct Proxy {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, asked) = (listener.local_addr().unwrap().to_string(), Arc::new(Mutex::new(Vec::new())));
        let seen = Arc::clone(&asked);
        #[expect(clippy::disallowed_methods, reason = "it ends with the test process")]
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                // A client that goes away in the middle shows in what it says of that.
                drop(serve(socket.unwrap(), &seen));
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(mut socket: TcpStream, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let head = read_head(&mut socket)?;
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(head.clone());
    if head.starts_with("CONNECT ") {
        socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        let mut tls = StreamOwned::new(ServerConnection::new(server_config()).unwrap(), socket);
        let head = read_head(&mut tls)?;
        asked.lock().unwrap_or_else(PoisonError::into_inner).push(head);
        answer(&mut tls)?;
        tls.conn.send_close_notify();
        return tls.flush();
    }
    answer(&mut socket)
}

/// The head of a request; its body is read as well.
fn read_head(stream: &mut impl Read) -> std::io::Result<String> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let announced = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= announced.map_or(0, |length| length.parse().unwrap()) {
                return Ok(head.to_owned());
            }
        }
        match stream.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => bytes.extend_from_slice(&buffer[..read]),
        }
    }
}

fn answer(stream: &mut impl Write) -> std::io::Result<()> {
    let body =
        r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"4"},"finish_reason":"stop"}]}"#;
    let length = body.len();
    write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
}

fn server_config() -> Arc<ServerConfig> {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("../certificates/server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("../certificates/server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap())
}

const CA_FILE: &str = concat!("ca_file = \"", env!("CARGO_MANIFEST_DIR"), "/tests/certificates/ca.pem\"\n");

fn job(provider: &str) -> String {
    format!(
        "kind = \"chat\"\nprovider = \"{provider}\"\nmodel = \"m\"\n[[requests]]\nmessages = [{{ role = \"user\", content = \"2+2?\" }}]\n"
    )
}

#[test]
fn servers_elsewhere_are_asked_through_the_proxy_of_the_environment_and_this_machine_is_not() {
    let proxy = Proxy::start();
    let far = |name: &str, base_url: &str, more: &str| {
        format!("[[providers]]\nname = \"{name}\"\nbase_url = \"{base_url}\"\n{more}")
    };
    // None of these names resolves; the world's own server is on this machine.
    let more = far("plain", "http://plain.test/v1", "headers = { X-Gate = \"g\" }\n")
        + &far("tls", "https://server.test/v1", CA_FILE)
        + &far("untrusted", "https://server.test/v2", "")
        + &far("excepted", "http://excepted.test/v1", "");
    let world = World::with(&Setup { more, max_attempts: 1, ..Setup::default() });
    for provider in ["sim", "plain", "tls", "untrusted", "excepted"] {
        world.drop(&format!("{provider}.toml"), job(provider));
    }
    let mut command = world.command(&["run"]);
    let url = format!("http://{}", proxy.address);
    command.env("HTTP_PROXY", &url).env("https_proxy", &url).env("NO_PROXY", "excepted.test");
    let mut daemon = world.spawn(command);
    daemon.wait_for_log("batchd is running");
    for job in ["sim", "plain", "tls"] {
        let job = world.wait_for_status(job, "completed");
        assert_eq!(job.pointer("/counts/completed"), Some(&1.into()), "{job}");
    }
    let lost = world.wait_for_status("excepted", "completed");
    assert_eq!(lost.pointer("/counts/completed"), Some(&0.into()), "nobody has that name: {lost}");
    // Whom nobody trusts waits for better days.
    let paused =
        eventually("a pause", || world.listed("untrusted").filter(|job| job.to_string().contains("outage")));
    assert_eq!(paused.pointer("/counts/failed"), Some(&0.into()), "{paused}");
    daemon.wait_for_log("UnknownIssuer");
    daemon.stop();
    let asked = proxy.asked();
    let with = |beginning: &str| asked.iter().filter(|head| head.starts_with(beginning)).count();
    assert_eq!(with("POST http://plain.test/v1/chat/completions "), 1, "{asked:?}");
    assert!(asked.iter().any(|head| head.contains("x-gate: g")), "{asked:?}");
    assert!(with("CONNECT server.test:443 ") >= 2, "{asked:?}");
    assert_eq!(with("POST /v1/chat/completions "), 1, "{asked:?}");
    assert!(
        !asked.iter().any(|head| head.contains("excepted.test") || head.contains("127.0.0.1")),
        "{asked:?}"
    );
    assert_eq!(world.ledger().requests, 1);
}
