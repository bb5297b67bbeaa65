//! One question about what lies at the provider: its files, models and fine-tunes.
//!
//! # Invariants
//!
//! - One question is one exchange: no retry, no redirect (P4).
//! - [`Called`]'s error is what `domain::attempt::decide` takes, and never [`Outcome::Answered`].
//! - Only of what creates something an error says that it may have been done ([`Failure::maybe_paid`]): to look,
//!   to cancel and to delete twice costs nothing.
//! - That a server doesn't know an endpoint, an object or a base model is an [`Outcome::Refused`] with its status:
//!   it concerns this one request, and must not stop those of the same queue.

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use serde_json::value::RawValue;
use url::Url;

use crate::domain::record::text_of;
use crate::domain::{Blocked, Failure, Outcome, PauseReason, Response};
use crate::provider::classify::{classify_failure, classify_transport, unanswerable, unsure};
use crate::provider::error_body::ErrorBody;
use crate::provider::json::Members;
use crate::provider::{Access, HttpBody, HttpReply, HttpRequest, Provider, Reach, TransportError};

/// What a call brings, or what an attempt saw instead: never [`Outcome::Answered`].
pub type Called<T> = Result<T, Box<Outcome>>;

/// The status of a refusal. 404, 405 and 501 say that the server has no such endpoint, or no such object.
pub fn refused_with(outcome: &Outcome) -> Option<u16> {
    match outcome {
        Outcome::Refused(response) => Some(response.status_code),
        Outcome::Answered(_)
        | Outcome::Unanswerable(_)
        | Outcome::Throttled { .. }
        | Outcome::Failed(_)
        | Outcome::Blocked(_) => None,
    }
}

/// What the provider said in an error reply: one line, harmless on a terminal. May be empty.
pub fn words_of(response: &Response) -> String {
    ErrorBody::of(response).message
}

/// What an id may hold in a url. `:` and `/` stand in the ids of models.
pub(super) const ID: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Something with an id that lies at a provider.
pub(super) trait Object: Sized {
    /// What a reply lacks that is none.
    const LACKS: &'static str;

    fn read(text: &str) -> Option<Self>;

    /// What a list goes on behind.
    fn id(&self) -> Option<&str>;
}

/// Whether a question leaves something behind at the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// A file, a job: asked twice, there are two.
    Creates,
    /// Nothing, or nothing more the second time.
    Idempotent,
}

impl Provider {
    /// The url of an object, and of what lies below it (`/cancel`).
    pub(super) fn object_url(&self, path: &str, id: &str, below: &str) -> Called<Url> {
        Ok(self.access().api.resource(&object_path(path, id, below)?))
    }

    /// Asks for an object.
    pub(super) async fn get<T: Object>(&self, url: Url) -> Called<T> {
        let reply = self.ask(Method::GET, url, None, Effect::Idempotent).await?;
        self.object(&reply, Effect::Idempotent)
    }

    /// Sends JSON, or nothing, and gets an object back.
    pub(super) async fn post<T: Object>(&self, url: Url, body: Option<Bytes>, effect: Effect) -> Called<T> {
        let reply = self.ask(Method::POST, url, body, effect).await?;
        self.object(&reply, effect)
    }

