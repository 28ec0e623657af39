//! Limits that are more than one number: a set of CPUs, the traffic of a device, a limit of setrlimit(2).
//!
//! Parsing, printing and bounds; nothing here touches the system.

use std::{collections::BTreeSet, fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::units::Bytes;

/// Why a text is no such limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ResourceError(String);

/// CPUs by number, as the kernel lists them: `0-1,3`.
///
/// Source: Linux, Documentation/admin-guide/cgroup-v2.rst, "Cpuset Interface Files".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct CpuSet(BTreeSet<u32>);

impl CpuSet {
    /// More CPUs than any kernel is built for (`CONFIG_NR_CPUS`).
    const MAX: u32 = 8192;

    /// Those that `self` has and `other` has not.
    pub(crate) fn beyond(&self, other: &Self) -> Option<Self> {
        let beyond: BTreeSet<u32> = self.0.difference(&other.0).copied().collect();
        (!beyond.is_empty()).then_some(Self(beyond))
    }
}

impl FromStr for CpuSet {
    type Err = ResourceError;

    fn from_str(text: &str) -> Result<Self, ResourceError> {
        let fault = |why: &str| ResourceError(format!("expected CPUs such as 0-1,3: {why}"));
        let number = |text: &str| {
            text.trim()
                .parse::<u32>()
                .ok()
                .filter(|number| *number < Self::MAX)
                .ok_or_else(|| fault("a CPU is a number from 0 to 8191"))
        };
        let mut cpus = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if first > last {
                return Err(fault("a range goes from the lower to the higher"));
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

/// The shortest list of ranges, as the kernel prints it.
impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if(|next| *next == last + 1) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl TryFrom<String> for CpuSet {
    type Error = ResourceError;
    fn try_from(text: String) -> Result<Self, ResourceError> {
        text.parse()
    }
}

impl From<CpuSet> for String {
    fn from(set: CpuSet) -> Self {
        set.to_string()
    }
}

/// What of a block device may be used in a second.
///
/// Source: Linux, Documentation/admin-guide/cgroup-v2.rst, "IO Interface Files".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IoMax {
    pub(crate) device: IoDevice,
    pub(crate) read_bytes: Option<u64>,
    pub(crate) write_bytes: Option<u64>,
    pub(crate) reads: Option<u64>,
    pub(crate) writes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum IoDevice {
    /// A device, or a file or directory that lies on one.
    Path(PathBuf),
    Number {
        major: u32,
        minor: u32,
    },
}

impl IoMax {
    /// `rates` as cgroup v2 writes them, in any order, separated by spaces or commas: `rbps=1M wiops=120`.
    pub(crate) fn parse(device: &str, rates: &str) -> Result<Self, ResourceError> {
        let fault = |why: String| {
            ResourceError(format!(
                "expected rates such as rbps=1M wbps=2M riops=100 wiops=max: {why}"
            ))
        };
        let mut io = Self {
            device: Self::device(device)?,
            read_bytes: None,
            write_bytes: None,
            reads: None,
            writes: None,
        };
        let mut seen = BTreeSet::new();
        for word in rates.split([' ', ',']).filter(|word| !word.is_empty()) {
            let (name, value) = word
                .split_once('=')
                .ok_or_else(|| fault(format!("`{word}` has no `=`")))?;
            if !seen.insert(name) {
                return Err(fault(format!("`{name}` is there twice")));
            }
            let slot = match name {
                "rbps" => &mut io.read_bytes,
                "wbps" => &mut io.write_bytes,
                "riops" => &mut io.reads,
                "wiops" => &mut io.writes,
                _ => {
                    return Err(fault(format!(
                        "`{name}` is none of rbps, wbps, riops, wiops"
                    )));
                }
            };
            if value == "max" {
                continue;
            }
            let rate = if name.ends_with("bps") {
                value
                    .parse::<Bytes>()
                    .map(Bytes::as_u64)
                    .map_err(|error| fault(error.to_string()))?
            } else {
                value
                    .parse()
                    .map_err(|_| fault(format!("`{value}` is no number of operations")))?
            };
            if rate == 0 {
                return Err(fault(format!(
                    "`{word}` would stop the device for good; expected more than zero"
                )));
            }
            *slot = Some(rate);
        }
        if seen.is_empty() {
            return Err(fault("there is none".to_owned()));
        }
        Ok(io)
    }

    fn device(text: &str) -> Result<IoDevice, ResourceError> {
        if text.starts_with('/') {
            return Ok(IoDevice::Path(text.into()));
        }
        let number = text.split_once(':').and_then(|(major, minor)| {
            Some(IoDevice::Number {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
            })
        });
        number.ok_or_else(|| {
            ResourceError(
                "the device is neither an absolute path nor a number such as 8:0".to_owned(),
            )
        })
    }
}

/// As `io.max` takes it.
impl fmt::Display for IoMax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.device {
            IoDevice::Path(path) => write!(f, "{}", path.display())?,
            IoDevice::Number { major, minor } => write!(f, "{major}:{minor}")?,
        }
        for (name, rate) in [
            ("rbps", self.read_bytes),
            ("wbps", self.write_bytes),
            ("riops", self.reads),
            ("wiops", self.writes),
        ] {
            match rate {
                Some(rate) => write!(f, " {name}={rate}")?,
                None => write!(f, " {name}=max")?,
            }
        }
        Ok(())
    }
}

/// A limit of setrlimit(2) for the program and what it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ulimit {
    /// The number of the resource.
    pub(crate) resource: u32,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// Names as prlimit(1) has them, in the order of their numbers on x86 and Arm.
///
/// Source: setrlimit(2); Linux, include/uapi/asm-generic/resource.h.
const ULIMITS: [(&str, u32); 16] = [
    ("cpu", libc::RLIMIT_CPU),
    ("fsize", libc::RLIMIT_FSIZE),
    ("data", libc::RLIMIT_DATA),
    ("stack", libc::RLIMIT_STACK),
    ("core", libc::RLIMIT_CORE),
    ("rss", libc::RLIMIT_RSS),
    ("nproc", libc::RLIMIT_NPROC),
    ("nofile", libc::RLIMIT_NOFILE),
    ("memlock", libc::RLIMIT_MEMLOCK),
    ("as", libc::RLIMIT_AS),
    ("locks", libc::RLIMIT_LOCKS),
    ("sigpending", libc::RLIMIT_SIGPENDING),
    ("msgqueue", libc::RLIMIT_MSGQUEUE),
    ("nice", libc::RLIMIT_NICE),
    ("rtprio", libc::RLIMIT_RTPRIO),
    ("rttime", libc::RLIMIT_RTTIME),
];

impl Ulimit {
    pub(crate) const UNLIMITED: u64 = libc::RLIM64_INFINITY;

    pub(crate) fn new(name: &str, soft: u64, hard: u64) -> Result<Self, ResourceError> {
        let known = name.strip_prefix("RLIMIT_").unwrap_or(name);
        let found = ULIMITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(known));
        let Some((_, resource)) = found else {
            let names: Vec<&str> = ULIMITS.iter().map(|(name, _)| *name).collect();
            return Err(ResourceError(format!(
                "`{name}` is none of {}",
                names.join(", ")
            )));
        };
        if soft > hard {
            return Err(ResourceError(format!(
                "its soft limit {} is above its hard limit {}",
                amount(soft),
                amount(hard)
            )));
        }
        #[allow(
            clippy::unnecessary_cast,
            reason = "the type differs between C libraries"
        )]
        Ok(Self {
            resource: *resource as u32,
            soft,
            hard,
        })
    }

    pub(crate) fn name(self) -> &'static str {
        ULIMITS
            .iter()
            .find(|(_, resource)| *resource == self.resource)
            .map_or("unknown", |(name, _)| name)
    }
}

