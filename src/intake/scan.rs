//! Looks through the jobs folder and says what is ready to be taken in: the only way in (events merely
//! make it look sooner).
//!
//! # Invariants
//!
//! - Nothing is opened for reading here but folders.
//! - What was written a moment ago is left alone: a file is ready when size, times and inode were the same
//!   at two looks at least `settle` apart and its mtime is at least that old.
//! - A scan remembers and answers at most [`TRACKED_MAX`] names; the rest waits for those to go.
//!
//! # What it does not do
//!
//! It can't tell a writer who pauses for longer than `settle` from one who is done: write beside the
//! folder (or under a name that begins with a dot) and rename.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::fs::FileType;

use super::claim::Dropped;
use super::dir::{Dir, Stamp};
use crate::domain::Timestamp;
use crate::spec::Form;

/// Names watched for settling at once: about a megabyte.
pub(super) const TRACKED_MAX: usize = 10_000;

/// A dropped folder holds at most this many entries: all of them are looked at in every scan until it rests.
const FOLDER_ENTRIES_MAX: usize = 10_000;

/// Names about which a scan remarks something.
const REMARKS_MAX: usize = 1000;

/// How deep a dropped folder may be nested.
pub(super) const FOLDER_DEPTH_MAX: usize = 16;

pub(super) const NOT_UTF8: &str = "its name is not UTF-8";
const NO_ENDING: &str = "specs end in `.jsonl` or `.toml`";
const NO_FOLDER_SPEC: &str = "it is a folder without a `job.toml`";
const MIXED: &str = "it holds a link, a pipe or a device; regular files and folders are expected";

/// Names that editors, browsers and copying tools use for what is not whole yet.
const UNFINISHED: [&str; 9] =
    ["~", ".tmp", ".part", ".partial", ".swp", ".swx", ".crdownload", ".filepart", "#"];

/// Something in the jobs folder that has come to rest.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) name: OsString,
    pub(super) find: Find,
    pub(super) stamp: Stamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Find {
    /// A spec by its looks; whether it is one is found by reading it.
    Spec(Dropped),
    /// It is moved aside unread, for this reason.
    Unfit(&'static str),
}

/// Something that lies there and is not taken in, which a person may not expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remark {
    pub(super) name: OsString,
    pub(super) why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It is no spec.
    PassedOver(&'static str),
    /// It can't be looked at.
    Closed(String),
}

/// What one look at the jobs folder found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Oldest first.
    pub(super) ready: Vec<Candidate>,
    /// Not yet at rest.
    pub(super) settling: Vec<OsString>,
    /// Of what has come to rest.
    pub(super) remarks: Vec<Remark>,
    /// How many more there are, beyond the bound.
    pub(super) beyond: usize,
    /// When the next of `settling` may be ready.
    pub(super) next: Option<Duration>,
}

impl Scan {
    fn remark(&mut self, name: OsString, why: Why) {
        if self.remarks.len() < REMARKS_MAX {
            self.remarks.push(Remark { name, why });
        }
    }
}

/// Remembers from look to look what it saw.
#[derive(Debug)]
pub(super) struct Scanner {
    settle: Duration,
    looks: BTreeMap<OsString, Look>,
}

#[derive(Debug)]
struct Look {
    stamp: Stamp,
    /// When it was first seen like this.
    since: Timestamp,
}

impl Scanner {
    pub(super) fn new(settle: Duration) -> Self {
        Self { settle, looks: BTreeMap::new() }
    }

    /// What rests already has rested as long as it has.
    pub(super) const fn set_settle(&mut self, settle: Duration) {
        self.settle = settle;
    }

