//! Takes down sandboxes whose programs have ended, so that the next test need not wait for it.
//!
//! The kernel ends the processes, mounts and networks of a sandbox by itself, and mostly waits as it does. That is no work
//! of a test any more: so a test's lane is free once its program has ended, and a thread of its own waits for the rest.

use std::{
    sync::mpsc::{self, SyncSender},
    thread::{self, JoinHandle},
};

use orbit::Sandbox;

/// A thread that drops what it is given, and is waited for at the end.
#[derive(Debug, Default)]
pub(crate) struct Takedown {
    sender: Option<SyncSender<Sandbox>>,
    thread: Option<JoinHandle<()>>,
}

impl Takedown {
    /// With room for `most` sandboxes that wait: who brings one more waits too, so that no more pile up than run.
    pub(crate) fn new(most: usize) -> Self {
        let (sender, receiver) = mpsc::sync_channel(most);
        let work = move || receiver.into_iter().for_each(drop);
        // Without a thread each is taken down where it ends.
        match thread::Builder::new().name("takedown".into()).spawn(work) {
            Ok(thread) => Self {
                sender: Some(sender),
                thread: Some(thread),
            },
            Err(_) => Self::default(),
        }
    }

    /// Takes down `sandbox`, whose program has ended.
    pub(crate) fn take(&self, sandbox: Sandbox) {
        if let Some(sender) = &self.sender {
            // Where there is nobody any more it is dropped with the error.
            let _ = sender.send(sandbox);
        }
    }
}

impl Drop for Takedown {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            // It drops what it is given, and that does not panic.
            let _ = thread.join();
        }
    }
}
