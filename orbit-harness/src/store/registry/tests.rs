//! Pulling from registries that misbehave, from a real one, and by many processes at once.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use super::{
    super::testing::{TarBuilder, TestImage, TestStore, test_ids},
    testing::{Fault, FaultServer, Request},
    *,
};
use crate::store::{InProcessWorker, NoProgress};

/// What cannot be compressed, so that a layer has a size.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[0]
        })
        .collect()
}

fn image() -> TestImage {
    TestImage::of(&[
        TarBuilder::new().file("one", &noise(600_000)).build(),
        TarBuilder::new().file("two", b"2").build(),
    ])
}

fn impatient() -> Timing {
    Timing {
        connect: Duration::from_secs(2),
        response: Duration::from_millis(400),
        silence: Duration::from_millis(400),
        window: Duration::from_millis(300),
        backoff: Duration::from_millis(5),
        max_retry_after: Duration::from_secs(2),
        attempts: 3,
    }
}

fn test_store() -> TestStore {
    let mut test = TestStore::new();
    test.store = test.store.with_timing(impatient());
    test
}

fn is_blob(request: &Request, image: &TestImage, layer: usize) -> bool {
    request.path.ends_with(&image.layers[layer].to_string())
}

/// Pulls from a server with these faults; what is unpacked must be right where it succeeds, and where it fails
/// nothing may be left that a later pull would use.
fn pull(
    faults: impl Fn(&Request, &TestImage) -> Option<Fault> + Send + Sync + 'static,
) -> (Result<Image, StoreError>, FaultServer, TestStore) {
    let image = image();
    let original = image.clone();
    let server = FaultServer::start(image, move |request| faults(request, &original));
    let test = test_store();
    let result = test.resolve(&server.reference());
    let result = result.map(|(image, _lease)| {
        assert_eq!(
            fs::read(image.layers_dir.join(&image.layers[0]).join("one")).unwrap(),
            noise(600_000)
        );
        image
    });
    assert!(!test.has_leftovers());
    (result, server, test)
}

#[test]
fn an_image_is_pulled_once() {
    let (result, server, test) = pull(|_, _| None);
    let first = result.unwrap();
    // The manifest, the configuration and two layers.
    assert_eq!(server.requests().len(), 4);
    let (again, _lease) = test.resolve(&server.reference()).unwrap();
    assert_eq!(again, first);
    assert_eq!(server.requests().len(), 4);

    let always = test.store.clone().with_policy(PullPolicy::Always);
    let resolve = |store: &Store| {
        let reference = server.reference().parse().unwrap();
        store.resolve(&reference, &Platform::host(), &InProcessWorker, &NoProgress)
    };
    resolve(&always).unwrap();
    assert_eq!(server.requests().len(), 5);
    assert_eq!(test.store.list().unwrap()[0].digest, first.digest);
    assert_eq!(
        fs::read_dir(test.path("store/v1/partial")).unwrap().count(),
        0
    );

    let never = TestStore::new().store.with_policy(PullPolicy::Never);
    assert!(matches!(resolve(&never), Err(StoreError::NotPulled { .. })));
}

