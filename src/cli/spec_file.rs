//! A job spec as the command line names it: a file, or a folder with a `job.toml` in it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::diag::Diagnostic;
use crate::intake::{self, FOLDER_SPEC};
use crate::spec::Form;

/// A job spec, opened.
#[derive(Debug)]
pub(super) struct SpecFile {
    pub(super) form: Form,
    pub(super) file: File,
    /// Where it is.
    pub(super) path: PathBuf,
    /// As the person wrote it; stands in every finding.
    pub(super) display: String,
    /// The folder that paths in it start from.
    pub(super) folder: PathBuf,
    /// The folder that is the whole job, if it is one: its name, where the spec has none.
    pub(super) dropped_folder: Option<String>,
}

impl SpecFile {
    /// Opens what a person named; the finding says why that is no spec.
    pub(super) fn open(named: &Path) -> Result<Self, Diagnostic> {
        let display = named.to_string_lossy().into_owned();
        let fault = |message: String| Diagnostic::error(&display, 0, 0, message);
        if named.to_str().is_none() {
            return Err(fault("the name is not UTF-8: such files are never read".to_owned()));
        }
        let is_folder = named.is_dir();
        if is_folder && named.join(FOLDER_SPEC).symlink_metadata().is_ok() {
            let judged =
                intake::unfit_folder(named).map_err(|error| fault(format!("can't be read: {error}")))?;
            if let Some(why) = judged {
                let hint = "drop regular files, or folders of them, under plain names";
                return Err(fault(format!("not read: {why}")).hint(hint));
            }
        }
        let path = if is_folder { named.join(FOLDER_SPEC) } else { named.to_owned() };
        let display = path.to_string_lossy().into_owned();
        let fault = |message: String| Diagnostic::error(&display, 0, 0, message);
        let form = path.file_name().and_then(|name| Form::of(name.to_str()?)).ok_or_else(|| {
            fault("this is no job spec by its name".to_owned()).hint("specs end in `.jsonl` or `.toml`")
        })?;
        let file = open_regular(&path).map_err(|error| fault(format!("can't be opened: {error}")))?;
        let folder = match path.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let dropped_folder = if is_folder { folder_name(named) } else { None };
        Ok(Self { form, file, path, display, folder, dropped_folder })
    }

    /// The file's own name, or that of the folder that is the whole job.
    pub(super) fn name(&self) -> &str {
        let file_name = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        self.dropped_folder.as_deref().unwrap_or(file_name)
    }
}

/// Also of `.` and `..`, which don't hold their names.
fn folder_name(folder: &Path) -> Option<String> {
    let whole = folder.canonicalize().ok()?;
    Some(whole.file_name()?.to_str()?.to_owned())
}

/// Opens a file for reading as the daemon does: no link is followed, and what is no regular file is refused.
pub(super) fn open_regular(path: &Path) -> io::Result<File> {
    // NONBLOCK: a FIFO would otherwise wait for its writer for ever.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| {
        let is_link = error.raw_os_error() == Some(Errno::LOOP.raw_os_error());
        if is_link { io::Error::other("it is a symbolic link") } else { error }
    })?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn what_is_no_regular_file_is_refused_and_never_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo.jsonl");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        for path in [fifo.as_path(), dir.path(), Path::new("/dev/null")] {
            assert_eq!(
                open_regular(path).unwrap_err().to_string(),
                "it is no regular file",
                "{}",
                path.display()
            );
        }
    }
}
