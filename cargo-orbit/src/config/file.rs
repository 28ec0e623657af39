//! Reading one file: its keys, profiles and overrides, each with the place it stands at, or everything that is
//! wrong with it. Nothing here reads the file system.

use std::{ops::Range, path::Path, sync::Arc};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    fault::{Fault, Origin, Text},
    keys::{self, KEYS, nearest},
    service,
    value::{BadValue, Value},
};

/// One key that was given a value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// By its place in [`KEYS`].
    pub(crate) key: usize,
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

/// Keys that hold under the same condition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Section {
    /// `None`: at the top.
    pub(crate) profile: Option<String>,
    /// `None`: for every test.
    pub(crate) filter: Option<FilterText>,
    /// Keys that begin again here, by their place in [`KEYS`].
    pub(crate) reset: Vec<usize>,
    pub(crate) entries: Vec<Entry>,
}

/// A filterset as it stands in a file.
#[derive(Clone, Debug)]
pub(crate) struct FilterText {
    pub(crate) text: String,
    /// Of the string, with its quotes.
    pub(crate) span: Range<usize>,
}

impl FilterText {
    /// Where bytes of the filterset stand in the file, as far as that can be told.
    pub(crate) fn span_in(&self, file: &Text, part: Option<Range<usize>>) -> Range<usize> {
        let raw = file.text.get(self.span.clone()).unwrap_or_default();
        match (part, raw.find(&self.text)) {
            // Without escapes, the text stands there as it is.
            (Some(part), Some(at)) => {
                let start = self.span.start + at;
                start + part.start..start + part.end
            }
            _ => self.span.clone(),
        }
    }
}

/// A file with what it says.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) text: Text,
    pub(crate) sections: Vec<Section>,
    pub(crate) services: Vec<service::Read>,
    /// What is wrong with it.
    pub(crate) faults: Vec<Fault>,
}

impl File {
    /// Reads `text`, or of it the table at `table`, such as `package.metadata.orbit`. Relative paths in it are
    /// taken from `base`.
    pub(crate) fn read(text: Text, table: &[&str], base: &Path) -> Self {
        let (document, errors) = DeTable::parse_recoverable(&text.text);
        let faults = errors
            .iter()
            .map(|error| text.fault(error.span().unwrap_or_default(), error.message()))
            .collect::<Vec<_>>();
        let mut services = Vec::new();
        let mut reader = Reader {
            text: &text,
            base,
            sections: Vec::new(),
            faults,
        };
        if reader.faults.is_empty() {
            let mut found = Some(document.get_ref());
            for name in table {
                found = found
                    .and_then(|table| table.get(*name))
                    .and_then(|value| value.get_ref().as_table());
            }
            if let Some(table) = found {
                reader.top(table);
                services = service::read(&text, base, table, &mut reader.faults);
            }
        }
        let (sections, mut faults) = (reader.sections, reader.faults);
        // Tables are sorted by name.
        faults.sort_by_key(|fault| fault.line);
        Self {
            text,
            sections,
            services,
            faults,
        }
    }
}

struct Reader<'a> {
    text: &'a Text,
    base: &'a Path,
    sections: Vec<Section>,
    faults: Vec<Fault>,
}

/// What stands beside the keys of settings.
const TOP: &[&str] = &["reset", "override", "profile", "service"];
const PROFILE: &[&str] = &["reset", "override"];
const OVERRIDE: &[&str] = &["reset", "filter"];

