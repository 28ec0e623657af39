//! Archives that mean harm: refused, or harmless, and nothing outside of the layer changes.

use super::*;

#[test]
fn hostile_archives_change_nothing_outside() {
    use Fate::{Harmless, Refused};
    let new = TarBuilder::new;
    let long_name = |kind: u8, length: usize| {
        let name = "p/".repeat(length / 2);
        new()
            .member(kind, "././@LongLink", "", 0, name.as_bytes())
            .file("x", b"")
    };
    let table: Vec<(&str, TarBuilder, Fate)> = vec![
        (
            "up",
            new().file("../outside/file", b"!"),
            Refused(Reason::DotDot),
        ),
        (
            "up from inside",
            new().file("a/../../outside/file", b"!"),
            Refused(Reason::DotDot),
        ),
        ("only up", new().directory(".."), Refused(Reason::DotDot)),
        (
            "absolute",
            new().file("/absolute", b"!"),
            Harmless(&["absolute"]),
        ),
        (
            "through a link",
            new().symlink("l", "../outside").file("l/file", b"!"),
            Refused(Reason::ThroughSymlink),
        ),
        (
            "through an absolute link",
            new().symlink("l", "/").file("l/tmp/orbit-hostile", b"!"),
            Refused(Reason::ThroughSymlink),
        ),
        (
            "through a link to a link",
            new()
                .symlink("a", "../outside")
                .symlink("b", "a")
                .file("b/file", b"!"),
            Refused(Reason::ThroughSymlink),
        ),
        (
            "directories through a link",
            new().symlink("l", "../outside").directory("l/new/"),
            Refused(Reason::ThroughSymlink),
        ),
        (
            "CVE-2026-33056: a link, then a directory of the name",
            new()
                .symlink("l", "../outside")
                .member(b'5', "l", "", 0o777, b"")
                .file("l/file", b"!"),
            Harmless(&["l/file"]),
        ),
        (
            "a link, then a file of the name",
            new().symlink("l", "../outside/file").file("l", b"!"),
            Harmless(&["l"]),
        ),
        (
            "hard link up",
            new().hardlink("h", "../outside/file"),
            Refused(Reason::DotDot),
        ),
        (
            "hard link to an absolute name",
            new().hardlink("h", "/outside/file"),
            Refused(Reason::LinkTargetMissing),
        ),
        (
            "hard link through a link",
            new().symlink("l", "../outside").hardlink("h", "l/file"),
            Refused(Reason::ThroughSymlink),
        ),
        (
            "hard link to a link, then written",
            new()
                .symlink("l", "../outside/file")
                .hardlink("h", "l")
                .file("h", b"!"),
            Harmless(&["h"]),
        ),
        (
            "hard link to a directory",
            new().directory("d").hardlink("h", "d"),
            Refused(Reason::LinkTargetDirectory),
        ),
        (
            "hard link to the root",
            new().hardlink("h", "/"),
            Refused(Reason::LinkTargetDirectory),
        ),
        (
            "hard link to itself",
            new().hardlink("h", "h"),
            Refused(Reason::LinkTargetMissing),
        ),
        (
            "hard link that replaces its target's directory",
            new().file("d/f", b"").hardlink("d", "d/f"),
            Refused(Reason::LinkTargetMissing),
        ),
        (
            "whiteout of up",
            new().file(".wh...", b""),
            Refused(Reason::BadWhiteout),
        ),
        (
            "whiteout of here",
            new().file("a/.wh..", b""),
            Refused(Reason::BadWhiteout),
        ),
        (
            "whiteout of nothing",
            new().file(".wh.", b""),
            Refused(Reason::BadWhiteout),
        ),
        (
            "whiteout above",
            new().file("../.wh.outside", b""),
            Refused(Reason::DotDot),
        ),
        (
            "whiteout through a link",
            new().symlink("l", "../outside").file("l/.wh.file", b""),
            Refused(Reason::ThroughSymlink),
        ),
        (
            "opaque through a link",
            new().symlink("l", "../outside").file("l/.wh..wh..opq", b""),
            Refused(Reason::ThroughSymlink),
        ),
        (
            "whiteout as a directory",
            new().file(".wh.a/b", b""),
            Refused(Reason::BadWhiteout),
        ),
        (
            "whiteout device",
            new().member(b'3', "null", "", 0o666, b""),
            Harmless(&[]),
        ),
        (
            "block device",
            new().member(b'4', "disk", "", 0o666, b""),
            Harmless(&[]),
        ),
        (
            "root as a file",
            new().file("./", b"x"),
            Refused(Reason::EmptyName),
        ),
        (
            "root as a link",
            new().symlink("/", "/etc"),
            Refused(Reason::EmptyName),
        ),
        (
            "empty name",
            new().file("", b"x"),
            Refused(Reason::EmptyName),
        ),
        (
            "unknown type",
            new().member(b'Z', "z", "", 0, b""),
            Refused(Reason::UnknownType(b'Z')),
        ),
        (
            "long part",
            {
                let name = "n".repeat(256);
                new().pax(&[("path", name.as_bytes())]).file("x", b"")
            },
            Refused(Reason::NameTooLong),
        ),
        (
            "4 KiB name",
            long_name(b'L', 4200),
            Refused(Reason::NameTooLong),
        ),
        (
            "NUL in a name",
            new().pax(&[("path", b"a\0b")]).file("x", b""),
            Refused(Reason::Nul),
        ),
        (
            "endless long name",
            new()
                .member(b'L', "././@LongLink", "", 0, &vec![b'n'; 2 << 20])
                .file("x", b""),
            Refused(Reason::HeaderTooLarge { limit: 1 << 20 }),
        ),
        (
            "a size smuggled behind a newline",
            new()
                .pax(&[("SCHILY.xattr.user.x", b"\n11 size=99\n")])
                .file("x", b"ok"),
            Harmless(&["x"]),
        ),
        (
            "two sizes that hide a member (CVE-2025-62518)",
            // The header says 0, PAX says 512 and more: the nested header is content, as for every good reader.
            {
                let nested = new().file("hidden", b"").cut();
                let size = nested.len().to_string();
                let mut outer = header(b'0', "outer", 0);
                outer.set_size(0);
                new().pax(&[("size", size.as_bytes())]).raw(outer, &nested)
            },
            Harmless(&["outer"]),
        ),
        (
            "a directory with content",
            new().member(b'5', "d/", "", 0o755, b"content"),
            Refused(Reason::AmbiguousSize),
        ),
        (
            "a link with content",
            new().member(b'2', "l", "t", 0o755, b"content"),
            Refused(Reason::AmbiguousSize),
        ),
        (
            "both kinds of long names",
            new()
                .pax(&[("path", b"a")])
                .member(b'L', "././@LongLink", "", 0, b"b\0")
                .file("c", b""),
            Refused(Reason::BadPax),
        ),
        (
            "a size for all members that follow",
            new()
                .member(b'g', "g", "", 0, b"10 size=1\n")
                .file("c", b""),
            Refused(Reason::BadPax),
        ),
        (
            "PAX for nothing",
            new().pax(&[("path", b"a")]),
            Refused(Reason::Truncated),
        ),
    ];
    for (name, archive, fate) in table {
        let arena = Arena::new();
        let before = snapshot(&arena.outside());
        let result = arena.unpack(&archive.build());
        assert_eq!(snapshot(&arena.outside()), before, "{name}");
        match (result, fate) {
            (Err(error), Refused(reason)) => {
                assert_eq!(error.reason, reason, "{name}: {error}");
                assert!(!error.to_string().is_empty());
            }
            (Ok(_), Harmless(paths)) => {
                for path in paths {
                    assert!(
                        fs::symlink_metadata(arena.layer().join(path)).is_ok(),
                        "{name}: {path}"
                    );
                }
                assert!(!arena.layer().join("hidden").exists(), "{name}");
            }
            (result, _) => panic!("{name}: {result:?}"),
        }
    }
    assert!(!Path::new("/tmp/orbit-hostile").exists());
}

#[test]
fn a_name_that_is_long_but_legal_is_kept() {
    let arena = Arena::new();
    let name = "abc/".repeat(1000);
    let archive = TarBuilder::new()
        .pax(&[("path", format!("{name}file").as_bytes())])
        .file("x", b"deep")
        .build();
    let stats = arena.unpack(&archive).unwrap();
    assert_eq!(stats.files, 1);
    // Too long for any path that starts at the root of this machine: removed from its descriptor, too.
    let parent = File::open(arena.directory.path()).unwrap();
    remove_tree(std::os::fd::AsFd::as_fd(&parent), b"layer").unwrap();
    assert!(!arena.layer().exists());
}
