//! Registries that want to be told what they should not be, and images that are for other machines.
//!
//! The registry speaks TLS, and is called by the one address that leads to loopback and is not taken for it, as plain HTTP
//! is allowed there.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use orbit_tests::{Case, Context, Finished, Program, Registry};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::json;

use super::{case, layouts::Layout};
use crate::kit::one_paragraph;

pub(super) fn cases() -> Vec<Case> {
    let case = |name, run, needs| {
        case(name, run)
            .needs(needs)
            .deadline(Duration::from_secs(60))
    };
    vec![
        case(
            "credentials_never_leave_tls",
            credentials_never_leave_tls,
            &["openssl"],
        ),
        case(
            "credentials_are_for_their_registry_alone",
            credentials_are_for_their_registry_alone,
            &["openssl"],
        ),
        case(
            "a_pinned_image_of_another_machine_is_told_as_such",
            a_pinned_image_of_another_machine_is_told_as_such,
            Registry::NEEDS,
        ),
    ]
}

const USER: &str = "me:secret";
/// The same, as it is sent.
const SENT: &str = "Basic bWU6c2VjcmV0";

/// Status, header lines, body.
type Answer = (u16, String, Vec<u8>);
type Answers = dyn Fn(&str, Option<&str>) -> Answer + Send + Sync;

/// What was asked for: the path, and who asked, as far as that was said.
type Asked = (String, Option<String>);

/// A server of a few answers, with TLS or without, until it is dropped.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    is_stopped: Arc<AtomicBool>,
}

impl Server {
    /// Where it listens on is known before its answers are.
    fn start(
        tls: Option<Arc<ServerConfig>>,
        listener: TcpListener,
        answers: impl Fn(&str, Option<&str>) -> Answer + Send + Sync + 'static,
    ) -> Result<Self> {
        let server = Self {
            address: listener.local_addr()?,
            asked: Arc::default(),
            is_stopped: Arc::default(),
        };
        let (asked, is_stopped) = (Arc::clone(&server.asked), Arc::clone(&server.is_stopped));
        let answers: Arc<Answers> = Arc::new(answers);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if is_stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (tls, asked, answers) = (tls.clone(), Arc::clone(&asked), Arc::clone(&answers));
                // A client that does not like what it sees hangs up.
                thread::spawn(move || serve(stream, tls, &asked, &*answers));
            }
        });
        Ok(server)
    }

    fn asked(&self) -> Vec<Asked> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts, so that it closes the port.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    asked: &Mutex<Vec<Asked>>,
    answers: &Answers,
) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    match tls {
        Some(config) => {
            let mut stream = StreamOwned::new(ServerConnection::new(config)?, stream);
            answer(&mut stream, asked, answers)?;
            stream.conn.send_close_notify();
            stream.flush()?;
        }
        None => answer(&mut { stream }, asked, answers)?,
    }
    Ok(())
}

fn answer(
    stream: &mut (impl Read + Write),
    asked: &Mutex<Vec<Asked>>,
    answers: &Answers,
) -> Result<()> {
    let mut lines = BufReader::new(&mut *stream).lines();
    let first = lines.next().context("a request")??;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut who = None;
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        if name.eq_ignore_ascii_case("authorization") {
            who = Some(value.trim().to_owned());
        }
    }
    let mut all = asked.lock().unwrap_or_else(PoisonError::into_inner);
    all.push((path.clone(), who.clone()));
    drop(all);
    let (status, headers, body) = answers(&path, who.as_deref());
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
    )?;
    stream.write_all(&body)?;
    Ok(())
}

/// An authority that signs for one server.
struct Tls {
    config: Arc<ServerConfig>,
    certificate: PathBuf,
}

