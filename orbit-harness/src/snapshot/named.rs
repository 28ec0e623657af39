//! Snapshots that stay: made once, by one process, and found by all others that need what they were made from.

use std::sync::{Arc, Mutex};

use super::{Inner, Place, Snapshot, must_last, now_s};
#[cfg(feature = "tokio")]
use crate::sandbox::blocking;
use crate::{
    error::Error,
    images::{SupervisorWorker, host, open, resolve},
    layer::Sealed,
    spec::{ImageRef, PullPolicy, Spec, SpecFault},
    store::{Digest, SealedKind, SealedRecord, Store},
};

/// A snapshot that is looked for by its name and its inputs, and made where it is not there: [`Snapshot::named`].
///
/// It stays in the store until `cargo orbit gc` finds that nobody used it for long. Another version of an input is
/// another snapshot: name everything that the files depend on, such as the [image](Self::image) and each migration.
///
/// ```no_run
/// use std::time::Duration;
///
/// const MIGRATIONS: [&str; 1] = ["CREATE TABLE people (name text)"];
///
/// let image = "oci:target/images/postgres";
/// let golden = orbit::Snapshot::named("migrated-db")
///     .image(image)
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
    inputs: Vec<Input>,
}

/// Something that the files depend on.
#[derive(Clone, Debug)]
enum Input {
    Bytes(Vec<u8>),
    /// An image, by its reference.
    Image(String),
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
        self.inputs.push(Input::Bytes(input.as_ref().to_owned()));
        self
    }

    /// The image that the files are over, written as for [`SandboxBuilder::image`](crate::SandboxBuilder::image). It
    /// counts by its digest: where the tag stands for another image, or the layout was built anew, that is another
    /// snapshot. What the tag stands for is looked up as for a sandbox, so an image that is not there is brought.
    pub fn image(mut self, reference: impl Into<String>) -> Self {
        self.inputs.push(Input::Image(reference.into()));
        self
    }

    /// Several such, in this order.
    pub fn inputs(self, inputs: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        inputs.into_iter().fold(self, Self::input)
    }

    /// The snapshot, where it is there.
    ///
    /// # Errors
    /// Where the store cannot be read, or an [image](Self::image) not be had.
    pub fn get(&self) -> Result<Option<Snapshot>, Error> {
        find(&open(host()?)?, &self.id()?)
    }

    /// The snapshot; `create` makes it where it is not there. Of all processes that ask at once one makes it, and the
    /// others wait. Where that one fails or is killed, the next makes it: nothing half made is ever found.
    ///
    /// # Errors
    /// What `create` returns; where the store cannot be read or written, or an [image](Self::image) not be had.
    pub fn get_or_create<E: From<Error>>(
        &self,
        create: impl FnOnce() -> Result<Snapshot, E>,
    ) -> Result<Snapshot, E> {
        let id = self.id()?;
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
        self.keep(&made, id)?;
        Ok(made)
    }

    fn keep(&self, made: &Snapshot, id: String) -> Result<(), Error> {
        must_last(made, &self.name)?;
        made.publish()?;
        let record = record(made, id, SealedKind::Named, self.name.clone());
        open(host()?)?.write_sealed(&record)?;
        Ok(())
    }

    /// As [`get`](Self::get), with the feature `tokio`.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[cfg(feature = "tokio")]
    pub async fn get_async(&self) -> Result<Option<Snapshot>, Error> {
        let named = self.clone();
        blocking(move || named.get()).await
    }

    /// As [`get_or_create`](Self::get_or_create), with the feature `tokio`. Given up, nothing is there, and the next makes
    /// it; a thread of the runtime may go on to wait for whoever makes it meanwhile.
    ///
    /// # Errors
    /// As [`get_or_create`](Self::get_or_create).
    #[cfg(feature = "tokio")]
    pub async fn get_or_create_async<E: From<Error>, F>(
        &self,
        create: impl FnOnce() -> F,
    ) -> Result<Snapshot, E>
    where
        F: Future<Output = Result<Snapshot, E>>,
    {
        let named = self.clone();
        let found = blocking(move || {
            let id = named.id()?;
            let store = open(host()?)?;
            if let Some(found) = find(&store, &id)? {
                return Ok(Err(found));
            }
            let lock = store.lock_sealed(&id)?;
            // Whoever had the lock may have made it.
            Ok(match find(&store, &id)? {
                Some(found) => Err(found),
                None => Ok((id, lock)),
            })
        });
        let (id, lock) = match found.await? {
            Ok(locked) => locked,
            Err(found) => return Ok(found),
        };
        let made = create().await?;
        let (named, kept) = (self.clone(), made.clone());
        blocking(move || {
            let _lock = lock;
            named.keep(&kept, id)
        })
        .await?;
        Ok(made)
    }

    /// Removes it; sandboxes that were started from it go on. Whether there was one.
    ///
    /// # Errors
    /// Where the store cannot be read or written.
    pub fn remove(&self) -> Result<bool, Error> {
        let host = host()?;
        let removed = open(host)?.remove_sealed(&self.id()?, &SupervisorWorker { host });
        Ok(removed?)
    }

    /// As [`remove`](Self::remove), with the feature `tokio`. Given up, it is removed all the same.
    ///
    /// # Errors
    /// As [`remove`](Self::remove).
    #[cfg(feature = "tokio")]
    pub async fn remove_async(&self) -> Result<bool, Error> {
        let named = self.clone();
        blocking(move || named.remove()).await
    }

    /// The record's name: it says all that the snapshot depends on. Each input has its length before it, so that no two
    /// lists of inputs are one text.
    fn id(&self) -> Result<String, Error> {
        self.id_with(digest_of)
    }

    fn id_with(&self, digest_of: impl Fn(&str) -> Result<String, Error>) -> Result<String, Error> {
        let mut text = Vec::new();
        add(&mut text, self.name.as_bytes());
        for input in &self.inputs {
            match input {
                Input::Bytes(bytes) => add(&mut text, bytes),
                Input::Image(reference) => add(&mut text, digest_of(reference)?.as_bytes()),
            }
        }
        Ok(Digest::of(&text).hex())
    }
}

