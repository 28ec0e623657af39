//! What a sandbox is waited for: [`Wait`], as data, and [`NotReady`], what is told where it did not come.

use std::{ffi::OsString, fmt, path::PathBuf, time::Duration};

use regex_lite::Regex;
use serde::{Deserialize, Serialize};

use crate::{image::HealthCheck, logs::LogStream, outcome::Status, spec::SpecFault};

/// What must be so before a sandbox counts as ready: see [`SandboxBuilder::wait_for`](crate::SandboxBuilder::wait_for).
///
/// ```
/// use orbit::{LogStream, Wait};
///
/// Wait::port(5432);
/// Wait::log("ready to accept connections").on(LogStream::Stderr).times(2);
/// Wait::http("/health").on_port(8080).status(200).header("content-type", "json").body("\"up\"");
/// Wait::http("/query").method("POST").basic_auth("root", "secret").send_body("SELECT 1").body_matches("^1$");
/// Wait::all([Wait::exec(["pg_isready"]), Wait::file("/run/app.pid")]);
/// Wait::any([Wait::healthcheck(), Wait::exit(0)]);
/// ```
///
/// How a wait learns of it: log, exit, and the end of an exec are events of the kernel. For a listening port there is
/// none, so the table of the sandbox's sockets is read, which disturbs nobody, after 1 ms and then at most 20 ms
/// apart; `http` asks once the port listens, at most 100 ms apart, and gives an answer 5 s, or what is left of the
/// startup timeout where that is less; `exec` and `healthcheck` run again at most 250 ms
/// after a failure; `file` hears of changes by inotify where this process may watch the directory, and looks every
/// 25 ms where it may not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Wait {
    pub(crate) kind: WaitKind,
    /// One with faults starts nothing, so none is kept with a snapshot.
    #[serde(skip)]
    pub(crate) faults: Vec<SpecFault>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum WaitKind {
    Port(u16),
    Log {
        pattern: String,
        /// `None` where the pattern is none, and where it was read from a record.
        #[serde(skip)]
        regex: Option<Regex>,
        stream: Option<LogStream>,
        times: usize,
    },
    Http(HttpWait),
    Exec {
        words: Vec<OsString>,
        code: i32,
    },
    Healthcheck,
    File(PathBuf),
    Exit(i32),
    All(Vec<Wait>),
    Any(Vec<Wait>),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HttpWait {
    pub(crate) path: String,
    pub(crate) port: u16,
    pub(crate) method: String,
    /// What is sent.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) content: Vec<u8>,
    /// What is expected of the answer.
    pub(crate) status: Option<u16>,
    /// Names in lower case, and what their values have in them.
    pub(crate) expected_headers: Vec<(String, String)>,
    pub(crate) bodies: Vec<BodyMatch>,
}

/// What the body of an answer must be like.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum BodyMatch {
    /// It has this in it.
    Contains(String),
    /// This regular expression is found in it.
    Regex {
        pattern: String,
        /// `None` where the pattern is none, and where it was read from a record.
        #[serde(skip)]
        regex: Option<Regex>,
    },
}

impl BodyMatch {
    /// Whether `body` is so.
    pub(crate) fn is_met(&self, body: &str) -> bool {
        match self {
            Self::Contains(text) => body.contains(text.as_str()),
            Self::Regex { pattern, regex } => {
                let read = || Regex::new(pattern).ok();
                regex
                    .clone()
                    .or_else(read)
                    .is_some_and(|regex| regex.is_match(body))
            }
        }
    }
}

impl fmt::Display for BodyMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contains(text) => write!(f, "`{text}`"),
            Self::Regex { pattern, .. } => write!(f, "/{pattern}/"),
        }
    }
}

/// When a sandbox counts as ready: what another one like it is waited for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(
    not(feature = "images"),
    expect(dead_code, reason = "kept with snapshots")
)]
pub(crate) struct Readying {
    pub(crate) waits: Vec<Wait>,
    pub(crate) startup_timeout: Option<Duration>,
    pub(crate) healthcheck: Option<HealthCheck>,
}

impl Wait {
    fn new(kind: WaitKind) -> Self {
        Self {
            kind,
            faults: Vec::new(),
        }
    }

