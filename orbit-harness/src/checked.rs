//! Whether a text is a value of one of the builder's keys, for whoever reads texts long before a sandbox is asked
//! for, such as `cargo orbit`'s configuration: there a fault has a line and a column. Pure.

use std::{fmt::Display, str::FromStr};

use crate::{
    net::{egress::Egress, names},
    resources::{CpuSet, IoMax, Ulimit},
    security::{capabilities::Capability, user::UserSpec},
    spec::{ImageRef, Mount, NetworkMode},
    units::{Bytes, CpuQuota},
};

/// Checks `text` as the builder's method `key` would. Keys that take any text, and unknown ones, are not checked.
///
/// # Errors
/// What is wrong with it, and what was expected.
pub fn check(key: &str, text: &str) -> Result<(), String> {
    if text.contains('\0') {
        return Err("it has a NUL byte".to_owned());
    }
    match key {
        "image" => spec(text.parse::<ImageRef>()),
        "network" => spec(text.parse::<NetworkMode>()),
        "mount" => spec(text.parse::<Mount>()),
        "egress" => plain::<Egress>(text),
        "user" => spec(text.parse::<UserSpec>()),
        "memory" | "memory_high" | "disk" => plain::<Bytes>(text),
        "cpu" | "cpus" => plain::<CpuQuota>(text),
        "cpuset" => plain::<CpuSet>(text),
        "ulimit" => plain::<Ulimit>(text),
        "io_max" => match text.split_once(' ') {
            Some((device, rates)) => IoMax::parse(device, rates)
                .map(drop)
                .map_err(|error| error.to_string()),
            None => Err(
                "expected a device and its rates, such as `/dev/vda rbps=1M wiops=100`".to_owned(),
            ),
        },
        "cap_add" | "cap_drop" if text.eq_ignore_ascii_case("all") => Ok(()),
        "cap_add" | "cap_drop" => plain::<Capability>(text),
        "log" => plain::<regex_lite::Regex>(text),
        "hostname" => names::check_host(text).map_err(str::to_owned),
        "pids" => match text.parse::<u64>() {
            Ok(0) => Err("it is not more than zero".to_owned()),
            Ok(_) => Ok(()),
            Err(_) => Err("expected a whole number such as 64".to_owned()),
        },
        _ => Ok(()),
    }
}

fn plain<T: FromStr<Err: Display>>(text: &str) -> Result<(), String> {
    text.parse::<T>()
        .map(drop)
        .map_err(|error| error.to_string())
}

fn spec<T>(parsed: Result<T, crate::spec::SpecFault>) -> Result<(), String> {
    parsed.map(drop).map_err(|fault| fault.why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_checked_as_its_key_reads_it() {
        for (key, text) in [
            ("image", "busybox"),
            ("memory", "64M"),
            ("cpus", "0.5"),
            ("cpuset", "0-1,3"),
            ("ulimit", "nofile=10:20"),
            ("io_max", "/dev/vda rbps=1M"),
            ("cap_add", "NET_ADMIN"),
            ("cap_drop", "all"),
            ("hostname", "web"),
            ("user", "1000:1000"),
            ("mount", "/a:/b:ro"),
            ("pids", "1"),
        ] {
            assert_eq!(check(key, text), Ok(()), "{key}");
        }
        for (key, text) in [
            ("image", "dir:"),
            ("memory", "64Q"),
            ("cpus", "half"),
            ("cpuset", "3-1"),
            ("ulimit", "nofiles=10"),
            ("io_max", "/dev/vda"),
            ("cap_add", "NET_ADMINN"),
            ("hostname", "a b"),
            ("network", "nat"),
            ("user", "a:b:c"),
            ("mount", "/a"),
            ("pids", "0"),
            ("env", "a\0b"),
        ] {
            assert!(check(key, text).is_err(), "{key}");
        }
    }
}
