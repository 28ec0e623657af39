//! Requests to one registry: with timeouts, tried again where that helps, and with a token where one is needed.
//!
//! What is sent back is not trusted here and not looked at; that is up to the caller.

use std::{
    io::{self, Read},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, SystemTime},
};

use serde::Deserialize;
use ureq::{
    Agent, Body,
    config::RedirectAuthHeaders,
    http::{Response, StatusCode, Uri, header, uri::Scheme},
    tls::{Certificate, RootCerts, TlsConfig},
};

use super::{
    super::reference::{Reference, is_loopback},
    challenge::Challenge,
    credentials::Credentials,
    error::RegistryError,
    pace::{Paced, Timing},
};

const MAX_REDIRECTS: u32 = 5;
const MAX_TOKEN_BYTES: u64 = 1 << 20;
const MAX_MESSAGE_BYTES: u64 = 4096;

/// A connection pool to the registry of one reference, and what proves who the user is.
pub(super) struct Client {
    agent: Agent,
    reference: Reference,
    timing: Timing,
    credentials: Option<Credentials>,
    /// The header that the registry last accepted. Shared by the threads that download layers.
    authorization: Mutex<Option<String>>,
}

impl Client {
    pub(super) fn new(reference: &Reference, timing: Timing) -> Self {
        let is_loopback = reference.is_loopback();
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // Also holds for where a registry redirects to.
            .https_only(!is_loopback)
            .max_redirects(MAX_REDIRECTS)
            // Also not to another port of the same host, which `SameHost` would take for the registry.
            .redirect_auth_headers(RedirectAuthHeaders::Never)
            .user_agent(concat!("orbit/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(timing.connect))
            .timeout_connect(Some(timing.connect))
            .timeout_recv_response(Some(timing.response))
            .timeout_per_read(Some(timing.silence))
            .tls_config(
                TlsConfig::builder()
                    .root_certs(root_certificates(is_loopback))
                    .build(),
            );
        if is_loopback {
            // A proxy's loopback is another.
            config = config.proxy(None);
        }
        Self {
            agent: config.build().new_agent(),
            reference: reference.clone(),
            timing,
            credentials: Credentials::find(reference),
            authorization: Mutex::new(None),
        }
    }

    pub(super) fn timing(&self) -> &Timing {
        &self.timing
    }

    /// The address of something in the repository: `manifests/latest`.
    pub(super) fn url(&self, what: &str) -> String {
        let scheme = if self.reference.is_loopback() {
            "http"
        } else {
            "https"
        };
        format!(
            "{scheme}://{}/v2/{}/{what}",
            self.reference.host(),
            self.reference.repository()
        )
    }

    /// Gets `url`; from the byte `start` on, where that is not 0 and the registry can.
    ///
    /// The answer's status is 200, 206 or 416. Everything else was tried again, or is an error.
    pub(super) fn get(
        &self,
        url: &str,
        accept: &str,
        start: u64,
    ) -> Result<Response<Body>, RegistryError> {
        let mut attempt = 1;
        let mut logins = 0;
        loop {
            let mut request = self.agent.get(url);
            // An empty Accept is none: the blob is what it is.
            if !accept.is_empty() {
                request = request.header(header::ACCEPT, accept);
            }
            if start > 0 {
                request = request.header(header::RANGE, format!("bytes={start}-"));
            }
            let authorization = self.authorization();
            if let Some(value) = &authorization {
                request = request.header(header::AUTHORIZATION, value);
            }
            let failure = match request.call() {
                Err(error) => transport_error(url, error, attempt)?,
                Ok(response) => match response.status() {
                    StatusCode::OK
                    | StatusCode::PARTIAL_CONTENT
                    | StatusCode::RANGE_NOT_SATISFIABLE => {
                        return Ok(response);
                    }
                    // Twice: a token may run out between two layers, and once more while it is renewed.
                    StatusCode::UNAUTHORIZED if logins < 2 => {
                        match self.log_in(&response, authorization.as_deref(), attempt)? {
                            None => {
                                logins += 1;
                                continue;
                            }
                            Some(failure) => failure,
                        }
                    }
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.denied()),
                    StatusCode::NOT_FOUND => {
                        return Err(RegistryError::NotFound {
                            image: self.reference.to_string(),
                            registry: self.reference.registry().to_owned(),
                            had_credentials: self.credentials.is_some(),
                        });
                    }
                    status => self.refusal(url, status, response)?,
                },
            };
            if attempt >= self.timing.attempts {
                return Err(failure.error);
            }
            thread::sleep(failure.wait.unwrap_or_else(|| self.backoff(attempt)));
            attempt += 1;
        }
    }

    /// How long to wait before the attempt after `attempt`: doubled each time, and not the same for all of the
    /// processes that failed at the same moment.
    pub(super) fn backoff(&self, attempt: u32) -> Duration {
        let nanos = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |time| time.subsec_nanos());
        let jitter = f64::from(nanos.wrapping_mul(std::process::id()) % 1000) / 1000.0;
        self.timing
            .backoff
            .saturating_mul(1 << attempt.min(6))
            .mul_f64(0.5 + jitter / 2.0)
    }

