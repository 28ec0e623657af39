//! The keys of the attribute, and how they are read.
//!
//! Each is named after the method of `SandboxBuilder` that it calls. What is wrong is gathered, so that one
//! compilation tells all of it.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens as _, quote, quote_spanned};
use syn::{
    Error, Expr, ExprLit, Ident, Lit, LitStr, Token,
    ext::IdentExt as _,
    parenthesized,
    parse::{Parse, ParseStream},
    punctuated::Punctuated,
    spanned::Spanned as _,
};

use crate::values;

type Check = fn(&str) -> Result<(), String>;

/// How a key is written.
#[derive(Clone, Copy)]
enum Form {
    /// `key = "text"`
    Text(Check),
    /// `key = "text"`, or a number.
    Number(Check),
    /// `key("text", …)` or `key = "text"`
    Texts(Check),
    /// `key`, or `key = true`
    Switch,
    /// `env(NAME = "text", …)`
    Variables,
    /// `timeout = "10s"`, or a `Duration`.
    Time,
}

const KEYS: [(&str, Form); 33] = [
    ("accounting", Form::Switch),
    ("best_effort", Form::Switch),
    ("cap_add", Form::Texts(values::capability)),
    ("cap_drop", Form::Texts(values::capability)),
    ("clock_offset", Form::Time),
    ("cpu", Form::Number(values::cpu)),
    ("cpu_max", Form::Text(values::cpu)),
    ("cpus", Form::Number(values::cpu)),
    ("cpuset", Form::Text(values::not_empty)),
    ("disk", Form::Text(values::bytes)),
    ("egress", Form::Text(values::egress)),
    ("env", Form::Variables),
    ("env_clear", Form::Switch),
    ("hide", Form::Texts(values::absolute_path)),
    ("home", Form::Text(values::absolute_path)),
    ("host_path", Form::Texts(values::not_empty)),
    ("host_path_read_only", Form::Texts(values::not_empty)),
    ("hostname", Form::Text(values::hostname)),
    ("image", Form::Text(values::image)),
    ("io_max", Form::Texts(values::io_max)),
    ("memory", Form::Text(values::bytes)),
    ("memory_high", Form::Text(values::bytes)),
    ("mount", Form::Texts(values::mount)),
    ("nested", Form::Switch),
    ("network", Form::Text(values::network)),
    ("pass_env", Form::Texts(values::variable_name)),
    ("pids", Form::Number(values::count)),
    ("read_only", Form::Switch),
    ("record_denied", Form::Switch),
    ("timeout", Form::Time),
    ("ulimit", Form::Texts(values::not_empty)),
    ("user", Form::Text(values::not_empty)),
    ("working_dir", Form::Text(values::absolute_path)),
];

const RUNS_ITSELF: &str =
    "a sandboxed test runs itself; start other programs with `Sandbox::builder()` in it";
const IS_NO_SERVICE: &str =
    "nobody waits for a test to be ready; start a service with `Sandbox::builder()` in it";
const IS_INSIDE: &str = "who would connect is in the test itself, which is inside";
const IS_ALONE: &str = "a sandboxed test is on no network with others but the bridge";
const IS_NAMED: &str = "a sandboxed test has the name of the test";
const IS_OF_THE_HARNESS: &str = "what a test reads and prints is its harness's";

