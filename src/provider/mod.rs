//! Providers: OpenAI and every server that speaks its API.
//!
//! [`Provider::call`] is one exchange for one request: no retry, no redirect, the reply capped and
//! timed out as a whole (P4, P5). `transport` moves bytes, `openai` knows URLs and keys, `classify`
//! turns a reply into an [`Outcome`] by a table (`outcomes`), `answer` says what a 200 of each endpoint must hold.
//! [`Provider::download`] fetches what an answer only points to, and trusts no url in doing so.
//!
//! What lies at a provider is asked about in the same way, an exchange a question: `files` and `uploads`, `models`,
//! `tuning`, over `ask` (one object) and `list` (many).

mod address;
mod answer;
mod ask;
mod azure;
mod body;
mod breakage;
mod classify;
mod closed;
mod download;
mod error_body;
mod files;
mod flex;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod json;
mod list;
mod models;
mod multipart;
mod openai;
mod outcomes;
mod retry_after;
mod settings;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
mod transport;
mod tuning;
mod uploads;

use std::fmt;
use std::io::Write;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use reqwest::header::HeaderMap;
use thiserror::Error;
use url::Url;

use crate::clock::Clock;
use crate::domain::{Outcome, Request};
use crate::provider::classify::unanswerable;
use crate::provider::openai::Api;
use crate::provider::stream::Receiving;

pub use address::is_public;
pub(crate) use answer::usage_of;
pub use ask::{Called, refused_with, words_of};
pub use body::{HttpBody, Part};
pub use download::DownloadError;
pub use files::{AllFiles, FileQuery, ListOrder, RemoteFile, SINGLE_UPLOAD_BYTES_MAX, Upload};
pub use flex::{in_default_tier, is_flex};
pub use list::Page;
pub use models::{Catalogue, Listed, Model};
pub use settings::{Custom, Settings, Waits};
pub use transport::{HttpTransport, install_crypto};
pub use tuning::{RemoteTuning, TuningError, TuningEvent, TuningMark, TuningStatus};
pub use uploads::{PART_BYTES_MAX, UPLOAD_BYTES_MAX};

/// Which servers a request may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// For urls that the operator chose.
    Anywhere,
    /// For urls out of a reply: public addresses alone, whatever the host's name resolves to.
    Public,
}

/// One HTTP request, whole.
#[derive(Clone)]
pub struct HttpRequest {
    pub method: reqwest::Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: HttpBody,
    /// For the whole exchange, connect to last byte; in a [`Transport::transfer`] for a time in which nothing moves.
    pub timeout: Duration,
    /// Of these, a [`Transport::transfer`] keeps to the first alone.
    pub waits: Waits,
    /// Largest reply body in bytes, counted after decompression.
    pub max_reply: u64,
    pub reach: Reach,
}

impl fmt::Debug for HttpRequest {
    /// Neither the body, which is the user's, nor the headers, one of which is the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpRequest")
            .field("method", &self.method)
            .field("path", &self.url.path())
            .field("body_bytes", &self.body.length())
            .finish_non_exhaustive()
    }
}

/// One HTTP reply, whole.
#[derive(Clone)]
pub struct HttpReply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl fmt::Debug for HttpReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpReply")
            .field("status", &self.status)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// Why there is no whole reply. A kind per reaction.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The request certainly never reached the server: DNS, refused, TLS, connect time-out.
    #[error("can't connect: {0}")]
    Connect(String),
    /// The server's certificate, or ours, is not accepted. Nothing was sent, and no request will be before a person
    /// has seen to it.
    #[error("the certificate is not accepted: {0}")]
    Certificate(String),
    /// No whole reply within the time-out. The request may have been executed.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// The reply did not begin in time. The request may have been executed.
    #[error("no reply began within {}", humantime::format_duration(*.0))]
    Silent(Duration),
    /// The reply began, and nothing more of it came for too long. It was executed.
    #[error("the reply stopped: nothing more came for {}", humantime::format_duration(*.0))]
    Stalled(Duration),
    /// The connection broke after the request was on its way.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// The reply stopped in its middle. It was executed.
    #[error("the reply was cut short: {0}")]
    Cut(String),
    /// The reply is larger than the bound.
    #[error("the reply is larger than {0} bytes")]
    TooLarge(u64),
    /// [`Reach::Public`] was asked for, and the host has no public address. Nothing was sent.
    #[error("`{0}` is not on the public internet")]
    NotPublic(String),
    /// A file on this side could not be read or written, so the exchange was broken off: a server that gets half a
    /// request does nothing.
    #[error("{0}")]
    File(String),
}

