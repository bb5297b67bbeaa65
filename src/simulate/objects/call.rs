//! From method and path to what is asked for of files, uploads, models and fine-tunes.

use axum::http::Method;
use bytes::Bytes;
use percent_encoding::percent_decode_str;

use super::files::{FileQuery, NewFile};
use super::fine_tunes::NewFineTune;
use super::job_request::NewJob;
use super::jobs::JobQuery;
use super::page::{self, Page};
use super::uploads::{self, NewUpload};
use crate::simulate::call::Request;
use crate::simulate::mishap::Act;
use crate::simulate::refusal::Refusal;

const EVENTS_LISTED: usize = 20;
const CHECKPOINTS_LISTED: usize = 10;
const LISTED_MAX: usize = 100;

/// What is asked for.
#[derive(Debug)]
pub(in crate::simulate) enum Call {
    ListModels,
    Model(String),
    DeleteModel(String),
    ListFiles(FileQuery),
    CreateFile(NewFile),
    File(String),
    FileContent(String),
    DeleteFile(String),
    CreateUpload(NewUpload),
    AddPart(String, Bytes),
    CompleteUpload(String, Vec<String>),
    CancelUpload(String),
    ListJobs(JobQuery),
    CreateJob(Box<NewJob>),
    Job(String),
    CancelJob(String),
    PauseJob(String),
    ResumeJob(String),
    JobEvents(String, Page),
    JobCheckpoints(String, Page),
    ListFineTunes,
    CreateFineTune(Box<NewFineTune>),
    FineTune(String),
    CancelFineTune(String),
    FineTuneEvents(String),
}

impl Call {
    /// Reads a request, or says why it can't be answered. None for a path that is not played here.
    pub(in crate::simulate) fn read(
        request: &Request<'_>,
        file_bytes_max: usize,
    ) -> Option<Result<Self, Refusal>> {
        let path = request.below_v1().strip_prefix('/')?;
        // No member of a path is empty: a `/` too many is a path that there is not.
        let parts: Vec<&str> = path.split('/').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return None;
        }
        let asked = Asked { request, file_bytes_max, query: request.query.unwrap_or_default() };
        match parts.as_slice() {
            ["models", rest @ ..] => Some(asked.models(rest)),
            ["files", rest @ ..] => asked.files(rest),
            ["uploads", rest @ ..] => asked.uploads(rest),
            ["fine_tuning", "jobs", rest @ ..] => asked.jobs(rest),
            ["fine-tunes", rest @ ..] => asked.fine_tunes(rest),
            _ => None,
        }
    }

    pub(in crate::simulate) const fn act(&self) -> Act {
        match self {
            Self::ListModels
            | Self::ListFiles(_)
            | Self::ListJobs(_)
            | Self::ListFineTunes
            | Self::JobEvents(..)
            | Self::JobCheckpoints(..)
            | Self::FineTuneEvents(_) => Act::List,
            Self::Model(_) | Self::File(_) | Self::Job(_) | Self::FineTune(_) => Act::Show,
            Self::DeleteModel(_) => Act::DeleteModel,
            Self::DeleteFile(_) => Act::Delete,
            Self::FileContent(_) => Act::Content,
            Self::CreateFile(_) => Act::Upload,
            Self::CreateUpload(_) => Act::Begin,
            Self::AddPart(..) => Act::Part,
            Self::CompleteUpload(..) => Act::Complete,
            Self::CancelUpload(_) => Act::Abandon,
            Self::CreateJob(_) | Self::CreateFineTune(_) => Act::Create,
            Self::CancelJob(_) | Self::CancelFineTune(_) => Act::Cancel,
            Self::PauseJob(_) => Act::Pause,
            Self::ResumeJob(_) => Act::Resume,
        }
    }
}

/// A request whose path is being read.
#[derive(Clone, Copy)]
struct Asked<'r> {
    request: &'r Request<'r>,
    file_bytes_max: usize,
    query: &'r str,
}

/// None for a path that there is not.
type Found = Option<Result<Call, Refusal>>;
type Read = Result<Call, Refusal>;

