//! The kernel's side of a filter, for tests: runs a program over the bytes of a `seccomp_data`.
//!
//! It knows the instructions the compiler uses and no more, checks what the kernel's verifier checks, and
//! counts what it runs. Source: Linux, kernel/seccomp.c (`seccomp_check_filter`), net/core/filter.c.

use super::{
    bpf::{
        ALU_AND_K, JMP_JA, JMP_JEQ_K, JMP_JGE_K, LD_W_ABS, RET_K, SECCOMP_RET_ALLOW,
        SECCOMP_RET_ERRNO, SockFilter,
    },
    policy::{Action, Call},
};

/// What a run of the program came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) action: Action,
    pub(super) steps: usize,
}

/// `struct seccomp_data` as it lies in memory.
fn bytes(call: &Call) -> [u8; 64] {
    let mut data = [0; 64];
    data[0..4].copy_from_slice(&call.number.to_ne_bytes());
    data[4..8].copy_from_slice(&call.arch.to_ne_bytes());
    // 8..16 is the instruction pointer.
    for (slot, argument) in data[16..].chunks_exact_mut(8).zip(call.arguments) {
        slot.copy_from_slice(&argument.to_ne_bytes());
    }
    data
}

/// Runs `program` on `call`. Panics where the kernel would have refused the program.
pub(super) fn run(program: &[SockFilter], call: &Call) -> Run {
    let data = bytes(call);
    let (mut accumulator, mut at, mut steps) = (0_u32, 0, 0);
    loop {
        let SockFilter { code, jt, jf, k } = program[at];
        at += 1;
        steps += 1;
        let skip = match code {
            LD_W_ABS => {
                let offset = k as usize;
                assert_eq!(offset % 4, 0, "an unaligned load");
                let word = data[offset..offset + 4].try_into().unwrap();
                accumulator = u32::from_ne_bytes(word);
                0
            }
            ALU_AND_K => {
                accumulator &= k;
                0
            }
            JMP_JA => k as usize,
            JMP_JEQ_K => usize::from(if accumulator == k { jt } else { jf }),
            JMP_JGE_K => usize::from(if accumulator >= k { jt } else { jf }),
            RET_K => {
                let action = match (k & 0xffff_0000, k & 0xffff) {
                    (SECCOMP_RET_ALLOW, 0) => Action::Allow,
                    (SECCOMP_RET_ERRNO, number) => Action::Errno(u16::try_from(number).unwrap()),
                    _ => panic!("an action nobody asked for: {k:#x}"),
                };
                return Run { action, steps };
            }
            _ => panic!("an instruction the compiler has no use for: {code:#x}"),
        };
        at += skip;
    }
}
