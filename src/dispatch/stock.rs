//! What a dispatcher has leased and not sent yet: how much of it there is, and what goes back to the store.
//!
//! # Operation
//!
//! Requests are sent in the order in which the store leases them. Only a fine-tune may be alone in having to wait, where
//! a provider has several endpoints: it is at the first, which may be closed, held or full while others are free. It
//! steps aside then and others pass; as soon as its lane lets somebody in, it is the first to go there.

use std::collections::btree_map::Entry;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use crate::dispatch::choice::Blocked;
use crate::dispatch::failure::Result;
use crate::dispatch::prepare::{Next, Work};
use crate::dispatch::queue::Dispatcher;
use crate::domain::{JobId, JobState, Settlement};
use crate::fault;
use crate::store::Lease;

/// Leases kept ready beyond the free slots, so that a slot never waits for the store. As many as there are
/// slots, at most this many.
const READY_MAX: usize = 256;

/// Fine-tunes that may step aside at once. With more than these, the next one is waited for like any other request.
const ASIDE_MAX: usize = 64;

impl Dispatcher {
    /// Leases more if few are ready.
    pub(super) async fn fill(&mut self) -> Result<()> {
        let free = self.allowed().saturating_sub(self.in_flight());
        let spare = self.spare();
        let have = self.ready.len() + usize::from(self.next.is_some());
        if self.dry || have * 2 > spare {
            return Ok(());
        }
        // A gate that lets one try needs one request.
        let is_trying = self.lanes.iter().all(|lane| lane.pause().is_some());
        let bound = if is_trying { 1 } else { READY_MAX };
        let want = (free + spare).min(bound).saturating_sub(have);
        let now = self.parts.clock.now();
        let leased = self.parts.store.lease(&self.queue, want.max(1), now).await?;
        self.dry = leased.leases.len() < want.max(1);
        self.next_due = leased.next_due;
        self.ready.extend(leased.leases);
        fault::point("dispatch-leased");
        Ok(())
    }

    /// How many leases are kept ready beyond the free slots.
    pub(super) fn spare(&self) -> usize {
        if self.is_paced() { 1 } else { self.allowed().min(READY_MAX) }
    }

    /// The job of a leased request.
    pub(super) async fn job(&mut self, id: JobId) -> Result<Arc<JobState>> {
        let known = match self.jobs.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(Arc::new(self.parts.store.job(id).await?)),
        };
        Ok(Arc::clone(known))
    }

    /// Whether others may pass `next`, which can't be sent now: they may take lanes that it may not.
    pub(super) fn may_step_aside(&self, next: &Next) -> bool {
        matches!(next.work, Work::FineTune(_)) && self.lanes.len() > 1 && self.aside.len() < ASIDE_MAX
    }

    /// What is waited for where the store has nothing more.
    pub(super) fn until_due(&self) -> Blocked {
        let until = |due| Blocked::Until(Instant::now() + self.parts.clock.until(due));
        self.next_due.map_or(Blocked::Nothing, until)
    }

    /// What was made ready to be sent is made ready again.
    pub(super) fn prepare_anew(&mut self) {
        let aside = std::mem::take(&mut self.aside);
        for next in self.next.take().into_iter().chain(aside.into_iter().rev()) {
            self.ready.push_front(next.lease);
        }
    }

    /// Jobs may have come, gone or changed: what must not be sent any more goes back. Where one has come, all that is
    /// ready does, for the store to choose anew: it would stand before the newcomer, however small or urgent that is.
    pub(super) async fn on_news(&mut self) -> Result<()> {
        self.dry = false;
        self.jobs.clear();
        let rivals: BTreeSet<JobId> = self.parts.store.rivals(&self.queue).await?.into_iter().collect();
        let has_grown = !rivals.is_subset(&self.rivals);
        self.rivals = rivals;
        let may_stay = |lease: &Lease| !has_grown && self.rivals.contains(&lease.request.job);
        let (keep, back): (Vec<Lease>, Vec<Lease>) =
            std::mem::take(&mut self.ready).into_iter().partition(may_stay);
        let next = self.next.take_if(|next| !may_stay(&next.lease));
        // What steps aside stands before nobody.
        let may_wait_on = |next: &Next| self.rivals.contains(&next.lease.request.job);
        let (aside, gone): (VecDeque<Next>, VecDeque<Next>) =
            std::mem::take(&mut self.aside).into_iter().partition(may_wait_on);
        (self.ready, self.aside) = (keep.into(), aside);
        let prepared = next.into_iter().chain(gone).map(|next| next.lease);
        for lease in back.into_iter().chain(prepared) {
            self.parts.store.settle(lease, Settlement::Release).await?;
        }
        Ok(())
    }

    /// Gives back what was leased and not sent.
    pub(super) async fn give_back(&mut self) -> Result<()> {
        let prepared = std::mem::take(&mut self.aside).into_iter().chain(self.next.take());
        let prepared = prepared.map(|next| next.lease);
        for lease in std::mem::take(&mut self.ready).into_iter().chain(prepared) {
            self.dry = false;
            self.parts.store.settle(lease, Settlement::Release).await?;
        }
        Ok(())
    }
}