/// What goes beside a request in a [`Transport::transfer`].
pub struct Transfer<'a> {
    /// Where the body of a 2xx goes as it comes; elsewhere it is in the reply.
    pub sink: Option<Sink<'a>>,
    /// Told how many bytes of the file have moved so far, up or down.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// Where a body goes, piece by piece.
pub struct Sink<'a> {
    /// Is called on the runtime's own threads: what may block for long is buffered by its owner.
    pub write: &'a mut (dyn Write + Send),
    /// Largest body in bytes.
    pub max: u64,
}

impl fmt::Debug for Transfer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let max = self.sink.as_ref().map(|sink| sink.max);
        f.debug_struct("Transfer").field("max", &max).finish_non_exhaustive()
    }
}

impl fmt::Debug for Sink<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").field("max", &self.max).finish_non_exhaustive()
    }
}

/// Takes the body of a reply as it comes.
pub trait Receiver: Send {
    /// The head is there: whether the body is to be handed over; else it is in the reply.
    fn begins(&mut self, status: u16, headers: &HeaderMap) -> bool;

    /// A piece of the body, of any size. `Break`: its rest is of no use.
    fn take(&mut self, piece: &[u8]) -> ControlFlow<()>;
}

/// Moves one request and its reply. A trait, so that tests and simulations need no sockets.
pub trait Transport: Send + Sync + fmt::Debug {
    fn exchange(&self, request: HttpRequest) -> BoxFuture<'_, Result<HttpReply, TransportError>>;

    /// An exchange in which a file goes up or down, which may take hours on a slow line. What is written here
    /// moves it as a whole; over sockets it is streamed.
    fn transfer<'a>(
        &'a self,
        request: HttpRequest,
        transfer: Transfer<'a>,
    ) -> BoxFuture<'a, Result<HttpReply, TransportError>> {
        Box::pin(body::transfer_whole(self, request, transfer))
    }

    /// An exchange whose reply is handed over as it comes; [`Waits::idle`] counts once its body has begun. What is
    /// written here hands it over as a whole.
    fn receive<'a>(
        &'a self,
        request: HttpRequest,
        receiver: &'a mut dyn Receiver,
    ) -> BoxFuture<'a, Result<HttpReply, TransportError>> {
        Box::pin(body::receive_whole(self, request, receiver))
    }
}

/// What a call brought back.
#[derive(Debug)]
pub struct Reply {
    pub outcome: Outcome,
    /// What the answer says it cost; none without an answer or where the server doesn't say.
    pub usage: Option<Usage>,
    pub rate: RateHeaders,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub input_tokens: u64,
    pub output_tokens: u64,
}

/// `x-ratelimit-*` as far as the server sends them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateHeaders {
    pub limit_requests: Option<u64>,
    pub remaining_requests: Option<u64>,
    pub reset_requests: Option<Duration>,
    pub limit_tokens: Option<u64>,
    pub remaining_tokens: Option<u64>,
    pub reset_tokens: Option<Duration>,
}

/// One provider, ready to be called. Cheap to clone; [`Provider::change`] reaches every clone.
#[derive(Clone, Debug)]
pub struct Provider {
    name: Arc<str>,
    access: Arc<Mutex<Arc<Access>>>,
    transport: Arc<dyn Transport>,
    clock: Clock,
}

/// What an exchange begins with, and keeps to its end.
#[derive(Debug)]
struct Access {
    settings: Settings,
    api: Api,
}

impl Provider {
    pub fn new(settings: Settings, transport: Arc<dyn Transport>) -> Self {
        let name = settings.name.as_str().into();
        let api = Api::new(&settings);
        let access = Arc::new(Mutex::new(Arc::new(Access { settings, api })));
        Self { name, access, transport, clock: Clock::System }
    }

    /// Takes over all of `settings` but the name and the address, which stay, for every exchange that begins from now
    /// on, of every clone.
    pub fn change(&self, settings: &Settings) {
        let mut access = self.access.lock().unwrap_or_else(PoisonError::into_inner);
        let before = &access.settings;
        let settings =
            Settings { name: before.name.clone(), base_url: before.base_url.clone(), ..settings.clone() };
        let api = access.api.changed(&settings);
        *access = Arc::new(Access { settings, api });
    }

