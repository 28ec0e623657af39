//! The ordinary users that tests run as: `orbit-test`, with a range of subordinate ids, and
//! `orbit-single`, without one.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::{is_root, run};

pub(crate) const RANGED: &str = "orbit-test";
const SINGLE: &str = "orbit-single";
/// As many ids as a container usually maps: all that 16 bits can say.
const RANGE_LEN: u64 = 65_536;
/// The first subordinate id that useradd gives by default (login.defs, `SUB_UID_MIN`).
const RANGE_MIN: u64 = 100_000;

/// Makes the accounts where they are not there yet. Without root, tests that need them are skipped by name.
pub(crate) fn make() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    for account in [RANGED, SINGLE] {
        if !lines("/etc/passwd")?
            .iter()
            .any(|line| belongs(line, account))
        {
            run::success(
                run::command("useradd")
                    .args([
                        "--create-home",
                        "-K",
                        "SUB_UID_COUNT=0",
                        "-K",
                        "SUB_GID_COUNT=0",
                    ])
                    .arg(account),
            )?;
        }
    }
    for (file, option) in [
        ("/etc/subuid", "--add-subuids"),
        ("/etc/subgid", "--add-subgids"),
    ] {
        let ranges = lines(file)?;
        if ranges.iter().any(|line| belongs(line, SINGLE)) {
            bail!("{file} has a range for {SINGLE}, which must have none: remove its line");
        }
        if !ranges.iter().any(|line| belongs(line, RANGED)) {
            let first = first_free(&ranges);
            let range = format!("{first}-{}", first + RANGE_LEN - 1);
            run::success(run::command("usermod").args([option, &range, RANGED]))?;
        }
    }
    Ok(())
}

fn lines(file: &str) -> Result<Vec<String>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(fault) => Err(fault).with_context(|| file.to_owned()),
    }
}

fn belongs(line: &str, account: &str) -> bool {
    line.split(':').next() == Some(account)
}

/// The first id after every range of `name:first:count` lines.
fn first_free(ranges: &[String]) -> u64 {
    let end_of = |line: &String| {
        let mut fields = line
            .split(':')
            .skip(1)
            .map(|field| field.parse::<u64>().ok());
        Some(fields.next()?? + fields.next()??)
    };
    ranges.iter().filter_map(end_of).fold(RANGE_MIN, u64::max)
}

#[cfg(test)]
mod tests {
    use super::first_free;

    #[test]
    fn ranges_do_not_overlap() {
        assert_eq!(first_free(&[]), 100_000);
        let ranges = [
            "dev:100000:65536".to_owned(),
            "old:1000:1".to_owned(),
            "odd".to_owned(),
        ];
        assert_eq!(first_free(&ranges), 165_536);
    }
}
