//! The store as its callers see it, on layouts.

use std::{fs, sync::atomic::Ordering};

use super::{testing::*, *};

fn two_layers() -> TestImage {
    TestImage::of(&[
        TarBuilder::new()
            .directory("etc/")
            .file("etc/one", b"1")
            .build(),
        TarBuilder::new()
            .file("etc/two", b"2")
            .file("etc/.wh.one", b"")
            .build(),
    ])
}

#[test]
fn a_layout_is_unpacked_once() {
    let test = TestStore::new();
    let image = two_layers();
    image.write_layout(&test.path("layout"), "t");
    let reference = format!("oci:{}:t", test.path("layout").display());
    let (resolved, _lease) = test.resolve(&reference).unwrap();
    assert_eq!(resolved.digest, image.digest().to_string());
    assert_eq!(resolved.config.cmd, ["/bin/sh"]);
    assert_eq!(resolved.config.exposed_ports, ["80/tcp"]);
    assert_eq!(resolved.layers.len(), 2);
    let root = |layer: usize| resolved.layers_dir.join(&resolved.layers[layer]);
    assert_eq!(fs::read(root(0).join("etc/one")).unwrap(), b"1");
    assert_eq!(fs::read(root(1).join("etc/two")).unwrap(), b"2");
    assert_eq!(test.worker.unpacked.load(Ordering::Relaxed), 2);

    let (again, _lease) = test.resolve(&reference).unwrap();
    assert_eq!(again, resolved);
    assert_eq!(test.worker.unpacked.load(Ordering::Relaxed), 2);
}
