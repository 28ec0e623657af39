//! [`Scenario`]: several sandboxes that depend on each other, started together, all or nothing.
//!
//! The order is planned in [`dependencies`](crate::dependencies) before anything starts. Each start has a thread of its
//! own, as long as it takes; one loop, in the thread that called, hears of them and starts what may start then.

use std::{
    fmt, mem,
    ops::Index,
    sync::{
        Mutex, PoisonError,
        mpsc::{self, Sender},
    },
    thread::{self, Scope},
    time::Duration,
};

use crate::{
    builder::SandboxBuilder,
    dependencies::{Order, Progress},
    error::{Error, Kind, ScenarioFailure, ScenarioFaults},
    network::Network,
    outcome::Outcome,
    sandbox::{Killer, Sandbox},
};

/// Several sandboxes that were started together, and end together, when this value is dropped: those that depend on
/// others before those others.
///
/// ```no_run
/// use orbit::{Network, Sandbox, Scenario, Wait};
///
/// let network = Network::builder().create()?;
/// let shop = Scenario::builder()
///     .network(&network)
///     .service("db", Sandbox::builder().image("postgres:17").wait_for(Wait::port(5432)))
///     .service("cache", Sandbox::builder().image("redis:8").wait_for(Wait::port(6379)))
///     .service("migrate", Sandbox::builder().image("shop").cmd(["migrate"]).wait_for(Wait::exit(0)))
///     .service("app", Sandbox::builder().image("shop").expose(8080).wait_for(Wait::http("/health").on_port(8080)))
///     .after("migrate", ["db"])
///     .after("app", ["migrate", "cache"])
///     .start()?;
/// println!("http://{}/", shop["app"].addr(8080));
/// # Ok::<(), orbit::Error>(())
/// ```
pub struct Scenario {
    /// In the order in which they came to be ready.
    started: Vec<Started>,
}

struct Started {
    name: String,
    sandbox: Sandbox,
    /// Whether its end was what it was waited for.
    was_over: bool,
}

/// What a [`Scenario`] should be.
#[must_use = "a builder does nothing until `start`"]
#[derive(Debug, Default)]
pub struct ScenarioBuilder {
    services: Vec<(String, SandboxBuilder)>,
    after: Vec<(String, String)>,
    networks: Vec<Network>,
}

impl ScenarioBuilder {
    /// A sandbox of the scenario, by a name of its own. The name is that of the sandbox too, where it has none, and so one
    /// by which others on its networks find it.
    pub fn service(mut self, name: impl Into<String>, sandbox: SandboxBuilder) -> Self {
        self.services.push((name.into(), sandbox));
        self
    }

    /// Starts the service `name` only when each of `needed` is ready: by what it is [waited
    /// for](SandboxBuilder::wait_for), or, where that is nothing, as soon as its program runs. With
    /// [`Wait::exit(0)`](crate::Wait::exit) that is when it has done its work. Services that nothing is said of start at
    /// once, in parallel.
    pub fn after(
        mut self,
        name: impl Into<String>,
        needed: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let name = name.into();
        let needed = needed
            .into_iter()
            .map(|needed| (name.clone(), needed.into()));
        self.after.extend(needed);
        self
    }

    /// Puts every service on this network, where they find each other by name.
    pub fn network(mut self, network: &Network) -> Self {
        self.networks.push(network.clone());
        self
    }

    /// Starts all services, and returns when each is ready. Where one fails, those that have started are ended, those
    /// that are starting are broken off, and the others do not start.
    ///
    /// # Errors
    /// Where a name is there twice, is not there, or the services need each other in a ring, and where the builder of a
    /// service has a fault that it knows of by itself: all of those, before anything starts ([`Error::is_spec`]). Where a service
    /// fails: which, why, with the end of its log, and what became of the others; [`Error::is_not_ready`] and the other
    /// predicates are about that service.
    pub fn start(self) -> Result<Scenario, Error> {
        self.start_under(&Halt::default())
    }

