//! What may leave a network namespace, and what was refused: as data, and as the rules of nf_tables that keep it.
//! Pure.
//!
//! The rules are about what the namespace's own programs send (`output`). In this order:
//!
//! 1. what stays in the namespace is accepted: loopback, and its own addresses;
//! 2. what goes to networks that sandboxes share is accepted;
//! 3. on the link that leads out, what comes from no address is dropped, and what is allowed is accepted;
//! 4. of the rest each address, port and protocol is counted in a set, as far as that has room, and all of it is
//!    refused: TCP with a reset, since an ICMP error would be taken for a passing one until the second try, one
//!    second later; the rest with "port unreachable", beside the EPERM that the sender gets for the drop.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::OnceLock,
};

use serde::{Deserialize, Serialize};

use super::message::{
    GETSETELEM, NEWCHAIN, NEWRULE, NEWSET, NEWTABLE, after_header, batch, dump, expression,
    find_expression, find_value,
};
use crate::{
    net::{
        denied::{Denied, Transport},
        egress::{Allowed, Block},
        ports::Protocol,
    },
    netlink::attributes::{Attributes, Said, attributes, find},
};

/// What may leave a sandbox's network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Gate {
    /// Its addresses, beside loopback: those that it has when the gate is installed.
    pub(crate) own: Vec<IpAddr>,
    /// Links to networks that sandboxes share.
    pub(crate) links: Vec<String>,
    /// The link that leads out, and what may take it; everything where there is no list.
    pub(crate) out: Option<(String, Option<Vec<Allowed>>)>,
}

/// How many destinations are remembered, for each version of IP.
const MAX_DENIED: u32 = 512;

const TABLE: &str = "orbit";
const CHAIN: &str = "out";

// Registers of four bytes each, and the first of sixteen, which is the first four of those.
const REG_VERDICT: u32 = 0;
const REG: u32 = 8;
const REG_1: u32 = 1;

const META_L4PROTO: u32 = 16;
const META_NFPROTO: u32 = 15;
const META_OIFNAME: u32 = 7;

const EQ: u32 = 0;
const NEQ: u32 = 1;

/// Which header a payload is of.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

const REJECT_TCP_RST: u32 = 1;
const REJECT_ICMPX: u32 = 2;
const ICMPX_PORT_UNREACH: u8 = 1;

/// A version of IP: its number in nf_tables, where its destination lies, and the set of what was refused.
struct Version {
    number: u8,
    offset: u32,
    bytes: u32,
    set: &'static str,
    /// What nft(8) prints elements as: address, protocol and port, six bits each.
    key_type: u32,
}

const V4: Version = Version {
    number: 2,
    offset: 16,
    bytes: 4,
    set: "denied4",
    key_type: 0x07 << 12 | 0x0c << 6 | 0x0d,
};

const V6: Version = Version {
    number: 10,
    offset: 24,
    bytes: 16,
    set: "denied6",
    key_type: 0x08 << 12 | 0x0c << 6 | 0x0d,
};

impl Gate {
    /// The transaction that installs the rules in a namespace that has none of this name.
    pub(super) fn install(&self) -> Cow<'static, [u8]> {
        // Of a sandbox with no links: made once.
        static PLAIN: OnceLock<Vec<u8>> = OnceLock::new();

