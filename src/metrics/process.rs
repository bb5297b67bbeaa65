//! What the kernel knows of this process, under the names that Prometheus' own clients give it.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

/// Where the fields of `/proc/<pid>/stat` stand behind the command's name: less three than in `proc_pid_stat(5)`.
const USER_TICKS: usize = 11;
const SYSTEM_TICKS: usize = 12;
const THREADS: usize = 17;
const VIRTUAL_BYTES: usize = 20;
const RESIDENT_PAGES: usize = 21;

/// This process, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// User and system time.
    pub cpu: Duration,
    pub threads: u64,
    pub virtual_bytes: u64,
    pub resident_bytes: u64,
    pub open_fds: u64,
    /// None = unlimited.
    pub max_fds: Option<u64>,
}

impl Process {
    /// Reads `/proc/self`.
    pub fn read() -> io::Result<Self> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
        let page = rustix::param::page_size() as u64;
        let read = Self::parse(&stat, ticks_per_second, page)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/stat has another form"))?;
        // The folder that is read is open meanwhile, and counts.
        let open_fds = fs::read_dir("/proc/self/fd")?.count() as u64;
        Ok(Self {
            open_fds: open_fds.saturating_sub(1),
            max_fds: getrlimit(Resource::Nofile).current,
            ..read
        })
    }

    fn parse(stat: &str, ticks_per_second: u64, page: u64) -> Option<Self> {
        // A command's name may hold anything, brackets and spaces too.
        let (_, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let field = |at: usize| fields.get(at)?.parse::<u64>().ok();
        let ticks = field(USER_TICKS)? + field(SYSTEM_TICKS)?;
        Some(Self {
            cpu: Duration::from_millis(ticks.saturating_mul(1000) / ticks_per_second),
            threads: field(THREADS)?,
            virtual_bytes: field(VIRTUAL_BYTES)?,
            resident_bytes: field(RESIDENT_PAGES)?.saturating_mul(page),
            ..Self::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let stat =
            "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 9 0 1234 4096000 100 18446744073709551615 1";
        let expected = Process {
            cpu: Duration::from_secs(2),
            threads: 9,
            virtual_bytes: 4_096_000,
            resident_bytes: 409_600,
            ..Process::default()
        };
        assert_eq!(Process::parse(stat, 100, 4096), Some(expected));
        for bad in ["", "42 (a", "42 (a) S 1", "42 (a) S 1 2 3 4 5 6 7 8 9 10 x 50 0 0 20 0 9 0 1 2 3"] {
            assert_eq!(Process::parse(bad, 100, 4096), None, "{bad}");
        }
    }

    #[test]
    fn this_process_takes_memory_and_descriptors() {
        let process = Process::read().unwrap();
        assert!(process.resident_bytes > 1 << 20 && process.virtual_bytes >= process.resident_bytes);
        assert!(process.open_fds > 2 && process.threads > 0);
    }
}
