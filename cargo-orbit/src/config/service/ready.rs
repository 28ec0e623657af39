//! `wait` of a service: when it is ready, by the keys for which [`orbit::Wait`] has methods.

use std::ops::Range;

use orbit::{__private::wait_faults, LogStream, Wait};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{bad_at, check, port};
use crate::config::{keys::nearest, value::BadValue};

/// What must be so before tests start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReadyWhen {
    Port(u16),
    Log {
        pattern: String,
        on: Option<LogStream>,
        times: Option<usize>,
    },
    Http(Box<HttpWhen>),
    Exec {
        words: Vec<String>,
        code: Option<i32>,
    },
    File(String),
    Exit(i32),
    Healthcheck,
    All(Vec<ReadyWhen>),
    Any(Vec<ReadyWhen>),
}

/// A request, and what is expected of the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HttpWhen {
    pub(crate) path: String,
    pub(crate) port: Option<u16>,
    pub(crate) method: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) basic_auth: Option<(String, String)>,
    pub(crate) bearer_auth: Option<String>,
    pub(crate) send_body: Option<String>,
    pub(crate) status: Option<u16>,
    pub(crate) expected_headers: Vec<(String, String)>,
    pub(crate) body: Option<String>,
    pub(crate) body_matches: Option<String>,
}

/// What one table is of, and what may stand beside that.
const KINDS: &[(&str, &[&str])] = &[
    ("port", &[]),
    ("log", &["on", "times"]),
    (
        "http",
        &[
            "port",
            "method",
            "send_header",
            "basic_auth",
            "bearer_auth",
            "send_body",
            "status",
            "header",
            "body",
            "body_matches",
        ],
    ),
    ("exec", &["code"]),
    ("file", &[]),
    ("exit", &[]),
    ("healthcheck", &[]),
    ("all", &[]),
    ("any", &[]),
];

/// So deep may `all` and `any` be in one another.
const MAX_DEPTH: usize = 8;

impl ReadyWhen {
    /// As the library has it. `ports` are the service's own.
    pub(crate) fn wait(&self, ports: &[u16]) -> Wait {
        let each =
            |waits: &[Self]| -> Vec<Wait> { waits.iter().map(|it| it.wait(ports)).collect() };
        match self {
            Self::Port(port) => Wait::port(*port),
            Self::Log { pattern, on, times } => {
                let wait = Wait::log(pattern);
                let wait = on.iter().fold(wait, |wait, stream| wait.on(*stream));
                times.iter().fold(wait, |wait, times| wait.times(*times))
            }
            Self::Http(http) => http.wait(ports),
            Self::Exec { words, code } => {
                let wait = Wait::exec(words);
                code.iter().fold(wait, |wait, code| wait.code(*code))
            }
            Self::File(path) => Wait::file(path),
            Self::Exit(code) => Wait::exit(*code),
            Self::Healthcheck => Wait::healthcheck(),
            Self::All(waits) => Wait::all(each(waits)),
            Self::Any(waits) => Wait::any(each(waits)),
        }
    }

    /// Whether it may be ready by having ended.
    pub(crate) fn is_end(&self) -> bool {
        match self {
            Self::Exit(_) => true,
            Self::All(waits) | Self::Any(waits) => waits.iter().any(Self::is_end),
            _ => false,
        }
    }
}

impl HttpWhen {
    fn wait(&self, ports: &[u16]) -> Wait {
        let mut wait = Wait::http(&self.path);
        // Where there is none, it says by itself that a port is missing.
        if let Some(port) = self.port.or_else(|| ports.first().copied()) {
            wait = wait.on_port(port);
        }
        if let Some(method) = &self.method {
            wait = wait.method(method);
        }
        for (name, value) in &self.headers {
            wait = wait.send_header(name, value);
        }
        if let Some((user, password)) = &self.basic_auth {
            wait = wait.basic_auth(user, password);
        }
        if let Some(token) = &self.bearer_auth {
            wait = wait.bearer_auth(token);
        }
        if let Some(content) = &self.send_body {
            wait = wait.send_body(content.as_str());
        }
        if let Some(status) = self.status {
            wait = wait.status(status);
        }
        for (name, value) in &self.expected_headers {
            wait = wait.header(name, value);
        }
        if let Some(text) = &self.body {
            wait = wait.body(text);
        }
        if let Some(pattern) = &self.body_matches {
            wait = wait.body_matches(pattern);
        }
        wait
    }
}