impl Tls {
    fn make(directory: &Path) -> Result<Self> {
        let (certificate, key) = (directory.join("certificate"), directory.join("key"));
        Program::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
            .args(["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=server"])
            .args(["-addext", "subjectAltName=IP:0.0.0.0"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .run()?
            .success()?;
        // An error: there is a provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_file(&certificate)?],
                PrivateKeyDer::from_pem_file(&key)?,
            )?;
        Ok(Self {
            config: Arc::new(config),
            certificate,
        })
    }

    /// Pulls from there, as somebody who has logged in.
    fn pull(&self, context: &Context, registry: &Server) -> Result<Finished> {
        let host = format!("0.0.0.0:{}", registry.address.port());
        let docker = context.work().join("docker");
        fs::create_dir_all(&docker)?;
        let (user, password) = USER.split_once(':').context("both")?;
        let login = json!({"auths": {&host: {"username": user, "password": password}}});
        fs::write(docker.join("config.json"), login.to_string())?;
        let finished = context
            .orbit("pull")?
            .arg(format!("{host}/app:1"))
            .env("DOCKER_CONFIG", docker)
            .env("SSL_CERT_FILE", &self.certificate)
            // Each as if it were the first.
            .env("ORBIT_CACHE_DIR", context.work().join(format!("of-{host}")))
            .run()?;
        for secret in [password, SENT.trim_start_matches("Basic ")] {
            let is_told = finished.stderr.contains(secret) || finished.stdout.contains(secret);
            ensure!(!is_told, "the password is shown: {finished}");
        }
        Ok(finished)
    }
}

fn listen() -> Result<TcpListener> {
    Ok(TcpListener::bind("127.0.0.1:0")?)
}

fn empty(status: u16, headers: impl Into<String>) -> Answer {
    (status, headers.into(), b"{}".to_vec())
}

fn unauthorized(challenge: &str) -> Answer {
    empty(401, format!("WWW-Authenticate: {challenge}\r\n"))
}

fn redirect(to: &str) -> Answer {
    empty(307, format!("Location: {to}\r\n"))
}

/// What of busybox's layout is at `path`, as a registry has it.
fn content(layout: &Path, manifest: &str, path: &str) -> Answer {
    let name = path.rsplit('/').next().unwrap_or_default();
    let hex = if name == "1" { manifest } else { name };
    let hex = hex.trim_start_matches("sha256:");
    match fs::read(layout.join("blobs/sha256").join(hex)) {
        Ok(body) => (200, String::new(), body),
        Err(_) => empty(404, ""),
    }
}

/// Where busybox's layout is, and the digest of its manifest.
fn image(context: &Context) -> Result<(PathBuf, String)> {
    let mut layout = Layout::of_busybox(context, "image")?;
    layout.write()?;
    let manifest = layout.manifest_digest()?;
    Ok((layout.path().to_owned(), manifest))
}

/// A server without TLS is asked nothing, wherever in a pull it is named. Were it followed there, it would be seen to be
/// asked, and to be told the password where that is sent on.
fn credentials_never_leave_tls(context: &Context) -> Result<()> {
    let tls = Tls::make(&context.work())?;
    let (layout, manifest) = image(context)?;
    for way in [
        "manifest",
        "blob",
        "twice",
        "basic realm",
        "token",
        "token, redirected",
    ] {
        let plain = Server::start(None, listen()?, |_, _| {
            (200, String::new(), br#"{"token":"plain"}"#.to_vec())
        })?;
        let to = format!("http://{}", plain.address);
        let (layout, manifest) = (layout.clone(), manifest.clone());
        let listener = listen()?;
        let own = format!("https://0.0.0.0:{}", listener.local_addr()?.port());
        let registry =
            Server::start(
                Some(Arc::clone(&tls.config)),
                listener,
                move |path, who| match (way, path) {
                    ("token, redirected", _) if path.starts_with("/token") => {
                        redirect(&format!("{to}/token"))
                    }
                    ("token", _) => {
                        unauthorized(&format!("Bearer realm=\"{to}/token\",service=\"s\""))
                    }
                    ("token, redirected", _) => {
                        unauthorized(&format!("Bearer realm=\"{own}/token\",service=\"s\""))
                    }
                    _ if who != Some(SENT) && !path.starts_with("/again") => {
                        unauthorized(&format!("Basic realm=\"{to}\""))
                    }
                    ("manifest", _) => redirect(&format!("{to}{path}")),
                    ("twice", _) if path.starts_with("/again") => redirect(&format!("{to}{path}")),
                    ("twice", _) => redirect(&format!("{own}/again{path}")),
                    ("blob", _) if path.contains("/blobs/") => redirect(&format!("{to}{path}")),
                    _ => content(&layout, &manifest, path),
                },
            )?;
        let finished = tls.pull(context, &registry)?;
        let asked = registry.asked();
        if way == "basic realm" {
            // Which says nothing about where to go.
            finished.success().context(way)?;
        } else {
            let told = finished.code(1).context(way)?;
            one_paragraph(&told.stderr, &["http://127.0.0.1", "not encrypted"]).context(way)?;
        }
        let is_sent = asked.iter().any(|(_, who)| who.as_deref() == Some(SENT));
        ensure!(
            is_sent || way == "token",
            "{way}: the registry itself is not told: {asked:?}"
        );
        let plain = plain.asked();
        ensure!(plain.is_empty(), "{way}: it went there: {plain:?}");
    }
    Ok(())
}

/// Another port of the same host is somebody else, encrypted or not.
fn credentials_are_for_their_registry_alone(context: &Context) -> Result<()> {
    let tls = Tls::make(&context.work())?;
    let (layout, manifest) = image(context)?;
    for way in ["/blobs/", "/manifests/"] {
        let there = (layout.clone(), manifest.clone());
        let other = Server::start(Some(Arc::clone(&tls.config)), listen()?, move |path, _| {
            content(&there.0, &there.1, path)
        })?;
        let to = format!("https://0.0.0.0:{}", other.address.port());
        let here = (layout.clone(), manifest.clone());
        let registry = Server::start(
            Some(Arc::clone(&tls.config)),
            listen()?,
            move |path, who| {
                if who != Some(SENT) {
                    return unauthorized("Basic realm=\"r\"");
                }
                if path.contains(way) {
                    return redirect(&format!("{to}{path}"));
                }
                content(&here.0, &here.1, path)
            },
        )?;
        tls.pull(context, &registry)?.success()?;
        let asked = other.asked();
        ensure!(
            !asked.is_empty() && asked.iter().all(|(_, who)| who.is_none()),
            "{way}: {asked:?}"
        );
    }
    Ok(())
}

/// Whatever its digest is: it is the right image, and not one that runs here.
fn a_pinned_image_of_another_machine_is_told_as_such(context: &Context) -> Result<()> {
    let registry = Registry::start()?;
    for (os, architecture) in [("linux", "s390x"), ("windows", "amd64"), ("plan9", "mips")] {
        let mut layout = Layout::of_busybox(context, &format!("{os}-{architecture}"))?;
        layout.config["os"] = os.into();
        layout.config["architecture"] = architecture.into();
        let in_layout = layout.write()?;
        let name = format!("orbit/{os}");
        registry.push(layout.path(), &format!("{name}:v1"))?;
        let digest = layout.manifest_digest()?;
        let pinned = format!("{}/{name}@sha256:{digest}", registry.host());
        let before = registry.blob_gets();
        for image in [&pinned, &in_layout] {
            let told = context
                .orbit("run")?
                .args(["--image", image, "--", "true"])
                .run()?
                .code(125)?;
            let platform = format!("{os}/{architecture}");
            one_paragraph(&told.stderr, &[image, "not made for", &platform])?;
        }
        // Its layers were not even asked for: that was its configuration.
        let asked = registry.blob_gets() - before;
        ensure!(asked == 1, "{asked} blobs: {}", registry.log());
    }
    // That the same is run where it says that it is for here.
    let mut layout = Layout::of_busybox(context, "good")?;
    layout.write()?;
    registry.push(layout.path(), "orbit/good:v1")?;
    let pinned = format!(
        "{}/orbit/good@sha256:{}",
        registry.host(),
        layout.manifest_digest()?
    );
    context
        .orbit("run")?
        .args(["--image", &pinned, "--", "true"])
        .run()?
        .success()?;
    Ok(())
}
