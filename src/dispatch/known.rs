//! What a queue knows of its model: whether it has ever answered, and which lanes have said that they lack it.
//!
//! A model that nobody knows is a typing mistake, and its requests fail; one that has answered, or that another lane may
//! have, is waited for.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// See the module's words. A bit for each lane: `config` lets a provider have no more endpoints than there are.
#[derive(Debug)]
pub(super) struct KnownModel {
    has_answered: AtomicBool,
    lanes: u32,
    lacking: AtomicU64,
}

impl KnownModel {
    pub(super) const fn new(lanes: u32) -> Self {
        Self { has_answered: AtomicBool::new(false), lanes, lacking: AtomicU64::new(0) }
    }

    /// One that is known to have answered in another process.
    #[must_use]
    pub(super) fn known(self) -> Self {
        self.has_answered.store(true, Ordering::Relaxed);
        self
    }

    pub(super) fn answered(&self, lane: usize) {
        self.lacking.fetch_and(!bit(lane), Ordering::Relaxed);
        self.has_answered.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_lacked(&self, lane: usize) {
        self.lacking.fetch_or(bit(lane), Ordering::Relaxed);
    }

    /// Whether there is, or may be, such a model.
    pub(super) fn may_exist(&self) -> bool {
        let lacking = self.lacking.load(Ordering::Relaxed).count_ones();
        self.has_answered.load(Ordering::Relaxed) || lacking < self.lanes
    }
}

fn bit(lane: usize) -> u64 {
    u32::try_from(lane).ok().and_then(|lane| 1u64.checked_shl(lane)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_a_mistake_when_every_lane_lacks_it_and_none_has_ever_answered() {
        let model = KnownModel::new(64);
        (0..63).for_each(|lane| model.is_lacked(lane));
        model.is_lacked(3);
        assert!(model.may_exist());
        model.is_lacked(63);
        assert!(!model.may_exist());
        model.answered(5);
        model.is_lacked(5);
        assert!(model.may_exist(), "it has been there");
    }

    #[test]
    fn where_there_is_one_lane_its_word_is_enough() {
        let model = KnownModel::new(1);
        assert!(model.may_exist());
        model.is_lacked(0);
        assert!(!model.may_exist());
    }
}
