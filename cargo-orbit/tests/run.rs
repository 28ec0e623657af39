//! `cargo orbit run` on a real kernel: streams, signals, terminals, and what it ends with.
//!
//! On the host's own files, so that no registry is needed.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Command, Output, Stdio},
};

const ORBIT: &str = env!("CARGO_BIN_EXE_cargo-orbit");

/// `cargo orbit run --image host` with more words, of which quotes hold some together.
fn orbit(words: &str) -> Command {
    let mut command = Command::new(ORBIT);
    command.args(["orbit", "run", "--image", "host"]);
    command.args(shell_words::split(words).expect("words"));
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_exit_code_says_how_it_ended() {
    for (words, code) in [
        ("-- true", 0),
        ("--cmd 'sh -c \"exit 3\"'", 3),
        ("-- sh -c 'kill -KILL $$'", 128 + 9),
        ("--timeout 100ms -- sleep 60", 124),
        ("--memory 10Q", 125),
        ("--env-file /does/not/exist", 125),
        ("--mount /does/not/exist:/x", 125),
        ("--bridge longer-than-a-link", 125),
        ("-- /etc/passwd", 126),
        ("-- no-such-program", 127),
    ] {
        let Output { status, stderr, .. } = orbit(words).output().unwrap();
        assert_eq!(status.code(), Some(code), "{words}: {}", text(&stderr));
        assert_eq!(
            stderr.is_empty(),
            ![125, 126, 127].contains(&code),
            "{words}: {}",
            text(&stderr)
        );
    }
}

#[test]
fn the_program_gets_the_variables_that_were_asked_for() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "A=file\nB=file\n").unwrap();
    let output = orbit("-e A=flag -e PASSED -e ABSENT")
        .arg("--env-file")
        .arg(file.path())
        .args([
            "--",
            "sh",
            "-c",
            "echo $A $B $PASSED ${UNASKED-none} ${ABSENT-none}",
        ])
        .env("PASSED", "host")
        .env("UNASKED", "host")
        .output()
        .unwrap();
    assert_eq!(
        text(&output.stdout),
        "flag file host none none\n",
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn input_is_passed_on_only_where_it_is_asked_for() {
    for (words, expected) in [("-i -- cat", "typed"), ("-- cat", "")] {
        let mut child = orbit(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Nobody reads it in the second case.
        let _ = child.stdin.take().unwrap().write_all(b"typed");
        let output = child.wait_with_output().unwrap();
        assert_eq!(text(&output.stdout), expected, "{words}");
    }
}

#[test]
fn a_signal_reaches_the_program_which_ends_in_its_own_way() {
    let script = "trap 'echo asked; exit 5' TERM; echo ready; sleep 60 & wait";
    let mut child = orbit("-- sh -c")
        .arg(script)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");

    let kill = Command::new("kill")
        .arg(child.id().to_string())
        .status()
        .unwrap();
    assert!(kill.success());
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(
        (rest.as_str(), child.wait().unwrap().code()),
        ("asked\n", Some(5))
    );
}

#[test]
fn a_terminal_is_asked_for_where_there_is_one() {
    let output = orbit("-t -- tty").stdin(Stdio::null()).output().unwrap();
    assert!(text(&output.stdout).starts_with("/dev/"), "{output:?}");
    let output = orbit("-it -- tty").stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(
        text(&output.stderr).contains("the standard input is not a terminal"),
        "{output:?}"
    );
}
