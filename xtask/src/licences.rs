//! Licences and origins of every dependency, against the allow-list in `deny.toml`.
//!
//! What `cargo deny check licenses sources` asks, by the fields that crates publish. cargo-deny also reads
//! licence files; where a crate has no licence field, this check refuses it.

use std::{collections::BTreeSet, fs, iter::Peekable, str::SplitWhitespace};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::run;

/// The one platform Orbit is for; dependencies of others are never built.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// One line for each dependency that may not be used, or comes from elsewhere than a registry.
pub(crate) fn faults() -> Result<Vec<String>> {
    let allowed =
        allowed(&fs::read_to_string(crate::workspace().join("deny.toml")).context("deny.toml")?)?;
    let metadata = run::output(run::cargo().args([
        "metadata",
        "--format-version=1",
        "--filter-platform",
        PLATFORM,
    ]))?;
    let metadata: Value = serde_json::from_slice(&metadata)?;
    let used: BTreeSet<&str> = array(&metadata["resolve"]["nodes"])
        .iter()
        .filter_map(|node| node["id"].as_str())
        .collect();
    let packages = array(&metadata["packages"]);
    let used = packages
        .iter()
        .filter(|package| package["id"].as_str().is_some_and(|id| used.contains(id)));
    let mut faults = Vec::new();
    let mut count = 0;
    for package in used {
        count += 1;
        let name = format!("{} {}", text(&package["name"]), text(&package["version"]));
        let licence = text(&package["license"]);
        if !Expression::is_allowed(licence, &allowed) {
            faults.push(format!(
                "{name}: licence `{licence}` is not in deny.toml's allow-list"
            ));
        }
        let source = package["source"].as_str();
        if source.is_some_and(|source| !source.starts_with("registry+")) {
            faults.push(format!(
                "{name}: comes from {}, not from a registry",
                source.unwrap_or_default()
            ));
        }
    }
    ensure!(count > 1, "cargo metadata names no dependencies");
    println!(
        "{count} packages, {} licences allowed, {} faults",
        allowed.len(),
        faults.len()
    );
    Ok(faults)
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("none")
}

/// The strings of `allow = […]` in the section `[licenses]`. Only as much TOML as our own file has.
fn allowed(deny: &str) -> Result<BTreeSet<String>> {
    let section = deny
        .split("[licenses]")
        .nth(1)
        .context("deny.toml has no [licenses]")?;
    let list = section
        .split("allow = [")
        .nth(1)
        .and_then(|rest| rest.split(']').next());
    let lines = list.context("[licenses] has no `allow = [`")?.lines();
    let code = lines.map(|line| line.split('#').next().unwrap_or_default());
    Ok(code
        .flat_map(|line| line.split('"').skip(1).step_by(2))
        .map(str::to_owned)
        .collect())
}

/// A licence expression as SPDX has it: OR, AND (which binds closer), WITH, parentheses; and the slash
/// that meant OR in old manifests.
struct Expression<'a> {
    words: Peekable<SplitWhitespace<'a>>,
    allowed: &'a BTreeSet<String>,
}

impl Expression<'_> {
    fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
        let spaced = expression
            .replace('(', " ( ")
            .replace(')', " ) ")
            .replace('/', " OR ");
        let mut parser = Expression {
            words: spaced.split_whitespace().peekable(),
            allowed,
        };
        let good = parser.any();
        good && parser.words.next().is_none()
    }

    fn any(&mut self) -> bool {
        let mut good = self.all();
        while self.words.next_if_eq(&"OR").is_some() {
            good |= self.all();
        }
        good
    }

    fn all(&mut self) -> bool {
        let mut good = self.one();
        while self.words.next_if_eq(&"AND").is_some() {
            good &= self.one();
        }
        good
    }

    fn one(&mut self) -> bool {
        match self.words.next() {
            Some("(") => {
                let good = self.any();
                good && self.words.next() == Some(")")
            }
            Some(licence) if self.words.next_if_eq(&"WITH").is_some() => {
                let exception = self.words.next().unwrap_or_default();
                self.allowed
                    .contains(&format!("{licence} WITH {exception}"))
            }
            Some(licence) => self.allowed.contains(licence),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Expression, allowed};

    #[test]
    fn reads_expressions_as_spdx_does() {
        let list = allowed("[graph]\n[licenses]\nallow = [\n  \"MIT\", # \"GPL-3.0\"\n  \"ISC\", \"Apache-2.0 WITH LLVM-exception\",\n]\n").unwrap();
        assert_eq!(list.len(), 3);
        for good in [
            "MIT",
            "MIT OR GPL-2.0",
            "GPL-2.0/MIT",
            "MIT AND ISC",
            "GPL-2.0 OR MIT AND ISC",
            "(GPL-2.0 OR MIT) AND ISC",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
        ] {
            assert!(Expression::is_allowed(good, &list), "{good}");
        }
        for bad in [
            "none",
            "",
            "GPL-3.0",
            "MIT AND GPL-2.0",
            "Apache-2.0",
            "(MIT",
            "MIT)",
            "MIT WITH x",
            "MIT MIT",
        ] {
            assert!(!Expression::is_allowed(bad, &list), "{bad}");
        }
    }
}
