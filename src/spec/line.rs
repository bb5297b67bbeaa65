//! One line of JSONL: a batch line, or a bare request body.
//!
//! [`read`] is used both when a spec is checked and when a request's turn comes, so that what was
//! accepted can always be sent, and under the same `custom_id`.

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::diag;
use crate::domain::{Endpoint, Kind, Request};
use crate::reading::json;
use crate::reading::problem::{Problem, Syntax, shown, what};
use crate::spec::bare;
use crate::spec::name;
use crate::spec::pick::{Field, Picked, pick};
use crate::spec::url;

/// A longer `custom_id` is refused: it stands in every record, report and file name.
const CUSTOM_ID_BYTES_MAX: usize = 512;
/// A longer model name is refused: it stands in the name of a queue.
pub(super) const MODEL_BYTES_MAX: usize = 512;

/// The members that a line is judged by, those of the envelope first.
const KEYS: [&str; 12] = [
    "custom_id",
    "method",
    "url",
    "body",
    "model",
    "stream",
    "messages",
    "input",
    "prompt",
    "metadata",
    "completion",
    "response",
];
const CUSTOM_ID: usize = 0;
const METHOD: usize = 1;
const URL: usize = 2;
const BODY: usize = 3;
const MODEL: usize = 4;
const STREAM: usize = 5;
const MESSAGES: usize = 6;
const INPUT: usize = 7;
const PROMPT: usize = 8;
const METADATA: usize = 9;
const COMPLETION: usize = 10;
const RESPONSE: usize = 11;

/// What a line is read by.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rules {
    /// What bare bodies mean by the file's ending.
    pub(super) ending: Option<Kind>,
    /// The line's number: the `custom_id` of a bare body that has none.
    pub(super) number: u32,
    /// The job names a model for requests that name none.
    pub(super) has_model: bool,
}

/// A request as its line says it, borrowed from the line.
#[derive(Debug)]
pub(super) struct Parsed<'a> {
    pub(super) custom_id: Cow<'a, str>,
    /// Byte of the `custom_id`'s value in the line, if it stands there.
    pub(super) custom_id_offset: Option<usize>,
    pub(super) endpoint: Endpoint,
    pub(super) model: Option<Cow<'a, str>>,
    pub(super) body: Body<'a>,
    /// Byte of the body in the line.
    pub(super) body_offset: usize,
}

/// The JSON object to send.
#[derive(Debug)]
pub(super) enum Body<'a> {
    /// As it stands in the line.
    Whole(&'a RawValue),
    /// Without a member that was for us.
    Cut(Box<RawValue>),
}

impl Body<'_> {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Whole(body) => body.get(),
            Self::Cut(body) => body.get(),
        }
    }
}

impl Parsed<'_> {
    /// As it is sent; `stream` as the job has it.
    pub(super) fn into_request(self, stream: Option<bool>) -> Request {
        Request {
            custom_id: self.custom_id.into_owned(),
            endpoint: self.endpoint,
            model: self.model.map(Cow::into_owned),
            stream,
            body: match self.body {
                Body::Whole(body) => body.to_owned(),
                Body::Cut(body) => body,
            },
        }
    }
}

/// Reads a line. None: it was refused, and `found` was told why (it is also told warnings).
pub(super) fn read<'a>(
    text: &'a str,
    rules: Rules,
    found: &mut dyn FnMut(Problem),
) -> Result<Option<Parsed<'a>>, Syntax> {
    let members = pick(text, &KEYS)?;
    let is_batch_line = members.fields.iter().take(MODEL).any(Option::is_some);
    let mut reader = Reader { rules, found, refused: false };
    let parsed = if is_batch_line && members.get(RESPONSE).is_some() {
        reader.refuse(
            Problem::error(0, "a line of results, not a request")
                .hint("drop the file that the requests stand in, not the answers to them"),
        );
        None
    } else if is_batch_line {
        reader.batch_line(&members)
    } else {
        reader.bare(text, &members)
    };
    let refused = reader.refused;
    Ok(parsed.filter(|_| !refused))
}

/// The id that a refused line gives at its top, with its place: a duplicate of it is a problem of its own.
pub(super) fn id_of_refused(text: &str) -> Option<(String, usize)> {
    let members = json::members(text).ok()?;
    let member = members.iter().find(|member| member.key == "custom_id")?;
    let id: String = serde_json::from_str(member.value).ok()?;
    (!id.is_empty()).then_some((id, member.offset))
}

/// Only chat and completions can come as streams.
const STREAM_HINT: &str = "remove it; to have batchd stream, write `stream = true` at the top of a TOML spec or under the \
                           provider in `batchd.toml`: the answers are the same";

/// The reader was told why.
struct Refused;

