//! The way out of a sandbox's network, as people write it: `none`, `all`, or what alone may be reached.
//!
//! Parsing and printing; names are looked up elsewhere, when a sandbox is started.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{names, ports::Protocol};

/// What a sandbox may reach beyond its own networks: nothing, everything, or what is listed.
///
/// A rule is `ADDRESS[/PREFIX][:PORT[-LAST]][/tcp|/udp]`, or the same with the name of a host, or `dns`:
///
/// | rule | what it allows |
/// |---|---|
/// | `10.0.0.0/8:443` | TCP to port 443 of these addresses |
/// | `[2001:db8::]/32:53/udp` | datagrams to port 53 of these |
/// | `192.0.2.1` | everything that goes to this address |
/// | `registry.example:8000-8010` | TCP to these ports of the addresses that the name has when the sandbox starts, which the sandbox finds in its `/etc/hosts` |
/// | `dns` | questions to the host's name server, which other rules do not open |
///
/// ```
/// let egress = orbit::Egress::allow(["10.0.0.0/8:443", "registry.example:443"]);
/// assert_eq!(egress.to_string(), "10.0.0.0/8:443/tcp,registry.example:443/tcp");
/// assert_eq!("none".parse(), Ok(orbit::Egress::none()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    pub(crate) policy: Policy,
    /// What was given, and is none.
    pub(crate) faults: Vec<EgressError>,
}

/// What may be reached, as a spec holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Policy {
    #[default]
    None,
    All,
    Allow(Vec<Rule>),
}

/// One thing that may be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Rule {
    pub(crate) to: Target,
    /// The first and the last; every port where there are none.
    pub(crate) ports: Option<(u16, u16)>,
    /// Every protocol where there is none.
    pub(crate) protocol: Option<Protocol>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Network(Block),
    Name(String),
    /// The host's name server.
    Dns,
}

/// Addresses that share their first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Block {
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
}

/// A rule whose name has been looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Allowed {
    pub(crate) to: Block,
    pub(crate) ports: Option<(u16, u16)>,
    pub(crate) protocol: Option<Protocol>,
}

/// More than this are no list that a person keeps, and each is a rule that every packet meets.
pub(crate) const MAX_RULES: usize = 256;

/// Why a text is no rule of egress.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct EgressError {
    pub(crate) given: String,
    why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Why {
    #[error(
        "expected none, all, or rules such as 10.0.0.0/8:443, [2001:db8::]/32:53/udp, registry.example:443 or dns"
    )]
    Form,
    #[error("`{0}` is a word of its own: write it without other rules")]
    Alone(String),
    #[error("`{0}` is no port: expected a number from 1 to 65535")]
    Port(String),
    #[error("the range `{0}` ends before it starts")]
    Backwards(String),
    #[error("`{given}` is no prefix: expected a number from 0 to {max}")]
    Prefix { given: String, max: u8 },
    #[error("{address}/{prefix} has bits set beyond its prefix; did you mean {meant}/{prefix}?")]
    HostBits {
        address: IpAddr,
        prefix: u8,
        meant: IpAddr,
    },
    #[error("an address of IPv6 is written in brackets, as in [2001:db8::]/32:443")]
    Brackets,
    #[error("`{0}` is neither an IP address nor the name of a host")]
    Host(String),
    #[error("`{0}` is no protocol: expected tcp or udp")]
    Protocol(String),
    #[error("{0} is the sandbox's own loopback, which it reaches without a rule")]
    Loopback(IpAddr),
    #[error("it is more than the {MAX_RULES} rules that a sandbox may have")]
    TooMany,
}

impl Egress {
    /// No way out, which is how every sandbox starts. Said in so many words, what is refused is
    /// [recorded](crate::SandboxBuilder::record_denied).
    pub const fn none() -> Self {
        Self {
            policy: Policy::None,
            faults: Vec::new(),
        }
    }

    /// Whatever the host itself reaches, but for the host's own loopback.
    pub const fn all() -> Self {
        Self {
            policy: Policy::All,
            faults: Vec::new(),
        }
    }

    /// What these rules name, and nothing else. A rule that is none is told when the sandbox is asked for.
    pub fn allow<R: AsRef<str>>(rules: impl IntoIterator<Item = R>) -> Self {
        let (mut allowed, mut faults) = (Vec::new(), Vec::new());
        for rule in rules {
            match rule.as_ref().parse() {
                Ok(rule) => allowed.push(rule),
                Err(fault) => faults.push(fault),
            }
        }
        if allowed.len() > MAX_RULES {
            faults.push(error(allowed.len().to_string(), Why::TooMany));
        }
        Self {
            policy: Policy::Allow(allowed),
            faults,
        }
    }
}

/// `none`, `all`, or rules with commas between them.
impl FromStr for Egress {
    type Err = EgressError;

