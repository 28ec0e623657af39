//! Faults on the wire: partitions between sandboxes of a network.
//!
//! A partition is made where packets leave: the sender's kernel is told a hardware address for the receiver that
//! nobody has, for good. So packets are lost without a word, also those of connections that are open, and only
//! in the one direction; no program and no module of the kernel is needed, by root or anybody else.

use std::net::Ipv4Addr;

use crate::{error::Error, network::Network, sandbox::Sandbox, spec::SpecFault};

impl Network {
    /// Loses every packet between the two, until [`heal`](Self::heal).
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
        self.partition_one_way(one, other)?;
        self.partition_one_way(other, one)
    }

    /// Loses every packet that `from` sends to `to`, until [`heal`](Self::heal). Those that `to` sends arrive; what
    /// is answered to them does not.
    ///
    /// # Errors
    /// As [`partition`](Self::partition).
    pub fn partition_one_way(&self, from: &Sandbox, to: &Sandbox) -> Result<(), Error> {
        let (from, to) = (self.address_of(from)?, self.address_of(to)?);
        self.lose(from, to)
            .map_err(|error| Error::io(format!("cannot part {from} from {to} on {self:?}"), error))
    }

    /// Ends all partitions of this network.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn heal(&self) -> Result<(), Error> {
        self.find_all()
            .map_err(|error| Error::io(format!("cannot heal {self:?}"), error))
    }

    fn address_of(&self, sandbox: &Sandbox) -> Result<Ipv4Addr, Error> {
        sandbox.address(self).ok_or_else(|| {
            let why = format!("it is not on the network {}", self.name());
            Error::spec(vec![SpecFault::new("sandbox", sandbox.id(), why)])
        })
    }
}
