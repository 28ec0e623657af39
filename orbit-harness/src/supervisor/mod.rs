//! The one small process that owns sandboxes: how it starts, what it is asked, what it does.
//!
//! ```text
//! test process ──exec──> supervisor's starter ──clone──> supervisor ──clone──> init ──clone──> program
//!   client.rs              start.rs                        home.rs, serve.rs     init.rs, make.rs
//! ```
//!
//! That of a process of ours which will start one sandbox is not executed but forked, in `early.rs`.
//!
//! The broker, in `broker`, is a fork of the supervisor that reaches into sandboxes' networks.
//!
//! The starter lives as long as it takes to write the id maps. The supervisor is process 1 of a pid namespace
//! that holds all sandboxes, so that its end is theirs.

mod ahead;
mod broker;
mod channel;
mod children;
mod client;
mod code;
mod disk;
mod early;
mod enter;
mod files;
mod filters;
mod home;
mod host_mounts;
mod init;
mod launch;
mod launching;
mod make;
mod prepared;
mod program;
mod protocol;
mod serve;
mod spare;
mod start;
mod transfer;
mod way_out;
#[cfg(feature = "images")]
mod work;
mod written;

pub(crate) use broker::{Broker, Known, Lease, MAX_PORTS, greeting};
pub(crate) use channel::Channel;
pub use client::start_supervisor;
pub(crate) use client::{Supervisor, SupervisorError};
pub use early::fork_supervisor;
pub(crate) use protocol::{
    Answer, Cause, Control, Event, ExecEvent, ExecOrder, Exit, Failure, FileAnswer, FileFault,
    FileJob, FileMeta, Gone, Own, Piece, Request, Room, Writer,
};
pub(crate) use start::run;
pub(crate) use transfer::{Destination, receive_tree, send_tree};
