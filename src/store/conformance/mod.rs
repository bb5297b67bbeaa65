//! One suite for every store: what the verbs of [`Store`] promise, whatever is underneath.

mod removal;
mod sharing;

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use crate::domain::record::JournalLine;
use crate::domain::{
    Job, JobId, JobName, JobSettings, JobStatus, Kind, PauseReason, QueueName, Record, RecordError,
    RequestId, Response, Run, Settlement, Timestamp, TunedModel,
};
use crate::store::{Error, Input, Lease, Store};

pub(crate) const NOW: Timestamp = Timestamp::from_millis(1_000_000);

pub(crate) fn queue(model: &str) -> QueueName {
    QueueName::new("p", Some(model))
}

/// A job whose request `i` goes to `queues[of(i)]`.
pub(crate) fn job(number: u8, priority: u8, models: &[&str], total: u32) -> Job {
    Job {
        id: JobId::from_uuid(Uuid::from_bytes([number; 16])),
        name: format!("job-{number}").parse::<JobName>().unwrap(),
        kind: Kind::Requests,
        ending: None,
        spec_file: format!("job-{number}.jsonl"),
        accepted_at: NOW,
        total,
        queues: models.iter().map(|model| queue(model)).collect(),
        content_hash: String::new(),
        settings: JobSettings { priority, ..JobSettings::default() },
        run: None,
    }
}

pub(crate) async fn put(store: &dyn Store, job: &Job) {
    let queues = u32::try_from(job.queues.len()).unwrap();
    let lines = (0..job.total)
        .map(|index| (u16::try_from(index % queues).unwrap(), Bytes::from(format!("{{\"line\":{index}}}"))))
        .collect();
    store.put_job(job.clone(), Input::Inline(lines)).await.unwrap();
}

pub(crate) async fn lease(store: &dyn Store, model: &str, max: usize, now: Timestamp) -> Vec<Lease> {
    store.lease(&queue(model), max, now).await.unwrap().leases
}

fn indexes(leases: &[Lease]) -> Vec<u32> {
    leases.iter().map(|lease| lease.request.index).collect()
}

pub(crate) fn answer(lease: &Lease) -> Settlement {
    Settlement::Complete(Record {
        request: lease.request,
        custom_id: format!("c{}", lease.request.index),
        response: Some(Response::new(200, String::new(), b"{}")),
        error: None,
    })
}

pub(crate) fn failure(lease: &Lease) -> Settlement {
    Settlement::Discard(Record {
        request: lease.request,
        custom_id: format!("c{}", lease.request.index),
        response: None,
        error: Some(RecordError { code: "timeout".to_owned(), message: String::new() }),
    })
}

fn later(seconds: u64, attempts: u32) -> Settlement {
    Settlement::Retry { due: NOW + Duration::from_secs(seconds), attempts, maybe_paid: false }
}

/// Waits until what was settled counts.
pub(crate) async fn until_settled(store: &dyn Store, id: JobId, settled: u32) {
    let mut progress = store.progress();
    while store.job(id).await.unwrap().counts.settled() < settled {
        progress.changed().await;
    }
}

pub(crate) fn journal_indexes(store: &dyn Store, id: JobId) -> Vec<u32> {
    let mut text = String::new();
    store.journal(id).unwrap().read_to_string(&mut text).unwrap();
    text.lines().map(|line| JournalLine::parse(line.as_bytes()).unwrap().index).collect()
}

/// Runs the whole suite; `make` gives an empty store each time.
pub(crate) async fn exercise(make: impl AsyncFn() -> Arc<dyn Store>) {
    requests_are_leased_once_and_in_input_order(&*make().await).await;
    queues_of_one_job_are_leased_apart(&*make().await).await;
    settled_requests_are_in_the_journal_and_never_leased_again(&*make().await).await;
    retries_wait_until_due_and_count_their_attempts(&*make().await).await;
    snoozed_requests_wait_and_use_up_no_attempt(&*make().await).await;
    released_requests_come_back_as_they_were(&*make().await).await;
    void_leases_settle_nothing(&*make().await).await;
    paused_and_cancelled_jobs_are_not_leased(&*make().await).await;
    final_statuses_stay(&*make().await).await;
    sharing::jobs_share_a_queue_by_their_weights(&*make().await).await;
    sharing::a_job_that_comes_late_gets_its_share_at_once(&*make().await).await;
    sharing::a_deadline_that_nears_lifts_its_job(&*make().await).await;
    sharing::retries_that_are_due_starve_no_other_job(&*make().await).await;
    sharing::rivals_are_the_jobs_that_have_something_to_send(&*make().await).await;
    fine_tunes_go_out_to_be_cancelled(&*make().await).await;
    jobs_wait_for_the_fine_tunes_whose_models_they_use(&*make().await).await;
    runs_wait_for_the_one_before_them(&*make().await).await;
    memos_are_replaced_and_outlive_the_job(&*make().await).await;
    removal::jobs_that_have_ended_can_be_removed(&*make().await).await;
    removal::what_somebody_needs_is_not_removed(&*make().await).await;
    lines_are_read_back(&*make().await).await;
    large_jobs_keep_every_request(&*make().await).await;
    closed_stores_refuse(&*make().await).await;
}