    /// An answer that is worth another attempt, or an error that is not.
    fn refusal(
        &self,
        url: &str,
        status: StatusCode,
        response: Response<Body>,
    ) -> Result<Failure, RegistryError> {
        let wait = retry_after(&response);
        let error = if status == StatusCode::TOO_MANY_REQUESTS {
            RegistryError::Throttled {
                registry: self.reference.registry().to_owned(),
                retry_after: wait,
            }
        } else {
            RegistryError::Status {
                url: url.to_owned(),
                status: status.as_u16(),
                message: self.message(response),
            }
        };
        let is_passing = status == StatusCode::TOO_MANY_REQUESTS
            || status == StatusCode::REQUEST_TIMEOUT
            || (status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED);
        if !is_passing || wait.is_some_and(|wait| wait > self.timing.max_retry_after) {
            return Err(error);
        }
        Ok(Failure { error, wait })
    }

    fn denied(&self) -> RegistryError {
        RegistryError::Denied {
            image: self.reference.to_string(),
            registry: self.reference.registry().to_owned(),
            had_credentials: self.credentials.is_some(),
        }
    }

    fn authorization(&self) -> Option<String> {
        self.authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Gets what the registry asks for, unless another thread has by now. Gives what may be tried again.
    fn log_in(
        &self,
        response: &Response<Body>,
        refused: Option<&str>,
        attempt: u32,
    ) -> Result<Option<Failure>, RegistryError> {
        let mut slot = self
            .authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if slot.as_deref() != refused {
            return Ok(None);
        }
        let challenges = response.headers().get_all(header::WWW_AUTHENTICATE);
        let challenge = challenges
            .iter()
            .find_map(|value| Challenge::parse(value.to_str().ok()?))
            .ok_or_else(|| self.denied())?;
        *slot = Some(match challenge {
            Challenge::Basic => self
                .credentials
                .as_ref()
                .and_then(Credentials::basic)
                .ok_or_else(|| self.denied())?,
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => {
                let scope = scope
                    .unwrap_or_else(|| format!("repository:{}:pull", self.reference.repository()));
                match self.token(&realm, service.as_deref(), &scope, attempt)? {
                    Ok(token) => format!("Bearer {token}"),
                    Err(failure) => return Ok(Some(failure)),
                }
            }
        });
        Ok(None)
    }

    fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: &str,
        attempt: u32,
    ) -> Result<Result<String, Failure>, RegistryError> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let protocol = |why: String| RegistryError::Protocol {
            url: realm.to_owned(),
            why,
        };
        // What is true of a registry on this machine is not of whom it names.
        if self.reference.is_loopback() && !is_private(realm) {
            let why = format!("it asks for credentials at {realm}, which is not encrypted");
            return Err(protocol(why));
        }
        let sent = match &self.credentials {
            Some(Credentials::IdentityToken(token)) => {
                let form = [
                    ("grant_type", "refresh_token"),
                    ("client_id", "orbit"),
                    ("service", service.unwrap_or_default()),
                    ("scope", scope),
                    ("refresh_token", token),
                ];
                self.agent.post(realm).send_form(form)
            }
            other => {
                let mut request = self.agent.get(realm).query("scope", scope);
                if let Some(service) = service {
                    request = request.query("service", service);
                }
                if let Some(value) = other.as_ref().and_then(Credentials::basic) {
                    request = request.header(header::AUTHORIZATION, value);
                }
                request.call()
            }
        };
        let response = match sent {
            Ok(response) => response,
            Err(error) => return transport_error(realm, error, attempt).map(Err),
        };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                return Err(self.denied());
            }
            status => return self.refusal(realm, status, response).map(Err),
        }
        let content = match self.read_document(realm, response, MAX_TOKEN_BYTES) {
            Err(error @ RegistryError::Unreachable { .. }) => {
                return Ok(Err(Failure { error, wait: None }));
            }
            other => other?,
        };
        let answer: Answer =
            serde_json::from_slice(&content).map_err(|e| protocol(format!("no token: {e}")))?;
        let token = answer
            .token
            .or(answer.access_token)
            .filter(|token| !token.is_empty())
            .ok_or_else(|| protocol("an answer without a token".to_owned()))?;
        // It becomes a header.
        if token.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Ok(token))
        } else {
            Err(protocol("a token that is none".to_owned()))
        }
    }

    /// What the registry says about its refusal, on one line; nothing where that is long, or long in coming.
    fn message(&self, response: Response<Body>) -> String {
        let mut content = Vec::new();
        let reader = Paced::new(response.into_body().into_reader(), &self.timing);
        match reader.take(MAX_MESSAGE_BYTES).read_to_end(&mut content) {
            Ok(_) => fault_in(&content),
            Err(_) => String::new(),
        }
    }

    /// Reads a small answer whole.
    pub(super) fn read_document(
        &self,
        url: &str,
        response: Response<Body>,
        limit: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut content = Vec::new();
        let mut reader = Paced::new(response.into_body().into_reader(), &self.timing);
        reader
            .by_ref()
            .take(limit + 1)
            .read_to_end(&mut content)
            .map_err(|error| RegistryError::Unreachable {
                url: url.to_owned(),
                why: error.to_string(),
                attempts: 1,
            })?;
        if content.len() as u64 > limit {
            return Err(RegistryError::Protocol {
                url: url.to_owned(),
                why: format!("more than {limit} bytes"),
            });
        }
        Ok(content)
    }
}

