//! The embedded store against its model: random verbs in step over it and over the store in memory, with
//! restarts, crashes and losses of the index in between.
//!
//! The model of a restart: leases are void. What was begun counts as an attempt and is due, if it is for the first
//! time that its end is not known, and has failed else, or if its job was being cancelled. What was not begun is as
//! it was.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;
use tokio::runtime::Builder;

use super::tests::{crash, files_alone};
use super::{Content, EmbeddedStore};
use crate::domain::{Job, JobStatus, PauseReason, RequestId, Settlement, Timestamp};
use crate::store::conformance::{self, NOW, answer, failure, journal_indexes, put, queue, until_settled};
use crate::store::memory::MemoryStore;
use crate::store::{Lease, Store};

const MODELS: [&str; 2] = ["a", "b"];

#[derive(Clone, Copy, Debug)]
enum Verb {
    Lease { model: usize, max: usize },
    Begin { which: usize },
    Settle { which: usize, how: How },
    SetStatus { job: usize, to: To },
    RetryNow { job: usize },
    Pass { seconds: u64 },
    Reopen { how: Restart },
}

#[derive(Clone, Copy, Debug)]
enum How {
    Complete,
    Discard,
    Retry { seconds: u64, attempts: u32, maybe_paid: bool },
    Release,
}

#[derive(Clone, Copy, Debug)]
enum To {
    InProgress,
    Paused,
    Cancelling,
    /// Only when nothing is leased, as its callers do.
    Cancelled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restart {
    Orderly,
    Crash,
    IndexLost,
}

fn verb() -> impl Strategy<Value = Verb> {
    let how = prop_oneof![
        4 => Just(How::Complete),
        1 => Just(How::Discard),
        3 => (0..90u64, 0..4u32, any::<bool>()).prop_map(|(seconds, attempts, maybe_paid)| How::Retry { seconds, attempts, maybe_paid }),
        2 => Just(How::Release),
    ];
    let to = prop_oneof![
        4 => Just(To::InProgress),
        2 => Just(To::Paused),
        1 => Just(To::Cancelling),
        1 => Just(To::Cancelled),
    ];
    let restart = prop_oneof![Just(Restart::Orderly), Just(Restart::Crash), Just(Restart::IndexLost)];
    prop_oneof![
        8 => (0..2usize, 1..9usize).prop_map(|(model, max)| Verb::Lease { model, max }),
        5 => any::<usize>().prop_map(|which| Verb::Begin { which }),
        9 => (any::<usize>(), how).prop_map(|(which, how)| Verb::Settle { which, how }),
        1 => (0..2usize, to).prop_map(|(job, to)| Verb::SetStatus { job, to }),
        1 => (0..2usize).prop_map(|job| Verb::RetryNow { job }),
        2 => (1..60u64).prop_map(|seconds| Verb::Pass { seconds }),
        1 => restart.prop_map(|how| Verb::Reopen { how }),
    ]
}

/// One request's lease in both stores.
#[derive(Debug)]
struct Pair {
    real: Lease,
    model: Lease,
    begun: bool,
}

#[derive(Debug)]
struct World {
    dir: TempDir,
    /// None while it is reopened.
    real: Option<EmbeddedStore>,
    model: MemoryStore,
    jobs: [Job; 2],
    leases: Vec<Pair>,
    now: Timestamp,
    /// Requests of which a restart lost an attempt.
    lost: BTreeSet<RequestId>,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let real = EmbeddedStore::open(dir.path()).unwrap();
        let model = MemoryStore::default();
        let jobs = [conformance::job(1, 5, &MODELS, 40), conformance::job(2, 6, &MODELS, 17)];
        for job in &jobs {
            put(&real, job).await;
            put(&model, job).await;
        }
        Self { dir, real: Some(real), model, jobs, leases: Vec::new(), now: NOW, lost: BTreeSet::new() }
    }

    fn real(&self) -> &EmbeddedStore {
        self.real.as_ref().unwrap()
    }

    async fn carry_out(&mut self, verb: Verb) {
        match verb {
            Verb::Lease { model, max } => self.lease(model, max).await,
            Verb::Begin { which } => {
                if let Some(at) = which.checked_rem(self.leases.len()) {
                    self.leases[at].begun = true;
                    let pair = &self.leases[at];
                    same(self.real().begin(&pair.real), self.model.begin(&pair.model));
                }
            }
            Verb::Settle { which, how } => {
                if let Some(at) = which.checked_rem(self.leases.len()) {
                    let pair = self.leases.swap_remove(at);
                    self.settle(pair, how).await;
                }
            }
            Verb::SetStatus { job, to } => self.set_status(job, to).await,
            Verb::RetryNow { job } => self.retry_now(job).await,
            Verb::Pass { seconds } => self.now = self.now + Duration::from_secs(seconds),
            Verb::Reopen { how } => self.reopen(how).await,
        }
    }

