//! Threads that end: what they log when the log is over for them.
//!
//! # Operation
//!
//! The formatter keeps its buffer in a thread-local value, and panics when it is asked for a line after that is gone. So do
//! all who log while a thread is torn down: sled does, by what it put off until the thread's end, and a panic there ends the
//! process. Thread-local values go in the reverse order of their first use. So a [`Last`] that is first used right after a
//! line was written goes before the buffer, and what comes after it is not logged.

use std::cell::Cell;

use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

thread_local! {
    /// Needs no destruction, so it can be asked at every moment.
    static IS_OVER: Cell<bool> = const { Cell::new(false) };
    static LAST: Last = const { Last };
}

/// Says when it goes.
struct Last;

impl Drop for Last {
    fn drop(&mut self) {
        IS_OVER.set(true);
    }
}

/// Whether nothing can be logged on this thread any more.
pub(super) fn is_over() -> bool {
    IS_OVER.get()
}

/// Lets nothing through on a thread for which the log is over. Must be the last layer that is added, so that it sees a
/// line after the one that has written it.
pub(super) struct Ending;

impl<S: Subscriber> Layer<S> for Ending {
    fn event_enabled(&self, _: &Event<'_>, _: Context<'_, S>) -> bool {
        !is_over()
    }

    fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
        // Gone already where the thread's first line comes in its teardown: then the buffer is made there, too.
        LAST.try_with(|_| ()).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread::Builder;

    use tracing::dispatcher::{Dispatch, set_default};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    static LINES: AtomicUsize = AtomicUsize::new(0);

    struct Counted;

    impl io::Write for Counted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            LINES.fetch_add(1, Ordering::SeqCst);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct LogsAtTheEnd;

    impl Drop for LogsAtTheEnd {
        fn drop(&mut self) {
            tracing::error!("what was put off is done");
        }
    }

    thread_local! {
        static PUT_OFF: LogsAtTheEnd = const { LogsAtTheEnd };
    }

    /// It was the end of the daemon at its stop, now and then, where sled's own lines are logged: the thread of the index
    /// dropped what sled had put off, sled told of it, and that was the panic of a destructor: an abort.
    #[test]
    fn what_is_logged_while_a_thread_is_torn_down_ends_nothing() {
        let layer = tracing_subscriber::fmt::layer().with_writer(|| Counted);
        let dispatch = Dispatch::new(tracing_subscriber::registry().with(layer).with(Ending));
        let logs = move || {
            // It has a thread-local value of its own, which must go after the others here, as the global one never goes.
            let default = set_default(&dispatch);
            PUT_OFF.with(|_| ());
            tracing::info!("one");
            tracing::info!("two");
            std::mem::forget(default);
        };
        Builder::new().spawn(logs).unwrap().join().unwrap();
        assert_eq!(LINES.load(Ordering::SeqCst), 2);
    }
}