    fn access(&self) -> Arc<Access> {
        // It is replaced as a whole.
        Arc::clone(&self.access.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the machine's clock, which a `Retry-After` date counts from where the reply has no `Date`.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Host and port of its address: how a person tells it from the provider's other endpoints.
    pub fn authority(&self) -> String {
        self.access().settings.base_url.authority().to_owned()
    }

    pub fn transport(&self) -> &dyn Transport {
        self.transport.as_ref()
    }

    /// Asks once and says what came of it. Dropping the future hangs up; the server may go on and bill.
    pub async fn call(&self, request: &Request) -> Reply {
        let access = self.access();
        let Access { settings, api } = &*access;
        let Some(target) = api.target(request.endpoint, request.model.as_deref()) else {
            let message = "the request names no model, and this server's urls are made of it: give it a `model`, the name \
                           of a deployment";
            let outcome = unanswerable("model_required", message.to_owned());
            return Reply { outcome, usage: None, rate: RateHeaders::default() };
        };
        let is_streamed = request.stream.unwrap_or(settings.stream);
        let question = is_streamed.then(|| stream::question(request)).flatten();
        let mut came = match question {
            None => {
                let body = Bytes::copy_from_slice(request.body.get().as_bytes());
                self.transport.exchange(access.asking(request, target, body)).await.into()
            }
            Some(question) => {
                let mut receiving = Receiving::new(request.endpoint, question.choices, settings.max_reply);
                let mut asking = access.asking(request, target, question.body.into());
                asking.waits.idle.get_or_insert(stream::STILL_MAX);
                let exchanged = self.transport.receive(asking, &mut receiving).await;
                receiving.finish(exchanged)
            }
        };
        if let Some(reply) = came.reply_mut().filter(|reply| api.leaks_into(&reply.body)) {
            reply.body = api.without_key(&reply.body).into();
        }
        came.classify(request.endpoint, self.clock.now())
    }
}

impl Access {
    /// How `request` is sent to its url, with this body.
    fn asking(&self, request: &Request, (url, headers): (Url, HeaderMap), body: Bytes) -> HttpRequest {
        let (timeout, waits) = self.settings.times_of(&request.body);
        HttpRequest {
            method: reqwest::Method::POST,
            url,
            headers,
            body: HttpBody::Bytes(body),
            timeout,
            waits,
            max_reply: self.settings.max_reply,
            reach: Reach::Anywhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;
    use crate::domain::{Endpoint, PauseReason, Timestamp};
    use crate::provider::testing::{Listener, http};

    const CANARY: &str = "sk-CANARY-0123456789";

    fn provider(server: &Listener) -> Provider {
        let api_key = Some(SecretString::from(CANARY));
        let base_url = format!("http://{}/v1", server.address());
        let settings = Settings { api_key, max_reply: 1024, ..Settings::at(&base_url) };
        Provider::new(settings, Arc::new(HttpTransport::new().unwrap()))
    }

    fn request(body: &str) -> Request {
        Request {
            custom_id: "a".to_owned(),
            endpoint: Endpoint::ChatCompletions,
            model: None,
            stream: None,
            body: serde_json::value::RawValue::from_string(body.to_owned()).unwrap(),
        }
    }

    #[tokio::test]
    async fn a_call_sends_the_body_byte_for_byte_with_the_key_and_brings_the_answer() {
        let answer =
            r#"{"choices":[{"message":{"content":"4"}}],"usage":{"prompt_tokens":9,"completion_tokens":1}}"#;
        let server = Listener::new(&http(
            "200 OK",
            "x-request-id: req_1\r\nx-ratelimit-remaining-requests: 7\r\n",
            answer,
        ))
        .await;
        let body = r#"{"model":"m",  "seed":12345678901234567890.0}"#;
        let reply = provider(&server).call(&request(body)).await;
        let Outcome::Answered(response) = reply.outcome else { panic!("{reply:?}") };
        assert_eq!(
            (response.status_code, response.request_id.as_str(), response.body.get()),
            (200, "req_1", answer)
        );
        assert_eq!(reply.usage, Some(Usage { input_tokens: 9, output_tokens: 1 }));
        assert_eq!(reply.rate.remaining_requests, Some(7));
        let sent = server.requests().pop().unwrap();
        assert!(sent.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{sent}");
        assert!(sent.contains(&format!("authorization: Bearer {CANARY}\r\n")), "{sent}");
        assert!(sent.contains("content-type: application/json\r\n"), "{sent}");
        assert!(sent.contains(concat!("user-agent: batchd/", env!("CARGO_PKG_VERSION"), "\r\n")), "{sent}");
        assert!(sent.ends_with(&format!("\r\n\r\n{body}")), "{sent}");
    }

    /// A request, and a provider, that want a stream or leave it open.
    async fn streamed(server: &Listener, of_request: Option<bool>, of_provider: bool) -> Reply {
        let provider = provider(server);
        let settings = Settings { stream: of_provider, ..provider.access().settings.clone() };
        provider.change(&settings);
        provider.call(&Request { stream: of_request, ..request(r#"{"model":"m"}"#) }).await
    }

    #[tokio::test]
    async fn an_answer_that_is_streamed_is_the_one_that_comes_without() {
        let head =
            "content-type: text/event-stream\r\nx-request-id: req_1\r\nx-ratelimit-remaining-requests: 7\r\n";
        let key = CANARY.split_at(9);
        let stream = format!(
            "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n\
             data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{}\"}},\"finish_reason\":\"stop\"}}]}}\n\n\
             data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":9,\"completion_tokens\":1}}}}\n\ndata: [DONE]\n\n",
            key.0, key.1
        );
        let server = Listener::new(&http("200 OK", head, &stream)).await;
        let reply = streamed(&server, Some(true), false).await;
        let Outcome::Answered(response) = reply.outcome else { panic!("{reply:?}") };
        // Even a key that comes in pieces stays out of the record.
        assert_eq!(
            (response.status_code, response.request_id.as_str(), response.body.get()),
            (
                200,
                "req_1",
                r#"{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"[api key]"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":1}}"#
            )
        );
        assert_eq!(reply.usage, Some(Usage { input_tokens: 9, output_tokens: 1 }));
        assert_eq!(reply.rate.remaining_requests, Some(7));
        let sent = server.requests().pop().unwrap();
        assert!(
            sent.ends_with(r#"{"model":"m","stream":true,"stream_options":{"include_usage":true}}"#),
            "{sent}"
        );
    }

    #[tokio::test]
    async fn what_the_request_says_of_streams_goes_before_what_the_provider_says() {
        let answer = http("200 OK", "", r#"{"choices":[{"message":{"content":"4"}}]}"#);
        let server = Listener::new(&answer).await;
        for (of_request, of_provider, is_streamed) in
            [(None, false, false), (None, true, true), (Some(false), true, false), (Some(true), false, true)]
        {
            // A server that doesn't stream is heard all the same.
            let reply = streamed(&server, of_request, of_provider).await;
            assert!(matches!(reply.outcome, Outcome::Answered(_)), "{reply:?}");
            let sent = server.requests().pop().unwrap();
            assert_eq!(sent.ends_with(r#""stream_options":{"include_usage":true}}"#), is_streamed, "{sent}");
        }
    }

    #[tokio::test]
    async fn azures_deployments_are_asked_by_the_model_of_the_request() {
        let answer = http("200 OK", "", r#"{"choices":[{"message":{"content":"4"}}]}"#);
        let server = Listener::with_replies(vec![answer; 3]).await;
        let custom = Custom { api_version: Some("2024-10-21".to_owned()), ..Custom::default() };
        let settings = Settings {
            api_key: Some(SecretString::from(CANARY)),
            custom,
            ..Settings::at(&format!("http://{}", server.address()))
        };
        let provider = Provider::new(settings, Arc::new(HttpTransport::new().unwrap()));
        let model = Some("gpt 4/o".to_owned());
        let reply = provider.call(&Request { model, ..request(r#"{"model":"gpt 4/o"}"#) }).await;
        assert!(matches!(reply.outcome, Outcome::Answered(_)), "{reply:?}");
        let Outcome::Unanswerable(error) = provider.call(&request("{}")).await.outcome else { panic!() };
        assert_eq!(error.code, "model_required");
        provider.model("gpt 4/o").await.unwrap_err();
        let asked = server.first_lines();
        let path = "/openai/deployments/gpt%204%2Fo/chat/completions?api-version=2024-10-21";
        assert_eq!(asked[0], format!("POST {path} HTTP/1.1"));
        assert_eq!(asked[1], "GET /openai/models/gpt%204%2Fo?api-version=2024-10-21 HTTP/1.1");
        assert_eq!(asked.len(), 2, "what names no model is not sent");
        assert!(server.requests()[0].contains(&format!("api-key: {CANARY}\r\n")));
    }

    #[tokio::test]
    async fn a_date_to_come_back_at_counts_from_our_clock_where_the_server_shows_none() {
        let server =
            Listener::new(&http("503 Busy", "retry-after: Thu, 01 Jan 1970 00:01:30 GMT\r\n", "")).await;
        let clock = Clock::Simulated { base: Timestamp::from_millis(60_000), anchor: far_from_now() };
        let reply = provider(&server).with_clock(clock).call(&request("{}")).await;
        let Outcome::Throttled { retry_after, .. } = reply.outcome else { panic!("{reply:?}") };
        assert_eq!(retry_after, Some(Duration::from_secs(30)));
    }

    /// An anchor that a simulated clock has not passed yet, so that the clock stands still.
    fn far_from_now() -> tokio::time::Instant {
        tokio::time::Instant::now() + Duration::from_hours(1)
    }

    #[tokio::test]
    async fn a_key_that_the_server_quotes_stays_out_of_the_record() {
        let error = format!(r#"{{"error":{{"message":"bad key {CANARY}","code":"invalid_api_key"}}}}"#);
        let server = Listener::new(&http("401 Unauthorized", "", &error)).await;
        let reply = provider(&server).call(&request("{}")).await;
        let Outcome::Blocked(blocked) = &reply.outcome else { panic!("{reply:?}") };
        assert_eq!(blocked.reason, PauseReason::Auth);
        assert_eq!(blocked.message, "bad key [api key]");
        assert!(!format!("{reply:?}").contains("CANARY"));
    }

    #[tokio::test]
    async fn a_changed_key_is_that_of_every_clone_and_the_old_one_stays_a_secret() {
        const NEW: &str = "sk-NEW-CANARY-987654321";
        let quoted = format!("neither {NEW} nor {CANARY}");
        let server = Listener::with_replies(vec![http("400 Bad Request", "", &quoted); 2]).await;
        let provider = provider(&server);
        let clone = provider.clone().with_clock(Clock::System);
        let settings = Settings {
            name: "other".to_owned(),
            base_url: "http://127.0.0.1:1/v2".parse().unwrap(),
            api_key: Some(SecretString::from(NEW)),
            ..provider.access().settings.clone()
        };
        clone.change(&settings);
        let reply = provider.call(&request("{}")).await;
        let Outcome::Refused(refused) = &reply.outcome else { panic!("{reply:?}") };
        assert_eq!(refused.body.get(), r#""neither [api key] nor [api key]""#);
        let listed = provider.model("m").await.unwrap_err();
        assert!(!format!("{listed:?}").contains("CANARY"), "{listed:?}");
        for sent in server.requests() {
            assert!(sent.contains(&format!("authorization: Bearer {NEW}\r\n")), "{sent}");
            assert!(sent.contains(" /v1/"), "the address stays: {sent}");
        }
        assert_eq!(provider.name(), "test");
        // The same key again, and none: what was sent before is struck out all the same.
        provider.change(&settings);
        provider.change(&Settings { api_key: None, ..settings });
        assert!(provider.access().api.leaks_into(NEW.as_bytes()));
    }

    #[tokio::test]
    async fn a_reply_over_the_bound_is_never_asked_for_again() {
        let server = Listener::new(&http("200 OK", "", &"x".repeat(1025))).await;
        let reply = provider(&server).call(&request("{}")).await;
        let Outcome::Unanswerable(error) = &reply.outcome else { panic!("{reply:?}") };
        assert_eq!(
            (error.code.as_str(), error.message.as_str()),
            ("too_large", "the reply is larger than 1024 bytes")
        );
    }

    #[tokio::test]
    async fn nothing_that_can_be_printed_shows_the_key() {
        let server = Listener::new(b"").await;
        let provider = provider(&server);
        let mut settings = provider.access().settings.clone();
        settings.base_url =
            format!("http://{CANARY}:{CANARY}@{}/v1?key={CANARY}", server.address()).parse().unwrap();
        let api = Api::new(&settings);
        let (url, headers) = api.target(Endpoint::Images, None).unwrap();
        let sent = HttpRequest {
            method: reqwest::Method::POST,
            url,
            headers,
            body: Bytes::from_static(CANARY.as_bytes()).into(),
            timeout: settings.timeout,
            waits: settings.waits,
            max_reply: settings.max_reply,
            reach: Reach::Anywhere,
        };
        *provider.access.lock().unwrap() = Arc::new(Access { settings, api });
        let reply = provider.call(&request("{}")).await;
        let error = provider.transport().exchange(sent.clone()).await.unwrap_err();
        let printed = format!("{provider:?}{:?}{sent:?}{reply:?}{error:?}{error}", provider.access());
        assert!(!printed.contains("CANARY"), "{printed}");
    }
}
