//! Id maps as data: which ids of a user namespace stand for which ids outside of it.
//!
//! [`IdMap`] is checked as the kernel checks it, so that a map that was made is a map that can be written.
//! `subid` reads what an administrator granted, `plan` decides what a sandbox gets. Writing `uid_map`, running
//! `newuidmap` and denying `setgroups` is the supervisor's work.
//!
//! Source: `user_namespaces(7)`, "User and group ID mappings"; Linux, `kernel/user_namespace.c`.

pub(crate) mod plan;
pub(crate) mod subid;

use std::{fmt, ops::Range};

use serde::{Deserialize, Serialize};

/// One line of a map: `count` ids from `inside` on stand for as many from `outside` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Extent {
    pub(crate) inside: u32,
    pub(crate) outside: u32,
    pub(crate) count: u32,
}

impl Extent {
    pub(crate) const fn new(inside: u32, outside: u32, count: u32) -> Self {
        Self {
            inside,
            outside,
            count,
        }
    }

    fn inside_ids(self) -> Range<u64> {
        u64::from(self.inside)..u64::from(self.inside) + u64::from(self.count)
    }

    fn outside_ids(self) -> Range<u64> {
        u64::from(self.outside)..u64::from(self.outside) + u64::from(self.count)
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.inside, self.outside, self.count)
    }
}

/// Why the kernel would refuse a map (with EINVAL, and no word more).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum IdMapError {
    #[error("an id map must have at least one line")]
    Empty,
    #[error("the id map has {0} lines; the kernel takes {max}", max = IdMap::MAX_EXTENTS)]
    TooManyExtents(usize),
    #[error("the id map has {0} bytes; the kernel takes {max}", max = IdMap::MAX_BYTES)]
    TooManyBytes(usize),
    #[error("`{0}` maps no id")]
    NoIds(Extent),
    #[error("`{0}` goes beyond 4294967294, the last id there is")]
    PastLastId(Extent),
    #[error("`{0}` and `{1}` overlap inside the namespace")]
    OverlapInside(Extent, Extent),
    #[error("`{0}` and `{1}` overlap outside the namespace")]
    OverlapOutside(Extent, Extent),
}

/// A map the kernel takes, for uids or for gids.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct IdMap {
    entries: Vec<Extent>,
}

/// The maps of one user namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMapPair {
    pub(crate) uid: IdMap,
    pub(crate) gid: IdMap,
}

impl IdMap {
    /// `UID_GID_MAP_MAX_EXTENTS`, since Linux 4.15.
    pub(crate) const MAX_EXTENTS: usize = 340;
    /// A write of a page or more is refused; this is one byte less than the smallest page.
    pub(crate) const MAX_BYTES: usize = 4095;

    /// # Errors
    /// [`IdMapError`] where the kernel would refuse the map.
    pub(crate) fn new(entries: Vec<Extent>) -> Result<Self, IdMapError> {
        if entries.is_empty() {
            return Err(IdMapError::Empty);
        }
        if entries.len() > Self::MAX_EXTENTS {
            return Err(IdMapError::TooManyExtents(entries.len()));
        }
        for &entry in &entries {
            if entry.count == 0 {
                return Err(IdMapError::NoIds(entry));
            }
            // 4294967295 is `(uid_t) -1`, which is no id.
            let end = entry.inside_ids().end.max(entry.outside_ids().end);
            if end > u64::from(u32::MAX) {
                return Err(IdMapError::PastLastId(entry));
            }
        }
        if let Some((one, other)) = overlap(&entries, Extent::inside_ids) {
            return Err(IdMapError::OverlapInside(one, other));
        }
        if let Some((one, other)) = overlap(&entries, Extent::outside_ids) {
            return Err(IdMapError::OverlapOutside(one, other));
        }
        let map = Self { entries };
        match map.to_string().len() {
            bytes if bytes > Self::MAX_BYTES => Err(IdMapError::TooManyBytes(bytes)),
            _ => Ok(map),
        }
    }

