//! [`Network`]: sandboxes that reach each other, by address and by name.

use std::{
    collections::VecDeque,
    fmt, io,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    error::{Error, Kind},
    host::Host,
    net::{
        addresses::{Pool, Subnet},
        names,
    },
    spec::{Bridge, Link, LinkNames, SpecFault},
    supervisor::{Broker, Channel, Lease, Supervisor},
};

/// A network that sandboxes of this process share, and nothing else is on: neither the host nor what the host
/// reaches.
///
/// Sandboxes on it reach each other by address, and by name and [alias](crate::SandboxBuilder::network_alias). It
/// ends when the last clone of this value and the last sandbox on it are dropped.
///
/// ```no_run
/// let network = orbit::Network::builder().subnet("10.9.0.0/24").create()?;
/// let db = orbit::Sandbox::builder().image("redis:8").network(&network).network_alias("db").start()?;
/// let app = orbit::Sandbox::builder().cmd(["redis-cli", "-h", "db", "ping"]).network(&network).run()?;
/// # Ok::<(), orbit::Error>(())
/// ```
#[derive(Clone)]
pub struct Network(Arc<Inner>);

struct Inner {
    id: u64,
    name: String,
    subnet: Subnet,
    addresses: Mutex<Addresses>,
    /// Who does not reach whom.
    parted: Mutex<Vec<(Ipv4Addr, Ipv4Addr)>>,
    broker: Arc<Broker>,
    _lease: Lease,
}

/// The addresses of a network.
struct Addresses {
    pool: Pool,
    /// Given back, and not to be given out before their time, earliest first.
    cooling: VecDeque<(Ipv4Addr, Instant)>,
}

/// How long an address rests after its sandbox. The kernel takes a network namespace apart some time after its last
/// process has ended; until then what was in it still answers, at its old address, that nobody is there.
const REST: Duration = Duration::from_millis(500);

impl Addresses {
    /// An address, or when to ask again; neither where all are in use.
    fn take(&mut self) -> Result<Ipv4Addr, Option<Instant>> {
        let now = Instant::now();
        while let Some((address, until)) = self.cooling.front()
            && *until <= now
        {
            self.pool.release(*address);
            self.cooling.pop_front();
        }
        let next = self.cooling.front().map(|(_, until)| *until);
        self.pool.take().ok_or(next)
    }
}

impl Inner {
    fn addresses(&self) -> std::sync::MutexGuard<'_, Addresses> {
        self.addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a [`Network`] should be.
#[must_use = "a builder does nothing until `create`"]
#[derive(Clone, Debug, Default)]
pub struct NetworkBuilder {
    name: Option<String>,
    subnet: Option<String>,
    has_way_out: bool,
}

/// Where networks are whose subnet nobody chose. Each is in a namespace of its own, so that all can be the same.
const DEFAULT_SUBNET: &str = "10.88.0.0/16";

static LAST_ID: AtomicU64 = AtomicU64::new(0);

impl NetworkBuilder {
    /// The addresses of the network: `10.9.0.0/24`. The first is the network's own, where names are answered.
    ///
    /// Networks do not see each other: two of them, in one test or in two, may have the same subnet, as long as no
    /// sandbox is on both.
    pub fn subnet(mut self, subnet: &str) -> Self {
        self.subnet = Some(subnet.to_owned());
        self
    }

    /// Whether the network has no way out of it. None has one so far: `false` is refused.
    pub fn internal(mut self, internal: bool) -> Self {
        self.has_way_out = !internal;
        self
    }