/// Keys of other tools, and setters of the builder that are no keys, and what to do instead. A test compares them with the
/// builder: each of its setters is here or in [`KEYS`].
const ELSEWHERE: [(&str, &str); 34] = [
    ("arg", RUNS_ITSELF),
    ("args", RUNS_ITSELF),
    ("bridge", IS_ALONE),
    ("bridge_cidr", IS_ALONE),
    (
        "capture_limit",
        "of what a test prints, its harness keeps what it likes",
    ),
    ("cmd", RUNS_ITSELF),
    ("entrypoint", RUNS_ITSELF),
    ("envs", "write `env(NAME = \"value\", …)`"),
    ("expose", IS_INSIDE),
    (
        "file",
        "the test can write it, or `mount` shows one of the host",
    ),
    ("healthcheck", IS_NO_SERVICE),
    ("init", "Orbit's init is how a test knows that it is inside"),
    ("label", "nobody can ask a sandboxed test for its labels"),
    ("log_on_panic", IS_OF_THE_HARNESS),
    ("mount_str", "write `mount`"),
    ("name", IS_NAMED),
    ("network_alias", IS_ALONE),
    ("on_log", IS_OF_THE_HARNESS),
    (
        "prepare_ahead",
        "how many sandboxes are kept ready is no matter of one test",
    ),
    ("publish", IS_INSIDE),
    (
        "pull",
        "an image is pulled where it is missing; `cargo orbit pull` gets it anew",
    ),
    (
        "record_changes",
        "the test has nobody to tell; `cargo orbit test --diff` lists what tests wrote",
    ),
    ("startup_timeout", IS_NO_SERVICE),
    ("stderr", IS_OF_THE_HARNESS),
    ("stdin", IS_OF_THE_HARNESS),
    ("stdout", IS_OF_THE_HARNESS),
    ("stop_signal", "nothing stops a test but its `timeout`"),
    ("tmpfs", "write `mount(\"tmpfs:TARGET:SIZE\")`"),
    ("tty", "a test has no terminal"),
    ("ulimit_str", "write `ulimit`"),
    ("unique_name", IS_NAMED),
    ("volume", "write `mount`"),
    ("wait_for", IS_NO_SERVICE),
    (
        "writable",
        "what a test writes is thrown away; `mount(\"SOURCE:TARGET:rw\")` keeps it",
    ),
];

/// What an attribute asks: calls of the builder's methods, in order.
pub(crate) struct Keys {
    /// Whether anything was asked at all.
    pub(crate) any: bool,
    pub(crate) calls: TokenStream,
}

impl Keys {
    /// Reads the attribute's arguments.
    pub(crate) fn parse(arguments: TokenStream) -> Result<Self, Error> {
        let entries = syn::parse::Parser::parse2(
            Punctuated::<Entry, Token![,]>::parse_terminated,
            arguments,
        )?;
        let mut faults: Option<Error> = None;
        let mut add = |fault: Error| match &mut faults {
            Some(faults) => faults.combine(fault),
            None => faults = Some(fault),
        };
        let mut seen: Vec<String> = Vec::new();
        let mut calls = TokenStream::new();
        for entry in &entries {
            let name = entry.key.unraw().to_string();
            let Some((_, form)) = KEYS.iter().find(|(key, _)| *key == name) else {
                add(Error::new(entry.key.span(), unknown(&name)));
                continue;
            };
            if seen.contains(&name) {
                let hint = match form {
                    Form::Texts(_) | Form::Variables => {
                        format!("; write all of them in one `{name}(…)`")
                    }
                    _ => String::new(),
                };
                add(Error::new(
                    entry.key.span(),
                    format!("`{name}` is given twice{hint}"),
                ));
                continue;
            }
            seen.push(name.clone());
            match entry.calls(&name, *form) {
                Ok(more) => calls.extend(more),
                Err(fault) => add(fault),
            }
        }
        match faults {
            Some(faults) => Err(faults),
            None => Ok(Self {
                any: !entries.is_empty(),
                calls,
            }),
        }
    }
}

fn unknown(name: &str) -> String {
    if let Some((_, instead)) = ELSEWHERE.iter().find(|(key, _)| *key == name) {
        return format!("there is no key `{name}` here: {instead}");
    }
    let names = KEYS.map(|(key, _)| key);
    match values::nearest(name, &names) {
        Some(near) => format!("there is no key `{name}`; did you mean `{near}`?"),
        None => format!("there is no key `{name}`; there are {}", names.join(", ")),
    }
}

/// One key with what stands behind it.
struct Entry {
    key: Ident,
    behind: Behind,
}

enum Behind {
    Nothing,
    Value(Box<Expr>),
    List(TokenStream, Span),
}

impl Parse for Entry {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let key = input.call(Ident::parse_any)?;
        let behind = if input.peek(Token![=]) {
            input.parse::<Token![=]>()?;
            Behind::Value(input.parse()?)
        } else if input.peek(syn::token::Paren) {
            let content;
            let parentheses = parenthesized!(content in input);
            Behind::List(content.parse()?, parentheses.span.join())
        } else {
            Behind::Nothing
        };
        Ok(Self { key, behind })
    }
}

/// A variable of `env(…)`.
struct Variable {
    name: LitStr,
    value: Expr,
}

impl Parse for Variable {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let name = if input.peek(LitStr) {
            input.parse()?
        } else {
            let name = input.call(Ident::parse_any)?;
            LitStr::new(&name.unraw().to_string(), name.span())
        };
        input.parse::<Token![=]>()?;
        let value = input.parse()?;
        Ok(Self { name, value })
    }
}

