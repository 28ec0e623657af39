//! What holds for which test, and what is said of a configuration that cannot be used.

use std::ffi::OsStr;

use super::*;
use crate::filter::tests::{facts, workspace};

/// The fixture's workspace, but with the files of `directory`.
fn load_in(
    files: &[(&str, &str)],
    words: &[&str],
    variables: &[(&str, &str)],
) -> Result<(Workspace, Config), String> {
    let directory = tempfile::tempdir().unwrap();
    let mut workspace = workspace();
    let root = directory.path().join("w");
    fs::create_dir_all(&root).unwrap();
    for (path, text) in files {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    workspace.has_metadata = root.join("Cargo.toml").exists();
    for package in &mut workspace.packages {
        package.manifest = root.join(&package.name).join("Cargo.toml");
        package.has_metadata = package.manifest.exists();
    }
    workspace.root = root;
    let home = directory.path().join("home");
    let variables = variables
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()))
        .chain([(OsString::from("HOME"), home.into_os_string())]);
    let args = SettingsArgs::of(words).unwrap();
    match Config::load(&workspace, &args, variables) {
        Ok(config) => Ok((workspace, config)),
        Err(error) => {
            let place = directory.path().display().to_string();
            Err(error.to_string().replace(&place, ""))
        }
    }
}

/// What is said of `keys` for `test`, with who said it.
fn told(
    files: &[(&str, &str)],
    words: &[&str],
    variables: &[(&str, &str)],
    test: Option<&str>,
) -> String {
    let (workspace, config) = load_in(files, words, variables).unwrap();
    let settings = config.settings(&facts(&workspace, test));
    let place = workspace.root.parent().unwrap().display().to_string();
    let lines: Vec<String> = settings
        .said()
        .map(|(key, set)| {
            let origins: Vec<String> = set.origins.iter().map(Origin::to_string).collect();
            format!("{} = {} [{}]", key.name, set.value, origins.join("; "))
        })
        .collect();
    lines.join("\n").replace(&place, "")
}

const FILE: &str = "w/.config/orbit.toml";

