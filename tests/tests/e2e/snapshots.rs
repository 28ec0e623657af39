//! Snapshots: what was written is there again in each clone, whole and as it was, and for nobody else; what is dropped
//! or was killed leaves nothing.

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use orbit::{ImageRef, Mount, NetworkMode, Sandbox, SandboxBuilder, Snapshot, Wait};
use orbit_tests::{Case, Context, Program, Who, images};
use serde_json::Value;

use crate::kit::{TMPFS_KEEPS_ATTRIBUTES, VIEWS, View, describe, harness, has, printed};

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("snapshots::{name}"), run).deadline(Duration::from_secs(60))
    };
    vec![
        case("everything_is_there_again", everything_is_there_again),
        case("owners_are_kept", owners_are_kept).who(&[Who::Root, Who::User]),
        case(
            "what_was_removed_stays_removed",
            what_was_removed_stays_removed,
        )
        .needs_kernel(TMPFS_KEEPS_ATTRIBUTES.0, TMPFS_KEEPS_ATTRIBUTES.1),
        case("of_the_hosts_files", of_the_hosts_files),
        case("of_a_directory", of_a_directory),
        case("of_a_clone", of_a_clone),
        case("a_clone_is_asked_for_alike", a_clone_is_asked_for_alike),
        case(
            "twenty_clones_are_each_their_own",
            twenty_clones_are_each_their_own,
        ),
        case("a_running_sandbox_is_refused", a_running_sandbox_is_refused),
        case("clones_are_ready", clones_are_ready),
        case("dropped_is_gone", dropped_is_gone),
        case("clones_outlive_the_snapshot", clones_outlive_the_snapshot),
        case("named_is_made_once", named_is_made_once),
        case(
            "named_is_made_again_where_its_maker_was_killed",
            made_again_where_its_maker_was_killed,
        ),
        case(
            "named_whose_maker_fails_is_not_there",
            named_whose_maker_fails_is_not_there,
        ),
        case("gc_spares_what_is_used", gc_spares_what_is_used),
        case("what_was_killed_is_swept", what_was_killed_is_swept),
        case("named_by_what_its_image_is", named_by_what_its_image_is),
        case("clones_outlast_a_name", clones_outlast_a_name),
        case(
            "saved_does_what_the_sandbox_did",
            saved_does_what_the_sandbox_did,
        ),
        case("saved_is_an_image", saved_is_an_image).needs(&["skopeo"]),
        case(
            "saved_unpacks_alike_elsewhere",
            saved_unpacks_alike_elsewhere,
        )
        .who(&[Who::Root])
        .needs(&["umoci"]),
        case(
            "what_cannot_be_saved_says_why",
            what_cannot_be_saved_says_why,
        ),
    ]
}

/// Runs `sandbox` to its end, and seals it.
fn sealed(sandbox: SandboxBuilder) -> Result<Snapshot> {
    let mut sandbox = sandbox.start()?;
    let outcome = sandbox.wait()?;
    ensure!(outcome.success(), "{}", describe(&outcome));
    Ok(sandbox.snapshot()?)
}

fn sh(snapshot: &Snapshot, script: &str) -> Result<String> {
    printed(snapshot.builder().cmd(["sh", "-c", script])).with_context(|| script.to_owned())
}

/// Also those of a snapshot that another value, as another process would, finds in the store; and of one that was sealed
/// while it was paused, which goes on.
fn clones_are_ready(_: &Context) -> Result<()> {
    let script = "sleep 0.2; echo y >> /ready; echo up; exec sleep 1000";
    let mut first = View::Image
        .sh(script)?
        .wait_for(Wait::all([Wait::log("^up$"), Wait::file("/ready")]))
        .startup_timeout(Duration::from_secs(20))
        .start()?;
    let named = || Snapshot::named("clones-are-ready");
    first.pause()?;
    let golden = first.snapshot()?;
    first.unpause()?;
    let outcome = first.exec(["cat", "/ready"]).run()?;
    ensure!(outcome.stdout_text() == "y\n", "{}", describe(&outcome));
    let is_ready = |snapshot: &Snapshot, what: &str| -> Result<()> {
        let clone = snapshot.start()?;
        ensure!(clone.logs().any(|line| line.text == "up"), "{what}");
        ensure!(clone.read_file("/ready")? == b"y\ny\n", "{what}");
        Ok(())
    };
    is_ready(&golden, "unnamed")?;
    let kept = named().get_or_create(|| Ok::<_, orbit::Error>(golden))?;
    is_ready(&kept, "kept")?;
    is_ready(&named().get()?.context("it is there")?, "found")?;
    named().remove()?;
    Ok(())
}

