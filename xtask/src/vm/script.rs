//! The script that the machine runs: programs as everyone they are for, each in a cgroup of its own.
//!
//! | who | what it is | its cgroup |
//! |---|---|---|
//! | `root` | root | `/jobs/root`, beside which it may make its own |
//! | `delegated` | an ordinary user with subordinate ids | `/delegated`, which belongs to it |
//! | `undelegated` | the same user | `/undelegated`, which belongs to root |
//! | in a box | root or the delegated user | `/box-NAME`, which is theirs, and is the top of what they see |
//!
//! Jobs run one after the other, as they measure; those that are boxed run together when the others have ended,
//! each with a mount table, processes, a network and a cgroup tree of its own, so that the leak audit of one does
//! not see the other.

use std::path::PathBuf;

use super::systemd;

/// Who a job runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Root,
    Delegated,
    Undelegated,
}

impl Who {
    pub(super) const ALL: [Self; 3] = [Self::Root, Self::Delegated, Self::Undelegated];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Delegated => "delegated",
            Self::Undelegated => "undelegated",
        }
    }
}

/// One program to run.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// One word, for the console.
    pub(super) name: String,
    who: Who,
    pub(super) program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    boxed: bool,
    pub(super) systemd: bool,
    /// What else must be there, at the same paths.
    pub(super) extra: Vec<PathBuf>,
}

impl Job {
    pub(super) fn new(who: Who, program: PathBuf, arguments: Vec<String>) -> Self {
        Self {
            name: who.name().to_owned(),
            who,
            program,
            arguments,
            environment: Vec::new(),
            boxed: false,
            systemd: false,
            extra: Vec::new(),
        }
    }

    /// In a box of its own, under this name, at the same time as other boxed jobs.
    pub(super) fn boxed(self, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            boxed: true,
            ..self
        }
    }

    /// As the ordinary user, once systemd has taken over: see `systemd`.
    pub(super) fn with_systemd(self, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            systemd: true,
            ..self
        }
    }

    /// What systemd's service runs, at the very end.
    pub(super) fn under_systemd(&self) -> String {
        let arguments = self.arguments.iter().map(|word| quoted(word));
        format!(
            "export HOME=/home/user XDG_RUNTIME_DIR=/run/user/{USER} ORBIT_TESTS_AS={name}\n\
             cd /home/user\n\
             /usr/bin/setpriv --reuid={USER} --regid={USER} --init-groups --inh-caps=-all -- {program} {arguments} 2>&1\n\
             echo \"{MARK}exit {name} $?\"\n{END}",
            name = self.name,
            program = quoted(&self.program.display().to_string()),
            arguments = arguments.collect::<Vec<_>>().join(" "),
        )
    }

    pub(super) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    pub(super) fn extra(self, extra: Vec<PathBuf>) -> Self {
        Self { extra, ..self }
    }

    /// As the shell runs it, with its exit told.
    fn script(&self) -> String {
        let who = self.who.name();
        let home = match self.who {
            Who::Root => "/root",
            Who::Delegated | Who::Undelegated => "/home/user",
        };
        let cgroup = match self.who {
            _ if self.boxed => format!("box-{}", self.name),
            Who::Root => "jobs/root".to_owned(),
            Who::Delegated | Who::Undelegated => who.to_owned(),
        };
        let mut environment = vec![format!("HOME={home}")];
        if !self.boxed {
            environment.push(format!("ORBIT_TESTS_AS={who}"));
        }
        for (name, value) in &self.environment {
            environment.push(format!("{name}={}", quoted(value)));
        }
        let switch = match self.who {
            Who::Root => String::new(),
            Who::Delegated | Who::Undelegated => format!(
                "/usr/bin/setpriv --reuid={USER} --regid={USER} --init-groups --inh-caps=-all -- "
            ),
        };
        let mut words = vec![quoted(&self.program.display().to_string())];
        words.extend(self.arguments.iter().map(|word| quoted(word)));
        let command = format!("{switch}{}", words.join(" "));
        let environment = environment.join(" ");
        let name = &self.name;
        // A job before this one may have divided it, and then processes are in a leaf.
        let enter = format!(
            "echo 0 2>/dev/null > /sys/fs/cgroup/{cgroup}/cgroup.procs || \
             echo 0 > /sys/fs/cgroup/{cgroup}/orbit-callers/cgroup.procs"
        );
        let run = format!("cd {home}; export {environment}; exec {command}");
        let (made, run) = if self.boxed {
            let made = match self.who {
                Who::Root => format!("mkdir /sys/fs/cgroup/{cgroup}\n"),
                _ => format!("mkdir /sys/fs/cgroup/{cgroup}; {}", delegate(&cgroup)),
            };
            // It enters its cgroup alone, as the first process of a container does: what waits for it stays outside.
            let top = format!("{TOP}{run}");
            let inside = format!("{BOX}{enter}; exec unshare --cgroup sh -c {}", quoted(&top));
            // What a shell starts in the background ignores Ctrl-C, and a program inherits that.
            let run = format!(
                "/usr/bin/env --default-signal=INT,QUIT /usr/bin/unshare --mount --net --pid --ipc --uts --fork \
                 --mount-proc --kill-child sh -c {}",
                quoted(&inside)
            );
            (made, run)
        } else {
            (String::new(), format!("{enter}; {run}"))
        };
        let told = format!(
            "{made}( {run} ) </dev/null 2>&1\n\
             echo \"{MARK}exit {name} $?\"\n"
        );
        if self.boxed {
            // Line by line, as another writes to the same console.
            format!("( {told}) | while IFS= read -r line; do printf '%s\\n' \"$line\"; done &\n")
        } else {
            told
        }
    }
}

