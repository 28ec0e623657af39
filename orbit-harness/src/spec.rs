//! What was asked of a sandbox: plain data, no IO.
//!
//! A [`Spec`] is filled by [`crate::SandboxBuilder`], by the attribute and by the configuration, and becomes
//! a plan in `plan`. Texts that name something (an image, a capability, a mount) are parsed where they
//! enter, so that a spec can hold what is wrong with it only as a list of faults.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    net::{
        addresses::Subnet,
        egress::{Allowed, Policy},
        ports::PortMap,
    },
    resources::{CpuSet, IoMax, Ulimit},
    units::{Bytes, CpuQuota},
};

/// Everything that was asked of one sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Spec {
    pub(crate) name: Option<String>,
    /// Whether the name gets a suffix where a running sandbox of this user has it.
    pub(crate) unique_name: bool,
    pub(crate) image: ImageRef,
    pub(crate) entrypoint: Option<Vec<OsString>>,
    pub(crate) cmd: Option<Vec<OsString>>,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: BTreeMap<OsString, OsString>,
    pub(crate) env_clear: bool,
    pub(crate) working_dir: Option<PathBuf>,
    pub(crate) user: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) mounts: Vec<Mount>,
    /// Written before the program starts.
    pub(crate) files: Vec<InitFile>,
    pub(crate) labels: BTreeMap<String, String>,
    /// What `stop` sends, as signal(7) numbers it; the image's signal, or SIGTERM, where none is given.
    pub(crate) stop_signal: Option<i32>,
    pub(crate) read_only: bool,
    pub(crate) cap_add: Vec<String>,
    pub(crate) cap_drop: Vec<String>,
    pub(crate) network: NetworkMode,
    pub(crate) limits: Limits,
    pub(crate) publish: Vec<PortMap>,
    /// Ports of the sandbox for which the kernel chooses one of the host's.
    pub(crate) expose: Vec<u16>,
    /// Where the sandbox is on the networks it shares; filled when it is started.
    pub(crate) links: Vec<Link>,
    /// What it is called there, beside its own name.
    pub(crate) aliases: Vec<String>,
    /// What it may reach beyond its networks; `None` where nothing was said, which is nothing.
    pub(crate) egress: Option<Policy>,
    /// Whether what is refused is recorded; where nothing was said, as `egress` needs.
    pub(crate) record_denied: Option<bool>,
    /// Which addresses those are; filled when it is started.
    pub(crate) looked_up: LookedUp,
    /// The bridge to join where a bridge is asked for.
    pub(crate) bridge: Bridge,
    /// Size of the writable layer.
    pub(crate) disk: Option<Bytes>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) init: Init,
    pub(crate) tty: bool,
    pub(crate) pull: PullPolicy,
    pub(crate) host_view: HostView,
    /// Whether the program may make user namespaces, and mounts in them.
    pub(crate) nested: bool,
    /// By how much its monotonic clock and its time since boot are ahead.
    pub(crate) clock_offset: Option<Duration>,
    /// Whether the outcome says which files were written.
    pub(crate) record_changes: bool,
    /// How many more of this kind are made before they are asked for.
    pub(crate) ahead: usize,
    /// Whether that is left out where it cannot be, rather than refused.
    pub(crate) ahead_if_possible: bool,
    /// Whether it outlives its program, for further ones.
    pub(crate) stays: bool,
}

/// What a sandbox over the host's files sees beyond the system, and what it does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HostView {
    /// Visible at the same path, with writes thrown away.
    pub(crate) paths: Vec<PathBuf>,
    /// Visible at the same path, read-only.
    pub(crate) read_only_paths: Vec<PathBuf>,
    /// Covered, though what is around them is visible.
    pub(crate) hidden: Vec<PathBuf>,
    /// The private home directory; the caller's own `$HOME` where none is given.
    pub(crate) home: Option<PathBuf>,
    /// Directories in which the caller has nothing are the same for all sandboxes: nothing of Orbit's is to write
    /// there either.
    pub(crate) shares_foreign: bool,
}

/// When a registry is asked for an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    /// Where the reference is not in the store yet.
    #[default]
    Missing,
    /// Each time: a tag may have moved.
    Always,
    /// Never: what is not in the store is an error.
    Never,
}