struct Reader<'f> {
    rules: Rules,
    found: &'f mut dyn FnMut(Problem),
    refused: bool,
}

impl Reader<'_> {
    fn refuse(&mut self, problem: Problem) {
        self.refused = true;
        (self.found)(problem);
    }

    fn batch_line<'a>(&mut self, envelope: &Picked<'a>) -> Option<Parsed<'a>> {
        self.duplicate(envelope, 0);
        self.others(envelope);
        let custom_id = envelope.get(CUSTOM_ID);
        self.method(envelope.get(METHOD));
        let endpoint = self.url(envelope.get(URL));
        let id = if let Some(field) = custom_id {
            self.custom_id(field)
        } else {
            let hint = "each line needs one of its own: answers are told apart by it";
            self.refuse(Problem::error(0, "missing `custom_id`").hint(hint));
            None
        };
        let Some(body) = envelope.get(BODY) else {
            let hint = "the request itself stands in `body`, an object";
            self.refuse(Problem::error(0, "missing `body`").hint(hint));
            return None;
        };
        if !body.text().starts_with('{') {
            let message = format!("`body` is {}, expected an object", what(body.text()));
            self.refuse(Problem::error(body.offset, message));
            return None;
        }
        // It was read as JSON already, so that picking from it can't fail.
        let members = pick(body.text(), &KEYS).ok()?;
        self.duplicate(&members, body.offset);
        self.stream(&members, body.offset, endpoint);
        let endpoint = endpoint?;
        let model = self.model(&members, body.offset, endpoint);
        Some(Parsed {
            custom_id: id?,
            custom_id_offset: custom_id.map(|field| field.offset),
            endpoint,
            model: model.ok()?,
            body: Body::Whole(body.raw),
            body_offset: body.offset,
        })
    }

    fn bare<'a>(&mut self, text: &'a str, members: &Picked<'a>) -> Option<Parsed<'a>> {
        let endpoint = self.endpoint_of_bare(members)?;
        self.duplicate(members, 0);
        self.stream(members, 0, Some(endpoint));
        let model = self.model(members, 0, endpoint);
        let metadata = members.get(METADATA);
        let named = metadata.and_then(bare::custom_id_in);
        let custom_id_offset = named.map(|field| field.offset);
        let custom_id = match named {
            Some(field) => self.custom_id(field)?,
            None => Cow::Owned(format!("line-{}", self.rules.number)),
        };
        let cut = metadata.filter(|_| !bare::takes_metadata(endpoint));
        let body = match cut.and_then(|metadata| bare::without(text, metadata)) {
            Some(rest) => Body::Cut(RawValue::from_string(rest).ok()?),
            None => Body::Whole(serde_json::from_str(text).ok()?),
        };
        let body_offset = text.len() - text.trim_start().len();
        Some(Parsed { custom_id, custom_id_offset, endpoint, model: model.ok()?, body, body_offset })
    }

    fn endpoint_of_bare(&mut self, members: &Picked<'_>) -> Option<Endpoint> {
        let has = |key| members.get(key).is_some();
        let fits = |kind: &Kind| match kind {
            Kind::Chat => has(MESSAGES),
            Kind::Completions | Kind::Images => has(PROMPT),
            Kind::Embeddings | Kind::Moderations => has(INPUT),
            Kind::Responses => has(INPUT) || has(PROMPT),
            Kind::Requests | Kind::FineTune => false,
        };
        if let Some(endpoint) = self.rules.ending.filter(fits).and_then(Kind::endpoint) {
            return Some(endpoint);
        }
        match (has(MESSAGES), has(INPUT), has(PROMPT)) {
            (true, false, false) => Some(Endpoint::ChatCompletions),
            (false, true, false) => Some(Endpoint::Embeddings),
            (false, false, true) => Some(Endpoint::Completions),
            (false, false, false) => {
                let hint = "expected a batch line (`custom_id`, `method`, `url`, `body`) or a request body with \
                            `messages`, `input` or `prompt`";
                let found = members.other.as_ref().map(|(key, _)| format!(": found {}", shown(key)));
                let message = format!("not a request{}", found.unwrap_or_default());
                self.refuse(Problem::error(0, message).hint(hint));
                None
            }
            _ => {
                let hint = "name the file `*.chat.jsonl`, `*.embeddings.jsonl` and so on, or write batch lines \
                            with a `url`";
                let message = "more than one of `messages`, `input` and `prompt`: the endpoint is not clear";
                self.refuse(Problem::error(0, message).hint(hint));
                None
            }
        }
    }

    fn duplicate(&mut self, members: &Picked<'_>, base: usize) {
        if let Some((number, later)) = members.duplicate {
            let key = KEYS.get(number).copied().unwrap_or_default();
            self.refuse(
                Problem::error(base + later.offset, format!("duplicate key `{key}`"))
                    .hint("servers differ in which of the two they take: leave one"),
            );
        }
    }

    /// Members beside those of a batch line.
    fn others(&mut self, envelope: &Picked<'_>) {
        let misplaced = (MODEL..KEYS.len()).find_map(|number| {
            let field = envelope.get(number)?;
            Some((Cow::Borrowed(*KEYS.get(number)?), field))
        });
        let Some((key, field)) = misplaced.or_else(|| envelope.other.clone()) else { return };
        let message = format!("unknown member {} beside `body`: it is not sent", shown(&key));
        let meant = if key.len() < 64 { diag::nearest(&key, KEYS.iter().take(MODEL).copied()) } else { None };
        let hint = meant.map_or_else(
            || "parameters of the request belong into `body`".to_owned(),
            |meant| format!("did you mean `{meant}`?"),
        );
        (self.found)(Problem::warning(field.offset, message).hint(hint));
    }

    fn method(&mut self, method: Option<Field<'_>>) {
        let Some(field) = method else { return };
        match field.string() {
            Ok(method) if method == "POST" => {}
            Ok(method) => {
                let message = format!("method {}, expected `POST`", shown(&method));
                self.refuse(Problem::error(field.offset, message).hint("every request of a batch is a POST"));
            }
            Err(found) => {
                let message = format!("`method` is {}, expected `\"POST\"`", found.0);
                self.refuse(Problem::error(field.offset, message));
            }
        }
    }

    fn url(&mut self, url: Option<Field<'_>>) -> Option<Endpoint> {
        url::endpoint(url).map_err(|problem| self.refuse(problem)).ok()
    }

    fn custom_id<'a>(&mut self, field: Field<'a>) -> Option<Cow<'a, str>> {
        let offset = field.offset;
        let problem = match field.string() {
            Ok(id) if id.is_empty() => Problem::error(offset, "`custom_id` is empty"),
            Ok(id) if id.len() > CUSTOM_ID_BYTES_MAX => Problem::error(
                offset,
                format!("`custom_id` has {} bytes, at most {CUSTOM_ID_BYTES_MAX} are allowed", id.len()),
            ),
            Ok(id) => return Some(id),
            Err(found) => {
                let problem =
                    Problem::error(offset, format!("`custom_id` is {}, expected a string", found.0));
                if found.0 == "a number" { problem.hint("put it in double quotes") } else { problem }
            }
        };
        self.refuse(problem);
        None
    }

    fn stream(&mut self, body: &Picked<'_>, base: usize, endpoint: Option<Endpoint>) {
        if let Some(stream) = body.get(STREAM)
            && stream.text() == "true"
        {
            let hint = match endpoint {
                Some(Endpoint::ChatCompletions | Endpoint::Completions) => STREAM_HINT,
                _ => "remove it",
            };
            let message = "`stream` is true, but a batch has no one to stream to";
            self.refuse(Problem::error(base + stream.offset, message).hint(hint));
        }
    }

    /// None: the request has no model and needs none.
    fn model<'a>(
        &mut self,
        body: &Picked<'a>,
        base: usize,
        endpoint: Endpoint,
    ) -> Result<Option<Cow<'a, str>>, Refused> {
        let field = body.get(MODEL).filter(|field| field.text() != "null");
        let Some(field) = field else {
            if endpoint.model_is_optional() || self.rules.has_model {
                return Ok(None);
            }
            let problem = Problem::error(base, format!("missing `model`, which {endpoint} needs"));
            self.refuse(if bare::is_training_row(body.get(COMPLETION), body.get(MESSAGES)) {
                problem.hint(
                    "this looks like a fine-tuning training file: its lines are examples, not requests; name it \
                     as the `training_file` of a TOML spec with `kind = \"fine_tune\"`",
                )
            } else {
                problem
            });
            return Err(Refused);
        };
        let offset = base + field.offset;
        let problem = match field.string() {
            Ok(model) if model.trim().is_empty() => Problem::error(offset, "`model` is empty"),
            Ok(model) if model.len() > MODEL_BYTES_MAX => Problem::error(
                offset,
                format!("`model` has {} bytes, at most {MODEL_BYTES_MAX} are allowed", model.len()),
            ),
            Ok(model) => match name::job_of_model(&model) {
                None | Some(Ok(_)) => return Ok(Some(model)),
                Some(Err(why)) => {
                    let message = format!("model {} names no fine-tune: {why}", shown(&model));
                    Problem::error(offset, message).hint("write `job:` and the name of a fine-tune's job")
                }
            },
            Err(found) => Problem::error(offset, format!("`model` is {}, expected a string", found.0)),
        };
        self.refuse(problem);
        Err(Refused)
    }
}
