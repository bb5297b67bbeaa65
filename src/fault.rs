//! Fault points: places at which a test lets the process die, as by `kill -9`, a task panic, or a thread hang or be slow.
//!
//! `BATCHD_FAULT_POINT` names one of [`POINTS`]: `store-journal-synced` for its first passing,
//! `store-journal-synced:7` for its seventh, `dispatch-calling:panic` or `dispatch-calling:2:panic` for a panic
//! there, `dispatch-leased:hang` for a wait without end, `output-line-written:slow` for a short one at each passing.
//! [`config::load`](crate::config::load()), the door for the environment, reads it and chooses the point.
//!
//! Without `debug_assertions` there are no points: [`point`] is empty and the variable is not looked at.

/// Every point there is; a unit test compares it with the sources.
pub const POINTS: [&str; 67] = [
    // A spec on its way from the jobs folder to a job.
    "intake-noted",
    "intake-claimed",
    "intake-copied",
    "intake-secured",
    "intake-validated",
    "intake-putting",
    "intake-put",
    "intake-original-removed",
    // A schedule on its way to a run.
    "schedule-decided",
    "schedule-noted",
    "schedule-spec-written",
    "schedule-fired",
    "schedule-recorded",
    // A job's files and its place in the index.
    "store-job-prepared",
    "store-state-written",
    "store-job-half-indexed",
    "store-job-indexed",
    // A record, from the journal to the index.
    "store-intent-written",
    "store-ended-written",
    "store-memo-written",
    "store-journal-appended",
    "store-journal-syncing",
    "store-journal-synced",
    "store-index-applied",
    "store-index-flushing",
    "store-index-flushed",
    // A job that has ended, out of the state.
    "store-removal-begins",
    "store-removal-aside",
    "store-removal-durable",
    "store-removal-half-done",
    "store-removal-done",
    // A start.
    "recover-index-opening",
    "recover-index-set-aside",
    "recover-index-opened",
    "recover-torn-kept",
    "recover-torn-cut",
    "recover-settled-again",
    "recover-uncertain-failed",
    "recover-uncertain-resolved",
    "recover-job-done",
    // A request on its way.
    "dispatch-leased",
    "dispatch-sending",
    "dispatch-calling",
    "dispatch-answered",
    "dispatch-settled",
    // A fine-tune, step by step.
    "tuning-beginning",
    "tuning-creating",
    "tuning-created",
    "tuning-noted",
    "tuning-looked",
    "tuning-awaited",
    "tuning-polled",
    "tuning-cancelling",
    "tuning-cancelled",
    "tuning-settled",
    // Results.
    "output-linked",
    "output-line-written",
    "output-prepared",
    "output-lines-published",
    "output-errors-published",
    "output-image-written",
    "output-events-written",
    "output-artefact-written",
    "output-uploads-deleted",
    "output-spec-placed",
    "output-summary-published",
    "output-status-set",
];

#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn point(_: &'static str) {}

#[cfg(debug_assertions)]
pub use chosen::{choose, point};

#[cfg(debug_assertions)]
mod chosen {
    use std::str::FromStr;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::POINTS;

    /// What [`Act::Slow`] takes: some of it together are more than anybody is patient with in a test.
    const SLOW: Duration = Duration::from_millis(50);

    /// The point that the environment names, for the life of the process.
    static CHOSEN: OnceLock<Chosen> = OnceLock::new();

    #[derive(Debug)]
    struct Chosen {
        name: String,
        /// Counted from 1.
        passing: u64,
        act: Act,
        passed: AtomicU64,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Act {
        Die,
        Panic,
        Hang,
        /// At each passing from the chosen one on.
        Slow,
    }

    /// Passes the point `name`; does not return if it is the chosen one.
    #[inline]
    pub fn point(name: &'static str) {
        debug_assert!(POINTS.contains(&name), "`{name}` is not in the table of fault points");
        if let Some(chosen) = CHOSEN.get().filter(|chosen| chosen.name == name) {
            chosen.pass();
        }
    }

    /// Chooses the point to fail at. The first choice holds.
    ///
    /// # Errors
    ///
    /// A phrase for people, if `text` names no point.
    pub fn choose(text: &str) -> Result<(), String> {
        // Whoever came first has read the same variable.
        CHOSEN.set(text.parse()?).or(Ok(()))
    }

