//! The keys of `[[providers]]`: their defaults and ranges, and where the key to each server is read from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use super::endpoint::{self, OPENAI};
use super::load::{KeyReader, read_key_file};
use super::schema::{DAY, GIB, HOUR, KIB, MIB, MILLISECOND, Paths};
use super::section::{Document, Found, Section};
use super::{ca_file, headers};
use crate::config::{Concurrency, Endpoint, Limits, ModelLimits, Provider};
use crate::diag::printable;

const OPENAI_KEY: &str = "OPENAI_API_KEY";

/// It is a part of every queue's name and of metrics.
const NAME_BYTES_MAX: usize = 64;

/// More connections than one process should hold to a server.
const CONCURRENCY_MAX: u32 = 10_000;

/// Far above what any server grants: a slip of the finger is noticed, nobody is held back.
const REQUESTS_PER_MINUTE_MAX: u32 = 100_000_000;
const TOKENS_PER_MINUTE_MAX: u64 = 1_000_000_000_000;

/// `[[providers]]`; without any, OpenAI.
pub(super) fn read_all(
    document: &Document<'_>,
    top: &mut Section<'_>,
    paths: &Paths<'_>,
    keys: &KeyReader<'_>,
) -> Vec<Provider> {
    let Some(sections) = top.sections("providers", "[[providers]]") else {
        return vec![default_provider(document, paths, keys)];
    };
    if sections.is_empty() {
        let hint = "leave the key out to use OpenAI, or write `[[providers]]` with a `name` and a `base_url`";
        document.push(document.error(None, "`providers` is empty").hint(hint));
    }
    let mut lines: BTreeMap<String, u32> = BTreeMap::new();
    let mut providers = Vec::new();
    for section in sections {
        let at = section.at();
        let provider = provider(document, section, paths, keys);
        if let Some(first) = lines.get(&provider.name) {
            let message = format!("a second provider is called `{}`", provider.name);
            let hint = format!("the first stands on line {first}: give each a `name` of its own");
            document.push(document.error(at, message).hint(hint));
        } else {
            lines.insert(provider.name.clone(), document.place(at).0);
        }
        providers.push(provider);
    }
    providers
}

/// What holds when the file names no provider.
fn default_provider(document: &Document<'_>, paths: &Paths<'_>, keys: &KeyReader<'_>) -> Provider {
    let mut provider = provider(document, Section::top(document, None), paths, keys);
    provider.api_key_env = Some(OPENAI_KEY.to_owned());
    if keys.is_ignored() {
        return provider;
    }
    match keys.read_variable(OPENAI_KEY) {
        Ok(key) => provider.api_key = Some(key),
        Err(message) => {
            let hint = format!(
                "`export {OPENAI_KEY}=sk-…` to use OpenAI, or name another server in `batchd.toml`: \
                 `[[providers]]` with a `name` and a `base_url`"
            );
            document.push(document.error(None, message).hint(hint));
        }
    }
    provider
}

