//! SIGHUP and SIGUSR1 while the daemon works: what changes, what stays, what is said.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use batchd::simulate::{Auth, Latency, Settings};
use rustix::process::Signal;
use serde_json::Value;

use crate::process::Daemon;
use crate::world::{CONCURRENCY, KEY, Setup, World, chat_line, chat_lines, eventually, sorted_ids};

/// What a reload that changes something says.
const HOLDS: &str = "these keys hold from now on";

/// Puts another configuration in the place of the one that runs, whole at once.
fn configure(world: &World, change: impl FnOnce(String) -> String) {
    let text = change(fs::read_to_string(world.config()).unwrap());
    fs::write(world.path("new.toml"), text).unwrap();
    fs::rename(world.path("new.toml"), world.config()).unwrap();
}

/// Reloads, and waits until the log says `text` once more than before.
fn reload(daemon: &Daemon, text: &str) {
    reload_after(daemon, text, || {});
}

/// The same, after `change`, which an earlier signal may still come upon.
fn reload_after(daemon: &Daemon, text: &str, change: impl FnOnce()) {
    let before = daemon.log().matches(text).count();
    change();
    daemon.signal(Signal::HUP);
    eventually(&format!("`{text}` is logged"), || {
        (daemon.log().matches(text).count() > before).then_some(())
    });
}

/// The events of a log with this message.
fn events(log: &str, message: &str) -> Vec<Value> {
    let parsed = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    parsed.filter(|event| event["message"] == message).collect()
}

/// Asks for a report, and waits for its last line, which holds `last`.
fn report(daemon: &Daemon, last: &str) -> String {
    let before = daemon.log().len();
    daemon.signal(Signal::USR1);
    eventually("the report", || {
        let log = daemon.log().split_off(before);
        (log.ends_with('\n') && log.contains(last)).then_some(log)
    })
}

fn check_whole(world: &World, count: usize) {
    let all = count as u64;
    assert_eq!(world.results("job").outcome(), ("completed".to_owned(), all, all, 0));
    assert_eq!(world.results("job").custom_ids(), sorted_ids(count));
    let ledger = world.ledger();
    assert_eq!((ledger.paid, ledger.paid_twice), (all, 0), "{ledger:?}");
}

