//! Plans for the callers there are, as text.

use proptest::prelude::*;

use super::*;

const DEV: Caller<'_> = Caller {
    euid: 1000,
    egid: 1000,
    name: Some("dev"),
    subuid: "dev:100000:65536\n",
    subgid: "dev:100000:65536\n",
    uid_map: "0 0 4294967295\n",
    gid_map: "0 0 4294967295\n",
    helpers: true,
    privileged: false,
};

fn shown(caller: &Caller<'_>) -> String {
    let plan = plan(caller).unwrap();
    let writer = match &plan.writer {
        Writer::Caller(single) => format!("because {single}; {}", single.fix()),
        other => format!("{other:?}"),
    };
    format!("{}\n{}{}{writer}", plan.key(), plan.uids, plan.gids)
}

#[test]
fn an_ordinary_user_has_its_subordinate_ids() {
    assert_eq!(
        shown(&DEV),
        "range-1000-100000-65536\n0 1000 1\n1 100000 65535\n0 1000 1\n1 100000 65535\nHelpers"
    );
    let several = Caller {
        subuid: "dev:100000:1000\n1000:500000:65536\n",
        egid: 100,
        ..DEV
    };
    assert_eq!(
        shown(&several),
        "range-1000-100000-65536-2899346b5261da2d\n\
         0 1000 1\n1 100000 1000\n1001 500000 64535\n0 100 1\n1 100000 65535\nHelpers"
    );
}

#[test]
fn a_user_without_ranges_or_helpers_is_told_why_and_what_to_do() {
    let nobody = Caller {
        subuid: "other:100000:65536\n",
        subgid: "",
        ..DEV
    };
    assert_eq!(
        shown(&nobody),
        "single-1000\n0 1000 1\n0 1000 1\n\
         because user dev has no subordinate ids in /etc/subuid and /etc/subgid \
         that this user namespace has; \
         as root: usermod --add-subuids 165536-231071 --add-subgids 165536-231071 dev"
    );
    let no_gids = Caller {
        subgid: "",
        name: None,
        subuid: "1000:5000:10",
        ..DEV
    };
    assert_eq!(
        shown(&no_gids),
        "single-1000\n0 1000 1\n0 1000 1\n\
         because user 1000 has no subordinate ids in /etc/subgid that this user namespace has; \
         as root: usermod --add-subgids 100000-165535 1000"
    );
    let no_helpers = Caller {
        helpers: false,
        ..DEV
    };
    assert_eq!(
        shown(&no_helpers),
        "single-1000\n0 1000 1\n0 1000 1\n\
         because newuidmap and newgidmap are not installed; \
         install the package uidmap (Debian, Ubuntu) or shadow-utils"
    );
}

#[test]
fn root_gets_a_range_that_is_not_the_hosts() {
    let root = Caller {
        euid: 0,
        egid: 0,
        name: Some("root"),
        privileged: true,
        ..DEV
    };
    assert_eq!(
        shown(&root),
        "root-1879048192\n0 1879048192 65536\n0 1879048192 65536\nPrivileged"
    );
    let granted = Caller {
        subuid: "root:10:100\nroot:0:65536\nroot:1000000:70000",
        subgid: "root:1000000:65536",
        ..root
    };
    assert_eq!(
        shown(&granted),
        "root-1000000\n0 1000000 65536\n0 1000000 65536\nPrivileged"
    );
}

#[test]
fn in_a_container_only_its_own_ids_are_given_away() {
    let inner = "0 1000 1\n1 100000 65535\n";
    let contained = Caller {
        uid_map: inner,
        gid_map: inner,
        ..DEV
    };
    assert_eq!(plan(&contained).unwrap().key(), "single-1000");
    let root = Caller {
        euid: 0,
        egid: 0,
        privileged: true,
        ..contained
    };
    assert_eq!(
        shown(&root),
        "inherited-65536\n0 0 65536\n0 0 65536\nPrivileged"
    );
    let lonely = Caller {
        uid_map: "0 1000 1",
        gid_map: "0 1000 1",
        ..root
    };
    assert_eq!(shown(&lonely), "inherited-1\n0 0 1\n0 0 1\nPrivileged");
}

#[test]
fn a_file_of_tiny_ranges_fills_the_map_and_no_more() {
    let lines: Vec<String> = (0..1000_u32)
        .map(|at| format!("dev:{}:1", 1_000_000 + at * 2))
        .collect();
    let text = lines.join("\n");
    let caller = Caller {
        subuid: &text,
        ..DEV
    };
    let map = plan(&caller).unwrap().uids;
    assert!(map.entries().len() > 250 && map.to_string().len() <= IdMap::MAX_BYTES);
}

proptest! {
    #[test]
    fn a_plan_maps_root_once_and_never_the_hosts(
        subuid in "((dev|root|1000):[0-9]{1,10}:[0-9]{1,6}\n){0,4}",
        euid in 1_u32..u32::MAX,
        privileged: bool,
    ) {
        let caller = Caller { subuid: &subuid, euid, privileged, ..DEV };
        let plan = plan(&caller).unwrap();
        prop_assert_eq!(plan.uids.to_inside(0), None);
        prop_assert!(plan.uids.count() <= WANTED);
        if !privileged {
            prop_assert_eq!(plan.uids.to_outside(0), Some(euid));
        }
    }
}
