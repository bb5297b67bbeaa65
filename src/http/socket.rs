//! The Unix socket: made for its owner, or for a group too, and one that a dead daemon left behind replaced.

use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::{fs, mem};

use rustix::fs::{Mode, fchmod};
use tokio::net::{UnixListener, UnixSocket};

/// Commands that wait to be taken up; more than people and their scripts send at once.
const BACKLOG: u32 = 64;

/// A socket that listens.
#[derive(Debug)]
pub struct Socket {
    pub(super) listener: UnixListener,
    /// A group may speak to it, too.
    pub(super) is_shared: bool,
}

/// Listens at `path`, mode 0600; 0660 with the group of that name, if there is one. A socket on which nobody answers is
/// replaced.
///
/// # Errors
///
/// `AddrInUse`: somebody answers there. `AlreadyExists`: there is something that is no socket. `NotFound`: there is no
/// such group. `PermissionDenied`: the socket can't be given to it.
pub fn bind(path: &Path, group: Option<&str>) -> io::Result<Socket> {
    let group = group.map(group_id).transpose()?;
    remove_stale(path)?;
    let socket = UnixSocket::new_stream()?;
    // Before it has a name: at no moment may anybody else open it, whatever the umask. Systems that can't
    // do this leave the mode to the line below.
    let private = fchmod(&socket, Mode::RUSR | Mode::WUSR);
    socket.bind(path)?;
    if private.is_err() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    }
    if let Some(group) = group {
        share(path, group)?;
    }
    Ok(Socket { listener: socket.listen(BACKLOG)?, is_shared: group.is_some() })
}

/// The system's own look-up, so that groups of a directory service are found, too.
fn group_id(name: &str) -> io::Result<u32> {
    let found = nix::unistd::Group::from_name(name)?;
    let missing =
        || io::Error::new(ErrorKind::NotFound, format!("there is no group `{name}`: see `[control] group`"));
    Ok(found.ok_or_else(missing)?.gid.as_raw())
}

/// Opens the socket to a group. It may have it already: as ours, or as that of a folder whose set-group-id bit is set.
/// Then nothing has to be given away, which a service manager may forbid.
fn share(path: &Path, group: u32) -> io::Result<()> {
    if path.symlink_metadata()?.gid() != group {
        lchown(path, None, Some(group)).map_err(|error| {
            let why = format!(
                "it can't be given to the group of `[control] group` ({error}): batchd must run as a member of it"
            );
            io::Error::new(error.kind(), why)
        })?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))
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
        let Socket { listener, is_shared } = bind(&path, None).unwrap();
        assert!(!is_shared);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        drop(Unlink::of(&listener));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_group_may_open_it_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("batchd.sock");
        let own = nix::unistd::Group::from_gid(nix::unistd::getegid()).unwrap();
        let Some(own) = own else { return eprintln!("skipped: the group that runs this has no name") };
        let socket = bind(&path, Some(&own.name)).unwrap();
        assert!(socket.is_shared);
        let metadata = path.metadata().unwrap();
        assert_eq!((metadata.permissions().mode() & 0o777, metadata.gid()), (0o660, own.gid.as_raw()));
    }

    #[tokio::test]
    async fn a_group_that_is_not_there_is_named_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("batchd.sock");
        let error = bind(&path, Some("no-such-group-9")).unwrap_err();
        assert_eq!(error.to_string(), "there is no group `no-such-group-9`: see `[control] group`");
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("batchd.sock");
        let first = bind(&path, None).unwrap();
        assert_eq!(bind(&path, None).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(first);
        assert!(path.exists());
        bind(&path, None).unwrap();
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("batchd.sock");
        fs::write(&path, "precious").unwrap();
        assert_eq!(bind(&path, None).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(bind(&link, None).unwrap_err().kind(), ErrorKind::AlreadyExists);
    }
}
