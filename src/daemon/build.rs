//! From the configuration to workers: the one place that sees both.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clock::{Clock, Seed};
use crate::config::{self, Config};
use crate::control::{Board, Control};
use crate::dispatch::{self, Fleet, ProviderSettings};
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
    let transport: Arc<dyn Transport> = Arc::new(HttpTransport::new().map_err(|error| error.to_string())?);
    let providers: Vec<(Provider, &config::Provider)> =
        config.providers.iter().map(|p| (provider(p, Arc::clone(&transport)), p)).collect();
    let board = Board::default();
    // The socket last: what fails before leaves none behind.
    let port = open_port(&config.http)?;
    let socket = listen(&config.control)?;
    let downloads: BTreeMap<String, Arc<dyn Download>> = providers
        .iter()
        .map(|(provider, _)| (provider.name().to_owned(), Arc::new(provider.clone()) as Arc<dyn Download>))
        .collect();
    let artefacts: BTreeMap<String, Arc<dyn Artefacts>> = providers
        .iter()
        .map(|(provider, _)| (provider.name().to_owned(), Arc::new(provider.clone()) as Arc<dyn Artefacts>))
        .collect();
    let catalogue =
        Arc::new(Catalogue::new(providers.iter().map(|(provider, _)| provider.clone()).collect()));
    let dispatch = dispatch::Settings {
        providers: providers
            .into_iter()
            .map(|(provider, config)| ProviderSettings::with_one_site(provider, config.clone()))
            .collect(),
        retry: config.retry,
        grace: config.shutdown.grace,
    };
    let control = Control::new(Arc::clone(&store), board.clone(), clock.clone(), config.jobs_dir());
    control.remove_leftovers();
    let fleet = Fleet::new(dispatch, Arc::clone(&store), board.clone(), clock.clone(), seed)
        .with_metrics(metrics.clone())
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
    Ok(Workers {
        intake: Intake::new(intake_settings(config), Arc::clone(&store), clock.clone(), seed)
            .with_catalogue(catalogue),
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
        upkeep: Upkeep::new(store, clock, config.storage.keep_state),
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
        // Before the fleet is told: who hears of another key asks with it.
        for site in &running.sites {
            site.provider.change(&provider_settings(config));
        }
        ProviderSettings { sites: running.sites.clone(), config: config.clone() }
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

/// A provider as the configuration has it; the commands that speak to one use the same.
pub fn provider(config: &config::Provider, transport: Arc<dyn Transport>) -> Provider {
    Provider::new(provider_settings(config), transport)
}

fn provider_settings(config: &config::Provider) -> provider::Settings {
    provider::Settings {
        name: config.name.clone(),
        base_url: config.base_url.clone(),
        api_key: config.api_key.clone(),
        timeout: config.timeout,
        waits: provider::Waits {
            connect: config.connect_timeout,
            first_byte: config.first_byte_timeout,
            idle: config.idle_timeout,
        },
        max_reply: config.max_reply,
        flex_timeout: config.flex_timeout,
        stream: config.stream,
    }
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
