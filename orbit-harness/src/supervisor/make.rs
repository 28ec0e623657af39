//! Carries out the steps of a plan, inside the new namespaces.
//!
//! Paths inside the sandbox's root are resolved with `openat2` and `RESOLVE_IN_ROOT`, once, to a descriptor,
//! and mounts go onto that descriptor: no link in an image, and none swapped meanwhile, can lead one astray.
//!
//! Where a call takes paths alone, a directory is made the working directory and called `.`; what is no directory, or may
//! not be entered, goes by `/proc/self/fd`, which makes entries of `/proc` that the end of this process has to remove. So the working
//! directory is anything: each step that needs one sets it.

mod covers;
mod devices;
mod layers;
mod network;
mod paths;
mod shared;
mod syscalls;

use std::{collections::VecDeque, os::fd::OwnedFd};

use rustix::{
    fs::Mode,
    io::Errno,
    mount::{MountFlags, UnmountFlags},
};

use self::syscalls::{INERT, chown, mount, open_directory, tmpfs_options, with_path};
pub(super) use self::{
    devices::TerminalPair,
    network::LOOPBACK,
    paths::MASK,
    shared::{Mounted, SharedLayers},
};
use super::{
    channel::Channel,
    files,
    home::{HOST, STAGE},
    protocol::{Cause, FileMeta},
};
use crate::{netfilter::Netfilter, spec::InitFile, step::Step};

type Done = Result<(), Cause>;

/// What the steps so far have made.
pub(super) struct Maker {
    /// `/host`, to resolve the host's paths in.
    host: OwnedFd,
    /// The new root, once it is there.
    root: Option<OwnedFd>,
    /// What covers masked files: the host's `/dev/null` in this sandbox's `/dev`, whatever the image's is
    /// (CVE-2025-31133).
    null: Option<OwnedFd>,
    /// Who owns what stands for the system's own directories.
    system: u32,
    /// Writable layers made so far.
    layers: usize,
    /// Of its network, where that is its own.
    socket: Option<OwnedFd>,
    /// To who connects this sandbox to its networks, one for each link.
    networks: VecDeque<Channel>,
    terminal: Option<TerminalPair>,
    /// The filesystem of all writable layers, for who asked for the sandbox: to read what was written.
    scratch: Option<OwnedFd>,
    /// What the program that leads out writes: its number when it does, and what is wrong otherwise.
    helper: Option<Helper>,
    record: Record,
}

/// Ways to and from a program that is started for the sandbox: to hand it the network, and what it writes.
pub(super) struct Helper {
    pub(super) network: Channel,
    pub(super) output: OwnedFd,
    pub(super) errors: OwnedFd,
}

/// What reads the gate's refusals, or why nothing does.
#[derive(Default)]
pub(super) struct Record {
    pub(super) netfilter: Option<Netfilter>,
    pub(super) unrecorded: Option<i32>,
}

impl From<Errno> for Cause {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno.raw_os_error())
    }
}

impl Maker {
    pub(super) fn new(
        socket: Option<OwnedFd>,
        networks: Vec<Channel>,
        helper: Option<Helper>,
    ) -> rustix::io::Result<Self> {
        let host = open_directory(HOST)?;
        Ok(Self {
            host,
            root: None,
            null: None,
            system: 0,
            layers: 0,
            socket,
            networks: networks.into(),
            terminal: None,
            scratch: None,
            helper,
            record: Record::default(),
        })
    }

    pub(super) fn take_terminal(&mut self) -> Option<TerminalPair> {
        self.terminal.take()
    }

    pub(super) fn take_scratch(&mut self) -> Option<OwnedFd> {
        self.scratch.take()
    }

    pub(super) fn take_record(&mut self) -> Record {
        std::mem::take(&mut self.record)
    }

    pub(super) fn carry_out(&mut self, step: &Step) -> Done {
        match step {
            Step::Loopback => self.loopback_up(),
            Step::AllPorts => self.all_ports(),
            Step::Gate { gate, is_needed } => self.gate(gate, *is_needed),
            Step::Egress { .. } => self.await_helper(),
            Step::Link { name, link } => self.link(name, link),
            Step::CoverEtc(files) => files.iter().try_for_each(|file| self.cover_etc(file)),
            Step::Hostname(name) => Ok(rustix::system::sethostname(name.as_bytes())?),
            Step::Scratch { size, owner } => {
                self.system = *owner;
                layers::scratch(*size)?;
                self.scratch = Some(open_directory(STAGE)?);
                Ok(())
            }
            Step::OverlayRoot { lower, etc } => self.overlay_root(lower, etc),
            Step::HostRoot { own, hidden } => self.host_root(own, hidden),
            Step::EmptyRoot => self.empty_root(),
            Step::Directory { at, mode } => self.directory(at, *mode).map(drop),
            Step::Fresh { at, mode } => self.fresh(at, *mode),
            Step::Home { at } => {
                let home = self.directory(at, 0o700)?;
                Ok(with_path(&home, |path| {
                    rustix::fs::chmod(path, Mode::from_raw_mode(0o700))?;
                    chown(path, 0, 0)
                })?)
            }
            Step::Symlink { at, target } => self.symlink(at, target),
            Step::Overlay { source, at } => self.overlay(source, at),
            Step::Shared { at, .. } => self.shared(at),
            Step::OverlaySealed { layers, source, at } => {
                self.overlay_sealed(layers, source.as_deref(), at)
            }
            Step::Bind {
                source,
                at,
                read_only,
            } => self.bind(source, at, *read_only),
            Step::Tmpfs { at, size, mode } => {
                let target = self.directory(at, 0o755)?;
                let flags = MountFlags::NOSUID | MountFlags::NODEV;
                Ok(mount(
                    Some("tmpfs"),
                    &target,
                    "tmpfs",
                    flags,
                    &tmpfs_options(*size, *mode),
                )?)
            }
            Step::File(file) => self.file(file),
            Step::Proc => {
                let target = self.own_directory("proc")?;
                Ok(mount(Some("proc"), &target, "proc", INERT, "")?)
            }
            Step::Sys { fresh } => self.sys(*fresh),
            Step::Cgroup => self.cgroup(),
            Step::Dev { shm, console } => self.dev(*shm, *console),
            Step::PivotRoot => self.pivot_root(),
            Step::Mask(paths) => {
                let mut empty = None;
                paths
                    .iter()
                    .try_for_each(|path| self.mask(path, &mut empty))?;
                Ok(rustix::process::chdir("/")?)
            }
            Step::ReadOnlyPaths(paths) => paths.iter().try_for_each(|path| covers::read_only(path)),
            Step::ReadOnlyRoot => {
                let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV;
                Ok(rustix::mount::mount_remount("/", flags, c"")?)
            }
        }
    }

    fn file(&self, file: &InitFile) -> Done {
        let meta = FileMeta {
            mode: file.mode,
            owner: file.owner.clone(),
        };
        files::write(self.root()?, &file.at, &file.content, &meta).map_err(Cause::File)
    }

    fn root(&self) -> Result<&OwnedFd, Cause> {
        // A plan whose root comes late is no plan of this crate's making.
        self.root.as_ref().ok_or(Cause::Errno(libc::EINVAL))
    }

    fn pivot_root(&mut self) -> Done {
        rustix::process::fchdir(self.root()?)?;
        // From here on it is `/`.
        self.root = None;
        // The old root ends up under the new one, at the same place, and goes from there.
        rustix::process::pivot_root(".", ".")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH)?;
        rustix::process::chdir("/")?;
        Ok(())
    }
}
