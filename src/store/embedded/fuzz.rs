//! What must hold of every journal, intents log and index, whatever bytes they are made of: for
//! `crate::fuzzing`.
//!
//! # Format
//!
//! Bytes taken at random never have the right checksum, so logs are written as a script: a line behind `+` gets
//! the checksum that makes it valid, `-` and a number cut as many bytes off what stands before, and every other
//! line stands as it is.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::fs::MemfdFlags;

use crate::domain::range::{BLOCK, Bits};
use crate::domain::record::JournalLine;
use crate::domain::{JobId, LineEntry, Record, RecordError, RequestId};
use crate::pulse::Member;
use crate::store::embedded::files::line_at;
use crate::store::embedded::intents::{Intent, Said};
use crate::store::embedded::keys::{self, Row};
use crate::store::embedded::log::Log;
use crate::store::embedded::recover::scan_journal;

/// Requests of the job whose journal it is: few, so that some records name one that it does not have.
pub(crate) const TOTAL: u32 = 8;

/// The log that `script` stands for.
fn log_of(script: &[u8], seal: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut log = Vec::new();
    for line in script.split_inclusive(|byte| *byte == b'\n') {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let cut = || std::str::from_utf8(text.strip_prefix(b"-")?).ok()?.parse::<usize>().ok();
        if let Some(text) = text.strip_prefix(b"+") {
            log.extend(seal(text));
        } else if let Some(cut) = cut() {
            log.truncate(log.len().saturating_sub(cut));
        } else {
            log.extend_from_slice(line);
        }
    }
    log
}

/// Recovery reads the records that a journal holds and no others, keeps each of them, and cuts the journal behind the
/// last. Gives the journal as it is then, with the success of each record.
pub(crate) fn journal(script: &[u8]) -> (Vec<u8>, BTreeMap<u32, bool>) {
    let log = log_of(script, |text| {
        let tail = format!(",\"crc\":\"{:08x}\"}}\n", crc32c::crc32c(text));
        [text, tail.as_bytes()].concat()
    });
    let folder = tempfile::tempdir_in(memory_if_any()).expect("a temporary folder can be made");
    let path = folder.path().join("results.log");
    fs::write(&path, &log).expect("a temporary folder can be written");
    let expected = records_in(&log);
    let (found, scan) = scan_journal(&path, None, TOTAL, &Member::default()).expect("a file can be read");
    assert_eq!((&found, scan.damaged_at.is_some()), (&expected.records, expected.is_damaged));
    scan.mend(&path).expect("a file can be mended");
    let kept = fs::read(&path).expect("it is there");
    assert_eq!(kept, expected.kept, "what is sound stays as it was");
    let aside = fs::read(folder.path().join("results.torn.1")).unwrap_or_default();
    assert_eq!(kept.len() + aside.len(), log.len(), "what is not is kept aside");
    let (again, scan) = scan_journal(&path, None, TOTAL, &Member::default()).expect("a file can be read");
    scan.mend(&path).expect("a file can be mended");
    assert_eq!(again, found);
    assert_eq!(fs::read(&path).expect("it is there"), kept, "once more changes nothing");
    let files = 1 + usize::from(!aside.is_empty());
    assert_eq!(fs::read_dir(folder.path()).expect("it is there").count(), files);
    append_behind(&path, found);
    (fs::read(&path).expect("it is there"), records_of(&path))
}

fn records_of(path: &Path) -> BTreeMap<u32, bool> {
    scan_journal(path, None, TOTAL, &Member::default()).expect("a file can be read").0
}

/// Temporary files that are synced cost nothing where there is a file system in memory.
fn memory_if_any() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

/// What recovery must find and leave.
struct Expected {
    records: BTreeMap<u32, bool>,
    kept: Vec<u8>,
    is_damaged: bool,
}

/// What recovery must find, told in the plainest way.
fn records_in(log: &[u8]) -> Expected {
    let mut records = BTreeMap::new();
    let (mut sound, mut is_damaged, mut end, mut offset) = (Vec::new(), false, 0, 0);
    let mut gap: Vec<u8> = Vec::new();
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        offset += line.len();
        // Whole, or behind the NULs of a page that was lost.
        let behind = line.iter().rposition(|byte| *byte == 0).map_or(0, |at| at + 1);
        let found = [0, behind].into_iter().find_map(|at| {
            let text = line.get(at..)?.strip_suffix(b"\n")?;
            Some((at, JournalLine::parse(text).filter(|record| record.index < TOTAL)?))
        });
        let Some((at, record)) = found else {
            gap.extend(line);
            continue;
        };
        gap.extend(line.get(..at).unwrap_or_default());
        is_damaged |= !gap.is_empty() && !gap.contains(&0);
        gap.clear();
        records.entry(record.index).or_insert_with(|| record.is_success());
        sound.extend(line.get(at..).unwrap_or_default());
        end = offset;
    }
    let kept = if is_damaged { log.get(..end).unwrap_or_default().to_vec() } else { sound };
    Expected { records, kept, is_damaged }
}

