//! Values of keys: read from TOML and from words of the command line, and merged.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;
use toml::de::{DeTable, DeValue};

use super::keys::{BACKOFF, Form, Key, nearest};

/// What a key was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum Value {
    /// Of texts, numbers and choices.
    Text(String),
    Switch(bool),
    List(Vec<String>),
    /// `None`: the host's own value.
    Variables(BTreeMap<String, Option<String>>),
    Time(Duration),
    SlowTimeout(SlowTimeout),
    Retries(Retries),
}

/// When a test is called slow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct SlowTimeout {
    pub(crate) period: Option<Duration>,
    /// How many periods a test may take.
    pub(crate) terminate_after: Option<u32>,
}

/// How often a failed test is run again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Retries {
    pub(crate) count: Option<u32>,
    pub(crate) backoff: Option<Backoff>,
    pub(crate) delay: Option<Duration>,
}

/// How the delay before another attempt grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Backoff {
    #[default]
    Fixed,
    /// Twice as long each time.
    Exponential,
}

/// What is wrong with a value, and with which part of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadValue {
    /// Bytes of the text, where only a part of the value is wrong.
    pub(crate) span: Option<std::ops::Range<usize>>,
    pub(crate) why: String,
}

impl BadValue {
    fn new(why: impl Into<String>) -> Self {
        Self {
            span: None,
            why: why.into(),
        }
    }

    fn at(span: std::ops::Range<usize>, why: impl Into<String>) -> Self {
        Self {
            span: Some(span),
            why: why.into(),
        }
    }
}

impl Value {
    /// Reads a value of a file. Relative paths are taken from `base`.
    pub(crate) fn of_toml(key: &Key, value: &DeValue<'_>, base: &Path) -> Result<Self, BadValue> {
        let wrong_type = || {
            let expected = match key.form {
                Form::Text | Form::Choice(_) => "a string",
                Form::Number => "a number",
                Form::Switch => "true or false",
                Form::List | Form::ListByName | Form::Paths => "a list of strings",
                Form::Variables => "a table of strings",
                Form::Time => "a time with its unit, such as \"10s\"",
                Form::SlowTimeout => "a time such as \"60s\", or a table",
                Form::Retries => "a whole number, or a table",
            };
            BadValue::new(format!(
                "`{}` is {expected}, such as {} = {}; this is {}",
                key.name,
                key.name,
                key.example,
                type_of(value)
            ))
        };
        match (key.form, value) {
            (Form::Switch, DeValue::Boolean(switch)) => Ok(Self::Switch(*switch)),
            (Form::Number, DeValue::Integer(number)) if number.radix() == 10 => {
                Self::of_text(key, &number.as_str().replace('_', ""), base)
            }
            (Form::Number, DeValue::Float(number)) => {
                Self::of_text(key, &number.as_str().replace('_', ""), base)
            }
            (Form::Retries, DeValue::Integer(number)) => Self::of_text(key, number.as_str(), base),
            (Form::Retries, DeValue::Table(table)) => retries(table).map(Self::Retries),
            (Form::SlowTimeout, DeValue::Table(table)) => {
                slow_timeout(table).map(Self::SlowTimeout)
            }
            (Form::List | Form::ListByName | Form::Paths, DeValue::Array(items)) => {
                let mut texts = Vec::new();
                for item in items {
                    let Some(text) = item.get_ref().as_str() else {
                        return Err(BadValue::at(item.span(), wrong_type().why));
                    };
                    texts.push(one(key, text, base).map_err(|why| BadValue::at(item.span(), why))?);
                }
                Ok(Self::List(texts))
            }
            (Form::Variables, DeValue::Table(table)) => variables(table).map(Self::Variables),
            (
                Form::Text
                | Form::Number
                | Form::Choice(_)
                | Form::Time
                | Form::SlowTimeout
                | Form::Retries,
                DeValue::String(text),
            ) => Self::of_text(key, text, base),
            _ => Err(wrong_type()),
        }
    }

