//! A provider for the tests of those who run a fleet.

use std::sync::Arc;
use std::time::Duration;

use url::Url;

use crate::config::{self, Limits};
use crate::dispatch::{ProviderSettings, SiteSettings};
use crate::provider::{self, Provider, Transport};

/// The provider `p` behind `transport`, with a key, within `limits`, and with room for 256 requests over all its queues.
pub(crate) fn provider(transport: Arc<dyn Transport>, timeout: Duration, limits: Limits) -> ProviderSettings {
    let base_url = Url::parse("http://127.0.0.1/v1").unwrap();
    let settings = provider::Settings {
        name: "p".to_owned(),
        base_url: base_url.clone(),
        api_key: Some("sk-test".into()),
        custom: provider::Custom::default(),
        timeout,
        waits: provider::Waits::default(),
        max_reply: 1 << 20,
        flex_timeout: timeout.max(Duration::from_mins(15)),
        stream: false,
    };
    let config = config::Provider {
        name: "p".to_owned(),
        base_url,
        api_key: None,
        api_key_env: None,
        api_key_file: None,
        api_version: None,
        headers: config::Headers::default(),
        ca_file: None,
        endpoints: Vec::new(),
        timeout,
        connect_timeout: Duration::from_secs(10),
        first_byte_timeout: None,
        idle_timeout: None,
        concurrency: 256,
        max_reply: 1 << 20,
        flex_timeout: settings.flex_timeout,
        flex_fallback: None,
        strict: false,
        stream: false,
        limits,
        models: Vec::new(),
    };
    ProviderSettings::with_one_site(Provider::new(settings, transport), config)
}

/// The same with an endpoint behind each of `transports`, and the key `sk-1`, `sk-2`, … to each.
pub(crate) fn with_endpoints(
    transports: Vec<Arc<dyn Transport>>,
    timeout: Duration,
    limits: Limits,
) -> ProviderSettings {
    let mut provider = provider(Arc::clone(&transports[0]), timeout, limits);
    let endpoint = |number: usize| config::Endpoint {
        url: Some(format!("http://127.0.0.1:{number}/v1").parse().unwrap()),
        api_key: Some(format!("sk-{number}").into()),
        api_key_env: Some(format!("KEY_{number}")),
        api_key_file: None,
        api_version: None,
        headers: config::Headers::default(),
        weight: 1,
    };
    provider.config.endpoints = (1..=transports.len()).map(endpoint).collect();
    let site = |(site, transport): (config::Site, Arc<dyn Transport>)| {
        let settings = provider::Settings {
            name: "p".to_owned(),
            base_url: site.url,
            api_key: site.api_key,
            custom: provider::Custom::default(),
            timeout,
            waits: provider::Waits::default(),
            max_reply: 1 << 20,
            flex_timeout: timeout,
            stream: false,
        };
        SiteSettings { provider: Provider::new(settings, transport), weight: site.weight }
    };
    provider.sites = provider.config.sites().into_iter().zip(transports).map(site).collect();
    provider
}
