//! An internet for one case: two network namespaces and the wire between them.
//!
//! The case runs in the first, as if that were its host: a link, an address and a default route that leads over the
//! wire, and a name server in `/etc/resolv.conf`. A server runs in the second. No packet leaves the two.
//!
//! ```text
//! case, its sandboxes          uplink ──────────── world0   server
//! 203.0.113.2, 2001:db8:1::2                       203.0.113.1, 198.51.100.1, 2001:db8:1::1
//! ```

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::geteuid;

/// Both namespaces, and what runs in them. Dropped, nothing of them is left.
#[derive(Debug)]
pub struct World {
    inside: Guard,
    _outside: Guard,
    _server: Guard,
}

/// How the case's side is made: `$1` is a process in the other. `/dev/net/tun` is everybody's, as udev makes it.
/// Little is sent by itself, and only at first: neighbours are known, and nobody asks for routers.
const INSIDE: &str = r"
mount -t tmpfs -o mode=755 tmpfs /mnt
mknod -m 666 /mnt/tun c 10 200
mount --bind /mnt/tun /dev/net/tun
echo 'nameserver 203.0.113.1' >/mnt/resolv.conf
mount --bind /mnt/resolv.conf /etc/resolv.conf
cp /etc/hosts /mnt/hosts
echo '198.51.100.1 registry.example' >>/mnt/hosts
mount --bind /mnt/hosts /etc/hosts
ip link set lo up
ip link add uplink address 02:00:00:00:00:02 multicast off type veth peer name world0 address 02:00:00:00:00:01 multicast off netns $1
sysctl -qw net.ipv6.conf.uplink.accept_ra=0 net.ipv6.conf.uplink.router_solicitations=0 net.ipv6.conf.uplink.accept_dad=0
ip addr add 203.0.113.2/24 dev uplink
ip -6 addr add 2001:db8:1::2/64 dev uplink nodad
ip link set uplink up
ip neigh add 203.0.113.1 lladdr 02:00:00:00:00:01 dev uplink nud permanent
ip -6 neigh add 2001:db8:1::1 lladdr 02:00:00:00:00:01 dev uplink nud permanent
ip route add default via 203.0.113.1
ip -6 route add default via 2001:db8:1::1
";

const OUTSIDE: &str = r"
ip link set lo up
sysctl -qw net.ipv6.conf.world0.accept_ra=0 net.ipv6.conf.world0.router_solicitations=0 net.ipv6.conf.world0.accept_dad=0
ip addr add 198.51.100.1/32 dev lo
ip addr add 203.0.113.1/24 dev world0
ip -6 addr add 2001:db8:1::1/64 dev world0 nodad
ip link set world0 up
ip neigh add 203.0.113.2 lladdr 02:00:00:00:00:02 dev world0 nud permanent
ip -6 neigh add 2001:db8:1::2 lladdr 02:00:00:00:00:02 dev world0 nud permanent
";

impl World {
    /// Makes it, with `server` of the program `exe` running in it: that prints a line when it is ready.
    ///
    /// # Errors
    /// Where the caller is not root, and what a step wrote.
    pub fn make(exe: &Path, server: &[&str]) -> Result<Self> {
        ensure!(geteuid().is_root(), "an internet is made by root");
        let outside = Guard(holder(&["--net"])?);
        let inside = Guard(holder(&["--net", "--mount"])?);
        let number = outside.0.id().to_string();
        run(inside.0.id(), INSIDE, &number)?;
        run(outside.0.id(), OUTSIDE, "")?;
        let mut server = Guard(
            nsenter(outside.0.id())
                .arg(exe)
                .args(server)
                .stdout(Stdio::piped())
                .spawn()
                .context("start the server")?,
        );
        let output = server.0.stdout.take().context("it is piped")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        ensure!(!line.is_empty(), "the server of the world does not start");
        Ok(Self {
            inside,
            _outside: outside,
            _server: server,
        })
    }

    /// `command`, in the case's namespace, with this working directory. Its environment is set later.
    pub(crate) fn wrap(&self, command: &Command, directory: &Path) -> Command {
        let mut wrapped = nsenter(self.inside.0.id());
        wrapped
            .args(["env", "--chdir"])
            .arg(directory)
            .arg(command.get_program())
            .args(command.get_args());
        wrapped
    }
}

/// Ends its process.
#[derive(Debug)]
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that does nothing, in new namespaces.
fn holder(namespaces: &[&str]) -> Result<Child> {
    let child = Command::new("unshare")
        .args(namespaces)
        .args(["--", "sleep", "infinity"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("run unshare")?;
    let until = Instant::now() + Duration::from_secs(5);
    let network = |of: &str| fs::read_link(format!("/proc/{of}/ns/net")).ok();
    let command = format!("/proc/{}/comm", child.id());
    // It has its namespaces once it has executed what holds them.
    while fs::read_to_string(&command).is_ok_and(|name| name.trim() != "sleep") {
        if Instant::now() > until {
            bail!("no namespaces: {:?}", network("self"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(child)
}

fn nsenter(process: u32) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{process}/ns/net"));
    command.arg(format!("--mount=/proc/{process}/ns/mnt"));
    command
}

fn run(process: u32, script: &str, argument: &str) -> Result<()> {
    let output = nsenter(process)
        .args(["sh", "-euc", script, "sh", argument])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()?;
    ensure!(
        output.status.success(),
        "cannot make a world: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
