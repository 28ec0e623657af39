//! `cargo orbit run`: images from layouts, archives and a registry, exit codes, and what each mistake is told.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orbit_tests::{Case, Context, Finished, Program, Registry, Who, images, orbit_cli};

use crate::kit::{has, one_paragraph};

const DEADLINE: Duration = Duration::from_secs(40);

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("run::{name}"), run).deadline(DEADLINE)
    };
    vec![
        case("exit_codes", exit_codes),
        case("the_images_config_is_heeded", the_images_config_is_heeded),
        case("an_archive_is_an_image", an_archive_is_an_image).needs(&["skopeo"]),
        case(
            "layers_are_what_the_manifest_says",
            layers_are_what_the_manifest_says,
        )
        .who(Who::RANGED),
        case(
            "a_command_that_is_killed_leaves_nothing",
            a_command_that_is_killed_leaves_nothing,
        ),
        case(
            "from_a_registry_by_tag_and_digest",
            from_a_registry_by_tag_and_digest,
        )
        .needs(Registry::NEEDS),
        case("pull_policies", pull_policies).needs(Registry::NEEDS),
        case("many_pulls_download_once", many_pulls_download_once)
            .needs(Registry::NEEDS)
            .deadline(Duration::from_secs(60)),
        case("a_corrupt_layer_is_refused", a_corrupt_layer_is_refused),
        case("a_wrong_digest_is_refused", a_wrong_digest_is_refused).needs(Registry::NEEDS),
        case("what_is_not_there_is_named", what_is_not_there_is_named),
        case(
            "what_is_not_understood_is_named",
            what_is_not_understood_is_named,
        ),
        case("all_faults_at_once", all_faults_at_once),
        case("no_shell_runs", no_shell_runs),
    ]
}

fn busybox() -> Result<String> {
    images::reference("busybox")
}

fn run(context: &Context, flags: &[&str], words: &[&str]) -> Result<Finished> {
    let program = context.orbit("run")?.args(flags);
    let program = if words.is_empty() {
        program
    } else {
        program.arg("--").args(words)
    };
    program.deadline(DEADLINE).run()
}

fn run_image(context: &Context, image: &str, words: &[&str]) -> Result<Finished> {
    run(context, &["--image", image], words)
}

fn exit_codes(context: &Context) -> Result<()> {
    let image = busybox()?;
    let hi = run_image(context, &image, &["echo", "hi"])?.success()?;
    ensure!(hi.stdout == "hi\n" && hi.stderr.is_empty(), "{hi}");
    for (script, code) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -KILL $$", 137),
        ("kill -TERM $$", 143),
        ("kill -ABRT $$", 134),
        ("kill -34 $$", 128 + 34),
    ] {
        for init in [&[][..], &["--no-init"]] {
            // From within its namespace, process 1 is only killed by what it handles.
            if script.contains("kill") && !init.is_empty() {
                continue;
            }
            let flags = [&["--image", image.as_str()], init].concat();
            run(context, &flags, &["sh", "-c", script])?
                .code(code)
                .context(script)?;
        }
    }
    for init in [&[][..], &["--no-init"]] {
        let flags = [&["--image", image.as_str()], init].concat();
        let missing = run(context, &flags, &["no-such-program"])?.code(127)?;
        one_paragraph(&missing.stderr, &["no-such-program", "PATH"])?;
        let missing = run(context, &flags, &["/no/such/program"])?.code(127)?;
        one_paragraph(&missing.stderr, &["/no/such/program"])?;
        let not_executable = run(context, &flags, &["/etc/hosts"])?.code(126)?;
        one_paragraph(&not_executable.stderr, &["/etc/hosts", "execute"])?;
        let directory = run(context, &flags, &["/etc"])?.code(126)?;
        one_paragraph(&directory.stderr, &["/etc"])?;
    }
    run(
        context,
        &["--image", &image, "--timeout", "200ms"],
        &["sleep", "30"],
    )?
    .code(124)?;
    Ok(())
}

