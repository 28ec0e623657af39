//! A program made ready: its plan turned into C strings, numbers and descriptors, inside the root it will see.

use std::{
    collections::BTreeMap,
    ffi::{CString, OsStr, OsString},
    fs,
    io::Read as _,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use super::{make::TerminalPair, protocol::Cause};
use crate::{
    plan::{ProgramPlan, UserPlan},
    security::{seccomp::bpf::SockFilter, user::UserSpec},
    sys::{Attributes, ExecFailure, Program, SingleThreaded, Terminal},
};

/// What is the same for every program of a supervisor.
pub(super) struct Common {
    /// A user namespace in which the caller's own ids mean the caller.
    pub(super) caller_namespace: Option<OwnedFd>,
    /// Whether the sandboxes' user namespace, and each below it, denies `setgroups`.
    pub(super) groups_denied: bool,
}

impl Common {
    /// What a fork that starts a program does not close.
    pub(super) fn descriptor(&self) -> Option<RawFd> {
        self.caller_namespace.as_ref().map(AsRawFd::as_raw_fd)
    }
}

/// Who a program is, as numbers and descriptors.
pub(super) struct Bearing<'a> {
    working_dir: CString,
    uid: u32,
    gid: u32,
    groups: Option<Vec<u32>>,
    umask: u32,
    rlimits: Vec<(u32, u64, u64)>,
    capabilities: u64,
    user_namespace: Option<BorrowedFd<'a>>,
    filter: &'a [SockFilter],
    /// The home that the sandbox's own accounts give it.
    home: Option<PathBuf>,
}

/// What a program is called with, as C strings.
pub(super) struct Words {
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
}

/// What of a sandbox is for who asked for it, where it is there.
#[derive(Default)]
pub(super) struct Shown {
    pub(super) terminal: Option<TerminalPair>,
    pub(super) network: Option<OwnedFd>,
    /// What holds all that is written.
    pub(super) scratch: Option<OwnedFd>,
    /// What reads the gate's refusals, or why nothing does.
    pub(super) record: Option<OwnedFd>,
    pub(super) unrecorded: Option<i32>,
}

/// All that a program needs.
pub(super) struct Ready<'a> {
    bearing: Bearing<'a>,
    words: Words,
    stdio: Vec<OwnedFd>,
    pub(super) shown: Shown,
}

impl<'a> Bearing<'a> {
    pub(super) fn new(
        plan: &ProgramPlan,
        common: &'a Common,
        filter: &'a [SockFilter],
    ) -> Result<Self, Cause> {
        let user_namespace = common
            .caller_namespace
            .as_ref()
            .filter(|_| matches!(plan.user, UserPlan::Caller { .. }))
            .map(AsFd::as_fd);
        let mut home = None;
        let (uid, gid, groups) = match &plan.user {
            UserPlan::Caller { uid, gid } if user_namespace.is_some() => (*uid, *gid, Vec::new()),
            UserPlan::Caller { .. } => (0, 0, Vec::new()),
            UserPlan::Named(name) => {
                let spec = if name.is_empty() {
                    Ok(UserSpec::default())
                } else {
                    name.parse()
                };
                let found = spec
                    .and_then(|spec| {
                        spec.resolve(&read_text("/etc/passwd"), &read_text("/etc/group"))
                    })
                    .map_err(Cause::User)?;
                home = Some(found.home);
                (found.uid, found.gid, found.groups)
            }
        };
        Ok(Self {
            working_dir: c_string(plan.working_dir.as_os_str())?,
            uid,
            gid,
            groups: (!common.groups_denied).then_some(groups),
            umask: plan.umask,
            rlimits: plan
                .ulimits
                .iter()
                .map(|limit| (limit.resource, limit.soft, limit.hard))
                .collect(),
            capabilities: plan.capabilities.bits(),
            user_namespace,
            filter,
            home,
        })
    }

    pub(super) fn attributes(&self) -> Attributes<'_> {
        Attributes {
            working_dir: &self.working_dir,
            user_namespace: self.user_namespace,
            uid: self.uid,
            gid: self.gid,
            groups: self.groups.as_deref(),
            umask: self.umask,
            rlimits: &self.rlimits,
            capabilities: self.capabilities,
            filter: self.filter,
        }
    }
}

