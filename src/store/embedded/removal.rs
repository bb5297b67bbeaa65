//! Removing a job that has ended: one rename takes its folder out of everybody's sight, and its files go behind it.
//!
//! # Operation
//!
//! 1. What the index may still have of the job is dropped and flushed: without the folder nothing would drop it.
//! 2. The folder is renamed to `<JobId>.removed`. From then on there is no such job, for us and for every later start.
//! 3. The rename is made durable. Up to then the files are left alone: a power cut may bring the job back, and then
//!    it has to be whole.
//! 4. The files are removed, and the folder.
//!
//! The first two are done by the index thread, which knows who needs the job, the others by a blocking task: the files may
//! be large. Where either comes to no end, the next start goes on with step 3 ([`finish_all`]), before the index is opened,
//! since that needs room which this may give.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::disk;
use crate::domain::JobId;
use crate::fault;
use crate::store::embedded::EmbeddedStore;
use crate::store::embedded::index::Index;
use crate::store::embedded::threads::{Command, IndexThread};
use crate::store::folder::{JobFolder, failed, sync_parent};
use crate::store::{Error, Result};

impl EmbeddedStore {
    /// See [`Store::remove`](crate::store::Store::remove).
    pub(super) async fn remove_job(&self, id: JobId) -> Result<bool> {
        let is_removed = self.ask(|reply| Command::Remove { id, reply }).await?;
        if is_removed {
            // Whoever opens them from now on finds no folder.
            self.close_files(id);
            let aside = self.job_folder(id).removed();
            let finished = tokio::task::spawn_blocking(move || finish(&aside)).await;
            let finished = finished.unwrap_or_else(|error| Err(Error::Closed(error.to_string())));
            if let Err(error) = finished {
                tracing::warn!(job = %id, %error, "files of a removed job are left; the next start removes them");
            }
        }
        Ok(is_removed)
    }
}

impl IndexThread {
    /// The first two steps. Says whether the job is gone.
    pub(super) fn remove(&mut self, id: JobId) -> Result<bool> {
        let entry = self.index.entry(id)?;
        entry.status.check_removal(id)?;
        let folder = JobFolder::new(&self.shared.state, id);
        // What is settled and not durable yet comes to the index later.
        let is_needed = !entry.is_still() || !self.shared.hold.is_alone() || is_awaited(&self.index, id);
        if is_needed || folder.claim().exists() {
            return Ok(false);
        }
        if self.index.has_keys(id)? {
            self.has_room()?;
            self.index.clear(id)?;
        }
        self.index.flush()?;
        fault::point("store-removal-begins");
        self.set_aside(&folder)?;
        fault::point("store-removal-aside");
        self.index.forget(id);
        Ok(true)
    }

    /// A directory takes the new name before it gives up the old one, so even this may need room.
    fn set_aside(&self, folder: &JobFolder) -> Result<()> {
        let rename = || match disk::rename(folder.path(), &folder.removed()) {
            // A person has taken it away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed.map_err(failed("set aside", folder.path())),
        };
        let Err(error) = rename() else { return Ok(()) };
        let renamed =
            if error.is_full() && self.shared.room.failed(&error, 0) { rename() } else { Err(error) };
        // Nothing has changed, whatever it was.
        renamed.map_err(|error| Error::Full(error.to_string()))
    }
}

/// Whether a job that has not ended waits for this one.
fn is_awaited(index: &Index, id: JobId) -> bool {
    index.entries().any(|entry| !entry.status.is_final() && entry.job.waits_for().any(|maker| maker == id))
}

/// The last two steps.
fn finish(aside: &Path) -> Result<()> {
    sync_parent(aside)?;
    fault::point("store-removal-durable");
    let entries = match fs::read_dir(aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed("read folder", aside))?,
    };
    for entry in entries {
        let entry = entry.map_err(failed("read folder", aside))?;
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_dir { disk::remove_dir_all(&path) } else { disk::remove_file(&path) };
        removed.map_err(failed("remove", &path))?;
        fault::point("store-removal-half-done");
    }
    disk::remove_dir(aside).map_err(failed("remove", aside))?;
    fault::point("store-removal-done");
    Ok(())
}