        let plain = Self::default();
        if *self == plain {
            Cow::Borrowed(PLAIN.get_or_init(|| plain.transaction()))
        } else {
            Cow::Owned(self.transaction())
        }
    }

    fn transaction(&self) -> Vec<u8> {
        let mut messages = vec![
            (NEWTABLE, Attributes::default().text(1, TABLE)),
            (NEWCHAIN, chain()),
            (NEWSET, set(&V4, 1)),
            (NEWSET, set(&V6, 2)),
        ];
        messages.extend(self.rules().into_iter().map(|rule| {
            let rule = Attributes::default()
                .text(1, TABLE)
                .text(2, CHAIN)
                .nested(4, rule.0);
            (NEWRULE, rule)
        }));
        batch(&messages)
    }

    fn rules(&self) -> Vec<Rule> {
        let mut rules = vec![
            // 127.0.0.0/8, by its first byte.
            Rule::default()
                .version(&V4)
                .payload(NETWORK, V4.offset, 1, REG_1)
                .compare(REG_1, EQ, &[127])
                .accept(),
        ];
        let own = [IpAddr::V6(Ipv6Addr::LOCALHOST)];
        rules.extend(
            own.iter()
                .chain(&self.own)
                .map(|address| Rule::default().destined(Block::of(*address)).accept()),
        );
        // To its own address of this kind; another's would be on a link.
        let link_local = Block {
            address: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(),
            prefix: 10,
        };
        rules.push(Rule::default().by("lo").destined(link_local).accept());
        rules.extend(
            self.links
                .iter()
                .map(|link| Rule::default().by(link).accept()),
        );
        if let Some((link, _)) = &self.out {
            rules.push(from_no_address(link));
        }
        match &self.out {
            None => {}
            Some((link, None)) => rules.push(Rule::default().by(link).accept()),
            Some((link, Some(allowed))) => {
                rules.push(neighbour_discovery(link));
                rules.extend(
                    allowed
                        .iter()
                        .map(|allowed| Rule::default().by(link).matches(*allowed).accept()),
                );
            }
        }
        for version in [&V4, &V6] {
            rules.extend([Rule::count(version, true), Rule::count(version, false)]);
        }
        rules.push(
            Rule::default()
                .carried_by(Transport::TCP)
                .reject(REJECT_TCP_RST),
        );
        rules.push(Rule::default().reject(REJECT_ICMPX));
        rules
    }
}

/// To find out who has an address the kernel itself asks, with messages of ICMPv6 that no program here can send,
/// as NET_RAW is not among its capabilities, and that nobody passes on.
fn neighbour_discovery(link: &str) -> Rule {
    const FIRST: u8 = 130;
    const LAST: u8 = 143;
    Rule::default()
        .by(link)
        .carried_by(Transport::ICMPV6)
        .payload(TRANSPORT, 0, 1, REG_1)
        .range(REG_1, EQ, &[FIRST], &[LAST])
        .accept()
}

/// The kernel's own messages before the link has an address to send them from: reports of groups, and whether an
/// address is taken. Nobody out there waits for them, and pasta takes the source of what it saw last for where the
/// sandbox is, so that the answers of that moment would go nowhere.
fn from_no_address(link: &str) -> Rule {
    const SOURCE: u32 = 8;
    Rule::default()
        .by(link)
        .version(&V6)
        .payload(NETWORK, SOURCE, V6.bytes, REG_1)
        .compare(REG_1, EQ, &Ipv6Addr::UNSPECIFIED.octets())
        .drop()
}

fn chain() -> Attributes {
    const LOCAL_OUT: u32 = 3;
    let hook = Attributes::default().number(1, LOCAL_OUT).number(2, 0);
    Attributes::default()
        .text(1, TABLE)
        .text(3, CHAIN)
        .nested(4, hook)
        .text(7, "filter")
}

/// Grows by its rules alone, each element with a counter.
fn set(version: &Version, id: u32) -> Attributes {
    const EVAL: u32 = 0x20;
    const DESC: u16 = 9;
    Attributes::default()
        .text(1, TABLE)
        .text(2, version.set)
        .number(3, EVAL)
        .number(4, version.key_type)
        .number(5, version.bytes + 8)
        .nested(DESC, Attributes::default().number(1, MAX_DENIED))
        .number(10, id)
}

/// A rule's expressions, of which each passes on what it matches.
#[derive(Default)]
struct Rule(Attributes);

impl Rule {
    fn then(self, name: &str, data: Attributes) -> Self {
        Self(self.0.expression(name, data))
    }

    fn meta(self, key: u32, register: u32) -> Self {
        let data = Attributes::default().number(1, register).number(2, key);
        self.then("meta", data)
    }

    fn payload(self, header: u32, offset: u32, bytes: u32, register: u32) -> Self {
        let data = Attributes::default()
            .number(1, register)
            .number(2, header)
            .number(3, offset)
            .number(4, bytes);
        self.then("payload", data)
    }

    fn compare(self, register: u32, how: u32, value: &[u8]) -> Self {
        let data = Attributes::default()
            .number(1, register)
            .number(2, how)
            .value(3, value);
        self.then("cmp", data)
    }

    fn range(self, register: u32, how: u32, first: &[u8], last: &[u8]) -> Self {
        let data = Attributes::default()
            .number(1, register)
            .number(2, how)
            .value(3, first)
            .value(4, last);
        self.then("range", data)
    }

    fn accept(self) -> Self {
        const ACCEPT: u32 = 1;
        self.decide(ACCEPT)
    }

    fn drop(self) -> Self {
        const DROP: u32 = 0;
        self.decide(DROP)
    }