    async fn lease(&mut self, model: usize, max: usize) {
        let queue = queue(MODELS[model]);
        let real = self.real().lease(&queue, max, self.now).await.unwrap();
        let model = self.model.lease(&queue, max, self.now).await.unwrap();
        let seen = |leases: &[Lease]| leases.iter().map(|l| (l.request, l.attempt)).collect::<Vec<_>>();
        assert_eq!(seen(&real.leases), seen(&model.leases));
        assert_eq!(real.next_due, model.next_due);
        let pairs = real.leases.into_iter().zip(model.leases);
        self.leases.extend(pairs.map(|(real, model)| Pair { real, model, begun: false }));
    }

    async fn settle(&self, pair: Pair, how: How) {
        let id = pair.real.request.job;
        let settlement = |lease: &Lease| match how {
            How::Complete => answer(lease),
            How::Discard => failure(lease),
            How::Retry { seconds, attempts, maybe_paid } => {
                let due = self.now + Duration::from_secs(seconds);
                Settlement::Retry { due, attempts, maybe_paid }
            }
            How::Release => Settlement::Release,
        };
        let (real, model) = (settlement(&pair.real), settlement(&pair.model));
        same(self.real().settle(pair.real, real).await, self.model.settle(pair.model, model).await);
        let settled = self.model.job(id).await.unwrap().counts.settled();
        until_settled(self.real(), id, settled).await;
    }

    async fn set_status(&self, job: usize, to: To) {
        let id = self.jobs[job].id;
        let is_leased = self.leases.iter().any(|pair| pair.real.request.job == id);
        let status = match to {
            To::InProgress => JobStatus::InProgress,
            To::Paused => JobStatus::Paused { reason: PauseReason::User },
            To::Cancelling => JobStatus::Cancelling,
            To::Cancelled if is_leased => return,
            To::Cancelled => JobStatus::Cancelled,
        };
        let real = self.real().set_status(id, status.clone(), self.now).await;
        same(real, self.model.set_status(id, status, self.now).await);
    }

    async fn retry_now(&self, job: usize) {
        let id = self.jobs[job].id;
        same(self.real().retry_now(id).await, self.model.retry_now(id).await);
    }

    async fn reopen(&mut self, how: Restart) {
        let store = self.real.take().unwrap();
        if how == Restart::Orderly {
            store.close().await.unwrap();
            drop(store);
        } else {
            crash(store).await;
        }
        if how == Restart::IndexLost {
            fs::remove_dir_all(self.dir.path().join("sled")).unwrap();
        }
        self.leases.sort_by_key(|pair| pair.real.request);
        for Pair { model, begun, .. } in std::mem::take(&mut self.leases) {
            let settlement = self.ended_by_restart(&model, begun).await;
            self.model.settle(model, settlement).await.unwrap();
        }
        self.model.forget_turns();
        // The files alone, and the files with the index beside them, say the same.
        let rebuilt = files_alone(self.dir.path());
        assert_eq!(Content::read(self.dir.path()).unwrap(), Content::read(rebuilt.path()).unwrap());
        self.real = Some(EmbeddedStore::open(self.dir.path()).unwrap());
    }

    async fn ended_by_restart(&mut self, lease: &Lease, begun: bool) -> Settlement {
        let status = self.model.job(lease.request.job).await.unwrap().status;
        if !begun {
            return Settlement::Release;
        }
        if matches!(status, JobStatus::Cancelling) || !self.lost.insert(lease.request) {
            return failure(lease);
        }
        Settlement::Retry { due: Timestamp::default(), attempts: lease.attempt, maybe_paid: true }
    }

    async fn check(&self) {
        assert_eq!(self.real().jobs().await.unwrap(), self.model.jobs().await.unwrap());
        assert_eq!(self.real().queues().await.unwrap(), self.model.queues().await.unwrap());
        for queue in MODELS.map(queue) {
            assert_eq!(self.real().rivals(&queue).await.unwrap(), self.model.rivals(&queue).await.unwrap());
        }
        for job in &self.jobs {
            assert_eq!(journal_indexes(self.real(), job.id), journal_indexes(&self.model, job.id));
        }
    }
}

/// Both did it, or both refused it in the same words.
fn same<T: Debug + PartialEq>(real: crate::store::Result<T>, model: crate::store::Result<T>) {
    assert_eq!(real.map_err(|e| e.to_string()), model.map_err(|e| e.to_string()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn the_embedded_store_does_what_its_model_does(verbs in prop::collection::vec(verb(), 1..80)) {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for verb in verbs {
                world.carry_out(verb).await;
                world.check().await;
            }
        });
    }
}
