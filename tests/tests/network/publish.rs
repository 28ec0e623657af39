//! `expose`, `publish`, `connect`.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use orbit::{NetworkMode, Protocol, Sandbox};
use orbit_tests::{Case, Context};

use crate::support::{await_port, exchange, raise_descriptor_limit, service};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "publish::an_exposed_port_is_reached",
            an_exposed_port_is_reached,
        ),
        Case::new(
            "publish::ports_are_published_as_asked",
            ports_are_published_as_asked,
        ),
        Case::new(
            "publish::a_service_on_ipv6_alone_is_reached",
            a_service_on_ipv6_alone_is_reached,
        ),
        Case::new(
            "publish::datagrams_find_their_way_back",
            datagrams_find_their_way_back,
        ),
        Case::new(
            "publish::a_taken_port_names_who_has_it",
            a_taken_port_names_who_has_it,
        ),
        Case::new(
            "publish::the_address_of_a_port_that_is_not_exposed_is_a_panic",
            not_exposed,
        ),
        Case::new(
            "publish::nobody_listening_is_a_reset",
            nobody_listening_is_a_reset,
        ),
        Case::new(
            "publish::a_slow_reader_holds_the_writer_back",
            a_slow_reader_holds_the_writer_back,
        ),
        Case::new(
            "publish::two_thousand_connections_at_once",
            two_thousand_connections_at_once,
        ),
        Case::new(
            "publish::a_port_is_free_when_its_sandbox_is_gone",
            a_port_is_free_when_its_sandbox_is_gone,
        ),
        Case::new(
            "publish::bad_ports_are_told_before_anything_is_made",
            bad_ports,
        ),
        Case::new(
            "publish::cargo_orbit_run_publishes",
            cargo_orbit_run_publishes,
        ),
        Case::new(
            "publish::the_host_network_needs_no_forwarding",
            the_host_network,
        ),
    ]
}

fn an_exposed_port_is_reached(_: &Context) -> Result<()> {
    let sandbox = service(&["serve-echo", "0.0.0.0:80"])?.expose(80).start()?;
    let address = sandbox.addr(80);
    ensure!(
        address.ip() == Ipv4Addr::LOCALHOST && address.port() != 80,
        "{address}"
    );
    // It accepts at once, and the service once it listens.
    drop(TcpStream::connect(address)?);
    let direct = exchange(await_port(&sandbox, 80)?, b"direct")?;
    ensure!(direct == b"direct");
    let forwarded = exchange(TcpStream::connect(address)?, b"forwarded")?;
    ensure!(forwarded == b"forwarded");
    Ok(())
}

fn ports_are_published_as_asked(_: &Context) -> Result<()> {
    let (first, second) = (free_ports(3)?, free_ports(1)?);
    let sandbox = service(&["serve-echo", "[::]:7000"])?
        .publish((second, 7000))
        .publish(&format!("{first}-{}:6999-7001", first + 2))
        .publish(&format!("[::1]:{second}:7000/tcp"))
        .publish("0.0.0.0:0:7000")
        .start()?;
    await_port(&sandbox, 7000)?;
    ensure!(sandbox.ports().len() == 6, "{:?}", sandbox.ports());
    let chosen = sandbox.ports()[5].host.port();
    for address in [
        (Ipv4Addr::LOCALHOST, second).into(),
        (Ipv4Addr::LOCALHOST, first + 1).into(),
        (Ipv4Addr::new(127, 0, 0, 9), chosen).into(),
        std::net::SocketAddr::from((Ipv6Addr::LOCALHOST, second)),
    ] {
        let stream = TcpStream::connect(address).with_context(|| address.to_string())?;
        ensure!(exchange(stream, b"x")? == b"x", "{address}");
    }
    ensure!(sandbox.addr(7000) == (Ipv4Addr::LOCALHOST, second).into());
    Ok(())
}

/// The first of so many ports that are free now.
fn free_ports(count: u16) -> Result<u16> {
    for _ in 0..50 {
        let first = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if first
            .checked_add(count)
            .is_some_and(|end| (first..end).all(free))
        {
            return Ok(first);
        }
    }
    bail!("no {count} free ports in a row");
}

fn a_service_on_ipv6_alone_is_reached(_: &Context) -> Result<()> {
    let sandbox = service(&["serve-echo", "[::1]:80"])?.expose(80).start()?;
    ensure!(exchange(await_port(&sandbox, 80)?, b"six")? == b"six");
    ensure!(exchange(TcpStream::connect(sandbox.addr(80))?, b"six")? == b"six");
    Ok(())
}