    /// What is wrong with it for a sandbox that has no health check.
    pub(crate) fn fault_without_healthcheck(&self) -> Option<SpecFault> {
        let why = "neither the sandbox nor its image has one; add `.healthcheck(…)`";
        self.asks_for_health()
            .then(|| SpecFault::new("wait for healthcheck", "", why))
    }

    fn asks_for_health(&self) -> bool {
        match &self.kind {
            WaitKind::Healthcheck => true,
            WaitKind::All(waits) | WaitKind::Any(waits) => waits.iter().any(Self::asks_for_health),
            _ => false,
        }
    }

    /// Something listens on this TCP port of the sandbox.
    pub fn port(port: u16) -> Self {
        let mut wait = Self::new(WaitKind::Port(port));
        if port == 0 {
            wait.fault("port", "0", "a port is a number from 1 to 65535");
        }
        wait
    }

    /// The program has written a line in which this regular expression is found, to either output.
    pub fn log(pattern: &str) -> Self {
        let (regex, error) = match Regex::new(pattern) {
            Ok(regex) => (Some(regex), None),
            Err(error) => (None, Some(error)),
        };
        let mut wait = Self::new(WaitKind::Log {
            pattern: pattern.to_owned(),
            regex,
            stream: None,
            times: 1,
        });
        if let Some(error) = error {
            wait.fault("wait for log", pattern, &error.to_string());
        }
        wait
    }

    /// A request for this path succeeds: a `GET`, with a status from 200 to 399, on port 80, unless told otherwise. It
    /// is made in version 1.0 of HTTP, without TLS, and follows no redirection.
    ///
    /// What is sent: [`method`](Self::method), [`send_header`](Self::send_header), [`basic_auth`](Self::basic_auth),
    /// [`bearer_auth`](Self::bearer_auth), [`send_body`](Self::send_body). What is expected of the answer, all of it:
    /// [`status`](Self::status), [`header`](Self::header), [`body`](Self::body),
    /// [`body_matches`](Self::body_matches).
    pub fn http(path: &str) -> Self {
        let mut wait = Self::new(WaitKind::Http(HttpWait {
            path: path.to_owned(),
            port: 80,
            method: "GET".to_owned(),
            headers: Vec::new(),
            content: Vec::new(),
            status: None,
            expected_headers: Vec::new(),
            bodies: Vec::new(),
        }));
        if !path.starts_with('/') || path.contains(|c: char| c.is_whitespace() || c.is_control()) {
            wait.fault(
                "wait for http",
                path,
                "expected a path such as `/health`, without spaces",
            );
        }
        wait
    }

    /// This program, run in the sandbox, exits with code 0.
    pub fn exec(words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        let words: Vec<OsString> = words.into_iter().map(Into::into).collect();
        let is_empty = words.is_empty();
        let mut wait = Self::new(WaitKind::Exec { words, code: 0 });
        if is_empty {
            wait.fault("wait for exec", "", "no program was given");
        }
        wait
    }

    /// The health check of the sandbox, or of its image (`HEALTHCHECK`), succeeds. It is tried at once and then more
    /// and more rarely, up to its interval; its retries and start period decide when it has failed for good.
    pub fn healthcheck() -> Self {
        Self::new(WaitKind::Healthcheck)
    }

