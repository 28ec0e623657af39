//! Answers to questions for names: the wire format, without a socket. Pure.
//!
//! Source: RFC 1035, section 4; RFC 2308 for a name that has other records only.

use std::net::IpAddr;

use simple_dns::{
    CLASS, OPCODE, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE,
    rdata::{A, AAAA, RData},
};

/// For as long as an answer may be remembered: not at all, as sandboxes come and go.
const TTL_SECONDS: u32 = 0;

/// Where an answer goes, and so how long it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// 512 bytes, which every resolver takes. What does not fit is asked for again by a connection.
    Datagram,
    /// 64 KiB.
    Stream,
}

impl Room {
    /// As many addresses as fit beside the longest name.
    fn addresses(self) -> usize {
        match self {
            Self::Datagram => 12,
            Self::Stream => 2000,
        }
    }
}

/// Who has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    At(Vec<IpAddr>),
    /// Nobody, and there is nobody else to ask.
    Nobody,
    /// Nobody here, and the asker has another name server: told that there is no such name, it would not ask that one.
    AskAnother,
}

/// What to answer to `query`. `addresses` knows who has a name, which it gets in lower case and without a dot at its
/// end. `None` where `query` is no question to answer.
pub(crate) fn answer(
    query: &[u8],
    room: Room,
    addresses: impl Fn(&str) -> Found,
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
        return reply.build_bytes_vec_compressed().ok();
    };
    reply.questions.push(question.clone());
    if query.opcode() != OPCODE::StandardQuery {
        *reply.rcode_mut() = RCODE::NotImplemented;
        return reply.build_bytes_vec_compressed().ok();
    }
    let name = question.qname.to_string().to_ascii_lowercase();
    let found = match addresses(&name) {
        Found::At(found) => found,
        none => {
            *reply.rcode_mut() = if none == Found::AskAnother {
                RCODE::Refused
            } else {
                RCODE::NameError
            };
            return reply.build_bytes_vec_compressed().ok();
        }
    };
    // A name that is there, and has nothing of the type that is asked for, has an answer without records.
    let wanted = |address: &IpAddr| match question.qtype {
        QTYPE::TYPE(TYPE::A) => address.is_ipv4(),
        QTYPE::TYPE(TYPE::AAAA) => address.is_ipv6(),
        QTYPE::ANY => true,
        _ => false,
    };
    let found: Vec<IpAddr> = found.into_iter().filter(wanted).collect();
    if found.len() > room.addresses() {
        reply.set_flags(PacketFlag::TRUNCATION);
    }
    reply
        .answers
        .extend(found.into_iter().take(room.addresses()).map(|address| {
            let data = match address {
                IpAddr::V4(v4) => RData::A(A {
                    address: v4.to_bits(),
                }),
                IpAddr::V6(v6) => RData::AAAA(AAAA {
                    address: v6.to_bits(),
                }),
            };
            ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL_SECONDS, data)
        }));
    reply.build_bytes_vec_compressed().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use simple_dns::{Name, QCLASS, Question};

    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn query(name: &str, kind: TYPE) -> Vec<u8> {
        let mut query = Packet::new_query(7);
        query.set_flags(PacketFlag::RECURSION_DESIRED);
        let question = Question::new(
            Name::new_unchecked(name),
            kind.into(),
            QCLASS::CLASS(CLASS::IN),
            false,
        );
        query.questions.push(question);
        query.build_bytes_vec().unwrap()
    }

    fn parsed(reply: Vec<u8>) -> Packet<'static> {
        Packet::parse(Vec::leak(reply)).unwrap()
    }

    fn ask(name: &str, kind: TYPE) -> Packet<'static> {
        let known = |name: &str| match name {
            "db" => Found::At(vec![[10, 0, 0, 2].into(), [10, 0, 0, 3].into()]),
            "six" => Found::At(vec![
                [10, 0, 0, 4].into(),
                Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 4).into(),
            ]),
            "far" => Found::AskAnother,
            _ => Found::Nobody,
        };
        parsed(answer(&query(name, kind), Room::Datagram, known).unwrap())
    }

    fn found(reply: &Packet<'_>) -> Vec<String> {
        let text = |record: &ResourceRecord<'_>| match &record.rdata {
            RData::A(a) => Ipv4Addr::from_bits(a.address).to_string(),
            RData::AAAA(a) => Ipv6Addr::from_bits(a.address).to_string(),
            other => panic!("{other:?}"),
        };
        reply.answers.iter().map(text).collect()
    }

    #[test]
    fn a_name_has_its_addresses() {
        let reply = ask("DB", TYPE::A);
        assert_eq!((reply.id(), reply.rcode()), (7, RCODE::NoError));
        assert_eq!(found(&reply), ["10.0.0.2", "10.0.0.3"]);
        assert_eq!(found(&ask("six", TYPE::A)), ["10.0.0.4"]);
        assert_eq!(found(&ask("six", TYPE::AAAA)), ["fd00::4"]);
    }

    #[test]
    fn what_does_not_fit_in_a_datagram_is_for_a_connection() {
        let name = "x".repeat(63);
        let many = |_: &str| {
            let addresses = (0..200).map(|number| [10, 0, 1, number].into());
            Found::At(addresses.collect())
        };
        for kind in [TYPE::A, TYPE::AAAA] {
            let query = query(&name, kind);
            let short = answer(&query, Room::Datagram, many).unwrap();
            assert!(short.len() <= 512, "{} bytes", short.len());
            let whole = answer(&query, Room::Stream, many).unwrap();
            let (short, whole) = (parsed(short), parsed(whole));
            let cut = kind == TYPE::A;
            assert_eq!(short.has_flags(PacketFlag::TRUNCATION), cut);
            assert!(!whole.has_flags(PacketFlag::TRUNCATION));
            assert_eq!(whole.answers.len(), if cut { 200 } else { 0 });
        }
    }

    #[test]
    fn a_name_without_ipv6_is_no_name_that_is_not_there() {
        let reply = ask("db", TYPE::AAAA);
        assert_eq!((reply.rcode(), reply.answers.len()), (RCODE::NoError, 0));
        assert_eq!(ask("web", TYPE::A).rcode(), RCODE::NameError);
    }

    #[test]
    fn who_can_ask_another_is_told_to() {
        let reply = ask("far", TYPE::A);
        assert_eq!((reply.rcode(), reply.answers.len()), (RCODE::Refused, 0));
    }

    proptest! {
        #[test]
        fn no_datagram_makes_it_panic(query in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = answer(&query, Room::Datagram, |_| Found::At(vec![Ipv4Addr::LOCALHOST.into()]));
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
            let _ = answer(&bytes, Room::Stream, |_| Found::Nobody);
        }
    }
}
