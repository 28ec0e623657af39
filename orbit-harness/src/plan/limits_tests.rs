//! What a plan makes of limits, on hosts that keep them and on those that do not.

use super::*;
use crate::{SandboxBuilder, host::Host};

fn asked() -> SandboxBuilder {
    SandboxBuilder::default()
        .cmd(["true"])
        .memory("64M")
        .cpus(0.5)
        .pids(64)
        .ulimit("nofile", 64, 128)
}

fn plan_on(builder: &SandboxBuilder, cgroups: Cgroups) -> Result<Plan, Vec<SpecFault>> {
    assert!(builder.faults.is_empty(), "{:?}", builder.faults);
    let host = Host {
        cgroups,
        ..Host::get().unwrap().clone()
    };
    let around = Surroundings {
        working_dir: "/".into(),
        ..Surroundings::default()
    };
    plan(&builder.spec, &Image::default(), &host, &around)
}

#[test]
fn limits_are_on_the_line_that_makes_the_process() {
    let plan = plan_on(&asked(), Cgroups::V2).unwrap();
    let lines = plan.lines();
    insta::assert_snapshot!(lines[0], @"unshare mount pid ipc uts cgroup net, born in a control group memory.oom.group=1 memory.swap.max=0 memory.max=67108864 cpu.max=50000,100000 pids.max=65");
    assert!(
        lines.contains(&"ulimit nofile=64:128".to_owned()),
        "{lines:?}"
    );
}

/// What a limit changes of a plan, all of it.
#[test]
fn a_limited_sandbox_sees_its_limits_and_a_nested_one_is_below_them() {
    let changed = |builder: SandboxBuilder| {
        let plain = SandboxBuilder::default().cmd(["true"]);
        let before = plan_on(&plain, Cgroups::V2).unwrap().lines();
        let after = plan_on(&builder, Cgroups::V2).unwrap().lines();
        let new = after.into_iter().filter(|line| !before.contains(line));
        // What a capability that was added gives depends on who runs this.
        let new = new.filter(|line| !line.starts_with("capabilities"));
        new.collect::<Vec<_>>().join("\n")
    };
    let limited = || SandboxBuilder::default().cmd(["true"]).memory("64M");
    insta::assert_snapshot!(changed(limited()));
    insta::assert_snapshot!(changed(limited().nested(true)));
    insta::assert_snapshot!(changed(limited().cap_add("SYS_ADMIN")));
}

#[test]
fn what_is_not_in_a_control_group_is_not_shown_one() {
    let mut plan = plan_on(&asked(), Cgroups::V2).unwrap();
    assert!(plan.steps.contains(&Step::Cgroup));
    plan.without_cgroup();
    assert!(!plan.steps.contains(&Step::Cgroup));
}

#[test]
fn without_limits_there_is_no_control_group() {
    let plain = SandboxBuilder::default().cmd(["true"]).cpu_max("max");
    assert_eq!(plan_on(&plain, Cgroups::V2).unwrap().cgroup, None);
    let counted = SandboxBuilder::default().cmd(["true"]).accounting(true);
    assert_eq!(
        plan_on(&counted, Cgroups::V2).unwrap().cgroup,
        Some(Vec::new())
    );
}

#[test]
fn each_limit_is_refused_where_none_can_be_kept() {
    for cgroups in [Cgroups::V1OrHybrid, Cgroups::None] {
        let faults = plan_on(&asked(), cgroups).unwrap_err();
        let fields: Vec<&str> = faults.iter().map(|fault| fault.field.as_str()).collect();
        assert_eq!(fields, ["memory limit", "cpu limit", "pids limit"]);
    }
    let faults = plan_on(&asked(), Cgroups::V1OrHybrid).unwrap_err();
    insta::assert_snapshot!(faults[0], @"memory limit `64MiB`: this host runs cgroup v1, or v1 beside an empty v2, and cannot keep it; boot with systemd.unified_cgroup_hierarchy=1, or leave the limit out");
}

#[test]
fn best_effort_makes_refusals_warnings() {
    let plan = plan_on(&asked().best_effort(true), Cgroups::V1OrHybrid).unwrap();
    assert_eq!((plan.cgroup, plan.warnings.len()), (None, 3));
    // What no kernel could keep stays a fault.
    assert!(plan_on(&asked().pids(0).best_effort(true), Cgroups::V1OrHybrid).is_err());
}
