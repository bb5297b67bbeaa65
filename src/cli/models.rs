//! `batchd models`: what a provider offers, and what of it ends soon.

use std::path::Path;

use chrono::NaiveDate;
use serde_json::value::RawValue;

use super::args::ModelsArgs;
use super::remote::{self, patiently};
use super::report::Printer;
use super::{Done, Exit, Failure, block_on};
use crate::clock::Clock;
use crate::domain::Timestamp;
use crate::provider::{Called, Listed, Model, Provider, refused_with};

/// A model that ends sooner than this is warned about: time enough to move to another one.
const NEAR_DAYS: i64 = 90;

pub(super) fn run(args: ModelsArgs, config: Option<&Path>, printer: &mut Printer<'_>) -> Done {
    let provider = remote::provider(config, args.remote.provider.as_deref())?;
    let today = day(Clock::System.now());
    if let Some(id) = args.id {
        let model = block_on(async { one(&provider, &id).await })?;
        warn(&model, today, printer);
        if args.remote.json {
            printer.json(&model.raw)?;
        } else {
            print(&model, printer)?;
        }
        return Ok(Exit::Done);
    }
    let mut models = block_on(async {
        let models = patiently(async || provider.models().await).await;
        models.map_err(|outcome| remote::failure(&provider, &outcome))
    })?;
    models.sort_by(|a, b| a.id.cmp(&b.id));
    for model in &models {
        warn(model, today, printer);
    }
    if args.remote.json {
        printer.json(&models.iter().map(|model| &model.raw).collect::<Vec<&Box<RawValue>>>())?;
    } else if models.is_empty() {
        printer.note(&format!("`{}` lists no models", provider.name()));
    } else {
        printer.table(HEADER, models.iter().map(row))?;
    }
    Ok(Exit::Done)
}

/// One model; of a server that shows none by itself, out of its list.
async fn one(provider: &Provider, id: &str) -> Result<Model, Failure> {
    let outcome = match patiently(async || provider.model(id).await).await {
        Ok(model) => return Ok(model),
        Err(outcome) => outcome,
    };
    let failure = remote::failure(provider, &outcome);
    if refused_with(&outcome).is_none() {
        return Err(failure);
    }
    let listed: Called<Vec<Model>> = patiently(async || provider.models().await).await;
    let Ok(mut models) = listed else { return Err(failure) };
    if let Some(at) = models.iter().position(|model| model.id == id) {
        return Ok(models.swap_remove(at));
    }
    let names: Listed = models.into_iter().map(|model| model.id).collect();
    let near = names.nearest(id);
    Err(if near.is_empty() {
        failure.hint("`batchd models` lists them")
    } else {
        failure.hint(format!("did you mean `{}`?", near.join("` or `")))
    })
}

/// Says that a model has ended, or will soon.
fn warn(model: &Model, today: Option<NaiveDate>, printer: &mut Printer<'_>) {
    if let Some(ending) = model.shutdown_date
        && let Some(today) = today
        && let Some(when) = when(ending, today)
    {
        printer.note(&format!("warning: `{}` {when}", model.id));
    }
}

fn when(ending: NaiveDate, today: NaiveDate) -> Option<String> {
    let days = ending.signed_duration_since(today).num_days();
    let count = |days: i64| if days == 1 { "1 day".to_owned() } else { format!("{days} days") };
    match days {
        ..0 => Some(format!("was shut down on {ending}, {} ago", count(-days))),
        0 => Some("is shut down today".to_owned()),
        1..=NEAR_DAYS => Some(format!("will be shut down on {ending}, in {}", count(days))),
        _ => None,
    }
}

fn day(time: Timestamp) -> Option<NaiveDate> {
    let millis = i64::try_from(time.as_millis()).ok()?;
    chrono::DateTime::from_timestamp_millis(millis).map(|time| time.date_naive())
}

fn print(model: &Model, printer: &mut Printer<'_>) -> Result<(), Failure> {
    printer.facts([
        ("id", Some(model.id.clone())),
        ("owner", model.owned_by.clone()),
        ("created", model.created.map(|time| time.to_string())),
        ("shutdown", model.shutdown_date.map(|date| date.to_string())),
    ])
}