fn datagrams_find_their_way_back(_: &Context) -> Result<()> {
    for at in ["127.0.0.1:53", "[::1]:53"] {
        let sandbox = service(&["serve-udp-echo", at])?
            .publish("0:53/udp")
            .start()?;
        let port = sandbox.ports()[0];
        ensure!(port.protocol == Protocol::Udp);
        let clients: Vec<UdpSocket> = (0..50)
            .map(|_| {
                let socket = UdpSocket::bind("127.0.0.1:0")?;
                socket.connect(port.host)?;
                socket.set_read_timeout(Some(Duration::from_millis(50)))?;
                Ok(socket)
            })
            .collect::<Result<_>>()?;
        let until = Instant::now() + Duration::from_secs(20);
        for (number, client) in clients.iter().enumerate() {
            let text = format!("{at} {number} {}", "x".repeat(number * 20));
            let mut buffer = [0; 2048];
            // Datagrams are lost until the service listens; each client's answer is its own.
            loop {
                client.send(text.as_bytes())?;
                match client.recv(&mut buffer) {
                    Ok(count) => {
                        ensure!(&buffer[..count] == text.as_bytes(), "{text}");
                        break;
                    }
                    Err(_) if Instant::now() < until => {}
                    Err(error) => bail!("{text}: {error}"),
                }
            }
        }
        // The largest there is, and bursts that fill a batch.
        let client = &clients[0];
        client.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut buffer = vec![0; 65536];
        while client.set_nonblocking(true).is_ok() && client.recv(&mut buffer).is_ok() {}
        client.set_nonblocking(false)?;
        client.send(&vec![7; 60000])?;
        ensure!(client.recv(&mut buffer)? == 60000);
        for number in 0..100u8 {
            client.send(&[number; 10])?;
        }
        for number in 0..100u8 {
            ensure!(
                client.recv(&mut buffer)? == 10 && buffer[0] == number,
                "order"
            );
        }
    }
    Ok(())
}

fn a_taken_port_names_who_has_it(context: &Context) -> Result<()> {
    let audit = context.audit();
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port();
    let twice = Sandbox::builder().cmd(["true"]).publish((port, 80)).start();
    let Err(error) = twice else {
        bail!("port {port} was had twice")
    };
    ensure!(error.is_port_taken(), "{error}");
    let expected = format!(
        "cannot publish port 80/tcp of the sandbox at 127.0.0.1:{port}: the port is taken: this process itself"
    );
    let text = error.to_string();
    ensure!(
        text.starts_with(&expected) && text.contains(&format!("pid {}", std::process::id())),
        "{text}"
    );
    drop(taken);
    let taken = UdpSocket::bind("[::1]:0")?;
    let port = taken.local_addr()?.port();
    let udp = format!("[::1]:{port}:53/udp");
    let Err(error) = Sandbox::builder().cmd(["true"]).publish(&udp).start() else {
        bail!("port {port} was had twice")
    };
    let expected = format!("port 53/udp of the sandbox at [::1]:{port}: the port is taken: this");
    ensure!(
        error.is_port_taken() && error.to_string().contains(&expected),
        "{error}"
    );
    drop(taken);
    Ok(audit.check()?)
}

/// As indexing is: the mistake is in the test itself, and is said with what to do.
fn not_exposed(_: &Context) -> Result<()> {
    let sandbox = Sandbox::builder().cmd(["sleep", "60"]).expose(80).start()?;
    let asked = std::panic::AssertUnwindSafe(|| sandbox.addr(81));
    let Err(panic) = std::panic::catch_unwind(asked) else {
        bail!("port 81 has an address")
    };
    let text = panic.downcast_ref::<String>().context("a text")?;
    ensure!(
        text == "port 81 of this sandbox is not exposed: add `.expose(81)` to its builder",
        "{text}"
    );
    ensure!(sandbox.ports().iter().all(|port| port.port != 81));
    Ok(())
}

fn nobody_listening_is_a_reset(_: &Context) -> Result<()> {
    let sandbox = Sandbox::builder().cmd(["sleep", "60"]).expose(80).start()?;
    let Err(error) = sandbox.connect(80) else {
        bail!("somebody listens")
    };
    ensure!(error.is_connection_refused(), "{error}");
    let mut stream = TcpStream::connect(sandbox.addr(80))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    match stream.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => bail!("{other:?}"),
    }
}