async fn requests_are_leased_once_and_in_input_order(store: &dyn Store) {
    put(store, &job(1, 5, &["m"], 5)).await;
    let first = lease(store, "m", 3, NOW).await;
    assert_eq!(indexes(&first), [0, 1, 2]);
    assert!(first.iter().all(|lease| lease.attempt == 1));
    assert_eq!(indexes(&lease(store, "m", 10, NOW).await), [3, 4]);
    assert!(lease(store, "m", 10, NOW).await.is_empty());
    assert!(lease(store, "other", 10, NOW).await.is_empty());
    assert_eq!(store.jobs().await.unwrap()[0].leased, 5);
}

async fn queues_of_one_job_are_leased_apart(store: &dyn Store) {
    put(store, &job(1, 5, &["a", "b"], 7)).await;
    let depths = store.queues().await.unwrap();
    assert_eq!(
        depths.iter().map(|d| (d.queue.to_string(), d.ready)).collect::<Vec<_>>(),
        [("p/a".to_owned(), 4), ("p/b".to_owned(), 3)]
    );
    assert_eq!(indexes(&lease(store, "b", 2, NOW).await), [1, 3]);
    assert_eq!(indexes(&lease(store, "a", 9, NOW).await), [0, 2, 4, 6]);
    let depths = store.queues().await.unwrap();
    assert_eq!(
        depths.iter().map(|d| (d.queue.to_string(), d.ready)).collect::<Vec<_>>(),
        [("p/b".to_owned(), 1)]
    );
}

async fn settled_requests_are_in_the_journal_and_never_leased_again(store: &dyn Store) {
    let job = job(1, 5, &["m"], 3);
    put(store, &job).await;
    let mut leases = lease(store, "m", 3, NOW).await;
    let (third, second, first) = (leases.pop().unwrap(), leases.pop().unwrap(), leases.pop().unwrap());
    for (lease, settlement) in [(answer(&third), third), (failure(&first), first), (answer(&second), second)]
        .map(|(settlement, lease)| (lease, settlement))
    {
        store.settle(lease, settlement).await.unwrap();
    }
    until_settled(store, job.id, 3).await;
    assert_eq!(journal_indexes(store, job.id), [2, 0, 1]);
    let state = store.job(job.id).await.unwrap();
    assert_eq!((state.counts.completed, state.counts.failed, state.leased), (2, 1, 0));
    assert!(lease(store, "m", 3, NOW).await.is_empty());
    assert!(store.queues().await.unwrap().is_empty());
}

async fn retries_wait_until_due_and_count_their_attempts(store: &dyn Store) {
    let job = job(1, 5, &["m"], 4);
    put(store, &job).await;
    let mut leases = lease(store, "m", 2, NOW).await;
    store.settle(leases.pop().unwrap(), later(5, 1)).await.unwrap();
    store.settle(leases.pop().unwrap(), later(60, 3)).await.unwrap();
    assert_eq!(store.job(job.id).await.unwrap().waiting, 2);

    let soon = NOW + Duration::from_secs(5);
    let leased = store.lease(&queue("m"), 2, soon).await.unwrap();
    assert_eq!(indexes(&leased.leases), [1, 2], "what is due goes before what is fresh");
    assert_eq!(leased.leases[0].attempt, 2);
    let leased = store.lease(&queue("m"), 2, soon).await.unwrap();
    assert_eq!(indexes(&leased.leases), [3]);
    assert_eq!(leased.next_due, Some(NOW + Duration::from_mins(1)));

    store.retry_now(job.id).await.unwrap();
    let leased = lease(store, "m", 2, soon).await;
    assert_eq!((indexes(&leased), leased[0].attempt), (vec![0], 4));
}

async fn released_requests_come_back_as_they_were(store: &dyn Store) {
    put(store, &job(1, 5, &["m"], 3)).await;
    let mut leases = lease(store, "m", 2, NOW).await;
    let (second, first) = (leases.pop().unwrap(), leases.pop().unwrap());
    store.settle(first, later(0, 2)).await.unwrap();
    store.settle(second, Settlement::Release).await.unwrap();
    let leased = lease(store, "m", 1, NOW).await;
    assert_eq!((leased[0].request.index, leased[0].attempt), (0, 3));
    for lease in leased {
        store.settle(lease, Settlement::Release).await.unwrap();
    }
    let leased = lease(store, "m", 9, NOW).await;
    assert_eq!(indexes(&leased), [0, 1, 2]);
    assert_eq!(leased.iter().map(|lease| lease.attempt).collect::<Vec<_>>(), [3, 1, 1]);
}

