//! Azure's urls, where they differ from those of OpenAI's own API, and where the key goes there.
//!
//! # Format
//!
//! | `base_url` ends in | `api_version` | a request goes to | files, models and fine-tunes lie below |
//! |---|---|---|---|
//! | `/openai/v1` | not needed | `/openai/v1/chat/completions` | `/openai/v1` |
//! | the host, or `/openai` | given | `/openai/deployments/{model}/chat/completions` | `/openai` |
//! | `/openai/deployments/NAME` | given | `/openai/deployments/NAME/chat/completions` | `/openai` |
//!
//! `api_version` is added to all of them as `?api-version=`. In the second shape what a request calls `model` is the name
//! of a deployment; what no deployment serves stands below `/openai`.

use percent_encoding::utf8_percent_encode;
use url::Url;

use crate::domain::Endpoint;
use crate::provider::ask::ID;

/// Where Azure's resources for models stand, in all its clouds.
const HOSTS: [&str; 5] = [
    ".openai.azure.com",
    ".cognitiveservices.azure.com",
    ".services.ai.azure.com",
    ".openai.azure.us",
    ".openai.azure.cn",
];

/// Where the parts of an API stand. Urls without user, password and fragment.
#[derive(Debug)]
pub(super) struct Places {
    /// Requests go below it.
    requests: Url,
    /// Files, models and fine-tunes lie below it.
    resources: Url,
    /// What a request calls `model` is a part of its url.
    by_deployment: bool,
}

impl Places {
    pub(super) fn new(base_url: &Url, api_version: Option<&str>) -> Self {
        let path = base_url.path().trim_end_matches('/');
        let (requests, resources, by_deployment) = match (deployments_of(path), api_version) {
            (Some(resources), _) => (path.to_owned(), resources.to_owned(), false),
            (None, Some(_)) if !path.ends_with("/v1") => {
                let root = format!("{}/openai", path.strip_suffix("/openai").unwrap_or(path));
                (root.clone(), root, true)
            }
            (None, _) => (path.to_owned(), path.to_owned(), false),
        };
        let at = |path: &str| {
            let mut url = cleaned(base_url);
            url.set_path(path);
            if let Some(version) = api_version {
                url.query_pairs_mut().append_pair("api-version", version);
            }
            url
        };
        Self { requests: at(&requests), resources: at(&resources), by_deployment }
    }

    /// The url of what lies at `path`, which begins with a slash and is written as urls are.
    pub(super) fn resource(&self, path: &str) -> Url {
        below(&self.resources, path)
    }

    /// Where requests to `endpoint` go, whatever their model; none if it depends on that.
    pub(super) fn of_all_models(&self, endpoint: Endpoint) -> Option<Url> {
        let is_one = !self.by_deployment || !has_deployments(endpoint);
        is_one.then(|| below(&self.requests, endpoint.path()))
    }

    /// Where requests to `endpoint` for this model go; none if no deployment can be called so.
    pub(super) fn of_model(&self, endpoint: Endpoint, model: &str) -> Option<Url> {
        // Dots alone would lead up in the path, to another endpoint.
        let is_name = !matches!(model, "" | "." | "..");
        let path = format!("/deployments/{}{}", utf8_percent_encode(model, ID), endpoint.path());
        is_name.then(|| below(&self.requests, &path))
    }
}

/// Whether the server is one of Azure's, or speaks as those do.
pub(super) fn is_azure(base_url: &Url, api_version: Option<&str>) -> bool {
    api_version.is_some()
        || base_url.host_str().is_some_and(|host| HOSTS.iter().any(|domain| host.ends_with(domain)))
}

/// Whether `key` is one of Azure's own, which go as `api-key`. Entra's tokens are JWTs, and no key begins like one.
pub(super) fn is_key(key: &str) -> bool {
    !key.starts_with("eyJ")
}

/// What `path` stands in, if it ends in `/openai/deployments/NAME`: that serves one model, and all else lies beside it.
fn deployments_of(path: &str) -> Option<&str> {
    let (resources, name) = path.rsplit_once("/deployments/")?;
    (resources.ends_with("/openai") && !name.contains('/')).then_some(resources)
}

/// What belongs to a deployment of a model; the others name their model in the body alone.
const fn has_deployments(endpoint: Endpoint) -> bool {
    match endpoint {
        Endpoint::ChatCompletions | Endpoint::Completions | Endpoint::Embeddings | Endpoint::Images => true,
        Endpoint::Responses | Endpoint::Moderations => false,
    }
}

/// `base` with `path` added; its query stays.
fn below(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}{path}", base.path().trim_end_matches('/')));
    url
}