    fn decide(self, verdict: u32) -> Self {
        let verdict = Attributes::default().nested(2, Attributes::default().number(1, verdict));
        let data = Attributes::default()
            .number(1, REG_VERDICT)
            .nested(2, verdict);
        self.then("immediate", data)
    }

    fn reject(self, how: u32) -> Self {
        let data = Attributes::default().number(1, how);
        let data = match how {
            REJECT_ICMPX => data.bytes(2, &[ICMPX_PORT_UNREACH]),
            _ => data,
        };
        self.then("reject", data)
    }

    fn version(self, version: &Version) -> Self {
        self.meta(META_NFPROTO, REG_1)
            .compare(REG_1, EQ, &[version.number])
    }

    /// Leaves by this link.
    fn by(self, link: &str) -> Self {
        let mut name = [0; 16];
        for (slot, byte) in name.iter_mut().zip(link.bytes().take(15)) {
            *slot = byte;
        }
        self.meta(META_OIFNAME, REG_1).compare(REG_1, EQ, &name)
    }

    fn carried_by(self, protocol: u8) -> Self {
        self.meta(META_L4PROTO, REG_1)
            .compare(REG_1, EQ, &[protocol])
    }

    fn destined(self, to: Block) -> Self {
        let (version, address) = match to.address {
            IpAddr::V4(v4) => (&V4, v4.octets().to_vec()),
            IpAddr::V6(v6) => (&V6, v6.octets().to_vec()),
        };
        if to.prefix == 0 {
            return self.version(version);
        }
        let length = version.bytes;
        let rule = self
            .version(version)
            .payload(NETWORK, version.offset, length, REG_1);
        let whole = u32::from(to.prefix) == length * 8;
        let rule = if whole {
            rule
        } else {
            rule.masked(length, &mask(to.prefix, address.len()))
        };
        rule.compare(REG_1, EQ, &address)
    }

    fn masked(self, length: u32, mask: &[u8]) -> Self {
        let data = Attributes::default()
            .number(1, REG_1)
            .number(2, REG_1)
            .number(3, length)
            .value(4, mask)
            .value(5, &vec![0; mask.len()]);
        self.then("bitwise", data)
    }

    fn matches(self, allowed: Allowed) -> Self {
        let mut rule = self.destined(allowed.to);
        if let Some(protocol) = allowed.protocol {
            rule = rule.carried_by(match protocol {
                Protocol::Tcp => Transport::TCP,
                Protocol::Udp => Transport::UDP,
            });
        }
        match allowed.ports {
            None | Some((1, u16::MAX)) => rule,
            Some((first, last)) => {
                let rule = rule.payload(TRANSPORT, 2, 2, REG_1);
                if first == last {
                    rule.compare(REG_1, EQ, &first.to_be_bytes())
                } else {
                    rule.range(REG_1, EQ, &first.to_be_bytes(), &last.to_be_bytes())
                }
            }
        }
    }

    /// Counts address, protocol and port in the set of this version, or a port of 0 where there is none.
    ///
    /// One rule does for TCP, UDP and the few numbers between theirs: those have no ports, and what lies in the place of
    /// one counts for nothing where it is read. Each rule costs every sandbox its making.
    fn count(version: &Version, has_port: bool) -> Self {
        const UPDATE: u32 = 1;
        let protocol = REG + version.bytes / 4;
        let port = protocol + 1;
        let how = if has_port { EQ } else { NEQ };
        let rule = Self::default()
            .version(version)
            .meta(META_L4PROTO, protocol)
            .range(protocol, how, &[Transport::TCP], &[Transport::UDP])
            .payload(NETWORK, version.offset, version.bytes, REG);
        let rule = if has_port {
            rule.payload(TRANSPORT, 2, 2, port)
        } else {
            let none = Attributes::default().number(1, port).value(2, &[0, 0]);
            rule.then("immediate", none)
        };
        let data = Attributes::default()
            .text(1, version.set)
            .number(3, UPDATE)
            .number(4, REG)
            .nested(7, expression("counter", Attributes::default()));
        rule.then("dynset", data)
    }
}

fn mask(prefix: u8, bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|index| {
            let left = usize::from(prefix).saturating_sub(index * 8);
            (0..8).fold(0, |byte, bit| byte << 1 | u8::from(bit < left))
        })
        .collect()
}

/// What asks for the destinations that were refused, of each version.
pub(super) fn ask() -> [Vec<u8>; 2] {
    [&V4, &V6].map(|version| {
        let which = Attributes::default().text(1, TABLE).text(2, version.set);
        dump(GETSETELEM, &which)
    })
}

