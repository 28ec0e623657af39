//! Published ports as people write them: `8080:80`, `127.0.0.1:8080:80/tcp`, `8000-8010:80-90`.
//!
//! Parsing and printing; nothing is bound here.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// What carries a published port.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Protocol {
    /// A stream of bytes.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Ports of the host that lead to ports of a sandbox.
///
/// `[ADDRESS:]HOST_PORT[-LAST]:PORT[-LAST][/tcp|/udp]`, or `PORT` alone. A host port of 0, or none, is chosen by
/// the kernel. The address is 127.0.0.1 unless it is given, so that a test's service is not offered to the
/// network; `0.0.0.0:8080:80` offers it.
///
/// ```
/// let ports: orbit::PortMap = "127.0.0.1:8080:80/tcp".parse()?;
/// assert_eq!(ports.to_string(), "127.0.0.1:8080:80/tcp");
/// # Ok::<(), orbit::PortError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortMap {
    address: IpAddr,
    /// The first of them; 0 where the kernel chooses each.
    host_port: u16,
    /// The first of them; never 0.
    port: u16,
    /// How many there are; at least one.
    count: u16,
    protocol: Protocol,
}

/// One published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Published {
    /// Where the host listens; port 0 where the kernel chooses.
    pub(crate) host: SocketAddr,
    /// The port of the sandbox.
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
}

/// Why a text is no port map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PortError {
    /// Not of the form at all.
    #[error(
        "expected [ADDRESS:]HOST_PORT:PORT[/tcp|/udp], such as 8080:80, 127.0.0.1:8080:80 or 53:53/udp"
    )]
    Form,
    /// Not a number of a port.
    #[error("`{0}` is no port: expected a number from 1 to 65535")]
    Port(String),
    /// Port 0 of the sandbox.
    #[error(
        "a sandbox has no port 0: only the host's side may be 0, for a port that the kernel chooses"
    )]
    ZeroInside,
    /// A range whose end is before its start.
    #[error("the range `{0}` ends before it starts")]
    Backwards(String),
    /// A range of the host's and a range of the sandbox's that differ.
    #[error(
        "{host} ports of the host cannot lead to {inside} ports of the sandbox: both ranges need the same length"
    )]
    Lengths {
        /// Ports of the host.
        host: u16,
        /// Ports of the sandbox.
        inside: u16,
    },
    /// The part before the ports is no address.
    #[error("`{0}` is no IP address; one of IPv6 is written in brackets, as in [::1]:8080:80")]
    Address(String),
    /// What follows the slash.
    #[error("`{0}` is no protocol: expected tcp or udp")]
    Protocol(String),
}

impl PortMap {
    /// One TCP port of 127.0.0.1 that leads to `port` of the sandbox.
    ///
    /// # Errors
    /// [`PortError::ZeroInside`].
    pub fn tcp(host_port: u16, port: u16) -> Result<Self, PortError> {
        if port == 0 {
            return Err(PortError::ZeroInside);
        }
        Ok(Self {
            address: DEFAULT_ADDRESS,
            host_port,
            port,
            count: 1,
            protocol: Protocol::Tcp,
        })
    }

    /// Each port of the ranges.
    pub(crate) fn each(self) -> impl Iterator<Item = Published> {
        (0..self.count).map(move |offset| {
            let host_port = match self.host_port {
                0 => 0,
                first => first + offset,
            };
            Published {
                host: SocketAddr::new(self.address, host_port),
                port: self.port + offset,
                protocol: self.protocol,
            }
        })
    }
}

const DEFAULT_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

impl FromStr for PortMap {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, PortError> {
        let (ports, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some((_, other)) => return Err(PortError::Protocol(other.to_owned())),
        };
        let (address, host, inside) = split(ports)?;
        let address = address.map_or(Ok(DEFAULT_ADDRESS), |text| {
            let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
            let parsed = match bare {
                Some(v6) => v6.parse().map(IpAddr::V6).ok(),
                None => text.parse().map(IpAddr::V4).ok(),
            };
            parsed.ok_or_else(|| PortError::Address(text.to_owned()))
        })?;
        let (port, count) = range(inside)?;
        if port == 0 {
            return Err(PortError::ZeroInside);
        }
        let (host_port, host_count) = match host {
            None | Some("" | "0") => (0, count),
            Some(host) => range(host)?,
        };
        if host_port == 0 && host.is_some_and(|host| host.contains('-')) {
            return Err(PortError::Port("0".to_owned()));
        }
        if host_count != count {
            return Err(PortError::Lengths {
                host: host_count,
                inside: count,
            });
        }
        Ok(Self {
            address,
            host_port,
            port,
            count,
            protocol,
        })
    }
}

