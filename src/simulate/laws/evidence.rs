//! What the laws are judged by, and how it is read from batch lines and results.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::domain::{OnUncertain, Order};
use crate::simulate::Entry;

/// Long after an answer has come its record is in the journal, on any machine that works at all.
const KEPT_WITHIN: Duration = Duration::from_secs(1);

/// All that is known of a run. What is left out is not judged.
#[derive(Clone, Debug)]
pub struct Evidence {
    pub jobs: Vec<JobEvidence>,
    /// Every entry of the server's ledger, in its order.
    pub ledger: Vec<Entry>,
    /// In the order of time.
    pub stops: Vec<Stop>,
    /// Requests that may be in flight at a time, over all queues.
    pub concurrency: Option<u64>,
    /// What was sent before a hint had arrived may come so long after it. With None only the request that got a hint
    /// is held to it, not its key and model.
    pub on_its_way: Option<Duration>,
    /// Records that one power cut may take with it beside what was in flight.
    pub unsynced_max: u64,
    /// An answer that left the server so long before a stop must have been kept. Default 1 s.
    pub kept_within: Duration,
    /// Published files, looked at twice.
    pub published: Vec<SeenFile>,
    pub dropped: Vec<DroppedFile>,
    /// Secrets found where none may be.
    pub leaks: Vec<Leak>,
    pub growths: Vec<Growth>,
    pub rebuilt: Vec<Rebuilt>,
}

impl Default for Evidence {
    fn default() -> Self {
        Self {
            jobs: Vec::new(),
            ledger: Vec::new(),
            stops: Vec::new(),
            concurrency: None,
            on_its_way: None,
            unsynced_max: 0,
            kept_within: KEPT_WITHIN,
            published: Vec::new(),
            dropped: Vec::new(),
            leaks: Vec::new(),
            growths: Vec::new(),
            rebuilt: Vec::new(),
        }
    }
}

/// One accepted job.
#[derive(Clone, Debug, Default)]
pub struct JobEvidence {
    pub name: String,
    /// Its requests in the order of the input.
    pub asked: Vec<Asked>,
    pub order: Order,
    pub on_uncertain: OnUncertain,
    /// None while it runs, or if they are lost.
    pub results: Option<Results>,
    /// It may still be on its way: then it need not have results.
    pub is_running: bool,
}

/// One accepted request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub custom_id: String,
    /// BLAKE3 of the body as it is sent; none where the test does not know it.
    pub body: Option<blake3::Hash>,
}

/// What lies in a job's results folder.
#[derive(Clone, Debug, Default)]
pub struct Results {
    pub output: Vec<Line>,
    pub errors: Vec<Line>,
    /// As `summary.json` says.
    pub maybe_paid_twice: Option<u64>,
}

/// One published line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    pub id: String,
    pub custom_id: String,
    /// The reply that it holds, by the server's `x-request-id`.
    pub request_id: Option<String>,
    /// BLAKE3 of the reply that it holds, without the white space around that.
    pub answer: Option<blake3::Hash>,
    /// `error.code`.
    pub error: Option<String>,
}

/// An end of the daemon's process, in the time of the ledger ([`Engine::at_us`](crate::simulate::Engine::at_us)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    pub kind: StopKind,
    /// When it was told to end, or died.
    pub from_us: u64,
    /// When the server had seen all that was sent before: not later than the next start.
    pub to_us: u64,
    /// Requests that the server had then and had not answered.
    pub in_flight: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopKind {
    /// `kill -9`, an abort, or a drain whose grace was over.
    Kill,
    /// As a kill, but what was not synced is gone too.
    PowerCut,
    /// A drain that had time to finish.
    Drain,
}

/// A published file, when it was first seen and at the end.
#[derive(Clone, Debug)]
pub struct SeenFile {
    pub path: String,
    pub first: blake3::Hash,
    /// None if it is gone.
    pub last: Option<blake3::Hash>,
}

