//! Where a provider is asked: its own address and key, and those of `[[providers.endpoints]]`.

use std::collections::BTreeMap;

use url::{Host, Url};

use super::headers::{self, Headers};
use super::load::KeyReader;
use super::provider::secret;
use super::schema::Paths;
use super::section::{Document, Found, Section};
use crate::config::{Endpoint, Provider, Site};
use crate::diag::printable;

pub(super) const OPENAI: &str = "openai";
const OPENAI_URL: &str = "https://api.openai.com/v1";

/// What is known of each is kept for every queue, and in one word of bits.
const ENDPOINTS_MAX: usize = 64;

/// Beyond this a share would not be one any more.
const WEIGHT_MAX: u64 = 100;

/// Longer than every version that Azure has had.
const VERSION_BYTES_MAX: usize = 64;

impl Provider {
    /// Where it is asked, at least one place: its endpoints, each with what it leaves to the provider, else itself.
    pub fn sites(&self) -> Vec<Site> {
        let own = || Site {
            url: self.base_url.clone(),
            api_key: self.api_key.clone(),
            api_version: self.api_version.clone(),
            headers: self.headers.values.clone(),
            weight: 1,
        };
        if self.endpoints.is_empty() {
            return vec![own()];
        }
        let site = |endpoint: &Endpoint| {
            let has_key = endpoint.api_key_env.is_some() || endpoint.api_key_file.is_some();
            let Site { url, api_key, api_version, .. } = own();
            Site {
                url: endpoint.url.clone().unwrap_or(url),
                api_key: if has_key { endpoint.api_key.clone() } else { api_key },
                api_version: endpoint.api_version.clone().or(api_version),
                headers: self.headers.replaced_by(&endpoint.headers),
                weight: endpoint.weight,
            }
        };
        self.endpoints.iter().map(site).collect()
    }
}

/// `[[providers.endpoints]]`
pub(super) fn read_all(
    document: &Document<'_>,
    provider: &mut Section<'_>,
    paths: &Paths<'_>,
    keys: &KeyReader<'_>,
) -> Vec<(Endpoint, Option<usize>)> {
    let sections = provider.sections("endpoints", "[[providers.endpoints]]").unwrap_or_default();
    if sections.len() > ENDPOINTS_MAX {
        let message = format!("a provider has at most {ENDPOINTS_MAX} endpoints, found {}", sections.len());
        document.push(document.error(provider.at(), message));
    }
    sections.into_iter().map(|section| read(document, section, paths, keys)).collect()
}

/// And where its address stands, or itself; none if the address is wrong: nothing can be odd about it then.
fn read(
    document: &Document<'_>,
    mut section: Section<'_>,
    paths: &Paths<'_>,
    keys: &KeyReader<'_>,
) -> (Endpoint, Option<usize>) {
    // As the provider's is called: nobody should have to look it up.
    let (url, base_url) = (section.text("url"), section.text("base_url"));
    if let (Some(_), Some(second)) = (url, base_url) {
        let message = "`url` and `base_url` are both set: they say the same";
        document.push(document.error(Some(second.at), message));
    }
    let url = url.map(|found| ("url", found)).or_else(|| base_url.map(|found| ("base_url", found)));
    let mut at = url.map(|(_, found)| found.at).or_else(|| section.at());
    let url = url.map(|(key, found)| {
        address(document, key, found).unwrap_or_else(|| {
            at = None;
            Found { value: openai_url(), at: found.at }
        })
    });
    let key = secret(document, &mut section, ["api_key_env", "api_key_file"], paths, keys);
    let endpoint = Endpoint {
        url: url.map(|found| found.value),
        api_key: key.value,
        api_key_env: key.variable,
        api_key_file: key.file,
        api_version: api_version(document, &mut section),
        headers: headers::read(document, &mut section, keys),
        weight: section.number("weight", 1..=WEIGHT_MAX).and_then(|n| u32::try_from(n).ok()).unwrap_or(1),
    };
    section.finish(key_advice);
    (endpoint, at)
}

