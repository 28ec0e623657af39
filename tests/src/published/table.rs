//! Which crates, as data.
//!
//! Counts are what `cargo test` gave here with Rust 1.95, offline after a fetch, as root and as an ordinary
//! user. All of them together build in about 90 s on two cores. Looked at and not taken: wait-timeout 0.2.1
//! (denies warnings, and today's compiler has a new one), `tiny_http` 0.12.0 (a dev-dependency no longer
//! compiles), mio 1.2.5 and socket2 0.6.5 (published without their tests), fs4 1.1.0 (40 s to build).

use super::Published;

/// The crates.
pub const CRATES: &[Published] = &[
    Published {
        name: "tempfile",
        version: "3.27.0",
        flags: &[],
        passed: 114,
        uses: "files: O_TMPFILE, renames, permissions, directories removed while in use",
        note: "",
    },
    Published {
        name: "walkdir",
        version: "2.5.0",
        flags: &[],
        passed: 68,
        uses: "files: deep trees, symbolic links and loops of them, device numbers",
        note: "",
    },
    Published {
        name: "xattr",
        version: "1.7.0",
        flags: &[],
        passed: 8,
        uses: "files: user.* attributes, of the file systems under /tmp and /var/tmp",
        note: "",
    },
    Published {
        name: "fd-lock",
        version: "4.0.4",
        flags: &[],
        passed: 6,
        uses: "files: flock between descriptors",
        note: "",
    },
    Published {
        name: "duct",
        version: "1.1.2",
        flags: &[],
        passed: 77,
        uses: "processes and pipes: pipelines, kills, exit codes, helpers built by cargo as the tests run",
        note: "",
    },
    Published {
        name: "shared_child",
        version: "1.1.2",
        flags: &[],
        passed: 14,
        uses: "processes: waitid with WNOWAIT from several threads, kills, SIGCHLD",
        note: "",
    },
    Published {
        name: "signal-hook",
        version: "0.4.6",
        flags: &["--lib", "--test=default"],
        passed: 16,
        uses: "signals: handlers, self-pipes, a forked child that dies of one",
        note: "tests/iterator.rs and the doctests are left out: the published manifest lacks the \
               dev-dependency serial_test; tests/shutdown.rs too, as it gives its child ten seconds of alarm(2)",
    },
    Published {
        name: "polling",
        version: "3.11.0",
        flags: &[],
        passed: 37,
        uses: "sockets: TCP on loopback, epoll, eventfd, timers of a millisecond",
        note: "",
    },
    Published {
        name: "interprocess",
        version: "2.4.7",
        flags: &[],
        passed: 19,
        uses: "sockets: Unix sockets by path and abstract, FIFOs, many clients at once",
        note: "",
    },
];
