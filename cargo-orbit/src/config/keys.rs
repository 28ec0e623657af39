//! Every key of the configuration, in one table: files, variables, the command line, the schema and the
//! documentation are all made from it, or compared with it, so that none of them can know a key that others do not.
//!
//! Names are those of the methods of [`orbit::SandboxBuilder`], and so those of `#[orbit::sandboxed]`.

use orbit::__private::check;

/// One key.
#[derive(Debug)]
pub(crate) struct Key {
    /// As files write it; with `-` for `_` it is the flag, in capitals after `ORBIT_` the variable.
    pub(crate) name: &'static str,
    pub(crate) form: Form,
    /// What it is where nobody said anything.
    pub(crate) default: &'static str,
    /// As it may stand in a file, behind the `=`.
    pub(crate) example: &'static str,
    /// What stands for the value in help.
    pub(crate) placeholder: &'static str,
    /// One sentence, or two.
    pub(crate) help: &'static str,
}

/// What a key's value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A text, checked as the builder's method of the key's name checks it.
    Text,
    /// The same, which may also be written as a number.
    Number,
    /// One of these words.
    Choice(&'static [&'static str]),
    Switch,
    /// Texts, each checked as the builder's method checks it. What is given in several places adds up.
    List,
    /// The same; but of those that say something about the same thing, the last wins.
    ListByName,
    /// Paths of the host, which add up.
    Paths,
    /// Variables by name.
    Variables,
    /// A length of time with its unit.
    Time,
    /// A length of time, or a table of `period` and `terminate_after`.
    SlowTimeout,
    /// A count, or a table of `count`, `backoff` and `delay`.
    Retries,
}

const fn key(
    name: &'static str,
    form: Form,
    placeholder: &'static str,
    default: &'static str,
    example: &'static str,
    help: &'static str,
) -> Key {
    Key {
        name,
        form,
        default,
        example,
        placeholder,
        help,
    }
}

/// Of `isolate`.
pub(crate) const ISOLATE: &[&str] = &["binary", "test"];
/// Of `leak` and `reach_out`.
pub(crate) const VERDICT: &[&str] = &["pass", "fail"];
/// Of `retries.backoff`.
pub(crate) const BACKOFF: &[&str] = &["fixed", "exponential"];
const NETWORK: &[&str] = &["none", "host", "bridge"];

