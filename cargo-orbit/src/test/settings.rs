//! (interim)
use std::time::Duration;
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Settings {
    pub(crate) each: bool,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retries: u32,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolate {
    Binary,
    Test,
}
pub(crate) struct RetryPolicy {
    pub(crate) count: u32,
}
impl RetryPolicy {
    pub(crate) fn delay_before(&self, _attempt: u32) -> Duration {
        Duration::ZERO
    }
}
impl Settings {
    pub(crate) fn isolate(&self) -> Isolate {
        if self.each {
            Isolate::Test
        } else {
            Isolate::Binary
        }
    }
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }
    pub(crate) fn slow_after(&self) -> Duration {
        Duration::from_secs(60)
    }
    pub(crate) fn retries(&self) -> RetryPolicy {
        RetryPolicy {
            count: self.retries,
        }
    }
    pub(crate) fn leak_fails(&self) -> bool {
        false
    }
    pub(crate) fn reach_out_fails(&self) -> bool {
        false
    }
    pub(crate) fn memory_bytes(&self) -> Option<u64> {
        None
    }
    pub(crate) fn apply(&self, sandbox: orbit::SandboxBuilder) -> orbit::SandboxBuilder {
        sandbox
    }
}
