//! Which variables were the host's before cargo added its own, seen from a program that cargo starts.
//!
//! The kernel keeps the environment that each process began with. That of the outermost tool of Rust's above this
//! process is what the person's own shell, or editor, gave it.
//!
//! Source: proc_pid_environ(5).

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
};

use crate::test::environment::HostVariables;

/// Programs that add variables of their own to those they were given.
const TOOLS: &[&str] = &["cargo", "cargo-nextest", "rustdoc", "rustup"];

/// How many processes may stand between a test and the shell.
const DEPTH: usize = 8;

/// The variables of the outermost cargo above; those of `given`, all of them, where that cannot be seen: then only
/// what is on the list of passed variables is passed.
pub(crate) fn variables(given: &[(OsString, OsString)]) -> HostVariables {
    match outermost().and_then(environment) {
        Ok(variables) => HostVariables::new(variables),
        Err(_) => HostVariables::new(given.iter().cloned()),
    }
}

fn outermost() -> io::Result<u32> {
    let mut outermost = None;
    let mut pid = parent_of(std::process::id())?;
    for _ in 0..DEPTH {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"))?;
        if !TOOLS.contains(&name.trim_end()) {
            break;
        }
        outermost = Some(pid);
        pid = parent_of(pid)?;
    }
    outermost.ok_or_else(|| io::Error::other("no tool of Rust's started this"))
}

pub(super) fn parent_of(pid: u32) -> io::Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("a process without a parent"))
}

pub(super) fn environment(pid: u32) -> io::Result<Vec<(OsString, OsString)>> {
    Ok(pairs(&fs::read(format!("/proc/{pid}/environ"))?))
}

fn pairs(bytes: &[u8]) -> Vec<(OsString, OsString)> {
    bytes
        .split(|byte| *byte == 0)
        .filter_map(|variable| {
            let at = variable.iter().position(|byte| *byte == b'=')?;
            let name = OsStr::from_bytes(&variable[..at]).to_owned();
            Some((name, OsString::from_vec(variable[at + 1..].to_vec())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_is_read() {
        assert_eq!(
            pairs(b"A=1=2\0B=\0nonsense\0"),
            [("A".into(), "1=2".into()), ("B".into(), "".into())]
        );
        assert_eq!(
            parent_of(std::process::id()).unwrap(),
            std::os::unix::process::parent_id()
        );
    }
}
