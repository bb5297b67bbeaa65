//! Good things and links to secrets, swapped for each other all the time under the eyes of intake.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::tests::{check_secrets, names_in};
use super::{CANARY, Zoo, chat, completions};
use crate::clock::Clock;
use crate::intake::accept::Verdict;
use crate::intake::fixture::id;
use crate::intake::scan::Scanner;
use crate::spec;

/// Stands in every good thing, before its number.
const MARK: &str = "good-";

/// Makes the good thing of this number.
type Make = fn(&Path, usize);

/// What is swapped: its name, what makes it, the secret that the link leads to.
const PAIRS: [(&str, Make, &str); 3] = [
    ("a.jsonl", |path, number| fs::write(path, chat(&format!("{MARK}{number}-"))).unwrap(), "secret.jsonl"),
    (
        "b.toml",
        |path, number| fs::write(path, completions(&format!("{MARK}{number}-"))).unwrap(),
        "secret.toml",
    ),
    ("c", make_folder, "folder"),
];

fn make_folder(path: &Path, number: usize) {
    fs::create_dir(path).unwrap();
    fs::write(path.join("job.toml"), completions(&format!("{MARK}{number}-"))).unwrap();
}

/// The number of a good file or folder.
fn number_of(path: &Path) -> usize {
    let file = if path.is_dir() { path.join("job.toml") } else { path.to_owned() };
    let text = fs::read_to_string(file).unwrap();
    let (_, rest) = text.split_once(MARK).unwrap();
    rest.split_once('-').unwrap().0.parse().unwrap()
}

/// Swaps until it is told to stop. What was taken is made anew.
fn swap(jobs: &Path, outside: &Path, made: &AtomicUsize, stop: &AtomicBool) {
    let is_link = |path: &Path| fs::symlink_metadata(path).unwrap().is_symlink();
    let exchange = |a: &Path, b: &Path| renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE);
    let data = ["data.txt", ".data.txt"].map(|name| jobs.join("inputs").join(name));
    // No spare may take the place of an earlier one.
    let mut spares = 0;
    while !stop.load(Ordering::Relaxed) {
        exchange(&data[0], &data[1]).unwrap();
        for (name, make, secret) in PAIRS {
            let (shown, hidden) = (jobs.join(name), jobs.join(format!(".{name}")));
            match exchange(&shown, &hidden) {
                Ok(()) => {}
                Err(Errno::NOENT) => {
                    let new = jobs.join(format!(".new-{name}"));
                    if is_link(&hidden) {
                        make(&new, made.fetch_add(1, Ordering::Relaxed));
                    } else {
                        symlink(outside.join(secret), &new).unwrap();
                    }
                    // What was put back meanwhile has the name again: this one gets its chance later.
                    if renameat_with(CWD, &new, CWD, &shown, RenameFlags::NOREPLACE).is_err() {
                        spares += 1;
                        fs::rename(new, jobs.join(format!("spare{spares}-{name}"))).unwrap();
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Takes in what it finds, so many times; answers the numbers of the good things that were taken.
fn take(zoo: &Zoo, rounds: usize) -> Vec<usize> {
    let root = &zoo.root;
    let mut examiner = root.examiner();
    (examiner.validate, examiner.spec) = (spec::read, root.settings.spec.clone().into());
    // What is swapped is taken as it is.
    examiner.settle = Duration::ZERO;
    let (jobs, later) = (&root.settings.jobs, Clock::System.now() + Duration::from_hours(1));
    let mut scanner = Scanner::new(Duration::ZERO);
    let (mut taken, mut examined) = (Vec::new(), 0);
    while examined < rounds {
        let reader = "kind = 'completions'\nmodel = 'm'\n[input]\nfile = 'inputs/data.txt'\n";
        fs::write(jobs.join("data.toml"), reader).unwrap();
        for candidate in scanner.scan(&examiner.jobs, later).unwrap().ready {
            examined += 1;
            match examiner.examine(&candidate, id(examined as u64)).unwrap() {
                Verdict::Valid { claim, .. } => {
                    let job = claim.job.clone();
                    assert!(!fs::read_to_string(job.input()).unwrap().contains(CANARY), "{candidate:?}");
                    if candidate.name != "data.toml" {
                        let spec = job.spec().join("job.toml");
                        taken.push(number_of(&if spec.exists() { spec } else { job.input() }));
                    }
                    claim.settle().unwrap();
                    fs::remove_dir_all(job.path()).unwrap();
                }
                Verdict::Rejected { name, report } => {
                    let path = jobs.join("rejected").join(&name);
                    assert!(!report.to_string().contains(CANARY), "{report}");
                    let moved = fs::symlink_metadata(&path).unwrap();
                    assert!(
                        moved.is_symlink() || candidate.name == "data.toml",
                        "good, but refused: {report}"
                    );
                    fs::remove_file(&path).unwrap();
                    fs::remove_file(jobs.join("rejected").join(format!("{name}.errors.txt"))).unwrap();
                }
                Verdict::Changed | Verdict::Waits { .. } | Verdict::Gone => {}
            }
        }
    }
    taken
}

/// Stops the swapping at its end, whatever that is.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn no_link_is_followed(rounds: usize) {
    let zoo = Zoo::new(1);
    let jobs = &zoo.root.settings.jobs;
    for (name, _, secret) in PAIRS {
        symlink(zoo.outside(secret), jobs.join(format!(".{name}"))).unwrap();
    }
    fs::write(jobs.join("inputs/data.txt"), "row\n").unwrap();
    symlink(zoo.outside("secret.txt"), jobs.join("inputs/.data.txt")).unwrap();
    let (made, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut numbers = thread::scope(|scope| {
        let swapper = || swap(jobs, &zoo.outside(""), &made, &stop);
        let swapper = thread::Builder::new().spawn_scoped(scope, swapper).unwrap();
        let stopping = Stopping(&stop);
        let taken = take(&zoo, rounds);
        drop(stopping);
        swapper.join().unwrap();
        taken
    });
    assert!(!numbers.is_empty(), "none was taken in {rounds} rounds");
    for name in names_in(jobs) {
        let path = jobs.join(&name);
        let ours = name == "inputs" || name == "rejected";
        if !ours && name != "data.toml" && !fs::symlink_metadata(&path).unwrap().is_symlink() {
            numbers.push(number_of(&path));
        }
    }
    let different: BTreeSet<usize> = numbers.iter().copied().collect();
    assert_eq!((numbers.len(), different.len()), (made.load(Ordering::Relaxed), numbers.len()));
    assert!(zoo.root.job_folders().is_empty() && zoo.root.rejected().is_empty());
    check_secrets(&zoo.root);
}

#[test]
fn no_link_is_followed_however_often_it_is_swapped() {
    no_link_is_followed(1000);
}

#[test]
#[ignore = "takes minutes: 100,000 claims of what is swapped all the time"]
fn no_link_is_followed_in_a_hundred_thousand_swaps() {
    no_link_is_followed(100_000);
}
