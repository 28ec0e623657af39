//! The end-to-end tests: one module for each subject, each with its table of cases.

mod ahead;
mod asked_to_end;
mod attribute;
mod cache;
mod changes;
mod doctor;
mod early;
mod engine;
mod explained;
mod failing;
mod faults;
mod host_mounts;
mod host_view;
mod hostile;
mod images;
mod inside;
mod keeper;
mod kit;
mod library;
mod listed;
mod output;
mod policies;
mod postgres;
mod published;
mod raw;
mod registry;
mod roles;
mod run;
mod runner;
mod service;
mod shell;
mod snapshots;
mod squeeze;
mod steps;
mod structure;
mod support;
mod together;
mod told;
mod verdicts;

use std::process::ExitCode;

use orbit_tests::main_loop;

fn main() -> ExitCode {
    if let Some(role) = std::env::var_os(kit::ROLE) {
        return roles::run(&role.to_string_lossy());
    }
    main_loop::run(
        [
            support::cases(),
            attribute::cases(),
            images::cases(),
            registry::cases(),
            inside::cases(),
            host_mounts::cases(),
            host_view::cases(),
            library::cases(),
            listed::cases(),
            ahead::cases(),
            output::cases(),
            changes::cases(),
            snapshots::cases(),
            squeeze::cases(),
            steps::cases(),
            postgres::cases(),
            shell::cases(),
            doctor::cases(),
            hostile::cases(),
            faults::cases(),
            asked_to_end::cases(),
            cache::cases(),
            run::cases(),
            early::cases(),
            runner::cases(),
            verdicts::cases(),
            service::cases(),
            keeper::cases(),
            failing::cases(),
            engine::cases(),
            policies::cases(),
            explained::cases(),
            together::cases(),
            published::cases(),
            structure::cases(),
        ]
        .concat(),
    )
}
