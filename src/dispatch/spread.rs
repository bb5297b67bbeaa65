//! How requests spread over the lanes of a queue.
//!
//! # Operation
//!
//! A lane's share is its weight times what may be in flight there. Of the lanes that may send now, those come into
//! question that have less than their share of what is in flight: a server that is slow gets fewer, for as long as it
//! is. Among them each gets its turns by its share, so that the weights hold also where little is in flight.

use std::collections::{BTreeMap, VecDeque};

use crate::dispatch::lane::Lane;
use crate::domain::RequestId;

/// Requests whose failure is remembered. One that is forgotten may go where it failed before.
const FAILED_MAX: usize = 4096;

/// The lane that the next request takes, one of `ready`. The first of those that are equal.
pub(super) fn fairest(lanes: &[Lane], ready: &[usize]) -> Option<usize> {
    let candidates = candidates(lanes, ready);
    let credit = |(_, lane): &(usize, &Lane)| lane.credit + lane.share() / total_share(&candidates);
    let first_of_best = |best: Option<(usize, f64)>, found: &(usize, &Lane)| match best {
        Some((_, most)) if most >= credit(found) => best,
        _ => Some((found.0, credit(found))),
    };
    candidates.iter().fold(None, first_of_best).map(|(index, _)| index)
}

/// Notes that `chosen`, which is one of `ready`, gets a request.
pub(super) fn take_turn(lanes: &mut [Lane], ready: &[usize], chosen: usize) {
    let candidates = candidates(lanes, ready);
    let total = total_share(&candidates);
    let turns: Vec<(usize, f64)> =
        candidates.iter().map(|(index, lane)| (*index, lane.share() / total)).collect();
    for (index, turn) in turns {
        if let Some(lane) = lanes.get_mut(index) {
            lane.credit += turn - if index == chosen { 1.0 } else { 0.0 };
        }
    }
}

/// Those with less than their share of what would be in flight.
#[expect(clippy::cast_precision_loss, reason = "requests in flight are counted in thousands")]
fn candidates<'a>(lanes: &'a [Lane], ready: &[usize]) -> Vec<(usize, &'a Lane)> {
    let ready: Vec<(usize, &Lane)> =
        ready.iter().filter_map(|index| Some((*index, lanes.get(*index)?))).collect();
    let in_flight: usize = ready.iter().map(|(_, lane)| lane.in_flight()).sum();
    let each = (in_flight + 1) as f64 / total_share(&ready);
    // There is always one: all together have one less than their shares.
    ready.into_iter().filter(|(_, lane)| (lane.in_flight() as f64) < each * lane.share()).collect()
}

fn total_share(lanes: &[(usize, &Lane)]) -> f64 {
    lanes.iter().map(|(_, lane)| lane.share()).sum()
}

/// Where requests have failed that are to be asked again, so that they go elsewhere the next time.
#[derive(Debug, Default)]
pub(super) struct FailedAt {
    lanes: BTreeMap<RequestId, usize>,
    /// The oldest first; some may have gone from `lanes` already.
    order: VecDeque<RequestId>,
}

impl FailedAt {
    pub(super) fn remember(&mut self, request: RequestId, lane: usize) {
        if self.lanes.insert(request, lane).is_none() {
            self.order.push_back(request);
        }
        while self.order.len() > FAILED_MAX {
            let oldest = self.order.pop_front();
            oldest.and_then(|oldest| self.lanes.remove(&oldest));
        }
    }

    pub(super) fn lane_of(&self, request: RequestId) -> Option<usize> {
        self.lanes.get(&request).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::JobId;

    #[test]
    fn no_more_failures_are_remembered_than_there_is_room_for() {
        let mut failed = FailedAt::default();
        let request = |index| RequestId { job: JobId::from_bytes([1; 16]), index };
        let most = u32::try_from(FAILED_MAX).unwrap();
        (0..most + 9).for_each(|index| failed.remember(request(index), 0));
        (0..most + 9).for_each(|index| failed.remember(request(most), usize::from(index % 2 == 0)));
        assert_eq!((failed.lanes.len(), failed.order.len()), (FAILED_MAX, FAILED_MAX));
        assert_eq!(failed.lane_of(request(8)), None);
        assert_eq!(failed.lane_of(request(9)), Some(0));
        assert_eq!(failed.lane_of(request(most)), Some(1));
    }
}