fn provider(
    document: &Document<'_>,
    mut section: Section<'_>,
    paths: &Paths<'_>,
    keys: &KeyReader<'_>,
) -> Provider {
    let name = provider_name(document, &mut section);
    let (endpoints, mut places): (Vec<Endpoint>, Vec<Option<usize>>) =
        endpoint::read_all(document, &mut section, paths, keys).into_iter().unzip();
    let base_url = endpoint::base_url(document, &mut section, &name, &endpoints);
    // Where it is wrong nothing can be odd about it.
    if let (Some(base_url), true) = (&base_url, places.is_empty()) {
        places.push(Some(base_url.at));
    }
    let key = secret(document, &mut section, ["api_key_env", "api_key_file"], paths, keys);
    let concurrency = number(&mut section, "concurrency", CONCURRENCY_MAX).unwrap_or(256);
    let provider = Provider {
        // Where it is wrong it has been reported, and stands for nothing.
        base_url: base_url.map_or_else(endpoint::openai_url, |found| found.value),
        api_key: key.value,
        api_key_env: key.variable,
        api_key_file: key.file,
        api_version: endpoint::api_version(document, &mut section),
        headers: headers::read(document, &mut section, keys),
        ca_file: ca_file::read(document, &mut section, paths, keys),
        endpoints,
        timeout: section.duration("timeout", Duration::from_mins(10), MILLISECOND..=DAY),
        connect_timeout: section.duration("connect_timeout", Duration::from_secs(10), MILLISECOND..=HOUR),
        first_byte_timeout: section.duration_if_given("first_byte_timeout", MILLISECOND..=DAY),
        idle_timeout: section.duration_if_given("idle_timeout", MILLISECOND..=DAY),
        concurrency,
        max_reply: section.size("max_reply", 64 * MIB, KIB..=4 * GIB),
        flex_timeout: section.duration("flex_timeout", Duration::from_mins(15), MILLISECOND..=DAY),
        flex_fallback: section.duration_if_given("flex_fallback", MILLISECOND..=DAY),
        strict: section.flag("strict", false),
        stream: section.flag("stream", false),
        limits: limits(document, &mut section, concurrency),
        models: models(document, &mut section, concurrency),
        name,
    };
    section.finish(endpoint::key_advice);
    endpoint::push_oddities(document, &provider, &places);
    provider
}

fn provider_name(document: &Document<'_>, section: &mut Section<'_>) -> String {
    let Some(found) = section.text("name") else { return OPENAI.to_owned() };
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if found.value.is_empty() || found.value.len() > NAME_BYTES_MAX || !found.value.chars().all(allowed) {
        let message = format!(
            "`name` must be 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` or `.`, found `{}`",
            printable(found.value)
        );
        document.push(document.error(Some(found.at), message));
    }
    found.value.to_owned()
}

/// A secret, and where it is read from.
#[derive(Default)]
pub(super) struct Secret {
    pub(super) value: Option<SecretString>,
    pub(super) variable: Option<String>,
    pub(super) file: Option<PathBuf>,
}

