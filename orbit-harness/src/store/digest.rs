//! SHA-256 digests as registries write them, and readers that compute them on the way.
//!
//! Only SHA-256 is known: it is what every registry in use serves. A digest of another algorithm is refused by
//! name, never skipped.

use std::{
    fmt,
    io::{self, Read},
    str::FromStr,
};

use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Serialize};

/// The SHA-256 of some content, written `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    /// Length in hexadecimal digits of the names of layer directories: 128 bits, so that the options of a mount
    /// of a hundred layers fit in a page. The full digest lies beside the directory and is compared at each use.
    const SHORT_NAME_DIGITS: usize = 32;

    pub(crate) fn of(content: &[u8]) -> Self {
        Self::from_ring(digest(&SHA256, content))
    }

    fn from_ring(digest: ring::digest::Digest) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }

    /// 64 hexadecimal digits, without the algorithm: a file's name.
    pub(crate) fn hex(&self) -> String {
        use fmt::Write as _;
        self.0
            .iter()
            .fold(String::with_capacity(64), |mut text, byte| {
                // Writing to a String cannot fail.
                let _ = write!(text, "{byte:02x}");
                text
            })
    }

    /// The first 32 hexadecimal digits: the name of a layer's directory.
    pub(crate) fn short_name(&self) -> String {
        let mut name = self.hex();
        name.truncate(Self::SHORT_NAME_DIGITS);
        name
    }

    /// Twelve hexadecimal digits, as people know them from progress lines.
    pub(crate) fn label(&self) -> String {
        let mut label = self.hex();
        label.truncate(12);
        label
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a digest that Orbit can verify.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a digest: expected `sha256:` and 64 lower-case hexadecimal digits")]
pub(crate) struct DigestError {
    given: String,
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let fault = || DigestError {
            // A hostile registry chooses this text: show a line of it, not a page.
            given: text.chars().take(100).collect(),
        };
        let hex = text.strip_prefix("sha256:").ok_or_else(fault)?.as_bytes();
        let mut bytes = [0; 32];
        if hex.len() != 2 * bytes.len() {
            return Err(fault());
        }
        let digit = |character: u8| match character {
            b'0'..=b'9' => Ok(character - b'0'),
            b'a'..=b'f' => Ok(character - b'a' + 10),
            _ => Err(fault()),
        };
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Content that is hashed piece by piece.
#[derive(Clone)]
pub(crate) struct Hasher(Context);

impl Default for Hasher {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Hasher {
    pub(crate) fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    pub(crate) fn finish(self) -> Digest {
        Digest::from_ring(self.0.finish())
    }
}

/// Hashes and counts what is read through it.
pub(crate) struct HashingReader<R> {
    inner: R,
    hasher: Option<Hasher>,
    count: u64,
}

impl<R: Read> HashingReader<R> {
    /// `hashing` off only counts: for content that was verified before.
    pub(crate) fn new(inner: R, hashing: bool) -> Self {
        Self {
            inner,
            hasher: hashing.then(Hasher::default),
            count: 0,
        }
    }

    /// How many bytes were read, and their digest where it was asked for.
    pub(crate) fn finish(self) -> (u64, Option<Digest>) {
        (self.count, self.hasher.map(Hasher::finish))
    }

    /// What was read from, and the digest where it was asked for.
    pub(crate) fn into_parts(self) -> (R, Option<Digest>) {
        (self.inner, self.hasher.map(Hasher::finish))
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..length]);
        }
        self.count += length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_digest_of_nothing_is_the_known_one() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse(), Ok(Digest::of(b"")));
        assert_eq!(
            Digest::of(b"").short_name(),
            "e3b0c44298fc1c149afbf4c8996fb924"
        );
    }

    #[test]
    fn what_cannot_be_verified_is_refused() {
        for text in [
            "",
            "sha256:",
            "sha512:00",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
            "sha256:../../../../../../../../../../../../../../../../../../../../../etc",
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_digest_prints_as_it_parses(bytes: [u8; 32]) {
            prop_assert_eq!(Digest(bytes).to_string().parse(), Ok(Digest(bytes)));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,80}") {
            let _ = text.parse::<Digest>();
            let _ = format!("sha256:{text}").parse::<Digest>();
        }
    }
}
