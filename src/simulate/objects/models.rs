//! Models: those that there are from the start, and those that fine-tunes have made.

use std::time::Duration;

use serde_json::{Value, json};

use super::run::Api;
use super::shelf::Calendar;
use crate::domain::Endpoint;
use crate::simulate::answer::CREATED;
use crate::simulate::refusal::Refusal;

/// What is listed where no list is given: those that `jobs/` and this server name, and those that can be tuned.
const LISTED: [Listed; 22] = [
    Listed::plain("gpt-6-luna"),
    Listed::tunable("gpt-4.1", "gpt-4.1-2025-04-14"),
    Listed::tunable("gpt-4.1-2025-04-14", "gpt-4.1-2025-04-14"),
    Listed::tunable("gpt-4.1-mini", "gpt-4.1-mini-2025-04-14"),
    Listed::tunable("gpt-4.1-mini-2025-04-14", "gpt-4.1-mini-2025-04-14"),
    Listed::tunable("gpt-4.1-nano-2025-04-14", "gpt-4.1-nano-2025-04-14"),
    Listed::tunable("gpt-4o-2024-08-06", "gpt-4o-2024-08-06"),
    Listed { shutdown: Some("2027-01-14"), ..Listed::tunable("gpt-4o-mini", "gpt-4o-mini-2024-07-18") },
    Listed::tunable("gpt-4o-mini-2024-07-18", "gpt-4o-mini-2024-07-18"),
    Listed::tunable("gpt-3.5-turbo", "gpt-3.5-turbo-0125"),
    Listed::tunable("gpt-3.5-turbo-0125", "gpt-3.5-turbo-0125"),
    Listed::tunable("babbage-002", "babbage-002"),
    Listed::tunable("davinci-002", "davinci-002"),
    Listed::legacy("ada"),
    Listed::legacy("babbage"),
    Listed::legacy("curie"),
    Listed::legacy("davinci"),
    Listed::plain("text-embedding-3-small"),
    Listed::plain("omni-moderation-latest"),
    Listed::plain("gpt-image-2"),
    Listed::plain("gpt-3.5-turbo-instruct"),
    Listed::plain("local-model"),
];
/// Bases of today's interface that complete texts rather than chat.
const COMPLETING: [&str; 2] = ["babbage-002", "davinci-002"];
const ORGANISATION: &str = "sim";

/// A model that is there from the start.
#[derive(Clone, Copy, Debug)]
struct Listed {
    id: &'static str,
    shutdown: Option<&'static str>,
    /// What today's interface tunes when this is asked for.
    snapshot: Option<&'static str>,
    is_legacy_base: bool,
}

impl Listed {
    const fn plain(id: &'static str) -> Self {
        Self { id, shutdown: None, snapshot: None, is_legacy_base: false }
    }

    const fn tunable(id: &'static str, snapshot: &'static str) -> Self {
        Self { snapshot: Some(snapshot), ..Self::plain(id) }
    }

    const fn legacy(id: &'static str) -> Self {
        Self { is_legacy_base: true, ..Self::plain(id) }
    }
}

/// What a fine-tune begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base {
    /// As the fine-tune names it.
    pub(super) id: String,
    /// Without what was tuned before: stands in the new model's name.
    pub(super) root: String,
    pub(super) is_chat: bool,
}

/// A model that a fine-tune has made.
#[derive(Clone, Debug)]
pub(super) struct Tuned {
    pub(super) id: String,
    pub(super) base: Base,
    pub(super) api: Api,
    pub(super) created: Duration,
}

#[derive(Debug)]
pub(super) struct Models {
    /// Empty: [`LISTED`].
    given: Vec<String>,
    /// A model that is not listed is not known.
    is_strict: bool,
    tuned: Vec<Tuned>,
    /// Tuned ones that were deleted: known to be gone.
    deleted: Vec<String>,
}

impl Models {
    pub(super) fn new(given: Vec<String>, is_strict: bool) -> Self {
        Self { is_strict: is_strict || !given.is_empty(), given, tuned: Vec::new(), deleted: Vec::new() }
    }

    /// Whether a request may be answered with this model.
    pub(super) fn admit(&self, endpoint: Endpoint, model: &str) -> Result<(), Refusal> {
        if let Some(tuned) = self.tuned(model) {
            return match endpoint {
                Endpoint::Completions if tuned.base.is_chat => Err(Refusal::chat_model()),
                Endpoint::ChatCompletions | Endpoint::Responses if !tuned.base.is_chat => {
                    Err(Refusal::no_chat_model())
                }
                Endpoint::Completions
                | Endpoint::ChatCompletions
                | Endpoint::Responses
                | Endpoint::Embeddings
                | Endpoint::Moderations
                | Endpoint::Images => Ok(()),
            };
        }
        self.know(model)
    }

    fn know(&self, model: &str) -> Result<(), Refusal> {
        let is_deleted = self.deleted.iter().any(|deleted| deleted == model);
        if is_deleted || (self.is_strict && !self.is_listed(model)) {
            return Err(Refusal::model_not_found(model));
        }
        Ok(())
    }

