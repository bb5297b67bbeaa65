//! The files that `batchd prepare` writes: under names that are free, whole and on the disk, or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::{Exit, Failure};
use crate::disk;
use crate::training::{self, Checked, Rules};

/// Where the output goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) whole: PathBuf,
    pub(super) training: PathBuf,
    pub(super) validation: PathBuf,
}

/// A file that is written, and has no name yet.
#[derive(Debug)]
pub(super) struct Draft {
    file: NamedTempFile,
    name: PathBuf,
}

impl Names {
    /// Fails if one of them is taken: nothing is overwritten, and nobody is asked questions in vain.
    pub(super) fn free(input: &Path, output: Option<&Path>) -> Result<Self, Failure> {
        let beside = |path: &Path, end: &str| {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            path.with_file_name(format!("{stem}{end}.jsonl"))
        };
        let whole = output.map_or_else(|| beside(input, "_prepared"), Path::to_owned);
        let names = Self { training: beside(&whole, "_train"), validation: beside(&whole, "_valid"), whole };
        for name in [&names.whole, &names.training, &names.validation] {
            if name.symlink_metadata().is_ok() {
                return Err(taken(name));
            }
        }
        Ok(names)
    }
}

impl Draft {
    /// Writes the lines and syncs them, and has them checked as a training file.
    pub(super) fn write(
        name: &Path,
        lines: impl Iterator<Item = String>,
        rules: &Rules<'_>,
    ) -> Result<(Self, Checked), Failure> {
        let failed = |error: io::Error| unwritable(name, &error);
        let mut file = new_file(name).map_err(failed)?;
        write_lines(file.as_file_mut(), lines).map_err(failed)?;
        file.as_file_mut().rewind().map_err(failed)?;
        let checked =
            training::check(file.as_file_mut(), &name.to_string_lossy(), rules, None).map_err(failed)?;
        Ok((Self { file, name: name.to_owned() }, checked))
    }

    /// Gives it its name. Fails if somebody else took that in the meantime.
    pub(super) fn publish(self) -> Result<PathBuf, Failure> {
        let Self { file, name } = self;
        file.persist_noclobber(&name).map_err(|failed| {
            let is_taken = failed.error.kind() == io::ErrorKind::AlreadyExists;
            if is_taken { taken(&name) } else { unwritable(&name, &failed.error) }
        })?;
        disk::sync_dir(folder(&name)).map_err(|error| unwritable(&name, &error))?;
        Ok(name)
    }
}

fn new_file(name: &Path) -> io::Result<NamedTempFile> {
    // As the umask has it, like any file that a command writes.
    let permissions = fs::Permissions::from_mode(0o666);
    tempfile::Builder::new()
        .prefix(".prepare-")
        .suffix(".tmp")
        .permissions(permissions)
        .tempfile_in(folder(name))
}

fn write_lines(file: &mut File, lines: impl Iterator<Item = String>) -> io::Result<()> {
    let mut writer = BufWriter::new(&mut *file);
    for line in lines {
        writeln!(writer, "{line}")?;
    }
    writer.flush()?;
    drop(writer);
    file.sync_all()
}

fn folder(name: &Path) -> &Path {
    name.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

fn taken(name: &Path) -> Failure {
    Failure::new(Exit::Usage, format!("`{}` is there already, and is not overwritten", name.display()))
        .hint("name another file with `-o`, or take this one away")
}

fn unwritable(name: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::StateIo, format!("`{}` can't be written: {error}", name.display()))
}
