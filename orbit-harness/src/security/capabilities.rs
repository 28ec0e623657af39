//! Capabilities by name, and which of them a sandbox's program holds.
//!
//! [`resolve`] turns what was asked (`cap_add`, `cap_drop`) into a [`CapabilitySet`], with Docker's names,
//! Docker's defaults and Docker's rules. It does not look at what the caller itself holds: inside a user
//! namespace a process has every capability over that namespace and none over its parent, so an ordinary
//! user may ask for all of them. Applying the set (bounding, permitted, effective; never inheritable or
//! ambient, CVE-2022-27650) is the supervisor's work.
//!
//! Sources: capabilities(7); Linux, include/uapi/linux/capability.h; Docker documentation, "Runtime privilege
//! and Linux capabilities".

mod names;

use std::fmt;

use serde::{Deserialize, Serialize};

pub(crate) use names::Capability;

use crate::spec::SpecFault;

/// What Docker gives a container that asks for nothing.
const DOCKER_DEFAULT: &[Capability] = &[
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::SysChroot,
    Capability::Mknod,
    Capability::AuditWrite,
    Capability::Setfcap,
];

/// A set of capabilities, as the kernel's own bit mask.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct CapabilitySet(u64);

impl CapabilitySet {
    pub(crate) const EMPTY: Self = Self(0);

    /// Every capability that both this build and a kernel whose last one is `last_cap` know.
    pub(crate) fn all(last_cap: u8) -> Self {
        Capability::ALL
            .iter()
            .copied()
            .filter(|capability| capability.number() <= last_cap)
            .collect()
    }

    /// Docker's default set, as far as the kernel knows it.
    pub(crate) fn docker_default(last_cap: u8) -> Self {
        let defaults: Self = DOCKER_DEFAULT.iter().copied().collect();
        defaults.intersection(Self::all(last_cap))
    }

    pub(crate) const fn contains(self, capability: Capability) -> bool {
        self.0 & (1 << capability.number()) != 0
    }

    pub(crate) fn insert(&mut self, capability: Capability) {
        self.0 |= 1 << capability.number();
    }

    pub(crate) const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(crate) const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The mask as capset(2) takes it: the low word for `data[0]`, the high word for `data[1]`.
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// The members this build knows, in the kernel's order.
    pub(crate) fn iter(self) -> impl Iterator<Item = Capability> {
        Capability::ALL
            .iter()
            .copied()
            .filter(move |&capability| self.contains(capability))
    }
}

impl FromIterator<Capability> for CapabilitySet {
    fn from_iter<I: IntoIterator<Item = Capability>>(members: I) -> Self {
        let mut set = Self::EMPTY;
        members.into_iter().for_each(|member| set.insert(member));
        set
    }
}

/// Names without `CAP_`, with commas: `CHOWN,KILL`; `none` for the empty set.
impl fmt::Display for CapabilitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (position, capability) in self.iter().enumerate() {
            let separator = if position == 0 { "" } else { "," };
            write!(f, "{separator}{capability}")?;
        }
        Ok(())
    }
}

/// As `Display`: a mask of 41 bits tells a reader nothing.
impl fmt::Debug for CapabilitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CapabilitySet({self})")
    }
}

/// One of the two lists of a spec, read.
#[derive(Default)]
struct Asked {
    all: bool,
    named: CapabilitySet,
}

/// Reads `field`, adding a fault for each entry that names nothing this kernel has.
fn read(field: &str, entries: &[String], last_cap: u8, faults: &mut Vec<SpecFault>) -> Asked {
    let mut asked = Asked::default();
    for entry in entries {
        let fault = |why: String| SpecFault::new(field, entry.escape_debug().to_string(), why);
        if entry.eq_ignore_ascii_case("ALL") {
            asked.all = true;
            continue;
        }
        match entry.parse::<Capability>() {
            Ok(capability) if capability.number() > last_cap => faults.push(fault(format!(
                "this kernel has no capability of number {}; its last is {last_cap}",
                capability.number()
            ))),
            Ok(capability) => asked.named.insert(capability),
            Err(unknown) => faults.push(fault(unknown.to_string())),
        }
    }
    asked
}

