//! The end-to-end tests: one module for each subject, each with its table of cases.

mod attribute;
mod images;
mod published;
mod registry;
mod support;

use std::process::ExitCode;

use orbit_tests::main_loop;

fn main() -> ExitCode {
    main_loop::run(
        [
            support::cases(),
            attribute::cases(),
            images::cases(),
            registry::cases(),
            published::cases(),
        ]
        .concat(),
    )
}
