//! The Debian packages that building and testing need: `tests/packages.txt`, which says why each.

use std::path::Path;

use anyhow::Result;

use crate::{is_root, run};

const TABLE: &str = include_str!("../../tests/packages.txt");

/// Package, a file it installs, why.
fn table() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    TABLE
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
    let missing: Vec<_> = table()
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
            "tests that need them are skipped; to run them: apt-get install {}",
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
    use super::table;

    #[test]
    fn every_package_has_a_file_and_a_reason() {
        assert!(table().count() > 10);
        for (package, file, why) in table() {
            assert!(file.starts_with('/') && why.contains(' '), "{package}");
        }
    }
}
