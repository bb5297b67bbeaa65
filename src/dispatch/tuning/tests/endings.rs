//! What a cancellation or a deadline makes of a fine-tune.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_cancelled_fine_tune_is_ended_at_the_provider_before_it_is_recorded() {
    for (api, status, code) in [
        (TuningApi::Jobs, JobStatus::Cancelling, "cancelled"),
        (TuningApi::Legacy, JobStatus::Cancelling, "cancelled"),
        (TuningApi::Jobs, JobStatus::Expiring, "expired"),
    ] {
        let mut world = World::new(Server { fine_tune_time: Duration::from_hours(9), ..server() });
        let job = world.put(1, &plan(api)).await;
        world.start();
        sleep(Duration::from_hours(1)).await;
        world.set(&job, status).await;
        let asked = Instant::now();
        until_settled(&*world.store, job.id, 1).await;
        assert!(asked.elapsed() < Duration::from_secs(5), "the next poll was not waited for");
        let told = world.told(&job);
        assert_eq!((told.code(), &told.object()["status"]), (code, &json!("cancelled")), "{told:?}");
        assert_eq!((world.done(Act::Create), world.done(Act::Cancel)), (1, 1));
        world.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_ends_before_anything_runs_creates_nothing_any_more() {
    let mut world = World::new(Server { file_processing_time: Duration::from_mins(1), ..server() });
    let plan = plan(TuningApi::Jobs);
    let job = world.put(1, &plan).await;
    world.start();
    sleep(Duration::from_secs(20)).await;
    world.set(&job, JobStatus::Cancelling).await;
    until_settled(&*world.store, job.id, 1).await;
    world.end().await;
    let told = world.told(&job);
    assert_eq!((told.code(), told.record["response"].is_null()), ("cancelled", true), "{told:?}");
    assert_eq!((world.done(Act::Upload), world.done(Act::Create)), (1, 0));
    assert_eq!(world.memo(&job, &plan).await.uploads(&plan).count(), 1, "it can be deleted");
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_between_creation_and_reply_finds_the_job_and_ends_it() {
    // The reply to the creation comes after the grace.
    let mishaps = Mishaps::new([(Act::Create, Fault::Slow)]);
    let slow = Duration::from_mins(50);
    let mut world = World::new(Server { mishaps, slow, fine_tune_time: Duration::from_hours(9), ..server() });
    let job = world.put(1, &plan(TuningApi::Jobs)).await;
    world.start();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(world.done(Act::Create), 1);
    world.set(&job, JobStatus::Cancelling).await;
    until_settled(&*world.store, job.id, 1).await;
    world.end().await;
    assert_eq!(world.told(&job).code(), "cancelled");
    assert_eq!((world.done(Act::Create), world.done(Act::Cancel)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_cannot_be_reached_is_asked_to_cancel_until_it_is() {
    let mut world = World::new(Server { fine_tune_time: Duration::from_hours(9), ..server() });
    let job = world.put(1, &plan(TuningApi::Jobs)).await;
    world.start();
    sleep(Duration::from_mins(1)).await;
    world.twist(|_| Some(refusal(503, "away")));
    world.set(&job, JobStatus::Cancelling).await;
    sleep(Duration::from_hours(1)).await;
    assert_eq!(world.store.job(job.id).await.unwrap().counts.open(), 1);
    world.twist(|_| None);
    until_settled(&*world.store, job.id, 1).await;
    assert_eq!((world.told(&job).code(), world.done(Act::Cancel)), ("cancelled", 1));
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_does_not_end_what_it_was_asked_to_is_asked_again() {
    let mut world = World::new(Server { fine_tune_time: Duration::from_hours(9), ..server() });
    let job = world.put(1, &plan(TuningApi::Jobs)).await;
    world.start();
    sleep(Duration::from_mins(10)).await;
    let mut is_deaf = true;
    world.twist(move |request| {
        let is_ignored = request.url.path().ends_with("/cancel") && std::mem::take(&mut is_deaf);
        is_ignored.then(|| refusal(400, "not now"))
    });
    world.set(&job, JobStatus::Cancelling).await;
    let asked = Instant::now();
    until_settled(&*world.store, job.id, 1).await;
    assert!(asked.elapsed() < Duration::from_mins(3), "{:?}", asked.elapsed());
    assert_eq!((world.told(&job).code(), world.done(Act::Cancel)), ("cancelled", 1));
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_while_it_is_asked_how_it_stands_does_not_wait_for_the_next_poll() {
    let slow = Latency::fixed(Duration::from_secs(5));
    let mut world = World::new(Server { latency: slow, fine_tune_time: Duration::from_hours(9), ..server() });
    let job = world.put(1, &plan(TuningApi::Jobs)).await;
    world.start();
    sleep(Duration::from_hours(1)).await;
    while world.store.job(job.id).await.unwrap().leased == 0 {
        sleep(Duration::from_secs(1)).await;
    }
    world.set(&job, JobStatus::Cancelling).await;
    let asked = Instant::now();
    until_settled(&*world.store, job.id, 1).await;
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_success_that_comes_before_the_cancellation_is_one() {
    let mut world = World::new(server());
    let job = world.put(1, &plan(TuningApi::Jobs)).await;
    world.start();
    while world.done(Act::Create) == 0 {
        sleep(Duration::from_millis(100)).await;
    }
    // It is paused while it ends, and cancelled after that.
    world.set(&job, JobStatus::Paused { reason: PauseReason::User }).await;
    sleep(Duration::from_mins(1)).await;
    world.set(&job, JobStatus::Cancelling).await;
    until_settled(&*world.store, job.id, 1).await;
    world.end().await;
    assert!(world.told(&job).is_success);
    assert_eq!(world.done(Act::Cancel), 0);
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_does_not_wait_for_a_provider_that_refuses_the_key() {
    // Nothing is there yet; and then something runs, and the key is good again before the gate would have tried it.
    for runs in [false, true] {
        let world = Server { fine_tune_time: Duration::from_hours(9), ..server() };
        let mut world = World::new(world);
        let job = world.put(1, &plan(TuningApi::Jobs)).await;
        let shut = |_: &HttpRequest| Some(refusal(401, "Incorrect API key provided."));
        if !runs {
            world.twist(shut);
        }
        world.start();
        sleep(Duration::from_mins(1)).await;
        world.twist(shut);
        sleep(Duration::from_hours(2)).await;
        assert_eq!(world.board.pauses().len(), 1);
        if runs {
            world.twist(|_| None);
        }
        let asked = (Instant::now(), world.asked(""));
        world.set(&job, JobStatus::Cancelling).await;
        until_settled(&*world.store, job.id, 1).await;
        assert!(asked.0.elapsed() < Duration::from_secs(5), "{:?}", asked.0.elapsed());
        assert_eq!(world.told(&job).code(), "cancelled");
        assert_eq!(
            (world.done(Act::Cancel), world.asked("") - asked.1),
            (u64::from(runs), usize::from(runs))
        );
        world.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_job_that_is_known_by_its_model_is_found_by_the_models_real_name() {
    let mishaps = Mishaps::new([(Act::Create, Fault::Slow)]);
    let slow = Duration::from_mins(50);
    let mut world = World::new(Server { mishaps, slow, fine_tune_time: Duration::from_hours(9), ..server() });
    let training = TuningData::Uploaded { id: upload(&world, TuningApi::Legacy) };
    let mut plan = FineTune { training, ..plan(TuningApi::Legacy) };
    plan.body.insert("model".to_owned(), "job:tuned".into());
    let models = [("tuned".to_owned(), TunedModel::Named("curie".to_owned()))].into();
    let mut job = conformance::job(1, 5, &["m"], 1);
    (job.kind, job.queues) = (Kind::FineTune, vec![QueueName::new("p", None)]);
    job.settings.models = models;
    let line = Bytes::from(serde_json::to_vec(&plan).unwrap());
    world.store.put_job(job.clone(), Input::Inline(vec![(0, line)])).await.unwrap();
    world.start();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(world.done(Act::Create), 1);
    world.set(&job, JobStatus::Cancelling).await;
    until_settled(&*world.store, job.id, 1).await;
    world.end().await;
    assert_eq!((world.told(&job).code(), world.done(Act::Cancel)), ("cancelled", 1));
}
