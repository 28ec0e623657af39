//! What the test process, the supervisor and the inits say to each other.
//!
//! Two kinds of connection: one *control* channel from the test process to its supervisor, and for each sandbox
//! an *event* channel, whose one end the test process keeps and whose other end goes to the sandbox's init.
//! When the test process closes or shuts down its end, the sandbox is killed; when everything of the sandbox is
//! gone, the supervisor says so. Failures cross as step and error number, never as prose.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    layer::Writable,
    outcome::{LeakedProcess, Status, Usage},
    plan::Plan,
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
}

/// What the test process asks of its supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Make a sandbox. Descriptors: its event channel, then standard input, output and error, then the directory
    /// of its control group where the plan has one, then for each link of the plan a channel to who makes it.
    Launch(Box<Plan>),
    /// Start the broker. Descriptor: its control channel, on which it says when it is ready.
    Broker,
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

/// What the test process asks of a sandbox's init, on the event channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Control {
    /// Send the program this signal.
    Signal(i32),
}
