//! What intake makes of them: nothing vanishes, nothing is taken twice, nothing outside is read.

use std::io;
use std::panic::resume_unwind;
use std::thread;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tokio::runtime::Builder;

use super::*;
use crate::intake::evil::mischief::read_amid_mischief;
use crate::intake::fixture::Running;
use crate::store::folder::JobFolder;

/// A file that is larger holds nothing: it has holes.
const SEARCHED_BYTES_MAX: u64 = 1 << 30;

/// Runs a test as somebody whom the modes of files bind: root is not.
fn without_privileges(test: impl FnOnce() + Send) {
    let bound = || {
        let mut sets = capabilities(None).unwrap();
        sets.effective -= CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
        set_capabilities(None, sets).unwrap();
        test();
    };
    let ended = thread::scope(|scope| thread::Builder::new().spawn_scoped(scope, bound).unwrap().join());
    if let Err(panic) = ended {
        resume_unwind(panic);
    }
}

/// All names in a folder, whatever they are made of.
pub(super) fn names_in(folder: &Path) -> BTreeSet<OsString> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

/// Where every thing has come to, held against where it belongs.
fn census(intake: &Running, fates: &BTreeMap<OsString, Fate>) {
    let settings = &intake.root.settings;
    let rejected = names_in(&settings.jobs.join("rejected"));
    let waiting: BTreeSet<_> =
        names_in(&settings.jobs).into_iter().filter(|name| name != "inputs" && name != "rejected").collect();
    let mut jobs: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for job in intake.store.accepted() {
        let folder = JobFolder::new(&settings.state, job.id);
        let is_jsonl = Path::new(&job.spec_file).extension() == Some(OsStr::new("jsonl"));
        let spec = if is_jsonl { folder.input() } else { folder.spec().join("job.toml") };
        jobs.entry(job.spec_file).or_default().push(fs::read(spec).unwrap());
    }
    let mut wrong = Vec::new();
    for (name, fate) in fates {
        let aside = safe_name(name);
        let taken = name.to_str().and_then(|name| jobs.remove(name)).unwrap_or_default();
        let mut found: Vec<Fate> = taken.into_iter().map(Fate::Taken).collect();
        if rejected.contains(OsStr::new(&aside)) {
            assert!(rejected.contains(OsStr::new(&format!("{aside}.errors.txt"))), "{aside} has no report");
            found.push(Fate::Rejected);
        }
        if waiting.contains(name) {
            found.push(Fate::Left);
        }
        if found.is_empty() {
            found.push(Fate::Gone);
        }
        if found != std::slice::from_ref(fate) {
            let report = settings.jobs.join("rejected").join(format!("{aside}.errors.txt"));
            let report = fs::read_to_string(report).unwrap_or_default();
            wrong.push(format!("{}\n  {fate:.60?}, but {found:.60?}\n  {report:.200}", name.display()));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), fates.len(), wrong.join("\n"));
    assert!(jobs.is_empty(), "made of nothing that was dropped: {:?}", jobs.keys());
    let things = fates.values().filter(|fate| **fate != Fate::Gone).count();
    let accepted = intake.store.accepted().len();
    assert_eq!(accepted + rejected.len() / 2 + waiting.len(), things, "what was dropped is in one place");
    assert_eq!(intake.root.job_folders().len(), accepted, "no claim is left open");
}

/// Nothing of what lies outside has come in.
pub(super) fn check_secrets(root: &Root) {
    let mut found = Vec::new();
    let jobs = &root.settings.jobs;
    let mut folders = vec![root.settings.state.clone(), root.settings.results.clone(), jobs.join("rejected")];
    while let Some(folder) = folders.pop() {
        for name in names_in(&folder) {
            let path = folder.join(name);
            let stat = fs::symlink_metadata(&path).unwrap();
            if stat.is_dir() {
                folders.push(path);
            } else if stat.is_file() && stat.len() < SEARCHED_BYTES_MAX {
                let holds =
                    fs::read(&path).map(|bytes| memchr::memmem::find(&bytes, CANARY.as_bytes()).is_some());
                match holds {
                    Ok(false) => {}
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                    holds => found.push((path, holds)),
                }
            }
        }
    }
    assert!(found.is_empty(), "{found:?}");
}

/// What nobody may enter can't be removed either.
fn unlock(folder: &Path) {
    for name in names_in(folder) {
        let path = folder.join(name);
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            unlock(&path);
        }
    }
}

fn every_thing_has_its_fate(seed: u64, count: usize) {
    let mut zoo = Zoo::new(seed);
    zoo.fill(count);
    let Zoo { root, fates, .. } = zoo;
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let intake = Running::reading(root, read_amid_mischief);
        intake.idle().await;
        census(&intake, &fates);
        check_secrets(&intake.root);
        let (root, ended) = intake.end().await;
        ended.unwrap();
        unlock(&root.settings.jobs);
    });
}

#[test]
fn every_thing_that_is_dropped_has_its_fate() {
    without_privileges(|| every_thing_has_its_fate(1, 1000));
}

#[test]
#[ignore = "takes minutes: 10,000 things, from another seed in every round"]
fn ten_thousand_things_have_their_fate() {
    for seed in 2..5 {
        without_privileges(|| every_thing_has_its_fate(seed, 10_000));
    }
}
