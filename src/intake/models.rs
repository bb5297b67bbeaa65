//! What stands behind the models that a spec names: the fine-tune of `job:<name>`, and whether the provider knows the
//! others.
//!
//! `job:<name>` means the fine-tune whose job has this very name (its results lie in `results/<name>`). One that has
//! not ended yet is waited for. Of one that has, the summary says what came of it; when it made no model, the job in
//! which `batchd retry` asked for it again stands in its place.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;

use serde::Deserialize;

use super::{Error, failed};
use crate::diag::{Diagnostic, Place, Report, nearest};
use crate::domain::{JobId, JobName, JobState, Kind, QueueName, TunedModel};
use crate::provider::Catalogue;
use crate::spec::Checked;
use crate::store::Store;
use crate::store::folder::ORIGIN;

/// A summary is smaller by far.
const SUMMARY_BYTES_MAX: u64 = 1 << 20;

/// What the jobs of `job:<name>` come to.
#[derive(Debug)]
pub(super) enum Found {
    /// For [`JobSettings::models`](crate::domain::JobSettings::models).
    All(BTreeMap<String, TunedModel>),
    /// These can't be used.
    Unfit(Report),
    /// Nobody knows these, so far.
    Unknown { first: JobName, report: Report },
}

/// What is looked through for fine-tunes.
#[derive(Debug)]
pub(super) struct Makers<'m> {
    pub(super) jobs: Vec<JobState>,
    pub(super) store: &'m dyn Store,
    /// The folder of all results.
    pub(super) results: PathBuf,
}

/// What a name stands for.
enum Meant {
    Model(TunedModel),
    Unfit(Diagnostic),
    Unknown,
}

/// The members of a summary that matter here.
#[derive(Deserialize)]
struct Summary {
    id: Option<JobId>,
    kind: Kind,
    status: String,
    fine_tuned_model: Option<String>,
    reason: Option<String>,
}

