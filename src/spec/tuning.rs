//! What a spec of kind `fine_tune` says: its `[fine_tune]`, made into the body of the create call.

use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::DeValue;

use crate::diag::Diagnostic;
use crate::domain::TuningApi;
use crate::reading::problem::shown;
use crate::spec::document::{Placed, Section, meant, type_of};
use crate::spec::line::MODEL_BYTES_MAX;
use crate::spec::name::job_of_model;
use crate::spec::schema::Reader;
use crate::spec::tuning_table::{self, Method, Parameter, Place, parameters};
use crate::training::Expected;

/// The model that the legacy interface trains when it is told none.
const LEGACY_MODEL: &str = "curie";
/// So often it goes through the data when it is told nothing; today's interface chooses by the number of examples.
const LEGACY_EPOCHS: u32 = 4;
const LEGACY_MODELS: [&str; 4] = ["ada", "babbage", "curie", "davinci"];

/// A fine-tune as its spec says it.
#[derive(Debug)]
pub(super) struct Tuning {
    pub(super) api: TuningApi,
    /// A path, or the id of an uploaded file.
    pub(super) training: Placed<String>,
    pub(super) validation: Option<Placed<String>>,
    /// See [`FineTune::body`](crate::domain::FineTune::body).
    pub(super) body: Map<String, Value>,
    pub(super) delete_uploads: bool,
    pub(super) expected: Expected,
    /// None: the provider chooses.
    pub(super) epochs: Option<u32>,
}

/// The members of a body of `/fine_tuning/jobs`, as they are found.
#[derive(Debug, Default)]
struct JobsBody {
    method: Method,
    /// The spec names a method.
    is_named: bool,
    top: Map<String, Value>,
    /// Of `method.<type>`.
    within: Map<String, Value>,
    hyperparameters: Map<String, Value>,
}

