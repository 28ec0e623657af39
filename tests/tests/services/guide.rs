//! What docs/testcontainers.md says of things that it has another form for.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use orbit::Wait;
use orbit_tests::{Case, Context};

use crate::support::{View, case, has, read};

pub(crate) fn cases() -> Vec<Case> {
    vec![case("guide::other_forms_work", other_forms_work)]
}

fn other_forms_work(_: &Context) -> Result<()> {
    let sandbox = View::Image
        .sh("mkdir /www && echo page > /www/index.html && exec httpd -f -p [::]:80 -h /www")?
        .file("/etc/hosts", "127.0.0.1 localhost\n192.0.2.7 backend\n")
        .mount_str("tmpfs:/dev/shm:256M")
        .publish("[::1]:0:80")
        .wait_for(Wait::port(80))
        .start()?;
    // with_host
    has(&read(&sandbox, "cat /etc/hosts")?, &["192.0.2.7 backend"])?;
    // with_shm_size
    has(&read(&sandbox, "df -m /dev/shm")?, &[" 256 "])?;
    // get_host_port_ipv6
    let address = sandbox.addr(80);
    ensure!(address.is_ipv6(), "{address}");
    let mut stream = TcpStream::connect(address).context("by IPv6")?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    has(&answer, &["page"])
}
