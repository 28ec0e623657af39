//! `cargo orbit explain`: what holds for a test, who said so, and what will be done.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use orbit_tests::{Case, Context, Program, Who};

use crate::told::package;

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("explained::{name}"), run)
            .who(Who::RANGED)
            .needs_toolchain()
            .deadline(Duration::from_secs(300))
    };
    vec![
        case("each_value_is_told_with_who_said_it", values),
        case("what_it_shows_is_what_runs", shown_is_run),
    ]
}

const CONFIG: &str = r#"memory = "1G"
pids = 64
env = { A = "1" }

[profile.ci]
retries = 1

[[override]]
filter = "test(/^slow::/)"
timeout = "7m"
memory = "2G"
env = { B = "2" }
"#;

const METADATA: &str = r#"
[package.metadata.orbit]
hostname = "of-the-package"
pids = 65
"#;

/// A package with all the files that may say something.
fn configured(context: &Context) -> Result<std::path::PathBuf> {
    let text = "
        mod slow {
            #[test]
            fn reads() {
                let name = std::fs::read_to_string(\"/proc/sys/kernel/hostname\").unwrap();
                assert_eq!(name.trim(), \"of-the-package\");
                let variable = |name| std::env::var(name).unwrap();
                assert_eq!((variable(\"A\"), variable(\"B\")), (\"1\".to_owned(), \"2\".to_owned()));
            }
        }";
    let directory = package(context, &[("slowly", text)])?;
    let manifest = directory.join("Cargo.toml");
    let before = fs::read_to_string(&manifest)?;
    fs::write(&manifest, before + METADATA)?;
    fs::create_dir_all(directory.join(".config"))?;
    fs::write(directory.join(".config/orbit.toml"), CONFIG)?;
    Ok(directory)
}

fn explain(context: &Context, directory: &Path) -> Result<Program> {
    let program = context.orbit("explain")?.current_dir(directory);
    Ok(program.env("CARGO_NET_OFFLINE", "true"))
}

/// The lines of the table, by key: the value, and who said it. What is no line of it is none of the words asked for.
fn table(text: &str) -> BTreeMap<&str, (String, String)> {
    text.lines()
        .take_while(|line| !line.starts_with("  plan:"))
        .filter_map(|line| {
            let (key, rest) = line.strip_prefix("  ")?.split_once("  ")?;
            let (value, origin) = rest.trim_start().split_once("  ")?;
            Some((key, (value.to_owned(), origin.trim_start().to_owned())))
        })
        .collect()
}

fn values(context: &Context) -> Result<()> {
    let directory = configured(context)?;
    let explained = explain(context, &directory)?
        .args(["slow::reads", "--all", "--orbit-profile", "ci"])
        .args(["--cpuset", "0", "--tmpfs", "/scratch:1M"])
        // Not every host can keep limits, and then there is no plan.
        .arg("--best-effort")
        .env("ORBIT_SLOW_TIMEOUT", "30s:4")
        .run()?
        .success()?;
    let text = &explained.stdout;
    let head = text.lines().next().unwrap_or_default();
    ensure!(
        head.starts_with("test slow::reads of ")
            && head.contains("package::slowly")
            && head.ends_with(" (profile ci):"),
        "{head}"
    );
    let table = table(text);
    let of_file = |line: u32, more: &str| format!(".config/orbit.toml:{line}:1{more}");
    let overridden = " (override: test(/^slow::/))";
    let of_both = format!("{}; {}", of_file(3, ""), of_file(12, overridden));
    let profile = of_file(6, " (profile ci)");
    for (key, value, origin) in [
        ("cpuset", "0", "--cpuset on the command line"),
        ("tmpfs", "/scratch:1M", "--tmpfs on the command line"),
        (
            "slow_timeout",
            "30s, killed after 4 of them",
            "ORBIT_SLOW_TIMEOUT in the environment",
        ),
        ("timeout", "7m", &of_file(10, overridden)),
        ("memory", "2G", &of_file(11, overridden)),
        ("env", "A=1, B=2", &of_both),
        ("retries", "1", &profile),
        ("isolate", "binary", "default"),
        ("network", "none", "default"),
    ] {
        let found = table.get(key);
        let wanted = (value.to_owned(), origin.to_owned());
        ensure!(
            found == Some(&wanted),
            "{key}: {found:?}, not {wanted:?}\n{text}"
        );
    }
    // The package's own table is stronger than the workspace's file.
    for (key, value) in [("hostname", "of-the-package"), ("pids", "65")] {
        let (found, origin) = table.get(key).context(key)?;
        let is_its = found == value && origin.starts_with("Cargo.toml:");
        ensure!(is_its, "{key}: {found} {origin}\n{text}");
    }
    let (_, plan) = text.split_once("  plan:\n").context("no plan")?;
    for wanted in ["slow::reads", "of-the-package", "/scratch"] {
        ensure!(
            plan.contains(wanted),
            "{wanted:?} is not in the plan\n{text}"
        );
    }

    // For another test the override says nothing.
    let other = explain(context, &directory)?
        .args(["package::slowly", "quick", "--no-plan"])
        .run()?
        .success()?;
    let text = &other.stdout;
    ensure!(
        text.starts_with("test quick of package::slowly:\n"),
        "{text}"
    );
    ensure!(!text.contains("plan"), "{text}");
    let found = self::table(text);
    let memory = ("1G".to_owned(), of_file(1, ""));
    ensure!(found.get("memory") == Some(&memory), "{text}");
    ensure!(!found.contains_key("timeout"), "{text}");

    let wrong = explain(context, &directory)?
        .args(["package::slwly", "quick"])
        .run()?
        .code(1)?;
    let hint = "did you mean `package::slowly`?";
    ensure!(wrong.stderr.contains(hint), "{wrong}");
    Ok(())
}

/// The test finds what was explained.
fn shown_is_run(context: &Context) -> Result<()> {
    let directory = configured(context)?;
    let test = |words: &[&str]| -> Result<_> {
        let program = context.orbit("test")?.current_dir(&directory);
        program
            .args(["--offline", "--tests", "--target-dir"])
            .arg(context.work().join("target"))
            // Not every host can keep limits.
            .arg("--best-effort")
            .args(words)
            .deadline(Duration::from_secs(240))
            .run()
    };
    test(&["slow::reads"])?.success()?;
    let other = test(&["slow::reads", "--hostname", "another"])?.code(101)?;
    ensure!(other.stderr.contains("another"), "{other}");
    Ok(())
}
