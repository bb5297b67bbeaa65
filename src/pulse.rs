//! The roll call: who must be alive for the service manager's watchdog to be content, and who has not answered.
//!
//! # Operation
//!
//! A worker joins the [`Roll`] by its name and answers each call from its own loop, at the place where a round of it
//! begins: so an answer says that the loop comes round, and not merely that some task of the process still runs.
//! Who sleeps until something happens also waits for [`Member::called`], so that a call finds nobody asleep; who has
//! much to do in one round answers in between, wherever something was brought to its end ([`Member::answer`] costs
//! two reads while nobody calls); who waits for what may rightly take for ever says so ([`Member::excused`]).
//!
//! Work that is done on a thread beside the loop that began it is on the roll by itself, while it lasts
//! ([`Roll::join_at_work`]). It answers with every piece that it has read or written, however many there are, and one
//! piece may take its time: it counts as missing only after [`PATIENCE`] calls without an answer.
//!
//! # Invariants
//!
//! - A call is answered by everybody who was on the roll when it was made, or has left it since. Who joins after a
//!   call has nothing to answer before the next one.
//! - Work that comes on is never missing, and work that does not is missing in the end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bell::Bell;

/// So many calls in a row may work leave without an answer. They come twice in an interval of the watchdog, so this is
/// five intervals: five minutes, as the units have it. A piece of work is at most one act on the disk that can't be
/// parted: an `fsync` of what was written since the last one (tens of MiB), a rename. A busy disk needs seconds for it, and
/// one that fails is given up by the kernel in three minutes (30 s a command and five more tries, as Linux sets it for
/// SCSI). What takes longer waits for something that does not come back by itself.
const PATIENCE: u64 = 10;

/// Everybody who must answer. Its clones are the same roll.
#[derive(Clone, Debug, Default)]
pub struct Roll(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Rung at each call; its last ring is the last call.
    calls: Bell,
    /// How many calls there were, for who looks at it in every round.
    called: AtomicU64,
    /// Rung when somebody answers or leaves.
    answers: Bell,
    /// By a number that nobody else on the roll has.
    members: Mutex<BTreeMap<u64, Listed>>,
}

#[derive(Debug)]
struct Listed {
    name: String,
    answered: Arc<AtomicU64>,
    /// Calls that may pass without its answer.
    patience: u64,
}

/// One call of the roll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call(u64);

impl Roll {
    /// Puts somebody on the roll, until the member is dropped. The name stands in logs: `the fleet`.
    pub fn join(&self, name: impl Into<String>) -> Member {
        self.list(name.into(), 0)
    }

    /// Puts work on the roll, until the member is dropped: it is to answer whenever it has come on, and is missing only
    /// when it has not for [`PATIENCE`] calls.
    pub fn join_at_work(&self, name: impl Into<String>) -> Member {
        self.list(name.into(), PATIENCE)
    }

    fn list(&self, name: String, patience: u64) -> Member {
        let mut members = self.members();
        // Under the lock, so that a call sees it on the roll or finds that it came after.
        let answered = Arc::new(AtomicU64::new(self.0.called.load(Ordering::SeqCst)));
        let number = members.last_key_value().map_or(0, |(last, _)| last + 1);
        members.insert(number, Listed { name, answered: Arc::clone(&answered), patience });
        drop(members);
        Member { roll: self.clone(), number, answered }
    }

    /// Calls everybody.
    pub fn call(&self) -> Call {
        let call = {
            let _members = self.members();
            self.0.called.fetch_add(1, Ordering::SeqCst) + 1
        };
        self.0.calls.ring();
        Call(call)
    }

    /// Returns when nobody is missing at `call`.
    pub async fn answered(&self, call: Call) {
        let mut answers = self.0.answers.listen();
        while !self.missing(call).is_empty() {
            answers.changed().await;
        }
    }

