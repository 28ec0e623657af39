//! Carries out the steps of a plan, inside the new namespaces.
//!
//! Paths inside the sandbox's root are resolved with `openat2` and `RESOLVE_IN_ROOT`, once, to a descriptor,
//! and mounts go onto that descriptor: no link in an image, and none swapped meanwhile, can lead one astray.

use std::{
    collections::VecDeque,
    ffi::CString,
    fs::File,
    io::{self, Write as _},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
    mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags},
};

use super::{
    channel::Channel,
    home::{HOST, STAGE, below_host},
    protocol::Cause,
};
use crate::{
    netlink::Netlink,
    spec::Link,
    step::{DEVICES, EtcFile, Lower, Step},
    sys,
    units::Bytes,
};

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
    /// To who connects this sandbox to its networks, one for each link.
    networks: VecDeque<Channel>,
    terminal: Option<TerminalPair>,
}

/// A terminal of the sandbox.
pub(super) struct TerminalPair {
    pub(super) caller_side: OwnedFd,
    pub(super) program_side: OwnedFd,
}

impl From<Errno> for Cause {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno.raw_os_error())
    }
}

impl Maker {
    pub(super) fn new(networks: Vec<Channel>) -> rustix::io::Result<Self> {
        let host = open_directory(HOST)?;
        Ok(Self {
            host,
            root: None,
            null: None,
            system: 0,
            layers: 0,
            networks: networks.into(),
            terminal: None,
        })
    }

    pub(super) fn take_terminal(&mut self) -> Option<TerminalPair> {
        self.terminal.take()
    }

    pub(super) fn carry_out(&mut self, step: &Step) -> Done {
        match step {
            Step::Loopback => Ok(loopback_up()?),
            Step::AllPorts => Ok(all_ports()?),
            Step::Link { name, link } => self.link(name, link),
            Step::CoverEtc(files) => files.iter().try_for_each(|file| self.cover_etc(file)),
            Step::Hostname(name) => Ok(rustix::system::sethostname(name.as_bytes())?),
            Step::Scratch { size, owner } => {
                self.system = *owner;
                Ok(scratch(*size)?)
            }
            Step::OverlayRoot { lower, etc } => self.overlay_root(lower, etc),
            Step::EmptyRoot => self.empty_root(),
            Step::Directory { at, mode } => self.directory(at, *mode).map(drop),
            Step::Fresh { at, mode } => self.fresh(at, *mode),
            Step::Home { at } => {
                let home = self.directory(at, 0o700)?;
                rustix::fs::chmod(fd_path(&home), Mode::from_raw_mode(0o700))?;
                Ok(chown(&fd_path(&home), 0, 0)?)
            }
            Step::Symlink { at, target } => self.symlink(at, target),
            Step::Overlay { source, at } => self.overlay(source, at),
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
            Step::Proc => {
                let target = self.own_directory("proc")?;
                Ok(mount(Some("proc"), &target, "proc", INERT, "")?)
            }
            Step::Sys { fresh } => self.sys(*fresh),
            Step::Dev { shm, console } => self.dev(*shm, *console),
            Step::PivotRoot => self.pivot_root(),
            Step::Mask(paths) => paths.iter().try_for_each(|path| self.mask(path)),
            Step::ReadOnlyPaths(paths) => paths.iter().try_for_each(|path| read_only(path)),
            Step::ReadOnlyRoot => {
                let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV;
                Ok(rustix::mount::mount_remount("/", flags, c"")?)
            }
        }
    }

    fn root(&self) -> Result<&OwnedFd, Cause> {
        // A plan whose root comes late is no plan of this crate's making.
        self.root.as_ref().ok_or(Cause::Errno(libc::EINVAL))
    }

    fn overlay_root(&mut self, lower: &Lower, etc: &[EtcFile]) -> Done {
        let target = format!("{STAGE}/root");
        let (directory, options) = match lower {
            Lower::Directory(path) => {
                let directory = self.open_host(path)?;
                let options = fd_path(&directory);
                (directory, options)
            }
            // Names relative to their directory, as all options must fit in one page. Topmost first.
            Lower::Layers { dir, names } => (
                self.open_host(dir)?,
                names
                    .iter()
                    .rev()
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join(":"),
            ),
        };
        let upper = self.new_layer()?;
        let plain = has_plain_etc(&directory, lower)?;
        if plain {
            write_etc(&upper, etc)?;
        }
        rustix::process::fchdir(&directory)?;
        self.mount_overlay(&options, Path::new(&target))?;
        rustix::process::chdir("/")?;
        let root = open_directory(&target)?;
        if !plain {
            // Some image's `/etc` is a link: the files go where it leads, inside.
            write_etc_inside(&root, etc)?;
        }
        self.root = Some(root);
        Ok(())
    }

