//! Where a provider's endpoints are and what is sent with a request: urls, the key, the other headers.
//!
//! # Invariants
//!
//! - The key, and the headers that the configuration adds, go to the origin (scheme, host, port) of `base_url` and
//!   nowhere else: [`Api::headers`] is the only place that hands them out.
//! - A header that holds a secret is marked sensitive, so that no `Debug` shows it.

use std::fmt;

use memchr::memmem;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use secrecy::{ExposeSecret, SecretString};
use url::{Origin, Url};

use crate::domain::Endpoint;
use crate::provider::Settings;
use crate::provider::azure::{self, Places};

/// Some providers sort their traffic by it, and an operator finds us in a proxy's log.
const AGENT: &str = concat!("batchd/", env!("CARGO_PKG_VERSION"));

/// Where Azure looks for a resource's key; `Authorization` is for Entra's tokens there.
const API_KEY: HeaderName = HeaderName::from_static("api-key");

/// Keys shorter than this that don't even begin like one are the placeholders that local servers want
/// (`EMPTY`, `ollama`): no secret, and a word that an answer may well hold.
const SECRET_BYTES_MIN: usize = 16;

/// Keys that were in use before and are still struck out of replies: no exchange lasts over so many changes.
const FORMER_MAX: usize = 8;

/// A provider's address and key, made ready once so that a request costs a clone.
pub(super) struct Api {
    origin: Origin,
    places: Places,
    is_azure: bool,
    /// The header that carries the key.
    authorization: Option<(HeaderName, HeaderValue)>,
    /// What the configuration adds.
    extra: HeaderMap,
    /// What must not show: this key and the secrets among the headers, and those that were sent before them.
    secrets: Vec<SecretString>,
    /// Of those endpoints whose url no model changes.
    targets: Vec<(Endpoint, Url, HeaderMap)>,
}

impl Api {
    /// A key that no header can hold (control characters; `config` refuses those) is not sent.
    pub(super) fn new(settings: &Settings) -> Self {
        let Settings { base_url, api_key, custom, .. } = settings;
        let version = custom.api_version.as_deref();
        let is_azure = azure::is_azure(base_url, version);
        let mut api = Self {
            origin: base_url.origin(),
            places: Places::new(base_url, version),
            is_azure,
            authorization: api_key.as_ref().and_then(|key| authorization(is_azure, key.expose_secret())),
            extra: custom.headers.clone(),
            secrets: api_key.iter().cloned().chain(secrets_of(&custom.headers)).collect(),
            targets: Vec::new(),
        };
        api.secrets.retain(|secret| is_secret(secret.expose_secret()));
        let target = |endpoint| {
            let url = api.places.of_all_models(endpoint)?;
            let headers = api.headers_for(&url);
            Some((endpoint, url, headers))
        };
        api.targets = Endpoint::ALL.into_iter().filter_map(target).collect();
        api
    }

    /// The same address with another key. A reply to what was sent with this one may still quote it.
    pub(super) fn changed(&self, settings: &Settings) -> Self {
        let mut api = Self::new(settings);
        for former in &self.secrets {
            let is_known = |known: &SecretString| known.expose_secret() == former.expose_secret();
            if api.secrets.len() <= FORMER_MAX && !api.secrets.iter().any(is_known) {
                api.secrets.push(former.clone());
            }
        }
        api
    }

    /// The url and headers of a request to `endpoint`; none if the model is missing that its url is made of.
    pub(super) fn target(&self, endpoint: Endpoint, model: Option<&str>) -> Option<(Url, HeaderMap)> {
        if let Some((_, url, headers)) = self.targets.iter().find(|(known, ..)| *known == endpoint) {
            return Some((url.clone(), headers.clone()));
        }
        let url = self.places.of_model(endpoint, model?)?;
        let headers = self.headers_for(&url);
        Some((url, headers))
    }

    /// The url of what lies at `path`, which begins with a slash and is written as urls are.
    pub(super) fn resource(&self, path: &str) -> Url {
        self.places.resource(path)
    }

    /// Azure: what a request calls `model` is a deployment there, and no list names those.
    pub(super) const fn is_azure(&self) -> bool {
        self.is_azure
    }

    /// What goes with a JSON request to `url`.
    fn headers_for(&self, url: &Url) -> HeaderMap {
        let mut headers = self.headers(url);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers
    }

    /// What goes with any request to `url`: the key only if that is the provider itself.
    pub(super) fn headers(&self, url: &Url) -> HeaderMap {
        let mut headers = plain_headers();
        if url.origin() == self.origin {
            headers.extend(self.extra.clone());
            if let Some((name, value)) = &self.authorization {
                headers.insert(name, value.clone());
            }
        }
        headers
    }

