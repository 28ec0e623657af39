//! What holds for one test, or for one binary, with where each value came from.

use std::{env, ffi::OsString, sync::Arc, time::Duration};

use orbit::{Mount, NetworkMode, SandboxBuilder};

use super::{
    fault::Origin,
    keys::{self, KEYS},
    service::Service,
    value::{Backoff, Value},
};
use crate::variables::Variable;

/// How long a test may run before it is called slow, where nobody said otherwise.
const SLOW: Duration = Duration::from_secs(60);

/// A value, and who said it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) value: Value,
    /// From the weakest to the strongest; several where what they said adds up.
    pub(crate) origins: Vec<Origin>,
}

/// What was said of every key, after all that holds was merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// As [`KEYS`].
    pub(super) sets: Vec<Option<Arc<Set>>>,
    /// What has to run beside the test.
    pub(crate) services: Vec<Arc<Service>>,
}

/// What gets a sandbox of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolate {
    Binary,
    Test,
}

/// How a failed test is run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RetryPolicy {
    /// How often, at most.
    pub(crate) count: u32,
    pub(crate) backoff: Backoff,
    pub(crate) delay: Duration,
}

impl RetryPolicy {
    /// How long to wait before attempt `attempt`, which counts from 1: the first waits for nothing.
    pub(crate) fn delay_before(&self, attempt: u32) -> Duration {
        let Some(again) = attempt.checked_sub(2) else {
            return Duration::ZERO;
        };
        match self.backoff {
            Backoff::Fixed => self.delay,
            // Bounded, as nobody waits for longer than a day.
            Backoff::Exponential => self.delay.saturating_mul(1 << again.min(16)),
        }
    }
}

impl Settings {
    pub(crate) fn new() -> Self {
        Self {
            sets: vec![None; KEYS.len()],
            services: Vec::new(),
        }
    }

    /// Says the key at `index` of [`KEYS`].
    pub(super) fn set(&mut self, index: usize, set: Set) {
        self.sets[index] = Some(Arc::new(set));
    }

    /// What was said of a key. `None`: nothing, so that its default holds.
    ///
    /// # Panics
    /// Where there is no such key.
    pub(crate) fn get(&self, name: &str) -> Option<&Set> {
        let index = keys::find(name).expect("a key of the table");
        self.sets[index].as_deref()
    }

    /// Every key that somebody said something of.
    #[cfg(test)]
    pub(crate) fn said(&self) -> impl Iterator<Item = (&'static keys::Key, &Set)> {
        KEYS.iter()
            .zip(&self.sets)
            .filter_map(|(key, set)| Some((key, set.as_deref()?)))
    }

