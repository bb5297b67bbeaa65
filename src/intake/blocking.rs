//! Where intake does what blocks: on threads of the runtime that may.

use std::panic::resume_unwind;

/// Runs what blocks on a thread for it. A panic there goes on here.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => resume_unwind(panic),
        // The runtime is being taken down: nobody will ask again.
        Err(Err(_)) => std::future::pending().await,
    }
}
