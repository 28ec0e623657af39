//! A disk that is full, or a file that may not grow, while a layer comes from a registry: an error that says so, and nothing
//! that was there by then is used as if it were whole.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use orbit_tests::{Case, Context, Finished, Program, Registry, Who, orbit_cli};

use super::{
    case,
    layouts::{Layout, archive_of},
};
use crate::kit::one_paragraph;

pub(super) fn cases() -> Vec<Case> {
    let case = |name, run| {
        case(name, run)
            .needs(Registry::NEEDS)
            .deadline(Duration::from_secs(90))
    };
    vec![
        case(
            "a_download_that_finds_files_at_their_end_is_mended",
            a_download_that_finds_files_at_their_end_is_mended,
        ),
        // To mount a small disk.
        case(
            "a_download_that_fills_the_disk_is_mended",
            a_download_that_fills_the_disk_is_mended,
        )
        .who(&[Who::Root])
        .needs_kernel((6, 3), "tmpfs can be mounted with other ids"),
    ]
}

/// A shell's words for `cargo orbit`, whose path is `$0`, where no file may be larger than `$1` bytes, in blocks of 512. It
/// ignores the signal by which it would be ended.
pub(super) const LIMITED: &str =
    "ulimit -f $(($1 / 512)); shift; trap '' XFSZ; exec \"$0\" orbit \"$@\"";
/// The same with that signal.
const ENDED: &str = "ulimit -f $(($1 / 512)); shift; exec \"$0\" orbit \"$@\"";

/// A small disk, a tmpfs in the case's directory.
pub(super) struct Disk {
    path: PathBuf,
    is_mounted: bool,
}

impl Disk {
    pub(super) fn mount(context: &Context, name: &str, size_kib: u64) -> Result<Self> {
        let path = context.work().join(name);
        fs::create_dir_all(&path)?;
        let options = format!("size={size_kib}k,mode=755");
        let tmpfs = Some("tmpfs");
        mount(tmpfs, &path, tmpfs, MsFlags::empty(), Some(&*options))?;
        Ok(Self {
            path,
            is_mounted: true,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn resize(&self, size_kib: u64) -> Result<()> {
        let options = format!("size={size_kib}k,mode=755");
        let none = None::<&str>;
        mount(none, &self.path, none, MsFlags::MS_REMOUNT, Some(&*options))?;
        Ok(())
    }

    /// That nobody uses it any more is a part of what is tested.
    pub(super) fn unmount(mut self) -> Result<()> {
        self.is_mounted = false;
        umount2(&self.path, MntFlags::empty())?;
        Ok(())
    }
}

/// Where a test fails, so that its directory can be removed.
impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        }
    }
}

const NOISE_BYTES: usize = 6 << 20;

/// busybox in a registry, with a layer that no compression makes smaller, and the SHA-256 of the file in it.
struct Noisy {
    registry: Registry,
    image: String,
    digest: String,
}

impl Noisy {
    fn push(context: &Context) -> Result<Self> {
        let mut layout = Layout::of_busybox(context, "noisy")?;
        let mut state = 0x9e37_79b9_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[0]
        })
        .take(NOISE_BYTES)
        .collect();
        let digest = layout.digest(&noise)?;
        layout.add_plain_layer(&archive_of("noise", &noise))?;
        layout.write()?;
        let registry = Registry::start()?;
        let image = registry.push(layout.path(), "orbit/noisy:v1")?;
        Ok(Self {
            registry,
            image,
            digest,
        })
    }

    /// That the image is there as it should be, and was not brought from where it cannot be.
    fn check_whole(&self, finished: Finished) -> Result<()> {
        let finished = finished.success()?;
        let found = finished.stdout.split(' ').next();
        ensure!(found == Some(&self.digest), "{finished}");
        Ok(())
    }
}

const SUM: [&str; 3] = ["--", "sha256sum", "/noise"];

fn run_in(context: &Context, cache: &Path, words: &[&str]) -> Result<Finished> {
    context
        .orbit("run")?
        .env("ORBIT_CACHE_DIR", cache)
        .args(words)
        .args(SUM)
        .run()
}

/// What is there of an image is not the image: without its registry it cannot be run.
fn check_not_used(context: &Context, cache: &Path, noisy: &Noisy) -> Result<()> {
    let words = ["--pull", "never", "--image", &noisy.image];
    let refused = run_in(context, cache, &words)?.code(125)?;
    one_paragraph(&refused.stderr, &["is not in the store"])
}

fn a_download_that_finds_files_at_their_end_is_mended(context: &Context) -> Result<()> {
    let noisy = Noisy::push(context)?;
    for (number, bytes) in [4096, 1_000_000, 3_000_000].iter().enumerate() {
        for (way, script) in [("told", LIMITED), ("ended", ENDED)] {
            let cache = context.work().join(format!("cache-{number}-{way}"));
            let told = || format!("{way} at {bytes} bytes");
            let first = Program::new("sh")
                .args(["-c", script])
                .arg(orbit_cli::binary()?)
                .args([&bytes.to_string(), "run", "--image", &noisy.image])
                .args(SUM)
                .env("ORBIT_CACHE_DIR", &cache)
                .run()?;
            if way == "told" {
                let first = first.code(125).with_context(told)?;
                one_paragraph(&first.stderr, &["File too large"]).with_context(told)?;
            } else {
                let by_signal = first.status.signal() == Some(libc::SIGXFSZ);
                ensure!(by_signal || first.status.code() == Some(125), "{first}");
            }
            check_not_used(context, &cache, &noisy).with_context(told)?;
            let next = run_in(context, &cache, &["--image", &noisy.image])?;
            noisy.check_whole(next).with_context(told)?;
        }
    }
    Ok(())
}

fn a_download_that_fills_the_disk_is_mended(context: &Context) -> Result<()> {
    let noisy = Noisy::push(context)?;
    let mut while_downloading = 0;
    // At once, in mid-layer, and with no room to unpack what has come whole.
    for size_kib in [16, 512, 4096, 7168] {
        let disk = Disk::mount(context, "small", size_kib)?;
        let told = || format!("{size_kib} KiB");
        let words = ["--image", &noisy.image];
        let first = run_in(context, disk.path(), &words)?
            .code(125)
            .with_context(told)?;
        one_paragraph(&first.stderr, &["No space left on device"]).with_context(told)?;
        while_downloading += usize::from(first.stderr.contains("partial"));
        check_not_used(context, disk.path(), &noisy).with_context(told)?;
        // Still full: no worse than before.
        let again = run_in(context, disk.path(), &words)?
            .code(125)
            .with_context(told)?;
        one_paragraph(&again.stderr, &["No space left on device"]).with_context(told)?;
        disk.resize(64 << 10)?;
        let next = run_in(context, disk.path(), &words)?;
        noisy.check_whole(next).with_context(told)?;
        // And what was downloaded is not kept beside what is unpacked.
        let partial = fs::read_dir(disk.path().join("v1/partial"))?.count();
        ensure!(partial == 0, "{}: {partial} downloads are left", told());
        disk.unmount()?;
    }
    ensure!(
        while_downloading > 1,
        "{while_downloading} of them while it downloaded:\n{}",
        noisy.registry.log()
    );
    Ok(())
}
