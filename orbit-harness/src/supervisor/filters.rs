//! The seccomp filters of a supervisor's programs, each compiled once.

use std::collections::{HashMap, hash_map::Entry};

use crate::{
    plan::{FilterPlan, SeccompPlan},
    security::{
        capabilities::CapabilitySet,
        seccomp::{
            bpf::{CompileError, Program, SockFilter, compile},
            policy::{Arch, Policy},
        },
    },
};

/// Compiled filters.
#[derive(Default)]
pub(super) struct Filters(HashMap<FilterPlan, Program>);

/// Why there is no filter: a sandbox without one is not started.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilterError {
    #[error("no list of system calls exists for this architecture")]
    Architecture,
    #[error(transparent)]
    Compile(#[from] CompileError),
}

impl Filters {
    /// With that of a program of which nothing was said: for who has nothing else to do.
    pub(super) fn with_usual() -> Self {
        let mut filters = Self::default();
        let usual = (CapabilitySet::docker_default(u8::MAX), SeccompPlan::Default);
        // Whose program needs it is told.
        let _ = filters.of(usual);
        filters
    }

    /// The filter of a program, compiled with the first that needs it.
    pub(super) fn of(&mut self, plan: FilterPlan) -> Result<&[SockFilter], FilterError> {
        let program = match self.0.entry(plan) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let arch = Arch::native().ok_or(FilterError::Architecture)?;
                let (capabilities, seccomp) = plan;
                let policy = Policy::new(arch, capabilities, seccomp == SeccompPlan::Nested);
                new.insert(compile(&policy)?)
            }
        };
        Ok(program.instructions())
    }
}
