//! The host view: the host's files behave for the program as they do for the caller, and nothing it writes is
//! kept.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    thread,
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use orbit::{__private::share_foreign, Mount, NetworkMode, Sandbox};
use orbit_tests::{Case, Context, Skip, Who};

use crate::kit::{View, printed};

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("host_view::{name}"), run).deadline(Duration::from_secs(20))
    };
    vec![
        case("files_are_whose_they_are", files_are_whose_they_are),
        case(
            "a_directory_of_the_host_can_be_moved_and_removed",
            a_directory_of_the_host_can_be_moved_and_removed,
        ),
        case("permissions_hold", permissions_hold).who(Who::ROOTLESS),
        case(
            "what_sandboxes_share_takes_nothing",
            what_sandboxes_share_takes_nothing,
        )
        .who(&[Who::User]),
        case(
            "what_is_shared_anew_brings_no_network",
            what_is_shared_anew_brings_no_network,
        )
        .who(&[Who::User]),
        case("roots_writes_are_thrown_away", roots_writes_are_thrown_away).who(&[Who::Root]),
        case(
            "the_working_directory_is_there_to_be_written",
            the_working_directory_is_there_to_be_written,
        ),
        case("temporary_files_are_private", temporary_files_are_private),
        case("home_is_empty_and_private", home_is_empty_and_private),
        case("homes_and_run_are_hidden", homes_and_run_are_hidden),
        case(
            "what_is_hidden_stays_so_when_it_is_made_again",
            what_is_hidden_stays_so_when_it_is_made_again,
        ),
        case(
            "the_root_shows_directories_and_links",
            the_root_shows_directories_and_links,
        ),
        case(
            "a_secret_of_the_host_stays_one",
            a_secret_of_the_host_stays_one,
        )
        .who(Who::ROOTLESS),
        case(
            "a_socket_in_the_workspace_is_no_door",
            a_socket_in_the_workspace_is_no_door,
        ),
        case(
            "what_is_shown_and_hidden_is_what_was_asked",
            what_is_shown_and_hidden_is_what_was_asked,
        ),
        case("what_is_in_another_is_hidden", what_is_in_another_is_hidden),
        case(
            "what_may_not_be_entered_can_be_hidden",
            what_may_not_be_entered_can_be_hidden,
        ),
        case(
            "two_sandboxes_do_not_see_each_other",
            two_sandboxes_do_not_see_each_other,
        ),
    ]
}

/// What hides the host's is not in the sandbox's own hands.
fn what_is_hidden_stays_so_when_it_is_made_again(_: &Context) -> Result<()> {
    let script = "for d in /home /root /run /tmp; do ls -A $d; rm -rf $d 2>/dev/null; mkdir -p $d 2>/dev/null; \
                  ls -A $d; mv $d $d.moved 2>/dev/null; mkdir -p $d 2>/dev/null; ls -A $d $d.moved 2>/dev/null; done | \
                  grep -v -e : -e '^$' -e '^lock$' | sort -u";
    let found = View::Host.read(script)?;
    // What is shown below a home directory was asked for: where the working directory lies, and the program.
    let home = std::env::var("HOME").unwrap_or_default();
    for entry in fs::read_dir("/home")?
        .chain(fs::read_dir("/run")?)
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_shown = home.contains(&name) || name == "lock";
        ensure!(
            is_shown || !found.lines().any(|line| line == name),
            "{name} is seen:\n{found}"
        );
    }
    Ok(())
}

/// A swap file and a socket in `/` are no part of a system's files.
fn the_root_shows_directories_and_links(_: &Context) -> Result<()> {
    let found = View::Host.read("for f in /* /.*; do test -d $f || test -L $f || echo $f; done")?;
    let found: Vec<&str> = found.lines().filter(|it| *it != "/.*").collect();
    ensure!(found.is_empty(), "{found:?}");
    // And what is hidden there is not told as removed.
    let changes = Sandbox::builder()
        .cmd(["sh", "-c", "echo x > /home/x 2>/dev/null; true"])
        .record_changes(true)
        .run()?
        .changes
        .unwrap_or_default();
    let told: Vec<String> = changes.lasting().map(ToString::to_string).collect();
    ensure!(
        told.iter().all(|line| line == "A /home/x"),
        "more than was written: {told:?}"
    );
    Ok(())
}

