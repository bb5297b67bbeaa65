//! What becomes of a schedule when its file appears, is changed, broken, mended, or gone.

use std::sync::Arc;

use tracing::{info, warn};

use super::record::{Record, Rule, hash};
use super::{Kept, Schedules, Sight, load, missing, peek::Peeked, report};
use crate::diag::{Report, Severity, printable};
use crate::domain::Timestamp;
use crate::intake::Error;
use crate::intake::accept::Examiner;
use crate::intake::admit::Ending;
use crate::intake::blocking::blocking;
use crate::intake::claim::Dropped;
use crate::intake::dir::{Dir, Stamp};
use crate::intake::round::Round;
use crate::intake::scan::{Candidate, Find, Scan};
use crate::intake::worker::{Intake, RETRY};
use crate::spec::Scheduled;

/// A version of a schedule's file that came to rest.
struct Version {
    name: String,
    dropped: Dropped,
    stamp: Stamp,
}

impl Intake {
    /// Reads what an earlier process kept. Nothing may be taken in before.
    pub(in crate::intake) async fn load_schedules(&mut self) -> Result<(), Error> {
        let (shelf, settings) = (self.schedules.shelf.clone(), self.settings.spec.clone());
        let (peek, since) = (self.peek, self.started);
        let loaded = blocking(move || load(&shelf, &settings, peek, since)).await?;
        let jobs = self.store.jobs().await.map_err(Error::Store)?;
        for mut kept in loaded {
            kept.heal(&jobs);
            self.schedules.kept.insert(kept.record.file.clone(), kept);
        }
        self.schedules.is_loaded = true;
        self.schedules.is_news = true;
        Ok(())
    }

    /// Keeps a candidate that has a schedule, or had one and can't be read now. None: it is an ordinary spec.
    pub(in crate::intake) async fn keep(
        &mut self,
        examiner: &Examiner,
        candidate: &Candidate,
    ) -> Result<Option<Ending>, Error> {
        let (Find::Spec(dropped @ (Dropped::Toml | Dropped::Folder)), Some(name)) =
            (candidate.find.clone(), candidate.name.to_str().map(str::to_owned))
        else {
            return Ok(None);
        };
        let (reader, sought, found) = (examiner.clone(), name.clone(), candidate.clone());
        let peeked = blocking(move || reader.peek(&sought, dropped, &found)).await?;
        let is_known = self.schedules.kept.contains_key(&name);
        let version = Version { name, dropped, stamp: candidate.stamp };
        match peeked {
            Peeked::Schedule(scheduled) => self.keep_version(&examiner.jobs, version, *scheduled).await?,
            Peeked::Bad { report } if is_known => {
                self.keep_last_good(&examiner.jobs, version, report).await?;
            }
            Peeked::Ordinary if is_known => {
                self.end_schedule(&examiner.jobs, &version.name).await?;
                info!(file = %printable(&version.name), "the schedule is over: its spec has no `[schedule]` any more");
                return Ok(None);
            }
            Peeked::Bad { .. } | Peeked::Ordinary => return Ok(None),
            Peeked::Changed => return Ok(Some(Ending::Changed)),
        }
        Ok(Some(Ending::Kept))
    }

    /// A version in which nothing is wrong.
    async fn keep_version(
        &mut self,
        jobs: &Arc<Dir>,
        version: Version,
        scheduled: Scheduled,
    ) -> Result<(), Error> {
        let Version { name, dropped, stamp } = version;
        let now = self.clock.now();
        let kept = self.schedules.kept.get(&name);
        let before = kept.map(|kept| kept.record.clone());
        let has_plan = kept.is_some_and(|kept| kept.plan.is_some());
        let record = follow(before.clone(), (&name, dropped), &scheduled, now);
        // What could not be read as a plan is written again, whatever was wrong with it.
        let is_edit = !has_plan || before.as_ref().is_none_or(|before| before.text != record.text);
        if let Some(report) = before.as_ref().and_then(|before| before.report.clone()) {
            let jobs = Arc::clone(jobs);
            blocking(move || report::withdraw(&jobs, &report)).await?;
            info!(file = %printable(&name), "a schedule's file is mended");
        }
        if is_edit {
            let (shelf, record, text) =
                (self.schedules.shelf.clone(), record.clone(), scheduled.text.clone());
            blocking(move || shelf.write_text(&record, &text)).await?;
        }
        let text = record.text.clone();
        self.schedules.write(record, now).await?;
        if is_edit {
            tell(&name, &scheduled, before.is_none(), now);
        }
        if let Some(before) = before.filter(|before| before.text != text) {
            let shelf = self.schedules.shelf.clone();
            blocking(move || shelf.remove_text(&before)).await;
        }
        if let Some(kept) = self.schedules.kept.get_mut(&name) {
            kept.plan = Some(scheduled.into());
            kept.problem = None;
            kept.next = None;
            kept.retry = None;
            kept.sight = Sight::Read(stamp);
        }
        Ok(())
    }

