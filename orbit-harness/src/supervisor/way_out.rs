//! The program that leads out of a sandbox's network, started beside the sandbox's init.
//!
//! It runs as the root of the sandboxes' user namespace, on the host's network and over the host's files, and is a
//! child of the supervisor: it ends with the sandbox that it is for, or with the supervisor's pid namespace.

use std::{
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::Command,
};

use rustix::{fs::MemfdFlags, pipe::PipeFlags};

use super::{channel::Channel, home::HOST, make::Helper};
use crate::{
    plan::Plan,
    step::Step,
    sys::{self, Fork, SingleThreaded},
};

/// What the program gets of its standard streams.
pub(super) struct WayOut<'a> {
    program: &'a Path,
    args: &'a [String],
    /// A pipe that it writes to when there is a way out, and that ends with it.
    output: OwnedFd,
    /// On which the init hands over its network.
    network: Channel,
    /// In memory, so that it never waits for who reads it.
    errors: OwnedFd,
}

impl<'a> WayOut<'a> {
    /// What `plan` asks for, and the init's side of it.
    pub(super) fn of(plan: &'a Plan) -> Option<io::Result<(Self, Helper)>> {
        let (program, args) = plan.steps.iter().find_map(|step| match step {
            Step::Egress { program, args } => Some((program, args)),
            _ => None,
        })?;
        Some(Self::with(program, args))
    }

    fn with(program: &'a Path, args: &'a [String]) -> io::Result<(Self, Helper)> {
        let (network, from_init) = Channel::pair()?;
        let (output, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let errors = rustix::fs::memfd_create(c"orbit-egress", MemfdFlags::CLOEXEC)?;
        let helper = Helper {
            network,
            output,
            errors: rustix::io::fcntl_dupfd_cloexec(&errors, 3)?,
        };
        let way_out = Self {
            program,
            args,
            network: from_init,
            output: theirs,
            errors,
        };
        Ok((way_out, helper))
    }

    /// Starts it, once the init is there, for the network that it hands over: nobody else may open it, as the init
    /// is closed to all.
    pub(super) fn start(self, single_threaded: SingleThreaded) -> io::Result<(i32, OwnedFd)> {
        match single_threaded.fork(0, None)? {
            Fork::Child => {
                let error = self.execute();
                // What is written to the file that the init reads is its message.
                let text = format!("cannot start it: {error}");
                let _ = rustix::io::write(&self.errors, text.as_bytes());
                sys::exit_now(1)
            }
            Fork::Parent { pid, pidfd } => Ok((pid, pidfd)),
        }
    }

    fn execute(&self) -> io::Error {
        let try_execute = || -> io::Result<io::Error> {
            let network = match self.network.recv::<()>()? {
                Some(((), mut fds)) => fds.pop().ok_or(rustix::io::Errno::BADF)?,
                // The init is gone, and has said why.
                None => sys::exit_now(1),
            };
            let output = self.output.as_fd().try_clone_to_owned()?;
            let errors = self.errors.as_fd().try_clone_to_owned()?;
            nix::unistd::chroot(HOST)?;
            nix::unistd::chdir("/")?;
            // What else is open here is closed on exec.
            Ok(Command::new(self.program)
                .args(self.args)
                .env_clear()
                .stdin(network)
                .stdout(output)
                .stderr(errors)
                .exec())
        };
        try_execute().unwrap_or_else(|error| error)
    }
}