    /// Reads a value of the command line or of a variable.
    pub(crate) fn of_text(key: &Key, text: &str, base: &Path) -> Result<Self, BadValue> {
        let fail = |why: String| BadValue::new(format!("`{text}`: {why}"));
        match key.form {
            Form::Text | Form::Number => {
                one(key, text, base).map(Self::Text).map_err(BadValue::new)
            }
            Form::Choice(words) => {
                choice(text, words).map_err(BadValue::new)?;
                Ok(Self::Text(text.to_owned()))
            }
            Form::Switch => match text {
                "true" => Ok(Self::Switch(true)),
                "false" => Ok(Self::Switch(false)),
                _ => Err(fail("expected true or false".to_owned())),
            },
            Form::List | Form::ListByName | Form::Paths => one(key, text, base)
                .map(|text| Self::List(vec![text]))
                .map_err(BadValue::new),
            Form::Variables => match text.split_once('=') {
                Some(("", _)) => Err(fail("a variable needs a name".to_owned())),
                Some((name, value)) => Ok((name, Some(value.to_owned()))),
                None if text.is_empty() => Err(fail("a variable needs a name".to_owned())),
                None => Ok((text, None)),
            }
            .map(|(name, value)| Self::Variables(BTreeMap::from([(name.to_owned(), value)]))),
            Form::Time => duration(text).map(Self::Time).map_err(fail),
            Form::SlowTimeout => {
                let (period, terminate_after) = match text.split_once(':') {
                    Some((period, times)) => (period, Some(count(times, 1).map_err(&fail)?)),
                    None => (text, None),
                };
                Ok(Self::SlowTimeout(SlowTimeout {
                    period: Some(duration(period).map_err(&fail)?),
                    terminate_after,
                }))
            }
            Form::Retries => {
                let mut words = text.splitn(3, ':');
                let count = count(words.next().unwrap_or_default(), 0).map_err(&fail)?;
                let backoff = words.next().map(backoff).transpose().map_err(&fail)?;
                let delay = words.next().map(duration).transpose().map_err(&fail)?;
                Ok(Self::Retries(Retries {
                    count: Some(count),
                    backoff,
                    delay,
                }))
            }
        }
    }

    /// What becomes of this where `stronger` is said of the same key.
    pub(crate) fn merge(&mut self, stronger: Self, form: Form) {
        match (self, stronger) {
            (Self::List(list), Self::List(more)) => {
                for text in more {
                    if form == Form::ListByName {
                        list.retain(|old| subject(old) != subject(&text));
                    }
                    if !list.contains(&text) {
                        list.push(text);
                    }
                }
            }
            (Self::Variables(variables), Self::Variables(more)) => variables.extend(more),
            (Self::SlowTimeout(old), Self::SlowTimeout(new)) => {
                old.period = new.period.or(old.period);
                old.terminate_after = new.terminate_after.or(old.terminate_after);
            }
            (Self::Retries(old), Self::Retries(new)) => {
                old.count = new.count.or(old.count);
                old.backoff = new.backoff.or(old.backoff);
                old.delay = new.delay.or(old.delay);
            }
            (old, new) => *old = new,
        }
    }
}

/// What of a limit says what is limited: the resource, or the device.
fn subject(limit: &str) -> &str {
    let end = limit.find(['=', ' ']).unwrap_or(limit.len());
    &limit[..end]
}

fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// One text of a key, with paths made absolute.
fn one(key: &Key, text: &str, base: &Path) -> Result<String, String> {
    key.check(text).map_err(|why| format!("`{text}`: {why}"))?;
    let absolute = |path: &str| {
        let path = base.join(path);
        // Without `.` and a `/` at the end.
        let path: PathBuf = path.components().collect();
        path.into_os_string()
            .into_string()
            .map_err(|path| format!("`{}` is not UTF-8", path.display()))
    };
    match key.name {
        _ if key.form == Form::Paths => absolute(text),
        "image" => match text.split_once(':') {
            Some((kind @ ("dir" | "oci" | "oci-archive"), path)) => {
                Ok(format!("{kind}:{}", absolute(path)?))
            }
            _ => Ok(text.to_owned()),
        },
        "mount" => match text.split_once(':') {
            Some((source, rest)) if source != "tmpfs" => {
                Ok(format!("{}:{rest}", absolute(source)?))
            }
            _ => Ok(text.to_owned()),
        },
        _ => Ok(text.to_owned()),
    }
}

fn choice(text: &str, words: &'static [&'static str]) -> Result<&'static str, String> {
    if let Some(word) = words.iter().find(|word| **word == text) {
        return Ok(word);
    }
    let meant = nearest(text, words.iter().copied())
        .map(|word| format!("; did you mean `{word}`?"))
        .unwrap_or_default();
    let all = words
        .join(", ")
        .replacen(", ", " or ", usize::from(words.len() == 2));
    Err(format!("`{text}`: expected {all}{meant}"))
}

