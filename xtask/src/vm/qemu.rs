//! The virtual machine: how it is started, read, and ended.

use std::{
    fmt, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

pub(super) const PROGRAM: &str = "qemu-system-x86_64";

/// How long the probe of the hardware may take.
const PROBE: Duration = Duration::from_secs(10);

/// What makes the machine fast, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acceleration {
    Kvm,
    Emulation,
}

impl fmt::Display for Acceleration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Emulation => "tcg",
        })
    }
}

/// What this host can do, found out once and kept in `directory`.
///
/// The probe boots this very kernel as far as its first root. Less tells little: hardware that is itself emulated
/// may get through the firmware, and then stop at an instruction it does not know.
///
/// # Errors
/// Where there is no QEMU.
pub(super) fn acceleration(
    directory: &Path,
    kernel: &Path,
    initramfs: &Path,
) -> Result<Acceleration> {
    let cache = directory.join("acceleration");
    match fs::read_to_string(&cache).as_deref() {
        Ok("kvm") => return Ok(Acceleration::Kvm),
        Ok("tcg") => return Ok(Acceleration::Emulation),
        _ => {}
    }
    let probe = Machine {
        kernel: kernel.to_owned(),
        initramfs: initramfs.to_owned(),
        disk: None,
        acceleration: Acceleration::Kvm,
    };
    let mut booted = false;
    if Path::new("/dev/kvm").exists() {
        let ended = probe.run(PROBE, |line| booted |= line == super::script::PROBED);
        booted &= ended.is_ok();
    }
    let found = if booted {
        Acceleration::Kvm
    } else {
        Acceleration::Emulation
    };
    fs::write(cache, found.to_string())?;
    Ok(found)
}

/// A machine to be started.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
    /// Without one it only says that it has booted.
    pub(super) disk: Option<PathBuf>,
    pub(super) acceleration: Acceleration,
}

impl Machine {
    fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        let accel = match self.acceleration {
            Acceleration::Kvm => "kvm",
            Acceleration::Emulation => "tcg,thread=multi",
        };
        command
            .args(["-accel", accel, "-cpu", "max", "-smp", "2", "-m", "3072"])
            .args([
                "-nodefaults",
                "-display",
                "none",
                "-no-reboot",
                "-serial",
                "stdio",
            ])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs);
        if let Some(disk) = &self.disk {
            // Writes are thrown away: each run starts from the same disk.
            let drive = format!("file={},format=raw,if=virtio,snapshot=on", disk.display());
            command.arg("-drive").arg(drive);
        }
        command.args([
            "-append",
            "console=ttyS0 quiet loglevel=3 panic=-1 cgroup_no_v1=all psi=1 mitigations=off",
        ]);
        command
    }

    /// Runs it to its end, and shows each line of its console to `see`. How it ended.
    ///
    /// # Errors
    /// Where it does not start, or has to be killed at the deadline.
    pub(super) fn run(&self, deadline: Duration, mut see: impl FnMut(&str)) -> Result<ExitStatus> {
        let mut child = self
            .command()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {PROGRAM}: install the package qemu-system-x86"))?;
        let console = child.stdout.take().context("it is piped")?;
        let (sender, lines) = mpsc::channel();
        let reader = thread::spawn(move || {
            let mut console = BufReader::new(console);
            let mut line = Vec::new();
            while console
                .read_until(b'\n', &mut line)
                .is_ok_and(|count| count > 0)
            {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(text).is_err() {
                    return;
                }
                line.clear();
            }
        });
        let until = Instant::now() + deadline;
        let in_time = loop {
            match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => see(&line),
                Err(mpsc::RecvTimeoutError::Disconnected) => break true,
                Err(mpsc::RecvTimeoutError::Timeout) => break false,
            }
        };
        if !in_time {
            child.kill()?;
        }
        let status = child.wait()?;
        // It ends with the console.
        let _ = reader.join();
        if !in_time {
            bail!(
                "the machine was killed after {} s; its console is above",
                deadline.as_secs()
            );
        }
        Ok(status)
    }
}
