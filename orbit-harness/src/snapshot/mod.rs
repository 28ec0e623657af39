//! [`Snapshot`]: what a sandbox wrote, sealed as a layer that any number of others start over.
//!
//! A snapshot is a directory in the store of images. One without a name goes with its value, and where its process is
//! killed, with the next snapshot or `cargo orbit gc`; one with a name stays, and is leased as layers of images are.

pub mod kept;
mod named;
mod save;

use std::{
    any::Any,
    fmt, io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use self::named::NamedSnapshot;
use crate::{
    builder::{Base, SandboxBuilder},
    error::Error,
    image::{Held, Image},
    images::{SupervisorWorker, host, open},
    layer::{Sealed, Writable},
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
    /// With the layer of the snapshot on top, as they were named when it was sealed.
    image: Image,
    sealed: Sealed,
    /// What the image's other layers are held by.
    base: Held,
    place: Mutex<Place>,
}

/// Where the layer of a snapshot lies.
struct Place {
    /// Its name, by now.
    name: Option<String>,
    /// Of one without a name: its directory, which goes with this value.
    sealing: Option<Sealing>,
    /// Of one with a name: what keeps its layers from being removed meanwhile.
    lease: Option<ImageLease>,
}

impl Inner {
    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image with the names that its layers have by now: one that was given a name is another directory, and whoever
    /// had the snapshot before has it still.
    fn image(&self) -> Image {
        let mut image = self.image.clone();
        if let Some(below) = current(&self.base) {
            let count = below.layers.len().min(image.layers.len());
            image.layers[..count].clone_from_slice(&below.layers[..count]);
        }
        if let (Some(last), Some(name)) = (image.layers.last_mut(), &self.place().name) {
            last.clone_from(name);
        }
        image
    }
}

/// The image of a snapshot, where that is what is held.
fn current(held: &Held) -> Option<Image> {
    let held: &dyn Any = &**held.as_ref()?;
    Some(held.downcast_ref::<Inner>()?.image())
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
        self.begin_to_seal()?.seal()
    }

    /// As [`snapshot`](Self::snapshot), with the feature `tokio`. Given up, it is made and removed.
    ///
    /// # Errors
    /// As [`snapshot`](Self::snapshot).
    #[cfg(feature = "tokio")]
    pub async fn snapshot_async(&mut self) -> Result<Snapshot, Error> {
        let seal = self.begin_to_seal()?;
        sandbox::blocking(move || seal.seal()).await
    }

    fn begin_to_seal(&mut self) -> Result<Seal, Error> {
        let id = self.id().to_owned();
        let fault = |why| Err(Error::spec(vec![SpecFault::new("snapshot", &id, why)]));
        if !self.is_quiet()? {
            return fault("its program runs and writes; call stop(), wait() or freeze() first");
        }
        let writable = self.writable();
        let (origin, plan, scratch) = self.made_of();
        let Some(scratch) = scratch else {
            return fault("it ended before its program ran, so there is nothing to seal");
        };
        let scratch = scratch
            .try_clone()
            .map_err(|error| Error::io("cannot share the sandbox's files", error))?;
        Ok(Seal {
            writable,
            scratch,
            image: current(&origin.held).unwrap_or_else(|| origin.image.clone()),
            base: origin.held.clone(),
            spec: for_clones(&origin.spec, plan),
            ready: self.readying(),
        })
    }
}

/// A sandbox's files that stand still, and all that a snapshot of them has beside.
struct Seal {
    writable: Writable,
    scratch: OwnedFd,
    image: Image,
    base: Held,
    spec: Spec,
    ready: Readying,
}

