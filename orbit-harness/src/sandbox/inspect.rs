//! What there is to know of a sandbox: [`Sandbox::inspect`].

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use super::Sandbox;
use crate::{outcome::Status, plan::UserPlan, spec::ImageRef, step::Step};

/// What a sandbox does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Its program runs.
    Running,
    /// It is [paused](Sandbox::pause), in either way.
    Frozen,
    /// Its program has ended, and somebody waited for it.
    Ended(Status),
}

/// What a sandbox is, as it was started, and what it does now.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Inspect {
    /// As [`Sandbox::id`].
    pub id: String,
    /// As [`Sandbox::name`].
    pub name: Option<String>,
    /// The host name inside.
    pub hostname: String,
    /// Where its files come from.
    pub image: ImageRef,
    /// What it does now.
    pub state: State,
    /// The number of its program's process, as this process sees it.
    pub pid: Option<u32>,
    /// The program and its arguments.
    pub words: Vec<OsString>,
    /// The program's environment.
    pub env: BTreeMap<OsString, OsString>,
    /// The directory it started in.
    pub working_dir: PathBuf,
    /// As whom it runs: as it was asked, or as the image says.
    pub user: String,
    /// What it was labelled with.
    pub labels: BTreeMap<String, String>,
    /// Ports of the sandbox, and the addresses of the host that lead there.
    pub ports: BTreeMap<u16, SocketAddr>,
    /// Its addresses, by the name of the network.
    pub addresses: BTreeMap<String, Ipv4Addr>,
    /// What was done to make it, one line a step.
    pub steps: Vec<String>,
}

impl Sandbox {
    /// What this sandbox is, and what it does now.
    ///
    /// ```
    /// let sandbox = orbit::Sandbox::builder()
    ///     .name("db")
    ///     .hostname("db.test")
    ///     .label("suite", "accounts")
    ///     .cmd(["sleep", "60"])
    ///     .start()?;
    /// let found = sandbox.inspect();
    /// assert_eq!(found.hostname, "db.test");
    /// assert_eq!(found.labels["suite"], "accounts");
    /// assert_eq!(found.state, orbit::State::Running);
    /// # Ok::<(), orbit::Error>(())
    /// ```
    pub fn inspect(&self) -> Inspect {
        let plan = &self.core.plan;
        let hostname = plan.steps.iter().find_map(|step| match step {
            Step::Hostname(name) => Some(name.clone()),
            _ => None,
        });
        let links = plan.steps.iter().filter_map(|step| match step {
            Step::Link { link, .. } => Some((link.network.clone(), link.address)),
            _ => None,
        });
        let ended = match (&self.outcome, &self.exit) {
            (Some(outcome), _) => Some(outcome.status),
            (None, exit) => exit.as_ref().map(|exit| exit.status),
        };
        let ports = self.ports.all().iter().map(|port| (port.port, port.host));
        Inspect {
            id: self.id.clone(),
            name: self.name.clone(),
            hostname: hostname.unwrap_or_default(),
            image: self.origin.spec.image.clone(),
            state: match ended {
                Some(status) => State::Ended(status),
                None if self.core.is_paused() => State::Frozen,
                None => State::Running,
            },
            pid: self.pid(),
            words: plan.program.argv.clone(),
            env: plan.program.env.clone(),
            working_dir: plan.program.working_dir.clone(),
            user: match &plan.program.user {
                UserPlan::Caller { uid, gid } => format!("{uid}:{gid}"),
                UserPlan::Named(name) if name.is_empty() => "root".to_owned(),
                UserPlan::Named(name) => name.clone(),
            },
            labels: self.origin.spec.labels.clone(),
            ports: ports.collect(),
            addresses: links.collect(),
            steps: plan.lines(),
        }
    }
}
