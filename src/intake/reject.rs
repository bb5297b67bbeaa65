//! Moves what can't be a job aside: into `jobs/rejected/`, with everything that is wrong with it beside it.
//!
//! The report is written and synced under a hidden name first, then the file is moved, then the report
//! gets its own name: `NAME.errors.txt` is there only when `NAME` is, and a crash between the two is
//! mended by [`publish_reports`].

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};

use super::dir::{Dir, Entry};
use super::name::{NUMBERS_MAX, numbered, safe_name};
use super::{Error, REJECTED, REPORT, failed};
use crate::diag::Report;

const TEMPORARY: &str = ".tmp";

/// What came of moving something aside.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// Its name in `rejected/`.
    Aside(String),
    /// It was gone.
    Gone,
    /// Something else had its name by then, and has it still.
    Swapped,
}

/// Moves `from` into `rejected/` below `jobs`, beside its report, if it is what is meant. `name` is what it was
/// dropped as.
pub(super) fn move_aside(
    from: (&Dir, &OsStr),
    jobs: &Dir,
    name: &OsStr,
    report: &Report,
    is_meant: impl Fn(&Entry) -> bool,
) -> Result<Moved, Error> {
    let path = jobs.path().join(REJECTED);
    let rejected = jobs.make_below(OsStr::new(REJECTED)).map_err(failed("open folder", &path))?;
    let wanted = safe_name(name);
    for number in 1..NUMBERS_MAX {
        let name = numbered(&wanted, number);
        let target = path.join(&name);
        if rejected.stat(OsStr::new(&name)).map_err(failed("look at", &target))?.is_some() {
            continue;
        }
        let temporary = OsString::from(format!(".{name}{REPORT}{TEMPORARY}"));
        write_report(&rejected, &temporary, report).map_err(failed("write report for", &target))?;
        let moved = match from.0.move_new(from.1, &rejected, OsStr::new(&name)) {
            Ok(()) if is_still(&rejected, &name, &is_meant).map_err(failed("look at", &target))? => {
                let named = OsString::from(format!("{name}{REPORT}"));
                let published = rejected.sync().and_then(|()| rejected.replace(&temporary, &named));
                published.and_then(|()| rejected.sync()).map_err(failed("write report for", &target))?;
                return Ok(Moved::Aside(name));
            }
            Ok(()) => give_back((&rejected, &name), from).map(|()| Some(Moved::Swapped)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(Moved::Gone)),
            Err(error) => Err(error),
        };
        rejected.remove_file(&temporary).map_err(failed("remove report for", &target))?;
        if let Some(moved) = moved.map_err(failed("move aside to", &target))? {
            return Ok(moved);
        }
    }
    Err(failed("move aside to", &path.join(wanted))(io::ErrorKind::AlreadyExists.into()))
}

/// Whether what was moved is what is meant: names can be swapped up to the last moment.
fn is_still(rejected: &Dir, name: &str, is_meant: &impl Fn(&Entry) -> bool) -> io::Result<bool> {
    Ok(rejected.stat(OsStr::new(name))?.is_none_or(|entry| is_meant(&entry)))
}

