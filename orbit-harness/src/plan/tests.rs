//! The plans of the main kinds of sandbox, as snapshots: their difference is the security review. And what is
//! refused, all at once.

use proptest::prelude::*;

use super::*;
use crate::{
    Sandbox, SandboxBuilder,
    builder::share_foreign,
    host::{Files, TopLevel},
    image::ImageConfig,
    security::idmap::plan::{Caller, plan as plan_ids},
    spec::Mount,
};

/// A machine with an ordinary layout: something is mounted below `/boot`, nothing below the others, and `/srv` is empty.
fn host(uid: u32) -> Host {
    let directories = [
        "/boot", "/dev", "/etc", "/home", "/opt", "/proc", "/root", "/run", "/sys", "/tmp", "/usr",
        "/var",
    ];
    let mut top_level: BTreeMap<PathBuf, TopLevel> = directories
        .map(|path| (path.into(), TopLevel::Directory))
        .into();
    top_level.insert("/bin".into(), TopLevel::Symlink("usr/bin".into()));
    top_level.insert("/swapfile".into(), TopLevel::Other);
    top_level.insert("/srv".into(), TopLevel::EmptyDirectory);
    let caller = Caller {
        euid: uid,
        egid: uid,
        name: Some("dev"),
        subuid: "dev:100000:65536\n",
        subgid: "dev:100000:65536\n",
        uid_map: "0 0 4294967295\n",
        gid_map: "0 0 4294967295\n",
        helpers: true,
        privileged: uid == 0,
    };
    let files = Files {
        top_level,
        mount_points: ["/", "/boot/efi", "/dev", "/proc", "/run", "/sys", "/tmp"]
            .map(Into::into)
            .into(),
        hides_in_memory: true,
    };
    Host {
        uid,
        gid: uid,
        home: if uid == 0 { "/root" } else { "/home/dev" }.into(),
        hostname: "machine".into(),
        resolv_conf: "nameserver 192.0.2.1\n".into(),
        ids: plan_ids(&caller).unwrap(),
        last_cap: 40,
        foreign: (["/etc", "/usr"].map(PathBuf::from).into_iter())
            .filter(|_| uid != 0)
            .collect::<std::collections::BTreeSet<_>>()
            .into(),
        cgroups: Cgroups::V1OrHybrid,
        pasta: Some("/usr/bin/pasta".into()),
        looked_up: files.into(),
    }
}

fn around() -> Surroundings {
    Surroundings {
        working_dir: "/home/dev/project/crate".into(),
        executable_dir: Some("/home/dev/project/target/debug/deps".into()),
        path: Some("/home/dev/.cargo/bin:/usr/bin".into()),
        umask: 0o002,
    }
}

fn image() -> Image {
    Image {
        name: "test".into(),
        digest: "sha256:0123".into(),
        layers_dir: "/home/dev/.cache/orbit/layers".into(),
        layers: vec!["base".into(), "middle".into(), "top".into()],
        config: ImageConfig {
            env: vec!["PATH=/srv/bin".into(), "LANG=C.UTF-8".into()],
            entrypoint: vec!["/entrypoint".into()],
            cmd: vec!["serve".into()],
            working_dir: "/srv".into(),
            user: "app".into(),
            ..ImageConfig::default()
        },
        ..Image::default()
    }
}

pub(crate) fn planned(builder: SandboxBuilder, uid: u32) -> Result<Plan, Vec<SpecFault>> {
    let SandboxBuilder {
        spec, mut faults, ..
    } = builder;
    let image = match spec.image {
        ImageRef::Host | ImageRef::Dir(_) => Image::default(),
        _ => image(),
    };
    match plan(&spec, &image, &host(uid), &around()) {
        Ok(plan) if faults.is_empty() => Ok(plan),
        Ok(_) => Err(faults),
        Err(found) => {
            faults.extend(found);
            Err(faults)
        }
    }
}

fn text(builder: SandboxBuilder, uid: u32) -> String {
    planned(builder, uid).unwrap().to_string()
}

#[test]
fn over_the_host_as_an_ordinary_user() {
    insta::assert_snapshot!(text(Sandbox::builder().cmd(["true"]), 1000));
}

/// Over what earlier sandboxes of the host's files wrote, each directory has that above the host's, and the root is
/// theirs.
#[test]
fn over_sealed_layers_of_the_host() {
    let spec = Sandbox::builder().cmd(["true"]).spec;
    let sealed = Image {
        layers_dir: "/cache".into(),
        layers: vec!["one".into(), "two".into()],
        sealed: 2,
        ..Image::default()
    };
    let plan = plan(&spec, &sealed, &host(1000), &around()).unwrap();
    let lines: Vec<String> = plan
        .lines()
        .into_iter()
        .filter(|line| line.contains("overlay") || line.contains("symlink"))
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    mount overlay / lower=2 upper=scratch
    symlink /bin to=usr/bin
    mount overlay /etc lower=2 sealed over /etc upper=scratch
    mount overlay /opt lower=2 sealed over /opt upper=scratch
    mount overlay /usr lower=2 sealed over /usr upper=scratch
    mount overlay /var lower=2 sealed over /var upper=scratch
    mount overlay /var/tmp lower=2 sealed upper=scratch
    mount overlay /home/dev/project/crate lower=2 sealed over /home/dev/project/crate upper=scratch
    mount overlay /home/dev/project/target/debug/deps lower=2 sealed over /home/dev/project/target/debug/deps upper=scratch
    ");
}

