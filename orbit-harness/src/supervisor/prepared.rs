//! Process 1 of a sandbox that is made ahead: makes it, and waits for what it is for.
//!
//! What such a sandbox is asked for is most often what the one before it was, in other words. So its program is *poised*:
//! a child has taken on who it will be, is behind its filter, and waits for nothing but its words and its streams. Where
//! another is wanted, the child ends, and the program is started as any other.

use std::{
    cell::OnceCell,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::Instant,
};

use super::{
    channel::Channel,
    filters::Filters,
    init::{self, Ground, Running},
    launch::Gift,
    program::{Bearing, Common, Words},
};
use crate::{
    plan::{Plan, ProgramPlan},
    spec::Init,
    sys::{self, ExecFailure, ExecStep, SingleThreaded},
};

/// A gift, with what came with it: the event channel, then standard input, output and error.
struct Received {
    gift: Gift<'static>,
    events: Channel,
    stdio: Vec<OwnedFd>,
    at: Instant,
}

/// Says on `post` that the sandbox is made, and waits for what it is for. `None` where that never comes.
fn receive(post: &Channel) -> Option<Received> {
    post.send(&(), &[]).ok()?;
    let (gift, mut fds) = post.recv_request::<Gift<'static>>().ok()??;
    let at = Instant::now();
    // What else came is closed with the event channel, which says enough.
    (fds.len() == 4).then(|| Received {
        gift,
        stdio: fds.split_off(1),
        events: Channel::from_fd(fds.remove(0)),
        at,
    })
}

/// Makes a sandbox like that of `plan`, and runs it to its end once a program is given on `post`, by a [`Gift`].
///
/// One that cannot be made ends, without a word: the next that is asked for is made by itself, and says what is wrong.
pub(super) fn run(
    single_threaded: SingleThreaded,
    plan: &Plan,
    post: Channel,
    common: &Common,
    filters: &mut Filters,
) -> ! {
    let mut keep = vec![post.as_fd().as_raw_fd()];
    keep.extend(common.descriptor());
    let made = sys::close_inherited(&mut keep)
        .and_then(|()| Ground::of(plan.network))
        .ok()
        .and_then(|ground| init::make(plan, ground, Vec::new(), None).ok());
    // Before the program that it may tell of.
    let (Some(made), Ok(signals)) = (made, init::watch_signals()) else {
        sys::exit_now(0)
    };
    // Now, while nobody waits: what a launch brings is put in its place.
    let mut plan = plan.clone();
    rehearse(&plan, common, filters);
    let received = OnceCell::new();
    let poised = poise(single_threaded, &plan, &post, common, filters, &received);
    // Where no child has waited for it, this process does. What a child has waited for in vain does not come any more.
    let received = received.into_inner().unwrap_or_else(|| receive(&post));
    let Some(Received {
        gift,
        events,
        stdio,
        at,
    }) = received
    else {
        sys::exit_now(0)
    };
    drop(post);
    gift.put_into(&mut plan);
    let ran = match poised {
        Ok(Some(pid)) => {
            // They are the program's.
            drop(stdio);
            let running = Running {
                pid,
                started: at,
                signals,
            };
            init::see_to(running, &plan, made.shown(), &events)
        }
        Err(failure) if failure.step == ExecStep::Execute => {
            Err(init::exec_failure(&plan, failure))
        }
        // All else is done once more, as for any other, and what keeps it from being started is said then.
        Ok(None) | Err(_) => filters
            .of(plan.program.filter())
            .map_err(|error| init::no_filter(&plan, &error))
            .and_then(|filter| made.ready(&plan, stdio, common, filter))
            .and_then(|program| init::begin(single_threaded, &plan, program, &events)),
    };
    init::end(ran, &events)
}

