//! The operating system's hints that something happened in the jobs folder. A hint makes a scan come
//! sooner and says nothing else: events are lost, doubled, or never come (network file systems), and the
//! periodic scan finds what they miss.
//!
//! # Operation
//!
//! A watch is armed for a folder, not for its path: when another folder stands there, it is armed anew. It is also armed
//! anew now and then, since a folder that is unmounted and mounted again between two looks takes its watch along and looks
//! the same. Where watching is impossible (the limits of inotify are used up, the file system knows no events), the log
//! is told once, scans go on alone, and it is tried again each [`AGAIN`].

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tracing::{info, warn};

use super::dir::Dir;
use crate::domain::Timestamp;

/// How long after a failure watching is tried again: each try takes a thread and two descriptors for a moment.
pub(super) const AGAIN: Duration = Duration::from_mins(1);

/// How long a watch is trusted.
const TRUSTED: Duration = Duration::from_mins(10);

/// What the kernel's watches say nothing about when it happens elsewhere: the number that `statfs` gives, and the name.
const UNHEARD: [(u64, &str); 10] = [
    (0x6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb"),
    (0x6573_5546, "fuse"),
    (0x0102_1997, "9p"),
    (0x794c_7630, "overlay"),
    (0x00c3_6400, "ceph"),
    (0x0bd0_0bd0, "lustre"),
    (0x5346_414f, "afs"),
    (0x7461_636f, "ocfs2"),
];

/// Watches as long as it lives.
pub(super) trait Eye: fmt::Debug + Send {}

impl Eye for RecommendedWatcher {}

/// Begins to watch a folder: [`notify`], or what a test puts in its place.
pub(super) type Begin = fn(&Path, Signals) -> notify::Result<Box<dyn Eye>>;

/// What the watcher's thread says to intake.
#[derive(Clone, Debug, Default)]
pub(super) struct Signals {
    hints: Arc<Notify>,
    /// The watched folder may be gone from its place.
    is_stale: Arc<AtomicBool>,
    /// The watch failed.
    failure: Arc<Mutex<Option<notify::Error>>>,
}

impl Signals {
    /// Takes in what happened; `folder` is the watched one.
    pub(super) fn heard(&self, event: notify::Result<Event>, folder: &Path) {
        match event {
            Ok(event) => {
                if is_end(&event, folder) {
                    self.is_stale.store(true, Ordering::Release);
                } else if !is_hint(&event) {
                    return;
                }
            }
            Err(error) => *self.lock_failure() = Some(error),
        }
        self.hints.notify_one();
    }

    fn lock_failure(&self) -> std::sync::MutexGuard<'_, Option<notify::Error>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches a folder as long as it is the same one; armed again when another stands in its place.
#[derive(Debug)]
pub(super) struct Watch {
    path: PathBuf,
    signals: Signals,
    begin: Begin,
    armed: Option<Armed>,
    /// After a failure.
    not_before: Option<Timestamp>,
    /// The log knows that it fails.
    is_told: bool,
    /// The file system of which the log knows that not all events come from it.
    unheard: Option<&'static str>,
}

#[derive(Debug)]
struct Armed {
    folder: (u64, u64),
    until: Timestamp,
    _eye: Box<dyn Eye>,
}

impl Watch {
    /// Not armed yet. `hints` is rung at every hint.
    pub(super) fn new(path: PathBuf, hints: Arc<Notify>, begin: Begin) -> Self {
        let signals = Signals { hints, ..Signals::default() };
        Self { path, signals, begin, armed: None, not_before: None, is_told: false, unheard: None }
    }

    /// Makes sure that `dir`, as the path leads to it now, is watched. Call it before looking, so that
    /// nothing falls between the look and the first hint.
    pub(super) fn arm(&mut self, dir: &Dir, now: Timestamp) {
        let Ok(folder) = dir.identity() else { return };
        let failure = self.signals.lock_failure().take();
        if let Some(error) = failure {
            self.fail(&error, now);
        }
        let is_stale = self.signals.is_stale.swap(false, Ordering::AcqRel);
        let is_trusted = |armed: &Armed| armed.folder == folder && now < armed.until;
        if !is_stale && self.armed.as_ref().is_some_and(is_trusted) {
            return;
        }
        self.armed = None;
        if self.not_before.is_some_and(|not_before| now < not_before) {
            return;
        }
        match (self.begin)(&self.path, self.signals.clone()) {
            Ok(eye) => {
                self.not_before = None;
                if std::mem::take(&mut self.is_told) {
                    info!(path = %self.path.display(), "the jobs folder is watched again");
                }
                self.tell_of_file_system(dir);
                // A folder that was swapped in between is found by the next look.
                let same =
                    Dir::open(&self.path).and_then(|dir| dir.identity()).is_ok_and(|now| now == folder);
                self.armed = same.then(|| Armed { folder, until: now + TRUSTED, _eye: eye });
            }
            Err(error) => self.fail(&error, now),
        }
    }

    /// The folder is not there: what became of it is nobody's business.
    pub(super) fn disarm(&mut self) {
        self.armed = None;
    }

    fn fail(&mut self, error: &notify::Error, now: Timestamp) {
        self.armed = None;
        self.not_before = Some(now + AGAIN);
        if !std::mem::replace(&mut self.is_told, true) {
            warn!(
                path = %self.path.display(), %error, hint = hint(error),
                "the jobs folder can't be watched: it is looked through every `rescan` alone"
            );
        }
    }

    /// Once for each file system.
    fn tell_of_file_system(&mut self, dir: &Dir) {
        let kind = dir.file_system().ok();
        let unheard = UNHEARD.iter().find(|(number, _)| Some(*number) == kind).map(|(_, name)| *name);
        if let Some(file_system) = unheard.filter(|_| self.unheard != unheard) {
            info!(
                path = %self.path.display(), file_system,
                "events may not come from this file system: the jobs folder is looked through every `rescan`"
            );
        }
        self.unheard = unheard;
    }
}

/// Watches with what the operating system has.
pub(super) fn begin(path: &Path, signals: Signals) -> notify::Result<Box<dyn Eye>> {
    let folder = path.to_owned();
    let mut watcher = notify::recommended_watcher(move |event| signals.heard(event, &folder))?;
    watcher.watch(path, RecursiveMode::NonRecursive)?;
    Ok(Box::new(watcher))
}

/// What an operator can do.
fn hint(error: &notify::Error) -> Option<&'static str> {
    let instances = "all inotify instances of this user are taken, or all descriptors: raise `fs.inotify.max_user_instances`";
    match &error.kind {
        notify::ErrorKind::MaxFilesWatch => {
            Some("all inotify watches of this user are taken: raise `fs.inotify.max_user_watches`")
        }
        notify::ErrorKind::Io(error)
            if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) =>
        {
            Some(instances)
        }
        notify::ErrorKind::Io(_)
        | notify::ErrorKind::Generic(_)
        | notify::ErrorKind::PathNotFound
        | notify::ErrorKind::WatchNotFound
        | notify::ErrorKind::InvalidConfig(_) => None,
    }
}