pub(super) fn key_advice(key: &str) -> Option<&'static str> {
    (key == "api_key").then_some(
        "a key doesn't belong into this file: name the environment variable that holds it in `api_key_env`, or a file \
         in `api_key_file`",
    )
}

pub(super) fn api_version(document: &Document<'_>, section: &mut Section<'_>) -> Option<String> {
    let found = section.text("api_version")?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if found.value.is_empty() || found.value.len() > VERSION_BYTES_MAX || !found.value.chars().all(allowed) {
        let message =
            format!("`api_version` must be a version like `2024-10-21`, found `{}`", printable(found.value));
        document.push(document.error(Some(found.at), message));
        return None;
    }
    Some(found.value.to_owned())
}

/// Says what is odd about where a provider is asked. `places`: where its endpoints stand in the file, else itself.
pub(super) fn push_oddities(document: &Document<'_>, provider: &Provider, places: &[Option<usize>]) {
    let mut seen: BTreeMap<_, u32> = BTreeMap::new();
    for (number, (site, at)) in provider.sites().iter().zip(places).enumerate() {
        let Some(at) = *at else { continue };
        let endpoint = provider.endpoints.get(number);
        let own = endpoint.map(|endpoint| (&endpoint.api_key_env, &endpoint.api_key_file));
        let own = own.filter(|(variable, file)| variable.is_some() || file.is_some());
        let (variable, file) = own.unwrap_or((&provider.api_key_env, &provider.api_key_file));
        let is_secret = |headers: &Headers| !headers.variables.is_empty();
        let has_secret = is_secret(&provider.headers) || endpoint.is_some_and(|own| is_secret(&own.headers));
        push_key_warnings(document, provider, site, (at, variable.is_some() || file.is_some(), has_secret));
        // One key may be several accounts, told apart by a header.
        let headers = (&site.headers, endpoint.map(|endpoint| &endpoint.headers.variables));
        let identity = (site.url.clone(), variable.clone(), file.clone(), format!("{headers:?}"));
        if let Some(line) = seen.get(&identity) {
            let message = format!("a second endpoint of `{}` has the same url and key", provider.name);
            let hint = format!(
                "the first stands on line {line}: give one of them another key, or another header, or the first a higher `weight`"
            );
            document.push(document.error(Some(at), message).hint(hint));
        } else {
            seen.insert(identity, document.place(Some(at)).0);
        }
    }
}

/// A key on its way to the wrong ears, or none where one is asked for; and a url of Azure's that leads nowhere.
/// `names_key`: it has one; `has_secret`: among its headers there is one.
fn push_key_warnings(
    document: &Document<'_>,
    provider: &Provider,
    site: &Site,
    (at, names_key, has_secret): (usize, bool, bool),
) {
    let (url, host) = (&site.url, site.url.host_str().unwrap_or_default());
    let (message, hint) = if (names_key || has_secret) && url.scheme() == "http" && !is_this_machine(url) {
        (format!("the key of `{}` goes to `{host}` unencrypted", provider.name), "use https, or a tunnel")
    } else if !(names_key || has_secret) && url.host_str() == openai_url().host_str() {
        (format!("no key is sent to `{host}`"), "write `api_key_env = \"OPENAI_API_KEY\"`")
    } else if host.contains(".openai.azure.")
        && site.api_version.is_none()
        && matches!(url.path(), "/" | "/openai")
    {
        let message = format!("Azure's API does not begin at `{url}` alone");
        (message, "add `/openai/v1`, or set `api_version` to ask by deployments")
    } else {
        return;
    };
    document.push(document.warning(Some(at), message).hint(hint));
}

