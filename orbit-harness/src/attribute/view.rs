//! What of the host a sandboxed test sees: what it would see without a sandbox of its own files, and none of its
//! owner's.
//!
//! As `cargo orbit test` shows it, but found from inside the test, without asking cargo: by cargo's variables and
//! by where things lie.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    path::{Path, PathBuf},
};

use crate::{
    builder::SandboxBuilder,
    spec::{ImageRef, Mount, SpecFault},
    variables::is_passed,
};

/// Files in `CARGO_HOME` that let their reader publish.
const CREDENTIALS: [&str; 2] = ["credentials.toml", "credentials"];

/// Adds to what was asked all that the test program, `executable`, needs to run as it would here.
pub(super) fn complete(
    mut sandbox: SandboxBuilder,
    executable: &Path,
    passed: &[String],
) -> io::Result<SandboxBuilder> {
    if !sandbox.spec.env_clear {
        let seen = env::vars_os().filter(|(name, _)| is_passed(name));
        for (name, value) in seen {
            sandbox.spec.env.entry(name).or_insert(value);
        }
    }
    for name in passed {
        if let Some(value) = env::var_os(name) {
            sandbox.spec.env.entry(name.into()).or_insert(value);
        }
    }
    let here = env::current_dir()?;
    let work = work(executable, &here, env::var_os("CARGO_MANIFEST_DIR"));
    if sandbox.spec.working_dir.is_none() {
        sandbox.spec.working_dir = Some(here);
    }
    match sandbox.spec.image.clone() {
        ImageRef::Host => {
            show(&mut sandbox, work);
        }
        image => match interpreter(executable)? {
            None => {
                let mounts = work.iter().map(|path| Mount::overlay(path, path));
                sandbox.spec.mounts.splice(0..0, mounts);
            }
            Some(interpreter) => {
                let why = format!(
                    "the test itself would have to run in this image, but the test program needs {interpreter} and \
                     libraries of the host. Build the tests for a static target, such as \
                     x86_64-unknown-linux-musl, or start a program of the image inside the test, with \
                     `Sandbox::builder().image(\"{image}\")`"
                );
                sandbox
                    .faults
                    .push(SpecFault::new("image", image.to_string(), why));
            }
        },
    }
    Ok(sandbox)
}

/// Over the host's files: the work, with writes thrown away, and the toolchain, read-only and without credentials.
fn show(sandbox: &mut SandboxBuilder, work: Vec<PathBuf>) {
    let home = env::home_dir();
    for (name, directory) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
        let path = match env::var_os(name) {
            Some(path) if !path.is_empty() => Some(PathBuf::from(path)),
            _ => home.as_ref().map(|home| home.join(directory)),
        };
        let Some(path) = path.filter(|path| path.is_absolute() && path.is_dir()) else {
            continue;
        };
        if name == "CARGO_HOME" {
            let credentials = CREDENTIALS.map(|name| path.join(name));
            let there = credentials.into_iter().filter(|path| path.exists());
            sandbox.spec.host_view.hidden.extend(there);
        }
        // The home inside is another.
        if !sandbox.spec.env_clear {
            let value = path.clone().into_os_string();
            sandbox.spec.env.entry(name.into()).or_insert(value);
        }
        sandbox.spec.host_view.read_only_paths.push(path);
    }
    // What was asked for comes after, and may lie in it.
    sandbox.spec.host_view.paths.splice(0..0, work);
}

/// The workspace and cargo's output.
fn work(executable: &Path, here: &Path, manifest_dir: Option<OsString>) -> Vec<PathBuf> {
    let start = manifest_dir.map_or_else(|| here.to_owned(), PathBuf::from);
    let mut work = vec![workspace(&start, &env::home_dir().unwrap_or_default())];
    let target = executable
        .ancestors()
        .skip(1)
        .find(|directory| directory.join("CACHEDIR.TAG").exists())
        .or(executable.parent());
    work.extend(target.map(Path::to_owned));
    work.push(here.to_owned());
    // Each once, and none that lies in another.
    let all = work.clone();
    let mut kept: Vec<PathBuf> = Vec::new();
    for path in work {
        let within = |other: &PathBuf| path.starts_with(other) && path != *other;
        if path.parent().is_some() && !all.iter().any(within) && !kept.contains(&path) {
            kept.push(path);
        }
    }
    kept
}

