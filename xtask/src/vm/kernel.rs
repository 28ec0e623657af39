//! Debian's cloud kernel and its modules, from its package, without installing it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::output;

/// The package that always depends on the newest kernel's.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// What sandboxes, their networks and the machine's disk need; the cloud kernel has all else built in.
const MODULES: [&str; 16] = [
    "virtio_pci",
    "virtio_blk",
    "overlay",
    "dummy",
    "veth",
    "bridge",
    "tun",
    "nf_tables",
    "nf_nat",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_redir",
    "nft_ct",
    "nft_fib_inet",
    "nft_reject_inet",
];

/// A kernel, and its modules in an order in which each finds what it needs.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    pub(super) modules: Vec<PathBuf>,
}

/// The kernel in `directory`, downloaded where it is not there.
pub(super) fn get(directory: &Path) -> Result<Kernel> {
    let unpacked = directory.join("kernel");
    if find_image(&unpacked).is_none() {
        download(directory, &unpacked)?;
    }
    let image =
        find_image(&unpacked).with_context(|| format!("no kernel in {}", unpacked.display()))?;
    let all = modules_below(&unpacked.join("lib/modules"));
    let mut modules = Vec::new();
    for name in MODULES {
        add(name, &all, &mut modules)?;
    }
    Ok(Kernel { image, modules })
}

fn find_image(unpacked: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(unpacked.join("boot")).ok()?;
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        })
}

fn download(directory: &Path, unpacked: &Path) -> Result<()> {
    let downloads = directory.join("downloads");
    fs::create_dir_all(&downloads)?;
    let depends = output(Command::new("apt-cache").args(["depends", PACKAGE]))?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .filter(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("{PACKAGE} names no kernel; run `apt-get update`"))?
        .to_owned();
    println!("vm: downloading {package}");
    output(
        Command::new("apt-get")
            .current_dir(&downloads)
            .args(["download", &package]),
    )?;
    let file = fs::read_dir(&downloads)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(&package))
        })
        .with_context(|| format!("apt-get left no {package} in {}", downloads.display()))?;
    output(Command::new("dpkg").arg("-x").arg(file).arg(unpacked))?;
    Ok(())
}

/// Module files by name, with `-` as `_`.
fn modules_below(directory: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        let Ok(entries) = fs::read_dir(directory) else {
            continue;
        };
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "ko") {
                let name = path.file_stem().unwrap_or_default().to_string_lossy();
                found.insert(name.replace('-', "_"), path);
            }
        }
    }
    found
}

/// Adds a module after those it depends on.
fn add(name: &str, all: &BTreeMap<String, PathBuf>, order: &mut Vec<PathBuf>) -> Result<()> {
    // Not there as a file: it is built in.
    let Some(path) = all.get(name) else {
        return Ok(());
    };
    if order.contains(path) {
        return Ok(());
    }
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let Some(depends) = depends(&bytes) else {
        bail!("{} does not say what it depends on", path.display());
    };
    for dependency in depends {
        add(&dependency, all, order)?;
    }
    order.push(path.clone());
    Ok(())
}

/// What a module says in its `.modinfo`: `depends=a,b`, ended by a NUL.
fn depends(module: &[u8]) -> Option<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let start = module.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let text = module[start..].split(|byte| *byte == 0).next()?;
    let text = String::from_utf8_lossy(text).into_owned();
    let names = text.split(',').filter(|name| !name.is_empty());
    Some(names.map(|name| name.replace('-', "_")).collect())
}

#[cfg(test)]
mod tests {
    use super::depends;

    #[test]
    fn dependencies_are_read_from_the_module() {
        let module = b"x\0license=GPL\0depends=virtio,virtio-ring\0name=x\0";
        assert_eq!(depends(module).unwrap(), ["virtio", "virtio_ring"]);
        assert!(depends(b"\0depends=\0").unwrap().is_empty());
        assert!(depends(b"no module").is_none());
    }
}
