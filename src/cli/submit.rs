//! `batchd submit`: places job specs into the watched folder, each whole or not at all. Needs no daemon.
//!
//! # Operation
//!
//! A spec is copied under a hidden name in the jobs folder, synced, and renamed to its own name, or to the next
//! free one: the daemon never sees a part of it, and nothing is overwritten. A TOML spec takes the data files
//! that it names along: the folder that then holds them all is placed in the same way. Where the daemon is another
//! user, its group gets the [`Rights`] that it needs.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::Serialize;

use super::args::SubmitArgs;
use super::data_files::{self, DataFile};
use super::report::Printer;
use super::spec_file::SpecFile;
use super::{Done, Exit, Failure, block_on, load_config, wait};
use crate::config::Keys;
use crate::control::JobReport;
use crate::diag::{Diagnostic, printable};
use crate::intake::{FOLDER_SPEC, is_never_read, numbered};
use crate::store::folder::sync_dir;

/// A name that so many others have taken is no accident.
const NUMBERS_MAX: u32 = 10_000;

/// A spec in the watched folder, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Placed {
    /// As the person named it.
    pub(super) file: String,
    /// Where it was put.
    pub(super) path: PathBuf,
    /// Its name there.
    pub(super) name: String,
    /// It has no end to wait for.
    #[serde(skip)]
    pub(super) has_schedule: bool,
    /// With `--wait`: the job at its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) job: Option<JobReport>,
    /// With `--wait`: why it was rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rejected: Option<String>,
}

/// What a copy lets others do at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rights {
    file: u32,
    folder: u32,
}

impl Rights {
    /// The rights of copies in a jobs folder of the user `owner` that the user `own` makes. The owner is the daemon: if
    /// it is another user, it reads files as their group, which a folder for many gives its files, and needs to write to
    /// a folder to move it.
    const fn between(own: u32, owner: u32) -> Self {
        if own == owner { Self { file: 0o600, folder: 0o755 } } else { Self { file: 0o640, folder: 0o775 } }
    }

    fn within(jobs_dir: &Path) -> io::Result<Self> {
        Ok(Self::between(rustix::process::geteuid().as_raw(), jobs_dir.metadata()?.uid()))
    }
}

pub(super) fn run(args: &SubmitArgs, config: Option<&Path>, printer: &mut Printer<'_>) -> Done {
    let loaded = load_config(config, Keys::Ignored)?;
    let jobs_dir = loaded.config.jobs_dir();
    // Before the first is placed: a waiter that finds no daemon has then changed nothing.
    let watch = if args.wait { Some(wait::Watch::begin(&loaded.config)?) } else { None };
    let mut placed = Vec::new();
    for file in &args.files {
        let one = match place(file, &jobs_dir) {
            Ok(one) => one,
            Err(failure) => {
                // Those before it are placed: whoever asked has to know.
                if args.json {
                    printer.json(&placed)?;
                }
                return Err(failure);
            }
        };
        let line = format!("{} → {}", one.file, one.path.display());
        if args.wait {
            printer.note(&line);
        } else if !args.json {
            printer.data(&format!("{}\n", printable(&line)))?;
        }
        if one.has_schedule && !args.wait {
            printer.note(&wait::scheduled(&one));
        }
        placed.push(one);
    }
    let exit = match watch {
        Some(watch) => block_on(watch.until_final(&mut placed, printer))?,
        None => Exit::Done,
    };
    if args.json {
        printer.json(&placed)?;
    } else if args.wait {
        wait::print(&placed, &loaded.config, printer)?;
    }
    Ok(exit)
}

