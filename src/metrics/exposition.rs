//! The text that Prometheus reads.
//!
//! # Format
//!
//! [`Format::OpenMetrics`] is what prometheus-client writes, and what a Prometheus asks for. [`Format::Text`] is the
//! older form, for everything else: the same samples, but a counter's family is called as its samples are, and there
//! are no units and no end mark.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::domain::{PauseReason, QueueName, Timestamp};
use crate::metrics::queue::Queue;
use crate::metrics::{Metrics, OTHER, Process};

/// How the text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    OpenMetrics,
    Text,
}

impl Format {
    /// The one that a client asks for in its `Accept`; without a word about it, the older.
    pub fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Text }
    }

    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// What is looked at when somebody asks, rather than counted.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// How many jobs have each status; the words are those of `batchd list`.
    pub jobs: BTreeMap<String, u64>,
    pub waiting: Waiting,
    /// Requests ready in each queue: neither settled nor handed to its dispatcher.
    pub depths: Vec<(QueueName, u64)>,
    /// Of the queues that have something to do, or had a while ago.
    pub limits: Vec<(QueueName, InForce)>,
    /// Queues that their provider has stopped.
    pub paused: Vec<(QueueName, PauseReason)>,
    /// Over all jobs there are.
    pub maybe_paid_twice: u64,
    pub disk: Option<Disk>,
    pub process: Option<Process>,
}

/// Requests that are neither settled nor in flight, by what they wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Their turn: slots, requests/min, tokens/min, the time that the provider named.
    pub limit: u64,
    /// The time of their next attempt.
    pub retry: u64,
    /// A person, the provider, the disk, or a fine-tune.
    pub paused: u64,
}

/// The limits that hold for a queue now, configured or learnt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InForce {
    /// Requests in flight: as many as were found where it is `auto`, fewer while the server lacks room.
    pub concurrency: usize,
    /// None = unlimited.
    pub requests_per_minute: Option<u64>,
    /// None = unlimited.
    pub tokens_per_minute: Option<u64>,
    /// For how long nothing is sent, since the provider asked to come later.
    pub hold: Duration,
    /// Endpoints that get nothing but a try now and then.
    pub endpoints_out: usize,
}

/// The file system that the state is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Bytes; none where the file system does not say.
    pub free: Option<u64>,
    /// Whether there is room enough to send.
    pub has_room: bool,
}

/// Everything, as text.
pub fn encode(metrics: &Metrics, snapshot: Snapshot, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape { metrics: metrics.clone(), snapshot }));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string takes every text");
    match format {
        Format::OpenMetrics => text,
        Format::Text => to_older(&text),
    }
}

/// From the newer form to the older.
fn to_older(text: &str) -> String {
    let mut older = String::with_capacity(text.len());
    let mut put = |words: &[&str]| {
        older.extend(words.iter().copied());
        older.push('\n');
    };
    let mut help = "";
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(_), words) => help = words.unwrap_or_default(),
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", kind),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    kind => ("", kind),
                };
                put(&["# HELP ", name, suffix, " ", help]);
                put(&["# TYPE ", name, suffix, " ", kind]);
            }
            (Some("#"), ..) => {} // units and the end
            _ => put(&[line]),
        }
    }
    older
}

/// One answer to somebody who asks.
#[derive(Debug)]
struct Scrape {
    metrics: Metrics,
    snapshot: Snapshot,
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // What is only looked at is put to its label, too, and before the labels are listed.
        let label = |queue: &QueueName| self.metrics.queue(queue).label().to_owned();
        let depths = self.snapshot.depths.iter().map(|(queue, depth)| (label(queue), *depth)).collect();
        let paused = self.snapshot.paused.iter().map(|(queue, why)| (label(queue), *why)).collect();
        // Queues that share a label have no limit in common.
        let limits: Vec<(String, InForce)> =
            self.snapshot.limits.iter().map(|(queue, limits)| (label(queue), *limits)).collect();
        let limits: BTreeMap<String, InForce> =
            limits.into_iter().filter(|(label, _)| label != OTHER).collect();
        let queues: Vec<(String, Arc<Queue>)> =
            self.metrics.queues().iter().map(|(label, queue)| (label.clone(), Arc::clone(queue))).collect();
        let mut page = Page(encoder);
        self.requests(&mut page)?;
        page.queues(&queues)?;
        page.limits(&limits)?;
        page.looked_at(depths, &paused)?;
        self.jobs(&mut page)?;
        self.store(&mut page)?;
        self.daemon(&mut page)?;
        self.snapshot.process.map_or(Ok(()), |process| page.process(process, self.metrics.0.started_at))
    }
}

