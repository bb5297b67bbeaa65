//! A disk that forgets: keeps, beside a folder as it is, what of it a power cut would leave.
//!
//! # The model
//!
//! The live image is the folder itself; the durable one is kept here. It is stricter than most file systems are, since
//! what is promised must hold on all of them:
//!
//! - *Content* is durable once its file is synced. Of what came behind that, a cut leaves by chance nothing, all, a
//!   prefix torn at any byte, or the new length with zeros in a part of it (the length was written before the data).
//! - *Names* are durable once their folder is synced; that a file is synced says nothing about its name. Of names
//!   changed behind that, a cut leaves a prefix for each folder: journals of file systems keep the order of what
//!   they note, and what depends on a lost change is lost with it.
//! - A rename over two folders happens as a whole or not at all, as every journalling file system has it. It is durable
//!   once the folder it leads into is synced: from there a reader will look for it.
//! - A folder that is made is a name like others: what lies in it is lost with it.
//!
//! Files are told apart by their inode, since their paths move. What tests put there themselves, around the seam,
//! counts as durable.
//!
//! The index (sled) writes for itself. A cut leaves none of it, or the folder as it is, or as it was when it was last
//! synced: whatever a real cut leaves of it lies between the last two, and it may lag the files by any amount.
//!
//! # Invariants
//!
//! - Acts happen one at a time, so that the order in which they are noted is the order in which they happened.
//! - From the cut on every act is refused, so that the process can neither change nor promise anything more.

mod content;
mod image;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;
use tokio::sync::Notify;

use self::image::Image;
use crate::clock::Seed;
use crate::disk::Act;
use crate::disk::probe::{self, Installed, Probe, Verdict};

/// Whether a sync is only pretended: for tests of the tests, which must see that it is missed.
pub(crate) type Lie = Box<dyn Fn(&Act<'_>) -> bool + Send + Sync>;

/// How a recorder is to behave.
#[derive(Default)]
pub(crate) struct Plan {
    /// sled's folder, which is not modelled.
    pub(crate) index: PathBuf,
    /// The power is cut instead of this act, counted from 1.
    pub(crate) cut_at: Option<u64>,
    pub(crate) lie: Option<Lie>,
    /// The power is cut that many acts after the first lie at the latest: few cuts would come in time by chance.
    pub(crate) cut_after_lie: Option<u64>,
    /// What is pretended is done after all, three acts later: behind the rename that should have waited for it.
    pub(crate) is_late: bool,
}

/// See the module's words.
pub(crate) struct Recorder {
    root: PathBuf,
    plan: Plan,
    turn: Mutex<()>,
    disk: Mutex<Disk>,
    off: Notify,
}

#[derive(Debug)]
struct Disk {
    image: Image,
    acts: u64,
    is_off: bool,
    cut_at: Option<u64>,
    /// What was pretended, and before which act it is made good.
    late: Vec<(u64, Late)>,
    /// sled's folder when it was last synced, and at the cut.
    index: [Option<Tree>; 2],
    /// What was synced, see [`class_of`].
    syncs: BTreeSet<String>,
}

/// A sync that comes too late.
#[derive(Debug)]
enum Late {
    File(fs::File),
    Folder(PathBuf),
}

/// How many acts it comes too late: beyond a rename and the sync of its folder.
const LATE_BY: u64 = 3;

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("root", &self.root).finish_non_exhaustive()
    }
}

/// Files by their path below a folder.
type Tree = BTreeMap<PathBuf, Vec<u8>>;

impl Recorder {
    /// Records what is done below `root` from now on; what lies there counts as durable.
    pub(crate) fn install(root: &Path, plan: Plan) -> (Arc<Self>, Installed) {
        let image = Image::of(root, &plan.index);
        let disk = Disk {
            image,
            acts: 0,
            is_off: false,
            cut_at: plan.cut_at,
            late: Vec::new(),
            index: [None, None],
            syncs: BTreeSet::new(),
        };
        let (root, turn, disk) = (root.to_owned(), Mutex::default(), Mutex::new(disk));
        let recorder = Arc::new(Self { root, plan, turn, disk, off: Notify::new() });
        let installed = probe::install(&recorder.root, Arc::clone(&recorder) as Arc<dyn Probe>);
        (recorder, installed)
    }

    /// Acts so far.
    pub(crate) fn acts(&self) -> u64 {
        self.disk().acts
    }

    pub(crate) fn is_off(&self) -> bool {
        self.disk().is_off
    }

    /// Returns when the power is cut. For one who waits.
    pub(crate) async fn until_off(&self) {
        self.off.notified().await;
    }

    /// What was synced so far: names of files and folders, without what is different in every run.
    pub(crate) fn syncs(&self) -> BTreeSet<String> {
        self.disk().syncs.clone()
    }

