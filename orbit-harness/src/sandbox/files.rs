//! Files of a running sandbox: read, written and copied from outside of it.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::Path,
};

use rustix::fs::{MemfdFlags, Mode, OFlags};

use super::{Sandbox, core::Core};
use crate::{
    error::{Error, Kind},
    spec::{Content, SpecFault},
    supervisor::{
        Channel, Destination, FileAnswer, FileFault, FileJob, FileMeta, Piece, receive_tree,
        send_tree,
    },
};

/// No file of a test is larger; a file that grows without end would be.
const READ_MAX_BYTES: u64 = 1 << 30;

/// Files, in and out. Paths inside are resolved within the sandbox's root as a program in it would, and never lead out
/// of it, whatever links a program there makes or swaps meanwhile; what is mounted there is seen.
///
/// What is copied in belongs to the sandbox's root (over the host's files: to the caller, as everything there) and
/// what is copied out to this process; permissions are kept, but for set-user-id and set-group-id bits. Links are
/// copied as links: do not follow those that come out of a sandbox you do not trust. Devices, pipes and sockets are
/// left out.
impl Sandbox {
    /// What is in the regular file at `path`.
    ///
    /// ```
    /// let sandbox = orbit::Sandbox::builder().cmd(["sleep", "60"]).start()?;
    /// sandbox.write_file("/tmp/made/greeting", "hello")?;
    /// assert_eq!(sandbox.read_file("/tmp/made/greeting")?, b"hello");
    /// assert!(sandbox.read_file("/tmp/other").unwrap_err().is_file_not_found());
    /// # Ok::<(), orbit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Where it is not there ([`Error::is_file_not_found`]) or no regular file, or has more than 1 GiB.
    pub fn read_file(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, Error> {
        self.core.read_file(path.as_ref())
    }

    /// Writes a file, with its parents where they are missing. One that is there keeps its owner and permissions,
    /// unless `content` has its own.
    ///
    /// # Errors
    /// Where it cannot be written, or is no regular file.
    pub fn write_file(
        &self,
        path: impl AsRef<Path>,
        content: impl Into<Content>,
    ) -> Result<(), Error> {
        self.core.write_file(path.as_ref(), content.into())
    }

    /// Copies the host's file or directory `from` to the path `to` inside, which becomes its name; parents are made. A
    /// directory that is there is filled, and what is in the way of a file gives way.
    ///
    /// ```
    /// let host = tempfile::tempdir()?;
    /// std::fs::create_dir(host.path().join("data"))?;
    /// std::fs::write(host.path().join("data/one"), "1")?;
    ///
    /// let sandbox = orbit::Sandbox::builder().cmd(["sleep", "60"]).start()?;
    /// sandbox.copy_in(host.path().join("data"), "/tmp/data")?;
    /// sandbox.exec(["sh", "-c", "cp /tmp/data/one /tmp/data/two"]).run()?;
    /// sandbox.copy_out("/tmp/data", host.path().join("back"))?;
    /// assert_eq!(std::fs::read(host.path().join("back/two"))?, b"1");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Where something cannot be read or made; what was copied by then stays.
    pub fn copy_in(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), Error> {
        self.core.copy_in(None, from.as_ref(), to.as_ref())
    }

    /// As [`copy_in`](Self::copy_in), to belong to `owner`: `user`, `user:group`, `uid` or `uid:gid` of the sandbox.
    ///
    /// # Errors
    /// As [`copy_in`](Self::copy_in), and where there is no such user.
    pub fn copy_in_as(
        &self,
        owner: &str,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
    ) -> Result<(), Error> {
        self.core.copy_in(Some(owner), from.as_ref(), to.as_ref())
    }

    /// Copies the file or directory `from` of the sandbox to the path `to` of the host, which becomes its name, and
    /// whose parent must be there. A directory that is there is filled, and what is in the way of a file gives way.
    ///
    /// # Errors
    /// As [`copy_in`](Self::copy_in).
    pub fn copy_out(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), Error> {
        self.core.copy_out(from.as_ref(), to.as_ref())
    }
}

impl Core {
    pub(super) fn read_file(&self, path: &Path) -> Result<Vec<u8>, Error> {
        let at = failed("read", path);
        let job = FileJob::Read { path: path.into() };
        let channel = self.files("read", path, job, None)?;
        let fd = answer(&channel).map_err(&at)?;
        let fd = fd.ok_or_else(|| at(FileFault::Malformed))?;
        let mut bytes = Vec::new();
        let read = File::from(fd)
            .take(READ_MAX_BYTES + 1)
            .read_to_end(&mut bytes);
        read.map_err(|error| at(error.into()))?;
        if bytes.len() as u64 > READ_MAX_BYTES {
            return Err(at(FileFault::Errno(libc::EFBIG, None)));
        }
        Ok(bytes)
    }