#[test]
fn later_overrides_win_key_by_key_and_nothing_is_reset_by_surprise() {
    let file = "memory = '1M'\npids = 8\nmount = ['/a:/b']\nenv = { A = '1', B = '1' }\n\
                [[override]]\nfilter = 'binary(ends)'\nmemory = '2M'\ntimeout = '1m'\nenv = { B = '2' }\n\
                [[override]]\nfilter = 'test(slow)'\nmemory = '3M'\nmount = ['/c:/d']\n";
    insta::assert_snapshot!(told(&[(FILE, file)], &[], &[], Some("slow")), @r"
    memory = 3M [.config/orbit.toml:12:1 (override: test(slow))]
    pids = 8 [.config/orbit.toml:2:1]
    mount = /a:/b, /c:/d [.config/orbit.toml:3:1; .config/orbit.toml:13:1 (override: test(slow))]
    env = A=1, B=2 [.config/orbit.toml:4:1; .config/orbit.toml:9:1 (override: binary(ends))]
    timeout = 1m [.config/orbit.toml:8:1 (override: binary(ends))]
    ");
    insta::assert_snapshot!(told(&[(FILE, file)], &[], &[], Some("other")), @r"
    memory = 2M [.config/orbit.toml:7:1 (override: binary(ends))]
    pids = 8 [.config/orbit.toml:2:1]
    mount = /a:/b [.config/orbit.toml:3:1]
    env = A=1, B=2 [.config/orbit.toml:4:1; .config/orbit.toml:9:1 (override: binary(ends))]
    timeout = 1m [.config/orbit.toml:8:1 (override: binary(ends))]
    ");
    // Of the whole binary, what holds for all of its tests.
    assert_eq!(
        told(&[(FILE, file)], &[], &[], None),
        told(&[(FILE, file)], &[], &[], Some("other"))
    );
}

#[test]
fn who_says_it_decides_who_wins() {
    let files = [
        (
            "home/.config/orbit/config.toml",
            "memory = '1M'\npids = 1\ndisk = '1M'\n",
        ),
        (
            "w/Cargo.toml",
            "[workspace.metadata.orbit]\nmemory = '2M'\npids = 2\n",
        ),
        (FILE, "memory = '3M'\npids = 3\nhostname = 'file'\n"),
        (
            "w/mixed/Cargo.toml",
            "[package.metadata.orbit]\nmemory = '4M'\n",
        ),
        (
            "w/answer/Cargo.toml",
            "[package.metadata.orbit]\nmemory = '5M'\n",
        ),
    ];
    insta::assert_snapshot!(
        told(&files, &["--cpus", "2"], &[("ORBIT_HOSTNAME", "variable"), ("ORBIT_CPUS", "1")], None),
        @r"
        memory = 4M [mixed/Cargo.toml:2:1]
        cpus = 2 [--cpus on the command line]
        pids = 3 [.config/orbit.toml:2:1]
        disk = 1M [/home/.config/orbit/config.toml:3:1]
        hostname = variable [ORBIT_HOSTNAME in the environment]
        "
    );
}

#[test]
fn a_profile_is_chosen_and_overrides_stay_in_force() {
    let file = "timeout = '1m'\npids = 8\n\
                [[override]]\nfilter = 'test(slow)'\ntimeout = '10m'\n\
                [profile.ci]\ntimeout = '2m'\nretries = 2\n\
                [[profile.ci.override]]\nfilter = 'test(slowest)'\ntimeout = '20m'\n";
    let timeout = |words: &[&str], variables: &[(&str, &str)], test| {
        let (workspace, config) = load_in(&[(FILE, file)], words, variables).unwrap();
        let settings = config.settings(&facts(&workspace, Some(test)));
        settings.timeout().unwrap().as_secs() / 60
    };
    assert_eq!(timeout(&[], &[], "a"), 1);
    assert_eq!(timeout(&["--orbit-profile", "ci"], &[], "a"), 2);
    assert_eq!(timeout(&[], &[("ORBIT_PROFILE", "ci")], "a"), 2);
    assert_eq!(timeout(&["--orbit-profile", "ci"], &[], "slow"), 10);
    assert_eq!(timeout(&["--orbit-profile", "ci"], &[], "slowest"), 20);
    assert_eq!(
        timeout(&["--orbit-profile=ci", "--timeout=30m"], &[], "slowest"),
        30
    );
    assert_eq!(timeout(&["--orbit-profile", "default"], &[], "slow"), 10);
    insta::assert_snapshot!(
        load_in(&[(FILE, file)], &["--orbit-profile", "cl"], &[]).unwrap_err(),
        @r"
        the configuration cannot be used
        --orbit-profile: there is no profile `cl`; did you mean `ci`?
        "
    );
}

#[test]
fn a_key_can_begin_again() {
    let file = "mount = ['/a:/b']\ncap_add = ['NET_RAW']\n\
                [[override]]\nfilter = 'all()'\nreset = ['mount', 'cap_add']\nmount = ['/c:/d']\n";
    insta::assert_snapshot!(told(&[(FILE, file)], &[], &[], None), @r"
    mount = /c:/d [.config/orbit.toml:6:1 (override: all())]
    ");
}

#[test]
fn lists_in_variables_have_several_words() {
    insta::assert_snapshot!(
        told(
            &[],
            &["--env", "B=3"],
            &[("ORBIT_MOUNT", "/a:/b, c:/d"), ("ORBIT_ENV", "A=1,2\nB=2"), ("ORBIT_IMAGE", "")],
            None
        ),
        @r"
        mount = /a:/b, /w/c:/d [ORBIT_MOUNT in the environment]
        env = A=1,2, B=3 [ORBIT_ENV in the environment; --env on the command line]
        "
    );
}

#[test]
fn everything_that_is_wrong_is_told_in_all_files() {
    insta::assert_snapshot!(
        load_in(
            &[
                ("home/.config/orbit/config.toml", "memroy = '1M'\n[[override]]\nfilter = 'package(absent)'\n"),
                (FILE, "[[override]]\nfilter = 'packge(mixed)'\n[profile.ci]\ncpu = 1\n\
                        [[override]]\nfilter = \"test(a) & package(absent)\"\n"),
            ],
            &[],
            &[("ORBIT_MEMROY", "1M"), ("ORBIT_PIDS", "many"), ("ORBIT_CACHE_DIR", "/x")]
        )
        .unwrap_err(),
        @r#"
        the configuration cannot be used
        /home/.config/orbit/config.toml:1:1: there is no key `memroy` here; did you mean `memory`?
          1 | memroy = '1M'
            | ^^^^^^
        .config/orbit.toml:4:1: there is no key `cpu` here; did you mean `cpus`?
          4 | cpu = 1
            | ^^^
        .config/orbit.toml:2:11: there is no predicate `packge`; did you mean `package`?
          2 | filter = 'packge(mixed)'
            |           ^^^^^^
        .config/orbit.toml:6:29: operator didn't match any packages: no packages matched this
          6 | filter = "test(a) & package(absent)"
            |                             ^^^^^^
        ORBIT_PIDS: `many`: expected a whole number such as 64
        ORBIT_MEMROY: there is no such variable; did you mean ORBIT_MEMORY?
        "#
    );
}

#[test]
fn ten_thousand_tests_are_cheap() {
    let mut file = String::from("memory = '1M'\n");
    for number in 0..20 {
        file.push_str("[[override]]\nfilter = 'test(/t");
        file.push_str(&number.to_string());
        file.push_str("/)'\npids = 5\n");
    }
    let (workspace, config) = load_in(&[(FILE, &file)], &[], &[]).unwrap();
    let mut limited = 0;
    let mut resolved = BTreeSet::new();
    for number in 0..10_000 {
        let name = format!("module::t{}", number % 40);
        let settings = config.settings(&facts(&workspace, Some(&name)));
        limited += usize::from(settings.get("pids").is_some());
        resolved.insert(Arc::as_ptr(&settings));
    }
    // t0 to t19, and t20 to t39 by their first digits.
    assert_eq!(limited, 10_000);
    // Merged once for all tests of which the same is said, and not for each: t20 to t39 are t2 and t3 to these filters.
    assert_eq!(resolved.len(), 20);
}

#[test]
fn the_users_file_lies_where_xdg_says() {
    let file = |pairs: &[(&str, &str)]| {
        let pairs: Vec<(String, OsString)> = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), OsStr::new(value).to_owned()))
            .collect();
        user_file(|name| Some(&pairs.iter().find(|pair| pair.0 == name)?.1))
    };
    let config = |path: &str| Some(PathBuf::from(path));
    assert_eq!(
        file(&[("HOME", "/h")]),
        config("/h/.config/orbit/config.toml")
    );
    assert_eq!(
        file(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "/x")]),
        config("/x/orbit/config.toml")
    );
    assert_eq!(
        file(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "x")]),
        config("/h/.config/orbit/config.toml")
    );
    assert_eq!(file(&[]), None);
}

