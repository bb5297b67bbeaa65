//! Moves what can't be a job aside: into `jobs/rejected/`, with everything that is wrong with it beside it.
//!
//! The report is written and synced under a hidden name first, then the file is moved, then the report
//! gets its own name: `NAME.errors.txt` is there only when `NAME` is, and a crash between the two is
//! mended by [`publish_reports`].

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};

use super::dir::Dir;
use super::name::{NUMBERS_MAX, numbered, safe_name};
use super::{Error, REJECTED, REPORT, failed};
use crate::diag::Report;

const TEMPORARY: &str = ".tmp";

/// Moves `from` into `rejected/` below `jobs`, beside its report. `name` is what it was dropped as. Answers
/// its name there; none if it was gone.
pub(super) fn move_aside(
    from: (&Dir, &OsStr),
    jobs: &Dir,
    name: &OsStr,
    report: &Report,
) -> Result<Option<String>, Error> {
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
        match from.0.move_new(from.1, &rejected, OsStr::new(&name)) {
            Ok(()) => {}
            Err(error) => {
                rejected.remove_file(&temporary).map_err(failed("remove report for", &target))?;
                if error.kind() == io::ErrorKind::AlreadyExists {
                    continue;
                }
                if error.kind() == io::ErrorKind::NotFound {
                    return Ok(None);
                }
                return Err(failed("move aside to", &target)(error));
            }
        }
        let named = OsString::from(format!("{name}{REPORT}"));
        let published = rejected.sync().and_then(|()| rejected.replace(&temporary, &named));
        published.and_then(|()| rejected.sync()).map_err(failed("write report for", &target))?;
        return Ok(Some(name));
    }
    Err(failed("move aside to", &path.join(wanted))(io::ErrorKind::AlreadyExists.into()))
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

fn write_report(rejected: &Dir, name: &OsStr, report: &Report) -> io::Result<()> {
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
        move_aside((&dir, OsStr::new(name)), &dir, OsStr::new(name), &report("bad")).unwrap()
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
    fn a_rejected_folder_that_is_a_link_is_not_written_through() {
        let jobs = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), jobs.path().join("rejected")).unwrap();
        fs::write(jobs.path().join("a.jsonl"), "a").unwrap();
        let dir = Dir::open(jobs.path()).unwrap();
        let name = OsStr::new("a.jsonl");
        assert!(move_aside((&dir, name), &dir, name, &report("bad")).is_err());
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