/// The layer over a foreign directory is the sandbox's own unless sharing is asked for, for another user than the caller, and
/// where something is made in it.
#[test]
fn what_is_foreign_is_shared_where_nothing_is_made() {
    let over = |builder: SandboxBuilder, uid| {
        let text = text(builder, uid);
        let lower = |at: &str| {
            let lower = format!(" lower={at} ");
            text.lines()
                .find_map(|line| Some(line.split_once(&lower)?.1.to_owned()))
        };
        ["/etc", "/usr"].map(lower)
    };
    let plain = || Sandbox::builder().cmd(["true"]);
    let shares = || share_foreign(plain());
    let [own, shared] = ["upper=scratch", "shared"].map(|it| Some(it.to_owned()));
    assert_eq!(over(plain(), 1000), [own.clone(), own.clone()]);
    assert_eq!(over(shares(), 1000), [shared.clone(), shared.clone()]);
    for makes in [
        shares().file("/usr/share/it", ""),
        shares().mount(Mount::tmpfs("/usr/src/x")),
        shares().working_dir("/usr/games/here"),
        shares().home("/usr/sbin"),
        shares().host_path("/usr/src/app"),
        shares().host_path("/usr"),
    ] {
        assert_eq!(over(makes, 1000), [shared.clone(), own.clone()]);
    }
    let on_a_network = shares().egress(crate::Egress::allow(["192.0.2.1:443"]));
    assert_eq!(over(on_a_network, 1000), [own.clone(), shared.clone()]);
    assert_eq!(over(shares().user("root"), 1000), [own.clone(), own]);
    // One overlay is over all.
    assert_eq!(over(shares(), 0), [None, None]);
}

#[test]
fn over_the_host_with_an_allow_list() {
    let mut builder = Sandbox::builder()
        .cmd(["true"])
        .egress(crate::Egress::allow([
            "10.0.0.0/8:443",
            "registry.example:443",
            "dns",
        ]));
    // As it is looked up when a sandbox is started.
    let registry = "198.51.100.1".parse().unwrap();
    builder.spec.looked_up.names = vec![(registry, "registry.example".into())];
    builder.spec.looked_up.allowed = ["10.0.0.0/8:443", "198.51.100.1:443"]
        .map(|rule| {
            let rule: crate::net::egress::Rule = rule.parse().unwrap();
            let crate::net::egress::Target::Network(to) = rule.to else {
                panic!("no address");
            };
            crate::net::egress::Allowed {
                to,
                ports: rule.ports,
                protocol: rule.protocol,
            }
        })
        .into();
    insta::assert_snapshot!(text(builder, 0));
}

#[test]
fn what_is_wrong_with_egress_is_told() {
    let told = |builder: SandboxBuilder| {
        let faults = planned(builder, 1000).unwrap_err();
        faults
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    };
    let list = || {
        Sandbox::builder()
            .cmd(["true"])
            .egress("192.0.2.1:1")
            .cap_add("net_raw")
    };
    insta::assert_snapshot!(told(list().cap_add("NET_ADMIN").network(NetworkMode::Host)));
    // Without a list there is nothing to lift.
    let plan = planned(
        Sandbox::builder()
            .cmd(["true"])
            .egress("none")
            .cap_add("NET_ADMIN"),
        1000,
    );
    assert!(plan.is_ok());
}

#[test]
fn over_the_host_as_root() {
    insta::assert_snapshot!(text(Sandbox::builder().cmd(["true"]), 0));
}

#[test]
fn over_the_host_as_cargo_orbit_test_asks() {
    let builder = Sandbox::builder()
        .cmd(["/home/dev/project/target/debug/deps/it-1"])
        .host_path("/home/dev/project")
        .host_path_read_only("/home/dev/.cargo")
        .hide("/home/dev/.cargo/credentials.toml")
        .working_dir("/home/dev/project/crate")
        .nested(true);
    insta::assert_snapshot!(text(share_foreign(builder), 1000));
}

#[test]
fn an_image_with_nothing_else_asked() {
    insta::assert_snapshot!(text(Sandbox::builder().image("test"), 1000));
}

#[test]
fn a_directory_with_everything_asked() {
    let builder = Sandbox::builder()
        .image("dir:/srv/root")
        .name("web")
        .cmd(["server"])
        .args(["--port", "80"])
        .user("app:web")
        .working_dir("/data/../srv")
        .mount(Mount::bind("/home/dev/data", "/data"))
        .mount(Mount::bind_read_only("/etc/ssl", "/etc/ssl"))
        .mount(Mount::overlay("/home/dev/seed", "/var/lib/app"))
        .mount(Mount::tmpfs("/cache").size(Bytes::mib(8)))
        .read_only(true)
        .cap_drop("ALL")
        .cap_add("NET_BIND_SERVICE")
        .network(NetworkMode::Host)
        .disk("16M")
        .timeout(Duration::from_secs(5))
        .init(Init::Program)
        .tty(true);
    insta::assert_snapshot!(text(builder, 1000));
}

