//! `[[service]]`: what runs beside the tests that need it. Read from a file, with everything that is wrong with it.

mod ready;

use std::{ops::Range, path::Path, sync::Arc, time::Duration};

use orbit::__private::{check, check_dependencies};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

pub(crate) use self::ready::ReadyWhen;
use super::{
    fault::{Fault, Origin, Text},
    file::FilterText,
    keys::{self, Form, KEYS, Key, nearest},
    settings::{Set, Settings},
    value::{BadValue, Value},
};

/// A service, as it stands in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) origin: Origin,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) cmd: Option<Vec<String>>,
    pub(crate) working_dir: Option<String>,
    /// The first is the one that tests are told of first.
    pub(crate) ports: Vec<u16>,
    /// When it is ready; where nothing was said, when all its ports listen.
    pub(crate) waits: Option<Vec<ReadyWhen>>,
    pub(crate) startup_timeout: Option<Duration>,
    /// Names of services that are to be ready first.
    pub(crate) after: Vec<String>,
    /// What its sandbox is, by the keys that tests' sandboxes have too.
    pub(crate) settings: Settings,
}

/// A service with what has to be looked at once all files are read.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) service: Arc<Service>,
    /// `None`: for every test.
    pub(crate) filter: Option<FilterText>,
    name_span: Range<usize>,
    after_spans: Vec<Range<usize>>,
}

const fn own(
    name: &'static str,
    form: Form,
    default: &'static str,
    example: &'static str,
    help: &'static str,
) -> Key {
    Key {
        name,
        form,
        default,
        example,
        placeholder: "",
        help,
    }
}

/// The keys that services alone have, but for those of [`OTHERS`].
#[rustfmt::skip]
pub(crate) const OWN: &[Key] = &[
    own("name", Form::Text, "none; it has to be given", "\"db\"",
        "By which tests reach it on their network, and which its variables have."),
    own("filter", Form::Text, "all tests", "\"package(api)\"",
        "Which tests need it: a filterset. It starts when the first of them is to run."),
    own("entrypoint", Form::List, "the image's", "[\"docker-entrypoint.sh\"]",
        "The program and its first arguments, in place of the image's entrypoint."),
    own("cmd", Form::List, "the image's", "[\"redis-server\", \"--save\", \"\"]",
        "What follows the entrypoint, or the program itself where there is none."),
    own("working_dir", Form::Text, "the image's", "\"/srv\"",
        "The directory that the program starts in."),
    own("startup_timeout", Form::Time, "60s", "\"2m\"",
        "How long it may take to be ready (ms, s, m, h)."),
    own("after", Form::List, "none", "[\"db\"]",
        "Services that have to be ready before this one starts, and are needed by whoever needs this one."),
];

/// A key that is read by hand. What the schema and the page say of it, tests write.
#[derive(Debug)]
pub(crate) struct Other {
    pub(crate) name: &'static str,
    #[cfg(test)]
    pub(crate) default: &'static str,
    pub(crate) example: &'static str,
    #[cfg(test)]
    pub(crate) help: &'static str,
}

/// Those that no form of the table is like.
pub(crate) const OTHERS: &[Other] = &[
    Other {
        name: "ports",
        #[cfg(test)]
        default: "none",
        example: "[6379]",
        #[cfg(test)]
        help: "The TCP ports that it listens on; `ORBIT_SERVICE_NAME_ADDR` is of the first.",
    },
    Other {
        name: "wait",
        #[cfg(test)]
        default: "each port listens",
        example: "[{ log = \"ready\" }, { http = \"/health\", port = 8080 }]",
        #[cfg(test)]
        help: "When it is ready, all of it; each is one of `port`, `log` (a regular expression; `on`, `times`), `http` (a \
               path; `port`, `method`, `send_header`, `basic_auth`, `bearer_auth`, `send_body`, and of the answer `status`, \
               `header`, `body`, `body_matches`), `exec` (a program; `code`), `file`, `exit` (the code that it \
               ends with), `healthcheck = true`, `all` and `any` (lists of such).",
    },
];

/// What the key `name` of [`OTHERS`] is for.
#[cfg(test)]
pub(crate) fn help(name: &str) -> &'static str {
    let found = OTHERS.iter().find(|other| other.name == name);
    found.map_or("", |other| other.help)
}

/// Keys of tests' sandboxes that a service has as well.
pub(crate) const SHARED: &[&str] = &[
    "image",
    "egress",
    "memory",
    "memory_high",
    "cpus",
    "cpuset",
    "pids",
    "disk",
    "io_max",
    "ulimit",
    "best_effort",
    "mount",
    "tmpfs",
    "read_only",
    "env",
    "user",
    "cap_add",
    "cap_drop",
];

