//! The data files that go along with a TOML spec, as `submit` finds them.
//!
//! Only what lies beside the spec is taken. What lies elsewhere (an absolute path into an input folder, a file
//! that is in the jobs folder already) stays where it is: whether a job may read it is for the daemon to say.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Component, Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::spec_file::{SpecFile, open_regular};
use super::{Exit, Failure};
use crate::diag::Diagnostic;
use crate::intake::FOLDER_SPEC;
use crate::spec::{Form, is_file_id};

/// The daemon refuses a larger spec.
const SPEC_BYTES_MAX: u64 = 1024 * 1024;

/// The keys of a TOML spec whose values are paths.
const PATH_KEYS: [(&str, &str); 3] =
    [("input", "file"), ("fine_tune", "training_file"), ("fine_tune", "validation_file")];

/// One file that goes along.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DataFile {
    /// Where it is.
    source: PathBuf,
    /// Where it stands beside the spec.
    pub(super) relative: PathBuf,
}

impl DataFile {
    pub(super) fn open(&self) -> io::Result<File> {
        open_regular(&self.source)
            .map_err(|error| io::Error::new(error.kind(), format!("`{}`: {error}", self.source.display())))
    }
}

/// What `submit` has to know of a spec beyond its bytes.
#[derive(Debug, Default)]
pub(super) struct Outline {
    /// The files that go along, in order of their paths, each once.
    pub(super) data: Vec<DataFile>,
    /// It stays in the jobs folder and runs when its time comes.
    pub(super) has_schedule: bool,
}

/// Looks through a spec. One that can't be read as TOML has an empty outline: the daemon will say what is
/// wrong with it.
pub(super) fn outline(spec: &SpecFile, jobs_dir: &Path) -> Result<Outline, Failure> {
    let mut outline = match spec.form {
        Form::Jsonl => Outline::default(),
        Form::Toml => outline_toml(spec, jobs_dir)?,
    };
    if spec.dropped_folder.is_some() {
        outline.data.clear();
        collect(&spec.folder, Path::new(""), &mut outline.data).map_err(|error| unreadable(spec, &error))?;
    }
    outline.data.sort_by(|a, b| a.relative.cmp(&b.relative));
    outline.data.dedup();
    Ok(outline)
}

fn outline_toml(spec: &SpecFile, jobs_dir: &Path) -> Result<Outline, Failure> {
    let bytes = read_start(&spec.file).map_err(|error| unreadable(spec, &error))?;
    let Ok(text) = String::from_utf8(bytes) else { return Ok(Outline::default()) };
    let Ok(table) = DeTable::parse(&text) else { return Ok(Outline::default()) };
    let table = table.get_ref();
    let mut outline = Outline { data: Vec::new(), has_schedule: table.contains_key("schedule") };
    for (section_name, key) in PATH_KEYS {
        let section = table.get(section_name).map(Spanned::get_ref).and_then(DeValue::as_table);
        let path = section.and_then(|section| section.get(key)).and_then(|value| value.get_ref().as_str());
        // An id of the API's stands where a path could, and what lies elsewhere stays there.
        let Some(path) =
            path.filter(|path| !(section_name == "fine_tune" && is_file_id(path)) && is_beside(path))
        else {
            continue;
        };
        // Which file the name of a run's time stands for is not known yet.
        if path.contains("{{") {
            continue;
        }
        // The folder of a dropped folder goes along whole.
        if spec.dropped_folder.is_some() {
            continue;
        }
        let found = beside(&spec.folder, path);
        if found.is_empty() && beside(jobs_dir, path).is_empty() {
            let message = format!("`{key}` names `{path}`, and there is no such file beside this spec");
            let hint = "data files lie beside the spec or below it, and go with it";
            let finding = Diagnostic::error(&spec.display, 0, 0, message).hint(hint);
            return Err(Failure::Findings(Exit::Rejected, finding.into()));
        }
        outline.data.extend(found);
    }
    Ok(outline)
}

/// The file's bytes as far as a spec may be long; the file is then at its start again.
fn read_start(mut file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(SPEC_BYTES_MAX).read_to_end(&mut bytes)?;
    file.rewind()?;
    Ok(bytes)
}

/// Everything in a folder but its spec.
fn collect(folder: &Path, below: &Path, files: &mut Vec<DataFile>) -> io::Result<()> {
    for entry in fs::read_dir(folder.join(below))? {
        let entry = entry?;
        let relative = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(folder, &relative, files)?;
        } else if relative != Path::new(FOLDER_SPEC) {
            files.push(DataFile { source: entry.path(), relative });
        }
    }
    Ok(())
}