impl Scrape {
    fn requests(&self, page: &mut Page<'_>) -> fmt::Result {
        let settled = self.metrics.0.settled.each();
        let settled = settled.map(|(how, count)| ([("outcome", how.as_str())], ConstCounter::new(count)));
        page.put(
            "batchd_requests_settled",
            "Requests that got their one line in the results",
            None,
            settled,
        )?;
        let Waiting { limit, retry, paused } = self.snapshot.waiting;
        let waiting = [("limit", limit), ("retry", retry), ("paused", paused)];
        let waiting = waiting.map(|(reason, count)| ([("reason", reason)], ConstGauge::new(count)));
        page.put(
            "batchd_requests_waiting",
            "Requests neither settled nor in flight, by what they wait for",
            None,
            waiting,
        )?;
        page.one(
            "batchd_requests_maybe_paid_twice",
            "Attempts that may have been paid for and were followed by another, over the jobs there are",
            None,
            &ConstGauge::new(self.snapshot.maybe_paid_twice),
        )
    }

    fn jobs(&self, page: &mut Page<'_>) -> fmt::Result {
        let jobs = self.snapshot.jobs.iter();
        let jobs = jobs.map(|(status, count)| ([("status", status.as_str())], ConstGauge::new(*count)));
        page.put("batchd_jobs", "Jobs there are, by status", None, jobs)?;
        let ended = self.metrics.0.jobs_ended.each();
        let ended = ended.map(|(status, count)| ([("status", status)], ConstCounter::new(count)));
        page.put("batchd_jobs_ended", "Jobs that came to an end", None, ended)
    }

    fn store(&self, page: &mut Page<'_>) -> fmt::Result {
        page.one(
            "batchd_journal_commit_duration",
            "What it took to make a group of journaled answers durable",
            Some(&Unit::Seconds),
            &self.metrics.0.commits,
        )?;
        let Some(Disk { free, has_room }) = self.snapshot.disk else { return Ok(()) };
        if let Some(free) = free {
            let help = "What is free of the file system that the state is on";
            page.one("batchd_disk_free", help, Some(&Unit::Bytes), &ConstGauge::new(free))?;
        }
        let help = "Whether the disk has room enough to send (1), or sending has stopped for want of it (0)";
        page.one("batchd_disk_has_room", help, None, &ConstGauge::new(u64::from(has_room)))
    }

    fn daemon(&self, page: &mut Page<'_>) -> fmt::Result {
        let errors: Vec<_> = self.metrics.errors().at.iter().map(|(reason, at)| (*reason, *at)).collect();
        let errors = errors.into_iter().map(|(reason, at)| ([("reason", reason)], seconds(at)));
        page.put(
            "batchd_last_error_timestamp",
            "When an attempt last failed or was blocked, by reason",
            Some(&Unit::Seconds),
            errors,
        )?;
        let reload = self.metrics.last_reload();
        page.one(
            "batchd_config_last_reload_successful",
            "Whether the configuration was good when it was read last",
            None,
            &ConstGauge::new(u64::from(reload.is_good)),
        )?;
        page.one(
            "batchd_config_last_reload_success_timestamp",
            "When the configuration in force was read",
            Some(&Unit::Seconds),
            &seconds(reload.taken_at),
        )?;
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        page.one("batchd_build", "The program", None, &version)
    }
}

/// A point in time as Prometheus has it.
#[expect(clippy::cast_precision_loss, reason = "milliseconds of our time are far below 2^52")]
fn seconds(at: Timestamp) -> ConstGauge<f64> {
    ConstGauge::new(at.as_millis() as f64 / 1000.0)
}

/// The text so far.
struct Page<'e>(DescriptorEncoder<'e>);

