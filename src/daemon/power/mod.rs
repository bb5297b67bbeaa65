//! Power cuts: a small world of intake, store and results on a disk that forgets.
//!
//! # Operation
//!
//! One seed is one world of several lives. In each life an [`actor`] does by chance what users, dispatch and servers
//! do: drops specs, puts jobs, leases, begins and settles requests, pauses and cancels. Instead of some act on the disk the
//! power is cut; the next life begins with what the [recorder](crate::disk::recorder) says that the cut left, again and again,
//! until a life is let live and brings every job to its end. What was acknowledged on the way is kept as [`promises`] and
//! held against each image, each recovery and the end.
//!
//! # What it does not do
//!
//! The threads of the store are real, so a seed does not give the same run twice to the last act: it gives the same
//! plan. The folders of a world that failed are kept, and named.

mod actor;
mod promises;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use self::actor::{Actor, HANGS};
use self::promises::Promises;
use crate::clock::Seed;
use crate::disk::Act;
use crate::disk::recorder::{Plan, Recorder, folder};

/// Worlds that live at the same time: they wait for the store's threads more than they work.
const SIDE_BY_SIDE: usize = 12;

/// What a world was like.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    pub(super) cuts: u64,
    pub(super) acts: u64,
    pub(super) jobs: u64,
    pub(super) records: u64,
    pub(super) begins: u64,
    /// Most begins of one request.
    pub(super) begins_max: u64,
    /// Begins whose intent a cut took along while they were in flight.
    pub(super) forgotten: u64,
    pub(super) held: u64,
    /// What was synced, see [`Recorder::syncs`].
    pub(super) syncs: BTreeSet<String>,
}

impl Figures {
    fn add(&mut self, other: &Self) {
        self.cuts += other.cuts;
        self.acts += other.acts;
        self.jobs += other.jobs;
        self.records += other.records;
        self.begins += other.begins;
        self.begins_max = self.begins_max.max(other.begins_max);
        self.forgotten += other.forgotten;
        self.held += other.held;
        self.syncs.extend(other.syncs.iter().cloned());
    }
}

/// Which syncs are only pretended.
#[derive(Clone, Copy, Debug)]
struct Pretended<'a> {
    /// Their class, see [`Recorder::syncs`].
    class: &'a str,
    /// They are made after all, but too late.
    is_late: bool,
}

/// A world in which a sync was left out may hang, and that says nothing of what it lost.
const LITTLE_PATIENCE: Duration = Duration::from_secs(8);

/// Lives through one seed's world. Panics where a law is broken.
fn live_through(seed: u64, pretended: Option<Pretended<'_>>) -> Figures {
    let mut rng = Seed::fixed(seed).derive("world");
    let cuts = rng.u64(1..5);
    let mut promises = Promises::default();
    let mut figures = Figures::default();
    let mut root = Root::new();
    for life in 0..=cuts {
        // Many die young: within recovery.
        let longest = *[12, 60, 150, 400].get(rng.usize(..4)).unwrap();
        let cut_at = (life < cuts).then(|| rng.u64(1..longest));
        let state = root.path().join("state");
        let lie = pretended.map(|pretended| {
            let (root, class) = (root.path().to_owned(), pretended.class.to_owned());
            Box::new(move |act: &Act<'_>| crate::disk::recorder::class_of(act, &root) == class) as _
        });
        // Late is never by much; what was left out for good may be missed long after.
        let soon = if pretended.is_some_and(|pretended| pretended.is_late) { 5 } else { 40 };
        let cut_after_lie = (pretended.is_some() && rng.bool()).then(|| rng.u64(1..soon));
        let is_late = pretended.is_some_and(|pretended| pretended.is_late);
        let plan = Plan { index: state.join("sled"), cut_at, lie, cut_after_lie, is_late };
        let (recorder, installed) = Recorder::install(root.path(), plan);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut actor = Actor::new(root.path(), &recorder, &mut promises, Seed::fixed(rng.u64(..)));
        if pretended.is_some() {
            actor.patience = LITTLE_PATIENCE;
        }
        runtime.block_on(actor.live(cut_at.is_none()));
        drop((runtime, installed));
        figures.acts += recorder.acts();
        figures.syncs.extend(recorder.syncs());
        if life == cuts {
            break;
        }
        figures.cuts += 1;
        recorder.cut();
        let image = Root::new();
        recorder.write_image(image.path(), rng.u64(..));
        promises.judge_image(image.path());
        Promises::sweep(image.path());
        root = image;
    }
    promises.judge_end(root.path());
    figures.add(&promises.figures());
    figures
}

/// A folder that stays, and is named, if its world fails in it.
struct Root(Option<TempDir>);

impl Root {
    fn new() -> Self {
        Self(Some(folder()))
    }

    fn path(&self) -> &Path {
        self.0.as_ref().expect("it is there until it is dropped").path()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if let Some(folder) = self.0.take().filter(|_| std::thread::panicking()) {
            eprintln!("kept: {}", folder.keep().display());
        }
    }
}

/// Lives through many worlds. Answers what they were like together, or panics and names the seeds that broke a law.
fn live_through_all(
    seeds: std::ops::Range<u64>,
    pretended: Option<Pretended<'_>>,
) -> Result<Figures, Vec<(u64, String)>> {
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    let figures = Mutex::new(Figures::default());
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || (pretended.is_some() && !failed.lock().unwrap().is_empty()) {
                        return;
                    }
                    match catch_unwind(AssertUnwindSafe(|| live_through(seed, pretended))) {
                        Ok(lived) => figures.lock().unwrap().add(&lived),
                        Err(panic) => {
                            let text = text_of(&*panic);
                            if pretended.is_none() || !text.starts_with(HANGS) {
                                failed.lock().unwrap().push((seed, text));
                            }
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    if failed.is_empty() { Ok(figures.into_inner().unwrap()) } else { Err(failed) }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
}

/// A job's folder below a root.
fn job_folder(root: &Path, id: crate::domain::JobId) -> PathBuf {
    root.join("state/jobs").join(id.to_string())
}

#[cfg(test)]
mod tests;
