//! CVE-2019-14271: an image that brings libraries for whoever looks up a user or a host in it. They are for the image's own
//! programs: no process of Orbit's, inside or outside, loads them.
//!
//! Each of them leaves a mark that names the process that loaded it, wherever that has its root.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use orbit::{Mount, Sandbox, SandboxBuilder, kept};
use orbit_tests::{Case, Context, Program};

use super::{case, rootfs};
use crate::kit::{describe, has, refused};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case(
            "cve_2019_14271_libraries_of_an_image_are_its_own",
            libraries_of_an_image_are_its_own,
        )
        .needs_toolchain(),
    ]
}

const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
__attribute__((constructor)) static void loaded(void) {
    static const char *const places[] = {"/marks", MARKS, "/host" MARKS};
    for (int i = 0; i < 3; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s by %s", places[i], KIND, program_invocation_short_name);
        open(path, O_CREAT | O_WRONLY, 0666);
    }
}
"#;

/// What libraries that look up names are called, and what else the C library loads by itself.
const NAMES: [&str; 7] = [
    "libnss_orbit.so.2",
    "libnss_files.so.2",
    "libnss_compat.so.2",
    "libnss_dns.so.2",
    "libnss_systemd.so.2",
    "libnss_myhostname.so.2",
    "libgcc_s.so.1",
];

/// The only program in the image that loads libraries.
const GETENT: &str = "/usr/bin/getent";

/// An image with such libraries, and where they leave their marks.
struct Hostile {
    root: PathBuf,
    marks: PathBuf,
}

impl Hostile {
    fn make(context: &Context) -> Result<Self> {
        let marks = context.work().join("marks");
        fs::create_dir(&marks)?;
        fs::set_permissions(&marks, fs::Permissions::from_mode(0o777))?;
        let root = rootfs(context, "root")?;
        fs::create_dir(root.join("marks"))?;
        // It finds its own C library where it is on the host, and beside that ours.
        let listed = Program::new("ldd").arg(GETENT).run()?.success()?;
        let words = listed.stdout.split_whitespace();
        let mut directories = Vec::new();
        for file in words.filter(|word| word.starts_with('/')).chain([GETENT]) {
            let copy = root.join(file.trim_start_matches('/'));
            let directory = copy.parent().context("it lies in a directory")?;
            fs::create_dir_all(directory)?;
            fs::copy(file, &copy)?;
            directories.push(directory.to_owned());
        }
        let source = context.work().join("library.c");
        fs::write(&source, LIBRARY)?;
        let build = |kind: &str, to: &Path| -> Result<()> {
            Program::new("cc")
                .args(["-shared", "-fPIC", "-o"])
                .arg(to)
                .arg(format!("-DKIND=\"{kind}\""))
                .arg(format!("-DMARKS=\"{}\"", marks.display()))
                .arg(&source)
                .run()?
                .success()
                .map(drop)
        };
        build("preload", &root.join("preload.so"))?;
        let library = context.work().join("library.so");
        build("library", &library)?;
        for directory in &directories {
            for name in NAMES {
                fs::copy(&library, directory.join(name))?;
            }
        }
        for (name, text) in [
            ("ld.so.preload", "/preload.so\n"),
            (
                "nsswitch.conf",
                "passwd: orbit compat\ngroup: orbit compat\nhosts: orbit dns\ninitgroups: orbit\n",
            ),
            ("passwd", "root:x:0:0:root:/:/bin/sh\n"),
            ("group", "root:x:0:\n"),
        ] {
            fs::write(root.join("etc").join(name), text)?;
        }
        Ok(Self { root, marks })
    }

    fn image(&self) -> String {
        format!("dir:{}", self.root.display())
    }

    fn sandbox(&self, script: &str) -> SandboxBuilder {
        Sandbox::builder()
            .image(&self.image())
            .cmd(["sh", "-c", script])
            .mount(Mount::bind(&self.marks, "/marks"))
            // Those of the program, and not of who starts it.
            .env("LD_PRELOAD", "/preload.so")
            .env("LD_LIBRARY_PATH", "/lib:/usr/lib")
    }

