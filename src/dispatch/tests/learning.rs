//! What a queue learns of its server holds for the next dispatcher, and over restarts.

use std::path::Path;

use tokio::time::timeout;

use super::*;
use crate::control::{Control, Folders};
use crate::simulate::LimitsTold;

/// Refuses without a word beyond ten a second.
fn narrow() -> Server {
    let (requests_per_minute, limits_told) = (Some(600), LimitsTold::Hints);
    Server { requests_per_minute, limits_told, ..answering_in(100) }
}

/// How many were refused of `total` requests, by a daemon whose state is at `state`.
async fn refused(state: &Path, total: u32) -> usize {
    let mut world = World::new(1, narrow(), slots(64));
    world.fleet = world.fleet.map(|fleet| fleet.with_memory(state));
    let job = world.put(1, &["m"], total).await;
    world.finish(&job).await;
    world.assert_one_record_each(&job);
    world.server.entries().iter().filter(|entry| !entry.paid).count()
}

#[tokio::test(start_paused = true)]
async fn what_was_learnt_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let first = refused(dir.path(), 200).await;
    assert!(first > 10, "{first}");
    let second = refused(dir.path(), 50).await;
    assert!(second <= 2, "{second} of 50, after {first} of 200");
    std::fs::remove_file(dir.path().join("learnt.json")).unwrap();
    let third = refused(dir.path(), 50).await;
    assert!(third > 10, "{third}, with nothing known");
}

#[tokio::test(start_paused = true)]
async fn the_limits_in_force_are_shown() {
    let mut world = World::new(1, Server { limits_told: LimitsTold::Headers, ..narrow() }, slots(64));
    let job = world.put(1, &["m"], 100).await;
    let running = world.start();
    until_settled(&*world.store, job.id, 20).await;
    let report = world.live.queues().into_values().next().unwrap();
    assert_eq!((report.requests_per_minute, report.tokens_per_minute), (Some(600), None));
    let learnt = (report.learnt_requests_per_minute, report.learnt_tokens_per_minute);
    assert_eq!((learnt, report.held_until), ((Some(600), None), None));
    world.stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_asked_to_come_later_shows_until_when_nothing_is_sent() {
    let mut world = World::new(1, Server { requests_per_minute: Some(6), ..narrow() }, slots(4));
    let job = world.put(1, &["m"], 20).await;
    let running = world.start();
    let held_until = async || loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let until = world.live.queues().into_values().find_map(|queue| queue.held_until);
        let folders = Folders { jobs: "jobs".into(), results: "results".into() };
        let control = Control::new(world.store.clone(), world.board.clone(), world.clock.clone(), folders);
        let shown = control.show(&job.id.to_string()).await.unwrap();
        let Some(until) = until else {
            assert_eq!(shown.message, None);
            continue;
        };
        let left = until.saturating_duration_since(Instant::now());
        if left < Duration::from_secs(1) {
            continue;
        }
        let message =
            format!("the provider asked to come later; nothing is sent before {}", world.clock.now() + left);
        assert_eq!((shown.status.as_str(), shown.message), ("in_progress", Some(message)));
        return until;
    };
    let until = timeout(Duration::from_mins(10), held_until()).await.unwrap();
    let sent = world.server.summary().requests;
    sleep_until(until - Duration::from_millis(1)).await;
    assert_eq!(world.server.summary().requests, sent, "nothing is sent meanwhile");
    world.stop.cancel();
    running.await.unwrap().unwrap();
}
