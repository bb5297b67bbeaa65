//! Guards the shape of the house: which module may use which, how long a file may be, how it begins.
//!
//! A module uses only modules that stand above it in [`ORDER`]. Paths that begin with `crate::` are read from
//! the sources, without comments, strings and unit tests (tests may reach where they need to).

use std::fs;
use std::path::{Path, PathBuf};

/// Every module of `src/`, from the words that all speak to the shell that uses all.
const ORDER: [&str; 26] = [
    "domain",
    "diag",
    "clock",
    "telemetry",
    "metrics",
    "bell",
    "pulse",
    "fault",
    "disk",
    "reading",
    "training",
    "schedule",
    // Edges: one module per outside thing.
    "config",
    "spec",
    "store",
    "provider",
    "control",
    // Workers: one task each, meeting only in the store or over a handle.
    "intake",
    "dispatch",
    "output",
    "upkeep",
    // Assembly.
    "http",
    "simulate",
    "daemon",
    // Shell.
    "cli",
    // No part of the program: what the fuzzers hold the rest to.
    "fuzzing",
];

/// Files that bind the modules together.
const ASSEMBLED: [&str; 2] = ["main", "lib"];

/// Uses against the order that are meant: module, what it uses, why.
const EXCEPTIONS: [(&str, &str, &str); 0] = [];

/// Lines of a file without its unit tests: what a reader can hold in mind.
const LINES_MAX: usize = 400;

/// The modules that write what must survive: through `disk` alone.
const WRITERS: [&str; 4] = ["store", "control", "intake", "output"];

/// What changes files or makes them durable without `disk`.
const AROUND_THE_SEAM: [&str; 16] = [
    "fs::write(",
    "fs::rename(",
    "fs::remove_",
    "fs::hard_link(",
    "fs::copy(",
    "File::create_new(",
    "fs::File::create",
    "OpenOptions",
    "DirBuilder",
    "set_len(",
    "renameat(",
    "renameat_with(",
    "unlinkat(",
    "mkdirat(",
    "fs::fsync(",
    "fallocate(",
];

/// Files that may: `intake::dir` and `control::again` hand their calls to `disk`, the lock holds nothing of value.
const AT_THE_SEAM: [&str; 3] = ["intake/dir.rs", "control/again.rs", "store/lock.rs"];

/// One source file, as the checks see it.
struct Source {
    /// Below `src/`, for messages.
    path: PathBuf,
    text: String,
}

impl Source {
    /// The top-level module that the file belongs to.
    fn module(&self) -> String {
        let first = self.path.iter().next().expect("a file has a name");
        Path::new(first).file_stem().expect("a file has a name").to_string_lossy().into_owned()
    }

    /// Lines (from 1) before the unit tests, which stand at the end of a file.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let heads = ["mod tests", "pub(super) mod tests", "pub(crate) mod tests"];
        let heads = heads.map(|head| format!("#[cfg(test)]\n{head}"));
        let head = heads.iter().find_map(|head| self.text.find(head.as_str()));
        // A file, or a folder, of its own for the tests of a module is tests throughout.
        let is_tests = self.path.ends_with("tests.rs") || self.path.iter().any(|name| name == "tests");
        let tests = if is_tests { 0 } else { head.unwrap_or(self.text.len()) };
        self.text.get(..tests).unwrap_or_default().lines().enumerate().map(|(at, line)| (at + 1, line))
    }

    /// Every module that a `crate::` path names, with its line.
    fn uses(&self) -> Vec<(usize, String)> {
        let mut uses = Vec::new();
        // A group (`use crate::{diag, store::…}`) may go over many lines: what it holds is gathered first.
        let mut group: Option<(usize, String)> = None;
        for (number, line) in self.lines() {
            let code = code_of(line);
            if let Some((_, held)) = &mut group {
                held.push_str(&code);
            } else {
                for (at, path) in code.match_indices("crate::") {
                    let (before, rest) = code.split_at(at);
                    let rest = rest.trim_start_matches(path);
                    if before.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                        continue;
                    }
                    if rest.starts_with('{') {
                        group = Some((number, rest.to_owned()));
                        break;
                    }
                    uses.extend(module_of(rest).map(|module| (number, module)));
                }
            }
            if let Some((number, held)) = group.take() {
                match heads_of_group(&held) {
                    Some(heads) => uses.extend(heads.into_iter().map(|module| (number, module))),
                    None => group = Some((number, held)),
                }
            }
        }
        uses
    }
}

