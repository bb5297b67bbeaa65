//! The stand-in provider without sockets: a [`Transport`] whose time is tokio's.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep, sleep_until};

use super::call::Request;
use super::engine::Engine;
use super::reply::Delivery;
use crate::provider::{HttpReply, HttpRequest, Transport, TransportError};

/// Stands where a provider's transport stands. Under tokio's paused clock hours of latency pass at
/// once; time-outs and the bound on replies hold as they do on the wire.
#[derive(Clone, Debug)]
pub struct SimulatedTransport {
    engine: Arc<Engine>,
}

impl SimulatedTransport {
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }

    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }
}

impl Transport for SimulatedTransport {
    fn exchange(&self, request: HttpRequest) -> BoxFuture<'_, Result<HttpReply, TransportError>> {
        Box::pin(exchange(&self.engine, request))
    }
}

async fn exchange(engine: &Engine, request: HttpRequest) -> Result<HttpReply, TransportError> {
    let body = request.body.to_bytes().map_err(|error| TransportError::File(error.to_string()))?;
    let asked = Request {
        method: &request.method,
        path: request.url.path(),
        query: request.url.query(),
        headers: &request.headers,
        body: &body,
        authority: request.url.authority(),
    };
    let now = Instant::now();
    if engine.lost_at(now, Duration::ZERO).is_some() {
        return Err(TransportError::Connect("connection refused".to_owned()));
    }
    // Held to the end, with its place among those in flight.
    let mut reply = engine.take(&asked, now);
    let (drips, stalls) = match (reply.delivery, request.waits.idle) {
        (Delivery::Stalled(still), Some(idle)) if still > idle => (idle, Some(idle)),
        (Delivery::Dripped(drips) | Delivery::Stalled(drips), _) => (drips, None),
        (Delivery::Whole | Delivery::Dropped | Delivery::Cut, _) => (Duration::ZERO, None),
    };
    let delay = reply.delay.saturating_add(drips);
    if let Some(lost_at) = engine.lost_at(now, delay.min(request.timeout)) {
        sleep_until(lost_at).await;
        return Err(TransportError::Lost("connection reset by peer".to_owned()));
    }
    if delay > request.timeout {
        sleep(request.timeout).await;
        return Err(TransportError::Timeout(request.timeout));
    }
    if !delay.is_zero() {
        sleep(delay).await;
    }
    if let Some(idle) = stalls {
        return Err(TransportError::Stalled(idle));
    }
    match reply.delivery {
        Delivery::Dropped => return Err(TransportError::Lost("connection reset by peer".to_owned())),
        Delivery::Cut => return Err(TransportError::Cut("connection reset by peer".to_owned())),
        Delivery::Whole | Delivery::Dripped(_) | Delivery::Stalled(_) => {}
    }
    if length(&reply.body) > request.max_reply {
        return Err(TransportError::TooLarge(request.max_reply));
    }
    reply.begin();
    Ok(HttpReply { status: reply.status, headers: reply.headers, body: reply.body })
}