#[test]
fn throttling_is_waited_for_as_long_as_asked() {
    let throttled = |after: Option<&'static str>| {
        let headers = after.map(|after| ("Retry-After", after.to_owned()));
        Fault::Answer(
            429,
            headers.into_iter().collect(),
            r#"{"errors":[{"message":"slow"}]}"#.into(),
        )
    };
    let started = Instant::now();
    let (result, ..) = pull(move |request, _| {
        (request.nth == 0 && request.path.ends_with("/1")).then(|| throttled(Some("1")))
    });
    result.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));

    let (result, ..) = pull(move |request, image| {
        (request.nth < 2 && is_blob(request, image, 0)).then(|| throttled(None))
    });
    result.unwrap();

    let started = Instant::now();
    let (result, server, _) = pull(move |_, _| Some(throttled(Some("3600"))));
    let error = result.unwrap_err().to_string();
    assert!(
        error.contains("3600 seconds") && error.contains("docker login"),
        "{error}"
    );
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(server.requests().len(), 1);

    let (result, server, _) = pull(move |_, _| Some(throttled(None)));
    assert!(matches!(
        result,
        Err(StoreError::Registry(RegistryError::Throttled { .. }))
    ));
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn a_broken_off_layer_is_resumed() {
    let (result, server, _) = pull(|request, image| {
        (request.nth == 0 && is_blob(request, image, 0)).then_some(Fault::Truncate(300_000))
    });
    result.unwrap();
    let ranges: Vec<_> = server
        .requests()
        .iter()
        .filter_map(|r| r.headers.get("range").cloned())
        .collect();
    assert_eq!(ranges, ["bytes=300000-"]);

    // A registry that does not know ranges sends all of it again.
    let (result, ..) = pull(|request, image| match request.nth {
        0 if is_blob(request, image, 0) => Some(Fault::Truncate(300_000)),
        1 if is_blob(request, image, 0) => Some(Fault::IgnoreRange),
        _ => None,
    });
    result.unwrap();

    // Broken off again and again without getting on.
    let (result, ..) =
        pull(|request, image| is_blob(request, image, 0).then_some(Fault::Truncate(0)));
    let error = result.unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Registry(RegistryError::Unreachable { .. })
        ),
        "{error}"
    );
}

#[test]
fn what_a_killed_process_left_is_continued_or_thrown_away() {
    let image = image();
    let layer = image.layers[0];
    let whole = image.blobs[&layer].clone();
    for (left, requests) in [
        (whole[..100_000].to_vec(), 1),
        // As a power cut leaves a file: of some length, and full of zeros.
        (vec![0; 100_000], 2),
        (vec![0; whole.len()], 1),
        (vec![0; whole.len() + 5], 1),
        (whole.clone(), 0),
    ] {
        let server = FaultServer::start(image.clone(), |_| None);
        let test = test_store();
        fs::write(test.path("store/v1/partial").join(layer.hex()), &left).unwrap();
        test.resolve(&server.reference()).unwrap();
        assert_eq!(server.count(&layer.to_string()), requests, "{}", left.len());
    }
}

