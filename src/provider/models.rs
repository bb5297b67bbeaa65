//! The provider's models, and a catalogue of them that asks seldom.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, NaiveDate};
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::diag::nearest;
use crate::domain::Timestamp;
use crate::provider::Provider;
use crate::provider::ask::{Called, Object, Raw};
use crate::provider::list::Page;

/// How long a list holds. Models come and go by the month, a mistyped name is typed once.
const LISTED_FOR: Duration = Duration::from_mins(10);

/// How long a provider that gave no list is left alone.
const UNLISTED_FOR: Duration = Duration::from_mins(1);

/// Nobody's job waits longer for a warning.
const PATIENCE: Duration = Duration::from_secs(5);

/// Names that are offered for a mistyped one.
const NEAREST_MAX: usize = 3;

const PATH: &str = "/models";

/// A model as the provider describes it. Only the id is certain.
#[derive(Clone, Debug)]
pub struct Model {
    pub id: String,
    pub owned_by: Option<String>,
    pub created: Option<Timestamp>,
    /// The last day on which it answers, as far as the provider says.
    pub shutdown_date: Option<NaiveDate>,
    /// The whole object, on one line.
    pub raw: Box<RawValue>,
}

impl Object for Model {
    const LACKS: &'static str = "it lacks the `id` of a model";

    fn read(text: &str) -> Option<Self> {
        let model = Raw::of(text)?;
        let members = &model.members;
        // Azure has the date elsewhere, in seconds; `0` and the like are no dates.
        let azure = || members.object("deprecation")?.number("inference").filter(|seconds| *seconds > 0);
        let azure =
            || DateTime::from_timestamp(i64::try_from(azure()?).ok()?, 0).map(|time| time.date_naive());
        let date = model.text("shutdown_date").and_then(|date| date.get(..10)?.parse().ok());
        Some(Self {
            owned_by: model.text("owned_by"),
            created: members.time("created").or_else(|| members.time("created_at")),
            shutdown_date: date.or_else(azure),
            id: model.id,
            raw: model.json,
        })
    }

    fn id(&self) -> Option<&str> {
        Some(&self.id)
    }
}

impl Provider {
    /// Every model that the key may use. The list has no pages.
    pub async fn models(&self) -> Called<Vec<Model>> {
        let page: Page<Model> = self.page(self.api.resource(PATH)).await?;
        Ok(page.items)
    }

    /// One model; a refusal with 404 if there is none of that id.
    pub async fn model(&self, id: &str) -> Called<Model> {
        self.get(self.object_url(PATH, id, "")?).await
    }
}

/// The models of every provider, asked for at most once in ten minutes. That a provider has no list, refuses or
/// can't be reached is no error: then nothing is known.
pub struct Catalogue {
    providers: Vec<Provider>,
    known: Mutex<BTreeMap<String, Known>>,
}

/// What a provider last said.
#[derive(Clone, Debug)]
struct Known {
    listed: Option<Arc<Listed>>,
    until: Instant,
}

impl fmt::Debug for Catalogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalogue").field("providers", &self.providers).finish_non_exhaustive()
    }
}

impl Catalogue {
    pub const fn new(providers: Vec<Provider>) -> Self {
        Self { providers, known: Mutex::new(BTreeMap::new()) }
    }

    /// The models of the provider called `provider`, as far as that can be said within seconds: none for a provider
    /// that doesn't list models, or not now, or whose list doesn't name what requests call a model (Azure).
    pub async fn listed(&self, provider: &str) -> Option<Arc<Listed>> {
        if let Some(known) = self.known().get(provider).filter(|known| Instant::now() < known.until) {
            return known.listed.clone();
        }
        let found = self.providers.iter().find(|known| known.name() == provider);
        let listed = ask(found.filter(|provider| !provider.api.is_azure())?).await.map(Arc::new);
        let holds_for = if listed.is_some() { LISTED_FOR } else { UNLISTED_FOR };
        let known = Known { listed: listed.clone(), until: Instant::now() + holds_for };
        self.known().insert(provider.to_owned(), known);
        listed
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Known>> {
        // A list is put in whole or not at all.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn ask(provider: &Provider) -> Option<Listed> {
    let models = tokio::time::timeout(PATIENCE, provider.models()).await.ok()?.ok()?;
    let ids: Vec<String> = models.into_iter().map(|model| model.id).collect();
    (!ids.is_empty()).then_some(Listed { ids })
}

/// The names of a provider's models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    ids: Vec<String>,
}

impl Listed {
    /// Whether a request may call for `model`.
    pub fn contains(&self, model: &str) -> bool {
        self.ids.iter().any(|id| {
            // Ollama lists `llama3:latest` and takes `llama3`; LiteLLM lists `openai/*` for all that begin so.
            id == model
                || id.strip_suffix(":latest") == Some(model)
                || id.strip_suffix('*').is_some_and(|start| model.starts_with(start))
        })
    }

    /// The names most like `model`, the nearest first; none if there is nothing like it.
    pub fn nearest(&self, model: &str) -> Vec<&str> {
        let mut left: Vec<&str> = self.ids.iter().map(String::as_str).collect();
        let mut found = Vec::new();
        while found.len() < NEAREST_MAX
            && let Some(name) = nearest(model, left.iter().copied())
        {
            found.push(name);
            left.retain(|other| *other != name);
        }
        found
    }
}
