//! Finds and reads the configuration file: the door for environment variables (P8).

use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use chrono_tz::Tz;
use reqwest::header::HeaderValue;
use secrecy::SecretString;
use toml::de::DeTable;

use super::schema;
use super::section::Document;
use crate::config::Config;
use crate::diag::{self, Diagnostic, Report};

/// A configuration has a few dozen lines; TOML needs seventy times its size to parse.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Longer than every key that providers hand out.
const KEY_BYTES_MAX: u64 = 16 * 1024;

/// A configuration and where it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// None: no file was found, the defaults hold. Absolute, so that it can be loaded again from anywhere.
    pub path: Option<PathBuf>,
    pub warnings: Report,
}

/// Whether the keys of the providers are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// They are read; one that is missing is an error.
    Required,
    /// They are not looked at: for commands that call no provider.
    Ignored,
}

/// Finds the configuration (`explicit`, else `$BATCHD_CONFIG`, else the well-known places) and checks all of it.
///
/// # Errors
///
/// Every problem of the file at once, each with its place.
pub fn load(explicit: Option<&Path>, keys: Keys) -> Result<Loaded, Report> {
    #[cfg(debug_assertions)]
    if let Some(point) = variable("BATCHD_FAULT_POINT") {
        let wrong =
            |problem| Diagnostic::error("the environment variable `BATCHD_FAULT_POINT`", 0, 0, problem);
        crate::fault::choose(&point.to_string_lossy()).map_err(wrong)?;
    }
    let folder = std::env::current_dir()
        .map_err(|error| Diagnostic::error(".", 0, 0, format!("can't find the current folder: {error}")))?;
    Surroundings { variable: &variable, folder, etc: PathBuf::from("/etc/batchd/batchd.toml") }
        .load(explicit, keys)
}

/// What systemd says of the stream that it reads this process's log from, if it reads one.
pub fn journal_stream() -> Option<String> {
    variable("JOURNAL_STREAM").and_then(|named| named.into_string().ok())
}

#[expect(clippy::disallowed_methods, reason = "this is the door for the environment")]
pub(super) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// The commented sample, `config/batchd.toml`.
pub const fn sample() -> &'static str {
    include_str!("../../config/batchd.toml")
}

/// What a configuration depends on beside its text.
pub(super) struct Surroundings<'a> {
    pub(super) variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// The current folder.
    pub(super) folder: PathBuf,
    /// The last place to look.
    pub(super) etc: PathBuf,
}

