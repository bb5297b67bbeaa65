//! The Unix socket: made for its owner alone, one that a dead daemon left behind replaced.

use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::{fs, mem};

use rustix::fs::{Mode, fchmod};
use tokio::net::{UnixListener, UnixSocket};

/// Commands that wait to be taken up; more than people and their scripts send at once.
const BACKLOG: u32 = 64;

/// Listens at `path`, mode 0600. A socket on which nobody answers is replaced.
///
/// # Errors
///
/// `AddrInUse`: somebody answers there. `AlreadyExists`: there is something that is no socket.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    remove_stale(path)?;
    let socket = UnixSocket::new_stream()?;
    // Before it has a name: at no moment may anybody else open it, whatever the umask. Systems that can't
    // do this leave the mode to the line below.
    let private = fchmod(&socket, Mode::RUSR | Mode::WUSR);
    socket.bind(path)?;
    if private.is_err() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    }
    socket.listen(BACKLOG)
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "there is a file that is no socket"));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "another program answers there")),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

/// Takes a listener's socket away when dropped.
#[derive(Debug)]
pub(super) struct Unlink(Option<PathBuf>);

impl Unlink {
    pub(super) fn of(listener: &UnixListener) -> Self {
        let address = listener.local_addr().ok();
        Self(address.and_then(|address| address.as_pathname().map(Path::to_owned)))
    }
}

impl Drop for Unlink {
    fn drop(&mut self) {
        if let Some(path) = mem::take(&mut self.0) {
            // If it can't be taken away it is stale, and the next daemon replaces it.
            drop(fs::remove_file(path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn socket_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("batchd.sock");
        let listener = bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        drop(Unlink::of(&listener));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("batchd.sock");
        let first = bind(&path).unwrap();
        assert_eq!(bind(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(first);
        assert!(path.exists());
        bind(&path).unwrap();
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("batchd.sock");
        fs::write(&path, "precious").unwrap();
        assert_eq!(bind(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(bind(&link).unwrap_err().kind(), ErrorKind::AlreadyExists);
    }
}
