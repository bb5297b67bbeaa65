//! The bell by which workers wake each other: something has changed, look again.
//!
//! A ring says nothing but that it rang, so rings that nobody has heard yet are one. Whoever waits is woken in
//! the order in which they began to wait: tokio's own `watch` spreads its waiters over several lists and begins
//! with one by chance, which would give the same seed another run.
//!
//! # Invariants
//!
//! - A ring is never lost: one that comes between two waits of a listener ends the next wait at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::task::coop::cooperative;

/// Rung by any thread, heard by every [`Listener`]. Its clones are the same bell.
#[derive(Clone, Debug, Default)]
pub struct Bell(Arc<Tower>);

#[derive(Debug, Default)]
struct Tower {
    rings: AtomicU64,
    waiting: Notify,
}

/// Hears the rings of one bell that come after it began to listen.
#[derive(Clone, Debug)]
pub struct Listener {
    tower: Arc<Tower>,
    heard: u64,
}

impl Bell {
    /// Wakes all who wait. Returns the number of this ring, from 1.
    pub fn ring(&self) -> u64 {
        // Counted before anybody is woken, so that who is woken finds it counted.
        let before = self.0.rings.fetch_add(1, Ordering::SeqCst);
        self.0.waiting.notify_waiters();
        before + 1
    }

    /// Listens from now on: what rang before is old.
    pub fn listen(&self) -> Listener {
        Listener { tower: Arc::clone(&self.0), heard: self.0.rings.load(Ordering::SeqCst) }
    }
}

impl Listener {
    /// Returns when there was a ring that this listener has not heard, and takes all of them as heard. Nothing
    /// is lost if it is dropped while it waits.
    pub async fn changed(&mut self) {
        // Who rings his own bell must not keep the others from their turn.
        cooperative(self.next_ring()).await;
    }

    async fn next_ring(&mut self) {
        loop {
            // Before the look: a ring behind it ends this wait, one before it is seen by the look.
            let ring = self.tower.waiting.notified();
            let rings = self.tower.rings.load(Ordering::SeqCst);
            if rings != self.heard {
                self.heard = rings;
                return;
            }
            ring.await;
        }
    }

    /// Whether there was a ring that this listener has not heard.
    pub fn has_changed(&self) -> bool {
        self.tower.rings.load(Ordering::SeqCst) != self.heard
    }

    /// Takes every ring so far as heard. Returns the number of the last one; 0 if there was none yet.
    pub fn mark_seen(&mut self) -> u64 {
        self.heard = self.tower.rings.load(Ordering::SeqCst);
        self.heard
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::thread;

    use futures_util::FutureExt;
    use tokio::task::{JoinSet, yield_now};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rings_before_the_wait_end_it_at_once_and_are_one() {
        let bell = Bell::default();
        bell.ring();
        let mut listener = bell.listen();
        assert_eq!((listener.has_changed(), listener.changed().now_or_never()), (false, None));
        assert_eq!((bell.ring(), bell.ring()), (2, 3));
        assert!(listener.has_changed());
        listener.changed().await;
        assert_eq!((listener.has_changed(), listener.changed().now_or_never()), (false, None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_marked_as_seen_wakes_nobody() {
        let bell = Bell::default();
        let (mut one, mut other) = (bell.listen(), bell.listen());
        assert_eq!(one.mark_seen(), 0);
        bell.ring();
        assert_eq!(one.mark_seen(), 1);
        assert_eq!(one.changed().now_or_never(), None);
        assert_eq!(other.changed().now_or_never(), Some(()), "each listener hears for itself");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_given_up_loses_no_ring() {
        let bell = Bell::default();
        let mut listener = bell.listen();
        let mut wait = Box::pin(listener.changed());
        assert_eq!((&mut wait).now_or_never(), None);
        bell.ring();
        drop(wait);
        assert_eq!(listener.changed().now_or_never(), Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn all_are_woken_in_the_order_in_which_they_waited() {
        let bell = Bell::default();
        let woken = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        for number in 0..50 {
            let (mut listener, woken) = (bell.listen(), Arc::clone(&woken));
            tasks.spawn(async move {
                listener.changed().await;
                woken.lock().unwrap().push(number);
            });
            yield_now().await;
        }
        bell.ring();
        tasks.join_all().await;
        assert!(woken.lock().unwrap().iter().copied().eq(0..50));
    }

    #[tokio::test(start_paused = true)]
    async fn who_rings_for_himself_lets_others_have_their_turn() {
        let bell = Bell::default();
        let mut listener = bell.listen();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                bell.ring();
                listener.changed().await;
            }
        });
        yield_now().await;
        tasks.abort_all();
    }

    #[tokio::test]
    async fn rings_of_other_threads_are_heard() {
        let bell = Bell::default();
        let mut listener = bell.listen();
        let ringer = bell.clone();
        let rings = thread::Builder::new().spawn(move || {
            for _ in 0..1000 {
                ringer.ring();
            }
        });
        while listener.mark_seen() < 1000 {
            listener.changed().await;
        }
        rings.unwrap().join().unwrap();
    }
}
