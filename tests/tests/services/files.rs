//! Files in and out, and a program that swaps links under whoever copies them.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orbit::{Content, Mount};
use orbit_tests::{Case, Context, Who};

use crate::support::{VIEWS, View, case, has, read};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("files::are_read_and_written", are_read_and_written),
        case(
            "files::are_there_before_the_program",
            are_there_before_the_program,
        ),
        case(
            "files::belong_to_whom_they_should",
            belong_to_whom_they_should,
        )
        .who(&[Who::Root, Who::User]),
        case("files::trees_go_in_and_come_out", trees_go_in_and_come_out),
        case(
            "files::what_is_no_file_is_refused",
            what_is_no_file_is_refused,
        ),
        case("files::links_lead_nowhere_else", links_lead_nowhere_else),
        case(
            "files::swapped_links_lead_nowhere_else",
            swapped_links_lead_nowhere_else,
        ),
        case(
            "files::of_the_host_stay_untouched",
            of_the_host_stay_untouched,
        ),
    ]
}

fn are_read_and_written(_: &Context) -> Result<()> {
    for view in VIEWS {
        let sandbox = view.idle()?;
        sandbox.write_file("/tmp/deep/er/file", "one")?;
        ensure!(
            read(
                &sandbox,
                "cat /tmp/deep/er/file; stat -c %a /tmp/deep/er/file /tmp/deep"
            )? == "one644\n755\n"
        );
        // What is there keeps its permissions, and is cut to length.
        read(
            &sandbox,
            "chmod 600 /tmp/deep/er/file; ln -s er/file /tmp/deep/link; echo longer >> /tmp/deep/er/file",
        )?;
        sandbox.write_file("/tmp/deep/link", b"2".as_slice())?;
        ensure!(
            read(
                &sandbox,
                "cat /tmp/deep/er/file; stat -c %a /tmp/deep/er/file; test -L /tmp/deep/link"
            )? == "2600\n"
        );
        sandbox.write_file("/tmp/deep/er/file", Content::from("3").mode(0o4755))?;
        ensure!(read(&sandbox, "stat -c %a /tmp/deep/er/file")? == "4755\n");
        let large: Vec<u8> = (0..5_000_000_u32)
            .map(|number| number.to_le_bytes()[0])
            .collect();
        sandbox.write_file("/tmp/large", &large)?;
        ensure!(sandbox.read_file("/tmp/large")? == large);
        ensure!(
            sandbox
                .read_file("/tmp/none")
                .expect_err("it is refused")
                .is_file_not_found()
        );
        for bad in ["relative", "", "/a\0b"] {
            ensure!(
                sandbox.read_file(bad).expect_err("it is refused").is_spec()
                    && sandbox
                        .write_file(bad, "")
                        .expect_err("it is refused")
                        .is_spec()
            );
        }
    }
    Ok(())
}

fn are_there_before_the_program(_: &Context) -> Result<()> {
    for view in VIEWS {
        let outcome = view
            .sh("cat /tmp/app/conf.toml /tmp/other; stat -c %a /tmp/app/conf.toml")?
            .file(
                "/tmp/app/conf.toml",
                Content::from("port = 1\n").mode(0o600),
            )
            .file("/tmp/other", vec![b'x'; 200_000])
            .file("/tmp/other", "replaced\n")
            .run()?;
        ensure!(
            outcome.stdout_text() == "port = 1\nreplaced\n600\n",
            "{view:?}: {}",
            outcome.stderr_text()
        );
    }
    // Over what the image has, and on a root that becomes read-only.
    let outcome = View::Image
        .sh("cat /etc/hostname.conf; ! touch /x 2>/dev/null")?
        .file("/etc/hostname.conf", "h\n")
        .read_only(true)
        .run()?;
    ensure!(outcome.success() && outcome.stdout_text() == "h\n");
    let error = View::Image
        .sh("true")?
        .file("relative", "")
        .file("/x", Content::from("").owner("a b"))
        .run()
        .expect_err("it is refused");
    has(&error.to_string(), &["file `relative`", "user `a b`"])?;
    let error = View::Image
        .sh("true")?
        .file("/etc", "")
        .run()
        .expect_err("it is refused");
    has(&error.to_string(), &["file /etc", "Is a directory"])
}

