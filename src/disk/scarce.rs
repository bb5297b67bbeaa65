//! A disk that tests fill, break and mend while batchd writes on it.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::probe::{self, Installed, Probe, Verdict};
use crate::disk::{Act, Space};

/// As much as a disk has that nobody has filled.
pub(crate) const ROOMY: Space = Space { free: 100 << 30, total: 100 << 30, files: 1 << 20 };

/// See the module's words. Has room to begin with.
#[derive(Debug)]
pub(crate) struct Scarce(Mutex<State>);

#[derive(Debug)]
struct State {
    space: Space,
    /// What takes room fails where the path ends so.
    full: Option<&'static str>,
    /// Syncs fail where the path ends so.
    broken: Option<&'static str>,
    /// Cuts fail as well.
    is_stuck: bool,
    /// It knows no reservations.
    is_plain: bool,
    /// What takes room fails once so many acts have.
    acts_left: Option<u32>,
    /// How often something failed.
    failed: u32,
    /// Bytes that were written a second time.
    overwritten: u64,
}

impl Scarce {
    /// Puts such a disk under a folder.
    pub(crate) fn under(folder: &Path) -> (Arc<Self>, Installed) {
        let (space, full, broken, acts_left) = (ROOMY, None, None, None);
        let state = State {
            space,
            full,
            broken,
            acts_left,
            is_stuck: false,
            is_plain: false,
            failed: 0,
            overwritten: 0,
        };
        let disk = Arc::new(Self(Mutex::new(state)));
        let installed = probe::install(folder, Arc::clone(&disk) as Arc<dyn Probe>);
        (disk, installed)
    }

    /// From now on files whose path ends with this take nothing more; the disk does not say that it is full.
    pub(crate) fn fill(&self, ending: &'static str) {
        self.lock().full = Some(ending);
    }

    /// After so many more acts that take room, nothing does.
    pub(crate) fn fill_after(&self, acts: u32) {
        self.lock().acts_left = Some(acts);
    }

    /// From now on files whose path ends with this can't be synced.
    pub(crate) fn break_syncs(&self, ending: &'static str) {
        self.lock().broken = Some(ending);
    }

    /// From now on nothing can be cut.
    pub(crate) fn stick(&self) {
        self.lock().is_stuck = true;
    }

    /// From now on it is one that can't reserve room.
    pub(crate) fn forget_reservations(&self) {
        self.lock().is_plain = true;
    }

    /// What it says that it has left.
    pub(crate) fn says(&self, space: Space) {
        self.lock().space = space;
    }

    /// Everything is well again.
    pub(crate) fn mend(&self) {
        let mut state = self.lock();
        (state.space, state.full, state.broken) = (ROOMY, None, None);
        (state.is_stuck, state.acts_left) = (false, None);
    }

    pub(crate) fn failed(&self) -> u32 {
        self.lock().failed
    }

    pub(crate) fn overwritten(&self) -> u64 {
        self.lock().overwritten
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn judge(&mut self, act: &Act<'_>) -> Verdict {
        let ends = |ending: Option<&str>| {
            ending.is_some_and(|ending| act.path().to_string_lossy().ends_with(ending))
        };
        if matches!(act, Act::Sync { .. } | Act::SyncDir { .. }) && ends(self.broken) {
            return Verdict::Refuse(io::Error::other("broken"));
        }
        if matches!(act, Act::Cut { .. }) && self.is_stuck {
            return Verdict::Refuse(io::Error::other("stuck"));
        }
        if matches!(act, Act::Reserve { .. }) && self.is_plain {
            return Verdict::Refuse(io::ErrorKind::Unsupported.into());
        }
        let takes_room = matches!(
            act,
            Act::Create { .. }
                | Act::Append { .. }
                | Act::Reserve { .. }
                | Act::MakeDir { .. }
                | Act::Link { .. }
        );
        // A folder takes a new name before it gives up the old one.
        let is_full = matches!(act, Act::Rename { .. }) && ends(self.full);
        if !takes_room && !is_full {
            return Verdict::Go;
        }
        let is_out = match &mut self.acts_left {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        if !is_out && !ends(self.full) {
            return Verdict::Go;
        }
        let error = io::Error::from(io::ErrorKind::StorageFull);
        if let Act::Append { bytes, .. } = act {
            return Verdict::Tear(bytes.len() / 2, error);
        }
        Verdict::Refuse(error)
    }
}

impl Probe for Scarce {
    fn before(&self, act: &Act<'_>) -> Verdict {
        let mut state = self.lock();
        let verdict = state.judge(act);
        state.failed += u32::from(!matches!(verdict, Verdict::Go));
        verdict
    }

    fn after(&self, act: &Act<'_>) {
        if let Act::Overwrite { bytes, .. } = act {
            self.lock().overwritten += bytes.len() as u64;
        }
    }

    fn space(&self) -> Option<Space> {
        Some(self.lock().space)
    }
}
