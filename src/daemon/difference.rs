//! What a configuration that was read again changes: which of its keys can hold at once, and which need a restart.
//!
//! # Invariants
//!
//! - Every key is taken apart by name here, without `..`: one that is added to the configuration does not compile
//!   before somebody has said what a reload does with it.
//! - A provider at another address, or with other endpoints, is another server: nothing of what is written for it, least of all its key, goes
//!   to the old one.

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::config::{self, Concurrency, Config};
use crate::domain::RetryPolicy;

/// The keys that differ, as a person finds them in the file. Never their values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// They hold now.
    pub(super) applied: Vec<String>,
    /// They hold after a restart.
    pub(super) needs_restart: Vec<String>,
}

/// Takes over into `running` what of `new` can hold at once.
pub(super) fn take_over(running: &mut Config, new: Config) -> Difference {
    let mut found = Difference::default();
    let Config { root, intake, providers, retry, shutdown, log, control, http, storage, zone } = new;

    let config::Intake { rescan, settle, input_dirs, max_line } = intake;
    let held = &mut running.intake;
    found.live("[intake] rescan", &mut held.rescan, rescan);
    found.live("[intake] settle", &mut held.settle, settle);
    found.live("[intake] input_dirs", &mut held.input_dirs, input_dirs);
    found.live("[intake] max_line", &mut held.max_line, max_line);

    found.providers(&mut running.providers, providers);

    let RetryPolicy { max_attempts, base_delay, max_delay } = retry;
    let held = &mut running.retry;
    found.live("[retry] max_attempts", &mut held.max_attempts, max_attempts);
    found.live("[retry] base_delay", &mut held.base_delay, base_delay);
    found.live("[retry] max_delay", &mut held.max_delay, max_delay);

    let config::Shutdown { grace } = shutdown;
    found.live("[shutdown] grace", &mut running.shutdown.grace, grace);

    let config::Log { level, format } = log;
    found.live("[log] level", &mut running.log.level, level);
    found.fixed("[log] format", &running.log.format, &format);

    found.fixed("root", &running.root, &root);
    let config::Control { socket, group } = control;
    // Where it isn't written it moves with the root.
    let [held, socket] = [(&running.control.socket, &running.root), (&socket, &root)]
        .map(|(socket, root)| socket.strip_prefix(root).unwrap_or(socket));
    found.fixed("[control] socket", held, socket);

    found.fixed("[control] group", &running.control.group, &group);

    // Where the token comes from is no news by itself.
    let config::Http { listen, token, token_env: _, token_file: _, hosts } = http;
    let held = &running.http;
    found.fixed("[http] listen", &held.listen, &listen);
    found.fixed("[http] token", &secret(held.token.as_ref()), &secret(token.as_ref()));
    found.fixed("[http] hosts", &held.hosts, &hosts);

    let config::Storage { min_free, keep_state } = storage;
    found.fixed("[storage] min_free", &running.storage.min_free, &min_free);
    found.fixed("[storage] keep_state", &running.storage.keep_state, &keep_state);
    found.fixed("the machine's time zone", &running.zone, &zone);
    found
}

impl Difference {
    pub(super) const fn is_empty(&self) -> bool {
        self.applied.is_empty() && self.needs_restart.is_empty()
    }

    fn live<T: PartialEq>(&mut self, key: &str, held: &mut T, new: T) {
        if *held != new {
            *held = new;
            self.applied.push(key.to_owned());
        }
    }

    fn fixed<T: PartialEq + ?Sized>(&mut self, key: &str, held: &T, new: &T) {
        if held != new {
            self.needs_restart.push(key.to_owned());
        }
    }

    fn providers(&mut self, running: &mut [config::Provider], new: Vec<config::Provider>) {
        let place = |name: &str| new.iter().position(|provider| provider.name == name);
        // The first is the one that job specs mean when they name none.
        let is_first = |held: &config::Provider| place(&held.name) == Some(0);
        if !running.first().is_some_and(is_first) {
            self.needs_restart.push("[[providers]] with another one first".to_owned());
        }
        for provider in running.iter().filter(|provider| place(&provider.name).is_none()) {
            self.needs_restart.push(format!("{} removed", header(&provider.name)));
        }
        for provider in new {
            match running.iter_mut().find(|held| held.name == provider.name) {
                Some(held) if addresses(held) == addresses(&provider) => self.provider(held, provider),
                Some(held) => {
                    let mut other = Self::default();
                    let own = held.base_url != provider.base_url;
                    let key = if own { "base_url" } else { "endpoints" };
                    other.needs_restart.push(format!("{} {key}", header(&provider.name)));
                    other.provider(&mut held.clone(), provider);
                    self.needs_restart.extend(other.needs_restart.into_iter().chain(other.applied));
                }
                None => self.needs_restart.push(format!("{} added", header(&provider.name))),
            }
        }
    }

