//! The steps by which a sandbox is made, as data.
//!
//! `rootfs` and `plan` write them, the supervisor's init carries them out, and their rendering, one line a
//! step, is what reviews, snapshots and error messages show. Paths in `source` and `lower` are the host's;
//! paths in `at` are the sandbox's, resolved within its root and never beyond it.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    netfilter::Gate,
    spec::{InitFile, Link},
    units::Bytes,
};

/// One thing to do inside the new namespaces, before the program starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    /// Bring `lo` up.
    Loopback,
    /// Let everybody bind every port, in the new `/proc`: a network of one's own has no ports to guard.
    AllPorts,
    /// Be on a network: a link with this name, and an address.
    Link { name: String, link: Link },
    /// Let out what may leave, refuse the rest, and record it. Where the kernel cannot, it is an error if something is
    /// to be kept in, and a warning otherwise.
    Gate { gate: Gate, is_needed: bool },
    /// Wait until this program leads out of the network. The supervisor has started it.
    Egress { program: PathBuf, args: Vec<String> },
    /// Set the host name.
    Hostname(String),
    /// A filesystem in memory that holds everything the sandbox writes. What Orbit makes in it that stands for
    /// the system's own belongs to `owner`.
    Scratch { size: Bytes, owner: u32 },
    /// The root: one or more read-only trees under a writable layer in the scratch, which holds these files of
    /// `/etc` from the start.
    OverlayRoot { lower: Lower, etc: Vec<EtcFile> },
    /// The root: the host's own, without what is mounted in it, under a writable layer in the scratch. There directories
    /// of the sandbox's own, which hide the host's, and nothing in place of the rest that is hidden.
    HostRoot {
        own: Vec<(PathBuf, u32)>,
        hidden: Vec<PathBuf>,
    },
    /// The root: an empty directory in the scratch.
    EmptyRoot,
    /// A directory of the system's, with its parents; what is there already stays.
    Directory { at: PathBuf, mode: u32 },
    /// An empty directory in the scratch, over what is there.
    Fresh { at: PathBuf, mode: u32 },
    /// The private home directory of who the program runs as.
    Home { at: PathBuf },
    /// Files of `/etc`, mounted over those of the host.
    CoverEtc(Vec<EtcFile>),
    /// A symbolic link, where nothing is yet.
    Symlink { at: PathBuf, target: PathBuf },
    /// A directory of the host, and above it what sealed layers have at the same place, under a writable layer in the
    /// scratch. Topmost first; a layer that has nothing there is left out.
    OverlaySealed {
        layers: Vec<PathBuf>,
        source: Option<PathBuf>,
        at: PathBuf,
    },
    /// A directory of the host under a writable layer in the scratch.
    Overlay { source: PathBuf, at: PathBuf },
    /// A directory of the host under a layer that takes no writes, which is the same for all sandboxes. Who may not write
    /// there on the host hears the same as there. `owner` as for the scratch.
    Shared { at: PathBuf, owner: u32 },
    /// A file or directory of the host, with what is mounted below it.
    Bind {
        source: PathBuf,
        at: PathBuf,
        read_only: bool,
    },
    /// A file, with its parents where they are missing.
    File(InitFile),
    /// A fresh filesystem in memory.
    Tmpfs { at: PathBuf, size: Bytes, mode: u32 },
    /// A fresh `/proc`.
    Proc,
    /// `/sys`: fresh for a network namespace of its own, the host's otherwise; read-only.
    Sys { fresh: bool },
    /// What the sandbox's control group says of its limits, at the place where programs look for them; read-only.
    Cgroup,
    /// `/dev` with the harmless devices, and the message queues and terminals of this sandbox.
    Dev { shm: Bytes, console: bool },
    /// Make the new root the root, and let go of the host's.
    PivotRoot,
    /// Cover files with `/dev/null` and directories with an empty one; what is not there needs no cover.
    Mask(Vec<PathBuf>),
    /// Make paths read-only; what is not there needs none of it.
    ReadOnlyPaths(Vec<PathBuf>),
    /// Make the root read-only.
    ReadOnlyRoot,
}

/// What lies under the writable layer of a root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Lower {
    /// Layers of an image, lowest first, by their names in `dir`; below all of them `base`, where there is one.
    Layers {
        dir: PathBuf,
        names: Vec<String>,
        base: Option<PathBuf>,
        /// Whether the topmost `/etc` is a directory, or there is none, where that is known.
        has_plain_etc: Option<bool>,
    },
    /// One directory.
    Directory(PathBuf),
}

/// A file of `/etc`, in place of the image's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EtcFile {
    pub(crate) name: String,
    pub(crate) content: String,
}

impl Step {
    /// Shows the host's directory as it is, read-only, in place of a layer over it that takes writes.
    pub(crate) fn without_writes(&mut self) {
        if let Self::Overlay { source, at } = self {
            let (source, at) = (std::mem::take(source), std::mem::take(at));
            *self = Self::Bind {
                source,
                at,
                read_only: true,
            };
        }
    }