impl Entry {
    fn calls(&self, name: &str, form: Form) -> Result<TokenStream, Error> {
        let method = Ident::new(name, Span::mixed_site());
        match (form, &self.behind) {
            (Form::Text(check) | Form::Texts(check), Behind::Value(value)) => {
                let value = text(value, check, false)?;
                Ok(quote!(.#method(#value)))
            }
            (Form::Number(check), Behind::Value(value)) => {
                let value = text(value, check, true)?;
                Ok(quote!(.#method(#value)))
            }
            (Form::Texts(check), Behind::List(list, span)) => {
                let values = list_of::<Expr>(list, *span, name)?;
                each(&values, |value| {
                    let value = text(value, check, false)?;
                    Ok(quote!(.#method(#value)))
                })
            }
            (Form::Variables, Behind::List(list, span)) => {
                let variables = list_of::<Variable>(list, *span, name)?;
                let mut seen = Vec::new();
                each(&variables, |variable| {
                    let name = variable.name.value();
                    values::variable_name(&name)
                        .map_err(|why| Error::new(variable.name.span(), why))?;
                    if seen.contains(&name) {
                        let why = format!("the variable `{name}` is given twice");
                        return Err(Error::new(variable.name.span(), why));
                    }
                    seen.push(name);
                    let (name, value) = (
                        &variable.name,
                        text(&variable.value, values::no_nul, false)?,
                    );
                    Ok(quote!(.#method(#name, #value)))
                })
            }
            (Form::Switch, Behind::Nothing) => Ok(quote!(.#method(true))),
            (Form::Switch, Behind::Value(value)) => {
                let value = switch(value)?;
                Ok(quote!(.#method(#value)))
            }
            (Form::Time, Behind::Value(value)) => {
                let value = time(value)?;
                Ok(quote!(.#method(#value)))
            }
            (form, _) => {
                let how = match form {
                    Form::Text(_) => format!("{name} = \"…\""),
                    Form::Number(_) => format!("{name} = 0.5"),
                    Form::Texts(_) => format!("{name}(\"…\")"),
                    Form::Switch => format!("{name}`, or `{name} = false"),
                    Form::Variables => format!("{name}(NAME = \"value\")"),
                    Form::Time => format!("{name} = \"10s\""),
                };
                Err(Error::new(self.key.span(), format!("write `{how}`")))
            }
        }
    }
}

fn list_of<T: Parse>(list: &TokenStream, span: Span, name: &str) -> Result<Vec<T>, Error> {
    let parser = Punctuated::<T, Token![,]>::parse_terminated;
    let values = syn::parse::Parser::parse2(parser, list.clone())?;
    if values.is_empty() {
        return Err(Error::new(
            span,
            format!("`{name}` of nothing asks for nothing"),
        ));
    }
    Ok(values.into_iter().collect())
}

/// The calls for each of `items`, or all that is wrong with them.
fn each<T>(
    items: &[T],
    mut call: impl FnMut(&T) -> Result<TokenStream, Error>,
) -> Result<TokenStream, Error> {
    let mut calls = TokenStream::new();
    let mut faults: Option<Error> = None;
    for item in items {
        match (call(item), &mut faults) {
            (Ok(more), _) => calls.extend(more),
            (Err(fault), Some(faults)) => faults.combine(fault),
            (Err(fault), None) => faults = Some(fault),
        }
    }
    faults.map_or(Ok(calls), Err)
}

/// A `&str`: a literal, checked here, or an expression that the compiler checks to be one.
fn text(value: &Expr, check: Check, numbers: bool) -> Result<TokenStream, Error> {
    let span = value.span();
    let checked = |text: &str, tokens: TokenStream| match check(text) {
        Ok(()) => Ok(tokens),
        Err(why) => Err(Error::new(span, format!("`{text}`: {why}"))),
    };
    match value {
        Expr::Lit(ExprLit {
            lit: Lit::Str(lit), ..
        }) => checked(&lit.value(), lit.to_token_stream()),
        Expr::Lit(ExprLit {
            lit: Lit::Int(lit), ..
        }) if numbers && lit.suffix().is_empty() => {
            let text = lit.base10_digits();
            checked(text, quote_spanned!(span=> #text))
        }
        Expr::Lit(ExprLit {
            lit: Lit::Float(lit),
            ..
        }) if numbers && lit.suffix().is_empty() => {
            let text = lit.base10_digits();
            checked(text, quote_spanned!(span=> #text))
        }
        Expr::Lit(_) | Expr::Unary(_) if numbers => {
            Err(Error::new(span, "expected a number or a string"))
        }
        Expr::Lit(_) | Expr::Unary(_) => Err(Error::new(span, "expected a string")),
        expression => Ok(quote_spanned!(span=> {
            let text: &str = #expression;
            text
        })),
    }
}

fn switch(value: &Expr) -> Result<TokenStream, Error> {
    match value {
        Expr::Lit(ExprLit {
            lit: Lit::Bool(lit),
            ..
        }) => Ok(lit.to_token_stream()),
        Expr::Lit(_) => Err(Error::new(value.span(), "expected true or false")),
        expression => Ok(quote_spanned!(value.span()=> {
            let switch: bool = #expression;
            switch
        })),
    }
}

fn time(value: &Expr) -> Result<TokenStream, Error> {
    let span = value.span();
    match value {
        Expr::Lit(ExprLit {
            lit: Lit::Str(lit), ..
        }) => {
            let text = lit.value();
            let duration = values::duration(&text)
                .map_err(|why| Error::new(span, format!("`{text}`: {why}")))?;
            let (seconds, nanoseconds) = (duration.as_secs(), duration.subsec_nanos());
            Ok(quote_spanned!(span=> ::core::time::Duration::new(#seconds, #nanoseconds)))
        }
        Expr::Lit(_) | Expr::Unary(_) => Err(Error::new(
            span,
            "expected a time with its unit, such as \"10s\", or a `Duration`",
        )),
        expression => Ok(quote_spanned!(span=> {
            let time: ::core::time::Duration = #expression;
            time
        })),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::*;

    /// The methods of the builder that say something of the sandbox: public, and from a builder to a builder.
    fn setters() -> BTreeSet<String> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../src/builder.rs");
        let file = syn::parse_file(&fs::read_to_string(path).unwrap()).unwrap();
        let is_builder = |of: &syn::Type| of.to_token_stream().to_string() == "SandboxBuilder";
        let items = file.items.iter().filter_map(|item| match item {
            syn::Item::Impl(of) if of.trait_.is_none() && is_builder(&of.self_ty) => {
                Some(&of.items)
            }
            _ => None,
        });
        items
            .flatten()
            .filter_map(|item| match item {
                syn::ImplItem::Fn(method) => Some(method),
                _ => None,
            })
            .filter(|method| {
                let returns = method.sig.output.to_token_stream().to_string();
                matches!(method.vis, syn::Visibility::Public(_))
                    && method.sig.receiver().is_some()
                    && returns == "-> Self"
            })
            .map(|method| method.sig.ident.to_string())
            .collect()
    }

    #[test]
    fn each_setter_of_the_builder_is_a_key_or_is_told_why_not() {
        let setters = setters();
        assert!(setters.len() > 50, "{setters:?}");
        let elsewhere = ELSEWHERE.map(|(name, _)| name);
        let keys = KEYS.map(|(name, _)| name);
        for setter in &setters {
            let places = [&keys[..], &elsewhere[..]];
            let found = places
                .iter()
                .filter(|names| names.contains(&setter.as_str()));
            assert_eq!(
                found.count(),
                1,
                "{setter}: one of KEYS and ELSEWHERE has it"
            );
        }
        // Of the attribute, and of the configuration or other tools.
        for name in keys {
            assert!(setters.contains(name) || name == "pass_env", "{name}");
        }
        for name in elsewhere {
            let is_known = ["tmpfs", "volume", "writable"].contains(&name);
            assert!(setters.contains(name) || is_known, "{name}");
        }
    }

    #[test]
    fn each_key_is_documented_and_is_a_method_of_what_it_becomes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../src/attribute.rs");
        let text = fs::read_to_string(path).unwrap();
        for (name, _) in KEYS {
            let (as_it_is, of_its_own) = (format!("\n    {name}: "), format!("pub fn {name}("));
            assert!(
                text.contains(&as_it_is) || text.contains(&of_its_own),
                "{name}"
            );
        }
        let table: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("/// | `"))
            .collect();
        assert!(table.len() > 15, "{table:?}");
        for (name, _) in KEYS {
            let is_there = table.iter().any(|line| {
                [" =", "(", "`"]
                    .iter()
                    .any(|after| line.contains(&format!("`{name}{after}")))
            });
            assert!(is_there, "{name}");
        }
    }
}
