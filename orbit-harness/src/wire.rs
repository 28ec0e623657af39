//! Faults on the wire: partitions, and slow, lossy, narrow links between sandboxes of a network.
//!
//! Where something is wrong between two sandboxes, the sender's kernel is told another hardware address for the
//! receiver, which leads through the broker. So faults count for connections that are open, in the one direction that
//! is meant, for nobody else; and need no program and no module of the kernel, by root or anybody else.

#[cfg(feature = "tokio")]
mod asynchronous;

use std::{net::Ipv4Addr, time::Duration};

use crate::{
    error::Error,
    net::{faults::Faults, rate::Rate},
    network::Network,
    sandbox::Sandbox,
    spec::SpecFault,
    units::Bytes,
};

impl Network {
    /// The wire between the two, to make it worse: see [`WireBuilder`].
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// let network = orbit::Network::builder().create()?;
    /// let node = || orbit::Sandbox::builder().cmd(["my-database"]).network(&network).start();
    /// let (leader, follower) = (node()?, node()?);
    /// network
    ///     .link(&leader, &follower)
    ///     .latency(Duration::from_millis(50)) // each way: a round trip takes 100 ms
    ///     .jitter(Duration::from_millis(5))
    ///     .loss(0.01)
    ///     .rate("1mbit")
    ///     .apply()?;
    /// // What they do on a bad line.
    /// network.heal()?;
    /// # Ok::<(), orbit::Error>(())
    /// ```
    pub fn link<'a>(&'a self, one: &'a Sandbox, other: &'a Sandbox) -> WireBuilder<'a> {
        WireBuilder {
            network: self,
            ends: (one, other),
            one_way: false,
            faults: Faults::default(),
            wrong: Vec::new(),
        }
    }

    /// Loses every packet between the two, until [`heal`](Self::heal): of IPv4, of IPv6, and what they send to everybody
    /// or to a group. Only what asks for hardware addresses (ARP, neighbour discovery) gets through. Other faults
    /// of the link are no more.
    ///
    /// ```no_run
    /// let network = orbit::Network::builder().create()?;
    /// let node = || orbit::Sandbox::builder().cmd(["my-database"]).network(&network).start();
    /// let (leader, follower) = (node()?, node()?);
    /// network.partition(&leader, &follower)?;
    /// // What the follower does alone.
    /// network.heal()?;
    /// # Ok::<(), orbit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Where one of them is not on this network, or has ended.
    pub fn partition(&self, one: &Sandbox, other: &Sandbox) -> Result<(), Error> {
        let pair = (self.address_of(one)?, self.address_of(other)?);
        set(self, "part", pair, false, Some(Faults::PARTED))
    }

    /// Loses every packet that `from` sends to `to`, until [`heal`](Self::heal). Those that `to` sends arrive; what
    /// is answered to them does not.
    ///
    /// # Errors
    /// As [`partition`](Self::partition).
    pub fn partition_one_way(&self, from: &Sandbox, to: &Sandbox) -> Result<(), Error> {
        let pair = (self.address_of(from)?, self.address_of(to)?);
        set(self, "part", pair, true, Some(Faults::PARTED))
    }

    /// Ends all faults of this network, partitions and others. What is on its way arrives when it would have.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn heal(&self) -> Result<(), Error> {
        self.end_faults()
            .map_err(|error| Error::io(format!("cannot heal {self:?}"), error))
    }

    fn change(
        &self,
        doing: &str,
        (from, to): (Ipv4Addr, Ipv4Addr),
        faults: Option<Faults>,
    ) -> Result<(), Error> {
        self.set_faults((from, to), faults).map_err(|error| {
            let why = match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV) => ", one of which has ended",
                Some(libc::EAFNOSUPPORT) => {
                    ": this kernel has no packet sockets (CONFIG_PACKET), which faults need"
                }
                _ => "",
            };
            Error::io(
                format!("cannot {doing} {from} and {to} on {self:?}{why}"),
                error,
            )
        })
    }

    fn address_of(&self, sandbox: &Sandbox) -> Result<Ipv4Addr, Error> {
        sandbox
            .address(self)
            .ok_or_else(|| Error::spec(vec![self.not_on(sandbox)]))
    }

    fn not_on(&self, sandbox: &Sandbox) -> SpecFault {
        let why = format!("it is not on the network {}", self.name());
        SpecFault::new("sandbox", sandbox.id(), why)
    }
}

