//! Layers that grow without end, in every place where something is decompressed: each ends at the limit that it was given,
//! and writes no more than that by then.
//!
//! With the default limits, which are larger than a test's disk, the end-to-end tests try what claims to be larger.

use std::{
    fs::{self, File},
    io::{self, Read, Write as _},
};

use super::{
    super::testing::{TarBuilder, header},
    *,
};

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 16 * MIB;

fn gzip(start: &[u8], zeros: u64) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(start).unwrap();
    io::copy(&mut io::repeat(0).take(zeros), &mut encoder).unwrap();
    encoder.finish().unwrap()
}

fn zstd(start: &[u8], zeros: u64) -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.write_all(start).unwrap();
    io::copy(&mut io::repeat(0).take(zeros), &mut encoder).unwrap();
    encoder.finish().unwrap()
}

/// Unpacks `blob`, whose content nobody gets as far as to compare; gives the error, and the bytes that are on disk.
fn unpack(blob: &[u8]) -> (UnpackError, u64) {
    let directory = tempfile::tempdir().unwrap();
    let order = UnpackOrder {
        blob_offset: 0,
        blob_bytes: blob.len() as u64,
        compression: Compression::sniff(blob),
        blob_digest: Some(Digest::of(blob)),
        diff_id: Digest::of(b""),
        ownership: crate::store::testing::ownership(),
        limits: UnpackLimits {
            max_bytes: LIMIT,
            max_entries: 1000,
            max_names_bytes: 20_000,
        },
    };
    let destination = File::open(directory.path()).unwrap();
    let error = unpack_layer(blob, &order, destination.into()).unwrap_err();
    let files = fs::read_dir(directory.path()).unwrap();
    let written = files.map(|file| file.unwrap().metadata().unwrap().len());
    (error, written.sum())
}

fn in_both(start: &[u8], zeros: u64) -> [Vec<u8>; 2] {
    let blobs = [gzip(start, zeros), zstd(start, zeros)];
    assert!(blobs.iter().all(|blob| (blob.len() as u64) < zeros / 100));
    blobs
}

#[test]
fn a_file_ends_at_the_limit() {
    let mut member = header(b'0', "bomb", 64 * MIB);
    member.set_cksum();
    for blob in in_both(member.as_bytes(), 64 * MIB) {
        let (error, written) = unpack(&blob);
        assert_eq!(error.reason, Reason::TooManyBytes { limit: LIMIT });
        assert!(written <= LIMIT, "{written}");
    }
}

/// No file grows, but time passes: what is behind the end of an archive is read for its digest.
#[test]
fn what_is_behind_the_end_counts_too() {
    let archive = TarBuilder::new().file("one", b"1").build();
    for blob in in_both(&archive, 64 * MIB) {
        let (error, written) = unpack(&blob);
        assert_eq!(error.reason, Reason::TooManyBytes { limit: LIMIT });
        assert_eq!(written, 1);
    }
}

/// Members and frames that each stay below the limit are one archive.
#[test]
fn parts_add_up() {
    let mut member = header(b'0', "bomb", 64 * MIB);
    member.set_cksum();
    for part in [gzip, zstd] {
        let mut blob = part(member.as_bytes(), 0);
        (0..64).for_each(|_| blob.extend(part(b"", MIB)));
        let (error, written) = unpack(&blob);
        assert_eq!(error.reason, Reason::TooManyBytes { limit: LIMIT });
        assert!(written <= LIMIT, "{written}");
    }
}

/// What is told about a file is held in memory: much less of it is taken than of a file.
#[test]
fn names_and_attributes_have_a_limit_of_their_own() {
    for kind in [b'L', b'K', b'x', b'g'] {
        let mut member = header(kind, "long", 8 * MIB);
        member.set_cksum();
        for blob in in_both(member.as_bytes(), 8 * MIB) {
            let (error, written) = unpack(&blob);
            let is_limit = matches!(error.reason, Reason::HeaderTooLarge { limit } if limit <= MIB);
            assert!(is_limit, "{}: {error}", char::from(kind));
            assert_eq!(written, 0);
        }
    }
}

/// Names that are kept until the last entry are held in memory together; nothing else of their entries is.
#[test]
fn names_that_are_kept_have_a_limit_together() {
    let name = |number: usize| format!("{}/{number}", "n".repeat(80));
    let hidden = |number: usize| name(number).replace("/1", "/.wh.1");
    let attribute = vec![b'a'; 1000];
    let member = |archive: TarBuilder, number: usize| match number % 2 {
        0 => archive
            .pax(&[("SCHILY.xattr.security.none", &attribute)])
            .directory(&name(number)),
        _ => archive.file(&hidden(100_000 + number), b""),
    };
    let archive = |count| (0..count).fold(TarBuilder::new(), member).build();
    // Attributes of more than the limit, and names of less.
    assert!(matches!(
        unpack(&gzip(&archive(50), 0)).0.reason,
        Reason::WrongDiffId { .. }
    ));
    let (error, _) = unpack(&gzip(&archive(120), 0));
    assert_eq!(error.reason, Reason::NamesTooLong { limit: 20_000 });
}

/// As do many small ones, which come one after the other.
#[test]
fn many_headers_are_too_many_bytes() {
    let mut archive = TarBuilder::new();
    let comment = vec![b'n'; 900_000];
    for _ in 0..40 {
        archive = archive.pax(&[("comment", &comment)]).file("same", b"");
    }
    let archive = archive.build();
    for blob in [gzip(&archive, 0), zstd(&archive, 0)] {
        let (error, written) = unpack(&blob);
        assert_eq!(error.reason, Reason::TooManyBytes { limit: LIMIT });
        assert_eq!(written, 0);
    }
}

/// A frame may ask for memory before it holds anything. 2^27 bytes are what every zstd allows; with 2^31, some bytes would
/// take 2 GiB.
///
/// Source: RFC 8878, section 3.1.1.1.2.
#[test]
fn a_frame_that_asks_for_much_memory_is_refused() {
    // One block, the last, of 1024 times the byte 0.
    let block = [0x03, 0x20, 0, 0];
    let frame = |log: u8| [&[0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3][..], &block].concat();
    let reason = |log| unpack(&frame(log)).0.reason;
    // It is decompressed, and is another content.
    assert!(matches!(reason(27), Reason::WrongDiffId { .. }));
    for log in [28, 31, 41] {
        assert_eq!(reason(log), Reason::WindowTooLarge, "2^{log}");
    }
}