    /// Whether `bytes` hold the key: some servers quote it in their errors, and those are kept in files.
    pub(super) fn leaks_into(&self, bytes: &[u8]) -> bool {
        self.secrets.iter().any(|key| memmem::find(bytes, key.expose_secret().as_bytes()).is_some())
    }

    /// `bytes` with the key struck out.
    pub(super) fn without_key(&self, bytes: &[u8]) -> Vec<u8> {
        self.secrets
            .iter()
            .fold(bytes.to_vec(), |bytes, key| struck_out(&bytes, key.expose_secret().as_bytes()))
    }
}

fn struck_out(bytes: &[u8], key: &[u8]) -> Vec<u8> {
    let mut clean = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((before, behind)) =
        memmem::find(rest, key).and_then(|at| Some((rest.get(..at)?, rest.get(at + key.len()..)?)))
    {
        clean.extend_from_slice(before);
        clean.extend_from_slice(b"[api key]");
        rest = behind;
    }
    clean.extend_from_slice(rest);
    clean
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("origin", &self.origin.ascii_serialization()).finish_non_exhaustive()
    }
}

/// What goes with a request to any server: nothing of the user's.
pub(super) fn plain_headers() -> HeaderMap {
    [(USER_AGENT, HeaderValue::from_static(AGENT))].into_iter().collect()
}