impl<'d> Reader<'d, '_> {
    /// None: it was refused, and the report says why.
    pub(super) fn tuning(
        &mut self,
        top: &mut Section<'d, 'd>,
        model: Option<&Placed<String>>,
    ) -> Option<Tuning> {
        for key in ["parameters", "input", "requests"] {
            if top.take(key).is_some() {
                let hint = "the API's parameters and the data's paths stand in `[fine_tune]`";
                self.error(top.key_offset(key), format!("kind `fine_tune` takes no `{key}`"), hint);
            }
        }
        let Some(mut section) = top.section("fine_tune", "[fine_tune]", self.report) else {
            if top.take("fine_tune").is_none() {
                let found = Diagnostic::error(self.document.file, 0, 0, "missing `[fine_tune]`");
                self.report.push(found.hint("it holds `training_file` and the API's parameters"));
            }
            return None;
        };
        let apis = TuningApi::ALL.map(|api| (api.as_str(), api));
        let api = section.word("api", &apis, self.report);
        if api.is_none() && section.take("api").is_some() {
            return None;
        }
        let api = api.unwrap_or_default();
        let training = self.data_file(&mut section, "training_file");
        if section.take("training_file").is_none() {
            let hint = "the path of a .jsonl, or the id of an uploaded file";
            self.error(section.offset, "missing `training_file` in [fine_tune]", hint);
        }
        let validation = self.data_file(&mut section, "validation_file");
        let delete_uploads = section.boolean("delete_uploads", self.report).unwrap_or(false);
        let model = self.base_model(top, model, api);
        let (mut body, method) = match api {
            TuningApi::Jobs => self.jobs_body(&mut section),
            TuningApi::Legacy => (self.legacy_body(&mut section), Method::Supervised),
        };
        self.refuse_others(&mut section, api);
        section.finish_with(self.report, |key| {
            let is_at_top = ["model", "name", "provider", "priority", "deadline", "strict"].contains(&key);
            is_at_top.then(|| format!("`{key}` stands at the top of the spec, above `[fine_tune]`"))
        });
        let model = model?;
        let epochs = body
            .get("n_epochs")
            .or_else(|| body.get("method")?.get(method.as_str())?.get("hyperparameters")?.get("n_epochs"));
        let epochs = epochs.and_then(Value::as_u64).and_then(|epochs| u32::try_from(epochs).ok());
        let epochs = epochs.or_else(|| (api == TuningApi::Legacy).then_some(LEGACY_EPOCHS));
        let expected = match (api, method) {
            (TuningApi::Legacy, _) => Expected::Pairs,
            (TuningApi::Jobs, Method::Supervised) => Expected::supervised(&model),
            (TuningApi::Jobs, Method::Dpo) => Expected::Preferences,
            (TuningApi::Jobs, Method::Reinforcement) => Expected::Prompts,
        };
        body.insert("model".to_owned(), model.into());
        Some(Tuning { api, training: training?, validation, body, delete_uploads, expected, epochs })
    }

    fn data_file(&mut self, section: &mut Section<'d, 'd>, key: &'static str) -> Option<Placed<String>> {
        let file = section.string(key, self.report)?;
        if file.value.is_empty() {
            self.error(file.offset, format!("`{key}` is empty"), "");
            return None;
        }
        self.file_name(key, file)
    }

    fn base_model(
        &mut self,
        top: &mut Section<'d, 'd>,
        model: Option<&Placed<String>>,
        api: TuningApi,
    ) -> Option<String> {
        let Some(model) = model else {
            // One of a wrong type has been reported as that.
            if top.take("model").is_none() && api == TuningApi::Jobs {
                let message = "missing `model`, which kind `fine_tune` needs";
                let found = Diagnostic::error(self.document.file, 0, 0, message);
                self.report.push(found.hint("write `model = \"…\"` with the model to begin with"));
            }
            return (api == TuningApi::Legacy).then(|| LEGACY_MODEL.to_owned());
        };
        let name = model.value.as_str();
        if name.len() > MODEL_BYTES_MAX {
            let message = format!("`model` has {} bytes, at most {MODEL_BYTES_MAX} are allowed", name.len());
            self.error(model.offset, message, "");
        } else if let Some(Err(why)) = job_of_model(name) {
            let message = format!("`model` is {}, and no job can be called so: {why}", shown(name));
            self.error(model.offset, message, "`job:` is followed by the name of a fine-tune's job");
        } else if api == TuningApi::Legacy && !name.contains(':') && !LEGACY_MODELS.contains(&name) {
            let mut all = LEGACY_MODELS.map(|model| format!("`{model}`")).to_vec();
            all.push("models fine-tuned from them; others need `api = \"jobs\"`".to_owned());
            let message = format!("{} is no model of the legacy interface", shown(name));
            self.error(model.offset, message, &meant(name, LEGACY_MODELS, &all));
        }
        Some(model.value.clone())
    }

    fn legacy_body(&mut self, section: &mut Section<'d, 'd>) -> Map<String, Value> {
        let mut body = Map::new();
        for parameter in parameters(TuningApi::Legacy) {
            let value = section.take(parameter.name);
            if let Some(json) = value.and_then(|v| parameter.read(v, self.document, self.report)) {
                body.insert(parameter.name.to_owned(), json);
            }
        }
        let mut need = |key: &'static str, needed: &[&'static str], hint: &str| {
            if !needed.iter().any(|key| section.take(key).is_some()) {
                let all: Vec<String> = needed.iter().map(|key| format!("`{key}`")).collect();
                self.error(section.key_offset(key), format!("`{key}` needs {}", all.join(" or ")), hint);
            }
        };
        if body.get("compute_classification_metrics") == Some(&Value::Bool(true)) {
            let key = "compute_classification_metrics";
            need(key, &["validation_file"], "the metrics are those of the validation data");
            let hint = "the number of classes, or the one that counts as positive of two";
            need(key, &["classification_n_classes", "classification_positive_class"], hint);
        }
        if body.contains_key("classification_betas") {
            let hint = "F-beta scores are those of two classes, one of them positive";
            need("classification_betas", &["classification_positive_class"], hint);
        }
        body
    }

    fn jobs_body(&mut self, section: &mut Section<'d, 'd>) -> (Map<String, Value>, Method) {
        let mut body = JobsBody::default();
        if let Some(value) = section.take("method") {
            body.is_named = true;
            self.method(section, value, &mut body);
        }
        if let Some(table) = section.section("hyperparameters", "`hyperparameters`", self.report) {
            self.hyperparameters(table, &mut body);
        }
        for parameter in parameters(TuningApi::Jobs) {
            self.take_parameter(section, parameter, &mut body);
        }
        if body.method == Method::Reinforcement && !body.within.contains_key("grader") {
            let at = section.key_offset("method");
            let hint = "a table that says how answers are graded";
            self.error(at, "method `reinforcement` needs a `grader`", hint);
        }
        let method = body.method;
        (body.into_json(), method)
    }

    /// `method`, a word or the API's own table.
    fn method(
        &mut self,
        section: &mut Section<'d, 'd>,
        value: &'d Spanned<DeValue<'d>>,
        body: &mut JobsBody,
    ) {
        if value.get_ref().is_str() {
            body.method = section.word("method", &Method::WORDS, self.report).unwrap_or_default();
            return;
        }
        let Some(mut table) =
            value.get_ref().is_table().then(|| section.section("method", "`method`", self.report)).flatten()
        else {
            let expected = "`\"supervised\"`, `\"dpo\"`, `\"reinforcement\"` or a table with its `type`";
            let message = format!("`method` is {}, expected {expected}", type_of(value.get_ref()));
            return self.error(value.span().start, message, "");
        };
        if table.take("type").is_none() {
            self.error(value.span().start, "missing `type` in `method`", "supervised, dpo or reinforcement");
        }
        body.method = table.word("type", &Method::WORDS, self.report).unwrap_or_default();
        for (word, method) in Method::WORDS {
            let Some(mut within) = table.section(word, "`method`", self.report) else { continue };
            if method != body.method {
                let message = format!("`{word}` does not fit the type `{}`", body.method.as_str());
                self.error(table.key_offset(word), message, "");
                continue;
            }
            if let Some(table) = within.section("hyperparameters", "`hyperparameters`", self.report) {
                self.hyperparameters(table, body);
            }
            for parameter in parameters(TuningApi::Jobs) {
                if parameter.place == Place::Method(method) {
                    self.take_parameter(&mut within, parameter, body);
                }
            }
            within.finish(self.report);
        }
        table.finish(self.report);
    }

    fn hyperparameters(&mut self, mut table: Section<'d, 'd>, body: &mut JobsBody) {
        for parameter in parameters(TuningApi::Jobs) {
            if matches!(parameter.place, Place::Hyperparameters(_)) {
                self.take_parameter(&mut table, parameter, body);
            }
        }
        table.finish(self.report);
    }

    fn take_parameter(
        &mut self,
        section: &mut Section<'d, 'd>,
        parameter: &'static Parameter,
        body: &mut JobsBody,
    ) {
        let Some(value) = section.take(parameter.name) else { return };
        let Some(json) = parameter.read(value, self.document, self.report) else { return };
        let (name, at) = (parameter.name, section.key_offset(parameter.name));
        let (method, into) = match parameter.place {
            Place::Body => (None, &mut body.top),
            Place::Method(method) => (Some(method), &mut body.within),
            Place::Hyperparameters(method) => (method, &mut body.hyperparameters),
        };
        if let Some(method) = method.filter(|method| *method != body.method) {
            let word = method.as_str();
            let hint = format!("write `method = \"{word}\"`, or leave it out");
            self.error(at, format!("`{name}` fits method `{word}` alone"), &hint);
        } else if into.insert(name.to_owned(), json).is_some() {
            self.error(at, format!("`{name}` stands in `[fine_tune]` twice"), "leave one");
        }
    }

    /// Parameters that only the other interface has.
    fn refuse_others(&mut self, section: &mut Section<'d, 'd>, api: TuningApi) {
        let (own, other) = match api {
            TuningApi::Jobs => (parameters(api), TuningApi::Legacy),
            TuningApi::Legacy => (parameters(api), TuningApi::Jobs),
        };
        let tables = tuning_table::TABLES.into_iter().filter(|_| api == TuningApi::Legacy);
        for name in parameters(other).iter().map(|parameter| parameter.name).chain(tables) {
            if own.iter().any(|parameter| parameter.name == name) || section.take(name).is_none() {
                continue;
            }
            let message = format!("`{name}` is no parameter of `api = \"{}\"`", api.as_str());
            self.error(section.key_offset(name), message, &tuning_table::hint_of_other(name, api));
        }
    }
}