/// Copies a layout, changing its image's config.
fn with_config(
    context: &Context,
    name: &str,
    change: impl FnOnce(&mut serde_json::Value),
) -> Result<PathBuf> {
    let (from, to) = (images::layout("busybox")?, context.work().join(name));
    copy_tree(&from, &to)?;
    let blob = |digest: &str| {
        to.join("blobs/sha256")
            .join(digest.trim_start_matches("sha256:"))
    };
    let read = |path: &Path| -> Result<serde_json::Value> {
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    };
    let write = |value: &serde_json::Value| -> Result<(String, usize)> {
        let text = serde_json::to_vec(value)?;
        let file = to.join("new-blob");
        fs::write(&file, &text)?;
        let digest = sha256(&file)?;
        fs::rename(&file, blob(&digest))?;
        Ok((format!("sha256:{digest}"), text.len()))
    };
    let mut index = read(&to.join("index.json"))?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let mut manifest = read(&blob(&text(&index["manifests"][0]["digest"])))?;
    let mut config = read(&blob(&text(&manifest["config"]["digest"])))?;
    change(&mut config["config"]);
    let (digest, size) = write(&config)?;
    manifest["config"]["digest"] = digest.into();
    manifest["config"]["size"] = size.into();
    let (digest, size) = write(&manifest)?;
    index["manifests"][0]["digest"] = digest.into();
    index["manifests"][0]["size"] = size.into();
    fs::write(to.join("index.json"), serde_json::to_vec(&index)?)?;
    Ok(to)
}

pub(crate) fn sha256(path: &Path) -> Result<String> {
    let finished = Program::new("sha256sum").arg(path).run()?.success()?;
    Ok(finished
        .stdout
        .split(' ')
        .next()
        .unwrap_or_default()
        .to_owned())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    Program::new("cp")
        .arg("-r")
        .arg(from)
        .arg(to)
        .run()?
        .success()?;
    Ok(())
}

fn the_images_config_is_heeded(context: &Context) -> Result<()> {
    let layout = with_config(context, "configured", |config| {
        config["Env"] = serde_json::json!(["PATH=/bin", "GREETING=from the image"]);
        config["Entrypoint"] = serde_json::json!(["sh", "-c"]);
        config["Cmd"] = serde_json::json!(["echo \"$GREETING\"; pwd; id -u"]);
        config["WorkingDir"] = "/made/here".into();
    })?;
    let image = format!("oci:{}", layout.display());
    // `run` has a default command of its own, sh; the entrypoint stays the image's.
    let found = run_image(context, &image, &["echo \"$GREETING\"; pwd; id -u"])?.success()?;
    ensure!(found.stdout == "from the image\n/made/here\n0\n", "{found}");
    let found = orbit::Sandbox::builder().image(&image).run()?;
    ensure!(
        found.stdout_text() == "from the image\n/made/here\n0\n",
        "{found:?}"
    );
    let found = orbit::Sandbox::builder()
        .image(&image)
        .entrypoint(["echo"])
        .run()?;
    ensure!(
        found.stdout_text() == "\n",
        "an image's cmd goes with its own entrypoint: {found:?}"
    );
    let found = run(
        context,
        &["--image", &image, "--entrypoint", "echo", "-w", "/tmp"],
        &["a b"],
    )?;
    ensure!(found.success()?.stdout == "a b\n");
    let user = with_config(context, "as-user", |config| {
        config["User"] = "1000:1000".into();
    })?;
    let found = run_image(context, &format!("oci:{}", user.display()), &["id", "-u"])?;
    if context.who == Who::Single {
        one_paragraph(&found.code(125)?.stderr, &["only one", "usermod"])?;
    } else {
        ensure!(found.stdout == "1000\n", "{found}");
    }
    let nobody = with_config(context, "as-nobody-known", |config| {
        config["User"] = "no-such-user".into();
    })?;
    let refused = run_image(context, &format!("oci:{}", nobody.display()), &["true"])?.code(125)?;
    one_paragraph(&refused.stderr, &["no-such-user"])
}

fn an_archive_is_an_image(context: &Context) -> Result<()> {
    let archive = context.work().join("busybox.tar");
    Program::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet"])
        .arg(busybox()?)
        .arg(format!("oci-archive:{}:v1", archive.display()))
        .run()?
        .success()?;
    let image = format!("oci-archive:{}", archive.display());
    ensure!(
        run_image(context, &image, &["echo", "hi"])?
            .success()?
            .stdout
            == "hi\n"
    );
    ensure!(
        run_image(context, &format!("{image}:v1"), &["echo", "hi"])?
            .success()?
            .stdout
            == "hi\n"
    );
    let refused = run_image(context, &format!("{image}:v2"), &["true"])?.code(125)?;
    one_paragraph(&refused.stderr, &["v2"])?;
    fs::File::options()
        .write(true)
        .open(&archive)?
        .set_len(100_000)?;
    let cut = context
        .orbit("run")?
        .env("ORBIT_CACHE_DIR", context.work().join("other-cache"));
    let refused = cut
        .args(["--image", &image, "--", "true"])
        .run()?
        .code(125)?;
    one_paragraph(&refused.stderr, &["busybox.tar"])
}

