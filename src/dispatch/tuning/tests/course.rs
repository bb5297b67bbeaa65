//! From data to model: steps, polls, patience and refusals.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_fine_tune_goes_from_its_data_to_its_model_over_both_interfaces() {
    for api in TuningApi::ALL {
        let mut world = World::new(server());
        let plan = FineTune { validation: Some(local(api, "validation")), ..plan(api) };
        let started = Instant::now();
        let told = world.finish(&plan).await;
        assert!(told.is_success, "{told:?}");
        assert_eq!(
            (&told.object()["status"], &told.record["custom_id"]),
            (&json!("succeeded"), &json!("support"))
        );
        assert!(told.object()["fine_tuned_model"].is_string(), "{told:?}");
        assert_eq!((world.done(Act::Upload), world.done(Act::Create), world.done(Act::Cancel)), (2, 1, 0));
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        let polls = world.asked(&format!("GET /v1{}/", api.path()));
        assert!((4..=10).contains(&polls), "{polls} polls of a job of 4 s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_fine_tune_is_polled_ever_more_seldom_and_holds_no_slot() {
    let mut world = World::new(Server { fine_tune_time: Duration::from_hours(5), ..server() });
    let job = world.put(1, &plan(TuningApi::Jobs)).await;
    world.start();
    sleep(Duration::from_hours(4)).await;
    let state = world.store.job(job.id).await.unwrap();
    assert_eq!((state.leased, state.waiting, state.counts.settled()), (0, 1, 0));
    until_settled(&*world.store, job.id, 1).await;
    world.end().await;
    let polls = world.asked("GET /v1/fine_tuning/jobs/");
    assert!((300..=420).contains(&polls), "{polls} polls in five hours");
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_the_step_in_flight_and_begins_no_other() {
    let latency = Latency::fixed(Duration::from_secs(4));
    let mut world = World::new(Server { latency, ..server() });
    let job = world.put(1, &plan(TuningApi::Jobs)).await;
    world.start();
    sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    world.end().await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!((world.asked("POST"), world.asked("GET")), (1, 0));
    world.start();
    until_settled(&*world.store, job.id, 1).await;
    world.end().await;
    assert!(world.told(&job).is_success);
    assert_eq!((world.done(Act::Upload), world.done(Act::Create)), (1, 1));
    assert_eq!(world.asked("POST"), 2);
}

#[tokio::test(start_paused = true)]
async fn what_the_provider_says_of_the_end_is_told() {
    for (api, fate, code, words) in [
        (TuningApi::Jobs, Fate::Fail, "", ""),
        (TuningApi::Legacy, Fate::Fail, "fine_tune_failed", ""),
        (TuningApi::Jobs, Fate::Cancel, "cancelled", "not by batchd"),
        (TuningApi::Jobs, Fate::Vanish, "vanished", "has vanished"),
        (TuningApi::Legacy, Fate::Vanish, "vanished", "has vanished"),
    ] {
        let mut world = World::new(Server { fate: Some(fate), ..server() });
        let told = world.finish(&plan(api)).await;
        assert!(!told.is_success, "{told:?}");
        assert_eq!(told.record["response"]["status_code"], 200, "the last object is kept: {told:?}");
        assert!(told.message().contains(words), "{told:?}");
        if (api, fate) == (TuningApi::Jobs, Fate::Fail) {
            let error = &told.object()["error"];
            assert_eq!(
                (json!(told.code()), json!(told.message())),
                (error["code"].clone(), error["message"].clone())
            );
        } else {
            assert_eq!(told.code(), code, "{told:?}");
        }
        assert_eq!(world.done(Act::Create), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_status_nobody_knows_is_watched_on() {
    let mut world = World::new(Server { fate: Some(Fate::Odd), ..server() });
    assert!(world.finish(&plan(TuningApi::Jobs)).await.is_success);
}

#[tokio::test(start_paused = true)]
async fn polls_that_fail_never_fail_the_fine_tune() {
    let mut world = World::new(Server { fine_tune_time: Duration::from_hours(3), ..server() });
    let job = world.put(1, &plan(TuningApi::Jobs)).await;
    world.start();
    sleep(Duration::from_mins(1)).await;
    // Every answer that is none, half an hour each.
    for (status, body) in
        [(500, "{}"), (429, "{}"), (404, ""), (200, "<html>"), (200, "{}"), (400, "{}"), (405, "")]
    {
        world.twist(move |_| {
            Some(HttpReply { status, headers: HeaderMap::new(), body: Bytes::from_static(body.as_bytes()) })
        });
        let span = if status == 404 { 20 } else { 900 };
        sleep(Duration::from_secs(span)).await;
        world.twist(|_| None);
        sleep(Duration::from_mins(2)).await;
        assert_eq!(world.store.job(job.id).await.unwrap().counts.open(), 1, "{status} {body}");
    }
    // A key that is refused for a while pauses the queue.
    let key = Change::Set("another".into());
    world.server.change(Changes { key, ..Changes::default() }, Instant::now());
    sleep(Duration::from_mins(10)).await;
    assert_eq!(world.board.pauses().len(), 1);
    world.server.change(Changes { key: Change::Clear, ..Changes::default() }, Instant::now());
    world.board.resume();
    until_settled(&*world.store, job.id, 1).await;
    world.end().await;
    assert!(world.told(&job).is_success);
    assert_eq!((world.done(Act::Upload), world.done(Act::Create)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_at_the_start_pauses_and_fails_nothing() {
    let mut world = World::new(Server { auth: Auth::Key("another".into()), ..server() });
    let job = world.put(1, &plan(TuningApi::Jobs)).await;
    world.start();
    sleep(Duration::from_hours(2)).await;
    assert_eq!(
        world.board.pauses().values().map(|pause| pause.reason).collect::<Vec<_>>(),
        [PauseReason::Auth]
    );
    world.server.change(Changes { key: Change::Clear, ..Changes::default() }, Instant::now());
    world.board.resume();
    until_settled(&*world.store, job.id, 1).await;
    world.end().await;
    assert!(world.told(&job).is_success);
    assert_eq!((world.done(Act::Upload), world.done(Act::Create)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_creation_is_not_repeated_before_the_provider_wants_it() {
    for status in [429, 502, 503] {
        let mut world = World::new(server());
        let mut is_refused = false;
        world.twist(move |request| {
            let refuses = posts(request, "/v1/fine_tuning/jobs") && !is_refused;
            is_refused |= refuses;
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static("100"))]);
            refuses.then(|| HttpReply { status, headers, body: Bytes::new() })
        });
        assert!(world.finish(&plan(TuningApi::Jobs)).await.is_success);
        let asked = world.transport.asked.lock().unwrap();
        let mut tries = asked.iter().filter(|(_, line)| line == "POST /v1/fine_tuning/jobs");
        let [(first, _), (second, _)] = [tries.next().unwrap(), tries.next().unwrap()];
        assert!(second.duration_since(*first) >= Duration::from_secs(100), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_never_becomes_ready_is_used_in_the_end() {
    for (word, minutes) in [("uploaded", 2..5), ("running", 60..65)] {
        let mut world = World::new(Server { file_processing_time: Duration::ZERO, ..server() });
        world.twist(move |request| {
            let shows = request.method == Method::GET && request.url.path().starts_with("/v1/files/");
            shows.then(|| reply(200, &json!({"id": "file-1", "status": word})))
        });
        let started = Instant::now();
        assert!(world.finish(&plan(TuningApi::Jobs)).await.is_success);
        assert!(minutes.contains(&(started.elapsed().as_secs() / 60)), "{word}: {:?}", started.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_shown_is_used_and_one_that_is_broken_is_not() {
    let shows_file =
        |request: &HttpRequest| request.method == Method::GET && request.url.path().starts_with("/v1/files/");
    let mut world = World::new(Server { file_processing_time: Duration::ZERO, ..server() });
    world.twist(move |request| shows_file(request).then(|| refusal(404, "no such path")));
    assert!(world.finish(&plan(TuningApi::Jobs)).await.is_success);

    let mut world = World::new(server());
    let broken = json!({"id": "file-1", "status": "error", "status_details": "line 3 is no JSON"});
    world.twist(move |request| shows_file(request).then(|| reply(200, &broken)));
    let told = world.finish(&plan(TuningApi::Jobs)).await;
    assert_eq!(told.code(), "invalid_file");
    assert!(told.message().ends_with("line 3 is no JSON"), "{told:?}");
    assert_eq!(world.done(Act::Create), 0);
}

#[tokio::test(start_paused = true)]
async fn a_creation_that_comes_too_early_for_its_file_is_tried_again() {
    for (refusals, is_success) in [(3, true), (9, false)] {
        let mut world = World::new(server());
        let mut left = refusals;
        world.twist(move |request| {
            let creates = posts(request, "/v1/fine_tuning/jobs");
            left -= i32::from(creates);
            (creates && left >= 0).then(|| refusal(400, "Cannot find file file-1"))
        });
        let told = world.finish(&plan(TuningApi::Jobs)).await;
        assert_eq!(told.is_success, is_success, "{told:?}");
        assert_eq!(world.done(Act::Create), u64::from(is_success));
        assert!(
            is_success || told.record["response"]["status_code"] == 400 && told.record["error"].is_null()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_creation_is_told_with_what_it_means() {
    let mut world = World::new(server());
    let mut unknown = plan(TuningApi::Jobs);
    unknown.body.insert("model".to_owned(), json!("no-such-model"));
    world.twist(|request| {
        let creates = posts(request, "/v1/fine_tuning/jobs");
        creates.then(|| refusal(404, "The model `no-such-model` does not exist"))
    });
    let told = world.finish(&unknown).await;
    assert_eq!((&told.record["response"]["status_code"], told.code()), (&json!(404), ""), "{told:?}");

    for (api, status) in [(TuningApi::Jobs, 403), (TuningApi::Legacy, 404)] {
        let mut world = World::new(server());
        world.twist(move |request| {
            let creates = posts(request, &format!("/v1{}", api.path()));
            creates.then(|| refusal(status, "Fine-tuning is no longer available"))
        });
        let told = world.finish(&plan(api)).await;
        assert_eq!(told.code(), "fine_tuning_unavailable", "{told:?}");
        assert!(told.message().contains("Fine-tuning is no longer available"), "{told:?}");
        assert_eq!(told.record["response"]["status_code"], status);
        assert!(world.board.pauses().is_empty());
    }

    let mut world = World::new(server());
    world.twist(|request| request.url.path().starts_with("/v1/files").then(|| refusal(404, "Not Found")));
    let told = world.finish(&plan(TuningApi::Jobs)).await;
    assert_eq!(told.code(), "files_unavailable", "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn attempts_are_bounded_and_each_step_begins_anew() {
    // Three attempts each; the upload takes two of them, the creation all.
    let mut world = World::new(server());
    world.retry.max_attempts = 3;
    let (mut uploads, creations) = (0, Arc::new(Mutex::new(0)));
    let counted = Arc::clone(&creations);
    world.twist(move |request| {
        let (is_upload, is_creation) = (posts(request, "/v1/files"), posts(request, "/v1/fine_tuning/jobs"));
        uploads += i32::from(is_upload);
        *counted.lock().unwrap() += i32::from(is_creation);
        let fails = is_upload && uploads < 3 || is_creation;
        fails.then(|| refusal(500, "sorry"))
    });
    let told = world.finish(&plan(TuningApi::Jobs)).await;
    assert_eq!(*creations.lock().unwrap(), 3);
    assert_eq!((told.code(), told.is_success), ("server_error", false), "{told:?}");
    assert!(told.message().contains("(attempt 3 of 3)"), "{told:?}");
}