    fn from_str(text: &str) -> Result<Self, EgressError> {
        match text.trim() {
            "none" => return Ok(Self::none()),
            "all" => return Ok(Self::all()),
            "" => return Err(error(text, Why::Form)),
            _ => {}
        }
        let mut egress = Self::allow(text.split(',').map(str::trim));
        if egress.faults.is_empty() {
            Ok(egress)
        } else {
            Err(egress.faults.swap_remove(0))
        }
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.policy.fmt(f)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::All => f.write_str("all"),
            Self::Allow(rules) => {
                for (number, rule) in rules.iter().enumerate() {
                    let comma = if number == 0 { "" } else { "," };
                    write!(f, "{comma}{rule}")?;
                }
                Ok(())
            }
        }
    }
}

fn error(given: impl Into<String>, why: Why) -> EgressError {
    EgressError {
        given: given.into(),
        why,
    }
}

impl FromStr for Rule {
    type Err = EgressError;

    fn from_str(text: &str) -> Result<Self, EgressError> {
        parse(text).map_err(|why| error(text, why))
    }
}

fn parse(text: &str) -> Result<Rule, Why> {
    if matches!(text, "none" | "all") {
        return Err(Why::Alone(text.to_owned()));
    }
    if text == "dns" {
        return Ok(Rule {
            to: Target::Dns,
            ports: None,
            protocol: None,
        });
    }
    if text.is_empty() || text.starts_with([':', '/']) {
        return Err(Why::Form);
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(Why::Brackets);
    }
    // What follows the address: `/PREFIX`, `:PORTS`, `/PROTOCOL`, in this order.
    let (host, mut rest) = match text.strip_prefix('[') {
        Some(inner) => inner.split_once(']').ok_or(Why::Form)?,
        None => text.split_at(text.find([':', '/']).unwrap_or(text.len())),
    };
    let prefix = match rest.strip_prefix('/') {
        Some(after) if after.starts_with(|first: char| first.is_ascii_digit()) => {
            let (prefix, after) = after.split_at(after.find([':', '/']).unwrap_or(after.len()));
            rest = after;
            Some(prefix)
        }
        _ => None,
    };
    let ports = match rest.strip_prefix(':') {
        Some(after) => {
            let (ports, after) = after.split_at(after.find('/').unwrap_or(after.len()));
            rest = after;
            Some(range(ports)?)
        }
        None => None,
    };
    let protocol = match rest {
        "" => ports.map(|_| Protocol::Tcp),
        "/tcp" => Some(Protocol::Tcp),
        "/udp" => Some(Protocol::Udp),
        other => match other.strip_prefix('/') {
            Some(word) => return Err(Why::Protocol(word.to_owned())),
            None => return Err(Why::Form),
        },
    };
    let to = target(host, prefix, text.starts_with('['))?;
    Ok(Rule {
        to,
        ports,
        protocol,
    })
}

fn target(host: &str, prefix: Option<&str>, bracketed: bool) -> Result<Target, Why> {
    let address = if bracketed {
        let v6 = host.parse().map(IpAddr::V6);
        Some(v6.map_err(|_| Why::Host(host.to_owned()))?)
    } else {
        host.parse().map(IpAddr::V4).ok()
    };
    let Some(address) = address else {
        // What looks like an address and is none would be a name that nobody has.
        let is_numeric = host.split('.').all(|label| label.parse::<u64>().is_ok());
        return match prefix {
            None if !is_numeric && names::check_host(host).is_ok() => {
                Ok(Target::Name(host.to_ascii_lowercase()))
            }
            _ => Err(Why::Host(host.to_owned())),
        };
    };
    let max = bits(address);
    let prefix = match prefix {
        None => max,
        Some(text) => text
            .parse()
            .ok()
            .filter(|prefix| *prefix <= max)
            .ok_or_else(|| Why::Prefix {
                given: text.to_owned(),
                max,
            })?,
    };
    let meant = masked(address, prefix);
    if meant != address {
        return Err(Why::HostBits {
            address,
            prefix,
            meant,
        });
    }
    if address.is_loopback() {
        return Err(Why::Loopback(address));
    }
    Ok(Target::Network(Block { address, prefix }))
}

fn range(text: &str) -> Result<(u16, u16), Why> {
    let port = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let port = text.parse().ok().filter(|port| plain && *port != 0);
        port.ok_or_else(|| Why::Port(text.to_owned()))
    };
    let (first, last) = match text.split_once('-') {
        None => (port(text)?, port(text)?),
        Some((first, last)) => (port(first)?, port(last)?),
    };
    if last < first {
        return Err(Why::Backwards(text.to_owned()));
    }
    Ok((first, last))
}

const fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    let rest = u32::from(bits(address) - prefix);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(rest).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(rest).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    }
}

