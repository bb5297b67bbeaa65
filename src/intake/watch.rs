//! The operating system's hints that something happened in the jobs folder. A hint makes a scan come
//! sooner and says nothing else: events are lost, doubled, or never come (network file systems), and the
//! periodic scan finds what they miss.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use notify::event::{AccessKind, AccessMode, ModifyKind, RemoveKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tracing::warn;

use super::dir::Dir;

/// Watches a folder as long as it is the same one; armed again when another stands in its place.
#[derive(Debug)]
pub(super) struct Watch {
    path: PathBuf,
    hints: Arc<Notify>,
    /// Set by the watcher's thread when the watch is of no use any more.
    stale: Arc<AtomicBool>,
    armed: Option<Armed>,
    warned: bool,
}

#[derive(Debug)]
struct Armed {
    folder: (u64, u64),
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// Not armed yet. `hints` is rung at every hint.
    pub(super) fn new(path: PathBuf, hints: Arc<Notify>) -> Self {
        Self { path, hints, stale: Arc::default(), armed: None, warned: false }
    }

    /// Makes sure that `dir`, as the path leads to it now, is watched. Call it before looking, so that
    /// nothing falls between the look and the first hint. Where watching is impossible, scans go on alone.
    pub(super) fn arm(&mut self, dir: &Dir) {
        let Ok(folder) = dir.identity() else { return };
        let stale = self.stale.swap(false, Ordering::AcqRel);
        if !stale && self.armed.as_ref().is_some_and(|armed| armed.folder == folder) {
            return;
        }
        self.armed = None;
        match self.watch() {
            Ok(watcher) => {
                // A folder that was swapped in between is found by the next look.
                let now = Dir::open(&self.path).and_then(|dir| dir.identity());
                let same = now.is_ok_and(|now| now == folder);
                self.armed = same.then_some(Armed { folder, _watcher: watcher });
            }
            Err(error) if !self.warned => {
                self.warned = true;
                warn!(path = %self.path.display(), %error, "the jobs folder can't be watched: it is only looked through now and then");
            }
            Err(_) => {}
        }
    }

    fn watch(&self) -> notify::Result<RecommendedWatcher> {
        let (hints, stale) = (Arc::clone(&self.hints), Arc::clone(&self.stale));
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.as_ref().map_or(true, is_end) {
                stale.store(true, Ordering::Release);
            }
            if event.as_ref().map_or(true, is_hint) {
                hints.notify_one();
            }
        })?;
        watcher.watch(&self.path, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }
}

/// Whether there may be something new. Reading the folder makes events too, and so does what we take out of
/// it: to follow those would be to look for ever.
fn is_hint(event: &Event) -> bool {
    match event.kind {
        _ if event.need_rescan() => true,
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        EventKind::Modify(ModifyKind::Name(RenameMode::From)) => false,
        EventKind::Remove(removed) => removed == RemoveKind::Folder,
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Other => true,
    }
}

/// Whether the watched folder itself may be gone. Its inode may come back as another folder's.
fn is_end(event: &Event) -> bool {
    event.kind == EventKind::Remove(RemoveKind::Folder)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;
    use notify::event::{CreateKind, DataChange, Flag};

    use super::*;

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
            (EventKind::Remove(RemoveKind::Folder), true),
        ];
        for (kind, expected) in table {
            assert_eq!(is_hint(&Event::new(kind)), expected, "{kind:?}");
        }
        let overflow = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        assert!(overflow.paths.is_empty() && is_hint(&overflow));
    }

    #[tokio::test]
    async fn a_folder_put_in_the_place_of_the_watched_one_is_watched() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("jobs");
        std::fs::create_dir(&path).unwrap();
        let hints = Arc::new(Notify::new());
        let mut watch = Watch::new(path.clone(), Arc::clone(&hints));
        watch.arm(&Dir::open(&path).unwrap());
        std::fs::rename(&path, temp.path().join("old")).unwrap();
        std::fs::create_dir(&path).unwrap();
        watch.arm(&Dir::open(&path).unwrap());
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
        let mut watch = Watch::new(temp.path().join("jobs"), Arc::default());
        watch.arm(&Dir::open(temp.path()).unwrap());
        assert!(watch.armed.is_none() && watch.warned);
    }
}