    fn marks(&self) -> Result<Vec<String>> {
        let mut found = fs::read_dir(&self.marks)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>>>()?;
        found.sort();
        Ok(found)
    }

    fn check_clean(&self, after: &str) -> Result<()> {
        let found = self.marks()?;
        ensure!(found.is_empty(), "{after}: {found:?}");
        Ok(())
    }
}

fn libraries_of_an_image_are_its_own(context: &Context) -> Result<()> {
    let hostile = Hostile::make(context)?;
    let given = context.work().join("given");
    fs::create_dir(&given)?;
    fs::write(given.join("file"), "given")?;

    // By name, which somebody has to look up: one that is there, and some that are not.
    for user in ["root", "root:root", "0:root"] {
        let outcome = hostile.sandbox("id -u").user(user).run()?;
        ensure!(outcome.stdout_text() == "0\n", "{}", describe(&outcome));
        hostile.check_clean(user)?;
    }
    for user in ["nobody-there", "root:nobody-there", "nobody-there:root"] {
        let error = refused(hostile.sandbox("true").user(user))?;
        has(&error, &["nobody-there"])?;
        hostile.check_clean(user)?;
    }

    let sandbox = hostile
        .sandbox("cat; exec sleep 1000")
        .user("root")
        .hostname("one.example")
        .start()?;
    let outcome = sandbox.exec(["id", "-u"]).user("root:root").run()?;
    ensure!(outcome.stdout_text() == "0\n", "{}", describe(&outcome));
    ensure!(sandbox.exec(["true"]).user("nobody-there").run().is_err());
    hostile.check_clean("exec")?;
    sandbox.copy_in(&given, "/tmp/a")?;
    sandbox.copy_in_as("root:root", &given, "/tmp/b")?;
    ensure!(
        sandbox
            .copy_in_as("nobody-there", &given, "/tmp/c")
            .is_err()
    );
    hostile.check_clean("copy in")?;
    for (number, path) in ["/tmp/b", "/etc", "/lib", "/preload.so"].iter().enumerate() {
        sandbox.copy_out(path, context.work().join(format!("back-{number}")))?;
    }
    let back = fs::read_to_string(context.work().join("back-0/file"))?;
    ensure!(back == "given", "{back}");
    ensure!(sandbox.read_file("/etc/ld.so.preload")? == b"/preload.so\n");
    hostile.check_clean("copy out")?;

    // That they are found and loaded, by the program that they are for.
    let outcome = sandbox.exec([GETENT, "passwd", "somebody"]).run()?;
    let found = hostile.marks()?;
    let expected = ["library by getent", "preload by getent"];
    ensure!(found == expected, "{found:?}: {}", describe(&outcome));
    drop(sandbox);
    ensure!(hostile.marks()? == expected);
    for mark in expected {
        fs::remove_file(hostile.marks.join(mark))?;
    }
    by_the_command(context, &hostile)
}

fn by_the_command(context: &Context, hostile: &Hostile) -> Result<()> {
    let mount = format!("{}:/marks", hostile.marks.display());
    let run = |user: &str| {
        context
            .orbit("run")?
            .args(["--image", &hostile.image(), "--mount", &mount])
            .args(["--env", "LD_PRELOAD=/preload.so", "--user", user])
            .args(["--", "id", "-u"])
            .run()
    };
    let finished = run("root:root")?.success()?;
    ensure!(finished.stdout == "0\n", "{finished}");
    run("nobody-there")?.code(125)?;
    hostile.check_clean("cargo orbit run")?;

    let mut failed = hostile.sandbox("exit 3").user("root").start()?;
    ensure!(!failed.wait()?.success());
    let id = kept::keep(&mut failed, "tests::fails")?;
    let finished = context
        .orbit("shell")?
        .args([&id, "--", "id", "-u"])
        .run()?
        .success()?;
    ensure!(finished.stdout == "0\n", "{finished}");
    hostile.check_clean("cargo orbit shell")
}
