//! [`Network`]: sandboxes that reach each other, by address and by name.

use std::{
    fmt, io,
    net::Ipv4Addr,
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    error::{Error, Kind},
    host::{self, Host},
    meeting::{self, Meeting},
    net::{
        addresses::{Pool, Subnet},
        faults::Faults,
        names,
    },
    spec::{Bridge, Link, LinkNames, SpecFault},
    supervisor::{Broker, Channel, Lease, Supervisor},
};

/// A network that sandboxes of this process share, or of [several](NetworkBuilder::shared), and nothing else is on:
/// neither the host nor what the host reaches.
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
    addresses: Mutex<Pool>,
    broker: Arc<Broker>,
    _lease: Lease,
    /// Where other processes are on it too.
    meeting: Option<Meeting>,
}

impl Inner {
    fn addresses(&self) -> std::sync::MutexGuard<'_, Pool> {
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
    shared: bool,
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

    /// Whether the network of this [name](Self::name) is one with that of every other process of this user that asks for
    /// it too, under one `cargo orbit test` or outside of any: sandboxes reach each other by address and by name, whichever
    /// process made them. Without, a network is this process's own.
    ///
    /// The first process decides on the subnet; the others leave it out, or name the same. Nobody owns the network: what a
    /// process has on it ends with the process, and the rest goes on. Each frame between two processes passes through both
    /// their brokers, which costs some speed; [faults](Network::link) are between sandboxes of one process.
    ///
    /// Processes meet in a directory: `$ORBIT_RUNTIME_DIR`, else `/run/orbit` for root and `$XDG_RUNTIME_DIR/orbit` for
    /// others.
    ///
    /// ```no_run
    /// let lab = orbit::Network::builder().name("lab").shared(true).create()?;
    /// // Made by another process, perhaps in another terminal: `cargo orbit run --network lab --name db …`.
    /// let app = orbit::Sandbox::builder().cmd(["redis-cli", "-h", "db", "ping"]).network(&lab).run()?;
    /// # Ok::<(), orbit::Error>(())
    /// ```
    pub fn shared(mut self, shared: bool) -> Self {
        self.shared = shared;
        self
    }

    /// A name for people, in messages and plans; for other processes too where the network is
    /// [shared](Self::shared).
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Makes the network, or, of one that is shared, this process's part of it.
    ///
    /// # Errors
    /// Where the subnet or the name is wrong ([`Error::is_spec`]), or this machine refuses; of a shared network, where
    /// another process has it with another subnet.
    pub fn create(self) -> Result<Network, Error> {
        let mut faults = Vec::new();
        let mut parse = |text: &str| {
            text.parse::<Subnet>()
                .map_err(|error| faults.push(SpecFault::new("subnet", text, error.to_string())))
                .ok()
        };
        let wanted = self.subnet.as_deref().and_then(&mut parse);
        let default = parse(DEFAULT_SUBNET);
        if self.has_way_out {
            let why = "a way out of a network is not built yet; leave it out";
            faults.push(SpecFault::new("network internal", "false", why));
        }
        if self.shared && self.name.is_none() {
            let why = "other processes find a shared network by its name; give it one";
            faults.push(SpecFault::new("network shared", "true", why));
        }
        let id = LAST_ID.fetch_add(1, Ordering::Relaxed) + 1;
        let name = self.name.unwrap_or_else(|| format!("network{id}"));
        if let Err(why) = names::check_host(&name) {
            faults.push(SpecFault::new("network name", &name, why));
        }
        let Some(default) = default.filter(|_| faults.is_empty()) else {
            return Err(Error::spec(faults));
        };
        if self.shared {
            shared(id, name, wanted, default)
        } else {
            make(id, name, wanted.unwrap_or(default))
        }
    }

    /// As [`create`](Self::create), with the feature `tokio`. Given up, the network is made and ended.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    #[cfg(feature = "tokio")]
    pub async fn create_async(self) -> Result<Network, Error> {
        crate::sys::blocking(move || self.create())
            .await
            .map_err(|error| Error::io("cannot go on with the network", error))?
    }
}

fn make(id: u64, name: String, subnet: Subnet) -> Result<Network, Error> {
    let broker = broker()?;
    let lease = broker
        .create_network(id, subnet, None)
        .map_err(|error| cannot_make(&name, subnet, error))?;
    Ok(Network(Arc::new(Inner {
        id,
        name,
        subnet,
        addresses: Mutex::new(Pool::new(subnet)),
        broker,
        _lease: lease,
        meeting: None,
    })))
}

