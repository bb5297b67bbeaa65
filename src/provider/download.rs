//! Fetches what an answer only points to: the image behind a `url`.
//!
//! # Invariants
//!
//! - The url is data from outside. It leads to public addresses, or to the host of `base_url` or of another endpoint
//!   of the provider, which the operator chose (a local server hands out urls of its own, perhaps from another port).
//! - No key is sent, not even there: such urls carry their own permission.
//! - A redirect stays on its host and port, never falls from https to http, and is checked like the first url.

use bytes::Bytes;
use reqwest::header::LOCATION;
use thiserror::Error;
use url::Url;

use crate::diag::printable;
use crate::provider::{HttpBody, HttpRequest, Provider, Reach, Settings, TransportError, openai};

/// Stores send one to a region's own address at most; the rest is patience.
pub(super) const REDIRECTS_MAX: u32 = 3;

/// Why there is no file.
#[derive(Debug, Error)]
pub enum DownloadError {
    /// The url, or where it redirects to, is none that batchd follows.
    #[error("the url is refused: {0}")]
    Refused(String),
    /// The server answered with this status.
    #[error("the server answered {0}")]
    Status(u16),
    /// The server answered well, with nothing.
    #[error("the file is empty")]
    Empty,
    /// There is no whole reply.
    #[error(transparent)]
    Transport(TransportError),
}

impl DownloadError {
    /// Whether the same url may do later.
    pub const fn is_worth_retrying(&self) -> bool {
        match self {
            Self::Refused(_) => false,
            Self::Empty => true,
            Self::Status(status) => matches!(status, 408 | 425 | 429 | 500 | 502..=599),
            Self::Transport(error) => {
                !matches!(error, TransportError::TooLarge(_) | TransportError::NotPublic(_))
            }
        }
    }
}

impl Provider {
    /// Fetches `url`, at most `max` bytes, within the provider's time-out for each hop.
    ///
    /// # Errors
    ///
    /// See [`DownloadError`]; its `is_worth_retrying` tells what may pass. No error holds the url, which is
    /// often a signed permission.
    pub async fn download(&self, url: &str, max: u64) -> Result<Bytes, DownloadError> {
        let access = self.access();
        let Settings { base_url, custom, .. } = &access.settings;
        let own = || std::iter::once(base_url).chain(&custom.siblings);
        let mut url = Url::parse(url).map_err(|error| refused(&error.to_string()))?;
        for _ in 0..=REDIRECTS_MAX {
            let exchange = self.transport.exchange(HttpRequest {
                method: reqwest::Method::GET,
                reach: reach(&url, own())?,
                url: url.clone(),
                headers: openai::plain_headers(),
                body: HttpBody::EMPTY,
                timeout: access.settings.timeout,
                waits: access.settings.waits,
                max_reply: max,
            });
            let reply = exchange.await.map_err(DownloadError::Transport)?;
            match reply.status {
                200..=299 if reply.body.is_empty() => return Err(DownloadError::Empty),
                200..=299 => return Ok(reply.body),
                301 | 302 | 303 | 307 | 308 => {
                    let target = reply.headers.get(LOCATION).and_then(|value| value.to_str().ok());
                    url = redirect(&url, target.ok_or_else(|| refused("a redirect without a target"))?)?;
                }
                status => return Err(DownloadError::Status(status)),
            }
        }
        Err(refused(&format!("more than {REDIRECTS_MAX} redirects")))
    }
}

fn refused(why: &str) -> DownloadError {
    DownloadError::Refused(printable(why))
}

/// How far a request to `url` may reach; an error if it may not be made at all.
/// `own`: where the provider itself is.
pub(super) fn reach<'a>(url: &Url, mut own: impl Iterator<Item = &'a Url>) -> Result<Reach, DownloadError> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refused(&format!("`{}` is neither http nor https", url.scheme())));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refused("it holds a user name or a password"));
    }
    // A server of one's own may serve its files on another port.
    if own.any(|own| url.host() == own.host()) {
        return Ok(Reach::Anywhere);
    }
    Ok(Reach::Public)
}

