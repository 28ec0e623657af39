//! What the other tests rely on: that a case really runs as who it says, and can run cargo.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::{Uid, getgroups, getresuid};
use orbit_tests::{Case, Context, Who};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("support::is_who_it_says", is_who_it_says),
        Case::new(
            "support::has_directories_of_its_own",
            has_directories_of_its_own,
        ),
        Case::new(
            "support::only_user_has_subordinate_ids",
            only_user_has_subordinate_ids,
        )
        .who(Who::ROOTLESS),
        Case::new("support::runs_cargo_offline", runs_cargo_offline)
            .needs_toolchain()
            .deadline(Duration::from_secs(300)),
    ]
}

fn is_who_it_says(context: &Context) -> Result<()> {
    let ids = getresuid()?;
    ensure!(
        ids.real == ids.effective && ids.real == ids.saved,
        "{ids:?}"
    );
    ensure!(
        ids.real.is_root() == (context.who == Who::Root),
        "{} is uid {}",
        context.who,
        ids.real
    );
    if context.who == Who::Root {
        return Ok(());
    }
    ensure!(
        !getgroups()?.iter().any(|group| group.as_raw() == 0),
        "is in root's group"
    );
    let status = fs::read_to_string("/proc/self/status")?;
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        let line = status
            .lines()
            .find(|line| line.starts_with(set))
            .context(set)?;
        ensure!(
            line.ends_with("0000000000000000"),
            "an ordinary user has {line}"
        );
    }
    Ok(())
}

fn has_directories_of_its_own(context: &Context) -> Result<()> {
    for directory in [
        context.home(),
        context.tmp(),
        context.cache(),
        context.work(),
    ] {
        fs::write(directory.join("file"), "")?;
        fs::remove_file(directory.join("file"))?;
    }
    ensure!(std::env::temp_dir() == context.tmp());
    ensure!(std::env::home_dir() == Some(context.home()));
    ensure!(std::env::current_dir()? == context.work());
    ensure!(std::env::var_os("XDG_RUNTIME_DIR").is_none());
    Ok(())
}

fn only_user_has_subordinate_ids(context: &Context) -> Result<()> {
    let user = context.who.user()?.name;
    for file in ["/etc/subuid", "/etc/subgid"] {
        let ranges = fs::read_to_string(file)?;
        let uid = format!("{}:", Uid::current());
        let has = ranges
            .lines()
            .any(|line| line.starts_with(&format!("{user}:")) || line.starts_with(&uid));
        ensure!(
            has == (context.who == Who::User),
            "{file} and {user}:\n{ranges}"
        );
    }
    Ok(())
}

/// The toolchain may lie under root's home: see `orbit_tests::toolchain`.
fn runs_cargo_offline(context: &Context) -> Result<()> {
    let finished = context
        .cargo()?
        .args(["test", "--offline", "--manifest-path"])
        .arg(context.in_workspace("fixtures/hello/Cargo.toml"))
        .env("CARGO_TARGET_DIR", context.work().join("target"))
        .deadline(Duration::from_secs(280))
        .run()?
        .success()?;
    ensure!(
        finished
            .stdout
            .contains("test tests::greets_by_name ... ok"),
        "{finished}"
    );
    Ok(())
}
