//! Which examples of a file are equal, without keeping them: eight bytes of a hash for each.
//!
//! Two different examples in a file of a million share a fingerprint by chance once in thirty million files, and then
//! cost a warning that is not deserved.

/// Examples that are remembered, 16 bytes each. What comes later is not compared.
const EXAMPLES_MAX: usize = 2_000_000;

/// The fingerprints of a file's examples, in their order until [`Fingerprints::sort`].
#[derive(Clone, Debug, Default)]
pub struct Fingerprints {
    /// With the line of each.
    seen: Vec<(u64, u32)>,
}

/// Of one example.
pub(super) fn fingerprint(parts: &[&str]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        // Its length stands before it, so that no two lists of parts run together into one text.
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    hasher.finalize().as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl Fingerprints {
    pub(super) fn push(&mut self, fingerprint: u64, line: u32) {
        if self.seen.len() < EXAMPLES_MAX {
            self.seen.push((fingerprint, line));
        }
    }

    /// Must be called before the others below.
    pub(super) fn sort(&mut self) {
        self.seen.sort_unstable();
    }

    /// The lines that hold what an earlier one does, each with the first such line, in the order of the file.
    pub(super) fn duplicates(&self) -> Vec<(u32, u32)> {
        let mut found = Vec::new();
        for same in self.seen.chunk_by(|a, b| a.0 == b.0) {
            if let Some(((_, first), rest)) = same.split_first() {
                found.extend(rest.iter().map(|(_, line)| (*line, *first)));
            }
        }
        found.sort_unstable();
        found
    }

    /// How many different ones there are.
    pub(super) fn distinct(&self) -> u64 {
        self.seen.chunk_by(|a, b| a.0 == b.0).count() as u64
    }

    /// The first line of this file that holds the example.
    pub(super) fn line_of(&self, fingerprint: u64) -> Option<u32> {
        let at = self.seen.partition_point(|(seen, _)| *seen < fingerprint);
        self.seen.get(at).filter(|(seen, _)| *seen == fingerprint).map(|(_, line)| *line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_examples_name_the_first_of_them() {
        let mut seen = Fingerprints::default();
        for (line, text) in (1..).zip(["a", "b", "a", "c", "b", "a"]) {
            seen.push(fingerprint(&[text]), line);
        }
        seen.sort();
        assert_eq!(seen.duplicates(), [(3, 1), (5, 2), (6, 1)]);
        assert_eq!(seen.distinct(), 3);
        assert_eq!(seen.line_of(fingerprint(&["b"])), Some(2));
        assert_eq!(seen.line_of(fingerprint(&["d"])), None);
    }

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(fingerprint(&["ab", "c"]), fingerprint(&["a", "bc"]));
    }

    #[test]
    fn what_is_beyond_the_bound_is_not_kept() {
        let mut seen = Fingerprints::default();
        (0..EXAMPLES_MAX as u64 + 10).for_each(|number| seen.push(number, 1));
        assert_eq!(seen.seen.len(), EXAMPLES_MAX);
    }
}
