//! One entry of a job's line index: where a request's line stands in the job's input.
//!
//! # Format
//!
//! 16 bytes, little-endian: offset in the input (6), length (4), queue (2), line number (4). Entry `i`
//! belongs to request `i`, so the index is read at `i * 16` and never as a whole.

use super::range::BLOCK;

/// Where one request's line stands, and which of its job's queues it goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineEntry {
    /// Byte offset of the line in the input file; below 2^48.
    pub offset: u64,
    /// Bytes of the line without its line end.
    pub length: u32,
    /// Number of the queue in [`super::Job::queues`].
    pub queue: u16,
    /// The line's number in the input file, from 1, blank lines counted.
    pub line: u32,
}

impl LineEntry {
    /// Bytes of an encoded entry.
    pub const SIZE: usize = 16;
    /// Requests of one block, the unit in which ranges are built.
    pub const PER_BLOCK: u32 = BLOCK;

    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let packed = (u128::from(self.offset) & 0xffff_ffff_ffff)
            | u128::from(self.length) << 48
            | u128::from(self.queue) << 80
            | u128::from(self.line) << 96;
        bytes.copy_from_slice(&packed.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        let packed = u128::from_le_bytes(*bytes);
        let field = |shift: u32, bits: u32| u64::try_from((packed >> shift) & ((1 << bits) - 1)).unwrap_or(0);
        Self {
            offset: field(0, 48),
            length: u32::try_from(field(48, 32)).unwrap_or(0),
            queue: u16::try_from(field(80, 16)).unwrap_or(0),
            line: u32::try_from(field(96, 32)).unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn survives_its_encoding(offset in 0..1u64 << 48, length: u32, queue: u16, line: u32) {
            let entry = LineEntry { offset, length, queue, line };
            prop_assert_eq!(LineEntry::decode(&entry.encode()), entry);
        }
    }
}
