//! From an image, a directory or the host to the steps that make a root filesystem. Pure: nothing is mounted
//! and nothing is looked at here.

pub(crate) mod host_view;
mod system;

use std::path::PathBuf;

use crate::{
    image::Image,
    spec::ImageRef,
    step::{EtcFile, Lower, Step},
    units::Bytes,
};
pub(crate) use system::{Beyond, Network, SystemFiles, masked_paths, read_only_paths};

/// The steps that put an image's layers, or a directory, under a writable layer of `size` that holds `etc`.
pub(crate) fn layered(
    image: &Image,
    reference: &ImageRef,
    size: Bytes,
    etc: Vec<EtcFile>,
) -> Vec<Step> {
    let lower = match reference {
        ImageRef::Dir(path) if image.layers.is_empty() => Lower::Directory(path.clone()),
        _ => Lower::Layers {
            dir: image.layers_dir.clone(),
            names: image.layers.clone(),
            base: match reference {
                ImageRef::Dir(path) => Some(path.clone()),
                _ => None,
            },
            has_plain_etc: image.has_plain_etc.filter(|_| image.sealed == 0),
        },
    };
    vec![
        Step::Scratch { size, owner: 0 },
        Step::OverlayRoot { lower, etc },
    ]
}

/// `path` as seen from `/`, without `.` and `..`, which are taken as a shell at `/` takes them.
pub(crate) fn normal(path: &std::path::Path) -> PathBuf {
    use std::path::Component;
    let mut normal = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => {
                normal.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    normal
}