/// The address, the host's ports and the sandbox's, each as written.
fn split(text: &str) -> Result<(Option<&str>, Option<&str>, &str), PortError> {
    if text.is_empty() {
        return Err(PortError::Form);
    }
    let Some((rest, inside)) = text.rsplit_once(':') else {
        return Ok((None, None, text));
    };
    if rest.ends_with(']') {
        return Err(PortError::Form);
    }
    match rest.rsplit_once(':') {
        None if rest.is_empty() => Err(PortError::Form),
        None => Ok((None, Some(rest), inside)),
        Some((address, host)) => Ok((Some(address), Some(host), inside)),
    }
}

/// The first port of `text` and how many there are.
fn range(text: &str) -> Result<(u16, u16), PortError> {
    let port = |text: &str| {
        if text.is_empty() {
            return Err(PortError::Form);
        }
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.then(|| text.parse().ok()).flatten();
        number.ok_or_else(|| PortError::Port(text.to_owned()))
    };
    let Some((first, last)) = text.split_once('-') else {
        return Ok((port(text)?, 1));
    };
    let (first, last): (u16, u16) = (port(first)?, port(last)?);
    match last.checked_sub(first) {
        None => Err(PortError::Backwards(text.to_owned())),
        // 0-65535: one of them is port 0, which no range may hold.
        Some(u16::MAX) => Err(PortError::Port("0".to_owned())),
        Some(more) => Ok((first, more + 1)),
    }
}

impl fmt::Display for PortMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |f: &mut fmt::Formatter<'_>, first: u16| {
            write!(f, "{first}")?;
            if self.count > 1 && first > 0 {
                write!(f, "-{}", first + (self.count - 1))?;
            }
            Ok(())
        };
        match self.address {
            IpAddr::V4(address) => write!(f, "{address}:")?,
            IpAddr::V6(address) => write!(f, "[{address}]:")?,
        }
        range(f, self.host_port)?;
        f.write_str(":")?;
        range(f, self.port)?;
        write!(f, "/{}", self.protocol)
    }
}

impl TryFrom<String> for PortMap {
    type Error = PortError;

    fn try_from(text: String) -> Result<Self, PortError> {
        text.parse()
    }
}

impl From<PortMap> for String {
    fn from(ports: PortMap) -> Self {
        ports.to_string()
    }
}

