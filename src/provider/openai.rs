//! Where a provider's endpoints are and what is sent with a request: urls, the key, the other headers.
//!
//! # Invariants
//!
//! - The key goes to the origin (scheme, host, port) of `base_url` and nowhere else: [`Api::headers_for`]
//!   is the only place that hands it out.
//! - The header that holds it is marked sensitive, so that no `Debug` shows it.

use std::fmt;

use memchr::memmem;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use secrecy::{ExposeSecret, SecretString};
use url::{Origin, Url};

use crate::domain::Endpoint;

/// Some providers sort their traffic by it, and an operator finds us in a proxy's log.
const AGENT: &str = concat!("batchd/", env!("CARGO_PKG_VERSION"));

/// Where Azure's resources for models stand, in all its clouds.
const AZURE: [&str; 5] = [
    ".openai.azure.com",
    ".cognitiveservices.azure.com",
    ".services.ai.azure.com",
    ".openai.azure.us",
    ".openai.azure.cn",
];

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
    /// Below it stand files, models and fine-tunes.
    resources: Url,
    is_azure: bool,
    /// The header that carries the key.
    authorization: Option<(HeaderName, HeaderValue)>,
    /// What must not show: this key, if it is one, and those that were sent before it.
    secrets: Vec<SecretString>,
    /// In the order of [`Endpoint::ALL`].
    targets: Vec<(Endpoint, Url, HeaderMap)>,
}

impl Api {
    /// A key that no header can hold (control characters; `config` refuses those) is not sent.
    pub(super) fn new(base_url: &Url, api_key: Option<&SecretString>) -> Self {
        let mut api = Self {
            origin: base_url.origin(),
            resources: without_deployment(base_url),
            is_azure: is_azure(base_url),
            authorization: api_key.and_then(|key| authorization(base_url, key.expose_secret())),
            secrets: api_key.filter(|key| is_secret(key.expose_secret())).cloned().into_iter().collect(),
            targets: Vec::new(),
        };
        api.targets = Endpoint::ALL
            .into_iter()
            .map(|endpoint| {
                let url = below(base_url, endpoint.path());
                let headers = api.headers_for(&url);
                (endpoint, url, headers)
            })
            .collect();
        api
    }

    /// The same address with another key. A reply to what was sent with this one may still quote it.
    pub(super) fn with_key(&self, base_url: &Url, api_key: Option<&SecretString>) -> Self {
        let mut api = Self::new(base_url, api_key);
        for former in &self.secrets {
            let is_known = |known: &SecretString| known.expose_secret() == former.expose_secret();
            if api.secrets.len() <= FORMER_MAX && !api.secrets.iter().any(is_known) {
                api.secrets.push(former.clone());
            }
        }
        api
    }

    /// The url and headers of a request to `endpoint`.
    pub(super) fn target(&self, endpoint: Endpoint) -> (&Url, &HeaderMap) {
        let target = self.targets.iter().find(|(known, ..)| *known == endpoint);
        let (_, url, headers) = target.expect("there is a target for each of Endpoint::ALL");
        (url, headers)
    }