/// Where `target`, found at `from`, leads.
fn redirect(from: &Url, target: &str) -> Result<Url, DownloadError> {
    let to = from.join(target).map_err(|error| refused(&error.to_string()))?;
    let same_port = to.port_or_known_default() == from.port_or_known_default();
    if to.host() != from.host() || (to.scheme() == from.scheme() && !same_port) {
        return Err(refused("it redirects to another host"));
    }
    if from.scheme() == "https" && to.scheme() != "https" {
        return Err(refused("it redirects from https to http"));
    }
    Ok(to)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use secrecy::SecretString;

    use super::*;
    use crate::provider::HttpTransport;
    use crate::provider::testing::{Listener, http};

    fn provider(base_url: &str) -> Provider {
        let api_key = Some(SecretString::from("sk-CANARY"));
        let settings = Settings { api_key, max_reply: 1024, ..Settings::at(base_url) };
        Provider::new(settings, Arc::new(HttpTransport::new().unwrap()))
    }

    fn local(server: &Listener) -> (Provider, String) {
        let base_url = format!("http://{}", server.address());
        (provider(&format!("{base_url}/v1")), format!("{base_url}/a.png?sig=SIGNED"))
    }

    #[test]
    fn urls_reach_public_addresses_or_the_provider_itself() {
        let base_url = "http://10.0.0.5:8000/v1".parse().unwrap();
        for (url, expected) in [
            ("http://10.0.0.5:8000/images/a.png", Some(Reach::Anywhere)),
            ("https://1.1.1.1/a.png", Some(Reach::Public)),
            ("https://files.example.com/a.png", Some(Reach::Public)),
            ("http://localhost/a.png", Some(Reach::Public)),
            ("http://10.0.0.5:8001/a.png", Some(Reach::Anywhere)),
            ("http://10.0.0.6/a.png", Some(Reach::Public)), // and so refused, as is the next one
            ("http://127.0.0.1:8000/a.png", Some(Reach::Public)),
            ("https://user@1.1.1.1/a.png", None),
            ("https://:pw@1.1.1.1/a.png", None),
            ("ftp://1.1.1.1/a.png", None),
            ("file:///etc/passwd", None),
            ("data:image/png;base64,AAAA", None),
        ] {
            let found = reach(&url.parse().unwrap(), std::iter::once(&base_url));
            assert_eq!(found.as_ref().ok(), expected.as_ref(), "{url}: {found:?}");
        }
    }

    #[tokio::test]
    async fn a_file_arrives_and_no_key_was_sent_for_it() {
        let server = Listener::new(&http("200 OK", "", "PNG")).await;
        let (provider, url) = local(&server);
        assert_eq!(provider.download(&url, 3).await.unwrap(), "PNG");
        let sent = server.requests().pop().unwrap();
        assert!(sent.starts_with("GET /a.png?sig=SIGNED HTTP/1.1\r\n"), "{sent}");
        assert!(!sent.contains("CANARY") && !sent.to_lowercase().contains("authorization"), "{sent}");
    }

    #[tokio::test]
    async fn files_over_the_bound_are_refused_for_good() {
        let server = Listener::new(&http("200 OK", "", "PNGS")).await;
        let (provider, url) = local(&server);
        let error = provider.download(&url, 3).await.unwrap_err();
        assert!(matches!(error, DownloadError::Transport(TransportError::TooLarge(3))), "{error:?}");
        assert!(!error.is_worth_retrying());
    }

    #[tokio::test]
    async fn private_hosts_beside_the_provider_get_no_connection() {
        let server = Listener::new(&http("200 OK", "", "PNG")).await;
        let port = server.address().port();
        let provider = provider("http://127.0.0.2:9/v1");
        for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"] {
            let error = provider.download(&format!("http://{host}:{port}/a.png"), 100).await.unwrap_err();
            assert!(!error.is_worth_retrying(), "{host}: {error:?}");
        }
        assert_eq!(server.requests().len(), 0);
    }

    #[tokio::test]
    async fn redirects_on_the_same_host_are_followed_three_times_at_most() {
        let hop = http("302 Found", "location: /next\r\n", "");
        let file = http("200 OK", "", "PNG");
        let server = Listener::with_replies(vec![hop.clone(), hop.clone(), hop.clone(), file]).await;
        let (provider, url) = local(&server);
        assert_eq!(provider.download(&url, 100).await.unwrap(), "PNG");
        assert_eq!(server.requests().len(), 4);

        let server = Listener::new(&hop).await;
        let (provider, url) = local(&server);
        let error = provider.download(&url, 100).await.unwrap_err();
        assert_eq!(error.to_string(), "the url is refused: more than 3 redirects");
        assert_eq!(server.requests().len(), 4);
    }

    #[tokio::test]
    async fn redirects_elsewhere_are_refused() {
        let other = Listener::new(&http("200 OK", "", "secret")).await;
        for target in [
            format!("http://localhost:{}/", other.address().port()),
            format!("http://{}/", other.address()), // the provider's host, but another port
            "//example.com/a.png".to_owned(),
            "file:///etc/passwd".to_owned(),
            "http://[".to_owned(),
        ] {
            let server = Listener::new(&http("307 Go", &format!("location: {target}\r\n"), "")).await;
            let (provider, url) = local(&server);
            let error = provider.download(&url, 100).await.unwrap_err();
            assert!(!error.is_worth_retrying(), "{target}: {error:?}");
        }
        assert_eq!(other.requests().len(), 0);
        assert!(redirect(&"https://a/x".parse().unwrap(), "http://a/y").is_err());
    }

    #[tokio::test]
    async fn errors_say_whether_to_retry_and_never_the_url() {
        for (status, again) in [
            ("200 OK", true), // but empty
            ("403 No", false),
            ("404 No", false),
            ("410 Gone", false),
            ("429 Slow", true),
            ("503 Busy", true),
        ] {
            let server = Listener::new(&http(status, "", "")).await;
            let (provider, url) = local(&server);
            let error = provider.download(&url, 100).await.unwrap_err();
            assert_eq!(error.is_worth_retrying(), again, "{status}");
            assert!(!format!("{error}{error:?}").contains("SIGNED"));
        }
        let server = Listener::new(b"").await;
        let (provider, url) = local(&server);
        let error = provider.download(&url, 100).await.unwrap_err();
        assert!(error.is_worth_retrying() && !format!("{error}{error:?}").contains("SIGNED"), "{error:?}");
        assert!(!provider.download("no url", 100).await.unwrap_err().is_worth_retrying());
    }
}
