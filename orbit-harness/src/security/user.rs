//! The user a sandbox's program runs as: `USER[:GROUP]` of a spec or an image, resolved as Docker does.
//!
//! The names are those of the *image*: [`UserSpec::resolve`] takes the text of its `/etc/passwd` and
//! `/etc/group`, which may be hostile. Nothing of the host's is looked at, no name service is asked, and the
//! shell of an entry is of no interest. An image that names no user means root; that is [`UserSpec::default`],
//! not an empty text.
//!
//! Sources: OCI image specification, config.md, `User`; passwd(5), group(5); Docker documentation, "USER".

use std::{fmt, path::PathBuf, str::FromStr};

use crate::spec::SpecFault;

/// How many names an error lists.
const LISTED_NAMES: usize = 5;

/// The most supplementary groups a process can have. Source: Linux, include/uapi/linux/limits.h.
const NGROUPS_MAX: usize = 65536;

/// A user or a group, by number or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Identity {
    Id(u32),
    Name(String),
}

/// Who a program is to run as, as written. The default is root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UserSpec {
    user: Identity,
    group: Option<Identity>,
}

impl Default for UserSpec {
    fn default() -> Self {
        Self {
            user: Identity::Id(0),
            group: None,
        }
    }
}

/// Who a program runs as, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResolvedUser {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, without repetition. None where the group was given: what is asked is what is got.
    pub(crate) groups: Vec<u32>,
    /// The home directory, for `HOME`; `/` where the image has none for this user.
    pub(crate) home: PathBuf,
    /// The name, for `USER`, where the image has one.
    pub(crate) name: Option<String>,
}

fn fault(given: &str, why: impl Into<String>) -> SpecFault {
    // The text may be an image's, and the message goes to a terminal.
    let short: String = given.chars().take(64).collect();
    SpecFault::new("user", short.escape_debug().to_string(), why)
}

/// A number of decimal digits alone: `str::parse` would also take a sign.
fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

impl Identity {
    fn parse(part: &str) -> Result<Self, &'static str> {
        if part.is_empty() {
            return Err("a part of it is empty; write USER or USER:GROUP, by name or by number");
        }
        if digits(part) {
            // All digits is a number, whatever its size: never a name.
            return match part.parse() {
                Ok(u32::MAX) | Err(_) => Err("4294967294 is the largest id there is"),
                Ok(id) => Ok(Self::Id(id)),
            };
        }
        if part.starts_with(['-', '+']) {
            return Err("a name or an id has no sign");
        }
        if part.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ',')) {
            return Err("a name has no space, control character, slash or comma");
        }
        Ok(Self::Name(part.to_owned()))
    }

    fn is(&self, name: &str, id: u32) -> bool {
        match self {
            Self::Id(wanted) => *wanted == id,
            Self::Name(wanted) => wanted == name,
        }
    }
}

/// `user`, `uid`, `user:group`, `uid:gid`, `user:gid`, `uid:group`.
impl FromStr for UserSpec {
    type Err = SpecFault;

    fn from_str(text: &str) -> Result<Self, SpecFault> {
        let parse = |part: &str| Identity::parse(part).map_err(|why| fault(text, why));
        let (user, group) = match text.split_once(':') {
            None => (text, None),
            Some((_, rest)) if rest.contains(':') => {
                return Err(fault(text, "there is more than one colon"));
            }
            Some((user, group)) => (user, Some(group)),
        };
        Ok(Self {
            user: parse(user)?,
            group: group.map(parse).transpose()?,
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for UserSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.user.fmt(f)?;
        self.group
            .iter()
            .try_for_each(|group| write!(f, ":{group}"))
    }
}

/// A line of passwd(5), as far as it matters here.
struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// A line of group(5).
struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn id(text: &str) -> Option<u32> {
    let id = digits(text).then(|| text.parse().ok())??;
    (id != u32::MAX).then_some(id)
}

/// The entries of an `/etc/passwd`. Lines without a name, a uid or a gid are skipped; a home is optional.
fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut words = line.trim().split(':');
        let (name, _password) = (words.next()?, words.next()?);
        let (uid, gid) = (id(words.next()?)?, id(words.next()?)?);
        let (_comment, home) = (words.next(), words.next().unwrap_or(""));
        (!name.is_empty() && !name.starts_with('#')).then_some(PasswdEntry {
            name,
            uid,
            gid,
            home,
        })
    })
}