/// What `in_variable` or `in_file` names: two keys of the section, of which at most one may be there.
pub(super) fn secret(
    document: &Document<'_>,
    section: &mut Section<'_>,
    [in_variable, in_file]: [&'static str; 2],
    paths: &Paths<'_>,
    keys: &KeyReader<'_>,
) -> Secret {
    let variable = section.text(in_variable);
    let file = section.text(in_file);
    if let (Some(_), Some(file)) = (variable, file) {
        let message = format!("`{in_variable}` and `{in_file}` are both set: the key can come from one");
        document.push(document.error(Some(file.at), message));
        return Secret::default();
    }
    let path = paths.one(file);
    let read = match (variable, file, &path) {
        _ if keys.is_ignored() => None,
        (Some(variable), ..) => Some((variable.at, keys.read_variable(variable.value))),
        (None, Some(file), Some(path)) => Some((file.at, key_of_file(document, file, path))),
        (None, ..) => None,
    };
    let read = read.map(|(at, read)| {
        read.inspect_err(|message| document.push(document.error(Some(at), message.clone()))).ok()
    });
    Secret { value: read.flatten(), variable: variable.map(|found| found.value.to_owned()), file: path }
}

fn key_of_file(document: &Document<'_>, found: Found<&str>, path: &Path) -> Result<SecretString, String> {
    let (key, open) = read_key_file(path)?;
    if open {
        let message = format!("everybody may read the key in `{}`", path.display());
        document.push(document.warning(Some(found.at), message).hint("`chmod 600` it"));
    }
    Ok(key)
}

fn limits(document: &Document<'_>, provider: &mut Section<'_>, most: u32) -> Limits {
    let default = Limits::default();
    let mut section = provider.section("limits", "[providers.limits]");
    let limits = Limits {
        concurrency: concurrency(document, &mut section, most).unwrap_or(default.concurrency),
        requests_per_minute: number(&mut section, "requests_per_minute", REQUESTS_PER_MINUTE_MAX),
        tokens_per_minute: section.number("tokens_per_minute", 1..=TOKENS_PER_MINUTE_MAX),
    };
    section.finish(limit_advice);
    limits
}

fn models(document: &Document<'_>, provider: &mut Section<'_>, most: u32) -> Vec<ModelLimits> {
    let sections = provider.sections("models", "[[providers.models]]").unwrap_or_default();
    sections.into_iter().filter_map(|section| model(document, section, most)).collect()
}

fn model(document: &Document<'_>, mut section: Section<'_>, most: u32) -> Option<ModelLimits> {
    let name = section.text("name");
    if name.is_none() {
        let hint = "write the model it is about, or a pattern like `name = \"gpt-4.1*\"`";
        document.push(document.error(section.at(), "`[[providers.models]]` has no `name`").hint(hint));
    }
    if let Some(name) = name
        && let Err(error) = glob::Pattern::new(name.value)
    {
        let message = format!("`{}` is no pattern: {}", printable(name.value), error.msg);
        document.push(document.error(Some(name.at), message));
    }
    let limits = ModelLimits {
        name: name.map_or("", |name| name.value).to_owned(),
        concurrency: concurrency(document, &mut section, most),
        requests_per_minute: number(&mut section, "requests_per_minute", REQUESTS_PER_MINUTE_MAX),
        tokens_per_minute: section.number("tokens_per_minute", 1..=TOKENS_PER_MINUTE_MAX),
    };
    section.finish(limit_advice);
    name.map(|_| limits)
}

/// A number, or `auto` with its bounds. `most`: how many the provider may have in flight altogether.
fn concurrency(document: &Document<'_>, section: &mut Section<'_>, most: u32) -> Option<Concurrency> {
    let key = "concurrency";
    let value = section.value(key);
    let is_auto = value.is_some_and(|value| value.get_ref().as_str() == Some("auto"));
    let min_at = section.value("min").map(|value| value.span().start);
    let [min, max] = ["min", "max"].map(|key| bound(document, section, key, is_auto));
    let value = value?;
    if is_auto {
        let max = max.unwrap_or_else(|| most.max(min.unwrap_or(1)));
        let min = min.unwrap_or(1);
        if min > max {
            let message = format!("`min` is `{min}`, expected no more than `max`, which is `{max}`");
            document.push(document.error(min_at, message).hint("raise `max`, or lower `min`"));
        }
        return Some(Concurrency::Auto { min: min.min(max), max });
    }
    if value.get_ref().as_integer().is_none() {
        section.wrong_type(key, value, "a whole number or `\"auto\"`");
        return None;
    }
    number(section, key, CONCURRENCY_MAX).map(Concurrency::Fixed)
}

/// A bound of `auto`: out of place beside anything else.
fn bound(
    document: &Document<'_>,
    section: &mut Section<'_>,
    key: &'static str,
    is_auto: bool,
) -> Option<u32> {
    let at = section.value(key)?.span().start;
    if !is_auto {
        let hint = "write `concurrency = \"auto\"` beside it, or leave it out";
        let message = format!("`{key}` bounds `concurrency = \"auto\"`, which is not there");
        document.push(document.error(Some(at), message).hint(hint));
        return None;
    }
    number(section, key, CONCURRENCY_MAX)
}

fn number(section: &mut Section<'_>, key: &'static str, most: u32) -> Option<u32> {
    section.number(key, 1..=u64::from(most)).and_then(|number| u32::try_from(number).ok())
}

/// The shorthands that other programs use.
fn limit_advice(key: &str) -> Option<&'static str> {
    match key {
        "rpm" => Some("did you mean `requests_per_minute`?"),
        "tpm" => Some("did you mean `tokens_per_minute`?"),
        _ => None,
    }
}