    /// Looks at the folder. `now` is the time of this look.
    pub(super) fn scan(&mut self, dir: &Dir, now: Timestamp) -> io::Result<Scan> {
        let mut scan = Scan::default();
        let mut looks = BTreeMap::new();
        for name in dir.names()? {
            let name = name?;
            if looks.len() == TRACKED_MAX {
                // A flood costs no more than the reading of its names.
                scan.beyond += usize::from(matches!(Name::of(&name), Name::Spec(_) | Name::Odd(_)));
                continue;
            }
            // One entry that can't be looked at must not hide the others.
            let (find, stamp) = match look_at(dir, &name) {
                Ok(Sight::Found(find, stamp)) => (find, stamp),
                Ok(Sight::PassedOver(why, stamp)) => {
                    // A folder may get its spec yet.
                    if self.rested(&stamp, now).is_zero() {
                        scan.remark(name, Why::PassedOver(why));
                    }
                    continue;
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    scan.remark(name, Why::Closed(error.to_string()));
                    continue;
                }
                Ok(Sight::Nothing) | Err(_) => continue,
            };
            let since = self.since(&name, &stamp, now);
            let wait = self.wait(&stamp, since, now);
            if wait.is_zero() {
                scan.ready.push(Candidate { name: name.clone(), find, stamp });
            } else {
                scan.settling.push(name.clone());
                scan.next = Some(scan.next.map_or(wait, |next| next.min(wait)));
            }
            looks.insert(name, Look { stamp, since });
        }
        self.looks = looks;
        scan.ready.sort_by(|a, b| (a.stamp.modified_ns, &a.name).cmp(&(b.stamp.modified_ns, &b.name)));
        Ok(scan)
    }

    /// Since when the name has looked like this. A clock that was set back begins anew.
    fn since(&self, name: &OsStr, stamp: &Stamp, now: Timestamp) -> Timestamp {
        let before = self.looks.get(name).filter(|look| look.stamp == *stamp && look.since <= now);
        before.map_or(now, |look| look.since)
    }

    /// How long until it may count as settled.
    fn wait(&self, stamp: &Stamp, since: Timestamp, now: Timestamp) -> Duration {
        self.settle.saturating_sub(now.since(since)).max(self.rested(stamp, now))
    }

    /// How long until its last write is old enough. An mtime in the future says nothing: another machine's clock
    /// wrote it, or it was unpacked with it.
    fn rested(&self, stamp: &Stamp, now: Timestamp) -> Duration {
        let millis = stamp.modified_ns.div_euclid(1_000_000);
        let written = u64::try_from(millis).map_or(Timestamp::from_millis(0), Timestamp::from_millis);
        if written > now { Duration::ZERO } else { self.settle.saturating_sub(now.since(written)) }
    }
}

/// What a name means before anyone looks behind it.
enum Name {
    Ignored,
    Spec(Form),
    /// Not to be shown or opened as it is.
    Odd(&'static str),
    /// Interesting only if it is a folder with a spec.
    Other,
}

impl Name {
    fn of(name: &OsStr) -> Self {
        let bytes = name.as_encoded_bytes();
        let unfinished = UNFINISHED.iter().any(|ending| bytes.ends_with(ending.as_bytes()));
        let ours = name == super::INPUTS || name == super::REJECTED;
        if bytes.starts_with(b".") || unfinished || ours {
            return Self::Ignored;
        }
        let Some(text) = name.to_str() else { return Self::Odd(NOT_UTF8) };
        if text.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')) {
            return Self::Odd("its name holds a line end or another control character");
        }
        Form::of(text).map_or(Self::Other, Self::Spec)
    }
}

/// Whether the daemon never looks at what has this name in the jobs folder.
pub fn is_never_read(name: &str) -> bool {
    matches!(Name::of(OsStr::new(name)), Name::Ignored)
}

/// Why the daemon would not read a dropped folder, if it would not.
pub fn unfit_folder(path: &Path) -> io::Result<Option<&'static str>> {
    Ok(tree(&Dir::open(path)?)?.unfit)
}