    /// Something is at this path of the sandbox.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let given = path.display().to_string();
        let is_absolute = path.is_absolute();
        let mut wait = Self::new(WaitKind::File(path));
        if !is_absolute {
            wait.fault("wait for file", &given, "expected an absolute path");
        }
        wait
    }

    /// The program exits with this code: for one that prepares something and ends.
    pub fn exit(code: i32) -> Self {
        Self::new(WaitKind::Exit(code))
    }

    /// Each of these came true, in whatever order.
    pub fn all(waits: impl IntoIterator<Item = Self>) -> Self {
        let mut waits: Vec<Self> = waits.into_iter().collect();
        let faults = waits
            .iter_mut()
            .flat_map(|wait| std::mem::take(&mut wait.faults));
        let faults = faults.collect();
        Self {
            kind: WaitKind::All(waits),
            faults,
        }
    }

    /// One of these came true.
    pub fn any(waits: impl IntoIterator<Item = Self>) -> Self {
        let Self { kind, mut faults } = Self::all(waits);
        let WaitKind::All(waits) = kind else {
            return Self { kind, faults };
        };
        if waits.is_empty() {
            let why = "one of none never comes true";
            faults.push(SpecFault::new("wait for any", "", why));
        }
        Self {
            kind: WaitKind::Any(waits),
            faults,
        }
    }

    /// Of a [log](Self::log): only lines of this output count.
    #[must_use]
    pub fn on(mut self, wanted: LogStream) -> Self {
        if let WaitKind::Log { stream, .. } = &mut self.kind {
            *stream = Some(wanted);
        } else {
            self.misplaced("on", "log");
        }
        self
    }

    /// Of a [log](Self::log): so many lines must match.
    #[must_use]
    pub fn times(mut self, count: usize) -> Self {
        if let WaitKind::Log { times, .. } = &mut self.kind {
            *times = count;
        } else {
            self.misplaced("times", "log");
        }
        self
    }

    /// Of [http](Self::http): where to ask.
    #[must_use]
    pub fn on_port(self, port: u16) -> Self {
        self.http_with("on_port", |http| http.port = port)
    }

    /// Of [http](Self::http): the one status that will do.
    #[must_use]
    pub fn status(self, status: u16) -> Self {
        self.http_with("status", |http| http.status = Some(status))
    }

    /// Of [http](Self::http): what is asked with, in place of `GET`: `HEAD`, `POST`.
    #[must_use]
    pub fn method(self, method: &str) -> Self {
        let mut wait = self.http_with("method", |http| method.clone_into(&mut http.method));
        if !is_token(method) {
            let why = "expected a method such as `POST`";
            wait.fault("wait for http: method", method, why);
        }
        wait
    }

    /// Of [http](Self::http): this header is sent. One that Orbit sends by itself (`Host`, `User-Agent`, `Accept`) is
    /// replaced.
    #[must_use]
    pub fn send_header(self, name: &str, value: &str) -> Self {
        let mut wait = self.http_with("send_header", |http| {
            http.headers.push((name.to_owned(), value.to_owned()));
        });
        if !is_token(name) || value.contains(['\r', '\n', '\0']) {
            let given = format!("{name}: {value}");
            let why = "expected a header's name, and a value of one line";
            wait.fault("wait for http: send_header", &given, why);
        } else if ["content-length", "connection", "transfer-encoding"]
            .contains(&name.to_ascii_lowercase().as_str())
        {
            let why = "Orbit sends it, as the request is";
            wait.fault("wait for http: send_header", name, why);
        }
        wait
    }

    /// Of [http](Self::http): who asks, by name and password.
    ///
    /// Source: RFC 7617, section 2.
    #[must_use]
    pub fn basic_auth(self, user: &str, password: &str) -> Self {
        let mut wait = self.http_with("basic_auth", |http| {
            let pair = base64(format!("{user}:{password}").as_bytes());
            let value = format!("Basic {pair}");
            http.headers.push(("Authorization".to_owned(), value));
        });
        if user.contains(':') || user.chars().chain(password.chars()).any(char::is_control) {
            // The password is not to be told.
            let why = "a name without `:`, and no control characters";
            wait.fault("wait for http: basic_auth", user, why);
        }
        wait
    }

    /// Of [http](Self::http): who asks, by a token.
    ///
    /// Source: RFC 6750, section 2.1.
    #[must_use]
    pub fn bearer_auth(self, token: &str) -> Self {
        let mut wait = self.http_with("bearer_auth", |http| {
            let value = format!("Bearer {token}");
            http.headers.push(("Authorization".to_owned(), value));
        });
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            wait.fault("wait for http: bearer_auth", "", "it is no token");
        }
        wait
    }

    /// Of [http](Self::http): what is sent after the headers, with its length in bytes.
    #[must_use]
    pub fn send_body(self, content: impl Into<Vec<u8>>) -> Self {
        self.http_with("send_body", |http| http.content = content.into())
    }

    /// Of [http](Self::http): the answer has a header of this name, in whatever case, whose value has this in it.
    #[must_use]
    pub fn header(self, name: &str, value: &str) -> Self {
        self.http_with("header", |http| {
            let expected = (name.to_lowercase(), value.to_owned());
            http.expected_headers.push(expected);
        })
    }

    /// Of [http](Self::http): the answer's body has this in it.
    #[must_use]
    pub fn body(self, text: &str) -> Self {
        self.http_with("body", |http| {
            http.bodies.push(BodyMatch::Contains(text.to_owned()));
        })
    }

    /// Of [http](Self::http): this regular expression is found in the answer's body.
    #[must_use]
    pub fn body_matches(self, pattern: &str) -> Self {
        let (regex, error) = match Regex::new(pattern) {
            Ok(regex) => (Some(regex), None),
            Err(error) => (None, Some(error)),
        };
        let mut wait = self.http_with("body_matches", |http| {
            let pattern = pattern.to_owned();
            http.bodies.push(BodyMatch::Regex { pattern, regex });
        });
        if let Some(error) = error {
            wait.fault("wait for http: body", pattern, &error.to_string());
        }
        wait
    }

    /// Of [exec](Self::exec): the code that will do, in place of 0.
    #[must_use]
    pub fn code(mut self, wanted: i32) -> Self {
        if let WaitKind::Exec { code, .. } = &mut self.kind {
            *code = wanted;
        } else {
            self.misplaced("code", "exec");
        }
        self
    }

    fn http_with(mut self, method: &str, change: impl FnOnce(&mut HttpWait)) -> Self {
        if let WaitKind::Http(http) = &mut self.kind {
            change(http);
        } else {
            self.misplaced(method, "http");
        }
        self
    }

    fn misplaced(&mut self, method: &str, of: &str) {
        let given = format!("{self}.{method}(…)");
        self.fault(
            "wait",
            &given,
            &format!("`{method}` is for Wait::{of} alone"),
        );
    }

    fn fault(&mut self, field: &str, given: &str, why: &str) {
        self.faults.push(SpecFault::new(field, given, why));
    }
}