/// Files in the store for this case's layers, by name.
fn layers(context: &Context) -> Vec<String> {
    let mut found = Vec::new();
    for ids in fs::read_dir(context.cache().join("v1/layers"))
        .into_iter()
        .flatten()
        .flatten()
    {
        for entry in fs::read_dir(ids.path()).into_iter().flatten().flatten() {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found.sort();
    found
}

/// As another process: finds the one that `named_is_made_once` made.
pub(crate) fn find_named() -> Result<()> {
    let named = Snapshot::named("test").input("one").input(b"two");
    let snapshot =
        named.get_or_create(|| -> Result<Snapshot> { anyhow::bail!("it is not there") })?;
    print!("found: {}", sh(&snapshot, "cat /data")?);
    Ok(())
}

/// As a process that is killed: makes the same, with a sandbox that never ends.
pub(crate) fn make_named_forever() -> Result<()> {
    let named = Snapshot::named("test").input("one").input(b"two");
    named.get_or_create(|| -> Result<Snapshot> {
        let _held = sealed(View::Image.sh("echo half > /data")?)?;
        let mut sandbox = View::Image.sh("sleep 1000")?.start()?;
        fs::write("started", "")?;
        sandbox.wait()?;
        Ok(sandbox.snapshot()?)
    })?;
    Ok(())
}

/// As a process that is killed: has one without a name.
pub(crate) fn make_and_wait() -> Result<()> {
    let _held = sealed(View::Image.sh("echo 1 > /data")?)?;
    fs::write("started", "")?;
    thread::sleep(Duration::from_secs(1000));
    Ok(())
}

/// Makes one of everything that a file system of a sandbox holds.
const MAKE: &str = "set -e; mkdir -p /data/dir; cd /data; echo content > file; chmod 4711 file; ln file second; \
    ln -s ../nowhere link; mkfifo -m 640 fifo; chmod 1770 dir; echo in > dir/in; touch -d @1000000000 old; \
    dd if=/dev/zero of=sparse bs=1 count=1 seek=1G 2>/dev/null; echo secret > shut; chmod 0 shut; \
    : > \"$(printf 'odd\\377\\n name')\"; mkdir closed; echo x > closed/x; chmod 0 closed; touch -d @999999999 dir";

/// And tells of it.
const TELL: &str = "cd /data; stat -c '%n %a %h %s %F' file second link fifo dir/in old sparse shut; stat -c '%n %a %F' dir closed; \
    stat -c '%Y' old dir; cat file dir/in; readlink link; ls | wc -l; test file -ef second && echo one file; \
    echo blocks $(( $(stat -c %b sparse) < 1000 ));";

fn everything_is_there_again(_: &Context) -> Result<()> {
    let before = View::Image.read(&format!("{MAKE}; {TELL}"))?;
    has(
        &before,
        &[
            "one file",
            "4711 2 8",
            "1073741825",
            "blocks 1",
            "999999999",
        ],
    )?;
    let snapshot = sealed(View::Image.sh(MAKE)?)?;
    let after = sh(&snapshot, TELL)?;
    ensure!(before == after, "before\n{before}\nafter\n{after}");
    ensure!(
        snapshot.bytes() < 1 << 20,
        "a hole was filled: {snapshot:?}"
    );
    // Nothing of how it was copied shows.
    has(&sh(&snapshot, "cat /etc/hosts; ls -A / ")?, &["localhost"])?;
    Ok(())
}

fn owners_are_kept(_: &Context) -> Result<()> {
    let script = "mkdir /data; cd /data; echo 1 > a; chown 999:33 a; mkdir b; chown 1000:1000 b; ln -s x c; \
                  chown -h 65533:7 c; chown 5:6 /data; : > s; chown 33 s; chmod 6755 s";
    let tell = "stat -c '%n %u:%g %a' /data /data/a /data/b /data/c /data/s";
    let before = View::Image.read(&format!("{script}; {tell}"))?;
    has(&before, &["/data/c 65533:7", "/data/s 33:0 6755"])?;
    let snapshot = sealed(View::Image.sh(script)?)?;
    let after = sh(&snapshot, tell)?;
    ensure!(before == after, "before\n{before}\nafter\n{after}");
    Ok(())
}

fn what_was_removed_stays_removed(_: &Context) -> Result<()> {
    let snapshot = sealed(View::Image.sh(
        "rm /bin/vi; rm -r /var; mkdir /var; echo new > /var/only; rm -r /home; echo file > /home",
    )?)?;
    let found = sh(
        &snapshot,
        "test -e /bin/vi || echo no vi; ls -A /var; cat /home",
    )?;
    ensure!(found == "no vi\nonly\nfile\n", "{found}");
    // And in a layer over that one, what comes again comes alone.
    let again = sealed(snapshot.builder().cmd([
        "sh",
        "-c",
        "rm /home; mkdir -p /home/x; echo vi > /bin/vi; rm /var/only",
    ]))?;
    let found = sh(&again, "cat /bin/vi; ls -A /var; ls -A /home")?;
    ensure!(found == "vi\nx\n", "{found}");
    Ok(())
}

fn of_the_hosts_files(context: &Context) -> Result<()> {
    fs::write(context.work().join("there"), "from the host\n")?;
    fs::write(context.work().join("removed"), "")?;
    let snapshot = sealed(Sandbox::builder().cmd([
        "sh",
        "-c",
        "echo 1 > made; rm removed; echo 2 > $HOME/mine; echo 3 > /tmp/mine; echo 4 > /var/tmp/mine; \
         chmod 700 /tmp/mine; mkdir -p $HOME/.config/x",
    ]))?;
    let tell = "cat there made $HOME/mine /tmp/mine /var/tmp/mine; test -e removed || echo gone; stat -c %a /tmp/mine /tmp /var/tmp; \
                test -d $HOME/.config/x && id -u && ls /usr/bin/env && touch $HOME/more there /tmp/more && echo writable";
    let found = sh(&snapshot, tell)?;
    let uid = nix::unistd::getuid();
    let expected = format!(
        "from the host\n1\n2\n3\n4\ngone\n700\n1777\n1777\n{uid}\n/usr/bin/env\nwritable\n"
    );
    ensure!(found == expected, "{found}");
    // Nothing of it is on the host, and the host's own is as before.
    ensure!(!context.work().join("made").exists() && context.work().join("removed").exists());
    Ok(())
}

fn of_a_directory(context: &Context) -> Result<()> {
    let root = context.work().join("root");
    fs::create_dir_all(root.join("bin"))?;
    fs::copy("/usr/bin/busybox", root.join("bin/busybox"))?;
    fs::write(root.join("there"), "1\n")?;
    let image = format!("dir:{}", root.display());
    ensure!(matches!(image.parse()?, ImageRef::Dir(_)));
    let busybox = |script: &str| {
        let words = ["/bin/busybox", "sh", "-c", script].map(str::to_owned);
        words.to_vec()
    };
    let snapshot = sealed(
        Sandbox::builder()
            .image(&image)
            .cmd(busybox("echo 2 > /made")),
    )?;
    let found = printed(snapshot.builder().cmd(busybox(
        "/bin/busybox cat /there /made; /bin/busybox hostname",
    )))?;
    ensure!(found == "1\n2\norbit\n", "{found}");
    Ok(())
}

fn of_a_clone(_: &Context) -> Result<()> {
    for view in VIEWS {
        let mut snapshot = sealed(view.sh("echo 0 > /tmp/log")?)?;
        for round in 1..4 {
            let script =
                format!("echo {round} >> /tmp/log; rm -f /tmp/round*; : > /tmp/round{round}");
            // The one before is dropped, and still lies below.
            snapshot = sealed(snapshot.builder().cmd(["sh", "-c", &script]))?;
        }
        let found = sh(&snapshot, "cat /tmp/log; cd /tmp; echo round*")?;
        ensure!(found == "0\n1\n2\n3\nround3\n", "{view:?}: {found}");
    }
    Ok(())
}

/// The program, its variables, its place and its mounts are those of the one that was sealed.
fn a_clone_is_asked_for_alike(context: &Context) -> Result<()> {
    let shared = context.work().join("shared");
    fs::create_dir(&shared)?;
    fs::write(shared.join("x"), "shared")?;
    let snapshot = sealed(
        View::Image
            .sh("echo $GREETING $(pwd) $(id -u) $(cat /mnt/x) $(hostname) $(cat /etc/count 2>/dev/null); echo again >> /etc/count")?
            .env("GREETING", "hello")
            .working_dir("/var/tmp")
            .hostname("golden")
            .publish("127.0.0.1:0:80")
            .network(NetworkMode::None)
            .mount(Mount::overlay(&shared, "/mnt")),
    )?;
    for _ in 0..2 {
        let mut clone = snapshot.start()?;
        ensure!(clone.addr(80).port() != 0);
        let outcome = clone.wait()?;
        ensure!(
            outcome.stdout_text() == "hello /var/tmp 0 shared golden again\n",
            "{}",
            describe(&outcome)
        );
    }
    // What was written to a throwaway mount is written, too.
    let over = sealed(snapshot.builder().cmd(["sh", "-c", "echo other > /mnt/x"]))?;
    ensure!(sh(&over, "cat /mnt/x")? == "other\n");
    Ok(())
}

fn twenty_clones_are_each_their_own(context: &Context) -> Result<()> {
    View::Image.read("true")?;
    let audit = context.audit();
    for view in VIEWS {
        let snapshot = sealed(view.sh("echo golden > /tmp/data")?)?;
        thread::scope(|scope| -> Result<()> {
            let clones: Vec<_> = (0..20)
                .map(|number| {
                    let snapshot = &snapshot;
                    scope.spawn(move || {
                        let script = format!(
                            "cat /tmp/data; echo {number} > /tmp/data; : > /tmp/{number}; sleep 0.2; cat /tmp/data; ls /tmp | wc -l"
                        );
                        sh(snapshot, &script)
                    })
                })
                .collect();
            for (number, clone) in clones.into_iter().enumerate() {
                let found = clone.join().expect("no panic")?;
                ensure!(
                    found == format!("golden\n{number}\n2\n"),
                    "{view:?}: {found}"
                );
            }
            Ok(())
        })?;
        ensure!(sh(&snapshot, "cat /tmp/data")? == "golden\n");
    }
    audit.check()?;
    Ok(())
}

fn a_running_sandbox_is_refused(context: &Context) -> Result<()> {
    let mut sandbox = View::Image.sh("sleep 60")?.start()?;
    let error = sandbox.snapshot().expect_err("it runs");
    ensure!(error.is_spec());
    has(
        &error.to_string(),
        &["its program runs", "stop()", "freeze()"],
    )?;
    sandbox.kill();
    sandbox.wait()?;
    let snapshot = sandbox.snapshot()?;
    drop((sandbox, snapshot));
    ensure!(!layers(context).iter().any(|name| name.contains(".new")));
    Ok(())
}

fn dropped_is_gone(context: &Context) -> Result<()> {
    View::Image.read("true")?;
    let before = layers(context);
    let audit = context.audit();
    let snapshot = sealed(View::Image.sh(MAKE)?)?;
    ensure!(layers(context).len() > before.len());
    let second = snapshot.clone();
    drop(snapshot);
    sh(&second, "true")?;
    drop(second);
    ensure!(
        layers(context) == before,
        "{:?}, before {before:?}",
        layers(context)
    );
    audit.check()?;
    Ok(())
}

fn clones_outlive_the_snapshot(context: &Context) -> Result<()> {
    View::Image.read("true")?;
    let before = layers(context);
    let snapshot = sealed(View::Image.sh("echo 1 > /data")?)?;
    let mut clone = snapshot
        .builder()
        .cmd(["sh", "-c", "read go; cat /data"])
        .tty(true)
        .start()?;
    drop(snapshot);
    ensure!(layers(context).len() > before.len());
    let mut terminal = fs::File::from(clone.take_terminal().expect("asked for"));
    std::io::Write::write_all(&mut terminal, b"\n")?;
    ensure!(clone.wait()?.success());
    drop(clone);
    ensure!(layers(context) == before, "{:?}", layers(context));
    Ok(())
}

fn named_is_made_once(context: &Context) -> Result<()> {
    let named = || Snapshot::named("test").input("one").input(b"two");
    ensure!(named().get()?.is_none());
    let count = context.work().join("count");
    fs::write(&count, "")?;
    thread::scope(|scope| -> Result<()> {
        let made: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| -> Result<String> {
                    let snapshot = named().get_or_create(|| -> Result<Snapshot> {
                        let mut text = fs::read_to_string(&count)?;
                        text.push('x');
                        thread::sleep(Duration::from_millis(100));
                        fs::write(&count, text)?;
                        sealed(View::Image.sh("echo made > /data")?)
                    })?;
                    sh(&snapshot, "cat /data")
                })
            })
            .collect();
        for found in made {
            ensure!(found.join().expect("no panic")? == "made\n");
        }
        Ok(())
    })?;
    ensure!(fs::read_to_string(&count)? == "x");
    // Other inputs are another snapshot; this one is found by whoever comes later.
    ensure!(
        Snapshot::named("test")
            .inputs(["one", "tw", "o"])
            .get()?
            .is_none()
    );
    let role = harness("named-snapshot")?.wait_with_output()?;
    ensure!(role.status.success(), "{role:?}");
    ensure!(role.stdout == b"found: made\n", "{role:?}");
    ensure!(named().remove()? && named().get()?.is_none() && !named().remove()?);
    Ok(())
}

