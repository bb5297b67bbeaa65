//! What a service manager tells the process that it supervises: environment variables of systemd's protocol.

use std::ffi::OsString;
use std::process;
use std::time::Duration;

use super::load::variable;

/// A service manager that wants to be told how the daemon is. The default is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Supervisor {
    /// `$NOTIFY_SOCKET`, as it is written there: a path, or `@` and a name without one. None: nobody is told.
    pub socket: Option<OsString>,
    /// `$WATCHDOG_USEC`: who gives no sign of life for so long is killed. None if it is not set, can't be read, or
    /// `$WATCHDOG_PID` says that another process is meant.
    pub watchdog: Option<Duration>,
}

impl Supervisor {
    /// Reads the environment of this process. The variables stay there: batchd starts no processes that could take
    /// them for their own.
    pub fn of_this_process() -> Self {
        Self::read(&variable, process::id())
    }

    fn read(variable: &dyn Fn(&str) -> Option<OsString>, pid: u32) -> Self {
        let number = |name: &str| variable(name)?.to_str()?.parse::<u64>().ok();
        let is_ours = variable("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(u64::from(pid));
        let interval = number("WATCHDOG_USEC").filter(|us| *us > 0 && is_ours);
        Self {
            socket: variable("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()),
            watchdog: interval.map(Duration::from_micros),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Supervisor {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        };
        Supervisor::read(&variable, 7)
    }

    #[test]
    fn watchdog_is_heeded_only_by_the_process_that_is_meant() {
        let minute = Some(Duration::from_mins(1));
        let usec = ("WATCHDOG_USEC", "60000000");
        assert_eq!(read(&[usec]).watchdog, minute);
        assert_eq!(read(&[usec, ("WATCHDOG_PID", "7")]).watchdog, minute);
        for other in ["8", "", "seven"] {
            assert_eq!(read(&[usec, ("WATCHDOG_PID", other)]).watchdog, None, "{other:?}");
        }
        for wrong in ["0", "", "-1", "1s", "99999999999999999999"] {
            assert_eq!(read(&[("WATCHDOG_USEC", wrong)]).watchdog, None, "{wrong:?}");
        }
    }

    #[test]
    fn without_a_socket_nobody_is_told() {
        assert_eq!(read(&[]), Supervisor::default());
        assert_eq!(read(&[("NOTIFY_SOCKET", "")]).socket, None);
        assert_eq!(read(&[("NOTIFY_SOCKET", "@x")]).socket, Some("@x".into()));
    }
}
