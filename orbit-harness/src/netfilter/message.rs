//! Netlink messages of nf_tables, as bytes: just what the gate needs. Pure.
//!
//! Source: Linux, include/uapi/linux/netlink.h, netfilter/nfnetlink.h and netfilter/nf_tables.h, whose names the
//! constants have. Numbers in attributes are big-endian; headers are the machine's own.

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST};

/// `NFPROTO_INET`: both versions of IP.
pub(super) const INET: u8 = 1;
const UNSPEC: u8 = 0;

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;

pub(super) const NEWTABLE: u16 = 0;
pub(super) const NEWCHAIN: u16 = 3;
pub(super) const NEWRULE: u16 = 6;
pub(super) const NEWSET: u16 = 9;
pub(super) const GETSETELEM: u16 = 13;

const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = !(0b11 << 14);
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;

/// The headers before a message's attributes: `nlmsghdr` and `nfgenmsg`.
pub(super) const HEADER_BYTES: usize = 20;

/// Attributes, one after another.
#[derive(Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the longest attribute is a rule's expressions, of some hundred bytes"
    )]
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (4 + value.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), b"\0"].concat())
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "so that attributes nest as they are written"
    )]
    pub(super) fn nested(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }

    /// A value to compare with, or to load.
    pub(super) fn value(self, kind: u16, value: &[u8]) -> Self {
        self.nested(kind, Self::default().bytes(NFTA_DATA_VALUE, value))
    }

    /// An element of a list.
    pub(super) fn element(self, inner: Self) -> Self {
        self.nested(NFTA_LIST_ELEM, inner)
    }

    /// An expression, as an element of a rule's list.
    pub(super) fn expression(self, name: &str, data: Self) -> Self {
        self.element(expression(name, data))
    }
}

/// An expression on its own.
pub(super) fn expression(name: &str, data: Attributes) -> Attributes {
    Attributes::default()
        .text(NFTA_EXPR_NAME, name)
        .nested(NFTA_EXPR_DATA, data)
}

/// A transaction: all of its messages take effect, or none does. The last one is acknowledged.
pub(super) fn batch(messages: &[(u16, Attributes)]) -> Vec<u8> {
    let mut buffer = Vec::new();
    header(&mut buffer, NFNL_MSG_BATCH_BEGIN, 0, UNSPEC, None);
    for (number, (kind, attributes)) in messages.iter().enumerate() {
        let is_last = number + 1 == messages.len();
        // Without the latter a rule would come before those that are there.
        let flags = NLM_F_CREATE | NLM_F_APPEND | if is_last { NLM_F_ACK } else { 0 };
        let kind = NFNL_SUBSYS_NFTABLES << 8 | kind;
        header(&mut buffer, kind, flags, INET, Some(attributes));
    }
    header(&mut buffer, NFNL_MSG_BATCH_END, 0, UNSPEC, None);
    buffer
}

/// Asks for all there is of a kind.
pub(super) fn dump(kind: u16, attributes: &Attributes) -> Vec<u8> {
    let mut buffer = Vec::new();
    let kind = NFNL_SUBSYS_NFTABLES << 8 | kind;
    header(&mut buffer, kind, NLM_F_DUMP, INET, Some(attributes));
    buffer
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "as above, and a message has few attributes"
)]
fn header(
    buffer: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    family: u8,
    attributes: Option<&Attributes>,
) {
    let attributes = attributes.map_or(&[][..], |attributes| &attributes.0);
    let length = (HEADER_BYTES + attributes.len()) as u32;
    buffer.extend(length.to_ne_bytes());
    buffer.extend(kind.to_ne_bytes());
    buffer.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence and port: one conversation at a time, and the kernel knows whose.
    buffer.extend([0; 8]);
    // Version 0; for a batch, whose it is.
    buffer.extend([family, 0]);
    let subsystem = if family == UNSPEC {
        NFNL_SUBSYS_NFTABLES
    } else {
        0
    };
    buffer.extend(subsystem.to_be_bytes());
    buffer.extend(attributes);
}

/// The attributes in `bytes`, by their kinds, as far as they are whole.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (half(bytes, 0)?, half(bytes, 2)?);
        let value = bytes.get(4..usize::from(length))?;
        bytes = bytes
            .get(usize::from(length).next_multiple_of(4)..)
            .unwrap_or_default();
        Some((kind & NLA_TYPE_MASK, value))
    })
}