    fn empty_root(&mut self) -> Done {
        let target = format!("{STAGE}/root");
        self.give_to_system(&target)?;
        rustix::mount::mount_bind(&target, &target)?;
        self.root = Some(open_directory(&target)?);
        Ok(())
    }

    /// A fresh writable layer: its directory.
    fn new_layer(&mut self) -> rustix::io::Result<String> {
        self.layers += 1;
        let upper = format!("{STAGE}/upper{}", self.layers);
        rustix::fs::mkdir(&upper, Mode::from_raw_mode(0o755))?;
        rustix::fs::mkdir(
            format!("{STAGE}/work{}", self.layers),
            Mode::from_raw_mode(0o700),
        )?;
        Ok(upper)
    }

    /// An overlay at `target` with the newest layer over `lower`, which is in the options' own syntax.
    fn mount_overlay(&self, lower: &str, target: &Path) -> rustix::io::Result<()> {
        let number = self.layers;
        let options = c_string(format!(
            "lowerdir={lower},upperdir={STAGE}/upper{number},workdir={STAGE}/work{number},userxattr"
        ))?;
        rustix::mount::mount(
            "orbit",
            target,
            "overlay",
            MountFlags::NODEV,
            options.as_c_str(),
        )
    }

    fn fresh(&mut self, at: &Path, mode: u32) -> Done {
        let target = self.directory(at, 0o755)?;
        let source = self.new_layer()?;
        rustix::fs::chmod(&source, Mode::from_raw_mode(mode))?;
        self.give_to_system(&source)?;
        Ok(rustix::mount::mount_bind(&source, fd_path(&target))?)
    }

