//! Proves that the leak audit can fail: each kind of leak is made, seen and named, and then undone.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::{fd::AsRawFd, unix::net::UnixListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use orbit_tests::{
    LeakAudit,
    audit::{Kind, Leak, Leaks},
};

/// An audit is of the whole process: these tests run one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start() -> LeakAudit {
    LeakAudit::start([], [])
}

fn leaks_of(audit: &LeakAudit) -> Leaks {
    audit.check().expect_err("the audit saw nothing")
}

fn end(mut child: Child) {
    child.kill().expect("it runs");
    child.wait().expect("it is ours");
}

#[test]
fn nothing_is_no_leak() {
    let _alone = alone();
    start().check().unwrap();
}

#[test]
fn a_process() {
    let _alone = alone();
    let audit = start();
    let child = Command::new("sleep").arg("97").spawn().unwrap();
    let leaks = leaks_of(&audit);
    end(child);
    assert!(leaks.names(Kind::Process, "sleep 97"), "{leaks}");
    audit.check().unwrap();
}

#[test]
fn an_orphan_is_adopted_named_and_swept() {
    let _alone = alone();
    let audit = LeakAudit::adopting([], []);
    // The shell ends at once; what it started has no parent but us.
    assert!(
        Command::new("sh")
            .args(["-c", "sleep 98 &"])
            .status()
            .unwrap()
            .success()
    );
    let leaks = leaks_of(&audit);
    assert!(leaks.names(Kind::Process, "sleep 98"), "{leaks}");
    audit.sweep();
    audit.check().unwrap();
}

#[test]
fn a_zombie() {
    let _alone = alone();
    let audit = start();
    let mut child = Command::new("true").spawn().unwrap();
    let leaks = leaks_of(&audit);
    child.wait().unwrap();
    assert!(leaks.names(Kind::Zombie, "[true]"), "{leaks}");
    audit.check().unwrap();
}

#[test]
fn a_namespace() {
    let _alone = alone();
    let audit = start();
    let child = Command::new("unshare")
        .args(["--map-root-user", "--net", "sleep", "96"])
        .spawn()
        .unwrap();
    let leaks = leaks_of(&audit);
    end(child);
    assert!(leaks.names(Kind::Namespace, "net:["), "{leaks}");
    assert!(leaks.names(Kind::Namespace, "sleep 96"), "{leaks}");
}

#[test]
fn a_mount_left_or_gone() {
    let _alone = alone();
    // A mount namespace to look at, with a shell in it that mounts when told to.
    let mut shell = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = shell.stdin.take().unwrap();
    let mut output = BufReader::new(shell.stdout.take().unwrap());
    let mut tell = |command: &str| {
        writeln!(input, "{command}; echo $?").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "0\n", "{command}");
    };
    tell("true");
    let before = LeakAudit::with_mounts_of(shell.id() as i32);
    tell("mount -t tmpfs -o size=4k left-over /mnt");
    let left = leaks_of(&before);
    let between = LeakAudit::with_mounts_of(shell.id() as i32);
    tell("umount /mnt");
    let gone = leaks_of(&between);
    let after = before.check();
    end(shell);
    assert!(
        left.names(Kind::Mount, "at /mnt: tmpfs left-over"),
        "{left}"
    );
    assert!(
        gone.found
            .iter()
            .any(|leak| leak.gone && leak.name.contains("/mnt")),
        "{gone}"
    );
    after.unwrap();
}

#[test]
fn a_temporary_file_or_directory() {
    let _alone = alone();
    let watched = tempfile::tempdir().unwrap();
    let audit = LeakAudit::start([watched.path().to_owned()], []);
    fs::create_dir(watched.path().join("left-here")).unwrap();
    let shared = tempfile::Builder::new()
        .prefix("orbit-left-")
        .tempdir_in("/tmp")
        .unwrap();
    let leaks = leaks_of(&audit);
    assert!(leaks.names(Kind::TempFile, "left-here"), "{leaks}");
    assert!(leaks.names(Kind::TempFile, "/tmp/orbit-left-"), "{leaks}");
    shared.close().unwrap();
    fs::remove_dir(watched.path().join("left-here")).unwrap();
    audit.check().unwrap();
}