/// What is wrong with a wait, as far as it is known before it is used.
pub fn wait_faults(wait: &Wait) -> Vec<String> {
    wait.faults.iter().map(ToString::to_string).collect()
}

/// Whether it can be a method, or the name of a header.
///
/// Source: RFC 9110, section 5.6.2.
fn is_token(text: &str) -> bool {
    let is_of_one = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_of_one)
}

/// Source: RFC 4648, section 4. The crate that does this comes with registries alone.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let at = |place: usize| u32::from(three.get(place).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place)) as usize & 63];
            let is_there = place <= three.len();
            text.push(if is_there { char::from(letter) } else { '=' });
        }
    }
    text
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, name: &str, waits: &[Self]| {
            let texts: Vec<String> = waits.iter().map(ToString::to_string).collect();
            write!(f, "{name} [{}]", texts.join(", "))
        };
        match &self.kind {
            WaitKind::Port(port) => write!(f, "port {port}"),
            WaitKind::Log {
                pattern,
                stream,
                times,
                ..
            } => {
                write!(f, "log /{pattern}/")?;
                if let Some(stream) = stream {
                    write!(f, " on {stream}")?;
                }
                if *times != 1 {
                    write!(f, " {times} times")?;
                }
                Ok(())
            }
            WaitKind::Http(http) => {
                f.write_str("http ")?;
                if http.method != "GET" {
                    write!(f, "{} ", http.method)?;
                }
                write!(f, "{} on port {}", http.path, http.port)?;
                match http.status {
                    Some(status) => write!(f, " with {status}"),
                    None => Ok(()),
                }
            }
            WaitKind::Exec { words, code } => {
                let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
                write!(f, "exec `{}`", words.join(" "))?;
                if *code == 0 {
                    Ok(())
                } else {
                    write!(f, " with code {code}")
                }
            }
            WaitKind::Healthcheck => f.write_str("healthcheck"),
            WaitKind::File(path) => write!(f, "file {}", path.display()),
            WaitKind::Exit(code) => write!(f, "exit with code {code}"),
            WaitKind::All(waits) => list(f, "all", waits),
            WaitKind::Any(waits) => list(f, "any", waits),
        }
    }
}

/// How far one wait came.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub(crate) what: String,
    /// When it came true, from the program's start on.
    pub(crate) met: Option<Duration>,
    /// What was seen last.
    pub(crate) seen: String,
}

