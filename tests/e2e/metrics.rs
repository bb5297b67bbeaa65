//! Health and metrics, over the socket and over TCP, and who may ask.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use batchd::simulate::Settings;
use rustix::process::{Signal, geteuid};
use serde_json::Value;

use crate::exposition::Exposition;
use crate::world::{CONCURRENCY, Daemon, Setup, World, chat_lines};

const TOKEN: &str = "t-canary-8c1f";

/// A world that is to be looked at over TCP, too, by those who have the token.
fn watched(server: Settings) -> World {
    let more = "[http]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"token\"\nhosts = [\"metrics.example\"]\n";
    let provider = "[[providers.models]]\nname = \"m\"\nrequests_per_minute = 60000\n".to_owned();
    let setup = Setup { server, more: format!("{provider}{more}"), max_attempts: 2, ..Setup::default() };
    let world = World::with(&setup);
    fs::write(world.path("token"), TOKEN).unwrap();
    world
}

/// Where the daemon says that it listens.
fn address(daemon: &Daemon) -> SocketAddr {
    let log = daemon.log();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut told = lines.filter_map(|line| Some(line["address"].as_str()?.parse().unwrap()));
    told.next().expect("the address is in the log")
}

/// Asks and gives back status and body.
fn exchange(mut stream: impl Read + Write, path: &str, headers: &str) -> (u16, String) {
    write!(stream, "GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

fn over_socket(world: &World, path: &str, headers: &str) -> (u16, String) {
    let socket = UnixStream::connect(world.path("root/batchd.sock")).unwrap();
    exchange(socket, path, &format!("Host: batchd\r\n{headers}"))
}

fn over_tcp(address: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    exchange(TcpStream::connect(address).unwrap(), path, headers)
}

#[test]
fn metrics_tell_what_a_job_did_over_both_doors() {
    let server = Settings { faults: "500=0.3,429=0.1".parse().unwrap(), ..Settings::default() };
    let world = watched(server);
    let daemon = world.start();
    world.drop("job.jsonl", chat_lines(60));
    world.wait_for_status("job", "completed");

    let bearer = format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n");
    let (status, text) = over_tcp(address(&daemon), "/metrics", &bearer);
    assert_eq!(status, 200, "{text}");
    let metrics = Exposition::of_text(&text);
    let accept = "Accept: application/openmetrics-text;version=1.0.0\r\n";
    let (status, text) = over_socket(&world, "/metrics", accept);
    assert_eq!(status, 200, "{text}");
    let open = Exposition::of_open_metrics(&text);
    let still = |name: &String| !name.starts_with("batchd_disk_free_bytes");
    let both = [&metrics, &open]
        .map(|door| door.own().into_iter().filter(|(name, _)| still(name)).collect::<Vec<_>>());
    assert_eq!(both[0], both[1]);

    let summary = world.results("job").summary();
    let number = |pointer: &str| summary.pointer(pointer).unwrap().as_u64().unwrap();
    let (completed, failed) = (number("/counts/completed"), number("/counts/failed"));
    assert!(completed > 0 && failed > 0, "{summary}");
    let settled = |how| metrics.count("batchd_requests_settled_total", &[("outcome", how)]);
    assert_eq!((settled("completed"), settled("failed"), settled("cancelled")), (completed, failed, 0));
    let queue = ("queue", "sim/m");
    let attempts = |how| metrics.count("batchd_attempts_total", &[queue, ("outcome", how)]);
    assert_eq!(attempts("answered"), completed);
    assert!(attempts("failed") >= 2 * failed && attempts("throttled") > 0);
    assert_eq!(metrics.sum("batchd_attempts_total"), world.ledger().requests);
    assert_eq!(metrics.count("batchd_answer_duration_seconds_count", &[queue]), completed);
    for (kind, member) in [("input", "/tokens/input"), ("output", "/tokens/output")] {
        assert_eq!(
            metrics.count("batchd_tokens_total", &[queue, ("kind", kind)]),
            number(member),
            "{summary}"
        );
    }
    assert_eq!(metrics.count("batchd_jobs", &[("status", "completed")]), 1);
    assert_eq!(metrics.count("batchd_jobs_ended_total", &[("status", "completed")]), 1);
    // What is configured, or less where refusals by chance looked like a limit.
    assert!((1..=60_000).contains(&metrics.count("batchd_limit_requests_per_minute", &[queue])));
    assert!(metrics.count("batchd_limit_concurrency", &[queue]) <= CONCURRENCY.into());
    assert!(metrics.count("batchd_journal_commit_duration_seconds_count", &[]) >= 1);
    assert_eq!(metrics.sum("batchd_requests_in_flight") + metrics.sum("batchd_requests_waiting"), 0);
    assert!(metrics.value("batchd_last_error_timestamp_seconds", &[("reason", "server_error")]) > 1.7e9);
    assert!(metrics.count("process_resident_memory_bytes", &[]) > 1 << 20);

    let (_, health) = over_socket(&world, "/health", "");
    let health: Value = serde_json::from_str(&health).unwrap();
    assert_eq!(health["last_error"]["queue"], "sim/m", "{health}");
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!(world.files_with(".", TOKEN), ["token"], "the token is in no log");
}

#[test]
fn over_tcp_the_host_must_be_ours_and_the_token_right() {
    let world = watched(Settings::default());
    let daemon = world.start();
    let address = address(&daemon);
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    for (path, headers, expected) in [
        ("/metrics", format!("Host: metrics.example\r\n{}", bearer(TOKEN)), 200),
        ("/metrics", format!("Host: localhost\r\n{}", bearer("wrong")), 401),
        ("/metrics", "Host: localhost\r\n".to_owned(), 401),
        ("/metrics", format!("Host: evil.example\r\n{}", bearer(TOKEN)), 421),
        ("/healthz", "Host: evil.example\r\n".to_owned(), 421),
        ("/healthz", format!("Host: {address}\r\n"), 200),
        ("/readyz", "Host: localhost\r\n".to_owned(), 200),
        ("/jobs", format!("Host: localhost\r\n{}", bearer(TOKEN)), 404),
    ] {
        let (status, body) = over_tcp(address, path, &headers);
        assert_eq!(status, expected, "{path} {headers}: {body}");
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(over_socket(&world, path, "").0, 200, "the socket wants no token");
    }
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn readiness_ends_when_the_daemon_is_told_to_stop() {
    let world = watched(Settings::default());
    let mut daemon = world.start();
    // The provider's models are known from the first job: that they are asked for must not be waited for.
    world.drop("first.jsonl", chat_lines(1));
    world.wait_for_status("first", "completed");
    world.answer_after(Duration::from_hours(1));
    world.drop("job.jsonl", chat_lines(9));
    world.wait_for_requests(1 + u64::from(CONCURRENCY));
    let (_, text) = over_socket(&world, "/metrics", "");
    let metrics = Exposition::of_text(&text);
    assert_eq!(metrics.count("batchd_requests_in_flight", &[("queue", "sim/m")]), u64::from(CONCURRENCY));
    assert_eq!(metrics.count("batchd_jobs", &[("status", "in_progress")]), 1);

    daemon.signal(Signal::TERM);
    daemon.wait_for_log("what is in flight may finish");
    let (status, body) = over_socket(&world, "/readyz", "");
    assert_eq!(status, 503);
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["code"], "stopping");
    assert_eq!(over_tcp(address(&daemon), "/healthz", "Host: localhost\r\n").0, 200, "it is alive");
    daemon.insist();
}

#[test]
fn a_port_that_is_taken_is_named_with_its_key() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let more = format!("[http]\nlisten = \"{address}\"\n");
    let world = World::with(&Setup { more, ..Setup::default() });
    let output = world.run_until_idle();
    assert_eq!(output.code, Some(70), "{output:?}");
    assert!(output.stderr.contains(&format!("listen on {address}, the `[http] listen`")), "{output:?}");
}

/// Another user of this machine, as root can play him.
const STRANGER: u32 = 65_534;

#[test]
fn the_socket_is_for_its_owner_or_for_a_group_too() {
    if !geteuid().is_root() {
        return eprintln!("skipped: only root can speak as somebody else");
    }
    let groups = fs::read_to_string("/etc/group").unwrap();
    let other_group = groups.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields[2] != "0" && fields[2] != "65534").then(|| (fields[0].to_owned(), fields[2].to_owned()))
    });
    let Some((group, gid)) = other_group else { return eprintln!("skipped: no group but root's") };
    let more = format!("[control]\ngroup = \"{group}\"\n");
    let [alone, shared] = [String::new(), more].map(|more| World::with(&Setup { more, ..Setup::default() }));
    let as_stranger = |world: &World, gid: &str, args: &[&str]| {
        fs::set_permissions(world.path("."), Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={STRANGER}")).arg(format!("--regid={gid}")).arg("--clear-groups");
        command.arg(env!("CARGO_BIN_EXE_batchd")).arg("--config").arg(world.config()).args(args);
        command
    };
    let runs = as_stranger(&alone, &gid, &["--version"]).output();
    if !runs.as_ref().is_ok_and(|output| output.status.success()) {
        return eprintln!("skipped: the binary can't be run as somebody else: {runs:?}");
    }
    let (mut alone_daemon, mut shared_daemon) = (alone.start(), shared.start());
    let list = |world: &World, gid: &str| world.run(as_stranger(world, gid, &["list"])).code;
    let mode = |world: &World| world.path("root/batchd.sock").metadata().unwrap().mode() & 0o777;
    assert_eq!((mode(&alone), mode(&shared)), (0o600, 0o660));
    assert_eq!(list(&alone, &gid), Some(69), "the mode keeps him out");
    assert_eq!(list(&shared, &STRANGER.to_string()), Some(69), "he is not in the group");
    assert_eq!(list(&shared, &gid), Some(0));

    // What a person may do to a mode must not open the socket to others.
    fs::set_permissions(alone.path("root/batchd.sock"), Permissions::from_mode(0o666)).unwrap();
    let output = alone.run(as_stranger(&alone, &gid, &["list"]));
    assert_eq!(output.code, Some(69));
    assert!(output.stderr.contains("only the user who runs the daemon"), "{output:?}");
    alone_daemon.wait_for_log("somebody else tried to speak to the daemon");

    shared.drop("job.jsonl", "{}\n");
    shared.run(as_stranger(&shared, &gid, &["pause", "none"]));
    shared_daemon.wait_for_log("\"uid\":65534");
    for daemon in [alone_daemon, shared_daemon] {
        assert_eq!(daemon.stop().code, Some(0));
    }
}