/// All of them, in the order of the documentation.
#[rustfmt::skip]
pub(crate) const KEYS: &[Key] = &[
    key("isolate", Form::Choice(ISOLATE), "WHAT", "binary", "\"test\"",
        "What gets a sandbox of its own: each test binary, or each test."),
    key("image", Form::Text, "IMAGE", "host", "\"busybox\"",
        "The root filesystem: the host's own files, dir:PATH, oci:PATH, oci-archive:PATH, or an image of a registry. \
         In an image that has not the host's libraries, only static test binaries run."),
    key("network", Form::Choice(NETWORK), "NETWORK", "none", "\"none\"",
        "The network: loopback alone, the host's, or a bridge."),
    key("egress", Form::List, "TO", "nothing", "[\"example.com:443\"]",
        "Where tests may reach outside of their sandbox."),
    key("memory", Form::Text, "SIZE", "no limit", "\"512M\"",
        "Memory of all processes together, in bytes or with k, M, G, T; a test that needs more is killed."),
    key("memory_high", Form::Text, "SIZE", "no limit", "\"256M\"",
        "Memory above which a sandbox is slowed down, and not killed."),
    key("cpus", Form::Number, "CPUS", "no limit", "0.5",
        "CPU time, as a number of CPUs."),
    key("cpuset", Form::Text, "CPUS", "all", "\"0-1\"",
        "The CPUs to run on, by number."),
    key("pids", Form::Number, "N", "no limit", "64",
        "The number of processes and threads at a time."),
    key("disk", Form::Text, "SIZE", "4G", "\"256M\"",
        "What may be written outside of mounts, in bytes or with k, M, G, T; it is held in memory."),
    key("io_max", Form::ListByName, "LIMIT", "no limit", "[\"/dev/vda rbps=10M wiops=100\"]",
        "Traffic of a block device: the device, a blank, and rates as cgroup v2 writes them, with suffixes."),
    key("ulimit", Form::ListByName, "NAME=SOFT[:HARD]", "the caller's", "[\"nofile=1024:2048\"]",
        "A limit of setrlimit(2)."),
    key("best_effort", Form::Switch, "BOOL", "false", "true",
        "Run although a limit cannot be kept on this host, with a warning."),
    key("accounting", Form::Switch, "BOOL", "false", "true",
        "Count what each sandbox uses by a control group of its own, where it has no limits either."),
    key("mount", Form::List, "MOUNT", "none", "[\"/srv/data:/data:ro\"]",
        "SOURCE:TARGET[:ro|rw|overlay], or tmpfs:TARGET[:SIZE]. A later mount covers an earlier one."),
    key("tmpfs", Form::List, "TARGET[:SIZE]", "none", "[\"/scratch:64M\"]",
        "An empty filesystem in memory."),
    key("writable", Form::Paths, "PATH", "none", "[\"tests/snapshots\"]",
        "Keep what tests write under this path, such as snapshots to review."),
    key("host_path", Form::Paths, "PATH", "the workspace", "[\"/opt/data\"]",
        "Show this path of the host, with every write thrown away."),
    key("host_path_read_only", Form::Paths, "PATH", "the toolchain", "[\"/opt/sdk\"]",
        "Show this path of the host, read-only."),
    key("hide", Form::Paths, "PATH", "credentials of cargo", "[\".env\"]",
        "Cover this path, though what is around it is shown."),
    key("read_only", Form::Switch, "BOOL", "false", "true",
        "Make the root filesystem read-only."),
    key("env", Form::Variables, "NAME[=VALUE]", "cargo's, and an allow-list", "{ RUST_LOG = \"debug\" }",
        "Set a variable for the tests."),
    key("pass_env", Form::List, "NAME", "an allow-list", "[\"DATABASE_URL\"]",
        "Pass the host's variable of this name on, where the host has it."),
    key("user", Form::Text, "USER[:GROUP]", "the caller, or the image's", "\"1000:1000\"",
        "Who tests run as, by name or number."),
    key("hostname", Form::Text, "NAME", "the host's", "\"ci\"",
        "The host name inside."),
    key("cap_add", Form::List, "CAP", "none", "[\"NET_ADMIN\"]",
        "Add a capability to the default ones, or ALL."),
    key("cap_drop", Form::List, "CAP", "none", "[\"NET_RAW\"]",
        "Take a capability from the default ones, or ALL."),
    key("nested", Form::Switch, "BOOL", "true", "false",
        "Let tests make namespaces, and sandboxes, of their own."),
    key("timeout", Form::Time, "TIME", "no limit", "\"5m\"",
        "Kill a test that runs longer (ms, s, m, h)."),
    key("slow_timeout", Form::SlowTimeout, "TIME[:N]", "60s", "{ period = \"30s\", terminate_after = 4 }",
        "Call a test slow after this time (ms, s, m, h), and after each multiple of it; with N, kill it after N of them."),
    key("retries", Form::Retries, "N[:BACKOFF[:TIME]]", "0", "{ count = 2, backoff = \"exponential\", delay = \"1s\" }",
        "Run a failed test again, up to N times; after a delay that is fixed, or doubles each time."),
    key("leak", Form::Choice(VERDICT), "VERDICT", "pass", "\"fail\"",
        "What becomes of a test that passed, but left processes behind."),
    key("reach_out", Form::Choice(VERDICT), "VERDICT", "pass", "\"fail\"",
        "What becomes of a test that passed, but tried to reach what it may not."),
];

/// The key of this name, by its place in [`KEYS`].
pub(crate) fn find(name: &str) -> Option<usize> {
    KEYS.iter().position(|key| key.name == name)
}

