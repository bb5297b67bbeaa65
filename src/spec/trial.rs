//! For tests: reads a spec from a folder of its own, and what it wrote.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::domain::{FineTune, Job, JobId, Kind, LineEntry, Request, Timestamp};
use crate::spec::{
    Checked, Copies, Error, Form, ProviderFacts, Settings, Sinks, Source, custom_id, parse_fine_tune,
    parse_line, read,
};

/// A jobs folder with the files of one test.
pub(super) struct Trial {
    dir: tempfile::TempDir,
    pub(super) settings: Settings,
}

/// What an accepted spec became.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) checked: Checked,
    pub(super) requests: Vec<Request>,
    pub(super) entries: Vec<LineEntry>,
    /// Of a TOML spec.
    pub(super) input: String,
    pub(super) fine_tune: Option<FineTune>,
    /// The copies of a fine-tune's data.
    pub(super) copies: Kept,
}

/// Keeps copies in memory.
#[derive(Debug, Default)]
pub(super) struct Kept(pub(super) Vec<(String, Vec<u8>)>);

impl Copies for Kept {
    fn begin(&mut self, name: &str) -> io::Result<&mut dyn Write> {
        self.0.push((name.to_owned(), Vec::new()));
        Ok(&mut self.0.last_mut().unwrap().1)
    }
}

impl Trial {
    pub(super) fn new() -> Self {
        let provider = |name: &str, strict| ProviderFacts { name: name.to_owned(), strict };
        Self {
            dir: tempfile::tempdir().unwrap(),
            settings: Settings {
                providers: vec![provider("openai", false), provider("local", true)],
                max_line: 16 * 1024,
                input_dirs: Vec::new(),
                zone: chrono_tz::UTC,
            },
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn with(self, name: &str, text: impl AsRef<[u8]>) -> Self {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    pub(super) fn source(&self, name: &str) -> Source {
        Source {
            form: Form::of(name).unwrap(),
            file: File::open(self.path().join(name)).unwrap(),
            display: name.to_owned(),
            folder: self.path().to_owned(),
            rest: None,
            now: Timestamp::from_millis(0),
            is_run: false,
        }
    }

    /// Reads the spec `name`; a refusal gives the report's text.
    pub(super) fn read(&self, name: &str) -> Result<Accepted, String> {
        self.read_from(self.source(name), name)
    }

    /// Reads the spec `name` for a run of its schedule at `now`.
    pub(super) fn run(&self, name: &str, now: Timestamp) -> Result<Accepted, String> {
        self.read_from(Source { is_run: true, now, ..self.source(name) }, name)
    }

    fn read_from(&self, source: Source, name: &str) -> Result<Accepted, String> {
        let (mut index, mut input, mut copies) = (Vec::new(), Vec::new(), Kept::default());
        let sinks = Sinks { index: &mut index, input: &mut input, data: &mut copies };
        let checked = read(source, &self.settings, sinks).map_err(|error| match error {
            Error::Rejected(report) => {
                assert!(report.has_errors());
                report.to_string()
            }
            error @ (Error::Unsettled { .. } | Error::Scheduled | Error::Sink(_)) => panic!("{error}"),
        })?;
        let bytes = if Form::of(name) == Some(Form::Toml) {
            input.clone()
        } else {
            fs::read(self.path().join(name)).unwrap()
        };
        let entries: Vec<LineEntry> =
            index.chunks(16).map(|e| LineEntry::decode(e.try_into().unwrap())).collect();
        assert_eq!(checked.queue_places.len(), checked.queues.len());
        let job = job(&checked);
        if checked.kind == Kind::FineTune {
            let line = bytes.strip_suffix(b"\n").unwrap();
            assert_eq!((entries.len(), entries[0].length as usize), (1, line.len()));
            let fine_tune = parse_fine_tune(&job, line, 1).unwrap();
            assert_eq!(custom_id(&job, line, 1).unwrap(), fine_tune.custom_id);
            let (requests, input) = (Vec::new(), String::from_utf8(input).unwrap());
            return Ok(Accepted { checked, requests, entries, input, fine_tune: Some(fine_tune), copies });
        }
        let request = |entry: &LineEntry| {
            let start = usize::try_from(entry.offset).unwrap();
            let line = &bytes[start..start + entry.length as usize];
            let request = parse_line(&job, line, entry.line).unwrap();
            assert_eq!(job.queues[usize::from(entry.queue)].model(), request.model.as_deref());
            request
        };
        let requests: Vec<Request> = entries.iter().map(request).collect();
        assert_eq!(requests.len(), checked.total as usize);
        assert_eq!(checked.queue_totals.iter().sum::<u32>(), checked.total);
        let input = String::from_utf8(input).unwrap();
        Ok(Accepted { checked, requests, entries, input, fine_tune: None, copies })
    }

    /// The report of a spec that must be refused.
    pub(super) fn refused(&self, name: &str) -> String {
        self.read(name).map(|accepted| accepted.checked).expect_err("the spec is refused")
    }
}

/// A refused or accepted JSONL text.
pub(super) fn jsonl(name: &str, text: impl AsRef<[u8]>) -> Result<Accepted, String> {
    Trial::new().with(name, text).read(name)
}

pub(super) fn job(checked: &Checked) -> Job {
    Job {
        id: JobId::from_bytes([1; 16]),
        name: checked.name.clone(),
        kind: checked.kind,
        ending: checked.ending,
        spec_file: String::new(),
        accepted_at: Timestamp::from_millis(0),
        total: checked.total,
        queues: checked.queues.clone(),
        content_hash: checked.content_hash.clone(),
        settings: checked.settings.clone(),
        run: None,
    }
}