fn a_slow_reader_holds_the_writer_back(_: &Context) -> Result<()> {
    const MOST_IN_BETWEEN: usize = 64 << 20;
    let sandbox = service(&["serve-count", "127.0.0.1:80", "1500"])?
        .expose(80)
        .start()?;
    // Its queue takes connections while it sleeps.
    await_port(&sandbox, 80)?;
    let mut stream = TcpStream::connect(sandbox.addr(80))?;
    stream.set_write_timeout(Some(Duration::from_millis(300)))?;
    let (block, mut sent) = (vec![0; 64 * 1024], 0);
    while let Ok(count) = stream.write(&block) {
        sent += count;
        ensure!(sent < MOST_IN_BETWEEN, "{sent} bytes went nowhere");
    }
    println!("held back after {} KiB", sent / 1024);
    stream.set_write_timeout(None)?;
    for _ in 0..100 {
        stream.write_all(&block)?;
        sent += block.len();
    }
    let answer = exchange(stream, b"")?;
    ensure!(
        answer == sent.to_string().as_bytes(),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}

fn two_thousand_connections_at_once(_: &Context) -> Result<()> {
    const CONNECTIONS: usize = 2000;
    raise_descriptor_limit()?;
    let sandbox = service(&["serve-echo", "127.0.0.1:80"])?
        .expose(80)
        .start()?;
    await_port(&sandbox, 80)?;
    let started = Instant::now();
    let mut streams = (0..CONNECTIONS)
        .map(|_| {
            let stream = TcpStream::connect(sandbox.addr(80))?;
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            Ok(stream)
        })
        .collect::<Result<Vec<_>>>()?;
    for (number, stream) in streams.iter_mut().enumerate() {
        write!(stream, "{number:08}")?;
    }
    for (number, stream) in streams.iter_mut().enumerate().rev() {
        let mut answer = [0; 8];
        stream
            .read_exact(&mut answer)
            .with_context(|| format!("connection {number}"))?;
        ensure!(
            answer == format!("{number:08}").as_bytes(),
            "connection {number}"
        );
    }
    println!("{CONNECTIONS} connections in {:?}", started.elapsed());
    Ok(())
}

fn a_port_is_free_when_its_sandbox_is_gone(_: &Context) -> Result<()> {
    let port = free_ports(1)?;
    for round in 0..50 {
        let mut sandbox = Sandbox::builder()
            .cmd(["true"])
            .publish((port, 80))
            .start()
            .with_context(|| format!("round {round}"))?;
        let _open = TcpStream::connect(sandbox.addr(80))?;
        if round % 2 == 0 {
            sandbox.wait()?;
            drop(TcpListener::bind(("127.0.0.1", port)).context("after wait")?);
        }
    }
    Ok(())
}

fn bad_ports(context: &Context) -> Result<()> {
    let audit = context.audit();
    let started = Sandbox::builder()
        .cmd(["true"])
        .publish("8080:0")
        .publish("70000:80")
        .publish("8000-8002:1-2")
        .publish("8080:80")
        .publish((8080, 81))
        .expose(0)
        .start();
    let Err(error) = started else {
        bail!("these ports are wrong")
    };
    ensure!(error.is_spec());
    let text = error.to_string();
    // As dual-stack sockets they could never both be had.
    let both = Sandbox::builder()
        .cmd(["true"])
        .publish("0.0.0.0:8080:80")
        .publish("[::]:8080:80")
        .start();
    match both {
        Ok(_) => bail!("port 8080 was had twice"),
        Err(error) => ensure!(
            error.is_spec() && error.to_string().contains("is published twice"),
            "{error}"
        ),
    }
    for part in [
        "publish `8080:0`: a sandbox has no port 0",
        "publish `70000:80`: `70000` is no port",
        "publish `8000-8002:1-2`: 3 ports of the host",
        "publish `127.0.0.1:8080/tcp`: this port of the host is published twice",
        "expose `0`: a port is a number",
    ] {
        ensure!(text.contains(part), "no {part:?} in {text}");
    }
    Ok(audit.check()?)
}

fn cargo_orbit_run_publishes(context: &Context) -> Result<()> {
    let (first, second) = (free_ports(1)?, free_ports(1)?);
    let ports = format!("{first}:80,127.0.0.1:{second}:80/tcp");
    let run = context.orbit("run")?;
    let served = thread::spawn(move || {
        run.args([
            "--image",
            "host",
            "--timeout",
            "10s",
            "--publish",
            &ports,
            "--",
        ])
        .args([
            "busybox",
            "nc",
            "-l",
            "-p",
            "80",
            "-e",
            "echo",
            "from inside",
        ])
        .run()
    });
    let until = Instant::now() + Duration::from_secs(10);
    let answer = loop {
        let answer = TcpStream::connect(("127.0.0.1", second)).map_err(Into::into);
        match answer.and_then(|stream| exchange(stream, b"")) {
            Ok(answer) if !answer.is_empty() => break answer,
            _ if Instant::now() > until => bail!("no answer"),
            _ => thread::sleep(Duration::from_millis(5)),
        }
    };
    ensure!(
        answer == b"from inside\n",
        "{}",
        String::from_utf8_lossy(&answer)
    );
    let finished = served.join().map_err(|_| anyhow::anyhow!("panicked"))??;
    finished.success()?;
    Ok(())
}

fn the_host_network(_: &Context) -> Result<()> {
    let port = free_ports(1)?;
    let sandbox = service(&["serve-echo", &format!("127.0.0.1:{port}")])?
        .network(NetworkMode::Host)
        .expose(port)
        .start()?;
    ensure!(sandbox.addr(port).port() == port);
    ensure!(exchange(await_port(&sandbox, port)?, b"host")? == b"host");
    Ok(())
}
