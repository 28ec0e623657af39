//! Ports, addresses and names of networks: what is asked, parsed and checked. Nothing here touches the system.

pub(crate) mod addresses;
pub(crate) mod names;
pub(crate) mod ports;
