//! Layers that are small until they are unpacked: they end with an error at a limit, the store's or the disk's, and what
//! came of them by then is gone.
//!
//! That the store's limits also end a file that is written byte by byte is shown beside them, where the limits can be set:
//! by default they are larger than a test's disk.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use orbit_tests::{Case, Context, Finished, Program, Who, images, orbit_cli};

use super::{
    case,
    full::{Disk, LIMITED},
    layouts::{Layout, checksum, header},
};
use crate::kit::one_paragraph;

pub(super) fn cases() -> Vec<Case> {
    vec![
        case(
            "a_bomb_ends_at_the_limits_of_the_store",
            a_bomb_ends_at_the_limits_of_the_store,
        ),
        // Some hundred MiB are decompressed.
        case("a_bomb_ends_where_files_end", a_bomb_ends_where_files_end)
            .deadline(Duration::from_secs(120)),
        // To mount a small disk.
        case(
            "a_bomb_ends_where_the_disk_does",
            a_bomb_ends_where_the_disk_does,
        )
        .who(&[Who::Root])
        .needs_kernel((6, 3), "tmpfs can be mounted with other ids")
        .deadline(Duration::from_secs(120)),
    ]
}

const MIB: u64 = 1 << 20;
/// What a zstd frame begins with, but for the byte that says how large a window it needs.
const FRAME: [u8; 5] = [0x28, 0xb5, 0x2f, 0xfd, 0];
/// 1 MiB: 2 to the power of ten, and of ten more in the upper five bits.
const SMALL_WINDOW: u8 = 10 << 3;

/// A zstd frame of `start`, and of so many MiB of zeros that take 32 bytes each.
///
/// Source: RFC 8878, sections 3.1.1.1.2 (window) and 3.1.1.2 (blocks).
fn zstd(start: &[u8], zeros_mib: u64, window: u8) -> Vec<u8> {
    const BLOCK: usize = 128 << 10;
    let block = |size: usize, kind: usize, is_last: bool| {
        let header = size << 3 | kind << 1 | usize::from(is_last);
        header.to_le_bytes()[..3].to_vec()
    };
    let mut frame = [&FRAME[..], &[window], &block(start.len(), 0, false), start].concat();
    for _ in 0..zeros_mib * MIB / BLOCK as u64 {
        frame.extend(block(BLOCK, 1, false));
        frame.push(0);
    }
    frame.extend(block(0, 0, true));
    frame
}

/// The same with gzip, by the program of that name.
fn gzip(context: &Context, start: &[u8], zeros_mib: u64) -> Result<Vec<u8>> {
    let (from, to) = (context.work().join("start"), context.work().join("bomb.gz"));
    fs::write(&from, start)?;
    Program::new("sh")
        .args([
            "-c",
            "(cat \"$0\"; head -c \"$1\" /dev/zero) | gzip -1 >\"$2\"",
        ])
        .arg(&from)
        .arg((zeros_mib * MIB).to_string())
        .arg(&to)
        .run()?
        .success()?;
    Ok(fs::read(to)?)
}

/// The header of a sparse file, in GNU's own form: one that holds nothing, and claims so many bytes.
fn sparse(claimed: u64) -> Vec<u8> {
    let mut block = header(b'S', "sparse", 0);
    block[257..265].copy_from_slice(b"ustar  \0");
    let mut number = [0; 12];
    number[0] = 0x80;
    number[4..].copy_from_slice(&claimed.to_be_bytes());
    block[483..495].copy_from_slice(&number);
    checksum(&mut block);
    block
}

/// busybox with this layer on top of it, as a reference.
fn with_layer(context: &Context, name: &str, content: &[u8], kind: &str) -> Result<String> {
    let mut layout = Layout::of_busybox(context, name)?;
    // Nobody gets as far as to compare it.
    layout.add_layer(content, kind, &"0".repeat(64))?;
    layout.write()
}

fn run_in(context: &Context, cache: &Path, image: &str) -> Result<Finished> {
    context
        .orbit("run")?
        .env("ORBIT_CACHE_DIR", cache)
        .args(["--image", image, "--", "echo", "up"])
        .run()
}

/// That nothing of a bomb is kept in the cache: not its files, and not the layer, whole or half. A good image still runs.
fn check_gone(context: &Context, cache: &Path) -> Result<()> {
    let listed = Program::new("find")
        .arg(cache)
        .args(["-name", "bomb", "-o", "-name", "sparse", "-o"])
        .args(["-name", "*.new", "-o", "-name", "*.old"])
        .run()?
        .success()?;
    ensure!(listed.stdout.is_empty(), "left: {}", listed.stdout);
    let good = run_in(context, cache, &images::reference("busybox")?)?.success()?;
    ensure!(good.stdout == "up\n", "{good}");
    Ok(())
}