/// A file that was dropped, and every place in which it is found at the end.
#[derive(Clone, Debug)]
pub struct DroppedFile {
    pub name: String,
    pub ends: Vec<FileEnd>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileEnd {
    /// The job of this name.
    Job(String),
    Rejected,
    /// Left where it is, as its name asks for.
    Ignored,
}

/// A secret, by its name and not its value, and where it was found.
#[derive(Clone, Debug)]
pub struct Leak {
    pub secret: String,
    pub place: String,
}

/// Something that is used: descriptors, bytes of memory, bytes on disk.
#[derive(Clone, Debug)]
pub struct Growth {
    pub what: String,
    pub before: u64,
    pub after: u64,
    pub allowed: u64,
}

/// The content of an index as it was, and after it was built anew from the files.
#[derive(Clone, Debug)]
pub struct Rebuilt {
    pub what: String,
    pub live: String,
    pub rebuilt: String,
}

/// What a line of OpenAI's batch format asks.
#[derive(Deserialize)]
struct BatchLine {
    custom_id: String,
    body: Box<RawValue>,
}

#[derive(Deserialize)]
struct RecordLine {
    id: String,
    custom_id: String,
    response: Option<Response>,
    error: Option<Error>,
}

#[derive(Deserialize)]
struct Response {
    request_id: String,
    body: Box<RawValue>,
}

#[derive(Deserialize)]
struct Error {
    code: String,
}

impl JobEvidence {
    /// A job of OpenAI's batch lines.
    pub fn of_batch_lines(name: &str, text: &str) -> serde_json::Result<Self> {
        let asked = text.lines().filter(|line| !line.trim().is_empty()).map(|line| {
            let BatchLine { custom_id, body } = serde_json::from_str(line)?;
            Ok(Asked { custom_id, body: Some(blake3::hash(body.get().as_bytes())) })
        });
        let asked = asked.collect::<serde_json::Result<Vec<_>>>()?;
        Ok(Self { name: name.to_owned(), asked, ..Self::default() })
    }
}

impl Results {
    /// Reads the text of `output.jsonl` and `errors.jsonl` (empty where there is none). `image` gives the bytes
    /// of a file that a line names (`images/…`); images that were answered by url can't be compared.
    pub fn read(
        output: &str,
        errors: &str,
        image: &dyn Fn(&str) -> Option<Vec<u8>>,
    ) -> serde_json::Result<Self> {
        let lines =
            |text: &str| text.lines().map(|line| Line::read(line, image)).collect::<serde_json::Result<_>>();
        Ok(Self { output: lines(output)?, errors: lines(errors)?, maybe_paid_twice: None })
    }
}

impl Line {
    fn read(line: &str, image: &dyn Fn(&str) -> Option<Vec<u8>>) -> serde_json::Result<Self> {
        let RecordLine { id, custom_id, response, error } = serde_json::from_str(line)?;
        let (request_id, answer) = match response {
            Some(Response { request_id, body }) => {
                (Some(request_id), Some(blake3::hash(reply(body.get(), image).as_bytes())))
            }
            None => (None, None),
        };
        Ok(Self { id, custom_id, request_id, answer, error: error.map(|error| error.code) })
    }
}

/// The reply as it was before it became a member: one that is no JSON (a gateway's page) stands there as a string.
fn reply(body: &str, image: &dyn Fn(&str) -> Option<Vec<u8>>) -> String {
    match serde_json::from_str::<String>(body) {
        Ok(text) if serde_json::from_str::<IgnoredAny>(&text).is_err() => text,
        Ok(_) | Err(_) => with_images(body, image),
    }
}

/// The body as it was before its images became files.
fn with_images(body: &str, image: &dyn Fn(&str) -> Option<Vec<u8>>) -> String {
    const NAMED: &str = "\"file\":\"images/";
    let mut whole = String::with_capacity(body.len());
    let mut rest = body;
    while let Some((before, after)) = rest.split_once(NAMED) {
        let Some((name, after)) = after.split_once('"') else { break };
        whole.push_str(before);
        let member = match image(&format!("images/{name}")) {
            Some(bytes) => format!("\"b64_json\":\"{}\"", STANDARD.encode(bytes)),
            None => format!("{NAMED}{name}\""),
        };
        whole.push_str(&member);
        rest = after;
    }
    whole.push_str(rest);
    whole
}
