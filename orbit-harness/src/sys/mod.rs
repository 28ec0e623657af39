//! The one layer with `unsafe` code: system calls that no well-kept crate wraps safely.
//!
//! Each function documents the call it makes and its source; nothing here decides anything. What `nix` and
//! `rustix` already wrap is called from them, where it is needed.

#![allow(unsafe_code)]

use std::ffi::CStr;

mod exec;
mod exit;
mod link;
mod mount;
mod packet;
mod poise;
mod process;
#[cfg(feature = "tokio")]
mod runtime;
mod seccomp;
mod words;

pub(crate) use exec::{Attributes, ExecFailure, ExecStep, Program, Terminal, hold_only};
pub(crate) use exit::at_exit;
pub(crate) use link::{bring_up, compute_checksums, namespace_of, network_socket};
pub(crate) use mount::{set_mount_attributes, set_mount_read_only};
pub(crate) use packet::{packet_socket, send_by};
pub(crate) use process::{
    Fork, SingleThreaded, Waited, close_inherited, exit_now, fork_as, reset_signals, signal_child,
    signal_process, survive_file_size_limit, wait_any, wait_child, wait_for,
};

#[cfg(feature = "tokio")]
pub(crate) use runtime::{blocking, readable};
pub(crate) use words::Words;

/// What a supervisor is called in `argv[0]`. The caller starts `/proc/self/exe` under this name.
pub(crate) const SUPERVISOR_NAME: &CStr = c"orbit-supervisor";
