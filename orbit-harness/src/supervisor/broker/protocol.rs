//! What the test process asks of the broker. Each request brings a channel of its own: for the answer, and for
//! as long as what was asked is to last.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::trunk::Known;
use crate::net::{addresses::Subnet, faults::Faults, ports::Protocol};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum NetRequest {
    /// Stream sockets inside a network namespace. Descriptors: the reply channel, the namespace. Answered with
    /// an [`Answer`] and one socket for IPv4, then one for IPv6 where there is any.
    Sockets,
    /// Forward what arrives at the host's sockets to these ports inside, until the lease is closed.
    /// Descriptors: the lease, the namespace, then a socket for each port.
    Publish { ports: Vec<(Protocol, u16)> },
    /// Make a network, which is there until the lease is closed. Descriptors: the lease; for one that other processes
    /// are on, a socket that listens for their brokers.
    CreateNetwork { id: u64, subnet: Subnet },
    /// Be connected with the broker of another process that is on the network, whose members are these. Descriptors:
    /// the reply channel, the connection.
    Meet { network: u64, members: Vec<Known> },
    /// Let a sandbox join a network under these names, until the lease is closed. Descriptors: the lease; a channel
    /// on which the sandbox's init will send the name of its link with its network namespace, and hear an
    /// [`Answer`].
    Admit {
        network: u64,
        sandbox: u64,
        address: Ipv4Addr,
        names: Vec<String>,
        /// Whether it has a name server beyond its networks, too.
        asks_beyond: bool,
    },
    /// What is wrong from now on with what the first of these members of the network sends to the second. `None`:
    /// nothing. Descriptor: the reply channel.
    Fault {
        network: u64,
        pair: (Ipv4Addr, Ipv4Addr),
        faults: Option<Faults>,
    },
    /// Nothing is wrong with the network any more. Descriptor: the reply channel.
    Heal { network: u64 },
}

/// Done, or the error number of what could not be done.
pub(crate) type Answer = Result<(), i32>;
