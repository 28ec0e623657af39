//! The filter is what the policy says, and the policy is what the snapshots say.

use proptest::prelude::*;

use super::{
    bpf::{SockFilter, compile},
    interpret::run,
    policy::{Action, Arch, Call, Policy},
    table::TABLE,
};
use crate::security::capabilities::{Capability, CapabilitySet};

const AUDIT_ARCH_I386: u32 = 0x4000_0003;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const X32_BIT: u32 = 0x4000_0000;

/// The deepest filter there may be: the check of the machine, a binary search, and five comparisons.
const MAX_DEPTH: usize = 24;

fn default_capabilities() -> CapabilitySet {
    CapabilitySet::docker_default(40)
}

fn with(extra: &[Capability]) -> CapabilitySet {
    default_capabilities().union(extra.iter().copied().collect())
}

fn variants(arch: Arch) -> Vec<(&'static str, Policy)> {
    let admin = with(&[Capability::SysAdmin]);
    vec![
        ("default", Policy::new(arch, default_capabilities(), false)),
        ("sys_admin", Policy::new(arch, admin, false)),
        ("all", Policy::new(arch, CapabilitySet::all(40), false)),
        ("nested", Policy::new(arch, default_capabilities(), true)),
        ("none", Policy::new(arch, CapabilitySet::EMPTY, false)),
    ]
}

fn native(arch: Arch, number: u32, arguments: [u64; 6]) -> Call {
    Call {
        arch: arch.audit(),
        number,
        arguments,
    }
}

/// The number of `name` on x86-64.
fn number(name: &str) -> u32 {
    let row = TABLE.iter().find(|row| row.name == name);
    row.map(|row| u32::from(row.x86_64)).unwrap()
}

/// What `policy` answers to the x86-64 call `name`.
fn answer(policy: &Policy, name: &str, arguments: &[u64]) -> Action {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    policy.action(&native(Arch::X86_64, number(name), all))
}

/// Arguments near what the policy compares with, in both halves.
fn argument() -> impl Strategy<Value = u64> {
    let telling = prop::sample::select(vec![
        0_u64,
        8,
        38,
        39,
        40,
        41,
        0x5412,
        0x541c,
        0x2_0000,
        0x2_0008,
        0x7e02_0000,
        0x1000_0000,
        0xffff_ffff,
        17,
    ]);
    let high = prop::sample::select(vec![0_u64, 1, 0x8000_0000, 0xffff_ffff]);
    prop_oneof![
        any::<u64>(),
        (telling, high).prop_map(|(low, high)| high << 32 | low),
    ]
}

#[test]
fn a_policy_is_what_its_snapshot_says() {
    for arch in [Arch::X86_64, Arch::Aarch64] {
        for (name, policy) in variants(arch) {
            let name = format!("{arch:?}-{name}").to_lowercase();
            // The whole of the default, and of the others what they change: a difference is what is reviewed.
            let default = Policy::new(arch, default_capabilities(), false).to_string();
            let text = policy.to_string();
            let shown = if text == default {
                text
            } else {
                let usual: Vec<&str> = default.lines().collect();
                text.lines()
                    .filter(|line| !usual.contains(line))
                    .collect::<Vec<_>>()
                    .join("\n")
            };
            insta::assert_snapshot!(name, shown);
        }
    }
}

