//! The samples that people start from hold: the job specs in `jobs/`, the systemd unit, and what `README.md`
//! shows. (`config/batchd.toml` is held to the code beside it, in `src/config/load.rs`.)

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;

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

#[test]
fn unit_starts_a_command_that_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let unit = text("systemd/batchd.service");
    let [command] = setting(&unit, "ExecStart")[..] else { panic!("one ExecStart") };
    let (program, arguments) = command.split_once(' ').unwrap();
    assert_eq!(program, "/usr/local/bin/batchd");
    assert!(arguments.starts_with("run "), "{arguments}");
    // The arguments before `--help` are parsed first: one that there is not ends with 2.
    batchd(folder.path(), "").args(arguments.split(' ')).arg("--help").assert().code(0).stderr("");
}

#[test]
fn unit_stops_and_restarts_as_the_daemon_expects() {
    let unit = text("systemd/batchd.service");
    assert_eq!(setting(&unit, "Type"), ["exec"]);
    assert_eq!(setting(&unit, "KillSignal"), ["SIGTERM"]);
    assert_eq!(setting(&unit, "Restart"), ["on-failure"]);
    assert_eq!(setting(&unit, "RestartPreventExitStatus"), ["75 78"]);
    let stop = setting(&unit, "TimeoutStopSec")[0].strip_suffix('s').unwrap().parse::<u64>().unwrap();
    let config = text("config/batchd.toml");
    let grace = setting(&config, "#grace ")[0].trim().trim_matches('"').strip_suffix('s').unwrap();
    assert!(stop >= grace.parse::<u64>().unwrap() + 15, "{stop}s is not well above the grace of {grace}s");
}

#[test]
fn unit_keeps_the_state_and_the_key_where_its_words_say() {
    let folder = tempfile::tempdir().unwrap();
    let unit = text("systemd/batchd.service");
    let [credential] = setting(&unit, "LoadCredential")[..] else { panic!("one credential") };
    let (id, source) = credential.split_once(':').unwrap();
    // The configuration that the unit's head shows.
    let config: String = unit
        .lines()
        .skip_while(|line| !line.contains("root = "))
        .take(4)
        .fold(String::new(), |all, line| all + line.trim_start_matches('#').trim() + "\n");
    assert!(config.contains(&format!("root = \"/var/lib/{}\"", setting(&unit, "StateDirectory")[0])));
    assert!(config.contains(&format!("api_key_file = \"/run/credentials/batchd.service/{id}\"")));
    assert!(unit.contains(&format!("/dev/stdin {source} ")), "the head fills {source}");
    // `check` reads the configuration, but no key.
    let spec = repository("jobs/chat.toml");
    batchd(folder.path(), &config).arg("check").arg(spec).assert().code(0).stderr("");
}

#[test]
fn readme_examples_do_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let readme = text("README.md");
    let toml = blocks(&readme, "toml");
    let [openai, capitals, local, tune] = toml[..] else { panic!("{} blocks of TOML", toml.len()) };
    fs::write(folder.path().join("capitals.toml"), capitals).unwrap();
    fs::write(folder.path().join("countries.csv"), blocks(&readme, "csv")[0]).unwrap();
    fs::write(folder.path().join("fruit.chat.jsonl"), blocks(&readme, "json")[0]).unwrap();
    let said =
        blocks(&readme, "console")[0].strip_prefix("$ batchd check capitals.toml\n").unwrap().to_owned();
    batchd(folder.path(), openai).args(["check", "capitals.toml"]).assert().code(0).stdout(said).stderr("");
    batchd(folder.path(), local).args(["check", "fruit.chat.jsonl"]).assert().code(0).stderr("");
    fs::write(folder.path().join("support.toml"), tune).unwrap();
    fs::copy(repository("jobs/inputs/support.jsonl"), folder.path().join("support.jsonl")).unwrap();
    let checked = batchd(folder.path(), openai).args(["check", "support.toml"]).assert().code(0);
    let said = String::from_utf8(checked.get_output().stdout.clone()).unwrap();
    assert!(said.starts_with("support.toml: job `support` (fine_tune), 1 request\n"), "{said}");
    // Placed as it was named: the data goes along.
    batchd(folder.path(), openai).args(["submit", "capitals.toml"]).assert().code(0).stderr("");
    assert!(folder.path().join("batchd-data/jobs/capitals/countries.csv").exists());
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
