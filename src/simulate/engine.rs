//! What becomes of a request: pure but for its own state, with the time as an argument.
//!
//! Bodies are read and answers written outside the lock; only the decision is made inside, by `judge`.

use std::borrow::Cow;
use std::fmt;
use std::future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::admin;
use super::answer::{self, Context};
use super::call::{Call, Request};
use super::fault::Fault;
use super::judge::{Decision, State, Work};
use super::ledger::{Arrival, Entry, Payments, Summary};
use super::line::Door;
use super::pace::Pace;
use super::question::Question;
use super::refusal::Refusal;
use super::reply::{Delivery, Departure, InFlight, Reply, Traffic};
use super::script::Trouble;
use super::settings::{Auth, Changes, ImageForm, Settings};
use crate::bell::Bell;
use crate::clock::Seed;
use crate::domain::{Endpoint, Timestamp};

/// What a form has beside its file, generously.
const FORM_BYTES: usize = 1024 * 1024;

/// The simulated provider. One for all connections.
pub struct Engine {
    images: ImageForm,
    body_bytes_max: usize,
    file_bytes_max: usize,
    /// The date at the start.
    epoch: Timestamp,
    started: Instant,
    /// Tells this server's request ids from another's.
    instance: u32,
    traffic: Arc<Traffic>,
    state: Mutex<State>,
    /// Rings when there is another script to follow.
    script_bell: Bell,
    door: Door,
}

impl Engine {
    /// Fails only if the ledger's file can't be opened.
    pub fn new(settings: Settings, seed: Seed) -> io::Result<Self> {
        let (started, epoch) = (Instant::now(), settings.epoch);
        let instance = seed.derive("simulate/instance").u32(..);
        Ok(Self {
            images: settings.images,
            body_bytes_max: settings.body_bytes_max,
            file_bytes_max: settings.file_bytes_max,
            epoch,
            started,
            instance,
            traffic: Arc::default(),
            state: Mutex::new(State::new(settings, seed, instance, started)?),
            script_bell: Bell::default(),
            door: Door::default(),
        })
    }

    /// Decides about one request that is whole at `now`, and writes the reply.
    pub fn take(&self, request: &Request<'_>, now: Instant) -> Reply {
        if let Some(path) = request.path.strip_prefix("/_sim/") {
            return admin::reply(self, request, path, now);
        }
        if request.body.len() > self.body_bytes_max(request) {
            return self.refuse_large(request, now);
        }
        let call = Call::read(request, self.file_bytes_max);
        let question = match &call {
            Ok(Call::Ask(question)) => Some(question),
            Ok(Call::Object(_)) | Err(_) => None,
        };
        let (mut in_flight, count) = InFlight::enter(&self.traffic);
        let arrival = self.arrival(request, question, count, now);
        let fingerprint = arrival.fingerprint.unwrap_or_else(|| blake3::hash(b""));
        let mut state = self.lock();
        self.note_departures(&mut state);
        let Decision { sequence, verdict, hint, rate_headers } = state.decide(request, &call, arrival, now);
        if state.ledger.is_on() {
            in_flight.note(sequence);
        }
        drop(state);
        let mut reply = match (verdict, call) {
            (Err(refusal), _) | (Ok(_), Err(refusal)) => Reply::refused(&refusal),
            (Ok(work), Ok(call)) => Self::fulfil(&call, &work, || Context {
                fingerprint,
                sequence,
                images: self.images,
                authority: request.authority,
            }),
        };
        reply.headers.extend(rate_headers);
        hint.write(&mut reply.headers, self.epoch + now.saturating_duration_since(self.started));
        reply.sign(self.instance, sequence);
        reply.in_flight = Some(in_flight);
        reply
    }

    /// Refuses a request whose body is too large to be read.
    pub(super) fn refuse_large(&self, request: &Request<'_>, now: Instant) -> Reply {
        let (mut in_flight, count) = InFlight::enter(&self.traffic);
        let arrival = self.arrival(request, None, count, now);
        let refusal = if request.brings_file() {
            Refusal::file_too_large()
        } else {
            Refusal::body_too_large(self.body_bytes_max)
        };
        let mut state = self.lock();
        let sequence = state.refuse(arrival, &refusal);
        if state.ledger.is_on() {
            in_flight.note(sequence);
        }
        drop(state);
        let mut reply = Reply::refused(&refusal);
        reply.sign(self.instance, sequence);
        reply.in_flight = Some(in_flight);
        reply
    }