    /// A name for people, in messages and plans.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Makes the network.
    ///
    /// # Errors
    /// Where the subnet or the name is wrong ([`Error::is_spec`]), or this machine refuses.
    pub fn create(self) -> Result<Network, Error> {
        let mut faults = Vec::new();
        let text = self.subnet.as_deref().unwrap_or(DEFAULT_SUBNET);
        let subnet = text
            .parse::<Subnet>()
            .map_err(|error| faults.push(SpecFault::new("subnet", text, error.to_string())))
            .ok();
        if self.has_way_out {
            let why = "a way out of a network is not built yet; leave it out";
            faults.push(SpecFault::new("network internal", "false", why));
        }
        let id = LAST_ID.fetch_add(1, Ordering::Relaxed) + 1;
        let name = self.name.unwrap_or_else(|| format!("network{id}"));
        if let Err(why) = names::check_host(&name) {
            faults.push(SpecFault::new("network name", &name, why));
        }
        let Some(subnet) = subnet.filter(|_| faults.is_empty()) else {
            return Err(Error::spec(faults));
        };
        let host =
            Host::get().map_err(|e| Error::io("cannot read the facts of this machine", e))?;
        let broker = Supervisor::get(host)?.broker()?;
        let lease = broker.create_network(id, subnet).map_err(|error| {
            Error::io(format!("cannot make the network {name} ({subnet})"), error)
        })?;
        Ok(Network(Arc::new(Inner {
            id,
            name,
            subnet,
            addresses: Mutex::new(Addresses {
                pool: Pool::new(subnet),
                cooling: VecDeque::new(),
            }),
            parted: Mutex::default(),
            broker,
            _lease: lease,
        })))
    }
}

impl Network {
    /// What a network should be.
    pub fn builder() -> NetworkBuilder {
        NetworkBuilder::default()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its addresses.
    pub fn subnet(&self) -> Subnet {
        self.0.subnet
    }

    /// What an ordinary user's sandboxes share in place of a bridge on the host: one for each name and subnet,
    /// as long as somebody is on it.
    pub(crate) fn in_place_of(bridge: &Bridge) -> Result<Self, Error> {
        static BRIDGES: Mutex<Vec<(Bridge, Weak<Inner>)>> = Mutex::new(Vec::new());

        let mut bridges = BRIDGES.lock().unwrap_or_else(PoisonError::into_inner);
        bridges.retain(|(_, network)| network.strong_count() > 0);
        let found = bridges.iter().find(|(known, _)| known == bridge);
        if let Some(network) = found.and_then(|(_, network)| network.upgrade()) {
            return Ok(Self(network));
        }
        let network = NetworkBuilder::default()
            .name(&bridge.name)
            .subnet(&bridge.subnet.to_string())
            .create()?;
        bridges.push((bridge.clone(), Arc::downgrade(&network.0)));
        Ok(network)
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }

    /// Loses what the one sends to the other.
    pub(crate) fn lose(&self, from: Ipv4Addr, to: Ipv4Addr) -> io::Result<()> {
        let mut parted = self.0.parted.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.broker.lose(self.0.id, (from, to), true)?;
        if !parted.contains(&(from, to)) {
            parted.push((from, to));
        }
        Ok(())
    }

    /// Loses nothing any more.
    pub(crate) fn find_all(&self) -> io::Result<()> {
        self.find(|_| true)
    }

    /// Loses nothing any more between those that `which` says of.
    fn find(&self, which: impl Fn(&(Ipv4Addr, Ipv4Addr)) -> bool) -> io::Result<()> {
        let mut parted = self.0.parted.lock().unwrap_or_else(PoisonError::into_inner);
        for pair in parted.extract_if(.., |pair| which(pair)) {
            match self.0.broker.lose(self.0.id, pair, false) {
                // The sender is gone, and what it knew.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// An address for a sandbox.
    ///
    /// # Errors
    /// Where all are in use.
    pub(crate) fn take_address(&self) -> Result<Address, Error> {
        loop {
            let mut addresses = self.0.addresses();
            match addresses.take() {
                Ok(address) => {
                    return Ok(Address {
                        network: self.clone(),
                        address,
                    });
                }
                Err(None) => {
                    return Err(Kind::NetworkFull {
                        network: self.0.name.clone(),
                        subnet: self.0.subnet,
                        capacity: addresses.pool.capacity(),
                    }
                    .into());
                }
                Err(Some(until)) => {
                    // Others may give theirs back meanwhile.
                    drop(addresses);
                    std::thread::sleep(until.saturating_duration_since(Instant::now()));
                }
            }
        }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network")
            .field("name", &self.0.name)
            .field("subnet", &self.0.subnet)
            .finish_non_exhaustive()
    }
}

/// An address of a network, which nobody else is given until this is dropped.
#[derive(Debug)]
pub(crate) struct Address {
    pub(crate) network: Network,
    pub(crate) address: Ipv4Addr,
}

impl Drop for Address {
    fn drop(&mut self) {
        // The next at this address is parted from nobody. Where the broker is gone, so is all it did.
        let _ = self
            .network
            .find(|(from, to)| self.address == *from || self.address == *to);
        let mut addresses = self.network.0.addresses();
        addresses
            .cooling
            .push_back((self.address, Instant::now() + REST));
    }
}

/// A sandbox's place on a network: its names first, then its address are free when this is dropped.
#[derive(Debug)]
pub(crate) struct Membership {
    _lease: Lease,
    pub(crate) address: Address,
}

impl Address {
    pub(crate) fn link(&self) -> Link {
        Link {
            network: self.network.0.name.clone(),
            subnet: self.network.0.subnet,
            address: self.address,
            names: LinkNames::Server,
        }
    }

    /// Makes the names known on the network: the sandbox's place there, and what its init is to be given.
    ///
    /// # Errors
    /// Where the network's owner is gone.
    pub(crate) fn join(
        self,
        sandbox: u64,
        names: &[String],
    ) -> Result<(Membership, Channel), Error> {
        let inner = &self.network.0;
        let (lease, init) = inner
            .broker
            .admit((inner.id, sandbox), self.address, names)
            .map_err(|error| Error::io(format!("cannot join the network {}", inner.name), error))?;
        let membership = Membership {
            _lease: lease,
            address: self,
        };
        Ok((membership, init))
    }
}
