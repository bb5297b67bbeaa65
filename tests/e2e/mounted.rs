//! A small file system of its own under a world's root. Needs root, to mount.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::world::World;

/// Shuts the file system of the folder down when it is told to, without flushing its log: `EXT4_IOC_SHUTDOWN` with
/// `EXT4_GOING_FLAGS_NOLOGFLUSH`. It has no command of its own, and nothing here may be unsafe.
const CUTTER: &str = r#"
import fcntl, os, struct, sys
folder = os.open(sys.argv[1], os.O_RDONLY)
print("ready", flush=True)
if sys.stdin.readline():
    fcntl.ioctl(folder, 0x8004587d, struct.pack("I", 2))
"#;

/// Unmounted when it is dropped. The world has to live longer.
pub(crate) struct Mounted {
    root: PathBuf,
    /// None if it lies in memory.
    image: Option<PathBuf>,
}

impl Mounted {
    /// Mounts a file system of so many MiB. None, and a word about it, where nothing can be mounted.
    pub(crate) fn new(world: &World, kind: &str, size: u64) -> Option<Self> {
        let root = world.path("root");
        let mut image = None;
        if kind == "ext4" {
            let path = world.path("image");
            File::create(&path).unwrap().set_len(size << 20).unwrap();
            if !succeeds(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&path)) {
                eprintln!("skipped: no ext4 can be made here");
                return None;
            }
            image = Some(path);
        }
        let mut mount = Command::new("mount");
        match &image {
            Some(image) => mount.args(["-t", kind, "-o", "loop"]).arg(image),
            None => mount.args(["-t", kind, "-o", &format!("size={size}m"), kind]),
        };
        if !succeeds(mount.arg(&root)) {
            eprintln!("skipped: a {kind} can't be mounted here; are you root?");
            return None;
        }
        let mounted = Self { root, image };
        fs::create_dir_all(world.jobs_dir().join("inputs")).unwrap();
        Some(mounted)
    }

    /// Who will cut its power. None, and a word about it, where nobody can.
    pub(crate) fn cutter(&self) -> Option<Cutter> {
        let mut python = Command::new("python3");
        python.args(["-c", CUTTER]).arg(&self.root).stdin(Stdio::piped()).stdout(Stdio::piped());
        let Ok(mut process) = python.spawn() else {
            eprintln!("skipped: there is no python3 to cut the power with");
            return None;
        };
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Some(Cutter { process })
    }

    /// Brings it back after a power cut, as a boot would. Nobody may use it any more.
    pub(crate) fn mount_again(&self) {
        let image = self.image.as_ref().expect("memory does not survive a power cut");
        assert!(succeeds(Command::new("umount").arg(&self.root)), "somebody uses what has no power");
        let check = Command::new("e2fsck").arg("-p").arg(image).output().unwrap();
        assert!(matches!(check.status.code(), Some(0 | 1)), "{check:?}");
        let mut mount = Command::new("mount");
        assert!(succeeds(mount.args(["-t", "ext4", "-o", "loop"]).arg(image).arg(&self.root)));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !succeeds(Command::new("umount").arg(&self.root)) {
            // The daemon of a test that failed may still be there.
            succeeds(Command::new("umount").arg("-l").arg(&self.root));
        }
    }
}

/// Stands ready to cut the power of one file system.
pub(crate) struct Cutter {
    process: Child,
}

impl Cutter {
    /// From now on nothing that was not synced is there.
    pub(crate) fn cut(mut self) {
        self.process.stdin.take().unwrap().write_all(b"now\n").unwrap();
        assert!(self.process.wait().unwrap().success(), "the file system was not shut down");
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        // It ends when nobody can tell it anything any more; until then nothing can be unmounted.
        drop(self.process.stdin.take());
        drop(self.process.wait());
    }
}

pub(crate) fn succeeds(command: &mut Command) -> bool {
    command.status().is_ok_and(|status| status.success())
}