impl Asked<'_> {
    fn models(self, rest: &[&str]) -> Read {
        if rest.is_empty() {
            return self.get(|| Ok(Call::ListModels));
        }
        // Ids of some servers hold a `/`, and not every client encodes it.
        let id = decoded(&rest.join("/"));
        self.get_or_delete(id, Call::Model, Call::DeleteModel)
    }

    fn files(self, rest: &[&str]) -> Found {
        Some(match *rest {
            [] => self.get_or_post(
                || FileQuery::read(self.query).map(Call::ListFiles),
                || NewFile::read(self.request, self.file_bytes_max).map(Call::CreateFile),
            ),
            [id] => self.get_or_delete(decoded(id), Call::File, Call::DeleteFile),
            [id, "content"] => self.get(|| Ok(Call::FileContent(decoded(id)))),
            _ => return None,
        })
    }

    fn uploads(self, rest: &[&str]) -> Found {
        Some(match *rest {
            [] => self.post(|| NewUpload::read(self.request.body).map(Call::CreateUpload)),
            [id, "parts"] => {
                self.post(|| uploads::read_part(self.request).map(|data| Call::AddPart(decoded(id), data)))
            }
            [id, "complete"] => self.post(|| {
                uploads::read_complete(self.request.body)
                    .map(|parts| Call::CompleteUpload(decoded(id), parts))
            }),
            [id, "cancel"] => self.post(|| Ok(Call::CancelUpload(decoded(id)))),
            _ => return None,
        })
    }

    fn jobs(self, rest: &[&str]) -> Found {
        Some(match *rest {
            [] => self.get_or_post(
                || JobQuery::read(self.query).map(Call::ListJobs),
                || NewJob::read(self.request.body).map(|new| Call::CreateJob(Box::new(new))),
            ),
            [id] => self.get(|| Ok(Call::Job(decoded(id)))),
            [id, "cancel"] => self.post(|| Ok(Call::CancelJob(decoded(id)))),
            [id, "pause"] => self.post(|| Ok(Call::PauseJob(decoded(id)))),
            [id, "resume"] => self.post(|| Ok(Call::ResumeJob(decoded(id)))),
            [id, "events"] => self.get(|| {
                let page = Page::read(self.query, EVENTS_LISTED, LISTED_MAX)?;
                Ok(Call::JobEvents(decoded(id), page))
            }),
            [id, "checkpoints"] => self.get(|| {
                let page = Page::read(self.query, CHECKPOINTS_LISTED, LISTED_MAX)?;
                Ok(Call::JobCheckpoints(decoded(id), page))
            }),
            _ => return None,
        })
    }

    fn fine_tunes(self, rest: &[&str]) -> Found {
        Some(match *rest {
            [] => self.get_or_post(
                || Ok(Call::ListFineTunes),
                || NewFineTune::read(self.request.body).map(|new| Call::CreateFineTune(Box::new(new))),
            ),
            [id] => self.get(|| Ok(Call::FineTune(decoded(id)))),
            [id, "cancel"] => self.post(|| Ok(Call::CancelFineTune(decoded(id)))),
            [id, "events"] => self.get(|| {
                if page::member(self.query, "stream").as_deref() == Some("true") {
                    return Err(Refusal::unsupported_stream());
                }
                Ok(Call::FineTuneEvents(decoded(id)))
            }),
            _ => return None,
        })
    }

    fn get(self, get: impl FnOnce() -> Read) -> Read {
        if self.is(&Method::GET) { get() } else { self.wrong_method("GET") }
    }

    fn post(self, post: impl FnOnce() -> Read) -> Read {
        if self.is(&Method::POST) { post() } else { self.wrong_method("POST") }
    }

    fn get_or_post(self, get: impl FnOnce() -> Read, post: impl FnOnce() -> Read) -> Read {
        if self.is(&Method::POST) {
            return post();
        }
        if self.is(&Method::GET) { get() } else { self.wrong_method("GET, POST") }
    }

    fn get_or_delete(self, id: String, get: fn(String) -> Call, delete: fn(String) -> Call) -> Read {
        if self.is(&Method::DELETE) {
            return Ok(delete(id));
        }
        if self.is(&Method::GET) { Ok(get(id)) } else { self.wrong_method("GET, DELETE") }
    }

    fn is(self, method: &Method) -> bool {
        self.request.method == method
    }

    fn wrong_method(self, allow: &'static str) -> Read {
        Err(Refusal::wrong_method(self.request.method.as_str(), self.request.path, allow))
    }
}

fn decoded(id: &str) -> String {
    percent_decode_str(id).decode_utf8_lossy().into_owned()
}