#[test]
fn the_environment_is_the_images_then_the_callers() {
    let env = |builder: SandboxBuilder| {
        let env = planned(builder, 1000).unwrap().program.env;
        let pairs = env
            .into_iter()
            .map(|(name, value)| format!("{}={}", name.to_string_lossy(), value.to_string_lossy()));
        pairs.collect::<Vec<_>>().join(" ")
    };
    let image = || Sandbox::builder().image("test");
    assert_eq!(env(image()), "HOSTNAME=orbit LANG=C.UTF-8 PATH=/srv/bin");
    assert_eq!(
        env(image().env("LANG", "C").name("web")),
        "HOSTNAME=web LANG=C PATH=/srv/bin"
    );
    assert_eq!(env(image().env("A", "1").env_clear()), "A=1");
    assert_eq!(
        env(Sandbox::builder().cmd(["true"])),
        "HOME=/home/dev PATH=/home/dev/.cargo/bin:/usr/bin"
    );
}

#[test]
fn words_are_joined_by_dockers_rule() {
    let argv = |builder: SandboxBuilder| planned(builder, 1000).unwrap().program.argv;
    let image = || Sandbox::builder().image("test");
    assert_eq!(argv(image()), ["/entrypoint", "serve"]);
    assert_eq!(argv(image().cmd(["check"])), ["/entrypoint", "check"]);
    assert_eq!(argv(image().entrypoint(["sh"])), ["sh"]);
    assert_eq!(argv(image().entrypoint(["sh"]).cmd(["-c"])), ["sh", "-c"]);
    assert_eq!(argv(image().args(["-v"])), ["/entrypoint", "serve", "-v"]);
}

#[test]
fn every_fault_is_reported_at_once() {
    let builder = Sandbox::builder()
        .image("oci:")
        .hostname("no good")
        .user("a:b:c")
        .working_dir("here")
        .mount_str("only-one-word")
        .mount(Mount::tmpfs("/"))
        .cap_add("NET_RAWW")
        .env("A=B", "1")
        .memory("10Q")
        .memory("64M")
        .cpu("0.5")
        .publish("80:")
        .publish("8080:80")
        .timeout(Duration::ZERO);
    let faults = planned(builder, 1000).unwrap_err();
    let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn no_limit_is_asked_by_max() {
    assert!(planned(Sandbox::builder().cmd(["true"]).cpu("max"), 1000).is_ok());
}

#[test]
fn a_failed_step_is_named_by_its_line() {
    let plan = planned(Sandbox::builder().image("test"), 1000).unwrap();
    // Line 0 is the namespaces; step N of the plan is line N + 1; the program is the last.
    assert_eq!(plan.lines()[1], plan.steps[0].to_string());
    assert!(plan.lines().last().unwrap().starts_with("exec "));
}

proptest! {
    #[test]
    fn targets_stay_inside_the_root(path in "/?([a-z.]{0,3}/){0,6}[a-z.]{0,3}") {
        let normal = normal(Path::new(&path));
        prop_assert!(normal.is_absolute());
        prop_assert!(normal.components().all(|part| part != std::path::Component::ParentDir));
    }

    #[test]
    fn a_spec_from_any_words_is_planned_or_refused(
        words in proptest::collection::vec(".{0,12}", 0..4),
        hostname in ".{0,70}",
        user in ".{0,8}",
        path in ".{0,20}",
    ) {
        let builder = Sandbox::builder()
            .cmd(words)
            .hostname(hostname)
            .user(&user)
            .working_dir(path.clone())
            .mount(Mount::tmpfs(path));
        let _ = planned(builder, 1000);
    }
}

#[test]
fn what_cannot_be_made_ahead_is_refused() {
    use crate::Egress;

    let sandbox = || Sandbox::builder().cmd(["true"]).prepare_ahead(2);
    let why = |builder| planned(builder, 1000).unwrap_err()[0].to_string();
    assert!(planned(sandbox().egress(Egress::none()), 1000).is_ok());
    assert!(planned(sandbox().expose(80).timeout(Duration::from_secs(1)), 1000).is_ok());
    for (builder, word) in [
        (sandbox().prepare_ahead(65), "at most 64"),
        (sandbox().egress(Egress::all()), "egress"),
        (sandbox().network(NetworkMode::Bridge), "network"),
    ] {
        let why = why(builder);
        assert!(
            why.starts_with("prepare_ahead `") && why.contains(word),
            "{why}"
        );
    }
    let mut limited = host(1000);
    limited.cgroups = Cgroups::V2;
    let SandboxBuilder { spec, .. } = sandbox().memory("64M");
    let faults = plan(&spec, &Image::default(), &limited, &around()).unwrap_err();
    assert!(
        faults[0].to_string().contains("control group"),
        "{faults:?}"
    );
}