/// Finishes at a start what the last process left of its removals. What can't be removed stays: it harms nobody.
pub(super) fn finish_all(state: &Path) -> Result<()> {
    let jobs = state.join("jobs");
    let mut left: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(&jobs).map_err(failed("read folder", &jobs))? {
        let path = entry.map_err(failed("read folder", &jobs))?.path();
        left.extend(JobFolder::is_removed(&path).then_some(path));
    }
    for aside in left {
        if let Err(error) = finish(&aside) {
            tracing::warn!(%error, "what is left of a removed job can't be removed");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::disk::scarce::Scarce;
    use crate::domain::{Job, JobStatus};
    use crate::store::Store;
    use crate::store::conformance::{self, NOW, put};
    use crate::store::embedded::tests::{World, answer_some, crash};

    /// A world with a job that has ended, and one that has not.
    async fn ended() -> (World, EmbeddedStore, [Job; 2]) {
        let world = World::new();
        let store = world.open();
        let jobs = [1, 2].map(|number| conformance::job(number, 5, &["m"], 3));
        put(&store, &jobs[0]).await;
        answer_some(&store, 3).await;
        conformance::until_settled(&store, jobs[0].id, 3).await;
        put(&store, &jobs[1]).await;
        store.set_status(jobs[0].id, JobStatus::Completed, NOW).await.unwrap();
        (world, store, jobs)
    }

    fn names(world: &World) -> Vec<String> {
        let entries = fs::read_dir(world.state().join("jobs")).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn nothing_is_left_of_a_removed_job_but_what_has_another_name() {
        let (world, store, [gone, other]) = ended().await;
        let (journal, link) = (world.journal(gone.id), world.dir.path().join("output.partial.jsonl"));
        fs::hard_link(&journal, &link).unwrap();
        let published = fs::read(&journal).unwrap();
        drop(store.journal(gone.id).unwrap()); // its files are open then
        assert!(store.remove(gone.id).await.unwrap());
        assert_eq!(names(&world), [other.id.to_string()]);
        assert_eq!(fs::read(&link).unwrap(), published);
        assert_eq!(fs::metadata(&link).unwrap().nlink(), 1);
        assert!(!store.files.lock().unwrap().contains_key(&gone.id), "nothing keeps its room");
        store.close().await.unwrap();
        drop(store);
        let content = world.content();
        let store = world.open();
        assert_eq!(store.jobs().await.unwrap().len(), 1);
        store.close().await.unwrap();
        drop(store);
        assert_eq!(world.content(), content);
        assert_eq!(crate::store::embedded::rebuild(world.state()).unwrap().len(), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_start_finishes_what_was_begun() {
        for emptied in [false, true] {
            let (world, store, [gone, other]) = ended().await;
            crash(store).await;
            let folder = world.folder(&gone);
            fs::rename(folder.path(), folder.removed()).unwrap();
            fs::create_dir(folder.removed().join("spec")).unwrap();
            if emptied {
                fs::remove_file(folder.removed().join("state.json")).unwrap();
            }
            fs::create_dir(world.state().join("jobs/somebody.removed")).unwrap();
            let store = world.open();
            let left: Vec<_> = store.jobs().await.unwrap().iter().map(|state| state.job.id).collect();
            assert_eq!(left, [other.id]);
            assert_eq!(names(&world), [other.id.to_string(), "somebody.removed".to_owned()]);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_cannot_be_renamed_or_made_durable_is_whole_and_goes_later() {
        let (world, store, [gone, _]) = ended().await;
        let (disk, _installed) = Scarce::under(world.state());
        disk.fill(".removed");
        assert!(matches!(store.remove(gone.id).await, Err(Error::Full(_))));
        assert_eq!(store.job(gone.id).await.unwrap().counts.completed, 3);
        assert!(world.folder(&gone).state().exists());
        disk.mend();
        disk.break_syncs("jobs");
        assert!(store.remove(gone.id).await.unwrap());
        assert!(world.folder(&gone).removed().join("state.json").exists(), "a power cut may bring it back");
        assert!(matches!(store.job(gone.id).await, Err(Error::NoSuchJob(_))));
        disk.mend();
        store.close().await.unwrap();
        drop(store);
        drop(world.open());
        assert_eq!(names(&world).len(), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_job_whose_claim_is_not_over_stays() {
        let (world, store, [gone, _]) = ended().await;
        fs::write(world.folder(&gone).claim(), "{}").unwrap();
        assert!(!store.remove(gone.id).await.unwrap());
        fs::remove_file(world.folder(&gone).claim()).unwrap();
        assert!(store.remove(gone.id).await.unwrap());
    }

    /// A record came to the index after its job had been removed, and the store closed over it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_job_whose_records_are_on_their_way_stays() {
        let world = World::new();
        let store = world.open();
        let job = conformance::job(1, 5, &["m"], 2);
        put(&store, &job).await;
        let lease = conformance::lease(&store, "m", 1, NOW).await.pop().unwrap();
        store.set_status(job.id, JobStatus::Cancelled, NOW).await.unwrap();
        assert!(!store.remove(job.id).await.unwrap());
        let settlement = conformance::answer(&lease);
        store.settle(lease, settlement).await.unwrap();
        let mut progress = store.progress();
        while !store.remove(job.id).await.unwrap() {
            progress.changed().await;
        }
        store.close().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn keys_that_a_crash_left_go_with_the_job() {
        let (world, store, [gone, _]) = ended().await;
        store.close().await.unwrap();
        drop(store);
        let mut index = crate::store::embedded::start::index(
            world.state(),
            &crate::pulse::Roll::default().join("the recovery"),
        )
        .unwrap();
        let key = crate::store::embedded::keys::range(gone.id, 0, 0);
        index.apply(vec![(key, Some(vec![1; 8]))]).unwrap();
        assert!(index.has_keys(gone.id).unwrap());
        let mut thread = crate::store::embedded::healing::thread(index, &world);
        assert!(thread.remove(gone.id).unwrap());
        assert!(!thread.index.has_keys(gone.id).unwrap());
    }
}
