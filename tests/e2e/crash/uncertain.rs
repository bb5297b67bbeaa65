//! What becomes of requests that were in flight at a crash, by the policy of their job.

use std::time::Duration;

use batchd::domain::OnUncertain;
use batchd::simulate::{Latency, Settings};

use super::ordeal::{Ordeal, Trial};
use crate::world::{Setup, World, chat_body, chat_line, eventually};

#[test]
fn job_that_fails_uncertain_requests_pays_for_nothing_twice() {
    let latency = Latency::fixed(Duration::from_millis(25));
    let mut ordeal = Ordeal::new(&Trial { latency, faults: "", ..Trial::new(7) });
    ordeal.drop_toml("job", 150, OnUncertain::Fail);
    for _ in 0..5 {
        let before = ordeal.world.ledger().requests;
        let daemon = ordeal.start(None);
        eventually("answers are on their way", || {
            (ordeal.world.ledger().requests > before + 5 && ordeal.world.engine().in_flight() > 0)
                .then_some(())
        });
        ordeal.kill(daemon);
    }
    let report = ordeal.finish();
    assert_eq!((report.repeats(), report.payments_max), (0, 1));
    assert!(report.uncertain > 0, "some were in flight");
}

#[test]
fn job_that_holds_uncertain_requests_pays_for_nothing_twice_until_a_person_decides() {
    let latency = Latency::fixed(Duration::from_millis(50));
    let server = Settings { latency, ..Settings::default() };
    let world = World::with(&Setup { server, ..Setup::default() });
    let rows: Vec<String> = (0..40).map(|n| format!("row {n}\n")).collect();
    world.input("rows.txt", rows.concat());
    world.drop(
        "job.toml",
        "kind = 'completions'\nmodel = 'm'\non_uncertain = 'hold'\n[input]\nfile = 'inputs/rows.txt'\n",
    );
    let daemon = world.start();
    world.wait_for_requests(10);
    daemon.kill();
    let sent = world.ledger().requests;

    // Neither another kill nor another start sends anything.
    for _ in 0..3 {
        let daemon = world.start();
        world.wait_for_status("job", "held");
        daemon.kill();
    }
    let output = world.run_until_idle();
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("may have been paid for; `batchd retry` sends them again"), "{output:?}");
    let ledger = world.ledger();
    assert_eq!((ledger.requests, ledger.paid_twice), (sent, 0));

    let daemon = world.start();
    let decided = world.batchd(&["retry", "job"]);
    assert_eq!(decided.code, Some(0), "{decided:?}");
    world.wait_for_status("job", "completed");
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!(world.results("job").outcome(), ("completed".to_owned(), 40, 40, 0));
    let ledger = world.ledger();
    assert!(ledger.paid_again <= 4, "only what was in flight: {ledger:?}");
}

#[test]
fn request_that_is_uncertain_twice_is_not_sent_a_third_time() {
    let server = Settings { latency: Latency::fixed(Duration::from_mins(10)), ..Settings::default() };
    let world = World::with(&Setup { server, ..Setup::default() });
    world.drop("job.jsonl", chat_line("poison", "x"));
    for sent in 1..=2 {
        let daemon = world.start();
        eventually("it is in flight", || (world.sent(&chat_body("x")) == sent).then_some(()));
        daemon.kill();
    }
    world.answer_after(Duration::ZERO);
    let output = world.run_until_idle();
    assert_eq!(output.code, Some(1), "{output:?}");
    let results = world.results("job");
    assert_eq!(results.outcome(), ("completed".to_owned(), 1, 0, 1));
    let errors = results.errors();
    assert_eq!(
        (&errors[0]["custom_id"], &errors[0]["error"]["code"]),
        (&"poison".into(), &"uncertain".into())
    );
    assert_eq!(results.summary()["maybe_paid_twice"], 1);
    assert_eq!((world.sent(&chat_body("x")), world.ledger().requests), (2, 2));
}
