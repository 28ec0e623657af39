//! Faults of the disk at a moment: full, smaller, read-only; and that each can be undone.

use anyhow::{Result, ensure};
use orbit::{Init, Mount, Sandbox};
use orbit_tests::{Case, Context};

use crate::support::{VIEWS, View, case, describe, has, read, until};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("disk::full_at_a_moment", full_at_a_moment),
        case("disk::full_under_a_writer", full_under_a_writer),
        case("disk::smaller_and_larger", smaller_and_larger),
        case("disk::read_only_at_a_moment", read_only_at_a_moment),
        case("disk::an_open_file_is_named", an_open_file_is_named),
        case(
            "disk::what_is_asked_to_stay_stays",
            what_is_asked_to_stay_stays,
        ),
    ]
}

/// That `sh -c script` fails in `sandbox`, and says this.
fn fails(sandbox: &Sandbox, script: &str, why: &str) -> Result<()> {
    let outcome = sandbox.exec(["sh", "-c", script]).run()?;
    ensure!(!outcome.success(), "{script} went well");
    has(&describe(&outcome), &[why])
}

const FULL: &str = "No space left on device";
const READ_ONLY: &str = "Read-only file system";

fn full_at_a_moment(_: &Context) -> Result<()> {
    for view in VIEWS {
        let mut sandbox = view
            .sh("exec sleep 1000")?
            .mount(Mount::tmpfs("/mnt"))
            .disk("64M")
            .start()?;
        sandbox.write_file("/tmp/before", "before")?;
        for _ in 0..2 {
            sandbox.fill_disk()?;
            // Whoever it belongs to, and from outside too.
            fails(&sandbox, "cp /etc/passwd /tmp/more", FULL)?;
            fails(&sandbox, "cp /etc/passwd /var/tmp/more", FULL)?;
            has(
                &sandbox
                    .write_file("/tmp/other", "more")
                    .expect_err("it is full")
                    .to_string(),
                &["/tmp/other", FULL],
            )?;
            // What is there is there, and other filesystems are others.
            ensure!(read(&sandbox, "cat /tmp/before")? == "before");
            read(&sandbox, "echo x > /dev/shm/x; echo x > /mnt/x")?;
            sandbox.free_disk()?;
            read(
                &sandbox,
                "head -c 1000000 /dev/zero > /tmp/more; rm /tmp/more",
            )?;
        }
        // It ends as others do, and says that it was full.
        sandbox.fill_disk()?;
        sandbox.kill();
        let notes = sandbox.wait()?.notes;
        ensure!(
            sandbox.fill_disk().is_ok() && notes.is_empty(),
            "a sandbox that was killed has no note: {notes:?}"
        );
    }
    Ok(())
}

/// One writes and removes as fast as it can while the room is taken away.
fn full_under_a_writer(_: &Context) -> Result<()> {
    for view in VIEWS {
        let sandbox = view
            .sh("while :; do head -c 3000000 /dev/zero > /tmp/a && echo x >> /tmp/turns; rm -f /tmp/a; done 2> /tmp/errors")?
            .start()?;
        let turns = || {
            sandbox
                .read_file("/tmp/turns")
                .map_or(0, |bytes| bytes.len())
        };
        until("it writes", || Ok(turns() > 5))?;
        sandbox.write_file("/tmp/room", vec![b'x'; 1 << 20])?;
        sandbox.fill_disk()?;
        let filled = turns();
        // What it had written at that moment it may remove and write again, and so may others; never more than that.
        for _ in 0..5 {
            fails(
                &sandbox,
                "dd if=/dev/zero of=/tmp/b bs=1000000 count=4",
                FULL,
            )?;
            read(&sandbox, "rm -f /tmp/b")?;
        }
        let later = turns();
        sandbox.free_disk()?;
        until("it goes on", || Ok(turns() > later + 5))?;
        println!(
            "{filled} files before, {} while the disk was full",
            later - filled
        );
    }
    Ok(())
}

fn smaller_and_larger(_: &Context) -> Result<()> {
    for view in VIEWS {
        let sandbox = view.sh("exec sleep 1000")?.disk("8M").start()?;
        let write = |mib: u32| format!("dd if=/dev/zero of=/tmp/some bs=1048576 count={mib}");
        read(&sandbox, &write(6))?;
        fails(&sandbox, &write(10), FULL)?;
        sandbox.set_disk("16M")?;
        read(&sandbox, &write(10))?;
        let refused = sandbox.set_disk("8M").expect_err("there is more than that");
        has(&refused.to_string(), &["8MiB", "written already"])?;
        has(
            &sandbox.free_disk().expect_err("as above").to_string(),
            &["8MiB"],
        )?;
        read(&sandbox, "rm /tmp/some")?;
        sandbox.free_disk()?;
        fails(&sandbox, &write(10), FULL)?;
        for bad in ["much", "0"] {
            ensure!(sandbox.set_disk(bad).expect_err(bad).is_spec());
        }
    }
    Ok(())
}

fn read_only_at_a_moment(context: &Context) -> Result<()> {
    let host = context.work().join("host");
    std::fs::create_dir(&host)?;
    for view in VIEWS {
        for init in [Init::Orbit, Init::Program] {
            let sandbox = view
                .sh("exec sleep 1000")?
                .init(init)
                .mount(Mount::bind(&host, "/srv"))
                .start()?;
            for _ in 0..2 {
                read(&sandbox, "echo x > /tmp/file; echo x > /var/tmp/file")?;
                sandbox.set_read_only(true)?;
                // Again is no fault.
                sandbox.set_read_only(true)?;
                for script in [
                    "echo y > /dev/file",
                    "echo y > /tmp/file",
                    "rm /tmp/file",
                    "echo y > /var/tmp/new",
                ] {
                    fails(&sandbox, script, READ_ONLY)?;
                }
                has(
                    &sandbox
                        .write_file("/tmp/other", "y")
                        .expect_err("it is read-only")
                        .to_string(),
                    &["/tmp/other", READ_ONLY],
                )?;
                ensure!(read(&sandbox, "cat /tmp/file")? == "x\n");
                read(
                    &sandbox,
                    "echo x > /dev/null; echo x > /dev/shm/x; echo x > /srv/x",
                )?;
                sandbox.set_read_only(false)?;
                read(&sandbox, "echo x > /dev/file; rm /dev/file")?;
            }
        }
    }
    Ok(())
}

/// The kernel takes no open file away: who has it is told, and nothing is half done.
fn an_open_file_is_named(_: &Context) -> Result<()> {
    for view in VIEWS {
        let mut sandbox = view
            .sh("exec 9> /tmp/journal; echo up; exec sleep 1000")?
            .wait_for(orbit::Wait::log("up"))
            .start()?;
        let busy = sandbox.set_read_only(true).expect_err("it is busy");
        has(&busy.to_string(), &["make read-only", "/tmp/journal in "])?;
        read(&sandbox, "echo x > /tmp/file; echo x > /var/tmp/file")?;
        sandbox.kill();
        sandbox.wait()?;
        ensure!(
            sandbox
                .set_read_only(true)
                .expect_err("it is gone")
                .is_ended()
        );
    }
    Ok(())
}

fn what_is_asked_to_stay_stays(_: &Context) -> Result<()> {
    let sandbox = View::Image.sh("exec sleep 1000")?.read_only(true).start()?;
    for read_only in [false, true, false] {
        sandbox.set_read_only(read_only)?;
        fails(&sandbox, "echo x > /tmp/file", READ_ONLY)?;
    }
    Ok(())
}
