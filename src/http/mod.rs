//! The control API: what the commands and other programs on this machine say to the running daemon.
//!
//! HTTP with JSON over a Unix socket that only its owner may open: no port, no token, and out of reach of
//! a web page in somebody's browser.
//!
//! # Format
//!
//! | request | answer |
//! |---|---|
//! | `GET /health` | `{"status":"ok","version":…}` |
//! | `GET /jobs` | an array of [`JobReport`](crate::control::JobReport)s, in the order of acceptance |
//! | `GET /jobs/{job}` | one, by its name or id |
//! | `POST /jobs/{job}/cancel`, `pause`, `resume`, `retry` | the job after the command took effect (P6) |
//!
//! An error is `{"error":{"message":…,"code":…}}` with status 404 (`no_such_job`, `not_found`), 405
//! (`wrong_method`), 409 (`wrong_status`), or 503 (`store_closed`).

mod routes;
mod socket;

use std::future::IntoFuture;
use std::io;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::control::Control;

pub use socket::bind;

/// How long a client may take to let go once the daemon stops. Answers are small: a client that still holds
/// its connection then has stopped reading.
const DRAIN: Duration = Duration::from_secs(1);

/// Answers commands until `stop`; the socket is then taken away.
///
/// # Errors
///
/// The listener failed.
pub async fn serve(listener: UnixListener, control: Control, stop: CancellationToken) -> io::Result<()> {
    let _unlinked_at_the_end = socket::Unlink::of(&listener);
    let server = axum::serve(listener, routes::router(control))
        .with_graceful_shutdown(stop.clone().cancelled_owned())
        .into_future();
    let too_late = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        biased; // A drain that ended in time is one, even at its last moment.
        ended = server => ended,
        () = too_late => Ok(()),
    }
}
