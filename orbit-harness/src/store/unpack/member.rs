//! The members of a tar archive, one after the other, from a stream.
//!
//! The `tar` crate reads the fields of a header; the framing is here, so that what describes a member (PAX, GNU
//! long names, maps of sparse files) is bounded in size, and so that an archive that different readers would
//! take for different trees is refused (CVE-2025-62518: a PAX size that differs from the header's).
//!
//! Nothing here touches the file system.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, Header};

use super::{
    error::{Reason, UnpackError, UnpackStep},
    pax::{Pax, PaxSparse},
    sparse::SparseMap,
};

const BLOCK_BYTES: u64 = 512;
/// What describes one member: real ones are a few hundred bytes, with extended attributes at most 64 KiB each.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

/// One member as its headers describe it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) kind: EntryType,
    /// As written: not yet checked.
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the content goes, where it has holes.
    pub(super) sparse: Option<SparseMap>,
}

/// Reads members; the content of the last one is read by [`Members::read`].
pub(super) struct Members<R> {
    inner: R,
    /// Of the current member: bytes of content, and of padding behind it, not yet read.
    content_left: u64,
    padding_left: u64,
}

fn fault(reason: Reason) -> UnpackError {
    UnpackError::new(UnpackStep::ReadArchive, b"", reason)
}

fn io_fault(error: &io::Error) -> UnpackError {
    UnpackError::io(UnpackStep::ReadArchive, b"", error)
}

/// What headers of their own say about the member that follows.
#[derive(Default)]
struct Extensions {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> Members<R> {
    pub(super) fn new(inner: R) -> Self {
        Self {
            inner,
            content_left: 0,
            padding_left: 0,
        }
    }

    pub(super) fn into_inner(self) -> R {
        self.inner
    }

    /// The next member, or `None` at the end of the archive.
    pub(super) fn next(&mut self) -> Result<Option<Member>, UnpackError> {
        let mut extensions = Extensions::default();
        loop {
            let Some(header) = self.next_header()? else {
                let describes_nothing = extensions.pax.is_none()
                    && extensions.long_name.is_none()
                    && extensions.long_link.is_none();
                return if describes_nothing {
                    Ok(None)
                } else {
                    Err(fault(Reason::Truncated))
                };
            };
            let size = header.entry_size().map_err(|_| fault(Reason::BadHeader))?;
            let slot_taken = match header.entry_type() {
                EntryType::XHeader => {
                    let content = self.extension(size)?;
                    extensions
                        .pax
                        .replace(Pax::parse(&content).map_err(fault)?)
                        .is_some()
                }
                EntryType::XGlobalHeader => {
                    let content = self.extension(size)?;
                    Pax::check_global(&content).map_err(fault)?;
                    false
                }
                EntryType::GNULongName => {
                    let name = self.long_name(size)?;
                    extensions.long_name.replace(name).is_some()
                }
                EntryType::GNULongLink => {
                    let name = self.long_name(size)?;
                    extensions.long_link.replace(name).is_some()
                }
                _ => return self.member(&header, size, extensions).map(Some),
            };
            if slot_taken {
                return Err(fault(Reason::BadHeader));
            }
        }
    }

    /// Reads content of the current member; 0 at its end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.content_left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let length = self.inner.read(&mut buffer[..wanted])?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.content_left -= length as u64;
        Ok(length)
    }

    fn next_header(&mut self) -> Result<Option<Header>, UnpackError> {
        let skipped = self.content_left.saturating_add(self.padding_left);
        let count = io::copy(&mut (&mut self.inner).take(skipped), &mut io::sink())
            .map_err(|e| io_fault(&e))?;
        if count != skipped {
            return Err(fault(Reason::Truncated));
        }
        (self.content_left, self.padding_left) = (0, 0);
        let mut header = Header::new_old();
        // Archives that end without the two zero blocks are common: an end between members is an end.
        if !self.fill(header.as_mut_bytes())? || header.as_bytes().iter().all(|b| *b == 0) {
            return Ok(None);
        }
        check_sum(&header)?;
        Ok(Some(header))
    }