impl Makers<'_> {
    /// Finds the fine-tunes that a spec's requests name. Blocks.
    pub(super) fn find(&self, checked: &Checked) -> Result<Found, Error> {
        let provider = checked.queues.first().map_or("", QueueName::provider);
        let (mut models, mut unfit, mut unknown) = (BTreeMap::new(), Report::default(), Report::default());
        let mut first = None;
        for (name, place) in checked.jobs_used() {
            match self.meant(&name, provider, place)? {
                Meant::Model(model) => drop(models.insert(name.to_string(), model)),
                Meant::Unfit(why) => unfit.push(why),
                Meant::Unknown => {
                    unknown.push(self.unknown(&name, place));
                    first.get_or_insert(name);
                }
            }
        }
        Ok(if unfit.has_errors() {
            unfit.absorb(unknown);
            unfit.sort();
            Found::Unfit(unfit)
        } else if let Some(first) = first {
            Found::Unknown { first, report: unknown }
        } else {
            Found::All(models)
        })
    }

    fn meant(&self, name: &JobName, provider: &str, place: &Place) -> Result<Meant, Error> {
        let kept = self.jobs.iter().rev().find(|state| state.job.name == *name);
        let mut state = if let Some(state) = kept {
            state
        } else {
            // Its state has gone, after a while.
            let Some(summary) = self.summary(name)? else { return Ok(Meant::Unknown) };
            let again = summary.id.and_then(|id| self.asked_again(id));
            match (judge(name, summary, place), again) {
                (Meant::Unfit(_), Some(again)) => again,
                (meant, _) => return Ok(meant),
            }
        };
        if state.job.kind != Kind::FineTune {
            return Ok(Meant::Unfit(no_fine_tune(name, state.job.kind, place)));
        }
        loop {
            let home = state.job.queues.first().map_or("", QueueName::provider);
            if home != provider {
                let message = format!("the model of the fine-tune `{name}` lies at the provider `{home}`");
                let hint = format!("this job is for `{provider}`: write `provider = \"{home}\"`");
                return Ok(Meant::Unfit(error(place, message).hint(hint)));
            }
            let waits = Meant::Model(TunedModel::Of(state.job.id));
            if !state.status.is_final() {
                return Ok(waits);
            }
            // Results may have been taken away; the journal is still there, and dispatch reads it.
            let Some(summary) = self.summary(&state.job.name)? else { return Ok(waits) };
            match judge(name, summary, place) {
                Meant::Unfit(why) => match self.asked_again(state.job.id) {
                    Some(again) => state = again,
                    None => return Ok(Meant::Unfit(why)),
                },
                meant @ (Meant::Model(_) | Meant::Unknown) => return Ok(meant),
            }
        }
    }

    /// The job in which a failed fine-tune was asked for again. Later ones alone, so that a search ends.
    fn asked_again(&self, id: JobId) -> Option<&JobState> {
        let origin = id.to_string();
        let is_it = |state: &&JobState| {
            let folder = self.store.folder(state.job.id).filter(|_| state.job.kind == Kind::FineTune);
            state.job.id > id
                && folder.is_some_and(|folder| {
                    fs::read_to_string(folder.join("spec").join(ORIGIN)).is_ok_and(|text| text == origin)
                })
        };
        self.jobs.iter().find(is_it)
    }

    fn summary(&self, name: &JobName) -> Result<Option<Summary>, Error> {
        let path = self.results.join(name.as_str()).join("summary.json");
        let mut text = String::new();
        let read = File::open(&path).and_then(|file| file.take(SUMMARY_BYTES_MAX).read_to_string(&mut text));
        match read {
            // One that somebody has changed says nothing.
            Ok(_) => Ok(serde_json::from_str(&text).ok()),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    fn unknown(&self, name: &JobName, place: &Place) -> Diagnostic {
        let fine_tunes = self.jobs.iter().filter(|state| state.job.kind == Kind::FineTune);
        let near = nearest(name.as_str(), fine_tunes.map(|state| state.job.name.as_str()));
        let hint = near.map_or_else(
            || "drop the spec of the fine-tune before this one, or at the same time".to_owned(),
            |near| format!("did you mean `job:{near}`?"),
        );
        error(place, format!("no fine-tune is called `{name}`")).hint(hint)
    }
}

/// What the end of a fine-tune means for those who want its model.
fn judge(name: &JobName, summary: Summary, place: &Place) -> Meant {
    let Summary { id: _, kind, status, fine_tuned_model, reason } = summary;
    if kind != Kind::FineTune {
        return Meant::Unfit(no_fine_tune(name, kind, place));
    }
    if let Some(model) = fine_tuned_model.filter(|model| !model.is_empty()) {
        return Meant::Model(TunedModel::Named(model));
    }
    let why = reason.unwrap_or_else(|| format!("it ended as {status}"));
    let hint = format!("`batchd retry {name}` asks for it again");
    Meant::Unfit(error(place, format!("the fine-tune `{name}` made no model: {why}")).hint(hint))
}

fn no_fine_tune(name: &JobName, kind: Kind, place: &Place) -> Diagnostic {
    error(place, format!("the job `{name}` is no fine-tune, but of kind `{kind}`"))
        .hint("`job:` is followed by the name of a fine-tune's job")
}

fn error(place: &Place, message: String) -> Diagnostic {
    Diagnostic::error(&place.file, place.line, place.column, message)
}

/// What a provider's own list of models makes doubtful: errors for a strict spec. Takes a few seconds at most.
pub(super) async fn doubts(checked: &Checked, catalogue: &Catalogue) -> Report {
    let mut doubts = Report::default();
    let Some(provider) = checked.queues.first().map(QueueName::provider) else { return doubts };
    let base = checked.fine_tune.as_ref().map(|fine_tune| fine_tune.model.as_str());
    let named: Vec<(&str, &Place)> = checked
        .queues
        .iter()
        .zip(&checked.queue_places)
        .filter_map(|(queue, place)| Some((queue.model().or(base)?, place)))
        .filter(|(model, _)| !model.starts_with("job:"))
        .collect();
    if named.is_empty() {
        return doubts;
    }
    let Some(listed) = catalogue.listed(provider).await else { return doubts };
    for (model, place) in named.into_iter().filter(|(model, _)| !listed.contains(model)) {
        let message = format!("the provider `{provider}` lists no model `{model}`");
        let near: Vec<String> = listed.nearest(model).iter().map(|name| format!("`{name}`")).collect();
        let hint = match near.as_slice() {
            [] => "`batchd models` shows what it lists".to_owned(),
            near => format!("did you mean {}?", near.join(" or ")),
        };
        let doubt = if checked.strict {
            error(place, message)
        } else {
            Diagnostic::warning(&place.file, place.line, place.column, message)
        };
        doubts.push(doubt.hint(hint));
    }
    doubts
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use bytes::Bytes;
    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use tokio::time::Instant;

    use super::*;
    use crate::domain::{JobStatus, PauseReason};
    use crate::intake::fixture::{Root, Running, id};
    use crate::provider::{self, HttpReply, HttpRequest, Provider, Transport, TransportError};
    use crate::spec;

    const TUNE: &str = "kind = 'fine_tune'\nmodel = 'gpt-4.1'\n[fine_tune]\ntraining_file = 'file-1'\n";

    fn uses(name: &str) -> String {
        format!("kind = 'moderations'\nmodel = 'job:{name}'\n[[requests]]\ninput = 'x'\n")
    }

    fn root() -> Root {
        let mut root = Root::new();
        let facts = |name: &str, strict| spec::ProviderFacts { name: name.to_owned(), strict };
        root.settings.spec.providers = vec![facts("p", false), facts("q", true)];
        root
    }

    fn running(root: Root) -> Running {
        Running::reading(root, spec::read)
    }

    fn models(intake: &Running, name: &str) -> Vec<(String, TunedModel)> {
        intake.store.state_of(name).job.settings.models.into_iter().collect()
    }

    fn summary(intake: &Running, name: &str, text: &str) {
        let folder = intake.root.settings.results.join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("summary.json"), text).unwrap();
    }

    /// Drops a spec and answers why it is refused.
    async fn refusal(intake: &Running, name: &str, text: &str) -> String {
        intake.root.drop_file(name, text);
        intake.idle().await;
        fs::read_to_string(intake.root.settings.jobs.join(format!("rejected/{name}.errors.txt"))).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_fine_tune_that_is_dropped_at_the_same_time_is_found_whatever_the_names() {
        for (tune, user) in [("a", "b"), ("b", "a")] {
            let root = root();
            root.drop_file(&format!("{tune}.toml"), TUNE);
            let line = format!(
                r#"{{"custom_id":"1","url":"/v1/embeddings","body":{{"model":"job:{tune}","input":"x"}}}}"#
            );
            root.drop_file(&format!("{user}.jsonl"), &line);
            let intake = running(root);
            intake.idle().await;
            let maker = intake.store.state_of(tune).job.id;
            assert_eq!(models(&intake, user), [(tune.to_owned(), TunedModel::Of(maker))]);
            let state = intake.store.state_of(user);
            assert_eq!(state.status, JobStatus::Paused { reason: PauseReason::FineTune });
            assert_eq!(state.job.queues[0].to_string(), format!("p/job:{tune}"));
            assert!(intake.root.rejected().is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_has_ended_gives_its_model_or_its_reason() {
        let intake = running(root());
        intake.root.drop_file("tune.toml", TUNE);
        intake.idle().await;
        let maker = intake.store.state_of("tune").job.id;
        intake.store.end("tune", JobStatus::Completed);

        intake.root.drop_file("early.toml", &uses("tune"));
        intake.idle().await;
        assert_eq!(models(&intake, "early"), [("tune".to_owned(), TunedModel::Of(maker))], "no summary");

        summary(&intake, "tune", r#"{"kind":"fine_tune","status":"completed","fine_tuned_model":"ft:x"}"#);
        intake.root.drop_file("late.toml", &uses("tune"));
        intake.idle().await;
        let named = [("tune".to_owned(), TunedModel::Named("ft:x".to_owned()))];
        assert_eq!(models(&intake, "late"), named);
        assert_eq!(intake.store.state_of("late").status, JobStatus::InProgress);

        summary(&intake, "tune", r#"{"kind":"fine_tune","status":"completed","reason":"the data is bad"}"#);
        let why = refusal(&intake, "bad.toml", &uses("tune")).await;
        assert_eq!(
            why,
            "bad.toml:2:9: error: the fine-tune `tune` made no model: the data is bad\n  hint: `batchd retry \
             tune` asks for it again\n"
        );
        summary(&intake, "tune", r#"{"kind":"fine_tune","status":"cancelled"}"#);
        let why = refusal(&intake, "worse.toml", &uses("tune")).await;
        assert!(why.contains("made no model: it ended as cancelled"), "{why}");

        // Asked for again, the new job stands in its place.
        intake.root.drop_file("again/job.toml", &format!("name = 'tune'\n{TUNE}"));
        intake.root.drop_file(&format!("again/{ORIGIN}"), &maker.to_string());
        intake.idle().await;
        intake.root.drop_file("good.toml", &uses("tune"));
        intake.idle().await;
        let again = intake.store.state_of("tune-2").job.id;
        assert_eq!(models(&intake, "good"), [("tune".to_owned(), TunedModel::Of(again))]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_of_which_only_results_are_left_and_that_was_asked_for_again_is_the_new_one() {
        let intake = running(root());
        let gone = id(1);
        summary(&intake, "tune", &format!(r#"{{"id":"{gone}","kind":"fine_tune","status":"completed"}}"#));
        let why = refusal(&intake, "early.toml", &uses("tune")).await;
        assert!(why.contains("made no model: it ended as completed"), "{why}");
        intake.root.drop_file("again/job.toml", &format!("name = 'tune-2'\n{TUNE}"));
        intake.root.drop_file(&format!("again/{ORIGIN}"), &gone.to_string());
        intake.root.drop_file("user.toml", &uses("tune"));
        intake.idle().await;
        let again = intake.store.state_of("tune-2").job.id;
        assert_eq!(models(&intake, "user"), [("tune".to_owned(), TunedModel::Of(again))]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_only_its_results_know_of_is_found_there() {
        let intake = running(root());
        summary(&intake, "old", r#"{"kind":"fine_tune","status":"completed","fine_tuned_model":"ft:old"}"#);
        summary(&intake, "chat", r#"{"kind":"chat","status":"completed"}"#);
        summary(&intake, "torn", "{");
        intake.root.drop_file("a.toml", &uses("old"));
        intake.idle().await;
        assert_eq!(models(&intake, "a"), [("old".to_owned(), TunedModel::Named("ft:old".to_owned()))]);
        let why = refusal(&intake, "b.toml", &uses("chat")).await;
        assert!(
            why.starts_with("b.toml:2:9: error: the job `chat` is no fine-tune, but of kind `chat`"),
            "{why}"
        );
        let why = refusal(&intake, "c.toml", &uses("torn")).await;
        assert!(why.starts_with("c.toml:2:9: error: no fine-tune is called `torn`"), "{why}");
        let why = refusal(&intake, "d.toml", &uses("a")).await;
        assert!(why.contains("the job `a` is no fine-tune, but of kind `moderations`"), "{why}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_at_another_provider_is_refused() {
        let intake = running(root());
        intake.root.drop_file("tune.toml", &format!("provider = 'q'\n{TUNE}"));
        intake.idle().await;
        let why = refusal(&intake, "a.toml", &uses("tune")).await;
        assert!(
            why.contains("lies at the provider `q`\n  hint: this job is for `p`: write `provider = \"q\"`"),
            "{why}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn specs_that_wait_for_what_nobody_drops_are_refused_and_do_not_wait_for_each_other() {
        let root = root();
        for name in ["a", "b", "c"] {
            root.drop_file(&format!("{name}.toml"), &uses("tunes"));
        }
        root.drop_file("tune.toml", TUNE);
        let intake = running(root);
        let began = Instant::now();
        intake.idle().await;
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(intake.store.job_names(), ["tune"]);
        let why = fs::read_to_string(intake.root.settings.jobs.join("rejected/a.toml.errors.txt")).unwrap();
        assert_eq!(
            why,
            "a.toml:2:9: error: no fine-tune is called `tunes`\n  hint: did you mean `job:tune`?\n"
        );
        assert_eq!(intake.root.rejected().len(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn a_spec_waits_as_long_as_another_settles_and_no_longer() {
        let intake = running(root());
        intake.idle().await;
        intake.root.drop_file("user.toml", &uses("other"));
        for round in 0..5 {
            // Somebody writes to it again and again.
            intake.root.drop_file("other.toml", &format!("{TUNE}# {}", "x".repeat(round)));
            tokio::time::sleep(Duration::from_millis(900)).await;
            let status = intake.handle.look().await;
            assert_eq!((status.pending, intake.store.accepted().len()), (2, 0), "{status:?}");
        }
        intake.idle().await;
        assert_eq!(intake.store.job_names(), ["other", "user"]);
        assert!(intake.root.rejected().is_empty());
    }

    /// Answers every question with a list of models, or never.
    struct Lists {
        models: Option<&'static str>,
        asked: Mutex<u32>,
    }

    impl fmt::Debug for Lists {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Lists")
        }
    }

    impl Transport for Lists {
        fn exchange(&self, request: HttpRequest) -> BoxFuture<'_, Result<HttpReply, TransportError>> {
            assert_eq!(request.url.path(), "/v1/models");
            *self.asked.lock().unwrap() += 1;
            let Some(models) = self.models else { return std::future::pending().boxed() };
            let body = Bytes::from_static(models.as_bytes());
            let reply = HttpReply { status: 200, headers: reqwest::header::HeaderMap::new(), body };
            std::future::ready(Ok(reply)).boxed()
        }
    }

    fn asking(models: Option<&'static str>) -> (Running, Arc<Lists>) {
        let lists = Arc::new(Lists { models, asked: Mutex::default() });
        let provider = |name: &str| {
            let settings = provider::Settings {
                name: name.to_owned(),
                base_url: "http://localhost/v1".parse().unwrap(),
                api_key: None,
                custom: provider::Custom::default(),
                timeout: Duration::from_mins(1),
                waits: provider::Waits::default(),
                max_reply: 1 << 20,
                flex_timeout: Duration::from_mins(15),
                stream: false,
            };
            Provider::new(settings, Arc::clone(&lists) as Arc<dyn Transport>)
        };
        let catalogue = Catalogue::new(vec![provider("p"), provider("q")]);
        (Running::asking(root(), spec::read, Some(Arc::new(catalogue))), lists)
    }

    const LISTED: &str = r#"{"data":[{"id":"gpt-4.1"},{"id":"gpt-4.1-mini"},{"id":"curie"}]}"#;

    fn line(model: &str) -> String {
        format!(
            r#"{{"custom_id":"{model}","url":"/v1/embeddings","body":{{"model":"{model}","input":"x"}}}}"#
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_that_the_provider_does_not_list_is_told_and_refused_if_the_spec_is_strict() {
        let (intake, lists) = asking(Some(LISTED));
        let lines = [line("gpt-4.1"), line("gpt-4.1-mimi")].join("\n");
        intake.root.drop_file("loose.jsonl", &lines);
        intake.idle().await;
        assert_eq!(intake.store.job_names(), ["loose"], "a doubt refuses nothing");
        intake.root.drop_file("inputs/rows.jsonl", &lines);
        let strict = "kind = 'requests'\nstrict = true\n[input]\nfile = 'inputs/rows.jsonl'\n";
        let why = refusal(&intake, "strict.toml", strict).await;
        assert_eq!(
            why,
            "inputs/rows.jsonl:2: error: the provider `p` lists no model `gpt-4.1-mimi`\n  hint: did you mean \
             `gpt-4.1-mini`?\n"
        );
        let top = "kind = 'moderations'\nprovider = 'q'\nmodel = 'whisper'\n[[requests]]\ninput = 'x'\n";
        let why = refusal(&intake, "provider.toml", top).await;
        assert!(
            why.starts_with("provider.toml:3:9: error: the provider `q` lists no model `whisper`"),
            "{why}"
        );
        assert_eq!(*lists.asked.lock().unwrap(), 2, "each provider once");
    }

    #[tokio::test(start_paused = true)]
    async fn the_base_of_a_fine_tune_is_looked_up_and_the_model_that_it_makes_is_not() {
        let (intake, lists) = asking(Some(LISTED));
        let tune = TUNE.replace("gpt-4.1", "gpt-4.2");
        let why = refusal(&intake, "tune.toml", &format!("strict = true\n{tune}")).await;
        assert!(why.starts_with("tune.toml:3:9: error: the provider `p` lists no model `gpt-4.2`"), "{why}");
        let legacy =
            "strict = true\nkind = 'fine_tune'\n[fine_tune]\napi = 'legacy'\ntraining_file = 'file-1'\n";
        intake.root.drop_file("legacy.toml", legacy);
        intake.root.drop_file("user.toml", &format!("strict = true\n{}", uses("legacy")));
        intake.root.drop_file("none.images.jsonl", r#"{"prompt":"a cat"}"#);
        intake.idle().await;
        assert_eq!(intake.store.job_names(), ["legacy", "none", "user"]);
        assert_eq!(*lists.asked.lock().unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_gives_no_list_holds_nothing_up() {
        let (intake, lists) = asking(None);
        let began = Instant::now();
        for name in ["a", "b", "c"] {
            intake.root.drop_file(&format!("{name}.jsonl"), &line(name));
        }
        intake.idle().await;
        assert_eq!(intake.store.job_names(), ["a", "b", "c"]);
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(*lists.asked.lock().unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_does_not_wait_for_the_list() {
        let (intake, lists) = asking(None);
        intake.root.drop_file("a.jsonl", &line("a"));
        while *lists.asked.lock().unwrap() == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let began = Instant::now();
        let (root, ended) = intake.end().await;
        ended.unwrap();
        assert!(began.elapsed() < Duration::from_millis(10), "{:?}", began.elapsed());
        assert!(root.waiting().is_empty() && root.job_folders().len() == 1, "it was read and is a job");
    }
}
