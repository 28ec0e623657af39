//! A real registry (Debian's docker-registry) on a free loopback port, for one test.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::Program;

const PROGRAM: &str = "/usr/bin/docker-registry";
const START_DEADLINE: Duration = Duration::from_secs(20);
const STOP_DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// A registry with nothing in it but what the test pushes. Stopped, and its files removed, on drop.
#[derive(Debug)]
pub struct Registry {
    server: Child,
    host: String,
    directory: TempDir,
}

impl Registry {
    /// The Debian packages this needs; a case that uses it lists them in its `needs`.
    pub const NEEDS: &[&str] = &["docker-registry", "skopeo"];

    /// Starts one, and waits until it accepts.
    ///
    /// # Errors
    /// Where it does not start, with what it said.
    pub fn start() -> Result<Self> {
        let directory = TempDir::with_prefix("registry-")?;
        let config = directory.path().join("config.yml");
        // Port 0: the kernel picks a free one, and the server logs which.
        fs::write(
            &config,
            format!(
                "version: 0.1\n\
                 log: {{ level: info, formatter: text, accesslog: {{ disabled: false }} }}\n\
                 storage:\n  filesystem: {{ rootdirectory: {} }}\n  delete: {{ enabled: true }}\n\
                 http: {{ addr: '127.0.0.1:0' }}\n",
                serde_json::to_string(&directory.path().join("data"))?
            ),
        )?;
        let log = File::create(log_in(&directory))?;
        let server = Command::new(PROGRAM)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log)
            .spawn()
            .with_context(|| format!("start {PROGRAM}"))?;
        let mut registry = Self {
            server,
            host: String::new(),
            directory,
        };
        registry.host = registry.wait_for_address()?;
        Ok(registry)
    }

    fn wait_for_address(&mut self) -> Result<String> {
        let until = Instant::now() + START_DEADLINE;
        loop {
            let log = self.log();
            let address = log
                .split("listening on ")
                .nth(1)
                .and_then(|rest| rest.split(['"', ' ', ',']).next());
            if let Some(address) = address {
                // Logged once the socket listens: connections from here on are queued, not refused.
                return Ok(address.to_owned());
            }
            if let Some(status) = self.server.try_wait()? {
                bail!("the registry ended ({status}):\n{log}");
            }
            ensure!(
                Instant::now() < until,
                "no address from the registry after {START_DEADLINE:?}:\n{log}"
            );
            thread::sleep(POLL);
        }
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Pushes an OCI layout, its digests unchanged, and gives the reference to pull: `HOST/NAME:TAG`.
    ///
    /// # Errors
    /// What skopeo said.
    pub fn push(&self, layout: &Path, name_and_tag: &str) -> Result<String> {
        let reference = format!("{}/{name_and_tag}", self.host);
        Program::new("skopeo")
            .args([
                "--insecure-policy",
                "copy",
                "--quiet",
                "--preserve-digests",
                "--dest-tls-verify=false",
            ])
            .arg(format!("oci:{}", layout.display()))
            .arg(format!("docker://{reference}"))
            .run()?
            .success()?;
        Ok(reference)
    }

    /// How many blobs were asked for with GET so far, whatever the answer was. Pushing asks with HEAD.
    pub fn blob_gets(&self) -> usize {
        self.requests("GET", "/blobs/")
    }

    /// How many manifests were asked for with GET so far.
    pub fn manifest_gets(&self) -> usize {
        self.requests("GET", "/manifests/")
    }

    /// Requests by method and a part of their path, from the access log (in Apache's combined format).
    pub fn requests(&self, method: &str, part: &str) -> usize {
        let wanted = format!("\"{method} /v2/");
        let log = self.log();
        let paths = log
            .lines()
            .filter_map(|line| line.split_once(&wanted)?.1.split(' ').next());
        paths.filter(|path| path.contains(part)).count()
    }

    /// All that the server logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(log_in(&self.directory)).unwrap_or_default()).into_owned()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.server.id() as i32), Signal::SIGTERM);
        let until = Instant::now() + STOP_DEADLINE;
        while Instant::now() < until && matches!(self.server.try_wait(), Ok(None)) {
            thread::sleep(POLL);
        }
        // Does nothing where it ended already.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn log_in(directory: &TempDir) -> PathBuf {
    directory.path().join("log")
}
