//! Faults of the image cache: a full disk, and a kill in mid-unpack. Nothing half-unpacked is ever used.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount, umount};
use orbit_tests::{Case, Context, Finished, LeakAudit, Who, images, orbit_cli};

use crate::kit::{has, one_paragraph};

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("cache::{name}"), run).deadline(Duration::from_secs(60))
    };
    vec![
        case(
            "a_kill_in_mid_unpack_is_mended",
            a_kill_in_mid_unpack_is_mended,
        )
        .deadline(Duration::from_secs(90))
        .who(Who::RANGED),
        // To mount a small disk, on which the owners of a layer's files are those of the sandbox.
        case("a_full_disk_is_an_error", a_full_disk_is_an_error)
            .who(&[Who::Root])
            .needs_kernel((6, 3), "tmpfs can be mounted with other ids"),
        // To mount it.
        case("a_cache_that_takes_no_writes_is_told_of", takes_no_writes).who(&[Who::Root]),
    ]
}

/// What is there can be listed; what writes says what to do.
fn takes_no_writes(context: &Context) -> Result<()> {
    let cache = context.work().join("fixed");
    fs::create_dir(&cache)?;
    verify(context, "fixed")?.success()?;
    let flags = |more| MsFlags::MS_BIND | more;
    mount(
        Some(&cache),
        &cache,
        None::<&str>,
        flags(MsFlags::empty()),
        None::<&str>,
    )?;
    let run = || -> Result<()> {
        let fixed = flags(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
        mount(None::<&str>, &cache, None::<&str>, fixed, None::<&str>)?;
        let verb =
            |verb: &str| -> Result<_> { Ok(context.orbit(verb)?.env("ORBIT_CACHE_DIR", &cache)) };
        verb("images")?.run()?.success()?;
        let told = [
            verify(context, "fixed")?.code(125)?,
            verb("gc")?.run()?.code(1)?,
            // Which is not unpacked yet.
            verb("run")?
                .args(["--image", &images::reference("busybox")?, "--", "true"])
                .run()?
                .code(125)?,
        ];
        for finished in told {
            let words = ["Read-only file system", "set ORBIT_CACHE_DIR"];
            one_paragraph(&finished.stderr, &words)?;
            let once = finished.stderr.matches("Read-only file system").count() == 1;
            ensure!(once, "{finished}");
        }
        Ok(())
    };
    let ran = run();
    umount(&cache)?;
    ran
}

/// The image checks by itself that its files are what they should be.
fn verify(context: &Context, cache: &str) -> Result<Finished> {
    context
        .orbit("run")?
        .env("ORBIT_CACHE_DIR", context.work().join(cache))
        .args(["--image", &images::reference("layers")?, "--", "/verify.sh"])
        .run()
}

fn a_kill_in_mid_unpack_is_mended(context: &Context) -> Result<()> {
    let image = images::reference("layers")?;
    // Unpacking takes longer on some machines: the moments are others in each run.
    let jitter = u64::from(std::process::id()) % 30;
    for round in 0..4_u64 {
        let audit = LeakAudit::adopting([context.tmp()], [context.cache().join("run")]);
        let after = Duration::from_millis(15 + jitter + round * 35);
        let cache = format!("cache-{round}");
        let mut child = Command::new(orbit_cli::binary()?)
            .args(["orbit", "pull", "--missing", &image])
            .env("ORBIT_CACHE_DIR", context.work().join(&cache))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        thread::sleep(after);
        child.kill()?;
        child.wait()?;
        let told = || format!("killed after {after:?}");
        audit.check().with_context(told)?;
        let found = verify(context, &cache)?.success().with_context(told)?;
        has(&found.stdout, &[" 0 differ,"]).with_context(told)?;
    }
    Ok(())
}

fn a_full_disk_is_an_error(context: &Context) -> Result<()> {
    let cache = context.work().join("small");
    fs::create_dir(&cache)?;
    let (mut refused, mut passed) = (0, 0);
    for kib in [64, 1024, 32_768] {
        let size = format!("size={kib}k,mode=755");
        mount(
            Some("small"),
            &cache,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(size.as_str()),
        )?;
        let first = verify(context, "small");
        // With room the next one works.
        let more = mount(
            Some("small"),
            &cache,
            Some("tmpfs"),
            MsFlags::MS_REMOUNT,
            Some("size=64m,mode=755"),
        );
        let second = verify(context, "small");
        umount(&cache)?;
        more?;
        let first = first?;
        if first.status.code() == Some(0) {
            passed += 1;
        } else {
            let said = first.code(125).with_context(|| size.clone())?.stderr;
            one_paragraph(&said, &["No space left on device"]).with_context(|| size.clone())?;
            refused += 1;
        }
        has(&second?.success()?.stdout, &[" 0 differ,"]).with_context(|| size.clone())?;
    }
    ensure!(
        refused > 1 && passed > 0,
        "{refused} refused, {passed} passed"
    );
    Ok(())
}