/// Every name that may stand in `[[service]]`.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    let own = OWN.iter().map(|key| key.name);
    let others = OTHERS.iter().map(|other| other.name);
    own.chain(others).chain(SHARED.iter().copied())
}

/// Reads the services of a table, where it has some.
pub(super) fn read(
    text: &Text,
    base: &Path,
    table: &DeTable<'_>,
    faults: &mut Vec<Fault>,
) -> Vec<Read> {
    let Some(services) = table.get("service") else {
        return Vec::new();
    };
    let Some(items) = services.get_ref().as_array() else {
        faults.push(text.fault(
            services.span(),
            "services are a list of tables: write [[service]]",
        ));
        return Vec::new();
    };
    let mut reader = Reader { text, base, faults };
    items
        .iter()
        .filter_map(|item| reader.service(item))
        .collect()
}

struct Reader<'a> {
    text: &'a Text,
    base: &'a Path,
    faults: &'a mut Vec<Fault>,
}

impl Reader<'_> {
    fn fault(&mut self, span: Range<usize>, why: impl Into<String>) {
        self.faults.push(self.text.fault(span, why));
    }

    fn service(&mut self, item: &Spanned<DeValue<'_>>) -> Option<Read> {
        let Some(table) = item.get_ref().as_table() else {
            self.fault(item.span(), "a service is a table with a `name`");
            return None;
        };
        let Some(name) = table.get("name") else {
            self.fault(
                item.span(),
                "this service has no `name`, by which tests reach it, such as name = \"db\"",
            );
            return None;
        };
        let text = name.get_ref().as_str().unwrap_or_default();
        let mut read = Read {
            service: Arc::default(),
            filter: None,
            name_span: name.span(),
            after_spans: Vec::new(),
        };
        let mut service = Service::new(text, self.text.origin(item.span().start, None));
        let within: Arc<str> = format!("service {text}").into();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let done = if let Some(own) = OWN.iter().find(|own| own.name == name) {
                Value::of_toml(own, value.get_ref(), self.base)
                    .and_then(|given| take(own.name, given, value, &mut service, &mut read))
            } else if SHARED.contains(&name) {
                let origin = self
                    .text
                    .origin(key.span().start, Some(Arc::clone(&within)));
                self.shared(name, value, origin, &mut service)
            } else if OTHERS.iter().any(|other| other.name == name) {
                other(name, value.get_ref(), &mut service)
            } else {
                let why = unknown(name);
                Err(BadValue {
                    span: Some(key.span()),
                    why,
                })
            };
            if let Err(BadValue { span, why }) = done {
                self.fault(span.unwrap_or_else(|| value.span()), why);
            }
        }
        read.service = Arc::new(service);
        Some(read)
    }

    /// A key that tests' sandboxes have as well.
    fn shared(
        &self,
        name: &str,
        value: &Spanned<DeValue<'_>>,
        origin: Origin,
        service: &mut Service,
    ) -> Result<(), BadValue> {
        let Some(index) = keys::find(name) else {
            return Ok(());
        };
        let value = Value::of_toml(&KEYS[index], value.get_ref(), self.base)?;
        service.settings.set(
            index,
            Set {
                value,
                origins: vec![origin],
            },
        );
        Ok(())
    }
}

/// What the value of one of the [`OWN`] keys is for.
fn take(
    key: &str,
    given: Value,
    value: &Spanned<DeValue<'_>>,
    service: &mut Service,
    read: &mut Read,
) -> Result<(), BadValue> {
    match (key, given) {
        ("name", Value::Text(text)) => {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
            if check("hostname", &text).is_err() || !text.chars().all(is_plain) {
                let why =
                    format!("`{text}`: a service's name has letters, digits and `-` between them");
                return Err(bad(why));
            }
        }
        ("filter", Value::Text(text)) => {
            read.filter = Some(FilterText {
                text,
                span: value.span(),
            });
        }
        ("working_dir", Value::Text(text)) => service.working_dir = Some(text),
        ("entrypoint", Value::List(words)) => service.entrypoint = Some(words),
        ("cmd", Value::List(words)) => service.cmd = Some(words),
        ("startup_timeout", Value::Time(limit)) => service.startup_timeout = Some(limit),
        ("after", Value::List(names)) => {
            service.after = names;
            let items = value.get_ref().as_array();
            read.after_spans = items
                .into_iter()
                .flat_map(|items| items.iter())
                .map(Spanned::span)
                .collect();
        }
        // Each has the form that its key has.
        _ => {}
    }
    Ok(())
}

