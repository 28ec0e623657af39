//! The nftables rules that keep a bridge apart from the host: a table for each bridge, written and removed whole.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

/// Installs the rules of the bridge `name`, in place of any that are there.
///
/// # Errors
/// What nft wrote, or why it could not be run.
pub(super) fn install(name: &str) -> Result<(), String> {
    run(&text(name))
}

/// Removes the rules of the bridge `name`.
pub(super) fn remove(name: &str) {
    let table = table(name);
    // Whether or not it is there. Without nft there are no rules.
    let _ = run(&format!("table inet {table}\ndelete table inet {table}\n"));
}

fn table(name: &str) -> String {
    format!("orbit-{name}")
}

/// What is asked for from outside of the sandboxes may be answered; nothing else leaves the bridge.
fn text(name: &str) -> String {
    let table = table(name);
    format!(
        r#"table inet {table}
delete table inet {table}
table inet {table} {{
    chain input {{
        type filter hook input priority filter - 1; policy accept;
        iifname "{name}" ct state established,related accept
        iifname "{name}" counter drop
    }}
    chain forward {{
        type filter hook forward priority filter - 1; policy accept;
        iifname "{name}" oifname "{name}" accept
        iifname "{name}" counter drop
        oifname "{name}" counter drop
    }}
}}
"#
    )
}

fn run(rules: &str) -> Result<(), String> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("nft cannot be run ({error}); install the package nftables"))?;
    // Closed at the end of the statement, which is what nft waits for.
    let written = nft
        .stdin
        .take()
        .map_or(Ok(()), |mut input| input.write_all(rules.as_bytes()));
    let output = nft.wait_with_output().map_err(|error| error.to_string())?;
    if output.status.success() && written.is_ok() {
        return Ok(());
    }
    Err(format!(
        "nft: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_rules_are_these() {
        insta::assert_snapshot!(super::text("myruntime0"));
    }
}
