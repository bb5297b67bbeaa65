//! Jobs beside each other in one queue: what a small, an urgent or a late one gets of it.

use super::*;

/// Enough to keep the queue full for as long as a test looks.
const HUGE: u32 = 1_500;

fn server() -> Server {
    let latency = Latency::between(Duration::from_millis(150), Duration::from_millis(250));
    Server { latency, ..Server::default() }
}

fn limits(concurrency: u32, requests_per_minute: Option<u32>) -> Limits {
    Limits { requests_per_minute, ..slots(concurrency) }
}

/// How long a job takes that is dropped when others have run for a while.
async fn time_of(limits: Limits, others: &[Job], job: Job) -> Duration {
    let mut world = World::new(u64::from(limits.concurrency == slots(32).concurrency), server(), limits);
    for other in others {
        world.put_job(other.clone()).await;
    }
    let running = world.start();
    tokio::time::sleep(Duration::from_millis(1_130)).await;
    let job = world.put_job(job).await;
    let dropped_at = Instant::now();
    until_settled(&*world.store, job.id, job.total).await;
    let took = Instant::now() - dropped_at;
    for other in others {
        assert!(world.store.job(other.id).await.unwrap().counts.open() > 0, "they were beside each other");
    }
    world.stop.cancel();
    running.await.unwrap().unwrap();
    took
}

fn job(number: u8, priority: u8, total: u32) -> Job {
    conformance::job(number, priority, &["m"], total)
}

#[tokio::test(start_paused = true)]
async fn a_small_job_beside_a_huge_one_takes_no_more_than_three_times_its_time_alone() {
    for limits in
        [limits(32, None), limits(64, None), limits(4, None), limits(64, Some(3_000)), limits(32, Some(600))]
    {
        let small = job(2, 5, 50);
        let alone = time_of(limits, &[], small.clone()).await;
        let beside = time_of(limits, &[job(1, 5, HUGE)], small).await;
        assert!(beside <= alone * 3, "{beside:?} beside a huge job, {alone:?} alone: {limits:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_of_priority_9_overtakes() {
    for limits in [limits(32, None), limits(4, None), limits(64, Some(3_000))] {
        let urgent = job(2, 9, 200);
        let alone = time_of(limits, &[], urgent.clone()).await;
        let beside = time_of(limits, &[job(1, 5, HUGE), job(3, 4, HUGE / 2)], urgent).await;
        assert!(beside <= alone * 3 / 2, "{beside:?} beside others, {alone:?} alone: {limits:?}");
    }
}

/// How many of the requests are those of a job.
fn count(asked: &[Entry], number: u8) -> usize {
    let begin = format!("{number}-");
    asked.iter().filter(|entry| entry.custom_id.as_ref().is_some_and(|id| id.starts_with(&begin))).count()
}

#[tokio::test(start_paused = true)]
async fn nothing_that_was_ready_stands_before_a_newcomer() {
    // All 64 slots are taken, and 64 requests are ready for them.
    let mut world = World::new(1, server(), slots(64));
    world.put(1, &["m"], HUGE).await;
    let running = world.start();
    for (number, priority, place) in [(2, 5, 2 * 50 + 16), (3, 9, 50 + 50 / 8)] {
        tokio::time::sleep(Duration::from_millis(930)).await;
        let job = world.put_job(job(number, priority, 50)).await;
        let before = world.server.entries().len();
        until_settled(&*world.store, job.id, job.total).await;
        let asked = &world.server.entries()[before..];
        assert!(count(&asked[..4], number) > 0, "the first of priority {priority}");
        assert_eq!(count(&asked[..place], number), 50, "all of priority {priority}");
    }
    world.stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn large_jobs_are_sent_by_their_weights_and_in_input_order() {
    let mut world = World::new(1, answering_in(100), slots(16));
    for job in [job(1, 5, 500), job(2, 6, 700), job(3, 5, 500)] {
        world.put_job(job).await;
    }
    let running = world.start();
    tokio::time::sleep(Duration::from_millis(5_050)).await;
    world.stop.cancel();
    running.await.unwrap().unwrap();
    let entries = world.server.entries();
    let got = [1, 2, 3].map(|number| count(&entries, number));
    assert!((800..=832).contains(&entries.len()), "{}", entries.len());
    for (got, due) in got.into_iter().zip([200_usize, 400, 200]) {
        assert!(got.abs_diff(due) <= 20, "{got}, not {due}");
    }
    let of_first = entries.iter().filter_map(|entry| entry.custom_id.as_deref()?.strip_prefix("1-"));
    assert!(of_first.map(|index| index.parse::<usize>().unwrap()).eq(0..got[0]));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_lags_behind_its_deadline_is_lifted_until_it_is_done_in_time() {
    for (deadline, is_in_time) in [(None, false), (Some(Duration::from_mins(1)), true)] {
        let mut world = World::new(1, answering_in(200), slots(4));
        for number in 1..=3 {
            world.put(number, &["m"], 500).await;
        }
        // Beside three others it would have 5 requests a second.
        let mut late = job(4, 5, 450);
        late.accepted_at = world.clock.now();
        late.settings.deadline = deadline;
        let late = world.put_job(late).await;
        let running = world.start();
        tokio::time::sleep(Duration::from_mins(1)).await;
        let open = world.store.job(late.id).await.unwrap().counts.open();
        assert_eq!(open == 0, is_in_time, "{open} are open");
        let entries = world.server.entries();
        let others = [1, 2, 3].map(|number| count(&entries, number));
        assert!(others.iter().all(|sent| *sent > 200), "the others go on: {others:?}");
        world.stop.cancel();
        running.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn retries_of_a_job_do_not_starve_another() {
    let server = Server { faults: "503=0.5".parse().unwrap(), ..answering_in(100) };
    let mut world = World::new(1, server, slots(8));
    world.put(1, &["m"], 2_000).await;
    let running = world.start();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let second = world.put(2, &["m"], 2_000).await;
    let before = world.server.entries().len();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let entries = world.server.entries();
    let got = [1, second.id.as_bytes()[0]].map(|number| count(&entries[before..], number));
    assert!(got[0].abs_diff(got[1]) <= 60, "{got:?}");
    world.stop.cancel();
    running.await.unwrap().unwrap();
}