/// What is to be wrong with the wire between two sandboxes: made by [`Network::link`], done by
/// [`apply`](Self::apply).
///
/// It counts for both directions, each by itself, unless [`one_way`](Self::one_way) says otherwise; and in place of
/// what was wrong before.
#[must_use = "nothing changes until `apply`"]
#[derive(Debug)]
pub struct WireBuilder<'a> {
    network: &'a Network,
    ends: (&'a Sandbox, &'a Sandbox),
    one_way: bool,
    faults: Faults,
    wrong: Vec<SpecFault>,
}

/// Nobody waits longer than this for a packet.
const LONGEST: Duration = Duration::from_secs(3600);

impl WireBuilder<'_> {
    /// Only what the first sends to the second.
    pub fn one_way(mut self) -> Self {
        self.one_way = true;
        self
    }

    /// How long each packet is on its way. Both ways, a round trip takes twice as long.
    pub fn latency(mut self, latency: Duration) -> Self {
        self.check_time("latency", latency);
        self.faults.latency = latency;
        self
    }

    /// By how much the latency varies, evenly, to either side. Packets do not overtake each other for it.
    pub fn jitter(mut self, jitter: Duration) -> Self {
        self.check_time("jitter", jitter);
        self.faults.jitter = jitter;
        self
    }

    /// The share of packets that are lost, each by chance, from 0 to 1.
    pub fn loss(mut self, share: f64) -> Self {
        if (0.0..=1.0).contains(&share) {
            self.faults.loss = share;
        } else {
            let why = "expected a share from 0 to 1, such as 0.01";
            self.wrong
                .push(SpecFault::new("loss", share.to_string(), why));
        }
        self
    }

    /// How much passes in a second: `"1mbit"`, a [`Rate`], or [`Bytes`]. What would wait for half a second (and is
    /// more than 64 KiB) is lost.
    pub fn rate(mut self, rate: impl IntoRate) -> Self {
        match rate.into_rate() {
            Ok(rate) => self.faults.rate = Some(rate),
            Err(fault) => self.wrong.push(fault),
        }
        self
    }

    /// Makes it so, from the next packet on.
    ///
    /// # Errors
    /// Where a value makes no sense, or one of the sandboxes is not on the network ([`Error::is_spec`]), or has ended.
    pub fn apply(self) -> Result<(), Error> {
        let pair = self.checked()?;
        let faults = Some(self.faults);
        set(
            self.network,
            "set faults between",
            pair,
            self.one_way,
            faults,
        )
    }

    /// Ends what is wrong with this link, in the direction or the directions that are meant.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn heal(self) -> Result<(), Error> {
        let pair = self.checked()?;
        set(self.network, "heal the link of", pair, self.one_way, None)
    }

    fn checked(&self) -> Result<(Ipv4Addr, Ipv4Addr), Error> {
        let mut wrong = self.wrong.clone();
        let (one, other) = self.ends;
        let addresses = [one, other].map(|sandbox| {
            let address = sandbox.address(self.network);
            if address.is_none() {
                wrong.push(self.network.not_on(sandbox));
            }
            address
        });
        match addresses {
            [Some(one), Some(other)] if one == other => {
                let why = "a link is between two sandboxes, and these are one";
                Err(Error::spec(vec![SpecFault::new(
                    "link",
                    one.to_string(),
                    why,
                )]))
            }
            [Some(one), Some(other)] if wrong.is_empty() => Ok((one, other)),
            _ => Err(Error::spec(wrong)),
        }
    }

    fn check_time(&mut self, what: &str, time: Duration) {
        if time > LONGEST {
            let why = "expected an hour at most";
            self.wrong
                .push(SpecFault::new(what, format!("{time:?}"), why));
        }
    }
}

/// What is wrong from now on in the one direction, or in both.
fn set(
    network: &Network,
    doing: &str,
    (one, other): (Ipv4Addr, Ipv4Addr),
    one_way: bool,
    faults: Option<Faults>,
) -> Result<(), Error> {
    network.change(doing, (one, other), faults)?;
    if one_way {
        return Ok(());
    }
    network.change(doing, (other, one), faults)
}

/// What [`WireBuilder::rate`] takes.
pub trait IntoRate {
    /// The rate, or what is wrong with it.
    ///
    /// # Errors
    /// Where it is none.
    fn into_rate(self) -> Result<Rate, SpecFault>;
}

impl IntoRate for Rate {
    fn into_rate(self) -> Result<Rate, SpecFault> {
        Ok(self)
    }
}

/// So many bytes a second.
impl IntoRate for Bytes {
    fn into_rate(self) -> Result<Rate, SpecFault> {
        Ok(Rate::bytes(self))
    }
}

impl IntoRate for &str {
    fn into_rate(self) -> Result<Rate, SpecFault> {
        self.parse().map_err(|error: crate::units::UnitError| {
            SpecFault::new("rate", self, error.to_string())
        })
    }
}
