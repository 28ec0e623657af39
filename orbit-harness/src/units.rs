//! Quantities as people write them: `64M`, `0.5`, `100000 100000`.
//!
//! Parsing, printing and bounds; nothing here touches the system, and nothing is imported from the rest
//! of the crate.

use std::{fmt, num::NonZeroU64, str::FromStr};

use serde::{Deserialize, Serialize};

/// An amount of memory or disk, in bytes.
///
/// Suffixes are powers of 1024, as in Docker and in cgroup v2 files: `k`, `M`, `G`, `T`, alone or followed
/// by `B` or `iB`, in either case. A number without a suffix is bytes.
///
/// ```
/// let limit: orbit::Bytes = "64M".parse()?;
/// assert_eq!(limit.as_u64(), 64 * 1024 * 1024);
/// assert_eq!(limit.to_string(), "64MiB");
/// # Ok::<(), orbit::UnitError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(u64);

impl Bytes {
    /// `count` bytes.
    pub const fn new(count: u64) -> Self {
        Self(count)
    }

    /// `count` mebibytes (1024 × 1024 bytes); saturates.
    pub const fn mib(count: u64) -> Self {
        Self(count.saturating_mul(1 << 20))
    }

    /// The amount in bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

/// Prints the largest binary unit that divides the amount, so that what is printed parses to the same value: `64MiB`, or
/// `64 MiB` for a sentence with `{:#}`.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = if f.alternate() { " " } else { "" };
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{space}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}{space}B", self.0)
    }
}

impl FromStr for Bytes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let fail =
            |why| UnitError::new("an amount of bytes", text, "such as 65536, 64M or 1G", why);
        let trimmed = text.trim();
        let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = trimmed.split_at(digits);
        let count: u64 = match number.parse() {
            Ok(count) => count,
            Err(_) if number.is_empty() => {
                return Err(fail("it does not start with a whole number"));
            }
            Err(_) => return Err(fail("the number does not fit in 64 bits")),
        };
        let shift = match suffix.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(fail("the unit is none of k, M, G, T")),
        };
        match count.checked_mul(1 << shift) {
            Some(bytes) => Ok(Self(bytes)),
            None => Err(fail("it is more than 64 bits of bytes")),
        }
    }
}

impl TryFrom<String> for Bytes {
    type Error = UnitError;
    fn try_from(text: String) -> Result<Self, UnitError> {
        text.parse()
    }
}

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> Self {
        bytes.to_string()
    }
}

/// A share of CPU time: `quota` microseconds in each `period` microseconds, or no bound.
///
/// Parses what cgroup v2 takes in `cpu.max` (`"50000 100000"`, `"max"`, `"max 100000"`) and a number of CPUs
/// (`"0.5"`, `"2"`).
///
/// ```
/// let half: orbit::CpuQuota = "0.5".parse()?;
/// assert_eq!(half.to_string(), "50000 100000");
/// assert_eq!("max".parse::<orbit::CpuQuota>()?.to_string(), "max 100000");
/// # Ok::<(), orbit::UnitError>(())
/// ```
///
/// Source: Linux, Documentation/admin-guide/cgroup-v2.rst, "CPU Interface Files".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuQuota {
    quota_us: Option<NonZeroU64>,
    period_us: u64,
}

impl CpuQuota {
    /// The period the kernel uses where none is given.
    const DEFAULT_PERIOD_US: u64 = 100_000;
    /// The kernel's bounds: 1 ms to 1 s for a period, 1 ms at least for a quota.
    const PERIOD_US: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;
    const MIN_QUOTA_US: u64 = 1_000;

    /// Microseconds of CPU time in each period; `None` is unbounded.
    pub const fn quota_us(self) -> Option<u64> {
        match self.quota_us {
            Some(quota) => Some(quota.get()),
            None => None,
        }
    }

    /// The length of a period in microseconds.
    pub const fn period_us(self) -> u64 {
        self.period_us
    }
}

impl fmt::Display for CpuQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.quota_us {
            Some(quota) => write!(f, "{quota} {}", self.period_us),
            None => write!(f, "max {}", self.period_us),
        }
    }
}