/// Copies one spec, and the data it names, into the jobs folder.
fn place(named: &Path, jobs_dir: &Path) -> Result<Placed, Failure> {
    let spec = SpecFile::open(named).map_err(|finding| Failure::Findings(Exit::Rejected, finding.into()))?;
    if spec.name().starts_with('.') {
        let message = format!("`{}` begins with a dot: the daemon never reads such files", named.display());
        return Err(Failure::new(Exit::Rejected, message).hint("rename it"));
    }
    let outline = data_files::outline(&spec, jobs_dir)?;
    for file in &outline.data {
        let refused = |error: io::Error| {
            let finding = Diagnostic::error(&spec.display, 0, 0, format!("data file {error}"));
            Failure::Findings(Exit::Rejected, finding.into())
        };
        file.open().map(drop).map_err(refused)?;
    }
    let can_not = |act: &str, path: &Path| {
        let text = format!("can't {act} `{}`", path.display());
        move |error: io::Error| Failure::new(Exit::StateIo, format!("{text}: {error}"))
    };
    fs::create_dir_all(jobs_dir).map_err(can_not("make the folder", jobs_dir))?;
    let copied = if outline.data.is_empty() && spec.dropped_folder.is_none() {
        copy_file(spec, jobs_dir)
    } else {
        copy_folder(spec, &outline.data, jobs_dir)
    };
    let name = copied.map_err(can_not("place a job spec in", jobs_dir))?;
    sync_dir(jobs_dir).map_err(|error| Failure::new(Exit::StateIo, error.to_string()))?;
    Ok(Placed {
        file: named.display().to_string(),
        path: jobs_dir.join(&name),
        name,
        has_schedule: outline.has_schedule,
        job: None,
        rejected: None,
    })
}

/// Answers the name that the file got.
fn copy_file(spec: SpecFile, jobs_dir: &Path) -> io::Result<String> {
    let name = spec.name().to_owned();
    let mut hidden = tempfile::Builder::new().prefix(".submit-").tempfile_in(jobs_dir)?;
    copy_into(spec.file, hidden.as_file_mut(), Rights::within(jobs_dir)?)?;
    let placed = rename_to_free_name(hidden.path(), jobs_dir, &name)?;
    // It has another name now: there is nothing left to remove at the hidden one.
    hidden.into_temp_path().keep()?;
    Ok(placed)
}

/// Answers the name that the folder got.
fn copy_folder(spec: SpecFile, data: &[DataFile], jobs_dir: &Path) -> io::Result<String> {
    let name = spec.name();
    let stem =
        name.strip_suffix(".toml").filter(|_| spec.dropped_folder.is_none()).unwrap_or(name).to_owned();
    let hidden = tempfile::Builder::new().prefix(".submit-").tempdir_in(jobs_dir)?;
    let rights = Rights::within(jobs_dir)?;
    let mut folders = vec![hidden.path().to_owned()];
    copy_into(spec.file, &mut File::create_new(hidden.path().join(FOLDER_SPEC))?, rights)?;
    for file in data {
        let target = hidden.path().join(&file.relative);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
            let below = parent.ancestors().take_while(|folder| *folder != hidden.path());
            folders.extend(below.map(Path::to_owned));
        }
        copy_into(file.open()?, &mut File::create_new(target)?, rights)?;
    }
    for folder in &folders {
        fs::set_permissions(folder, fs::Permissions::from_mode(rights.folder))?;
        File::open(folder)?.sync_all()?;
    }
    let placed = rename_to_free_name(hidden.path(), jobs_dir, &stem)?;
    // As above: nothing is left at the hidden name.
    drop(hidden.keep());
    Ok(placed)
}

/// Copies bytes and permissions, and syncs.
fn copy_into(mut from: File, to: &mut File, rights: Rights) -> io::Result<()> {
    io::copy(&mut from, to)?;
    let mode = from.metadata()?.permissions().mode() & 0o666 | rights.file;
    to.set_permissions(fs::Permissions::from_mode(mode))?;
    to.sync_all()
}

