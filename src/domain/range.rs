//! A range: the requests of one queue within a block of consecutive requests of one job.
//!
//! The store keeps a range as the set of its *fresh* requests, those never settled and not waiting
//! for a retry. A million-line job is then about a thousand small values, and settling a request
//! clears one bit.
//!
//! # Format
//!
//! A set of at most [`SPARSE_MAX`] requests is their offsets, two bytes each, little-endian, after a
//! zero byte; a larger one is the whole bitmap, [`BLOCK`] bits, after a one byte. So a job whose lines
//! alternate between a thousand models costs no more than a few bytes a line.

/// Consecutive requests a block holds. Measured between 256 and 4096: the cost per settled request
/// falls until about 1024 (the value rewritten is then 129 bytes) and is flat beyond.
pub const BLOCK: u32 = 1024;

/// Above this many members the bitmap is the smaller form.
const SPARSE_MAX: usize = 48;

const WORDS: usize = BLOCK as usize / 64;

/// A set of offsets below [`BLOCK`].
#[derive(Clone, PartialEq, Eq)]
pub struct Bits([u64; WORDS]);

impl Default for Bits {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl Bits {
    pub const EMPTY: Self = Self([0; WORDS]);

    /// Adds `offset`; one that is not below [`BLOCK`] is ignored.
    pub fn insert(&mut self, offset: u32) {
        if let Some((word, mask)) = self.word_mut(offset) {
            *word |= mask;
        }
    }

    /// Takes `offset` out and says whether it was in.
    pub fn remove(&mut self, offset: u32) -> bool {
        let Some((word, mask)) = self.word_mut(offset) else { return false };
        let was = *word & mask != 0;
        *word &= !mask;
        was
    }

    pub fn contains(&self, offset: u32) -> bool {
        let word = self.0.get(offset as usize / 64).copied().unwrap_or(0);
        word & (1 << (offset % 64)) != 0
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The members from `start` on, ascending.
    pub fn iter_from(&self, start: u32) -> impl Iterator<Item = u32> + '_ {
        let first = start as usize / 64;
        self.0.iter().enumerate().skip(first).flat_map(move |(at, word)| {
            let keep = if at == first { u64::MAX << (start % 64) } else { u64::MAX };
            let base = u32::try_from(at * 64).unwrap_or(BLOCK);
            Ones(word & keep).map(move |bit| base + bit)
        })
    }

    pub fn encode(&self) -> Vec<u8> {
        let count = self.len() as usize;
        if count <= SPARSE_MAX {
            let offsets = self.iter_from(0).filter_map(|offset| u16::try_from(offset).ok());
            std::iter::once(0).chain(offsets.flat_map(u16::to_le_bytes)).collect()
        } else {
            std::iter::once(1).chain(self.0.iter().flat_map(|word| word.to_le_bytes())).collect()
        }
    }

    /// None if the bytes are not what [`Bits::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (form, rest) = bytes.split_first()?;
        let mut bits = Self::EMPTY;
        match form {
            0 if rest.len().is_multiple_of(2) => {
                for pair in rest.chunks_exact(2) {
                    let offset = u32::from(u16::from_le_bytes(pair.try_into().ok()?));
                    if offset >= BLOCK {
                        return None;
                    }
                    bits.insert(offset);
                }
            }
            1 if rest.len() == WORDS * 8 => {
                for (word, chunk) in bits.0.iter_mut().zip(rest.chunks_exact(8)) {
                    *word = u64::from_le_bytes(chunk.try_into().ok()?);
                }
            }
            _ => return None,
        }
        Some(bits)
    }

    fn word_mut(&mut self, offset: u32) -> Option<(&mut u64, u64)> {
        let word = self.0.get_mut(offset as usize / 64)?;
        Some((word, 1 << (offset % 64)))
    }
}

impl std::fmt::Debug for Bits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter_from(0)).finish()
    }
}

/// The set bits of a word, lowest first.
struct Ones(u64);

impl Iterator for Ones {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if self.0 == 0 {
            return None;
        }
        let bit = self.0.trailing_zeros();
        self.0 &= self.0 - 1;
        Some(bit)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_a_set_and_survives_its_encoding(
            members in prop::collection::btree_set(0..BLOCK, 0..200),
            removed in prop::collection::vec(0..BLOCK, 0..50),
            start in 0..BLOCK,
        ) {
            let mut model: BTreeSet<u32> = members.clone();
            let mut bits = Bits::EMPTY;
            for member in &members {
                bits.insert(*member);
            }
            for offset in removed {
                prop_assert_eq!(bits.remove(offset), model.remove(&offset));
            }
            prop_assert_eq!(bits.len() as usize, model.len());
            prop_assert_eq!(bits.is_empty(), model.is_empty());
            prop_assert!(bits.iter_from(start).eq(model.range(start..).copied()));
            prop_assert_eq!(Bits::decode(&bits.encode()), Some(bits));
        }

        #[test]
        fn decoding_anything_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let decoded = Bits::decode(&bytes);
            prop_assert!(decoded.is_none_or(|bits| bits.len() <= BLOCK));
        }
    }

    #[test]
    fn offsets_beyond_the_block_are_ignored() {
        let mut bits = Bits::EMPTY;
        bits.insert(BLOCK);
        assert!(bits.is_empty() && !bits.remove(BLOCK) && !bits.contains(BLOCK));
    }
}
