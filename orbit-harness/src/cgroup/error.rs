//! Why a limit cannot be kept here, and what lets it: which controller is missing, where, and the command.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Controller, scope::ScopeError};
use crate::resources::CpuSet;

/// Why a limit cannot be kept, changed or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LimitError {
    /// No subtree is ours to make control groups in.
    #[error(
        "cannot make a control group for this sandbox's limits in {}: {source}. The cgroup that this process is \
         in was not delegated to it{}. {}",
        .at.display(), Asked(.systemd), Fix::Delegate
    )]
    NotDelegated {
        at: PathBuf,
        source: io::Error,
        /// Why the user's systemd gave none, where it was asked.
        systemd: Option<Arc<ScopeError>>,
    },
    #[error(
        "the {controller} limit of this sandbox cannot be kept: the controller `{controller}` is not available in {} \
         (it has: {}). {}",
        .at.display(), List(.has), Fix::Controller(*.controller)
    )]
    NoController {
        controller: Controller,
        at: PathBuf,
        /// What is available there.
        has: Vec<String>,
    },
    #[error(
        "the {controller} limit of this sandbox cannot be kept: the controller `{controller}` cannot be enabled in {}: \
         {source}. {}",
        .at.display(), Fix::Controller(*.controller)
    )]
    CannotEnable {
        controller: Controller,
        at: PathBuf,
        source: io::Error,
    },
    #[error(
        "the cpuset limit {asked} of this sandbox cannot be kept: of its CPUs, {missing} cannot be used in {}, \
         which has {has}. Ask for some of those",
        .at.display()
    )]
    NoSuchCpu {
        asked: CpuSet,
        missing: CpuSet,
        has: CpuSet,
        at: PathBuf,
    },
    #[error(
        "the limit {setting} of this sandbox cannot be kept: the kernel refuses it in {}: {source}. Ask for another \
         value, or leave the limit out",
        .at.display()
    )]
    Refused {
        controller: Controller,
        setting: String,
        at: PathBuf,
        source: io::Error,
    },
    #[error(
        "the {controller} limit of this sandbox cannot be changed: the controller `{controller}` is not enabled in its \
         control group {}. {}",
        .at.display(), Fix::Controller(*.controller)
    )]
    NotThere { controller: Controller, at: PathBuf },
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "this sandbox has no control group: it was started without a limit. Give it one, or `.accounting(true)`, \
         when it is built"
    )]
    None,
}

impl LimitError {
    pub(super) fn io(
        doing: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }

    /// Whether it says of a single limit that this one cannot be kept, and of others nothing.
    pub(crate) fn controller(&self) -> Option<Controller> {
        match self {
            Self::NoController { controller, .. }
            | Self::CannotEnable { controller, .. }
            | Self::Refused { controller, .. }
            | Self::NotThere { controller, .. } => Some(*controller),
            Self::NoSuchCpu { .. } => Some(Controller::Cpuset),
            Self::NotDelegated { .. } | Self::Io { .. } | Self::None => None,
        }
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug)]
enum Fix {
    Delegate,
    Controller(Controller),
}

impl fmt::Display for Fix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // systemd delegates these two to users' sessions unless it is told otherwise.
            Self::Delegate | Self::Controller(Controller::Memory | Controller::Pids) => f
                .write_str(
                    "Start the tests with `systemd-run --user --scope -p Delegate=yes cargo test`; in a container, \
                     start it with `--cgroupns=private` and its cgroup writable; or leave the limit out",
                ),
            Self::Controller(controller) => write!(
                f,
                "Let systemd delegate it: put `[Service]` and `Delegate=cpu cpuset io memory pids` into \
                 /etc/systemd/system/user@.service.d/delegate.conf, run `sudo systemctl daemon-reload`, log in anew, \
                 and start the tests with `systemd-run --user --scope -p Delegate=yes cargo test`; or leave the \
                 {controller} limit out"
            ),
        }
    }
}

struct Asked<'a>(&'a Option<Arc<ScopeError>>);

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => Ok(()),
            Some(why) => write!(f, ", and the user's systemd gave none ({why})"),
        }
    }
}

struct List<'a>(&'a [String]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("none"),
            names => f.write_str(&names.join(" ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_says_where_why_and_what_next() {
        let at = PathBuf::from("/sys/fs/cgroup/user.slice/user-1000.slice/session-2.scope");
        let errors = [
            LimitError::NotDelegated {
                at: at.clone(),
                source: io::Error::from_raw_os_error(libc::EACCES),
                systemd: None,
            },
            LimitError::NotDelegated {
                at: at.clone(),
                source: io::Error::from_raw_os_error(libc::EACCES),
                systemd: Some(Arc::new(ScopeError::Nowhere { uid: 1000 })),
            },
            LimitError::NoController {
                controller: Controller::Memory,
                at: at.clone(),
                has: Vec::new(),
            },
            LimitError::NoController {
                controller: Controller::Cpuset,
                at: at.clone(),
                has: vec!["memory".into(), "pids".into()],
            },
            LimitError::NoSuchCpu {
                asked: "0-9".parse().unwrap(),
                missing: "2-9".parse().unwrap(),
                has: "0-1".parse().unwrap(),
                at: at.clone(),
            },
            LimitError::Refused {
                controller: Controller::Io,
                setting: "io.max=7:0,rbps=max,wbps=1,riops=max,wiops=max".into(),
                at: at.clone(),
                source: io::Error::from_raw_os_error(libc::ENODEV),
            },
            LimitError::NotThere {
                controller: Controller::Cpu,
                at,
            },
        ];
        let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(text.join("\n\n"));
    }
}
