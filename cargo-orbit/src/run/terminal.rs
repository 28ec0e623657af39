//! This terminal and the program's own, connected: what is typed here is typed there, what is shown there is
//! shown here, and both are of one size.
//!
//! Meanwhile this terminal is raw, so that Ctrl-C and its like are the program's to understand. It is put
//! back when the [`Connection`] is dropped.

use std::{
    fs::File,
    io::{self, stdin, stdout},
    os::fd::{AsFd, OwnedFd},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::{
    io::ioctl_fionbio,
    process::{Signal, getpid, kill_process},
    termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize},
};
use signal_hook::{consts::SIGWINCH, iterator::Signals};

/// A connection between this terminal and the program's.
#[derive(Debug)]
pub(crate) struct Connection {
    /// What this terminal was like before it was made raw.
    before: Option<Termios>,
    shown: Option<JoinHandle<()>>,
    sizes: signal_hook::iterator::Handle,
}

impl Connection {
    /// Connects this terminal to `program`, the other side of the program's. What is typed is passed on only
    /// where it is `interactive`.
    pub(crate) fn new(program: OwnedFd, interactive: bool) -> io::Result<Self> {
        // The library polls it; here a thread waits on it.
        ioctl_fionbio(&program, false)?;
        let [typed, sized] = [program.try_clone()?, program.try_clone()?];
        let mut changes = Signals::new([SIGWINCH])?;
        let mut connection = Self {
            before: None,
            shown: None,
            sizes: changes.handle(),
        };
        copy_size(&sized);
        thread::spawn(move || changes.forever().for_each(|_| copy_size(&sized)));
        if interactive {
            connection.before = Some(make_raw()?);
            // Never joined: it waits for a key, which may never come. It ends with this process.
            thread::spawn(move || {
                // A raw terminal has no end but its own.
                if copy(&mut stdin().lock(), File::from(typed)) == Gone::From {
                    hang_up();
                }
            });
        }
        connection.shown = Some(thread::spawn(move || {
            let mut program = File::from(program);
            if copy(&mut program, stdout().lock()) == Gone::To {
                // Nobody looks any more. What goes on all the same is not to wait for somebody who does.
                thread::spawn(hang_up);
                copy(&mut program, io::sink());
            }
        }));
        Ok(connection)
    }

    /// Shows what the program, which has ended, still had to say.
    pub(crate) fn finish(mut self) {
        if let Some(shown) = self.shown.take() {
            // A panic there has been told on the standard error already.
            let _ = shown.join();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.sizes.close();
        if let Some(before) = &self.before {
            // It fails only where the terminal is gone, and there is nothing to put back.
            let _ = tcsetattr(stdin(), OptionalActions::Drain, before);
        }
    }
}

/// Makes this terminal raw; what it was like before.
fn make_raw() -> io::Result<Termios> {
    let before = tcgetattr(stdin())?;
    let mut raw = before.clone();
    raw.make_raw();
    tcsetattr(stdin(), OptionalActions::Drain, &raw)?;
    Ok(before)
}

/// Gives the program's terminal the size of this one, if this is one.
fn copy_size(program: impl AsFd) {
    if let Ok(size) = tcgetwinsize(stdout()) {
        // It fails only where the program's terminal is gone.
        let _ = tcsetwinsize(program, size);
    }
}

/// Has the program be told that the terminal is gone, by a signal to this process, as by any other. Where that is not its
/// session's own, nobody else says so.
fn hang_up() {
    // A shell that was just about to wait for a key when it was told has not noticed, and of its own terminal there is no end.
    const AGAIN: Duration = Duration::from_secs(1);

    for _ in 0..2 {
        let _ = kill_process(getpid(), Signal::HUP);
        thread::sleep(AGAIN);
    }
}

/// Which side of a copy is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gone {
    From,
    To,
}

/// Copies as it comes, until one side is gone: for a terminal that is an error, EIO, and no fault.
fn copy(from: &mut impl io::Read, mut to: impl io::Write) -> Gone {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Gone::From,
            Ok(count) => {
                if to
                    .write_all(&buffer[..count])
                    .and_then(|()| to.flush())
                    .is_err()
                {
                    return Gone::To;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Gone::From,
        }
    }
}
