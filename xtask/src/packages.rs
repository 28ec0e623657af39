//! The Debian packages that building and testing need: `tests/packages.txt`, which says why each; those of the
//! benchmarks are in `tests/packages-bench.txt`.

use std::path::Path;

use anyhow::Result;

use crate::{is_root, run};

const TABLE: &str = include_str!("../../tests/packages.txt");
const BENCHES: &str = include_str!("../../tests/packages-bench.txt");

/// Package, a file it installs, why.
fn rows(table: &'static str) -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    table
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (package, rest) = line.split_once(' ')?;
            let (file, why) = rest.trim_start().split_once(' ')?;
            Some((package, file, why.trim()))
        })
}

/// Installs what is missing, as root on Debian. Elsewhere it says what is missing: the tests that need it
/// are then skipped by name.
pub(crate) fn install() -> Result<()> {
    install_from(&[TABLE])
}

/// The same for what the benchmarks use: peers, and what times them.
pub(crate) fn install_for_benches() -> Result<()> {
    install_from(&[TABLE, BENCHES])
}

fn install_from(tables: &[&'static str]) -> Result<()> {
    let missing: Vec<_> = tables
        .iter()
        .flat_map(|table| rows(table))
        .filter(|(_, file, _)| !Path::new(file).exists())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    for (package, _, why) in &missing {
        println!("missing: {package} ({why})");
    }
    let names: Vec<&str> = missing.iter().map(|(package, ..)| *package).collect();
    if !is_root() || !Path::new("/usr/bin/apt-get").exists() {
        println!(
            "what needs them is skipped; to run them: apt-get install {}",
            names.join(" ")
        );
        return Ok(());
    }
    let mut install = run::command("apt-get");
    install
        .args(["install", "-y", "-q", "--no-install-recommends"])
        .args(&names)
        .env("DEBIAN_FRONTEND", "noninteractive");
    if run::status(&mut install)?.success() {
        return Ok(());
    }
    // The lists may be old, or not there yet.
    run::success(run::command("apt-get").args(["update", "-q"]))?;
    run::success(&mut install)
}

#[cfg(test)]
mod tests {
    use super::{BENCHES, TABLE, rows};

    #[test]
    fn every_package_has_a_file_and_a_reason() {
        assert!(rows(TABLE).count() > 10);
        for (package, file, why) in rows(TABLE).chain(rows(BENCHES)) {
            assert!(file.starts_with('/') && why.contains(' '), "{package}");
        }
    }
}