/// The limits are as they are for everybody: 64 GiB of a layer, 1 MiB of what is told about a file, and what zstd allows a
/// window to be by default.
fn a_bomb_ends_at_the_limits_of_the_store(context: &Context) -> Result<()> {
    let gib = 1 << 30;
    let long_name = header(b'L', "././@LongLink", 2 * MIB);
    let pax = header(b'x', "PaxHeaders/x", 2 * MIB);
    for (name, content, kind, words) in [
        (
            "sparse",
            sparse(65 * gib),
            "tar",
            ["more than 68719476736 bytes", "sparse"],
        ),
        (
            "sparse-zstd",
            zstd(&sparse(65 * gib), 0, SMALL_WINDOW),
            "tar+zstd",
            ["more than 68719476736 bytes", "sparse"],
        ),
        // As if names were gigabytes long.
        (
            "long",
            zstd(&long_name, 300, SMALL_WINDOW),
            "tar+zstd",
            ["larger than 1048576 bytes", "extended header"],
        ),
        (
            "pax",
            zstd(&pax, 300, SMALL_WINDOW),
            "tar+zstd",
            ["larger than 1048576 bytes", "extended header"],
        ),
        // What zstd may have by default is decompressed, and found to be another content.
        (
            "window-128-mib",
            zstd(&header(b'0', "bomb", 0), 1, 17 << 3),
            "tar+zstd",
            ["the content is sha256:", "says sha256:000000"],
        ),
        // 2 GiB of memory for a frame of a few bytes.
        (
            "window",
            zstd(&header(b'0', "bomb", 0), 1, 21 << 3),
            "tar+zstd",
            ["more than 128 MiB of memory", "without --long"],
        ),
    ] {
        let image = with_layer(context, name, &content, kind)?;
        let told = run_in(context, &context.cache(), &image)
            .and_then(|it| it.code(125))
            .with_context(|| name.to_owned())?;
        ensure!(told.took < Duration::from_secs(10), "{name}: {told}");
        one_paragraph(&told.stderr, &words).with_context(|| name.to_owned())?;
        check_gone(context, &context.cache()).with_context(|| name.to_owned())?;
    }
    Ok(())
}

/// One file of so many MiB of zeros, in both compressions.
fn bombs(context: &Context, size_mib: u64) -> Result<[(String, &'static str); 2]> {
    let start = header(b'0', "bomb", size_mib * MIB);
    let zstd = zstd(&start, size_mib, SMALL_WINDOW);
    let gzip = gzip(context, &start, size_mib)?;
    ensure!(zstd.len() < 32 << 10 && gzip.len() < 4 << 20, "no bombs");
    Ok([
        (with_layer(context, "zstd", &zstd, "tar+zstd")?, "zstd"),
        (with_layer(context, "gzip", &gzip, "tar+gzip")?, "gzip"),
    ])
}

/// Where the caller may write so much to a file and no more (RLIMIT_FSIZE).
fn a_bomb_ends_where_files_end(context: &Context) -> Result<()> {
    let cache = context.cache();
    for (image, name) in bombs(context, 256)? {
        let told = Program::new("sh")
            .args(["-c", LIMITED])
            .arg(orbit_cli::binary()?)
            .args(["16777216", "run", "--image", &image, "--", "true"])
            .run()?
            .code(125)
            .with_context(|| name.to_owned())?;
        let words = ["File too large", "nothing of it was kept"];
        one_paragraph(&told.stderr, &words).with_context(|| name.to_owned())?;
        check_gone(context, &cache).with_context(|| name.to_owned())?;
    }
    Ok(())
}

fn a_bomb_ends_where_the_disk_does(context: &Context) -> Result<()> {
    for (image, name) in bombs(context, 256)? {
        let disk = Disk::mount(context, "small", 16 << 10)?;
        let cache: PathBuf = disk.path().to_owned();
        let told = run_in(context, &cache, &image)?
            .code(125)
            .with_context(|| name.to_owned())?;
        one_paragraph(&told.stderr, &["No space left on device"])
            .with_context(|| name.to_owned())?;
        // There is room again, with no more than what there was.
        check_gone(context, &cache).with_context(|| name.to_owned())?;
        disk.unmount()?;
    }
    Ok(())
}
