//! The nftables rules that keep a bridge apart from the host: a table for each bridge, written and removed whole.
//!
//! Where the kernel shows what passes over a bridge to the host's firewall (`br_netfilter`, which Docker loads), that
//! firewall has its say about what sandboxes send to each other, and Docker's forwards nothing by default. An accept
//! in one table undoes no drop of another, so each chain that filters what is forwarded then gets a rule at its
//! front, of this bridge alone and marked with the name of its table. Left behind, it would say nothing. A chain that takes
//! no rule of ours, as firewalld's may not, is left as it is.
//!
//! Source: Linux, Documentation/networking/ip-sysctl.rst, "/proc/sys/net/bridge/*"; nft(8).

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

/// Installs the rules of the bridge `name`, in place of any that are there.
///
/// # Errors
/// What nft wrote, or why it could not be run.
pub(super) fn install(name: &str) -> Result<(), String> {
    run(&["-f", "-"], &own(name))?;
    if firewall_sees_bridges() {
        let firewall = Firewall::read(name);
        firewall.without().iter().for_each(|rule| try_run(rule));
        firewall.with(name).iter().for_each(|rule| try_run(rule));
    }
    Ok(())
}

/// Removes the rules of the bridge `name`.
pub(super) fn remove(name: &str) {
    let table = table(name);
    // Whether or not it is there. Without nft there are no rules.
    try_run(&format!("table inet {table}\ndelete table inet {table}\n"));
    if firewall_sees_bridges() {
        Firewall::read(name)
            .without()
            .iter()
            .for_each(|rule| try_run(rule));
    }
}

/// Each by itself: the host's firewall is its own program's, and may be another by now.
fn try_run(command: &str) {
    // What fails is as it was.
    let _ = run(&["-f", "-"], command);
}

fn table(name: &str) -> String {
    format!("orbit-{name}")
}

/// Whether packets of IPv4 that pass over a bridge are shown to what filters forwarded ones.
fn firewall_sees_bridges() -> bool {
    fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables")
        .is_ok_and(|value| value.trim() != "0")
}

/// What others filter of what is forwarded, as `nft -a -t list ruleset` shows it.
#[derive(Debug, Default, PartialEq)]
struct Firewall {
    /// `FAMILY TABLE CHAIN` of each chain.
    chains: Vec<String>,
    /// `FAMILY TABLE CHAIN handle NUMBER` of each rule that is the bridge's.
    ours: Vec<String>,
}

impl Firewall {
    /// Empty where nft does not show it.
    fn read(name: &str) -> Self {
        let listing = run(&["-a", "-t", "list", "ruleset"], "");
        listing.map_or_else(|_| Self::default(), |listing| Self::parse(&listing, name))
    }

    fn parse(listing: &str, name: &str) -> Self {
        let rule = rule(name);
        let mut firewall = Self::default();
        let (mut table, mut chain) = (None, None);
        for line in listing.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            match words[..] {
                ["table", family, name, ..] => {
                    // Bridges' own tables name their own bridge alone.
                    let is_bridges = family == "inet" && name.starts_with("orbit-");
                    let is_others =
                        matches!(family, "ip" | "inet") && !is_bridges && is_plain(name);
                    table = is_others.then(|| format!("{family} {name}"));
                    chain = None;
                }
                ["chain", name, ..] => {
                    let table = table.as_ref().filter(|_| is_plain(name));
                    chain = table.map(|table| format!("{table} {name}"));
                }
                ["type", "filter", "hook", "forward", ..] => firewall.chains.extend(chain.clone()),
                [.., "#", "handle", handle]
                    if line.trim_start().starts_with(&rule)
                        && handle.bytes().all(|byte| byte.is_ascii_digit()) =>
                {
                    let chain = chain.as_ref().filter(|it| firewall.chains.contains(it));
                    firewall
                        .ours
                        .extend(chain.map(|chain| format!("{chain} handle {handle}")));
                }
                _ => {}
            }
        }
        firewall
    }

    /// The commands that let sandboxes on the bridge reach each other.
    fn with(&self, name: &str) -> Vec<String> {
        let insert = |chain: &String| format!("insert rule {chain} {}\n", rule(name));
        self.chains.iter().map(insert).collect()
    }

    /// The commands that undo [`Self::with`], also of a process that was killed.
    fn without(&self) -> Vec<String> {
        let delete = |rule: &String| format!("delete rule {rule}\n");
        self.ours.iter().map(delete).collect()
    }
}

/// Lets pass what stays on the bridge.
fn rule(name: &str) -> String {
    let table = table(name);
    format!(r#"iifname "{name}" oifname "{name}" accept comment "{table}""#)
}

/// Whether nft reads the name as it prints it; the kernel takes any.
fn is_plain(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte))
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
		counter packets 0 bytes 0 jump DOCKER comment "orbit-myruntime0" # handle 8
	}
}
table inet firewalld { # handle 436
	chain filter_FORWARD { # handle 3
		type filter hook forward priority filter + 10; policy accept;
		reject with icmpx admin-prohibited # handle 4
	}
	chain odd;name { # handle 8
		type filter hook forward priority filter; policy accept;
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
        insta::assert_snapshot!(firewall.without().concat() + &firewall.with("myruntime0").concat(), @r#"
        delete rule ip filter FORWARD handle 44
        insert rule ip filter FORWARD iifname "myruntime0" oifname "myruntime0" accept comment "orbit-myruntime0"
        insert rule inet firewalld filter_FORWARD iifname "myruntime0" oifname "myruntime0" accept comment "orbit-myruntime0"
        "#);
        assert_eq!(Firewall::parse("", "myruntime0"), Firewall::default());
    }
}
