//! What the broker waits for: an epoll whose events say of which kind they are.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::event::{
    Timespec,
    epoll::{self, CreateFlags, Event, EventData, EventFlags},
};

/// What an event is about. The kind and a number that counts up make its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Control,
    Lease,
    Listener,
    Client,
    Target,
    DatagramPort,
    DatagramClient,
    Resolver,
    ResolverListener,
    ResolverClient,
    Init,
    Wire,
    Trunk,
    Peer,
}

impl Kind {
    const ALL: [Self; 14] = [
        Self::Control,
        Self::Lease,
        Self::Listener,
        Self::Client,
        Self::Target,
        Self::DatagramPort,
        Self::DatagramClient,
        Self::Resolver,
        Self::ResolverListener,
        Self::ResolverClient,
        Self::Init,
        Self::Wire,
        Self::Trunk,
        Self::Peer,
    ];
}

const KIND_SHIFT: u32 = 56;

pub(super) struct Watch {
    epoll: OwnedFd,
    last_id: u64,
    events: Vec<Event>,
}

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            last_id: 0,
            events: Vec::with_capacity(256),
        })
    }

    /// A number that nothing had before: an event for what is gone finds nothing.
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn add(
        &self,
        fd: BorrowedFd<'_>,
        kind: Kind,
        id: u64,
        events: EventFlags,
    ) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, tag(kind, id), events)?)
    }

    pub(super) fn change(&self, fd: BorrowedFd<'_>, kind: Kind, id: u64, events: EventFlags) {
        // It cannot fail for what was added and is open.
        let _ = epoll::modify(&self.epoll, fd, tag(kind, id), events);
    }

    /// Waits for events, `None` for ever.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Vec<(Kind, u64)>> {
        self.events.clear();
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut self.events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let untag = |event: &Event| {
            let tag = event.data.u64();
            let kind = usize::try_from(tag >> KIND_SHIFT).ok()?;
            Some((*Kind::ALL.get(kind)?, tag & ((1 << KIND_SHIFT) - 1)))
        };
        Ok(self.events.iter().filter_map(untag).collect())
    }
}

fn tag(kind: Kind, id: u64) -> EventData {
    EventData::new_u64(((kind as u64) << KIND_SHIFT) | id)
}
