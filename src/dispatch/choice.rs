//! Which lane the next request takes, and what a dispatcher waits for when none is to be had.

use tokio::time::Instant;

use crate::dispatch::gate::Refused;
use crate::dispatch::lane::{Lane, Places};
use crate::dispatch::live::QueueReport;
use crate::dispatch::prepare::{Next, Work};
use crate::dispatch::queue::Dispatcher;
use crate::dispatch::spread;

/// What the loop waits for besides attempts and news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blocked {
    /// Only for news: nothing is left, nor waits in the store.
    Nothing,
    /// Only for an attempt to end or news.
    Full,
    /// Until a time.
    Until(Instant),
}

impl Blocked {
    /// What two lanes are waited for: whichever is free first.
    pub(super) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Until(one), Self::Until(other)) => Self::Until(one.min(other)),
            (Self::Until(until), _) | (_, Self::Until(until)) => Self::Until(until),
            (Self::Full, _) | (_, Self::Full) => Self::Full,
            (Self::Nothing, Self::Nothing) => Self::Nothing,
        }
    }
}

impl From<Refused> for Blocked {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full | Refused::Closed(None) => Self::Full,
            Refused::Closed(Some(until)) => Self::Until(until),
        }
    }
}

/// The lane that a request takes, and its places there.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) lane: usize,
    pub(super) places: Places,
}

impl Dispatcher {
    /// What to wait for where no lane lets anybody in now, places aside.
    pub(super) fn all_closed(&self, now: Instant) -> Option<Blocked> {
        let mut blocked = Blocked::Nothing;
        for lane in &self.lanes {
            blocked = blocked.or(lane.refusal(now)?.into());
        }
        Some(blocked)
    }

    /// How many requests may be in flight.
    pub(super) fn allowed(&self) -> usize {
        let lanes: usize = self.lanes.iter().map(|lane| lane.slots.allowed()).sum();
        lanes.min(self.limits.slots())
    }

    /// Whether a request may have to wait for more than a slot.
    pub(super) fn is_paced(&self) -> bool {
        self.limits.is_paced() || self.lanes.iter().any(|lane| lane.pace.is_paced())
    }

    /// The limits in force: those of the lanes that are open, or, where none is, of all.
    pub(super) fn report(&self, now: Instant) -> QueueReport {
        let given = self.limits.given();
        let open: Vec<&Lane> = self.lanes.iter().filter(|lane| lane.pause().is_none()).collect();
        let endpoints_out = self.lanes.len() - open.len();
        let in_use = if open.is_empty() { self.lanes.iter().collect() } else { open };
        let allowed: usize = in_use.iter().map(|lane| lane.slots.allowed()).sum();
        // Nothing is known of them together as long as one is not known.
        let limits = || in_use.iter().map(|lane| lane.pace.limits());
        let requests: Option<f64> = limits().map(|(requests, _)| requests).sum();
        let tokens: Option<f64> = limits().map(|(_, tokens)| tokens).sum();
        let holds: Option<Vec<Instant>> = in_use.iter().map(|lane| lane.pace.held_until(now)).collect();
        QueueReport {
            concurrency_max: self.limits.slots(),
            concurrency: allowed.min(self.limits.slots()),
            requests_per_minute: within(given.requests_per_minute, requests.map(whole)),
            tokens_per_minute: within(given.tokens_per_minute, tokens.map(whole)),
            learnt_requests_per_minute: requests.map(whole),
            learnt_tokens_per_minute: tokens.map(whole),
            in_flight: self.in_flight(),
            held_until: holds.and_then(|holds| holds.into_iter().min()),
            endpoints_out,
            out: self.lanes.iter().filter_map(Lane::out).collect(),
        }
    }

    /// Chooses among the lanes that may take `next` at once, and takes its places there.
    pub(super) fn choose(&mut self, next: &Next, now: Instant) -> Result<Chosen, Blocked> {
        let tokens = next.estimate.total();
        let of_queue = self.limits.ready_at(tokens, now);
        // Fine-tunes, and the files that they are made of, are where the account of the first site is.
        let lanes = match next.work {
            Work::Request(_) => self.lanes.len(),
            Work::FineTune(_) => 1,
        };
        let mut blocked = Blocked::Nothing;
        let mut free = Vec::with_capacity(lanes);
        for (index, lane) in self.lanes.iter_mut().enumerate().take(lanes) {
            match ready(lane, tokens, now) {
                Err(wait) => blocked = blocked.or(wait),
                Ok(ready_at) if ready_at.max(of_queue) > now => {
                    blocked = blocked.or(Blocked::Until(ready_at.max(of_queue)));
                }
                Ok(_) => free.push(index),
            }
        }
        // One that is tried again goes elsewhere, if anybody else has room for it now.
        let failed_at = self.failed_at.lane_of(next.lease.request);
        if free.len() > 1 {
            free.retain(|index| Some(*index) != failed_at);
        }
        let Some(index) = spread::fairest(&self.lanes, &free) else { return Err(blocked) };
        let lane = self.lanes.get(index).expect("it was among them");
        let places = lane.enter(&self.provider_gate, now)?;
        spread::take_turn(&mut self.lanes, &free, index);
        Ok(Chosen { lane: index, places })
    }
}

/// The lower of what is configured and what was learnt.
fn within<T: Copy + Ord + TryFrom<u64>>(given: Option<T>, learnt: Option<u64>) -> Option<T> {
    // What is too large for its kind is no limit.
    let learnt = learnt.and_then(|learnt| T::try_from(learnt).ok());
    given.into_iter().chain(learnt).min()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "positive; what is too large saturates"
)]
fn whole(per_minute: f64) -> u64 {
    per_minute.round().max(1.0) as u64
}

/// When a lane's own pace lets a request go, if its gates and slots do.
fn ready(lane: &mut Lane, tokens: u64, now: Instant) -> Result<Instant, Blocked> {
    if let Some(refused) = lane.refusal(now) {
        return Err(refused.into());
    }
    if lane.free() == 0 {
        return Err(Blocked::Full);
    }
    Ok(lane.pace.ready_at(tokens, now))
}