/// Reads one table of `wait`.
pub(super) fn read(table: &DeTable<'_>, span: Range<usize>) -> Result<ReadyWhen, BadValue> {
    read_within(table, span, MAX_DEPTH)
}

fn read_within(
    table: &DeTable<'_>,
    span: Range<usize>,
    depth: usize,
) -> Result<ReadyWhen, BadValue> {
    let kind = kind(table, span.clone())?;
    let read = Table(table);
    // It has the key that it is of.
    let value = read.get(kind).ok_or_else(|| bad_at(span.clone(), ""))?;
    let when = match kind {
        "port" => ReadyWhen::Port(port(value)?),
        "log" => {
            let pattern = text(value, "a regular expression, such as log = \"ready\"")?;
            check("log", &pattern)
                .map_err(|why| bad_at(value.span(), format!("`{pattern}`: {why}")))?;
            ReadyWhen::Log {
                pattern,
                on: read.get("on").map(stream).transpose()?,
                times: read.number("times", "a number of lines, such as 2")?,
            }
        }
        "http" => ReadyWhen::Http(Box::new(http(&read, value)?)),
        "exec" => {
            let expected = "expected a program and its arguments, such as exec = [\"pg_isready\"]";
            let items = value.get_ref().as_array().filter(|items| !items.is_empty());
            let items = items.ok_or_else(|| bad_at(value.span(), expected))?;
            let words = items.iter().map(|item| text(item, "a string"));
            ReadyWhen::Exec {
                words: words.collect::<Result<_, _>>()?,
                code: read.number("code", CODE)?,
            }
        }
        "file" => ReadyWhen::File(text(value, "a path, such as file = \"/run/app.pid\"")?),
        "exit" => ReadyWhen::Exit(number(value, CODE)?),
        "healthcheck" if value.get_ref().as_bool() == Some(true) => ReadyWhen::Healthcheck,
        "healthcheck" => return Err(bad_at(value.span(), "expected healthcheck = true")),
        _ => {
            let expected = format!("expected a list, such as {kind} = [{{ port = 80 }}]");
            let items = value.get_ref().as_array().filter(|items| !items.is_empty());
            let items = items.ok_or_else(|| bad_at(value.span(), &expected))?;
            if depth == 0 {
                return Err(bad_at(value.span(), "it is too deep"));
            }
            let mut waits = Vec::new();
            for item in items {
                let table = item.get_ref().as_table();
                let table = table.ok_or_else(|| bad_at(item.span(), &expected))?;
                waits.push(read_within(table, item.span(), depth - 1)?);
            }
            if kind == "all" {
                ReadyWhen::All(waits)
            } else {
                ReadyWhen::Any(waits)
            }
        }
    };
    // What the library would refuse is told here, at its place.
    match wait_faults(&when.wait(&[])).into_iter().next() {
        Some(why) => Err(bad_at(span, why)),
        None => Ok(when),
    }
}

const CODE: &str = "an exit code, such as 0";

