//! IPv4 networks and the addresses in them: parse, overlap, give out, take back. Pure.

use std::{collections::BTreeSet, fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

/// An IPv4 network with room for a gateway and at least one sandbox: `172.25.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    network: Ipv4Addr,
    prefix: u8,
}

/// Why a text is no subnet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubnetError {
    /// Not of the form at all.
    #[error("expected an IPv4 network such as 172.25.0.0/16")]
    Form,
    /// No room, or more of it than anybody has.
    #[error("the part after the slash is {0}; expected 8 to 30, to leave room for sandboxes")]
    Prefix(u8),
    /// An address in the network, rather than the network's own.
    #[error("bits after the first {prefix} are set; did you mean {network}/{prefix}?")]
    HostBits {
        /// The network that the address is in.
        network: Ipv4Addr,
        /// Its length.
        prefix: u8,
    },
    /// Addresses that mean something else.
    #[error(
        "these addresses are not for networks of one's own (loopback, link-local, multicast or reserved)"
    )]
    Special,
}

impl Subnet {
    /// 172.25.0.0/16: of the bridge, where no other is asked for.
    pub(crate) const DEFAULT: Self = Self {
        network: Ipv4Addr::new(172, 25, 0, 0),
        prefix: 16,
    };

    pub(crate) fn new(network: Ipv4Addr, prefix: u8) -> Result<Self, SubnetError> {
        if !(8..=30).contains(&prefix) {
            return Err(SubnetError::Prefix(prefix));
        }
        let subnet = Self {
            network: Ipv4Addr::from_bits(network.to_bits() & mask(prefix)),
            prefix,
        };
        if subnet.network != network {
            return Err(SubnetError::HostBits {
                network: subnet.network,
                prefix,
            });
        }
        let special = network.is_loopback()
            || network.is_link_local()
            || network.octets()[0] == 0
            || network.octets()[0] >= 224;
        if special {
            return Err(SubnetError::Special);
        }
        Ok(subnet)
    }

    /// The length of its prefix.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The first address: the bridge's own, where names are answered.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() + 1)
    }

    /// The last address, which is everybody's.
    pub(crate) fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | !mask(self.prefix))
    }

    /// Whether `address` is one of this network's.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.network.to_bits()
    }

    /// Whether the two have an address in common.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let (address, prefix) = text.split_once('/').ok_or(SubnetError::Form)?;
        let plain = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix = prefix.parse().ok().filter(|_| plain);
        match (address.parse(), prefix) {
            (Ok(address), Some(prefix)) => Self::new(address, prefix),
            _ => Err(SubnetError::Form),
        }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl TryFrom<String> for Subnet {
    type Error = SubnetError;

    fn try_from(text: String) -> Result<Self, SubnetError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

/// Which addresses of a network are in use.
///
/// An address that was given back is the last to be given out again: what still knows who had it (a neighbour
/// table, a client that retries) has long forgotten by then.
#[derive(Debug)]
pub(crate) struct Pool {
    subnet: Subnet,
    used: BTreeSet<Ipv4Addr>,
    last: Ipv4Addr,
}

impl Pool {
    pub(crate) fn new(subnet: Subnet) -> Self {
        Self {
            subnet,
            used: BTreeSet::new(),
            last: subnet.gateway(),
        }
    }

    /// As it was left, with `used` in use and `last` the one given out last.
    pub(crate) fn resumed(
        subnet: Subnet,
        used: impl IntoIterator<Item = Ipv4Addr>,
        last: Option<Ipv4Addr>,
    ) -> Self {
        Self {
            subnet,
            used: used.into_iter().collect(),
            last: last
                .filter(|last| subnet.contains(*last) && *last != subnet.broadcast())
                .unwrap_or(subnet.gateway()),
        }
    }

    /// The next free address. `None`: all are in use.
    pub(crate) fn take(&mut self) -> Option<Ipv4Addr> {
        let (first, end) = (
            self.subnet.gateway().to_bits() + 1,
            self.subnet.broadcast().to_bits(),
        );
        let after = self.last.to_bits() + 1;
        let free = (after..end)
            .chain(first..after.min(end))
            .map(Ipv4Addr::from_bits)
            .find(|address| !self.used.contains(address))?;
        self.used.insert(free);
        self.last = free;
        Some(free)
    }

    /// Gives an address back.
    pub(crate) fn release(&mut self, address: Ipv4Addr) {
        self.used.remove(&address);
    }

    /// How many sandboxes fit.
    pub(crate) fn capacity(&self) -> u32 {
        self.subnet.broadcast().to_bits() - self.subnet.gateway().to_bits() - 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn a_bad_network_is_one_clear_error() {
        let texts = [
            "",
            "/",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/x",
            "10.0.0.0/+8",
            "10.0.0/24",
            "10.0.0.0/33",
            "10.0.0.0/31",
            "10.0.0.0/7",
            "10.0.0.1/24",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "224.0.0.0/8",
            "0.0.0.0/8",
            "fd00::/64",
            "10.0.0.0/300",
        ];
        let lines: Vec<String> = texts
            .iter()
            .map(|text| match text.parse::<Subnet>() {
                Ok(subnet) => panic!("{text:?} was read as {subnet}"),
                Err(error) => format!("{text:?}: {error}"),
            })
            .collect();
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn overlaps_are_seen_from_both_sides() {
        let overlap = |a: &str, b: &str| {
            let (a, b) = (subnet(a), subnet(b));
            assert_eq!(a.overlaps(b), b.overlaps(a));
            a.overlaps(b)
        };
        assert!(overlap("10.0.0.0/8", "10.1.2.0/24"));
        assert!(overlap("10.1.2.0/24", "10.1.2.0/24"));
        assert!(!overlap("10.1.2.0/24", "10.1.3.0/24"));
        assert!(!overlap("172.25.0.0/16", "172.26.0.0/16"));
    }

    #[test]
    fn a_full_network_says_so_and_an_address_given_back_is_used_last() {
        let mut pool = Pool::new(subnet("10.0.0.0/29"));
        let taken: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        let texts: Vec<_> = taken.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
        );
        assert_eq!(pool.capacity(), 5);
        pool.release(taken[1]);
        assert_eq!(pool.take(), Some(taken[1]));
        assert_eq!(pool.take(), None);

        let mut pool = Pool::new(subnet("10.0.0.0/29"));
        let first = pool.take().unwrap();
        pool.release(first);
        assert_ne!(pool.take(), Some(first));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[0-9./:x]{0,24}") {
            let _ = text.parse::<Subnet>();
        }

        #[test]
        fn what_is_printed_parses_to_the_same(bits: u32, prefix in 8u8..=30) {
            if let Ok(subnet) = Subnet::new(Ipv4Addr::from_bits(bits & mask(prefix)), prefix) {
                prop_assert_eq!(subnet.to_string().parse(), Ok(subnet));
            }
        }

        #[test]
        fn no_address_is_given_out_twice(order in prop::collection::vec((any::<bool>(), 0usize..40), 0..200)) {
            let subnet = subnet("192.168.7.0/27");
            let (mut pool, mut held) = (Pool::new(subnet), Vec::new());
            for (take, index) in order {
                if take {
                    if let Some(address) = pool.take() {
                        prop_assert!(subnet.contains(address) && !held.contains(&address));
                        prop_assert!(address != subnet.gateway() && address != subnet.broadcast());
                        held.push(address);
                    } else { prop_assert_eq!(held.len(), pool.capacity() as usize) }
                } else if !held.is_empty() {
                    pool.release(held.swap_remove(index % held.len()));
                }
            }
        }
    }
}
