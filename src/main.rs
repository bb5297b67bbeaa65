//! The program: its arguments go to [`batchd::cli`], and its exit code comes from there.

use std::process::ExitCode;

fn main() -> ExitCode {
    batchd::cli::run(std::env::args_os())
}
