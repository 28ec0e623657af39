//! From the bytes of a blob to the bytes of a tar archive.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use serde::{Deserialize, Serialize};

use super::error::LimitReached;

/// How a layer's blob is compressed. Told by its first bytes and not by the media type, which some tools get
/// wrong; the digest of the content is verified either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// How many bytes [`Compression::sniff`] looks at.
    pub(crate) const MAGIC_BYTES: usize = 4;

    pub(crate) fn sniff(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable frame before the first.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

const BUFFER_BYTES: usize = 64 << 10;

/// Decompresses a blob, of any number of gzip members or zstd frames.
pub(super) enum Decoder<R: Read> {
    Plain(BufReader<R>),
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(zstd::stream::read::Decoder<'static, BufReader<R>>),
}

impl<R: Read> Decoder<R> {
    pub(super) fn new(blob: R, compression: Compression) -> io::Result<Self> {
        let blob = BufReader::with_capacity(BUFFER_BYTES, blob);
        Ok(match compression {
            Compression::None => Self::Plain(blob),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(blob))),
            // The window stays at zstd's default bound of 128 MiB: a frame that asks for more is refused.
            Compression::Zstd => Self::Zstd(zstd::stream::read::Decoder::with_buffer(blob)?),
        })
    }

    /// Reads what is left of the blob behind the compressed data, so that all of it was seen.
    pub(super) fn finish(self) -> io::Result<R> {
        let mut blob = match self {
            Self::Plain(blob) => blob,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        };
        loop {
            match blob.fill_buf()?.len() {
                0 => return Ok(blob.into_inner()),
                length => blob.consume(length),
            }
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(blob) => blob.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// Fails, instead of ending, where more than `limit` bytes come: a gzip bomb must not pass for a short archive.
pub(super) struct Limited<R> {
    inner: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Limited<R> {
    pub(super) fn new(inner: R, limit: u64) -> Self {
        Self {
            inner,
            left: limit,
            limit,
        }
    }

    pub(super) fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(length as u64)
            .ok_or_else(|| io::Error::other(LimitReached(self.limit)))?;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn decode(blob: &[u8]) -> io::Result<Vec<u8>> {
        let mut decoder = Decoder::new(blob, Compression::sniff(blob))?;
        let mut content = Vec::new();
        decoder.read_to_end(&mut content)?;
        decoder.finish()?;
        Ok(content)
    }

    #[test]
    fn members_and_frames_follow_each_other() {
        let parts = [gzip(b"one "), gzip(b""), gzip(b"two")].concat();
        assert_eq!(decode(&parts).unwrap(), b"one two");
        let frame = |content: &[u8]| zstd::stream::encode_all(content, 1).unwrap();
        let skippable = [
            &[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9][..],
            &frame(b"x"),
        ]
        .concat();
        assert_eq!(decode(&skippable).unwrap(), b"x");
        assert_eq!(
            decode(&[frame(b"one "), frame(b"two")].concat()).unwrap(),
            b"one two"
        );
        assert_eq!(decode(b"plain").unwrap(), b"plain");
    }

    #[test]
    fn a_cut_stream_is_an_error_and_not_an_end() {
        let whole = gzip(&[7; 10_000]);
        for length in 1..whole.len() {
            let cut = &whole[..length];
            let decoder = Decoder::new(cut, Compression::Gzip);
            assert!(
                decoder
                    .and_then(|mut d| io::copy(&mut d, &mut io::sink()))
                    .is_err()
            );
        }
        let whole = zstd::stream::encode_all(&[7; 10_000][..], 1).unwrap();
        assert!(decode(&whole[..whole.len() - 1]).is_err());
    }

    #[test]
    fn a_limit_is_an_error_and_not_an_end() {
        let read = |limit| io::copy(&mut Limited::new(&b"12345"[..], limit), &mut io::sink());
        assert_eq!(read(5).unwrap(), 5);
        assert!(read(4).unwrap_err().get_ref().unwrap().is::<LimitReached>());
    }
}
