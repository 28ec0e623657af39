//! Reading `/etc/subuid` and `/etc/subgid`: the ids that an administrator lets a user map.
//!
//! What is read here only plans: newuidmap(1) reads the same files again and has the last word. Sources other
//! than files (`subid:` in nsswitch.conf(5)) are not seen; a user whose ranges lie there gets a single id.
//!
//! Source: subuid(5), subgid(5).

/// `count` subordinate ids from `start` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SubRange {
    pub(crate) start: u32,
    pub(crate) count: u32,
}

impl SubRange {
    /// The first id after the range. Ranges are made so that this is an id or `u32::MAX`.
    pub(crate) const fn end(self) -> u32 {
        self.start.saturating_add(self.count)
    }

    /// The ids that are in both ranges.
    pub(super) fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let count = self.end().min(other.end()).saturating_sub(start);
        (count > 0).then_some(Self { start, count })
    }

    /// The parts of this range, up to two, which have no id in common with `other`.
    fn without(self, other: Self) -> impl Iterator<Item = Self> {
        let part = |start: u32, end: u32| Self {
            start,
            count: end.saturating_sub(start),
        };
        let below = part(self.start, self.end().min(other.start));
        let above = part(self.start.max(other.end()), self.end());
        [below, above].into_iter().filter(|part| part.count > 0)
    }
}

/// The ids that the caller's own user namespace has, from the text of its `/proc/self/uid_map` or `gid_map`:
/// only those can be lent out. A text without a single line says nothing, and hides nothing.
pub(super) fn namespace_ids(map: &str) -> Vec<SubRange> {
    let ids: Vec<SubRange> = map
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().map(parse_id);
            let (start, _outside, count) = (words.next()??, words.next()??, words.next()??);
            Some(SubRange { start, count })
        })
        .collect();
    if ids.is_empty() {
        vec![SubRange {
            start: 0,
            count: u32::MAX,
        }]
    } else {
        ids
    }
}

/// The ranges of one user, and how much of the file made no sense.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SubIds {
    /// In the file's order, as it has them: they may overlap.
    pub(crate) ranges: Vec<SubRange>,
    /// Lines that are no comment and no range, whoever's they are.
    pub(crate) malformed: usize,
    /// The first id past every range of the file, whoever's they are: where a new range can go.
    pub(super) past_all: u32,
}

impl SubIds {
    /// Reads the ranges that `text` gives to the user of this name or of this uid.
    ///
    /// subgid(5) goes by users as well: `user` and `uid` are the same for both files.
    pub(crate) fn parse(text: &str, user: Option<&str>, uid: u32) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match parse_line(line) {
                Some((owner, range)) => {
                    found.past_all = found.past_all.max(range.end());
                    let named = Some(owner) == user;
                    if named || parse_id(owner) == Some(uid) {
                        found.ranges.push(range);
                    }
                }
                None => found.malformed += 1,
            }
        }
        found
    }

    /// The ranges without what they repeat, without id 0 and without `own`, in the file's order, as far as
    /// they lie in `visible`.
    ///
    /// The kernel refuses a map in which an id occurs twice, and `own` has its place already. Nobody means to
    /// lend out the host's root, whatever the file says. Parts of one line stay apart from parts of another,
    /// since older versions of newuidmap take no extent that spans two lines.
    pub(super) fn usable(&self, own: u32, visible: &[SubRange]) -> Vec<SubRange> {
        let mut taken = vec![
            SubRange { start: 0, count: 1 },
            SubRange {
                start: own,
                count: 1,
            },
        ];
        let mut usable = Vec::new();
        for &range in &self.ranges {
            let free = taken.iter().fold(vec![range], |parts, &other| {
                parts
                    .into_iter()
                    .flat_map(|part| part.without(other))
                    .collect()
            });
            taken.extend(&free);
            let lent = |part: SubRange| {
                visible
                    .iter()
                    .filter_map(move |ids| part.intersection(*ids))
            };
            usable.extend(free.into_iter().flat_map(lent));
        }
        usable
    }
}