/// `NAME=SOFT[:HARD]`, as `docker run --ulimit` takes it; `-1` and `unlimited` are no limit.
impl FromStr for Ulimit {
    type Err = ResourceError;

    fn from_str(text: &str) -> Result<Self, ResourceError> {
        let fault = || {
            ResourceError(
                "expected NAME=SOFT[:HARD], such as nofile=1024:4096 or core=0".to_owned(),
            )
        };
        let (name, values) = text.split_once('=').ok_or_else(fault)?;
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let value = |text: &str| match text {
            "-1" | "unlimited" => Ok(Self::UNLIMITED),
            _ => text.parse().map_err(|_| fault()),
        };
        Self::new(name, value(soft)?, value(hard)?)
    }
}

impl fmt::Display for Ulimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (soft, hard) = (amount(self.soft), amount(self.hard));
        write!(f, "{}={soft}:{hard}", self.name())
    }
}

fn amount(value: u64) -> String {
    match value {
        Ulimit::UNLIMITED => "unlimited".to_owned(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cpus_are_read_and_printed_as_the_kernel_does() {
        for (text, printed) in [
            ("0", "0"),
            ("0-1", "0-1"),
            ("3,0-1,2", "0-3"),
            ("7,5", "5,7"),
            (" 1 - 2 ", "1-2"),
        ] {
            let set: CpuSet = text.parse().unwrap();
            assert_eq!(set.to_string(), printed);
        }
        for text in ["", "a", "2-1", "0,", "-1", "8192", "0-"] {
            assert!(text.parse::<CpuSet>().is_err(), "{text:?}");
        }
        let (two, four): (CpuSet, CpuSet) = ("0-1".parse().unwrap(), "0-3".parse().unwrap());
        assert_eq!(two.beyond(&four), None);
        assert_eq!(four.beyond(&two).unwrap().to_string(), "2-3");
    }

    #[test]
    fn rates_of_a_device_are_read_as_cgroup_v2_writes_them() {
        let io = IoMax::parse("8:16", "rbps=2M, wiops=120").unwrap();
        assert_eq!(
            io.to_string(),
            "8:16 rbps=2097152 wbps=max riops=max wiops=120"
        );
        assert_eq!(
            IoMax::parse("/dev/vda", "wbps=max").unwrap().to_string(),
            "/dev/vda rbps=max wbps=max riops=max wiops=max"
        );
        for (device, rates) in [
            ("vda", "rbps=1M"),
            ("/", ""),
            ("/", "rbps"),
            ("/", "rbps=0"),
            ("/", "rbps=1 rbps=2"),
            ("/", "speed=1"),
            ("/", "riops=1M"),
        ] {
            assert!(IoMax::parse(device, rates).is_err(), "{device} {rates}");
        }
    }

    #[test]
    fn ulimits_have_the_names_of_prlimit() {
        let parse = |text: &str| text.parse::<Ulimit>().map(|limit| limit.to_string());
        assert_eq!(parse("nofile=64:128").unwrap(), "nofile=64:128");
        assert_eq!(parse("RLIMIT_CORE=0").unwrap(), "core=0:0");
        assert_eq!(parse("as=1:-1").unwrap(), "as=1:unlimited");
        assert_eq!(
            parse("files=1").unwrap_err().to_string(),
            "`files` is none of cpu, fsize, data, stack, core, rss, nproc, nofile, memlock, as, locks, \
             sigpending, msgqueue, nice, rtprio, rttime"
        );
        assert_eq!(
            parse("nofile=2:1").unwrap_err().to_string(),
            "its soft limit 2 is above its hard limit 1"
        );
        assert!(parse("nofile").is_err());
        assert!(parse("nofile=x").is_err());
    }

    proptest! {
        #[test]
        fn a_set_of_cpus_prints_as_it_parses(cpus in proptest::collection::btree_set(0..64u32, 1..20)) {
            let set = CpuSet(cpus);
            prop_assert_eq!(set.to_string().parse(), Ok(set));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,40}") {
            let _ = text.parse::<CpuSet>();
            let _ = text.parse::<Ulimit>();
            let _ = IoMax::parse("/", &text);
        }
    }
}