/// A process that was killed while it made one: the next makes it, from the beginning.
fn made_again_where_its_maker_was_killed(context: &Context) -> Result<()> {
    let mut maker = harness("named-snapshot-forever")?;
    let started = context.work().join("started");
    let until = Instant::now() + Duration::from_secs(20);
    while !started.exists() {
        ensure!(Instant::now() < until, "it never began");
        thread::sleep(Duration::from_millis(5));
    }
    let waiter = thread::spawn(|| -> Result<String> {
        let snapshot = Snapshot::named("test")
            .input("one")
            .input(b"two")
            .get_or_create(|| -> Result<Snapshot> {
                sealed(View::Image.sh("echo made > /data")?)
            })?;
        sh(&snapshot, "cat /data")
    });
    thread::sleep(Duration::from_millis(200));
    ensure!(!waiter.is_finished(), "two made it at once");
    maker.kill()?;
    maker.wait()?;
    let found = waiter.join().expect("no panic")?;
    ensure!(found == "made\n", "{found}");
    Ok(())
}

fn named_whose_maker_fails_is_not_there(context: &Context) -> Result<()> {
    View::Image.read("true")?;
    let before = layers(context);
    let failed = Snapshot::named("fails").get_or_create(|| -> Result<Snapshot> {
        sealed(View::Image.sh("echo 1 > /data")?)?;
        anyhow::bail!("no luck")
    });
    has(&failed.expect_err("it fails").to_string(), &["no luck"])?;
    ensure!(Snapshot::named("fails").get()?.is_none());
    ensure!(layers(context) == before);
    Ok(())
}

