//! Claiming: which requests of one queue of one job go out next.

use std::collections::BTreeSet;

use crate::domain::range::{BLOCK, Bits};
use crate::domain::{JobId, RequestId, Timestamp};
use crate::store::embedded::index::{broken, damaged};
use crate::store::embedded::keys;
use crate::store::embedded::leases::Leases;
use crate::store::{Lease, Result};

/// Where the leasing of one queue of one job stands.
#[derive(Debug, Default)]
pub(super) struct QueuePlace {
    /// Fresh requests that are not leased.
    pub(super) fresh: u32,
    /// Waiting requests that are not leased.
    pub(super) waiting: u32,
    /// The next request to look at.
    cursor: u32,
    /// Fresh requests behind the cursor that were given back.
    returned: BTreeSet<u32>,
}

impl QueuePlace {
    /// Counts a leased request as open again.
    pub(super) fn give_back(&mut self, index: u32, was_waiting: bool) {
        if was_waiting {
            self.waiting += 1;
        } else {
            self.fresh += 1;
            self.returned.insert(index);
        }
    }
}

/// The claiming of requests of one queue of one job.
pub(super) struct Claim<'a> {
    pub(super) tree: &'a sled::Tree,
    pub(super) id: JobId,
    /// Of the queue in the job.
    pub(super) number: u16,
    /// Requests of the job.
    pub(super) total: u32,
    pub(super) place: &'a mut QueuePlace,
    /// See [`Index`](super::index::Index).
    pub(super) out: &'a mut BTreeSet<RequestId>,
    pub(super) leases: &'a Leases,
}

impl Claim<'_> {
    /// Claims at most `want`: what is due, then what is fresh. Says how many it got.
    pub(super) fn take(&mut self, want: usize, now: Timestamp, leases: &mut Vec<Lease>) -> Result<usize> {
        let before = leases.len();
        self.due(want, now, leases)?;
        self.fresh(want - (leases.len() - before), leases)?;
        Ok(leases.len() - before)
    }

    /// Claims waiting requests that are due, by due time.
    fn due(&mut self, want: usize, now: Timestamp, leases: &mut Vec<Lease>) -> Result<()> {
        let mut want = want.min(self.place.waiting as usize);
        if want == 0 {
            return Ok(());
        }
        for item in self.tree.range(keys::waiting_of(self.id, self.number)) {
            let (key, attempts) = item.map_err(broken)?;
            let (_, due, index) = keys::parse_waiting(&key).ok_or_else(|| damaged("a waiting key"))?;
            let attempts = keys::u32_at(&attempts, 0).ok_or_else(|| damaged("a waiting value"))?;
            let request = RequestId { job: self.id, index };
            if want == 0 || due > now {
                break;
            }
            if self.out.insert(request) {
                leases.push(self.leases.give(request, attempts + 1, self.number, Some(due)));
                self.place.waiting -= 1;
                want -= 1;
            }
        }
        Ok(())
    }

    /// Claims fresh requests: those given back, then on from the cursor.
    fn fresh(&mut self, want: usize, leases: &mut Vec<Lease>) -> Result<()> {
        let mut want = want.min(self.place.fresh as usize);
        while want > 0
            && let Some(index) = self.place.returned.pop_first()
        {
            self.give(index, leases);
            want -= 1;
        }
        while want > 0 && self.place.cursor < self.total {
            let from = self.place.cursor / BLOCK;
            let Some(item) = self.tree.range(keys::ranges_from(self.id, self.number, from)).next() else {
                self.place.cursor = self.total;
                break;
            };
            let (key, value) = item.map_err(broken)?;
            let parsed = keys::parse_range(&key).zip(Bits::decode(&value));
            let ((_, block), bits) = parsed.ok_or_else(|| damaged("a range"))?;
            let start = if block == from { self.place.cursor % BLOCK } else { 0 };
            let base = block * BLOCK;
            self.place.cursor = base.saturating_add(BLOCK);
            for offset in bits.iter_from(start) {
                if want == 0 {
                    self.place.cursor = base + offset;
                    break;
                }
                self.give(base + offset, leases);
                want -= 1;
            }
        }
        Ok(())
    }

    fn give(&mut self, index: u32, leases: &mut Vec<Lease>) {
        let request = RequestId { job: self.id, index };
        leases.push(self.leases.give(request, 1, self.number, None));
        self.place.fresh = self.place.fresh.saturating_sub(1);
    }
}

/// When the first waiting request that is not out falls due.
pub(super) fn next_due(
    tree: &sled::Tree,
    out: &BTreeSet<RequestId>,
    id: JobId,
    queue: u16,
) -> Result<Option<Timestamp>> {
    for item in tree.range(keys::waiting_of(id, queue)).keys() {
        let (_, due, index) =
            keys::parse_waiting(&item.map_err(broken)?).ok_or_else(|| damaged("a waiting key"))?;
        if !out.contains(&RequestId { job: id, index }) {
            return Ok(Some(due));
        }
    }
    Ok(None)
}
