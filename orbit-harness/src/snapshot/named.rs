//! Snapshots that stay: made once, by one process, and found by all others that need what they were made from.

use std::sync::{Arc, Mutex};

use super::{Inner, Snapshot, must_last, now_s};
use crate::{
    error::Error,
    images::{SupervisorWorker, host, open},
    layer::Sealed,
    spec::Spec,
    store::{Digest, SealedKind, SealedRecord, Store},
};

/// A snapshot that is looked for by its name and its inputs, and made where it is not there: [`Snapshot::named`].
///
/// It stays in the store until `cargo orbit gc` finds that nobody used it for long. Another version of an input is
/// another snapshot: name everything that the files depend on, such as the image and each migration.
///
/// ```no_run
/// use std::time::Duration;
///
/// const MIGRATIONS: [&str; 1] = ["CREATE TABLE people (name text)"];
///
/// let image = "oci:target/images/postgres";
/// let golden = orbit::Snapshot::named("migrated-db")
///     .input(image)
///     .inputs(MIGRATIONS)
///     .get_or_create(|| {
///         let mut db = orbit::Sandbox::builder().image(image).expose(5432).start()?;
///         // … connect, and run the migrations …
///         db.stop(Duration::from_secs(10))?;
///         db.snapshot()
///     })?;
/// let db = golden.start()?;
/// # Ok::<(), orbit::Error>(())
/// ```
#[must_use = "nothing happens before `get_or_create`"]
#[derive(Clone, Debug)]
pub struct NamedSnapshot {
    name: String,
    /// Each with its length before it, so that no two lists of inputs are one text.
    inputs: Vec<u8>,
}

impl NamedSnapshot {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            inputs: Vec::new(),
        }
    }

    /// Something that the files depend on: a text, or the content of a file.
    pub fn input(mut self, input: impl AsRef<[u8]>) -> Self {
        add(&mut self.inputs, input.as_ref());
        self
    }

    /// Several such, in this order.
    pub fn inputs(self, inputs: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        inputs.into_iter().fold(self, Self::input)
    }

    /// The snapshot, where it is there.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn get(&self) -> Result<Option<Snapshot>, Error> {
        find(&open(host()?)?, &self.id())
    }

    /// The snapshot; `create` makes it where it is not there. Of all processes that ask at once one makes it, and the
    /// others wait. Where that one fails or is killed, the next makes it: nothing half made is ever found.
    ///
    /// # Errors
    /// What `create` returns; where the store cannot be read or written.
    pub fn get_or_create<E: From<Error>>(
        &self,
        create: impl FnOnce() -> Result<Snapshot, E>,
    ) -> Result<Snapshot, E> {
        let id = self.id();
        let store = open(host()?).map_err(Error::from)?;
        if let Some(found) = find(&store, &id)? {
            return Ok(found);
        }
        let _lock = store.lock_sealed(&id).map_err(Error::from)?;
        // Whoever had the lock may have made it.
        if let Some(found) = find(&store, &id)? {
            return Ok(found);
        }
        let made = create()?;
        must_last(&made, &self.name)?;
        let made = made.publish()?;
        store
            .write_sealed(&record(&made, id, SealedKind::Named, self.name.clone()))
            .map_err(Error::from)?;
        Ok(made)
    }

    /// Removes it; sandboxes that were started from it go on. Whether there was one.
    ///
    /// # Errors
    /// Where the store cannot be read or written.
    pub fn remove(&self) -> Result<bool, Error> {
        let host = host()?;
        let removed = open(host)?.remove_sealed(&self.id(), &SupervisorWorker { host });
        Ok(removed?)
    }

    /// The record's name: it says all that the snapshot depends on.
    fn id(&self) -> String {
        let mut text = Vec::new();
        add(&mut text, self.name.as_bytes());
        text.extend(&self.inputs);
        Digest::of(&text).hex()
    }
}

fn add(text: &mut Vec<u8>, input: &[u8]) {
    text.extend((input.len() as u64).to_le_bytes());
    text.extend(input);
}

pub(super) fn record(
    snapshot: &Snapshot,
    id: String,
    kind: SealedKind,
    title: String,
) -> SealedRecord {
    let mut spec = (*snapshot.spec).clone();
    let env = std::mem::take(&mut spec.env).into_iter().collect();
    SealedRecord {
        id,
        kind,
        title,
        spec,
        env,
        image: crate::image::Image {
            layers_dir: std::path::PathBuf::new(),
            ..snapshot.inner.image.clone()
        },
        // What is plain data always is a value.
        ready: serde_json::to_value(&*snapshot.ready).unwrap_or_default(),
        bytes: snapshot.bytes(),
        made_s: now_s(),
    }
}

pub(super) fn find(store: &Store, id: &str) -> Result<Option<Snapshot>, Error> {
    let Some((record, image, lease)) = store.find_sealed(id)? else {
        return Ok(None);
    };
    let spec = Spec {
        env: record.env.into_iter().collect(),
        ..record.spec
    };
    Ok(Some(Snapshot {
        spec: Arc::new(spec),
        ready: Arc::new(serde_json::from_value(record.ready).unwrap_or_default()),
        inner: Arc::new(Inner {
            image,
            sealed: Sealed {
                content_bytes: record.bytes,
                ..Sealed::default()
            },
            base: None,
            sealing: Mutex::new(None),
            _lease: Some(lease),
        }),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_lists_of_inputs_are_one() {
        let id = |inputs: &[&str]| NamedSnapshot::new("x".into()).inputs(inputs).id();
        assert_ne!(id(&["ab", "c"]), id(&["a", "bc"]));
        assert_ne!(id(&["ab"]), id(&["ab", ""]));
        assert_ne!(id(&[]), NamedSnapshot::new("y".into()).id());
        assert_eq!(id(&["a"]), id(&["a"]));
    }
}
