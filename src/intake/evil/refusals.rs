//! A disk that refuses any one act, or all from one on: nothing that was dropped is lost, or taken twice.

use std::fs;
use std::io;
use std::io::ErrorKind::StorageFull;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::disk::Act;
use crate::disk::probe::{Probe, Verdict, install};
use crate::domain::Job;
use crate::intake::fixture::{Root, Running, names};
use crate::intake::{Error, Status};
use crate::store::folder::JobFolder;

/// More acts than the intake of a few specs needs.
const ACTS_MAX: usize = 1000;

/// Refuses the act of this number (from 0), and those after it while it is full.
#[derive(Debug)]
struct Full {
    number: usize,
    acts: AtomicUsize,
    /// The first act that was refused, in words.
    refused: OnceLock<String>,
    stays: AtomicBool,
}

impl Probe for Full {
    fn before(&self, act: &Act<'_>) -> Verdict {
        let number = self.acts.fetch_add(1, Ordering::Relaxed);
        if number < self.number || (number > self.number && !self.stays.load(Ordering::Relaxed)) {
            return Verdict::Go;
        }
        self.refused.get_or_init(|| format!("{number}: {act:.200?}"));
        if matches!(act, Act::Append { .. }) {
            return Verdict::Tear(3, StorageFull.into());
        }
        Verdict::Refuse(io::Error::from(StorageFull))
    }

    fn after(&self, _: &Act<'_>) {}
}

/// Specs that the disk has as accepted, with their content.
fn accepted(root: &Root, refused: Option<&String>) -> Vec<(String, String)> {
    let mut jobs = Vec::new();
    for folder in root.job_folders() {
        let is_settled = folder.state().exists() && !folder.claim().exists();
        assert!(is_settled, "refused: {refused:?}, left: {:?}", names(folder.path()));
        let job: Job = serde_json::from_slice(&fs::read(folder.state()).unwrap()).unwrap();
        let spec = folder.spec().join("job.toml");
        let spec = if spec.exists() { spec } else { folder.input() };
        jobs.push((job.spec_file, fs::read_to_string(spec).unwrap()));
    }
    jobs.sort();
    jobs
}

fn drop_all(root: &Root) {
    root.drop_file("a.jsonl", "one");
    root.drop_file("b.toml", "two");
    root.drop_file("c/job.toml", "three");
    root.drop_file("d.jsonl", "bad");
    symlink("nowhere", root.settings.jobs.join("e.jsonl")).unwrap();
    let shared = root.drop_file("f.jsonl", "four");
    fs::hard_link(shared, root.temp.path().join("other-name")).unwrap();
}

/// Takes in what there is until nothing is left to do; a daemon whose store is in doubt is started again.
async fn take_in_all(mut root: Root, full: &Full) -> Root {
    loop {
        let mut intake = Running::over(root);
        if full.stays.load(Ordering::Relaxed) {
            intake.handle.until(|status| status.trouble.is_some() || status.is_idle()).await;
            full.stays.store(false, Ordering::Relaxed);
        }
        let is_done = |status: &Status| status.is_idle() && status.blocked == 0 && status.trouble.is_none();
        intake.handle.look().await;
        intake.handle.until(is_done).await;
        if let Some(ended) = intake.tasks.try_join_next() {
            let error = ended.unwrap().unwrap_err();
            root = intake.root;
            let in_doubt = |job: &JobFolder| job.state().exists() && job.claim().exists();
            let excused = matches!(error, Error::Store(_)) && root.job_folders().iter().any(in_doubt);
            assert!(excused, "a disk that is full ends nothing: {error}");
            continue;
        }
        let (root, ended) = intake.end().await;
        ended.unwrap();
        return root;
    }
}

async fn whatever_act_is_refused(stays: bool) {
    for number in 0..ACTS_MAX {
        let root = Root::new();
        drop_all(&root);
        let full = Arc::new(Full {
            number,
            acts: AtomicUsize::new(0),
            refused: OnceLock::new(),
            stays: AtomicBool::new(stays),
        });
        let installed = install(root.temp.path(), Arc::clone(&full) as _);
        let root = take_in_all(root, &full).await;
        drop(installed);
        let refused = full.refused.get();
        let expected = [("a.jsonl", "one"), ("b.toml", "two"), ("c", "three"), ("f.jsonl", "four")];
        let expected = expected.map(|(name, text)| (name.to_owned(), text.to_owned()));
        assert_eq!(accepted(&root, refused), expected, "{refused:?}");
        let reported = ["d.jsonl", "d.jsonl.errors.txt", "e.jsonl", "e.jsonl.errors.txt"];
        assert_eq!(root.rejected(), reported, "{refused:?}");
        assert_eq!(root.waiting(), Vec::<String>::new(), "{refused:?}");
        if refused.is_none() {
            assert!(number > 50, "only {number} acts went through the seam");
            return;
        }
    }
    panic!("there is no end to it");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_whatever_act_the_disk_refuses() {
    whatever_act_is_refused(false).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_whenever_the_disk_fills_up() {
    whatever_act_is_refused(true).await;
}

#[test]
fn the_probe_refuses_from_its_number_on() {
    let full = |stays| Full {
        number: 1,
        acts: AtomicUsize::new(0),
        refused: OnceLock::new(),
        stays: AtomicBool::new(stays),
    };
    for (stays, expected) in [(false, [true, false, true]), (true, [true, false, false])] {
        let full = full(stays);
        let goes =
            [(); 3].map(|()| matches!(full.before(&Act::SyncDir { path: Path::new("") }), Verdict::Go));
        assert_eq!(goes, expected);
    }
}
