//! What a sandbox says that it wrote is what it wrote: over an image, over the host's files, while it runs and when
//! it has ended.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _, time::Duration};

use anyhow::{Result, ensure};
use orbit::{ChangeKind, Changes, FileKind, Mount, Outcome, Sandbox, SandboxBuilder};
use orbit_tests::{Case, Context, Who};

use crate::kit::{TMPFS_KEEPS_ATTRIBUTES, VIEWS, View, describe};

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("changes::{name}"), run)
            .deadline(Duration::from_secs(30))
            .needs_kernel(TMPFS_KEEPS_ATTRIBUTES.0, TMPFS_KEEPS_ATTRIBUTES.1)
    };
    vec![
        case("of_an_image", of_an_image),
        case("of_an_image_made_again", of_an_image_made_again),
        case("of_the_hosts_files", of_the_hosts_files),
        case("nothing_written_is_no_change", nothing_written_is_no_change),
        case("while_it_runs_and_after", while_it_runs_and_after),
        case("not_where_not_asked_for", not_where_not_asked_for),
        case("many_are_counted", many_are_counted),
        case("hostile_names", hostile_names),
        case("mounts_are_not_the_layer", mounts_are_not_the_layer),
        case("what_looks_like_a_whiteout", what_looks_like_a_whiteout).who(&[Who::Root, Who::User]),
    ]
}

fn recorded(sandbox: SandboxBuilder) -> Result<Changes> {
    let outcome: Outcome = sandbox.record_changes(true).run()?;
    ensure!(outcome.success(), "{}", describe(&outcome));
    Ok(outcome.changes.expect("asked for"))
}

fn lines(changes: &Changes) -> Vec<String> {
    changes.entries.iter().map(ToString::to_string).collect()
}

fn are(changes: &Changes, expected: &[&str]) -> Result<()> {
    ensure!(
        lines(changes) == expected,
        "expected {expected:#?}, found {:#?}",
        lines(changes)
    );
    Ok(())
}

fn of_an_image(_: &Context) -> Result<()> {
    let script = "echo x > /new; mkdir /dir; echo y > /dir/in; echo z >> /etc/passwd; rm /bin/vi; \
                  ln -s /new /link; chmod 700 /home; mkfifo /fifo; echo t > /tmp/scratch; mv /etc/group /etc/other; \
                  rm -r /var/www; cat /etc/hosts > /dev/null";
    let changes = recorded(View::Image.sh(script)?)?;
    are(
        &changes,
        &[
            "D /bin/vi",
            "A /dir",
            "A /dir/in",
            "D /etc/group",
            "A /etc/other",
            "C /etc/passwd",
            "A /fifo",
            "C /home",
            "A /link",
            "A /new",
            "A /tmp/scratch",
            "D /var/www",
        ],
    )?;
    let of = |path: &str| {
        let mut entries = changes.entries.iter();
        entries
            .find(|it| it.path.to_str() == Some(path))
            .expect(path)
    };
    ensure!(of("/new").bytes == 2 && of("/new").file == FileKind::File);
    ensure!(of("/fifo").file == FileKind::Other && of("/link").file == FileKind::Symlink);
    ensure!(
        of("/var/www").file == FileKind::Directory && of("/bin/vi").kind == ChangeKind::Removed
    );
    ensure!(of("/tmp/scratch").temporary && !of("/new").temporary);
    ensure!(changes.lasting().count() == changes.entries.len() - 1);
    // What Orbit writes is none of the program's; what the program writes there is.
    are(
        &recorded(View::Image.sh("echo 1.2.3.4 other >> /etc/hosts")?)?,
        &["C /etc/hosts"],
    )?;
    Ok(())
}

/// A directory that is removed and made again is opaque: what was in it is gone, and says so.
fn of_an_image_made_again(_: &Context) -> Result<()> {
    let script = "rm -r /etc; mkdir /etc; echo 1 > /etc/passwd; mkdir -p /var/www && rm -r /var && mkdir -p /var/www/x";
    let found = lines(&recorded(View::Image.sh(script)?)?);
    for expected in [
        "C /etc/passwd",
        "D /etc/group",
        "D /var/tmp",
        "A /var/www/x",
    ] {
        ensure!(
            found.iter().any(|it| it == expected),
            "no {expected}: {found:#?}"
        );
    }
    ensure!(!found.iter().any(|it| it == "A /etc/passwd"), "{found:#?}");
    Ok(())
}