/// What an image is, whatever it is called.
fn digest_of(reference: &str) -> Result<String, Error> {
    let fault = |why| Error::spec(vec![SpecFault::new("image of a snapshot", reference, why)]);
    let parsed: ImageRef = reference.parse().map_err(|why| Error::spec(vec![why]))?;
    if matches!(parsed, ImageRef::Host | ImageRef::Dir(_)) {
        return Err(fault(
            "it has no digest; name what the files depend on with `input`",
        ));
    }
    let (image, _lease) = resolve(&parsed, PullPolicy::default(), host()?)?;
    Ok(image.digest)
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
            ..snapshot.inner.image()
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
            place: Mutex::new(Place {
                name: None,
                sealing: None,
                lease: Some(lease),
            }),
        }),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_lists_of_inputs_are_one() {
        let id = |inputs: &[&str]| NamedSnapshot::new("x".into()).inputs(inputs).id().unwrap();
        assert_ne!(id(&["ab", "c"]), id(&["a", "bc"]));
        assert_ne!(id(&["ab"]), id(&["ab", ""]));
        assert_ne!(id(&[]), NamedSnapshot::new("y".into()).id().unwrap());
        assert_eq!(id(&["a"]), id(&["a"]));
    }

    #[test]
    fn an_image_is_what_its_tag_stands_for() {
        let named = NamedSnapshot::new("x".into()).image("db:17").input("a");
        let id = |digest: &str| {
            let told = |reference: &str| {
                assert_eq!(reference, "db:17");
                Ok(digest.to_owned())
            };
            named.id_with(told).unwrap()
        };
        assert_ne!(id("sha256:1"), id("sha256:2"));
        assert_eq!(id("sha256:1"), id("sha256:1"));
        let error = NamedSnapshot::new("x".into()).image("dir:/srv").id();
        assert!(error.unwrap_err().is_spec());
    }
}
