//! How many crates a user of this one builds: a number that may not grow unnoticed.

use std::{collections::BTreeSet, process::Command};

/// With what is on by default: images from a registry.
const MAX_BY_DEFAULT: usize = 63;
/// Without: sandboxes over the host's files and over directories.
const MAX_WITHOUT_FEATURES: usize = 27;

#[test]
fn the_tree_of_crates_has_not_grown() {
    for (arguments, max, constant) in [
        (&[][..], MAX_BY_DEFAULT, "MAX_BY_DEFAULT"),
        (
            &["--no-default-features"],
            MAX_WITHOUT_FEATURES,
            "MAX_WITHOUT_FEATURES",
        ),
    ] {
        let crates = crates(arguments);
        println!("{} crates {}", crates.len(), arguments.join(" "));
        assert!(
            crates.len() > 10,
            "the tree is not read as cargo writes it: {crates:?}"
        );
        assert!(
            crates.len() <= max,
            "orbit-harness {} depends on {} crates, of {max} at most. Where the new one is worth it, raise {constant} \
             in {} and say why in the commit. They are: {crates:#?}",
            arguments.join(" "),
            crates.len(),
            file!()
        );
    }
}

/// All that cargo would build on this machine for somebody who depends on this package, but for it.
fn crates(arguments: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--package", "orbit-harness"])
        .args(["--edges", "normal,build", "--prefix", "none", "--no-dedupe"])
        .args(["--format", "{p}"])
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.next()?))
        })
        .filter(|(name, _)| *name != "orbit-harness")
        .map(|(name, version)| format!("{name} {version}"))
        .collect()
}
