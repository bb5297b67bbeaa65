//! The state folder between lock and store: ours, and not open yet.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{Builder, JoinHandle};

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::bell::Bell;
use crate::metrics::Metrics;
use crate::pulse::Roll;
use crate::store::embedded::index::Index;
use crate::store::embedded::leases::Leases;
use crate::store::embedded::room::Room;
use crate::store::embedded::threads::{IndexThread, Shared};
use crate::store::embedded::{COMMANDS_MAX, EmbeddedStore, UNSYNCED_MAX, files, start, sync};
use crate::store::folder::{failed, make_private_dir};
use crate::store::lock::Lock;
use crate::store::{Hold, Result};

/// The state, locked and not open yet: so long as its disk is full nothing must be opened.
#[derive(Debug)]
pub struct Claimed {
    state: PathBuf,
    lock: Arc<Lock>,
    metrics: Metrics,
}

impl Claimed {
    /// Locks the state below `state`. [`Error::Locked`](crate::store::Error::Locked) if another process has it.
    pub fn take(state: &Path) -> Result<Self> {
        make_private_dir(&state.join("jobs"))?;
        let lock = Arc::new(Lock::take(state)?);
        Ok(Self { state: state.to_owned(), lock, metrics: Metrics::default() })
    }

    /// Notes there what the store's commits take.
    #[must_use]
    pub fn with_metrics(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// Opens the store as [`EmbeddedStore::open`] does. `min_free` bytes of the disk stay free; without it, a part of
    /// it. [`Error::is_full`](crate::store::Error::is_full) if there is no room to open it: nothing is harmed, and it may be tried again.
    /// Calls of the `roll` are answered while it is opened, as long as that comes on, and then by its threads.
    pub fn open(&self, min_free: Option<u64>, roll: &Roll) -> Result<EmbeddedStore> {
        let index = start::index(&self.state, &roll.join("the recovery"))?;
        self.start(index, min_free, roll)
    }

    fn start(&self, index: Index, min_free: Option<u64>, roll: &Roll) -> Result<EmbeddedStore> {
        let state = &self.state;
        let changed = Bell::default();
        let room = Room::new(state, min_free, changed.clone());
        room.settle_in();
        let shared = Arc::new(Shared {
            state: state.clone(),
            leases: Leases::default(),
            room,
            changed,
            progress: Bell::default(),
            hold: Hold::default(),
            closed: OnceLock::new(),
            is_stopping: AtomicBool::new(false),
            metrics: self.metrics.clone(),
        });
        let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
        let (notes, mut note_queue) = mpsc::channel(UNSYNCED_MAX);
        let runtime = Handle::current();
        let index_thread = {
            let member = roll.join("the index of the store");
            let (thread, runtime) = (IndexThread::new(Arc::clone(&shared), index, member), runtime.clone());
            spawn("batchd-index", state, move || thread.run(command_queue, &runtime))?
        };
        let sync_thread = {
            let (shared, commands) = (Arc::clone(&shared), commands.clone());
            let member = roll.join("the journals of the store");
            let run = move || sync::run(&shared, &mut note_queue, &commands, &member, &runtime);
            spawn("batchd-sync", state, run)?
        };
        let threads = Mutex::new(vec![index_thread, sync_thread]);
        let lock = Arc::clone(&self.lock);
        let home = files::identity(&state.join("jobs"))?;
        Ok(EmbeddedStore { home, shared, commands, notes, files: Mutex::default(), threads, _lock: lock })
    }
}

fn spawn(name: &str, state: &Path, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).spawn(run).map_err(failed("start a thread for", state))
}
