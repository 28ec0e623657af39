//! Which system calls a sandbox may make.
//!
//! [`Policy`] says it as data, [`bpf::compile`] turns it into the program that the kernel runs on every call.
//! Installing that program is `sys`'s work. A filter is defence in depth, not the boundary: the boundary is
//! namespaces, capabilities and mounts. What only the filter holds back is what the kernel allows to anybody
//! who owns a user namespace (its attack surface), and terminal injection.
//!
//! ```text
//! table    every call, its numbers, what opens it          (data)
//! policy   table + capabilities + nested -> Policy          (meaning)
//! bpf      Policy -> Program                                (compiler)
//! ```

pub(crate) mod bpf;
#[cfg(test)]
mod interpret;
#[cfg(test)]
mod numbers;
pub(crate) mod policy;
mod table;
#[cfg(test)]
mod tests;