/// Whether there may be something new. Reading the folder makes events too, and so does what we take out of
/// it: to follow those would be to look for ever.
fn is_hint(event: &Event) -> bool {
    match event.kind {
        _ if event.need_rescan() => true,
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(_) => false,
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Other => true,
    }
}

/// Whether the watched folder itself was removed or renamed. Its inode may come back as another folder's.
fn is_end(event: &Event, folder: &Path) -> bool {
    let is_gone =
        matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From)));
    is_gone && event.paths.first().is_some_and(|path| path == folder)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use futures_util::FutureExt;
    use notify::event::{CreateKind, DataChange, Flag, RemoveKind};

    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_000_000);

    #[test]
    fn only_what_may_bring_something_new_is_a_hint() {
        let table = [
            (EventKind::Create(CreateKind::File), true),
            (EventKind::Modify(ModifyKind::Data(DataChange::Any)), true),
            (EventKind::Modify(ModifyKind::Name(RenameMode::To)), true),
            (EventKind::Modify(ModifyKind::Name(RenameMode::From)), false),
            (EventKind::Access(AccessKind::Close(AccessMode::Write)), true),
            (EventKind::Access(AccessKind::Open(AccessMode::Any)), false),
            (EventKind::Remove(RemoveKind::File), false),
            (EventKind::Remove(RemoveKind::Folder), false),
        ];
        for (kind, expected) in table {
            assert_eq!(is_hint(&Event::new(kind)), expected, "{kind:?}");
        }
        let overflow = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        assert!(overflow.paths.is_empty() && is_hint(&overflow));
    }

    #[test]
    fn the_end_of_the_folder_itself_is_a_hint_and_makes_the_watch_stale() {
        let folder = Path::new("/jobs");
        let ends =
            [EventKind::Remove(RemoveKind::Folder), EventKind::Modify(ModifyKind::Name(RenameMode::From))];
        for kind in ends {
            for (path, expected) in [("/jobs", true), ("/jobs/a", false)] {
                let signals = Signals::default();
                signals.heard(Ok(Event::new(kind).add_path(path.into())), folder);
                let is_stale = signals.is_stale.load(Ordering::Acquire);
                let is_hinted = signals.hints.notified().now_or_never().is_some();
                assert_eq!((is_stale, is_hinted), (expected, expected), "{kind:?} {path}");
            }
        }
    }

    /// A watcher that hears nothing.
    #[derive(Debug)]
    struct Deaf;

    impl Eye for Deaf {}

    thread_local! {
        /// What beginning to watch comes to, and how often it was tried. Every test has its own thread.
        static FAILS: RefCell<(Option<notify::ErrorKind>, u32)> = const { RefCell::new((None, 0)) };
    }

    fn begin_as_told(_: &Path, _: Signals) -> notify::Result<Box<dyn Eye>> {
        FAILS.with_borrow_mut(|(fails, tries)| {
            *tries += 1;
            match fails.take() {
                Some(kind) => Err(notify::Error::new(kind)),
                None => Ok(Box::new(Deaf) as Box<dyn Eye>),
            }
        })
    }

    fn fail_next(kind: notify::ErrorKind) {
        FAILS.with_borrow_mut(|(fails, _)| *fails = Some(kind));
    }

    fn tries() -> u32 {
        FAILS.with_borrow(|(_, tries)| *tries)
    }

    #[test]
    fn what_cannot_be_watched_is_told_once_and_tried_again_now_and_then() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let mut watch = Watch::new(temp.path().to_owned(), Arc::default(), begin_as_told);
        let mut now = START;
        for expected in 1..=3 {
            fail_next(notify::ErrorKind::MaxFilesWatch);
            for _ in 0..5 {
                watch.arm(&dir, now);
                assert!(watch.armed.is_none() && watch.is_told);
                assert_eq!(tries(), expected);
                now = now + AGAIN / 5;
            }
        }
        watch.arm(&dir, now);
        assert!(watch.armed.is_some() && !watch.is_told, "it is good again");
        for _ in 0..5 {
            watch.arm(&dir, now);
        }
        assert_eq!(tries(), 4);
        // A watch that breaks is one that can't be watched.
        watch.signals.heard(Err(notify::Error::generic("broken")), temp.path());
        watch.arm(&dir, now);
        assert!(watch.armed.is_none() && watch.is_told);
        assert_eq!(tries(), 4);
        watch.arm(&dir, now + AGAIN);
        assert!(watch.armed.is_some() && !watch.is_told);
    }

    #[test]
    fn a_watch_is_not_trusted_for_ever() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let mut watch = Watch::new(temp.path().to_owned(), Arc::default(), begin_as_told);
        watch.arm(&dir, START);
        watch.arm(&dir, START + AGAIN);
        assert_eq!(tries(), 1);
        watch.arm(&dir, START + TRUSTED);
        assert_eq!(tries(), 2);
        watch.disarm();
        watch.arm(&dir, START + TRUSTED);
        assert_eq!(tries(), 3);
    }

    #[test]
    fn an_operator_is_told_which_limit_is_used_up() {
        let hint_of = |kind| hint(&notify::Error::new(kind)).unwrap_or_default();
        let instances = std::io::Error::from_raw_os_error(24);
        assert!(hint_of(notify::ErrorKind::Io(instances)).contains("max_user_instances"));
        assert!(hint_of(notify::ErrorKind::MaxFilesWatch).contains("max_user_watches"));
        assert_eq!(hint_of(notify::ErrorKind::PathNotFound), "");
    }

    #[tokio::test]
    async fn a_folder_put_in_the_place_of_the_watched_one_is_watched() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("jobs");
        std::fs::create_dir(&path).unwrap();
        let hints = Arc::new(Notify::new());
        let mut watch = Watch::new(path.clone(), Arc::clone(&hints), begin);
        watch.arm(&Dir::open(&path).unwrap(), START);
        std::fs::rename(&path, temp.path().join("old")).unwrap();
        tokio::time::timeout(Duration::from_secs(20), hints.notified()).await.unwrap();
        std::fs::create_dir(&path).unwrap();
        watch.arm(&Dir::open(&path).unwrap(), START);
        // What the old watch may have had to say is not meant.
        let _ = hints.notified().now_or_never();
        std::fs::write(path.join("a.jsonl"), "x").unwrap();
        tokio::time::timeout(Duration::from_secs(20), hints.notified()).await.unwrap();
        let folder = Dir::open(&path).unwrap().identity().unwrap();
        assert_eq!(watch.armed.as_ref().map(|armed| armed.folder), Some(folder));
    }

    #[test]
    fn a_folder_that_is_missing_is_no_end() {
        let temp = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(temp.path().join("jobs"), Arc::default(), begin);
        watch.arm(&Dir::open(temp.path()).unwrap(), START);
        assert!(watch.armed.is_none() && watch.is_told);
    }
}
