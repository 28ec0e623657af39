//! The nftables rules that keep a bridge apart from the host: a table for each bridge, written and removed whole.
//!
//! Where the kernel shows what passes over a bridge to the host's firewall (`br_netfilter`, which Docker loads), that
//! firewall has its say about what sandboxes send to each other, and Docker's forwards nothing by default. An accept
//! in one table undoes no drop of another, so each chain that filters what is forwarded then gets a rule at its
//! front, of this bridge alone and marked with the name of its table. Left behind, it would say nothing.
//!
//! Source: Linux, Documentation/networking/ip-sysctl.rst, "/proc/sys/net/bridge/*"; nft(8).

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

/// Installs the rules of the bridge `name`, in place of any that are there.
///
/// # Errors
/// What nft wrote, or why it could not be run.
pub(super) fn install(name: &str) -> Result<(), String> {
    let mut rules = own(name);
    if firewall_sees_bridges() {
        let firewall = Firewall::parse(&listing()?, name);
        rules += &firewall.without();
        rules += &firewall.with(name);
    }
    run(&["-f", "-"], &rules).map(drop)
}

/// Removes the rules of the bridge `name`.
pub(super) fn remove(name: &str) {
    let table = table(name);
    // Whether or not it is there. Without nft there are no rules.
    let _ = run(
        &["-f", "-"],
        &format!("table inet {table}\ndelete table inet {table}\n"),
    );
    if firewall_sees_bridges()
        && let Ok(listing) = listing()
    {
        let firewall = Firewall::parse(&listing, name);
        // What is left says nothing about any other bridge.
        let _ = run(&["-f", "-"], &firewall.without());
    }
}

fn table(name: &str) -> String {
    format!("orbit-{name}")
}

/// Whether packets of IPv4 that pass over a bridge are shown to what filters forwarded ones.
fn firewall_sees_bridges() -> bool {
    fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables")
        .is_ok_and(|value| value.trim() != "0")
}

fn listing() -> Result<String, String> {
    run(&["-a", "list", "ruleset"], "")
}

/// What others filter of what is forwarded, as `nft -a list ruleset` shows it.
#[derive(Debug, Default, PartialEq)]
struct Firewall {
    /// `FAMILY TABLE CHAIN` of each chain.
    chains: Vec<String>,
    /// `FAMILY TABLE CHAIN handle NUMBER` of each rule that is the bridge's.
    ours: Vec<String>,
}

impl Firewall {
    fn parse(listing: &str, name: &str) -> Self {
        let mark = format!("comment \"{}\"", table(name));
        let mut firewall = Self::default();
        let (mut table, mut chain) = (String::new(), String::new());
        for line in listing.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            match words[..] {
                ["table", family, name, ..] => table = format!("{family} {name}"),
                ["chain", name, ..] => chain = format!("{table} {name}"),
                // Bridges' own tables name their own bridge alone.
                ["type", "filter", "hook", "forward", ..]
                    if (table.starts_with("ip ") || table.starts_with("inet "))
                        && !table.starts_with("inet orbit-") =>
                {
                    firewall.chains.push(chain.clone());
                }
                [.., "handle", handle] if line.contains(&mark) => {
                    firewall.ours.push(format!("{chain} handle {handle}"));
                }
                _ => {}
            }
        }
        firewall
    }

    /// The commands that let sandboxes on the bridge reach each other.
    fn with(&self, name: &str) -> String {
        let table = table(name);
        self.chains.iter().fold(String::new(), |mut text, chain| {
            let _ = writeln!(
                text,
                r#"insert rule {chain} iifname "{name}" oifname "{name}" accept comment "{table}""#
            );
            text
        })
    }

    /// The commands that undo [`Self::with`], also of a process that was killed.
    fn without(&self) -> String {
        self.ours.iter().fold(String::new(), |mut text, rule| {
            let _ = writeln!(text, "delete rule {rule}");
            text
        })
    }
}

/// What is asked for from outside of the sandboxes may be answered; nothing else leaves the bridge.
fn own(name: &str) -> String {
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

/// Runs nft with `input`, and gives what it prints.
fn run(args: &[&str], input: &str) -> Result<String, String> {
    let mut nft = Command::new("nft")
        .args(args)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("nft cannot be run ({error}); install the package nftables"))?;
    // Closed at the end of the statement, which is what nft waits for.
    let written = nft
        .stdin
        .take()
        .map_or(Ok(()), |mut pipe| pipe.write_all(input.as_bytes()));
    let output = nft.wait_with_output().map_err(|error| error.to_string())?;
    if output.status.success() && written.is_ok() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!(
        "nft: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_these() {
        insta::assert_snapshot!(own("myruntime0"));
    }

    const BESIDE_DOCKER: &str = r#"table inet orbit-other0 { # handle 7
	chain forward { # handle 2
		type filter hook forward priority filter - 1; policy accept;
		iifname "other0" oifname "other0" accept # handle 5
	}
}
table ip filter { # handle 435
	chain DOCKER { # handle 1
		iifname "docker0" comment "orbit-myruntime0 is no rule of ours" drop # handle 9
	}
	chain FORWARD { # handle 6
		type filter hook forward priority filter; policy drop;
		iifname "myruntime0" oifname "myruntime0" accept comment "orbit-myruntime0" # handle 44
		iifname "myruntime01" oifname "myruntime01" accept comment "orbit-myruntime01" # handle 45
		counter packets 0 bytes 0 jump DOCKER # handle 8
	}
}
table inet firewalld { # handle 436
	chain filter_FORWARD { # handle 3
		type filter hook forward priority filter + 10; policy accept;
		reject with icmpx admin-prohibited # handle 4
	}
	chain nat_POST { # handle 9
		type nat hook postrouting priority srcnat + 10; policy accept;
	}
}
table ip6 filter { # handle 437
	chain FORWARD { # handle 6
		type filter hook forward priority filter; policy drop;
	}
}
"#;

    #[test]
    fn each_chain_that_filters_what_is_forwarded_lets_the_bridge_pass() {
        let firewall = Firewall::parse(BESIDE_DOCKER, "myruntime0");
        insta::assert_snapshot!(firewall.without() + &firewall.with("myruntime0"), @r#"
        delete rule ip filter FORWARD handle 44
        insert rule ip filter FORWARD iifname "myruntime0" oifname "myruntime0" accept comment "orbit-myruntime0"
        insert rule inet firewalld filter_FORWARD iifname "myruntime0" oifname "myruntime0" accept comment "orbit-myruntime0"
        "#);
        assert_eq!(Firewall::parse("", "myruntime0"), Firewall::default());
    }
}