/// What makes the inside of a box: places of its own, and loopback.
const BOX: &str = "mount -t tmpfs -o mode=1777 tmpfs /tmp; mount -t tmpfs -o mode=0755 tmpfs /srv; \
                   mount -t tmpfs -o mode=0755 tmpfs /run; ip link set lo up; ";

/// Its own cgroup, at the top of the tree that it sees.
const TOP: &str = "umount -l /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; ";

/// What the script says on the console besides what the programs print.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    Exit(String, i32),
    End,
}

const MARK: &str = "orbit-vm: ";

/// What a machine without a disk says once it has booted.
pub(super) const PROBED: &str = "orbit-vm: booted";

impl Said {
    pub(super) fn read(line: &str) -> Option<Self> {
        match line
            .strip_prefix(MARK)?
            .split_whitespace()
            .collect::<Vec<_>>()[..]
        {
            ["exit", name, code] => Some(Self::Exit(name.to_owned(), code.parse().ok()?)),
            ["end"] => Some(Self::End),
            _ => None,
        }
    }
}

/// The end of the machine.
const END: &str = "echo 'orbit-vm: end'\nsync\npoweroff -f\n";

/// The ordinary user, under the name that the end-to-end tests know it by.
pub(super) const USER: u32 = 1000;

/// One without subordinate ids, for those tests.
pub(super) const SINGLE: u32 = 1001;

/// The script that the machine runs as its process 1.
pub(super) fn init(jobs: &[Job]) -> String {
    let mut script = vec![format!(
        "#!/bin/sh\n\
         export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb\n\
         mount -t devtmpfs dev /dev\n\
         mkdir -p /dev/pts /dev/shm\n\
         mount -t devpts -o ptmxmode=0666 devpts /dev/pts\n\
         mount -t tmpfs shm /dev/shm\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sys /sys\n\
         mount -t tmpfs -o mode=755 run /run\n\
         mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup\n\
         chown -R {USER}:{USER} /home/user\n\
         chown -R {SINGLE}:{SINGLE} /home/single\n\
         chmod 1777 /tmp /var/tmp /srv\n\
         chmod u+s /usr/bin/newuidmap /usr/bin/newgidmap\n\
         hostname orbit-vm\n\
         ip link set lo up\n\
         cd /sys/fs/cgroup\n\
         for c in cpuset cpu io memory pids; do echo +$c > cgroup.subtree_control; done\n\
         mkdir delegated undelegated jobs jobs/root\n\
         cd /\n"
    )];
    script.push(delegate("delegated"));
    let (last, first): (Vec<&Job>, Vec<&Job>) = jobs.iter().partition(|job| job.systemd);
    let (boxed, alone): (Vec<&Job>, Vec<&Job>) = first.into_iter().partition(|job| job.boxed);
    script.extend(alone.into_iter().map(Job::script));
    script.extend(boxed.into_iter().map(Job::script));
    script.push("wait\n".to_owned());
    script.push(if last.is_empty() {
        END.to_owned()
    } else {
        format!("exec {} --unit=orbit.target\n", systemd::PROGRAM)
    });
    script.concat()
}

/// Gives the user a cgroup, as systemd does.
fn delegate(cgroup: &str) -> String {
    format!(
        "( cd /sys/fs/cgroup/{cgroup}; chown {USER}:{USER} . cgroup.procs cgroup.subtree_control cgroup.threads )\n"
    )
}

/// A word as a shell reads it unchanged.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::{Job, Said, Who, init, quoted};

    #[test]
    fn marks_are_told_from_what_programs_print() {
        assert_eq!(
            Said::read("orbit-vm: exit root 101"),
            Some(Said::Exit("root".into(), 101))
        );
        assert_eq!(Said::read("orbit-vm: end"), Some(Said::End));
        assert_eq!(Said::read("test orbit-vm: end ... ok"), None);
        assert_eq!(Said::read("orbit-vm: exit root"), None);
    }

    #[test]
    fn words_pass_a_shell_unchanged() {
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
    }

    #[test]
    fn what_measures_runs_alone_and_before_what_is_boxed() {
        let job = |who| Job::new(who, "/p".into(), Vec::new());
        let script = init(&[
            job(Who::Root).boxed("suite"),
            job(Who::Root).boxed("suite-user"),
            job(Who::Delegated),
        ]);
        let at = |part: &str| script.find(part).unwrap();
        assert!(at("exit delegated") < at("exit suite "));
        assert!(at("exit suite-user ") < at("\nwait\n"));
    }
}
