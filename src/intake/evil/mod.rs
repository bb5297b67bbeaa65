//! Everything that may come to lie in a watched folder: specs, rubbish and traps, made from a seed.
//!
//! What a thing must become is known when it is made ([`Fate`]); [`Zoo::census`] looks whether it did. Things that
//! change while they are looked at do so at the worst moments that there are: [`read_amid_mischief`] stands in for
//! the reader of specs, so that it acts between a look and the claims that follow from it, and while a spec is read.

mod mischief;
mod refusals;
mod swaps;
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use self::mischief::ACTS;
use super::fixture::Root;
use super::name::safe_name;
use crate::clock::Seed;
use crate::spec::ProviderFacts;

/// Stands in every file outside of the jobs folder. It must come to lie nowhere else.
const CANARY: &str = "canary-7c1f9be2";

/// Longer than the kernel's and our own buffers.
const LONG: usize = 5 << 20;

/// What must become of a thing.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// One job, of these bytes.
    Taken(Vec<u8>),
    /// In `rejected/`, beside a report.
    Rejected,
    /// Where it was.
    Left,
    /// Somebody else took it away.
    Gone,
}

/// A root, the folders around it, and what was dropped so far.
#[derive(Debug)]
struct Zoo {
    root: Root,
    rng: Rng,
    fates: BTreeMap<OsString, Fate>,
    /// Of the last name that was given.
    number: usize,
}

/// Makes one thing.
type Make = fn(&mut Zoo);

/// What there is, with how often each comes for one of the others.
const KINDS: [(usize, Make); 15] = [
    (8, Zoo::good_file),
    (6, Zoo::good_name),
    (4, Zoo::good_folder),
    (2, Zoo::second_name),
    (6, Zoo::growing),
    (6, Zoo::meddled_with),
    (12, Zoo::bad_content),
    (4, Zoo::bad_reach),
    (4, Zoo::bad_name),
    (8, Zoo::link),
    (5, Zoo::special),
    (5, Zoo::bad_folder),
    (10, Zoo::passed_over),
    (3, Zoo::closed),
    (1, Zoo::huge),
];

impl Zoo {
    fn new(seed: u64) -> Self {
        let mut root = Root::new();
        root.settings.spec.providers = vec![ProviderFacts { name: "p".to_owned(), strict: false }];
        root.settings.spec.max_line = LONG as u64 + 1024;
        let zoo = Self { root, rng: Seed::fixed(seed).derive("zoo"), fates: BTreeMap::new(), number: 0 };
        let line = format!("{}\n", chat(CANARY));
        for folder in ["", "folder"] {
            fs::create_dir_all(zoo.outside(folder)).unwrap();
        }
        for (file, text) in [("secret.jsonl", line.as_str()), ("secret.txt", CANARY)] {
            fs::write(zoo.outside(file), text).unwrap();
        }
        for file in ["secret.toml", "folder/job.toml"] {
            fs::write(zoo.outside(file), completions(CANARY)).unwrap();
        }
        let inputs = zoo.root.settings.jobs.join("inputs");
        symlink(zoo.outside("secret.txt"), inputs.join("link.txt")).unwrap();
        symlink(zoo.outside(""), inputs.join("linked")).unwrap();
        zoo
    }

    /// Drops so many things.
    fn fill(&mut self, count: usize) {
        let all: usize = KINDS.iter().map(|(share, _)| share).sum();
        while self.fates.len() < count {
            let mut dice = self.rng.usize(..all);
            let kind = KINDS.iter().find(|(share, _)| {
                let met = dice < *share;
                dice = dice.saturating_sub(*share);
                met
            });
            let before = self.fates.len();
            kind.unwrap().1(self);
            assert!(self.fates.len() > before);
        }
    }

