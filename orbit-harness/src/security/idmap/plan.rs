//! Which ids a sandbox gets: from facts about the caller to the two maps of its user namespace.
//!
//! | the caller | inside 0 is | inside 1… are |
//! |---|---|---|
//! | an ordinary user with subordinate ids | the caller | subordinate ids, written by newuidmap(1) |
//! | an ordinary user without | the caller | not there; `setgroups` is denied (CVE-2018-7169) |
//! | privileged | an id of a range that is nobody's | the rest of that range |
//! | privileged in a namespace without such ids | its root | its other ids |
//!
//! The caller's privilege is a fact that is handed in; nothing here asks for it or uses it.

use std::fmt;

use super::{
    Extent, IdMap, IdMapError,
    subid::{SubIds, SubRange, namespace_ids},
};

/// How many ids a sandbox gets: as many as the 16-bit ids that images are made with.
const WANTED: u32 = 65536;

/// Where a privileged caller's range starts if root has no subordinate ids.
///
/// Just past systemd's container range (524288 to 1879048191) and below its foreign range (from 2147352576):
/// ids that systemd, useradd(8) and the common directories leave alone.
/// Source: systemd, docs/UIDS-GIDS.md, "Summary".
const UNCLAIMED: u32 = 0x7000_0000;

/// Where useradd(8) starts to give out subordinate ids (`SUB_UID_MIN` of login.defs(5)).
const SUB_ID_MIN: u32 = 100_000;

/// What a plan needs to know of the caller and its machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller<'a> {
    pub(crate) euid: u32,
    pub(crate) egid: u32,
    /// The name of `euid`, where it has one.
    pub(crate) name: Option<&'a str>,
    /// The text of `/etc/subuid`; empty where it cannot be read.
    pub(crate) subuid: &'a str,
    /// The text of `/etc/subgid`; empty where it cannot be read.
    pub(crate) subgid: &'a str,
    /// The text of `/proc/self/uid_map`: in a container there are fewer ids to give away.
    pub(crate) uid_map: &'a str,
    /// The text of `/proc/self/gid_map`.
    pub(crate) gid_map: &'a str,
    /// newuidmap(1) and newgidmap(1) are there and have the privilege they need.
    pub(crate) helpers: bool,
    /// Holds `CAP_SETUID` and `CAP_SETGID` over its own user namespace: may write any map.
    pub(crate) privileged: bool,
}

/// How the maps are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    /// By a process with privilege over the caller's namespace, straight to `uid_map` and `gid_map`.
    Privileged,
    /// By newuidmap(1) and newgidmap(1).
    Helpers,
    /// By the caller, after `deny` is written to `setgroups`. Says why there was nothing better.
    Caller(SingleId),
}

/// Why a sandbox has a single id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SingleId {
    why: Why,
    /// Who to grant ids to, as usermod(8) takes it.
    user: String,
    /// A range that no line of either file has.
    free: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    NoHelpers,
    NoRange { uids: bool, gids: bool },
}

impl SingleId {
    /// What to do about it: a command, or a package to install.
    pub(crate) fn fix(&self) -> String {
        let Self { why, user, free } = self;
        let last = free + (WANTED - 1);
        let option = |missing: bool, name: &str| {
            let range = format!(" --add-{name} {free}-{last}");
            if missing { range } else { String::new() }
        };
        match *why {
            Why::NoHelpers => "install the package uidmap (Debian, Ubuntu) or shadow-utils".into(),
            Why::NoRange { uids, gids } => format!(
                "as root: usermod{}{} {user}",
                option(uids, "subuids"),
                option(gids, "subgids")
            ),
        }
    }
}

/// The reason, to follow "because".
impl fmt::Display for SingleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = match self.why {
            Why::NoHelpers => return f.write_str("newuidmap and newgidmap are not installed"),
            Why::NoRange { gids: false, .. } => "/etc/subuid",
            Why::NoRange { uids: false, .. } => "/etc/subgid",
            Why::NoRange { .. } => "/etc/subuid and /etc/subgid",
        };
        write!(
            f,
            "user {} has no subordinate ids in {files} that this user namespace has",
            self.user
        )
    }
}

/// The maps of a sandbox's user namespace, and how to write them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdPlan {
    pub(crate) uids: IdMap,
    pub(crate) gids: IdMap,
    pub(crate) writer: Writer,
    key: String,
}

impl IdPlan {
    /// A short name of the maps, for files on disk whose owners depend on them: `range-1000-100000-65536`,
    /// `single-1000`, `root-1879048192`. Equal keys mean equal maps.
    #[cfg(any(test, feature = "images"))]
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    fn new(key: &str, uids: IdMap, gids: IdMap, writer: Writer) -> Self {
        // Most maps are what the short key says, and the same for uids and gids. Whatever else there is goes
        // into a digest, lest two stores with other owners share a name.
        let usual = uids == gids && uids.entries().len() <= 2;
        let key = if usual {
            key.to_owned()
        } else {
            format!("{key}-{:016x}", fnv1a(&format!("{uids}/{gids}")))
        };
        Self {
            uids,
            gids,
            writer,
            key,
        }
    }
}

