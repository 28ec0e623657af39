//! Links what unwinds a panic into the program, where that can be.
//!
//! Else each start finds, maps and relocates libgcc_s, of which only that is used: 0.1 of the 1.3 ms in which a command
//! prints its help. The linker drops libgcc_s by itself where nothing of it is missing any more (`--as-needed`, which rustc
//! passes). GCC's runtime library exception allows this, as for every program that gcc links.
//!
//! Where anything is not as expected, nothing is done, and libgcc_s is loaded.

#![forbid(unsafe_code)]

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    println!("cargo::rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    // The tests ask for it.
    println!("cargo::rustc-check-cfg=cfg(unwinder_is_linked)");
    let target = env::var("TARGET").unwrap_or_default();
    if target.ends_with("-linux-gnu") && !has_another_linker() && has_archive() {
        println!("cargo::rustc-link-lib=static=gcc_eh");
        println!("cargo::rustc-cfg=unwinder_is_linked");
    }
}

/// Whether rustc's flags name a linker, of which cargo says nothing: it may have no such archive.
fn has_another_linker() -> bool {
    let flags = env::var_os("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let flags = flags.to_string_lossy();
    ["linker=", "linker-flavor="]
        .iter()
        .any(|flag| flags.contains(flag))
}

/// Whether the compiler that links has the static unwinder, where it looks for libraries.
fn has_archive() -> bool {
    // cargo passes on which one it was told to use; else rustc takes this.
    let linker = env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into());
    let asked = Command::new(linker)
        .arg("-print-file-name=libgcc_eh.a")
        .output();
    asked.is_ok_and(|said| {
        let path = String::from_utf8_lossy(&said.stdout);
        // What is not found is answered by its bare name.
        said.status.success() && path.contains('/') && Path::new(path.trim_end()).is_file()
    })
}