impl Reader<'_> {
    fn fault(&mut self, span: Range<usize>, why: impl Into<String>) {
        self.faults.push(self.text.fault(span, why));
    }

    fn top(&mut self, table: &DeTable<'_>) {
        self.keys(table, TOP, Section::default(), None);
        self.overrides(table, None);
        let Some(profiles) = table.get("profile") else {
            return;
        };
        let Some(profiles) = profiles.get_ref().as_table() else {
            self.fault(profiles.span(), "profiles are tables, such as [profile.ci]");
            return;
        };
        for (name, profile) in profiles {
            let name = name.get_ref().as_ref();
            let Some(table) = profile.get_ref().as_table() else {
                self.fault(
                    profile.span(),
                    format!("a profile is a table: write [profile.{name}]"),
                );
                continue;
            };
            let section = Section {
                profile: Some(name.to_owned()),
                ..Section::default()
            };
            self.keys(table, PROFILE, section, Some(&format!("profile {name}")));
            self.overrides(table, Some(name));
        }
    }

    fn overrides(&mut self, table: &DeTable<'_>, profile: Option<&str>) {
        let Some(overrides) = table.get("override") else {
            return;
        };
        let Some(items) = overrides.get_ref().as_array() else {
            let header = match profile {
                Some(profile) => format!("[[profile.{profile}.override]]"),
                None => "[[override]]".to_owned(),
            };
            self.fault(
                overrides.span(),
                format!("overrides are a list of tables: write {header}"),
            );
            return;
        };
        for item in items {
            let Some(table) = item.get_ref().as_table() else {
                self.fault(item.span(), "an override is a table with a `filter`");
                continue;
            };
            let Some(filter) = table.get("filter") else {
                self.fault(
                    item.span(),
                    "this override has no `filter`, which says for which tests it is, such as \
                     filter = \"test(slow)\"",
                );
                continue;
            };
            let Some(text) = filter.get_ref().as_str() else {
                self.fault(filter.span(), "a filter is a string");
                continue;
            };
            let filter = FilterText {
                text: text.to_owned(),
                span: filter.span(),
            };
            let within = match profile {
                Some(profile) => format!("override in profile {profile}: {}", filter.text),
                None => format!("override: {}", filter.text),
            };
            let section = Section {
                profile: profile.map(str::to_owned),
                filter: Some(filter),
                ..Section::default()
            };
            self.keys(table, OVERRIDE, section, Some(&within));
        }
    }

    /// Reads the keys of one table, where `others` are known besides.
    fn keys(
        &mut self,
        table: &DeTable<'_>,
        others: &[&'static str],
        mut section: Section,
        within: Option<&str>,
    ) {
        let within: Option<Arc<str>> = within.map(Into::into);
        for (name, value) in table {
            let text = name.get_ref().as_ref();
            if let Some(index) = keys::find(text) {
                match Value::of_toml(&KEYS[index], value.get_ref(), self.base) {
                    Ok(read) => section.entries.push(Entry {
                        key: index,
                        value: read,
                        origin: self.text.origin(name.span().start, within.clone()),
                    }),
                    Err(BadValue { span, why }) => {
                        self.fault(span.unwrap_or_else(|| value.span()), why);
                    }
                }
            } else if text == "reset" {
                self.reset(value, &mut section);
            } else if !others.contains(&text) {
                let why = unknown(text, others);
                self.fault(name.span(), why);
            }
        }
        self.sections.push(section);
    }

    fn reset(&mut self, value: &Spanned<DeValue<'_>>, section: &mut Section) {
        let Some(items) = value.get_ref().as_array() else {
            self.fault(
                value.span(),
                "`reset` is a list of keys, such as reset = [\"mount\"]",
            );
            return;
        };
        for item in items {
            let name = item.get_ref().as_str().unwrap_or_default();
            if let Some(index) = keys::find(name) {
                section.reset.push(index);
            } else {
                let why = unknown(name, &[]);
                self.fault(item.span(), why);
            }
        }
    }
}

