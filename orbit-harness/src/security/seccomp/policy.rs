//! The meaning of the table: for each system call an action, or one that depends on its arguments.
//!
//! Equal to Docker's default profile (moby/profiles, seccomp/default.json, June 2026), but for this:
//!
//! | difference | why |
//! |---|---|
//! | `ioctl` TIOCSTI and TIOCLINUX: EPERM | CVE-2017-5226: they type into the caller's terminal |
//! | arguments of type `int` are compared on their low 32 bits | the kernel ignores the rest, so `socket(1<<32 \| 40)` passes Docker's comparison and is `AF_VSOCK` all the same |
//! | i386 and x32 calls: ENOSYS | one table to review per machine; a 32-bit program fails at its first call |
//! | calls the table does not know: ENOSYS, all others EPERM | so that libc falls back to an older call; runc does the same for newer numbers |
//! | `pivot_root`, `open_tree_attr` with `SYS_ADMIN` | they give nothing beyond `mount`, and nested containers need them |
//! | `nested` | opens namespaces and mounts without `SYS_ADMIN`, for tests that build sandboxes themselves |
//!
//! Not this module's business: what a call may reach (namespaces, mounts), or how much (limits).

use std::{collections::BTreeMap, fmt};

use super::table::{self, Syscall};
use crate::security::capabilities::{Capability, CapabilitySet};

/// Bits of `clone`'s flags that make a namespace: `NEWNS`, `NEWCGROUP`, `NEWUTS`, `NEWIPC`, `NEWUSER`, `NEWPID`,
/// `NEWNET`. `CLONE_NEWTIME` is none of them: `clone` reads that bit as part of the exit signal.
/// Source: Linux, include/uapi/linux/sched.h.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// ioctl(2) commands that put characters into a terminal's input. Source: `ioctl_tty(2)`,
/// `ioctl_console(2)`.
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;

/// Address families that reach outside the network namespace, or that have no use but attacks on the kernel.
/// `AF_ALG` is the kernel's own cryptography; `AF_VSOCK` talks to the hypervisor whatever the namespace.
/// Source: Linux, include/linux/socket.h; Docker's profile denies both.
const AF_ALG: u32 = 38;
const AF_VSOCK: u32 = 40;

/// What personality(2) may be set to: `PER_LINUX`, `PER_LINUX32`, both with `UNAME26`, and the query.
const PERSONALITIES: [u32; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, u32::MAX];

/// Source: Linux, include/uapi/asm-generic/errno-base.h and errno.h; the same on both architectures.
const EPERM: u16 = 1;
const ENOSYS: u16 = 38;

/// What the kernel does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Action {
    Allow,
    /// The call fails with this error number and does nothing.
    Errno(u16),
}

impl Action {
    pub(crate) const DENY: Self = Self::Errno(EPERM);
    pub(crate) const UNKNOWN: Self = Self::Errno(ENOSYS);
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Allow => f.write_str("allow"),
            Self::DENY => f.write_str("EPERM"),
            Self::UNKNOWN => f.write_str("ENOSYS"),
            Self::Errno(number) => write!(f, "errno {number}"),
        }
    }
}

/// A test of one argument: `arguments[index] & mask == value`.
///
/// This one form says all we need. A mask of the low 32 bits compares an `int` as the kernel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ArgTest {
    pub(super) index: u8,
    pub(super) mask: u64,
    pub(super) value: u64,
}

impl ArgTest {
    /// The argument, of type `int` or `unsigned int` in the kernel, is `value`.
    const fn int(index: u8, value: u32) -> Self {
        Self {
            index,
            mask: u32::MAX as u64,
            value: value as u64,
        }
    }

    /// None of the bits of `mask` is set.
    const fn clear(index: u8, mask: u64) -> Self {
        Self {
            index,
            mask,
            value: 0,
        }
    }

    #[cfg(test)]
    fn holds(self, arguments: &[u64; 6]) -> bool {
        arguments[usize::from(self.index)] & self.mask == self.value
    }
}

impl fmt::Display for ArgTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, mask, value } = self;
        if *mask == u64::from(u32::MAX) {
            write!(f, "int arg{index} == {value:#x}")
        } else {
            write!(f, "arg{index} & {mask:#x} == {value:#x}")
        }
    }
}

/// What happens to one system call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Rule {
    Fixed(Action),
    /// The action of the first test that holds, or `otherwise`.
    ByArgs {
        tests: Vec<(ArgTest, Action)>,
        otherwise: Action,
    },
}

#[cfg(test)]
impl Rule {
    fn action(&self, arguments: &[u64; 6]) -> Action {
        match self {
            Self::Fixed(action) => *action,
            Self::ByArgs { tests, otherwise } => tests
                .iter()
                .find(|(test, _)| test.holds(arguments))
                .map_or(*otherwise, |&(_, action)| action),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(action) => action.fmt(f),
            Self::ByArgs { tests, otherwise } => {
                for (test, action) in tests {
                    write!(f, "{action} if {test}; ")?;
                }
                write!(f, "else {otherwise}")
            }
        }
    }
}

/// What opens a call. The words of `table`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Gate {
    Open,
    Closed,
    /// Any one of these capabilities.
    Caps(&'static [Capability]),
    /// Any one of these capabilities, or `nested`.
    Nest(&'static [Capability]),
    By(Args),
}

/// Calls whose arguments decide.
#[derive(Clone, Copy, Debug)]
pub(super) enum Args {
    Clone,
    Clone3,
    Ioctl,
    Personality,
    Socket,
}

/// The machine a filter is for. Calls of any other are refused with ENOSYS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    X86_64,
    Aarch64,
}

