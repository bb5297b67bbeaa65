//! Whatever is lost, a reply or the process: nothing is made twice.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_lost_reply_never_makes_a_second_file_or_job() {
    for api in TuningApi::ALL {
        for act in [Act::Upload, Act::Create, Act::List, Act::Show] {
            for fault in Fault::ALL {
                let mishaps = Mishaps::new([(act, fault), (Act::List, Fault::ServerError)]);
                let mut world = World::new(Server { mishaps, ..server() });
                let told = world.finish(&plan(api)).await;
                assert!(told.is_success, "{act}={fault}: {told:?}");
                assert_eq!((world.done(Act::Upload), world.done(Act::Create)), (1, 1), "{act}={fault}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_moment_it_makes_one_file_and_one_job() {
    for seed in 0..60 {
        let api = TuningApi::ALL[usize::try_from(seed % 2).unwrap()];
        let faults = "500=0.1,502=0.1,drop=0.1,cut=0.05,429=0.05".parse().unwrap();
        let latency = Latency::between(Duration::from_millis(50), Duration::from_secs(1));
        let mut world = World::seeded(seed, Server { latency, faults, ..server() });
        world.retry.max_attempts = 50;
        let mut rng = Seed::fixed(seed).derive("kills");
        let job = world.put(1, &plan(api)).await;
        world.start();
        for _ in 0..6 {
            sleep(Duration::from_millis(rng.u64(..2_500))).await;
            if world.store.job(job.id).await.unwrap().counts.open() > 0 {
                world.crash(&job).await;
            }
        }
        until_settled(&*world.store, job.id, 1).await;
        world.end().await;
        assert!(world.told(&job).is_success);
        assert_eq!((world.done(Act::Upload), world.done(Act::Create)), (1, 1), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_provider_lists_nothing_a_lost_job_is_not_asked_for_again() {
    for (api, words) in [(TuningApi::Jobs, "batchd_job"), (TuningApi::Legacy, "training file `file-")] {
        let mishaps = Mishaps::new([(Act::Create, Fault::Drop)]);
        let mut world = World::new(Server { mishaps, ..server() });
        world.twist(move |request| is_list(request, api.path()).then(|| refusal(405, "no such method")));
        let told = world.finish(&plan(api)).await;
        assert_eq!((told.code(), world.done(Act::Create)), ("uncertain", 1), "{told:?}");
        for words in [words, "batchd retry", "`p`", "405"] {
            assert!(told.message().contains(words), "{told:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_provider_lists_no_files_a_lost_one_is_sent_again() {
    let mishaps = Mishaps::new([(Act::Upload, Fault::Drop)]);
    let mut world = World::new(Server { mishaps, ..server() });
    world.twist(|request| is_list(request, "/files").then(|| refusal(404, "no such path")));
    assert!(world.finish(&plan(TuningApi::Jobs)).await.is_success);
    assert_eq!((world.done(Act::Upload), world.done(Act::Create)), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn what_was_done_behind_an_error_is_found_however_late_it_shows() {
    for path in ["/files", "/fine_tuning/jobs"] {
        for status in [408, 409, 500, 502, 503, 529] {
            let mut world = World::new(server());
            let engine = Arc::clone(&world.server);
            let (mut is_done, mut looks) = (false, 0);
            world.twist(move |request| {
                if posts(request, &format!("/v1{path}")) && !is_done {
                    is_done = true;
                    carry_out(&engine, request);
                    let error = json!({"message": "sorry", "type": "server_error", "code": null});
                    return Some(reply(status, &json!({ "error": error })));
                }
                looks += i32::from(is_list(request, path));
                let is_hidden = is_list(request, path) && looks < 3;
                is_hidden.then(|| reply(200, &json!({"object": "list", "data": [], "has_more": false})))
            });
            let told = world.finish(&plan(TuningApi::Jobs)).await;
            assert!(told.is_success, "{status}: {told:?}");
            assert_eq!((world.done(Act::Upload), world.done(Act::Create)), (1, 1), "{path}: {status}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_legacy_job_of_a_shared_file_is_known_by_its_time() {
    let mut world = World::new(server());
    let id = upload(&world, TuningApi::Legacy);
    // Somebody else's of the same file, long ago.
    let other = format!(r#"{{"training_file":"{id}","model":"curie"}}"#);
    sleep(Duration::from_secs(5)).await;
    let others = post(&world, "/v1/fine-tunes", "application/json", other.as_bytes());
    sleep(Duration::from_hours(1)).await;
    let mishaps = Mishaps::new([(Act::Create, Fault::Drop)]);
    world.server.change(Changes { mishaps: Some(mishaps), ..Changes::default() }, Instant::now());
    let shared = FineTune { training: TuningData::Uploaded { id }, ..plan(TuningApi::Legacy) };
    let told = world.finish(&shared).await;
    assert!(told.is_success, "{told:?}");
    assert_ne!(told.object()["id"], others);
    assert_eq!((world.done(Act::Upload), world.done(Act::Create)), (1, 2), "one of each is somebody else's");
}

#[tokio::test(start_paused = true)]
async fn somebody_elses_job_of_a_shared_file_is_not_taken_for_a_lost_one() {
    let mut world = World::new(server());
    let id = upload(&world, TuningApi::Jobs);
    let other = format!(r#"{{"training_file":"{id}","model":"gpt-4.1-mini"}}"#);
    sleep(Duration::from_secs(5)).await;
    let others = post(&world, "/v1/fine_tuning/jobs", "application/json", other.as_bytes());
    let mut is_lost = false;
    world.twist(move |request| {
        let loses = posts(request, "/v1/fine_tuning/jobs") && !is_lost;
        is_lost |= loses;
        loses.then(|| refusal(502, "sorry"))
    });
    let shared = FineTune { training: TuningData::Uploaded { id }, ..plan(TuningApi::Jobs) };
    let told = world.finish(&shared).await;
    assert!(told.is_success, "{told:?}");
    assert_ne!(told.object()["id"], others);
    assert_eq!(world.done(Act::Create), 2, "one is somebody else's");
}

#[tokio::test(start_paused = true)]
async fn a_memo_that_cannot_be_read_is_made_good_by_looking() {
    for api in TuningApi::ALL {
        let mut world = World::new(server());
        let plan = plan(api);
        let job = world.put(1, &plan).await;
        world.start();
        while world.done(Act::Create) == 0 {
            sleep(Duration::from_millis(100)).await;
        }
        sleep(Duration::from_millis(500)).await;
        world.store.write_memo(request(&job), Bytes::from_static(b"{\"job\":")).await.unwrap();
        world.crash(&job).await;
        until_settled(&*world.store, job.id, 1).await;
        world.end().await;
        assert!(world.told(&job).is_success);
        assert_eq!((world.done(Act::Upload), world.done(Act::Create)), (1, 1));
        assert!(world.memo(&job, &plan).await.id_of(Thing::Job).is_some());
    }
}
