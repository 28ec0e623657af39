//! What can be said of a value while the test is compiled. Pure.
//!
//! The library parses these texts again where the sandbox is made, and it alone decides what they mean. This is
//! the same grammar a second time, because a macro cannot depend on the crate that re-exports it; a test holds
//! the two together.

use std::time::Duration;

/// Every capability, as in capabilities(7), without `CAP_`.
pub(crate) const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

type Check = Result<(), String>;

pub(crate) fn not_empty(text: &str) -> Check {
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    no_nul(text)
}

/// A device or a path, a blank, and rates as cgroup v2 writes them. Which devices there are is known where the test runs.
pub(crate) fn io_max(text: &str) -> Check {
    let fail = || {
        Err(
            "expected a device or a path, a blank and rates, such as \"/srv wbps=1M riops=100\""
                .to_owned(),
        )
    };
    let Some((device, rates)) = text.split_once(' ') else {
        return fail();
    };
    let is_rate = |rate: &str| {
        let known = ["rbps=", "wbps=", "riops=", "wiops="];
        known
            .iter()
            .any(|name| rate.starts_with(name) && rate.len() > name.len())
    };
    if device.is_empty() || rates.trim().is_empty() || !rates.split_whitespace().all(is_rate) {
        return fail();
    }
    no_nul(text)
}

pub(crate) fn no_nul(text: &str) -> Check {
    if text.contains('\0') {
        return Err("it has a NUL byte".to_owned());
    }
    Ok(())
}

pub(crate) fn image(text: &str) -> Check {
    not_empty(text)?;
    match text.split_once(':') {
        Some(("dir" | "oci" | "oci-archive", "")) => Err("a path must follow the colon".to_owned()),
        _ => Ok(()),
    }
}

pub(crate) fn absolute_path(text: &str) -> Check {
    if !text.starts_with('/') {
        return Err("expected an absolute path".to_owned());
    }
    no_nul(text)
}

pub(crate) fn network(text: &str) -> Check {
    match text {
        "none" | "host" | "bridge" => Ok(()),
        _ => Err(suggesting(
            "expected none, host or bridge",
            text,
            &["none", "host", "bridge"],
        )),
    }
}

/// The form of rules, as far as a compiler's message helps; the rest is told when the test runs.
pub(crate) fn egress(text: &str) -> Check {
    let rule = |rule: &str| {
        let (host, rest) = match rule.strip_prefix('[') {
            Some(inner) => inner.split_once(']').unwrap_or_default(),
            None => rule.split_at(rule.find([':', '/']).unwrap_or(rule.len())),
        };
        let ports = rest.split_once(':').map(|(_, ports)| ports);
        let ports = ports.map(|ports| ports.split('/').next().unwrap_or_default());
        let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
        if host.is_empty() || host.contains(char::is_whitespace) {
            return Err(
                "expected none, all, or rules such as 10.0.0.0/8:443,registry.example:443"
                    .to_owned(),
            );
        }
        match ports.map(|ports| ports.split('-').find(|port| !is_port(port))) {
            Some(Some(port)) => Err(format!(
                "`{port}` is no port: expected a number from 1 to 65535"
            )),
            _ => Ok(()),
        }
    };
    text.split(',').map(str::trim).try_for_each(rule)
}

pub(crate) fn hostname(text: &str) -> Check {
    let label = |label: &str| {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty() && label.bytes().all(good)
    };
    if text.len() > 64 || !text.split('.').all(label) {
        return Err("expected at most 64 letters, digits, `-` and `.`".to_owned());
    }
    Ok(())
}

pub(crate) fn capability(text: &str) -> Check {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if name == "ALL" || CAPABILITIES.contains(&name) {
        return Ok(());
    }
    Err(suggesting(
        "there is no such capability",
        name,
        &CAPABILITIES,
    ))
}

