//! From the configuration to workers: the one place that sees both.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use url::Url;

use crate::clock::{Clock, Seed};
use crate::config::{self, Config};
use crate::control::{Board, Control, Folders};
use crate::dispatch::{self, Fleet, ProviderSettings, SiteSettings};
use crate::http::{self, Health, Port, Socket, Vitals};
use crate::intake::{self, Intake};
use crate::metrics::Metrics;
use crate::output::{self, Artefacts, Download, Output};
use crate::provider::{self, Catalogue, HttpTransport, Provider, Transport};
use crate::pulse::Roll;
use crate::spec;
use crate::store::Store;
use crate::upkeep::Upkeep;

/// Everything that runs.
#[derive(Debug)]
pub(super) struct Workers {
    pub(super) intake: Intake,
    pub(super) fleet: Fleet,
    pub(super) output: Output,
    pub(super) upkeep: Upkeep,
    pub(super) control: Control,
    pub(super) socket: Socket,
    pub(super) port: Option<Port>,
    pub(super) vitals: Vitals,
    pub(super) board: Board,
}

/// Builds all workers; those on which every request depends join the `roll`. An error is a sentence for a person.
pub(super) fn workers(
    config: &Config,
    store: Arc<dyn Store>,
    clock: Clock,
    seed: Seed,
    (metrics, roll): (&Metrics, &Roll),
) -> Result<Workers, String> {
    let providers = providers(config)?;
    let board = Board::default();
    // The socket last: what fails before leaves none behind.
    let port = open_port(&config.http)?;
    let socket = listen(&config.control)?;
    let downloads: BTreeMap<String, Arc<dyn Download>> = providers
        .iter()
        .map(|p| (p.config.name.clone(), Arc::new(first(p).clone()) as Arc<dyn Download>))
        .collect();
    let artefacts: BTreeMap<String, Arc<dyn Artefacts>> = providers
        .iter()
        .map(|p| (p.config.name.clone(), Arc::new(first(p).clone()) as Arc<dyn Artefacts>))
        .collect();
    let catalogue = Arc::new(Catalogue::new(providers.iter().map(|p| first(p).clone()).collect()));
    let dispatch = dispatch::Settings { providers, retry: config.retry, grace: config.shutdown.grace };
    let folders = Folders { jobs: config.jobs_dir(), results: config.results_dir() };
    let control = Control::new(Arc::clone(&store), board.clone(), clock.clone(), folders);
    control.remove_leftovers();
    let fleet = Fleet::new(dispatch, Arc::clone(&store), board.clone(), clock.clone(), seed)
        .with_metrics(metrics.clone())
        .with_memory(&config.state_dir())
        .with_roll(roll.clone());
    let vitals = Vitals {
        control: control.clone(),
        store: Arc::clone(&store),
        board: board.clone(),
        fleet: fleet.handle(),
        metrics: metrics.clone(),
        health: Health::default(),
        state: config.state_dir(),
    };
    let intake = Intake::new(intake_settings(config), Arc::clone(&store), clock.clone(), seed);
    let intake = intake.with_catalogue(catalogue);
    Ok(Workers {
        fleet,
        output: Output::new(
            output::Settings::new(config.results_dir()),
            Arc::clone(&store),
            downloads,
            artefacts,
            clock.clone(),
        )
        .with_metrics(metrics.clone())
        .with_roll(roll.clone()),
        upkeep: Upkeep::new(store, clock, config.storage.keep_state).with_schedules(intake.handle()),
        intake,
        vitals,
        control,
        socket,
        port,
        board,
    })
}

/// Lets what can change under running workers be as `config` has it. It names the providers that they were built with.
pub(super) fn change(config: &Config, fleet: &dispatch::Handle, intake: &intake::Handle) {
    let running = fleet.settings();
    let change = |running: &ProviderSettings| {
        let config = config.provider(&running.config.name).unwrap_or(&running.config);
        let site = |(running, settings, weight): (&SiteSettings, provider::Settings, u32)| {
            // Before the fleet is told: who hears of another key asks with it.
            running.provider.change(&settings);
            SiteSettings { provider: running.provider.clone(), weight }
        };
        // They are as many: others need a restart.
        let sites = running.sites.iter().zip(sites(config));
        let sites = sites.map(|(running, (settings, weight))| site((running, settings, weight))).collect();
        ProviderSettings { sites, config: config.clone() }
    };
    fleet.change(dispatch::Settings {
        providers: running.providers.iter().map(change).collect(),
        retry: config.retry,
        grace: config.shutdown.grace,
    });
    intake.change(intake_settings(config));
}