/// The line without its comment and without what its strings hold.
fn code_of(line: &str) -> String {
    let mut code = String::new();
    let mut in_string = false;
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' if in_string => {
                rest.next();
            }
            '"' => in_string = !in_string,
            '\'' if !in_string && rest.peek() == Some(&'"') => {
                rest.next();
            }
            '/' if !in_string && rest.peek() == Some(&'/') => break,
            _ if in_string => {}
            c => code.push(c),
        }
    }
    code
}

/// The first segment of a path, if it is a module (items of the crate's root are not in lower case).
fn module_of(path: &str) -> Option<String> {
    let name: String = path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    name.starts_with(|c: char| c.is_lowercase()).then_some(name)
}

/// The modules that `{diag, store::{self, Lease}}` names; none while its last brace has not come.
fn heads_of_group(held: &str) -> Option<Vec<String>> {
    let mut depth = 0;
    let mut heads = Vec::new();
    let mut head = String::new();
    for c in held.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && c == ',') {
            heads.extend(module_of(head.trim()));
            head.clear();
        } else if c != '{' || depth > 1 {
            head.push(c);
        }
        if depth == 0 {
            return Some(heads);
        }
    }
    None
}

fn sources() -> Vec<Source> {
    fn gather(folder: &Path, root: &Path, found: &mut Vec<Source>) {
        for entry in fs::read_dir(folder).expect("src is there") {
            let path = entry.expect("src can be listed").path();
            if path.is_dir() {
                gather(&path, root, found);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = fs::read_to_string(&path).expect("sources are UTF-8");
                found.push(Source {
                    path: path.strip_prefix(root).expect("it was found there").to_owned(),
                    text,
                });
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    gather(&root, &root, &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// What is wrong with the uses of one file.
fn misuses(source: &Source) -> Vec<String> {
    let module = source.module();
    if ASSEMBLED.contains(&module.as_str()) {
        return Vec::new();
    }
    let path = source.path.display();
    let Some(own) = ORDER.iter().position(|known| *known == module) else {
        return vec![format!("src/{path}:1: module `{module}` has no place in the order")];
    };
    let meant =
        |used: &str| EXCEPTIONS.iter().any(|(user, exception, _)| *user == module && *exception == used);
    let misuse = |(line, used): (usize, String)| match ORDER.iter().position(|known| *known == used) {
        Some(place) if place <= own || meant(&used) => None,
        Some(_) => Some(format!("src/{path}:{line}: `{module}` uses `{used}`, which stands below it")),
        None => Some(format!("src/{path}:{line}: `crate::{used}` has no place in the order")),
    };
    source.uses().into_iter().filter_map(misuse).collect()
}

/// Whether the file is compiled for tests alone: it, or a folder that it is in, is declared so somewhere in its module.
fn is_for_tests(source: &Source, all: &[Source]) -> bool {
    let path = source.path.with_extension("");
    let mut names = path.iter().skip(1).map(|name| name.to_string_lossy());
    let declared = |name: &str| {
        let heads = ["#[cfg(test)]\n", "#[cfg(any(test, fuzzing))]\n"];
        let heads = heads.map(|cfg| ["mod", "pub(crate) mod"].map(|head| format!("{cfg}{head} {name};")));
        let mut module = all.iter().filter(|other| other.module() == source.module());
        module.any(|other| heads.iter().flatten().any(|head| other.text.contains(head.as_str())))
    };
    names.any(|name| declared(&name))
}

/// Where one file writes around the seam to the disk.
fn unseen_writes(source: &Source) -> Vec<String> {
    let path = source.path.display().to_string();
    if !WRITERS.contains(&source.module().as_str()) || AT_THE_SEAM.contains(&path.as_str()) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (number, line) in source.lines() {
        let code = code_of(line).replace("disk::", "");
        let writes = AROUND_THE_SEAM.iter().filter(|call| code.contains(**call));
        found.extend(writes.map(|call| format!("src/{path}:{number}: `{call}` goes around `disk`")));
    }
    found
}

fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn modules_use_only_what_stands_above_them() {
    let problems: Vec<_> = sources().iter().flat_map(misuses).collect();
    assert_none(&problems);
}

#[test]
fn what_must_survive_is_written_through_the_seam() {
    let all = sources();
    let kept = all.iter().filter(|source| !is_for_tests(source, &all));
    let problems: Vec<_> = kept.flat_map(unseen_writes).collect();
    assert_none(&problems);
    let bad = made_up("output/finish.rs", "//! Made up.\nfn f() { fs::rename(a, b); disk::rename(a, b); }\n");
    assert_eq!(unseen_writes(&bad), ["src/output/finish.rs:2: `fs::rename(` goes around `disk`"]);
}

#[test]
fn files_are_short_enough_to_hold_in_mind() {
    let too_long = |source: &Source| {
        let lines = source.lines().count();
        let path = source.path.display();
        (lines > LINES_MAX)
            .then(|| format!("src/{path}:{LINES_MAX}: {lines} lines without tests, at most {LINES_MAX}"))
    };
    let problems: Vec<_> = sources().iter().filter_map(too_long).collect();
    assert_none(&problems);
}

#[test]
fn files_begin_with_what_they_are_for() {
    let mute = |source: &Source| {
        (!source.text.starts_with("//! "))
            .then(|| format!("src/{}:1: begins without `//!`", source.path.display()))
    };
    let problems: Vec<_> = sources().iter().filter_map(mute).collect();
    assert_none(&problems);
}

#[test]
fn exceptions_are_still_needed() {
    let used = |module: &str, other: &str| {
        sources()
            .iter()
            .filter(|s| s.module() == module)
            .any(|s| s.uses().iter().any(|(_, used)| used == other))
    };
    for (module, other, reason) in EXCEPTIONS {
        assert!(
            used(module, other),
            "`{module}` no longer uses `{other}` ({reason}): take the exception out"
        );
    }
}

fn made_up(path: &str, text: &str) -> Source {
    Source { path: PathBuf::from(path), text: text.to_owned() }
}

#[test]
fn a_use_against_the_order_is_named_by_file_and_line() {
    let bad =
        made_up("store/mod.rs", "//! Made up.\n\nuse crate::domain::JobId;\nuse crate::dispatch::Limits;\n");
    assert_eq!(misuses(&bad), ["src/store/mod.rs:4: `store` uses `dispatch`, which stands below it"]);
    let inline =
        made_up("diag.rs", "//! Made up.\nfn f() -> crate::store::Error { g::<crate::cli::Args>() }\n");
    assert_eq!(
        misuses(&inline),
        [
            "src/diag.rs:2: `diag` uses `store`, which stands below it",
            "src/diag.rs:2: `diag` uses `cli`, which stands below it",
        ]
    );
    let group = made_up(
        "spec/mod.rs",
        "//! Made up.\nuse crate::{\n    diag::Report,\n    http::{self, wire},\n};\n",
    );
    assert_eq!(misuses(&group), ["src/spec/mod.rs:2: `spec` uses `http`, which stands below it"]);
    let unlisted = made_up("helpers.rs", "//! Made up.\n");
    assert_eq!(misuses(&unlisted), ["src/helpers.rs:1: module `helpers` has no place in the order"]);
    let unknown = made_up("cli/mod.rs", "//! Made up.\nuse crate::gone::X;\n");
    assert_eq!(misuses(&unknown), ["src/cli/mod.rs:2: `crate::gone` has no place in the order"]);
}

#[test]
fn what_is_not_a_use_is_let_through() {
    let text = "//! See [`crate::cli`].\nuse crate::diag;\nuse crate::reading::json;\nuse my_crate::cli::X; // crate::cli\n\
        const S: &str = \"crate::cli \\\" crate::http\";\nfn f(e: crate::Error) { crate::NAME }\n\
        #[cfg(test)]\nmod tests {\n    use crate::cli;\n}\n";
    assert_eq!(misuses(&made_up("spec/mod.rs", text)), Vec::<String>::new());
    assert_eq!(misuses(&made_up("main.rs", "use crate::cli;")), Vec::<String>::new());
    assert_eq!(
        misuses(&made_up("cli/mod.rs", "use crate::{diag, store::{self, Lease}};")),
        Vec::<String>::new()
    );
}

#[test]
fn a_group_over_many_lines_is_read_to_its_last_brace() {
    assert_eq!(heads_of_group("{diag, store::{self"), None);
    assert_eq!(heads_of_group("{diag, store::{self, Lease}, X}").unwrap(), ["diag", "store"]);
}