    pub(super) fn write_file(&self, path: &Path, content: Content) -> Result<(), Error> {
        let at = failed("write", path);
        let memory = || -> std::io::Result<File> {
            let mut file = File::from(rustix::fs::memfd_create("orbit-file", MemfdFlags::CLOEXEC)?);
            file.write_all(&content.bytes)?;
            std::io::Seek::rewind(&mut file)?;
            Ok(file)
        };
        let bytes = memory().map_err(|error| at(error.into()))?;
        let job = FileJob::Write {
            path: path.into(),
            file: FileMeta {
                mode: content.mode,
                owner: content.owner,
            },
        };
        let channel = self.files("write", path, job, Some(&bytes.into()))?;
        answer(&channel).map(drop).map_err(at)
    }

    pub(super) fn copy_out(&self, from: &Path, to: &Path) -> Result<(), Error> {
        let job = FileJob::CopyOut { path: from.into() };
        let channel = self.files("copy", from, job, None)?;
        let open = |path: &Path| -> Result<OwnedFd, FileFault> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            Ok(rustix::fs::open(path, flags, Mode::empty())?)
        };
        let destination = Destination {
            directory: &|| {
                match std::fs::create_dir(to) {
                    Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                        return Err(error.into());
                    }
                    _ => {}
                }
                open(to)
            },
            file: &|| {
                let name = to.file_name().ok_or(FileFault::Errno(libc::EISDIR, None))?;
                let parent = to.parent().filter(|it| !it.as_os_str().is_empty());
                Ok((open(parent.unwrap_or(Path::new(".")))?, name.to_owned()))
            },
            owner: None,
        };
        receive_tree(&channel, &destination).map_err(|fault| {
            let doing = "copy to the host what is at";
            failed(doing, from)(fault)
        })
    }

    pub(super) fn copy_in(&self, owner: Option<&str>, from: &Path, to: &Path) -> Result<(), Error> {
        // A pipe is no file, and is not waited for.
        let source = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(from)
            .map_err(|error| {
                Error::io(
                    format!("cannot copy {} into the sandbox", from.display()),
                    error,
                )
            })?;
        let job = FileJob::CopyIn {
            path: to.into(),
            owner: owner.map(str::to_owned),
        };
        let channel = self.files("copy to", to, job, None)?;
        // Where the other side gave up, its reason is worth more than that nobody listens.
        let sent = send_tree(&channel, &source.into());
        if let Err(fault) = &sent {
            let _ = channel.send(&Piece::Failed(fault.clone()), &[]);
        }
        answer(&channel).and(sent).map_err(failed("copy to", to))
    }

    /// Asks for a job with files. The answer comes on the channel.
    pub(super) fn files(
        &self,
        doing: &'static str,
        path: &Path,
        job: FileJob,
        content: Option<&OwnedFd>,
    ) -> Result<Channel, Error> {
        use std::os::unix::ffi::OsStrExt as _;
        let given = path.display().to_string();
        if !path.is_absolute() || path.as_os_str().as_bytes().contains(&0) {
            let why = "expected an absolute path inside the sandbox, without NUL bytes";
            return Err(Error::spec(vec![SpecFault::new("path", given, why)]));
        }
        let handles = self.handles(&format!("{doing} `{given}`"))?;
        let channel = Self::supervisor()?.files(
            self.key,
            job,
            handles.first().map(|root| root.as_fd()),
            content.map(|content| content.as_fd()),
        )?;
        Ok(channel)
    }

    /// Asks for a job with the sandbox's mounts, in its mount namespace.
    pub(super) fn change_mounts(&self, doing: &'static str, job: FileJob) -> Result<(), Error> {
        let root = Path::new("/");
        let handles = self.handles(&format!("{doing} `/`"))?;
        // Where there are none, the program is process 1, by which the supervisor gets in.
        let namespace = handles.get(1);
        let channel = self.files(doing, root, job, namespace)?;
        answer(&channel).map(drop).map_err(failed(doing, root))
    }

    /// Whether something is at `path`.
    pub(super) fn has_file(&self, path: &Path) -> Result<bool, Error> {
        let job = FileJob::Find { path: path.into() };
        let channel = self.files("look for", path, job, None)?;
        match answer(&channel) {
            Ok(_) => Ok(true),
            Err(FileFault::Errno(libc::ENOENT | libc::ENOTDIR, _)) => Ok(false),
            Err(fault) => Err(failed("look for", path)(fault)),
        }
    }
}

fn failed(doing: &'static str, path: &Path) -> impl Fn(FileFault) -> Error {
    let path = path.display().to_string();
    move |fault| {
        Kind::File {
            doing,
            path: path.clone(),
            fault,
        }
        .into()
    }
}

fn answer(channel: &Channel) -> Result<Option<OwnedFd>, FileFault> {
    match channel.recv::<FileAnswer>()? {
        Some((answer, mut fds)) => answer.map(|()| fds.pop()),
        None => Err(FileFault::Errno(libc::ESRCH, None)),
    }
}