    fn is_listed(&self, model: &str) -> bool {
        if self.given.is_empty() {
            LISTED.iter().any(|listed| listed.id == model)
        } else {
            self.given.iter().any(|given| given == model)
        }
    }

    /// What a fine-tune that names `model` begins with.
    pub(super) fn base(&self, api: Api, model: &str) -> Result<Base, Refusal> {
        if let Some(tuned) = self.tuned(model) {
            if tuned.api != api {
                return Err(Refusal::not_tunable(model));
            }
            let Base { root, is_chat, .. } = tuned.base.clone();
            return Ok(Base { id: model.to_owned(), root, is_chat });
        }
        let listed = LISTED.iter().find(|listed| listed.id == model);
        if !self.is_listed(model) {
            return Err(Refusal::model_not_found(model));
        }
        let id = match (api, listed) {
            // A model that somebody has listed by hand can be tuned.
            (_, None) => Some(model),
            (Api::Jobs, Some(listed)) => listed.snapshot,
            (Api::Legacy, Some(listed)) => listed.is_legacy_base.then_some(model),
        };
        let id = id.ok_or_else(|| Refusal::not_tunable(model))?;
        let is_chat = api == Api::Jobs && !COMPLETING.contains(&id);
        Ok(Base { id: id.to_owned(), root: id.to_owned(), is_chat })
    }

    pub(super) fn add(&mut self, tuned: Tuned) {
        self.tuned.push(tuned);
    }

    /// By its name or that of one of its checkpoints.
    fn tuned(&self, model: &str) -> Option<&Tuned> {
        let model = model.split_once(":ckpt-step-").map_or(model, |(model, _)| model);
        self.tuned.iter().find(|tuned| tuned.id == model)
    }

    pub(super) fn list(&self, calendar: Calendar) -> Value {
        let mut data: Vec<Value> = if self.given.is_empty() {
            LISTED.iter().map(|listed| object(listed.id, listed.shutdown)).collect()
        } else {
            self.given.iter().map(|given| self.plain(given)).collect()
        };
        data.extend(self.tuned.iter().map(|tuned| tuned.object(calendar)));
        json!({ "object": "list", "data": data })
    }

    pub(super) fn show(&self, model: &str, calendar: Calendar) -> Result<Value, Refusal> {
        if let Some(tuned) = self.tuned(model) {
            return Ok(tuned.object(calendar));
        }
        self.know(model).map(|()| self.plain(model))
    }

    /// A model that no fine-tune has made.
    fn plain(&self, model: &str) -> Value {
        let listed = LISTED.iter().find(|listed| listed.id == model && self.given.is_empty());
        object(model, listed.and_then(|listed| listed.shutdown))
    }

    pub(super) fn delete(&mut self, model: &str) -> Result<Value, Refusal> {
        let Some(place) = self.tuned.iter().position(|tuned| tuned.id == model) else {
            return Err(if self.is_listed(model) {
                Refusal::not_your_model(model)
            } else {
                Refusal::model_not_found(model)
            });
        };
        self.deleted.push(self.tuned.remove(place).id);
        Ok(json!({ "id": model, "object": "model", "deleted": true }))
    }

    /// `ft:BASE:ORGANISATION:SUFFIX:ID` of today's interface.
    pub(super) fn name_today(base: &Base, suffix: &str, id: &str) -> String {
        format!("ft:{}:{ORGANISATION}:{suffix}:{id}", base.root)
    }

    /// `BASE:ft-ORGANISATION:SUFFIX-DATE` of the legacy interface; no two are the same.
    pub(super) fn name_legacy(&self, base: &Base, suffix: Option<&str>, created_at: u64) -> String {
        let name = |seconds: u64| {
            let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
            let date = chrono::DateTime::from_timestamp(seconds, 0).unwrap_or_default();
            let date = date.format("%Y-%m-%d-%H-%M-%S");
            match suffix {
                Some(suffix) => format!("{}:ft-{ORGANISATION}:{suffix}-{date}", base.root),
                None => format!("{}:ft-{ORGANISATION}-{date}", base.root),
            }
        };
        let mut names = (created_at..).map(name);
        let is_free = |name: &String| self.tuned(name).is_none() && !self.deleted.contains(name);
        names.find(is_free).unwrap_or_default()
    }
}

impl Tuned {
    fn object(&self, calendar: Calendar) -> Value {
        json!({
            "id": self.id,
            "object": "model",
            "created": calendar.unix(self.created),
            "owned_by": format!("org-{ORGANISATION}"),
        })
    }
}

fn object(id: &str, shutdown_date: Option<&str>) -> Value {
    json!({
        "id": id,
        "object": "model",
        "created": CREATED,
        "owned_by": "batchd-simulate",
        "shutdown_date": shutdown_date,
    })
}

/// As the API puts a suffix into a name.
pub(super) fn slug(suffix: &str) -> String {
    let letter = |letter: char| if letter.is_alphanumeric() { letter.to_ascii_lowercase() } else { '-' };
    suffix.chars().map(letter).collect()
}