fn backoff(text: &str) -> Result<Backoff, String> {
    choice(text, BACKOFF).map(|word| match word {
        "exponential" => Backoff::Exponential,
        _ => Backoff::Fixed,
    })
}

fn count(text: &str, least: u32) -> Result<u32, String> {
    match text.parse() {
        Ok(count) if count >= least => Ok(count),
        Ok(_) => Err(format!("it is less than {least}")),
        Err(_) => Err("expected a whole number such as 2".to_owned()),
    }
}

/// Reads `500ms`, `10s`, `1.5m`, `1h`: as the attribute does.
fn duration(text: &str) -> Result<Duration, String> {
    let expected = "expected a time such as 500ms, 10s, 1.5m or 1h";
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let seconds = match unit.trim_start() {
        "ms" => 0.001,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "" if !number.is_empty() => return Err(format!("it has no unit: {expected}")),
        _ => return Err(expected.to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| expected.to_owned())?;
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(Duration::ZERO) => Err("no test ends in no time at all".to_owned()),
        Ok(duration) => Ok(duration),
        Err(_) => Err("it is longer than any clock runs".to_owned()),
    }
}

fn variables(table: &DeTable<'_>) -> Result<BTreeMap<String, Option<String>>, BadValue> {
    let mut variables = BTreeMap::new();
    for (name, value) in table {
        let fail = |why: &str| Err(BadValue::at(value.span(), why));
        if name.get_ref().is_empty() || name.get_ref().contains(['=', '\0']) {
            return Err(BadValue::at(
                name.span(),
                "a variable's name is not empty, and has no `=` and no NUL byte",
            ));
        }
        let value = match value.get_ref() {
            DeValue::String(text) if text.contains('\0') => {
                return fail("a variable cannot hold a NUL byte");
            }
            DeValue::String(text) => text.to_string(),
            _ => {
                return fail(
                    "a variable's value is a string; to pass the host's own, name it in `pass_env`",
                );
            }
        };
        variables.insert(name.get_ref().to_string(), Some(value));
    }
    Ok(variables)
}

/// A number of a table, as text.
fn number<'a>(name: &str, value: &'a DeValue<'_>) -> Result<&'a str, String> {
    value
        .as_integer()
        .map(toml::de::DeInteger::as_str)
        .ok_or_else(|| format!("`{name}` is a whole number; this is {}", type_of(value)))
}

fn string<'a>(name: &str, value: &'a DeValue<'_>) -> Result<&'a str, String> {
    value
        .as_str()
        .ok_or_else(|| format!("`{name}` is a string; this is {}", type_of(value)))
}

fn slow_timeout(table: &DeTable<'_>) -> Result<SlowTimeout, BadValue> {
    let mut slow = SlowTimeout::default();
    each(table, &["period", "terminate_after"], |name, value| {
        match name {
            "period" => slow.period = Some(duration(string(name, value)?)?),
            _ => slow.terminate_after = Some(count(number(name, value)?, 1)?),
        }
        Ok(())
    })?;
    Ok(slow)
}

fn retries(table: &DeTable<'_>) -> Result<Retries, BadValue> {
    let mut retries = Retries::default();
    each(table, &["count", "backoff", "delay"], |name, value| {
        match name {
            "count" => retries.count = Some(count(number(name, value)?, 0)?),
            "backoff" => retries.backoff = Some(backoff(string(name, value)?)?),
            _ => retries.delay = Some(duration(string(name, value)?)?),
        }
        Ok(())
    })?;
    Ok(retries)
}

