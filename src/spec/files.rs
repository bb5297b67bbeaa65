//! Opens the data files that a spec names, and nothing else.
//!
//! # Invariants
//!
//! - What is opened lies beneath the spec's folder or one of `input_dirs`. The kernel resolves every path
//!   (`openat2`, beneath, without links), so that nobody can swap a link in between check and use.
//! - Only regular files are opened for reading: what a name stands for is looked at first through a handle
//!   that can't read (`O_PATH`), so that no pipe or device notices.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::domain::Timestamp;
use crate::reading::problem::shown;

/// A glob that matches more files is refused.
const MATCHES_MAX: usize = 10_000;
/// A glob looks at no more directory entries.
const ENTRIES_MAX: usize = 1_000_000;
/// `**` goes no deeper.
const DEPTH_MAX: usize = 32;
/// `openat2` asks to be called again when something is renamed while it resolves a path.
const TRIES_MAX: usize = 64;

const GLOB: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// The folders that data files may lie in.
#[derive(Debug)]
pub(super) struct Files {
    /// The spec's folder first.
    roots: Vec<Root>,
    /// `openat2` is known to this kernel and not forbidden.
    openat2: bool,
}

#[derive(Debug)]
struct Root {
    path: PathBuf,
    /// None: the folder can't be opened, and so nothing lies in it.
    handle: Option<OwnedFd>,
    /// Absolute paths may name what lies in it.
    absolute: bool,
}

/// A data file that was found: open it with [`Files::open`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// As it stands in messages.
    pub(super) display: String,
    root: usize,
    /// Below the root.
    path: String,
}

/// See [`Files::written`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    size: i64,
    /// Since the epoch.
    nanos: i128,
    pub(super) at: Timestamp,
}

/// Why a path is not opened: for the user, without a word of what lies behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

fn refused(message: impl Into<String>, hint: &str) -> Refused {
    Refused { message: message.into(), hint: Some(hint.to_owned()).filter(|hint| !hint.is_empty()) }
}

const ALLOWED: &str =
    "data files lie beside the spec, below it, or below one of `[intake] input_dirs` of the config";

