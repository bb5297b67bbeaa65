//! How runs are made: beside each other, one after the other, by a person, and when they can't be.

use std::path::Path;

use super::*;
use crate::domain::Kind;
use crate::domain::PauseReason;
use crate::intake::dir::Stamp;
use crate::intake::schedules::record::tests::record;
use crate::intake::schedules::{Kept, Plan, Schedules, Sight};
use crate::intake::{Refusal, Status};
use crate::schedule::{Calendar, Schedule};

const WAITS: JobStatus = JobStatus::Paused { reason: PauseReason::Overlap };

/// `NIGHTLY` with more in its `[schedule]`.
fn nightly(more: &str) -> String {
    format!("{NIGHTLY}{more}\n")
}

fn minutely(more: &str) -> String {
    nightly(more).replace("0 2 * * *", "* * * * *")
}

#[tokio::test(start_paused = true)]
async fn a_time_gets_no_run_while_one_is_at_work() {
    let intake = with(&[("a.toml", &minutely(""))]);
    intake.pass(MINUTE * 3 + MINUTE / 2).await;
    assert_eq!(intake.runs(), ["a-20300101T020000"]);
    intake.store.end("a-20300101T020000", JobStatus::Cancelled);
    intake.pass(MINUTE).await;
    assert_eq!(intake.runs(), ["a-20300101T020000", "a-20300101T020300"]);
}

#[tokio::test(start_paused = true)]
async fn a_run_waits_for_the_one_before_it_if_it_may() {
    let intake = with(&[("a.toml", &minutely("overlap = 'queue'"))]);
    intake.pass(MINUTE * 3 + MINUTE / 2).await;
    let names = ["a-20300101T020000", "a-20300101T020100", "a-20300101T020200"];
    assert_eq!(intake.runs(), names);
    let states = names.map(|name| intake.store.state_of(name));
    assert_eq!(states.clone().map(|state| state.status), [JobStatus::InProgress, WAITS, WAITS]);
    let after = states.clone().map(|state| state.job.run.unwrap().after);
    assert_eq!(after, [None, Some(states[0].job.id), Some(states[1].job.id)]);
}

#[tokio::test(start_paused = true)]
async fn every_time_that_comes_while_intake_is_busy_gets_its_run() {
    let intake = with(&[("often.toml", &minutely("overlap = 'queue'"))]);
    intake.pass(MINUTE / 2).await;
    tokio::time::advance(4 * MINUTE).await;
    intake.pass(MINUTE / 4).await;
    assert_eq!(intake.runs(), [0, 1, 2, 3].map(|minute| format!("often-20300101T020{minute}00")));
}

#[tokio::test(start_paused = true)]
async fn a_hundred_runs_wait_at_most() {
    let intake = with(&[("a.toml", &minutely("overlap = 'queue'"))]);
    intake.pass(MINUTE * 120).await;
    assert_eq!(intake.runs().len(), 101);
    intake.store.end("a-20300101T020000", JobStatus::Completed);
    intake.store.end("a-20300101T020100", JobStatus::Cancelled);
    intake.pass(MINUTE * 5).await;
    assert_eq!(intake.runs().len(), 102);
}

#[tokio::test(start_paused = true)]
async fn two_schedules_of_one_name_run_under_numbers() {
    let named = format!("name = 'both'\n{NIGHTLY}");
    let intake = with(&[("a.toml", &named), ("b.toml", &named)]);
    intake.pass(MINUTE * 2).await;
    assert_eq!(intake.runs(), ["both-20300101T020000", "both-20300101T020000-2"]);
    let refusal = intake.handle.run_schedule("both").await.unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "more than one schedule is called `both`: name the file of one, `a.toml`, `b.toml`"
    );
}

