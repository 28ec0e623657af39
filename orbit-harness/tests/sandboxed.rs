//! `#[orbit::sandboxed]` in a test program of its own: what holds inside, and that outside is untouched.
//!
//! How tests that fail are told is in `fixtures/sandboxed`, which the end-to-end tests run.

use std::{
    env, fs, io, os::unix::process::parent_id, path::Path, process::ExitCode, time::Duration,
};

fn assert_inside() {
    let init = fs::read("/proc/1/cmdline").unwrap_or_default();
    assert!(init.starts_with(b"orbit-supervisor\0"), "{init:?}");
    assert_eq!(parent_id(), 1);
}

#[orbit::sandboxed]
fn the_body_runs_inside_and_only_there() {
    assert_inside();
}

#[orbit::sandboxed]
#[test]
fn a_test_attribute_below_is_kept() {
    assert_inside();
}

#[orbit::sandboxed]
fn writes_are_thrown_away() -> io::Result<()> {
    for path in [
        "/tmp/orbit-sandboxed",
        concat!(env!("CARGO_MANIFEST_DIR"), "/orbit-sandboxed"),
    ] {
        // It would be there from the run before.
        assert!(!Path::new(path).exists(), "{path}");
        fs::write(path, "x")?;
    }
    Ok(())
}

const NAME: &str = "from-a-constant";

#[orbit::sandboxed(
    hostname = NAME,
    env(A = "1", B = concat!("2", "3")),
    timeout = Duration::from_secs(60),
    read_only,
    nested = cfg!(unix),
)]
fn values_may_be_expressions() -> ExitCode {
    assert_eq!(
        fs::read_to_string("/proc/sys/kernel/hostname")
            .unwrap()
            .trim(),
        NAME
    );
    assert_eq!(env::var("A").unwrap() + &env::var("B").unwrap(), "123");
    assert!(fs::write("/etc/orbit", "").is_err());
    ExitCode::SUCCESS
}

#[orbit::sandboxed(env_clear, env(ONLY = "this"))]
fn an_empty_environment_is_empty() {
    let names: Vec<_> = env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| name != "HOME")
        .collect();
    assert_eq!(names, ["ONLY"]);
}

#[orbit::sandboxed(cap_drop("ALL"))]
fn capabilities_are_dropped() {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status
        .lines()
        .find(|line| line.starts_with("CapEff"))
        .unwrap();
    assert!(effective.ends_with("0000000000000000"), "{effective}");
}

#[orbit::sandboxed]
fn standard_input_is_empty() {
    assert_eq!(io::read_to_string(io::stdin()).unwrap(), "");
    let at = fs::read_link("/proc/self/fd/0").unwrap();
    assert_eq!(at, Path::new("/dev/null"));
}

#[orbit::sandboxed]
fn a_sandbox_inside_works() {
    let outcome = orbit::Sandbox::builder()
        .cmd(["echo", "deep"])
        .run()
        .unwrap();
    assert_eq!(outcome.stdout_text(), "deep\n");
}

#[orbit::sandboxed]
#[should_panic(expected = "the message of the inside")]
fn a_panic_keeps_its_message() {
    assert_inside();
    panic!("{} of the inside", "the message");
}

#[orbit::sandboxed(clock_offset = "24000h", record_denied, egress = "none")]
fn the_clock_is_ahead_and_the_way_out_is_watched() {
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    assert!(seconds > 24_000.0 * 3600.0, "{uptime}");
    let routes = fs::read_to_string("/proc/net/route").unwrap();
    let default = |line: &str| line.split('\t').nth(1) == Some("00000000");
    assert!(routes.lines().any(default), "{routes}");
}

#[orbit::sandboxed(image = "dir:/")]
#[ignore = "fails, and says why, unless this program is static"]
fn an_image_without_its_loader_is_refused() {
    assert_inside();
}

mod nested {
    #[orbit::sandboxed]
    fn a_test_in_a_module_is_found() {
        super::assert_inside();
    }

    #[orbit::sandboxed]
    fn r#type() {
        super::assert_inside();
    }
}

/// What says that this process is inside is not believed.
#[test]
fn a_variable_does_not_make_an_inside() {
    let status = std::process::Command::new(env::current_exe().unwrap())
        .args(["the_body_runs_inside_and_only_there", "--exact"])
        .env(
            orbit::__private::SANDBOX_OF,
            orbit::__private::SANDBOX_OF_TEST,
        )
        .status()
        .unwrap();
    // It made a sandbox: else the body's own assertion would have failed.
    assert!(status.success());
}
