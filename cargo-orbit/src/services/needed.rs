//! The services that one test needs, as it meets them: where they are, and whether they still are.
//!
//! Whether they are sandboxes of this process or of another makes no difference to the test.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use orbit::{Network, SandboxBuilder};
use serde::{Deserialize, Serialize};

use super::Running;
use crate::{
    config::{service::Service, settings::Settings},
    runner::keeper::Kept,
};

/// Where a service is that is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) name: String,
    /// On the network of the services.
    pub(crate) address: Option<Ipv4Addr>,
    /// On the host, by port.
    pub(crate) on_host: BTreeMap<u16, SocketAddr>,
}

/// The services that a test needs, all of them ready.
#[derive(Debug, Default)]
pub(crate) struct Needed {
    services: Vec<(Arc<Service>, Place)>,
    network: Option<Network>,
    watch: Option<Watch>,
}

/// Who knows whether they still run.
#[derive(Debug)]
pub(crate) enum Watch {
    Own(Vec<Arc<Running>>),
    Kept(Kept),
}

impl Needed {
    /// Of `services`, those that `places` are of, on `network`.
    pub(crate) fn new(
        services: &[Arc<Service>],
        places: Vec<Place>,
        network: Network,
        watch: Watch,
    ) -> Self {
        let service = |place: Place| {
            let found = services.iter().find(|service| service.name == place.name)?;
            Some((Arc::clone(found), place))
        };
        Self {
            services: places.into_iter().filter_map(service).collect(),
            network: Some(network),
            watch: Some(watch),
        }
    }

    /// Puts the test's sandbox where it reaches its services, and tells it where they are.
    pub(crate) fn give_to(
        &self,
        mut sandbox: SandboxBuilder,
        settings: &Settings,
    ) -> SandboxBuilder {
        let is_on_host = settings.is_on_host_network();
        if let (Some(network), false) = (&self.network, is_on_host) {
            sandbox = sandbox.network(network);
        }
        sandbox.envs(
            self.services
                .iter()
                .flat_map(|(service, place)| variables(service, place, is_on_host)),
        )
    }

    /// Calls `end` should the process end whose they are, where that is another: their network ends with it, so that
    /// nobody hears from them that a connection is over, and a test would wait for ever.
    ///
    /// # Errors
    /// Where it cannot be watched.
    pub(crate) fn watch(&self, end: impl FnOnce() + Send + 'static) -> io::Result<()> {
        match &self.watch {
            Some(Watch::Kept(kept)) => kept.watch(end),
            Some(Watch::Own(_)) | None => Ok(()),
        }
    }

    /// Of those that have ended, though the tests run: how, and the end of their logs.
    pub(crate) fn ended(&self) -> Vec<String> {
        match &self.watch {
            None => Vec::new(),
            Some(Watch::Own(running)) => running.iter().filter_map(|it| it.end()).collect(),
            Some(Watch::Kept(kept)) => kept.ended(),
        }
    }
}

fn variables(service: &Service, place: &Place, is_on_host: bool) -> Vec<(String, String)> {
    let prefix = service.variable();
    let address = |port: u16| {
        if is_on_host {
            place.on_host.get(&port).copied()
        } else {
            place
                .address
                .map(|address| SocketAddr::from((address, port)))
        }
    };
    let mut variables = Vec::new();
    for port in &service.ports {
        let Some(address) = address(*port) else {
            continue;
        };
        if variables.is_empty() {
            variables.push((format!("{prefix}_ADDR"), address.to_string()));
            variables.push((format!("{prefix}_HOST"), address.ip().to_string()));
            variables.push((format!("{prefix}_PORT"), address.port().to_string()));
        }
        variables.push((format!("{prefix}_ADDR_{port}"), address.to_string()));
    }
    if let (true, false, Some(address)) = (variables.is_empty(), is_on_host, place.address) {
        variables.push((format!("{prefix}_HOST"), address.to_string()));
    }
    variables
}