fn gc_spares_what_is_used(context: &Context) -> Result<()> {
    let nameless = sealed(View::Image.sh("echo 1 > /data")?)?;
    let named =
        Snapshot::named("used").get_or_create(|| sealed(View::Image.sh("echo 2 > /data")?))?;
    let removed = orbit::images::remove_unused(Duration::ZERO)?;
    ensure!(removed.layers == 0 && removed.in_use > 0, "{removed:?}");
    ensure!(sh(&nameless, "cat /data")? == "1\n" && sh(&named, "cat /data")? == "2\n");
    drop((named, nameless));
    // Young enough to stay, and then not.
    orbit::images::remove_unused(Duration::from_secs(3600))?;
    let found = Snapshot::named("used").get()?;
    let again = Snapshot::named("used")
        .get_or_create(|| -> Result<Snapshot> { sealed(View::Image.sh("echo 3 > /data")?) })?;
    ensure!(found.is_none() || sh(&again, "cat /data")? == "2\n");
    drop((found, again));
    orbit::images::remove_unused(Duration::ZERO)?;
    ensure!(layers(context).is_empty(), "{:?}", layers(context));
    let sealed = context.cache().join("v1/sealed");
    for ids in fs::read_dir(sealed)?.flatten() {
        ensure!(
            fs::read_dir(ids.path())?.next().is_none(),
            "{:?}",
            fs::read_dir(ids.path())?.collect::<Vec<_>>()
        );
    }
    ensure!(Snapshot::named("used").get()?.is_none());
    Ok(())
}

