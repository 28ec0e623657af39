//! Names on networks: of hosts, of their aliases, of bridges. Pure.

/// Checks a host name or an alias, as RFC 1123 and sethostname(2) bound it; `_` is let through, as it is in
/// Docker's and everybody's compose files.
pub(crate) fn check_host(name: &str) -> Result<(), &'static str> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if name.len() > 64 {
        Err("it is longer than the 64 bytes that the kernel takes")
    } else if !name.split('.').all(label) {
        Err(
            "expected labels of letters, digits, `_` and, within, `-`, each of 1 to 63 bytes, joined by dots",
        )
    } else {
        Ok(())
    }
}

/// Checks one more name for a sandbox on its networks, by which others are to find it: what a resolver would not ask
/// for is none.
///
/// Source: inet_aton(3), by which a resolver reads numbers as an address; RFC 6761, section 6.3, of `localhost`.
pub(crate) fn check_alias(alias: &str) -> Result<(), &'static str> {
    check_host(alias)?;
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    if alias.split('.').all(is_number) {
        Err("a name of numbers alone is read as an address, and never looked up")
    } else if alias.eq_ignore_ascii_case("localhost") {
        Err("each sandbox has this name for itself")
    } else {
        Ok(())
    }
}

/// Checks the name of a bridge, which the kernel takes for a link, and nftables in a rule.
///
/// Source: Linux, net/core/dev.c, `dev_valid_name`, and `IFNAMSIZ` less its NUL byte.
pub(crate) fn check_bridge(name: &str) -> Result<(), &'static str> {
    // Stricter than the kernel: the name is part of nftables rules and of paths.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.len() > 15 {
        Err("it is longer than the 15 bytes that the kernel takes for the name of a link")
    } else if name.is_empty() || name == "." || name == ".." || !name.bytes().all(plain) {
        Err("expected letters, digits, `-`, `_` and `.`, such as myruntime0")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn host_names_are_checked() {
        for good in ["db", "db-1", "a.b.c", "my_service", "0", &"x".repeat(63)] {
            assert_eq!(check_host(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            ".",
            "a..b",
            "a b",
            "a/b",
            "a:b",
            "ä",
            "a\n",
            "-db",
            "db-",
            "a.-b",
            &"x".repeat(64),
            &"x.".repeat(40),
        ] {
            assert!(check_host(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn aliases_are_names_that_are_looked_up() {
        for good in [
            "db",
            "my_service",
            "db.internal",
            "1.db",
            "10x",
            "localhost2",
        ] {
            assert_eq!(check_alias(good), Ok(()), "{good}");
        }
        for bad in ["", "-db", "10.0.0.1", "7", "localhost", "LocalHost", "a b"] {
            assert!(check_alias(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn bridge_names_are_checked() {
        for good in ["myruntime0", "br-test.7", "fifteen-bytes-x"] {
            assert_eq!(check_bridge(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "a:b",
            "sixteen-bytes-xx",
            "brücke",
            "veth%d",
            "a;b",
            "a\"b",
        ] {
            assert!(check_bridge(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_host_name_that_passes_fits_in_a_line_of_hosts(name in "\\PC{0,70}") {
            if check_host(&name).is_ok() {
                prop_assert!(!name.contains(char::is_whitespace) && !name.contains('#'));
            }
        }
    }
}