    /// The url of what lies at `path`, which begins with a slash and is written as urls are.
    pub(super) fn resource(&self, path: &str) -> Url {
        below(&self.resources, path)
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
        if let Some((name, value)) = &self.authorization
            && url.origin() == self.origin
        {
            headers.insert(name, value.clone());
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

/// `base_url` with `path` added; a query (Azure's `api-version`) stays.
fn below(base_url: &Url, path: &str) -> Url {
    let mut url = base_url.clone();
    url.set_path(&format!("{}{path}", base_url.path().trim_end_matches('/')));
    url.set_fragment(None);
    // A password in a url would show wherever the url does; keys have their own place.
    if url.set_username("").and_then(|()| url.set_password(None)).is_err() {
        return base_url.clone(); // `data:` and its like, which lead nowhere anyway
    }
    url
}

/// Azure's `…/openai/deployments/NAME` serves one model; files and fine-tunes lie beside all of them.
fn without_deployment(base_url: &Url) -> Url {
    let mut url = base_url.clone();
    let path = base_url.path().trim_end_matches('/');
    if let Some((resource, name)) = path.rsplit_once("/deployments/")
        && resource.ends_with("/openai")
        && !name.contains('/')
    {
        url.set_path(resource);
    }
    url
}

fn is_azure(base_url: &Url) -> bool {
    base_url.host_str().is_some_and(|host| AZURE.iter().any(|domain| host.ends_with(domain)))
}

fn authorization(base_url: &Url, key: &str) -> Option<(HeaderName, HeaderValue)> {
    // Entra's tokens are JWTs, and no key begins like one.
    let (name, value) = if is_azure(base_url) && !key.starts_with("eyJ") {
        (API_KEY, HeaderValue::from_str(key))
    } else {
        (AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {key}")))
    };
    let mut value = value.ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

fn is_secret(key: &str) -> bool {
    key.len() >= SECRET_BYTES_MIN || (key.starts_with("sk-") && key.len() > "sk-".len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(base_url: &str, key: &str) -> Api {
        Api::new(&base_url.parse().unwrap(), Some(&SecretString::from(key)))
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
            assert_eq!(api.target(Endpoint::ChatCompletions).0.as_str(), expected);
        }
        let api = api("http://h/v1", "sk-x");
        for endpoint in Endpoint::ALL {
            assert!(api.target(endpoint).0.path().ends_with(endpoint.url()));
        }
    }

    #[test]
    fn files_and_fine_tunes_stand_beside_azures_deployments() {
        for (base_url, expected, azure) in [
            ("https://api.openai.com/v1", "https://api.openai.com/v1/files", false),
            ("http://user:password@localhost:8000/v1/", "http://localhost:8000/v1/files", false),
            (
                "https://r.openai.azure.com/openai/deployments/d?api-version=2024-10-21",
                "https://r.openai.azure.com/openai/files?api-version=2024-10-21",
                true,
            ),
            (
                "https://r.openai.azure.com/openai/deployments/d/",
                "https://r.openai.azure.com/openai/files",
                true,
            ),
            ("https://r.openai.azure.com/openai/v1/", "https://r.openai.azure.com/openai/v1/files", true),
            (
                "https://azure.com.evil.test/deployments/d",
                "https://azure.com.evil.test/deployments/d/files",
                false,
            ),
        ] {
            let api = api(base_url, "sk-x");
            assert_eq!((api.resource("/files").as_str(), api.is_azure()), (expected, azure));
        }
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
        let (_, headers) = api.target(Endpoint::Completions);
        assert_eq!(headers[AUTHORIZATION], "Bearer sk-CANARY");
        assert_eq!(headers[CONTENT_TYPE], "application/json");
        assert_eq!(headers[USER_AGENT], AGENT);
        assert!(!format!("{headers:?}{api:?}").contains("CANARY"));
    }

    #[test]
    fn azure_takes_keys_and_tokens_in_headers_of_their_own() {
        let sent = |base_url: &str, key: &str| {
            let api = api(base_url, key);
            let (_, headers) = api.target(Endpoint::ChatCompletions);
            assert!(!format!("{headers:?}").contains(key), "{headers:?}");
            let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            (text(&API_KEY), text(&AUTHORIZATION))
        };
        let azure = "https://r.openai.azure.com/openai/v1";
        assert_eq!(sent(azure, "CANARY"), (Some("CANARY".to_owned()), None));
        assert_eq!(sent(azure, "eyJ0.CANARY"), (None, Some("Bearer eyJ0.CANARY".to_owned())));
        let other = "https://models.inference.ai.azure.com";
        assert_eq!(sent(other, "CANARY"), (None, Some("Bearer CANARY".to_owned())));
    }

    #[test]
    fn a_server_without_a_key_gets_none() {
        let api = Api::new(&"http://localhost:11434/v1".parse().unwrap(), None);
        assert!(!api.target(Endpoint::ChatCompletions).1.contains_key(AUTHORIZATION));
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