    /// As [`start`](Self::start). Given up, what was started is ended, and what is starting broken off.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    #[cfg(feature = "tokio")]
    pub async fn start_async(self) -> Result<Scenario, Error> {
        struct GivenUp(std::sync::Arc<Halt>);
        impl Drop for GivenUp {
            fn drop(&mut self) {
                self.0.end_all();
            }
        }
        // When all have started, it ends nothing any more.
        let given_up = GivenUp(std::sync::Arc::default());
        let halt = std::sync::Arc::clone(&given_up.0);
        crate::sandbox::blocking(move || {
            let scenario = self.start_under(&halt);
            halt.forget();
            scenario
        })
        .await
    }

    fn start_under(self, halt: &Halt) -> Result<Scenario, Error> {
        let order = self.plan()?;
        let (names, mut waiting): (Vec<String>, Vec<Option<SandboxBuilder>>) = self
            .services
            .into_iter()
            .map(|(name, sandbox)| {
                let sandbox = self.networks.iter().fold(sandbox, SandboxBuilder::network);
                let sandbox = sandbox.name_unless_named(&name);
                (name, Some(sandbox))
            })
            .unzip();
        let mut progress = Progress::new(&order);
        let mut can_start = progress.first();
        let mut scenario = Scenario {
            started: Vec::new(),
        };
        let (mut failed, mut broken_off) = (None, Vec::new());
        let (sender, ended) = mpsc::channel();
        thread::scope(|scope| {
            let mut starting = 0;
            loop {
                if failed.is_none() {
                    for place in mem::take(&mut can_start) {
                        // Each can start once.
                        if let Some(sandbox) = waiting[place].take() {
                            begin(scope, place, sandbox, halt, &sender);
                            starting += 1;
                        }
                    }
                }
                if starting == 0 {
                    break;
                }
                // We hold a sender ourselves, and each that starts says how it went.
                let Ok((place, result)) = ended.recv() else {
                    break;
                };
                starting -= 1;
                match result {
                    Ok(sandbox) => {
                        scenario.started.push(Started {
                            name: names[place].clone(),
                            was_over: sandbox.is_known_to_be_over(),
                            sandbox: *sandbox,
                        });
                        can_start.extend(progress.started(place));
                    }
                    Err(error) if failed.is_none() => {
                        failed = Some((place, error));
                        halt.end_all();
                    }
                    Err(_) => broken_off.push(names[place].clone()),
                }
            }
        });
        let Some((place, cause)) = failed else {
            return Ok(scenario);
        };
        let not_started = waiting
            .iter()
            .zip(&names)
            .filter(|(sandbox, _)| sandbox.is_some());
        broken_off.sort();
        Err(Kind::Service(ScenarioFailure {
            service: names[place].clone(),
            cause,
            ended: scenario.ended_by_themselves(),
            stopped: scenario.names().map(str::to_owned).collect(),
            broken_off,
            not_started: not_started.map(|(_, name)| name.clone()).collect(),
        })
        .into())
    }

    /// # Errors
    /// Everything that is wrong.
    fn plan(&self) -> Result<Order, Error> {
        let names: Vec<&str> = self
            .services
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        let after = self
            .after
            .iter()
            .map(|(one, other)| (one.as_str(), other.as_str()));
        let order = Order::plan(&names, after);
        let services: Vec<_> = self
            .services
            .iter()
            .flat_map(|(name, sandbox)| {
                sandbox
                    .faults
                    .iter()
                    .map(|fault| (name.clone(), fault.clone()))
            })
            .collect();
        match order {
            Ok(order) if services.is_empty() => Ok(order),
            order => {
                let dependencies = order.err().unwrap_or_default();
                Err(Kind::Scenario(ScenarioFaults {
                    dependencies,
                    services,
                })
                .into())
            }
        }
    }
}

/// Starts one service; `sender` is told how it went.
fn begin<'scope>(
    scope: &'scope Scope<'scope, '_>,
    place: usize,
    sandbox: SandboxBuilder,
    halt: &'scope Halt,
    sender: &Sender<(usize, Result<Box<Sandbox>, Error>)>,
) {
    let told = sender.clone();
    let work = move || {
        let result = sandbox.start_with(Some(&|killer| halt.add(killer)));
        // Where nobody hears, it is dropped here.
        let _ = told.send((place, result.map(Box::new)));
    };
    if let Err(error) = thread::Builder::new().spawn_scoped(scope, work) {
        let error = Error::io("cannot start a thread for a service", error);
        let _ = sender.send((place, Err(error)));
    }
}

