//! Reads files that people wrote: lines of bounded length, JSON objects with the places of their members, CSV
//! records, and the words for what is wrong with them.
//!
//! What a file means is for the modules below to say; here it is only known how it can be broken.

pub mod json;
pub(crate) mod lines;
pub(crate) mod look;
pub(crate) mod objects;
pub(crate) mod problem;
pub(crate) mod records;
pub(crate) mod texts;
