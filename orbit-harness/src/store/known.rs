//! Images that this process has used: their layers stay leased, so that its next start of one looks at none of them.
//!
//! A start asks anew where a reference leads, by a file or two; what lies behind the digest that it finds there cannot
//! have changed. Without this an image of sixty layers took 480 system calls more than one of two, of each start.
//!
//! What is kept is in use, to whoever removes what is not. So at most [`MAX_LOCKS`] layers are kept, those used last, and
//! the removal of unused layers in this process lets go of all first.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{
    digest::Digest,
    lock::{FileLock, USE_GRANULARITY},
    platform::Platform,
};
use crate::image::Image;

/// Each is a descriptor, of the 1,024 that a process usually may have.
const MAX_LOCKS: usize = 128;

/// The locks of an image's layers.
pub(super) type Locks = Arc<Vec<FileLock>>;

/// What an image is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// The directory of the layers: of one store, for one id map.
    pub(super) layers: PathBuf,
    /// Of the manifest, or of an index.
    pub(super) digest: Digest,
    pub(super) platform: Platform,
}

struct Known {
    key: Key,
    image: Image,
    locks: Locks,
    since: Instant,
}

/// The one used last comes first.
static KNOWN: Mutex<VecDeque<Known>> = Mutex::new(VecDeque::new());

fn known() -> MutexGuard<'static, VecDeque<Known>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The image, and what keeps its layers, where this process has both.
pub(super) fn find(key: &Key) -> Option<(Image, Locks)> {
    let mut known = known();
    let index = known.iter().position(|it| it.key == *key)?;
    let found = known.remove(index)?;
    // Somebody may have removed the whole store, with no look at locks. After an hour its use is to be noted again.
    let is_there = found.locks.first().is_none_or(FileLock::is_there);
    if !is_there || found.since.elapsed() >= USE_GRANULARITY {
        return None;
    }
    let answer = (found.image.clone(), Arc::clone(&found.locks));
    known.push_front(found);
    Some(answer)
}

/// Keeps an image whose layers are leased.
pub(super) fn keep(key: Key, image: Image, locks: Locks) {
    let mut known = known();
    known.retain(|it| it.key != key);
    known.push_front(Known {
        key,
        image,
        locks,
        since: Instant::now(),
    });
    let mut count = 0;
    known.retain(|it| {
        count += it.locks.len();
        count <= MAX_LOCKS
    });
}

/// Lets go of the images whose layers are in `layers`.
pub(super) fn let_go(layers: &Path) {
    known().retain(|it| it.key.layers != layers);
}
