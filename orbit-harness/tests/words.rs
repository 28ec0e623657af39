//! What `#[orbit::sandboxed]` is given is never read by a shell, inside or outside: it arrives as it is.
//!
//! A shell would leave a file: one inside in `/tmp` or where the test runs, one outside in the directory of this package,
//! which the sandbox shows.

use std::{env, fs, path::Path};

const SUBSTITUTED: &str =
    "$(touch orbit-words /tmp/orbit-words) `touch orbit-words /tmp/orbit-words`";
const SEQUENCE: &str = "x; touch orbit-words /tmp/orbit-words; | touch orbit-words & \n touch orbit-words\n> orbit-words";
const QUOTED: &str = "' ; touch orbit-words ; ' \" ; touch orbit-words ; \" \\";
const EXPANDED: &str = "$HOME ${PATH} ~ * ? [a-z] {a,b} !! %s -c";

fn assert_unmarked() {
    let marks = [
        "orbit-words",
        "/tmp/orbit-words",
        concat!(env!("CARGO_MANIFEST_DIR"), "/orbit-words"),
    ];
    for mark in marks {
        assert!(!Path::new(mark).exists(), "a shell made {mark}");
    }
}

#[orbit::sandboxed(env(
    SUBSTITUTED = SUBSTITUTED,
    SEQUENCE = SEQUENCE,
    QUOTED = QUOTED,
    EXPANDED = EXPANDED,
    EMPTY = "",
))]
fn variables_are_what_was_written() {
    for (name, value) in [
        ("SUBSTITUTED", SUBSTITUTED),
        ("SEQUENCE", SEQUENCE),
        ("QUOTED", QUOTED),
        ("EXPANDED", EXPANDED),
        ("EMPTY", ""),
    ] {
        assert_eq!(env::var(name).as_deref(), Ok(value));
    }
    assert_unmarked();
}

#[orbit::sandboxed(
    mount(
        "tmpfs:/tmp/$(touch orbit-words);`touch orbit-words` > x",
        concat!(env!("CARGO_MANIFEST_DIR"), ":/tmp/a && touch orbit-words # ':ro"),
    ),
)]
fn paths_are_what_was_written() {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    // Blanks are written as octal numbers there.
    assert!(
        mounts.contains(r" /tmp/$(touch\040orbit-words);`touch\040orbit-words`\040>\040x "),
        "{mounts}"
    );
    assert!(Path::new("/tmp/a && touch orbit-words # '/Cargo.toml").exists());
    assert_unmarked();
}