/// The root of the workspace that a package is in: as cargo finds it, the nearest manifest above with a
/// `[workspace]`; else the directory of the nearest lock file; else the package itself. A home is never taken for
/// a workspace, as that would show all that is in it.
fn workspace(package: &Path, home: &Path) -> PathBuf {
    let above: Vec<&Path> = package
        .ancestors()
        .take_while(|directory| !home.starts_with(directory))
        .collect();
    let has_table = |directory: &&&Path| {
        fs::read_to_string(directory.join("Cargo.toml")).is_ok_and(|manifest| {
            manifest
                .lines()
                .any(|line| line.trim_start().starts_with("[workspace"))
        })
    };
    let has_lock = |directory: &&&Path| directory.join("Cargo.lock").exists();
    above
        .iter()
        .find(has_table)
        .or_else(|| above.iter().find(has_lock))
        .map_or(package, |found| *found)
        .to_owned()
}

/// The dynamic loader that a program names. `None`: it needs none.
///
/// Source: System V ABI, "Program Header"; elf(5).
fn interpreter(program: &Path) -> io::Result<Option<String>> {
    const PT_INTERP: u32 = 3;
    let mut file = File::open(program)?;
    let mut header = [0; 64];
    file.read_exact(&mut header)?;
    let is_64 = header[4] == 2;
    let (table, size, count) = if is_64 {
        (
            number(&header[32..40]),
            number(&header[54..56]),
            number(&header[56..58]),
        )
    } else {
        (
            number(&header[28..32]),
            number(&header[42..44]),
            number(&header[44..46]),
        )
    };
    for index in 0..count {
        let mut entry = [0; 56];
        let length = usize::try_from(size).unwrap_or(0).min(entry.len());
        file.seek(io::SeekFrom::Start(table + index * size))?;
        file.read_exact(&mut entry[..length])?;
        if number(&entry[..4]) != u64::from(PT_INTERP) {
            continue;
        }
        let (offset, length) = if is_64 {
            (number(&entry[8..16]), number(&entry[32..40]))
        } else {
            (number(&entry[4..8]), number(&entry[16..20]))
        };
        let mut name = vec![0; usize::try_from(length.min(4096)).unwrap_or(0)];
        file.seek(io::SeekFrom::Start(offset))?;
        file.read_exact(&mut name)?;
        let name = String::from_utf8_lossy(&name);
        return Ok(Some(name.trim_end_matches('\0').to_owned()));
    }
    Ok(None)
}

/// A number as this machine writes it; the program is of this machine, since it runs.
fn number(bytes: &[u8]) -> u64 {
    let fold = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
    if cfg!(target_endian = "big") {
        bytes.iter().fold(0, fold)
    } else {
        bytes.iter().rev().fold(0, fold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_is_the_nearest_above_and_never_a_home() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("home/Cargo.toml", "[workspace]");
        write("home/w/Cargo.toml", "[workspace]\nmembers = [\"a\"]");
        write("home/w/Cargo.lock", "");
        write("home/w/a/Cargo.toml", "[package]");
        write("home/single/Cargo.toml", "[package]");
        write("home/single/Cargo.lock", "");
        write("home/bare/Cargo.toml", "[package]");
        let home = root.join("home");
        for (package, expected) in [
            ("w/a", "w"),
            ("w", "w"),
            ("single", "single"),
            ("bare", "bare"),
        ] {
            assert_eq!(
                workspace(&home.join(package), &home),
                home.join(expected),
                "{package}"
            );
        }
    }

    #[test]
    fn this_program_names_its_loader() {
        let found = interpreter(&env::current_exe().unwrap()).unwrap();
        assert_eq!(
            found.is_some(),
            !cfg!(target_feature = "crt-static"),
            "{found:?}"
        );
        if let Some(loader) = found {
            assert!(Path::new(&loader).exists(), "{loader}");
        }
    }

    #[test]
    fn what_lies_in_another_is_shown_once() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = here.parent().unwrap();
        let seen = work(&root.join("target/debug/deps/x-1"), here, Some(here.into()));
        assert_eq!(seen[0], root);
        assert!(
            seen[1..].iter().all(|path| !path.starts_with(root)),
            "{seen:?}"
        );
    }
}
