//! One daemon per state folder: an exclusive `flock` on `state/lock`, which holds the owner's pid.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::disk;
use crate::store::folder::failed;
use crate::store::{Error, Result};

/// Held as long as the value lives; the kernel lets go of it if the process dies.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock below `state` at once, or says who has it ([`Error::Locked`]).
    pub fn take(state: &Path) -> Result<Self> {
        let path = state.join("lock");
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // A lock whose pid can't be read is held all the same.
                let pid = file.read_to_string(&mut pid).ok().and_then(|_| pid.trim().parse().ok());
                return Err(Error::Locked { pid, path });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
        }
        let pid = format!("{}\n", std::process::id());
        match file.set_len(0).and_then(|()| file.write_all(pid.as_bytes())) {
            // A lock whose pid can't be written is held all the same.
            Err(error) if !disk::is_full(&error) => return Err(failed("write", &path)(error)),
            Ok(()) | Err(_) => {}
        }
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_owner_is_told_the_first_ones_pid() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path()).unwrap();
        let second = Lock::take(dir.path()).unwrap_err();
        assert!(matches!(second, Error::Locked { pid: Some(pid), .. } if pid == std::process::id()));
        assert!(second.to_string().contains(&std::process::id().to_string()));
        drop(first);
        Lock::take(dir.path()).unwrap();
    }
}