    /// Of one whose name and address are the same, or are told of.
    fn provider(&mut self, held: &mut config::Provider, new: config::Provider) {
        let config::Provider {
            name,
            base_url: _,
            api_key,
            api_key_env,
            api_key_file,
            api_version,
            headers,
            ca_file,
            endpoints,
            timeout,
            connect_timeout,
            first_byte_timeout,
            idle_timeout,
            concurrency,
            max_reply,
            flex_timeout,
            flex_fallback,
            strict,
            stream,
            limits,
            models,
        } = new;
        let key = |key: &str| format!("{} {key}", header(&name));
        // Where it comes from is no news by itself.
        (held.api_key_env, held.api_key_file) = (api_key_env, api_key_file);
        if secret(held.api_key.as_ref()) != secret(api_key.as_ref()) {
            held.api_key = api_key;
            self.applied.push(key("api_key"));
        }
        self.live(&key("api_version"), &mut held.api_version, api_version);
        self.live(&key("headers"), &mut held.headers, headers);
        self.fixed(&key("ca_file"), &held.ca_file, &ca_file);
        self.endpoints(&name, &mut held.endpoints, endpoints);
        self.live(&key("timeout"), &mut held.timeout, timeout);
        self.live(&key("connect_timeout"), &mut held.connect_timeout, connect_timeout);
        self.live(&key("first_byte_timeout"), &mut held.first_byte_timeout, first_byte_timeout);
        self.live(&key("idle_timeout"), &mut held.idle_timeout, idle_timeout);
        self.live(&key("concurrency"), &mut held.concurrency, concurrency);
        self.live(&key("max_reply"), &mut held.max_reply, max_reply);
        self.live(&key("flex_timeout"), &mut held.flex_timeout, flex_timeout);
        self.live(&key("flex_fallback"), &mut held.flex_fallback, flex_fallback);
        self.live(&key("strict"), &mut held.strict, strict);
        self.live(&key("stream"), &mut held.stream, stream);
        let config::Limits { concurrency, requests_per_minute, tokens_per_minute } = limits;
        let limits = &mut held.limits;
        if let (Concurrency::Auto { min, max }, Concurrency::Auto { min: new_min, max: new_max }) =
            (&mut limits.concurrency, concurrency)
        {
            self.live(&key("limits.min"), min, new_min);
            self.live(&key("limits.max"), max, new_max);
        } else {
            self.live(&key("limits.concurrency"), &mut limits.concurrency, concurrency);
        }
        self.live(&key("limits.requests_per_minute"), &mut limits.requests_per_minute, requests_per_minute);
        self.live(&key("limits.tokens_per_minute"), &mut limits.tokens_per_minute, tokens_per_minute);
        self.live(&key("models"), &mut held.models, models);
    }

    /// Of a provider whose endpoints are where they were, or are told of.
    fn endpoints(&mut self, name: &str, held: &mut Vec<config::Endpoint>, new: Vec<config::Endpoint>) {
        for (number, (held, new)) in (1..).zip(held.iter_mut().zip(&new)) {
            let config::Endpoint {
                url: _,
                api_key,
                api_key_env: _,
                api_key_file: _,
                api_version,
                headers,
                weight,
            } = new.clone();
            let key = |key: &str| format!("{} endpoint {number} {key}", header(name));
            if secret(held.api_key.as_ref()) != secret(api_key.as_ref()) {
                self.applied.push(key("api_key"));
            }
            self.live(&key("api_version"), &mut held.api_version, api_version);
            self.live(&key("headers"), &mut held.headers, headers);
            self.live(&key("weight"), &mut held.weight, weight);
        }
        // With their keys, and where those come from, which is no news by itself.
        *held = new;
    }
}

/// Where a provider is asked, one after the other.
fn addresses(provider: &config::Provider) -> (Vec<Url>, &Url) {
    (provider.sites().into_iter().map(|site| site.url).collect(), &provider.base_url)
}

fn secret(key: Option<&SecretString>) -> Option<&str> {
    key.map(ExposeSecret::expose_secret)
}

