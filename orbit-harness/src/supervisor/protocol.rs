//! What the test process, the supervisor and the inits say to each other.
//!
//! Two kinds of connection: one *control* channel from the test process to its supervisor, and for each sandbox
//! an *event* channel, whose one end the test process keeps and whose other end goes to the sandbox's init.
//! When the test process closes or shuts down its end, the sandbox is killed; when everything of the sandbox is
//! gone, the supervisor says so. Failures cross as step and error number, never as prose.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::launch::Launch;
use crate::{
    layer::Writable,
    outcome::{LeakedProcess, Status, Usage},
    plan::ProgramPlan,
    security::idmap::IdMapPair,
    spec::SpecFault,
    sys::ExecFailure,
    units::Bytes,
};

/// The first message to a new supervisor, with a pidfd of the test process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The map of the user namespace that all sandboxes of this supervisor share.
    pub(crate) ids: IdMapPair,
    /// How the map is written.
    pub(crate) mapping: Mapping,
    /// Second-level map, in which the caller's own numbers mean the caller.
    pub(crate) caller_ids: Option<IdMapPair>,
}

/// How an id map comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Mapping {
    /// By `newuidmap` and `newgidmap`.
    Helpers,
    /// By this process itself, with `setgroups` denied: its own two ids and no others.
    Single,
    /// By this process itself, as root; the host's files are seen through the same map.
    Privileged,
}

/// How the supervisor answers [`Hello`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Welcome {
    Ready { pid: i32 },
    Failed(StartFailure),
}

/// A supervisor that could not start: the step, and what the system answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StartFailure {
    pub(crate) step: StartStep,
    pub(crate) errno: i32,
    /// What a helper program wrote, or a path.
    pub(crate) detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum StartStep {
    Namespaces,
    IdMap,
    Ids,
    PrivateMounts,
    Root,
    HostView,
    Proc,
    Isolate,
    Serve,
}

/// What the test process asks of its supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Make a sandbox, which later requests know by `key`. Descriptors: its event channel, then standard input, output and error, then the directory
    /// of its control group where the plan has one, then for each link of the plan a channel to who makes it.
    Launch { key: u64, launch: Box<Launch> },
    /// Run a further program in a sandbox. Descriptors: the channel on which it is told and asked, then standard
    /// input, output and error, then the directory of its control group where it has one, then the namespaces that
    /// its init gave ([`Control::Handles`]), in that order; none where the program is process 1 itself.
    Exec(Box<ExecOrder>),
    /// Do something with the files of a sandbox. Descriptors: the reply channel; the root, as its init gave it,
    /// where there is such an init; the content, where the job brings one.
    Files {
        sandbox: u64,
        has_root: bool,
        job: FileJob,
    },
    /// Give the user namespace of all sandboxes. Descriptor: the reply channel, on which an [`Answer`] brings it.
    Namespace,
    /// Put these mounts of the host where they belong. Descriptors: the reply channel, for a `Result<(), StartFailure>`; then the
    /// mounts.
    HostMounts(Vec<PathBuf>),
    /// Start the broker. Descriptor: its control channel, on which it says when it is ready.
    Broker,
    /// Let the writable layers of a sandbox have this much room. Descriptors: as for `Changes`.
    Resize(Room),
    /// Read what was written to a sandbox. Descriptors: the reply channel, the filesystem of its writable layers.
    Changes(Box<Writable>),
    /// Copy what was written to a sandbox into an empty directory. Descriptors: as for `Changes`.
    #[cfg(feature = "images")]
    Seal {
        writable: Box<Writable>,
        destination: PathBuf,
    },
    /// Write a layer as an archive. Descriptors: the reply channel, the file to write to.
    #[cfg(feature = "images")]
    Export { layer: PathBuf },
    /// Unpack a layer, inside the user namespace. Descriptors: the reply channel, the blob.
    #[cfg(feature = "images")]
    Unpack {
        order: crate::store::UnpackOrder,
        destination: PathBuf,
    },
    /// Remove a directory and all in it, inside the user namespace. Descriptor: the reply channel.
    #[cfg(feature = "images")]
    RemoveTree { parent: PathBuf, name: String },
}

/// What happens to a sandbox, told to the test process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    /// The program runs. Descriptors, as far as the fields say: a pidfd of it; the other side of its terminal;
    /// a pipe that ends when a program that is process 1 itself executes; the filesystem of its writable layers; the
    /// socket that reads what its gate refuses; last, its network namespace.
    Started {
        has_pidfd: bool,
        has_terminal: bool,
        executes_later: bool,
        has_network: bool,
        has_scratch: bool,
        has_record: bool,
        /// Why it has none, though the plan has a gate: the kernel's answer.
        unrecorded: Option<i32>,
    },
    /// A step failed, and nothing is left.
    Failed(Failure),
    /// The program ended, and every other process of the sandbox was killed.
    Exited(Exit),
    /// Nothing of the sandbox is left. The last event of each.
    Gone(Gone),
}