    /// The map of the one id `inside`.
    pub(crate) fn single(inside: u32, outside: u32) -> Result<Self, IdMapError> {
        Self::new(vec![Extent::new(inside, outside, 1)])
    }

    pub(crate) fn entries(&self) -> &[Extent] {
        &self.entries
    }

    /// How many ids the namespace has.
    pub(crate) fn count(&self) -> u32 {
        // Extents do not overlap, so that their sum fits in the ids there are.
        self.entries.iter().map(|entry| entry.count).sum()
    }

    /// What `inside` is outside of the namespace; `None` where it is not mapped.
    pub(crate) fn to_outside(&self, inside: u32) -> Option<u32> {
        self.entries.iter().find_map(|entry| {
            let offset = inside.checked_sub(entry.inside)?;
            (offset < entry.count).then(|| entry.outside + offset)
        })
    }

    #[cfg(test)]
    /// What `outside` is inside of the namespace; `None` where it shows as the overflow id.
    pub(crate) fn to_inside(&self, outside: u32) -> Option<u32> {
        self.entries.iter().find_map(|entry| {
            let offset = outside.checked_sub(entry.outside)?;
            (offset < entry.count).then(|| entry.inside + offset)
        })
    }

    /// The arguments of newuidmap(1) or newgidmap(1) for process `pid`, without the program's name.
    pub(crate) fn helper_args(&self, pid: i32) -> Vec<String> {
        let numbers = self
            .entries
            .iter()
            .flat_map(|entry| [entry.inside, entry.outside, entry.count]);
        std::iter::once(pid.to_string())
            .chain(numbers.map(|number| number.to_string()))
            .collect()
    }

    /// The second map of a sandbox that runs under the caller's own id: a user namespace in the first one, where
    /// the first one's id 0 (which *is* the caller) goes by the name of `user`.
    ///
    /// `count` is how many ids the first namespace has, from 0 on. Each of them has one name in the second:
    /// the ids below `user` move up by one to make room, the ids above it stay. Where `user` is past the last
    /// id, all but 0 move down by one.
    ///
    /// # Errors
    /// [`IdMapError::NoIds`] where `count` is 0, [`IdMapError::PastLastId`] where `user` is no id.
    pub(crate) fn identity_user(user: u32, count: u32) -> Result<Self, IdMapError> {
        let own = Extent::new(user, 0, 1);
        if count == 0 {
            return Err(IdMapError::NoIds(Extent::new(user, 0, 0)));
        }
        let entries = if user == 0 {
            vec![Extent::new(0, 0, count)]
        } else {
            let below = user.min(count - 1);
            vec![
                Extent::new(0, 1, below),
                own,
                Extent::new(user.saturating_add(1), below + 1, count - 1 - below),
            ]
        };
        Self::new(entries.into_iter().filter(|e| e.count > 0).collect())
    }
}

/// The text of `/proc/PID/uid_map`, to be written in one write(2).
impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.entries
            .iter()
            .try_for_each(|entry| writeln!(f, "{entry}"))
    }
}