pub(crate) fn bytes(text: &str) -> Check {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    if number.is_empty() {
        return Err("expected an amount such as 65536, 64M or 1G".to_owned());
    }
    let shift = match suffix.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err("the unit is none of k, M, G, T".to_owned()),
    };
    let count = number.parse::<u64>().ok();
    match count.and_then(|count| count.checked_mul(1 << shift)) {
        Some(_) => Ok(()),
        None => Err("it is more than 64 bits of bytes".to_owned()),
    }
}

pub(crate) fn count(text: &str) -> Check {
    match text.parse::<u64>() {
        Ok(0) => Err("it is not more than zero".to_owned()),
        Ok(_) => Ok(()),
        Err(_) => Err("expected a whole number such as 64".to_owned()),
    }
}

pub(crate) fn cpu(text: &str) -> Check {
    let fail = |why: &str| Err(why.to_owned());
    let words: Vec<&str> = text.split_whitespace().collect();
    let (quota, has_period) = match words[..] {
        [quota] => (quota, false),
        [quota, period] => match period.parse::<u64>() {
            Ok(1_000..=1_000_000) => (quota, true),
            _ => return fail("the period is not between 1000 and 1000000 microseconds"),
        },
        _ => return fail("expected a limit such as 0.5, 2, \"50000 100000\" or max"),
    };
    if quota == "max" {
        return Ok(());
    }
    let too_little = "it is below 1000 microseconds in a period, the least the kernel takes";
    match (quota.parse::<u64>(), quota.parse::<f64>()) {
        (Ok(quota), _) if has_period && quota < 1_000 => fail(too_little),
        (Ok(quota), _) if has_period || quota >= 1_000 => Ok(()),
        (_, Ok(cpus)) if !has_period && cpus > 0.0 && cpus.is_finite() => {
            // What the library rounds to, in microseconds of each 100000.
            if (cpus * 100_000.0).round() < 1_000.0 {
                fail(too_little)
            } else {
                Ok(())
            }
        }
        (_, Ok(_)) if !has_period => fail("it is not more than zero"),
        _ => fail("expected a limit such as 0.5, 2, \"50000 100000\" or max"),
    }
}

pub(crate) fn mount(text: &str) -> Check {
    let words: Vec<&str> = text.split(':').collect();
    let target = match words[..] {
        ["tmpfs", target, size] => {
            bytes(size)?;
            target
        }
        // `tmpfs:TARGET` too.
        [_, target] | [_, target, "ro" | "rw" | "overlay"] => target,
        [_, _, _] => return Err("the third word is none of ro, rw, overlay".to_owned()),
        _ => {
            return Err("expected SOURCE:TARGET[:ro|rw|overlay] or tmpfs:TARGET[:SIZE]".to_owned());
        }
    };
    if words[0].is_empty() || target.is_empty() {
        return Err("source and target may not be empty".to_owned());
    }
    absolute_path(target).map_err(|why| format!("the target: {why}"))
}

pub(crate) fn variable_name(text: &str) -> Check {
    if text.is_empty() || text.contains(['=', '\0']) {
        return Err("a name is not empty, and has no `=` and no NUL byte".to_owned());
    }
    Ok(())
}

/// Reads `500ms`, `10s`, `1.5m`, `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let expected = || "expected a time such as 500ms, 10s, 1.5m or 1h".to_owned();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let seconds = match unit.trim_start() {
        "ms" => 0.001,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "" => return Err(format!("it has no unit: {}", expected())),
        _ => return Err(expected()),
    };
    let number: f64 = number.parse().map_err(|_| expected())?;
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(Duration::ZERO) => Err("no test ends in no time at all".to_owned()),
        Ok(duration) => Ok(duration),
        Err(_) => Err("it is longer than any clock runs".to_owned()),
    }
}

/// `why`, and the nearest of `right` where one is near enough to have been meant.
pub(crate) fn suggesting(why: &str, given: &str, right: &[&str]) -> String {
    match nearest(given, right) {
        Some(name) => format!("{why}; did you mean `{name}`?"),
        None => why.to_owned(),
    }
}