/// Whether a path can only lead to what lies in the spec's folder or below.
fn is_beside(path: &str) -> bool {
    Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// The files in `folder` that `path`, maybe a glob, names.
fn beside(folder: &Path, path: &str) -> Vec<DataFile> {
    // `glob` drops a `./` at the start of what it finds: no such path would begin with `folder`.
    let Ok(folder) = std::path::absolute(folder) else { return Vec::new() };
    // A name may look like a glob, `report [final].csv`: as the daemon does, the file itself goes first.
    let itself = folder.join(path);
    if let Ok(relative) = itself.strip_prefix(&folder)
        && itself.is_file()
    {
        return vec![DataFile { relative: relative.components().collect(), source: itself }];
    }
    let pattern = format!("{}/{path}", glob::Pattern::escape(&folder.to_string_lossy()));
    let matches = glob::glob(&pattern).map(|paths| paths.flatten().collect::<Vec<_>>());
    let mut files = Vec::new();
    for source in matches.unwrap_or_default() {
        if let Ok(relative) = source.strip_prefix(&folder)
            && source.is_file()
        {
            files.push(DataFile { relative: relative.to_owned(), source });
        }
    }
    files
}

fn unreadable(spec: &SpecFile, error: &io::Error) -> Failure {
    let finding = Diagnostic::error(&spec.display, 0, 0, format!("can't be read: {error}"));
    Failure::Findings(Exit::Rejected, finding.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlined(dir: &Path, toml: &str) -> Result<Outline, Failure> {
        fs::write(dir.join("job.spec.toml"), toml).unwrap();
        outline(&SpecFile::open(&dir.join("job.spec.toml")).unwrap(), &dir.join("jobs"))
    }

    fn relative(outline: &Outline) -> Vec<&str> {
        outline.data.iter().map(|file| file.relative.to_str().unwrap()).collect()
    }

    #[test]
    fn data_beside_the_spec_goes_along_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        for file in [
            "in/b.csv",
            "in/a.csv",
            "in/c.txt",
            "in/d [1].txt",
            "train.jsonl",
            "file-1.jsonl",
            "jobs/inputs/there.csv",
        ] {
            fs::create_dir_all(dir.path().join(file).parent().unwrap()).unwrap();
            fs::write(dir.path().join(file), "x").unwrap();
        }
        let table: [(&str, &[&str]); 10] = [
            ("[input]\nfile = \"in/a.csv\"", &["in/a.csv"]),
            ("[input]\nfile = \"./in/*.csv\"", &["in/a.csv", "in/b.csv"]),
            ("[input]\nfile = \"./in/./d [1].txt\"", &["in/d [1].txt"]),
            ("[fine_tune]\ntraining_file = \"train.jsonl\"", &["train.jsonl"]),
            ("[fine_tune]\ntraining_file = \"file-abc123\"", &[]),
            ("[fine_tune]\nvalidation_file = \"file-1.jsonl\"", &["file-1.jsonl"]),
            ("[input]\nfile = \"inputs/there.csv\"", &[]),
            ("[input]\nfile = \"/etc/passwd\"", &[]),
            ("[input]\nfile = \"../x/a.csv\"", &[]),
            ("[input\nfile = \"in/a.csv\"", &[]),
        ];
        for (toml, expected) in table {
            assert_eq!(relative(&outlined(dir.path(), toml).unwrap()), expected, "{toml}");
        }
        assert!(outlined(dir.path(), "[schedule]\ncron = \"@daily\"").unwrap().has_schedule);
    }

    #[test]
    fn data_beside_a_spec_of_the_current_folder_goes_along() {
        // Tests run in the package's folder.
        for (spec, path) in [(".", "jobs/chat.toml"), ("./jobs", "chat.toml"), ("src/../jobs", "*.toml")] {
            let found = beside(Path::new(spec), path);
            let names: Vec<&str> = found.iter().map(|file| file.relative.to_str().unwrap()).collect();
            assert!(names.contains(&path.replace('*', "chat").as_str()), "{spec}: {names:?}");
        }
    }

    #[test]
    fn data_that_is_nowhere_is_missed_before_anything_is_placed() {
        let dir = tempfile::tempdir().unwrap();
        let failure = outlined(dir.path(), "[input]\nfile = \"none/*.csv\"").unwrap_err();
        let Failure::Findings(Exit::Rejected, findings) = failure else { panic!("{failure:?}") };
        let message = "`file` names `none/*.csv`, and there is no such file beside this spec";
        assert_eq!(findings.diagnostics()[0].message, message);
    }

    #[test]
    fn folder_goes_along_whole() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("in/deep")).unwrap();
        for file in ["job.toml", "in/deep/a.csv", "notes.txt"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        let spec = SpecFile::open(dir.path()).unwrap();
        assert_eq!(relative(&outline(&spec, Path::new("/nowhere")).unwrap()), ["in/deep/a.csv", "notes.txt"]);
    }
}
