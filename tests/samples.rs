//! The samples that people start from hold: the job specs in `jobs/`, the systemd units, and what `README.md`
//! shows. (`config/batchd.toml` is held to the code beside it, in `src/config/load.rs`.)

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use batchd::simulate::{Script, Trouble};

/// A command of batchd that sees nothing of the environment, and no configuration but `config`.
fn batchd(folder: &Path, config: &str) -> Command {
    fs::write(folder.join("batchd.toml"), config).expect("a temporary folder can be written");
    let mut command = Command::cargo_bin("batchd").expect("cargo builds the program first");
    command.env_clear().current_dir(folder);
    command
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    fs::read_to_string(repository(path)).expect("the repository has it")
}

/// The values of a unit's settings, in their order.
fn setting<'t>(unit: &'t str, name: &str) -> Vec<&'t str> {
    unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect()
}

/// The fenced blocks of the README in `language`.
fn blocks<'t>(readme: &'t str, language: &str) -> Vec<&'t str> {
    let fence = format!("```{language}\n");
    readme.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap_or(rest)).collect()
}

#[test]
fn every_sample_job_spec_is_accepted_without_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let mut specs: Vec<PathBuf> =
        fs::read_dir(repository("jobs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    specs.retain(|path| path.is_file());
    assert!(specs.len() >= 11, "{specs:?}");
    for spec in specs {
        let checked = batchd(folder.path(), "").arg("check").arg(&spec).assert().code(0);
        let said = String::from_utf8(checked.get_output().stderr.clone()).unwrap();
        // So few examples, and such a small file, are worth a note.
        assert!(said.lines().all(|line| line.contains(": note: ")), "{said}");
    }
}

#[test]
fn sample_of_a_fine_tune_is_used_by_another_sample() {
    let folder = tempfile::tempdir().unwrap();
    let check = |spec: &str| {
        let checked =
            batchd(folder.path(), "").args(["check", "--json"]).arg(repository(spec)).assert().code(0);
        serde_json::from_slice::<serde_json::Value>(&checked.get_output().stdout).unwrap()[0].clone()
    };
    let tune = check("jobs/fine-tune.toml");
    assert_eq!(
        (tune["kind"].as_str(), tune["fine_tune"]["training"]["examples"].as_u64()),
        (Some("fine_tune"), Some(12))
    );
    let replies = check("jobs/tuned-replies.toml");
    assert_eq!(replies["waits_for"][0], tune["name"]);
    assert_eq!(replies["queues"][0]["queue"], "openai/job:fine-tune");
}

/// The units, and what an instance of each is called.
const UNITS: [(&str, &str); 2] = [("systemd/batchd.service", "batchd"), ("systemd/batchd@.service", "mine")];

/// The unit as systemd reads it for the instance `mine`, without comments.
fn unit(path: &str) -> String {
    let text = text(path).replace("%i", "mine");
    text.lines().filter(|line| !line.starts_with('#')).fold(String::new(), |all, line| all + line + "\n")
}

/// The one value of a setting, as a number of seconds.
fn seconds(unit: &str, name: &str) -> u64 {
    let values = setting(unit, name);
    assert_eq!(values.len(), 1, "{name}");
    humantime::parse_duration(&values.concat()).expect("a span of time").as_secs()
}

#[test]
fn units_start_a_command_that_there_is() {
    let folder = tempfile::tempdir().unwrap();
    for (path, name) in UNITS {
        let unit = unit(path);
        let [command] = setting(&unit, "ExecStart")[..] else { panic!("one ExecStart") };
        let (program, arguments) = command.split_once(' ').unwrap();
        assert_eq!(program, "/usr/bin/batchd");
        assert_eq!(arguments, format!("run --config /etc/batchd/{name}.toml"));
        // The arguments before `--help` are parsed first: one that there is not ends with 2.
        batchd(folder.path(), "").args(arguments.split(' ')).arg("--help").assert().code(0).stderr("");
        assert_eq!(setting(&unit, "ExecReload"), ["kill -HUP $MAINPID"]);
    }
}

#[test]
fn units_stop_and_restart_as_the_daemon_expects() {
    let folder = tempfile::tempdir().unwrap();
    let config = text("config/batchd.toml");
    let [grace] = setting(&config, "#grace ")[..] else { panic!("one grace") };
    let grace = humantime::parse_duration(grace.trim().trim_matches('"')).unwrap().as_secs();
    for (path, _) in UNITS {
        let unit = unit(path);
        assert_eq!((setting(&unit, "Type"), setting(&unit, "NotifyAccess")), (vec!["notify"], vec!["main"]));
        assert_eq!(
            (setting(&unit, "KillMode"), setting(&unit, "KillSignal")),
            (vec!["mixed"], vec!["SIGTERM"])
        );
        assert_eq!(setting(&unit, "Restart"), ["on-failure"]);
        assert!(seconds(&unit, "TimeoutStopSec") >= 2 * grace, "well above the grace of {grace}s");
        // A kill for a part that only waits for the disk would pay twice.
        assert!(seconds(&unit, "WatchdogSec") >= 30);
        let [codes] = setting(&unit, "RestartPreventExitStatus")[..] else { panic!("one list") };
        let codes: Vec<i32> = codes.split(' ').map(|code| code.parse().unwrap()).collect();
        assert_eq!(codes, [2, 75, 78, 243], "usage, another daemon, configuration; 243 is systemd's own");
        assert_eq!(setting(&unit, "SuccessExitStatus"), ["130"]);
    }
    // What they stand for, as far as the program can be brought to it here.
    batchd(folder.path(), "").args(["run", "--such"]).assert().code(2);
    batchd(folder.path(), "such = 1").arg("run").assert().code(78);
    let local = "[[providers]]\nname = \"a\"\nbase_url = \"http://127.0.0.1:1/v1\"\n";
    fs::create_dir_all(folder.path().join("batchd-data/state")).unwrap();
    let lock = fs::File::create(folder.path().join("batchd-data/state/lock")).unwrap();
    lock.lock().unwrap();
    batchd(folder.path(), local).args(["run", "--until-idle"]).assert().code(75);
}

#[test]
fn instances_differ_from_the_one_service_in_their_names_alone() {
    let [one, instance] = UNITS.map(|(path, _)| unit(path));
    let instance = instance
        .replace("/etc/batchd/mine.", "/etc/batchd/batchd.")
        .replace("batchd-mine", "batchd")
        .replace(" (mine)", "");
    assert_eq!(one.replace("\n\n", "\n"), instance.replace("\n\n", "\n"));
}

#[test]
fn units_and_their_folders_are_of_one_user_and_one_mount() {
    let users = text("systemd/sysusers.d/batchd.conf");
    assert!(users.lines().any(|line| line.starts_with("u batchd - ") && line.ends_with(" /var/lib/batchd")));
    let folders = text("systemd/tmpfiles.d/batchd.conf");
    let folders: Vec<Vec<&str>> = folders
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| line.split_whitespace().collect())
        .collect();
    let folder = |path: &str| {
        let found = folders.iter().find(|line| line[0] == "d" && line[1] == path);
        found.unwrap_or_else(|| panic!("{path}"))[2..5].to_vec()
    };
    for (path, name) in UNITS {
        let unit = unit(path);
        assert_eq!((setting(&unit, "User"), setting(&unit, "Group")), (vec!["batchd"], vec!["batchd"]));
        // A second writable path would be a second mount, and no rename leads from one to another.
        let root = if name == "batchd" { "batchd".to_owned() } else { format!("batchd-{name}") };
        assert_eq!(setting(&unit, "StateDirectory"), [root]);
        for elsewhere in
            ["ReadWritePaths", "RuntimeDirectory", "CacheDirectory", "LogsDirectory", "BindPaths"]
        {
            assert!(setting(&unit, elsewhere).is_empty(), "{elsewhere}");
        }
        assert_eq!(setting(&unit, "ProtectSystem"), ["strict"]);
        assert_eq!(setting(&unit, "LoadCredential"), [format!("key:/etc/batchd/{name}.keys")]);
        assert_eq!(setting(&unit, "StateDirectoryMode"), [folder("/var/lib/batchd")[0]]);
        assert_eq!(setting(&unit, "UMask"), ["0027"]);
    }
    assert_eq!(folder("/var/lib/batchd"), ["0750", "batchd", "batchd"]);
    for shared in ["/var/lib/batchd/jobs", "/var/lib/batchd/jobs/inputs"] {
        assert_eq!(folder(shared), ["3770", "batchd", "batchd"]);
        let grants = folders.iter().any(|line| line[0] == "a+" && line[1] == shared);
        assert!(grants, "the daemon may move what is dropped into {shared}");
    }
    assert_eq!(folder("/etc/batchd/batchd.keys"), ["0700", "root", "root"]);
}

