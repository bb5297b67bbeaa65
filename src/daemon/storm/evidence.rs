//! The story of a storm as evidence for the laws that hold for every test of batchd.
//!
//! One piece of evidence for each provider, since each keeps a ledger of its own. Requests about which a person has
//! decided (by `retry`) are told without their bodies: those laws know nothing of persons.

use std::time::Duration;

use super::plan::{self, ProviderPlan, Verb};
use super::process::TIMEOUT;
use super::wire::{Moment, Said};
use super::world::{LifeSpan, Story};
use crate::domain::record::JournalLine;
use crate::domain::{JobState, Order, Record, RecordError, RequestId};
use crate::simulate::laws::{Asked, Evidence, JobEvidence, Results, Stop, StopKind, check};

/// What a paused clock rounds away.
const GRAIN: Duration = Duration::from_millis(1);

/// Every general law that the story breaks.
pub(super) fn judge(story: &Story) -> Vec<String> {
    let mut broken = Vec::new();
    for (provider, ledger) in story.plan.providers.iter().zip(&story.ledgers) {
        let evidence = Evidence {
            jobs: story
                .states
                .iter()
                .zip(&story.journals)
                .map(|(state, journal)| job(story, provider, state, journal))
                .collect(),
            ledger: ledger.clone(),
            stops: (0..story.lives.len()).filter_map(|life| stop(story, provider, life)).collect(),
            concurrency: Some(u64::from(provider.bound)),
            kept_within: GRAIN,
            ..Evidence::default()
        };
        if let Err(violations) = check(&evidence) {
            broken.extend(violations.iter().map(|violation| format!("{} at {}", violation, provider.name)));
        }
    }
    broken
}

/// The part of a job that one provider was asked for.
fn job(story: &Story, provider: &ProviderPlan, state: &JobState, journal: &[u8]) -> JobEvidence {
    let job = &state.job;
    let is_ours = |index: u32| job.queues[index as usize % job.queues.len()].provider() == provider.name;
    let is_decided =
        story.commands.iter().any(|command| command.job == job.id && command.verb == Verb::Retry);
    let asked = (0..job.total).filter(|index| is_ours(*index)).map(|index| {
        let request = RequestId { job: job.id, index };
        let sent = story.exchanges.iter().find(|exchange| exchange.request == request);
        let body = sent.filter(|_| !is_decided).map(|exchange| exchange.fingerprint);
        Asked { custom_id: plan::custom_id(request), body }
    });
    JobEvidence {
        name: job.name.to_string(),
        asked: asked.collect(),
        order: Order::Input,
        on_uncertain: job.settings.on_uncertain.unwrap_or_default(),
        results: Some(results(state, journal, is_ours)),
        is_running: false,
    }
}

/// What `output` would have published: what a cancelled job has no record of ends as `cancelled`.
fn results(state: &JobState, journal: &[u8], is_ours: impl Fn(u32) -> bool) -> Results {
    let lines = journal.split_inclusive(|byte| *byte == b'\n');
    let mut lines: Vec<(u32, bool, Vec<u8>)> = lines
        .filter_map(|line| JournalLine::parse(line.strip_suffix(b"\n")?))
        .map(|line| (line.index, line.is_success(), line.published()))
        .collect();
    if state.counts.failed > 0 {
        let known: Vec<u32> = lines.iter().map(|(index, ..)| *index).collect();
        for index in (0..state.job.total).filter(|index| !known.contains(index)) {
            let request = RequestId { job: state.job.id, index };
            let error = RecordError { code: state.status.to_string(), message: String::new() };
            let custom_id = plan::custom_id(request);
            let record = Record { request, custom_id, response: None, error: Some(error) };
            lines.push((index, false, record.to_line()));
        }
    }
    lines.sort();
    let text = |wanted: bool| {
        let lines = lines.iter().filter(|(index, is_success, _)| *is_success == wanted && is_ours(*index));
        lines.map(|(.., line)| format!("{}\n", String::from_utf8_lossy(line))).collect::<Vec<_>>().concat()
    };
    let mut results = Results::read(&text(true), &text(false), &|_| None).unwrap();
    for line in &mut results.errors {
        // A trouble of the way, which the provider has never seen, can't be compared.
        line.request_id.take_if(|id| id.is_empty());
    }
    results.maybe_paid_twice = Some(u64::from(state.counts.maybe_paid_twice));
    results
}

fn stop(story: &Story, provider: &ProviderPlan, life: usize) -> Option<Stop> {
    let LifeSpan { stopped, ended, died, .. } = story.lives[life];
    let ended = ended?;
    let ours = story.exchanges.iter().filter(|e| e.life == life && e.queue.provider() == provider.name);
    let lost = ours.filter(|e| {
        e.ended.is_some_and(|(at, said)| {
            // Who hangs up because the time is over does, to the ledger, what an abandoned drain does.
            let is_late = said == Said::Unsure && at.at >= e.sent.at + TIMEOUT;
            let is_given_up = said == Said::GivenUp || is_late;
            said == Said::Died || (is_given_up && stopped.is_some_and(|stopped| stopped <= at))
        })
    });
    let in_flight = lost.count() as u64;
    let is_drain = !died && in_flight == 0;
    let from = if is_drain { stopped? } else { ended };
    let kind = if is_drain { StopKind::Drain } else { StopKind::Kill };
    let us = |at: Moment| u64::try_from(at.at.as_micros()).unwrap();
    Some(Stop { kind, from_us: us(from), to_us: us(ended), in_flight })
}
