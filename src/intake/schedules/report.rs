//! What is wrong with a schedule's file: a report in `rejected/`, though the file itself stays where it is.

use std::ffi::{OsStr, OsString};
use std::io;

use crate::diag::Report;
use crate::intake::dir::Dir;
use crate::intake::name::{NUMBERS_MAX, numbered, safe_name};
use crate::intake::reject::write_report;
use crate::intake::{Error, REJECTED, REPORT, failed};

/// Writes the report on the schedule `name`, in place of the one `before` it. Answers its name.
pub(super) fn publish(
    jobs: &Dir,
    name: &str,
    before: Option<&str>,
    report: &Report,
) -> Result<String, Error> {
    let path = jobs.path().join(REJECTED);
    let rejected = jobs.make_below(OsStr::new(REJECTED)).map_err(failed("open folder", &path))?;
    let write = || -> io::Result<String> {
        let named = match before.filter(|before| is_ours(&rejected, before)) {
            Some(before) => before.to_owned(),
            None => free_name(&rejected, name)?,
        };
        let temporary = OsString::from(format!(".{named}.tmp"));
        write_report(&rejected, &temporary, report)?;
        rejected.replace(&temporary, OsStr::new(&named))?;
        rejected.sync()?;
        Ok(named)
    };
    write().map_err(failed("write the report on a schedule in", &path))
}

/// Removes a report: what it was on is mended or gone.
pub(super) fn withdraw(jobs: &Dir, named: &str) -> Result<(), Error> {
    let path = jobs.path().join(REJECTED);
    let rejected = match jobs.below(OsStr::new(REJECTED)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        rejected => rejected.map_err(failed("open folder", &path))?,
    };
    if !is_ours(&rejected, named) {
        return Ok(());
    }
    let removed = rejected.remove_file(OsStr::new(named)).and_then(|()| rejected.sync());
    removed.map_err(failed("remove the report on a schedule in", &path))
}

/// Whether no spec lies beside it: then it would be the report on that one.
fn is_ours(rejected: &Dir, named: &str) -> bool {
    let spec = named.strip_suffix(REPORT).unwrap_or(named);
    rejected.stat(OsStr::new(spec)).is_ok_and(|spec| spec.is_none())
}

fn free_name(rejected: &Dir, name: &str) -> io::Result<String> {
    let wanted = safe_name(name.as_ref());
    for number in 1..NUMBERS_MAX {
        let name = numbered(&wanted, number);
        if rejected.stat(OsStr::new(&name))?.is_none() {
            return Ok(format!("{name}{REPORT}"));
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}
