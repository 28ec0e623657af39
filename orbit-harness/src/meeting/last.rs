//! The end of a shared network, for who knows when that is: it need not be left to the next process that comes.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{connect_all, leave, lock, sockets};
use crate::host;

/// A process that was killed takes its broker along within milliseconds, but nobody says when.
const POLL: Duration = Duration::from_millis(5);

/// Removes what killed processes left of the shared network `name`, as soon as nobody is on it any more; not later than
/// `patience` from now. Whether nothing is left.
#[must_use]
pub fn clear_network(name: &str, patience: Duration) -> bool {
    let uid = rustix::process::geteuid().as_raw();
    host::runtime_dir(uid)
        .is_none_or(|runtime| clear(&runtime.join("networks").join(name), patience))
}

fn clear(directory: &Path, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    while directory.exists() {
        let Ok(held) = lock(directory) else {
            return false;
        };
        let is_empty = connect_all(directory).is_ok()
            && sockets(directory).is_ok_and(|sockets| sockets.is_empty());
        if is_empty {
            leave(directory);
            return true;
        }
        drop(held);
        if Instant::now() > until {
            return false;
        }
        thread::sleep(POLL);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meeting::{enter, listen};

    #[test]
    fn what_the_killed_left_goes_once_the_living_are_gone() {
        let runtime = tempfile::tempdir().unwrap();
        let subnet = "10.1.0.0/24".parse().unwrap();
        let lives = enter(Some(runtime.path().to_owned()), "lab", None, subnet).unwrap();
        let directory = lives.meeting.directory.clone();
        drop(lives.lock);
        // As if another had come, and had been killed.
        drop(listen(&directory).unwrap());
        assert!(!clear(&directory, Duration::from_millis(20)));
        assert_eq!(sockets(&directory).unwrap().len(), 1);
        // As if it had been killed too, a little later.
        std::mem::forget(lives.meeting);
        let ends = thread::spawn(move || {
            thread::sleep(Duration::from_millis(30));
            drop(lives.listener);
        });
        assert!(clear(&directory, Duration::from_secs(10)));
        ends.join().unwrap();
        assert!(!runtime.path().join("networks").exists());
        assert!(clear(&directory, Duration::ZERO));
    }
}
