//! What this binary is besides the tests: a payload inside of sandboxes, and a harness to be killed.
//!
//! A payload prints what it found, one line each, and judges nothing: the case outside does.

use std::{
    fs,
    io::{self, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{UnixListener, UnixStream},
    },
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use orbit::{Sandbox, Stdin};

use crate::{ahead, kit::View, raw, snapshots, structure};

pub(crate) fn run(role: &str) -> ExitCode {
    let (role, argument) = role.split_once(' ').unwrap_or((role, ""));
    let done = match role {
        "loopback" => loopback(),
        "denied" => {
            raw::print_denied();
            Ok(())
        }
        "type-into-terminal" => {
            raw::type_into_terminal();
            Ok(())
        }
        "abstract" => connect_to_abstract(),
        "connect" => {
            println!("{}", outcome(&UnixStream::connect(argument)));
            Ok(())
        }
        "fork-bomb" => raw::fork_bomb(argument.parse().unwrap_or(100)),
        "flood" => flood(argument.parse().unwrap_or(0)),
        "harness-sleep" => harness_sleep(),
        "harness-loop" => harness_loop(),
        "harness-exit" => harness_sandboxes(3).map(|held| {
            std::mem::forget(held);
            std::process::exit(3)
        }),
        "harness-abort" => harness_sandboxes(3).map(|_held| std::process::abort()),
        "harness-ahead" => ahead::stand_by(),
        "harness-panic" => harness_panic(),
        "launch" => structure::launch(argument),
        "harness-files" => harness_files(argument),
        "named-snapshot" => snapshots::find_named(),
        "named-snapshot-forever" => snapshots::make_named_forever(),
        "snapshot-and-wait" => snapshots::make_and_wait(),
        _ => Err(anyhow::anyhow!("no role {role}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{role}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn outcome<T>(result: &io::Result<T>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => raw::name_of(error.raw_os_error().unwrap_or(0)),
    }
}

fn loopback() -> Result<()> {
    for (name, address) in [
        ("v4", SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
        ("v6", SocketAddr::from((Ipv6Addr::LOCALHOST, 0))),
    ] {
        let listener = TcpListener::bind(address);
        let connected = listener.and_then(|listener| TcpStream::connect(listener.local_addr()?));
        println!("{name} {}", outcome(&connected));
    }
    let out = UdpSocket::bind("0.0.0.0:0")?.connect("192.0.2.1:53");
    println!("out {}", outcome(&out));
    let name = std::os::unix::net::SocketAddr::from_abstract_name("orbit-e2e")?;
    let listener = UnixListener::bind_addr(&name)?;
    println!("unix {}", outcome(&UnixStream::connect_addr(&name)));
    drop(listener);
    println!("netlink {}", raw::netlink());
    Ok(())
}

/// Connects to every abstract socket there is, and names those that let it (CVE-2020-15257).
fn connect_to_abstract() -> Result<()> {
    let table = fs::read_to_string("/proc/net/unix")?;
    let names = table
        .lines()
        .filter_map(|line| Some(line.split_once(" @")?.1));
    let mut seen = 0;
    for name in names {
        seen += 1;
        let name = name.trim_end_matches('@');
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        println!("{name}: {}", outcome(&UnixStream::connect_addr(&address)));
    }
    println!("{seen} seen");
    Ok(())
}

/// `count` bytes to each output, alternating.
fn flood(count: usize) -> Result<()> {
    let line = [b'x'; 4096];
    let (mut out, mut err) = (io::stdout(), io::stderr());
    for _ in 0..count / line.len() {
        out.write_all(&line)?;
        err.write_all(&line)?;
    }
    Ok(())
}

/// Sandboxes of several kinds, all of which would live on for minutes.
fn harness_sandboxes(count: usize) -> Result<Vec<Sandbox>> {
    let scripts = [
        "sleep 600",
        "(setsid sleep 601 &) ; trap '' TERM INT HUP; sleep 600",
        "kill -STOP $$; sleep 600",
    ];
    let mut held = Vec::new();
    for script in scripts.iter().cycle().take(count) {
        held.push(View::Host.sh(script)?.start()?);
    }
    held.push(
        View::Host
            .sandbox()?
            .cmd(["cat"])
            .stdin(Stdin::Bytes(vec![0; 1 << 16]))
            .start()?,
    );
    Ok(held)
}

fn harness_sleep() -> Result<()> {
    let held = harness_sandboxes(3)?;
    println!("ready");
    io::stdout().flush()?;
    thread::sleep(Duration::from_secs(600));
    drop(held);
    bail!("nobody killed it")
}

/// Launches from several threads until somebody ends it.
fn harness_loop() -> Result<()> {
    println!("ready");
    io::stdout().flush()?;
    thread::scope(|scope| {
        for number in 0..4 {
            let view = if number == 0 { View::Image } else { View::Host };
            scope.spawn(move || {
                loop {
                    let started = view
                        .sh("(setsid sleep 600 &); echo x >/tmp/x; sleep 0.01")
                        .and_then(|sandbox| Ok(sandbox.start()?));
                    match started {
                        Ok(mut sandbox) if number % 2 == 0 => drop(sandbox.wait()),
                        Ok(sandbox) => drop(sandbox),
                        Err(error) => {
                            eprintln!("{error:#}");
                            std::process::exit(9);
                        }
                    }
                }
            });
        }
    });
    Ok(())
}

/// A test that panics while it holds a sandbox, as libtest runs it: in a thread of its own.
fn harness_panic() -> Result<()> {
    let panicked = thread::spawn(|| {
        let sandbox = Sandbox::builder()
            .cmd(["sleep", "600"])
            .start()
            .expect("it starts");
        println!("{}", sandbox.pid().expect("it runs"));
        assert!(sandbox.id().is_empty(), "as tests fail");
    })
    .join();
    if panicked.is_ok() {
        bail!("it did not panic");
    }
    // Others are none the worse for it.
    let outcome = Sandbox::builder().cmd(["echo", "on"]).run()?;
    print!("{}", outcome.stdout_text());
    Ok(())
}

/// Sandboxes with so few descriptors that some step has none left. Every one must end or be refused.
fn harness_files(argument: &str) -> Result<()> {
    let few: u64 = argument.parse().context("a number")?;
    if argument != "0" {
        raw::limit_files(few)?;
    }
    let mut held = Vec::new();
    let (mut started, mut refused) = (0, 0);
    for number in 0..few {
        // Time to make something ahead, which is to take no room from what is asked for.
        if number % 2 == 1 {
            thread::sleep(Duration::from_millis(10));
        }
        match Sandbox::builder().cmd(["sleep", "600"]).start() {
            Ok(sandbox) => {
                started += 1;
                held.push(sandbox);
            }
            Err(error) => {
                refused += 1;
                eprintln!("{error}");
            }
        }
    }
    drop(held);
    println!("started {started} refused {refused}");
    // With all of them gone there is room again.
    let outcome = Sandbox::builder().cmd(["echo", "again"]).run()?;
    print!("{}", outcome.stdout_text());
    Ok(())
}
