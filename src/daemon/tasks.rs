//! The daemon's tasks: named, owned, and none of their ends unseen.

use std::collections::BTreeMap;
use std::future::Future;

use tokio::task::{Id, JoinSet};

use crate::store;
use crate::{dispatch, intake, output};

/// Why a worker ended.
#[derive(Debug)]
pub(super) enum Failed {
    Store(store::Error),
    Other(String),
}

impl From<store::Error> for Failed {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

impl From<dispatch::Error> for Failed {
    fn from(error: dispatch::Error) -> Self {
        match error {
            dispatch::Error::Store(error) => Self::Store(error),
            error @ dispatch::Error::Panicked { .. } => Self::Other(error.to_string()),
        }
    }
}

impl From<intake::Error> for Failed {
    fn from(error: intake::Error) -> Self {
        match error {
            intake::Error::Store(error) => Self::Store(error),
            intake::Error::Io { act, path, source } => Self::Store(store::Error::Io { act, path, source }),
        }
    }
}

impl From<output::Error> for Failed {
    fn from(error: output::Error) -> Self {
        match error {
            output::Error::Store(error) | output::Error::Files(error) => Self::Store(error),
            error @ (output::Error::Unpublishable(_) | output::Error::Interrupted) => {
                Self::Other(error.to_string())
            }
        }
    }
}

/// A set of named tasks.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    set: JoinSet<Result<(), Failed>>,
    names: BTreeMap<Id, &'static str>,
}

impl Tasks {
    pub(super) fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), Failed>> + Send + 'static,
    ) {
        let handle = self.set.spawn(task);
        self.names.insert(handle.id(), name);
    }

    /// The next task that ends, and how; a panic is a failure that names it. Pending while none is left.
    pub(super) async fn next(&mut self) -> (&'static str, Result<(), Failed>) {
        let Some(joined) = self.set.join_next_with_id().await else { return std::future::pending().await };
        let (id, ended) = match joined {
            Ok((id, ended)) => (id, ended),
            Err(error) => (error.id(), Err(Failed::Other(error.to_string()))),
        };
        (self.names.remove(&id).unwrap_or("unnamed"), ended)
    }

    pub(super) fn is_running(&self, names: &[&str]) -> bool {
        self.names.values().any(|name| names.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_failure_that_names_its_task() {
        let mut tasks = Tasks::default();
        tasks.spawn("steady", std::future::pending());
        tasks.spawn("clumsy", async { panic!("dropped it") });
        let (name, ended) = tasks.next().await;
        assert_eq!(name, "clumsy");
        assert!(matches!(ended, Err(Failed::Other(why)) if why.contains("dropped it")));
        assert!(tasks.is_running(&["steady"]) && !tasks.is_running(&["clumsy"]));
    }
}
