//! What others hold of a running intake: they see what it sees, and can ask it to look.

use std::sync::Arc;

use tokio::sync::watch::{Receiver, Sender};

/// What the last look at the jobs folder left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Looks so far, with all that they brought taken in. 0: nobody knows yet what lies there.
    pub looks: u64,
    /// Specs that will be read yet: still settling, or more than one look takes in.
    pub pending: usize,
    /// Specs that can't be taken in for now because of `trouble`; they are tried again.
    pub blocked: usize,
    /// What stands in the way, in words.
    pub trouble: Option<String>,
    /// The last [`Handle::wake`] that was heard before the look began.
    pub(super) heard: u64,
}

impl Status {
    /// Everything that could be taken in at the time of the look has been. What is `blocked`, or a folder that
    /// could not be looked at (`trouble`), is not waited for.
    pub const fn is_idle(&self) -> bool {
        self.looks > 0 && self.pending == 0
    }
}

/// What others hold of a running intake. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) calls: Arc<Sender<u64>>,
    pub(super) status: Receiver<Status>,
}

impl Handle {
    /// Asks for a look at the folder now.
    pub fn wake(&self) {
        self.calls.send_modify(|calls| *calls += 1);
    }

    /// The outcome of every look.
    pub fn status(&self) -> Receiver<Status> {
        self.status.clone()
    }

    /// The outcome of a look that began after this call: what was dropped before it is in it. The last one
    /// known, if intake has ended.
    pub async fn look(&self) -> Status {
        let mut call = 0;
        self.calls.send_modify(|calls| {
            *calls += 1;
            call = *calls;
        });
        let mut status = self.status.clone();
        let heard = status.wait_for(|status| status.heard >= call).await.map(|status| status.clone());
        heard.unwrap_or_else(|_| self.status.borrow().clone())
    }
}
