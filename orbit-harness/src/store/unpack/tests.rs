//! Layers unpacked on a real file system: what comes out of good ones; of others, below.

mod any;
mod hostile;
mod refused;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use super::{
    super::testing::{TarBuilder, gzip, header},
    *,
};

/// A directory to unpack into, beside one that must not change.
struct Arena {
    directory: tempfile::TempDir,
}

impl Arena {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "untouched").unwrap();
        fs::set_permissions(&outside, fs::Permissions::from_mode(0o700)).unwrap();
        fs::create_dir(directory.path().join("layer")).unwrap();
        Self { directory }
    }

    fn layer(&self) -> std::path::PathBuf {
        self.directory.path().join("layer")
    }

    fn outside(&self) -> std::path::PathBuf {
        self.directory.path().join("outside")
    }

    fn unpack(&self, archive: &[u8]) -> Result<UnpackStats, UnpackError> {
        self.unpack_as(archive, &order(archive, archive))
    }

    fn unpack_as(&self, blob: &[u8], order: &UnpackOrder) -> Result<UnpackStats, UnpackError> {
        unpack_layer(blob, order, File::open(self.layer()).unwrap().into())
    }
}

/// What an ordinary user may not write to, it cannot empty either.
impl Drop for Arena {
    fn drop(&mut self) {
        let mut queue = vec![self.layer()];
        while let Some(path) = queue.pop() {
            if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
                let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o700));
                let entries = fs::read_dir(&path).into_iter().flatten().flatten();
                queue.extend(entries.map(|entry| entry.path()));
            }
        }
    }
}

fn order(blob: &[u8], archive: &[u8]) -> UnpackOrder {
    UnpackOrder {
        blob_offset: 0,
        blob_bytes: blob.len() as u64,
        compression: Compression::sniff(blob),
        blob_digest: Some(Digest::of(blob)),
        diff_id: Digest::of(archive),
        ownership: crate::store::testing::ownership(),
        limits: UnpackLimits {
            max_bytes: 64 << 20,
            max_entries: 10_000,
            max_names_bytes: 4 << 20,
        },
    }
}