impl Page<'_> {
    /// A family of samples; nothing where there is none.
    fn put<L: EncodeLabelSet, M: EncodeMetric + TypedMetric>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = (L, M)>,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, unit, M::TYPE)?;
        samples.try_for_each(|(labels, sample)| sample.encode(family.encode_family(&labels)?))
    }

    /// A family of one sample, without labels of ours.
    fn one(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        sample: &impl EncodeMetric,
    ) -> fmt::Result {
        sample.encode(self.0.encode_descriptor(name, help, unit, sample.metric_type())?)
    }

    /// What each queue has counted.
    fn queues(&mut self, queues: &[(String, Arc<Queue>)]) -> fmt::Result {
        let load = |cell: &std::sync::atomic::AtomicU64| cell.load(Ordering::Relaxed);
        let in_flight =
            queues.iter().map(|(label, q)| ([("queue", &**label)], ConstGauge::new(load(&q.in_flight))));
        self.put("batchd_requests_in_flight", "Requests sent and not answered yet", None, in_flight)?;
        let attempts = queues.iter().flat_map(|(label, queue)| {
            queue.attempts.each().map(|(how, count)| {
                ([("queue", &**label), ("outcome", how.as_str())], ConstCounter::new(count))
            })
        });
        self.put(
            "batchd_attempts",
            "Attempts by what came of them; of a fine-tune, every question to the provider",
            None,
            attempts,
        )?;
        let answers = queues.iter().map(|(label, queue)| ([("queue", &**label)], queue.answers.clone()));
        let help = "What answers took, from the request's first byte to the reply's last";
        self.put("batchd_answer_duration", help, Some(&Unit::Seconds), answers)?;
        let tokens = queues.iter().flat_map(|(label, queue)| {
            let kinds = [("input", &queue.input_tokens), ("output", &queue.output_tokens)];
            kinds.map(|(kind, cell)| ([("queue", &**label), ("kind", kind)], ConstCounter::new(load(cell))))
        });
        self.put("batchd_tokens", "Tokens of answers, as the provider counts them", None, tokens)
    }

    /// The limits in force; a limit that there is not has no sample.
    fn limits(&mut self, in_force: &BTreeMap<String, InForce>) -> fmt::Result {
        let limits = |of: fn(&InForce) -> Option<u64>| {
            let limited = in_force.iter().filter_map(move |(label, limits)| Some((label, of(limits)?)));
            limited.map(|(label, limit)| ([("queue", &**label)], ConstGauge::new(limit))).collect::<Vec<_>>()
        };
        let help = "How many requests may be in flight now, configured or found out";
        self.put("batchd_limit_concurrency", help, None, limits(|l| Some(l.concurrency as u64)))?;
        let help = "How many requests may be sent in a minute, configured or learnt";
        self.put("batchd_limit_requests_per_minute", help, None, limits(|l| l.requests_per_minute))?;
        let help = "How many tokens may be used in a minute, configured or learnt";
        self.put("batchd_limit_tokens_per_minute", help, None, limits(|l| l.tokens_per_minute))?;
        let holds = in_force
            .iter()
            .map(|(label, of)| ([("queue", &**label)], ConstGauge::new(of.hold.as_secs_f64())));
        let help = "For how long nothing is sent yet, since the provider asked to come later";
        self.put("batchd_queue_hold", help, Some(&Unit::Seconds), holds)?;
        let help = "Endpoints of the queue's provider that get nothing but a try now and then";
        self.put("batchd_queue_endpoints_out", help, None, limits(|l| Some(l.endpoints_out as u64)))
    }

    /// What store and board say of queues, by label.
    fn looked_at(
        &mut self,
        depths: Vec<(String, u64)>,
        paused: &BTreeSet<(String, PauseReason)>,
    ) -> fmt::Result {
        let mut depth_of: BTreeMap<String, u64> = BTreeMap::new();
        for (label, depth) in depths {
            *depth_of.entry(label).or_default() += depth;
        }
        let depths = depth_of.iter().map(|(label, depth)| ([("queue", &**label)], ConstGauge::new(*depth)));
        self.put("batchd_queue_depth", "Requests that a queue has ready, retries included", None, depths)?;
        let paused = paused.iter().map(|(label, reason)| {
            ([("queue", &**label), ("reason", reason.as_str())], ConstGauge::new(1_u64))
        });
        self.put("batchd_queue_paused", "Queues for which nothing is sent, and why", None, paused)
    }

    fn process(&mut self, process: Process, started_at: Timestamp) -> fmt::Result {
        let Process { cpu, threads, virtual_bytes, resident_bytes, open_fds, max_fds } = process;
        let (bytes, in_seconds) = (Some(&Unit::Bytes), Some(&Unit::Seconds));
        let cpu = ConstCounter::new(cpu.as_secs_f64());
        self.one("process_cpu", "CPU time, user and system", in_seconds, &cpu)?;
        let resident = ConstGauge::new(resident_bytes);
        self.one("process_resident_memory", "Memory in use", bytes, &resident)?;
        let virtual_memory = ConstGauge::new(virtual_bytes);
        self.one("process_virtual_memory", "Memory that is mapped", bytes, &virtual_memory)?;
        self.one("process_threads", "Threads", None, &ConstGauge::new(threads))?;
        self.one("process_open_fds", "Open file descriptors", None, &ConstGauge::new(open_fds))?;
        if let Some(max_fds) = max_fds {
            let help = "How many file descriptors may be open";
            self.one("process_max_fds", help, None, &ConstGauge::new(max_fds))?;
        }
        self.one("process_start_time", "When the process began", in_seconds, &seconds(started_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Failure, Outcome};
    use crate::metrics::{AttemptEnd, QUEUES_MAX, Settled};

    fn whole() -> (Metrics, Snapshot) {
        let metrics = Metrics::new(Timestamp::from_millis(1_500));
        let queue = QueueName::new("p", Some("m\"\\\n"));
        let meter = metrics.queue(&queue);
        meter.ended(AttemptEnd::Answered);
        meter.answered_in(Duration::from_millis(200));
        meter.used(7, 3);
        meter.settled(Settled::Completed);
        let limits = [
            InForce {
                concurrency: 4,
                requests_per_minute: Some(60),
                hold: Duration::from_millis(1500),
                ..InForce::default()
            },
            InForce { concurrency: 1, tokens_per_minute: Some(9), endpoints_out: 1, ..InForce::default() },
        ];
        let limits = [queue.clone(), QueueName::new("p", None)].into_iter().zip(limits);
        let failure = Failure {
            code: "timeout",
            message: String::new(),
            retry_after: None,
            maybe_paid: true,
            response: None,
        };
        meter.saw(&Outcome::Failed(failure), Timestamp::from_millis(2_000));
        metrics.settled(Settled::Cancelled, 2);
        let snapshot = Snapshot {
            jobs: BTreeMap::from([("paused".to_owned(), 1)]),
            waiting: Waiting { limit: 1, retry: 2, paused: 3 },
            depths: vec![(queue.clone(), 4)],
            limits: limits.collect(),
            paused: vec![(queue, PauseReason::Quota)],
            maybe_paid_twice: 5,
            disk: Some(Disk { free: Some(1 << 30), has_room: true }),
            process: Some(Process {
                cpu: Duration::from_millis(1250),
                max_fds: Some(1024),
                ..Process::default()
            }),
        };
        (metrics, snapshot)
    }

    #[test]
    fn both_formats_hold_the_same_samples() {
        let (metrics, snapshot) = whole();
        let open = encode(&metrics, snapshot.clone(), Format::OpenMetrics);
        let older = encode(&metrics, snapshot, Format::Text);
        let samples = |text: &str| -> Vec<String> {
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
        };
        assert_eq!(samples(&open), samples(&older));
        for line in [
            "batchd_requests_settled_total{outcome=\"completed\"} 1",
            "batchd_requests_settled_total{outcome=\"cancelled\"} 2",
            "batchd_requests_waiting{reason=\"paused\"} 3",
            "batchd_attempts_total{queue=\"p/m\\\"\\\\\\n\",outcome=\"answered\"} 1",
            "batchd_answer_duration_seconds_bucket{le=\"0.25\",queue=\"p/m\\\"\\\\\\n\"} 1",
            "batchd_tokens_total{queue=\"p/m\\\"\\\\\\n\",kind=\"output\"} 3",
            "batchd_queue_paused{queue=\"p/m\\\"\\\\\\n\",reason=\"quota\"} 1",
            "batchd_queue_depth{queue=\"p/m\\\"\\\\\\n\"} 4",
            "batchd_limit_requests_per_minute{queue=\"p/m\\\"\\\\\\n\"} 60",
            "batchd_queue_hold_seconds{queue=\"p/m\\\"\\\\\\n\"} 1.5",
            "batchd_queue_endpoints_out{queue=\"p/-\"} 1",
            "batchd_disk_free_bytes 1073741824",
            "batchd_last_error_timestamp_seconds{reason=\"timeout\"} 2.0",
            "process_cpu_seconds_total 1.25",
            "process_start_time_seconds 1.5",
        ] {
            assert!(open.lines().any(|found| found == line), "{line} is not in\n{open}");
        }
        let unlimited = "batchd_limit_tokens_per_minute{queue=\"p/m";
        assert!(!open.contains(unlimited), "what is not limited has no sample");
        assert!(open.ends_with("# EOF\n") && !older.contains("EOF") && !older.contains("# UNIT"));
        assert!(older.contains("# TYPE batchd_attempts_total counter\n"));
        assert!(older.contains("# TYPE batchd_build_info gauge\n"));
        assert!(older.contains("# HELP process_start_time_seconds When the process began\n"));
    }

    /// Words that begin as our metrics do.
    fn names_in(text: &str) -> BTreeSet<&str> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let is_of = |word: &str, prefix| word.strip_prefix(prefix).is_some_and(|rest: &str| !rest.is_empty());
        // The name of the Debian package's file begins so, too, and has nothing behind it.
        words.filter(|word| is_of(word, "batchd_") || is_of(word, "process_")).collect()
    }

    /// Names of samples, of histograms that of the family, too.
    fn names_of_samples(text: &str) -> BTreeSet<String> {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let names: BTreeSet<&str> = samples.filter_map(|line| line.split(['{', ' ']).next()).collect();
        let families = names.iter().filter_map(|name| name.strip_suffix("_bucket"));
        families.chain(names.iter().copied()).map(str::to_owned).collect()
    }

    #[test]
    fn the_dashboard_shows_only_what_there_is() {
        let dashboard = include_str!("../../config/grafana-dashboard.json");
        let parsed: serde_json::Value = serde_json::from_str(dashboard).unwrap();
        assert!(parsed["panels"].as_array().unwrap().len() > 10);
        assert_eq!(parsed["templating"]["list"][0]["type"], "datasource");
        let (metrics, snapshot) = whole();
        let samples = names_of_samples(&encode(&metrics, snapshot, Format::Text));
        for name in names_in(dashboard) {
            assert!(samples.contains(name), "`{name}` is on the dashboard alone");
        }
    }

    #[test]
    fn the_readme_names_every_metric_and_no_other() {
        let readme = include_str!("../../README.md");
        let (metrics, snapshot) = whole();
        let samples = names_of_samples(&encode(&metrics, snapshot, Format::Text));
        let named = names_in(readme);
        let parts = ["_bucket", "_sum", "_count"];
        for name in samples.iter().filter(|name| !parts.iter().any(|part| name.ends_with(part))) {
            assert!(named.contains(name.as_str()), "`{name}` is not in the README");
        }
        for name in named {
            assert!(samples.contains(name), "`{name}` is in the README alone");
        }
    }

    #[test]
    fn who_asks_for_nothing_else_gets_the_older_form() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
        for accept in ["", "*/*", "text/plain"] {
            assert_eq!(Format::accepted(accept), Format::Text);
        }
    }

    #[test]
    fn the_answer_stays_within_its_bound() {
        let metrics = Metrics::default();
        let queues = || (0..10_000).map(|number| QueueName::new("p", Some(&format!("model-{number}"))));
        let limits =
            InForce { requests_per_minute: Some(1), tokens_per_minute: Some(1), ..InForce::default() };
        let snapshot = Snapshot {
            depths: queues().map(|queue| (queue, 1)).collect(),
            limits: queues().map(|queue| (queue, limits)).collect(),
            paused: queues().map(|queue| (queue, PauseReason::Auth)).collect(),
            ..Snapshot::default()
        };
        let text = encode(&metrics, snapshot, Format::Text);
        assert!(text.lines().count() < QUEUES_MAX * 40 && text.len() < 400 << 10, "{}", text.len());
        assert!(text.contains("batchd_queue_depth{queue=\"other\"} 9900\n"));
        assert_eq!(text.matches("batchd_queue_paused{queue=\"other\"").count(), 1);
        assert_eq!(text.matches("batchd_limit_concurrency{").count(), QUEUES_MAX);
    }
}
