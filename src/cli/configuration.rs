//! `batchd config`: the configuration in force, or a sample of all that can be set.

use std::path::Path;

use super::args::ConfigArgs;
use super::report::Printer;
use super::{Done, Exit, Failure, load_config};
use crate::config::{self, Keys};

pub(super) fn run(args: ConfigArgs, config: Option<&Path>, printer: &mut Printer<'_>) -> Done {
    if args.sample {
        printer.data(config::sample())?;
        return Ok(Exit::Done);
    }
    // Where the keys come from is a part of it, the keys are not: anybody may look who may read the file.
    let loaded = load_config(config, Keys::Ignored)?;
    printer.findings(&loaded.warnings);
    let origin = match &loaded.path {
        Some(path) => format!("{}, and the defaults for what it doesn't say", path.display()),
        None => "no configuration file was found: the defaults".to_owned(),
    };
    printer.note(&origin);
    if args.json {
        printer.json(&loaded.config)?;
    } else {
        let text = toml::to_string(&loaded.config).map_err(|error| {
            Failure::new(Exit::Internal, format!("can't write the configuration: {error}"))
        })?;
        printer.data(&text)?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cli::report::tests::{Printed, batchd};

    fn shown_in(folder: &Path, text: &str, args: &[&str]) -> Printed {
        let file = folder.join("batchd.toml");
        fs::write(&file, text).unwrap();
        batchd(["config", "--config", file.to_str().unwrap()].iter().chain(args))
    }

    fn shown(text: &str, args: &[&str]) -> Printed {
        let folder = tempfile::tempdir().unwrap();
        let mut printed = shown_in(folder.path(), text, args);
        for text in [&mut printed.out, &mut printed.err] {
            *text = text.replace(folder.path().to_str().unwrap(), "DIR");
        }
        printed
    }

    const TEXT: &str = "[[providers]]\nname = \"openai\"\napi_key_file = \"keys/openai\"\n\
                        [providers.limits]\ntokens_per_minute = 5\n\
                        [[providers.models]]\nname = \"gpt-4*\"\nconcurrency = \"auto\"\n\
                        [storage]\nmin_free = \"1536MiB\"\n[retry]\nbase_delay = \"90s\"\nmax_delay = \"2m\"\n";

    const ENDPOINTS: &str = "[[providers]]\nname = \"x\"\napi_version = \"1\"\nca_file = \"ca.pem\"\n\
                             headers = { X-A = \"a\" }\nheaders_env = { X-B = \"TOKEN\" }\ntimeout = \"5m\"\n\
                             [[providers.endpoints]]\nurl = \"https://a.example/v1\"\napi_key_env = \"A\"\n\
                             [[providers.endpoints]]\nbase_url = \"https://b.example/v1\"\nweight = 3\n\
                             headers_env = { X-B = \"OTHER\" }\n";

    #[test]
    fn endpoints_and_headers_are_shown_by_where_their_secrets_come_from() {
        let out = shown(ENDPOINTS, &[]).out;
        let (_, providers) = out.split_once("[[providers]]\n").unwrap();
        let (providers, _) = providers.split_once("[retry]").unwrap();
        insta::assert_snapshot!(providers, @r#"
        name = "x"
        base_url = "https://a.example/v1"
        api_version = "1"
        ca_file = "DIR/ca.pem"
        timeout = "5m"
        connect_timeout = "10s"
        concurrency = 256
        max_reply = "64MiB"
        flex_timeout = "15m"
        strict = false
        stream = false
        models = []

        [providers.headers]
        X-A = "a"

        [providers.headers_env]
        X-B = "TOKEN"

        [[providers.endpoints]]
        url = "https://a.example/v1"
        api_key_env = "A"
        weight = 1

        [[providers.endpoints]]
        url = "https://b.example/v1"
        weight = 3

        [providers.endpoints.headers_env]
        X-B = "OTHER"

        [providers.limits]
        concurrency = 64
        "#);
        let json: serde_json::Value = serde_json::from_str(&shown(ENDPOINTS, &["--json"]).out).unwrap();
        assert_eq!(json["providers"][0]["endpoints"][1]["headers_env"]["X-B"], "OTHER");
    }

    #[test]
    fn every_key_is_shown_with_its_value_and_no_key_to_a_provider_is() {
        let printed = shown(TEXT, &[]);
        assert_eq!(printed.exit, Exit::Done);
        assert_eq!(printed.err, "DIR/batchd.toml, and the defaults for what it doesn't say\n");
        insta::assert_snapshot!(printed.out, @r#"
        root = "DIR/batchd-data"

        [intake]
        rescan = "5s"
        settle = "1s"
        input_dirs = []
        max_line = "16MiB"

        [[providers]]
        name = "openai"
        base_url = "https://api.openai.com/v1"
        api_key_file = "DIR/keys/openai"
        timeout = "10m"
        connect_timeout = "10s"
        concurrency = 256
        max_reply = "64MiB"
        flex_timeout = "15m"
        strict = false
        stream = false

        [providers.limits]
        concurrency = 64
        tokens_per_minute = 5

        [[providers.models]]
        name = "gpt-4*"
        concurrency = "auto"
        min = 1
        max = 256

        [retry]
        max_attempts = 6
        base_delay = "1m 30s"
        max_delay = "2m"

        [shutdown]
        grace = "30s"

        [log]
        level = "info"
        format = "auto"

        [control]
        socket = "DIR/batchd-data/batchd.sock"

        [http]
        hosts = []

        [storage]
        min_free = "1536MiB"
        keep_state = "7days"
        "#);
        let json: serde_json::Value = serde_json::from_str(&shown(TEXT, &["--json"]).out).unwrap();
        assert_eq!(json["providers"][0]["api_key_file"], "DIR/keys/openai");
        assert_eq!(json["providers"][0]["limits"]["requests_per_minute"], serde_json::Value::Null);
    }

    #[test]
    fn what_is_shown_is_a_configuration_that_says_the_same() {
        for text in ["", TEXT, ENDPOINTS] {
            let folder = tempfile::tempdir().unwrap();
            let once = shown_in(folder.path(), text, &[]);
            let twice = shown_in(folder.path(), &once.out, &[]);
            assert_eq!((twice.exit, &twice.out), (Exit::Done, &once.out), "{}", twice.err);
        }
    }

    #[test]
    fn sample_is_printed_as_it_is_and_problems_are_told() {
        assert_eq!(batchd(["config", "--sample"]).out, config::sample());
        let printed = shown("root = 5\n", &[]);
        assert_eq!((printed.exit, printed.out.as_str()), (Exit::BadConfig, ""));
        assert!(printed.err.starts_with("DIR/batchd.toml:1:8: error: "), "{}", printed.err);
        assert_eq!(batchd(["config", "--sample", "--json"]).exit, Exit::Usage);
    }
}