    /// Fills `buffer`; `false` where the stream ends before its first byte.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool, UnpackError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.inner.read(&mut buffer[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(fault(Reason::Truncated)),
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_fault(&error)),
            }
        }
        Ok(true)
    }

    fn expect_content(&mut self, size: u64) {
        self.content_left = size;
        self.padding_left = size.wrapping_neg() % BLOCK_BYTES;
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        let length = usize::try_from(size.min(MAX_EXTENSION_BYTES + 1)).unwrap_or(usize::MAX);
        if size > MAX_EXTENSION_BYTES {
            return Err(fault(Reason::HeaderTooLarge {
                limit: MAX_EXTENSION_BYTES,
            }));
        }
        self.expect_content(size);
        let mut content = vec![0; length];
        if length > 0 && !self.fill(&mut content)? {
            return Err(fault(Reason::Truncated));
        }
        self.content_left = 0;
        Ok(content)
    }

    /// GNU's long names end with a NUL.
    fn long_name(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        let mut name = self.extension(size)?;
        if let Some(end) = name.iter().position(|b| *b == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    fn member(
        &mut self,
        header: &Header,
        header_size: u64,
        extensions: Extensions,
    ) -> Result<Member, UnpackError> {
        let has_pax = extensions.pax.is_some();
        let Extensions {
            pax,
            long_name,
            long_link,
        } = extensions;
        let pax = pax.unwrap_or_default();
        // No writer uses both, and readers prefer different ones.
        if (long_name.is_some() && pax.path.is_some())
            || (long_link.is_some() && pax.link_path.is_some())
        {
            return Err(fault(Reason::BadPax));
        }
        let path = long_name
            .or(pax.path)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = long_link
            .or(pax.link_path)
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .unwrap_or_default();
        let named = |reason| UnpackError::new(UnpackStep::ReadArchive, &path, reason);
        let size = pax.size.unwrap_or(header_size);
        let kind = match header.entry_type() {
            // Before POSIX, a directory was told by its slash.
            EntryType::Regular if path.ends_with(b"/") && size == 0 => EntryType::Directory,
            EntryType::Continuous => EntryType::Regular,
            other => other,
        };
        if size != 0
            && matches!(
                kind,
                EntryType::Link
                    | EntryType::Symlink
                    | EntryType::Char
                    | EntryType::Block
                    | EntryType::Directory
                    | EntryType::Fifo
            )
        {
            return Err(named(Reason::AmbiguousSize));
        }
        let bad = |_| named(Reason::BadHeader);
        let mut member = Member {
            kind,
            link,
            mode: header.mode().map_err(bad)? & 0o7777,
            uid: pax.uid.map_or_else(|| header.uid(), Ok).map_err(bad)?,
            gid: pax.gid.map_or_else(|| header.gid(), Ok).map_err(bad)?,
            // A time that no file system keeps is no reason to refuse an image.
            mtime: pax.mtime.unwrap_or_else(|| {
                let seconds = header.mtime().unwrap_or(0);
                (i64::try_from(seconds).unwrap_or(0), 0)
            }),
            xattrs: pax.xattrs,
            sparse: None,
            path,
        };
        self.expect_content(size);
        let sparse = if kind == EntryType::GNUSparse {
            member.kind = EntryType::Regular;
            // Its size in PAX would be a second opinion about the same bytes.
            if has_pax && pax.size.is_some() {
                return Err(UnpackError::new(
                    UnpackStep::ReadArchive,
                    &member.path,
                    Reason::BadSparseMap,
                ));
            }
            Some(self.gnu_sparse_map(header)?)
        } else if kind == EntryType::Regular {
            self.pax_sparse_map(pax.sparse, &mut member)?
        } else {
            None
        };
        if let Some(map) = &sparse
            && map.data_bytes() != self.content_left
        {
            return Err(UnpackError::new(
                UnpackStep::ReadArchive,
                &member.path,
                Reason::BadSparseMap,
            ));
        }
        member.sparse = sparse;
        Ok(member)
    }

    /// Four pieces in the header, and 21 in each block that follows it, before the content.
    fn gnu_sparse_map(&mut self, header: &Header) -> Result<SparseMap, UnpackError> {
        let bad = || fault(Reason::BadSparseMap);
        let gnu = header.as_gnu().ok_or_else(bad)?;
        let mut numbers = Vec::new();
        let mut add = |piece: &tar::GnuSparseHeader| -> Result<(), UnpackError> {
            if !piece.is_empty() {
                numbers.push(piece.offset().map_err(|_| bad())?);
                numbers.push(piece.length().map_err(|_| bad())?);
            }
            if numbers.len() > SparseMap::MAX_NUMBERS {
                return Err(bad());
            }
            Ok(())
        };
        gnu.sparse.iter().try_for_each(&mut add)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            if !self.fill(block.as_mut_bytes())? {
                return Err(fault(Reason::Truncated));
            }
            block.sparse().iter().try_for_each(&mut add)?;
            more = block.is_extended();
        }
        let real_size = gnu.real_size().map_err(|_| bad())?;
        SparseMap::new(&numbers, real_size).map_err(fault)
    }

    fn pax_sparse_map(
        &mut self,
        sparse: PaxSparse,
        member: &mut Member,
    ) -> Result<Option<SparseMap>, UnpackError> {
        let numbers = if sparse.is_version_1 {
            self.leading_map()?
        } else if sparse.map.is_empty() {
            return Ok(None);
        } else {
            sparse.map
        };
        if let Some(name) = sparse.name {
            member.path = name;
        }
        let real_size = sparse
            .real_size
            .ok_or_else(|| fault(Reason::BadSparseMap))?;
        SparseMap::new(&numbers, real_size).map(Some).map_err(fault)
    }

    /// Version 1.0 keeps the map in front of the content: decimal numbers, each on a line, the first of them how
    /// many pairs follow, padded to a block.
    fn leading_map(&mut self) -> Result<Vec<u64>, UnpackError> {
        let bad = || fault(Reason::BadSparseMap);
        let mut numbers: Vec<u64> = Vec::new();
        let mut expected = 1;
        let mut line = Some(0_u64);
        let mut digits = 0;
        loop {
            let mut block = [0; 512];
            if self.content_left < BLOCK_BYTES {
                return Err(bad());
            }
            if !self.fill(&mut block)? {
                return Err(fault(Reason::Truncated));
            }
            self.content_left -= BLOCK_BYTES;
            for byte in block {
                match byte {
                    b'0'..=b'9' => {
                        digits += 1;
                        line = line
                            .and_then(|n| n.checked_mul(10)?.checked_add(u64::from(byte - b'0')));
                    }
                    b'\n' if digits > 0 => {
                        numbers.push(line.ok_or_else(bad)?);
                        (line, digits) = (Some(0), 0);
                        if numbers.len() == 1 {
                            let pairs = usize::try_from(numbers[0]).map_err(|_| bad())?;
                            expected = pairs
                                .checked_mul(2)
                                .and_then(|n| n.checked_add(1))
                                .ok_or_else(bad)?;
                            if expected > SparseMap::MAX_NUMBERS {
                                return Err(bad());
                            }
                        }
                        if numbers.len() == expected {
                            numbers.remove(0);
                            return Ok(numbers);
                        }
                    }
                    _ => return Err(bad()),
                }
            }
        }
    }
}

/// The sum of all bytes, with the checksum's own as spaces; some old writers summed signed bytes.
fn check_sum(header: &Header) -> Result<(), UnpackError> {
    let expected = header.cksum().map_err(|_| fault(Reason::BadChecksum))?;
    let bytes = header.as_bytes();
    let others = || bytes[..148].iter().chain(&bytes[156..]);
    let unsigned: u32 = others().map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
    let signed: i32 = others().map(|b| i32::from(b.cast_signed())).sum::<i32>() + 8 * 32;
    if expected == unsigned || i32::try_from(expected) == Ok(signed) {
        Ok(())
    } else {
        Err(fault(Reason::BadChecksum))
    }
}