/// The part of the shared network `name` that is this process's: one, however often it is asked for.
fn shared(
    id: u64,
    name: String,
    wanted: Option<Subnet>,
    default: Subnet,
) -> Result<Network, Error> {
    static SHARED: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

    let mut all = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|network| network.strong_count() > 0);
    let ours = all.iter().filter_map(Weak::upgrade);
    // A supervisor that died took its networks along.
    let found = ours
        .into_iter()
        .find(|it| it.name == name && it.broker.is_alive());
    if let Some(inner) = found {
        return match wanted {
            Some(wanted) if wanted != inner.subnet => Err(meeting::MeetingError::OtherSubnet {
                network: name,
                has: inner.subnet,
                wanted,
            }
            .into()),
            _ => Ok(Network(inner)),
        };
    }
    let host = Host::get().map_err(|e| Error::io("cannot read the facts of this machine", e))?;
    let broker = broker()?;
    let entrance = meeting::enter(host::runtime_dir(host.uid), &name, wanted, default)?;
    let subnet = entrance.subnet;
    let lease = broker
        .create_network(id, subnet, Some(entrance.listener.as_fd()))
        .map_err(|error| cannot_make(&name, subnet, error));
    // Else what is dropped here would wait for it.
    let (meeting, lock) = (entrance.meeting, entrance.lock);
    let made = lease.and_then(|lease| {
        for (connection, members) in entrance.others {
            broker
                .meet(id, connection.as_fd(), members)
                .map_err(|error| cannot_make(&name, subnet, error))?;
        }
        Ok(lease)
    });
    drop(lock);
    let network = Network(Arc::new(Inner {
        id,
        name,
        subnet,
        addresses: Mutex::new(Pool::new(subnet)),
        broker,
        _lease: made?,
        meeting: Some(meeting),
    }));
    all.push(Arc::downgrade(&network.0));
    Ok(network)
}

fn broker() -> Result<Arc<Broker>, Error> {
    let host = Host::get().map_err(|e| Error::io("cannot read the facts of this machine", e))?;
    Ok(Supervisor::get(host)?.broker()?)
}

fn cannot_make(name: &str, subnet: Subnet, error: io::Error) -> Error {
    let why = match error.raw_os_error() {
        Some(libc::EAFNOSUPPORT) => " (processes share it by packet sockets, CONFIG_PACKET)",
        _ => "",
    };
    Error::io(
        format!("cannot make the network {name} ({subnet}){why}"),
        error,
    )
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
        // A supervisor that died took its networks along.
        bridges.retain(|(_, network)| network.upgrade().is_some_and(|it| it.broker.is_alive()));
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

    /// The link of a sandbox that is on it, before it has an address.
    pub(crate) fn link_to_be(&self) -> Link {
        Link {
            network: self.0.name.clone(),
            subnet: self.0.subnet,
            address: self.0.subnet.gateway(),
            names: LinkNames::Server,
        }
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }

    /// What is wrong from now on with what the one sends to the other.
    pub(crate) fn set_faults(
        &self,
        pair: (Ipv4Addr, Ipv4Addr),
        faults: Option<Faults>,
    ) -> io::Result<()> {
        self.0.broker.set_faults(self.0.id, pair, faults)
    }

    /// Nothing is wrong any more.
    pub(crate) fn end_faults(&self) -> io::Result<()> {
        self.0.broker.heal(self.0.id)
    }

    /// An address for a sandbox.
    ///
    /// # Errors
    /// Where all are in use.
    pub(crate) fn take_address(&self) -> Result<Address, Error> {
        let mut pool = self.0.addresses();
        // Those that are other processes' are free again as soon as this one has found its own.
        let mut others = Vec::new();
        let found = loop {
            match (pool.take(), &self.0.meeting) {
                (Some(address), Some(meeting)) if !meeting.take(address)? => others.push(address),
                (found, _) => break found,
            }
        };
        for address in others {
            pool.release(address);
        }
        match found {
            Some(address) => Ok(Address {
                network: self.clone(),
                address,
            }),
            None => Err(Kind::NetworkFull {
                network: self.0.name.clone(),
                subnet: self.0.subnet,
                capacity: pool.capacity(),
            }
            .into()),
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
        if let Some(meeting) = &self.network.0.meeting {
            meeting.release(self.address);
        }
        self.network.0.addresses().release(self.address);
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
            address: self.address,
            ..self.network.link_to_be()
        }
    }

    /// Makes the names known on the network: the sandbox's place there, and what its init is to be given.
    ///
    /// It `asks_beyond` where it has a name server that is not its networks'.
    ///
    /// # Errors
    /// Where the network's owner is gone.
    pub(crate) fn join(
        self,
        sandbox: u64,
        names: &[String],
        asks_beyond: bool,
    ) -> Result<(Membership, Channel), Error> {
        let inner = &self.network.0;
        let (lease, init) = inner
            .broker
            .admit((inner.id, sandbox), self.address, names, asks_beyond)
            .map_err(|error| Error::io(format!("cannot join the network {}", inner.name), error))?;
        let membership = Membership {
            _lease: lease,
            address: self,
        };
        Ok((membership, init))
    }
}