fn belong_to_whom_they_should(context: &Context) -> Result<()> {
    let sandbox = View::Image
        .sh("exec sleep 1000")?
        .file("/init", Content::from("").owner("www-data"))
        .start()?;
    sandbox.write_file("/a", "")?;
    sandbox.write_file("/b", Content::from("").owner("www-data").mode(0o640))?;
    sandbox.write_file("/c", Content::from("").owner("7:8"))?;
    ensure!(
        read(&sandbox, "stat -c '%u:%g %a' /init /a /b /c")?
            == "33:33 644\n0:0 644\n33:33 640\n7:8 644\n"
    );
    let tree = context.work().join("tree");
    fs::create_dir(&tree)?;
    fs::write(tree.join("file"), "")?;
    sandbox.copy_in(&tree, "/d")?;
    sandbox.copy_in_as("www-data", &tree, "/e")?;
    ensure!(read(&sandbox, "stat -c '%u:%g' /d /d/file /e /e/file")? == "0:0\n0:0\n33:33\n33:33\n");
    // What is another user's alone is read all the same, and comes out as ours.
    read(
        &sandbox,
        "chmod 700 /e; chmod 400 /e/file; echo x > /e/file",
    )?;
    ensure!(sandbox.read_file("/e/file")? == b"x\n");
    sandbox.copy_out("/e", context.work().join("out"))?;
    let found = fs::metadata(context.work().join("out/file"))?;
    ensure!(found.uid() == nix::unistd::getuid().as_raw() && found.mode() & 0o7777 == 0o400);
    let error = sandbox
        .write_file("/f", Content::from("").owner("nosuch"))
        .expect_err("it is refused");
    has(&error.to_string(), &["no user `nosuch`"])
}

fn trees_go_in_and_come_out(context: &Context) -> Result<()> {
    let tree = context.work().join("tree");
    fs::create_dir_all(tree.join("a/b"))?;
    fs::write(tree.join("a/b/file"), vec![3; 1_000_000])?;
    fs::write(tree.join("a/run.sh"), "#!/bin/sh\n")?;
    fs::set_permissions(tree.join("a/run.sh"), fs::Permissions::from_mode(0o4755))?;
    symlink("b/file", tree.join("a/link"))?;
    for number in 0..600 {
        fs::write(tree.join(format!("{number}")), number.to_string())?;
    }
    for view in VIEWS {
        let sandbox = view.idle()?;
        sandbox.copy_in(&tree, "/tmp/to/tree")?;
        ensure!(read(&sandbox, "cd /tmp/to/tree; ls | wc -l; wc -c < a/link; stat -c %a a/run.sh; readlink a/link; cat 599")?.split_whitespace().eq(["601", "1000000", "755", "b/file", "599"]));
        // One that is no tree, and what has no place in one.
        sandbox.copy_in(tree.join("a/b/file"), "/tmp/to/single")?;
        read(
            &sandbox,
            "mkfifo /tmp/to/tree/fifo; chmod u+s /tmp/to/tree/a/run.sh; rm /tmp/to/tree/[0-9]*",
        )?;
        let out = context.work().join(format!("out-{view:?}"));
        sandbox.copy_out("/tmp/to/tree", &out)?;
        ensure!(fs::read(out.join("a/link"))?.len() == 1_000_000);
        ensure!(fs::metadata(out.join("a/run.sh"))?.mode() & 0o7777 == 0o755);
        ensure!(fs::symlink_metadata(out.join("fifo")).is_err());
        // Again, over what is there: a link in the way is not followed.
        let victim = context.work().join("victim");
        fs::write(&victim, "untouched")?;
        fs::remove_file(out.join("a/run.sh"))?;
        symlink(&victim, out.join("a/run.sh"))?;
        sandbox.copy_out("/tmp/to/tree", &out)?;
        ensure!(
            fs::read(&victim)? == b"untouched" && fs::read(out.join("a/run.sh"))? == b"#!/bin/sh\n"
        );
        sandbox.copy_out("/tmp/to/single", out.join("one"))?;
        ensure!(fs::metadata(out.join("one"))?.len() == 1_000_000);
        ensure!(
            sandbox
                .copy_in(context.work().join("none"), "/tmp/x")
                .is_err()
        );
        ensure!(
            sandbox
                .copy_out("/none", out.join("x"))
                .expect_err("it is refused")
                .is_file_not_found()
        );
        ensure!(
            sandbox
                .copy_out("/tmp/to", context.work().join("no/parent"))
                .is_err()
        );
    }
    Ok(())
}