/// Names that people who know other tools, or the builder, will write, and what is meant by them here.
const ELSEWHERE: &[(&str, &str)] = &[
    ("cpu", "cpus"),
    ("mounts", "mount"),
    ("volume", "mount"),
    ("volumes", "mount"),
    ("publish", ""),
    ("pids_limit", "pids"),
    ("overrides", "override"),
    ("profiles", "profile"),
    ("environment", "env"),
    ("capabilities", "cap_add"),
    ("slow-timeout", "slow_timeout"),
    ("writeable", "writable"),
];

/// What `given` was probably meant to be, of `names`.
pub(crate) fn nearest<'a>(
    given: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let names: Vec<&str> = names.into_iter().collect();
    let plain = given.to_ascii_lowercase().replace('-', "_");
    if let Some((_, meant)) = ELSEWHERE.iter().find(|(name, _)| *name == given)
        && let Some(name) = names.iter().find(|name| *name == meant)
    {
        return Some(name);
    }
    let near = names
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&plain, name), *name))
        .filter(|(distance, name)| *distance <= name.len().max(plain.len()).div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name);
    let begins = |name: &&&str| plain.len() >= 3 && name.starts_with(plain.as_str());
    near.or_else(|| names.iter().find(begins).copied())
}

impl Key {
    /// `--slow-timeout`, without the dashes.
    pub(crate) fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// `ORBIT_SLOW_TIMEOUT`.
    pub(crate) fn variable(&self) -> String {
        format!("ORBIT_{}", self.name.to_ascii_uppercase())
    }

    /// What is wrong with one text of this key.
    pub(crate) fn check(&self, text: &str) -> Result<(), String> {
        match self.name {
            "tmpfs" => check("mount", &format!("tmpfs:{text}"))
                .map_err(|_| "expected TARGET or TARGET:SIZE, such as /scratch:64M".to_owned())
                .and_then(|()| absolute(text)),
            "pass_env" if text.is_empty() || text.contains('=') => {
                Err("expected a name; values belong into `env`".to_owned())
            }
            "writable" | "host_path" | "host_path_read_only" | "hide" if text.is_empty() => {
                Err("a path is not empty".to_owned())
            }
            "mount" => {
                check("mount", text)?;
                let target = text.split(':').nth(1).unwrap_or_default();
                absolute(target).map_err(|why| format!("the target: {why}"))
            }
            name => check(name, text),
        }
    }
}

fn absolute(path: &str) -> Result<(), String> {
    if path.starts_with('/') {
        Ok(())
    } else {
        Err("expected an absolute path".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_was_nearly_right_is_told() {
        let names = || KEYS.iter().map(|key| key.name);
        for (given, meant) in [
            ("memroy", Some("memory")),
            ("mounts", Some("mount")),
            ("volume", Some("mount")),
            ("cpu", Some("cpus")),
            ("slow-timeout", Some("slow_timeout")),
            ("retry", Some("retries")),
            ("colour", None),
        ] {
            assert_eq!(nearest(given, names()), meant, "{given}");
        }
    }

    #[test]
    fn each_key_of_the_attribute_is_a_key_here_or_makes_no_sense_here() {
        // Where cargo starts a test, and with which variables, is cargo's; `cpu` and `cpu_max` are `cpus` in the kernel's words; what is
        // refused is always recorded; a clock that is ahead is for one test's code.
        let elsewhere = [
            "clock_offset",
            "cpu",
            "cpu_max",
            "env_clear",
            "home",
            "record_denied",
            "working_dir",
        ];
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../orbit-harness/macros/src/keys.rs"
        );
        let table = std::fs::read_to_string(path).unwrap();
        let of_attribute: Vec<&str> = table
            .lines()
            .filter_map(|line| {
                line.trim_start()
                    .strip_prefix("(\"")?
                    .split_once("\", Form::")
            })
            .map(|(name, _)| name)
            .collect();
        assert!(of_attribute.len() > 20, "{of_attribute:?}");
        for name in of_attribute {
            assert!(find(name).is_some() || elsewhere.contains(&name), "{name}");
        }
    }
}
