//! Room on the disk: whether there is any, and what is kept so that a paid answer always finds some.
//!
//! # Rules
//!
//! - *Floor.* Below `[storage] min_free` free bytes, or [`FILES_MIN`] free inodes, nothing is leased and nothing is
//!   begun. It goes on when a little more than the floor is free, so that it does not flap.
//! - *Reservation.* Before an attempt begins, the job's journal and intents have room on the disk for everything
//!   of it that is in flight ([`Log::reserve`](super::log::Log::reserve)), and so has sled for its next writes
//!   ([`ahead`](super::ahead)). What can't be reserved is not sent. File systems without reservations have the floor alone.
//! - *Ballast.* `state/ballast` takes some room and is removed at the first write that fails, so that what is in
//!   flight and a job's status get through even where others have filled the disk.
//! - *A failed write* of whatever kind (no space, quota, an I/O error, a sync) stops leasing at once. The answer
//!   that it was for stays in memory, its slot taken, and is written again every second ([`Unwritten`]). What the
//!   process had to give up makes it exit with 74.
//! - It goes on once nothing is left unwritten, the floor is kept, and the ballast could be made anew: whether a
//!   quota or a broken disk lets us write shows only by writing.
//!
//! # What it does not do
//!
//! It does not watch the file system of `results/` where that is another one: publishing looks for itself.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytesize::ByteSize;
use tokio::time::Instant;

use crate::bell::Bell;
use crate::disk::{self, File, Space};
use crate::store::{Error, Result};

/// The default floor is this, or a [`FLOOR_PART`] of the file system if that is less.
const FLOOR: u64 = 1 << 30;
const FLOOR_PART: u64 = 20;

/// So much above the floor must be free to go on, or that part of the file system if that is less.
const SLACK: u64 = 64 << 20;
const SLACK_PART: u64 = 256;

/// The ballast, or that part of the file system if that is less: enough for what a provider at full concurrency
/// answers, and a small part of what the floor keeps.
const BALLAST: u64 = 64 << 20;
const BALLAST_PART: u64 = 64;

/// Files that must be free to be made: those of a job, of its results, and what is replaced by rename.
const FILES_MIN: u64 = 64;

/// Two looks at a disk with room are this far apart. Bounded by what can be written in between, which is reserved.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long a write that failed waits for the next try, and how often a full disk is tried. Tests have less patience.
pub(super) const TRY_EVERY: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1000 });

/// What stands in the ballast, for who finds it.
const BALLAST_TEXT: &[u8] =
    b"batchd keeps this room for answers that are paid for, and removes it when the disk is full.\n";

/// What must be free on a file system of a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Keep {
    /// Nothing is sent below it.
    floor: u64,
    /// It goes on from here.
    resume: u64,
    ballast: u64,
}

impl Keep {
    /// `min_free`: of the configuration, if it is given. With none kept free there is no ballast either.
    fn of(min_free: Option<u64>, total: u64) -> Self {
        let floor = min_free.unwrap_or_else(|| FLOOR.min(total / FLOOR_PART));
        let ballast = if floor == 0 { 0 } else { BALLAST.min(total / BALLAST_PART) };
        Self { floor, resume: floor.saturating_add(SLACK.min(total / SLACK_PART)), ballast }
    }
}

/// Watches the file system of the state. See the module's words.
#[derive(Debug)]
pub(super) struct Room {
    state: PathBuf,
    min_free: Option<u64>,
    inner: Mutex<Inner>,
    /// Writes that failed and are tried again.
    unwritten: AtomicU32,
    /// Such writes that were given up.
    lost: AtomicU32,
    /// Ticks when there is room again.
    changed: Bell,
}

#[derive(Debug, Default)]
struct Inner {
    looked: Option<Instant>,
    shortage: Option<Shortage>,
}

#[derive(Debug)]
struct Shortage {
    why: String,
    /// A write failed, and wanted so many bytes.
    failed: Option<u64>,
    /// The last try to end it.
    tried: Instant,
}

impl Room {
    /// Watches the file system of `state`. `changed` ticks when there is room again.
    pub(super) fn new(state: &Path, min_free: Option<u64>, changed: Bell) -> Self {
        Self {
            state: state.to_owned(),
            min_free,
            inner: Mutex::default(),
            unwritten: AtomicU32::new(0),
            lost: AtomicU32::new(0),
            changed,
        }
    }