impl FromStr for PullPolicy {
    type Err = SpecFault;

    fn from_str(text: &str) -> Result<Self, SpecFault> {
        match text {
            "missing" => Ok(Self::Missing),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => Err(SpecFault::new(
                "pull",
                text,
                "expected missing, always or never",
            )),
        }
    }
}

/// Where the root filesystem of a sandbox comes from.
///
/// | text | what it is |
/// |---|---|
/// | `host` | the host's own files, read through a throwaway writable layer (the default) |
/// | `dir:PATH` | a directory, under a throwaway writable layer |
/// | `oci:PATH[:TAG]` | an OCI image layout |
/// | `oci-archive:PATH[:TAG]` | the same in a tar file |
/// | anything else | a reference to an image in a registry: `redis:7`, `127.0.0.1:5000/x@sha256:…` |
///
/// Source: the transports of containers-transports(5); OCI Image Layout Specification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ImageRef {
    /// The host view.
    #[default]
    Host,
    /// A directory that holds a root filesystem.
    Dir(PathBuf),
    /// An OCI image layout, and the tag to choose where it holds several images.
    Oci(PathBuf, Option<String>),
    /// A tar file of an OCI image layout, and the tag to choose where it holds several images.
    OciArchive(PathBuf, Option<String>),
    /// A reference to an image in a registry, as written.
    Registry(String),
}

impl FromStr for ImageRef {
    type Err = SpecFault;

    fn from_str(text: &str) -> Result<Self, SpecFault> {
        let fault = |why: &str| SpecFault::new("image", text, why);
        let located = |rest: &str| match rest.rsplit_once(':') {
            // A colon in a directory's name is not a tag's.
            Some((path, tag)) if !tag.contains('/') && !path.is_empty() && !tag.is_empty() => {
                (PathBuf::from(path), Some(tag.to_owned()))
            }
            _ => (PathBuf::from(rest), None),
        };
        match text.split_once(':') {
            _ if text == "host" => Ok(Self::Host),
            Some(("dir" | "oci" | "oci-archive", "")) => Err(fault("a path must follow the colon")),
            Some(("dir", path)) => Ok(Self::Dir(path.into())),
            Some(("oci", rest)) => {
                let (path, tag) = located(rest);
                Ok(Self::Oci(path, tag))
            }
            Some(("oci-archive", rest)) => {
                let (path, tag) = located(rest);
                Ok(Self::OciArchive(path, tag))
            }
            _ if text.is_empty() => Err(fault(
                "it is empty; write `host`, `dir:PATH`, `oci:PATH` or a name such as `busybox`",
            )),
            _ => Ok(Self::Registry(text.to_owned())),
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tagged = |f: &mut fmt::Formatter<'_>, kind, path: &PathBuf, tag: &Option<String>| {
            write!(f, "{kind}:{}", path.display())?;
            tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
        };
        match self {
            Self::Host => f.write_str("host"),
            Self::Dir(path) => write!(f, "dir:{}", path.display()),
            Self::Oci(path, tag) => tagged(f, "oci", path, tag),
            Self::OciArchive(path, tag) => tagged(f, "oci-archive", path, tag),
            Self::Registry(reference) => f.write_str(reference),
        }
    }
}

/// A file that is there before the program starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InitFile {
    pub(crate) at: PathBuf,
    pub(crate) content: Vec<u8>,
    pub(crate) mode: Option<u32>,
    /// `user[:group]` of the sandbox.
    pub(crate) owner: Option<String>,
}

/// What a file of a sandbox is to hold: bytes or text, and, where that matters, who may read it.
///
/// A new file is root's, and everybody may read it (`0644`), unless told otherwise; one that is there already keeps
/// its owner and its permissions.
///
/// ```
/// use orbit::Content;
///
/// let secret = Content::from("s3cret").mode(0o600).owner("70:70");
/// # let _ = secret;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub(crate) bytes: Vec<u8>,
    pub(crate) mode: Option<u32>,
    pub(crate) owner: Option<String>,
}

