//! A sandbox that stands still: [`Sandbox::pause`], [`Sandbox::unpause`].

use super::Sandbox;
use crate::{
    error::{Error, Kind},
    spec::Init,
    supervisor::Control,
};

/// How a sandbox was paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Paused {
    /// The kernel's freezer stopped every process of its control group: nothing inside can tell, or end it.
    Frozen,
    /// Without a control group, SIGSTOP was sent to every process inside: their parents are told, as shells tell, and
    /// SIGCONT ends it.
    Stopped,
}

impl Sandbox {
    /// Stops every process of the sandbox where it is: by its control group where it has one (it was started with a
    /// limit, or with [`accounting`](crate::SandboxBuilder::accounting)), else by SIGSTOP. Connections stay open and
    /// are not answered; timeouts go on.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let sandbox = orbit::Sandbox::builder()
    ///     .cmd(["sh", "-c", "while :; do echo tick; sleep 0.01; done"])
    ///     .start()?;
    /// sandbox.pause()?;
    /// let so_far = sandbox.logs().follow_for(Duration::from_millis(100)).count();
    /// let later = sandbox.logs().follow_for(Duration::from_millis(100)).count();
    /// assert_eq!(so_far, later);
    /// sandbox.unpause()?;
    /// # Ok::<(), orbit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Where there is neither a control group nor Orbit's init, or the sandbox has ended.
    pub fn pause(&self) -> Result<Paused, Error> {
        self.set_paused(true, "pause the sandbox")
    }

    /// Lets a paused sandbox go on.
    ///
    /// # Errors
    /// As [`pause`](Self::pause).
    pub fn unpause(&self) -> Result<(), Error> {
        self.set_paused(false, "unpause the sandbox").map(drop)
    }

    fn set_paused(&self, paused: bool, doing: &str) -> Result<Paused, Error> {
        if self.can_be_frozen(doing)? {
            if paused {
                self.freeze()?;
            } else {
                self.thaw()?;
            }
            return Ok(Paused::Frozen);
        }
        self.core.ask(Control::Stop(paused), doing)?;
        self.core.set_stopped(paused);
        Ok(Paused::Stopped)
    }

    /// Whether it has a control group; else its init can stop it.
    pub(super) fn can_be_frozen(&self, doing: &str) -> Result<bool, Error> {
        if self.core.cgroup.is_some() {
            return Ok(true);
        }
        if self.core.plan.program.init == Init::Program {
            let doing = doing.to_owned();
            let why = "it has no control group, and its program is process 1, which no signal stops; start it with \
                       `.accounting(true)`";
            return Err(Kind::Unsupported { doing, why }.into());
        }
        Ok(false)
    }
}
