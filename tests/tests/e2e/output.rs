//! Captured output beyond what is kept.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use orbit::{Bytes, Note, OutputStream};
use orbit_tests::{Case, Context, main_loop::patience};

use crate::kit::{View, own_status, status_field};

pub(crate) fn cases() -> Vec<Case> {
    let name = "output::a_gigabyte_is_kept_in_part";
    vec![Case::new(name, a_gigabyte_is_kept_in_part).deadline(Duration::from_secs(60))]
}

/// A program that prints a GiB takes neither a GiB of the test's memory nor its time.
fn a_gigabyte_is_kept_in_part(_: &Context) -> Result<()> {
    let count = gigabyte();
    let peak = || status_kib("VmHWM");
    let before = peak()?;
    let script = format!("echo first; head -c {count} /dev/zero; echo; echo last; echo err >&2");
    let started = Instant::now();
    let outcome = View::Host.sh(&script)?.run()?;
    let took = started.elapsed();
    ensure!(outcome.success(), "{}", outcome.status);
    let stdout = &outcome.stdout;
    ensure!(stdout.starts_with(b"first\n\0") && stdout.ends_with(b"\0\nlast\n"));
    ensure!(outcome.stderr_text() == "err\n");
    let note = Note::OutputCut {
        stream: OutputStream::Stdout,
        left_out: Bytes::new(count + 12 - (16 << 20)),
    };
    ensure!(outcome.notes == [note], "{:?}", outcome.notes);
    let line = format!("[orbit: {} bytes left out", count + 12 - (16 << 20));
    let middle = &stdout[8 << 20..][..200];
    ensure!(
        String::from_utf8_lossy(middle).contains(&line),
        "{}",
        stdout.len()
    );
    let grown = peak()?.saturating_sub(before);
    println!(
        "{count} bytes in {took:?}, the test's memory grew by {} MiB",
        grown >> 10
    );
    // 16 MiB kept, put together, and handed out beside what `wait` would hand out again.
    ensure!(grown < 80 << 10, "{grown} KiB");

    let outcome = View::Host.sh("seq 100")?.capture_limit("10").run()?;
    let text = outcome.stdout_text();
    ensure!(text.starts_with("1\n2\n3\n[orbit: 282 bytes"), "{text}");
    ensure!(text.ends_with("\n\n100\n"), "{text}");
    Ok(())
}

/// An emulated processor needs minutes for a GiB; a sixteenth is still more than what is kept.
fn gigabyte() -> u64 {
    if patience() > 1 { 64 << 20 } else { 1 << 30 }
}

/// A figure of `/proc/self/status`, in KiB.
fn status_kib(name: &str) -> Result<u64> {
    let status = own_status()?;
    let text = status_field(&status, name)?;
    Ok(text.trim_end_matches("kB").trim().parse()?)
}