pub(crate) fn nearest<'a>(given: &str, right: &[&'a str]) -> Option<&'a str> {
    let near = |name: &&str| name.starts_with(given) && given.len() >= 3;
    let by_distance = right
        .iter()
        .map(|name| (distance(given, name), *name))
        .filter(|(distance, name)| *distance <= name.len().max(given.len()).div_ceil(3))
        .min_by_key(|(distance, _)| *distance);
    by_distance
        .map(|(_, name)| name)
        .or_else(|| right.iter().copied().find(near))
}

/// How many letters to insert, delete or replace (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, letter) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the library takes the same text.
    fn in_library<T: std::str::FromStr>(text: &str) -> bool {
        text.parse::<T>().is_ok()
    }

    #[test]
    fn the_library_takes_what_the_macro_takes_and_nothing_else() {
        for text in [
            "",
            "0",
            "64M",
            "64m",
            "1 GiB",
            "10Q",
            "M",
            "-1",
            "1.5G",
            "99999999999T",
            "99999999999999999999",
            " 5k ",
        ] {
            assert_eq!(
                bytes(text).is_ok(),
                in_library::<orbit::Bytes>(text),
                "{text:?}"
            );
        }
        for text in [
            "",
            "0",
            "0.5",
            "2",
            "50000",
            "50000 100000",
            "max",
            "max 50000",
            "max 5",
            "half",
            "1 2 3",
            "100000 10",
            "NaN",
            "inf",
            "0.001",
            "0.01",
            "-1",
            "10 100000",
            "0.5 100000",
        ] {
            assert_eq!(
                cpu(text).is_ok(),
                in_library::<orbit::CpuQuota>(text),
                "{text:?}"
            );
        }
        for text in [
            "",
            "/a",
            "/a:/b",
            "/a:/b:ro",
            "/a:/b:rx",
            ":/b",
            "/a:",
            "a:/b:c:d",
            "tmpfs:/t",
            "tmpfs:/t:1M",
            "tmpfs:/t:10Q",
        ] {
            assert_eq!(
                mount(text).is_ok(),
                in_library::<orbit::Mount>(text),
                "{text:?}"
            );
        }
        for text in [
            "",
            "host",
            "dir:",
            "dir:/x",
            "oci:a:b",
            "oci-archive:",
            "redis:7",
        ] {
            assert_eq!(
                image(text).is_ok(),
                in_library::<orbit::ImageRef>(text),
                "{text:?}"
            );
        }
        for text in [
            "",
            "none",
            "all",
            "dns",
            "10.0.0.0/8:443",
            "[2001:db8::]/32:53/udp, registry.example:8000-8010",
            "192.0.2.1:0",
            "192.0.2.1:70000",
            "192.0.2.1:1-x",
            ":443",
            "no host:443",
            "a:1,,b:2",
        ] {
            assert_eq!(
                egress(text).is_ok(),
                in_library::<orbit::Egress>(text),
                "{text:?}"
            );
        }
        for text in ["", "none", "host", "bridge", "nat"] {
            assert_eq!(
                network(text).is_ok(),
                in_library::<orbit::NetworkMode>(text),
                "{text:?}"
            );
        }
    }

    #[test]
    fn capabilities_are_those_of_the_library() {
        let names = include_str!("../../src/security/capabilities/names.rs");
        for name in CAPABILITIES {
            assert!(
                names.contains(&format!("\"{name}\""))
                    || names.contains(&format!("\"CAP_{name}\"")),
                "{name}"
            );
        }
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1 h"), Ok(Duration::from_secs(3600)));
        for text in [
            "",
            "10",
            "s",
            "0s",
            "-1s",
            "10 seconds",
            "1.2.3s",
            "99999999999999999999h",
        ] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_nearest_name_is_one_that_could_have_been_meant() {
        let names = ["timeout", "memory", "cap_add", "cap_drop", "env"];
        assert_eq!(nearest("timout", &names), Some("timeout"));
        assert_eq!(nearest("capdrop", &names), Some("cap_drop"));
        assert_eq!(nearest("mem", &names), Some("memory"));
        assert_eq!(nearest("colour", &names), None);
    }
}