/// What ends everything that was started so far, and whatever starts after that.
#[derive(Default)]
struct Halt(Mutex<Halted>);

#[derive(Default)]
struct Halted {
    is_over: bool,
    killers: Vec<Killer>,
}

impl Halt {
    fn state(&self) -> std::sync::MutexGuard<'_, Halted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, killer: Killer) {
        let mut state = self.state();
        if state.is_over {
            killer.kill();
        }
        state.killers.push(killer);
    }

    fn end_all(&self) {
        let mut state = self.state();
        state.is_over = true;
        state.killers.iter().for_each(Killer::kill);
    }

    #[cfg(feature = "tokio")]
    fn forget(&self) {
        self.state().killers.clear();
    }
}

impl Scenario {
    /// What a scenario should be: nothing, until services are added.
    pub fn builder() -> ScenarioBuilder {
        ScenarioBuilder::default()
    }

    /// The service of this name; `None` where there is none.
    pub fn get(&self, name: &str) -> Option<&Sandbox> {
        let found = self.started.iter().find(|started| started.name == name)?;
        Some(&found.sandbox)
    }

    /// The same, to wait for it, to stop or to restart it.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Sandbox> {
        let mut all = self.started.iter_mut();
        Some(&mut all.find(|started| started.name == name)?.sandbox)
    }

    /// The services' names, in the order in which they came to be ready.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.started.iter().map(|started| started.name.as_str())
    }

    /// [Stops](Sandbox::stop) one service after the other, each before those that it depends on, and says how each
    /// ended, in that order. `patience` is for each of them.
    ///
    /// # Errors
    /// As [`Sandbox::wait`]. The others are ended.
    pub fn stop(mut self, patience: Duration) -> Result<Vec<(String, Outcome)>, Error> {
        let mut outcomes = Vec::new();
        while let Some(mut started) = self.started.pop() {
            outcomes.push((started.name, started.sandbox.stop(patience)?));
        }
        Ok(outcomes)
    }

    /// As [`stop`](Self::stop). Given up, all are ended.
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    #[cfg(feature = "tokio")]
    pub async fn stop_async(mut self, patience: Duration) -> Result<Vec<(String, Outcome)>, Error> {
        let mut outcomes = Vec::new();
        while let Some(started) = self.started.last_mut() {
            let outcome = started.sandbox.stop_async(patience).await?;
            if let Some(stopped) = self.started.pop() {
                outcomes.push((stopped.name, outcome));
            }
        }
        Ok(outcomes)
    }

    /// Who has ended though nobody wanted it, how, and the end of its log.
    fn ended_by_themselves(&mut self) -> Vec<(String, String)> {
        let unwanted = self.started.iter_mut().filter(|started| !started.was_over);
        unwanted
            .filter_map(|started| Some((started.name.clone(), started.sandbox.end_by_itself()?)))
            .collect()
    }

    /// Writes the end of each log to standard error.
    pub(crate) fn show_logs(&self) {
        for started in &self.started {
            started.sandbox.show_log();
        }
    }
}

/// `scenario["db"]`, where there is a service of this name; else it panics, and says which there are.
impl Index<&str> for Scenario {
    type Output = Sandbox;

    #[track_caller]
    fn index(&self, name: &str) -> &Sandbox {
        match self.get(name) {
            Some(sandbox) => sandbox,
            None => panic!(
                "there is no service `{name}` in this scenario; there are {}",
                self.names().collect::<Vec<_>>().join(", ")
            ),
        }
    }
}

/// Ends them one after the other, each before those that it depends on.
impl Drop for Scenario {
    fn drop(&mut self) {
        while let Some(started) = self.started.pop() {
            drop(started);
        }
    }
}

impl fmt::Debug for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(
                self.started
                    .iter()
                    .map(|started| (&started.name, &started.sandbox)),
            )
            .finish()
    }
}