fn of_the_hosts_files(context: &Context) -> Result<()> {
    let project = context.work();
    fs::write(project.join("kept"), "1")?;
    fs::write(project.join("removed"), "1")?;
    fs::create_dir(project.join("dir"))?;
    fs::write(project.join("dir/in"), "1")?;
    let script = "echo 2 >> kept; rm removed; echo 3 > made; rm -r dir; echo 4 > $HOME/mine; echo 5 > /tmp/mine; \
                  echo 6 > /var/tmp/mine; mkdir -p $HOME/a/b; true > /run/lock/x";
    let changes = recorded(Sandbox::builder().cmd(["sh", "-c", script]))?;
    let lasting: BTreeSet<String> = changes.lasting().map(ToString::to_string).collect();
    let project = project.display();
    let expected = [
        format!("C {project}/kept"),
        format!("D {project}/removed"),
        format!("A {project}/made"),
        format!("D {project}/dir"),
    ];
    ensure!(
        lasting == expected.clone().into(),
        "{lasting:#?}, not {expected:#?}"
    );
    let temporary: Vec<String> = changes
        .entries
        .iter()
        .filter(|change| change.temporary)
        .map(ToString::to_string)
        .collect();
    let home = context.home();
    for path in [
        home.join("mine").display().to_string(),
        home.join("a/b").display().to_string(),
        "/tmp/mine".into(),
        "/var/tmp/mine".into(),
        "/run/lock/x".into(),
    ] {
        ensure!(
            temporary.contains(&format!("A {path}")),
            "no {path}: {temporary:#?}"
        );
    }
    // A test's own $TMPDIR is for temporary files, wherever it is.
    let scratch = context.work().join("scratch");
    let changes = recorded(Sandbox::builder().env("TMPDIR", &scratch).cmd([
        "sh",
        "-c",
        "mkdir scratch; echo 1 > scratch/x",
    ]))?;
    ensure!(
        changes.lasting().count() == 0 && changes.entries.len() == 2,
        "{changes:?}"
    );
    // The host has none of it.
    ensure!(fs::read_to_string(context.work().join("kept"))? == "1");
    Ok(())
}

fn nothing_written_is_no_change(context: &Context) -> Result<()> {
    for view in VIEWS {
        let changes = recorded(view.sh("cat /etc/passwd > /dev/null; echo x > /dev/shm/x")?)?;
        ensure!(changes.is_empty(), "{view:?}: {changes:?}");
        let sandbox = view
            .sh("true")?
            .tty(true)
            .mount(Mount::tmpfs("/new/tmpfs"))
            .mount(Mount::bind_read_only(context.work(), "/opt/new/bound"))
            .mount(Mount::bind_read_only("/etc/passwd", "/opt/file"))
            .working_dir("/opt/work");
        if view == View::Image {
            let changes = recorded(sandbox)?;
            ensure!(changes.is_empty(), "{view:?}: {changes:?}");
        }
    }
    Ok(())
}

fn while_it_runs_and_after(_: &Context) -> Result<()> {
    for view in VIEWS {
        let mut sandbox = view
            .sh("echo 1 > /tmp/first; read go; echo 2 > /tmp/second")?
            .tty(true)
            .start()?;
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while sandbox.changes()?.is_empty() {
            ensure!(std::time::Instant::now() < until, "nothing was written");
        }
        are(&sandbox.changes()?, &["A /tmp/first"])?;
        let mut terminal = fs::File::from(sandbox.take_terminal().expect("asked for"));
        std::io::Write::write_all(&mut terminal, b"\n")?;
        let outcome = sandbox.wait()?;
        ensure!(
            outcome.success() && outcome.changes.is_none(),
            "{outcome:?}"
        );
        are(&sandbox.changes()?, &["A /tmp/first", "A /tmp/second"])?;
        are(&sandbox.changes()?, &["A /tmp/first", "A /tmp/second"])?;
    }
    Ok(())
}

