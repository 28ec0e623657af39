//! References to images in registries, as people write them, and the one form in which Orbit compares them.
//!
//! `busybox` is short for `docker.io/library/busybox:latest`. Parsing does no IO and accepts nothing that would
//! need escaping in a URL or in a file's name.
//!
//! Source: the grammar in the OCI Distribution Specification, "Pulling manifests", and Docker's familiar names.

use std::{fmt, net::IpAddr, str::FromStr};

use super::digest::Digest;

const DEFAULT_REGISTRY: &str = "docker.io";
/// Where Docker's default registry really answers.
const DEFAULT_REGISTRY_HOST: &str = "registry-1.docker.io";
const MAX_REPOSITORY_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;

/// An image in a registry: which registry, which repository in it, and which of its images.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry as it is named in references and in credential files, port included.
    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    /// The host, and port where one is given, that answers for the registry.
    pub(crate) fn host(&self) -> &str {
        match self.registry.as_str() {
            DEFAULT_REGISTRY => DEFAULT_REGISTRY_HOST,
            host => host,
        }
    }

    /// Where the image lies in the registry: `library/busybox`.
    pub(crate) fn repository(&self) -> &str {
        &self.repository
    }

    /// The digest that the manifest must have, where the reference pins one.
    pub(crate) fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What the manifest is asked for by: the digest where there is one, as it says more than the tag.
    pub(crate) fn manifest_name(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// Whether the registry is on this machine, where plain HTTP goes through no network that others see.
    pub(crate) fn is_loopback(&self) -> bool {
        let host = self.registry.as_str();
        let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        is_loopback(name)
    }
}

