//! Services of a run: `[[service]]` of the configuration, each started when the first test is to run that needs it, and
//! ended with the run.
//!
//! They are sandboxes of this process on one network, which is made for the first of them; a test that needs some is on
//! it too, and is told their addresses by variables ([`needed`]). Who needs a service that is starting waits for it; one
//! that has failed is not tried again, and fails each test that needs it.

mod needed;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
};

use orbit::{
    __private::{end_by_itself, start_with},
    Killer, Network, NetworkBuilder, Sandbox, SandboxBuilder, Wait,
};

pub(crate) use self::needed::{Needed, Place, Watch};
use crate::config::{service::Service, settings::Settings};

/// What is told of each sandbox that is being started, so that it can be ended: and what is said when it has started.
pub(crate) type Starting<'a> = &'a (dyn Fn(Killer) -> Box<dyn FnOnce()> + Sync);

/// The services of a run, started or not.
#[derive(Debug)]
pub(crate) struct Services {
    all: BTreeMap<String, Slot>,
    network_to_be: NetworkBuilder,
    network: OnceLock<Result<Network, String>>,
    /// In the order in which they came to be ready; they end in the other.
    running: Mutex<Vec<Arc<Running>>>,
}

#[derive(Debug)]
struct Slot {
    service: Arc<Service>,
    state: OnceLock<Result<Arc<Running>, String>>,
}

/// A service that was ready once.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) place: Place,
    service: Arc<Service>,
    sandbox: Mutex<Sandbox>,
}

impl Services {
    /// For tests that this process runs.
    pub(crate) fn new(all: Vec<Arc<Service>>) -> Self {
        Self::on(Network::builder().name("services"), all)
    }

    /// For tests of other processes, which find the services on the shared network `network`.
    pub(crate) fn shared(all: Vec<Arc<Service>>, network: &str) -> Self {
        Self::on(Network::builder().name(network).shared(true), all)
    }

    fn on(network_to_be: NetworkBuilder, all: Vec<Arc<Service>>) -> Self {
        let slot = |service: Arc<Service>| {
            let name = service.name.clone();
            let state = OnceLock::new();
            (name, Slot { service, state })
        };
        Self {
            all: all.into_iter().map(slot).collect(),
            network_to_be,
            network: OnceLock::new(),
            running: Mutex::default(),
        }
    }

    /// What a test with these settings needs, started and ready.
    ///
    /// # Errors
    /// Which failed, why, and the end of its log.
    pub(crate) fn need(
        &self,
        settings: &Settings,
        starting: Starting<'_>,
    ) -> Result<Needed, String> {
        let services = &settings.services;
        if services.is_empty() {
            return Ok(Needed::default());
        }
        let names: Vec<&str> = services.iter().map(|it| it.name.as_str()).collect();
        let running = self.all_of(&names, starting)?;
        let places = running.iter().map(|it| it.place.clone()).collect();
        let network = self.network()?.clone();
        Ok(Needed::new(services, places, network, Watch::Own(running)))
    }

    /// Those of these names, started in parallel.
    ///
    /// # Errors
    /// As [`need`](Self::need).
    pub(crate) fn all_of(
        &self,
        names: &[&str],
        starting: Starting<'_>,
    ) -> Result<Vec<Arc<Running>>, String> {
        let Some((last, others)) = names.split_last() else {
            return Ok(Vec::new());
        };
        thread::scope(|scope| {
            let others: Vec<_> = others
                .iter()
                .map(|name| scope.spawn(|| self.one(name, starting)))
                .collect();
            let last = self.one(last, starting);
            let joined = others.into_iter().map(|other| match other.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            // Not before all are joined: the order is that of the names.
            let all: Vec<_> = joined.collect();
            all.into_iter().chain([last]).collect()
        })
    }

    fn one(&self, name: &str, starting: Starting<'_>) -> Result<Arc<Running>, String> {
        // The configuration was checked.
        let slot = self
            .all
            .get(name)
            .ok_or_else(|| format!("there is no service `{name}`"))?;
        slot.state
            .get_or_init(|| self.start(&slot.service, starting))
            .clone()
    }

    fn start(
        &self,
        service: &Arc<Service>,
        starting: Starting<'_>,
    ) -> Result<Arc<Running>, String> {
        let name = &service.name;
        let needed: Vec<&str> = service.after.iter().map(String::as_str).collect();
        self.all_of(&needed, starting)
            .map_err(|why| format!("the service `{name}` was not started: {why}"))?;
        let network = self.network()?;
        let builder = builder(service).network(network);
        let started = Mutex::new(None);
        let begun = |killer| {
            let mut started = started.lock().unwrap_or_else(PoisonError::into_inner);
            *started = Some(starting(killer));
        };
        let result = start_with(builder, &begun);
        let told = started.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = told {
            told();
        }
        let sandbox = result.map_err(|error| {
            let at = &service.origin;
            format!("the service `{name}` ({at}) could not be started: {error}")
        })?;
        let address = sandbox.address(network);
        let on_host = sandbox.ports().iter().map(|port| (port.port, port.host));
        let running = Arc::new(Running {
            place: Place {
                name: name.clone(),
                address,
                on_host: on_host.collect(),
            },
            service: Arc::clone(service),
            sandbox: Mutex::new(sandbox),
        });
        let mut all = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(Arc::clone(&running));
        Ok(running)
    }

    /// Made for the first that is on it.
    fn network(&self) -> Result<&Network, String> {
        let make = || {
            let network = self.network_to_be.clone().create();
            network.map_err(|error| error.to_string())
        };
        self.network
            .get_or_init(make)
            .as_ref()
            .map_err(Clone::clone)
    }
}

/// Each ends before those that it needs.
impl Drop for Services {
    fn drop(&mut self) {
        self.all.clear();
        let all = self
            .running
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        while let Some(service) = all.pop() {
            drop(service);
        }
    }
}

/// What a service should be.
fn builder(service: &Service) -> SandboxBuilder {
    let mut sandbox = service
        .settings
        .apply(Sandbox::builder())
        .name(&service.name);
    if let Some(words) = &service.entrypoint {
        sandbox = sandbox.entrypoint(words);
    }
    if let Some(words) = &service.cmd {
        sandbox = sandbox.cmd(words);
    }
    if let Some(path) = &service.working_dir {
        sandbox = sandbox.working_dir(path);
    }
    if let Some(limit) = service.startup_timeout {
        sandbox = sandbox.startup_timeout(limit);
    }
    sandbox = service
        .ports
        .iter()
        .fold(sandbox, |sandbox, port| sandbox.expose(*port));
    let ports = || service.ports.iter().copied().map(Wait::port).collect();
    let waits: Vec<Wait> = match &service.waits {
        Some(waits) => waits.iter().map(|when| when.wait(&service.ports)).collect(),
        None => ports(),
    };
    // Its log is told by whom it fails.
    waits
        .into_iter()
        .fold(sandbox, SandboxBuilder::wait_for)
        .log_on_panic(false)
}

impl Running {
    /// Where it has ended, though tests run that need it: how, and the end of its log.
    pub(crate) fn end(&self) -> Option<String> {
        if self.service.may_end() {
            return None;
        }
        let mut sandbox = self.sandbox.lock().unwrap_or_else(PoisonError::into_inner);
        let how = end_by_itself(&mut sandbox)?;
        Some(format!(
            "the service `{}`, which it needs, has ended: {how}",
            self.service.name
        ))
    }
}
