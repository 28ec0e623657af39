//! Whatever there is in an archive.

use proptest::prelude::*;

use super::*;

fn any_member() -> impl Strategy<Value = (u8, String, String, u32, Vec<u8>)> {
    let name =
        "(\\.\\./|/|\\./|a/|b/|\\.wh\\.|l/){0,3}(a|b|l|\\.\\.|\\.wh\\.a|\\.wh\\.\\.wh\\.\\.opq)?/?";
    let link = "(\\.\\./outside|/|a|b|l|\\.\\.|a/b|l/file)";
    let kind = prop::sample::select(b"0001122255336".to_vec());
    (
        kind,
        name,
        link,
        0_u32..0o10000,
        prop::collection::vec(any::<u8>(), 0..20),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever the members: unpacked or refused, nothing outside changes, and it can be removed again.
    #[test]
    fn no_archive_reaches_outside(members in prop::collection::vec(any_member(), 0..14)) {
        let arena = Arena::new();
        symlink("../outside", arena.layer().join("l")).unwrap();
        let before = snapshot(&arena.outside());
        let archive = members.iter().fold(TarBuilder::new(), |archive, (kind, name, link, mode, content)| {
            let content = if *kind == b'0' { &content[..] } else { b"" };
            archive.member(*kind, name, link, *mode, content)
        });
        let _ = arena.unpack(&archive.build());
        prop_assert_eq!(snapshot(&arena.outside()), before.clone());
        let parent = File::open(arena.directory.path()).unwrap();
        remove_tree(std::os::fd::AsFd::as_fd(&parent), b"layer").unwrap();
        prop_assert_eq!(snapshot(&arena.outside()), before);
        prop_assert!(!arena.layer().exists());
    }

    /// Whatever the bytes: an error, never a panic.
    #[test]
    fn no_bytes_make_it_panic(
        mut archive in prop::collection::vec(any_member(), 1..4).prop_map(|members| {
            members.iter().fold(TarBuilder::new().pax(&[("mtime", b"1.5")]), |archive, (kind, name, link, mode, content)| {
                archive.member(*kind, name, link, *mode, content)
            }).build()
        }),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        fixes_checksums: bool,
    ) {
        for (index, byte) in flips {
            let at = index.index(archive.len());
            archive[at] = byte;
        }
        if fixes_checksums {
            for block in archive.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
                block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            }
        }
        let arena = Arena::new();
        let before = snapshot(&arena.outside());
        let _ = arena.unpack(&archive);
        prop_assert_eq!(snapshot(&arena.outside()), before);
    }
}
