//! What must hold after every storm, judged by the book of what really happened.
//!
//! | law | what it says |
//! |---|---|
//! | lines | a completed job has one record for each request; no job has two for one |
//! | kept | an answer that reached the living process is the record, and nothing else is |
//! | reason | a request fails only for a refusal, when its attempts are used up, or as uncertain |
//! | again | a request is sent again only after an end that allows it: never after an answer |
//! | uncertain | what a death or an abandoned drain lost is sent once more at most, not at all, or by a person |
//! | payments | no more is billed than the ends allow, and the job's count says what was repeated |
//! | drain | what is in flight is given up only when a grace is over, or in a hurry |
//! | pace | nobody comes back before `Retry-After`; slots, bounds and rates are never exceeded |
//! | lane | behind a closed gate one request at a time tries, and none before its time |
//! | stop | of a paused, ended or expired job nothing is sent |
//! | idle | under a clear sky no provider waits longer than it has asked to, nor does the end |

mod pace;
mod records;
mod repeats;

use std::collections::BTreeMap;
use std::time::Duration;

use super::plan::Verb;
use super::wire::{Exchange, Said};
use super::world::{Command, Story};
use crate::domain::{JobState, OnUncertain, RequestId};

/// What one storm held, so that tests see whether there was anything to judge.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) sent: usize,
    pub(super) answers: usize,
    pub(super) deaths: usize,
    pub(super) died_in_flight: usize,
    pub(super) drains: usize,
    pub(super) given_up: usize,
    pub(super) unsure: usize,
    pub(super) later: usize,
    pub(super) blocked: usize,
    pub(super) commands: usize,
    pub(super) held: usize,
    pub(super) uncertain: usize,
    pub(super) cancelled: usize,
    pub(super) expired: usize,
    pub(super) paid_again: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.answers += other.answers;
        self.deaths += other.deaths;
        self.died_in_flight += other.died_in_flight;
        self.drains += other.drains;
        self.given_up += other.given_up;
        self.unsure += other.unsure;
        self.later += other.later;
        self.blocked += other.blocked;
        self.commands += other.commands;
        self.held += other.held;
        self.uncertain += other.uncertain;
        self.cancelled += other.cancelled;
        self.expired += other.expired;
        self.paid_again += other.paid_again;
    }
}

/// Every law that the story breaks.
pub(super) fn judge(story: &Story) -> (Vec<String>, Tally) {
    let mut court = Court { story, broken: story.troubles.clone(), tally: Tally::default() };
    if story.is_endless() {
        // The other laws look at each against all: over so many that takes minutes and says nothing more.
        court.broken(
            "pace",
            format_args!("{} requests are sent, and there is no end to it", story.exchanges.len()),
        );
        court.lane();
        return (court.broken, court.tally);
    }
    let mut by_request: BTreeMap<RequestId, Vec<&Exchange>> = BTreeMap::new();
    for exchange in &story.exchanges {
        by_request.entry(exchange.request).or_default().push(exchange);
    }
    for (state, journal) in story.states.iter().zip(&story.journals) {
        court.lines(state, journal, &by_request);
    }
    for (request, sent) in &by_request {
        court.again(*request, sent);
        court.given_up(sent);
    }
    court.payments(&by_request);
    court.pace();
    court.lane();
    court.stopped_jobs();
    court.idle();
    court.count();
    (court.broken, court.tally)
}

struct Court<'a> {
    story: &'a Story,
    broken: Vec<String>,
    tally: Tally,
}

impl Court<'_> {
    fn broken(&mut self, law: &str, what: impl std::fmt::Display) {
        self.broken.push(format!("{law}: {what}"));
    }

    fn state(&self, request: RequestId) -> &JobState {
        self.story.states.iter().find(|state| state.job.id == request.job).unwrap()
    }

    fn policy(&self, request: RequestId) -> OnUncertain {
        self.state(request).job.settings.on_uncertain.unwrap_or_default()
    }

    /// Commands of this kind on the job of `request` within these times.
    fn commanded(&self, verbs: &[Verb], request: RequestId, from: Duration, to: Duration) -> bool {
        self.story.commands.iter().any(|Command { at, verb, job }| {
            verbs.contains(verb) && *job == request.job && (from..=to).contains(&at.at)
        })
    }

    fn expires_at(&self, request: RequestId) -> Option<Duration> {
        let job = &self.state(request).job;
        let start = crate::domain::Timestamp::from_millis(1_000_000);
        job.expires_at().map(|at| at.since(start))
    }

    fn count(&mut self) {
        let said = |matching: fn(Said) -> bool| {
            self.story.exchanges.iter().filter(|exchange| matching(exchange.said())).count()
        };
        let lives = &self.story.lives;
        self.tally = Tally {
            sent: self.story.exchanges.len(),
            answers: said(|said| said == Said::Answer),
            deaths: lives.iter().filter(|life| life.died).count(),
            died_in_flight: said(|said| said == Said::Died),
            drains: lives.iter().filter(|life| life.stopped.is_some() && !life.died).count(),
            given_up: said(|said| said == Said::GivenUp),
            unsure: said(|said| said == Said::Unsure),
            later: said(|said| matches!(said, Said::Later(_))),
            blocked: said(|said| said == Said::Blocked),
            commands: self.story.commands.len(),
            held: self.story.trace.iter().filter(|line| line.contains("is held")).count(),
            ..self.tally
        };
    }
}

impl Exchange {
    fn said(&self) -> Said {
        self.ended.map_or(Said::Died, |(_, said)| said)
    }
}

/// Attempts that count.
fn used(sent: &[&Exchange]) -> usize {
    let counts = |said: Said| matches!(said, Said::Failed | Said::Unreached | Said::Unsure) || said.is_lost();
    sent.iter().filter(|exchange| counts(exchange.said())).count()
}
