//! Netlink messages of nf_tables, as bytes: just what the gate needs. Pure.
//!
//! Source: Linux, include/uapi/linux/netlink.h, netfilter/nfnetlink.h and netfilter/nf_tables.h, whose names the
//! constants have. Numbers in attributes are big-endian; headers are the machine's own.

use crate::netlink::attributes::{
    Attributes, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, add_message, find,
};

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

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;

/// The header of this family, before a message's attributes: `nfgenmsg`.
const HEADER_BYTES: usize = 4;

impl Attributes {
    /// A number, big-endian.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
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
    let around = header(UNSPEC, NFNL_SUBSYS_NFTABLES);
    let nothing = Attributes::default();
    add_message(&mut buffer, NFNL_MSG_BATCH_BEGIN, 0, &around, &nothing);
    for (number, (kind, attributes)) in messages.iter().enumerate() {
        let is_last = number + 1 == messages.len();
        // Without the latter a rule would come before those that are there.
        let flags = NLM_F_CREATE | NLM_F_APPEND | if is_last { NLM_F_ACK } else { 0 };
        let kind = NFNL_SUBSYS_NFTABLES << 8 | kind;
        add_message(&mut buffer, kind, flags, &header(INET, 0), attributes);
    }
    add_message(&mut buffer, NFNL_MSG_BATCH_END, 0, &around, &nothing);
    buffer
}

/// Asks for all there is of a kind.
pub(super) fn dump(kind: u16, attributes: &Attributes) -> Vec<u8> {
    let mut buffer = Vec::new();
    let kind = NFNL_SUBSYS_NFTABLES << 8 | kind;
    add_message(&mut buffer, kind, NLM_F_DUMP, &header(INET, 0), attributes);
    buffer
}

/// Version 0 of the header; `subsystem` says whose a transaction is.
fn header(family: u8, subsystem: u16) -> [u8; HEADER_BYTES] {
    let [high, low] = subsystem.to_be_bytes();
    [family, 0, high, low]
}

/// What follows that header in an answer.
pub(super) fn after_header(answer: &[u8]) -> &[u8] {
    answer.get(HEADER_BYTES..).unwrap_or_default()
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

#[cfg(test)]
pub(super) mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;
    use crate::netlink::attributes::{NLA_F_NESTED, NLA_TYPE_MASK, half};

    /// Of a whole message.
    const HEADERS: usize = 16 + HEADER_BYTES;

    /// A tree of the attributes, as a person can compare it with nf_tables.h.
    pub(in crate::netfilter) fn render(mut messages: &[u8]) -> String {
        let mut text = String::new();
        while messages.len() >= HEADERS {
            let length = u32::from_ne_bytes(messages[..4].try_into().unwrap()) as usize;
            let (kind, flags) = (half(messages, 4).unwrap(), half(messages, 6).unwrap());
            let _ = writeln!(
                text,
                "{kind:#06x} flags={flags:#05x} family={}",
                messages[16]
            );
            tree(&messages[HEADERS..length], 1, &mut text);
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
        assert_eq!(find(all.as_bytes(), 1), Some(&b"name\0"[..]));
        let nested = find(all.as_bytes(), 2).unwrap();
        assert_eq!(find_value(nested, 9), Some(&b"abc"[..]));
        let list = Attributes::default().element(expression("counter", Attributes::default()));
        let element = find(list.as_bytes(), NFTA_LIST_ELEM).unwrap();
        assert_eq!(find_expression(element, "counter"), Some(&[][..]));
        assert_eq!(find_expression(element, "count"), None);
    }

    proptest! {
        #[test]
        fn no_answer_is_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (after_header(&bytes), find_value(&bytes, 1), find_expression(&bytes, "x"));
        }
    }
}
