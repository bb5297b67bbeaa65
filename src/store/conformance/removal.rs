//! The part of the suite about jobs that are removed.

use super::{NOW, answer, job, lease, put, until_settled};
use crate::domain::{JobId, JobStatus, RequestId, TunedModel};
use crate::store::{Error, Store};

pub(super) async fn jobs_that_have_ended_can_be_removed(store: &dyn Store) {
    let [gone, other] = [1, 2].map(|number| job(number, 5, &["m"], 3));
    for job in [&gone, &other] {
        put(store, job).await;
    }
    let lease = lease(store, "m", 1, NOW).await.pop().unwrap();
    let settlement = answer(&lease);
    store.settle(lease, settlement).await.unwrap();
    until_settled(store, gone.id, 1).await;
    let refused = store.remove(gone.id).await;
    assert!(matches!(refused, Err(Error::Transition { to: "removed", .. })), "{refused:?}");
    for status in [JobStatus::Cancelling, JobStatus::Cancelled] {
        store.set_status(gone.id, status, NOW).await.unwrap();
    }
    let open = store.open_jobs().await.unwrap();
    assert_eq!((open.len(), open[0].job.id, store.jobs().await.unwrap().len()), (1, other.id, 2));
    assert!(store.remove(gone.id).await.unwrap());
    let jobs: Vec<JobId> = store.jobs().await.unwrap().iter().map(|state| state.job.id).collect();
    assert_eq!(jobs, [other.id]);
    assert!(matches!(store.job(gone.id).await, Err(Error::NoSuchJob(_))));
    assert!(matches!(store.remove(gone.id).await, Err(Error::NoSuchJob(_))));
    assert!(matches!(store.journal(gone.id), Err(Error::NoSuchJob(_))));
    let request = RequestId { job: gone.id, index: 0 };
    assert!(matches!(store.line(request).await, Err(Error::NoSuchJob(_))));
    assert!(matches!(store.memo(request).await, Err(Error::NoSuchJob(_))));
    assert_eq!(store.job(other.id).await.unwrap().counts.total, 3);
    // The name is free for another.
    put(store, &gone).await;
    assert_eq!(store.job(gone.id).await.unwrap().status, JobStatus::InProgress);
}

pub(super) async fn what_somebody_needs_is_not_removed(store: &dyn Store) {
    let maker = job(1, 5, &["m"], 1);
    let mut user = job(2, 5, &["m"], 1);
    user.settings.models.insert("support".to_owned(), TunedModel::Of(maker.id));
    for job in [&maker, &user] {
        put(store, job).await;
    }
    store.set_status(maker.id, JobStatus::Completed, NOW).await.unwrap();
    for status in [JobStatus::InProgress, JobStatus::Cancelling] {
        assert!(!store.remove(maker.id).await.unwrap(), "a job waits for it");
        store.set_status(user.id, status, NOW).await.unwrap();
    }
    store.set_status(user.id, JobStatus::Cancelled, NOW).await.unwrap();
    let (one, two) = (store.hold(), store.hold());
    assert!(!store.remove(maker.id).await.unwrap());
    drop(one);
    assert!(!store.remove(maker.id).await.unwrap(), "one holds it still");
    drop(two);
    assert!(store.remove(maker.id).await.unwrap());
}