/// Whether a host, without its port, is this machine.
pub(crate) fn is_loopback(name: &str) -> bool {
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The full form: two references that print alike name the same image.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Why a text is not a reference to an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{given}` is not a reference to an image: {why}; write it as `busybox`, `redis:7` or `host:5000/team/app:1.2`"
)]
pub(crate) struct ReferenceError {
    given: String,
    why: &'static str,
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|why| ReferenceError {
            given: text.chars().take(300).collect(),
            why,
        })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => {
            let digest = digest.parse().map_err(
                |_| "what follows `@` is not `sha256:` and 64 lower-case hexadecimal digits",
            )?;
            (name, Some(digest))
        }
        None => (text, None),
    };
    // A colon after the last slash separates a tag; one before it belongs to the registry's port.
    let after_slash = name.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match name[after_slash..].split_once(':') {
        Some((last, tag)) => (&name[..after_slash + last.len()], Some(tag)),
        None => (name, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if names_a_host(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    check_registry(registry)?;
    let registry = match registry.to_ascii_lowercase() {
        known if known == "index.docker.io" => DEFAULT_REGISTRY.to_owned(),
        other => other,
    };
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    check_repository(path, &repository)?;
    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, None) => Some("latest".to_owned()),
        (None, Some(_)) => None,
    };
    Ok(Reference {
        registry,
        repository,
        tag,
        digest,
    })
}

/// The first part is a registry where it has a dot or a port, or is `localhost`, as Docker tells them.
fn names_a_host(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':', '['])
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    let port_is_good = |port: &str| {
        port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
    };
    if let Some(rest) = registry.strip_prefix('[') {
        let (address, port) = rest
            .split_once(']')
            .ok_or("the registry's address has no closing `]`")?;
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return Err("what stands in `[]` is not an IPv6 address");
        }
        return match port.strip_prefix(':') {
            None if port.is_empty() => Ok(()),
            Some(port) if port_is_good(port) => Ok(()),
            _ => Err("the registry's port is not a number up to 65535"),
        };
    }
    let (host, port) = match registry.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (registry, None),
    };
    let label_is_good = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if host.len() > 253 || !host.split('.').all(label_is_good) {
        return Err("the registry is not a host's name");
    }
    match port {
        Some(port) if !port_is_good(port) => Err("the registry's port is not a number up to 65535"),
        _ => Ok(()),
    }
}

fn check_repository(given: &str, repository: &str) -> Result<(), &'static str> {
    if given.is_empty() {
        return Err("no repository follows the registry");
    }
    if repository.len() > MAX_REPOSITORY_BYTES {
        return Err("the repository's name is longer than 255 bytes");
    }
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("a repository's name must be lower-case");
    }
    if repository.split('/').all(is_repository_part) {
        Ok(())
    } else {
        Err(
            "each part of a repository's name is lower-case letters and digits, joined by `.`, `_`, `__` or dashes",
        )
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_repository_part(part: &str) -> bool {
    let is_alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends_are_good = part.bytes().next().is_some_and(is_alphanumeric)
        && part.bytes().last().is_some_and(is_alphanumeric);
    let separators_are_good = part
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        });
    ends_are_good && separators_are_good
}

/// `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`
fn check_tag(tag: &str) -> Result<(), &'static str> {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    if tag.len() <= MAX_TAG_BYTES
        && bytes.next().is_some_and(is_word)
        && bytes.all(|b| is_word(b) || b == b'.' || b == b'-')
    {
        Ok(())
    } else {
        Err(
            "a tag is up to 128 letters, digits, `_`, `.` and `-`, and starts with none of the last two",
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_names_mean_what_docker_means_by_them() {
        for (given, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("team/app", "docker.io/team/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/a/b:c", "docker.io/a/b:c"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:x", "localhost:5000/app:x"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("Example.COM/app", "example.com/app:latest"),
            ("a__b/c.d--e", "docker.io/a__b/c.d--e:latest"),
        ] {
            assert_eq!(given.parse::<Reference>().unwrap().to_string(), full);
        }
        let pinned: Reference = format!("busybox@{DIGEST}").parse().unwrap();
        assert_eq!(
            pinned.to_string(),
            format!("docker.io/library/busybox@{DIGEST}")
        );
        let both: Reference = format!("h:1/a:t@{DIGEST}").parse().unwrap();
        assert_eq!(both.manifest_name(), DIGEST);
        assert_eq!(both.to_string(), format!("h:1/a:t@{DIGEST}"));
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        let loopback = |text: &str| text.parse::<Reference>().unwrap().is_loopback();
        for text in [
            "127.0.0.1:5000/x",
            "127.9.9.9/x",
            "localhost/x",
            "localhost:1/x",
            "[::1]/x",
            "[::1]:5/x",
        ] {
            assert!(loopback(text), "{text}");
        }
        for text in [
            "busybox",
            "example.com/x",
            "localhost.example.com/x",
            "128.0.0.1/x",
            "[::2]:5000/x",
            "10.0.0.1/x",
        ] {
            assert!(!loopback(text), "{text}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_with_the_reason() {
        for (given, why) in [
            ("", "empty"),
            ("Busybox", "lower-case"),
            ("a b", "each part"),
            ("a//b", "each part"),
            ("/a", "each part"),
            ("a/", "each part"),
            ("../etc", "registry"),
            ("a/../b", "each part"),
            ("a___b", "each part"),
            ("a:", "a tag"),
            ("a:-x", "a tag"),
            ("a:b/c", "port"),
            ("h:99999/a", "port"),
            ("h:/a", "port"),
            ("[::1/a", "closing"),
            ("[x]/a", "IPv6"),
            ("a@sha256:00", "`@`"),
            ("a@", "`@`"),
            ("-x.y/a", "host"),
            ("x.y/", "no repository"),
            ("user@host.com/a", "`@`"),
            ("a?b", "each part"),
            ("a%2e", "each part"),
        ] {
            let error = given.parse::<Reference>().unwrap_err();
            assert!(error.why.contains(why), "{given}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_reference_prints_as_it_parses(text in "([a-zA-Z0-9.:\\[\\]-]{1,12}/)?[a-z0-9/._-]{1,20}(:[a-zA-Z0-9._-]{0,9})?") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse(), Ok(reference));
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,60}") {
            let _ = text.parse::<Reference>();
        }
    }
}