impl JobsBody {
    fn into_json(self) -> Map<String, Value> {
        let Self { method, is_named, top: mut body, mut within, hyperparameters } = self;
        if !hyperparameters.is_empty() {
            within.insert("hyperparameters".to_owned(), hyperparameters.into());
        }
        if is_named || !within.is_empty() {
            let mut members = Map::new();
            members.insert("type".to_owned(), method.as_str().into());
            if !within.is_empty() {
                members.insert(method.as_str().to_owned(), within.into());
            }
            body.insert("method".to_owned(), members.into());
        }
        body
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::spec::trial::Trial;

    const HEAD: &str = "kind = \"fine_tune\"\nmodel = \"m\"\n[fine_tune]\ntraining_file = \"file-1\"\n";
    const LEGACY: &str =
        "kind = \"fine_tune\"\nmodel = \"ada\"\n[fine_tune]\ntraining_file = \"file-1\"\napi = \"legacy\"\n";

    fn body(rest: &str) -> Value {
        let accepted = Trial::new().with("a.toml", format!("{HEAD}{rest}")).read("a.toml").unwrap();
        let mut body = accepted.fine_tune.unwrap().body;
        body.remove("model");
        Value::Object(body)
    }

    #[test]
    fn hyperparameters_stand_below_their_method_wherever_they_were_written() {
        let dpo =
            json!({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1, "n_epochs": "auto"}}}});
        for rest in [
            "method = 'dpo'\nbeta = 0.1\nn_epochs = 'auto'\n",
            "method = 'dpo'\nbeta = 0.1\nhyperparameters = { n_epochs = 'auto' }\n",
            "method = { type = 'dpo', dpo = { hyperparameters = { n_epochs = 'auto', beta = 0.1 } } }\n",
            "beta = 0.1\n[fine_tune.method]\ntype = 'dpo'\n[fine_tune.method.dpo.hyperparameters]\nn_epochs = 'auto'\n",
        ] {
            assert_eq!(body(rest), dpo, "{rest}");
        }
        let supervised =
            json!({"method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 2}}}});
        assert_eq!(body("hyperparameters = { batch_size = 2 }\n"), supervised);
        assert_eq!(body("method = 'dpo'\n"), json!({"method": {"type": "dpo"}}));
        assert_eq!(body("suffix = 'x'\n"), json!({"suffix": "x"}));
    }

    #[test]
    fn what_else_the_api_takes_goes_along() {
        let rest = r#"
method = "reinforcement"
grader = { type = "string_check", name = "exact" }
reasoning_effort = "low"
eval_interval = 5
integrations = [{ type = "wandb", wandb = { project = "p" } }]
"#;
        let expected = json!({
            "integrations": [{"type": "wandb", "wandb": {"project": "p"}}],
            "method": {"type": "reinforcement", "reinforcement": {
                "grader": {"type": "string_check", "name": "exact"},
                "hyperparameters": {"reasoning_effort": "low", "eval_interval": 5},
            }},
        });
        assert_eq!(body(rest), expected);
    }

    /// Each spec is refused, in the words beside it.
    fn assert_refused(specs: impl IntoIterator<Item = (String, &'static str)>) {
        for (spec, expected) in specs {
            let trial = Trial::new().with("a.toml", &spec);
            let trial = trial.with("a.csv", "").with("a.jsonl", "").with("b.jsonl", "");
            let report = trial.refused("a.toml");
            assert!(report.contains(expected), "{spec}\n{expected}\n{report}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn values_out_of_their_ranges_are_refused_with_their_places() {
        let table = [
            ("suffix = 7\n", "a.toml:5:10: error: `suffix` is 7, expected a text of 1 to 64 characters"),
            ("seed = -1\n", "`seed` is -1, expected an integer from 0 to 2147483647"),
            ("n_epochs = 51\n", "a.toml:5:12: error: `n_epochs` is 51, expected `\"auto\"` or an integer from 1 to 50"),
            ("n_epochs = 'atuo'\n", "`n_epochs` is `atuo`, expected `\"auto\"`"),
            ("batch_size = 3.0\n", "`batch_size` is 3.0, expected"),
            ("learning_rate_multiplier = 0\n", "`learning_rate_multiplier` is 0, expected `\"auto\"` or a number above 0"),
            ("method = 'dpo'\nbeta = 2.5\n", "`beta` is 2.5, expected `\"auto\"` or a number above 0, at most 2"),
            ("metadata = { batchd_job = 'x' }\n", "a.toml:5:12: error: `metadata`: `batchd_job` is batchd's own"),
            ("integrations = [{ type = 'wandb' }]\n", "`integrations`: an integration of type `wandb` lacks the `project`"),
            ("delete_uploads = 'yes'\n", "`delete_uploads` is a string, expected true or false"),
            ("validation_file = ''\n", "`validation_file` is empty"),
        ];
        assert_refused(table.map(|(rest, expected)| (format!("{HEAD}{rest}"), expected)));
        let long = format!("{HEAD}suffix = '{}'\n", "x".repeat(65));
        assert_refused([(long, "`suffix` is a text of 65 characters, expected a text of 1 to 64")]);
    }

    #[test]
    #[rustfmt::skip]
    fn keys_that_do_not_fit_are_refused_with_what_was_meant() {
        let table = [
            ("sufix = 'x'\n", "a.toml:5:1: error: unknown key `sufix` in [fine_tune]\n  hint: did you mean `suffix`?"),
            ("beta = 0.1\n", "a.toml:5:1: error: `beta` fits method `dpo` alone\n  hint: write `method = \"dpo\"`"),
            ("grader = {}\n", "`grader` fits method `reinforcement` alone"),
            ("method = 'reinforcement'\n", "a.toml:5:1: error: method `reinforcement` needs a `grader`"),
            ("method = 'dpoo'\n", "a.toml:5:10: error: unknown method `dpoo`\n  hint: did you mean `dpo`?"),
            ("method = 7\n", "`method` is an integer, expected `\"supervised\"`"),
            ("method = {}\n", "missing `type` in `method`"),
            ("method = { type = 'dpo', supervised = {} }\n", "`supervised` does not fit the type `dpo`"),
            ("method = { type = 'dpo', dpo = { hyperparameter = {} } }\n", "unknown key `hyperparameter` in `method`\n  hint: did you mean `hyperparameters`?"),
            ("n_epochs = 1\nhyperparameters = { n_epochs = 2 }\n", "`n_epochs` stands in `[fine_tune]` twice"),
            ("hyperparameters = { epochs = 2 }\n", "unknown key `epochs` in `hyperparameters`"),
            ("prompt_loss_weight = 0.1\n", "a.toml:5:1: error: `prompt_loss_weight` is no parameter of `api = \"jobs\"`\n  hint: today's interface has nothing"),
            ("api = 'lagacy'\n", "unknown api `lagacy`\n  hint: did you mean `legacy`?"),
            ("model = 'm'\n", "hint: `model` stands at the top of the spec"),
            ("[parameters]\nn_epochs = 1\n", "error: kind `fine_tune` takes no `parameters`"),
            ("[input]\nfile = 'a.csv'\n", "kind `fine_tune` takes no `input`"),
            ("[[requests]]\nprompt = 'x'\n", "kind `fine_tune` takes no `requests`"),
        ];
        assert_refused(table.map(|(rest, expected)| (format!("{HEAD}{rest}"), expected)));
    }

    #[test]
    #[rustfmt::skip]
    fn what_the_legacy_interface_does_not_take_is_refused() {
        let table = [
            ("seed = 1\n", "`seed` is no parameter of `api = \"legacy\"`\n  hint: leave it out, or write `api = \"jobs\"`"),
            ("method = 'dpo'\n", "`method` is no parameter of `api = \"legacy\"`"),
            ("n_epochs = 'auto'\n", "`n_epochs` is `auto`, expected an integer from 1"),
            ("compute_classification_metrics = true\n", "`compute_classification_metrics` needs `validation_file`"),
            ("compute_classification_metrics = true\n", "needs `classification_n_classes` or `classification_positive_class`"),
            ("classification_betas = [1]\n", "`classification_betas` needs `classification_positive_class`"),
        ];
        assert_refused(table.map(|(rest, expected)| (format!("{LEGACY}{rest}"), expected)));
        assert_refused([
            (format!("{LEGACY}suffix = '{}'\n", "x".repeat(41)), "expected a text of 1 to 40 characters"),
            (LEGACY.replace("ada", "adda"), "a.toml:2:9: error: `adda` is no model of the legacy interface\n  hint: did you mean `ada`?"),
            (LEGACY.replace("ada", "gpt-4.1"), "others need `api = \"jobs\"`"),
        ]);
        let tuned = LEGACY.replace("ada", "ada:ft-org:sums-2022-05-01-10-00-00");
        assert!(Trial::new().with("a.toml", tuned).read("a.toml").is_ok());
    }

    #[test]
    #[rustfmt::skip]
    fn what_is_missing_or_stands_elsewhere_is_named() {
        let bare = "kind = \"fine_tune\"\nmodel = \"m\"\nsuffix = \"x\"\n".to_owned();
        assert_refused([
            (HEAD.replace("model = \"m\"\n", ""), "a.toml: error: missing `model`, which kind `fine_tune` needs"),
            (HEAD.replace("\"m\"", "\"\""), "a.toml:2:9: error: `model` is empty"),
            (HEAD.replace("\"m\"", "\"job:a/b\""), "a.toml:2:9: error: `model` is `job:a/b`, and no job can be called so: "),
            (HEAD.replace("training_file", "validation_file"), "missing `training_file` in [fine_tune]"),
            (HEAD.replace("file-1", "none.jsonl"), "a.toml:4:17: error: `training_file`: there is no file `none.jsonl`"),
            (HEAD.replace("file-1", "../x.jsonl"), "leads out of its folder"),
            (HEAD.replace("file-1", "*.jsonl"), "`*.jsonl` matches 2 files, expected one"),
            (HEAD.replace("file-1", "a.csv"), "`a.csv` is no .jsonl\n  hint: `batchd prepare FILE` makes one of it"),
            (bare.clone(), "a.toml: error: missing `[fine_tune]`"),
            (bare, "unknown key `suffix`\n  hint: put `suffix` under `[fine_tune]`"),
            ("kind = \"chat\"\nmodel = \"m\"\n[fine_tune]\n".to_owned(), "`[fine_tune]` fits kind `fine_tune` alone"),
        ]);
    }
}