#[test]
fn a_drip_and_a_silence_end() {
    for fault in [Fault::Drip(Duration::from_millis(50)), Fault::Hang] {
        let started = Instant::now();
        let fault_of_layer = fault.clone();
        let (result, ..) =
            pull(move |request, image| is_blob(request, image, 0).then(|| fault_of_layer.clone()));
        assert!(
            matches!(
                result,
                Err(StoreError::Registry(RegistryError::Unreachable { .. }))
            ),
            "{result:?}"
        );
        let (result, ..) =
            pull(move |request, _| request.path.ends_with("/1").then(|| fault.clone()));
        assert!(
            matches!(
                result,
                Err(StoreError::Registry(RegistryError::Unreachable { .. }))
            ),
            "{result:?}"
        );
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn an_image_in_use_is_not_forgotten() {
    let server = FaultServer::start(image(), |_| None);
    let test = test_store();
    let (_image, lease) = test.resolve(&server.reference()).unwrap();
    let listed = test.store.list().unwrap().remove(0).reference;
    let error = test.store.remove_image(&listed).unwrap_err();
    assert!(matches!(error, StoreError::InUse(_)), "{error}");
    drop(lease);
    assert!(test.store.remove_image(&listed).unwrap());
    assert!(!test.store.remove_image(&listed).unwrap());
}

/// What a refusal says is not waited for.
#[test]
fn a_refusal_that_drips_ends() {
    let started = Instant::now();
    let drip = Fault::DripRefusal(Duration::from_millis(50));
    let (result, ..) = pull(move |request, image| is_blob(request, image, 0).then(|| drip.clone()));
    assert!(
        matches!(
            result,
            Err(StoreError::Registry(RegistryError::Status {
                status: 500,
                ..
            }))
        ),
        "{result:?}"
    );
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn redirects_end() {
    let (result, server, _) = pull(|request, _| {
        Some(Fault::Answer(
            307,
            vec![("Location", request.path.clone())],
            String::new(),
        ))
    });
    assert!(
        matches!(
            result,
            Err(StoreError::Registry(RegistryError::RedirectLoop { .. }))
        ),
        "{result:?}"
    );
    assert!(server.requests().len() <= 6);
}

#[test]
fn a_redirected_layer_takes_no_secret_along() {
    let image = image();
    let storage = FaultServer::start(image.clone(), |_| None);
    let target = storage.address;
    let (result, ..) = pull(move |request, image| {
        if !request.headers.contains_key("authorization") && !request.path.starts_with("/token") {
            let challenge = format!(
                "Bearer realm=\"http://{}/token\",service=\"s\"",
                request.headers["host"]
            );
            return Some(Fault::Answer(
                401,
                vec![("WWW-Authenticate", challenge)],
                String::new(),
            ));
        }
        if request.path.starts_with("/token") {
            return Some(Fault::Answer(200, vec![], r#"{"token":"secret"}"#.into()));
        }
        is_blob(request, image, 0).then(|| {
            let location = format!("http://{target}{}", request.path);
            Fault::Answer(307, vec![("Location", location)], String::new())
        })
    });
    result.unwrap();
    let requests = storage.requests();
    assert_eq!(requests.len(), 1);
    assert!(!requests[0].headers.contains_key("authorization"));
}

#[test]
fn another_content_than_named_is_refused() {
    let other = TestImage::of(&[TarBuilder::new().file("evil", b"!").build()]);
    let is_mismatch = |result: Result<Image, StoreError>| {
        let error = result.unwrap_err();
        assert!(
            matches!(
                error,
                StoreError::Mismatch { .. } | StoreError::Registry(RegistryError::Mismatch { .. })
            ),
            "{error}"
        );
    };
    // A layer of another length, of the right length, with more than it should have.
    let blob = other.blobs[&other.layers[0]].clone();
    let (result, ..) = pull(move |request, image| {
        is_blob(request, image, 0).then(|| Fault::Replace(blob.clone()))
    });
    is_mismatch(result);
    let (result, server, _) = pull(|request, image| {
        is_blob(request, image, 0)
            .then(|| Fault::Swap(vec![0; image.blobs[&image.layers[0]].len()]))
    });
    is_mismatch(result);
    assert_eq!(server.count(&image().layers[0].to_string()), 1);
    // Another configuration.
    let (result, ..) = pull(|request, image| {
        let is_config = request.path.contains("/blobs/")
            && !image
                .layers
                .iter()
                .any(|l| request.path.ends_with(&l.to_string()));
        is_config.then(|| Fault::Replace(b"{}".to_vec()))
    });
    is_mismatch(result);

    // Another manifest for a pinned digest.
    let pinned = image();
    let manifest = other.manifest.clone();
    let server = FaultServer::start(other, move |request| {
        request
            .path
            .contains("/manifests/")
            .then(|| Fault::Replace(manifest.clone()))
    });
    let test = test_store();
    let result = test.resolve(&format!("{}/app@{}", server.address, pinned.digest()));
    is_mismatch(result.map(|(image, _)| image));
    assert!(test.store.list().unwrap().is_empty());
    assert!(test.layer_files().is_empty());
}

#[test]
fn a_token_that_runs_out_between_layers_is_renewed() {
    let (result, server, _) = pull(|request, image| {
        if request.path.starts_with("/token") {
            assert!(
                request.path.contains("scope=repository%3Aapp%3Apull")
                    || request.path.contains("scope=repository:app:pull"),
                "{}",
                request.path
            );
            return Some(Fault::Answer(
                200,
                vec![],
                format!(r#"{{"access_token":"t{}"}}"#, request.nth),
            ));
        }
        // The first token is good until half of the first layer is there.
        let token = request
            .headers
            .get("authorization")
            .map_or("", String::as_str);
        let is_rest = is_blob(request, image, 0) && request.nth > 0;
        let is_good = token == "Bearer t1" || (token == "Bearer t0" && !is_rest);
        if !is_good {
            let challenge = format!(
                "Bearer realm=\"http://{}/token\",service=\"s\"",
                request.headers["host"]
            );
            return Some(Fault::Answer(
                401,
                vec![("WWW-Authenticate", challenge)],
                String::new(),
            ));
        }
        (is_blob(request, image, 0) && request.nth == 0).then_some(Fault::Truncate(300_000))
    });
    result.unwrap();
    assert_eq!(server.count("/token"), 2);
}

/// Who gives tokens fails as any other does, and comes back.
#[test]
fn a_token_is_asked_for_again() {
    let challenged = |request: &Request, realm: &str| {
        let is_new = !request.headers.contains_key("authorization");
        is_new.then(|| {
            let challenge = format!("Bearer realm=\"{realm}\",service=\"s\"");
            Fault::Answer(401, vec![("WWW-Authenticate", challenge)], String::new())
        })
    };
    let (result, server, _) = pull(move |request, _| {
        if !request.path.starts_with("/token") {
            return challenged(
                request,
                &format!("http://{}/token", request.headers["host"]),
            );
        }
        Some(match request.nth {
            0 => Fault::Answer(503, vec![], String::new()),
            1 => Fault::Answer(429, vec![("Retry-After", "0".into())], String::new()),
            _ => Fault::Answer(200, vec![], r#"{"token":"t"}"#.into()),
        })
    });
    result.unwrap();
    assert_eq!(server.count("/token"), 3);

    // What is not on this machine is not told who the user is where others can hear it.
    let (result, ..) = pull(move |request, _| challenged(request, "http://registry.example/token"));
    let error = result.unwrap_err().to_string();
    assert!(error.contains("which is not encrypted"), "{error}");
}

#[test]
fn a_denial_says_how_to_log_in() {
    for status in [401, 403, 404] {
        let (result, server, _) =
            pull(move |_, _| Some(Fault::Answer(status, vec![], "{}".into())));
        let error = result.unwrap_err().to_string();
        assert!(error.contains("docker login 127.0.0.1"), "{error}");
        assert_eq!(server.requests().len(), 1);
    }
    let (result, ..) = pull(|_, _| {
        Some(Fault::Answer(
            500,
            vec![],
            r#"{"errors":[{"message":"on \u001b[31mfire"}]}"#.into(),
        ))
    });
    let error = result.unwrap_err().to_string();
    assert!(error.contains("500 (on [31mfire)"), "{error}");
}

#[test]
fn a_registry_that_is_not_there_is_named() {
    let test = test_store();
    let error = test.resolve("127.0.0.1:1/app").unwrap_err().to_string();
    assert!(
        error.contains("127.0.0.1:1/v2/app/manifests/latest"),
        "{error}"
    );
}

/// Set for a child that runs [`child_pulls`]: the store, the reference, and how it ends.
const CHILD: &str = "ORBIT_TEST_PULL";

/// Not a test by itself: what the processes below run.
#[test]
fn child_pulls() {
    let Ok(text) = std::env::var(CHILD) else {
        return;
    };
    let words: Vec<&str> = text.split('\n').collect();
    let [root, reference, end] = words[..] else {
        panic!("{text}");
    };
    let store = Store::open(Path::new(root), test_ids()).unwrap();
    let worker = crate::store::testing::CountingWorker::default();
    if end == "die" {
        // Before the second layer is unpacked, as SIGKILL would do it.
        let count = std::sync::atomic::AtomicUsize::new(0);
        *worker.before.lock().unwrap() = Some(Box::new(move || {
            if count.fetch_add(1, Ordering::Relaxed) == 1 {
                std::process::abort();
            }
        }));
    }
    let (image, _lease) = store
        .resolve(
            &reference.parse().unwrap(),
            &Platform::host(),
            &worker,
            &NoProgress,
        )
        .unwrap();
    for (layer, file) in image.layers.iter().zip(["one", "two"]) {
        assert!(image.layers_dir.join(layer).join(file).exists());
    }
}

fn child(root: &Path, reference: &str, end: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "store::registry::tests::child_pulls",
            "--nocapture",
        ])
        .env(CHILD, format!("{}\n{reference}\n{end}", root.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn sixteen_processes_download_each_blob_once() {
    let image = image();
    let server = FaultServer::start(image, |_| {
        thread::sleep(Duration::from_millis(30));
        None
    });
    let dir = tempfile::tempdir().unwrap();
    let mut children: Vec<Child> = (0..16)
        .map(|_| child(&dir.path().join("store"), &server.reference(), "live"))
        .collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let mut paths: Vec<String> = server
        .requests()
        .into_iter()
        .map(|request| request.path)
        .collect();
    paths.sort();
    let all = paths.len();
    paths.dedup();
    assert_eq!((all, paths.len()), (4, 4), "{paths:?}");
}

#[test]
fn a_process_that_dies_in_the_middle_leaves_nothing_that_is_used() {
    let server = FaultServer::start(image(), |_| None);
    let test = test_store();
    let mut child = child(&test.path("store"), &server.reference(), "die");
    assert!(!child.wait().unwrap().success());
    assert!(test.has_leftovers());
    let (image, lease) = test.resolve(&server.reference()).unwrap();
    assert!(image.layers_dir.join(&image.layers[0]).join("one").exists());
    assert!(image.layers_dir.join(&image.layers[1]).join("two").exists());
    assert!(!test.has_leftovers());
    drop(lease);
}

/// Debian's registry on a port of its own, with a directory of its own; ends with the test.
struct RealRegistry {
    child: Child,
    address: String,
    directory: tempfile::TempDir,
}

impl RealRegistry {
    /// `None` where the package `docker-registry` or `skopeo` is not installed.
    fn start() -> Option<Self> {
        let (binary, skopeo) = ("/usr/bin/docker-registry", "/usr/bin/skopeo");
        if !Path::new(binary).exists() || !Path::new(skopeo).exists() {
            assert!(
                std::env::var_os("CI").is_none(),
                "{binary} and {skopeo} must be installed for CI"
            );
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        // A port that was free a moment ago: the registry takes no descriptor.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let config = directory.path().join("config.yml");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
                directory.path().join("data").display()
            ),
        )
        .unwrap();
        let child = Command::new(binary)
            .arg("serve")
            .arg(config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self {
            child,
            address,
            directory,
        };
        for _ in 0..200 {
            if std::net::TcpStream::connect(&registry.address).is_ok() {
                return Some(registry);
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("the registry does not answer");
    }

    fn push(&self, layout: &Path, tag: &str, format: &str) {
        let output = Command::new("/usr/bin/skopeo")
            .args([
                "copy",
                "--quiet",
                "--insecure-policy",
                "--dest-tls-verify=false",
                "--format",
                format,
            ])
            .arg(format!("oci:{}:{tag}", layout.display()))
            .arg(format!("docker://{}/team/app:{tag}-{format}", self.address))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        // By its pid; it is gone when this returns.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_real_registry_is_pulled_from() {
    let Some(registry) = RealRegistry::start() else {
        return;
    };
    let layout = registry.directory.path().join("layout");
    image().write_layout(&layout, "1");
    for format in ["oci", "v2s2"] {
        registry.push(&layout, "1", format);
        let test = test_store();
        let reference = format!("{}/team/app:1-{format}", registry.address);
        let (image, _lease) = test.resolve(&reference).unwrap();
        assert_eq!(image.layers.len(), 2);
        assert_eq!(
            fs::read(image.layers_dir.join(&image.layers[0]).join("one")).unwrap(),
            noise(600_000)
        );
        assert_eq!(image.config.cmd, ["/bin/sh"]);
        // By its digest, from the registry.
        let pinned = format!("{}/team/app@{}", registry.address, image.digest);
        let (again, _lease) = test_store().resolve(&pinned).unwrap();
        assert_eq!(again.layers, image.layers);
    }
    let error = test_store()
        .resolve(&format!("{}/team/none", registry.address))
        .unwrap_err();
    assert!(
        matches!(error, StoreError::Registry(RegistryError::NotFound { .. })),
        "{error}"
    );
}