#[test]
fn package_holds_what_there_is_and_its_configuration_fits_the_unit() {
    let manifest: toml::Table = text("Cargo.toml").parse().unwrap();
    let package = &manifest["package"];
    let deb = &package["metadata"]["deb"];
    let assets: Vec<[&str; 2]> = deb["assets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|asset| [0, 1].map(|at| asset[at].as_str().unwrap()))
        .collect();
    for [source, _] in &assets {
        // What is built is seen by `packaging/deb`.
        if !source.starts_with("target/") {
            let pattern = repository(source);
            let found = glob::glob(pattern.to_str().unwrap()).unwrap().count();
            assert!(found > 0, "{source}");
        }
    }
    let scripts = text("packaging/deb");
    for made in ["man/*.1", "completions/bash", "completions/zsh", "completions/fish"] {
        assert!(assets.iter().any(|[source, _]| *source == format!("target/packaging/{made}")), "{made}");
        let (folder, name) = made.split_once('/').unwrap();
        assert!(scripts.contains(folder) && (name.contains('*') || scripts.contains(name)), "{made}");
    }
    assert!(assets.contains(&["packaging/batchd.toml", "etc/batchd/"]));
    for path in ["license-file", "changelog"] {
        assert!(repository(deb[path].as_str().unwrap()).is_file(), "{path}");
    }
    let version = format!("batchd ({}-1) ", package["version"].as_str().unwrap());
    assert!(text("packaging/changelog").starts_with(&version), "{version}");
    // What is installed is what the README shows, and what the unit hands over.
    let folder = tempfile::tempdir().unwrap();
    let config: toml::Table = text("packaging/batchd.toml").parse().unwrap();
    let shown: toml::Table = blocks(&text("README.md"), "toml").last().unwrap().parse().unwrap();
    assert_eq!(config, shown);
    let unit = unit("systemd/batchd.service");
    assert_eq!(
        config["root"].as_str(),
        Some(format!("/var/lib/{}", setting(&unit, "StateDirectory")[0]).as_str())
    );
    let key = config["providers"][0]["api_key_file"].as_str().unwrap();
    assert_eq!(key, "/run/credentials/batchd.service/key_openai");
    let local = text("packaging/batchd.toml").replace("\n#[[", "\n[[").replace("\n#name", "\nname");
    let local = local.replace("\n#base_url", "\nbase_url");
    for config in [text("packaging/batchd.toml"), local] {
        batchd(folder.path(), &config).arg("config").assert().code(0);
    }
}

#[test]
fn readme_examples_do_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let readme = text("README.md");
    let toml = blocks(&readme, "toml");
    let [openai, capitals, local, endpoints, nightly, tune, service] = toml[..] else {
        panic!("{} blocks of TOML", toml.len())
    };
    fs::write(folder.path().join("capitals.toml"), capitals).unwrap();
    fs::write(folder.path().join("countries.csv"), blocks(&readme, "csv")[0]).unwrap();
    fs::write(folder.path().join("fruit.chat.jsonl"), blocks(&readme, "json")[0]).unwrap();
    let said =
        blocks(&readme, "console")[0].strip_prefix("$ batchd check capitals.toml\n").unwrap().to_owned();
    batchd(folder.path(), openai).args(["check", "capitals.toml"]).assert().code(0).stdout(said).stderr("");
    batchd(folder.path(), local).args(["check", "fruit.chat.jsonl"]).assert().code(0).stderr("");
    let shown = batchd(folder.path(), endpoints).arg("config").assert().code(0);
    let shown = String::from_utf8(shown.get_output().stdout.clone()).unwrap();
    assert_eq!(shown.matches("[[providers.endpoints]]\n").count(), 2, "{shown}");
    // The keys that are shown with `#` are right, too.
    for nightly in [nightly.to_owned(), nightly.replace("\n# ", "\n")] {
        fs::write(folder.path().join("nightly.toml"), nightly).unwrap();
        let checked = batchd(folder.path(), openai).args(["check", "nightly.toml"]).assert().code(0);
        let said = String::from_utf8(checked.get_output().stdout.clone()).unwrap();
        let expected = "nightly.toml: schedule `0 2 * * 1-5` (Asia/Shanghai), jobs `nightly-<time>` (chat)\n";
        assert!(said.starts_with(expected), "{said}");
    }
    fs::write(folder.path().join("support.toml"), tune).unwrap();
    fs::copy(repository("jobs/inputs/support.jsonl"), folder.path().join("support.jsonl")).unwrap();
    let checked = batchd(folder.path(), openai).args(["check", "support.toml"]).assert().code(0);
    let said = String::from_utf8(checked.get_output().stdout.clone()).unwrap();
    assert!(said.starts_with("support.toml: job `support` (fine_tune), 1 request\n"), "{said}");
    // `check` reads the configuration, but no key; the service finds it under the name of its file.
    batchd(folder.path(), service).args(["check", "support.toml"]).assert().code(0);
    let key = "/run/credentials/batchd.service/key_openai";
    assert!(service.contains(key) && readme.contains("/etc/batchd/batchd.keys/openai "), "{service}");
    // Placed as it was named: the data goes along.
    batchd(folder.path(), openai).args(["submit", "capitals.toml"]).assert().code(0).stderr("");
    assert!(folder.path().join("batchd-data/jobs/capitals/countries.csv").exists());
}

#[test]
fn readme_shows_a_script_that_can_be_played() {
    let readme = text("README.md");
    let script = readme.split("cat > hours.toml <<'END'\n").nth(1).unwrap().split("END\n").next().unwrap();
    let script = Script::parse("hours.toml", script).unwrap();
    let what: Vec<String> = script
        .events
        .iter()
        .map(|event| event.what.map_or_else(|| "settings".to_owned(), |what| what.to_string()))
        .collect();
    assert_eq!(what, ["down", "settings"]);
    // The other words that it names.
    for word in ["401", "quota", "model", "429", "500", "reset", "drip"] {
        word.parse::<Trouble>().unwrap();
    }
}

#[test]
fn readme_names_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let help = batchd(folder.path(), "").arg("--help").output().unwrap().stdout;
    let help = String::from_utf8(help).unwrap();
    let commands = help.split("Commands:\n").nth(1).unwrap().lines().take_while(|line| !line.is_empty());
    // A command's name is indented by two; what its words run over to, by more.
    let names =
        commands.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    let readme = text("README.md");
    for name in names.filter(|name| *name != "help") {
        assert!(
            readme.contains(&format!("| `batchd {name}")) || readme.contains(&format!(", `batchd {name} ")),
            "{name}"
        );
    }
}
