//! Attributes, of which messages of netlink are made, as bytes; and what a datagram of the kernel's says. Pure.
//!
//! Source: Linux, include/uapi/linux/netlink.h, whose names the constants have. Headers are the machine's own.

pub(crate) const NLM_F_REQUEST: u16 = 0x001;
pub(crate) const NLM_F_ACK: u16 = 0x004;
/// Of a question: all there is.
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;

pub(crate) const NLA_F_NESTED: u16 = 1 << 15;
pub(crate) const NLA_TYPE_MASK: u16 = !(0b11 << 14);

/// `nlmsghdr`.
const HEADER_BYTES: usize = 16;

/// Attributes, one after another.
#[derive(Default)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    /// Those that follow a header of their own, as in an attribute that is a whole message.
    pub(crate) fn after(header: &[u8]) -> Self {
        Self(header.to_vec())
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the longest attribute is a rule's expressions, of some hundred bytes"
    )]
    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (4 + value.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A number as the machine has it.
    pub(crate) fn native(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), b"\0"].concat())
    }

    /// A set of attributes, unmarked: as messages about links have them, which are older than the mark.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "so that attributes nest as they are written"
    )]
    pub(crate) fn set(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind, &inner.0)
    }

    /// A set of attributes, marked as such.
    pub(crate) fn nested(self, kind: u16, inner: Self) -> Self {
        self.set(kind | NLA_F_NESTED, inner)
    }

    #[cfg(test)]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Adds a message to `buffer`: its header, the header of its family, and attributes.
#[expect(
    clippy::cast_possible_truncation,
    reason = "as above, and a message has few attributes"
)]
pub(crate) fn add_message(
    buffer: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    header: &[u8],
    attributes: &Attributes,
) {
    let length = (HEADER_BYTES + header.len() + attributes.0.len()) as u32;
    buffer.extend(length.to_ne_bytes());
    buffer.extend(kind.to_ne_bytes());
    buffer.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence and port: one conversation at a time, and the kernel knows whose.
    buffer.extend([0; 8]);
    buffer.extend(header);
    buffer.extend(&attributes.0);
}

/// The attributes in `bytes`, by their kinds, as far as they are whole.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
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
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// What the kernel says in one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said<'a> {
    /// An answer: what follows its header.
    Data(&'a [u8]),
    /// The end of a dump.
    Done,
    /// An error number, or 0 for none.
    Answer(i32),
}

/// The messages of a datagram.
pub(crate) fn said(mut bytes: &[u8]) -> impl Iterator<Item = Said<'_>> {
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let message = bytes.get(..length).filter(|_| length >= HEADER_BYTES)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(match half(message, 4)? {
            NLMSG_ERROR => {
                let code = message
                    .get(HEADER_BYTES..HEADER_BYTES + 4)?
                    .try_into()
                    .ok()?;
                Said::Answer(i32::from_ne_bytes(code).wrapping_neg())
            }
            NLMSG_DONE => Said::Done,
            _ => Said::Data(message.get(HEADER_BYTES..)?),
        })
    })
}

pub(crate) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_answer_is_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for said in said(&bytes) {
                if let Said::Data(data) = said {
                    let _ = attributes(data).count();
                }
            }
            let _ = find(&bytes, 1);
        }
    }
}