    /// Looks whether there is still room. Why not, if not.
    pub(super) fn look(&self) -> Option<String> {
        let mut inner = self.lock();
        if inner.shortage.is_none() && inner.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
            inner.looked = Some(Instant::now());
            // A file system that does not even say what it has left will not take a write either.
            let why = match disk::space(&self.state) {
                Ok(space) => self.below(space, self.keep(space).floor),
                Err(error) => Some(format!("look at {}: {error}", self.state.display())),
            };
            if let Some(why) = why {
                begin(&mut inner, why, None);
            }
        }
        inner.shortage.as_ref().map(|shortage| shortage.why.clone())
    }

    /// A write failed, which wanted `bytes`: nothing more is leased. Says whether removing the ballast made room, so
    /// that it may be tried again at once.
    pub(super) fn failed(&self, error: &Error, bytes: u64) -> bool {
        let freed = disk::remove_file(&self.ballast()).is_ok();
        let mut inner = self.lock();
        if let Some(shortage) = &mut inner.shortage {
            shortage.failed = Some(shortage.failed.unwrap_or(0).max(bytes));
        } else {
            let space = disk::space(&self.state).ok().filter(|space| space.total > 0);
            let free = space.map_or_else(String::new, |space| format!(" ({} free)", size(space.free)));
            let why = format!("{error}{free}; sending goes on by itself when it can be written");
            begin(&mut inner, why, Some(bytes));
        }
        freed
    }

    /// Ends the shortage if there is room again. Blocks: for the index thread alone, which calls it all the time.
    pub(super) fn try_to_go_on(&self) {
        let wanted = {
            let mut inner = self.lock();
            let Some(shortage) = &mut inner.shortage else { return };
            if shortage.tried.elapsed() < TRY_EVERY || self.unwritten.load(Ordering::Acquire) > 0 {
                return;
            }
            shortage.tried = Instant::now();
            shortage.failed
        };
        let Ok(space) = disk::space(&self.state) else { return };
        let keep = self.keep(space);
        let ballast = if self.ballast().exists() { 0 } else { keep.ballast };
        let needed = keep.resume.saturating_add(ballast).saturating_add(wanted.unwrap_or(0));
        if let Some(why) = self.below(space, needed) {
            if wanted.is_none()
                && let Some(shortage) = &mut self.lock().shortage
            {
                shortage.why = why; // it tells what is free now
            }
            return;
        }
        if let Err(error) = self.make_ballast(keep.ballast, wanted)
            && wanted.is_some()
        {
            tracing::debug!(%error, "the disk still takes nothing");
            drop(disk::remove_file(&self.ballast()));
            return;
        }
        let mut inner = self.lock();
        // Another write may have failed in the meantime.
        if self.unwritten.load(Ordering::Acquire) == 0 {
            inner.shortage = None;
            drop(inner);
            tracing::info!(path = %self.state.display(), free = %size(space.free), "there is room on the disk again: sending goes on");
            self.changed.ring();
        }
    }

    /// Takes the ballast's room, if there is so much more than must be free.
    pub(super) fn settle_in(&self) {
        let Ok(space) = disk::space(&self.state) else { return };
        let keep = self.keep(space);
        let needed = keep.resume.saturating_add(keep.ballast);
        if keep.ballast > 0 && !self.ballast().exists() && self.below(space, needed).is_none() {
            // Without it there are the floor and the reservations.
            if let Err(error) = self.make_ballast(keep.ballast, None) {
                tracing::debug!(%error, "no ballast");
                drop(disk::remove_file(&self.ballast()));
            }
        }
    }

    /// Makes the ballast; with `wanted`, in a way that shows whether so many bytes can be written.
    fn make_ballast(&self, bytes: u64, wanted: Option<u64>) -> std::io::Result<()> {
        let path = self.ballast();
        if wanted.is_none() && path.exists() {
            return Ok(());
        }
        let mut file = File::create(&path)?;
        file.write_all(BALLAST_TEXT)?;
        file.sync_all()?;
        let taken = bytes.max(wanted.unwrap_or(0));
        if taken > 0 {
            ignore_unsupported(file.reserve(0, taken))?;
        }
        if taken > bytes {
            file.cut(BALLAST_TEXT.len() as u64)?;
            if bytes > 0 {
                ignore_unsupported(file.reserve(0, bytes))?;
            }
        }
        Ok(())
    }

    fn ballast(&self) -> PathBuf {
        self.state.join("ballast")
    }

    fn keep(&self, space: Space) -> Keep {
        Keep::of(self.min_free, space.total)
    }

    /// Why there is less than `bytes`, or too few files, if so.
    fn below(&self, space: Space, bytes: u64) -> Option<String> {
        let path = self.state.display();
        if space.files < FILES_MIN {
            let files = space.files;
            return Some(format!(
                "{path}: the file system can hold {files} more files, {FILES_MIN} must stay free; remove some, sending goes on by itself"
            ));
        }
        (space.free < bytes).then(|| {
            let (free, floor) = (size(space.free), size(bytes));
            format!(
                "{path}: {free} are free, {floor} must stay free (`[storage] min_free`); free some space, sending goes on by itself"
            )
        })
    }

    /// Whether the file system has `bytes` beside the floor, where they can't be reserved.
    pub(super) fn fits(&self, bytes: u64) -> Result<()> {
        let Ok(space) = disk::space(&self.state) else { return Ok(()) };
        let keep = self.keep(space);
        self.below(space, keep.floor.saturating_add(bytes)).map_or(Ok(()), |why| Err(Error::Full(why)))
    }

    /// A write that failed and is tried again until it is done. Until then nothing is sent.
    pub(super) fn unwritten(&self) -> Unwritten<'_> {
        self.unwritten.fetch_add(1, Ordering::AcqRel);
        Unwritten { room: self, is_written: false }
    }

    /// How many writes were given up.
    pub(super) fn lost(&self) -> u32 {
        self.lost.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn begin(inner: &mut Inner, why: String, failed: Option<u64>) {
    tracing::warn!(why, "no room on the disk: nothing more is sent");
    inner.shortage = Some(Shortage { why, failed, tried: Instant::now() });
}

fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// What a file system can't do is no fault of its room.
fn ignore_unsupported(done: std::io::Result<()>) -> std::io::Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Ok(false),
        Err(error) => Err(error),
    }
}