/// A record appended behind whatever was there is read back, and alone if reading begins behind the others.
fn append_behind(path: &Path, before: BTreeMap<u32, bool>) {
    let record = Record {
        request: RequestId { job: JobId::from_bytes([1; 16]), index: TOTAL - 1 },
        custom_id: "\u{e9}\n".to_owned(),
        response: None,
        error: Some(RecordError { code: "timeout".to_owned(), message: "x".to_owned() }),
    };
    let begin = fs::metadata(path).expect("it is there").len();
    let log = Log::open(path.to_owned()).expect("a file can be opened");
    log.append(&record.to_journal_line(2), |_| ()).expect("a file can be written");
    let (alone, scan) =
        scan_journal(path, Some(begin), TOTAL, &Member::default()).expect("a file can be read");
    assert_eq!((alone, scan.is_whole()), (BTreeMap::from([(TOTAL - 1, false)]), true));
    let mut both = before;
    both.entry(TOTAL - 1).or_insert(false);
    assert_eq!(records_of(path), both);
}

fn said_in(log: &[u8], is_open: impl Fn(u32) -> bool) -> Said {
    let mut said = Said::default();
    for line in log.split_inclusive(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\n")) {
        said.take(line, &is_open);
    }
    said
}

/// An intents log says of each open request what its lines say, and never more.
pub(crate) fn intents(script: &[u8]) {
    let log = log_of(script, |text| {
        format!(
            "{}{:08x}\n",
            String::from_utf8_lossy(text),
            crc32c::crc32c(String::from_utf8_lossy(text).as_bytes())
        )
        .into_bytes()
    });
    let is_open = |index: u32| index < TOTAL;
    let said = said_in(&log, is_open);
    let lines = log.split_inclusive(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\n"));
    let found: Vec<Intent> = lines.filter_map(Intent::parse).collect();
    let count = |is: &dyn Fn(&Intent) -> bool| found.iter().filter(|intent| is(intent)).count();
    for intent in &found {
        let line = intent.to_line();
        assert_eq!(line.strip_suffix(b"\n").and_then(Intent::parse), Some(*intent), "an intent is read back");
    }
    let maybe_paid =
        count(&|intent| matches!(intent, Intent::Lost { .. } | Intent::Ended { maybe_paid: true, .. }));
    assert_eq!(said.maybe_paid as usize, maybe_paid);
    for (index, last) in &said.last {
        assert!(is_open(*index));
        let lost = count(&|intent| matches!(intent, Intent::Lost { index: of, .. } if of == index));
        assert_eq!(last.lost as usize, lost);
        let sent = |attempt| found.contains(&Intent::Send { index: *index, attempt });
        assert!(last.sent.is_none_or(sent), "what is in flight was sent");
        let ended = count(
            &|intent| matches!(intent, Intent::Lost { index: of, .. } | Intent::Ended { index: of, .. } if of == index),
        );
        assert_eq!(last.ended.is_some(), ended > 0);
    }
    // Whatever was torn at a crash, the next intent stands behind it.
    let mut longer = log.clone();
    if !longer.ends_with(b"\n") && !longer.is_empty() {
        longer.push(b'\n');
    }
    longer.extend(Intent::Send { index: 1, attempt: 9 }.to_line());
    let mut expected = said;
    let torn_was_whole = log.rsplit(|byte| *byte == b'\n').next().and_then(Intent::parse).is_some();
    if !torn_was_whole {
        expected.last.entry(1).or_default().sent = Some(9);
        assert_eq!(said_in(&longer, is_open), expected);
    }
}

/// Entries of a line index survive their encoding, and lead into the input or to an error. The first byte says
/// how many entries there are; what stands behind them is the input.
pub(crate) fn line_index(data: &[u8]) {
    let Some((count, rest)) = data.split_first() else { return };
    let (entries, _) = rest.as_chunks::<{ LineEntry::SIZE }>();
    let entries = entries.get(..usize::from(count % 8)).unwrap_or(entries);
    let text = rest.get(entries.len() * LineEntry::SIZE..).unwrap_or_default();
    let file = rustix::fs::memfd_create("input", MemfdFlags::CLOEXEC).expect("memory can be had");
    let mut input = File::from(file);
    input.write_all(text).expect("memory can be written");
    for bytes in entries {
        let entry = LineEntry::decode(bytes);
        assert_eq!(entry.encode(), *bytes);
        let start = usize::try_from(entry.offset).unwrap_or(usize::MAX);
        let expected = text.get(start..start.saturating_add(entry.length as usize));
        assert_eq!(line_at(&input, entry).ok().as_deref(), expected);
    }
}

/// Rows of the index in sled survive their encoding, and what is none is known as that.
pub(crate) fn index_rows(data: &[u8]) {
    if let Some(bits) = Bits::decode(data) {
        let members: Vec<u32> = bits.iter_from(0).collect();
        assert!(
            members.is_sorted() && members.iter().all(|member| *member < BLOCK && bits.contains(*member))
        );
        assert_eq!(members.len(), bits.len() as usize);
        let encoded = bits.encode();
        assert!(encoded.len() <= 1 + BLOCK as usize / 8);
        assert_eq!(Bits::decode(&encoded), Some(bits));
    }
    if let Some(row) = Row::decode(data) {
        assert_eq!(row.encode(), data);
    }
    let id = data.get(1..17).and_then(|id| id.try_into().ok()).map(JobId::from_bytes);
    if let (Some(id), Some((queue, block))) = (id, keys::parse_range(data)) {
        assert_eq!(keys::range(id, queue, block).get(1..), data.get(1..23));
    }
    if let (Some(id), Some((queue, due, index))) = (id, keys::parse_waiting(data)) {
        assert_eq!(keys::waiting(id, queue, due, index).get(1..), data.get(1..31));
    }
}
