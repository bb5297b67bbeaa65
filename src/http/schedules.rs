//! What is said about schedules: which there are, when they run, and a run that somebody asks for.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::routes::{Answer, Failure};
use crate::control::{Control, JobReport};
use crate::domain::Timestamp;
use crate::intake::{Handle, Refusal, ScheduleStatus};

/// Times that are told at most.
pub const UPCOMING_MAX: usize = 1000;
/// Times that are told if nobody says how many.
pub const UPCOMING_DEFAULT: usize = 10;

/// One schedule, as `schedule list --json` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleReport {
    /// What the names of its runs begin with; none if there is no good version of its spec.
    pub name: Option<String>,
    /// The name of its file or folder in the jobs folder.
    pub file: String,
    /// What its last good version says; none as for `name`.
    #[serde(flatten)]
    pub rule: Option<RuleReport>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Its newest run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<JobReport>,
    /// The first of what is wrong with the file as it lies there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What a schedule says about its times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleReport {
    pub kind: String,
    pub cron: String,
    pub timezone: String,
    pub catch_up: String,
    pub overlap: String,
    pub jitter_s: u64,
}

/// A time at which a schedule runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upcoming {
    /// RFC 3339.
    pub at: String,
    /// On the clocks of the schedule's zone, as in the name of the run.
    pub local: String,
    pub timezone: String,
    pub name: String,
    pub file: String,
}

/// What the answers are made of.
#[derive(Clone, Debug)]
struct Desk {
    control: Control,
    intake: Handle,
}

pub(super) fn routes(control: Control, intake: Handle) -> Router {
    Router::new()
        .route("/schedules", get(list))
        .route("/schedules/next", get(next))
        .route("/schedules/{schedule}/run", post(run))
        .with_state(Desk { control, intake })
}

async fn list(State(desk): State<Desk>) -> Answer<Vec<ScheduleReport>> {
    let jobs = desk.control.list().await?;
    let now = desk.control.now();
    // Jobs come in the order of acceptance: the newest run stays.
    let runs = jobs.iter().filter_map(|job| Some((job.schedule.as_deref()?, job)));
    let last: BTreeMap<&str, &JobReport> = runs.collect();
    let report = |status: &ScheduleStatus| report(status, last.get(&*status.file).copied(), now);
    Ok(Json(desk.intake.schedules().iter().map(report).collect()))
}

#[derive(Debug, Deserialize)]
struct Count {
    n: Option<usize>,
}

async fn next(
    State(desk): State<Desk>,
    count: Result<Query<Count>, QueryRejection>,
) -> Answer<Vec<Upcoming>> {
    let bad = |rejection: QueryRejection| Failure {
        status: StatusCode::BAD_REQUEST,
        code: "bad_query",
        message: rejection.body_text(),
    };
    let Query(Count { n }) = count.map_err(bad)?;
    let count = n.unwrap_or(UPCOMING_DEFAULT).min(UPCOMING_MAX);
    Ok(Json(upcoming(&desk.intake.schedules(), desk.control.now(), count)))
}

async fn run(State(desk): State<Desk>, Path(schedule): Path<String>) -> Answer<JobReport> {
    let job = desk.intake.run_schedule(&schedule).await?;
    Ok(Json(desk.control.show(&job.to_string()).await?))
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let (status, code) = match &refusal {
            Refusal::Unknown(_) => (StatusCode::NOT_FOUND, "no_such_schedule"),
            Refusal::Ambiguous { .. } => (StatusCode::CONFLICT, "ambiguous_name"),
            Refusal::Broken { .. } => (StatusCode::CONFLICT, "broken_schedule"),
            Refusal::Unsettled { .. } => (StatusCode::CONFLICT, "unsettled_data"),
            Refusal::Rejected { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "rejected"),
            Refusal::Trouble(_) => (StatusCode::SERVICE_UNAVAILABLE, "trouble"),
            Refusal::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        };
        Self { status, code, message: refusal.to_string() }
    }
}