/// The entries of an `/etc/group`. Lines without a name or a gid are skipped; members are optional.
fn group_entries(text: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut words = line.trim().split(':');
        let (name, _password) = (words.next()?, words.next()?);
        let (gid, members) = (id(words.next()?)?, words.next().unwrap_or(""));
        (!name.is_empty() && !name.starts_with('#')).then_some(GroupEntry { name, gid, members })
    })
}

/// `such as a, b, c`: the first names there are, those that can be printed.
fn some_names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let printable = |name: &&str| name.len() <= 32 && name.bytes().all(|b| b.is_ascii_graphic());
    let names: Vec<&str> = names.filter(printable).take(LISTED_NAMES).collect();
    if names.is_empty() {
        "which names none; give a number instead".to_owned()
    } else {
        format!("which has {}", names.join(", "))
    }
}

impl UserSpec {
    /// Looks the user up in the text of an image's `/etc/passwd` and `/etc/group`; an image without them has
    /// empty ones. The first entry that matches counts.
    ///
    /// A number needs no entry: its group is then 0 and its home `/`. With a group given, the user has that one
    /// and no supplementary groups.
    ///
    /// # Errors
    /// A name that is in neither, with a few that are.
    pub(crate) fn resolve(&self, passwd: &str, group: &str) -> Result<ResolvedUser, SpecFault> {
        let entry = passwd_entries(passwd).find(|entry| self.user.is(entry.name, entry.uid));
        let (uid, own_gid) = match (&entry, &self.user) {
            (Some(entry), _) => (entry.uid, entry.gid),
            (None, Identity::Id(uid)) => (*uid, 0),
            (None, Identity::Name(name)) => {
                let known = some_names(passwd_entries(passwd).map(|entry| entry.name));
                let why = format!(
                    "no user `{}` in the image's /etc/passwd, {known}",
                    name.escape_debug()
                );
                return Err(fault(&self.to_string(), why));
            }
        };
        let gid = match &self.group {
            None => own_gid,
            Some(Identity::Id(gid)) => *gid,
            Some(wanted @ Identity::Name(name)) => group_entries(group)
                .find(|entry| wanted.is(entry.name, entry.gid))
                .map(|entry| entry.gid)
                .ok_or_else(|| {
                    let known = some_names(group_entries(group).map(|entry| entry.name));
                    let why = format!(
                        "no group `{}` in the image's /etc/group, {known}",
                        name.escape_debug()
                    );
                    fault(&self.to_string(), why)
                })?,
        };
        let name = entry.as_ref().map(|entry| entry.name);
        Ok(ResolvedUser {
            uid,
            gid,
            groups: match (name, &self.group) {
                (Some(name), None) => memberships(group, name),
                _ => Vec::new(),
            },
            // A home that is not absolute would depend on where the program starts.
            home: entry
                .as_ref()
                .map(|entry| entry.home)
                .filter(|home| home.starts_with('/'))
                .unwrap_or("/")
                .into(),
            name: name.map(str::to_owned),
        })
    }
}