    /// The same over `layers`, which were sealed from a sandbox that was made by this step, or by one for the whole root;
    /// topmost first.
    pub(crate) fn over_sealed(self, dir: &std::path::Path, names: &[String]) -> Self {
        let layers = || names.iter().rev().map(|name| dir.join(name)).collect();
        match self {
            Self::EmptyRoot => Self::OverlayRoot {
                lower: Lower::Layers {
                    dir: dir.to_owned(),
                    names: names.to_vec(),
                    base: None,
                    has_plain_etc: None,
                },
                etc: Vec::new(),
            },
            Self::Overlay { source, at } => Self::OverlaySealed {
                layers: layers(),
                source: Some(source),
                at,
            },
            Self::Fresh { at, .. } => Self::OverlaySealed {
                layers: layers(),
                source: None,
                at,
            },
            other => other,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback => f.write_str("link lo up"),
            Self::AllPorts => f.write_str("sysctl net.ipv4.ip_unprivileged_port_start=0"),
            Self::Link { name, link } => write!(
                f,
                "link {name} network={} address={}/{}",
                link.network,
                link.address,
                link.subnet.prefix()
            ),
            Self::Gate { gate, .. } => gate.fmt(f),
            Self::Egress { program, args } => {
                write!(f, "egress by {} {}", program.display(), args.join(" "))
            }
            Self::Hostname(name) => write!(f, "hostname {name}"),
            Self::Scratch { size, owner } => {
                write!(f, "mount tmpfs scratch size={size} owner={owner}")
            }
            Self::OverlayRoot { lower, etc } => {
                match lower {
                    Lower::Layers { names, base, .. } => {
                        write!(f, "mount overlay / lower={}", names.len())?;
                        if let Some(base) = base {
                            write!(f, " over {}", base.display())?;
                        }
                    }
                    Lower::Directory(path) => {
                        write!(f, "mount overlay / lower={}", path.display())?;
                    }
                }
                f.write_str(" upper=scratch")?;
                etc.iter()
                    .try_for_each(|file| write!(f, " /etc/{}={:?}", file.name, file.content))
            }
            Self::HostRoot { own, hidden } => {
                f.write_str("mount overlay / lower=/ upper=scratch")?;
                if !own.is_empty() {
                    f.write_str(" own=")?;
                    for (number, (path, mode)) in own.iter().enumerate() {
                        let comma = if number == 0 { "" } else { "," };
                        write!(f, "{comma}{}:{mode:o}", path.display())?;
                    }
                }
                if !hidden.is_empty() {
                    write!(f, " hidden={}", list(hidden).replace(' ', ","))?;
                }
                Ok(())
            }
            Self::EmptyRoot => f.write_str("mount bind / from=scratch"),
            Self::Directory { at, mode } => write!(f, "directory {} mode={mode:o}", at.display()),
            Self::Fresh { at, mode } => {
                write!(f, "mount bind {} from=scratch mode={mode:o}", at.display())
            }
            Self::Home { at } => write!(f, "home {} mode=700", at.display()),
            Self::CoverEtc(files) => {
                f.write_str("mount bind over")?;
                files
                    .iter()
                    .try_for_each(|file| write!(f, " /etc/{}={:?}", file.name, file.content))
            }
            Self::Symlink { at, target } => {
                write!(f, "symlink {} to={}", at.display(), target.display())
            }
            Self::OverlaySealed { layers, source, at } => {
                write!(
                    f,
                    "mount overlay {} lower={} sealed",
                    at.display(),
                    layers.len()
                )?;
                if let Some(source) = source {
                    write!(f, " over {}", source.display())?;
                }
                f.write_str(" upper=scratch")
            }
            Self::Overlay { source, at } => {
                write!(
                    f,
                    "mount overlay {} lower={} upper=scratch",
                    at.display(),
                    source.display()
                )
            }
            Self::Shared { at, .. } => {
                let at = at.display();
                write!(f, "mount overlay {at} lower={at} shared")
            }
            Self::Bind {
                source,
                at,
                read_only,
            } => {
                let mode = if *read_only { "ro" } else { "rw" };
                write!(
                    f,
                    "mount bind {} from={} {mode}",
                    at.display(),
                    source.display()
                )
            }
            Self::Tmpfs { at, size, mode } => {
                write!(
                    f,
                    "mount tmpfs {} size={size} mode={mode:o} nosuid nodev",
                    at.display()
                )
            }
            Self::File(file) => {
                write!(f, "file {} bytes={}", file.at.display(), file.content.len())?;
                if let Some(mode) = file.mode {
                    write!(f, " mode={mode:o}")?;
                }
                match &file.owner {
                    Some(owner) => write!(f, " owner={owner}"),
                    None => Ok(()),
                }
            }
            Self::Proc => f.write_str("mount proc /proc nosuid nodev noexec"),
            Self::Cgroup => f.write_str("mount cgroup2 /sys/fs/cgroup ro nosuid nodev noexec"),
            Self::Sys { fresh: true } => f.write_str("mount sysfs /sys ro nosuid nodev noexec"),
            Self::Sys { fresh: false } => {
                f.write_str("mount bind /sys from=/sys ro nosuid nodev noexec")
            }
            Self::Dev { shm, console } => {
                write!(
                    f,
                    "mount bind /dev from=scratch nosuid nodev noexec with={} shm={shm}",
                    DEVICES.join(",")
                )?;
                if *console {
                    f.write_str(" console")
                } else {
                    Ok(())
                }
            }
            Self::PivotRoot => f.write_str("pivot_root"),
            Self::Mask(paths) => write!(f, "mask {}", list(paths)),
            Self::ReadOnlyPaths(paths) => write!(f, "read-only {}", list(paths)),
            Self::ReadOnlyRoot => f.write_str("read-only /"),
        }
    }
}

/// The devices of the host that a sandbox has: none of them keeps data or reaches hardware.
pub(crate) const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

fn list(paths: &[PathBuf]) -> String {
    let texts: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    texts.join(" ")
}