impl Content {
    /// The permissions of the file, as chmod(2) has them.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Whose the file is: `user`, `user:group`, `uid` or `uid:gid` of the sandbox.
    #[must_use]
    pub fn owner(mut self, owner: &str) -> Self {
        self.owner = Some(owner.to_owned());
        self
    }
}

impl<T: AsRef<[u8]>> From<T> for Content {
    fn from(bytes: T) -> Self {
        Self {
            bytes: bytes.as_ref().to_vec(),
            mode: None,
            owner: None,
        }
    }
}

/// Something of the host, or a fresh filesystem, at a path in the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub(crate) kind: MountKind,
    pub(crate) target: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MountKind {
    Bind {
        source: PathBuf,
        read_only: bool,
    },
    /// The host's directory underneath, a throwaway writable layer on top.
    Overlay {
        source: PathBuf,
    },
    Tmpfs {
        size: Option<Bytes>,
    },
}

impl Mount {
    /// The host's file or directory `source` at `target`: writes go to the host.
    pub fn bind(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self {
            kind: MountKind::Bind {
                source: source.into(),
                read_only: false,
            },
            target: target.into(),
        }
    }

    /// The host's file or directory `source` at `target`, read-only.
    pub fn bind_read_only(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self {
            kind: MountKind::Bind {
                source: source.into(),
                read_only: true,
            },
            target: target.into(),
        }
    }

    /// The host's directory `source` at `target`, writable, with every write thrown away at the end.
    pub fn overlay(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self {
            kind: MountKind::Overlay {
                source: source.into(),
            },
            target: target.into(),
        }
    }

    /// A fresh filesystem in memory at `target`, of 64 MiB unless [`Mount::size`] says otherwise.
    pub fn tmpfs(target: impl Into<PathBuf>) -> Self {
        Self {
            kind: MountKind::Tmpfs { size: None },
            target: target.into(),
        }
    }

    /// Bounds a tmpfs to `size` bytes. Other kinds of mount have no size of their own: nothing changes there.
    #[must_use]
    pub fn size(mut self, size: Bytes) -> Self {
        if let MountKind::Tmpfs { size: slot } = &mut self.kind {
            *slot = Some(size);
        }
        self
    }
}

/// `SOURCE:TARGET[:ro|rw|overlay]`, as `docker run -v`; `tmpfs:TARGET[:SIZE]` for a filesystem in memory.
impl FromStr for Mount {
    type Err = SpecFault;

    fn from_str(text: &str) -> Result<Self, SpecFault> {
        let fault = |why: &str| SpecFault::new("mount", text, why);
        let words: Vec<&str> = text.split(':').collect();
        let mount = match words[..] {
            ["tmpfs", target] => Self::tmpfs(target),
            ["tmpfs", target, size] => {
                Self::tmpfs(target).size(size.parse().map_err(|e| fault(&format!("{e}")))?)
            }
            [source, target] | [source, target, "rw"] => Self::bind(source, target),
            [source, target, "ro"] => Self::bind_read_only(source, target),
            [source, target, "overlay"] => Self::overlay(source, target),
            [_, _, _] => return Err(fault("the third word is none of ro, rw, overlay")),
            _ => {
                return Err(fault(
                    "expected SOURCE:TARGET[:ro|rw|overlay] or tmpfs:TARGET[:SIZE]",
                ));
            }
        };
        if words[0].is_empty() || words[1].is_empty() {
            return Err(fault("source and target may not be empty"));
        }
        Ok(mount)
    }
}

/// The rules of egress, with the addresses of the names in them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LookedUp {
    pub(crate) allowed: Vec<Allowed>,
    pub(crate) names: Vec<(IpAddr, String)>,
}

/// The network a sandbox sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum NetworkMode {
    /// A network of its own with nothing but loopback.
    #[default]
    None,
    /// The host's network: no isolation of ports or addresses.
    Host,
    /// A bridge that sandboxes share.
    Bridge,
}

impl FromStr for NetworkMode {
    type Err = SpecFault;

    fn from_str(text: &str) -> Result<Self, SpecFault> {
        match text {
            "none" => Ok(Self::None),
            "host" => Ok(Self::Host),
            "bridge" => Ok(Self::Bridge),
            _ => Err(SpecFault::new(
                "network",
                text,
                "expected none, host or bridge",
            )),
        }
    }
}

