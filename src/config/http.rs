//! The keys of `[http]`.

use std::net::SocketAddr;

use super::load::KeyReader;
use super::provider::secret;
use super::schema::Paths;
use super::section::{Document, Found, Section};
use crate::config::Http;
use crate::diag::printable;

/// The keys of which one says where the token is.
const TOKEN_KEYS: [&str; 2] = ["token_env", "token_file"];

/// A host's name as DNS has it.
const HOST_BYTES_MAX: usize = 253;

pub(super) fn read(
    document: &Document<'_>,
    top: &mut Section<'_>,
    paths: &Paths<'_>,
    keys: &KeyReader<'_>,
) -> Http {
    let mut section = top.section("http", "[http]");
    let listen = section.text("listen").and_then(|found| {
        let address = address(found.value);
        let address = address.inspect_err(|wrong| document.push(document.error(Some(found.at), wrong)));
        Some(Found { value: address.ok()?, at: found.at })
    });
    let names_token = TOKEN_KEYS.iter().any(|key| section.has(key));
    if let Some(listen) = listen.filter(|listen| !listen.value.ip().is_loopback() && !names_token) {
        let message = format!("`{}` is open to other machines, and no token is asked for", listen.value);
        let hint = "set `token_file` or `token_env`, or listen on `127.0.0.1`";
        document.push(document.error(Some(listen.at), message).hint(hint));
    }
    let token = secret(document, &mut section, TOKEN_KEYS, paths, keys);
    let http = Http {
        listen: listen.map(|listen| listen.value),
        token: token.value,
        token_env: token.variable,
        token_file: token.file,
        hosts: hosts(document, &mut section),
    };
    section.finish(|key| {
        (key == "token").then_some(
            "a token doesn't belong into this file: name the environment variable that holds it in \
             `token_env`, or a file in `token_file`",
        )
    });
    http
}

/// The error is a sentence.
fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "`listen` must be an IP address and a port, like `127.0.0.1:9464` or `[::1]:9464`, found `{}`",
            printable(text)
        )
    })
}

fn hosts(document: &Document<'_>, section: &mut Section<'_>) -> Vec<String> {
    let mut hosts = Vec::new();
    for found in section.texts("hosts") {
        if is_host(found.value) {
            hosts.push(found.value.trim_end_matches('.').to_ascii_lowercase());
        } else {
            let message = format!(
                "`hosts` must be names like `metrics.example.org`, without `http://`, port or `*`, found `{}`",
                printable(found.value)
            );
            document.push(document.error(Some(found.at), message));
        }
    }
    hosts
}

/// A name, or an IP address without brackets.
fn is_host(text: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let may_be_name = text.len() <= HOST_BYTES_MAX && text.contains(|c: char| c.is_ascii_alphanumeric());
    (may_be_name && text.chars().all(is_name)) || text.parse::<std::net::IpAddr>().is_ok()
}
