//! What a job needs of its requests while they stream by: queues, the line index, and unique ids.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};

use crate::diag::{Diagnostic, Place, Report};
use crate::domain::{Job, LineEntry, QueueName};
use crate::reading::problem::Spot;
use crate::spec::ids::{Again, Ids};
use crate::spec::line::Parsed;

/// A piece of work large enough that a write costs nothing.
const BUFFER: usize = 64 * 1024;

/// Numbers requests and queues, and writes the line index.
pub(super) struct Index<'a> {
    sink: BufWriter<&'a mut dyn Write>,
    provider: String,
    queues: Vec<QueueName>,
    totals: Vec<u32>,
    /// Where each queue was first met.
    places: Vec<Place>,
    /// The number of each model's queue.
    numbers: BTreeMap<String, u16>,
    /// The number of the queue without a model.
    modelless: Option<u16>,
    ids: Ids,
    total: u32,
    full: bool,
    failed: Option<io::Error>,
}

/// What [`Index`] found.
#[derive(Debug)]
pub(super) struct Indexed {
    pub(super) queues: Vec<QueueName>,
    pub(super) queue_totals: Vec<u32>,
    pub(super) queue_places: Vec<Place>,
    pub(super) total: u32,
}

impl<'a> Index<'a> {
    pub(super) fn new(sink: &'a mut dyn Write, provider: &str) -> Self {
        Self {
            sink: BufWriter::with_capacity(BUFFER, sink),
            provider: provider.to_owned(),
            queues: Vec::new(),
            totals: Vec::new(),
            places: Vec::new(),
            numbers: BTreeMap::new(),
            modelless: None,
            ids: Ids::default(),
            total: 0,
            full: false,
            failed: None,
        }
    }

    pub(super) const fn total(&self) -> u32 {
        self.total
    }

    /// Notes the id of a line that was refused for something else.
    pub(super) fn note_id(&mut self, id: &str, ordinal: u32) {
        self.ids.insert(id, ordinal);
    }

    /// Takes the next request. `ordinal` is what [`Again`] will know it by; `offset` and `length` are
    /// where its line stands in the input, `number` is the line's number there.
    pub(super) fn push(
        &mut self,
        request: &Parsed<'_>,
        ordinal: u32,
        (offset, length, number): (u64, usize, u32),
        spot: Spot<'_>,
        report: &mut Report,
    ) {
        self.ids.insert(&request.custom_id, ordinal);
        if self.total >= Job::REQUESTS_MAX {
            if !std::mem::replace(&mut self.full, true) {
                let message = format!("more than {} requests in one job", Job::REQUESTS_MAX);
                report.push(Diagnostic::error(spot.file, spot.line, 0, message).hint("cut it into several"));
            }
            return;
        }
        self.total += 1;
        let Some(queue) = self.queue(request.model.as_deref(), spot, report) else { return };
        if report.has_errors() || self.failed.is_some() {
            return;
        }
        // A line's bound fits 32 bits (see `Lines`).
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let entry = LineEntry { offset, length, queue, line: number };
        if let Err(error) = self.sink.write_all(&entry.encode()) {
            self.failed = Some(error);
        }
    }

    fn queue(&mut self, model: Option<&str>, spot: Spot<'_>, report: &mut Report) -> Option<u16> {
        let known = model.map_or(self.modelless, |model| self.numbers.get(model).copied());
        let number = match known {
            Some(number) => number,
            None => self.new_queue(model, spot, report)?,
        };
        if let Some(total) = self.totals.get_mut(usize::from(number)) {
            *total += 1;
        }
        Some(number)
    }

    fn new_queue(&mut self, model: Option<&str>, spot: Spot<'_>, report: &mut Report) -> Option<u16> {
        let name = QueueName::new(self.provider.as_str(), model);
        // A model may be called `-`: its queue is that of no model.
        let known = self.queues.iter().position(|queue| *queue == name);
        let at = known.unwrap_or(self.queues.len());
        if at >= Job::QUEUES_MAX {
            if !std::mem::replace(&mut self.full, true) {
                let message = format!("more than {} different models in one job", Job::QUEUES_MAX);
                let hint = "each model has a queue of its own: cut the job into several";
                report.push(Diagnostic::error(spot.file, spot.line, 0, message).hint(hint));
            }
            return None;
        }
        let number = u16::try_from(at).ok()?;
        match model {
            Some(model) => drop(self.numbers.insert(model.to_owned(), number)),
            None => self.modelless = Some(number),
        }
        if known.is_none() {
            self.queues.push(name);
            self.totals.push(0);
            self.places.push(Place { file: spot.file.to_owned(), line: spot.line, column: 0 });
        }
        Some(number)
    }

    /// Reports duplicate ids and ends the index.
    pub(super) fn finish(mut self, report: &mut Report, again: Again<'_>) -> io::Result<Indexed> {
        self.ids.report(report, again);
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.sink.flush()?;
        Ok(Indexed {
            queues: self.queues,
            queue_totals: self.totals,
            queue_places: self.places,
            total: self.total,
        })
    }
}
