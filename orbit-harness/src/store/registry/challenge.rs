//! What a registry asks for when it answers 401: the `WWW-Authenticate` header.
//!
//! Source: RFC 9110, 11.3; Distribution, "Token Authentication Specification".

/// How to prove who one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    /// Get a token at `realm` first.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// The first challenge in a header that Orbit knows.
    pub(super) fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        for (key, value) in parameters(rest) {
            match key.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                "scope" => scope = Some(value),
                _ => {}
            }
        }
        Some(Self::Bearer {
            realm: realm?,
            service,
            scope,
        })
    }
}

/// `key="value", key=value`: a quoted value may hold commas, as scopes do.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let mut value = String::new();
        let mut characters = after.trim_start().chars();
        if after.trim_start().starts_with('"') {
            characters.next();
            while let Some(character) = characters.next() {
                match character {
                    '"' => break,
                    '\\' => value.extend(characters.next()),
                    other => value.push(other),
                }
            }
            let remaining = characters.as_str().trim_start();
            rest = remaining.strip_prefix(',').unwrap_or(remaining);
        } else {
            let (word, remaining) = after.split_once(',').unwrap_or((after, ""));
            word.trim().clone_into(&mut value);
            rest = remaining;
        }
        found.push((key.trim().to_owned(), value));
        rest = rest.trim_start();
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_are_read() {
        assert_eq!(
            Challenge::parse(
                r#"Bearer realm="https://a/token",service="s",scope="repository:x:pull,push""#
            ),
            Some(Challenge::Bearer {
                realm: "https://a/token".into(),
                service: Some("s".into()),
                scope: Some("repository:x:pull,push".into()),
            })
        );
        assert_eq!(
            Challenge::parse("bearer service=s , realm = https://a"),
            Some(Challenge::Bearer {
                realm: "https://a".into(),
                service: Some("s".into()),
                scope: None,
            })
        );
        assert_eq!(
            Challenge::parse(r#"Basic realm="x""#),
            Some(Challenge::Basic)
        );
        assert_eq!(Challenge::parse("Bearer service=s"), None);
        assert_eq!(Challenge::parse("Negotiate"), None);
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parser_panic(text in "(Bearer )?[a-z=\",\\\\ ]{0,40}") {
            let _ = Challenge::parse(&text);
        }
    }
}
