//! How the index is laid out in sled: one tree, key prefixes, integers big-endian.
//!
//! # Format
//!
//! | key | value |
//! |---|---|
//! | `j` job | [`Row`] of the job; written last, so its presence means that all its ranges are there |
//! | `r` job queue(2) block(4) | [`Bits`](crate::domain::range::Bits): the block's fresh requests of that queue |
//! | `w` job queue(2) due(8) index(4) | attempts used up(4): a request waiting for its next attempt |
//!
//! A job's keys of one sort are neighbours, so a job is dropped, scanned or rebuilt as a range.

use std::ops::Range;

use crate::domain::{JobId, Timestamp};

const JOB: u8 = b'j';
const RANGE: u8 = b'r';
const WAITING: u8 = b'w';

const JOB_END: usize = 17;
const QUEUE_END: usize = 19;

/// What the index knows of a job beyond its `state.json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    /// Length of the journal that the index has taken in.
    pub(super) acknowledged: u64,
    pub(super) completed: u32,
    pub(super) failed: u32,
    pub(super) maybe_paid_twice: u32,
}

impl Row {
    pub(super) fn encode(self) -> Vec<u8> {
        let counts = [self.completed, self.failed, self.maybe_paid_twice];
        let counts = counts.into_iter().flat_map(u32::to_be_bytes);
        self.acknowledged.to_be_bytes().into_iter().chain(counts).collect()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != 20 {
            return None;
        }
        Some(Self {
            acknowledged: u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?),
            completed: u32_at(bytes, 8)?,
            failed: u32_at(bytes, 12)?,
            maybe_paid_twice: u32_at(bytes, 16)?,
        })
    }
}

pub(super) fn job(id: JobId) -> Vec<u8> {
    prefix(JOB, id)
}

pub(super) fn range(id: JobId, queue: u16, block: u32) -> Vec<u8> {
    let mut key = prefix(RANGE, id);
    key.extend(queue.to_be_bytes());
    key.extend(block.to_be_bytes());
    key
}

pub(super) fn waiting(id: JobId, queue: u16, due: Timestamp, index: u32) -> Vec<u8> {
    let mut key = prefix(WAITING, id);
    key.extend(queue.to_be_bytes());
    key.extend(due.as_millis().to_be_bytes());
    key.extend(index.to_be_bytes());
    key
}

/// The rows of all jobs.
pub(super) fn all_jobs() -> Range<Vec<u8>> {
    vec![JOB]..vec![JOB + 1]
}

/// The job of a row's key.
pub(super) fn parse_job(key: &[u8]) -> Option<JobId> {
    Some(JobId::from_bytes(key.get(1..JOB_END)?.try_into().ok()?))
}

/// The ranges of one queue of a job from `block` on.
pub(super) fn ranges_from(id: JobId, queue: u16, block: u32) -> Range<Vec<u8>> {
    range(id, queue, block)..after(range(id, queue, u32::MAX))
}

/// Every range of a job.
pub(super) fn all_ranges(id: JobId) -> Range<Vec<u8>> {
    prefix(RANGE, id)..after(range(id, u16::MAX, u32::MAX))
}

/// The waiting requests of one queue of a job.
pub(super) fn waiting_of(id: JobId, queue: u16) -> Range<Vec<u8>> {
    waiting(id, queue, Timestamp::default(), 0)
        ..after(waiting(id, queue, Timestamp::from_millis(u64::MAX), u32::MAX))
}

/// Every waiting request of a job.
pub(super) fn all_waiting(id: JobId) -> Range<Vec<u8>> {
    prefix(WAITING, id)..after(waiting(id, u16::MAX, Timestamp::from_millis(u64::MAX), u32::MAX))
}

/// Queue and block of a range's key.
pub(super) fn parse_range(key: &[u8]) -> Option<(u16, u32)> {
    Some((queue_of(key)?, u32_at(key, QUEUE_END)?))
}

/// Queue, due time and index of a waiting request's key.
pub(super) fn parse_waiting(key: &[u8]) -> Option<(u16, Timestamp, u32)> {
    let due = u64::from_be_bytes(key.get(QUEUE_END..QUEUE_END + 8)?.try_into().ok()?);
    Some((queue_of(key)?, Timestamp::from_millis(due), u32_at(key, QUEUE_END + 8)?))
}

/// A big-endian number at `at`.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn queue_of(key: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(key.get(JOB_END..QUEUE_END)?.try_into().ok()?))
}

fn prefix(kind: u8, id: JobId) -> Vec<u8> {
    let mut key = Vec::with_capacity(32);
    key.push(kind);
    key.extend(id.as_bytes());
    key
}

/// The smallest key above `key`.
fn after(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: JobId = JobId::from_bytes([3; 16]);

    #[test]
    fn keys_are_read_back_and_sort_by_their_parts() {
        let key = waiting(ID, 7, Timestamp::from_millis(500), 9);
        assert_eq!(parse_waiting(&key), Some((7, Timestamp::from_millis(500), 9)));
        assert_eq!(parse_range(&range(ID, 2, 70_000)), Some((2, 70_000)));
        assert_eq!(parse_job(&job(ID)), Some(ID));
        assert!(all_jobs().contains(&job(ID)) && !all_jobs().contains(&range(ID, 0, 0)));
        assert!(waiting(ID, 7, Timestamp::from_millis(499), 10) < key);
        assert!(waiting_of(ID, 7).contains(&key) && !waiting_of(ID, 8).contains(&key));
        assert!(all_waiting(ID).contains(&key) && all_ranges(ID).contains(&range(ID, u16::MAX, u32::MAX)));
        assert!(
            ranges_from(ID, 2, 5).contains(&range(ID, 2, 5))
                && !ranges_from(ID, 2, 5).contains(&range(ID, 2, 4))
        );
    }

    #[test]
    fn rows_survive_their_encoding() {
        let row = Row { acknowledged: u64::MAX, completed: 1, failed: 2, maybe_paid_twice: 3 };
        assert_eq!(Row::decode(&row.encode()), Some(row));
        assert_eq!(Row::decode(b"short"), None);
    }
}