fn report(status: &ScheduleStatus, last: Option<&JobReport>, now: Timestamp) -> ScheduleReport {
    let plan = status.plan.as_ref();
    let rule = plan.map(|plan| RuleReport {
        kind: plan.kind.to_string(),
        cron: plan.schedule.calendar.text().to_owned(),
        timezone: plan.schedule.calendar.zone().name().to_owned(),
        catch_up: plan.schedule.catch_up.as_str().to_owned(),
        overlap: plan.schedule.overlap.as_str().to_owned(),
        jitter_s: plan.schedule.jitter.as_secs(),
    });
    ScheduleReport {
        name: plan.map(|plan| plan.name.to_string()),
        file: status.file.clone(),
        rule,
        next: plan.and_then(|plan| plan.schedule.calendar.after(now)).map(|next| next.to_string()),
        last: last.cloned(),
        problem: status.problem.clone(),
    }
}

/// The first `count` times after `now` over all schedules, in order.
fn upcoming(schedules: &[ScheduleStatus], now: Timestamp, count: usize) -> Vec<Upcoming> {
    let after = |number: usize, at: Timestamp| {
        let plan = schedules.get(number)?.plan.as_ref()?;
        Some(Reverse((plan.schedule.calendar.after(at)?, number)))
    };
    let mut heap: BinaryHeap<_> = (0..schedules.len()).filter_map(|number| after(number, now)).collect();
    let mut times = Vec::new();
    while times.len() < count
        && let Some(Reverse((at, number))) = heap.pop()
    {
        heap.extend(after(number, at));
        if let Some(status) = schedules.get(number)
            && let Some(plan) = &status.plan
        {
            let calendar = &plan.schedule.calendar;
            times.push(Upcoming {
                at: at.to_string(),
                local: calendar.stamp(at),
                timezone: calendar.zone().name().to_owned(),
                name: plan.name.to_string(),
                file: status.file.clone(),
            });
        }
    }
    times
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::Kind;
    use crate::intake::Plan;
    use crate::schedule::{Calendar, CatchUp, Overlap, Schedule};

    pub(crate) fn status(name: &str, cron: &str) -> ScheduleStatus {
        let schedule = Schedule {
            calendar: Calendar::parse(cron, chrono_tz::Asia::Shanghai).unwrap(),
            catch_up: CatchUp::Skip,
            overlap: Overlap::Queue,
            jitter: Duration::ZERO,
        };
        let plan = Plan { name: name.parse().unwrap(), kind: Kind::Chat, schedule };
        ScheduleStatus { file: format!("{name}.toml"), plan: Some(plan), problem: None }
    }

    #[test]
    fn times_of_all_schedules_come_in_order() {
        let broken = ScheduleStatus { file: "broken.toml".to_owned(), plan: None, problem: None };
        let all = [status("hourly", "0 * * * *"), broken, status("nightly", "0 2 * * *")];
        let midnight = Timestamp::from_millis(1_795_276_800_000); // 2026-11-22 00:00 in Shanghai
        let times = upcoming(&all, midnight, 4);
        let said: Vec<String> = times.iter().map(|time| format!("{} {}", time.local, time.name)).collect();
        assert_eq!(
            said,
            [
                "20261122T010000 hourly",
                "20261122T020000 hourly",
                "20261122T020000 nightly",
                "20261122T030000 hourly"
            ]
        );
        assert_eq!(times[0].at, "2026-11-21T17:00:00.000Z");
        assert_eq!(times[0].timezone, "Asia/Shanghai");
        assert!(upcoming(&all, midnight, 0).is_empty());
    }

    #[test]
    fn schedule_is_reported_with_its_rule_its_next_time_and_its_problem() {
        let broken =
            ScheduleStatus { problem: Some("a.toml: error: bad".to_owned()), ..status("a", "@daily") };
        let told = serde_json::to_value(report(&broken, None, Timestamp::from_millis(0))).unwrap();
        let expected = serde_json::json!({
            "name": "a", "file": "a.toml", "kind": "chat", "cron": "@daily", "timezone": "Asia/Shanghai",
            "catch_up": "skip", "overlap": "queue", "jitter_s": 0, "next": "1970-01-01T16:00:00.000Z",
            "problem": "a.toml: error: bad",
        });
        assert_eq!(told, expected);
        let none = report(&ScheduleStatus { plan: None, ..broken }, None, Timestamp::from_millis(0));
        let told = serde_json::to_string(&none).unwrap();
        assert_eq!(serde_json::from_str::<ScheduleReport>(&told).unwrap(), none);
    }
}