fn header(provider: &str) -> String {
    format!("[[providers]] `{provider}`")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    use tempfile::TempDir;
    use toml::Value;

    use super::*;
    use crate::config::Keys;

    /// What a reload can't do, as `table.key` and, for tables of which there may be more, with their number.
    const NEEDS_RESTART: [&str; 15] = [
        "root",
        "providers.0.name",
        "providers.0.base_url",
        "providers.0.ca_file",
        "providers.0.endpoints.0.url",
        "providers.1.name",
        "providers.1.base_url",
        "log.format",
        "control.socket",
        "control.group",
        "http.listen",
        "http.token_file",
        "http.hosts",
        "storage.min_free",
        "storage.keep_state",
    ];

    /// A folder with keys to providers in it.
    fn folder() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            fs::write(folder.path().join(name), format!("sk-{name}")).unwrap();
        }
        for name in ["ca.pem", "other-ca.pem"] {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certificates").join(name);
            fs::copy(from, folder.path().join(name)).unwrap();
        }
        folder
    }

    fn load(folder: &TempDir, text: &str) -> Config {
        let path = folder.path().join("batchd.toml");
        fs::write(&path, text).unwrap();
        config::load(Some(&path), Keys::Required).unwrap_or_else(|report| panic!("{report}\n{text}")).config
    }

    /// Every key of the sample, set to what it shows, with keys to the providers that can be read.
    fn sample() -> toml::Table {
        let mut text = String::new();
        for line in config::sample().lines() {
            let setting = line.strip_prefix('#').filter(|rest| !rest.is_empty() && !rest.starts_with(' '));
            text.push_str(setting.or_else(|| line.strip_prefix("#   ")).unwrap_or(line));
            text.push('\n');
        }
        let mut table: toml::Table = text.parse().unwrap();
        for (provider, key) in table["providers"].as_array_mut().unwrap().iter_mut().zip(["a", "b"]) {
            let provider = provider.as_table_mut().unwrap();
            provider.remove("api_key_env");
            provider.insert("api_key_file".to_owned(), key.into());
        }
        let first = table["providers"][0].as_table_mut().unwrap();
        first.insert("ca_file".to_owned(), "ca.pem".into());
        // No variable is set wherever tests run.
        first.remove("headers_env");
        table["http"].as_table_mut().unwrap().insert("token_file".to_owned(), "c".into());
        table
    }

    /// Another good value for a key.
    fn other(key: &str, value: &Value) -> Value {
        let text = value.as_str().unwrap_or_default();
        match (key, value) {
            ("ca_file", _) => "other-ca.pem".into(),
            ("base_url" | "url", _) => "http://127.0.0.1:9/v1".into(),
            ("api_key_file", _) => "c".into(),
            ("token_file", _) => "a".into(),
            ("listen", _) => "127.0.0.1:9465".into(),
            ("level", _) => "debug".into(),
            ("format", _) => "json".into(),
            ("concurrency", Value::String(_)) => 5.into(),
            (_, Value::String(_)) if humantime::parse_duration(text).is_ok() => "7s".into(),
            (_, Value::String(_)) if text.ends_with("iB") => "1MiB".into(),
            (_, Value::String(_)) => "other".into(),
            (_, Value::Integer(number)) => (number + 1).into(),
            (_, Value::Boolean(flag)) => (!flag).into(),
            (_, Value::Array(array)) if array.is_empty() => vec!["other"].into(),
            (_, value) => panic!("what is another value than {value} for {key}?"),
        }
    }

    /// Each key's path, and the table with another value for it.
    fn changes(table: &toml::Table) -> Vec<(String, toml::Table)> {
        fn walk(path: &str, value: &Value, found: &mut Vec<(String, Value)>) {
            let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            match value {
                Value::Table(table) => {
                    for (key, value) in table {
                        for (path, changed) in walked(&below(key), value) {
                            let mut table = table.clone();
                            if key == "concurrency" {
                                // What bounds `auto` is wrong beside a number.
                                table.retain(|key, _| key != "min" && key != "max");
                            }
                            table.insert(key.clone(), changed);
                            found.push((path, table.into()));
                        }
                    }
                }
                Value::Array(array) if array.iter().any(Value::is_table) => {
                    for (at, value) in array.iter().enumerate() {
                        for (path, changed) in walked(&below(&at.to_string()), value) {
                            let mut array = array.clone();
                            array[at] = changed;
                            found.push((path, array.into()));
                        }
                    }
                }
                Value::String(_)
                | Value::Integer(_)
                | Value::Float(_)
                | Value::Boolean(_)
                | Value::Datetime(_)
                | Value::Array(_) => {
                    let key = path.rsplit('.').next().unwrap();
                    found.push((path.to_owned(), other(key, value)));
                }
            }
        }
        fn walked(path: &str, value: &Value) -> Vec<(String, Value)> {
            let mut found = Vec::new();
            walk(path, value, &mut found);
            found
        }
        let all = walked("", &table.clone().into()).into_iter();
        all.map(|(path, changed)| (path, changed.try_into().unwrap())).collect()
    }

    #[test]
    fn every_key_either_holds_at_once_or_is_named_as_one_that_needs_a_restart() {
        let folder = folder();
        let table = sample();
        let held = load(&folder, &table.to_string());
        let mut walked = 0;
        for (path, changed) in changes(&table) {
            let new = load(&folder, &changed.to_string());
            let mut running = held.clone();
            let found = take_over(&mut running, new.clone());
            let named = [found.applied.clone(), found.needs_restart.clone()].concat();
            let leaf = path.rsplit('.').next().unwrap();
            let leaf = match leaf {
                "name" if !path.contains("models") => "added",
                "api_key_file" => "api_key",
                "token_file" => "token",
                "url" => "endpoints",
                _ if path.contains(".headers") => "headers",
                _ if path.contains("models") => "models",
                leaf => leaf,
            };
            assert!(named.iter().any(|name| name.ends_with(leaf)), "{path} is not named: {found:?}");
            let needs_restart = NEEDS_RESTART.contains(&path.as_str());
            assert_eq!(found.applied.is_empty(), needs_restart, "{path}: {found:?}");
            assert_eq!(found.needs_restart.is_empty(), !needs_restart, "{path}: {found:?}");
            // What is said is true, and said once.
            let [now, before, new] = [&running, &held, &new].map(|config| format!("{config:?}"));
            if needs_restart {
                assert_eq!(now, before, "{path}");
            } else if leaf != "api_key" {
                assert_eq!(now, new, "{path}");
            }
            let again = take_over(&mut running, load(&folder, &changed.to_string()));
            assert_eq!((again.applied, again.needs_restart), (Vec::new(), found.needs_restart), "{path}");
            walked += 1;
        }
        assert!(walked >= 30, "{walked} keys");
    }

    /// The words above each key of the sample, up to its second provider.
    fn words() -> BTreeMap<String, String> {
        let (mut words, mut above, mut table) = (BTreeMap::new(), String::new(), String::new());
        for line in config::sample().lines() {
            let setting = line.trim_start_matches(['#', ' ']);
            let is_setting = line.starts_with("#   ") || !line.starts_with("# ");
            if let Some(name) = setting.strip_prefix('[').filter(|_| is_setting) {
                if name.starts_with("[providers]") && table.contains("providers") {
                    table = "providers.1".to_owned();
                } else {
                    table = name.trim_matches(['[', ']']).replace("providers", "providers.0") + ".";
                    table = table.replace("models.", "models.0.").replace("endpoints.", "endpoints.0.");
                }
                above.clear();
            } else if let Some((key, _)) = setting.split_once(" = ").filter(|_| is_setting) {
                words.insert(format!("{table}{key}"), above.clone());
                above.clear();
            } else {
                above.push_str(line);
            }
        }
        words
    }

    #[test]
    fn the_sample_says_of_each_key_whether_it_needs_a_restart() {
        let words = words();
        assert!(words.len() >= 25, "{words:?}");
        for (path, words) in &words {
            if !path.starts_with("providers.1") {
                let needs_restart = NEEDS_RESTART.contains(&path.as_str());
                assert_eq!(words.contains("Needs a restart."), needs_restart, "{path}: {words}");
            }
        }
        for path in NEEDS_RESTART.iter().filter(|path| !path.contains(".1.")) {
            assert!(words.contains_key(*path), "{path} is not in the sample: {:?}", words.keys());
        }
    }

    const TWO: &str = "[[providers]]\nname = \"x\"\nbase_url = \"http://x.localhost/v1\"\napi_key_file = \"a\"\n\
         [[providers]]\nname = \"y\"\nbase_url = \"http://y.localhost/v1\"\napi_key_file = \"b\"\n";

    #[test]
    fn the_same_file_again_changes_nothing() {
        let folder = folder();
        let mut running = load(&folder, TWO);
        let found = take_over(&mut running, load(&folder, TWO));
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn nothing_of_a_provider_at_another_address_goes_to_the_old_one() {
        let folder = folder();
        let mut running = load(&folder, TWO);
        let moved = TWO.replace("http://x.", "http://z.").replace("\"a\"", "\"c\"\ntimeout = \"7s\"");
        let found = take_over(&mut running, load(&folder, &moved));
        let names = ["base_url", "api_key", "timeout"].map(|key| format!("[[providers]] `x` {key}"));
        assert_eq!((found.applied.as_slice(), found.needs_restart), ([].as_slice(), names.to_vec()));
        let held = &running.providers[0];
        assert_eq!(secret(held.api_key.as_ref()), Some("sk-a"));
        assert_eq!(held.timeout, Duration::from_mins(10));
    }

    #[test]
    fn providers_that_come_go_or_change_places_are_named() {
        let folder = folder();
        let (x, y) = TWO.split_at(TWO.rfind("[[").unwrap());
        for (new, expected) in [
            (x.to_owned(), vec!["[[providers]] `y` removed"]),
            (format!("{y}{x}"), vec!["[[providers]] with another one first"]),
            (
                format!("{}{TWO}", x.replace("\"x\"", "\"z\"")),
                vec!["[[providers]] with another one first", "[[providers]] `z` added"],
            ),
            (format!("{TWO}{}", x.replace("\"x\"", "\"z\"")), vec!["[[providers]] `z` added"]),
        ] {
            let mut running = load(&folder, TWO);
            let found = take_over(&mut running, load(&folder, &new));
            assert_eq!((found.applied, found.needs_restart), (Vec::new(), to_owned(&expected)), "{new}");
            let names: Vec<&str> = running.providers.iter().map(|provider| provider.name.as_str()).collect();
            assert_eq!(names, ["x", "y"]);
        }
    }

    const ENDPOINTS: &str = "[[providers]]\nname = \"x\"\nbase_url = \"http://x.localhost/v1\"\napi_key_file = \"a\"\n\
         [[providers.endpoints]]\n[[providers.endpoints]]\napi_key_file = \"b\"\n";

    #[test]
    fn keys_and_weights_of_endpoints_hold_at_once_each_for_its_own() {
        let folder = folder();
        let mut running = load(&folder, ENDPOINTS);
        let new = ENDPOINTS.replace("\"b\"", "\"c\"\nweight = 5");
        let found = take_over(&mut running, load(&folder, &new));
        let names = ["api_key", "weight"].map(|key| format!("[[providers]] `x` endpoint 2 {key}"));
        assert_eq!((found.applied, found.needs_restart), (names.to_vec(), Vec::new()));
        let sites = running.providers[0].sites();
        let keys: Vec<_> = sites.iter().map(|site| secret(site.api_key.as_ref()).unwrap()).collect();
        assert_eq!((keys, sites[1].weight), (vec!["sk-a", "sk-c"], 5));

        // The provider's own is that of the first.
        let new = new.replace("\"a\"", "\"b\"");
        let found = take_over(&mut running, load(&folder, &new));
        assert_eq!(
            (found.applied, found.needs_restart),
            (to_owned(&["[[providers]] `x` api_key"]), Vec::new())
        );
        assert_eq!(secret(running.providers[0].sites()[0].api_key.as_ref()), Some("sk-b"));
    }

    #[test]
    fn endpoints_that_come_go_or_move_need_a_restart_and_get_nothing_before() {
        let folder = folder();
        for new in [
            format!("{ENDPOINTS}[[providers.endpoints]]\napi_key_file = \"c\"\n"),
            ENDPOINTS.replacen("[[providers.endpoints]]\n", "", 1),
            ENDPOINTS.replace("api_key_file = \"b\"", "api_key_file = \"c\"\nurl = \"http://z.localhost\""),
        ] {
            let mut running = load(&folder, ENDPOINTS);
            let held = format!("{running:?}");
            let found = take_over(&mut running, load(&folder, &new));
            assert_eq!(found.applied, [""; 0], "{new}");
            assert_eq!(found.needs_restart[0], "[[providers]] `x` endpoints", "{new}");
            assert_eq!(format!("{running:?}"), held, "{new}");
            assert_eq!(secret(running.providers[0].endpoints[1].api_key.as_ref()), Some("sk-b"));
        }
    }

    fn to_owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_socket_that_moves_with_the_root_is_not_named_beside_it() {
        let folder = folder();
        let text = |root: &str| format!("root = \"{root}\"\n{TWO}");
        let mut running = load(&folder, &text("one"));
        let found = take_over(&mut running, load(&folder, &text("two")));
        assert_eq!(found.needs_restart, ["root"]);
    }
}