impl Files {
    pub(super) fn new(folder: &Path, input_dirs: &[PathBuf]) -> Self {
        let root = |path: &Path, absolute| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            let handle = rustix::fs::open(path, flags, Mode::empty()).ok();
            Root { path: path.to_owned(), handle, absolute }
        };
        let dirs = input_dirs.iter().map(|dir| root(dir, true));
        Self { roots: std::iter::once(root(folder, false)).chain(dirs).collect(), openat2: true }
    }

    /// The files that `path` names, sorted; more than one only if it is a glob. At least one.
    pub(super) fn find(&self, path: &str) -> Result<Vec<Found>, Refused> {
        let candidates = self.candidates(path)?;
        let is_glob = path.contains(['*', '?', '[']);
        for (number, below) in &candidates {
            let found = match self.look(*number, below) {
                // Also of a file whose name looks like a glob: `report [final].csv`.
                Ok(()) => vec![below.clone()],
                Err(_) if is_glob => self.glob(*number, below)?,
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(errno) => return Err(describe(path, errno)),
            };
            if !found.is_empty() {
                let stem = path.strip_suffix(below.as_str()).unwrap_or_default();
                let named = |path: String| Found { display: format!("{stem}{path}"), root: *number, path };
                return Ok(found.into_iter().map(named).collect());
            }
        }
        if is_glob {
            return Err(refused(format!("no file matches `{path}`"), ALLOWED));
        }
        Err(refused(format!("there is no file `{path}`"), ALLOWED))
    }

    /// Whether a file could be found by `path`: what can be said without a look.
    pub(super) fn allows(&self, path: &str) -> Result<(), Refused> {
        self.candidates(path).map(drop)
    }

    /// Opens a found file for reading.
    pub(super) fn open(&self, found: &Found) -> Result<File, Refused> {
        self.look(found.root, &found.path).map_err(|errno| describe(&found.display, errno))?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = self.beneath(found.root, &found.path, flags);
        let handle = opened.map_err(|errno| describe(&found.display, errno))?;
        // What was looked at may have been replaced since: the handle decides.
        regular(&handle).map_err(|errno| describe(&found.display, errno))?;
        Ok(File::from(handle))
    }

    /// The roots to look in, each with the path below it.
    fn candidates(&self, path: &str) -> Result<Vec<(usize, String)>, Refused> {
        if path.is_empty() {
            return Err(refused("the path is empty", ALLOWED));
        }
        if path.contains(|c: char| c.is_control()) {
            return Err(refused("the path holds a control character", ""));
        }
        let steps = |path: &Path| -> Option<String> {
            let steps = path.to_str()?.split('/').filter(|step| !step.is_empty() && *step != ".");
            Some(steps.collect::<Vec<_>>().join("/")).filter(|path| !path.is_empty())
        };
        if path.split('/').any(|step| step == "..") {
            return Err(refused(format!("`{path}` leads out of its folder by `..`"), ALLOWED));
        }
        let roots = self.roots.iter().enumerate();
        let candidates: Vec<_> = if path.starts_with('/') {
            let below = |(number, root): (usize, &Root)| {
                let rest = Path::new(path).strip_prefix(&root.path).ok().filter(|_| root.absolute)?;
                Some((number, steps(rest)?))
            };
            roots.filter_map(below).collect()
        } else {
            roots.filter_map(|(number, _)| Some((number, steps(Path::new(path))?))).collect()
        };
        if candidates.is_empty() {
            return Err(refused(format!("`{path}` is not allowed"), ALLOWED));
        }
        Ok(candidates)
    }

    /// When a found file was last written, and its size then: when they change, some of its bytes may be missed.
    pub(super) fn written(&self, found: &Found) -> Option<Written> {
        let handle = self.beneath(found.root, &found.path, OFlags::PATH).ok()?;
        let stat = rustix::fs::fstat(&handle).ok()?;
        let nanos = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
        let millis = u64::try_from(nanos.div_euclid(1_000_000)).unwrap_or(0);
        Some(Written { size: stat.st_size, nanos, at: Timestamp::from_millis(millis) })
    }

    /// Whether `path` is a regular file, without opening it for reading.
    fn look(&self, root: usize, path: &str) -> Result<(), Errno> {
        regular(&self.beneath(root, path, OFlags::PATH)?)
    }

    /// Opens what lies beneath a root, through no link.
    fn beneath(&self, root: usize, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let root = self.roots.get(root).and_then(|root| root.handle.as_ref()).ok_or(Errno::NOENT)?;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if self.openat2 {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            let mut result = Err(Errno::AGAIN);
            for _ in 0..TRIES_MAX {
                result = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve);
                if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
                    break;
                }
            }
            // Old kernels do not know it, and filters of containers answer as if it were forbidden.
            if !matches!(result, Err(Errno::NOSYS | Errno::PERM)) {
                return result;
            }
        }
        step_by_step(root.as_fd(), path, flags)
    }

    /// The files beneath a root that match a pattern, sorted.
    fn glob(&self, root: usize, pattern: &str) -> Result<Vec<String>, Refused> {
        let bad =
            |_| refused(format!("`{pattern}` is no valid glob"), "`*`, `?`, `[abc]` and `**` have a meaning");
        let steps: Vec<Pattern> =
            pattern.split('/').map(Pattern::new).collect::<Result<_, _>>().map_err(bad)?;
        let mut walk = Walk { files: self, root, pattern, entries: 0, found: BTreeSet::new() };
        walk.step("", &steps, 0)?;
        Ok(walk.found.into_iter().collect())
    }
}

/// Looks for what matches a glob, one folder handle at a time.
struct Walk<'f> {
    files: &'f Files,
    root: usize,
    pattern: &'f str,
    entries: usize,
    found: BTreeSet<String>,
}

struct Entry {
    name: String,
    is_folder: bool,
    /// It can't be named in a report or a spec.
    is_odd: bool,
}

