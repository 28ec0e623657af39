//! A layer as other tools read it: a tar archive, compressed with gzip, with whiteouts in OCI's form.
//!
//! Source: OCI Image Layer Filesystem Changeset; POSIX pax; GNU tar, "Sparse Formats", PAX version 1.0.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fmt::Write as _,
    fs::File,
    io::{self, BufWriter, Write},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::FileExt as _},
    },
};

use flate2::{Compression, write::GzEncoder};
use rustix::{
    fs::{FileType, Mode, OFlags, Stat},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use tar::{EntryType, Header};

use super::{
    seal::{next_data, xattrs},
    tree::{Fault, Tree, child, is_opaque, is_whiteout, names, stat_in, type_of},
};
use crate::store::{Digest, Hasher};

const BLOCK_BYTES: usize = 512;
const COPY_BYTES: usize = 128 << 10;
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// What fits a header's octal fields; more is said in a record before it.
const MAX_HEADER_ID: u32 = 0o7_777_777;
const MAX_HEADER_SIZE: u64 = 0o77_777_777_777;
const MAX_HEADER_NAME: usize = 100;

/// A layer that was written out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exported {
    /// Of the archive.
    pub(crate) diff_id: Digest,
    /// Of the compressed archive.
    pub(crate) blob: Digest,
    pub(crate) blob_bytes: u64,
}

/// Writes the layer in `directory` to `output`.
///
/// # Errors
/// The first file that could not be written; one whose name an archive of layers has no room for.
pub(crate) fn export(directory: OwnedFd, output: File) -> Result<Exported, Fault> {
    let blob = Hashing::new(BufWriter::with_capacity(COPY_BYTES, output));
    let archive = Hashing::new(GzEncoder::new(blob, Compression::default()));
    let mut exporter = Exporter {
        archive,
        tree: Tree(directory),
        links: HashMap::new(),
        buffer: vec![0; COPY_BYTES],
    };
    exporter.directory_entry(OsStr::new(""))?;
    exporter.all()?;
    let finished = (|| {
        exporter.archive.write_all(&[0; 2 * BLOCK_BYTES])?;
        let (encoder, diff_id, _) = exporter.archive.finish();
        let (mut output, blob, blob_bytes) = encoder.finish()?.finish();
        output.flush()?;
        output.get_ref().sync_all()?;
        Ok(Exported {
            diff_id,
            blob,
            blob_bytes,
        })
    })();
    finished.map_err(|error: io::Error| Fault::io("write the archive of a layer", "", &error))
}

/// Hashes and counts what is written through it.
struct Hashing<W> {
    inner: W,
    hasher: Hasher,
    count: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Hasher::default(),
            count: 0,
        }
    }

    fn finish(self) -> (W, Digest, u64) {
        (self.inner, self.hasher.finish(), self.count)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

type Archive = Hashing<GzEncoder<Hashing<BufWriter<File>>>>;

struct Exporter {
    archive: Archive,
    tree: Tree,
    /// The first name of a file with several, by its number.
    links: HashMap<u64, OsString>,
    buffer: Vec<u8>,
}

/// What is said before a header, for what it has no room for.
#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    /// `LENGTH KEY=VALUE\n`, where the length counts itself.
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        let parts = [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat();
        self.0.extend(parts);
    }
}

impl Exporter {
    fn all(&mut self) -> Result<(), Fault> {
        let mut todo = vec![OsString::new()];
        while let Some(path) = todo.pop() {
            let fault = |errno| Fault::new("read", &path, errno);
            let directory = self.tree.directory(&path).map_err(fault)?;
            let mut inner = Vec::new();
            for name in names(&directory).map_err(fault)? {
                let inside = child(&path, &name);
                let fault = |errno| Fault::new("read", &inside, errno);
                let Some(stat) = stat_in(&directory, &name).map_err(fault)? else {
                    continue;
                };
                if name.as_bytes().starts_with(WHITEOUT_PREFIX) {
                    let doing = "save in an OCI layer, where this name would mean that another file was removed,";
                    return Err(Fault::new(doing, &inside, Errno::INVAL));
                }
                if type_of(&stat) == FileType::Directory {
                    self.directory_entry(&inside)?;
                    inner.push(inside);
                } else {
                    self.file_entry(&directory, &name, &inside, &stat)?;
                }
            }
            todo.extend(inner.into_iter().rev());
        }
        Ok(())
    }