    /// Who has not answered `call`, in the order in which they joined; of work, which has not for long.
    pub fn missing(&self, call: Call) -> Vec<String> {
        let members = self.members();
        let silent = members
            .values()
            .filter(|member| member.answered.load(Ordering::SeqCst).saturating_add(member.patience) < call.0);
        silent.map(|member| member.name.clone()).collect()
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<u64, Listed>> {
        self.0.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who is on the roll, and leaves it when dropped.
#[derive(Debug)]
pub struct Member {
    roll: Roll,
    number: u64,
    answered: Arc<AtomicU64>,
}

impl Member {
    /// Answers, if there was a call.
    pub fn answer(&self) {
        let called = self.roll.0.called.load(Ordering::SeqCst);
        if self.answered.load(Ordering::SeqCst) < called {
            self.answered.store(called, Ordering::SeqCst);
            self.roll.0.answers.ring();
        }
    }

    fn is_called(&self) -> bool {
        self.answered.load(Ordering::SeqCst) < self.roll.0.called.load(Ordering::SeqCst)
    }

    /// Returns when there is a call to answer. It does not answer: the round that follows does.
    pub async fn called(&self) {
        let mut calls = self.roll.0.calls.listen();
        while !self.is_called() {
            calls.changed().await;
        }
    }

    /// Waits for `work`, and answers calls meanwhile as long as `is_excused` says that it may take for ever. Without
    /// that, calls find no answer until it is done.
    pub async fn excused<T>(&self, work: impl Future<Output = T>, is_excused: impl Fn() -> bool) -> T {
        tokio::pin!(work);
        let mut calls = self.roll.0.calls.listen();
        loop {
            // Before the wait: the call may have come before it began.
            if self.is_called() && is_excused() {
                self.answer();
            }
            // What is waited for first: there is nothing to excuse any more.
            tokio::select! { biased;
                done = &mut work => return done,
                () = calls.changed() => {}
            }
        }
    }
}

impl Default for Member {
    /// A member of a roll that nobody calls.
    fn default() -> Self {
        Roll::default().join("nobody")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.roll.members().remove(&self.number);
        self.roll.0.answers.ring();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;
    use std::time::Duration;

    use futures_util::FutureExt;
    use tokio::task::JoinSet;
    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn call_is_answered_when_the_last_has_come_round() {
        let roll = Roll::default();
        let mut loops = JoinSet::new();
        for (name, busy) in [("quick", 1), ("slow", 20)] {
            let member = roll.join(name);
            loops.spawn(async move {
                loop {
                    member.answer();
                    member.called().await;
                    sleep(Duration::from_secs(busy)).await;
                }
            });
        }
        for _ in 0..3 {
            sleep(Duration::from_secs(1)).await; // both wait for the call
            let (call, began) = (roll.call(), Instant::now());
            sleep(Duration::from_secs(2)).await;
            assert_eq!(roll.missing(call), ["slow"]);
            roll.answered(call).await;
            assert_eq!(began.elapsed(), Duration::from_secs(20));
            assert!(roll.missing(call).is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn hung_member_is_named_until_it_answers_or_leaves() {
        let roll = Roll::default();
        let (hung, fine, gone) = (roll.join("hung"), roll.join("fine"), roll.join("gone"));
        let call = roll.call();
        fine.answer();
        assert_eq!(roll.missing(call), ["hung", "gone"]);
        let never = timeout(Duration::from_hours(1), roll.answered(call)).await;
        assert!(never.is_err());
        let mut leaving = Box::pin(roll.answered(call));
        assert_eq!((&mut leaving).now_or_never(), None);
        drop(gone);
        assert_eq!(roll.missing(call), ["hung"]);
        assert_eq!((&mut leaving).now_or_never(), None);
        hung.answer();
        assert_eq!(leaving.now_or_never(), Some(()));
        let call = roll.call();
        fine.answer();
        let mut leaving = Box::pin(roll.answered(call));
        assert_eq!((&mut leaving).now_or_never(), None);
        drop(hung);
        assert_eq!(leaving.now_or_never(), Some(()), "it was the last that was missing");
    }

    #[tokio::test(start_paused = true)]
    async fn answer_to_an_earlier_call_is_none_to_a_later_one() {
        let roll = Roll::default();
        let member = roll.join("one");
        let first = roll.call();
        member.answer();
        let second = roll.call();
        assert!(roll.missing(first).is_empty());
        assert_eq!(roll.missing(second), ["one"]);
        let late = roll.join("late");
        assert_eq!(roll.missing(second), ["one"], "who joins later was not called");
        assert_eq!(late.called().now_or_never(), None);
        member.answer();
        assert_eq!(roll.answered(second).now_or_never(), Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn work_is_missing_after_many_calls_without_a_piece_and_never_while_it_comes_on() {
        let roll = Roll::default();
        drop(roll.join("one before"));
        let (hung, slow) = (roll.join_at_work("hung"), roll.join_at_work("slow"));
        let mut call = roll.call();
        for _ in 1..PATIENCE {
            assert!(roll.missing(call).is_empty());
            call = roll.call();
        }
        assert_eq!(roll.answered(call).now_or_never(), Some(()), "the last that it may miss");
        // One piece in all that time.
        slow.answer();
        let call = roll.call();
        assert_eq!(roll.missing(call), ["hung"]);
        let mut found = Box::pin(roll.answered(call));
        assert_eq!((&mut found).now_or_never(), None);
        hung.answer();
        assert_eq!(found.now_or_never(), Some(()), "it comes on after all");
        for _ in 0..PATIENCE * 3 {
            assert!(roll.missing(roll.call()).is_empty());
            hung.answer();
            slow.answer();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn called_returns_until_the_call_is_answered() {
        let roll = Roll::default();
        let member = roll.join("one");
        assert_eq!(member.called().now_or_never(), None);
        roll.call();
        assert_eq!(member.called().now_or_never(), Some(()));
        assert_eq!(member.called().now_or_never(), Some(()), "nobody has answered yet");
        member.answer();
        assert_eq!(member.called().now_or_never(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_excused_answers_while_it_waits_and_who_is_not_does_not() {
        let roll = Roll::default();
        let member = roll.join("one");
        let is_excused = AtomicBool::new(false);
        let work = sleep(Duration::from_mins(10));
        let watched = async {
            let call = roll.call();
            sleep(Duration::from_mins(1)).await;
            assert_eq!(roll.missing(call), ["one"]);
            is_excused.store(true, Ordering::SeqCst);
            let call = roll.call();
            roll.answered(call).await;
        };
        tokio::join!(member.excused(work, || is_excused.load(Ordering::SeqCst)), watched);
        let call = roll.call();
        let done = member.excused(async { 7 }, || true).await;
        assert_eq!(done, 7);
        assert!(roll.missing(call).is_empty(), "a call from before the wait is answered, too");
    }

    #[tokio::test]
    async fn threads_answer_as_tasks_do() {
        let roll = Roll::default();
        let member = roll.join("thread");
        let is_over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_over);
        let thread = thread::Builder::new().spawn(move || {
            while !seen.load(Ordering::SeqCst) {
                member.answer();
                thread::yield_now();
            }
        });
        for _ in 0..100 {
            roll.answered(roll.call()).await;
        }
        is_over.store(true, Ordering::SeqCst);
        thread.unwrap().join().unwrap();
        assert!(roll.missing(roll.call()).is_empty(), "it has left");
    }
}
