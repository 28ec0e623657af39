//! [`Rate`]: how much passes a wire in a second.

use std::{fmt, num::NonZeroU64, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, UnitError};

/// How much passes a wire in a second, as tc(8) writes it: `1mbit`, `64kbit`, `1.5gbit`. Thousands, not 1024s.
///
/// ```
/// let rate: orbit::Rate = "8mbit".parse()?;
/// assert_eq!(rate.bytes_per_second(), 1_000_000);
/// assert_eq!(rate.to_string(), "8mbit");
/// assert!("8mbps".parse::<orbit::Rate>().is_err()); // bits for some, bytes for tc
/// # Ok::<(), orbit::UnitError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate {
    bits: NonZeroU64,
}

impl Rate {
    /// So many bytes a second; one at least.
    pub fn bytes(bytes: Bytes) -> Self {
        let bits = bytes.as_u64().saturating_mul(8).min(FASTEST_BITS);
        Self {
            bits: NonZeroU64::new(bits).unwrap_or(EIGHT),
        }
    }

    /// The bytes that pass in a second.
    pub fn bytes_per_second(self) -> u64 {
        self.bits.get() / 8
    }

    /// How long so many bytes take.
    pub(crate) fn time_for(self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 8 * 1_000_000_000 / u128::from(self.bits.get());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

const FASTEST_BITS: u64 = 1_000_000_000_000_000;
const EIGHT: NonZeroU64 = NonZeroU64::new(8).unwrap();
const UNITS: [(&str, u64); 4] = [
    ("gbit", 1_000_000_000),
    ("mbit", 1_000_000),
    ("kbit", 1_000),
    ("bit", 1),
];

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let fail = |why| UnitError::new("a rate", text, "such as 64kbit, 1mbit or 1gbit", why);
        let lower = text.trim().to_ascii_lowercase();
        let unit = UNITS
            .iter()
            .find_map(|(unit, scale)| Some((lower.strip_suffix(unit)?, *scale)));
        let Some((number, scale)) = unit else {
            return Err(fail(
                "the unit is none of bit, kbit, mbit and gbit; for bytes a second, give `Bytes`",
            ));
        };
        let number = number.trim_end();
        let plain = number
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
        let value: f64 = match number.parse() {
            Ok(value) if plain => value,
            _ => return Err(fail("it does not start with a number")),
        };
        #[expect(clippy::cast_precision_loss, reason = "a billion fits")]
        let bits = (value * scale as f64).round();
        if bits < 8.0 {
            return Err(fail(
                "it is less than a byte a second; to lose everything, set a loss of 1",
            ));
        }
        #[expect(clippy::cast_precision_loss, reason = "a power of ten")]
        if bits > FASTEST_BITS as f64 {
            return Err(fail("it is faster than any wire"));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bounded above"
        )]
        let bits = bits as u64;
        Ok(Self {
            bits: NonZeroU64::new(bits).unwrap_or(EIGHT),
        })
    }
}

/// Prints the largest unit that divides it.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.bits.get();
        let fits = UNITS.iter().find(|(_, scale)| bits.is_multiple_of(*scale));
        let (unit, scale) = fits.unwrap_or(&("bit", 1));
        write!(f, "{}{unit}", bits / scale)
    }
}

impl TryFrom<String> for Rate {
    type Error = UnitError;

    fn try_from(text: String) -> Result<Self, UnitError> {
        text.parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_rate_is_one_clear_error() {
        let texts = [
            "",
            "1",
            "mbit",
            "-1mbit",
            "1mbps",
            "1MB/s",
            "0mbit",
            "1e9gbit",
            "NaNbit",
            "9999999gbit",
        ];
        let lines: Vec<String> = texts
            .iter()
            .map(|text| match text.parse::<Rate>() {
                Ok(rate) => panic!("{text:?} was read as {rate}"),
                Err(error) => format!("{text:?}: {error}"),
            })
            .collect();
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn rates_are_read_as_tc_reads_them() {
        for (text, bytes) in [
            ("8bit", 1),
            ("64kbit", 8000),
            ("1.5 mbit", 187_500),
            ("1Gbit", 125_000_000),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(rate.bytes_per_second(), bytes, "{text}");
            assert_eq!(rate.to_string().parse(), Ok(rate), "{text}");
        }
        assert_eq!(Rate::bytes(Bytes::new(0)).bytes_per_second(), 1);
        assert_eq!(
            Rate::bytes(Bytes::mib(1)).time_for(1 << 20),
            Duration::from_secs(1)
        );
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[0-9.kmgbits ]{0,12}") {
            let _ = text.parse::<Rate>();
        }
    }
}