impl Block {
    /// One address.
    pub(crate) const fn of(address: IpAddr) -> Self {
        Self {
            address,
            prefix: bits(address),
        }
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(v4) => write!(f, "{v4}")?,
            IpAddr::V6(v6) => write!(f, "[{v6}]")?,
        }
        if self.prefix == bits(self.address) {
            return Ok(());
        }
        write!(f, "/{}", self.prefix)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            Target::Network(block) => block.fmt(f)?,
            Target::Name(name) => f.write_str(name)?,
            Target::Dns => f.write_str("dns")?,
        }
        suffix(f, self.ports, self.protocol)
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to.fmt(f)?;
        suffix(f, self.ports, self.protocol)
    }
}

fn suffix(
    f: &mut fmt::Formatter<'_>,
    ports: Option<(u16, u16)>,
    protocol: Option<Protocol>,
) -> fmt::Result {
    match ports {
        None => {}
        Some((first, last)) if first == last => write!(f, ":{first}")?,
        Some((first, last)) => write!(f, ":{first}-{last}")?,
    }
    match protocol {
        None => Ok(()),
        Some(protocol) => write!(f, "/{protocol}"),
    }
}

impl TryFrom<String> for Rule {
    type Error = EgressError;

    fn try_from(text: String) -> Result<Self, EgressError> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> Self {
        rule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn printed(text: &str) -> Result<String, String> {
        let egress = text.parse::<Egress>();
        egress
            .map(|egress| egress.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn rules_are_read_as_people_write_them() {
        for (text, means) in [
            ("none", "none"),
            ("all", "all"),
            ("dns", "dns"),
            ("10.0.0.0/8:443", "10.0.0.0/8:443/tcp"),
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1/32", "192.0.2.1"),
            ("0.0.0.0/0:53/udp", "0.0.0.0/0:53/udp"),
            ("192.0.2.0/24/udp", "192.0.2.0/24/udp"),
            ("[2001:db8::]/32:53/udp", "[2001:db8::]/32:53/udp"),
            ("[2001:db8::1]:80", "[2001:db8::1]:80/tcp"),
            ("[::]/0", "[::]/0"),
            ("Registry.Example:443", "registry.example:443/tcp"),
            (
                "db:1-65535, 192.0.2.1:80",
                "db:1-65535/tcp,192.0.2.1:80/tcp",
            ),
        ] {
            assert_eq!(printed(text), Ok(means.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_no_rule_is_told() {
        let texts = [
            "",
            ",",
            "all,192.0.2.1",
            ":443",
            "192.0.2.1:0",
            "192.0.2.1:70000",
            "192.0.2.1:+1",
            "192.0.2.1:",
            "192.0.2.1:9-8",
            "192.0.2.1/33",
            "192.0.2.1/24:443",
            "192.0.2.300:443",
            "192.0.2:443",
            "192.0.2.1:443/sctp",
            "2001:db8::1",
            "2001:db8::1:443",
            "[2001:db8::1:443",
            "[2001:db8::1]x",
            "[2001:db8::]/129",
            "[192.0.2.1]:443",
            "no host:443",
            "registry.example/8:443",
            "127.0.0.1:80",
        ];
        let told: Vec<String> = texts
            .iter()
            .map(|text| format!("{text:?}: {}", printed(text).unwrap_err()))
            .collect();
        insta::assert_snapshot!(told.join("\n"));
    }

    #[test]
    fn every_rule_that_is_none_is_kept() {
        let egress = Egress::allow(["192.0.2.1:0", "192.0.2.1:1", "x y"]);
        assert_eq!(egress.faults.len(), 2);
        let many = vec!["192.0.2.1:1"; MAX_RULES + 1];
        assert_eq!(Egress::allow(many).faults.len(), 1);
    }

    proptest! {
        #[test]
        fn a_rule_prints_as_it_parses(text in "[0-9a-f:.\\[\\]/dnstcup-]{0,24}") {
            if let Ok(rule) = text.parse::<Rule>() {
                prop_assert_eq!(rule.to_string().parse(), Ok(rule));
            }
        }

        #[test]
        fn a_rule_of_parts_parses(
            v4 in any::<u32>(), v6 in any::<u128>(), six in any::<bool>(), prefix in 0u8..=128,
            ports in proptest::option::of((1u16.., 1u16..)), udp in proptest::option::of(any::<bool>()),
        ) {
            let address: IpAddr = if six {
                Ipv6Addr::from_bits(v6).into()
            } else {
                Ipv4Addr::from_bits(v4).into()
            };
            let prefix = prefix.min(bits(address));
            let address = masked(address, prefix);
            prop_assume!(!address.is_loopback());
            let protocol = udp.map(|udp| if udp { Protocol::Udp } else { Protocol::Tcp });
            let ports = ports.map(|(one, other)| (one.min(other), one.max(other)));
            let rule = Rule {
                to: Target::Network(Block { address, prefix }),
                ports,
                // Where there is a port, there is a protocol.
                protocol: protocol.or(ports.map(|_| Protocol::Tcp)),
            };
            prop_assert_eq!(rule.to_string().parse(), Ok(rule));
        }

        #[test]
        fn no_text_is_a_panic(text in ".{0,40}") {
            let _ = text.parse::<Egress>();
        }
    }
}
