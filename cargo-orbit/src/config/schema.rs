//! The JSON schema of configuration files, for editors, and the list of keys for people: made from the table of keys,
//! and published as `orbit.schema.json` and in `docs/configuration.md`. Tests compare them.

use serde_json::{Map, Value, json};

use super::{
    keys::{BACKOFF, Form, KEYS, Key},
    service,
};

const TIME: &str = r"^[0-9]+(\.[0-9]+)? *(ms|s|m|min|h)$";

fn of_key(key: &Key) -> Value {
    let text = || match key.name {
        "memory" | "memory_high" | "disk" => {
            json!({"type": "string", "pattern": r"^[0-9]+ *([bB]|[kKmMgGtT]([iI]?[bB])?)?$"})
        }
        "tmpfs" => json!({"type": "string", "pattern": "^/"}),
        "mount" => json!({"type": "string", "pattern": "^[^:]+:/"}),
        "ulimit" => json!({"type": "string", "pattern": "^[a-z]+="}),
        "io_max" => json!({"type": "string", "pattern": "^[^ ]+ "}),
        "cmd" | "entrypoint" => json!({"type": "string"}),
        "pass_env" => json!({"type": "string", "pattern": "^[^=]+$"}),
        _ => json!({"type": "string", "minLength": 1}),
    };
    let mut schema = match key.form {
        Form::Text => text(),
        Form::Number if key.name == "pids" => {
            json!({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^[0-9]+$"}]})
        }
        Form::Number => {
            json!({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "minLength": 1}]})
        }
        Form::Choice(words) => json!({"enum": words}),
        Form::Switch => json!({"type": "boolean"}),
        Form::List | Form::ListByName | Form::Paths => json!({"type": "array", "items": text()}),
        Form::Variables => json!({
            "type": "object",
            "propertyNames": {"pattern": "^[^=]+$"},
            "additionalProperties": {"type": "string"},
        }),
        Form::Time => json!({"type": "string", "pattern": TIME}),
        Form::SlowTimeout => json!({"anyOf": [
            {"type": "string", "pattern": TIME.replace('$', "(:[1-9][0-9]*)?$")},
            {
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "period": {"type": "string", "pattern": TIME},
                    "terminate_after": {"type": "integer", "minimum": 1},
                },
            },
        ]}),
        Form::Retries => json!({"anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": "^[0-9]+(:|$)"},
            {
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "count": {"type": "integer", "minimum": 0},
                    "backoff": {"enum": BACKOFF},
                    "delay": {"type": "string", "pattern": TIME},
                },
            },
        ]}),
    };
    let about = format!("{} Default: {}.", key.help, key.default);
    schema["description"] = about.into();
    schema
}

/// A table with the keys, and `more`.
fn table(more: Value) -> Value {
    let mut properties: Map<String, Value> = KEYS
        .iter()
        .map(|key| {
            let reference = format!("#/$defs/{}", key.name);
            (key.name.to_owned(), json!({"$ref": reference}))
        })
        .collect();
    properties.insert("reset".into(), json!({"$ref": "#/$defs/reset"}));
    if let Value::Object(more) = more {
        properties.extend(more);
    }
    json!({"type": "object", "additionalProperties": false, "properties": properties})
}

fn port() -> Value {
    json!({"type": "integer", "minimum": 1, "maximum": 65535})
}