fn listen(control: &config::Control) -> Result<Socket, String> {
    let path = &control.socket;
    http::bind(path, control.group.as_deref())
        .map_err(|error| format!("listen on {}: {error}", path.display()))
}

fn open_port(http: &config::Http) -> Result<Option<Port>, String> {
    let Some(listen) = http.listen else { return Ok(None) };
    let opened = Port::open(listen, http.token.as_ref(), &http.hosts);
    let port = opened.and_then(|port| Ok((port.address()?, port)));
    let (address, port) =
        port.map_err(|error| format!("listen on {listen}, the `[http] listen`: {error}"))?;
    tracing::info!(%address, "health and metrics are to be had over TCP");
    Ok(Some(port))
}

/// Each with all of its endpoints. Those that trust the same certificates share their connections.
fn providers(config: &Config) -> Result<Vec<ProviderSettings>, String> {
    let mut transports: BTreeMap<&[u8], Arc<dyn Transport>> = BTreeMap::new();
    let mut built = Vec::new();
    for config in &config.providers {
        let transport = match transports.entry(trusted(config)) {
            Entry::Occupied(known) => Arc::clone(known.get()),
            Entry::Vacant(unknown) => Arc::clone(unknown.insert(transport(config)?)),
        };
        let site = |(settings, weight)| {
            let provider = Provider::new(settings, Arc::clone(&transport));
            SiteSettings { provider, weight }
        };
        let sites = sites(config).into_iter().map(site).collect();
        built.push(ProviderSettings { sites, config: config.clone() });
    }
    Ok(built)
}

/// Where its files, fine-tunes and downloads are.
fn first(provider: &ProviderSettings) -> &Provider {
    &provider.sites.first().expect("a provider has at least one site").provider
}

/// A provider as the configuration has it, at the first of its endpoints: the commands that speak to one use this. An
/// error is a sentence for a person.
pub fn provider(config: &config::Provider) -> Result<Provider, String> {
    let (settings, _) = sites(config).into_iter().next().expect("a provider has at least one site");
    Ok(Provider::new(settings, transport(config)?))
}

fn transport(config: &config::Provider) -> Result<Arc<dyn Transport>, String> {
    let transport = HttpTransport::trusting(trusted(config));
    Ok(Arc::new(transport.map_err(|error| format!("can't make a client: {error}"))?))
}

/// The certificates to trust beside the system's, as PEM.
fn trusted(config: &config::Provider) -> &[u8] {
    config.ca_file.as_ref().map_or(&[], |file| &file.pem)
}

/// What is asked for each endpoint, and its weight.
fn sites(config: &config::Provider) -> Vec<(provider::Settings, u32)> {
    let sites = config.sites();
    let urls: Vec<Url> = sites.iter().map(|site| site.url.clone()).collect();
    let settings = |site: config::Site| {
        let siblings = urls.iter().filter(|url| **url != site.url).cloned().collect();
        let settings = provider::Settings {
            name: config.name.clone(),
            base_url: site.url,
            api_key: site.api_key,
            custom: provider::Custom { api_version: site.api_version, headers: site.headers, siblings },
            timeout: config.timeout,
            waits: provider::Waits {
                connect: config.connect_timeout,
                first_byte: config.first_byte_timeout,
                idle: config.idle_timeout,
            },
            max_reply: config.max_reply,
            flex_timeout: config.flex_timeout,
            stream: config.stream,
        };
        (settings, site.weight)
    };
    sites.into_iter().map(settings).collect()
}

fn intake_settings(config: &Config) -> intake::Settings {
    intake::Settings {
        jobs: config.jobs_dir(),
        results: config.results_dir(),
        state: config.state_dir(),
        rescan: config.intake.rescan,
        settle: config.intake.settle,
        watch: true,
        spec: spec_settings(config),
    }
}

/// What `spec` must know of the configuration; `batchd check` judges by the same.
pub fn spec_settings(config: &Config) -> spec::Settings {
    let facts = |p: &config::Provider| spec::ProviderFacts { name: p.name.clone(), strict: p.strict };
    spec::Settings {
        providers: config.providers.iter().map(facts).collect(),
        max_line: config.intake.max_line,
        input_dirs: config.intake.input_dirs.clone(),
        zone: config.zone,
    }
}
