//! What the program of a sandbox is started with: what was asked, else what the image says, else what is usual.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use super::UserPlan;
use crate::{
    host::Host,
    image::Image,
    rootfs::{host_view, host_view::Surroundings, normal},
    spec::{ImageRef, Spec},
};

/// What a program's environment holds where nobody said anything.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The words to execute: Docker's rule for entrypoint and cmd, then what was appended.
///
/// Source: Dockerfile reference, "Understand how CMD and ENTRYPOINT interact".
pub(super) fn argv(spec: &Spec, image: &Image) -> Vec<OsString> {
    let words = |words: &[String]| -> Vec<OsString> { words.iter().map(OsString::from).collect() };
    let entrypoint = spec
        .entrypoint
        .clone()
        .unwrap_or_else(|| words(&image.config.entrypoint));
    let cmd = match (&spec.cmd, &spec.entrypoint) {
        (Some(cmd), _) => cmd.clone(),
        (None, Some(_)) => Vec::new(),
        (None, None) => words(&image.config.cmd),
    };
    entrypoint
        .into_iter()
        .chain(cmd)
        .chain(spec.args.iter().cloned())
        .collect()
}

pub(super) fn environment(
    spec: &Spec,
    image: &Image,
    host: &Host,
    around: &Surroundings,
    hostname: &str,
) -> BTreeMap<OsString, OsString> {
    let mut env = BTreeMap::new();
    if !spec.env_clear {
        env.insert("PATH".into(), DEFAULT_PATH.into());
        if spec.image == ImageRef::Host {
            env.extend(around.path.clone().map(|path| ("PATH".into(), path)));
            env.insert("HOME".into(), host_view::home(&spec.host_view, host).into());
        } else {
            env.insert("HOSTNAME".into(), hostname.into());
        }
        if spec.tty {
            env.insert("TERM".into(), "xterm".into());
        }
        let pairs = image
            .config
            .env
            .iter()
            .filter_map(|pair| pair.split_once('='));
        env.extend(pairs.map(|(name, value)| (name.into(), value.into())));
    }
    env.extend(spec.env.clone());
    env
}

pub(super) fn working_dir(spec: &Spec, image: &Image, around: &Surroundings) -> PathBuf {
    match (&spec.working_dir, &spec.image) {
        (Some(path), _) => normal(path),
        (None, ImageRef::Host) => normal(&around.working_dir),
        (None, _) => normal(Path::new(&image.config.working_dir)),
    }
}

pub(super) fn user(spec: &Spec, image: &Image, host: &Host) -> UserPlan {
    match (&spec.user, &spec.image) {
        (Some(user), _) => UserPlan::Named(user.clone()),
        (None, ImageRef::Host) if host.uid != 0 => UserPlan::Caller {
            uid: host.uid,
            gid: host.gid,
        },
        (None, ImageRef::Host) => UserPlan::Named(String::new()),
        (None, _) => UserPlan::Named(image.config.user.clone()),
    }
}