fn files_are_whose_they_are(context: &Context) -> Result<()> {
    let user = context.who.user()?;
    fs::write(context.work().join("mine"), "")?;
    let found = View::Host
        .read("stat -c %u:%g mine . $HOME; id -u; id -g; touch new; stat -c %u:%g new")?;
    let own = format!("{}:{}", user.uid, user.gid);
    let expected = format!("{own}\n{own}\n{own}\n{}\n{}\n{own}\n", user.uid, user.gid);
    ensure!(found == expected, "{found}\nand not\n{expected}");
    // The account has its name inside.
    let name = View::Host.read("id -un")?;
    ensure!(name.trim() == user.name, "{name}");
    Ok(())
}

fn permissions_hold(context: &Context) -> Result<()> {
    // EACCES as outside; EROFS would send a program another way.
    let script = "for f in /etc/orbit-e2e /usr/orbit-e2e /usr/bin/orbit-e2e /orbit-e2e /var/orbit-e2e; do \
                  (: >$f) 2>&1; done; (: >>/etc/passwd) 2>&1; rm /etc/passwd 2>&1; chmod 777 /etc/passwd 2>&1; \
                  (: >/root/x) 2>&1; ls /root 2>&1; true";
    let found = View::Host.read(script)?;
    if context.who == Who::User {
        for line in found.lines() {
            ensure!(
                line.contains("ermission denied") || line.contains("not permitted"),
                "not refused as on the host: {line}\n{found}"
            );
        }
        ensure!(found.lines().count() == 10, "{found}");
    }
    ensure!(
        !found.contains("ead-only"),
        "EROFS where the host says EACCES: {found}"
    );
    Ok(())
}

/// Directories in which the caller has nothing are the same for all sandboxes of `cargo orbit test`: nobody hears of that,
/// and nobody can write there, not even this process through the supervisor.
fn what_sandboxes_share_takes_nothing(_: &Context) -> Result<()> {
    let script = "for d in /etc /usr; do stat -c '%n %a %u %g' $d; mkdir $d/orbit-e2e 2>&1; chmod 777 $d 2>&1; done; \
                  (: >>/etc/passwd) 2>&1; rm /etc/passwd /usr/bin/env 2>&1; ls -A /etc /usr; cat /etc/passwd";
    let own = View::Host.read(script)?;
    let plan = share_foreign(View::Host.sh(script)?).plan()?;
    ensure!(
        plan.contains("mount overlay /usr lower=/usr shared"),
        "{plan}"
    );
    for _ in 0..2 {
        let shared = printed(share_foreign(View::Host.sh(script)?))?;
        ensure!(shared == own, "{shared}\nand not\n{own}");
    }
    let sandbox = share_foreign(View::Host.sh("exec sleep 1000")?).start()?;
    let Err(error) = sandbox.write_file("/usr/orbit-e2e", "") else {
        bail!("it was written");
    };
    ensure!(error.to_string().contains("ead-only"), "{error}");
    drop(sandbox);
    ensure!(View::Host.read(script)? == own);
    Ok(())
}

/// With new layers an init that stands by ends, whose network another sandbox may have: not one that asked for the host's.
fn what_is_shared_anew_brings_no_network(_: &Context) -> Result<()> {
    const WHICH: &str = "readlink /proc/self/ns/net";

    let hosts = fs::read_link("/proc/self/ns/net")?;
    for round in 0..3 {
        let asked = share_foreign(View::Host.sh(WHICH)?).network(NetworkMode::Host);
        let found = printed(asked)?;
        ensure!(
            found.trim_end() == hosts.to_string_lossy(),
            "{found} in round {round}"
        );
        for _ in 0..3 {
            let own = printed(share_foreign(View::Host.sh(WHICH)?))?;
            ensure!(own != found, "{own} in round {round}");
        }
        // Longer than layers are shared.
        thread::sleep(Duration::from_millis(1100));
    }
    Ok(())
}

fn roots_writes_are_thrown_away(_: &Context) -> Result<()> {
    let before = fs::read("/etc/passwd")?;
    let script = "echo x >/etc/orbit-e2e && echo y >>/etc/passwd && rm /usr/bin/env && mkdir /usr/orbit-e2e && \
                  chmod 700 /etc && mv /etc/hosts /etc/hosts.old && tail -1 /etc/passwd";
    ensure!(View::Host.read(script)? == "y\n");
    ensure!(fs::read("/etc/passwd")? == before, "/etc/passwd changed");
    for path in ["/etc/orbit-e2e", "/usr/orbit-e2e", "/etc/hosts.old"] {
        ensure!(
            fs::symlink_metadata(path).is_err(),
            "{path} was made on the host"
        );
    }
    ensure!(
        fs::metadata("/usr/bin/env").is_ok(),
        "/usr/bin/env is gone from the host"
    );
    ensure!(fs::metadata("/etc")?.permissions().mode() & 0o777 == 0o755);
    Ok(())
}

