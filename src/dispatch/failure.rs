//! What ends dispatch: the store's failure, or a bug. Neither may take what is in flight along with it.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use thiserror::Error;
use tokio::task::JoinError;

use crate::store;

/// Why nothing more may be sent.
#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A bug of batchd's: `task` says whose.
    #[error("{task} panicked: {message}")]
    Panicked { task: String, message: String },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(super) fn panicked(task: &str, error: JoinError) -> Self {
        let message = match error.try_into_panic() {
            Ok(payload) => message(&*payload),
            Err(error) => error.to_string(),
        };
        Self::Panicked { task: task.to_owned(), message }
    }
}

/// Runs `work`; a panic of it is an error, and its caller goes on: requests in flight are to be waited for.
pub(super) async fn guarded<T>(task: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    // What the panic left half done is leases, and whoever holds some gives them back or loses them with us.
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|payload| {
        let message = message(&*payload);
        tracing::error!(task, error = message, "a bug of batchd: nothing more is sent; please report it");
        Err(Error::Panicked { task: task.to_owned(), message })
    })
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_that_names_its_task_and_its_words() {
        let error = guarded::<()>("the fleet", async { panic!("dropped {}", 1) }).await.unwrap_err();
        assert_eq!(error.to_string(), "the fleet panicked: dropped 1");
        let joined = tokio::task::JoinSet::from_iter([async { panic!("dropped it") }]).join_next().await;
        let error = Error::panicked("an attempt", joined.unwrap().unwrap_err());
        assert_eq!(error.to_string(), "an attempt panicked: dropped it");
        let fine = guarded("the fleet", async { Ok(7) }).await;
        assert_eq!(fine.unwrap(), 7);
    }
}
