//! Images that this process has used: their layers stay leased, so that its next start of one looks at none of them.
//!
//! A start asks anew where a reference leads, by a file or two; what lies behind the digest that it finds there cannot
//! have changed. Without this each start of an image of sixty layers took some 350 system calls more than one of two: six for
//! each layer.
//!
//! What is kept is in use to whoever removes what is not, and takes a descriptor for each layer: as many as [`most`] says,
//! of the images used last. The removal of unused layers in this process lets go of all first, as does who lacks descriptors.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{digest::Digest, lock::FileLock, platform::Platform};
use crate::image::Image;

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
}

/// The images of this process; the one used last comes first.
#[derive(Default)]
struct Images(VecDeque<Known>);

static KNOWN: Mutex<Images> = Mutex::new(Images(VecDeque::new()));

fn known() -> MutexGuard<'static, Images> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many layers are kept at most: an eighth of the descriptors that this process may have, and no more than of two long
/// images.
fn most() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.map_or(usize::MAX, |it| usize::try_from(it).unwrap_or(usize::MAX));
    (limit / 8).min(128)
}

/// The image, and what keeps its layers, where this process has both.
pub(super) fn find(key: &Key) -> Option<(Image, Locks)> {
    known().find(key)
}

/// Keeps an image whose layers are leased.
pub(super) fn keep(key: Key, image: Image, locks: Locks) {
    known().keep(key, image, locks, most());
}

/// Lets go of the images whose layers are in `layers`; whether there were any.
pub(super) fn let_go(layers: &Path) -> bool {
    known().let_go(layers)
}

impl Images {
    fn find(&mut self, key: &Key) -> Option<(Image, Locks)> {
        let index = self.0.iter().position(|it| it.key == *key)?;
        let found = self.0.remove(index)?;
        // Somebody may have removed the whole store, with no look at locks; and the use is to be noted now and then.
        let holds = |lock: &FileLock| lock.is_there() && lock.is_noted();
        if !found.locks.iter().all(holds) {
            return None;
        }
        let answer = (found.image.clone(), Arc::clone(&found.locks));
        self.0.push_front(found);
        Some(answer)
    }

    fn keep(&mut self, key: Key, image: Image, locks: Locks, most: usize) {
        self.0.retain(|it| it.key != key);
        if locks.len() > most {
            return;
        }
        self.0.push_front(Known { key, image, locks });
        let count = |it: &VecDeque<Known>| it.iter().map(|it| it.locks.len()).sum::<usize>();
        while count(&self.0) > most {
            self.0.pop_back();
        }
    }

    fn let_go(&mut self, layers: &Path) -> bool {
        let before = self.0.len();
        self.0.retain(|it| it.key.layers != layers);
        self.0.len() < before
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::lock::Mode;

    struct Store(tempfile::TempDir);

    impl Store {
        fn key(&self, name: &str) -> Key {
            Key {
                layers: self.0.path().to_owned(),
                digest: Digest::of(name.as_bytes()),
                platform: Platform::host(),
            }
        }

        /// As many locks as an image called `name` has layers, on files of its own.
        fn locks(&self, name: &str, count: usize) -> Locks {
            let lock = |number| {
                let path = self.0.path().join(format!("{name}{number}.use"));
                fs::write(&path, "").unwrap();
                FileLock::try_take(&path, Mode::Shared).unwrap().unwrap()
            };
            (0..count).map(lock).collect::<Vec<_>>().into()
        }

        fn keep(&self, images: &mut Images, name: &str, count: usize) {
            let image = Image {
                name: name.to_owned(),
                ..Image::default()
            };
            images.keep(self.key(name), image, self.locks(name, count), 10);
        }

        fn knows(&self, images: &mut Images, name: &str) -> bool {
            let found = images.find(&self.key(name));
            assert!(found.iter().all(|(image, _)| image.name == name));
            found.is_some()
        }
    }

    fn store() -> (Store, Images) {
        (Store(tempfile::tempdir().unwrap()), Images::default())
    }

    #[test]
    fn those_used_last_are_kept_as_far_as_there_is_room() {
        let (store, mut images) = store();
        for name in ["one", "two", "three"] {
            store.keep(&mut images, name, 3);
        }
        // Used once more, so that another is the one to go.
        assert!(store.knows(&mut images, "one"));
        store.keep(&mut images, "four", 3);
        assert!(!store.knows(&mut images, "two"));
        assert!(
            ["one", "three", "four"]
                .iter()
                .all(|name| store.knows(&mut images, name))
        );
        // One that would take all the room, and more, drives nobody out.
        store.keep(&mut images, "long", 11);
        assert!(!store.knows(&mut images, "long") && store.knows(&mut images, "one"));
    }

    #[test]
    fn what_is_kept_is_locked_until_it_is_let_go() {
        let (store, mut images) = store();
        store.keep(&mut images, "one", 2);
        let path = store.0.path().join("one1.use");
        let is_free = || {
            FileLock::try_take(&path, Mode::Exclusive)
                .unwrap()
                .is_some()
        };
        assert!(!is_free());
        assert!(!images.let_go(Path::new("/another/store")) && !is_free());
        assert!(images.let_go(store.0.path()) && is_free());
        assert!(!store.knows(&mut images, "one"));
    }

    #[test]
    fn what_was_removed_behind_its_back_is_not_known() {
        let (store, mut images) = store();
        store.keep(&mut images, "one", 3);
        fs::remove_file(store.0.path().join("one2.use")).unwrap();
        assert!(!store.knows(&mut images, "one"));
    }

    #[test]
    fn a_use_that_is_long_ago_is_to_be_noted() {
        let (store, mut images) = store();
        let mut locks = Arc::into_inner(store.locks("one", 1)).unwrap();
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
        locks[0].file().set_modified(long_ago).unwrap();
        let path = store.0.path().join("one0.use");
        locks[0] = FileLock::try_take(&path, Mode::Shared).unwrap().unwrap();
        assert!(!locks[0].is_noted());
        images.keep(store.key("one"), Image::default(), locks.into(), 10);
        assert!(images.find(&store.key("one")).is_none());
        let mut lock = FileLock::try_take(&path, Mode::Shared).unwrap().unwrap();
        lock.touch();
        assert!(lock.is_noted());
    }
}
