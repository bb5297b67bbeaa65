//! What a person does with the file: drops, edits, breaks, mends, renames, removes.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::intake::Error;
use crate::spec::{self, Scheduled, Source};

#[tokio::test(start_paused = true)]
async fn a_spec_with_a_schedule_stays_and_runs_whenever_its_time_comes() {
    let intake = with(&[("nightly.toml", NIGHTLY)]);
    intake.pass(MINUTE / 2).await;
    assert!(intake.runs().is_empty());
    intake.pass(MINUTE).await;
    assert_eq!(intake.runs(), ["nightly-20300101T020000"]);
    for _ in 0..2 {
        intake.end_all();
        intake.pass(DAY).await;
    }
    assert_eq!(
        intake.runs(),
        ["nightly-20300101T020000", "nightly-20300102T020000", "nightly-20300103T020000"]
    );
    let job = intake.run("nightly-20300102T020000");
    let run = job.run.unwrap();
    assert_eq!((run.spec.as_str(), run.after), ("nightly.toml", None));
    assert_eq!(run.due, Some(EVE + MINUTE + DAY));
    assert_eq!((job.spec_file.as_str(), job.total), ("nightly.toml", 1));
    assert_eq!(intake.spec_of("nightly-20300102T020000"), NIGHTLY);
    let (root, ended) = intake.end().await;
    ended.unwrap();
    assert_eq!((root.waiting(), root.rejected().len()), (vec!["nightly.toml".to_owned()], 0));
    assert!(root.job_folders().iter().all(|job| job.state().exists() && !job.claim().exists()));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_has_not_changed_is_read_once() {
    static READ: AtomicU64 = AtomicU64::new(0);
    fn counting(source: &Source, settings: &spec::Settings) -> Result<Option<Scheduled>, spec::Error> {
        READ.fetch_add(1, Ordering::Relaxed);
        spec::read_schedule(source, settings)
    }
    let root = root();
    let path = root.drop_file("nightly.toml", NIGHTLY);
    let store = FakeStore::new(&root);
    let intake = Running::start(root, store, (spec::read, counting), (EVE, None));
    for _ in 0..10 {
        intake.idle().await;
        intake.pass(MINUTE * 10).await;
    }
    assert_eq!(READ.load(Ordering::Relaxed), 1);
    fs::write(path, NIGHTLY.replace("first", "second")).unwrap();
    intake.pass(MINUTE * 20).await;
    assert_eq!(READ.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn an_edit_holds_from_the_moment_it_is_seen() {
    let intake = with(&[("nightly.toml", NIGHTLY)]);
    intake.pass(MINUTE * 2).await;
    intake.end_all();
    // Another time of the same day, and another text.
    let later = NIGHTLY.replace("0 2 * * *", "30 2 * * *").replace("first", "second");
    fs::write(intake.file("nightly.toml"), &later).unwrap();
    intake.pass(MINUTE * 60).await;
    assert_eq!(intake.runs(), ["nightly-20300101T020000", "nightly-20300101T023000"]);
    assert_eq!(intake.spec_of("nightly-20300101T023000"), later);
}

#[tokio::test(start_paused = true)]
async fn a_broken_file_keeps_its_last_good_version_and_says_so() {
    let intake = with(&[("nightly.toml", NIGHTLY), ("other.toml", &format!("{NIGHTLY}colour = 1\n"))]);
    intake.idle().await;
    assert_eq!(intake.root.rejected(), ["other.toml", "other.toml.errors.txt"], "nobody knows that one");
    fs::write(intake.file("nightly.toml"), NIGHTLY.replace("'0 2", "'99 2")).unwrap();
    intake.pass(MINUTE * 2).await;
    assert_eq!(intake.runs(), ["nightly-20300101T020000"]);
    assert_eq!(intake.spec_of("nightly-20300101T020000"), NIGHTLY);
    assert_eq!(intake.root.waiting(), ["nightly.toml"]);
    let report = intake.file("rejected/nightly.toml.errors.txt");
    assert!(fs::read_to_string(&report).unwrap().contains("`99` is no minute"));
    let status = intake.handle.schedules()[0].clone();
    assert!(status.plan.is_some() && status.problem.unwrap().contains("`99` is no minute"));

    // Broken in another way: the report is replaced. A restart goes on with the last good version, too.
    fs::write(intake.file("nightly.toml"), NIGHTLY.replace("'0 2", "'98 2")).unwrap();
    intake.pass(MINUTE * 20).await;
    assert!(fs::read_to_string(&report).unwrap().contains("`98` is no minute"));
    intake.end_all();
    let intake = again(intake.die().await, EVE + DAY);
    intake.pass(MINUTE * 2).await;
    assert_eq!(intake.runs(), ["nightly-20300101T020000", "nightly-20300102T020000"]);
    assert_eq!(intake.root.rejected().len(), 3);

    fs::write(intake.file("nightly.toml"), NIGHTLY.replace("first", "second")).unwrap();
    intake.pass(MINUTE * 20).await;
    assert_eq!(intake.root.rejected(), ["other.toml", "other.toml.errors.txt"]);
    assert_eq!(intake.handle.schedules()[0].problem, None);
    intake.end_all();
    intake.pass(DAY).await;
    assert!(intake.spec_of("nightly-20300103T020000").contains("second"));
}

#[tokio::test(start_paused = true)]
async fn a_report_on_a_schedule_is_not_that_on_a_rejected_spec_of_its_name() {
    let intake = with(&[("nightly.toml", "kind = 'nothing'\n")]);
    intake.idle().await;
    let first = fs::read_to_string(intake.file("rejected/nightly.toml.errors.txt")).unwrap();
    intake.root.drop_file("nightly.toml", NIGHTLY);
    intake.idle().await;
    fs::write(intake.file("nightly.toml"), "kind").unwrap();
    intake.idle().await;
    assert!(intake.file("rejected/nightly-2.toml.errors.txt").exists());
    fs::remove_file(intake.file("nightly.toml")).unwrap();
    intake.handle.look().await;
    intake.pass(MINUTE).await;
    assert_eq!(intake.root.rejected(), ["nightly.toml", "nightly.toml.errors.txt"]);
    assert_eq!(fs::read_to_string(intake.file("rejected/nightly.toml.errors.txt")).unwrap(), first);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_taken_away_is_over_and_a_renamed_one_is_another() {
    let intake = with(&[("a.toml", NIGHTLY), ("b.toml", NIGHTLY)]);
    intake.idle().await;
    assert_eq!(kept(&intake.root), ["a.toml.json", "a.toml.toml", "b.toml.json", "b.toml.toml"]);
    fs::remove_file(intake.file("a.toml")).unwrap();
    fs::rename(intake.file("b.toml"), intake.file("c.toml")).unwrap();
    intake.handle.look().await;
    intake.pass(MINUTE * 2).await;
    assert_eq!(intake.runs(), ["c-20300101T020000"]);
    assert_eq!(kept(&intake.root), ["c.toml.json", "c.toml.toml"]);
    let files: Vec<String> = intake.handle.schedules().iter().map(|s| s.file.clone()).collect();
    assert_eq!(files, ["c.toml"]);
}

#[tokio::test(start_paused = true)]
async fn an_editor_may_take_the_file_away_for_a_moment() {
    let mut root = root();
    root.settings.settle = Duration::from_secs(10);
    root.drop_file("nightly.toml", &NIGHTLY.replace("timezone", "catch_up = 'once'\ntimezone"));
    let store = FakeStore::new(&root);
    let intake = Running::scheduling(root, store, EVE);
    intake.pass(Duration::from_secs(58)).await;
    let (path, aside) = (intake.file("nightly.toml"), intake.file("nightly.toml~"));
    fs::rename(&path, &aside).unwrap();
    intake.handle.look().await;
    intake.pass(Duration::from_secs(5)).await;
    intake.handle.look().await;
    assert!(intake.runs().is_empty(), "nothing is fired of a file that is not there");
    assert_eq!(kept(&intake.root).len(), 2, "two looks that did not see it are too close to each other");
    fs::rename(&aside, &path).unwrap();
    intake.pass(MINUTE).await;
    assert_eq!(intake.runs(), ["nightly-20300101T020000"], "the time that came meanwhile is not lost");
}

#[tokio::test(start_paused = true)]
async fn a_jobs_folder_that_is_not_there_takes_no_schedule_away() {
    let intake = with(&[("nightly.toml", &NIGHTLY.replace("0 2", "0,45 2"))]);
    intake.idle().await;
    let (jobs, aside) = (intake.root.settings.jobs.clone(), intake.root.temp.path().join("aside"));
    fs::rename(&jobs, &aside).unwrap();
    intake.handle.look().await;
    intake.pass(MINUTE * 30).await;
    assert_eq!(kept(&intake.root).len(), 2);
    // A mount point, on which nothing is mounted.
    fs::create_dir(&jobs).unwrap();
    intake.handle.look().await;
    intake.pass(MINUTE * 30).await;
    assert_eq!(kept(&intake.root).len(), 2);
    assert!(intake.runs().is_empty(), "its data would not be there either");
    fs::remove_dir(&jobs).unwrap();
    fs::rename(&aside, &jobs).unwrap();
    intake.pass(DAY).await;
    assert_eq!(intake.runs(), ["nightly-20300102T020000"], "those of the day before were missed");
}

#[tokio::test(start_paused = true)]
async fn a_time_that_comes_while_the_jobs_folder_is_away_for_a_moment_is_not_missed() {
    // It can't be opened, or is a mount point on which nothing is mounted.
    for is_empty in [false, true] {
        let intake = with(&[("nightly.toml", NIGHTLY)]);
        intake.pass(Duration::from_secs(50)).await;
        let (jobs, aside) = (intake.root.settings.jobs.clone(), intake.root.temp.path().join("aside"));
        fs::rename(&jobs, &aside).unwrap();
        if is_empty {
            fs::create_dir(&jobs).unwrap();
        }
        intake.handle.look().await;
        intake.pass(Duration::from_secs(40)).await;
        assert!(intake.runs().is_empty());
        if is_empty {
            fs::remove_dir(&jobs).unwrap();
        }
        fs::rename(&aside, &jobs).unwrap();
        intake.handle.look().await;
        intake.pass(Duration::from_secs(10)).await;
        assert_eq!(intake.runs(), ["nightly-20300101T020000"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_lost_its_schedule_is_run_once() {
    let intake = with(&[("nightly.toml", NIGHTLY)]);
    intake.idle().await;
    let ordinary = NIGHTLY.split("[schedule]").next().unwrap();
    fs::write(intake.file("nightly.toml"), ordinary).unwrap();
    intake.handle.look().await;
    intake.pass(DAY).await;
    assert_eq!(intake.runs(), ["nightly"]);
    assert_eq!(intake.run("nightly").run, None);
    assert!(intake.root.waiting().is_empty() && kept(&intake.root).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_spec_that_gets_a_schedule_while_it_is_claimed_goes_back() {
    static LOOKS: AtomicU64 = AtomicU64::new(0);
    fn late(source: &Source, settings: &spec::Settings) -> Result<Option<Scheduled>, spec::Error> {
        if LOOKS.fetch_add(1, Ordering::Relaxed) == 0 {
            return Ok(None);
        }
        spec::read_schedule(source, settings)
    }
    let root = root();
    root.drop_file("nightly.toml", NIGHTLY);
    let store = FakeStore::new(&root);
    let intake = Running::start(root, store, (spec::read, late), (EVE, None));
    intake.pass(MINUTE * 2).await;
    assert_eq!(intake.runs(), ["nightly-20300101T020000"]);
    assert_eq!((intake.root.waiting().len(), intake.root.rejected().len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_folder_with_a_schedule_stays_with_its_data() {
    let spec = "kind = 'completions'\nmodel = 'm'\n[input]\nfile = 'rows/*.txt'\n\
                [schedule]\ncron = '0 2 * * *'\ntimezone = 'UTC'\n";
    let intake = with(&[("news/job.toml", spec), ("news/rows/a.txt", "one\n")]);
    intake.pass(MINUTE * 2).await;
    assert_eq!(intake.run("news-20300101T020000").total, 1);
    intake.root.drop_file("news/rows/b.txt", "two\nthree\n");
    intake.end_all();
    intake.pass(DAY).await;
    assert_eq!(intake.run("news-20300102T020000").total, 3, "data are read at each run");
    assert_eq!(intake.root.waiting(), ["news"]);
    fs::remove_file(intake.file("news/job.toml")).unwrap();
    intake.handle.look().await;
    intake.pass(MINUTE).await;
    assert!(kept(&intake.root).is_empty());
    assert!(intake.file("news/rows/a.txt").exists());
}

#[tokio::test(start_paused = true)]
async fn a_schedule_that_meets_a_full_disk_waits_like_a_spec() {
    let root = root();
    root.drop_file("nightly.toml", NIGHTLY);
    // Nothing can be written where the records are to lie.
    let schedules = root.settings.state.join("schedules");
    fs::create_dir_all(schedules.join("nightly.toml.json/x")).unwrap();
    let store = FakeStore::new(&root);
    let intake = Running::scheduling(root, store, EVE);
    let status = intake.handle.until(|status| status.trouble.is_some()).await;
    assert!(status.trouble.is_some(), "{status:?}");
    fs::remove_dir_all(schedules.join("nightly.toml.json")).unwrap();
    intake.pass(MINUTE * 2).await;
    assert_eq!((intake.handle.status().trouble, intake.runs().len()), (None, 1));
    assert!(!matches!(intake.end().await.1, Err(Error::Io { .. })));
}

/// An edit wrote the new text, and then the new rule. If the disk refused the second, a time that came before it was
/// tried again ran the new text under the old rule, and a crash before that made up for times of another schedule.
#[tokio::test(start_paused = true)]
async fn an_edit_of_which_the_disk_takes_one_half_changes_nothing_before_it_takes_the_other() {
    let once = format!("{NIGHTLY}catch_up = 'once'\n");
    let edited = once.replace("0 2 * * *", "5,10 2 * * *").replace("first", "second");
    let refused_edit = async || {
        let intake = with(&[("a.toml", &once)]);
        intake.pass(Duration::from_secs(58)).await;
        let schedules = intake.root.settings.state.join("schedules");
        let (record, aside) = (schedules.join("a.toml.json"), schedules.join("aside"));
        fs::rename(&record, &aside).unwrap();
        fs::create_dir_all(record.join("x")).unwrap();
        fs::write(intake.file("a.toml"), &edited).unwrap();
        intake.handle.look().await;
        intake.handle.until(|status| status.trouble.is_some()).await;
        fs::remove_dir_all(&record).unwrap();
        fs::rename(&aside, &record).unwrap();
        assert_eq!(kept(&intake.root), ["a.toml.json", "a.toml.toml", "a.toml.toml"]);
        intake
    };
    let intake = refused_edit().await;
    intake.pass(Duration::from_secs(4)).await;
    assert_eq!(intake.runs(), ["a-20300101T020000"]);
    assert_eq!(intake.spec_of("a-20300101T020000"), once);
    intake.end_all();
    intake.pass(MINUTE * 5).await;
    assert_eq!(intake.runs(), ["a-20300101T020000", "a-20300101T020500"]);
    assert_eq!(intake.spec_of("a-20300101T020500"), edited);
    assert_eq!(kept(&intake.root), ["a.toml.json", "a.toml.toml"], "the text before it is gone");

    // Killed there; and when the next daemon starts, another edit has broken the file.
    let left = refused_edit().await.die().await;
    left.0.drop_file("a.toml", "kind");
    let intake = again(left, EVE + MINUTE * 8);
    intake.pass(MINUTE).await;
    assert_eq!(intake.runs(), ["a-20300101T020000"]);
    assert_eq!(intake.spec_of("a-20300101T020000"), once);
}
