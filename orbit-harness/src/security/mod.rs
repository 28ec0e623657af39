//! What a sandbox may do, as data: ids, capabilities, system calls, and the user its program runs as.
//!
//! Everything here is a pure function of what was asked and of text that somebody else has read. Nothing
//! opens a file, makes a system call or needs a privilege: `host` finds the facts, `plan` asks this module,
//! and the supervisor applies the result. That is what makes the snapshots of this module a security review.

pub(crate) mod capabilities;
pub(crate) mod idmap;
pub(crate) mod seccomp;
pub(crate) mod user;
