//! Again, uncertain, drain, payments: what may be sent once more, given up and billed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Court, used};
use crate::daemon::storm::plan::{self, Verb};
use crate::daemon::storm::wire::{Exchange, Said};
use crate::domain::{OnUncertain, RequestId};

/// Times of retries are kept in whole milliseconds.
const GRAIN: Duration = Duration::from_millis(1);

impl Court<'_> {
    /// Again, uncertain, and the first half of pace.
    pub(super) fn again(&mut self, request: RequestId, sent: &[&Exchange]) {
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
            let unreached = earlier.iter().filter(|exchange| exchange.said() == Said::Unreached).count();
            let used_up = used(earlier) - unreached >= self.story.plan.retry.max_attempts as usize;
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
    pub(super) fn given_up(&mut self, sent: &[&Exchange]) {
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

    pub(super) fn payments(&mut self, by_request: &BTreeMap<RequestId, Vec<&Exchange>>) {
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
}