    fn directory_entry(&mut self, path: &OsStr) -> Result<(), Fault> {
        let fault = |errno| Fault::new("read", path, errno);
        let directory = self.tree.directory(path).map_err(fault)?;
        let stat = rustix::fs::fstat(&directory).map_err(fault)?;
        let mut records = Records::default();
        for (name, value) in xattrs(directory.as_fd()).map_err(fault)? {
            records.add(&[b"SCHILY.xattr.", &*name].concat(), &value);
        }
        let is_root = path.is_empty();
        let mut name = if is_root {
            b".".to_vec()
        } else {
            path.as_bytes().to_vec()
        };
        name.push(b'/');
        self.header(&name, b"", EntryType::Directory, &stat, 0, records)
            .map_err(|error| Fault::io("write", path, &error))?;
        if !is_root && is_opaque(&directory) {
            let marker = child(path, OsStr::new(".wh..wh..opq"));
            self.empty(marker.as_bytes(), &stat)
                .map_err(|error| Fault::io("write", path, &error))?;
        }
        Ok(())
    }

    fn file_entry(
        &mut self,
        directory: &OwnedFd,
        name: &OsStr,
        path: &OsStr,
        stat: &Stat,
    ) -> Result<(), Fault> {
        let read_fault = |errno| Fault::new("read", path, errno);
        let write_fault = |error: io::Error| Fault::io("write", path, &error);
        if is_whiteout(stat) {
            let (parent, _) = path.as_bytes().split_at(path.len() - name.len());
            let marker = [parent, WHITEOUT_PREFIX, name.as_bytes()].concat();
            return self.empty(&marker, stat).map_err(write_fault);
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino).cloned() {
                let link = first.as_bytes();
                return self
                    .header(
                        path.as_bytes(),
                        link,
                        EntryType::Link,
                        stat,
                        0,
                        Records::default(),
                    )
                    .map_err(write_fault);
            }
            self.links.insert(stat.st_ino, path.to_owned());
        }
        match type_of(stat) {
            FileType::RegularFile => self.regular(directory, name, path, stat),
            FileType::Symlink => {
                let link =
                    rustix::fs::readlinkat(directory, name, Vec::new()).map_err(read_fault)?;
                let records = Records::default();
                self.header(
                    path.as_bytes(),
                    link.as_bytes(),
                    EntryType::Symlink,
                    stat,
                    0,
                    records,
                )
                .map_err(write_fault)
            }
            FileType::Fifo => self
                .header(
                    path.as_bytes(),
                    b"",
                    EntryType::Fifo,
                    stat,
                    0,
                    Records::default(),
                )
                .map_err(write_fault),
            // A layer of Orbit's making has none; an unpacked directory may.
            _ => Ok(()),
        }
    }

    fn regular(
        &mut self,
        directory: &OwnedFd,
        name: &OsStr,
        path: &OsStr,
        stat: &Stat,
    ) -> Result<(), Fault> {
        let read_fault = |errno| Fault::new("read", path, errno);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, name, flags, Mode::empty()).map_err(read_fault)?;
        let file = File::from(file);
        let mut records = Records::default();
        for (name, value) in xattrs(file.as_fd()).map_err(read_fault)? {
            records.add(&[b"SCHILY.xattr.", &*name].concat(), &value);
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut pieces = Vec::new();
        let mut offset = 0;
        while let Some((start, end)) = next_data(&file, offset, size).map_err(read_fault)? {
            pieces.push((start, end - start));
            offset = end;
        }
        let data: u64 = pieces.iter().map(|(_, length)| length).sum();
        let written = if data == size {
            self.header(
                path.as_bytes(),
                b"",
                EntryType::Regular,
                stat,
                size,
                records,
            )
            .and_then(|()| self.content(&file, &[(0, size)], size))
        } else {
            self.sparse(path, stat, records, &file, &mut pieces)
        };
        written.map_err(|error| Fault::io("write", path, &error))
    }

    /// A map of the pieces, in decimal lines and whole blocks, and then the pieces.
    fn sparse(
        &mut self,
        path: &OsStr,
        stat: &Stat,
        mut records: Records,
        file: &File,
        pieces: &mut Vec<(u64, u64)>,
    ) -> io::Result<()> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        // Readers take the end of the last piece for the end of the file.
        pieces.push((size, 0));
        let mut map = format!("{}\n", pieces.len());
        for (offset, length) in &*pieces {
            // Writing to a String cannot fail.
            let _ = write!(map, "{offset}\n{length}\n");
        }
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(BLOCK_BYTES), 0);
        records.add(b"GNU.sparse.major", b"1");
        records.add(b"GNU.sparse.minor", b"0");
        records.add(b"GNU.sparse.name", path.as_bytes());
        records.add(b"GNU.sparse.realsize", size.to_string().as_bytes());
        let data: u64 = pieces.iter().map(|(_, length)| length).sum();
        let stored = map.len() as u64 + data;
        self.header(
            path.as_bytes(),
            b"",
            EntryType::Regular,
            stat,
            stored,
            records,
        )?;
        self.archive.write_all(&map)?;
        self.content(file, pieces, data)
    }

    fn content(&mut self, file: &File, pieces: &[(u64, u64)], stored: u64) -> io::Result<()> {
        for (offset, length) in pieces {
            let (mut at, end) = (*offset, offset + length);
            while at < end {
                let wanted = usize::try_from(end - at)
                    .unwrap_or(usize::MAX)
                    .min(self.buffer.len());
                let count = file.read_at(&mut self.buffer[..wanted], at)?;
                if count == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.archive.write_all(&self.buffer[..count])?;
                at += count as u64;
            }
        }
        self.pad(stored)
    }

    fn pad(&mut self, length: u64) -> io::Result<()> {
        let beyond = usize::try_from(length % BLOCK_BYTES as u64).unwrap_or(0);
        if beyond > 0 {
            self.archive.write_all(&[0; BLOCK_BYTES][beyond..])?;
        }
        Ok(())
    }

    /// A whiteout or a mark: an empty file.
    fn empty(&mut self, path: &[u8], stat: &Stat) -> io::Result<()> {
        let records = Records::default();
        self.header(path, b"", EntryType::Regular, stat, 0, records)
    }

    fn header(
        &mut self,
        path: &[u8],
        link: &[u8],
        kind: EntryType,
        stat: &Stat,
        size: u64,
        mut records: Records,
    ) -> io::Result<()> {
        let needs_record =
            |name: &[u8]| name.len() > MAX_HEADER_NAME || !name.is_ascii() || name.contains(&b'\n');
        let is_sparse = records.0.windows(11).any(|part| part == b"GNU.sparse.");
        if needs_record(path) && !is_sparse {
            records.add(b"path", path);
        }
        if needs_record(link) {
            records.add(b"linkpath", link);
        }
        if stat.st_uid > MAX_HEADER_ID {
            records.add(b"uid", stat.st_uid.to_string().as_bytes());
        }
        if stat.st_gid > MAX_HEADER_ID {
            records.add(b"gid", stat.st_gid.to_string().as_bytes());
        }
        if size > MAX_HEADER_SIZE {
            records.add(b"size", size.to_string().as_bytes());
        }
        if !records.0.is_empty() {
            let mut header = Header::new_ustar();
            put_name(
                &mut header.as_ustar_mut().expect("made as one").name,
                b"PaxHeaders/0",
            );
            header.set_entry_type(EntryType::XHeader);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_size(records.0.len() as u64);
            header.set_cksum();
            self.archive.write_all(header.as_bytes())?;
            self.archive.write_all(&records.0)?;
            self.pad(records.0.len() as u64)?;
        }
        let mut header = Header::new_ustar();
        put_name(&mut header.as_ustar_mut().expect("made as one").name, path);
        put_name(
            &mut header.as_ustar_mut().expect("made as one").linkname,
            link,
        );
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.min(MAX_HEADER_ID).into());
        header.set_gid(stat.st_gid.min(MAX_HEADER_ID).into());
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_size(size.min(MAX_HEADER_SIZE));
        header.set_cksum();
        self.archive.write_all(header.as_bytes())
    }
}

/// As much of `name` as fits; where it does not, a record before says it whole.
fn put_name(field: &mut [u8; MAX_HEADER_NAME], name: &[u8]) {
    let length = name.len().min(field.len());
    field[..length].copy_from_slice(&name[..length]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_record_counts_its_own_digits() {
        for length in 0..1100 {
            let mut records = Records::default();
            records.add(b"path", &vec![b'x'; length]);
            let text = String::from_utf8(records.0).unwrap();
            let (said, _) = text.split_once(' ').unwrap();
            assert_eq!(said.parse(), Ok(text.len()));
        }
    }
}