#[test]
fn a_test_needs_the_services_that_ask_for_it() {
    let services = |test: Option<&str>| {
        let files = [
            (
                "w/.config/orbit.toml",
                "[[service]]\nname = 'all'\n[[service]]\nname = 'one'\nfilter = 'test(=a::b)'\nafter = ['none']\n\
                 [[service]]\nname = 'none'\nfilter = 'none()'\n",
            ),
            // Of another workspace, and so of no test here.
            (
                "home/.config/orbit/config.toml",
                "[[service]]\nname = 'elsewhere'\nfilter = 'package(=no-such-package)'\n",
            ),
        ];
        let (workspace, config) = load_in(&files, &[], &[]).unwrap();
        assert_eq!(config.services().len(), 3);
        let settings = config.settings(&facts(&workspace, test));
        let names = settings.services.iter().map(|service| service.name.clone());
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(services(Some("a::b")), "all one");
    assert_eq!(services(Some("a::c")), "all");
    assert_eq!(services(None), "all");
    let twice = [
        ("w/.config/orbit.toml", "[[service]]\nname = 'db'\n"),
        (
            "home/.config/orbit/config.toml",
            "[[service]]\nname = 'db'\n",
        ),
    ];
    let error = load_in(&twice, &[], &[]).unwrap_err();
    assert!(error.contains("there is a service `db` at"), "{error}");
}