#[test]
fn a_lease() {
    let _alone = alone();
    let meeting = tempfile::tempdir().unwrap();
    let network = meeting.path().join("networks/left-lab");
    let audit = LeakAudit::start([], [meeting.path().to_owned()]);
    fs::create_dir_all(&network).unwrap();
    // A directory that is empty holds nothing back.
    audit.check().unwrap();
    fs::write(network.join("10.9.0.2"), "97 db\n").unwrap();
    let leaks = leaks_of(&audit);
    assert!(leaks.names(Kind::Lease, "left-lab/10.9.0.2"), "{leaks}");
    fs::remove_dir_all(&network).unwrap();
    audit.check().unwrap();
}

/// In a network of its own, where it is root: these are made by root alone.
const INSIDE: &str = "ORBIT_TESTS_AUDIT_INSIDE";

#[test]
fn a_link_and_a_rule() {
    let _alone = alone();
    if std::env::var_os(INSIDE).is_none() {
        let output = Command::new("unshare")
            .args(["--map-root-user", "--net"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "a_link_and_a_rule"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let run = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let status = Command::new(words[0]).args(&words[1..]).status();
        assert!(status.unwrap().success(), "{line}");
    };
    let audit = start();
    run("ip link add left0 type veth peer name left1");
    run("nft add table inet left-over");
    let leaks = leaks_of(&audit);
    assert!(leaks.names(Kind::Link, "left0"), "{leaks}");
    assert!(leaks.names(Kind::NftRule, "left-over"), "{leaks}");
    let between = start();
    run("ip link del left0");
    run("nft delete table inet left-over");
    let gone = leaks_of(&between);
    for kind in [Kind::Link, Kind::NftRule] {
        let is_gone = gone.found.iter().any(|leak| leak.gone && leak.kind == kind);
        assert!(is_gone, "{gone}");
    }
    audit.check().unwrap();
}

#[test]
fn a_cgroup() {
    let _alone = alone();
    // Of whichever hierarchy may be written to: as root, where there is one.
    let mut groups = vec![PathBuf::from("/sys/fs/cgroup")];
    groups.extend(
        fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path()),
    );
    let audit = start();
    let mut groups = groups
        .into_iter()
        .map(|group| group.join("orbit-left-over"));
    let Some(made) = groups.find(|group| fs::create_dir(group).is_ok()) else {
        eprintln!("no control group can be made here");
        return;
    };
    let leaks = leaks_of(&audit);
    fs::remove_dir(&made).unwrap();
    assert!(leaks.names(Kind::Cgroup, "orbit-left-over"), "{leaks}");
    audit.check().unwrap();
}

#[test]
fn an_open_file() {
    let _alone = alone();
    let audit = start();
    let file = File::open("/etc/passwd").unwrap();
    let leaks = leaks_of(&audit);
    assert!(
        leaks.names(
            Kind::OpenFile,
            &format!("{} -> /etc/passwd", file.as_raw_fd())
        ),
        "{leaks}"
    );
    drop(file);
    audit.check().unwrap();
}

#[test]
fn a_process_that_hops_from_pid_to_pid() {
    let _alone = alone();
    let audit = LeakAudit::adopting([], []);
    let script = "hop() { sleep 0.1; [ $1 -gt 0 ] && hop $(($1 - 1)) & }; hop 40";
    assert!(
        Command::new("sh")
            .args(["-c", script])
            .status()
            .expect("sh")
            .success()
    );
    let leaks = leaks_of(&audit);
    while audit.check().is_err() {
        audit.sweep();
    }
    // Between two pids, what was seen of it is the one that has just ended.
    let is_of_it = |leak: &Leak| matches!(leak.kind, Kind::Process | Kind::Zombie);
    assert!(leaks.found.iter().any(is_of_it), "{leaks}");
}

#[test]
fn a_listening_port() {
    let _alone = alone();
    let audit = start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let leaks = leaks_of(&audit);
    assert!(
        leaks.names(
            Kind::ListeningPort,
            &format!("tcp {}", listener.local_addr().unwrap())
        ),
        "{leaks}"
    );
    drop(listener);
    audit.check().unwrap();
}

#[test]
fn a_listening_unix_socket() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let audit = start();
    let listener = UnixListener::bind(&path).unwrap();
    let leaks = leaks_of(&audit);
    assert!(
        leaks.names(Kind::ListeningPort, &format!("unix {}", path.display())),
        "{leaks}"
    );
    drop(listener);
    audit.check().unwrap();
}

#[test]
fn what_goes_away_in_time_is_no_leak() {
    let _alone = alone();
    let audit = start();
    let mut child = Command::new("sleep").arg("0.3").spawn().unwrap();
    let waiter = std::thread::spawn(move || child.wait());
    audit.check().unwrap();
    waiter.join().unwrap().unwrap();
}
