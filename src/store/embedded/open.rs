//! What the index holds as open of one job, in memory while the job is recovered: a bit or a few bytes a request.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::range::{BLOCK, Bits};
use crate::domain::{JobId, Timestamp};
use crate::store::Result;
use crate::store::embedded::index::{Change, Index, broken, damaged};
use crate::store::embedded::keys;
use crate::store::embedded::ranges::range_change;

/// See the module's words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Open {
    /// By block and queue.
    pub(super) fresh: BTreeMap<(u32, u16), Bits>,
    /// Queue, due time and attempts used up, by index.
    pub(super) waiting: BTreeMap<u32, (u16, Timestamp, u32)>,
    touched: BTreeSet<(u32, u16)>,
}

impl Open {
    pub(super) fn read(index: &Index, id: JobId) -> Result<Self> {
        let mut open = Self::default();
        for item in index.tree().range(keys::all_ranges(id)) {
            let (key, value) = item.map_err(broken)?;
            let parsed = keys::parse_range(&key).zip(Bits::decode(&value));
            let ((queue, block), bits) = parsed.ok_or_else(|| damaged("a range"))?;
            open.fresh.insert((block, queue), bits);
        }
        for item in index.tree().range(keys::all_waiting(id)) {
            let (key, value) = item.map_err(broken)?;
            let (queue, due, number) = keys::parse_waiting(&key).ok_or_else(|| damaged("a waiting key"))?;
            let attempts = keys::u32_at(&value, 0).ok_or_else(|| damaged("a waiting value"))?;
            open.waiting.insert(number, (queue, due, attempts));
        }
        Ok(open)
    }

    pub(super) fn contains(&self, number: u32) -> bool {
        self.queue_of(number).is_some()
    }

    pub(super) fn queue_of(&self, number: u32) -> Option<u16> {
        let waiting = self.waiting.get(&number).map(|(queue, ..)| *queue);
        waiting.or_else(|| self.fresh_place(number).map(|(_, queue)| queue))
    }

    fn fresh_place(&self, number: u32) -> Option<(u32, u16)> {
        let block = number / BLOCK;
        let mut places = self.fresh.range((block, 0)..=(block, u16::MAX));
        places.find(|(_, bits)| bits.contains(number % BLOCK)).map(|(place, _)| *place)
    }

    /// Takes a request out; a waiting one's key is the change to make. A recovery that was killed may have
    /// left it in both places.
    pub(super) fn take(&mut self, id: JobId, number: u32) -> Option<Change> {
        if let Some(place) = self.fresh_place(number) {
            if let Some(bits) = self.fresh.get_mut(&place) {
                bits.remove(number % BLOCK);
            }
            self.touched.insert(place);
        }
        let (queue, due, _) = self.waiting.remove(&number)?;
        Some((keys::waiting(id, queue, due, number), None))
    }

    /// The ranges that requests were taken out of.
    pub(super) fn changed(&mut self, id: JobId) -> Vec<Change> {
        let touched = std::mem::take(&mut self.touched).into_iter();
        let change = |(block, queue)| {
            let bits = self.fresh.get(&(block, queue)).cloned().unwrap_or_default();
            range_change((keys::range(id, queue, block), bits))
        };
        touched.map(change).collect()
    }
}