/// What a sandbox's program holds, given what was asked and the kernel's last capability
/// (`/proc/sys/kernel/cap_last_cap`).
///
/// The rules are Docker's:
/// - `add` holds `ALL`: everything, except what `drop` names (`drop: ALL` loses against it);
/// - `drop` holds `ALL`: what `add` names, and nothing else;
/// - neither: the default set, without what `drop` names, with what `add` names. What stands in both is held.
///
/// # Errors
/// Every entry that names no capability of this kernel, not only the first.
pub(crate) fn resolve(
    add: &[String],
    drop: &[String],
    last_cap: u8,
) -> Result<CapabilitySet, Vec<SpecFault>> {
    let mut faults = Vec::new();
    let add = read("cap_add", add, last_cap, &mut faults);
    let drop = read("cap_drop", drop, last_cap, &mut faults);
    if !faults.is_empty() {
        return Err(faults);
    }
    Ok(if add.all {
        CapabilitySet::all(last_cap).difference(drop.named)
    } else if drop.all {
        add.named
    } else {
        CapabilitySet::docker_default(last_cap)
            .difference(drop.named)
            .union(add.named)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LAST: u8 = 40;

    fn texts(entries: &[&str]) -> Vec<String> {
        entries.iter().map(ToString::to_string).collect()
    }

    fn resolved(add: &[&str], drop: &[&str]) -> String {
        match resolve(&texts(add), &texts(drop), LAST) {
            Ok(set) => set.to_string(),
            Err(faults) => {
                let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
                lines.join("\n")
            }
        }
    }

    #[test]
    fn numbers_are_the_kernels() {
        let numbers: Vec<u8> = Capability::ALL.iter().map(|c| c.number()).collect();
        assert_eq!(numbers, (0..=40).collect::<Vec<u8>>());
        assert_eq!(CapabilitySet::all(LAST).bits(), 0x1ff_ffff_ffff);
        // CapEff of a plain `docker run`, as its documentation and capsh(1) print it.
        assert_eq!(
            CapabilitySet::docker_default(LAST).bits(),
            0x0000_0000_a804_25fb
        );
        assert_eq!(DOCKER_DEFAULT.len(), 14);
    }

    #[test]
    fn lists_combine_as_in_docker() {
        let default = CapabilitySet::docker_default(LAST).to_string();
        assert_eq!(resolved(&[], &[]), default);
        assert_eq!(
            resolved(&["cap_net_raw", "Chown"], &["all"]),
            "CHOWN,NET_RAW"
        );
        assert_eq!(resolved(&[], &["ALL"]), "none");
        assert_eq!(resolved(&["NET_RAW"], &["NET_RAW"]), default);
        let all = CapabilitySet::all(LAST);
        assert_eq!(resolved(&["ALL"], &["ALL"]), all.to_string());
        let but_raw = all.difference([Capability::NetRaw].into_iter().collect());
        assert_eq!(
            resolved(&["ALL", "NET_RAW"], &["NET_RAW"]),
            but_raw.to_string()
        );
    }

    #[test]
    fn every_fault_is_told_at_once_with_the_nearest_name() {
        assert_eq!(
            resolved(&["NET_RAWW", "KILL", "CAP_SYSADMIN"], &["chwn", ""]),
            "cap_add `NET_RAWW`: no capability has this name; did you mean NET_RAW?\n\
             cap_add `CAP_SYSADMIN`: no capability has this name; did you mean SYS_ADMIN?\n\
             cap_drop `chwn`: no capability has this name; did you mean CHOWN?\n\
             cap_drop ``: no capability has this name; capabilities(7) lists them, and ALL is all of them"
        );
        let old_kernel = resolve(&texts(&["BPF"]), &[], 37).unwrap_err();
        assert_eq!(
            old_kernel[0].to_string(),
            "cap_add `BPF`: this kernel has no capability of number 39; its last is 37"
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_resolve_panic(add in prop::collection::vec(".{0,40}", 0..4), last: u8) {
            if let Ok(set) = resolve(&add, &add, last) {
                prop_assert_eq!(set.difference(CapabilitySet::all(last)), CapabilitySet::EMPTY);
            }
        }

        #[test]
        fn what_is_asked_by_name_is_held_and_the_rest_follows_the_rule(
            add in prop::sample::subsequence(Capability::ALL, 0..6),
            drop in prop::sample::subsequence(Capability::ALL, 0..6),
            drop_all: bool,
        ) {
            let names = |list: &[Capability]| -> Vec<String> { list.iter().map(ToString::to_string).collect() };
            let mut dropped = names(&drop);
            dropped.extend(drop_all.then(|| "ALL".to_owned()));
            let set = resolve(&names(&add), &dropped, LAST).unwrap();
            for &capability in Capability::ALL {
                let by_default = !drop_all && DOCKER_DEFAULT.contains(&capability) && !drop.contains(&capability);
                prop_assert_eq!(set.contains(capability), add.contains(&capability) || by_default);
            }
        }
    }
}
