//! How each group of figures is measured.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    figures::Figures,
    rows::Group,
    samples::{Timed, Turns, time},
    stage::{BINARIES, Stage, TESTS},
};
use crate::{accounts, run, workspace};

pub(crate) fn measure(group: Group, stage: &Stage, figures: &mut Figures) -> Result<()> {
    match group {
        Group::Run => commands(stage, figures),
        Group::Tests => tests(stage, figures),
        Group::Binaries => binaries(stage, figures),
        Group::Postgres => postgres(stage, figures),
        Group::Build => super::build::measure(stage, figures),
        Group::User => as_user(stage, figures),
        Group::StartLarge => {
            inside(Group::Start, stage, figures)?;
            inside(Group::StartLarge, stage, figures)
        }
        Group::Alive => {
            figures.add("one mebibyte", f64::from(1 << 20));
            inside(group, stage, figures)
        }
        Group::Ports => {
            inside(group, stage, figures)?;
            let gibibyte = f64::from(1 << 30);
            for name in ["published", "direct"] {
                let took = figures.need(&format!("{name} gibibyte"))?;
                figures.add(format!("{name} throughput"), gibibyte / took);
            }
            let added =
                figures.need("published round trip")? - figures.need("direct round trip")?;
            figures.add("added latency", added);
            Ok(())
        }
        Group::Start | Group::Ahead | Group::First | Group::Together | Group::Layers => {
            inside(group, stage, figures)
        }
    }
}

/// Over the image that `cargo xtask images` builds.
fn postgres(stage: &Stage, figures: &mut Figures) -> Result<()> {
    let images = std::env::var_os("ORBIT_IMAGES_DIR")
        .map_or_else(|| workspace().join("target/images"), PathBuf::from);
    let image = images.join("postgres");
    if !image.join("index.json").exists() {
        let why = format!("no image {}: run cargo xtask images", image.display());
        figures.skip("cloned PostgreSQL", why);
        return Ok(());
    }
    std::os::unix::fs::symlink(image, stage.root.join("postgres"))?;
    inside(Group::Postgres, stage, figures)
}

/// Runs the program in `benches/`.
fn inside(group: Group, stage: &Stage, figures: &mut Figures) -> Result<()> {
    let mut command = stage.command(stage.program("orbit-benches"));
    let output = run::output(command.arg(group.name()).arg(&stage.root))?;
    figures.read("", &output)
}

