//! What `cargo orbit run` can be asked: flags, their defaults, and their help.
//!
//! Texts with a grammar of their own are parsed here, so that a mistake is told before anything is done.

// The texts are clap's, for terminals.
#![expect(rustdoc::broken_intra_doc_links)]

use std::{path::PathBuf, time::Duration};

use clap::ValueEnum;
use orbit::{Bytes, CpuQuota, NetworkMode, Subnet};

use crate::variables::Variable;

const EXAMPLES: &str = "\
Examples:
  A shell in busybox:
    cargo orbit run -it

  One command under limits:
    cargo orbit run --memory 100M --cpu 0.5 -- sha256sum /etc/passwd

  A service, reachable from the host at 127.0.0.1:8080:
    cargo orbit run --image nginx:1.29 --publish 8080:80 -- nginx -g 'daemon off;'

  The host's own files, and this directory read-only at /src:
    cargo orbit run --image host -v .:/src:ro -w /src -- make check

  Two sandboxes that reach each other, each in its terminal:
    cargo orbit run --network lab --name db --image redis:8 -- redis-server
    cargo orbit run --network lab --image redis:8 -- redis-cli -h db ping

Exit code:
  the program's own, or
  128 + N  signal N ended the program
  124      --timeout passed, and everything was killed
  125      no sandbox could be made, or the command line was not understood
  126      the program cannot be executed
  127      the program was not found";