async fn void_leases_settle_nothing(store: &dyn Store) {
    let job = job(1, 5, &["m"], 1);
    put(store, &job).await;
    let real = lease(store, "m", 1, NOW).await.pop().unwrap();
    let forged = Lease { request: real.request, attempt: 1, epoch: real.epoch + 1 };
    let settlement = answer(&forged);
    assert!(matches!(store.settle(forged, settlement).await, Err(Error::Stale(_))));
    let unknown = Lease { request: RequestId { job: job.id, index: 9 }, attempt: 1, epoch: 1 };
    let settlement = answer(&unknown);
    assert!(matches!(store.settle(unknown, settlement).await, Err(Error::Stale(_))));
    let copy = Lease { request: real.request, attempt: real.attempt, epoch: real.epoch };
    let settlement = answer(&real);
    store.settle(real, settlement).await.unwrap();
    let settlement = answer(&copy);
    assert!(matches!(store.settle(copy, settlement).await, Err(Error::Stale(_))));
    until_settled(store, job.id, 1).await;
    assert_eq!(journal_indexes(store, job.id), [0]);
}

async fn paused_and_cancelled_jobs_are_not_leased(store: &dyn Store) {
    let job = job(1, 5, &["m"], 4);
    put(store, &job).await;
    let leases = lease(store, "m", 1, NOW).await;
    let paused = JobStatus::Paused { reason: PauseReason::User };
    store.set_status(job.id, paused, NOW).await.unwrap();
    assert!(lease(store, "m", 1, NOW).await.is_empty());
    assert!(store.queues().await.unwrap().is_empty());
    store.set_status(job.id, JobStatus::InProgress, NOW).await.unwrap();
    assert_eq!(indexes(&lease(store, "m", 1, NOW).await), [1]);
    store.set_status(job.id, JobStatus::Cancelling, NOW).await.unwrap();
    assert!(lease(store, "m", 1, NOW).await.is_empty());
    // What was in flight may finish, and is kept.
    for lease in leases {
        let settlement = answer(&lease);
        store.settle(lease, settlement).await.unwrap();
    }
    until_settled(store, job.id, 1).await;
    let state = store.set_status(job.id, JobStatus::Cancelled, NOW).await.unwrap();
    assert_eq!((state.counts.completed, state.counts.failed), (1, 3));
    assert_eq!(state.finished_at, Some(NOW));
}

async fn final_statuses_stay(store: &dyn Store) {
    let job = job(1, 5, &["m"], 1);
    put(store, &job).await;
    store.set_status(job.id, JobStatus::Cancelling, NOW).await.unwrap();
    let back = store.set_status(job.id, JobStatus::InProgress, NOW).await;
    assert!(matches!(back, Err(Error::Transition { .. })));
    store.set_status(job.id, JobStatus::Cancelled, NOW).await.unwrap();
    let again = store.set_status(job.id, JobStatus::Completed, NOW).await;
    assert!(matches!(again, Err(Error::Transition { .. })));
    let nobody = JobId::from_bytes([9; 16]);
    assert!(matches!(store.job(nobody).await, Err(Error::NoSuchJob(_))));
    assert!(matches!(store.set_status(nobody, JobStatus::Completed, NOW).await, Err(Error::NoSuchJob(_))));
}

async fn snoozed_requests_wait_and_use_up_no_attempt(store: &dyn Store) {
    let job = job(1, 5, &["m"], 1);
    put(store, &job).await;
    for _ in 0..3 {
        let snoozed = lease(store, "m", 1, NOW + Duration::from_hours(1)).await.pop().unwrap();
        assert_eq!(snoozed.attempt, 1);
        let due = NOW + Duration::from_mins(1);
        store.settle(snoozed, Settlement::Snooze { due, attempts: 0 }).await.unwrap();
        let early = store.lease(&queue("m"), 1, NOW).await.unwrap();
        assert_eq!((early.leases.len(), early.next_due), (0, Some(due)));
    }
    let state = store.job(job.id).await.unwrap();
    assert_eq!((state.waiting, state.counts.maybe_paid_twice), (1, 0));
}

async fn fine_tunes_go_out_to_be_cancelled(store: &dyn Store) {
    let job = Job { kind: Kind::FineTune, ..job(1, 5, &["m"], 1) };
    put(store, &job).await;
    store.set_status(job.id, JobStatus::Cancelling, NOW).await.unwrap();
    assert_eq!(store.queues().await.unwrap().len(), 1);
    assert_eq!(lease(store, "m", 1, NOW).await.len(), 1);
}