fn unknown(name: &str, others: &[&'static str]) -> String {
    let names = || {
        KEYS.iter()
            .map(|key| key.name)
            .chain(others.iter().copied())
    };
    if let Some(near) = nearest(name, names()) {
        return format!("there is no key `{name}` here; did you mean `{near}`?");
    }
    if TOP.contains(&name) {
        return format!("`{name}` stands at the top of the file alone");
    }
    let names: Vec<&str> = names().collect();
    format!(
        "there is no key `{name}` here; there are {}",
        names.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, table: &[&str]) -> File {
        File::read(
            Text::new(Path::new("/w/orbit.toml"), Path::new("/w"), text),
            table,
            Path::new("/w"),
        )
    }

    fn told(text: &str) -> String {
        let file = read(text, &[]);
        assert!(!file.faults.is_empty(), "{file:?}");
        let texts: Vec<String> = file.faults.iter().map(Fault::to_string).collect();
        texts.join("\n")
    }

    #[test]
    fn keys_stand_where_they_stand() {
        let file = read(
            "memory = '64M'\n[profile.ci]\ntimeout = '1m'\nreset = ['mount']\n\
             [[profile.ci.override]]\nfilter = 'all()'\npids = 4\n[[override]]\nfilter = 'none()'\n",
            &[],
        );
        assert_eq!(file.faults, []);
        let told: Vec<String> = file
            .sections
            .iter()
            .flat_map(|section| &section.entries)
            .map(|entry| format!("{} {}", KEYS[entry.key].name, entry.origin))
            .collect();
        assert_eq!(
            told,
            [
                "memory orbit.toml:1:1",
                "timeout orbit.toml:3:1 (profile ci)",
                "pids orbit.toml:7:1 (override in profile ci: all())",
            ]
        );
    }

    #[test]
    fn of_a_manifest_only_our_table_is_read() {
        let manifest = "[package]\nname = 'x'\n[package.metadata.orbit]\nmemroy = '1M'\n";
        let file = read(manifest, &["package", "metadata", "orbit"]);
        insta::assert_snapshot!(file.faults[0], @r"
        orbit.toml:4:1: there is no key `memroy` here; did you mean `memory`?
          4 | memroy = '1M'
            | ^^^^^^
        ");
        assert_eq!(
            read(manifest, &["workspace", "metadata", "orbit"]).faults,
            []
        );
    }

    #[test]
    fn every_fault_is_told_at_once_and_at_its_place() {
        insta::assert_snapshot!(told(
            "memory = 64\nisolate = 'tests'\nmount = ['/a:/b', '/c']\nreset = ['env', 'mounts']\n\
             retries = { count = 1, backof = 'fixed' }\nenv = { A = 1 }\ncap_add = ['NET_ADMINN']\n\
             profiles = 1\n[profile.ci.profile.x]\n[[override]]\npids = 1\n"
        ), @r#"
        orbit.toml:1:10: `memory` is a string, such as memory = "512M"; this is a number
          1 | memory = 64
            |          ^^
        orbit.toml:2:11: `tests`: expected binary or test; did you mean `test`?
          2 | isolate = 'tests'
            |           ^^^^^^^
        orbit.toml:3:19: `/c`: expected SOURCE:TARGET[:ro|rw|overlay] or tmpfs:TARGET[:SIZE]
          3 | mount = ['/a:/b', '/c']
            |                   ^^^^
        orbit.toml:4:17: there is no key `mounts` here; did you mean `mount`?
          4 | reset = ['env', 'mounts']
            |                 ^^^^^^^^
        orbit.toml:5:24: there is no key `backof` here; did you mean `backoff`?
          5 | retries = { count = 1, backof = 'fixed' }
            |                        ^^^^^^
        orbit.toml:6:13: a variable's value is a string; to pass the host's own, name it in `pass_env`
          6 | env = { A = 1 }
            |             ^
        orbit.toml:7:12: `NET_ADMINN`: no capability has this name; did you mean NET_ADMIN?
          7 | cap_add = ['NET_ADMINN']
            |            ^^^^^^^^^^^^
        orbit.toml:8:1: there is no key `profiles` here; did you mean `profile`?
          8 | profiles = 1
            | ^^^^^^^^
        orbit.toml:9:13: `profile` stands at the top of the file alone
          9 | [profile.ci.profile.x]
            |             ^^^^^^^
        orbit.toml:10:1: this override has no `filter`, which says for which tests it is, such as filter = "test(slow)"
          10 | [[override]]
             | ^^^^^^^^^^^^
        "#);
    }

    #[test]
    fn text_that_is_no_toml_is_told_at_its_place() {
        insta::assert_snapshot!(told("memory =\npids = 1\n"), @r"
        orbit.toml:1:9: string values must be quoted, expected literal string
          1 | memory =
            |         ^
        ");
        insta::assert_snapshot!(told("a = 1\na = 2\n"), @r"
        orbit.toml:2:1: duplicate key
          2 | a = 2
            | ^
        ");
    }
}