fn what_is_no_file_is_refused(context: &Context) -> Result<()> {
    let pipe = context.work().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU)?;
    for view in VIEWS {
        let sandbox = view.idle()?;
        read(&sandbox, "mkfifo /tmp/fifo; mkdir /tmp/dir")?;
        let started = Instant::now();
        for path in ["/tmp/fifo", "/tmp/dir", "/dev/null", "/dev/zero"] {
            let (got, put) = (sandbox.read_file(path), sandbox.write_file(path, "x"));
            ensure!(got.is_err() && put.is_err(), "{path}: {got:?} {put:?}");
        }
        ensure!(sandbox.copy_out("/dev/zero", "/tmp/orbit-none").is_err());
        ensure!(sandbox.copy_in(&pipe, "/tmp/none").is_err());
        ensure!(
            started.elapsed() < Duration::from_secs(5),
            "a pipe held it up"
        );
        // What is mounted inside is seen; a descriptor of a process is no way.
        ensure!(sandbox.read_file("/proc/1/root/etc/passwd").is_err());
        ensure!(!sandbox.read_file("/proc/version")?.is_empty());
    }
    Ok(())
}

fn links_lead_nowhere_else(context: &Context) -> Result<()> {
    let outside = context.home().join("outside");
    fs::create_dir(&outside)?;
    fs::write(outside.join("secret"), "secret")?;
    let other = context.work().join("other");
    fs::write(&other, "changed")?;
    let at = outside.display();
    for view in VIEWS {
        let sandbox = view.idle()?;
        read(
            &sandbox,
            &format!("ln -s {at} /tmp/l; ln -s /../../../../{at} /tmp/m; ln -s {at}/secret /tmp/n"),
        )?;
        for path in [
            "/tmp/l/secret",
            "/tmp/m/secret",
            "/tmp/n",
            "/../../../..",
            "/tmp/../../..",
        ] {
            let full = if path.contains("..") {
                format!("{path}{at}/secret")
            } else {
                path.to_owned()
            };
            let got = sandbox.read_file(&full);
            ensure!(
                !got.as_ref().is_ok_and(|bytes| bytes == b"secret"),
                "{view:?} {full}: {got:?}"
            );
            // It may be written, inside.
            let _ = sandbox.write_file(&full, "changed");
            let _ = sandbox.copy_in(&other, &full);
        }
        ensure!(fs::read(outside.join("secret"))? == b"secret");
        ensure!(fs::read_dir(&outside)?.count() == 1);
    }
    Ok(())
}