/// The groups of starts, by the ordinary user that tests run as.
fn as_user(stage: &Stage, figures: &mut Figures) -> Result<()> {
    if !crate::is_root() {
        for name in ["sandbox", "prepared sandbox"] {
            figures.skip(
                format!("user's {name}"),
                "only root can become another user",
            );
        }
        return Ok(());
    }
    accounts::make()?;
    let cache = stage.root.join("user-cache");
    fs::create_dir(&cache)?;
    run::success(run::command("chown").arg(accounts::RANGED).arg(&cache))?;
    for group in [Group::Start, Group::Ahead] {
        let mut command = stage.command("setpriv");
        command
            .arg(format!("--reuid={}", accounts::RANGED))
            .arg(format!("--regid={}", accounts::RANGED))
            .args([
                "--init-groups",
                "--inh-caps=-all",
                "--reset-env",
                "--",
                "env",
            ])
            .arg(format!("ORBIT_CACHE_DIR={}", cache.display()))
            .arg(stage.program("orbit-benches"))
            .arg(group.name())
            .arg(&stage.root);
        figures.read("user's ", &run::output(&mut command)?)?;
    }
    Ok(())
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

/// Single commands, each in a sandbox of its own.
fn commands(stage: &Stage, figures: &mut Figures) -> Result<()> {
    let rootfs = stage.rootfs();
    let (rootfs, orbit) = (rootfs.display(), stage.program("cargo-orbit"));
    let orbit = orbit.display();
    let mut timed = vec![
        Timed::new("plain spawn of a command", format!("{rootfs}/bin/true")),
        Timed::new(
            "cargo orbit run --help",
            format!("{orbit} orbit run --help"),
        ),
        Timed::new(
            "floor of a command",
            format!("{} {rootfs} once", stage.root.join("floor").display()),
        ),
        Timed::new(
            "cargo orbit run",
            format!("{orbit} orbit run --image dir:{rootfs} -- /bin/true"),
        ),
    ];
    if is_there("bwrap") {
        let line =
            format!("bwrap --unshare-all --bind {rootfs} / --proc /proc --dev /dev /bin/true");
        timed.push(Timed::new("bwrap --unshare-all", line));
    } else {
        figures.skip("bwrap --unshare-all", "bwrap is not installed");
    }
    match runc(stage) {
        Ok(line) => timed.push(Timed::new("runc run", line)),
        Err(why) => figures.skip("runc run", format!("{why:#}")),
    }
    match docker(stage) {
        Ok(line) => timed.push(Timed::new("docker run", line)),
        Err(why) => figures.skip("docker run", format!("{why:#}")),
    }
    let turns = Turns {
        count: 5,
        runs: 40,
        warm_up: 4,
    };
    time(stage, &stage.root, &timed, &turns, figures)?;
    remove_docker_image(stage);
    Ok(())
}

const DOCKER_IMAGE: &str = "orbit-bench";

/// An image of the same root filesystem, and the command that runs it, where a dockerd runs: none is started here.
fn docker(stage: &Stage) -> Result<String> {
    ensure!(is_there("docker"), "docker is not installed");
    let answers = stage.command("docker").arg("info").output()?;
    ensure!(answers.status.success(), "no dockerd answers");
    let archive = stage.root.join("rootfs.tar");
    let mut tar = stage.command("tar");
    tar.arg("--create")
        .arg("--file")
        .arg(&archive)
        .arg("--directory");
    run::success(tar.arg(stage.rootfs()).arg("."))?;
    let mut import = stage.command("docker");
    run::success(import.arg("import").arg(&archive).arg(DOCKER_IMAGE))?;
    let line = format!("docker run --rm {DOCKER_IMAGE} /bin/true");
    let tried = stage
        .command("docker")
        .args(["run", "--rm", DOCKER_IMAGE, "/bin/true"])
        .output()?;
    ensure!(
        tried.status.success(),
        "does not run here: {}",
        String::from_utf8_lossy(&tried.stderr).trim()
    );
    Ok(line)
}

fn remove_docker_image(stage: &Stage) {
    if is_there("docker") {
        // Where there is no dockerd, there is no image.
        let _ = stage
            .command("docker")
            .args(["image", "rm", DOCKER_IMAGE])
            .output();
    }
}

/// A bundle over the same root filesystem, and the command that runs it; that it can is tried once.
fn runc(stage: &Stage) -> Result<String> {
    ensure!(is_there("runc"), "runc is not installed");
    let bundle = stage.root.join("bundle");
    fs::create_dir_all(&bundle)?;
    let spec = stage
        .command("runc")
        .arg("spec")
        .current_dir(&bundle)
        .status()?;
    ensure!(spec.success(), "runc spec: {spec}");
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
    config["process"]["args"] = json!(["/bin/true"]);
    config["process"]["terminal"] = json!(false);
    config["root"] = json!({ "path": stage.rootfs(), "readonly": true });
    fs::write(&path, config.to_string())?;
    let tried = stage
        .command("runc")
        .args(["run", "--bundle"])
        .arg(&bundle)
        .arg("orbit-bench")
        .output()?;
    ensure!(
        tried.status.success(),
        "does not run here: {}",
        String::from_utf8_lossy(&tried.stderr).trim()
    );
    Ok(format!(
        "runc run --bundle {} orbit-bench",
        bundle.display()
    ))
}

fn tests(stage: &Stage, figures: &mut Figures) -> Result<()> {
    let directory = stage.root.join("tests");
    let orbit = stage.program("cargo-orbit");
    let mut timed = vec![
        Timed::new(
            "cargo orbit test --isolate test",
            format!("{} orbit test --isolate test", orbit.display()),
        ),
        Timed::new("cargo test", "cargo test".into()),
        Timed::new(
            "floor of tests",
            format!(
                "{} {} {TESTS}",
                stage.root.join("floor").display(),
                stage.rootfs().display()
            ),
        ),
    ];
    if is_there("cargo-nextest") {
        timed.push(Timed::new("cargo nextest run", "cargo nextest run".into()));
    } else {
        figures.skip("cargo nextest run", "cargo-nextest is not installed");
    }
    if is_there("cargo-maelstrom") {
        // As `cargo maelstrom`, whose first word cargo itself would take for its own.
        let line = "cargo-maelstrom".into();
        timed.push(Timed::new("cargo maelstrom", line));
    } else {
        figures.skip("cargo maelstrom", "cargo-maelstrom is not installed");
    }
    build_tests(stage, &directory)?;
    let turns = Turns {
        count: 3,
        runs: 5,
        warm_up: 1,
    };
    time(stage, &directory, &timed, &turns, figures)
}

fn binaries(stage: &Stage, figures: &mut Figures) -> Result<()> {
    let directory = stage.root.join("binaries");
    let (orbit, rootfs) = (stage.program("cargo-orbit"), stage.rootfs());
    let timed = [
        Timed::new(
            "cargo orbit test --isolate binary",
            format!("{} orbit test --isolate binary", orbit.display()),
        ),
        Timed::new("cargo test of binaries", "cargo test".into()),
        Timed::new(
            "plain spawn beside binaries",
            format!("{}/bin/true", rootfs.display()),
        ),
    ];
    build_tests(stage, &directory)?;
    let turns = Turns {
        count: 5,
        runs: 6,
        warm_up: 1,
    };
    time(stage, &directory, &timed, &turns, figures)?;
    // Both have cargo look whether all is built; cargo test then runs each binary bare.
    let added = figures.need("cargo orbit test --isolate binary")?
        - figures.need("cargo test of binaries")?;
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    figures.add("added by --isolate binary", added / BINARIES as f64);
    Ok(())
}

/// All build what they run; here it is built already.
fn build_tests(stage: &Stage, directory: &Path) -> Result<()> {
    let mut build = stage.command("cargo");
    build
        .args(["test", "--no-run", "--quiet"])
        .current_dir(directory)
        .stdout(Stdio::null());
    run::success(&mut build).context("build the tests")
}