impl Words {
    /// Those of `plan`, for a program that is `bearing`.
    pub(super) fn new(plan: &ProgramPlan, bearing: &Bearing<'_>) -> Result<Self, Cause> {
        let home = bearing.home.as_deref().map(Path::as_os_str);
        let home = home.filter(|_| !plan.env.contains_key(OsStr::new("HOME")));
        let given = plan.env.iter().map(|(name, value)| (&**name, &**value));
        let pairs = given.chain(home.map(|home| (OsStr::new("HOME"), home)));
        let pairs = pairs.map(|(name, value)| {
            let mut pair = name.to_owned();
            pair.push("=");
            pair.push(value);
            c_string(&pair)
        });
        Ok(Self {
            candidates: candidates(&plan.argv[0], &plan.env)
                .iter()
                .map(|path| c_string(path))
                .collect::<Result<_, _>>()?,
            argv: plan
                .argv
                .iter()
                .map(|word| c_string(word))
                .collect::<Result<_, _>>()?,
            env: pairs.collect::<Result<_, _>>()?,
        })
    }

    /// Has the kernel look where the program is.
    pub(super) fn look_up(&self) {
        let is_there = |path: &CString| rustix::fs::access(path, rustix::fs::Access::EXEC_OK);
        self.candidates.iter().any(|path| is_there(path).is_ok());
    }

    /// The program that these are the words of; its streams are `stdio`, or `terminal` where there is one.
    pub(super) fn program<'a>(
        &'a self,
        stdio: &'a [OwnedFd],
        terminal: Option<&'a TerminalPair>,
    ) -> Program<'a> {
        let (stdio, terminal) = match terminal {
            Some(pair) => (
                [&pair.program_side; 3].map(AsFd::as_fd),
                Terminal::Controlling,
            ),
            None => (
                [0, 1, 2].map(|number: usize| stdio[number].as_fd()),
                Terminal::None,
            ),
        };
        Program {
            candidates: &self.candidates,
            argv: &self.argv,
            env: &self.env,
            stdio,
            terminal,
        }
    }
}

impl<'a> Ready<'a> {
    pub(super) fn new(
        plan: &ProgramPlan,
        stdio: Vec<OwnedFd>,
        shown: Shown,
        common: &'a Common,
        filter: &'a [SockFilter],
    ) -> Result<Self, Cause> {
        let bearing = Bearing::new(plan, common, filter)?;
        Ok(Self {
            words: Words::new(plan, &bearing)?,
            bearing,
            stdio,
            shown,
        })
    }

    /// What is left of it once the program has started.
    pub(super) fn into_shown(self) -> Shown {
        self.shown
    }

    pub(super) fn spawn(&self, single_threaded: SingleThreaded) -> Result<i32, ExecFailure> {
        self.program()
            .spawn(single_threaded, &self.bearing.attributes())
    }

    pub(super) fn execute(&self, single_threaded: SingleThreaded) -> ExecFailure {
        self.program()
            .execute(single_threaded, &self.bearing.attributes())
    }

    fn program(&self) -> Program<'_> {
        self.words
            .program(&self.stdio, self.shown.terminal.as_ref())
    }
}

/// The plan holds no NUL byte: it would be no plan.
fn c_string(text: &OsStr) -> Result<CString, Cause> {
    CString::new(text.as_bytes()).map_err(|_| Cause::Errno(libc::EINVAL))
}

/// The paths that a program's name may mean: itself where it has a slash, else one for each part of `PATH`.
///
/// Source: execvp(3).
fn candidates(name: &OsStr, env: &BTreeMap<OsString, OsString>) -> Vec<OsString> {
    if name.as_bytes().contains(&b'/') {
        return vec![name.to_owned()];
    }
    let path = env
        .get(OsStr::new("PATH"))
        .map_or(OsStr::new("/bin:/usr/bin"), OsString::as_os_str);
    let within = |directory: &[u8]| {
        let directory = if directory.is_empty() {
            b"."
        } else {
            directory
        };
        let mut candidate = OsStr::from_bytes(directory).to_owned();
        candidate.push("/");
        candidate.push(name);
        candidate
    };
    path.as_bytes()
        .split(|byte| *byte == b':')
        .map(within)
        .collect()
}

/// A file of the image, as far as it is one: not a device that blocks, not more than a file of accounts holds.
fn read_text(path: &str) -> String {
    const MAX_BYTES: u64 = 4 << 20;
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let mut bytes = Vec::new();
    if let Ok(file) = file
        && let Ok(metadata) = file.metadata()
        && metadata.is_file()
    {
        // One more than it has, so that its end needs no more room.
        let length = metadata.len().min(MAX_BYTES);
        bytes.reserve_exact(usize::try_from(length).map_or(0, |length| length + 1));
        // What cannot be read names nobody; numbers still work.
        let _ = file.take(MAX_BYTES).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_looked_up_in_path() {
        let env = BTreeMap::from([("PATH".into(), "/a::/b".into())]);
        assert_eq!(candidates("x".as_ref(), &env), ["/a/x", "./x", "/b/x"]);
        assert_eq!(candidates("./x".as_ref(), &env), ["./x"]);
        assert_eq!(
            candidates("x".as_ref(), &BTreeMap::new()),
            ["/bin/x", "/usr/bin/x"]
        );
    }
}