/// What a name turns out to be.
enum Sight {
    Nothing,
    /// No spec, for this reason.
    PassedOver(&'static str, Stamp),
    Found(Find, Stamp),
}

/// What lies under the name, if it concerns intake at all.
fn look_at(dir: &Dir, name: &OsStr) -> io::Result<Sight> {
    let meaning = Name::of(name);
    if matches!(meaning, Name::Ignored) {
        return Ok(Sight::Nothing);
    }
    let Some(entry) = dir.stat(name)? else { return Ok(Sight::Nothing) };
    let find = match (entry.kind, meaning) {
        (FileType::Directory, meaning) => return look_into(dir, name, &meaning, entry.stamp),
        (_, Name::Ignored | Name::Other) => return Ok(Sight::PassedOver(NO_ENDING, entry.stamp)),
        (FileType::RegularFile, Name::Spec(Form::Jsonl)) => Find::Spec(Dropped::Jsonl),
        (FileType::RegularFile, Name::Spec(Form::Toml)) => Find::Spec(Dropped::Toml),
        (FileType::RegularFile, Name::Odd(why)) => Find::Unfit(why),
        (special, _) => Find::Unfit(what_it_is(special)),
    };
    Ok(Sight::Found(find, entry.stamp))
}

/// A folder is a drop once it holds a `job.toml`.
fn look_into(dir: &Dir, name: &OsStr, meaning: &Name, stamp: Stamp) -> io::Result<Sight> {
    let folder = dir.below(name)?;
    if folder.stat(OsStr::new(super::FOLDER_SPEC))?.is_none() {
        return Ok(Sight::PassedOver(NO_FOLDER_SPEC, stamp));
    }
    let tree = tree(&folder)?;
    let find = match (meaning, tree.unfit) {
        (Name::Odd(why), _) => Find::Unfit(why),
        (_, Some(why)) => Find::Unfit(why),
        _ => Find::Spec(Dropped::Folder),
    };
    Ok(Sight::Found(find, tree.stamp))
}

/// The stamp of a file or of a dropped folder; none if there is nothing, or something of another kind.
pub(super) fn stamp_of(dir: &Dir, name: &OsStr, dropped: Dropped) -> io::Result<Option<Stamp>> {
    let Some(entry) = dir.stat(name)? else { return Ok(None) };
    Ok(match (entry.kind, dropped) {
        (FileType::Directory, Dropped::Folder) => Some(tree(&dir.below(name)?)?.stamp),

        (FileType::RegularFile, Dropped::Jsonl | Dropped::Toml) => Some(entry.stamp),
        _ => None,
    })
}

/// A folder and all that is in it.
struct Tree {
    stamp: Stamp,
    /// Why such a folder is not taken in.
    unfit: Option<&'static str>,
    entries: usize,
}

/// Looks at everything in a folder, as far as its bounds go.
fn tree(folder: &Dir) -> io::Result<Tree> {
    let Some(entry) = folder.stat(OsStr::new("."))? else { return Err(io::ErrorKind::NotFound.into()) };
    let mut tree = Tree { stamp: Stamp { size: 0, ..entry.stamp }, unfit: None, entries: 0 };
    grow(&mut tree, folder, 0)?;
    Ok(tree)
}

fn grow(tree: &mut Tree, folder: &Dir, depth: usize) -> io::Result<()> {
    if depth > FOLDER_DEPTH_MAX {
        tree.unfit = Some("it is nested more than 16 folders deep");
        return Ok(());
    }
    for name in folder.names()? {
        let name = name?;
        let Some(entry) = folder.stat(&name)? else { continue };
        tree.entries += 1;
        if tree.entries > FOLDER_ENTRIES_MAX {
            tree.unfit = Some("it holds more than 10000 files and folders");
            return Ok(());
        }
        let stamp = &mut tree.stamp;
        stamp.modified_ns = stamp.modified_ns.max(entry.stamp.modified_ns);
        stamp.changed_ns = stamp.changed_ns.max(entry.stamp.changed_ns);
        match entry.kind {
            FileType::RegularFile => stamp.size = stamp.size.saturating_add(entry.stamp.size),
            FileType::Directory => grow(tree, &folder.below(&name)?, depth + 1)?,
            FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => {
                tree.unfit = Some(MIXED);
            }
        }
    }
    Ok(())
}

const fn what_it_is(kind: FileType) -> &'static str {
    match kind {
        FileType::Symlink => "it is a symbolic link; a regular file is expected",
        FileType::Fifo => "it is a named pipe; a regular file is expected",
        FileType::Socket => "it is a socket; a regular file is expected",
        FileType::CharacterDevice | FileType::BlockDevice => "it is a device; a regular file is expected",
        FileType::RegularFile | FileType::Directory | FileType::Unknown => "it is not a regular file",
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::io::Write;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps};
    use tempfile::TempDir;