    /// Cuts the power, if that has not happened.
    pub(crate) fn cut(&self) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut disk = self.disk();
        if !disk.is_off {
            self.switch_off(&mut disk);
        }
    }

    /// Writes what the cut left into the empty folder `target`; chance is the seed's.
    pub(crate) fn write_image(&self, target: &Path, seed: u64) {
        let disk = self.disk();
        assert!(disk.is_off, "the power is on");
        let mut rng = Seed::fixed(seed).derive("power cut");
        disk.image.write(target, &mut rng);
        let index = match rng.u8(..4) {
            0 => None,
            1 => disk.index[0].as_ref(),
            _ => disk.index[1].as_ref(),
        };
        let place = self.plan.index.strip_prefix(&self.root).ok().map(|below| target.join(below));
        if let (Some(files), Some(place)) = (index, place)
            && place.parent().is_some_and(Path::is_dir)
        {
            write_tree(files, &place);
        }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn switch_off(&self, disk: &mut Disk) {
        disk.is_off = true;
        self.off.notify_one();
        disk.image.end();
        disk.index[1] = read_tree(&self.plan.index);
    }

    fn is_index(&self, path: &Path) -> bool {
        !self.plan.index.as_os_str().is_empty() && path.starts_with(&self.plan.index)
    }

    fn note_lie(&self, disk: &mut Disk, act: &Act<'_>) {
        if let Some(acts) = self.plan.cut_after_lie {
            let latest = disk.acts + acts;
            disk.cut_at = disk.cut_at.map(|at| at.min(latest));
        }
        if self.plan.is_late {
            let late = if let Act::Sync { file, .. } = act {
                Late::File(file.try_clone().unwrap())
            } else {
                Late::Folder(act.path().to_owned())
            };
            disk.late.push((disk.acts + LATE_BY, late));
        }
    }

    fn is_lie(&self, act: &Act<'_>) -> bool {
        self.plan.lie.as_ref().is_some_and(|lie| lie(act))
    }
}

impl Disk {
    /// Makes good what was pretended long enough ago.
    fn make_good(&mut self) {
        for (_, late) in self.late.extract_if(.., |(due, _)| *due <= self.acts) {
            match late {
                Late::File(file) => self.image.sync_file(&file),
                Late::Folder(path) => self.image.sync_path(&path),
            }
        }
    }
}

impl Probe for Recorder {
    fn before(&self, act: &Act<'_>) -> Verdict {
        let mut disk = self.disk();
        if !disk.is_off {
            disk.acts += 1;
            if disk.cut_at == Some(disk.acts) {
                self.switch_off(&mut disk);
            } else {
                disk.make_good();
            }
        }
        if disk.is_off {
            return Verdict::Refuse(io::Error::other("the power is off"));
        }
        if !self.is_index(act.path()) {
            disk.image.prepare(act);
        }
        Verdict::Go
    }

    fn after(&self, act: &Act<'_>) {
        let mut disk = self.disk();
        if self.is_index(act.path()) {
            if matches!(act, Act::Sync { .. }) {
                disk.index[0] = read_tree(&self.plan.index);
            }
            return;
        }
        if matches!(act, Act::Sync { .. } | Act::SyncDir { .. }) {
            disk.syncs.insert(class_of(act, &self.root));
            if self.is_lie(act) {
                self.note_lie(&mut disk, act);
                return;
            }
        }
        disk.image.note(act);
    }

    fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        Some(self.turn.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An empty folder, in memory where the machine has a place for it: nothing here is really synced to be durable.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// What is in a folder of files; none if it is not there. A file that goes away meanwhile is not there either.
fn read_tree(folder: &Path) -> Option<Tree> {
    let mut tree = Tree::new();
    for entry in fs::read_dir(folder).ok()?.flatten() {
        if entry.path().is_dir() {
            let below = read_tree(&entry.path()).unwrap_or_default();
            let name = PathBuf::from(entry.file_name());
            tree.extend(below.into_iter().map(|(path, bytes)| (name.join(path), bytes)));
        } else if let Ok(bytes) = fs::read(entry.path()) {
            tree.insert(entry.file_name().into(), bytes);
        }
    }
    Some(tree)
}

fn write_tree(tree: &Tree, target: &Path) {
    for (path, bytes) in tree {
        let path = target.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// What a sync is about, without what differs from run to run: ids, and the names of jobs.
pub(crate) fn class_of(act: &Act<'_>, root: &Path) -> String {
    let kind = if matches!(act, Act::SyncDir { .. }) { "names of" } else { "content of" };
    let below = act.path().strip_prefix(root).unwrap();
    let parts = below.iter().enumerate().map(|(depth, name)| {
        let name = name.to_string_lossy();
        let is_id = name.parse::<uuid::Uuid>().is_ok() || (depth == 1 && below.starts_with("results"));
        if is_id { "*".to_owned() } else { name.replace(|c: char| c.is_ascii_digit(), "#") }
    });
    format!("{kind} {}", parts.collect::<Vec<_>>().join("/"))
}

#[cfg(test)]
mod tests;
