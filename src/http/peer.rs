//! Who speaks on the Unix socket.
//!
//! The socket's mode lets in whom it should; this is asked on top, since a mode is easily changed.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use rustix::process::geteuid;
use tokio::net::UnixStream;

use super::routes::Failure;
use crate::diag::printable;

/// The routes for whoever is at the other end: all of them, or the word that they are not for him.
pub(super) fn welcome(stream: &UnixStream, routes: &Router, is_shared: bool) -> Router {
    let own = geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if admits(peer.uid(), own, is_shared) => {
            routes.clone().layer(from_fn_with_state(peer.uid(), log_commands))
        }
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "somebody else tried to speak to the daemon");
            Router::new().fallback(async || refused())
        }
        Err(error) => {
            tracing::warn!(%error, "the system does not say who speaks to the daemon: nobody is answered");
            Router::new().fallback(async || refused())
        }
    }
}

/// Whether `uid` may give commands. Where the socket is shared with a group, its mode has decided: a uid says nothing
/// of groups, and where the daemon lives in a user namespace of its own every other user has the same one.
const fn admits(uid: u32, own: u32, is_shared: bool) -> bool {
    is_shared || uid == own || uid == 0
}

fn refused() -> Failure {
    let message = "only the user who runs the daemon may speak to it".to_owned();
    Failure { status: StatusCode::FORBIDDEN, code: "forbidden", message }
}

/// Notes who gave which command, and what came of it.
async fn log_commands(State(uid): State<u32>, request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let command = printable(request.uri().path());
    let answer = next.run(request).await;
    tracing::info!(uid, command, status = answer.status().as_u16(), "a command was given");
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_let_in_only_where_the_mode_has_let_in_a_group() {
        // Who has no name in the daemon's user namespace.
        const NOBODY: u32 = 65_534;
        let own = 990;
        for (uid, is_shared, expected) in [
            (own, false, true),
            (0, false, true),
            (1000, false, false),
            (NOBODY, false, false),
            (own, true, true),
            (1000, true, true),
            (NOBODY, true, true),
        ] {
            assert_eq!(admits(uid, own, is_shared), expected, "{uid} {is_shared}");
        }
    }
}
