//! Answers to questions for names: the wire format, without a socket. Pure.
//!
//! Source: RFC 1035, section 4; RFC 2308 for a name that has other records only.

use std::net::Ipv4Addr;

use simple_dns::{
    CLASS, OPCODE, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE,
    rdata::{A, RData},
};

/// For as long as an answer may be remembered: not at all, as sandboxes come and go.
const TTL_SECONDS: u32 = 0;

/// As many as fit in the 512 bytes that every resolver takes, beside the longest name.
const MAX_ADDRESSES: usize = 12;

/// What to answer to `query`, a datagram. `addresses` knows who has a name, which it gets in lower case and
/// without a dot at its end: `None` where nobody does. `None` where `query` is no question to answer.
pub(crate) fn answer(
    query: &[u8],
    addresses: impl Fn(&str) -> Option<Vec<Ipv4Addr>>,
) -> Option<Vec<u8>> {
    let query = Packet::parse(query).ok()?;
    if query.has_flags(PacketFlag::RESPONSE) {
        return None;
    }
    let mut reply = Packet::new_reply(query.id());
    reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER | PacketFlag::RECURSION_AVAILABLE);
    if query.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    let [question] = &query.questions[..] else {
        *reply.rcode_mut() = RCODE::FormatError;
        return reply.build_bytes_vec().ok();
    };
    reply.questions.push(question.clone());
    if query.opcode() != OPCODE::StandardQuery {
        *reply.rcode_mut() = RCODE::NotImplemented;
        return reply.build_bytes_vec().ok();
    }
    let name = question.qname.to_string().to_ascii_lowercase();
    match addresses(&name) {
        None => *reply.rcode_mut() = RCODE::NameError,
        Some(found) if matches!(question.qtype, QTYPE::TYPE(TYPE::A) | QTYPE::ANY) => {
            reply
                .answers
                .extend(found.into_iter().take(MAX_ADDRESSES).map(|address| {
                    let data = RData::A(A {
                        address: address.to_bits(),
                    });
                    ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL_SECONDS, data)
                }));
        }
        // The name is there, and has nothing of this type.
        Some(_) => {}
    }
    reply.build_bytes_vec().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use simple_dns::{Name, QCLASS, Question};

    use super::*;

    fn ask(name: &str, kind: TYPE) -> Packet<'static> {
        let mut query = Packet::new_query(7);
        query.set_flags(PacketFlag::RECURSION_DESIRED);
        let question = Question::new(
            Name::new_unchecked(name),
            kind.into(),
            QCLASS::CLASS(CLASS::IN),
            false,
        );
        query.questions.push(question);
        let known = |name: &str| {
            (name == "db").then(|| vec![Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 3)])
        };
        let reply = answer(&query.build_bytes_vec().unwrap(), known).unwrap();
        let reply: &'static [u8] = Vec::leak(reply);
        Packet::parse(reply).unwrap()
    }

    #[test]
    fn a_name_has_its_addresses() {
        let reply = ask("DB", TYPE::A);
        assert_eq!((reply.id(), reply.rcode()), (7, RCODE::NoError));
        let found: Vec<_> = reply
            .answers
            .iter()
            .map(|record| match &record.rdata {
                RData::A(a) => Ipv4Addr::from_bits(a.address).to_string(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(found, ["10.0.0.2", "10.0.0.3"]);
    }

    #[test]
    fn a_name_without_ipv6_is_no_name_that_is_not_there() {
        let reply = ask("db", TYPE::AAAA);
        assert_eq!((reply.rcode(), reply.answers.len()), (RCODE::NoError, 0));
        assert_eq!(ask("web", TYPE::A).rcode(), RCODE::NameError);
    }

    proptest! {
        #[test]
        fn no_datagram_makes_it_panic(query in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = answer(&query, |_| Some(vec![Ipv4Addr::LOCALHOST]));
        }

        #[test]
        fn nor_does_one_that_is_nearly_right(change in 0usize..30, to: u8, cut in 0usize..30) {
            let mut query = Packet::new_query(7);
            let name = Name::new_unchecked("some.name");
            let (kind, class) = (TYPE::A.into(), QCLASS::CLASS(CLASS::IN));
            query.questions.push(Question::new(name, kind, class, false));
            let mut bytes = query.build_bytes_vec().unwrap();
            let at = change % bytes.len();
            bytes[at] = to;
            bytes.truncate(bytes.len() - cut.min(bytes.len()));
            let _ = answer(&bytes, |_| None);
        }
    }
}