/// Why a sandbox that started was not ready.
#[derive(Clone, Debug)]
pub(crate) enum Why {
    /// The startup timeout passed.
    TimedOut(Duration),
    /// Its program ended.
    Ended(Status, Vec<String>),
    /// A wait can never come true.
    Failed(String),
}

/// What there is to say of a sandbox that was not ready.
#[derive(Debug)]
pub(crate) struct NotReady {
    pub(crate) sandbox: String,
    pub(crate) why: Why,
    pub(crate) after: Duration,
    pub(crate) waits: Vec<Progress>,
    /// The last lines that the program wrote.
    pub(crate) tail: String,
    /// Why this host has few ids to give, where it has.
    pub(crate) few_ids: Option<String>,
}

impl NotReady {
    /// Why there are so few ids, where the program may have ended over that, as far as its last words tell: who may not
    /// become another user, or give a file to one, is told so by the kernel, and tells it in words of its own.
    fn lacks_ids(&self) -> Option<&str> {
        const WORDS: [&str; 6] = [
            "invalid argument",
            "not permitted",
            "uid",
            "gid",
            "groups",
            "privileges",
        ];
        let ended = matches!(&self.why, Why::Ended(status, _) if *status != Status::Exited(0));
        let tail = self.tail.to_lowercase();
        let told = ended && WORDS.iter().any(|word| tail.contains(word));
        self.few_ids.as_deref().filter(|_| told)
    }
}

impl std::error::Error for NotReady {}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the sandbox {} was not ready: ", self.sandbox)?;
        match &self.why {
            Why::TimedOut(limit) => write!(f, "its startup timeout of {limit:?} passed")?,
            Why::Ended(status, notes) => {
                write!(f, "its program {status} after {:.1?}", self.after)?;
                notes.iter().try_for_each(|note| write!(f, "; {note}"))?;
            }
            Why::Failed(why) => f.write_str(why)?,
        }
        for wait in &self.waits {
            let (what, seen) = (&wait.what, &wait.seen);
            if let Some(after) = wait.met {
                write!(f, "\n  met after {after:.1?}: {what}")?;
            } else {
                write!(f, "\n  not met in {:.1?}: {what}", self.after)?;
                if !seen.is_empty() {
                    write!(f, " ({seen})")?;
                }
            }
        }
        if self.tail.is_empty() {
            f.write_str("\nIt wrote nothing that was captured.")
        } else {
            write!(f, "\nThe last it wrote:\n{}", self.tail.trim_end())?;
            match self.lacks_ids() {
                Some(why) => write!(
                    f,
                    "\nThis sandbox has one id only, if the program wanted another user's: {why}"
                ),
                None => Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_kept_until_it_is_asked_for() {
        let wrong = [
            Wait::port(0),
            Wait::log("("),
            Wait::http("health"),
            Wait::http("/a b"),
            Wait::exec(Vec::<String>::new()),
            Wait::file("relative"),
            Wait::any([]),
            Wait::port(1).times(2),
            Wait::log("x").status(200),
            Wait::port(1).body_matches("x"),
            Wait::http("/").method("GET /"),
            Wait::http("/").send_header("a b", "c"),
            Wait::http("/").send_header("a", "b\r\nc: d"),
            Wait::http("/").send_header("Content-Length", "3"),
            Wait::http("/").basic_auth("a:b", "c"),
            Wait::http("/").bearer_auth("a b"),
            Wait::http("/").body_matches("("),
            Wait::all([Wait::port(1), Wait::port(0)]),
        ];
        for wait in wrong {
            assert_eq!(wait.faults.len(), 1, "{wait}");
        }
        let texts = Wait::all([
            Wait::log("^ready$").on(LogStream::Stderr).times(2),
            Wait::http("/").on_port(8080).status(204),
            Wait::http("/").method("POST").on_port(1),
            Wait::exec(["true"]),
        ]);
        assert!(texts.faults.is_empty());
        assert_eq!(
            texts.to_string(),
            "all [log /^ready$/ on stderr 2 times, http / on port 8080 with 204, \
             http POST / on port 1, exec `true`]"
        );
    }

    #[test]
    fn a_password_is_written_as_the_standard_says() {
        // RFC 4648, section 10.
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
        let fault = Wait::http("/").basic_auth("a", "hidden\n");
        assert!(!format!("{:?}", fault.faults).contains("hidden"));
    }
}