fn layers_are_what_the_manifest_says(context: &Context) -> Result<()> {
    let image = images::reference("layers")?;
    let found = run_image(context, &image, &["/verify.sh"])?.success()?;
    has(&found.stdout, &[" 0 differ,"])
}

fn a_command_that_is_killed_leaves_nothing(context: &Context) -> Result<()> {
    let image = busybox()?;
    let audit = context.audit();
    for (script, after) in [
        ("echo up; sleep 600", 0),
        (
            "(setsid sleep 601 &); trap '' TERM INT HUP; echo up; sleep 600",
            30,
        ),
        ("echo up; while :; do :; done", 5),
    ] {
        let mut child = Command::new(orbit_cli::binary()?)
            .args(["orbit", "run", "--image", &image, "--", "sh", "-c", script])
            .current_dir(context.work())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let mut out = std::io::BufReader::new(child.stdout.take().context("piped")?);
        std::io::BufRead::read_line(&mut out, &mut line)?;
        ensure!(line == "up\n", "{line:?}");
        thread::sleep(Duration::from_millis(after));
        kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL)?;
        child.wait()?;
        let killed = Instant::now();
        drop(out);
        audit
            .check()
            .with_context(|| format!("{script}, after {:?}", killed.elapsed()))?;
    }
    Ok(())
}

fn from_a_registry_by_tag_and_digest(context: &Context) -> Result<()> {
    let registry = Registry::start()?;
    let tag = registry.push(&images::layout("busybox")?, "orbit/busybox:v1")?;
    ensure!(run_image(context, &tag, &["echo", "hi"])?.success()?.stdout == "hi\n");
    let blobs = registry.blob_gets();
    ensure!(
        blobs == 2,
        "a config and a layer, but {blobs} were read:\n{}",
        registry.log()
    );
    run_image(context, &tag, &["sh", "-c", "exit 7"])?.code(7)?;
    ensure!(
        registry.blob_gets() == blobs && registry.manifest_gets() == 1,
        "{}",
        registry.log()
    );

    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(images::layout("busybox")?.join("index.json"))?)?;
    let digest = index["manifests"][0]["digest"]
        .as_str()
        .context("a digest")?;
    let pinned = format!("{}/orbit/busybox@{digest}", registry.host());
    ensure!(
        run_image(context, &pinned, &["echo", "hi"])?
            .success()?
            .stdout
            == "hi\n"
    );
    ensure!(
        registry.blob_gets() == blobs,
        "what is there was read again:\n{}",
        registry.log()
    );
    // The registry is not needed any more.
    drop(registry);
    ensure!(run_image(context, &tag, &["echo", "hi"])?.success()?.stdout == "hi\n");
    Ok(())
}

fn pull_policies(context: &Context) -> Result<()> {
    let registry = Registry::start()?;
    let tag = registry.push(&images::layout("busybox")?, "orbit/moving:latest")?;
    let pull = |policy: &str| {
        run(
            context,
            &["--image", &tag, "--pull", policy, "--entrypoint", ""],
            &["ls", "/"],
        )
    };
    let never = pull("never")?.code(125)?;
    one_paragraph(&never.stderr, &["orbit/moving"])?;
    ensure!(
        registry.manifest_gets() == 0,
        "--pull never asked the registry"
    );
    pull("missing")?.success()?;
    pull("never")?.success()?;
    let asked = registry.manifest_gets();
    // The tag moves: only `always` follows.
    registry.push(&images::layout("layers")?, "orbit/moving:latest")?;
    ensure!(!pull("missing")?.success()?.stdout.contains("verify.sh"));
    ensure!(registry.manifest_gets() == asked);
    if context.who == Who::Single {
        return Ok(());
    }
    ensure!(pull("always")?.success()?.stdout.contains("verify.sh"));
    Ok(())
}

