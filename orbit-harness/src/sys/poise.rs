//! A program of which is known who it will be, and not what: a child that is that already, and waits for the rest.
//!
//! As a child of [`Program::spawn`], it shares memory with its parent, which waits; but it runs any code meanwhile, as
//! its parent would. What it may do is less by then: that is why it has to wait behind the program's filter.

use std::{
    ffi::c_void,
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::thread::futex;

use super::{
    SingleThreaded,
    exec::{
        Attributes, ExecFailure, ExecStep, Program, enter_working_dir, execute, exit_child, failed,
        new_session, reap, stack, take_on, take_streams,
    },
};

/// What a poised child is given, and says.
struct Poised<'a, F> {
    attributes: &'a Attributes<'a>,
    /// Taken when it is called.
    next: Option<F>,
    end: PoisedEnd,
}

/// What became of a poised child, as far as it could say.
enum PoisedEnd {
    /// It was ended before it came to anything.
    Killed,
    Declined,
    Executes,
    Failed(ExecFailure),
}

impl Attributes<'_> {
    /// Starts a child that takes on these attributes at once, and then calls `next` for the program that it is to become.
    /// Returns the child's number once that executes; `None` where `next` gave none, or the child was ended from elsewhere.
    ///
    /// `next` runs in the child, as who the program will be, and behind its filter. Memory and descriptors are this
    /// process's, which waits meanwhile: what `next` keeps is here afterwards, and what it opens is open.
    ///
    /// This process sleeps as who waits for a message does. With `CLONE_VFORK` it would count as one that waits for a disk,
    /// and each poised program as a load of 1 on the machine.
    ///
    /// # Errors
    /// The step that failed. The child is gone then, and was reaped.
    ///
    /// Source: Linux, kernel/fork.c, `mm_release`: a process that leaves memory it shares, by executing or ending, sets
    /// the word of CLONE_CHILD_CLEARTID to 0, and wakes who waits for that.
    pub(crate) fn poise<'p, F>(
        &self,
        _: SingleThreaded,
        next: F,
    ) -> Result<Option<i32>, ExecFailure>
    where
        F: FnOnce() -> Option<Program<'p>>,
    {
        /// For what any function may need that reads a message.
        const STACK_BYTES: usize = 256 * 1024;

        let mut stack = stack(STACK_BYTES);
        let mut poised = Poised {
            attributes: self,
            next: Some(next),
            end: PoisedEnd::Killed,
        };
        let shares_memory = AtomicU32::new(1);
        let flags = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD;
        let no_pointer = ptr::null_mut::<c_void>();
        // SAFETY: the stack is aligned to 16, grows down from its end, is many times what a message takes to be read, and
        // lives until the child does not share this memory any more, for which is waited below; so do `poised` and the word
        // that then becomes 0. Until then this thread, as the caller proves the only one, makes one system call after the
        // other, which use neither `poised` nor what the C library keeps for a thread: `rustix` makes them itself, so not
        // even `errno` is written.
        let pid = unsafe {
            libc::clone(
                poised_child::<F>,
                stack.as_mut_ptr_range().end.cast(),
                flags,
                ptr::from_mut(&mut poised).cast(),
                no_pointer,
                no_pointer,
                shares_memory.as_ptr(),
            )
        };
        if pid == -1 {
            return Err(failed(ExecStep::Fork));
        }
        while shares_memory.load(Ordering::Acquire) != 0 {
            // Whatever it answers, the word says.
            let _ = futex::wait(&shares_memory, futex::Flags::empty(), 1, None);
        }
        match poised.end {
            PoisedEnd::Executes => Ok(Some(pid)),
            PoisedEnd::Killed | PoisedEnd::Declined => {
                reap(pid);
                Ok(None)
            }
            PoisedEnd::Failed(failure) => {
                reap(pid);
                Err(failure)
            }
        }
    }
}

/// The first function of a child of [`Attributes::poise`], on its own stack.
extern "C" fn poised_child<'p, F>(poised: *mut c_void) -> i32
where
    F: FnOnce() -> Option<Program<'p>>,
{
    // SAFETY: `poise` passes a pointer to a `Poised` that outlives this process's use of its memory.
    let poised = unsafe { &mut *poised.cast::<Poised<'_, F>>() };
    let changed = get_ready(poised.attributes);
    let failure = if let Err(failure) = changed {
        failure
    } else {
        let Some(program) = poised.next.take().and_then(|next| next()) else {
            poised.end = PoisedEnd::Declined;
            return exit_child();
        };
        poised.end = PoisedEnd::Executes;
        program.with_prepared(|prepared| {
            // From here on its descriptors are its own.
            // SAFETY: this is the child of `poise`.
            unsafe { take_streams(&program, libc::CLOSE_RANGE_UNSHARE) }
                // Once more: what is there by now, where somebody else has removed or replaced it.
                .and_then(|()| enter_working_dir(poised.attributes.working_dir))
                .err()
                .unwrap_or_else(|| execute(prepared))
        })
    };
    poised.end = PoisedEnd::Failed(failure);
    exit_child()
}

/// What a poised child does before it knows what it will be.
fn get_ready(attributes: &Attributes<'_>) -> Result<(), ExecFailure> {
    new_session()?;
    // SAFETY: this is the child of `poise`.
    unsafe { take_on(attributes) }
}