/// A table of `wait` in `[[service]]`.
fn service_wait() -> Value {
    let text = || json!({"type": "string", "minLength": 1});
    let number = |least: i32| json!({"type": "integer", "minimum": least});
    let headers = || json!({"type": "object", "additionalProperties": {"type": "string"}});
    let words = || json!({"type": "array", "minItems": 1, "items": text()});
    let waits =
        || json!({"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/service_wait"}});
    let one_of = |properties: Value, required: &str| {
        json!({
            "type": "object",
            "additionalProperties": false,
            "properties": properties,
            "required": [required],
        })
    };
    let pair = json!({"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "string"}});
    let http = json!({
        "http": {"type": "string", "pattern": "^/"},
        "port": port(),
        "method": text(),
        "send_header": headers(),
        "basic_auth": pair,
        "bearer_auth": text(),
        "send_body": text(),
        "status": {"type": "integer", "minimum": 0, "maximum": 65535},
        "header": headers(),
        "body": text(),
        "body_matches": text(),
    });
    let log = json!({"log": text(), "on": {"enum": ["stdout", "stderr"]}, "times": number(0)});
    json!({"oneOf": [
        one_of(json!({"port": port()}), "port"),
        one_of(log, "log"),
        one_of(http, "http"),
        one_of(json!({"exec": words(), "code": {"type": "integer"}}), "exec"),
        one_of(json!({"file": {"type": "string", "pattern": "^/"}}), "file"),
        one_of(json!({"exit": {"type": "integer"}}), "exit"),
        one_of(json!({"healthcheck": {"const": true}}), "healthcheck"),
        one_of(json!({"all": waits()}), "all"),
        one_of(json!({"any": waits()}), "any"),
    ]})
}

/// A table of `[[service]]`.
fn service() -> Value {
    let name = "^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$";
    let mut properties: Map<String, Value> = service::OWN
        .iter()
        .map(|key| (key.name.to_owned(), of_key(key)))
        .chain(service::SHARED.iter().map(|name| {
            let reference = format!("#/$defs/{name}");
            ((*name).to_owned(), json!({"$ref": reference}))
        }))
        .collect();
    properties["name"]["pattern"] = name.into();
    properties.insert(
        "ports".into(),
        json!({"type": "array", "items": port(), "description": service::help("ports")}),
    );
    properties.insert(
        "wait".into(),
        json!({
            "type": "array",
            "items": {"$ref": "#/$defs/service_wait"},
            "description": service::help("wait"),
        }),
    );
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
        "required": ["name"],
    })
}

/// The keys of services as the page has them.
fn services_page() -> String {
    let own = service::OWN.iter().map(|key| {
        let (name, about) = (key.name, key.help);
        format!(
            "| `{name}` | {about} | {} | `{name} = {}` |\n",
            key.default, key.example
        )
    });
    let others = service::OTHERS.iter().map(|other| {
        let (name, about) = (other.name, other.help);
        format!(
            "| `{name}` | {about} | {} | `{name} = {}` |\n",
            other.default, other.example
        )
    });
    let shared: Vec<String> = service::SHARED
        .iter()
        .map(|name| format!("`{name}`"))
        .collect();
    format!(
        "\n| Key | | Default | Example |\n|---|---|---|---|\n{}\nAnd of the keys below, for the service's own sandbox: {}.\n\n",
        own.chain(others).collect::<String>(),
        shared.join(", "),
    )
}

fn schema() -> Value {
    let names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    let mut defs: Map<String, Value> = KEYS
        .iter()
        .map(|key| (key.name.to_owned(), of_key(key)))
        .collect();
    defs.insert(
        "reset".into(),
        json!({
            "type": "array",
            "items": {"enum": names},
            "description": "Keys that begin again here: what weaker places said of them does not hold.",
        }),
    );
    defs.insert("service_wait".into(), service_wait());
    let mut an_override = table(json!({
        "filter": {"type": "string", "minLength": 1, "description": "For which tests: a filterset."},
    }));
    an_override["required"] = json!(["filter"]);
    defs.insert(
        "overrides".into(),
        json!({"type": "array", "items": an_override}),
    );
    let overrides = json!({"$ref": "#/$defs/overrides"});
    let mut schema = table(json!({
        "override": overrides,
        "service": {"type": "array", "items": service()},
        "profile": {
            "type": "object",
            "additionalProperties": table(json!({"override": overrides})),
        },
    }));
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "Configuration of Orbit (.config/orbit.toml)".into();
    schema["$defs"] = defs.into();
    schema
}

/// What a value is, and its unit.
fn form(key: &Key) -> String {
    match (key.form, key.name) {
        (Form::Text, "memory" | "memory_high" | "disk") => {
            "a string: bytes, or with k, M, G, T of 1024 each".to_owned()
        }
        (Form::Text, _) => "a string".to_owned(),
        (Form::Number, _) => "a number, or a string".to_owned(),
        (Form::Choice(words), _) => {
            let words: Vec<String> = words.iter().map(|word| format!("`\"{word}\"`")).collect();
            words.join(", ")
        }
        (Form::Switch, _) => "`true` or `false`".to_owned(),
        (Form::List | Form::Paths, _) => "a list of strings, which adds up".to_owned(),
        (Form::ListByName, _) => {
            "a list of strings, which adds up; one for each resource or device".to_owned()
        }
        (Form::Variables, _) => "a table of strings, merged by name".to_owned(),
        (Form::Time, _) => "a string: a number with ms, s, m or h".to_owned(),
        (Form::SlowTimeout, _) => {
            "a time (ms, s, m, h), or a table of `period` (a time) and `terminate_after` (a number of periods)"
                .to_owned()
        }
        (Form::Retries, _) => {
            "a number, or a table of `count`, `backoff` (`\"fixed\"`, `\"exponential\"`) and `delay` (a time)".to_owned()
        }
    }
}

