//! The capabilities there are, their names, and what a misspelt one may have meant.
//!
//! Source: Linux, include/uapi/linux/capability.h; capabilities(7).

use std::{fmt, str::FromStr};

/// Declares the capabilities once: variant, number in the kernel, name without `CAP_`.
macro_rules! capabilities {
    ($($variant:ident = $number:literal $name:literal)*) => {
        /// One capability. The discriminant is the bit the kernel gave it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub(crate) enum Capability { $($variant = $number),* }

        impl Capability {
            /// Every capability this build knows, in the kernel's order.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name without `CAP_`, as people write it.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

capabilities! {
    Chown = 0 "CHOWN"
    DacOverride = 1 "DAC_OVERRIDE"
    DacReadSearch = 2 "DAC_READ_SEARCH"
    Fowner = 3 "FOWNER"
    Fsetid = 4 "FSETID"
    Kill = 5 "KILL"
    Setgid = 6 "SETGID"
    Setuid = 7 "SETUID"
    Setpcap = 8 "SETPCAP"
    LinuxImmutable = 9 "LINUX_IMMUTABLE"
    NetBindService = 10 "NET_BIND_SERVICE"
    NetBroadcast = 11 "NET_BROADCAST"
    NetAdmin = 12 "NET_ADMIN"
    NetRaw = 13 "NET_RAW"
    IpcLock = 14 "IPC_LOCK"
    IpcOwner = 15 "IPC_OWNER"
    SysModule = 16 "SYS_MODULE"
    SysRawio = 17 "SYS_RAWIO"
    SysChroot = 18 "SYS_CHROOT"
    SysPtrace = 19 "SYS_PTRACE"
    SysPacct = 20 "SYS_PACCT"
    SysAdmin = 21 "SYS_ADMIN"
    SysBoot = 22 "SYS_BOOT"
    SysNice = 23 "SYS_NICE"
    SysResource = 24 "SYS_RESOURCE"
    SysTime = 25 "SYS_TIME"
    SysTtyConfig = 26 "SYS_TTY_CONFIG"
    Mknod = 27 "MKNOD"
    Lease = 28 "LEASE"
    AuditWrite = 29 "AUDIT_WRITE"
    AuditControl = 30 "AUDIT_CONTROL"
    Setfcap = 31 "SETFCAP"
    MacOverride = 32 "MAC_OVERRIDE"
    MacAdmin = 33 "MAC_ADMIN"
    Syslog = 34 "SYSLOG"
    WakeAlarm = 35 "WAKE_ALARM"
    BlockSuspend = 36 "BLOCK_SUSPEND"
    AuditRead = 37 "AUDIT_READ"
    Perfmon = 38 "PERFMON"
    Bpf = 39 "BPF"
    CheckpointRestore = 40 "CHECKPOINT_RESTORE"
}

impl Capability {
    /// The bit number, as in `/proc/sys/kernel/cap_last_cap` and prctl(2).
    pub(crate) const fn number(self) -> u8 {
        self as u8
    }
}

/// The name without `CAP_`.
impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no capability, and the name that it may have meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnknownCapability {
    nearest: Option<Capability>,
}

impl std::error::Error for UnknownCapability {}

impl fmt::Display for UnknownCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no capability has this name; ")?;
        match self.nearest {
            Some(nearest) => write!(f, "did you mean {nearest}?"),
            None => f.write_str("capabilities(7) lists them, and ALL is all of them"),
        }
    }
}

/// `NET_RAW` and `CAP_NET_RAW`, in any case. Surrounding space is not trimmed; Docker does not either.
impl FromStr for Capability {
    type Err = UnknownCapability;

    fn from_str(text: &str) -> Result<Self, UnknownCapability> {
        let upper = text.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        Self::ALL
            .iter()
            .copied()
            .find(|capability| capability.name() == bare)
            .ok_or_else(|| UnknownCapability {
                nearest: nearest(bare),
            })
    }
}

/// The capability whose name takes the fewest edits to get from `bare`, if that is fewer than half of the
/// name. Ties go to the kernel's order.
fn nearest(bare: &str) -> Option<Capability> {
    // A text far longer than any name is no typing mistake, and comparing it whole would only cost time.
    let head: Vec<char> = bare.chars().take(32).collect();
    Capability::ALL
        .iter()
        .copied()
        .map(|capability| (edit_distance(&head, capability.name()), capability))
        .filter(|&(distance, capability)| distance * 2 < capability.name().len())
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, capability)| capability)
}

/// Levenshtein's distance, one row at a time.
fn edit_distance(from: &[char], to: &str) -> usize {
    let mut row: Vec<usize> = (0..=from.len()).collect();
    for (line, wanted) in to.chars().enumerate() {
        let mut diagonal = line;
        row[0] = line + 1;
        for (column, &given) in from.iter().enumerate() {
            let substituted = diagonal + usize::from(given != wanted);
            diagonal = row[column + 1];
            row[column + 1] = substituted.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[from.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn names_print_as_they_parse(index in 0..Capability::ALL.len(), prefix: bool, lower: bool) {
            let capability = Capability::ALL[index];
            let mut text = format!("{}{capability}", if prefix { "CAP_" } else { "" });
            if lower {
                text.make_ascii_lowercase();
            }
            prop_assert_eq!(text.parse(), Ok(capability));
        }
    }
}
