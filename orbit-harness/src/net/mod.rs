//! Ports, addresses and names of networks: what is asked, parsed, checked and answered. Nothing here touches the system.

pub(crate) mod addresses;
pub(crate) mod denied;
pub(crate) mod dns;
pub(crate) mod egress;
pub(crate) mod faults;
pub(crate) mod frames;
pub(crate) mod names;
pub(crate) mod ports;
pub(crate) mod rate;