/// CVE-2018-15664 and CVE-2019-14271: whoever copies is led astray by a link that was none when it was looked at.
fn swapped_links_lead_nowhere_else(context: &Context) -> Result<()> {
    let outside = context.home().join("outside");
    fs::create_dir(&outside)?;
    fs::write(outside.join("file"), "secret")?;
    let tree = context.work().join("tree");
    fs::create_dir_all(tree.join("name"))?;
    fs::write(tree.join("name/file"), "inside")?;
    let before = listing(Path::new("/"))?;
    for view in VIEWS {
        let sandbox = view
            .role("swap /tmp/race")?
            .wait_for(orbit::Wait::log("swapping"))
            .start()?;
        // As the links would lead on the host: `name` is `/` now and then.
        let deep = format!("/tmp/race/name{}/file", outside.display());
        let (mut reads, mut writes, mut copies) = (0, 0, 0);
        let until = Instant::now() + Duration::from_secs(3);
        let mut round = 0;
        while Instant::now() < until {
            round += 1;
            if let Ok(bytes) = sandbox.read_file(&deep) {
                ensure!(
                    bytes == b"inside" || bytes == b"written",
                    "{view:?}: read {bytes:?}"
                );
            }
            if let Ok(bytes) = sandbox.read_file("/tmp/race/name/file") {
                ensure!(bytes != b"secret");
                reads += 1;
            }
            writes += u32::from(sandbox.write_file(&deep, "written").is_ok());
            writes += u32::from(sandbox.write_file("/tmp/race/file", "written").is_ok());
            copies += u32::from(sandbox.copy_in(&tree, "/tmp/race").is_ok());
            let out = context.work().join(format!("out-{view:?}-{}", round % 4));
            copies += u32::from(sandbox.copy_out("/tmp/race", &out).is_ok());
        }
        ensure!(reads + writes + copies > 0, "{view:?}: nothing was done");
        ensure!(
            fs::read(outside.join("file"))? == b"secret",
            "{view:?}: it was written"
        );
        ensure!(
            fs::read_dir(&outside)?.count() == 1,
            "{view:?}: something was made"
        );
        ensure!(
            listing(Path::new("/"))? == before,
            "{view:?}: something was made in /"
        );
        // What came out is of the sandbox alone: no copy of the host's root, and nothing outside of its directory.
        for round in 0..4 {
            let out = context.work().join(format!("out-{view:?}-{round}"));
            if out.exists() {
                only_links_leave(&out).context("the copy")?;
            }
        }
        println!("{view:?}: {reads} reads, {writes} writes, {copies} copies");
    }
    Ok(())
}

fn listing(directory: &Path) -> Result<Vec<std::ffi::OsString>> {
    let mut names: Vec<_> = fs::read_dir(directory)?
        .map(|entry| entry.map(|it| it.file_name()))
        .collect::<Result<_, _>>()?;
    names.sort();
    Ok(names)
}

/// A copy has the few names that the program made, and what lies in them.
fn only_links_leave(copy: &Path) -> Result<()> {
    for entry in fs::read_dir(copy)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            let names = listing(&entry.path())?;
            ensure!(
                !names.iter().any(|name| name == "etc" || name == "usr"),
                "{} is a root",
                entry.path().display()
            );
        } else if kind.is_file() {
            let bytes = fs::read(entry.path())?;
            ensure!(bytes != b"secret", "{}", entry.path().display());
        }
    }
    Ok(())
}

fn of_the_host_stay_untouched(context: &Context) -> Result<()> {
    let shared = context.work().join("shared");
    fs::create_dir(&shared)?;
    fs::write(shared.join("file"), "host")?;
    let sandbox = View::Image
        .sh("exec sleep 1000")?
        .mount(Mount::bind_read_only(&shared, "/ro"))
        .mount(Mount::overlay(&shared, "/over"))
        .start()?;
    has(
        &sandbox
            .write_file("/ro/file", "x")
            .expect_err("it is refused")
            .to_string(),
        &["read-only mount"],
    )?;
    sandbox.write_file("/over/file", "x")?;
    ensure!(sandbox.read_file("/over/file")? == b"x" && fs::read(shared.join("file"))? == b"host");
    Ok(())
}