impl Surroundings<'_> {
    pub(super) fn load(&self, explicit: Option<&Path>, keys: Keys) -> Result<Loaded, Report> {
        let Some((path, display)) = self.find(explicit) else {
            return self.check("the default configuration", "", None, keys);
        };
        let display = display.to_string_lossy();
        let fault = |message: String| Diagnostic::error(&display, 0, 0, message);
        let (mut file, metadata) =
            open_regular(&path).map_err(|error| fault(format!("can't be opened: {error}")))?;
        let mut bytes = Vec::new();
        file.by_ref()
            .take(FILE_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| fault(format!("can't be read: {error}")))?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(fault("is larger than `1MiB`: this is no configuration".to_owned()).into());
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let (line, column) = diag::line_and_column(error.as_bytes(), error.utf8_error().valid_up_to());
            Diagnostic::error(&display, line, column, "invalid UTF-8")
        })?;
        let mut loaded = self.check(&display, &text, Some(path), keys)?;
        if metadata.permissions().mode() & 0o022 != 0 {
            let warning = Diagnostic::warning(&display, 0, 0, "others may write this file")
                .hint("they could send your keys elsewhere: `chmod go-w` it");
            loaded.warnings.push(warning);
        }
        Ok(loaded)
    }

    /// The file's absolute path, and how a person knows it.
    fn find(&self, explicit: Option<&Path>) -> Option<(PathBuf, PathBuf)> {
        let named = |path: PathBuf| Some((self.folder.join(&path), path));
        if let Some(path) = explicit {
            return named(path.to_owned());
        }
        if let Some(path) = self.nonempty("BATCHD_CONFIG") {
            return named(path.into());
        }
        let home = |below: &str| self.nonempty("HOME").map(|home| PathBuf::from(home).join(below));
        // As the XDG specification says: a relative path there is to be ignored.
        let xdg = self.nonempty("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let places = [
            Some(PathBuf::from("batchd.toml")),
            xdg.or_else(|| home(".config")).map(|folder| folder.join("batchd/batchd.toml")),
            Some(self.etc.clone()),
        ];
        // `symlink_metadata`: a dangling link is found, and then reported, rather than passed over.
        places
            .into_iter()
            .flatten()
            .find(|path| self.folder.join(path).symlink_metadata().is_ok())
            .and_then(named)
    }

    pub(super) fn check(
        &self,
        display: &str,
        text: &str,
        path: Option<PathBuf>,
        keys: Keys,
    ) -> Result<Loaded, Report> {
        let document = Document::new(display, text);
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            for error in errors {
                let at = error.span().map(|span| span.start);
                document.push(document.error(at, lower_first(error.message())));
            }
            return Err(document.into_report());
        }
        let folder = path.as_deref().and_then(Path::parent).unwrap_or(&self.folder);
        let config =
            schema::read(&document, table.get_ref(), folder, &KeyReader { surroundings: self, keys });
        let report = document.into_report();
        if report.has_errors() {
            return Err(report);
        }
        Ok(Loaded { config, path, warnings: report })
    }

    /// The machine's time zone.
    pub(super) fn zone(&self) -> Tz {
        let variable = (self.variable)("TZ").and_then(|zone| zone.into_string().ok());
        let named = variable.and_then(|zone| zone.trim_start_matches(':').parse().ok());
        let system = || iana_time_zone::get_timezone().ok()?.parse().ok();
        named.or_else(system).unwrap_or(Tz::UTC)
    }

    fn nonempty(&self, variable: &str) -> Option<OsString> {
        (self.variable)(variable).filter(|value| !value.is_empty())
    }
}

/// Reads the providers' keys from where the configuration says they are.
pub(super) struct KeyReader<'a> {
    surroundings: &'a Surroundings<'a>,
    keys: Keys,
}