/// The keys as the page has them.
fn page() -> String {
    let keys: Vec<String> = KEYS
        .iter()
        .map(|key| {
            format!(
                "\n### `{}`\n\n{}\n\n- Type: {}\n- Default: {}\n- Example: `{} = {}`\n- Also: `{}`, `--{} {}`\n",
                key.name,
                key.help,
                form(key),
                key.default,
                key.name,
                key.example,
                key.variable(),
                key.flag(),
                key.placeholder,
            )
        })
        .collect();
    keys.concat()
}

mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::config::{fault::Text, file::File};

    const PUBLISHED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/orbit.schema.json");

    /// With `ORBIT_UPDATE_SCHEMA` in the environment, it is written.
    #[test]
    fn the_published_schema_is_that_of_the_keys() {
        let text = format!("{:#}\n", schema());
        if std::env::var_os("ORBIT_UPDATE_SCHEMA").is_some() {
            fs::write(PUBLISHED, &text).unwrap();
        }
        assert!(
            fs::read_to_string(PUBLISHED).unwrap_or_default() == text,
            "{PUBLISHED} is old; run this test with ORBIT_UPDATE_SCHEMA=1"
        );
    }

    #[test]
    fn the_page_has_every_key() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        let text = fs::read_to_string(path).unwrap();
        let text = with_services(&text);
        let begin = text.find("<!-- made from").unwrap();
        let keys = begin + text[begin..].find("-->\n").unwrap() + 4;
        if std::env::var_os("ORBIT_UPDATE_SCHEMA").is_some() {
            fs::write(path, format!("{}{}", &text[..keys], page())).unwrap();
        } else {
            assert!(
                text[keys..] == page() && text == fs::read_to_string(path).unwrap(),
                "{path} is old; run this test with ORBIT_UPDATE_SCHEMA=1"
            );
        }
    }

    /// The page with the keys of services as they are.
    fn with_services(page: &str) -> String {
        let (before, rest) = page.split_once("<!-- services: made from").unwrap();
        let (comment, rest) = rest.split_once("-->\n").unwrap();
        let (_, after) = rest.split_once("<!-- end of services -->").unwrap();
        let keys = services_page();
        format!(
            "{before}<!-- services: made from{comment}-->\n{keys}<!-- end of services -->{after}"
        )
    }

    /// The examples of the page are read as they stand.
    #[test]
    fn the_pages_examples_are_configurations() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        let text = fs::read_to_string(path).unwrap();
        let examples: Vec<&str> = text
            .split("```toml\n")
            .skip(1)
            .filter_map(|rest| rest.split("```").next())
            .collect();
        assert!(examples.len() >= 2);
        for example in examples {
            assert!(is_read(example) && is_valid(example), "{example}");
        }
    }

    /// A TOML document as JSON.
    fn json_of(value: &toml::de::DeValue<'_>) -> Value {
        use toml::de::DeValue;
        match value {
            DeValue::String(text) => json!(text),
            DeValue::Integer(number) => json!(number.as_str().parse::<i64>().unwrap()),
            DeValue::Float(number) => json!(number.as_str().parse::<f64>().unwrap()),
            DeValue::Boolean(switch) => json!(switch),
            DeValue::Datetime(date) => json!(date.to_string()),
            DeValue::Array(items) => items.iter().map(|item| json_of(item.get_ref())).collect(),
            DeValue::Table(table) => table
                .iter()
                .map(|(name, value)| (name.get_ref().to_string(), json_of(value.get_ref())))
                .collect::<Map<_, _>>()
                .into(),
        }
    }

    fn is_valid(text: &str) -> bool {
        let schema: Value = serde_json::from_str(&fs::read_to_string(PUBLISHED).unwrap()).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let document = toml::de::DeTable::parse(text).unwrap();
        let table = toml::de::DeValue::Table(document.into_inner());
        validator.is_valid(&json_of(&table))
    }

    fn is_read(text: &str) -> bool {
        let text = Text::new(Path::new("/w/x"), Path::new("/w"), text);
        File::read(text, &[], Path::new("/w")).faults.is_empty()
    }

    #[test]
    fn the_schema_takes_what_is_read_and_refuses_what_is_not() {
        let examples = KEYS
            .iter()
            .map(|key| format!("{} = {}", key.name, key.example));
        let all: Vec<String> = examples.collect();
        let mut good = all.clone();
        good.push(all.join("\n"));
        good.push(
            "[profile.ci]\npids = 3\n[[profile.ci.override]]\nfilter = 'all()'\nretries = 2".into(),
        );
        good.push(
            "[[override]]\nfilter = 'all()'\nreset = ['mount']\nslow_timeout = '1s:3'".into(),
        );
        good.push(String::new());
        let own = service::OWN
            .iter()
            .map(|key| format!("{} = {}", key.name, key.example));
        let others = service::OTHERS
            .iter()
            .map(|key| format!("{} = {}", key.name, key.example));
        let shared = KEYS
            .iter()
            .filter(|key| service::SHARED.contains(&key.name));
        let shared = shared.map(|key| format!("{} = {}", key.name, key.example));
        let all_of_service: Vec<String> = own.chain(others).chain(shared).collect();
        good.push(format!("[[service]]\n{}", all_of_service.join("\n")));
        good.push(
            "[[service]]\nname = 'a'\nwait = [{ exec = ['a'] }, { port = 1 }, { file = '/a' }]"
                .into(),
        );
        good.push(
            "[[service]]\nname = 'a'\nwait = [{ any = [{ exit = 0 }, { all = [{ log = 'a', on = 'stderr', times = 2 }] }] }, \
             { http = '/a', port = 1, method = 'POST', send_header = { A = 'b' }, basic_auth = ['a', 'b'], send_body = 'a', \
             status = 201, header = { A = 'b' }, body = 'a', body_matches = 'a' }]"
                .into(),
        );
        for text in good {
            assert!(is_read(&text), "{text}");
            assert!(is_valid(&text), "{text}");
        }
        let wrong_types = KEYS.iter().map(|key| format!("{} = [[1]]", key.name));
        let mut bad: Vec<String> = wrong_types.collect();
        bad.extend(
            [
                "memroy = '1M'",
                "memory = 64",
                "memory = '64Q'",
                "isolate = 'tests'",
                "timeout = '10'",
                "pids = 0",
                "[[override]]\npids = 1",
                "[override]\nfilter = 'all()'",
                "[profile.ci.profile.x]",
                "reset = ['mounts']",
                "retries = { count = 1, backof = 'fixed' }",
                "retries = { count = 1, backoff = 'slow' }",
                "slow_timeout = { period = 3 }",
                "env = { A = 1 }",
                "mount = '/a:/b'",
                "mount = ['/a']",
                "pass_env = ['A=1']",
                "service = 1",
                "[[service]]\nports = [1]",
                "[[service]]\nname = 'a b'",
                "[[service]]\nname = 'a'\nport = 1",
                "[[service]]\nname = 'a'\nports = [0]",
                "[[service]]\nname = 'a'\nisolate = 'test'",
                "[[service]]\nname = 'a'\nwait = ['port']",
                "[[service]]\nname = 'a'\nwait = [{}]",
                "[[service]]\nname = 'a'\nwait = [{ log = 'a', file = '/b' }]",
                "[[service]]\nname = 'a'\nwait = [{ healthcheck = false }]",
                "[[service]]\nname = 'a'\nwait = [{ port = 1, times = 2 }]",
                "[[service]]\nname = 'a'\nwait = [{ http = '/', basic_auth = ['a'] }]",
                "[[service]]\nname = 'a'\nwait = [{ any = [{ port = 0 }] }]",
                "[profile.ci]\nservice = []",
            ]
            .map(str::to_owned),
        );
        for text in bad {
            assert!(!is_read(&text), "{text}");
            assert!(!is_valid(&text), "{text}");
        }
    }
}