/// Moves it back where it came from, under its name or, if that was taken meanwhile, a numbered one.
fn give_back(moved: (&Dir, &str), to: (&Dir, &OsStr)) -> io::Result<()> {
    let numbered = (2..NUMBERS_MAX).map(|number| OsString::from(numbered(moved.1, number)));
    for name in std::iter::once(to.1.to_owned()).chain(numbered) {
        match moved.0.move_new(OsStr::new(moved.1), to.0, &name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            moved => return moved,
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// After a crash: gives the reports of files that were moved their names, and removes the others.
pub(super) fn publish_reports(jobs: &Dir) -> io::Result<()> {
    let rejected = match jobs.below(OsStr::new(REJECTED)) {
        Ok(rejected) => rejected,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for temporary in rejected.names()? {
        let temporary = temporary?;
        let stem = temporary.to_str().and_then(|n| n.strip_prefix('.')?.strip_suffix(TEMPORARY));
        let Some((report, name)) = stem.and_then(|report| Some((report, report.strip_suffix(REPORT)?)))
        else {
            continue;
        };
        if rejected.stat(OsStr::new(name))?.is_some() {
            rejected.replace(&temporary, OsStr::new(report))?;
        } else {
            rejected.remove_file(&temporary)?;
        }
    }
    rejected.sync()
}

pub(super) fn write_report(rejected: &Dir, name: &OsStr, report: &Report) -> io::Result<()> {
    rejected.remove_file(name)?;
    let mut file = rejected.create_file(name, 0o644)?;
    file.write_all(report.to_string().as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::diag::Diagnostic;

    fn report(message: &str) -> Report {
        Diagnostic::error("a.jsonl", 1, 1, message).into()
    }

    fn reject(jobs: &Path, name: &str) -> Option<String> {
        let dir = Dir::open(jobs).unwrap();
        let moved = move_aside((&dir, OsStr::new(name)), &dir, OsStr::new(name), &report("bad"), |_| true);
        match moved.unwrap() {
            Moved::Aside(name) => Some(name),
            Moved::Gone => None,
            Moved::Swapped => panic!("nothing was swapped"),
        }
    }

    #[test]
    fn rejected_files_never_replace_earlier_ones() {
        let jobs = tempfile::tempdir().unwrap();
        for expected in ["a.chat.jsonl", "a-2.chat.jsonl", "a-3.chat.jsonl"] {
            fs::write(jobs.path().join("a.chat.jsonl"), expected).unwrap();
            assert_eq!(reject(jobs.path(), "a.chat.jsonl").as_deref(), Some(expected));
            let file = jobs.path().join("rejected").join(expected);
            assert_eq!(fs::read_to_string(&file).unwrap(), expected);
            let report = fs::read_to_string(format!("{}.errors.txt", file.display())).unwrap();
            assert_eq!(report, "a.jsonl:1:1: error: bad\n");
        }
        assert_eq!(fs::read_dir(jobs.path().join("rejected")).unwrap().count(), 6);
    }

    #[test]
    fn a_file_that_is_gone_leaves_no_report() {
        let jobs = tempfile::tempdir().unwrap();
        assert_eq!(reject(jobs.path(), "gone.jsonl"), None);
        assert_eq!(fs::read_dir(jobs.path().join("rejected")).unwrap().count(), 0);
    }

    #[test]
    fn what_is_not_meant_goes_back() {
        let jobs = tempfile::tempdir().unwrap();
        fs::write(jobs.path().join("a.jsonl"), "good").unwrap();
        let dir = Dir::open(jobs.path()).unwrap();
        let name = OsStr::new("a.jsonl");
        // Somebody takes the name before it can be given back.
        let taken = |_: &Entry| fs::write(jobs.path().join("a.jsonl"), "new").is_err();
        let moved = move_aside((&dir, name), &dir, name, &report("bad"), taken).unwrap();
        assert_eq!(moved, Moved::Swapped);
        assert_eq!(fs::read_to_string(jobs.path().join("a.jsonl")).unwrap(), "new");
        assert_eq!(fs::read_to_string(jobs.path().join("a-2.jsonl")).unwrap(), "good");
        assert_eq!(fs::read_dir(jobs.path().join("rejected")).unwrap().count(), 0);
    }

    #[test]
    fn a_rejected_folder_that_is_a_link_is_not_written_through() {
        let jobs = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), jobs.path().join("rejected")).unwrap();
        fs::write(jobs.path().join("a.jsonl"), "a").unwrap();
        let dir = Dir::open(jobs.path()).unwrap();
        let name = OsStr::new("a.jsonl");
        assert!(move_aside((&dir, name), &dir, name, &report("bad"), |_| true).is_err());
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        assert!(jobs.path().join("a.jsonl").exists());
    }

    #[test]
    fn reports_that_a_crash_left_hidden_are_published_or_removed() {
        let jobs = tempfile::tempdir().unwrap();
        let rejected = jobs.path().join("rejected");
        fs::create_dir(&rejected).unwrap();
        fs::write(rejected.join("a.jsonl"), "").unwrap();
        fs::write(rejected.join(".a.jsonl.errors.txt.tmp"), "why").unwrap();
        fs::write(rejected.join(".b.jsonl.errors.txt.tmp"), "hal").unwrap();
        for _ in 0..2 {
            publish_reports(&Dir::open(jobs.path()).unwrap()).unwrap();
            assert_eq!(fs::read_to_string(rejected.join("a.jsonl.errors.txt")).unwrap(), "why");
            assert_eq!(fs::read_dir(&rejected).unwrap().count(), 2);
        }
    }
}
