//! A shell for sandboxes that have none: this machine's busybox, where it is one that needs no library.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use orbit::{Mount, SandboxBuilder};

use super::is_program;

/// Where its programs are, inside.
const DIRECTORY: &str = "/.orbit";

/// What one looks around with. Each is busybox under another name.
const APPLETS: [&str; 24] = [
    "busybox", "cat", "cp", "df", "du", "env", "find", "grep", "head", "hexdump", "id", "ls",
    "mount", "mv", "ps", "pwd", "readlink", "rm", "sh", "sort", "stat", "tail", "vi", "wc",
];

/// The program, inside.
pub(super) fn program() -> String {
    format!("{DIRECTORY}/busybox")
}

/// A busybox of this machine that runs anywhere.
pub(super) fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/bin", "/usr/bin"].map(PathBuf::from))
        .map(|directory| directory.join("busybox"))
        .find(|file| is_program(file) && is_static(file))
}

/// Shows `busybox` inside, read-only, under the names of its programs, after whatever the sandbox has itself.
pub(super) fn lend(sandbox: SandboxBuilder, busybox: &Path) -> SandboxBuilder {
    APPLETS
        .iter()
        .fold(sandbox, |sandbox, name| {
            sandbox.mount(Mount::bind_read_only(
                busybox,
                format!("{DIRECTORY}/{name}"),
            ))
        })
        .env(
            "PATH",
            format!("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{DIRECTORY}"),
        )
}

/// Whether the program at `path` asks for no loader: then it needs nothing of the files around it.
///
/// Source: elf(5).
fn is_static(path: &Path) -> bool {
    const INTERPRETER: u32 = 3;
    let read = |file: &File, at: u64, length: usize| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
    };
    let number = |bytes: &[u8]| {
        let digits = bytes.iter().rev();
        digits.fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let answer = || {
        let file = File::open(path).ok()?;
        let header = read(&file, 0, 64)?;
        // Of 64 bits, little-endian: what else Orbit runs on, no test is made for.
        if header[..6] != *b"\x7fELF\x02\x01" {
            return None;
        }
        let (table, size, count) = (
            number(&header[32..40]),
            number(&header[54..56]),
            number(&header[56..58]),
        );
        for index in 0..count {
            let kind = read(&file, table + index * size, 4)?;
            if number(&kind) == u64::from(INTERPRETER) {
                return Some(false);
            }
        }
        Some(true)
    };
    answer().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_a_loader_is_told_from_one_without() {
        assert!(!is_static(Path::new("/proc/self/exe")));
        assert!(!is_static(Path::new("/etc/passwd")) && !is_static(Path::new("/nowhere")));
    }
}
