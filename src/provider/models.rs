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
        let page: Page<Model> = self.page(self.access().api.resource(PATH)).await?;
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
        let listed = ask(found.filter(|provider| !provider.access().api.is_azure())?).await.map(Arc::new);
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
    (!models.is_empty()).then(|| models.into_iter().map(|model| model.id).collect())
}

/// The names of a provider's models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    ids: Vec<String>,
}

impl FromIterator<String> for Listed {
    fn from_iter<I: IntoIterator<Item = String>>(ids: I) -> Self {
        Self { ids: ids.into_iter().collect() }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::testing::{Listener, http, provider, provider_at};

    #[tokio::test]
    async fn models_are_listed_and_shown_with_what_is_known_of_them() {
        let model = r#"{"id":"ft:a/b","created":1700000000,"owned_by":"me","shutdown_date":"2026-12-11"}"#;
        let list = format!(r#"{{"object":"list","data":[{model},{{"id":"bare"}}]}}"#);
        let server = Listener::with_replies(vec![http("200 OK", "", &list), http("200 OK", "", model)]).await;
        let models = provider(&server).models().await.unwrap();
        assert_eq!(models.iter().map(|model| model.id.as_str()).collect::<Vec<_>>(), ["ft:a/b", "bare"]);
        let shown = provider(&server).model("ft:a/b").await.unwrap();
        assert_eq!((shown.owned_by.as_deref(), shown.raw.get()), (Some("me"), model));
        assert_eq!(shown.shutdown_date, NaiveDate::from_ymd_opt(2026, 12, 11));
        assert_eq!(server.first_lines(), ["GET /v1/models HTTP/1.1", "GET /v1/models/ft%3Aa%2Fb HTTP/1.1"]);
    }

    #[test]
    fn shutdown_dates_are_read_where_servers_put_them() {
        let date = |member: &str| Model::read(&format!(r#"{{"id":"m",{member}}}"#)).unwrap().shutdown_date;
        let day = NaiveDate::from_ymd_opt(2026, 12, 11);
        for (member, expected) in [
            (r#""shutdown_date":"2026-12-11""#, day),
            (r#""shutdown_date":"2026-12-11T00:00:00Z""#, day),
            (r#""shutdown_date":null,"deprecation":{"fine_tune":1,"inference":1796947200}"#, day),
            (r#""deprecation":{"inference":0}"#, None),
            (r#""shutdown_date":"soon""#, None),
            (r#""shutdown_date":null"#, None),
            (r#""a":1"#, None),
        ] {
            assert_eq!(date(member), expected, "{member}");
        }
    }

    const LIST: &str = r#"{"data":[{"id":"gpt-4.1"},{"id":"llama3:latest"}]}"#;

    fn catalogue(server: &Listener) -> Catalogue {
        Catalogue::new(vec![provider(server)])
    }

    /// Moves tokio's clock, which then goes on: sockets need it to.
    async fn pass(time: Duration) {
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    }

    #[tokio::test]
    async fn a_list_is_asked_for_once_in_ten_minutes() {
        let server = Listener::new(&http("200 OK", "", LIST)).await;
        let catalogue = catalogue(&server);
        let listed = catalogue.listed("test").await.unwrap();
        assert_eq!(catalogue.listed("test").await, Some(listed));
        assert!(catalogue.listed("nobody").await.is_none());
        pass(Duration::from_mins(9)).await;
        assert!(catalogue.listed("test").await.is_some());
        assert_eq!(server.requests().len(), 1);
        pass(Duration::from_secs(61)).await;
        assert!(catalogue.listed("test").await.is_some());
        assert_eq!(server.requests().len(), 2);
    }

    #[tokio::test]
    async fn a_provider_that_gives_no_list_is_left_alone_for_a_minute() {
        for reply in [
            &b""[..],
            &http("404 Not Found", "", ""),
            &http("401 No", "", ""),
            &http("200 OK", "", r#"{"data":[]}"#),
            &http("200 OK", "", "<html>"),
        ] {
            let server = Listener::new(reply).await;
            let catalogue = catalogue(&server);
            assert!(catalogue.listed("test").await.is_none());
            assert!(catalogue.listed("test").await.is_none());
            assert_eq!(server.requests().len(), 1);
            pass(Duration::from_secs(61)).await;
            assert!(catalogue.listed("test").await.is_none());
            assert_eq!(server.requests().len(), 2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_never_answers_costs_five_seconds() {
        // Nobody accepts; under the paused clock the time-out is the next thing that happens.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let provider = provider_at(&format!("http://{}/v1", listener.local_addr().unwrap()));
        let began = Instant::now();
        assert!(Catalogue::new(vec![provider]).listed("test").await.is_none());
        assert!(began.elapsed() <= PATIENCE + Duration::from_millis(10), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn azures_list_does_not_name_deployments_and_is_not_asked_for() {
        let provider = provider_at("https://r.openai.azure.com/openai/v1");
        assert!(Catalogue::new(vec![provider]).listed("test").await.is_none());
    }

    #[test]
    fn names_are_known_and_the_nearest_are_offered() {
        let ids = ["gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano", "gpt-4o-mini", "llama3:latest", "x/*"];
        let listed: Listed = ids.map(str::to_owned).into_iter().collect();
        for (model, expected) in
            [("gpt-4.1", true), ("llama3", true), ("llama3:latest", true), ("x/y", true), ("gpt-4", false)]
        {
            assert_eq!(listed.contains(model), expected, "{model}");
        }
        assert_eq!(listed.nearest("gpt-4.1-mimi"), ["gpt-4.1-mini", "gpt-4o-mini", "gpt-4.1-nano"]);
        assert!(listed.nearest("whisper-large-v3").is_empty());
    }
}