    /// A version in which something is.
    async fn keep_last_good(
        &mut self,
        jobs: &Arc<Dir>,
        version: Version,
        report: Report,
    ) -> Result<(), Error> {
        let Version { name, stamp, .. } = version;
        let Some(kept) = self.schedules.kept.get(&name) else { return Ok(()) };
        let (record, goes_on) = (kept.record.clone(), kept.plan.is_some());
        let (errors, first) = (report.errors(), report.first_error().map(ToString::to_string));
        let (jobs, file, before) = (Arc::clone(jobs), name.clone(), record.report.clone());
        let published = blocking(move || report::publish(&jobs, &file, before.as_deref(), &report)).await?;
        let file = printable(&name);
        if goes_on {
            warn!(%file, errors, first, report = %published, "a schedule's file is broken: its last good version goes on");
        } else {
            warn!(%file, errors, first, report = %published, "a schedule's file is broken, and there is no good version");
        }
        self.schedules.write(Record { report: Some(published), ..record }, self.clock.now()).await?;
        if let Some(kept) = self.schedules.kept.get_mut(&name) {
            kept.problem = first;
            kept.sight = Sight::Read(stamp);
        }
        Ok(())
    }

    /// Notes which schedules are there, and ends those that are not. What has not changed leaves the scan.
    pub(in crate::intake) async fn look_for_schedules(
        &mut self,
        examiner: &Examiner,
        scan: &mut Scan,
        round: &mut Round,
    ) -> Result<(), Error> {
        let (now, settle) = (self.clock.now(), self.settings.settle);
        let (jobs, unseen) = (Arc::clone(&examiner.jobs), self.schedules.see(scan));
        let all = unseen.clone();
        let Some(missing) = blocking(move || missing(&jobs, unseen)).await else {
            let out = self.schedules.kept.iter_mut().filter(|(name, _)| all.contains(name));
            out.for_each(|(_, kept)| kept.sight = Sight::Out);
            return Ok(());
        };
        for name in missing {
            let kept = self.schedules.kept.get_mut(&name);
            if !kept.is_some_and(|kept| kept.vanishes(settle, now)) {
                round.sooner(Some(settle));
                continue;
            }
            match self.end_schedule(&examiner.jobs, &name).await {
                Ok(()) => info!(file = %printable(&name), "the schedule is over: its file was taken away"),
                Err(error @ Error::Store(_)) => return Err(error),
                Err(error @ Error::Io { .. }) => {
                    round.blocked += 1;
                    round.trouble(error, RETRY);
                }
            }
        }
        Ok(())
    }

    async fn end_schedule(&mut self, jobs: &Arc<Dir>, name: &str) -> Result<(), Error> {
        let Some(kept) = self.schedules.kept.get(name) else { return Ok(()) };
        let (shelf, jobs, record) = (self.schedules.shelf.clone(), Arc::clone(jobs), kept.record.clone());
        blocking(move || {
            record.report.as_deref().map_or(Ok(()), |report| report::withdraw(&jobs, report))?;
            shelf.remove(&record)
        })
        .await?;
        self.schedules.kept.remove(name);
        self.schedules.is_news = true;
        Ok(())
    }
}

impl Schedules {
    /// Makes a schedule's record durable, and lets it hold from then on.
    pub(super) async fn write(&mut self, record: Record, now: Timestamp) -> Result<(), Error> {
        self.is_news = true;
        let kept = self.kept.get(&record.file);
        if kept.is_none_or(|kept| kept.record != record || kept.is_unwritten) {
            let (shelf, written) = (self.shelf.clone(), record.clone());
            blocking(move || shelf.write(&written)).await?;
        }
        let kept = self.kept.entry(record.file.clone()).or_insert_with(|| Kept::new(record.clone(), now));
        kept.record = record;
        kept.is_unwritten = false;
        Ok(())
    }
}

/// The record of a good version. If what it says of its times has changed, those before `now` were another schedule's.
fn follow(
    before: Option<Record>,
    (name, dropped): (&str, Dropped),
    scheduled: &Scheduled,
    now: Timestamp,
) -> Record {
    let (text, rule) = (hash(&scheduled.text), Rule::from(&scheduled.schedule));
    match before {
        Some(record) if record.rule == rule => Record { dropped, text, report: None, ..record },
        before => {
            let (file, first_seen) = (name.to_owned(), before.map_or(now, |before| before.first_seen));
            Record { file, dropped, first_seen, text, rule, last: now, due: None, report: None }
        }
    }
}

fn tell(name: &str, scheduled: &Scheduled, is_new: bool, now: Timestamp) {
    let file = printable(name);
    // Notes may quote what the user's data say, which belongs in no log: `batchd check` shows them.
    let findings = scheduled.findings.diagnostics().iter();
    for finding in findings.filter(|finding| finding.severity != Severity::Note) {
        warn!(%file, %finding, "a schedule has a doubtful place");
    }
    let calendar = &scheduled.schedule.calendar;
    let (cron, timezone) = (printable(calendar.text()), calendar.zone().name());
    let next = calendar.after(now).map(|next| next.to_string());
    if is_new {
        info!(name = %scheduled.name, %file, cron, timezone, next, "schedule found");
    } else {
        info!(name = %scheduled.name, %file, cron, timezone, next, "schedule changed");
    }
}