/// SIGKILL leaves no process, and files that the next snapshot sweeps.
fn what_was_killed_is_swept(context: &Context) -> Result<()> {
    View::Image.read("true")?;
    let before = layers(context);
    let mut maker = harness("snapshot-and-wait")?;
    let started = context.work().join("started");
    let until = Instant::now() + Duration::from_secs(20);
    while !started.exists() {
        ensure!(Instant::now() < until, "it never began");
        thread::sleep(Duration::from_millis(5));
    }
    ensure!(layers(context).iter().any(|name| name.contains(".new")));
    maker.kill()?;
    maker.wait()?;
    drop(sealed(View::Image.sh("true")?)?);
    ensure!(
        !layers(context).iter().any(|name| name.contains(".new")),
        "{:?}",
        layers(context)
    );
    orbit::images::remove_unused(Duration::from_secs(3600))?;
    ensure!(
        layers(context) == before,
        "{:?}, before {before:?}",
        layers(context)
    );
    Ok(())
}

/// The same reference, of which another image is made: that is another snapshot.
fn named_by_what_its_image_is(context: &Context) -> Result<()> {
    let layout = context.work().join("base");
    let reference = format!("oci:{}", layout.display());
    let build = |content: &str| -> Result<()> {
        if layout.exists() {
            fs::remove_dir_all(&layout)?;
        }
        sealed(View::Image.sh(&format!("echo {content} > /version"))?)?.save(&layout)?;
        Ok(())
    };
    let get = || {
        Snapshot::named("moved")
            .image(&reference)
            .get_or_create(|| -> Result<Snapshot> {
                sealed(
                    Sandbox::builder()
                        .image(&reference)
                        .cmd(["sh", "-c", "cp /version /data"]),
                )
            })
    };
    for content in ["one", "two"] {
        build(content)?;
        for _ in 0..2 {
            let found = sh(&get()?, "cat /data")?;
            ensure!(found == format!("{content}\n"), "{content}: {found}");
        }
    }
    let named = |reference: &str| Snapshot::named("x").image(reference).get();
    ensure!(named("dir:/").is_err_and(|error| error.is_spec()));
    ensure!(named("oci:/none").is_err());
    Ok(())
}