/// The destinations in one message of the kernel's answer.
pub(super) fn read(said: Said<'_>) -> Vec<Denied> {
    const ELEMENTS: u16 = 3;
    let Said::Data(data) = said else {
        return Vec::new();
    };
    let elements = find(after_header(data), ELEMENTS).unwrap_or_default();
    attributes(elements)
        .filter_map(|(_, element)| read_element(element))
        .collect()
}

fn read_element(element: &[u8]) -> Option<Denied> {
    const KEY: u16 = 1;
    const EXPRESSION: u16 = 7;
    const PACKETS: u16 = 2;
    let key = find_value(element, KEY)?;
    let (address, rest) = key.split_at_checked(key.len().checked_sub(8)?)?;
    let address = match *address {
        [a, b, c, d] => Ipv4Addr::new(a, b, c, d).into(),
        _ => Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).into(),
    };
    let port = u16::from_be_bytes([rest[4], rest[5]]);
    let counter = find_expression(find(element, EXPRESSION)?, "counter")?;
    let count = find(counter, PACKETS)?.try_into().ok()?;
    let protocol = Transport::of(rest[0]);
    Some(Denied {
        address,
        port: matches!(protocol, Transport::Tcp | Transport::Udp).then_some(port),
        protocol,
        count: u64::from_be_bytes(count),
    })
}

/// What may leave, for people.
impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nftables record and refuse")?;
        for link in &self.links {
            write!(f, ", accept {link}")?;
        }
        match &self.out {
            None => Ok(()),
            Some((link, None)) => write!(f, ", accept {link}"),
            Some((link, Some(allowed))) => {
                let texts: Vec<String> = allowed.iter().map(ToString::to_string).collect();
                write!(f, ", accept {link} to={}", texts.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::message::tests::render;

    fn allowed(rule: &str) -> Allowed {
        let rule: crate::net::egress::Rule = rule.parse().unwrap();
        let crate::net::egress::Target::Network(to) = rule.to else {
            panic!("no addresses");
        };
        Allowed {
            to,
            ports: rule.ports,
            protocol: rule.protocol,
        }
    }

    #[test]
    fn without_a_way_out() {
        insta::assert_snapshot!(render(&Gate::default().install()));
    }

    #[test]
    fn with_networks_and_an_allow_list() {
        let gate = Gate {
            own: vec!["10.88.0.2".parse().unwrap()],
            links: vec!["eth0".into()],
            out: Some((
                "eth1".into(),
                Some(vec![
                    allowed("10.0.0.0/9:443"),
                    allowed("[2001:db8::]/33:53-54/udp"),
                    allowed("192.0.2.1"),
                    allowed("0.0.0.0/0:80"),
                ]),
            )),
        };
        insta::assert_snapshot!(render(&gate.install()));
        insta::assert_snapshot!(gate.to_string(), @"nftables record and refuse, accept eth0, accept eth1 to=10.0.0.0/9:443/tcp,[2001:db8::]/33:53-54/udp,192.0.2.1,0.0.0.0/0:80/tcp");
    }

    #[test]
    fn a_prefix_becomes_a_mask() {
        assert_eq!(mask(9, 4), [0xff, 0x80, 0, 0]);
        assert_eq!(mask(0, 4), [0; 4]);
        assert_eq!(mask(32, 4), [0xff; 4]);
    }

    #[test]
    fn what_was_refused_is_read() {
        let element = |key: &[u8]| {
            Attributes::default().value(1, key).nested(
                7,
                expression(
                    "counter",
                    Attributes::default().bytes(2, &3u64.to_be_bytes()),
                ),
            )
        };
        let list = Attributes::default()
            .element(element(&[192, 0, 2, 1, 6, 0, 0, 0, 0x01, 0xbb, 0, 0]))
            .element(element(&[192, 0, 2, 1, 1, 0, 0, 0, 0, 0, 0, 0]))
            .element(element(&[1, 2, 3]));
        let all = Attributes::default().nested(3, list);
        let buffer = dump(GETSETELEM, &all);
        let found: Vec<String> = crate::netlink::attributes::said(&buffer)
            .flat_map(read)
            .map(|denied| denied.to_string())
            .collect();
        assert_eq!(
            found,
            ["192.0.2.1:443/tcp, 3 times", "192.0.2.1/icmp, 3 times"]
        );
    }
}
