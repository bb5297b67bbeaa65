//! A sick server: everything that goes wrong now and then goes wrong at once, and every line still ends in one file.

use std::collections::BTreeSet;
use std::time::Duration;

use batchd::simulate::{Latency, Outcome, Settings};

use super::{BY_LIMITS, Seen, server, setup};
use crate::world::chat_line;

/// Shares of all requests.
const FAULTS: &str = "429=0.05,500=0.02,502=0.0034,503=0.0033,504=0.0033,reset=0.005,drop=0.005,cut=0.005,garbage=0.005,drip=0.002,408=0.001,409=0.001";
/// Half of the 429s say something about coming back, in every form that there is.
const HINTS: &str = "none,none,none,none,none,none,20ms,ms:20ms,ms:50ms,garbage,negative,ms:5ms";
/// One line in so many is none that the API takes.
const BAD_EVERY: usize = 100;

fn job(lines: usize) -> String {
    let line = |number: usize| {
        let line = chat_line(&format!("r-{number}"), &format!("question {number}"));
        if number % BAD_EVERY == 7 { line.replace("\"user\"", "\"wizard\"") } else { line }
    };
    (0..lines).map(|number| line(number) + "\n").collect()
}

fn chaos(lines: usize, concurrency: u32, hints: &str) {
    let server = Settings {
        latency: Latency::between(Duration::from_millis(5), Duration::from_millis(60)),
        slow: Duration::from_secs(2),
        faults: FAULTS.parse().unwrap(),
        hints: hints.parse().unwrap(),
        ..server()
    };
    let setup = setup(server, &format!("concurrency = {concurrency}"));
    let text = job(lines);
    let seen = Seen::of_job(&format!("chaos over {lines} lines"), &setup, &text, Duration::from_hours(1));
    seen.print();
    let per_line = seen.entries.len() as f64 / lines as f64;
    let mut refused = BTreeSet::new();
    let mut retried = 0;
    for entry in &seen.entries {
        let body = entry.fingerprint.map(|body| *body.as_bytes());
        retried += u64::from(refused.contains(&body));
        if matches!(entry.outcome, Outcome::Refused(name) if !BY_LIMITS.contains(&name)) {
            refused.insert(body);
        }
    }
    eprintln!(
        "upstream requests {per_line:.3} a line; refused for good {}, retried {retried}",
        refused.len()
    );
    let bad = (lines + BAD_EVERY - 8) / BAD_EVERY;
    assert_eq!(seen.counts, (lines as u64, (lines - bad) as u64, bad as u64));
    assert_eq!((refused.len(), retried), (bad, 0));
    seen.assert_lawful();
    assert!(per_line <= 1.12, "{per_line}");
}

#[test]
#[ignore = "takes some minutes"]
fn chaos_over_100_000_lines_ends_every_line_once() {
    chaos(100_000, 64, HINTS);
}

#[test]
#[ignore = "takes half a minute"]
fn chaos_over_5_000_lines_ends_every_line_once() {
    chaos(5_000, 64, "none,1s,ms:500ms,seconds:1s,date:2s,garbage,negative");
}
