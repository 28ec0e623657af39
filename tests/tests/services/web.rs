//! Web servers whose processes have several users, by the client that people use: nginx, whose workers are www-data, and
//! haproxy, whose worker gives up root and locks itself in.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use orbit::{Sandbox, SandboxBuilder, Status, Wait};
use orbit_tests::{Case, Context, Who, images};

use crate::support::{case, has, read, until};

pub(crate) fn cases() -> Vec<Case> {
    let several = |name, run| case(name, run).who(Who::RANGED);
    vec![
        several("web::nginx_serves_pages", nginx_serves_pages),
        several("web::nginx_ends_gracefully", nginx_ends_gracefully),
        several(
            "web::workers_of_nginx_are_another_user",
            workers_of_nginx_are_another_user,
        ),
        several(
            "web::a_worker_that_drops_its_privileges",
            a_worker_that_drops_its_privileges,
        ),
        case("web::one_id_is_not_enough", one_id_is_not_enough).who(&[Who::Single]),
    ]
}

fn nginx() -> Result<SandboxBuilder> {
    Ok(Sandbox::builder()
        .image(&images::reference("nginx")?)
        .expose(80)
        .wait_for(Wait::http("/").on_port(80).status(200)))
}

fn haproxy() -> Result<SandboxBuilder> {
    Ok(Sandbox::builder()
        .image(&images::reference("haproxy")?)
        .expose(8080)
        .wait_for(Wait::http("/").on_port(8080).body("hello from ")))
}

fn client() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(10)))
        .build()
        .into()
}

/// The status and the body of what a port of `sandbox` answers.
fn get(sandbox: &Sandbox, port: u16, path: &str) -> Result<(u16, String)> {
    let url = format!("http://{}{path}", sandbox.addr(port));
    let mut answer = client().get(&url).call().context(url)?;
    let body = answer.body_mut().read_to_string()?;
    Ok((answer.status().as_u16(), body))
}

/// What `/proc` tells of a process of a sandbox.
#[derive(Debug)]
struct Process {
    pid: u32,
    parent: u32,
    /// Real, effective, saved, and of the filesystem: all four the same.
    uid: u32,
    gid: u32,
    groups: String,
    capabilities: u64,
}

/// The processes of `sandbox` that are called `name`.
fn processes(sandbox: &Sandbox, name: &str) -> Result<Vec<Process>> {
    let all = read(
        sandbox,
        "for p in /proc/[0-9]*; do echo \"@ ${p#/proc/}\"; busybox cat $p/status; done 2>/dev/null; true",
    )?;
    let mut found = Vec::new();
    for text in all.split("@ ").skip(1) {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().to_owned())
        };
        // It ended meanwhile.
        let Some(called) = field("Name:") else {
            continue;
        };
        if called != name {
            continue;
        }
        let one = |name| -> Result<u32> {
            let ids = field(name).context("proc has it")?;
            let mut ids = ids.split_whitespace();
            let first = ids.next().context("proc has four")?;
            ensure!(ids.all(|id| id == first), "{text}");
            Ok(first.parse()?)
        };
        found.push(Process {
            pid: text.lines().next().unwrap_or_default().trim().parse()?,
            parent: field("PPid:").context("proc has it")?.parse()?,
            uid: one("Uid:")?,
            gid: one("Gid:")?,
            groups: field("Groups:").unwrap_or_default(),
            capabilities: u64::from_str_radix(&field("CapEff:").context("proc has it")?, 16)?,
        });
    }
    Ok(found)
}

/// The master among these, as root; and the workers, of which each is its child and `(uid, gid)` and nothing more.
fn check_roles(found: &[Process], workers: usize, (uid, gid): (u32, u32)) -> Result<()> {
    let (masters, others): (Vec<_>, Vec<_>) = found.iter().partition(|it| it.uid == 0);
    ensure!(masters.len() == 1 && others.len() == workers, "{found:?}");
    for worker in others {
        ensure!(worker.parent == masters[0].pid, "{found:?}");
        ensure!(worker.uid == uid && worker.gid == gid, "{found:?}");
        ensure!(
            worker.capabilities == 0 && !worker.groups.split(' ').any(|group| group == "0"),
            "{found:?}"
        );
    }
    Ok(())
}

