//! The ranges of a job's fresh requests, as the index holds them.

use crate::domain::range::Bits;
use crate::store::Result;
use crate::store::embedded::index::{Change, broken, damaged};

pub(super) fn read_range(tree: &sled::Tree, key: &[u8]) -> Result<Bits> {
    match tree.get(key).map_err(broken)? {
        Some(value) => Bits::decode(&value).ok_or_else(|| damaged("a range")),
        None => Ok(Bits::EMPTY),
    }
}

/// An empty range is no key.
pub(super) fn range_change((key, bits): (Vec<u8>, Bits)) -> Change {
    let value = (!bits.is_empty()).then(|| bits.encode());
    (key, value)
}
