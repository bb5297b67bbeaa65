//! What commands and other programs ask the running daemon: the control API on a Unix socket, and how it is, there
//! and over TCP.
//!
//! The socket ([`bind`], [`serve`]) is for its owner, or for a group too: no token, and out of reach of a web page in
//! somebody's browser. A [`Port`], if there is one, has health and metrics and nothing else.
//!
//! # Format
//!
//! | request | answer | over TCP, too |
//! |---|---|---|
//! | `GET /healthz` | 200, or 503 once a worker has ended | yes |
//! | `GET /readyz` | 200 while work is taken; else 503 and why (`code`, `reason`) | yes |
//! | `GET /metrics` | the [metrics](crate::metrics), in the form that `Accept` names | with the token, if there is one |
//! | `GET /health` | `{"status":"ok","version":…,"last_error":…}` | |
//! | `GET /jobs` | an array of [`JobReport`](crate::control::JobReport)s, in the order of acceptance | |
//! | `GET /jobs/{job}` | one, by its name or id | |
//! | `POST /jobs/{job}/cancel`, `pause`, `resume`, `retry` | the job after the command took effect (P6) | |
//! | `GET /schedules` | an array of [`ScheduleReport`]s, by their files | |
//! | `GET /schedules/next?n=…` | an array of [`Upcoming`]s: the next times over all of them, 10 without `n` | |
//! | `POST /schedules/{schedule}/run` | the job that was made, by the schedule's name or its file's | |
//!
//! An error is `{"error":{"message":…,"code":…}}` with status 400 (`bad_query`), 401 (`unauthorized`), 403 (`forbidden`),
//! 404 (`no_such_job`, `no_such_schedule`, `not_found`), 405 (`wrong_method`), 409 (`wrong_status`, `ambiguous_name`,
//! `broken_schedule`, `unsettled_data`), 421 (`wrong_host`), 422 (`rejected`), or 503 (`store_closed`, `trouble`,
//! `stopping`).

mod connections;
mod peer;
mod port;
mod routes;
mod schedules;
mod socket;
pub(crate) mod vitals;

use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use crate::control::Control;
use crate::intake;

pub use self::port::Port;
pub use self::schedules::{RuleReport, ScheduleReport, UPCOMING_DEFAULT, UPCOMING_MAX, Upcoming};
pub use self::socket::{Socket, bind};
pub use self::vitals::{Health, Vitals};

use self::connections::Bounds;

/// A command may take as long as the disk does.
const BOUNDS: Bounds = Bounds { connections: 256, whole: None };

/// Answers commands until `stop`; the socket is then taken away.
pub async fn serve(
    socket: Socket,
    control: Control,
    intake: intake::Handle,
    vitals: Vitals,
    stop: CancellationToken,
) {
    let Socket { listener, is_shared } = socket;
    let _unlinked_at_the_end = socket::Unlink::of(&listener);
    let health = vitals::health_router(vitals.metrics.clone());
    let routes = routes::router(control, intake).merge(health).merge(vitals::router(vitals));
    let welcome = |stream: &UnixStream| peer::welcome(stream, &routes, is_shared);
    connections::serve(listener, BOUNDS, welcome, stop).await;
}