    /// A path that no spec may reach.
    fn outside(&self, name: &str) -> PathBuf {
        self.root.temp.path().join("outside").join(name)
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.rng.usize(..choices.len())]
    }

    /// A name that nothing had before, with this end.
    fn name(&mut self, end: &str) -> OsString {
        self.number += 1;
        OsString::from(format!("{:05}{end}", self.number))
    }

    fn place(&mut self, name: OsString, fate: Fate) -> PathBuf {
        let path = self.root.settings.jobs.join(&name);
        assert!(self.fates.insert(name, fate).is_none());
        path
    }

    fn write(&mut self, name: OsString, bytes: Vec<u8>, fate: Option<Fate>) -> PathBuf {
        let fate = fate.unwrap_or_else(|| Fate::Taken(bytes.clone()));
        let path = self.place(name, fate);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn good_file(&mut self) {
        let end = self.one_of(&[".jsonl", ".chat.jsonl", ".toml", ".v1.2.jsonl"]);
        let name = self.name(end);
        let line = chat(&format!("question {}", self.number));
        let text = match self.rng.u8(..7) {
            _ if end == ".toml" => completions("x"),
            0 => format!("\u{feff}{line}\r\n\r\n"),
            1 => line,
            2 => format!("\n  \n{line}\n"),
            3 if self.number.is_multiple_of(10) => format!("{}\n", chat(&"x".repeat(LONG))),
            _ => format!("{line}\n"),
        };
        self.write(name, text.into_bytes(), None);
    }

    fn good_name(&mut self) {
        let odd = ["ü ✓", "a 'b\" $(c) `d`; *?[e]", "con", "%s%n%2f..%2f", "..", "=1+1", "\u{3000}", "🦇"];
        let long = "x".repeat(190);
        let middle = if self.rng.bool() { long.as_str() } else { self.one_of(&odd) };
        let name = self.name(&format!("{middle}.jsonl"));
        let text = format!("{}\n", chat("x"));
        self.write(name, text.into_bytes(), None);
    }

    fn good_folder(&mut self) {
        let name = self.name("");
        let spec = "kind = 'completions'\nmodel = 'm'\n[input]\nfile = 'in/rows.txt'\n";
        let folder = self.place(name, Fate::Taken(spec.into()));
        fs::create_dir_all(folder.join("in/deep")).unwrap();
        fs::write(folder.join("in/rows.txt"), "one\ntwo\n").unwrap();
        fs::write(folder.join("job.toml"), spec).unwrap();
    }

    /// It has a name outside of the jobs folder, too.
    fn second_name(&mut self) {
        let name = self.name(".jsonl");
        let other = self.outside(&format!("other-{}", self.number));
        let path = self.write(name, format!("{}\n", chat("x")).into_bytes(), None);
        fs::hard_link(path, other).unwrap();
    }

    /// Somebody writes to it whenever it is read, five times in all.
    fn growing(&mut self) {
        let name = self.name("-grow.jsonl");
        let text = format!("{}\n", chat("x"));
        let fate = Fate::Taken(mischief::grown(&text).into_bytes());
        self.write(name, text.into_bytes(), Some(fate));
    }

    /// Two files: when the first one is read, something happens to the second one.
    fn meddled_with(&mut self) {
        let (act, _) = self.one_of(&ACTS);
        let name = self.name(&format!("-a-{act}.jsonl"));
        let text = format!("{}\n", chat("x"));
        self.write(name, text.clone().into_bytes(), None);
        let victim = OsString::from(format!("{:05}-b.jsonl", self.number));
        let fate = match act {
            "remove" | "rename" => Fate::Gone,
            "link" | "pipe" | "empty" => Fate::Rejected,
            "folder" => Fate::Left,
            "replace" => Fate::Taken(mischief::REPLACED.into()),
            "append" => Fate::Taken(format!("{text}{text}").replacen("\"x\"", "\"y\"", 1).into_bytes()),
            _ => Fate::Taken(text.clone().into_bytes()),
        };
        if act == "rename" {
            let renamed = OsString::from(format!("{:05}-c.jsonl", self.number));
            self.fates.insert(renamed, Fate::Taken(text.clone().into_bytes()));
        }
        self.write(victim, text.into_bytes(), Some(fate));
    }

    fn bad_content(&mut self) {
        let end = self.one_of(&[".jsonl", ".jsonl", ".toml"]);
        let name = self.name(end);
        let line = chat("x");
        let bytes = match self.rng.u8(..14) {
            0 => Vec::new(),
            1 => b"\n \n\r\n".to_vec(),
            2 => vec![0; 70_000],
            3 => format!("{line}\n\0\n").into_bytes(),
            4 => std::iter::repeat_with(|| self.rng.u8(..)).take(5000).collect(),
            5 => b"\xff\xfe{\0}\0".to_vec(),
            6 => "[".repeat(200_000).into_bytes(),
            7 => line.replacen("\"x\"", &"{\"a\":".repeat(100_000), 1).into_bytes(),
            8 => "a=".repeat(50_000).into_bytes(),
            9 if self.number.is_multiple_of(5) => vec![b'x'; LONG],
            10 => format!("{line}\n{line}\n{{\"model\":\"m\"").into_bytes(),
            11 => format!("[{line}]").into_bytes(),
            12 => "\u{1b}[31m\u{202e}kind\n".to_owned().into_bytes(),
            _ => b"\xc3\x28 = [[[[[[[[".to_vec(),
        };
        self.write(name, bytes, Some(Fate::Rejected));
    }

    /// A good spec, but for what it would have read.
    fn bad_reach(&mut self) {
        let secret = self.outside("secret.txt").display().to_string();
        let paths = [
            "../outside/secret.txt",
            "inputs/../../outside/secret.txt",
            "inputs/link.txt",
            "inputs/linked/secret.txt",
            "inputs/linked/*.txt",
            "inputs/**/secret.txt",
            "/proc/self/environ",
            "~/.ssh/id",
            &secret,
        ];
        let spec = format!("kind = 'completions'\nmodel = 'm'\n[input]\nfile = '{}'\n", self.one_of(&paths));
        let name = self.name(".toml");
        self.write(name, spec.into_bytes(), Some(Fate::Rejected));
    }

    fn bad_name(&mut self) {
        let parts: [&[u8]; 8] =
            [b"\xff", b"\n", b"\x1b[2J", "\u{202e}".as_bytes(), "\u{2028}".as_bytes(), b"\t", b"\\", b"\x7f"];
        let mut name = self.name("").as_bytes().to_vec();
        match self.rng.u8(..4) {
            0 => name.insert(0, b'-'),
            1 => name.extend([b'y'; 230]),
            _ => name.extend(self.one_of(&parts)),
        }
        name.extend(b".jsonl");
        let text = format!("{}\n", chat("x"));
        self.write(OsStr::from_bytes(&name).to_owned(), text.into_bytes(), Some(Fate::Rejected));
    }

    fn link(&mut self) {
        let end = self.one_of(&[".jsonl", ".toml", "", ".txt"]);
        let name = self.name(end);
        let fate = if end.ends_with('l') { Fate::Rejected } else { Fate::Left };
        let targets = ["secret.jsonl", "secret.toml", "folder", "nothing", ""].map(|name| self.outside(name));
        let here = PathBuf::from(&name);
        let more = [here, "inputs".into(), "/dev/zero".into(), "/proc/self/fd".into(), "..".into()];
        let at = self.rng.usize(..targets.len() + more.len());
        let target = targets.iter().chain(&more).nth(at).unwrap().clone();
        let path = self.place(name, fate);
        symlink(target, path).unwrap();
    }

    fn special(&mut self) {
        let end = self.one_of(&[".jsonl", ".toml", ".pipe"]);
        let name = self.name(end);
        let fate = if end.ends_with('l') { Fate::Rejected } else { Fate::Left };
        let path = self.place(name, fate);
        let (kind, device) = match self.rng.u8(..4) {
            0 => return drop(UnixListener::bind(path).unwrap()),
            1 => (FileType::CharacterDevice, makedev(1, 5)),
            2 => (FileType::BlockDevice, makedev(7, 200)),
            _ => (FileType::Fifo, 0),
        };
        let mode = Mode::from_raw_mode(0o666);
        // Who may not make devices makes pipes.
        let made = mknodat(CWD, &path, kind, mode, device);
        made.or_else(|_| mknodat(CWD, &path, FileType::Fifo, mode, 0)).unwrap();
    }

    fn bad_folder(&mut self) {
        let name = self.name("");
        let outside = [self.outside("secret.txt"), self.outside("secret.toml"), self.outside("folder")];
        let folder = self.place(name, Fate::Rejected);
        fs::create_dir(&folder).unwrap();
        let spec = folder.join("job.toml");
        let dice = self.rng.u8(..8);
        if dice > 2 {
            fs::write(&spec, completions("x")).unwrap();
        }
        match dice {
            0 => symlink(&outside[1], spec).unwrap(),
            1 => fs::create_dir(spec).unwrap(),
            2 => mknodat(CWD, &spec, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap(),
            3 => symlink(&outside[0], folder.join("rows.txt")).unwrap(),
            4 => symlink(&outside[2], folder.join("in")).unwrap(),
            5 => fs::create_dir_all(folder.join("d/".repeat(20))).unwrap(),
            6 => fs::write(spec, "kind = 'completions'\nmodel = 'm'\n[input]\nfile = 'none.txt'\n").unwrap(),
            _ => drop(UnixListener::bind(folder.join("socket")).unwrap()),
        }
    }

    fn passed_over(&mut self) {
        let ends =
            ["", ".txt", ".json", ".JSONL", ".jsonl.gz", ".toml~", ".jsonl.tmp", ".jsonl.part", ".swp", "#"];
        let end = self.one_of(&ends);
        let mut name = self.name(end);
        if self.rng.u8(..4) == 0 {
            name = OsString::from(format!(".{}.jsonl", name.display()));
        }
        if self.rng.bool() {
            self.write(name, format!("{}\n", chat("x")).into_bytes(), Some(Fate::Left));
            return;
        }
        let folder = self.place(name.clone(), Fate::Left);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("job.jsonl"), chat("x")).unwrap();
        // Only a name that is never looked into hides a spec.
        if name.as_bytes().starts_with(b".") || end.ends_with(['~', 'p', '#']) {
            fs::write(folder.join("job.toml"), completions("x")).unwrap();
        }
    }

    /// Nobody may read it.
    fn closed(&mut self) {
        let shut = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
        if self.rng.bool() {
            let name = self.name(".jsonl");
            let path = self.write(name, format!("{}\n", chat("x")).into_bytes(), Some(Fate::Rejected));
            return shut(&path);
        }
        let name = self.name("");
        let folder = self.place(name, Fate::Left);
        fs::create_dir_all(folder.join("in")).unwrap();
        fs::write(folder.join("job.toml"), completions("x")).unwrap();
        let part = self.one_of(&["", "in"]);
        shut(&folder.join(part));
    }

    fn huge(&mut self) {
        let end = self.one_of(&[".jsonl", ".toml"]);
        let name = self.name(end);
        let path = self.place(name, Fate::Rejected);
        File::create(path).unwrap().set_len(1 << 40).unwrap();
    }
}

/// A request, one a line.
fn chat(content: &str) -> String {
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{content}"}}]}}"#)
}

/// A TOML spec of one request.
fn completions(prompt: &str) -> String {
    format!("kind = 'completions'\nmodel = 'm'\n[[requests]]\nprompt = '{prompt}'\n")
}