fn length(body: &Bytes) -> u64 {
    u64::try_from(body.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use axum::http::{HeaderMap, Method};
    use serde_json::json;
    use url::Url;

    use super::*;
    use crate::clock::Seed;
    use crate::domain::{JobId, TuningApi, TuningData};
    use crate::provider::{self, Provider, Reach, TuningMark, TuningStatus, Upload, Waits};
    use crate::simulate::{Latency, Script, Settings, WhenFull};

    fn transport(settings: Settings) -> SimulatedTransport {
        SimulatedTransport::new(Arc::new(Engine::new(settings, Seed::fixed(1)).unwrap()))
    }

    fn request(timeout: Duration) -> HttpRequest {
        HttpRequest {
            method: Method::POST,
            url: Url::parse("https://api.openai.com/v1/moderations").unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::from_static(br#"{"input":"x"}"#).into(),
            timeout,
            waits: Waits::default(),
            max_reply: 1 << 20,
            reach: Reach::Anywhere,
        }
    }

    fn fault(name: &str) -> SimulatedTransport {
        transport(Settings { faults: format!("{name}=1").parse().unwrap(), ..Settings::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn latency_passes_on_the_paused_clock() {
        let latency = Latency::fixed(Duration::from_secs(100));
        let transport = transport(Settings { latency, ..Settings::default() });
        let started = Instant::now();
        let reply = transport.exchange(request(Duration::from_mins(10))).await.unwrap();
        assert_eq!((reply.status, started.elapsed()), (200, Duration::from_secs(100)));
        let late = transport.exchange(request(Duration::from_secs(99))).await;
        assert!(matches!(late, Err(TransportError::Timeout(_))));
        assert_eq!(started.elapsed(), Duration::from_secs(199));
        assert_eq!(transport.engine().summary().paid, 2, "who hangs up pays all the same");
    }

    #[tokio::test(start_paused = true)]
    async fn breaks_and_bounds_are_those_of_the_wire() {
        let minute = Duration::from_mins(1);
        assert!(matches!(fault("drop").exchange(request(minute)).await, Err(TransportError::Lost(_))));
        assert!(matches!(fault("cut").exchange(request(minute)).await, Err(TransportError::Cut(_))));
        assert_eq!(fault("500").exchange(request(minute)).await.unwrap().status, 500);
        let small = HttpRequest { max_reply: 10, ..request(minute) };
        let reply = transport(Settings::default()).exchange(small).await;
        assert!(matches!(reply, Err(TransportError::TooLarge(10))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_fall_loses_what_is_on_its_way_and_refuses_the_rest() {
        let script = "[[events]]\nat = '10s'\nfor = '10m'\nwhat = 'down'\n";
        let script = Script::parse("down", script).unwrap();
        let latency = Latency::fixed(Duration::from_secs(4));
        let transport = transport(Settings { latency, script, ..Settings::default() });
        let started = Instant::now();
        let mut seen = Vec::new();
        // The second one is sent at 8 s, the third when it is down, the last when it is up again.
        for pause in [4, 0, 600, 0].map(Duration::from_secs) {
            let reply = transport.exchange(request(Duration::from_mins(1))).await;
            let what = reply.map_or_else(|error| error.to_string(), |reply| reply.status.to_string());
            seen.push((what, started.elapsed().as_secs()));
            sleep(pause).await;
        }
        let lost = "the connection was lost: connection reset by peer";
        let refused = "can't connect: connection refused";
        let expected = [("200", 4), (lost, 10), (refused, 10), ("200", 614)];
        assert_eq!(seen, expected.map(|(what, at)| (what.to_owned(), at)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_makes_requests_wait_for_their_slot() {
        let latency = Latency::fixed(Duration::from_secs(1));
        let settings =
            Settings { latency, capacity: Some(2), when_full: WhenFull::Queue, ..Settings::default() };
        let transport = transport(settings);
        let started = Instant::now();
        let asks = (0..6).map(|_| transport.exchange(request(Duration::from_mins(1))));
        let replies = futures_util::future::join_all(asks).await;
        assert!(replies.iter().all(|reply| reply.as_ref().unwrap().status == 200));
        assert_eq!(started.elapsed(), Duration::from_secs(3));
        assert_eq!(transport.engine().summary().max_in_flight, 6);
    }

    /// batchd's own client of this server, and the server.
    fn client(settings: Settings) -> (Provider, Arc<Engine>) {
        let transport = transport(settings);
        let engine = Arc::clone(transport.engine());
        let settings = provider::Settings {
            name: "sim".to_owned(),
            base_url: Url::parse("http://sim.invalid/v1").unwrap(),
            api_key: None,
            custom: provider::Custom::default(),
            timeout: Duration::from_mins(1),
            waits: Waits::default(),
            max_reply: 1 << 20,
            flex_timeout: Duration::from_mins(15),
            stream: false,
        };
        (Provider::new(settings, Arc::new(transport)), engine)
    }

    fn upload(name: &str, content: &str) -> Upload {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        Upload {
            name: name.to_owned(),
            purpose: "fine-tune".to_owned(),
            file: Arc::new(file),
            length: u64::try_from(content.len()).unwrap(),
            expires_after: None,
        }
    }

    /// What was made although its reply was lost is found, and only once, by batchd's own client.
    async fn lose_and_find(api: TuningApi, line: &str, model: &str) {
        let mishaps = "upload=drop,create=drop,show=502,cancel=cut".parse().unwrap();
        let (provider, engine) = client(Settings { mishaps, ..Settings::default() });
        let content = format!("{line}\n").repeat(12);
        // However odd the name that the user gave it.
        let name = TuningData::upload_name("my \"data\" \\ ü", "", JobId::from_bytes([1; 16]));
        assert!(provider.upload(&upload(&name, &content), &|_| {}).await.is_err());
        let file = provider.find_file(&name, "fine-tune").await.unwrap().unwrap();
        assert_eq!(file.bytes, Some(upload("", &content).length));
        sleep(Duration::from_secs(1)).await;
        let metadata = ("batchd_job", "JOB");
        let body = match api {
            TuningApi::Jobs => {
                json!({"model": model, "training_file": file.id, "metadata": {"batchd_job": "JOB"}})
            }
            TuningApi::Legacy => json!({"model": model, "training_file": file.id}),
        };
        assert!(provider.create_fine_tune(api, body.to_string().into()).await.is_err());
        let mark = TuningMark { metadata, training_file: Some(&file.id) };
        let found = provider.find_fine_tune(api, &mark).await.unwrap().unwrap();
        assert_eq!(found.status, TuningStatus::Pending);
        assert!(provider.fine_tune(api, &found.id).await.is_err());
        sleep(Duration::from_secs(4)).await;
        let done = provider.fine_tune(api, &found.id).await.unwrap();
        assert_eq!((done.status, done.error.is_none()), (TuningStatus::Succeeded, true));
        let events = provider.fine_tune_events(api, &done.id).await.unwrap();
        assert!(events.first().unwrap().message.starts_with("Created fine-tun"));
        let mut results = Vec::new();
        provider.file_content(&done.result_files[0], &mut results, 1 << 20, &|_| {}).await.unwrap();
        assert!(!results.is_empty());
        let models = provider.models().await.unwrap();
        assert!(models.iter().any(|model| Some(&model.id) == done.fine_tuned_model.as_ref()));
        let other = provider.create_fine_tune(api, body.to_string().into()).await.unwrap();
        assert!(provider.cancel_fine_tune(api, &other.id).await.is_err(), "its reply is cut");
        let other = provider.fine_tune(api, &other.id).await.unwrap();
        assert_eq!(other.status, TuningStatus::Cancelled);
        provider.delete_file(&file.id).await.unwrap();
        let effects = engine.summary().effects;
        let count = |act: &str| effects.get(act).copied().unwrap_or_default();
        assert_eq!((count("upload"), count("create"), count("cancel"), count("delete")), (1, 2, 1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_lost_reply_has_made_is_found_by_both_interfaces() {
        let chat = r#"{"messages":[{"role":"user","content":"1+1"},{"role":"assistant","content":"2"}]}"#;
        lose_and_find(TuningApi::Jobs, chat, "gpt-4o-mini").await;
        lose_and_find(TuningApi::Legacy, r#"{"prompt":"1+1=?->","completion":" 2"}"#, "curie").await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_goes_up_in_parts_and_comes_down_again() {
        let (provider, engine) = client(Settings::default());
        let content = "{}\n".repeat(1_000);
        let file = provider.upload_in_parts(&upload("big.jsonl", &content), &|_| {}).await.unwrap();
        let mut back = Vec::new();
        provider.file_content(&file.id, &mut back, 1 << 20, &|_| {}).await.unwrap();
        assert_eq!(back, content.as_bytes());
        assert_eq!(engine.summary().effects["complete"], 1);
    }
}
