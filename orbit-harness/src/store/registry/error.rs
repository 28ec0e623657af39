//! Why a registry did not give what was asked for.

use std::time::Duration;

/// Each message names the registry or the address, and what to do next.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error(
        "cannot reach {url}: {why} (tried {attempts} times); check the network, the proxy settings and the name of the registry"
    )]
    Unreachable {
        url: String,
        why: String,
        attempts: u32,
    },
    #[error(
        "{url} leads nowhere: the registry redirects again and again; report this to whoever runs it"
    )]
    RedirectLoop { url: String },
    #[error(
        "the connection to {url} is not secure: {why}; if its certificate is your own, add it to the system's trusted ones"
    )]
    Tls { url: String, why: String },
    #[error("{image} does not exist in the registry, or needs a login to be seen{}; check its name and tag", login_hint(*.had_credentials, .registry))]
    NotFound {
        image: String,
        registry: String,
        had_credentials: bool,
    },
    #[error("{registry} denies access to {image}{}", login_hint(*.had_credentials, .registry))]
    Denied {
        image: String,
        registry: String,
        had_credentials: bool,
    },
    #[error(
        "{registry} allows no more requests for now{}; wait, or log in with `docker login {registry}` for a higher limit",
        wait_hint(*.retry_after)
    )]
    Throttled {
        registry: String,
        retry_after: Option<Duration>,
    },
    #[error("{url} answers with HTTP status {status}{}{}", detail(.message), status_hint(*.status))]
    Status {
        url: String,
        status: u16,
        message: String,
    },
    #[error("{url} answers with what no registry answers: {why}")]
    Protocol { url: String, why: String },
    #[error(
        "{url} sends {what} instead of what was asked for: expected {expected}, found {found}; nothing of it was kept"
    )]
    Mismatch {
        url: String,
        what: &'static str,
        expected: String,
        found: String,
    },
}

fn login_hint(had_credentials: bool, registry: &str) -> String {
    if had_credentials {
        format!(" for the user that is logged in to {registry}")
    } else {
        format!("; to log in, run `docker login {registry}` or `podman login {registry}`")
    }
}

fn wait_hint(retry_after: Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |wait| {
        format!(", and asks to wait {} seconds", wait.as_secs())
    })
}

/// What may pass by itself, and what does not.
fn status_hint(status: u16) -> &'static str {
    match status {
        408 | 500.. => "; try again later",
        _ => "",
    }
}

fn detail(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(" ({message})")
    }
}
