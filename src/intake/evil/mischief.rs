//! What others do to the files of a watched folder while batchd is at work there.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::spec::{self, Checked, Sinks, Source};

/// What becomes of the victim of `replace`.
pub(super) const REPLACED: &str = "{\"model\":\"m\",\"input\":\"replaced\"}\n";

/// How many lines a growing file has at last.
const LINES: usize = 5;

/// Does something to the file of this path.
type Act = fn(&Path);

/// What may happen to a file between the look that found it and its claim.
pub(super) const ACTS: [(&str, Act); 9] = [
    ("remove", |victim| fs::remove_file(victim).unwrap()),
    ("rename", |victim| {
        let name = victim.to_str().unwrap().replace("-b.", "-c.");
        fs::rename(victim, name).unwrap();
    }),
    ("link", |victim| {
        put(victim, |path| symlink(path.parent().unwrap().join("../outside/secret.jsonl"), path).unwrap());
    }),
    ("pipe", |victim| {
        let mode = Mode::from_raw_mode(0o600);
        put(victim, |path| mknodat(CWD, path, FileType::Fifo, mode, 0).unwrap());
    }),
    ("empty", |victim| drop(File::create(victim).unwrap())),
    ("replace", |victim| put(victim, |path| fs::write(path, REPLACED).unwrap())),
    ("append", |victim| {
        let line = fs::read_to_string(victim).unwrap();
        let more = line.replacen("\"x\"", "\"y\"", 1);
        fs::write(victim, more + &line).unwrap();
    }),
    ("folder", |victim| {
        fs::remove_file(victim).unwrap();
        fs::create_dir(victim).unwrap();
    }),
    ("share", |victim| {
        let number = victim.file_stem().unwrap().to_str().unwrap();
        let other = victim.parent().unwrap().join("../outside").join(number);
        fs::hard_link(victim, other).unwrap();
    }),
];

/// Puts something into a file's place in one step.
fn put(victim: &Path, make: impl FnOnce(&Path)) {
    let hidden = victim.with_extension("tmp");
    make(&hidden);
    fs::rename(hidden, victim).unwrap();
}

/// What a growing file has become when it is left alone at last.
pub(super) fn grown(line: &str) -> String {
    line.repeat(LINES)
}

/// Reads a spec, after doing what its name asks for.
pub(super) fn read_amid_mischief(
    source: Source,
    settings: &spec::Settings,
    sinks: Sinks<'_>,
) -> Result<Checked, spec::Error> {
    if source.display.ends_with("-grow.jsonl") {
        let text = fs::read_to_string(format!("/proc/self/fd/{}", source.file.as_raw_fd())).unwrap();
        let line = text.split_inclusive('\n').next().unwrap();
        if text.len() < LINES * line.len() {
            // Its name is another's now, but whoever had it open still writes to it.
            let open =
                OpenOptions::new().append(true).open(format!("/proc/self/fd/{}", source.file.as_raw_fd()));
            open.unwrap().write_all(line.as_bytes()).unwrap();
        }
    }
    let act = ACTS.iter().find(|(act, _)| source.display.ends_with(&format!("-a-{act}.jsonl")));
    if let Some((_, act)) = act {
        let number = source.display.split('-').next().unwrap();
        let victim = source.folder.join(format!("{number}-b.jsonl"));
        if fs::symlink_metadata(&victim).is_ok_and(|victim| victim.is_file()) {
            act(&victim);
        }
    }
    spec::read(source, settings, sinks)
}