async fn jobs_wait_for_the_fine_tunes_whose_models_they_use(store: &dyn Store) {
    let mut waiting = job(1, 5, &["m"], 1);
    let maker = JobId::from_bytes([9; 16]);
    waiting.settings.models.insert("support".to_owned(), TunedModel::Of(maker));
    put(store, &waiting).await;
    let status = store.job(waiting.id).await.unwrap().status;
    assert_eq!(status, JobStatus::Paused { reason: PauseReason::FineTune });
    assert!(lease(store, "m", 1, NOW).await.is_empty());
    store.set_status(waiting.id, JobStatus::InProgress, NOW).await.unwrap();
    assert_eq!(lease(store, "m", 1, NOW).await.len(), 1);

    let mut ready = job(2, 5, &["m"], 1);
    ready.settings.models.insert("support".to_owned(), TunedModel::Named("ft:m".to_owned()));
    put(store, &ready).await;
    assert_eq!(store.job(ready.id).await.unwrap().status, JobStatus::InProgress);
}

async fn runs_wait_for_the_one_before_them(store: &dyn Store) {
    let before = job(1, 5, &["m"], 1);
    let run = Run { spec: "nightly.toml".to_owned(), due: Some(NOW), after: Some(before.id) };
    let waiting = Job { run: Some(run), ..job(2, 5, &["m"], 1) };
    put(store, &waiting).await;
    let state = store.job(waiting.id).await.unwrap();
    assert_eq!(
        (state.status, state.job.run),
        (JobStatus::Paused { reason: PauseReason::Overlap }, waiting.run)
    );
    assert!(lease(store, "m", 1, NOW).await.is_empty());
    store.set_status(waiting.id, JobStatus::InProgress, NOW).await.unwrap();
    assert_eq!(lease(store, "m", 1, NOW).await.len(), 1);
}

async fn memos_are_replaced_and_outlive_the_job(store: &dyn Store) {
    let job = job(1, 5, &["m"], 2);
    put(store, &job).await;
    let request = |index| RequestId { job: job.id, index };
    assert_eq!(store.memo(request(0)).await.unwrap(), None);
    for memo in ["longer than the next", "short"] {
        store.write_memo(request(0), Bytes::from_static(memo.as_bytes())).await.unwrap();
        assert_eq!(store.memo(request(0)).await.unwrap().unwrap(), memo);
    }
    assert_eq!(store.memo(request(1)).await.unwrap(), None);
    store.set_status(job.id, JobStatus::Cancelled, NOW).await.unwrap();
    assert_eq!(store.memo(request(0)).await.unwrap().unwrap(), "short");
    let none = RequestId { job: JobId::from_bytes([7; 16]), index: 0 };
    assert!(matches!(store.memo(none).await, Err(Error::NoSuchJob(_))));
    assert!(matches!(store.write_memo(none, Bytes::new()).await, Err(Error::NoSuchJob(_))));
}

async fn lines_are_read_back(store: &dyn Store) {
    let job = job(1, 5, &["a", "b"], 20);
    put(store, &job).await;
    for index in [0, 7, 19] {
        let request = RequestId { job: job.id, index };
        let line = store.line(request).await.unwrap();
        assert_eq!(line.bytes, format!("{{\"line\":{index}}}"));
        assert_eq!(line.number, index + 1);
        assert_eq!(u32::from(store.entry(request).unwrap().queue), index % 2);
    }
    assert!(store.line(RequestId { job: job.id, index: 20 }).await.is_err());
}

async fn large_jobs_keep_every_request(store: &dyn Store) {
    let job = job(1, 5, &["a", "b", "c"], 5_000);
    put(store, &job).await;
    let mut seen = Vec::new();
    for model in ["a", "b", "c"] {
        loop {
            let leases = lease(store, model, 300, NOW).await;
            if leases.is_empty() {
                break;
            }
            seen.extend(indexes(&leases));
            for lease in leases {
                let settlement = answer(&lease);
                store.settle(lease, settlement).await.unwrap();
            }
        }
    }
    seen.sort_unstable();
    assert!(seen.iter().copied().eq(0..5_000));
    until_settled(store, job.id, 5_000).await;
    assert_eq!(journal_indexes(store, job.id).len(), 5_000);
}

async fn closed_stores_refuse(store: &dyn Store) {
    put(store, &job(1, 5, &["m"], 1)).await;
    store.close().await.unwrap();
    assert!(matches!(store.jobs().await, Err(Error::Closed(_))));
    assert!(matches!(store.lease(&queue("m"), 1, NOW).await, Err(Error::Closed(_))));
}
