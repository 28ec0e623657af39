//! Which variables of the host's environment a test sees unasked. Pure: nothing here reads the environment.

use std::ffi::OsStr;

/// By their whole name.
const PASSED: &[&str] = &[
    "CARGO",
    "CI",
    "COLORTERM",
    "FORCE_COLOR",
    "GITHUB_ACTIONS",
    "LANG",
    "LANGUAGE",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "NO_COLOR",
    "OUT_DIR",
    "PATH",
    "RUSTC",
    "RUSTDOC",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
    "SHELL",
    "TERM",
    "TRYBUILD",
    "TZ",
    "UPDATE_EXPECT",
    "USER",
];

/// By how their name begins.
const PASSED_PREFIXES: &[&str] = &[
    "CARGO_",
    "CLICOLOR",
    "INSTA_",
    "LC_",
    "NEXTEST",
    "ORBIT_",
    "PROPTEST_",
    "RUSTUP_",
    "RUST_",
];

/// Words that keep a variable out, wherever they stand in its name.
const SECRET: &[&str] = &["CREDENTIAL", "KEY", "PASSWORD", "PASSWD", "SECRET", "TOKEN"];

/// What is about this process's own sandbox or session, not about one that it makes.
const OWN: &[&str] = &[SANDBOX_OF, "ORBIT_SESSION"];

/// The variable in which whoever makes a sandbox for a test program says what for.
///
/// It is believed only in a child of Orbit's init: set by hand elsewhere it does nothing.
pub const SANDBOX_OF: &str = "ORBIT_SANDBOX_OF";

/// The value of [`SANDBOX_OF`] where the sandbox is for one test alone.
pub const SANDBOX_OF_TEST: &str = "test";

/// Whether a test sees the host's variable of this name unasked.
pub fn is_passed(name: &OsStr) -> bool {
    // A name that is not text is none of those above.
    let Some(name) = name.to_str() else {
        return false;
    };
    let begins = |prefix: &&str| name.starts_with(*prefix);
    PASSED.contains(&name)
        || PASSED_PREFIXES.iter().any(begins)
            && !SECRET.iter().any(|word| name.contains(word))
            && !OWN.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_and_the_terminal_say_is_passed_and_secrets_are_not() {
        let passed = |name: &str| is_passed(OsStr::new(name));
        for name in [
            "PATH",
            "CARGO_MANIFEST_DIR",
            "RUST_BACKTRACE",
            "OUT_DIR",
            "LC_ALL",
        ] {
            assert!(passed(name), "{name}");
        }
        for name in [
            "HOME",
            "SSH_AUTH_SOCK",
            "DATABASE_URL",
            "CARGO_REGISTRY_TOKEN",
            SANDBOX_OF,
            "INSTA_API_KEY",
        ] {
            assert!(!passed(name), "{name}");
        }
    }
}