    fn text(&self, name: &str) -> Option<&str> {
        match &self.get(name)?.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn list(&self, name: &str) -> &[String] {
        match self.get(name).map(|set| &set.value) {
            Some(Value::List(list)) => list,
            _ => &[],
        }
    }

    fn switch(&self, name: &str) -> Option<bool> {
        match self.get(name)?.value {
            Value::Switch(switch) => Some(switch),
            _ => None,
        }
    }

    pub(crate) fn isolate(&self) -> Isolate {
        match self.text("isolate") {
            Some("test") => Isolate::Test,
            _ => Isolate::Binary,
        }
    }

    /// Who tests run as, where not as the caller.
    pub(crate) fn user(&self) -> Option<&str> {
        self.text("user")
    }

    /// Whether anything but the host's own files is the root filesystem.
    pub(crate) fn image(&self) -> Option<&str> {
        self.text("image").filter(|image| *image != "host")
    }

    /// Whether tests are on the host's own network.
    pub(crate) fn is_on_host_network(&self) -> bool {
        self.text("network") == Some("host")
    }

    /// The declared memory limit in bytes, to plan what may run at a time.
    pub(crate) fn memory_bytes(&self) -> Option<u64> {
        let bytes: orbit::Bytes = self.text("memory")?.parse().ok()?;
        Some(bytes.as_u64())
    }

    /// After how long a test is killed: by `timeout`, or as `slow_timeout` says.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        let timeout = match self.get("timeout").map(|set| &set.value) {
            Some(Value::Time(timeout)) => Some(*timeout),
            _ => None,
        };
        let (period, times) = self.slow();
        let slow = times.map(|times| period.saturating_mul(times));
        timeout.into_iter().chain(slow).min()
    }

    /// After how long a test is called slow, and after each multiple of it.
    pub(crate) fn slow_after(&self) -> Duration {
        self.slow().0
    }

    fn slow(&self) -> (Duration, Option<u32>) {
        match self.get("slow_timeout").map(|set| &set.value) {
            Some(Value::SlowTimeout(slow)) => (slow.period.unwrap_or(SLOW), slow.terminate_after),
            _ => (SLOW, None),
        }
    }

    pub(crate) fn retries(&self) -> RetryPolicy {
        let retries = match self.get("retries").map(|set| &set.value) {
            Some(Value::Retries(retries)) => *retries,
            _ => super::value::Retries::default(),
        };
        RetryPolicy {
            count: retries.count.unwrap_or(0),
            backoff: retries.backoff.unwrap_or_default(),
            delay: retries.delay.unwrap_or_default(),
        }
    }

    /// Whether a test fails that passed, but left processes behind.
    pub(crate) fn leak_fails(&self) -> bool {
        self.text("leak") == Some("fail")
    }

    /// Whether a test fails that passed, but tried to reach what it may not.
    pub(crate) fn reach_out_fails(&self) -> bool {
        self.text("reach_out") == Some("fail")
    }

    /// The variables that were asked for, beside those that a test sees unasked. What is set wins over what is
    /// passed.
    pub(crate) fn variables(&self) -> Vec<Variable> {
        let passed = self
            .list("pass_env")
            .iter()
            .cloned()
            .map(Variable::FromHost);
        let set = match self.get("env").map(|set| &set.value) {
            Some(Value::Variables(variables)) => variables.clone(),
            _ => std::collections::BTreeMap::new(),
        };
        let set = set.into_iter().map(|(name, value)| match value {
            Some(value) => Variable::Set(name, value),
            None => Variable::FromHost(name),
        });
        passed.chain(set).collect()
    }

    /// Fills a builder with all that is about the sandbox itself: everything but `timeout`, which is of a test and
    /// not of the binary that may hold several, `isolate`, `retries`, and verdicts. Call it after what the builder
    /// shows of the host.
    pub(crate) fn apply(&self, sandbox: SandboxBuilder) -> SandboxBuilder {
        self.apply_with(sandbox, |name| env::var_os(name))
    }

    pub(crate) fn apply_with(
        &self,
        mut sandbox: SandboxBuilder,
        host: impl Fn(&str) -> Option<OsString>,
    ) -> SandboxBuilder {
        type Method = fn(SandboxBuilder, &str) -> SandboxBuilder;
        type Switch = fn(SandboxBuilder, bool) -> SandboxBuilder;
        let texts: [(&str, Method); 9] = [
            ("image", SandboxBuilder::image),
            ("memory", SandboxBuilder::memory),
            ("memory_high", SandboxBuilder::memory_high),
            ("cpus", SandboxBuilder::cpu),
            ("cpuset", SandboxBuilder::cpuset),
            ("disk", SandboxBuilder::disk),
            ("user", SandboxBuilder::user),
            ("hostname", |sandbox, name| sandbox.hostname(name)),
            ("network", |sandbox, mode| {
                match mode.parse::<NetworkMode>() {
                    Ok(mode) => sandbox.network(mode),
                    // Checked when it was read.
                    Err(_) => sandbox,
                }
            }),
        ];
        for (name, method) in texts {
            if let Some(text) = self.text(name) {
                sandbox = method(sandbox, text);
            }
        }
        let egress = self.list("egress");
        if !egress.is_empty() {
            sandbox = sandbox.egress(&egress.join(","));
        }
        if let Some(pids) = self.text("pids").and_then(|text| text.parse().ok()) {
            sandbox = sandbox.pids(pids);
        }
        let switches: [(&str, Switch); 4] = [
            ("accounting", SandboxBuilder::accounting),
            ("best_effort", SandboxBuilder::best_effort),
            ("read_only", SandboxBuilder::read_only),
            ("nested", SandboxBuilder::nested),
        ];
        for (name, method) in switches {
            if let Some(switch) = self.switch(name) {
                sandbox = method(sandbox, switch);
            }
        }
        let lists: [(&str, Method); 10] = [
            ("host_path_read_only", |sandbox, path| {
                sandbox.host_path_read_only(path)
            }),
            ("host_path", |sandbox, path| sandbox.host_path(path)),
            ("ulimit", SandboxBuilder::ulimit_str),
            ("io_max", |sandbox, limit| {
                let (device, rates) = limit.split_once(' ').unwrap_or((limit, ""));
                sandbox.io_max(device, rates)
            }),
            ("cap_add", SandboxBuilder::cap_add),
            ("cap_drop", SandboxBuilder::cap_drop),
            ("mount", SandboxBuilder::mount_str),
            ("tmpfs", |sandbox, tmpfs| {
                sandbox.mount_str(&format!("tmpfs:{tmpfs}"))
            }),
            ("writable", |sandbox, path| {
                sandbox.mount(Mount::bind(path, path))
            }),
            ("hide", |sandbox, path| sandbox.hide(path)),
        ];
        for (name, method) in lists {
            for text in self.list(name) {
                sandbox = method(sandbox, text);
            }
        }
        let variables = self.variables();
        sandbox.envs(
            variables
                .iter()
                .filter_map(|variable| variable.resolve(&host)),
        )
    }
}