/// Runs one program in a throwaway container.
///
/// The image is pulled when it is missing. Everything the program writes is thrown away when it ends,
/// except what it writes into a directory mounted with --mount. There is no --rm and no --detach: a sandbox
/// lives exactly as long as this command.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES, override_usage = "cargo orbit run [OPTIONS] [-- CMD [ARG]...]")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(crate) struct Args {
    /// What to run it in: NAME[:TAG] from a registry, oci:PATH, oci-archive:PATH, dir:PATH, or host.
    #[arg(
        long,
        value_name = "IMAGE",
        default_value = "busybox",
        help_heading = "Program"
    )]
    pub(crate) image: String,

    /// When to ask the registry for the image.
    #[arg(long, value_enum, default_value = "missing", help_heading = "Program")]
    pub(crate) pull: Pull,

    /// The program and its arguments in one text [default: sh, unless --entrypoint is given].
    ///
    /// Split into words as a shell splits them, with quotes and backslashes; no shell runs, so nothing is
    /// expanded. What follows `--` takes its place and is not split.
    #[arg(long, value_name = "CMD", value_parser = words, help_heading = "Program")]
    pub(crate) cmd: Option<Words>,

    /// The program and its arguments, as they are; takes the place of --cmd.
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<std::ffi::OsString>,

    /// A program to use instead of the image's entrypoint; --cmd becomes its arguments.
    ///
    /// An empty text takes the image's entrypoint away.
    #[arg(long, value_name = "PROGRAM", help_heading = "Program")]
    pub(crate) entrypoint: Option<String>,

    /// Pass this terminal's input on to the program.
    #[arg(short, long, help_heading = "Program")]
    pub(crate) interactive: bool,

    /// Give the program a terminal of its own.
    #[arg(short, long, help_heading = "Program")]
    pub(crate) tty: bool,

    /// Set a variable, or with a name alone pass the host's value on. May be repeated.
    #[arg(short, long, value_name = "NAME[=VALUE]", help_heading = "Program")]
    pub(crate) env: Vec<Variable>,

    /// Read variables from a file, one a line. --env wins. May be repeated.
    #[arg(long, value_name = "FILE", help_heading = "Program")]
    pub(crate) env_file: Vec<PathBuf>,

    /// Run as this user of the image, by name or number.
    #[arg(short, long, value_name = "USER[:GROUP]", help_heading = "Program")]
    pub(crate) user: Option<String>,

    /// Start in this directory of the image.
    #[arg(short, long, value_name = "DIR", help_heading = "Program")]
    pub(crate) workdir: Option<PathBuf>,

    /// Kill everything in the sandbox after this time, such as 500ms, 10s or 1m30s; a number is seconds.
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Program")]
    pub(crate) timeout: Option<Duration>,

    /// Run the program as process 1, without Orbit's init to reap orphans and forward signals.
    #[arg(long, help_heading = "Program")]
    pub(crate) no_init: bool,

    /// What to call the sandbox; a number is added where the name is taken.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "myctr",
        help_heading = "Isolation"
    )]
    pub(crate) name: String,

    /// The host name the program sees.
    #[arg(long, value_name = "NAME", help_heading = "Isolation")]
    pub(crate) hostname: Option<String>,

    /// Show something of the host: SOURCE:TARGET[:ro|rw|overlay], or tmpfs:TARGET[:SIZE].
    ///
    /// `rw` is the default and writes to the host; `overlay` throws writes away. May be repeated.
    #[arg(
        short = 'v',
        long,
        visible_alias = "volume",
        value_name = "MOUNT",
        help_heading = "Isolation"
    )]
    pub(crate) mount: Vec<orbit::Mount>,

    /// Let nothing be written outside of mounts.
    #[arg(long, help_heading = "Isolation")]
    pub(crate) read_only: bool,

    /// Capabilities to add to the default ones, such as `NET_ADMIN`; ALL is all of them.
    #[arg(
        long,
        value_name = "CAP,…",
        value_delimiter = ',',
        help_heading = "Isolation"
    )]
    pub(crate) cap_add: Vec<String>,

    /// Capabilities to take from the default ones; ALL is all of them.
    #[arg(
        long,
        value_name = "CAP,…",
        value_delimiter = ',',
        help_heading = "Isolation"
    )]
    pub(crate) cap_drop: Vec<String>,

    /// The most memory the sandbox may use, such as 100M or 1G [default: no limit].
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub(crate) memory: Option<Bytes>,

    /// Above this the sandbox's memory is reclaimed and its processes slowed down, such as 80M.
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub(crate) memory_high: Option<Bytes>,

    /// The most CPU time: a number of CPUs such as 0.5, or cgroup v2's cpu.max such as "50000 100000".
    #[arg(
        long,
        visible_aliases = ["cpus", "cpu-max"],
        value_name = "CPUS",
        default_value = "max",
        help_heading = "Limits"
    )]
    #[arg(hide_default_value = true)]
    pub(crate) cpu: CpuQuota,

    /// The CPUs the sandbox may run on, by number, such as 0-1,3.
    #[arg(
        long,
        visible_alias = "cpuset",
        value_name = "CPUS",
        help_heading = "Limits"
    )]
    pub(crate) cpuset_cpus: Option<String>,

    /// The most processes and threads the sandbox may have at a time.
    #[arg(
        long,
        visible_alias = "pids",
        value_name = "NUMBER",
        help_heading = "Limits"
    )]
    pub(crate) pids_limit: Option<u64>,

    /// What may be read from and written to a device, or the one that a path lies on, such as "/srv wbps=1M rbps=2M"; rates
    /// are those of cgroup v2's io.max: rbps, wbps, riops, wiops. May be repeated.
    #[arg(long, value_name = "DEVICE RATES", help_heading = "Limits")]
    pub(crate) io_max: Vec<String>,

    /// The most the sandbox may write outside of mounts, such as 256M.
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub(crate) disk: Option<Bytes>,

    /// A limit of setrlimit(2), such as nofile=1024:4096 or core=0. May be repeated.
    #[arg(long, value_name = "NAME=SOFT[:HARD]", help_heading = "Limits")]
    pub(crate) ulimit: Vec<String>,

    /// Go on without the limits that this host cannot keep, and say which; they are errors otherwise.
    #[arg(long, help_heading = "Limits")]
    pub(crate) best_effort: bool,

    /// none: loopback only. bridge: a network that sandboxes share. host: no isolation of the network. Any other name:
    /// the network of that name, which sandboxes of all processes of this user share that ask for it.
    ///
    /// The default is none; --bridge and --bridge-cidr ask for bridge. On a network with a name, sandboxes reach each
    /// other by address and by --name, --hostname and --network-alias.
    #[arg(
        long,
        value_name = "none|bridge|host|NAME",
        value_parser = network,
        help_heading = "Network"
    )]
    pub(crate) network: Option<Network>,

    /// The addresses of the network that --network names, where nobody is on it yet [default: 10.88.0.0/16].
    #[arg(
        long,
        value_name = "CIDR",
        requires = "network",
        help_heading = "Network"
    )]
    pub(crate) subnet: Option<Subnet>,

    /// One more name by which others on its networks reach the sandbox. May be repeated.
    #[arg(long, value_name = "NAME", help_heading = "Network")]
    pub(crate) network_alias: Vec<String>,

    /// What it may reach beyond its networks: none, all, or rules such as 10.0.0.0/8:443,[2001:db8::]/32:53/udp,dns.
    ///
    /// A rule is ADDRESS[/PREFIX][:PORT[-LAST]][/tcp|/udp]; a host's name stands for the addresses that it has now;
    /// dns is the host's name server. What is refused is told at the end.
    #[arg(
        long,
        value_name = "none|all|RULE,…",
        value_delimiter = ',',
        help_heading = "Network"
    )]
    pub(crate) egress: Vec<String>,

    /// Ports of the host that lead to ports of the sandbox, such as 8080:80,4443:443.
    #[arg(
        long,
        value_name = "[HOST:]PORT,…",
        value_delimiter = ',',
        help_heading = "Network"
    )]
    pub(crate) publish: Vec<String>,

    /// The bridge to join [default: myruntime0].
    #[arg(long, value_name = "NAME", help_heading = "Network")]
    pub(crate) bridge: Option<String>,

    /// The bridge's network [default: 172.25.0.0/16].
    #[arg(long, value_name = "CIDR", help_heading = "Network")]
    pub(crate) bridge_cidr: Option<Subnet>,
}