/// The provider's own address. None if it is wrong or missing, which has then been reported, and for the provider that
/// no file names. `endpoints` may make it superfluous.
pub(super) fn base_url(
    document: &Document<'_>,
    section: &mut Section<'_>,
    name: &str,
    endpoints: &[Endpoint],
) -> Option<Found<Url>> {
    let Some(found) = section.text("base_url") else {
        let at = section.at()?;
        let first = endpoints.first().and_then(|endpoint| endpoint.url.as_ref());
        if let Some(first) = first.filter(|_| endpoints.iter().all(|endpoint| endpoint.url.is_some())) {
            return Some(Found { value: first.clone(), at });
        }
        if name == OPENAI {
            return Some(Found { value: openai_url(), at });
        }
        let message = format!("the provider `{}` has no `base_url`", printable(name));
        let hint = "write where its API begins, like `base_url = \"http://127.0.0.1:8000/v1\"`";
        document.push(document.error(Some(at), message).hint(hint));
        return None;
    };
    address(document, "base_url", found)
}

fn address(document: &Document<'_>, key: &str, found: Found<&str>) -> Option<Found<Url>> {
    let url = valid_url(key, found.value);
    let url = url.inspect_err(|message| document.push(document.error(Some(found.at), message.clone())));
    url.ok().map(|value| Found { value, at: found.at })
}

pub(super) fn openai_url() -> Url {
    Url::parse(OPENAI_URL).expect("our own url is one")
}

/// Without a trailing slash, and without anything that would end up in logs or be lost when paths are added.
fn valid_url(key: &str, text: &str) -> Result<Url, String> {
    // What can't be parsed, and what holds a password, is not repeated: reports end up in logs.
    let expected = "expected one like `https://api.openai.com/v1`";
    let mut url = Url::parse(text).map_err(|error| format!("`{key}` is no url ({error}): {expected}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("`{key}` holds a user name or a password: use `api_key_env` or `api_key_file`"));
    }
    let shown = printable(text);
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("`{key}` must begin with `http://` or `https://`, found `{shown}`"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        let hint =
            if text.contains("?api-version=") { ": Azure's version belongs into `api_version`" } else { "" };
        return Err(format!("`{key}` must not have a `?` or a `#`, found `{shown}`{hint}"));
    }
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty();
    }
    Ok(url)
}