fn the_working_directory_is_there_to_be_written(context: &Context) -> Result<()> {
    let work = context.work();
    fs::write(work.join("old"), "old\n")?;
    fs::write(work.join("gone"), "")?;
    fs::create_dir(work.join("dir"))?;
    fs::write(work.join("dir/deep"), "deep\n")?;
    std::os::unix::fs::symlink("old", work.join("link"))?;
    let script = "cat link dir/deep && echo new >new && echo changed >old && rm gone && \
                  cat new old dir/deep && ln old hard && stat -c %h hard && ls";
    let found = View::Host.read(script)?;
    ensure!(
        found == "old\ndeep\nnew\nchanged\ndeep\n2\ndir\nhard\nlink\nnew\nold\n",
        "{found}"
    );
    let names: Vec<_> = fs::read_dir(&work)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    ensure!(
        names.len() == 4 && fs::read_to_string(work.join("old"))? == "old\n",
        "{names:?}"
    );
    // A fresh one each time.
    ensure!(View::Host.read("cat old; ls new 2>/dev/null || echo none")? == "old\nnone\n");
    Ok(())
}

/// To hide a directory that is there on the host, overlayfs marks it with an extended attribute of the user.
fn a_directory_of_the_host_can_be_moved_and_removed(context: &Context) -> Result<()> {
    if !tmpfs_takes_user_attributes()? {
        return Err(Skip::because(
            "filesystems in memory take no user attributes before Linux 6.6, and overlayfs answers EIO",
        ));
    }
    for name in ["moved", "removed"] {
        fs::create_dir(context.work().join(name))?;
        fs::write(context.work().join(name).join("deep"), "deep\n")?;
    }
    let found = View::Host.read("mv moved other && rm -r removed && cat other/deep && ls")?;
    ensure!(found == "deep\nother\n", "{found}");
    ensure!(fs::exists(context.work().join("moved/deep"))?);
    Ok(())
}

fn tmpfs_takes_user_attributes() -> Result<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split('.').map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        bail!("a kernel of release {release}");
    };
    Ok((major, minor) >= (6, 6))
}

fn temporary_files_are_private(context: &Context) -> Result<()> {
    fs::write(context.tmp().join("host"), "")?;
    let shared = tempfile::Builder::new()
        .prefix("oe-host-")
        .tempfile_in("/tmp")?;
    let path = shared.path().display();
    let script = format!(
        "[ ! -e {path} ] && for d in /tmp /var/tmp /dev/shm /run/lock; do stat -c %a $d; echo x >$d/orbit-inside; done; \
         ls -A /tmp"
    );
    let found = View::Host.read(&script)?;
    ensure!(found == "1777\n1777\n1777\n1777\norbit-inside\n", "{found}");
    for place in ["/tmp", "/var/tmp", "/dev/shm", "/run/lock"] {
        ensure!(
            !fs::exists(format!("{place}/orbit-inside"))?,
            "{place} is the host's"
        );
    }
    fs::remove_file(context.tmp().join("host"))?;
    Ok(())
}

fn home_is_empty_and_private(context: &Context) -> Result<()> {
    let home = context.home();
    fs::write(home.join(".netrc"), "secret")?;
    let found =
        View::Host.read("cd && pwd && ls -A && stat -c %a . && echo x >.cache && cat .cache")?;
    ensure!(found == format!("{}\n700\nx\n", home.display()), "{found}");
    ensure!(!home.join(".cache").exists());
    let elsewhere = View::Host
        .sh("cd && pwd && echo x >y && ls -A")?
        .home("/home/other");
    ensure!(printed(elsewhere)? == "/home/other\ny\n");
    fs::remove_file(home.join(".netrc"))?;
    Ok(())
}

fn homes_and_run_are_hidden(context: &Context) -> Result<()> {
    // The case's own directory lies in /var/tmp: nothing of any home is asked for.
    let found = View::Host.read("ls -A /home /root /run 2>&1; true")?;
    let unexpected: Vec<&str> = found
        .lines()
        .filter(|line| !["", "/home:", "/root:", "/run:", "lock"].contains(line))
        .filter(|line| !line.contains("/root") || !line.contains("ermission denied"))
        .collect();
    ensure!(unexpected.is_empty(), "{}: {unexpected:?}", context.who);
    let found = View::Host.read("ls -A /var/run/ /var/lock/; ls -A /mnt 2>/dev/null | head -0")?;
    ensure!(
        !found.contains(".sock") && !found.contains("dbus"),
        "{found}"
    );
    Ok(())
}