/// `ports` and `wait`.
fn other(name: &str, value: &DeValue<'_>, service: &mut Service) -> Result<(), BadValue> {
    let found = OTHERS.iter().find(|other| other.name == name);
    let example = found.map_or("", |other| other.example);
    let expected = format!("`{name}` is a list, such as {name} = {example}");
    let items = value.as_array().ok_or_else(|| bad(&expected))?;
    if name == "ports" {
        for item in items {
            service.ports.push(port(item)?);
        }
        return Ok(());
    }
    let mut waits = Vec::new();
    for item in items {
        let table = item.get_ref().as_table();
        let table = table.ok_or_else(|| bad_at(item.span(), &expected))?;
        waits.push(ready::read(table, item.span())?);
    }
    service.waits = Some(waits);
    Ok(())
}

fn port(value: &Spanned<DeValue<'_>>) -> Result<u16, BadValue> {
    let number = value
        .get_ref()
        .as_integer()
        .filter(|number| number.radix() == 10);
    number
        .and_then(|number| number.as_str().replace('_', "").parse::<u16>().ok())
        .filter(|port| *port > 0)
        .ok_or_else(|| {
            bad_at(
                value.span(),
                "expected a port from 1 to 65535, such as 6379",
            )
        })
}

fn bad(why: impl Into<String>) -> BadValue {
    BadValue {
        span: None,
        why: why.into(),
    }
}

fn bad_at(span: Range<usize>, why: impl Into<String>) -> BadValue {
    BadValue {
        span: Some(span),
        why: why.into(),
    }
}

fn unknown(name: &str) -> String {
    match nearest(name, names()) {
        Some(near) => format!("there is no key `{name}` in a service; did you mean `{near}`?"),
        None => format!(
            "there is no key `{name}` in a service; there are {}",
            names().collect::<Vec<_>>().join(", ")
        ),
    }
}

impl Default for Service {
    fn default() -> Self {
        Self::new("", Origin::Variable(String::new()))
    }
}

impl Service {
    fn new(name: &str, origin: Origin) -> Self {
        Self {
            name: name.to_owned(),
            origin,
            entrypoint: None,
            cmd: None,
            working_dir: None,
            ports: Vec::new(),
            waits: None,
            startup_timeout: None,
            after: Vec::new(),
            settings: Settings::new(),
        }
    }

    /// Whether it is one that prepares something and ends.
    pub(crate) fn may_end(&self) -> bool {
        self.waits.iter().flatten().any(ReadyWhen::is_end)
    }

    /// The beginning of its variables' names: `ORBIT_SERVICE_DB`.
    pub(crate) fn variable(&self) -> String {
        format!(
            "ORBIT_SERVICE_{}",
            self.name.to_ascii_uppercase().replace('-', "_")
        )
    }
}

/// What is wrong with the services of all files together: names, and who needs whom.
pub(super) fn faults<'a>(all: impl IntoIterator<Item = (&'a Text, &'a Read)>) -> Vec<Fault> {
    let all: Vec<(&Text, &Read)> = all.into_iter().collect();
    let name = |read: &'a Read| read.service.name.as_str();
    let mut faults = Vec::new();
    for (place, (text, read)) in all.iter().enumerate() {
        let before = all[..place]
            .iter()
            .find(|(_, other)| name(other) == name(read));
        if let Some((_, other)) = before {
            let why = format!(
                "there is a service `{}` at {}",
                name(read),
                other.service.origin
            );
            faults.push(text.fault(read.name_span.clone(), why));
        }
        for (needed, span) in read.service.after.iter().zip(&read.after_spans) {
            if all.iter().any(|(_, other)| name(other) == needed) {
                continue;
            }
            let names = || all.iter().map(|(_, read)| name(read));
            let meant = match nearest(needed, names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("there are {}", names().collect::<Vec<_>>().join(", ")),
            };
            let why = format!("there is no service `{needed}`; {meant}");
            faults.push(text.fault(span.clone(), why));
        }
    }
    let names: Vec<&str> = all.iter().map(|(_, read)| name(read)).collect();
    let after: Vec<(&str, &str)> = all
        .iter()
        .flat_map(|(_, read)| {
            read.service
                .after
                .iter()
                .map(|needed| (name(read), needed.as_str()))
        })
        .collect();
    // What remains where each name is there once is a ring.
    if let (true, Some((text, read))) = (faults.is_empty(), all.first()) {
        let rings = check_dependencies(&names, &after);
        faults.extend(
            rings
                .into_iter()
                .map(|why| text.fault(read.name_span.clone(), why)),
        );
    }
    faults
}

#[cfg(test)]
mod tests;