/// `owner:start:count`.
fn parse_line(line: &str) -> Option<(&str, SubRange)> {
    let mut words = line.split(':');
    let (owner, start, count) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() || owner.is_empty() {
        return None;
    }
    let range = SubRange {
        start: parse_id(start)?,
        count: parse_id(count)?,
    };
    // `(uid_t) -1` is no id, so that a range may end just before it.
    range.start.checked_add(range.count)?;
    (range.count > 0).then_some((owner, range))
}

/// A number of decimal digits alone: `str::parse` would also take a sign.
fn parse_id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u32, count: u32) -> SubRange {
        SubRange { start, count }
    }

    #[test]
    fn a_user_is_found_by_name_and_by_number() {
        let text =
            "# ranges\nroot:1000000:65536\n\ndev:100000:65536\n1000:300000:10\n  dev:400000:5 \n";
        let found = SubIds::parse(text, Some("dev"), 1000);
        assert_eq!(
            found.ranges,
            [range(100_000, 65536), range(300_000, 10), range(400_000, 5)]
        );
        assert_eq!(found.malformed, 0);
        assert_eq!(SubIds::parse(text, None, 1000).ranges, [range(300_000, 10)]);
        let nobody = SubIds::parse(text, Some("nobody"), 65534);
        assert_eq!((nobody.ranges.len(), nobody.past_all), (0, 1_065_536));
    }

    #[test]
    fn what_is_malformed_is_counted_and_ignored() {
        let text = "dev\ndev:1\ndev:1:2:3\ndev:a:5\ndev:+5:5\ndev:-5:5\ndev:5:0\n:5:5\n\
                    dev:4294967290:10\ndev:99999999999:1\ndev: 5:5\ndev:4294967290:5";
        let found = SubIds::parse(text, Some("dev"), 1000);
        assert_eq!(found.ranges, [range(4_294_967_290, 5)]);
        assert_eq!(found.malformed, 11);
    }

    #[test]
    fn no_id_is_used_twice_and_never_root() {
        let found = SubIds {
            ranges: vec![range(0, 10), range(995, 10), range(5, 10), range(995, 10)],
            ..SubIds::default()
        };
        assert_eq!(
            found.usable(1000, &namespace_ids("")),
            [range(1, 9), range(995, 5), range(1001, 4), range(10, 5)]
        );
    }

    #[test]
    fn a_namespace_has_the_ids_of_its_map() {
        let inner = "         0       1000          1\n         1     100000      65535\n";
        assert_eq!(namespace_ids(inner), [range(0, 1), range(1, 65535)]);
        let all = range(0, u32::MAX);
        assert_eq!(namespace_ids("0 0 4294967295\n"), [all]);
        assert_eq!(namespace_ids(""), [all]);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "([a-z0-9:#\n -]|.){0,80}", uid: u32) {
            let _ = SubIds::parse(&text, Some("a"), uid).usable(uid, &namespace_ids(&text));
        }

        #[test]
        fn usable_ids_are_the_granted_ones_once(
            ranges in prop::collection::vec((0_u32..40, 1_u32..20), 0..6),
            own in 0_u32..50,
            visible in 0_u32..70,
        ) {
            let ranges: Vec<SubRange> = ranges.into_iter().map(|(s, c)| range(s, c)).collect();
            let found = SubIds { ranges: ranges.clone(), ..SubIds::default() };
            let usable = found.usable(own, &[range(0, visible)]);
            for id in 0..70 {
                let within = |list: &[SubRange]| list.iter().filter(|r| (r.start..r.end()).contains(&id)).count();
                let expected = usize::from(within(&ranges) > 0 && id != 0 && id != own && id < visible);
                prop_assert_eq!(within(&usable), expected, "id {}", id);
            }
        }
    }
}