    use super::*;
    use crate::clock::Clock;

    const SETTLE: Duration = Duration::from_secs(1);

    struct Jobs {
        temp: TempDir,
        dir: Dir,
        scanner: Scanner,
        now: Timestamp,
    }

    impl Jobs {
        fn new() -> Self {
            let temp = tempfile::tempdir().unwrap();
            let dir = Dir::open(temp.path()).unwrap();
            // Later than every mtime that the tests make by writing.
            let now = Clock::System.now() + Duration::from_mins(10);
            Self { temp, dir, scanner: Scanner::new(SETTLE), now }
        }

        fn write(&self, name: impl AsRef<Path>, text: &str) {
            fs::write(self.temp.path().join(name), text).unwrap();
        }

        fn age(&self, name: &str, modified: Timestamp) {
            let time = Timespec { tv_sec: i64::try_from(modified.as_secs()).unwrap(), tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, self.temp.path().join(name), &times, AtFlags::empty()).unwrap();
        }

        fn look_after(&mut self, pause: Duration) -> Scan {
            self.now = self.now + pause;
            self.scanner.scan(&self.dir, self.now).unwrap()
        }

        /// Names that are ready after two looks, and what they are.
        fn settled(&mut self) -> BTreeMap<OsString, Find> {
            assert!(self.look_after(SETTLE).ready.is_empty());
            let ready = self.look_after(SETTLE).ready;
            ready.into_iter().map(|candidate| (candidate.name, candidate.find)).collect()
        }
    }

    #[test]
    fn a_file_is_ready_at_the_second_look_after_it_has_settled() {
        let mut jobs = Jobs::new();
        jobs.write("a.jsonl", "x");
        let first = jobs.look_after(Duration::ZERO);
        assert_eq!((first.ready.len(), first.settling.len(), first.next), (0, 1, Some(SETTLE)));
        let early = jobs.look_after(Duration::from_millis(400));
        assert_eq!((early.ready.len(), early.next), (0, Some(Duration::from_millis(600))));
        let due = jobs.look_after(Duration::from_millis(600));
        assert_eq!((due.ready.len(), due.settling.len(), due.next), (1, 0, None));
    }

    #[test]
    fn a_growing_file_is_never_ready() {
        let mut jobs = Jobs::new();
        let mut file = File::create(jobs.temp.path().join("a.jsonl")).unwrap();
        for _ in 0..20 {
            file.write_all(b"x").unwrap();
            assert!(jobs.look_after(SETTLE * 3).ready.is_empty());
        }
        assert_eq!(jobs.look_after(SETTLE).ready.len(), 1);
    }

    #[test]
    fn a_file_written_in_place_or_replaced_begins_anew() {
        let mut jobs = Jobs::new();
        let old = Timestamp::from_millis(1_000_000);
        jobs.write("a.jsonl", "x");
        jobs.age("a.jsonl", old);
        assert!(jobs.look_after(SETTLE).ready.is_empty());
        // The same size and mtime: only the inode and the time of change tell.
        jobs.write("b.tmp", "y");
        jobs.age("b.tmp", old);
        fs::rename(jobs.temp.path().join("b.tmp"), jobs.temp.path().join("a.jsonl")).unwrap();
        assert!(jobs.look_after(SETTLE).ready.is_empty());
        assert_eq!(jobs.look_after(SETTLE).ready.len(), 1);
    }