/// Who had a snapshot, a builder of it or a sandbox over it before it was given a name goes on with each of them.
fn clones_outlast_a_name(_: &Context) -> Result<()> {
    let mut before = None;
    let named = Snapshot::named("kept")
        .input("it")
        .get_or_create(|| -> Result<Snapshot> {
            let golden = sealed(View::Image.sh("echo 1 > /data")?)?;
            let mut over = golden
                .builder()
                .cmd(["sh", "-c", "echo 2 > /more"])
                .start()?;
            over.wait()?;
            before = Some((golden.clone(), golden.builder(), over));
            Ok(golden)
        })?;
    let (clone, builder, mut over) = before.expect("it was made");
    ensure!(sh(&named, "cat /data")? == "1\n");
    ensure!(sh(&clone, "cat /data")? == "1\n");
    ensure!(printed(builder.cmd(["cat", "/data"]))? == "1\n");
    // The layer below has its other name by now, and is one that stays.
    let second = over.snapshot()?;
    ensure!(sh(&second, "cat /data /more")? == "1\n2\n");
    let second = Snapshot::named("second").get_or_create(|| anyhow::Ok(second))?;
    ensure!(sh(&second, "cat /data /more")? == "1\n2\n");
    Ok(())
}

/// What ran in the sandbox runs in its image, without being told: as `docker commit` has it.
fn saved_does_what_the_sandbox_did(context: &Context) -> Result<()> {
    let snapshot = sealed(
        View::Image
            .sh("echo \"$GREETING from $PWD\" | tee -a /srv/said")?
            .env("GREETING", "hello")
            .working_dir("/srv")
            .label("team", "storage")
            .stop_signal(3)
            .expose(8080),
    )?;
    let layout = context.work().join("saved");
    snapshot.save(&layout)?;
    let image = format!("oci:{}", layout.display());
    let found = printed(Sandbox::builder().image(&image))?;
    ensure!(found == "hello from /srv\n", "{found}");
    let found = printed(Sandbox::builder().image(&image).cmd(["cat", "/srv/said"]))?;
    ensure!(found == "hello from /srv\n", "{found}");
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let blob = |descriptor: &Value| -> Result<Value> {
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        let name = digest.trim_start_matches("sha256:");
        Ok(serde_json::from_slice(&fs::read(
            layout.join("blobs/sha256").join(name),
        )?)?)
    };
    let config = &blob(&blob(&index["manifests"][0])?["config"])?["config"];
    ensure!(
        config["Labels"]["team"] == "storage"
            && config["StopSignal"] == "3"
            && config["ExposedPorts"]["8080/tcp"].is_object()
            && config["WorkingDir"] == "/srv",
        "{config}"
    );
    Ok(())
}