/// The step that failed, as an index into [`Plan::lines`], and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) line: usize,
    pub(crate) cause: Cause,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Cause {
    /// The kernel's answer.
    Errno(i32),
    /// In the image, this is not a directory but a link or a file.
    NotADirectory(PathBuf),
    /// The user is not one that the sandbox's files name.
    User(SpecFault),
    /// There is no seccomp filter for what was asked.
    Filter(String),
    /// A program that the supervisor started for the sandbox ended; what it wrote.
    Helper(String),
    /// One of the program's own last steps.
    Exec(ExecFailure),
    /// A file could not be written.
    File(FileFault),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    pub(crate) status: Status,
    pub(crate) usage: Usage,
    pub(crate) wall_time: Duration,
    pub(crate) leaked: Vec<LeakedProcess>,
    /// The size of the writable layer, where it had no room left.
    pub(crate) full_disk: Option<Bytes>,
}

/// How the init itself ended: what there is to say where it told no [`Exit`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Gone {
    pub(crate) status: Status,
    pub(crate) usage: Usage,
    pub(crate) wall_time: Duration,
}

/// What the test process asks of a sandbox's init, on the event channel; and of who runs a further program in it,
/// who knows [`Control::Signal`] alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Control {
    /// Send the program this signal.
    Signal(i32),
    /// Hand over what a further program needs to get in. Descriptor: the reply channel, on which an
    /// [`Answer`] brings the root directory, then the namespaces: mount, pid, ipc, uts, cgroup, and time and network
    /// where the sandbox has one of its own.
    Handles,
    /// Stop every process but this one (SIGSTOP), or let them go on. Descriptor: the reply channel, for an
    /// [`Answer`].
    Stop(bool),
    /// Stay when the program ends, for another to take its place.
    Hold,
    /// Kill what is left, say so as [`Event::Exited`], and end, unless it is to stay.
    Sweep { stay: bool },
}

/// Done, or the error number of what could not be done.
pub(crate) type Answer = Result<(), i32>;

/// A further program for a sandbox.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExecOrder {
    pub(crate) sandbox: u64,
    pub(crate) program: ProgramPlan,
    pub(crate) in_cgroup: bool,
    pub(crate) own: Own,
}

/// Which of the namespaces that a sandbox may share with the host it has for itself.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Own {
    pub(crate) network: bool,
    pub(crate) clock: bool,
}

/// What happens to a further program.
#[derive(Debug, Serialize, Deserialize)]
#[expect(
    clippy::large_enum_variant,
    reason = "there are three in the life of a program"
)]
pub(crate) enum ExecEvent {
    /// It runs. Descriptors: a pidfd of it, then the other side of its terminal where it has one.
    Started,
    /// It does not: nothing is left of it.
    Failed(Cause),
    /// It ended.
    Exited {
        status: Status,
        usage: Usage,
        wall_time: Duration,
    },
}

/// Something to do with the files of a sandbox. Paths are resolved within its root, and never beyond it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FileJob {
    /// Open a regular file for reading. The answer brings it.
    Read { path: PathBuf },
    /// Whether something is there: else ENOENT.
    Find { path: PathBuf },
    /// Write a file, whose content is brought. Its parents are made.
    Write { path: PathBuf, file: FileMeta },
    /// Receive a tree, on the reply channel, to this path.
    CopyIn {
        path: PathBuf,
        owner: Option<String>,
    },
    /// Send what is at this path, on the reply channel.
    CopyOut { path: PathBuf },
    /// Make the mounts at these paths read-only, or writable again. The content is the sandbox's mount namespace, where
    /// its init gave one.
    ReadOnly { at: Vec<PathBuf>, read_only: bool },
}

/// How much the writable layers of a sandbox may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Room {
    Bytes(Bytes),
    /// What they hold now.
    None,
}

/// A process that has a file open for writing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Writer {
    pub(crate) process: String,
    pub(crate) path: PathBuf,
}

/// What a file is to be, beside its content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileMeta {
    /// Permissions; those it has, or `rw-r--r--` for a new one, where none are given.
    pub(crate) mode: Option<u32>,
    /// `user[:group]` of the sandbox; whose it is, or root's for a new one, where nobody is given.
    pub(crate) owner: Option<String>,
}

/// Why a job with files was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FileFault {
    /// The kernel's answer, and what it was about, where that is not the path of the job.
    Errno(i32, Option<PathBuf>),
    /// It is a device, a pipe, a socket or a directory, where a file is needed.
    NotAFile,
    /// The owner is not one that the sandbox's files name.
    Owner(SpecFault),
    /// A tree that is no tree.
    Malformed,
    /// These, as far as they could be seen, have something open for writing on a mount that was to be read-only.
    Busy(Vec<Writer>),
}

/// How a job with files ended.
pub(crate) type FileAnswer = Result<(), FileFault>;

/// A piece of a tree, as it is sent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Piece {
    /// A directory begins; what follows, up to its [`Piece::Leave`], is in it. The first piece has no name.
    Enter {
        name: OsString,
        mode: u32,
    },
    Leave,
    /// A file. Descriptor: its content.
    File {
        name: OsString,
        mode: u32,
    },
    Link {
        name: OsString,
        target: PathBuf,
    },
    /// All was sent.
    End,
    /// The sender met this.
    Failed(FileFault),
}