/// The groups that list `user` as a member, each once, in rising order.
fn memberships(group: &str, user: &str) -> Vec<u32> {
    let mut gids: Vec<u32> = group_entries(group)
        .filter(|entry| entry.members.split(',').any(|member| member == user))
        .map(|entry| entry.gid)
        .collect();
    gids.sort_unstable();
    gids.dedup();
    gids.truncate(NGROUPS_MAX);
    gids
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/ash\n\
        # a comment\n\
        broken\n\
        toobig:x:4294967295:0::/:\n\
        signed:x:-1:+1::/:\n\
        postgres:x:70:70:PostgreSQL:/var/lib/postgresql:/bin/sh\n\
        second:x:70:71::/second:\n\
        nohome:x:80:80\n\
        odd:x:81:81::relative:\n";
    const GROUP: &str = "root:x:0:root\nwheel:x:10:root,postgres\nbroken\n\
        ssl:x:101:postgres\nagain:x:101:postgres\nmail:x:12:\n";

    fn resolve(text: &str) -> Result<ResolvedUser, String> {
        text.parse::<UserSpec>()
            .and_then(|spec| spec.resolve(PASSWD, GROUP))
            .map_err(|fault| fault.to_string())
    }

    fn numbers(text: &str) -> (u32, u32, Vec<u32>) {
        let user = resolve(text).unwrap();
        (user.uid, user.gid, user.groups)
    }

    #[test]
    fn a_user_is_resolved_as_docker_does() {
        assert_eq!(numbers("postgres"), (70, 70, vec![10, 101]));
        assert_eq!(numbers("70"), (70, 70, vec![10, 101]));
        assert_eq!(numbers("0070"), (70, 70, vec![10, 101]));
        assert_eq!(numbers("postgres:mail"), (70, 12, vec![]));
        assert_eq!(numbers("postgres:5"), (70, 5, vec![]));
        assert_eq!(numbers("1234"), (1234, 0, vec![]));
        assert_eq!(numbers("1234:wheel"), (1234, 10, vec![]));
        assert_eq!(numbers("4294967294:4294967294").0, u32::MAX - 1);
        let root = UserSpec::default().resolve(PASSWD, GROUP).unwrap();
        assert_eq!((root.uid, root.gid, root.groups), (0, 0, vec![0, 10]));
        let bare = UserSpec::default().resolve("", "").unwrap();
        assert_eq!((bare.uid, bare.gid, bare.name), (0, 0, None));
    }

    #[test]
    fn a_home_is_absolute_or_the_root_directory() {
        let home = |text: &str| resolve(text).unwrap().home;
        assert_eq!(home("postgres"), Path::new("/var/lib/postgresql"));
        assert_eq!(home("1234"), Path::new("/"));
        assert_eq!(home("nohome"), Path::new("/"));
        assert_eq!(home("odd"), Path::new("/"));
    }

    #[test]
    fn an_unknown_name_is_told_with_names_there_are() {
        assert_eq!(
            resolve("redis").unwrap_err(),
            "user `redis`: no user `redis` in the image's /etc/passwd, \
             which has root, postgres, second, nohome, odd"
        );
        assert_eq!(
            resolve("root:redis").unwrap_err(),
            "user `root:redis`: no group `redis` in the image's /etc/group, \
             which has root, wheel, ssl, again, mail"
        );
        let hostile: UserSpec = "x".parse().unwrap();
        assert_eq!(
            hostile
                .resolve("\u{1b}[31m:x:1:1::/:", "")
                .unwrap_err()
                .to_string(),
            "user `x`: no user `x` in the image's /etc/passwd, which names none; give a number instead"
        );
        // What lies in a skipped line is not there.
        assert!(resolve("toobig").is_err() && resolve("signed").is_err());
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for text in [
            "",
            ":",
            "root:",
            ":root",
            "a:b:c",
            "0:0:",
            "-1",
            "+1",
            "0:-1",
            "4294967295",
            "99999999999999999999",
            "ro ot",
            " root",
            "root\n",
            "0\0",
            "a/b",
            "a,b",
            "root:4294967295",
        ] {
            assert!(text.parse::<UserSpec>().is_err(), "{text:?}");
        }
        let fault = "ro\u{1b}ot".parse::<UserSpec>().unwrap_err();
        assert_eq!(
            fault.to_string(),
            "user `ro\\u{1b}ot`: a name has no space, control character, slash or comma"
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(
            user in ".{0,20}",
            passwd in "([a-z0-9:,#\n-]|.){0,120}",
            group in "([a-z0-9:,#\n-]|.){0,120}",
        ) {
            let spec = user.parse::<UserSpec>().unwrap_or_default();
            let _ = spec.resolve(&passwd, &group);
        }

        #[test]
        fn a_user_prints_as_it_parses(text in "([a-z_][a-z0-9_-]{0,8}|[1-9][0-9]{0,8})(:[a-z]{1,4})?") {
            let spec: UserSpec = text.parse().unwrap();
            prop_assert_eq!(spec.to_string(), text);
        }
    }
}
