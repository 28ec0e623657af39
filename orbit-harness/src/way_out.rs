//! The way out of a sandbox's network, on the side of who asked for it: names are looked up before the sandbox is
//! made, and what was refused is read as long as the sandbox is held.

use std::{io, net::ToSocketAddrs as _};

use crate::{
    net::{
        denied::Denied,
        egress::{Allowed, Block, Policy, Target},
    },
    netfilter::Netfilter,
    spec::{LookedUp, Spec, SpecFault},
};

/// What is known of a sandbox's refused packets.
#[derive(Debug, Default)]
pub(crate) struct Record {
    netfilter: Option<Netfilter>,
    /// Why there is none, though it was asked for.
    why_not: Option<String>,
}

impl Record {
    /// `unrecorded` is what the kernel answered where it could not.
    pub(crate) fn new(netfilter: Option<Netfilter>, unrecorded: Option<i32>) -> Self {
        let why = |errno| {
            format!(
                "what the sandbox is refused is not recorded: this kernel's nftables cannot ({})",
                io::Error::from_raw_os_error(errno)
            )
        };
        Self {
            netfilter,
            why_not: unrecorded.map(why),
        }
    }

    /// What was refused so far; none where nothing is recorded.
    pub(crate) fn read(&self) -> io::Result<Vec<Denied>> {
        match (&self.netfilter, &self.why_not) {
            (Some(netfilter), _) => netfilter.denied(),
            (None, Some(why)) => Err(io::Error::other(why.clone())),
            (None, None) => Ok(Vec::new()),
        }
    }

    /// As [`Self::read`], with a failure as a warning.
    pub(crate) fn conclude(&self, warnings: &mut Vec<String>) -> Vec<Denied> {
        self.read().unwrap_or_else(|error| {
            warnings.push(match &self.why_not {
                Some(why) => why.clone(),
                None => format!("what the sandbox was refused cannot be read: {error}"),
            });
            Vec::new()
        })
    }
}

/// Looks up the names in the rules of `spec`, once: what they mean later does not count.
pub(crate) fn look_up(spec: &mut Spec, faults: &mut Vec<SpecFault>) {
    let mut found = LookedUp::default();
    let Some(Policy::Allow(rules)) = &spec.egress else {
        return;
    };
    for rule in rules {
        let mut allow = |to| {
            found.allowed.push(Allowed {
                to,
                ports: rule.ports,
                protocol: rule.protocol,
            });
        };
        match &rule.to {
            Target::Network(block) => allow(*block),
            Target::Dns => {}
            Target::Name(name) => {
                let mut addresses = match (name.as_str(), 0).to_socket_addrs() {
                    Ok(addresses) => addresses.map(|it| it.ip()).collect::<Vec<_>>(),
                    Err(error) => {
                        let why = format!("the name {name} cannot be looked up: {error}");
                        faults.push(SpecFault::new("egress", rule.to_string(), why));
                        continue;
                    }
                };
                addresses.retain(|address| !address.is_loopback());
                addresses.sort_unstable();
                addresses.dedup();
                if addresses.is_empty() {
                    let why = format!(
                        "{name} has no address but loopback, and the sandbox's loopback is its own; expose or publish \
                         lead the other way only"
                    );
                    faults.push(SpecFault::new("egress", rule.to_string(), why));
                }
                for address in addresses {
                    allow(Block::of(address));
                    let known = (address, name.clone());
                    if !found.names.contains(&known) {
                        found.names.push(known);
                    }
                }
            }
        }
    }
    spec.looked_up = found;
}
