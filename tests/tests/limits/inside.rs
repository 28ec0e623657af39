//! What a limited sandbox sees of its own limits, and what it cannot do about them.

use std::thread;

use anyhow::{Result, ensure};
use orbit::{Bytes, Note, Sandbox, SandboxBuilder, Status};

use crate::{Test, again};

pub(crate) const CASES: [(&str, Test); 5] = [
    (
        "its_limits_are_there_to_be_read",
        its_limits_are_there_to_be_read,
    ),
    (
        "programs_size_themselves_by_them",
        programs_size_themselves_by_them,
    ),
    (
        "nothing_is_shown_without_limits",
        nothing_is_shown_without_limits,
    ),
    (
        "nested_cannot_raise_its_limit",
        nested_cannot_raise_its_limit,
    ),
    (
        "nested_is_billed_as_any_other",
        nested_is_billed_as_any_other,
    ),
];

fn sh(script: &str) -> SandboxBuilder {
    Sandbox::builder().cmd(["sh", "-c", script])
}

const READ: &str = "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max cpuset.cpus; \
                    echo 1G > memory.max; mkdir below; true";

fn its_limits_are_there_to_be_read() -> Result<()> {
    for nested in [false, true] {
        for network in [orbit::NetworkMode::None, orbit::NetworkMode::Host] {
            let outcome = sh(READ)
                .memory("64M")
                .cpus(0.5)
                .pids(16)
                .cpuset("0")
                .nested(nested)
                .network(network)
                .run()?;
            // With the init.
            let wanted = "67108864\n50000 100000\n17\n0\n";
            ensure!(
                outcome.stdout_text() == wanted,
                "nested {nested}: {outcome:?}"
            );
            let refused = outcome.stderr_text();
            ensure!(
                refused.matches("Read-only file system").count() == 2,
                "{refused}"
            );
        }
    }
    Ok(())
}

fn programs_size_themselves_by_them() -> Result<()> {
    ensure!(
        thread::available_parallelism()?.get() >= 2,
        "one CPU shows nothing"
    );
    let outcome = again::sandbox("parallelism")?.cpus(1.0).run()?;
    ensure!(outcome.stdout_text() == "1\n", "{outcome:?}");
    Ok(())
}

fn nothing_is_shown_without_limits() -> Result<()> {
    let outcome = sh("ls -A /sys/fs/cgroup | wc -l").run()?;
    ensure!(outcome.stdout_text() == "0\n", "{outcome:?}");
    Ok(())
}

/// Everything that a program with namespaces of its own can try: a control group namespace and a mount that takes
/// writes; then, since the kernel keeps the files at the root of a namespace from who is in it, from a namespace whose
/// root is below. Then it takes four times its limit.
const CLIMB: &str = r"
mkdir /tmp/tree
cat > /tmp/climb <<'END'
mount -t cgroup2 cgroup2 /tmp/tree && echo mounted
echo max > /tmp/tree/memory.max && echo raised from its root
mkdir /tmp/tree/below && echo 0 > /tmp/tree/below/cgroup.procs && echo below
unshare --cgroup sh -c 'echo max > /tmp/tree/memory.max' && echo raised from below
ls -d /tmp/tree/../memory.max /tmp/tree/../../memory.max
cat /proc/self/cgroup
END
unshare --user --map-root-user --mount --cgroup sh /tmp/climb 2>&1
exec dd if=/dev/zero of=/dev/null bs=256M count=1
";

fn nested_cannot_raise_its_limit() -> Result<()> {
    let outcome = sh(CLIMB).memory("64M").nested(true).run()?;
    let said = outcome.stdout_text();
    crate::figure!("{}", said.trim().replace('\n', "; "));
    // Else nothing was tried.
    ensure!(said.contains("mounted\n"), "{outcome:?}");
    let Status::OomKilled { limit, peak, .. } = outcome.status else {
        anyhow::bail!("{outcome:?}");
    };
    ensure!(limit == Bytes::mib(64) && peak <= limit, "{outcome:?}");
    Ok(())
}

fn nested_is_billed_as_any_other() -> Result<()> {
    let script = "sleep 1 & sleep 1 & sleep 1 & wait; echo done";
    let outcome = sh(script).pids(3).nested(true).run()?;
    let refused = |note: &Note| matches!(note, Note::PidsLimit { limit: 3, .. });
    ensure!(outcome.notes.iter().any(refused), "{outcome:?}");
    let spin = sh("while :; do :; done").cpus(0.25).nested(true);
    let mut sandbox = spin.start()?;
    thread::sleep(std::time::Duration::from_millis(500));
    sandbox.freeze()?;
    sandbox.thaw()?;
    sandbox.set_memory("32M")?;
    sandbox.kill();
    let outcome = sandbox.wait()?;
    let throttled = |note: &Note| matches!(note, Note::Throttled { .. });
    ensure!(outcome.notes.iter().any(throttled), "{outcome:?}");
    Ok(())
}