    /// One exchange; the reply is a 2xx.
    pub(super) async fn ask(
        &self,
        method: Method,
        url: Url,
        body: Option<Bytes>,
        effect: Effect,
    ) -> Called<HttpReply> {
        let mut request = self.request(method, url);
        if let Some(body) = body {
            request.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            request.body = HttpBody::Bytes(body);
        } else if request.method == Method::POST {
            // Azure's front end refuses a POST that doesn't say that it is empty.
            request.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let result = self.transport.exchange(request).await;
        self.judge(result, effect)
    }

    /// A request to `url` without a body.
    pub(super) fn request(&self, method: Method, url: Url) -> HttpRequest {
        let Access { settings, api } = &*self.access();
        HttpRequest {
            method,
            headers: api.headers(&url),
            url,
            body: HttpBody::EMPTY,
            timeout: settings.timeout,
            waits: settings.waits,
            max_reply: settings.max_reply,
            reach: Reach::Anywhere,
        }
    }

    /// What came of an exchange: a 2xx, or why there is none.
    pub(super) fn judge(
        &self,
        result: Result<HttpReply, TransportError>,
        effect: Effect,
    ) -> Called<HttpReply> {
        let mut reply = result.map_err(|error| failed(classify_transport(&error), effect))?;
        // Of an exchange that began with another key, that one is known here as well.
        let api = &self.access().api;
        if api.leaks_into(&reply.body) {
            reply.body = api.without_key(&reply.body).into();
        }
        if (200..300).contains(&reply.status) {
            Ok(reply)
        } else {
            Err(self.failure(&reply, "", effect).into())
        }
    }

    /// The object in a 2xx.
    pub(super) fn object<T: Object>(&self, reply: &HttpReply, effect: Effect) -> Called<T> {
        let object = T::read(&text_of(&reply.body));
        object.ok_or_else(|| self.failure(reply, T::LACKS, effect).into())
    }

    /// Why `reply` doesn't bring what was asked for.
    pub(super) fn failure(&self, reply: &HttpReply, lacks: &'static str, effect: Effect) -> Outcome {
        let outcome = failed(classify_failure(reply, lacks, self.clock.now()), effect);
        if let Outcome::Throttled { code, retry_after, .. } = &outcome
            && effect == Effect::Creates
            && (500..600).contains(&reply.status)
        {
            return unsure(reply, code, *retry_after);
        }
        outcome
    }
}

/// The path of an object below a provider's `base_url`, and of what lies below it.
pub(super) fn object_path(path: &str, id: &str, below: &str) -> Called<String> {
    // Dots alone would lead up in the path, to another endpoint.
    if matches!(id, "" | "." | "..") {
        return Err(Box::new(unanswerable("invalid_id", format!("`{id}` is no id"))));
    }
    Ok(format!("{path}/{}{below}", utf8_percent_encode(id, ID)))
}

/// Narrows what a reply means for a request of a model to what it means here.
fn failed(outcome: Outcome, effect: Effect) -> Outcome {
    match outcome {
        Outcome::Blocked(Blocked { reason: PauseReason::Model, response: Some(response), .. }) => {
            Outcome::Refused(response)
        }
        Outcome::Failed(failure) => {
            let maybe_paid = failure.maybe_paid && effect == Effect::Creates;
            Outcome::Failed(Failure { maybe_paid, ..failure })
        }
        Outcome::Answered(_)
        | Outcome::Refused(_)
        | Outcome::Unanswerable(_)
        | Outcome::Throttled { .. }
        | Outcome::Blocked(_) => outcome,
    }
}

/// An object of any kind: its id, and its JSON.
pub(super) struct Raw<'a> {
    pub(super) id: String,
    pub(super) members: Members<'a>,
    pub(super) json: Box<RawValue>,
}

impl<'a> Raw<'a> {
    /// None unless `text` is a JSON object with an `id`.
    pub(super) fn of(text: &'a str) -> Option<Self> {
        let members = Members::of(text)?;
        let id = members.string("id").filter(|id| !id.is_empty())?.into_owned();
        Some(Self { id, members, json: one_line(text) })
    }

    /// A member that is a string, if it isn't empty.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.members.string(name).filter(|text| !text.is_empty()).map(std::borrow::Cow::into_owned)
    }
}