fn a_secret_of_the_host_stays_one(_: &Context) -> Result<()> {
    let found = View::Host.read("cat /etc/shadow /etc/sudoers 2>/dev/null; true")?;
    ensure!(found.is_empty(), "it reads what its caller may not");
    Ok(())
}

fn a_socket_in_the_workspace_is_no_door(context: &Context) -> Result<()> {
    let path = context.work().join("s");
    let listener = UnixListener::bind(&path)?;
    let role = format!("connect {}", path.display());
    let found = printed(View::Host.role(&role)?)?;
    ensure!(found == "ECONNREFUSED\n", "over the workspace: {found}");
    // Bound on purpose, it is one: the payload's own try can succeed.
    let bound = View::Host
        .role(&role)?
        .mount(Mount::bind(context.work(), context.work()));
    let found = printed(bound)?;
    ensure!(found == "ok\n", "bound: {found}");
    drop(listener);
    Ok(())
}

fn what_is_shown_and_hidden_is_what_was_asked(context: &Context) -> Result<()> {
    let (shown, fixed) = (context.home().join("shown"), context.home().join("fixed"));
    for directory in [&shown, &fixed] {
        fs::create_dir(directory)?;
        fs::write(directory.join("file"), "here\n")?;
        fs::write(directory.join("secret"), "secret\n")?;
    }
    fs::write(context.home().join("beside"), "")?;
    let script = format!(
        "cd {0} && cat file && echo x >new && cat secret; cd {1} && cat file; (echo x >new) 2>&1 | grep -o 'ead-only'; \
         cat secret; ls -A {2}",
        shown.display(),
        fixed.display(),
        context.home().display()
    );
    let sandbox = View::Host
        .sh(&script)?
        .host_path(&shown)
        .host_path_read_only(&fixed)
        .hide(shown.join("secret"))
        .hide(fixed.join("secret"));
    let found = printed(sandbox)?;
    ensure!(found == "here\nhere\nead-only\nfixed\nshown\n", "{found}");
    ensure!(!shown.join("new").exists() && !fixed.join("new").exists());
    Ok(())
}

/// In any order: what is hidden may lie in what is hidden after it.
fn what_is_in_another_is_hidden(context: &Context) -> Result<()> {
    let shown = context.home().join("nested");
    for directory in ["a/b", "c/d"] {
        fs::create_dir_all(shown.join(directory))?;
        fs::write(shown.join(directory).join("secret"), "secret\n")?;
    }
    let script = format!("find {0}/a {0}/c -type f; ls {0}", shown.display());
    let sandbox = ["a/b", "a", "c/d", "c"]
        .into_iter()
        .fold(View::Host.sh(&script)?.host_path(&shown), |sandbox, it| {
            sandbox.hide(shown.join(it))
        });
    let found = printed(sandbox)?;
    ensure!(found == "a\nc\n", "{found}");
    Ok(())
}

/// A directory of somebody else's, who has no id in here.
fn what_may_not_be_entered_can_be_hidden(_: &Context) -> Result<()> {
    let closed = [
        "/etc/ssl/private",
        "/var/cache/apt/archives/partial",
        "/var/lib/private",
    ];
    let is_closed = |path: &&str| {
        fs::metadata(path).is_ok_and(|it| it.is_dir() && it.permissions().mode() & 0o001 == 0)
    };
    let closed: Vec<_> = closed.into_iter().filter(is_closed).collect();
    if closed.is_empty() {
        return Err(Skip::because(
            "this machine has no directory of a package that nobody else may enter",
        ));
    }
    for path in closed {
        let script = format!("ls -A {path} && stat -c %a {path}");
        let hidden = printed(View::Host.sh(&script)?.hide(path))?;
        ensure!(hidden == "755\n", "{path}: {hidden}");
        let tmpfs = View::Host
            .sh(&script)?
            .mount_str(&format!("tmpfs:{path}:1M"));
        let covered = printed(tmpfs)?;
        ensure!(covered.lines().count() == 1, "{path}: {covered}");
    }
    Ok(())
}

fn two_sandboxes_do_not_see_each_other(_: &Context) -> Result<()> {
    let mut one = Sandbox::builder()
        .cmd([
            "sh",
            "-c",
            "echo x >/tmp/one; echo x >/dev/shm/one; exec sleep 60",
        ])
        .start()?;
    thread::sleep(Duration::from_millis(100));
    let found =
        View::Host.read("ls -A /tmp /dev/shm; cat /proc/*/comm | sort | uniq | tr '\\n' ' '")?;
    ensure!(
        !found.contains("one") && !found.contains("sleep"),
        "{found}"
    );
    one.kill();
    one.wait()?;
    Ok(())
}
