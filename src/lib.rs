//! batchd runs large batches of requests against OpenAI and every server that speaks its API: a job spec
//! dropped into a folder is validated, queued durably, run within limits, retried, and its answers lie ordered
//! in a results folder.
//!
//! Each request costs its user money. So three fears decide every question of design: *an answer that was paid
//! for is lost; the same answer is paid for twice; one bad line or one bad hour ruins a whole job.*
//!
//! # Promises
//!
//! - **P1 Whole files.** A dropped file is validated to its last line before its first request is sent, and is
//!   accepted whole, or rejected whole with its problems named as `file:line:column`.
//! - **P2 One line each.** Every accepted `custom_id` ends in exactly one line, in `output.jsonl` or in
//!   `errors.jsonl`, whatever crashes in between.
//! - **P3 Paid answers stay.** Once an answer's line is on disk it is never asked for again. After `kill -9` the
//!   only requests sent a second time are those that were in flight.
//! - **P4 One retry.** Only [`dispatch`] retries. Neither the HTTP client nor [`provider`] does.
//! - **P5 Bounds.** Every channel, buffer, body, retry and loop has a stated bound; memory does not grow with the
//!   length of a job.
//! - **P6 Answer after effect.** A command is answered when its effect is durable.
//! - **P7 Rebuildable.** If the sled database is lost or corrupt, the files under `state/jobs/` are enough to
//!   rebuild it, without paying again.
//! - **P8 One door each** for time and randomness ([`clock`]), environment variables ([`config`]), sled
//!   ([`store::embedded`]), stdout and stderr ([`cli`]), signals and task spawning ([`daemon`]).
//!
//! # Layers
//!
//! A module uses only modules that stand above it; `tests/layers.rs` holds the house to this order.
//!
//! | layer | modules |
//! |---|---|
//! | words, decisions, doors | [`domain`], [`diag`], [`clock`], [`telemetry`], [`metrics`], [`bell`], [`pulse`], [`fault`], [`disk`], [`reading`], [`training`], [`schedule`] |
//! | edges, one outside thing each | [`config`], [`spec`], [`store`], [`provider`], [`control`] |
//! | workers, which meet only in the store or over a handle | [`intake`], [`dispatch`], [`output`], [`upkeep`] |
//! | assembly | [`http`], [`simulate`], [`daemon`] |
//! | shell | [`cli`] |
//!
//! [`provider`] does not know the store and [`store`] does not know HTTP. No worker sees the configuration: each
//! has a small `Settings` of its own, filled where the [`daemon`] is built, and over its handle gets another when the
//! configuration is read again.
//!
//! # The path of one request
//!
//! 1. [`intake`] sees that a dropped file has come to rest, and claims it by renaming it into the job's own folder
//!    below `state/jobs/`.
//! 2. [`spec`] reads it to its end: every line is validated and its place noted in the line index, 16 bytes a
//!    line. The requests of a TOML spec are rendered here, once, as batch lines, so that everything below reads
//!    one format.
//! 3. [`store::Store::put_job`] makes the job count: its state file first, then its ranges in the index, a bit a
//!    request.
//! 4. A dispatcher of [`dispatch`] owns the queue `provider/model` and its limits. It leases requests, from each job
//!    its share, reads the body of the next one by its offset, and waits until one of its lanes and the provider's gate
//!    let it go.
//! 5. The attempt notes its intent, makes one exchange by [`provider::Provider::call`], and hands what it saw, an
//!    [`Outcome`](domain::Outcome), to [`decide`](domain::attempt::decide): a pure function that says what becomes
//!    of the request.
//! 6. [`store::Store::settle`] appends the record to the job's journal, which frees the slot. Once the journal is
//!    synced the record counts, and the index takes it in; a retry waits there, with its due time, and not in a
//!    timer.
//! 7. When every request is settled, [`output`] turns the journal into `output.jsonl` and `errors.jsonl` in input
//!    order, and writes `summary.json` last. The results stay; what the store kept of the job, [`upkeep`] removes in time.
//!
//! The job's files are the truth and sled is an index beside them: it may lag the journal and never leads it. What
//! a start makes of both after a crash stands in [`store::embedded`].
//!
//! # The pace of a queue
//!
//! What the configuration says is never exceeded: `dispatch::limits` holds it for the queue as a whole. What the provider
//! bears is found out, for each of its endpoints by itself: a *lane* (`dispatch::lane`) is the queue at one of them. Its
//! `pace` knows how many requests and tokens a minute are admitted, from headers and refusals, and until when nothing
//! may be sent; its `slots` know how many requests at once are served best. A reply that says *later* says what the
//! server is [short of](domain::Shortage): a rate is the business of the one, room of the other. `dispatch::memory` keeps
//! both over restarts. Before each endpoint a `gate` closes for a refused key, a used-up quota, a model that is gone, or a
//! server that is down (`breaker`), and lets one request try now and then. A `budget` puts the retries of a sick server
//! off. Which job's request is next is [`store`]'s to say, by weights and turns.
//!
//! # The path of a fine-tune
//!
//! A fine-tune is a job of one request that takes hours and several exchanges. [`training`] checks its data before
//! anything is sent, while [`spec`] copies them into the job's folder. The attempts of [`dispatch`] follow
//! [`Progress`](domain::tuning::Progress), which says the next step: upload, wait until the file is processed, create,
//! ask. It is the request's [memo](store::Store::write_memo), durable before anything is created at the provider and
//! again once its id is known; after a crash or a lost reply the provider is asked what is there, so that nothing is
//! made twice. Between two looks the request is [snoozed](domain::Settlement::Snooze) and holds no slot. [`output`]
//! fetches the events and the metrics. A job with `model = "job:<name>"` waits until [`upkeep`] sees that the
//! fine-tune has ended, and is sent with the name of its model.
//!
//! # The path of a scheduled run
//!
//! A spec with `[schedule]` is looked into where it lies, and stays there: [`intake`] keeps its last good text below
//! `state/schedules/`, with the last time that was decided about. When [`schedule`] says that a time has come, that it
//! is to get a run is written down, the kept text becomes the spec of a new job, and from there on it takes the path of
//! any other: read, validated, put into the store, where [`Job::run`](domain::Job::run) says whose run it is and for
//! which time. That is durable with the job itself, so that no start makes it again. A run that must wait for the one
//! before it is accepted as paused; [`upkeep`] lets it go on when that has ended.

pub mod bell;
pub mod clock;
pub mod config;
pub mod control;
pub mod diag;
pub mod disk;
pub mod dispatch;
pub mod domain;
pub mod fault;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod intake;
pub mod metrics;
pub mod output;
pub mod provider;
pub mod pulse;
pub mod reading;
pub mod schedule;
pub mod simulate;
pub mod spec;
pub mod store;
pub mod telemetry;
pub mod training;
pub mod upkeep;

pub mod cli;
pub mod daemon;
pub mod http;