/// The first host port that is asked for twice among `all`, as an address to name.
///
/// An address that is any address takes the port on every other one: `0.0.0.0` of IPv4, `::` of both families, as sockets
/// are dual-stack (ipv6(7), `IPV6_V6ONLY`).
pub(crate) fn first_conflict(all: &[Published]) -> Option<(SocketAddr, Protocol)> {
    let takes = |one: IpAddr, other: IpAddr| match one {
        IpAddr::V4(v4) => v4.is_unspecified() && other.is_ipv4(),
        IpAddr::V6(v6) => v6.is_unspecified(),
    };
    let clash = |one: &Published, other: &Published| {
        let (first, second) = (one.host.ip().to_canonical(), other.host.ip().to_canonical());
        let same_address = first == second || takes(first, second) || takes(second, first);
        one.host.port() != 0
            && one.host.port() == other.host.port()
            && one.protocol == other.protocol
            && same_address
    };
    let mut sorted: Vec<&Published> = all.iter().collect();
    sorted.sort_by_key(|published| (published.host.port(), published.protocol));
    let runs = sorted.chunk_by(|a, b| (a.host.port(), a.protocol) == (b.host.port(), b.protocol));
    for run in runs {
        for (index, one) in run.iter().enumerate() {
            if let Some(other) = run[index + 1..].iter().find(|other| clash(one, other)) {
                return Some((other.host, other.protocol));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<String, PortError> {
        text.parse::<PortMap>().map(|map| map.to_string())
    }

    #[test]
    fn every_form_is_read() {
        for (text, means) in [
            ("8080:80", "127.0.0.1:8080:80/tcp"),
            ("127.0.0.1:8080:80/tcp", "127.0.0.1:8080:80/tcp"),
            ("53:53/udp", "127.0.0.1:53:53/udp"),
            ("8000-8010:80-90", "127.0.0.1:8000-8010:80-90/tcp"),
            ("[::1]:8080:80", "[::1]:8080:80/tcp"),
            ("0.0.0.0:8080:80", "0.0.0.0:8080:80/tcp"),
            ("0:80", "127.0.0.1:0:80/tcp"),
            ("80", "127.0.0.1:0:80/tcp"),
            ("80-82/udp", "127.0.0.1:0:80-82/udp"),
            ("127.0.0.1::80", "127.0.0.1:0:80/tcp"),
            ("0:80-90", "127.0.0.1:0:80-90/tcp"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(means), "{text}");
        }
    }

    #[test]
    fn every_bad_form_is_one_clear_error() {
        let texts = [
            "",
            ":",
            ":80",
            "80:",
            "8080:0",
            "0",
            "8080:70000",
            "70000:80",
            "-1:80",
            "+8080:80",
            "a:80",
            "8080:80:",
            "8000-8010:80-85",
            "8000-8010:80",
            "8010-8000:80-90",
            "0-10:80-90",
            "0-65535:0-65535",
            "8080:80/sctp",
            "8080:80/",
            "localhost:8080:80",
            "::1:8080:80",
            "[::1]:80",
            "[127.0.0.1]:8080:80",
            "1.2.3:8080:80",
            " 8080:80",
            "8080:80 ",
            "1:2:3:4",
        ];
        let lines: Vec<String> = texts
            .iter()
            .map(|text| match parse(text) {
                Ok(map) => panic!("{text:?} was read as {map}"),
                Err(error) => format!("{text:?}: {error}"),
            })
            .collect();
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn a_host_port_asked_for_twice_is_found() {
        let all = |texts: &[&str]| -> Vec<Published> {
            let maps = texts.iter().map(|text| text.parse::<PortMap>().unwrap());
            maps.flat_map(PortMap::each).collect()
        };
        let conflict =
            |texts: &[&str]| first_conflict(&all(texts)).map(|(host, _)| host.to_string());
        assert_eq!(
            conflict(&["8080:80", "8080:81"]).as_deref(),
            Some("127.0.0.1:8080")
        );
        assert_eq!(
            conflict(&["8000-8010:80-90", "8005:1"]).as_deref(),
            Some("127.0.0.1:8005")
        );
        for clash in [
            &["0.0.0.0:8080:80", "8080:80"],
            &["0.0.0.0:8080:80", "[::]:8080:80"],
            &["[::]:8080:80", "8080:81"],
            &["[::1]:8080:80", "[::]:8080:80"],
            &["[::ffff:127.0.0.1]:8080:80", "8080:80"],
        ] {
            assert!(conflict(clash).is_some(), "{clash:?}");
        }
        for fine in [
            &["8080:80", "8080:80/udp"][..],
            &["8080:80", "[::1]:8080:80"],
            &["0.0.0.0:8080:80", "[::1]:8080:80"],
            &["127.0.0.1:8080:80", "127.0.0.2:8080:80"],
            &["0:80", "0:80"],
        ] {
            assert_eq!(conflict(fine), None, "{fine:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[0-9:./\\[\\]a-z-]{0,30}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_printed_parses_to_the_same(
            first in 1u16..60000, inside in 1u16..60000, more in 0u16..5000, udp: bool, v6: bool,
        ) {
            let address = if v6 { "[::1]" } else { "10.1.2.3" };
            let protocol = if udp { "udp" } else { "tcp" };
            let text = format!("{address}:{first}-{}:{inside}-{}/{protocol}", first + more, inside + more);
            let map: PortMap = text.parse().unwrap();
            prop_assert_eq!(map.to_string().parse(), Ok(map));
            let each: Vec<_> = map.each().collect();
            prop_assert_eq!(each.len(), usize::from(more) + 1);
            prop_assert_eq!(each[each.len() - 1].port, inside + more);
        }
    }
}
