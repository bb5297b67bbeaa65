//! Fine-tunes, and jobs that use their models, among the jobs of an ordeal.

use std::fmt::Write;
use std::fs;
use std::time::Duration;

use batchd::domain::TuningApi;
use batchd::simulate::{Act, Changes};
use serde_json::Value;

use super::ordeal::{Ordeal, PROMPT};
use crate::world::eventually;

/// A fine-tune that was dropped.
pub(super) struct Tune {
    pub(super) job: String,
    is_cancelled: bool,
}

impl Ordeal {
    /// Drops a fine-tune with a file of its own, which is deleted in the end.
    pub(super) fn drop_fine_tune(&mut self, job: &str, api: TuningApi) {
        let (model, line) = match api {
            TuningApi::Jobs => (
                "gpt-4.1-mini",
                format!(
                    r#"{{"messages":[{{"role":"user","content":"N {PROMPT} N"}},{{"role":"assistant","content":"N"}}]}}"#
                ),
            ),
            TuningApi::Legacy => {
                ("curie", format!(r#"{{"prompt":"N {PROMPT} N ->","completion":" N\nEND"}}"#))
            }
        };
        let lines = (0..12).fold(String::new(), |mut lines, n| {
            writeln!(lines, "{}", line.replace('N', &n.to_string())).unwrap();
            lines
        });
        self.world.input(&format!("{job}.jsonl"), lines);
        let spec = format!(
            "kind = 'fine_tune'\nmodel = '{model}'\n[fine_tune]\napi = '{}'\ntraining_file = 'inputs/{job}.jsonl'\n\
             delete_uploads = true\n",
            api.as_str()
        );
        self.world.drop(&format!("{job}.toml"), spec);
        self.tunes.push(Tune { job: job.to_owned(), is_cancelled: false });
    }

    /// Drops a job that uses the model of a fine-tune.
    pub(super) fn drop_user(&mut self, job: &str, tune: &str) {
        let line = |n: usize| {
            let body = format!(
                r#"{{"model":"job:{tune}","messages":[{{"role":"user","content":"{PROMPT} {job} {n}"}}]}}"#
            );
            format!(
                "{{\"custom_id\":\"u-{n}\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{body}}}\n"
            )
        };
        self.world.drop(&format!("{job}.jsonl"), (0..3).map(line).collect::<String>());
        self.note(job, ".jsonl");
        self.users.insert(job.to_owned(), tune.to_owned());
    }

    /// What a user's job sent: the model by its real name.
    pub(super) fn with_model(&self, job: &str, input: String) -> String {
        let Some(tune) = self.users.get(job) else { return input };
        let output = self.world.results(tune).output();
        let model = output[0]["response"]["body"]["fine_tuned_model"].as_str().unwrap();
        input.replace(&format!("job:{tune}"), model)
    }

    /// The next requests that do this lose their replies.
    pub(super) fn lose(&self, mishaps: &str) {
        let mishaps = Some(mishaps.parse().unwrap());
        self.world.change(Changes { mishaps, ..Changes::default() });
    }

    /// Fine-tunes that are created from now on take so long at the provider.
    pub(super) fn tune_for(&self, time: Duration) {
        self.world.change(Changes { fine_tune_time: Some(time), ..Changes::default() });
    }

    /// Cancels the last fine-tune when it runs at the provider.
    pub(super) fn cancel_last(&mut self) {
        let tune = self.tunes.last_mut().unwrap();
        tune.is_cancelled = true;
        let job = tune.job.clone();
        eventually("a memo of a fine-tune that runs", || {
            let folders =
                fs::read_dir(self.world.path("root/state/jobs")).unwrap().map(|entry| entry.unwrap().path());
            let text = |path| fs::read_to_string(path).unwrap_or_default();
            let ours = folders.filter(|folder| text(folder.join("state.json")).contains(&job));
            let memos: String = ours.map(|folder| text(folder.join("memo-0.json"))).collect();
            memos.contains("\"id\":\"ft").then_some(())
        });
        // The daemon may die of it before it has answered.
        let output = self.world.batchd(&["cancel", &job]);
        assert!(matches!(output.code, Some(0 | 69)), "{output:?}");
    }

    fn done(&self, act: Act) -> usize {
        self.world.engine().entries().iter().filter(|entry| entry.effect == Some(act)).count()
    }

    /// Everything has ended: each fine-tune in one record, with one file and one job at the provider at the most.
    pub(super) fn judge_fine_tunes(&self) {
        let mut at_provider = Vec::new();
        for Tune { job, is_cancelled } in &self.tunes {
            let results = self.world.results(job);
            let records: Vec<Value> = results.output().into_iter().chain(results.errors()).collect();
            assert_eq!(records.len(), 1, "{job}: {records:?}");
            let record = &records[0];
            let is_fine = record["error"].is_null() && record["response"]["body"]["status"] == "succeeded";
            assert!(is_fine || *is_cancelled && record["error"]["code"] == "cancelled", "{job}: {record}");
            at_provider.extend(record["response"]["body"]["id"].as_str().map(str::to_owned));
        }
        let entries = self.world.engine().entries();
        let created = entries.iter().filter(|entry| entry.effect == Some(Act::Create));
        let mut created: Vec<String> = created.map(|entry| entry.object.clone().unwrap()).collect();
        created.sort();
        at_provider.sort();
        assert_eq!(created, at_provider, "one job each, and none that nobody knows");
        let (uploads, tunes) = (self.done(Act::Upload), self.tunes.len());
        assert!((created.len()..=tunes).contains(&uploads), "{uploads} uploads of {tunes} files");
        assert_eq!(self.done(Act::Delete), uploads, "every file was deleted, and once");
    }
}