/// Two entries whose `ids` overlap, if there are any.
fn overlap(entries: &[Extent], ids: fn(Extent) -> Range<u64>) -> Option<(Extent, Extent)> {
    let mut sorted = entries.to_vec();
    sorted.sort_by_key(|&entry| ids(entry).start);
    sorted
        .windows(2)
        .map(|pair| (pair[0], pair[1]))
        .find(|&(one, other)| ids(other).start < ids(one).end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(entries: &[(u32, u32, u32)]) -> Result<IdMap, IdMapError> {
        IdMap::new(
            entries
                .iter()
                .map(|&(inside, outside, count)| Extent::new(inside, outside, count))
                .collect(),
        )
    }

    #[test]
    fn a_map_prints_as_the_kernel_and_as_newuidmap_take_it() {
        let map = map(&[(0, 1000, 1), (1, 100_000, 65535)]).unwrap();
        assert_eq!(map.to_string(), "0 1000 1\n1 100000 65535\n");
        assert_eq!(
            map.helper_args(42),
            ["42", "0", "1000", "1", "1", "100000", "65535"]
        );
        assert_eq!(map.count(), 65536);
        assert_eq!(map.to_outside(65535), Some(165_534));
        assert_eq!(map.to_outside(65536), None);
        assert_eq!(map.to_inside(1000), Some(0));
        assert_eq!(map.to_inside(0), None);
    }

    #[test]
    fn what_the_kernel_refuses_is_refused_with_a_reason() {
        let text = |entries: &[(u32, u32, u32)]| map(entries).unwrap_err().to_string();
        assert_eq!(text(&[]), "an id map must have at least one line");
        assert_eq!(text(&[(0, 5, 0)]), "`0 5 0` maps no id");
        assert_eq!(
            text(&[(0, 4_294_967_290, 6)]),
            "`0 4294967290 6` goes beyond 4294967294, the last id there is"
        );
        assert!(map(&[(0, 4_294_967_290, 5)]).is_ok());
        assert_eq!(
            text(&[(5, 10, 5), (0, 100, 6)]),
            "`0 100 6` and `5 10 5` overlap inside the namespace"
        );
        assert_eq!(
            text(&[(0, 10, 5), (5, 14, 1)]),
            "`0 10 5` and `5 14 1` overlap outside the namespace"
        );
        let single = |at: u32| (at * 2, at * 2, 1);
        let many: Vec<_> = (0..341).map(single).collect();
        assert_eq!(
            text(&many),
            "the id map has 341 lines; the kernel takes 340"
        );
        assert!(map(&many[..340]).is_ok());
        let long: Vec<_> = (0..340).map(|at| (at + 100_000, at + 200_000, 1)).collect();
        assert_eq!(
            text(&long),
            "the id map has 5440 bytes; the kernel takes 4095"
        );
    }

    #[test]
    fn the_callers_own_id_is_the_first_namespaces_root() {
        let lines = |user, count| IdMap::identity_user(user, count).map(|map| map.to_string());
        assert_eq!(
            lines(1000, 65536).unwrap(),
            "0 1 1000\n1000 0 1\n1001 1001 64535\n"
        );
        assert_eq!(lines(0, 65536).unwrap(), "0 0 65536\n");
        assert_eq!(lines(1000, 1).unwrap(), "1000 0 1\n");
        assert_eq!(lines(70_000, 65536).unwrap(), "0 1 65535\n70000 0 1\n");
        assert_eq!(lines(65535, 65536).unwrap(), "0 1 65535\n65535 0 1\n");
        assert_eq!(lines(u32::MAX - 1, 3).unwrap(), "0 1 2\n4294967294 0 1\n");
        assert!(lines(u32::MAX, 3).is_err());
        assert!(lines(1000, 0).is_err());
    }

    proptest! {
        #[test]
        fn lookups_are_inverse(
            entries in prop::collection::vec((0_u32..5000, 0_u32..5000, 0_u32..50), 1..6),
            id in 0_u32..5100,
        ) {
            if let Ok(map) = map(&entries) {
                if let Some(outside) = map.to_outside(id) {
                    prop_assert_eq!(map.to_inside(outside), Some(id));
                }
                if let Some(inside) = map.to_inside(id) {
                    prop_assert_eq!(map.to_outside(inside), Some(id));
                }
            }
        }

        #[test]
        fn no_extent_makes_a_map_panic(
            entries in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u32>()), 0..6),
            id: u32,
        ) {
            if let Ok(map) = map(&entries) {
                let _ = (map.to_outside(id), map.to_inside(id), map.count());
            }
        }

        #[test]
        fn the_second_map_is_a_bijection(user in 0_u32..600, count in 1_u32..500) {
            let map = IdMap::identity_user(user, count).unwrap();
            prop_assert_eq!(map.count(), count);
            prop_assert_eq!(map.to_outside(user), Some(0));
            for outer in 0..count {
                let inner = map.to_inside(outer);
                prop_assert!(inner.is_some_and(|inner| map.to_outside(inner) == Some(outer)));
            }
            prop_assert_eq!(map.to_inside(count), None);
        }
    }
}