/// A password in a url would show wherever the url does; keys have their own place.
fn cleaned(base_url: &Url) -> Url {
    let mut url = base_url.clone();
    url.set_fragment(None);
    if url.set_username("").and_then(|()| url.set_password(None)).is_err() {
        return base_url.clone(); // `data:` and its like, which lead nowhere anyway
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: Option<&str> = Some("2024-10-21");

    fn places(base_url: &str, version: Option<&str>) -> Places {
        Places::new(&base_url.parse().unwrap(), version)
    }

    /// As a request for the model `gpt 4/o` is sent.
    fn target(places: &Places, endpoint: Endpoint) -> String {
        let url = places.of_all_models(endpoint).or_else(|| places.of_model(endpoint, "gpt 4/o"));
        url.unwrap().to_string()
    }

    #[test]
    fn each_shape_has_its_url_for_each_endpoint() {
        const R: &str = "https://r.openai.azure.com";
        for (base_url, version, of_a_model, beside, query) in [
            ("/openai/v1", None, "/openai/v1", "/openai/v1", ""),
            ("/openai/v1/", Some("preview"), "/openai/v1", "/openai/v1", "?api-version=preview"),
            ("", VERSION, "/openai/deployments/gpt%204%2Fo", "/openai", "?api-version=2024-10-21"),
            ("/openai/", VERSION, "/openai/deployments/gpt%204%2Fo", "/openai", "?api-version=2024-10-21"),
            (
                "/gate/openai",
                VERSION,
                "/gate/openai/deployments/gpt%204%2Fo",
                "/gate/openai",
                "?api-version=2024-10-21",
            ),
            (
                "/openai/deployments/own",
                VERSION,
                "/openai/deployments/own",
                "/openai/deployments/own",
                "?api-version=2024-10-21",
            ),
            (
                "/openai/deployments/own/?api-version=x",
                None,
                "/openai/deployments/own",
                "/openai/deployments/own",
                "?api-version=x",
            ),
        ] {
            let places = places(&format!("{R}{base_url}"), version);
            for endpoint in Endpoint::ALL {
                let place = if has_deployments(endpoint) { of_a_model } else { beside };
                let expected = format!("{R}{place}{}{query}", endpoint.path());
                assert_eq!(target(&places, endpoint), expected, "{base_url}");
            }
        }
    }

    #[test]
    fn files_and_fine_tunes_stand_beside_the_deployments() {
        for (base_url, version, expected) in [
            ("https://api.openai.com/v1", None, "https://api.openai.com/v1/files"),
            ("http://user:password@localhost:8000/v1/", None, "http://localhost:8000/v1/files"),
            (
                "https://r.openai.azure.com/openai/deployments/d?api-version=2024-10-21",
                None,
                "https://r.openai.azure.com/openai/files?api-version=2024-10-21",
            ),
            (
                "https://r.openai.azure.com/openai/deployments/d/",
                VERSION,
                "https://r.openai.azure.com/openai/files?api-version=2024-10-21",
            ),
            (
                "https://r.openai.azure.com",
                VERSION,
                "https://r.openai.azure.com/openai/files?api-version=2024-10-21",
            ),
            ("https://r.openai.azure.com/openai/v1/", None, "https://r.openai.azure.com/openai/v1/files"),
            (
                "https://azure.com.evil.test/deployments/d",
                None,
                "https://azure.com.evil.test/deployments/d/files",
            ),
        ] {
            assert_eq!(places(base_url, version).resource("/files").as_str(), expected);
        }
    }

    #[test]
    fn no_model_leads_out_of_its_place() {
        let places = places("https://r.openai.azure.com", VERSION);
        for model in ["", ".", ".."] {
            assert_eq!(places.of_model(Endpoint::Embeddings, model), None, "{model}");
        }
        for model in ["../files", "a/../..", "%2e%2e", "..?x", "a#b", "…", "\\..\\"] {
            let url = places.of_model(Endpoint::Embeddings, model).unwrap();
            let path = url.path().strip_prefix("/openai/deployments/").unwrap();
            let name = path.strip_suffix("/embeddings").unwrap();
            assert_eq!(percent_encoding::percent_decode_str(name).decode_utf8().unwrap(), model);
            assert_eq!(url.query(), Some("api-version=2024-10-21"));
        }
    }

    #[test]
    fn azure_is_known_by_its_hosts_and_by_its_version() {
        for (base_url, version, expected) in [
            ("https://r.openai.azure.com/openai/v1", None, true),
            ("https://gate.example.com/aoai", VERSION, true),
            ("https://models.inference.ai.azure.com", None, false),
            ("https://openai.azure.com.evil.test/v1", None, false),
        ] {
            assert_eq!(is_azure(&base_url.parse().unwrap(), version), expected, "{base_url}");
        }
    }
}
