//! PAX extended headers: `LENGTH KEY=VALUE\n`, one after the other.
//!
//! Read here and not by the `tar` crate, which splits at newlines: the value of an extended attribute is binary
//! and may hold one, and what follows it would pass for a record of its own (a path, a size).
//!
//! Source: POSIX.1-2017, pax, "pax Extended Header".

use super::error::Reason;

/// What the records of one header say that Orbit understands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    /// Seconds and nanoseconds.
    pub(super) mtime: Option<(i64, u32)>,
    /// Names without the prefix, with their values.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

/// GNU's sparse files in PAX clothing, in the three versions that were in use.
///
/// Source: GNU tar manual, "Storing Sparse Files", "PAX Format, Versions 0.0 and 0.1, 1.0".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PaxSparse {
    pub(super) is_version_1: bool,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Offset, length, offset, length …: versions 0.0 and 0.1.
    pub(super) map: Vec<u64>,
}

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

impl Pax {
    /// Reads all records; a later one of the same name wins, as POSIX says.
    pub(super) fn parse(content: &[u8]) -> Result<Self, Reason> {
        let mut pax = Self::default();
        let mut rest = content;
        while !rest.is_empty() {
            let (key, value, after) = split_record(rest).ok_or(Reason::BadPax)?;
            pax.take(key, value)?;
            rest = after;
        }
        Ok(pax)
    }

    /// A header for all entries that follow. Readers differ in whether they obey it, so one that would change
    /// what the archive holds is refused; the common one, git's comment, says nothing.
    pub(super) fn check_global(content: &[u8]) -> Result<(), Reason> {
        let pax = Self::parse(content)?;
        let harmless = Self {
            mtime: pax.mtime,
            ..Self::default()
        };
        if pax == harmless {
            Ok(())
        } else {
            Err(Reason::BadPax)
        }
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Reason> {
        match key {
            b"path" => self.path = Some(name(value)?),
            b"linkpath" => self.link_path = Some(name(value)?),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.major" => self.sparse.is_version_1 = number(value)? == 1,
            b"GNU.sparse.name" => self.sparse.name = Some(name(value)?),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.real_size = Some(number(value)?);
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.map.push(number(value)?),
            b"GNU.sparse.map" => {
                self.sparse.map = value
                    .split(|b| *b == b',')
                    .map(number)
                    .collect::<Result<_, _>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                    self.xattrs.retain(|(known, _)| known != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// Key, value, and what follows the record.
fn split_record(content: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = content.iter().take(20).position(|b| *b == b' ')?;
    let length = usize::try_from(number(&content[..space]).ok()?).ok()?;
    let record = content.get(space + 1..length)?;
    let body = record.strip_suffix(b"\n")?;
    let equals = body.iter().position(|b| *b == b'=')?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    if key.is_empty() || key.contains(&0) {
        return None;
    }
    Some((key, value, &content[length..]))
}

fn name(value: &[u8]) -> Result<Vec<u8>, Reason> {
    if value.contains(&0) {
        return Err(Reason::Nul);
    }
    if value.is_empty() {
        return Err(Reason::EmptyName);
    }
    Ok(value.to_vec())
}

fn number(value: &[u8]) -> Result<u64, Reason> {
    // `parse` alone would take a leading `+`.
    if value.first().is_some_and(u8::is_ascii_digit)
        && let Ok(text) = std::str::from_utf8(value)
        && let Ok(number) = text.parse()
    {
        return Ok(number);
    }
    Err(Reason::BadPax)
}

/// `-1.5`: seconds with an optional fraction.
fn time(value: &[u8]) -> Result<(i64, u32), Reason> {
    let text = std::str::from_utf8(value).map_err(|_| Reason::BadPax)?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| Reason::BadPax)?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Reason::BadPax);
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: u32 = digits.parse().map_err(|_| Reason::BadPax)?;
    Ok(match (whole.starts_with('-'), nanos) {
        (true, 1..) => (seconds.saturating_sub(1), 1_000_000_000 - nanos),
        _ => (seconds, nanos),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        let mut record = format!("{length} {key}=").into_bytes();
        record.extend_from_slice(value);
        record.push(b'\n');
        record
    }

    #[test]
    fn a_newline_in_a_value_starts_no_record() {
        let mut content = record("SCHILY.xattr.user.x", b"a\n16 path=/etc/x\n");
        content.extend(record("size", b"7"));
        let pax = Pax::parse(&content).unwrap();
        assert_eq!(pax.path, None);
        assert_eq!(pax.size, Some(7));
        assert_eq!(
            pax.xattrs,
            [(b"user.x".to_vec(), b"a\n16 path=/etc/x\n".to_vec())]
        );
    }

    #[test]
    fn times_before_the_epoch_keep_their_fraction() {
        assert_eq!(time(b"1.5"), Ok((1, 500_000_000)));
        assert_eq!(time(b"-1.25"), Ok((-2, 750_000_000)));
        assert_eq!(time(b"3"), Ok((3, 0)));
        assert!(time(b"1.-5").is_err());
        assert!(time(b"nan").is_err());
    }

    #[test]
    fn what_readers_would_take_differently_is_refused() {
        for content in [
            &b"5 a=b"[..],
            b"6 ab=c\n",
            b"99 a=b\n",
            b"0 a=b\n",
            b"3 \n",
            b"+7 a=b\n",
            b"7 =abc\n",
            b"\0",
        ] {
            assert_eq!(Pax::parse(content), Err(Reason::BadPax), "{content:?}");
        }
        assert!(Pax::parse(&record("size", b"-1")).is_err());
        assert!(Pax::parse(&record("path", b"a\0b")).is_err());
        assert!(Pax::check_global(&record("comment", b"0123")).is_ok());
        assert!(Pax::check_global(&record("size", b"1")).is_err());
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parser_panic(content: Vec<u8>, length in 0_usize..40, key in "[a-zA-Z.=]{0,20}") {
            let _ = Pax::parse(&content);
            let _ = Pax::parse(&[format!("{length} {key}=").as_bytes(), &content].concat());
        }

        #[test]
        fn what_is_written_is_read(value: Vec<u8>) {
            let pax = Pax::parse(&record("SCHILY.xattr.user.k", &value)).unwrap();
            prop_assert_eq!(&pax.xattrs[0].1, &value);
        }
    }
}
