//! Who answers the questions of `batchd prepare`: a person at a terminal, `--yes`, or nobody.

use std::io::{self, BufRead, ErrorKind};

use serde::Serialize;

use super::report::Printer;
use super::{Exit, Failure};
use crate::diag::{Diagnostic, Report};
use crate::training::prepare::Person;

/// A person who has answered neither yes nor no so often does not want to.
const ASKED_MAX: u32 = 5;

/// Where answers come from.
pub(super) enum Answers<'a> {
    Yes,
    Terminal(Box<dyn BufRead + 'a>),
    Nobody,
}

/// Something that was proposed.
#[derive(Debug, Serialize)]
pub(super) struct Proposed {
    pub(super) proposal: String,
    pub(super) done: bool,
}

/// Tells what is found on stderr, and asks there.
pub(super) struct Desk<'d, 'p> {
    answers: Answers<'d>,
    printer: &'d mut Printer<'p>,
    report: Report,
    proposed: Vec<Proposed>,
}

impl<'d, 'p> Desk<'d, 'p> {
    pub(super) fn new(answers: Answers<'d>, printer: &'d mut Printer<'p>) -> Self {
        Self { answers, printer, report: Report::default(), proposed: Vec::new() }
    }

    /// What was told, and what was proposed.
    pub(super) fn into_findings(self) -> (Report, Vec<Proposed>) {
        (self.report, self.proposed)
    }

    pub(super) fn tell_all(&mut self, found: &Report) {
        self.printer.findings(found);
        self.report.absorb(found.clone());
    }

    pub(super) fn note(&mut self, text: &str) {
        self.printer.note(text);
    }

    /// Why there was no answer to the last question.
    pub(super) fn unanswered(&self, error: &io::Error) -> Failure {
        if error.kind() == ErrorKind::NotConnected {
            let proposal = self.proposed.last().map_or("", |last| last.proposal.as_str());
            Failure::new(Exit::Usage, format!("nobody can be asked, at first whether to {proposal}"))
                .hint("`--yes` does all that is advised; or run it on a terminal")
        } else if error.kind() == ErrorKind::UnexpectedEof {
            Failure::new(Exit::Usage, "no answer: nothing was written")
        } else {
            Failure::new(Exit::StateIo, format!("the answer can't be read: {error}"))
        }
    }

    fn answer(&mut self, proposal: &str) -> io::Result<bool> {
        let terminal = match &mut self.answers {
            Answers::Yes => {
                self.printer.note(&format!("advised: {proposal}: done"));
                return Ok(true);
            }
            Answers::Nobody => return Err(ErrorKind::NotConnected.into()),
            Answers::Terminal(terminal) => terminal,
        };
        for _ in 0..ASKED_MAX {
            self.printer.ask(&format!("advised: {proposal}? [Y/n]"));
            let mut line = String::new();
            if terminal.read_line(&mut line)? == 0 {
                break;
            }
            match line.trim().to_lowercase().as_str() {
                "" | "y" | "yes" => return Ok(true),
                "n" | "no" => return Ok(false),
                _ => {}
            }
        }
        Err(ErrorKind::UnexpectedEof.into())
    }
}

impl Person for Desk<'_, '_> {
    fn tell(&mut self, found: Diagnostic) {
        self.printer.findings(&Report::from(found.clone()));
        self.report.push(found);
    }

    fn agrees(&mut self, proposal: &str) -> io::Result<bool> {
        self.proposed.push(Proposed { proposal: proposal.to_owned(), done: false });
        let agrees = self.answer(proposal)?;
        if let Some(last) = self.proposed.last_mut() {
            last.done = agrees;
        }
        Ok(agrees)
    }
}
