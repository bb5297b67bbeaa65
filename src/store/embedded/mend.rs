//! A log after a crash: what in it is sound, what the crash took, and what no crash explains.
//!
//! Every line of a log carries its own checksum, so a line is sound or it is not.
//!
//! # Operation
//!
//! - The *torn end* is what lies behind the last sound line. A kill, or a power cut, came while it was written.
//! - A *hole* has sound lines behind it. A power cut leaves one: pages that were written and not yet synced go to the
//!   disk in any order, and one that never came there reads as NULs. So what is unsound is a hole if it lies beyond
//!   the length that is known to have been synced, or, where none is known, if there are NULs in it: no log holds
//!   any. A space that lost a bit is taken for a hole, too; its request is then sent once more at most.
//! - Everything else is *damage*: a disk, a program or a person changed what had been safe.
//!
//! Torn ends and holes are taken out of the log, and what is taken out is kept beside it, as `<log>.torn.<n>`: part
//! of an answer may be in it. What the lines behind a hole say was paid for like any other, so they stay. Whether
//! damage stays is for the caller to say, who must not go on as if nothing had happened.

use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::disk::File;
use crate::fault;
use crate::store::Result;
use crate::store::folder::{failed, publish, sync_parent, temporary_name};

/// What was found in a log.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Scan {
    /// What is sound, in order; neighbours are joined.
    sound: Vec<Range<u64>>,
    length: u64,
    /// Where the first damage begins.
    pub(super) damaged_at: Option<u64>,
}

impl Scan {
    /// Reads a log from `synced` on, the length that is known to have been synced; wholly if none is. `take` gets
    /// every line, without its line end, and says whether it is sound.
    pub(super) fn read(
        path: &Path,
        synced: Option<u64>,
        mut take: impl FnMut(&[u8]) -> bool,
    ) -> Result<Self> {
        let start = synced.unwrap_or(0);
        let mut reader = BufReader::new(fs::File::open(path).map_err(failed("open", path))?);
        reader.seek(SeekFrom::Start(start)).map_err(failed("read", path))?;
        let before = 0..start;
        let mut scan = Self { sound: Vec::from([before]), length: start, damaged_at: None };
        let (mut line, mut nulls) = (Vec::new(), false);
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(failed("read", path))?;
            if read == 0 {
                return Ok(scan);
            }
            let begin = scan.length;
            scan.length += read as u64;
            match sound_part(&line, &mut take) {
                Some(skipped) => {
                    nulls |= has_nulls(line.get(..skipped).unwrap_or_default());
                    let is_hole = synced.is_some() || nulls;
                    scan.add(begin + skipped as u64..scan.length, is_hole);
                    nulls = false;
                }
                None => nulls |= has_nulls(&line),
            }
        }
    }

    fn add(&mut self, sound: Range<u64>, is_hole: bool) {
        match self.sound.last_mut() {
            Some(last) if last.end == sound.start => last.end = sound.end,
            last => {
                let end = last.map_or(0, |last| last.end);
                if !is_hole {
                    self.damaged_at.get_or_insert(end);
                }
                self.sound.push(sound);
            }
        }
    }

    /// Takes out what a crash left, and syncs the rest. Damage stays, and holes beside it; only the torn end goes, since
    /// the next line must not be glued to it. The log's new length.
    pub(super) fn mend(&self, path: &Path) -> Result<u64> {
        let end = self.sound.last().map_or(0, |last| last.end);
        if self.damaged_at.is_none() && self.sound.len() > 1 {
            return self.take_out_damage(path);
        }
        let file = File::append_private(path).map_err(failed("open", path))?;
        if end < self.length {
            let torn = end..self.length;
            keep_aside(path, &[torn])?;
            fault::point("recover-torn-kept");
            file.cut(end).map_err(failed("cut", path))?;
            fault::point("recover-torn-cut");
        }
        file.sync_data().map_err(failed("sync", path))?;
        Ok(end)
    }

    /// Leaves what is sound and nothing else. The log's new length.
    pub(super) fn take_out_damage(&self, path: &Path) -> Result<u64> {
        keep_aside(path, &self.unsound())?;
        let temporary = temporary_name(path);
        let copy = File::create(&temporary).map_err(failed("create", &temporary))?;
        let length = copy_ranges(path, &self.sound, &copy)?;
        publish(&copy, &temporary, path)?;
        Ok(length)
    }

    /// Every line was sound.
    pub(super) fn is_whole(&self) -> bool {
        self.unsound().is_empty()
    }

    fn unsound(&self) -> Vec<Range<u64>> {
        let begins = self.sound.iter().map(|sound| sound.end);
        let ends = self.sound.iter().skip(1).map(|sound| sound.start).chain([self.length]);
        begins.zip(ends).map(|(begin, end)| begin..end).filter(|range| !range.is_empty()).collect()
    }
}

/// How many bytes at the line's front are unsound, if the rest of it is sound. A hole ends where it likes, so a sound
/// line may begin right behind its NULs.
fn sound_part(line: &[u8], take: &mut impl FnMut(&[u8]) -> bool) -> Option<usize> {
    let text = line.strip_suffix(b"\n")?;
    if take(text) {
        return Some(0);
    }
    let behind = text.iter().rposition(|byte| *byte == 0)? + 1;
    text.get(behind..).filter(|rest| take(rest)).map(|_| behind)
}

fn has_nulls(bytes: &[u8]) -> bool {
    memchr::memchr(0, bytes).is_some()
}