/// See [`Room::unwritten`].
#[derive(Debug)]
pub(super) struct Unwritten<'a> {
    room: &'a Room,
    is_written: bool,
}

impl Unwritten<'_> {
    pub(super) fn written(mut self) {
        self.is_written = true;
    }
}

impl Drop for Unwritten<'_> {
    fn drop(&mut self) {
        self.room.unwritten.fetch_sub(1, Ordering::AcqRel);
        if !self.is_written {
            self.room.lost.fetch_add(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::scarce::{ROOMY, Scarce};

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn what_is_kept_grows_with_the_disk_up_to_a_bound() {
        let keep = |floor, slack, ballast| Keep { floor, resume: floor + slack, ballast };
        assert_eq!(Keep::of(None, 1 << 42), keep(GIB, 64 * MIB, 64 * MIB));
        assert_eq!(Keep::of(None, 48 * MIB), keep(48 * MIB / 20, 48 * MIB / 256, 48 * MIB / 64));
        assert_eq!(Keep::of(Some(5 * MIB), 1 << 42), keep(5 * MIB, 64 * MIB, 64 * MIB));
        assert_eq!(Keep::of(Some(0), 1 << 42), keep(0, 64 * MIB, 0));
    }

    fn goes_on(room: &Room) -> bool {
        room.try_to_go_on();
        room.look().is_none()
    }

    #[tokio::test(start_paused = true)]
    async fn it_goes_on_a_little_above_the_floor_and_rings_once() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, _installed) = Scarce::under(dir.path());
        let bell = Bell::default();
        let room = Room::new(dir.path(), Some(GIB), bell.clone());
        let changes = bell.listen();
        assert_eq!(room.look(), None);
        disk.says(Space { free: GIB - 1, ..ROOMY });
        assert_eq!(room.look(), None, "looked a moment ago");
        tokio::time::advance(LOOK_EVERY).await;
        assert!(
            room.look().unwrap().contains("1024.0 MiB are free, 1.0 GiB must stay free"),
            "{:?}",
            room.look()
        );
        disk.says(Space { free: GIB + MIB, ..ROOMY });
        tokio::time::advance(TRY_EVERY).await;
        assert!(!goes_on(&room), "it would flap");
        assert!(!changes.has_changed());
        disk.says(ROOMY);
        assert!(!goes_on(&room), "tried a moment ago");
        tokio::time::advance(TRY_EVERY).await;
        assert!(goes_on(&room) && changes.has_changed());
        assert_eq!(room.look(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_failed_write_a_write_must_succeed_first() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, _installed) = Scarce::under(dir.path());
        let room = Room::new(dir.path(), None, Bell::default());
        room.settle_in();
        assert!(room.ballast().exists());
        let error = Error::Full("a quota".to_owned());
        assert!(room.failed(&error, 5) && !room.ballast().exists(), "its room is for what failed");
        assert!(!room.failed(&error, 5));
        let unwritten = room.unwritten();
        tokio::time::advance(TRY_EVERY).await;
        assert!(!goes_on(&room), "something is still unwritten");
        unwritten.written();
        disk.fill("ballast"); // the disk says that it has room, and gives none
        tokio::time::advance(TRY_EVERY).await;
        assert!(!goes_on(&room) && !room.ballast().exists());
        disk.mend();
        disk.break_syncs("ballast");
        tokio::time::advance(TRY_EVERY).await;
        assert!(!goes_on(&room) && !room.ballast().exists());
        disk.mend();
        tokio::time::advance(TRY_EVERY).await;
        assert!(goes_on(&room) && room.ballast().exists());
        assert_eq!(room.lost(), 0);
        drop(room.unwritten());
        assert_eq!(room.lost(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn where_nothing_says_how_much_is_free_a_write_alone_says_whether_it_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, _installed) = Scarce::under(dir.path());
        disk.says(Space { free: u64::MAX, total: 0, files: u64::MAX });
        let room = Room::new(dir.path(), None, Bell::default());
        assert_eq!(room.look(), None);
        room.failed(&Error::Full("a quota".to_owned()), 5);
        assert_eq!(room.look().unwrap(), "a quota; sending goes on by itself when it can be written");
        disk.fill("ballast");
        tokio::time::advance(TRY_EVERY).await;
        assert!(!goes_on(&room));
        disk.mend();
        disk.says(Space { free: u64::MAX, total: 0, files: u64::MAX });
        tokio::time::advance(TRY_EVERY).await;
        assert!(goes_on(&room));
    }
}