fn each(
    table: &DeTable<'_>,
    names: &[&'static str],
    mut read: impl FnMut(&str, &DeValue<'_>) -> Result<(), String>,
) -> Result<(), BadValue> {
    for (name, value) in table {
        let text = name.get_ref().as_ref();
        if !names.contains(&text) {
            let meant = match nearest(text, names.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("there are {}", names.join(", ")),
            };
            let why = format!("there is no key `{text}` here; {meant}");
            return Err(BadValue::at(name.span(), why));
        }
        read(text, value.get_ref()).map_err(|why| BadValue::at(value.span(), why))?;
    }
    Ok(())
}

/// As a file would write it.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Switch(switch) => write!(f, "{switch}"),
            Self::List(list) => f.write_str(&list.join(", ")),
            Self::Variables(variables) => {
                let words: Vec<String> = variables
                    .iter()
                    .map(|(name, value)| match value {
                        Some(value) => format!("{name}={value}"),
                        None => name.clone(),
                    })
                    .collect();
                f.write_str(&words.join(", "))
            }
            Self::Time(time) => write!(f, "{}", humantime::format_duration(*time)),
            Self::SlowTimeout(slow) => {
                if let Some(period) = slow.period {
                    write!(f, "{}", humantime::format_duration(period))?;
                }
                match slow.terminate_after {
                    Some(times) => write!(f, ", killed after {times} of them"),
                    None => Ok(()),
                }
            }
            Self::Retries(retries) => {
                write!(f, "{}", retries.count.unwrap_or_default())?;
                if let Some(delay) = retries.delay {
                    write!(f, ", after {}", humantime::format_duration(delay))?;
                }
                match retries.backoff {
                    Some(Backoff::Exponential) => f.write_str(", doubling"),
                    Some(Backoff::Fixed) | None => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::{KEYS, find};

    fn text(key: &str, text: &str) -> Result<Value, String> {
        Value::of_text(&KEYS[find(key).unwrap()], text, Path::new("/w")).map_err(|bad| bad.why)
    }

    #[test]
    fn each_example_is_a_value_of_its_key() {
        for key in KEYS {
            let value = DeValue::parse(key.example).unwrap();
            let read = Value::of_toml(key, value.get_ref(), Path::new("/w"));
            assert!(read.is_ok(), "{}: {read:?}", key.name);
        }
    }

    #[test]
    fn a_value_of_another_type_is_refused_with_an_example() {
        for key in KEYS {
            let value = DeValue::parse("2020-01-01").unwrap();
            let bad = Value::of_toml(key, value.get_ref(), Path::new("/w")).unwrap_err();
            assert!(bad.why.contains(key.example), "{}", bad.why);
        }
    }

    #[test]
    fn paths_are_taken_from_where_they_were_written() {
        let list = |word: &str| Ok(Value::List(vec![word.to_owned()]));
        assert_eq!(text("writable", "./a/b/"), list("/w/a/b"));
        assert_eq!(text("writable", "/x"), list("/x"));
        assert_eq!(text("mount", "data:/data:ro"), list("/w/data:/data:ro"));
        assert_eq!(text("mount", "tmpfs:/t:1M"), list("tmpfs:/t:1M"));
        assert_eq!(
            text("image", "oci:i/b:1"),
            Ok(Value::Text("oci:/w/i/b:1".into()))
        );
        assert_eq!(text("image", "redis:7"), Ok(Value::Text("redis:7".into())));
    }

    #[test]
    fn times_have_units_and_words_have_neighbours() {
        assert_eq!(
            text("timeout", "1.5m"),
            Ok(Value::Time(Duration::from_secs(90)))
        );
        assert_eq!(
            text("timeout", "10").unwrap_err(),
            "`10`: it has no unit: expected a time such as 500ms, 10s, 1.5m or 1h"
        );
        assert_eq!(
            text("isolate", "tests").unwrap_err(),
            "`tests`: expected binary or test; did you mean `test`?"
        );
        assert!(
            text("retries", "2:exponental")
                .unwrap_err()
                .contains("`exponential`")
        );
        assert_eq!(
            text("slow_timeout", "30s:4"),
            Ok(Value::SlowTimeout(SlowTimeout {
                period: Some(Duration::from_secs(30)),
                terminate_after: Some(4)
            }))
        );
    }

    #[test]
    fn what_is_said_again_adds_to_what_was_said() {
        let merged = |key: &str, texts: &[&str]| {
            let mut values = texts.iter().map(|word| text(key, word).unwrap());
            let mut value = values.next().unwrap();
            for stronger in values {
                value.merge(stronger, KEYS[find(key).unwrap()].form);
            }
            value.to_string()
        };
        assert_eq!(
            merged("mount", &["/a:/b", "/c:/d", "/a:/b"]),
            "/a:/b, /c:/d"
        );
        assert_eq!(
            merged("ulimit", &["nofile=1", "core=0", "nofile=2:3"]),
            "core=0, nofile=2:3"
        );
        assert_eq!(merged("env", &["A=1", "B=2", "A=3"]), "A=3, B=2");
        assert_eq!(merged("memory", &["1M", "2M"]), "2M");
        assert_eq!(
            merged("retries", &["3:exponential:1s", "1"]),
            "1, after 1s, doubling"
        );
        assert_eq!(
            merged("slow_timeout", &["30s:4", "10s"]),
            "10s, killed after 4 of them"
        );
    }
}