#[test]
fn every_number_is_answered_as_the_policy_says() {
    for arch in [Arch::X86_64, Arch::Aarch64] {
        for (name, policy) in variants(arch) {
            let program = compile(&policy).unwrap();
            let numbers = (0..=600).chain(X32_BIT..=X32_BIT + 600).chain([
                u32::MAX,
                i32::MAX as u32,
                1 << 31,
            ]);
            for number in numbers {
                let call = native(arch, number, [0; 6]);
                let run = run(program.instructions(), &call);
                assert_eq!(run.action, policy.action(&call), "{name} {number}");
                assert!(run.steps <= program.depth(), "{name} {number}");
            }
            let length = program.instructions().len();
            assert!(length < 512, "{name} has {length} instructions");
            assert!(program.depth() <= MAX_DEPTH, "{name}: {}", program.depth());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn a_filter_and_its_policy_agree(
        aarch64: bool,
        variant in 0_usize..5,
        number in prop_oneof![
            4 => 0_u32..=600,
            // Calls whose arguments matter, on either machine.
            4 => prop::sample::select(vec![16_u32, 29, 41, 56, 92, 135, 198, 220, 435]),
            1 => X32_BIT..=X32_BIT + 600,
            1 => any::<u32>(),
        ],
        arguments in prop::array::uniform6(argument()),
        arch in prop_oneof![
            8 => Just(None),
            1 => Just(Some(AUDIT_ARCH_I386)),
            1 => Just(Some(AUDIT_ARCH_X86_64)),
            1 => any::<u32>().prop_map(Some),
        ],
    ) {
        let machine = if aarch64 { Arch::Aarch64 } else { Arch::X86_64 };
        let (_, policy) = &variants(machine)[variant];
        let program = compile(policy).unwrap();
        let call = Call { arch: arch.unwrap_or(machine.audit()), number, arguments };
        let run = run(program.instructions(), &call);
        prop_assert_eq!(run.action, policy.action(&call));
        prop_assert!(run.steps <= program.depth());
    }

    /// Whoever holds fewer capabilities may do no more.
    #[test]
    fn a_capability_only_opens(
        few in prop::sample::subsequence(Capability::ALL, 0..8),
        more in prop::sample::subsequence(Capability::ALL, 0..8),
        number in 0_u32..500,
        arguments in prop::array::uniform6(argument()),
        nested: bool,
    ) {
        let few: CapabilitySet = few.into_iter().collect();
        let both = few.union(more.into_iter().collect());
        let call = native(Arch::X86_64, number, arguments);
        let before = Policy::new(Arch::X86_64, few, false).action(&call);
        let after = Policy::new(Arch::X86_64, both, nested).action(&call);
        prop_assert!(before != Action::Allow || after == Action::Allow);
    }
}

#[test]
fn a_terminal_is_not_typed_into_whatever_is_held() {
    for (name, policy) in variants(Arch::X86_64) {
        for command in [0x5412_u64, 0x541c, 0xdead_beef_0000_5412] {
            assert_eq!(
                answer(&policy, "ioctl", &[0, command]),
                Action::DENY,
                "{name}"
            );
        }
        // TCGETS.
        assert_eq!(answer(&policy, "ioctl", &[0, 0x5401]), Action::Allow);
    }
}

#[test]
fn bits_that_the_kernel_ignores_do_not_hide_a_value() {
    let policy = Policy::new(Arch::X86_64, default_capabilities(), false);
    for family in [38_u64, 40, 0x0000_0001_0000_0028, 0xffff_ffff_0000_0026] {
        assert_eq!(
            answer(&policy, "socket", &[family]),
            Action::DENY,
            "{family:#x}"
        );
    }
    for family in [1_u64, 2, 10, 16, 17, 39, 41] {
        assert_eq!(
            answer(&policy, "socket", &[family]),
            Action::Allow,
            "{family}"
        );
    }
    // ADDR_NO_RANDOMIZE.
    assert_eq!(answer(&policy, "personality", &[0x4_0000]), Action::DENY);
    assert_eq!(
        answer(&policy, "personality", &[0xffff_ffff]),
        Action::Allow
    );
}

#[test]
fn namespaces_are_closed_until_they_are_asked_for() {
    let new_user = 0x1000_0000;
    let thread = 0x003d_0f00;
    let closed = Policy::new(Arch::X86_64, default_capabilities(), false);
    assert_eq!(answer(&closed, "clone", &[new_user]), Action::DENY);
    assert_eq!(answer(&closed, "clone", &[thread]), Action::Allow);
    assert_eq!(answer(&closed, "clone3", &[]), Action::UNKNOWN);
    assert_eq!(answer(&closed, "unshare", &[new_user]), Action::DENY);
    let nested = Policy::new(Arch::X86_64, CapabilitySet::EMPTY, true);
    for call in [
        "clone",
        "clone3",
        "unshare",
        "setns",
        "mount",
        "pivot_root",
        "chroot",
    ] {
        assert_eq!(answer(&nested, call, &[new_user]), Action::Allow, "{call}");
    }
    for call in [
        "bpf",
        "perf_event_open",
        "init_module",
        "keyctl",
        "userfaultfd",
        "io_uring_setup",
    ] {
        assert_eq!(answer(&nested, call, &[]), Action::DENY, "{call}");
    }
}

/// Too many rules for 8-bit jumps, and for the kernel: every other number tests an argument of its own.
#[test]
fn a_long_filter_jumps_far_and_a_longer_one_is_refused() {
    let long = Policy::synthetic(300);
    let program = compile(&long).unwrap();
    assert!(program.instructions().len() > 1500);
    assert!(
        program
            .instructions()
            .iter()
            .any(|i| i.code == super::bpf::JMP_JA)
    );
    for number in 0..900 {
        for argument in [0, 1, u64::from(number), u64::from(number) << 32 | 1] {
            let call = native(Arch::X86_64, number, [argument; 6]);
            let run = run(program.instructions(), &call);
            assert_eq!(run.action, long.action(&call), "{number} {argument:#x}");
            assert!(run.steps <= program.depth());
        }
    }
    let refused = compile(&Policy::synthetic(400)).unwrap_err().to_string();
    assert!(refused.ends_with("the kernel takes 4096"), "{refused}");
}

#[test]
fn an_instruction_is_laid_out_as_the_kernels() {
    assert_eq!(size_of::<SockFilter>(), size_of::<libc::sock_filter>());
    assert_eq!(align_of::<SockFilter>(), align_of::<libc::sock_filter>());
    assert_eq!(
        [
            std::mem::offset_of!(SockFilter, code),
            std::mem::offset_of!(SockFilter, jt),
            std::mem::offset_of!(SockFilter, jf),
            std::mem::offset_of!(SockFilter, k),
        ],
        [
            std::mem::offset_of!(libc::sock_filter, code),
            std::mem::offset_of!(libc::sock_filter, jt),
            std::mem::offset_of!(libc::sock_filter, jf),
            std::mem::offset_of!(libc::sock_filter, k),
        ]
    );
}
