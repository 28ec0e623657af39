//! Archives that are not what they should be: cut, damaged, other content than promised, or too much of it.

use super::*;

#[test]
fn what_is_cut_or_damaged_is_refused() {
    let archive = TarBuilder::new()
        .pax(&[("path", b"a")])
        .file("a", &[7; 3000])
        .file("b", &[8; 10])
        .build();
    let blob = gzip(&archive);
    let good = order(&blob, &archive);
    for length in (0..blob.len()).step_by(7) {
        let arena = Arena::new();
        assert!(arena.unpack_as(&blob[..length], &good).is_err(), "{length}");
    }
    // Cut, but with every digest as promised: the archive itself must be whole.
    for length in [100, 512, 1024, 1100, 1536, 1600, 4000] {
        let cut = &archive[..length];
        let result = Arena::new().unpack(cut);
        assert_eq!(result.unwrap_err().reason, Reason::Truncated, "{length}");
    }
    // An archive may end without its end marker.
    let unmarked = TarBuilder::new().file("a", b"x").cut();
    assert!(Arena::new().unpack(&unmarked).is_ok());
    assert!(Arena::new().unpack(b"").is_ok());

    let mut flipped = archive.clone();
    flipped[1024] ^= 1;
    assert_eq!(
        Arena::new().unpack(&flipped).unwrap_err().reason,
        Reason::BadChecksum
    );
    let junk = [0x55; 2048];
    assert_eq!(
        Arena::new().unpack(&junk).unwrap_err().reason,
        Reason::BadChecksum
    );
}

#[test]
fn other_content_than_promised_is_refused() {
    let archive = TarBuilder::new().file("a", b"x").build();
    let blob = gzip(&archive);
    let good = order(&blob, &archive);
    let other = Digest::of(b"other");
    let unpack =
        |blob: &[u8], order: &UnpackOrder| Arena::new().unpack_as(blob, order).unwrap_err().reason;

    let wrong = UnpackOrder {
        diff_id: other,
        ..good.clone()
    };
    assert!(matches!(unpack(&blob, &wrong), Reason::WrongDiffId { .. }));
    let wrong = UnpackOrder {
        blob_digest: Some(other),
        ..good.clone()
    };
    assert!(matches!(unpack(&blob, &wrong), Reason::WrongBlob { .. }));
    let wrong = UnpackOrder {
        blob_bytes: 1,
        ..good.clone()
    };
    assert!(matches!(unpack(&blob, &wrong), Reason::WrongLength { .. }));
    // Garbage behind the gzip data.
    let tail = [&blob[..], b"a tail that is no gzip member"].concat();
    assert_eq!(unpack(&tail, &order(&tail, &archive)), Reason::Damaged);
    // Garbage behind the archive is content as far as its digest goes, and nothing else.
    let padded = [&archive[..], &[9; 5000]].concat();
    let blob = gzip(&padded);
    assert!(
        Arena::new()
            .unpack_as(&blob, &order(&blob, &padded))
            .is_ok()
    );
    assert!(matches!(
        unpack(&blob, &order(&blob, &archive)),
        Reason::WrongDiffId { .. }
    ));
}

#[test]
fn a_bomb_ends_at_its_limit() {
    // 256 MiB of zeros in a quarter of a megabyte.
    let mut member = header(b'0', "bomb", 256 << 20);
    member.set_cksum();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut encoder, member.as_bytes()).unwrap();
    io::copy(&mut io::repeat(0).take(256 << 20), &mut encoder).unwrap();
    let blob = encoder.finish().unwrap();
    let arena = Arena::new();
    let error = arena.unpack_as(&blob, &order(&blob, b"")).unwrap_err();
    assert_eq!(error.reason, Reason::TooManyBytes { limit: 64 << 20 });
    assert!(fs::metadata(arena.layer().join("bomb")).unwrap().len() <= 64 << 20);

    let many = (0..10_001)
        .fold(TarBuilder::new(), |archive, _| archive.file("same", b""))
        .build();
    let error = Arena::new().unpack(&many).unwrap_err();
    assert_eq!(error.reason, Reason::TooManyEntries { limit: 10_000 });
}