/// Has a child be who the program of `plan` is, and wait for what that executes: its number where it has. What was
/// received by then is left in `received`, whatever came of it.
fn poise(
    single_threaded: SingleThreaded,
    plan: &Plan,
    post: &Channel,
    common: &Common,
    filters: &mut Filters,
    received: &OnceCell<Option<Received>>,
) -> Result<Option<i32>, ExecFailure> {
    if !is_poised(&plan.program) {
        return Ok(None);
    }
    let Ok(filter) = filters.of(plan.program.filter()) else {
        return Ok(None);
    };
    let Ok(bearing) = Bearing::new(&plan.program, common, filter) else {
        return Ok(None);
    };
    let words = OnceCell::new();
    bearing.attributes().poise(single_threaded, || {
        let received = received.get_or_init(|| receive(post)).as_ref()?;
        if !has_attributes_of(&plan.program, &received.gift.program) {
            return None;
        }
        let found = words.get_or_init(|| Words::new(&received.gift.program, &bearing).ok());
        Some(found.as_ref()?.program(&received.stdio, None))
    })
}

/// Whether a program like this is poised: its terminal is not made before it is, nor its limits known that would hold for
/// who waits too; and process 1 is one of ours.
fn is_poised(program: &ProgramPlan) -> bool {
    program.init == Init::Orbit && !program.tty && program.ulimits.is_empty()
}

/// Whether two programs differ at most in what is executed.
fn has_attributes_of(one: &ProgramPlan, other: &ProgramPlan) -> bool {
    let ProgramPlan {
        init,
        argv: _,
        env: _,
        working_dir,
        user,
        umask,
        capabilities,
        seccomp,
        tty,
        ulimits,
    } = one;
    *init == other.init
        && *working_dir == other.working_dir
        && *user == other.user
        && *umask == other.umask
        && *capabilities == other.capabilities
        && *seccomp == other.seccomp
        && *tty == other.tty
        && *ulimits == other.ulimits
}

/// Does once, without what comes of it, what is still to be done when a program is given: a process that has just been forked
/// finds neither its code nor its memory where it looks for them, nor the files of the image.
fn rehearse(plan: &Plan, common: &Common, filters: &mut Filters) {
    let gift = postcard::to_stdvec(&Gift::of(plan)).unwrap_or_default();
    let mut plan = plan.clone();
    if let Ok(gift) = postcard::from_bytes::<Gift<'static>>(&gift) {
        gift.put_into(&mut plan);
    }
    if let Ok(filter) = filters.of(plan.program.filter())
        && let Ok(bearing) = Bearing::new(&plan.program, common, filter)
    {
        let words = Words::new(&plan.program, &bearing);
        // An overlay looks into all its layers for a name that it is asked for the first time.
        words.iter().for_each(Words::look_up);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sandbox, plan::tests::planned};

    fn program(of: impl FnOnce(crate::SandboxBuilder) -> crate::SandboxBuilder) -> ProgramPlan {
        planned(of(Sandbox::builder().cmd(["true"])), 1000)
            .unwrap()
            .program
    }

    #[test]
    fn other_words_are_for_the_same_who_is_poised() {
        let poised = program(|it| it);
        assert!(is_poised(&poised));
        let other = program(|it| it.cmd(["false", "--now"]).env("A", "b"));
        assert!(has_attributes_of(&poised, &other));
    }

    #[test]
    fn whoever_is_somebody_else_is_not_who_is_poised() {
        let poised = program(|it| it);
        for other in [
            program(|it| it.user("nobody")),
            program(|it| it.working_dir("/tmp")),
            program(|it| it.cap_drop("CHOWN")),
            program(|it| it.nested(true)),
            program(|it| it.tty(true)),
        ] {
            assert!(!has_attributes_of(&poised, &other), "{other:?}");
        }
    }

    #[test]
    fn what_cannot_wait_is_not_poised() {
        assert!(!is_poised(&program(|it| it.tty(true))));
        assert!(!is_poised(&program(|it| it.ulimit("nofile", 64, 64))));
    }
}
