//! Finds duplicate `custom_id`s without keeping the ids: 12 bytes a request.
//!
//! Equal hashes are only candidates. Their ids are read again and compared before anything is said.

use std::hash::{DefaultHasher, Hasher as _};

use crate::diag::{Diagnostic, Place, Report, Severity};
use crate::reading::problem::shown;

/// Groups of equal hashes whose ids are compared in one more pass over the input.
const GROUPS_AT_ONCE: usize = 1000;

/// The hashes of a job's ids.
#[derive(Debug, Default)]
pub(super) struct Ids {
    /// Hash (two words) and ordinal. Words of 32 bits, as 64 would pad an entry to 16 bytes.
    seen: Vec<[u32; 3]>,
}

/// Takes a request's ordinal, its id and where the id stands.
pub(super) type Visit<'v> = &'v mut dyn FnMut(u32, &str, Place);

/// Another pass over the requests with these ordinals (ascending).
pub(super) type Again<'a> = &'a mut dyn FnMut(&[u32], Visit<'_>);

impl Ids {
    /// `ordinal` grows from call to call.
    pub(super) fn insert(&mut self, id: &str, ordinal: u32) {
        let mut hasher = DefaultHasher::new();
        hasher.write(id.as_bytes());
        let hash = hasher.finish();
        let word = |shift: u32| u32::try_from((hash >> shift) & u64::from(u32::MAX)).unwrap_or_default();
        self.seen.push([word(32), word(0), ordinal]);
    }

    /// Reports every id that was there before.
    pub(super) fn report(mut self, report: &mut Report, again: Again<'_>) {
        self.seen.sort_unstable();
        let same = |a: &[u32; 3], b: &[u32; 3]| a.first_chunk::<2>() == b.first_chunk::<2>();
        let mut groups: Vec<&[[u32; 3]]> = self.seen.chunk_by(same).filter(|group| group.len() > 1).collect();
        // Those that repeat first are reported first.
        groups.sort_unstable_by_key(|group| group.get(1).map(|[.., ordinal]| *ordinal));
        let mut chunks = groups.chunks(GROUPS_AT_ONCE);
        for groups in chunks.by_ref() {
            let before = report.errors();
            compare(groups, report, again);
            if report.errors() - before >= Report::SHOWN_MAX as u64 {
                break;
            }
        }
        // No more are shown, so that the others are counted by their hashes alone.
        for group in chunks.flatten() {
            report.extend(group.iter().skip(1).map(|_| Diagnostic::error("", 0, 0, "duplicate custom_id")));
        }
    }
}

/// Reads the ids of some groups again and reports those that are equal.
fn compare(groups: &[&[[u32; 3]]], report: &mut Report, again: Again<'_>) {
    let mut wanted: Vec<(u32, usize)> = Vec::new();
    for (number, group) in groups.iter().enumerate() {
        wanted.extend(group.iter().map(|[.., ordinal]| (*ordinal, number)));
    }
    wanted.sort_unstable();
    let ordinals: Vec<u32> = wanted.iter().map(|(ordinal, _)| *ordinal).collect();
    // The different ids of each group; almost always there is one.
    let mut firsts: Vec<Vec<(String, Place)>> = groups.iter().map(|_| Vec::new()).collect();
    again(&ordinals, &mut |ordinal, id, place| {
        let Ok(at) = wanted.binary_search_by_key(&ordinal, |(ordinal, _)| *ordinal) else { return };
        let Some(known) = wanted.get(at).and_then(|(_, number)| firsts.get_mut(*number)) else { return };
        if let Some((_, first)) = known.iter().find(|(known, _)| known == id) {
            report.push(duplicate(id, first, place));
        } else {
            known.push((id.to_owned(), place));
        }
    });
}

fn duplicate(id: &str, first: &Place, place: Place) -> Diagnostic {
    let earlier = if first.file == place.file { format!("line {}", first.line) } else { first.to_string() };
    let message = format!("duplicate custom_id {}, first used on {earlier}", shown(id));
    Diagnostic {
        severity: Severity::Error,
        place,
        message,
        hint: Some("each request needs one of its own: answers are told apart by it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(seen: Vec<[u32; 3]>, ids: &[&str]) -> String {
        let mut report = Report::default();
        Ids { seen }.report(&mut report, &mut |wanted, visit| {
            for ordinal in wanted {
                let place = Place { file: "a.jsonl".to_owned(), line: *ordinal, column: 0 };
                visit(*ordinal, ids[*ordinal as usize - 1], place);
            }
        });
        report.to_string()
    }

    #[test]
    fn equal_hashes_are_no_duplicates_until_the_ids_are_compared() {
        let same_hash: Vec<_> = (1..=4).map(|ordinal| [7, 7, ordinal]).collect();
        assert_eq!(report(same_hash.clone(), &["a", "b", "c", "d"]), "");
        let found = report(same_hash, &["a", "b", "c", "b"]);
        assert!(
            found.starts_with("a.jsonl:4: error: duplicate custom_id `b`, first used on line 2"),
            "{found}"
        );
        assert_eq!(found.matches("error:").count(), 1);
    }

    #[test]
    fn all_duplicates_are_counted_and_one_pass_is_made() {
        let mut ids = Ids::default();
        let name = |ordinal: u32| (ordinal % 5000).to_string();
        (0..10_000).for_each(|ordinal| ids.insert(&name(ordinal), ordinal));
        let mut report = Report::default();
        let mut passes = 0;
        ids.report(&mut report, &mut |wanted, visit| {
            passes += 1;
            for ordinal in wanted {
                let place = Place { file: "a.jsonl".to_owned(), line: *ordinal, column: 0 };
                visit(*ordinal, &name(*ordinal), place);
            }
        });
        assert_eq!((report.errors(), passes), (5000, 1));
        assert!(report.to_string().starts_with("a.jsonl:5000: error: duplicate custom_id `0`"), "{report}");
    }

    #[test]
    fn only_what_may_be_equal_is_read_again() {
        let mut ids = Ids::default();
        for (id, ordinal) in [("a", 1), ("b", 2), ("a", 3), ("c", 4)] {
            ids.insert(id, ordinal);
        }
        let mut asked = Vec::new();
        ids.report(&mut Report::default(), &mut |wanted, _| asked.extend_from_slice(wanted));
        assert_eq!(asked, [1, 3]);
    }
}