    #[test]
    fn a_fresh_mtime_must_age_and_a_future_one_says_nothing() {
        let mut jobs = Jobs::new();
        let now = Timestamp::from_millis(jobs.now.as_secs() * 1000);
        jobs.now = now;
        jobs.write("fresh.jsonl", "x");
        jobs.write("future.jsonl", "x");
        jobs.age("fresh.jsonl", now + Duration::from_secs(1));
        jobs.age("future.jsonl", now + Duration::from_hours(1));
        jobs.look_after(Duration::ZERO);
        let names: Vec<_> = jobs.look_after(SETTLE).ready.into_iter().map(|c| c.name).collect();
        assert_eq!(names, ["future.jsonl"]);
        let names = jobs.look_after(SETTLE).ready.len();
        assert_eq!(names, 2);
    }

    #[test]
    fn a_clock_that_is_set_back_delays_by_one_settle_only() {
        let mut jobs = Jobs::new();
        jobs.write("a.jsonl", "x");
        jobs.look_after(Duration::from_hours(5));
        jobs.now = Timestamp::from_millis(jobs.now.as_millis() - 4 * 3_600_000);
        assert!(jobs.look_after(Duration::ZERO).ready.is_empty());
        assert_eq!(jobs.look_after(SETTLE).ready.len(), 1);
    }

    #[test]
    fn names_decide_what_is_looked_at() {
        let mut jobs = Jobs::new();
        let ignored: [&[u8]; 17] = [
            b".hidden.jsonl",
            b".a.jsonl.swp",
            b"a.jsonl~",
            b"a.jsonl.tmp",
            b"a.toml.part",
            b"a.partial",
            b"a.swp",
            b"a.crdownload",
            b"#a.toml#",
            b"4913",
            b"notes.txt",
            b"README",
            b"a.JSONL",
            b"a.json",
            b"jsonl",
            b"\xff.tmp",
            b".\xff.jsonl",
        ];
        let taken: [(&[u8], Find); 8] = [
            (b"a.jsonl", Find::Spec(Dropped::Jsonl)),
            (b"b.chat.jsonl", Find::Spec(Dropped::Jsonl)),
            (b"c d.toml", Find::Spec(Dropped::Toml)),
            (b"-rf.toml", Find::Spec(Dropped::Toml)),
            (b"a\nb.jsonl", Find::Unfit("its name holds a line end or another control character")),
            (b"\x1b[31m.toml", Find::Unfit("its name holds a line end or another control character")),
            (
                "a\u{2028}b.jsonl".as_bytes(),
                Find::Unfit("its name holds a line end or another control character"),
            ),
            (b"\xff\xfe.jsonl", Find::Unfit(NOT_UTF8)),
        ];
        for name in ignored.into_iter().chain(taken.iter().map(|(name, _)| *name)) {
            jobs.write(OsStr::from_bytes(name), "x");
        }
        let expected: BTreeMap<OsString, Find> =
            taken.into_iter().map(|(name, find)| (OsStr::from_bytes(name).to_owned(), find)).collect();
        assert_eq!(jobs.settled(), expected);
    }

    #[test]
    fn what_is_no_spec_is_remarked_once_it_rests_and_unfinished_names_are_not() {
        let mut jobs = Jobs::new();
        for name in ["notes.txt", "a.json", "a.jsonl.tmp", ".hidden", "a.jsonl"] {
            jobs.write(name, "x");
        }
        fs::create_dir(jobs.temp.path().join("folder")).unwrap();
        jobs.now = Clock::System.now();
        assert_eq!(jobs.look_after(Duration::ZERO).remarks, [], "a folder may get its spec yet");
        let mut remarks = jobs.look_after(Duration::from_mins(1)).remarks;
        remarks.sort_by(|a, b| a.name.cmp(&b.name));
        let expected = [("a.json", NO_ENDING), ("folder", NO_FOLDER_SPEC), ("notes.txt", NO_ENDING)];
        let expected = expected.map(|(name, why)| Remark { name: name.into(), why: Why::PassedOver(why) });
        assert_eq!(remarks, expected);
    }

