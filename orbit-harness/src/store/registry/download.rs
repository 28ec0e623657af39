//! A layer's blob from a registry into a file: resumed where it broke off, and verified whole.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    thread,
};

use ureq::{
    Body,
    http::{Response, StatusCode, header},
};

use super::{
    super::{
        digest::{Digest, Hasher},
        error::StoreError,
        manifest::Descriptor,
    },
    error::RegistryError,
    http::Client,
    pace::Paced,
};

const COPY_BYTES: usize = 64 << 10;
/// An attempt that brought this much was none in vain: it does not count against the number of attempts.
const PROGRESS_BYTES: u64 = 256 << 10;

/// What became of one request.
enum Piece {
    Complete,
    /// Broke off; what came is in the file.
    Broken(RegistryError),
}

pub(super) struct Download<'a> {
    pub(super) client: &'a Client,
    pub(super) descriptor: &'a Descriptor,
    pub(super) file: &'a File,
    /// Where the file is, for messages.
    pub(super) path: &'a std::path::Path,
    /// Called with how many bytes are there.
    pub(super) tell: &'a dyn Fn(u64),
}

impl Download<'_> {
    /// Brings the blob into the file. What is in the file already is taken for its beginning, as an earlier
    /// process left it, until the digest says otherwise.
    pub(super) fn run(&self) -> Result<(), StoreError> {
        let url = self
            .client
            .url(&format!("blobs/{}", self.descriptor.digest));
        let mut failures = 0;
        let mut had_beginning = false;
        let mut hasher = Hasher::default();
        let mut done = 0;
        if self.length()? > 0 {
            had_beginning = true;
            (hasher, done) = self.hash_beginning()?;
        }
        loop {
            if done < self.descriptor.size || (done == 0 && self.descriptor.size == 0) {
                let before = done;
                match self.piece(&url, &mut hasher, &mut done)? {
                    Piece::Complete => {}
                    Piece::Broken(error) => {
                        failures = if done.saturating_sub(before) >= PROGRESS_BYTES {
                            0
                        } else {
                            failures + 1
                        };
                        if failures >= self.client.timing().attempts {
                            return Err(error.into());
                        }
                        thread::sleep(self.client.backoff(failures));
                        continue;
                    }
                }
            }
            let found = std::mem::take(&mut hasher).finish();
            if found == self.descriptor.digest {
                return Ok(());
            }
            self.restart(&mut hasher, &mut done)?;
            if !had_beginning {
                return Err(self.mismatch(&url, found).into());
            }
            // What an earlier process left may be at fault, as after a power cut: once more, from the start.
            had_beginning = false;
        }
    }

    fn mismatch(&self, url: &str, found: Digest) -> RegistryError {
        RegistryError::Mismatch {
            url: url.to_owned(),
            what: "another blob",
            expected: self.descriptor.digest.to_string(),
            found: found.to_string(),
        }
    }

    fn piece(&self, url: &str, hasher: &mut Hasher, done: &mut u64) -> Result<Piece, StoreError> {
        let response = self.client.get(url, "", *done)?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if *done > 0 && range_start(&response) == Some(*done) => {}
            StatusCode::OK => {
                if let Some(length) = content_length(&response)
                    && length != self.descriptor.size
                {
                    return Err(RegistryError::Mismatch {
                        url: url.to_owned(),
                        what: "a blob of another length",
                        expected: format!("{} bytes", self.descriptor.size),
                        found: format!("{length} bytes"),
                    }
                    .into());
                }
                // All of it, whatever was asked for.
                self.restart(hasher, done)?;
            }
            // The range is not to its liking: from the start.
            _ if *done > 0 => {
                self.restart(hasher, done)?;
                return Ok(Piece::Broken(RegistryError::Protocol {
                    url: url.to_owned(),
                    why: "another part of the blob than was asked for".to_owned(),
                }));
            }
            status => {
                return Err(RegistryError::Protocol {
                    url: url.to_owned(),
                    why: format!("status {status} to a request for a whole blob"),
                }
                .into());
            }
        }
        let mut reader = Paced::new(response.into_body().into_reader(), self.client.timing());
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let length = match reader.read(&mut buffer) {
                Ok(0) if *done == self.descriptor.size => return Ok(Piece::Complete),
                Ok(0) => {
                    return Ok(Piece::Broken(self.broken(
                        url,
                        *done,
                        &io::ErrorKind::UnexpectedEof.into(),
                    )));
                }
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // Whole, and then an error: the digest will tell.
                Err(_) if *done == self.descriptor.size => return Ok(Piece::Complete),
                Err(error) => return Ok(Piece::Broken(self.broken(url, *done, &error))),
            };
            let end = *done + length as u64;
            if end > self.descriptor.size {
                self.restart(hasher, done)?;
                return Err(RegistryError::Mismatch {
                    url: url.to_owned(),
                    what: "more bytes",
                    expected: format!("{} bytes", self.descriptor.size),
                    found: format!("at least {end} bytes"),
                }
                .into());
            }
            self.file
                .write_all_at(&buffer[..length], *done)
                .map_err(StoreError::io("write", self.path))?;
            hasher.update(&buffer[..length]);
            *done = end;
            (self.tell)(end);
        }
    }

    fn broken(&self, url: &str, done: u64, error: &io::Error) -> RegistryError {
        RegistryError::Unreachable {
            url: url.to_owned(),
            why: format!("after {done} of {} bytes: {error}", self.descriptor.size),
            attempts: self.client.timing().attempts,
        }
    }

    fn length(&self) -> Result<u64, StoreError> {
        let meta = self.file.metadata();
        Ok(meta.map_err(StoreError::io("read", self.path))?.len())
    }

    fn restart(&self, hasher: &mut Hasher, done: &mut u64) -> Result<(), StoreError> {
        (*hasher, *done) = (Hasher::default(), 0);
        self.file
            .set_len(0)
            .map_err(StoreError::io("write", self.path))
    }

    /// Hashes what an earlier process left, and drops what is too much.
    fn hash_beginning(&self) -> Result<(Hasher, u64), StoreError> {
        let (mut hasher, mut done) = (Hasher::default(), 0);
        if self.length()? > self.descriptor.size {
            self.restart(&mut hasher, &mut done)?;
        }
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            match self.file.read_at(&mut buffer, done) {
                Ok(0) => return Ok((hasher, done)),
                Ok(length) => {
                    hasher.update(&buffer[..length]);
                    done += length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(StoreError::io("read", self.path)(error)),
            }
        }
    }
}

fn content_length(response: &Response<Body>) -> Option<u64> {
    let value = response.headers().get(header::CONTENT_LENGTH)?;
    value.to_str().ok()?.trim().parse().ok()
}

/// `bytes 100-199/200`
fn range_start(response: &Response<Body>) -> Option<u64> {
    let value = response
        .headers()
        .get(header::CONTENT_RANGE)?
        .to_str()
        .ok()?;
    let (start, _) = value
        .trim()
        .strip_prefix("bytes")?
        .trim_start()
        .split_once('-')?;
    start.parse().ok()
}
