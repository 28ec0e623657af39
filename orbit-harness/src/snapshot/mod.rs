//! [`Snapshot`]: what a sandbox wrote, sealed as a layer that any number of others start over.
//!
//! A snapshot is a directory in the store of images. One without a name goes with its value, and where its process is
//! killed, with the next snapshot or `cargo orbit gc`; one with a name stays, and is leased as layers of images are.

pub mod kept;
mod named;
mod save;

use std::{
    fmt, io,
    os::fd::AsFd as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

pub use self::named::NamedSnapshot;
use crate::{
    builder::{Base, SandboxBuilder},
    error::Error,
    image::{Held, Image},
    images::{SupervisorWorker, host, open},
    layer::Sealed,
    net::ports::{PortMap, Protocol},
    plan::Plan,
    sandbox::{self, Sandbox},
    spec::{Spec, SpecFault},
    store::{ImageLease, Sealing},
    supervisor::{Request, Supervisor},
    wait::Readying,
};

/// The files of a sandbox as they were when it stood still. Sandboxes start over them, each with a writable layer of its
/// own: none sees what another writes.
///
/// Clones share the files; what is left is removed with the last of them, and of the sandboxes started from them.
///
/// ```no_run
/// use std::time::Duration;
///
/// let mut db = orbit::Sandbox::builder().image("oci:target/images/postgres").expose(5432).start()?;
/// // … migrate it …
/// db.stop(Duration::from_secs(10))?;
/// let golden = db.snapshot()?;
/// let clones: Vec<orbit::Sandbox> = (0..20).map(|_| golden.start()).collect::<Result<_, _>>()?;
/// println!("{}", clones[7].addr(5432));
/// # Ok::<(), orbit::Error>(())
/// ```
#[derive(Clone)]
pub struct Snapshot {
    inner: Arc<Inner>,
    spec: Arc<Spec>,
    /// When the sandbox that was sealed counted as ready.
    ready: Arc<Readying>,
}

struct Inner {
    /// With the layer of the snapshot on top.
    image: Image,
    sealed: Sealed,
    /// What the image's other layers are held by.
    base: Held,
    /// Of one without a name: its directory, which goes with this value.
    sealing: Mutex<Option<Sealing>>,
    /// Of one with a name: what keeps its layers from being removed meanwhile.
    _lease: Option<ImageLease>,
}

impl Sandbox {
    /// Seals what was written to this sandbox, which must have ended ([`stop`](Self::stop), [`wait`](Self::wait)) or be
    /// [frozen](Self::freeze): what is half written would be half in the snapshot.
    ///
    /// The snapshot has what is in the sandbox's own files. What was written to mounts of the host, to other filesystems
    /// in memory (`/dev/shm`), or lives in memory, is not in it.
    ///
    /// ```no_run
    /// let mut first = orbit::Sandbox::builder()
    ///     .image("oci:target/images/busybox")
    ///     .cmd(["sh", "-c", "echo 1 > /data"])
    ///     .start()?;
    /// first.wait()?;
    /// let golden = first.snapshot()?;
    /// let outcome = golden.builder().cmd(["cat", "/data"]).run()?;
    /// assert_eq!(outcome.stdout_text(), "1\n");
    /// # Ok::<(), orbit::Error>(())
    /// ```
    ///
    /// # Errors
    /// Where the sandbox runs, never ran, or a file of it cannot be copied to the store: it may be full.
    pub fn snapshot(&mut self) -> Result<Snapshot, Error> {
        let id = self.id().to_owned();
        let fault = |why| Err(Error::spec(vec![SpecFault::new("snapshot", &id, why)]));
        if !self.is_quiet()? {
            return fault("its program runs and writes; call stop(), wait() or freeze() first");
        }
        let host = host()?;
        let store = open(host)?;
        let worker = SupervisorWorker { host };
        let writable = self.writable();
        let (origin, plan, scratch) = self.made_of();
        let Some(scratch) = scratch else {
            return fault("it ended before its program ran, so there is nothing to seal");
        };
        let sealing = store.begin_sealing(&worker)?;
        let directory = store.directory_of_layers();
        let request = Request::Seal {
            writable: Box::new(writable),
            destination: directory.join(sealing.name()),
        };
        let sealed = Supervisor::get(host)
            .map_err(Error::from)
            .and_then(|supervisor| Ok(supervisor.ask(&request, &[scratch.as_fd()])?))
            .and_then(|reply| sandbox::written::<Sealed>(&reply));
        let sealed = match sealed {
            Ok(sealed) => sealed,
            Err(error) => {
                // The first error is the one to tell; what stays is swept by the next.
                let _ = sealing.remove(&worker);
                return Err(error);
            }
        };
        let mut image = origin.image.clone();
        image.layers_dir = directory;
        image.layers.push(sealing.name());
        image.sealed += 1;
        Ok(Snapshot {
            spec: Arc::new(for_clones(&origin.spec, plan)),
            ready: Arc::new(self.readying()),
            inner: Arc::new(Inner {
                image,
                sealed,
                base: origin.held.clone(),
                sealing: Mutex::new(Some(sealing)),
                _lease: None,
            }),
        })
    }
}

impl Snapshot {
    /// A snapshot that stays, under a name and the digest of what it was made from: see [`NamedSnapshot`].
    pub fn named(name: impl Into<String>) -> NamedSnapshot {
        NamedSnapshot::new(name.into())
    }

    /// Another sandbox like the one that was sealed, over its files: the same program, environment, limits and mounts,
    /// unless it is told otherwise. Ports that it published at a chosen port of the host are exposed instead, at one
    /// that the kernel chooses; it is on no network that it is not put on.
    ///
    /// Nothing is waited for until that is said, since it may be told to run another program; [`start`](Self::start)
    /// waits as the first one was waited for.
    pub fn builder(&self) -> SandboxBuilder {
        SandboxBuilder {
            spec: (*self.spec).clone(),
            base: Some(Base {
                image: self.inner.image.clone(),
                held: Some(Arc::clone(&self.inner) as _),
            }),
            startup_timeout: self.ready.startup_timeout,
            healthcheck: self.ready.healthcheck.clone(),
            ..SandboxBuilder::default()
        }
    }

    /// Starts one more sandbox: [`builder`](Self::builder) with nothing else asked. Returns when it is ready, by what the
    /// first one was [waited for](SandboxBuilder::wait_for).
    ///
    /// # Errors
    /// As [`SandboxBuilder::start`].
    pub fn start(&self) -> Result<Sandbox, Error> {
        let waits = self.ready.waits.iter().cloned();
        waits.fold(self.builder(), SandboxBuilder::wait_for).start()
    }

    /// The content of the files that were written, in bytes.
    pub fn bytes(&self) -> u64 {
        self.inner.sealed.content_bytes
    }

    /// Writes the files, with those of the image below, as an OCI image layout to the directory `path`, which must not
    /// be there yet. `cargo orbit run --image oci:PATH`, skopeo and others read it; its one image is tagged `latest`.
    ///
    /// The layers are packed anew from the store, so their digests are not those of the image that they came from.
    ///
    /// # Errors
    /// Where the sandbox was one over the host's files, which are no image; where `path` is there, or cannot be written;
    /// where a file's name begins with `.wh.`, which means something else in such a layer.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        save::save(&self.inner.image, &self.spec, path.as_ref())
    }

    /// Makes it one that stays. The directory may be in use: it is only renamed.
    fn publish(&self) -> Result<Self, Error> {
        let mut slot = self
            .inner
            .sealing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(sealing) = slot.take() else {
            return Ok(self.clone());
        };
        let store = open(host()?)?;
        let (name, lease) = sealing.publish(&store, self.inner.sealed.clone())?;
        let mut image = self.inner.image.clone();
        image.layers.pop();
        image.layers.push(name);
        Ok(Self {
            spec: Arc::clone(&self.spec),
            ready: Arc::clone(&self.ready),
            inner: Arc::new(Inner {
                image,
                sealed: self.inner.sealed.clone(),
                base: self.inner.base.clone(),
                sealing: Mutex::new(None),
                _lease: Some(lease),
            }),
        })
    }

    /// Whether every layer below it stays: one over a snapshot without a name does not.
    fn is_over_lasting(&self) -> bool {
        let layers = &self.inner.image.layers;
        layers[..layers.len().saturating_sub(1)]
            .iter()
            .all(|name| !name.contains('.'))
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("of", &self.spec.image)
            .field("layers", &self.inner.image.layers)
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

/// Removes the files of one without a name.
impl Drop for Inner {
    fn drop(&mut self) {
        let slot = self
            .sealing
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let (Some(sealing), Ok(host)) = (slot.take(), host()) {
            // Where that fails, its lock is let go of all the same: the next snapshot sweeps it, or gc.
            let _ = sealing.remove(&SupervisorWorker { host });
        }
    }
}

/// What was asked of a sandbox, without what only one can have.
fn for_clones(spec: &Spec, plan: &Plan) -> Spec {
    let mut spec = spec.clone();
    spec.links.clear();
    spec.aliases.clear();
    spec.publish.clear();
    for published in &plan.publish {
        let is_exposed = spec.expose.contains(&published.port);
        if published.protocol == Protocol::Tcp && !is_exposed {
            spec.expose.push(published.port);
        } else if published.host.port() == 0 && !is_exposed {
            let found = plan_port(published.port, published.protocol);
            spec.publish.extend(found);
        }
    }
    spec
}

/// A port of the sandbox at one of the host's that the kernel chooses.
fn plan_port(port: u16, protocol: Protocol) -> Option<PortMap> {
    format!("0:{port}/{protocol}").parse().ok()
}

/// That the store holds all that a record would lead to.
fn must_last(snapshot: &Snapshot, what: &str) -> Result<(), Error> {
    if snapshot.is_over_lasting() {
        return Ok(());
    }
    let why = "it is over a snapshot without a name, which goes with its process; give that one a name first";
    Err(Error::spec(vec![SpecFault::new("snapshot", what, why)]))
}

/// Seconds since 1970.
fn now_s() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn not_found(what: &str) -> Error {
    Error::io(
        format!("cannot find {what}"),
        io::Error::from(io::ErrorKind::NotFound),
    )
}