    /// The bound of this request's body.
    pub(super) fn body_bytes_max(&self, request: &Request<'_>) -> usize {
        if request.brings_file() {
            self.body_bytes_max.max(self.file_bytes_max.saturating_add(FORM_BYTES))
        } else {
            self.body_bytes_max
        }
    }

    /// The ledger's totals.
    pub fn summary(&self) -> Summary {
        self.lock().ledger.summary()
    }

    /// The ledger's entries, as far as they are kept.
    pub fn entries(&self) -> Vec<Entry> {
        let mut state = self.lock();
        self.note_departures(&mut state);
        state.ledger.entries().to_vec()
    }

    /// Requests that have come and have neither their reply nor lost their asker.
    pub fn in_flight(&self) -> u64 {
        self.traffic.count()
    }

    /// `now` as the ledger writes it: microseconds since the start of the server.
    pub fn at_us(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_micros()).unwrap_or(u64::MAX)
    }

    /// How often the body with this BLAKE3 was sent and paid for.
    pub fn payments(&self, fingerprint: blake3::Hash) -> Payments {
        self.lock().ledger.payments(fingerprint)
    }

    /// How fast it was asked.
    pub fn pace(&self) -> Pace {
        self.lock().pace.pace()
    }

    /// Empties the ledger and the counts of [`Engine::pace`]. Limits, dice and quota go on.
    pub fn reset_ledger(&self) {
        let mut state = self.lock();
        state.ledger.reset();
        state.pace.reset();
    }

    /// Changes settings from `now` on.
    pub fn change(&self, changes: Changes, now: Instant) {
        self.lock().change(changes, now);
        self.script_bell.ring();
    }

    /// Follows the script as long as it is polled: [`Engine::door`] depends on it.
    pub(super) async fn follow_script(&self) {
        let mut bell = self.script_bell.listen();
        loop {
            let next = {
                let (mut state, now) = (self.lock(), Instant::now());
                state.follow(now);
                self.door.shut(state.trouble(now) == Some(Trouble::Down));
                state.next_turn()
            };
            let turn = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => future::pending().await,
                }
            };
            tokio::select! {
                // In this order, so that another script is seen before the old one's next turn.
                biased;
                () = bell.changed() => {}
                () = turn => {}
            }
        }
    }

    /// Shut while nobody listens.
    pub(super) fn door(&self) -> Door {
        self.door.clone()
    }

    /// When a reply that leaves after `delay` is lost to the server's going down; at once if it is down.
    pub(super) fn lost_at(&self, now: Instant, delay: Duration) -> Option<Instant> {
        let state = self.lock();
        if state.trouble(now) == Some(Trouble::Down) { Some(now) } else { state.next_down(now, delay) }
    }

    /// The settings as they are now.
    pub fn settings(&self) -> Settings {
        self.lock().settings.clone()
    }

    fn arrival(
        &self,
        request: &Request<'_>,
        question: Option<&Question<'_>>,
        in_flight: u64,
        now: Instant,
    ) -> Arrival {
        let endpoint = match request.path.parse::<Endpoint>() {
            Ok(endpoint) => Cow::Borrowed(endpoint.path()),
            Err(_) => Cow::Owned(Arrival::text(request.below_v1())),
        };
        Arrival {
            at_us: self.at_us(now),
            endpoint,
            fingerprint: (!request.body.is_empty()).then(|| blake3::hash(request.body)),
            custom_id: question.and_then(|question| question.custom_id.as_deref()).map(Arrival::text),
            key: Auth::mark(request.headers),
            model: question.map(|question| Arrival::text(question.model())),
            in_flight,
        }
    }

    /// The reply to a request that was let in.
    fn fulfil<'a>(call: &Call<'_>, work: &Work, context: impl FnOnce() -> Context<'a>) -> Reply {
        let answer = || match (call, &work.done) {
            (Call::Ask(question), _) => {
                let answer = answer::write(question, &context());
                match question.stream {
                    Some(stream) => Reply::streamed(stream, &answer),
                    None => Reply::json(200, answer),
                }
            }
            (Call::Object(_), Some(done)) => done.reply(),
            // Only a fault that spares the work leaves it undone, and that has its own reply.
            (Call::Object(_), None) => Reply::refused(&Refusal::server_error()),
        };
        let mut reply = match work.fault {
            None | Some(Fault::Slow | Fault::Drip | Fault::Stall | Fault::Cut) => answer(),
            Some(Fault::Half) => answer().halved(),
            Some(Fault::Error) => answer().failed(),
            Some(Fault::Reset | Fault::Drop | Fault::Empty) => Reply::json(200, Vec::new()),
            Some(Fault::Garbage) => Reply::page(200),
            Some(Fault::BadGateway) => Reply::page(502),
            Some(Fault::GatewayTimeout) => Reply::page(504),
            Some(Fault::ServerError) => Reply::refused(&Refusal::server_error()),
            Some(Fault::Overloaded) => Reply::refused(&Refusal::overloaded()),
            Some(Fault::RateLimit) => Reply::refused(&Refusal::rate_limit()),
            Some(Fault::RequestTimeout) => Reply::refused(&Refusal::request_timeout()),
            Some(Fault::Conflict) => Reply::refused(&Refusal::conflict()),
        };
        reply.delay = work.delay;
        reply.delivery = match work.fault {
            Some(Fault::Reset | Fault::Drop) => Delivery::Dropped,
            Some(Fault::Cut) => Delivery::Cut,
            Some(Fault::Stall) => Delivery::Stalled(work.drips),
            Some(Fault::Drip) => Delivery::Dripped(work.drips),
            None if !work.drips.is_zero() => Delivery::Dripped(work.drips),
            _ => Delivery::Whole,
        };
        reply
    }

    fn note_departures(&self, state: &mut State) {
        for Departure { sequence, at, answer } in self.traffic.departures() {
            state.ledger.leave(sequence, self.at_us(at), answer);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("instance", &self.instance).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
    use secrecy::SecretString;
    use serde_json::{Value, json};
    use tokio::time::advance;

    use super::*;
    use crate::simulate::{Auth, Faults, Latency, LedgerSettings, Outcome, Script, WhenFull};

    fn engine(settings: Settings) -> Engine {
        Engine::new(settings, Seed::fixed(1)).unwrap()
    }

    fn send(engine: &Engine, method: &Method, path: &str, headers: &HeaderMap, body: &str) -> Reply {
        let authority = "127.0.0.1:1";
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let body = body.as_bytes();
        engine.take(&Request { method, path, query, headers, body, authority }, Instant::now())
    }

    fn ask(engine: &Engine, text: &str) -> Reply {
        let body = json!({"model": "m", "prompt": text, "max_tokens": 9}).to_string();
        send(engine, &Method::POST, "/v1/completions", &HeaderMap::new(), &body)
    }

    fn error(reply: &Reply) -> Value {
        serde_json::from_slice::<Value>(&reply.body).unwrap()["error"].take()
    }

    fn header<'a>(reply: &'a Reply, name: &str) -> Option<&'a str> {
        reply.headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn requests_per_minute_admit_exactly_what_they_say() {
        let settings = Settings { requests_per_minute: Some(600), ..Settings::default() };
        let engine = engine(settings);
        let mut admitted = 0;
        for _ in 0..=6_000 {
            admitted += u32::from(ask(&engine, "x").status == 200);
            advance(Duration::from_millis(10)).await;
        }
        assert_eq!(admitted, 610, "a minute's 600 and the burst of one second");
        assert_eq!(engine.summary().by_outcome["ok"], 610);
        assert_eq!(engine.summary().by_outcome["refused:rate_limit_exceeded"], 6_001 - 610);
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_per_minute_admit_exactly_what_they_say() {
        // 1 token of prompt and 9 of output: 10 a request, so 60 requests a minute.
        let settings = Settings { tokens_per_minute: Some(600), ..Settings::default() };
        let engine = engine(settings);
        let mut admitted = 0;
        for _ in 0..=600 {
            admitted += u32::from(ask(&engine, "x").status == 200);
            advance(Duration::from_millis(100)).await;
        }
        assert_eq!(admitted, 61);
        let reply = ask(&engine, &"x".repeat(4_000));
        assert_eq!((reply.status, error(&reply)["type"].as_str()), (429, Some("tokens")));
        assert!(error(&reply)["message"].as_str().unwrap().starts_with("Request too large"));
        assert_eq!(header(&reply, "retry-after"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_as_told_is_let_in() {
        let engine = engine(Settings { requests_per_minute: Some(7), ..Settings::default() });
        for _ in 0..20 {
            assert_eq!(ask(&engine, "x").status, 200);
            let refused = ask(&engine, "x");
            assert_eq!(refused.status, 429);
            let millis: u64 = header(&refused, "retry-after-ms").unwrap().parse().unwrap();
            let seconds: u64 = header(&refused, "retry-after").unwrap().parse().unwrap();
            assert_eq!(seconds, millis.div_ceil(1000));
            advance(Duration::from_millis(millis - 1)).await;
            assert_eq!(ask(&engine, "x").status, 429, "no earlier than told");
            advance(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn limits_show_in_the_headers_as_openai_writes_them() {
        let settings = Settings {
            requests_per_minute: Some(60),
            tokens_per_minute: Some(6_000),
            burst: Duration::from_secs(10),
            ..Settings::default()
        };
        let engine = engine(settings);
        let reply = ask(&engine, "x");
        assert_eq!(header(&reply, "x-ratelimit-limit-requests"), Some("60"));
        assert_eq!(header(&reply, "x-ratelimit-remaining-requests"), Some("9"));
        assert_eq!(header(&reply, "x-ratelimit-reset-requests"), Some("1s"));
        assert_eq!(header(&reply, "x-ratelimit-limit-tokens"), Some("6000"));
        assert_eq!(header(&reply, "x-ratelimit-remaining-tokens"), Some("990"));
        assert_eq!(header(&reply, "x-ratelimit-reset-tokens"), Some("100ms"));
        assert!(header(&reply, "x-request-id").unwrap().starts_with("req_"));
        assert_eq!(header(&reply, "openai-processing-ms"), Some("0"));
        let unlimited = ask(&self::engine(Settings::default()), "x");
        assert_eq!(header(&unlimited, "x-ratelimit-limit-requests"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_seed_gives_the_same_faults_whatever_the_latency() {
        let run = |seed: u64, latency: Latency| -> Vec<Outcome> {
            let all = Fault::ALL.into_iter().filter(|fault| *fault != Fault::Slow);
            let faults = Faults::new(all.map(|fault| (fault, 0.06))).unwrap();
            let settings = Settings { latency, faults, ..Settings::default() };
            let engine = Engine::new(settings, Seed::fixed(seed)).unwrap();
            for _ in 0..1_000 {
                ask(&engine, "x");
            }
            engine.entries().iter().map(|entry| entry.outcome).collect()
        };
        let first = run(1, Latency::ZERO);
        assert_eq!(first, run(1, "1ms..9s".parse().unwrap()));
        assert_ne!(first, run(2, Latency::ZERO));
        for fault in Fault::ALL {
            let met = first.iter().filter(|outcome| **outcome == Outcome::Fault(fault)).count();
            let expected = if fault == Fault::Slow { 0..1 } else { 40..100 };
            assert!(expected.contains(&met), "{fault}: {met}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_fault_answers_as_its_name_says() {
        let met = |name: &str| {
            let faults = format!("{name}=1").parse().unwrap();
            let latency = Latency::fixed(Duration::from_secs(1));
            let engine = engine(Settings { latency, faults, ..Settings::default() });
            (ask(&engine, "x"), engine.summary().paid)
        };
        for (name, status, paid) in [
            ("429", 429, 0),
            ("500", 500, 0),
            ("502", 502, 0),
            ("503", 503, 0),
            ("garbage", 200, 1),
            ("empty", 200, 1),
            ("half", 200, 1),
            ("error", 200, 1),
        ] {
            let (reply, payments) = met(name);
            assert_eq!((reply.status, payments), (status, paid), "{name}");
        }
        assert_eq!(error(&met("503").0)["code"], "server_is_overloaded");
        assert_eq!(met("429").0.delay, Duration::ZERO);
        assert_eq!(met("500").0.delay, Duration::from_secs(1));
        assert!(met("garbage").0.body.starts_with(b"<html>"));
        assert!(met("empty").0.body.is_empty());
        let (dropped, paid) = met("drop");
        assert_eq!((dropped.delivery, paid), (Delivery::Dropped, 1));
        let (cut, paid) = met("cut");
        assert_eq!((cut.delivery, paid), (Delivery::Cut, 1));
        assert_eq!(met("slow").0.delay, Duration::from_secs(31));
        let stalled = met("stall").0;
        let slow = Duration::from_secs(30);
        assert_eq!((stalled.delay, stalled.delivery), (Duration::from_secs(1), Delivery::Stalled(slow)));
        let (half, whole) = (met("half").0.body, met("slow").0.body);
        assert!(whole.starts_with(&half) && half.len() == whole.len() / 2);
        assert_eq!(error(&met("error").0)["type"], "server_error");
    }

    #[tokio::test(start_paused = true)]
    async fn the_ledger_knows_every_request_and_who_was_in_flight() {
        let engine = engine(Settings { faults: "cut=1".parse().unwrap(), ..Settings::default() });
        let first = ask(&engine, "x");
        let second = ask(&engine, "x");
        drop((first, second));
        send(&engine, &Method::GET, "/v1/nowhere", &HeaderMap::new(), "");
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "metadata": {"custom_id": "row-1"}});
        send(&engine, &Method::POST, "/chat/completions", &HeaderMap::new(), &body.to_string());
        let summary = engine.summary();
        assert_eq!((summary.requests, summary.paid, summary.paid_twice, summary.max_in_flight), (4, 3, 1, 2));
        assert_eq!(summary.distinct, 2, "what has no body is no body");
        let entries = engine.entries();
        assert_eq!(entries[1].in_flight, 2);
        assert_eq!((entries[2].outcome, entries[2].in_flight), (Outcome::Refused("unknown_url"), 1));
        assert_eq!(entries[3].custom_id.as_deref(), Some("row-1"));
        assert_eq!(entries[3].endpoint, "/chat/completions");
        assert_eq!(entries[3].fingerprint, Some(blake3::hash(body.to_string().as_bytes())));
    }

    #[tokio::test(start_paused = true)]
    async fn the_ledger_knows_who_left_when_and_with_what() {
        let engine = engine(Settings { faults: "429=1".parse().unwrap(), ..Settings::default() });
        let mut taken = ask(&engine, "x");
        let left_alone = ask(&engine, "y");
        assert_eq!(engine.entries()[0].left_us, None, "it is in the server");
        advance(Duration::from_secs(1)).await;
        taken.begin();
        let (answer, id) = (blake3::hash(&taken.body), header(&taken, "x-request-id").unwrap().to_owned());
        let wait = header(&taken, "retry-after-ms").map(|text| text.parse::<u64>().unwrap());
        drop((taken, left_alone));
        let entries = engine.entries();
        assert_eq!((entries[0].left_us, entries[0].answer), (Some(1_000_000), Some(answer)));
        assert_eq!((&entries[0].request_id, entries[0].retry_after_ms), (&id, wait));
        assert_eq!((entries[1].left_us, entries[1].answer), (Some(1_000_000), None), "its asker is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_ledger_totals_are_still_counted() {
        let ledger = LedgerSettings { on: false, ..LedgerSettings::default() };
        let engine = engine(Settings { ledger, ..Settings::default() });
        ask(&engine, "x");
        ask(&engine, "x");
        assert_eq!((engine.summary().requests, engine.summary().paid, engine.summary().distinct), (2, 2, 0));
        assert!(engine.entries().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn keys_quota_and_models_are_refused_as_openai_refuses_them() {
        let key = Auth::Key(SecretString::from("sk-right"));
        let models = vec!["m".to_owned()];
        let engine = engine(Settings { auth: key, models, quota_after: Some(1), ..Settings::default() });
        let with = |name: &'static str, value: &str, path: &str, body: &Value| {
            let headers = HeaderMap::from_iter([(
                HeaderName::from_static(name),
                HeaderValue::from_str(value).unwrap(),
            )]);
            send(&engine, &Method::POST, path, &headers, &body.to_string())
        };
        let (path, body) = ("/v1/moderations", json!({"model": "m", "input": "x"}));
        assert_eq!(error(&with("x-nothing", "", path, &body))["code"], Value::Null);
        let wrong = with("authorization", "Bearer sk-wrong", path, &body);
        assert_eq!((wrong.status, error(&wrong)["code"].as_str()), (401, Some("invalid_api_key")));
        let unknown = with("api-key", "sk-right", path, &json!({"model": "gpt-x", "input": "x"}));
        assert_eq!((unknown.status, error(&unknown)["code"].as_str()), (404, Some("model_not_found")));
        assert_eq!(with("api-key", "sk-right", path, &body).status, 200);
        let over = with("authorization", "Bearer sk-right", path, &body);
        assert_eq!((over.status, error(&over)["type"].as_str()), (429, Some("insufficient_quota")));
        assert_eq!(engine.summary().by_outcome["refused:missing_api_key"], 1);
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_paths_and_methods_are_refused() {
        let engine = engine(Settings::default());
        let status = |method: Method, path: &str| send(&engine, &method, path, &HeaderMap::new(), "").status;
        assert_eq!(status(Method::GET, "/v1/batches"), 404);
        assert_eq!(status(Method::GET, "/v1/files/"), 404);
        assert_eq!(status(Method::POST, "/v1/v1/embeddings"), 404, "a base url with one `/v1` too many");
        assert_eq!(status(Method::POST, "/v1/embeddings/"), 404);
        assert_eq!(status(Method::POST, "/_sim/nothing"), 404);
        assert_eq!(status(Method::GET, "/v1/chat/completions"), 405);
        assert_eq!(status(Method::POST, "/models"), 405);
        assert_eq!(status(Method::GET, "/v1/models"), 200);
        let reply = send(&engine, &Method::GET, "/v1/models/ft%3Agpt:org%2Fx", &HeaderMap::new(), "");
        assert_eq!(serde_json::from_slice::<Value>(&reply.body).unwrap()["id"], "ft:gpt:org/x");
        let reply = send(&engine, &Method::PUT, "/v1/embeddings", &HeaderMap::new(), "");
        assert_eq!(header(&reply, "allow"), Some("POST"));
    }

    #[tokio::test(start_paused = true)]
    async fn settings_change_while_it_runs() {
        let engine = engine(Settings::default());
        let admin = |method: Method, path: &str, body: &str| {
            let reply = send(&engine, &method, path, &HeaderMap::new(), body);
            (reply.status, serde_json::from_slice::<Value>(&reply.body).unwrap())
        };
        let (status, now) = admin(
            Method::POST,
            "/_sim/faults",
            r#"{"faults":"500=1","capacity":2,"when_full":"429","requests_per_minute":60,"latency":"5ms","key":"sk","quota_after":9,"mishaps":"upload=drop","fate":"fail","fine_tune_time":"1m","hints":"none,date:2s","limits_told":"hints"}"#,
        );
        assert_eq!(status, 200);
        let expected = json!({"faults": "500=1", "capacity": 2, "when_full": "429", "requests_per_minute": 60,
            "tokens_per_minute": null, "latency": "5ms", "key": true, "quota_after": 9, "mishaps": "upload=drop",
            "fate": "fail", "fine_tune_time": "1m", "hints": "none,date:2s", "limits_told": "hints"});
        assert_eq!(now, expected);
        assert_eq!(engine.settings().when_full, WhenFull::SlowDown);
        assert_eq!(ask(&engine, "x").status, 401);
        admin(Method::POST, "/_sim/faults", r#"{"key":null,"requests_per_minute":null}"#);
        assert_eq!(ask(&engine, "x").status, 500);
        admin(Method::POST, "/_sim/faults", r#"{"faults":""}"#);
        assert_eq!(ask(&engine, "x").status, 200);
        assert_eq!(admin(Method::POST, "/_sim/faults", r#"{"fualts":""}"#).0, 400);
        let (_, ledger) = admin(Method::GET, "/_sim/ledger?full=1", "");
        assert_eq!((&ledger["requests"], ledger["entries"].as_array().unwrap().len()), (&json!(3), 3));
        let fingerprint = ledger["entries"][2]["fingerprint"].as_str().unwrap();
        let (_, one) = admin(Method::GET, &format!("/_sim/ledger?fingerprint={fingerprint}"), "");
        assert_eq!((&one["requests"], &one["paid"]), (&json!(3), &json!(1)));
        assert_eq!(admin(Method::GET, "/_sim/ledger?fingerprint=zz", "").0, 400);
        assert_eq!(admin(Method::DELETE, "/_sim/ledger", "").1["requests"], 0);
    }

    #[tokio::test(start_paused = true)]
    async fn limits_are_told_as_far_as_is_wanted() {
        let told = |limits_told: &str| {
            let limits_told = limits_told.parse().unwrap();
            let settings = Settings { requests_per_minute: Some(1), limits_told, ..Settings::default() };
            let engine = engine(settings);
            let (first, refused) = (ask(&engine, "x"), ask(&engine, "x"));
            let limit = |reply: &Reply| header(reply, "x-ratelimit-limit-requests").is_some();
            assert_eq!(limit(&first), limit(&refused));
            assert_eq!(engine.entries()[1].retry_after_ms, header(&refused, "retry-after").map(|_| 60_000));
            (limit(&first), header(&refused, "retry-after").is_some())
        };
        let all = ["all", "headers", "hints", "nothing"].map(told);
        assert_eq!(all, [(true, true), (true, false), (false, true), (false, false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_script_changes_what_requests_meet() {
        let script = r#"
            [[events]]
            at = "10s"
            for = "10s"
            what = "401"
            [[events]]
            at = "30s"
            for = "10s"
            what = "429"
            retry_after = "date:20s"
            [[events]]
            at = "50s"
            for = "10s"
            what = "quota"
            [[events]]
            at = "70s"
            for = "10s"
            what = "model"
            [[events]]
            at = "90s"
            for = "10s"
            what = "502"
            [[events]]
            at = "110s"
            for = "10s"
            requests_per_minute = 1
        "#;
        let script = Script::parse("script.toml", script).unwrap();
        let epoch = Timestamp::from_millis(1_767_225_600_000);
        let engine = engine(Settings { script, epoch, ..Settings::default() });
        let mut seen = Vec::new();
        for _ in 0..13 {
            let replies = [ask(&engine, "x"), ask(&engine, "x")];
            seen.push(replies.each_ref().map(|reply| reply.status));
            if replies[0].status == 429 && seen.len() == 4 {
                assert_eq!(header(&replies[0], "date"), Some("Thu, 01 Jan 2026 00:00:30 GMT"));
                assert_eq!(header(&replies[0], "retry-after"), Some("Thu, 01 Jan 2026 00:00:50 GMT"));
            }
            advance(Duration::from_secs(10)).await;
        }
        let first = |seen: &[u16; 2]| seen[0];
        let statuses: Vec<u16> = seen.iter().map(first).collect();
        assert_eq!(statuses, [200, 401, 200, 429, 200, 429, 200, 404, 200, 502, 200, 200, 200]);
        assert_eq!(seen[11], [200, 429], "one a minute");
        let outcomes = engine.summary().by_outcome;
        assert_eq!((outcomes["refused:insufficient_quota"], outcomes["refused:model_not_found"]), (2, 2));
        assert_eq!((outcomes["fault:429"], outcomes["fault:502"]), (2, 2));
        let body = engine.entries()[6].clone();
        assert_eq!((body.outcome, body.retry_after_ms), (Outcome::Fault(Fault::RateLimit), Some(20_000)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_pace_is_told_in_one_call() {
        let engine = engine(Settings { requests_per_minute: Some(60), ..Settings::default() });
        ask(&engine, "x");
        ask(&engine, "x");
        advance(Duration::from_millis(500)).await;
        ask(&engine, "x");
        let told = |path| {
            let reply = send(&engine, &Method::GET, path, &HeaderMap::new(), "");
            serde_json::from_slice::<Value>(&reply.body).unwrap()
        };
        let pace = told("/_sim/pace");
        assert_eq!((&pace["admitted"], &pace["refused"], &pace["early"]), (&json!(1), &json!(2), &json!(1)));
        let second = json!([{"at": 0, "admitted": 1, "refused": 2, "rejected": 0, "max_in_flight": 1}]);
        assert_eq!(pace["seconds"], second);
    }
}
