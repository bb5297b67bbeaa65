//! Jobs that use the model of a fine-tune.

use super::*;

/// Puts a chat job that uses the model of `maker`.
async fn put_user(world: &World, maker: &Job, requests: u32) -> Job {
    let models = [("tuned".to_owned(), TunedModel::Of(maker.id))].into();
    let job = conformance::job(2, 5, &["job:tuned"], requests);
    let job = Job { settings: JobSettings { models, ..job.settings.clone() }, ..job };
    let line = |n: u32| {
        let body = r#"{"model":"job:tuned","messages":[{"role":"user","content":"hi"}]}"#;
        let line =
            format!(r#"{{"custom_id":"{n}","method":"POST","url":"/v1/chat/completions","body":{body}}}"#);
        (0, Bytes::from(line))
    };
    world.store.put_job(job.clone(), Input::Inline((0..requests).map(line).collect())).await.unwrap();
    job
}

#[tokio::test(start_paused = true)]
async fn a_job_that_uses_a_fine_tunes_model_asks_for_it_by_its_real_name_and_limits() {
    let mut world = World::new(Server { latency: Latency::fixed(Duration::from_millis(500)), ..server() });
    let maker = world.put(1, &plan(TuningApi::Jobs)).await;
    let user = put_user(&world, &maker, 10).await;
    let waiting = JobStatus::Paused { reason: PauseReason::FineTune };
    assert_eq!(world.store.job(user.id).await.unwrap().status, waiting);
    world.start();
    // Somebody can't wait: it is put back.
    world.set(&user, JobStatus::InProgress).await;
    sleep(Duration::from_secs(1)).await;
    let state = world.store.job(user.id).await.unwrap();
    assert_eq!((state.status, state.leased, state.counts.open()), (waiting, 0, 10));

    until_settled(&*world.store, maker.id, 1).await;
    let model = world.told(&maker).object()["fine_tuned_model"].as_str().unwrap().to_owned();
    world.set(&user, JobStatus::InProgress).await;
    let bodies: Arc<Mutex<Vec<Bytes>>> = Arc::default();
    let seen = Arc::clone(&bodies);
    world.twist(move |request| {
        seen.lock().unwrap().push(request.body.to_bytes().unwrap());
        None
    });
    until_settled(&*world.store, user.id, 10).await;
    world.end().await;
    let expected = format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"hi"}}]}}"#);
    assert_eq!(*bodies.lock().unwrap(), vec![Bytes::from(expected); 10]);
    assert_eq!(world.store.job(user.id).await.unwrap().counts.completed, 10);
    assert_eq!(world.server.summary().max_in_flight, 2, "the limits are those of `ft:*`");
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_fine_tune_failed_tells_why_with_every_request() {
    let mut world = World::new(Server { fate: Some(Fate::Fail), ..server() });
    let maker = world.put(1, &plan(TuningApi::Jobs)).await;
    let user = put_user(&world, &maker, 3).await;
    world.start();
    until_settled(&*world.store, maker.id, 1).await;
    let why = world.told(&maker).message().to_owned();
    world.set(&user, JobStatus::InProgress).await;
    until_settled(&*world.store, user.id, 3).await;
    world.end().await;
    let mut text = String::new();
    world.store.journal(user.id).unwrap().read_to_string(&mut text).unwrap();
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 3);
    for record in &records {
        assert_eq!(record["error"]["code"], "fine_tune_failed", "{record}");
        let message = record["error"]["message"].as_str().unwrap();
        assert!(message.contains("`tuned`") && message.contains(&why), "{message}");
    }
    assert!(world.server.entries().iter().all(|entry| !entry.paid));
}
