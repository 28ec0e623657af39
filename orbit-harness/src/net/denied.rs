//! What a sandbox tried to reach and was refused.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

/// Where a sandbox tried to send, and was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Denied {
    /// The address it would have reached.
    pub address: IpAddr,
    /// The port; `None` for protocols that have none.
    pub port: Option<u16>,
    /// What would have carried it.
    pub protocol: Transport,
    /// How many packets were refused: for TCP one for each attempt to connect, for UDP one for each datagram.
    pub count: u64,
}

/// What carries packets, by its number in the header of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Transport {
    /// 6.
    Tcp,
    /// 17.
    Udp,
    /// 1, as `ping` sends; 58 over IPv6.
    Icmp,
    /// Any other.
    Other(u8),
}

impl Transport {
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const ICMPV6: u8 = 58;
    const ICMP: u8 = 1;

    pub(crate) const fn of(number: u8) -> Self {
        match number {
            Self::TCP => Self::Tcp,
            Self::UDP => Self::Udp,
            Self::ICMP | Self::ICMPV6 => Self::Icmp,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("tcp"),
            Self::Udp => f.write_str("udp"),
            Self::Icmp => f.write_str("icmp"),
            Self::Other(number) => write!(f, "ip-{number}"),
        }
    }
}

/// `192.0.2.1:443/tcp, 2 times`.
impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            port,
            protocol,
            count,
        } = self;
        match port {
            Some(port) => write!(f, "{}/{protocol}", SocketAddr::new(*address, *port))?,
            None => write!(f, "{address}/{protocol}")?,
        }
        match count {
            1 => f.write_str(", once"),
            many => write!(f, ", {many} times"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_prints_as_a_person_would_say_it() {
        let denied = |address: &str, port, protocol, count| {
            let address = address.parse().unwrap();
            Denied {
                address,
                port,
                protocol,
                count,
            }
            .to_string()
        };
        assert_eq!(
            denied("192.0.2.1", Some(443), Transport::Tcp, 1),
            "192.0.2.1:443/tcp, once"
        );
        assert_eq!(
            denied("2001:db8::1", Some(53), Transport::Udp, 3),
            "[2001:db8::1]:53/udp, 3 times"
        );
        assert_eq!(
            denied("192.0.2.1", None, Transport::of(1), 2),
            "192.0.2.1/icmp, 2 times"
        );
        assert_eq!(Transport::of(132).to_string(), "ip-132");
    }
}
