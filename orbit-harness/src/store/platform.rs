//! The platform an image is made for, and the choice of one image among several.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An operating system and a processor, as Go names them: `linux/amd64`, `linux/arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) architecture: String,
    pub(crate) variant: Option<String>,
}

impl Platform {
    /// The platform of this machine: only Linux images run in Orbit.
    pub(crate) fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", None),
            "arm" => ("arm", Some("v7")),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            // riscv64, s390x, loongarch64 and others are named alike.
            other => (other, None),
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// Whether an image that says it is for `os` and `architecture` is for this platform. Older tools write
    /// neither in a configuration: what says nothing is taken.
    pub(crate) fn accepts(&self, os: &str, architecture: &str) -> bool {
        (os.is_empty() || os == self.os)
            && (architecture.is_empty() || architecture == self.architecture)
    }

    /// How well `offer` fits, the higher the better; `None` where it does not run at all.
    ///
    /// An offer without a variant runs on every variant. `arm64` and `arm64/v8` are the same processor. A 32-bit
    /// ARM runs what was made for the versions before it.
    pub(crate) fn fit(&self, offer: &Self) -> Option<u32> {
        if offer.os != self.os || offer.architecture != self.architecture {
            return None;
        }
        match (self.variant.as_deref(), offer.variant.as_deref()) {
            (ours, theirs) if ours == theirs => Some(u32::MAX),
            (_, None) => Some(1),
            (None, Some("v8")) if self.architecture == "arm64" => Some(u32::MAX),
            // amd64/v2 and later need instructions that not every machine has.
            (None, Some("v1")) if self.architecture == "amd64" => Some(u32::MAX),
            (Some(ours), Some(theirs)) if self.architecture == "arm" => {
                let version = |text: &str| text.strip_prefix('v')?.parse::<u32>().ok();
                let (ours, theirs) = (version(ours)?, version(theirs)?);
                (theirs <= ours).then_some(1 + theirs)
            }
            _ => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant
            .iter()
            .try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// Why a text is not a platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a platform such as `linux/amd64` or `linux/arm/v7`")]
pub(crate) struct PlatformError {
    given: String,
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let words: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match words[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => ("", "", None),
        };
        let is_word = |word: &str| {
            !word.is_empty()
                && word
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        if is_word(os) && is_word(architecture) && variant.is_none_or(is_word) {
            Ok(Self {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: variant.map(str::to_owned),
            })
        } else {
            Err(PlatformError {
                given: text.to_owned(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best<'a>(ours: &str, offers: &[&'a str]) -> Option<&'a str> {
        let ours: Platform = ours.parse().unwrap();
        offers
            .iter()
            .filter_map(|offer| Some((ours.fit(&offer.parse().unwrap())?, *offer)))
            .max_by_key(|(fit, _)| *fit)
            .map(|(_, offer)| offer)
    }

    #[test]
    fn the_platform_that_runs_here_is_chosen() {
        let offers = [
            "linux/amd64",
            "linux/arm/v5",
            "linux/arm/v7",
            "linux/arm64/v8",
            "windows/amd64",
        ];
        assert_eq!(best("linux/amd64", &offers), Some("linux/amd64"));
        assert_eq!(best("linux/arm64", &offers), Some("linux/arm64/v8"));
        assert_eq!(best("linux/arm/v7", &offers), Some("linux/arm/v7"));
        assert_eq!(best("linux/arm/v6", &offers), Some("linux/arm/v5"));
        assert_eq!(best("linux/s390x", &offers), None);
        assert_eq!(best("linux/amd64", &["linux/amd64/v3"]), None);
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in [
            "",
            "linux",
            "linux/",
            "Linux/amd64",
            "a/b/c/d",
            "linux/../x",
        ] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
        assert_eq!(Platform::host().to_string().parse(), Ok(Platform::host()));
    }
}