fn transport_error(url: &str, error: ureq::Error, attempts: u32) -> Result<Failure, RegistryError> {
    let url = url.to_owned();
    let error = match error {
        ureq::Error::TooManyRedirects | ureq::Error::RedirectFailed => {
            return Err(RegistryError::RedirectLoop { url });
        }
        ureq::Error::RequireHttpsOnly(target) => {
            return Err(RegistryError::Protocol {
                url,
                why: format!("it redirects to {target}, which is not encrypted"),
            });
        }
        ureq::Error::Rustls(error) => {
            return Err(RegistryError::Tls {
                url,
                why: error.to_string(),
            });
        }
        ureq::Error::Tls(why) => {
            return Err(RegistryError::Tls {
                url,
                why: why.to_owned(),
            });
        }
        // A wrong certificate arrives wrapped.
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(RegistryError::Tls {
                url,
                why: error.to_string(),
            });
        }
        ureq::Error::BadUri(why) => return Err(RegistryError::Protocol { url, why }),
        other => RegistryError::Unreachable {
            url,
            why: other.to_string(),
            attempts,
        },
    };
    Ok(Failure { error, wait: None })
}

/// An attempt that may be repeated: the error if it is not, and how long the registry asks to wait.
struct Failure {
    error: RegistryError,
    wait: Option<Duration>,
}

/// The system's, so that a company's own are among them; the bundled ones where the system has none.
fn root_certificates(is_loopback: bool) -> RootCerts {
    if is_loopback {
        return RootCerts::WebPki;
    }
    let found: Vec<Certificate<'static>> = rustls_native_certs::load_native_certs()
        .certs
        .iter()
        .map(|certificate| Certificate::from_der(certificate).to_owned())
        .collect();
    if found.is_empty() {
        RootCerts::WebPki
    } else {
        RootCerts::Specific(Arc::new(found))
    }
}

/// In seconds; a date is not worth a parser, and is taken as none.
fn retry_after(response: &Response<Body>) -> Option<Duration> {
    let value = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

/// Whether what is sent to `url` goes over no network unencrypted.
fn is_private(url: &str) -> bool {
    let Ok(url) = url.parse::<Uri>() else {
        return true; // It is refused as what it is.
    };
    url.scheme() != Some(&Scheme::HTTP)
        || url
            .host()
            .is_some_and(|host| is_loopback(host.trim_matches(['[', ']'])))
}

/// What a registry says about its refusal.
fn fault_in(content: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Answer {
        errors: Vec<Fault>,
    }
    #[derive(Deserialize)]
    struct Fault {
        message: String,
    }
    let answer = serde_json::from_slice::<Answer>(content).ok();
    let fault = answer.and_then(|answer| answer.errors.into_iter().next());
    let text = fault.map(|fault| fault.message).unwrap_or_default();
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