fn nginx_serves_pages(_: &Context) -> Result<()> {
    let nginx = nginx()?
        .file(
            "/etc/nginx/conf.d/api.conf",
            "server { listen 8080; location / { return 418 \"a teapot\"; } }",
        )
        .file("/var/www/html/page.txt", "a page\n")
        .expose(8080)
        .wait_for(
            Wait::http("/")
                .on_port(8080)
                .method("POST")
                .send_header("Authorization", "Bearer t")
                .send_body("a body")
                .status(418)
                .header("Server", "nginx")
                .body_matches("^a t.apot$"),
        )
        .start()?;
    let (status, body) = get(&nginx, 80, "/")?;
    ensure!(
        status == 200 && body.contains("It works"),
        "{status} {body}"
    );
    ensure!(get(&nginx, 80, "/page.txt")? == (200, "a page\n".to_owned()));
    ensure!(get(&nginx, 80, "/none")?.0 == 404);
    ensure!(get(&nginx, 8080, "/")? == (418, "a teapot".to_owned()));
    // Written while it runs; and what it logs is in the sandbox's log.
    nginx.write_file("/var/www/html/later.txt", "later")?;
    ensure!(get(&nginx, 80, "/later.txt")? == (200, "later".to_owned()));
    until("the access is in the log", || {
        Ok(nginx
            .logs()
            .any(|line| line.text.contains("GET /later.txt")))
    })
}

fn nginx_ends_gracefully(_: &Context) -> Result<()> {
    let mut nginx = nginx()?.start()?;
    // Its image asks for SIGQUIT, by which it ends on its own.
    let outcome = nginx.stop(Duration::from_secs(10))?;
    ensure!(outcome.status == Status::Exited(0), "{}", outcome.status);
    has(&outcome.stderr_text(), &["gracefully shutting down"])
}

fn workers_of_nginx_are_another_user(_: &Context) -> Result<()> {
    let nginx = nginx()?.start()?;
    check_roles(&processes(&nginx, "nginx")?, 2, (33, 33))?;
    // What root keeps to itself, the workers cannot serve.
    nginx.write_file(
        "/var/www/html/private.txt",
        orbit::Content::from("x").mode(0o600),
    )?;
    ensure!(get(&nginx, 80, "/private.txt")?.0 == 403);
    Ok(())
}

fn a_worker_that_drops_its_privileges(_: &Context) -> Result<()> {
    let haproxy = haproxy()?.start()?;
    let found = processes(&haproxy, "haproxy")?;
    check_roles(&found, 1, (99, 99))?;
    let worker = found.iter().find(|it| it.uid == 99).context("just found")?;
    let (status, body) = get(&haproxy, 8080, "/")?;
    ensure!(
        status == 200 && body == format!("hello from {}\n", worker.pid),
        "{status} {body}"
    );
    // Nothing that is mounted can be reached from the directory that it locked itself into.
    let mounts = |pid| read(&haproxy, &format!("busybox cat /proc/{pid}/mounts"));
    ensure!(mounts(worker.parent)?.contains(" / overlay "));
    ensure!(mounts(worker.pid)?.is_empty(), "{}", mounts(worker.pid)?);
    Ok(())
}

/// Who has no range of ids cannot have a second user in a sandbox; the error says what would help.
fn one_id_is_not_enough(_: &Context) -> Result<()> {
    for builder in [nginx()?, haproxy()?] {
        let error = builder
            .startup_timeout(Duration::from_secs(10))
            .start()
            .err()
            .context("it started")?;
        has(&error.to_string(), &["subuid"])?;
    }
    Ok(())
}
