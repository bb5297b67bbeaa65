//! What tests put between batchd and the disk.
//!
//! A [`Probe`] is installed for a folder and asked about every act in it, so tests that run side by side, each in
//! its own folder, do not meet.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{Act, Space};

/// What is to become of an act.
#[derive(Debug)]
pub(crate) enum Verdict {
    Go,
    /// It fails and changes nothing.
    Refuse(io::Error),
    /// Of an append, so many bytes are written; then it fails. Any other act is refused.
    Tear(usize, io::Error),
}

/// Sees every act in a folder.
pub(crate) trait Probe: Send + Sync + fmt::Debug {
    /// Before the act is carried out.
    fn before(&self, act: &Act<'_>) -> Verdict;

    /// After the act was carried out and succeeded; of a torn append, with the bytes that were written.
    fn after(&self, act: &Act<'_>);

    /// Held from before an act until after it, by a probe that must see acts in the order in which they happen.
    fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        None
    }

    /// What the file system is to have left; none leaves it to the real one.
    fn space(&self) -> Option<Space> {
        None
    }
}

static PROBES: Mutex<BTreeMap<PathBuf, Arc<dyn Probe>>> = Mutex::new(BTreeMap::new());

/// A probe stays installed as long as this lives.
#[derive(Debug)]
pub(crate) struct Installed(PathBuf);

/// Installs `probe` for everything below `folder`.
pub(crate) fn install(folder: &Path, probe: Arc<dyn Probe>) -> Installed {
    probes().insert(folder.to_owned(), probe);
    Installed(folder.to_owned())
}

impl Drop for Installed {
    fn drop(&mut self) {
        probes().remove(&self.0);
    }
}

fn probes() -> MutexGuard<'static, BTreeMap<PathBuf, Arc<dyn Probe>>> {
    PROBES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn probe_of(path: &Path) -> Option<Arc<dyn Probe>> {
    let probes = probes();
    if probes.is_empty() { None } else { path.ancestors().find_map(|folder| probes.get(folder)).cloned() }
}

/// See [`Probe::space`].
pub(super) fn space(path: &Path) -> Option<Space> {
    probe_of(path).and_then(|probe| probe.space())
}

/// See [`super::carry_out`].
pub(in crate::disk) fn carry_out<T>(act: Act<'_>, perform: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let Some(probe) = probe_of(act.path()) else { return perform() };
    let _turn = probe.turn();
    match probe.before(&act) {
        Verdict::Go => {
            let done = perform()?;
            probe.after(&act);
            Ok(done)
        }
        Verdict::Refuse(error) => Err(error),
        Verdict::Tear(length, error) => {
            if let Act::Append { path, mut file, bytes } = act {
                let bytes = bytes.get(..length).unwrap_or(bytes);
                file.write_all(bytes)?;
                probe.after(&Act::Append { path, file, bytes });
            }
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::disk::{self, File};

    /// Refuses from the n-th act on; tears appends after three bytes.
    #[derive(Debug)]
    struct Limit(AtomicU32);

    impl Probe for Limit {
        fn before(&self, act: &Act<'_>) -> Verdict {
            let full = io::Error::from(io::ErrorKind::StorageFull);
            if self.0.load(Ordering::Relaxed) > 0 {
                Verdict::Go
            } else if matches!(act, Act::Append { .. }) {
                Verdict::Tear(3, full)
            } else {
                Verdict::Refuse(full)
            }
        }

        fn after(&self, _: &Act<'_>) {
            let left = self.0.load(Ordering::Relaxed);
            self.0.store(left.saturating_sub(1), Ordering::Relaxed);
        }
    }

    #[test]
    fn a_probe_sees_what_is_done_in_its_folder_and_nowhere_else() {
        let (watched, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let installed = install(watched.path(), Arc::new(Limit(AtomicU32::new(1))));
        let mut file = File::create(&watched.path().join("a")).unwrap();
        let error = file.write_all(b"hello").unwrap_err();
        assert!(disk::is_full(&error), "{error}");
        assert_eq!(std::fs::read(watched.path().join("a")).unwrap(), b"hel");
        assert!(disk::is_full(&disk::make_private_dir(&watched.path().join("b")).unwrap_err()));
        assert!(!watched.path().join("b").exists());
        File::create(&other.path().join("a")).unwrap().write_all(b"hello").unwrap();
        drop(installed);
        file.write_all(b"lo").unwrap();
    }
}