impl Seal {
    fn seal(self) -> Result<Snapshot, Error> {
        let host = host()?;
        let store = open(host)?;
        let worker = SupervisorWorker { host };
        let sealing = store.begin_sealing(&worker)?;
        let directory = store.directory_of_layers();
        let request = Request::Seal {
            writable: Box::new(self.writable),
            destination: directory.join(sealing.name()),
        };
        let sealed = Supervisor::get(host)
            .map_err(Error::from)
            .and_then(|supervisor| Ok(supervisor.ask(&request, &[self.scratch.as_fd()])?))
            .and_then(|reply| sandbox::written::<Sealed>(&reply));
        let sealed = match sealed {
            Ok(sealed) => sealed,
            Err(error) => {
                // The first error is the one to tell; what stays is swept by the next.
                let _ = sealing.remove(&worker);
                return Err(error);
            }
        };
        let mut image = self.image;
        image.layers_dir = directory;
        image.layers.push(sealing.name());
        image.sealed += 1;
        Ok(Snapshot {
            spec: Arc::new(self.spec),
            ready: Arc::new(self.ready),
            inner: Arc::new(Inner {
                image,
                sealed,
                base: self.base,
                place: Mutex::new(Place {
                    name: None,
                    sealing: Some(sealing),
                    lease: None,
                }),
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
                image: self.inner.image(),
                held: Some(Arc::clone(&self.inner) as _),
                current,
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

    /// As [`start`](Self::start), with the feature `tokio`. Given up, the sandbox is killed.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    #[cfg(feature = "tokio")]
    pub async fn start_async(&self) -> Result<Sandbox, Error> {
        let waits = self.ready.waits.iter().cloned();
        let builder = waits.fold(self.builder(), SandboxBuilder::wait_for);
        builder.start_async().await
    }

    /// The content of the files that were written, in bytes.
    pub fn bytes(&self) -> u64 {
        self.inner.sealed.content_bytes
    }

    /// Writes the files, with those of the image below, as an OCI image layout to the directory `path`, which must not
    /// be there yet. `cargo orbit run --image oci:PATH`, skopeo and others read it; its one image is tagged `latest`.
    ///
    /// What runs in it by default is what ran in the sandbox, as `docker commit` has it: the configuration of the image
    /// below, with the entrypoint, command, environment, working directory, user, labels, ports, stop signal and health
    /// check that the [builder](SandboxBuilder) was given. Values of variables are in it, too: give no secret to a sandbox
    /// whose image is for others.
    ///
    /// The layers are packed anew from the store, so their digests are not those of the image that they came from.
    ///
    /// # Errors
    /// Where the sandbox was one over the host's files, which are no image; where `path` is there, or cannot be written;
    /// where a file's name begins with `.wh.`, which means something else in such a layer.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        save::save(&self.inner.image(), &self.spec, &self.ready, path.as_ref())
    }

    /// As [`save`](Self::save), with the feature `tokio`. Given up, it is written all the same.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    #[cfg(feature = "tokio")]
    pub async fn save_async(&self, path: impl Into<std::path::PathBuf>) -> Result<(), Error> {
        let (snapshot, path) = (self.clone(), path.into());
        sandbox::blocking(move || snapshot.save(path)).await
    }

    /// Makes it one that stays, for all who have it. The directory may be in use: it is only renamed.
    fn publish(&self) -> Result<(), Error> {
        let store = open(host()?)?;
        let mut place = self.inner.place();
        if let Some(sealing) = place.sealing.take() {
            let (name, lease) = sealing.publish(&store, self.inner.sealed.clone())?;
            place.name = Some(name);
            place.lease = Some(lease);
        }
        Ok(())
    }

    /// Whether every layer below it stays: one over a snapshot without a name does not.
    fn is_over_lasting(&self) -> bool {
        let layers = self.inner.image().layers;
        layers[..layers.len().saturating_sub(1)]
            .iter()
            .all(|name| !name.contains('.'))
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("of", &self.spec.image)
            .field("layers", &self.inner.image().layers)
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

/// Removes the files of one without a name.
impl Drop for Inner {
    fn drop(&mut self) {
        let place = self.place.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let (Some(sealing), Ok(host)) = (place.sealing.take(), host()) {
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
