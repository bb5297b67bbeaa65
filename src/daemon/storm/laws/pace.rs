//! Pace, lane, stop, idle: how many are sent at a time, when none may be, and when one must be.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Court;
use crate::daemon::storm::plan::{self, Verb};
use crate::daemon::storm::wire::{Exchange, Moment, Said};
use crate::daemon::storm::world::{Command, LifeSpan};
use crate::domain::QueueName;

/// A command has taken effect everywhere after so long: a few dozen late verbs of the store.
const HEARD: Duration = Duration::from_millis(400);

/// A closed gate lets nobody try before.
const GATE_WAIT: Duration = Duration::from_mins(1);

/// Longer than anybody is told to wait, and far below the ten minutes after which a dispatcher looks around by itself
/// though nobody has woken it.
const SILENCE: Duration = Duration::from_mins(2);

impl Court<'_> {
    /// Slots, bounds and rates.
    pub(super) fn pace(&mut self) {
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
            let begun = |life: &&LifeSpan| (first.sent.at..to).contains(&life.begun.at);
            let lives = self.story.lives.iter().filter(begun).count();
            if window > rate + 1 + lives {
                self.broken("pace", format_args!("{window} requests of {queue} in a minute, at most {rate}"));
                return;
            }
        }
    }

    /// Lane: the gate of each provider in each life, as it has to be.
    pub(super) fn lane(&mut self) {
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

    /// Idle: whoever is not told that a place is free or a retry due is late by minutes, and by nothing else.
    fn silence(&mut self, who: &str, from: Duration, to: Duration) {
        if to.saturating_sub(from) > SILENCE {
            self.broken("idle", format_args!("{who} waits from {from:?} to {to:?} for nothing"));
        }
    }

    pub(super) fn idle(&mut self) {
        let story = self.story;
        let Some(cleared) = story.cleared else { return };
        let mut last_of_all = cleared.at;
        for provider in &story.plan.providers {
            let mut quiet_since = cleared.at;
            let of = |e: &&Exchange| e.queue.provider() == provider.name && e.sent > cleared;
            // In the order in which they were sent.
            for exchange in story.exchanges.iter().filter(of) {
                self.silence(provider.name, quiet_since, exchange.sent.at);
                let ended = exchange.ended.map_or(exchange.sent, |(at, _)| at);
                quiet_since = quiet_since.max(ended.at);
            }
            last_of_all = last_of_all.max(quiet_since);
        }
        if let Some(stopped) = story.lives.last().and_then(|life| life.stopped) {
            self.silence("the end", last_of_all, stopped.at);
        }
    }

    /// Stop.
    pub(super) fn stopped_jobs(&mut self) {
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
