//! `/_sim/`: what a person or a test asks the stand-in server itself. Never in the ledger, never late.
//!
//! | call | does |
//! |---|---|
//! | `GET /_sim/ledger` | the totals; with `?full=1` also `entries` |
//! | `GET /_sim/ledger?fingerprint=<hex>` | how often one body was sent and paid for, and its entries |
//! | `DELETE /_sim/ledger` | empties it, and what `/_sim/pace` has counted |
//! | `GET /_sim/pace` | questions let in and refused, in all and by the second; how many came before they were told to |
//! | `GET /_sim/faults` | faults, limits, capacity and latency as they are |
//! | `POST /_sim/faults` | changes them ([`Changes`] as JSON), and answers as `GET` |
//! | `GET /_sim/images/<seed>.png` | an image that was answered by url |

use axum::http::Method;
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;
use url::form_urlencoded;

use super::answer::to_json;
use super::call::Request;
use super::engine::Engine;
use super::image;
use super::ledger::{Entry, Summary};
use super::refusal::Refusal;
use super::reply::Reply;
use super::settings::Changes;

/// Answers a request to `/_sim/<path>`.
pub(super) fn reply(engine: &Engine, request: &Request<'_>, path: &str, now: Instant) -> Reply {
    let method = request.method;
    if let Some(name) = path.strip_prefix("images/") {
        let seed = name.strip_suffix(".png").and_then(|hex| blake3::Hash::from_hex(hex).ok());
        return match seed {
            Some(seed) if method == Method::GET => Reply::new(200, "image/png", image::png(*seed.as_bytes())),
            _ => unknown(request),
        };
    }
    match (path, method) {
        ("ledger", &Method::GET) => ledger(engine, request.query.unwrap_or_default()),
        ("ledger", &Method::DELETE) => {
            engine.reset_ledger();
            Reply::json(200, to_json(&engine.summary()))
        }
        ("pace", &Method::GET) => Reply::json(200, to_json(&engine.pace())),
        ("faults", &Method::GET) => settings(engine),
        ("faults", &Method::POST) => match serde_json::from_slice::<Changes>(request.body) {
            Ok(changes) => {
                engine.change(changes, now);
                settings(engine)
            }
            Err(error) => Reply::refused(&Refusal::bad_changes(&error)),
        },
        _ => unknown(request),
    }
}

fn unknown(request: &Request<'_>) -> Reply {
    Reply::refused(&Refusal::unknown_url(request.method.as_str(), request.path))
}

fn ledger(engine: &Engine, query: &str) -> Reply {
    #[derive(Serialize)]
    struct Full {
        #[serde(flatten)]
        summary: Summary,
        entries: Vec<Entry>,
    }
    let member = |name: &str| {
        let mut pairs = form_urlencoded::parse(query.as_bytes());
        pairs.find(|(key, _)| key == name).map(|(_, value)| value)
    };
    if let Some(hex) = member("fingerprint") {
        let Ok(fingerprint) = blake3::Hash::from_hex(hex.as_bytes()) else {
            return Reply::refused(&Refusal::bad_fingerprint());
        };
        let payments = engine.payments(fingerprint);
        let mut entries = engine.entries();
        entries.retain(|entry| entry.fingerprint == Some(fingerprint));
        let body = json!({
            "fingerprint": fingerprint.to_hex().as_str(),
            "requests": payments.requests,
            "paid": payments.paid,
            "entries": entries,
        });
        return Reply::json(200, to_json(&body));
    }
    let body = if member("full").is_some_and(|value| value == "1") {
        to_json(&Full { summary: engine.summary(), entries: engine.entries() })
    } else {
        to_json(&engine.summary())
    };
    Reply::json(200, body)
}

fn settings(engine: &Engine) -> Reply {
    let settings = engine.settings();
    let body = json!({
        "faults": settings.faults,
        "hints": settings.hints,
        "limits_told": settings.limits_told,
        "latency": settings.latency,
        "capacity": settings.capacity,
        "when_full": settings.when_full,
        "requests_per_minute": settings.requests_per_minute,
        "tokens_per_minute": settings.tokens_per_minute,
        "key": settings.auth.is_closed(),
        "quota_after": settings.quota_after,
        "mishaps": settings.mishaps,
        "fate": settings.fate,
        "fine_tune_time": humantime::format_duration(settings.fine_tune_time).to_string(),
    });
    Reply::json(200, to_json(&body))
}