const HEADER: [&str; 4] = ["ID", "OWNER", "CREATED", "SHUTDOWN"];

fn row(model: &Model) -> [String; 4] {
    [
        model.id.clone(),
        model.owned_by.clone().unwrap_or_default(),
        model.created.and_then(day).map(|date| date.to_string()).unwrap_or_default(),
        model.shutdown_date.map(|date| date.to_string()).unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::remote::tests::Script;

    const LIST: &str = r#"{"object":"list","data":[
        {"id":"z\u001b[2J","object":"model"},
        {"id":"gpt-5","object":"model","created":1754524800,"owned_by":"openai","shutdown_date":"9999-12-11"},
        {"id":"gpt-4","created":1687882411,"owned_by":"openai","shutdown_date":"2000-01-01"}
    ]}"#;

    #[test]
    fn models_are_listed_by_name_with_a_warning_for_those_that_end() {
        let script = Script::new(&[("200 OK", LIST)]);
        let printed = script.batchd(&["models"]);
        assert_eq!(printed.exit, Exit::Done);
        insta::assert_snapshot!(printed.out, @r"
        ID          OWNER   CREATED     SHUTDOWN
        gpt-4       openai  2023-06-27  2000-01-01
        gpt-5       openai  2025-08-07  9999-12-11
        z\u{1b}[2J
        ");
        assert!(printed.err.starts_with("warning: `gpt-4` was shut down on 2000-01-01, "), "{}", printed.err);
        assert_eq!(printed.err.lines().count(), 1);
        let json: serde_json::Value =
            serde_json::from_str(&script.batchd(&["models", "--json"]).out).unwrap();
        assert_eq!(json[1]["shutdown_date"], "9999-12-11");
        assert_eq!(json.as_array().unwrap().len(), 3);
    }

    #[test]
    fn one_model_is_shown_also_where_the_server_shows_only_lists() {
        let model = r#"{"id":"ft:a","created":1754524800,"owned_by":"me"}"#;
        let script = Script::new(&[("200 OK", model)]);
        let printed = script.batchd(&["models", "ft:a"]);
        assert_eq!((printed.exit, printed.err.as_str()), (Exit::Done, ""));
        assert_eq!(printed.out, "id        ft:a\nowner     me\ncreated   2025-08-07T00:00:00.000Z\n");
        assert_eq!(script.batchd(&["models", "ft:a", "--json"]).out, format!("{model}\n"));
        assert_eq!(script.asked(), ["GET /v1/models/ft%3Aa HTTP/1.1"; 2]);
        let script = Script::new(&[("404 No", ""), ("200 OK", LIST)]);
        let printed = script.batchd(&["models", "gpt-5"]);
        assert!(printed.out.contains("shutdown  9999-12-11\n"), "{}", printed.out);
    }

    #[test]
    fn a_model_that_there_is_not_is_refused_with_the_nearest_names() {
        let unknown = r#"{"error":{"message":"The model `gpt-55` does not exist","code":"model_not_found"}}"#;
        let script = Script::new(&[("404 No", unknown), ("200 OK", LIST)]);
        let printed = script.batchd(&["models", "gpt-55"]);
        assert_eq!((printed.exit, printed.out.as_str()), (Exit::SomeFailed, ""));
        assert_eq!(
            printed.err,
            "error: `local` refused with 404: The model `gpt-55` does not exist\n  hint: did you mean `gpt-5` or `gpt-4`?\n"
        );
    }

    #[test]
    fn warnings_begin_ninety_days_before_the_end_and_never_stop() {
        let today = NaiveDate::from_ymd_opt(2026, 11, 22).unwrap();
        for (days, expected) in [
            (91, None),
            (90, Some("will be shut down on 2027-02-20, in 90 days")),
            (1, Some("will be shut down on 2026-11-23, in 1 day")),
            (0, Some("is shut down today")),
            (-1, Some("was shut down on 2026-11-21, 1 day ago")),
            (-30, Some("was shut down on 2026-10-23, 30 days ago")),
        ] {
            assert_eq!(when(today + chrono::TimeDelta::days(days), today).as_deref(), expected);
        }
    }
}