fn many_pulls_download_once(context: &Context) -> Result<()> {
    for processes in [2, 16] {
        let registry = Registry::start()?;
        let image = if context.who == Who::Single {
            "busybox"
        } else {
            "layers"
        };
        let tag = registry.push(&images::layout(image)?, "orbit/many:v1")?;
        let cache = context.work().join(format!("cache-{processes}"));
        let all: Vec<Result<Finished>> = thread::scope(|scope| {
            let one = || {
                context
                    .orbit("run")?
                    .env("ORBIT_CACHE_DIR", &cache)
                    .args(["--image", &tag, "--entrypoint", "", "--", "echo", "hi"])
                    .deadline(DEADLINE)
                    .run()?
                    .success()
            };
            let started: Vec<_> = (0..processes).map(|_| scope.spawn(one)).collect();
            started
                .into_iter()
                .filter_map(|thread| thread.join().ok())
                .collect()
        });
        ensure!(all.len() == processes);
        for finished in all {
            ensure!(finished?.stdout == "hi\n");
        }
        let mut counts = BTreeMap::new();
        let log = registry.log();
        let paths = log
            .lines()
            .filter_map(|line| line.split_once("\"GET /v2/")?.1.split(' ').next());
        for path in paths.filter(|path| path.contains("/blobs/")) {
            *counts.entry(path.to_owned()).or_insert(0) += 1;
        }
        ensure!(
            !counts.is_empty() && counts.values().all(|&count| count == 1),
            "{processes}: {counts:#?}"
        );
    }
    Ok(())
}

fn a_corrupt_layer_is_refused(context: &Context) -> Result<()> {
    let layout = context.work().join("corrupt");
    copy_tree(&images::layout("busybox")?, &layout)?;
    let blobs = layout.join("blobs/sha256");
    let mut files = fs::read_dir(&blobs)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    files.sort_by_key(|path| fs::metadata(path).map_or(0, |metadata| metadata.len()));
    let layer = files.last().context("blobs")?;
    let mut bytes = fs::read(layer)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(layer, &bytes)?;
    let image = format!("oci:{}", layout.display());
    let digest = layer
        .file_name()
        .context("a name")?
        .to_string_lossy()
        .into_owned();
    for _ in 0..2 {
        let refused = run_image(context, &image, &["true"])?.code(125)?;
        one_paragraph(&refused.stderr, &[&digest[..12]])?;
    }
    bytes.truncate(middle);
    fs::write(layer, &bytes)?;
    let refused = run_image(context, &image, &["true"])?.code(125)?;
    one_paragraph(
        &refused.stderr,
        &["layer", &image, &bytes.len().to_string()],
    )?;
    fs::remove_file(layer)?;
    let refused = run_image(context, &image, &["true"])?.code(125)?;
    one_paragraph(&refused.stderr, &[&digest[..12]])?;
    nothing_unpacked(context)
}

/// Nothing half-made is in the cache.
fn nothing_unpacked(context: &Context) -> Result<()> {
    let found = Program::new("find")
        .arg(context.cache())
        .args(["-name", "busybox"])
        .run()?;
    ensure!(
        found.stdout.is_empty(),
        "unpacked all the same:\n{}",
        found.stdout
    );
    Ok(())
}

fn a_wrong_digest_is_refused(context: &Context) -> Result<()> {
    let registry = Registry::start()?;
    registry.push(&images::layout("busybox")?, "orbit/pinned:v1")?;
    let zeros = "0".repeat(64);
    let absent = format!("{}/orbit/pinned@sha256:{zeros}", registry.host());
    let refused = run_image(context, &absent, &["true"])?.code(125)?;
    one_paragraph(&refused.stderr, &["orbit/pinned", "00000000"])?;
    let short = format!("{}/orbit/pinned@sha256:12", registry.host());
    one_paragraph(
        &run_image(context, &short, &["true"])?.code(125)?.stderr,
        &["sha256:12"],
    )?;
    ensure!(registry.blob_gets() == 0, "{}", registry.log());
    nothing_unpacked(context)
}

