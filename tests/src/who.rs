//! The identities a test runs as: root, an ordinary user, and one without a range of subordinate ids.
//!
//! Becoming one is setpriv(1)'s work: uid, gid, the user's groups, and no capability left to inherit, as
//! a login would have it.

use std::{fmt, fs, os::unix::fs::MetadataExt, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use nix::unistd::{Uid, User};

/// Whom a test runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// uid 0, as in a CI container.
    Root,
    /// An ordinary user with a range in /etc/subuid and /etc/subgid: `orbit-test`, or whoever runs this.
    User,
    /// An ordinary user without such ranges: `orbit-single`.
    Single,
}

impl Who {
    /// Everyone.
    pub const ALL: &[Self] = &[Self::Root, Self::User, Self::Single];
    /// Those whose sandboxes can have more than one user in them.
    pub const RANGED: &[Self] = &[Self::Root, Self::User];
    /// The ordinary users.
    pub const ROOTLESS: &[Self] = &[Self::User, Self::Single];

    /// What is appended to the names of tests: `as_user`.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Root => "as_root",
            Self::User => "as_user",
            Self::Single => "as_single",
        }
    }

    /// Of those that a case runs as, an ordinary user where there is one.
    pub fn one_of(every: &'static [Self]) -> &'static [Self] {
        let user = every.iter().position(|&who| who != Self::Root);
        let first = user.unwrap_or(0);
        every.get(first..=first).unwrap_or(every)
    }

    /// The reverse of [`Who::suffix`].
    pub fn from_suffix(suffix: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|who| who.suffix() == suffix)
    }

    const fn account(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::User => "orbit-test",
            Self::Single => "orbit-single",
        }
    }

    /// The account, as far as the running process may become it; else why not.
    ///
    /// # Errors
    /// One line for a person, with what would help.
    pub fn user(self) -> Result<User> {
        let me = Uid::effective();
        let account = User::from_name(self.account()).ok().flatten();
        match self {
            _ if me.is_root() => account.with_context(|| {
                format!(
                    "there is no account {}: `cargo xtask test` as root makes it",
                    self.account()
                )
            }),
            Self::Root => bail!("needs root"),
            // An ordinary user is whoever runs the tests.
            Self::User => User::from_uid(me)?.context("the running uid has no account"),
            Self::Single if account.as_ref().is_some_and(|account| account.uid == me) => {
                account.context("checked above")
            }
            Self::Single => bail!("needs root, to become {}", self.account()),
        }
    }

    /// `program` as this identity, from root; the program itself where the caller already is it.
    ///
    /// # Errors
    /// As [`Who::user`].
    pub fn command(self, program: &Path) -> Result<Command> {
        let user = self.user()?;
        let mut command = Command::new("env");
        // Whoever runs the suite in the background ignores them, and so would all that it starts.
        command.arg("--default-signal=HUP,INT,QUIT");
        if user.uid == Uid::effective() {
            command.arg(program);
            return Ok(command);
        }
        command
            .arg("setpriv")
            .arg(format!("--reuid={}", user.uid))
            .arg(format!("--regid={}", user.gid))
            .args(["--init-groups", "--inh-caps=-all", "--"])
            .arg(program);
        Ok(command)
    }

    /// Whether this identity can reach `path`.
    ///
    /// # Errors
    /// Names the first directory on the way that others cannot enter.
    pub fn can_reach(self, path: &Path) -> Result<()> {
        let user = self.user()?;
        if user.uid.is_root() {
            return Ok(());
        }
        for directory in path.ancestors().skip(1) {
            let found = fs::metadata(directory).with_context(|| directory.display().to_string())?;
            let mine = found.uid() == user.uid.as_raw() && found.mode() & 0o100 != 0;
            if !mine && found.mode() & 0o001 == 0 {
                bail!(
                    "{} cannot enter {}: check out where others may, or `chmod o+x` it",
                    user.name,
                    directory.display()
                );
            }
        }
        Ok(())
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.account())
    }
}

#[cfg(test)]
mod tests {
    use super::Who;

    #[test]
    fn one_is_an_ordinary_user_where_it_can_be() {
        assert_eq!(Who::one_of(Who::ALL), [Who::User]);
        assert_eq!(Who::one_of(&[Who::Single]), [Who::Single]);
        assert_eq!(Who::one_of(&[Who::Root]), [Who::Root]);
        assert!(Who::one_of(&[]).is_empty());
    }

    #[test]
    fn suffixes_name_one_identity_each() {
        for &who in Who::ALL {
            assert_eq!(Who::from_suffix(who.suffix()), Some(who));
        }
        assert_eq!(Who::from_suffix("as_nobody"), None);
    }
}