/// Gives `hidden` the name `wanted`, or that with the first number that is free.
fn rename_to_free_name(hidden: &Path, folder: &Path, wanted: &str) -> io::Result<String> {
    for number in 1..NUMBERS_MAX {
        let name = numbered(wanted, number);
        // Such as that of `inputs.toml` and its data, or of `a.tmp.toml`.
        if is_never_read(&name) {
            continue;
        }
        match rename_new(hidden, &folder.join(&name)) {
            Ok(()) => return Ok(name),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(format!("`{wanted}` and {NUMBERS_MAX} names like it are taken")))
}

/// Renames without replacing anything.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system doesn't know the flag. A link never replaces anything; a folder can't be linked,
        // but replaces an empty folder at most.
        Err(rustix::io::Errno::INVAL) if from.is_dir() => fs::rename(from, to),
        Err(rustix::io::Errno::INVAL) => fs::hard_link(from, to).and_then(|()| fs::remove_file(from)),
        renamed => Ok(renamed?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client::tests::Daemon;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn specs_are_placed_whole_under_free_names_without_a_daemon() {
        let daemon = Daemon::absent();
        let spec = daemon.folder.path().join("news.chat.jsonl");
        fs::write(&spec, "{}\n").unwrap();
        fs::set_permissions(&spec, fs::Permissions::from_mode(0o640)).unwrap();
        let file = spec.to_str().unwrap();
        let printed = daemon.batchd(&["submit", file, file]);
        assert_eq!((printed.exit, printed.err.as_str()), (Exit::Done, ""));
        assert_eq!(
            printed.out,
            "DIR/news.chat.jsonl → DIR/root/jobs/news.chat.jsonl\n\
             DIR/news.chat.jsonl → DIR/root/jobs/news-2.chat.jsonl\n"
        );
        let jobs = daemon.folder.path().join("root/jobs");
        assert_eq!(names(&jobs), ["news-2.chat.jsonl", "news.chat.jsonl"]);
        let copy = jobs.join("news.chat.jsonl");
        assert_eq!(fs::read(&copy).unwrap(), b"{}\n");
        assert_eq!(copy.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert!(spec.exists(), "a submitted file stays where it was");
    }

    #[test]
    fn daemon_that_is_another_user_may_read_the_copies_and_move_their_folders() {
        assert_eq!(Rights::between(7, 7), Rights { file: 0o600, folder: 0o755 });
        let shared = Rights::between(1000, 7);
        let folder = tempfile::tempdir().unwrap();
        for (mode, copied) in [(0o600, 0o640), (0o400, 0o640), (0o664, 0o664)] {
            let (from, to) = (folder.path().join("from"), folder.path().join("to"));
            fs::write(&from, "x").unwrap();
            fs::set_permissions(&from, fs::Permissions::from_mode(mode)).unwrap();
            copy_into(File::open(&from).unwrap(), &mut File::create_new(&to).unwrap(), shared).unwrap();
            assert_eq!(to.metadata().unwrap().mode() & 0o777, copied, "{mode:o}");
            fs::remove_file(from).unwrap();
            fs::remove_file(to).unwrap();
        }
        // Only root can try it with two users.
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let daemon = Daemon::absent();
        let jobs = daemon.folder.path().join("root/jobs");
        fs::create_dir_all(&jobs).unwrap();
        std::os::unix::fs::chown(&jobs, Some(7), Some(7)).unwrap();
        let spec = daemon.folder.path().join("a.toml");
        fs::write(&spec, "kind = \"chat\"\n[input]\nfile = \"in/a.csv\"\n").unwrap();
        fs::create_dir(daemon.folder.path().join("in")).unwrap();
        fs::write(daemon.folder.path().join("in/a.csv"), "id\n1\n").unwrap();
        assert_eq!(daemon.batchd(&["submit", spec.to_str().unwrap()]).exit, Exit::Done);
        let mode = |path: &str| jobs.join(path).metadata().unwrap().mode() & 0o777;
        assert_eq!((mode("a"), mode("a/in"), mode("a/job.toml") & 0o640), (0o775, 0o775, 0o640));
    }

    #[test]
    fn spec_takes_its_data_along_as_one_folder() {
        let daemon = Daemon::absent();
        let folder = daemon.folder.path();
        fs::create_dir_all(folder.join("in")).unwrap();
        fs::write(folder.join("in/a.csv"), "id\n1\n").unwrap();
        fs::write(folder.join("inputs.toml"), "kind = \"chat\"\n[input]\nfile = \"in/*.csv\"\n").unwrap();
        let file = folder.join("inputs.toml");
        let printed = daemon.batchd(&["submit", "--json", file.to_str().unwrap()]);
        assert_eq!((printed.exit, printed.err.as_str()), (Exit::Done, ""));
        // `inputs` itself is no job's folder.
        insta::assert_snapshot!(printed.out, @r#"
        [
          {
            "file": "DIR/inputs.toml",
            "path": "DIR/root/jobs/inputs-2",
            "name": "inputs-2"
          }
        ]
        "#);
        let jobs = folder.join("root/jobs");
        assert_eq!(names(&jobs), ["inputs-2"]);
        fs::copy(&file, folder.join("a.tmp.toml")).unwrap();
        let printed = daemon.batchd(&["submit", folder.join("a.tmp.toml").to_str().unwrap()]);
        assert_eq!(
            (printed.exit, names(&jobs)),
            (Exit::Done, vec!["a.tmp-2".to_owned(), "inputs-2".to_owned()])
        );
        assert_eq!(names(&jobs.join("inputs-2")), ["in", "job.toml"]);
        assert_eq!(fs::read(jobs.join("inputs-2/in/a.csv")).unwrap(), b"id\n1\n");
    }

    #[test]
    fn folder_that_is_a_job_is_placed_whole() {
        let daemon = Daemon::absent();
        let folder = daemon.folder.path().join("nightly");
        fs::create_dir_all(folder.join("in")).unwrap();
        fs::write(folder.join("job.toml"), "kind = \"chat\"\n").unwrap();
        fs::write(folder.join("in/a.csv"), "").unwrap();
        let printed = daemon.batchd(&["submit", folder.to_str().unwrap()]);
        assert_eq!((printed.exit, printed.err.as_str()), (Exit::Done, ""));
        assert_eq!(names(&daemon.folder.path().join("root/jobs/nightly")), ["in", "job.toml"]);
    }

    #[test]
    fn what_can_not_be_placed_leaves_nothing_behind() {
        let daemon = Daemon::absent();
        let folder = daemon.folder.path();
        fs::write(folder.join("a.jsonl"), "{}\n").unwrap();
        fs::write(folder.join(".hidden.jsonl"), "{}\n").unwrap();
        fs::write(folder.join("data.csv"), "").unwrap();
        std::os::unix::fs::symlink("a.jsonl", folder.join("link.jsonl")).unwrap();
        std::os::unix::fs::symlink("data.csv", folder.join("link.csv")).unwrap();
        fs::write(folder.join("linked.toml"), "[input]\nfile = \"link.csv\"\n").unwrap();
        let table = [
            (
                "none.jsonl",
                Exit::Rejected,
                "DIR/none.jsonl: error: can't be opened: No such file or directory (os error 2)\n",
            ),
            ("link.jsonl", Exit::Rejected, "DIR/link.jsonl: error: can't be opened: it is a symbolic link\n"),
            (
                "data.csv",
                Exit::Rejected,
                "DIR/data.csv: error: this is no job spec by its name\n  hint: specs end in `.jsonl` or `.toml`\n",
            ),
            (
                ".hidden.jsonl",
                Exit::Rejected,
                "error: `DIR/.hidden.jsonl` begins with a dot: the daemon never reads such files\n  hint: rename it\n",
            ),
            (
                "linked.toml",
                Exit::Rejected,
                "DIR/linked.toml: error: data file `DIR/link.csv`: it is a symbolic link\n",
            ),
        ];
        let mixed = folder.join("mixed");
        fs::create_dir(&mixed).unwrap();
        fs::write(mixed.join("job.toml"), "kind = 'chat'\n").unwrap();
        std::os::unix::fs::symlink("nowhere", mixed.join("rows.csv")).unwrap();
        let table = table.into_iter().chain([(
            "mixed",
            Exit::Rejected,
            "DIR/mixed: error: not read: it holds a link, a pipe or a device; regular files and folders are \
             expected\n  hint: drop regular files, or folders of them, under plain names\n",
        )]);
        for (file, exit, said) in table {
            let printed = daemon.batchd(&["submit", folder.join(file).to_str().unwrap()]);
            assert_eq!((printed.exit, printed.err.as_str()), (exit, said), "{file}");
        }
        assert!(!folder.join("root/jobs").exists());
    }

    #[test]
    fn waiting_without_a_daemon_places_nothing() {
        let daemon = Daemon::absent();
        let file = daemon.folder.path().join("a.jsonl");
        fs::write(&file, "{}\n").unwrap();
        let printed = daemon.batchd(&["submit", "--wait", file.to_str().unwrap()]);
        assert_eq!(printed.exit, Exit::Unreachable);
        assert!(!daemon.folder.path().join("root").exists());
    }
}
