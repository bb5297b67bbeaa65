//! The look into a spec before anybody claims it: one with a schedule stays where it is.

use std::ffi::OsStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::diag::Report;
use crate::intake::accept::{Examiner, bug, closed};
use crate::intake::claim::Dropped;
use crate::intake::copy::is_swapped;
use crate::intake::scan::{Candidate, stamp_of};
use crate::intake::{Error, FOLDER_SPEC, failed};
use crate::spec::{self, Form, Scheduled, Source};

/// What a candidate turned out to be.
#[derive(Debug)]
pub(in crate::intake) enum Peeked {
    Schedule(Box<Scheduled>),
    /// To be taken in, or, if it can't be read, rejected.
    Ordinary,
    /// It may have a schedule: something is wrong with it.
    Bad {
        report: Report,
    },
    /// It is gone, or not what the scan saw.
    Changed,
}

impl Examiner {
    /// Reads a candidate where it lies. Blocks.
    pub(in crate::intake) fn peek(
        &self,
        name: &str,
        dropped: Dropped,
        candidate: &Candidate,
    ) -> Result<Peeked, Error> {
        let display = display(name, dropped);
        let path = self.jobs.path().join(&display);
        let opened = match dropped {
            Dropped::Jsonl => return Ok(Peeked::Ordinary),
            Dropped::Toml => self.jobs.open_file(OsStr::new(name)),
            Dropped::Folder => {
                self.jobs.below(OsStr::new(name)).and_then(|folder| folder.open_file(OsStr::new(FOLDER_SPEC)))
            }
        };
        let file = match opened {
            Ok((file, _)) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Peeked::Changed),
            Err(error) => {
                return closed(&display, &error)
                    .map(|report| Peeked::Bad { report })
                    .ok_or_else(|| failed("open", &path)(error));
            }
        };
        let folder = self.jobs.path().to_owned();
        let source = Source {
            form: Form::Toml,
            file,
            display: display.clone(),
            folder,
            rest: None,
            now: self.now,
            is_run: false,
        };
        // A bug that one spec wakes must not take the daemon down with it, start after start.
        let peeked = match catch_unwind(AssertUnwindSafe(|| (self.peek)(&source, &self.spec))) {
            Ok(Ok(Some(scheduled))) => Peeked::Schedule(Box::new(scheduled)),
            Ok(Ok(None)) => Peeked::Ordinary,
            Ok(Err(spec::Error::Rejected(report))) => Peeked::Bad { report },
            Ok(Err(spec::Error::Sink(error))) => return Err(failed("read", &path)(error)),
            Ok(Err(spec::Error::Unsettled { .. } | spec::Error::Scheduled)) => Peeked::Changed,
            Err(_) => Peeked::Bad { report: bug(&display) },
        };
        let stamp = match stamp_of(&self.jobs, OsStr::new(name), dropped) {
            Err(error) if !is_swapped(&error) => return Err(failed("look at", &path)(error)),
            stamp => stamp.ok().flatten(),
        };
        Ok(if stamp == Some(candidate.stamp) { peeked } else { Peeked::Changed })
    }
}

/// How a person knows the spec of a schedule.
pub(super) fn display(name: &str, dropped: Dropped) -> String {
    match dropped {
        Dropped::Folder => format!("{name}/{FOLDER_SPEC}"),
        Dropped::Jsonl | Dropped::Toml => name.to_owned(),
    }
}