fn is_this_machine(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(domain)) => domain == "localhost" || domain.ends_with(".localhost"),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use secrecy::ExposeSecret;

    use crate::config::load::tests::Scene;
    use crate::config::{Keys, Provider};

    /// A folder with the keys `a` and `b`.
    fn scene(toml: &str) -> Scene {
        let scene = Scene::new(toml);
        scene.write("a", "sk-CANARY-a");
        scene.write("b", "sk-CANARY-b");
        scene
    }

    fn provider(scene: &Scene) -> Provider {
        let loaded = scene.load().unwrap_or_else(|report| panic!("{report}"));
        assert!(!format!("{loaded:?}").contains("CANARY"));
        loaded.config.providers.into_iter().next().unwrap()
    }

    /// Url, key, version and weight of each.
    fn sites(provider: &Provider) -> Vec<(String, Option<String>, Option<String>, u32)> {
        let key = |site: &super::Site| {
            site.api_key.as_ref().map(|key| key.expose_secret().trim_start_matches("sk-CANARY-").to_owned())
        };
        let sites = provider.sites().into_iter();
        sites.map(|site| (site.url.to_string(), key(&site), site.api_version.clone(), site.weight)).collect()
    }

    #[test]
    fn a_provider_without_endpoints_is_one_itself_and_they_take_from_it_what_they_leave_out() {
        let text = "[[providers]]\nname = \"x\"\nbase_url = \"https://x/v1\"\napi_key_file = \"a\"\napi_version = \"1\"\n";
        let one = provider(&scene(text));
        let own = ("https://x/v1".to_owned(), Some("a".to_owned()), Some("1".to_owned()), 1);
        assert_eq!(sites(&one), [own]);
        let several = provider(&scene(&format!(
            "{text}[[providers.endpoints]]\nurl = \"https://y\"\nweight = 7\n\
             [[providers.endpoints]]\napi_key_file = \"b\"\n\
             [[providers.endpoints]]\nbase_url = \"https://z/v1/\"\napi_version = \"2\"\n"
        )));
        let site = |url: &str, key: &str, version: &str, weight| {
            (url.to_owned(), Some(key.to_owned()), Some(version.to_owned()), weight)
        };
        let expected = [
            site("https://y/", "a", "1", 7),
            site("https://x/v1", "b", "1", 1),
            site("https://z/v1", "a", "2", 1),
        ];
        assert_eq!(sites(&several), expected);
        // With a url each, the provider needs none.
        let without = "[[providers]]\nname = \"x\"\n[[providers.endpoints]]\nurl = \"https://y/v1\"\n";
        assert_eq!(sites(&provider(&scene(without))), [("https://y/v1".to_owned(), None, None, 1)]);
    }

    #[test]
    fn problems_of_endpoints_headers_and_certificates_are_all_found_where_they_stand() {
        let mut scene = scene(
            "[[providers]]\n\
             name = \"x\"\n\
             api_version = \"2024 10\"\n\
             ca_file = \"a\"\n\
             headers = { \"a b\" = \"x\", Authorization = \"x\", X-Empty = \"\", X-Number = 5 }\n\
             headers_env = { X-None = \"NONE\", Content-Length = \"NONE\", X-Bad = \"BAD\" }\n\
             [[providers.endpoints]]\n\
             url = \"https://y/v1?api-version=1\"\n\
             weight = 0\n\
             [[providers.endpoints]]\n\
             url = \"https://y/v1\"\n\
             base_url = \"https://y/v1\"\n\
             api_key = \"sk-CANARY\"\n\
             [[providers]]\n\
             name = \"two\"\n\
             base_url = \"https://y/v1\"\n\
             ca_file = \"nowhere.pem\"\n\
             headers = { X-Twice = \"x\" }\n\
             headers_env = { x-twice = \"OPENAI_API_KEY\" }\n\
             [[providers.endpoints]]\n\
             [[providers.endpoints]]\n",
        );
        scene.variables.push(("BAD", "CANARY\u{7}".into()));
        insta::assert_snapshot!(scene.said(), @r#"
        batchd.toml:3:15: error: `api_version` must be a version like `2024-10-21`, found `2024 10`
        batchd.toml:4:11: error: the file `DIR/a` holds no certificate
          hint: expected certificates in PEM: `-----BEGIN CERTIFICATE-----` and so on
        batchd.toml:5:13: error: `a b` is no name of a header: expected one like `OpenAI-Organization`
        batchd.toml:5:26: error: batchd sets the header `Authorization` itself
          hint: the key comes from `api_key_env` or `api_key_file`
        batchd.toml:5:57: error: the value of the header `X-Empty` is empty or holds control characters
        batchd.toml:5:72: error: `X-Number` must be a string, found `5`
        batchd.toml:6:26: error: the environment variable `NONE` is not set
        batchd.toml:6:34: error: batchd sets the header `Content-Length` itself
          hint: leave it out
        batchd.toml:6:67: error: the environment variable `BAD` holds characters that no header has
        batchd.toml:8:7: error: `url` must not have a `?` or a `#`, found `https://y/v1?api-version=1`: Azure's version belongs into `api_version`
        batchd.toml:9:10: error: `weight` must be from `1` to `100`, found `0`
        batchd.toml:12:12: error: `url` and `base_url` are both set: they say the same
        batchd.toml:13:1: error: unknown key `api_key` in `[[providers.endpoints]]`
          hint: a key doesn't belong into this file: name the environment variable that holds it in `api_key_env`, or a file in `api_key_file`
        batchd.toml:17:11: error: the file `DIR/nowhere.pem` can't be read: No such file or directory (os error 2)
          hint: expected certificates in PEM: `-----BEGIN CERTIFICATE-----` and so on
        batchd.toml:19:17: error: the header `x-twice` is given twice, whatever the case of its letters
        batchd.toml:21:1: error: a second endpoint of `two` has the same url and key
          hint: the first stands on line 20: give one of them another key, or another header, or the first a higher `weight`
        "#);
    }

    #[test]
    fn one_key_may_be_several_accounts_told_apart_by_a_header() {
        let text = "[[providers]]\nname = \"x\"\nbase_url = \"https://x/v1\"\n";
        let projects = ["a", "b"].map(|project| {
            format!("[[providers.endpoints]]\nheaders = {{ OpenAI-Project = \"{project}\" }}\n")
        });
        assert_eq!(provider(&scene(&format!("{text}{}", projects.concat()))).sites().len(), 2);
    }

    #[test]
    fn a_key_that_goes_out_unencrypted_and_azures_bare_host_are_warned_of_at_each_endpoint() {
        let said = scene(
            "[[providers]]\nname = \"x\"\napi_key_file = \"a\"\n\
             [[providers.endpoints]]\nurl = \"http://10.0.0.1/v1\"\n\
             [[providers.endpoints]]\nurl = \"http://127.0.0.1/v1\"\n\
             [[providers.endpoints]]\nurl = \"https://r.openai.azure.com\"\n\
             [[providers.endpoints]]\nurl = \"https://r.openai.azure.com/openai/v1\"\n\
             [[providers]]\nname = \"y\"\nbase_url = \"http://10.0.0.1/v1\"\n\
             headers_env = { X-Token = \"OPENAI_API_KEY\" }\n",
        )
        .said();
        insta::assert_snapshot!(said, @r#"
        batchd.toml:5:7: warning: the key of `x` goes to `10.0.0.1` unencrypted
          hint: use https, or a tunnel
        batchd.toml:9:7: warning: Azure's API does not begin at `https://r.openai.azure.com/` alone
          hint: add `/openai/v1`, or set `api_version` to ask by deployments
        batchd.toml:14:12: warning: the key of `y` goes to `10.0.0.1` unencrypted
          hint: use https, or a tunnel
        "#);
    }

    #[test]
    fn headers_come_from_the_file_and_the_environment_and_secrets_never_show() {
        let mut scene = scene(
            "[[providers]]\nname = \"x\"\nbase_url = \"https://x/v1\"\n\
             headers = { OpenAI-Organization = \"org-5\", X-Gate = \"a\" }\nheaders_env = { X-Token = \"TOKEN\" }\n\
             [[providers.endpoints]]\nheaders = { x-gate = \"b c\" }\n\
             [[providers.endpoints]]\napi_key_file = \"a\"\n",
        );
        scene.variables.push(("TOKEN", " Bearer t-CANARY\n".into()));
        let provider = provider(&scene);
        let sites = provider.sites();
        let value = |site: usize, name: &str| sites[site].headers[name].to_str().unwrap().to_owned();
        assert_eq!(
            (value(0, "openai-organization"), value(0, "x-gate")),
            ("org-5".to_owned(), "b c".to_owned())
        );
        assert_eq!((value(1, "x-token"), value(1, "x-gate")), ("Bearer t-CANARY".to_owned(), "a".to_owned()));
        assert!(sites.iter().all(|site| site.headers["x-token"].is_sensitive()));
        // For commands that call nobody they are not looked for.
        scene.variables.clear();
        assert!(scene.load_with(None, Keys::Ignored).is_ok() && scene.load().is_err());
    }

    #[test]
    fn certificates_are_checked_when_they_are_named() {
        let scene = scene("[[providers]]\nname = \"x\"\nbase_url = \"https://x/v1\"\nca_file = \"ca.pem\"\n");
        let known =
            fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certificates/ca.pem")).unwrap();
        let path = scene.folder.path().join("ca.pem");
        fs::write(&path, &known).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(*provider(&scene).ca_file.unwrap().pem, *known);
        let damaged =
            [&known[..], b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"].concat();
        fs::write(&path, damaged).unwrap();
        let said = scene.said();
        assert!(
            said.starts_with(
                "batchd.toml:4:11: error: the file `DIR/ca.pem` can't be used, its certificate 2 is wrong"
            ),
            "{said}"
        );
    }
}