fn authorization(is_azure: bool, key: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = if is_azure && azure::is_key(key) {
        (API_KEY, HeaderValue::from_str(key))
    } else {
        (AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {key}")))
    };
    let mut value = value.ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

/// What is marked as one.
fn secrets_of(headers: &HeaderMap) -> impl Iterator<Item = SecretString> {
    let secrets = headers.values().filter(|value| value.is_sensitive());
    secrets.filter_map(|value| value.to_str().ok().map(SecretString::from))
}

fn is_secret(key: &str) -> bool {
    key.len() >= SECRET_BYTES_MIN || (key.starts_with("sk-") && key.len() > "sk-".len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Custom;

    fn settings(base_url: &str, key: &str) -> Settings {
        let key = Some(SecretString::from(key)).filter(|key| !key.expose_secret().is_empty());
        Settings { api_key: key, ..Settings::at(base_url) }
    }

    fn api(base_url: &str, key: &str) -> Api {
        Api::new(&settings(base_url, key))
    }

    /// Of a request without a model.
    fn sent(api: &Api, endpoint: Endpoint) -> (Url, HeaderMap) {
        api.target(endpoint, None).unwrap()
    }

    #[test]
    fn endpoints_stand_below_the_base_url() {
        for (base_url, expected) in [
            ("https://api.openai.com/v1", "https://api.openai.com/v1/chat/completions"),
            ("http://localhost:8000/v1/", "http://localhost:8000/v1/chat/completions"),
            ("http://localhost:8000", "http://localhost:8000/chat/completions"),
            ("http://user:password@localhost:8000", "http://localhost:8000/chat/completions"),
            (
                "https://r.openai.azure.com/openai/deployments/d?api-version=2024-10-21",
                "https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21",
            ),
        ] {
            let api = api(base_url, "sk-x");
            assert_eq!(sent(&api, Endpoint::ChatCompletions).0.as_str(), expected);
        }
        let api = api("http://h/v1", "sk-x");
        for endpoint in Endpoint::ALL {
            assert!(sent(&api, endpoint).0.path().ends_with(endpoint.url()));
        }
    }

    #[test]
    fn a_request_without_a_model_has_no_url_where_that_is_made_of_it() {
        let custom = Custom { api_version: Some("2024-10-21".to_owned()), ..Custom::default() };
        let settings = Settings { custom, ..settings("http://127.0.0.1:9", "CANARY") };
        let api = Api::new(&settings);
        let (url, headers) = api.target(Endpoint::ChatCompletions, Some("gpt 4")).unwrap();
        assert_eq!(url.path(), "/openai/deployments/gpt%204/chat/completions");
        assert_eq!(headers[&API_KEY], "CANARY");
        assert_eq!(headers[CONTENT_TYPE], "application/json");
        assert!(api.target(Endpoint::ChatCompletions, None).is_none() && api.is_azure());
        assert_eq!(sent(&api, Endpoint::Responses).0.path(), "/openai/responses");
    }

    #[test]
    fn added_headers_go_to_the_providers_origin_alone_and_their_secrets_are_struck_out() {
        let mut headers = HeaderMap::new();
        headers.insert("openai-organization", HeaderValue::from_static("org-5"));
        headers.insert("user-agent", HeaderValue::from_static("mine"));
        let mut token = HeaderValue::from_static("t-CANARY-0123456789");
        token.set_sensitive(true);
        headers.insert("x-token", token);
        let before = settings("https://api.example.com/v1", "sk-CANARY");
        let with = Settings { custom: Custom { headers, ..Custom::default() }, ..before.clone() };
        let api = Api::new(&before).changed(&with);
        let there = sent(&api, Endpoint::Embeddings).1;
        assert_eq!(there["openai-organization"], "org-5");
        assert_eq!(there["x-token"], "t-CANARY-0123456789");
        assert_eq!(there[USER_AGENT], "mine");
        assert_eq!(there[AUTHORIZATION], "Bearer sk-CANARY");
        assert!(!format!("{there:?}{with:?}").contains("CANARY"));
        let elsewhere = api.headers(&"https://example.com/v1".parse().unwrap());
        assert_eq!(elsewhere, plain_headers());
        assert_eq!(api.without_key(b"t-CANARY-0123456789, org-5"), b"[api key], org-5");
        let without = api.changed(&before);
        assert!(!sent(&without, Endpoint::Embeddings).1.contains_key("x-token"));
        assert!(without.leaks_into(b"t-CANARY-0123456789"), "it is still a secret");
    }

    #[test]
    fn the_key_goes_to_the_providers_origin_and_nowhere_else() {
        let api = api("https://api.example.com/v1", "sk-CANARY");
        for (url, sent) in [
            ("https://api.example.com/v1/embeddings", true),
            ("https://api.example.com:443/elsewhere", true),
            ("http://api.example.com/v1/embeddings", false),
            ("https://api.example.com:8443/v1/embeddings", false),
            ("https://example.com/v1/embeddings", false),
            ("https://api.example.com.evil.test/v1", false),
            ("https://api.example.com@evil.test/v1", false),
            ("data:text/plain,x", false),
        ] {
            let headers = api.headers_for(&url.parse().unwrap());
            assert_eq!(headers.contains_key(AUTHORIZATION), sent, "{url}");
        }
    }

    #[test]
    fn requests_say_who_we_are_and_carry_the_key_unseen() {
        let api = api("https://api.example.com/v1", "sk-CANARY");
        let (_, headers) = sent(&api, Endpoint::Completions);
        assert_eq!(headers[AUTHORIZATION], "Bearer sk-CANARY");
        assert_eq!(headers[CONTENT_TYPE], "application/json");
        assert_eq!(headers[USER_AGENT], AGENT);
        assert!(!format!("{headers:?}{api:?}").contains("CANARY"));
    }

    #[test]
    fn azure_takes_keys_and_tokens_in_headers_of_their_own() {
        let named = |base_url: &str, key: &str| {
            let (_, headers) = sent(&api(base_url, key), Endpoint::ChatCompletions);
            assert!(!format!("{headers:?}").contains(key), "{headers:?}");
            let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            (text(&API_KEY), text(&AUTHORIZATION))
        };
        let azure = "https://r.openai.azure.com/openai/v1";
        assert_eq!(named(azure, "CANARY"), (Some("CANARY".to_owned()), None));
        assert_eq!(named(azure, "eyJ0.CANARY"), (None, Some("Bearer eyJ0.CANARY".to_owned())));
        let other = "https://models.inference.ai.azure.com";
        assert_eq!(named(other, "CANARY"), (None, Some("Bearer CANARY".to_owned())));
    }

    #[test]
    fn a_server_without_a_key_gets_none() {
        let api = api("http://localhost:11434/v1", "");
        assert!(!sent(&api, Endpoint::ChatCompletions).1.contains_key(AUTHORIZATION));
    }

    #[test]
    fn a_key_that_a_server_quotes_is_struck_out() {
        let api = api("https://api.example.com/v1", "sk-CANARY");
        assert!(api.leaks_into(b"{\"message\":\"bad key sk-CANARY, yes sk-CANARY\"}"));
        assert_eq!(
            api.without_key(b"bad key sk-CANARY, yes sk-CANARY!"),
            b"bad key [api key], yes [api key]!"
        );
        assert!(!api.leaks_into(b"sk-CANAR"));
    }

    #[test]
    fn placeholder_keys_are_words_that_answers_may_hold() {
        for word in ["ollama", "EMPTY", "none", "lm-studio", "sk-"] {
            assert!(!api("http://localhost/v1", word).leaks_into(word.as_bytes()), "{word}");
        }
    }
}
