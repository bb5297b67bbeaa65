//! The figures of a run in which every law held.

use std::fmt;

use super::evidence::{Stop, StopKind};

/// What was judged, and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub jobs: u64,
    /// Accepted requests.
    pub requests: u64,
    /// Published lines.
    pub lines: u64,
    /// Requests that came to the server.
    pub sent: u64,
    pub paid: u64,
    /// Paid, and the reply was dropped, cut or senseless.
    pub spoilt: u64,
    /// Paid, and the asker hung up.
    pub given_up: u64,
    /// Lines whose error is `uncertain`.
    pub uncertain: u64,
    /// Each stop, and how many payments were made again because of it.
    pub stops: Vec<(Stop, u64)>,
    /// Most payments for one request, those whose reply was spoilt left out.
    pub payments_max: u64,
    pub in_flight_max: u64,
    /// Requests that came before their key and model were to come back.
    pub early: u64,
    pub lost: u64,
    pub duplicates: u64,
    /// Dropped files.
    pub files: u64,
    /// Indexes that were compared.
    pub rebuilt: u64,
}

impl Report {
    pub fn kills(&self) -> u64 {
        self.count(StopKind::Kill)
    }

    pub fn power_cuts(&self) -> u64 {
        self.count(StopKind::PowerCut)
    }

    pub fn drains(&self) -> u64 {
        self.count(StopKind::Drain)
    }

    /// Payments that were made again because of kills and power cuts.
    pub fn repeats(&self) -> u64 {
        self.stops.iter().map(|(_, repeats)| repeats).sum()
    }

    /// The most of one stop.
    pub fn repeats_max(&self) -> u64 {
        self.stops.iter().map(|(_, repeats)| *repeats).max().unwrap_or(0)
    }

    /// What the server had in flight at all kills and power cuts together.
    pub fn in_flight(&self) -> u64 {
        let crashes = self.stops.iter().filter(|(stop, _)| stop.kind != StopKind::Drain);
        crashes.map(|(stop, _)| stop.in_flight).sum()
    }

    pub fn drains_with_repeats(&self) -> u64 {
        let repeating = |(stop, repeats): &&(Stop, u64)| stop.kind == StopKind::Drain && *repeats > 0;
        self.stops.iter().filter(repeating).count() as u64
    }

    /// Adds the figures of another run.
    pub fn add(&mut self, other: &Self) {
        let Self { jobs, requests, lines, sent, paid, spoilt, given_up, uncertain, .. } = other;
        self.jobs += jobs;
        self.requests += requests;
        self.lines += lines;
        self.sent += sent;
        self.paid += paid;
        self.spoilt += spoilt;
        self.given_up += given_up;
        self.uncertain += uncertain;
        self.stops.extend_from_slice(&other.stops);
        self.payments_max = self.payments_max.max(other.payments_max);
        self.in_flight_max = self.in_flight_max.max(other.in_flight_max);
        self.early += other.early;
        self.lost += other.lost;
        self.duplicates += other.duplicates;
        self.files += other.files;
        self.rebuilt += other.rebuilt;
    }

    fn count(&self, kind: StopKind) -> u64 {
        self.stops.iter().filter(|(stop, _)| stop.kind == kind).count() as u64
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let crashes = self.kills() + self.power_cuts();
        let float = |figure: u64| f64::from(u32::try_from(figure).unwrap_or(u32::MAX));
        let per_crash = |figure: u64| float(figure) / float(crashes.max(1));
        writeln!(f, "jobs / requests / lines      {} / {} / {}", self.jobs, self.requests, self.lines)?;
        writeln!(f, "sent / paid                  {} / {}", self.sent, self.paid)?;
        writeln!(f, "paid and spoilt / given up   {} / {}", self.spoilt, self.given_up)?;
        writeln!(
            f,
            "kills / power cuts / drains  {} / {} / {}",
            self.kills(),
            self.power_cuts(),
            self.drains()
        )?;
        writeln!(f, "in flight per crash          {:.2}", per_crash(self.in_flight()))?;
        writeln!(f, "repeats per crash, most      {:.2}, {}", per_crash(self.repeats()), self.repeats_max())?;
        writeln!(f, "drains with repeats          {}", self.drains_with_repeats())?;
        writeln!(f, "payments of one request      {} at most", self.payments_max)?;
        writeln!(f, "in flight at a time          {} at most", self.in_flight_max)?;
        writeln!(f, "ended as uncertain           {}", self.uncertain)?;
        write!(f, "lost / duplicates            {} / {}", self.lost, self.duplicates)
    }
}