/// Where a sandbox is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// A word of its own.
    Mode(NetworkMode),
    /// Shared with whoever says the same name.
    Named(String),
}

fn network(text: &str) -> Result<Network, String> {
    match text.parse() {
        Ok(mode) => Ok(Network::Mode(mode)),
        Err(_) if text.is_empty() => {
            Err("expected none, bridge, host, or the name of a network".to_owned())
        }
        // Whether it is a name is the library's to say.
        Err(_) => Ok(Network::Named(text.to_owned())),
    }
}

/// When the registry is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pull {
    /// When the image is not in the store.
    Missing,
    /// Every time, so that a moved tag is followed.
    Always,
    /// Not at all: the image is in the store, or that is an error.
    Never,
}

/// A text that has been split into words.
pub(crate) type Words = std::sync::Arc<[String]>;

fn words(text: &str) -> Result<Words, String> {
    match shell_words::split(text) {
        Ok(words) if words.is_empty() => Err("it names no program".to_owned()),
        Ok(words) => Ok(words.into()),
        Err(_) => Err("a quote is opened and never closed".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let time = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => humantime::parse_duration(text).map_err(|_| {
            "expected a time such as 500ms, 10s or 1m30s, or a number of seconds".to_owned()
        })?,
    };
    if time.is_zero() {
        return Err("nothing can run in no time; leave --timeout out for no limit".to_owned());
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_split_without_a_shell() {
        assert_eq!(
            *words("sh -c 'echo $HOME; ls *'").unwrap(),
            ["sh", "-c", "echo $HOME; ls *"]
        );
        assert!(words("echo 'never closed").is_err());
        assert!(words("  ").is_err());
    }

    #[test]
    fn a_time_has_a_unit_or_is_seconds() {
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for text in ["", "0", "0s", "-1", "10 parsecs", "99999999999999999999s"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }
}
