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

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use super::plan::{self, Verb};
use super::wire::{Exchange, Moment, Said};
use super::world::{Command, Story};
use crate::domain::record::JournalLine;
use crate::domain::{JobState, JobStatus, OnUncertain, QueueName, RequestId};

/// A command has taken effect everywhere after so long: a few dozen late verbs of the store.
const HEARD: Duration = Duration::from_millis(400);

/// Times of retries are kept in whole milliseconds.
const GRAIN: Duration = Duration::from_millis(1);

/// A closed gate lets nobody try before.
const GATE_WAIT: Duration = Duration::from_mins(1);

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
    court.count();
    (court.broken, court.tally)
}

struct Court<'a> {
    story: &'a Story,
    broken: Vec<String>,
    tally: Tally,
}

/// A record, as far as the laws look at it.
struct Record {
    status: Option<u64>,
    code: Option<String>,
    answer: Option<String>,
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

    /// Lines, kept, reason.
    fn lines(&mut self, state: &JobState, journal: &[u8], sent: &BTreeMap<RequestId, Vec<&Exchange>>) {
        let job = state.job.id;
        let mut seen = BTreeSet::new();
        for line in journal.split_inclusive(|byte| *byte == b'\n') {
            let parsed = JournalLine::parse(line.strip_suffix(b"\n").unwrap()).unwrap();
            let request = RequestId { job, index: parsed.index };
            let name = plan::custom_id(request);
            if !seen.insert(parsed.index) {
                self.broken("lines", format_args!("{name} has two records"));
            }
            let record = Record::read(&parsed.published());
            let exchanges = sent.get(&request).map(Vec::as_slice).unwrap_or_default();
            let answered = exchanges.iter().any(|exchange| exchange.said() == Said::Answer);
            let is_answer = record.status == Some(200);
            if answered != is_answer {
                self.broken("kept", format_args!("{name}: answered {answered}, recorded {is_answer}"));
            }
            if is_answer && !record.answer.as_deref().is_some_and(|text| text.ends_with(&name)) {
                self.broken("kept", format_args!("{name} holds the answer {:?}", record.answer));
            }
            if !is_answer && let Some(why) = self.why_not_failed(request, exchanges, &record) {
                self.broken("reason", format_args!("{name} failed {why}"));
            }
            self.tally.uncertain += usize::from(record.code.as_deref() == Some("uncertain"));
        }
        let all = u32::try_from(seen.len()).unwrap() == state.job.total;
        if state.status == JobStatus::Completed && !all {
            self.broken("lines", format_args!("{} ended with {} records", state.job.name, seen.len()));
        }
        for (request, exchanges) in
            sent.range(RequestId { job, index: 0 }..=RequestId { job, index: u32::MAX })
        {
            let answered = exchanges.iter().any(|exchange| exchange.said() == Said::Answer);
            if answered && !seen.contains(&request.index) {
                self.broken("kept", format_args!("the answer to {} is lost", plan::custom_id(*request)));
            }
        }
        let counts = state.counts;
        if counts.open() > 0 || counts.completed + counts.failed != counts.total {
            self.broken("lines", format_args!("{} ended with {counts:?}", state.job.name));
        }
        self.tally.cancelled += usize::from(state.status == JobStatus::Cancelled);
        self.tally.expired += usize::from(state.status == JobStatus::Expired);
    }