    fn overlay(&mut self, source: &Path, at: &Path) -> Done {
        let source = self.open_host(source)?;
        let target = self.directory(at, 0o755)?;
        // The layer's root stands for the directory it covers.
        let stat = rustix::fs::fstat(&source)?;
        let upper = self.new_layer()?;
        rustix::fs::chmod(&upper, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        // An owner without an id here shows as the overflow id; it is the host's root, as a rule.
        let owner = |id| if id == OVERFLOW_ID { self.system } else { id };
        let (uid, gid) = (owner(stat.st_uid), owner(stat.st_gid));
        if (uid, gid) != (0, 0) {
            chown(&upper, uid, gid)?;
        }
        Ok(self.mount_overlay(&fd_path(&source), Path::new(&fd_path(&target)))?)
    }

    fn bind(&mut self, source: &Path, at: &Path, read_only: bool) -> Done {
        let source = self.open_host(source)?;
        let is_directory = is_directory(&source)?;
        let target = if is_directory {
            self.directory(at, 0o755)?
        } else {
            self.empty_file(at)?
        };
        let mut attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        if read_only {
            attributes |= libc::MOUNT_ATTR_RDONLY;
        }
        let tree = clone_tree(&source)?;
        sys::set_mount_attributes(tree.as_fd(), attributes, None, true)
            .map_err(|error| Cause::Errno(error.raw_os_error().unwrap_or(0)))?;
        Ok(move_onto(&tree, &target)?)
    }

    /// Has a link made into this network namespace, and gives it its address.
    fn link(&mut self, name: &str, link: &Link) -> Done {
        let cause = |error: io::Error| Cause::Errno(error.raw_os_error().unwrap_or(libc::EIO));
        let connector = self
            .networks
            .pop_front()
            .ok_or(Cause::Errno(libc::EINVAL))?;
        // Here `/proc` is still the supervisor's.
        let here = File::open("/proc/self/ns/net").map_err(cause)?;
        connector
            .send(&name.to_owned(), &[here.as_fd()])
            .map_err(cause)?;
        match connector.recv::<Result<(), i32>>().map_err(cause)? {
            Some((made, _)) => made.map_err(Cause::Errno)?,
            None => return Err(Cause::Errno(libc::EPIPE)),
        }
        let netlink = Netlink::open().map_err(cause)?;
        let index = netlink.index(name).map_err(cause)?;
        netlink
            .add_address(index, link.address, link.subnet.prefix())
            .and_then(|()| netlink.bring_up(index))
            .map_err(cause)
    }

    /// Mounts a file over one of the host's `/etc`, or puts it there where there is none.
    fn cover_etc(&self, file: &EtcFile) -> Done {
        let own = format!("{STAGE}/etc-{}", file.name);
        std::fs::write(&own, &file.content)
            .map_err(|error| Cause::Errno(error.raw_os_error().unwrap_or(0)))?;
        self.give_to_system(&own)?;
        let at = Path::new("/etc").join(&file.name);
        let target = match self.empty_file(&at) {
            // A link that leads nowhere in here, as one into `/run` does.
            Err(Cause::Errno(libc::EEXIST)) => {
                let (parent, name) = self.split(&at)?;
                rustix::fs::unlinkat(&parent, name, rustix::fs::AtFlags::empty())?;
                self.empty_file(&at)?
            }
            other => other?,
        };
        Ok(rustix::mount::mount_bind(own, fd_path(&target))?)
    }

    fn sys(&mut self, fresh: bool) -> Done {
        let target = self.own_directory("sys")?;
        if fresh {
            return Ok(mount(
                Some("sysfs"),
                &target,
                "sysfs",
                INERT.union(MountFlags::RDONLY),
                "",
            )?);
        }
        let attributes = libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOEXEC
            | libc::MOUNT_ATTR_RDONLY;
        let tree = clone_tree(&self.open_host(Path::new("/sys"))?)?;
        sys::set_mount_attributes(tree.as_fd(), attributes, None, true)
            .map_err(|error| Cause::Errno(error.raw_os_error().unwrap_or(0)))?;
        Ok(move_onto(&tree, &target)?)
    }

    fn dev(&mut self, shm: Bytes, console: bool) -> Done {
        let target = self.own_directory("dev")?;
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        mount(Some("tmpfs"), &target, "tmpfs", flags, "size=64k,mode=755")?;
        let dev = self.own_directory("dev")?;
        let inside = |name: &str| format!("{}/{name}", fd_path(&dev));
        for name in DEVICES {
            rustix::fs::openat(
                &dev,
                name,
                OFlags::CREATE | OFlags::CLOEXEC,
                Mode::from_raw_mode(0o666),
            )?;
            rustix::mount::mount_bind(format!("{HOST}/dev/{name}"), inside(name))?;
        }
        for (name, link) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
            ("ptmx", "pts/ptmx"),
        ] {
            rustix::fs::symlinkat(link, &dev, name)?;
        }
        for name in ["pts", "shm", "mqueue"] {
            rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755))?;
        }
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        rustix::mount::mount(
            "devpts",
            inside("pts"),
            "devpts",
            flags,
            c"newinstance,ptmxmode=0666,mode=620",
        )?;
        let options = c_string(tmpfs_options(shm, 0o1777))?;
        rustix::mount::mount("shm", inside("shm"), "tmpfs", INERT, options.as_c_str())?;
        rustix::mount::mount("mqueue", inside("mqueue"), "mqueue", INERT, None)?;
        if console {
            self.terminal = Some(open_terminal(&dev)?);
        }
        self.null = Some(rustix::fs::openat(&dev, "null", PATH, Mode::empty())?);
        Ok(())
    }

    fn pivot_root(&mut self) -> Done {
        rustix::process::fchdir(self.root()?)?;
        // The old root ends up under the new one, at the same place, and goes from there.
        rustix::process::pivot_root(".", ".")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH)?;
        rustix::process::chdir("/")?;
        Ok(())
    }

    /// Covers `path`. Called after `pivot_root`, when no path leads out of the sandbox any more.
    fn mask(&self, path: &Path) -> Done {
        let Some(target) = open_if_there(path)? else {
            return Ok(());
        };
        if is_directory(&target)? {
            let flags = INERT.union(MountFlags::RDONLY);
            return Ok(mount(
                Some("tmpfs"),
                &target,
                "tmpfs",
                flags,
                "size=0,nr_inodes=1,mode=755",
            )?);
        }
        let null = self.null.as_ref().ok_or(Cause::Errno(libc::EINVAL))?;
        Ok(rustix::mount::mount_bind(fd_path(null), fd_path(&target))?)
    }

    /// A path of the host: links are followed as on the host, and nothing but the host is seen.
    fn open_host(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let path = below_host(path);
        let inside = path.strip_prefix(HOST).unwrap_or(&path);
        let inside = if inside.as_os_str().is_empty() {
            Path::new(".")
        } else {
            inside
        };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.host, inside, PATH, Mode::empty(), resolve)
    }

    /// A path of the sandbox; relative ones are to its root.
    fn open_inside(&self, path: &Path) -> Result<OwnedFd, Cause> {
        Ok(open_in(self.root()?, path)?)
    }

    /// The directory at `path`, made with its parents where it is not there.
    fn directory(&self, path: &Path, mode: u32) -> Result<OwnedFd, Cause> {
        match self.open_inside(path) {
            Err(Cause::Errno(libc::ENOENT)) => {}
            other => return other,
        }
        let mut walked = PathBuf::new();
        let mut parent = self.open_inside(Path::new("/"))?;
        for component in path
            .components()
            .filter(|part| matches!(part, std::path::Component::Normal(_)))
        {
            walked.push(component);
            let last = walked.as_os_str().len() == path.as_os_str().len().saturating_sub(1);
            parent = match self.open_inside(&walked) {
                Err(Cause::Errno(libc::ENOENT)) => {
                    let name = component.as_os_str();
                    let mode = Mode::from_raw_mode(if last { mode } else { 0o755 });
                    rustix::fs::mkdirat(&parent, name, mode)?;
                    // The mask of this process holds for mkdir, not for chmod.
                    rustix::fs::chmodat(&parent, name, mode, rustix::fs::AtFlags::empty())?;
                    let made = self.open_inside(&walked)?;
                    self.give_to_system(&fd_path(&made))?;
                    made
                }
                other => other?,
            };
        }
        Ok(parent)
    }

    /// The file at `path`, made empty with its parents where nothing is there.
    fn empty_file(&self, path: &Path) -> Result<OwnedFd, Cause> {
        match self.open_inside(path) {
            Err(Cause::Errno(libc::ENOENT)) => {}
            other => return other,
        }
        let (parent, name) = self.split(path)?;
        rustix::fs::openat(
            &parent,
            name,
            OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o644),
        )?;
        self.open_inside(path)
    }

    /// What this process makes is id 0's.
    fn give_to_system(&self, path: &str) -> rustix::io::Result<()> {
        if self.system == 0 {
            Ok(())
        } else {
            chown(path, self.system, self.system)
        }
    }

    fn symlink(&self, path: &Path, target: &Path) -> Done {
        let (parent, name) = self.split(path)?;
        Ok(rustix::fs::symlinkat(target, &parent, name)?)
    }

    fn split<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a std::ffi::OsStr), Cause> {
        let name = path.file_name().ok_or(Cause::Errno(libc::EINVAL))?;
        Ok((
            self.directory(path.parent().unwrap_or(Path::new("/")), 0o755)?,
            name,
        ))
    }

    /// A directory of `/` that Orbit mounts on: it must be one, and no link to somewhere else.
    fn own_directory(&self, name: &str) -> Result<OwnedFd, Cause> {
        let root = self.root()?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let flags = PATH | OFlags::DIRECTORY;
        let open = || rustix::fs::openat2(root, name, flags, Mode::empty(), resolve);
        match open() {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o755))?;
                Ok(open()?)
            }
            Err(Errno::LOOP | Errno::NOTDIR) => {
                Err(Cause::NotADirectory(Path::new("/").join(name)))
            }
            other => Ok(other?),
        }
    }
}

const PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// What is mounted for its content alone.
const INERT: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// What an id that has no counterpart in this user namespace shows as. Source: user_namespaces(7).
const OVERFLOW_ID: u32 = 65534;

fn chown(path: &str, uid: u32, gid: u32) -> rustix::io::Result<()> {
    rustix::fs::chown(
        path,
        Some(rustix::fs::Uid::from_raw(uid)),
        Some(rustix::fs::Gid::from_raw(gid)),
    )
}

fn open_directory(path: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, PATH | OFlags::DIRECTORY, Mode::empty())
}

fn open_in(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, PATH, Mode::empty(), resolve)
}

fn open_if_there(path: &Path) -> rustix::io::Result<Option<OwnedFd>> {
    match rustix::fs::open(path, PATH, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_directory(fd: &OwnedFd) -> rustix::io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Directory)
}

/// A path that leads to what `fd` stands for, whatever its name is by now.
fn fd_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn c_string(text: String) -> rustix::io::Result<CString> {
    CString::new(text).map_err(|_| Errno::INVAL)
}

fn mount(
    source: Option<&str>,
    target: &OwnedFd,
    kind: &str,
    flags: MountFlags,
    options: &str,
) -> rustix::io::Result<()> {
    let options = c_string(options.to_owned())?;
    rustix::mount::mount(
        source.unwrap_or("none"),
        fd_path(target),
        kind,
        flags,
        options.as_c_str(),
    )
}