/// What a table is of; that nothing stands in it which does not belong there.
fn kind(table: &DeTable<'_>, span: Range<usize>) -> Result<&'static str, BadValue> {
    let names = || KINDS.iter().map(|(name, _)| *name);
    let all: Vec<&str> = names()
        .chain(KINDS.iter().flat_map(|(_, beside)| beside.iter().copied()))
        .collect();
    for name in table.keys() {
        if !all.contains(&name.get_ref().as_ref()) {
            let meant = match nearest(name.get_ref(), all.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("there are {}", names().collect::<Vec<_>>().join(", ")),
            };
            let why = format!("there is no `{}` to wait for; {meant}", name.get_ref());
            return Err(bad_at(name.span(), why));
        }
    }
    let found: Vec<_> = KINDS
        .iter()
        .filter(|(name, _)| table.contains_key(*name))
        // A port stands beside `http`.
        .filter(|(name, _)| *name != "port" || !table.contains_key("http"))
        .collect();
    let [(name, beside)] = &found[..] else {
        let why = format!(
            "wait for one thing in each table: {}; `port` may stand beside `http`",
            names().collect::<Vec<_>>().join(", ")
        );
        return Err(bad_at(span, why));
    };
    for other in table.keys() {
        let text = other.get_ref().as_ref();
        if text != *name && !beside.contains(&text) {
            let of = KINDS.iter().find(|(_, beside)| beside.contains(&text));
            let of = of.map_or("", |(of, _)| of);
            let why = format!("`{text}` is for `{of}` alone");
            return Err(bad_at(other.span(), why));
        }
    }
    Ok(name)
}

/// The optional keys of a table.
struct Table<'a>(&'a DeTable<'a>);

impl<'a> Table<'a> {
    fn get(&self, name: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.0.get(name)
    }

    fn text(&self, name: &str, what: &str) -> Result<Option<String>, BadValue> {
        self.get(name).map(|value| text(value, what)).transpose()
    }

    fn number<T: std::str::FromStr>(&self, name: &str, what: &str) -> Result<Option<T>, BadValue> {
        self.get(name).map(|value| number(value, what)).transpose()
    }

    /// Names and texts.
    fn pairs(&self, name: &str) -> Result<Vec<(String, String)>, BadValue> {
        let Some(value) = self.get(name) else {
            return Ok(Vec::new());
        };
        let expected = format!("expected headers, such as {name} = {{ X-Trace = \"1\" }}");
        let pairs = value.get_ref().as_table();
        let pairs = pairs.ok_or_else(|| bad_at(value.span(), &expected))?;
        let pairs = pairs.iter().map(|(name, value)| {
            let text = value.get_ref().as_str();
            let text = text.ok_or_else(|| bad_at(value.span(), &expected))?;
            Ok((name.get_ref().to_string(), text.to_owned()))
        });
        pairs.collect()
    }
}

fn http(table: &Table<'_>, path: &Spanned<DeValue<'_>>) -> Result<HttpWhen, BadValue> {
    let path_text = text(path, "a path, such as http = \"/health\"")?;
    if !path_text.starts_with('/') {
        let why = format!("`{path_text}`: a path begins with `/`");
        return Err(bad_at(path.span(), why));
    }
    let basic_auth = table.get("basic_auth").map(|value| {
        let items = value.get_ref().as_array();
        let texts: Option<Vec<&str>> = items
            .into_iter()
            .flat_map(|items| items.iter())
            .map(|item| item.get_ref().as_str())
            .collect();
        match texts.as_deref() {
            Some([user, password]) => Ok(((*user).to_owned(), (*password).to_owned())),
            _ => Err(bad_at(
                value.span(),
                "expected a name and a password, such as [\"admin\", \"secret\"]",
            )),
        }
    });
    Ok(HttpWhen {
        path: path_text,
        port: table.get("port").map(port).transpose()?,
        method: table.text("method", "a method, such as \"POST\"")?,
        headers: table.pairs("send_header")?,
        basic_auth: basic_auth.transpose()?,
        bearer_auth: table.text("bearer_auth", "a token")?,
        send_body: table.text("send_body", "a text")?,
        status: table.number("status", "a status, such as 200")?,
        expected_headers: table.pairs("header")?,
        body: table.text("body", "a text")?,
        body_matches: table.text("body_matches", "a regular expression")?,
    })
}

fn text(value: &Spanned<DeValue<'_>>, what: &str) -> Result<String, BadValue> {
    match value.get_ref().as_str() {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(bad_at(value.span(), format!("expected {what}"))),
    }
}

fn number<T: std::str::FromStr>(value: &Spanned<DeValue<'_>>, what: &str) -> Result<T, BadValue> {
    value
        .get_ref()
        .as_integer()
        .filter(|number| number.radix() == 10)
        .and_then(|number| number.as_str().replace('_', "").parse().ok())
        .ok_or_else(|| bad_at(value.span(), format!("expected {what}")))
}

fn stream(value: &Spanned<DeValue<'_>>) -> Result<LogStream, BadValue> {
    match value.get_ref().as_str() {
        Some("stdout") => Ok(LogStream::Stdout),
        Some("stderr") => Ok(LogStream::Stderr),
        _ => Err(bad_at(
            value.span(),
            "expected on = \"stdout\" or on = \"stderr\"",
        )),
    }
}
