//! Starts: whatever the one before was at when it died, and however long nobody ran.

use super::*;
use crate::domain::PauseReason;
use crate::intake::schedules::record::{Record, Shelf};
use crate::store::Store;

fn once() -> String {
    format!("{NIGHTLY}catch_up = 'once'\n")
}

/// What a start finds of the schedule's record, changed.
fn change(root: &Root, change: impl FnOnce(&mut Record)) {
    let shelf = Shelf::below(&root.settings.state);
    let mut record = shelf.load().unwrap().remove(0);
    change(&mut record);
    shelf.write(&record).unwrap();
}

#[tokio::test(start_paused = true)]
async fn times_that_passed_meanwhile_are_made_up_for_by_the_last_of_them_or_not_at_all() {
    for (spec, expected) in [(NIGHTLY.to_owned(), None), (once(), Some("nightly-20300103T020000"))] {
        let intake = with(&[("nightly.toml", &spec)]);
        intake.idle().await;
        let intake = again(intake.die().await, EVE + DAY * 2 + MINUTE * 30);
        intake.pass(MINUTE * 5).await;
        assert_eq!(intake.runs(), Vec::from_iter(expected.map(str::to_owned)));
        intake.end_all();
        intake.pass(DAY).await;
        assert_eq!(intake.runs().last().unwrap(), "nightly-20300104T020000");
        assert_eq!(intake.runs().len(), 1 + usize::from(expected.is_some()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_right_after_a_start_is_not_missed() {
    let intake = with(&[("nightly.toml", NIGHTLY)]);
    intake.idle().await;
    // Its file has not come to rest yet when the time comes.
    let intake = again(intake.die().await, EVE + Duration::from_millis(59_500));
    intake.pass(MINUTE).await;
    assert_eq!(intake.runs(), ["nightly-20300101T020000"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_changed_while_nobody_ran_is_judged_as_it_is_found() {
    let later = once().replace("0 2", "5 2");
    for (edited, expected) in [(once().replace("first", "second"), 1), (later, 0)] {
        let intake = with(&[("nightly.toml", &once())]);
        intake.idle().await;
        let left = intake.die().await;
        left.0.drop_file("nightly.toml", &edited);
        let intake = again(left, EVE + MINUTE * 30);
        intake.pass(MINUTE * 5).await;
        assert_eq!(intake.runs().len(), expected, "times of another schedule are not made up for");
    }
}

#[tokio::test(start_paused = true)]
async fn a_schedule_that_was_taken_away_while_nobody_ran_is_over() {
    let intake = with(&[("nightly.toml", &once())]);
    intake.idle().await;
    let left = intake.die().await;
    fs::remove_file(left.0.settings.jobs.join("nightly.toml")).unwrap();
    let intake = again(left, EVE + DAY);
    intake.pass(MINUTE * 15).await;
    assert!(intake.runs().is_empty() && kept(&intake.root).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_run_that_the_store_has_is_not_made_again() {
    let intake = with(&[("nightly.toml", &once())]);
    intake.pass(MINUTE * 2).await;
    intake.end_all();
    let left = intake.die().await;
    // It died before it could write down that the run was made, or even that it was to be made.
    for due in [Some(EVE + MINUTE), None] {
        change(&left.0, |record| {
            record.due = due;
            record.last = due.unwrap_or(EVE);
        });
        let left =
            (Root { temp: tempfile::tempdir().unwrap(), settings: left.0.settings.clone() }, left.1.clone());
        let intake = again(left, EVE + MINUTE * 5);
        intake.pass(MINUTE * 5).await;
        assert_eq!(intake.runs(), ["nightly-20300101T020000"]);
        intake.die().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_was_to_be_made_is_made_though_missed_times_are_not() {
    let intake = with(&[("nightly.toml", NIGHTLY)]);
    intake.idle().await;
    let left = intake.die().await;
    change(&left.0, |record| {
        record.due = Some(EVE + MINUTE);
        record.last = EVE + MINUTE;
    });
    let intake = again(left, EVE + MINUTE * 5);
    intake.pass(MINUTE * 5).await;
    assert_eq!(intake.runs(), ["nightly-20300101T020000"]);
    intake.end_all();
    let intake = again(intake.die().await, EVE + MINUTE * 20);
    intake.pass(MINUTE * 5).await;
    assert_eq!(intake.runs().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_damaged_lets_the_schedule_begin_anew() {
    let intake = with(&[("nightly.toml", &once())]);
    intake.idle().await;
    let left = intake.die().await;
    fs::write(left.0.settings.state.join("schedules/nightly.toml.json"), "{").unwrap();
    let intake = again(left, EVE + MINUTE * 5);
    intake.pass(MINUTE * 5).await;
    assert!(intake.runs().is_empty(), "nobody knows what was decided");
    intake.pass(DAY).await;
    assert_eq!(intake.runs(), ["nightly-20300102T020000"]);
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_refuses_the_kept_version_is_told_and_can_be_mended() {
    let intake = with(&[("nightly.toml", &format!("provider = 'p'\n{NIGHTLY}"))]);
    intake.idle().await;
    let (mut root, store) = intake.die().await;
    root.settings.spec.providers[0].name = "q".to_owned();
    let intake = again((root, store), EVE);
    intake.pass(MINUTE * 2).await;
    assert!(intake.runs().is_empty());
    let status = intake.handle.schedules()[0].clone();
    assert!(status.plan.is_none() && status.problem.is_some(), "{status:?}");
    assert!(matches!(
        intake.handle.run_schedule("nightly.toml").await,
        Err(crate::intake::Refusal::Broken { .. })
    ));
    let (mut root, store) = intake.die().await;
    root.settings.spec.providers[0].name = "p".to_owned();
    let intake = again((root, store), EVE + DAY);
    intake.pass(MINUTE * 2).await;
    assert_eq!(intake.runs(), ["nightly-20300102T020000"]);
    assert!(intake.root.rejected().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_run_waits_for_no_other_than_those_before_it_though_the_clock_was_put_back() {
    let spec = format!("{NIGHTLY}overlap = 'queue'\n");
    let root = root();
    root.drop_file("nightly.toml", &spec);
    let store = FakeStore::new(&root);
    let intake = Running::scheduling(root, store, EVE + MINUTE * 180);
    intake.idle().await;
    intake.handle.run_schedule("nightly").await.unwrap();
    let first = intake.runs().remove(0);
    let left = intake.die().await;
    // With other times, since those up to the false one have been decided about.
    left.0.drop_file("nightly.toml", &spec.replace("0 2", "1,2 2"));
    let intake = again(left, EVE);
    intake.pass(MINUTE * 5).await;
    let names = ["nightly-20300101T020100", "nightly-20300101T020200"];
    for (number, name) in names.into_iter().enumerate() {
        let ended = if number == 0 { first.as_str() } else { names[0] };
        let job = intake.run(name);
        assert_eq!(job.must_wait(&intake.store.jobs().await.unwrap()), Some(PauseReason::Overlap), "{name}");
        intake.store.end(ended, JobStatus::Completed);
        assert_eq!(job.must_wait(&intake.store.jobs().await.unwrap()), None, "{name}");
    }
}