#[test]
fn key_that_is_replaced_in_its_file_ends_the_pause_and_nothing_is_lost() {
    const NEXT: &str = "sk-canary-next-77ab01";
    let latency = Latency::fixed(Duration::from_millis(20));
    let server = Settings { auth: Auth::Key(KEY.into()), latency, ..Settings::default() };
    let world = World::with(&Setup { server, max_attempts: 1, ..Setup::default() });
    world.drop("job.jsonl", chat_lines(60));
    let daemon = world.start();
    world.wait_for_requests(10);
    world.let_in(NEXT);
    let listed = world.wait_for_status("job", "paused");
    assert_eq!(listed["reason"], "auth");

    // The file is not there for a moment: a problem, and no reason to forget the key.
    fs::rename(world.path("key"), world.path("old-key")).unwrap();
    reload(&daemon, "batchd.toml:11:16: error: the file");
    fs::write(world.path("key"), NEXT).unwrap();
    reload(&daemon, HOLDS);
    world.wait_for_status("job", "completed");
    let output = daemon.stop();
    assert_eq!(output.code, Some(0));
    assert!(output.stderr.contains(r#""keys":"[[providers]] `sim` api_key""#), "{}", output.stderr);
    assert_eq!(world.files_with(".", NEXT), ["key"]);
    check_whole(&world, 60);
    assert!(world.ledger().requests <= 60 + u64::from(CONCURRENCY) + 5, "{:?}", world.ledger());
}

#[test]
fn wrong_configuration_is_told_with_line_and_column_and_the_one_that_runs_stays() {
    let world = World::new();
    let daemon = world.start();
    let good = fs::read_to_string(world.config()).unwrap();
    configure(&world, |text| format!("rot = 1\n{}", text.replace("max_attempts = 6", "max_attempts = 0")));
    daemon.signal(Signal::HUP);
    let log = eventually("both problems", || {
        Some(daemon.log()).filter(|log| {
            log.contains("batchd.toml:1:1: error: unknown key `rot`")
                && log.contains("batchd.toml:19:16: error: `max_attempts`")
        })
    });
    assert!(log.contains("did you mean `root`?") && log.contains(r#""level":"ERROR""#), "{log}");

    let many: Vec<String> = (0..25).map(|n| format!("key{n} = 1\n")).collect();
    configure(&world, |_| many.concat() + &good);
    reload(&daemon, "and more problems of the configuration");
    assert_eq!(events(&daemon.log(), "and more problems of the configuration")[0]["more"], 5);
    configure(&world, |_| "root = [\n".to_owned());
    reload(&daemon, "the one that runs stays");

    world.drop("job.jsonl", chat_lines(20));
    world.wait_for_status("job", "completed");
    configure(&world, |_| good.clone());
    reload(&daemon, "nothing has changed");
    configure(&world, |text| {
        text.replace("format = \"json\"", "format = \"text\"").replace("\"root\"", "\"other\"")
    });
    reload(&daemon, "hold after a restart");
    let log = daemon.log();
    assert_eq!(
        events(&log, "these keys of the configuration hold after a restart")[0]["keys"],
        "[log] format, root"
    );
    assert_eq!(daemon.stop().code, Some(0));
    check_whole(&world, 20);
    assert!(!world.path("other").exists());
}

/// So many requests, of which so many times the limits change while they are sent.
fn reloaded_under_load(lines: usize, reloads: usize) {
    let latency = Latency::between(Duration::ZERO, Duration::from_millis(20));
    let world = World::with(&Setup {
        server: Settings { latency, ..Settings::default() },
        concurrency: 16,
        ..Setup::default()
    });
    world.drop("job.jsonl", chat_lines(lines));
    let daemon = world.start();
    let original = fs::read_to_string(world.config()).unwrap();
    let limits = "[providers.limits]\nconcurrency = 16\n";
    for round in 0..reloads {
        world.wait_for_requests((lines / (reloads + 2) * round) as u64 + 1);
        let slots = [32, 1, 64, 8, 24, 2, 48, 16][round % 8];
        let rate = [100_000, 60_000][round % 2];
        let changed = format!("[providers.limits]\nconcurrency = {slots}\nrequests_per_minute = {rate}\n");
        reload_after(&daemon, HOLDS, || configure(&world, |_| original.replace(limits, &changed)));
        // A wrong one, and two in a row of which nobody knows what they find.
        configure(&world, |text| text + "wrong");
        reload(&daemon, "the configuration is wrong");
        (0..2).for_each(|_| daemon.signal(Signal::HUP));
        configure(&world, |_| original.replace(limits, &changed));
    }
    let last = "[providers.limits]\nconcurrency = 64\n";
    reload_after(&daemon, HOLDS, || configure(&world, |_| original.replace(limits, last)));
    world.wait_for_status("job", "completed");
    let output = daemon.stop();
    assert_eq!(output.code, Some(0));
    check_whole(&world, lines);
    let ledger = world.ledger();
    assert_eq!((ledger.requests, ledger.paid), (lines as u64, lines as u64), "each was sent once");
    assert!((17..=64).contains(&ledger.max_in_flight), "{ledger:?}");
    let [good, wrong] = [HOLDS, "the configuration is wrong"].map(|said| output.stderr.matches(said).count());
    eprintln!("{lines} requests, each sent once; {good} reloads with other limits, {wrong} wrong ones");
}

#[test]
fn reloads_under_load_lose_nothing_and_repeat_nothing() {
    reloaded_under_load(1_500, 8);
}

#[test]
#[ignore = "takes a minute"]
fn reloaded_two_hundred_times_it_loses_nothing_and_repeats_nothing() {
    reloaded_under_load(20_000, 200);
}

#[test]
fn status_report_tells_of_all_of_each_job_and_of_each_queue() {
    let server = Settings { latency: Latency::fixed(Duration::from_mins(10)), ..Settings::default() };
    let provider = "concurrency = 100".to_owned();
    let world = World::with(&Setup { server, provider, grace: "0s", ..Setup::default() });
    world.drop("job.jsonl", chat_lines(30));
    for number in 0..22 {
        world.drop(&format!("small-{number}.jsonl"), chat_line("r", &format!("{number}")) + "\n");
    }
    let daemon = world.start();
    eventually("all jobs", || (world.list().len() == 23).then_some(()));
    world.wait_for_requests(CONCURRENCY.into());
    let log = report(&daemon, "status of a queue");
    let [all] = &events(&log, "status")[..] else { panic!("{log}") };
    assert_eq!((&all["jobs"], &all["settled"]), (&"in_progress 23".into(), &0.into()), "{all}");
    assert_eq!(all["in_flight"], CONCURRENCY);
    let jobs = events(&log, "status of a job");
    assert_eq!((jobs.len(), &events(&log, "and more jobs are open")[0]["more"]), (20, &3.into()), "{log}");
    assert!(jobs.iter().all(|job| job["status"] == "in_progress" && job["job"].is_string()), "{log}");
    assert!(jobs.iter().any(|job| job["name"] == "job" && job["total"] == 30), "{log}");
    let in_flight: u64 = jobs.iter().map(|job| job["in_flight"].as_u64().unwrap()).sum();
    assert!(
        (1..=u64::from(CONCURRENCY)).contains(&in_flight),
        "what is ready to be sent is not in flight: {log}"
    );
    let [queue] = &events(&log, "status of a queue")[..] else { panic!("{log}") };
    assert_eq!((&queue["queue"], &queue["concurrency"]), (&"sim/m".into(), &CONCURRENCY.into()), "{queue}");
    daemon.signal(Signal::TERM);
    daemon.insist();
}

#[test]
fn status_report_names_what_is_paused_and_a_disk_without_room() {
    let server = Settings { auth: Auth::Key("another".into()), ..Settings::default() };
    let world = World::with(&Setup { server, ..Setup::default() });
    world.drop("job.jsonl", chat_lines(9));
    let daemon = world.start();
    world.wait_for_status("job", "paused");
    // The others that were in flight are refused, too.
    let log = eventually("all refused", || {
        let log = report(&daemon, "status of a queue");
        (events(&log, "status of a queue")[0]["in_flight"] == 0).then_some(log)
    });
    let queue = &events(&log, "status of a queue")[0];
    assert_eq!(queue["paused"], "auth", "{queue}");
    assert!(queue["error"].as_str().unwrap().starts_with("401"), "{queue}");
    assert_eq!(events(&log, "status of a job")[0]["reason"], "auth");
    assert_eq!(daemon.stop().code, Some(0));

    // No disk of a test machine has so much free.
    configure(&world, |text| text.replace("min_free = \"0B\"", "min_free = \"1TiB\""));
    let daemon = world.start();
    let log = eventually("the shortage", || {
        let log = report(&daemon, r#""message":"status""#);
        events(&log, "status")[0]["disk"].is_string().then_some(log)
    });
    assert_eq!(events(&log, "status")[0]["jobs"], "paused 1", "{log}");
    reload(&daemon, "nothing has changed");
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn signals_during_a_start_and_a_drain_do_no_harm() {
    let server = Settings { latency: Latency::fixed(Duration::from_millis(100)), ..Settings::default() };
    let world = World::with(&Setup { server, ..Setup::default() });
    world.drop("job.jsonl", chat_lines(40));
    let daemon = world.start();
    world.wait_for_requests(10);
    daemon.kill();
    let repeats = u64::from(CONCURRENCY);

    let mut daemon = world.spawn(world.command(&["run"]));
    // From the moment on in which it listens.
    let status = format!("/proc/{}/status", daemon.id());
    eventually("it listens", || {
        let text = fs::read_to_string(&status).unwrap();
        let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        (u64::from_str_radix(caught.trim(), 16).unwrap() & 1 != 0).then_some(())
    });
    for _ in 0..3 {
        daemon.signal(Signal::HUP);
        daemon.signal(Signal::USR1);
    }
    daemon.wait_for_log("nothing has changed");
    daemon.wait_for_log(r#""message":"status""#);
    world.wait_for_requests(20);
    daemon.signal(Signal::TERM);
    daemon.wait_for_log("stopping: what is in flight may finish");
    for _ in 0..3 {
        daemon.signal(Signal::HUP);
        daemon.signal(Signal::USR1);
    }
    let output = daemon.wait();
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(!output.stderr.contains("abandoned"), "{}", output.stderr);

    world.answer_after(Duration::ZERO);
    world.run_to_success();
    assert_eq!(world.results("job").custom_ids(), sorted_ids(40));
    assert!(world.ledger().requests <= 40 + repeats, "{:?}", world.ledger());
}

#[test]
fn level_of_the_log_changes_with_a_reload() {
    let world = World::new();
    let daemon = world.start();
    configure(&world, |text| text.replace("level = \"info\"", "level = \"trace\""));
    reload(&daemon, "[log] level");
    world.drop("a.jsonl", chat_lines(3));
    world.wait_for_status("a", "completed");
    assert!(daemon.log().contains(r#""level":"TRACE""#));
    configure(&world, |text| text.replace("level = \"trace\"", "level = \"error\""));
    reload(&daemon, "[log] level");
    world.drop("b.jsonl", chat_lines(4));
    world.wait_for_status("b", "completed");
    // A line of the old level that was on its way may come behind; nothing that happened since does.
    let log = daemon.log();
    let (_, since) = log.rsplit_once("[log] level").unwrap();
    assert!(!since.contains("b.jsonl"), "only errors are told any more: {since}");
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn lines_that_go_to_the_journal_begin_with_their_priority() {
    for format in ["json", "text", "auto"] {
        let world = World::new();
        configure(&world, |text| {
            text.replace("format = \"json\"", &format!("format = \"{format}\""))
                .replace("\"info\"", "\"debug\"")
        });
        world.drop("bad.jsonl", "no JSON\n");
        // The process writes into this very file.
        let stderr = File::create(world.path("err-0")).unwrap().metadata().unwrap();
        let mut command = world.command(&["run", "--until-idle"]);
        command.env("JOURNAL_STREAM", format!("{}:{}", stderr.dev(), stderr.ino()));
        let output = world.run(command);
        assert_eq!(output.code, Some(0), "{output:?}");
        let priority = |line: &str| line.get(..3).map(str::to_owned);
        for line in output.stderr.lines() {
            let level = ["ERROR", "WARN", "INFO", "DEBUG"].into_iter().find(|level| line.contains(level));
            let expected = match level.unwrap() {
                "ERROR" => "<3>",
                "WARN" => "<4>",
                "INFO" => "<6>",
                _ => "<7>",
            };
            assert_eq!(priority(line).as_deref(), Some(expected), "{format}: {line}");
        }
        assert!(output.stderr.contains("<4>") && output.stderr.contains("<6>"), "{}", output.stderr);
        // The variable of somebody else's stderr says nothing.
        let mut command = world.command(&["run", "--until-idle"]);
        command.env("JOURNAL_STREAM", format!("{}:{}", stderr.dev(), stderr.ino()));
        let output = world.run(command);
        assert!(!output.stderr.contains("<6>"), "{}", output.stderr);
    }
}
