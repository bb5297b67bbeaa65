//! Panics in the log. The lines that the standard library prints are no JSON and have no priority in the journal, and the
//! first of them is empty.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic;
use std::thread;

use tracing::{Level, enabled, error};

use super::ending;

/// Logs every panic of the process from now on, and prints it as before where nothing can be logged.
pub fn log_panics() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |panicked| {
        if ending::is_over() || !enabled!(Level::ERROR) {
            return print(panicked);
        }
        let place = panicked.location().map(ToString::to_string);
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
        error!(
            thread = thread::current().name(),
            place,
            error = panicked.payload_as_str(),
            backtrace,
            "batchd panicked; please report it"
        );
    }));
}