impl Walk<'_> {
    /// Goes on with `steps` in `folder` (below the root; empty = the root itself).
    fn step(&mut self, folder: &str, steps: &[Pattern], depth: usize) -> Result<(), Refused> {
        let Some((step, rest)) = steps.split_first() else { return Ok(()) };
        if depth > DEPTH_MAX {
            return Ok(());
        }
        let anywhere = step.as_str() == "**";
        if anywhere {
            self.step(folder, rest, depth)?;
        }
        for Entry { name, is_folder, is_odd } in self.names(folder)? {
            if is_odd && (anywhere || step.matches_with(&name, GLOB)) {
                let message = format!("`{}` meets the name {}", self.pattern, shown(&name));
                return Err(refused(message, "a name must be UTF-8 without control characters: rename it"));
            }
            let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            if anywhere {
                if is_folder && !name.starts_with('.') {
                    self.step(&path, steps, depth + 1)?;
                }
            } else if step.matches_with(&name, GLOB) {
                if rest.is_empty() && !is_folder {
                    self.found.insert(path);
                } else if is_folder {
                    self.step(&path, rest, depth + 1)?;
                }
            }
            if self.found.len() > MATCHES_MAX {
                let message = format!("`{}` matches more than {MATCHES_MAX} files", self.pattern);
                return Err(refused(message, "name fewer, or join them"));
            }
        }
        Ok(())
    }

    /// The entries of a folder that is no link.
    fn names(&mut self, folder: &str) -> Result<Vec<Entry>, Refused> {
        let path = if folder.is_empty() { "." } else { folder };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let handle = match self.files.beneath(self.root, path, flags) {
            Ok(handle) => handle,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Vec::new()),
            Err(errno) => return Err(describe(path, errno)),
        };
        let entries = Dir::read_from(&handle).map_err(|errno| describe(path, errno))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|errno| describe(path, errno))?;
            self.entries += 1;
            if self.entries > ENTRIES_MAX {
                let message = format!("`{}` looks through more than {ENTRIES_MAX} names", self.pattern);
                return Err(refused(message, "begin it with a folder of its own"));
            }
            let name = entry.file_name().to_string_lossy();
            let is_odd = entry.file_name().to_str().is_err() || name.contains(|c: char| c.is_control());
            if name == "." || name == ".." {
                continue;
            }
            let mut kind = entry.file_type();
            if kind == FileType::Unknown {
                let stat =
                    rustix::fs::statat(&handle, entry.file_name(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
                kind = stat.map_or(kind, |stat| FileType::from_raw_mode(stat.st_mode));
            }
            names.push(Entry { name: name.into_owned(), is_folder: kind == FileType::Directory, is_odd });
        }
        Ok(names)
    }
}

/// The fallback for [`openat2`](rustix::fs::openat2): `path` has no `..`, and no step may be a link.
fn step_by_step(root: rustix::fd::BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let (folders, last) = path.rsplit_once('/').unwrap_or(("", path));
    let through = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut folder: Option<OwnedFd> = None;
    for step in folders.split('/').filter(|step| !step.is_empty()) {
        let above = folder.as_ref().map_or(root, AsFd::as_fd);
        let next = rustix::fs::openat(above, step, through, Mode::empty());
        folder = Some(next.map_err(|errno| link_or(above, step, errno))?);
    }
    let above = folder.as_ref().map_or(root, AsFd::as_fd);
    rustix::fs::openat(above, last, flags, Mode::empty()).map_err(|errno| link_or(above, last, errno))
}

/// A link in place of a folder is told as `ENOTDIR`: says `ELOOP`, as `openat2` does.
fn link_or(above: rustix::fd::BorrowedFd<'_>, step: &str, errno: Errno) -> Errno {
    let stat = rustix::fs::statat(above, step, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
    let is_link = stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
    if is_link { Errno::LOOP } else { errno }
}

/// Refuses what is no regular file; `EISDIR`, `ELOOP` and `ENXIO` say what it is instead.
fn regular(handle: &OwnedFd) -> Result<(), Errno> {
    match FileType::from_raw_mode(rustix::fs::fstat(handle)?.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Errno::ISDIR),
        FileType::Symlink => Err(Errno::LOOP),
        FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => Err(Errno::NXIO),
    }
}