/// Everything below `path`: kind, mode, owner, times and content.
fn snapshot(path: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut queue = vec![path.to_owned()];
    while let Some(path) = queue.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                queue.push(entry.unwrap().path());
            }
            String::new()
        } else if meta.is_file() {
            format!("{:?}", fs::read(&path).unwrap())
        } else {
            String::new()
        };
        found.insert(
            path.display().to_string(),
            format!(
                "{:o} {}:{} {} {} {content}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.nlink()
            ),
        );
    }
    found
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::getxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|meta| meta.file_type().is_char_device() && meta.rdev() == 0)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_layer_is_unpacked_as_it_was_packed() {
    let arena = Arena::new();
    let long = "n".repeat(200);
    let archive = TarBuilder::new()
        .member(b'5', "./", "", 0o751, b"")
        .member(b'5', "locked/", "", 0o500, b"")
        .file("locked/inside", b"in")
        .file("deep/er/file", b"implicit")
        .symlink("link", "/etc/passwd")
        .hardlink("deep/second", "deep/er/file")
        .hardlink("second-link", "link")
        .member(b'6', "fifo", "", 0o620, b"")
        .member(b'0', "setuid", "", 0o4755, b"x")
        .member(b'3', "device", "", 0o600, b"")
        .pax(&[
            ("path", format!("pax/{long}").as_bytes()),
            ("mtime", b"12345.5"),
            ("SCHILY.xattr.user.colour", b"bl\nue"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ])
        .file("short", b"pax")
        .member(
            b'L',
            "././@LongLink",
            "",
            0,
            format!("gnu/{long}\0").as_bytes(),
        )
        .file("cut", b"gnu")
        .build();
    let blob = gzip(&archive);
    let stats = arena.unpack_as(&blob, &order(&blob, &archive)).unwrap();

    let layer = arena.layer();
    assert_eq!(mode(&layer), 0o751);
    assert_eq!(mode(&layer.join("locked")), 0o500);
    assert_eq!(
        fs::metadata(layer.join("locked")).unwrap().mtime(),
        1_000_000_000
    );
    assert_eq!(mode(&layer.join("deep/er")), 0o755);
    assert_eq!(fs::read(layer.join("deep/second")).unwrap(), b"implicit");
    assert_eq!(fs::metadata(layer.join("deep/second")).unwrap().nlink(), 2);
    assert_eq!(
        fs::read_link(layer.join("link")).unwrap(),
        Path::new("/etc/passwd")
    );
    assert_eq!(
        fs::symlink_metadata(layer.join("second-link"))
            .unwrap()
            .nlink(),
        2
    );
    assert!(
        fs::symlink_metadata(layer.join("fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    assert_eq!(mode(&layer.join("fifo")), 0o620);
    assert_eq!(mode(&layer.join("setuid")), 0o4755);
    let pax = layer.join("pax").join(&long);
    assert_eq!(fs::read(&pax).unwrap(), b"pax");
    assert_eq!(fs::metadata(&pax).unwrap().mtime(), 12345);
    assert_eq!(fs::metadata(&pax).unwrap().mtime_nsec(), 500_000_000);
    assert_eq!(fs::read(layer.join("gnu").join(&long)).unwrap(), b"gnu");
    // Not every file system keeps extended attributes of users.
    if stats.xattrs_skipped == 2 {
        assert_eq!(xattr(&pax, "user.colour").unwrap(), b"bl\nue");
    }
    assert_eq!(xattr(&pax, "user.overlay.opaque"), None);
    assert_eq!(xattr(&pax, "trusted.overlay.opaque"), None);
    assert!(!layer.join("device").exists());
    assert_eq!(stats.devices_skipped, 1);
    assert_eq!(stats.files, 5);
}

#[test]
fn owners_are_kept_or_refused() {
    let arena = Arena::new();
    let mut owned = header(b'0', "owned", 1);
    owned.set_uid(1234);
    owned.set_gid(5678);
    owned.set_mode(0o4755);
    let archive = TarBuilder::new().raw(owned, b"x").build();
    let keep = UnpackOrder {
        ownership: OwnershipPolicy::Keep,
        ..order(&archive, &archive)
    };
    match arena.unpack_as(&archive, &keep) {
        // Nobody but root gives files away outside of a user namespace of its own.
        Err(error) if error.errno == libc::EPERM => {
            assert!(!nix::unistd::geteuid().is_root(), "{error}");
        }
        Ok(_) => {
            let owned = fs::metadata(arena.layer().join("owned")).unwrap();
            assert_eq!(
                (owned.uid(), owned.gid(), owned.mode() & 0o7777),
                (1234, 5678, 0o4755)
            );
        }
        // In a user namespace that does not map them.
        Err(error) => assert_eq!(
            error.reason,
            Reason::UnmappedOwner {
                uid: 1234,
                gid: 5678
            }
        ),
    }
}

#[test]
fn one_id_owns_everything_where_only_one_is_mapped() {
    let arena = Arena::new();
    let mut owned = header(b'0', "owned", 0);
    owned.set_uid(1234);
    let archive = TarBuilder::new().raw(owned, b"").build();
    let squash = UnpackOrder {
        ownership: OwnershipPolicy::Squash,
        ..order(&archive, &archive)
    };
    arena.unpack_as(&archive, &squash).unwrap();
    let ours = fs::metadata(arena.layer()).unwrap().uid();
    assert_eq!(
        fs::metadata(arena.layer().join("owned")).unwrap().uid(),
        ours
    );
}

#[test]
fn whiteouts_hide_lower_layers_and_never_this_one() {
    // In both orders: that of an archive means nothing.
    for is_last in [false, true] {
        let arena = Arena::new();
        let whiteouts = |archive: TarBuilder| {
            archive
                .file("gone/.wh.file", b"")
                .file(".wh.own-file", b"")
                .file(".wh.own-dir", b"")
                .file("opaque/.wh..wh..opq", b"")
                .file("aufs/.wh..wh.plnk", b"")
        };
        let content = |archive: TarBuilder| {
            archive
                .file("own-file", b"1")
                .file("own-dir/file", b"2")
                .file("opaque/file", b"3")
                .file("aufs/file", b"4")
        };
        let archive = if is_last {
            whiteouts(content(TarBuilder::new()))
        } else {
            content(whiteouts(TarBuilder::new()))
        };
        let stats = arena.unpack(&archive.build()).unwrap();
        let layer = arena.layer();
        assert!(is_whiteout(&layer.join("gone/file")));
        assert_eq!(fs::read(layer.join("own-file")).unwrap(), b"1");
        assert_eq!(fs::read(layer.join("own-dir/file")).unwrap(), b"2");
        assert_eq!(fs::read(layer.join("opaque/file")).unwrap(), b"3");
        assert_eq!(
            xattr(&layer.join("opaque"), "user.overlay.opaque").unwrap(),
            b"y"
        );
        assert_eq!(
            xattr(&layer.join("own-dir"), "user.overlay.opaque").unwrap(),
            b"y"
        );
        assert_eq!(fs::read_dir(layer.join("aufs")).unwrap().count(), 1);
        assert_eq!((stats.whiteouts, stats.opaque_directories), (1, 2));
        assert!(!stats.is_root_opaque);
    }
    let arena = Arena::new();
    let archive = TarBuilder::new().file(".wh..wh..opq", b"").build();
    assert!(arena.unpack(&archive).unwrap().is_root_opaque);
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let arena = Arena::new();
    let archive = TarBuilder::new()
        .file("a", b"first")
        .hardlink("keeps-first", "a")
        .file("a", b"second")
        .file("b/below", b"x")
        .directory("b/")
        .member(b'5', "c/", "", 0o700, b"")
        .file("c/below", b"x")
        .file("c", b"file")
        .file("d", b"file")
        .directory("d/")
        .file("d/below", b"y")
        .symlink("e", "nowhere")
        .directory("e/")
        .member(b'5', "f/", "", 0o711, b"")
        .symlink("f", "d")
        .build();
    arena.unpack(&archive).unwrap();
    let layer = arena.layer();
    assert_eq!(fs::read(layer.join("a")).unwrap(), b"second");
    assert_eq!(fs::read(layer.join("keeps-first")).unwrap(), b"first");
    assert!(layer.join("b/below").exists());
    assert_eq!(fs::read(layer.join("c")).unwrap(), b"file");
    assert_eq!(fs::read(layer.join("d/below")).unwrap(), b"y");
    assert!(fs::symlink_metadata(layer.join("e")).unwrap().is_dir());
    assert!(fs::symlink_metadata(layer.join("f")).unwrap().is_symlink());
    assert_eq!(mode(&layer.join("d")), 0o755);
}

/// What must come of a hostile archive.
enum Fate {
    Refused(Reason),
    /// Read as reference readers read it, harmlessly; these exist then.
    Harmless(&'static [&'static str]),
}

#[test]
fn sparse_files_keep_their_holes() {
    let size = 1_u64 << 20;
    let check = |archive: Vec<u8>, name: &str| {
        let arena = Arena::new();
        arena.unpack(&archive).unwrap();
        let path = arena.layer().join(name);
        let content = fs::read(&path).unwrap();
        assert_eq!(content.len() as u64, size);
        assert_eq!(&content[4096..4100], b"data");
        assert_eq!(&content[65536..65539], b"end");
        assert_eq!(content.iter().filter(|b| **b != 0).count(), 7);
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < size / 2);
    };
    let real = size.to_string();
    let records = |more: &[(&'static str, &'static [u8])]| -> Vec<(&'static str, Vec<u8>)> {
        let mut all: Vec<(&'static str, Vec<u8>)> =
            more.iter().map(|(k, v)| (*k, v.to_vec())).collect();
        all.push(("GNU.sparse.realsize", real.clone().into_bytes()));
        all
    };
    let with = |records: Vec<(&'static str, Vec<u8>)>, content: &[u8]| {
        let borrowed: Vec<(&str, &[u8])> = records.iter().map(|(k, v)| (*k, &v[..])).collect();
        TarBuilder::new()
            .pax(&borrowed)
            .file("GNUSparseFile.0/s", content)
            .file("next", b"")
            .build()
    };
    let mut version_1 = b"2\n4096\n4\n65536\n3\n".to_vec();
    version_1.resize(512, 0);
    version_1.extend_from_slice(b"dataend");
    check(
        with(
            records(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"s"),
            ]),
            &version_1,
        ),
        "s",
    );
    check(
        with(
            records(&[
                ("GNU.sparse.map", b"4096,4,65536,3"),
                ("GNU.sparse.name", b"s"),
            ]),
            b"dataend",
        ),
        "s",
    );
    // GNU's own header; pieces are not aligned in the archive, as GNU tar writes the last.
    let mut gnu = tar::Header::new_gnu();
    gnu.set_path("s").unwrap();
    gnu.set_entry_type(tar::EntryType::GNUSparse);
    gnu.set_size(7);
    gnu.set_mode(0o600);
    gnu.set_uid(0);
    gnu.set_gid(0);
    gnu.set_mtime(0);
    let octal =
        |number: u64| -> [u8; 12] { format!("{number:011o}\0").into_bytes().try_into().unwrap() };
    let fields = gnu.as_gnu_mut().unwrap();
    fields.realsize = octal(size);
    for (slot, (offset, length)) in fields
        .sparse
        .iter_mut()
        .zip([(4096, 4), (65536, 3), (size, 0)])
    {
        slot.offset = octal(offset);
        slot.numbytes = octal(length);
    }
    check(TarBuilder::new().raw(gnu, b"dataend").build(), "s");

    for bad in [
        &b"4096,4,0,3"[..],
        b"4096,4",
        b"4096,4,99999999,3",
        b"1,2,3",
    ] {
        let archive = with(
            vec![
                ("GNU.sparse.map", bad.to_vec()),
                ("GNU.sparse.realsize", real.clone().into_bytes()),
            ],
            b"dataend",
        );
        assert_eq!(
            Arena::new().unpack(&archive).unwrap_err().reason,
            Reason::BadSparseMap
        );
    }
}

#[test]
fn errors_cross_to_another_process_and_back() {
    let error = UnpackError {
        errno: 28,
        ..UnpackError::new(UnpackStep::WriteFile, b"a/\x1b[31mb", Reason::System)
    };
    let wire = postcard::to_stdvec(&error).unwrap();
    let back: UnpackError = postcard::from_bytes(&wire).unwrap();
    assert_eq!(back, error);
    assert_eq!(
        back.to_string(),
        r"writing a file for the entry `a/\x1b[31mb`: No space left on device (os error 28)"
    );
    let order = order(b"", b"");
    let wire = postcard::to_stdvec(&order).unwrap();
    assert_eq!(postcard::from_bytes::<UnpackOrder>(&wire).unwrap(), order);
}
