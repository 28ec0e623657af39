//! The limits that `#[orbit::sandboxed]` takes, on a kernel with cgroup version 2: `cargo xtask vm` runs these.
//!
//! Each reads what its own sandbox is shown of its limits, so that a key that is taken and forgotten fails.

use std::{fs, path::Path};

use orbit::sandboxed;

/// A file of the control group that this test is in.
fn limit(file: &str) -> String {
    let path = Path::new("/sys/fs/cgroup").join(file);
    let text = fs::read_to_string(&path).expect("a limited sandbox is shown its control group");
    text.trim().to_owned()
}

#[sandboxed(memory = "64M", memory_high = "48M")]
#[ignore = "needs cgroup v2: `cargo xtask vm` runs it"]
fn memory_high() {
    assert_eq!(limit("memory.max"), "67108864");
    assert_eq!(limit("memory.high"), "50331648");
}

#[sandboxed(cpus = 0.5)]
#[ignore = "needs cgroup v2: `cargo xtask vm` runs it"]
fn cpus() {
    assert_eq!(limit("cpu.max"), "50000 100000");
}

#[sandboxed(cpu_max = "20000 50000", accounting)]
#[ignore = "needs cgroup v2: `cargo xtask vm` runs it"]
fn cpu_max() {
    assert_eq!(limit("cpu.max"), "20000 50000");
}

#[sandboxed(io_max("/srv wbps=1M riops=100"))]
#[ignore = "needs cgroup v2: `cargo xtask vm` runs it"]
fn io_max() {
    let rates = limit("io.max");
    assert!(
        rates.ends_with(" rbps=max wbps=1048576 riops=100 wiops=max"),
        "{rates}"
    );
}

#[sandboxed(cpuset = "0")]
#[ignore = "needs cgroup v2: `cargo xtask vm` runs it"]
fn cpuset() {
    assert_eq!(limit("cpuset.cpus"), "0");
    let status = fs::read_to_string("/proc/self/status").expect("it is there");
    assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
}

#[sandboxed(pids = 24)]
#[ignore = "needs cgroup v2: `cargo xtask vm` runs it"]
fn pids() {
    // With the init.
    assert_eq!(limit("pids.max"), "25");
    let started: Vec<_> = (0..40)
        .map(|_| std::thread::Builder::new().spawn(std::thread::park))
        .collect();
    assert!(started.iter().any(Result::is_err), "nothing was refused");
}

#[sandboxed(ulimit("nofile=64:128", "core=0"))]
#[ignore = "with the other limits: `cargo xtask vm` runs it"]
fn ulimit() {
    let limits = fs::read_to_string("/proc/self/limits").expect("it is there");
    let line = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        let words = line.unwrap_or_default().split_whitespace();
        words.take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("Max open files"), ["64", "128"]);
    assert_eq!(line("Max core file size"), ["0", "0"]);
}

/// Kept where it can be; the machine runs this as a user for whom it cannot, too.
#[sandboxed(memory = "64M", best_effort)]
#[ignore = "needs cgroup v2: `cargo xtask vm` runs it"]
fn best_effort() {
    if Path::new("/sys/fs/cgroup/memory.max").exists() {
        assert_eq!(limit("memory.max"), "67108864");
    }
}
