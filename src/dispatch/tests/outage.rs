//! What an outage of a server, or a sick server, does to the jobs that use it.

use super::*;
use crate::simulate::Script;

/// A server to which `what` happens.
fn befallen(what: &str, at: &str, lasts: &str) -> Server {
    let text = format!("[[events]]\nat = \"{at}\"\nfor = \"{lasts}\"\nwhat = \"{what}\"\n");
    Server { script: Script::parse("outage.toml", &text).unwrap(), ..answering_in(100) }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_down_for_ten_minutes_fails_no_request_and_is_used_soon_after() {
    for what in ["down", "500", "502"] {
        let mut world = World::new(1, befallen(what, "1s", "10m"), slots(64));
        // One attempt is for what was in flight when it went down, one for a try, one for what comes of it.
        world.reload(|_, retry| *retry = RetryPolicy { max_attempts: 3, ..*retry });
        let job = world.put(1, &["a", "b"], 3_000).await;
        let started = Instant::now();
        let running = world.start();
        tokio::time::sleep(Duration::from_mins(5)).await;
        let pauses = world.board.pauses();
        assert_eq!(pauses.len(), 2, "{what}: both queues of the server");
        assert!(pauses.values().all(|pause| pause.reason == PauseReason::Outage), "{what}: {pauses:?}");
        until_settled(&*world.store, job.id, job.total).await;
        let took = started.elapsed();
        assert!(world.board.pauses().is_empty());
        world.stop.cancel();
        running.await.unwrap().unwrap();
        world.assert_one_record_each(&job);
        let counts = world.store.job(job.id).await.unwrap().counts;
        assert_eq!((counts.completed, counts.failed), (3_000, 0), "{what}");
        assert!(took < Duration::from_mins(12), "{what}: {took:?}");
        // What was in flight on both queues, a try a minute, and a few more at first.
        let summary = world.server.summary();
        assert!(summary.requests <= 3_000 + 2 * 64 + 20, "{what}: {summary:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_of_one_request_waits_for_a_server_that_nobody_can_reach() {
    let mut world = World::new(1, befallen("down", "0s", "2h"), slots(64));
    let job = world.put(1, &["m"], 1).await;
    let started = Instant::now();
    world.finish(&job).await;
    assert_eq!(world.store.job(job.id).await.unwrap().counts.completed, 1);
    assert!(started.elapsed() < Duration::from_mins(2 * 60 + 2), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_paid_for_counts_as_an_attempt_without_any_crash() {
    for fault in ["drop", "cut", "garbage", "empty"] {
        let mut world = World::new(1, sick(&format!("{fault}=1")), slots(1));
        let job = world.put(1, &["m"], 1).await;
        world.reload(|_, retry| *retry = RetryPolicy { max_attempts: 4, ..*retry });
        world.finish(&job).await;
        let counts = world.store.job(job.id).await.unwrap().counts;
        assert_eq!((counts.failed, world.server.summary().requests), (1, 4), "{fault}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sick_server_is_not_asked_much_more_for_it() {
    let mut world = World::new(1, sick("500=0.2"), slots(2));
    let job = world.put(1, &["m"], 3_000).await;
    let running = world.start();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let summary = world.server.summary();
    let state = world.store.job(job.id).await.unwrap();
    // Each request that has been sent at all is settled, waits or is on its way.
    let first = u64::from(state.counts.settled() + state.waiting + state.leased);
    let retries = summary.requests.saturating_sub(first);
    assert!(summary.requests > 1_900, "{summary:?}");
    let earned = summary.requests / 10 + 20 + 20;
    assert!((earned / 3..=earned + 10).contains(&retries), "{retries} retries, {earned} earned");
    assert_eq!(state.counts.failed, 0);
    world.stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn all_queues_of_a_refused_key_stop_together() {
    let server = Server { auth: Auth::Key("another".into()), ..answering_in(20) };
    let mut world = World::new(1, server, slots(8));
    let job = world.put(1, &["a", "b", "c"], 600).await;
    let running = world.start();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let asked = world.server.summary().requests;
    assert!(asked <= 3 * 8 + 5, "{asked}: what was in flight, and no queue has to find out for itself");
    tokio::time::sleep(Duration::from_mins(30)).await;
    let tries = world.server.summary().requests - asked;
    assert!((4..=6).contains(&tries), "{tries}: after 1, 3, 7, 15 and 31 minutes, one at a time");
    assert_eq!(world.board.pauses().len(), 3);
    assert_eq!(world.store.job(job.id).await.unwrap().counts.settled(), 0);
    world.stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_model_that_is_gone_is_waited_for_over_a_restart() {
    let mut world = World::new(1, befallen("model", "1s", "10m"), slots(8));
    let job = world.put(1, &["m"], 400).await;
    let running = world.start();
    tokio::time::sleep(Duration::from_secs(10)).await;
    world.stop.cancel();
    running.await.unwrap().unwrap();
    let before = world.store.job(job.id).await.unwrap();
    assert!(before.counts.completed > 0 && before.counts.open() > 0, "{before:?}");

    let settings = world.live.settings();
    let [ProviderSettings { sites, config }] = settings.providers.as_slice() else { unreachable!() };
    let providers = vec![ProviderSettings { sites: sites.clone(), config: config.clone() }];
    let settings = Settings { providers, retry: settings.retry, grace: settings.grace };
    let (store, board, clock) = (Arc::clone(&world.store), world.board.clone(), world.clock.clone());
    world.fleet = Some(Fleet::new(settings, store, board, clock, Seed::fixed(2)));
    world.stop = CancellationToken::new();
    world.finish(&job).await;
    let counts = world.store.job(job.id).await.unwrap().counts;
    assert_eq!((counts.completed, counts.failed), (400, 0));
}