impl KeyReader<'_> {
    pub(super) fn is_ignored(&self) -> bool {
        self.keys == Keys::Ignored
    }

    pub(super) fn zone(&self) -> Tz {
        self.surroundings.zone()
    }

    /// The key in an environment variable; the error says what is wrong with it.
    pub(super) fn read_variable(&self, name: &str) -> Result<SecretString, String> {
        let (value, shown) = self.variable(name)?;
        valid_key(&value, &shown)
    }

    /// A header's value in an environment variable, marked as a secret.
    pub(super) fn read_header(&self, name: &str) -> Result<HeaderValue, String> {
        let (value, shown) = self.variable(name)?;
        let value = value.trim();
        if value.is_empty() {
            return Err(format!("{shown} is empty"));
        }
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| format!("{shown} holds characters that no header has"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// And how it is called in messages.
    fn variable(&self, name: &str) -> Result<(String, String), String> {
        let shown = format!("the environment variable `{name}`");
        let value = (self.surroundings.variable)(name).ok_or_else(|| format!("{shown} is not set"))?;
        let value = value.into_string().map_err(|_| format!("{shown} is not UTF-8"))?;
        Ok((value, shown))
    }
}

/// The key in a file, and whether everybody may read it. A group may be meant; and where systemd lets one user
/// read a credential, an access control list shows as the group's mode.
pub(super) fn read_key_file(path: &Path) -> Result<(SecretString, bool), String> {
    let shown = format!("the file `{}`", path.display());
    let failed = |error: io::Error| format!("{shown} can't be read: {error}");
    let (file, metadata) = open_regular(path).map_err(failed)?;
    let mut text = String::new();
    file.take(KEY_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > KEY_BYTES_MAX {
        return Err(format!("{shown} is larger than `16KiB`: this is no key"));
    }
    Ok((valid_key(&text, &shown)?, metadata.permissions().mode() & 0o004 != 0))
}

fn valid_key(text: &str, shown: &str) -> Result<SecretString, String> {
    let key = text.trim();
    if key.is_empty() {
        return Err(format!("{shown} is empty"));
    }
    // It goes into a header. The key itself never stands in a message.
    if !key.chars().all(|c| c.is_ascii_graphic()) {
        return Err(format!("{shown} holds white space or characters that no key has"));
    }
    Ok(SecretString::from(key))
}

/// Opens a file for reading; `O_NONBLOCK`, because a FIFO would otherwise wait for its writer for ever.
pub(super) fn open_regular(path: &Path) -> io::Result<(File, Metadata)> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() { Ok((file, metadata)) } else { Err(io::Error::other("it is no regular file")) }
}

fn lower_first(message: &str) -> String {
    let mut chars = message.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder to load from, and an environment of our own.
    pub(in crate::config) struct Scene {
        pub(in crate::config) folder: tempfile::TempDir,
        pub(in crate::config) variables: Vec<(&'static str, OsString)>,
    }

    impl Scene {
        pub(in crate::config) fn new(toml: &str) -> Self {
            let scene = Self {
                folder: tempfile::tempdir().unwrap(),
                variables: vec![("OPENAI_API_KEY", "sk-CANARY".into())],
            };
            scene.write("batchd.toml", toml);
            scene
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        pub(in crate::config) fn write(&self, name: &str, text: &str) {
            let path = self.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }

        pub(in crate::config) fn load_with(
            &self,
            explicit: Option<&Path>,
            keys: Keys,
        ) -> Result<Loaded, Report> {
            let variable = |name: &str| {
                self.variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
            };
            let folder = self.folder.path().to_owned();
            Surroundings { variable: &variable, etc: self.path("etc/batchd.toml"), folder }
                .load(explicit, keys)
        }

        pub(in crate::config) fn load(&self) -> Result<Loaded, Report> {
            self.load_with(None, Keys::Required)
        }

        /// What is said about the file, errors or warnings, without the folder's random name.
        pub(in crate::config) fn said(&self) -> String {
            let report = self.load().map_or_else(|errors| errors, |loaded| loaded.warnings);
            report.to_string().replace(&*self.folder.path().to_string_lossy(), "DIR")
        }
    }

    /// The sample with its settings made to hold, its examples too if wanted.
    fn uncommented(examples: bool) -> String {
        let mut text = String::new();
        for line in sample().lines() {
            let setting = line.strip_prefix('#').filter(|rest| !rest.is_empty() && !rest.starts_with(' '));
            let example = line.strip_prefix("#   ").filter(|_| examples);
            text.push_str(setting.or(example).unwrap_or(line));
            text.push('\n');
        }
        text
    }

    #[test]
    fn sample_shows_the_defaults_that_hold_without_it() {
        let configured = |toml: &str| {
            let scene = Scene::new(toml);
            let folder = scene.folder.path().to_string_lossy().into_owned();
            format!("{:#?}", scene.load().unwrap().config).replace(&folder, "DIR")
        };
        let defaults = configured("");
        assert_eq!(configured(sample()), defaults);
        assert_eq!(configured(&uncommented(false)), defaults);
    }

    #[test]
    fn every_setting_and_example_of_the_sample_is_valid() {
        let scene = Scene::new(&uncommented(true));
        let loaded = scene.load_with(None, Keys::Ignored).unwrap();
        assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
        assert_eq!(loaded.config.providers.len(), 2);
        assert_eq!(loaded.config.providers[0].models.len(), 1);
        assert_eq!(loaded.config.providers[0].limits.requests_per_minute, Some(500));
        assert_eq!(
            loaded.config.providers[1].limits.concurrency,
            crate::config::Concurrency::Auto { min: 1, max: 256 }
        );
        assert_eq!(loaded.config.storage.min_free, Some(10 << 30));
    }

    #[test]
    fn sample_names_every_key_there_is() {
        let report = Scene::new(
            "x = 1\n[intake]\nx = 1\n[[providers]]\nx = 1\n[providers.limits]\nx = 1\n\
             [[providers.models]]\nname = \"m\"\nx = 1\n[[providers.endpoints]]\nx = 1\n[retry]\nx = 1\n[shutdown]\nx = 1\n[log]\nx = 1\n\
             [control]\nx = 1\n[http]\nx = 1\n[storage]\nx = 1\n",
        )
        .load()
        .unwrap_err();
        let mut keys = 0;
        for unknown in report.diagnostics().iter().filter(|found| found.message.starts_with("unknown key")) {
            let known = unknown.hint.as_deref().unwrap().strip_prefix("known keys: ").unwrap();
            for key in known.split(", ") {
                let named = sample().lines().any(|line| {
                    line.trim_start_matches(['#', ' ']).starts_with(&format!("{key} ="))
                        || line.contains(&format!("[{key}]"))
                        || line.contains(&format!("with `{key}`"))
                        || line.contains(&format!(".{key}]"))
                });
                assert!(named, "`{key}` is not in the sample");
                keys += 1;
            }
        }
        assert_eq!((report.errors(), keys), (12, 67));
    }

    #[test]
    fn bounds_of_the_concurrency_stand_beside_auto_alone() {
        let of = |limits: &str| {
            let text = format!(
                "[[providers]]\nname = \"a\"\nbase_url = \"http://127.0.0.1/v1\"\nconcurrency = 99\n\
                 [providers.limits]\n{limits}\n"
            );
            let loaded = Scene::new(&text).load();
            loaded
                .map(|loaded| loaded.config.providers[0].limits.concurrency)
                .map_err(|report| report.to_string())
        };
        let auto = |min, max| Ok(crate::config::Concurrency::Auto { min, max });
        assert_eq!(of("concurrency = \"auto\""), auto(1, 99));
        assert_eq!(of("concurrency = \"auto\"\nmin = 3\nmax = 7"), auto(3, 7));
        let wrong = |limits, said: &str| {
            let report = of(limits).unwrap_err();
            assert!(report.contains(said), "{report}");
        };
        wrong("concurrency = 8\nmax = 9", "`max` bounds `concurrency = \"auto\"`, which is not there");
        wrong("min = 9", "write `concurrency = \"auto\"` beside it, or leave it out");
        wrong(
            "concurrency = \"auto\"\nmin = 9\nmax = 8",
            "`min` is `9`, expected no more than `max`, which is `8`",
        );
        wrong("concurrency = \"auto\"\nmin = 0", "`min` must be from `1` to `10000`, found `0`");
        wrong(
            "concurrency = { min = 1 }",
            "`concurrency` must be a whole number or `\"auto\"`, found `a table`",
        );
    }

    #[test]
    fn all_problems_are_found_at_once_and_where_they_stand() {
        let scene = Scene::new(
            "rot = \"x\"\n\
             intake = { rescan = 5, settle = \"soon\", max_line = \"1B\" }\n\
             [[providers]]\n\
             name = \"a/b\"\n\
             base_url = \"ftp://x\"\n\
             api_key = \"sk-CANARY\"\n\
             concurrency = 0\n\
             limits = { rpm = 5, concurrency = \"many\" }\n\
             [retry]\n\
             max_attempts = -1\n\
             base_delay = \"2m\"\n\
             [log]\n\
             level = \"loud\"\n\
             format = 1\n\
             [[providers]]\n\
             name = \"a/b\"\n",
        );
        insta::assert_snapshot!(scene.said(), @r#"
        batchd.toml:1:1: error: unknown key `rot`
          hint: did you mean `root`?
        batchd.toml:2:21: error: `rescan` must be a duration like `100ms`, `3s`, `10m` or `6h`, found `5`
        batchd.toml:2:33: error: `settle` must be a duration like `100ms`, `3s`, `10m` or `6h`, found `"soon"`
        batchd.toml:2:52: error: `max_line` must be from `1KiB` to `1GiB`, found `1B`
        batchd.toml:4:8: error: `name` must be 1 to 64 letters, digits, `-`, `_` or `.`, found `a/b`
        batchd.toml:5:12: error: `base_url` must begin with `http://` or `https://`, found `ftp://x`
        batchd.toml:6:1: error: unknown key `api_key` in `[[providers]]`
          hint: a key doesn't belong into this file: name the environment variable that holds it in `api_key_env`, or a file in `api_key_file`
        batchd.toml:7:15: error: `concurrency` must be from `1` to `10000`, found `0`
        batchd.toml:8:12: error: unknown key `rpm` in `[providers.limits]`
          hint: did you mean `requests_per_minute`?
        batchd.toml:8:35: error: `concurrency` must be a whole number or `"auto"`, found `"many"`
        batchd.toml:9:1: error: `max_delay` is `1m`, less than `base_delay`, `2m`
        batchd.toml:10:16: error: `max_attempts` must be from `1` to `1000`, found `-1`
        batchd.toml:13:9: error: `loud` is no log level: expected one of off, error, warn, info, debug, trace, or a filter like `info,batchd::dispatch=debug`
        batchd.toml:14:10: error: `format` must be a string, found `1`
        batchd.toml:15:1: error: the provider `a/b` has no `base_url`
          hint: write where its API begins, like `base_url = "http://127.0.0.1:8000/v1"`
        batchd.toml:15:1: error: a second provider is called `a/b`
          hint: the first stands on line 3: give each a `name` of its own
        batchd.toml:16:8: error: `name` must be 1 to 64 letters, digits, `-`, `_` or `.`, found `a/b`
        "#);
    }

    #[test]
    fn syntax_errors_have_a_place() {
        insta::assert_snapshot!(Scene::new("root = \"a\"\nroot = \"b\"\nkey = = 1\n").said(), @r#"
        batchd.toml:2:1: error: duplicate key
        batchd.toml:3:7: error: extra `=`, expected nothing
        batchd.toml:3:9: error: unexpected key or value, expected newline, `#`
        "#);
        let scene = Scene::new("");
        fs::write(scene.path("batchd.toml"), b"# \xc3\xa9\nroot = \"\xff\"\n").unwrap();
        assert_eq!(scene.said(), "batchd.toml:2:9: error: invalid UTF-8\n");
    }

    #[test]
    fn default_provider_without_a_key_says_what_to_do() {
        let mut scene = Scene::new("");
        scene.variables.clear();
        insta::assert_snapshot!(scene.said(), @r#"
        batchd.toml: error: the environment variable `OPENAI_API_KEY` is not set
          hint: `export OPENAI_API_KEY=sk-…` to use OpenAI, or name another server in `batchd.toml`: `[[providers]]` with a `name` and a `base_url`
        "#);
        let loaded = scene.load_with(None, Keys::Ignored).unwrap();
        assert!(loaded.config.providers[0].api_key.is_none());
        scene.variables.push(("OPENAI_API_KEY", " \n".into()));
        assert!(
            scene.said().contains("the environment variable `OPENAI_API_KEY` is empty"),
            "{}",
            scene.said()
        );
    }

    #[test]
    fn keys_come_from_variables_or_files_and_never_show() {
        use secrecy::ExposeSecret;

        let scene = Scene::new(
            "[[providers]]\napi_key_env = \"OPENAI_API_KEY\"\n\
             [[providers]]\nname = \"b\"\nbase_url = \"http://10.0.0.1/v1/\"\napi_key_file = \"key\"\n\
             [[providers]]\nname = \"c\"\nbase_url = \"http://[::1]:8000\"\n",
        );
        scene.write("key", "  sk-CANARY-2\n");
        fs::set_permissions(scene.path("key"), fs::Permissions::from_mode(0o644)).unwrap();
        let loaded = scene.load().unwrap();
        let keys: Vec<Option<&str>> = loaded
            .config
            .providers
            .iter()
            .map(|p| p.api_key.as_ref().map(ExposeSecret::expose_secret))
            .collect();
        assert_eq!(keys, [Some("sk-CANARY"), Some("sk-CANARY-2"), None]);
        assert_eq!(loaded.config.providers[1].base_url.as_str(), "http://10.0.0.1/v1");
        assert!(!format!("{loaded:?}").contains("CANARY"));
        insta::assert_snapshot!(scene.said(), @r#"
        batchd.toml:5:12: warning: the key of `b` goes to `10.0.0.1` unencrypted
          hint: use https, or a tunnel
        batchd.toml:6:16: warning: everybody may read the key in `DIR/key`
          hint: `chmod 600` it
        "#);
        fs::set_permissions(scene.path("key"), fs::Permissions::from_mode(0o440)).unwrap();
        assert!(!scene.said().contains("may read"), "a systemd credential is not open: {}", scene.said());
    }

    #[test]
    fn bad_keys_are_refused_without_showing_them() {
        for (text, part) in
            [("", "is empty"), ("sk CANARY", "white space"), ("sk-\u{e9}CANARY", "characters")]
        {
            let scene = Scene::new("[[providers]]\napi_key_file = \"key\"\n");
            scene.write("key", text);
            let said = scene.said();
            assert!(said.contains("batchd.toml:2:16: error: ") && said.contains(part), "{said}");
            assert!(!said.contains("CANARY"), "{said}");
        }
        // A FIFO would keep a careless reader waiting for ever.
        let scene = Scene::new("[[providers]]\napi_key_file = \"key\"\n");
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, scene.path("key"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert!(scene.said().contains("it is no regular file"), "{}", scene.said());
        let said = Scene::new("[[providers]]\nbase_url = \"https://me:CANARY@host/v1\"\n").said();
        assert!(said.contains("holds a user name or a password") && !said.contains("CANARY"), "{said}");
    }

    #[test]
    fn openai_without_a_key_is_odd_and_a_server_without_one_is_not() {
        let said = Scene::new("[[providers]]\nname = \"openai\"\n").said();
        assert_eq!(
            said,
            "batchd.toml:1:1: warning: no key is sent to `api.openai.com`\n  hint: write `api_key_env = \
             \"OPENAI_API_KEY\"`\n"
        );
        let local = "[[providers]]\nname = \"local\"\nbase_url = \"http://10.0.0.1:8000/v1\"\n";
        assert_eq!(Scene::new(local).said(), "");
    }

    #[test]
    fn files_are_looked_for_in_order() {
        let mut scene = Scene::new("root = \"here\"\n");
        scene.write("explicit.toml", "root = \"explicit\"\n");
        scene.write("named.toml", "root = \"named\"\n");
        scene.write("xdg/batchd/batchd.toml", "root = \"xdg\"\n");
        scene.write("home/.config/batchd/batchd.toml", "root = \"home\"\n");
        scene.write("etc/batchd.toml", "root = \"etc\"\n");
        let (xdg, home) = (scene.path("xdg"), scene.path("home"));
        scene.variables.push(("BATCHD_CONFIG", "named.toml".into()));
        scene.variables.push(("XDG_CONFIG_HOME", xdg.into()));
        scene.variables.push(("HOME", home.into()));
        let root = |scene: &Scene, explicit: Option<&Path>| {
            let loaded = scene.load_with(explicit, Keys::Required).unwrap();
            loaded.config.root.strip_prefix(scene.folder.path()).unwrap().display().to_string()
        };
        assert_eq!(root(&scene, Some(Path::new("explicit.toml"))), "explicit");
        assert_eq!(root(&scene, None), "named");
        scene.variables.retain(|(name, _)| *name != "BATCHD_CONFIG");
        assert_eq!(root(&scene, None), "here");
        fs::remove_file(scene.path("batchd.toml")).unwrap();
        assert_eq!(root(&scene, None), "xdg/batchd/xdg");
        scene.variables.retain(|(name, _)| *name != "XDG_CONFIG_HOME");
        assert_eq!(root(&scene, None), "home/.config/batchd/home");
        scene.variables.retain(|(name, _)| *name != "HOME");
        assert_eq!(root(&scene, None), "etc/etc");
        fs::remove_file(scene.path("etc/batchd.toml")).unwrap();
        assert_eq!(root(&scene, None), "batchd-data");
        assert_eq!(scene.load().unwrap().path, None);
    }

    #[test]
    fn file_that_was_named_must_be_there() {
        let scene = Scene::new("");
        let report = scene.load_with(Some(Path::new("none.toml")), Keys::Ignored).unwrap_err();
        assert_eq!(
            report.to_string(),
            "none.toml: error: can't be opened: No such file or directory (os error 2)\n"
        );
        fs::remove_file(scene.path("batchd.toml")).unwrap();
        symlink("nowhere", scene.path("batchd.toml")).unwrap();
        assert!(scene.said().starts_with("batchd.toml: error: can't be opened"), "{}", scene.said());
    }

    #[test]
    fn metrics_open_to_others_need_a_token() {
        use secrecy::ExposeSecret;

        let said = |text: &str| Scene::new(text).said();
        for open in ["0.0.0.0:9464", "[::]:0", "10.1.2.3:80"] {
            let said = said(&format!("[http]\nlisten = \"{open}\"\n"));
            assert!(
                said.starts_with(&format!("batchd.toml:2:10: error: `{open}` is open to other")),
                "{said}"
            );
            assert!(said.contains("set `token_file` or `token_env`"), "{said}");
        }
        for own in ["127.0.0.1:9464", "127.9.9.9:0", "[::1]:9464"] {
            assert_eq!(said(&format!("[http]\nlisten = \"{own}\"\n")), "");
        }
        let scene =
            Scene::new("[http]\nlisten = \"0.0.0.0:1\"\ntoken_file = \"token\"\nhosts = [\"M.Example.\"]\n");
        scene.write("token", "t-CANARY\n");
        let http = scene.load().unwrap().config.http;
        assert_eq!(http.token.as_ref().map(ExposeSecret::expose_secret), Some("t-CANARY"));
        assert_eq!(http.hosts, ["m.example"]);
        assert!(!format!("{http:?}").contains("CANARY"));
        let http = scene.load_with(None, Keys::Ignored).unwrap().config.http;
        assert!(http.listen.is_some() && http.token.is_none());
    }

    #[test]
    fn problems_of_http_and_of_the_group_are_named() {
        let scene = Scene::new(
            "[control]\ngroup = \"a:b\"\n[http]\nlisten = \"localhost\"\ntoken = \"t-CANARY\"\n\
             token_env = \"NONE\"\nhosts = [\"http://x\", \"*\", \"ok\", \"::1\", \"a:80\"]\n",
        );
        insta::assert_snapshot!(scene.said(), @r#"
        batchd.toml:2:9: error: expected the name of a group, found `a:b`
        batchd.toml:4:10: error: `listen` must be an IP address and a port, like `127.0.0.1:9464` or `[::1]:9464`, found `localhost`
        batchd.toml:5:1: error: unknown key `token` in `[http]`
          hint: a token doesn't belong into this file: name the environment variable that holds it in `token_env`, or a file in `token_file`
        batchd.toml:6:13: error: the environment variable `NONE` is not set
        batchd.toml:7:10: error: `hosts` must be names like `metrics.example.org`, without `http://`, port or `*`, found `http://x`
        batchd.toml:7:22: error: `hosts` must be names like `metrics.example.org`, without `http://`, port or `*`, found `*`
        batchd.toml:7:40: error: `hosts` must be names like `metrics.example.org`, without `http://`, port or `*`, found `a:80`
        "#);
    }

    #[test]
    fn sockets_must_fit_and_files_be_ours_alone() {
        let long = "s".repeat(120);
        let scene = Scene::new(&format!("[control]\nsocket = \"/{long}\"\n"));
        assert!(scene.said().starts_with("batchd.toml:2:10: error: the socket's path"), "{}", scene.said());
        let scene = Scene::new("");
        fs::set_permissions(scene.path("batchd.toml"), fs::Permissions::from_mode(0o664)).unwrap();
        assert!(scene.said().starts_with("batchd.toml: warning: others may write"), "{}", scene.said());
    }
}