/// JSON as a record keeps it.
pub(super) fn one_line(json: &str) -> Box<RawValue> {
    Response::new(200, String::new(), json.as_bytes()).body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::RemoteFile;
    use crate::provider::testing::{CANARY, Listener, http, provider, provider_at};

    async fn posted(server: &Listener, effect: Effect) -> Called<RemoteFile> {
        let provider = provider(server);
        provider.post(provider.access().api.resource("/files"), Some(Bytes::from_static(b"{}")), effect).await
    }

    #[tokio::test]
    async fn json_goes_out_with_its_type_and_an_empty_post_says_that_it_is_empty() {
        let server = Listener::new(&http("200 OK", "", r#"{"id":"a"}"#)).await;
        posted(&server, Effect::Creates).await.unwrap();
        let provider = provider(&server);
        let url = provider.object_url("/jobs", "a", "/cancel").unwrap();
        let _: RemoteFile = provider.post(url.clone(), None, Effect::Idempotent).await.unwrap();
        let _: RemoteFile = provider.get(url).await.unwrap();
        let [json, empty, get] = &server.requests()[..] else { panic!("three were asked") };
        assert!(json.starts_with("POST /v1/files HTTP/1.1\r\n") && json.ends_with("\r\n\r\n{}"), "{json}");
        assert!(json.contains("content-type: application/json\r\n"), "{json}");
        assert!(json.contains(&format!("authorization: Bearer {CANARY}\r\n")), "{json}");
        assert!(empty.starts_with("POST /v1/jobs/a/cancel HTTP/1.1\r\n"), "{empty}");
        assert!(empty.contains("content-length: 0\r\n") && !empty.contains("content-type"), "{empty}");
        assert!(get.starts_with("GET ") && !get.contains("content-"), "{get}");
    }

    #[test]
    fn an_id_is_one_segment_of_its_path_whatever_it_holds() {
        let provider = provider_at("http://h/v1?api-version=1");
        for (id, expected) in [
            ("ft:gpt-4o:o::7p4", "http://h/v1/models/ft%3Agpt-4o%3Ao%3A%3A7p4?api-version=1"),
            ("/models/a.gguf", "http://h/v1/models/%2Fmodels%2Fa.gguf?api-version=1"),
            ("a?b#c%2e é", "http://h/v1/models/a%3Fb%23c%252e%20%C3%A9?api-version=1"),
            ("%2e%2e", "http://h/v1/models/%252e%252e?api-version=1"),
            ("...", "http://h/v1/models/...?api-version=1"),
        ] {
            assert_eq!(provider.object_url("/models", id, "").unwrap().as_str(), expected);
        }
        for id in ["", ".", ".."] {
            assert!(provider.object_url("/models", id, "/content").is_err(), "{id}");
        }
    }

    #[tokio::test]
    async fn what_the_server_does_not_know_is_refused_with_its_status() {
        for (status, body) in [
            ("404 No", r#"{"error":{"message":"No such File object: file-1","param":"id","code":null}}"#),
            ("404 No", r#"{"detail":"Not Found"}"#),
            ("405 No", ""),
            ("501 No", r#"{"error":{"code":501,"type":"not_supported_error","message":"no"}}"#),
            ("400 No", r#"{"error":{"message":"no such model","code":"model_not_found"}}"#),
            ("404 No", r#"{"error":{"message":"The model `m` does not exist","code":"model_not_found"}}"#),
        ] {
            let server = Listener::new(&http(status, "", body)).await;
            let error = posted(&server, Effect::Creates).await.unwrap_err();
            assert_eq!(refused_with(&error).map(|code| format!("{code} No")).as_deref(), Some(status));
        }
    }

    #[tokio::test]
    async fn only_what_creates_may_have_been_done_by_a_lost_call() {
        for reply in
            [&b""[..], &http("500 Oops", "", ""), &http("200 OK", "", "<html>"), b"HTTP/1.1 200 OK\r\n"]
        {
            for (effect, expected) in [(Effect::Creates, true), (Effect::Idempotent, false)] {
                let server = Listener::new(reply).await;
                let error = *posted(&server, effect).await.unwrap_err();
                let Outcome::Failed(failure) = error else { panic!("{error:?}") };
                assert_eq!(failure.maybe_paid, expected, "{failure:?}");
                assert_eq!(server.requests().len(), 1, "nothing is asked twice");
            }
        }
    }

    #[tokio::test]
    async fn what_never_reached_a_server_was_certainly_not_done() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let provider = provider_at(&format!("http://{}/v1", listener.local_addr().unwrap()));
        drop(listener);
        let url = provider.access().api.resource("/files");
        let error = *provider.post::<RemoteFile>(url, None, Effect::Creates).await.unwrap_err();
        let Outcome::Failed(failure) = error else { panic!("{error:?}") };
        assert_eq!((failure.code, failure.maybe_paid), ("connection_error", false));
    }

    #[tokio::test]
    async fn a_key_that_a_server_quotes_is_in_no_error_and_no_object() {
        for status in ["401 Unauthorized", "400 Bad Request", "200 OK"] {
            let body = format!(r#"{{"id":"a","error":"bad key {CANARY}"}}"#);
            let server = Listener::new(&http(status, "", &body)).await;
            let found = posted(&server, Effect::Creates).await;
            assert_eq!(found.is_ok(), status == "200 OK");
            assert!(!format!("{found:?}").contains("CANARY"), "{found:?}");
        }
    }

    #[tokio::test]
    async fn an_error_in_a_success_is_an_error() {
        let body = r#"{"error":{"message":"slow down","code":429}}"#;
        let server = Listener::new(&http("200 OK", "", body)).await;
        let error = *posted(&server, Effect::Creates).await.unwrap_err();
        assert!(matches!(error, Outcome::Throttled { .. }), "{error:?}");
    }
}
