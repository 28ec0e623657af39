//! Who the user is for a registry: what `docker login` and `podman login` wrote down.
//!
//! Reads files and runs the credential helper that one of them names; never writes, never asks, never prints.

use std::{
    collections::HashMap,
    fmt,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::super::{cas::read_bounded, reference::Reference};

const MAX_FILE_BYTES: u64 = 1 << 20;
/// Under this name helpers hand out tokens that are exchanged, not sent.
const TOKEN_USER: &str = "<token>";
/// What Docker calls its own registry in its file.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// A user and a password, or a token to exchange for a short-lived one.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    Password { user: String, password: String },
    IdentityToken(String),
}

/// Secrets do not get into messages by accident.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password",
            Self::IdentityToken(_) => "IdentityToken",
        })
    }
}

impl Credentials {
    /// The value of an `Authorization` header; a token to exchange has none.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Self::Password { user, password } => Some(format!(
                "Basic {}",
                STANDARD.encode(format!("{user}:{password}"))
            )),
            Self::IdentityToken(_) => None,
        }
    }

    /// Looks where podman looks, then where Docker does. What cannot be read is as if it were not there: a
    /// registry that needs it says so.
    pub(super) fn find(reference: &Reference) -> Option<Self> {
        files().iter().find_map(|file| from_file(file, reference))
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AuthFile {
    auths: HashMap<String, AuthEntry>,
    creds_store: Option<String>,
    cred_helpers: HashMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl AuthEntry {
    fn credentials(&self) -> Option<Credentials> {
        if let Some(token) = self.identitytoken.as_ref().filter(|t| !t.is_empty()) {
            return Some(Credentials::IdentityToken(token.clone()));
        }
        if let (Some(user), Some(password)) = (&self.username, &self.password) {
            return Some(Credentials::Password {
                user: user.clone(),
                password: password.clone(),
            });
        }
        let decoded = STANDARD.decode(self.auth.as_ref()?).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (user, password) = text.split_once(':')?;
        Some(Credentials::Password {
            user: user.to_owned(),
            // Some versions of Docker pad with NULs.
            password: password.trim_end_matches('\0').to_owned(),
        })
    }
}

fn files() -> Vec<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    let home = variable("HOME");
    let in_home = |path: &str| home.as_ref().map(|home| home.join(path));
    [
        variable("REGISTRY_AUTH_FILE"),
        variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        variable("XDG_CONFIG_HOME")
            .or_else(|| in_home(".config"))
            .map(|dir| dir.join("containers/auth.json")),
        variable("DOCKER_CONFIG")
            .or_else(|| in_home(".docker"))
            .map(|dir| dir.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn from_file(path: &Path, reference: &Reference) -> Option<Credentials> {
    let content = read_bounded(path, MAX_FILE_BYTES).ok()??;
    let file: AuthFile = serde_json::from_slice(&content).ok()?;
    let keys = keys(reference);
    if let Some((key, helper)) = keys
        .iter()
        .find_map(|key| Some((key, file.cred_helpers.get(key)?)))
    {
        return from_helper(helper, key);
    }
    if let Some(found) = keys
        .iter()
        .find_map(|key| file.auths.get(key)?.credentials())
    {
        return Some(found);
    }
    let store = file.creds_store?;
    let registry = reference.registry();
    let server = if registry == "docker.io" {
        DOCKER_HUB_KEY
    } else {
        registry
    };
    from_helper(&store, server)
}

/// Under what a file may know the registry, the most specific first: podman keeps logins per repository too.
fn keys(reference: &Reference) -> Vec<String> {
    let registry = reference.registry();
    let mut path = format!("{registry}/{}", reference.repository());
    let mut keys = vec![path.clone()];
    while let Some(slash) = path.rfind('/') {
        path.truncate(slash);
        keys.push(path.clone());
    }
    for host in [registry, reference.host()] {
        keys.extend([
            format!("https://{host}"),
            format!("https://{host}/v2/"),
            format!("https://{host}/v1/"),
        ]);
    }
    if registry == "docker.io" {
        keys.extend([DOCKER_HUB_KEY.to_owned(), "index.docker.io".to_owned()]);
    }
    keys
}

/// Asks `docker-credential-NAME`, as Docker does: the server's name on standard input, JSON on standard output.
///
/// Source: docker-credential-helpers, "Development".
fn from_helper(name: &str, server: &str) -> Option<Credentials> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    // A name, never a path or an option.
    if name.is_empty()
        || !name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    {
        return None;
    }
    let mut helper = Command::new(format!("docker-credential-{name}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    // Dropped at once, so that the helper sees the end. One that does not read has its answer all the same.
    let _ = helper.stdin.take()?.write_all(server.as_bytes());
    let output = helper
        .wait_with_output()
        .ok()
        .filter(|o| o.status.success())?;
    let answer: Answer = serde_json::from_slice(&output.stdout).ok()?;
    Some(if answer.username == TOKEN_USER {
        Credentials::IdentityToken(answer.secret)
    } else {
        Credentials::Password {
            user: answer.username,
            password: answer.secret,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn find(file: &str, reference: &str) -> Option<Credentials> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, file).unwrap();
        from_file(&path, &reference.parse().unwrap())
    }

    fn user(found: Option<Credentials>) -> Option<String> {
        match found? {
            Credentials::Password { user, .. } => Some(user),
            Credentials::IdentityToken(token) => Some(token),
        }
    }

    #[test]
    fn logins_are_found_under_all_their_names() {
        let auth = |user: &str| STANDARD.encode(format!("{user}:secret:with:colons"));
        let file = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{}"}},"h:5000":{{"auth":"{}"}},"h:5000/team":{{"auth":"{}"}},"t.io":{{"identitytoken":"tok"}}}}}}"#,
            auth("hub"),
            auth("all"),
            auth("team")
        );
        assert_eq!(user(find(&file, "busybox")).as_deref(), Some("hub"));
        assert_eq!(user(find(&file, "h:5000/a")).as_deref(), Some("all"));
        assert_eq!(user(find(&file, "h:5000/team/a")).as_deref(), Some("team"));
        assert_eq!(user(find(&file, "t.io/a")).as_deref(), Some("tok"));
        assert_eq!(find(&file, "other.io/a"), None);
        assert_eq!(
            find(&file, "h:5000/a"),
            Some(Credentials::Password {
                user: "all".into(),
                password: "secret:with:colons".into()
            })
        );
    }

    #[test]
    fn a_damaged_file_is_no_login() {
        for file in [
            "",
            "{",
            "[]",
            r#"{"auths":{"h:1":{"auth":"!"}}}"#,
            r#"{"credsStore":"../x"}"#,
        ] {
            assert_eq!(find(file, "h:1/a"), None, "{file}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let secret = Credentials::IdentityToken("s3cret".into());
        assert!(!format!("{secret:?}").contains("s3cret"));
    }
}