fn what_is_not_there_is_named(context: &Context) -> Result<()> {
    let image = busybox()?;
    let started = Instant::now();
    // A port that was free a moment ago: nobody answers.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let silent = format!("127.0.0.1:{port}/orbit/x:v1");
    for (flags, words) in [
        (
            vec!["--image", "oci:/no/such/layout"],
            vec!["/no/such/layout"],
        ),
        (
            vec!["--image", "oci-archive:/no/such.tar"],
            vec!["/no/such.tar"],
        ),
        (vec!["--image", "dir:/no/such/dir"], vec!["/no/such/dir"]),
        (
            vec!["--image", "dir:/etc/passwd"],
            vec!["/etc/passwd", "not a directory"],
        ),
        (vec!["--image", "oci:/etc"], vec!["/etc"]),
        (vec!["--image", &silent], vec!["127.0.0.1", "refused"]),
        (
            vec!["--image", &image, "-v", "/no/such/source:/x"],
            vec!["/no/such/source"],
        ),
        (
            vec!["--image", &image, "--env-file", "/no/such/file"],
            vec!["/no/such/file"],
        ),
    ] {
        let refused = run(context, &flags, &["true"])?
            .code(125)
            .with_context(|| format!("{flags:?}"))?;
        one_paragraph(&refused.stderr, &words).with_context(|| format!("{flags:?}"))?;
        ensure!(refused.stdout.is_empty());
    }
    ensure!(
        started.elapsed() < Duration::from_secs(30),
        "it took {:?} to say so",
        started.elapsed()
    );
    Ok(())
}

fn what_is_not_understood_is_named(context: &Context) -> Result<()> {
    let image = busybox()?;
    for (flags, words) in [
        (vec!["--memory", "10Q"], vec!["10Q"]),
        (vec!["--cpu", "lots"], vec!["lots"]),
        (vec!["--publish", "80:"], vec!["80:", "8080:80"]),
        (vec!["--publish", "99999:80"], vec!["99999"]),
        (vec!["--cap-add", "NOPE"], vec!["NOPE"]),
        (vec!["--cap-drop", "CAP_NOPE"], vec!["NOPE"]),
        (vec!["--user", "a:b:c"], vec!["a:b:c"]),
        (vec!["--user", "-1"], vec!["-1"]),
        (vec!["--user=99999999999"], vec!["99999999999"]),
        (vec!["--user=0:\n0"], vec!["user"]),
        (vec!["-v", "/a"], vec!["/a", "SOURCE:TARGET"]),
        (vec!["-v", "/etc:etc"], vec!["etc", "absolute"]),
        (vec!["-v", "/etc:/"], vec!["root"]),
        (vec!["--workdir", "relative"], vec!["relative", "absolute"]),
        (vec!["--hostname", "not a name"], vec!["not a name"]),
        (vec!["--env", "=x"], vec!["=x"]),
        (vec!["--network", "not a name"], vec!["not a name"]),
        (vec!["--timeout", "soon"], vec!["soon"]),
        (vec!["--image", "UPPER/case:::x"], vec!["UPPER"]),
        (vec!["--image", ""], vec!["empty"]),
        (vec!["--no-such-flag"], vec!["--no-such-flag"]),
    ] {
        let mut all = if flags.contains(&"--image") {
            Vec::new()
        } else {
            vec!["--image", &image]
        };
        all.extend(&flags);
        let refused = run(context, &all, &["true"])?
            .code(125)
            .with_context(|| format!("{flags:?}"))?;
        has(&refused.stderr, &words).with_context(|| format!("{flags:?}"))?;
        ensure!(!refused.stderr.contains("panicked"), "{refused}");
    }
    Ok(())
}

fn all_faults_at_once(context: &Context) -> Result<()> {
    let image = busybox()?;
    let refused = run(
        context,
        &[
            "--image",
            &image,
            "--cap-add",
            "NOPE",
            "-v",
            "/no/such/source:/x",
            "-v",
            "/etc:relative",
            "--workdir",
            "also-relative",
            "--publish",
            "80:",
            "--user",
            "a:b:c",
            "--hostname",
            "a b",
        ],
        &["true"],
    )?
    .code(125)?;
    has(
        &refused.stderr,
        &[
            "NOPE",
            "/no/such/source",
            "relative",
            "also-relative",
            "80:",
            "a:b:c",
            "a b",
        ],
    )
}

fn no_shell_runs(context: &Context) -> Result<()> {
    let image = busybox()?;
    let mark = context.work().join("shell-ran");
    let word = format!("$(touch {0});`touch {0}`;touch {0}", mark.display());
    let found = run(
        context,
        &[
            "--image",
            &image,
            "--env",
            &format!("A={word}"),
            "--cmd",
            &format!("echo '{word}'"),
        ],
        &[],
    )?;
    ensure!(found.success()?.stdout == format!("{word}\n"));
    let found = run(
        context,
        &[
            "--image",
            &image,
            "--name",
            "n",
            "-v",
            &format!("{word}:/x"),
        ],
        &["true"],
    )?
    .code(125)?;
    has(&found.stderr, &["touch"])?;
    ensure!(!mark.exists(), "a shell ran on the host");
    Ok(())
}