fn describe(path: &str, errno: Errno) -> Refused {
    match errno {
        Errno::LOOP => {
            refused(format!("`{path}` is or leads over a symbolic link"), "put the file itself there")
        }
        Errno::XDEV => refused(format!("`{path}` leads out of its folder"), ALLOWED),
        Errno::ISDIR => {
            refused(format!("`{path}` is a folder, expected a file"), "name its files: `folder/*.jsonl`")
        }
        Errno::NXIO => refused(format!("`{path}` is no regular file"), "put a file there"),
        Errno::NOENT | Errno::NOTDIR => refused(format!("there is no file `{path}`"), ALLOWED),
        Errno::ACCESS | Errno::PERM => {
            refused(format!("`{path}` may not be read by batchd"), "change its owner or mode")
        }
        other => {
            let error = std::io::Error::from(other);
            refused(format!("`{path}` can't be opened: {error}"), "")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;
    use std::os::unix::fs::symlink;

    use super::*;

    const SECRET: &str = "root:x:0:0 secret";

    /// `jobs` with data and every trap in it, `inputs` beside it, and a secret outside of both.
    struct House {
        dir: tempfile::TempDir,
    }

    impl House {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = |name: &str| dir.path().join(name);
            for folder in ["jobs/inputs/deep", "inputs/a", "outside"] {
                fs::create_dir_all(path(folder)).unwrap();
            }
            fs::write(path("outside/secret.txt"), SECRET).unwrap();
            for file in ["jobs/inputs/b.txt", "jobs/inputs/a.txt", "jobs/inputs/deep/c.txt", "jobs/top.txt"] {
                fs::write(path(file), file).unwrap();
            }
            fs::write(path("jobs/inputs/.hidden.txt"), "hidden").unwrap();
            fs::write(path("inputs/a/shared.txt"), "shared").unwrap();
            fs::write(path("inputs/top.txt"), "the other top").unwrap();
            symlink(path("outside/secret.txt"), path("jobs/link.txt")).unwrap();
            symlink(path("outside"), path("jobs/linked")).unwrap();
            symlink("inputs/a.txt", path("jobs/inner-link.txt")).unwrap();
            symlink("/proc/self/root", path("jobs/magic")).unwrap();
            rustix::fs::mknodat(
                rustix::fs::CWD,
                path("jobs/pipe.txt"),
                FileType::Fifo,
                Mode::from_raw_mode(0o600),
                0,
            )
            .unwrap();
            let _socket = std::os::unix::net::UnixListener::bind(path("jobs/socket.txt")).unwrap();
            Self { dir }
        }

        fn files(&self, openat2: bool) -> Files {
            let mut files = Files::new(&self.dir.path().join("jobs"), &[self.dir.path().join("inputs")]);
            files.openat2 = openat2;
            files
        }

        fn read(&self, openat2: bool, path: &str) -> Result<String, Refused> {
            let files = self.files(openat2);
            let mut text = String::new();
            for found in files.find(path)? {
                files.open(&found)?.read_to_string(&mut text).unwrap();
                text.push('|');
            }
            Ok(text)
        }
    }

    #[test]
    fn evil_paths_are_refused_and_nothing_of_what_they_name_is_told() {
        let house = House::new();
        let outside = house.dir.path().join("outside/secret.txt").display().to_string();
        let jobs = house.dir.path().join("jobs/top.txt").display().to_string();
        let up_again = format!("{}/../outside/secret.txt", house.dir.path().join("inputs").display());
        let paths = [
            "",
            ".",
            "/",
            "./",
            "..",
            "../outside/secret.txt",
            "inputs/../../outside/secret.txt",
            "a/../../outside/secret.txt",
            "inputs/../top.txt",
            "link.txt",
            "linked/secret.txt",
            "linked/*",
            "linked/*.txt",
            "*/secret.txt",
            "inner-link.txt",
            "magic/etc/passwd",
            "pipe.txt",
            "socket.txt",
            "inputs",
            "inputs/",
            "inputs/a.txt/",
            "inputs/a.txt/x",
            "nothing.txt",
            "nothing*.txt",
            "[",
            "a\0b",
            "a\nb",
            "/etc/passwd",
            "/dev/zero",
            "/proc/self/environ",
            "/dev/stdin",
            "~/.ssh/id_rsa",
            "$HOME/.bashrc",
            "%2e%2e/outside/secret.txt",
            "..\\outside\\secret.txt",
            "link*",
            "pipe*",
            &outside,
            &jobs,
            &up_again,
        ];
        for openat2 in [true, false] {
            for path in paths {
                // A trailing slash names the same file: only that is let through.
                if path == "inputs/a.txt/" {
                    continue;
                }
                let refused = house.read(openat2, path).expect_err(path);
                let told = format!("{refused:?}");
                assert!(!told.contains("root:"), "{path}: {told}");
            }
        }
    }

    #[test]
    fn the_folder_comes_before_the_input_dirs() {
        let house = House::new();
        let absolute = house.dir.path().join("inputs/a/shared.txt").display().to_string();
        for openat2 in [true, false] {
            let read = |path: &str| house.read(openat2, path).unwrap();
            assert_eq!(read("top.txt"), "jobs/top.txt|");
            assert_eq!(read("./inputs//a.txt"), "jobs/inputs/a.txt|");
            assert_eq!(read("a/shared.txt"), "shared|");
            assert_eq!(read(&absolute), "shared|");
        }
    }

    #[test]
    fn globs_are_sorted_and_follow_no_link() {
        let house = House::new();
        for openat2 in [true, false] {
            let find = |path: &str| -> Vec<String> {
                let found = house.files(openat2).find(path).unwrap();
                found.into_iter().map(|found| found.display).collect()
            };
            assert_eq!(find("inputs/*.txt"), ["inputs/a.txt", "inputs/b.txt"]);
            assert_eq!(find("inputs/[ab].txt"), ["inputs/a.txt", "inputs/b.txt"]);
            assert_eq!(find("**/c.txt"), ["inputs/deep/c.txt"]);
            assert_eq!(find("inputs/**/*.txt"), ["inputs/a.txt", "inputs/b.txt", "inputs/deep/c.txt"]);
            assert_eq!(find("*/shared.txt"), ["a/shared.txt"]);
            let absolute = format!("{}/a/*.txt", house.dir.path().join("inputs").display());
            assert_eq!(find(&absolute), [absolute.replace('*', "shared")]);
        }
    }

    #[test]
    fn a_glob_that_meets_a_name_which_is_no_text_is_refused() {
        use std::os::unix::ffi::OsStrExt as _;
        for odd in [&b"x\xff.txt"[..], b"x\n.txt"] {
            let house = House::new();
            fs::write(house.dir.path().join("jobs").join(std::ffi::OsStr::from_bytes(odd)), "x").unwrap();
            assert!(house.read(true, "x*.txt").unwrap_err().message.contains("meets the name"));
            assert!(house.read(true, "top*.txt").is_ok());
        }
    }

    #[test]
    fn a_name_that_looks_like_a_glob_is_found_first() {
        let house = House::new();
        fs::write(house.dir.path().join("jobs/report [final].csv"), "x").unwrap();
        assert_eq!(house.read(true, "report [final].csv").unwrap(), "x|");
    }

    #[test]
    fn a_file_swapped_for_a_link_is_not_followed() {
        let house = House::new();
        let jobs = house.dir.path().join("jobs");
        for openat2 in [true, false] {
            let files = house.files(openat2);
            fs::write(jobs.join("swap.txt"), "mine").unwrap();
            let found = files.find("swap.txt").unwrap().remove(0);
            fs::remove_file(jobs.join("swap.txt")).unwrap();
            symlink("../outside/secret.txt", jobs.join("swap.txt")).unwrap();
            assert!(files.open(&found).is_err());
            fs::remove_file(jobs.join("swap.txt")).unwrap();
        }
    }
}
