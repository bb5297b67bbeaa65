//! `headers` and `headers_env`: what a user sends along with every request to a server.

use std::collections::BTreeMap;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;

use super::load::KeyReader;
use super::section::{Document, Found, Section};
use crate::diag::printable;

/// A bound on what goes out with every request; nobody needs so many.
const HEADERS_MAX: usize = 32;

/// What batchd or the connection says by itself: the key has its own place, and the body's length and kind are as they
/// are. Those that steer the connection would break it.
const OURS: [&str; 12] = [
    "accept-encoding",
    "api-key",
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Extra headers of a provider, or of one of its endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Headers {
    /// By their names, as they stand in the file.
    #[serde(rename = "headers", skip_serializing_if = "BTreeMap::is_empty")]
    pub written: BTreeMap<String, String>,
    /// The environment variables that hold the values of the others.
    #[serde(rename = "headers_env", skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, String>,
    /// All of them; what comes out of the environment is marked sensitive. Where keys are not read those are missing.
    #[serde(skip)]
    pub values: HeaderMap,
}

impl Headers {
    /// These, replaced by those of the same name in `over`.
    #[must_use]
    pub fn replaced_by(&self, over: &Self) -> HeaderMap {
        let mut values = self.values.clone();
        // `extend` replaces what has the same name.
        values.extend(over.values.clone());
        values
    }
}

pub(super) fn read(document: &Document<'_>, section: &mut Section<'_>, keys: &KeyReader<'_>) -> Headers {
    let mut headers = Headers::default();
    for (name, value) in section.texts_by_name("headers") {
        let Some(header) = new_name(document, name, &headers.values) else { continue };
        match HeaderValue::from_str(value.value) {
            Ok(sent) if !value.value.is_empty() => {
                headers.values.insert(header, sent);
                headers.written.insert(name.value.to_owned(), value.value.to_owned());
            }
            Ok(_) | Err(_) => {
                // It may be a secret all the same: it is not repeated.
                let message =
                    format!("the value of the header `{}` is empty or holds control characters", name.value);
                document.push(document.error(Some(value.at), message));
            }
        }
    }
    for (name, variable) in section.texts_by_name("headers_env") {
        let Some(header) = new_name(document, name, &headers.values) else { continue };
        headers.variables.insert(name.value.to_owned(), variable.value.to_owned());
        if keys.is_ignored() {
            continue;
        }
        match keys.read_header(variable.value) {
            Ok(value) => {
                headers.values.insert(header, value);
            }
            Err(error) => document.push(document.error(Some(variable.at), error)),
        }
    }
    if headers.written.len() + headers.variables.len() > HEADERS_MAX {
        let message = format!("more than {HEADERS_MAX} headers go along with each request");
        document.push(document.error(section.at(), message));
    }
    headers
}

/// A name that may be sent and is not there yet; else it is reported.
fn new_name(document: &Document<'_>, name: Found<&str>, known: &HeaderMap) -> Option<HeaderName> {
    let shown = printable(name.value);
    let Ok(header) = name.value.parse::<HeaderName>() else {
        let message = format!("`{shown}` is no name of a header: expected one like `OpenAI-Organization`");
        document.push(document.error(Some(name.at), message));
        return None;
    };
    if OURS.contains(&header.as_str()) {
        let hint = match header.as_str() {
            "authorization" | "api-key" => "the key comes from `api_key_env` or `api_key_file`",
            _ => "leave it out",
        };
        let message = format!("batchd sets the header `{shown}` itself");
        document.push(document.error(Some(name.at), message).hint(hint));
        return None;
    }
    if known.contains_key(&header) {
        let message = format!("the header `{shown}` is given twice, whatever the case of its letters");
        document.push(document.error(Some(name.at), message));
        return None;
    }
    Some(header)
}