/// The value of the attribute of this kind.
pub(super) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// The value inside of an attribute that holds one.
pub(super) fn find_value(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    find(find(bytes, kind)?, NFTA_DATA_VALUE)
}

/// The data of an expression of this name.
pub(super) fn find_expression<'a>(bytes: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let found = find(bytes, NFTA_EXPR_NAME)?;
    let found = found.strip_suffix(b"\0").unwrap_or(found);
    (found == name.as_bytes())
        .then(|| find(bytes, NFTA_EXPR_DATA))
        .flatten()
}

/// What the kernel says in one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said<'a> {
    /// An answer: what follows its headers.
    Data(&'a [u8]),
    /// The end of a dump.
    Done,
    /// An error number, or 0 for none.
    Answer(i32),
}

/// The messages of a datagram.
pub(super) fn said(mut bytes: &[u8]) -> impl Iterator<Item = Said<'_>> {
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let message = bytes.get(..length).filter(|_| length >= 16)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(match half(message, 4)? {
            NLMSG_ERROR => {
                let code = message.get(16..20)?.try_into().ok()?;
                Said::Answer(i32::from_ne_bytes(code).wrapping_neg())
            }
            NLMSG_DONE => Said::Done,
            _ => Said::Data(message.get(HEADER_BYTES..)?),
        })
    })
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
pub(super) mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// A tree of the attributes, as a person can compare it with nf_tables.h.
    pub(in crate::netfilter) fn render(mut messages: &[u8]) -> String {
        let mut text = String::new();
        while messages.len() >= HEADER_BYTES {
            let length = u32::from_ne_bytes(messages[..4].try_into().unwrap()) as usize;
            let (kind, flags) = (half(messages, 4).unwrap(), half(messages, 6).unwrap());
            let _ = writeln!(
                text,
                "{kind:#06x} flags={flags:#05x} family={}",
                messages[16]
            );
            tree(&messages[HEADER_BYTES..length], 1, &mut text);
            messages = &messages[length..];
        }
        text
    }

    fn tree(mut bytes: &[u8], depth: usize, text: &mut String) {
        while bytes.len() >= 4 {
            let (length, kind) = (half(bytes, 0).unwrap(), half(bytes, 2).unwrap());
            let value = &bytes[4..usize::from(length)];
            let _ = write!(text, "{:1$}{2}", "", depth * 2, kind & NLA_TYPE_MASK);
            if kind & NLA_F_NESTED != 0 {
                text.push('\n');
                tree(value, depth + 1, text);
            } else if value.len() > 1
                && value.ends_with(b"\0")
                && value[..value.len() - 1].iter().all(u8::is_ascii_graphic)
            {
                let _ = writeln!(
                    text,
                    " {:?}",
                    std::str::from_utf8(&value[..value.len() - 1]).unwrap()
                );
            } else {
                let hex: String = value.iter().fold(String::new(), |mut hex, byte| {
                    let _ = write!(hex, "{byte:02x}");
                    hex
                });
                let _ = writeln!(text, " {hex}");
            }
            bytes = &bytes[usize::from(length).next_multiple_of(4).min(bytes.len())..];
        }
    }

    #[test]
    fn attributes_are_found_again() {
        let inner = Attributes::default().number(7, 1).value(9, b"abc");
        let all = Attributes::default()
            .text(1, "name")
            .nested(2, inner)
            .element(expression("counter", Attributes::default().number(2, 5)));
        assert_eq!(find(&all.0, 1), Some(&b"name\0"[..]));
        let nested = find(&all.0, 2).unwrap();
        assert_eq!(find_value(nested, 9), Some(&b"abc"[..]));
        let list = Attributes::default().element(expression("counter", Attributes::default()));
        let element = find(&list.0, NFTA_LIST_ELEM).unwrap();
        assert_eq!(find_expression(element, "counter"), Some(&[][..]));
        assert_eq!(find_expression(element, "count"), None);
    }

    proptest! {
        #[test]
        fn no_answer_is_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for said in said(&bytes) {
                if let Said::Data(data) = said {
                    let _ = attributes(data).count();
                }
            }
            let _ = (find_value(&bytes, 1), find_expression(&bytes, "x"));
        }
    }
}