fn not_where_not_asked_for(context: &Context) -> Result<()> {
    let outcome = View::Host.sh("echo 1 > /tmp/x")?.run()?;
    ensure!(outcome.changes.is_none());
    // The layers of the image stay leased.
    ensure!(View::Image.sh("true")?.run()?.success());
    // What holds what was written goes with the sandbox.
    let audit = context.audit();
    for view in VIEWS {
        let mut sandbox = view
            .sh("dd if=/dev/zero of=/tmp/big bs=1M count=8 2>/dev/null")?
            .start()?;
        sandbox.wait()?;
        ensure!(sandbox.changes()?.entries[0].bytes == 8 << 20);
        drop(sandbox);
    }
    audit.check()?;
    Ok(())
}

fn many_are_counted(_: &Context) -> Result<()> {
    let script =
        "cd /var/www; i=0; while [ $i -lt 10050 ]; do : > f$i; i=$((i+1)); done; : > /tmp/one";
    let changes = recorded(View::Image.sh(script)?)?;
    ensure!(
        changes.lasting().count() == Changes::MAX_ENTRIES && changes.omitted == 50,
        "{} and {}",
        changes.lasting().count(),
        changes.omitted
    );
    ensure!(changes.entries.iter().any(|it| it.temporary) && changes.omitted_temporary == 0);
    Ok(())
}

fn hostile_names(_: &Context) -> Result<()> {
    // A name that is no text, one of control characters, one that looks like a whiteout, one as long as can be, a
    // link to nowhere and to everywhere, and a directory that only root may enter.
    let script = "cd /home; : > \"$(printf 'a\\377b')\"; : > \"$(printf 'x\\033[31m\\ny')\"; : > .wh.passwd; \
                  : > $(printf 'n%.0s' $(seq 255)); ln -s / loop; ln -s /nowhere gone; mkdir shut; : > shut/in; chmod 0 shut; \
                  d=deep; i=0; while [ $i -lt 100 ]; do mkdir -p $d; d=$d/ddddddddd; i=$((i+1)); done";
    let changes = recorded(View::Image.sh(script)?)?;
    let found = lines(&changes);
    for expected in [
        "A /home/a\u{fffd}b",
        "A /home/x\\u{1b}[31m\\ny",
        "A /home/.wh.passwd",
        "A /home/loop",
        "A /home/shut/in",
    ] {
        ensure!(
            found.iter().any(|it| it == expected),
            "no {expected}: {found:#?}"
        );
    }
    ensure!(found.iter().filter(|it| it.contains("/deep")).count() == 100);
    ensure!(
        !found.iter().any(|it| it.contains("/loop/")),
        "a link was followed: {found:#?}"
    );
    Ok(())
}

fn mounts_are_not_the_layer(context: &Context) -> Result<()> {
    let shared = context.work().join("shared");
    fs::create_dir(&shared)?;
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777))?;
    fs::write(shared.join("there"), "1")?;
    for view in VIEWS {
        let changes = recorded(
            view.sh("echo 1 > /opt/bound/x; echo 2 > /opt/tmp/x; echo 3 > /opt/over/there; rm /opt/bound/x")?
                .mount(Mount::bind(&shared, "/opt/bound"))
                .mount(Mount::tmpfs("/opt/tmp"))
                .mount(Mount::overlay(&shared, "/opt/over")),
        )?;
        // Of these, the throwaway layer is the only one that is the sandbox's.
        are(&changes, &["C /opt/over/there"])?;
    }
    Ok(())
}

/// What a program may put into a directory of the sandbox's own, where no overlay guards it.
fn what_looks_like_a_whiteout(_: &Context) -> Result<()> {
    let changes = recorded(
        View::Host
            .sh("mknod /tmp/null c 0 0 2>/dev/null || true; mkdir /tmp/d; echo 1 > /tmp/d/x")?,
    )?;
    let found = lines(&changes);
    ensure!(!found.iter().any(|it| it.starts_with('D')), "{found:?}");
    ensure!(found.contains(&"A /tmp/d/x".to_owned()), "{found:?}");
    Ok(())
}