/// What the clone is like, and what Orbit makes of the image that was saved.
fn saved_is_an_image(context: &Context) -> Result<()> {
    let snapshot = sealed(View::Image.sh(&format!(
        "{MAKE}; rm /bin/vi; rm -r /var; mkdir /var; : > /var/x"
    ))?)?;
    let layout = context.work().join("saved");
    snapshot.save(&layout)?;
    let image = format!("oci:{}", layout.display());
    let tell = format!("{TELL} test -e /bin/vi || echo no vi; ls -A /var");
    let (expected, found) = (
        sh(&snapshot, &tell)?,
        printed(Sandbox::builder().image(&image).cmd(["sh", "-c", &tell]))?,
    );
    ensure!(expected == found, "expected\n{expected}\nfound\n{found}");
    has(&found, &["no vi"])?;
    let inspected = Program::new("skopeo")
        .args(["--insecure-policy", "inspect"])
        .arg(&image)
        .run()?
        .success()?;
    let inspected: Value = serde_json::from_str(&inspected.stdout)?;
    ensure!(
        inspected["Layers"].as_array().map_or(0, Vec::len) == 2,
        "{inspected}"
    );
    ensure!(
        inspected["Env"].to_string().contains("PATH="),
        "{inspected}"
    );
    let run = context
        .orbit("run")?
        .args(["--image", &image, "--", "cat", "/data/file"])
        .run()?
        .success()?;
    ensure!(run.stdout == "content\n", "{run}");
    // Saved alike, it is the same image.
    let second = context.work().join("second");
    snapshot.save(&second)?;
    ensure!(fs::read(layout.join("index.json"))? == fs::read(second.join("index.json"))?);
    let error = snapshot.save(&second).expect_err("it is there").to_string();
    has(&error, &["something is there already"])?;
    Ok(())
}

fn saved_unpacks_alike_elsewhere(context: &Context) -> Result<()> {
    let snapshot = sealed(View::Image.sh(&format!("{MAKE}; chown 999:33 /data/file; rm /bin/vi; rm -r /var/www; mkdir /var/www; : > /var/www/x"))?)?;
    let layout = context.work().join("saved");
    snapshot.save(&layout)?;
    let bundle = context.work().join("bundle");
    Program::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:latest", layout.display()))
        .arg(&bundle)
        .run()?
        .success()?;
    let root = bundle.join("rootfs");
    ensure!(!root.join("bin/vi").exists() && root.join("bin/busybox").exists());
    let names = |path: &Path| fs::read_dir(path).map(|entries| entries.flatten().count());
    ensure!(names(&root.join("var/www"))? == 1);
    let inside = |command: &mut Command| -> Result<String> {
        let output = command.output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let tell = format!("{TELL} stat -c '%u %g' /data/file");
    let found = inside(
        Command::new("chroot")
            .arg(&root)
            .args(["/bin/sh", "-c", &tell]),
    )?;
    let expected = sh(&snapshot, &tell)?;
    // Where the blocks of a file lie is the file system's affair.
    let comparable = |text: &str| text.replace("blocks 0", "blocks 1");
    ensure!(
        comparable(&found) == comparable(&expected),
        "{found}\nexpected\n{expected}"
    );
    Ok(())
}

fn what_cannot_be_saved_says_why(context: &Context) -> Result<()> {
    let layout = context.work().join("saved");
    let host = sealed(View::Host.sh("true")?)?;
    has(
        &host.save(&layout).expect_err("no image").to_string(),
        &["over the host's files", "start from an image"],
    )?;
    let odd = sealed(View::Image.sh(": > /home/.wh.passwd")?)?;
    has(
        &odd.save(&layout)
            .expect_err("it cannot be said")
            .to_string(),
        &["/home/.wh.passwd", "removed"],
    )?;
    ensure!(
        fs::read_dir(context.work())?.next().is_none(),
        "something was left"
    );
    ensure!(images::reference("busybox")?.starts_with("oci:"));
    Ok(())
}