/// Decides the maps for `caller`.
///
/// # Errors
/// [`IdMapError`] where the caller's own ids are none (4294967295).
pub(crate) fn plan(caller: &Caller<'_>) -> Result<IdPlan, IdMapError> {
    if caller.privileged {
        return privileged(caller);
    }
    let owned = |text, own, map| {
        SubIds::parse(text, caller.name, caller.euid).usable(own, &namespace_ids(map))
    };
    let (uid_ranges, gid_ranges) = (
        owned(caller.subuid, caller.euid, caller.uid_map),
        owned(caller.subgid, caller.egid, caller.gid_map),
    );
    let (Some(first), Some(_)) = (uid_ranges.first(), gid_ranges.first()) else {
        let why = Why::NoRange {
            uids: uid_ranges.is_empty(),
            gids: gid_ranges.is_empty(),
        };
        return single(caller, why);
    };
    if !caller.helpers {
        return single(caller, Why::NoHelpers);
    }
    let uids = ranged(caller.euid, &uid_ranges)?;
    let gids = ranged(caller.egid, &gid_ranges)?;
    let key = format!("range-{}-{}-{}", caller.euid, first.start, uids.count());
    Ok(IdPlan::new(&key, uids, gids, Writer::Helpers))
}

fn single(caller: &Caller<'_>, why: Why) -> Result<IdPlan, IdMapError> {
    let past_all = |text| SubIds::parse(text, caller.name, caller.euid).past_all;
    let free = past_all(caller.subuid).max(past_all(caller.subgid));
    let reason = SingleId {
        why,
        user: caller
            .name
            .map_or_else(|| caller.euid.to_string(), str::to_owned),
        // Files that are full to the last id leave nothing better to say than the usual range.
        free: Some(free.max(SUB_ID_MIN))
            .filter(|&free| free < UNCLAIMED)
            .unwrap_or(SUB_ID_MIN),
    };
    Ok(IdPlan::new(
        &format!("single-{}", caller.euid),
        IdMap::single(0, caller.euid)?,
        IdMap::single(0, caller.egid)?,
        Writer::Caller(reason),
    ))
}

/// Id 0 is `own`, and the ids from 1 on are those of `ranges`, as many as are wanted and as a map can hold.
fn ranged(own: u32, ranges: &[SubRange]) -> Result<IdMap, IdMapError> {
    let mut map = IdMap::single(0, own)?;
    let mut next = 1;
    for range in ranges {
        let count = range.count.min(WANTED - next);
        let mut longer = map.entries().to_vec();
        longer.push(Extent::new(next, range.start, count));
        // Full, one way or the other: enough ids (a count of 0), too many lines, too many bytes.
        let Ok(longer) = IdMap::new(longer) else {
            break;
        };
        map = longer;
        next += count;
    }
    Ok(map)
}

/// A range that is nobody's, so that a container's root is not the host's.
///
/// In a container that was given few ids there is no such range. Its root is then the sandbox's root: outside
/// of the container that is an ordinary id already, and there is no other to be had.
fn privileged(caller: &Caller<'_>) -> Result<IdPlan, IdMapError> {
    let find = |text, map| {
        let visible = namespace_ids(map);
        // The caller may hold the privilege and not be root; the range is root's all the same.
        let granted = SubIds::parse(text, Some("root"), 0).usable(0, &visible);
        let unclaimed = SubRange {
            start: UNCLAIMED,
            count: WANTED,
        };
        let unclaimed = visible.iter().filter_map(|ids| ids.intersection(unclaimed));
        let enough = |range: &SubRange| range.count >= WANTED;
        granted.into_iter().chain(unclaimed).find(enough)
    };
    let uids = find(caller.subuid, caller.uid_map);
    let gids = find(caller.subgid, caller.gid_map);
    let (key, uids, gids) = if let (Some(uids), Some(gids)) = (uids, gids) {
        let range = |range: SubRange| IdMap::new(vec![Extent::new(0, range.start, WANTED)]);
        (format!("root-{}", uids.start), range(uids)?, range(gids)?)
    } else {
        let (uids, gids) = (inherited(caller.uid_map)?, inherited(caller.gid_map)?);
        (format!("inherited-{}", uids.count()), uids, gids)
    };
    Ok(IdPlan::new(&key, uids, gids, Writer::Privileged))
}

/// The ids of the caller's namespace from 0 on without a gap, each as itself, as many as are wanted.
fn inherited(map: &str) -> Result<IdMap, IdMapError> {
    let mut visible = namespace_ids(map);
    visible.sort_unstable_by_key(|ids| ids.start);
    let end = visible
        .iter()
        .fold(0, |end, ids| if ids.start == end { ids.end() } else { end });
    // The caller holds a privilege over the namespace, so that there is at least its root.
    IdMap::new(vec![Extent::new(0, 0, end.clamp(1, WANTED))])
}

/// The 64-bit FNV-1a digest: short, and the same on every machine and in every version.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |digest, byte| {
        (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
