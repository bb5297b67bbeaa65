//! A file that is there when it is whole, and not before.
//!
//! # Operation
//!
//! The bytes go into a file without a name (`O_TMPFILE`), which is given its name at the end. Whatever ends the command
//! before that, a kill included, leaves nothing behind. Where the file system has no such files, a hidden one stands in
//! for it, which all but a kill removes.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use tempfile::{Builder, NamedTempFile};

/// What a new file may be opened for, before the umask has its say.
const MODE: u32 = 0o666;

/// A file to be.
#[derive(Debug)]
pub(super) struct Download {
    path: PathBuf,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Nameless(File),
    Hidden(NamedTempFile),
}

impl Download {
    /// Nothing can be seen at `path` yet.
    pub(super) fn begin(path: &Path) -> io::Result<Self> {
        let content = match nameless(folder(path)) {
            Ok(file) => Content::Nameless(file),
            Err(_) => Content::Hidden(hidden().tempfile_in(folder(path))?),
        };
        Ok(Self { path: path.to_owned(), content })
    }

    pub(super) fn file(&mut self) -> &mut File {
        match &mut self.content {
            Content::Nameless(file) => file,
            Content::Hidden(file) => file.as_file_mut(),
        }
    }

    /// Gives the file its name; what stands there is replaced only if `replace` says so.
    pub(super) fn finish(self, replace: bool) -> io::Result<()> {
        match self.content {
            Content::Nameless(file) if replace => {
                // A link replaces nothing; a rename does.
                let link = |path: &Path| name(&file, path);
                let named = hidden().make_in(folder(&self.path), link)?;
                named.into_temp_path().persist(&self.path).map_err(|error| error.error)
            }
            Content::Nameless(file) => name(&file, &self.path),
            Content::Hidden(file) if replace => {
                file.persist(&self.path).map(drop).map_err(|error| error.error)
            }
            Content::Hidden(file) => {
                file.persist_noclobber(&self.path).map(drop).map_err(|error| error.error)
            }
        }
    }
}

fn nameless(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, folder, flags, Mode::from_raw_mode(MODE)).map(File::from)?)
}

fn name(file: &File, path: &Path) -> io::Result<()> {
    // A file is linked by its descriptor only by the mighty; by this path, by everybody.
    let descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(CWD, descriptor, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

fn hidden() -> Builder<'static, 'static> {
    let mut builder = Builder::new();
    builder.prefix(".batchd-").permissions(PermissionsExt::from_mode(MODE));
    builder
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| *folder != Path::new("")).unwrap_or_else(|| Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with(".nfs"))
            .collect()
    }

    /// Both ways to begin a file in `folder`.
    fn both(path: &Path) -> [Download; 2] {
        let hidden = Content::Hidden(hidden().tempfile_in(folder(path)).unwrap());
        [Download::begin(path).unwrap(), Download { path: path.to_owned(), content: hidden }]
    }

    #[test]
    fn a_file_is_there_when_it_is_whole_and_replaces_only_what_it_may() {
        for which in 0..2 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("out");
            let begin = |text: &str| {
                let mut download = both(&path).into_iter().nth(which).unwrap();
                download.file().write_all(text.as_bytes()).unwrap();
                download
            };
            let first = begin("first");
            assert!(!path.exists());
            first.finish(false).unwrap();
            assert_eq!(begin("second").finish(false).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read(&path).unwrap(), b"first");
            begin("third").finish(true).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"third");
            drop(begin("fourth"));
            assert_eq!(names(folder.path()), ["out"], "nothing is left beside it");
        }
    }

    #[test]
    fn a_file_gets_the_rights_that_any_new_file_gets() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        File::create(&plain).unwrap();
        let rights = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        for (at, download) in both(&folder.path().join("out")).into_iter().enumerate() {
            download.finish(true).unwrap();
            assert_eq!(rights(&folder.path().join("out")), rights(&plain), "{at}");
        }
    }

    #[test]
    fn a_folder_that_there_is_not_is_an_error_at_once() {
        assert!(Download::begin(Path::new("/no/such/folder/out")).is_err());
    }
}