impl FromStr for CpuQuota {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let fail = |why| {
            UnitError::new(
                "a CPU limit",
                text,
                "such as 0.5, 2, \"50000 100000\" or max",
                why,
            )
        };
        let mut words = text.split_whitespace();
        let (first, second, rest) = (words.next().unwrap_or(""), words.next(), words.next());
        if rest.is_some() {
            return Err(fail("there are more than two words"));
        }
        let period_us = match second.map(str::parse::<u64>) {
            None => Self::DEFAULT_PERIOD_US,
            Some(Ok(period)) if Self::PERIOD_US.contains(&period) => period,
            Some(Ok(_)) => {
                return Err(fail(
                    "the period is not between 1000 and 1000000 microseconds",
                ));
            }
            Some(Err(_)) => return Err(fail("the period is not a whole number of microseconds")),
        };
        if first == "max" {
            return Ok(Self {
                quota_us: None,
                period_us,
            });
        }
        // One word alone is a number of CPUs unless it is at least the smallest quota the kernel takes:
        // `cpu.max` itself may be written "50000", and nobody has a thousand CPUs to give away.
        let quota_us = match (first.parse::<u64>(), first.parse::<f64>()) {
            (Ok(quota), _) if second.is_some() || quota >= Self::MIN_QUOTA_US => quota,
            (_, Ok(cpus)) if second.is_none() && cpus > 0.0 && cpus.is_finite() => {
                // Bounded above by the branch before: fewer than 1000 CPUs.
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    clippy::cast_precision_loss
                )]
                let quota = (cpus * Self::DEFAULT_PERIOD_US as f64).round() as u64;
                quota
            }
            (_, Ok(_)) if second.is_none() => return Err(fail("it is not more than zero")),
            _ => return Err(fail("the quota is not a number")),
        };
        if quota_us < Self::MIN_QUOTA_US {
            return Err(fail(
                "it is below 1000 microseconds in a period, the least the kernel takes",
            ));
        }
        Ok(Self {
            quota_us: NonZeroU64::new(quota_us),
            period_us,
        })
    }
}

impl TryFrom<String> for CpuQuota {
    type Error = UnitError;
    fn try_from(text: String) -> Result<Self, UnitError> {
        text.parse()
    }
}

impl From<CpuQuota> for String {
    fn from(quota: CpuQuota) -> Self {
        quota.to_string()
    }
}

/// Why a text is not a quantity: what was expected, what was given, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not {expected} ({example}): {why}")]
pub struct UnitError {
    expected: &'static str,
    given: String,
    example: &'static str,
    why: &'static str,
}

impl UnitError {
    pub(crate) fn new(
        expected: &'static str,
        given: &str,
        example: &'static str,
        why: &'static str,
    ) -> Self {
        Self {
            expected,
            given: given.to_owned(),
            example,
            why,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_reads_what_people_write() {
        for (text, expected) in [
            ("0", 0),
            ("4096", 4096),
            ("100M", 100 << 20),
            ("100m", 100 << 20),
            ("1 GiB", 1 << 30),
            ("2gb", 2 << 30),
            ("5k", 5 << 10),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(expected)), "{text}");
        }
    }

    #[test]
    fn bytes_refuses_and_says_why() {
        let error = "10Q".parse::<Bytes>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "`10Q` is not an amount of bytes (such as 65536, 64M or 1G): the unit is none of k, M, G, T"
        );
        for text in [
            "",
            "M",
            "-1",
            "1.5G",
            "99999999999999999999",
            "99999999999T",
        ] {
            assert!(text.parse::<Bytes>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn cpu_reads_cgroup_syntax_and_cpus() {
        for (text, expected) in [
            ("100000 100000", "100000 100000"),
            ("50000", "50000 100000"),
            ("max", "max 100000"),
            ("max 50000", "max 50000"),
            ("0.5", "50000 100000"),
            ("2", "200000 100000"),
        ] {
            assert_eq!(
                text.parse::<CpuQuota>().map(|q| q.to_string()),
                Ok(expected.to_owned()),
                "{text}"
            );
        }
        for text in [
            "",
            "0",
            "-1",
            "half",
            "1 2 3",
            "100000 10",
            "NaN",
            "inf",
            "0.001",
        ] {
            assert!(text.parse::<CpuQuota>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn bytes_print_and_parse_are_inverse(count: u64) {
            prop_assert_eq!(Bytes(count).to_string().parse(), Ok(Bytes(count)));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,40}") {
            let _ = text.parse::<Bytes>();
            let _ = text.parse::<CpuQuota>();
        }
    }
}