/// Copies parts of a log to a new file beside it.
fn keep_aside(path: &Path, parts: &[Range<u64>]) -> Result<()> {
    let name = |number: u32| path.with_extension(format!("torn.{number}"));
    let aside: PathBuf = (1..=u32::MAX).map(name).find(|aside| !aside.exists()).unwrap_or_else(|| name(0));
    let copy = File::create(&aside).map_err(failed("create", &aside))?;
    copy_ranges(path, parts, &copy)?;
    copy.sync_all().map_err(failed("sync", &aside))?;
    tracing::warn!(path = %aside.display(), "what a crash tore off a log is kept aside");
    sync_parent(&aside)
}

fn copy_ranges(path: &Path, ranges: &[Range<u64>], mut copy: &File) -> Result<u64> {
    let mut source = fs::File::open(path).map_err(failed("open", path))?;
    let mut copied = 0;
    for range in ranges {
        source.seek(SeekFrom::Start(range.start)).map_err(failed("read", path))?;
        let mut part = (&source).take(range.end - range.start);
        copied += std::io::copy(&mut part, &mut copy).map_err(failed("copy", path))?;
    }
    copy.flush().map_err(failed("copy", path))?;
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A sound line is one that ends in `.`.
    fn scan(path: &Path, synced: Option<u64>) -> (Scan, Vec<String>) {
        let mut taken = Vec::new();
        let scan = Scan::read(path, synced, |line| {
            let sound = line.ends_with(b".") && !line.contains(&0);
            if sound {
                taken.push(String::from_utf8_lossy(line).into_owned());
            }
            sound
        });
        (scan.unwrap(), taken)
    }

    struct Mended {
        taken: Vec<String>,
        damaged_at: Option<u64>,
        /// The log as it is then.
        log: Vec<u8>,
        aside: Option<Vec<u8>>,
    }

    fn mended(log: impl AsRef<[u8]>, synced: Option<u64>) -> Mended {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.log");
        fs::write(&path, log).unwrap();
        let (scan, taken) = scan(&path, synced);
        let length = scan.mend(&path).unwrap();
        let log = fs::read(&path).unwrap();
        assert_eq!(length, log.len() as u64);
        assert!(!temporary_name(&path).exists());
        let aside = fs::read(path.with_file_name("results.torn.1")).ok();
        assert!(!scan.is_whole() || aside.is_none());
        Mended { taken, damaged_at: scan.damaged_at, log, aside }
    }

    fn hole(before: &str, behind: &str) -> Vec<u8> {
        [before.as_bytes(), &[0; 4096], behind.as_bytes()].concat()
    }

    #[test]
    fn a_sound_log_stays_as_it_is() {
        for log in ["", "a.\n", "a.\nb.\n"] {
            let mended = mended(log, None);
            assert_eq!(
                (mended.log.as_slice(), mended.aside, mended.damaged_at),
                (log.as_bytes(), None, None)
            );
        }
    }

    #[test]
    fn a_torn_end_is_cut_off_and_kept() {
        let mended = mended("a.\nb.\nhalf a li", None);
        assert_eq!(mended.taken, ["a.", "b."]);
        assert_eq!((mended.log.as_slice(), mended.damaged_at), (&b"a.\nb.\n"[..], None));
        assert_eq!(mended.aside.unwrap(), b"half a li");
        let lost = self::mended(hole("a.\n", ""), None);
        assert_eq!((lost.log.as_slice(), lost.aside.unwrap().len()), (&b"a.\n"[..], 4096));
    }

    #[test]
    fn lines_behind_a_hole_stay_and_the_hole_goes() {
        // A page may end within a line, or right before one.
        for (before, behind) in [("a.\n", "c.\n"), ("a.\nhalf", "rest\nc.\n"), ("a.\nhalf", "c.\n")] {
            let mended = mended(hole(before, behind), None);
            assert_eq!((mended.taken, mended.damaged_at), (vec!["a.".to_owned(), "c.".to_owned()], None));
            assert_eq!(mended.log, b"a.\nc.\n", "{before} {behind}");
            assert!(mended.aside.unwrap().len() >= 4096);
        }
    }

    #[test]
    fn damage_without_nulls_is_a_hole_only_beyond_what_was_synced() {
        let log = "a.\nb!\nc.\nd";
        let unknown = mended(log, None);
        assert_eq!((unknown.damaged_at, unknown.taken), (Some(3), vec!["a.".to_owned(), "c.".to_owned()]));
        assert_eq!(unknown.log, b"a.\nb!\nc.\n", "only the torn end goes");
        let beyond = mended(log, Some(3));
        assert_eq!((beyond.damaged_at, beyond.taken), (None, vec!["c.".to_owned()]));
        assert_eq!(
            (beyond.log.as_slice(), beyond.aside.unwrap().as_slice()),
            (&b"a.\nc.\n"[..], &b"b!\nd"[..])
        );
        // However little of a page was lost.
        assert_eq!(mended("a.\nb\0\nc.\n", None).log, b"a.\nc.\n");
    }

    proptest! {
        // Each syncs files.
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn every_sound_line_of_any_log_stays(
            parts in prop::collection::vec(prop_oneof!["[ab]{0,3}\\.\n", "[ab]{0,3}\n?", Just("\0".repeat(20))], 0..12),
            synced: bool,
        ) {
            let log = parts.concat();
            let mended = mended(&log, synced.then_some(0));
            let kept = String::from_utf8_lossy(&mended.log);
            if mended.damaged_at.is_none() {
                let kept: Vec<&str> = kept.lines().collect();
                prop_assert_eq!(kept, mended.taken);
            } else {
                prop_assert!(!synced);
                prop_assert!(log.starts_with(&*kept));
            }
        }
    }
}
