//! Lines, kept, reason: what was recorded, against what was really answered.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Court, used};
use crate::daemon::storm::plan;
use crate::daemon::storm::wire::{Exchange, Said};
use crate::domain::record::JournalLine;
use crate::domain::{JobState, JobStatus, OnUncertain, RequestId};

/// A record, as far as the laws look at it.
struct Record {
    status: Option<u64>,
    code: Option<String>,
    answer: Option<String>,
}

impl Court<'_> {
    /// Lines, kept, reason.
    pub(super) fn lines(
        &mut self,
        state: &JobState,
        journal: &[u8],
        sent: &BTreeMap<RequestId, Vec<&Exchange>>,
    ) {
        let job = state.job.id;
        let mut seen = BTreeSet::new();
        for line in journal.split_inclusive(|byte| *byte == b'\n') {
            let parsed = JournalLine::parse(line.strip_suffix(b"\n").unwrap()).unwrap();
            let request = RequestId { job, index: parsed.index };
            let name = plan::custom_id(request);
            if !seen.insert(parsed.index) {
                self.broken("lines", format_args!("{name} has two records"));
            }
            let record = Record::read(&parsed.published());
            let exchanges = sent.get(&request).map(Vec::as_slice).unwrap_or_default();
            let answered = exchanges.iter().any(|exchange| exchange.said() == Said::Answer);
            let is_answer = record.status == Some(200);
            if answered != is_answer {
                self.broken("kept", format_args!("{name}: answered {answered}, recorded {is_answer}"));
            }
            if is_answer && !record.answer.as_deref().is_some_and(|text| text.ends_with(&name)) {
                self.broken("kept", format_args!("{name} holds the answer {:?}", record.answer));
            }
            if !is_answer && let Some(why) = self.why_not_failed(request, exchanges, &record) {
                self.broken("reason", format_args!("{name} failed {why}"));
            }
            self.tally.uncertain += usize::from(record.code.as_deref() == Some("uncertain"));
        }
        let all = u32::try_from(seen.len()).unwrap() == state.job.total;
        if state.status == JobStatus::Completed && !all {
            self.broken("lines", format_args!("{} ended with {} records", state.job.name, seen.len()));
        }
        for (request, exchanges) in
            sent.range(RequestId { job, index: 0 }..=RequestId { job, index: u32::MAX })
        {
            let answered = exchanges.iter().any(|exchange| exchange.said() == Said::Answer);
            if answered && !seen.contains(&request.index) {
                self.broken("kept", format_args!("the answer to {} is lost", plan::custom_id(*request)));
            }
        }
        let counts = state.counts;
        if counts.open() > 0 || counts.completed + counts.failed != counts.total {
            self.broken("lines", format_args!("{} ended with {counts:?}", state.job.name));
        }
        self.tally.cancelled += usize::from(state.status == JobStatus::Cancelled);
        self.tally.expired += usize::from(state.status == JobStatus::Expired);
    }

    fn why_not_failed(
        &self,
        request: RequestId,
        sent: &[&Exchange],
        record: &Record,
    ) -> Option<&'static str> {
        let Some(last) = sent.last() else { return Some("though it was never sent") };
        let lost = sent.iter().filter(|exchange| exchange.said().is_lost()).count();
        if record.code.as_deref() == Some("uncertain") {
            let is_due = match self.policy(request) {
                OnUncertain::Retry => lost >= 2,
                OnUncertain::Fail => lost >= 1,
                OnUncertain::Hold => false,
            };
            return (!(is_due && last.said().is_lost())).then_some("as uncertain");
        }
        let used_up = used(sent) >= self.story.plan.retry.max_attempts as usize;
        (last.said() != Said::Refusal && !used_up).then_some("with attempts left")
    }
}

impl Record {
    fn read(line: &[u8]) -> Self {
        let line: Value = serde_json::from_slice(line).unwrap();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let response = &line["response"];
        Self {
            status: response["status_code"].as_u64(),
            code: text(&line["error"]["code"]),
            answer: text(&response["body"]["choices"][0]["message"]["content"]),
        }
    }
}