    impl FromStr for Chosen {
        type Err = String;

        fn from_str(text: &str) -> Result<Self, String> {
            let (text, act) = match text.rsplit_once(':') {
                Some((text, "panic")) => (text, Act::Panic),
                Some((text, "hang")) => (text, Act::Hang),
                Some((text, "slow")) => (text, Act::Slow),
                _ => (text, Act::Die),
            };
            let (name, passing) = text.split_once(':').unwrap_or((text, "1"));
            let passing = passing.parse().ok().filter(|passing| *passing > 0);
            let passing =
                passing.ok_or_else(|| format!("`{text}` has no number of a passing behind its `:`"))?;
            if !POINTS.contains(&name) {
                return Err(format!("`{name}` is no fault point"));
            }
            Ok(Self { name: name.to_owned(), passing, act, passed: AtomicU64::new(0) })
        }
    }

    impl Chosen {
        fn pass(&self) {
            let passing = self.passed.fetch_add(1, Ordering::Relaxed) + 1;
            if passing < self.passing || (passing > self.passing && self.act != Act::Slow) {
                return;
            }
            match self.act {
                Act::Die => die(),
                #[expect(clippy::panic, reason = "it is what the test asked for")]
                Act::Panic => panic!("the fault point `{}` was reached", self.name),
                Act::Hang => hang(&self.name),
                Act::Slow => tokio::task::block_in_place(dawdle),
            }
        }
    }

    /// Nothing is flushed, nothing is dropped: what is not in the kernel's hands is gone.
    fn die() -> ! {
        use rustix::process::{Signal, getpid, kill_process};
        match kill_process(getpid(), Signal::KILL) {
            // The signal takes a moment to arrive.
            Ok(()) | Err(_) => std::process::abort(),
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "it stands for a slow disk, on the thread that waits for it"
    )]
    fn dawdle() {
        std::thread::sleep(SLOW);
    }

    /// Never returns. Tasks that would have run on this thread run on others.
    fn hang(name: &str) -> ! {
        tracing::warn!(name, "hangs at a fault point");
        tokio::task::block_in_place(|| {
            loop {
                std::thread::park();
            }
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_point_is_named_with_its_passing_and_its_act() {
            let chosen =
                |text: &str| text.parse::<Chosen>().map(|chosen| (chosen.name, chosen.passing, chosen.act));
            let name = || "intake-put".to_owned();
            assert_eq!(chosen("intake-put"), Ok((name(), 1, Act::Die)));
            assert_eq!(chosen("intake-put:3"), Ok((name(), 3, Act::Die)));
            assert_eq!(chosen("intake-put:panic"), Ok((name(), 1, Act::Panic)));
            assert_eq!(chosen("intake-put:2:panic"), Ok((name(), 2, Act::Panic)));
            assert_eq!(chosen("intake-put:hang"), Ok((name(), 1, Act::Hang)));
            assert_eq!(chosen("intake-put:2:hang"), Ok((name(), 2, Act::Hang)));
            assert_eq!(chosen("intake-put:slow"), Ok((name(), 1, Act::Slow)));
            assert_eq!(chosen("intake-putt"), Err("`intake-putt` is no fault point".to_owned()));
            assert!(chosen("intake-put:0").is_err() && chosen("intake-put:x").is_err());
        }

        #[test]
        fn it_fails_at_the_passing_that_was_named() {
            let chosen: Chosen = "intake-put:2:panic".parse().unwrap();
            chosen.pass();
            let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| chosen.pass()));
            let message = failed.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(*message, "the fault point `intake-put` was reached");
            chosen.pass();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    fn passed_in(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                passed_in(&path, found);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                let calls = text.split("fault::point(\"").skip(1);
                found.extend(calls.filter_map(|rest| rest.split_once('"')).map(|(name, _)| name.to_owned()));
            }
        }
    }

    #[test]
    fn every_point_of_the_table_is_in_the_sources_and_the_other_way_round() {
        let mut found = Vec::new();
        passed_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        let found: BTreeSet<_> = found.into_iter().filter(|name| name != ").skip(1);").collect();
        let table: BTreeSet<_> = POINTS.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(table.len(), POINTS.len(), "a name stands there twice");
        assert_eq!(found, table);
    }
}