    fn why_not_failed(
        &self,
        request: RequestId,
        sent: &[&Exchange],
        record: &Record,
    ) -> Option<&'static str> {
        let Some(last) = sent.last() else { return Some("though it was never sent") };
        let lost = sent.iter().filter(|exchange| exchange.said().is_lost()).count();
        if record.code.as_deref() == Some("uncertain") {
            let is_due = match self.policy(request) {
                OnUncertain::Retry => lost >= 2,
                OnUncertain::Fail => lost >= 1,
                OnUncertain::Hold => false,
            };
            return (!(is_due && last.said().is_lost())).then_some("as uncertain");
        }
        let used_up = used(sent) >= self.story.plan.retry.max_attempts as usize;
        (last.said() != Said::Refusal && !used_up).then_some("with attempts left")
    }

    /// Again, uncertain, and the first half of pace.
    fn again(&mut self, request: RequestId, sent: &[&Exchange]) {
        let name = plan::custom_id(request);
        let policy = self.policy(request);
        for (at, pair) in sent.windows(2).enumerate() {
            let [before, after] = [pair[0], pair[1]];
            let Some((ended, said)) = before.ended else { continue };
            let (from, to) = (ended.at, after.sent.at);
            if ended > after.sent {
                self.broken("again", format_args!("{name} is in flight twice"));
            }
            if matches!(said, Said::Answer | Said::Refusal) {
                self.broken("again", format_args!("{name} is sent again after {said:?}"));
            }
            let earlier = &sent[..=at];
            let lost = earlier.iter().filter(|exchange| exchange.said().is_lost()).count();
            let may_go_on = match policy {
                OnUncertain::Retry => lost <= 1,
                OnUncertain::Hold => self.commanded(&[Verb::Retry], request, from, to),
                OnUncertain::Fail => false,
            };
            if said.is_lost() && !may_go_on {
                self.broken("uncertain", format_args!("{name} was lost {lost} times and is sent again"));
            }
            let used_up = used(earlier) >= self.story.plan.retry.max_attempts as usize;
            if used_up && !said.is_lost() && matches!(said, Said::Failed | Said::Unsure) {
                self.broken("again", format_args!("{name} is sent again with its attempts used up"));
            }
            if let Said::Later(Some(wait)) = said
                && to + GRAIN < from + wait
                && !self.commanded(&[Verb::Retry], request, from, to)
            {
                self.broken(
                    "pace",
                    format_args!("{name} was to wait {wait:?} and came after {:?}", to.saturating_sub(from)),
                );
            }
        }
    }

    /// Drain.
    fn given_up(&mut self, sent: &[&Exchange]) {
        let grace = self.story.plan.grace;
        for exchange in sent {
            let Some((ended, Said::GivenUp)) = exchange.ended else { continue };
            let life = self.story.lives[exchange.life];
            let in_hurry = life.hurried.is_some_and(|at| at <= ended);
            let drained = life.stopped.is_some_and(|at| at.at + grace <= ended.at);
            let cancelled = self.story.commands.iter().any(|command| {
                command.verb == Verb::Cancel
                    && command.job == exchange.request.job
                    && command.at.at + grace <= ended.at
            });
            let expired = self.expires_at(exchange.request).is_some_and(|at| at + grace <= ended.at);
            if !(in_hurry || drained || cancelled || expired) {
                let name = plan::custom_id(exchange.request);
                self.broken("drain", format_args!("{name} is given up at {:?}", ended.at));
            }
        }
    }

    fn payments(&mut self, by_request: &BTreeMap<RequestId, Vec<&Exchange>>) {
        let mut repeated: BTreeMap<_, u64> = BTreeMap::new();
        for (request, sent) in by_request {
            let Some(payments) = self.story.payments.get(request) else { continue };
            let doubtful =
                sent.iter().filter(|exchange| exchange.said() == Said::Unsure || exchange.said().is_lost());
            let answers = sent.iter().filter(|exchange| exchange.said() == Said::Answer).count();
            let most = (doubtful.count() + answers) as u64;
            if answers > 1 || payments.paid > most {
                let name = plan::custom_id(*request);
                self.broken(
                    "payments",
                    format_args!("{name} was paid {} times, at most {most}", payments.paid),
                );
            }
            *repeated.entry(request.job).or_default() += payments.paid.saturating_sub(1);
        }
        for (job, repeated) in repeated {
            self.tally.paid_again += repeated;
            let state = self.story.states.iter().find(|state| state.job.id == job).unwrap();
            if u64::from(state.counts.maybe_paid_twice) < repeated {
                let counted = state.counts.maybe_paid_twice;
                self.broken(
                    "payments",
                    format_args!("{}: {repeated} repeats, {counted} told", state.job.name),
                );
            }
        }
    }

    /// Slots, bounds and rates.
    fn pace(&mut self) {
        let queues: BTreeSet<&QueueName> =
            self.story.exchanges.iter().map(|exchange| &exchange.queue).collect();
        for provider in &self.story.plan.providers {
            let of = |exchange: &&Exchange| exchange.queue.provider() == provider.name;
            let most = most_in_flight(self.story.exchanges.iter().filter(of));
            if most > i64::from(provider.bound) {
                self.broken(
                    "pace",
                    format_args!("{most} in flight at {}, at most {}", provider.name, provider.bound),
                );
            }
            for queue in queues.iter().filter(|queue| queue.provider() == provider.name) {
                let sent: Vec<&Exchange> =
                    self.story.exchanges.iter().filter(|exchange| exchange.queue == **queue).collect();
                let most = most_in_flight(sent.iter().copied());
                if most > i64::from(provider.slots) {
                    self.broken(
                        "pace",
                        format_args!("{most} in flight in {queue}, at most {}", provider.slots),
                    );
                }
                if let Some(rate) = provider.requests_per_minute {
                    self.rate(queue, &sent, rate as usize);
                }
            }
        }
    }

    /// A minute takes a minute's worth, and what a bucket holds: one request, anew in each life.
    fn rate(&mut self, queue: &QueueName, sent: &[&Exchange], rate: usize) {
        for (at, first) in sent.iter().enumerate() {
            let to = first.sent.at + Duration::from_mins(1);
            let window = sent[at..].iter().take_while(|exchange| exchange.sent.at < to).count();
            let begun = |life: &&super::world::LifeSpan| (first.sent.at..to).contains(&life.begun.at);
            let lives = self.story.lives.iter().filter(begun).count();
            if window > rate + 1 + lives {
                self.broken("pace", format_args!("{window} requests of {queue} in a minute, at most {rate}"));
                return;
            }
        }
    }

    /// Lane: the gate of each provider in each life, as it has to be.
    fn lane(&mut self) {
        for (life, _) in self.story.lives.iter().enumerate() {
            for provider in &self.story.plan.providers {
                let of = |e: &&Exchange| e.life == life && e.queue.provider() == provider.name;
                let exchanges: Vec<&Exchange> = self.story.exchanges.iter().filter(of).collect();
                let mut events: Vec<(Moment, usize, Option<Said>)> = Vec::new();
                for (at, exchange) in exchanges.iter().enumerate() {
                    events.push((exchange.sent, at, None));
                    events.extend(exchange.ended.map(|(moment, said)| (moment, at, Some(said))));
                }
                events.sort_by_key(|(moment, ..)| *moment);
                let mut gate = Gate::Open;
                for (moment, which, said) in events {
                    let name = plan::custom_id(exchanges[which].request);
                    match said {
                        Some(said) => gate.hear(which, said, moment.at),
                        None => {
                            if !self.may_enter(&mut gate, which, moment.at) {
                                let text =
                                    format_args!("{name} is sent at {:?} to {}", moment.at, provider.name);
                                self.broken("lane", text);
                            }
                        }
                    }
                }
            }
        }
    }

    fn may_enter(&self, gate: &mut Gate, which: usize, now: Duration) -> bool {
        let Gate::Closed { at, until, strikes } = *gate else { return matches!(gate, Gate::Open) };
        // Who was let in before it closed is sent in the same instant.
        if now == at && now < until {
            return true;
        }
        let bells = [Verb::Resume, Verb::Retry];
        let resumed = self.story.commands.iter().any(|command| {
            bells.contains(&command.verb) && command.at.at + HEARD >= at && command.at.at <= now
        });
        *gate = Gate::Trying { which, strikes };
        now >= until || resumed
    }

    /// Stop.
    fn stopped_jobs(&mut self) {
        for state in &self.story.states {
            let job = state.job.id;
            let of_job: Vec<&Command> =
                self.story.commands.iter().filter(|command| command.job == job).collect();
            for exchange in self.story.exchanges.iter().filter(|exchange| exchange.request.job == job) {
                let now = exchange.sent.at;
                let last = of_job.iter().rev().find(|command| command.at.at + HEARD < now);
                let since =
                    of_job.iter().any(|c| c.verb != Verb::Pause && c.at.at + HEARD >= now && c.at.at <= now);
                let stopped = last.is_some_and(|last| matches!(last.verb, Verb::Pause | Verb::Cancel));
                let was_cancelled = of_job.iter().any(|c| c.verb == Verb::Cancel && c.at.at + HEARD < now);
                if was_cancelled || (stopped && !since) {
                    self.broken("stop", format_args!("{} sends at {now:?}", state.job.name));
                }
                let begun = self.story.lives[exchange.life].begun.at;
                if self.expires_at(exchange.request).is_some_and(|at| at.max(begun) + HEARD < now) {
                    self.broken("stop", format_args!("{} has expired and sends at {now:?}", state.job.name));
                }
            }
        }
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

/// A provider's gate, as the laws have it.
#[derive(Clone, Copy, Debug)]
enum Gate {
    Open,
    Closed { at: Duration, until: Duration, strikes: u32 },
    Trying { which: usize, strikes: u32 },
}

impl Gate {
    fn hear(&mut self, from: usize, said: Said, now: Duration) {
        let trying = match *self {
            Self::Open => None,
            Self::Trying { which, strikes } if which == from => Some(strikes),
            Self::Closed { .. } | Self::Trying { .. } => return,
        };
        let close = |wait: Duration, strikes| Self::Closed { at: now, until: now + wait, strikes };
        match (said, trying) {
            (Said::Blocked, None) => *self = close(GATE_WAIT, 0),
            (Said::Blocked, Some(strikes)) => {
                let wait = GATE_WAIT.saturating_mul(1 << (strikes + 1).min(16)).min(Duration::from_mins(30));
                *self = close(wait, strikes + 1);
            }
            (Said::Answer | Said::Refusal, Some(_)) => *self = Self::Open,
            // It has not told anything: the next one tries.
            (_, Some(strikes)) => *self = close(Duration::ZERO, strikes),
            (_, None) => {}
        }
    }
}

impl Exchange {
    fn said(&self) -> Said {
        self.ended.map_or(Said::Died, |(_, said)| said)
    }
}

impl Record {
    fn read(line: &[u8]) -> Self {
        let line: Value = serde_json::from_slice(line).unwrap();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let response = &line["response"];
        Self {
            status: response["status_code"].as_u64(),
            code: text(&line["error"]["code"]),
            answer: text(&response["body"]["choices"][0]["message"]["content"]),
        }
    }
}

/// Attempts that count.
fn used(sent: &[&Exchange]) -> usize {
    let counts = |said: Said| matches!(said, Said::Failed | Said::Unsure) || said.is_lost();
    sent.iter().filter(|exchange| counts(exchange.said())).count()
}

/// How many of these were in flight at one time, at most.
fn most_in_flight<'a>(exchanges: impl Iterator<Item = &'a Exchange>) -> i64 {
    let mut steps: Vec<(Moment, i64)> = Vec::new();
    for exchange in exchanges {
        steps.push((exchange.sent, 1));
        steps.extend(exchange.ended.map(|(at, _)| (at, -1)));
    }
    steps.sort_unstable();
    let mut now = 0;
    steps
        .into_iter()
        .map(|(_, step)| {
            now += step;
            now
        })
        .max()
        .unwrap_or(0)
}