#[tokio::test(start_paused = true)]
async fn a_long_name_makes_room_for_the_time() {
    let long = "n".repeat(200);
    let intake = with(&[("a.toml", &format!("name = '{long}'\n{NIGHTLY}"))]);
    intake.pass(MINUTE * 2).await;
    assert_eq!(intake.runs(), [format!("{}-20300101T020000", "n".repeat(184))]);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_rejected_leaves_its_spec_and_the_schedule_goes_on() {
    let spec = NIGHTLY.replace("[[requests]]\nprompt = 'first'", "[input]\nfile = 'inputs/x.txt'");
    let intake = with(&[("nightly.toml", &spec)]);
    intake.pass(MINUTE * 2).await;
    let named = "nightly-20300101T020000.toml";
    assert_eq!(intake.root.rejected(), [named.to_owned(), format!("{named}.errors.txt")]);
    assert_eq!(fs::read_to_string(intake.file(&format!("rejected/{named}"))).unwrap(), spec);
    let report = fs::read_to_string(intake.file(&format!("rejected/{named}.errors.txt"))).unwrap();
    assert!(report.starts_with("nightly.toml:4:8: error: `file`: there is no file"), "{report}");
    assert_eq!(intake.root.waiting(), ["nightly.toml"]);
    assert!(intake.root.job_folders().is_empty());
    let refusal = intake.handle.run_schedule("nightly").await.unwrap_err();
    assert!(refusal.to_string().contains("there is no file"), "{refusal}");

    intake.root.drop_file("inputs/x.txt", "row\n");
    intake.pass(DAY).await;
    assert_eq!(intake.runs(), ["nightly-20300102T020000"]);
}

#[tokio::test(start_paused = true)]
async fn a_run_waits_until_its_data_are_whole() {
    let spec = NIGHTLY.replace("[[requests]]\nprompt = 'first'", "[input]\nfile = 'inputs/x.txt'");
    let intake = with(&[("nightly.toml", &spec)]);
    let data = intake.root.drop_file("inputs/x.txt", "row\n");
    let touch = |at: Timestamp| {
        let millis = i64::try_from(at.as_millis()).unwrap();
        let (tv_sec, tv_nsec) = (millis / 1000, millis % 1000 * 1_000_000);
        let time = rustix::fs::Timespec { tv_sec, tv_nsec };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, &data, &times, rustix::fs::AtFlags::empty()).unwrap();
    };
    intake.pass(Duration::from_millis(59_900)).await;
    for _ in 0..20 {
        touch(intake.clock.now());
        intake.pass(Duration::from_millis(900)).await;
    }
    assert!(intake.runs().is_empty() && intake.root.rejected().is_empty());
    assert!(matches!(intake.handle.run_schedule("nightly").await, Err(Refusal::Unsettled { .. })));
    intake.pass(MINUTE).await;
    assert_eq!(intake.runs(), ["nightly-20300101T020000"]);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_meets_a_full_disk_is_made_when_there_is_room() {
    let intake = with(&[("nightly.toml", NIGHTLY)]);
    intake.pass(MINUTE / 2).await;
    *intake.store.full.lock().unwrap() = true;
    intake.pass(MINUTE).await;
    let status = intake.handle.status();
    assert_eq!((status.blocked, status.is_idle()), (1, true), "{status:?}");
    assert!(status.trouble.unwrap().contains("must stay free"));
    assert!(intake.runs().is_empty() && intake.root.rejected().is_empty());
    let before = intake.handle.status().looks;
    intake.pass(MINUTE * 10).await;
    let looks = intake.handle.status().looks - before;
    assert!(looks <= 130, "{looks} looks: it does not spin");
    *intake.store.full.lock().unwrap() = false;
    let is_well = |status: &Status| status.blocked == 0 && status.trouble.is_none();
    intake.handle.until(is_well).await;
    assert_eq!(intake.runs(), ["nightly-20300101T020000"]);
    assert_eq!(intake.root.job_folders().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_the_store_has_is_not_made_again_whatever_fails_behind_it() {
    let intake = with(&[("nightly.toml", &nightly("overlap = 'queue'"))]);
    *intake.store.keeps_claims.lock().unwrap() = true;
    intake.pass(MINUTE * 10).await;
    assert_eq!(intake.runs(), ["nightly-20300101T020000"]);
    assert!(intake.handle.status().trouble.is_some(), "what is left is tried to be removed");
    intake.handle.run_schedule("nightly").await.unwrap();
    assert_eq!(intake.runs().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_person_can_have_a_run_at_any_time() {
    let intake = with(&[("nightly.toml", NIGHTLY)]);
    intake.idle().await;
    let by_name = intake.handle.run_schedule("nightly").await.unwrap();
    let by_file = intake.handle.run_schedule("nightly.toml").await.unwrap();
    let jobs = intake.store.accepted();
    let of = |id| jobs.iter().find(|job| job.id == id).unwrap();
    assert!(of(by_name).name.as_str().starts_with("nightly-20300101T0159"));
    let run = of(by_file).run.clone().unwrap();
    assert_eq!((run.spec.as_str(), run.due, run.after), ("nightly.toml", None, None));
    let unknown = intake.handle.run_schedule("weekly").await;
    assert_eq!(unknown, Err(Refusal::Unknown("weekly".to_owned())));
    intake.end_all();
    intake.pass(MINUTE * 2).await;
    assert!(intake.runs().contains(&"nightly-20300101T020000".to_owned()), "its times go on");
    let (handle, (_, ended)) = (intake.handle.clone(), intake.end().await);
    ended.unwrap();
    assert_eq!(handle.run_schedule("nightly").await, Err(Refusal::Stopping));
}

#[tokio::test(start_paused = true)]
async fn specs_that_wait_for_a_fine_tune_do_not_wait_for_schedules() {
    let user = "kind = 'completions'\nmodel = 'job:nobody'\n[[requests]]\nprompt = 'x'\n";
    let intake = with(&[("nightly.toml", NIGHTLY), ("user.toml", user)]);
    intake.pass(MINUTE / 2).await;
    assert_eq!(intake.root.rejected(), ["user.toml", "user.toml.errors.txt"]);
}

/// Those late in the alphabet waited until none before them was due.
#[test]
fn who_has_waited_longest_is_fired_first() {
    let mut schedules = Schedules::new(Path::new("nowhere"));
    let calendar = Calendar::parse("* * * * * *", chrono_tz::UTC).unwrap();
    let (catch_up, overlap, jitter) = Default::default();
    let schedule = Schedule { calendar, catch_up, overlap, jitter };
    let plan = Plan { name: "a".parse().unwrap(), kind: Kind::Chat, schedule };
    for (file, next) in [("a", Some(5)), ("b", Some(3)), ("c", Some(9)), ("d", None), ("e", Some(3))] {
        let mut kept = Kept::new(record(file), EVE);
        kept.sight = Sight::Read(Stamp::NONE);
        kept.plan = Some(plan.clone());
        kept.next = next.map(Timestamp::from_millis);
        schedules.kept.insert(file.to_owned(), kept);
    }
    let at = Timestamp::from_millis;
    assert_eq!(schedules.due(at(8)), ["d", "b", "e", "a"], "what was never looked at comes at once");
    assert!(schedules.is_behind(at(8)));
    schedules.kept.remove("d");
    assert!(schedules.due(at(2)).is_empty() && !schedules.is_behind(at(2)));
}
