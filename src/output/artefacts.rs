//! What a fine-tune leaves at its provider, asked for with patience.

use std::fmt;
use std::io::Write;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::value::RawValue;
use thiserror::Error as ThisError;
use tracing::debug;

use crate::domain::{Outcome, TuningApi};
use crate::provider::{Called, Provider};

/// The wait before each try.
const TRIES: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(4)];
/// No provider makes a job that has ended wait longer for its next try.
const WAIT_MAX: Duration = Duration::from_mins(1);

/// Hands out, and takes back, what lies at a provider because of a fine-tune.
pub trait Artefacts: Send + Sync + fmt::Debug {
    /// What happened to the fine-tune `id`, oldest first: each event an object on one line.
    fn events<'a>(
        &'a self,
        api: TuningApi,
        id: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Box<RawValue>>, Unavailable>>;

    /// What the provider calls a file; empty if nothing.
    fn file_name<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<String, Unavailable>>;

    /// Writes the content of a file into `sink` as it comes, at most `max` bytes.
    fn content<'a>(
        &'a self,
        id: &'a str,
        sink: &'a mut (dyn Write + Send),
        max: u64,
    ) -> BoxFuture<'a, Result<(), Unavailable>>;

    fn delete<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Unavailable>>;
}

/// Why something at a provider was not had, or not done. A kind per reaction.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub enum Unavailable {
    /// The provider has no such thing, or no such endpoint.
    #[error("{0}")]
    Absent(String),
    /// It would be refused again.
    #[error("{0}")]
    Refused(String),
    /// It may go right the next time.
    #[error("{message}")]
    Later { message: String, retry_after: Option<Duration> },
}

impl From<Outcome> for Unavailable {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Refused(response) => {
                let message = format!("the provider answered {}", response.status_code);
                match response.status_code {
                    404 | 405 | 410 | 501 => Self::Absent(message),
                    _ => Self::Refused(message),
                }
            }
            Outcome::Unanswerable(error) => Self::Refused(error.message),
            Outcome::Answered(_) => Self::Refused("the provider answered something else".to_owned()),
            Outcome::Throttled { code, retry_after, .. } => Self::Later { message: code, retry_after },
            Outcome::Failed(failure) => {
                Self::Later { message: failure.message, retry_after: failure.retry_after }
            }
            Outcome::Blocked(blocked) => {
                Self::Later { message: blocked.message, retry_after: blocked.retry_after }
            }
        }
    }
}

impl Artefacts for Provider {
    fn events<'a>(
        &'a self,
        api: TuningApi,
        id: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Box<RawValue>>, Unavailable>> {
        let events = async move {
            let events = known(self.fine_tune_events(api, id).await)?;
            Ok(events.into_iter().map(|event| event.raw).collect())
        };
        events.boxed()
    }

    fn file_name<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<String, Unavailable>> {
        async move { Ok(known(self.file(id).await)?.filename) }.boxed()
    }

    fn content<'a>(
        &'a self,
        id: &'a str,
        sink: &'a mut (dyn Write + Send),
        max: u64,
    ) -> BoxFuture<'a, Result<(), Unavailable>> {
        async move { known(self.file_content(id, sink, max, &|_| {}).await).map(drop) }.boxed()
    }

    fn delete<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Unavailable>> {
        async move { known(self.delete_file(id).await) }.boxed()
    }
}

fn known<T>(called: Called<T>) -> Result<T, Unavailable> {
    called.map_err(|outcome| Unavailable::from(*outcome))
}

/// Calls until it goes right, is refused, or was tried often enough.
pub(super) async fn patiently<T, F: Future<Output = Result<T, Unavailable>>>(
    mut call: impl FnMut() -> F,
) -> Result<T, Unavailable> {
    let mut hint = Duration::ZERO;
    let mut last = Unavailable::Refused(String::new());
    for wait in TRIES {
        tokio::time::sleep(wait.max(hint).min(WAIT_MAX)).await;
        match call().await {
            Err(error @ Unavailable::Later { retry_after, .. }) => {
                debug!(%error, "a question about a fine-tune is asked again");
                hint = retry_after.unwrap_or_default();
                last = error;
            }
            ended => return ended,
        }
    }
    Err(last)
}