impl Arch {
    /// The machine this build runs on; `None` where there is no table for it.
    pub(crate) const fn native() -> Option<Self> {
        if cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
            Some(Self::X86_64)
        } else if cfg!(all(target_arch = "aarch64", target_endian = "little")) {
            Some(Self::Aarch64)
        } else {
            None
        }
    }

    /// `seccomp_data.arch`. Source: Linux, include/uapi/linux/audit.h.
    pub(super) const fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::Aarch64 => 0xc000_00b7,
        }
    }

    fn number(self, syscall: &Syscall) -> Option<u32> {
        let number = match self {
            Self::X86_64 => syscall.x86_64,
            Self::Aarch64 => syscall.aarch64,
        };
        (number != table::NONE).then_some(u32::from(number))
    }
}

#[cfg(test)]
/// What a filter sees of a call. Source: seccomp(2), `struct seccomp_data`, without the instruction pointer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) arch: u32,
    pub(crate) number: u32,
    pub(crate) arguments: [u64; 6],
}

/// The rule of every system call this build knows, on one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    arch: Arch,
    rules: BTreeMap<u32, (&'static str, Rule)>,
}

impl Policy {
    /// The policy of a sandbox whose program holds `capabilities`. `nested` lets it make namespaces and mounts
    /// of its own (in user namespaces of its own, unless it holds `SYS_ADMIN`).
    pub(crate) fn new(arch: Arch, capabilities: CapabilitySet, nested: bool) -> Self {
        let rules = table::TABLE.iter().filter_map(|syscall| {
            let rule = rule(syscall.gate, capabilities, nested);
            Some((arch.number(syscall)?, (syscall.name, rule)))
        });
        Self {
            arch,
            rules: rules.collect(),
        }
    }

    pub(crate) fn arch(&self) -> Arch {
        self.arch
    }

    /// A policy of `count` rules on arguments at every other number, which no table has.
    #[cfg(test)]
    pub(super) fn synthetic(count: u32) -> Self {
        let rule = |number: u32| Rule::ByArgs {
            tests: vec![
                (ArgTest::int(0, number), Action::DENY),
                (
                    ArgTest::clear(1, u64::from(number) << 32 | 1),
                    Action::Allow,
                ),
            ],
            otherwise: Action::UNKNOWN,
        };
        let rules = (1..=count).map(|at| (at * 2, ("synthetic", rule(at * 2))));
        Self {
            arch: Arch::X86_64,
            rules: rules.collect(),
        }
    }

    #[cfg(test)]
    /// What the filter answers to `call`.
    pub(crate) fn action(&self, call: &Call) -> Action {
        if call.arch != self.arch.audit() {
            return Action::UNKNOWN;
        }
        self.rules
            .get(&call.number)
            .map_or(Action::UNKNOWN, |(_, rule)| rule.action(&call.arguments))
    }

    /// Every known call's number and rule, in rising order.
    pub(super) fn rules(&self) -> impl Iterator<Item = (u32, &Rule)> {
        self.rules.iter().map(|(&number, (_, rule))| (number, rule))
    }
}

/// One call a line: `165 mount: EPERM`.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "any other machine's calls: {}", Action::UNKNOWN)?;
        for (number, (name, rule)) in &self.rules {
            writeln!(f, "{number} {name}: {rule}")?;
        }
        write!(f, "any other number: {}", Action::UNKNOWN)
    }
}

fn rule(gate: Gate, capabilities: CapabilitySet, nested: bool) -> Rule {
    let any = |wanted: &[Capability]| wanted.iter().any(|&one| capabilities.contains(one));
    let open_if = |open: bool| Rule::Fixed(if open { Action::Allow } else { Action::DENY });
    let namespaces = nested || any(&[Capability::SysAdmin]);
    let all_but = |tests: &[ArgTest], action: Action, otherwise: Action| Rule::ByArgs {
        tests: tests.iter().map(|&test| (test, action)).collect(),
        otherwise,
    };
    match gate {
        Gate::Open => open_if(true),
        Gate::Closed => open_if(false),
        Gate::Caps(wanted) => open_if(any(wanted)),
        Gate::Nest(wanted) => open_if(nested || any(wanted)),
        Gate::By(Args::Clone | Args::Clone3) if namespaces => open_if(true),
        Gate::By(Args::Clone) => all_but(
            &[ArgTest::clear(0, CLONE_NAMESPACES)],
            Action::Allow,
            Action::DENY,
        ),
        // Its flags lie in memory, out of a filter's sight; told that it does not exist, libc uses `clone`.
        Gate::By(Args::Clone3) => Rule::Fixed(Action::UNKNOWN),
        Gate::By(Args::Ioctl) => all_but(
            &[ArgTest::int(1, TIOCSTI), ArgTest::int(1, TIOCLINUX)],
            Action::DENY,
            Action::Allow,
        ),
        Gate::By(Args::Personality) => all_but(
            &PERSONALITIES.map(|persona| ArgTest::int(0, persona)),
            Action::Allow,
            Action::DENY,
        ),
        Gate::By(Args::Socket) => all_but(
            &[ArgTest::int(0, AF_ALG), ArgTest::int(0, AF_VSOCK)],
            Action::DENY,
            Action::Allow,
        ),
    }
}
