//! Schedules as a person meets them, under simulated time.

mod files;
mod runs;
mod starts;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::{Job, JobStatus, Timestamp};
use crate::intake::fixture::{FakeStore, Root, Running};
use crate::spec::ProviderFacts;

/// 2030-01-01T01:59:00Z, a minute before the first time of [`NIGHTLY`].
const EVE: Timestamp = Timestamp::from_millis(1_893_463_140_000);

const NIGHTLY: &str = "kind = 'completions'\nmodel = 'm'\n[[requests]]\nprompt = 'first'\n\
                       [schedule]\ncron = '0 2 * * *'\ntimezone = 'UTC'\n";

const MINUTE: Duration = Duration::from_mins(1);
const DAY: Duration = Duration::from_hours(24);

fn root() -> Root {
    let mut root = Root::new();
    root.settings.spec.providers = vec![ProviderFacts { name: "p".to_owned(), strict: false }];
    // A look at least every minute comes of the schedules.
    root.settings.rescan = Duration::from_mins(10);
    root
}

/// An intake over a new store, with these files in its jobs folder, a minute before two.
fn with(files: &[(&str, &str)]) -> Running {
    let root = root();
    for (name, text) in files {
        root.drop_file(name, text);
    }
    let store = FakeStore::new(&root);
    Running::scheduling(root, store, EVE)
}

/// One that was killed goes on at `now`.
fn again((root, store): (Root, Arc<FakeStore>), now: Timestamp) -> Running {
    Running::scheduling(root, store, now)
}

impl Running {
    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    fn runs(&self) -> Vec<String> {
        self.store.job_names()
    }

    fn run(&self, name: &str) -> Job {
        self.store.state_of(name).job
    }

    fn end_all(&self) {
        for name in self.store.job_names() {
            self.store.end(&name, JobStatus::Completed);
        }
    }

    /// The spec of which a run was made.
    fn spec_of(&self, name: &str) -> String {
        let id = self.run(name).id.to_string();
        fs::read_to_string(self.root.settings.state.join("jobs").join(id).join("spec/job.toml")).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.settings.jobs.join(name)
    }
}

/// The files that are kept of schedules, without the hashes in their names.
fn kept(root: &Root) -> Vec<String> {
    let names = crate::intake::fixture::names(&root.settings.state.join("schedules"));
    let is_hash = |part: &&str| part.len() == 16;
    let without = |name: String| name.split('.').filter(|part| !is_hash(part)).collect::<Vec<_>>().join(".");
    let mut names: Vec<String> = names.into_iter().map(without).collect();
    names.sort();
    names
}