fn tmpfs_options(size: Bytes, mode: u32) -> String {
    format!("size={},mode={mode:o}", size.as_u64())
}

/// The filesystem that holds all a sandbox writes, and in it the place of the root.
fn scratch(size: Bytes) -> rustix::io::Result<()> {
    let options = c_string(tmpfs_options(size, 0o755))?;
    rustix::mount::mount(
        "orbit",
        STAGE,
        "tmpfs",
        MountFlags::NODEV,
        options.as_c_str(),
    )?;
    rustix::fs::mkdir(format!("{STAGE}/root"), Mode::from_raw_mode(0o755))
}

/// Whether the topmost `/etc` of what lies below is a directory, or there is none.
fn has_plain_etc(directory: &OwnedFd, lower: &Lower) -> rustix::io::Result<bool> {
    let candidates = match lower {
        Lower::Directory(_) => vec!["etc".to_owned()],
        Lower::Layers { names, .. } => names
            .iter()
            .rev()
            .map(|name| format!("{name}/etc"))
            .collect(),
    };
    for path in candidates {
        match rustix::fs::statat(directory, path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => return Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Puts files into the `/etc` of a writable layer that is not mounted yet.
fn write_etc(upper: &str, files: &[EtcFile]) -> Done {
    let path = format!("{upper}/etc");
    rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755))?;
    write_files(&open_directory(&path)?, files)
}

/// Puts files into the `/etc` of a mounted root, in place of what is there.
fn write_etc_inside(root: &OwnedFd, files: &[EtcFile]) -> Done {
    let directory = open_in(root, Path::new("/etc"))?;
    for file in files {
        match rustix::fs::unlinkat(&directory, &file.name, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    write_files(&directory, files)
}

fn write_files(directory: &OwnedFd, files: &[EtcFile]) -> Done {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for file in files {
        let opened = rustix::fs::openat(directory, &file.name, flags, Mode::from_raw_mode(0o644))?;
        File::from(opened)
            .write_all(file.content.as_bytes())
            .map_err(|error| Cause::Errno(error.raw_os_error().unwrap_or(0)))?;
    }
    Ok(())
}

fn clone_tree(source: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(source, "", flags)
}

fn move_onto(tree: &OwnedFd, target: &OwnedFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", target, "", flags)
}

fn read_only(path: &Path) -> Done {
    let Some(target) = open_if_there(path)? else {
        return Ok(());
    };
    rustix::mount::mount_bind_recursive(fd_path(&target), fd_path(&target))?;
    // Opened again: the descriptor is of what the new mount covers.
    let flags = INERT | MountFlags::BIND | MountFlags::RDONLY;
    Ok(rustix::mount::mount_remount(path, flags, c"")?)
}

/// `ip link set lo up`. Source: netdevice(7).
/// Here `/proc` is still the supervisor's, whose `sys/net` is that of the network the reader is in.
fn all_ports() -> rustix::io::Result<()> {
    let path = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, b"0")?;
    Ok(())
}

fn loopback_up() -> rustix::io::Result<()> {
    sys::bring_up(c"lo").map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// A new terminal of the `devpts` in `dev`, whose name inside is right, also at `/dev/console`.
fn open_terminal(dev: &OwnedFd) -> rustix::io::Result<TerminalPair> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let caller_side = rustix::fs::openat(dev, "pts/ptmx", flags, Mode::empty())?;
    rustix::pty::unlockpt(&caller_side)?;
    let program_side = rustix::pty::ioctl_tiocgptpeer(
        &caller_side,
        rustix::pty::OpenptFlags::RDWR
            | rustix::pty::OpenptFlags::NOCTTY
            | rustix::pty::OpenptFlags::CLOEXEC,
    )?;
    rustix::fs::openat(
        dev,
        "console",
        OFlags::CREATE | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o600),
    )?;
    let console = format!("{}/console", fd_path(dev));
    rustix::mount::mount_bind(fd_path(&program_side), console)?;
    Ok(TerminalPair {
        caller_side,
        program_side,
    })
}