    #[test]
    fn what_is_no_regular_file_is_unfit_and_never_opened() {
        let mut jobs = Jobs::new();
        let path = |name: &str| jobs.temp.path().join(name);
        symlink("/etc/passwd", path("link.jsonl")).unwrap();
        symlink("nowhere", path("broken.toml")).unwrap();
        symlink("/etc", path("folder-link")).unwrap();
        fs::create_dir(path("empty.jsonl")).unwrap();
        fs::create_dir(path("inputs")).unwrap();
        fs::write(path("inputs").join("job.toml"), "x").unwrap();
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(CWD, path("pipe.jsonl"), FileType::Fifo, mode, 0).unwrap();
        let _socket = UnixListener::bind(path("socket.toml")).unwrap();
        let found = jobs.settled();
        let names: Vec<_> = found.keys().map(|name| name.to_str().unwrap()).collect();
        assert_eq!(names, ["broken.toml", "link.jsonl", "pipe.jsonl", "socket.toml"]);
        assert!(found.values().all(|find| matches!(find, Find::Unfit(_))), "{found:?}");
    }

    #[test]
    fn a_folder_rests_when_everything_in_it_does() {
        let mut jobs = Jobs::new();
        let deep = jobs.temp.path().join("news/data/deep");
        fs::create_dir_all(&deep).unwrap();
        assert!(jobs.settled().is_empty(), "no spec in it yet");
        jobs.write("news/job.toml", "x");
        for round in 0..3 {
            let mut rows = OpenOptions::new().create(true).append(true).open(deep.join("rows.csv")).unwrap();
            writeln!(rows, "{round}").unwrap();
            assert!(jobs.look_after(SETTLE).ready.is_empty());
        }
        let ready = jobs.look_after(SETTLE).ready;
        assert_eq!(ready[0].find, Find::Spec(Dropped::Folder));
        assert_eq!(ready[0].stamp.size, 1 + 6);
    }

    #[test]
    fn a_folder_that_holds_a_link_or_is_too_deep_is_unfit() {
        let mut jobs = Jobs::new();
        let deep: std::path::PathBuf = std::iter::repeat_n("d", FOLDER_DEPTH_MAX + 1).collect();
        for name in ["linked", "deep", "specless", "link-spec"] {
            fs::create_dir(jobs.temp.path().join(name)).unwrap();
        }
        jobs.write("linked/job.toml", "x");
        symlink("/etc/passwd", jobs.temp.path().join("linked/rows.txt")).unwrap();
        symlink("/etc/passwd", jobs.temp.path().join("link-spec/job.toml")).unwrap();
        jobs.write("deep/job.toml", "x");
        fs::create_dir_all(jobs.temp.path().join("deep").join(deep)).unwrap();
        let found = jobs.settled();
        let names: Vec<_> = found.keys().map(|name| name.to_str().unwrap()).collect();
        assert_eq!(names, ["deep", "link-spec", "linked"]);
        assert!(found.values().all(|find| matches!(find, Find::Unfit(_))), "{found:?}");
    }

    #[test]
    fn the_oldest_come_first_and_what_is_beyond_the_bound_is_counted() {
        let mut jobs = Jobs::new();
        for number in 0..TRACKED_MAX + 3 {
            File::create(jobs.temp.path().join(format!("{number}.jsonl"))).unwrap();
        }
        jobs.look_after(Duration::ZERO);
        let scan = jobs.look_after(SETTLE);
        assert_eq!((scan.ready.len(), scan.beyond, scan.next), (TRACKED_MAX, 3, None));
        assert!(scan.ready.is_sorted_by_key(|candidate| candidate.stamp.modified_ns));
    }
}