/// The bridge that sandboxes share which ask for no network of their own making.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Bridge {
    pub(crate) name: String,
    pub(crate) subnet: Subnet,
}

impl Default for Bridge {
    fn default() -> Self {
        Self {
            name: "myruntime0".to_owned(),
            subnet: Subnet::DEFAULT,
        }
    }
}

/// A sandbox's place on a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Link {
    /// What the network is called, for people.
    pub(crate) network: String,
    pub(crate) subnet: Subnet,
    pub(crate) address: Ipv4Addr,
    pub(crate) names: LinkNames,
}

/// How a sandbox learns the names of others on a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LinkNames {
    /// It asks the network's first address.
    Server,
    /// It is told those that were there before it.
    Hosts(Vec<(Ipv4Addr, String)>),
}

/// What runs as process 1 of the sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Init {
    /// Orbit's init: reaps orphans and forwards signals, so that the program behaves as on the host.
    #[default]
    Orbit,
    /// The program itself.
    Program,
}

/// Limits on what a sandbox may use. `None` is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    pub(crate) memory: Option<Bytes>,
    pub(crate) memory_high: Option<Bytes>,
    pub(crate) cpu: Option<CpuQuota>,
    pub(crate) cpuset: Option<CpuSet>,
    pub(crate) pids: Option<u64>,
    pub(crate) io: Vec<IoMax>,
    pub(crate) ulimits: Vec<Ulimit>,
    /// What the sandbox used is counted even where nothing is limited.
    pub(crate) accounting: bool,
    /// A limit that cannot be kept here is a warning and no error.
    pub(crate) best_effort: bool,
}

/// One thing that is wrong with a spec: which field, what was given, and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{field} `{given}`: {why}")]
pub struct SpecFault {
    pub(crate) field: String,
    pub(crate) given: String,
    pub(crate) why: String,
}

impl SpecFault {
    pub(crate) fn new(
        field: impl Into<String>,
        given: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            given: given.into(),
            why: why.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_image_is_told_by_its_prefix() {
        let parse = |text: &str| text.parse::<ImageRef>();
        assert_eq!(parse("host"), Ok(ImageRef::Host));
        assert_eq!(
            parse("dir:/srv/root:fs"),
            Ok(ImageRef::Dir("/srv/root:fs".into()))
        );
        assert_eq!(
            parse("oci:images/busybox"),
            Ok(ImageRef::Oci("images/busybox".into(), None))
        );
        assert_eq!(
            parse("oci:a/b:1.36"),
            Ok(ImageRef::Oci("a/b".into(), Some("1.36".into())))
        );
        assert_eq!(
            parse("oci:/a:b/c"),
            Ok(ImageRef::Oci("/a:b/c".into(), None))
        );
        assert_eq!(
            parse("oci-archive:x.tar:t"),
            Ok(ImageRef::OciArchive("x.tar".into(), Some("t".into())))
        );
        assert_eq!(
            parse("127.0.0.1:5000/x:1"),
            Ok(ImageRef::Registry("127.0.0.1:5000/x:1".into()))
        );
        assert!(parse("").is_err());
        assert!(parse("dir:").is_err());
    }

    #[test]
    fn a_mount_is_read_as_docker_reads_it() {
        assert_eq!("/a:/b".parse(), Ok(Mount::bind("/a", "/b")));
        assert_eq!("/a:/b:ro".parse(), Ok(Mount::bind_read_only("/a", "/b")));
        assert_eq!(
            "tmpfs:/t:1M".parse(),
            Ok(Mount::tmpfs("/t").size(Bytes::mib(1)))
        );
        for text in [
            "",
            "/a",
            ":/b",
            "/a:",
            "/a:/b:rx",
            "a:b:c:d",
            "tmpfs:/t:10Q",
        ] {
            assert!(text.parse::<Mount>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn an_image_prints_as_it_parses(text in "(dir:|oci:|oci-archive:)?[a-z0-9/:@.]{1,20}") {
            if let Ok(image) = text.parse::<ImageRef>() {
                prop_assert_eq!(image.to_string().parse(), Ok(image));
            }
        }
    }
}
